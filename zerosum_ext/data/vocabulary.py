"""External ids by index: :class:`Vocabulary`, shared by training data, later files and models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from zerosum_ext._files import replacing
from zerosum_ext.data.ids import Coded, code, is_integer
from zerosum_ext.data.readers.arrays import load_arrays

__all__ = ["Unknown", "Vocabulary", "check_range", "decode", "encode"]

Unknown = Literal["error", "skip", "grow"]


class Vocabulary:
    """The external ids of users and items by index. Immutable.

    Attributes:
        user_ids: int64 or text [num_users], or None where indices are the ids.
        item_ids: the same of items [num_items].
        shape: (num_users, num_items).
    """

    __slots__ = ("_order", "item_ids", "shape", "user_ids")

    user_ids: np.ndarray | None
    item_ids: np.ndarray | None
    shape: tuple[int, int]
    _order: dict[str, np.ndarray | None]

    def __init__(self, user_ids: Any = None, item_ids: Any = None, *, shape: tuple[int, int] | None = None) -> None:
        """Make a vocabulary.

        Args:
            user_ids: distinct integers or text [num_users]; None if indices are the ids.
            item_ids: the same of items [num_items].
            shape: (num_users, num_items), which a side without ids needs.

        Raises:
            ValueError: ids repeat or are no ids; a size is missing or differs.
        """
        sides = [_checked(name, ids) for name, ids in (("user_ids", user_ids), ("item_ids", item_ids))]
        sizes = []
        for at, (name, ids) in enumerate(zip(("user_ids", "item_ids"), sides, strict=True)):
            size = None if shape is None else int(shape[at])
            if ids is None and size is None:
                raise ValueError(f"shape: expected one, as {name} is None")
            if ids is not None and size not in (None, len(ids)):
                raise ValueError(f"shape: expected {len(ids)} as {name}, got {size}")
            sizes.append(len(ids) if ids is not None else int(size or 0))
        self._set(sides[0], sides[1], (sizes[0], sizes[1]))

    def _set(self, user_ids: np.ndarray | None, item_ids: np.ndarray | None, shape: tuple[int, int]) -> None:
        for name, value in (("user_ids", user_ids), ("item_ids", item_ids), ("shape", shape), ("_order", {})):
            object.__setattr__(self, name, value)

    @classmethod
    def trusted(cls, user_ids: np.ndarray | None, item_ids: np.ndarray | None, shape: tuple[int, int]) -> Vocabulary:
        """Return a vocabulary of ids that are known to be distinct."""
        self = object.__new__(cls)
        self._set(user_ids, item_ids, shape)
        return self

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Vocabulary is immutable, {name!r} cannot be set")

    def __reduce__(self) -> tuple[Any, ...]:
        return Vocabulary.trusted, (self.user_ids, self.item_ids, self.shape)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        sides = ((self.user_ids, other.user_ids), (self.item_ids, other.item_ids))
        return self.shape == other.shape and all(
            a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in sides
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        kinds = ["indices" if ids is None else "text" if ids.dtype.kind == "U" else "integers" for ids in self._sides()]
        return f"Vocabulary({self.shape[0]:,} users by {kinds[0]}, {self.shape[1]:,} items by {kinds[1]})"

    def _sides(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        return self.user_ids, self.item_ids

    def find(self, what: Literal["user", "item"], ids: np.ndarray) -> np.ndarray:
        """Return the index of each id, int64 [n], and -1 for ids that are not there.

        Integers and text find each other where one is the only spelling of the other.
        """
        known, size = (self.user_ids, self.shape[0]) if what == "user" else (self.item_ids, self.shape[1])
        numeric = known is None or known.dtype.kind in "iu"
        possible = np.ones(len(ids), bool)
        if numeric and ids.dtype.kind == "U":
            possible = np.fromiter(map(is_integer, ids.tolist()), bool, len(ids))
            ids = np.where(possible, ids, "0").astype(np.int64)
        elif not numeric and ids.dtype.kind != "U":
            ids = ids.astype(np.str_)
        if known is None:
            return np.where(possible & (ids >= 0) & (ids < size), ids, -1).astype(np.int64)
        order = self._sorter(what, known)
        place = np.searchsorted(known, ids, sorter=order)
        if not size:
            return np.full(len(ids), -1, np.int64)
        index = np.minimum(place, size - 1)
        index = index if order is None else order[index]
        return np.where(possible & (known[index] == ids), index, -1).astype(np.int64)

    def _sorter(self, what: str, known: np.ndarray) -> np.ndarray | None:
        """The order that sorts the ids, or None where they are sorted: those that grew are not."""
        if what not in self._order:
            ascending = bool((known[1:] > known[:-1]).all())
            self._order[what] = None if ascending else np.argsort(known, kind="stable")
        return self._order[what]

    def place(self, what: Literal["user", "item"], column: Coded, unknown: Unknown) -> tuple[np.ndarray, Vocabulary]:
        """Return the index of each row's id, and the vocabulary, larger if it grew.

        Args:
            what: which ids they are.
            column: ids of rows.
            unknown: "error" raises for ids that are not there; "skip" gives -1; "grow" numbers them, in ascending
                order, after all that are known.

        Raises:
            ValueError: names an unknown id and counts the rows of such.
        """
        index = self.find(what, column.words)
        missing = np.flatnonzero(index < 0)
        grown = self
        if len(missing) and unknown == "error":
            rows = int((index[column.codes] < 0).sum())
            raise ValueError(
                f"{what} ids: there is no {what} {column.words[missing[0]].item()!r} in the vocabulary ({rows:,} of "
                f"{len(column.codes):,} rows are of {len(missing):,} unknown {what}s); unknown='skip' leaves them out, "
                "unknown='grow' adds them"
            )
        if len(missing) and unknown == "grow":
            grown = self._grown(what, column.words[missing])
            index[missing] = grown.find(what, column.words[missing])
        return index[column.codes], grown

    def _grown(self, what: Literal["user", "item"], new: np.ndarray) -> Vocabulary:
        ids, size = (self.user_ids, self.shape[0]) if what == "user" else (self.item_ids, self.shape[1])
        if ids is None:
            if new.dtype.kind == "U" or new.min() < 0:
                raise ValueError(f"{what} ids: expected indices from 0, got {new.min().item()!r}")
            size = int(new.max()) + 1
        else:
            if new.dtype.kind != ids.dtype.kind:
                if ids.dtype.kind != "U":
                    raise ValueError(
                        f"{what} ids: expected integers as in the vocabulary, got {new[0].item()!r}, which is text"
                    )
                new = new.astype(np.str_)
            ids = np.concatenate((ids, new))
            ids.flags.writeable = False
            size = len(ids)
        if what == "user":
            return Vocabulary.trusted(ids, self.item_ids, (size, self.shape[1]))
        return Vocabulary.trusted(self.user_ids, ids, (self.shape[0], size))

    def grow(self, user_ids: Any = (), item_ids: Any = ()) -> Vocabulary:
        """Return a vocabulary with further users and items after those that are here; known ones stay as they are."""
        grown = self
        for what, ids in (("user", user_ids), ("item", item_ids)):
            if len(ids):
                side: Literal["user", "item"] = "user" if what == "user" else "item"
                _, grown = grown.place(side, code(f"{what}_ids", ids), "grow")
        return grown

    def require_beginning_of(self, larger: Vocabulary) -> None:
        """Raise ValueError unless another vocabulary begins with these users and items."""
        for what, ids, theirs, size, other in (
            ("user", self.user_ids, larger.user_ids, self.shape[0], larger.shape[0]),
            ("item", self.item_ids, larger.item_ids, self.shape[1], larger.shape[1]),
        ):
            same = ids is theirs or (ids is not None and theirs is not None and np.array_equal(ids, theirs[:size]))
            if not same or other < size:
                raise ValueError(f"vocabulary: expected one that begins with these {size:,} {what}s, got {larger}")

    def encode_users(self, ids: Any) -> np.ndarray:
        """Return indices of external user ids, int64 of the same shape. ValueError names an id that is not there."""
        return encode(self, "user", ids)

    def encode_items(self, ids: Any) -> np.ndarray:
        """Return indices of external item ids, int64 of the same shape. ValueError names an id that is not there."""
        return encode(self, "item", ids)

    def decode_users(self, indices: Any) -> np.ndarray:
        """Return external ids of users, same shape. ValueError for an index out of range."""
        return decode("user", indices, self.user_ids, self.shape[0])

    def decode_items(self, indices: Any) -> np.ndarray:
        """Return external ids of items, same shape. ValueError for an index out of range."""
        return decode("item", indices, self.item_ids, self.shape[1])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary to a file (.npz), beside a model for example."""
        arrays: dict[str, np.ndarray] = {"shape": np.array(self.shape, np.int64)}
        for name, ids in zip(("user_ids", "item_ids"), self._sides(), strict=True):
            if ids is not None:
                arrays[name] = ids
        with replacing(path) as part, open(part, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Return the vocabulary in a file that :meth:`save` or :meth:`zerosum_ext.Interactions.save` wrote.

        Raises:
            ValueError: the file is damaged or holds no vocabulary.
            OSError: it cannot be read.
        """
        with open(path, "rb"):  # a missing file raises here
            arrays = load_arrays(Path(path))
        shape = arrays.get("shape")
        if shape is None or shape.shape != (2,) or shape.dtype.kind not in "iu" or shape.min() < 0:
            raise ValueError(f"{os.fspath(path)} holds no vocabulary: it has no shape of two sizes")
        try:
            return cls(arrays.get("user_ids"), arrays.get("item_ids"), shape=(int(shape[0]), int(shape[1])))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)} holds no vocabulary: {error}") from None


def _checked(name: str, ids: Any) -> np.ndarray | None:
    if ids is None:
        return None
    column = code(name, ids)
    if len(column.words) < len(column.codes):
        repeated = int(np.flatnonzero(np.bincount(column.codes) > 1)[0])
        raise ValueError(f"{name}: expected distinct ids, got {column.words[repeated].item()!r} more than once")
    array: np.ndarray = column.words[column.codes]
    array.flags.writeable = False
    return array


def check_range(name: str, index: np.ndarray, size: int) -> None:
    """Raise ValueError for the first index outside 0 .. size - 1."""
    if not len(index):
        return
    low, high = index.min(), index.max()
    if low < 0 or high >= size:
        at = int(np.flatnonzero((index < 0) | (index >= size))[0])
        raise ValueError(f"{name}: expected indices from 0 to {size - 1}, got {index[at]} at position {at}")


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def encode(vocabulary: Vocabulary, what: Literal["user", "item"], values: Any) -> np.ndarray:
    """Return indices of external ids, int64 of the same shape.

    Raises:
        ValueError: an id is not there.
        TypeError: ids are of another kind, such as numbers where text is due.
    """
    ids = vocabulary.user_ids if what == "user" else vocabulary.item_ids
    size = vocabulary.shape[0 if what == "user" else 1]
    wanted = _array(values)
    if wanted.dtype.kind in "OT":
        wanted = wanted.astype(np.str_)
    numeric = ids is None or ids.dtype.kind in "iu"
    if numeric and wanted.dtype.kind == "U":  # such as what was typed on a command line
        try:
            wanted = wanted.astype(np.int64)
        except (ValueError, OverflowError):
            wrong = next((text for text in wanted.ravel().tolist() if not is_integer(text.strip())), values)
            raise ValueError(f"{what} ids: expected integers, got {wrong!r}") from None
    if numeric != (wanted.dtype.kind in "iu") and wanted.size:
        raise TypeError(f"{what} ids: expected {'integers' if numeric else 'text'}, got {wanted.dtype}")
    if not wanted.size:
        return np.zeros(wanted.shape, np.int64)
    index = vocabulary.find(what, wanted.ravel()).reshape(wanted.shape)
    if (index < 0).any():
        missing = wanted[index < 0].ravel()[0].item()
        raise ValueError(f"{what} ids: there is no {what} {missing!r} among these {size:,}")
    return index


def decode(what: str, indices: Any, ids: np.ndarray | None, size: int) -> np.ndarray:
    """Return external ids of indices, same shape.

    Raises:
        ValueError: an index is out of range.
        TypeError: indices are no integers.
    """
    index = _array(indices)
    if index.dtype.kind not in "iu" and index.size:
        raise TypeError(f"{what} indices: expected integers, got {index.dtype}")
    index = index.astype(np.int64)
    check_range(f"{what} indices", index.ravel(), size)
    return index if ids is None else ids[index]
