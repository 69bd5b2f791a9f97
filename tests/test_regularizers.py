"""The Pearson regularizer: its op against the definition, gradients, and what it does in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import zerosum_ext as zx
from zerosum_ext import _ops, reference
from zerosum_ext.training.regularizers import PearsonRegularizer, Regularizer, popularity_correlation


def interactions(users=37, items=53, seed=0, density=0.2):
    random = np.random.default_rng(seed)
    chance = density * np.linspace(2.0, 0.2, items)
    rows, columns = np.nonzero(random.random((users, items)) < chance)
    return zx.Interactions.from_arrays(rows, columns, shape=(users, items))


def tables(x, width=19, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((x.num_users, width), (x.num_items, width), (x.num_items,))
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 16, 35])
@pytest.mark.parametrize("biased", [False, True])
def test_the_ops_are_what_the_reference_says(dtype, width, biased):
    x = interactions(users=600)
    user, item, bias = tables(x, width, dtype)
    bias = bias if biased else None
    z = x.popularity.to(dtype)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-11}
    csr = (x.indptr, x.indices)
    torch.testing.assert_close(
        _ops.csr_score_moments(user, item, bias, *csr, z),
        reference.csr_score_moments(user, item, bias, *csr, z),
        rtol=tolerance["rtol"],
        atol=1e-2 if dtype == torch.float32 else 1e-9,
    )
    for row_x, column_x in ((None, z), (user[:, 0].contiguous(), None)):
        arguments = (user, item, None, bias, *csr, row_x, column_x, 0.3)
        got, expected = _ops.csr_weighted_columns(*arguments), reference.csr_weighted_columns(*arguments)
        scale = expected[0].abs().max()
        torch.testing.assert_close(got[0] / scale, expected[0] / scale, **tolerance)
        torch.testing.assert_close(got[1] / scale, expected[1] / scale, **tolerance)


def test_the_correlation_is_numpys():
    x = interactions()
    user, item, bias = tables(x)
    users, items = x.pairs()
    scores = (user[users] * item[items]).sum(1) + bias[items]
    expected = np.corrcoef(scores.numpy(), x.popularity[items].numpy())[0, 1]
    assert float(popularity_correlation(user, item, x, bias)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("biased", [False, True])
def test_gradients(biased):
    x = interactions(users=9, items=11)
    leaves = [t.requires_grad_() for t in tables(x, 3)][: 3 if biased else 2]

    def correlation(user, item, bias=None):
        return popularity_correlation(user, item, x, bias).square()

    assert torch.autograd.gradcheck(correlation, leaves)
    assert torch.autograd.gradgradcheck(correlation, leaves)


@pytest.mark.threads
def test_the_bits_do_not_depend_on_the_threads():
    x = interactions(users=2000)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            user, item, bias = (t.requires_grad_() for t in tables(x, dtype=torch.float32))
            value = popularity_correlation(user, item, x, bias)
            value.backward()
            results.append((value.detach(), user.grad, item.grad, bias.grad))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("constant", [0.0, 0.3])
def test_constant_scores_have_correlation_0_and_gradient_0(constant):
    x = interactions()
    user = torch.full((x.num_users, 4), constant, requires_grad=True)
    item = torch.full((x.num_items, 4), constant, requires_grad=True)
    value = popularity_correlation(user, item, x)
    value.backward()
    assert float(value.detach()) == 0
    assert not user.grad.any()
    assert not item.grad.any()


def test_equally_popular_items_have_correlation_0():
    x = zx.Interactions.from_arrays(np.arange(6), np.arange(6) % 3, shape=(6, 3))
    user, item, _ = tables(x)
    assert float(popularity_correlation(user, item, x)) == 0


@pytest.mark.parametrize("name", ["mf", "neumf", "lightgcn"])
def test_gradients_of_a_model_are_those_of_the_definition(name):
    """Dot products go through the op, other models through blocks; dropout-free, both are the plain derivative."""
    x = interactions()
    model = zx.get_model(name, x, embedding_dim=6, init_std=0.5, seed=0).double().eval()
    value = PearsonRegularizer(x, weight=3.0).add_gradients(model)
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    users, items = x.pairs()
    scores = model(users, items)
    r = torch.corrcoef(torch.stack([scores, x.popularity[items].double()]))[0, 1]
    (3.0 * r.square()).backward()
    assert float(value) == pytest.approx(3.0 * float(r.detach()) ** 2, rel=1e-6)
    for gradient, parameter in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("every", [None, 1, 3])
def test_training_with_it_lowers_the_correlation(every):
    x = interactions(users=80, items=60)
    plain, regularized = (zx.MatrixFactorization(80, 60, 8, seed=0) for _ in range(2))
    options = {"epochs": 12, "batch_size": 128, "optimizer": lambda p: torch.optim.Adam(p, lr=1e-2), "draws": 3}
    plain.fit(x, "bpr", **options)
    term = PearsonRegularizer(x, weight=5.0, every=every)
    history = regularized.fit(x, "bpr", regularizer=term, **options)
    assert history[-1] < history[0]
    assert abs(term.correlation(regularized)) < 0.7 * abs(term.correlation(plain))


@pytest.mark.parametrize("every", [None, 4])
def test_resumed_training_ends_in_the_same_bits(tmp_path, every):
    x = interactions()
    options = {"batch_size": 50, "regularizer": PearsonRegularizer(x, every=every)}
    whole, parts = (zx.MatrixFactorization(37, 53, 8, seed=0) for _ in range(2))
    whole.fit(x, "bpr", epochs=4, **options)
    parts.fit(x, "bpr", epochs=2, checkpoint=tmp_path / "run.pt", **options)
    parts.fit(x, "bpr", epochs=4, resume=tmp_path / "run.pt", **options)
    assert torch.equal(whole.item_embedding, parts.item_embedding)
    with pytest.raises(ValueError, match="regularizer="):
        parts.fit(x, "bpr", epochs=5, batch_size=50, resume=tmp_path / "run.pt")


def test_it_is_called_when_it_says():
    x = interactions()

    class Counter(Regularizer):
        def __init__(self, every):
            self.every, self.calls = every, 0

        def add_gradients(self, model):
            self.calls += 1
            loss = model.user_embedding.sum() * 0
            loss.backward()
            return loss.detach()

    for every, expected in ((None, 3), (1, 3 * 5), (4, 3 * 5 // 4)):
        counter = Counter(every)
        size = -(-x.nnz // 5)
        zx.MatrixFactorization(37, 53, 4, seed=0).fit(x, "bpr", epochs=3, batch_size=size, regularizer=counter)
        assert counter.calls == expected


def test_bad_arguments():
    x = interactions()
    model = zx.MatrixFactorization(37, 53, 4, seed=0)
    with pytest.raises(ValueError, match="weight"):
        PearsonRegularizer(x, weight=-1.0)
    with pytest.raises(ValueError, match="every"):
        PearsonRegularizer(x, every=0)
    with pytest.raises(TypeError, match="regularizer"):
        model.fit(x, "bpr", regularizer="pearson")
    with pytest.raises(ValueError, match="SparseAdam"):
        model.fit(x, "bpr", regularizer=PearsonRegularizer(x), optimizer=torch.optim.SparseAdam)
    with pytest.raises(ValueError, match="interactions"):
        popularity_correlation(torch.zeros(3, 2), torch.zeros(4, 2), x)
