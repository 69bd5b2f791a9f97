"""The choice of an epoch by accuracy and bias together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

__all__ = ["Front", "Kept", "State"]

#: The weights of a model, by name.
State: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class Kept:
    """An epoch that may still be the one to end with.

    Attributes:
        epoch: its index.
        accuracy: the value of the metric.
        distance: how far the measure of bias is from its ideal.
        state: the model's weights after it.
    """

    epoch: int
    accuracy: float
    distance: float
    state: State


class Front:
    """The epochs that cost little accuracy, and of which none is better in accuracy and in bias than another.

    The most accurate epoch is known only at the end. So every epoch is kept that may then be the least biased one among
    those that cost no more than ``max_cost`` of the best accuracy. They are few: an epoch that another one beats in
    both, or that costs too much already, is dropped with its weights.

    Args:
        maximize: whether larger values of the metric are better.
        max_cost: the share of the best value that may be lost, in [0, 1).
    """

    def __init__(self, maximize: bool, max_cost: float) -> None:
        self.maximize, self.max_cost = maximize, max_cost
        self.kept: list[Kept] = []

    def offer(self, epoch: int, accuracy: float, distance: float, state: Callable[[], State]) -> bool:
        """Keep an epoch if it may be the one to end with; return whether it is kept.

        Args:
            epoch, accuracy, distance: as of :class:`Kept`.
            state: returns a copy of the weights. It is called only for an epoch that is kept.
        """
        if any(self._no_worse(one.accuracy, accuracy) and one.distance <= distance for one in self.kept):
            return False
        if not self._affordable(accuracy, [*(one.accuracy for one in self.kept), accuracy]):
            return False
        new = Kept(epoch, accuracy, distance, state())
        known = [*(one.accuracy for one in self.kept), accuracy]
        self.kept = [
            one
            for one in self.kept
            if self._affordable(one.accuracy, known)
            and not (self._no_worse(accuracy, one.accuracy) and distance <= one.distance)
        ]
        self.kept.append(new)
        return True

    @property
    def chosen(self) -> Kept | None:
        """The least biased epoch of those kept; None before the first."""
        return min(self.kept, key=lambda one: one.distance, default=None)

    def to_list(self) -> list[dict[str, Any]]:
        """Return everything as plain values and tensors, for a checkpoint."""
        return [vars(one).copy() for one in self.kept]

    def load(self, kept: Sequence[dict[str, Any]], device: Any) -> None:
        """Go on from what ``to_list`` returned.

        Raises:
            ValueError: values that no front has.
        """
        try:
            self.kept = [
                Kept(
                    int(one["epoch"]),
                    float(one["accuracy"]),
                    float(one["distance"]),
                    {name: value.to(device) for name, value in one["state"].items()},
                )
                for one in kept
            ]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"front: {error!r}") from None

    def _no_worse(self, one: float, other: float) -> bool:
        return one >= other if self.maximize else one <= other

    def _affordable(self, accuracy: float, known: Sequence[float]) -> bool:
        best = max(known) if self.maximize else min(known)
        least = best - abs(best) * self.max_cost if self.maximize else best + abs(best) * self.max_cost
        return self._no_worse(accuracy, least)
