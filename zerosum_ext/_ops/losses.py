"""The ops of losses on scores."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from zerosum_ext import _library, reference
from zerosum_ext._ops.common import REDUCTIONS, fake_kernel, has_op, overload
from zerosum_ext.reference import Kernel, compute_dtype

#: Numbers of the compiled losses, as csrc/common/losses.h counts them; empty without the compiled library.
LOSS_IDS: dict[str, int] = {}
if _library.CPU.loaded:
    LOSS_IDS = {name: i for i, name in enumerate(torch.ops.zerosum_ext.loss_names().split(","))}

pair_loss_kernel = overload("pair_loss")
macr_loss_kernel = overload("macr_loss")
scale_in_place_kernel = overload("scale_gradients_")
scale_kernel = overload("scale_gradients")


def loss_number(name: str) -> int:
    """Return the number of a compiled loss.

    Raises:
        RuntimeError: the compiled library is older than the loss.
    """
    number = LOSS_IDS.get(name)
    if number is None:
        raise RuntimeError(
            f"loss: the compiled library {_library.CPU.file} lacks {name!r}: it is older than the Python sources. "
            f"Rebuild it: {_library.REBUILD}"
        )
    return number


def pair_loss(
    pos: Tensor,
    neg: Tensor,
    aux_pos: Tensor | None,
    aux_neg: Tensor | None,
    weight: Tensor | None,
    kernel: Kernel,
    reduction: str,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the value of a loss and, with ``grad``, its derivatives in ``pos`` and ``neg``; not differentiable itself.

    Args:
        pos: scores of the positives, [B], or [B, 2] for losses of two positives and two negatives.
        neg: scores of the negatives, [B], [B, K] or [B, 2].
        aux_pos, aux_neg: constants beside the scores, [B] or [B, K], in the dtype of the arithmetic.
        weight: of each sample, [B] or [B, K], in the dtype of the arithmetic.
        kernel: the compiled loss and its parameters.
        reduction: "none", "sum" or "mean".
        grad: without it the derivatives are empty tensors.
    """
    name, a, b, c = kernel
    if has_op("pair_loss", pos.device):
        value, grad_pos, grad_neg = pair_loss_kernel(
            pos, neg, aux_pos, aux_neg, weight, loss_number(name), a, b, c, REDUCTIONS[reduction], grad
        )
        return value, grad_pos, grad_neg
    return reference.pair_loss(pos, neg, aux_pos, aux_neg, weight, kernel, reduction, grad)


def macr_loss(
    scores: Sequence[Tensor], weight: Tensor | None, alpha: float, beta: float, reduction: str, grad: bool
) -> tuple[Tensor, ...]:
    """Return the value of MACR and, with ``grad``, its derivatives in the five scores (else empty tensors).

    Args:
        scores: of the positive and the negative, then of the user, positive and negative branch; each [B] or [B, K]
            like that of the negative.
        weight: [B] or [B, K], in the dtype of the arithmetic.
        alpha, beta: weights of the item branch's and of the user branch's own cross-entropy.
        reduction, grad: as for :func:`pair_loss`.
    """
    if has_op("macr_loss", scores[0].device):
        return tuple(macr_loss_kernel(*scores, weight, alpha, beta, REDUCTIONS[reduction], grad))
    return reference.macr_loss(scores, weight, alpha, beta, reduction, grad)


def scale_gradients(gradients: Sequence[Tensor], factor: Tensor, in_place: bool) -> tuple[Tensor, ...]:
    """Multiply gradients by one number, in their place or into new tensors.

    Args:
        gradients: one to five contiguous tensors of one dtype.
        factor: one number, in the dtype of their arithmetic. It stays on its device: nothing waits for it.
        in_place: whether the gradients themselves change. Where the factor is exactly 1 they are not even read.
    """
    if not has_op("scale_gradients", factor.device):
        if in_place:
            return tuple(g.mul_(factor) for g in gradients)
        return tuple((g * factor).to(g.dtype) for g in gradients)
    if not in_place:
        return tuple(scale_kernel(gradients, factor))
    scale_in_place_kernel(gradients, factor)
    return tuple(gradients)


def fake_loss_value(given: SimpleNamespace, like: Tensor, rows: Tensor, pairs: Tensor) -> Tensor:
    """Return an empty loss value: a number, or one number for each row or each pair of the samples."""
    if given.reduction != REDUCTIONS["none"]:
        return like.new_empty((), dtype=compute_dtype(like.dtype))
    name = next(name for name, number in LOSS_IDS.items() if number == given.loss)
    return like.new_empty(pairs.shape if reference.SHAPES[name] == "pair" else rows.shape[:1])


@fake_kernel("pair_loss")
def _fake_pair_loss(given: SimpleNamespace) -> tuple[Tensor, Tensor, Tensor]:
    pos, neg = given.pos, given.neg
    torch._check(pos.dtype == neg.dtype, lambda: f"pos is {pos.dtype}, neg {neg.dtype}")
    shapes = (pos.shape, neg.shape) if given.grad else ((0,), (0,))
    return fake_loss_value(given, pos, pos, neg), pos.new_empty(shapes[0]), pos.new_empty(shapes[1])


@fake_kernel("macr_loss")
def _fake_macr_loss(given: SimpleNamespace) -> tuple[Tensor, ...]:
    pos, neg = given.pos, given.neg
    none = given.reduction == REDUCTIONS["none"]
    value = pos.new_empty(neg.shape) if none else pos.new_empty((), dtype=compute_dtype(pos.dtype))
    scores = (pos, neg, given.user_branch, given.pos_branch, given.neg_branch)
    return value, *(pos.new_empty(t.shape if given.grad else (0,)) for t in scores)


@fake_kernel("scale_gradients_")
def _fake_scale_gradients_(given: SimpleNamespace) -> None:
    return None


@fake_kernel("scale_gradients")
def _fake_scale_gradients(given: SimpleNamespace) -> list[Tensor]:
    return [torch.empty_like(g) for g in given.gradients]
