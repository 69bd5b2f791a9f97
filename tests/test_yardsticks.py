"""Models that are made at once: most popular, EASE, iALS."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import zerosum_ext as zx
from zerosum_ext import models
from zerosum_ext.experiments import runs
from zerosum_ext.models import EASE, IALS, MostPopular, Recommender, yardsticks


def interactions(users=40, items=30, seed=0):
    rng = np.random.default_rng(seed)
    owned = rng.random((users, items)) < np.linspace(0.6, 0.05, items)
    owned[7] = False  # a user without any
    return zx.Interactions.from_arrays(*owned.nonzero(), shape=owned.shape)


def test_most_popular():
    train = interactions()
    model = MostPopular.from_interactions(train)
    scores = model.score_all_items(torch.arange(40))
    assert torch.equal(scores, train.popularity.float().expand(40, -1))
    items, _ = model.recommend([0, 1], 3)
    assert torch.equal(items[0], items[1])
    with pytest.raises(ValueError, match="expected a parameter that requires a gradient"):
        model.fit(train, "bpr", epochs=1)


def test_ease_is_the_formula_of_the_paper():
    train = interactions()
    x = train.to_scipy().toarray().astype(np.float64)
    inverse = np.linalg.inv(x.T @ x + 5.0 * np.eye(30))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    model = EASE.from_interactions(train, l2=5.0)
    users = torch.tensor([3, 7, 0, 3])
    np.testing.assert_allclose(model.score_all_items(users), (x @ weights)[users], atol=1e-5)
    items = torch.tensor([[1, 2], [3, 4], [5, 5], [0, 29]])
    np.testing.assert_allclose(
        model(users, items), np.take_along_axis((x @ weights)[users], items.numpy(), 1), atol=1e-5
    )
    assert model.predict(3, [4]).shape == (1,)
    # The constrained least squares: no other weight without a diagonal costs less.
    rng, best = np.random.default_rng(0), ((x - x @ weights) ** 2).sum() + 5 * (weights**2).sum()
    for _ in range(20):
        other = weights + 1e-3 * rng.standard_normal(weights.shape)
        np.fill_diagonal(other, 0)
        assert ((x - x @ other) ** 2).sum() + 5 * (other**2).sum() > best


@pytest.mark.parametrize("block", [1, 1 << 22])
def test_each_sweep_of_ials_solves_its_normal_equations(block, monkeypatch):
    monkeypatch.setattr(yardsticks, "_BLOCK", block)
    train = interactions()
    x = train.to_scipy().toarray().astype(np.float64)
    model = IALS.from_interactions(train, embedding_dim=6, alpha0=0.2, l2=0.05, sweeps=3)
    p, q = (t.double().numpy() for t in (model.user_embedding, model.item_embedding))
    for item in range(30):  # solved last, for these users
        seen = x[:, item] == 1
        strength = 0.05 * (seen.sum() + 0.2 * 40)
        left = p[seen].T @ p[seen] + 0.2 * p.T @ p + strength * np.eye(6)
        np.testing.assert_allclose(q[item], np.linalg.solve(left, p[seen].sum(0)), rtol=1e-3, atol=1e-4)
    assert not p[7].any()


def test_sweeps_of_ials_lower_the_objective():
    train = interactions()
    x = train.to_scipy().toarray()

    def objective(sweeps):
        model = IALS.from_interactions(train, embedding_dim=6, alpha0=0.2, l2=0.05, sweeps=sweeps)
        p, q = model.user_embedding.numpy(), model.item_embedding.numpy()
        y = p @ q.T
        norms = [(x.sum(1 - a) + 0.2 * x.shape[1 - a]) @ (t**2).sum(1) for a, t in enumerate((p, q))]
        return (x * (y - 1) ** 2).sum() + 0.2 * (y**2).sum() + 0.05 * sum(norms)

    values = [objective(sweeps) for sweeps in (1, 2, 4, 8)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("kind", [MostPopular, EASE, IALS])
def test_files(kind, tmp_path):
    model = kind.from_interactions(interactions())
    model.save(tmp_path / "m.safetensors")
    again = Recommender.load(tmp_path / "m.safetensors")
    assert type(again) is kind
    assert again.config() == model.config()
    users = torch.arange(40)
    assert torch.equal(again.score_all_items(users), model.score_all_items(users))
    assert torch.equal(again.recommend(users, 5)[0], model.recommend(users, 5)[0])


def test_methods_without_training(tmp_path):
    train, backbone = interactions(), zx.MatrixFactorization(40, 30, 6, seed=0)
    for name, options in (("popular", {}), ("ease", {"l2": 9.0}), ("ials", {"alpha0": 0.3, "sweeps": 2})):
        parts = models.get_method(name, backbone, train, **options)
        assert parts.loss is None
        assert models.trained_directly(name)
        assert set(models.method_options(name)) >= set(options)
        for option, value in options.items():
            assert getattr(parts.model, option) == value
    assert parts.model.embedding_dim == 6
    assert not models.trained_directly("bpr")
    with pytest.raises(ValueError, match="method 'popular': expected no option, got 'l2'"):
        models.get_method("popular", backbone, train, l2=1.0)
    with pytest.raises(ValueError, match="loss_options: expected those of 'ease', l2, got 'w'"):
        runs.Method(loss="ease", loss_options={"w": 1})


@pytest.mark.parametrize("name", ["popular", "ease", "ials"])
def test_in_a_run(name, tmp_path):
    method = runs.Method(loss=name, embedding_dim=4, epochs=2)
    run = runs.train(interactions(), tmp_path / "run", method, progress=False)
    assert run.histories[name].engine == "none"
    assert len(run.histories[name]) == 0
    opened = runs.Run.open(tmp_path / "run")
    known = {key: value for key, value in run.metrics[name].items() if value is not None}
    assert opened.evaluate(methods=[name])[0][name].items() >= known.items()
    assert {"recall_tail@10", "snips_ndcg@20"} <= run.metrics[name].keys()
    assert len(opened.recommend([0], 3, method=name)[0].items) == 3


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: EASE(interactions(), l2=0), "l2: expected a number > 0, got 0"),
        (lambda: IALS(4, 5, alpha0=0), "alpha0: expected a number > 0, got 0"),
        (lambda: IALS(4, 5, l2=-1), "l2: expected a number >= 0"),
        (lambda: IALS(4, 5, sweeps=0), "sweeps: expected"),
        (
            lambda: EASE(zx.Interactions.from_arrays([0], [1], shape=(1, 20_001))),
            "expected at most 20,000 items, as EASE holds items x items numbers, got 20,001",
        ),
    ],
)
def test_bad_options(make, text):
    with pytest.raises(ValueError, match=text):
        make()
