"""The settings of a run: where the interactions come from, how they are split, and what is trained on them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from zerosum_ext import _legacy, models
from zerosum_ext._checks import (
    MOST_DIM,
    describe,
    require_choice,
    require_device,
    require_finite_number,
    require_positive_int,
)
from zerosum_ext.data import datasets
from zerosum_ext.data.interactions import Interactions, Split
from zerosum_ext.data.sampling import shared_samples
from zerosum_ext.training import parse_metric, require_bias
from zerosum_ext.training.optimizers import OPTIMIZERS, make_optimizer

# A larger value of these is better, so training may keep the best epoch by them.
_ACCURACY = ("hr", "recall", "precision", "ndcg", "mrr", "map", "auc", "pairwise_accuracy")


def _matrix_factorization(train: Interactions, embedding_dim: int, seed: int, **options: Any) -> nn.Module:
    return models.MatrixFactorization(train.num_users, train.num_items, embedding_dim, seed=seed, **options)


def _backbone(name: str, train: Interactions, embedding_dim: int, seed: int, **options: Any) -> nn.Module:
    return models.get_model(name, train, embedding_dim=embedding_dim, seed=seed, **options)


#: Models by name. Each is a function of (train, embedding_dim, seed, **options). It returns a module that is called as
#: ``model(users [B], items [B, J])`` and has ``score_all_items(users)`` and ``recommend(users, k, exclude)``.
#: Add a line here to train another model in runs.
MODELS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(_backbone, name) for name in models.model_names()},
    "mf": _matrix_factorization,
}


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
    format: str | None = None

    def read(self) -> Interactions:
        """Read the interactions. Errors are those of ``Interactions.from_file``."""
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("source", "min_item_count")}
        data = Interactions.from_file(datasets.find(self.source), **options)
        return data.filter_items(self.min_item_count) if self.min_item_count > 0 else data


@dataclass(frozen=True)
class SplitRule:
    """How interactions are divided into train, validation and test.

    Attributes:
        kind: "random"; "balanced" (items are equally frequent in validation and test); "last" (each user's latest
            interactions are held out); "time" (at the same moments for all users); "column" (as a column says).
        ratios: the shares of (train, validation, test), for "random", "balanced" and "time".
        seed: of "random" and "balanced".
        count: of "last": so many interactions of each user are for test, and as many before them for validation.
        column: the name of the column, for "column".
        values: its values for (train, validation, test).
    """

    kind: Literal["random", "balanced", "last", "time", "column"] = "random"
    ratios: tuple[float, ...] = (0.8, 0.1, 0.1)
    seed: int = 0
    count: int = 1
    column: str = "split"
    values: tuple[Any, Any, Any] = (0, 2, 1)

    def __str__(self) -> str:
        """Return in some words what is held out."""
        return {
            "random": f"at random, seed {self.seed}",
            "balanced": f"at random, items equally frequent in test, seed {self.seed}",
            "last": f"each user's last {self.count} for test",
            "time": "by time, at the same moments for all users",
            "column": f"as column {self.column} says",
        }[self.kind]

    def apply(self, data: Interactions) -> Split:
        """Split the interactions.

        Raises:
            ValueError: nothing is left to train on or to test with.
        """
        require_choice("split", self.kind, ("random", "balanced", "last", "time", "column"))
        if self.kind == "random":
            split = data.split_random(self.ratios, seed=self.seed)
        elif self.kind == "balanced":
            split = data.split_balanced(self.ratios, seed=self.seed)
        elif self.kind == "last":
            split = data.split_last(test=self.count, valid=self.count)
        elif self.kind == "time":
            split = data.split_time(self.ratios)
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


# The largest value of each integer of a method.
_MOST = {
    "embedding_dim": MOST_DIM,
    "epochs": 2**31,
    "batch_size": 2**31,
    "negatives": 65536,
    "draws": 65536,
    "patience": 2**31,
    "seed": 2**64 - 1,
}


@dataclass(frozen=True)
class Method:
    """A model, a loss and how it is trained: all that decides the outcome on given interactions.

    Attributes:
        loss: the name of a loss or of another method, as in :func:`zerosum_ext.get_method`. Popularities are those of
            the training part.
        weight: w of the losses that have one ([RCS22], convex: w times BPR, 1 - w times the regularizer).
        loss_options: further options of the loss or method. The c of "macr", unless given, is chosen on the validation
            part.
        model: a name of :data:`MODELS`.
        model_options: what its function takes beside embedding_dim and seed.
        embedding_dim: width of the embeddings.
        optimizer: a name of :data:`OPTIMIZERS`.
        lr: its learning rate.
        weight_decay: its weight decay.
        l2, epochs, batch_size, negatives, draws, strategy, metric, patience, negatives_shared: as in
            :func:`zerosum_ext.training.fit`.
        restore_best: keep the weights of the best validation epoch, not those of the last. Without a validation part,
            the last are kept.
        bias: a measure of bias to choose the best epoch by, as in :func:`zerosum_ext.training.fit`. None chooses by
            ``metric`` alone.
        max_cost: the share of the best ``metric`` that an epoch chosen by ``bias`` may lose.
        seed: of the initial weights and of the samples.
        device: where to train.
    """

    loss: str = "zerosum"
    weight: float | None = None
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    model: str = "mf"
    model_options: Mapping[str, Any] = field(default_factory=dict)
    embedding_dim: int = 64
    optimizer: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    l2: float = 0.0
    epochs: int = 100
    batch_size: int = 1024
    negatives: int = 1
    draws: int = 1
    strategy: Literal["uniform", "popularity"] = "uniform"
    metric: str = "ndcg@10"
    patience: int | None = 10
    restore_best: bool = True
    bias: str | None = None
    max_cost: float = 0.05
    seed: int = 0
    device: str = "cpu"
    negatives_shared: int = 0

    def __post_init__(self) -> None:
        require_choice("loss", self.loss, models.method_names())
        require_choice("model", self.model, list(MODELS))
        require_choice("optimizer", self.optimizer, list(OPTIMIZERS))
        require_choice("strategy", self.strategy, ("uniform", "popularity"))
        self._check_numbers()
        self._check_loss_options()
        if not isinstance(self.metric, str) or self.metric.partition("@")[0] not in _ACCURACY:
            raise ValueError(
                f"metric: expected one of {', '.join(_ACCURACY)} to keep the best epoch by, got {self.metric!r}"
            )
        parse_metric(self.metric)
        if self.bias is not None:
            require_bias("bias", self.bias)
        require_device("device", self.device)

    def _check_numbers(self) -> None:
        # NumPy's integers and fractions become plain ones, which JSON can hold.
        for name, most in _MOST.items():
            value = getattr(self, name)
            if value is not None or name != "patience":
                least = 0 if name == "seed" else 1
                object.__setattr__(self, name, require_positive_int(name, value, minimum=least, maximum=most))
        object.__setattr__(self, "negatives_shared", shared_samples(self.negatives_shared))
        for name in ("lr", "weight_decay", "l2", "max_cost"):
            object.__setattr__(self, name, require_finite_number(name, getattr(self, name), minimum=0))
        if self.max_cost >= 1:
            raise ValueError(f"max_cost: expected a share in [0, 1), got {self.max_cost}")
        if not isinstance(self.restore_best, bool):
            raise TypeError(f"restore_best: expected True or False, got {describe(self.restore_best)}")
        if self.optimizer == "sparse_adam" and self.weight_decay:
            raise ValueError(f"weight_decay: expected 0 with optimizer 'sparse_adam', got {self.weight_decay}")

    def _check_loss_options(self) -> None:
        for name in ("loss_options", "model_options"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name}: expected a mapping of names to values, got {describe(getattr(self, name))}")
        known = models.method_options(self.loss)
        for option in self.loss_options:
            if option not in known:
                raise ValueError(
                    f"loss_options: expected those of {self.loss!r}, {', '.join(known) or 'none'}, got {option!r}"
                )
        if self.weight is None:
            return
        require_finite_number("w", self.weight, minimum=0, maximum=1)
        if "w" not in known:
            raise ValueError(f"weight: expected none for loss {self.loss!r}, which has no w, got {self.weight}")
        if "w" in self.loss_options:
            raise ValueError(f"loss_options: expected no w beside weight={self.weight}, got {self.loss_options['w']!r}")

    def make_parts(self, train: Interactions) -> models.MethodParts:
        """Return the model to train, its loss, regularizer and inference. Popularities are those of ``train``."""
        options = dict(self.loss_options)
        if self.weight is not None:
            options["w"] = self.weight
        model: Any = self.make_model(train)
        try:
            return models.get_method(self.loss, model, train, **options)
        except TypeError as error:
            raise ValueError(f"loss_options: {error}") from error

    def make_loss(self, train: Interactions) -> nn.Module | None:
        """Return the loss module alone; None where there is nothing to train."""
        return self.make_parts(train).loss

    def make_model(self, train: Interactions) -> nn.Module:
        """Return the model with its initial weights, before a method wraps it."""
        factory = MODELS[self.model]
        known = inspect.signature(factory).parameters
        try:
            return factory(train, embedding_dim=self.embedding_dim, seed=self.seed, **self.model_options)
        except TypeError as error:
            raise ValueError(f"model_options: {self.model!r} takes {', '.join(known)}: {error}") from None

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer over the parameters."""
        options: dict[str, Any] = {"lr": self.lr}
        if self.weight_decay:
            options["weight_decay"] = self.weight_decay
        return make_optimizer(OPTIMIZERS[self.optimizer], parameters, **options)

    def plain_bpr(self) -> Method:
        """Return the same settings with BPR as the loss, to compare with. Its best epoch is that of the metric."""
        return replace(self, loss="bpr", weight=None, loss_options={}, bias=None)


# Options that 0.1.0 did not have, by the class that has them now.
_NEW: dict[type, frozenset[str]] = {
    DataSource: frozenset({"format"}),
    SplitRule: frozenset(),
    Method: frozenset({"bias", "max_cost", "negatives_shared"}),
}


def todays_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's settings, read from a file of any version, with the option names of today."""
    return _legacy.todays_names(settings, _legacy.METHOD)


def new_options(kind: type[DataSource] | type[SplitRule] | type[Method]) -> dict[str, Any]:
    """Return the options that 0.1.0 did not have, with the values that mean what it did."""
    return {one.name: one.default for one in fields(kind) if one.name in _NEW[kind]}


def settings_of_0_1_0(settings: DataSource | SplitRule | Method) -> dict[str, Any]:
    """Return settings with the option names of 0.1.0. Finished results are recognised by these.

    Options that 0.1.0 did not have are left out as long as they have their default value.
    """
    new = _NEW[type(settings)]
    values = {
        one.name: getattr(settings, one.name)
        for one in fields(settings)
        if one.name not in new or getattr(settings, one.name) != one.default
    }
    return _legacy.names_of_0_1_0(values, _legacy.METHOD)
