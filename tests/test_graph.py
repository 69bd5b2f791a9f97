"""The graph of users and items: products with its adjacency matrix against dense ones, and what dropout drops."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

import zerosum_ext as zx
from zerosum_ext import _ops
from zerosum_ext.models.graph import Graph, propagate_once
from zerosum_ext.reference import graph as _graph_reference

USERS, ITEMS = 57, 43
COMPILED = _ops.has_op("graph_propagate", torch.device("cpu"))
needs_kernels = pytest.mark.skipif(not COMPILED, reason="needs the compiled CPU kernels")


def interactions(users: int = USERS, items: int = ITEMS, density: float = 0.2, seed: int = 0) -> zx.Interactions:
    cells = np.random.default_rng(seed).random((users, items)) < density
    if density and users > 9 and items > 9:
        cells[3] = cells[-1] = cells[:, 0] = cells[:, 8] = False  # nobody has them: rows without entries
    return zx.Interactions.from_arrays(*cells.nonzero(), shape=(users, items))


def graph(x: zx.Interactions, normalization: str = "symmetric", dropout: float = 0.0) -> Graph:
    return Graph(x, normalization, dropout)


def dense(x: zx.Interactions, normalization: str) -> torch.Tensor:
    """The adjacency matrix of all nodes, from its definition."""
    cells = torch.from_numpy(x.to_scipy().toarray()).double()
    users, items = cells.shape
    adjacency = torch.zeros(users + items, users + items, dtype=torch.float64)
    adjacency[:users, users:], adjacency[users:, :users] = cells, cells.T
    degree = adjacency.sum(1, keepdim=True).clamp(min=1)
    return adjacency / (degree if normalization == "row" else (degree * degree.T).sqrt())


def pattern(g: Graph, end: torch.Tensor | None, indices: torch.Tensor) -> torch.Tensor:
    """Which entries lists name, as a matrix of all nodes; entry by entry."""
    users, items = g.shape
    out = torch.zeros(users + items, users + items, dtype=torch.bool)
    last = g.indptr[1:] if end is None else end
    for row in range(users + items):
        for column in indices[int(g.indptr[row]) : int(last[row])].tolist():
            out[row, column + users if row < users else column] = True
    return out


def tables(shape: tuple[int, int], dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(dim)
    users, items = (torch.randn(n, dim, generator=generator, dtype=torch.float64) for n in shape)
    return users.to(dtype), items.to(dtype)


@pytest.mark.parametrize("normalization", ["symmetric", "row"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("dim", [1, 2, 7, 10, 15, 16, 17, 31, 32, 40, 48, 63, 64, 65, 80, 128, 129, 257])
def test_products_are_those_of_the_dense_matrix(normalization, dtype, index, dim):
    x = interactions()
    g = graph(x, normalization).to(dtype)
    g.indptr, g.indices = g.indptr.to(index), g.indices.to(index)
    users, items = tables(g.shape, dim, dtype)
    got = torch.cat(propagate_once(users, items, *g.adjacency()))
    assert got.dtype == dtype
    expected = dense(x, normalization) @ torch.cat([users, items]).double()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)
    assert bool((got[3] == 0).all())
    assert bool((got[USERS] == 0).all())


@pytest.mark.parametrize("normalization", ["symmetric", "row"])
@pytest.mark.parametrize("dim", [1, 10, 64, 65])
def test_what_is_dropped_takes_no_part_there_and_back(normalization, dim):
    x = interactions()
    g = graph(x, normalization, dropout=0.3).double()
    torch.manual_seed(1)
    adjacency = g.adjacency()
    _, end, indices, _, transposed_end, transposed_indices, _, factor = adjacency
    kept, transposed = pattern(g, end, indices), pattern(g, transposed_end, transposed_indices)
    assert factor == 1 / 0.7
    assert torch.equal(transposed, kept.T)
    assert not torch.equal(kept, kept.T)
    matrix = dense(x, normalization) * kept / 0.7
    assert bool((dense(x, normalization) != 0)[kept].all())
    users, items = (t.requires_grad_() for t in tables(g.shape, dim, torch.float64))
    got = torch.cat(propagate_once(users, items, *adjacency))
    torch.testing.assert_close(got, matrix @ torch.cat([users, items]), atol=1e-13, rtol=1e-13)
    direction = torch.randn(got.shape, dtype=torch.float64)
    gradients = torch.autograd.grad((got * direction).sum(), (users, items))
    torch.testing.assert_close(torch.cat(gradients), matrix.T @ direction, atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("normalization", ["symmetric", "row"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_of_both_orders(normalization, dropout):
    g = graph(interactions(6, 5, 0.5), normalization, dropout).double()
    adjacency = g.adjacency()
    inputs = tuple(t.requires_grad_() for t in tables(g.shape, 3, torch.float64))
    torch.autograd.gradcheck(lambda u, i: propagate_once(u, i, *adjacency), inputs)
    torch.autograd.gradgradcheck(lambda u, i: propagate_once(u, i, *adjacency), inputs)


@pytest.mark.parametrize("users", [1, 40])
@pytest.mark.parametrize("items", [1, 40])
def test_graphs_without_interactions(users, items):
    g = graph(interactions(users, items, 0.0), dropout=0.5)
    x = torch.ones(users, 10), torch.ones(items, 10)
    for training in (True, False):
        out = propagate_once(*x, *g.train(training).adjacency())
        assert [bool((t == 0).all()) and t.shape == s.shape for t, s in zip(out, x, strict=True)] == [True, True]


def large() -> Graph:
    """More than one task, with rows longer than one."""
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.integers(0, 3000, 60_000), np.zeros(20_000, dtype=np.int64)])
    users = np.concatenate([rng.integers(0, 20_000, 60_000), np.arange(20_000)])
    pairs = np.unique(np.stack([users, items]), axis=1)
    return graph(zx.Interactions.from_arrays(*pairs, shape=(20_000, 3000)), "row", 0.2)


def everything(g: Graph, dim: int) -> list[torch.Tensor]:
    torch.manual_seed(2)
    adjacency = g.adjacency()
    transposed = (adjacency[0], *adjacency[4:7], *adjacency[1:4], adjacency[7])
    x = tables(g.shape, dim, torch.float32)
    kept = [pattern_rows(g, adjacency[i], adjacency[i + 1 if i == 1 else 5]) for i in (1, 4)]
    return [*kept, *propagate_once(*x, *adjacency), *propagate_once(*x, *transposed)]


def pattern_rows(g: Graph, end: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """The entries that are left, one row after another; -1 in place of those that are not."""
    place = torch.arange(len(indices))
    return torch.where(place < end.repeat_interleave(g.indptr.diff()), indices, -1)


@pytest.mark.threads
@pytest.mark.parametrize("dim", [10, 64])
def test_any_number_of_threads_gives_the_same_bits(dim):
    g, before = large(), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(everything(g, dim))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_kernels
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_drops_the_same(isa, tmp_path):
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import test_graph\n"
        "torch.save(test_graph.everything(test_graph.large(), 10), sys.argv[2])"
    )
    file = tmp_path / "results.pt"
    here = os.path.dirname(__file__)
    subprocess.run(
        [sys.executable, "-c", code, here, str(file)], check=True, env={**os.environ, "ZEROSUM_EXT_ISA": isa}
    )
    expected, got = everything(large(), 10), torch.load(file)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    torch.testing.assert_close(got[2:], expected[2:], atol=1e-6, rtol=1e-5)


@needs_kernels
@pytest.mark.parametrize("share", [0.0, 1e-9, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("seed", [0, 5, -1, 2**62 + 12345])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_the_reference_drops_the_same(share, seed, index):
    g = graph(interactions(density=0.4))
    arguments = (g.indptr.to(index), g.indices.to(index), g.by_item.to(index), USERS, torch.tensor(seed), share)
    kernel, plain = _ops.graph_dropout(*arguments), _graph_reference.graph_dropout(*arguments)
    for i in (0, 2):
        assert torch.equal(kernel[i], plain[i])
        assert torch.equal(pattern_rows(g, *kernel[i : i + 2]), pattern_rows(g, *plain[i : i + 2]))
        assert kernel[i].dtype == plain[i].dtype == kernel[i + 1].dtype == plain[i + 1].dtype == index


@needs_kernels
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("scales", [(True, False), (False, True), (True, True), (False, False)])
def test_the_reference_gives_the_same_products(dropped, scales):
    g = graph(interactions(), dropout=0.3).double()
    _, end, indices, scale, *_ = g.train(dropped).adjacency()
    if dropped:  # what stands behind a row's end is of no account
        place = torch.arange(len(indices))
        indices = torch.where(place < end.repeat_interleave(g.indptr.diff()), indices, 1 << 30)
    row, column = (scale + i if wanted else None for i, wanted in enumerate(scales))
    arguments = (*tables(g.shape, 10, torch.float64), g.indptr, end, indices, row, column, 1.5)
    kernel, plain = _ops.graph_propagate(*arguments), _graph_reference.graph_propagate(*arguments)
    torch.testing.assert_close(kernel, plain, atol=1e-13, rtol=1e-13)


def test_a_model_without_kernels_is_the_same(monkeypatch):
    model = zx.get_model("lightgcn", interactions(), embedding_dim=6, seed=0, node_dropout=0.3)
    users, items = torch.arange(20), torch.arange(40).view(20, 2)
    results = []
    for kernels in (True, False):
        if not kernels:
            monkeypatch.setitem(_ops.KERNELS, "cpu", frozenset())
        torch.manual_seed(3)
        model.zero_grad()
        scores = model(users, items)
        scores.square().sum().backward()
        results.append((scores.detach(), model.user_embedding.grad.clone(), model.item_embedding.grad.clone()))
    torch.testing.assert_close(*results, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("share", [0.03, 0.1, 0.5, 0.9])
def test_entries_are_dropped_at_random_and_on_their_own(share):
    g = graph(interactions(density=0.5), dropout=share)
    draws, interactions_ = 400, len(g.by_item)
    forward = torch.zeros(draws, 2 * interactions_, dtype=torch.bool)
    rows = torch.repeat_interleave(torch.arange(len(g.indptr) - 1), g.indptr.diff())
    wanted = rows * 1000 + g.indices
    torch.manual_seed(4)
    for draw in range(draws):
        _, end, indices, *_ = g.adjacency()
        left = torch.arange(len(indices)) < end[rows]
        forward[draw] = torch.isin(wanted, (rows * 1000 + indices)[left])
    dropped = (~forward).double()
    # Each entry's count is binomial: their squared deviations, standardised, are about chi-square, one degree each.
    deviation = (dropped.sum(0) - draws * share) / (draws * share * (1 - share)) ** 0.5
    assert 1e-4 < stats.chi2.sf(float(deviation.square().sum()), 2 * interactions_) < 1 - 1e-4
    assert abs(float(deviation.sum())) < 4 * (2 * interactions_) ** 0.5
    # Neither the mirror image nor a neighbour in a list nor the step before has any say.
    mirror = torch.cat([torch.empty_like(g.by_item), g.by_item]).long()
    mirror[g.by_item.long()] = torch.arange(interactions_) + interactions_
    centred = (dropped - share) / (share * (1 - share)) ** 0.5
    for other in (centred[:, mirror], centred.roll(1, 1), centred.roll(1, 0)):
        assert abs(float((centred * other).sum())) < 4.5 * (2 * centred.numel()) ** 0.5


def test_seeds_repeat_and_steps_differ():
    g = graph(interactions(), dropout=0.5)
    torch.manual_seed(5)
    first, second = g.adjacency()[1], g.adjacency()[1]
    torch.manual_seed(5)
    assert torch.equal(g.adjacency()[1], first)
    assert not torch.equal(first, second)
    model = zx.get_model("lightgcn", interactions(), embedding_dim=4, seed=0, node_dropout=0.5)
    scores = []
    for seed in (6, 6, 7):
        torch.manual_seed(seed)
        scores.append(model(torch.arange(20), torch.arange(20)))
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    x = interactions()
    g = graph(x, "row").to(dtype)
    users, items = tables(g.shape, 10, dtype)
    got = torch.cat(propagate_once(users, items, *g.adjacency()))
    assert got.dtype == dtype
    scale = g.scale.double()
    expected = scale[:, None] * ((dense(x, "row") != 0).double() @ torch.cat([users, items]).double())
    torch.testing.assert_close(got.double(), expected, atol=1e-2, rtol=2.0**-7)


def test_scales_are_rounded_once():
    g = graph(interactions()).float().double()
    torch.testing.assert_close(g.scale, g.indptr.diff().double().clamp(min=1).rsqrt(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["lightgcn", "ngcf"])
def test_a_step_gathers_what_all_vectors_hold(name):
    options = {"message_dropout": 0.0} if name == "ngcf" else {"combine": "concat"}
    model = zx.get_model(name, interactions(), embedding_dim=5, seed=0, **options)
    users, items = torch.tensor([1, 3, 1]), torch.tensor([[0, 5], [42, 5], [1, 1]])
    user_rows, item_rows = model.represent(users, items)
    user, item, _ = model.vectors()
    torch.testing.assert_close(user_rows, user[users])
    torch.testing.assert_close(item_rows, item[items])
    assert item_rows.shape == (3, 2, user.shape[1])


@pytest.mark.parametrize("users", [[0, USERS], [-1, 0]])
def test_ids_out_of_range_are_refused(users):
    model = zx.get_model("lightgcn", interactions(), embedding_dim=4, seed=0)
    with pytest.raises(IndexError):
        model(torch.tensor(users), torch.tensor([0, 1]))


def test_compiled_by_torch():
    model = zx.get_model("lightgcn", interactions(), embedding_dim=6, seed=0, node_dropout=0.3)
    users, items = torch.arange(20), torch.arange(40).view(20, 2)
    step = torch.compile(model, backend="aot_eager")
    results = []
    for call in (model, step):
        torch.manual_seed(8)
        model.zero_grad()
        scores = call(users, items)
        scores.square().sum().backward()
        results.append((scores.detach(), model.user_embedding.grad.clone(), model.item_embedding.grad.clone()))
    torch.testing.assert_close(*results)


@needs_kernels
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": torch.ones(USERS, 10, dtype=torch.float16)}, "users must be float32 or float64"),
        ({"items": torch.ones(ITEMS, 9)}, "users and items"),
        ({"items": torch.ones(ITEMS, 10, dtype=torch.float64)}, "users and items"),
        ({"items": torch.ones(ITEMS + 1, 10)}, "indptr"),
        ({"indptr": torch.zeros(USERS + ITEMS + 1)}, "indptr"),
        ({"end": torch.zeros(3, dtype=torch.int32)}, "end"),
        ({"indices": torch.zeros(10, dtype=torch.int16)}, "indptr|indices"),
        ({"row_scale": torch.ones(USERS)}, "row_scale"),
        ({"column_scale": torch.ones(USERS + ITEMS, dtype=torch.float64)}, "column_scale"),
    ],
)
def test_the_op_refuses_what_does_not_fit(change, message):
    g = graph(interactions())
    arguments = {
        "users": torch.ones(USERS, 10),
        "items": torch.ones(ITEMS, 10),
        "indptr": g.indptr,
        "end": None,
        "indices": g.indices,
        "row_scale": None,
        "column_scale": None,
        "factor": 1.0,
    }
    with pytest.raises(RuntimeError, match=message):
        torch.ops.zerosum_ext.graph_propagate(**{**arguments, **change})


@needs_kernels
@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (1, torch.zeros(3, dtype=torch.int32), "indices"),
        (2, torch.zeros(3, dtype=torch.int64), "indices|by_item"),
        (3, -1, "num_users"),
        (4, torch.zeros(2, dtype=torch.int64), "seed"),
        (4, torch.zeros(1), "seed"),
        (5, 1.0, "share"),
        (5, float("nan"), "share"),
    ],
)
def test_dropout_refuses_what_does_not_fit(place, value, message):
    g = graph(interactions())
    arguments = [g.indptr, g.indices, g.by_item, USERS, torch.tensor(0), 0.5]
    arguments[place] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.zerosum_ext.graph_dropout(*arguments)
