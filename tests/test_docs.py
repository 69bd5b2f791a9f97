"""README and docs: what their fenced blocks show works as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from zerosum_ext.cli import main as cli
from zerosum_ext.experiments import reproduce

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


class Block(NamedTuple):
    """A fenced block: its document, the line that its text begins in, its language and its text."""

    document: Path
    line: int
    language: str
    text: str


def blocks(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(document, text.count("\n", 0, m.start()) + 2, m[1], m[2]) for m in found]


ALL = [block for document in DOCUMENTS for block in blocks(document)]
# The steps of the guide to adding a loss go into several files: tests/test_adding_a_loss.py follows them.
WITH_PYTHON = sorted({b.document for b in ALL if b.language == "python" and b.document.stem != "adding_a_loss"})
COMMANDS = [
    pytest.param(line.removeprefix("$ "), id=f"{b.document.name}:{b.line + number}")
    for b in ALL
    if b.language == ""
    for number, line in enumerate(b.text.splitlines())
    if line.startswith("$ zerosum-ext ")
]


def test_every_block_is_of_a_kind_that_is_tested():
    # C++ stands in the guide to adding a loss alone.
    assert {b.language for b in ALL} <= {"", "python", "toml", "cpp", "bash", "sh"}
    assert WITH_PYTHON
    assert COMMANDS


@pytest.mark.parametrize("document", WITH_PYTHON, ids=lambda path: path.name)
def test_python_blocks_run_as_they_stand(document, tmp_path, monkeypatch):
    """The blocks of a document run in order, each seeing what the ones before it defined, as a reader types them."""
    rng = np.random.default_rng(0)
    users, items = np.nonzero(rng.random((60, 40)) < np.linspace(0.6, 0.1, 40))
    rows = "".join(f"u{u},i{i},{rng.integers(1, 6)}\n" for u, i in zip(users, items, strict=True))
    for name in ("ratings.csv", "purchases.csv"):
        (tmp_path / name).write_text("user,item,rating\n" + rows)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(document):
        if block.language == "python":
            # Line numbers in a traceback are those of the document.
            exec(compile("\n" * (block.line - 1) + block.text, str(document), "exec"), names)


def test_the_readme_is_one_page_with_few_figures():
    """One page, and a table of at most eight figures, one a cell."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 80
    assert [b.language for b in blocks(ROOT / "README.md")].count("python") == 1
    table = re.search(r"^\| what \|.*?\n\n", text, re.MULTILINE | re.DOTALL)
    rows = [line.strip("|").split("|") for line in table[0].strip().splitlines()[2:]]
    figures = [cell.strip() for row in rows for cell in row[1:-1] if cell.strip()]
    assert 0 < len(figures) <= 8
    assert all(re.fullmatch(r"[\d.,]+", figure) for figure in figures)
    assert all(row[-1].strip() for row in rows), "every promise has its limit"


@pytest.mark.parametrize("command", COMMANDS)
def test_command_lines_are_understood(command):
    arguments = shlex.split(command, comments=True)[1:]
    assert cli._parser().parse_args(arguments).run


@pytest.mark.parametrize(
    "block", [b for b in ALL if b.language == "toml"], ids=lambda block: f"{block.document.name}:{block.line}"
)
def test_experiment_files_are_well_formed(block, tmp_path):
    file = tmp_path / "shown.toml"
    file.write_text(block.text, encoding="utf-8")
    assert reproduce.read_experiment(file).cells()
