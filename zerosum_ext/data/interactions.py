"""Who interacted with what: :class:`Interactions`, the one input of samplers, models and metrics."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from zerosum_ext._checks import require_choice
from zerosum_ext._files import replacing
from zerosum_ext.data import building, preparing, readers, splits, times
from zerosum_ext.data import ids as _ids
from zerosum_ext.data.report import Report
from zerosum_ext.data.vocabulary import Unknown, Vocabulary, check_range

__all__ = ["Interactions", "Report", "Split"]

IdType = Literal["auto", "int", "str"]
_NUMERIC = ("rating", "order")


class Interactions:
    """A set of (user, item) pairs as a canonical CSR matrix: rows sorted, no duplicates, no values.

    Make one with :meth:`from_scipy`, :meth:`from_torch`, :meth:`from_arrays`, :meth:`from_file`, or
    :meth:`from_any`, which picks among these. Immutable: every method returns a new object, and tensors
    handed out must not be written to. Pickles, and moves to a GPU with :meth:`to`.

    Attributes:
        indptr (int64 tensor [num_users + 1]): where each user's items begin in ``indices``.
        indices (int32 tensor [nnz]): items of user u, ascending, are ``indices[indptr[u]:indptr[u + 1]]``. int64 from
            2**31 items on.
        shape (tuple of int): (num_users, num_items).
        columns (mapping of names to arrays [nnz]): what else is known of each interaction (rating, timestamp, order,
            split, ...), aligned with ``indices`` and always on the CPU. ``row`` is the row of the source, where there
            was an order of rows. The mapping is read-only.
        user_ids (array [num_users] or None): external ids, integers or text, by index. None if indices are the ids.
        item_ids (array [num_items] or None): the same of items.
        report (Report): what was read, merged, guessed and left out.

    Example:
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 2], [1, 0, 1, 3], shape=(3, 4))
        >>> data.nnz, data.popularity.tolist()
        (4, [1, 2, 0, 1])
        >>> data.split_random((0.5, 0.0, 0.5), seed=0).train.nnz
        2
    """

    __slots__ = (
        "__weakref__",
        "_popularity",
        "_user_counts",
        "_vocabulary",
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
    _vocabulary: Vocabulary | None

    def __init__(self) -> None:
        raise TypeError("use Interactions.from_scipy, from_torch, from_arrays, from_table, from_file or from_any")

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
            ("_vocabulary", None),
        ):
            object.__setattr__(self, name, value)
        return self

    @classmethod
    def _from_parts(cls, parts: building.Parts) -> Interactions:
        return cls._build(
            parts.indptr, parts.indices, parts.shape, parts.columns, parts.user_ids, parts.item_ids, parts.report
        )

    @classmethod
    def from_any(cls, data: Any) -> Interactions:
        """Return interactions of whatever holds them.

        Args:
            data: Interactions themselves, a scipy sparse matrix, a torch sparse tensor, a pair (users, items), a data
                frame (see :meth:`from_table`) or a file's path.
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
        if readers.is_table(data):
            return cls.from_table(data)
        raise TypeError(
            "interactions: expected Interactions, a scipy sparse matrix, a torch sparse tensor, a pair (users, "
            f"items), a data frame or the path of a file, got {type(data).__name__}"
        )

    @classmethod
    def from_scipy(cls, matrix: Any, *, weights: bool = False) -> Interactions:
        """Return the interactions of a scipy.sparse matrix or array [num_users, num_items] of any format.

        Each stored value that is not zero is one positive. Stored zeros are left out and counted in ``report``. The
        matrix is copied, never changed, and need not be sorted.

        Args:
            matrix: of counts, ratings or ones.
            weights: keep the values as :attr:`weights`, those of duplicates added up.

        Raises:
            ValueError: a value is negative or NaN, which cannot be read as "interacted".
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
        return cls._from_entries(users, items, values, shape, f"scipy {matrix.format} matrix", weights)

    @classmethod
    def from_torch(cls, tensor: torch.Tensor, *, weights: bool = False) -> Interactions:
        """Return the interactions of a sparse torch tensor [num_users, num_items], CSR or COO, on its device.

        Args:
            tensor: values as in :meth:`from_scipy`.
            weights: keep the values as :attr:`weights`.
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
        made = cls._from_entries(users, items, values.numpy(), shape, f"torch {kind} tensor", weights)
        return made.to(tensor.device)

    @classmethod
    def _from_entries(
        cls,
        users: np.ndarray,
        items: np.ndarray,
        values: np.ndarray,
        shape: tuple[int, int],
        source: str,
        weights: bool,
    ) -> Interactions:
        report = Report(source, len(items))
        users, items = users.astype(np.int64, copy=False), items.astype(np.int64, copy=False)
        check_range("users", users, shape[0])
        check_range("items", items, shape[1])
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
            users, items, values = users[~zero], items[~zero], values[~zero]
        kept = values if weights else None
        return cls._from_parts(building.from_pairs(users, items, shape, {}, (None, None), report, kept))

    @classmethod
    def from_arrays(
        cls,
        users: Any,
        items: Any,
        *,
        shape: tuple[int, int] | None = None,
        ids: bool = False,
        columns: Mapping[str, Any] | None = None,
        vocabulary: Vocabulary | None = None,
        unknown: Unknown = "error",
        weights: str | None = None,
    ) -> Interactions:
        """Return the interactions of two aligned arrays, tensors or sequences [n], one entry per interaction.

        Args:
            users: 0-based indices, kept as they are. With ``ids=True`` or a vocabulary: external ids, integers (also
                as integral floats below 2**53) or text.
            items: as users.
            shape: (num_users, num_items); by default one more than the largest index. Not with external ids.
            ids: number the ids in ascending order and keep them as ``user_ids`` and ``item_ids``.
            columns: further arrays [n] such as ``{"rating": ..., "timestamp": ...}``, for splitting. Where a pair
                occurs more than once, its last occurrence counts. A timestamp may be numbers, dates or text; dates
                become seconds since 1970. The name ``row`` is taken: it holds the position in these arrays.
            vocabulary: numbers for the ids, such as ``train.vocabulary``.
            unknown: what becomes of ids that the vocabulary lacks: "error", "skip" (counted in ``report``) or "grow"
                (numbered after those it has).
            weights: "count", or a name of ``columns``, to be kept as :attr:`weights`.

        Raises:
            ValueError: lengths differ; indices are negative or beyond ``shape``; ids are missing, empty, not integral,
                beyond int64, or of two kinds; a rating, timestamp or order is missing.
            TypeError: indices are not integers.
        """
        sides: list[np.ndarray] = [_as_array("users", users), _as_array("items", items)]
        if sides[0].shape != sides[1].shape:
            raise ValueError(f"users and items: expected the same length, got {len(sides[0])} and {len(sides[1])}")
        table = readers.Table({}, len(sides[0]), numbered=not ids)
        external = ids or vocabulary is not None
        for name, values in zip(("user", "item"), sides, strict=True):
            if not external and values.dtype.kind not in "iu" and len(values):
                raise TypeError(f"{name}s: expected integer indices, got {values.dtype}; ids=True takes any ids")
            table.columns[name] = _ids.code(f"{name}s", values) if external else values
        for name, raw in (columns or {}).items():
            values = _as_column(name, raw)
            if values.shape != sides[0].shape:
                raise ValueError(f"columns[{name!r}]: expected length {len(sides[0])} as users, got {len(values)}")
            table.columns[name] = values
        if ids and shape is not None:
            raise ValueError("shape: not with ids=True, where the ids that occur define it")
        plan = building.Plan(ids, shape, None, vocabulary, unknown, weights)
        made = cls._from_parts(building.from_table("", table, plan)[0])
        return made.with_report(replace(made.report, source="arrays"))

    @classmethod
    def from_table(
        cls,
        table: Any,
        *,
        columns: Mapping[str, str | int | None] | None = None,
        ids: bool = True,
        id_type: IdType = "auto",
        shape: tuple[int, int] | None = None,
        min_rating: float | None = None,
        skip_bad_rows: bool = False,
        vocabulary: Vocabulary | None = None,
        unknown: Unknown = "error",
        weights: str | None = None,
    ) -> Interactions:
        """Return the interactions of a data frame with one interaction a row.

        Takes everything with an Arrow stream (pandas, polars, pyarrow, duckdb and others) and Datasets of Hugging Face,
        without a copy of the columns where Arrow needs none.

        Args:
            table: the data frame; its columns are recognised as those of a file are.
            columns: as in :meth:`from_file`.
            ids: True: users and items are external ids. False: they are 0-based indices.
            id_type: as in :meth:`from_file`; text of a table stays text, whatever it spells.
            shape: as in :meth:`from_file`.
            min_rating: as in :meth:`from_file`.
            skip_bad_rows: leave out and count rows with nulls and the like, instead of raising.
            vocabulary: as in :meth:`from_arrays`.
            unknown: as in :meth:`from_arrays`.
            weights: as in :meth:`from_file`.

        Raises:
            TypeError: the object is no data frame.
            ValueError: as of :meth:`from_file`.
        """
        options = readers.Options(columns=dict(columns or {}), id_type=id_type, skip_bad_rows=skip_bad_rows)
        readers.check_options(options)
        read = readers.from_stream(table, options)
        source = f"{type(table).__module__.split('.')[0]} table"
        return cls._made(source, read, building.Plan(ids, shape, min_rating, vocabulary, unknown, weights))

    # Its parameters are the options of a file that a caller may need; they are grouped by the objects they fill.
    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        columns: Mapping[str, str | int | None] | None = None,
        delimiter: str | None = None,
        header: bool | None = None,
        ids: bool | None = None,
        id_type: IdType = "auto",
        shape: tuple[int, int] | None = None,
        min_rating: float | None = None,
        skip_bad_rows: bool = False,
        encoding: str = "utf-8",
        format: readers.Format | None = None,
        vocabulary: Vocabulary | None = None,
        unknown: Unknown = "error",
        weights: str | None = None,
        max_line_bytes: int = 1 << 28,
    ) -> Interactions:
        """Return the interactions of a file, or of several as one data set.

        Reads delimited text (also RecBole's .inter), adjacency lists, JSON lines, ``.npz`` archives of aligned arrays
        or of ``scipy.sparse.save_npz``, parquet files and folders, and feather. Text may be packed: gz, bz2, xz, zst,
        or zip with one file in it. docs/data.md lists the formats with an example of each.

        Times are numbers (since 1970 in s, ms, us or ns, by their size), or ISO 8601 dates (UTC where they have no
        offset), which become seconds since 1970. A quoted field may go on over several lines; a quote that is never
        closed is text where it stands in a column that is not read, and a bad row otherwise.

        Args:
            path: a file, a pattern such as ``part-*.csv``, a folder of parquet files, or a list of these.
            columns: which column is what, by name or by 0-based number: ``{"user": "reviewerID", "item": 3}``. Usual
                names are recognised; without a header the first columns are user and item, and a rating and a time
                after them are taken where they look like such. ``report.notes`` says what was taken for what, and
                ``report.unread`` what was not read. ``None`` as the value leaves a recognised column out. Beyond user,
                item, rating, timestamp, order and split any other name is kept, too.
            delimiter: recognised unless given. A blank stands for any run of blanks and tabs.
            header: recognised unless given.
            ids: True: users and items are external ids, numbered in ascending order. False: 0-based indices, kept. By
                default True, except for ``.npz``.
            id_type: "int", "str", or "auto": integers if each id is the only spelling of one, else text. Ids such as
                ``007`` are text, so that they come back as they were.
            shape: with ``ids=False``, see :meth:`from_arrays`.
            min_rating: interactions rated lower are left out, and users and items that only have such. By default each
                row is a positive, whatever its rating.
            skip_bad_rows: leave out and count rows that cannot be read (``report.bad_row_messages`` names the first),
                instead of raising.
            encoding: of text, such as "latin-1" or "gb18030".
            format: "text", "adjacency", "item-lists", "jsonl", "npz", "parquet" or "feather". By default it is
                recognised; where lists could begin with a user or not, it must be said.
            vocabulary: as in :meth:`from_arrays`, such as ``train.vocabulary``.
            unknown: as in :meth:`from_arrays`.
            weights: "count" (how many rows a pair has), or the name of a column such as "rating", summed over the rows
                of a pair; kept as :attr:`weights`.
            max_line_bytes: a longer line is an error.

        Raises:
            ValueError: for a bad row "file:line: what is wrong with it"; for a file that has no rows, is damaged, or
                is of another kind.
            OSError: the file is missing or cannot be read.
        """
        paths = readers.expand(path)
        options = readers.Options(
            dict(columns or {}), delimiter, header, id_type, skip_bad_rows, encoding, format, max_line_bytes
        )
        readers.check_options(options)
        source = ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        if len(paths) == 1 and _is_scipy_archive(paths[0]):
            given = {"columns": columns, "min_rating": min_rating, "shape": shape, "ids": ids, "vocabulary": vocabulary}
            for name, value in given.items():
                if value is not None:
                    raise ValueError(f"{name}: not for {source}, which holds a scipy sparse matrix")
            return cls._from_scipy_file(paths[0], weights)
        table = readers.read_table(paths, options)
        return cls._made(source, table, building.Plan(ids, shape, min_rating, vocabulary, unknown, weights))

    @classmethod
    def _made(cls, source: str, table: readers.Table, plan: building.Plan) -> Interactions:
        try:
            parts, external = building.from_table(source, table, plan)
        except ValueError as error:
            named = str(error).startswith(("min_rating:", "shape:", "unknown:", "weights:"))
            raise error if named else ValueError(f"{source}: {error}") from None
        made = cls._from_parts(parts)
        if plan.min_rating is None:
            return made
        keep = made.columns["rating"] >= plan.min_rating
        kept = made.take(keep, replace(made.report, low_ratings=int((~keep).sum())))
        return kept.drop_empty() if external and plan.vocabulary is None else kept

    @classmethod
    def _from_scipy_file(cls, path: Path, weights: str | None) -> Interactions:
        if weights is not None:
            require_choice("weights", weights, ("values",))
        try:
            readers.load_arrays(path)  # refuses what claims more memory than it has data
            made = cls.from_scipy(sp.load_npz(path), weights=weights is not None)
        except readers.DAMAGED as error:
            text = str(error).removeprefix(f"{path} cannot be read as .npz: ")
            raise ValueError(f"{path} cannot be read as a scipy sparse matrix: {text}") from None
        return made.with_report(replace(made.report, source=str(path)))

    # ------------------------------------------------------------------------------------------------ keeping

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the interactions with columns and ids to a file (.npz) that :meth:`load` reads back as they are.

        Raises:
            OSError: the file cannot be written.
        """
        arrays: dict[str, np.ndarray] = {
            "format": np.array("zerosum_ext interactions 1"),
            "shape": np.array(self.shape, np.int64),
            "indptr": self.indptr.cpu().numpy(),
            "indices": self.indices.cpu().numpy(),
            "report": np.array(json.dumps(asdict(self.report))),
        }
        for name, ids in (("user_ids", self.user_ids), ("item_ids", self.item_ids)):
            if ids is not None:
                arrays[name] = ids
        arrays |= {f"column {name}": values for name, values in self.columns.items()}
        with replacing(path) as part, open(part, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Interactions:
        """Return the interactions in a file that :meth:`save` wrote.

        Raises:
            ValueError: the file is damaged or of another kind.
            OSError: it cannot be read.
        """
        with open(path, "rb"):  # a missing file raises here
            arrays = readers.load_arrays(Path(path))
        name = os.fspath(path)
        if str(arrays.get("format")) != "zerosum_ext interactions 1":
            raise ValueError(f"{name} holds no interactions that save() wrote; from_file() reads other archives")
        try:
            vocabulary = Vocabulary.load(path)
            indptr, indices = arrays["indptr"], arrays["indices"]
            columns = {key[7:]: values for key, values in arrays.items() if key.startswith("column ")}
            _check_csr(indptr, indices, vocabulary.shape, columns)
            report = _saved_report(arrays, name, len(indices))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{name} is damaged: {error}") from None
        return cls._build(
            torch.from_numpy(indptr),
            torch.from_numpy(indices),
            vocabulary.shape,
            columns,
            vocabulary.user_ids,
            vocabulary.item_ids,
            report,
        )

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

    @property
    def weights(self) -> torch.Tensor | None:
        """Weights or counts of the interactions, float32 [nnz] in the order of ``indices``; None if none were kept."""
        values = self.columns.get("weights")
        return None if values is None else torch.from_numpy(values.astype(np.float32)).to(self.device)

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

    @property
    def vocabulary(self) -> Vocabulary:
        """The ids of users and items by index, to read later data with or to keep beside a model."""
        if self._vocabulary is None:
            found = Vocabulary.trusted(self.user_ids, self.item_ids, self.shape)
            object.__setattr__(self, "_vocabulary", found)
        assert self._vocabulary is not None
        return self._vocabulary

    def encode_users(self, ids: Any) -> np.ndarray:
        """Return indices of external user ids, int64 of the same shape. ValueError names an id that is not there."""
        return self.vocabulary.encode_users(ids)

    def encode_items(self, ids: Any) -> np.ndarray:
        """Return indices of external item ids, int64 of the same shape. ValueError names an id that is not there."""
        return self.vocabulary.encode_items(ids)

    def decode_users(self, indices: Any) -> np.ndarray:
        """Return external ids of users by index, same shape. ValueError for an index out of range."""
        return self.vocabulary.decode_users(indices)

    def decode_items(self, indices: Any) -> np.ndarray:
        """Return external ids of items by index, same shape. ValueError for an index out of range."""
        return self.vocabulary.decode_items(indices)

    def grow(self, vocabulary: Vocabulary) -> Interactions:
        """Return the same interactions with room for the users and items of a vocabulary that grew from this one.

        Raises:
            ValueError: the vocabulary does not begin with these users and items.
        """
        mine = self.vocabulary
        mine.require_beginning_of(vocabulary)
        added = vocabulary.shape[0] - mine.shape[0]
        return self._replace(
            indptr=torch.cat((self.indptr, self.indptr[-1:].expand(added))),
            indices=self.indices if vocabulary.shape[1] < 2**31 else self.indices.long(),
            shape=vocabulary.shape,
            user_ids=vocabulary.user_ids,
            item_ids=vocabulary.item_ids,
        )

    def concat(self, *others: Interactions) -> Interactions:
        """Return all pairs of several interactions, whose users and items may differ.

        New users and items come after those that are known. Columns that all have are kept; of a pair that occurs
        twice those of the last, and the sum of its weights.

        Raises:
            ValueError: one has integer ids and another text that spells none, or only one has ids.
        """
        grown = self.vocabulary
        for other in others:
            _require_interactions("others", other)
            if (self.user_ids is None) != (other.user_ids is None) or (self.item_ids is None) != (
                other.item_ids is None
            ):
                raise ValueError("others: expected all with external ids or all with indices")
            if self.user_ids is None or self.item_ids is None:
                shape = (max(grown.shape[0], other.shape[0]), max(grown.shape[1], other.shape[1]))
                grown = Vocabulary.trusted(self.user_ids, self.item_ids, shape)
            if other.user_ids is not None and other.item_ids is not None:
                grown = grown.grow(other.user_ids, other.item_ids)
        users, items = [], []
        for one in (self, *others):
            pairs = [side.cpu().numpy() for side in one.pairs()]
            users.append(pairs[0] if one.user_ids is None else grown.find("user", one.user_ids)[pairs[0]])
            items.append(pairs[1] if one.item_ids is None else grown.find("item", one.item_ids)[pairs[1]])
        common = [name for name in self.columns if all(name in other.columns for other in others)]
        columns = {name: np.concatenate([one.columns[name] for one in (self, *others)]) for name in common}
        columns.pop("row", None)
        weights = columns.pop("weights", None)
        report = Report(" and ".join(one.report.source for one in (self, *others)), sum(map(len, users)))
        ids = (grown.user_ids, grown.item_ids)
        parts = building.from_pairs(
            np.concatenate(users), np.concatenate(items), grown.shape, columns, ids, report, weights
        )
        return self._from_parts(parts).to(self.device)

    # ------------------------------------------------------------------------------------- filters and splits

    def filter_items(self, min_count: int) -> Interactions:
        """Return the interactions of items with at least min_count of them.

        Items and users left with none are taken out and the rest renumbered. ``item_ids`` and ``user_ids`` of the
        result are the ids, or failing that the indices, that they had before; ``report`` counts what went. Users are
        not filtered by their own counts. [RCS22] uses 10.
        """
        return preparing.filter_items(self, min_count)

    def k_core(self, min_user: int = 1, min_item: int = 1) -> Interactions:
        """Return the largest part in which each user and each item has enough interactions.

        Users and items with too few are taken out in turn until none is left; ids and report as of
        :meth:`filter_items`.

        Args:
            min_user: interactions that a user must have, such as 5.
            min_item: interactions that an item must have.

        Raises:
            ValueError: nothing is left.
        """
        return preparing.k_core(self, min_user, min_item)

    def binarise(self, min_rating: float | None = None) -> Interactions:
        """Return positives alone, without ratings and weights.

        Args:
            min_rating: leave out interactions rated lower, and users and items that only have such. None: each
                interaction is a positive.
        """
        return preparing.binarise(self, min_rating, self.user_ids is not None and self.item_ids is not None)

    def keep_last(self, count: int, *, by: str | None = None) -> Interactions:
        """Return each user's last ``count`` interactions, such as the end of a session; order as of
        :meth:`split_last`.
        """
        return preparing.keep_last(self, count, by)

    def split_random(self, ratios: Sequence[float] = (0.6, 0.2, 0.2), *, seed: int = 0) -> Split:
        """Split all interactions at random into (train, valid, test), or with two ratios into (train, test).

        The ratios must sum to 1 and are met to within one interaction. [RCS22] uses 60/20/20.
        """
        return Split(*splits.random(self, ratios, seed))

    def split_balanced(self, ratios: Sequence[float] = (0.8, 0.1, 0.1), *, seed: int = 0, most: float = 0.5) -> Split:
        """Split off validation and test parts in which items are as equally frequent as they can be.

        A random split tests with the popularity bias of the data itself; this one asks how well items are found of
        which each counts alike, as in DICE (Zheng et al., WWW 2021) and MACR (Wei et al., KDD 2021). Held-out
        interactions are drawn at random, as many of each item; an item with fewer gives a share ``most`` of its
        interactions, rounded down.

        Args:
            ratios: of train, validation and test, or of train and test; they sum to 1.
            seed: of the draw.
            most: the largest share of an item's interactions that is held out.

        Raises:
            ValueError: bad ratios, or more to hold out than ``most`` allows.
        """
        return Split(*splits.balanced(self, ratios, seed, most))

    def folds(self, k: int = 5, *, seed: int = 0) -> Iterator[Split]:
        """Yield k splits whose test parts are disjoint and together hold all interactions, drawn at random."""
        return itertools.starmap(Split, splits.folds(self, k, seed))

    def split_last(self, *, by: str | None = None, test: int = 1, valid: int = 0) -> Split:
        """Split off each user's last ``test`` interactions for test and the ``valid`` before them for validation.

        Last is by column ``by``; by default by ``order``, else ``timestamp``, else the row in the file, and
        ``report.notes`` of the parts says by which; ties go by row. A user with no more than ``test + valid``
        interactions stays in train whole, so that each user can be learnt.
        """
        return Split(*splits.last(self, by, test, valid))

    def split_last_share(self, ratios: Sequence[float] = (0.8, 0.1, 0.1), *, by: str | None = None) -> Split:
        """Split each user's interactions by their order: the first share for train, the last for test.

        Counts are rounded user by user; a user of whom nothing would be left to train on stays in train whole. Order
        as of :meth:`split_last`.
        """
        return Split(*splits.last_share(self, ratios, by))

    def split_time(
        self,
        ratios: Sequence[float] | None = None,
        *,
        cuts: Sequence[float] | None = None,
        by: str | None = None,
    ) -> Split:
        """Split all interactions at moments that are the same for all users, so that no part knows the future.

        Args:
            ratios: shares of (train, valid, test) or (train, test). What happened at one moment stays together, so
                shares are met as far as that allows; train never ends after test begins.
            cuts: the times at which validation and test begin, or the one at which test begins.
            by: the column of times; by default ``timestamp``, else ``order``.
        """
        return Split(*splits.by_time(self, ratios, cuts, by))

    def split_by(self, column: str = "split", *, train: Any = 0, valid: Any = 2, test: Any = 1) -> Split:
        """Split by a column's values, such as the split that a data set was published with.

        A value may be a tuple of values; for text columns say e.g. ``train="train", test="test"``. A value of
        the column that is none of these is a ValueError, so that nothing is left out unnoticed.
        """
        return Split(*splits.by_column(self, column, train, valid, test))

    def union(self, other: Interactions) -> Interactions:
        """Return all pairs that are in either, such as train and validation together; also written ``a | b``.

        Both must have the same shape, and the same ids where both have ids: one without (a plain matrix) speaks of
        indices. Columns that both have are kept; of a pair in both, the other's.
        """
        _require_interactions("other", other)
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
        parts = building.from_pairs(users, items, self.shape, columns, (user_ids, item_ids), report)
        return self._from_parts(parts).to(self.device)

    __or__ = union

    # ------------------------------------------------------------------------------------- parts and variants

    def column(self, argument: str, name: str) -> np.ndarray:
        """Return a column, or raise a ValueError that names the argument that asked for it."""
        if name not in self.columns:
            have = ", ".join(self.columns) or "none"
            raise ValueError(f"{argument}: there is no column {name!r}; these interactions have {have}")
        return self.columns[name]

    def with_report(self, report: Report) -> Interactions:
        """Return the same interactions with another report."""
        return self._replace(report=report)

    def with_columns(self, columns: Mapping[str, np.ndarray]) -> Interactions:
        """Return the same interactions with other columns, arrays [nnz] in the order of ``indices``.

        Raises:
            ValueError: a column has another length.
        """
        for name, values in columns.items():
            if np.shape(values) != (self.nnz,):
                raise ValueError(f"columns[{name!r}]: expected length {self.nnz}, got shape {np.shape(values)}")
        return self._replace(columns=columns)

    def with_vocabulary(self, vocabulary: Vocabulary) -> Interactions:
        """Return the same interactions with other external ids by index.

        Raises:
            ValueError: the vocabulary has another number of users or items.
        """
        if vocabulary.shape != self.shape:
            raise ValueError(f"vocabulary: expected shape {self.shape}, got {vocabulary.shape}")
        return self._replace(user_ids=vocabulary.user_ids, item_ids=vocabulary.item_ids)

    def take(self, keep: np.ndarray, report: Report | None = None) -> Interactions:
        """Return the interactions where keep (bool [nnz], in the order of ``indices``) holds; shape and ids stay."""
        before = np.concatenate(([0], np.cumsum(keep)))
        indptr = torch.from_numpy(before[self.indptr.cpu().numpy()]).to(self.device)
        indices = self.indices[torch.from_numpy(keep).to(self.device)]
        columns = {name: values[keep] for name, values in self.columns.items()}
        report = self.report if report is None else report
        return self._replace(indptr=indptr, indices=indices, columns=columns, report=report)

    def with_user_ids(self, user_ids: np.ndarray) -> Interactions:
        """Return the same interactions with external ids of the users, distinct integers or text [num_users].

        Raises:
            ValueError: there is another number of users.
        """
        if len(user_ids) != self.num_users:
            raise ValueError(f"user_ids: expected {self.num_users}, got {len(user_ids)}")
        return self._replace(user_ids=user_ids)

    def rows(self, first: int, last: int) -> Interactions:
        """Return the interactions of users [first, last), who are numbered from 0 in the result.

        Raises:
            ValueError: there are no such users.
        """
        if not 0 <= first <= last <= self.num_users:
            raise ValueError(f"rows: expected a range of {self.num_users} users, got [{first}, {last})")
        begin, end = (int(self.indptr[user]) for user in (first, last))
        return self._replace(
            indptr=self.indptr[first : last + 1] - begin,
            indices=self.indices[begin:end].clone(),
            shape=(last - first, self.num_items),
            columns={name: values[begin:end] for name, values in self.columns.items()},
            user_ids=None if self.user_ids is None else self.user_ids[first:last],
        )

    def drop_empty(self) -> Interactions:
        """Return the same without users and items that have no interaction, the rest renumbered in the same order."""
        counts = np.diff(self.indptr.cpu().numpy())
        users, items = np.flatnonzero(counts), np.flatnonzero(self.popularity.cpu().numpy())
        number = np.full(self.num_items, -1, np.int64)
        number[items] = np.arange(len(items))
        user_ids, item_ids = self.decode_users(users), self.decode_items(items)
        for ids in (user_ids, item_ids):
            ids.flags.writeable = False
        return self._replace(
            indptr=torch.from_numpy(np.concatenate(([0], np.cumsum(counts[users])))).to(self.device),
            indices=building.index_tensor(number[self.indices.cpu().numpy()], len(items)).to(self.device),
            shape=(len(users), len(items)),
            user_ids=user_ids,
            item_ids=item_ids,
            report=replace(self.report, emptied_users=self.report.emptied_users + self.num_users - len(users)),
        )

    def _replace(self, **changes: Any) -> Interactions:
        fields = ("indptr", "indices", "shape", "columns", "user_ids", "item_ids", "report")
        return self._build(**{name: changes.get(name, getattr(self, name)) for name in fields})


class Split(NamedTuple):
    """Parts of the same interactions, all with the shape and ids of the whole; ``valid`` is empty where none was asked
    for.
    """

    train: Interactions
    valid: Interactions
    test: Interactions


def _require_interactions(name: str, value: object) -> None:
    if not isinstance(value, Interactions):
        raise TypeError(f"{name}: expected Interactions, got {type(value).__name__}")


def _as_array(name: str, values: Any) -> np.ndarray:
    """A one-dimensional array; ids as Python objects and what else NumPy would turn into text stay objects."""
    if isinstance(values, torch.Tensor):
        array = values.detach().cpu().numpy()
    elif isinstance(values, (list, tuple)) and any(isinstance(value, str) for value in values):
        array = np.array(values, object)  # [1, "a"] must not become two texts
    else:
        array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {array.shape}")
    return array


def _as_column(name: str, values: Any) -> np.ndarray:
    """A column as numbers or text; a rating, timestamp or order must be complete."""
    label = f"columns[{name!r}]"
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    if np.ndim(values) != 1:
        raise ValueError(f"{label}: expected one dimension, got shape {np.shape(values)}")
    if name == "timestamp":
        return times.to_numbers(label, values, missing=True)
    array = np.asarray(values)
    if array.dtype.kind in "OT":
        if name in _NUMERIC:
            return times.to_numbers(label, array)
        array = array.astype(np.str_)
    return array


def _is_scipy_archive(path: Path) -> bool:
    if path.is_dir():
        return False
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {"format", "shape", "data"} <= set(archive.files)
    except readers.DAMAGED:
        return False  # the reader says what is wrong with it


def _saved_report(arrays: Mapping[str, np.ndarray], name: str, rows: int) -> Report:
    """The report that :meth:`Interactions.save` wrote, as far as its fields are those of this version."""
    try:
        saved = json.loads(str(arrays["report"])) if "report" in arrays else {}
        default = asdict(Report(str(arrays.get("source", name)), rows))
        for key, value in saved.items():
            if key not in default:
                continue
            if isinstance(value, list):
                value = tuple(tuple(map(str, one)) if isinstance(one, list) else str(one) for one in value)
            if type(value) is not type(default[key]):
                raise ValueError(f"{key} is {value!r}")
            default[key] = value
    except (AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"its report cannot be read ({str(error)[:80]})") from None
    return Report(**default)


def _check_csr(
    indptr: np.ndarray, indices: np.ndarray, shape: tuple[int, int], columns: Mapping[str, np.ndarray]
) -> None:
    """Raise ValueError unless the arrays are a canonical CSR matrix with aligned columns."""
    if indptr.dtype != np.int64 or indptr.shape != (shape[0] + 1,) or indptr[0] != 0 or (np.diff(indptr) < 0).any():
        raise ValueError("indptr is no row pointer of its shape")
    expected = np.int32 if shape[1] < 2**31 else np.int64
    if indices.dtype != expected or indices.shape != (int(indptr[-1]),):
        raise ValueError("indices do not fit indptr")
    check_range("indices", indices, shape[1])
    inside = np.ones(len(indices), bool)
    inside[indptr[:-1][np.diff(indptr) > 0]] = False
    if (np.diff(indices)[inside[1:]] <= 0).any():
        raise ValueError("indices are not ascending within a row")
    for name, values in columns.items():
        if values.shape != indices.shape:
            raise ValueError(f"column {name!r} has shape {values.shape}, expected {indices.shape}")
