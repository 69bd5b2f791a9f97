"""The documentation's own rules: links lead somewhere, every page is in the contents, tutorials are their sources."""

from __future__ import annotations

import doctest
import fnmatch
import importlib
import json
import re
import sys
from pathlib import Path

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
