"""The ranking ops against counting by comparison, with every tie exact."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import zerosum_ext as zx
from zerosum_ext import _ops
from zerosum_ext.reference import ranking as _ranking_reference

NAMES = ("scores", "greater", "equal", "candidates", "top_items", "failed")


def csr(mask):
    """(indptr, indices) of a boolean matrix."""
    mask = torch.as_tensor(mask)
    indptr = torch.cat((torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)))
    return indptr, mask.nonzero()[:, 1].to(torch.int32)


def where(positives, excluded, users=None):
    """The arguments of an op that follow the scores, but for k."""
    users = torch.arange(len(positives)) if users is None else users
    indptr, indices = csr(positives)
    offset = torch.cat((torch.zeros(1, dtype=torch.int64), indptr.diff()[users].cumsum(0)))
    return users, offset, indptr, indices, *((None, None) if excluded is None else csr(excluded))


def brute_force(scores, positives, excluded, k):
    """The results of an op, counted by comparing every candidate with every positive."""
    scores, positives, excluded = (np.asarray(x) for x in (scores, positives, excluded))
    out = {name: [] for name in NAMES[:-1]}
    for u in range(len(scores)):
        candidates = np.flatnonzero(~excluded[u] | positives[u])
        s = scores[u, candidates]
        target = scores[u, np.flatnonzero(positives[u])]
        out["scores"] += target.tolist()
        out["greater"] += (s > target[:, None]).sum(1).tolist()
        out["equal"] += ((s == target[:, None]).sum(1) - 1).tolist()
        out["candidates"].append(len(candidates))
        order = candidates[np.lexsort((candidates, -s))]
        top = order[scores[u, order] > -np.inf][:k].tolist()
        out["top_items"].append(top + [-1] * (k - len(top)))
    return out


def check(got, expected):
    for name, tensor in zip(NAMES[:-1], got, strict=False):
        np.testing.assert_array_equal(tensor.numpy(), np.array(expected[name]).reshape(tensor.shape), name)
    assert int(got[5]) == -1


def masks(rng, num_users, num_items, held_out, known):
    positives, excluded = rng.random((num_users, num_items)) < held_out, rng.random((num_users, num_items)) < known
    positives[0] = True
    excluded[0] = True
    if num_users > 2:
        positives[1], excluded[2] = False, True
    return positives, excluded


# One tile and several, fewer levels than are counted one by one and more, whole and broken panels.
@pytest.mark.parametrize(("num_users", "num_items", "held_out"), [(1, 1, 0.5), (13, 70, 0.1), (61, 4500, 0.02)])
@pytest.mark.parametrize("dim", [1, 6, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_bias", [False, True])
def test_rank_factors(num_users, num_items, held_out, dim, dtype, with_bias):
    rng = np.random.default_rng(dim)
    user, item = (torch.from_numpy(rng.normal(size=(n, dim))).to(dtype) for n in (num_users, num_items))
    item[num_items // 2] = item[0]  # a tie of inexact scores
    bias = torch.from_numpy(rng.normal(size=num_items)).to(dtype) if with_bias else None
    if bias is not None:
        bias[num_items // 2] = bias[0]
    factors = (user, item, bias)
    # With every item held out the op tells the scores it sees; they are those of the matrix product.
    everything = torch.ones(num_users, num_items, dtype=torch.bool)
    scores = _ops.rank_factors(*factors, *where(everything, None), 0)[0].reshape(num_users, num_items)
    expected = user @ item.T if bias is None else user @ item.T + bias
    torch.testing.assert_close(scores, expected, atol=2e-5 if dtype == torch.float32 else 1e-13, rtol=0)
    positives, excluded = masks(rng, num_users, num_items, held_out, 0.2)
    got = _ops.rank_factors(*factors, *where(positives, excluded), 20)
    check(got, brute_force(scores, positives, excluded, 20))
    given = _ops.rank_scores(scores, *where(positives, excluded), 20)
    assert all(torch.equal(a, b) for a, b in zip(got, given, strict=True))


KINDS = ["random", "few values", "constant", "infinite", "outliers", "tiny", "descending", "ascending"]


def scores_of(kind, rng, num_users, num_items):
    scores = rng.normal(size=(num_users, num_items)).astype(np.float32)
    if kind == "few values":
        scores = rng.integers(0, 3, scores.shape).astype(np.float32)
    elif kind == "constant":
        scores[:] = -2
    elif kind == "infinite":
        scores[rng.random(scores.shape) < 0.3] = -np.inf
        scores[rng.random(scores.shape) < 0.2] = np.inf
    elif kind == "outliers":  # all levels but two in one cell of the table, whose range overflows
        scores[:, ::50] = 3e38
        scores[:, 1::50] = -3e38
    elif kind == "tiny":
        scores = (scores * 1e-44).astype(np.float32)
    elif kind == "descending":
        scores = -np.sort(-scores, axis=1)
    elif kind == "ascending":
        scores = np.sort(scores, axis=1)
    return scores


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [0, 1, 20, 3000])
@pytest.mark.parametrize("op", [_ops.rank_scores, _ranking_reference.rank_scores])
def test_rank_scores(kind, k, op):
    rng = np.random.default_rng(3)
    scores = scores_of(kind, rng, 7, 5000)
    positives, excluded = masks(rng, 7, 5000, 0.01, 0.1)
    positives[3], excluded[3] = rng.random(5000) < 0.3, False  # many levels
    got = op(torch.from_numpy(scores), *where(positives, excluded), k)
    check(got, brute_force(scores, positives, excluded, k))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_any_layout_and_dtype(dtype):
    rng = np.random.default_rng(4)
    positives, excluded = masks(rng, 5, 300, 0.1, 0.1)
    wide = torch.from_numpy(rng.normal(size=(300, 10))).to(dtype)
    scores = wide.T[::2]
    got = _ops.rank_scores(scores, *where(positives, excluded), 10)
    check(got, brute_force(scores.double(), positives, excluded, 10))
    assert got[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.threads
def test_a_user_does_not_depend_on_others_nor_on_threads():
    rng = np.random.default_rng(5)
    factors = *(torch.from_numpy(rng.normal(size=(n, 10))).float() for n in (200, 5000)), None
    positives, excluded = masks(rng, 200, 5000, 0.01, 0.1)
    threads = torch.get_num_threads()
    whole = _ops.rank_factors(*factors, *where(positives, excluded), 20)
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        again = _ops.rank_factors(*factors, *where(positives, excluded), 20)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    users = torch.from_numpy(rng.permutation(200)[:71])
    some = _ops.rank_factors(*factors, *where(positives, excluded, users), 20)
    assert torch.equal(some[3], whole[3][users])
    assert torch.equal(some[4], whole[4][users])
    indptr, _ = csr(positives)
    for name in range(3):
        expected = torch.cat([whole[name][indptr[u] : indptr[u + 1]] for u in users])
        assert torch.equal(some[name], expected), NAMES[name]


def test_tables_larger_than_a_slab():
    """Items are packed 64 MiB at a time: counts and lists go on from slab to slab."""
    rng = np.random.default_rng(6)
    dim, num_items = 4096, 4200
    factors = torch.zeros(40, dim), torch.zeros(num_items, dim), None
    factors[0][:, :3] = torch.from_numpy(rng.integers(-2, 3, (40, 3))).float()
    factors[1][:, :3] = torch.from_numpy(rng.integers(-2, 3, (num_items, 3))).float()
    positives, excluded = masks(rng, 40, num_items, 0.02, 0.1)
    for k in (0, 20):
        got = _ops.rank_factors(*factors, *where(positives, excluded), k)
        check(got, brute_force(factors[0] @ factors[1].T, positives, excluded, k))


@pytest.mark.parametrize("op", [_ops.rank_scores, _ranking_reference.rank_scores])
def test_nan_names_the_first_row(op):
    rng = np.random.default_rng(7)
    scores = torch.from_numpy(scores_of("random", rng, 120, 90))
    positives, excluded = masks(rng, 120, 90, 0.1, 0.1)
    positives[70, 5], excluded[70, 5] = False, True
    scores[70, 5] = float("nan")  # no candidate
    assert int(op(scores, *where(positives, excluded), 5)[5]) == -1
    for row, item in ((100, int(np.flatnonzero(positives[100])[0])), (60, 89), (55, 0)):
        excluded[row, item] = False
        scores[row, item] = float("nan")
        assert int(op(scores, *where(positives, excluded), 5)[5]) == row


def test_nothing_to_rank():
    for num_users, num_items in ((0, 5), (4, 0), (4, 5)):
        none = torch.zeros(num_users, num_items, dtype=torch.bool)
        for op, scores in (
            (_ops.rank_scores, (torch.zeros(num_users, num_items),)),
            (_ops.rank_factors, (torch.zeros(num_users, 3), torch.zeros(num_items, 3), None)),
        ):
            got = op(*scores, *where(none, none), 3)
            assert got[0].numel() == 0
            assert got[3].tolist() == [num_items] * num_users
            assert got[4].tolist() == [[0, 1, 2] if num_items else [-1] * 3] * num_users
            assert int(got[5]) == -1


def test_the_reference_ranks_factors_alike():
    """On numbers whose products are exact both see the same scores."""
    rng = np.random.default_rng(8)
    factors = [torch.from_numpy(rng.integers(-3, 4, shape)).float() for shape in ((50, 5), (400, 5), (400,))]
    positives, excluded = masks(rng, 50, 400, 0.1, 0.2)
    for bias in (None, factors[2]):
        arguments = (*factors[:2], bias, *where(positives, excluded), 20)
        got, expected = _ops.rank_factors(*arguments), _ranking_reference.rank_factors(*arguments)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


COARSE = [
    "random",
    "near ties",
    "few values",
    "trained",
    "spread",
    "one coordinate",
    "zero rows",
    "zero items",
    "bias",
    "large bias",
]


def factors_of(kind, rng, num_users, num_items, dim):
    """Tables whose scores a first sieve of rounded numbers might take for others than they are."""
    user, item, bias = rng.normal(size=(num_users, dim)), rng.normal(size=(num_items, dim)), None
    if kind == "near ties":  # scores that differ by a last digit or not at all
        item = item[rng.integers(0, 40, num_items)]
        item[:, -1] += rng.integers(-2, 3, num_items) * 1e-7
    elif kind == "few values":
        user, item = rng.integers(-1, 2, user.shape), rng.integers(-1, 2, item.shape)
    elif kind == "trained":  # a few strong directions, popular items on top
        user = np.abs(user) * (np.arange(dim) < 4) + 0.01 * user
        item = item * rng.pareto(1.5, (num_items, 1))
    elif kind == "spread":  # norms from 1e-9 to 1e9
        user = user * 10.0 ** rng.integers(-9, 10, (num_users, 1))
        item = item * 10.0 ** rng.integers(-9, 10, (num_items, 1))
    elif kind == "one coordinate":
        item *= np.arange(dim) == dim - 1
        user[::2] *= np.arange(dim) == dim - 1
    elif kind == "zero rows":
        user[::3], item[rng.random(num_items) < 0.5] = 0, 0
    elif kind == "zero items":
        user, item = user * 1e14, item * 0
    elif kind in ("bias", "large bias"):
        bias = rng.normal(size=num_items) * (1e6 if kind == "large bias" else 1)
    return tuple(None if x is None else torch.from_numpy(np.asarray(x)).float() for x in (user, item, bias))


@pytest.mark.parametrize("kind", COARSE)
@pytest.mark.parametrize(("num_items", "dim"), [(40, 16), (700, 65), (4096, 64), (9001, 17)])
@pytest.mark.parametrize("k", [0, 1, 20, 300])
def test_no_score_is_taken_for_another(kind, num_items, dim, k):
    rng = np.random.default_rng([COARSE.index(kind), num_items])
    num_users = 40
    factors = factors_of(kind, rng, num_users, num_items, dim)
    everything = torch.ones(num_users, num_items, dtype=torch.bool)
    scores = _ops.rank_factors(*factors, *where(everything, None), 0)[0].reshape(num_users, num_items)
    positives, excluded = masks(rng, num_users, num_items, 0.01, 0.1)
    positives[3:7] = rng.random((4, num_items)) < 0.4
    got = _ops.rank_factors(*factors, *where(positives, excluded), k)
    check(got, brute_force(scores, positives, excluded, k))
    given = _ops.rank_scores(scores, *where(positives, excluded), k)
    assert all(torch.equal(a, b) for a, b in zip(got, given, strict=True))


@pytest.mark.parametrize("kind", COARSE)
@pytest.mark.parametrize(("num_items", "dim"), [(700, 65), (9001, 17), (4200, 4096)])
@pytest.mark.parametrize("k", [1, 20])
def test_what_lies_beyond_the_list_is_known_to(kind, num_items, dim, k):
    rng = np.random.default_rng([COARSE.index(kind), num_items])
    positives, excluded = masks(rng, 40, num_items, 0.01, 0.1)
    arguments = (*factors_of(kind, rng, 40, num_items, dim), *where(positives, excluded), k)
    whole, part = _ops.rank_factors(*arguments), _ops.rank_factors(*arguments, top_only=True)
    for index in (0, 3, 4, 5):
        assert torch.equal(whole[index], part[index])
    inside = whole[1] < k
    assert torch.equal(whole[1][inside], part[1][inside])
    assert torch.equal(whole[2][inside], part[2][inside])
    assert bool((part[1][~inside] >= k).all())


@pytest.mark.parametrize("dim", [16, 64, 4096, 4097])
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-16, 1e14, 1e17])
def test_factors_of_any_size(dim, size):
    """Where products are near the ends of float32 as well."""
    rng = np.random.default_rng(dim)
    user, item, _ = factors_of("random", rng, 40, 600, dim)
    factors = user * size, item * size, None
    everything = torch.ones(40, 600, dtype=torch.bool)
    scores = _ops.rank_factors(*factors, *where(everything, None), 0)[0].reshape(40, 600)
    positives, excluded = masks(rng, 40, 600, 0.05, 0.1)
    check(_ops.rank_factors(*factors, *where(positives, excluded), 10), brute_force(scores, positives, excluded, 10))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where_bad", ["user", "item", "bias"])
def test_factors_that_give_nan(bad, where_bad):
    rng = np.random.default_rng(9)
    user, item, bias = factors_of("bias", rng, 50, 300, 32)
    positives, excluded = masks(rng, 50, 300, 0.05, 0.1)
    positives[:, 7], positives[40] = False, False
    excluded[:, 7], excluded[40] = True, False
    {"user": user[40], "item": item[7], "bias": bias[7:8]}[where_bad][:] = torch.tensor([bad])
    user[40, ::2] *= -1 if where_bad == "user" else 1
    got = _ops.rank_factors(user, item, bias, *where(positives, excluded), 5)
    # Item 7 is a candidate of user 40 alone, and to the user's infinities of both signs every sum is NaN.
    score = torch.cumsum(user[40] * item[7], 0)[-1] + bias[7]
    assert int(got[5]) == (40 if bool(score.isnan()) else -1)


def digest():
    """Of what the op gives for all of the above."""
    out = hashlib.sha256()
    for kind in COARSE:
        rng = np.random.default_rng(COARSE.index(kind))
        for num_items, dim in ((700, 65), (5000, 64)):
            factors = factors_of(kind, rng, 40, num_items, dim)
            for tensor in _ops.rank_factors(*factors, *where(*masks(rng, 40, num_items, 0.02, 0.1)), 20):
                out.update((tensor + 0).numpy().tobytes())  # + 0: -0 and 0 are one score
    return out.hexdigest()


@pytest.mark.skipif(zx.build_info()["isa"] != "avx512", reason="AVX-512, which is compared with AVX2, is not in use")
def test_instruction_sets_with_fused_multiplication_give_the_same_bits():
    run = subprocess.run(
        [sys.executable, "-c", "import test_ranking; print(test_ranking.digest())"],
        env={**os.environ, "ZEROSUM_EXT_ISA": "avx2", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip() == digest(), run.stderr[-3000:]


@pytest.mark.skipif(os.environ.get("ZEROSUM_EXT_ISA") is not None, reason="this is the run for one instruction set")
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_other_instruction_sets(isa):
    """The same tests with narrower registers, where the processor has better."""
    if torch.ops.zerosum_ext.cpu_isa() == isa:
        pytest.skip(f"all tests here run with {isa}")
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            __file__,
            "-k",
            "not nan and not nothing and not taken and not any_size",  # the last two are of AVX-512 alone
        ],
        # One thread: beside other processes threads that wait for each other take many times as long.
        env={**os.environ, "ZEROSUM_EXT_ISA": isa, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ties", ["average", "pessimistic", "optimistic"])
def test_user_metrics(kind, ties):
    rng = np.random.default_rng(9)
    scores = torch.from_numpy(scores_of(kind, rng, 60, 700))
    positives, excluded = masks(rng, 60, 700, 0.02, 0.3)
    positives[np.arange(60), rng.integers(700, size=60)] = True
    positives[3] = rng.random(700) < 0.6  # more than are placed by comparing each with all
    arguments = where(positives, excluded)
    _, greater, equal, candidates, lists, _ = _ops.rank_scores(scores, *arguments, 10)
    popularity = torch.from_numpy(rng.integers(0, 9, 700)).double()
    cutoffs = torch.tensor([1, 5, 10, 1000])
    counts = (arguments[1], greater, equal, candidates, popularity[arguments[3].long()], cutoffs, ties)
    got, expected = _ops.user_metrics(*counts), _ranking_reference.user_metrics(*counts)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)
    values = torch.from_numpy(rng.normal(size=(3, 700)))
    got, expected = (f(lists, values, cutoffs) for f in (_ops.list_metrics, _ranking_reference.list_metrics))
    torch.testing.assert_close(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    assert torch.equal(got[2], expected[2])
