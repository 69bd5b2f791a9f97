"""Run the cells of an experiment that are not finished, in one process or several."""

from __future__ import annotations

import contextlib
import datetime
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from zerosum_ext._checks import require_positive_int
from zerosum_ext._files import replacing
from zerosum_ext.experiments.processes import Workers
from zerosum_ext.experiments.reproduce import results
from zerosum_ext.experiments.reproduce.experiment import Cell
from zerosum_ext.experiments.reproduce.file import read_experiment
from zerosum_ext.experiments.reproduce.protocols import run_cell, tuned_data
from zerosum_ext.experiments.reproduce.tuned import run_tuned
from zerosum_ext.experiments.runs import environment


def run(
    path: str | Path,
    output: str | Path,
    *,
    jobs: int = 1,
    progress: bool | None = None,
    only: str | None = None,
    seeds: Sequence[int] | None = None,
) -> results.Results:
    """Run the cells of an experiment that are not finished yet.

    Args:
        path: the experiment file.
        output: the folder of the results. The experiment's file in it is named after the experiment file.
        jobs: the number of processes at once, each with one thread.
        progress: show a progress bar. None: on a terminal.
        only: run only methods whose name contains this. All finished cells are returned.
        seeds: run only these of the file's seeds.

    Returns:
        What is finished.

    Raises:
        ValueError, OSError: a bad file, data that are not there, training that diverged, or a process that died.
        KeyboardInterrupt: finished cells are kept. With several jobs those under way end at once.
    """
    from tqdm import tqdm

    experiment = read_experiment(path)
    require_positive_int("jobs", jobs)
    output = Path(output)
    data = None if experiment.missing_data() else experiment.data_digest()
    done = results.finished(experiment, output, data)
    known = {(name, record["seed"]) for name, records in done.records.items() for record in records}
    open_cells = [
        cell
        for cell in experiment.cells()
        if (only is None or only in cell.name)
        and (seeds is None or cell.method.seed in seeds)
        and (cell.name, cell.method.seed) not in known
    ]
    bar = tqdm(
        total=len(open_cells), desc=experiment.name, unit="run", disable=None if progress is None else not progress
    )
    with bar, Workers(jobs) as workers:
        workers.run(_run_and_write, [(cell, output) for cell in open_cells], lambda place, _: bar.update())
    return results.finished(experiment, output, data)


def _run_and_write(cell: Cell, output: Path) -> None:
    start, start_cpu = time.perf_counter(), time.process_time()
    _forget_peak_memory()
    data = cell.experiment.data_digest()
    found, arrays = _tuned(cell, output, data) if cell.experiment.protocol == "tuned" else _measured(cell, data)
    record = {
        "experiment": cell.experiment.name,
        "method": cell.name,
        "seed": cell.method.seed,
        "digest": cell.digest,
        "data": data,
        **found,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - start_cpu,
        "peak_memory_mb": _peak_memory_mb(),
        "date": datetime.date.today().isoformat(),
        **environment(),
    }
    if arrays:
        file = results.scores_file(cell, output)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part, open(part, "wb") as opened:
            np.savez_compressed(opened, **arrays)  # type: ignore[arg-type]
    results.append(results.results_file(cell.experiment, output), record)


def _measured(cell: Cell, data: str | None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Run a cell; return what its record says of it, and arrays for a file of their own."""
    measured = run_cell(cell, data)
    found = {
        "settings": {**asdict(cell.method), "pairing": cell.pairing},
        "metrics": measured.metrics,
        "history": measured.history,
        "trained_here": measured.trained_here,
    }
    if measured.scores is None or cell.method.seed != cell.experiment.seeds[0]:
        return found, {}
    return found, {"scores": measured.scores.astype(np.float16)}


def _tuned(cell: Cell, output: Path, data: str | None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Do the same with the protocol "tuned", where later seeds take the setting that the first one chose."""
    known = results.finished(cell.experiment, output, data).records
    first = {
        name: record
        for name, records in known.items()
        for record in records
        if record["seed"] == cell.experiment.seeds[0]
    }
    tuned = run_tuned(cell, tuned_data(cell.experiment, data), first)
    found = {
        "settings": asdict(tuned.method),
        "metrics": tuned.metrics,
        "validation": tuned.validation,
        "trials": tuned.trials,
        "history": tuned.history,
        "trained_here": True,
    }
    return found, tuned.users


def _forget_peak_memory() -> None:
    """Measure the peak anew from here on, if the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_mb() -> float:
    """Return the largest resident memory since then, or that of the whole process if the system says no more."""
    try:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
