"""How interactions are divided into (train, valid, test). Every part has the shape and ids of the whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from zerosum_ext import _checks
from zerosum_ext._types import InteractionRows
from zerosum_ext.data.wording import column_option

__all__ = ["balanced", "by_column", "by_time", "folds", "from_end", "last", "last_share", "random"]

Rows = TypeVar("Rows", bound=InteractionRows)


def _ratios(ratios: Sequence[float]) -> tuple[float, ...]:
    numbers = tuple(float(r) for r in ratios)
    if len(numbers) not in (2, 3) or not all(0 <= r <= 1 for r in numbers) or abs(sum(numbers) - 1) > 1e-6:
        raise ValueError(f"ratios: expected two or three numbers from 0 to 1 that sum to 1, got {numbers}")
    return numbers


def _parts(data: Rows, part: np.ndarray, note: str | None = None) -> tuple[Rows, Rows, Rows]:
    """The interactions by the number of their part: 0 train, 1 valid, 2 test."""
    report = data.report
    if note is not None:
        report = replace(report, notes=(*report.notes, note))
    train, valid, test = (data.take(part == code, report) for code in range(3))
    return train, valid, test


def random(data: Rows, ratios: Sequence[float], seed: int) -> tuple[Rows, Rows, Rows]:
    """See :meth:`zerosum_ext.Interactions.split_random`."""
    numbers = _ratios(ratios)
    if seed < 0:
        raise ValueError(f"seed: expected a number from 0, got {seed}")
    order = np.random.default_rng(seed).permutation(data.nnz)
    cuts = [round(data.nnz * numbers[0]), round(data.nnz * sum(numbers[:-1]))]
    part = np.empty(data.nnz, np.int8)
    for code, chosen in enumerate(np.split(order, cuts)):  # with two ratios both cuts are one: valid is empty
        part[chosen] = code
    return _parts(data, part)


def balanced(data: Rows, ratios: Sequence[float], seed: int, most: float) -> tuple[Rows, Rows, Rows]:
    """See :meth:`zerosum_ext.Interactions.split_balanced`."""
    numbers = _ratios(ratios)
    if seed < 0:
        raise ValueError(f"seed: expected a number from 0, got {seed}")
    if not 0 < most <= 1:
        raise ValueError(f"most: expected a share above 0 and up to 1, got {most}")
    rng = np.random.default_rng(seed)
    items = data.indices.cpu().numpy().astype(np.int64)
    counts = np.bincount(items, minlength=data.num_items)
    quota = _even_quotas(np.floor(counts * most + 1e-9).astype(np.int64), round(data.nnz * (1 - numbers[0])), rng)
    # The first interactions of each item in a random order.
    order = rng.permutation(data.nnz)
    order = order[np.argsort(items[order], kind="stable")]
    place = np.arange(data.nnz) - (np.cumsum(counts) - counts)[items[order]]
    held = order[place < quota[items[order]]]
    part = np.zeros(data.nnz, np.int8)
    part[held] = 2
    valid = round(data.nnz * numbers[1]) if len(numbers) == 3 else 0
    part[rng.permutation(held)[: min(valid, held.size)]] = 1
    note = f"test part balanced over items: at most {int(quota.max(initial=0))} of each, and a share of {most:g}"
    return _parts(data, part, note)


def _even_quotas(limits: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Divide a number among items as evenly as their limits allow; the rest of one each goes to items at random."""
    if wanted > limits.sum():
        raise ValueError(
            f"ratios: expected at most {int(limits.sum()):,} interactions to hold out with this share of each item, "
            f"got {wanted:,}"
        )
    ordered = np.sort(limits)
    below = np.concatenate(([0], np.cumsum(ordered)))
    # With all limits up to the j-th used whole, the others share what is left.
    j = np.arange(limits.size)
    reached = below[:-1] + ordered * (limits.size - j)  # by a level as high as the j-th limit
    first = int(np.searchsorted(reached, wanted))
    if first == limits.size:
        return np.array(limits)
    level, rest = divmod(int(wanted - below[first]), limits.size - first)
    quota: np.ndarray = np.minimum(limits, level)
    open_items = np.flatnonzero(limits > level)
    quota[rng.permutation(open_items)[:rest]] += 1
    return quota


def folds(data: Rows, count: int, seed: int) -> Iterator[tuple[Rows, Rows, Rows]]:
    """See :meth:`zerosum_ext.Interactions.folds`."""
    count = _checks.require_positive_int("k", count, minimum=2)
    if count > data.nnz:
        raise ValueError(f"k: expected at most {data.nnz}, the number of interactions, got {count}")
    if seed < 0:
        raise ValueError(f"seed: expected a number from 0, got {seed}")
    fold = np.empty(data.nnz, np.int64)
    fold[np.random.default_rng(seed).permutation(data.nnz)] = np.arange(data.nnz) % count

    def each() -> Iterator[tuple[Rows, Rows, Rows]]:
        for number in range(count):
            yield _parts(data, np.where(fold == number, 2, 0), f"fold {number + 1} of {count}")

    return each()


def _order_column(data: InteractionRows, by: str | None) -> tuple[str, np.ndarray, str]:
    """Which column the order goes by, its values as numbers, and a note of it."""
    note = f"last by {by}"
    if not by:
        by = next((name for name in ("order", "timestamp", "row") if name in data.columns), None)
        note = "no column of times was recognised: last by the order of rows" if by == "row" else f"last by {by}"
    if by is None:
        raise ValueError(
            "by: these interactions have no order; leave-last-out needs a column order or timestamp, or rows of a "
            "file or of arrays"
        )
    values = data.column("by", by)
    if values.dtype.kind == "U":
        with contextlib.suppress(ValueError):  # other text is in the order of text
            values = values.astype(np.float64)
    if values.dtype.kind in "fM" and np.isnan(values).any():
        row = int(np.flatnonzero(np.isnan(values))[0])
        user = int(np.searchsorted(data.indptr.cpu().numpy(), row, side="right")) - 1
        who, what = data.decode_users(user), data.decode_items(data.indices[row])
        raise ValueError(f"by: column {by!r} has no value for user {who}, item {what}")
    return by, values, note


def from_end(data: InteractionRows, by: str | None) -> tuple[np.ndarray, np.ndarray, str]:
    """Return how many of the user's interactions come after each one, the number of each one's user's, and a note."""
    by, values, note = _order_column(data, by)
    keys = [values]
    if "row" in data.columns and by != "row":
        keys.insert(0, data.columns["row"])
    counts = np.diff(data.indptr.cpu().numpy())
    users = np.repeat(np.arange(data.num_users), counts)
    order = np.lexsort((*keys, users))
    after = np.empty(data.nnz, np.int64)
    after[order] = np.repeat(np.cumsum(counts), counts) - 1 - np.arange(data.nnz)
    return after, counts[users], note


def last(data: Rows, by: str | None, test: int, valid: int) -> tuple[Rows, Rows, Rows]:
    """See :meth:`zerosum_ext.Interactions.split_last`."""
    if test < 1 or valid < 0:
        raise ValueError(f"test, valid: expected at least 1 and 0 interactions, got {test} and {valid}")
    after, of_user, note = from_end(data, by)
    part = np.where(after < test, 2, np.where(after < test + valid, 1, 0))
    part[of_user <= test + valid] = 0
    return _parts(data, part, note)


def last_share(data: Rows, ratios: Sequence[float], by: str | None) -> tuple[Rows, Rows, Rows]:
    """See :meth:`zerosum_ext.Interactions.split_last_share`."""
    numbers = _ratios(ratios)
    after, of_user, note = from_end(data, by)
    test = np.round(of_user * numbers[-1])
    held_out = np.round(of_user * (1 - numbers[0]))
    part = np.where(after < test, 2, np.where(after < held_out, 1, 0))
    part[(of_user == 1) | (held_out >= of_user)] = 0  # so that each user can be learnt
    return _parts(data, part, note)


def by_time(
    data: Rows, ratios: Sequence[float] | None, cuts: Sequence[float] | None, by: str | None
) -> tuple[Rows, Rows, Rows]:
    """See :meth:`zerosum_ext.Interactions.split_time`."""
    if (ratios is None) == (cuts is None):
        raise ValueError("ratios, cuts: expected one of them")
    name = by or next((name for name in ("timestamp", "order") if name in data.columns), None)
    if name is None:
        raise ValueError(
            f"these interactions have no times to split by; say which column has them: {column_option('timestamp')}"
        )
    _, values, _ = _order_column(data, name)
    if values.dtype.kind not in "iufM":
        raise ValueError(f"by: expected times as numbers, column {name!r} holds text")
    if ratios is not None:
        numbers = _ratios(ratios)
        ordered = np.sort(values)
        wanted = (round(data.nnz * numbers[0]), round(data.nnz * sum(numbers[:-1])))
        # What happened at one moment is in one part: each cut moves to the next moment.
        limits: list[Any] = [ordered[min(max(at, 1), data.nnz) - 1] for at in wanted] if data.nnz else [0, 0]
        part = np.where(values <= limits[0], 0, np.where(values <= limits[1], 1, 2))
        note = f"by {name}: train up to {limits[0]}, test after {limits[1]}"
    else:
        limits = sorted(cuts or ())
        if len(limits) not in (1, 2):
            raise ValueError(f"cuts: expected one or two times, got {len(limits)}")
        part = np.where(values < limits[0], 0, np.where(values < limits[-1], 1, 2))
        note = f"by {name}: train before {limits[0]}, test from {limits[-1]}"
    return _parts(data, part, note)


def by_column(data: Rows, column: str, train: Any, valid: Any, test: Any) -> tuple[Rows, Rows, Rows]:
    """See :meth:`zerosum_ext.Interactions.split_by`."""
    values = data.column("column", column)
    part = np.full(data.nnz, -1, np.int64)
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
    return _parts(data, part)
