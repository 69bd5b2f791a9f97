"""The ranking pass and evaluate against a loop over users that sorts everything."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

import zerosum_ext as zx
from zerosum_ext import _ops
from zerosum_ext import evaluation as ev
from zerosum_ext import metrics as m

KINDS = ["random", "ties", "constant", "infinite", "full rows", "no train"]


class Scores:
    """A model that is a matrix of scores."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = torch.from_numpy(scores)

    def score_all_items(self, users: torch.Tensor) -> torch.Tensor:
        return self.scores[users]


def case(kind: str, seed: int = 0, num_users: int = 37, num_items: int = 53):
    """(scores, train, test); test overlaps train, some users have no positive, one of them holds every
    item."""
    rng = np.random.default_rng(seed)
    train, test = (rng.random((num_users, num_items)) < p for p in (0.2, 0.1))
    test[rng.random(num_users) < 0.2] = False
    test[3] = True
    scores = rng.normal(size=(num_users, num_items)).astype(np.float32)
    if kind == "ties":
        scores = rng.integers(0, 3, scores.shape).astype(np.float32)
    if kind == "constant":
        scores[:] = -2
    if kind == "infinite":
        scores[rng.random(scores.shape) < 0.3] = -np.inf
        scores[rng.random(scores.shape) < 0.1] = np.inf
    if kind == "full rows":
        train[::2] = True
    if kind == "no train":
        train[:] = False
    return scores, sparse.csr_matrix(train), sparse.csr_matrix(test)


def brute_force(scores, train, test, k):
    """Per evaluated user: (user, candidates, positives, scores, greater, equal, top k)."""
    train, test = train.toarray() > 0, test.toarray() > 0
    for u in np.flatnonzero(test.any(1)):
        candidates = np.flatnonzero(~train[u] | test[u])
        s = scores[u, candidates]
        positives = np.flatnonzero(test[u])
        target = scores[u, positives]
        greater = [(s > t).sum() for t in target]
        equal = [(s == t).sum() - 1 for t in target]
        order = candidates[np.lexsort((candidates, -s))]
        top = [i for i in order if scores[u, i] > -np.inf][:k]
        yield u, candidates, positives, target, greater, equal, top + [-1] * (k - len(top))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [0, 1, 7, 60])
@pytest.mark.parametrize("batch_size", [None, 1, 10])
def test_rank(kind, k, batch_size):
    scores, train, test = case(kind)
    got = ev.rank(Scores(scores), train, test, k=k, batch_size=batch_size)
    expected = list(brute_force(scores, train, test, k))
    assert got.users.tolist() == [row[0] for row in expected]
    assert got.num_candidates.tolist() == [len(row[1]) for row in expected]
    assert got.indptr.tolist() == [0, *np.cumsum([len(row[2]) for row in expected])]
    for name, column in (("items", 2), ("scores", 3), ("greater", 4), ("equal", 5)):
        np.testing.assert_array_equal(getattr(got, name), np.concatenate([row[column] for row in expected]), name)
    assert got.top_items.tolist() == [[int(x) for x in row[6]] for row in expected]


def test_rank_of_some_users_and_other_exclusions():
    scores, train, test = case("random")
    got = ev.rank(Scores(scores), train, test, users=[3, 3, 30, 5], exclude=None)
    whole = ev.rank(Scores(scores), None, test)
    assert set(got.users) <= {3, 5, 30}
    np.testing.assert_array_equal(got.greater, whole.select(np.array([3, 5, 30])).greater)
    mask = np.zeros(test.shape[0], bool)
    mask[[3, 5, 30]] = True
    for part in (whole.select(mask), whole.select([3, 5, 30])):
        for name in ("users", "indptr", "items", "greater", "num_candidates", "top_items"):
            np.testing.assert_array_equal(getattr(part, name), getattr(got, name))
    other = sparse.csr_matrix(np.eye(*test.shape))
    assert (ev.rank(Scores(scores), train, test, exclude=other).num_candidates >= test.shape[1] - 1).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ties", ["average", "optimistic", "pessimistic"])
def test_evaluate(kind, ties):
    scores, train, test = case(kind)
    wanted = tuple(x for x in ev.METRICS if x != "pcc" or kind != "infinite")
    got = ev.evaluate(Scores(scores), train, test, metrics=wanted, k=(1, 5), ties=ties)
    per_user: dict[str, list[float]] = {}
    flat: dict[str, list] = {"users": [], "items": [], "scores": []}
    pairs = right = 0
    lists = []
    for u, candidates, positives, target, _, _, top in brute_force(scores, train, test, 5):
        positive = np.isin(candidates, positives)
        s = scores[u, candidates]
        if ties == "average":
            place = np.empty(len(s))
            for value in np.unique(s):
                block, hit = s == value, (s == value) & positive
                j = np.arange(1, hit.sum() + 1)
                place[hit] = (s > value).sum() + j * (block.sum() + 1) / (hit.sum() + 1)
        else:
            place = np.empty(len(s))
            place[np.lexsort((positive if ties == "pessimistic" else ~positive, -s))] = np.arange(1, len(s) + 1)
        r = np.sort(place[positive])
        for k in (1, 5):
            ideal = sum(1 / math.log2(j + 1) for j in range(1, min(k, len(r)) + 1))
            values = {
                "hr": r[0] <= k,
                "recall": (r <= k).mean(),
                "precision": (r <= k).sum() / k,
                "ndcg": sum(1 / math.log2(x + 1) for x in r if x <= k) / ideal,
                "mrr": 1 / r[0] if r[0] <= k else 0,
                "map": sum((j + 1) / x for j, x in enumerate(r) if x <= k) / min(k, len(r)),
            }
            for name, value in values.items():
                per_user.setdefault(f"{name}@{k}", []).append(float(value))
        p, n = s[positive][:, None], s[~positive][None, :]
        if n.size:
            per_user.setdefault("auc", []).append(((p > n) + (p == n) / 2).mean())
        right += (p > n).sum()
        pairs += p.size * n.size
        flat["users"] += [u] * len(target)
        flat["items"] += positives.tolist()
        flat["scores"] += target.tolist()
        lists.append(top)
    expected = {name: np.mean(values) for name, values in per_user.items()}
    expected["pairwise_accuracy"] = right / pairs
    popularity = train.getnnz(axis=0) + test.getnnz(axis=0)
    for name in ("pri", "pop_q_at_1", "upo", "pru", *(["pcc"] if "pcc" in wanted else [])):
        expected[name] = getattr(m, name)(**flat, popularity=popularity)
    for k in (1, 5):
        top = np.array(lists)[:, :k]
        for name in ("arp", "aplt", "aclt", "tail_share"):
            expected[f"{name}@{k}"] = getattr(m, name)(top, popularity)
        for name in ("coverage", "gini", "entropy"):
            expected[f"{name}@{k}"] = getattr(m, name)(top, test.shape[1])
        expected[f"novelty@{k}"] = m.novelty(top, popularity, test.shape[0])
    assert got.keys() == expected.keys()
    assert all(type(value) is float for value in got.values())
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name


def test_the_same_matrix_as_train_and_test():
    """The synthetic protocol: positives of train are the evaluated ones, negatives are all other items."""
    scores, train, _ = case("random")
    got = ev.evaluate(Scores(scores), train, train, metrics=["pairwise_accuracy"])
    dense = train.toarray().astype(bool)
    users = np.repeat(np.arange(dense.shape[0]), dense.shape[1])
    assert got == {"pairwise_accuracy": pytest.approx(m.pairwise_accuracy(users, dense.ravel(), scores.ravel()))}


def test_models_of_every_kind():
    rng = np.random.default_rng(0)
    _, train, test = case("random")
    user, item, bias = rng.normal(size=(37, 6)), rng.normal(size=(53, 6)), rng.normal(size=53)

    class Factors(torch.nn.Module):
        def factors(self):
            assert not self.training
            assert not torch.is_grad_enabled()
            return torch.from_numpy(user), torch.from_numpy(item), torch.from_numpy(bias)

    model = Factors()
    expected = ev.evaluate(user @ item.T + bias, train, test)
    assert model.training
    for each in (model, (user, item, bias), [torch.from_numpy(x) for x in (user, item, bias)]):
        assert ev.evaluate(each, train, test) == pytest.approx(expected)
    assert model.training
    assert ev.evaluate((user, item), train, test) == pytest.approx(ev.evaluate(user @ item.T, train, test))


def test_half_precision_is_widened():
    scores, train, test = case("random")
    half = torch.from_numpy(scores).bfloat16()
    assert ev.evaluate(half, train, test) == ev.evaluate(half.float(), train, test)


def test_popularity_is_explicit():
    scores, train, test = case("random")
    total = train.getnnz(axis=0) + test.getnnz(axis=0)
    assert ev.evaluate(scores, train, test, metrics=["arp", "pri"], k=3) == ev.evaluate(
        scores, train, test, metrics=["arp", "pri"], k=3, popularity=total
    )
    only_train = ev.evaluate(scores, train, test, metrics=["arp"], k=3, popularity=train)
    lists = ev.rank(scores, train, test, k=3).top_items
    assert only_train["arp@3"] == m.arp(lists, train.getnnz(axis=0))


def test_names_and_cutoffs():
    scores, train, test = case("random")
    got = ev.evaluate(scores, train, test, metrics=("ndcg@5", "hr", "auc"), k=10)
    assert list(got) == ["ndcg@5", "hr@10", "auc"]
    default = ev.evaluate(scores, train, test)
    assert {
        "hr@10",
        "ndcg@20",
        "recall@20",
        "coverage@10",
        "pri",
        "pop_q_at_1",
        "upo",
        "pcc",
    } <= default.keys()


def test_nobody_to_evaluate():
    scores, train, test = case("random")
    got = ev.evaluate(scores, train, sparse.csr_matrix(test.shape))
    assert all(math.isnan(value) or name.startswith("coverage") for name, value in got.items())


def nan_at(scores, where):
    scores = scores.copy()
    scores[where] = np.nan
    return scores


def test_nan_scores_name_the_user():
    scores, train, test = case("random")
    user = int(np.flatnonzero(test.getnnz(axis=1))[2])
    train, test = train.tolil(), test.tolil()
    train[user, 7] = 0
    with pytest.raises(ValueError, match=f"model: NaN among the scores of user {user}"):
        ev.evaluate(nan_at(scores, (user, 7)), train.tocsr(), test.tocsr())
    train[user, 7], test[user, 7] = 1, 0  # excluded: nobody looks at it
    ev.evaluate(nan_at(scores, (user, 7)), train.tocsr(), test.tocsr())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": np.zeros((3, 53))}, r"model: expected scores \[37, 53\], got \[3, 53\]"),
        ({"model": (np.zeros((37, 4)), np.zeros((53, 5)))}, "model: expected factors"),
        ({"model": (np.zeros((36, 4)), np.zeros((53, 4)))}, "user factors has 36 rows"),
        ({"model": (np.zeros((37, 4)), np.zeros((53, 4)), np.zeros(5))}, "item bias"),
        ({"test": sparse.csr_matrix((37, 52))}, "test: expected the shape"),
        ({"metrics": ["hit"]}, "metrics: unknown 'hit'"),
        ({"metrics": ["auc@10"]}, "auc takes no cut-off"),
        ({"metrics": ["hr@ten"]}, "integer k"),
        ({"k": 0}, "k: expected at least 1"),
        ({"exclude": "test"}, "exclude: expected 'train'"),
        ({"batch_size": 0}, "batch_size"),
        ({"users": [37]}, r"users: id 37 is out of range \[0, 37\)"),
        ({"popularity": np.ones(5)}, "popularity: expected 53 items, got 5"),
        ({"ties": "worst"}, "ties"),
    ],
)
def test_bad_values(change, message):
    scores, train, test = case("random")
    arguments = {"model": scores, "train": train, "test": test} | change
    with pytest.raises(ValueError, match=message):
        ev.evaluate(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "mf"}, "model: expected an nn.Module, an object with"),
        ({"test": np.zeros((37, 53))}, "test: expected Interactions"),
        ({"metrics": "auc"}, "metrics: expected a sequence"),
    ],
)
def test_bad_types(change, message):
    scores, train, test = case("random")
    with pytest.raises(TypeError, match=message):
        ev.evaluate(**({"model": scores, "train": train, "test": test} | change))


def test_per_user_values_are_what_is_averaged():
    scores, train, test = case("ties")
    ranking = ev.rank(scores, train, test, k=5)
    popularity = train.getnnz(axis=0)
    values = ev.per_user(ranking, popularity, k=(1, 5))
    means = ev.compute(ranking, popularity, metrics=ev.PER_USER_METRICS, k=(1, 5))
    assert values.keys() == means.keys()
    for name, array in values.items():
        assert array.shape == ranking.users.shape
        assert np.nanmean(array) == pytest.approx(means[name]), name
    few = np.diff(ranking.indptr) < 5
    assert few.any()
    np.testing.assert_array_equal(np.isnan(values["pop_q_at_1"]), few)
    with pytest.raises(ValueError, match="coverage@10 is no mean over users"):
        ev.per_user(ranking, popularity, metrics=["coverage"])


def test_without_kernels(monkeypatch):
    scores, train, test = case("ties")
    expected = ev.evaluate(scores, train, test, k=(1, 5))
    monkeypatch.setitem(_ops.KERNELS, "cpu", frozenset())
    assert ev.evaluate(scores, train, test, k=(1, 5)) == pytest.approx(expected, abs=1e-12)


def test_groups_of_users():
    scores, train, test = case("random")
    ranking = ev.rank(scores, train, test)
    groups = np.where(np.arange(test.shape[0]) % 3 == 0, "third", "other")
    got = ev.by_group(ranking, groups, train, metrics=("ndcg", "pri"), k=5)
    assert list(got) == ["other", "third"]
    for name, values in got.items():
        users = np.flatnonzero(groups == name)
        assert values == ev.evaluate(scores, train, test, metrics=("ndcg", "pri"), k=5, popularity=train, users=users)
    with pytest.raises(ValueError, match=r"groups: expected shape \(37,\)"):
        ev.by_group(ranking, [0, 1], train)


def test_deciles_of_items():
    scores, train, test = case("random")
    popularity = train.getnnz(axis=0)
    ranking = ev.rank(scores, train, test, k=5)
    got = ev.by_popularity(ranking, popularity, bins=4, k=5)
    order = np.argsort(-popularity, kind="stable")
    ranks = ranking.greater + 1  # no ties
    for part, items in enumerate(np.array_split(order, 4)):
        mine = np.isin(ranking.items, items)
        assert got["popularity"][part] == pytest.approx(popularity[items].mean(), abs=0.5)
        assert got["positives"][part] == pytest.approx(mine.sum(), abs=len(ranking.users))
    assert got["positives"].sum() == ranking.items.size
    assert got["exposure"].sum() == pytest.approx(1)
    assert np.nansum(got["recall"] * got["positives"]) == pytest.approx((ranks <= 5).sum())
    assert (np.diff(got["popularity"]) <= 0).all()
    exact = ev.by_popularity(ranking, popularity, bins=53, k=5)  # an item each
    at = int(np.flatnonzero(order == ranking.items[0])[0])
    assert exact["positives"][at] == (ranking.items == ranking.items[0]).sum()
    assert exact["exposure"][at] == pytest.approx(
        (ranking.top_items == ranking.items[0]).sum() / (5 * len(ranking.users))
    )


@pytest.mark.parametrize("kind", ["random", "ties"])
def test_sampled_metrics(kind):
    rng = np.random.default_rng(2)
    _, train, test = case("random")
    test = (test > train).tocsr()
    user, item = (rng.integers(-2, 3, (n, 4)) if kind == "ties" else rng.normal(size=(n, 4)) for n in test.shape)
    scores = (user @ item.T).astype(np.float32)
    negatives = rng.integers(0, test.shape[1], (test.shape[0], 9))
    expected = [1 + (scores[u, negatives[u]] >= scores[u, i]).sum() for u, i in zip(*test.nonzero(), strict=True)]
    for model in (scores, (user.astype(np.float32), item.astype(np.float32))):
        users, ranks = ev.sampled_ranks(model, train, test, negatives=negatives)
        assert users.tolist() == test.nonzero()[0].tolist()
        assert ranks.tolist() == expected
        got = ev.evaluate(
            model, train, test, metrics=("sampled_hit@3", "hr@3", "sampled_ndcg"), k=5, negatives=negatives
        )
        ranks = np.array(expected)
        assert list(got) == ["sampled_hit@3", "hr@3", "sampled_ndcg@5"]
        assert got["sampled_hit@3"] == pytest.approx((ranks <= 3).mean())
        assert got["sampled_ndcg@5"] == pytest.approx(((ranks <= 5) / np.log2(ranks + 1)).mean())


def test_negatives_drawn_are_reproducible_and_negative():
    _, train, test = case("no train")
    test = test.tolil()
    test[3, 20:] = 0
    test = test.tocsr()
    own = test.toarray().astype(np.float32)  # only held-out items score 1: any other positive drawn would tie
    assert set(ev.sampled_ranks(own, train, test, negatives=15)[1]) == {1}
    scores = np.random.default_rng(0).normal(size=test.shape)
    first, again, other = (ev.sampled_ranks(scores, None, test, negatives=15, seed=s)[1] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    with pytest.raises(ValueError, match="user"):
        ev.sampled_ranks(scores, None, test, negatives=53)
    for bad, message in ((np.zeros((3, 2), int), "one row for each of 37 users"), (np.full((37, 1), 53), "items in")):
        with pytest.raises(ValueError, match=f"negatives: expected .*{message}"):
            ev.sampled_ranks(scores, None, test, negatives=bad)
    with pytest.raises(ValueError, match="sampled_hit@10 needs"):
        ev.compute(ev.rank(scores, None, test), test, metrics=["sampled_hit"])


def test_batch_by_batch():
    scores, train, test = case("ties")
    expected = ev.evaluate(scores, train, test, k=(1, 5))
    metric = ev.RankingMetrics(train, test, k=(1, 5))
    order = np.random.default_rng(0).permutation(test.shape[0])
    for users in np.array_split(order, 4):
        metric.update(users, scores[users])
    metric.update(order[:5], scores[order[:5]])  # once more, as samplers pad
    assert metric.compute() == pytest.approx(expected, nan_ok=True)
    metric.reset()
    assert math.isnan(metric.compute()["ndcg@5"])
    metric.update(torch.from_numpy(order), torch.from_numpy(scores[order]))
    assert metric.compute() == pytest.approx(expected, nan_ok=True)
    with pytest.raises(ValueError, match=r"scores: expected \[2, 53\]"):
        metric.update([0, 1], scores[:3])
    with pytest.raises(ValueError, match=r"users: id 37 is out of range \[0, 37\)"):
        metric.update([37], scores[:1])


def _one_process(rank, meeting, queue):
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    scores, train, test = case("ties")
    metric = ev.RankingMetrics(train, test, k=5)
    users = np.arange(rank, test.shape[0], 2)
    metric.update(users, scores[users])
    queue.put((rank, metric.compute()))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_processes_share_what_they_saw(tmp_path):
    scores, train, test = case("ties")
    expected = ev.evaluate(scores, train, test, k=5)
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_one_process, args=(r, tmp_path / "meeting", queue)) for r in range(2)]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert results[0] == results[1] == pytest.approx(expected)


def test_ranx_agrees():
    ranx = pytest.importorskip("ranx")
    scores, train, test = case("random")
    got = ev.evaluate(scores, train, test, metrics=("ndcg", "recall", "precision", "mrr", "map", "hr"), k=60)
    qrels, run = {}, {}
    for u, candidates, positives, *_ in brute_force(scores, train, test, 1):
        qrels[str(u)] = {str(i): 1 for i in positives}
        run[str(u)] = {str(i): float(scores[u, i]) for i in candidates}
    names = {"ndcg": "ndcg", "recall": "recall", "precision": "precision", "mrr": "mrr", "map": "map", "hr": "hit_rate"}
    theirs = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), [f"{name}@60" for name in names.values()])
    for ours, name in names.items():
        assert got[f"{ours}@60"] == pytest.approx(theirs[f"{name}@60"]), ours


def test_torchmetrics_agrees():
    retrieval = pytest.importorskip("torchmetrics.retrieval")
    scores, train, test = case("random")
    got = ev.evaluate(scores, train, test, metrics=("ndcg", "recall", "precision", "mrr", "hr"), k=5)
    users, labels, values = [], [], []
    for u, candidates, positives, *_ in brute_force(scores, train, test, 1):
        users.append(np.full(len(candidates), u))
        labels.append(np.isin(candidates, positives))
        values.append(scores[u, candidates])
    index, target, preds = (torch.from_numpy(np.concatenate(x)) for x in (users, labels, values))
    for name, metric in (
        ("ndcg", retrieval.RetrievalNormalizedDCG(top_k=5)),
        ("recall", retrieval.RetrievalRecall(top_k=5)),
        ("precision", retrieval.RetrievalPrecision(top_k=5)),
        ("mrr", retrieval.RetrievalMRR(top_k=5)),
        ("hr", retrieval.RetrievalHitRate(top_k=5)),
    ):
        assert got[f"{name}@5"] == pytest.approx(float(metric(preds, target, indexes=index)), abs=1e-6), name


def test_every_metric_is_documented():
    path = Path(__file__).parents[1] / "docs" / "metrics.md"
    if not path.exists():
        pytest.skip("the documentation is not part of this installation")
    keys = set(re.findall(r"^\| `(\w+)(?:@k)?` \|", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert keys == {*ev.METRICS, *ev.SAMPLED_METRICS, *ev.WEIGHTED_METRICS}


@pytest.mark.parametrize("ties", ["average", "pessimistic", "optimistic"])
@pytest.mark.parametrize("rounded", [False, True])
def test_metrics_with_a_cutoff_alone_are_those_of_all(ties, rounded):
    """Asked for alone, they need no ranks beyond the largest cut-off, and none are computed."""
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(n, 32, generator=generator) for n in (80, 1500)]
    if rounded:  # so that many scores are equal
        factors = [x.round() for x in factors]
    train, test = (
        zx.Interactions.from_arrays(
            *(torch.rand(80, 1500, generator=generator) < 0.02).nonzero().T.numpy(), shape=(80, 1500)
        )
        for _ in range(2)
    )
    names = [name for name in ev.METRICS if name in ev.AT_K_METRICS]
    few = zx.evaluate(tuple(factors), train, test, metrics=names, k=(1, 5, 20), ties=ties)
    everything = zx.evaluate(tuple(factors), train, test, k=(1, 5, 20), ties=ties)
    assert len(few) == 3 * len(names)
    assert few == {key: everything[key] for key in few}
