"""Adjacency lists: a line for each user with all items, as LightGCN, NGCF and many others publish their data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zerosum_ext.data.ids import code, join
from zerosum_ext.data.readers import arrow as _arrow
from zerosum_ext.data.readers.sniff import decode
from zerosum_ext.data.readers.sources import Lines
from zerosum_ext.data.readers.table import Options, Table

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_lists"]


def read_lists(path: Path, lines: Lines, options: Options, users_first: bool) -> Table:
    """Return one row for each item of each list.

    Args:
        path: of the file, for messages.
        lines: of the file; ids are separated by blanks, tabs or ``options.delimiter``.
        options: how it is read.
        users_first: whether a line begins with its user; else the user is the number of the line, from 0.

    Raises:
        ValueError: there is no item, or an id is no integer where such are due.
    """
    import pyarrow as pa

    if options.columns:
        raise ValueError("columns: expected none with lists, which have users and items alone")
    users: list[np.ndarray | pa.Array] = []
    items: list[pa.Array] = []
    counter = _Counter()
    numbers: list[np.ndarray] = []  # of the lines, as often as each has items
    for flat, counts, line in _tokens(path, lines, options.delimiter, counter):
        here = np.arange(line, line + len(counts))
        numbers.append(np.repeat(here, np.maximum(counts - users_first, 0)).astype(np.int32))
        ends = np.cumsum(counts)
        starts = ends - counts
        if users_first:
            inner = np.ones(int(ends[-1]) if len(ends) else 0, bool)
            some = counts > 0  # a blank line is no user
            inner[starts[some]] = False
            users.append(flat.take(pa.array(np.repeat(starts[some], counts[some] - 1))))
            items.append(flat.filter(pa.array(inner)))
            counter.empty += int((counts == 1).sum())
        else:
            users.append(np.repeat(np.arange(counter.users, counter.users + len(counts)), counts))
            items.append(flat)
        counter.users += len(counts)
    bad = _arrow.Bad()
    item = _arrow.text_ids(pa.chunked_array(items, pa.string()), "item", options.id_type, bad)
    if not len(item.codes) and not bad.rows:
        raise ValueError(f"{path} has no rows: its lists are empty")
    if users_first:
        user = _arrow.text_ids(pa.chunked_array(users, pa.string()), "user", options.id_type, bad)
    else:
        user = code("user", np.concatenate([np.asarray(part) for part in users]))
    if bad.rows:
        row = min(bad.rows)
        raise ValueError(f"{path}:{np.concatenate(numbers)[row]}: {bad.rows[row]}")
    what = "a user and its items" if users_first else "the items of a user, who is the number of the line from 0"
    note = f"each line is {'read as' if options.format else 'taken for'} {what}"
    guesses = () if options.format else (note,)
    return Table(
        {"user": join([user]), "item": join([item])},
        len(item.codes),
        notes=(note,),
        guesses=guesses,
        comments=counter.comments,
        empty_lists=counter.empty,
        used=(("user", "the first of a line" if users_first else "the line"), ("item", "the rest of a line")),
    )


class _Counter:
    def __init__(self) -> None:
        self.users = self.empty = self.comments = 0


def _tokens(
    path: Path, lines: Lines, delimiter: str | None, counter: _Counter
) -> Iterator[tuple[pa.Array, np.ndarray, int]]:
    """Yield (all ids of a block, how many each line has, the number of its first line).

    Comments above the first line are left out.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    first, line = True, 1
    for block in lines:
        rows = block.split(b"\n")[:-1]
        while first and rows and (not rows[0].strip() or rows[0].lstrip()[:1] in (b"#", b"%")):
            counter.comments += bool(rows[0].strip())
            rows.pop(0)
            line += 1
        first = first and not rows
        try:
            text = pa.array(rows, pa.binary()).cast(pa.string())
        except pa.ArrowInvalid:
            for number, row in enumerate(rows, line):
                decode(path, row, number)
            raise
        if delimiter not in (None, " "):
            text = pc.replace_substring(text, delimiter, " ")
        text = pc.ascii_trim_whitespace(text)
        split = pc.ascii_split_whitespace(text)
        flat, counts = split.flatten(), _arrow.values_of(split.value_lengths()).astype(np.int64)
        blank = _arrow.values_of(pc.equal(text, "").cast(pa.int8())) != 0
        if blank.any():  # splitting nothing gives one empty piece
            keep = np.ones(len(flat), bool)
            keep[(np.cumsum(counts) - counts)[blank & (counts > 0)]] = False
            flat = flat.filter(pa.array(keep))
            counts[blank] = 0
        yield flat, counts, line
        line += len(rows)
