"""The best items of all users as a file, written block after block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from zerosum_ext._checks import MOST_K, require_ids, require_positive_int
from zerosum_ext._files import replacing
from zerosum_ext.data.vocabulary import Vocabulary
from zerosum_ext.models.base import Recommender
from zerosum_ext.training.console import progress_bar

__all__ = ["write_recommendations"]

# Rows of the file that are held at once: some 30 MB.
_ROWS_AT_ONCE = 1 << 20


# What recommend takes, and what a file needs beside it.
def write_recommendations(
    model: Recommender,
    path: str | os.PathLike[str],
    k: int = 10,
    *,
    users: Any = None,
    exclude: Any = None,
    items: Any = None,
    filter_items: Any = None,
    vocabulary: Vocabulary | None = None,
    progress: bool | None = None,
) -> int:
    """Write the k best items of all users to a file, with bounded memory.

    The file has a row for each recommended item: user, rank (from 1), item, score. It is complete or not there.

    Args:
        model: the model.
        path: ends in ".parquet", ".csv" or ".csv.gz".
        k: the number of items of each user. Users with fewer have fewer rows.
        users: ids, or a mask. None: all users.
        exclude: as in :meth:`Recommender.recommend`, of all users.
        items: as in :meth:`Recommender.recommend`: ids, or a mask. A matrix has to be of all users.
        filter_items: as in :meth:`Recommender.recommend`.
        vocabulary: the external ids to write. None: those of the model, or numbers where it has none.
        progress: whether to show the progress bar. None shows it on a terminal.

    Returns:
        The number of rows.

    Raises:
        ValueError: the file's name has another ending; or as of :meth:`Recommender.recommend`.
        OSError: the file cannot be written.

    Examples:
        >>> import tempfile, zerosum_ext as zx
        >>> from zerosum_ext.models import write_recommendations
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_recommendations(zx.MatrixFactorization(30, 20, 4), folder + "/lists.parquet", k=5)
        150
    """
    import pyarrow as pa

    k = require_positive_int("k", k, maximum=MOST_K)
    index = np.arange(model.num_users)
    if users is not None:
        index = require_ids("users", users, model.num_users).reshape(-1).numpy()
    names = model.vocabulary if vocabulary is None else vocabulary
    if names is not None and names.shape != (model.num_users, model.num_items):
        raise ValueError(f"vocabulary: expected shape {(model.num_users, model.num_items)}, got {names.shape}")
    user_ids, item_ids = (None, None) if names is None else (names.user_ids, names.item_ids)
    step = max(1, _ROWS_AT_ONCE // k)
    bar = progress_bar(progress, len(index), 0, "user")
    rows = 0
    try:
        with _writer(path, pa.schema(_fields(user_ids, item_ids, model))) as write:
            for start in range(0, len(index), step):
                part = index[start : start + step]
                found, scores = model.recommend(part, k, exclude=exclude, items=items, filter_items=filter_items)
                best = found.cpu().numpy()
                values = (scores.float() if scores.itemsize < 4 else scores).cpu().numpy()
                kept = best >= 0
                row, rank = kept.nonzero()
                one, other = part[row], best[kept]
                write(
                    [
                        one if user_ids is None else user_ids[one],
                        (rank + 1).astype(np.int32),
                        other if item_ids is None else item_ids[other],
                        values[kept],
                    ]
                )
                rows += len(row)
                bar.update(len(part))
    finally:
        bar.close()
    return rows


def _fields(user_ids: np.ndarray | None, item_ids: np.ndarray | None, model: Recommender) -> list[tuple[str, Any]]:
    import pyarrow as pa

    def kind(ids: np.ndarray | None) -> Any:
        return pa.int64() if ids is None or ids.dtype.kind != "U" else pa.string()

    wide = next(model.parameters()).itemsize == 8
    return [
        ("user", kind(user_ids)),
        ("rank", pa.int32()),
        ("item", kind(item_ids)),
        ("score", pa.float64() if wide else pa.float32()),
    ]


@contextmanager
def _writer(path: str | os.PathLike[str], schema: Any) -> Iterator[Any]:
    """Yield a function that writes the columns of some rows."""
    import pyarrow as pa

    name = os.fspath(path)
    if not name.endswith((".parquet", ".csv", ".csv.gz")):
        raise ValueError(f"{name}: expected a name that ends in .parquet, .csv or .csv.gz")
    with ExitStack() as files:
        part = files.enter_context(replacing(name))
        sink: Any
        if name.endswith(".parquet"):
            import pyarrow.parquet as pq

            sink = files.enter_context(pq.ParquetWriter(part, schema))
        else:
            from pyarrow import csv

            stream: Any = pa.CompressedOutputStream(part, "gzip") if name.endswith(".gz") else pa.OSFile(part, "wb")
            options = csv.WriteOptions(quoting_style="needed", quoting_header="none")
            sink = files.enter_context(csv.CSVWriter(files.enter_context(stream), schema, write_options=options))
        yield lambda columns: sink.write_table(pa.table([pa.array(column) for column in columns], schema=schema))
