"""The op of rows of users for frozen items."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor

from zerosum_ext import reference
from zerosum_ext._ops.common import fake_kernel, has_op, overload
from zerosum_ext._ops.losses import loss_number
from zerosum_ext.reference import Kernel

_fold_in = overload("fold_in")


# The op's arguments, with the loss as one.
def fold_in(
    item_embedding: Tensor,
    item_bias: Tensor | None,
    indptr: Tensor,
    positives: Tensor,
    negatives: Tensor,
    constants: Tensor | None,
    kernel: Kernel,
    kink: float,
    l2: float,
    tolerance: float,
    max_iterations: int,
) -> Tensor:
    """Return rows of users that minimise ``mean of the loss over a user's samples + l2/2 |row|^2`` for frozen items.

    Args:
        item_embedding, item_bias: [I, d] and [I] or None, float32 or float64, contiguous.
        indptr: int64 [n + 1]: the samples of user u are those from indptr[u] to indptr[u + 1].
        positives: int64 [N], or [N, 2] with losses of two positives.
        negatives: int64 [N, K], or [N] for one of each.
        constants: [I], those that the loss takes beside each item, in the dtype of the tables.
        kernel: the compiled loss and its parameters.
        kink: the width by which kinks of "zerosum" and "pos2neg2" are rounded off, or 0.
        l2: > 0.
        tolerance: the length of the gradient at the result, as a share of that of a row of zeros.
        max_iterations: the largest number of steps.

    Returns:
        [n, d], zero for users without samples, NaN where what a row depends on is not finite.
    """
    tensors = item_embedding, item_bias, indptr, positives, negatives, constants
    rest = kink, l2, tolerance, max_iterations
    if not has_op("fold_in", item_embedding.device):
        return reference.fold_in(*tensors, kernel, *rest)
    rows: Tensor = _fold_in(*tensors, loss_number(kernel.loss), kernel.a, kernel.b, kernel.c, *rest)
    return rows


@fake_kernel("fold_in")
def _fake_fold_in(given: SimpleNamespace) -> Tensor:
    rows: Tensor = given.item_embedding.new_empty((given.indptr.shape[0] - 1, given.item_embedding.shape[1]))
    return rows
