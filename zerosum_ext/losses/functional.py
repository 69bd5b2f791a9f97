"""The losses as functions of scores, with a real signature and docstring each."""

# Generated from zerosum_ext/losses/records.py by tools/generate_losses.py: change those, and run it.

from __future__ import annotations

from typing import Literal

from torch import Tensor

from zerosum_ext._types import Reduction
from zerosum_ext.losses import records
from zerosum_ext.losses.records import ipw_weights
from zerosum_ext.losses.shapes import branches_loss, pair_loss, quad_loss, row_loss, shared_score

__all__ = [
    "bpr_loss",
    "bsl_loss",
    "ccl_loss",
    "hardest_loss",
    "hinge_loss",
    "ipw_loss",
    "ipw_weights",
    "macr_loss",
    "neg2_loss",
    "pd_loss",
    "popularity_softmax_loss",
    "pos2_loss",
    "pos2neg2_loss",
    "psl_loss",
    "refined_softmax_loss",
    "sampled_softmax_loss",
    "zerosum_loss",
]


def bpr_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Bayesian personalized ranking.

    ``sp(n - p)``, [BPR09].

    Weighted BPR is this loss with a sample_weight.

    Args:
        pos: scores of the positives, [B].
        neg: scores of the negatives, [B] or [B, K]; each (positive, negative) pair is one sample.
        sample_weight: non-negative factor of each sample, [B] or [B, K]; the mean still divides by the number of
            samples. A constant of the fused kernel; where it requires a gradient, plain PyTorch computes it.
        reduction: "none", "sum" or "mean".

    Returns:
        A scalar, or for "none" a tensor of the shape of neg.

    Raises:
        TypeError: scores or weights that are not floating-point tensors, an option of another type.
        ValueError: shapes or devices that do not fit, an unknown reduction, an option out of range.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
        >>> zx.bpr_loss(pos, neg)
        tensor(0.2613)
    """
    return pair_loss(pos, neg, sample_weight, records.bpr(), reduction)


def zerosum_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    bpr_weight: float = 1.0,
    reg_weight: float = 1.0,
    w: float | None = None,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """BPR plus a term that makes positive and negative scores sum to zero.

    ``a sp(n - p) + b rho(p + n)``, [RCS22] eq. 7.

    Args:
        pos: scores of the positives, [B].
        neg: scores of the negatives, [B] or [B, K]; each (positive, negative) pair is one sample.
        bpr_weight: a, >= 0.
        reg_weight: b, >= 0.
        w: the convention of the authors' code instead: a = w/2, b = (1-w)/2, with w in [0, 1].
        sample_weight: non-negative factor of each sample, [B] or [B, K]; the mean still divides by the number of
            samples. A constant of the fused kernel; where it requires a gradient, plain PyTorch computes it.
        reduction: "none", "sum" or "mean".

    Returns:
        A scalar, or for "none" a tensor of the shape of neg.

    Raises:
        TypeError: scores or weights that are not floating-point tensors, an option of another type.
        ValueError: shapes or devices that do not fit, an unknown reduction, an option out of range.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
        >>> zx.zerosum_loss(pos, neg, w=0.9)
        tensor(0.2123)
    """
    return pair_loss(pos, neg, sample_weight, records.zerosum(bpr_weight, reg_weight, w), reduction)


def pos2neg2_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    bpr_weight: float = 1.0,
    reg_weight: float = 1.0,
    w: float | None = None,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """BPR on two pairs plus a term that makes positives, and negatives, score alike.

    ``a (sp(n1 - p1) + sp(n2 - p2)) + b (rho(p1 - p2) + rho(n1 - n2))``, [RCS22] eq. 6.

    Args:
        pos, neg: scores [B, 2]: two positives and two negatives of the same user in each row, which is one sample.
        bpr_weight: a, >= 0.
        reg_weight: b, >= 0.
        w: the convention of the authors' code instead: a = w/4, b = (1-w)/4, with w in [0, 1].
        sample_weight: non-negative factor of each sample, [B]; the mean still divides by the number of samples.
        reduction: "none", "sum" or "mean".

    Returns:
        A scalar, or for "none" a tensor [B].

    Raises:
        TypeError: scores or weights that are not floating-point tensors, an option of another type.
        ValueError: shapes or devices that do not fit, an unknown reduction, an option out of range.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> pos, neg = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.0]])
        >>> zx.pos2neg2_loss(pos, neg, w=0.9)
        tensor(0.2123)
    """
    return quad_loss(pos, neg, sample_weight, records.pos2neg2(bpr_weight, reg_weight, w), reduction)


def pos2_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    bpr_weight: float = 1.0,
    reg_weight: float = 1.0,
    w: float | None = None,
    shared: bool = False,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The ablation of Pos2Neg2 that only makes positives score alike.

    ``a (sp(n1 - p1) + sp(n2 - p2)) + b rho(p1 - p2)``, [RCS22] section 5.

    Args:
        pos, neg: scores [B, 2]: two positives and two negatives of the same user in each row, which is one sample.
        bpr_weight: a, >= 0.
        reg_weight: b, >= 0.
        w: the convention of the authors' code instead: a = w/4, b = (1-w)/2, with w in [0, 1].
        shared: the form of the authors' code, with one negative in both BPR terms; neg is then [B], or [B, 2] of which
            the first column counts.
        sample_weight: non-negative factor of each sample, [B]; the mean still divides by the number of samples.
        reduction: "none", "sum" or "mean".

    Returns:
        A scalar, or for "none" a tensor [B].

    Raises:
        TypeError: scores or weights that are not floating-point tensors, an option of another type.
        ValueError: shapes or devices that do not fit, an unknown reduction, an option out of range.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> pos, neg = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.0]])
        >>> zx.pos2_loss(pos, neg, w=0.9)
        tensor(0.1893)
    """
    if shared:
        neg = shared_score("neg", neg)
    return quad_loss(pos, neg, sample_weight, records.pos2(bpr_weight, reg_weight, w), reduction)


def neg2_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    bpr_weight: float = 1.0,
    reg_weight: float = 1.0,
    w: float | None = None,
    shared: bool = False,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The ablation of Pos2Neg2 that only makes negatives score alike.

    ``a (sp(n1 - p1) + sp(n2 - p2)) + b rho(n1 - n2)``, [RCS22] section 5.

    Args:
        pos, neg: scores [B, 2]: two positives and two negatives of the same user in each row, which is one sample.
        bpr_weight: a, >= 0.
        reg_weight: b, >= 0.
        w: the convention of the authors' code instead: a = w/4, b = (1-w)/2, with w in [0, 1].
        shared: the form of the authors' code, with one positive in both BPR terms; pos is then [B], or [B, 2] of which
            the first column counts.
        sample_weight: non-negative factor of each sample, [B]; the mean still divides by the number of samples.
        reduction: "none", "sum" or "mean".

    Returns:
        A scalar, or for "none" a tensor [B].

    Raises:
        TypeError: scores or weights that are not floating-point tensors, an option of another type.
        ValueError: shapes or devices that do not fit, an unknown reduction, an option out of range.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> pos, neg = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.0]])
        >>> zx.neg2_loss(pos, neg, w=0.9)
        tensor(0.2354)
    """
    if shared:
        pos = shared_score("pos", pos)
    return quad_loss(pos, neg, sample_weight, records.neg2(bpr_weight, reg_weight, w), reduction)


def ipw_loss(
    pos: Tensor,
    neg: Tensor,
    pos_popularity: Tensor,
    neg_popularity: Tensor,
    *,
    clip: float | None = None,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Inverse propensity weighting: cross-entropy of every positive and negative, weighted by 1/popularity.

    ``x_p sp(-p) + x_n sp(n), x = 1/popularity scaled to mean 1``, [RCS22] section 5.

    All terms are kept; the code released with [RCS22] keeps one of four.

    Args:
        pos: scores of the positives, [B].
        neg: scores of the negatives, [B] or [B, K]; each (positive, negative) pair is one sample.
        pos_popularity, neg_popularity: popularity of the items scored, [B] and [B] or [B, K]. The weights are scaled to
            mean 1 over the items given here; :class:`IPWLoss` scales them over all items once, which suits training.
        clip: the largest weight allowed, after scaling, or None.
        sample_weight: non-negative factor of each sample, [B] or [B, K]; the mean still divides by the number of
            samples. A constant of the fused kernel; where it requires a gradient, plain PyTorch computes it.
        reduction: "none", "sum" or "mean".

    Returns:
        A scalar, or for "none" a tensor of the shape of neg.

    Raises:
        TypeError: scores or weights that are not floating-point tensors, an option of another type.
        ValueError: shapes or devices that do not fit, an unknown reduction, an option out of range.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
        >>> pos_popularity = torch.tensor([0.4, 0.2])
        >>> neg_popularity = torch.tensor([0.5, 0.1])
        >>> zx.ipw_loss(pos, neg, pos_popularity, neg_popularity)
        tensor(0.6665)
    """
    x_pos, x_neg = records.ipw_of_scores(pos_popularity, neg_popularity, clip)
    return pair_loss(
        pos, neg, sample_weight, records.ipw(), reduction, (("pos_popularity", x_pos), ("neg_popularity", x_neg))
    )


def pd_loss(
    pos: Tensor,
    neg: Tensor,
    pos_popularity: Tensor,
    neg_popularity: Tensor,
    *,
    gamma: float = 0.25,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Popularity deconfounding (PD, PDA): BPR of scores that are multiplied by popularity^gamma.

    ``sp(f(n) x_n - f(p) x_p), f = ELU + 1, x = popularity^gamma``, [ZFH21] eq. 6, 7.

    At inference PD ranks by ``f(y)``, that is by ``y``; PDA multiplies by a predicted popularity.

    Args:
        pos: scores of the positives, [B].
        neg: scores of the negatives, [B] or [B, K]; each (positive, negative) pair is one sample.
        pos_popularity, neg_popularity: popularity of the items scored, [B] and [B] or [B, K], taken as given: divide
            counts by their maximum first, as the authors do, or the margins grow with the data.
        gamma: the exponent, >= 0.
        sample_weight: non-negative factor of each sample, [B] or [B, K]; the mean still divides by the number of
            samples. A constant of the fused kernel; where it requires a gradient, plain PyTorch computes it.
        reduction: "none", "sum" or "mean".

    Returns:
        A scalar, or for "none" a tensor of the shape of neg.

    Raises:
        TypeError: scores or weights that are not floating-point tensors, an option of another type.
        ValueError: shapes or devices that do not fit, an unknown reduction, an option out of range.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
        >>> pos_popularity = torch.tensor([0.4, 0.2])
        >>> neg_popularity = torch.tensor([0.5, 0.1])
        >>> zx.pd_loss(pos, neg, pos_popularity, neg_popularity)
        tensor(0.3476)
    """
    x_pos, x_neg = records.pd_of_scores(pos_popularity, neg_popularity, gamma)
    return pair_loss(
        pos, neg, sample_weight, records.pd(), reduction, (("pos_popularity", x_pos), ("neg_popularity", x_neg))
    )


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
    reduction: Reduction = "mean",
) -> Tensor:
    """MACR: cross-entropy of the product of three branches, and of the user and the item branch alone.

    ``BCE(s(y) s(u) s(i)) + alpha BCE(s(i)) + beta BCE(s(u)), each summed over the positive and the negative``, [WFC21]
    eq. 4-7.

    All terms are kept. At inference rank by ``(y - c) s(u) s(i)``. :class:`zerosum_ext.MACRLoss` is the module that
    goes with the model :class:`zerosum_ext.MACR`.

    Args:
        pos: scores of the positives, [B].
        neg: scores of the negatives, [B] or [B, K]; each (positive, negative) pair is one sample.
        user_branch: logit u of the user branch, [B].
        pos_branch, neg_branch: logits i of the item branch of the positives, [B], and of the negatives, like neg.
        alpha: weight of the item branch's own cross-entropy, >= 0.
        beta: weight of the user branch's own cross-entropy, >= 0.
        sample_weight: non-negative factor of each sample, [B] or [B, K]; the mean still divides by the number of
            samples. A constant of the fused kernel; where it requires a gradient, plain PyTorch computes it.
        reduction: "none", "sum" or "mean".

    Returns:
        A scalar, or for "none" a tensor of the shape of neg.

    Raises:
        TypeError: scores or weights that are not floating-point tensors, an option of another type.
        ValueError: shapes or devices that do not fit, an unknown reduction, an option out of range.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
        >>> user, pos_item, neg_item = torch.tensor([[0.5, 0.2], [1.0, 0.5], [0.0, 0.1]])
        >>> zx.macr_loss(pos, neg, user, pos_item, neg_item, alpha=0.001, beta=0.001)
        tensor(1.3005)
    """
    return branches_loss(
        pos, neg, user_branch, pos_branch, neg_branch, sample_weight, records.macr(alpha, beta), reduction
    )


def hinge_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    margin: float = 1.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The hinge of a margin between the positive and the negative.

    ``max(0, margin - p + n)``, [WBU11].

    Args:
        pos: scores of the positives, [B].
        neg: scores of the negatives, [B] or [B, K]; each (positive, negative) pair is one sample.
        margin: by which the positive should score higher.
        sample_weight: non-negative factor of each sample, [B] or [B, K]; the mean still divides by the number of
            samples. A constant of the fused kernel; where it requires a gradient, plain PyTorch computes it.
        reduction: "none", "sum" or "mean".

    Returns:
        A scalar, or for "none" a tensor of the shape of neg.

    Raises:
        TypeError: scores or weights that are not floating-point tensors, an option of another type.
        ValueError: shapes or devices that do not fit, an unknown reduction, an option out of range.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
        >>> zx.hinge_loss(pos, neg)
        tensor(0.2500)
    """
    return pair_loss(pos, neg, sample_weight, records.hinge(margin), reduction)


def sampled_softmax_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    log_q_pos: Tensor | None = None,
    log_q_neg: Tensor | None = None,
    temperature: float = 1.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Softmax cross-entropy over the positive and its K negatives, with logQ correction.

    ``LSE(z_p, z_1 ... z_K) - z_p, z = y / temperature - log q``, [BS08].

    Args:
        pos: scores of the positives, [B].
        neg: scores of the negatives, [B, K]; each row is one sample.
        log_q_pos, log_q_neg: log-probabilities with which the items were drawn, [B] and [B, K], or [K] where all rows
            have the same negatives; None: all alike.
        temperature: > 0.
        sample_weight: non-negative factor of each sample, [B]; the mean still divides by the number of samples.
        reduction: "none", "sum" or "mean".

    Returns:
        A scalar, or for "none" a tensor [B].

    Raises:
        TypeError: scores or weights that are not floating-point tensors, an option of another type.
        ValueError: shapes or devices that do not fit, an unknown reduction, an option out of range.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([[0.5, -1.0], [0.0, 1.2]])
        >>> zx.sampled_softmax_loss(pos, neg)
        tensor(0.5077)
    """
    x_pos, x_neg = records.log_q_of_scores(log_q_pos, log_q_neg)
    return row_loss(
        pos,
        neg,
        sample_weight,
        records.sampled_softmax(temperature),
        reduction,
        (("log_q_pos", x_pos), ("log_q_neg", x_neg)),
    )


def popularity_softmax_loss(
    pos: Tensor,
    neg: Tensor,
    pos_popularity: Tensor,
    neg_popularity: Tensor,
    *,
    temperature: float = 1.0,
    alpha: float = 0.5,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Sampled softmax of scores that are adjusted by popularity^alpha in training alone.

    ``LSE(z_p, z_1 ... z_K) - z_p, z = y / temperature + alpha log popularity``, [MJR21].

    At inference rank by the scores themselves. An item of popularity 0 counts as the rarest of the others.

    Args:
        pos: scores of the positives, [B].
        neg: scores of the negatives, [B, K]; each row is one sample.
        pos_popularity, neg_popularity: popularity of the items scored, [B] and [B, K].
        temperature: > 0.
        alpha: the exponent, of either sign. Above 0 the popularity explains a part of the data, and the scores, which
            rank without it, favour the long tail. Below 0 they favour popular items. 0 is the sampled softmax.
        sample_weight: non-negative factor of each sample, [B]; the mean still divides by the number of samples.
        reduction: "none", "sum" or "mean".

    Returns:
        A scalar, or for "none" a tensor [B].

    Raises:
        TypeError: scores or weights that are not floating-point tensors, an option of another type.
        ValueError: shapes or devices that do not fit, an unknown reduction, an option out of range.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([[0.5, -1.0], [0.0, 1.2]])
        >>> pos_popularity = torch.tensor([0.4, 0.2])
        >>> neg_popularity = torch.tensor([[0.5, 0.1], [0.1, 0.2]])
        >>> zx.popularity_softmax_loss(pos, neg, pos_popularity, neg_popularity)
        tensor(0.4961)
    """
    x_pos, x_neg = records.adjustment_of_scores(pos_popularity, neg_popularity, alpha)
    return row_loss(
        pos,
        neg,
        sample_weight,
        records.popularity_softmax(temperature),
        reduction,
        (("pos_popularity", x_pos), ("neg_popularity", x_neg)),
    )


def refined_softmax_loss(
    pos: Tensor,
    neg: Tensor,
    log_q_pos: Tensor,
    log_q_neg: Tensor,
    *,
    temperature: float = 1.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Sampled softmax with the refined logQ correction, where the positive is not a sampled term.

    ``sp(LSE_j(z_j) - log K + log(1 - q_p) - p / temperature), z_j = n_j / temperature - log q_j``, [KBM25].

    The paper's loss is ``sg(1 - P) (LSE_j(z_j + log(1 - q_p)) - p / temperature)``, where sg stops the gradient, ``q_j
    / (1 - q_p)`` is the probability of a negative among all items but the positive, and ``P = exp(p / temperature) /
    (exp(p / temperature) + mean_j exp(z_j + log(1 - q_p)))`` estimates the probability of the positive under the
    softmax over all items. The function here has exactly that gradient, since ``1 - P`` is the derivative of sp; its
    value is the cross-entropy ``-log P``.

    Args:
        pos: scores of the positives, [B].
        neg: scores of the negatives, [B, K]; each row is one sample.
        log_q_pos, log_q_neg: log-probabilities log q with which the sampler draws the items, [B] and [B, K], or [K]
            where all rows have the same negatives.
        temperature: > 0.
        sample_weight: non-negative factor of each sample, [B]; the mean still divides by the number of samples.
        reduction: "none", "sum" or "mean".

    Returns:
        A scalar, or for "none" a tensor [B].

    Raises:
        TypeError: scores or weights that are not floating-point tensors, an option of another type.
        ValueError: shapes or devices that do not fit, an unknown reduction, an option out of range.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([[0.5, -1.0], [0.0, 1.2]])
        >>> log_q_pos = torch.tensor([0.4, 0.2]).log()
        >>> log_q_neg = torch.tensor([[0.5, 0.1], [0.1, 0.2]]).log()
        >>> zx.refined_softmax_loss(pos, neg, log_q_pos, log_q_neg)
        tensor(0.7315)
    """
    x_pos, x_neg = records.sampled_log_q(log_q_pos, log_q_neg)
    return row_loss(
        pos,
        neg,
        sample_weight,
        records.refined_softmax(temperature),
        reduction,
        (("log_q_pos", x_pos), ("log_q_neg", x_neg)),
    )


def bsl_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    positive_temperature: float = 1.0,
    negative_temperature: float = 1.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Bilateral softmax loss.

    ``-p / t1 + (t2 / t1) (LSE_j(n_j / t2) - log K), t1 and t2 the positive and the negative temperature``, [WCW24].

    Args:
        pos: scores of the positives, [B].
        neg: scores of the negatives, [B, K]; each row is one sample.
        positive_temperature: t1, > 0.
        negative_temperature: t2, > 0.
        sample_weight: non-negative factor of each sample, [B]; the mean still divides by the number of samples.
        reduction: "none", "sum" or "mean".

    Returns:
        A scalar, or for "none" a tensor [B].

    Raises:
        TypeError: scores or weights that are not floating-point tensors, an option of another type.
        ValueError: shapes or devices that do not fit, an unknown reduction, an option out of range.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([[0.5, -1.0], [0.0, 1.2]])
        >>> zx.bsl_loss(pos, neg)
        tensor(-1.1108)
    """
    return row_loss(pos, neg, sample_weight, records.bsl(positive_temperature, negative_temperature), reduction)


def psl_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    temperature: float = 1.0,
    activation: Literal["tanh", "relu"] = "tanh",
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Pairwise softmax loss.

    ``LSE_j(log(1 + activation(n_j - p)) / temperature)``, [YCX24].

    Args:
        pos: scores of the positives, [B].
        neg: scores of the negatives, [B, K]; each row is one sample.
        temperature: > 0.
        activation: "tanh" or "relu". (The third of the paper, atan, has no logarithm for margins beyond 1.56.)
        sample_weight: non-negative factor of each sample, [B]; the mean still divides by the number of samples.
        reduction: "none", "sum" or "mean".

    Returns:
        A scalar, or for "none" a tensor [B].

    Raises:
        TypeError: scores or weights that are not floating-point tensors, an option of another type.
        ValueError: shapes or devices that do not fit, an unknown reduction, an option out of range.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([[0.5, -1.0], [0.0, 1.2]])
        >>> zx.psl_loss(pos, neg)
        tensor(-0.7722)
    """
    return row_loss(pos, neg, sample_weight, records.psl(temperature, activation), reduction)


def hardest_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """BPR against the hardest of K negatives, as in dynamic negative sampling.

    ``sp(max_j n_j - p)``, [ZCW13].

    Of equal negatives the first takes the gradient.

    Args:
        pos: scores of the positives, [B].
        neg: scores of the negatives, [B, K]; each row is one sample.
        sample_weight: non-negative factor of each sample, [B]; the mean still divides by the number of samples.
        reduction: "none", "sum" or "mean".

    Returns:
        A scalar, or for "none" a tensor [B].

    Raises:
        TypeError: scores or weights that are not floating-point tensors, an option of another type.
        ValueError: shapes or devices that do not fit, an unknown reduction, an option out of range.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([[0.5, -1.0], [0.0, 1.2]])
        >>> zx.hardest_loss(pos, neg)
        tensor(0.4226)
    """
    return row_loss(pos, neg, sample_weight, records.hardest(), reduction)


def ccl_loss(
    pos: Tensor,
    neg: Tensor,
    *,
    margin: float = 0.0,
    weight: float = 1.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cosine contrastive loss of SimpleX.

    ``1 - p + weight / K sum_j max(0, n_j - margin)``, [MZW21].

    The authors' scores are cosines of embeddings; the scores given are taken as they are.

    Args:
        pos: scores of the positives, [B].
        neg: scores of the negatives, [B, K]; each row is one sample.
        margin: a negative that scores no higher costs nothing.
        weight: of the negatives' part, >= 0.
        sample_weight: non-negative factor of each sample, [B]; the mean still divides by the number of samples.
        reduction: "none", "sum" or "mean".

    Returns:
        A scalar, or for "none" a tensor [B].

    Raises:
        TypeError: scores or weights that are not floating-point tensors, an option of another type.
        ValueError: shapes or devices that do not fit, an unknown reduction, an option out of range.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([[0.5, -1.0], [0.0, 1.2]])
        >>> zx.ccl_loss(pos, neg)
        tensor(-0.0750)
    """
    return row_loss(pos, neg, sample_weight, records.ccl(margin, weight), reduction)
