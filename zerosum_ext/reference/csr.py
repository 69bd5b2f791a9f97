"""The CSR matrix of pairs: what csrc/cpu/csr_build.cpp computes."""

from __future__ import annotations

import torch
from torch import Tensor


def csr_build(users: Tensor, items: Tensor, num_users: int, num_items: int) -> tuple[Tensor, Tensor, Tensor]:
    """See zerosum_ext._ops.csr_build."""
    users, items = users.long(), items.long()
    for name, ids, size in (("users", users, num_users), ("items", items, num_items)):
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < size):
            raise RuntimeError(f"{name} must be numbers from 0 to {size - 1}")
    rows = torch.sort(items, stable=True).indices
    rows = rows[torch.sort(users[rows], stable=True).indices]
    users, items = users[rows], items[rows]
    last = torch.ones_like(users, dtype=torch.bool)
    last[:-1] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    users, items, rows = users[last], items[last], rows[last]
    indptr = torch.zeros(num_users + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(users, minlength=num_users), 0, out=indptr[1:])
    small = max(num_users, num_items, len(last)) < 2**31
    return indptr, items.int() if num_items < 2**31 else items, rows.int() if small else rows
