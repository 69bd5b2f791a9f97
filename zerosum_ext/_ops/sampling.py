"""The ops that draw samples and look up interactions."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from zerosum_ext import reference
from zerosum_ext._ops.common import fake_kernel, has_op, kernel_or_definition, overload

sample_negatives = kernel_or_definition("sample_negatives", reference.sample_negatives)
sample_negatives_at = kernel_or_definition("sample_negatives_at", reference.sample_negatives_at)
unshuffle = kernel_or_definition("unshuffle", reference.unshuffle)
sample_positives = kernel_or_definition("sample_positives", reference.sample_positives)
has_items = kernel_or_definition("has_items", reference.has_items)
_row_filter = overload("row_filter")


def row_filter(indptr: Tensor, indices: Tensor, num_items: int) -> Tensor | None:
    """Return the row filter (csrc/common/csr.h), int16 [nnz + 1], or None where no compiled kernel would use it."""
    if not has_op("row_filter", indptr.device):
        return None
    table: Tensor = _row_filter(indptr, indices, num_items)
    return table


@fake_kernel("sample_negatives")
def _fake_sample_negatives(given: SimpleNamespace) -> tuple[Tensor, Tensor]:
    return given.users.new_empty((given.users.shape[0], given.k)), given.users.new_empty((1,))


@fake_kernel("sample_negatives_at")
def _fake_sample_negatives_at(given: SimpleNamespace) -> tuple[Tensor, Tensor]:
    return given.users.new_empty((given.users.shape[0], given.k)), given.users.new_empty((1,))


@fake_kernel("unshuffle")
def _fake_unshuffle(given: SimpleNamespace) -> Tensor:
    numbers: Tensor = torch.empty_like(given.cells)
    return numbers


@fake_kernel("sample_positives")
def _fake_sample_positives(given: SimpleNamespace) -> tuple[Tensor, Tensor]:
    rows, positives = given.rows, given.positives
    shape = (rows,) if positives == 1 else (rows, positives)
    return given.indptr.new_empty((rows,)), given.indptr.new_empty(shape)


@fake_kernel("row_filter")
def _fake_row_filter(given: SimpleNamespace) -> Tensor:
    table: Tensor = given.indptr.new_empty((given.indices.shape[0] + 1,), dtype=torch.int16)
    return table


@fake_kernel("has_items")
def _fake_has_items(given: SimpleNamespace) -> Tensor:
    found: Tensor = given.users.new_empty((given.users.shape[0], given.items.shape[-1]), dtype=torch.bool)
    return found
