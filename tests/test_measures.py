"""Records of measures, and accuracy by popularity: groups of items, and weights by inverse propensity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import zerosum_ext as zx
from zerosum_ext import evaluation as ev
from zerosum_ext import metrics
from zerosum_ext.metrics import MEASURES, Measure, measure_of

RNG = np.random.default_rng(0)


def example(users=40, items=60):
    rng = np.random.default_rng(1)
    share = np.linspace(0.5, 0.02, items)
    owned = rng.random((users, items)) < share
    test = owned & (rng.random((users, items)) < 0.3)
    train = owned & ~test
    parts = [zx.Interactions.from_arrays(*x.nonzero(), shape=x.shape) for x in (train, test)]
    return *parts, rng.standard_normal((users, items)).astype(np.float32), train, test


def brute_force(scores, train, test, weights, k):
    """Recall and NDCG of weighted positives, of each user with any."""
    found = []
    for user in range(len(scores)):
        liked = np.flatnonzero(test[user])
        if not liked.size:
            continue
        candidates = np.where(train[user] & ~test[user], -np.inf, scores[user])
        ranks = np.array([1 + (candidates > candidates[item]).sum() for item in liked])
        w = weights[liked]
        ideal = sum(x / math.log2(j + 2) for j, x in enumerate(sorted(w, reverse=True)) if j < k)
        gain = sum(x / math.log2(r + 1) for x, r in zip(w, ranks, strict=True) if r <= k)
        found.append((w[ranks <= k].sum() / w.sum() if w.sum() else np.nan, gain / ideal if ideal else np.nan))
    return np.array(found).T


@pytest.mark.parametrize("k", [1, 5, 20])
def test_accuracy_by_popularity(k):
    train, test, scores, owned, held = example()
    popularity = (train.popularity + test.popularity).double().numpy()
    got = zx.evaluate(scores, train, test, metrics=ev.WEIGHTED_METRICS, k=k)
    recall, ndcg = brute_force(scores, owned, held, (popularity / popularity.max()) ** -0.5, k)
    assert got[f"snips_recall@{k}"] == pytest.approx(recall.mean())
    assert got[f"snips_ndcg@{k}"] == pytest.approx(ndcg.mean())
    part = metrics.popularity_groups(popularity)
    for number, name in enumerate(("head", "mid", "tail")):
        recall, _ = brute_force(scores, owned, held, (part == number).astype(float), k)
        assert got[f"recall_{name}@{k}"] == pytest.approx(np.nanmean(recall)), name
    ranking = ev.rank(scores, train, test, k=20)
    values = ev.per_user(ranking, popularity, metrics=ev.WEIGHTED_METRICS, k=k)
    np.testing.assert_allclose(values[f"recall_tail@{k}"], recall)
    assert np.isnan(recall).any()


def test_pure_functions_take_entries_in_any_order():
    users, ranks = np.array([3, 1, 3, 1, 7]), np.array([1, 2, 9, 4, 30])
    weights = np.array([1.0, 2.0, 3.0, 0.0, 0.0])
    np.testing.assert_allclose(metrics.weighted_recall(users, ranks, weights, 5, reduction="none"), [1, 0.25, np.nan])
    assert metrics.weighted_recall(users, ranks, weights, 5) == pytest.approx(0.625)
    want = [(2 / math.log2(3)) / 2, 1 / (3 + 1 / math.log2(3)), np.nan]
    np.testing.assert_allclose(metrics.weighted_ndcg(users, ranks, weights, 5, reduction="none"), want)
    same = np.ones(5)
    assert metrics.weighted_recall(users, ranks, same, 5) == pytest.approx(metrics.recall(users, ranks, 5))
    assert metrics.weighted_ndcg(users, ranks, same, 5) == pytest.approx(metrics.ndcg(users, ranks, 5))
    assert math.isnan(metrics.weighted_recall([], [], [], 5))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([1], [0.5], [1.0]), "ranks: expected at least 1, got 0.5"),
        (([1], [1.0], [-1.0]), "weights: expected finite numbers >= 0"),
        (([1], [1.0], [np.inf]), "weights: expected finite numbers >= 0"),
        (([1, 2], [1.0], [1.0]), "expected one length"),
    ],
)
def test_bad_entries(arguments, text):
    for function in (metrics.weighted_recall, metrics.weighted_ndcg):
        with pytest.raises(ValueError, match=text):
            function(*arguments)


def test_groups_hold_the_shares_of_interactions_that_they_are_named_for():
    counts = np.sort(RNG.integers(1, 100, 500))[::-1].astype(float)
    part = metrics.popularity_groups(counts)
    assert (np.diff(part) >= 0).all()
    total = counts.sum()
    assert counts[part == 2].sum() <= 0.2 * total < counts[part >= 1].sum()
    assert counts[part == 0].sum() >= 0.2 * total
    # Without the least popular items of the head it would have less than its share.
    least = counts[part == 0].min()
    assert counts[counts > least].sum() < 0.2 * total
    assert set(metrics.popularity_groups(counts, 0.5)) <= {0, 2}
    assert metrics.popularity_groups([5, 5, 5]).tolist() == [0, 0, 0]
    assert metrics.popularity_groups([]).size == 0


def test_propensities():
    np.testing.assert_allclose(metrics.propensities([100, 25, 4, 0]), [1, 0.5, 0.2, 0.2])
    assert metrics.propensities([7, 3], 0.0).tolist() == [1, 1]
    assert metrics.propensities([0, 0]).tolist() == [1, 1]
    with pytest.raises(ValueError, match="exponent: expected a finite number"):
        metrics.propensities([1], float("nan"))


# ---- records


def test_every_measure_of_evaluate_has_a_record():
    assert set(MEASURES) == {*ev.METRICS, *ev.SAMPLED_METRICS, *ev.WEIGHTED_METRICS}
    assert all(name == record.name for name, record in MEASURES.items())


@pytest.mark.parametrize("record", MEASURES.values(), ids=list(MEASURES))
def test_a_record_says_whether_there_is_an_ideal(record):
    said = record.describe()
    if record.ideal is None:
        assert "no ideal" in said
    else:
        assert f"{record.ideal:g} is ideal" in said
        assert record.distance(record.ideal) == 0
    assert (record.arrow == "") == (record.direction == "none")


def test_better_is_nearer_to_the_ideal_or_in_the_direction():
    assert measure_of("pop_q_at_1").is_better(0.6, 0.2)
    assert not measure_of("pop_q_at_1").is_better(0.9, 0.2)
    assert measure_of("upo").is_better(-0.1, 0.3)
    assert measure_of("arp@10").is_better(100, 300)
    assert measure_of("aplt@20").is_better(0.3, 0.1)
    assert measure_of("ndcg@10").is_better(0.3, math.nan)
    assert not measure_of("ndcg@10").is_better(math.nan, math.nan)
    assert measure_of("pop_q_at_1").arrow == "→ 0.5"
    assert measure_of("arp@10").arrow == "↓"
    assert Measure("x", "X", "x", "bias", "ideal", 0.0).arrow == "→ 0"
    with pytest.raises(ValueError, match="novelty: has no direction that is better"):
        measure_of("novelty@10").distance(3.0)
    with pytest.raises(ValueError, match=r"measure: expected one of .*, got 'ndgc'"):
        measure_of("ndgc@10")


def test_how_measures_are_written():
    tail, arp = measure_of("aplt@10"), measure_of("arp@10")
    assert tail.label("aplt@10", long=True) == "long-tail share@10"
    assert arp.label("arp@10") == "ARP@10"
    assert arp.label("arp@10", long=True) == "ARP@10 (average popularity of what is recommended)"
    assert measure_of("pop_q_at_1").label("pop_q_at_1", long=True) == "PopQ@1 (popularity quantile of the top item)"
    assert tail.write(0.1234) == "12.3 %"
    assert [arp.write(x) for x in (None, math.nan, 0.12345, 12.345, 17.0, 123.45)] == [
        *["no value"] * 2,
        "0.123",
        "12.3",
        "17.0",
        "123",
    ]
    assert tail.describe().startswith("Long-tail share: mean share")
    assert measure_of("upo").describe().startswith("uPO: ")


def test_the_same_on_tensors_of_one_device():
    train, test, scores, *_ = example()
    a = zx.evaluate(torch.from_numpy(scores), train, test, metrics=ev.WEIGHTED_METRICS, k=(5, 10))
    b = zx.evaluate(scores, train, test, metrics=ev.WEIGHTED_METRICS, k=(5, 10))
    assert a == b
