"""Losses as modules, for use as ``loss=`` in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zerosum_ext._checks import describe, require_choice, require_finite_number, require_floating, require_index_tensor
from zerosum_ext._ops import autograd
from zerosum_ext.losses.functional import (
    bpr_loss,
    bsl_loss,
    hardest_loss,
    ipw_weights,
    neg2_loss,
    pos2_loss,
    pos2neg2_loss,
    psl_loss,
    require_popularity,
    sampled_softmax_loss,
    zerosum_loss,
)
from zerosum_ext.losses.kernels import (
    Kernel,
    _weights,
    bpr_kernel,
    bsl_kernel,
    hardest_kernel,
    neg2_kernel,
    pos2_kernel,
    pos2neg2_kernel,
    psl_kernel,
    require_positive,
    sampled_softmax_kernel,
    zerosum_kernel,
)
from zerosum_ext.losses.shapes import REDUCTIONS, common_scores, flat_scores, pair_loss, sample_tensor
from zerosum_ext.reference import compute_dtype, weigh_and_reduce


class Loss(nn.Module):
    """What the modules here have in common, and what training asks of a loss.

    ``forward(pos, neg, sample_weight=None)``, and with :attr:`needs_items` also ``pos_items`` and ``neg_items``, the
    indices of the items scored, of the shapes of pos and neg.
    """

    #: Positives (and negatives) of one user that a sample consists of: 1, or 2 for scores [B, 2].
    num_positives: ClassVar[int] = 1
    #: Whether forward also wants the indices of the items.
    needs_items: bool = False

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = require_choice("reduction", reduction, REDUCTIONS)

    def options(self) -> dict[str, Any]:
        """The keyword arguments that the function of this loss takes."""
        return {"reduction": self.reduction}

    def kernel(self) -> Kernel | None:
        """The compiled loss and its three parameters that forward amounts to, for what evaluates losses inside other
        kernels; None where forward is more than that."""
        return None

    def item_constants(self) -> Tensor | None:
        """What the compiled loss takes beside each item, [num_items], or None."""
        return None

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in self.options().items())


class _FunctionLoss(Loss):
    """A module that passes its options to one function."""

    function: ClassVar[Callable[..., Tensor]]
    kernel_function: ClassVar[Callable[..., Kernel]]

    def kernel(self) -> Kernel | None:
        options = self.options()
        del options["reduction"]
        if options.pop("shared", False):
            return None
        return type(self).kernel_function(**options)

    def forward(self, pos: Tensor, neg: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        return type(self).function(pos, neg, sample_weight=sample_weight, **self.options())


class BPRLoss(_FunctionLoss):
    """Module over :func:`bpr_loss`."""

    function = staticmethod(bpr_loss)
    kernel_function = staticmethod(bpr_kernel)


class _WeightedLoss(_FunctionLoss):
    """A loss of a BPR term and a regularising term, with the weights of either convention."""

    def __init__(
        self, bpr_weight: float = 1.0, reg_weight: float = 1.0, w: float | None = None, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        _weights(bpr_weight, reg_weight, w, 1.0, 1.0)
        self.bpr_weight, self.reg_weight, self.w = bpr_weight, reg_weight, w

    def options(self) -> dict[str, Any]:
        if self.w is not None:
            return {"w": self.w, "reduction": self.reduction}
        return {"bpr_weight": self.bpr_weight, "reg_weight": self.reg_weight, "reduction": self.reduction}


class ZerosumLoss(_WeightedLoss):
    """Module over :func:`zerosum_loss`."""

    function = staticmethod(zerosum_loss)
    kernel_function = staticmethod(zerosum_kernel)


class Pos2Neg2Loss(_WeightedLoss):
    """Module over :func:`pos2neg2_loss`."""

    num_positives: ClassVar[int] = 2
    function = staticmethod(pos2neg2_loss)
    kernel_function = staticmethod(pos2neg2_kernel)


class Pos2Loss(_WeightedLoss):
    """Module over :func:`pos2_loss`."""

    num_positives: ClassVar[int] = 2
    function = staticmethod(pos2_loss)
    kernel_function = staticmethod(pos2_kernel)

    def __init__(
        self,
        bpr_weight: float = 1.0,
        reg_weight: float = 1.0,
        w: float | None = None,
        shared: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(bpr_weight, reg_weight, w, reduction)
        self.shared = bool(shared)

    def options(self) -> dict[str, Any]:
        return {**super().options(), "shared": self.shared}


class Neg2Loss(Pos2Loss):
    """Module over :func:`neg2_loss`."""

    function = staticmethod(neg2_loss)
    kernel_function = staticmethod(neg2_kernel)


class SampledSoftmaxLoss(Loss):
    """Module over :func:`sampled_softmax_loss`.

    Args:
        temperature: > 0.
        log_q: log-probability with which the sampler draws each item, [num_items]; None: all alike.
    """

    log_q: Tensor | None

    def __init__(self, temperature: float = 1.0, log_q: Tensor | None = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.temperature = require_positive("temperature", temperature)
        if log_q is not None:
            require_floating("log_q", log_q)
        self.register_buffer("log_q", log_q)
        self.needs_items = log_q is not None

    def options(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "reduction": self.reduction}

    def kernel(self) -> Kernel | None:
        return sampled_softmax_kernel(self.temperature)

    def item_constants(self) -> Tensor | None:
        return self.log_q

    def forward(
        self,
        pos: Tensor,
        neg: Tensor,
        sample_weight: Tensor | None = None,
        pos_items: Tensor | None = None,
        neg_items: Tensor | None = None,
    ) -> Tensor:
        log_q_pos = log_q_neg = None
        if self.log_q is not None:
            log_q_pos = _look_up(self.log_q, "pos_items", pos_items)
            log_q_neg = _look_up(self.log_q, "neg_items", neg_items)
        return sampled_softmax_loss(
            pos, neg, log_q_pos=log_q_pos, log_q_neg=log_q_neg, sample_weight=sample_weight, **self.options()
        )


class BSLLoss(_FunctionLoss):
    """Module over :func:`bsl_loss`."""

    function = staticmethod(bsl_loss)
    kernel_function = staticmethod(bsl_kernel)

    def __init__(self, t1: float = 1.0, t2: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.t1, self.t2 = require_positive("t1", t1), require_positive("t2", t2)

    def options(self) -> dict[str, Any]:
        return {"t1": self.t1, "t2": self.t2, "reduction": self.reduction}


class PSLLoss(_FunctionLoss):
    """Module over :func:`psl_loss`."""

    function = staticmethod(psl_loss)
    kernel_function = staticmethod(psl_kernel)

    def __init__(self, temperature: float = 1.0, activation: str = "tanh", reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.temperature = require_positive("temperature", temperature)
        self.activation = require_choice("activation", activation, ("tanh", "relu"))

    def options(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "activation": self.activation, "reduction": self.reduction}


class HardestLoss(_FunctionLoss):
    """Module over :func:`hardest_loss`."""

    function = staticmethod(hardest_loss)
    kernel_function = staticmethod(hardest_kernel)


def _look_up(table: Tensor, name: str, items: Tensor | None) -> Tensor:
    if items is None:
        raise ValueError(f"{name}: expected the indices of the items scored, got None")
    require_index_tensor(name, items)
    return table[items]


class _ItemConstantLoss(Loss):
    """A loss with a constant of each item, looked up by the indices of the items scored."""

    needs_items = True
    constants: Tensor
    loss: ClassVar[str]

    def __init__(self, constants: Tensor, reduction: str) -> None:
        super().__init__(reduction)
        # float64 on the CPU, and the arithmetic's dtype after the look-up
        self.register_buffer("constants", constants)

    def kernel(self) -> Kernel | None:
        return self.loss, 1.0, 0.0, 0.0

    def item_constants(self) -> Tensor | None:
        return self.constants

    def forward(
        self,
        pos: Tensor,
        neg: Tensor,
        sample_weight: Tensor | None = None,
        pos_items: Tensor | None = None,
        neg_items: Tensor | None = None,
    ) -> Tensor:
        aux = (
            ("pos_items", _look_up(self.constants, "pos_items", pos_items)),
            ("neg_items", _look_up(self.constants, "neg_items", neg_items)),
        )
        return pair_loss(pos, neg, sample_weight, self.loss, 1.0, 0.0, 0.0, self.reduction, aux)


class IPWLoss(_ItemConstantLoss):
    """Inverse propensity weighting (:func:`ipw_loss`) with the weights scaled over all items, once.

    Args:
        popularity: interaction counts of the items, [num_items].
        clip: the largest weight allowed, after scaling.
    """

    loss = "ipw"

    def __init__(self, popularity: Tensor, clip: float | None = None, reduction: str = "mean") -> None:
        super().__init__(ipw_weights(popularity, clip), reduction)
        self.clip = clip

    def options(self) -> dict[str, Any]:
        return {"clip": self.clip, "reduction": self.reduction}


class PDLoss(_ItemConstantLoss):
    """Popularity deconfounding (:func:`pd_loss`).

    Args:
        popularity: interaction counts of the items, [num_items].
        gamma: the exponent, >= 0.
        normalize: divide popularity by its maximum first. False with gamma = .25 is what [RCS22] ran on their
            synthetic data.
    """

    loss = "pd"

    def __init__(
        self, popularity: Tensor, gamma: float = 0.25, normalize: bool = True, reduction: str = "mean"
    ) -> None:
        gamma = require_finite_number("gamma", gamma, minimum=0)
        counts = require_popularity("popularity", popularity).double()
        if normalize and counts.numel():
            counts = counts / counts.amax().clamp(min=torch.finfo(torch.float64).tiny)
        super().__init__(counts**gamma, reduction)
        self.gamma, self.normalize = gamma, bool(normalize)

    def options(self) -> dict[str, Any]:
        return {"gamma": self.gamma, "normalize": self.normalize, "reduction": self.reduction}


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
    """

    def __init__(
        self,
        value: Callable[[Tensor, Tensor], Tensor],
        derivative: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        reduction: str = "mean",
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
        if sample_weight is not None:
            require_floating("sample_weight", sample_weight)
            sample_weight = sample_tensor("sample_weight", sample_weight, pos, neg, shape)
        value = weigh_and_reduce(value, sample_weight, self.reduction, pos.dtype)
        return value.reshape(shape) if self.reduction == "none" else value
