"""The ops on graphs in plain PyTorch: what csrc/cpu/graph.cpp computes, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from zerosum_ext.reference.sampling import LOW32, NODE_DROPOUT, philox4x32


def _kept(indptr: Tensor, kept: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row ends after its kept entries have moved to its front, in their order, and the moved entries."""
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
    """See zerosum_ext._ops.graph_dropout."""
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
    """See zerosum_ext._ops.graph_propagate."""
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
