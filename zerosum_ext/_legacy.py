"""The names that version 0.1.0 used in its files and that have changed since.

Python itself takes the new names only. Whoever reads settings from a file calls :func:`todays_names` once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = ["HISTORY", "METHOD", "Renamed", "names_of_0_1_0", "todays_names"]


def _same(value: Any) -> Any:
    return value


class Renamed(NamedTuple):
    """What became of a name of 0.1.0.

    Attributes:
        name: today's name.
        read: from the value under the old name to today's.
        write: from today's value to that under the old name.
    """

    name: str
    read: Callable[[Any], Any] = _same
    write: Callable[[Any], Any] = _same


# Options of losses; no other loss has options of these names.
_LOSS_OPTIONS = {"t1": "positive_temperature", "t2": "negative_temperature"}


def _loss_options(options: Any) -> Any:
    if not isinstance(options, Mapping):
        return options  # the settings that it becomes a part of say what is wrong
    return {_LOSS_OPTIONS.get(name, name): value for name, value in options.items()}


def _loss_options_of_0_1_0(options: Mapping[str, Any]) -> dict[str, Any]:
    old = {now: before for before, now in _LOSS_OPTIONS.items()}
    return {old.get(name, name): value for name, value in options.items()}


#: Settings of a method: config.json of a run folder, and experiment files.
METHOD: Mapping[str, Renamed] = {
    "dim": Renamed("embedding_dim"),
    "loss_options": Renamed("loss_options", _loss_options, _loss_options_of_0_1_0),
    "keep": Renamed("restore_best", lambda keep: keep == "best", lambda best: "best" if best else "last"),
}
#: The history of a run: METHOD/history.json of a run folder, and checkpoints.
HISTORY: Mapping[str, Renamed] = {"path": Renamed("engine")}


def todays_names(values: Mapping[str, Any], renamed: Mapping[str, Renamed]) -> dict[str, Any]:
    """Return values from a file of any version, under today's names and in the same order."""
    result = {}
    for name, value in values.items():
        now = renamed.get(name, Renamed(name))
        result[now.name] = now.read(value)
    return result


def names_of_0_1_0(values: Mapping[str, Any], renamed: Mapping[str, Renamed]) -> dict[str, Any]:
    """Return values under the names that 0.1.0 wrote, in the same order."""
    old = {now.name: (name, now.write) for name, now in renamed.items()}
    result = {}
    for name, value in values.items():
        before, write = old.get(name, (name, _same))
        result[before] = write(value)
    return result
