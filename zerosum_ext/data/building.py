"""From rows of any source to a canonical CSR matrix with its columns: what the ways into Interactions share."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from zerosum_ext import _ops
from zerosum_ext._checks import out_of_memory
from zerosum_ext.data.ids import Coded, code
from zerosum_ext.data.readers.table import Column, Table
from zerosum_ext.data.report import Report
from zerosum_ext.data.vocabulary import Unknown, Vocabulary, check_range
from zerosum_ext.data.wording import column_option, option

__all__ = ["Parts", "Plan", "from_pairs", "from_table", "index_tensor", "plain"]


@dataclass
class Parts:
    """What interactions are made of; see :class:`zerosum_ext.Interactions`."""

    indptr: torch.Tensor
    indices: torch.Tensor
    shape: tuple[int, int]
    columns: dict[str, np.ndarray]
    user_ids: np.ndarray | None
    item_ids: np.ndarray | None
    report: Report


@dataclass(frozen=True)
class Plan:
    """How rows become interactions; see :meth:`zerosum_ext.Interactions.from_file`."""

    ids: bool | None = None
    shape: tuple[int, int] | None = None
    min_rating: float | None = None
    vocabulary: Vocabulary | None = None
    unknown: Unknown = "error"
    weights: str | None = None
    columns: dict[str, str | int | None] = field(default_factory=dict)


def plain(column: Column) -> np.ndarray:
    """Return a column as an array of numbers or text."""
    return column.words[column.codes] if isinstance(column, Coded) else column


def from_pairs(
    users: np.ndarray,
    items: np.ndarray,
    shape: tuple[int, int],
    columns: Mapping[str, np.ndarray],
    vocabulary: tuple[np.ndarray | None, np.ndarray | None],
    report: Report,
    weights: np.ndarray | None = None,
) -> Parts:
    """Return the set of valid 0-based pairs, sorted and merged. Of duplicates, the last row's columns stay.

    Args:
        users: int32 or int64 [n].
        items: int32 or int64 [n].
        shape: (num_users, num_items).
        columns: arrays [n].
        vocabulary: external ids of users and items.
        report: gets the number of rows merged.
        weights: [n], summed over duplicates.
    """
    if users.dtype != items.dtype:
        users, items = users.astype(np.int64), items.astype(np.int64)
    # (torch does not take an array that is read-only without a warning, and nothing here writes to it.)
    pair = [torch.from_numpy(side if side.flags.writeable else side.copy()) for side in (users, items)]
    indptr, indices, rows = _ops.csr_build(pair[0], pair[1], *shape)
    place = rows.numpy()
    merged = len(users) - len(place)
    if merged:
        report = replace(report, duplicates=report.duplicates + merged)
    out = {}
    for name in list(columns):
        values = columns.pop(name) if isinstance(columns, dict) else columns[name]
        out[name] = place if name == "row" and not len(values) else _placed_values(values, rows)
    if weights is not None:
        out["weights"] = _summed(weights, users, items, indptr, indices, place).astype(np.float32)
    return Parts(indptr, indices, shape, out, *vocabulary, report)


def _placed_values(values: np.ndarray, rows: torch.Tensor) -> np.ndarray:
    """The values of rows. torch takes half the time of NumPy, which makes 64 bits of the rows first, each time."""
    if values.dtype not in (np.float64, np.float32, np.int64, np.int32) or not values.flags.c_contiguous:
        taken: np.ndarray = values[rows.numpy()]
        return taken
    source = values
    if len(values) and not values.flags.writeable:  # torch warns of such memory; nothing here writes to it
        memory: Any = (ctypes.c_char * values.nbytes).from_address(values.ctypes.data)
        source = np.frombuffer(memory, values.dtype)
    return torch.from_numpy(source).index_select(0, rows).numpy()


def _summed(
    weights: np.ndarray,
    users: np.ndarray,
    items: np.ndarray,
    indptr: torch.Tensor,
    indices: torch.Tensor,
    place: np.ndarray,
) -> np.ndarray:
    """The sum of the weights of each pair's rows."""
    if len(place) == len(users):
        kept: np.ndarray = weights[place]
        return kept
    order = np.lexsort((items, users))  # the pairs in the order of the matrix, equal ones side by side
    sorted_users, sorted_items = users[order], items[order]
    first = np.ones(len(order), bool)
    first[1:] = (sorted_users[1:] != sorted_users[:-1]) | (sorted_items[1:] != sorted_items[:-1])
    return np.add.reduceat(weights[order].astype(np.float64), np.flatnonzero(first))


def index_tensor(items: np.ndarray, num_items: int) -> torch.Tensor:
    """Return indices of items as int32, or int64 where there are too many items for that."""
    return torch.from_numpy(items.astype(np.int32 if num_items < 2**31 else np.int64))


def too_sparse(shape: tuple[int, int], rows: int) -> str:
    """Return what is wrong with indices that would need tables larger than memory."""
    name = "users" if shape[0] > shape[1] else "items"
    return (
        f"{name}: {rows:,} rows have indices up to {max(shape) - 1}, and tables of all below would not fit in memory; "
        f"with {option('external ids')} only the ids that occur are numbered, and a shape says that they are meant"
    )


def from_table(source: str, table: Table, plan: Plan) -> tuple[Parts, bool]:
    """Return the interactions of a table, and whether its users and items are external ids.

    Args:
        source: for messages and the report; "" for arrays.
        table: users and items as ids (Coded) or indices (arrays), and further columns.
        plan: how they are read.

    Raises:
        ValueError: indices that are none, a column that is missing, ids that a vocabulary lacks.
    """
    users, items = table.columns.pop("user"), table.columns.pop("item")
    report = _report(source, table)
    external = not table.numbered if plan.ids is None else plan.ids
    vocabulary: Vocabulary
    keep: np.ndarray | None = None
    user: np.ndarray
    item: np.ndarray
    if plan.vocabulary is not None:
        user, item, vocabulary, keep = _placed(users, items, plan)
        new = [after - before for after, before in zip(vocabulary.shape, plan.vocabulary.shape, strict=True)]
        report = replace(report, new_users=new[0], new_items=new[1])
    elif external:
        if plan.shape is not None:
            raise ValueError("shape: only with ids=False; the ids that occur define it")
        coded = [
            side if isinstance(side, Coded) else _code(name, side)
            for name, side in (("users", users), ("items", items))
        ]
        user, item = coded[0].codes, coded[1].codes
        for one in coded:
            one.words.flags.writeable = False
        vocabulary = Vocabulary.trusted(coded[0].words, coded[1].words, (len(coded[0].words), len(coded[1].words)))
    else:
        user, item = _indices("user", users), _indices("item", items)
        vocabulary = Vocabulary.trusted(None, None, _shape(user, item, plan.shape))
        check_range("users", user, vocabulary.shape[0])
        check_range("items", item, vocabulary.shape[1])
    del users, items
    columns: dict[str, np.ndarray] = {}
    for name in list(table.columns):
        columns[name] = plain(table.columns.pop(name))
    if "row" in columns:
        raise ValueError("columns: the name 'row' is taken (the position in the source)")
    if plan.min_rating is not None:
        _check_rating(source, columns)
    weights = _weights(plan.weights, columns, len(user))
    if keep is not None and not keep.all():
        report = replace(report, unknown=int((~keep).sum()))
        user, item = user[keep], item[keep]
        columns = {name: values[keep] for name, values in columns.items()}
        weights = None if weights is None else weights[keep]
        columns["row"] = np.flatnonzero(keep).astype(np.int32 if len(keep) < 2**31 else np.int64)
    else:
        columns["row"] = np.zeros(0)  # the position itself, which from_pairs knows
    ids = (vocabulary.user_ids, vocabulary.item_ids)
    try:
        return from_pairs(user, item, vocabulary.shape, columns, ids, report, weights), external
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error) or external or max(vocabulary.shape) <= len(user):
            raise
        raise ValueError(too_sparse(vocabulary.shape, len(user))) from None


def _report(source: str, table: Table) -> Report:
    return Report(
        source,
        table.rows,
        bad_rows=table.bad_rows,
        bad_row_messages=table.bad_row_messages,
        notes=table.notes,
        comments=table.comments,
        empty_lists=table.empty_lists,
        columns=table.used,
        unread=table.unread,
        guesses=table.guesses,
    )


def _code(name: str, values: np.ndarray) -> Coded:
    return code(name, values)


def _placed(users: Column, items: Column, plan: Plan) -> tuple[np.ndarray, np.ndarray, Vocabulary, np.ndarray]:
    """Users and items by the number that a vocabulary gives them, and which rows it knows."""
    if plan.shape is not None:
        raise ValueError("shape: not with a vocabulary, which defines it")
    if plan.unknown not in ("error", "skip", "grow"):
        raise ValueError(f"unknown: expected 'error', 'skip' or 'grow', got {plan.unknown!r}")
    assert plan.vocabulary is not None
    coded = [
        side if isinstance(side, Coded) else _code(name, side) for name, side in (("users", users), ("items", items))
    ]
    user, grown = plan.vocabulary.place("user", coded[0], plan.unknown)
    item, grown = grown.place("item", coded[1], plan.unknown)
    keep = (user >= 0) & (item >= 0)
    if not keep.any():
        raise ValueError("no row is of a user and an item that the vocabulary knows")
    return user, item, grown, keep


def _indices(what: str, column: Column) -> np.ndarray:
    values = column.words if isinstance(column, Coded) else column
    if values.dtype.kind not in "iu" and len(values):
        raise ValueError(f"the {what}s are not integers, as ids=False needs; {option('external ids')} maps any ids")
    return plain(column).astype(np.int64, copy=False)


def _shape(users: np.ndarray, items: np.ndarray, shape: Any) -> tuple[int, int]:
    if shape is None:
        shape = (int(users.max(initial=-1)) + 1, int(items.max(initial=-1)) + 1)
        if max(shape) > max(2**32, 1000 * len(users)):  # only a table of all would show it, much later
            raise ValueError(too_sparse(shape, len(users)))
    if len(shape) != 2 or min(shape) < 0:
        raise ValueError(f"shape: expected (num_users, num_items), got {shape}")
    return int(shape[0]), int(shape[1])


def _check_rating(source: str, columns: Mapping[str, np.ndarray]) -> None:
    rating = columns.get("rating")
    if rating is None:
        where = f"{source} has" if source else "there is"
        raise ValueError(f"min_rating: {where} no rating column; name it with {column_option('rating')}")
    if rating.dtype.kind not in "iufb":
        raise ValueError(f"min_rating: the ratings of {source} are not numbers")


def _weights(name: str | None, columns: Mapping[str, np.ndarray], rows: int) -> np.ndarray | None:
    if name is None:
        return None
    if name == "count":
        return np.ones(rows, np.float32)
    values = columns.get(name)
    if values is None:
        have = ", ".join(columns) or "none"
        raise ValueError(f"weights: expected 'count' or the name of a column, {have}, got {name!r}")
    if values.dtype.kind not in "iufb":
        raise ValueError(f"weights: expected numbers, column {name!r} has {values.dtype}")
    bad = ~((values >= 0) & np.isfinite(values.astype(np.float64)))
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        raise ValueError(f"weights: expected finite numbers from 0, got {values[at]} in row {at} of {name!r}")
    return values
