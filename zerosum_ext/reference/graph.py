"""The ops on graphs in plain PyTorch: what csrc/cpu/graph.cpp computes, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from zerosum_ext.reference.sampling import LOW32, NODE_DROPOUT, philox4x32


def _kept(indptr: Tensor, kept: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Move each row's kept entries to its front, in their order; return (end of each row, moved entries)."""
    degree = indptr.diff()
    rank = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])  # kept before each entry
    row_rank = rank[indptr.long()]
    end = indptr[:-1] + row_rank.diff()
    rows = torch.repeat_interleave(torch.arange(len(degree), device=indptr.device), degree, output_size=len(indices))
    place, before = torch.arange(len(indices), device=indptr.device), rank[:-1] - row_rank[rows]
    start = indptr[rows].long()
    # A dropped entry goes behind: to the end, plus how many the row has dropped before it.
    to = torch.where(kept, start + before, end[rows] + (place - start - before))
    return end.to(indptr.dtype), torch.empty_like(indices).scatter_(0, to, indices)


def graph_dropout(
    indptr: Tensor, indices: Tensor, by_item: Tensor, num_users: int, seed: Tensor, share: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Drop each entry with probability ``share``, on its own; return the rest of the matrix and of its transpose.

    Entries are dropped by Philox under the key ``seed``: the same for any device and number of threads.

    Args:
        indptr, indices: the matrix, as for :func:`graph_propagate`.
        by_item: [interactions], the entries of the items' rows, one row after another, by their numbers in the order of
            the users' rows.
        num_users: the first rows of the matrix.
        seed: int64, one number, on the device of the others.
        share: probability.

    Returns:
        (end, indices) of the matrix, (end, indices) of its transpose. Behind a row's end the indices mean nothing.
    """
    interactions = len(by_item)
    block = torch.arange((interactions + 1) // 2, device=indptr.device)
    zero = torch.zeros_like(block)
    key = (seed & LOW32, (seed >> 32) & LOW32)
    words = philox4x32((block & LOW32, block >> 32, zero, zero + (NODE_DROPOUT << 24)), key)
    kept = torch.stack(words, 1).view(-1, 2)[:interactions] >= int(share * 2**32)
    of_users, of_items, order = kept[:, 0], kept[:, 1], by_item.long()
    forward = _kept(indptr, torch.cat([of_users, of_items[order]]), indices)
    return *forward, *_kept(indptr, torch.cat([of_items, of_users[order]]), indices)


def graph_propagate(
    users: Tensor,
    items: Tensor,
    indptr: Tensor,
    end: Tensor | None,
    indices: Tensor,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
    factor: float,
) -> tuple[Tensor, Tensor]:
    """Multiply a square matrix, given by its pattern and constants of rows and columns, with users and items.

    For each row r, factor * row_scale[r] * the sum of column_scale[c] x[c] over its entries c. For the rows of users
    x are the items, and the other way round.

    Args:
        users, items: [U, d] and [I, d], of one dtype.
        indptr, indices: row r of the U + I has the entries indices[indptr[r] .. indptr[r + 1]); all int32 or all int64.
        end: where each row ends before indptr[r + 1], or None.
        row_scale, column_scale: [U + I], of the tables' dtype; None means ones.
        factor: of all results.
    """
    values = users.new_ones(len(indices))
    if end is not None:
        place = torch.arange(len(indices), device=indptr.device)
        there = place < end.repeat_interleave(indptr.diff(), output_size=len(indices))
        # Behind a row's end the indices mean nothing: they need not even be in range.
        values, indices = there.to(users.dtype), torch.where(there, indices, 0)
    num_users, half, out = len(users), len(indices) // 2, []
    of_users, of_items = slice(0, num_users), slice(num_users, None)
    for table, bounds, rows, columns, entries in (
        (items, indptr[: num_users + 1], of_users, of_items, slice(0, half)),
        (users, indptr[num_users:] - half, of_items, of_users, slice(half, None)),
    ):
        size = (len(bounds) - 1, len(table))
        matrix = torch.sparse_csr_tensor(bounds, indices[entries], values[entries], size, check_invariants=False)
        result = matrix @ (table if column_scale is None else column_scale[columns].unsqueeze(1) * table)
        if row_scale is not None:
            result = row_scale[rows].unsqueeze(1) * result
        out.append(result * factor if factor != 1 else result)
    return out[0], out[1]
