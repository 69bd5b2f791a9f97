"""The CUDA kernels of the losses, run on the host: against the definitions in float64."""

from __future__ import annotations

import itertools
import os

import cuda_on_host
import pytest
import torch
from cuda_on_host import planted
from cuda_on_host.losses import LOSSES, NEED_CONSTANTS, PAIR, REDUCTIONS, ROW, numbers
from cuda_on_host.testing import counted_kernels_of, kernels_of, misaligned

from zerosum_ext import reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


kernels = kernels_of("pair_loss")


def test_losses_are_numbered_as_in_the_library(kernels):
    from zerosum_ext import _ops

    assert set(kernels.loss_names()) == set(reference.LOSSES)
    if _ops.LOSS_IDS:
        assert list(_ops.LOSS_IDS) == kernels.loss_names()


def normal(shape, dtype, seed, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def uniform(shape, dtype, seed):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def nan(shape, dtype):
    return torch.full(shape, torch.nan, dtype=dtype)


def workspace(kernels, reduction="mean"):
    """Memory for a sum as a launch finds it: full of something; and the launch's ticket."""
    size = torch.zeros(1, dtype=torch.int64)
    kernels.sum_workspace(size)
    return None if reduction == "none" else nan((int(size),), torch.float64)


TICKETS = itertools.count(1)


def run(kernels, loss, pos, neg, *, aux=(None, None), weight=None, reduction="mean", grad=True):
    dtype, compute = pos.dtype, reference.compute_dtype(pos.dtype)
    if reduction != "none":
        value = nan((), compute)
    else:
        value = nan(neg.shape if loss in PAIR else pos.shape[:1], dtype)
    grads = (nan(pos.shape, dtype), nan(neg.shape, dtype)) if grad else (None, None)
    kernels.pair_loss(
        *(pos, neg, *aux, weight, value, *grads, workspace(kernels, reduction)),
        *(*numbers(kernels, loss), REDUCTIONS[reduction], next(TICKETS)),
    )
    return value, *(grads if grad else ())


def compare(got, want, dtype):
    for x, y in zip(got, want, strict=True):
        assert x.shape == y.shape
        scale = max(1.0, float(y.abs().max())) if y.numel() else 1.0
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=tolerance * scale)


def double(t):
    return None if t is None else t.double()


def check(kernels, loss, pos, neg, *, aux=(None, None), weight=None, reduction="mean"):
    got = run(kernels, loss, pos, neg, aux=aux, weight=weight, reduction=reduction)
    want = reference.pair_loss(
        *(pos.double(), neg.double(), double(aux[0]), double(aux[1]), double(weight)),
        *(LOSSES[loss], reduction, True),
    )
    compare(got, want, pos.dtype)
    (alone,) = run(kernels, loss, pos, neg, aux=aux, weight=weight, reduction=reduction, grad=False)
    assert torch.equal(alone, got[0])


def constants(loss, shape, dtype):
    if loss not in NEED_CONSTANTS:
        return None, None
    if loss == "refined_softmax":  # logarithms of probabilities
        return -0.5 - uniform(shape[:1], dtype, 3), -0.5 - uniform(shape, dtype, 4)
    return uniform(shape[:1], dtype, 3), uniform(shape, dtype, 4)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("loss", ROW)
def test_a_negative_of_minus_infinity_is_masked(kernels, loss, dtype):
    pos, neg = normal(3, dtype, 0), normal((3, 40), dtype, 1)
    neg[0, ::2] = -torch.inf
    if loss not in ("bsl", "psl_tanh"):  # whose values without negatives are infinite by definition
        neg[1] = -torch.inf
    aux = constants(loss, (3, 40), reference.compute_dtype(dtype))
    check(kernels, loss, pos, neg, aux=aux)
    neg[2], neg[2, 17] = -torch.inf, torch.nan
    assert run(kernels, loss, pos, neg, aux=aux)[0].isnan()


@pytest.mark.parametrize("units", [2**31 - 1, 2**31, 2**31 + 5, 2**40 + 1])
def test_tiles_hold_any_number_of_samples(kernels, units):
    size, tiles = out = torch.zeros(2, dtype=torch.int64)
    for turn, grain in ((1024, 4), (256, 1), (1, 1)):
        kernels.tiles(out, units, turn, grain)
        assert int(size) % turn == 0
        assert 1024 < int(tiles) <= 2048
        assert (int(tiles) - 1) * int(size) < units <= int(tiles) * int(size)


@pytest.mark.parametrize("loss", ["zerosum", "sampled_softmax"])
def test_scores_that_lie_far_apart(kernels, loss):
    """More than 2^31 elements from one row to the next, of which the system has no pages but those that are written."""
    if os.environ.get("CUDA_ON_HOST_RECORD") or os.environ.get("CUDA_ON_HOST_SANITIZE"):
        pytest.skip("a recorded call has all the memory that its tensors belong to, and a sanitizer marks all of it")
    apart = (1 << 31) + 5
    memory = torch.empty(apart + 64, dtype=torch.float16)
    pos, neg = memory.as_strided((2,), (apart,)), memory.as_strided((2, 40), (apart, 1), 8)
    pos.copy_(normal(2, torch.float16, 0)), neg.copy_(normal((2, 40), torch.float16, 1))
    check(kernels, loss, pos, neg)


# ---- one score each: 16-byte accesses and what is left over, and addresses that allow none


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("size", [0, 1, 3, 8, 255, 1025, 2051])
@pytest.mark.parametrize("loss", PAIR)
def test_vectors(kernels, loss, size, dtype):
    compute = reference.compute_dtype(dtype)
    pos, neg = normal(size, dtype, 0), normal(size, dtype, 1)
    aux, weight = constants(loss, (size,), compute), uniform(size, compute, 2)
    for reduction in REDUCTIONS:
        check(kernels, loss, pos, neg, aux=aux, reduction=reduction)
    check(kernels, loss, pos, neg, aux=aux, weight=weight)
    check(kernels, loss, misaligned(pos), neg, aux=aux, weight=weight)
    check(kernels, loss, pos, neg, aux=aux, weight=misaligned(weight), reduction="none")


@pytest.mark.parametrize("loss", PAIR)
def test_strided_and_repeated_inputs(kernels, loss):
    base = normal((700, 4), torch.float32, 0)
    aux = constants(loss, (700,), torch.float32)
    one = torch.tensor(0.25)
    check(kernels, loss, base[:, 1], base[:, 2], aux=aux, reduction="none")
    check(kernels, loss, base[:, 1], normal(700, torch.float32, 1), aux=aux, weight=one.expand(700))
    check(kernels, loss, normal(700, torch.float32, 1), normal(700, torch.float32, 2), aux=aux, weight=one.expand(700))
    check(kernels, loss, base[:1, 0].expand(700), base[:, 2].contiguous(), aux=aux)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("rows", [0, 1, 5, 777])
def test_two_positives_and_two_negatives(kernels, rows, dtype):
    compute = reference.compute_dtype(dtype)
    pos, neg, weight = normal((rows, 2), dtype, 0), normal((rows, 2), dtype, 1), uniform(rows, compute, 2)
    for reduction in REDUCTIONS:
        check(kernels, "pos2neg2", pos, neg, reduction=reduction)
    check(kernels, "pos2neg2", pos, neg, weight=weight)
    check(kernels, "pos2neg2", misaligned(pos), neg, weight=weight, reduction="none")
    check(kernels, "pos2neg2", pos[:, :1].expand(-1, 2), neg.flip(1).contiguous().T.contiguous().T)


# ---- K negatives to a positive


@pytest.mark.parametrize("k", [*range(34), 64, 100, 513, 2200])
def test_every_number_of_negatives(kernels, k):
    pos, neg = normal(9, torch.float32, 0), normal((9, k), torch.float32, 1)
    check(kernels, "zerosum", pos, neg)
    check(kernels, "zerosum", pos, neg, weight=uniform(9, torch.float32, 2), reduction="none")
    check(kernels, "pd", pos, neg, aux=constants("pd", (9, k), torch.float32), weight=uniform((9, k), torch.float32, 2))
    if k > 1:
        check(kernels, "bpr", pos, normal((9, k + 3), torch.float32, 1)[:, 1 : k + 1])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", [(600, 8), (130, 16), (3, 7), (0, 4), (4, 0)])
@pytest.mark.parametrize("loss", PAIR)
def test_matrices(kernels, loss, shape, dtype):
    compute = reference.compute_dtype(dtype)
    pos, neg, aux = normal(shape[:1], dtype, 0), normal(shape, dtype, 1), constants(loss, shape, compute)
    for reduction in REDUCTIONS:
        check(kernels, loss, pos, neg, aux=aux, reduction=reduction)
    check(kernels, loss, pos, misaligned(neg), aux=aux, weight=uniform(shape, compute, 2))
    check(kernels, loss, misaligned(pos), neg, aux=aux, weight=uniform(shape[:1], compute, 2))


@pytest.mark.parametrize("k", [*range(1, 34), 127, 128, 129, 1000, 2100])
def test_row_losses_of_every_length(kernels, k):
    pos, neg = normal(9, torch.float32, 0), normal((9, k), torch.float32, 1)
    for loss in ROW:
        aux = constants(loss, (9, k), torch.float32)
        check(kernels, loss, pos, neg, aux=aux, weight=uniform(9, torch.float32, 2))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("rows", [0, 1, 300])
@pytest.mark.parametrize("loss", ROW)
def test_row_losses(kernels, loss, rows, dtype):
    compute = reference.compute_dtype(dtype)
    pos, neg = normal(rows, dtype, 0), normal((rows, 21), dtype, 1)
    aux = constants(loss, (rows, 21), compute)
    for reduction in REDUCTIONS:
        check(kernels, loss, pos, neg, aux=aux, reduction=reduction)
    weight = uniform(rows, compute, 2)
    check(kernels, loss, misaligned(pos), misaligned(neg), aux=aux, weight=weight, reduction="none")
    if loss == "sampled_softmax":
        aux = uniform(rows, compute, 3), uniform((rows, 21), compute, 4)
        check(kernels, loss, pos, neg, aux=aux)
        check(kernels, loss, pos, neg, aux=(None, uniform((rows, 21), compute, 4)))
        check(kernels, loss, pos, neg, aux=(aux[0], None))


def test_the_first_of_equal_negatives_is_the_hardest(kernels):
    pos, neg = torch.zeros(2), torch.tensor([[1.0] * 70, [0.0] * 69 + [1.0]])
    _, _, grad_neg = run(kernels, "hardest", pos, neg)
    assert grad_neg.nonzero().tolist() == [[0, 0], [1, 69]]


# ---- MACR


def check_macr(kernels, scores, *, weight=None, reduction="mean"):
    dtype, compute = scores[0].dtype, reference.compute_dtype(scores[0].dtype)
    neg = scores[1]
    value = nan(neg.shape, dtype) if reduction == "none" else nan((), compute)
    grads = [nan(s.shape, dtype) for s in scores]
    kernels.macr_loss(
        *(*scores, weight, value, *grads, workspace(kernels, reduction)),
        *(0.3, 0.7, REDUCTIONS[reduction], next(TICKETS)),
    )
    want = reference.macr_loss([s.double() for s in scores], double(weight), 0.3, 0.7, reduction, True)
    compare((value, *grads), want, dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", [(0,), (1,), (1027,), (5, 3), (300, 16)])
def test_macr(kernels, shape, dtype):
    full = [normal(shape, dtype, seed) for seed in range(5)]
    shared = [normal(shape[:1], dtype, seed) for seed in range(5)]
    for reduction in REDUCTIONS:
        check_macr(kernels, full if len(shape) == 1 else [shared[0], *full[1:]], reduction=reduction)
    scores = [shared[0], full[1], shared[2], shared[3], full[4]]
    check_macr(kernels, scores, weight=uniform(shape, reference.compute_dtype(dtype), 7))
    check_macr(kernels, [misaligned(s) for s in scores])


# ---- values at the edges, and sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_scores_are_finite_and_nan_stays(kernels, dtype):
    grid = torch.tensor([0.0, 1e-6, 1.0, 20.0, 90.0, 1e4, -1e-6, -1.0, -20.0, -90.0, -1e4], dtype=dtype)
    pos, neg = (t.flatten() for t in torch.meshgrid(grid, grid, indexing="ij"))
    for loss in ("bpr", "zerosum"):
        value, *grads = run(kernels, loss, pos, neg, reduction="none")
        assert all(bool(t.isfinite().all()) for t in (value, *grads))
    for loss in ROW:
        aux = constants(loss, (11, 11), reference.compute_dtype(dtype))
        value, *grads = run(kernels, loss, grid, grid.expand(11, 11).contiguous(), aux=aux, reduction="none")
        assert all(bool(t.isfinite().all()) for t in (value, *grads))
        bad = grid.expand(11, 11).clone()
        bad[3, 10] = torch.nan
        value = run(kernels, loss, grid, bad, aux=aux, reduction="none")[0]
        assert value.isnan().nonzero().flatten().tolist() == [3]
    pos = pos.clone()
    pos[5] = torch.nan
    value, *grads = run(kernels, "zerosum", pos, neg, reduction="none")
    assert all(t.isnan().nonzero().tolist() == [[5]] for t in (value, *grads))


def test_sums_do_not_depend_on_the_order_of_threads_and_blocks(kernels):
    cases = [
        ("zerosum", normal(30001, torch.float32, 0), normal(30001, torch.float32, 1)),
        ("bpr", normal(2000, torch.float32, 0), normal((2000, 20), torch.float32, 1)),
        ("bsl", normal(900, torch.float32, 0), normal((900, 33), torch.float32, 1)),
        ("zerosum", normal(12, torch.float32, 0), normal((12, 4100), torch.float32, 1)),
    ]
    for loss, pos, neg in cases:
        results = []
        for settings in cuda_on_host.SCHEDULES:
            with cuda_on_host.schedule(settings):
                results.append(run(kernels, loss, pos, neg))
        for other in results[1:]:
            assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize("clusters", ["0", "1"])
def test_sums_are_the_same_bits_on_every_gpu(kernels, clusters):
    """On any number of multiprocessors, and in clusters or through flags."""
    cases = [
        ("zerosum", normal(size, torch.float32, 0), normal(size, torch.float32, 1)) for size in (2048, 4099, 30001)
    ]
    cases += [
        ("bpr", normal(1500, torch.float32, 0), normal((1500, 20), torch.float32, 1)),
        ("bsl", normal(90, torch.float32, 0), normal((90, 33), torch.float32, 1)),
        ("pos2neg2", normal((9000, 2), torch.float32, 0), normal((9000, 2), torch.float32, 1)),
    ]
    for loss, pos, neg in cases:
        expected = run(kernels, loss, pos, neg)
        for multiprocessors in ("1", "2", "7", "132"):
            settings = {"CUEMU_SMS": multiprocessors, "CUEMU_CLUSTERS": clusters, "CUEMU_RESIDENT": "3"}
            with cuda_on_host.schedule(settings):
                got = run(kernels, loss, pos, neg)
            assert all(torch.equal(x, y) for x, y in zip(expected, got, strict=True))


# ---- the budget: launches, blocks and bytes


def nodes_of(kernels, *args, **options):
    with kernels.count() as counts:
        run(kernels, *args, **options)
    return counts.nodes


@pytest.mark.parametrize("clusters", ["0", "1"])
@pytest.mark.parametrize("size", [0, 16, 1024, 2048, 4096, 9000, 70000])
def test_a_loss_and_its_derivatives_are_one_launch(kernels, size, clusters):
    with cuda_on_host.schedule({"CUEMU_CLUSTERS": clusters, "CUEMU_RESIDENT": "2"}):
        for dtype in (torch.float32, torch.bfloat16):
            pos, neg = normal(size, dtype, 0), normal(size, dtype, 1)
            for reduction in REDUCTIONS:
                assert len(nodes_of(kernels, "zerosum", pos, neg, reduction=reduction)) == 1
        rows = size // 16
        pos, neg = normal(rows, torch.float32, 0), normal((rows, 16), torch.float32, 1)
        assert len(nodes_of(kernels, "bpr", pos, neg)) == 1
        assert len(nodes_of(kernels, "sampled_softmax", pos, neg)) == 1
        pos, neg = normal((size, 2), torch.float32, 0), normal((size, 2), torch.float32, 1)
        assert len(nodes_of(kernels, "pos2neg2", pos, neg)) == 1


@pytest.mark.parametrize("size", [2048, 2049, 3000, 4096, 6001, 8192, 8193, 20000])
def test_small_batches_keep_eight_blocks_busy(kernels, size):
    pos, neg = normal(size, torch.float32, 0), normal(size, torch.float32, 1)
    with cuda_on_host.schedule({"CUEMU_SMS": "132"}):
        (node,) = nodes_of(kernels, "zerosum", pos, neg)
    assert node.grid[0] >= 8
    # Eight of them add up through each other's shared memory, more through memory.
    assert node.cluster == (8 if size <= 8192 else 1)
    with cuda_on_host.schedule({"CUEMU_SMS": "132", "CUEMU_CLUSTERS": "0"}):
        (node,) = nodes_of(kernels, "zerosum", pos, neg)
    assert node.grid[0] >= 8
    assert node.cluster == 1


def test_no_more_blocks_than_the_gpu_holds(kernels):
    pos, neg = normal(300000, torch.float32, 0), normal(300000, torch.float32, 1)
    for multiprocessors in (1, 3):
        with cuda_on_host.schedule({"CUEMU_SMS": str(multiprocessors), "CUEMU_RESIDENT": "3"}):
            (node,) = nodes_of(kernels, "bpr", pos, neg)
        assert node.grid[0] == 4 * multiprocessors


def test_a_graph_repeats_a_launch_with_its_ticket(kernels):
    """The flags are down again after a launch, so that the next one waits for its own."""
    memory, values = workspace(kernels), []
    pos, neg = normal(20000, torch.float32, 0), normal(20000, torch.float32, 1)
    for turn in range(3):
        pos += turn
        for settings in cuda_on_host.SCHEDULES:
            value = nan((), torch.float32)
            with cuda_on_host.schedule(settings):
                kernels.pair_loss(*(pos, neg, None, None, None, value, None, None, memory, 0, 1.0, 0.0, 0.0, 2, 77))
            values.append(float(value))
            assert 77 not in memory.view(torch.int64).tolist()
        assert len(set(values[-3:])) == 1
        assert values[-1] == pytest.approx(float(torch.nn.functional.softplus(neg - pos).mean()), rel=1e-6)
    assert len(set(values)) == 2 + (values[0] != values[3])


counted = counted_kernels_of("pair_loss")
SLACK = 2048  # bytes: partial sums, flags and the value


@pytest.mark.parametrize("size", [4096, 50000])
@pytest.mark.parametrize("loss", ["bpr", "zerosum"])
def test_a_pair_moves_four_words(counted, loss, size):
    pos, neg = normal(size, torch.float32, 0), normal(size, torch.float32, 1)
    with counted.count() as counts:
        run(counted, loss, pos, neg)
    assert (counts.loaded - 8 * size, counts.stored - 8 * size) < (SLACK, SLACK)
    assert 16 * size <= counts.moved < 16 * size + SLACK
    with counted.count() as counts:
        run(counted, loss, pos, neg, grad=False)
    assert 8 * size <= counts.moved < 8 * size + SLACK


def test_matrices_move_each_score_once(counted):
    pos, neg = normal(500, torch.float32, 0), normal((500, 64), torch.float32, 1)
    for loss in ("zerosum", "sampled_softmax"):
        with counted.count() as counts:
            run(counted, loss, pos, neg)
        assert counts.moved < 8 * 500 * 65 + SLACK
    pos, neg = normal((20000, 2), torch.float32, 0), normal((20000, 2), torch.float32, 1)
    with counted.count() as counts:
        run(counted, "pos2neg2", pos, neg)
    assert counts.moved < 32 * 20000 + SLACK


# ---- the backward pass


def scaled(kernels, tensors, factor, *, in_place):
    out = tensors if in_place else [nan(t.shape, t.dtype) for t in tensors]
    kernels.scale_gradients(factor, tensors[0], out[0], *((tensors[1], out[1]) if len(tensors) > 1 else (None, None)))
    return out


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("size", [0, 1, 7, 1025, 40000])
def test_gradients_are_scaled(kernels, size, dtype, in_place):
    compute = reference.compute_dtype(dtype)
    for factor in (1.0, -0.3, torch.nan, torch.inf):
        for prepare in (lambda t: t, misaligned):
            tensors = [prepare(normal(size, dtype, 0)), prepare(normal((size, 3), dtype, 1))]
            expected = [(t.to(compute) * factor).to(dtype) for t in tensors]
            with kernels.count() as counts:
                got = scaled(kernels, tensors, torch.tensor(factor, dtype=compute), in_place=in_place)
            assert len(counts.nodes) == 1
            assert all(torch.equal(x, y) or factor != factor for x, y in zip(expected, got, strict=True))
            assert all(bool(t.isnan().all()) for t in got) or factor == factor
            assert counts.nodes[0].grid[0] <= 4 * 4


def test_a_factor_of_one_moves_nothing(counted):
    tensors = [normal(30000, torch.float32, 0), normal(30000, torch.float32, 1)]
    before = [t.clone() for t in tensors]
    with counted.count() as counts:
        scaled(counted, tensors, torch.ones(()), in_place=True)
    assert counts.moved == 32
    assert counts.stored == 0
    assert all(torch.equal(x, y) for x, y in zip(before, tensors, strict=True))
    with counted.count() as counts:
        scaled(counted, tensors, torch.tensor(0.5), in_place=True)
    assert 16 * 30000 <= counts.moved < 16 * 30000 + SLACK
    with counted.count() as counts:
        out = scaled(counted, tensors, torch.ones(()), in_place=False)
    assert 16 * 30000 <= counts.moved < 16 * 30000 + SLACK
    assert all(torch.equal(x, y) for x, y in zip(out, tensors, strict=True))


# ---- the device's approximate functions


@pytest.mark.parametrize("how", ["1", "-1", "2"])
@pytest.mark.parametrize("loss", ["bpr", "zerosum", "pos2neg2", "ipw", "sampled_softmax", "hardest"])
def test_the_bound_holds_with_the_largest_errors_of_the_device(kernels, loss, how):
    """1e-6 max(1, |value|, |p| + |n|) for values (README), and the same for derivatives, which are at most about 2."""
    steps = torch.cat([torch.logspace(-6, 4, 120, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    grid = torch.cat([steps, -steps])
    generator = torch.Generator().manual_seed(0)
    pos, neg = (grid[torch.randint(0, len(grid), (6000,), generator=generator)].float() for _ in range(2))
    near = pos[:2000] * (1 + torch.linspace(-1, 1, 2000) * 1e-3)
    neg = torch.cat([neg[:2000], near, -near])
    aux = constants(loss, (6000,), torch.float32)
    if loss == "pos2neg2":
        pos, neg = pos.view(-1, 2), neg.view(-1, 2)
    elif loss in ROW:
        pos, neg = pos[:1000].contiguous(), neg.view(1000, 6)
    with cuda_on_host.schedule({"CUEMU_ULP": how}):
        got = run(kernels, loss, pos, neg, aux=aux, reduction="none")
    want = reference.pair_loss(
        *(pos.double(), neg.double(), double(aux[0]), double(aux[1]), None, LOSSES[loss], "none", True)
    )
    size = pos.abs().double() + neg.abs().double() if pos.shape == neg.shape else None
    if loss == "pos2neg2":
        size = size.sum(1)
    elif size is None:
        size = pos.abs().double() + neg.abs().double().amax(1)
    bound = 1e-6 * torch.maximum(size, want[0].abs()).clamp(min=1)
    factor = 2.0 if loss == "sampled_softmax" else 1.5 if loss == "bpr" else 1.0  # of the scores, in LOSSES
    assert ((got[0].double() - want[0]).abs() / bound).max() < factor
    for x, y in zip(got[1:], want[1:], strict=True):
        margin = bound.view(-1, *(1,) * (y.dim() - 1)) if loss in ROW or loss == "pos2neg2" else bound
        assert ((x.double() - y).abs() / margin).max() < factor


def test_more_work_than_blocks(kernels):
    size = 2048 * 256 + 77  # misaligned: one sample a thread at a time
    pos, neg = misaligned(normal(size, torch.float32, 0)), normal(size, torch.float32, 1)
    check(kernels, "zerosum", pos, neg)
    check(kernels, "bpr", normal(2049 * 8, torch.float32, 0), normal((2049 * 8, 31), torch.float32, 1))


# ------------------------------------------------------------------------------------------------------ planted bugs

SUMS = "cuda/loss_common.cuh"
BUGS = [
    planted.Bug("what is left of the last pack is lost", "rest + threadIdx.x", "end + threadIdx.x"),
    planted.Bug("the last pack of a turn is lost", "at < stop", "at + kPack < stop"),
    planted.Bug("a pack's constants are its first", "x[k] = aux[k].v[i];", "x[k] = aux[k].v[0];"),
    planted.Bug("a pack's weights are its first", "weighted ? weight.v[i] : C(1)", "weighted ? weight.v[0] : C(1)"),
    planted.Bug("derivatives have no weight", "a.scale * w * d[k]", "a.scale * d[k]"),
    planted.Bug("the value has no weight", "w * Loss::eval(s, x, a.params, d)", "Loss::eval(s, x, a.params, d)"),
    planted.Bug(
        "two positives are one", "scores[k / kParts].v[i * kParts + k % kParts]", "scores[k / kParts].v[i * kParts]"
    ),
    planted.Bug(
        "a turn's values are added twice",
        "total += static_cast<double>(some);\n          some = 0;",
        "total += static_cast<double>(some);",
    ),
    planted.Bug(
        "a positive has the derivative of one lane",
        "group_combine<kLossThreads>(sums[t], a.width, Add{})",
        "__shfl_sync(kFullWarp, sums[t], 0, a.width < kWarp ? a.width : kWarp)",
    ),
    planted.Bug("a row's weight scales no derivative", "static_cast<C>(a.scale) * w", "static_cast<C>(a.scale)"),
    planted.Bug(
        "a row's value has no weight in the sum",
        "total += static_cast<double>(w * f.value);",
        "total += static_cast<double>(f.value);",
    ),
    planted.Bug("a row's constants are those of the first item", "x[col * a.aux_neg.col]", "x[0]"),
    # The backward pass.
    planted.Bug("what is not scaled in place stays unwritten", "a.in_place && factor == C(1)", "factor == C(1)"),
    planted.Bug("all is in place", "a.in_place &= p.from[t] == p.to[t];", ";"),
    planted.Bug("the end of a tensor is not scaled", "done = packs * kPack;", "done = a.size[t];"),
    planted.Bug("packs beyond the grid are not scaled", "i < packs", "i < packs && i < threads"),
    # Sums over tiles.
    planted.Bug(
        "the last tile is lost",
        "part += sum.partials[tile];",
        "part += tile + 1 < sum.tiles ? sum.partials[tile] : 0;",
        SUMS,
    ),
    planted.Bug("tiles beyond the grid are lost", "tile += gridDim.x", "tile += sum.tiles", SUMS),
    planted.Bug("nobody waits for a flag", "gpu_load_acquire(sum.flags + block) != sum.ticket", "false", SUMS),
    planted.Bug("flags stay up", "sum.flags[block] = 0;", ";", SUMS),
    planted.Bug(
        "a flag is raised before the sum is there",
        "if (sum.partials == nullptr) continue;",
        "if (sum.partials == nullptr) continue; if (threadIdx.x == 0 && !sum.cluster && blockIdx.x + 1 < gridDim.x) "
        "gpu_store_release(sum.flags + blockIdx.x, sum.ticket);",
        SUMS,
    ),
    planted.Bug("a cluster's first block adds up its own sum", "*gpu_cluster_peer(mine, threadIdx.x)", "mine[0]", SUMS),
    planted.Bug("a cluster's last block is lost", "threadIdx.x < sum.tiles", "threadIdx.x + 1 < sum.tiles", SUMS),
    # Losses of rows.
    planted.Bug("a row of masked items is shifted by minus infinity", "empty ? C(0) : top", "top", SUMS),
    planted.Bug("logits are not shifted", "sum += exp_nonpositive(z - shift);", "sum += exp_nonpositive(z);", SUMS),
    planted.Bug("the last of equal negatives is the hardest", "z == top && col < hardest", "z == top", SUMS),
    planted.Bug("a mean is a sum", "total * share", "total", SUMS),
    planted.Bug("a mean's derivatives are a sum's", "scale * f.dl * share", "scale * f.dl", SUMS),
    planted.Bug("NaN among negatives is no maximum", "z == z ? C(0) : z", "C(0)", SUMS),
]

wrong = planted.kernels_of(
    "pair_loss",
    "cuda/pair_loss.cuh",
    BUGS,
    losses=("bpr", "zerosum", "ipw", "pos2neg2", "sampled_softmax", "hardest", "ccl"),
    kind="plain",
)


def battery(kernels):
    """One case for each thing that can go wrong."""
    for dtype in (torch.float32, torch.float16):
        compute = reference.compute_dtype(dtype)
        for size in (7, 2051, 5003):
            pos, neg, aux = normal(size, dtype, 0), normal(size, dtype, 1), constants("ipw", (size,), compute)
            check(kernels, "ipw", pos, neg, aux=aux, weight=uniform(size, compute, 2))
    pair = normal((300, 2), torch.float32, 0), normal((300, 2), torch.float32, 1)
    check(kernels, "pos2neg2", *pair, weight=uniform(300, torch.float32, 2))
    # Sums of one tile, of a cluster, and through flags, with more tiles than blocks.
    flags = {"CUEMU_CLUSTERS": "0", "CUEMU_SMS": "1", "CUEMU_RESIDENT": "4"}
    for settings in ({}, flags, {**flags, "CUEMU_ORDER": "1"}, {**flags, "CUEMU_ORDER": "2", "CUEMU_SEED": "7"}):
        with cuda_on_host.schedule(settings):
            check(kernels, "zerosum", normal(6001, torch.float32, 0), normal(6001, torch.float32, 1))
            pos, neg = normal(300, torch.float32, 0), normal((300, 40), torch.float32, 1)
            check(kernels, "bpr", pos, neg, weight=uniform((300, 40), torch.float32, 2))
    long = normal(4, torch.float32, 0), normal((4, 13_000), torch.float32, 1)
    check(kernels, "zerosum", *long)
    test_a_graph_repeats_a_launch_with_its_ticket(kernels)
    for loss in ("sampled_softmax", "hardest", "ccl"):
        pos, neg = normal(9, torch.float32, 0), normal((9, 21), torch.float32, 1, scale=60.0)
        aux = uniform(9, torch.float32, 3), uniform((9, 21), torch.float32, 4)
        check(kernels, loss, pos, neg, aux=aux, weight=uniform(9, torch.float32, 2))
        test_a_negative_of_minus_infinity_is_masked(kernels, loss, torch.float32)
    test_the_first_of_equal_negatives_is_the_hardest(kernels)
    for in_place in (True, False):
        for factor in (1.0, -0.3):
            tensors = [normal(40_003, torch.float32, 0), normal(7, torch.float32, 1)]
            expected = [t * factor for t in tensors]
            got = scaled(kernels, tensors, torch.tensor(factor), in_place=in_place)
            assert all(torch.equal(x, y) for x, y in zip(expected, got, strict=True))


@pytest.mark.slow
@planted.each_of(BUGS)
def test_planted_bugs_are_noticed(wrong, bug):
    planted.look_for(bug, BUGS, wrong, battery)
