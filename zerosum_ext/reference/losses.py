"""Every loss in plain PyTorch: the definition to read, the oracle of the tests, and the fall-back without kernels.

Everything here is differentiable to any order and finite for every finite input. Sources:
[RCS22] Rhee, Cho, Suh: Countering Popularity Bias by Regularizing Score Differences. RecSys 2022.
[BPR09] Rendle et al.: BPR: Bayesian Personalized Ranking from Implicit Feedback. UAI 2009.
[ZFH21] Zhang et al.: Causal Intervention for Leveraging Popularity Bias in Recommendation. SIGIR 2021 (PD, PDA).
[WFC21] Wei et al.: Model-Agnostic Counterfactual Reasoning for Eliminating Popularity Bias. KDD 2021 (MACR).
[BS08] Bengio, Senecal: Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic Language Model.
    IEEE Trans. Neural Networks 2008 (sampled softmax).
[WCW24] Wu et al.: BSL: Understanding and Improving Softmax Loss for Recommendation. ICDE 2024.
[YCX24] Yang et al.: PSL: Rethinking and Improving Softmax Loss from Pairwise Perspective. NeurIPS 2024.
[WBU11] Weston, Bengio, Usunier: WSABIE: Scaling Up to Large Vocabulary Image Annotation. IJCAI 2011 (hinge).
[MZW21] Mao et al.: SimpleX: A Simple and Strong Baseline for Collaborative Filtering. CIKM 2021 (CCL).
[MJR21] Menon et al.: Long-Tail Learning via Logit Adjustment. ICLR 2021 (softmax with a popularity exponent).
[KBM25] Khrylchenko et al.: Correcting the LogQ Correction: Revisiting Sampled Softmax for Large-Scale Retrieval. RecSys
    2025, arXiv 2507.09331.
[ZCW13] Zhang et al.: Optimizing Top-N Collaborative Filtering via Dynamic Negative Item Sampling. SIGIR 2013 (DNS).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor


def softplus(x: Tensor) -> Tensor:
    """sp(x) = log(1 + e^x), without the cut-off of torch.nn.functional.softplus."""
    return -torch.nn.functional.logsigmoid(-x)


def rho(x: Tensor) -> Tensor:
    """rho(x) = -log(1 - tanh|x|) [RCS22 eq. 7], in the form 2|x| + log1p(expm1(-2|x|)/2) that never overflows."""
    y = x.abs()
    return 2 * y + torch.log1p(torch.expm1(-2 * y) / 2)


class Kernel(NamedTuple):
    """A compiled loss and the three numbers that it is parametrised by (csrc/common/losses.h)."""

    loss: str
    a: float = 0.0
    b: float = 0.0
    c: float = 0.0


#: Which scores a loss looks at: a positive and a negative; two positives and two negatives of one user, [B, 2]; or a
#: positive and all of its K negatives.
Shape = Literal["pair", "quad", "row"]
#: Value per sample of scores p and n, of the constants of their items, and of the parameters.
Definition = Callable[[Tensor, Tensor, Any, Any, Kernel], Tensor]

#: The definition of every compiled loss, by name.
LOSSES: dict[str, Definition] = {}
#: The scores that every compiled loss looks at, by name.
SHAPES: dict[str, Shape] = {}


def definition(shape: Shape) -> Callable[[Definition], Definition]:
    """Register a function as the definition of the compiled loss of the same name."""

    def register(function: Definition) -> Definition:
        LOSSES[function.__name__] = function
        SHAPES[function.__name__] = shape
        return function

    return register


# ---- losses of pairs. p and n have one shape; x_p and x_n are the constants of the two items, where a loss has them


@definition("pair")
def bpr(p: Tensor, n: Tensor, x_p: None, x_n: None, w: Kernel) -> Tensor:
    """sp(n - p) [BPR09]."""
    return softplus(n - p)


@definition("pair")
def zerosum(p: Tensor, n: Tensor, x_p: None, x_n: None, w: Kernel) -> Tensor:
    """a sp(n - p) + b rho(p + n) [RCS22 eq. 7]."""
    return w.a * softplus(n - p) + w.b * rho(p + n)


@definition("pair")
def ipw(p: Tensor, n: Tensor, x_p: Tensor, x_n: Tensor, w: Kernel) -> Tensor:
    """x_p sp(-p) + x_n sp(n), x the inverse popularity of the item."""
    return x_p * softplus(-p) + x_n * softplus(n)


@definition("pair")
def pd(p: Tensor, n: Tensor, x_p: Tensor, x_n: Tensor, w: Kernel) -> Tensor:
    """sp(f(n) x_n - f(p) x_p) with f = ELU + 1 and x = popularity^gamma [ZFH21 eq. 6, 7]."""

    def f(y: Tensor) -> Tensor:
        # exp of a clamped argument: the branch that is not taken must not overflow, or its gradient is NaN.
        return torch.where(y > 0, y + 1, torch.exp(y.clamp(max=0)))

    return softplus(f(n) * x_n - f(p) * x_p)


@definition("pair")
def hinge(p: Tensor, n: Tensor, x_p: None, x_n: None, w: Kernel) -> Tensor:
    """max(0, a - p + n) [WBU11]."""
    return torch.relu(w.a - p + n)


# ---- losses of two positives and two negatives of one user, [B, 2]


@definition("quad")
def pos2neg2(p: Tensor, n: Tensor, x_p: None, x_n: None, w: Kernel) -> Tensor:
    """a (sp(n1 - p1) + sp(n2 - p2)) + b rho(p1 - p2) + c rho(n1 - n2) [RCS22 eq. 6].

    Pos2Neg2 has b = c; its ablations Pos2 and Neg2 have c = 0 and b = 0.
    """
    (p1, p2), (n1, n2) = p.unbind(-1), n.unbind(-1)
    return w.a * (softplus(n1 - p1) + softplus(n2 - p2)) + w.b * rho(p1 - p2) + w.c * rho(n1 - n2)


# ---- losses of a row: p [B, 1], n [B, K], value [B]


@definition("row")
def sampled_softmax(p: Tensor, n: Tensor, x_p: Tensor | None, x_n: Tensor | None, w: Kernel) -> Tensor:
    """-log softmax of the positive among itself and the negatives, of logits a y - log q (x = log q) [BS08]."""
    z_p = w.a * p if x_p is None else w.a * p - x_p
    z_n = w.a * n if x_n is None else w.a * n - x_n
    return torch.logsumexp(torch.cat([z_p, z_n], -1), -1) - z_p.squeeze(-1)


@definition("row")
def bsl(p: Tensor, n: Tensor, x_p: None, x_n: None, w: Kernel) -> Tensor:
    """-a p + c (logsumexp_j(b n_j) - log K); a = 1/t1, b = 1/t2, c = t2/t1 [WCW24]."""
    return w.c * (torch.logsumexp(w.b * n, -1) - math.log(n.shape[-1])) - w.a * p.squeeze(-1)


@definition("row")
def psl_tanh(p: Tensor, n: Tensor, x_p: None, x_n: None, w: Kernel) -> Tensor:
    """logsumexp_j(a log(1 + tanh(n_j - p))), where log(1 + tanh x) = log 2 - sp(-2x) [YCX24]."""
    return torch.logsumexp(w.a * (math.log(2) - softplus(-2 * (n - p))), -1)


@definition("row")
def psl_relu(p: Tensor, n: Tensor, x_p: None, x_n: None, w: Kernel) -> Tensor:
    """logsumexp_j(a log(1 + max(n_j - p, 0))) [YCX24]."""
    return torch.logsumexp(w.a * torch.log1p(torch.relu(n - p)), -1)


@definition("row")
def hardest(p: Tensor, n: Tensor, x_p: None, x_n: None, w: Kernel) -> Tensor:
    """sp(max_j n_j - p): BPR against the negative that scores highest [ZCW13]."""
    first = torch.argmax(n, -1, keepdim=True)
    return softplus(n.gather(-1, first) - p).squeeze(-1)


@definition("row")
def ccl(p: Tensor, n: Tensor, x_p: None, x_n: None, w: Kernel) -> Tensor:
    """1 - p + b mean_j max(0, n_j - a) [MZW21]."""
    return 1 - p.squeeze(-1) + w.b * torch.relu(n - w.a).mean(-1)


@definition("row")
def refined_softmax(p: Tensor, n: Tensor, x_p: Tensor, x_n: Tensor, w: Kernel) -> Tensor:
    """sp(logsumexp_j(a n_j - x_j) - log K + log(1 - e^x_p) - a p), x = log q [KBM25]."""
    others = torch.log1p(-torch.exp(x_p.clamp(max=0)))
    z = w.a * n - x_n
    # Where all negatives are masked the loss is 0, and so are its derivatives, where those of logsumexp are NaN.
    any_left = (z != -torch.inf).any(-1, keepdim=True)
    sums = torch.logsumexp(torch.where(any_left, z, 0), -1)
    negatives = torch.where(any_left.squeeze(-1), sums, -torch.inf) - math.log(n.shape[-1])
    return softplus(negatives + (others - w.a * p).squeeze(-1))


# ---- a loss with branches of its own


def macr(y_p: Tensor, y_n: Tensor, user: Tensor, item_p: Tensor, item_n: Tensor, alpha: float, beta: float) -> Tensor:
    """MACR [WFC21 eq. 4-7]: cross-entropy of s(y) s(user) s(item), plus alpha and beta times those of s(item), s(user).

    log(1 - q), q = s(y) s(u) s(i), is taken as the logarithm of s(-y) + s(y) s(-u) + s(y) s(u) s(-i), whose terms are
    all positive: 1 - q itself cancels to 0 from scores of about 17 in float32.
    """
    positive = softplus(-y_p) + softplus(-user) + softplus(-item_p)
    terms = (
        -softplus(y_n),
        -softplus(-y_n) - softplus(user),
        -softplus(-y_n) - softplus(-user) - softplus(item_n),
    )
    negative = -torch.logsumexp(torch.stack(torch.broadcast_tensors(*terms)), 0)
    item_branch = softplus(-item_p) + softplus(item_n)
    user_branch = softplus(-user) + softplus(user)
    return positive + negative + alpha * item_branch + beta * user_branch


def reduce(value: Tensor, reduction: str) -> Tensor:
    """Reduce values by none, sum or mean; the mean of nothing is 0."""
    if reduction == "none":
        return value
    if reduction == "sum":
        return value.sum()
    return value.sum() / max(value.numel(), 1)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the arithmetic: float64 for float64, float32 for every other."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def weigh(value: Tensor, weight: Tensor | None) -> Tensor:
    """Multiply value [B] or [B, K] by a weight [B] or [B, K], where there is one."""
    if weight is None:
        return value
    if value.dim() < weight.dim():
        value = value.unsqueeze(-1)
    return value * (weight.unsqueeze(-1) if value.dim() > weight.dim() else weight)


def weigh_and_reduce(value: Tensor, weight: Tensor | None, reduction: str, dtype: torch.dtype) -> Tensor:
    """Return the loss of the values per sample; ``dtype`` is that of reduction none."""
    value = weigh(value, weight)
    return value.to(dtype) if reduction == "none" else reduce(value, reduction)


def pair_loss_value(
    pos: Tensor,
    neg: Tensor,
    aux_pos: Tensor | None,
    aux_neg: Tensor | None,
    weight: Tensor | None,
    kernel: Kernel,
    reduction: str,
) -> Tensor:
    """Return the value of :func:`zerosum_ext._ops.pair_loss`, differentiable in every tensor."""
    compute = compute_dtype(pos.dtype)
    p, n = pos.to(compute), neg.to(compute)
    if n.dim() > p.dim():
        p = p.unsqueeze(-1)
        aux_pos = aux_pos.unsqueeze(-1) if aux_pos is not None and aux_pos.dim() < p.dim() else aux_pos
        aux_neg = aux_neg.unsqueeze(-1) if aux_neg is not None and aux_neg.dim() < n.dim() else aux_neg
    value = LOSSES[kernel.loss](p, n, aux_pos, aux_neg, kernel)
    return weigh_and_reduce(value, weight, reduction, pos.dtype)


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
    """Return value and derivatives, as :func:`zerosum_ext._ops.pair_loss` does."""
    out = _value_and_gradients(
        lambda p, n: pair_loss_value(p, n, aux_pos, aux_neg, weight, kernel, reduction), (pos, neg), grad
    )
    return out[0], out[1], out[2]


def macr_loss_value(
    scores: Sequence[Tensor],
    weight: Tensor | None,
    alpha: float,
    beta: float,
    reduction: str,
) -> Tensor:
    """Return the value of :func:`zerosum_ext._ops.macr_loss`, differentiable in every tensor."""
    dtype, dim = scores[0].dtype, scores[1].dim()
    inputs = [t.to(compute_dtype(dtype)) for t in scores]
    y_p, y_n, user, item_p, item_n = (t.unsqueeze(-1) if t.dim() < dim else t for t in inputs)
    return weigh_and_reduce(macr(y_p, y_n, user, item_p, item_n, alpha, beta), weight, reduction, dtype)


def macr_loss(
    scores: Sequence[Tensor],
    weight: Tensor | None,
    alpha: float,
    beta: float,
    reduction: str,
    grad: bool,
) -> tuple[Tensor, ...]:
    """Return value and derivatives, as :func:`zerosum_ext._ops.macr_loss` does."""
    return _value_and_gradients(
        lambda *s: macr_loss_value(s, weight, alpha, beta, reduction),
        tuple(scores),
        grad,
    )


def _value_and_gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: bool) -> tuple[Tensor, ...]:
    if not grad:
        with torch.no_grad():
            return function(*inputs), *(t.new_empty(0) for t in inputs)
    with torch.enable_grad():
        leaves = tuple(t.detach().requires_grad_() for t in inputs)
        value = function(*leaves)
        return value.detach(), *torch.autograd.grad(value.sum(), leaves)
