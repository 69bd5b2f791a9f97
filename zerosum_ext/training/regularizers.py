"""Terms of the objective that look at all training positives at once, not at a batch.

Pass one as ``fit(regularizer=...)``. Training then calls :meth:`Regularizer.add_gradients` as often as ``every`` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from zerosum_ext import _ops, reference
from zerosum_ext._checks import require_finite_number, require_positive_int
from zerosum_ext.data.interactions import Interactions

__all__ = ["PearsonRegularizer", "Regularizer", "popularity_correlation"]


@runtime_checkable
class VectorModel(Protocol):
    """A model whose scores are dot products of one vector of the user and one of the item, plus an item's bias."""

    def vectors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the vectors of users [U, d] and of items [I, d], and the bias of items [I] or None; differentiable."""


class Regularizer:
    """The interface that ``fit`` needs of a regularizer.

    Attributes:
        every: n adds the term to the objective of every n-th training step. None makes it an optimizer step of its own
            after each epoch.
    """

    every: int | None = None

    def add_gradients(self, model: nn.Module) -> Tensor:
        """Add the gradient of the weighted term to the ``.grad`` of the model's parameters.

        Returns:
            The value of the term, a scalar that carries no gradient.
        """
        raise NotImplementedError


class _Positives:
    """Hold the positives by user and by item, and the items' popularity, standardised over all positives."""

    def __init__(self, interactions: Interactions) -> None:
        self.shape = interactions.shape
        self.indptr, self.indices = interactions.indptr, interactions.indices
        users, items = interactions.pairs()
        order = torch.sort(items, stable=True).indices
        counts = interactions.popularity
        self.by_item = users[order].to(self.indices.dtype)
        self.item_indptr = torch.cat([counts.new_zeros(1), torch.cumsum(counts, 0)])
        self.size = len(self.indices)
        # An item of popularity c occurs in c of the positives.
        c = counts.double()
        mean = (c * c).sum() / max(1, self.size)
        variance = (c * (c - mean).square()).sum() / max(1, self.size)
        # If all items are equally popular there is no bias, so the correlation counts as 0.
        self.popularity = (c - mean) / variance.sqrt() if float(variance) > 0 else torch.zeros_like(c)

    def to(self, device: torch.device) -> _Positives:
        if self.indptr.device != device:
            for name in ("indptr", "indices", "by_item", "item_indptr", "popularity"):
                setattr(self, name, getattr(self, name).to(device))
        return self


def _statistics(moments: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return correlation, mean and standard deviation of the scores, from moments with standardised popularity."""
    mean, square, product = (moments / size).unbind()
    # Scores that are equal up to rounding have no correlation: a deviation of inf makes value and gradient 0.
    variance = square - mean.square()
    flat = variance <= 1e-14 * square
    deviation = torch.where(flat, torch.inf, variance).sqrt()
    return product / deviation, mean, deviation


class _Correlation(torch.autograd.Function):
    """Compute corr(score, popularity) over all positives of <user, item> (+ item bias), in three passes over them.

    One pass takes the moments. The correlation's derivative in a score s of an item of standardised popularity z is
    ``z / (n sd) - r (s - mean) / (n sd^2)``. It is affine in s, so a pass by user and one by item sum the vectors of
    the other side with these weights. They compute each score again instead of storing it.
    """

    @staticmethod
    def forward(ctx: Any, user: Tensor, item: Tensor, bias: Tensor | None, positives: _Positives) -> Tensor:
        user, item = user.contiguous(), item.contiguous()
        z = positives.popularity.to(user.dtype)
        moments = _ops.csr_score_moments(user, item, bias, positives.indptr, positives.indices, z)
        r, mean, deviation = _statistics(moments, positives.size)
        ctx.save_for_backward(user, item, bias)
        ctx.positives, ctx.statistics = positives, (r, mean, deviation)
        return r.to(user.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        user, item, bias = ctx.saved_tensors
        positives = ctx.positives
        if torch.is_grad_enabled():
            # The gradient is to be differentiated again: autograd takes it of the definition.
            tables = [t.view_as(t) for t in (user, item, bias) if t is not None]
            value = _definition(tables[0], tables[1], tables[2] if bias is not None else None, positives)
            grads = torch.autograd.grad(value, tables, grad_output, create_graph=True)
            return grads[0], grads[1], grads[2] if bias is not None else None, None
        r, mean, deviation = (float(x) for x in ctx.statistics)
        factor = float(grad_output) / (positives.size * deviation)
        slope = -factor * r / deviation
        x = (factor * positives.popularity - slope * mean).to(user.dtype)
        by_user = (positives.indptr, positives.indices)
        by_item = (positives.item_indptr, positives.by_item)
        grad_user, _ = _ops.csr_weighted_columns(user, item, None, bias, *by_user, None, x, slope)
        grad_item, grad_bias = _ops.csr_weighted_columns(item, user, bias, None, *by_item, x, None, slope)
        return grad_user, grad_item, grad_bias if bias is not None else None, None


# The function above with types.
_correlation: Callable[..., Tensor] = _Correlation.apply


def _definition(user: Tensor, item: Tensor, bias: Tensor | None, positives: _Positives) -> Tensor:
    z = positives.popularity.to(user.dtype)
    moments = reference.csr_score_moments(user, item, bias, positives.indptr, positives.indices, z)
    return _statistics(moments, positives.size)[0].to(user.dtype)


def popularity_correlation(user: Tensor, item: Tensor, interactions: Any, item_bias: Tensor | None = None) -> Tensor:
    """Return the Pearson correlation of score and popularity over all interactions, differentiable.

    The scores are ``<user[u], item[i]> + item_bias[i]``; the popularity of an item is its number of interactions. No
    score is stored: the time is O(nnz d), the memory O(users d + items d). The correlation counts as 0 if all scores or
    all popularities are equal.

    Args:
        user: vectors of the users [num_users, d], float32 or float64.
        item: vectors of the items [num_items, d], of the same dtype.
        interactions: :class:`~zerosum_ext.Interactions`, or a scipy or torch CSR.
        item_bias: the bias of the items [num_items], or None.

    Returns:
        A scalar in [-1, 1]; 0 without interactions.

    Raises:
        ValueError: the interactions have another shape than the vectors.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> user, item = torch.ones(3, 1), data.popularity.float()[:, None]
        >>> round(zx.popularity_correlation(user, item, data).item(), 4)
        1.0
    """
    positives = _Positives(Interactions.from_any(interactions)).to(user.device)
    expected = (user.shape[0], item.shape[0])
    if positives.shape != expected:
        raise ValueError(f"interactions: expected shape {expected}, the vectors', got {positives.shape}")
    if not positives.size:
        return (user.sum() + item.sum()) * 0
    return _correlation(user, item, item_bias, positives)


class PearsonRegularizer(Regularizer):
    """Add ``weight * corr(score, popularity)^2`` over all training positives ([ZHZ21], "PO" in [RCS22]).

    The code released with [RCS22] takes an outer product of scores and popularity instead of a product. Its term is
    about 0, so that it trains BPR. This class computes the term itself.

    Models with ``vectors()`` go through :func:`popularity_correlation`. Others are scored twice, in blocks of
    positives, and need the memory of one block.

    Args:
        interactions: the training positives.
        weight: the weight of the term; [RCS22] uses 5 in the synthetic experiment.
        every: as for :class:`Regularizer`. None, one step after each epoch, is what [RCS22] does. A step of Adam has
            about the same length for any weight. To trade accuracy for bias by the weight, give a number of steps.

    References:
        [ZHZ21] Zhu, He, Zhao, Zhang, Wang, Caverlee, "Popularity-Opportunity Bias in Collaborative Filtering", 2021.
        [RCS22] Rhee, Cho, Suh, "Countering Popularity Bias by Regularizing Score Differences", RecSys 2022.

    Example:
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> model = zx.MatrixFactorization(*data.shape, embedding_dim=8, seed=0)
        >>> regularizer = zx.PearsonRegularizer(data, weight=1.0)
        >>> abs(regularizer.correlation(model)) <= 1  # fit(model, data, "bpr", regularizer=regularizer) lowers it
        True
    """

    def __init__(self, interactions: Any, weight: float = 5.0, every: int | None = None) -> None:
        self.weight = require_finite_number("weight", weight, minimum=0)
        self.every = None if every is None else require_positive_int("every", every)
        matrix = Interactions.from_any(interactions)
        if matrix.nnz == 0:
            raise ValueError("interactions: expected at least one interaction, got none")
        self._positives = _Positives(matrix)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(weight={self.weight}, every={self.every})"

    def correlation(self, model: nn.Module) -> float:
        """Return the correlation of the model's scores with popularity, without dropout."""
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                return float(self._correlation(model)[0])
        finally:
            model.train(training)

    def add_gradients(self, model: nn.Module) -> Tensor:
        if isinstance(model, VectorModel):
            term = self.weight * self._dot_products(model).square()
            term.backward()
            return term.detach()
        # The first pass takes the statistics. The second one scores again, when the gradient is known.
        random_state = torch.get_rng_state()
        with torch.no_grad():
            r, mean, deviation = self._correlation(model)
        torch.set_rng_state(random_state)  # both passes have the same dropout, on the CPU
        z, n = self._positives.popularity, self._positives.size
        factor = 2 * self.weight * r / (n * deviation)
        for users, items in reference.csr_blocks(self._positives.indptr, self._positives.indices):
            scores = model(users, items)
            s = scores.detach().double()
            gradient = factor * (z[items] - r * (s - mean) / deviation)
            scores.backward(gradient.to(scores.dtype))
        return self.weight * r.square()

    def _dot_products(self, model: VectorModel) -> Tensor:
        user, item, bias = model.vectors()
        return _correlation(user, item, bias, self._positives.to(user.device))

    def _correlation(self, model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """Return correlation, mean and standard deviation of the model's scores, float64."""
        positives = self._positives.to(next(model.parameters()).device)
        if isinstance(model, VectorModel):
            user, item, bias = model.vectors()
            z = positives.popularity.to(user.dtype)
            arguments = (user.contiguous(), item.contiguous(), bias, positives.indptr, positives.indices, z)
            return _statistics(_ops.csr_score_moments(*arguments), positives.size)
        moments = torch.zeros(3, dtype=torch.float64, device=positives.indptr.device)
        for users, items in reference.csr_blocks(positives.indptr, positives.indices):
            s = model(users, items).double()
            moments += torch.stack([s.sum(), s.square().sum(), (s * positives.popularity[items]).sum()])
        return _statistics(moments, positives.size)
