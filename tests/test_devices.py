"""The same on every device: losses against their definitions in float64, samples bit for bit the definition's.

On a machine with a GPU: ``pytest -m cuda tests/test_devices.py`` (all tests that a GPU runs are here). Those with
"small" in their names are run under compute-sanitizer too.
"""

from __future__ import annotations

import copy

import pytest
import torch

import zerosum_ext as zx
from zerosum_ext import _ops, reference
from zerosum_ext.data import sampling
from zerosum_ext.models import folding
from zerosum_ext.models.graph import Graph, propagate_once
from zerosum_ext.reference import Kernel
from zerosum_ext.reference import ranking as _ranking_reference
from zerosum_ext.reference import sampling as _sampling_reference
from zerosum_ext.training import fit
from zerosum_ext.training.fused import FusedStep
from zerosum_ext.training.regularizers import popularity_correlation

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
LOSSES = {
    "bpr": (zx.bpr_loss, Kernel("bpr", 1.0)),
    "zerosum": (zx.zerosum_loss, Kernel("zerosum", 1.0, 1.0)),
    "pos2neg2": (zx.pos2neg2_loss, Kernel("pos2neg2", 1.0, 1.0, 1.0)),
    "sampled_softmax": (zx.sampled_softmax_loss, Kernel("sampled_softmax", 1.0)),
    "hardest": (zx.hardest_loss, Kernel("hardest", 1.0)),
}


def scores(shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 3).to(dtype)


def check_loss(device, name, rows, k, dtype, reduction, weighted):
    function, definition = LOSSES[name]
    if name == "pos2neg2":
        shapes = (rows, 2), (rows, 2)
    else:
        shapes = (rows,), (rows, k) if k > 1 or reference.SHAPES[name] == "row" else (rows,)
    pos, neg = scores(shapes[0], dtype, 0), scores(shapes[1], dtype, 1)
    weight = torch.rand(rows, generator=torch.Generator().manual_seed(2)).to(reference.compute_dtype(dtype))
    if len(shapes[1]) == 2 and reference.SHAPES[name] == "pair":  # a weight of each pair
        weight = weight[:, None] * torch.linspace(0.5, 1.5, shapes[1][1]).to(weight.dtype)
    weight = weight if weighted else None
    p, n = (t.to(device).requires_grad_() for t in (pos, neg))
    value = function(p, n, sample_weight=None if weight is None else weight.to(device), reduction=reduction)
    upstream = scores(value.shape, value.dtype, 3)
    got = (value, *torch.autograd.grad(value, (p, n), upstream.to(device)))
    p, n = (t.double().requires_grad_() for t in (pos, neg))
    w = None if weight is None else weight.double()
    value = reference.pair_loss_value(p, n, None, None, w, definition, reduction)
    want = (value, *torch.autograd.grad(value, (p, n), upstream.double()))
    for x, y in zip(got, want, strict=True):
        scale = max(1.0, float(y.detach().abs().max()))
        torch.testing.assert_close(x.double().cpu(), y, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("name", LOSSES)
def test_small_losses(device, name, reduction):
    for dtype in TOLERANCE:
        check_loss(device, name, 37, 5, dtype, reduction, True)


@pytest.mark.parametrize("shape", [(9,), (9, 5), (1030, 7)])
def test_small_losses_with_constants_and_branches(device, shape):
    """Losses that take a constant beside each score, and MACR, whose branches have shapes of their own."""
    pos, neg, user, item = (scores(s, torch.float32, i) for i, s in enumerate((shape[:1], shape, shape[:1], shape[:1])))
    generator = torch.Generator().manual_seed(9)
    popularity = [torch.randint(1, 9, s, generator=generator).float() for s in (shape[:1], shape)]
    calls = {
        "ipw": lambda p, n, u, i, c, d: zx.ipw_loss(p, n, c, d),
        "pd": lambda p, n, u, i, c, d: zx.pd_loss(p, n, c, d, gamma=0.3),
        "bsl": lambda p, n, u, i, c, d: zx.bsl_loss(p, n if n.dim() == 2 else n.unsqueeze(1), negative_temperature=0.5),
        "macr": lambda p, n, u, i, c, d: zx.macr_loss(p, n, u, i, n * 0.5, alpha=0.1, beta=0.2),
    }
    for name, call in calls.items():
        results = []
        for place, dtype in ((device, torch.float32), (torch.device("cpu"), torch.float64)):
            leaves = [t.to(place, dtype).requires_grad_() for t in (pos, neg, user, item)]
            value = call(*leaves, *(t.to(place, dtype) for t in popularity))
            grads = torch.autograd.grad(value, leaves, allow_unused=True)
            results.append((value, *(g for g in grads if g is not None)))
        for x, y in zip(*results, strict=True):
            torch.testing.assert_close(
                x.double().cpu(), y, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
            )


def test_compiled_code_calls_the_op(device):
    pos, neg = (scores(50, torch.float32, seed).to(device).requires_grad_() for seed in (0, 1))
    loss = torch.compile(zx.zerosum_loss, fullgraph=True, backend="aot_eager")(pos, neg)
    want = zx.zerosum_loss(pos, neg)
    assert torch.equal(loss, want)
    for x, y in zip(*(torch.autograd.grad(v, (pos, neg)) for v in (loss, want)), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("shape", [(1, 1), (1025, 1), (300_000, 1), (777, 33), (5, 4100)])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_every_size(device, name, shape):
    for dtype in (torch.float32, torch.bfloat16):
        check_loss(device, name, *shape, dtype, "mean", False)


def test_the_same_bits_each_time(device):
    pos, neg = (scores(300_001, torch.float32, seed).to(device) for seed in (0, 1))
    values = {zx.zerosum_loss(pos, neg).item() for _ in range(5)}
    assert len(values) == 1


def test_small_tensors_that_start_anywhere(device):
    pos, neg = (scores(1029, torch.float32, seed).to(device) for seed in (0, 1))
    want = zx.zerosum_loss(pos[1:].clone(), neg[:-1].clone(), reduction="none")
    got = zx.zerosum_loss(pos[1:], neg[:-1], reduction="none")
    if device.type == "cpu":
        assert torch.equal(got, want)
    else:  # other code, in which nvcc may fuse other multiplications with additions
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def matrix():
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(61, 97, generator=generator) < torch.rand(61, 1, generator=generator) ** 3
    dense[3], dense[5] = False, True
    dense[5, 40] = False
    users, items = dense.nonzero(as_tuple=True)
    return zx.Interactions.from_arrays(users.numpy(), items.numpy(), shape=(61, 97))


@pytest.mark.parametrize("strategy", ["uniform", "popularity", "candidates"])
@pytest.mark.parametrize("replacement", [True, False])
def test_small_samples_are_the_definitions(device, strategy, replacement):
    x = matrix()
    candidates = torch.arange(0, 97, 2) if strategy == "candidates" else None
    users = torch.randint(0, 61, (500,), generator=torch.Generator().manual_seed(1))
    chosen = sampling.NegativeSource.of(x, strategy, None, 0.5, candidates, replacement)
    users = users[~chosen.lacking(3)[users]]
    want, _ = _sampling_reference.sample_negatives(
        users, x.indptr, x.indices, None, chosen.slots, chosen.masses, 97, 3, 7, 8, 9, replacement
    )
    moved = x.to(device)
    got = zx.sample_negatives(
        *(moved, users.to(device), 3),
        seed=7,
        epoch=8,
        offset=9,
        strategy=strategy,
        alpha=0.5,
        replacement=replacement,
        candidates=None if candidates is None else candidates.to(device),
    )
    assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("name", ["uniform", "popularity", "candidates"])
def test_small_samples_by_their_numbers(device, name):
    """With sums of complements, where there are such."""
    x, moved = matrix(), matrix().to(device)
    users = torch.arange(61).repeat(5)
    numbers = torch.randint(0, 2**62, users.shape, generator=torch.Generator().manual_seed(1))
    chosen, there = (
        sampling.NegativeSource.of(
            data, name, None, 1.0, torch.arange(0, 97, 2).to(data.device) if name == "candidates" else None, True
        )
        for data in (x, moved)
    )
    there.prepare()
    assert (there.complements.tables[0] is None) == (name == "uniform")
    source = (x.indptr, x.indices, None, chosen.slots, chosen.masses, 97, 3, 5, 6, True)
    want = _sampling_reference.sample_negatives_at(users, numbers, *source)
    got = there.draw_at(users.to(device), numbers.to(device), 3, 5, 6)
    assert all(torch.equal(g.cpu(), w) for g, w in zip(got, want, strict=True))
    cells = torch.arange(5001)
    want = _sampling_reference.unshuffle(cells, 5001, 3, 4)
    key = torch.tensor([3, 4, 0], device=device)
    assert torch.equal(_ops.unshuffle(cells.to(device), 5001, 3, 4).cpu(), want)
    assert torch.equal(_ops.unshuffle(cells.to(device), 5001, 0, 0, key).cpu(), want)


@pytest.mark.parametrize("dim", [7, 64, 300])
@pytest.mark.parametrize("loss", ["bpr", "zerosum", "pos2neg2", "sampled_softmax"])
def test_small_rows_of_new_users(device, loss, dim):
    """Gradients end as short as both promise, and the rows are as near to each other as follows from that."""
    x = matrix()
    item = 0.5 * torch.randn(97, dim, generator=torch.Generator().manual_seed(1))
    rows = [
        folding.fold_in(item.to(data.device), None, data, folding.FoldIn.of(loss, 0.1, 4, 0, tolerance, 300)).cpu()
        for data, tolerance in ((x.to(device), 1e-5), (x, 1e-6))
    ]
    assert rows[1].abs().max() > 0.01
    torch.testing.assert_close(*rows, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("positives", [1, 2])
@pytest.mark.parametrize("positive_strategy", ["epoch", "interactions", "users"])
def test_small_epochs_are_the_same(device, positives, positive_strategy):
    x = matrix()
    options = {"seed": 3, "positives": positives, "positive_strategy": positive_strategy, "negatives": 2}
    here, there = (zx.TripletLoader(data, 700, **options) for data in (x, x.to(device)))
    for a, b in zip(here, there, strict=True):
        assert all(torch.equal(t, u.cpu()) for t, u in zip(a, b, strict=True))


def test_small_interactions_move(device):
    x, moved = matrix(), matrix().to(device)
    assert moved.popularity.device.type == device.type
    assert moved.popularity.tolist() == x.popularity.tolist()
    pairs = [tuple(t.tolist() for t in y.split_random(seed=1).train.pairs()) for y in (x, moved)]
    assert pairs[0] == pairs[1]
    assert all(torch.equal(a, b) for a, b in zip(moved.to("cpu").pairs(), x.pairs(), strict=True))


def test_small_memberships(device):
    x, users, items = matrix(), torch.arange(61), torch.arange(97).flip(0)
    got = sampling.in_batch_mask(x.to(device), users.to(device), items.to(device))
    owned = torch.zeros(61, 97, dtype=torch.bool)
    owned[x.pairs()] = True
    assert torch.equal(got.cpu(), ~owned.flip(1))


# ---- rankings


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_small_rankings_of_scores(device, dtype):
    """Scores with ties and -inf; the integers are the definition's."""
    x = matrix()
    split = x.split_random((0.6, 0.4), seed=0)
    train, test = split.train, split.test
    values = (scores((61, 97), torch.float32, 4) * 4).round()
    values[values < -9] = -torch.inf
    users = torch.arange(61).flip(0)
    offset = torch.cat((torch.zeros(1, dtype=torch.int64), test.user_counts[users].cumsum(0)))
    arguments = (users, offset, test.indptr, test.indices, train.indptr, train.indices)
    values = values.to(dtype)
    want = _ranking_reference.rank_scores(values.to(reference.compute_dtype(dtype)), *arguments, 7)
    there = [t.to(device) for t in arguments]
    for place in (device, torch.device("cpu")):  # where the offsets lie: a GPU is waited for, or is not
        there[1] = offset.to(place)
        got = _ops.rank_scores(values.to(device), *there, 7)
        assert all(torch.equal(g.cpu(), w) for g, w in zip(got, want, strict=True))
    if device.type == "cuda":  # pinned memory, whose owner may change it once the call is over, while the GPU is busy
        there[1], values = offset.pin_memory(), values.to(device)
        torch.cuda._sleep(10**8)
        got = _ops.rank_scores(values, *there, 7)
        there[1].fill_(0)
        assert all(torch.equal(g.cpu(), w) for g, w in zip(got, want, strict=True))


def test_small_evaluations(device):
    """Factors of small whole numbers, whose products are exact in whatever order they are added."""
    split = matrix().split_random((0.6, 0.4), seed=0)
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randint(-3, 4, (n, 20), generator=generator).float() for n in (61, 97)]
    results = [
        zx.evaluate(tuple(f.to(place) for f in factors), split.train.to(place), split.test.to(place), k=(3, 10))
        for place in (device, torch.device("cpu"))
    ]
    assert results[0] == pytest.approx(results[1], rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("ties", _ops.TIES)
def test_small_metrics_of_rankings(device, ties):
    split = matrix().split_random((0.6, 0.4), seed=0)
    factors = [(scores((n, 20), torch.float32, n) * 2).round() for n in (61, 97)]
    ranking = zx.rank(tuple(factors), split.train, split.test, k=9)
    counts = (ranking.indptr, ranking.greater, ranking.equal, ranking.num_candidates)
    popularity = split.test.popularity.double()[torch.from_numpy(ranking.items)]
    arguments = [*(torch.from_numpy(x) for x in counts), popularity, torch.tensor([3, 9])]
    got = _ops.user_metrics(*(t.to(device) for t in arguments), ties)
    want = _ranking_reference.user_metrics(*arguments, ties)
    lists = torch.from_numpy(ranking.top_items), torch.rand(2, 97, dtype=torch.float64), torch.tensor([3, 9])
    got += _ops.list_metrics(*(t.to(device) for t in lists))
    want += _ranking_reference.list_metrics(*lists)
    for g, w in zip(got, want, strict=True):
        assert g.device.type == device.type
        torch.testing.assert_close(g.cpu(), w, rtol=1e-12, atol=1e-12, equal_nan=True)


# ---- matrix factorization

MF_LOSSES = {
    "zerosum": (zx.ZerosumLoss, 1),
    "bpr": (zx.BPRLoss, 5),
    "pos2neg2": (zx.Pos2Neg2Loss, 2),
    "bsl": (zx.BSLLoss, 21),
    "hardest": (zx.HardestLoss, 3),
}


def factorization(name, rows, dim, dtype, num_users=61, num_items=97):
    """Tables with a bias, and ids: many samples of few rows."""
    generator = torch.Generator().manual_seed(dim)
    shapes = (num_users, dim), (num_items, dim), (num_items,)
    tables = [torch.randn(s, generator=generator, dtype=torch.float64).mul(0.5).to(dtype) for s in shapes]
    k = MF_LOSSES[name][1]
    users = torch.randint(0, num_users, (rows,), generator=generator)
    items = (torch.rand(rows, 2 + k, generator=generator) ** 3 * num_items).long()
    if name == "pos2neg2":
        return tables, (users, items[:, :2], items[:, 2:4])
    return tables, (users, items[:, 0], items[:, 1] if k == 1 else items[:, 1 : 1 + k])


def check_mf(device, name, rows, dim, dtype, *, reduction="mean", sparse=False, deterministic=True):
    tables, ids = factorization(name, rows, dim, dtype)
    module = MF_LOSSES[name][0](reduction=reduction)
    l2 = 0.0 if reduction == "none" else 0.1
    leaves = [t.to(device).requires_grad_() for t in tables]
    options = {"loss": module, "item_bias": leaves[2], "l2": l2, "sparse": sparse, "deterministic": deterministic}
    value = zx.mf_loss(*leaves[:2], *(t.to(device) for t in ids), **options)
    upstream = scores(value.shape, value.dtype, 3)
    got = (value, *torch.autograd.grad(value, leaves, upstream.to(device)))
    doubles = [t.double().requires_grad_() for t in tables]
    value = reference.mf_loss_value(*doubles, *ids, None, None, module.kernel(), l2, reduction)
    want = (value, *torch.autograd.grad(value, doubles, upstream.double()))
    for x, y in zip(got, want, strict=True):
        scale = max(1.0, float(y.detach().abs().max()))
        tolerance = 4 * TOLERANCE[dtype]
        torch.testing.assert_close(x.to_dense().double().cpu(), y, rtol=tolerance, atol=tolerance * scale)
    return [g.to_dense() for g in got]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", MF_LOSSES)
def test_small_factorizations(device, name, sparse):
    for dtype in TOLERANCE:
        check_mf(device, name, 300, 20, dtype, sparse=sparse)
    check_mf(device, name, 41, 33, torch.float32, reduction="none", sparse=sparse)
    check_mf(device, name, 41, 64, torch.float32, sparse=sparse, deterministic=False)


@pytest.mark.parametrize("dim", [1, 7, 64, 257])
@pytest.mark.parametrize("name", ["zerosum", "bpr"])
def test_factorizations_of_every_size(device, name, dim):
    check_mf(device, name, 20_000, dim, torch.float32, sparse=True)
    first, second = (check_mf(device, name, 9000, dim, torch.float32) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.01, initial_accumulator_value=0.1, eps=1e-8),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.99), eps=1e-6),
    "sparse_adam": lambda p: torch.optim.SparseAdam(p, lr=0.01, betas=(0.8, 0.99), eps=1e-6),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("loss", "negatives"), [("zerosum", 1), ("bpr", 3), ("pos2neg2", 2)])
def test_fused_training(device, loss, negatives, optimizer):
    """fit with the fused step against fit with autograd on the CPU."""
    if not _ops.has_op("mf_step", device):
        pytest.skip("no compiled kernels")
    x = matrix()
    results = []
    for engine, place in (("fused", device), ("autograd", torch.device("cpu"))):
        model = zx.MatrixFactorization(61, 97, 20, item_bias=True, seed=1, init_std=0.3)
        options = {"epochs": 3, "batch_size": 256, "seed": 3, "negatives": negatives, "l2": 0.1, "progress": False}
        history = fit(model, x, loss, OPTIMIZERS[optimizer], engine=engine, device=place, **options)
        assert history.engine == engine
        results.append((model.cpu(), list(history)))
    (model, history), (wanted, losses) = results
    assert history == pytest.approx(losses, rel=1e-5)
    for got, want in zip(model.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=5e-4, atol=5e-5)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_small_fused_steps(device, optimizer, capturable):
    """Two steps on the device against the same with autograd on the CPU."""
    if not _ops.has_op("mf_step", device):
        pytest.skip("no compiled kernels")
    module = zx.ZerosumLoss()
    batches = [factorization("zerosum", rows, 20, torch.float32)[1] for rows in (300, 41)]
    fused, wanted = (
        zx.MatrixFactorization(61, 97, 20, item_bias=True, seed=1, init_std=0.3, sparse=optimizer == "sparse_adam")
        for _ in range(2)
    )
    fused.to(device)
    made = OPTIMIZERS[optimizer](fused.parameters())
    if capturable:
        for group in made.param_groups:
            group["lr"] = torch.tensor(group["lr"], device=device)
    step = FusedStep(fused, module, made, capturable=capturable)
    torchs = OPTIMIZERS[optimizer](wanted.parameters())
    for ids in batches:
        total = step(*(t.to(device) for t in ids))
        torchs.zero_grad()
        tables = (wanted.user_embedding, wanted.item_embedding)
        value = reference.mf_loss_value(
            *(*tables, wanted.item_bias, *ids, None, None, module.kernel(), 0.0, "mean", optimizer == "sparse_adam")
        )
        value.backward()
        torchs.step()
        assert float(total) == pytest.approx(float(value.detach()) * len(ids[0]), rel=1e-5)
    counters = [state["step"] for state in made.state.values() if "step" in state]
    assert [float(counter) for counter in counters] == [2.0] * len(counters)
    if capturable:
        assert {counter.device.type for counter in counters} <= {device.type}
    for got, want in zip(fused.cpu().parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-5)


def test_small_scores_of_all_positives(device):
    x = matrix()
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(s, generator=generator) for s in ((61, 20), (97, 20), (97,))]
    results = []
    for place, dtype in ((device, torch.float32), (torch.device("cpu"), torch.float64)):
        moved = [t.to(place, dtype).requires_grad_() for t in leaves]
        value = popularity_correlation(moved[0], moved[1], x, moved[2])
        results.append((value, *torch.autograd.grad(value, moved)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got.double().cpu(), want, rtol=1e-4, atol=1e-4 * float(want.detach().abs().max()))


# ---- what only a GPU has


def capture(work):
    """A graph of work(), and the tensors that it fills."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    return graph, captured


@pytest.mark.cuda
def test_graphs(gpu):
    pos, neg = (scores(5000, torch.float32, seed).cuda().requires_grad_() for seed in (0, 1))
    x = matrix().to("cuda")
    users, key = torch.arange(61, device="cuda"), torch.tensor([1, 0, 0], device="cuda")

    def work():
        loss = zx.zerosum_loss(pos, neg)
        items = _ops.sample_negatives(users, x.indptr, x.indices, None, None, None, 97, 2, 0, 0, 0, True, key)[0]
        return loss, *torch.autograd.grad(loss, (pos, neg)), items

    graph, captured = capture(work)
    for seed in (1, 2):
        key[0] = seed
        with torch.no_grad():
            pos.add_(0.5)
        graph.replay()
        want = work()
        assert all(torch.equal(a, b) for a, b in zip(captured, want, strict=True))


@pytest.mark.cuda
def test_graphs_of_factorization(gpu):
    tables, ids = factorization("bpr", 5000, 64, torch.float32)
    leaves, ids = [t.cuda().requires_grad_() for t in tables], [t.cuda() for t in ids]

    def work():
        value = zx.mf_loss(*leaves[:2], *ids, loss="bpr", item_bias=leaves[2], l2=0.1)
        return value, *torch.autograd.grad(value, leaves)

    graph, captured = capture(work)
    for _ in range(2):
        with torch.no_grad():
            leaves[0].mul_(0.9)
            ids[0].copy_(ids[0].flip(0))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, work(), strict=True))


@pytest.mark.cuda
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_graphs_of_the_fused_step(gpu, optimizer):
    """Replays of a captured step are steps, under a schedule: with the bits of those that count in a tensor too, and
    close to those that count on the host."""
    batches = [tuple(t.cuda() for t in factorization("zerosum", 700, 1 + i, torch.float32)[1]) for i in range(7)]
    results = []
    for how in ("host", "device", "graph"):
        model = zx.MatrixFactorization(61, 97, 64, item_bias=True, seed=1, init_std=0.3, device="cuda")
        made = OPTIMIZERS[optimizer](model.parameters())
        for group in made.param_groups:
            if how != "host":
                group["lr"] = torch.tensor(group["lr"], device="cuda", dtype=torch.float64)
        schedule = torch.optim.lr_scheduler.StepLR(made, 2, 0.5)
        made._opt_called = True
        step = FusedStep(model, zx.ZerosumLoss(), made, l2=0.1, capturable=how != "host")
        current = tuple(t.clone() for t in batches[0])
        run = lambda step=step, current=current: step(*current)  # noqa: E731
        if how == "graph":
            tensors = [*model.parameters(), *(t for state in made.state.values() for t in state.values())]
            start = [t.detach().clone() for t in tensors]
            graph, captured = capture(run)
            with torch.no_grad():
                for t, before in zip(tensors, start, strict=True):
                    t.copy_(before)
        values = []
        for batch in batches:
            for t, new in zip(current, batch, strict=True):
                t.copy_(new)
            if how == "graph":
                graph.replay()
                values.append(captured.clone())
            else:
                values.append(run())
            schedule.step()
        steps = [torch.as_tensor(float(s["step"])) for s in made.state.values() if "step" in s]
        assert all(count == 7 for count in steps)
        results.append([*values, *(p.detach() for p in model.parameters())])
    for host, device, graph in zip(*results, strict=True):
        assert torch.equal(device, graph)
        torch.testing.assert_close(device, host, rtol=1e-5, atol=1e-6)


@pytest.mark.cuda
@pytest.mark.parametrize("optimizer", ["adam", "sparse_adam", "adagrad"])
def test_a_step_that_counts_on_the_host_is_not_captured(gpu, optimizer):
    model = zx.MatrixFactorization(61, 97, 8, seed=1, device="cuda")
    step = FusedStep(model, zx.ZerosumLoss(), OPTIMIZERS[optimizer](model.parameters()))
    ids = tuple(t.cuda() for t in factorization("zerosum", 50, 1, torch.float32)[1])
    step(*ids)
    with pytest.raises(RuntimeError, match=r"expected FusedStep\(..., capturable=True\)"):
        capture(lambda: step(*ids))
    torch.cuda.synchronize()
    assert not torch.cuda.is_current_stream_capturing()


@pytest.mark.parametrize("dim", [10, 64])
@pytest.mark.parametrize("normalization", ["row", "symmetric"])
def test_graphs_are_propagated_as_on_the_cpu(device, dim, normalization):
    """The product and its gradient, on lists that dropped entries are missing from, and these lists themselves."""
    graph = Graph(matrix(), normalization, 0.3)
    here = copy.deepcopy(graph).to(device)
    seed = torch.tensor(11)
    lists = [
        _ops.graph_dropout(g.indptr, g.indices, g.by_item, g.shape[0], seed.to(g.indptr.device), 0.3)
        for g in (graph, here)
    ]
    for end, entries, their_end, their_entries in (
        (*lists[0][:2], *lists[1][:2]),
        (*lists[0][2:], *lists[1][2:]),
    ):
        assert torch.equal(end, their_end.cpu())
        kept = torch.arange(len(entries)) < end.repeat_interleave(graph.indptr.diff())
        assert torch.equal(entries[kept], their_entries.cpu()[kept])
    results = []
    for g, (end, entries, transposed_end, transposed) in zip((graph, here), lists, strict=True):
        tables = [scores((n, dim), torch.float32, n).to(g.indptr.device).requires_grad_() for n in g.shape]
        column = g.scale if normalization == "symmetric" else None
        out = propagate_once(*tables, g.indptr, end, entries, g.scale, transposed_end, transposed, column, 2.0)
        results.append((*out, *torch.autograd.grad([o.sin().sum() for o in out], tables)))
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y.cpu(), rtol=1e-5, atol=1e-5)


@pytest.mark.cuda
def test_a_captured_graph_drops_other_entries_each_time(gpu):
    model = zx.LightGCN(matrix(), 8, node_dropout=0.5, seed=0, device="cuda")
    with torch.no_grad():
        graph, kept = capture(lambda: torch.cat(model.vectors()[:2]))
        values = []
        for _ in range(2):
            graph.replay()
            torch.cuda.synchronize()
            values.append(kept.clone())
    assert not torch.equal(*values)


@pytest.mark.cuda
def test_rankings_are_not_captured(gpu):
    """Where the positives' places lie on the host, a graph would read them there at each replay."""
    x = matrix()
    offset = torch.cat((torch.zeros(1, dtype=torch.int64), x.user_counts.cumsum(0)))
    there = [t.cuda() for t in (scores((61, 97), torch.float32, 0), torch.arange(61), x.indptr, x.indices)]
    values, users, indptr, indices = there
    with pytest.raises(RuntimeError, match="cannot be captured"):
        capture(lambda: _ops.rank_scores(values, users, offset, indptr, indices, None, None, 3))
    torch.cuda.synchronize()
    assert not torch.cuda.is_current_stream_capturing()


@pytest.mark.cuda
def test_ids_out_of_range_give_nan(gpu):
    tables, ids = factorization("bpr", 100, 8, torch.float32)
    ids[1][7] = 97
    leaves = [t.cuda().requires_grad_() for t in tables]
    value = zx.mf_loss(*leaves[:2], *(t.cuda() for t in ids), loss="bpr")
    assert value.isnan()
    grads = torch.autograd.grad(value, leaves[:2])
    assert grads[0].isnan().any(1).nonzero().flatten().tolist() == [int(ids[0][7])]


@pytest.mark.cuda
def test_a_second_stream(gpu):
    pos, neg = (scores(1 << 20, torch.float32, seed).cuda() for seed in (0, 1))
    want = zx.zerosum_loss(pos, neg)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = [zx.zerosum_loss(pos, neg) for _ in range(20)]
    torch.cuda.synchronize()
    assert all(torch.equal(g, want) for g in got)
