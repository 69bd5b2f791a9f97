"""The rules of the house that no linter knows: what imports what, and how much a function may hold."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "zerosum_ext"
FILES = sorted(ROOT.rglob("*.py"))
# Libraries that take long to load, or that not everybody has: these alone may be imported inside a function.
HEAVY = frozenset(
    (
        "matplotlib",
        "optuna",
        "pandas",
        "polars",
        "pyarrow",
        "safetensors",
        "scipy",
        "tensorboard",
        "tomli",
        "tomllib",
        "torchrec",
        "tqdm",
    )
)
LINES, PARAMETERS = 60, 12


def room(path: Path) -> str:
    """The room that a file stands in: the sub-package, or the module itself on the top floor."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_name_is_imported_from_another_room(path):
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zerosum_ext."):
            theirs = node.module.split(".")[1]
            private = [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]
            if private and theirs != room(path):
                found.append(f"line {node.lineno}: {', '.join(private)} of {node.module}")
    assert not found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_heavy_libraries_are_imported_inside_functions(path):
    if room(path) == "cli":
        return  # a command loads what it needs, so that --help answers at once
    found = []
    for function in functions(ast.parse(path.read_text(encoding="utf-8"))):
        for node in ast.walk(function):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "."]
            else:
                continue
            found += [f"line {node.lineno}: {name}" for name in names if light(name)]
    assert not found


def light(name: str) -> bool:
    # Parts of torch that import torch does not load by itself.
    return name.partition(".")[0] not in HEAVY and not name.startswith(("torch.utils.tensorboard", "torch.distributed"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_can_be_held_in_the_head(path):
    """At most 60 lines of code (its docstring aside) and 12 parameters, unless a comment above it says why."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    found = []
    for node in functions(ast.parse(text)):
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        if lines[first - 2].lstrip().startswith("#"):
            continue
        doc = node.body[0] if ast.get_docstring(node) is not None else None
        length = node.end_lineno - node.lineno + 1 - (doc.end_lineno - doc.lineno + 1 if doc else 0)
        a = node.args
        parameters = len(a.posonlyargs + a.args + a.kwonlyargs) + bool(a.vararg) + bool(a.kwarg)
        if length > LINES or parameters > PARAMETERS:
            found.append(f"line {node.lineno}: {node.name} has {length} lines and {parameters} parameters")
    assert not found
