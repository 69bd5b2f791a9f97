"""Callbacks for ``fit(callbacks=[...])`` that log each epoch, to a CSV file or to TensorBoard.

    fit(model, train, "zerosum", callbacks=[CSVLogger("log.csv"), TensorBoardLogger("runs/tensorboard/zerosum")])

Any function of an :class:`~zerosum_ext.training.EpochEnd` can be a callback.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zerosum_ext._files import replacing
from zerosum_ext.training.history import EpochEnd, History

__all__ = ["CSVLogger", "TensorBoardLogger"]


class CSVLogger:
    """Write a row for every epoch: epoch (from 1), loss, validation metric, seconds, samples a second, learning rate.

    The file is complete after every epoch. A resumed run keeps the rows of the epochs before its checkpoint. It removes
    rows that an abandoned run had written after the checkpoint.

    Args:
        path: the file; its folder is made if it does not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._rates: dict[int, str] = {}

    def __call__(self, event: EpochEnd) -> None:
        if not self._rates:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._rates = _rates_in(self.path, before=event.epoch)
        self._rates[event.epoch] = repr(_learning_rate(event))
        history = event.history
        with replacing(self.path) as part, open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["epoch", "loss", *_validation_name(history), "seconds", "samples_per_second", _RATE])
            for epoch, loss in enumerate(history):
                validation = history.validation[epoch : epoch + 1]
                speed = _samples_per_second(history, epoch)
                rate = self._rates.get(epoch, "")
                writer.writerow([epoch + 1, loss, *validation, round(history.seconds[epoch], 4), round(speed, 1), rate])


class TensorBoardLogger:
    """Write scalars of every epoch for TensorBoard: loss, validation metric, seconds, samples a second, learning rate.

    The package tensorboard is imported at the first epoch.

    Args:
        folder: the folder of the event files. A resumed run continues in it and purges the epochs after its checkpoint.
        hyperparameters: settings that are written once, as text.

    Raises:
        ValueError: tensorboard is not installed; raised at the first epoch.
    """

    def __init__(self, folder: str | os.PathLike[str], hyperparameters: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.hyperparameters = hyperparameters
        self._writer: Any = None

    def __call__(self, event: EpochEnd) -> None:
        step, history = event.epoch + 1, event.history
        if self._writer is None:
            self._writer = _summary_writer()(os.fspath(self.folder), purge_step=step)
            if self.hyperparameters is not None:
                text = json.dumps(self.hyperparameters, indent=2, default=str)
                self._writer.add_text("hyperparameters", f"```\n{text}\n```", step)
        self._writer.add_scalar("loss/train", history[-1], step)
        if history.validation:
            self._writer.add_scalar(f"validation/{history.metric}", history.validation[-1], step)
        self._writer.add_scalar("time/seconds", history.seconds[-1], step)
        self._writer.add_scalar("time/samples_per_second", _samples_per_second(history, event.epoch), step)
        self._writer.add_scalar("learning_rate", _learning_rate(event), step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file. Finished epochs are in it without that."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


_RATE = "learning_rate"


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(f"logging for TensorBoard needs the package: pip install tensorboard ({error})") from None
    return SummaryWriter


def _learning_rate(event: EpochEnd) -> float:
    """Return the learning rate of the first parameter group, as the next epoch will have it."""
    return float(event.optimizer.param_groups[0]["lr"])


def _samples_per_second(history: History, epoch: int) -> float:
    return history.samples[epoch] / max(history.seconds[epoch], 1e-9)


def _validation_name(history: History) -> list[str]:
    return [f"validation {history.metric}"] if history.validation else []


def _rates_in(path: Path, before: int) -> dict[int, str]:
    """Return the learning rates of earlier epochs from a file, since the history does not hold them."""
    if before == 0 or not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        rows = [(row.get("epoch") or "", row.get(_RATE) or "") for row in csv.DictReader(file)]
    return {int(epoch) - 1: rate for epoch, rate in rows if epoch.isdecimal() and int(epoch) <= before}
