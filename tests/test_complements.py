"""Prefix sums of complements: what they hold, whose they are, when they are made, and that they change no sample."""

from __future__ import annotations

import pytest
import torch

import zerosum_ext as zx
from zerosum_ext import _library, _ops
from zerosum_ext.data import complements, sampling

needs_kernels = pytest.mark.skipif(not _library.CPU.loaded, reason="the compiled CPU kernels are not loaded")

USERS, ITEMS = 80, 200


def matrix(seed=0):
    """Rows of all sizes: none, few, the popular half, more than half, all but one item, and all."""
    generator = torch.Generator().manual_seed(seed)
    has = torch.rand(USERS, ITEMS, generator=generator) < torch.linspace(0.8, -0.3, ITEMS)
    has[3], has[4], has[5], has[6], has[7] = True, True, False, False, False
    has[4, 77] = False
    has[6, :99] = True  # less than half, but more than three quarters of the mass
    has[7, torch.randperm(ITEMS, generator=generator)[:130]] = True
    has[8] = False
    has[8, :20] = True  # too few to be worth it, whatever their mass
    users, items = has.nonzero(as_tuple=True)
    return zx.Interactions.from_arrays(users.numpy(), items.numpy(), shape=(USERS, ITEMS))


def source(x, name, replacement=True):
    options = {"candidates": torch.arange(0, ITEMS, 3)} if name == "candidates" else {}
    return sampling.NegativeSource.of(x, name, None, 1.0, options.get("candidates"), replacement)


def masses_of(strategy):
    if strategy.slots is not None:
        return strategy.masses.diff().tolist()
    chosen = set(strategy.masses.tolist())
    return [int(item in chosen) for item in range(ITEMS)]


@pytest.mark.parametrize("together", [1 << 22, 7])
@pytest.mark.parametrize("name", ["popularity", "candidates"])
def test_sums_are_those_of_a_walk(monkeypatch, name, together):
    monkeypatch.setattr(complements, "_TOGETHER", together)
    x = matrix()
    strategy = source(x, name)
    rows, sums = complements.complement_sums(x, strategy.slots, strategy.masses)
    mass, indptr = masses_of(strategy), x.indptr.tolist()
    want, at, users = [], [], []
    for user in range(USERS):
        row = x.indices[indptr[user] : indptr[user + 1]].tolist()
        held = sum(mass[item] for item in row)
        if len(row) > 32 and (2 * len(row) > ITEMS or held > sum(mass) - sum(mass) // 4):
            at.append((indptr[user], len(want)))
            users.append(user)
            below = [sum(mass[:item]) - sum(mass[i] for i in row if i < item) for item in row]
            want += [*below, sum(mass) - held]
    assert sums.tolist() == want
    assert rows.T.tolist() == [list(pair) for pair in at]
    assert {3, 4, 7} <= set(users)
    assert (6 in users) == (name == "popularity")
    assert not {5, 8} & set(users)


@needs_kernels
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("name", ["popularity", "candidates"])
def test_they_change_no_sample(name, filtered, index):
    x = matrix()
    indices = x.indices.to(index)
    users = torch.arange(USERS).repeat(20)
    for replacement in (True, False):
        strategy = source(x, name, replacement)
        sums = complements.complement_sums(x, strategy.slots, strategy.masses)
        lookup = _ops.row_filter(x.indptr, indices, ITEMS) if filtered else None
        for k in (1, 5, 40):
            rest = (x.indptr, indices, lookup, strategy.slots, strategy.masses, ITEMS, k, 9, 2)
            want = _ops.sample_negatives(users, *rest, 0, replacement)
            got = _ops.sample_negatives(users, *rest, 0, replacement, None, *sums)
            assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
            numbers = torch.arange(users.numel()).flip(0)
            want = _ops.sample_negatives_at(users, numbers, *rest, replacement)
            got = _ops.sample_negatives_at(users, numbers, *rest, replacement, None, *sums)
            assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@needs_kernels
def test_those_of_another_matrix_lead_nowhere_outside():
    """Samples mean nothing then, but are items or none."""
    x, other = matrix(), matrix(1)
    strategy = source(x, "popularity")
    rows, sums = complements.complement_sums(x, strategy.slots, strategy.masses)
    users = torch.arange(USERS).repeat(20)
    wrong = [
        complements.complement_sums(other, strategy.slots, strategy.masses),
        (rows, sums[:7].contiguous()),
        (rows, torch.randint(-(2**63), 2**63 - 1, sums.shape)),
        (torch.stack((rows[0], torch.full_like(rows[1], 2**62))), sums),
        (torch.stack((rows[0], -rows[1] - 1)), sums),
    ]
    for tables in wrong:
        rest = (x.indptr, x.indices, None, strategy.slots, strategy.masses, ITEMS, 3, 9, 2, 0, True, None)
        got, _ = _ops.sample_negatives(users, *rest, *tables)
        assert bool(((got >= -1) & (got < ITEMS)).all())


@needs_kernels
def test_tables_that_do_not_fit_are_refused():
    x = matrix()
    strategy = source(x, "popularity")
    rows, sums = complements.complement_sums(x, strategy.slots, strategy.masses)
    given = (torch.arange(3), x.indptr, x.indices, None, strategy.slots, strategy.masses, ITEMS, 1, 0, 0, 0, True, None)
    for tables, message in (
        ((rows, None), "belong together"),
        ((None, sums), "belong together"),
        ((rows[0].contiguous(), sums), r"int64 \[2, R\]"),
        ((rows.int(), sums), r"int64 \[2, R\]"),
        ((rows, sums.int()), "contiguous vector of int64"),
    ):
        with pytest.raises(RuntimeError, match=message):
            _ops.sample_negatives(*given, *tables)
    uniform = (*given[:4], None, None, *given[6:])
    with pytest.raises(RuntimeError, match="need masses"):
        _ops.sample_negatives(*uniform, rows, sums)


@needs_kernels
def test_they_are_made_once_when_enough_is_drawn(monkeypatch):
    made = []
    original = complements.complement_sums
    monkeypatch.setattr(complements, "complement_sums", lambda *args: made.append(1) or original(*args))
    x = matrix()
    few = x.nnz // 16 // 3
    for call in range(6):
        zx.sample_negatives(x, torch.zeros(few, dtype=torch.int64), strategy="popularity", seed=call)
    assert made == [1]
    zx.sample_negatives(x, torch.zeros(x.nnz, dtype=torch.int64), strategy="uniform")
    assert made == [1]
    zx.sample_negatives(x, torch.zeros(x.nnz, dtype=torch.int64), strategy="popularity", alpha=0.5)
    assert made == [1, 1]  # another distribution
    loader = zx.TripletLoader(x, 50, strategy="candidates", candidates=torch.arange(0, ITEMS, 3))
    assert made == [1, 1]
    loader.prepare()
    assert made == [1, 1, 1]
    for _ in loader:
        pass
    assert made == [1, 1, 1]


@needs_kernels
def test_nothing_is_made_while_a_graph_is_captured(monkeypatch):
    """The size of the tables would have to be waited for."""

    class Elsewhere:
        nnz, device = 10, torch.device("cuda:0")

    monkeypatch.setattr(_ops, "has_op", lambda name, device: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    kept = complements.Complements(None, torch.arange(3))
    assert kept.of(Elsewhere(), 100) == (None, None)
    assert not kept.made
