"""Columns of a file of text by our rules, gathered from pieces of the file that Arrow has read.

Ids and numbers are converted piece by piece, so that no more than one piece is held as text. What a piece alone does
not tell, such as whether all ids are integers, is settled at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from zerosum_ext.data import times
from zerosum_ext.data.readers import arrow as _arrow
from zerosum_ext.data.readers.sniff import Layout
from zerosum_ext.data.readers.table import Column

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Gathered"]


class Gathered:
    """What has been read of a file so far.

    Args:
        layout: of the file.
        id_type: "auto", "int" or "str".

    Attributes:
        rows: how many there are so far.
        bad: the rows that cannot be used, by their numbers where there is one piece alone.
    """

    def __init__(self, layout: Layout, id_type: str) -> None:
        self.rows = 0
        self.bad = _arrow.Bad()
        self._layout, self._id_type = layout, id_type
        self._ids: dict[str, list[_arrow.Piece]] = {}
        self._numbers: dict[str, list[np.ndarray]] = {}
        self._texts: dict[str, list[pa.Array]] = {}

    def add(self, read: pa.Table) -> None:
        """Take the columns of a piece, named by their numbers."""
        import pyarrow as pa

        self.rows += read.num_rows
        columns = {key: read.column(str(c)) for key, c in self._layout.choice.columns.items()}
        del read
        for key in list(columns):
            column = columns.pop(key)  # each is let go once it is converted
            if key in ("user", "item"):
                piece = _arrow.piece_of_ids(column, key, self._id_type, self.bad)
                self._ids.setdefault(key, []).append(piece)
            elif pa.types.is_timestamp(column.type):
                values = _arrow.to_column(column, "timestamp", self._id_type, self.bad)
                assert isinstance(values, np.ndarray)
                self._numbers.setdefault(key, []).append(values)
            elif pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
                self._numbers.setdefault(key, []).append(_arrow.numbers(column, key, self.bad))
            else:
                self._texts.setdefault(key, []).extend(column.chunks)
            del column

    def columns(self) -> dict[str, Column]:
        """Return the columns of all pieces, which are no longer kept here."""
        return {key: self._column(key) for key in self._layout.kinds}

    def _column(self, key: str) -> Column:
        import pyarrow as pa

        kind = self._layout.kinds[key]
        out: Column
        if key in self._ids:
            return _arrow.join_pieces(self._ids.pop(key))
        if key in self._numbers:
            out = _arrow.join_numbers(self._numbers.pop(key), keep=kind == "date")
        else:
            text = pa.chunked_array(self._texts.pop(key), pa.string())
            if kind == "number":
                out = _arrow.text_numbers(text, key, self._layout.decimal_comma, self.bad)
            elif key == "timestamp":
                out = _arrow.text_times(text, key, {"time": "any"}.get(kind, kind), self.bad)
            else:
                out = _arrow.other_text(text, key, self.bad)
        if key == "timestamp" and kind == "number" and not self.bad.rows:
            assert isinstance(out, np.ndarray)
            out = times.to_numbers("timestamp", out)
        return out
