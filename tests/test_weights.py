"""Training with the weights of interactions."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import zerosum_ext as zx

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
    with pytest.raises(ValueError, match="sample_weight: expected None or 'weights', got 'rating'"):
        _fit(data, "bpr", sample_weight="rating")
    with pytest.raises(ValueError, match="sample_weight: expected interactions with weights"):
        _fit(zx.Interactions.from_scipy(data.to_scipy()), "bpr", sample_weight="weights")
    negative = data.with_columns({**data.columns, "weights": np.full(data.nnz, -1, np.float32)})
    with pytest.raises(ValueError, match=r"expected finite weights >= 0, got -1\.0 at position 0"):
        _fit(negative, "bpr", sample_weight="weights")
    for engine in ("fused", "hogwild"):
        with pytest.raises(ValueError, match="sample_weight: expected None"):
            _fit(data, "bpr", sample_weight="weights", engine=engine)
    with pytest.raises(ValueError, match="with a transform"):
        _fit(data, "bpr", sample_weight="weights", transform=lambda *batch: batch)

    class Plain(torch.nn.Module):
        def forward(self, pos, neg):
            return (neg - pos).mean()

    model = zx.MatrixFactorization(30, 20, 4, seed=0)
    with pytest.raises(ValueError, match="Plain takes no sample_weight"):
        model.fit(data, Plain(), epochs=1, sample_weight="weights", progress=False)
