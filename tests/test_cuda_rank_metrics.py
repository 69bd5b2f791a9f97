"""The CUDA kernels of metrics, run on the host, against the definitions."""

from __future__ import annotations

import cuda_on_host
import pytest
import torch
from cuda_on_host import planted
from cuda_on_host.testing import FAR, far_tensor, kernels_of

from zerosum_ext import _ops
from zerosum_ext.reference import ranking as _ranking_reference

kernels = kernels_of("rank_metrics")


def counts(sizes, num_items=300, levels=40, seed=0):
    """What a ranking op leaves of users with so many positives each: scores and popularity of few values, so level."""
    generator = torch.Generator().manual_seed(seed)
    offset = torch.tensor([0, *sizes]).cumsum(0)
    greater, equal, candidates = [], [], []
    for n in sizes:
        total = n + int(torch.randint(0, num_items, (1,), generator=generator))
        scores = torch.randint(0, levels, (total,), generator=generator)
        mine = scores[:n]
        greater.append((scores > mine[:, None]).sum(1))
        equal.append((scores == mine[:, None]).sum(1) - 1)
        candidates.append(total)
    popularity = torch.randint(0, 9, (int(offset[-1]),), generator=generator).double()
    return offset, *(torch.cat(x) for x in (greater, equal)), torch.tensor(candidates), popularity


def user_metrics(kernels, offset, greater, equal, candidates, popularity, cutoffs, ties):
    users, count = candidates.numel(), greater.numel()
    nan = lambda *shape: torch.full(shape, torch.nan, dtype=torch.float64)  # noqa: E731
    out = (nan(6, cutoffs.numel(), users), *(nan(users) - 1 for _ in range(4)), nan(count))
    scratch = nan(count), torch.full((count,), -9)
    arguments = (offset, greater, equal, candidates, popularity, cutoffs)
    kernels.user_metrics(*arguments, _ops.TIES[ties], *out, *scratch)
    return out


SIZES = {
    "one": [1],
    "few": [3, 1, 2, 7, 4, 1, 1, 5, 2],
    "around a warp": [31, 32, 33, 64, 65],
    "many users": [1 + i % 5 for i in range(70)],
    "a long one": [1, 700, 2],
    "nobody": [],
}


@pytest.mark.parametrize("ties", _ops.TIES)
@pytest.mark.parametrize("sizes", SIZES)
def test_user_metrics(kernels, sizes, ties):
    arguments = (*counts(SIZES[sizes] or [1]), torch.tensor([1, 5, 20, 1000]))
    if not SIZES[sizes]:
        arguments = (torch.zeros(1, dtype=torch.int64), *(t[:0] for t in arguments[1:5]), arguments[5])
        assert user_metrics(kernels, *arguments, ties)[0].shape == (6, 4, 0)
        return
    got = user_metrics(kernels, *arguments, ties)
    want = _ranking_reference.user_metrics(*arguments, ties)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("schedule", cuda_on_host.SCHEDULES)
def test_the_same_bits_in_any_order_of_threads(kernels, schedule):
    arguments = (*counts(SIZES["around a warp"]), torch.tensor([5, 20]), "average")
    want = user_metrics(kernels, *arguments)
    with cuda_on_host.schedule(schedule):
        got = user_metrics(kernels, *arguments)
    assert all(torch.equal(g.nan_to_num(-7), w.nan_to_num(-7)) for g, w in zip(got, want, strict=True))


def test_a_user_without_positives_has_no_values(kernels):
    offset, *rest = counts([2, 3])
    offset = torch.tensor([0, 2, 2, 5])
    rest[2] = torch.tensor([40, 50, 60])
    at_k, *_, top, _ = user_metrics(kernels, offset, *rest, torch.tensor([5]), "average")
    assert top.isnan().tolist() == [False, True, False]
    assert at_k[:, 0, 1].isnan().tolist() == [False, True, False, True, False, True]
    assert not at_k[:, 0, [0, 2]].isnan().any()


@pytest.mark.parametrize(("users", "width"), [(1, 1), (37, 10), (300, 25), (5, 0), (0, 10)])
@pytest.mark.parametrize("kinds", [0, 1, 3])
def test_list_metrics(kernels, users, width, kinds):
    generator = torch.Generator().manual_seed(users)
    num_items = 31
    lists = torch.randint(0, num_items, (users, width), generator=generator)
    filled = torch.randint(0, width + 1, (users,), generator=generator)
    lists[torch.arange(width) >= filled[:, None]] = -1
    values = torch.randn(kinds, num_items, generator=generator, dtype=torch.float64)
    cutoffs = torch.tensor([1, 10, 40])
    sums = torch.full((kinds, 3, users), torch.nan, dtype=torch.float64)
    lengths, exposure = torch.full((3, users), -9), torch.zeros(3, num_items, dtype=torch.int64)
    kernels.list_metrics(lists, values, cutoffs, sums, lengths, exposure)
    want = _ranking_reference.list_metrics(lists, values, cutoffs)
    torch.testing.assert_close(sums, want[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(lengths, want[1])
    assert torch.equal(exposure, want[2])


def test_lists_that_32_bits_do_not_reach(kernels, tmp_path):
    """The second list begins behind 2^31 places of the first one."""
    lists = far_tensor(tmp_path, torch.int64, 2 * FAR).view(2, FAR)
    lists[:, :10] = -1
    lists[0, :2], lists[1, :3] = torch.tensor([4, 2]), torch.tensor([1, 0, 3])
    values, cutoffs = torch.randn(1, 5, dtype=torch.float64), torch.tensor([2, 10])
    sums, lengths = torch.full((1, 2, 2), torch.nan, dtype=torch.float64), torch.full((2, 2), -9)
    exposure = torch.zeros(2, 5, dtype=torch.int64)
    kernels.list_metrics(lists, values, cutoffs, sums, lengths, exposure)
    want = _ranking_reference.list_metrics(lists[:, :10], values, cutoffs)
    torch.testing.assert_close(sums, want[0])
    assert torch.equal(lengths, want[1])
    assert torch.equal(exposure, want[2])


# ------------------------------------------------------------------------------------------------------ planted bugs

BUGS = [
    planted.Bug("level positives share a number", "other == above && j <= i", "other == above"),
    planted.Bug("a positive is above itself", "before += other < above;", "before += other <= above;"),
    planted.Bug("level negatives are below", "right + level / 2", "right"),
    planted.Bug("positives among the level are negatives", "all - m", "all"),
    planted.Bug(
        "a place is that of the first of its level",
        "static_cast<double>(before) + (m + 1) / 2",
        "static_cast<double>(before) + 1",
    ),
    planted.Bug(
        "the last place that counts does not",
        "rank <= static_cast<double>(cutoff)",
        "rank < static_cast<double>(cutoff)",
    ),
    planted.Bug("the ideal has a place for each cut-off", "n < cutoff ? n : cutoff", "cutoff"),
    planted.Bug("precision is that of the first", "static_cast<double>(a.number[first + i]) / rank", "1 / rank"),
    planted.Bug("a gain is one lane's", "warp_combine(gain, kWarp, Add{})", "gain"),
    planted.Bug("an item is shown twice", "1ull", "2ull"),
    planted.Bug("the most popular is the last of the list", "before + nth == 1", "before + nth == n"),
]
wrong = planted.kernels_of("rank_metrics", "cuda/rank_metrics.cuh", BUGS, kind="plain")


def battery(kernels):
    for ties in _ops.TIES:
        for sizes in ("few", "around a warp"):
            test_user_metrics(kernels, sizes, ties)
    test_a_user_without_positives_has_no_values(kernels)
    test_list_metrics(kernels, 37, 10, 3)


@pytest.mark.slow
@planted.each_of(BUGS)
def test_planted_bugs_are_noticed(wrong, bug):
    planted.look_for(bug, BUGS, wrong, battery)


small_grid = planted.small_grid_of("rank_metrics", kMetricBlocks=2)


@pytest.mark.slow
def test_more_work_than_a_grid_holds(small_grid):
    """With a grid of two blocks, which no GPU has: each takes several turns."""
    battery(small_grid)
    test_user_metrics(small_grid, "many users", "average")
    test_list_metrics(small_grid, 300, 25, 3)
