"""Wider searches: Optuna draws settings from ranges, beside those of the table."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from zerosum_ext import models
from zerosum_ext.experiments.compare.candidates import Candidate
from zerosum_ext.experiments.compare.choice import bias_left
from zerosum_ext.experiments.compare.search import Search

__all__ = ["draw_settings"]


def _zerosum(trial: Any) -> dict[str, Any]:
    return {"weight": round(trial.suggest_float("w", 0.5, 0.995), 4)}


def _softmax(trial: Any) -> dict[str, Any]:
    temperature = round(trial.suggest_float("temperature", 0.05, 1.0, log=True), 4)
    return {
        "loss_options": {"temperature": temperature},
        "negatives": trial.suggest_categorical("negatives", [8, 16, 32, 64]),
        "strategy": trial.suggest_categorical("strategy", ["uniform", "popularity"]),
    }


def _popularity_softmax(trial: Any) -> dict[str, Any]:
    settings = _softmax(trial)
    settings["loss_options"]["alpha"] = round(trial.suggest_float("alpha", -0.5, 1.5), 4)
    settings["strategy"] = "uniform"
    return settings


def _bpr(trial: Any) -> dict[str, Any]:
    return {"negatives": trial.suggest_categorical("pair_negatives", [1, 2, 4])}


# What Optuna may draw for each method: from a trial to fields of Method.
_RANGES: dict[str, tuple[str, Callable[[Any], dict[str, Any]], float]] = {
    "zerosum": ("zerosum", _zerosum, 1.0),
    "pos2neg2": ("pos2neg2", _zerosum, 1.0),
    "softmax": ("sampled_softmax", _softmax, 1 / 3),
    "popularity_softmax": ("popularity_softmax", _popularity_softmax, 1 / 3),
}


def draw_settings(search: Search) -> None:
    """Let Optuna draw settings and train each to its end. What is trained already is read.

    Optuna learns from the front: it maximizes accuracy and minimizes the bias that is left, by its TPE sampler.

    Raises:
        ValueError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError(f'engine: "optuna" needs the package: pip install "zerosum-ext[search]" ({error})') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    plan = search.plan
    wanted = [name for name in _RANGES if plan.methods is None or name in plan.methods]
    wanted = [name for name in wanted if _RANGES[name][0] in models.method_names()]
    if not wanted:
        raise ValueError(f"methods: Optuna draws settings of {', '.join(_RANGES)}, got {plan.methods}")
    study = optuna.create_study(
        directions=["maximize", "minimize"],
        sampler=optuna.samplers.TPESampler(seed=plan.seeds[0], multivariate=True, group=True),
    )
    count = 0
    while count < plan.trials:
        # As many at once as there are processes; always as many, so that a resumed search draws the same.
        asked = [study.ask() for _ in range(min(search.workers.jobs, plan.trials - count))]
        drawn = [_candidate(search, trial, wanted, count + place) for place, trial in enumerate(asked)]
        search.everyone += drawn
        search.advance([(one, one.method.epochs) for one in drawn])
        for trial, one in zip(asked, drawn, strict=True):
            record, base = search.records[one.name], search.records[search.base.name]
            values = [record.value(plan.metric), bias_left(record.values, base.values, plan.bias_key)]
            if all(map(math.isfinite, values)):
                study.tell(trial, values)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
        count += len(asked)


def _candidate(search: Search, trial: Any, wanted: list[str], number: int) -> Candidate:
    family = trial.suggest_categorical("family", wanted)
    loss, draw, pace = _RANGES[family]
    epochs = max(1, round(search.plan.epochs * pace))
    method = replace(search.base.method, loss=loss, epochs=epochs, **draw(trial))
    return Candidate(f"drawn{number:03}-{family}", family, "trained", method)
