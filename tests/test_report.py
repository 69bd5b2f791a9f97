"""report.html: one file, nothing from the network, every name escaped, seen in a real browser."""

from __future__ import annotations

import csv
import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import zerosum_ext as zx
from zerosum_ext.cli import main as cli
from zerosum_ext.experiments import runs
from zerosum_ext.experiments.report import UserLists, read_names, svg
from zerosum_ext.experiments.report import page as report_page

# Names that would run, break out of an element or an attribute, or break the page's encoding.
HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=1">',
    "</td></table><h1>&amp; Ünïcode \u202e",
    "{{7*7}}' onload='x",
)
# So that users have enough held-out items for every measure of bias.
SPLIT = runs.SplitRule(ratios=(0.5, 0.2, 0.3))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose users and items have hostile names."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    chance = 1 / np.arange(1, 61)
    with (folder / "hostile.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item"])
        for user in range(60):
            for item in rng.choice(60, 24, replace=False, p=chance / chance.sum()):
                writer.writerow([f"{user} {HOSTILE[user % 4]}", f"{item} {HOSTILE[item % 4]}"])
    method = runs.Method(weight=0.9, embedding_dim=8, epochs=3, batch_size=64)
    return runs.train(folder / "hostile.csv", folder / "run", method, split=SPLIT, figures=False, progress=False)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    rng = np.random.default_rng(1)
    cells = np.stack([rng.choice(60, 24, replace=False) for _ in range(60)])
    data = zx.Interactions.from_arrays(np.repeat(np.arange(60), 24), cells.ravel())
    options = {"methods": ("zerosum", "pearson"), "epochs": 3, "rungs": 1, "embedding_dim": 8, "batch_size": 256}
    folder = tmp_path_factory.mktemp("report") / "c"
    return zx.compare(data, folder, goal="accuracy", split=SPLIT, jobs=1, figures=False, progress=False, **options)


class Elements(HTMLParser):
    """What a browser would make elements of."""

    VOID = frozenset(("meta", "link", "img", "br", "input", "hr"))

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page_of(run):
    return (run.folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("which", ["run", "compared"])
def test_the_page_is_one_sound_file_that_loads_and_runs_nothing(which, request):
    found = request.getfixturevalue(which)
    page = page_of(found.run if which == "compared" else found)
    elements = Elements(page)
    assert {"script", "link", "iframe", "object", "img"}.isdisjoint(elements.tags)
    names = {name for name, _ in elements.attributes}
    assert not {name for name in names if name.startswith("on")}
    assert {"src", "href", "xlink:href"}.isdisjoint(names)
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page.replace("&#x27;", "'")
    assert "url(" not in page
    assert "@import" not in page


def test_every_name_is_shown_as_it_is_and_none_becomes_an_element(run):
    elements = Elements(page_of(run))
    text = "".join(elements.text)
    assert "<script>document.title='owned'</script>" in text
    assert '"><img src=x onerror="document.title=1">' in text
    assert elements.tags.count("h1") == 1


@pytest.mark.parametrize("which", ["run", "compared"])
def test_figures_are_sound_and_say_in_words_what_they_show(which, request):
    found = request.getfixturevalue(which)
    page = page_of(found.run if which == "compared" else found)
    figures = re.findall(r"<figure>(<svg.*?</svg>)", page)
    assert len(figures) >= 5
    for text in figures:
        root = ET.fromstring(text)
        assert root.get("role") == "img"
        assert len(root.get("aria-label")) > 20
        for shape in root.iter():
            for name in ("x", "y", "cx", "cy", "width", "height"):
                if shape.get(name) is not None:
                    assert -1 <= float(shape.get(name)) <= 361
    assert page.count('class="ideal">ideal</text>') >= 1


def test_the_verdict_stands_first_and_figures_of_the_table_are_those_of_the_run(run):
    page = page_of(run)
    text = "".join(Elements(page).text)
    verdict = runs.read_verdict(run)
    for sentence in verdict.sentences():
        assert sentence in text
    assert text.index(verdict.sentences()[0]) < text.index("Measures on the test part")
    for name in ("bpr", "zerosum"):
        assert f"{run.metrics[name]['ndcg@10']:.3f}" in text
    assert f"{verdict.references['most_popular']['ndcg@10']:.3f}" in text
    for label in ("PRI (popularity-rank correlation of items)", "PopQ@1 (popularity quantile of the top item)"):
        assert label in text
    assert page.count("<h3>User ") == 5


def test_the_lists_are_those_that_are_recommended(run):
    text = "".join(Elements(page_of(run)).text)
    user = re.search(r"User (\d+ .*?)Known of", text, re.DOTALL).group(1)
    listed = text[text.index(f"User {user}") :]
    for method in ("bpr", "zerosum"):
        # The report tests: held-out items are candidates there, which recommend leaves out as seen.
        expected = run.recommend([user], 40, method=method)[0].items
        block = listed[listed.index({"bpr": "BPR", "zerosum": "Zerosum"}[method]) :][:2000]
        shown = [item for item in expected if item in block]
        assert shown[0] == expected[0]


def test_what_is_known_of_a_user_says_how_much_is_left_out(compared):
    told = re.findall(
        r"<h3>User (\d+)</h3><p>Known of this user: ([\d, ]*\d)(?: and (\d+) more)?</p>", page_of(compared.run)
    )
    counts = compared.run.split.train.user_counts
    assert len(told) == 5
    for user, known, more in told:
        assert len(known.split(", ")) == min(8, counts[int(user)])
        assert len(known.split(", ")) + int(more or 0) == counts[int(user)]
    page = report_page._users([UserLists("a", [], {}), UserLists("b", ["x", "y"], {})])
    assert "Known of this user: nothing</p>" in page
    assert "Known of this user: x, y</p>" in page


def test_the_comparison_has_its_front_and_what_was_not_tried(compared):
    text = "".join(Elements(page_of(compared.run)).text)
    for name in compared.records:
        assert name in text
    for name, reason in compared.left_out.items():
        assert name in text
        assert reason in text
    assert "The line joins those that no other beats in both" in text


def test_the_command_writes_it_again_with_names_of_items(run, tmp_path, capsys):
    shutil.copytree(run.folder, tmp_path / "r")
    for gone in ("report.html", "verdict.json"):  # as in a folder of an earlier version
        (tmp_path / "r" / gone).unlink()
    with (tmp_path / "items.csv").open("w", newline="", encoding="utf-8") as file:
        ids = run.split.train.item_ids
        csv.writer(file).writerows([("item", "title"), *((one, f"<b>Film</b> {n}") for n, one in enumerate(ids))])
    assert cli.main(["report", str(tmp_path / "r"), "--items", str(tmp_path / "items.csv")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == runs.read_verdict(run).sentences()[0]
    elements = Elements((tmp_path / "r" / "report.html").read_text(encoding="utf-8"))
    assert "<b>Film</b> 1" in "".join(elements.text)
    assert "b" not in elements.tags
    (tmp_path / "r" / "compare.json").write_text("{}")
    assert cli.main(["report", str(tmp_path / "r")]) == 2
    assert "compare.json is damaged" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "r"), "--items", str(tmp_path / "none.csv")]) == 2


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ('movieId,title,genres\n1,"Café, The",Drama\n2,Heat,Action\n', "utf-8"),
        ("1::Café, The::Drama\n2::Heat::Action\n", "latin-1"),
        ("1|Café, The|01-Jan-1995\n2|Heat|01-Jan-1995\n", "latin-1"),
        ("name\titem\nCafé, The\t1\nHeat\t2\n", "utf-8"),
    ],
)
def test_names_of_items_are_read_as_movielens_writes_them(tmp_path, text, encoding):
    path = tmp_path / "names"
    path.write_bytes(text.encode(encoding))
    assert read_names(path) == {"1": "Café, The", "2": "Heat"}
    path.write_text("1\n2\n")
    with pytest.raises(ValueError, match="expected a table of items and their names"):
        read_names(path)


def test_ticks_are_round_and_scales_hold_their_values():
    assert svg.nice_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert svg.nice_ticks(0.12, 0.31) == [0.15, 0.2, 0.25, 0.3]
    for low, high in ((0, 1e-6), (3, 3.5), (-2, 7), (1e3, 1e6)):
        ticks = svg.nice_ticks(low, high)
        assert 2 <= len(ticks) <= 11
        assert all(low - 1e-9 <= tick <= high * (1 + 1e-9) for tick in ticks)
    axis = svg.Axis.of("x", [0.2, 0.3], ideal=0.5)
    assert axis.low < 0.2
    assert axis.high > 0.5
    same = svg.Axis.of("x", [2.0, 2.0])
    assert same.low < 2 < same.high
    empty = svg.Axis.of("x", [float("nan")])
    assert (empty.low, empty.high) == (pytest.approx(-0.06), pytest.approx(1.06))
    log = svg.Axis.of("x", [1, 1000], log=True)
    assert [log.place(v) for v in (1, 1000)] == [0, 1]
    assert log.place(10) == pytest.approx(1 / 3)
    assert log.ticks() == [1, 10, 100, 1000]


def test_no_two_series_look_alike():
    """By colour and by shape together: fifteen methods stand in one figure."""
    looks = {(svg.COLOURS[n % len(svg.COLOURS)], svg._mark(n, 0, 0)) for n in range(24)}
    assert len(looks) == 24


def test_labels_do_not_cover_each_other():
    dots = [svg.Dot(0.5 + 0.001 * n, 0.5, f"setting-number-{n}", "tried", True) for n in range(6)]
    text = svg.scatter("six settings", dots, svg.Axis("x", 0, 1), svg.Axis("y", 0, 1))
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="name">([^<]+)', text)
    boxes = [(float(x), float(y) - 9, float(x) + 5.9 * len(name), float(y) + 2) for x, y, name in found]
    assert len(boxes) == 6
    for n, a in enumerate(boxes):
        for b in boxes[n + 1 :]:
            assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


# ---- a real browser


def browser_path():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["run", "compared"])
def test_the_page_in_a_browser(which, request, tmp_path):
    """On a phone and on a desk: nothing runs, nothing is fetched, nothing is wider than the screen, and it prints."""
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    if browser_path() is None:
        pytest.skip("no Chromium is installed")
    found = request.getfixturevalue(which)
    page_file = (found.run if which == "compared" else found).folder / "report.html"
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"], timeout=60_000)
        try:
            for width in (360, 390, 1280):
                page = browser.new_page(viewport={"width": width, "height": 800})
                asked, said = [], []
                page.on("request", lambda request, asked=asked: asked.append(request.url))
                page.on("console", lambda message, said=said: said.append(message.text))
                page.on("pageerror", lambda error, said=said: said.append(str(error)))
                page.goto(page_file.as_uri())
                assert asked == [page_file.as_uri()]
                assert said == []
                assert page.title() not in ("owned", "1")
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width
                assert page.evaluate("getComputedStyle(document.body).fontSize") == "16px"
                _check_figures(page, width)
                page.screenshot(path=tmp_path / f"{width}.png")
            pdf = page.pdf(format="A4")
            assert pdf.startswith(b"%PDF")
            assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 20
        finally:
            browser.close()
    assert Path(tmp_path / "390.png").stat().st_size > 10_000


def _check_figures(page, width):
    """Each figure lies within the screen, and its smallest text can be read."""
    boxes = page.evaluate(
        "[...document.querySelectorAll('figure > svg')].map(s => {const b = s.getBoundingClientRect();"
        "return [b.left, b.right, b.width / s.viewBox.baseVal.width * 11, s.getAttribute('aria-label').length]})"
    )
    assert len(boxes) >= 5
    for left, right, letters, words in boxes:
        assert left >= 0
        assert right <= width
        assert letters >= 8  # pixels
        assert words > 20
