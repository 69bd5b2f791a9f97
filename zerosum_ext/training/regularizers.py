"""Terms of the objective that look at all training positives at once, not at a batch.

A regularizer is given to ``fit(regularizer=...)``, which calls :meth:`Regularizer.add_gradients` at the times that its
``every`` says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zerosum_ext import _ops, reference
from zerosum_ext._checks import require_finite_number, require_positive_int
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.models.base import DotProductRecommender

__all__ = ["PearsonRegularizer", "Regularizer", "popularity_correlation"]


class Regularizer:
    """What ``fit`` asks of a regularizer.

    Attributes:
        every: n adds the term to the objective of every n-th training step; None makes it an optimizer step of its own
            after each epoch.
    """

    every: int | None = None

    def add_gradients(self, model: nn.Module) -> Tensor:
        """Adds the gradient of the weighted term to the ``.grad`` of the model's parameters.

        Returns the term's value, a scalar that carries no gradient.
        """
        raise NotImplementedError


class _Positives:
    """The positives by user and by item, and the items' popularity standardised over all positives."""

    def __init__(self, interactions: Interactions) -> None:
        self.shape = interactions.shape
        self.indptr, self.indices = interactions.indptr, interactions.indices
        users, items = interactions.pairs()
        order = torch.sort(items, stable=True).indices
        counts = interactions.popularity
        self.by_item = users[order].to(self.indices.dtype)
        self.item_indptr = torch.cat([counts.new_zeros(1), torch.cumsum(counts, 0)])
        self.size = len(self.indices)
        # An item of popularity c is c of the positives.
        c = counts.double()
        mean = (c * c).sum() / max(1, self.size)
        variance = (c * (c - mean).square()).sum() / max(1, self.size)
        # Where all items are alike, correlation with popularity is no bias: it counts as 0.
        self.popularity = (c - mean) / variance.sqrt() if float(variance) > 0 else torch.zeros_like(c)

    def to(self, device: torch.device) -> _Positives:
        if self.indptr.device != device:
            for name in ("indptr", "indices", "by_item", "item_indptr", "popularity"):
                setattr(self, name, getattr(self, name).to(device))
        return self


def _statistics(moments: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """(correlation, mean, standard deviation) of the scores from their moments with standardised popularity."""
    mean, square, product = (moments / size).unbind()
    # All scores alike, up to rounding, have no correlation: standard deviation inf makes value and gradient 0.
    variance = square - mean.square()
    flat = variance <= 1e-14 * square
    deviation = torch.where(flat, torch.inf, variance).sqrt()
    return product / deviation, mean, deviation


class _Correlation(torch.autograd.Function):
    """corr(score, popularity) over all positives of <user, item> (+ item bias), in three passes over them.

    One pass takes the moments. The correlation's derivative in a score s of an item of standardised popularity z is
    ``z / (n sd) - r (s - mean) / (n sd^2)``, affine in s: a pass by user and one by item sum the vectors on the other
    side with these as weights, computing each score again rather than keeping it.
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
            # To be differentiated again: the definition, by autograd.
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


def _definition(user: Tensor, item: Tensor, bias: Tensor | None, positives: _Positives) -> Tensor:
    z = positives.popularity.to(user.dtype)
    moments = reference.csr_score_moments(user, item, bias, positives.indptr, positives.indices, z)
    return _statistics(moments, positives.size)[0].to(user.dtype)


def popularity_correlation(user: Tensor, item: Tensor, interactions: Any, item_bias: Tensor | None = None) -> Tensor:
    """Pearson correlation of score and popularity over all interactions, differentiable.

    Scores are ``<user[u], item[i]> + item_bias[i]``, popularity the items' counts. None of the scores is stored: time
    is O(nnz d), memory O(users d + items d). With all scores or all popularities alike the correlation counts as 0.

    Args:
        user, item: vectors [num_users, d] and [num_items, d], float32 or float64.
        interactions: :class:`~zerosum_ext.Interactions` or a scipy or torch CSR.
        item_bias: [num_items].

    Returns:
        A scalar in [-1, 1]; 0 without interactions.
    """
    positives = _Positives(Interactions.from_any(interactions)).to(user.device)
    expected = (user.shape[0], item.shape[0])
    if positives.shape != expected:
        raise ValueError(f"interactions: expected shape {expected}, the vectors', got {positives.shape}")
    if not positives.size:
        return (user.sum() + item.sum()) * 0
    return _Correlation.apply(user, item, item_bias, positives)


class PearsonRegularizer(Regularizer):
    """``weight * corr(score, popularity)^2`` over all training positives ([ZHZ21], "PO" in [RCS22]).

    The code released with [RCS22] takes an outer product of scores and popularity where it means a product, so that its
    term is about 0 and what it trains is BPR. This is the term itself.

    Models whose score is a dot product go through :func:`popularity_correlation`; others are scored in blocks of
    positives, twice, so that memory stays that of a block.

    Args:
        interactions: the training positives.
        weight: of the term; 5 in [RCS22]'s synthetic experiment.
        every: as for :class:`Regularizer`. None, one step after each epoch, is what [RCS22] does. A step of Adam is of
            much the same length for any weight, so that to be able to trade accuracy for bias, give a number of steps.

    References:
        [ZHZ21] Zhu, He, Zhao, Zhang, Wang, Caverlee, "Popularity-Opportunity Bias in Collaborative Filtering",
            WSDM 2021.
        [RCS22] Rhee, Cho, Suh, "Countering Popularity Bias by Regularizing Score Differences", RecSys 2022.
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
        """The correlation of the model's scores with popularity now, dropout apart."""
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                return float(self._correlation(model)[0])
        finally:
            model.train(training)

    def add_gradients(self, model: nn.Module) -> Tensor:
        if isinstance(model, DotProductRecommender):
            term = self.weight * self._dot_products(model).square()
            term.backward()
            return term.detach()
        # Two passes: the statistics, then the scores again with a gradient that is known by then.
        random_state = torch.get_rng_state()
        with torch.no_grad():
            r, mean, deviation = self._correlation(model)
        torch.set_rng_state(random_state)  # the same dropout in both, on the CPU
        z, n = self._positives.popularity, self._positives.size
        factor = 2 * self.weight * r / (n * deviation)
        for users, items in reference.csr_blocks(self._positives.indptr, self._positives.indices):
            scores = model(users, items)
            s = scores.detach().double()
            gradient = factor * (z[items] - r * (s - mean) / deviation)
            scores.backward(gradient.to(scores.dtype))
        return self.weight * r.square()

    def _dot_products(self, model: DotProductRecommender) -> Tensor:
        user, item, bias = model.vectors()
        return _Correlation.apply(user, item, bias, self._positives.to(user.device))

    def _correlation(self, model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """(correlation, mean, standard deviation) of the model's scores, float64."""
        positives = self._positives.to(next(model.parameters()).device)
        if isinstance(model, DotProductRecommender):
            user, item, bias = model.vectors()
            z = positives.popularity.to(user.dtype)
            arguments = (user.contiguous(), item.contiguous(), bias, positives.indptr, positives.indices, z)
            return _statistics(_ops.csr_score_moments(*arguments), positives.size)
        moments = torch.zeros(3, dtype=torch.float64, device=positives.indptr.device)
        for users, items in reference.csr_blocks(positives.indptr, positives.indices):
            s = model(users, items).double()
            moments += torch.stack([s.sum(), s.square().sum(), (s * positives.popularity[items]).sum()])
        return _statistics(moments, positives.size)
