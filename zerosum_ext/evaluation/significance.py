"""Is one model better than another on the same users? Tests and intervals over per-user values, by scipy.stats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from zerosum_ext import _checks
from zerosum_ext._types import ArrayLike
from zerosum_ext.metrics import inputs

__all__ = ["Comparison", "compare", "confidence_interval"]

# Elements of the resamples that are held at once (32 MiB of float64).
_BATCH_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Comparison:
    """The difference of a metric between two models over the same users.

    Attributes:
        mean_a, mean_b: means over the users compared.
        difference: mean_b - mean_a.
        low, high: confidence interval of the difference.
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


def _p_value(difference: np.ndarray, test: str, resamples: int, seed: int) -> float:
    if not difference.any():
        return 1.0
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
