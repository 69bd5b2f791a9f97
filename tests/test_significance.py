"""Comparisons of two models against scipy's paired tests and against what is known of the samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from zerosum_ext.evaluation import significance


def sample(shift, seed=0, n=400):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n)
    return a, a + rng.normal(shift, 0.5, n)


@pytest.mark.parametrize("shift", [0.0, 0.06])
def test_against_paired_tests(shift):
    a, b = sample(shift)
    t = stats.ttest_rel(b, a)
    expected = t.confidence_interval(0.95)
    got = significance.compare(a, b, resamples=4999)
    assert got.difference == pytest.approx(np.mean(b - a))
    assert got.difference == pytest.approx(got.mean_b - got.mean_a)
    assert (got.low, got.high) == pytest.approx(tuple(expected), abs=0.004)
    assert got.p_value == pytest.approx(t.pvalue, abs=0.03)
    assert significance.compare(a, b, test="t").p_value == pytest.approx(t.pvalue)
    assert significance.compare(a, b, test="wilcoxon").p_value == pytest.approx(stats.wilcoxon(b - a).pvalue)


def test_few_users_are_permuted_in_every_way():
    a, b = np.zeros(5), np.arange(1.0, 6.0)
    assert significance.compare(a, b).p_value == pytest.approx(2 / 2**5)


def test_reproducible_and_symmetric():
    a, b = sample(0.05, n=100)
    first, again = significance.compare(a, b, resamples=500, seed=3), significance.compare(a, b, resamples=500, seed=3)
    assert first == again
    back = significance.compare(b, a, resamples=500, seed=3)
    assert back.difference == -first.difference
    assert first.low < first.difference < first.high


def test_users_without_a_value_are_left_out():
    a, b = sample(0.1, n=50)
    wider_a, wider_b = np.append(a, [math.nan, 1.0, math.nan]), np.append(b, [1.0, math.nan, math.nan])
    assert significance.compare(wider_a, wider_b, resamples=200) == significance.compare(a, b, resamples=200)
    assert significance.compare(wider_a, wider_b, resamples=200).users == 50


def test_no_difference_at_all():
    a, _ = sample(0)
    got = significance.compare(a, a)
    assert (got.difference, got.low, got.high, got.p_value) == (0, 0, 0, 1)


def test_confidence_interval():
    a, _ = sample(0)
    low, high = significance.confidence_interval(np.append(a, math.nan), resamples=4999)
    half = stats.t.ppf(0.975, len(a) - 1) * stats.sem(a)
    assert (low, high) == pytest.approx((a.mean() - half, a.mean() + half), abs=0.01)
    assert all(math.isnan(x) for x in significance.confidence_interval([1.0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: significance.compare([1.0, 2.0], [1.0]), "a 2, b 1"),
        (lambda: significance.compare([1.0, math.nan], [1.0, 2.0]), "at least two users"),
        (lambda: significance.compare([1.0, 2.0], [1.0, 3.0], confidence=95), "confidence"),
        (lambda: significance.compare([1.0, 2.0], [1.0, 3.0], test="z"), "test: expected one of"),
        (lambda: significance.compare([[1.0, 2.0]], [[1.0, 3.0]]), "a: expected numbers of one dimension"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()
