"""Vectors of users who were not trained with: the best ones for frozen items.

:mod:`zerosum_ext.reference.folding` says what is minimised. Here histories become samples, and losses of the library
go to the compiled op, others to the minimiser in PyTorch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zerosum_ext import _ops
from zerosum_ext._checks import describe, require_finite_number, require_ids, require_positive_int
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.data.sampling import signed_seed
from zerosum_ext.losses import Loss, compiled_loss, get_loss
from zerosum_ext.reference import FoldInLoss, Kernel, compute_dtype, minimise_rows, rounded_loss, second_position

__all__ = ["FoldIn", "fold_in", "histories_of", "samples_of", "usual_l2"]

# |x| in Zerosum and Pos2Neg2 has a kink at 0, where minima like to lie and gradients do not vanish. It is rounded off:
# sqrt(x^2 + width^2). The loss changes by at most twice the width.
_KINK_WIDTH = 0.02
_ROUNDED = ("zerosum", "pos2neg2")
# Losses whose other kinks are not rounded off.
_KINKED = ("pos2", "neg2", "hinge", "ccl", "hardest")
# More steps are never taken.
_MOST_ITERATIONS = 1 << 20


def usual_l2(loss: str) -> float:
    """Return the ``l2`` that suits the rows of a loss of this name: kinks like a larger one."""
    return 0.1 if loss in _ROUNDED else 0.03


@dataclass(frozen=True)
class FoldIn:
    """The settings of :meth:`zerosum_ext.models.DotProductRecommender.fold_in`, which describes them."""

    loss: nn.Module
    kernel: Kernel | None
    l2: float
    negatives: int | None
    seed: int
    tolerance: float
    max_iterations: int

    @classmethod
    def of(
        cls,
        loss: str | nn.Module,
        l2: float,
        negatives: int | None,
        seed: int,
        tolerance: float,
        max_iterations: int,
    ) -> FoldIn:
        """Check the settings."""
        module = get_loss(loss) if isinstance(loss, str) else copy.copy(loss)
        if not isinstance(module, nn.Module) or not hasattr(module, "reduction"):
            raise TypeError(f"loss: expected a name or a loss of zerosum_ext, got {describe(loss)}")
        if getattr(module, "needs_branches", False):
            raise ValueError("loss: expected one of scores alone, got one of branches")
        module.reduction = "none"  # type: ignore[assignment]  # each user has a mean of his own
        kernel = compiled_loss(module)
        if kernel is not None and kernel.loss in _KINKED:
            raise ValueError(f"loss: expected one without kinks, or 'zerosum' or 'pos2neg2', got {kernel.loss!r}")
        if require_finite_number("l2", l2, minimum=0) == 0:
            raise ValueError("l2: expected a number > 0, without which the best vector may be infinitely long")
        pairs = getattr(module, "num_positives", 1) == 2
        if negatives is not None:
            negatives = 2 if pairs else require_positive_int("negatives", negatives)
        elif pairs:
            raise ValueError("negatives: expected a number with a loss of two positives, got None for all")
        if require_finite_number("tolerance", tolerance, minimum=0, maximum=1) == 0:
            raise ValueError("tolerance: expected a number > 0")
        return cls(
            module,
            kernel,
            float(l2),
            negatives,
            signed_seed(seed),
            float(tolerance),
            require_positive_int("max_iterations", max_iterations, maximum=_MOST_ITERATIONS),
        )


def histories_of(histories: Any, num_items: int) -> Interactions:
    """Return histories as interactions [n, num_items].

    Args:
        histories: a matrix of a row for each user, or a sequence of the ids of each user's items.
        num_items: the size of the catalogue.

    Raises:
        TypeError: they are nothing of the kind.
        ValueError: another number of items, or an id out of range.
    """
    listed = isinstance(histories, Sequence) and not isinstance(histories, (str, bytes))
    if not listed and not isinstance(histories, Interactions) and not hasattr(histories, "shape"):
        raise TypeError(f"histories: expected a matrix or a list of lists of items, got {describe(histories)}")
    if listed:
        rows = [require_ids("histories", row, num_items).reshape(-1).cpu().numpy() for row in histories]
        users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        items = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        return Interactions.from_arrays(users, items.astype(np.int64), shape=(len(rows), num_items))
    if isinstance(histories, np.ndarray) or (isinstance(histories, Tensor) and histories.layout == torch.strided):
        raise TypeError(
            f"histories: expected a sparse matrix [n, {num_items}] or a list of lists of items, got "
            f"{describe(histories)}"
        )
    matrix = Interactions.from_any(histories)
    if matrix.num_items != num_items:
        raise ValueError(f"histories: expected {num_items} items as the model has, got {matrix.num_items}")
    return matrix


@torch.no_grad()
def fold_in(item: Tensor, bias: Tensor | None, histories: Interactions, settings: FoldIn) -> Tensor:
    """Return the best vectors of users for frozen items, [n, d] in the dtype of ``item``.

    Args:
        item: the vectors of items, [I, d].
        bias: what is added to the scores of items [I], or None.
        histories: the users' positives, [n, I].
        settings: loss, weight of L2 and so on.

    Returns:
        A row for each user. It is zero for users without a positive or without a negative.

    Raises:
        ValueError: the vectors of a user's items are not finite because the model diverged.
    """
    histories = histories.to(item.device)
    module = copy.deepcopy(settings.loss).to(item.device) if settings.kernel is None else settings.loss
    constants = settings.loss.item_constants() if isinstance(settings.loss, Loss) else None
    constants = None if constants is None else constants.to(item.device)
    rows: Tensor
    if settings.negatives is None:
        rows = _against_all(item, bias, constants, histories, module, settings)
    else:
        indptr, positives, negatives = samples_of(histories, settings)
        table, bias, constants, (positives, negatives) = _table(item, bias, constants, positives, negatives)
        rest = settings.l2, settings.tolerance, settings.max_iterations
        if settings.kernel is not None:
            kink = _KINK_WIDTH if settings.kernel.loss in _ROUNDED else 0.0
            samples = indptr, positives, negatives
            rows = _ops.fold_in(table, bias, *samples, constants, settings.kernel, kink, *rest)
        else:
            rows = minimise_rows(table, bias, (indptr, positives, negatives), _loss_of(module), *rest)
    if not bool(rows.isfinite().all()):
        user = int((~rows.isfinite()).any(1).nonzero()[0])
        raise ValueError(
            f"fold_in: the vectors of the items of history {user}, or of its negatives, are not finite; the model's "
            "training diverged"
        )
    return rows.to(item.dtype)


def samples_of(histories: Interactions, settings: FoldIn) -> tuple[Tensor, Tensor, Tensor]:
    """Return the samples of users: indptr [n + 1], positives [N] or [N, 2], negatives [N, K]; at least one negative.

    Users who have all items have no samples.
    """
    counts, users = histories.user_counts, histories.pairs()[0]
    indptr, positives = histories.indptr, histories.indices.long()
    keep = counts < histories.num_items
    if not bool(keep.all()):
        mine = keep[users]
        counts = torch.where(keep, counts, 0)
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        positives, users = positives[mine], users[mine]
    k = int(settings.negatives or 1)
    numbers = _numbers(users, positives, histories.num_users)
    matrix = histories.indptr, histories.indices, None, None, None, histories.num_items
    negatives, _ = _ops.sample_negatives_at(users, numbers, *matrix, k, settings.seed, 0, True)
    if getattr(settings.loss, "num_positives", 1) == 2:
        begin = indptr[:-1][users]
        at = torch.arange(len(users), device=users.device) - begin
        other = second_position(numbers, at, counts[users], settings.seed, 0)
        positives = torch.stack([positives, positives[begin + other]], 1)
    return indptr, positives, negatives


def _numbers(users: Tensor, items: Tensor, num_users: int) -> Tensor:
    """Return the numbers of samples, which negatives are drawn by: those of an item and of the user's whole history.

    So a row is the same whoever else is folded in. With the places of samples in a batch as numbers, the first sessions
    of all batches would be set against the same few items.
    """
    key = items.new_zeros(num_users).index_add_(0, users, _mixed(items))
    return _mixed(key[users] + items) & ((1 << 62) - 1)


def _mixed(x: Tensor) -> Tensor:
    """Return int64 numbers whose bits depend on all bits of ``x``; products wrap around."""
    x = (x + 0x632BE59BD9B4E019) * 0x5851F42D4C957F2D
    x = (x ^ (x >> 29)) * 0x2545F4914F6CDD1D
    return x ^ (x >> 32)


def _table(
    item: Tensor, bias: Tensor | None, constants: Tensor | None, *ids: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None, tuple[Tensor, ...]]:
    """Return the tables in the dtype of the arithmetic, and ids in them: of 16-bit tables only the rows in question."""
    dtype = compute_dtype(item.dtype)
    if item.dtype != dtype:
        needed, places = torch.cat([i.reshape(-1) for i in ids]).unique(return_inverse=True)
        item, bias = item[needed].to(dtype), None if bias is None else bias[needed]
        constants = None if constants is None else constants[needed]
        parts = places.split([i.numel() for i in ids])
        ids = tuple(part.view(i.shape) for part, i in zip(parts, ids, strict=True))
    bias = None if bias is None else bias.to(item.dtype).contiguous()
    constants = None if constants is None else constants.to(item.dtype).contiguous()
    return item.contiguous(), bias, constants, ids


def _loss_of(module: nn.Module) -> FoldInLoss:
    """Return a module as a function of scores and items."""

    def values(pos: Tensor, neg: Tensor, pos_items: Tensor, neg_items: Tensor) -> Tensor:
        items = {"pos_items": pos_items, "neg_items": neg_items} if getattr(module, "needs_items", False) else {}
        value: Tensor = module(pos, neg, **items)
        return value

    return values


def _against_all(
    item: Tensor,
    bias: Tensor | None,
    constants: Tensor | None,
    histories: Interactions,
    module: nn.Module,
    settings: FoldIn,
) -> Tensor:
    """Return the rows whose negatives are all other items, the same for each positive: a user at a time."""
    wide = item.to(compute_dtype(item.dtype))
    bias = None if bias is None else bias.to(wide.dtype)
    rows = wide.new_zeros(histories.num_users, wide.shape[1])
    counts, starts = histories.user_counts.tolist(), histories.indptr.tolist()
    kernel = settings.kernel
    if kernel is None:
        loss = _loss_of(module)
    else:
        constants = None if constants is None else constants.to(wide.dtype)
        loss = rounded_loss(kernel, constants, _KINK_WIDTH if kernel.loss in _ROUNDED else 0.0)
    for user, count in enumerate(counts):
        if 0 < count < histories.num_items:
            positives = histories.indices[starts[user] : starts[user] + count].long()
            mask = torch.ones(histories.num_items, dtype=torch.bool, device=wide.device)
            mask[positives] = False
            samples = torch.tensor([0, count], device=wide.device), positives, mask.nonzero().view(1, -1)
            rest = settings.l2, settings.tolerance, settings.max_iterations
            rows[user] = minimise_rows(wide, bias, samples, loss, *rest)[0]
    return rows
