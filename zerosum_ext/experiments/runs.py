"""Runs: methods trained side by side on one split of real interactions, in a folder.

    run = runs.train("ratings.csv", "runs/mine", runs.Method(loss="zerosum", weight=0.9))
    run.metrics["zerosum"]["ndcg@10"], run.metrics["bpr"]["ndcg@10"]
    runs.Run.open("runs/mine").recommend(["alice"], 10)

The folder holds everything that the figures follow from and all that recommending needs::

    config.json         data, split, hyper-parameters of every method, versions
    interactions.npz    the interactions with their external ids, and which part of the split each belongs to
    METHOD/             model.safetensors, history.json, metrics.json; checkpoint.pt while it is being trained; log.csv
                        and tensorboard/ where asked for
    weights/            models of the weights that were tried, and search.json, where the weight was searched for
    metrics.json        {method: {metric: value}}
    history.csv         one row for each epoch of each method
    *.png               curves, PopQ histogram, average ranks, score matrices where small

A run that was interrupted goes on where it was (``resume=True``) and ends in the same bits. Larger experiments, of
many splits and methods, are made of the same parts: :class:`Method` and :func:`train_method` for one cell,
:func:`measure` for its figures.
"""

from __future__ import annotations

import csv
import hashlib
import inspect
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from torch import nn

from zerosum_ext import metrics
from zerosum_ext._checks import describe, require_choice, require_finite_number, require_positive_int
from zerosum_ext._files import replacing
from zerosum_ext._library import build_info
from zerosum_ext.data import datasets
from zerosum_ext.data.interactions import Interactions, Report, Split
from zerosum_ext.data.readers import DAMAGED
from zerosum_ext.evaluation.full import Ranking, compute, evaluate, rank
from zerosum_ext.experiments import plots
from zerosum_ext.models import backbones, methods
from zerosum_ext.models.base import Recommender, save_tensors
from zerosum_ext.models.mf import MatrixFactorization
from zerosum_ext.training import loop as training
from zerosum_ext.training.callbacks import CSVLogger, TensorBoardLogger
from zerosum_ext.training.loop import EpochEnd, History, fit, parse_metric

__all__ = [
    "MACR_REFERENCES",
    "MODELS",
    "OPTIMIZERS",
    "DataSource",
    "Method",
    "Recommended",
    "Run",
    "SplitRule",
    "Tried",
    "WeightSearch",
    "choose_weight",
    "measure",
    "to_json",
    "train",
    "train_method",
]

_FORMAT = "zerosum_ext.run/1"
_PARTS = ("train", "valid", "test")
# Score matrices are drawn up to this many cells; beyond, a picture shows nothing.
_CELLS_DRAWN = 2_000_000
# Of these a larger value is better, so training may keep the best epoch by them.
_ACCURACY = ("hr", "recall", "precision", "ndcg", "mrr", "map", "auc", "pairwise_accuracy")


def _matrix_factorization(train: Interactions, dim: int, seed: int, **options: Any) -> nn.Module:
    return MatrixFactorization(train.num_users, train.num_items, dim, seed=seed, **options)


def _backbone(name: str, train: Interactions, dim: int, seed: int, **options: Any) -> nn.Module:
    return backbones.get_model(name, train, embedding_dim=dim, seed=seed, **options)


#: Models by name: functions of (train, dim, seed, **options) that return a module which is called as
#: ``model(users [B], items [B, J])``, and has ``score_all_items(users)`` and ``recommend(users, k, exclude)``.
#: Add a line to train another model in runs.
MODELS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(_backbone, name) for name in backbones.model_names()},
    "mf": _matrix_factorization,
}

#: Optimizers by name. "sparse_adam" updates only the rows of the batch.
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "sparse_adam": torch.optim.SparseAdam,
}


# --- settings ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataSource:
    """Where interactions come from, and how the file is read.

    ``source`` is a file, or a name for :func:`zerosum_ext.data.datasets.load`. ``min_item_count`` leaves out items with
    fewer interactions. The rest is passed to :meth:`zerosum_ext.Interactions.from_file`.
    """

    source: str
    columns: Mapping[str, str | int | None] | None = None
    delimiter: str | None = None
    header: bool | None = None
    ids: bool | None = None
    id_type: str = "auto"
    shape: tuple[int, int] | None = None
    min_rating: float | None = None
    skip_bad_rows: bool = False
    encoding: str = "utf-8"
    min_item_count: int = 0

    def read(self) -> Interactions:
        """The interactions. Errors as of ``Interactions.from_file``."""
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("source", "min_item_count")}
        data = Interactions.from_file(datasets.find(self.source), **options)
        return data.filter_items(self.min_item_count) if self.min_item_count > 0 else data


@dataclass(frozen=True)
class SplitRule:
    """How interactions are divided into train, validation and test.

    Attributes:
        kind: "random"; "last" (each user's latest interactions are held out); "column" (as a column says).
        ratios, seed: of "random".
        count: of "last": so many interactions of each user are for test, and as many before them for validation.
        column, values: of "column": its name, and its values for (train, validation, test).
    """

    kind: str = "random"
    ratios: tuple[float, ...] = (0.8, 0.1, 0.1)
    seed: int = 0
    count: int = 1
    column: str = "split"
    values: tuple[Any, Any, Any] = (0, 2, 1)

    def apply(self, data: Interactions) -> Split:
        """The parts. ValueError where nothing is left to train on or to test with."""
        require_choice("split", self.kind, ("random", "last", "column"))
        if self.kind == "random":
            split = data.split_random(self.ratios, seed=self.seed)
        elif self.kind == "last":
            split = data.split_last(test=self.count, valid=self.count)
        else:
            train, valid, test = self.values
            split = data.split_by(self.column, train=train, valid=valid, test=test)
        for name in ("train", "test"):
            if getattr(split, name).nnz == 0:
                raise ValueError(
                    f"split: none of the {data.nnz:,} interactions is left for {name}; there are too few of them, or "
                    "the rule is not what was meant"
                )
        return split


@dataclass(frozen=True)
class Method:
    """A model, a loss and how it is trained: all that decides the outcome on given interactions.

    Attributes:
        loss, loss_options: as in :func:`zerosum_ext.models.methods.get_method`: the name of a loss or of a
            debiasing method.
            Popularities are those of the training part. The c of "macr", unless given, is chosen on the validation
            part.
        weight: w of the losses that have one ([RCS22], convex: w times BPR, 1 - w times the regularizer).
        model, model_options: a name of :data:`MODELS` and what its function takes beside dim and seed.
        dim: width of the embeddings.
        optimizer, lr, weight_decay: a name of :data:`OPTIMIZERS`, and what it is made with.
        l2, epochs, batch_size, negatives, draws, strategy, metric, patience: as in
            :func:`zerosum_ext.training.loop.fit`.
        keep: "best": the weights of the best validation epoch; "last": of the last. Without validation, the last.
        seed: of the initial weights and of the samples.
        device: where to train.
    """

    loss: str = "zerosum"
    weight: float | None = None
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    model: str = "mf"
    model_options: Mapping[str, Any] = field(default_factory=dict)
    dim: int = 64
    optimizer: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    l2: float = 0.0
    epochs: int = 100
    batch_size: int = 1024
    negatives: int = 1
    draws: int = 1
    strategy: str = "uniform"
    metric: str = "ndcg@10"
    patience: int | None = 10
    keep: str = "best"
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        require_choice("loss", self.loss, methods.method_names())
        require_choice("model", self.model, list(MODELS))
        require_choice("optimizer", self.optimizer, list(OPTIMIZERS))
        require_choice("keep", self.keep, ("best", "last"))
        require_positive_int("dim", self.dim)
        require_positive_int("epochs", self.epochs)
        for name in ("batch_size", "negatives", "draws"):
            require_positive_int(name, getattr(self, name))
        if self.patience is not None:
            require_positive_int("patience", self.patience)
        require_positive_int("seed", self.seed, minimum=0)
        for name in ("lr", "weight_decay", "l2"):
            require_finite_number(name, getattr(self, name), minimum=0)
        require_choice("strategy", self.strategy, ("uniform", "popularity"))
        for name in ("loss_options", "model_options"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name}: expected a mapping of names to values, got {describe(getattr(self, name))}")
        known = methods.method_options(self.loss)
        for option in self.loss_options:
            if option not in known:
                raise ValueError(f"loss_options: expected those of {self.loss!r}, {', '.join(known)}, got {option!r}")
        if self.weight is not None:
            require_finite_number("w", self.weight, minimum=0, maximum=1)
        if self.weight is not None and "w" not in known:
            raise ValueError(f"weight: expected none for loss {self.loss!r}, which has no w, got {self.weight}")
        if self.weight is not None and "w" in self.loss_options:
            raise ValueError(f"loss_options: expected no w beside weight={self.weight}, got {self.loss_options['w']!r}")
        if not isinstance(self.metric, str) or self.metric.partition("@")[0] not in _ACCURACY:
            raise ValueError(
                f"metric: expected one of {', '.join(_ACCURACY)} to keep the best epoch by, got {self.metric!r}"
            )
        parse_metric(self.metric)
        if self.optimizer == "sparse_adam" and self.weight_decay:
            raise ValueError(f"weight_decay: expected 0 with optimizer 'sparse_adam', got {self.weight_decay}")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {self.device!r}") from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device: {self.device!r} was asked for, but this torch sees no GPU")

    def make_parts(self, train: Interactions) -> methods.MethodParts:
        """The model to train, loss, regularizer and inference; popularities are those of ``train``."""
        options = dict(self.loss_options)
        if self.weight is not None:
            options["w"] = self.weight
        model: Any = self.make_model(train)
        try:
            return methods.get_method(self.loss, model, train, **options)
        except TypeError as error:
            raise ValueError(f"loss_options: {error}") from error

    def make_loss(self, train: Interactions) -> nn.Module:
        """The loss module alone."""
        return self.make_parts(train).loss

    def make_model(self, train: Interactions) -> nn.Module:
        """The model with its initial weights, before a method wraps it."""
        factory = MODELS[self.model]
        known = inspect.signature(factory).parameters
        try:
            return factory(train, dim=self.dim, seed=self.seed, **self.model_options)
        except TypeError as error:
            raise ValueError(f"model_options: {self.model!r} takes {', '.join(known)}: {error}") from None

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over the parameters."""
        options: dict[str, Any] = {"lr": self.lr}
        if self.weight_decay:
            options["weight_decay"] = self.weight_decay
        return OPTIMIZERS[self.optimizer](parameters, **options)


# --- one method ----------------------------------------------------------------------------------------------


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
    """Trains one method, with its files in ``folder``; a method that was trained there already is read instead.

    Args:
        method: what to train.
        split: trained on its ``train``; the best epoch is chosen by its ``valid``, where that is not empty.
        folder: gets model.safetensors and history.json, and checkpoint.pt until these are complete.
        exclude: further interactions that are no negatives, as in :func:`zerosum_ext.training.loop.fit`.
        resume: go on from the folder's checkpoint, or take its finished model, where there is one. Without it the
            method is trained from the start.
        progress: shows a progress bar; None: on a terminal.
        callbacks: as in :func:`zerosum_ext.training.loop.fit`.

    Raises:
        KeyboardInterrupt: after a checkpoint was written, so that the same call with ``resume=True`` goes on.
        ValueError: settings that do not fit the data; training that diverged; a checkpoint of another method.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, model_file, history_file = (
        folder / name for name in ("checkpoint.pt", "model.safetensors", "history.json")
    )
    if resume and history_file.is_file():
        return _read_model(method, split.train, model_file), _read_history(history_file)
    parts = method.make_parts(split.train)
    model: Any = parts.model
    history = fit(
        model,
        split.train,
        parts.loss,
        method.make_optimizer,
        **_training_options(method, parts, split),
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
        methods.choose(model, MACR_REFERENCES, split.train, split.valid, method.metric)
    _save_model(model, model_file)
    _write_json(history_file, history.to_dict())
    checkpoint.unlink()
    return model, history


def _training_options(method: Method, parts: methods.MethodParts, split: Split) -> dict[str, Any]:
    """What the method says of :func:`zerosum_ext.training.loop.fit`'s options."""
    validated = split.valid.nnz > 0
    return {
        "regularizer": parts.regularizer,
        "batch_size": method.batch_size,
        "device": method.device,
        "seed": method.seed,
        "negatives": method.negatives,
        "draws": method.draws,
        "strategy": method.strategy,
        "l2": method.l2,
        "validation": split.valid if validated else None,
        "metric": method.metric,
        "patience": method.patience if validated else None,
        "restore_best": method.keep == "best",
    }


def _try_out(method: Method, split: Split) -> None:
    """Raises where settings do not fit each other or the data: all of training but its epochs."""
    parts = method.make_parts(split.train)
    options = _training_options(method, parts, split)
    training.fit(parts.model, split.train, parts.loss, method.make_optimizer, **options, epochs=0, progress=False)


#: Reference scores c of MACR to choose from: [WFC21] search to 40; scores after a few epochs are smaller.
MACR_REFERENCES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def _save_model(model: nn.Module, path: Path) -> None:
    if hasattr(model, "save"):
        model.save(path)  # type: ignore[operator]
    else:
        save_tensors(model.state_dict(), path)


def _read_model(method: Method, train: Interactions, path: Path) -> nn.Module:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"{path.parent.parent}: there is no {path.parent.name}/{path.name}; its training is not over")
    parts = method.make_parts(train)
    model = parts.inference(parts.model)
    try:
        tensors = load_file(path)
        if isinstance(model, Recommender):  # a graph is in the file for who has not the interactions
            tensors = {name: value for name, value in tensors.items() if name not in model._extra_tensors()}
        model.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} is not a model of this run: {error}") from None
    return model.to(method.device)


@dataclass(frozen=True)
class WeightSearch:
    """How to find a weight: the one that takes away most bias among those that cost little accuracy.

    Attributes:
        max_cost: share of BPR's accuracy in validation (the method's ``metric``) that may be lost, in [0, 1).
        bias: "pop_q_at_1", "pri", "upo" or "pcc", of which the distance from its value without bias is to be small.
        weights: to try, in (0, 1), from the largest, the mildest, on. After two in a row that cost too much, further
            ones are not tried.
    """

    max_cost: float = 0.05
    bias: str = "pop_q_at_1"
    weights: tuple[float, ...] = (0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.5, 0.3)

    def __post_init__(self) -> None:
        if not 0 <= require_finite_number("max_cost", self.max_cost) < 1:
            raise ValueError(f"max_cost: expected a share in [0, 1), got {self.max_cost}")
        require_choice("bias", self.bias, tuple(_UNBIASED))
        if not self.weights or not all(0 < require_finite_number("weights", w) < 1 for w in self.weights):
            raise ValueError(f"weights: expected numbers between 0 and 1, got {self.weights}")


# The value of a measure of bias where there is none.
_UNBIASED = {"pop_q_at_1": 0.5, "pri": 0.0, "upo": 0.0, "pcc": 0.0}


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
    """Finds w of a method by its validation part: the largest bias reduction at a given cost in accuracy.

    BPR and then the method with one weight after the other are trained on ``split.train`` and measured on
    ``split.valid``, with popularities counted in these two; the test part is not looked at. The search takes as long as
    training so many models.

    Args:
        method: of which ``weight`` is to be found.
        split: its train and valid parts are used.
        folder: gets the models, each in a folder of its own, and search.json.
        search: what may be lost, the measure of bias and the weights.
        resume: take models that are in the folder already, of the same settings.
        progress: shows progress bars; None: on a terminal.
        log: as in :func:`train`, in the folder of each model.
        note: is told about each weight.

    Returns:
        (weight, what was tried). 1.0, which is BPR, where no weight reduces the bias at that cost.

    Raises:
        ValueError: a method without w, no validation part, or one too small to measure the bias by.
    """
    search = search or WeightSearch()
    if "w" not in methods.method_options(method.loss):
        raise ValueError(f"weight: expected none for loss {method.loss!r}, which has no w, got a search for it")
    if split.valid.nnz == 0:
        raise ValueError("split: expected a validation part to choose the weight by, got none")
    folder, ideal = Path(folder), _UNBIASED[search.bias]
    name, cutoff = parse_metric(method.metric)
    tried: list[Tried] = []
    too_costly = 0
    for weight in (1.0, *sorted(search.weights, reverse=True)):
        one = _plain_bpr(method) if weight == 1.0 else replace(method, weight=weight)
        place = folder / _of_weight(weight)
        callbacks = _loggers(log, place, one)
        model, _ = train_method(one, split, place, resume=resume, progress=progress, callbacks=callbacks)
        values = evaluate(model, split.train, split.valid, metrics=(name, search.bias), k=(cutoff,))
        accuracy, bias = values[method.metric], values[search.bias]
        if not math.isfinite(bias):
            raise ValueError(
                f"bias: {search.bias} has no value on the {split.valid.nnz:,} validation positives; choose another"
            )
        least = (1 - search.max_cost) * (tried[0].accuracy if tried else accuracy)
        tried.append(Tried(weight, accuracy, bias, accuracy >= least))
        verdict = "" if tried[-1].affordable else ", costs too much"
        note(f"w={weight:g}: validation {method.metric} {accuracy:.4f}, {search.bias} {bias:.3f}{verdict}")
        too_costly = 0 if tried[-1].affordable else too_costly + 1
        if too_costly == 2:
            break
    # Of equally biased ones the first, the mildest.
    chosen = min((t for t in tried if t.affordable), key=lambda t: abs(t.bias - ideal)).weight
    _write_json(folder / "search.json", {**asdict(search), "weight": chosen, "tried": [asdict(t) for t in tried]})
    note(f"w={chosen:g} is taken" + (": no weight reduced the bias at that cost" if chosen == 1.0 else ""))
    return chosen, tried


def _of_weight(weight: float) -> str:
    return "bpr" if weight == 1.0 else f"w{weight:g}"


def _plain_bpr(method: Method) -> Method:
    return replace(method, loss="bpr", weight=None, loss_options={})


def measure(
    model: nn.Module, split: Split, *, k: Sequence[int] = (10, 20), popularity: Any = None
) -> tuple[dict[str, float], Ranking]:
    """Every metric of :data:`zerosum_ext.evaluation.full.METRICS` on the test part, and the ranking they come from.

    Users are ranked over all items but those of their training and validation parts. Popularity counts all three
    parts unless given.
    """
    seen = split.train | split.valid if split.valid.nnz else split.train
    if popularity is None:
        popularity = _popularity(split)
    ranking = rank(model, seen, split.test, k=max(k))
    return compute(ranking, popularity, k=tuple(k)), ranking


# --- the folder ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recommended:
    """A user's recommendations, best first: external ids and scores; fewer than asked for where items run out."""

    user: Any
    items: list[Any]
    scores: list[float]


class Run:
    """A run folder, opened.

    Attributes:
        folder: its path.
        config: what config.json holds.
        split: the interactions that were trained on, validated and tested with, with their external ids.
        methods: {name: Method}, the main one last.
        metrics: {name: {metric: value}} of the methods that are finished.
    """

    def __init__(self, folder: Path, config: dict[str, Any], split: Split) -> None:
        self.folder, self.config, self.split = folder, config, split
        self.methods = {name: Method(**values) for name, values in config["methods"].items()}

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """Reads a folder that :func:`train` wrote.

        Raises:
            FileNotFoundError: no such folder. ValueError: not a run folder, or a damaged one; the message says how.
        """
        path = Path(folder)
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: there is no such run folder")
        config = _read_config(path)
        try:
            return cls(path, config, _read_split(path / "interactions.npz"))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is a damaged run folder: {error!r}") from None

    @property
    def main(self) -> str:
        """The name of the method that the run is about."""
        return list(self.methods)[-1]

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        found = {name: self.folder / name / "metrics.json" for name in self.methods}
        return {name: _read_json(path) for name, path in found.items() if path.is_file()}

    @property
    def histories(self) -> dict[str, History]:
        """{name: History} of the methods that are trained."""
        found = {name: self.folder / name / "history.json" for name in self.methods}
        return {name: _read_history(path) for name, path in found.items() if path.is_file()}

    def model(self, method: str | None = None) -> nn.Module:
        """The trained model of a method; by default the main one's."""
        name = self._name(method)
        return _read_model(self.methods[name], self.split.train, self.folder / name / "model.safetensors")

    def _name(self, method: str | None) -> str:
        return self.main if method is None else require_choice("method", method, list(self.methods))

    def evaluate(
        self,
        data: DataSource | Interactions | None = None,
        *,
        methods: Sequence[str] | None = None,
        k: Sequence[int] | None = None,
        skip_unknown: bool = False,
        note: Callable[[str], Any] = lambda text: None,
    ) -> tuple[dict[str, dict[str, float]], int]:
        """Measures the run's models again, on its own test part or on other interactions.

        Args:
            data: held-out interactions with the run's ids; None: the run's test part.
            methods: names; by default all.
            k: cut-offs; by default those of the run.
            skip_unknown: leave out rows of users or items that the run does not know, instead of raising.
            note: is told where models are measured on what they were trained on.

        Returns:
            ({method: {metric: value}}, rows left out).
        """
        split, skipped = self.split, 0
        if data is not None:
            read = data.read() if isinstance(data, DataSource) else data
            test, skipped = self._in_my_ids(read, skip_unknown)
            new = (test | split.train).nnz - split.train.nnz
            if new < test.nnz:
                note(f"{test.nnz - new:,} of the {test.nnz:,} interactions to measure on were trained on")
            split = split._replace(test=test)
        cutoffs = tuple(self.config["evaluation"]["k"]) if k is None else tuple(k)
        popularity = _popularity(self.split)
        names = list(self.methods) if methods is None else [self._name(name) for name in methods]
        return {n: measure(self.model(n), split, k=cutoffs, popularity=popularity)[0] for n in names}, skipped

    def _in_my_ids(self, data: Interactions, skip_unknown: bool) -> tuple[Interactions, int]:
        """Other interactions, numbered as this run's."""
        users, items = (t.numpy() for t in data.pairs())
        train = self.split.train
        mapped, known = [], np.ones(users.size, bool)
        for what, ids, mine, size in (
            ("user", data.decode_users(users), train.user_ids, train.num_users),
            ("item", data.decode_items(items), train.item_ids, train.num_items),
        ):
            index, found = _find(ids, mine, size)
            if not found.all() and not skip_unknown:
                raise ValueError(
                    f"{data.report.source}: the run knows no {what} {ids[~found][0].item()!r} "
                    f"({int((~found).sum()):,} of {found.size:,} rows are of unknown {what}s); skip_unknown leaves "
                    "such rows out"
                )
            mapped.append(index)
            known &= found
        if not known.any():
            raise ValueError(f"{data.report.source}: no row is of a user and an item that the run knows")
        test = Interactions.from_arrays(mapped[0][known], mapped[1][known], shape=train.shape)
        return test, int((~known).sum())

    def recommend(
        self, users: Sequence[Any], k: int = 10, *, method: str | None = None, include_seen: bool = False
    ) -> list[Recommended]:
        """The k best items of each user, by external ids.

        Args:
            users: external ids; text is taken for a number where the ids are numbers.
            k: items a user.
            method: whose model; by default the main one's.
            include_seen: also items that the user has interacted with.

        Raises:
            ValueError: a user that the run does not know; scores with NaN.
        """
        require_positive_int("k", k)
        train = self.split.train
        index = train.encode_users(np.asarray(list(users)))
        seen = None if include_seen else self.seen()
        items, scores = self.model(method).recommend(index, k, exclude=seen)  # type: ignore[operator]
        result = []
        for user, row, values in zip(index, items.cpu().numpy(), scores.cpu().numpy(), strict=True):
            valid = row >= 0
            result.append(
                Recommended(
                    train.decode_users(user).item(), train.decode_items(row[valid]).tolist(), values[valid].tolist()
                )
            )
        return result

    def seen(self) -> Interactions:
        """All interactions that the run knows of: its three parts together."""
        return self.split.train | self.split.valid | self.split.test

    # --- what is written once all methods are trained --------------------------------------------------------

    def write_tables(self) -> None:
        """metrics.json and history.csv, of the methods that are finished."""
        _write_json(self.folder / "metrics.json", self.metrics)
        histories = self.histories
        metric = self.methods[self.main].metric
        with open(self.folder / "history.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["method", "epoch", "loss", f"validation {metric}", "seconds", "samples"])
            for name, history in histories.items():
                validation: list[Any] = list(history.validation) or [""] * len(history)
                for epoch, row in enumerate(zip(history, validation, history.seconds, history.samples, strict=True)):
                    writer.writerow([name, epoch + 1, *row])

    def draw(self, rankings: Mapping[str, Ranking]) -> None:
        """The figures, from {method: ranking of :func:`measure`}."""
        popularity = _popularity(self.split)
        positives = {
            name: (ranking.positive_users, ranking.items, ranking.scores) for name, ranking in rankings.items()
        }
        plots.training_curves(self.histories, self.folder / "curves.png")
        plots.popq_histogram(
            {name: metrics.pop_q_at_1(*p, popularity, reduction="none") for name, p in positives.items()},
            self.folder / "popq.png",
        )
        curves = {}
        for name, p in positives.items():
            items, ranks = metrics.average_ranks(*p)
            curves[name] = (popularity.numpy()[items], ranks)
        plots.rank_curves(curves, self.folder / "ranks.png")
        train = self.split.train
        if train.num_users * train.num_items <= _CELLS_DRAWN:
            active = torch.argsort(train.user_counts, descending=True, stable=True)
            popular = torch.argsort(popularity, descending=True, stable=True)
            scores = {}
            with torch.no_grad():
                for name in rankings:
                    model = self.model(name)
                    users = active.to(self.methods[name].device)
                    scores[name] = model.score_all_items(users).cpu()[:, popular]  # type: ignore[operator]
            plots.score_matrices(
                scores,
                self.folder / "scores.png",
                "item, most popular first",
                "user, most active first",
            )


def train(
    data: DataSource | Interactions | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    method: Method | None = None,
    *,
    split: SplitRule | None = None,
    baseline: bool = True,
    k: Sequence[int] = (10, 20),
    search: WeightSearch | None = None,
    resume: bool = False,
    overwrite: bool = False,
    figures: bool = True,
    log: Sequence[str] = (),
    progress: bool | None = None,
    note: Callable[[str], Any] = lambda text: None,
) -> Run:
    """Trains a method, and plain BPR on the same split to compare with, measures both and writes the run folder.

    Args:
        data: a file, a :class:`DataSource` that says how to read it, or interactions.
        folder: of the run; made where it is not there.
        method: what to train; by default Zerosum with w = .9.
        split: by default random, 80/10/10.
        baseline: train BPR with the same settings too (there is nothing to compare where the loss is BPR).
        k: cut-offs of the metrics.
        search: find the method's weight, which is then None, by :func:`choose_weight`.
        resume: go on with the run in the folder, where there is one; it must have the same settings and data.
        overwrite: remove the run that is in the folder. Without it, or resume, a folder that is not empty is refused;
            one that holds something else than a run always is.
        figures: draw them.
        log: "csv" writes METHOD/log.csv while a method is being trained, "tensorboard" the folder METHOD/tensorboard;
            with a search also in the folders of the weights that are tried.
        progress: shows progress bars; None: on a terminal.
        note: is told, in a line each, what a person would want to know meanwhile.

    Raises:
        KeyboardInterrupt: on Ctrl-C, after a checkpoint; the same call with ``resume=True`` goes on.
        ValueError, OSError: bad settings or data, a folder that cannot be written.
    """
    method = method or Method(weight=None if search else 0.9)
    if search and method.weight is not None:
        raise ValueError(f"weight: expected None with a search for it, got {method.weight}")
    for kind in log:
        require_choice("log", kind, ("csv", "tensorboard"))
    cutoffs = tuple(require_positive_int("k", value) for value in k)
    if not cutoffs:
        raise ValueError("k: expected at least one cut-off, got none")
    if isinstance(data, (str, os.PathLike)):
        data = DataSource(os.fspath(data))
    rule = split or SplitRule()
    interactions = data.read() if isinstance(data, DataSource) else Interactions.from_any(data)
    parts = rule.apply(interactions)
    note(str(interactions.report))
    for message in interactions.report.bad_row_messages:
        note(f"skipped: {message}")
    for message in parts.train.report.notes:
        note(message)
    note(f"{interactions!r}; {parts.train.nnz:,} train, {parts.valid.nnz:,} validation, {parts.test.nnz:,} test")
    full = int((parts.train.user_counts == parts.train.num_items).sum())
    if full:
        note(f"{full:,} users have every item in the training part: without a negative they cannot be learnt from")
    if parts.valid.nnz == 0:
        note("no validation part: all epochs are trained and the last one is kept")

    chosen = {}
    if baseline and method.loss != "bpr":
        chosen["bpr"] = _plain_bpr(method)
    chosen[method.loss] = method
    for one in chosen.values():  # what is wrong with the settings shows before anything is written
        _try_out(one, parts)
    if search and ("w" not in methods.method_options(method.loss) or parts.valid.nnz == 0):
        raise ValueError(
            f"weight: a search for it needs a loss that has a w, and a validation part, got loss {method.loss!r} and "
            f"{parts.valid.nnz} validation interactions"
        )
    config = {
        "format": _FORMAT,
        "data": asdict(data) if isinstance(data, DataSource) else {"source": interactions.report.source},
        "split": asdict(rule),
        "methods": {name: asdict(m) for name, m in chosen.items()},
        "evaluation": {"k": list(cutoffs)},
        "interactions": _describe(interactions, parts),
        "environment": environment(),
        "search": None if search is None else asdict(search),
    }
    config = json.loads(json.dumps(config))  # tuples become lists, as they will be when read again
    path = Path(folder)
    _prepare(path, config, resume, overwrite)
    _write_json(path / "config.json", config)
    file = path / "interactions.npz"
    if not _holds(file, parts):
        if file.is_file():
            note(f"{file} was damaged, and is written anew")
        _write_split(file, parts)
    if search is not None:
        weights = path / "weights"
        weight, _ = choose_weight(method, parts, weights, search, resume=resume, progress=progress, log=log, note=note)
        chosen[method.loss] = replace(method, weight=weight)
        config["methods"] = json.loads(json.dumps({name: asdict(m) for name, m in chosen.items()}))
        _write_json(path / "config.json", config)
        # The models of the search are those of the run.
        for name, place in (("bpr", _of_weight(1.0)), (method.loss, _of_weight(weight))):
            if name in chosen and (name == "bpr" or weight != 1.0):
                (path / name).mkdir(exist_ok=True)
                for kept in ("model.safetensors", "history.json", "log.csv"):
                    if (weights / place / kept).is_file():
                        shutil.copyfile(weights / place / kept, path / name / kept)
                if (weights / place / "tensorboard").is_dir():
                    shutil.copytree(weights / place / "tensorboard", path / name / "tensorboard", dirs_exist_ok=True)

    rankings = {}
    for number, (name, one) in enumerate(chosen.items(), 1):
        note(f"{name} ({number} of {len(chosen)}): training")
        found = search is not None and (path / name / "history.json").is_file()
        callbacks = _loggers(log, path / name, one)
        model, history = train_method(
            one, parts, path / name, resume=resume or found, progress=progress, callbacks=callbacks
        )
        best = "" if history.best_epoch is None else f", best of epoch {history.best_epoch + 1}"
        note(f"{name}: {len(history)} epochs ({history.stopped}{best}) in {sum(history.seconds):.1f} s; evaluating")
        values, rankings[name] = measure(model, parts, k=cutoffs)
        _write_json(path / name / "metrics.json", values)
    run = Run(path, config, parts)
    run.write_tables()
    if figures:
        run.draw(rankings)
    return run


# --- files ---------------------------------------------------------------------------------------------------


def _loggers(log: Sequence[str], folder: Path, method: Method) -> list[Callable[[EpochEnd], Any]]:
    made: list[Callable[[EpochEnd], Any]] = []
    if "csv" in log:
        made.append(CSVLogger(folder / "log.csv"))
    if "tensorboard" in log:
        made.append(TensorBoardLogger(folder / "tensorboard", asdict(method)))
    return made


def _popularity(split: Split) -> torch.Tensor:
    """Interactions of each item in all three parts, as [RCS22] counts them."""
    return split.train.popularity + split.valid.popularity + split.test.popularity


def _digest(split: Split) -> str:
    """A short name of the interactions, their ids and their split."""
    digest = hashlib.blake2b(digest_size=16)
    for part in split:
        for array in (part.indptr.cpu().numpy(), part.indices.cpu().numpy()):
            digest.update(array.tobytes())
    for ids in (split.train.user_ids, split.train.item_ids):
        digest.update(b"none" if ids is None else str(ids.dtype).encode() + ids.tobytes())
    return digest.hexdigest()


def _describe(data: Interactions, split: Split) -> dict[str, Any]:
    counts = {name: part.nnz for name, part in zip(_PARTS, split, strict=True)}
    return {
        "users": data.num_users,
        "items": data.num_items,
        **counts,
        "report": str(data.report),
        "digest": _digest(split),
    }


def environment() -> dict[str, Any]:
    """Versions of what the figures of a run depend on, threads and instruction set."""
    info = build_info()
    versions = {name: info[name] for name in ("zerosum_ext", "python", "platform", "torch", "threads")}
    return {**versions, "numpy": np.__version__, "scipy": scipy.__version__, "isa": info.get("isa")}


def _prepare(folder: Path, config: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Makes the folder, or decides what becomes of what is in it."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a folder to write the run to")
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        return
    old = _read_config(folder)
    if overwrite:
        _remove_run(folder, old)
        return
    other = _difference(old, config)
    if other:
        raise ValueError(f"{folder} holds a run with other settings ({other}); choose another folder, or overwrite it")
    if not resume:
        raise ValueError(
            f"{folder} holds a run with these settings already: resume goes on with it, or shows it where it is "
            "complete; overwrite starts again"
        )


def _difference(old: Any, new: Any) -> str:
    """The first setting in which two runs differ, in words; empty where they agree."""
    for part in ("methods", "evaluation", "search"):
        before, after = _flat(old.get(part)), _flat(new.get(part))
        for name in [*after, *before]:
            if old.get("search") and new.get("search") and part == "methods" and name.endswith(".weight"):
                continue  # that is what was searched for
            if before.get(name) != after.get(name):
                return f"{name}: {before.get(name)!r} there, {after.get(name)!r} now"
    if old.get("interactions", {}).get("digest") != new["interactions"]["digest"]:
        return "other interactions, or another split of them"
    return ""


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    result = {}
    for key, inner in value.items():
        result.update(_flat(inner, f"{prefix}.{key}" if prefix else key))
    return result


def _remove_run(folder: Path, config: dict[str, Any]) -> None:
    """Takes away the files that a run consists of, and nothing else."""
    search = config.get("search") or {"weights": ()}
    tried = [f"weights/{_of_weight(weight)}" for weight in (1.0, *search["weights"])]
    for name in (*config.get("methods", {}), *tried):
        if (folder / name).is_dir():
            for file in ("model.safetensors", "history.json", "metrics.json", "checkpoint.pt", "log.csv"):
                (folder / name / file).unlink(missing_ok=True)
            for events in (folder / name / "tensorboard").glob("events.out.tfevents.*"):
                events.unlink()
    (folder / "weights" / "search.json").unlink(missing_ok=True)
    figures = ("curves.png", "popq.png", "ranks.png", "scores.png")
    for file in ("metrics.json", "history.csv", "interactions.npz", "config.json", *figures):
        (folder / file).unlink(missing_ok=True)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a run folder: it is not empty and has no config.json")
    config = _read_json(path)
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        raise ValueError(f"{path} is not the configuration of a run ({_FORMAT})")
    for name in ("methods", "search"):
        if not isinstance(config.get(name) or {}, dict):
            raise ValueError(f"{path} is damaged: {name}: expected an object, got {config[name]!r}")
    return config


def _write_split(path: Path, split: Split) -> None:
    """The three parts as one CSR with a mark for each interaction, and the ids."""
    users, items = (torch.cat(t).numpy() for t in zip(*(part.pairs() for part in split), strict=True))
    mark = np.repeat(np.arange(3, dtype=np.int8), [part.nnz for part in split])
    train = split.train
    arrays: dict[str, Any] = {"user": users.astype(np.int32 if train.num_users < 2**31 else np.int64), "part": mark}
    arrays["item"] = items.astype(train.indices.numpy().dtype)
    arrays["shape"] = np.array(train.shape)
    for name, ids in (("user_ids", train.user_ids), ("item_ids", train.item_ids)):
        if ids is not None:
            arrays[name] = ids
    with replacing(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, **arrays)


def _holds(path: Path, split: Split) -> bool:
    """Whether the file is there, whole, and of this split."""
    try:
        return path.is_file() and _digest(_read_split(path)) == _digest(split)
    except ValueError:
        return False


def _read_split(path: Path) -> Split:
    if not path.is_file():
        raise ValueError(f"{path.parent} is a damaged run folder: it has no {path.name}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        parts = []
        for code in range(3):
            chosen = arrays["part"] == code
            shape = (int(arrays["shape"][0]), int(arrays["shape"][1]))
            part = Interactions.from_arrays(arrays["user"][chosen], arrays["item"][chosen], shape=shape)
            report = Report(str(path), int(chosen.sum()))
            ids = {name: arrays.get(name) for name in ("user_ids", "item_ids")}
            parts.append(part._replace(report=report, columns={}, **ids))
        return Split(*parts)
    except (*DAMAGED, IndexError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _find(ids: np.ndarray, known: np.ndarray | None, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(index of each id, whether it is known)."""
    if known is None:
        if ids.dtype.kind not in "iu":
            return np.zeros(ids.shape, np.int64), np.zeros(ids.shape, bool)
        return ids.astype(np.int64), (ids >= 0) & (ids < size)
    if (ids.dtype.kind == "U") != (known.dtype.kind == "U"):
        ids = ids.astype(known.dtype if known.dtype.kind == "U" else np.str_)
        known = known if known.dtype.kind == "U" else known.astype(np.str_)
    order = np.argsort(known, kind="stable")
    place = np.minimum(np.searchsorted(known, ids, sorter=order), size - 1)
    index = order[place]
    return index, known[index] == ids


def to_json(values: Any) -> str:
    """Text of plain values. JSON knows no NaN: a quantity without a value is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, Mapping):
            return {key: plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value

    return json.dumps(plain(values), indent=2, allow_nan=False)


def _write_json(path: Path, values: Any) -> None:
    with replacing(path) as part:
        Path(part).write_text(to_json(values) + "\n")


def _read_history(path: Path) -> History:
    try:
        return History.from_dict(_read_json(path))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged, it is no history of a training: {error!r}") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged, it is no JSON: {error}") from None
