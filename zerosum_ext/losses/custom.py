"""A loss of one's own, from its value and derivatives."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from zerosum_ext._checks import describe
from zerosum_ext._ops import autograd
from zerosum_ext._types import Reduction
from zerosum_ext.losses.base import Loss
from zerosum_ext.losses.shapes import checked_weight, common_scores, flat_scores
from zerosum_ext.reference import compute_dtype, weigh_and_reduce


class CustomLoss(Loss):
    """A loss of one's own from its value and derivatives.

    Args:
        value: a function of the scores (p, n), tensors of one shape, that returns the value of each pair.
        derivative: a function of the same that returns its derivatives in p and in n. Second derivatives are right
            where it is made of differentiable operations. It alone says what a gradient is: other tensors that
            ``value`` uses, such as a learnt margin, get none.

    Shapes, sample weights and reductions work as for :func:`bpr_loss`. Example, a hinge of margin 1::

        hinge = CustomLoss(
            value=lambda p, n: torch.relu(1 - (p - n)),
            derivative=lambda p, n: (-(p - n < 1).to(p), (p - n < 1).to(p)),
        )
        hinge(pos, neg).backward()

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> close = lambda p, n: (p - n < 1).to(p)
        >>> loss = zx.CustomLoss(lambda p, n: torch.relu(1 - p + n), lambda p, n: (-close(p, n), close(p, n)))
        >>> loss(torch.tensor([2.0, 0.5]), torch.tensor([0.0, 0.0]))
        tensor(0.2500)
    """

    def __init__(
        self,
        value: Callable[[Tensor, Tensor], Tensor],
        derivative: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        for name, function in (("value", value), ("derivative", derivative)):
            if not callable(function):
                raise TypeError(f"{name}: expected a function of (pos, neg), got {describe(function)}")
        self.value, self.derivative = value, derivative

    def forward(self, pos: Tensor, neg: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        pos, neg = common_scores(pos, neg, self.reduction)
        shape = neg.shape
        pos, neg = flat_scores(pos, neg)
        p = pos.unsqueeze(-1).expand_as(neg) if neg.dim() == 2 else pos
        compute = compute_dtype(p.dtype)
        value = autograd.custom_loss(p.to(compute), neg.to(compute), self.value, self.derivative)
        if not isinstance(value, Tensor) or value.shape != neg.shape:
            raise ValueError(f"value: expected a function that returns shape {tuple(neg.shape)}, got {describe(value)}")
        sample_weight = checked_weight(sample_weight, pos, neg, shape)
        value = weigh_and_reduce(value, sample_weight, self.reduction, pos.dtype)
        return value.reshape(shape) if self.reduction == "none" else value
