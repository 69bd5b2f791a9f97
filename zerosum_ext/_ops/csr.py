"""The op that makes a CSR matrix of pairs."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from zerosum_ext import reference
from zerosum_ext._ops.common import fake_kernel, has_op, overload

_csr_build = overload("csr_build")


def csr_build(users: Tensor, items: Tensor, num_users: int, num_items: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the CSR matrix of pairs as (indptr, indices, rows), rows ascending and without duplicates.

    Args:
        users: int32 or int64 [n] on the CPU, from 0 and below ``num_users``.
        items: of the same dtype [n], from 0 and below ``num_items``.
        num_users: number of rows.
        num_items: number of columns.

    Returns:
        indptr int64 [num_users + 1], indices [nnz] (int32 if ``num_items`` is below 2**31) and rows [nnz], the
        position of each entry among the pairs. Of equal pairs the last one stays.
    """
    small = max(num_users, num_items, users.numel()) < 2**31
    if not small or not has_op("csr_build", users.device):
        return reference.csr_build(users, items, num_users, num_items)
    indptr, indices, rows = _csr_build(users.contiguous(), items.contiguous(), num_users, num_items)
    nnz = int(indptr[-1])
    if 8 * nnz < 7 * users.numel():  # views would keep what was merged alive
        return indptr, indices[:nnz].clone(), rows[:nnz].clone()
    return indptr, indices[:nnz], rows[:nnz]


@fake_kernel("csr_build")
def _fake_csr_build(given: SimpleNamespace) -> tuple[Tensor, Tensor, Tensor]:
    users = given.users
    indices, rows = (users.new_empty(users.numel(), dtype=torch.int32) for _ in range(2))
    return users.new_empty(given.num_users + 1, dtype=torch.int64), indices, rows
