"""What sampling asks of a GPU, on one that is played: sizes of the tables that it makes, and of batches nothing."""

from __future__ import annotations

import pytest
import torch
from played_device import PLAYED, PlayedDevice

import zerosum_ext as zx
from zerosum_ext import _library, _ops
from zerosum_ext.data import complements, sampling
from zerosum_ext.models import folding

if not _library.CPU.loaded:
    pytest.skip("the kernels that play those of a GPU are in _C, which is not loaded", allow_module_level=True)

USERS, ITEMS = 61, 97
# What a GPU has no kernel of.
LACKING = {"rank_factors", "mf_train", "mf_train_sampled", "csr_build", "integer_ids", "text_ids"}


@pytest.fixture
def played(monkeypatch):
    monkeypatch.setitem(_ops.KERNELS, PLAYED.type, frozenset(_library.OPS) - LACKING)
    with PlayedDevice() as played:
        yield played


def matrix():
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(USERS, ITEMS, generator=generator) < 0.9 * torch.rand(USERS, 1, generator=generator) ** 2
    dense[3], dense[5] = True, True
    dense[3, 40] = False
    users, items = dense.nonzero(as_tuple=True)
    return zx.Interactions.from_arrays(users.numpy(), items.numpy(), shape=(USERS, ITEMS))


STRATEGIES = {
    "uniform": {},
    "popularity": {"strategy": "popularity"},
    "candidates": {"strategy": "candidates", "candidates": list(range(0, ITEMS, 2))},
    "without replacement": {"replacement": False, "negatives": 3, "strategy": "popularity"},
    "shared": {"negatives": 4, "negatives_shared": 8},
    "users": {"positive_strategy": "users"},
    "two": {"positives": 2},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_batches_are_drawn_without_a_question(played, name):
    x = matrix()
    there = x.to(PLAYED)
    options = {"seed": 3, **STRATEGIES[name]}
    want = list(zx.TripletLoader(x, 200, **options))
    loader = zx.TripletLoader(there, 200, **options)
    loader.prepare()
    played.asked.clear()
    got = list(loader)
    assert played.asked == []
    for mine, its in zip(got, want, strict=True):
        for a, b in zip(mine, its, strict=True):
            assert torch.equal(a.held, b)


def test_filter_and_sums_are_made_there(played):
    """Of the filter nothing is asked; of the sums how many rows have some, and how many numbers they are."""
    x = matrix()
    there = x.to(PLAYED)
    assert there.user_counts.device == PLAYED  # counted once, and kept
    played.asked.clear()
    found = _ops.row_filter(there.indptr, there.indices, ITEMS)
    assert played.asked == []
    assert torch.equal(found.held, _ops.row_filter(x.indptr, x.indices, ITEMS))
    assert torch.equal(sampling._hint(there).held, sampling._hint(x))
    assert played.asked == []
    mine, its = (sampling.NegativeSource.of(data, "popularity", None, 1.0, None, True) for data in (x, there))
    played.asked.clear()
    got = complements.complement_sums(there, its.slots, its.masses)
    assert played.asked == ["aten.nonzero.default", "aten._local_scalar_dense.default"]
    for a, b in zip(got, complements.complement_sums(x, mine.slots, mine.masses), strict=True):
        assert torch.equal(a.held, b)


def test_popularity_tables_ask_for_the_distinct_counts(played):
    there = matrix().to(PLAYED)
    assert there.popularity.device == PLAYED  # counted once, and kept
    played.asked.clear()
    sampling._popularity_table(there.popularity, 0.75)
    transfers = [what for what in played.asked if what.startswith("a transfer")]
    distinct = int(matrix().popularity.unique().numel())
    assert transfers == [f"a transfer of [2, {distinct}]"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("loss", ["bpr", "zerosum", "pos2neg2"])
def test_rows_of_new_users(played, monkeypatch, loss, dtype):
    """The op is given what lies on the device: whether users have all items, and at the end whether rows are finite."""
    x = matrix()
    item = torch.randn(ITEMS, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    settings = folding.FoldIn.of(loss, 0.1, 2, 0, 1e-4, 100)
    want = folding.fold_in(item, None, x, settings)
    there = x.to(PLAYED)
    assert there.user_counts.device == PLAYED
    calls = []
    original = _ops.fold_in
    monkeypatch.setattr(_ops, "fold_in", lambda *args: calls.append(args[0].device) or original(*args))
    played.asked.clear()
    got = folding.fold_in(item.to(PLAYED), None, there, settings)
    assert calls == [PLAYED]
    assert got.dtype == dtype
    assert torch.equal(got.held, want)
    # Does anybody have all items? Then the samples of the others are picked out, twice. Are all rows finite?
    look, pick = "aten._local_scalar_dense.default", "aten.index.Tensor"
    rows = ["aten._unique2.default"] if dtype == torch.bfloat16 else []  # those that are widened
    assert played.asked == [look, pick, pick, *rows, look]
