"""Check the scores, constants and weights of a loss, and bring them to the shapes that the ops take."""

from __future__ import annotations

import torch
from torch import Tensor

from zerosum_ext._checks import describe, require_choice, require_floating, require_same_device, require_tensor
from zerosum_ext._ops import autograd
from zerosum_ext.reference import compute_dtype

REDUCTIONS = ("none", "sum", "mean")
DTYPES = frozenset((torch.float64, torch.float32, torch.float16, torch.bfloat16))


def sample_tensor(
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


def common_scores(pos: Tensor, neg: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """Checks what holds for every loss, and brings both scores to one dtype."""
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


def pair_loss(
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
    pos, neg = common_scores(pos, neg, reduction)
    shape = neg.shape
    pos, neg = flat_scores(pos, neg)
    if sample_weight is not None:
        require_floating("sample_weight", sample_weight)
        sample_weight = sample_tensor("sample_weight", sample_weight, pos, neg, shape)
    aux_pos = aux_neg = None
    if aux is not None:
        aux_pos = sample_tensor(*aux[0], pos, neg, shape)
        aux_neg = sample_tensor(*aux[1], pos, neg, shape, by_row=False)
    value = autograd.pair_loss(pos, neg, aux_pos, aux_neg, sample_weight, (loss, a, b, c, reduction))
    return value.reshape(shape) if reduction == "none" and value.shape != shape else value


def quad_loss(
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
    pos, neg = common_scores(pos, neg, reduction)
    for name, scores in (("pos", pos), ("neg", neg)):
        if scores.dim() != 2 or scores.shape[1] != 2:
            raise ValueError(f"{name}: expected two scores of each user, shape [B, 2], got {describe(scores)}")
    if pos.shape != neg.shape:
        raise ValueError(f"neg: expected the shape of pos, {tuple(pos.shape)}, got {describe(neg)}")
    if sample_weight is not None:
        require_floating("sample_weight", sample_weight)
        sample_weight = sample_tensor("sample_weight", sample_weight, pos[:, 0], pos[:, 0], pos.shape[:1])
    return autograd.pair_loss(pos, neg, None, None, sample_weight, (loss, a, b, c, reduction))


def row_loss(
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
        require_floating("sample_weight", sample_weight)
        sample_weight = sample_tensor("sample_weight", sample_weight, pos, pos, pos.shape)
    x_pos = x_neg = None
    if aux_pos[1] is not None:
        x_pos = sample_tensor(aux_pos[0], aux_pos[1], pos, pos, pos.shape)
    name, x = aux_neg
    if x is not None:
        require_tensor(name, x)
        if x.dim() == 1:  # one negative a row, or the same K in all rows
            x = x.unsqueeze(1) if neg.shape[1] == 1 else x.expand(neg.shape[0], -1)
        x_neg = sample_tensor(name, x, pos, neg, neg.shape, by_row=False)
    return autograd.pair_loss(pos, neg, x_pos, x_neg, sample_weight, (loss, a, b, c, reduction))
