"""The CUDA kernels that sort a batch by row and sum the rows' gradients, run on the host."""

from __future__ import annotations

import cuda_on_host
import pytest
import torch
from cuda_on_host import planted
from cuda_on_host.testing import far_tensor, kernels_of, moved_far

from zerosum_ext import reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


kernels = kernels_of("mf_gradient")


def words(size):
    """Memory as the op finds it: full of something, and of the exact size."""
    return torch.full((size,), -7, dtype=torch.int32)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def sort(kernels, first, second, rows):
    """Sorted rows and positions, starts and the number of rows that occur."""
    n = first.numel() + (0 if second is None else second.numel())
    sizes = torch.zeros(3, dtype=torch.int64)
    kernels.sizes(n, rows, 1, sizes)
    buffers = [words(n) for _ in range(4)]
    tiles, starts, count, which = (
        words(int(sizes[0])),
        words(int(sizes[1])),
        words(1),
        torch.zeros(1, dtype=torch.int64),
    )
    kernels.sort_rows(first, second, rows, *buffers, tiles, starts, count, which)
    keys, order = buffers[2 * int(which) : 2 * int(which) + 2]
    return keys, order, starts, count


def check_sort(kernels, first, second, rows):
    columns = [t.unsqueeze(1) if t.dim() == 1 else t for t in (first, second) if t is not None]
    ids = torch.cat(columns, 1).flatten()
    keys, order, starts, count = sort(kernels, first, second, rows)
    wanted = torch.where((ids < 0) | (ids >= rows), rows, ids)
    expected, places = torch.sort(wanted, stable=True)
    assert torch.equal(keys.long(), expected)
    assert torch.equal(order.long(), places)
    valid = expected[expected < rows]
    occurring, counts = torch.unique_consecutive(valid, return_counts=True)
    assert int(count) == len(occurring)
    if len(occurring):
        assert starts[: len(occurring) + 1].tolist() == [0, *counts.cumsum(0).tolist()]


# One tile of 4096 positions and several; tables of one row, of one digit, of several passes.
@pytest.mark.parametrize("n", [0, 1, 33, 255, 4096, 4097, 9000])
@pytest.mark.parametrize("rows", [1, 255, 256, 3706, 70000, (1 << 24) + 1])
def test_sorting(kernels, n, rows):
    ids = torch.randint(0, rows, (n,), generator=generator(n + rows))
    skewed = ((ids.double() / rows) ** 8 * rows).long()
    check_sort(kernels, skewed if n % 2 else ids, None, rows)


@pytest.mark.parametrize("columns", [1, 2, 7])
def test_sorting_positives_and_negatives(kernels, columns):
    positives, negatives = (torch.randint(0, 50, s, generator=generator(1)) for s in ((900,), (900, columns)))
    check_sort(kernels, positives, negatives, 50)
    check_sort(kernels, torch.stack([positives, positives + 1], 1) % 50, negatives, 50)


def test_ids_out_of_range_are_sorted_away(kernels):
    ids = torch.randint(-3, 20, (5000,), generator=generator(2))
    ids[7], ids[4999] = 1 << 40, -(1 << 62)
    check_sort(kernels, ids, None, 16)
    check_sort(kernels, torch.full((300,), -1), None, 5)
    check_sort(kernels, torch.zeros(300, dtype=torch.int64), None, 0)


@pytest.mark.parametrize("settings", cuda_on_host.SCHEDULES, ids=str)
def test_sorting_in_any_schedule(kernels, settings):
    with cuda_on_host.schedule(settings):
        check_sort(kernels, torch.randint(0, 900, (5000,), generator=generator(3)), None, 900)


# ---- gradients


def problem(rows, k, dim, dtype, *, num_users=23, num_items=31, quad=False, seed=0):
    g = generator(seed)

    def table(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    ids = [torch.randint(0, n, (rows, 4 + k), generator=g) for n in (num_users, num_items)]
    positives = ids[1][:, :2] if quad else ids[1][:, 0]
    negatives = ids[1][:, 2 : 2 + k] if k else ids[1][:, 2]
    ids = tuple(t.contiguous() for t in (ids[0][:, 0], positives, negatives))
    columns = (2 if quad else 1) + max(k, 1)
    coefficient = torch.randn(rows, columns, generator=g, dtype=torch.float64).to(reference.compute_dtype(dtype))
    return table(num_users, dim), table(num_items, dim), ids, coefficient


def definition(user, item, ids, coefficient, scale, l2):
    """Dense gradients of users, items and biases, in float64."""
    user, item = (t.double().requires_grad_() for t in (user, item))
    bias = torch.zeros(len(item), dtype=torch.float64, requires_grad=True)
    scores, norms = reference.mf_scores(user, item, bias, ids[0], reference.mf_items(*ids[1:]), False)
    value = scale * ((scores * coefficient.double()).sum() + l2 * norms.sum())
    return torch.autograd.grad(value, (user, item, bias))


def run_side(kernels, own, other, ids, coefficient, scale, l2, by_user, *, dense, bias, values=True, padded=False):
    """(names, values, bias) of one side, as the op makes them."""
    users, positives, negatives = ids
    keys, order, starts, count = (
        sort(kernels, users, None, len(own)) if by_user else sort(kernels, positives, negatives, len(own))
    )
    sizes = torch.zeros(3, dtype=torch.int64)
    kernels.sizes(keys.numel(), len(own), coefficient.shape[1] if by_user else 1, sizes)
    longs = words(int(sizes[2]))
    longs[0] = 0
    rows = len(own) if dense else int(sizes[1]) - 1 if padded else int(count)
    fill = 0.0 if dense else torch.nan
    out = torch.full((rows, own.shape[1]), fill, dtype=own.dtype) if values else None
    out_bias = torch.full((rows,), fill, dtype=own.dtype) if bias else None
    names = None if dense else torch.full((rows,), -9)
    kernels.gradient_rows(
        *(own, other, *ids, coefficient, torch.tensor([scale], dtype=coefficient.dtype), keys, order, starts, count),
        *(names, out, out_bias, longs, l2, by_user, dense, rows),
    )
    return names, out, out_bias, int(count)


def close(got, want, dtype, terms):
    tolerance = TOLERANCE[dtype]
    scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * scale * max(1.0, terms / 256))


def check(kernels, user, item, ids, coefficient, *, scale=0.5, l2=0.0):
    want = definition(user, item, ids, coefficient, scale, l2)
    terms = coefficient.numel() / len(item)
    for by_user in (True, False):
        own, other = (user, item) if by_user else (item, user)
        wanted = want[0] if by_user else want[1]
        occurring = torch.unique(ids[0] if by_user else torch.cat([t.flatten() for t in ids[1:]]))
        for options in ({"dense": True}, {"dense": False}, {"dense": False, "padded": True}):
            names, values, bias, count = run_side(
                kernels, own, other, ids, coefficient, scale, l2, by_user, bias=not by_user, **options
            )
            assert count == len(occurring)
            if not options["dense"]:
                positions = len(ids[0]) if by_user else coefficient.numel()
                assert len(names) == (min(positions, len(own)) if "padded" in options else count)
                assert torch.equal(names[:count], occurring)
                assert names[count:].eq(len(own)).all()
                values = torch.zeros_like(own).index_copy_(0, occurring, values[:count])
                bias = (
                    None if by_user else torch.zeros(len(own), dtype=own.dtype).index_copy_(0, occurring, bias[:count])
                )
            close(values, wanted, own.dtype, terms)
            if not by_user:
                close(bias, want[2], own.dtype, terms)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", [(50, 0, False), (37, 5, False), (61, 2, True), (1, 1, False), (0, 3, False)])
def test_gradients(kernels, shape, dtype):
    rows, k, quad = shape
    user, item, ids, coefficient = problem(rows, k, 20, dtype, quad=quad)
    check(kernels, user, item, ids, coefficient)
    check(kernels, user, item, ids, coefficient, l2=0.3)


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7, 16, 33, 63, 64, 65, 100, 255, 256, 257, 520, 1000])
def test_every_width(kernels, dim):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        user, item, ids, coefficient = problem(60, 3, dim, dtype, seed=dim)
        check(kernels, user, item, ids, coefficient, l2=0.1)
    moved = torch.empty(user.numel() + 1, dtype=user.dtype)[1:].view(user.shape).copy_(user)
    check(kernels, moved, item, ids, coefficient)


# Rows of very many samples, which whole blocks sum up: 257 terms are one more than a group does alone.
@pytest.mark.parametrize("dim", [3, 64, 65])
def test_popular_rows(kernels, dim):
    user, item, ids, coefficient = problem(1500, 1, dim, torch.float32, num_users=40, num_items=5)
    ids[0][:700] = 3
    check(kernels, user, item, ids, coefficient, l2=0.01)
    user, item, ids, coefficient = problem(256, 0, dim, torch.float32, num_items=400)
    for count in (255, 256):  # with position 300 of its own: 256 terms and 257
        ids[1].copy_(torch.arange(256))
        ids[2].copy_(torch.arange(256))
        ids[1][:count], ids[2][:1] = 300, 300
        check(kernels, user, item, ids, coefficient)


def test_a_bias_alone(kernels):
    user, item, ids, coefficient = problem(700, 2, 8, torch.float32, num_items=3)
    names, values, bias, count = run_side(
        kernels, item, user, ids, coefficient, 2.0, 0.5, False, dense=False, bias=True, values=False
    )
    assert (values, count, names.tolist()) == (None, 3, [0, 1, 2])
    close(bias, definition(user, item, ids, coefficient, 2.0, 0.0)[2], torch.float32, 700)


def test_ids_out_of_range_spoil_what_they_touch(kernels):
    user, item, ids, coefficient = problem(40, 2, 8, torch.float32)
    ids[0][4], ids[2][9, 1] = 99, -5
    for by_user, spoiled in ((True, {int(ids[0][9])}), (False, {int(ids[1][4]), *ids[2][4].tolist()})):
        own, other = (user, item) if by_user else (item, user)
        names, values, _, _ = run_side(
            kernels, own, other, ids, coefficient, 1.0, 0.0, by_user, dense=False, bias=False
        )
        assert set(names[values.isnan().any(1)].tolist()) == spoiled


def test_results_do_not_depend_on_the_order_of_threads_and_blocks(kernels):
    user, item, ids, coefficient = problem(700, 3, 32, torch.float32, num_items=9)
    for by_user in (True, False):
        own, other = (user, item) if by_user else (item, user)
        results = []
        for settings in cuda_on_host.SCHEDULES:
            with cuda_on_host.schedule(settings):
                results.append(
                    run_side(kernels, own, other, ids, coefficient, 1.0, 0.1, by_user, dense=True, bias=not by_user)
                )
        for other_result in results[1:]:
            assert torch.equal(results[0][1], other_result[1])
            assert by_user or torch.equal(results[0][2], other_result[2])


# ---- by atomics


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 5, 32, 70])
def test_by_atomics(kernels, dim, dtype):
    for rows, k, quad in ((300, 3, False), (41, 2, True), (0, 1, False)):
        user, item, ids, coefficient = problem(rows, k, dim, dtype, quad=quad)
        want = definition(user, item, ids, coefficient, 0.5, 0.2)
        for settings in cuda_on_host.SCHEDULES:
            out = [torch.zeros_like(user), torch.zeros_like(item), torch.zeros(len(item), dtype=dtype)]
            with cuda_on_host.schedule(settings):
                kernels.gradient_atomics(user, item, *ids, coefficient, torch.tensor([0.5], dtype=dtype), *out, 0.2)
            for x, y in zip(out, want, strict=True):
                close(x, y, dtype, coefficient.numel() / len(item))
        out = torch.zeros_like(item)
        kernels.gradient_atomics(user, item, *ids, coefficient, torch.tensor([0.5], dtype=dtype), None, out, None, 0.2)
        close(out, want[1], dtype, coefficient.numel() / len(item))


def test_by_atomics_with_ids_out_of_range(kernels):
    user, item, ids, coefficient = problem(40, 2, 8, torch.float32)
    ids[0][4], ids[2][9, 1] = 99, -5
    out = [torch.zeros_like(user), torch.zeros_like(item), torch.zeros(len(item))]
    kernels.gradient_atomics(user, item, *ids, coefficient, torch.ones(1), *out, 0.2)
    assert out[0].isnan().any(1).nonzero().flatten().tolist() == [int(ids[0][9])]
    spoiled = sorted({int(ids[1][4]), *ids[2][4].tolist()})
    assert out[1].isnan().any(1).nonzero().flatten().tolist() == spoiled
    assert out[2].isnan().nonzero().flatten().tolist() == spoiled


def test_tables_that_32_bits_do_not_count(kernels, tmp_path):
    """Rows behind 2^31 numbers have the gradients that they have elsewhere, to the bit."""
    before = (1 << 24) + 1  # rows of 128 numbers
    user, item, ids, coefficient = problem(300, 3, 128, torch.float32, num_items=5)
    tables = [moved_far(tmp_path, t, before)[0] for t in (user, item)]
    far_ids = tuple(t + before for t in ids)
    for by_user in (True, False):
        own, other = (user, item) if by_user else (item, user)
        far_own, far_other = tables if by_user else tables[::-1]
        options = {"dense": False, "bias": not by_user}
        want = run_side(kernels, own, other, ids, coefficient, 0.5, 0.2, by_user, **options)
        got = run_side(kernels, far_own, far_other, far_ids, coefficient, 0.5, 0.2, by_user, **options)
        assert torch.equal(got[0], want[0] + before)
        assert torch.equal(got[1], want[1])
        assert by_user or torch.equal(got[2], want[2])
    out = [far_tensor(tmp_path, torch.float32, t.numel()).view(t.shape) for t in tables]
    bias = far_tensor(tmp_path, torch.float32, before + len(item))
    kernels.gradient_atomics(*tables, *far_ids, coefficient, torch.tensor([0.5]), *out, bias, 0.2)
    for got, want in zip((*out, bias), definition(user, item, ids, coefficient, 0.5, 0.2), strict=True):
        close(got[before:], want, torch.float32, coefficient.numel() / len(item))


@pytest.mark.parametrize("n", [2**31 - 1, 2**31, 2**32 - 3])
def test_memory_of_the_sort_of_very_many_positions(kernels, n):
    sizes = torch.zeros(3, dtype=torch.int64)
    for rows, each in ((5, 1), (n + 7, 64)):
        kernels.sizes(n, rows, each, sizes)
        assert sizes.tolist() == [256 * (-(-n // 4096) + 1), min(n, rows) + 1, n * each // 256 + 1]


# ------------------------------------------------------------------------------------------------------ planted bugs

SORT, ROWS = "cuda/sort_rows.cuh", "cuda/rows.cuh"
BUGS = [
    planted.Bug(
        "pairs of a digit change places",
        "__popc(equals & ((1u << lane) - 1))",
        "__popc(equals & ~((2u << lane) - 1))",
        SORT,
    ),
    planted.Bug("warps of a tile have one place", "place += count;", ";", SORT),
    planted.Bug("ids out of range are rows", "static_cast<uint64_t>(id) < static_cast<uint64_t>(rows)", "true", SORT),
    planted.Bug(
        "the last row has no end", "starts[number + (first ? 1u : 0u)] = static_cast<unsigned>(i + 1);", ";", SORT
    ),
    planted.Bug(
        "a row begins anew with each tile",
        "i == 0 || keys[i - 1] != keys[i]",
        "i % kSortTile == 0 || keys[i - 1] != keys[i]",
        SORT,
    ),
    planted.Bug(
        "a warp does not count the one before", "if (w < warp) before += sum;", "if (w + 1 < warp) before += sum;", SORT
    ),
    planted.Bug(
        "a digit's count is that of the lanes before",
        "own[digit] += static_cast<unsigned>(__popc(equals));",
        "own[digit] += 1;",
        SORT,
    ),
    planted.Bug("the last of the long rows is left out", "i < count", "i + 1 < count"),
    planted.Bug(
        "groups of a block are not added up", "combine_groups<kGradientThreads, kRowPack<S>>(a.shape, sums);", ";"
    ),
    planted.Bug(
        "rows have no decay",
        "if (decay != 0) add_row<N>(a.shape, lane, c0, a.own + row * a.shape.dim, decay, sums);",
        ";",
    ),
    planted.Bug("a bias is one lane's part", "total = warp_combine(total, width, Add{});", ";"),
    planted.Bug(
        "a popular item's bias is one thread's part", "total = block_combine<kGradientThreads>(total, Add{});", ";"
    ),
    planted.Bug(
        "a row that does not exist has a factor",
        "exists ? scale * a.coefficient[at] : static_cast<C>(NAN)",
        "scale * a.coefficient[at]",
    ),
    planted.Bug(
        "padding has the name of a row", "live ? a.sorted.keys[0][begin] : a.num_own", "a.sorted.keys[0][begin]"
    ),
    planted.Bug(
        "the sum of a term's turn goes on beyond its end",
        "if (t0 + i < n) add_row<N>(shape, lane, c0, table + row * shape.dim, factor, sums);",
        "add_row<N>(shape, lane, c0, table + row * shape.dim, factor + (t0 + i < n ? 0 : 1), sums);",
        ROWS,
    ),
    planted.Bug("the last group of a block is lost", "t < kThreads", "t + shape.width < kThreads", ROWS),
    planted.Bug("items have no decay, by atomics", "f * own + decay * y", "f * own"),
    planted.Bug("users have no decay, by atomics", "decay * own", "S(0)"),
]
wrong = planted.kernels_of("mf_gradient", "cuda/mf_gradient.cuh", BUGS, kind="plain")


def battery(kernels):
    """One case for each thing that can go wrong; of the sort first, as a wrong order would name rows that are none."""
    for ids, rows in (
        (torch.randint(0, 70_000, (9000,), generator=generator(1)), 70_000),
        (torch.arange(9000) // 5000, 99_999),
    ):
        check_sort(kernels, ids, None, rows)
    test_ids_out_of_range_are_sorted_away(kernels)
    test_gradients(kernels, (37, 5, False), torch.float32)
    test_popular_rows(kernels, 65)
    test_ids_out_of_range_spoil_what_they_touch(kernels)
    test_by_atomics(kernels, 5, torch.float32)


@pytest.mark.slow
@planted.each_of(BUGS)
def test_planted_bugs_are_noticed(wrong, bug):
    planted.look_for(bug, BUGS, wrong, battery)


small_grid = planted.small_grid_of("mf_gradient", kGradientBlocks=2, kLongBlocks=1)


@pytest.mark.slow
def test_more_work_than_a_grid_holds(small_grid):
    """With a grid of two blocks, which no GPU has: each takes several turns."""
    battery(small_grid)
    test_gradients(small_grid, (61, 2, True), torch.float16)
