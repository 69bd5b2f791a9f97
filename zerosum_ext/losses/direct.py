"""A loss and its gradients from one call, without autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zerosum_ext import _ops, reference
from zerosum_ext._ops import autograd
from zerosum_ext.losses.registry import compiled_loss, get_loss
from zerosum_ext.losses.shapes import Inputs, pair_inputs, quad_inputs, row_inputs
from zerosum_ext.reference import Kernel


def loss_and_grad(
    pos: Tensor,
    neg: Tensor,
    loss: str | nn.Module = "zerosum",
    *,
    sample_weight: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a loss and its gradients in the scores, all from one kernel.

    This is for training steps that hand gradients on themselves, and for CUDA graphs: autograd needs three launches
    on a GPU for what is one here. Nothing waits for the GPU.

    Args:
        pos: scores of the positives, shaped as the loss takes them. Whether they require gradients does not matter.
        neg: scores of the negatives.
        loss: a name for :func:`get_loss`, or a module ``loss(pos, neg, sample_weight)``. Where a module is no loss of
            this library, autograd differentiates it.
        sample_weight: as the loss takes it. It is a constant.
        **options: of the loss, where it is given by name: ``w=0.9``, ``reduction="sum"``.

    Returns:
        The value, and the gradients in pos and in neg, of their shapes and dtypes. None of them has a graph. With
        ``reduction="none"`` the gradients are those of the sum of all values.

    Raises:
        TypeError, ValueError: as the loss raises them; a ValueError for options beside a module.

    float16: a gradient below 6e-8 is rounded to 0, as those of a mean over a large batch are. Take
    ``reduction="sum"`` there.

    Examples:
        >>> import torch
        >>> from zerosum_ext import loss_and_grad
        >>> value, grad_pos, grad_neg = loss_and_grad(torch.ones(2), torch.zeros(2), "bpr")
        >>> grad_pos
        tensor([-0.1345, -0.1345])
    """
    if isinstance(loss, nn.Module):
        if options:
            raise ValueError(
                f"options: expected none beside a module, got {sorted(options)}; make the module with them"
            )
        module = loss
    else:
        module = get_loss(loss, **options)
    kernel = compiled_loss(module)
    if kernel is None or getattr(module, "needs_items", False):
        return _by_autograd(module, pos, neg, sample_weight)
    return _by_kernel(kernel, str(module.reduction), pos, neg, sample_weight)


def _by_kernel(
    kernel: Kernel, reduction: str, pos: Tensor, neg: Tensor, sample_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    shape = reference.SHAPES[kernel.loss]
    with torch.no_grad():
        if shape == "quad":
            inputs = quad_inputs(pos, neg, sample_weight, reduction)
        elif shape == "row":
            inputs = row_inputs(pos, neg, sample_weight, reduction)
        else:
            inputs = pair_inputs(pos, neg, sample_weight, reduction)
        if autograd.transforms_active():  # which no op knows
            value, grad_pos, grad_neg = _by_definition(inputs, kernel, reduction)
        else:
            value, grad_pos, grad_neg = _ops.pair_loss(*inputs, kernel, reduction, True)
        if reduction == "none" and shape == "pair":
            value = value.reshape(neg.shape)
        # The op may have taken the scores in another shape or dtype.
        return value, grad_pos.reshape(pos.shape).to(pos.dtype), grad_neg.reshape(neg.shape).to(neg.dtype)


def _by_definition(inputs: Inputs, kernel: Kernel, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    def total(pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
        _, _, aux_pos, aux_neg, weight = inputs
        value = reference.pair_loss_value(pos, neg, aux_pos, aux_neg, weight, kernel, reduction)
        return value.sum(), value

    (grad_pos, grad_neg), value = torch.func.grad(total, argnums=(0, 1), has_aux=True)(inputs[0], inputs[1])
    return value, grad_pos, grad_neg


def _by_autograd(
    module: nn.Module, pos: Tensor, neg: Tensor, sample_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        leaves = tuple(t.detach().requires_grad_() for t in (pos, neg))
        given = () if sample_weight is None else (sample_weight.detach(),)
        value = module(*leaves, *given)
        found = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    grad_pos, grad_neg = (torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves, strict=True))
    return value.detach(), grad_pos, grad_neg
