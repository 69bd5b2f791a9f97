"""Users as consecutive numbers, and ranks and correlations within each."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from zerosum_ext._checks import require_choice
from zerosum_ext.metrics import tensors


def groups_of(users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (group of each entry, entries per group); groups are the distinct users in ascending order."""
    if users.size and np.all(users[1:] >= users[:-1]):  # the usual case, without a sort
        group = np.concatenate(([0], np.cumsum(users[1:] != users[:-1])))
    else:
        group = np.unique(users, return_inverse=True)[1].reshape(-1)
    return group, np.bincount(group)


def tie_blocks(group: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Order entries by (group, value) and find the runs of equal ones.

    Returns:
        (order, run of each ordered entry, first place of each run within its group, entries of each run).
    """
    order = np.lexsort((values, group))
    g, v = group[order], values[order]
    change = g[1:] != g[:-1]
    new_group = np.concatenate((np.ones(min(1, g.size), bool), change))
    new_run = np.concatenate((np.ones(min(1, g.size), bool), change | (v[1:] != v[:-1])))
    starts = np.flatnonzero(new_run)
    sizes = np.diff(np.append(starts, g.size))
    group_start = np.flatnonzero(new_group)[np.cumsum(new_group)[starts] - 1]
    return order, np.cumsum(new_run) - 1, starts - group_start, sizes


def group_ranks(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return 1-based ascending ranks of values within each group; ties get the mean of the places they fill."""
    order, run, start, size = tie_blocks(group, values)
    ranks = np.empty(values.size)
    ranks[order] = (start + (size + 1) / 2)[run]
    return ranks


def group_spearman(group: np.ndarray, sizes: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of x and y within each group; NaN where x or y is constant."""
    middle = ((sizes + 1) / 2)[group]  # the mean of average ranks, exactly
    rx, ry = group_ranks(group, x) - middle, group_ranks(group, y) - middle
    n = sizes.size
    xy, xx, yy = (np.bincount(group, weights=w, minlength=n) for w in (rx * ry, rx * rx, ry * ry))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation: np.ndarray = xy / np.sqrt(xx * yy)
    return correlation


def mean_of_known_values(values: np.ndarray) -> float:
    return float(tensors.mean_of_known(torch.tensor(values, dtype=torch.float64)))


def users_with(u: np.ndarray, min_positives: int, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return (group, sizes, *others) of the entries whose users have at least min_positives entries."""
    if min_positives < 2:
        raise ValueError(f"min_positives: expected at least 2 (a rank among one is no rank), got {min_positives}")
    group, sizes = groups_of(u)
    wanted = sizes[group] >= min_positives
    group, sizes = groups_of(group[wanted])
    return group, sizes, *(x[wanted] for x in others)


def reduced(values: np.ndarray, reduction: str) -> Any:
    require_choice("reduction", reduction, ("mean", "none"))
    return values if reduction == "none" else mean_of_known_values(values)
