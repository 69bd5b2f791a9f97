"""Losses as functions of scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zerosum_ext._checks import describe, require_finite_number, require_floating, require_same_device, require_tensor
from zerosum_ext._ops import autograd
from zerosum_ext.losses.kernels import (
    bpr_kernel,
    bsl_kernel,
    hardest_kernel,
    neg2_kernel,
    pos2_kernel,
    pos2neg2_kernel,
    psl_kernel,
    sampled_softmax_kernel,
    zerosum_kernel,
)
from zerosum_ext.losses.shapes import common_scores, pair_loss, quad_loss, row_loss, sample_tensor

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
    return pair_loss(pos, neg, sample_weight, *bpr_kernel(), reduction)


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
    return pair_loss(pos, neg, sample_weight, *zerosum_kernel(bpr_weight, reg_weight, w), reduction)


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
    return quad_loss(pos, neg, sample_weight, *pos2neg2_kernel(bpr_weight, reg_weight, w), reduction)


def shared_score(name: str, scores: Tensor) -> Tensor:
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
    kernel = pos2_kernel(bpr_weight, reg_weight, w)
    return quad_loss(pos, shared_score("neg", neg) if shared else neg, sample_weight, *kernel, reduction)


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
    kernel = neg2_kernel(bpr_weight, reg_weight, w)
    return quad_loss(shared_score("pos", pos) if shared else pos, neg, sample_weight, *kernel, reduction)


# ---- the methods that the paper compares with


def require_popularity(name: str, popularity: Any) -> Tensor:
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
    counts = require_popularity("popularity", popularity).to(torch.float64)
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
    x_pos = require_popularity("pos_popularity", pos_popularity)
    x_neg = require_popularity("neg_popularity", neg_popularity)
    weights = ipw_weights(torch.cat([x_pos.reshape(-1), x_neg.reshape(-1)]), clip)
    split = x_pos.numel()
    aux = (
        ("pos_popularity", weights[:split].reshape(x_pos.shape)),
        ("neg_popularity", weights[split:].reshape(x_neg.shape)),
    )
    return pair_loss(pos, neg, sample_weight, "ipw", 1.0, 0.0, 0.0, reduction, aux)


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
        ("pos_popularity", require_popularity("pos_popularity", pos_popularity).double() ** gamma),
        ("neg_popularity", require_popularity("neg_popularity", neg_popularity).double() ** gamma),
    )
    return pair_loss(pos, neg, sample_weight, "pd", 1.0, 0.0, 0.0, reduction, aux)


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
    pos, neg = common_scores(pos, neg, reduction)
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
        sample_weight = sample_tensor("sample_weight", sample_weight, pos, neg, neg.shape)
    scores = (pos, neg, user_branch.to(pos.dtype), pos_branch.to(pos.dtype), neg_branch.to(pos.dtype))
    return autograd.macr_loss(scores, sample_weight, alpha, beta, reduction)


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
    return row_loss(
        pos,
        neg,
        sample_weight,
        *sampled_softmax_kernel(temperature),
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
    return row_loss(pos, neg, sample_weight, *bsl_kernel(t1, t2), reduction)


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
    return row_loss(pos, neg, sample_weight, *psl_kernel(temperature, activation), reduction)


def hardest_loss(pos: Tensor, neg: Tensor, *, sample_weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """BPR against the hardest of K negatives, as in dynamic negative sampling: ``sp(max_j n_j - p)`` [ZCW13].

    Arguments as for :func:`sampled_softmax_loss`; of equal negatives the first takes the gradient.
    """
    return row_loss(pos, neg, sample_weight, *hardest_kernel(), reduction)
