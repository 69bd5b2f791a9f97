"""Published experiments from declarative files: methods x seeds, resumable, rendered beside the published figures.

    results = run("benchmarks/paper/synthetic.toml", "benchmarks/paper/results")
    text = report(results)

A file names the data, the protocol, the settings common to all methods, and the methods with their published figures::

    title = "MovieLens-1M, matrix factorization"
    protocol = "benchmark"                  # or "synthetic"
    seeds = [0, 1, 2]
    columns = ["hit@10", "ndcg@10", "pri", "pop_q_at_1"]
    data = {source = "ml-1m", min_item_count = 10}
    settings = {epochs = 20, batch_size = 2048, draws = 3}    # of zerosum_ext.experiments.runs.Method

    [[methods]]
    name = "Zerosum w=.9"
    settings = {loss = "zerosum", weight = 0.9}
    published = {"hit@10" = 0.718, "ndcg@10" = 0.449}

    [[methods]]                             # as many methods as the parameter has values, for a frontier
    name = "PD"
    settings = {loss = "pd"}
    sweep = {"loss_options.gamma" = [0.1, 0.2, 0.4]}

    [[methods]]
    name = "Pos2Neg2 w=.9, mis-paired"
    settings = {loss = "pos2neg2", weight = 0.9}
    pairing = "released"

A cell is one method with one seed. Each is written to a file of its own when it is finished, named after the method and
the seed, and is not run again as long as what it follows from, settings and data, is the same. Methods that differ in
what is done at inference alone (``compensation``, the c of ``macr``) and follow each other in the file are trained
once; their best epoch is that of the model before.

Protocols:
    synthetic: trained on and measured on one and the same matrix [RCS22 section 4.1].
    benchmark: [RCS22 section 5]: a random 60/20/20 split (of its own seed), 100 negatives for each user that he never
        interacted with, shared by validation and test; popularity counts all interactions. ``leak = true`` draws no
        training negative that is a held-out positive or one of these negatives, as the released code does;
        ``leak = "positives"`` none that is a held-out positive; ``false``, the honest setting, keeps out training
        positives alone. Figures are those of the last epoch, and those of the
        best epoch by sampled NDCG@10 in validation. ``split = {kind = "column"}``, or other fields of
        :class:`~zerosum_ext.experiments.runs.SplitRule`, is another split; where it has no validation part, a
        tenth of the training part is taken for it.

``pairing = "released"`` is the pairing of the code that came with [RCS22], for what it changes: there the second
positive of a row is looked up in a table that is sorted by user, at the place that the row has in the file of
interactions. It is then a positive of whoever stands at that place. The files of the synthetic data are in the order of
the items, those of the others in the order of a random split, which is stood in for by a random order.

"error" is 1 - pairwise accuracy; "hit@10" and "ndcg@10" are the sampled ones, "full/ndcg@10" is over all items.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from zerosum_ext import metrics
from zerosum_ext._checks import describe, require_choice, require_finite_number, require_positive_int
from zerosum_ext._files import replacing
from zerosum_ext.data import datasets
from zerosum_ext.data.interactions import Interactions, Split
from zerosum_ext.data.sampling import sample_negatives
from zerosum_ext.evaluation.full import AT_K_METRICS, METRICS, evaluate
from zerosum_ext.experiments import frontier, plots
from zerosum_ext.experiments.runs import MACR_REFERENCES, DataSource, Method, SplitRule, environment, measure
from zerosum_ext.models.methods import MACR, Compensated, MethodParts
from zerosum_ext.training.loop import EpochEnd, fit

__all__ = ["Cell", "Experiment", "Results", "draw", "load", "report", "run"]

_EVALUATION_NEGATIVES = 100
_CUTOFFS = (10, 20)
_NAMES = {
    "error": "error %",
    "pri": "PRI",
    "pop_q_at_1": "PopQ@1",
    "upo": "uPO",
    "hit@10": "Hit@10",
    "ndcg@10": "NDCG@10",
    "full/ndcg@10": "full NDCG@10",
}


@dataclass(frozen=True)
class Cell:
    """One method with one seed."""

    experiment: Experiment = field(repr=False)
    name: str
    method: Method
    pairing: str = "same user"

    @property
    def file(self) -> str:
        """The file's name, without a folder."""
        return f"{_slug(self.name)}-seed{self.method.seed}.json"

    @property
    def digest(self) -> str:
        """A short name of all settings that the cell's figures follow from; versions of software are none."""
        return self._digest(self.method)

    @property
    def trained_digest(self) -> str:
        """The same of everything that the trained model follows from, what is done at inference left out."""
        loss, *inference = _AT_INFERENCE.get(self.method.loss, (self.method.loss,))
        options = {name: value for name, value in self.method.loss_options.items() if name not in inference}
        return self._digest(replace(self.method, loss=loss, loss_options=options))

    def _digest(self, method: Method) -> str:
        e = self.experiment
        settings = [e.protocol, e.leak, vars(e.data), e.split_seed, vars(method), self.pairing]
        if e.split != SplitRule(ratios=(0.6, 0.2, 0.2), seed=e.split_seed):
            settings.append(vars(e.split))
        return hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def _slug(name: str) -> str:
    """What stands for a method's name in the names of its files."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


# Methods with options of inference alone: the loss they train with, and these options.
_AT_INFERENCE = {"compensation": ("bpr", "alpha", "beta"), "macr": ("macr", "c")}
_PAIRINGS = ("same user", "released")


@dataclass(frozen=True)
class Experiment:
    """An experiment file, read and checked.

    Attributes:
        methods: name -> settings, those of sweeps written out.
        families: name of a sweep -> its methods' names, in the order of the parameter's values.
        pairings: of methods with two positives: "same user" or "released".
        published: name -> column -> figure.
        The others are as in the file.
    """

    name: str
    title: str
    protocol: str
    columns: tuple[str, ...]
    data: DataSource
    split: SplitRule
    leak: bool | str
    split_seed: int
    seeds: tuple[int, ...]
    methods: Mapping[str, Method]
    families: Mapping[str, tuple[str, ...]]
    pairings: Mapping[str, str]
    published: Mapping[str, Mapping[str, float]]
    note: str

    @classmethod
    def read(cls, path: str | Path) -> Experiment:
        """Reads a TOML file.

        Raises:
            FileNotFoundError: no such file. ValueError: what is wrong in it.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such experiment file")
        try:
            values = _read_toml(path)
        except ValueError as error:
            raise ValueError(f"{path}: not a TOML file: {error}") from None
        known = {f.name for f in fields(cls)} - {"name", "published", "families", "pairings"} | {"settings"}
        unknown, missing = sorted(set(values) - known), sorted({"title", "protocol", "methods", "data"} - set(values))
        if unknown or missing:
            raise ValueError(
                f"{path}: unknown: {', '.join(unknown) or 'none'}; missing: {', '.join(missing) or 'none'}"
            )
        if not isinstance(values["methods"], list) or not values["methods"]:
            raise ValueError(f"{path}: methods: expected tables [[methods]], got {describe(values['methods'])}")
        common = _table(f"{path}: settings", values.get("settings", {}))
        protocol = require_choice(f"{path}: protocol", values["protocol"], ("synthetic", "benchmark"))
        methods: dict[str, Method] = {}
        families, pairings, published = {}, {}, {}
        for number, entry in enumerate(values["methods"], 1):
            named = isinstance(entry, dict) and isinstance(entry.get("name"), str)
            try:
                made = _methods(entry, {"patience": None, "keep": "last", **common})
                twice = sorted(set(made) & set(methods))
                if twice:
                    raise ValueError(f"name: expected one that is not in the file yet, got {twice[0]!r}")
                figures = _table("published", entry.get("published", {}))
                for column, value in figures.items():
                    require_finite_number(f"published {column!r}", value)
            except (TypeError, ValueError) as error:
                text = str(error).replace("Method.__init__()", "settings:")
                raise ValueError(f"{path}: method {repr(entry['name']) if named else number}: {text}") from None
            methods |= made
            if "sweep" in entry:
                families[entry["name"]] = tuple(made)
            for name in made:
                pairings[name], published[name] = entry.get("pairing", _PAIRINGS[0]), figures
        _check_slugs(path, methods)
        leak = values.get("leak", False)
        if leak not in (True, False, "positives"):
            raise ValueError(f"{path}: leak: expected true, false or 'positives', got {leak!r}")
        try:
            split_seed = require_positive_int("split_seed", values.get("split_seed", 0), minimum=0)
            given = _table("split", values.get("split", {}))
            split = SplitRule(**{"ratios": (0.6, 0.2, 0.2), "seed": split_seed, **given})
            data = DataSource(**_table("data", values["data"]))
            if not isinstance(data.source, str):
                raise TypeError(f"data: source: expected a text, got {describe(data.source)}")
            seeds = [
                require_positive_int("seeds", seed, minimum=0) for seed in _list("seeds", values.get("seeds", [0]))
            ]
            columns = _list("columns", values.get("columns", ["pri", "pop_q_at_1"]))
            for column in columns:
                require_choice("columns", column, _columns(protocol))
            for key in ("title", "note"):
                if not isinstance(values.get(key, ""), str):
                    raise TypeError(f"{key}: expected a text, got {describe(values[key])}")
        except (TypeError, ValueError) as error:
            # What DataSource and SplitRule say names them, and they are called as the file's tables.
            text = str(error).replace("DataSource.__init__()", "data:").replace("SplitRule.__init__()", "split:")
            raise ValueError(f"{path}: {text}") from None
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{path}: seeds: expected each once, got {seeds}")
        return cls(
            name=path.stem,
            title=values["title"],
            protocol=protocol,
            columns=tuple(columns),
            data=data,
            split=split,
            leak=leak,
            split_seed=split_seed,
            seeds=tuple(seeds),
            methods=methods,
            families=families,
            pairings=pairings,
            published=published,
            note=values.get("note", ""),
        )

    def missing_data(self) -> str:
        """What to say where the data are not there; empty where they are."""
        if self.protocol == "synthetic":
            return ""
        try:
            datasets.find(self.data.source)
        except FileNotFoundError as error:
            return str(error)
        return ""

    def data_digest(self) -> str | None:
        """A short name of what is in the file of the data; None of synthetic data."""
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
        """Seed by seed, so that an interrupted run has whole comparisons."""
        return [
            Cell(self, name, replace(method, seed=seed), self.pairings[name])
            for seed in self.seeds
            for name, method in self.methods.items()
        ]


def _table(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected a table, got {describe(value)}")
    return value


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name}: expected a list of at least one value, got {describe(value)}")
    return value


def _columns(protocol: str) -> list[str]:
    """The figures that a protocol yields."""
    if protocol == "synthetic":
        return ["error", "pri", "pop_q_at_1", "upo", "c"]
    cut = [f"{name}@{k}" for name in AT_K_METRICS for k in _CUTOFFS]
    over_all = ("hr@10", "ndcg@10")
    plain = [name for name in (*cut, *METRICS) if name not in (*over_all, *AT_K_METRICS)]
    return ["hit@10", "ndcg@10", *(f"full/{name}" for name in over_all), *plain, "c"]


def _check_slugs(path: Path, methods: Iterable[str]) -> None:
    """Methods whose files would have one name would take each other's place for ever."""
    known: dict[str, str] = {}
    for name in methods:
        slug = _slug(name)
        if not slug:
            raise ValueError(f"{path}: method {name!r}: expected a name with a letter a to z or a digit, for its files")
        if slug in known:
            raise ValueError(
                f"{path}: methods {known[slug]!r} and {name!r}: expected names that differ in more than case, signs "
                f"and letters beyond a to z, got the files {slug}-seedN.json for both"
            )
        known[slug] = name


def _methods(entry: Any, common: Mapping[str, Any]) -> dict[str, Method]:
    """The methods of one entry of a file by name: one, or one for each value of its sweep."""
    name = _table("methods", entry).get("name")
    if not isinstance(name, str):
        raise TypeError(f"name: expected a text, got {describe(name)}")
    unknown = sorted(set(entry) - {"name", "settings", "published", "sweep", "pairing"})
    if unknown:
        raise ValueError(f"expected name, settings, published, sweep and pairing, got {unknown[0]!r}")
    settings = {**common, **_table("settings", entry.get("settings"))}
    made = {}
    if "sweep" not in entry:
        made[name] = Method(**settings)
    elif len(_table("sweep", entry["sweep"])) != 1:
        raise ValueError(f"sweep: expected one parameter with its values, got {len(entry['sweep'])}")
    else:
        ((parameter, values),) = entry["sweep"].items()
        group, dot, option = parameter.rpartition(".")
        for value in _list(f"sweep: {parameter}", values):
            one = {group: {**_table(group, settings.get(group, {})), option: value}} if dot else {option: value}
            short = "w" if option == "weight" and not dot else option
            text = f"{value:g}" if isinstance(value, (int, float)) else str(value)
            strength = f"{name} {short}={text}"
            if strength in made:
                raise ValueError(f"sweep: {parameter}: expected values of names that differ, got {strength!r} twice")
            made[strength] = Method(**{**settings, **one})
    pairing = require_choice("pairing", entry.get("pairing", _PAIRINGS[0]), _PAIRINGS)
    if pairing == "released" and any(method.loss != "pos2neg2" for method in made.values()):
        raise ValueError("pairing: expected 'released' with loss 'pos2neg2' alone")
    return made


@dataclass(frozen=True)
class Results:
    """What is finished of an experiment: for each method its cells' records, in order of seed."""

    experiment: Experiment
    records: Mapping[str, Sequence[Mapping[str, Any]]]

    def values(self, name: str, column: str, epoch: str = "last") -> np.ndarray:
        """A figure of a method over its seeds; ``epoch`` is "last" or "best"."""
        return np.array([r["metrics"].get(epoch, {}).get(column, np.nan) for r in self.records[name]], np.float64)


def run(
    path: str | Path,
    output: str | Path,
    *,
    jobs: int = 1,
    progress: bool | None = None,
    only: str | None = None,
    seeds: Sequence[int] | None = None,
) -> Results:
    """Runs the cells of an experiment that are not finished yet.

    Args:
        path: the experiment file.
        output: folder of results; the cells' files go to a folder in it that is named after the experiment file.
        jobs: processes at once, one thread each.
        progress: shows a progress bar; None: on a terminal.
        only: run the methods whose name contains this; all finished cells are returned.
        seeds: run these of the file's seeds alone.

    Raises:
        ValueError, OSError: a bad file, data that are not there, training that diverged, a process that died.
        KeyboardInterrupt: finished cells are kept; with several jobs those under way end at once.
    """
    from tqdm import tqdm

    experiment = Experiment.read(path)
    require_positive_int("jobs", jobs)
    folder = Path(output) / experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    data = None if experiment.missing_data() else experiment.data_digest()
    open_cells = [
        cell
        for cell in experiment.cells()
        if (only is None or only in cell.name)
        and (seeds is None or cell.method.seed in seeds)
        and _finished(folder, cell, data) is None
    ]
    bar = tqdm(
        total=len(open_cells), desc=experiment.name, unit="run", disable=None if progress is None else not progress
    )
    with bar:
        if jobs == 1:
            for cell in open_cells:
                bar.set_postfix_str(cell.name)
                _run_and_write(cell, folder)
                bar.update()
        else:
            _run_in_processes(open_cells, folder, jobs, bar.update)
    return _load(experiment, folder, data)


def _run_in_processes(cells: Sequence[Cell], folder: Path, jobs: int, after_each: Callable[[], Any]) -> None:
    """Runs cells in processes of one thread each, no more of them at a time than there are processes.

    What is queued beyond that cannot be taken back, and would be begun after an interruption.
    """
    context = multiprocessing.get_context("spawn")
    # The workers end at once when its other end is closed: by us, or because this process is gone.
    ours_alone, our_end = context.Pipe(duplex=False)
    queue = iter(cells)

    def submit(pool: ProcessPoolExecutor, count: int) -> set[Future[None]]:
        # Ctrl-C is for this process to answer: workers inherit that it is blocked.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return {pool.submit(_run_and_write, cell, folder) for cell in itertools.islice(queue, count)}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    try:
        with ProcessPoolExecutor(jobs, context, initializer=_begin_worker, initargs=(ours_alone,)) as pool:
            try:
                running = submit(pool, jobs)
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for one in done:
                        one.result()
                        after_each()
                    running |= submit(pool, len(done))
            except KeyboardInterrupt:
                our_end.close()
                raise
            except BrokenProcessPool:
                raise ChildProcessError(
                    f"jobs: one of {jobs} processes died, killed or for want of memory; the cells that are finished "
                    "are kept: run the same again, with fewer jobs where memory is short"
                ) from None
    finally:
        our_end.close()
        ours_alone.close()


def _begin_worker(parents: Connection) -> None:
    torch.set_num_threads(1)

    def end_with_the_parent() -> None:
        with contextlib.suppress(EOFError, OSError):
            parents.recv()
        os._exit(1)

    threading.Thread(target=end_with_the_parent, daemon=True).start()


def load(path: str | Path, output: str | Path) -> Results:
    """What is finished of an experiment. Arguments as of :func:`run`."""
    experiment = Experiment.read(path)
    return _load(experiment, Path(output) / experiment.name, None)


def _load(experiment: Experiment, folder: Path, data: str | None) -> Results:
    records: dict[str, list[Mapping[str, Any]]] = {name: [] for name in experiment.methods}
    for cell in experiment.cells():
        record = _finished(folder, cell, data)
        if record is not None:
            records[cell.name].append(record)
    return Results(experiment, records)


def _finished(folder: Path, cell: Cell, data: str | None) -> dict[str, Any] | None:
    """The record of a cell, where there is one of these settings, and of data of this digest where both are known."""
    path = folder / cell.file
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
    except ValueError:
        record = None
    if not isinstance(record, dict) or not {"digest", "metrics", "history", "trained_here"} <= set(record):
        raise ValueError(f"{path} is damaged, it is no result of a run: delete it, and the cell is run again")
    if data is not None and record.get("data") not in (None, data):
        return None
    return record if record["digest"] == cell.digest else None


def _run_and_write(cell: Cell, folder: Path) -> None:
    start, start_cpu = time.perf_counter(), time.process_time()
    _forget_peak_memory()
    data = cell.experiment.data_digest()
    measured = _synthetic(cell) if cell.experiment.protocol == "synthetic" else _benchmark(cell, data)
    record = {
        "experiment": cell.experiment.name,
        "method": cell.name,
        "seed": cell.method.seed,
        "digest": cell.digest,
        "data": data,
        "settings": {**asdict(cell.method), "pairing": cell.pairing},
        "metrics": measured.metrics,
        "history": measured.history,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - start_cpu,
        "trained_here": measured.trained_here,
        "peak_memory_mb": _peak_memory_mb(),
        "date": datetime.date.today().isoformat(),
        **environment(),
    }
    if measured.scores is not None and cell.method.seed == cell.experiment.seeds[0]:
        np.savez_compressed((folder / cell.file).with_suffix(".npz"), scores=measured.scores.astype(np.float16))
    with replacing(folder / cell.file) as part:
        Path(part).write_text(json.dumps(record, indent=1) + "\n")


def _forget_peak_memory() -> None:
    """Begins to measure the peak anew, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_mb() -> float:
    """Most resident memory since; of the whole process where the system does not say more."""
    try:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- protocols -----------------------------------------------------------------------------------------------


class _Measured(NamedTuple):
    """What a cell yields: figures by epoch ("last", "best"), the training, and of synthetic data all scores."""

    metrics: dict[str, dict[str, float]]
    history: dict[str, Any]
    trained_here: bool
    scores: np.ndarray | None = None


class _Trained(NamedTuple):
    """A model with its weights after the last and the best epoch."""

    digest: str
    model: nn.Module
    states: dict[str, dict[str, Tensor]]
    best_epoch: int | None
    history: dict[str, Any]


# The model trained last in this process, for cells that differ from it at inference alone; and the data read last.
_last_trained: list[_Trained] = []
_last_data: list[tuple[str, Any]] = []


def _synthetic_data(experiment: Experiment) -> Interactions:
    sources = {"triangle": datasets.synthetic_triangle, "synthetic4": datasets.synthetic4}
    return Interactions.from_scipy(sources[require_choice("data.source", experiment.data.source, list(sources))]())


def _synthetic(cell: Cell) -> _Measured:
    x = _synthetic_data(cell.experiment)
    # The released file is in the order of the items.
    by_item = torch.argsort(x.indices, stable=True)
    parts = cell.method.make_parts(x)

    def figures(model: nn.Module) -> dict[str, float]:
        names = ("pairwise_accuracy", "pri", "pop_q_at_1", "upo")
        found = evaluate(model, None, x, metrics=names, popularity=x, exclude=None)
        return {"error": 1 - found.pop("pairwise_accuracy"), **found}

    def watch(model: nn.Module) -> dict[str, float]:
        return figures(parts.inference(model))  # type: ignore[arg-type]

    trained, here = _train(cell, x, parts, file_order=by_item, watch=watch)
    ranker = parts.inference(trained.model)  # type: ignore[arg-type]
    # There is no validation part: what is evaluated is what was trained on.
    chosen = _choose_reference(cell, ranker, lambda model: -figures(model)["error"])
    found = figures(ranker)
    ranker.eval()
    scores = ranker.score_all_items(torch.arange(x.num_users)).detach().numpy()
    return _Measured({"last": {**found, **chosen}}, trained.history, here, scores)


class _Data(NamedTuple):
    everything: Interactions
    split: Split
    negatives: Tensor


def _benchmark_data(experiment: Experiment, digest: str | None = None) -> _Data:
    """The data of an experiment, those of the call before where they are the same; digest: of the file, if known."""
    digest = digest or experiment.data_digest()
    settings = [vars(experiment.data), digest, vars(experiment.split), experiment.split_seed]
    key = json.dumps(settings, default=str)
    if not _last_data or _last_data[0][0] != key:
        _last_trained.clear()  # perhaps on what the file held before
        everything = experiment.data.read()
        split = experiment.split.apply(everything)
        if split.valid.nnz == 0:
            train, valid = split.train.split_random((0.9, 0.1), seed=experiment.split_seed)[::2]
            split = split._replace(train=train, valid=valid)
        users = torch.arange(everything.num_users)
        negatives = sample_negatives(
            everything, users, _EVALUATION_NEGATIVES, seed=experiment.split_seed, replacement=False
        )
        _last_data[:] = [(key, _Data(everything, split, negatives))]
    return _last_data[0][1]


def _benchmark(cell: Cell, data: str | None) -> _Measured:
    everything, split, negatives = _benchmark_data(cell.experiment, data)
    exclude = split.valid | split.test if cell.experiment.leak else None
    if exclude is not None and cell.experiment.leak is True:
        owners = torch.arange(everything.num_users).repeat_interleave(negatives.shape[1])
        exclude = exclude | Interactions.from_arrays(owners, negatives.reshape(-1), shape=everything.shape)

    parts = cell.method.make_parts(split.train)

    def validate(model: nn.Module) -> float:
        return _sampled(model, split.valid, negatives)["ndcg@10"]

    def validate_trained(model: nn.Module) -> float:
        # What is trained once for several strengths has one best epoch for all of them.
        shared = cell.method.loss in _AT_INFERENCE
        return validate(model if shared else parts.inference(model))  # type: ignore[arg-type]

    order = torch.randperm(split.train.nnz, generator=torch.Generator().manual_seed(cell.experiment.split_seed))
    trained, here = _train(cell, split.train, parts, file_order=order, exclude=exclude, validation=validate_trained)
    found = {}
    for epoch, state in trained.states.items():
        trained.model.load_state_dict(state)
        ranker = parts.inference(trained.model)  # type: ignore[arg-type]
        chosen = _choose_reference(cell, ranker, validate)
        found[epoch] = _measured(ranker, split, negatives, everything.popularity) | chosen
    if trained.best_epoch is not None:
        found["best"]["epoch"] = trained.best_epoch + 1
    return _Measured(found, trained.history, here)


def _choose_reference(cell: Cell, model: nn.Module, validate: Callable[[nn.Module], float]) -> dict[str, float]:
    """Sets the c of MACR to the best in validation where the file says none; {"c": it} for MACR, else nothing."""
    if not isinstance(model, MACR):
        return {}
    if "c" in cell.method.loss_options:
        model.set_strength(cell.method.loss_options["c"])
    else:
        values = {}
        for candidate in MACR_REFERENCES:
            model.set_strength(candidate)
            values[candidate] = validate(model)
        model.set_strength(max(values, key=values.__getitem__))
    return {"c": float(model.c)}


def _train(
    cell: Cell,
    train: Interactions,
    parts: MethodParts,
    *,
    file_order: Tensor,
    exclude: Interactions | None = None,
    validation: Callable[[nn.Module], float] | None = None,
    watch: Callable[[nn.Module], dict[str, float]] | None = None,
) -> tuple[_Trained, bool]:
    """The trained model of a cell, and whether it was trained for it (else for the cell before).

    What ``watch`` returns after each epoch is in the history as "figures".
    """
    method, digest = cell.method, cell.trained_digest
    if _last_trained and _last_trained[0].digest == digest:
        return _last_trained[0], False
    best: dict[str, Any] = {"value": -1.0, "epoch": None}
    watched: list[dict[str, float]] = []

    def remember(end: EpochEnd) -> None:
        if watch is not None:
            watched.append(watch(end.model))
        if end.history.validation and end.history.validation[-1] > best["value"]:
            best.update(value=end.history.validation[-1], epoch=end.epoch, state=_copy(end.model))

    history = fit(
        parts.model,
        train,
        parts.loss,
        method.make_optimizer,
        regularizer=parts.regularizer,
        transform=_ReleasedPairing(train, file_order, method.seed) if cell.pairing == "released" else None,
        batch_size=method.batch_size,
        epochs=method.epochs,
        device=method.device,
        seed=method.seed,
        negatives=method.negatives,
        draws=method.draws,
        strategy=method.strategy,
        l2=method.l2,
        exclude=exclude,
        validation=validation,
        restore_best=False,
        callbacks=[remember],
        progress=False,
    )
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    states = {"last": _copy(parts.model)}
    if best["epoch"] is not None:
        states["best"] = best["state"]
    told = history.to_dict() | ({"figures": watched} if watch is not None else {})
    _last_trained[:] = [_Trained(digest, parts.model, states, best["epoch"], told)]
    return _last_trained[0], True


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


class _ReleasedPairing:
    """Replaces second positives as the module's text says. Pairs are drawn anew in every batch."""

    def __init__(self, train: Interactions, file_order: Tensor, seed: int) -> None:
        users, items = train.pairs()
        self.num_items = train.num_items
        self.keys = users.long() * train.num_items + items.long()  # ascending
        self.items, self.indptr, self.counts = items.long(), train.indptr.long(), train.user_counts.long()
        # Of each interaction, the user at its place in the table by user, where interactions are numbered as here.
        self.partner = torch.empty_like(users.long())
        self.partner[file_order] = users.long()
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, users: Tensor, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        place = torch.searchsorted(self.keys, users * self.num_items + positives[:, 0])
        partner = self.partner[place]
        step = (torch.rand(len(users), generator=self.generator) * self.counts[partner]).long()
        second = self.items[self.indptr[partner] + torch.minimum(step, self.counts[partner] - 1)]
        return users, torch.stack([positives[:, 0], second], dim=1), negatives


def _sampled(model: nn.Module, held_out: Interactions, negatives: Tensor, block: int = 1024) -> dict[str, float]:
    """Sampled Hit@10 and NDCG@10 of the held-out positives [RCS22 section 5]."""
    ranks = []
    training = model.training
    model.eval()
    # A compensated score needs all of a user's; others are taken one by one.
    whole = isinstance(model, Compensated)
    with torch.no_grad():
        for first in range(0, held_out.num_users, block):
            users = torch.arange(first, min(first + block, held_out.num_users))
            local = torch.repeat_interleave(users - first, held_out.user_counts[users])
            items = held_out.indices[held_out.indptr[first] : held_out.indptr[users[-1] + 1]].long()
            if whole:
                scores = model.score_all_items(users)  # type: ignore[operator]
                positive, negative = scores[local, items], scores.gather(1, negatives[users])
            else:
                positive, negative = model(users[local], items), model(users, negatives[users])
            ranks.append(metrics.sampled_ranks(positive, negative[local]))
    model.train(training)
    rank = np.concatenate(ranks)
    hit = rank <= 10
    return {"hit@10": float(hit.mean()), "ndcg@10": float((hit / np.log2(rank + 1)).mean())}


def _measured(model: nn.Module, split: Split, negatives: Tensor, popularity: Tensor) -> dict[str, float]:
    found, _ = measure(model, split, k=_CUTOFFS, popularity=popularity)
    # In the paper Hit@10 and NDCG@10 are the sampled ones; "full/" marks those over all items.
    full = {f"full/{name}" if name in ("hr@10", "ndcg@10") else name: value for name, value in found.items()}
    return full | _sampled(model, split.test, negatives)


# --- report --------------------------------------------------------------------------------------------------


def report(results: Results, figures: Mapping[str, str] | None = None) -> str:
    """A Markdown section: of each method every figure, mean and sd over seeds, with the published one beside it.

    Args:
        results: of :func:`run` or :func:`load`.
        figures: caption -> address of pictures to show, such as :func:`draw` returns.
    """
    e = results.experiment
    header = ["method", "seeds", *(_NAMES.get(c, c) for c in e.columns)]
    lines = [f"## {e.title}", ""]
    if e.note:
        lines += [e.note.strip(), ""]
    for epoch in _epochs(e) if any(results.records.values()) else ():
        if e.protocol != "synthetic":
            lines += [{"last": "Last epoch, as in the paper:", "best": "Best epoch in validation:"}[epoch], ""]
        extra = ["epoch"] if epoch == "best" else []
        lines += [
            f"| {' | '.join(header + extra)} |",
            f"|---|--:|{'--:|' * len(e.columns + tuple(extra))}",
        ]
        for name, records in results.records.items():
            if records:
                cells = [_cell(results, name, column, epoch) for column in e.columns]
                cells += ["-".join(f"{v:.0f}" for v in _range(results.values(name, c, epoch))) for c in extra]
                lines.append(f"| {name} | {len(records)} | {' | '.join(cells)} |")
        lines.append("")
    lines += [*_epoch_lines(results), *_frontier_lines(results)]
    for caption, address in (figures or {}).items():
        lines += [f"![{caption}]({address})", ""]
    missing = [name for name, records in results.records.items() if len(records) < len(e.seeds)]
    if missing:
        lines += [f"Not finished: {', '.join(missing)}.", ""]
    lines += _cost_lines(results)
    return "\n".join(lines) + "\n"


def _epochs(experiment: Experiment) -> list[str]:
    return ["last"] if experiment.protocol == "synthetic" else ["last", "best"]


def _range(values: np.ndarray) -> list[float]:
    return sorted({float(np.min(values)), float(np.max(values))})


def _epoch_lines(results: Results, count: int = 3) -> list[str]:
    """Table of how far figures move in the last epochs, of records that have them of each epoch."""
    e = results.experiment
    lines = []
    for name, records in results.records.items():
        figures = [r["history"]["figures"][-count:] for r in records if "figures" in r["history"]]
        if figures:
            cells = []
            for column in e.columns:
                factor, digits = (100, 4) if column == "error" else (1, 3)
                low, high = (f([x[column] for one in figures for x in one]) * factor for f in (np.nanmin, np.nanmax))
                cells.append(f"{low:.{digits}f} to {high:.{digits}f}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    if not lines:
        return []
    head = ["method", *(_NAMES.get(c, c) for c in e.columns)]
    text = f"Lowest to highest over the last {count} epochs of all seeds:"
    return [text, "", f"| {' | '.join(head)} |", f"|---|{'--:|' * len(e.columns)}", *lines, ""]


def _cost_lines(results: Results) -> list[str]:
    """Time (medians) and most memory of a run of each method; of a sweep, of all its strengths together."""
    e = results.experiment
    member = {name: family for family, names in e.families.items() for name in names}
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, records in results.records.items():
        groups.setdefault(member.get(name, name), []).extend(r for r in records if r["trained_here"])
    lines = ["| one run | CPU s | s | of these training | s an epoch | peak MB |", "|---|--:|--:|--:|--:|--:|"]
    for name, records in groups.items():
        if records:
            cpu, whole = (np.median([r[key] for r in records]) for key in ("cpu_seconds", "seconds"))
            training = np.median([sum(r["history"]["seconds"]) for r in records])
            epoch = np.median([x for r in records for x in r["history"]["seconds"]])
            memory = max(r["peak_memory_mb"] for r in records)
            lines.append(
                f"| {name} ({records[0]['history']['path']}) | {cpu:.1f} | {whole:.1f} | {training:.1f} | {epoch:.2f} "
                f"| {memory:.0f} |"
            )
    done = [r for records in results.records.values() for r in records]
    if not done:
        return []
    threads = "-".join(str(int(v)) for v in _range(np.array([r["threads"] for r in done])))
    minutes = sum(r["cpu_seconds"] for r in done) / 60
    text = f"{len(done)} runs of {threads} thread(s), {minutes:.1f} CPU minutes in all. Times are medians."
    return [*lines, "", text]


def _points(results: Results, names: Sequence[str], accuracy: str, bias: str, epoch: str) -> list[tuple[float, float]]:
    """(accuracy, bias) of those methods that are finished, means over seeds."""
    return [
        (float(np.mean(results.values(n, accuracy, epoch))), float(np.mean(results.values(n, bias, epoch))))
        for n in names
        if results.records[n]
    ]


_BIAS = {"pri": 0.0, "pop_q_at_1": 0.5}
_KEPT = (0.99, 0.98, 0.95, 0.90)
# Sampled, as in the paper, and over all items.
_ACCURACY = ("ndcg@10", "full/ndcg@10")


def _frontier_lines(results: Results) -> list[str]:
    """Tables of the areas under the frontiers, and of what each family reaches at a given cost."""
    e = results.experiment
    base = e.baseline
    if not e.families or base is None or not results.records[base]:
        return []
    lines = []
    for epoch, accuracy in itertools.product(_epochs(e), _ACCURACY):
        for bias, ideal in _BIAS.items():
            start = _points(results, [base], accuracy, bias, epoch)[0]
            head = [f"keeps {100 * k:.0f} %" for k in _KEPT]
            lines += [
                f"Frontier of {_NAMES[accuracy]} and {_NAMES[bias]}, {epoch} epoch: area under it, and the largest "
                f"share of BPR's bias ({start[1]:.3f}, ideal {ideal:g}) that is taken away while so much of its "
                f"{_NAMES[accuracy]} ({start[0]:.3f}) is kept:",
                "",
                f"| family | strengths | area | {' | '.join(head)} |",
                f"|---|--:|--:|{'--:|' * len(head)}",
            ]
            rows = {}
            for family, names in e.families.items():
                points = _points(results, names, accuracy, bias, epoch)
                reached = [frontier.best_reduction(points, start, ideal, share=kept) for kept in _KEPT]
                rows[family] = (len(points), [frontier.area(points, start, ideal), *reached])
            best = np.max([values for _, values in rows.values()], axis=0)
            for family, (count, values) in rows.items():
                cells = [
                    f"**{v:.3f}**" if v == top and v > 0 else f"{v:.3f}" for v, top in zip(values, best, strict=True)
                ]
                lines.append(f"| {family} | {count} | {' | '.join(cells)} |")
            lines.append("")
    return lines


def draw(results: Results, output: str | Path, folder: str | Path) -> dict[str, Path]:
    """Draws what there is to draw of an experiment, to PNGs in ``folder``: caption -> file.

    Synthetic data: score matrices, average ranks and PopQ@1 of every method [RCS22 figures 1 to 3], of the first seed,
    from the scores that :func:`run` left beside the results in ``output``. Where these are gone, pictures that are
    there already are kept. Sweeps: the frontiers.
    """
    e, folder = results.experiment, Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, Path] = {}
    if e.protocol == "synthetic":
        made = {
            f"{e.title}: {what}": folder / f"{e.name}-{short}.png"
            for short, what in (("scores", "score matrices"), ("ranks", "average ranks"), ("popq", "PopQ@1"))
        }
        scores = {}
        for cell in e.cells():
            path = (Path(output) / e.name / cell.file).with_suffix(".npz")
            if cell.method.seed == e.seeds[0] and path.is_file() and results.records[cell.name]:
                with np.load(path, allow_pickle=False) as archive:
                    scores[cell.name] = archive["scores"].astype(np.float32)
        if scores:
            _draw_synthetic(e, scores, *made.values())
        return {caption: path for caption, path in made.items() if path.is_file()}
    base = e.baseline
    if e.families and base is not None and results.records[base]:
        for epoch, accuracy in itertools.product(_epochs(e), _ACCURACY):
            panels = {}
            for bias, ideal in _BIAS.items():
                start = _points(results, [base], accuracy, bias, epoch)[0]
                curves = {f: _points(results, n, accuracy, bias, epoch) for f, n in e.families.items()}
                panels[_NAMES[bias]] = ({f: c for f, c in curves.items() if c}, start, ideal)
            path = folder / f"{e.name}-{accuracy.partition('@')[0].replace('/', '-')}-{epoch}.png"
            plots.frontier_curves(panels, path, accuracy=_NAMES[accuracy])
            made[f"{e.title}: {_NAMES[accuracy]} against bias, {epoch} epoch"] = path
    return made


def _draw_synthetic(e: Experiment, scores: Mapping[str, np.ndarray], matrices: Path, ranks: Path, popq: Path) -> None:
    x = Interactions.from_scipy(
        {"triangle": datasets.synthetic_triangle, "synthetic4": datasets.synthetic4}[e.data.source]()
    )
    users, items = (t.numpy() for t in x.pairs())
    plots.score_matrices(scores, matrices)
    curves, quantiles = {}, {}
    for name, matrix in scores.items():
        ranked, average = metrics.average_ranks(users, items, matrix[users, items])
        curves[name] = (x.popularity.numpy()[ranked], average)
        quantiles[name] = metrics.pop_q_at_1(users, items, matrix[users, items], x.popularity, reduction="none")
    plots.rank_curves(curves, ranks)
    plots.popq_histogram(quantiles, popq)


def _cell(results: Results, name: str, column: str, epoch: str) -> str:
    factor, digits = (100, 4) if column == "error" else (1, 3)
    values = factor * results.values(name, column, epoch)
    text = f"{np.mean(values):.{digits}f}"
    if values.size > 1:
        text += f" ± {np.std(values, ddof=1):.{digits}f}"
    published = results.experiment.published[name].get(column)
    if published is not None and epoch == "last":
        text += f" (published {factor * published:.3g}, {np.mean(values) - factor * published:+.{digits}f})"
    return text


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(path.read_text())
