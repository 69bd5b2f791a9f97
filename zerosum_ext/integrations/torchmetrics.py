"""Measures of popularity bias as torchmetrics, for loops that already have some, and over several processes.

bias = PopularityBias("pri", popularity)      # of the items that users like
bias.update(users, items, scores)
bias.compute()
exposure = Exposure("gini", popularity)       # of what is recommended
exposure.update(recommended)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zerosum_ext import metrics
from zerosum_ext._checks import describe, require_choice
from zerosum_ext.integrations.packages import needed

__all__ = ["Exposure", "PopularityBias"]

_Metric: Any = needed("torchmetrics", "torchmetrics", __name__).Metric
_OF_SCORES = ("pri", "pop_q_at_1", "upo", "pcc")
_OF_LISTS = ("arp", "aplt", "aclt", "tail_share", "coverage", "gini", "entropy", "novelty")


def _counts(popularity: Any) -> Tensor:
    return torch.as_tensor(metrics.popularity_counts(popularity), dtype=torch.float64)


class _Measure(_Metric):
    """What both classes share."""

    full_state_update = False
    is_differentiable = False
    measure: str

    @property
    def higher_is_better(self) -> bool | None:
        """Whether larger is better, as torchmetrics asks; None where an ideal lies between."""
        return {"up": True, "down": False}.get(metrics.measure_of(self.measure).direction)


class PopularityBias(_Measure):
    """A measure of bias among the items that users like: "pri", "pop_q_at_1", "upo" or "pcc".

    Args:
        measure: its name, as in :mod:`zerosum_ext.metrics`.
        popularity: the number of interactions of each item [num_items], or the interactions themselves.
        min_positives: the fewest positives of a user who counts; None is the measure's default.
        options: keyword arguments of ``torchmetrics.Metric``.
    """

    def __init__(self, measure: str, popularity: Any, *, min_positives: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.measure = require_choice("measure", measure, _OF_SCORES)
        self.options = {} if min_positives is None else {"min_positives": min_positives}
        self.register_buffer("popularity", _counts(popularity), persistent=False)
        for name in ("users", "items", "scores"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, users: Tensor, items: Tensor, scores: Tensor) -> None:
        """Take positives with their scores, [P] each, in any order and in any batches.

        Raises:
            ValueError: the shapes differ, or are not [P].
        """
        if users.dim() != 1 or users.shape != items.shape or users.shape != scores.shape:
            raise ValueError(
                f"expected users, items and scores [P], got {describe(users)}, {describe(items)}, {describe(scores)}"
            )
        self.users.append(users)
        self.items.append(items)
        self.scores.append(scores.detach())

    def compute(self) -> Tensor:
        """Return the measure, a float64 scalar; NaN without positives that count."""
        parts = [_joined(getattr(self, name)) for name in ("users", "items", "scores")]
        value = getattr(metrics, self.measure)(*parts, self.popularity, **self.options)
        return torch.tensor(value, dtype=torch.float64, device=self.popularity.device)


class Exposure(_Measure):
    """A measure of what is recommended.

    They are "arp", "aplt", "aclt", "tail_share", "coverage", "gini", "entropy" and "novelty".

    Args:
        measure: its name, as in :mod:`zerosum_ext.metrics`.
        popularity: the number of interactions of each item [num_items], or the interactions themselves.
        num_users: the number of all users, which "novelty" needs.
        options: keyword arguments of ``torchmetrics.Metric``.
    """

    def __init__(self, measure: str, popularity: Any, *, num_users: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.measure = require_choice("measure", measure, _OF_LISTS)
        if (measure == "novelty") != (num_users is not None):
            raise ValueError(f"num_users: expected a number with 'novelty' alone, got {num_users!r}")
        self.num_users = num_users
        self.register_buffer("popularity", _counts(popularity), persistent=False)
        self.add_state("lists", default=[], dist_reduce_fx="cat")

    def update(self, recommended: Tensor) -> None:
        """Take lists of items [n, k], all of one length; -1 is no item.

        Raises:
            ValueError: the shape is not [n, k].
        """
        if recommended.dim() != 2:
            raise ValueError(f"recommended: expected shape [n, k], got {describe(recommended)}")
        self.lists.append(recommended)

    def compute(self) -> Tensor:
        """Return the measure, a float64 scalar."""
        lists = _joined(self.lists)
        lists = lists.reshape(0, 1) if lists.numel() == 0 else lists
        measure = getattr(metrics, self.measure)
        if self.measure in ("coverage", "gini", "entropy"):
            value = measure(lists, self.popularity.numel())
        elif self.measure == "novelty":
            value = measure(lists, self.popularity, self.num_users)
        else:
            value = measure(lists, self.popularity)
        return torch.tensor(float(value), dtype=torch.float64, device=self.popularity.device)


def _joined(parts: Any) -> Tensor:
    """Return the state as one tensor: a list of batches, or what torchmetrics has gathered from all processes."""
    if isinstance(parts, Tensor):
        return parts
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
