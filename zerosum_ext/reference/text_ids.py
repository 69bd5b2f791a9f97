"""Ids of a column of text by number: what csrc/cpu/text_ids.cpp computes."""

from __future__ import annotations

import itertools
import re

import torch
from torch import Tensor

_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")


def _fields(characters: list[Tensor], offsets: list[Tensor]) -> list[bytes]:
    fields = []
    for chunk, ends in zip(characters, offsets, strict=True):
        text, at = chunk.numpy().tobytes(), ends.tolist()
        fields += [text[begin:end] for begin, end in itertools.pairwise(at)]
    return fields


def integer_ids(characters: list[Tensor], offsets: list[Tensor]) -> tuple[Tensor, Tensor, int]:
    """See zerosum_ext._ops.integer_ids."""
    fields = _fields(characters, offsets)
    for at, field in enumerate(fields):
        if not _INTEGER.fullmatch(field) or not -(2**63) <= int(field) < 2**63:
            return torch.zeros(len(fields), dtype=torch.int32), torch.zeros(0, dtype=torch.int64), at
    values = torch.tensor([int(field) for field in fields], dtype=torch.int64)
    words, codes = torch.unique(values, return_inverse=True)
    return codes.int(), words, -1


def text_ids(characters: list[Tensor], offsets: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """See zerosum_ext._ops.text_ids."""
    fields = _fields(characters, offsets)
    words = sorted(set(fields))
    rank = {word: at for at, word in enumerate(words)}
    codes = torch.tensor([rank[field] for field in fields], dtype=torch.int32)
    text = torch.tensor(list(b"".join(words)), dtype=torch.uint8)
    ends = torch.tensor([0, *(len(word) for word in words)], dtype=torch.int64).cumsum(0)
    return codes, text, ends
