"""Debiasing methods: every one trains every backbone; what they do at inference; in run folders and by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import zerosum_ext as zx
from zerosum_ext.experiments import runs
from zerosum_ext.models import (
    MACR,
    Compensated,
    MACRLoss,
    PopularityAdjusted,
    Recommender,
    choose,
    get_method,
    method_names,
    method_options,
    model_names,
    trained_directly,
)
from zerosum_ext.training import fit


def interactions(users=50, items=40, seed=0):
    random = np.random.default_rng(seed)
    chance = np.linspace(0.7, 0.05, items)
    # Two kinds of users, each with half of the items.
    kind = (np.arange(users)[:, None] + np.arange(items)[None]) % 2
    rows, columns = np.nonzero(random.random((users, items)) < chance * (0.2 + kind))
    return zx.Interactions.from_arrays(rows, columns, shape=(users, items))


X = interactions()


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("name", model_names())
def test_every_method_works_with_every_backbone(name, method):
    model = zx.get_model(name, X, embedding_dim=8, seed=0)
    parts = get_method(method, model, X, **({"w": 0.8} if "w" in method_options(method) else {}))
    assert (parts.loss is None) == trained_directly(method)
    if parts.loss is not None:
        lowers_its_loss(parts)
    ranker = parts.inference(parts.model)
    scores = ranker.score_all_items(torch.arange(4))
    assert scores.shape == (4, X.num_items)
    assert bool(scores.isfinite().all())
    users, items = torch.tensor([0, 3, 3]), torch.tensor([[1, 2], [3, 4], [5, 39]])
    torch.testing.assert_close(ranker.predict(users, items), scores[users].gather(1, items), rtol=1e-4, atol=1e-5)


def lowers_its_loss(parts):
    adam = lambda parameters: torch.optim.Adam(parameters, lr=0.02)  # noqa: E731
    options = {"batch_size": 256, "epochs": 6, "seed": 0}
    history = fit(parts.model, X, parts.loss, adam, regularizer=parts.regularizer, **options)
    assert min(history[-2:]) < history[0]


def random_model(name="mf", **options):
    return zx.get_model(name, X, embedding_dim=8, init_std=0.5, seed=0, **options)


@pytest.mark.parametrize("name", ["mf", "neumf", "lightgcn"])
def test_macr_scores_are_the_counterfactual(name):
    model = MACR(random_model(name).eval(), c=0.7)
    users, items = torch.tensor([0, 1]), torch.tensor([[1, 2], [3, 3]])
    with torch.no_grad():
        y, user, item = model.branches(users, items)
        torch.testing.assert_close(y, model.backbone(users, items))
        expected = (y - 0.7) * torch.sigmoid(user)[:, None] * torch.sigmoid(item)
        torch.testing.assert_close(model(users, items), expected)


def test_macr_trains_its_branches_and_its_loss_is_the_functions():
    parts = get_method("macr", random_model(), X, alpha=0.3, beta=0.2)
    users, pos, neg = torch.tensor([0, 1]), torch.tensor([[1], [2]]), torch.tensor([[3], [4]])
    y, user, item = parts.model.branches(users, torch.cat([pos, neg], 1))
    value = parts.loss(y[:, 0], y[:, 1], user, item[:, 0], item[:, 1])
    expected = zx.macr_loss(y[:, 0], y[:, 1], user, item[:, 0], item[:, 1], alpha=0.3, beta=0.2)
    assert torch.equal(value, expected)
    before = parts.model.item_branch.detach().clone()
    history = fit(parts.model, X, parts.loss, epochs=2, batch_size=256, negatives=3)
    assert history[1] < history[0]
    assert not torch.equal(before, parts.model.item_branch)


def test_macrs_loss_needs_branches():
    with pytest.raises(ValueError, match="branches"):
        fit(random_model(), X, MACRLoss(), epochs=1)


def test_a_larger_c_ranks_unpopular_items_higher():
    parts = get_method("macr", zx.get_model("mf", X, embedding_dim=8, seed=0), X, alpha=1.0, beta=1.0)
    fit(parts.model, X, parts.loss, lambda p: torch.optim.Adam(p, lr=0.05), epochs=25, batch_size=256)

    def popularity_of_lists(c):
        parts.model.set_strength(c)
        return zx.evaluate(parts.model, None, X, metrics=("arp",), k=(5,), exclude=None, popularity=X)["arp@5"]

    assert popularity_of_lists(20.0) < popularity_of_lists(0.0)


def test_popularity_adjusted_scores():
    model = random_model()
    users = torch.tensor([2, 5])
    scores = model.score_all_items(users)
    share = X.popularity / X.popularity.max()
    adjusted = PopularityAdjusted(model, X.popularity, 0.3)
    torch.testing.assert_close(adjusted.score_all_items(users), (F.elu(scores) + 1) * share.float() ** 0.3)
    adjusted.set_strength(0)
    same = adjusted.score_all_items(users).argsort(dim=1)
    assert torch.equal(same, scores.argsort(dim=1))


def test_compensation_raises_unpopular_items_by_the_same_norm_for_every_scale():
    model = random_model()
    users = torch.tensor([2, 5])
    scores = model.score_all_items(users)
    result = Compensated(model, X.popularity, alpha=0.4, beta=0.0).score_all_items(users)
    added = result - scores
    torch.testing.assert_close(added.norm(dim=1), 0.4 * scores.norm(dim=1))
    assert torch.equal(added[0].argsort(descending=True)[:1], X.popularity.argmin().reshape(1))
    assert torch.equal(Compensated(model, X.popularity, alpha=0.0).score_all_items(users), scores)


@pytest.mark.parametrize("name", ["mf", "lightgcn"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: MACR(m, 0.7),
        lambda m: PopularityAdjusted(m, X.popularity, 0.3),
        lambda m: Compensated(m, X.popularity, 0.4, 0.2),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrapped_models_are_saved_and_read(tmp_path, name, wrap, dtype):
    model = wrap(random_model(name, dtype=dtype)).eval()
    model.save(tmp_path / "model.safetensors")
    read = Recommender.load(tmp_path / "model.safetensors")
    assert type(read) is type(model)
    users = torch.arange(5)
    assert torch.equal(read.score_all_items(users), model.score_all_items(users))


def test_choose_takes_the_best():
    model = Compensated(random_model(), X.popularity)
    values = choose(model, (0.0, 0.5, 5.0), None, X, "ndcg@5")
    assert float(model.alpha) == max(values, key=values.get)
    assert len(set(values.values())) > 1


@pytest.mark.parametrize(
    ("method", "model"), [("macr", "lightgcn"), ("pda", "mf"), ("pearson", "ngcf"), ("compensation", "neumf")]
)
def test_methods_in_run_folders(tmp_path, method, model):
    settings = runs.Method(loss=method, model=model, embedding_dim=8, epochs=2, batch_size=256, lr=0.01)
    run = runs.train(X, tmp_path / "run", settings, baseline=False, figures=False, progress=False)
    read = runs.Run.open(tmp_path / "run")
    assert read.evaluate()[0][method] == pytest.approx(run.metrics[method], nan_ok=True)
    assert len(read.recommend([0, 1], 3)[0].items) == 3


def test_bad_arguments():
    model = random_model()
    with pytest.raises(ValueError, match="method"):
        get_method("magic", model, X)
    with pytest.raises(ValueError, match="gamma"):
        get_method("macr", model, X, gamma=1.0)
    with pytest.raises(ValueError, match="popularity"):
        Compensated(model, torch.ones(3))
    with pytest.raises(TypeError, match="backbone"):
        MACR(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="candidates"):
        choose(Compensated(model, X.popularity), (), None, X)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.5), (0.3, 0.0), (0.3, 0.5), (2.0, 1.0)])
def test_compensation_by_its_definition_and_an_item_of_nobody_counts_as_one(alpha, beta):
    backbone = zx.MatrixFactorization(4, 6, 3, seed=0, init_std=1.0)
    popularity = torch.tensor([0, 1, 2, 0, 9, 30])
    scores = backbone.score_all_items(torch.arange(4)).double()
    compensation = (beta * scores + 1 - beta) / torch.tensor([1.0, 1, 2, 1, 9, 30], dtype=torch.float64)
    norm = scores.square().sum(1, keepdim=True).sqrt() / compensation.square().sum(1, keepdim=True).sqrt()
    found = Compensated(backbone, popularity, alpha, beta).score_all_items(torch.arange(4))
    torch.testing.assert_close(found.double(), scores + alpha * norm * compensation, atol=1e-5, rtol=1e-5)
