"""Sums over the scores of all positives in plain PyTorch, a block of entries of the CSR matrix at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_CSR_BLOCK = 1 << 18


def csr_blocks(indptr: Tensor, indices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (row, column), int64, of blocks of entries."""
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
    """Return the sums of s, s^2 and s x over all entries of a CSR matrix, float64 [3]; differentiable.

    s is the score of an entry, <rows[r], columns[c]> + column_bias[c], and x a constant of its column.

    Args:
        rows, columns: [R, d] and [C, d], float32 or float64, contiguous.
        column_bias: [C] or None; this and all other vectors have the dtype of the rows.
        indptr, indices: the matrix.
        column_x: [C].
    """
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
    """Return for each row of a CSR matrix the sum of g columns[c] over its entries, [R, d], and the sum of g, [R].

    g = x + slope s with the score s of the entry (biases of both sides added) and a constant x of its row or its
    column: one of row_x [R] and column_x [C] is given. The other arguments are those of :func:`csr_score_moments`.
    """
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
