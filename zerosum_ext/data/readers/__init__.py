"""Reading tables of interactions from files: what :meth:`zerosum_ext.Interactions.from_file` stands on.

Arrow reads what it can. The rest is ours: recognising the format, the rule of ids, times, and naming what is wrong by
file and line. Every row is either used or accounted for.
"""

from __future__ import annotations

import codecs
import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from zerosum_ext.data.readers import sources
from zerosum_ext.data.readers.arrays import load_arrays, read_npz
from zerosum_ext.data.readers.json_lines import read_json_lines
from zerosum_ext.data.readers.lists import read_lists
from zerosum_ext.data.readers.sniff import sniff_format
from zerosum_ext.data.readers.sources import DAMAGED
from zerosum_ext.data.readers.table import Column, Options, Table, join_tables
from zerosum_ext.data.readers.tables import from_stream, is_table, read_dataset
from zerosum_ext.data.readers.text import read_text

__all__ = [
    "DAMAGED",
    "FORMATS",
    "Column",
    "Format",
    "Options",
    "Table",
    "check_options",
    "expand",
    "from_stream",
    "is_table",
    "load_arrays",
    "read_table",
]

#: Formats by the name that ``format=`` takes. All but the two of lists are recognised for certain.
FORMATS = ("text", "adjacency", "item-lists", "jsonl", "npz", "parquet", "feather")
Format = Literal["text", "adjacency", "item-lists", "jsonl", "npz", "parquet", "feather"]
_TEXTS = ("text", "adjacency", "item-lists", "jsonl")


def expand(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the files of a path, a pattern such as "part-*.csv", or a list of paths.

    Raises:
        FileNotFoundError: no file fits the pattern.
        ValueError: the list is empty.
    """
    if not isinstance(source, (str, os.PathLike)):
        paths = [path for one in source for path in expand(one)]
        if not paths:
            raise ValueError("path: expected files, got an empty list")
        return paths
    path = Path(source)
    if path.exists() or not glob.has_magic(str(source)):
        return [path]
    found = sorted(glob.glob(str(source), recursive=True))
    if not found:
        raise FileNotFoundError(f"{source}: no file fits this pattern")
    return [Path(one) for one in found]


def check_options(options: Options) -> None:
    """Raise ValueError for an option that is none."""
    if options.id_type not in ("auto", "int", "str"):
        raise ValueError(f"id_type: expected 'auto', 'int' or 'str', got {options.id_type!r}")
    if options.format is not None and options.format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(map(repr, FORMATS))}, got {options.format!r}")
    try:
        codecs.lookup(options.encoding)
    except LookupError:
        raise ValueError(f"encoding: expected the name of one, such as 'utf-8', got {options.encoding!r}") from None


def read_table(paths: Sequence[Path], options: Options) -> Table:
    """Return the rows of one or more files; see :meth:`zerosum_ext.Interactions.from_file`."""
    check_options(options)
    return join_tables(list(paths), [_read_one(path, options) for path in paths])


def _read_one(path: Path, options: Options) -> Table:
    if path.is_dir():
        if options.format not in (None, "parquet", "feather"):
            raise ValueError(f"{path} is a folder, expected a file")
        kind = options.format or ("feather" if any(path.rglob("*.feather")) else "parquet")
        return read_dataset(path, kind, options)
    packing = sources.kind_of(path)
    if packing == "empty":
        raise ValueError(f"{path} is empty")
    if packing in ("npz", "parquet", "feather"):
        if options.format not in (None, packing):
            raise ValueError(f"{path} is {packing}, expected {options.format} as format says")
        return read_npz(path, options) if packing == "npz" else read_dataset(path, packing, options)
    if options.format not in (None, *_TEXTS):
        raise ValueError(f"{path} cannot be read as {options.format}: it begins like text")
    opened: list[sources.ByteStream] = []

    def open_lines() -> sources.Lines:
        opened.append(sources.open_stream(path, packing))
        return sources.Lines(path, opened[-1], options.encoding, options.max_line_bytes)

    try:
        return _read_lines(path, open_lines, options)
    finally:
        for stream in opened:
            close = getattr(stream, "close", None)
            if close is not None:
                close()


def _read_lines(path: Path, open_lines: Callable[[], sources.Lines], options: Options) -> Table:
    head = sources.first_lines(iter(open_lines()))
    if not head.strip():
        raise ValueError(f"{path} has no rows")
    form = options.format or sniff_format(path, head, options)
    if form == "jsonl":
        return read_json_lines(path, open_lines, options)
    if form == "text":
        return read_text(path, open_lines, options)
    return read_lists(path, open_lines(), options, form == "adjacency")
