"""Metrics against their definitions written out per user, and against scipy.stats."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from zerosum_ext import metrics as m


def case(seed: int, kind: str = "random", num_users: int = 40, num_items: int = 30):
    """Positives in shuffled order: (users, items, scores, popularity)."""
    rng = np.random.default_rng(seed)
    density = {"one": 0.0, "all": 1.0}.get(kind, 0.2)
    matrix = rng.random((num_users, num_items)) < density
    if kind == "one":
        matrix[np.arange(num_users), rng.integers(num_items, size=num_users)] = True
    u, i = np.nonzero(matrix)
    scores = rng.normal(size=u.size)
    popularity = rng.integers(0, 50, num_items)
    if kind == "ties":
        scores = rng.integers(0, 3, u.size) / 2
        popularity = rng.integers(0, 3, num_items)
    if kind == "constant":
        scores[:] = 1.5
    if kind == "constant popularity":
        popularity[:] = 7
    order = rng.permutation(u.size)
    return u[order] * 3 + 5, i[order], scores[order].astype(np.float32), popularity


KINDS = ["random", "ties", "constant", "constant popularity", "one", "all"]
cases = pytest.mark.parametrize(("seed", "kind"), [(s, kind) for kind in KINDS for s in (0, 1)])


def spearman(x, y) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(stats.spearmanr(x, y).statistic) if len(x) > 1 else math.nan


def per_user(users, minimum):
    return [np.flatnonzero(users == u) for u in np.unique(users) if (users == u).sum() >= minimum]


@cases
def test_pri(seed, kind):
    users, items, scores, popularity = case(seed, kind)
    r: dict[int, list[float]] = {}
    for w in per_user(users, 2):
        for i, rank in zip(items[w], stats.rankdata(-scores[w]), strict=True):
            r.setdefault(i, []).append((rank - 1) / (len(w) - 1))
    expected = -spearman([popularity[i] for i in r], [round(math.fsum(v) / len(v), 12) for v in r.values()])
    assert m.pri(users, items, scores, popularity) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_pri_sign_and_quantile():
    """A ranking by popularity has PRI 1, the reverse -1."""
    users, items = np.repeat(np.arange(6), 5), np.tile(np.arange(5), 6)
    popularity = np.array([9, 7, 5, 3, 1])
    assert m.pri(users, items, popularity[items], popularity) == pytest.approx(1)
    assert m.pri(users, items, -popularity[items], popularity) == pytest.approx(-1)


@cases
@pytest.mark.parametrize("minimum", [2, 5])
def test_pop_q_at_1(seed, kind, minimum):
    users, items, scores, popularity = case(seed, kind)
    values = []
    for w in per_user(users, minimum):
        rank = stats.rankdata(-popularity[items[w]])
        values.append((rank[np.argmax(scores[w])] - 1) / (len(w) - 1))
    expected = np.mean(values) if values else math.nan
    got = m.pop_q_at_1(users, items, scores, popularity, min_positives=minimum)
    assert got == pytest.approx(expected, nan_ok=True)
    np.testing.assert_allclose(m.pop_q_at_1(users, items, scores, popularity, minimum, reduction="none"), values)


def test_pop_q_score_ties_take_the_first_given():
    users, popularity = np.zeros(5, int), np.array([10, 8, 6, 4, 2])
    scores = np.array([1.0, 3.0, 3.0, 0.0, 0.0])
    assert m.pop_q_at_1(users, np.arange(5), scores, popularity) == 0.25
    assert m.pop_q_at_1(users, np.arange(5)[::-1], scores[::-1], popularity) == 0.5


@cases
def test_upo_and_pru(seed, kind):
    users, items, scores, popularity = case(seed, kind)
    values = [spearman(popularity[items[w]], scores[w]) for w in per_user(users, 4)]
    expected = np.mean(np.nan_to_num(values)) if values else math.nan
    assert m.upo(users, items, scores, popularity) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    values = [-spearman(popularity[items[w]], stats.rankdata(-scores[w])) for w in per_user(users, 2)]
    expected = np.nanmean(values) if not np.isnan(values).all() else math.nan
    assert m.pru(users, items, scores, popularity) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@cases
def test_pcc(seed, kind):
    users, items, scores, popularity = case(seed, kind)
    w = np.concatenate([np.zeros(0, int), *per_user(users, 2)])
    x, y = popularity[items[w]].astype(float), scores[w].astype(float)
    defined = len(w) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
    expected = stats.pearsonr(x, y).statistic if defined else math.nan
    assert m.pcc(users, items, scores, popularity) == pytest.approx(expected, nan_ok=True)


def scored(seed, kind):
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(25), 12)
    labels = rng.random(users.size) < 0.3
    labels[:12], labels[12:24] = False, True  # a user without positives, one without negatives
    scores = rng.normal(size=users.size)
    if kind == "ties":
        scores = rng.integers(0, 3, users.size).astype(float)
    if kind == "constant":
        scores[:] = 0
    if kind == "infinite":
        scores[rng.random(users.size) < 0.3] = -np.inf
    order = rng.permutation(users.size)
    return users[order], labels[order], scores[order]


@pytest.mark.parametrize("kind", ["random", "ties", "constant", "infinite"])
def test_pairs(kind):
    users, labels, scores = scored(3, kind)
    right = pairs = 0
    areas = []
    for u in np.unique(users):
        p, n = scores[(users == u) & labels][:, None], scores[(users == u) & ~labels][None, :]
        right += (p > n).sum()
        pairs += p.size * n.size
        areas.append(((p > n) + (p == n) / 2).mean() if p.size * n.size else math.nan)
    assert m.pairwise_accuracy(users, labels, scores) == pytest.approx(right / pairs)
    assert m.auc(users, labels, scores) == pytest.approx(np.nanmean(areas))
    np.testing.assert_allclose(m.auc(users, labels, scores, reduction="none"), areas)


def test_sampled():
    rng = np.random.default_rng(0)
    p, n = rng.integers(0, 30, 50).astype(float), rng.integers(0, 30, (50, 20)).astype(float)
    ranks = [1 + sum(x >= a for x in row) for a, row in zip(p, n, strict=True)]
    assert m.sampled_ranks(p, n).tolist() == ranks
    for k in (1, 10):
        assert m.sampled_hit(p, n, k) == pytest.approx(np.mean([r <= k for r in ranks]))
        assert m.sampled_ndcg(p, n, k) == pytest.approx(np.mean([(r <= k) / math.log2(r + 1) for r in ranks]))


def full_ranking(seed, levels):
    """(users, positives' scores, greater, equal, [all scores, positives' mask] per user)."""
    rng = np.random.default_rng(seed)
    users, target, greater, equal, lists = [], [], [], [], []
    for u in range(30):
        scores = rng.integers(0, levels, 15) if levels else rng.normal(size=15)
        mask = rng.random(15) < (0.3 if u else 1.0)
        for s in scores[mask]:
            users.append(u)
            target.append(s)
            greater.append((scores > s).sum())
            equal.append((scores == s).sum() - 1)
        lists.append((scores, mask))
    return np.array(users), np.array(target, float), np.array(greater), np.array(equal), lists


@pytest.mark.parametrize("levels", [0, 1, 3])
@pytest.mark.parametrize("ties", ["optimistic", "pessimistic", "average"])
def test_positive_ranks(levels, ties):
    users, target, greater, equal, lists = full_ranking(5, levels)
    ranks = m.positive_ranks(users, target, greater, equal, ties)
    rng = np.random.default_rng(0)
    for u, (scores, mask) in enumerate(lists):
        got = np.sort(ranks[users == u])
        if ties == "average":  # the mean over random orders of equal scores
            draws = []
            for _ in range(4000):
                order = np.lexsort((rng.random(15), -scores))
                draws.append(np.sort(np.argsort(order)[mask] + 1))
            np.testing.assert_allclose(got, np.mean(draws, axis=0), atol=0.3)
            # sums are exact: every positive has the average rank of its tie in expectation
            np.testing.assert_allclose(got.sum(), stats.rankdata(-scores)[mask].sum())
        else:
            last = mask if ties == "pessimistic" else ~mask
            order = np.lexsort((last, -scores))
            np.testing.assert_array_equal(got, np.sort(np.argsort(order)[mask] + 1))


@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("k", [1, 3, 10, 100])
def test_rank_metrics(levels, k):
    users, target, greater, equal, lists = full_ranking(6, levels)
    ranks = m.positive_ranks(users, target, greater, equal, "pessimistic")
    expected: dict[str, list[float]] = {name: [] for name in ("hr", "recall", "precision", "ndcg", "mrr", "map")}
    for scores, mask in lists:
        if not mask.any():
            continue
        relevance = mask[np.lexsort((mask, -scores))].astype(float)
        top, n = relevance[:k], mask.sum()
        discount = 1 / np.log2(np.arange(2, 2 + len(relevance)))
        expected["hr"].append(top.any())
        expected["recall"].append(top.sum() / n)
        expected["precision"].append(top.sum() / k)
        expected["ndcg"].append(top @ discount[: len(top)] / discount[: min(k, n)].sum())
        first = int(np.argmax(relevance)) + 1
        expected["mrr"].append(1 / first if first <= k else 0)
        expected["map"].append(sum(top[: j + 1].mean() for j in range(len(top)) if top[j]) / min(k, n))
    functions = {
        "hr": m.hit_rate,
        "recall": m.recall,
        "precision": m.precision,
        "ndcg": m.ndcg,
        "mrr": m.mrr,
        "map": m.mean_average_precision,
    }
    shuffle = np.random.default_rng(0).permutation(users.size)
    for name, function in functions.items():
        np.testing.assert_allclose(function(users[shuffle], ranks[shuffle], k, reduction="none"), expected[name])
        assert function(users, ranks, k) == pytest.approx(np.mean(expected[name])), name


def test_exposure():
    popularity = np.array([50, 30, 10, 5, 5, 0])
    lists = np.array([[0, 1, 2], [0, 3, -1], [0, 1, 5], [-1, -1, -1]])
    # least popular first 0, 5, 5, 10 hold 20 of 100; the next would hold 50
    assert m.long_tail(popularity).tolist() == [False, False, True, True, True, True]
    assert m.long_tail(popularity, 0.1).tolist() == [False, False, False, True, True, True]
    assert m.long_tail(popularity, 0.09).tolist() == [False, False, False, False, False, True]
    assert m.long_tail(popularity, 1.0).all()
    assert m.arp(lists, popularity) == pytest.approx(np.mean([30, 27.5, 80 / 3]))
    assert m.aplt(lists, popularity) == pytest.approx(np.mean([1 / 3, 1 / 2, 1 / 3]))
    assert m.aclt(lists, popularity) == pytest.approx(3 / 4)
    assert m.tail_share(lists, popularity) == pytest.approx(3 / 8)
    assert m.coverage(lists, 6) == pytest.approx(5 / 6)
    assert m.entropy(lists, 6) == pytest.approx(stats.entropy([3, 2, 1, 1, 1], base=2))
    x = np.array([3, 2, 1, 1, 0, 1])
    assert m.gini(lists, 6) == pytest.approx(np.abs(x[:, None] - x).sum() / (2 * 36 * x.mean()))
    assert m.gini(np.arange(6).reshape(2, 3), 6) == pytest.approx(0)
    assert m.gini(np.zeros((4, 1), int), 6) == pytest.approx(5 / 6)
    assert m.entropy(np.zeros((4, 1), int), 6) == 0
    information = np.log2(60 / np.array([50, 30, 10, 5, 5, 1]))
    expected = np.mean([information[[0, 1, 2]].mean(), information[[0, 3]].mean(), information[[0, 1, 5]].mean()])
    assert m.novelty(lists, popularity, 60) == pytest.approx(expected)


def test_any_array_type():
    users, items, scores, popularity = case(0)
    expected = m.pri(users, items, scores, popularity)
    tensors = [torch.from_numpy(np.ascontiguousarray(x)) for x in (users, items, scores, popularity)]
    tensors[2].requires_grad_()
    assert m.pri(*tensors) == expected
    assert m.pri(users.tolist(), items.tolist(), scores.tolist(), popularity.tolist()) == expected
    half = torch.from_numpy(scores).bfloat16()
    assert m.pri(users, items, half, popularity) == m.pri(users, items, half.float().numpy(), popularity)
    matrix = sparse.random(20, 30, density=0.3, format="csr", random_state=0)
    assert m.pri(users, items, scores, matrix) == m.pri(users, items, scores, matrix.getnnz(axis=0))


def test_empty():
    none = np.zeros(0)
    for function in (m.pri, m.pop_q_at_1, m.upo, m.pru, m.pcc):
        assert math.isnan(function(none, none, none, [1, 2]))
    assert math.isnan(m.auc(none, none.astype(bool), none))
    assert math.isnan(m.pairwise_accuracy(none, none.astype(bool), none))
    assert m.positive_ranks(none, none, none, none).size == 0
    for function in (m.hit_rate, m.recall, m.precision, m.ndcg, m.mrr, m.mean_average_precision):
        assert math.isnan(function(none, none))
    empty = np.zeros((0, 5), int)
    for value in (m.arp(empty, [1]), m.aplt(empty, [1]), m.gini(empty, 3), m.entropy(empty, 3)):
        assert math.isnan(value)
    assert m.coverage(empty, 3) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: m.pri([0, 0], [0, 1], [1.0, math.nan], [1, 2]), r"scores: NaN at index 1 \(1 in all\)"),
        (lambda: m.pri([0, 0], [0, 2], [1.0, 2.0], [1, 2]), "items: 2 is out of range"),
        (lambda: m.pri([0, 0], [0, -1], [1.0, 2.0], [1, 2]), "items: -1 is out of range"),
        (lambda: m.pri([0], [0, 1], [1.0, 2.0], [1, 2]), "users 1, items 2"),
        (lambda: m.pri([0, 0], [0, 1], [[1.0, 2.0]], [1, 2]), "scores: expected 1 dim"),
        (lambda: m.pri([0, 0], [0, 1], [1.0, 2.0], [1, -2]), "popularity: expected finite counts"),
        (lambda: m.upo([0, 0], [0, 1], [1.0, 2.0], [1, 2], min_positives=1), "min_positives"),
        (lambda: m.upo([0, 0], [0, 1], [1.0, 2.0], [1, 2], reduction="sum"), "reduction: .*'sum'"),
        (lambda: m.pcc([0, 0], [0, 1], [1.0, math.inf], [1, 2]), "scores: expected finite"),
        (lambda: m.auc([0, 0], [0, 2], [1.0, 2.0]), "labels"),
        (lambda: m.hit_rate([0, 0], [1, 0.5]), "ranks: expected at least 1"),
        (lambda: m.hit_rate([0, 0], [1, 2], 0), "k: expected at least 1"),
        (lambda: m.positive_ranks([0, 0], [1.0, 1.0], [0, 0], [0, 1]), "equal: entry"),
        (lambda: m.positive_ranks([0], [1.0], [0], [0], "random"), "ties"),
        (lambda: m.coverage([[3]], 3), "recommended: item 3 is out of range"),
        (lambda: m.coverage([[-2]], 3), "recommended: item -2"),
        (lambda: m.long_tail([1, 2], 1.5), "tail_mass"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: m.pri([0.5], [0], [1.0], [1]), "users: expected integers"),
        (lambda: m.pri(["a"], [0], [1.0], [1]), "users: expected integers"),
        (lambda: m.hit_rate([0], [1], 2.5), "k: expected an int"),
    ],
)
def test_bad_types(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_counts_of_a_matrix_are_those_of_its_interactions():
    """A stored zero is no interaction, and one that is stored twice is one."""
    unclean = sparse.csr_matrix((np.array([1, 1, 0, 1]), np.array([0, 0, 1, 2]), np.array([0, 3, 4])), shape=(2, 3))
    plain = np.array([1, 0, 1])
    assert m.popularity_counts(unclean).tolist() == plain.tolist()
    u, i, s = [0, 0, 1, 1], [0, 1, 1, 2], [0.1, 0.2, 0.3, 0.1]
    assert m.pri(u, i, s, unclean) == pytest.approx(m.pri(u, i, s, plain))
