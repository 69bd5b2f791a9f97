"""The CUDA kernels of the graph of users and items, run on the host: against their definitions in plain PyTorch."""

from __future__ import annotations

import cuda_on_host
import pytest
import torch
from cuda_on_host import planted
from cuda_on_host.testing import FAR, kernels_of, misaligned, moved_far

from zerosum_ext.reference import graph as _graph_reference

TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-11}


kernels = kernels_of("graph")


def lists(counts, num_items, index=torch.int32, seed=0):
    """indptr, indices and by_item of users with so many items each, as the models keep them."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randperm(num_items, generator=generator)[:n].sort().values for n in counts]
    items = torch.cat([torch.empty(0, dtype=torch.int64), *parts])
    users = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))
    by_item = torch.sort(items, stable=True).indices
    degree = torch.cat([torch.bincount(users, minlength=len(counts)), torch.bincount(items, minlength=num_items)])
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), degree.cumsum(0)])
    return indptr.to(index), torch.cat([items, users[by_item]]).to(index), by_item.to(index)


def vectors(num_users, num_items, dim, dtype, seed=0):
    """Tables of users and items, and constants of rows and columns."""
    generator = torch.Generator().manual_seed(seed)
    nodes = num_users + num_items
    shapes = ((num_users, dim), (num_items, dim), (nodes,), (nodes,))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def product(kernels, users, items, *rest):
    out = torch.full_like(users, torch.nan), torch.full_like(items, torch.nan)
    kernels.graph_product(users, items, *rest, *out)
    return out


def drop(kernels, indptr, indices, by_item, num_users, seed, share):
    nodes = len(indptr) - 1
    # What no entry is left for stays as it was: a number that is no node's.
    out = [torch.full((n,), -7, dtype=indptr.dtype) for n in (nodes, len(indices)) * 2]
    kernels.graph_drop(indptr, indices, by_item, num_users, torch.tensor(seed), int(share * 2**32), *out)
    return out


def check(kernels, users, items, row_scale, column_scale, indptr, end, indices):
    for scales in ((row_scale, column_scale), (row_scale, None), (None, column_scale), (None, None)):
        got = product(kernels, users, items, indptr, end, indices, *scales, 1.25)
        wide = [None if s is None else s.double() for s in scales]
        arguments = (users.double(), items.double(), indptr, end, indices, *wide, 1.25)
        for mine, want in zip(got, _graph_reference.graph_propagate(*arguments), strict=True):
            size = max(1.0, float(want.abs().max())) if want.numel() else 1.0
            tolerance = TOLERANCE[users.dtype]
            torch.testing.assert_close(mine.double(), want, rtol=tolerance, atol=tolerance * size)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_rows_of_every_length(kernels, dtype, index):
    for counts, num_items in (([0, 1, 2, 3, 31, 32, 33, 64, 0, 200, 5], 211), ([0, 0], 5), ([], 5), ([3, 1], 3)):
        indptr, indices, _ = lists(counts, num_items, index)
        check(kernels, *vectors(len(counts), num_items, 20, dtype), indptr, None, indices)


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7, 10, 16, 33, 63, 64, 65, 255, 256, 257, 520, 1000])
def test_every_width(kernels, dim):
    for dtype in TOLERANCE:
        indptr, indices, _ = lists([7, 0, 40, 1, 13], 50)
        users, items, *scales = vectors(5, 50, dim, dtype, seed=dim)
        check(kernels, users, items, *scales, indptr, None, indices)
        check(kernels, users, misaligned(items), *scales, indptr, None, indices)


@pytest.mark.parametrize("dim", [3, 64, 65])
def test_popular_rows(kernels, dim):
    indptr, indices, _ = lists([3, 1024, 1025, 1300, 0], 1700)
    check(kernels, *vectors(5, 1700, dim, torch.float32), indptr, None, indices)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.97])
@pytest.mark.parametrize("seed", [0, 1, -3, 2**40 + 12345])
def test_what_is_dropped_is_what_the_definition_drops(kernels, index, share, seed):
    counts = [0, 1, 2, 31, 32, 33, 64, 65, 0, 200, 211, 5]
    indptr, indices, by_item = lists(counts, 211, index, seed=1)
    got = drop(kernels, indptr, indices, by_item, len(counts), seed, share)
    want = _graph_reference.graph_dropout(indptr, indices, by_item, len(counts), torch.tensor(seed), share)
    for end, entries, their_end, their_entries in ((*got[:2], *want[:2]), (*got[2:], *want[2:])):
        assert torch.equal(end, their_end)
        kept = torch.arange(len(entries)) < end.repeat_interleave(indptr.diff())
        assert torch.equal(entries[kept], their_entries[kept])
        assert bool((entries[~kept] == -7).all())
    assert (share == 0) == torch.equal(got[0], indptr[1:])
    # A product takes the lists as they are.
    check(kernels, *vectors(len(counts), 211, 5, torch.float32), indptr, got[0], torch.where(got[1] < 0, 0, got[1]))


def test_nothing_to_drop(kernels):
    for counts, num_items in (([], 0), ([0, 0, 0], 2)):
        indptr, indices, by_item = lists(counts, num_items)
        end, _, transposed_end, _ = drop(kernels, indptr, indices, by_item, len(counts), 5, 0.5)
        assert torch.equal(end, indptr[1:])
        assert torch.equal(transposed_end, indptr[1:])


@pytest.mark.slow
def test_more_rows_than_blocks(kernels):
    counts = [i % 3 for i in range(4096 * 8 + 5)]
    indptr, indices, by_item = lists(counts, 9)
    check(kernels, *vectors(len(counts), 9, 4, torch.float64), indptr, None, indices)
    got = drop(kernels, indptr, indices, by_item, len(counts), 3, 0.4)
    want = _graph_reference.graph_dropout(indptr, indices, by_item, len(counts), torch.tensor(3), 0.4)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[2], want[2])


def test_results_do_not_depend_on_the_order_of_threads_and_blocks(kernels):
    counts = [100, 3, 1300] * 8
    indptr, indices, by_item = lists(counts, 1400)
    users, items, *scales = vectors(len(counts), 1400, 16, torch.float32)
    results = []
    for settings in cuda_on_host.SCHEDULES:
        with cuda_on_host.schedule(settings):
            dropped = drop(kernels, indptr, indices, by_item, len(counts), 3, 0.3)
            results.append((*dropped, *product(kernels, users, items, indptr, None, indices, *scales, 0.7)))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("blocks", [1, 3, 70])
def test_rows_are_looked_for_by_all_threads(kernels, rows, blocks):
    """Each chosen row is called for once, by the block whose number it has modulo their number."""
    for share in (0.0, 0.1, 1.0):
        chosen = (torch.rand(rows, generator=torch.Generator().manual_seed(rows)) < share).int()
        calls, block = torch.zeros_like(chosen), torch.full_like(chosen, -1)
        kernels.chosen_rows(chosen, blocks, calls, block)
        assert torch.equal(calls, chosen)
        assert torch.equal(block, torch.where(chosen != 0, torch.arange(rows, dtype=torch.int32) % blocks, -1))


def test_entries_that_32_bits_do_not_count(kernels, tmp_path):
    indptr, indices, _ = lists([3, 0, 40, 1030], 1200, torch.int64)
    users, items, *scales = vectors(4, 1200, 20, torch.float32)
    want = product(kernels, users, items, indptr, None, indices, *scales, 1.25)
    far = moved_far(tmp_path, indices)[0]
    got = product(kernels, users, items, indptr + FAR, None, far, *scales, 1.25)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    got = product(kernels, users, items, indptr + FAR, indptr[1:] + FAR, far, *scales, 1.25)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


# ------------------------------------------------------------------------------------------------------ planted bugs

BUGS = [
    planted.Bug("items are scaled as users", "item ? 0 : a.num_users", "0"),
    planted.Bug("rows have no scale", "a.factor * a.row_scale[row]", "a.factor"),
    planted.Bug(
        "rows end where they ended before the dropout",
        "a.end != nullptr ? a.end[row] : a.indptr[row + 1]",
        "a.indptr[row + 1]",
    ),
    planted.Bug("groups of a warp are not added up", "combine_warp(a.shape, sums);", ";"),
    planted.Bug(
        "groups of a block are not added up", "combine_groups<kGraphThreads, kRowPack<T>>(a.shape, sums);", ";"
    ),
    planted.Bug("rows of very many entries are left out", "return row.end - row.begin > kGraphLong;", "return false;"),
    planted.Bug("two interactions have the word of one", "odd ? words.word[2] : words.word[0]", "words.word[0]"),
    planted.Bug("an item's row drops what its users' rows drop", "item ? by_its_item : by_user", "by_user"),
    planted.Bug("the transpose is the matrix", "item ? by_user : by_its_item", "item ? by_its_item : by_user"),
    planted.Bug("kept entries have one place", "__popc(kept & before)", "0"),
    planted.Bug("a row's next entries lie over the first", "at += __popc(kept);", "at = begin + __popc(kept);"),
    planted.Bug(
        "interactions are numbered by item", "static_cast<int64_t>(a.by_item[e - a.interactions])", "e - a.interactions"
    ),
]
wrong = planted.kernels_of("graph", "cuda/graph.cuh", BUGS, kind="plain")


def battery(kernels):
    test_what_is_dropped_is_what_the_definition_drops(kernels, torch.int32, 0.5, 1)
    test_popular_rows(kernels, 65)


@pytest.mark.slow
@planted.each_of(BUGS)
def test_planted_bugs_are_noticed(wrong, bug):
    planted.look_for(bug, BUGS, wrong, battery)


small_grid = planted.small_grid_of("graph", kGraphBlocks=2, kGraphLongBlocks=1)


@pytest.mark.slow
def test_more_work_than_a_grid_holds(small_grid):
    """With a grid of two blocks, which no GPU has: each takes several turns."""
    battery(small_grid)
    test_rows_of_every_length(small_grid, torch.float32, torch.int64)
