"""Metrics of pairs of a positive and a negative."""

from __future__ import annotations

from typing import Any

import numpy as np

from zerosum_ext._types import MetricReduction
from zerosum_ext.metrics.groups import groups_of, reduced, tie_blocks
from zerosum_ext.metrics.inputs import as_array, as_integers, as_numbers, require_same_length


def _pair_counts(users: Any, labels: Any, scores: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return, per user, (pairs ranked right, tied pairs, positives, negatives)."""
    u, s = as_integers(users, "users"), as_numbers(scores, "scores")
    y = as_array(labels, "labels")
    if y.ndim != 1 or (y.dtype != bool and not np.isin(y, (0, 1)).all()):
        raise ValueError(f"labels: expected booleans or 0/1 of one dimension, got {y.dtype} {y.shape}")
    y = y.astype(bool)
    require_same_length(users=u, labels=y, scores=s)
    group, sizes = groups_of(u)
    n = sizes.size
    order, run, _, _ = tie_blocks(group, s)
    negative = ~y[order]
    before = np.cumsum(negative) - negative  # negatives of any user ahead of this entry
    first = np.cumsum(sizes) - sizes
    run_start = np.flatnonzero(np.concatenate((np.ones(min(1, run.size), bool), run[1:] != run[:-1])))
    run_negatives = np.add.reduceat(negative, run_start) if run.size else np.zeros(0, np.int64)
    g = group[order]
    below = before[run_start][run] - before[first][g]
    pos = ~negative
    right = np.bincount(g[pos], weights=below[pos], minlength=n)
    tied = np.bincount(g[pos], weights=run_negatives[run][pos], minlength=n)
    positives = np.bincount(group, weights=y, minlength=n)
    return right, tied, positives, sizes - positives


def pairwise_accuracy(users: Any, labels: Any, scores: Any) -> float:
    """Return the fraction of (positive, negative) pairs of one user with score(positive) > score(negative).

    The error that [RCS22] reports is one minus this. Range 0 to 1, ideal 1; a tie is not right.

    Args:
        users: integers [N], the user of each scored entry.
        labels: bool [N], whether the entry is a positive.
        scores: numbers [N].
    """
    right, _, positives, negatives = _pair_counts(users, labels, scores)
    pairs = float(positives @ negatives)
    return float(right.sum() / pairs) if pairs else float("nan")


def auc(users: Any, labels: Any, scores: Any, *, reduction: MetricReduction = "mean") -> Any:
    """Return the area under each user's ROC curve, the share of pairs ranked right; mean over users.

    A tie counts one half.

    Users without a positive or without a negative have no value: left out of the mean, NaN with
    ``reduction="none"``. Range 0 to 1, ideal 1, .5 for a random order [BPR09]. Arguments as in
    :func:`pairwise_accuracy`.
    """
    right, tied, positives, negatives = _pair_counts(users, labels, scores)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = (right + tied / 2) / (positives * negatives)
    return reduced(values, reduction) if reduction == "none" else reduced(values[~np.isnan(values)], reduction)
