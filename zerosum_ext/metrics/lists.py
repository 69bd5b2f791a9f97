"""What lists of recommended items expose."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from zerosum_ext._types import MetricReduction
from zerosum_ext.metrics import tensors
from zerosum_ext.metrics.groups import reduced
from zerosum_ext.metrics.inputs import as_integers, popularity_counts, require_tail_mass


def _lists(recommended: Any, num_items: int) -> np.ndarray:
    lists = as_integers(recommended, "recommended", ndim=2)
    if lists.size and (lists.min() < -1 or lists.max() >= num_items):
        bad = int(lists.max()) if lists.max() >= num_items else int(lists.min())
        raise ValueError(f"recommended: item {bad} is out of range for {num_items} items (-1 is padding)")
    return lists


def _exposure(recommended: Any, num_items: int) -> torch.Tensor:
    lists = _lists(recommended, num_items)
    return torch.from_numpy(np.bincount(lists[lists >= 0], minlength=num_items))


def long_tail(popularity: Any, tail_mass: float = 0.2) -> np.ndarray:
    """Mark the long tail, bool [num_items]: the largest set of least popular items that together have at
    most a share ``tail_mass`` of all interactions (the complement of the head that has the rest) [ABD19].

    Items of equal popularity are all in the tail or all in the head, so the mark does not depend on item
    numbers.
    """
    counts = popularity_counts(popularity)
    require_tail_mass(tail_mass)
    return tensors.long_tail(torch.tensor(counts), tail_mass).numpy()


def _mean_over_lists(recommended: Any, values: np.ndarray, reduction: str) -> Any:
    lists = _lists(recommended, values.size)
    valid = lists >= 0
    lengths = valid.sum(axis=1)
    padded = np.append(values, 0.0)  # -1 reads the appended 0
    with np.errstate(invalid="ignore"):
        means = padded[lists].sum(axis=1) / lengths
    return reduced(means, reduction) if reduction == "none" else reduced(means[lengths > 0], reduction)


def arp(recommended: Any, popularity: Any, *, reduction: MetricReduction = "mean") -> Any:
    """Return the average recommendation popularity, the mean over users of that of the recommended items [ABD19].

    Range 0 to max(popularity), lower is less biased.

    Args:
        recommended: integers [n, k], one list per user, -1 for padding. Users with an empty list are left
            out.
        popularity: interaction counts [num_items], or an interaction matrix.
    """
    return _mean_over_lists(recommended, popularity_counts(popularity), reduction)


def aplt(recommended: Any, popularity: Any, tail_mass: float = 0.2, *, reduction: MetricReduction = "mean") -> Any:
    """Return the mean over users of the share of :func:`long_tail` items in the list (APLT).

    Range 0 to 1 [ABD19]. Higher exposes more of the tail; no value is ideal by itself. Arguments as in
    :func:`arp`.
    """
    return _mean_over_lists(recommended, long_tail(popularity, tail_mass).astype(np.float64), reduction)


def aclt(recommended: Any, popularity: Any, tail_mass: float = 0.2, *, reduction: MetricReduction = "mean") -> Any:
    """Return the mean over users of the *number* of :func:`long_tail` items in the list (ACLT).

    Range 0 to k [ABD19]. Higher exposes more of the tail. Arguments as in :func:`arp`.
    """
    tail = np.append(long_tail(popularity, tail_mass), False)
    return reduced(tail[_lists(recommended, tail.size - 1)].sum(axis=1).astype(np.float64), reduction)


def tail_share(recommended: Any, popularity: Any, tail_mass: float = 0.2) -> float:
    """Return the share of all recommended places, pooled over users, that :func:`long_tail` items fill.

    Differs from :func:`aplt` where lists have different lengths. Range 0 to 1; a recommender that exposes
    items as they were consumed has about ``tail_mass``. Arguments as in :func:`arp`.
    """
    tail = long_tail(popularity, tail_mass)
    return float(tensors.share_of_exposure(_exposure(recommended, tail.size), torch.from_numpy(tail)))


def coverage(recommended: Any, num_items: int) -> float:
    """Return the catalogue coverage, the share of all items recommended to at least one user.

    Range 0 to 1, higher is wider.
    """
    return float(tensors.coverage_of_exposure(_exposure(recommended, num_items)))


def gini(recommended: Any, num_items: int) -> float:
    """Return the Gini coefficient of how often each item of the catalogue is recommended.

    Items that are never recommended are included.

    sum_j (2 j - n - 1) x_j / (n sum x) for exposures x ascending, j = 1 .. n. Range 0 (all alike) to 1 - 1/n
    (one item takes all); lower is more even.
    """
    return float(tensors.gini_of_exposure(_exposure(recommended, num_items)))


def entropy(recommended: Any, num_items: int) -> float:
    """Return the Shannon entropy, in bits, of the distribution of recommended places over items.

    Range 0 (one item takes all) to log2(num_items) (all alike); higher is more even.
    """
    return float(tensors.entropy_of_exposure(_exposure(recommended, num_items)))


def novelty(recommended: Any, popularity: Any, num_users: int, *, reduction: MetricReduction = "mean") -> Any:
    """Return the mean self-information, in bits, of the recommended items [ZHOU10].

    It is the mean over users of the mean of log2(num_users / popularity(i)).

    An item without interactions is treated as if it had one. Range 0 (known by every user) to
    log2(num_users); higher is more novel. Arguments as in :func:`arp`; ``num_users`` is the number of users
    the counts come from.
    """
    if num_users < 1:
        raise ValueError(f"num_users: expected at least 1, got {num_users}")
    counts = popularity_counts(popularity)
    information = tensors.self_information(torch.tensor(counts), num_users)
    return _mean_over_lists(recommended, information.numpy(), reduction)
