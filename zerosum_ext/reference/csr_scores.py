"""Sums over the scores of all positives in plain PyTorch, a block of entries of the CSR matrix at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_CSR_BLOCK = 1 << 18


def csr_blocks(indptr: Tensor, indices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(row, column) int64 of blocks of entries."""
    for start in range(0, len(indices), _CSR_BLOCK):
        columns = indices[start : start + _CSR_BLOCK].long()
        entries = torch.arange(start, start + len(columns), device=indices.device)
        yield torch.searchsorted(indptr, entries, right=True) - 1, columns


def _csr_scores(
    rows: Tensor, columns: Tensor, row_bias: Tensor | None, column_bias: Tensor | None, r: Tensor, c: Tensor
) -> Tensor:
    scores = (rows[r] * columns[c]).sum(1)
    if row_bias is not None:
        scores = scores + row_bias[r]
    return scores if column_bias is None else scores + column_bias[c]


def csr_score_moments(
    rows: Tensor, columns: Tensor, column_bias: Tensor | None, indptr: Tensor, indices: Tensor, column_x: Tensor
) -> Tensor:
    """The op csr_score_moments; differentiable."""
    sums = torch.zeros(3, dtype=torch.float64, device=rows.device)
    for r, c in csr_blocks(indptr, indices):
        s = _csr_scores(rows, columns, None, column_bias, r, c).double()
        sums = sums + torch.stack([s.sum(), s.square().sum(), (s * column_x[c]).sum()])
    return sums


def csr_weighted_columns(
    rows: Tensor,
    columns: Tensor,
    row_bias: Tensor | None,
    column_bias: Tensor | None,
    indptr: Tensor,
    indices: Tensor,
    row_x: Tensor | None,
    column_x: Tensor | None,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """The op csr_weighted_columns."""
    out, out_bias = torch.zeros_like(rows), rows.new_zeros(len(rows))
    for r, c in csr_blocks(indptr, indices):
        g = slope * _csr_scores(rows, columns, row_bias, column_bias, r, c)
        if row_x is not None:
            g = g + row_x[r]
        if column_x is not None:
            g = g + column_x[c]
        out.index_add_(0, r, g.unsqueeze(1) * columns[c])
        out_bias.index_add_(0, r, g)
    return out, out_bias
