"""Rows of users for frozen items: the definition of the op, and what finds them for any loss.

The row p of a user minimises

    mean over samples of loss(scores of positives, scores of negatives) + l2/2 |p|^2

over the samples of this user alone, with the items as they are. For losses that are convex in the scores this is a
strongly convex problem of d numbers. Many users are solved at once by L-BFGS [NW06 algorithm 7.5]: each has a memory,
a line search and an end of its own, and the products with item vectors are batched.

References:
    [NW06] Nocedal, Wright, "Numerical Optimization", 2nd edition, 2006.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zerosum_ext.reference.losses import LOSSES, Kernel, rho

__all__ = ["FoldInLoss", "Objective", "fold_in", "minimise_rows", "rounded_loss"]

#: From the scores of positives and negatives, and their items of the same shapes, to a value of each sample or pair.
FoldInLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# Numbers of item vectors that are held at once: 8 MiB of float32, about what a processor's caches hold.
_CELLS = 1 << 20
# Pairs of updates that L-BFGS remembers, the share of the predicted decrease that a step must reach, and halvings of a
# step before it is given up: at a kink of the loss no step reaches it.
_MEMORY, _SUFFICIENT, _HALVINGS = 8, 1e-4, 12


def rounded_loss(kernel: Kernel, constants: Tensor | None, kink: float) -> FoldInLoss:
    """Return a compiled loss as a function, for :func:`minimise_rows`.

    Args:
        kernel: the loss and its parameters.
        constants: what it takes beside each item [I], or None.
        kink: |x| in Zerosum and Pos2Neg2 becomes sqrt(x^2 + kink^2). 0 leaves it.
    """
    smooth = Kernel(kernel.loss, kernel.a) if kink else kernel

    def round_off(x: Tensor) -> Tensor:
        return rho((x.square() + kink**2).sqrt())

    def values(pos: Tensor, neg: Tensor, pos_items: Tensor, neg_items: Tensor) -> Tensor:
        if neg.dim() > pos.dim():
            pos, pos_items = pos.unsqueeze(-1), pos_items.unsqueeze(-1)
        x_pos, x_neg = (None, None) if constants is None else (constants[pos_items], constants[neg_items])
        value = LOSSES[kernel.loss](pos, neg, x_pos, x_neg, smooth)
        if kink and kernel.loss == "zerosum":
            return value + kernel.b * round_off(pos + neg)
        if kink:
            differences = (round_off(scores[:, 0] - scores[:, 1]) for scores in (pos, neg))
            return value + sum(w * d for w, d in zip((kernel.b, kernel.c), differences, strict=True))
        return value

    return values


# The op's arguments, with the loss as one.
def fold_in(
    item_embedding: Tensor,
    item_bias: Tensor | None,
    indptr: Tensor,
    positives: Tensor,
    negatives: Tensor,
    constants: Tensor | None,
    kernel: Kernel,
    kink: float,
    l2: float,
    tolerance: float,
    max_iterations: int,
) -> Tensor:
    """Return the rows of users for frozen items, as :func:`zerosum_ext._ops.fold_in` does, which has the arguments."""
    loss = rounded_loss(kernel, constants, kink)
    samples = indptr, positives, negatives
    return minimise_rows(item_embedding, item_bias, samples, loss, l2, tolerance, max_iterations)


@torch.no_grad()
def minimise_rows(
    item: Tensor,
    bias: Tensor | None,
    samples: tuple[Tensor, Tensor, Tensor],
    loss: FoldInLoss,
    l2: float,
    tolerance: float,
    max_iterations: int,
) -> Tensor:
    """Return the rows of users for frozen items and any loss.

    Args:
        item: the vectors of items, [I, d], float32 or float64.
        bias: what is added to the scores of items [I], or None.
        samples: of n users: indptr [n + 1], positives [N] or [N, 2], and negatives [N], [N, K] or, of one user, [1, K],
            those of each of the samples.
        loss: values of samples.
        l2, tolerance, max_iterations: those of the op.

    Returns:
        [n, d]: zero for users without samples, NaN where what a row depends on is not finite.
    """
    indptr, positives, negatives = samples
    rows = item.new_zeros(indptr.numel() - 1, item.shape[1])
    sizes = indptr.diff()
    # Users with like numbers of samples go together, so that little is padded.
    order = torch.argsort(sizes, descending=True, stable=True)
    order = order[: int((sizes > 0).sum())]
    each = sum(t.shape[1] if t.dim() == 2 else 1 for t in (positives, negatives))
    first = 0
    while first < order.numel():
        longest = int(sizes[order[first]]) * each
        users = order[first : first + max(1, _CELLS // max(1, longest * item.shape[1]))]
        objective = Objective(item, bias, (indptr, positives, negatives), users, loss, l2)
        rows[users] = _minimise(objective, tolerance, max_iterations)
        first += users.numel()
    return rows


class Objective:
    """The objectives of some users, whose values and gradients are computed together.

    Attributes:
        vectors: those of the items of each user's samples, [B, S, d].
        bias: that of the same items, [B, S], or None.
        pos, neg: places of the samples' scores among all scores [B * S].
        pos_items, neg_items: their items.
        number: of each sample's user, [P].
        weight: of each sample in its user's mean, [P].
    """

    def __init__(
        self,
        item: Tensor,
        bias: Tensor | None,
        samples: tuple[Tensor, Tensor, Tensor],
        users: Tensor,
        loss: FoldInLoss,
        l2: float,
    ) -> None:
        self.loss, self.l2 = loss, l2
        indptr, positives, negatives = samples
        device, count = item.device, users.numel()
        sizes = indptr.diff()[users]
        number = torch.repeat_interleave(torch.arange(count, device=device), sizes)
        at = torch.arange(number.numel(), device=device) - (sizes.cumsum(0) - sizes)[number]
        places = indptr[users][number] + at
        # One user's negatives, where all samples have the same, are scored once.
        self.shared = number.numel() > 1 and negatives.dim() == 2 and len(negatives) == 1
        self.pos_items, self.neg_items = positives[places], negatives if self.shared else negatives[places]
        longest = int(sizes.amax())
        of_positives = longest * (positives.shape[1] if positives.dim() == 2 else 1)
        of_negatives = (1 if self.shared else longest) * (negatives.shape[1] if negatives.dim() == 2 else 1)
        width = of_positives + of_negatives
        self.pos = self._places(self.pos_items, number, at, width, 0)
        only = slice(1) if self.shared else slice(None)
        self.neg = self._places(self.neg_items, number[only], at[only], width, of_positives)
        items = torch.zeros(count * width, dtype=torch.int64, device=device)
        items[self.pos], items[self.neg] = self.pos_items.long(), self.neg_items.long()
        items = items.view(count, width)
        self.vectors = item[items]
        self.bias = None if bias is None else bias[items]
        self.number, self.weight = number, (1.0 / sizes.to(item.dtype))[number]

    @staticmethod
    def _places(items: Tensor, number: Tensor, at: Tensor, width: int, begin: int) -> Tensor:
        """Return where the scores of items [P] or [P, K] lie, of which each user has his own part."""
        if items.dim() == 1:
            return number * width + begin + at
        k = items.shape[1]
        return (number * width + begin + at * k).unsqueeze(1) + torch.arange(k, device=items.device)

    def take(self, keep: Tensor) -> None:
        """Go on with some of the users, ``keep`` int64 ascending."""
        count, width = self.vectors.shape[:2]
        place = torch.full((count,), -1, dtype=torch.int64, device=keep.device)
        place[keep] = torch.arange(keep.numel(), device=keep.device)
        mine = place[self.number] >= 0
        moved = (place[self.number] - self.number)[mine] * width
        self.pos = self.pos[mine] + (moved if self.pos.dim() == 1 else moved.unsqueeze(1))
        self.neg = self.neg[mine] + (moved if self.neg.dim() == 1 else moved.unsqueeze(1))
        self.pos_items, self.neg_items = self.pos_items[mine], self.neg_items[mine]
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
        with torch.enable_grad():
            wide = (len(pos), -1) if self.shared else tuple(neg.shape)
            values = self.loss(pos, neg.expand(wide), self.pos_items, self.neg_items.expand(wide))
            each = values if values.dim() == 1 else values.mean(1)
            slopes = torch.autograd.grad((each * self.weight).sum(), (pos, neg))
        slope = torch.zeros_like(flat)
        slope[self.pos], slope[self.neg] = slopes
        gradient = torch.bmm(slope.view(scores.shape).unsqueeze(1), self.vectors).squeeze(1) + self.l2 * p
        value = p.new_zeros(len(p)).index_add_(0, self.number, each.detach() * self.weight)
        return value + 0.5 * self.l2 * p.square().sum(1), gradient

    def curvature(self) -> Tensor:
        """Return an upper bound of the second derivatives at most scores: the first step's length, [B]."""
        return self.l2 + self.vectors.square().sum(2).amax(1)


def _minimise(problem: Objective, tolerance: float, max_iterations: int) -> Tensor:
    """Return the minimisers [B, d], by L-BFGS from zero."""
    count, width = problem.vectors.shape[0], problem.vectors.shape[2]
    result = problem.vectors.new_zeros(count, width)
    active = torch.arange(count, device=result.device)
    p = result.clone()
    value, gradient = problem(p)
    limit = tolerance * gradient.norm(dim=1)
    unsound = ~(limit.isfinite() & value.isfinite())
    memory = _Memory(problem.curvature())
    fresh = torch.ones_like(active, dtype=torch.bool)  # nothing is remembered
    for _ in range(max_iterations):
        moving = gradient.norm(dim=1) > limit
        # Where half of the users are at their end, the others go on alone.
        if not bool(moving.any()):
            break
        if int(moving.sum()) <= len(p) // 2:
            result[active] = p
            keep = moving.nonzero().flatten()
            problem.take(keep)
            memory.take(keep)
            active, p, value, gradient, limit, fresh = (t[keep] for t in (active, p, value, gradient, limit, fresh))
            moving = moving[keep]
        step = -memory.product(gradient)
        slope = (step * gradient).sum(1)
        step = torch.where(moving.unsqueeze(1), step, 0)
        moved, new_value, new_gradient = _line_search(problem, p, value, gradient, step, slope)
        memory.add(moved - p, new_gradient - gradient)
        stuck = moving & (moved == p).all(1)
        limit = torch.where(stuck & fresh, torch.inf, limit)  # at a kink, or at the last bits
        fresh = stuck & ~fresh
        memory.forget(fresh)  # what is remembered misleads where the loss is not convex
        p, value, gradient = moved, new_value, new_gradient
    result[active] = p
    return result.masked_fill_(unsound.unsqueeze(1), torch.nan)


def _line_search(
    problem: Objective, p: Tensor, value: Tensor, gradient: Tensor, step: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return new points, values and gradients: each user's step, halved until its value falls enough, or no step.

    Where a step is lost in the rounding of values, which are sums of many terms, a shorter gradient is enough.
    """
    rounding = 4 * torch.finfo(p.dtype).eps * value.abs()
    size = torch.ones_like(value)
    for _ in range(_HALVINGS):
        moved = p + size.unsqueeze(1) * step
        new_value, new_gradient = problem(moved)
        shorter = (new_value <= value + 16 * rounding) & (new_gradient.norm(dim=1) < gradient.norm(dim=1))
        enough = shorter | (new_value <= value + _SUFFICIENT * size * slope + rounding)
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
        self.scale = self.first_scale = 1 / curvature
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, step: Tensor, change: Tensor) -> None:
        """Remember a step, for those users along whose step the curvature is positive."""
        product = (step * change).sum(1)
        sound = product > torch.finfo(step.dtype).eps * change.square().sum(1)
        inverse = torch.where(sound, 1 / product.where(sound, 1.0), 0)
        self.scale = torch.where(sound, product / change.square().sum(1).where(sound, 1.0), self.scale)
        self.pairs = [*self.pairs[1 - _MEMORY :], (step, change, inverse)]

    def forget(self, users: Tensor) -> None:
        """Begin anew for some users, given as a mask."""
        self.scale = torch.where(users, self.first_scale, self.scale)
        self.pairs = [(step, change, inverse.masked_fill(users, 0)) for step, change, inverse in self.pairs]

    def take(self, keep: Tensor) -> None:
        self.scale, self.first_scale = self.scale[keep], self.first_scale[keep]
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
