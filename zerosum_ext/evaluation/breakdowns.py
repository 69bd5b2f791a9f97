"""Metrics of parts: by groups of users, and by the popularity of items."""

from __future__ import annotations

from typing import Any

import numpy as np

from zerosum_ext._checks import require_positive_int
from zerosum_ext._types import ArrayLike, Ties
from zerosum_ext.evaluation.ranking import Ranking
from zerosum_ext.evaluation.sources import Popularity
from zerosum_ext.evaluation.table import compute
from zerosum_ext.metrics import inputs
from zerosum_ext.metrics.inputs import popularity_counts
from zerosum_ext.metrics.ranking import positive_ranks


def by_group(
    ranking: Ranking, groups: ArrayLike, popularity: Popularity, **options: Any
) -> dict[Any, dict[str, float]]:
    """Compute the metrics for each group of users, in ascending order of the groups.

    Args:
        ranking, popularity, options: as in :func:`compute`.
        groups: [num_users], the group of each user: integers or text.
    """
    # (A list of text and NaN would become text alone.)
    labels = np.asarray(groups, object) if isinstance(groups, (list, tuple)) else np.asarray(groups)
    if labels.shape != (ranking.num_users,):
        raise ValueError(f"groups: expected shape ({ranking.num_users},), got {labels.shape}")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise ValueError(f"groups: user {int(np.flatnonzero(np.isnan(labels))[0])} has none: NaN is no group")
    if labels.dtype.kind == "O":
        for user, label in enumerate(labels.tolist()):
            if label is None or label != label:
                raise ValueError(f"groups: user {user} has none: {label!r} is no group")
        try:
            labels = np.array(labels.tolist())
        except ValueError:
            raise ValueError("groups: expected integers or text, one for each user") from None
        if labels.shape != (ranking.num_users,) or labels.dtype.kind not in "iubU":
            raise ValueError(f"groups: expected integers or text, one for each user, got {labels.dtype}")
    return {
        label.item(): compute(ranking.select(labels == label), popularity, **options) for label in np.unique(labels)
    }


def by_popularity(
    ranking: Ranking, popularity: Popularity, *, bins: int = 10, k: int = 10, ties: Ties = "average"
) -> dict[str, np.ndarray]:
    """Return how items fare by their popularity: ten deciles of items, the most popular first.

    Deciles hold equally many items (to within one); items of equal popularity are in order of their numbers.

    Args:
        ranking: of :func:`rank`, whose k is at least ``k``.
        popularity: interaction counts [num_items], or an interaction matrix.
        bins: how many parts, ten for deciles.
        k, ties: as in :func:`compute`.

    Returns:
        Arrays [bins]: ``popularity`` (mean count of the items), ``positives`` (held-out positives), ``recall`` (share
        of these with a rank <= k; NaN without any) and ``exposure`` (share of all places in the users' first k).
    """
    bins, k = require_positive_int("bins", bins), inputs.as_cutoff(k)
    counts = popularity_counts(popularity)
    if counts.size != ranking.num_items:
        raise ValueError(f"popularity: expected {ranking.num_items} items, got {counts.size}")
    if k > ranking.top_items.shape[1] < ranking.num_items:
        raise ValueError(f"ranking: keeps {ranking.top_items.shape[1]} items per user, k is {k}")
    part = np.empty(counts.size, np.int64)
    part[np.argsort(-counts, kind="stable")] = np.arange(counts.size) * bins // max(1, counts.size)
    users = ranking.positive_users
    ranks = positive_ranks(users, ranking.scores, ranking.greater, ranking.equal, ties)
    positives = np.bincount(part[ranking.items], minlength=bins)
    hits = np.bincount(part[ranking.items], weights=ranks <= k, minlength=bins)
    lists = ranking.top_items[:, :k]
    places = np.bincount(part[lists[lists >= 0]], minlength=bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "popularity": np.bincount(part, weights=counts, minlength=bins) / np.bincount(part, minlength=bins),
            "positives": positives,
            "recall": hits / positives,
            "exposure": places / places.sum(),
        }
