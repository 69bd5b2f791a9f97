"""Every op in plain PyTorch: the definition to read, the oracle of the tests, and the fall-back without kernels.

Everything here is differentiable to any order and finite for every finite input. Sources:
[RCS22] Rhee, Cho, Suh: Countering Popularity Bias by Regularizing Score Differences. RecSys 2022.
[BPR09] Rendle et al.: BPR: Bayesian Personalized Ranking from Implicit Feedback. UAI 2009.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def softplus(x: Tensor) -> Tensor:
    """sp(x) = log(1 + e^x), without the cut-off of torch.nn.functional.softplus."""
    return -torch.nn.functional.logsigmoid(-x)


def rho(x: Tensor) -> Tensor:
    """rho(x) = -log(1 - tanh|x|) [RCS22 eq. 7], in the form 2|x| + log1p(expm1(-2|x|)/2) that never overflows."""
    y = x.abs()
    return 2 * y + torch.log1p(torch.expm1(-2 * y) / 2)


# ---------------------------------------------------------------------------------------------- losses, per sample


def bpr(pos: Tensor, neg: Tensor, a: float, b: float, c: float) -> Tensor:
    """a sp(n - p) [BPR09]."""
    return a * softplus(neg - pos)


def zerosum(pos: Tensor, neg: Tensor, a: float, b: float, c: float) -> Tensor:
    """a sp(n - p) + b rho(p + n) [RCS22 eq. 7]."""
    return a * softplus(neg - pos) + b * rho(pos + neg)


def pos2neg2(pos: Tensor, neg: Tensor, a: float, b: float, c: float) -> Tensor:
    """a (sp(n1 - p1) + sp(n2 - p2)) + b rho(p1 - p2) + c rho(n1 - n2) [RCS22 eq. 6], of pos, neg [B, 2]."""
    (p1, p2), (n1, n2) = pos.unbind(-1), neg.unbind(-1)
    return a * (softplus(n1 - p1) + softplus(n2 - p2)) + b * rho(p1 - p2) + c * rho(n1 - n2)


#: Definitions by name; pos and neg are brought to one shape first, [B, K] or, for QUAD_LOSSES, [B, 2].
PAIR_LOSSES: dict[str, Callable[[Tensor, Tensor, float, float, float], Tensor]] = {
    "bpr": bpr,
    "zerosum": zerosum,
    "pos2neg2": pos2neg2,
}
#: Losses of two positives and two negatives of one user.
QUAD_LOSSES = frozenset({"pos2neg2"})


def reduce(value: Tensor, reduction: str) -> Tensor:
    """none, sum or mean; the mean of nothing is 0."""
    if reduction == "none":
        return value
    if reduction == "sum":
        return value.sum()
    return value.sum() / max(value.numel(), 1)


def pair_loss_value(
    pos: Tensor, neg: Tensor, weight: Tensor | None, loss: str, a: float, b: float, c: float, reduction: str
) -> Tensor:
    """The value that :func:`zerosum_ext._ops.pair_loss` returns, differentiable."""
    compute = torch.float64 if pos.dtype == torch.float64 else torch.float32
    p, n = pos.to(compute), neg.to(compute)
    if loss not in QUAD_LOSSES and n.dim() > p.dim():
        p = p.unsqueeze(-1)
    value = PAIR_LOSSES[loss](p, n, a, b, c)
    if weight is not None:
        weight = weight.to(compute)
        value = value * (weight.unsqueeze(-1) if value.dim() > weight.dim() else weight)
    if reduction == "none":
        return value.to(pos.dtype)
    return reduce(value, reduction)


def pair_loss(
    pos: Tensor,
    neg: Tensor,
    weight: Tensor | None,
    loss: str,
    a: float,
    b: float,
    c: float,
    reduction: str,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The op pair_loss: value and derivatives (empty without ``grad``)."""
    if not grad:
        with torch.no_grad():
            value = pair_loss_value(pos, neg, weight, loss, a, b, c, reduction)
        return value, pos.new_empty(0), neg.new_empty(0)
    with torch.enable_grad():
        p, n = pos.detach().requires_grad_(), neg.detach().requires_grad_()
        value = pair_loss_value(p, n, weight, loss, a, b, c, reduction)
        grad_pos, grad_neg = torch.autograd.grad(value.sum(), (p, n))
    return value.detach(), grad_pos, grad_neg
