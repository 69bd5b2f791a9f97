"""Filters that users run before a split: rare users and items, low ratings, each user's latest."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np

from zerosum_ext import _checks
from zerosum_ext._types import InteractionRows
from zerosum_ext.data.splits import from_end

__all__ = ["binarise", "filter_items", "k_core", "keep_last"]

Rows = TypeVar("Rows", bound=InteractionRows)


def filter_items(data: Rows, min_count: int) -> Rows:
    """See :meth:`zerosum_ext.Interactions.filter_items`."""
    if min_count < 0:
        raise ValueError(f"min_count: expected a number from 0, got {min_count}")
    counts = data.popularity.cpu().numpy()
    frequent = counts >= max(min_count, 1)
    keep = frequent[data.indices.cpu().numpy()]
    report = replace(
        data.report,
        rare_items=data.report.rare_items + int((~frequent & (counts > 0)).sum()),
        rare_item_interactions=data.report.rare_item_interactions + int((~keep).sum()),
    )
    if not keep.any():
        raise ValueError(
            f"min_count: no item has {min_count} interactions (the most popular has {counts.max(initial=0)})"
        )
    return data.take(keep, report).drop_empty()


def k_core(data: Rows, min_user: int, min_item: int) -> Rows:
    """See :meth:`zerosum_ext.Interactions.k_core`."""
    min_user = _checks.require_positive_int("min_user", min_user)
    min_item = _checks.require_positive_int("min_item", min_item)
    users, items = (side.cpu().numpy() for side in data.pairs())
    keep = np.ones(data.nnz, bool)
    lost_users = lost_items = 0
    while True:
        few = np.bincount(users[keep], minlength=data.num_users) < min_user
        gone = keep & few[users]
        lost_users += int(gone.sum())
        keep &= ~gone
        rare = np.bincount(items[keep], minlength=data.num_items) < min_item
        gone = keep & rare[items]
        lost_items += int(gone.sum())
        keep &= ~gone
        if not gone.any():
            break
    if not keep.any():
        raise ValueError(
            f"min_user, min_item: nothing is left of {data.nnz:,} interactions with {min_user} a user and "
            f"{min_item} an item"
        )
    report = replace(
        data.report,
        rare_users=data.report.rare_users + int(few[np.unique(users)].sum()),
        rare_user_interactions=data.report.rare_user_interactions + lost_users,
        rare_items=data.report.rare_items + int(rare[np.unique(items)].sum()),
        rare_item_interactions=data.report.rare_item_interactions + lost_items,
    )
    kept = data.take(keep, report).drop_empty()
    # Those users are counted as rare already.
    return kept.with_report(replace(kept.report, emptied_users=data.report.emptied_users))


def binarise(data: Rows, min_rating: float | None, drop_empty: bool) -> Rows:
    """See :meth:`zerosum_ext.Interactions.binarise`."""
    columns = {name: values for name, values in data.columns.items() if name not in ("rating", "weights")}
    if min_rating is None:
        return data.with_columns(columns)
    rating = data.column("min_rating", "rating")
    if rating.dtype.kind not in "iufb":
        raise ValueError(f"min_rating: the ratings are not numbers but {rating.dtype}")
    keep = rating >= min_rating
    report = replace(data.report, low_ratings=data.report.low_ratings + int((~keep).sum()))
    kept = data.with_columns(columns).take(keep, report)
    return kept.drop_empty() if drop_empty else kept


def keep_last(data: Rows, count: int, by: str | None) -> Rows:
    """See :meth:`zerosum_ext.Interactions.keep_last`."""
    count = _checks.require_positive_int("count", count)
    after, _, note = from_end(data, by)
    keep = after < count
    report = replace(
        data.report,
        early_interactions=data.report.early_interactions + int((~keep).sum()),
        notes=(*data.report.notes, note),
    )
    return data.take(keep, report)
