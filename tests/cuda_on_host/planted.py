"""Kernels with bugs planted in them, to show that the tests of a kernel notice when one of its mechanisms is broken.

``load(topic, header, bugs)`` compiles the launchers of ``<topic>.cpp`` with changed copies of headers of csrc. In the
copies every bug is there beside the right text, and ``plant(number)`` chooses which one is alive: 1 is the first of
``bugs``, 0 none. So all bugs cost one build.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

import cuda_on_host


@dataclass(frozen=True)
class Bug:
    """A piece of a header and what stands there instead: both statements (they end with a semicolon) or expressions.

    Without ``header`` it is in that of the topic.
    """

    name: str
    right: str
    wrong: str
    header: str | None = None


def changed(text: str, bugs: Sequence[tuple[int, Bug]]) -> str:
    """Returns the header with all bugs, which have numbers, in it.

    Raises:
        ValueError: the right text of a bug does not occur exactly once, so the bug tests nothing any more.
    """
    pieces = []
    for number, bug in bugs:
        if (found := text.count(bug.right)) != 1:
            raise ValueError(f"{bug.name}: expected {bug.right!r} once, found it {found} times")
        alive = f"zx::planted == {number}"
        if bug.right.endswith(";"):
            piece = f"if ({alive}) {{ {bug.wrong} }} else {{ {bug.right} }}"
        else:
            piece = f"({alive} ? ({bug.wrong}) : ({bug.right}))"
        pieces.append((text.index(bug.right), len(bug.right), piece))
    for start, length, piece in sorted(pieces, reverse=True):
        text = text[:start] + piece + text[start + length :]
    known = "#ifndef ZX_PLANTED\n#define ZX_PLANTED\nnamespace zx {\ninline int64_t planted = 0;\n}\n#endif\n"
    return "#pragma once\n#include <cstdint>\n" + known + text


LOSSES = "common/losses.h"


def few_losses(text: str, names: Sequence[str]) -> str:
    """Returns common/losses.h with these losses alone in its lists, so that compiling takes seconds."""
    for group in ("PAIR", "QUAD", "ROW"):
        head = f"#define ZX_{group}_LOSSES(X)"
        begin = text.index(head)
        lines = re.compile(r"(?:.*\\\n)*.*\n").match(text, begin)[0]
        kept = [entry for entry, name in re.findall(r'(X\(\w+, "(\w+)", \w+\))', lines) if name in names]
        if not kept:
            raise ValueError(f"expected a loss of each list, found none in {lines}")
        text = text.replace(lines, f"{head} {' '.join(kept)}\n")
    return text


def load(
    topic: str,
    header: str,
    bugs: Sequence[Bug],
    *,
    losses: Sequence[str] = (),
    constants: Mapping[str, int] | None = None,
    kind: str = "count",
) -> cuda_on_host.Kernels:
    """Compiles the launchers of a topic with the bugs in ``csrc/<header>`` and theirs.

    Args:
        topic: the name of a source here.
        header: that of its kernels.
        bugs: what is planted.
        losses: those that are compiled; all of them where there are none. One of each list at least.
        constants: other values for constants of the header.
        kind: "count" counts bytes; "plain" is faster.
    """
    numbered = [(number, bug, bug.header or header) for number, bug in enumerate(bugs, 1)]
    texts = {
        name: changed((cuda_on_host.CSRC / name).read_text(), [(n, bug) for n, bug, its in numbered if its == name])
        for name in dict.fromkeys([header, *(its for _, _, its in numbered)])
    }
    for name, value in (constants or {}).items():
        texts[header], found = re.subn(rf"(constexpr \w+ {name} =)[^;]+;", rf"\1 {value};", texts[header])
        if found != 1:
            raise ValueError(f"{name}: expected one constant of this name in {header}, found {found}")
    if losses:
        texts[LOSSES] = few_losses((cuda_on_host.CSRC / LOSSES).read_text(), losses)
    plant = 'static hostcall::Function plant_("plant", [](int64_t number) { zx::planted = number; });\n'
    texts[header] += '#include "host_call.h"\n' + plant
    # The name stands for the text, as what is compiled is kept by its command.
    digest = hashlib.sha256("".join(texts.values()).encode()).hexdigest()[:20]
    folder = cuda_on_host.build_folder() / f"planted-{digest}"
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    module = cuda_on_host.build_module(topic, kind, folder)
    return cuda_on_host.Kernels(topic, cuda_on_host.import_module(f"{topic}.planted-{digest}", module), recorded=False)


def kernels_of(topic: str, header: str, bugs: Sequence[Bug], **options: Any):
    """A fixture: what :func:`load` returns."""

    @pytest.fixture(scope="module")
    def wrong():
        if os.environ.get("CUDA_ON_HOST_SANITIZE"):
            pytest.skip("changed kernels are for the tests to look at: sanitizers are given those of the package")
        return load(topic, header, bugs, **options)

    return wrong


def small_grid_of(topic: str, **constants: int):
    """A fixture: the kernels of a topic with a grid of so few blocks that each takes several turns."""
    return kernels_of(topic, f"cuda/{topic}.cuh", (), constants=constants, kind="plain")


def each_of(bugs: Sequence[Bug]):
    """Parametrizes a test by ``bug``: None, and each of them."""
    return pytest.mark.parametrize("bug", [None, *bugs], ids=lambda bug: bug.name if bug else "none")


def look_for(
    bug: Bug | None, bugs: Sequence[Bug], wrong: cuda_on_host.Kernels, battery: Callable[[cuda_on_host.Kernels], None]
) -> None:
    """Runs checks of kernels with a bug, which they have to notice, or with none."""
    wrong.plant(0 if bug is None else 1 + bugs.index(bug))
    if bug is None:
        battery(wrong)
        return
    with pytest.raises((AssertionError, RuntimeError)):
        battery(wrong)
