"""Bring what metrics are given, arrays, tensors or sequences, to checked NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse


def as_array(values: Any, name: str) -> np.ndarray:
    """Return a NumPy view or copy of an array, tensor or sequence."""
    if isinstance(values, torch.Tensor):
        values = values.detach()
        if values.dtype in (torch.bfloat16, torch.float16):
            values = values.float()
        array: np.ndarray = values.cpu().numpy()
        return array
    result = np.asarray(values)
    if result.dtype == object:
        raise TypeError(f"{name}: expected numbers, got {type(values).__name__} of mixed or nested objects")
    return result


def as_integers(values: Any, name: str, ndim: int = 1) -> np.ndarray:
    result = as_array(values, name)
    if result.size == 0:
        result = result.astype(np.int64)
    if result.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {result.dtype}")
    if result.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimension(s), got shape {result.shape}")
    return result.astype(np.int64, copy=False)


def as_numbers(values: Any, name: str, ndim: int = 1) -> np.ndarray:
    result = as_array(values, name)
    if result.dtype.kind not in "iufb":
        raise TypeError(f"{name}: expected real numbers, got {result.dtype}")
    if result.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimension(s), got shape {result.shape}")
    result = result.astype(np.float64, copy=False)
    missing = np.isnan(result)
    if missing.any():
        where = tuple(int(x) for x in np.argwhere(missing)[0])
        raise ValueError(f"{name}: NaN at index {where if ndim > 1 else where[0]} ({int(missing.sum())} in all)")
    return result


def require_same_length(**arrays: np.ndarray) -> None:
    lengths = {name: len(a) for name, a in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError("expected one length, got " + ", ".join(f"{n} {v}" for n, v in lengths.items()))


def _matrix_counts(matrix: Any) -> np.ndarray:
    """Count interactions per item of a scipy matrix [users, items]: a pair counts once, a stored zero not at all."""
    entries = matrix.tocoo()
    users, items, values = entries.row, entries.col, entries.data
    bad = np.flatnonzero(~(values >= 0)) if values.dtype != bool else np.zeros(0, np.int64)
    if bad.size:
        at = bad[0]
        raise ValueError(
            f"popularity: the value at user {users[at]}, item {items[at]} is {values[at]}, expected none below zero "
            "and no NaN; keep only the entries that mean an interaction"
        )
    kept = values != 0
    num_items = int(matrix.shape[1])
    pairs = np.unique(users[kept].astype(np.int64) * num_items + items[kept])
    return np.bincount(pairs % max(num_items, 1), minlength=num_items)


def popularity_counts(popularity: Any) -> np.ndarray:
    """Return interaction counts per item, float64 [num_items], from an array of counts or an interaction matrix."""
    if sparse.issparse(popularity):
        popularity = _matrix_counts(popularity)
    elif hasattr(popularity, "popularity"):
        popularity = popularity.popularity
    counts = as_numbers(popularity, "popularity")
    if counts.size and not (counts.min() >= 0 and counts.max() < np.inf):  # (NaN is in no order)
        raise ValueError("popularity: expected finite counts >= 0")
    return counts


def as_positives(
    users: Any, items: Any, scores: Any, popularity: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    u, i, s = as_integers(users, "users"), as_integers(items, "items"), as_numbers(scores, "scores")
    counts = popularity_counts(popularity)
    require_same_length(users=u, items=i, scores=s)
    if i.size and (i.min() < 0 or i.max() >= counts.size):
        bad = int(i.min()) if i.min() < 0 else int(i.max())
        raise ValueError(f"items: {bad} is out of range for a popularity of {counts.size} items")
    return u, i, s, counts


def as_cutoff(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
        raise TypeError(f"k: expected an int, got {type(k).__name__}")
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    return int(k)


def require_tail_mass(tail_mass: float) -> None:
    if not 0 <= tail_mass <= 1:
        raise ValueError(f"tail_mass: expected a share between 0 and 1, got {tail_mass}")
