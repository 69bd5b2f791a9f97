"""Losses on scores: drop-in functions and modules over one fused op each.

Every function takes the scores of positives and negatives from any model and returns a differentiable loss.

Shapes
    pos [B] and neg [B]       one negative per positive
    pos [B] and neg [B, K]    K negatives per positive; each (positive, negative) pair is one sample
    pos, neg [B, 2]           two positives and two negatives of the same user (Pos2Neg2)

dtypes: float64, float32, float16, bfloat16; the arithmetic is in float32 or better. ``reduction="none"`` returns the
dtype of the scores, ``"sum"`` and ``"mean"`` return float32 (float64 for float64). Values and gradients are finite for
any finite scores up to 1e4; NaN in, NaN out. Gradients of any order are right; ``torch.compile`` sees no graph break.

Sources: [RCS22] Rhee, Cho, Suh, RecSys 2022; [BPR09] Rendle et al., UAI 2009.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zerosum_ext import _ops, reference
from zerosum_ext._checks import describe, require_choice, require_finite_number, require_floating

_REDUCTIONS = ("none", "sum", "mean")


class _PairLoss(torch.autograd.Function):
    """Autograd over the op pair_loss.

    The old style of Function (ctx in forward) costs half of what the newer styles do per call.
    """

    @staticmethod
    def forward(
        ctx: Any,
        pos: Tensor,
        neg: Tensor,
        weight: Tensor | None,
        loss: str,
        a: float,
        b: float,
        c: float,
        reduction: str,
    ) -> Tensor:
        keep = reduction != "none"
        value, grad_pos, grad_neg = _ops.pair_loss(pos, neg, weight, loss, a, b, c, reduction, keep)
        ctx.save_for_backward(pos, neg, weight, *((grad_pos, grad_neg) if keep else ()))
        ctx.args = (loss, a, b, c, reduction)
        return value

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        pos, neg, weight, *grads = ctx.saved_tensors
        loss, a, b, c, reduction = ctx.args
        if torch.is_grad_enabled():
            # create_graph=True: the fused derivatives are constants to autograd, so a second derivative through
            # them would silently be 0. Differentiate the definition instead.
            grad_pos, grad_neg = _differentiable_gradients(
                (pos, neg), grad_output, lambda p, n: reference.pair_loss_value(p, n, weight, *ctx.args)
            )
        elif reduction == "none":
            # sum_k grad_output_k * loss_k is the same loss with other weights.
            scaled = grad_output.to(_ops.compute_dtype(pos.dtype))
            if weight is not None:
                scaled = scaled * (weight.unsqueeze(-1) if scaled.dim() > weight.dim() else weight)
            _, grad_pos, grad_neg = _ops.pair_loss(pos, neg, scaled, loss, a, b, c, "sum", True)
        else:
            grad_pos, grad_neg = grads
            if not _is_one(grad_output):
                grad_pos = (grad_pos * grad_output).to(grad_pos.dtype)
                grad_neg = (grad_neg * grad_output).to(grad_neg.dtype)
        return grad_pos, grad_neg, None, None, None, None, None, None


def _is_one(grad_output: Tensor) -> bool:
    """Whether a scalar gradient is 1 and may be skipped; looked at only where looking does not synchronise."""
    if torch.compiler.is_compiling() or grad_output.device.type != "cpu" or type(grad_output) is not Tensor:
        return False
    return grad_output.item() == 1.0


def _differentiable_gradients(inputs: tuple[Tensor, ...], grad_output: Tensor, function: Any) -> tuple[Tensor, ...]:
    # Views cut the inputs off from each other: where one was computed from another, autograd.grad would otherwise
    # count the path between them twice.
    views = tuple(t.view_as(t) for t in inputs)
    return torch.autograd.grad(function(*views), views, grad_output, create_graph=True)


def _prepare(
    pos: Tensor, neg: Tensor, sample_weight: Tensor | None, reduction: str, pairs: bool
) -> tuple[Tensor, Tensor, Tensor | None, torch.Size]:
    """Checks the arguments and brings them to what the op takes; also returns the shape of reduction none."""
    require_floating("pos", pos)
    require_floating("neg", neg)
    if reduction not in _REDUCTIONS:
        require_choice("reduction", reduction, _REDUCTIONS)
    if pos.device != neg.device:
        raise ValueError(f"neg: expected a tensor on {pos.device}, where pos is, got {describe(neg)}")
    if pos.dtype != neg.dtype:
        common = torch.promote_types(pos.dtype, neg.dtype)
        pos, neg = pos.to(common), neg.to(common)
    if pairs:
        if pos.dim() != 2 or pos.shape[1] != 2:
            raise ValueError(f"pos: expected the two positives of each user, shape [B, 2], got {describe(pos)}")
        if neg.shape != pos.shape:
            raise ValueError(f"neg: expected the shape of pos, {tuple(pos.shape)}, got {describe(neg)}")
        shape = pos.shape[:1]
    else:
        shape = neg.shape
        if pos.dim() == 2 and neg.dim() == 2 and pos.shape[1] == 1 and pos.shape[0] == neg.shape[0]:
            pos = pos.squeeze(1)
        if pos.shape == neg.shape:
            if pos.dim() != 1:
                pos, neg = pos.reshape(-1), neg.reshape(-1)
        elif pos.dim() != 1 or neg.dim() != 2 or neg.shape[0] != pos.shape[0]:
            raise ValueError(
                f"neg: expected shape {tuple(pos.shape)} or [{pos.shape[0] if pos.dim() else 1}, K] for pos of shape "
                f"{tuple(pos.shape)}, got {describe(neg)}"
            )
    weight = sample_weight
    if weight is not None:
        require_floating("sample_weight", weight)
        if weight.device != pos.device:
            raise ValueError(f"sample_weight: expected a tensor on {pos.device}, where pos is, got {describe(weight)}")
        if weight.shape == shape:
            weight = weight.reshape(neg.shape) if not pairs and weight.shape != neg.shape else weight
        elif pairs or weight.shape != shape[:1]:
            raise ValueError(
                f"sample_weight: expected shape {tuple(shape)}"
                + ("" if pairs or len(shape) == 1 else f" or {tuple(shape[:1])}")
                + f", got {describe(weight)}"
            )
        elif neg.dim() == 1 and len(shape) > 1:
            weight = weight.unsqueeze(-1).expand(shape).reshape(-1)
        weight = weight.to(_ops.compute_dtype(pos.dtype))
    return pos, neg, weight, shape


def _pair_loss(
    pos: Tensor,
    neg: Tensor,
    sample_weight: Tensor | None,
    loss: str,
    a: float,
    b: float,
    c: float,
    reduction: str,
    pairs: bool = False,
) -> Tensor:
    pos, neg, weight, shape = _prepare(pos, neg, sample_weight, reduction, pairs)
    needs_grad = torch.is_grad_enabled() and (
        pos.requires_grad or neg.requires_grad or (weight is not None and weight.requires_grad)
    )
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        value = reference.pair_loss_value(pos, neg, weight, loss, a, b, c, reduction)  # vmap, grad, jacrev, ...
    elif not needs_grad:
        value = _ops.pair_loss(pos, neg, weight, loss, a, b, c, reduction, False)[0]
    elif weight is not None and weight.requires_grad:
        value = reference.pair_loss_value(pos, neg, weight, loss, a, b, c, reduction)
    else:
        value = _PairLoss.apply(pos, neg, weight, loss, a, b, c, reduction)
    return value.reshape(shape) if reduction == "none" and value.shape != shape else value


def _weights(bpr_weight: float, reg_weight: float, w: float | None, pairs: int) -> tuple[float, float]:
    """The factors (a, b) of the BPR and the regularising terms, from either convention of the authors."""
    if w is None:
        a = require_finite_number("bpr_weight", bpr_weight, minimum=0)
        return a, require_finite_number("reg_weight", reg_weight, minimum=0)
    if bpr_weight != 1.0 or reg_weight != 1.0:
        raise ValueError(
            f"w: expected w or bpr_weight and reg_weight, not both; got w={w!r}, bpr_weight={bpr_weight!r}, "
            f"reg_weight={reg_weight!r}"
        )
    w = require_finite_number("w", w, minimum=0, maximum=1)
    return w / (2 * pairs), (1 - w) / (2 * pairs)


def bpr_loss(pos: Tensor, neg: Tensor, *, sample_weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """Bayesian personalized ranking: ``log(1 + exp(n - p))`` [BPR09].

    Args:
        pos: scores of the positives, [B].
        neg: scores of the negatives, [B] or [B, K], of the same device.
        sample_weight: non-negative factor of each sample, [B] or [B, K]; ``mean`` still divides by the number of
            samples.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``.

    Returns:
        A scalar, or for ``"none"`` a tensor of the shape of ``neg``.

    Raises:
        TypeError: scores or weights that are not floating-point tensors.
        ValueError: shapes or devices that do not fit, an unknown reduction.
    """
    return _pair_loss(pos, neg, sample_weight, "bpr", 1.0, 0.0, 0.0, reduction)


def zerosum_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    bpr_weight: float = 1.0,
    reg_weight: float = 1.0,
    w: float | None = None,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """BPR plus a term that makes positive and negative scores sum to zero [RCS22 eq. 7].

    ``a log(1 + exp(n - p)) + b rho(p + n)`` with ``rho(x) = -log(1 - tanh|x|)``.

    Args:
        pos, neg, sample_weight, reduction: as for :func:`bpr_loss`.
        bpr_weight: a.
        reg_weight: b.
        w: the convention of the authors' code instead: a = w/2, b = (1-w)/2, with w in [0, 1].

    Raises:
        ValueError: also where w comes together with bpr_weight or reg_weight, or a weight is out of range.
    """
    a, b = _weights(bpr_weight, reg_weight, w, 1)
    return _pair_loss(pos, neg, sample_weight, "zerosum", a, b, 0.0, reduction)


def pos2neg2_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    bpr_weight: float = 1.0,
    reg_weight: float = 1.0,
    w: float | None = None,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """BPR on two pairs plus a term that makes positives, and negatives, score alike [RCS22 eq. 6].

    ``a (sp(n1-p1) + sp(n2-p2)) + b (rho(p1-p2) + rho(n1-n2))`` with ``sp(x) = log(1 + exp(x))``.

    Args:
        pos, neg: scores [B, 2]: two positives and two negatives of the same user in each row.
        bpr_weight: a.
        reg_weight: b.
        w: the convention of the authors' code instead: a = w/4, b = (1-w)/4, with w in [0, 1].
        sample_weight: [B].
        reduction: ``"none"`` returns [B]; ``"mean"`` divides by B.

    Raises:
        TypeError, ValueError: as for :func:`zerosum_loss`.
    """
    a, b = _weights(bpr_weight, reg_weight, w, 2)
    return _pair_loss(pos, neg, sample_weight, "pos2neg2", a, b, b, reduction, pairs=True)


class BPRLoss(nn.Module):
    """Module over :func:`bpr_loss`."""

    #: Positives (and negatives) of one user that a sample consists of.
    num_positives: ClassVar[int] = 1

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = require_choice("reduction", reduction, _REDUCTIONS)

    def forward(self, pos: Tensor, neg: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        return bpr_loss(pos, neg, sample_weight=sample_weight, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class _WeightedLoss(nn.Module):
    """A loss of a BPR term and a regularising term, with the weights of either convention."""

    num_positives: ClassVar[int] = 1

    def __init__(
        self,
        bpr_weight: float = 1.0,
        reg_weight: float = 1.0,
        w: float | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        _weights(bpr_weight, reg_weight, w, 1)
        self.bpr_weight, self.reg_weight, self.w = bpr_weight, reg_weight, w
        self.reduction = require_choice("reduction", reduction, _REDUCTIONS)

    def _arguments(self) -> dict[str, Any]:
        return {"bpr_weight": self.bpr_weight, "reg_weight": self.reg_weight, "w": self.w, "reduction": self.reduction}

    def extra_repr(self) -> str:
        weights = f"w={self.w}" if self.w is not None else f"bpr_weight={self.bpr_weight}, reg_weight={self.reg_weight}"
        return f"{weights}, reduction={self.reduction!r}"


class ZerosumLoss(_WeightedLoss):
    """Module over :func:`zerosum_loss`."""

    def forward(self, pos: Tensor, neg: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        return zerosum_loss(pos, neg, sample_weight=sample_weight, **self._arguments())


class Pos2Neg2Loss(_WeightedLoss):
    """Module over :func:`pos2neg2_loss`."""

    num_positives: ClassVar[int] = 2

    def forward(self, pos: Tensor, neg: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        return pos2neg2_loss(pos, neg, sample_weight=sample_weight, **self._arguments())


_MODULES: dict[str, type[nn.Module]] = {"bpr": BPRLoss, "zerosum": ZerosumLoss, "pos2neg2": Pos2Neg2Loss}


def loss_names() -> list[str]:
    """The names that :func:`get_loss` knows."""
    return sorted(_MODULES)


def get_loss(name: str, **options: Any) -> nn.Module:
    """The loss module of that name, made with the given options.

    Raises:
        ValueError: an unknown name or option.
    """
    require_choice("loss", name, loss_names())
    try:
        return _MODULES[name](**options)
    except TypeError as error:
        if "unexpected keyword" in str(error):
            raise ValueError(f"loss {name!r}: {str(error).split('() ')[-1]}; got {sorted(options)}") from None
        raise
