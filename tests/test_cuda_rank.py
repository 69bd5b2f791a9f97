"""The CUDA kernel of rankings, run on the host: the integers of the definition."""

from __future__ import annotations

import os

import cuda_on_host
import pytest
import torch
from cuda_on_host import planted
from cuda_on_host.testing import counted_kernels_of, kernels_of

from zerosum_ext import _ops
from zerosum_ext.reference import ranking as _ranking_reference

kernels = kernels_of("rank")
counted = counted_kernels_of("rank")

# csrc/cuda/rank.cuh: positives that are counted in registers, those that a pass counts by search, places of a list from
# which on it is selected.
REGISTERS, LEVELS, LIST = 8, 511, 512
# csrc/cuda/rank_select.cuh: entries that are sorted at once, and that are held where the list ends.
TILE, HELD = 4096, 1024


def csr(dense, dtype):
    indptr = torch.cat((torch.zeros(1, dtype=torch.int64), dense.sum(1).cumsum(0)))
    return indptr, dense.nonzero()[:, 1].to(dtype)


def problem(num_users=9, num_items=301, share=0.1, dtype=torch.int32, seed=0):
    """Users with no positives, one, few and all items; excluded items that may be positives too."""
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.rand(num_users, num_items, generator=generator) < share
    if num_users > 3:
        held_out[1], held_out[2] = False, True
        held_out[3], held_out[3, num_items // 2] = False, True
    excluded = torch.rand(num_users, num_items, generator=generator) < 0.3
    users = torch.arange(num_users).flip(0)
    indptr, indices = csr(held_out, dtype)
    counts = (indptr[1:] - indptr[:-1])[users]
    offset = torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0)))
    return users, offset, indptr, indices, *csr(excluded, dtype)


def held_out(counts, num_items, excluded=0.3, dtype=torch.int32, seed=0):
    """Users with so many positives each; a share of the items is excluded, positives among them."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.zeros(len(counts), num_items, dtype=torch.bool)
    for row, count in enumerate(counts):
        dense[row, torch.randperm(num_items, generator=generator)[:count]] = True
    offset = torch.tensor([0, *counts]).cumsum(0)
    others = torch.rand(len(counts), num_items, generator=generator) < excluded
    return torch.arange(len(counts)), offset, *csr(dense, dtype), *csr(others, dtype)


def run(kernels, scores, users, offset, *matrices, k, blocks=1 << 16, longest=LIST):
    compute = torch.float64 if scores.dtype == torch.float64 else torch.float32
    count, rows = int(offset[-1]), users.numel()
    out = (
        torch.full((count,), torch.nan, dtype=compute),
        *(torch.full((count,), -9) for _ in range(2)),
        torch.full((rows,), -9),
        torch.full((rows, k), -9),
        torch.full((1,), -1),
    )
    kernels.rank_scores(scores, users, offset, *matrices, *out, blocks, longest)
    return out


def check(kernels, scores, args, k, blocks=1 << 16, longest=LIST):
    got = run(kernels, scores, *args, k=k, blocks=blocks, longest=longest)
    compute = torch.float64 if scores.dtype == torch.float64 else torch.float32
    want = _ranking_reference.rank_scores(scores.to(compute), *args, k)
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)


def scores(rows, columns, dtype=torch.float32, ties=False, seed=1):
    s = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return ((s * 2).round() if ties else s).to(dtype)


@pytest.mark.parametrize("settings", cuda_on_host.SCHEDULES, ids=str)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("num_items", [1, 31, 257, 301])
def test_rankings(kernels, num_items, ties, settings):
    args = problem(num_items=num_items)
    with cuda_on_host.schedule(settings):
        check(kernels, scores(9, num_items, ties=ties), args, 10)
        check(kernels, scores(9, num_items, ties=ties), (*args[:4], None, None), 3)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_types(kernels, dtype, index):
    check(kernels, scores(9, 301, dtype), problem(dtype=index), 7)
    check(kernels, scores(301, 9, dtype).T, problem(dtype=index), 0)


def test_lists_longer_than_the_candidates_and_infinite_scores(kernels):
    args = problem(num_items=40)
    s = scores(9, 40)
    s[:, ::3] = -torch.inf
    s[0, 1] = torch.inf
    check(kernels, s, args, 50)


def test_the_first_row_with_nan_is_named(kernels):
    args = problem(num_items=301, share=0.0)
    s = scores(9, 301)
    s[7, 300] = s[4, 17] = torch.nan
    matrices = (*args[:4], None, None)
    assert run(kernels, s, *matrices, k=2)[5].item() == 4
    excluded = torch.zeros(9, 301, dtype=torch.bool)
    excluded[args[0][4], 17] = True  # no candidate: its score does not matter
    assert run(kernels, s, *args[:4], *csr(excluded, torch.int32), k=2)[5].item() == 7


def test_nobody(kernels):
    args = problem()
    nobody = (args[0][:0], args[1][:1], *args[2:])
    assert run(kernels, scores(0, 301), *nobody, k=2)[5].item() == -1


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    "counts",
    [(0, 1, 2, 3, 4), (5, 7, 8, 9, 15, 16, 17), (LEVELS - 1, LEVELS), (LEVELS + 1, 2 * LEVELS + 1)],
    ids=str,
)
def test_any_number_of_positives(kernels, counts, ties):
    """In registers, by search, in several passes; two blocks take the users, so that each takes several."""
    args = held_out(counts, 1201)
    check(kernels, scores(len(counts), 1201, ties=ties), args, 5, blocks=2)


@pytest.mark.parametrize("k", [255, 256, 257, LIST - 1, LIST, LIST + 1, 1023, 1024, 1025, 2201, 2300])
def test_lists_of_any_length(kernels, k):
    args = held_out((3, 0), 2201, excluded=0.05)
    check(kernels, scores(2, 2201, ties=k % 2 == 0), args, k, blocks=1)


# ---- lists that are selected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("k", [TILE // 2, TILE // 2 + 1, TILE, TILE + 1, 2 * TILE + 1, 9001])
def test_longer_lists_than_are_sorted_at_once(kernels, dtype, k):
    """Tiles and the comparisons between them; float64 has tiles of half as many. Half of the scores are level."""
    s = scores(1, 9001, dtype)
    s[:, ::2] = s[:, ::2].round()
    check(kernels, s, held_out((2,), 9001, excluded=0.01), k)


@pytest.mark.parametrize("settings", cuda_on_host.SCHEDULES, ids=str)
def test_selecting_in_any_schedule(kernels, settings):
    with cuda_on_host.schedule(settings):
        for ties in (False, True):
            check(kernels, scores(2, 3001, ties=ties), held_out((1, 12), 3001), 700, blocks=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_items", [600, HELD, 2048, 2049, 5003])
def test_all_scores_are_level(kernels, num_items, dtype):
    """The items' numbers decide, digit by digit."""
    s = torch.full((1, num_items), -1.5).to(dtype)
    for k in (513, num_items - 1, num_items):
        check(kernels, s, held_out((1,), num_items, excluded=0.1), k)
        check(kernels, s, held_out((1,), num_items, excluded=0), k)


def test_scores_that_differ_in_their_last_bits(kernels):
    """All digits of the score are looked at, and those of the items where two of three are level."""
    s = 1 + torch.arange(4003).unsqueeze(0).flip(1) // 3 * 2.0**-23
    check(kernels, s, held_out((1,), 4003), 1500)
    check(kernels, 1 + (s.double() - 1) * 2.0**-29, held_out((1,), 4003), 1500)
    both = torch.cat([s.double(), 1 + (s.double() - 1) * 2.0**-29], 1)
    check(kernels, -both, held_out((1,), 8006), 5000)


def test_fewer_candidates_than_places(kernels):
    s = scores(3, 1501)
    s[0, ::2], s[1], s[2, 5:] = -torch.inf, -torch.inf, torch.inf
    args = held_out((2, 0, 9), 1501, excluded=0.4)
    for k in (600, 900, 1501, 2000):
        check(kernels, s, args, k)


def test_nobody_and_nothing_to_select(kernels):
    args = problem()
    assert run(kernels, scores(0, 301), args[0][:0], args[1][:1], *args[2:], k=600)[5].item() == -1
    empty = torch.zeros(10, dtype=torch.int64)
    nothing = torch.zeros(0, dtype=torch.int32)
    out = run(kernels, torch.zeros(9, 0), args[0], empty, empty, nothing, empty, nothing, k=600)
    assert (out[4] == -1).all()


def test_nan_does_not_spoil_the_lists_of_others(kernels):
    args = held_out((2, 0, 1), 1301, excluded=0)
    s = scores(3, 1301)
    want = run(kernels, s, *args, k=700)[4]
    s[1, 5] = torch.nan
    out = run(kernels, s, *args, k=700)
    assert out[5].item() == 1
    assert torch.equal(out[4][::2], want[::2])


@pytest.mark.parametrize("k", [600, TILE + 9])
def test_rows_that_name_an_item_twice_spoil_nothing_else(kernels, k):
    """What is excluded twice is taken off twice: too much is collected, and no place beyond the list is written."""
    args = list(held_out((2, 0), TILE + 900, excluded=0))
    s = scores(2, TILE + 900)
    args[4] = torch.tensor([0, 3000, 3000])
    args[5] = s[0].argsort(descending=True)[:1500].repeat_interleave(2).to(torch.int32).sort().values
    out = run(kernels, s, *args, k=k)
    want = _ranking_reference.rank_scores(s[1:], args[0][1:], args[1][1:] - args[1][1], *args[2:], k)
    assert torch.equal(out[4][1:], want[4])
    assert out[4][0].min() >= -1
    assert out[4][0].max() < TILE + 900


def test_rows_of_long_lists_begin_anywhere(kernels):
    for first in range(4):
        around = torch.full((2, 1300), 9.0)
        s = around[:, first : first + 1203]
        s.copy_(scores(2, 1203))
        check(kernels, s, held_out((0, 1), 1203), 600)
    check(kernels, scores(1203, 2).T, held_out((0, 1), 1203), 600)


def test_rows_that_lie_far_apart(kernels):
    """More than 2^31 elements from one row to the next, of which the system has no pages but those that are written."""
    if os.environ.get("CUDA_ON_HOST_RECORD") or os.environ.get("CUDA_ON_HOST_SANITIZE"):
        pytest.skip("a recorded call has all the memory that its tensors belong to, and a sanitizer marks all of it")
    apart = (1 << 31) + 5
    memory = torch.empty(apart + 700, dtype=torch.float16)
    s = memory.as_strided((2, 700), (apart, 1))
    s.copy_(scores(2, 700, torch.float16))
    for k in (10, 600):
        check(kernels, s, held_out((2, 9), 700), k)


@pytest.mark.parametrize("num_items", [5, 2**31 - 1, 2**31, 2**31 + 5, 2**32 - 2**16 - 1])
def test_packs_of_rows_of_any_length(kernels, num_items):
    """By arithmetic: aligned packs lie within the row, and those at its ends are all that is left."""
    zeros, out = torch.zeros(9, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)
    for start in range(4):
        for number in (0, 7):
            kernels.rank_packs(1024 + 4 * start, num_items, number, num_items, zeros, out)
            shift, first, whole, count, last, begins = out.tolist()
            assert begins == 1024 + 4 * start + 4 * number * num_items
            assert shift == begins // 4 % 4
            assert first == (shift > 0)
            assert 4 * first - shift >= 0
            assert 4 * (first + whole) - shift <= num_items < 4 * (first + whole + 1) - shift
            assert 4 * (count - 1) - shift < num_items <= last + 1 == 4 * count - shift < 2**32


def test_a_list_is_the_same_by_selection_and_by_queue(kernels):
    args = held_out((3, 1), 2501)
    for ties in (False, True):
        for k in (10, 100, LIST):
            check(kernels, scores(2, 2501, ties=ties), args, k, longest=0)
        check(kernels, scores(2, 2501, ties=ties), args, 1024, longest=1024)


def ordered(kind, rows, num_items):
    """Scores in an order that a list filled from the front takes badly."""
    s = scores(rows, num_items)
    if kind == "ascending":
        return s.sort(1).values
    if kind == "descending":
        return s.sort(1, descending=True).values
    if kind == "level":
        return torch.full_like(s, 0.5)
    s[:, : num_items - 7] = -torch.inf  # nothing but the last few
    return s


@pytest.mark.parametrize("kind", ["ascending", "descending", "level", "lowest"])
@pytest.mark.parametrize("settings", cuda_on_host.SCHEDULES, ids=str)
def test_scores_in_an_order(kernels, kind, settings):
    """The queue is full again and again, or never."""
    with cuda_on_host.schedule(settings):
        check(kernels, ordered(kind, 2, 5003), held_out((2, 11), 5003), 300)


def test_the_best_items_are_excluded(kernels):
    args = list(held_out((3, 20), 4001))
    s = scores(2, 4001)
    args[4:] = csr(s > 0, torch.int32)
    check(kernels, s, args, 40)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rows_that_begin_anywhere(kernels, dtype):
    """Whatever lies before and behind a row would be first in its list."""
    for num_items in (1, 2, 3, 4, 5, 9, 131):
        for first in range(4):
            around = torch.full((3, num_items + 7), 9.0).to(dtype)
            s = around[:, first : first + num_items]
            s.copy_(scores(3, num_items, dtype))
            check(kernels, s, held_out((0, 1, 1), num_items), 3)


def test_zeros_of_both_signs_are_level(kernels):
    s = torch.zeros(2, 700)
    s[:, ::3] = -0.0
    for k in (9, 400):
        check(kernels, s, held_out((2, 12), 700), k)
        check(kernels, s.double(), held_out((2, 12), 700), k)


def test_infinite_scores_of_positives(kernels):
    s = scores(2, 403)
    s[:, ::2], s[:, 1::4] = -torch.inf, torch.inf
    check(kernels, s, held_out((6, 40), 403), 20)


def test_nan_of_a_user_with_many_positives(kernels):
    args = held_out((600, 20, 3), 1201, excluded=0)
    s = scores(3, 1201)
    s[1, int(args[3][int(args[2][1]) + 4])] = torch.nan
    assert run(kernels, s, *args, k=2)[5].item() == 1


# -------------------------------------------------------------------------------------------------------- the budget


def budget(counted, s, args, k, *, passes=1, looked_up=0):
    """One launch; the scores are read once a pass; ``looked_up`` entries a user are compared with what is excluded."""
    with counted.count() as counts:
        check(counted, s, args, k)
    assert [node.kernel for node in counts.nodes] == ["(rank_kernel<S>)"]
    rows, sizes, excluded = args[0].numel(), args[1].diff().tolist(), args[4].diff()
    elements, size = s.numel(), s.element_size()
    # A sector of 32 bytes may belong to two rows, and a user's positives and excluded items to those of others.
    assert 32 * counts.sectors_loaded <= elements * size + 4 * (sum(sizes) + int(excluded.sum())) + 32 * (16 * rows + 8)
    counted_in = -(-max(sizes) // LEVELS)  # passes
    assert counts.stored == sum(sizes) * (4 + 8 + 8) + rows * 8 * (counted_in + k)
    # Instructions ask for the scores once a pass. Every thread fetches the positives that it counts in registers.
    fetched = sum((8 * 256 if n <= REGISTERS else 48) * n for n in sizes)
    taken_off = int(excluded.sum()) * (4 + size + 4 * max(sizes).bit_length()) * counted_in
    searched = rows * looked_up * 4 * (int(excluded.max()).bit_length() + 1)
    assert counts.loaded <= passes * elements * size + fetched + taken_off + searched + rows * 1500


def test_budget(counted):
    """What a list looks up: some queues at first, and then k log(items / 256) entries that may be of its best."""
    args = held_out((1, 4, 8), 12_000, excluded=0.01)
    budget(counted, scores(3, 12_000), args, 0)
    budget(counted, scores(3, 12_000), args, 20, looked_up=1400)


def test_budget_of_several_passes(counted):
    args = held_out((LEVELS + 9,), 6_000, excluded=0.01)
    budget(counted, scores(1, 6_000), args, 0, passes=2)


def budget_of_selection(counted, s, args, k, digits):
    """Counts, a pass for each digit, and one that collects: however long the list is."""
    with counted.count() as counts:
        check(counted, s, args, k)
    assert [node.kernel for node in counts.nodes] == ["(rank_select_kernel<S>)", "(rank_kernel<S>)"]
    rows, elements, size = args[0].numel(), s.numel(), s.element_size()
    places = min(k, s.shape[1])
    tiled = 1 if places <= TILE * 4 // size else 0  # sorted in shared memory from the first to the last
    shared = 8192 + 2 * size * (1 << max(5, (min(places, TILE * 4 // size) - 1).bit_length()))
    assert counts.nodes[0].shared == shared <= 40 << 10
    excluded, positives = int(args[4].diff().sum()), int(args[1][-1])
    # What is collected is looked up, and read once more: all that reaches the end of the list.
    collected = rows * (places + HELD)
    looked_up = collected * (size + 8 * (args[4].diff().max().item().bit_length() + 1))
    taken_off = excluded * (4 + size + 8) * (2 + digits)
    assert counts.loaded >= (2 + digits) * elements * size
    scans = (2 + digits) * elements * size + 8 * 256 * positives
    beyond = 0 if tiled else 16 * rows * places * (2 + (places // TILE).bit_length() * 2)
    assert counts.loaded <= scans + looked_up + taken_off + beyond + rows * 4000
    assert counts.stored <= positives * 20 + rows * 8 * (1 + k) + (0 if tiled else beyond)
    return counts


def test_budget_of_selection(counted):
    """Of 6 000 scores one digit leaves few enough, and of more where they lie apart. 600 places cost what 4 000 do."""
    args = held_out((2, 3), 6_000, excluded=0.01)
    for k in (600, 4000):
        budget_of_selection(counted, scores(2, 6_000), args, k, 1)
    args = held_out((2,), 40_000, excluded=0.01)
    for k, digits in ((700, 1), (6500, 2)):  # scores about 2, and about 1
        budget_of_selection(counted, scores(1, 40_000), args, k, digits)
    # Level scores: three digits of theirs, and the item's.
    budget_of_selection(counted, torch.ones(1, 6_000), held_out((2,), 6_000, excluded=0.01), 700, 4)


# ------------------------------------------------------------------------------------------------------ planted bugs

ROW, SELECT = "cuda/rank_row.cuh", "cuda/rank_select.cuh"
BUGS = [
    planted.Bug(
        "a tie goes to any item",
        "e > list.last()",
        "!e.is_none() && (list.last().is_none() || e.score() > list.last().score())",
    ),
    planted.Bug("ties have no order", "return key > other.key;", "return key >> 32 > other.key >> 32;", ROW),
    planted.Bug("the list's end is never known", "best[shared->length - 1]", "Entry<T>::none()"),
    planted.Bug("the list's end is taken for its begin", "last().score()", "best[0].score()"),
    planted.Bug("scores that find the queue full are lost", "return notable;", "return 0;"),
    planted.Bug(
        "packs that found the queue full are counted again", "if (full) break;", "if (full) { v -= turn; break; }"
    ),
    planted.Bug("places that nobody fills keep old entries", "list.queue()[p] = Entry<T>::none();", ";"),
    planted.Bug("excluded items are listed", "!row.is_candidate(e.item())", "false"),
    planted.Bug("excluded items are counted", "counts.take_off(row.score(item));", ";"),
    planted.Bug("an excluded positive is taken off", "row.is_positive(item)", "false"),
    planted.Bug("counts of the row before stay", "shared->above[threadIdx.x] = shared->level[threadIdx.x] = 0;", ";"),
    planted.Bug("the list of the row before stays", "best[i] = Entry<T>::none();", ";"),
    planted.Bug("the last pack is read whole", "static_cast<unsigned>(whole)", "static_cast<unsigned>(whole + 1)", ROW),
    planted.Bug("the search stops early", "2 * half <= count", "2 * half < count"),
    planted.Bug("levels of a second pass are lost", "first += kRankLevels", "first += m"),
    planted.Bug(
        "an excluded item that is level is taken off as one above",
        "above[j] -= s > levels[j] ? 1.0f : 0.0f;",
        "above[j] -= s >= levels[j] ? 1.0f : 0.0f;",
    ),
    planted.Bug("the sums of bins lose what was carried", "sum += carried;", ";"),
    planted.Bug("a block takes one user", "number += gridDim.x", "number += a.rows"),
    planted.Bug("an excluded NaN is told of", "!(s == s) && row.is_candidate(item)", "!(s == s)"),
    planted.Bug("a positive is level with itself", "shared->level[j] - 1", "shared->level[j]"),
    planted.Bug("excluded items stay level", "if (s == levels[j]) atomicSub(shared->level + j, 1u);", ";"),
    planted.Bug("a negative zero is less than zero", "score += 0.0f;", ";", ROW),
    # Selection. (No bug here collects more than there is room for in the cases that come to it.)
    planted.Bug("excluded items are selected", "row.is_candidate(number)", "true", SELECT),
    planted.Bug("excluded items stay in their bins", "atomicSub(bins + prefix.digit(bits, number), 1u);", ";", SELECT),
    planted.Bug("the sums of warps are not carried", "above += shared->sums[w];", ";", SELECT),
    planted.Bug("bins of the digit before stay", "bins[i] = 0;", ";", SELECT),
    planted.Bug("the last of the ties is lost", "~i >= item", "~i > item", SELECT),
    planted.Bug("a digit is given wrongly", "static_cast<Bits>(digit)", "static_cast<Bits>(digit | 1u)", SELECT),
    planted.Bug("the last tile is lost", "first < count", "first + n < count", SELECT),
    planted.Bug("what is held is not sorted", "sort_tile(held, n);", "__syncthreads();", SELECT),
    planted.Bug("a merge without its mirror", "compare_down(a, n, size / 2, size - 1);", "__syncthreads();", SELECT),
    planted.Bug("tiles are not merged", "if (higher > lower) put(i, higher), put(j, lower);", ";", SELECT),
    planted.Bug("a distance between tiles is left out", "half >= n", "half >= 2 * n", SELECT),
    planted.Bug("a block selects for one user", "number += gridDim.x", "number += a.rows", SELECT),
    planted.Bug(
        "what lies above the digit is wanted once more",
        "needed -= shared->better, level = shared->level;",
        "level = shared->level;",
        SELECT,
    ),
    planted.Bug("too few candidates are taken for enough", "all = shared->total < needed;", "all = false;", SELECT),
    planted.Bug("minus infinity is listed", "score > -static_cast<T>(INFINITY)", "score == score", SELECT),
    planted.Bug("the sums of lanes are not carried", "if (lane >= offset) sum += before;", ";", SELECT),
]


wrong = planted.kernels_of("rank", "cuda/rank.cuh", BUGS)


def battery(kernels):
    """One case for each thing that can go wrong."""
    check(kernels, scores(6, 301, ties=True), held_out((0, 1, 2, 4, 8, 16), 301), 10, blocks=2)
    check(kernels, scores(2, 1201, ties=True), held_out((16, LEVELS + 40), 1201), 3, blocks=1)
    check(kernels, ordered("ascending", 1, 3003), held_out((2,), 3003), 300)
    check(kernels, scores(1, 3003), held_out((2,), 3003), 300)
    with cuda_on_host.schedule(cuda_on_host.SCHEDULES[2]):  # lower items come after higher ones, here and there
        check(kernels, ordered("level", 1, 3003), held_out((2,), 3003), 300)
    check(kernels, scores(2, 1000), held_out((1, 0), 1000, excluded=0.1), 600, blocks=1)
    check(kernels, scores(2, 1000, ties=True), held_out((1, 0), 1000, excluded=0.1), 600, blocks=1)
    check(kernels, torch.ones(1, 2000), held_out((1,), 2000, excluded=0.1), 600)
    check(kernels, scores(1, 4000), held_out((1,), 4000), 1000)
    check(kernels, scores(1, 20_001), held_out((1,), 20_001), 3 * TILE + 9)
    around = torch.full((3, 70), 9.0)
    around[:, 5:66] = scores(3, 61)
    check(kernels, around[:, 5:66], held_out((3, 0, 12), 61), 4)
    zeros = torch.zeros(1, 700)
    zeros[:, ::3] = -0.0
    zeros[:, ::7] = -torch.inf
    for k in (9, 600, 690):
        check(kernels, zeros, held_out((2,), 700), k)
    args = held_out((1, 0), 40)
    s = scores(2, 40)
    s[1, int(args[5][int(args[4][1])])] = torch.nan  # excluded
    check(kernels, s, args, 3)
    test_budget(kernels)


@planted.each_of(BUGS)
def test_planted_bugs_are_noticed(wrong, bug):
    planted.look_for(bug, BUGS, wrong, battery)


def test_a_bug_that_has_lost_its_place_is_noticed():
    with pytest.raises(ValueError, match="expected 'nowhere' once, found it 0 times"):
        planted.changed("text", [(1, planted.Bug("lost", "nowhere", "anywhere"))])
    with pytest.raises(ValueError, match="kNone: expected one constant of this name"):
        planted.load("rank", "cuda/rank.cuh", (), constants={"kNone": 1})
    losses = (cuda_on_host.CSRC / planted.LOSSES).read_text()
    with pytest.raises(ValueError, match="expected a loss of each list, found none"):
        planted.few_losses(losses, ["bpr", "hardest"])
    few = planted.few_losses(losses, ["bpr", "pos2neg2", "hardest", "ccl"])
    assert '_ROW_LOSSES(X) X(kHardest, "hardest", Hardest) X(kCcl, "ccl", Ccl)\n#define ZX_ALL' in few


def test_factors_are_ranked_through_scores_where_only_those_have_a_kernel(monkeypatch):
    args = problem(share=0.05)
    generator = torch.Generator().manual_seed(5)
    # Whole numbers: the scores are exact, however the product is cut up.
    factors = tuple(torch.randint(-9, 9, (n, 8), generator=generator).float() for n in (9, 301))
    want = _ranking_reference.rank_factors(*factors, None, *args, 5)
    monkeypatch.setitem(_ops.KERNELS, "cpu", _ops.KERNELS["cpu"] & {"rank_scores"})
    monkeypatch.setattr(_ranking_reference, "KERNEL_BLOCK_ELEMENTS", 4 * 301)
    for g, w in zip(_ops.rank_factors(*factors, None, *args, 5), want, strict=True):
        assert torch.equal(g, w)
