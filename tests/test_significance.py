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


def test_holm_against_its_definition_and_a_known_case():
    # The example of Holm's method for p = .01, .04, .03, .005 (m = 4).
    assert significance.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert significance.holm([]) == []
    assert significance.holm([0.9, 0.8]) == [1.0, 1.0]
    got = significance.holm([0.01, math.nan, 0.02])
    assert got[0] == pytest.approx(0.02)
    assert math.isnan(got[1])
    assert got[2] == pytest.approx(0.02)
    rng = np.random.default_rng(0)
    p = rng.random(7) ** 3
    order = np.argsort(p)
    slow = [max(min(1.0, (7 - j) * p[order[j]]) for j in range(i + 1)) for i in range(7)]
    np.testing.assert_allclose(np.array(significance.holm(p.tolist()))[order], slow)
    with pytest.raises(ValueError, match=r"p_values: expected numbers in \[0, 1\]"):
        significance.holm([1.2])


def test_exchange_of_lists_finds_a_wider_catalogue_and_no_difference_where_there_is_none():
    rng = np.random.default_rng(1)
    narrow = rng.integers(0, 30, (120, 5))
    wide = rng.integers(0, 100, (120, 5))
    got = significance.exchange(narrow, wide, 100, resamples=199)
    assert got.mean_a == pytest.approx(len(np.unique(narrow)) / 100)
    assert got.mean_b == pytest.approx(len(np.unique(wide)) / 100)
    assert got.p_value == pytest.approx(1 / 200)
    assert 0 < got.low < got.difference < got.high
    same = significance.exchange(wide, rng.integers(0, 100, (120, 5)), 100, resamples=199)
    assert same.p_value > 0.05
    assert same.low < 0 < same.high
    assert significance.exchange(wide, wide, 100, resamples=99).p_value == 1


def test_exchange_is_calibrated():
    """Under no difference, p-values below .1 come about as often as they should."""
    rng = np.random.default_rng(2)
    below = sum(
        significance.exchange(*rng.integers(0, 60, (2, 40, 3)), 60, resamples=99, seed=i).p_value <= 0.1
        for i in range(200)
    )
    assert 5 <= below <= 35  # 20 expected; these bounds are 3.5 standard deviations away


def test_exchange_refuses_what_are_no_lists():
    lists = np.zeros((4, 2), np.int64)
    with pytest.raises(ValueError, match="same users and length"):
        significance.exchange(lists, lists[:3], 5)
    with pytest.raises(ValueError, match="expected items from -1 to 4, got 5 to 5"):
        significance.exchange(lists, lists + 5, 5)
    with pytest.raises(ValueError, match="at least two users"):
        significance.exchange(lists[:1], lists[:1], 5)
    assert significance.coverage_of_lists(np.array([[0, -1], [2, -1]]), 4) == 0.5
