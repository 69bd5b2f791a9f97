"""The losses of matrix factorization in plain PyTorch: the definition, the tests' oracle, and the fall-back."""

from __future__ import annotations

import torch
from torch import Tensor

from zerosum_ext.reference.losses import Kernel, compute_dtype, pair_loss_value, reduce


def mf_scores(
    user_embedding: Tensor, item_embedding: Tensor, item_bias: Tensor | None, users: Tensor, items: Tensor, sparse: bool
) -> tuple[Tensor, Tensor]:
    """Return scores <P_u, Q_i> (+ b_i) of users [B] and items [B, J], and half the summed squared norms of their rows.

    Both in the dtype of the arithmetic, [B, J] and [B]. ``sparse``: the gradients of the tables are sparse tensors.
    """
    compute = compute_dtype(user_embedding.dtype)
    user_rows = torch.nn.functional.embedding(users, user_embedding, sparse=sparse).to(compute)
    item_rows = torch.nn.functional.embedding(items, item_embedding, sparse=sparse).to(compute)
    scores = torch.bmm(item_rows, user_rows.unsqueeze(-1)).squeeze(-1)
    if item_bias is not None:
        scores = scores + torch.gather(item_bias, 0, items.reshape(-1), sparse_grad=sparse).reshape(items.shape)
    return scores, 0.5 * (user_rows.square().sum(-1) + item_rows.square().sum((-1, -2)))


def mf_items(positives: Tensor, negatives: Tensor) -> Tensor:
    """Return the items of each sample [B, J], from positives [B] or [B, 2] and negatives [B] or [B, K]."""
    return torch.cat([t.unsqueeze(-1) if t.dim() == 1 else t for t in (positives, negatives)], dim=1)


def mf_loss_value(
    user_embedding: Tensor,
    item_embedding: Tensor,
    item_bias: Tensor | None,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    constants: Tensor | None,
    weight: Tensor | None,
    kernel: Kernel,
    l2: float,
    reduction: str,
    sparse: bool = False,
) -> Tensor:
    """Return the value of :func:`zerosum_ext._ops.mf_loss`, differentiable in every floating-point tensor.

    It is a loss of the scores of positives and negatives, plus l2 times (mean or sum over the batch) half the summed
    squared norms of the rows gathered for each sample ([BPR09] eq. 4).
    """
    items = mf_items(positives, negatives)
    scores, norms = mf_scores(user_embedding, item_embedding, item_bias, users, items, sparse)
    pos, neg = split_scores(scores, positives, negatives)
    aux_pos, aux_neg = (None, None) if constants is None else (constants[positives], constants[negatives])
    value = pair_loss_value(pos, neg, aux_pos, aux_neg, weight, kernel, reduction)
    if reduction == "none":
        return value.to(user_embedding.dtype)
    return value + l2 * reduce(norms, reduction) if l2 else value


def split_scores(scores: Tensor, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Split scores [B, J] into those of positives and of negatives, in their shapes."""
    split = 1 if positives.dim() == 1 else positives.shape[1]
    return scores[:, :split].reshape(positives.shape), scores[:, split:].reshape(negatives.shape)
