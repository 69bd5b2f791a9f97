"""sample_negatives: exact, never a positive, the same bits everywhere.

Statistical tests have fixed seeds and fail below p = 1e-4.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from zerosum_ext import Interactions, _ops, hardest_negatives, in_batch_mask, sample_negatives
from zerosum_ext.data import sampling
from zerosum_ext.reference import sampling as reference

NUM_ITEMS = 60
compiled = pytest.mark.skipif(not _ops.has_op("sample_negatives", torch.device("cpu")), reason="no compiled kernels")


def matrix_of(rows: list[list[int]], num_items: int = NUM_ITEMS) -> Interactions:
    users = [u for u, row in enumerate(rows) for _ in row]
    return Interactions.from_arrays(users, [i for row in rows for i in row], shape=(len(rows), num_items))


@pytest.fixture(scope="module")
def skewed() -> Interactions:
    """Rows of every kind: empty, one item, first or last ones, half, almost full, full but one."""
    rng = np.random.default_rng(0)
    return matrix_of(
        [
            [],
            [0],
            [NUM_ITEMS - 1],
            list(range(20)),
            list(range(40, 60)),
            sorted(rng.choice(NUM_ITEMS, 30, replace=False)),
            sorted(rng.choice(NUM_ITEMS, 31, replace=False)),
            list(range(0, 60, 2)),
            [i for i in range(60) if i not in (3, 17, 58)],
            list(range(59)),
        ]
    )


def row(interactions: Interactions, user: int) -> set[int]:
    return set(interactions.indices[interactions.indptr[user] : interactions.indptr[user + 1]].tolist())


OPTIONS = {
    "uniform": {},
    "popularity": {"strategy": "popularity"},
    "popularity^.5": {"strategy": "popularity", "alpha": 0.5},
    "popularity^0": {"strategy": "popularity", "alpha": 0.0},
    "popularity^-1": {"strategy": "popularity", "alpha": -1.0},
    "candidates": {"strategy": "candidates", "candidates": [59, 3, 17, 3, 58, 25, 26, 27, 40]},
}


def weights_of(interactions: Interactions, options: dict) -> np.ndarray:
    if options.get("strategy") == "candidates":
        return np.isin(np.arange(interactions.num_items), options["candidates"]).astype(float)
    if options.get("strategy") == "popularity":
        popularity = interactions.popularity.numpy().astype(float)
        with np.errstate(divide="ignore"):
            w = popularity ** options.get("alpha", 1.0)
        return np.where(popularity > 0, w, 1.0 if options.get("alpha") == 0 else 0.0)
    return np.ones(interactions.num_items)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("user", range(10))
def test_exact_by_chi_square(skewed, name, user):
    weights = weights_of(skewed, OPTIONS[name])
    weights[list(row(skewed, user))] = 0
    n = 40_000
    got = sample_negatives(skewed, torch.full((n,), user), seed=3, **OPTIONS[name])
    assert got.shape == (n, 1)
    assert got.dtype == torch.int64
    counts = np.bincount(got[:, 0], minlength=NUM_ITEMS)
    assert counts[weights == 0].sum() == 0  # above all: never a positive
    if (weights > 0).sum() == 1:
        return
    expected = weights / weights.sum() * n
    assert stats.chisquare(counts[weights > 0], expected[weights > 0]).pvalue > 1e-4


def test_second_try_and_complement_are_uniform_too():
    """The reference, with its tries cut to one block: what is left must not depend on how far a sample has to go."""
    data = matrix_of([list(range(30))])
    before = reference.REJECTION_BLOCKS
    try:
        reference.REJECTION_BLOCKS = 1  # a quarter of the draws come from the complement
        got, _ = reference.sample_negatives(
            torch.zeros(30_000, dtype=torch.int64), data.indptr, data.indices, None, None, None, 60, 1, 5, 0, 0, True
        )
    finally:
        reference.REJECTION_BLOCKS = before
    assert stats.chisquare(np.bincount(got[:, 0], minlength=60)[30:]).pvalue > 1e-4


@pytest.mark.parametrize("name", ["uniform", "popularity", "candidates"])
def test_without_replacement(skewed, name):
    """Distinct, and jointly distributed as successive draws: checked on all ordered pairs of a user with few items."""
    options = OPTIONS[name]
    user = 8 if name != "candidates" else 5  # user 8 has the negatives 3, 17, 58
    weights = weights_of(skewed, options)
    weights[list(row(skewed, user))] = 0
    items = np.flatnonzero(weights)
    n = 20_000
    got = sample_negatives(skewed, [user] * n, 2, seed=1, replacement=False, **options).numpy()
    p = weights / weights.sum()
    pairs = {(a, b): p[a] * weights[b] / (weights.sum() - weights[a]) for a in items for b in items if a != b}
    counts = dict.fromkeys(pairs, 0)
    for a, b in got.tolist():
        counts[a, b] += 1  # KeyError: a positive, or twice the same
    assert stats.chisquare(list(counts.values()), n * np.array(list(pairs.values()))).pvalue > 1e-4


def test_without_replacement_can_use_a_row_up(skewed):
    for user in range(10):
        left = NUM_ITEMS - len(row(skewed, user))
        got = sample_negatives(skewed, [user] * 5, left, replacement=False)
        assert all(set(r) == set(range(NUM_ITEMS)) - row(skewed, user) for r in got.tolist())
        with pytest.raises(ValueError, match=rf"user {user} \(position 0\) has {left} of 60 .* {left + 1} distinct"):
            sample_negatives(skewed, [user], left + 1, replacement=False)


@compiled
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_compiled_is_the_reference_bit_by_bit(skewed, name, replacement, index):
    chosen = sampling.NegativeSource.of(
        skewed,
        OPTIONS[name].get("strategy", "uniform"),
        None,
        OPTIONS[name].get("alpha", 1.0),
        OPTIONS[name].get("candidates"),
        replacement,
    )
    users = torch.from_numpy(np.random.default_rng(1).integers(0, 9, 700))
    indices = skewed.indices.to(index)
    common = (chosen.slots, chosen.masses, NUM_ITEMS, 3, -(2**63) + 12345, 2**32 - 1, 2**40 + 7, replacement)
    expected = reference.sample_negatives(users, skewed.indptr, indices, None, *common)
    for lookup in (None, _ops.row_filter(skewed.indptr, indices, NUM_ITEMS)):
        got = torch.ops.zerosum_ext.sample_negatives(users, skewed.indptr, indices, lookup, *common)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


@compiled
@pytest.mark.parametrize("name", ["uniform", "popularity", "candidates"])
@pytest.mark.parametrize("k", [16, 130])
def test_many_negatives_are_the_reference_bit_by_bit(k, name):
    """Rows with a hashed filter, with a bitmap, and those that are drawn from the complement at once."""
    items, rng = 2000, np.random.default_rng(3)
    rows = [sorted(rng.choice(items, n, replace=False)) for n in (0, 1, 40, 124, 126, 700, 1000, 1001, 1850)]
    x = matrix_of([list(map(int, row)) for row in rows], items)
    options = OPTIONS[name]
    chosen = sampling.NegativeSource.of(
        x,
        options.get("strategy", "uniform"),
        None,
        1.0,
        range(0, items, 3) if name == "candidates" else None,
        True,
    )
    users = torch.arange(9)
    common = (chosen.slots, chosen.masses, items, k, 5, 6, 2**32 - 3, True)
    expected = reference.sample_negatives(users, x.indptr, x.indices, None, *common)
    lookup = _ops.row_filter(x.indptr, x.indices, items)
    got = torch.ops.zerosum_ext.sample_negatives(users, x.indptr, x.indices, lookup, *common)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


@compiled
@pytest.mark.parametrize("name", ["uniform", "popularity", "candidates"])
@pytest.mark.parametrize("k", [1, 15, 16, 200])
def test_negatives_of_an_empty_matrix_are_the_reference_bit_by_bit(k, name):
    """There no filter is asked. Lists that samples share are drawn so."""
    items = 300
    weights = Interactions.from_arrays(np.arange(items), np.arange(items) // 2, shape=(items, items))
    candidates = range(1, items, 7) if name == "candidates" else None
    chosen = sampling.NegativeSource.of(weights, OPTIONS[name].get("strategy", "uniform"), None, 1.0, candidates, True)
    users, indptr, indices = (
        torch.zeros(131, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(0).int(),
    )
    common = (chosen.slots, chosen.masses, items, k, 5, 6, 2**62, True)
    expected = reference.sample_negatives(users, indptr, indices, None, *common)
    for lookup in (None, _ops.row_filter(indptr, indices, items)):
        got = torch.ops.zerosum_ext.sample_negatives(users, indptr, indices, lookup, *common)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


@compiled
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_compiled_is_the_reference_on_any_matrix(data):
    num_items = data.draw(st.integers(1, 300))
    num_users = data.draw(st.integers(1, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    dense = rng.random((num_users, num_items)) < rng.random(num_users)[:, None] ** 2
    x = Interactions.from_scipy(sp.csr_matrix(dense))
    users = torch.from_numpy(rng.integers(-1, num_users + 1, 150))
    k = data.draw(st.integers(0, 5))
    replacement = data.draw(st.booleans())
    common = (None, None, num_items, k, 1, 2, 3, replacement)
    expected = reference.sample_negatives(users, x.indptr, x.indices, None, *common)
    lookup = _ops.row_filter(x.indptr, x.indices, num_items)
    got = torch.ops.zerosum_ext.sample_negatives(users, x.indptr, x.indices, lookup, *common)
    assert int(got[1]) == int(expected[1])
    assert torch.equal(got[0], expected[0])


def test_golden():
    """Frozen: a change here changes every user's samples."""
    x = matrix_of([[0, 1, 2], list(range(50)), [7], [5, 59]])
    users = [0, 1, 2, 3, 0, 1, 2, 3]
    assert sample_negatives(x, users, seed=42, epoch=1).flatten().tolist() == GOLDEN["uniform"]
    assert (
        sample_negatives(x, users, seed=42, epoch=1, strategy="popularity").flatten().tolist() == GOLDEN["popularity"]
    )
    got = sample_negatives(x, users, seed=42, epoch=1, strategy="candidates", candidates=[1, 8, 55, 56])
    assert got.flatten().tolist() == GOLDEN["candidates"]
    got = sample_negatives(x, [1, 0], 4, seed=2**64 - 1, epoch=2**32 - 1, offset=2**33, replacement=False)
    assert got.tolist() == GOLDEN["distinct"]


GOLDEN: dict[str, list] = {
    "uniform": [7, 53, 20, 40, 34, 57, 27, 19],
    "popularity": [9, 59, 24, 12, 34, 59, 25, 43],
    "candidates": [55, 55, 56, 1, 55, 55, 55, 56],
    "distinct": [[51, 58, 53, 54], [52, 38, 35, 42]],
}


def test_samples_do_not_depend_on_batches(skewed):
    users = torch.from_numpy(np.random.default_rng(2).integers(0, 10, 10_000))
    whole = sample_negatives(skewed, users, 2, seed=9)
    for size in (1, 63, 64, 65, 4096, 7777):
        if size == 1:
            parts = [sample_negatives(skewed, users[i : i + 1], 2, seed=9, offset=i) for i in range(100)]
            assert torch.equal(torch.cat(parts), whole[:100])
        else:
            parts = [sample_negatives(skewed, users[i : i + size], 2, seed=9, offset=i) for i in range(0, 10_000, size)]
            assert torch.equal(torch.cat(parts), whole)


@pytest.mark.threads
def test_samples_do_not_depend_on_threads(skewed):
    users = torch.from_numpy(np.random.default_rng(2).integers(0, 10, 50_000))
    threads = torch.get_num_threads()
    got = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            got.append(sample_negatives(skewed, users, 2))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*got)


@compiled
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_samples_do_not_depend_on_the_instruction_set(isa):
    code = (
        "import torch, zerosum_ext as zx\n"
        "x = zx.Interactions.from_arrays([0, 0, 1, 2, 2, 2], [0, 5, 9, 1, 2, 3], shape=(3, 12))\n"
        "n = zx.sample_negatives(x, torch.arange(999) % 3, 3, seed=4)\n"
        "m = zx.sample_negatives(x, torch.arange(99) % 3, 21, seed=5, epoch=2**31)\n"
        "t = [b for b in zx.TripletLoader(x, 5, draws=3, positives=2)]\n"
        "print(n.flatten().tolist(), m.flatten().tolist(), [v.tolist() for b in t for v in b])\n"
    )
    out = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **extra},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for extra in ({}, {"ZEROSUM_EXT_ISA": isa})
    ]
    assert out[0] == out[1]


def test_seeds_and_epochs_give_unrelated_samples(skewed):
    a, b, c = (
        sample_negatives(skewed, [1] * 5000, seed=s, epoch=e).flatten().numpy() for s, e in ((0, 0), (1, 0), (0, 1))
    )
    for x, y in ((a, b), (a, c), (b, c)):
        assert abs((x == y).mean() - 1 / 59) < 0.01


def test_negatives_of_one_sample_are_independent(skewed):
    got = sample_negatives(skewed, [9 - 1] * 20_000, 2).numpy()  # negatives 3, 17, 58
    table = np.array([[((got[:, 0] == a) & (got[:, 1] == b)).sum() for b in (3, 17, 58)] for a in (3, 17, 58)])
    assert table.sum() == 20_000
    assert stats.chisquare(table.ravel()).pvalue > 1e-4


def test_exclude_adds_to_what_is_avoided(skewed):
    held_out = matrix_of([[5], [5], [], [], [], [], [], [], [3, 17], []])
    users = torch.arange(9).repeat(300)
    got = sample_negatives(skewed, users, exclude=held_out).flatten().tolist()
    for user, item in zip(users.tolist(), got, strict=True):
        assert item not in row(skewed, user) | row(held_out, user)
    assert {i for u, i in zip(users.tolist(), got, strict=True) if u == 8} == {58}
    as_union = sample_negatives(skewed, users, exclude=(skewed | held_out)).flatten().tolist()
    assert got == as_union
    assert got == sample_negatives(skewed, users, exclude=held_out.to_scipy()).flatten().tolist()
    without = sample_negatives(skewed, users).flatten().tolist()
    assert {i for u, i in zip(users.tolist(), without, strict=True) if u == 8} == {3, 17, 58}
    with pytest.raises(ValueError, match="exclude: expected shape"):
        sample_negatives(skewed, users, exclude=matrix_of([[1]]))


@pytest.mark.parametrize("k", [1, 3])
def test_users_without_negatives_are_named(k):
    x = matrix_of([[1], list(range(NUM_ITEMS)), [2]])
    with pytest.raises(ValueError, match=r"user 1 \(position 70\) has 0 of 60 items"):
        sample_negatives(x, [0] * 70 + [1, 1, 2], k)
    with pytest.raises(ValueError, match=r"user 0 \(position 1\) has 0 of 60 items .*'candidates'"):
        sample_negatives(x, [2, 0], k, strategy="candidates", candidates=[1])
    with pytest.raises(ValueError, match=r"user 1 .*'popularity'"):
        sample_negatives(x, [1], k, strategy="popularity")


def test_popularity_leaves_out_what_nobody_has():
    x = matrix_of([[0, 1], [1, 2]], 5)  # item 2 is user 0's only negative that anyone has
    assert set(sample_negatives(x, [0] * 200, strategy="popularity").flatten().tolist()) == {2}
    assert set(sample_negatives(x, [0] * 200, strategy="popularity", alpha=0).flatten().tolist()) == {2, 3, 4}
    y = matrix_of([[0, 1], [0]], 5)
    with pytest.raises(ValueError, match="user 0"):
        sample_negatives(y, [0], strategy="popularity")


@pytest.mark.parametrize("num_items", [1, 2, 3, 5, 64, 1000])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 3.0, -1.0])
def test_alias_table_holds_its_integer_weights_exactly(num_items, alpha):
    rng = np.random.default_rng(num_items)
    popularity = np.floor(rng.pareto(0.5, num_items).clip(max=1e9)).astype(np.int64)
    popularity[0] = 3
    size = 1 << (num_items - 1).bit_length()
    integers = sampling._integer_weights(torch.from_numpy(popularity), alpha, size << 31)
    weights = integers.numpy()
    assert weights.sum() == size << 31
    assert ((weights > 0) == ((popularity > 0) | (alpha == 0))).all()
    table = sampling._alias_table(integers, size).numpy().view(np.uint64)
    threshold, alias = (table >> np.uint64(32)).astype(np.int64), (table & np.uint64(0xFFFFFFFF)).astype(np.int64)
    assert threshold.min() >= 0
    assert threshold.max() <= 1 << 31
    held = np.zeros(size, np.int64)
    held += threshold
    np.add.at(held, alias, (1 << 31) - threshold)
    assert (held[:num_items] == weights).all()
    assert (held[num_items:] == 0).all()
    wanted = np.where(popularity > 0, np.maximum(popularity, 1).astype(float) ** alpha, float(alpha == 0))
    wanted *= (size << 31) / wanted.sum()
    assert np.abs(weights - wanted).max() <= 2 + 1e-9 * wanted.max() + num_items


def test_large_numbers():
    """Index arithmetic beyond 32 bits: item numbers, sample numbers and a row that begins past 2**31."""
    items = [0, 1, 2**33, 2**40 - 1]
    x = Interactions.from_arrays([0, 0, 0, 1], [*items[1:], 5], shape=(2, 2**40))
    assert x.indices.dtype == torch.int64
    got = sample_negatives(x, [0, 1] * 500, 2, offset=2**45).flatten()
    assert not set(got.tolist()) & set(items)
    assert got.max() > 2**39
    assert stats.kstest(got.numpy() / 2**40, "uniform").pvalue > 1e-4


@compiled
def test_rows_beyond_two_to_the_31():
    """A matrix of 2**31 + 4 interactions that is never allocated: its first row is a sparse file's hole of zeros."""
    before = 2**31
    path = "/dev/shm" if os.path.isdir("/dev/shm") else None
    if path is None:
        pytest.skip("no memory file system for a sparse file")
    import tempfile

    with tempfile.NamedTemporaryFile(dir=path) as file:
        file.truncate((before + 4) * 4)
        indices = torch.from_file(file.name, shared=True, size=before + 4, dtype=torch.int32)
        indices[before:] = torch.tensor([1, 3, 5, 7], dtype=torch.int32)
        indptr = torch.tensor([0, before, before + 4])
        users = torch.ones(500, dtype=torch.int64)
        args = (None, None, None, 9, 1, 0, 0, 0, True)
        got, failed = torch.ops.zerosum_ext.sample_negatives(users, indptr, indices, *args)
        assert int(failed) == -1
        assert set(got.flatten().tolist()) == {0, 2, 4, 6, 8}
        hint = torch.searchsorted(indptr, torch.arange(0, before + 4, 1 << 20), right=True) - 1
        args = (hint, 20, None, None, 0, before + 4, before + 4, before - 1, 5, 1, 0, 0)
        owners, items = torch.ops.zerosum_ext.sample_positives(indptr, indices, *args)
        assert owners.tolist() == [0, 1, 1, 1, 1]
        assert items.tolist() == [0, 1, 3, 5, 7]


def test_unsorted_and_repeated_indices_are_made_canonical():
    messy = sp.csr_matrix((np.ones(5), [4, 1, 1, 3, 0], [0, 3, 5]), shape=(2, 6))
    clean = matrix_of([[1, 4], [0, 3]], 6)
    users = [0, 1] * 100
    assert torch.equal(sample_negatives(messy, users), sample_negatives(clean, users))


def test_in_batch_mask(skewed):
    users = [0, 3, 5, 8, 9]
    items = [0, 3, 19, 20, 59]
    mask = in_batch_mask(skewed, users, items)
    assert mask.tolist() == [[i not in row(skewed, u) for i in items] for u in users]
    held_out = matrix_of([[3], [], [], [], [], [], [], [], [], []])
    assert in_batch_mask(skewed, users, items, exclude=held_out)[0].tolist() == [True, False, True, True, True]
    assert torch.equal(
        ~reference.has_items(torch.tensor(users), torch.tensor(items), skewed.indptr, skewed.indices, None, NUM_ITEMS),
        mask,
    )
    with pytest.raises(ValueError, match=r"items: expected numbers from 0 to 59, got 60 at position 1"):
        in_batch_mask(skewed, users, [0, 60])


def test_hardest_negatives():
    negatives = torch.tensor([[4, 5, 6], [7, 8, 9]])
    scores = torch.tensor([[0.1, 3.0, 3.0], [2.0, -1.0, 0.0]], requires_grad=True)
    assert hardest_negatives(negatives, scores).tolist() == [5, 7]
    assert hardest_negatives(negatives, scores, 2).tolist() == [[5, 6], [7, 9]]
    with pytest.raises(ValueError, match="k: expected at most 3"):
        hardest_negatives(negatives, scores, 4)
    with pytest.raises(ValueError, match="negatives and scores"):
        hardest_negatives(negatives, scores[:, :2])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"users": [0, 10]}, ValueError, r"users: expected numbers from 0 to 9, got 10 at position 1"),
        ({"users": [-1]}, ValueError, r"users: expected numbers from 0 to 9, got -1 at position 0"),
        ({"users": [0.5]}, TypeError, "users: expected integers"),
        ({"users": [[0]]}, ValueError, "users: expected one dimension"),
        ({"k": 0}, ValueError, "k: expected an integer >= 1, got 0"),
        ({"k": 65537}, ValueError, "k: expected at most 65536"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 2**64}, ValueError, "seed"),
        ({"epoch": 2**32}, ValueError, "epoch"),
        ({"offset": -1}, ValueError, "offset"),
        ({"strategy": "hard"}, ValueError, "strategy: expected one of 'uniform'"),
        ({"strategy": "candidates"}, ValueError, "candidates: expected item numbers"),
        ({"candidates": [1]}, ValueError, "candidates: expected None"),
        ({"strategy": "candidates", "candidates": []}, ValueError, "candidates: expected at least one"),
        ({"strategy": "candidates", "candidates": [60]}, ValueError, "candidates: expected numbers from 0 to 59"),
        ({"strategy": "popularity", "alpha": float("nan")}, ValueError, "alpha"),
        ({"interactions": 3}, TypeError, "interactions"),
    ],
)
def test_bad_arguments_are_named(skewed, change, error, message):
    arguments = {"interactions": skewed, "users": [0], **change}
    with pytest.raises(error, match=message):
        sample_negatives(**arguments)


def test_no_users_and_no_items(skewed):
    assert sample_negatives(skewed, [], 3).shape == (0, 3)
    with pytest.raises(ValueError, match="expected at least one item"):
        sample_negatives(sp.csr_matrix((3, 0)), [0])


@compiled
def test_fake_tensors_have_the_shapes_of_real_ones(skewed):
    users = torch.tensor([0, 1])
    lookup = _ops.row_filter(skewed.indptr, skewed.indices, NUM_ITEMS)
    args = (users, skewed.indptr, skewed.indices, lookup, None, None, NUM_ITEMS, 2, 0, 0, 0, True)
    torch.library.opcheck(torch.ops.zerosum_ext.sample_negatives.default, args, test_utils="test_faketensor")
    hint = torch.zeros(1, dtype=torch.int64)  # one block of 2^20 interactions, whose first is of user 0
    for positives in (1, 2):
        args = (skewed.indptr, skewed.indices, hint, 20, None, None, 1, skewed.nnz, skewed.nnz, 0, 7, positives, 0, 0)
        torch.library.opcheck(torch.ops.zerosum_ext.sample_positives.default, args, test_utils="test_faketensor")
    args = (skewed.indptr, skewed.indices, NUM_ITEMS)
    torch.library.opcheck(torch.ops.zerosum_ext.row_filter.default, args, test_utils="test_faketensor")
    args = (users, torch.tensor([1, 2, 3]), skewed.indptr, skewed.indices, None, NUM_ITEMS)
    torch.library.opcheck(torch.ops.zerosum_ext.has_items.default, args, test_utils="test_faketensor")
