"""What an experiment consists of: methods, seeds and data, and one cell for each method and seed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from zerosum_ext._checks import require_positive_int
from zerosum_ext.data import datasets
from zerosum_ext.experiments.runs.settings import DataSource, Method, SplitRule, settings_of_0_1_0

Protocol = Literal["synthetic", "benchmark", "tuned"]
#: What a setting is chosen for: accuracy, or least bias among those that keep the accuracy of plain BPR.
Goal = Literal["accuracy", "balanced"]
Pairing = Literal["same user", "released"]
PAIRINGS: tuple[Pairing, ...] = ("same user", "released")

# Methods with options of inference alone: the loss they train with, and these options.
AT_INFERENCE = {"compensation": ("bpr", "alpha", "beta"), "macr": ("macr", "c")}


@dataclass(frozen=True)
class Tuning:
    """How the protocol "tuned" finds a method's setting.

    Attributes:
        rungs: numbers of epochs after which the better half of the settings goes on.
        finalists: the number of settings that train to their end.
        users: the most users that a setting is validated with.
    """

    rungs: tuple[int, ...] = (4, 12)
    finalists: int = 2
    users: int = 5000

    def __post_init__(self) -> None:
        if not isinstance(self.rungs, (list, tuple)):
            raise TypeError(f"rungs: expected a list of numbers of epochs, got {self.rungs!r}")
        rungs = tuple(require_positive_int("rungs", rung) for rung in self.rungs)
        if list(rungs) != sorted(set(rungs)):
            raise ValueError(f"rungs: expected ascending numbers of epochs, got {list(rungs)}")
        object.__setattr__(self, "rungs", rungs)
        for name in ("finalists", "users"):
            object.__setattr__(self, name, require_positive_int(name, getattr(self, name)))


@dataclass(frozen=True)
class Cell:
    """One method with one seed. With the protocol "tuned" the method is one of ``candidates``."""

    experiment: Experiment = field(repr=False)
    name: str
    method: Method
    pairing: Pairing = "same user"
    candidates: tuple[Method, ...] = ()
    goal: Goal = "accuracy"

    @property
    def stem(self) -> str:
        """The name of the cell's files, without a folder and an ending."""
        return f"{slug(self.name)}-seed{self.method.seed}"

    @property
    def digest(self) -> str:
        """A short name of all settings that the cell's figures follow from. Versions of software are not among them."""
        if self.experiment.protocol == "tuned":
            return self._digest(self.method, [settings_of_0_1_0(one) for one in self.candidates], self.goal)
        return self._digest(self.method)

    @property
    def trained_digest(self) -> str:
        """A short name of all settings that the trained model follows from, without those of inference."""
        loss, *inference = AT_INFERENCE.get(self.method.loss, (self.method.loss,))
        options = {name: value for name, value in self.method.loss_options.items() if name not in inference}
        return self._digest(replace(self.method, loss=loss, loss_options=options))

    def _digest(self, method: Method, *more: object) -> str:
        e = self.experiment
        # Results that are finished are recognised by their digest, so it is made as 0.1.0 made it.
        data, trained = settings_of_0_1_0(e.data), settings_of_0_1_0(method)
        settings: list[Any] = [e.protocol, e.leak, data, e.split_seed, trained, self.pairing]
        if e.split != SplitRule(ratios=(0.6, 0.2, 0.2), seed=e.split_seed):
            settings.append(settings_of_0_1_0(e.split))
        if more:
            settings += [*more, asdict(e.tuning)]
        return hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def slug(name: str) -> str:
    """Return what stands for a method's name in the names of its files."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


@dataclass(frozen=True)
class Experiment:
    """An experiment file, read and checked.

    Attributes:
        methods: name -> settings, with those of sweeps written out.
        families: name of a sweep -> its methods' names, in the order of the parameter's values.
        pairings: how the two positives of a sample are paired: "same user" or "released".
        published: name -> column -> figure.
        grids: name -> the settings to choose from, with the protocol "tuned".
        goals: name -> what they are chosen for.
        tuning: how.
        fewer_seeds: name -> the seeds of a method that has not all of the file's.

    The other attributes are as in the file.
    """

    name: str
    title: str
    protocol: Protocol
    columns: tuple[str, ...]
    data: DataSource
    split: SplitRule
    leak: bool | Literal["positives"]
    split_seed: int
    seeds: tuple[int, ...]
    methods: Mapping[str, Method]
    families: Mapping[str, tuple[str, ...]]
    pairings: Mapping[str, Pairing]
    published: Mapping[str, Mapping[str, float]]
    note: str
    grids: Mapping[str, tuple[Method, ...]] = field(default_factory=dict)
    goals: Mapping[str, Goal] = field(default_factory=dict)
    tuning: Tuning = Tuning()
    fewer_seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def missing_data(self) -> str:
        """Return what to say if the data are not there, or an empty string if they are."""
        if self.protocol == "synthetic":
            return ""
        try:
            datasets.find(self.data.source)
        except FileNotFoundError as error:
            return str(error)
        return ""

    def data_digest(self) -> str | None:
        """Return a short name of what the data's file holds, or None if the data are synthetic."""
        if self.protocol == "synthetic":
            return None
        digest = hashlib.blake2b(digest_size=8)
        with open(datasets.find(self.data.source), "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    @property
    def baseline(self) -> str | None:
        """The first method that is plain BPR."""
        return next((name for name, method in self.methods.items() if method.loss == "bpr"), None)

    def cells(self) -> list[Cell]:
        """Return the cells seed by seed, so that an interrupted run has whole comparisons."""
        return [
            Cell(self, name, replace(method, seed=seed), self.pairings[name], *self._choice(name, seed))
            for seed in self.seeds
            for name, method in self.methods.items()
            if seed in self.fewer_seeds.get(name, self.seeds)
        ]

    def _choice(self, name: str, seed: int) -> tuple[tuple[Method, ...], Goal]:
        """Return the settings that a cell chooses from, and what for."""
        return tuple(replace(one, seed=seed) for one in self.grids.get(name, ())), self.goals.get(name, "accuracy")

    @staticmethod
    def method_of(settings: Mapping[str, Any]) -> Method:
        """Return the method whose settings a record holds."""
        known = {one.name for one in fields(Method)}
        return Method(**{name: value for name, value in settings.items() if name in known})

    def epochs(self) -> tuple[str, ...]:
        """Return the epochs that figures are given of: "last", and "best" if there is a validation part."""
        if self.protocol == "tuned":
            return ("best",)
        return ("last",) if self.protocol == "synthetic" else ("last", "best")
