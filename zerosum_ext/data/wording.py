"""Names of options as the caller wrote them: arguments in Python, options on the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

__all__ = ["command_line", "option"]

_COMMAND_LINE: ContextVar[bool] = ContextVar("command_line", default=False)

# What an error advises: in Python, and on the command line.
_PHRASES: dict[str, tuple[str, str]] = {
    "no header": ("header=False", "--no-header"),
    "skip bad rows": ("skip_bad_rows=True", "--skip-bad-rows"),
    "no times": ("columns={'timestamp': None}", "--timestamp-column ''"),
    "skip unknown": ("skip_unknown=True", "--skip-unknown"),
    "train anew": ("without resume= training starts anew", "remove the file to train from the start"),
    "history": ("recommend_by_history", "--history FILE"),
    "text ids": ("id_type='str'", "--id-type str"),
    "encoding": ("encoding=", "--encoding"),
    "delimiter": ("delimiter=", "--delimiter"),
    "external ids": ("ids=True", "--ids external"),
    "adjacency": ("format='adjacency'", "--format adjacency"),
    "item lists": ("format='item-lists'", "--format item-lists"),
    "table columns": ("columns={'user': 0, 'item': 1}", "--user-column 0 --item-column 1"),
    "split column": ("SplitRule('column')", "--split column"),
    "format": ("format=", "--format"),
    "line limit": ("max_line_bytes=", "max_line_bytes in Python"),
}


@contextlib.contextmanager
def command_line() -> Iterator[None]:
    """Let errors raised inside name options of the command line instead of arguments in Python."""
    token = _COMMAND_LINE.set(True)
    try:
        yield
    finally:
        _COMMAND_LINE.reset(token)


def option(name: str) -> str:
    """Return how to write an option, such as "no header": ``header=False`` or ``--no-header``."""
    python, shell = _PHRASES[name]
    return shell if _COMMAND_LINE.get() else python


def column_option(key: str, example: str = "...") -> str:
    """Return how to say which column holds ``key``: ``columns={'item': ...}`` or ``--item-column ...``."""
    if _COMMAND_LINE.get() and key in ("user", "item", "rating", "timestamp", "split"):
        return f"--{key}-column {'NAME' if example == '...' else example}"
    shown = example if example == "..." or example.isdecimal() else repr(example)
    return f"columns={{{key!r}: {shown}}}"
