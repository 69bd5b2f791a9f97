"""The CUDA kernels of the scores of all positives, run on the host: against their definitions."""

from __future__ import annotations

import cuda_on_host
import pytest
import torch
from cuda_on_host import planted
from cuda_on_host.testing import FAR, kernels_of, moved_far

from zerosum_ext import reference

TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-11}


kernels = kernels_of("csr_scores")


def problem(counts, num_columns, dim, dtype, index=torch.int32, seed=0):
    """Tables, biases, constants of both sides, and a CSR matrix with so many entries in each row."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    indptr = torch.tensor([0, *torch.tensor(counts, dtype=torch.int64).cumsum(0).tolist()])
    parts = [torch.randperm(num_columns, generator=generator)[:n].sort().values for n in counts]
    indices = torch.cat([torch.empty(0, dtype=torch.int64), *parts]).to(index)
    rows = len(counts)
    return normal(rows, dim), normal(num_columns, dim), normal(rows), normal(num_columns), indptr, indices


def close(got, want):
    scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
    tolerance = TOLERANCE[got.dtype] if got.dtype in TOLERANCE else TOLERANCE[torch.float32]
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * scale)


def moments(kernels, rows, columns, column_bias, indptr, indices, column_x):
    blocks = torch.zeros(1, dtype=torch.int64)
    kernels.csr_blocks(len(rows), blocks)
    partials, out = (torch.full((n,), torch.nan, dtype=torch.float64) for n in (3 * int(blocks), 3))
    kernels.csr_moments(rows, columns, column_bias, indptr, indices, column_x, partials, out)
    return out


def weighted(kernels, rows, columns, row_bias, column_bias, indptr, indices, row_x, column_x, slope):
    out, out_bias = torch.full_like(rows, torch.nan), torch.full((len(rows),), torch.nan, dtype=rows.dtype)
    arguments = (rows, columns, row_bias, column_bias, indptr, indices, row_x, column_x, slope)
    kernels.csr_columns(*arguments, out, out_bias)
    return out, out_bias


def check(kernels, rows, columns, row_x, column_x, indptr, indices):
    def double(*tensors):
        return [t if t is None or not t.is_floating_point() else t.double() for t in tensors]

    for bias in (None, column_x):
        arguments = (rows, columns, bias, indptr, indices, column_x)
        got, want = moments(kernels, *arguments), reference.csr_score_moments(*double(*arguments))
        tolerance = TOLERANCE[rows.dtype]
        size = max(1.0, float(want.abs().max()))
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * size)
    for biases, xs in (
        ((None, column_x), (None, column_x)),
        ((row_x, None), (row_x, None)),
        ((None, None), (row_x, None)),
    ):
        arguments = (rows, columns, *biases, indptr, indices, *xs)
        got, want = weighted(kernels, *arguments, 0.3), reference.csr_weighted_columns(*double(*arguments), 0.3)
        for x, y in zip(got, want, strict=True):
            close(x, y)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_rows_of_every_length(kernels, dtype, index):
    check(kernels, *problem([0, 1, 2, 3, 31, 32, 33, 64, 0, 200, 5], 211, 20, dtype, index))
    check(kernels, *problem([0, 0], 5, 8, dtype, index))
    check(kernels, *problem([], 5, 8, dtype, index))


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7, 16, 33, 63, 64, 65, 255, 256, 257, 520, 1000])
def test_every_width(kernels, dim):
    for dtype in TOLERANCE:
        problems = problem([7, 0, 40, 1, 13], 50, dim, dtype, seed=dim)
        check(kernels, *problems)
        columns = torch.empty(problems[1].numel() + 1, dtype=dtype)[1:].view(50, dim).copy_(problems[1])
        check(kernels, problems[0], columns, *problems[2:])


@pytest.mark.parametrize("dim", [3, 64, 65])
def test_popular_rows(kernels, dim):
    check(kernels, *problem([3, 1024, 1025, 1300, 0], 1700, dim, torch.float32))


@pytest.mark.slow
def test_more_rows_than_blocks(kernels):
    counts = [i % 3 for i in range(2048 * 8 + 5)]
    rows, columns, row_x, column_x, indptr, indices = problem(counts, 9, 4, torch.float64)
    got = moments(kernels, rows, columns, None, indptr, indices, column_x)
    want = reference.csr_score_moments(rows, columns, None, indptr, indices, column_x)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-9)
    arguments = (rows, columns, None, None, indptr, indices, row_x, None, 0.3)
    for x, y in zip(weighted(kernels, *arguments), reference.csr_weighted_columns(*arguments), strict=True):
        close(x, y)


def test_results_do_not_depend_on_the_order_of_threads_and_blocks(kernels):
    rows, columns, row_x, column_x, indptr, indices = problem([100, 3, 1300] * 8, 1400, 16, torch.float32)
    results = []
    for settings in cuda_on_host.SCHEDULES:
        with cuda_on_host.schedule(settings):
            results.append(
                (
                    moments(kernels, rows, columns, None, indptr, indices, column_x),
                    *weighted(kernels, rows, columns, row_x, None, indptr, indices, row_x, None, 0.2),
                )
            )
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_entries_and_columns_that_32_bits_do_not_count(kernels, index, tmp_path):
    """The rows' entries lie behind 2^31 others, their columns behind 2^31 numbers: the same bits as of these alone."""
    rows, columns, _, column_x, indptr, indices = problem([3, 0, 40, 1030], 1200, 128, torch.float32, index)
    before = (1 << 24) + 1  # rows of 128 numbers
    table = moved_far(tmp_path, columns, before)[0]
    constants = moved_far(tmp_path, column_x, before)[0]
    entries = moved_far(tmp_path, indices + before)[0]
    results = []
    for t, x, at, of in ((columns, column_x, indptr, indices), (table, constants, indptr + FAR, entries)):
        results.append(
            (moments(kernels, rows, t, x, at, of, x), *weighted(kernels, rows, t, None, x, at, of, None, x, 0.3))
        )
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# ------------------------------------------------------------------------------------------------------ planted bugs

BUGS = [
    planted.Bug(
        "groups without an entry add another", "lane != 0 || first + group + m * groups >= entries.end", "lane != 0"
    ),
    planted.Bug("squares are scores", "sums[1] += s * s;", "sums[1] += s;"),
    planted.Bug("columns have no bias", "if (a.column_bias != nullptr) score[m] += a.column_bias[column[m]];", ";"),
    planted.Bug(
        "groups without an entry add its row", "if (first + group + int64_t(m) * groups >= end) continue;", ";"
    ),
    planted.Bug("each lane adds a factor", "if (lane == 0) total += g;", "total += g;"),
    planted.Bug("groups of a warp are not added up", "combine_warp(a.shape, sums);", ";"),
    planted.Bug("groups of a block are not added up", "combine_groups<kCsrThreads, kRowPack<T>>(a.shape, sums);", ";"),
    planted.Bug("a popular row's bias is one thread's part", "total = block_combine<kCsrThreads>(total, Add{});", ";"),
    planted.Bug("a block's part is lost", "total += partials[i];", "total += i > 0 ? partials[i] : 0;"),
    planted.Bug(
        "rows of very many entries are left out", "return entries.end - entries.begin > kCsrLong;", "return false;"
    ),
]
wrong = planted.kernels_of("csr_scores", "cuda/csr_scores.cuh", BUGS, kind="plain")


def battery(kernels):
    test_rows_of_every_length(kernels, torch.float32, torch.int32)
    test_popular_rows(kernels, 65)


@pytest.mark.slow
@planted.each_of(BUGS)
def test_planted_bugs_are_noticed(wrong, bug):
    planted.look_for(bug, BUGS, wrong, battery)


small_grid = planted.small_grid_of("csr_scores", kCsrBlocks=2, kCsrLongBlocks=1)


@pytest.mark.slow
def test_more_work_than_a_grid_holds(small_grid):
    """With a grid of two blocks, which no GPU has: each takes several turns."""
    battery(small_grid)
    test_results_do_not_depend_on_the_order_of_threads_and_blocks(small_grid)
