"""What evaluate asks of a GPU, on one that is played: the numbers of the CPU, in one transfer, at the end."""

from __future__ import annotations

import pytest
import torch
from played_device import PLAYED, Played, PlayedDevice

import zerosum_ext as zx
from zerosum_ext import _library as _extension
from zerosum_ext import _ops, evaluation
from zerosum_ext.evaluation import ranking

if not _extension.CPU.loaded:
    pytest.skip("the kernels that play those of a GPU are in _C, which is not loaded", allow_module_level=True)


@pytest.fixture
def played(monkeypatch):
    # A GPU has no kernel of these: it takes a matrix product and rank_scores, and the ops for the parts of a step.
    lacking = {"rank_factors", "mf_train", "mf_train_sampled"}
    monkeypatch.setitem(_ops.KERNELS, PLAYED.type, frozenset(_extension.OPS) - lacking)
    with PlayedDevice() as played:
        yield played


def case(users=61, items=97, dim=5):
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(users, items, generator=generator) < 0.8 * torch.rand(users, 1, generator=generator) ** 2
    owners, owned = dense.nonzero(as_tuple=True)
    split = zx.Interactions.from_arrays(owners.numpy(), owned.numpy(), shape=(users, items)).split_random((0.6, 0.4))
    factors = [torch.randint(-2, 3, (n, dim), generator=generator).float() for n in (users, items)]
    bias = torch.randint(-2, 3, (items,), generator=generator).float()
    return (*factors, bias), split.train, split.test


class Scorer(torch.nn.Module):
    def __init__(self, user, item, bias):
        super().__init__()
        self.tables = user, item, bias

    def score_all_items(self, users):
        user, item, bias = self.tables
        return user[users.to(user.device)] @ item.T + bias


EVERYTHING = {"metrics": (*evaluation.METRICS, *evaluation.SAMPLED_METRICS), "k": (1, 5, 10), "negatives": 3}


def same(got, want):
    assert got.keys() == want.keys()
    assert got == pytest.approx(want, rel=1e-12, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("kind", ["factors", "scores", "matrix"])
@pytest.mark.parametrize("ties", _ops.TIES)
def test_one_transfer_at_the_end(played, monkeypatch, kind, ties):
    """Interactions on the host, blocks of few users."""
    monkeypatch.setattr(ranking, "BLOCK_USERS", 23)
    monkeypatch.setattr("zerosum_ext.reference.ranking.KERNEL_BLOCK_ELEMENTS", 7 * 97)
    factors, train, test = case()
    there = tuple(t.to(PLAYED) for t in factors)
    make = {
        "factors": lambda tables: tables,
        "scores": lambda tables: Scorer(*tables),
        "matrix": lambda tables: tables[0] @ tables[1].T + tables[2],
    }[kind]
    want = zx.evaluate(make(factors), train, test, ties=ties, batch_size=11, **EVERYTHING)
    model = make(there)
    played.asked.clear()
    got = zx.evaluate(model, train, test, ties=ties, batch_size=11, **EVERYTHING)
    assert played.asked == [f"a transfer of [{len(got) + 3}]"]  # the values, and three checks
    same(got, want)


def test_interactions_on_the_device(played):
    """Then the rows of the held-out matrix are read before: who is evaluated, and of how many positives."""
    factors, train, test = case()
    want = zx.evaluate(factors, train, test, k=(3, 10))
    there, moved = tuple(t.to(PLAYED) for t in factors), [x.to(PLAYED) for x in (train, test)]
    [x.popularity for x in moved]  # counted once, and kept
    played.asked.clear()
    got = zx.evaluate(there, *moved, k=(3, 10))
    same(got, want)
    assert played.asked == ["a transfer of [62]", f"a transfer of [{len(got) + 2}]"]
    played.asked.clear()
    some = zx.evaluate(there, *moved, users=[3, 17, 40], k=10, metrics=("ndcg", "pri"))
    same(some, zx.evaluate(factors, train, test, users=[3, 17, 40], k=10, metrics=("ndcg", "pri")))
    assert played.asked == ["a transfer of [62]", "a transfer of [3]"]


def test_rankings_come_to_the_host(played):
    factors, train, test = case()
    want = zx.rank(factors, train, test, k=7)
    got = zx.rank(tuple(t.to(PLAYED) for t in factors), train, test, k=7)
    for name in ("users", *ranking.TENSORS):
        assert (getattr(got, name) == getattr(want, name)).all(), name


@pytest.mark.parametrize("metrics", [("ndcg",), ("sampled_hit",), evaluation.METRICS])
def test_nan_is_found_at_the_end(played, monkeypatch, metrics):
    # (The CPU's rank_scores and user_metrics, which would play the GPU's, raise then.)
    monkeypatch.setitem(_ops.KERNELS, PLAYED.type, frozenset({"list_metrics"}))
    factors, train, test = case()
    user = int(test.pairs()[0][5])
    factors[0][user] = torch.nan
    said = "users [0-9]+ .. [0-9]+" if metrics == ("sampled_hit",) else f"user {user}"
    with pytest.raises(ValueError, match=f"model: NaN among the scores of {said}"):
        zx.evaluate(tuple(t.to(PLAYED) for t in factors), train, test, metrics=metrics, negatives=3)
    transfers = [i for i, what in enumerate(played.asked) if what.startswith(("a transfer", "aten._local_scalar"))]
    assert transfers == [len(played.asked) - 1]


def test_infinite_scores_have_no_pearson_correlation(played):
    factors, train, test = case()
    item = int(test.pairs()[1][5])
    factors[2][item] = torch.inf
    there = tuple(t.to(PLAYED) for t in factors)
    for model in (factors, there):
        with pytest.raises(ValueError, match="scores: expected finite numbers for a Pearson correlation"):
            zx.evaluate(model, train, test)
    rest = [name for name in evaluation.METRICS if name != "pcc"]
    same(zx.evaluate(there, train, test, metrics=rest), zx.evaluate(factors, train, test, metrics=rest))


def test_what_the_played_device_notes(played):
    """It tells what it should."""
    x = torch.arange(5.0).to(PLAYED)
    assert isinstance(x, Played)
    assert x.device == PLAYED
    y = x * 2 + 1
    assert played.asked == []
    assert float(y[1]) == 3.0
    assert y[y > 3].cpu().tolist() == [5.0, 7.0, 9.0]
    torch.arange(3, device=PLAYED).repeat_interleave(torch.ones(3, dtype=torch.int64, device=PLAYED))
    torch.arange(3, device=PLAYED).repeat_interleave(torch.ones(3, dtype=torch.int64, device=PLAYED), output_size=3)
    assert played.asked == [
        "aten._local_scalar_dense.default",
        "aten.index.Tensor",
        "a transfer of [3]",
        "aten.repeat_interleave.Tensor",
    ]
    with pytest.raises(AssertionError, match="tensors of two devices"):
        x + torch.ones(5)


@pytest.mark.parametrize("exclude", [True, False])
def test_recommendations_take_the_ranking_kernel(played, monkeypatch, exclude):
    """One call a block of users; of equal scores the lower item comes first, as on the CPU."""
    (user, item, _), train, _ = case()
    model = zx.MatrixFactorization(61, 97, 5)
    model.load_state_dict(dict(zip(model.state_dict(), (user, item), strict=True)))
    want = model.recommend(
        torch.arange(61).repeat(2), 13, exclude=train if exclude else None
    )  # enough for the CPU's kernel
    calls = []
    original = _ops.rank_scores
    monkeypatch.setattr(
        "zerosum_ext._ops.ranking.rank_scores", lambda *args: calls.append(args[0].shape) or original(*args)
    )
    there = model.to(PLAYED)
    got = there.recommend(torch.arange(61).repeat(2), 13, exclude=train if exclude else None)
    assert calls == [(122, 97)]
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g.cpu(), w)
    with torch.no_grad():
        there.state_dict()[next(iter(there.state_dict()))][3] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        there.recommend([1, 3], 5)
