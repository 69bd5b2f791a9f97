"""One candidate's training, in steps: to some epochs, measured, and on later if it is promising."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zerosum_ext import models
from zerosum_ext._files import locked
from zerosum_ext.data.interactions import Split
from zerosum_ext.evaluation import evaluate
from zerosum_ext.experiments.compare.candidates import Candidate
from zerosum_ext.experiments.runs.files import read_json, read_split, write_json
from zerosum_ext.experiments.runs.method import (
    MACR_REFERENCES,
    read_model,
    save_model,
    train_method,
    training_options,
)
from zerosum_ext.experiments.runs.settings import Method
from zerosum_ext.training import fit

__all__ = ["CHECKPOINT", "TRIALS", "Record", "advance", "read_record", "trained_by_fit"]

#: The folder of the candidates in a run folder.
TRIALS = "trials"
#: The file in a candidate's folder from which its training goes on.
CHECKPOINT = "checkpoint.pt"
_FIELDS = ("epochs", "trained", "best_epoch", "finished", "seconds", "values", "failed")


@dataclass(frozen=True)
class Record:
    """How far a candidate is.

    Attributes:
        epochs: the epochs that it was allowed so far.
        trained: the epochs that it was trained for; fewer if it stopped early.
        best_epoch: the number of the best epoch, from 1.
        finished: it stopped early, or reached its largest number of epochs.
        seconds: the time that training and measuring took in all.
        values: the measures of its best epoch on the validation part.
        failed: why it could not be trained; otherwise empty.
    """

    epochs: int
    trained: int
    best_epoch: int
    finished: bool
    seconds: float
    values: Mapping[str, float | None]
    failed: str = ""

    def value(self, key: str) -> float:
        """Return a measure, or NaN if it has no value."""
        found = self.values.get(key)
        return math.nan if found is None else float(found)


def trained_by_fit(method: Method) -> bool:
    """Return whether a method is trained in epochs, rather than solved at once."""
    return not models.trained_directly(method.loss)


def read_record(folder: Path, method: Method) -> Record | None:
    """Return how far the candidate of a folder is, or None if it has not begun with these settings.

    Raises:
        ValueError: a damaged file; the message names it.
    """
    path = folder / "record.json"
    if not path.is_file():
        return None
    values = read_json(path)
    try:
        if values["method"] != _plain_method(method):
            return None
        return Record(**{name: values[name] for name in _FIELDS})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None


def _plain_method(method: Method) -> dict[str, Any]:
    """Return the settings as JSON gives them back."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value

    return dict(plain(asdict(method)))


@functools.lru_cache(maxsize=1)
def _split_of(path: str, stamp: int) -> Split:
    """Read the interactions once for all candidates of a process."""
    return read_split(Path(path))


def advance(run: str, candidate: Candidate, epochs: int, keys: Sequence[str], base: str | None = None) -> Record:
    """Train a candidate until it has had so many epochs, and measure it on the validation part.

    What was done before is not done again: a finished step is read, and one that was interrupted goes on from its last
    epoch.

    Args:
        run: the run folder, which holds the interactions.
        candidate: what to train.
        epochs: the epochs that it may have had in all after this call.
        keys: the measures to take.
        base: for a method that only changes finished scores: the name of the candidate whose model it takes.

    Returns:
        How far it is now. Training that diverged, or settings that do not fit the data, are a record that says so.

    Raises:
        KeyboardInterrupt: Ctrl-C; a checkpoint was written.
    """
    file = Path(run) / "interactions.npz"
    split = _split_of(os.fspath(file), file.stat().st_mtime_ns)
    folder = Path(run) / TRIALS / candidate.name
    with locked(folder):
        before = read_record(folder, candidate.method)
        if before is not None and (before.finished or before.epochs >= epochs):
            if before.finished:  # and killed perhaps before this was done
                (folder / CHECKPOINT).unlink(missing_ok=True)
            return before
        spent = 0.0 if before is None else before.seconds
        start = time.perf_counter()
        try:
            trained, best, finished, model = _train(folder, candidate, split, epochs, base)
            values = _measure(model, split, keys)
            failed = ""
        except (ValueError, RuntimeError, MemoryError) as error:
            trained, best, finished, values = 0, 0, True, dict.fromkeys(keys, None)
            failed = " ".join(str(error).split()) or type(error).__name__
        record = Record(epochs, trained, best, finished, spent + time.perf_counter() - start, values, failed)
        write_json(folder / "record.json", {"method": _plain_method(candidate.method), **asdict(record)})
        if finished:
            (folder / CHECKPOINT).unlink(missing_ok=True)
        return record


def _train(
    folder: Path, candidate: Candidate, split: Split, epochs: int, base: str | None
) -> tuple[int, int, bool, nn.Module]:
    """Return (epochs trained, number of the best one, whether it is finished, the model of the best epoch)."""
    method = candidate.method
    if not trained_by_fit(method):
        solved, _ = train_method(method, split, folder / "model", progress=False)
        return 0, 0, True, solved
    parts = method.make_parts(split.train)
    model, loss = parts.model, parts.loss
    assert loss is not None
    if base is not None:
        source = folder.parent / base
        trained_base = read_model(method.plain_bpr(), split.train, source / "model.safetensors")
        model.load_state_dict(trained_base.state_dict())
        done = read_json(source / "history.json")
        write_json(folder / "history.json", done)
        trained, best, finished = len(done["loss"]), (done["best_epoch"] or 0) + 1, True
    else:
        checkpoint = folder / CHECKPOINT
        history = fit(
            model,
            split.train,
            loss,
            method.make_optimizer,
            **training_options(method, parts, split),
            epochs=min(epochs, method.epochs),
            checkpoint=checkpoint,
            resume=checkpoint if checkpoint.is_file() else None,
            progress=False,
        )
        if history.stopped == "interrupted":
            raise KeyboardInterrupt
        write_json(folder / "history.json", history.to_dict())
        trained, best = len(history), len(history) if history.best_epoch is None else history.best_epoch + 1
        finished = history.stopped == "early stopping" or trained >= method.epochs
    model = parts.inference(model)
    if method.loss == "macr" and "c" not in method.loss_options:
        models.choose(model, MACR_REFERENCES, split.train, split.valid, method.metric)  # type: ignore[arg-type]
    save_model(model, folder / "model.safetensors")
    return trained, best, finished, model


def _measure(model: nn.Module, split: Split, keys: Sequence[str]) -> dict[str, float | None]:
    with torch.no_grad():
        values = evaluate(model, split.train, split.valid, metrics=tuple(keys))
    return {key: value if math.isfinite(value) else None for key, value in values.items()}
