"""The CUDA kernels of sampling, run on the host: bit for bit what the definition, and the CPU, draws."""

from __future__ import annotations

import cuda_on_host
import pytest
import torch
from cuda_on_host import planted
from cuda_on_host.testing import FAR, counted_kernels_of, kernels_of, moved_far

import zerosum_ext as zx
from zerosum_ext import _ops
from zerosum_ext.data import complements, sampling
from zerosum_ext.reference import sampling as _sampling_reference

SEEDS = [(0, 0, 0), (2**63 + 12345, 2**32 - 1, 2**40 + 3)]


kernels = kernels_of("sampling")
counted = counted_kernels_of("sampling")


def matrix(num_users=61, num_items=97, seed=0):
    """Rows of every kind: empty, short, more than half full, all but one item, full, and one for all the filters."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(num_users, generator=generator) ** 3
    dense = torch.rand(num_users, num_items, generator=generator) < share[:, None]
    dense[3], dense[4], dense[5] = False, True, True
    dense[5, 40] = False
    users, items = dense.nonzero(as_tuple=True)
    return zx.Interactions.from_arrays(users.numpy(), items.numpy(), shape=(num_users, num_items))


def signed(seed):
    return seed - 2**64 if seed >= 2**63 else seed


def build_filter(kernels, x, indices):
    found = torch.zeros(x.nnz + 1, dtype=torch.int16)
    kernels.row_filter(x.indptr, indices, found, x.num_items)
    return found


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("settings", cuda_on_host.SCHEDULES, ids=str)
def test_row_filter(kernels, dtype, settings):
    for num_items in (97, 5000):  # exact bitmaps, and hashed bits
        x = matrix(num_items=num_items)
        with cuda_on_host.schedule(settings):
            found = build_filter(kernels, x, x.indices.to(dtype))
        expected = _ops.row_filter(x.indptr, x.indices, x.num_items)
        if expected is not None:
            assert torch.equal(found, expected)
    users, items = torch.arange(x.num_users), torch.arange(x.num_items)
    want = _sampling_reference.has_items(users, items, x.indptr, x.indices, None, x.num_items)
    for lookup in (None, found):
        out = torch.zeros(want.shape, dtype=torch.bool)
        kernels.has_items(users, items, x.indptr, x.indices.to(dtype), lookup, out, x.num_items)
        assert torch.equal(out, want)
    by_row = torch.randint(0, x.num_items, (x.num_users, 3), generator=torch.Generator().manual_seed(1))
    out = torch.zeros(by_row.shape, dtype=torch.bool)
    kernels.has_items(users, by_row, x.indptr, x.indices.to(dtype), found, out, x.num_items)
    assert torch.equal(out, want.gather(1, by_row))


def strategies(x):
    candidates = torch.arange(0, x.num_items, 5) if x.num_items > 97 else torch.tensor([0, 2, 3, 5, 40, 41, 42, 90])
    for name, options in (
        ("uniform", {}),
        ("popularity", {"alpha": 0.75}),
        ("candidates", {"candidates": candidates}),
    ):
        for replacement in (True, False):
            yield sampling.NegativeSource.of(
                x, name, None, options.get("alpha", 1.0), options.get("candidates"), replacement
            )


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("seed", SEEDS, ids=str)
@pytest.mark.parametrize("k", [0, 1, 5, 33])
def test_negatives(kernels, k, seed, dtype):
    x = matrix()
    indices = x.indices.to(dtype)
    users = torch.randint(0, x.num_users, (301 if k < 9 else 70,), generator=torch.Generator().manual_seed(2))
    users[7], users[50] = -1, x.num_users
    if seed == SEEDS[0]:
        users = users[(users >= 0) & (users < x.num_users) & (users != 4)]  # none fails, with replacement
    number, epoch, offset = seed
    for strategy in strategies(x):
        want, want_failed = _sampling_reference.sample_negatives(
            *(users, x.indptr, indices, None, strategy.slots, strategy.masses, x.num_items, k),
            *(signed(number), epoch, offset, strategy.replacement),
        )
        key = torch.tensor([signed(number), epoch, offset])
        for lookup in (None, build_filter(kernels, x, indices)):
            for device_key, numbers in ((None, (signed(number), epoch, offset)), (key, (9, 9, 9))):
                out = torch.full((users.numel(), k), -9)
                failed = torch.full((1,), -1)
                kernels.sample_negatives(
                    *(users, None, x.indptr, indices, lookup, strategy.slots, strategy.masses, None, None, device_key),
                    *(out, failed, x.num_items, *numbers, strategy.replacement),
                )
                assert torch.equal(out, want)
                assert k == 0 or torch.equal(failed, want_failed)


def dense(num_items=1500, missing=40):
    """Three users who have most items, one of them all but a few, one the popular ones; and many who have few."""
    generator = torch.Generator().manual_seed(9)
    has = torch.rand(70, num_items, generator=generator) < torch.linspace(0.3, 0.0, num_items)
    has[3] = True
    has[3, torch.randperm(num_items, generator=generator)[:missing]] = False
    has[20], has[20, num_items - 300 :] = True, False
    has[1] = torch.arange(num_items) % 5 < 3  # what it lacks are pairs
    users, items = has.nonzero(as_tuple=True)
    return zx.Interactions.from_arrays(users.numpy(), items.numpy(), shape=tuple(has.shape))


def draw(kernels, x, users, strategy, k, replacement, sums=(None, None), numbers=None, lookup=None):
    """Draw with the kernels, and compare with the definition."""
    source = (x.indptr, x.indices, None, strategy.slots, strategy.masses, x.num_items, k, 5, 6)
    if numbers is None:
        want, want_failed = _sampling_reference.sample_negatives(users, *source, 7, replacement)
    else:
        want, want_failed = _sampling_reference.sample_negatives_at(users, numbers, *source, replacement)
    out, failed = torch.full((users.numel(), k), -9), torch.full((1,), -1)
    kernels.sample_negatives(
        *(users, numbers, x.indptr, x.indices, lookup, strategy.slots, strategy.masses, *sums, None, out, failed),
        *(x.num_items, 5, 6, 7, replacement),
    )
    assert torch.equal(out, want)
    assert torch.equal(failed, want_failed)


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("settings", cuda_on_host.SCHEDULES, ids=str)
def test_negatives_of_users_with_nearly_all_items(kernels, settings, replacement):
    """Any of a warp's lanes may need the whole warp, none, or all do."""
    x = dense()
    users = torch.cat((torch.arange(70), torch.full((32,), 3), torch.tensor([20, 3, 5, 20])))
    with cuda_on_host.schedule(settings):
        for strategy in strategies(x):
            draw(kernels, x, users, strategy, 3, replacement)
            if strategy.masses is not None:  # some lanes then draw alone, others together
                sums = complements.complement_sums(x, strategy.slots, strategy.masses)
                draw(kernels, x, users, strategy, 3, replacement, only_some(sums) if replacement else sums)


def only_some(sums):
    """The sums of all rows but the first one that has some."""
    return sums[0][:, 1:].contiguous(), sums[1]


@pytest.mark.parametrize("replacement", [True, False])
def test_negatives_of_samples_with_numbers(kernels, replacement):
    """A sample's negatives follow from its number, wherever it stands."""
    x = dense()
    generator = torch.Generator().manual_seed(3)
    users = torch.cat((torch.randint(0, 70, (90,), generator=generator), torch.full((9,), 3), torch.tensor([-1, 70])))
    numbers = torch.randint(0, 2**62, (101,), generator=generator)
    numbers[:3] = torch.tensor([0, 2**32, -1])
    for strategy in strategies(x):
        for lookup in (None, build_filter(kernels, x, x.indices)):
            draw(kernels, x, users, strategy, 2, replacement, numbers=numbers, lookup=lookup)
    nobody = users[:0]
    draw(kernels, x, nobody, strategy, 2, replacement, numbers=nobody)


@pytest.mark.parametrize("total", [0, 1, 2, 5, 4095, 4096, 5001, 2**40 + 12345])
def test_unshuffle(kernels, total):
    generator = torch.Generator().manual_seed(1)
    cells = torch.arange(total) if total < 2**20 else torch.randint(0, total, (700,), generator=generator)
    outside = torch.tensor([-1, total, 2**62, -(2**63)])  # of no cell there is a number
    for number, epoch, _ in SEEDS:
        want = _sampling_reference.unshuffle(cells, total, signed(number), epoch) if total else cells
        want = torch.cat((want, torch.full((4,), -1)))
        key = torch.tensor([signed(number), epoch, 9])
        for device_key, numbers in ((None, (signed(number), epoch)), (key, (1, 1))):
            got = torch.full_like(want, -9)
            kernels.unshuffle(torch.cat((cells, outside)), device_key, got, total, *numbers)
            assert torch.equal(got, want)
    kernels.unshuffle(cells[:0], None, cells[:0], total, 1, 1)


def test_budget_of_negatives(counted):
    """One launch; a draw from a dense row reads the row and its items' masses at most twice, and then searches.

    With sums it searches alone.
    """
    x = dense()
    users = torch.full((40,), 3)
    strategy = sampling.NegativeSource.of(x, "popularity", None, 1.0, None, True)
    with counted.count() as counts:
        draw(counted, x, users, strategy, 1, True)
    assert len(counts.nodes) == 1
    count = int(x.user_counts[3])
    assert counts.loaded <= 40 * (2 * count * (4 + 2 * 8) + 200)
    assert counts.stored == 40 * 8
    walked = counts.loaded
    sums = complements.complement_sums(x, strategy.slots, strategy.masses)
    with counted.count() as counts:
        draw(counted, x, users, strategy, 1, True, sums)
    steps = count.bit_length()
    assert counts.loaded <= 40 * 8 * (3 + 2 * steps + 8 + steps)  # the row's place, three searches, and what they find
    assert counts.loaded < walked / 50
    numbers = torch.arange(40)
    with counted.count() as counts:
        counted.unshuffle(numbers, None, torch.empty_like(numbers), 40, 1, 1)
    assert (len(counts.nodes), counts.loaded, counts.stored) == (1, 40 * 8, 40 * 8)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_interactions_that_32_bits_do_not_count(kernels, dtype, tmp_path):
    """The rows lie behind 2^31 interactions, of nobody: results are those of the rows alone."""
    x = matrix()
    indptr, indices = x.indptr + FAR, moved_far(tmp_path, x.indices.to(dtype))[0]
    filters = [build_filter(kernels, x, x.indices)]
    filters.append(moved_far(tmp_path, filters[0])[0])
    users, items = torch.arange(x.num_users), torch.arange(x.num_items)
    for strategy in strategies(x):
        sums = (None, None)
        if strategy.masses is not None:
            sums = complements.complement_sums(x, strategy.slots, strategy.masses)
        results = []
        for moved in (False, True):
            matrix_of = (indptr, indices) if moved else (x.indptr, x.indices.to(dtype))
            rows = None if sums[0] is None else torch.stack((sums[0][0] + FAR * moved, sums[0][1]))
            for lookup in (None, filters[moved]):
                out, failed = torch.full((users.numel(), 3), -9), torch.full((1,), -1)
                kernels.sample_negatives(
                    *(users, None, *matrix_of, lookup, strategy.slots, strategy.masses, rows, sums[1], None),
                    *(out, failed, x.num_items, 5, 6, 7, strategy.replacement),
                )
                results.append((out, failed))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    want = _sampling_reference.has_items(users, items, x.indptr, x.indices, None, x.num_items)
    for lookup in (None, filters[1]):
        out = torch.zeros(want.shape, dtype=torch.bool)
        kernels.has_items(users, items, indptr, indices, lookup, out, x.num_items)
        assert torch.equal(out, want)
    total, shift = FAR + x.nnz, 12
    hint = torch.zeros(((total - 1) >> shift) + 1, dtype=torch.int64)  # of the last block: its first user
    assert FAR >> shift == (total - 1) >> shift
    got = torch.full((x.nnz,), -9), torch.full((x.nnz,), -9)
    kernels.sample_positives(*(indptr, indices, hint, None, None, None, *got, shift, 0, total, total, FAR, 1, 1))
    assert all(torch.equal(g, w) for g, w in zip(got, (x.pairs()[0], x.indices.long()), strict=True))


def like_movielens(users=900, num_items=900):
    """Users of sizes like MovieLens-1M's: most have a few hundredths of the items, one has more than half."""
    generator = torch.Generator().manual_seed(4)
    sizes = (num_items * 0.45 * torch.rand(users, generator=generator) ** 5).long() + 8
    sizes[70] = int(0.62 * num_items)
    luck = torch.empty(users, num_items).exponential_(generator=generator).log()
    order = (0.6 * torch.arange(1, num_items + 1).log() + luck).argsort(1)  # a draw in proportion to rank^-0.6
    rows = torch.arange(users).repeat_interleave(sizes)
    items = torch.cat([order[u, :n] for u, n in enumerate(sizes.tolist())])
    return zx.Interactions.from_arrays(rows.numpy(), items.numpy(), shape=(users, num_items))


def test_popularity_draws_load_at_most_twice_what_uniform_ones_do(counted):
    """By threads, by the busiest threads of warps, and in bytes; without sums it is many times as much."""
    x = like_movielens()
    generator = torch.Generator().manual_seed(5)
    users = x.pairs()[0][torch.randperm(x.nnz, generator=generator)[:8192]]
    lookup = build_filter(counted, x, x.indices)
    counts = {}
    for name, summed in (("uniform", False), ("popularity", False), ("popularity", True)):
        strategy = sampling.NegativeSource.of(x, name, None, 1.0, None, True)
        sums = complements.complement_sums(x, strategy.slots, strategy.masses) if summed else (None, None)
        out, failed = torch.empty(len(users), 1, dtype=torch.int64), torch.full((1,), -1)
        with counted.count() as counts[name, summed]:
            counted.sample_negatives(
                *(users, None, x.indptr, x.indices, lookup, strategy.slots, strategy.masses, *sums, None, out, failed),
                *(x.num_items, 5, 6, 7, True),
            )
    uniform, walked, searched = counts.values()
    for unit in ("loads", "loaded", "warp_loads"):
        assert getattr(walked, unit) > 2.5 * getattr(uniform, unit), unit
        assert getattr(searched, unit) <= 2 * getattr(uniform, unit), unit
    warps = users.view(-1, 32)
    assert 0.05 < float((2 * x.user_counts[warps] > x.num_items).any(1).float().mean()) < 0.4


BUGS = [
    planted.Bug(
        "masses of a row's first items are forgotten", "skipped += __shfl_sync(kFullWarp, before, kWarp - 1);", ";"
    ),
    planted.Bug(
        "a unit at the edge belongs to the item before",
        "here && below - (skipped + before - mass) > m",
        "here && below - (skipped + before - mass) >= m",
    ),
    planted.Bug(
        "the last item beyond the unit ends the search",
        "__ffs(static_cast<int>(beyond)) - 1",
        "31 - __clz(static_cast<int>(beyond))",
    ),
    planted.Bug("only one lane of a warp draws from a complement", "left &= left - 1", "left = 0"),
    planted.Bug("a lane draws another's sample", "a.sample(first, its_row)", "a.sample(first, row)"),
    planted.Bug("a lane avoids what another has drawn", "a.out + its_row * a.k", "a.out + row * a.k"),
    planted.Bug(
        "a row's mass ends with its first items",
        "mass += mass_of(static_cast<int64_t>(row.items[j]));",
        "mass += j < kWarp ? mass_of(static_cast<int64_t>(row.items[j])) : 0;",
    ),
    planted.Bug("samples with numbers are counted", "numbers != nullptr ? numbers[row] : first + row", "first + row"),
    planted.Bug("cells outside are undone like others", "is_item(cell, total)", "is_item(cell, total + 3)"),
    planted.Bug("a bit of the filter is lost where the word has others", "if (before == seen) break;", "break;"),
    planted.Bug("a replay goes on beyond the epoch", "number < total ? number : number % total", "number"),
    planted.Bug("the epoch begins where the host said", "device != nullptr ? device[2] : offset", "offset"),
    planted.Bug("an interaction has one draw", "if (a.total > a.kept) edge %= a.kept;", ";"),
    planted.Bug("the second positive is one's neighbour", "at.edge - at.begin", "0"),
    planted.Bug("owners are looked for in one block of the hint", "a.hint[block + 1]", "a.hint[block]"),
    # What rows' sums are searched by, which the CPU shares.
    planted.Bug(
        "an empty row takes the next one's sums",
        "count > 0 ? lower_bound(begins, num_rows, begin) : num_rows",
        "lower_bound(begins, num_rows, begin)",
        "common/sampler.h",
    ),
    planted.Bug(
        "a row without sums takes its neighbour's",
        "r >= num_rows || begins[r] != begin",
        "r >= num_rows",
        "common/sampler.h",
    ),
    planted.Bug(
        "a unit at an edge belongs to the gap before",
        "upper_bound(sums, row.count, static_cast<int64_t>(m))",
        "lower_bound(sums, row.count, static_cast<int64_t>(m))",
        "common/sampler.h",
    ),
    planted.Bug(
        "one item below too few is skipped",
        "static_cast<uint64_t>(sums[j])",
        "static_cast<uint64_t>(sums[j > 0 ? j - 1 : 0])",
        "common/sampler.h",
    ),
    planted.Bug(
        "a gap's first item is overlooked",
        "static_cast<int64_t>(row.items[j - 1]) + 1",
        "static_cast<int64_t>(row.items[j - 1]) + 2",
        "common/sampler.h",
    ),
    planted.Bug(
        "a gap ends before its last item",
        "upper_bound(prefix + 1 + low, high - 1 - low, static_cast<int64_t>(m))",
        "upper_bound(prefix + 1 + low, high - 2 - low, static_cast<int64_t>(m))",
        "common/sampler.h",
    ),
]


wrong = planted.kernels_of("sampling", "cuda/sampling.cuh", BUGS)


def battery(kernels):
    cells, got = torch.arange(-1, 12), torch.zeros(13, dtype=torch.int64)
    kernels.unshuffle(cells, None, got, 10, 3, 4)
    want = _sampling_reference.unshuffle(cells[1:11], 10, 3, 4)
    assert got.tolist() == [-1, *want.tolist(), -1, -1]
    few = matrix()
    assert torch.equal(build_filter(kernels, few, few.indices), _ops.row_filter(few.indptr, few.indices, few.num_items))
    test_samples_beyond_the_epoch_are_those_of_its_start(kernels, 1, 3)
    # Nearly as many of them as there are items: of users without a row some are drawn from complements too.
    few = zx.Interactions.from_arrays([1] * 34, list(range(34)), shape=(3, 40))
    strategy = sampling.NegativeSource.of(few, "candidates", None, 1.0, torch.arange(40), False)
    sums = complements.complement_sums(few, strategy.slots, strategy.masses)
    draw(kernels, few, torch.tensor([0, 1, 2] * 11), strategy, 39, False, sums)
    x = dense()
    users = torch.cat((torch.arange(40), torch.full((24,), 3)))
    for strategy in strategies(x):
        for replacement in (True, False):
            draw(kernels, x, users, strategy, 2, replacement)
            if strategy.masses is not None:
                sums = complements.complement_sums(x, strategy.slots, strategy.masses)
                draw(kernels, x, users, strategy, 2, replacement, sums)
                draw(kernels, x, users, strategy, 2, replacement, only_some(sums), numbers=17 * users)


@planted.each_of(BUGS)
def test_planted_bugs_are_noticed(wrong, bug):
    planted.look_for(bug, BUGS, wrong, battery)


small_grid = planted.small_grid_of("sampling", kSampleBlocks=2)


@pytest.mark.slow
def test_more_work_than_a_grid_holds(small_grid):
    """With a grid of two blocks, which no GPU has: each takes several turns."""
    battery(small_grid)
    test_negatives(small_grid, 5, SEEDS[1], torch.int32)
    test_unshuffle(small_grid, 5001)
    test_positives(small_grid, 3, 1, 2, torch.int32)
    test_row_filter(small_grid, torch.int32, {})


def test_nobody_asks(kernels):
    x = matrix()
    out, failed = torch.empty(0, 3, dtype=torch.int64), torch.full((1,), -1)
    nobody = torch.empty(0, dtype=torch.int64)
    kernels.sample_negatives(
        *(nobody, None, x.indptr, x.indices, *[None] * 6, out, failed, x.num_items, 0, 0, 0, True),
    )
    kernels.row_filter(torch.zeros(4, dtype=torch.int64), nobody, torch.zeros(1, dtype=torch.int16), 5)
    assert failed.item() == -1


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("positives", [1, 2])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("draws", [1, 3])
def test_positives(kernels, draws, order, positives, dtype):
    x = matrix()
    indices = x.indices.to(dtype)
    counts = x.user_counts
    out_of_it = torch.tensor([4, 5, 30])  # users who are left out
    total = counts[out_of_it].cumsum(0)
    gaps = torch.stack((x.indptr[out_of_it] - total + counts[out_of_it], total)).contiguous()
    for left_out in (None, gaps):
        kept = x.nnz - (0 if left_out is None else int(total[-1]))
        active = (counts > 0).nonzero().flatten() if order == 3 else None
        samples = draws * kept
        for number, epoch, _ in SEEDS:
            for begin, rows in ((0, samples), (samples - 5, 5), (17, 300), (0, 0)):
                args = (order, kept, samples, begin)
                want = _sampling_reference.sample_positives(
                    *(x.indptr, indices, None, 0, left_out, active, *args, rows, positives, signed(number), epoch)
                )
                key = torch.tensor([signed(number), epoch, begin])
                for device_key, numbers in ((None, (begin, signed(number), epoch)), (key, (0, 9, 9))):
                    got = tuple(torch.full_like(t, -9) for t in want)
                    kernels.sample_positives(
                        *(x.indptr, indices, sampling._hint(x), left_out, active, device_key, *got),
                        *(sampling._HINT_SHIFT, order, kept, samples, *numbers),
                    )
                    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_samples_beyond_the_epoch_are_those_of_its_start(kernels, order, draws):
    """Where they begin lies in memory: nobody has compared it with the epoch."""
    x = matrix()
    samples = draws * x.nnz
    active = (x.user_counts > 0).nonzero().flatten() if order == 3 else None
    args = (x.indptr, x.indices, None, 0, None, active, order, x.nnz, samples)
    parts = [_sampling_reference.sample_positives(*args, *part, 2, 5, 6) for part in ((samples - 3, 3), (0, 7))]
    want = [torch.cat(both) for both in zip(*parts, strict=True)]
    for begin in (samples - 3, 4 * samples - 3):
        got = [torch.full_like(t, -9) for t in want]
        kernels.sample_positives(
            *(x.indptr, x.indices, sampling._hint(x), None, active, torch.tensor([5, 6, begin]), *got),
            *(sampling._HINT_SHIFT, order, x.nnz, samples, 0, 9, 9),
        )
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


def test_more_samples_than_one_block_and_a_large_permutation(kernels):
    x = matrix(num_users=500, num_items=900, seed=3)  # more than 4096 interactions: eight rounds
    args = (1, x.nnz, x.nnz, 0)
    want = _sampling_reference.sample_positives(x.indptr, x.indices, None, 0, None, None, *args, x.nnz, 1, 5, 6)
    got = tuple(torch.full_like(t, -9) for t in want)
    kernels.sample_positives(
        *(x.indptr, x.indices, sampling._hint(x), None, None, None, *got),
        *(sampling._HINT_SHIFT, 1, x.nnz, x.nnz, 0, 5, 6),
    )
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    assert got[0].unique_consecutive().numel() > 1000


@pytest.mark.parametrize("op", ["sample_negatives", "sample_positives"])
def test_a_key_in_memory_is_what_the_numbers_are(op):
    x = matrix()
    key = torch.tensor([3, 4, 5])
    if op == "sample_negatives":
        args = (torch.arange(3), x.indptr, x.indices, None, None, None, x.num_items, 4)
        want, got = (
            _ops.sample_negatives(*args, *numbers, True, key=k)[0]
            for numbers, k in (((3, 4, 5), None), ((0, 0, 0), key))
        )
    else:
        common = (x.indptr, x.indices, sampling._hint(x), sampling._HINT_SHIFT, None, None, 1, x.nnz, x.nnz)
        want, got = (
            _ops.sample_positives(*common, begin, 20, 1, *numbers, key=k)[1]
            for begin, numbers, k in ((5, (3, 4), None), (0, (0, 0), key))
        )
    assert torch.equal(want, got)
