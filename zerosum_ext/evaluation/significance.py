"""Is one model better than another on the same users? Tests and intervals over per-user values, by scipy.stats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from zerosum_ext import _checks
from zerosum_ext._types import ArrayLike
from zerosum_ext.metrics import inputs

__all__ = ["Comparison", "Statistic", "compare", "confidence_interval", "coverage_of_lists", "exchange", "holm"]

#: From lists of items [n, k], where -1 pads, and the number of items to one number for all users together.
Statistic: TypeAlias = Callable[[np.ndarray, int], float]

# Elements of the resamples that are held at once (32 MiB of float64).
_BATCH_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Comparison:
    """The difference of a metric between two models over the same users.

    Attributes:
        mean_a: mean of the first model over the users compared.
        mean_b: mean of the second one.
        difference: mean_b - mean_a.
        low: lower end of the difference's confidence interval.
        high: its upper end.
        p_value: of no difference, two-sided.
        users: how many users have a value under both models.
    """

    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p_value: float
    users: int


def confidence_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over users.

    Args:
        values: numbers [n], one per user, as :func:`zerosum_ext.evaluation.per_user` returns them. NaN is
            left out.
        confidence: between 0 and 1.
        resamples: bootstrap samples.
        seed: makes the interval reproducible.

    Returns:
        (low, high); NaN for fewer than two values.
    """
    x = _values(values, "values")
    return _interval(
        x[~np.isnan(x)], _confidence(confidence), _checks.require_positive_int("resamples", resamples), seed
    )


def compare(
    a: ArrayLike,
    b: ArrayLike,
    *,
    test: Literal["permutation", "wilcoxon", "t"] = "permutation",
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Comparison:
    """Compares two models by their values of one metric for the same users.

    The samples are paired: what is tested is the mean of b - a per user, whose interval is a percentile bootstrap.

    Args:
        a, b: numbers [n], aligned: the same users in the same order. Users with NaN in either are left out.
        test: "permutation" flips the signs of the differences at random (all ways where there are fewer than
            ``resamples``); "wilcoxon" and "t" are the paired tests of these names.
        confidence: of the interval, between 0 and 1.
        resamples: random permutations, and bootstrap samples.
        seed: makes both reproducible.

    Raises:
        ValueError: lengths differ, or fewer than two users have both values.
    """
    x, y = _values(a, "a"), _values(b, "b")
    inputs.require_same_length(a=x, b=y)
    _checks.require_choice("test", test, ("permutation", "wilcoxon", "t"))
    confidence, resamples = _confidence(confidence), _checks.require_positive_int("resamples", resamples)
    both = ~(np.isnan(x) | np.isnan(y))
    x, y = x[both], y[both]
    if x.size < 2:
        raise ValueError(f"a, b: expected at least two users with a value of both, got {x.size}")
    difference = y - x
    low, high = _interval(difference, confidence, resamples, seed)
    return Comparison(
        mean_a=float(x.mean()),
        mean_b=float(y.mean()),
        difference=float(difference.mean()),
        low=low,
        high=high,
        p_value=_p_value(difference, test, resamples, seed),
        users=int(x.size),
    )


def coverage_of_lists(lists: np.ndarray, num_items: int) -> float:
    """Return the share of all items that stand in at least one of the lists [n, k]; -1 pads."""
    seen = np.zeros(num_items + 1, bool)
    seen[lists] = True  # (-1 is the last entry, which is none of the items)
    return float(seen[:num_items].sum()) / max(1, num_items)


def exchange(
    a: ArrayLike,
    b: ArrayLike,
    num_items: int,
    *,
    statistic: Statistic = coverage_of_lists,
    confidence: float = 0.95,
    resamples: int = 999,
    seed: int = 0,
) -> Comparison:
    """Compare two models by a number that all users' lists have together, such as the coverage of the catalogue.

    A bootstrap does not serve here: users drawn twice add no item, so every resample covers too little. Instead the
    two models' lists are exchanged for each user with probability one half. If the models do not differ, the
    difference of the exchanged lists is distributed as the one observed. The interval is the observed difference plus
    and minus the quantile of the exchanged ones.

    Args:
        a, b: lists of items, integers [n, k], of the same users in the same order; -1 pads.
        num_items: the number of items of the catalogue.
        statistic: from lists and ``num_items`` to a number.
        confidence: of the interval, between 0 and 1.
        resamples: the number of random exchanges.
        seed: makes them reproducible.

    Raises:
        ValueError: shapes differ, an item is out of range, or there are fewer than two users.

    Example::

        exchange(ranking_bpr.top_items, ranking_softmax.top_items, ranking_bpr.num_items).p_value
    """
    num_items = _checks.require_positive_int("num_items", num_items)
    x, y = _lists(a, "a", num_items), _lists(b, "b", num_items)
    if x.shape != y.shape:
        raise ValueError(f"a, b: expected lists of the same users and length, got {x.shape} and {y.shape}")
    if len(x) < 2:
        raise ValueError(f"a, b: expected the lists of at least two users, got {len(x)}")
    confidence, resamples = _confidence(confidence), _checks.require_positive_int("resamples", resamples)
    mean_a, mean_b = statistic(x, num_items), statistic(y, num_items)
    observed = mean_b - mean_a
    random = np.random.default_rng(seed)
    exchanged = np.empty(resamples)
    for number in range(resamples):
        swapped = random.random(len(x))[:, None] < 0.5
        exchanged[number] = statistic(np.where(swapped, x, y), num_items) - statistic(
            np.where(swapped, y, x), num_items
        )
    sizes = np.abs(exchanged)
    # (Rounding must not make equal differences unequal.)
    p_value = (1 + int((sizes >= abs(observed) - 1e-12).sum())) / (1 + resamples)
    width = float(np.quantile(sizes, confidence))
    return Comparison(mean_a, mean_b, observed, observed - width, observed + width, p_value, len(x))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that are adjusted for being several, by Holm's step-down method [HOL79].

    Rejecting those below .05 then errs in any of them with probability at most .05.

    Args:
        p_values: numbers in [0, 1]. A NaN, of a measure without a value, stays one and does not count.

    Raises:
        ValueError: a number outside [0, 1].

    Example:
        >>> from zerosum_ext.evaluation.significance import holm
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    References:
        [HOL79] Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6,
            1979.
    """
    values = _values(list(p_values), "p_values") if len(p_values) else np.zeros(0)
    known = np.flatnonzero(~np.isnan(values))
    if ((values[known] < 0) | (values[known] > 1)).any():
        raise ValueError(f"p_values: expected numbers in [0, 1], got {[*map(float, values)]}")
    order = known[np.argsort(values[known], kind="stable")]
    adjusted = np.full(values.shape, np.nan)
    steps = values[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in adjusted]


def _lists(values: ArrayLike, name: str, num_items: int) -> np.ndarray:
    """Return lists of items [n, k], where -1 is allowed."""
    lists = inputs.as_array(values, name)
    if lists.dtype.kind not in "iu" or lists.ndim != 2:
        raise ValueError(f"{name}: expected integers of two dimensions, got {lists.dtype} {lists.shape}")
    if lists.size and (lists.min() < -1 or lists.max() >= num_items):
        raise ValueError(f"{name}: expected items from -1 to {num_items - 1}, got {lists.min()} to {lists.max()}")
    return lists.astype(np.int64, copy=False)


def _p_value(difference: np.ndarray, test: str, resamples: int, seed: int) -> float:
    if not difference.any():
        return 1.0
    from scipy import stats  # half a second: who trains without a comparison does not wait for it

    if test == "wilcoxon":
        return float(stats.wilcoxon(difference).pvalue)
    if test == "t":
        return float(stats.ttest_1samp(difference, 0).pvalue)
    result = stats.permutation_test(
        (difference,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",  # of one sample: signs are flipped
        n_resamples=resamples,
        batch=_batch(difference.size),
        random_state=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _interval(values: np.ndarray, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    if values.size < 2:
        return float("nan"), float("nan")
    if np.all(values == values[0]):
        return float(values[0]), float(values[0])
    from scipy import stats

    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=_batch(values.size),
        confidence_level=confidence,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _batch(size: int) -> int:
    return max(1, _BATCH_ELEMENTS // size)


def _values(values: ArrayLike, name: str) -> np.ndarray:
    """Numbers [n], where NaN is allowed."""
    result = inputs.as_array(values, name)
    if result.dtype.kind not in "iufb" or result.ndim != 1:
        raise ValueError(f"{name}: expected numbers of one dimension, got {result.dtype} {result.shape}")
    return result.astype(np.float64, copy=False)


def _confidence(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {value}")
    return float(value)
