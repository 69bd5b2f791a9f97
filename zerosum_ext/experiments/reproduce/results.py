"""The results of an experiment: one file, a line of JSON for each finished cell.

Lines are appended. The last line of a cell counts, so a cell that is run again, with other settings or data, takes the
place of what was there. A line that has no end was cut off by an interruption: it is left out when the file is read,
and removed before the next line is appended.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zerosum_ext._legacy import HISTORY, todays_names
from zerosum_ext.experiments.reproduce.experiment import Cell, Experiment
from zerosum_ext.experiments.reproduce.file import read_experiment

# What a line must hold to be a result.
_NEEDED = frozenset(("method", "seed", "digest", "metrics", "history", "trained_here"))


@dataclass(frozen=True)
class Results:
    """What is finished of an experiment: for each method its cells' records, in order of seed."""

    experiment: Experiment
    records: Mapping[str, Sequence[Mapping[str, Any]]]

    def values(self, name: str, column: str, epoch: str = "last") -> np.ndarray:
        """Return a figure of a method over its seeds. ``epoch`` is "last" or "best"."""
        return np.array([r["metrics"].get(epoch, {}).get(column, np.nan) for r in self.records[name]], np.float64)


def load(path: str | Path, output: str | Path) -> Results:
    """Return what is finished of the experiment file at ``path``, from the results in ``output``."""
    experiment = read_experiment(path)
    return finished(experiment, output, None)


def results_file(experiment: Experiment, output: str | Path) -> Path:
    """Return the file of an experiment's results."""
    return Path(output) / f"{experiment.name}.jsonl"


def scores_file(cell: Cell, output: str | Path) -> Path:
    """Return the file of a cell's scores. Only cells of synthetic data have one."""
    return Path(output) / cell.experiment.name / f"{cell.stem}.npz"


def finished(experiment: Experiment, output: str | Path, data: str | None) -> Results:
    """Return what is finished of an experiment.

    Args:
        experiment: its cells are recognised by the digest of their settings.
        output: the folder of the results.
        data: the digest of the data's file. Results of other data are left out. None: any data.
    """
    found = _read(results_file(experiment, output))
    records: dict[str, list[Mapping[str, Any]]] = {name: [] for name in experiment.methods}
    for cell in experiment.cells():
        record = found.get((cell.name, cell.method.seed))
        if record is None or record["digest"] != cell.digest:
            continue
        if data is None or record.get("data") in (None, data):
            records[cell.name].append(record)
    return Results(experiment, records)


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Append one result to the file, and wait until it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another process may run other cells of the experiment
        _remove_torn_end(file)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _remove_torn_end(file: Any) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    whole = file.read().rfind(b"\n") + 1
    if whole < size:
        file.truncate(whole)
    file.seek(0, os.SEEK_END)


def _read(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the last result of each (method, seed)."""
    if not path.is_file():
        return {}
    found = {}
    *lines, _torn = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not set(record) >= _NEEDED or not isinstance(record["history"], dict):
            raise ValueError(
                f"{path}, line {number}, is damaged: it is no result of a run. Delete it, and the cell is run again"
            )
        record["history"] = todays_names(record["history"], HISTORY)
        found[record["method"], record["seed"]] = record
    return found
