"""Popularity-opportunity bias: whether a user's popular positive outranks a less popular one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from zerosum_ext._types import MetricReduction
from zerosum_ext.metrics import tensors
from zerosum_ext.metrics.groups import group_ranks, group_spearman, reduced, users_with
from zerosum_ext.metrics.inputs import as_integers, as_numbers, as_positives, require_same_length


def average_ranks(users: Any, items: Any, scores: Any, min_positives: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return the average rank quantile r(i) of each item among the positives of those who have it [RCS22 eq. 2].

    r(i) is the mean over users of (rank of i by descending score among the user's evaluated positives - 1) /
    (n_u - 1): 0 is always a user's top, 1 always the bottom, .5 as good as any other. Equal scores share their
    average rank; users with fewer than ``min_positives`` evaluated positives are left out.

    Args:
        users, items: integers [P].
        scores: numbers [P].
        min_positives: users with fewer positives do not take part.

    Returns:
        (items that take part, ascending, int64 [m]; their r(i), float64 [m]).
    """
    u, i, s = as_integers(users, "users"), as_integers(items, "items"), as_numbers(scores, "scores")
    require_same_length(users=u, items=i, scores=s)
    if i.size and i.min() < 0:
        raise ValueError(f"items: expected indices from 0, got {i.min()}")
    group, sizes, i, s = users_with(u, min_positives, i, s)
    quantile = torch.from_numpy((group_ranks(group, -s) - 1) / (sizes[group] - 1))
    everyone = torch.ones(i.size, dtype=torch.bool)
    number, means = tensors.mean_by_item(torch.from_numpy(i), quantile, everyone, int(i.max(initial=-1)) + 1)
    distinct = np.flatnonzero(number.numpy())
    return distinct, means.numpy()[distinct]


def pri(users: Any, items: Any, scores: Any, popularity: Any, min_positives: int = 2) -> float:
    """Return the popularity-rank correlation over items, -Spearman(popularity(i), r(i)) [RCS22 eq. 2].

    r(i) is that of :func:`average_ranks`, from the users with at least ``min_positives`` evaluated positives.
    Range -1 to 1: 1 means that popular items are on top, 0 is ideal. Equal scores share their average rank.

    Args:
        users, items: integers [P].
        scores: numbers [P].
        popularity: interaction counts [num_items], or an interaction matrix.
        min_positives: users with fewer positives do not take part.
    """
    u, i, s, counts = as_positives(users, items, scores, popularity)
    group, sizes, i, s = users_with(u, min_positives, i, s)
    quantile = torch.from_numpy((group_ranks(group, -s) - 1) / (sizes[group] - 1))
    everyone = torch.ones(i.size, dtype=torch.bool)
    return float(tensors.pri_of_quantiles(torch.from_numpy(i), quantile, everyone, torch.tensor(counts)))


def pop_q_at_1(
    users: Any,
    items: Any,
    scores: Any,
    popularity: Any,
    min_positives: int = 5,
    *,
    reduction: MetricReduction = "mean",
) -> Any:
    """Return the popularity quantile of each user's top positive [RCS22 eq. 3].

    For a user with at least ``min_positives`` evaluated positives: (rank by descending popularity, among
    these positives, of the one with the highest score - 1) / (n_u - 1). Of equal scores the first in the
    given order is the top; equal popularities share their average rank. Range 0 to 1: 0 means that the top is
    the most popular one, .5 is ideal.

    Returns a float, or with ``reduction="none"`` one value per user taking part, in ascending order of users.
    """
    u, i, s, counts = as_positives(users, items, scores, popularity)
    group, sizes, i, s = users_with(u, min_positives, i, s)
    rank = group_ranks(group, -counts[i])
    order = np.lexsort((-s, group))  # stable: the first of equal scores comes first
    top = order[np.cumsum(sizes) - sizes]
    return reduced((rank[top] - 1) / (sizes - 1), reduction)


def upo(
    users: Any,
    items: Any,
    scores: Any,
    popularity: Any,
    min_positives: int = 4,
    *,
    reduction: MetricReduction = "mean",
) -> Any:
    """Return the mean over users of Spearman(popularity, score) within the user's evaluated positives [RCS22].

    Users with at least ``min_positives`` positives take part; where the correlation is undefined (constant
    scores or popularities) it counts as 0. Range -1 to 1, ideal 0.

    Returns a float, or with ``reduction="none"`` one value per user taking part, in ascending order of users.
    """
    u, i, s, counts = as_positives(users, items, scores, popularity)
    group, sizes, i, s = users_with(u, min_positives, i, s)
    return reduced(np.nan_to_num(group_spearman(group, sizes, counts[i], s), nan=0.0), reduction)


def pru(
    users: Any,
    items: Any,
    scores: Any,
    popularity: Any,
    min_positives: int = 2,
    *,
    reduction: MetricReduction = "mean",
) -> Any:
    """Return the popularity-rank correlation for users, the mean over users of -Spearman(popularity, rank) [ZHU21].

    The rank is the positive's place in the user's ranking; only its order among the user's positives matters,
    so scores are what is asked for. Unlike :func:`upo`, users whose correlation is undefined are left out of
    the mean. Range -1 to 1: 1 means that popular items are on top, 0 is ideal.

    Returns a float, or with ``reduction="none"`` one value (NaN where undefined) per user taking part, in
    ascending order of users.
    """
    u, i, s, counts = as_positives(users, items, scores, popularity)
    group, sizes, i, s = users_with(u, min_positives, i, s)
    values = group_spearman(group, sizes, counts[i], s)
    return reduced(values, reduction) if reduction == "none" else reduced(values[~np.isnan(values)], reduction)


def pcc(users: Any, items: Any, scores: Any, popularity: Any, min_positives: int = 2) -> float:
    """Return Pearson's correlation of popularity and score, pooled over evaluated positives [RCS22].

    Only positives of users who have at least ``min_positives`` of them take part. Range -1 to 1, ideal 0.
    Scores must be finite.
    """
    u, i, s, counts = as_positives(users, items, scores, popularity)
    _, _, i, s = users_with(u, min_positives, i, s)
    if np.isinf(s).any():
        raise ValueError("scores: expected finite numbers for a Pearson correlation, got an infinite one")
    x, y = torch.from_numpy(counts[i]), torch.from_numpy(s)
    return float(tensors.pearson(x, y, torch.ones(s.size, dtype=torch.bool)))
