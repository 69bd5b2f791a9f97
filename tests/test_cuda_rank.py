"""The CUDA kernel of rankings, run on the host: the integers of the definition."""

from __future__ import annotations

import cuda_on_host
import pytest
import torch
from cuda_on_host.testing import kernels_of

from zerosum_ext import _ops
from zerosum_ext.reference import ranking as _ranking_reference

kernels = kernels_of("rank")


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


def run(kernels, scores, users, offset, *matrices, k):
    compute = torch.float64 if scores.dtype == torch.float64 else torch.float32
    count, rows = int(offset[-1]), users.numel()
    out = (
        torch.full((count,), torch.nan, dtype=compute),
        *(torch.full((count,), -9) for _ in range(2)),
        torch.full((rows,), -9),
        torch.full((rows, k), -9),
        torch.full((1,), -1),
    )
    kernels.rank_scores(scores, users, offset, *matrices, *out)
    return out


def check(kernels, scores, args, k):
    got = run(kernels, scores, *args, k=k)
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


def test_factors_are_ranked_through_scores_where_only_those_have_a_kernel(monkeypatch):
    args = problem(share=0.05)
    generator = torch.Generator().manual_seed(5)
    # Whole numbers: the scores are exact, however the product is cut up.
    factors = tuple(torch.randint(-9, 9, (n, 8), generator=generator).float() for n in (9, 301))
    want = _ranking_reference.rank_factors(*factors, None, *args, 5)
    monkeypatch.setitem(_ops.KERNELS, "cpu", _ops.KERNELS["cpu"] & {"rank_scores"})
    monkeypatch.setattr(_ranking_reference, "BLOCK_ELEMENTS", 4 * 301)
    for g, w in zip(_ops.rank_factors(*factors, None, *args, 5), want, strict=True):
        assert torch.equal(g, w)
