"""What every reader returns, and the rows that it could not use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zerosum_ext.data.ids import Coded, join
from zerosum_ext.data.wording import option

__all__ = ["BadRows", "Column", "Options", "Table", "join_tables"]

MAX_BAD_ROWS_KEPT = 20

Column = Coded | np.ndarray


@dataclass(frozen=True)
class Options:
    """How a file is read; see :meth:`zerosum_ext.Interactions.from_file`."""

    columns: dict[str, str | int | None] = field(default_factory=dict)
    delimiter: str | None = None
    header: bool | None = None
    id_type: str = "auto"
    skip_bad_rows: bool = False
    encoding: str = "utf-8"
    format: str | None = None
    max_line_bytes: int = 1 << 28


@dataclass
class Table:
    """Aligned columns, ``user`` and ``item`` among them, and what was left out and guessed while reading.

    Attributes:
        columns: ids of users and items as Coded; else numbers, or text as Coded.
        rows: rows read, the bad ones among them.
        numbered: whether users and items of arrays are indices unless said otherwise.
    """

    columns: dict[str, Column]
    rows: int
    bad_rows: int = 0
    bad_row_messages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    used: tuple[tuple[str, str], ...] = ()
    unread: tuple[str, ...] = ()
    guesses: tuple[str, ...] = ()
    comments: int = 0
    empty_lists: int = 0
    numbered: bool = False


def join_tables(sources: list[Path], tables: list[Table]) -> Table:
    """Return the rows of several files one after another.

    Raises:
        ValueError: the files have different columns.
    """
    if len(tables) == 1:
        return tables[0]
    first = tables[0]
    columns: dict[str, Column] = {}
    for source, table in zip(sources, tables, strict=True):
        if table.columns.keys() != first.columns.keys():
            raise ValueError(
                f"{source} has {', '.join(table.columns)}, expected {', '.join(first.columns)} as {sources[0]}"
            )
    for key, column in first.columns.items():
        parts = [table.columns[key] for table in tables]
        columns[key] = _join(key, column, parts)
    gather: Callable[[Callable[[Table], tuple[str, ...]]], tuple[str, ...]]
    gather = lambda f: tuple(dict.fromkeys(text for table in tables for text in f(table)))  # noqa: E731
    return Table(
        columns,
        sum(table.rows for table in tables),
        sum(table.bad_rows for table in tables),
        gather(lambda table: table.bad_row_messages)[:MAX_BAD_ROWS_KEPT],
        gather(lambda table: table.notes),
        first.used,
        gather(lambda table: table.unread),
        gather(lambda table: table.guesses),
        sum(table.comments for table in tables),
        sum(table.empty_lists for table in tables),
        all(table.numbered for table in tables),
    )


def _join(key: str, first: Column, parts: list[Column]) -> Column:
    coded = [part for part in parts if isinstance(part, Coded)]
    if len(coded) == len(parts):
        return join(coded)
    plain = [part for part in parts if isinstance(part, np.ndarray)]
    if len(plain) < len(parts):
        raise ValueError(f"column {key!r} holds text in one file and numbers in another")
    return np.concatenate(plain)


@dataclass
class BadRows:
    """Raises for, or counts, the rows that cannot be used."""

    path: Path
    skip: bool
    count: int = 0
    messages: list[str] = field(default_factory=list)
    pending: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, problem: str) -> None:
        """Keep a problem until :meth:`flush`."""
        self.pending.append((line, problem))

    def flush(self) -> None:
        """Raise for the first line with a problem, or count all such lines.

        Problems are found column by column; here they come in the order of lines, one a line.
        """
        last = -1
        for line, problem in sorted(self.pending, key=lambda one: one[0]):
            message = f"{self.path}:{line}: {problem}"
            if not self.skip:
                raise ValueError(f"{message}. {option('skip bad rows')} leaves such rows out")
            if line == last:
                continue
            last = line
            self.count += 1
            if len(self.messages) < MAX_BAD_ROWS_KEPT:
                self.messages.append(message)
        self.pending.clear()
