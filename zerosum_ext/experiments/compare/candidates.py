"""The candidates of a comparison: families of methods with small grids of settings.

A family of a later version stays in the table and is told as not available, so that nothing is left out in silence.

These grids are for data that nobody has seen yet: few settings, all methods. The grids of benchmarks/paper/tuned-*.toml
are another thing, the record of what a published table was tuned over, one for each data set. A change here must not
change those, so that neither is made from the other.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from zerosum_ext import models
from zerosum_ext.experiments.runs import Method

__all__ = ["Candidate", "Family", "Kind", "candidates", "families"]

#: "trained" methods can be chosen. "post" changes finished scores of BPR, "yardstick" shows what accuracy others reach.
Kind = Literal["trained", "post", "yardstick"]

_K = 32  # negatives of softmax losses
_TEMPERATURES = (0.1, 0.2)


@dataclass(frozen=True)
class Family:
    """Settings of one method.

    Attributes:
        loss: the name of the method, as in :func:`zerosum_ext.get_method`.
        grid: fields of :class:`zerosum_ext.runs.Method` that differ from the common ones, one mapping for each setting.
        kind: whether it can be chosen.
        pace: the share of the epochs that it gets. Losses with many negatives need fewer.
    """

    loss: str
    grid: tuple[Mapping[str, Any], ...] = ({},)
    kind: Kind = "trained"
    pace: float = 1.0


def _options(name: str, values: Sequence[Any], **fixed: Any) -> tuple[dict[str, Any], ...]:
    return tuple({"loss_options": {name: value, **fixed}} for value in values)


def _softmax(strategies: Sequence[str] = ("uniform", "popularity"), **options: Any) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"loss_options": {"temperature": t, **options}, "negatives": _K, "strategy": strategy}
        for strategy in strategies
        for t in _TEMPERATURES
    )


_WEIGHTS = tuple({"weight": w} for w in (0.98, 0.95, 0.9, 0.8))

_FAMILIES: dict[str, Family] = {
    "most_popular": Family("popular", kind="yardstick"),
    "bpr": Family("bpr"),
    "zerosum": Family("zerosum", _WEIGHTS),
    "pos2neg2": Family("pos2neg2", _WEIGHTS),
    "softmax": Family("sampled_softmax", _softmax(), pace=1 / 3),
    "popularity_softmax": Family(
        "popularity_softmax",
        tuple(
            {"loss_options": {"temperature": t, "alpha": a}, "negatives": _K}
            for t in _TEMPERATURES
            for a in (0.25, 0.5, 1.0)
        ),
        pace=1 / 3,
    ),
    "refined_softmax": Family(
        "refined_softmax",
        tuple({"loss_options": {"temperature": t, "exponent": 0.0}, "negatives": _K} for t in _TEMPERATURES),
        pace=1 / 3,
    ),
    "cosine_softmax": Family(
        "sampled_softmax",
        tuple({**one, "model_options": {"normalize": True}} for one in _softmax(("uniform",))),
        pace=1 / 3,
    ),
    "bsl": Family(
        "bsl",
        tuple(
            {"loss_options": {"positive_temperature": p, "negative_temperature": n}, "negatives": _K}
            for p, n in ((0.2, 0.1), (0.2, 0.2))
        ),
        pace=1 / 3,
    ),
    "psl": Family("psl", tuple({**one, "negatives": _K} for one in _options("temperature", (0.2, 0.5))), pace=1 / 3),
    "ccl": Family("ccl", ({"loss_options": {"margin": 0.5, "weight": 1.0}, "negatives": _K},), pace=1 / 3),
    "hardest": Family("hardest", ({"negatives": 4}, {"negatives": 8}), pace=2 / 3),
    "ipw": Family("ipw", _options("clip", (10.0,))),
    "pd": Family("pd", _options("gamma", (0.1, 0.25))),
    "pda": Family("pda", _options("gamma", (0.1,))),
    "macr": Family("macr"),
    "pearson": Family("pearson", _options("weight", (1.0, 5.0), every=20)),
    "compensation": Family("compensation", _options("alpha", (0.1, 0.3, 1.0)), kind="post"),
    "ease": Family("ease", _options("l2", (200.0, 500.0, 1000.0)), kind="yardstick"),
    "ials": Family("ials", _options("l2", (0.003, 0.01)), kind="yardstick"),
}

# EASE inverts a dense matrix of all items.
_MOST_ITEMS = {"ease": 20_000}


@dataclass(frozen=True)
class Candidate:
    """One setting of a family.

    Attributes:
        name: its name, which is also that of its folder.
        family: the family's name.
        kind: whether it can be chosen.
        method: the settings, with the largest number of epochs that it may get.
    """

    name: str
    family: str
    kind: Kind
    method: Method


def families() -> list[str]:
    """Return the names of all families, those included that this version has no method for."""
    return list(_FAMILIES)


def _missing(family: Family, name: str, num_items: int, model: str) -> str:
    """Return why a family cannot be tried, or an empty text."""
    if name == "most_popular":
        return ""
    if family.loss not in models.method_names():
        return "this version has no such method"
    if any("normalize" in setting.get("model_options", {}) for setting in family.grid):
        if model != "mf":
            return f"cosines are an option of the model mf, got {model}"
        if "normalize" not in inspect.signature(models.MatrixFactorization).parameters:
            return "this version's matrix factorization has no cosines"
    most = _MOST_ITEMS.get(name)
    if most is not None and num_items > most:
        return f"it takes at most {most:,} items, there are {num_items:,}"
    return ""


def candidates(
    wanted: Sequence[str] | None, common: Mapping[str, Any], epochs: int, num_items: int
) -> tuple[list[Candidate], dict[str, str]]:
    """Return the candidates, BPR first, and the families that are left out with the reason.

    Args:
        wanted: names of families; None for all. BPR, which all are compared with, is always among them.
        common: settings that all share.
        epochs: the largest number of epochs.
        num_items: how many items there are.
    """
    names = families() if wanted is None else list(dict.fromkeys(["bpr", *wanted]))
    found: list[Candidate] = []
    left_out: dict[str, str] = {}
    for name in sorted(names, key=lambda one: one != "bpr"):
        family = _FAMILIES[name]
        reason = _missing(family, name, num_items, common.get("model", "mf"))
        if reason:
            left_out[name] = reason
        elif name != "most_popular":  # which needs no training, and is always measured
            found += [_candidate(name, family, setting, common, epochs) for setting in family.grid]
    return found, left_out


def _candidate(
    name: str, family: Family, setting: Mapping[str, Any], common: Mapping[str, Any], epochs: int
) -> Candidate:
    method = Method(**{**common, "loss": family.loss, "epochs": max(1, round(epochs * family.pace)), **setting})
    return Candidate("-".join([name, *describe(setting)]), name, family.kind, method)


_SHORT = {"weight": "w", "negatives": "k", "temperature": "t"}
_SHORT |= {"positive_temperature": "tp", "negative_temperature": "tn"}


def describe(setting: Mapping[str, Any]) -> list[str]:
    """Return what a setting differs in, as parts of a name: letters, numbers and = alone."""
    parts = []
    for key, value in setting.items():
        if key == "loss_options":
            parts += [f"{_SHORT.get(option, option)}{_plain(v)}" for option, v in value.items()]
        elif key == "strategy":
            parts += ["pop"] if value == "popularity" else []
        elif key != "model_options":
            parts.append(f"{_SHORT.get(key, key)}{_plain(value)}")
        else:
            parts += [option for option, v in value.items() if v is True]
    return parts


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
