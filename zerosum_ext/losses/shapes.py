"""Check the scores, constants and weights of a loss, and bring them to the shapes that the ops take."""

from __future__ import annotations

import torch
from torch import Tensor

from zerosum_ext._checks import describe, require_choice, require_floating, require_same_device, require_tensor
from zerosum_ext._ops import autograd
from zerosum_ext.reference import Kernel, compute_dtype

REDUCTIONS = ("none", "sum", "mean")
DTYPES = frozenset((torch.float64, torch.float32, torch.float16, torch.bfloat16))


def sample_tensor(
    name: str, value: Tensor, pos: Tensor, neg: Tensor, shape: torch.Size, *, by_row: bool = True
) -> Tensor:
    """Check a constant given per sample, [B, K] or, ``by_row``, [B]; return it in the dtype of the arithmetic."""
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


def common_scores(pos: Tensor, neg: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """Check the scores of any loss, and return both in one dtype."""
    if (
        isinstance(pos, Tensor)
        and isinstance(neg, Tensor)
        and pos.dtype is neg.dtype
        and pos.dtype in DTYPES
        and reduction in REDUCTIONS
        and pos.device == neg.device
    ):
        return pos, neg
    for name, scores in (("pos", pos), ("neg", neg)):
        require_floating(name, scores)
        if scores.dtype not in DTYPES:
            raise TypeError(f"{name}: expected float64, float32, float16 or bfloat16, got {describe(scores)}")
    require_choice("reduction", reduction, REDUCTIONS)
    require_same_device("neg", neg, "pos", pos)
    common = torch.promote_types(pos.dtype, neg.dtype)
    return pos.to(common), neg.to(common)


def flat_scores(pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
    """Return pos [B] with neg [B] or [B, K], from these or from two tensors of one shape."""
    if pos.shape == neg.shape:
        return (pos, neg) if pos.dim() == 1 else (pos.reshape(-1), neg.reshape(-1))
    if pos.dim() == 2 and pos.shape[1] == 1 and neg.dim() == 2:
        pos = pos.squeeze(1)
    if pos.dim() != 1 or neg.dim() != 2 or neg.shape[0] != pos.shape[0]:
        raise ValueError(
            f"neg: expected the shape of pos, {tuple(pos.shape)}, or [B, K] for pos of shape [B], got {describe(neg)}"
        )
    return pos, neg


#: A constant of the items scored, and the argument that it came as, or None in its place.
NamedTensor = tuple[str, Tensor | None]


def checked_weight(sample_weight: Tensor | None, pos: Tensor, neg: Tensor, shape: torch.Size) -> Tensor | None:
    """Check the weight of each sample, if there is one, and bring it to the dtype of the arithmetic."""
    if sample_weight is None:
        return None
    require_floating("sample_weight", sample_weight)
    return sample_tensor("sample_weight", sample_weight, pos, neg, shape)


#: What the op pair_loss takes of tensors: pos, neg, aux_pos, aux_neg, weight.
Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def pair_inputs(
    pos: Tensor,
    neg: Tensor,
    sample_weight: Tensor | None,
    reduction: str,
    constants: tuple[NamedTensor, NamedTensor] | None = None,
) -> Inputs:
    """Return what the op takes for a loss of pos [B] and neg [B] or [B, K] (or of one shape)."""
    pos, neg = common_scores(pos, neg, reduction)
    shape = neg.shape
    pos, neg = flat_scores(pos, neg)
    if sample_weight is not None:
        sample_weight = checked_weight(sample_weight, pos, neg, shape)
    x_pos = x_neg = None
    if constants is not None:
        (pos_name, x_pos), (neg_name, x_neg) = constants
        x_pos = None if x_pos is None else sample_tensor(pos_name, x_pos, pos, neg, shape)
        x_neg = None if x_neg is None else sample_tensor(neg_name, x_neg, pos, neg, shape, by_row=False)
    return pos, neg, x_pos, x_neg, sample_weight


def pair_loss(
    pos: Tensor,
    neg: Tensor,
    sample_weight: Tensor | None,
    kernel: Kernel,
    reduction: str,
    constants: tuple[NamedTensor, NamedTensor] | None = None,
) -> Tensor:
    """Return a loss of pos [B] and neg [B] or [B, K] (or of one shape): every pair is a sample."""
    inputs = pair_inputs(pos, neg, sample_weight, reduction, constants)
    shape = neg.shape
    value = autograd.pair_loss(*inputs, kernel, reduction)
    return value.reshape(shape) if reduction == "none" and value.shape != shape else value


def quad_inputs(pos: Tensor, neg: Tensor, sample_weight: Tensor | None, reduction: str) -> Inputs:
    """Return what the op takes for a loss of pos, neg [B, 2]."""
    pos, neg = common_scores(pos, neg, reduction)
    for name, scores in (("pos", pos), ("neg", neg)):
        if scores.dim() != 2 or scores.shape[1] != 2:
            raise ValueError(
                f"{name}: expected two scores of each user, shape [B, 2], as of what TripletLoader(positives=2, "
                f"negatives=2) draws, got {describe(scores)}"
            )
    if pos.shape != neg.shape:
        raise ValueError(f"neg: expected the shape of pos, {tuple(pos.shape)}, got {describe(neg)}")
    if sample_weight is not None:
        sample_weight = checked_weight(sample_weight, pos[:, 0], pos[:, 0], pos.shape[:1])
    return pos, neg, None, None, sample_weight


def quad_loss(pos: Tensor, neg: Tensor, sample_weight: Tensor | None, kernel: Kernel, reduction: str) -> Tensor:
    """Return a loss of pos, neg [B, 2]: every row is a sample."""
    return autograd.pair_loss(*quad_inputs(pos, neg, sample_weight, reduction), kernel, reduction)


def row_inputs(
    pos: Tensor,
    neg: Tensor,
    sample_weight: Tensor | None,
    reduction: str,
    constants: tuple[NamedTensor, NamedTensor] | None = None,
) -> Inputs:
    """Return what the op takes for a loss of pos [B] and neg [B, K] that looks at all K negatives at once."""
    pos, neg = common_scores(pos, neg, reduction)
    if pos.dim() == 2 and pos.shape[1] == 1:
        pos = pos.squeeze(1)
    if neg.dim() == 1:
        neg = neg.unsqueeze(1)
    if pos.dim() != 1 or neg.dim() != 2 or neg.shape[0] != pos.shape[0] or neg.shape[1] < 1:
        raise ValueError(
            f"neg: expected [B, K] with K >= 1 negatives for pos of shape [B], got {describe(neg)} for {describe(pos)}"
        )
    if sample_weight is not None:
        sample_weight = checked_weight(sample_weight, pos, pos, pos.shape)
    x_pos = x_neg = None
    if constants is not None:
        (pos_name, x_pos), (neg_name, x_neg) = constants
        x_pos = None if x_pos is None else sample_tensor(pos_name, x_pos, pos, pos, pos.shape)
        if x_neg is not None:
            require_tensor(neg_name, x_neg)
            if x_neg.dim() == 1:  # one negative a row, or the same K in all rows
                x_neg = x_neg.unsqueeze(1) if neg.shape[1] == 1 else x_neg.expand(neg.shape[0], -1)
            x_neg = sample_tensor(neg_name, x_neg, pos, neg, neg.shape, by_row=False)
    return pos, neg, x_pos, x_neg, sample_weight


def row_loss(
    pos: Tensor,
    neg: Tensor,
    sample_weight: Tensor | None,
    kernel: Kernel,
    reduction: str,
    constants: tuple[NamedTensor, NamedTensor] | None = None,
) -> Tensor:
    """Return a loss of pos [B] and neg [B, K] that looks at all K negatives at once: every row is a sample."""
    inputs = row_inputs(pos, neg, sample_weight, reduction, constants)
    return autograd.pair_loss(*inputs, kernel, reduction)


def branches_loss(
    pos: Tensor,
    neg: Tensor,
    user_branch: Tensor,
    pos_branch: Tensor,
    neg_branch: Tensor,
    sample_weight: Tensor | None,
    kernel: Kernel,
    reduction: str,
) -> Tensor:
    """Return MACR of pos [B] and neg [B] or [B, K], and of the logits of its branches."""
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
        sample_weight = checked_weight(sample_weight, pos, neg, neg.shape)
    scores = (pos, neg, user_branch.to(pos.dtype), pos_branch.to(pos.dtype), neg_branch.to(pos.dtype))
    return autograd.macr_loss(scores, sample_weight, kernel.a, kernel.b, reduction)


def shared_score(name: str, scores: Tensor) -> Tensor:
    """Return one score a user for both BPR terms, [B, 2], from [B] or the first column of [B, 2]."""
    require_floating(name, scores)
    if scores.dim() == 1:
        scores = scores.unsqueeze(1)
    if scores.dim() != 2 or scores.shape[1] not in (1, 2):
        raise ValueError(f"{name}: expected shape [B] or [B, 2], got {describe(scores)}")
    return scores[:, :1].expand(-1, 2)
