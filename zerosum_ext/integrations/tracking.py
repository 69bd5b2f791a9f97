"""One callback for every tracker of experiments: Optuna, MLflow, Weights & Biases, or a function of one's own.

fit(..., callbacks=[tracker(optuna_trial)])          # reports each epoch, and stops a trial that is pruned
fit(..., callbacks=[tracker(mlflow.log_metrics)])    # of the active run
fit(..., callbacks=[tracker(wandb.log)])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from zerosum_ext.integrations.packages import needed
from zerosum_ext.training import EpochEnd

__all__ = ["epoch_values", "tracker"]


def epoch_values(event: EpochEnd) -> dict[str, float]:
    """Return what is known of an epoch: loss, learning rate, samples a second, and the validation metric by its key."""
    history, last = event.history, event.epoch
    values = {
        "loss": history[-1],
        "learning_rate": float(event.optimizer.param_groups[0]["lr"]),
        "samples_per_second": history.samples[last] / max(history.seconds[last], 1e-9),
    }
    if history.validation:
        values[history.metric or "validation"] = history.validation[-1]
    if history.bias:
        values["bias"] = history.bias[-1]
    return values


def tracker(
    target: Any,
    *,
    every: int = 1,
    more: Callable[[EpochEnd], Mapping[str, float]] | None = None,
) -> Callable[[EpochEnd], None]:
    """Return a callback of ``fit`` that reports each epoch.

    Args:
        target: a function ``(values, step=)``, such as ``mlflow.log_metrics``, ``wandb.log`` or ``run.log``; or an
            Optuna trial, which gets the validation metric (the loss without validation) and ends training by
            ``optuna.TrialPruned`` where it should be pruned.
        every: report each so manieth epoch. The epochs count on from those of earlier fits.
        more: further values, from the event: for example measures of bias that you evaluate.

    Raises:
        TypeError: the target is nothing of the kind.
    """
    trial = hasattr(target, "report") and hasattr(target, "should_prune")
    if not trial and not callable(target):
        raise TypeError(f"target: expected a function or an Optuna trial, got {type(target).__name__}")

    def report(event: EpochEnd) -> None:
        step = event.epoch + 1
        if step % every:
            return
        values = {**epoch_values(event), **(more(event) if more is not None else {})}
        if not trial:
            # MLflow has no at sign in names.
            target({name.replace("@", "_at_"): value for name, value in values.items()}, step=step)
            return
        watched = event.history.validation or event.history
        if not math.isnan(watched[-1]):
            target.report(float(watched[-1]), step)
        if target.should_prune():
            raise needed("optuna", "optuna", __name__).TrialPruned(f"after epoch {step}")

    return report
