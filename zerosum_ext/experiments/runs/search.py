"""The search for a loss's weight: most bias taken away at a given cost in accuracy."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from zerosum_ext import models
from zerosum_ext._checks import require_choice, require_finite_number
from zerosum_ext.data.interactions import Split
from zerosum_ext.evaluation.full import evaluate
from zerosum_ext.experiments.runs.files import folder_of_weight, write_json
from zerosum_ext.experiments.runs.method import loggers, train_method
from zerosum_ext.experiments.runs.settings import Method
from zerosum_ext.training import parse_metric

# The value of each measure of bias if there is none.
UNBIASED = {"pop_q_at_1": 0.5, "pri": 0.0, "upo": 0.0, "pcc": 0.0}


@dataclass(frozen=True)
class WeightSearch:
    """How to find a weight: the one that takes away most bias among those that cost little accuracy.

    Attributes:
        max_cost: the share of BPR's accuracy in validation (the method's ``metric``) that may be lost, in [0, 1).
        bias: the measure of bias: "pop_q_at_1", "pri", "upo" or "pcc". The search brings it near its unbiased value.
        weights: the weights to try, in (0, 1), the largest (the mildest) first. The search ends after two in a row
            that cost too much.
    """

    max_cost: float = 0.05
    bias: Literal["pop_q_at_1", "pri", "upo", "pcc"] = "pop_q_at_1"
    weights: tuple[float, ...] = (0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.5, 0.3)

    def __post_init__(self) -> None:
        if not 0 <= require_finite_number("max_cost", self.max_cost) < 1:
            raise ValueError(f"max_cost: expected a share in [0, 1), got {self.max_cost}")
        require_choice("bias", self.bias, tuple(UNBIASED))
        if not self.weights or not all(0 < require_finite_number("weights", w) < 1 for w in self.weights):
            raise ValueError(f"weights: expected numbers between 0 and 1, got {self.weights}")


@dataclass(frozen=True)
class Tried:
    """One weight of a search, as measured on the validation part. Weight 1 is BPR."""

    weight: float
    accuracy: float
    bias: float
    affordable: bool


def choose_weight(
    method: Method,
    split: Split,
    folder: str | os.PathLike[str],
    search: WeightSearch | None = None,
    *,
    resume: bool = False,
    progress: bool | None = None,
    log: Sequence[str] = (),
    note: Callable[[str], Any] = lambda text: None,
) -> tuple[float, list[Tried]]:
    """Find the weight of a method that takes away most bias at a given cost in accuracy.

    BPR is trained first, then the method with one weight after the other. All are trained on ``split.train`` and
    measured on ``split.valid``, with popularities counted in these two. The test part is not looked at.

    Args:
        method: the method whose ``weight`` is to be found.
        split: the interactions. Only its train and valid parts are used.
        folder: where the models go, each in a folder of its own, and search.json.
        search: what may be lost, the measure of bias, and the weights.
        resume: take models of the same settings that are in the folder already.
        progress: show progress bars. None: on a terminal.
        log: the logs to write in the folder of each model, as in :func:`train`.
        note: called with a line about each weight.

    Returns:
        (weight, what was tried). The weight is 1.0, which is BPR, if no weight reduces the bias at that cost.

    Raises:
        ValueError: a method without w, no validation part, or one too small to measure the bias by.
    """
    search = search or WeightSearch()
    if "w" not in models.method_options(method.loss):
        raise ValueError(f"weight: expected none for loss {method.loss!r}, which has no w, got a search for it")
    if split.valid.nnz == 0:
        raise ValueError("split: expected a validation part to choose the weight by, got none")
    folder = Path(folder)
    tried: list[Tried] = []
    too_costly = 0
    for weight in (1.0, *sorted(search.weights, reverse=True)):
        one = method.plain_bpr() if weight == 1.0 else replace(method, weight=weight)
        place = folder / folder_of_weight(weight)
        callbacks = loggers(log, place, one)
        model, _ = train_method(one, split, place, resume=resume, progress=progress, callbacks=callbacks)
        accuracy, bias = _validate(model, split, method.metric, search.bias)
        least = (1 - search.max_cost) * (tried[0].accuracy if tried else accuracy)
        tried.append(Tried(weight, accuracy, bias, accuracy >= least))
        verdict = "" if tried[-1].affordable else ", costs too much"
        note(f"w={weight:g}: validation {method.metric} {accuracy:.4f}, {search.bias} {bias:.3f}{verdict}")
        too_costly = 0 if tried[-1].affordable else too_costly + 1
        if too_costly == 2:
            break
    # Of equally biased ones the first, the mildest.
    chosen = min((t for t in tried if t.affordable), key=lambda t: abs(t.bias - UNBIASED[search.bias])).weight
    write_json(folder / "search.json", {**asdict(search), "weight": chosen, "tried": [asdict(t) for t in tried]})
    note(f"w={chosen:g} is taken" + (": no weight reduced the bias at that cost" if chosen == 1.0 else ""))
    return chosen, tried


def _validate(model: nn.Module, split: Split, metric: str, bias: str) -> tuple[float, float]:
    """Return accuracy and bias on the validation part."""
    name, cutoff = parse_metric(metric)
    values = evaluate(model, split.train, split.valid, metrics=(name, bias), k=(cutoff,))
    if not math.isfinite(values[bias]):
        others = evaluate(model, split.train, split.valid, metrics=tuple(UNBIASED), k=(cutoff,))
        known = [other for other in UNBIASED if math.isfinite(others[other])]
        raise ValueError(
            f"bias: {bias} has no value on the {split.valid.nnz:,} validation positives, which are too few of a user; "
            + (
                f"choose another: {', '.join(known)}"
                if known
                else "no other measure has one; hold out more of each user"
            )
        )
    return values[metric], values[bias]
