"""csr_build: the compiled kernel against its definition, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zerosum_ext import _library, _ops
from zerosum_ext.reference.csr import csr_build as definition

needs_kernels = pytest.mark.skipif(not _library.CPU.loaded, reason="the compiled CPU kernels are not loaded")


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 12)), max_size=80),
    st.sampled_from([torch.int32, torch.int64]),
)
def test_against_the_set_of_pairs(pairs, dtype):
    users = torch.tensor([u for u, _ in pairs], dtype=dtype)
    items = torch.tensor([i for _, i in pairs], dtype=dtype)
    expected = sorted({pair: at for at, pair in enumerate(pairs)}.items())  # of equal pairs the last
    for build in (_ops.csr_build, definition):
        indptr, indices, rows = build(users, items, 9, 13)
        assert (indptr.dtype, indices.dtype, rows.dtype) == (torch.int64, torch.int32, torch.int32)
        assert indices.tolist() == [i for (_, i), _ in expected]
        assert rows.tolist() == [at for _, at in expected]
        counts = np.bincount([u for (u, _), _ in expected], minlength=9) if expected else np.zeros(9, int)
        assert indptr.tolist() == np.concatenate(([0], np.cumsum(counts))).tolist()


@needs_kernels
@pytest.mark.parametrize("distinct_users", [3, 70_000])
def test_many_pairs_give_the_definition(distinct_users):
    generator = torch.Generator().manual_seed(1)
    users = torch.randint(0, distinct_users, (200_000,), generator=generator, dtype=torch.int32)
    items = torch.randint(0, 5_000, (200_000,), generator=generator, dtype=torch.int32)
    users[:50_000] = 1  # one row of most of a task, and more
    for got, expected in zip(
        _ops.csr_build(users, items, distinct_users, 5_000),
        definition(users, items, distinct_users, 5_000),
        strict=True,
    ):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


@needs_kernels
def test_merged_pairs_take_no_memory():
    users = torch.zeros(1000, dtype=torch.int32)
    _, indices, rows = _ops.csr_build(users, users, 1, 1)
    assert indices.tolist() == [0]
    assert rows.tolist() == [999]
    assert indices.untyped_storage().nbytes() == rows.untyped_storage().nbytes() == 4


@needs_kernels
@pytest.mark.parametrize(
    ("users", "items", "shape", "message"),
    [
        ([0, -1], [0, 0], (2, 2), "users must be numbers from 0 to 1, got -1 at position 1"),
        ([0, 2], [0, 0], (2, 2), "users must be numbers from 0 to 1, got 2 at position 1"),
        ([0, 1], [5, 0], (2, 5), "items must be numbers from 0 to 4, got 5 at position 0"),
        ([0, 1], [0], (2, 2), "one length and dtype"),
        ([[0, 1]], [[0, 1]], (2, 2), "vectors"),
        ([0.0], [0.0], (2, 2), "int32 or int64"),
        ([0], [0], (-1, 2), "from 0 and below"),
        ([0], [0], (2**31, 2), "from 0 and below"),
    ],
)
def test_what_the_op_refuses(users, items, shape, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.zerosum_ext.csr_build(torch.tensor(users), torch.tensor(items), *shape)


@needs_kernels
def test_strided_pairs():
    pairs = torch.tensor([[1, 0], [0, 2], [1, 1]])
    indptr, indices, rows = _ops.csr_build(pairs[:, 0], pairs[:, 1], 2, 3)
    assert (indptr.tolist(), indices.tolist(), rows.tolist()) == ([0, 1, 3], [2, 0, 1], [1, 0, 2])
    with pytest.raises(RuntimeError, match="contiguous"):
        torch.ops.zerosum_ext.csr_build(pairs[:, 0], pairs[:, 1], 2, 3)
