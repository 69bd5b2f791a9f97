"""Prefix sums of what users do not have, by which weighted negatives of users with many items are found.

A weighted negative of a user who has most items is drawn from the rest directly. Without these sums that is a walk
along the user's row; with them it is a search (csrc/common/sampler.h). What is drawn is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from zerosum_ext import _ops
from zerosum_ext.data.interactions import Interactions

__all__ = ["Complements", "Sums", "complement_sums"]

#: Tables of :func:`complement_sums`, or none.
Sums: TypeAlias = tuple[Tensor, Tensor] | tuple[None, None]

# Interactions that are looked at together, so that memory beside the result stays below 300 MB.
_TOGETHER = 1 << 22
# Along so few items a walk is short.
_SHORT = 32


@dataclass
class Complements:
    """The sums for one distribution over items, made when enough is drawn.

    Attributes:
        slots, masses: the distribution, as of :func:`zerosum_ext._ops.sample_negatives`.
        draws: negatives that were asked for so far.
        tables: what :func:`complement_sums` returned, or (None, None).
        made: whether it was called.
    """

    slots: Tensor | None
    masses: Tensor | None
    draws: int = 0
    tables: Sums = field(default=(None, None))
    made: bool = False

    def of(self, excluded: Interactions, draws: int) -> Sums:
        """Return the tables, once as many negatives were drawn as make up for the pass that makes them.

        While a CUDA graph is captured nothing is made: the size of the tables has to be waited for.
        """
        self.draws += draws
        if self.made or self.masses is None or 16 * self.draws < excluded.nnz:
            return self.tables
        if not _ops.has_op("sample_negatives", excluded.device):
            return self.tables
        if _ops.capturing(excluded.device):
            return self.tables
        self.made = True
        rows, sums = complement_sums(excluded, self.slots, self.masses)
        _ops.finish(excluded.device)
        if rows.numel():
            self.tables = rows, sums
        return self.tables


def complement_sums(matrix: Interactions, slots: Tensor | None, masses: Tensor) -> tuple[Tensor, Tensor]:
    """Return prefix sums of the complements of rows that are often drawn from by their complements.

    These are the rows of more than 32 items that hold more than half of all items, or more than three quarters of the
    mass. All is made on the device of the matrix, which is waited for twice, for the sizes. The sums take 8 bytes for
    each interaction in these rows.

    Args:
        matrix: the items that are not drawn.
        slots, masses: the distribution, as of :func:`zerosum_ext._ops.sample_negatives`.

    Returns:
        rows: int64 [2, R], where the R rows begin in the matrix, ascending, and where their sums begin.
        sums: int64, of each row one number more than it has items: the mass outside the row below each of its items,
            and that of its whole complement.
    """
    indptr, indices, counts = matrix.indptr, matrix.indices, matrix.user_counts
    below = _below(matrix.num_items, slots, masses)
    mass, total = below.diff(), below[-1]
    held = torch.zeros(matrix.num_users, dtype=torch.int64, device=indptr.device)
    for first in range(0, matrix.nnz, _TOGETHER):
        at = torch.arange(first, min(first + _TOGETHER, matrix.nnz), device=indptr.device)
        users = torch.searchsorted(indptr, at, right=True) - 1
        held.index_add_(0, users, mass[indices[first : first + _TOGETHER].long()])
    often = (2 * counts > matrix.num_items) | (held > total - total // 4)
    rows = (often & (counts > _SHORT)).nonzero().flatten()
    begins, counts, held = indptr[rows], counts[rows], held[rows]
    ends = (counts + 1).cumsum(0)
    starts = ends - counts - 1
    size = int(ends[-1]) if rows.numel() else 0
    sums = torch.empty(size, dtype=torch.int64, device=indptr.device)
    passed = held.cumsum(0) - held  # mass of the rows before
    carry = torch.zeros((), dtype=torch.int64, device=indptr.device)  # of all entries before those looked at
    for first in range(0, size, _TOGETHER):
        at = torch.arange(first, min(first + _TOGETHER, size), device=indptr.device)
        row = torch.searchsorted(ends, at, right=True)
        place = at - starts[row]
        last = place == counts[row]
        items = indices[torch.where(last, 0, begins[row] + place)].long()
        own = torch.where(last, 0, mass[items])
        through = own.cumsum(0)
        skipped = carry + through - own - passed[row]
        sums[first : first + _TOGETHER] = torch.where(last, total, below[items]) - skipped
        carry = carry + through[-1]
    return torch.stack((begins, starts)), sums


def _below(num_items: int, slots: Tensor | None, masses: Tensor) -> Tensor:
    """Return the mass below each item, and that of all: int64 [num_items + 1]."""
    if slots is not None:
        return masses
    mask = torch.zeros(num_items + 1, dtype=torch.int64, device=masses.device)
    mask[masses + 1] = 1
    return mask.cumsum(0)
