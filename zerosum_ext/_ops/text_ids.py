"""The ops that number the ids of a column of text."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from zerosum_ext import reference
from zerosum_ext._ops.common import fake_kernel, has_op, overload

_integer_ids = overload("integer_ids")
_text_ids = overload("text_ids")


def integer_ids(characters: list[Tensor], offsets: list[Tensor]) -> tuple[Tensor, Tensor, int]:
    """Return the ids of a column of text by number, if each field is the only spelling of an int64.

    Args:
        characters: uint8 [bytes] of each chunk of the column, on the CPU.
        offsets: int32 or int64 [fields + 1] of each chunk: field i is ``characters[offsets[i]:offsets[i + 1]]``.

    Returns:
        codes int32 [n], the rank of each field's id; the distinct ids int64 in ascending order; and the number of the
        first field that is no such integer, or -1. Where there is one the other two mean nothing.
    """
    if not has_op("integer_ids", characters[0].device):
        return reference.integer_ids(characters, offsets)
    codes, words, failed = _integer_ids(characters, offsets)
    return codes, words, int(failed)


def text_ids(characters: list[Tensor], offsets: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ids of a column of text by number.

    Args:
        characters: as of :func:`integer_ids`.
        offsets: as of :func:`integer_ids`.

    Returns:
        codes int32 [n], the rank of each field among the distinct texts in the order of their bytes; and these, as
        characters uint8 with offsets int64.
    """
    if not has_op("text_ids", characters[0].device):
        return reference.text_ids(characters, offsets)
    codes, words, word_offsets = _text_ids(characters, offsets)
    return codes, words, word_offsets


@fake_kernel("integer_ids")
def _fake_integer_ids(given: SimpleNamespace) -> tuple[Tensor, Tensor, Tensor]:
    codes = _fake_codes(given)
    words = codes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)
    return codes, words, codes.new_empty(1, dtype=torch.int64)


@fake_kernel("text_ids")
def _fake_text_ids(given: SimpleNamespace) -> tuple[Tensor, Tensor, Tensor]:
    codes = _fake_codes(given)
    context = torch.library.get_ctx()
    words = codes.new_empty(context.new_dynamic_size(), dtype=torch.uint8)
    return codes, words, codes.new_empty(context.new_dynamic_size(), dtype=torch.int64)


def _fake_codes(given: SimpleNamespace) -> Tensor:
    rows = sum(offsets.shape[0] - 1 for offsets in given.offsets)
    codes: Tensor = given.offsets[0].new_empty(rows, dtype=torch.int32)
    return codes
