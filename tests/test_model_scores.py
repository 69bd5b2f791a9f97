"""Models other than matrix factorization: scores from their definitions, gradients, files, recommendations."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import zerosum_ext as zx
from zerosum_ext.models import model_names, presets
from zerosum_ext.models.base import Recommender

NAMES = model_names()
GRAPHS = ("ngcf", "lightgcn")


@pytest.fixture(scope="module")
def train():
    cells = np.random.default_rng(0).random((30, 25)) < 0.2
    cells[3] = False  # a user and an item without neighbours
    cells[:, 4] = False
    return zx.Interactions.from_arrays(*cells.nonzero(), shape=(30, 25))


def make(name, train, **options):
    return zx.get_model(name, train, seed=1, **{"embedding_dim": 6, "init_std": 0.3, **options})


def dense_adjacency(train, normalization):
    cells = torch.from_numpy(train.to_scipy().toarray()).double()
    users, items = cells.shape
    adjacency = torch.zeros(users + items, users + items, dtype=torch.float64)
    adjacency[:users, users:], adjacency[users:, :users] = cells, cells.T
    degree = adjacency.sum(1)
    if normalization == "row":
        return adjacency / degree.clamp(min=1)[:, None]
    scale = degree.clamp(min=1).rsqrt()
    return scale[:, None] * adjacency * scale


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_pairs_of_rows_and_of_all_items_agree(train, name):
    model = make(name, train).eval()
    users, items = torch.tensor([0, 7, 3, 29]), torch.randint(25, (4, 5), generator=torch.Generator().manual_seed(0))
    scores = model(users, items)
    assert scores.shape == (4, 5)
    torch.testing.assert_close(model(users, items[:, 2]), scores[:, 2])
    whole = model.score_all_items(users)
    assert not whole.requires_grad
    torch.testing.assert_close(whole.gather(1, items), scores.detach())
    torch.testing.assert_close(model.predict(users, items), scores.detach())


@pytest.mark.parametrize("name", NAMES)
def test_files_keep_the_model(train, name, tmp_path):
    model = make(name, train).double().eval()
    model.save(tmp_path / "model.safetensors")
    state = torch.get_rng_state()
    loaded = Recommender.load(tmp_path / "model.safetensors").eval()
    assert torch.equal(torch.get_rng_state(), state)
    assert type(loaded) is type(model)
    assert loaded.config() == model.config()
    users = torch.arange(30)
    assert torch.equal(loaded.score_all_items(users), model.score_all_items(users))
    other = zx.LightGCN if name == "mf" else zx.MatrixFactorization
    with pytest.raises(ValueError, match="expected a file of format"):
        other.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_learns_and_repeats_itself(train, name):
    options = {"epochs": 4, "batch_size": 32, "seed": 5, "progress": False}
    results = []
    for _ in range(2):
        model = make(name, train)
        history = model.fit(train, "bpr", optimizer=lambda p: torch.optim.Adam(p, lr=0.02), **options)
        assert history[-1] < history[0]
        results.append(model.score_all_items(torch.arange(30)))
    # Not the same bits: the matrix products of MKL depend on where in memory their arguments lie.
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)
    items, scores = model.recommend([2, 9], 25, exclude=train)
    for row, user in enumerate((2, 9)):
        seen = train.indices[train.indptr[user] : train.indptr[user + 1]].tolist()
        assert sorted(items[row][items[row] >= 0].tolist()) == sorted(set(range(25)) - set(seen))
    assert bool((scores.nan_to_num(neginf=-1e9).diff() <= 0).all())
    metrics = zx.evaluate(model, None, train, metrics=("auc",), exclude=None)
    assert metrics["auc"] > 0.6


def test_gmf_and_mlp_and_neumf_from_their_definitions(train):
    users, items = torch.tensor([1, 2]), torch.tensor([[3, 4, 0], [5, 6, 0]])
    gmf = make("gmf", train)
    torch.nn.init.normal_(gmf.weight)
    p, q = gmf.user_embedding[users].unsqueeze(1), gmf.item_embedding[items]
    torch.testing.assert_close(gmf(users, items), (p * q * gmf.weight).sum(-1))

    def tower(model, p, q):
        x = torch.cat([p.expand_as(q), q], dim=-1)
        for weight, bias in zip(model.tower.weights, model.tower.biases, strict=True):
            x = torch.relu(x @ weight.T + bias)
        return x @ model.tower.last

    mlp = make("mlp", train, hidden=(5, 3))
    for bias in mlp.tower.biases:
        torch.nn.init.normal_(bias)
    p, q = mlp.user_embedding[users].unsqueeze(1), mlp.item_embedding[items]
    torch.testing.assert_close(mlp(users, items), tower(mlp, p, q))
    neumf = make("neumf", train)
    assert neumf.user_embedding.shape == (30, 12)
    p, q = neumf.user_embedding[users].unsqueeze(1), neumf.item_embedding[items]
    expected = (p[..., :6] * q[..., :6] * neumf.weight).sum(-1) + tower(neumf, p[..., 6:], q[..., 6:])
    torch.testing.assert_close(neumf(users, items), expected)


def test_all_items_in_blocks_of_the_hidden_layer(train, monkeypatch):
    model = make("neumf", train)
    users = torch.arange(30)
    expected = model.score_all_items(users)
    monkeypatch.setattr("zerosum_ext.models.neural.HIDDEN_PER_CHUNK", 25 * 6 * 7)
    torch.testing.assert_close(model.score_all_items(users), expected)


@pytest.mark.parametrize("normalization", ["symmetric", "row"])
@pytest.mark.parametrize("combine", ["mean", "concat"])
def test_lightgcn_is_its_definition(train, normalization, combine):
    model = make("lightgcn", train, normalization=normalization, combine=combine)
    adjacency = dense_adjacency(train, normalization).float()
    table = torch.cat([model.user_embedding, model.item_embedding]).detach().requires_grad_()
    layers = [table]
    for _ in range(3):
        layers.append(adjacency @ layers[-1])
    final = torch.cat(layers, 1) if combine == "concat" else torch.stack(layers).mean(0)
    user, item, bias = model.vectors()
    assert bias is None
    torch.testing.assert_close(torch.cat([user, item]), final)
    direction = torch.randn(final.shape, generator=torch.Generator().manual_seed(2))
    (final * direction).sum().backward()
    (torch.cat([user, item]) * direction).sum().backward()
    torch.testing.assert_close(torch.cat([model.user_embedding.grad, model.item_embedding.grad]), table.grad)


@pytest.mark.parametrize("normalization", ["symmetric", "row"])
def test_ngcf_is_its_definition(train, normalization):
    model = make("ngcf", train, layers=(5, 4), normalization=normalization).eval()
    adjacency = dense_adjacency(train, normalization).float()
    layer = torch.cat([model.user_embedding, model.item_embedding]).detach()
    layers = [layer]
    for first, second in zip(model.sum_weights, model.product_weights, strict=True):
        side = adjacency @ layer
        layer = torch.nn.functional.leaky_relu((side + layer) @ first + (side * layer) @ second, 0.2)
        layers.append(layer / layer.norm(dim=1, keepdim=True).clamp(min=1e-12))
    user, item, _ = model.factors()
    torch.testing.assert_close(torch.cat([user, item]), torch.cat(layers, 1).detach())


@pytest.mark.parametrize("normalization", ["symmetric", "row"])
def test_ngcf_with_self_loops_is_its_definition(train, normalization):
    model = make("ngcf", train, layers=(5, 4), normalization=normalization, self_loops=True, bias=True).eval()
    assert [tuple(b.shape) for b in model.biases] == [(5,), (5,), (4,), (4,)]
    pattern = (dense_adjacency(train, "row") > 0).double() + torch.eye(sum(train.shape))
    degree = pattern.sum(1, keepdim=True)
    adjacency = (pattern / degree if normalization == "row" else pattern / (degree * degree.T).sqrt()).float()
    layer = torch.cat([model.user_embedding, model.item_embedding]).detach()
    layers = [layer]
    for depth, (first, second) in enumerate(zip(model.sum_weights, model.product_weights, strict=True)):
        side = adjacency @ layer
        bias = model.biases[2 * depth] + model.biases[2 * depth + 1]
        layer = torch.nn.functional.leaky_relu(side @ first + (side * layer) @ second + bias, 0.2)
        layers.append(layer / layer.norm(dim=1, keepdim=True).clamp(min=1e-12))
    user, item, _ = model.factors()
    torch.testing.assert_close(torch.cat([user, item]), torch.cat(layers, 1).detach())
    again = zx.NGCF(train, **{k: v for k, v in model.config().items() if k not in ("num_users", "num_items")}, seed=5)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval().factors()[0], user)


@pytest.mark.parametrize("name", [*GRAPHS, "ngcf with loops"])
@pytest.mark.parametrize("normalization", ["symmetric", "row"])
def test_gradients_of_propagation(train, name, normalization):
    # Also of the second order, and with dropped entries, where A and its transpose differ.
    options = {"self_loops": True, "bias": True} if name == "ngcf with loops" else {}
    name = name.split()[0]
    model = make(name, train, embedding_dim=2, normalization=normalization, node_dropout=0.4, **options).double()
    users, items = torch.tensor([0, 1, 5]), torch.tensor([2, 3, 9])

    def scores(user_table, item_table):
        torch.manual_seed(3)
        tables = {"user_embedding": user_table, "item_embedding": item_table}
        return torch.func.functional_call(model, tables, (users, items))

    tables = (model.user_embedding.detach().requires_grad_(), model.item_embedding.detach().requires_grad_())
    torch.autograd.gradcheck(scores, tables, fast_mode=True)
    torch.autograd.gradgradcheck(scores, tables, fast_mode=True)


def test_node_dropout_keeps_the_mean_and_stops_in_evaluation(train):
    model = make("lightgcn", train, num_layers=1, combine="concat", node_dropout=0.5)
    with torch.no_grad():
        torch.manual_seed(0)
        draws = torch.stack([model.vectors()[0] for _ in range(2000)])
        exact = model.eval().vectors()[0]
        assert torch.equal(model.vectors()[0], exact)
    assert float(draws[:, :, 6:].std(0).max()) > 0.05
    torch.testing.assert_close(draws.mean(0), exact, atol=0.05, rtol=0)


@pytest.mark.parametrize("name", GRAPHS)
def test_recommending_in_training_mode_is_free_of_dropout(train, name):
    model = make(name, train, node_dropout=0.5)
    assert model.training
    expected = copy.deepcopy(model).eval().score_all_items(torch.arange(30))
    assert torch.equal(model.score_all_items(torch.arange(30)), expected)
    torch.testing.assert_close(model.predict(torch.arange(30), torch.arange(25).expand(30, 25)), expected)
    assert torch.equal(model.recommend(range(30), 1)[0][:, 0], expected.argmax(1))
    assert model.training


def test_propagation_runs_once_until_parameters_change(train, monkeypatch):
    model = make("lightgcn", train)
    runs = []
    propagate = model.propagate
    monkeypatch.setattr(model, "propagate", lambda: runs.append(1) or propagate())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model.train()
    model(torch.arange(30), torch.randint(25, (30, 4))).sum().backward()
    assert len(runs) == 1
    optimizer.step()
    model.eval()
    first = model.score_all_items(torch.arange(10))
    model.score_all_items(torch.arange(10, 30))
    model.recommend([1], 3)
    assert len(runs) == 2
    optimizer.step()
    assert not torch.equal(model.score_all_items(torch.arange(10)), first)
    model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()})
    assert len(runs) == 3
    model.score_all_items(torch.arange(10))
    assert len(runs) == 4
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied.factors()[0], model.factors()[0])


@pytest.mark.parametrize("name", GRAPHS)
def test_checkpoints_do_not_hold_the_graph(train, name):
    assert not any("graph" in key for key in make(name, train).state_dict())


def test_presets(train):
    model = zx.get_model("lightgcn", train, preset="paper", seed=0, num_layers=2)
    assert (model.embedding_dim, model.num_layers, model.normalization) == (10, 2, "row")
    assert model.factors()[0].shape == (30, 30)
    for preset, models in presets.MODELS.items():
        for name in models:
            assert zx.get_model(name, train, preset=preset, seed=0).num_items == 25
    assert presets.training_options("paper", "synthetic")["batch_size"] == 256


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: zx.get_model("svd", x), "name: expected one of 'mf'"),
        (lambda x: zx.get_model("mf", x, preset="best"), "preset: expected one of"),
        (lambda x: zx.get_model("ngcf", x, preset="lightgcn"), "model of preset 'lightgcn'"),
        (lambda x: zx.get_model("gmf", x, layers=2), "model 'gmf'"),
        (lambda x: zx.get_model("lightgcn", x, num_layers=0), "num_layers"),
        (lambda x: zx.get_model("lightgcn", x, node_dropout=1.0), "node_dropout"),
        (lambda x: zx.get_model("lightgcn", x, combine="sum"), "combine"),
        (lambda x: zx.get_model("ngcf", x, normalization="none"), "normalization"),
        (lambda x: zx.get_model("mlp", x, hidden=()), "hidden"),
        (lambda x: zx.get_model("mlp", x, init_std=-1), "init_std"),
        (
            lambda x: zx.get_model("neumf", x)(torch.zeros(3, dtype=torch.long), torch.zeros(2, dtype=torch.long)),
            "items",
        ),
    ],
)
def test_bad_arguments_are_named(train, call, message):
    with pytest.raises(ValueError, match=message):
        call(train)


# ---- torch.export: a module of its own, in a file

# A GraphModule has these itself. A submodule of the name vanishes behind it.
TAKEN = {name for name in dir(torch.fx.GraphModule) if not hasattr(torch.nn.Module, name)}


@pytest.mark.parametrize("name", [*NAMES, "macr", "compensated", "popularity"])
def test_an_exported_model_runs_also_from_a_file(train, name, tmp_path):
    from zerosum_ext.models import MACR, Compensated, PopularityAdjusted

    wrap = {
        "macr": lambda: MACR(make("lightgcn", train)),
        "compensated": lambda: Compensated(make("ngcf", train), train.popularity, alpha=0.5),
        "popularity": lambda: PopularityAdjusted(make("mf", train), train.popularity),
    }
    model = wrap.get(name, lambda: make(name, train))().eval()
    assert {part for path, _ in model.named_modules() for part in path.split(".")}.isdisjoint(TAKEN)
    users, items = torch.tensor([0, 7, 3, 29]), torch.tensor([24, 0, 4, 7])
    batch = torch.export.Dim("batch", min=2, max=1 << 20)
    exported = torch.export.export(model, (users, items), dynamic_shapes=({0: batch}, {0: batch}), strict=False)
    torch.export.save(exported, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    others = torch.arange(25), torch.arange(25).flip(0)
    for run in (exported.module(), loaded):
        torch.testing.assert_close(run(*others), model(*others))
