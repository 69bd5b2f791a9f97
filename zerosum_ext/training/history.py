"""The record of a training run, and the event that callbacks are called with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from zerosum_ext._legacy import HISTORY, todays_names

__all__ = ["Callback", "EpochEnd", "History", "StopTraining", "Stopped"]

#: Why a run ended.
Stopped: TypeAlias = Literal["completed", "early stopping", "callback", "interrupted"]
_FIELDS = ("validation", "metric", "best_epoch", "stopped", "engine", "seconds", "samples")


class History(list[float]):
    """The mean loss of each epoch, as a list of floats, and what else is known of the run.

    The loss is the value of the loss module, averaged over the samples of the epoch while the model changed. It does
    not contain the L2 term.

    Attributes:
        validation: the validation metric of each epoch; empty without validation.
        metric: the name of that metric, or None.
        bias: the measure of bias of each epoch; empty where none is watched.
        best_epoch: the index of the epoch with the best value, or None; where bias is watched, of the epoch that is
            chosen by both.
        stopped: "completed", "early stopping", "callback" or "interrupted".
        engine: the engine that ran: "fused", "hogwild" or "autograd".
        seconds: the wall time of each epoch's training, without validation. A resumed run does not repeat these bits.
        samples: the number of training samples of each epoch.
        optimizer: the optimizer that trained, whose state ``fit(optimizer=history.optimizer)`` goes on with; None in a
            history that was read from a file.
    """

    def __init__(self, losses: Iterable[float] = ()) -> None:
        super().__init__(losses)
        self.validation: list[float] = []
        self.metric: str | None = None
        self.bias: list[float] = []
        self.best_epoch: int | None = None
        self.stopped: Stopped = "completed"
        self.engine: str = "autograd"
        self.seconds: list[float] = []
        self.samples: list[int] = []
        self.optimizer: torch.optim.Optimizer | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values that JSON can hold."""
        bias = {"bias": list(self.bias)} if self.bias else {}
        return {
            **bias,
            "loss": list(self),
            "validation": list(self.validation),
            "metric": self.metric,
            "best_epoch": self.best_epoch,
            "stopped": self.stopped,
            "engine": self.engine,
            "seconds": list(self.seconds),
            "samples": list(self.samples),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> History:
        """Return the history that ``to_dict`` wrote, also that of version 0.1.0.

        Raises:
            ValueError: values that no history has; the message names the first of them.
        """
        if not isinstance(values, dict):
            raise ValueError(f"history: expected an object, got {type(values).__name__}")
        values = todays_names(values, HISTORY)
        _check(values)
        history = cls(values["loss"])
        for name in _FIELDS:
            setattr(history, name, values[name])
        history.bias = values.get("bias", [])
        return history


def _check(values: dict[str, Any]) -> None:
    """Raise where plain values are not those of a history."""
    lists = {name: values.get(name) for name in ("loss", "validation", "seconds", "samples")}
    lists["bias"] = values.get("bias", [])
    for name, numbers in lists.items():
        if not isinstance(numbers, list) or not all(_is_number(number) for number in numbers):
            raise ValueError(f"history: {name}: expected a list of numbers")
    epochs = len(values["loss"])
    for name, numbers in lists.items():
        assert isinstance(numbers, list)
        if len(numbers) != epochs and (name not in ("validation", "bias") or numbers):
            raise ValueError(f"history: {name}: expected {epochs} numbers, got {len(numbers)}")
    if not isinstance(values.get("metric", 0), (str, type(None))):
        raise ValueError(f"history: metric: expected text or null, got {values.get('metric')!r}")
    for name in ("stopped", "engine"):
        if not isinstance(values.get(name), str):
            raise ValueError(f"history: {name}: expected text, got {values.get(name)!r}")
    best = values.get("best_epoch", -1)
    if best is not None and not (isinstance(best, int) and 0 <= best < epochs):
        raise ValueError(f"history: best_epoch: expected an epoch of {epochs}, got {best!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class StopTraining(Exception):
    """A callback raises this to stop training after the epoch that it is called for."""


@dataclass
class EpochEnd:
    """The argument of a callback, which is called after each epoch.

    Attributes:
        epoch: the index of the epoch that ended, from 0, within this call of ``fit``.
        model: the model as it is now.
        optimizer: the optimizer as it is now. A callback may change the learning rate.
        history: the history, with the loss and the validation value of this epoch.
    """

    epoch: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    history: History


#: A function that is called after each epoch. Training stops if it returns True or raises StopTraining.
Callback: TypeAlias = Callable[[EpochEnd], Any]
