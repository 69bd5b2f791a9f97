"""Training with the weights of interactions."""

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
import torch

import zerosum_ext as zx
from zerosum_ext import _ops
from zerosum_ext.training.fused import FusedStep
from zerosum_ext.training.weights import PairWeights

LOSSES = ["bpr", "zerosum", "pos2neg2", "sampled_softmax", "bsl", "psl", "hinge"]


def _data(seed=0):
    rng = np.random.default_rng(seed)
    matrix = sp.csr_matrix(np.where(rng.random((30, 20)) < 0.3, rng.integers(1, 5, (30, 20)), 0).astype(np.float32))
    return zx.Interactions.from_scipy(matrix, weights=True)


def _loss(name):
    return zx.BSLLoss(positive_temperature=1.0, negative_temperature=1.0) if name == "bsl" else name


def _fit(data, loss, **options):
    model = zx.MatrixFactorization(30, 20, 4, seed=0)
    history = model.fit(data, _loss(loss), epochs=2, batch_size=32, progress=False, negatives=2, **options)
    return model.user_embedding.detach().clone(), list(history)


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_of_one_change_nothing_and_others_do(loss):
    data = _data()
    ones = data.with_columns({**data.columns, "weights": np.ones(data.nnz, np.float32)})
    plain, losses = _fit(ones, loss, engine="autograd")
    table, weighted = _fit(ones, loss, sample_weight="weights")
    torch.testing.assert_close(table, plain)
    assert weighted == pytest.approx(losses)
    assert not torch.allclose(_fit(data, loss, sample_weight="weights")[0], plain, atol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_each_sample_has_the_weight_of_its_interaction(loss):
    """By the definition: the loss of the first batch with the weights of a dense matrix."""
    data = _data()
    module = zx.get_loss(loss) if isinstance(_loss(loss), str) else _loss(loss)
    pairs = module.num_positives == 2
    model = zx.MatrixFactorization(30, 20, 4, seed=0, init_std=0.5)
    loader = zx.TripletLoader(data, 10**6, positives=2 if pairs else 1, negatives=2, seed=0)
    users, positives, negatives = next(iter(loader))
    dense = torch.zeros(30, 20)
    dense[data.pairs()] = data.weights
    weights = dense[users, positives] if not pairs else dense[users[:, None], positives].mean(1)
    with torch.no_grad():
        pos = model(users, positives)
        want = module(pos, model(users, negatives), sample_weight=weights)
    history = model.fit(
        data, _loss(loss), epochs=1, batch_size=10**6, negatives=2, sample_weight="weights", progress=False
    )
    assert history[0] == pytest.approx(float(want), rel=1e-5)


def test_a_weight_of_zero_leaves_an_interaction_out():
    data = _data()
    users = data.pairs()[0].numpy()
    zeros = data.with_columns({**data.columns, "weights": np.where(users == 3, 0, 1).astype(np.float32)})
    start = zx.MatrixFactorization(30, 20, 4, seed=0).user_embedding
    table = _fit(zeros, "bpr", sample_weight="weights", optimizer=lambda p: torch.optim.SGD(p, lr=0.5))[0]
    assert torch.equal(table[3], start[3])
    assert not torch.equal(table[4], start[4])


def test_resumed_training_wants_the_same_weights(tmp_path):
    data = _data()
    options = {"loss": "bpr", "sample_weight": "weights", "progress": False, "batch_size": 32}
    zx.MatrixFactorization(30, 20, 4, seed=0).fit(data, epochs=1, checkpoint=tmp_path / "c.pt", **options)
    whole = zx.MatrixFactorization(30, 20, 4, seed=0)
    whole.fit(data, epochs=2, **options)
    model = zx.MatrixFactorization(30, 20, 4, seed=5)
    model.fit(data, epochs=2, resume=tmp_path / "c.pt", **options)
    assert torch.equal(model.user_embedding, whole.user_embedding)
    other = data.with_columns({**data.columns, "weights": 2 * data.columns["weights"]})
    for wrong, changed in ((other, {}), (data, {"sample_weight": None})):
        with pytest.raises(ValueError, match="was written with weights="):
            model.fit(wrong, epochs=2, resume=tmp_path / "c.pt", **{**options, **changed})


def test_what_is_refused():
    data = _data()
    with pytest.raises(ValueError, match="sample_weight: expected None, 'weights' or 'drawn', got 'rating'"):
        _fit(data, "bpr", sample_weight="rating")
    with pytest.raises(ValueError, match="sample_weight: expected interactions with weights"):
        _fit(zx.Interactions.from_scipy(data.to_scipy()), "bpr", sample_weight="weights")
    negative = data.with_columns({**data.columns, "weights": np.full(data.nnz, -1, np.float32)})
    with pytest.raises(ValueError, match=r"expected finite weights >= 0, got -1\.0 at position 0"):
        _fit(negative, "bpr", sample_weight="weights")
    with pytest.raises(ValueError, match="with a transform"):
        _fit(data, "bpr", sample_weight="weights", transform=lambda *batch: batch)

    class Plain(torch.nn.Module):
        def forward(self, pos, neg):
            return (neg - pos).mean()

    model = zx.MatrixFactorization(30, 20, 4, seed=0)
    with pytest.raises(ValueError, match="Plain takes no sample_weight"):
        model.fit(data, Plain(), epochs=1, sample_weight="weights", progress=False)


# --- the compiled engines -------------------------------------------------------------------------------------------


compiled = pytest.mark.skipif(not _ops.has_op("mf_train", torch.device("cpu")), reason="no compiled kernels")


@compiled
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adagrad", "sparse_adam"])
def test_the_fused_engine_trains_what_autograd_does(loss, optimizer):
    data = _data()
    rate = {"optimizer": optimizer, "lr": 0.05}
    table, losses = _fit(data, loss, engine="fused", sample_weight="weights", **rate)
    want, expected = _fit(data, loss, engine="autograd", sample_weight="weights", **rate)
    torch.testing.assert_close(table, want, rtol=1e-3, atol=1e-5)
    assert losses == pytest.approx(expected, rel=1e-4)


@compiled
@pytest.mark.parametrize("options", [{"negatives_shared": 8}, {"l2": 0.1, "clip_row_norm": 0.01}, {"draws": 3}])
def test_the_fused_engine_weighs_with_other_settings_too(options):
    data = _data()
    table, _ = _fit(data, "zerosum", engine="fused", sample_weight="weights", **options)
    want, _ = _fit(data, "zerosum", engine="autograd", sample_weight="weights", **options)
    torch.testing.assert_close(table, want, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(table, _fit(data, "zerosum", engine="fused", **options)[0], atol=1e-5)


@compiled
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("engine", ["fused", "hogwild"])
@pytest.mark.parametrize("shared", [False, 8])
def test_weights_of_one_give_the_bits_of_none(loss, engine, shared):
    if shared and loss == "pos2neg2":
        pytest.skip("pairs of positives do not share")
    data = _data()
    ones = data.with_columns({**data.columns, "weights": np.ones(data.nnz, np.float32)})
    options = {"engine": engine, "optimizer": "sgd", "lr": 0.1, "negatives_shared": shared}
    assert torch.equal(_fit(ones, loss, sample_weight="weights", **options)[0], _fit(ones, loss, **options)[0])


@compiled
@pytest.mark.threads
@pytest.mark.parametrize("loss", ["zerosum", "pos2neg2", "bsl"])
def test_the_bits_do_not_depend_on_the_threads(loss):
    rng = np.random.default_rng(0)
    matrix = sp.random(400, 300, 0.05, "csr", random_state=1, data_rvs=lambda n: rng.integers(1, 5, n).astype(float))
    data = zx.Interactions.from_scipy(matrix, weights=True)
    tables, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            model = zx.MatrixFactorization(400, 300, 16, seed=0)
            model.fit(data, _loss(loss), epochs=1, batch_size=2048, progress=False, sample_weight="weights")
            tables.append(model.item_embedding.detach().clone())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(tables[0], tables[1])
    assert torch.equal(tables[0], tables[2])


@compiled
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shared", [False, 8])
def test_a_step_of_hogwild_is_as_long_as_the_weight_says(loss, shared):
    """Twice the weight at half the rate is the same step, to the bit."""
    if shared and loss == "pos2neg2":
        pytest.skip("pairs of positives do not share")
    data = _data()
    twice = data.with_columns({**data.columns, "weights": 2 * data.columns["weights"]})
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        options = {"engine": "hogwild", "optimizer": "sgd", "sample_weight": "weights", "negatives_shared": shared}
        table, losses = _fit(data, loss, lr=0.25, **options)
        other, more = _fit(twice, loss, lr=0.125, **options)
        plain = _fit(data, loss, lr=0.25, **{**options, "sample_weight": None})[0]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(table, other)
    assert more == pytest.approx([2 * value for value in losses])
    assert not torch.allclose(table, plain, atol=1e-4)


@compiled
def test_auto_trains_weights_in_compiled_code_and_resumes(tmp_path):
    data = _data()
    options = {"loss": "bpr", "sample_weight": "weights", "progress": False, "batch_size": 32}
    whole, parts = (zx.MatrixFactorization(30, 20, 4, seed=0) for _ in range(2))
    assert whole.fit(data, epochs=2, **options).engine == "fused"
    parts.fit(data, epochs=1, checkpoint=tmp_path / "c.pt", engine="autograd", **options)
    parts.fit(data, epochs=2, resume=tmp_path / "c.pt", **options)
    torch.testing.assert_close(parts.user_embedding, whole.user_embedding, rtol=1e-4, atol=1e-6)


@compiled
def test_the_op_refuses_weights_of_another_matrix():
    data = _data()
    model = zx.MatrixFactorization(30, 20, 4, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for wrong in (torch.ones(data.nnz - 1), torch.ones(data.nnz, dtype=torch.float64), torch.ones(data.nnz, 1)):
        weights = PairWeights(data)
        weights.weights = wrong
        step = FusedStep(model, zx.BPRLoss(), optimizer, weights=weights)
        with pytest.raises(RuntimeError, match="weights must be"):
            step.draw_and_train(zx.TripletLoader(data, 32), 0, 32, 0)


# --- positives drawn by weight --------------------------------------------------------------------------------------


def _drawn(data, draws, **options):
    loader = zx.TripletLoader(data, 1 << 20, seed=5, draws=draws, positive_strategy="weights", **options)
    users, positives, negatives = (torch.cat(parts) for parts in zip(*loader, strict=True))
    return users, positives, negatives


def test_positives_are_drawn_in_proportion_to_their_weights():
    data = _data()
    weights = data.columns["weights"].astype(float)
    weights[::7] = 0
    data = data.with_columns({**data.columns, "weights": weights.astype(np.float32)})
    users, positives, negatives = _drawn(data, 400)
    assert len(users) == 400 * data.nnz
    own, items = data.pairs()
    counts = torch.zeros(30, 20).index_put_((users, positives), torch.ones(len(users)), accumulate=True)[own, items]
    assert counts.sum() == len(users)  # nothing but positives
    assert (counts[::7] == 0).all()
    kept = weights > 0
    expected = weights[kept] / weights.sum() * len(users)
    assert scipy.stats.chisquare(counts.numpy()[kept], expected).pvalue > 1e-3
    # Negatives are as uniform as ever, and independent of the entry: no fault of the seeds.
    dense = torch.zeros(30, 20, dtype=torch.bool)
    dense[own, items] = True
    assert not dense[users, negatives].any()
    user = int(users.mode().values)
    mine = negatives[users == user]
    seen = torch.bincount(mine, minlength=20)[~dense[user]].numpy()
    assert scipy.stats.chisquare(seen).pvalue > 1e-3
    first = data.indices[data.indptr[user]]
    table = [torch.bincount(mine[(positives[users == user] == first) == same], minlength=20) for same in (True, False)]
    table = torch.stack(table)[:, ~dense[user]].numpy()
    if (table.sum(1) > 0).all():
        assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


def test_users_without_negatives_are_not_drawn():
    matrix = np.zeros((3, 4), np.float32)
    matrix[0] = [9, 9, 9, 9]
    matrix[1, :2], matrix[2, 3] = 1, 2
    data = zx.Interactions.from_scipy(sp.csr_matrix(matrix), weights=True)
    users, positives, _ = _drawn(data, 1000)
    assert set(users.tolist()) == {1, 2}
    assert float((positives == 3).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_drawn_samples_do_not_depend_on_batches_and_processes():
    data = _data()
    whole = _drawn(data, 1)
    loaders = [
        zx.TripletLoader(data, 8, seed=5, positive_strategy="weights", rank=rank, world_size=2) for rank in (0, 1)
    ]
    parts = [batch[:2] for both in zip(*loaders, strict=True) for batch in both]
    assert torch.equal(torch.cat([users for users, _ in parts]), whole[0])
    assert torch.equal(torch.cat([positives for _, positives in parts]), whole[1])


@pytest.mark.parametrize("loss", ["zerosum", "bsl"])
def test_training_on_drawn_positives(loss):
    data = _data()
    options = {"sample_weight": "drawn"}
    table, _ = _fit(data, loss, engine="autograd", **options)
    torch.testing.assert_close(_fit(data, loss, **options)[0], table, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(_fit(data, loss)[0], table, atol=1e-4)
    with pytest.raises(ValueError, match="positives: expected 1 with positive_strategy='weights'"):
        _fit(data, "pos2neg2", **options)
    with pytest.raises(ValueError, match="positive_strategy: expected interactions with weights"):
        _fit(zx.Interactions.from_scipy(data.to_scipy()), loss, **options)
