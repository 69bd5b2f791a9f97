"""The best items of all users as a file, written block after block."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from zerosum_ext._checks import MOST_K, require_ids, require_positive_int
from zerosum_ext._files import read_text, replacing, write_text
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.data.vocabulary import Vocabulary
from zerosum_ext.models.base import DotProductRecommender, Recommender
from zerosum_ext.models.folding import histories_of
from zerosum_ext.training.console import progress_bar

__all__ = ["write_recommendations"]

# Rows of the file that are held at once: some 30 MB. Scores that are computed between two steps of the bar, which take
# some seconds, and the fewest users of a step.
_ROWS_AT_ONCE, _SCORES_AT_ONCE, _FEWEST_USERS = 1 << 20, 1 << 34, 1024


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
    resume: bool = False,
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
        resume: keep what is done in the folder PATH.parts, and go on with what is there. The complete file takes its
            place. A call that is to be resumed needs it as well.

    Returns:
        The number of rows.

    Raises:
        ValueError: the file's name has another ending; the folder is of a call with another model or other arguments;
            or as of :meth:`Recommender.recommend`.
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
    if isinstance(exclude, list):  # of all users
        exclude = histories_of(exclude, model.num_items)
    step = max(_FEWEST_USERS, _SCORES_AT_ONCE // max(1, model.num_items))
    step = max(1, min(step, _ROWS_AT_ONCE // k))
    schema = pa.schema(_fields(user_ids, item_ids, model))
    bar = progress_bar(progress, len(index), 0, "user")

    def table(part: np.ndarray) -> pa.Table:
        """Return the rows of some users."""
        found, scores = model.recommend(part, k, exclude=exclude, items=items, filter_items=filter_items)
        best = found.cpu().numpy()
        values = (scores.float() if scores.itemsize < 4 else scores).cpu().numpy()
        kept = best >= 0
        row, rank = kept.nonzero()
        one, other = part[row], best[kept]
        columns = [
            one if user_ids is None else user_ids[one],
            (rank + 1).astype(np.int32),
            other if item_ids is None else item_ids[other],
            values[kept],
        ]
        return pa.table([pa.array(column) for column in columns], schema=schema)

    def parts() -> Iterator[tuple[int, np.ndarray]]:
        """Yield the users of each step and where they begin, and move the bar when the step is done."""
        for start in range(0, len(index), step):
            part = index[start : start + step]
            yield start, part
            bar.update(len(part))

    def kept_tables(folder: Path) -> Iterator[pa.Table]:
        import pyarrow.parquet as pq

        files = []
        for start, part in parts():
            files.append(folder / f"{start}.parquet")
            if not files[-1].exists():
                with _writer(files[-1], schema) as write:
                    write(table(part))
        return (pq.read_table(file, schema=schema) for file in files)

    try:
        with ExitStack() as stack:
            made: Iterator[pa.Table] = (table(part) for _, part in parts())
            if resume:
                _check_name(path)
                digest = _digest(model, [k, step, index, exclude, items, filter_items, user_ids, item_ids])
                made = kept_tables(stack.enter_context(_parts(path, digest)))
            write = stack.enter_context(_writer(path, schema))
            rows = 0
            for one in made:
                write(one)
                rows += one.num_rows
    finally:
        bar.close()
    return rows


@contextmanager
def _parts(path: str | os.PathLike[str], digest: str) -> Iterator[Path]:
    """Yield the folder of what is done, and remove it when all is.

    Raises:
        ValueError: it is that of another call.
    """
    folder = Path(f"{os.fspath(path)}.parts")
    mark = folder / "digest.txt"
    if folder.exists() and any(folder.iterdir()):
        if not mark.is_file() or read_text(mark) != digest:
            raise ValueError(
                f"resume: {folder} is of a call with another model, other users or other arguments; remove it to begin "
                "anew"
            )
    else:
        folder.mkdir(exist_ok=True)
        write_text(mark, digest)
    yield folder
    shutil.rmtree(folder)


def _digest(model: Recommender, arguments: list[Any]) -> str:
    """Return what tells calls apart: parameters (of models of dot products the final vectors) and arguments."""
    digest = hashlib.blake2b(type(model).__name__.encode(), digest_size=16)

    def add(value: Any) -> None:
        if isinstance(value, Interactions):
            return add([value.shape, value.indptr, value.indices])
        if sp.issparse(value):
            matrix = value.tocsr()
            return add([matrix.shape, matrix.indptr, matrix.indices, matrix.data])
        if isinstance(value, Tensor) and value.layout == torch.sparse_csr:
            return add([tuple(value.shape), value.crow_indices(), value.col_indices(), value.values()])
        if isinstance(value, (list, tuple)) and any(isinstance(part, (np.ndarray, Tensor, tuple)) for part in value):
            for part in value:
                add(part)
            return None
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        is_array = isinstance(value, np.ndarray)
        digest.update(f"|{value.dtype}{value.shape}".encode() if is_array else f"|{value!r}".encode())
        if is_array:
            digest.update(np.ascontiguousarray(value).tobytes())
        return None

    tensors = model.factors() if isinstance(model, DotProductRecommender) else model.state_dict().values()
    for value in (*tensors, *arguments):
        add(value)
    return digest.hexdigest()


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
    """Yield a function that writes a table of some rows."""
    import pyarrow as pa

    name = _check_name(path)
    with ExitStack() as files:
        part = files.enter_context(replacing(name))
        # Opened here: what pyarrow opens itself stays open where its last bytes cannot be written.
        stream: Any = files.enter_context(pa.OSFile(part, "wb"))
        sink: Any
        if name.endswith(".parquet"):
            import pyarrow.parquet as pq

            sink = files.enter_context(pq.ParquetWriter(stream, schema))
        else:
            from pyarrow import csv

            if name.endswith(".gz"):
                stream = files.enter_context(pa.CompressedOutputStream(stream, "gzip"))
            options = csv.WriteOptions(quoting_style="needed", quoting_header="none")
            sink = files.enter_context(csv.CSVWriter(stream, schema, write_options=options))
        yield sink.write_table


def _check_name(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path)
    if not name.endswith((".parquet", ".csv", ".csv.gz")):
        raise ValueError(f"{name}: expected a name that ends in .parquet, .csv or .csv.gz")
    return name
