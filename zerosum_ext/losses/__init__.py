"""Losses on scores: drop-in functions and modules over one fused op each.

Every function takes the scores of positives and negatives from any model and returns a differentiable loss.

Shapes
    pos [B] and neg [B]       one negative per positive
    pos [B] and neg [B, K]    K negatives per positive; each (positive, negative) pair is one sample
    pos, neg [B, 2]           two positives and two negatives of the same user (Pos2Neg2)

dtypes: float64, float32, float16, bfloat16; the arithmetic is in float32 or better. ``reduction="none"`` returns the
dtype of the scores, ``"sum"`` and ``"mean"`` return float32 (float64 for float64). Values and gradients are finite for
any finite scores up to 1e4; NaN in, NaN out. Gradients of any order are right.

Each loss is a function, and a module over it for use as ``loss=`` in training. Sources in short: [RCS22] Rhee, Cho,
Suh, RecSys 2022; [BPR09] Rendle et al., UAI 2009; the others stand in full in :mod:`zerosum_ext.reference.losses`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zerosum_ext._checks import (
    describe,
    require_choice,
    require_finite_number,
    require_floating,
    require_index_tensor,
    require_same_device,
    require_tensor,
)
from zerosum_ext._ops import autograd as _autograd
from zerosum_ext.reference.losses import compute_dtype, weigh_and_reduce

_REDUCTIONS = ("none", "sum", "mean")
_DTYPES = frozenset((torch.float64, torch.float32, torch.float16, torch.bfloat16))


# ---- checks and shapes


def _sample_tensor(
    name: str, value: Tensor, pos: Tensor, neg: Tensor, shape: torch.Size, *, by_row: bool = True
) -> Tensor:
    """Checks a constant given per sample, [B, K] or, ``by_row``, [B], and brings it to the dtype of the arithmetic."""
    require_tensor(name, value)
    require_same_device(name, value, "pos", pos)
    if value.shape == shape:
        value = value.reshape(neg.shape) if neg.shape != shape else value
    elif by_row and len(shape) == 2 and value.shape == shape[:1]:
        if neg.dim() == 1:  # scores that came as two matrices and were flattened
            value = value.unsqueeze(-1).expand(shape).reshape(-1)
    else:
        either = f" or {tuple(shape[:1])}" if by_row and len(shape) == 2 else ""
        raise ValueError(f"{name}: expected shape {tuple(shape)}{either}, got {describe(value)}")
    return value.to(compute_dtype(pos.dtype))


def _scores(pos: Tensor, neg: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """Checks what holds for every loss, and brings both scores to one dtype."""
    if (
        isinstance(pos, Tensor)
        and isinstance(neg, Tensor)
        and pos.dtype is neg.dtype
        and pos.dtype in _DTYPES
        and reduction in _REDUCTIONS
        and pos.device == neg.device
    ):
        return pos, neg
    for name, scores in (("pos", pos), ("neg", neg)):
        require_floating(name, scores)
        if scores.dtype not in _DTYPES:
            raise TypeError(f"{name}: expected float64, float32, float16 or bfloat16, got {describe(scores)}")
    require_choice("reduction", reduction, _REDUCTIONS)
    require_same_device("neg", neg, "pos", pos)
    common = torch.promote_types(pos.dtype, neg.dtype)
    return pos.to(common), neg.to(common)


def _flat_scores(pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
    """pos [B] with neg [B] or [B, K], from these or from two tensors of one shape."""
    if pos.shape == neg.shape:
        return (pos, neg) if pos.dim() == 1 else (pos.reshape(-1), neg.reshape(-1))
    if pos.dim() == 2 and pos.shape[1] == 1 and neg.dim() == 2:
        pos = pos.squeeze(1)
    if pos.dim() != 1 or neg.dim() != 2 or neg.shape[0] != pos.shape[0]:
        raise ValueError(
            f"neg: expected the shape of pos, {tuple(pos.shape)}, or [B, K] for pos of shape [B], got {describe(neg)}"
        )
    return pos, neg


def _pair_loss(
    pos: Tensor,
    neg: Tensor,
    sample_weight: Tensor | None,
    loss: str,
    a: float,
    b: float,
    c: float,
    reduction: str,
    aux: tuple[tuple[str, Tensor], tuple[str, Tensor]] | None = None,
) -> Tensor:
    """A loss of pos [B] and neg [B] or [B, K] (or of one shape): every pair is a sample."""
    pos, neg = _scores(pos, neg, reduction)
    shape = neg.shape
    pos, neg = _flat_scores(pos, neg)
    if sample_weight is not None:
        require_floating("sample_weight", sample_weight)
        sample_weight = _sample_tensor("sample_weight", sample_weight, pos, neg, shape)
    aux_pos = aux_neg = None
    if aux is not None:
        aux_pos = _sample_tensor(*aux[0], pos, neg, shape)
        aux_neg = _sample_tensor(*aux[1], pos, neg, shape, by_row=False)
    value = _autograd.pair_loss(pos, neg, aux_pos, aux_neg, sample_weight, (loss, a, b, c, reduction))
    return value.reshape(shape) if reduction == "none" and value.shape != shape else value


def _quad_loss(
    pos: Tensor,
    neg: Tensor,
    sample_weight: Tensor | None,
    loss: str,
    a: float,
    b: float,
    c: float,
    reduction: str,
) -> Tensor:
    """A loss of pos, neg [B, 2]: every row is a sample."""
    pos, neg = _scores(pos, neg, reduction)
    for name, scores in (("pos", pos), ("neg", neg)):
        if scores.dim() != 2 or scores.shape[1] != 2:
            raise ValueError(f"{name}: expected two scores of each user, shape [B, 2], got {describe(scores)}")
    if pos.shape != neg.shape:
        raise ValueError(f"neg: expected the shape of pos, {tuple(pos.shape)}, got {describe(neg)}")
    if sample_weight is not None:
        require_floating("sample_weight", sample_weight)
        sample_weight = _sample_tensor("sample_weight", sample_weight, pos[:, 0], pos[:, 0], pos.shape[:1])
    return _autograd.pair_loss(pos, neg, None, None, sample_weight, (loss, a, b, c, reduction))


def _row_loss(
    pos: Tensor,
    neg: Tensor,
    sample_weight: Tensor | None,
    loss: str,
    a: float,
    b: float,
    c: float,
    reduction: str,
    aux_pos: tuple[str, Tensor | None] = ("", None),
    aux_neg: tuple[str, Tensor | None] = ("", None),
) -> Tensor:
    """A loss of pos [B] and neg [B, K] that looks at all K negatives at once: every row is a sample."""
    pos, neg = _scores(pos, neg, reduction)
    if pos.dim() == 2 and pos.shape[1] == 1:
        pos = pos.squeeze(1)
    if neg.dim() == 1:
        neg = neg.unsqueeze(1)
    if pos.dim() != 1 or neg.dim() != 2 or neg.shape[0] != pos.shape[0] or neg.shape[1] < 1:
        raise ValueError(
            f"neg: expected [B, K] with K >= 1 negatives for pos of shape [B], got {describe(neg)} for {describe(pos)}"
        )
    if sample_weight is not None:
        require_floating("sample_weight", sample_weight)
        sample_weight = _sample_tensor("sample_weight", sample_weight, pos, pos, pos.shape)
    x_pos = x_neg = None
    if aux_pos[1] is not None:
        x_pos = _sample_tensor(aux_pos[0], aux_pos[1], pos, pos, pos.shape)
    name, x = aux_neg
    if x is not None:
        require_tensor(name, x)
        if x.dim() == 1:  # one negative a row, or the same K in all rows
            x = x.unsqueeze(1) if neg.shape[1] == 1 else x.expand(neg.shape[0], -1)
        x_neg = _sample_tensor(name, x, pos, neg, neg.shape, by_row=False)
    return _autograd.pair_loss(pos, neg, x_pos, x_neg, sample_weight, (loss, a, b, c, reduction))


def _weights(
    bpr_weight: float, reg_weight: float, w: float | None, a_share: float, b_share: float
) -> tuple[float, float]:
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
    return w * a_share, (1 - w) * b_share


# What each function amounts to among the compiled losses (csrc/common/losses.h): a name and three parameters.
Kernel = tuple[str, float, float, float]


def _bpr_kernel() -> Kernel:
    return "bpr", 1.0, 0.0, 0.0


def _zerosum_kernel(bpr_weight: float = 1.0, reg_weight: float = 1.0, w: float | None = None) -> Kernel:
    return "zerosum", *_weights(bpr_weight, reg_weight, w, 0.5, 0.5), 0.0


def _pos2neg2_kernel(bpr_weight: float = 1.0, reg_weight: float = 1.0, w: float | None = None) -> Kernel:
    a, b = _weights(bpr_weight, reg_weight, w, 0.25, 0.25)
    return "pos2neg2", a, b, b


def _pos2_kernel(bpr_weight: float = 1.0, reg_weight: float = 1.0, w: float | None = None) -> Kernel:
    return "pos2neg2", *_weights(bpr_weight, reg_weight, w, 0.25, 0.5), 0.0


def _neg2_kernel(bpr_weight: float = 1.0, reg_weight: float = 1.0, w: float | None = None) -> Kernel:
    a, b = _weights(bpr_weight, reg_weight, w, 0.25, 0.5)
    return "pos2neg2", a, 0.0, b


def _sampled_softmax_kernel(temperature: float = 1.0) -> Kernel:
    return "sampled_softmax", 1 / _positive("temperature", temperature), 0.0, 0.0


def _bsl_kernel(t1: float, t2: float) -> Kernel:
    t1, t2 = _positive("t1", t1), _positive("t2", t2)
    return "bsl", 1 / t1, 1 / t2, t2 / t1


def _psl_kernel(temperature: float, activation: str = "tanh") -> Kernel:
    inverse = 1 / _positive("temperature", temperature)
    return f"psl_{require_choice('activation', activation, ('tanh', 'relu'))}", inverse, 0.0, 0.0


def _hardest_kernel() -> Kernel:
    return "hardest", 1.0, 0.0, 0.0


# ---- the paper's losses


def bpr_loss(pos: Tensor, neg: Tensor, *, sample_weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """Bayesian personalized ranking: ``log(1 + exp(n - p))`` [BPR09]. Weighted BPR is this with a sample_weight.

    Args:
        pos: scores of the positives, [B].
        neg: scores of the negatives, [B] or [B, K], on the same device.
        sample_weight: non-negative factor of each sample, [B] or [B, K]; ``mean`` still divides by the number of
            samples. A constant of the fused kernel; where it requires a gradient, plain PyTorch computes it.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``.

    Returns:
        A scalar, or for ``"none"`` a tensor of the shape of ``neg``.

    Raises:
        TypeError: scores or weights that are not floating-point tensors.
        ValueError: shapes or devices that do not fit, an unknown reduction.
    """
    return _pair_loss(pos, neg, sample_weight, *_bpr_kernel(), reduction)


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
    return _pair_loss(pos, neg, sample_weight, *_zerosum_kernel(bpr_weight, reg_weight, w), reduction)


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
    return _quad_loss(pos, neg, sample_weight, *_pos2neg2_kernel(bpr_weight, reg_weight, w), reduction)


def _shared(name: str, scores: Tensor) -> Tensor:
    """One score a user for both BPR terms, from [B] or the first column of [B, 2]."""
    require_floating(name, scores)
    if scores.dim() == 1:
        scores = scores.unsqueeze(1)
    if scores.dim() != 2 or scores.shape[1] not in (1, 2):
        raise ValueError(f"{name}: expected shape [B] or [B, 2], got {describe(scores)}")
    return scores[:, :1].expand(-1, 2)


def pos2_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    bpr_weight: float = 1.0,
    reg_weight: float = 1.0,
    w: float | None = None,
    shared: bool = False,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The ablation of Pos2Neg2 that only makes positives score alike [RCS22 section 5].

    ``a (sp(n1-p1) + sp(n2-p2)) + b rho(p1-p2)``

    Args:
        pos, neg, sample_weight, reduction: as for :func:`pos2neg2_loss`.
        bpr_weight, reg_weight: a and b.
        w: the convention of the authors' code instead: a = w/4, b = (1-w)/2, with w in [0, 1].
        shared: the form of the authors' code, with one negative in both BPR terms; neg is [B], or [B, 2] of which
            the first column counts.
    """
    kernel = _pos2_kernel(bpr_weight, reg_weight, w)
    return _quad_loss(pos, _shared("neg", neg) if shared else neg, sample_weight, *kernel, reduction)


def neg2_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    bpr_weight: float = 1.0,
    reg_weight: float = 1.0,
    w: float | None = None,
    shared: bool = False,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The ablation of Pos2Neg2 that only makes negatives score alike [RCS22 section 5].

    ``a (sp(n1-p1) + sp(n2-p2)) + b rho(n1-n2)``. Arguments as for :func:`pos2_loss`; with ``shared`` it is pos that
    may be [B] and whose first column counts.
    """
    kernel = _neg2_kernel(bpr_weight, reg_weight, w)
    return _quad_loss(_shared("pos", pos) if shared else pos, neg, sample_weight, *kernel, reduction)


# ---- the methods that the paper compares with


def _popularity(name: str, popularity: Any) -> Tensor:
    require_tensor(name, popularity)
    if popularity.dtype == torch.bool or popularity.is_complex():
        raise TypeError(f"{name}: expected numbers, got {describe(popularity)}")
    return popularity


def ipw_weights(popularity: Tensor, clip: float | None = None) -> Tensor:
    """Inverse-popularity weights of all items: 1/popularity, scaled to mean 1, then clipped.

    Args:
        popularity: interaction counts of the items, [num_items].
        clip: the largest weight allowed.

    Returns:
        float64 weights [num_items]. The mean is over items of popularity > 0; an item of popularity 0, whose inverse
        does not exist, weighs as much as the rarest of the others.
    """
    counts = _popularity("popularity", popularity).to(torch.float64)
    if clip is not None:
        clip = require_finite_number("clip", clip, minimum=0)
    seen = counts > 0
    rarest = torch.where(seen, counts, torch.inf).amin() if counts.numel() else counts.sum()
    inverse = 1 / torch.where(seen, counts, rarest)
    weights = inverse * (seen.sum() / torch.where(seen, inverse, 0).sum())
    return weights if clip is None else weights.clamp(max=clip)


def ipw_loss(
    pos: Tensor,
    neg: Tensor,
    pos_popularity: Tensor,
    neg_popularity: Tensor,
    *,
    clip: float | None = None,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Inverse propensity weighting: cross-entropy of every positive and negative, weighted by 1/popularity.

    ``x_p sp(-p) + x_n sp(n)``, all terms kept (the code released with [RCS22] keeps one of four).

    Args:
        pos, neg, sample_weight, reduction: as for :func:`bpr_loss`.
        pos_popularity, neg_popularity: popularity of the items scored, [B] and [B] or [B, K]. The weights are scaled to
            mean 1 over the items given here; :class:`IPWLoss` scales over all items once, which is what training
            wants.
        clip: the largest weight allowed, after scaling.
    """
    x_pos = _popularity("pos_popularity", pos_popularity)
    x_neg = _popularity("neg_popularity", neg_popularity)
    weights = ipw_weights(torch.cat([x_pos.reshape(-1), x_neg.reshape(-1)]), clip)
    split = x_pos.numel()
    aux = (
        ("pos_popularity", weights[:split].reshape(x_pos.shape)),
        ("neg_popularity", weights[split:].reshape(x_neg.shape)),
    )
    return _pair_loss(pos, neg, sample_weight, "ipw", 1.0, 0.0, 0.0, reduction, aux)


def pd_loss(
    pos: Tensor,
    neg: Tensor,
    pos_popularity: Tensor,
    neg_popularity: Tensor,
    *,
    gamma: float,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Popularity deconfounding (PD, PDA): BPR of scores that are multiplied by popularity^gamma [ZFH21].

    ``sp(f(n) x_n - f(p) x_p)`` with ``f = ELU + 1`` and ``x = popularity ** gamma``. At inference PD ranks by ``f(y)``,
    that is by ``y``; PDA multiplies by a predicted popularity.

    Args:
        pos, neg, sample_weight, reduction: as for :func:`bpr_loss`.
        pos_popularity, neg_popularity: popularity of the items scored, [B] and [B] or [B, K], taken as given:
            divide counts by their maximum first, as the authors do, or the margins grow with the data.
        gamma: the exponent, >= 0.
    """
    gamma = require_finite_number("gamma", gamma, minimum=0)
    aux = (
        ("pos_popularity", _popularity("pos_popularity", pos_popularity).double() ** gamma),
        ("neg_popularity", _popularity("neg_popularity", neg_popularity).double() ** gamma),
    )
    return _pair_loss(pos, neg, sample_weight, "pd", 1.0, 0.0, 0.0, reduction, aux)


def macr_loss(
    pos: Tensor,
    neg: Tensor,
    user_branch: Tensor,
    pos_branch: Tensor,
    neg_branch: Tensor,
    *,
    alpha: float,
    beta: float,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """MACR: cross-entropy of ``s(y) s(user) s(item)``, and of the user and the item branch alone [WFC21 eq. 4-7].

    Per (positive, negative) pair: ``BCE(s(y) s(u) s(i)) + alpha BCE(s(i)) + beta BCE(s(u))``, each summed over the
    positive (target 1) and the negative (target 0), all terms kept. At inference rank by ``(y - c) s(u) s(i)``.

    Args:
        pos, neg, sample_weight, reduction: as for :func:`bpr_loss`.
        user_branch: logit of the user branch, [B].
        pos_branch, neg_branch: logits of the item branch of the positives, [B], and the negatives, like neg.
        alpha, beta: weights of the item branch's and the user branch's own cross-entropy, >= 0.
    """
    alpha = require_finite_number("alpha", alpha, minimum=0)
    beta = require_finite_number("beta", beta, minimum=0)
    pos, neg = _scores(pos, neg, reduction)
    if pos.dim() != 1 or (neg.shape != pos.shape and (neg.dim() != 2 or neg.shape[0] != pos.shape[0])):
        raise ValueError(f"neg: expected [B] or [B, K] for pos of shape [B], got {describe(neg)} for {describe(pos)}")
    branches = {"user_branch": (user_branch, pos), "pos_branch": (pos_branch, pos), "neg_branch": (neg_branch, neg)}
    for name, (branch, like) in branches.items():
        require_floating(name, branch)
        require_same_device(name, branch, "pos", pos)
        if branch.shape != like.shape:
            raise ValueError(f"{name}: expected shape {tuple(like.shape)}, got {describe(branch)}")
    if sample_weight is not None:
        require_floating("sample_weight", sample_weight)
        sample_weight = _sample_tensor("sample_weight", sample_weight, pos, neg, neg.shape)
    scores = (pos, neg, user_branch.to(pos.dtype), pos_branch.to(pos.dtype), neg_branch.to(pos.dtype))
    return _autograd.macr_loss(scores, sample_weight, alpha, beta, reduction)


# ---- losses of all K negatives of a positive


def sampled_softmax_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    log_q_pos: Tensor | None = None,
    log_q_neg: Tensor | None = None,
    temperature: float = 1.0,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Softmax cross-entropy over the positive and its K negatives, with logQ correction [BS08].

    ``logsumexp(z_p, z_1, ..., z_K) - z_p`` with ``z = y / temperature - log q``.

    Args:
        pos: scores of the positives, [B].
        neg: scores of the negatives, [B, K].
        log_q_pos, log_q_neg: log-probabilities with which the items were drawn, [B] and [B, K], or [K] where all rows
            have the same negatives; None: all alike.
        temperature: > 0.
        sample_weight: [B].
        reduction: ``"none"`` returns [B]; ``"mean"`` divides by B.
    """
    return _row_loss(
        pos,
        neg,
        sample_weight,
        *_sampled_softmax_kernel(temperature),
        reduction,
        ("log_q_pos", log_q_pos),
        ("log_q_neg", log_q_neg),
    )


def bsl_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    t1: float,
    t2: float,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Bilateral softmax loss: ``-p / t1 + (t2 / t1) (logsumexp_j(n_j / t2) - log K)`` [WCW24].

    Args:
        pos, neg, sample_weight, reduction: as for :func:`sampled_softmax_loss`.
        t1, t2: temperatures of the positive and of the negatives, > 0.
    """
    return _row_loss(pos, neg, sample_weight, *_bsl_kernel(t1, t2), reduction)


def psl_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    temperature: float,
    activation: str = "tanh",
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Pairwise softmax loss: ``logsumexp_j(log(1 + activation(n_j - p)) / temperature)`` [YCX24].

    Args:
        pos, neg, sample_weight, reduction: as for :func:`sampled_softmax_loss`.
        temperature: > 0.
        activation: ``"tanh"`` or ``"relu"``. (The third of the paper, atan, has no logarithm for margins beyond 1.56.)
    """
    return _row_loss(pos, neg, sample_weight, *_psl_kernel(temperature, activation), reduction)


def hardest_loss(pos: Tensor, neg: Tensor, *, sample_weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """BPR against the hardest of K negatives, as in dynamic negative sampling: ``sp(max_j n_j - p)`` [ZCW13].

    Arguments as for :func:`sampled_softmax_loss`; of equal negatives the first takes the gradient.
    """
    return _row_loss(pos, neg, sample_weight, *_hardest_kernel(), reduction)


def _positive(name: str, value: float) -> float:
    number = require_finite_number(name, value)
    if number <= 0:
        raise ValueError(f"{name}: expected a number > 0, got {value!r}")
    return number


# ---- modules


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
        self.reduction = require_choice("reduction", reduction, _REDUCTIONS)

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
    kernel_function = staticmethod(_bpr_kernel)


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
    kernel_function = staticmethod(_zerosum_kernel)


class Pos2Neg2Loss(_WeightedLoss):
    """Module over :func:`pos2neg2_loss`."""

    num_positives: ClassVar[int] = 2
    function = staticmethod(pos2neg2_loss)
    kernel_function = staticmethod(_pos2neg2_kernel)


class Pos2Loss(_WeightedLoss):
    """Module over :func:`pos2_loss`."""

    num_positives: ClassVar[int] = 2
    function = staticmethod(pos2_loss)
    kernel_function = staticmethod(_pos2_kernel)

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
    kernel_function = staticmethod(_neg2_kernel)


class SampledSoftmaxLoss(Loss):
    """Module over :func:`sampled_softmax_loss`.

    Args:
        temperature: > 0.
        log_q: log-probability with which the sampler draws each item, [num_items]; None: all alike.
    """

    log_q: Tensor | None

    def __init__(self, temperature: float = 1.0, log_q: Tensor | None = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.temperature = _positive("temperature", temperature)
        if log_q is not None:
            require_floating("log_q", log_q)
        self.register_buffer("log_q", log_q)
        self.needs_items = log_q is not None

    def options(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "reduction": self.reduction}

    def kernel(self) -> Kernel | None:
        return _sampled_softmax_kernel(self.temperature)

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
    kernel_function = staticmethod(_bsl_kernel)

    def __init__(self, t1: float = 1.0, t2: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.t1, self.t2 = _positive("t1", t1), _positive("t2", t2)

    def options(self) -> dict[str, Any]:
        return {"t1": self.t1, "t2": self.t2, "reduction": self.reduction}


class PSLLoss(_FunctionLoss):
    """Module over :func:`psl_loss`."""

    function = staticmethod(psl_loss)
    kernel_function = staticmethod(_psl_kernel)

    def __init__(self, temperature: float = 1.0, activation: str = "tanh", reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.temperature = _positive("temperature", temperature)
        self.activation = require_choice("activation", activation, ("tanh", "relu"))

    def options(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "activation": self.activation, "reduction": self.reduction}


class HardestLoss(_FunctionLoss):
    """Module over :func:`hardest_loss`."""

    function = staticmethod(hardest_loss)
    kernel_function = staticmethod(_hardest_kernel)


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
        return _pair_loss(pos, neg, sample_weight, self.loss, 1.0, 0.0, 0.0, self.reduction, aux)


def compiled_loss(loss: nn.Module) -> Kernel | None:
    """What :meth:`Loss.kernel` says of one of this module's own losses; None for any other module.

    A subclass may have a forward of its own, and hooks want to be called: neither is what the kernel computes.
    """
    if type(loss) not in _MODULES.values() or loss._forward_hooks or loss._forward_pre_hooks:
        return None
    return loss.kernel()  # type: ignore[operator]


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
        counts = _popularity("popularity", popularity).double()
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
        pos, neg = _scores(pos, neg, self.reduction)
        shape = neg.shape
        pos, neg = _flat_scores(pos, neg)
        p = pos.unsqueeze(-1).expand_as(neg) if neg.dim() == 2 else pos
        compute = compute_dtype(p.dtype)
        value = _autograd.custom_loss(p.to(compute), neg.to(compute), self.value, self.derivative)
        if not isinstance(value, Tensor) or value.shape != neg.shape:
            raise ValueError(f"value: expected a function that returns shape {tuple(neg.shape)}, got {describe(value)}")
        if sample_weight is not None:
            require_floating("sample_weight", sample_weight)
            sample_weight = _sample_tensor("sample_weight", sample_weight, pos, neg, shape)
        value = weigh_and_reduce(value, sample_weight, self.reduction, pos.dtype)
        return value.reshape(shape) if self.reduction == "none" else value


_MODULES: dict[str, type[Loss]] = {
    "bpr": BPRLoss,
    "zerosum": ZerosumLoss,
    "pos2neg2": Pos2Neg2Loss,
    "pos2": Pos2Loss,
    "neg2": Neg2Loss,
    "ipw": IPWLoss,
    "pd": PDLoss,
    "sampled_softmax": SampledSoftmaxLoss,
    "bsl": BSLLoss,
    "psl": PSLLoss,
    "hardest": HardestLoss,
}


def loss_names() -> list[str]:
    """The names that :func:`get_loss` knows."""
    return list(_MODULES)


def loss_options(name: str) -> list[str]:
    """The names of the options that :func:`get_loss` takes for a loss."""
    require_choice("loss", name, loss_names())
    return list(inspect.signature(_MODULES[name]).parameters)


def get_loss(name: str, **options: Any) -> Loss:
    """The loss module of that name, made with the given options.

    Raises:
        ValueError: an unknown name or option.
    """
    require_choice("loss", name, loss_names())
    try:
        return _MODULES[name](**options)
    except TypeError as error:
        if "unexpected keyword" in str(error) or "missing" in str(error):
            raise ValueError(f"loss {name!r}: {str(error).split('() ')[-1]}; got options {sorted(options)}") from None
        raise
