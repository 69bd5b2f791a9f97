"""integer_ids and text_ids: the compiled kernels against their definitions, and what they refuse."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zerosum_ext import _library, _ops, reference

needs_kernels = pytest.mark.skipif(not _library.CPU.loaded, reason="the compiled CPU kernels are not loaded")

Column = tuple[list[torch.Tensor], list[torch.Tensor]]


def column(chunks: list[list[bytes]], dtype: torch.dtype = torch.int32, before: bytes = b"") -> Column:
    """A column of fields as Arrow keeps it; `before` stands in front of each chunk, as in a slice."""
    characters = [np.frombuffer(before + b"".join(fields), np.uint8).copy() for fields in chunks]
    offsets = [len(before) + np.cumsum([0, *map(len, fields)]) for fields in chunks]
    return [torch.from_numpy(c) for c in characters], [torch.from_numpy(o).to(dtype) for o in offsets]


_INTEGERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(10**9), 10**9),
    st.integers(0, 99),
    st.integers(2**63 - 3, 2**63 + 3),
)
_FIELDS = st.one_of(
    _INTEGERS.map(lambda number: str(number).encode()),
    st.sampled_from(
        [b"", b"-", b"007", b"-0", b"+7", b" 7", b"7 ", b"1e3", b"1.0", b"0x1", b"12a", b"1_0", b"99999999999"]
    ),
    st.binary(max_size=40),
)


@needs_kernels
@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.lists(st.lists(_INTEGERS.map(lambda n: str(n).encode()), max_size=12), min_size=1, max_size=4),
        st.lists(st.lists(_FIELDS, max_size=12), min_size=1, max_size=4),
    ),
    st.sampled_from([torch.int32, torch.int64]),
    st.sampled_from([b"", b"123456789"]),
)
def test_against_the_definitions(chunks, dtype, before):
    given_column = column(chunks, dtype, before)
    codes, words, failed = _ops.integer_ids(*given_column)
    expected = reference.integer_ids(*given_column)
    assert failed == expected[2]
    if failed < 0:
        assert torch.equal(codes, expected[0])
        assert torch.equal(words, expected[1])
    for got, wanted in zip(_ops.text_ids(*given_column), reference.text_ids(*given_column), strict=True):
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)


def test_what_is_the_only_spelling_of_an_integer():
    for text in (b"0", b"7", b"-1", b"10", b"9223372036854775807", b"-9223372036854775808", b"12345678", b"123456789"):
        codes, words, failed = _ops.integer_ids(*column([[text]]))
        assert (codes.tolist(), words.tolist(), failed) == ([0], [int(text)], -1)
    for text in (
        *(
            b"",
            b"-",
            b"--1",
            b"-0",
            b"00",
            b"007",
            b"+7",
            b" 7",
            b"7 ",
            b"1.0",
            b"1e3",
            b"0x10",
            b"1_000",
            b"NA",
            b"nan",
        ),
        *(b"9223372036854775808", b"-9223372036854775809", b"12345678901234567890", b"1234567:", b"/2345678", b"\xb2"),
    ):
        assert _ops.integer_ids(*column([[b"1", b"22"], [b"3", text, b"4", b"x"]]))[2] == 3, text


@needs_kernels
@pytest.mark.parametrize("spread", [1, 10**9, 10**15])
def test_many_fields_of_many_lengths(spread):
    """Tables of all numbers, of numbers far apart, and of more than 32 bits; texts that share beginnings."""
    rng = np.random.default_rng(spread)
    values = rng.integers(-3_000, 9_000, 60_000) * spread
    texts = [str(value).encode() for value in values.tolist()]
    chunks = [texts[:20_001], [], texts[20_001:]]
    codes, words, failed = _ops.integer_ids(*column(chunks))
    assert failed == -1
    distinct, places = np.unique(values, return_inverse=True)
    np.testing.assert_array_equal(words.numpy(), distinct)
    np.testing.assert_array_equal(codes.numpy(), places)
    names = [[b"the same beginning " + text * 3 for text in chunk] for chunk in chunks]
    codes, characters, offsets = _ops.text_ids(*column(names, torch.int64))
    found = [characters.numpy().tobytes()[a:b] for a, b in itertools.pairwise(offsets)]
    assert found == sorted(set(names[0] + names[2]))
    assert [found[code] for code in codes.tolist()] == names[0] + names[2]


@needs_kernels
def test_texts_whose_first_bytes_are_equal():
    fields = [b"a", b"a\0", b"a\0\0", b"", b"a" * 8, b"a" * 9, b"a" * 8 + b"\xff", b"a\0" + b"b" * 20, b"b"]
    codes, _, offsets = _ops.text_ids(*column([fields]))
    assert codes.tolist() == [sorted(fields).index(field) for field in fields]
    assert len(offsets) == len(fields) + 1


@needs_kernels
@pytest.mark.parametrize("name", ["integer_ids", "text_ids"])
@pytest.mark.parametrize(
    ("characters", "offsets", "message"),
    [
        ([], [], "no tensor arguments"),
        ([], [torch.tensor([0])], "with a chunk at least"),
        ([torch.zeros(3, dtype=torch.uint8)], [], "lists of one length"),
        ([torch.zeros(3, dtype=torch.int8)], [torch.tensor([0, 1])], "of uint8"),
        ([torch.zeros(3, 1, dtype=torch.uint8)], [torch.tensor([0, 1])], "contiguous vectors"),
        ([torch.zeros(6, dtype=torch.uint8)[::2]], [torch.tensor([0, 1])], "contiguous vectors"),
        ([torch.zeros(3, dtype=torch.uint8)], [torch.tensor([0.0, 1.0])], "int32 or int64"),
        ([torch.zeros(3, dtype=torch.uint8)] * 2, [torch.tensor([0, 1]), torch.tensor([0]).int()], "of one dtype"),
        ([torch.zeros(3, dtype=torch.uint8)], [torch.tensor([], dtype=torch.int64)], "one number more"),
        (
            [torch.full((3,), 49, dtype=torch.uint8)],
            [torch.tensor([0, 4])],
            "offsets must ascend from 0 to 3, got 0 and 4",
        ),
        ([torch.full((3,), 49, dtype=torch.uint8)], [torch.tensor([0, 2, 1])], "got 2 and 1 at position 1"),
        ([torch.full((3,), 49, dtype=torch.uint8)], [torch.tensor([-1, 2])], "got -1 and 2 at position 0"),
        ([torch.full((3,), 49, dtype=torch.uint8)], [torch.tensor([2**62, 2**62])], "offsets must ascend"),
    ],
)
def test_what_the_ops_refuse(name, characters, offsets, message):
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.zerosum_ext, name)(characters, offsets)


@needs_kernels
def test_memory_that_is_gone():
    characters = torch.full((100,), 49, dtype=torch.uint8)
    characters.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="does not hold them"):
        torch.ops.zerosum_ext.text_ids([characters], [torch.tensor([0, 100])])
