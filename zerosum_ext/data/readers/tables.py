"""Tables with typed columns: parquet, feather, and what hands its columns over as an Arrow stream."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zerosum_ext.data.ids import Coded, sort_words
from zerosum_ext.data.readers import arrow as _arrow
from zerosum_ext.data.readers.columns import choose
from zerosum_ext.data.readers.sources import DAMAGED, no_fault_of_the_file
from zerosum_ext.data.readers.table import BadRows, Column, Options, Table
from zerosum_ext.data.wording import option

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["from_stream", "is_table", "read_dataset"]


def read_dataset(path: Path, kind: str, options: Options) -> Table:
    """Return the columns of a parquet or feather file, or of a folder of such, also partitioned by hive's names.

    Only the columns that are used are read.

    Raises:
        ValueError: the file is damaged, or has no users or items.
    """
    import pyarrow as pa
    import pyarrow.dataset as arrow_dataset

    try:
        if kind == "feather" and not path.is_dir():
            with path.open("rb") as file:
                old = file.read(4) == b"FEA1"
            if old:
                import pyarrow.feather as arrow_feather

                return _table(str(path), arrow_feather.read_table(path), options)
        source = arrow_dataset.dataset(path, format=kind, partitioning="hive")
        names = source.schema.names
    except (pa.ArrowException, *DAMAGED) as error:
        raise _unreadable(path, kind, error) from None
    if path.is_dir() and not source.files:
        raise ValueError(f"{path} is a folder without {kind} files, expected a file")
    choice = choose(str(path), names, [[] for _ in names], options.columns)
    try:
        read = source.to_table(columns=[names[c] for c in sorted(set(choice.columns.values()))])
    except (pa.ArrowException, *DAMAGED) as error:
        raise _unreadable(path, kind, error) from None
    return _table(str(path), read, options, names)


def _unreadable(path: Path, kind: str, error: BaseException) -> Exception:
    if isinstance(error, OSError) and no_fault_of_the_file(error):
        return error
    lines = str(error).splitlines() or [type(error).__name__]
    return ValueError(f"{path} cannot be read as {kind}: {lines[0][:200]}")


def from_stream(table: Any, options: Options) -> Table:
    """Return the columns of an object with an Arrow stream: pandas, polars, pyarrow, duckdb and others.

    Raises:
        TypeError: the object has no such stream.
        ValueError: it has no users or items, or values that cannot be used.
    """
    import pyarrow as pa

    name = f"{type(table).__module__.split('.')[0]} table"
    if isinstance(table, (pa.Table, pa.RecordBatch, pa.RecordBatchReader)):
        read = table
    elif hasattr(table, "to_arrow_table"):  # duckdb's relation
        read = table.to_arrow_table()
    elif name == "polars table" and hasattr(table, "to_arrow"):
        import polars

        read = table.to_arrow(compat_level=polars.CompatLevel.oldest())  # pyarrow 17 cannot cast views of strings
    elif name == "datasets table" and hasattr(table, "with_format") and hasattr(table, "__len__"):
        read = table.with_format("arrow")[:]  # in its order, which select and shuffle change
    elif hasattr(table, "__arrow_c_stream__"):
        read = pa.RecordBatchReader.from_stream(table)
    elif type(table).__module__.split(".")[0] == "pandas":  # before 2.2 it has no stream
        read = pa.Table.from_pandas(table, preserve_index=False)
    else:
        raise TypeError(
            "table: expected a pandas, polars, pyarrow or other data frame with an Arrow stream, got "
            f"{type(table).__name__}"
        )
    if isinstance(read, pa.RecordBatchReader):
        read = read.read_all()
    elif isinstance(read, pa.RecordBatch):
        read = pa.Table.from_batches([read])
    return _table(name, read, options)


def is_table(data: object) -> bool:
    """Return whether :func:`from_stream` takes an object."""
    module = type(data).__module__.split(".")[0]
    known = (module == "pandas" and hasattr(data, "columns")) or (module == "datasets" and hasattr(data, "with_format"))
    return known or hasattr(data, "__arrow_c_stream__") or hasattr(data, "to_arrow_table")


def _table(source: str, read: pa.Table, options: Options, names: list[str] | None = None) -> Table:
    """The columns that are used; names are those of all columns there are."""
    names = list(read.column_names) if names is None else names
    choice = choose(source, names, [[] for _ in names], options.columns)
    if not read.num_rows:
        raise ValueError(f"{source} has no rows")
    bad = _arrow.Bad()
    columns: dict[str, Column] = {}
    for key, c in choice.columns.items():
        try:
            if read.column_names.count(names[c]) != 1:
                raise ValueError(f"{read.column_names.count(names[c])} columns are named {names[c]!r}")
            columns[key] = _arrow.to_column(read.column(names[c]), key, options.id_type, bad)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
    rejected = _Rows(Path(source), options.skip_bad_rows)
    for row, problem in bad.rows.items():
        rejected.add(row, problem)
    rejected.flush()
    if bad.rows:
        keep = np.ones(read.num_rows, bool)
        keep[list(bad.rows)] = False
        columns = {
            key: sort_words(column.codes[keep], column.words) if isinstance(column, Coded) else column[keep]
            for key, column in columns.items()
        }
        if not keep.any():
            raise ValueError(f"{source} has no usable rows: {rejected.messages[0]}")
    unread = choice.unread(names, len(names))
    notes = [choice.note(names), *choice.guesses, *([f"not read: {', '.join(unread)}"] if unread else [])]
    return Table(
        columns,
        read.num_rows,
        rejected.count,
        tuple(rejected.messages),
        tuple(notes),
        choice.used(names),
        unread,
        tuple(choice.guesses),
    )


class _Rows(BadRows):
    """Bad rows of a table, which has no lines."""

    def flush(self) -> None:
        """Raise for the first row with a problem, or count all."""
        for row, problem in sorted(self.pending):
            message = f"{self.path}: row {row}: {problem}"
            if not self.skip:
                raise ValueError(f"{message}. {option('skip bad rows')} leaves such rows out")
            self.count += 1
            if len(self.messages) < 20:
                self.messages.append(message)
        self.pending.clear()
