"""Names of items, from a table that people have beside their interactions."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["read_names"]

_IDS = ("item", "itemid", "item_id", "id", "movieid", "movie_id", "artistid", "sku", "asin", "product_id", "productid")
_NAMES = ("name", "title", "item_name", "movie_title", "product_name", "label")
_LONGEST = 200


def read_names(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return {item: name} from a text table, as ``movies.csv``, ``movies.dat`` or ``u.item`` of MovieLens.

    Columns are separated by ``::``, tab, ``|``, ``;`` or ``,``. The item is the column that a header calls so, or
    the first one; the name is the one called title or name, or the second. Text that is not UTF-8 is read as Latin-1.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has no two columns.
    """
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    lines = [line for line in text.splitlines() if line.strip()]
    delimiter = next((d for d in ("::", "\t", "|", ";", ",") if lines and d in lines[0]), None)
    if delimiter is None:
        raise ValueError(f"{os.fspath(path)}: expected a table of items and their names, got lines of one column")
    rows: list[Sequence[str]]
    if len(delimiter) > 1:
        rows = [line.split(delimiter) for line in lines]
    else:
        rows = list(csv.reader(lines, delimiter=delimiter))
    head = [cell.strip().lower() for cell in rows[0]]
    item = next((head.index(name) for name in _IDS if name in head), None)
    name = next((head.index(one) for one in _NAMES if one in head), None)
    if name is not None or item is not None:
        rows = rows[1:]
    item = 0 if item is None else item
    name = (1 if item != 1 else 0) if name is None else name
    return {
        row[item].strip(): row[name].strip()[:_LONGEST]
        for row in rows
        if len(row) > max(item, name) and row[name].strip()
    }
