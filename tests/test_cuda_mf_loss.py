"""The CUDA kernels of mf_loss, run on the host: against the definition in float64."""

from __future__ import annotations

import itertools

import cuda_on_host
import pytest
import torch
from cuda_on_host import planted
from cuda_on_host.losses import CONSTANTS, LOSSES, PAIR, REDUCTIONS, numbers
from cuda_on_host.testing import kernels_of, misaligned, moved_far

from zerosum_ext import reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# What a sum's workspace holds: a partial sum and a flag for each of at most 2048 tiles.
WORKSPACE = 4096


kernels = kernels_of("mf_loss")


def test_losses_are_numbered_as_in_the_library(kernels):
    from zerosum_ext import _ops

    if _ops.LOSS_IDS:
        assert list(_ops.LOSS_IDS) == kernels.loss_names()
    size = torch.zeros(1, dtype=torch.int64)
    kernels.sum_workspace(size)
    assert int(size) == WORKSPACE


def problem(name, rows, k, dim, dtype, *, num_users=23, num_items=31, seed=0):
    """Tables, bias, ids, and constants where the loss takes some; k = 0 means negatives [rows]."""
    generator = torch.Generator().manual_seed(seed)

    def table(*shape):
        scale = 1.2 / dim**0.25 if len(shape) == 2 else 0.5
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    tables = table(num_users, dim), table(num_items, dim), table(num_items)
    draw = [torch.randint(0, n, (rows, 4 + abs(k)), generator=generator) for n in (num_users, num_items)]
    users = draw[0][:, 0].contiguous()
    if name == "pos2neg2":
        positives, negatives = draw[1][:, :2].contiguous(), draw[1][:, 2:4].contiguous()
    else:
        positives = draw[1][:, 0].contiguous()
        negatives = (draw[1][:, 1] if k == 0 else draw[1][:, 1 : 1 + k]).contiguous()
    constants = None
    if name in CONSTANTS:
        constants = torch.rand(num_items, generator=generator, dtype=torch.float64).to(reference.compute_dtype(dtype))
    return tables, (users, positives, negatives), constants


TICKETS = itertools.count(1)


def nan(shape, dtype):
    return torch.full(shape, torch.nan, dtype=dtype)


def run(kernels, name, tables, ids, constants=None, weight=None, *, l2=0.0, reduction="mean", grad=True, each=0):
    user, item, bias = tables
    users, positives, negatives = ids
    dtype, compute = user.dtype, reference.compute_dtype(user.dtype)
    rows = users.shape[0]
    items = sum(t.shape[1] if t.dim() == 2 else 1 for t in (positives, negatives))
    if reduction != "none":
        value = nan((), compute)
    else:
        value = nan(negatives.shape if name in PAIR else (rows,), dtype)
    coefficient = nan((rows, items), compute) if grad or name not in (*PAIR, "pos2neg2") else None
    failed = torch.full((1,), -1)
    kernels.mf_loss(
        *(user, item, bias, *ids, constants, weight, value, coefficient),
        *(nan((WORKSPACE,), torch.float64) if reduction != "none" else None, failed),
        *(*numbers(kernels, name), l2, REDUCTIONS[reduction], grad, each, next(TICKETS)),
    )
    return value, coefficient, int(failed)


def definition(name, tables, ids, constants, weight, l2, reduction):
    """Value and the derivative of the reduced value with respect to each score, in float64."""
    user, item, bias = (None if t is None else t.double() for t in tables)
    users, positives, negatives = ids
    scores, norms = reference.mf_scores(user, item, bias, users, reference.mf_items(positives, negatives), False)
    scores = scores.detach().requires_grad_()
    pos, neg = reference.split_scores(scores, positives, negatives)
    constants = None if constants is None else constants.double()
    aux = (None, None) if constants is None else (constants[positives], constants[negatives])
    weight = None if weight is None else weight.double()
    value = reference.pair_loss_value(pos, neg, *aux, weight, LOSSES[name], reduction)
    (coefficient,) = torch.autograd.grad(value.sum(), scores) if scores.numel() else (torch.zeros_like(scores),)
    if l2:
        value = value + l2 * reference.reduce(norms, reduction)
    return value.detach(), coefficient


def close(got, want, dtype):
    assert got.shape == want.shape
    tolerance = TOLERANCE[dtype]
    scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * scale)


def check(kernels, name, tables, ids, constants=None, weight=None, *, l2=0.0, reduction="mean", each=0):
    options = {"l2": l2, "reduction": reduction}
    value, coefficient, failed = run(kernels, name, tables, ids, constants, weight, **options, each=each)
    want, slopes = definition(name, tables, ids, constants, weight, l2, reduction)
    assert failed == -1
    close(value, want, tables[0].dtype)
    # Scores are summed in float32 whatever the tables hold.
    close(coefficient, slopes, reference.compute_dtype(tables[0].dtype))
    alone = run(kernels, name, tables, ids, constants, weight, **options, grad=False, each=each)[0]
    assert torch.equal(alone, value)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(kernels, name, dtype):
    compute = reference.compute_dtype(dtype)
    for rows, k in ((37, 3), (41, 1)):
        tables, ids, constants = problem(name, rows, k, 20, dtype)
        weight = torch.rand(rows, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(compute)
        for reduction in REDUCTIONS:
            l2 = 0.3 if reduction != "none" else 0.0
            check(kernels, name, tables, ids, constants, reduction=reduction)
            check(kernels, name, tables, ids, constants, weight, l2=l2, reduction=reduction)
        if name in PAIR:
            pairs = torch.rand(ids[2].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
            check(kernels, name, tables, ids, constants, pairs.to(compute), reduction="none")
            check(kernels, name, tables, ids, constants, pairs.to(compute))
        if name == "sampled_softmax":
            check(kernels, name, tables, ids)
    check(kernels, name, (*tables[:2], None), ids, constants)


# Rows of one element, odd ones, whole accesses of 16 bytes, more of them than a warp takes at once.
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7, 8, 16, 31, 33, 63, 64, 65, 100, 129, 255, 256, 257, 520, 1000])
def test_every_width(kernels, dim):
    for dtype in (torch.float32, torch.bfloat16):
        for name, k in (("zerosum", 0), ("bpr", 5), ("pos2neg2", 2)):
            tables, ids, constants = problem(name, 19, k, dim, dtype, seed=dim)
            check(kernels, name, tables, ids, constants, l2=0.1)
            check(kernels, name, (misaligned(tables[0]), *tables[1:]), ids, constants)
    tables, ids, _ = problem("bsl", 9, 6, dim, torch.float64)
    check(kernels, "bsl", (tables[0], misaligned(tables[1]), misaligned(tables[2])), ids)


@pytest.mark.parametrize("k", [*range(1, 34), 63, 100, 515])
def test_every_number_of_negatives(kernels, k):
    for name in ("zerosum", "pd", "bsl", "psl_tanh", "hardest"):
        tables, ids, constants = problem(name, 7, k, 24, torch.float32, seed=k)
        check(kernels, name, tables, ids, constants, l2=0.2)


@pytest.mark.parametrize("each", [0, 1, 2, 8])
@pytest.mark.parametrize("rows", [1, 63, 65, 400])
def test_samples_of_a_group(kernels, rows, each):
    for name in ("zerosum", "pos2neg2"):
        tables, ids, constants = problem(name, rows, 0, 60, torch.float32, seed=rows)
        check(kernels, name, tables, ids, constants, l2=0.1, each=each)
        check(kernels, name, tables, ids, constants, reduction="none", each=each)


def test_empty_batches(kernels):
    for name in LOSSES:
        tables, ids, constants = problem(name, 0, 3, 8, torch.float32)
        for reduction in REDUCTIONS:
            check(kernels, name, tables, ids, constants, reduction=reduction, l2=0.0)
    for name in PAIR:
        tables, ids, constants = problem(name, 5, 1, 8, torch.float32)
        nothing = (*ids[:2], ids[2][:, :0].contiguous())
        value, coefficient, failed = run(kernels, name, tables, nothing, constants, l2=0.5)
        want = definition(name, tables, nothing, constants, None, 0.5, "mean")[0]
        close(value, want, torch.float32)
        assert coefficient.count_nonzero() == 0
        assert failed == -1
    value, _, failed = run(kernels, "bpr", (torch.zeros(0, 4), torch.zeros(0, 4), None), ids)
    assert failed == 0
    assert value.isnan()


@pytest.mark.parametrize("name", ["zerosum", "pos2neg2", "bsl", "sampled_softmax"])
@pytest.mark.parametrize("bad", [-1, 31, 1 << 40, -(1 << 62)])
def test_ids_out_of_range_are_reported_and_read_nothing(kernels, name, bad):
    for k in (2, 5):
        tables, ids, constants = problem(name, 11, k, 16, torch.float32)
        counts = [t.numel() for t in ids]
        for which, row in ((0, 3), (1, 7), (2, 10)):
            wrong = [t.clone() for t in ids]
            wrong[which].reshape(11, -1)[row, -1] = bad
            value, coefficient, failed = run(kernels, name, tables, wrong, constants)
            assert failed == sum(counts[:which]) + row * (counts[which] // 11) + counts[which] // 11 - 1
            assert value.isnan()
            # BSL's derivatives do not depend on the positive's score.
            untouched = name == "bsl" and which == 1
            assert coefficient.isnan().any(1).nonzero().flatten().tolist() == ([] if untouched else [row])


def test_the_first_of_several_ids_out_of_range_is_reported(kernels):
    tables, ids, _ = problem("bpr", 300, 4, 16, torch.float32)
    ids[2][250, 1], ids[2][40, 3], ids[1][299] = 99, 99, 99
    for settings in cuda_on_host.SCHEDULES:
        with cuda_on_host.schedule(settings):
            assert run(kernels, "bpr", tables, ids)[2] == 300 + 299
    ids[1][299] = 0
    assert run(kernels, "bpr", tables, ids)[2] == 600 + 40 * 4 + 3


def test_results_do_not_depend_on_the_order_of_threads_and_blocks(kernels):
    for name, rows, k, dim in (("zerosum", 3000, 0, 16), ("bpr", 400, 9, 33), ("bsl", 200, 21, 64)):
        tables, ids, constants = problem(name, rows, k, dim, torch.float32)
        results = []
        for settings in cuda_on_host.SCHEDULES:
            with cuda_on_host.schedule(settings):
                results.append(run(kernels, name, tables, ids, constants, l2=0.1))
        for other in results[1:]:
            assert torch.equal(results[0][0], other[0])
            assert torch.equal(results[0][1], other[1])


@pytest.mark.slow
def test_more_work_than_blocks(kernels):
    rows = 2048 * 256 + 77  # one thread to a sample
    tables, ids, constants = problem("zerosum", rows, 0, 4, torch.float32)
    check(kernels, "zerosum", tables, ids, constants)


def test_tables_that_32_bits_do_not_count(kernels, tmp_path):
    """Rows behind 2^31 numbers give the bits that they give elsewhere."""
    before = (1 << 24) + 1  # rows of 128 numbers
    for name, k in (("pos2neg2", 2), ("zerosum", 1), ("bsl", 5), ("pd", 3)):
        tables, ids, constants = problem(name, 20, k, 128, torch.float32)
        moved = [moved_far(tmp_path, t, before)[0] for t in tables]
        far_constants = None if constants is None else moved_far(tmp_path, constants, before)[0]
        want = run(kernels, name, tables, ids, constants, l2=0.1)
        got = run(kernels, name, moved, [t + before for t in ids], far_constants, l2=0.1)
        assert all(torch.equal(a, b) for a, b in zip(got[:2], want[:2], strict=True))
        assert got[2] == -1


# ------------------------------------------------------------------------------------------------------ planted bugs

BUGS = [
    planted.Bug(
        "all samples of a group have the scores of the last",
        "if (lane == i) s[j] = products[j];",
        "s[j] = products[j];",
    ),
    planted.Bug(
        "a negative has its neighbour's score",
        "if (lane == i + m) score = products[m];",
        "if (lane == i) score = products[m];",
    ),
    planted.Bug("derivatives have no weight", "static_cast<C>(a.scale) * w * d[j]", "static_cast<C>(a.scale) * d[j]"),
    planted.Bug("a positive's derivative has no weight", "scale * w * d[0]", "scale * d[0]"),
    planted.Bug("a row's derivatives have no weight", "scale * w_row", "scale"),
    planted.Bug(
        "a pair has the weight of its row", "a.weight != nullptr && a.weight_per_pair ? a.weight[at] : w_row", "w_row"
    ),
    planted.Bug("samples that are none have a norm", "a.decay != 0 && group + i < end", "a.decay != 0"),
    planted.Bug("negatives that are none have a norm", "a.decay != 0 && live && i + m < turns", "a.decay != 0 && live"),
    planted.Bug("an id is told at the place of a positive", "2 * a.rows + at", "a.rows + at"),
    planted.Bug("all have the constants of the positive", "constant_of(a, items[j])", "constant_of(a, items[0])"),
    planted.Bug("a positive has one lane's derivative", "d_pos = warp_combine(d_pos, width, Add{});", ";"),
    planted.Bug(
        "an id out of range is the first row",
        "if (user < 0 || item < 0) return static_cast<arithmetic_t<S>>(NAN);",
        ";",
    ),
]
wrong = planted.kernels_of(
    "mf_loss",
    "cuda/mf_loss.cuh",
    BUGS,
    losses=("zerosum", "ipw", "pd", "pos2neg2", "bsl", "sampled_softmax"),
    kind="plain",
)


def battery(kernels):
    for name in ("zerosum", "ipw", "pos2neg2", "bsl"):
        test_every_loss(kernels, name, torch.float32)
    test_samples_of_a_group(kernels, 65, 8)
    test_ids_out_of_range_are_reported_and_read_nothing(kernels, "zerosum", -1)


@pytest.mark.slow
@planted.each_of(BUGS)
def test_planted_bugs_are_noticed(wrong, bug):
    planted.look_for(bug, BUGS, wrong, battery)
