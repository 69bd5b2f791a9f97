"""Negatives that blocks of samples share: their definition, their distribution, and training on them."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from scipy import stats

import zerosum_ext as zx
from zerosum_ext import _ops
from zerosum_ext.training import fit, fused

compiled = pytest.mark.skipif(not _ops.has_op("mf_train", torch.device("cpu")), reason="no compiled kernels")

ITEMS = 14


def dense(users=20, items=ITEMS, seed=0, most=0.9):
    """Users who have between none and most of the items."""
    generator = np.random.default_rng(seed)
    held = generator.random((users, items)) < np.linspace(0, most, users)[:, None]
    held[:, -1] = False
    return zx.Interactions.from_arrays(*np.nonzero(held), shape=(users, items))


def by_hand(loader, begin, end, epoch, size):
    """The definition, one slot after another."""
    users, positives, _ = loader.samples_between(begin, end, epoch)
    data, k, options = loader.interactions, loader.negatives, {"seed": loader.seed, "epoch": epoch}
    popular = {"strategy": "popularity"} if loader._strategy.name == "popularity" else {}
    # A user without interactions, in a matrix of the same popularity.
    nobody = zx.Interactions.from_arrays(*data_with_an_empty_user(data), shape=(data.num_users + 1, data.num_items))
    rows = []
    for number, user in zip(range(begin, end), users.tolist(), strict=True):
        block = number // size
        shared = zx.sample_negatives(nobody, [data.num_users], k, offset=2**62 + block, **options, **popular)
        items, held = shared[0].tolist(), set(data.indices[data.indptr[user] : data.indptr[user + 1]].tolist())
        row = []
        for slot in range(k):
            around = [items[(slot + step) % k] for step in range(k)]
            row.append(next((item for item in around if item not in held), None))
        if row[0] is None:
            row = zx.sample_negatives(data, [user], k, offset=number, **options, **popular)[0].tolist()
        rows.append(row)
    return users, positives, torch.tensor(rows)


def data_with_an_empty_user(data):
    users = torch.repeat_interleave(torch.arange(data.num_users), data.user_counts)
    return users.numpy(), data.indices.numpy()


@pytest.mark.parametrize("strategy", ["uniform", "popularity"])
@pytest.mark.parametrize(("k", "size"), [(1, 3), (2, 7), (5, 64), (17, 1)])
def test_they_are_what_the_definition_says(k, size, strategy):
    data = dense()
    loader = zx.TripletLoader(data, 32, seed=3, negatives=k, negatives_shared=size, strategy=strategy, draws=2)
    users, positives, expected = by_hand(loader, 5, 120, 4, size)
    plain = zx.TripletLoader(data, 32, seed=3, negatives=k, strategy=strategy, draws=2).samples_between(5, 120, 4)
    assert torch.equal(users, plain[0]), "users and positives are those without sharing"
    assert torch.equal(positives, plain[1])
    got = loader.samples_between(5, 120, 4)[2].reshape(-1, k)
    assert torch.equal(got, expected)
    held = _ops.has_items(users, got, data.indptr, data.indices, None, data.num_items)
    assert not held.any()


def test_batches_do_not_change_them():
    data = dense()
    options = {"seed": 1, "negatives": 4, "negatives_shared": 5}
    whole = zx.TripletLoader(data, 1000, **options).samples_between(0, 100, 2)[2]
    parts = [zx.TripletLoader(data, 7, **options).samples_between(b, min(b + 7, 100), 2)[2] for b in range(0, 100, 7)]
    assert torch.equal(torch.cat(parts), whole)
    first = next(iter(zx.TripletLoader(data, 10, **options)))[2]
    assert torch.equal(first, zx.TripletLoader(data, 1000, **options).samples_between(0, 10, 0)[2])


@pytest.mark.parametrize("strategy", ["uniform", "popularity"])
def test_every_slot_is_distributed_as_without_sharing(strategy):
    # User 0 has five of ten items; the others make popularity uneven. One sample of each block, so that counts are of
    # independent draws. With two slots user 0 has both items of a list in a quarter of the blocks.
    counts = np.array([9, 7, 5, 3, 2, 8, 6, 4, 2, 1])
    users = np.concatenate([np.arange(1, c + 1) for c in counts] + [np.zeros(5, int)])
    items = np.concatenate([np.repeat(np.arange(10), counts), np.arange(5)])
    data = zx.Interactions.from_arrays(users, items)
    weights = data.popularity.double() if strategy == "popularity" else torch.ones(10, dtype=torch.float64)
    for k, size in ((2, 4), (6, 16)):
        options = {"negatives": k, "negatives_shared": size, "strategy": strategy, "draws": 4000}
        loader = zx.TripletLoader(data, 512, seed=11, **options)
        drawn_for, _, negatives = loader.samples_between(0, loader.num_samples, 0)
        blocks = torch.arange(loader.num_samples) // size
        mine = (drawn_for == 0).nonzero().flatten()
        _, first = np.unique(blocks[mine].numpy(), return_index=True)
        rows = negatives[mine[torch.from_numpy(first)]]
        assert len(rows) > 8000
        expected = weights[5:] / weights[5:].sum() * len(rows)
        for slot in range(k):
            seen = torch.bincount(rows[:, slot], minlength=10)
            assert int(seen[:5].sum()) == 0
            assert stats.chisquare(seen[5:].numpy(), expected.numpy()).pvalue > 1e-4


def test_what_does_not_go_together_is_refused():
    data = dense()
    for options, text in (
        ({"positives": 2}, "positives: expected 1 with negatives_shared, got 2"),
        ({"replacement": False}, "replacement: expected True with negatives_shared, got False"),
        ({"negatives": 0}, "negatives: expected 1 to 65535 with negatives_shared, got 0"),
        ({"negatives": 65536}, "negatives: expected 1 to 65535 with negatives_shared, got 65536"),
        ({"negatives_shared": -1}, "negatives_shared: expected an integer in .0, 4096., got -1"),
        ({"negatives_shared": 4097}, "negatives_shared: expected an integer in .0, 4096., got 4097"),
    ):
        with pytest.raises(ValueError, match=text):
            zx.TripletLoader(data, 8, **{"negatives_shared": True, "negatives": 2} | options)
    model = zx.MatrixFactorization(20, ITEMS, 4, seed=0)
    with pytest.raises(ValueError, match="positives: expected 1 with negatives_shared, got 2"):
        fit(model, data, "pos2neg2", negatives_shared=True)
    with pytest.raises(TypeError, match="negatives_shared: expected an integer"):
        fit(model, data, "bpr", negatives_shared="yes")


# ---- training

LOSSES = {
    "zerosum": zx.ZerosumLoss(),
    "bpr": zx.BPRLoss(reduction="sum"),
    "softmax": zx.SampledSoftmaxLoss(temperature=0.5),
    "ccl": zx.losses.get_loss("ccl", margin=0.1, weight=2.0),
    "hardest": zx.losses.get_loss("hardest"),
    "ipw": zx.IPWLoss(torch.arange(1.0, ITEMS + 1)),
}
OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.1),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=0.05, eps=1e-6),
    "adam": functools.partial(torch.optim.Adam, lr=0.01, eps=1e-6),
    "sparse_adam": functools.partial(torch.optim.SparseAdam, lr=0.01, eps=1e-6),
}


def both_ways(loss, optimizer, k, size, batch, dim=10, l2=0.05, clip=None, asynchronous=False, data=None, **options):
    """The same samples as blocks and one by one; returns states before and after either."""
    data, results, totals = dense() if data is None else data, [], []
    for shared in (True, False):
        model = zx.MatrixFactorization(*data.shape, dim, seed=1, init_std=0.4, **options)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        loader = zx.TripletLoader(data, batch, seed=2, negatives=k, negatives_shared=size, draws=2)
        made = OPTIMIZERS[optimizer](model.parameters())
        step = fused.FusedStep(model, LOSSES[loss], made, l2, clip, asynchronous)
        begin, end = 3, 120
        if shared:
            totals.append(float(step.draw_and_train(loader, begin, end, 1)))
        else:
            users, positives, negatives = loader.samples_between(begin, end, 1)
            totals.append(float(step(users, positives, negatives, batch)))
        results.append(model.state_dict())
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)
    return before, *results


def same(before, got, expected, share=1e-3):
    for name, value in expected.items():
        moved = float((value - before[name]).abs().max())
        assert moved > 1e-4
        torch.testing.assert_close(got[name], value, rtol=0, atol=share * moved)


@compiled
@pytest.mark.parametrize("cosines", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_blocks_train_as_their_samples_do(loss, optimizer, cosines):
    k, size = {"softmax": (20, 64), "ccl": (3, 5)}.get(loss, (2, 16))
    same(*both_ways(loss, optimizer, k, size, 50, normalize=cosines, item_bias=True))


@compiled
@pytest.mark.parametrize(
    ("k", "size", "batch", "dim"), [(1, 64, 64, 1), (33, 9, 117, 32), (64, 64, 30, 64), (7, 7, 1, 16)]
)
def test_blocks_of_all_shapes(k, size, batch, dim):
    same(*both_ways("softmax", "adagrad", k, size, batch, dim, clip=0.3))


@compiled
@pytest.mark.parametrize(("k", "items", "most"), [(64, 300, 0.6), (64, 4000, 0.2), (70, 4000, 0.02), (130, 500, 0.9)])
def test_lists_beside_rows_of_every_length(k, items, most):
    """Rows that have bitmaps or hashed filters, with many of a list's items, few or none of them."""
    same(*both_ways("softmax", "sgd", k, 16, 50, 16, data=dense(20, items, most=most)))


@compiled
@pytest.mark.parametrize("frozen", ["user_embedding", "item_embedding", "item_bias"])
def test_frozen_tables_stay(frozen):
    results = []
    for engine in ("fused", "autograd"):
        model = zx.MatrixFactorization(20, ITEMS, 8, seed=1, item_bias=True)
        model.get_parameter(frozen).requires_grad_(False)
        options = {"negatives": 5, "negatives_shared": True, "batch_size": 40, "epochs": 2, "progress": False}
        history = fit(model, dense(), "sampled_softmax", "sgd", lr=0.5, engine=engine, **options)
        results.append((list(history), model.state_dict()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for name, value in results[0][1].items():
        torch.testing.assert_close(value, results[1][1][name], rtol=1e-4, atol=1e-6)


@compiled
@pytest.mark.threads
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "sparse_adam"])
def test_the_same_bits_for_any_number_of_threads(optimizer):
    data = dense(1200, 90, most=0.3)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            model = zx.MatrixFactorization(1200, 90, 32, seed=1, item_bias=True, normalize=True)
            options = {"negatives": 16, "negatives_shared": True, "batch_size": 3000, "epochs": 1, "progress": False}
            assert fit(model, data, LOSSES["softmax"], OPTIMIZERS[optimizer], **options).engine == "fused"
            results.append(model.state_dict())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(value, other[name]) for name, value in results[0].items())


@compiled
@pytest.mark.threads
@pytest.mark.parametrize("cosines", [False, True])
@pytest.mark.parametrize("loss", ["bpr", "softmax", "ccl"])
def test_a_block_is_a_step_of_hogwild(loss, cosines):
    k, size, begin, end, rate = 6, 8, 3, 90, 0.01
    data = dense()
    loader = zx.TripletLoader(data, 40, seed=2, negatives=k, negatives_shared=size, draws=2)
    model = zx.MatrixFactorization(20, ITEMS, 10, seed=1, init_std=0.4, normalize=cosines, item_bias=True)
    started = {name: value.clone() for name, value in model.state_dict().items()}
    double = zx.MatrixFactorization(20, ITEMS, 10, normalize=cosines, item_bias=True, dtype=torch.float64)
    double.load_state_dict(model.state_dict())
    module = LOSSES[loss]
    step = fused.FusedStep(model, module, torch.optim.SGD(model.parameters(), lr=rate), 0.1, asynchronous=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        # Each call takes its blocks from where it begins: the number of a sample alone decides on its list.
        step.draw_and_train(loader, begin, end, 0)
    finally:
        torch.set_num_threads(before)
    cuts = [begin]
    for task in range(begin, end, size):
        inner = -(-(task + 1) // size) * size
        cuts += [at for at in (inner, min(task + size, end)) if cuts[-1] < at <= end]
    for first, last in itertools.pairwise(cuts):
        users, positives, negatives = loader.samples_between(first, last, 0)
        items = torch.cat([positives.unsqueeze(1), negatives], 1)
        scores = double(users, items)
        # With "sum" a pair is a sample; else each sample is the mean of what it gives.
        each = 1 if module.reduction == "sum" else last - first
        value = each * module(scores[:, 0], scores[:, 1:]) + 0.1 * (last - first) * double.l2_penalty(users, items)
        double.zero_grad()
        value.backward()
        with torch.no_grad():
            for parameter in double.parameters():
                parameter -= rate * parameter.grad
    expected = {name: value.float() for name, value in double.state_dict().items()}
    same(started, model.state_dict(), expected, 0.03)


@compiled
def test_fit_with_shared_negatives_resumes_and_learns(tmp_path):
    data = zx.datasets.synthetic_triangle(60, 60)
    file = tmp_path / "run.pt"
    options = {"negatives": 8, "batch_size": 100, "progress": False, "negatives_shared": True}

    def trained(engine="auto", optimizer="adam", lr=0.02, **more):
        model = zx.MatrixFactorization(60, 60, 16, seed=1)
        return model, fit(model, data, "sampled_softmax", optimizer, lr=lr, engine=engine, **options | more)

    whole, history = trained(epochs=6)
    assert history.engine == "fused"
    assert history[-1] < 0.7 * history[0]
    trained(epochs=2, checkpoint=file)
    resumed, _ = trained(epochs=6, resume=file)
    assert torch.equal(resumed.user_embedding, whole.user_embedding)
    assert torch.equal(resumed.item_embedding, whole.item_embedding)
    with pytest.raises(ValueError, match="written with negatives_shared=64, this run has None"):
        trained(epochs=6, resume=file, negatives_shared=False)
    _, history = trained("hogwild", "sgd", 0.05, epochs=6)
    assert history.engine == "hogwild"
    assert history[-1] < 0.7 * history[0]


@compiled
def test_excluded_items_are_no_negatives_either():
    data, other = dense(), dense(seed=5)
    model = zx.MatrixFactorization(20, ITEMS, 8, seed=1)
    seen = []

    def look(users, positives, negatives):
        for both in (data, other):
            seen.append(bool(_ops.has_items(users, negatives, both.indptr, both.indices, None, ITEMS).any()))
        return users, positives, negatives

    options = {"negatives": 4, "negatives_shared": 8, "epochs": 1, "progress": False, "exclude": other}
    fit(model, data, "sampled_softmax", transform=look, **options)
    assert seen
    assert not any(seen)
