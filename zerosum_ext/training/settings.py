"""The settings of a training run. Each class checks its own values, so that what holds one can rely on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import Tensor

from zerosum_ext._checks import require_choice, require_finite_number, require_positive_int
from zerosum_ext._types import Strategy
from zerosum_ext.data.sampling import shared_samples
from zerosum_ext.metrics import MEASURES
from zerosum_ext.training.history import Callback
from zerosum_ext.training.regularizers import Regularizer
from zerosum_ext.training.validation import parse_metric

__all__ = [
    "MOST_EPOCHS",
    "Engine",
    "Interval",
    "Objective",
    "Precision",
    "Sampling",
    "Saving",
    "Schedule",
    "Settings",
    "Transform",
    "Validation",
    "require_bias",
]

Engine: TypeAlias = Literal["auto", "fused", "hogwild", "autograd"]
Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]
Interval: TypeAlias = Literal["epoch", "step"]
#: From (users, positives, negatives) of a batch to those that are trained on.
Transform: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

#: Epochs are counted in 32 bits where samples are drawn.
MOST_EPOCHS = 2**32
_PRECISIONS = ("float32", "bfloat16", "float16")
_INTERVALS = ("epoch", "step")


@dataclass(frozen=True)
class Sampling:
    """Which samples a run draws, and how many of them make a step. See :func:`zerosum_ext.training.fit`."""

    batch_size: int = 2048
    seed: int = 0
    negatives: int = 1
    draws: int = 1
    strategy: Strategy = "uniform"
    negatives_shared: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("seed", 0), ("negatives", 1), ("draws", 1)):
            _set(self, name, require_positive_int(name, getattr(self, name), minimum=least))
        _set(self, "negatives_shared", shared_samples(self.negatives_shared))


@dataclass(frozen=True)
class Objective:
    """What a step does beside the loss itself. See :func:`zerosum_ext.training.fit`."""

    l2: float = 0.0
    clip_row_norm: float | None = None
    regularizer: Regularizer | None = None
    transform: Transform | None = None
    precision: Precision = "float32"
    sample_weight: Literal["weights", "drawn"] | None = None

    def __post_init__(self) -> None:
        if self.sample_weight not in (None, "weights", "drawn"):
            raise ValueError(f"sample_weight: expected None, 'weights' or 'drawn', got {self.sample_weight!r}")
        if self.sample_weight == "weights" and self.transform is not None:
            raise ValueError("sample_weight: expected None with a transform, whose positives may be others")
        _set(self, "l2", require_finite_number("l2", self.l2, minimum=0))
        if self.clip_row_norm is not None:
            clip = require_finite_number("clip_row_norm", self.clip_row_norm)
            if clip <= 0:
                raise ValueError(f"clip_row_norm: expected None or a finite number > 0, got {clip}")
            _set(self, "clip_row_norm", clip)
        if self.regularizer is not None and not isinstance(self.regularizer, Regularizer):
            raise TypeError(f"regularizer: expected a Regularizer or None, got {type(self.regularizer).__name__}")
        if self.transform is not None and not callable(self.transform):
            raise TypeError(f"transform: expected a callable or None, got {type(self.transform).__name__}")
        if self.precision not in _PRECISIONS:
            raise ValueError(f"precision: expected 'float32', 'bfloat16' or 'float16', got {self.precision!r}")


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes.

    Attributes:
        scheduler: a torch scheduler, a callable that makes one from the optimizer, or None.
        interval: whether it advances after each epoch or after each step.
    """

    scheduler: Any = None
    interval: Interval = "epoch"

    def __post_init__(self) -> None:
        if self.interval not in _INTERVALS:
            raise ValueError(f"scheduler_interval: expected 'epoch' or 'step', got {self.interval!r}")

    @property
    def each_step(self) -> bool:
        """Whether there is a scheduler that advances after each step."""
        return self.scheduler is not None and self.interval == "step"


@dataclass(frozen=True)
class Validation:
    """How a run is validated, and what follows from it.

    Attributes:
        source: interactions to evaluate on, a callable from the model to a number, or None.
        metric: the key of :func:`zerosum_ext.evaluate` to watch.
        maximize: whether larger values of the metric are better.
        patience: the number of epochs without a better value after which training stops, or None.
        restore_best: whether the model ends with the weights of its best epoch.
        bias: the key of a measure of bias or exposure to watch beside the metric, or None.
        max_cost: the share of the best value of the metric that may be lost for less bias.
    """

    source: Any = None
    metric: str = "ndcg@10"
    maximize: bool = True
    patience: int | None = None
    restore_best: bool = True
    bias: str | None = None
    max_cost: float = 0.05

    def __post_init__(self) -> None:
        cost = require_finite_number("max_cost", self.max_cost, minimum=0)
        if cost >= 1:
            raise ValueError(f"max_cost: expected a share in [0, 1), got {cost}")
        _set(self, "max_cost", cost)
        if self.bias is not None:
            require_bias("bias", self.bias)
            if self.source is None:
                raise ValueError(f"bias: expected None without validation, got {self.bias!r}")
        if self.patience is not None:
            _set(self, "patience", require_positive_int("patience", self.patience))
            if self.source is None:
                raise ValueError(f"patience: expected None without validation, got {self.patience}")

    def is_better(self, value: float, best: float | None) -> bool:
        """Return whether a value is better than the best one so far."""
        if best is None:
            return True
        return value > best if self.maximize else value < best


@dataclass(frozen=True)
class Saving:
    """Which checkpoints a run writes and reads.

    Attributes:
        path: the file to write, or None.
        every: the number of steps after which it is written within an epoch, or None.
        resume: the file to continue from, or None.
        grown: whether the data may have grown since.
    """

    path: str | os.PathLike[str] | None = None
    every: int | None = None
    resume: str | os.PathLike[str] | None = None
    grown: bool = False

    def __post_init__(self) -> None:
        if self.every is not None:
            _set(self, "every", require_positive_int("checkpoint_every", self.every))
            if self.path is None:
                raise ValueError(f"checkpoint_every: expected None without checkpoint, got {self.every}")
        if self.grown and self.resume is None:
            raise ValueError("resume_grown: expected False without resume")


@dataclass(frozen=True)
class Settings:
    """All that :func:`zerosum_ext.training.fit` is told beside the model, the data, the loss and the optimizer."""

    epochs: int = 20
    first_epoch: int | None = None
    engine: Engine = "auto"
    sampling: Sampling = field(default_factory=Sampling)
    objective: Objective = field(default_factory=Objective)
    schedule: Schedule = field(default_factory=Schedule)
    validation: Validation = field(default_factory=Validation)
    saving: Saving = field(default_factory=Saving)
    callbacks: tuple[Callback, ...] = ()
    progress: bool | None = None

    def __post_init__(self) -> None:
        _set(self, "epochs", require_positive_int("epochs", self.epochs, minimum=0, maximum=MOST_EPOCHS))
        if self.first_epoch is not None:
            most = MOST_EPOCHS - self.epochs
            _set(self, "first_epoch", require_positive_int("first_epoch", self.first_epoch, minimum=0, maximum=most))
        if self.engine not in ("auto", "fused", "hogwild", "autograd"):
            raise ValueError(f"engine: expected 'auto', 'fused', 'hogwild' or 'autograd', got {self.engine!r}")
        _set(self, "callbacks", tuple(self.callbacks))
        for callback in self.callbacks:
            if not callable(callback):
                raise TypeError(f"callbacks: expected callables, got {type(callback).__name__} {callback!r}")


def require_bias(name: str, key: Any) -> str:
    """Return the key of a measure that can be watched beside accuracy, such as "pop_q_at_1" or "arp@10".

    Raises:
        ValueError: the key is unknown, or no direction of the measure is better.
    """
    text = require_choice(name, str(key).partition("@")[0], [m.name for m in MEASURES.values() if m.kind != "accuracy"])
    parse_metric(str(key))
    if MEASURES[text].direction == "none":
        raise ValueError(f"{name}: expected a measure of which a direction is better, got {key!r}")
    return str(key)


def _set(settings: Any, name: str, value: Any) -> None:
    """Put the checked value in its place, in a dataclass that is frozen from then on."""
    object.__setattr__(settings, name, value)
