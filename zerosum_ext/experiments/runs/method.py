"""One method of a run: train it, save it, read it, measure it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zerosum_ext import models
from zerosum_ext._files import locked, write_text
from zerosum_ext.data.interactions import Interactions, Split
from zerosum_ext.evaluation import METRICS, WEIGHTED_METRICS, Ranking, compute, rank
from zerosum_ext.experiments.runs.files import read_history, write_json
from zerosum_ext.experiments.runs.settings import Method
from zerosum_ext.models.base import Recommender, save_tensors
from zerosum_ext.models.files import PREFIX
from zerosum_ext.training import EpochEnd, History, fit
from zerosum_ext.training.callbacks import CSVLogger, TensorBoardLogger

#: Reference scores c of MACR to choose from: [WFC21] search to 40; scores after a few epochs are smaller.
MACR_REFERENCES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def train_method(
    method: Method,
    split: Split,
    folder: str | os.PathLike[str],
    *,
    exclude: Any = None,
    resume: bool = False,
    progress: bool | None = None,
    callbacks: Sequence[Callable[[EpochEnd], Any]] = (),
) -> tuple[nn.Module, History]:
    """Train one method, with its files in ``folder``. A method that was trained there already is read instead.

    Args:
        method: what to train.
        split: the interactions. ``train`` is trained on, and ``valid`` chooses the best epoch if it is not empty.
        folder: where model.safetensors and history.json go, and checkpoint.pt until these are complete.
        exclude: further interactions that are never drawn as negatives, as in :func:`zerosum_ext.training.fit`.
        resume: go on from the folder's checkpoint, or read its finished model, if there is one. Otherwise the method
            is trained from the start.
        progress: show a progress bar. None: on a terminal.
        callbacks: as in :func:`zerosum_ext.training.fit`.

    Returns:
        (the model, the history of its training).

    Raises:
        KeyboardInterrupt: after a checkpoint was written. The same call with ``resume=True`` goes on.
        ValueError: settings that do not fit the data, training that diverged, or a checkpoint of another method.
    """
    folder = Path(folder)
    with locked(folder):
        return _train_in(folder, method, split, exclude, resume, progress, callbacks)


def _train_in(
    folder: Path,
    method: Method,
    split: Split,
    exclude: Any,
    resume: bool,
    progress: bool | None,
    callbacks: Sequence[Callable[[EpochEnd], Any]],
) -> tuple[nn.Module, History]:
    """Do what :func:`train_method` says, in a folder that is locked."""
    checkpoint, model_file, history_file = (
        folder / name for name in ("checkpoint.pt", "model.safetensors", "history.json")
    )
    if resume and history_file.is_file():
        return read_model(method, split.train, model_file), read_history(history_file)
    parts = method.make_parts(split.train)
    model: Any = parts.model
    if parts.loss is None:
        history = History()
        history.engine = "none"
        save_model(model.to(method.device), model_file)
        write_json(history_file, history.to_dict())
        return model, history
    history = fit(
        model,
        split.train,
        parts.loss,
        method.make_optimizer,
        **training_options(method, parts, split),
        epochs=method.epochs,
        exclude=exclude,
        callbacks=callbacks,
        checkpoint=checkpoint,
        resume=checkpoint if resume and checkpoint.is_file() else None,
        progress=progress,
    )
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    model = parts.inference(model)
    if method.loss == "macr" and split.valid.nnz > 0 and "c" not in method.loss_options:
        models.choose(model, MACR_REFERENCES, split.train, split.valid, method.metric)
    save_model(model, model_file)
    write_json(history_file, history.to_dict())
    checkpoint.unlink()
    return model, history


def training_options(method: Method, parts: models.MethodParts, split: Split) -> dict[str, Any]:
    """Return the options of :func:`zerosum_ext.training.fit` that the method sets."""
    validated = split.valid.nnz > 0
    return {
        "regularizer": parts.regularizer,
        "batch_size": method.batch_size,
        "device": method.device,
        "seed": method.seed,
        "negatives": method.negatives,
        "draws": method.draws,
        "strategy": method.strategy,
        "negatives_shared": method.negatives_shared,
        "l2": method.l2,
        "validation": split.valid if validated else None,
        "metric": method.metric,
        "patience": method.patience if validated else None,
        "restore_best": method.restore_best,
        "bias": method.bias if validated else None,
        "max_cost": method.max_cost,
    }


def save_model(model: nn.Module, path: Path) -> None:
    if hasattr(model, "save"):
        model.save(path)  # type: ignore[operator]
    else:
        save_tensors(model.state_dict(), path)


def describe_model(
    model: nn.Module, folder: Path, settings: Mapping[str, Any], metrics: Mapping[str, float], card: bool = False
) -> None:
    """Put settings and metrics into the model's file, and into card.md if that is wanted.

    A module that is no :class:`~zerosum_ext.Recommender` has a file of tensors alone, and no card. A file that says the
    same already stays as it is, and so does one of version 0.1.0, which had no place for this.
    """
    if not isinstance(model, Recommender):
        return
    known = {name: value for name, value in metrics.items() if math.isfinite(value)}
    path = folder / "model.safetensors"
    said = _said_of(path)
    if said is not None and ("settings" not in said or said.get("metrics") != known):
        model.save(path, settings=settings, metrics=known)
    if card:
        model.information = {**model.information, "settings": settings, "metrics": known}
        write_text(folder / "card.md", model.card(f"{folder.name}: {type(model).__name__}"))


def _said_of(path: Path) -> dict[str, Any] | None:
    """Return what a model's file says of where the model comes from, or None if it has no place for this."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("information")
    return None if text is None else json.loads(text)


def read_model(method: Method, train: Interactions, path: Path) -> nn.Module:
    """Read a trained model. A file that is missing or damaged is a ValueError that names it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"{path.parent.parent}: there is no {path.parent.name}/{path.name}; its training is not over")
    if models.trained_directly(method.loss):
        return Recommender.load(path, method.device)  # type: ignore[no-any-return]
    parts = method.make_parts(train)
    model = parts.inference(parts.model)
    try:
        tensors = load_file(path)
        # The file holds ids, and the graph for users who do not have the interactions; here they are known.
        tensors = {name: value for name, value in tensors.items() if not name.startswith(PREFIX)}
        if isinstance(model, Recommender):
            tensors = {name: value for name, value in tensors.items() if name not in model._extra_tensors()}
        model.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} is not a model of this run: {error}") from None
    return model.to(method.device)


def measure(
    model: nn.Module, split: Split, *, k: Sequence[int] = (10, 20), popularity: Any = None
) -> tuple[dict[str, float], Ranking]:
    """Compute every metric of :data:`zerosum_ext.evaluation.METRICS` and ``WEIGHTED_METRICS`` on the test part.

    Users are ranked over all items but those of their training and validation parts. Popularity counts all three
    parts unless given.

    Returns:
        ({metric: value}, the ranking that they come from).
    """
    seen = split.train | split.valid if split.valid.nnz else split.train
    if popularity is None:
        popularity = popularity_of(split)
    ranking = rank(model, seen, split.test, k=max(k))
    return compute(ranking, popularity, metrics=(*METRICS, *WEIGHTED_METRICS), k=tuple(k)), ranking


def popularity_of(split: Split) -> torch.Tensor:
    """Count the interactions of each item in all three parts, as [RCS22] does."""
    return split.train.popularity + split.valid.popularity + split.test.popularity


def loggers(log: Sequence[str], folder: Path, method: Method) -> list[Callable[[EpochEnd], Any]]:
    """Return the callbacks that write the logs of a method: "csv", "tensorboard" or both."""
    made: list[Callable[[EpochEnd], Any]] = []
    if "csv" in log:
        made.append(CSVLogger(folder / "log.csv"))
    if "tensorboard" in log:
        made.append(TensorBoardLogger(folder / "tensorboard", asdict(method)))
    return made
