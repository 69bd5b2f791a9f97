"""Accuracy by popularity: recall of the head, the middle and the tail, and recall and NDCG weighted by propensities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from zerosum_ext._checks import require_finite_number
from zerosum_ext._types import MetricReduction
from zerosum_ext.metrics import tensors
from zerosum_ext.metrics.groups import groups_of, reduced
from zerosum_ext.metrics.inputs import (
    as_cutoff,
    as_integers,
    as_numbers,
    popularity_counts,
    require_same_length,
    require_tail_mass,
)

#: The parts of the catalogue, by the numbers that :func:`popularity_groups` gives them.
GROUPS = ("head", "mid", "tail")


def popularity_groups(popularity: Any, tail_mass: float = 0.2) -> np.ndarray:
    """Return the part of the catalogue that each item belongs to: 0 the head, 1 the middle, 2 the tail.

    The tail is :func:`zerosum_ext.metrics.long_tail`. The head is the smallest set of the most popular items that have
    at least a share ``tail_mass`` of all interactions. Items of equal popularity are in one part.

    Args:
        popularity: interaction counts [num_items], or an interaction matrix.
        tail_mass: share of the interactions, 0 to 1. From .5 on there is no middle.

    Returns:
        int64 [num_items].
    """
    counts = popularity_counts(popularity)
    require_tail_mass(tail_mass)
    return tensors.popularity_groups(torch.tensor(counts), tail_mass).numpy()


def propensities(popularity: Any, exponent: float = 0.5) -> np.ndarray:
    """Return (popularity / largest popularity)^exponent, the chance that a preference for an item is observed [SAI20].

    An item without interactions counts as the rarest of the others.

    Args:
        popularity: interaction counts [num_items], or an interaction matrix.
        exponent: .5 in [SAI20]. 0 makes all alike.

    Returns:
        float64 [num_items], in (0, 1] for an exponent >= 0.
    """
    exponent = require_finite_number("exponent", exponent)
    return tensors.propensities(torch.tensor(popularity_counts(popularity)), exponent).numpy()


def _weighted(users: Any, ranks: Any, weights: Any, k: int) -> tuple[torch.Tensor, ...]:
    """Return (ranks, weights, group of each entry, entries per group), checked."""
    u, r, w = as_integers(users, "users"), as_numbers(ranks, "ranks"), as_numbers(weights, "weights")
    require_same_length(users=u, ranks=r, weights=w)
    if r.size and not r.min() >= 1:
        raise ValueError(f"ranks: expected at least 1, got {r.min()}")
    if w.size and not (w.min() >= 0 and w.max() < np.inf):
        raise ValueError("weights: expected finite numbers >= 0")
    as_cutoff(k)
    group, sizes = groups_of(u)
    return tuple(torch.from_numpy(np.ascontiguousarray(x)) for x in (r, w, group, sizes))


def weighted_recall(users: Any, ranks: Any, weights: Any, k: int = 10, *, reduction: MetricReduction = "mean") -> Any:
    """Return Recall@k of weighted positives: the weight of those with rank <= k over that of all; mean over users.

    With weights 1 / :func:`propensities` it is the self-normalised estimate (SNIPS) of the recall over all that a user
    likes, seen or not [YAN18]. With weights 1 for the items of a part of the catalogue, and 0 for the others, it is the
    recall of that part. Users whose weights are all 0 are left out. Range 0 to 1, ideal 1 where k >= n_u.

    Args:
        users: integers [P], in any order.
        ranks: numbers [P], the places of the positives in their users' rankings, from 1.
        weights: numbers [P] >= 0.
        k: the cut-off.
        reduction: "mean", or "none" for one value a user (NaN without weight), in ascending order of users.
    """
    r, w, group, sizes = _weighted(users, ranks, weights, k)
    values = tensors.weighted_recall(r, w, group, sizes.numel(), k).numpy()
    return reduced(values, reduction) if reduction == "none" else reduced(values[~np.isnan(values)], reduction)


def weighted_ndcg(users: Any, ranks: Any, weights: Any, k: int = 10, *, reduction: MetricReduction = "mean") -> Any:
    """Return NDCG@k with the weights as gains; mean over users.

    The sum of weight / log2(rank + 1) over ranks <= k, divided by the largest that the user's weights can reach: in
    descending order on the ranks 1, 2, ... . With weights 1 / :func:`propensities` it is the self-normalised estimate
    (SNIPS) [YAN18]. Range 0 to 1, ideal 1. Arguments as in :func:`weighted_recall`.
    """
    r, w, group, sizes = _weighted(users, ranks, weights, k)
    values = tensors.weighted_ndcg(r, w, group, sizes, k).numpy()
    return reduced(values, reduction) if reduction == "none" else reduced(values[~np.isnan(values)], reduction)
