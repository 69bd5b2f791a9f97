"""Who interacted with what: :class:`Interactions`, the one input of samplers, models and metrics."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from zerosum_ext.data import readers as _readers

__all__ = ["Interactions", "Report", "Split"]


@dataclass(frozen=True)
class Report:
    """What became of the rows that :class:`Interactions` were made from: used, merged or left out, nothing
    else.
    """

    source: str
    rows: int
    """Rows (or stored entries) read."""
    duplicates: int = 0
    """Rows merged into another row of the same user and item."""
    zeros: int = 0
    """Explicitly stored zeros of a sparse matrix: no interactions."""
    bad_rows: int = 0
    bad_row_messages: tuple[str, ...] = ()
    """The first of the bad rows, as "file:line: problem"."""
    low_ratings: int = 0
    """Rows rated below min_rating."""
    rare_items: int = 0
    """Items taken out by filter_items."""
    rare_item_interactions: int = 0
    """Interactions of these items."""
    emptied_users: int = 0
    """Users left with nothing by filter_items or min_rating, taken out too."""
    notes: tuple[str, ...] = ()
    """What was taken for granted, where one should look: which column of a file is which, a first line taken for a
    header, what the order of a split goes by."""

    def __str__(self) -> str:
        parts = [f"{self.rows:,} rows read"]
        for count, what in (
            (self.bad_rows, "bad rows skipped"),
            (self.zeros, "explicit zeros left out"),
            (self.duplicates, "duplicates merged"),
            (self.low_ratings, "low ratings left out"),
            (self.rare_item_interactions, f"interactions of {self.rare_items:,} rare items left out"),
            (self.emptied_users, "users left without any"),
        ):
            if count:
                parts.append(f"{count:,} {what}")
        return f"{self.source}: {', '.join(parts)}"


class Split(NamedTuple):
    """Parts of the same interactions, all with the shape and ids of the whole; ``valid`` is empty where none
    was asked for.
    """

    train: Interactions
    valid: Interactions
    test: Interactions


class Interactions:
    """A set of (user, item) pairs as a canonical CSR matrix: rows sorted, no duplicates, no values.

    Make one with :meth:`from_scipy`, :meth:`from_torch`, :meth:`from_arrays`, :meth:`from_file`, or
    :meth:`from_any`, which picks among these. Immutable: every method returns a new object, and tensors
    handed out must not be written to. Pickles, and moves to a GPU with :meth:`to`.

    Attributes
    ----------
    indptr : int64 tensor [num_users + 1]
    indices : int32 tensor [nnz] (int64 where num_items >= 2**31)
        Items of user u, ascending, are ``indices[indptr[u]:indptr[u + 1]]``.
    shape : (num_users, num_items)
    columns : read-only mapping of names to NumPy arrays [nnz]
        What else is known of each interaction (rating, timestamp, order, split, ...), aligned with
        ``indices`` and always on the CPU. ``row`` is the row of the source, where there was an order of rows.
    user_ids, item_ids : NumPy array [num_users], [num_items], or None
        External ids (integers or text) by index; None where indices are the ids.
    report : Report
    """

    __slots__ = (
        "__weakref__",
        "_popularity",
        "_user_counts",
        "columns",
        "indices",
        "indptr",
        "item_ids",
        "report",
        "shape",
        "user_ids",
    )

    indptr: torch.Tensor
    indices: torch.Tensor
    shape: tuple[int, int]
    columns: Mapping[str, np.ndarray]
    user_ids: np.ndarray | None
    item_ids: np.ndarray | None
    report: Report
    _popularity: torch.Tensor | None
    _user_counts: torch.Tensor | None

    def __init__(self) -> None:
        raise TypeError("use Interactions.from_scipy, from_torch, from_arrays, from_file or from_any")

    # ------------------------------------------------------------------------------------------------- making

    @classmethod
    def _build(
        cls,
        indptr: torch.Tensor,
        indices: torch.Tensor,
        shape: tuple[int, int],
        columns: Mapping[str, np.ndarray],
        user_ids: np.ndarray | None,
        item_ids: np.ndarray | None,
        report: Report,
    ) -> Interactions:
        self = object.__new__(cls)
        frozen = {}
        for name, values in columns.items():
            view = values.view()
            view.flags.writeable = False
            frozen[name] = view
        for name, value in (
            ("indptr", indptr),
            ("indices", indices),
            ("shape", shape),
            ("columns", MappingProxyType(frozen)),
            ("user_ids", user_ids),
            ("item_ids", item_ids),
            ("report", report),
            ("_popularity", None),
            ("_user_counts", None),
        ):
            object.__setattr__(self, name, value)
        return self

    @classmethod
    def _from_pairs(
        cls,
        users: np.ndarray,
        items: np.ndarray,
        shape: tuple[int, int],
        columns: Mapping[str, np.ndarray],
        user_ids: np.ndarray | None,
        item_ids: np.ndarray | None,
        report: Report,
    ) -> Interactions:
        """Sorts and merges valid 0-based pairs (int64); of duplicates, the last row's columns stay."""
        order = _sort_pairs(users, items, shape)
        if order is not None:
            users, items = users[order], items[order]
        if len(users) > 1:
            last = np.append((users[1:] != users[:-1]) | (items[1:] != items[:-1]), True)
            if not last.all():
                report = replace(report, duplicates=report.duplicates + int((~last).sum()))
                users, items = users[last], items[last]
                order = np.flatnonzero(last) if order is None else order[last]
        if order is not None:
            columns = {name: values[order] for name, values in columns.items()}
        return cls._build(
            _indptr(users, shape[0]),
            _index_tensor(items, shape[1]),
            shape,
            columns,
            user_ids,
            item_ids,
            report,
        )

    @classmethod
    def from_any(cls, data: Any) -> Interactions:
        """Interactions themselves, a scipy sparse matrix, a torch sparse tensor, a pair (users, items), or a
        file's path.
        """
        if isinstance(data, Interactions):
            return data
        if sp.issparse(data):
            return cls.from_scipy(data)
        if isinstance(data, torch.Tensor) and data.layout != torch.strided:
            return cls.from_torch(data)
        if isinstance(data, (str, os.PathLike)):
            return cls.from_file(data)
        if isinstance(data, tuple) and len(data) == 2:
            return cls.from_arrays(*data)
        raise TypeError(
            "interactions: expected Interactions, a scipy sparse matrix, a torch sparse tensor, a tuple (users, items) "
            f"or the path of a file, got {type(data).__name__}"
        )

    @classmethod
    def from_scipy(cls, matrix: Any) -> Interactions:
        """From a scipy.sparse matrix or array [num_users, num_items] of any format.

        Each stored value that is not zero is one positive; the values themselves are not kept. Stored zeros
        are left out and counted in ``report``; a negative value or NaN is a ValueError, as it cannot be read
        as "interacted". The matrix is copied, never changed, and need not be sorted.
        """
        if not sp.issparse(matrix):
            raise TypeError(f"matrix: expected a scipy.sparse matrix, got {type(matrix).__name__}")
        if matrix.ndim != 2:
            raise ValueError(f"matrix: expected two dimensions (users, items), got shape {matrix.shape}")
        shape = (int(matrix.shape[0]), int(matrix.shape[1]))
        if matrix.format == "csr":
            indptr, items = matrix.indptr.astype(np.int64), matrix.indices
            if len(indptr) != shape[0] + 1 or indptr[0] != 0 or (np.diff(indptr) < 0).any() or indptr[-1] > len(items):
                raise ValueError("matrix: indptr is not a valid CSR row pointer (ascending from 0, one more than rows)")
            items, values = items[: indptr[-1]], matrix.data[: indptr[-1]]
            users = np.repeat(np.arange(shape[0]), np.diff(indptr))
        else:
            coo = matrix.tocoo()
            users, items, values = coo.row, coo.col, coo.data
        return cls._from_entries(users, items, values, shape, f"scipy {matrix.format} matrix")

    @classmethod
    def from_torch(cls, tensor: torch.Tensor) -> Interactions:
        """From a sparse torch tensor [num_users, num_items], CSR or COO, on any device; values as in
        :meth:`from_scipy`.

        The result lies on the tensor's device.
        """
        if not isinstance(tensor, torch.Tensor) or tensor.layout not in (torch.sparse_csr, torch.sparse_coo):
            what = str(tensor.layout) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise TypeError(f"tensor: expected a torch sparse CSR or COO tensor, got {what}")
        if tensor.ndim != 2:
            raise ValueError(f"tensor: expected two dimensions (users, items), got shape {tuple(tensor.shape)}")
        if tensor.layout == torch.sparse_csr:
            counts = np.diff(tensor.crow_indices().cpu().numpy())
            users = np.repeat(np.arange(tensor.shape[0]), counts)
            items, values = tensor.col_indices().cpu().numpy(), tensor.values()
        else:
            users, items = tensor._indices().cpu().numpy()
            values = tensor._values()
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
        shape = (int(tensor.shape[0]), int(tensor.shape[1]))
        kind = str(tensor.layout).removeprefix("torch.sparse_")
        return cls._from_entries(users, items, values.numpy(), shape, f"torch {kind} tensor").to(tensor.device)

    @classmethod
    def _from_entries(
        cls, users: np.ndarray, items: np.ndarray, values: np.ndarray, shape: tuple[int, int], source: str
    ) -> Interactions:
        report = Report(source, len(items))
        users, items = users.astype(np.int64, copy=False), items.astype(np.int64, copy=False)
        _check_range("users", users, shape[0])
        _check_range("items", items, shape[1])
        if values.dtype != bool:
            bad = ~(values >= 0)
            if bad.any():
                at = int(np.flatnonzero(bad)[0])
                raise ValueError(
                    f"{source}: the value at user {users[at]}, item {items[at]} is {values[at]}, expected none below "
                    "zero and no NaN; keep only the entries that mean an interaction"
                )
        zero = values == 0
        if zero.any():
            report = replace(report, zeros=int(zero.sum()))
            users, items = users[~zero], items[~zero]
        return cls._from_pairs(users, items, shape, {}, None, None, report)

    @classmethod
    def from_arrays(
        cls,
        users: Any,
        items: Any,
        *,
        shape: tuple[int, int] | None = None,
        ids: bool = False,
        columns: Mapping[str, Any] | None = None,
    ) -> Interactions:
        """From two aligned arrays, tensors or sequences [n], one entry per interaction.

        Parameters
        ----------
        users, items
            0-based indices, kept as they are. With ``ids=True``: external ids, integers (also as floats) or
            text, which are numbered in ascending order and kept as ``user_ids`` and ``item_ids``.
        shape
            (num_users, num_items); by default one more than the largest index. Not with ``ids=True``.
        columns
            Further arrays [n] such as ``{"rating": ..., "timestamp": ...}``, for splitting. Where a pair
            occurs more than once, its last occurrence counts. The name ``row`` is taken: it holds the
            position in these arrays.

        Raises
        ------
        ValueError
            Lengths that differ, negative indices, indices beyond ``shape``; ids that are missing (None, NaN), not
            integral or from 2**63; a missing rating, timestamp or order.
        TypeError
            Indices that are not integers.
        """
        users, items = _as_array("users", users), _as_array("items", items)
        if users.shape != items.shape:
            raise ValueError(f"users and items: expected the same length, got {len(users)} and {len(items)}")
        extra = {
            name: _as_array(f"columns[{name!r}]", values, name in _readers.NUMERIC)
            for name, values in (columns or {}).items()
        }
        for name, values in extra.items():
            if values.shape != users.shape:
                raise ValueError(f"columns[{name!r}]: expected length {len(users)} as users, got {len(values)}")
        if ids:
            if shape is not None:
                raise ValueError("shape: not with ids=True, where the ids that occur define it")
            table = {"user": _readers.Column(users), "item": _readers.Column(items)}
        else:
            table = {}
            for name, values in (("users", users), ("items", items)):
                if values.dtype.kind not in "iu" and len(values):
                    raise TypeError(f"{name}: expected integer indices, got {values.dtype}; ids=True takes any ids")
        return cls._from_columns(
            table.get("user", _readers.Column(users)),
            table.get("item", _readers.Column(items)),
            extra,
            ids,
            shape,
            Report("arrays", len(users)),
        )

    @classmethod
    def _from_columns(
        cls,
        users: _readers.Column,
        items: _readers.Column,
        extra: dict[str, np.ndarray],
        ids: bool,
        shape: tuple[int, int] | None,
        report: Report,
    ) -> Interactions:
        if "row" in extra:
            raise ValueError("columns: the name 'row' is taken (the position in the source)")
        user_ids = item_ids = None
        if ids:
            user_ids, user_index = _readers.factorize(_checked_ids("users", users))
            item_ids, item_index = _readers.factorize(_checked_ids("items", items))
            shape = (len(user_ids), len(item_ids))
            for array in (user_ids, item_ids):
                array.flags.writeable = False
        else:
            user_index = users.values.astype(np.int64, copy=False)
            item_index = items.values.astype(np.int64, copy=False)
            if shape is None:
                shape = (int(user_index.max(initial=-1)) + 1, int(item_index.max(initial=-1)) + 1)
                if max(shape) > max(2**32, 1000 * len(user_index)):  # only a table of all would show it, much later
                    raise ValueError(_too_sparse(shape, len(user_index)))
            if len(shape) != 2 or min(shape) < 0:
                raise ValueError(f"shape: expected (num_users, num_items), got {shape}")
            shape = (int(shape[0]), int(shape[1]))
            _check_range("users", user_index, shape[0])
            _check_range("items", item_index, shape[1])
        extra["row"] = np.arange(len(user_index), dtype=np.int32 if len(user_index) < 2**31 else np.int64)
        try:
            return cls._from_pairs(user_index, item_index, shape, extra, user_ids, item_ids, report)
        except MemoryError:
            if ids or max(shape) <= len(user_index):
                raise
            raise ValueError(_too_sparse(shape, len(user_index))) from None

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        columns: Mapping[str, str | int | None] | None = None,
        delimiter: str | None = None,
        header: bool | None = None,
        ids: bool | None = None,
        id_type: _readers.IdType = "auto",
        shape: tuple[int, int] | None = None,
        min_rating: float | None = None,
        skip_bad_rows: bool = False,
        encoding: str = "utf-8",
    ) -> Interactions:
        """From a file with one interaction a row.

        Reads text separated by commas, tabs, semicolons, ``|``, blanks or ``::`` (MovieLens), with or without
        a header, also gzip'd; ``.npz`` archives of aligned arrays (``user``, ``item``, ...) or of
        ``scipy.sparse.save_npz``; and parquet, where pyarrow is installed.

        Times are numbers, or ISO 8601 dates (UTC where they have no offset), which become seconds since 1970. A
        quoted field may go on over several lines; a quote that is never closed is text where it stands in a
        column that is not read, and a bad row otherwise.

        Parameters
        ----------
        columns
            Which column is what, by name or by 0-based number: ``{"user": "reviewerID", "item": 3}``. Usual
            names are recognised; without a header the first columns are user, item, rating, timestamp.
            ``report.notes`` says what was taken for what.
            ``None`` as the value leaves a recognised column out. Beyond user, item, rating, timestamp, order
            and split any other name is kept, too.
        delimiter, header
            Recognised unless given. A blank stands for any run of blanks and tabs.
        ids
            True: users and items are external ids, numbered in ascending order. False: 0-based indices, kept.
            By default True, except for ``.npz``.
        id_type
            "int", "str", or by default what the first row has. Ids such as ``007`` are text, so that they
            come back as they were.
        shape
            With ``ids=False``, see :meth:`from_arrays`.
        min_rating
            Interactions rated lower are left out, and users and items that only have such. By default each
            row is a positive, whatever its rating.
        skip_bad_rows
            Leave out and count rows that cannot be read (``report.bad_row_messages`` names the first),
            instead of raising.

        Raises
        ------
        ValueError
            For a bad row "file:line: what is wrong with it"; for a file that has no rows, or is of another
            kind.
        OSError
            The file is missing or cannot be read.
        """
        path = Path(path)
        if _is_scipy_archive(path):
            given = {"columns": columns, "min_rating": min_rating, "shape": shape, "ids": ids}
            for name, value in given.items():
                if value is not None:
                    raise ValueError(f"{name}: not for {path}, which holds a scipy sparse matrix")
            try:
                matrix = cls.from_scipy(sp.load_npz(path))
            except _readers.DAMAGED as error:
                raise ValueError(f"{path} cannot be read as a scipy sparse matrix: {error}") from None
            return matrix._replace(report=replace(matrix.report, source=str(path)))
        table = _readers.read_table(
            path,
            columns=columns,
            delimiter=delimiter,
            header=header,
            id_type=id_type,
            skip_bad_rows=skip_bad_rows,
            encoding=encoding,
        )
        users, items = table.columns.pop("user"), table.columns.pop("item")
        extra = {key: column.plain() for key, column in table.columns.items()}
        if ids is None:
            ids = not _is_zip(path)
        if ids and shape is not None:
            raise ValueError("shape: only with ids=False; the ids that occur define it")
        if not ids:
            for name, column in (("user", users), ("item", items)):
                if column.vocabulary is not None or column.values.dtype.kind not in "iu":
                    raise ValueError(f"{path}: the {name}s are not integers, as ids=False needs; ids=True maps any ids")
        report = Report(
            str(path), table.rows, bad_rows=table.bad_rows, bad_row_messages=table.bad_row_messages, notes=table.notes
        )
        try:
            result = cls._from_columns(users, items, extra, ids, shape, report)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if min_rating is None:
            return result
        if "rating" not in result.columns:
            raise ValueError(f"min_rating: {path} has no rating column; name it with columns={{'rating': ...}}")
        rating = result.columns["rating"]
        if rating.dtype.kind not in "iufb":
            raise ValueError(f"min_rating: the ratings of {path} are not numbers")
        keep = rating >= min_rating
        kept = result._take(keep, replace(report, duplicates=result.report.duplicates, low_ratings=int((~keep).sum())))
        return kept._drop_empty() if ids else kept

    # ------------------------------------------------------------------------------------------------ looking

    @property
    def num_users(self) -> int:
        return self.shape[0]

    @property
    def num_items(self) -> int:
        return self.shape[1]

    @property
    def nnz(self) -> int:
        """Number of interactions."""
        return len(self.indices)

    @property
    def device(self) -> torch.device:
        return self.indices.device

    @property
    def popularity(self) -> torch.Tensor:
        """Interactions of each item, int64 [num_items]."""
        if self._popularity is None:
            counts = torch.bincount(self.indices, minlength=self.num_items)
            object.__setattr__(self, "_popularity", counts)
        assert self._popularity is not None
        return self._popularity

    @property
    def user_counts(self) -> torch.Tensor:
        """Interactions of each user, int64 [num_users]."""
        if self._user_counts is None:
            object.__setattr__(self, "_user_counts", self.indptr.diff())
        assert self._user_counts is not None
        return self._user_counts

    def pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All interactions as (users, items), int64 [nnz] each, in the order of ``indices``."""
        users = torch.arange(self.num_users, device=self.device)
        return torch.repeat_interleave(users, self.user_counts, output_size=self.nnz), self.indices.long()

    def to(self, device: str | torch.device) -> Interactions:
        """The same interactions with ``indptr`` and ``indices`` on another device (columns and ids stay where
        they are).
        """
        device = torch.device(device)
        indptr, indices = self.indptr.to(device), self.indices.to(device)
        if indices is self.indices:
            return self
        return self._replace(indptr=indptr, indices=indices)

    def to_scipy(self) -> sp.csr_matrix:
        """A scipy CSR matrix of ones (float32)."""
        indices, indptr = self.indices.cpu().numpy(), self.indptr.cpu().numpy()
        matrix = sp.csr_matrix((np.ones(self.nnz, np.float32), indices, indptr), shape=self.shape, copy=True)
        matrix.has_canonical_format = True
        return matrix

    def __repr__(self) -> str:
        cells = self.num_users * self.num_items
        density = f", {100 * self.nnz / cells:.3g} % of the matrix" if cells else ""
        columns = f", columns {', '.join(self.columns)}" if self.columns else ""
        device = "" if self.device.type == "cpu" else f", on {self.device}"
        return (
            f"Interactions({self.num_users:,} users x {self.num_items:,} items, {self.nnz:,} interactions{density}"
            f"{columns}{device})"
        )

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Interactions are immutable, {name!r} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"Interactions are immutable, {name!r} cannot be deleted")

    def __reduce__(self) -> tuple[Any, ...]:
        return Interactions._build, (
            self.indptr,
            self.indices,
            self.shape,
            dict(self.columns),
            self.user_ids,
            self.item_ids,
            self.report,
        )

    # ---------------------------------------------------------------------------------------------------- ids

    def encode_users(self, ids: Any) -> np.ndarray:
        """External user ids -> indices, int64 of the same shape. ValueError names an id that is not there."""
        return _encode("user", ids, self.user_ids, self.num_users)

    def encode_items(self, ids: Any) -> np.ndarray:
        """External item ids -> indices, int64 of the same shape. ValueError names an id that is not there."""
        return _encode("item", ids, self.item_ids, self.num_items)

    def decode_users(self, indices: Any) -> np.ndarray:
        """Indices of users -> their external ids, same shape. ValueError for an index out of range."""
        return _decode("user", indices, self.user_ids, self.num_users)

    def decode_items(self, indices: Any) -> np.ndarray:
        """Indices of items -> their external ids, same shape. ValueError for an index out of range."""
        return _decode("item", indices, self.item_ids, self.num_items)

    # ------------------------------------------------------------------------------------- filters and splits

    def filter_items(self, min_count: int) -> Interactions:
        """Keeps items with at least min_count interactions; items and users left with none are taken out and
        the rest renumbered.

        ``item_ids`` and ``user_ids`` of the result are the ids, or failing that the indices, that they had
        before; ``report`` counts what went. Users are not filtered by their own counts. [RCS22] uses 10.
        """
        if min_count < 0:
            raise ValueError(f"min_count: expected a number from 0, got {min_count}")
        counts = self.popularity.cpu().numpy()
        frequent = counts >= max(min_count, 1)
        keep = frequent[self.indices.cpu().numpy()]
        report = replace(
            self.report,
            rare_items=self.report.rare_items + int((~frequent & (counts > 0)).sum()),
            rare_item_interactions=self.report.rare_item_interactions + int((~keep).sum()),
        )
        if not keep.any():
            raise ValueError(
                f"min_count: no item has {min_count} interactions (the most popular has {counts.max(initial=0)})"
            )
        return self._take(keep, report)._drop_empty()

    def split_random(self, ratios: Sequence[float] = (0.6, 0.2, 0.2), *, seed: int = 0) -> Split:
        """Splits all interactions at random into (train, valid, test), or with two ratios into (train, test).

        The ratios must sum to 1 and are met to within one interaction. [RCS22] uses 60/20/20.
        """
        ratios = tuple(float(r) for r in ratios)
        if len(ratios) not in (2, 3) or not all(0 <= r <= 1 for r in ratios) or abs(sum(ratios) - 1) > 1e-6:
            raise ValueError(f"ratios: expected two or three numbers from 0 to 1 that sum to 1, got {ratios}")
        if seed < 0:
            raise ValueError(f"seed: expected a number from 0, got {seed}")
        order = np.random.default_rng(seed).permutation(self.nnz)
        cuts = [round(self.nnz * ratios[0]), round(self.nnz * sum(ratios[:-1]))]
        part = np.empty(self.nnz, np.int8)
        for code, chosen in enumerate(np.split(order, cuts)):  # with two ratios both cuts are one: valid is empty
            part[chosen] = code
        return self._parts(part)

    def split_last(self, *, by: str | None = None, test: int = 1, valid: int = 0) -> Split:
        """Leave-last-out: each user's last ``test`` interactions are for test, the ``valid`` before them for
        validation.

        Last is by column ``by``; by default by ``order``, else ``timestamp``, else the row in the file, and
        ``report.notes`` of the parts says by which; ties go by row. A user with no more than ``test + valid``
        interactions stays in train whole, so that each user can be learnt.
        """
        if test < 1 or valid < 0:
            raise ValueError(f"test, valid: expected at least 1 and 0 interactions, got {test} and {valid}")
        note = f"last by {by}"
        if not by:
            by = next((name for name in ("order", "timestamp", "row") if name in self.columns), None)
            note = "no column of times was recognised: last by the order of rows" if by == "row" else f"last by {by}"
        if by is None:
            raise ValueError(
                "by: these interactions have no order; leave-last-out needs a column order or timestamp, or rows of a "
                "file or of arrays"
            )
        last_by = self._column("by", by)
        if last_by.dtype.kind == "U":
            with contextlib.suppress(ValueError):  # other text, such as dates, is in the order of text
                last_by = last_by.astype(np.float64)
        if last_by.dtype.kind in "fM" and np.isnan(last_by).any():
            row = int(np.flatnonzero(np.isnan(last_by))[0])
            user = int(np.searchsorted(self.indptr.cpu().numpy(), row, side="right")) - 1
            who, what = self.decode_users(user), self.decode_items(self.indices[row])
            raise ValueError(f"by: column {by!r} has no value for user {who}, item {what}")
        keys = [last_by]
        if "row" in self.columns and by != "row":
            keys.insert(0, self.columns["row"])
        counts = np.diff(self.indptr.cpu().numpy())
        users = np.repeat(np.arange(self.num_users), counts)
        order = np.lexsort((*keys, users))
        from_end = np.empty(self.nnz, np.int64)
        from_end[order] = np.repeat(np.cumsum(counts), counts) - 1 - np.arange(self.nnz)
        part = np.where(from_end < test, 2, np.where(from_end < test + valid, 1, 0))
        part[counts[users] <= test + valid] = 0
        report = replace(self.report, notes=(*self.report.notes, note))
        return Split(*(one._replace(report=report) for one in self._parts(part)))

    def split_by(self, column: str = "split", *, train: Any = 0, valid: Any = 2, test: Any = 1) -> Split:
        """Splits by a column's values, such as the split that a data set was published with.

        A value may be a tuple of values; for text columns say e.g. ``train="train", test="test"``. A value of
        the column that is none of these is a ValueError, so that nothing is left out unnoticed.
        """
        values = self._column("column", column)
        part = np.full(self.nnz, -1, np.int64)
        for code, wanted in enumerate((train, valid, test)):
            for one in wanted if isinstance(wanted, (tuple, list)) else (wanted,):
                if (values.dtype.kind == "U") == isinstance(one, str):
                    part[values == one] = code
        if (part < 0).any():
            other = ", ".join(map(repr, np.unique(values[part < 0])[:5].tolist()))
            raise ValueError(
                f"column {column!r}: {int((part < 0).sum())} interactions have the value {other}, "
                f"expected train={train!r}, valid={valid!r} or test={test!r}"
            )
        if not (part == 0).any():
            raise ValueError(f"column {column!r}: no interaction has train={train!r}")
        return self._parts(part)

    def union(self, other: Interactions) -> Interactions:
        """All pairs that are in either, such as train and validation together; also written ``a | b``.

        Both must have the same shape, and the same ids where both have ids: one without (a plain matrix) speaks of
        indices. Columns that both have are kept; of a pair in both, the other's.
        """
        if not isinstance(other, Interactions):
            raise TypeError(f"other: expected Interactions, got {type(other).__name__}")
        if self.shape != other.shape:
            raise ValueError(f"other: expected shape {self.shape}, got {other.shape}")
        ids = ((self.user_ids, other.user_ids), (self.item_ids, other.item_ids))
        for (mine, theirs), what in zip(ids, ("user", "item"), strict=True):
            if mine is not None and theirs is not None and mine is not theirs and not np.array_equal(mine, theirs):
                raise ValueError(f"other: its {what} ids differ, so the same index means different {what}s")
        columns = {n: np.concatenate((v, other.columns[n])) for n, v in self.columns.items() if n in other.columns}
        users, items = (torch.cat((a.cpu(), b.cpu())).numpy() for a, b in zip(self.pairs(), other.pairs(), strict=True))
        report = Report(f"union of {self.report.source} and {other.report.source}", len(users))
        user_ids, item_ids = (theirs if mine is None else mine for mine, theirs in ids)
        return self._from_pairs(users, items, self.shape, columns, user_ids, item_ids, report).to(self.device)

    __or__ = union

    # ---------------------------------------------------------------------------------------------- internals

    def _column(self, argument: str, name: str) -> np.ndarray:
        if name not in self.columns:
            have = ", ".join(self.columns) or "none"
            raise ValueError(f"{argument}: there is no column {name!r}; these interactions have {have}")
        return self.columns[name]

    def _replace(self, **changes: Any) -> Interactions:
        fields = ("indptr", "indices", "shape", "columns", "user_ids", "item_ids", "report")
        return self._build(**{name: changes.get(name, getattr(self, name)) for name in fields})

    def _parts(self, part: np.ndarray) -> Split:
        return Split(*(self._take(part == code, self.report) for code in range(3)))

    def _take(self, keep: np.ndarray, report: Report) -> Interactions:
        """The interactions where keep (bool [nnz]) holds; shape and ids stay."""
        before = np.concatenate(([0], np.cumsum(keep)))
        indptr = torch.from_numpy(before[self.indptr.cpu().numpy()]).to(self.device)
        indices = self.indices[torch.from_numpy(keep).to(self.device)]
        columns = {name: values[keep] for name, values in self.columns.items()}
        return self._replace(indptr=indptr, indices=indices, columns=columns, report=report)

    def _drop_empty(self) -> Interactions:
        """Takes out users and items without interactions and renumbers the rest in the same order."""
        counts = np.diff(self.indptr.cpu().numpy())
        users, items = np.flatnonzero(counts), np.flatnonzero(self.popularity.cpu().numpy())
        number = np.full(self.num_items, -1, np.int64)
        number[items] = np.arange(len(items))
        user_ids, item_ids = self.decode_users(users), self.decode_items(items)
        for ids in (user_ids, item_ids):
            ids.flags.writeable = False
        return self._replace(
            indptr=torch.from_numpy(np.concatenate(([0], np.cumsum(counts[users])))).to(self.device),
            indices=_index_tensor(number[self.indices.cpu().numpy()], len(items)).to(self.device),
            shape=(len(users), len(items)),
            user_ids=user_ids,
            item_ids=item_ids,
            report=replace(self.report, emptied_users=self.report.emptied_users + self.num_users - len(users)),
        )


def _as_array(name: str, values: Any, complete: bool = True) -> np.ndarray:
    """A one-dimensional array; of objects, as text, where complete says that none may be missing."""
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {array.shape}")
    if array.dtype.kind == "O":
        if complete:
            for at, value in enumerate(array):
                if _is_missing(value):
                    raise ValueError(f"{name}: expected no missing values, got {value} at position {at}")
        array = array.astype(np.str_)
    return array


def _is_missing(value: Any) -> bool:
    try:
        return value is None or bool(value != value)  # NaN, NaT
    except TypeError:  # pandas.NA is neither equal nor unequal
        return True


def _checked_ids(name: str, column: _readers.Column) -> _readers.Column:
    """Ids as int64 where they are numbers: only these are found again by any integer."""
    values = column.values
    if values.dtype.kind not in "uf":
        return column
    bad = values >= 2**63 if values.dtype.kind == "u" else ~((values == np.floor(values)) & (np.abs(values) < 2**63))
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"{name}: expected ids that are text or integers below 2**63, got {values[at]} at position {at}"
        )
    return _readers.Column(values.astype(np.int64))


def _too_sparse(shape: tuple[int, int], rows: int) -> str:
    name = "users" if shape[0] > shape[1] else "items"
    return (
        f"{name}: {rows:,} rows have indices up to {max(shape) - 1}, and tables of all below would not fit in memory; "
        "with ids=True (--ids external) only the ids that occur are numbered, and a shape says that they are meant"
    )


def _check_range(name: str, index: np.ndarray, size: int) -> None:
    if not len(index):
        return
    low, high = index.min(), index.max()
    if low < 0 or high >= size:
        at = int(np.flatnonzero((index < 0) | (index >= size))[0])
        raise ValueError(f"{name}: expected indices from 0 to {size - 1}, got {index[at]} at position {at}")


def _sort_pairs(users: np.ndarray, items: np.ndarray, shape: tuple[int, int]) -> np.ndarray | None:
    """Order that sorts by user, then item, equals staying in order; None where they are sorted already."""
    if len(users) < 2:
        return None
    if shape[0] * shape[1] < 2**63:
        key = users * shape[1] + items
        if (key[1:] >= key[:-1]).all():
            return None
        return torch.sort(torch.from_numpy(key), stable=True).indices.numpy()
    return np.lexsort((items, users))


def _indptr(users: np.ndarray, num_users: int) -> torch.Tensor:
    counts = np.bincount(users, minlength=num_users)
    return torch.from_numpy(np.concatenate(([0], np.cumsum(counts))).astype(np.int64, copy=False))


def _index_tensor(items: np.ndarray, num_items: int) -> torch.Tensor:
    return torch.from_numpy(items.astype(np.int32 if num_items < 2**31 else np.int64))


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _is_scipy_archive(path: Path) -> bool:
    if path.is_dir() or not _is_zip(path):
        return False
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {"format", "shape", "data"} <= set(archive.files)
    except _readers.DAMAGED:
        return False  # the reader says what is wrong with it


def _encode(what: str, values: Any, ids: np.ndarray | None, size: int) -> np.ndarray:
    wanted = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if wanted.dtype.kind == "O":
        wanted = wanted.astype(np.str_)
    numeric = ids is None or ids.dtype.kind in "iu"
    if numeric and wanted.dtype.kind == "U":  # such as what was typed on a command line
        try:
            wanted = wanted.astype(np.int64)
        except (ValueError, OverflowError):
            wrong = next((text for text in wanted.ravel().tolist() if not _is_integer(text)), values)
            raise ValueError(f"{what} ids: expected integers, got {wrong!r}") from None
    if numeric != (wanted.dtype.kind in "iu") and wanted.size:
        raise TypeError(f"{what} ids: expected {'integers' if numeric else 'text'}, got {wanted.dtype}")
    if ids is None:
        found = (wanted >= 0) & (wanted < size) if wanted.size else np.ones(wanted.shape, bool)
        index = wanted.astype(np.int64)
    else:
        index = np.searchsorted(ids, wanted).astype(np.int64).reshape(wanted.shape)
        found = (index < size) & (ids[np.minimum(index, size - 1)] == wanted) if size else np.zeros(wanted.shape, bool)
    if not found.all():
        missing = wanted[~found].ravel()[0].item()
        raise ValueError(f"{what} ids: there is no {what} {missing!r} among these {size:,}")
    return index


def _is_integer(text: str) -> bool:
    try:
        return -(2**63) <= int(text) < 2**63
    except ValueError:
        return False


def _decode(what: str, indices: Any, ids: np.ndarray | None, size: int) -> np.ndarray:
    index = indices.detach().cpu().numpy() if isinstance(indices, torch.Tensor) else np.asarray(indices)
    if index.dtype.kind not in "iu" and index.size:
        raise TypeError(f"{what} indices: expected integers, got {index.dtype}")
    index = index.astype(np.int64)
    _check_range(f"{what} indices", index.ravel(), size)
    return index if ids is None else ids[index]
