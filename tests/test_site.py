"""The documentation's own rules: links lead somewhere, every page is in the contents, tutorials are their sources."""

from __future__ import annotations

import doctest
import fnmatch
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import zerosum_ext as zx

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [
    p for p in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))) if "_build" not in p.parts
]
TUTORIALS = sorted((ROOT / "tools" / "tutorials").glob("*.py"))

sys.path.insert(0, str(ROOT / "tools"))

import performance  # noqa: E402
import try_installs  # noqa: E402

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not here")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text) + re.findall(r'<img src="([^"]+)"', text)
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_page_is_in_the_contents():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^([\w/*]+)$", index, re.M)
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert {page for page in pages if not any(fnmatch.fnmatch(page, entry) for entry in listed)} == set()
    assert {entry for entry in listed if "/" not in entry and "*" not in entry} - pages == set()


@pytest.mark.parametrize("source", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_are_what_their_sources_say(source):
    """The notebook holds the code of its source, was executed, and nothing failed."""
    notebook = json.loads((DOCS / "tutorials" / f"{source.stem}.ipynb").read_text(encoding="utf-8"))
    cells = re.split(r"^# %%.*\n", source.read_text(encoding="utf-8"), flags=re.M)[1:]
    assert len(cells) == len(notebook["cells"])
    for text, cell in zip(cells, notebook["cells"], strict=True):
        if cell["cell_type"] == "code":
            assert "".join(cell["source"]).strip() == text.strip(), "run make notebooks"
            assert cell["execution_count"]
            assert not [output for output in cell["outputs"] if output["output_type"] == "error"]
    assert [cell for cell in notebook["cells"] if cell.get("outputs")]
    assert re.search(rf"^{source.stem}$", (DOCS / "tutorials" / "index.md").read_text(), re.M)


RESULTS = pytest.mark.skipif(not performance.RESULTS.is_dir(), reason="the results of benchmarks are not here")


@RESULTS
def test_the_page_on_performance_is_what_the_results_say():
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    assert text == performance.page(), "run python tools/performance.py"
    for said in ("avx2", "avx512", "NVIDIA"):
        assert said in text


def cells(table: str, first: str, columns: list[str]) -> list[str]:
    """The cells of a Markdown table's first line that begins with so many words, under these headings."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    line = next(line for line in lines if " ".join(line).startswith(first))
    heading = next(h for h in reversed(lines[: lines.index(line)]) if columns[0] in h)
    return [line[heading.index(column)] for column in columns]


@RESULTS
def test_the_figures_of_the_readme_are_those_of_the_results():
    """Each figure of the table stands in the file of results from which it comes, and rounds to what is said."""
    readme, tuned = (ROOT / "README.md").read_text(), (ROOT / "benchmarks/paper/TUNED.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in readme.splitlines() if line[:2] == "| "]
    rows = {row[0]: row[1:] for row in rows}

    def said(name: str) -> list[float]:
        return [float(word) for cell in rows[name] for word in re.findall(r"(?<![\w-])[+-]?\d*\.\d+(?![\w.])", cell)]

    def read(name: str) -> list[dict[str, Any]]:
        return json.loads((performance.RESULTS / f"{name}.json").read_text(encoding="utf-8"))["results"]

    def close(name: str, *figures: str | float) -> None:
        found = said(name)[: len(figures)]
        assert found == pytest.approx([float(figure) for figure in figures], abs=0.0501 if found[0] > 1 else 0.00051)

    paper = (ROOT / "benchmarks/paper/REPORT.md").read_text().partition("## Synthetic triangle")[2]
    synthetic = [cells(paper, name, ["PopQ@1"])[0].split()[0] for name in ("BPR", "Zerosum w=.8")]
    close("PopQ@1, synthetic data of the paper, Zerosum", *synthetic)
    popularity, change = cells(tuned, "MovieLens-1M Softmax, adjusted", ["PopQ@1 → 0.5", "change (95 %)"])
    row = "PopQ@1, MovieLens-1M, tuned: adjusted softmax"
    close(row, *re.findall(r"0\.\d+", popularity)[:2])
    assert re.findall(r"[+-][\d.]+", change)[:2] == re.findall(r"[+-][\d.]+", rows[row][-1])[:2]

    results = ROOT / "benchmarks" / "results"
    speed = cells(
        (results / "training-cpu-avx2.md").read_text().partition("the fastest peer;")[2],
        "ml-1m 64 2",
        ["hogwild bpr", "exact bpr 65536"],
    )
    close(
        "BPR triples a second, MovieLens-1M, times those of the fastest peer", *(cell.split()[0] for cell in speed)
    )  # fmt: skip
    budget = {tuple(r["key"][1:]): r["test"] for r in read("training-budget-cpu")}
    peers = ("implicit", "cornac", "buffalo")
    best = {
        data: (
            max(test for (name, way), test in budget.items() if name == data and way.split()[0] in peers),
            max(test for (name, way), test in budget.items() if name == data and way.startswith("fused")),
        )
        for data in ("ml-1m", "gowalla", "yelp2018")
    }
    row = "NDCG@10 after 30 s of training, Gowalla: softmax beside the best peer's BPR"
    close(row, *best["gowalla"], budget["gowalla", "fused bpr, Adam"], *reversed(best["ml-1m"]))
    assert all(ours > peer for peer, ours in best.values())
    losses = read("losses-cpu")
    ours = {r["shape"][0]: r["times_ours"]["usual"][1] for r in losses if
            (r["loss"], len(r["shape"]), r["isa"], r["threads"]) == ("zerosum", 1, "avx512", 1)}  # fmt: skip
    close("Zerosum loss of a million pairs, times as fast as usual PyTorch", ours[1_000_000])
    assert f"{ours[16]:.1f} for 16 pairs" in rows["Zerosum loss of a million pairs, times as fast as usual PyTorch"][-1]


@RESULTS
def test_the_page_on_installing_is_what_was_tried():
    text = try_installs.PAGE.read_text(encoding="utf-8")
    if not try_installs.RESULTS.exists():  # nothing was tried, so nothing is said
        assert try_installs.BEGIN not in text
        return
    assert text == try_installs.filled(), "run python tools/try_installs.py --docs"


@pytest.mark.parametrize("name", sorted(name for name in zx.__all__ if callable(getattr(zx, name))))
def test_public_names_have_an_example_that_does_what_it_shows(name):
    found = doctest.DocTestFinder(recurse=False).find(getattr(zx, name), name, globs={})
    assert sum(len(test.examples) for test in found) > 0, f"{name} has no example"
    for test in found:
        said: list[str] = []
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
        assert not said, "".join(said)


def test_examples_elsewhere_do_what_they_show():
    finder, said = doctest.DocTestFinder(), []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    package = Path(zx.__file__).parent
    for path in sorted(package.rglob("*.py")):
        if ">>>" not in path.read_text(encoding="utf-8"):
            continue
        parts = path.relative_to(package.parent).with_suffix("").parts
        module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
        for test in finder.find(module, globs={}):
            if test.name.rpartition(".")[2] not in zx.__all__:
                runner.run(test, out=said.append)
    assert not said, "".join(said)
