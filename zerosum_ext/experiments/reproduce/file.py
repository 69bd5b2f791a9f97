"""Experiment files: TOML, read and checked."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from zerosum_ext._checks import describe, require_choice, require_finite_number, require_positive_int
from zerosum_ext._files import read_text
from zerosum_ext.evaluation import AT_K_METRICS, METRICS, WEIGHTED_METRICS
from zerosum_ext.experiments.reproduce.experiment import PAIRINGS, Experiment, Goal, Pairing, Tuning, slug
from zerosum_ext.experiments.runs.settings import DataSource, Method, SplitRule, todays_names
from zerosum_ext.models import trained_directly

#: Cut-offs of the metrics over all items.
CUTOFFS = (10, 20)

# The tables and values of a file, and those that must be there.
_KNOWN = frozenset(
    (
        "title",
        "protocol",
        "methods",
        "data",
        "columns",
        "split",
        "leak",
        "split_seed",
        "seeds",
        "note",
        "settings",
        "tuning",
    )
)
_NEEDED = frozenset(("title", "protocol", "methods", "data"))

Settings = TypeVar("Settings", DataSource, SplitRule, Method, Tuning)


def read_experiment(path: str | Path) -> Experiment:
    """Read an experiment file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: what is wrong in it. The message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such experiment file")
    try:
        return _experiment(path.stem, _read_toml(path))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def columns_of(protocol: str) -> list[str]:
    """Return the figures that a protocol yields."""
    if protocol == "synthetic":
        return ["error", "pri", "pop_q_at_1", "upo", "c"]
    if protocol == "tuned":
        cut = [f"{name}@{k}" for name in (*AT_K_METRICS, *WEIGHTED_METRICS) for k in CUTOFFS]
        return [*cut, *METRICS[len(AT_K_METRICS) :]]
    cut = [f"{name}@{k}" for name in AT_K_METRICS for k in CUTOFFS]
    over_all = ("hr@10", "ndcg@10")
    plain = [name for name in (*cut, *METRICS) if name not in (*over_all, *AT_K_METRICS)]
    return ["hit@10", "ndcg@10", *(f"full/{name}" for name in over_all), *plain, "c"]


def _experiment(name: str, values: Mapping[str, Any]) -> Experiment:
    unknown, missing = sorted(set(values) - _KNOWN), sorted(_NEEDED - set(values))
    if unknown or missing:
        raise ValueError(f"unknown: {', '.join(unknown) or 'none'}; missing: {', '.join(missing) or 'none'}")
    protocol = require_choice("protocol", values["protocol"], ("synthetic", "benchmark", "tuned"))
    entries = _entries(values["methods"], _table("settings", values.get("settings", {})), protocol == "tuned")
    seeds = _seeds(values.get("seeds", [0]))
    if "tuning" in values and protocol != "tuned":
        raise ValueError(f"tuning: expected none with the protocol {protocol!r}")
    split_seed = require_positive_int("split_seed", values.get("split_seed", 0), minimum=0)
    split = {"ratios": (0.6, 0.2, 0.2), "seed": split_seed, **_table("split", values.get("split", {}))}
    data = _made(DataSource, "data", _table("data", values["data"]))
    if not isinstance(data.source, str):
        raise TypeError(f"data: source: expected a text, got {describe(data.source)}")
    return Experiment(
        name=name,
        title=_text("title", values["title"]),
        protocol=protocol,  # type: ignore[arg-type]
        columns=_columns(values, protocol),
        data=data,
        split=_made(SplitRule, "split", split),
        leak=_leak(values.get("leak", False)),
        split_seed=split_seed,
        seeds=seeds,
        fewer_seeds={entry.name: _of_these(entry, seeds) for entry in entries if entry.seeds},
        methods={name: method for entry in entries for name, method in entry.methods.items()},
        families={entry.name: tuple(entry.methods) for entry in entries if entry.swept},
        pairings={name: entry.pairing for entry in entries for name in entry.methods},
        published={name: entry.published for entry in entries for name in entry.methods},
        note=_text("note", values.get("note", "")),
        grids={name: entry.grid for entry in entries for name in entry.methods if entry.grid},
        goals={name: entry.goal for entry in entries for name in entry.methods if entry.grid},
        tuning=_made(Tuning, "tuning", _table("tuning", values.get("tuning", {}))),
    )


# ---- the methods


class _Entry(NamedTuple):
    """One table [[methods]]: one method, or one for each value of its sweep, or one with a grid to choose from."""

    name: str
    methods: dict[str, Method]
    swept: bool
    pairing: Pairing
    published: Mapping[str, float]
    grid: tuple[Method, ...] = ()
    goal: Goal = "accuracy"
    seeds: tuple[int, ...] = ()


def _entries(tables: Any, common: Mapping[str, Any], tuned: bool) -> list[_Entry]:
    if not isinstance(tables, list) or not tables:
        raise ValueError(f"methods: expected tables [[methods]], got {describe(tables)}")
    known: dict[str, str] = {}
    entries = []
    for number, table in enumerate(tables, 1):
        named = isinstance(table, dict) and isinstance(table.get("name"), str)
        try:
            whole: dict[str, Any] = {} if tuned else {"patience": None, "restore_best": False}
            entry = _entry(table, {**whole, **todays_names(common)}, tuned)
            twice = sorted(set(entry.methods) & set(known.values()))
            if twice:
                raise ValueError(f"name: expected one that is not in the file yet, got {twice[0]!r}")
        except (TypeError, ValueError) as error:
            raise ValueError(f"method {repr(table['name']) if named else number}: {error}") from None
        _check_slugs(entry.methods, known)
        entries.append(entry)
    return entries


def _entry(table: Any, common: Mapping[str, Any], tuned: bool) -> _Entry:
    name = _table("methods", table).get("name")
    if not isinstance(name, str):
        raise TypeError(f"name: expected a text, got {describe(name)}")
    options = ("grid", "goal", "seeds") if tuned else ("published", "sweep", "pairing")
    unknown = sorted(set(table) - {"name", "settings", *options})
    if unknown:
        raise ValueError(f"expected name, settings, {', '.join(options)}, got {unknown[0]!r}")
    settings = {**common, **todays_names(_table("settings", table.get("settings")))}
    if tuned:
        return _tuned_entry(name, table, settings)
    if "sweep" in table:
        methods = _sweep(name, settings, _table("sweep", table["sweep"]))
    else:
        methods = {name: _made(Method, "settings", settings)}
    pairing = require_choice("pairing", table.get("pairing", PAIRINGS[0]), PAIRINGS)
    if pairing == "released" and any(method.loss != "pos2neg2" for method in methods.values()):
        raise ValueError("pairing: expected 'released' with loss 'pos2neg2' alone")
    published = _table("published", table.get("published", {}))
    for column, value in published.items():
        require_finite_number(f"published {column!r}", value)
    for method in methods.values():
        if trained_directly(method.loss):
            raise ValueError(f"loss: expected one to train with, except in the protocol 'tuned', got {method.loss!r}")
    return _Entry(name, methods, "sweep" in table, pairing, published)  # type: ignore[arg-type]


def _tuned_entry(name: str, table: Mapping[str, Any], settings: Mapping[str, Any]) -> _Entry:
    """Return a method with the settings to choose from. The options of a loss or a model join those in common."""
    goal = require_choice("goal", table.get("goal", "accuracy"), ("accuracy", "balanced"))
    grid = []
    for number, given in enumerate(_list("grid", table.get("grid", [{}])), 1):
        one = todays_names(_table(f"grid {number}", given))
        for group in ("loss_options", "model_options"):
            if group in one:
                one[group] = {**_table(group, settings.get(group, {})), **_table(group, one[group])}
        grid.append(_made(Method, f"grid {number}", {**settings, **one}))
    seeds = _seeds(table["seeds"]) if "seeds" in table else ()
    return _Entry(name, {name: grid[0]}, False, PAIRINGS[0], {}, tuple(grid), goal, seeds)  # type: ignore[arg-type]


def _sweep(name: str, settings: Mapping[str, Any], sweep: Mapping[str, Any]) -> dict[str, Method]:
    """Return one method for each value of the parameter that is swept."""
    if len(sweep) != 1:
        raise ValueError(f"sweep: expected one parameter with its values, got {len(sweep)}")
    ((parameter, values),) = sweep.items()
    group, dot, option = parameter.rpartition(".")
    made: dict[str, Method] = {}
    for value in _list(f"sweep: {parameter}", values):
        one = (
            {group: {**_table(group, settings.get(group, {})), option: value}} if dot else todays_names({option: value})
        )
        short = "w" if option == "weight" and not dot else option
        text = f"{value:g}" if isinstance(value, (int, float)) else str(value)
        strength = f"{name} {short}={text}"
        if strength in made:
            raise ValueError(f"sweep: {parameter}: expected values of names that differ, got {strength!r} twice")
        made[strength] = _made(Method, "settings", {**settings, **one})
    return made


def _check_slugs(methods: Iterable[str], known: dict[str, str]) -> None:
    """Note the names of the methods' files. Two methods with one name would take each other's place for ever."""
    for name in methods:
        short = slug(name)
        if not short:
            raise ValueError(f"method {name!r}: expected a name with a letter a to z or a digit, for its files")
        if short in known:
            raise ValueError(
                f"methods {known[short]!r} and {name!r}: expected names that differ in more than case, signs "
                f"and letters beyond a to z, got {short}-seedN for both"
            )
        known[short] = name


# ---- single values


def _made(kind: type[Settings], where: str, table: Mapping[str, Any]) -> Settings:
    """Make settings from a table of the file, which must hold their options alone."""
    known = {one.name: one for one in fields(kind)}
    for name in table:
        if name not in known:
            raise ValueError(f"{where}: expected {', '.join(known)}, got {name!r}")
    for name, one in known.items():
        if one.default is MISSING and one.default_factory is MISSING and name not in table:
            raise ValueError(f"{where}: expected {name}, which is missing")
    return kind(**table)


def _columns(values: Mapping[str, Any], protocol: str) -> tuple[str, ...]:
    columns = _list("columns", values.get("columns", ["pri", "pop_q_at_1"]))
    return tuple(require_choice("columns", column, columns_of(protocol)) for column in columns)


def _leak(value: Any) -> Any:
    if value not in (True, False, "positives"):
        raise ValueError(f"leak: expected true, false or 'positives', got {value!r}")
    return value


def _seeds(value: Any) -> tuple[int, ...]:
    seeds = [require_positive_int("seeds", seed, minimum=0) for seed in _list("seeds", value)]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: expected each once, got {seeds}")
    return tuple(seeds)


def _of_these(entry: _Entry, seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Return the seeds of a method that has fewer than the file. The first one tunes, so each method has it."""
    if seeds[0] not in entry.seeds or not set(entry.seeds) <= set(seeds):
        raise ValueError(
            f"method {entry.name!r}: seeds: expected {seeds[0]} and others of the file's {list(seeds)}, "
            f"got {list(entry.seeds)}"
        )
    return entry.seeds


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a text, got {describe(value)}")
    return value


def _table(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected a table, got {describe(value)}")
    return value


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name}: expected a list of at least one value, got {describe(value)}")
    return value


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return dict(tomllib.loads(read_text(path)))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a TOML file: {error}") from None
