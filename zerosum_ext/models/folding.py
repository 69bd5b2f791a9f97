"""Vectors of users who were not trained with: the best ones for frozen items.

The vector p of a user minimises

    mean over samples of loss(scores of positives, scores of negatives) + l2/2 |p|^2

over the samples of this user alone, with the items as they are. For losses that are convex in the scores this is a
strongly convex problem of d numbers. Many users are solved at once by L-BFGS [NW06 algorithm 7.5]: each has a memory,
a line search and an end of its own, and the products with item vectors are batched.

References:
    [NW06] Nocedal, Wright, "Numerical Optimization", 2nd edition, 2006.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zerosum_ext._checks import describe, require_finite_number, require_ids, require_positive_int
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.data.sampling import sample_negatives
from zerosum_ext.losses import bpr_loss, compiled_loss, get_loss, pos2neg2_loss, zerosum_loss

__all__ = ["FoldIn", "fold_in", "histories_of", "usual_l2"]

# Numbers of item vectors that are held at once: 8 MiB of float32, about what a processor's caches hold.
_CELLS = 1 << 20
# Pairs of updates that L-BFGS remembers, the share of the predicted decrease that a step must reach, and halvings of a
# step before it is given up: at a kink of the loss no step reaches it.
_MEMORY, _SUFFICIENT, _HALVINGS = 8, 1e-4, 12


# |x| in Zerosum and Pos2Neg2 has a kink at 0, where minima like to lie and gradients do not vanish. It is rounded off:
# sqrt(x^2 + width^2). The loss changes by at most twice the width.
_KINK_WIDTH = 0.02
_ROUNDED = ("zerosum", "pos2neg2")
# Losses whose other kinks are not rounded off.
_KINKED = ("pos2", "neg2", "hinge", "ccl", "hardest")


class _Smooth(nn.Module):
    """Zerosum or Pos2Neg2 without the kinks, one value for each sample: the library's losses of other arguments."""

    def __init__(self, loss: nn.Module, a: float, b: float) -> None:
        super().__init__()
        self.num_positives = int(getattr(loss, "num_positives", 1))
        self.a, self.b = a, b

    def forward(self, pos: Tensor, neg: Tensor) -> Tensor:
        if self.num_positives == 1:
            # rho(p + n) of a sum whose other part is 0.
            wide = pos.unsqueeze(1) if neg.dim() == 2 else pos
            far = ((wide + neg).square() + _KINK_WIDTH**2).sqrt()
            rho = zerosum_loss(far, torch.zeros_like(far), bpr_weight=0.0, reg_weight=self.b, reduction="none")
            return rho + bpr_loss(pos, neg, reduction="none") * self.a
        zero = torch.zeros_like(pos[:, 0])
        far_pos, far_neg = (
            torch.stack([((t[:, 0] - t[:, 1]).square() + _KINK_WIDTH**2).sqrt(), zero], 1) for t in (pos, neg)
        )
        rho = pos2neg2_loss(far_pos, far_neg, bpr_weight=0.0, reg_weight=self.b, reduction="none")
        return rho + self.a * bpr_loss(pos, neg, reduction="none").sum(1)


def _without_kinks(module: nn.Module) -> nn.Module:
    """Return the loss that stands for a loss of the library in the search for a minimum.

    Raises:
        ValueError: it has kinks that are not rounded off.
    """
    kernel = compiled_loss(module)
    if kernel is not None and kernel.loss in _KINKED:
        raise ValueError(f"loss: expected one without kinks, or 'zerosum' or 'pos2neg2', got {kernel.loss!r}")
    if kernel is not None and kernel.loss in _ROUNDED:
        return _Smooth(module, kernel.a, kernel.b)
    return module


def usual_l2(loss: str) -> float:
    """Return the ``l2`` that suits the rows of a loss of this name: kinks like a larger one."""
    return 0.1 if loss in _ROUNDED else 0.03


@dataclass(frozen=True)
class FoldIn:
    """The settings of :meth:`zerosum_ext.models.DotProductRecommender.fold_in`, which describes them."""

    loss: nn.Module
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
        module = _without_kinks(module)
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
            float(l2),
            negatives,
            require_positive_int("seed", seed, minimum=0),
            float(tolerance),
            require_positive_int("max_iterations", max_iterations),
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
    """
    table = item.float() if item.dtype in (torch.float16, torch.bfloat16) else item
    bias = None if bias is None else bias.to(table.dtype)
    histories = histories.to(table.device)
    settings.loss.to(table.device)
    vectors = table.new_zeros(histories.num_users, table.shape[1])
    counts = histories.user_counts
    solvable = ((counts > 0) & (counts < histories.num_items)).nonzero().flatten()
    # Users of like histories go together, so that little is padded.
    order = solvable[torch.argsort(counts[solvable], descending=True, stable=True)]
    per_positive = 1 + (settings.negatives or 0)
    drawn = _negatives(histories, solvable, settings)
    first = 0
    while first < order.numel():
        longest = int(counts[order[first]]) * per_positive
        size = 1 if settings.negatives is None else max(1, _CELLS // (longest * table.shape[1]))
        users = order[first : first + size]
        vectors[users] = _minimise(_Problem(table, bias, histories, drawn, users, settings), settings)
        first += size
    return vectors.to(item.dtype)


def _negatives(histories: Interactions, solvable: Tensor, settings: FoldIn) -> Tensor:
    """Return the negatives of each interaction, [nnz, negatives]; those of users who have none mean nothing."""
    if settings.negatives is None:
        return histories.indices.new_empty(0)
    users = histories.pairs()[0]
    drawn = users.new_zeros(len(users), settings.negatives)
    keep = torch.zeros(histories.num_users, dtype=torch.bool, device=users.device)
    keep[solvable] = True
    mine = keep[users]
    drawn[mine] = sample_negatives(histories, users[mine], settings.negatives, seed=settings.seed)
    return drawn


class _Problem:
    """The objectives of some users, whose values and gradients are computed together.

    Attributes:
        vectors: those of each user's positives and negatives, [B, S, d].
        bias: that of the same items, [B, S], or None.
        pos, neg: places of the samples' scores among all scores [B * S].
        number: of each sample's user, [P].
        weight: of each sample in its user's mean, [P].
    """

    def __init__(
        self,
        item: Tensor,
        bias: Tensor | None,
        histories: Interactions,
        drawn: Tensor,
        users: Tensor,
        settings: FoldIn,
    ) -> None:
        self.settings = settings
        self.l2 = settings.l2
        device, count = item.device, users.numel()
        sizes = histories.user_counts[users]
        longest = int(sizes.amax())
        number = torch.repeat_interleave(torch.arange(count, device=device), sizes)
        at = torch.arange(number.numel(), device=device) - (sizes.cumsum(0) - sizes)[number]
        places = histories.indptr[users][number] + at
        positives = histories.indices[places].long()
        self.all = settings.negatives is None
        if self.all:  # a user at a time: his negatives are all other items, the same for each positive
            mask = torch.ones(histories.num_items, dtype=torch.bool, device=device)
            mask[positives] = False
            items = torch.cat([positives, mask.nonzero().flatten()]).unsqueeze(0)
            pos = torch.arange(longest, device=device)
            neg = torch.arange(longest, items.shape[1], device=device)
            self.items = positives, items[0, longest:].expand(longest, -1)
        else:
            k = int(settings.negatives or 1)
            negatives = drawn[places]
            width = longest * (1 + k)
            items = torch.zeros(count, width, dtype=torch.int64, device=device)
            pos = number * width + at
            neg = (number * width + longest + at * k).unsqueeze(1) + torch.arange(k, device=device)
            items.view(-1)[pos] = positives
            items.view(-1)[neg] = negatives
            if getattr(settings.loss, "num_positives", 1) == 2:
                pos = torch.stack([pos, number * width + (at + self._shift(places, sizes[number])) % sizes[number]], 1)
                self.items = items.view(-1)[pos], negatives
            elif k == 1:
                neg, self.items = neg[:, 0], (positives, negatives[:, 0])
            else:
                self.items = positives, negatives
        self.pos, self.neg, self.number = pos, neg, number
        self.vectors = item[items]
        self.bias = None if bias is None else bias[items]
        self.weight = (1.0 / sizes.to(item.dtype))[number]

    def _shift(self, places: Tensor, sizes: Tensor) -> Tensor:
        """Return how much further on in the user's row a sample's second positive is: not 0 where he has two."""
        mixed = (places * 2654435761 + self.settings.seed * 40503) % 2147483647
        return torch.where(sizes > 1, 1 + mixed % (sizes - 1).clamp(min=1), 0)

    def take(self, keep: Tensor) -> None:
        """Go on with some of the users, ``keep`` int64 ascending."""
        width = self.vectors.shape[1]
        place = torch.full((self.vectors.shape[0],), -1, dtype=torch.int64, device=keep.device)
        place[keep] = torch.arange(keep.numel(), device=keep.device)
        mine = place[self.number] >= 0
        moved = (place[self.number] - self.number)[mine] * width
        self.pos = self.pos[mine] + (moved if self.pos.dim() == 1 else moved.unsqueeze(1))
        self.neg = self.neg[mine] + (moved if self.neg.dim() == 1 else moved.unsqueeze(1))
        self.items = self.items[0][mine], self.items[1][mine]
        self.number, self.weight = place[self.number][mine], self.weight[mine]
        self.vectors = self.vectors[keep]
        self.bias = None if self.bias is None else self.bias[keep]

    def __call__(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objectives [B] and their gradients [B, d]."""
        scores = torch.bmm(self.vectors, p.unsqueeze(2)).squeeze(2)
        if self.bias is not None:
            scores = scores + self.bias
        flat = scores.reshape(-1)
        pos, neg = flat[self.pos].requires_grad_(), flat[self.neg].requires_grad_()
        loss = self.settings.loss
        constants = {}
        if getattr(loss, "needs_items", False):
            constants = {"pos_items": self.items[0], "neg_items": self.items[1]}
        with torch.enable_grad():
            values = loss(pos, neg.expand(len(pos), -1) if self.all else neg, **constants)
            each = values if values.dim() == 1 else values.mean(1)
            slopes = torch.autograd.grad((each * self.weight).sum(), (pos, neg))
        slope = torch.zeros_like(flat)
        if self.pos.dim() == 1:
            slope[self.pos] = slopes[0]
        else:
            slope.index_add_(0, self.pos.reshape(-1), slopes[0].reshape(-1))
        slope[self.neg] = slopes[1]
        gradient = torch.bmm(slope.view(scores.shape).unsqueeze(1), self.vectors).squeeze(1) + self.l2 * p
        value = p.new_zeros(len(p)).index_add_(0, self.number, each.detach() * self.weight)
        return value + 0.5 * self.l2 * p.square().sum(1), gradient

    def curvature(self) -> Tensor:
        """Return an upper bound of the second derivatives at most scores: the first step's length, [B]."""
        return self.l2 + self.vectors.square().sum(2).amax(1)


def _minimise(problem: _Problem, settings: FoldIn) -> Tensor:
    """Return the minimisers [B, d], by L-BFGS from zero."""
    count, width = problem.vectors.shape[0], problem.vectors.shape[2]
    result = problem.vectors.new_zeros(count, width)
    active = torch.arange(count, device=result.device)
    p = result.clone()
    value, gradient = problem(p)
    limit = settings.tolerance * gradient.norm(dim=1)
    memory = _Memory(problem.curvature())
    for _ in range(settings.max_iterations):
        moving = gradient.norm(dim=1) > limit
        # Where half of the users are at their end, the others go on alone.
        if not bool(moving.any()):
            break
        if int(moving.sum()) <= len(p) // 2:
            result[active] = p
            keep = moving.nonzero().flatten()
            problem.take(keep)
            memory.take(keep)
            active, p, value, gradient, limit = (t[keep] for t in (active, p, value, gradient, limit))
            moving = moving[keep]
        step = -memory.product(gradient)
        slope = (step * gradient).sum(1)
        step = torch.where(moving.unsqueeze(1), step, 0)
        moved, new_value, new_gradient = _line_search(problem, p, value, gradient, step, slope)
        memory.add(moved - p, new_gradient - gradient)
        stuck = moving & (moved == p).all(1)
        limit = torch.where(stuck, torch.inf, limit)  # at a kink, or at the last bits
        p, value, gradient = moved, new_value, new_gradient
    result[active] = p
    return result


def _line_search(
    problem: _Problem, p: Tensor, value: Tensor, gradient: Tensor, step: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return new points, values and gradients: each user's step, halved until its value falls enough, or no step."""
    rounding = 4 * torch.finfo(p.dtype).eps
    size = torch.ones_like(value)
    for _ in range(_HALVINGS):
        moved = p + size.unsqueeze(1) * step
        new_value, new_gradient = problem(moved)
        enough = new_value <= value + _SUFFICIENT * size * slope + rounding * value.abs()
        if bool(enough.all()):
            return moved, new_value, new_gradient
        size = torch.where(enough, size, size / 2)
    failed = ~enough
    moved = torch.where(failed.unsqueeze(1), p, moved)
    return (
        moved,
        torch.where(failed, value, new_value),
        torch.where(failed.unsqueeze(1), gradient, new_gradient),
    )


class _Memory:
    """The last steps of each user and the changes of his gradient, which stand for the inverse of the Hessian."""

    def __init__(self, curvature: Tensor) -> None:
        self.scale = 1 / curvature
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, step: Tensor, change: Tensor) -> None:
        """Remember a step, for those users along whose step the curvature is positive."""
        product = (step * change).sum(1)
        sound = product > torch.finfo(step.dtype).eps * change.square().sum(1)
        inverse = torch.where(sound, 1 / product.where(sound, 1.0), 0)
        self.scale = torch.where(sound, product / change.square().sum(1).where(sound, 1.0), self.scale)
        self.pairs = [*self.pairs[1 - _MEMORY :], (step, change, inverse)]

    def take(self, keep: Tensor) -> None:
        self.scale = self.scale[keep]
        self.pairs = [(step[keep], change[keep], inverse[keep]) for step, change, inverse in self.pairs]

    def product(self, vector: Tensor) -> Tensor:
        """Return the inverse of the Hessian times a vector, [B, d]."""
        shares = []
        for step, change, inverse in reversed(self.pairs):
            share = inverse * (step * vector).sum(1)
            vector = vector - share.unsqueeze(1) * change
            shares.append(share)
        vector = vector * self.scale.unsqueeze(1)
        for (step, change, inverse), share in zip(self.pairs, reversed(shares), strict=True):
            vector = vector + (share - inverse * (change * vector).sum(1)).unsqueeze(1) * step
        return vector
