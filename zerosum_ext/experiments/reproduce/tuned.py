"""The protocol "tuned": a few settings of each method, halved on the validation part, and the best one measured.

Every setting trains for a few epochs, the better half goes on, and the last two train until validation says stop. All
items are ranked, in validation and in the test, but those of the user's training part (and validation part, in the
test). The first seed tunes; the other seeds train the setting that it chose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from zerosum_ext.data.interactions import Interactions, Split
from zerosum_ext.evaluation import METRICS, PER_USER_METRICS, WEIGHTED_METRICS, compute, evaluate, per_user, rank
from zerosum_ext.experiments.reproduce.experiment import Cell, Tuning
from zerosum_ext.experiments.reproduce.file import CUTOFFS
from zerosum_ext.experiments.runs import Method, popularity_of
from zerosum_ext.metrics import measure_of
from zerosum_ext.models import MethodParts
from zerosum_ext.training import EpochEnd, History, StopTraining, fit

#: Of a user, what comparisons of two methods need.
COMPARED = ("ndcg@10", "recall@20", "pop_q_at_1", "upo", "arp@10", "aplt@10")
# What the validation part is measured by, beside the metric that chooses the epoch.
_VALIDATED = ("pop_q_at_1", "upo", "arp@10", "coverage@10", "aplt@10")


class Tuned(NamedTuple):
    """What a cell yields.

    Attributes:
        method: the chosen setting.
        metrics: {"best": figures of the test}.
        validation: figures of the validation part, of the chosen setting.
        trials: what was tried: settings, best epoch, epochs trained, figures of the validation part.
        history: of the chosen setting.
        users: of each user of the test, what comparisons need, and the first ten items.
    """

    method: Method
    metrics: dict[str, dict[str, float]]
    validation: dict[str, float]
    trials: list[dict[str, Any]]
    history: dict[str, Any]
    users: dict[str, np.ndarray]


def bias_index(figures: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """Return the bias beside that of a baseline: the mean of four ratios of distances from what is ideal.

    The distances are ``|PopQ@1 - .5|``, ``|uPO|``, ARP@10 and ``1 - coverage@10``; below 1 is less biased.
    """

    def distances(x: Mapping[str, float]) -> np.ndarray:
        return np.array([measure_of(key).distance(x[key]) for key in ("pop_q_at_1", "upo", "arp@10", "coverage@10")])

    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = distances(figures) / distances(baseline)
    return float(np.mean(ratios))


def run_tuned(cell: Cell, split: Split, first: Mapping[str, Mapping[str, Any]]) -> Tuned:
    """Tune or train a cell, and measure it on the test part.

    Args:
        cell: a cell of an experiment with the protocol "tuned".
        split: the interactions.
        first: the finished records of the first seed, by method.

    Raises:
        ValueError: the cell needs a record of the first seed that is not there.
    """
    experiment, trials = cell.experiment, list[dict[str, Any]]()
    users = _validation_users(split.valid, experiment.tuning.users)
    if cell.method.seed == experiment.seeds[0]:
        goal = _goal(cell, first)
        trial, trials = _halve([Trial(method, split, users) for method in cell.candidates], experiment.tuning, goal)
    else:
        settings = first.get(cell.name, {}).get("settings")
        if settings is None:
            raise ValueError(f"{cell.name}: expected seed {experiment.seeds[0]}, which tunes it, to be run before")
        trial = Trial(replace(experiment.method_of(settings), seed=cell.method.seed), split, users)
        trial.advance(trial.method.epochs)
    validation = trial.figures()
    ranking = rank(trial.ranker(), split.train | split.valid, split.test, k=max(CUTOFFS))
    popularity = popularity_of(split)
    wanted = (*METRICS, *WEIGHTED_METRICS)
    found = compute(ranking, popularity, metrics=wanted, k=CUTOFFS) | {"epoch": trial.best_epoch + 1}
    known = per_user(ranking, popularity, metrics=PER_USER_METRICS, k=CUTOFFS)
    values: dict[str, np.ndarray] = {name: known[name].astype(np.float32) for name in COMPARED}
    values |= {"users": ranking.users.astype(np.int32), "lists": ranking.top_items[:, :10].astype(np.int32)}
    return Tuned(trial.method, {"best": found}, validation, trials, trial.history.to_dict(), values)


def _goal(cell: Cell, first: Mapping[str, Mapping[str, Any]]) -> Callable[[Trial, float | None], float]:
    """Return the function by which trials are compared: of a trial, and of the accuracy to keep, if it is known."""
    if cell.goal == "accuracy":
        return lambda trial, _: trial.best
    base = cell.experiment.baseline
    known = first.get(base or "", {}).get("validation")
    if known is None:
        raise ValueError(f"{cell.name}: expected {base or 'a method with loss bpr'} to be run before, for its goal")
    baseline: Mapping[str, float] = known

    def balanced(trial: Trial, keep: float | None) -> float:
        least = float(baseline["ndcg@10"])
        least = least if keep is None else min(least, keep)
        return -bias_index(trial.figures(), baseline) - 10 * max(0.0, 1 - trial.best / least)

    return balanced


def _halve(
    trials: Sequence[Trial], tuning: Tuning, goal: Callable[[Trial, float | None], float]
) -> tuple[Trial, list[dict[str, Any]]]:
    """Return the best trial, and what is known of all."""
    running = list(trials)
    for rung in tuning.rungs:
        if len(running) <= tuning.finalists:
            break
        for trial in running:
            trial.advance(min(rung, trial.method.epochs))
        # Where epochs are few yet, what is to be kept of accuracy goes by the best of those that are compared.
        keep = 0.99 * max(trial.best for trial in running)
        running.sort(key=lambda trial: goal(trial, keep), reverse=True)
        for trial in running[max(tuning.finalists, math.ceil(len(running) / 2)) :]:
            trial.forget()
        running = running[: max(tuning.finalists, math.ceil(len(running) / 2))]
    for trial in running:
        trial.advance(trial.method.epochs)
    best = max(running, key=lambda trial: goal(trial, None))
    return best, [trial.told() for trial in trials]


class Trial:
    """One setting in training, which can be stopped after an epoch and go on.

    Attributes:
        method: the setting.
        best: the best value of its metric in validation so far; 0 before the first epoch.
        best_epoch: the index of that epoch.
        history: of all epochs.
    """

    def __init__(self, method: Method, split: Split, users: Tensor | None) -> None:
        self.method, self.split, self.users = method, split, users
        self.best, self.best_epoch, self.epochs, self.stopped = 0.0, 0, 0, False
        self.history = History()
        self.state: dict[str, Tensor] | None = None
        self._figures: tuple[int, dict[str, float]] | None = None
        self._parts: MethodParts | None = method.make_parts(split.train)
        self._optimizer: torch.optim.Optimizer | None = None

    def advance(self, epochs: int) -> None:
        """Train up to this number of epochs, or until patience ends."""
        method, parts = self.method, self._parts
        if self.stopped or parts is None or epochs <= self.epochs:
            return
        if parts.loss is None:  # made at once
            self.best = self._validate(parts.model, (method.metric,))[method.metric]
            self.history.engine, self.epochs, self.stopped = "none", epochs, True
            return
        if self._optimizer is None:
            self._optimizer = method.make_optimizer(list(parts.model.parameters()))
        history = fit(
            parts.model,
            self.split.train,
            parts.loss,
            self._optimizer,
            regularizer=parts.regularizer,
            batch_size=method.batch_size,
            epochs=epochs - self.epochs,
            device=method.device,
            seed=method.seed,
            negatives=method.negatives,
            draws=method.draws,
            strategy=method.strategy,
            negatives_shared=method.negatives_shared,
            l2=method.l2,
            validation=lambda model: self._validate(parts.inference(model), (method.metric,))[method.metric],
            restore_best=False,
            callbacks=[self._remember],
            progress=False,
        )
        if history.stopped == "interrupted":
            raise KeyboardInterrupt
        for name in ("validation", "seconds", "samples"):
            getattr(self.history, name).extend(getattr(history, name))
        self.history.extend(history)
        self.history.engine, self.history.metric = history.engine, method.metric
        self.history.best_epoch = self.best_epoch
        self.history.stopped = "early stopping" if self.stopped else "completed"

    def _remember(self, end: EpochEnd) -> None:
        value = end.history.validation[-1]
        if self.state is None or value > self.best:
            self.best, self.best_epoch = value, self.epochs
            self.state = {name: tensor.detach().clone() for name, tensor in end.model.state_dict().items()}
        self.epochs += 1
        patience = self.method.patience
        if patience is not None and self.epochs - 1 - self.best_epoch >= patience:
            self.stopped = True
            raise StopTraining

    def _validate(self, model: nn.Module, metrics: Sequence[str]) -> dict[str, float]:
        return evaluate(model, self.split.train, self.split.valid, metrics=metrics, users=self.users)

    def ranker(self) -> nn.Module:
        """Return a model with the weights of the best epoch, to rank with."""
        if self._parts is not None and self._parts.loss is None:
            return self._parts.model
        parts = self.method.make_parts(self.split.train)
        if self.state is not None:
            parts.model.load_state_dict(self.state)
        return parts.inference(parts.model)

    def figures(self) -> dict[str, float]:
        """Return the figures of the validation part at the best epoch."""
        if self._figures is None or self._figures[0] != self.best_epoch:
            self._figures = self.best_epoch, self._validate(self.ranker(), (self.method.metric, *_VALIDATED))
        return self._figures[1]

    def forget(self) -> None:
        """Give back what only further training needs, of a trial that has lost."""
        self.figures()
        self.stopped, self.state, self._optimizer, self._parts = True, None, None, None

    def told(self) -> dict[str, Any]:
        """Return what a record says of the trial."""
        return {
            "settings": asdict(self.method),
            "epochs": self.epochs,
            "best_epoch": self.best_epoch + 1,
            "validation": self.figures(),
        }


def _validation_users(valid: Interactions, most: int) -> Tensor | None:
    """Return the users to validate with: all, or as many as asked for, drawn once."""
    active = torch.nonzero(valid.user_counts > 0).squeeze(1)
    if active.numel() <= most:
        return None
    drawn = torch.randperm(active.numel(), generator=torch.Generator().manual_seed(0))[:most]
    return active[drawn.sort().values]
