"""Published experiments from declarative files: methods x seeds, resumable, rendered beside the published figures.

    results = run("benchmarks/paper/synthetic.toml", "benchmarks/paper/results")
    text = report(results)

A file names the data, the protocol, the settings common to all methods, and the methods with their published figures::

    title = "MovieLens-1M, matrix factorization"
    protocol = "benchmark"                  # or "synthetic"
    seeds = [0, 1, 2]
    columns = ["hit@10", "ndcg@10", "pri", "pop_q_at_1"]
    data = {source = "ml-1m", min_item_count = 10}
    settings = {epochs = 20, batch_size = 2048, draws = 3}    # of zerosum_ext.runs.Method

    [[methods]]
    name = "Zerosum w=.9"
    settings = {loss = "zerosum", weight = 0.9}
    published = {"hit@10" = 0.718, "ndcg@10" = 0.449}

A cell is one method with one seed. Each is written to a file of its own when it is finished, named after the method and
the seed, and is not run again as long as what it follows from is the same.

Protocols:
    synthetic: trained on and measured on one and the same matrix [RCS22 section 4.1].
    benchmark: [RCS22 section 5]: a random 60/20/20 split (of its own seed), 100 negatives for each user that he never
        interacted with, shared by validation and test; popularity counts all interactions. ``leak = true`` keeps these
        negatives out of training too, as the released code does. Figures are those of the last epoch, and those of the
        best epoch by sampled NDCG@10 in validation.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zerosum_ext import datasets, metrics
from zerosum_ext._checks import require_choice, require_positive_int
from zerosum_ext.evaluation import evaluate
from zerosum_ext.interactions import Interactions, Split
from zerosum_ext.runs import DataSource, Method, measure
from zerosum_ext.sampling import sample_negatives
from zerosum_ext.training import EpochEnd, fit

__all__ = ["Cell", "Experiment", "Results", "load", "report", "run"]

_EVALUATION_NEGATIVES = 100
_NAMES = {
    "error": "error %",
    "pri": "PRI",
    "pop_q_at_1": "PopQ@1",
    "upo": "uPO",
    "hit@10": "Hit@10",
    "ndcg@10": "NDCG@10",
}


@dataclass(frozen=True)
class Cell:
    """One method with one seed."""

    experiment: Experiment = field(repr=False)
    name: str
    method: Method

    @property
    def file(self) -> str:
        """The file's name, without a folder."""
        return f"{re.sub(r'[^a-z0-9.]+', '-', self.name.lower()).strip('-')}-seed{self.method.seed}.json"

    @property
    def digest(self) -> str:
        """A short name of everything that the cell's figures follow from."""
        e = self.experiment
        settings = [e.protocol, e.leak, vars(e.data), e.split_seed, vars(self.method)]
        return hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Experiment:
    """An experiment file, read and checked."""

    name: str
    title: str
    protocol: str
    columns: tuple[str, ...]
    data: DataSource
    leak: bool
    split_seed: int
    seeds: tuple[int, ...]
    methods: Mapping[str, Method]
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
        known = {f.name for f in fields(cls)} - {"name", "published"} | {"settings"}
        unknown, missing = sorted(set(values) - known), sorted({"title", "protocol", "methods", "data"} - set(values))
        if unknown or missing:
            raise ValueError(
                f"{path}: unknown: {', '.join(unknown) or 'none'}; missing: {', '.join(missing) or 'none'}"
            )
        common = values.get("settings", {})
        methods, published = {}, {}
        for entry in values["methods"]:
            try:
                methods[entry["name"]] = Method(**{"patience": None, "keep": "last", **common, **entry["settings"]})
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}: method {entry.get('name')!r}: {error}") from None
            published[entry["name"]] = entry.get("published", {})
        seeds = values.get("seeds", [0])
        if not isinstance(seeds, list) or not seeds:
            raise ValueError(f"{path}: seeds: expected a list of integers, got {seeds!r}")
        return cls(
            name=path.stem,
            title=values["title"],
            protocol=require_choice(f"{path}: protocol", values["protocol"], ("synthetic", "benchmark")),
            columns=tuple(values.get("columns", ("pri", "pop_q_at_1"))),
            data=DataSource(**values["data"]),
            leak=bool(values.get("leak", False)),
            split_seed=values.get("split_seed", 0),
            seeds=tuple(require_positive_int("seeds", seed, minimum=0) for seed in seeds),
            methods=methods,
            published=published,
            note=values.get("note", ""),
        )

    def cells(self) -> list[Cell]:
        """Seed by seed, so that an interrupted run has whole comparisons."""
        return [Cell(self, n, replace(m, seed=seed)) for seed in self.seeds for n, m in self.methods.items()]


@dataclass(frozen=True)
class Results:
    """What is finished of an experiment: for each method its cells' records, in order of seed."""

    experiment: Experiment
    records: Mapping[str, Sequence[Mapping[str, Any]]]

    def values(self, name: str, column: str, epoch: str = "last") -> np.ndarray:
        """A figure of a method over its seeds; ``epoch`` is "last" or "best"."""
        return np.array([r["metrics"].get(epoch, {}).get(column, np.nan) for r in self.records[name]], np.float64)


def run(
    path: str | Path, output: str | Path, *, jobs: int = 1, progress: bool | None = None, only: str | None = None
) -> Results:
    """Runs the cells of an experiment that are not finished yet.

    Args:
        path: the experiment file.
        output: folder of results; the cells' files go to a folder in it that is named after the experiment file.
        jobs: processes at once, one thread each.
        progress: shows a progress bar; None: on a terminal.
        only: run the methods whose name contains this; all finished cells are returned.

    Raises:
        ValueError, OSError: a bad file, data that are not there, training that diverged.
        KeyboardInterrupt: finished cells are kept.
    """
    from tqdm import tqdm

    experiment = Experiment.read(path)
    require_positive_int("jobs", jobs)
    folder = Path(output) / experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    open_cells = [c for c in experiment.cells() if _finished(folder, c) is None and (only is None or only in c.name)]
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
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                waiting = [pool.submit(_run_and_write, cell, folder) for cell in open_cells]
                try:
                    for done in as_completed(waiting):
                        done.result()
                        bar.update()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
    return load(path, output)


def load(path: str | Path, output: str | Path) -> Results:
    """What is finished of an experiment. Arguments as of :func:`run`."""
    experiment = Experiment.read(path)
    records: dict[str, list[Mapping[str, Any]]] = {name: [] for name in experiment.methods}
    for cell in experiment.cells():
        record = _finished(Path(output) / experiment.name, cell)
        if record is not None:
            records[cell.name].append(record)
    return Results(experiment, records)


def _finished(folder: Path, cell: Cell) -> dict[str, Any] | None:
    path = folder / cell.file
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    return record if record["digest"] == cell.digest else None


def _run_and_write(cell: Cell, folder: Path) -> None:
    start = time.perf_counter()
    found, history = (_synthetic if cell.experiment.protocol == "synthetic" else _benchmark)(cell)
    record = {
        "experiment": cell.experiment.name,
        "method": cell.name,
        "seed": cell.method.seed,
        "digest": cell.digest,
        "metrics": found,
        "history": history,
        "seconds": time.perf_counter() - start,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "torch": torch.__version__,
    }
    part = folder / f"{cell.file}.part"
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(folder / cell.file)


# --- protocols -----------------------------------------------------------------------------------------------


def _synthetic(cell: Cell) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    sources = {"triangle": datasets.synthetic_triangle, "synthetic4": datasets.synthetic4}
    x = Interactions.from_scipy(sources[require_choice("data.source", cell.experiment.data.source, list(sources))]())
    model, history = _train(cell, x)
    names = ("pairwise_accuracy", "pri", "pop_q_at_1", "upo")
    found = evaluate(model, None, x, metrics=names, popularity=x, exclude=None)
    error = 1 - found.pop("pairwise_accuracy")
    return {"last": {"error": error, **found}}, history


def _benchmark(cell: Cell) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    everything = cell.experiment.data.read()
    split = everything.split_random((0.6, 0.2, 0.2), seed=cell.experiment.split_seed)
    users = torch.arange(everything.num_users)
    negatives = sample_negatives(
        everything, users, _EVALUATION_NEGATIVES, seed=cell.experiment.split_seed, replacement=False
    )
    exclude = None
    if cell.experiment.leak:
        owners = users.repeat_interleave(negatives.shape[1])
        drawn = Interactions.from_arrays(owners, negatives.reshape(-1), shape=everything.shape)
        exclude = split.valid | split.test | drawn
    best: dict[str, Any] = {"value": -1.0}

    def validate(model: nn.Module) -> float:
        return _sampled(model, split.valid, negatives)["ndcg@10"]

    def remember(end: EpochEnd) -> None:
        value = end.history.validation[-1]
        if value > best["value"]:
            state = {name: t.detach().clone() for name, t in end.model.state_dict().items()}
            best.update(value=value, epoch=end.epoch, state=state)

    model, history = _train(cell, split.train, exclude=exclude, validation=validate, callbacks=[remember])
    found = {"last": _measured(model, split, negatives, everything.popularity)}
    model.load_state_dict(best["state"])
    found["best"] = _measured(model, split, negatives, everything.popularity) | {"epoch": best["epoch"] + 1}
    return found, history


def _train(cell: Cell, train: Interactions, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    method = cell.method
    model = method.make_model(train)
    history = fit(
        model,
        train,
        method.make_loss(train),
        method.make_optimizer,
        batch_size=method.batch_size,
        epochs=method.epochs,
        device=method.device,
        seed=method.seed,
        negatives=method.negatives,
        draws=method.draws,
        strategy=method.strategy,
        l2=method.l2,
        restore_best=False,
        progress=False,
        **options,
    )
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    return model, history.to_dict()


def _sampled(model: nn.Module, held_out: Interactions, negatives: Tensor, block: int = 1024) -> dict[str, float]:
    """Sampled Hit@10 and NDCG@10 of the held-out positives [RCS22 section 5]."""
    ranks = []
    model.eval()
    with torch.no_grad():
        for first in range(0, held_out.num_users, block):
            users = torch.arange(first, min(first + block, held_out.num_users))
            local = torch.repeat_interleave(users - first, held_out.user_counts[users])
            items = held_out.indices[held_out.indptr[first] : held_out.indptr[users[-1] + 1]].long()
            scores = model.score_all_items(users)  # type: ignore[operator]
            ranks.append(metrics.sampled_ranks(scores[local, items], scores.gather(1, negatives[users])[local]))
    model.train()
    rank = np.concatenate(ranks)
    hit = rank <= 10
    return {"hit@10": float(hit.mean()), "ndcg@10": float((hit / np.log2(rank + 1)).mean())}


def _measured(model: nn.Module, split: Split, negatives: Tensor, popularity: Tensor) -> dict[str, float]:
    found, _ = measure(model, split, k=(10,), popularity=popularity)
    # In the paper Hit@10 and NDCG@10 are the sampled ones; "full/" marks those over all items.
    full = {f"full/{name}" if name in ("hr@10", "ndcg@10") else name: value for name, value in found.items()}
    return full | _sampled(model, split.test, negatives)


# --- report --------------------------------------------------------------------------------------------------


def report(results: Results) -> str:
    """A Markdown section: of each method every figure, mean and sd over seeds, with the published one beside it."""
    e = results.experiment
    header = ["method", "seeds", *(_NAMES.get(c, c) for c in e.columns)]
    lines = [f"## {e.title}", ""]
    if e.note:
        lines += [e.note.strip(), ""]
    epochs = ["last"] if e.protocol == "synthetic" else ["last", "best"]
    for epoch in epochs:
        if e.protocol != "synthetic":
            lines += [{"last": "Last epoch, as in the paper:", "best": "Best epoch in validation:"}[epoch], ""]
        lines += [f"| {' | '.join(header)} |", f"|---|--:|{'--:|' * len(e.columns)}"]
        for name, records in results.records.items():
            if records:
                cells = [_cell(results, name, column, epoch) for column in e.columns]
                lines.append(f"| {name} | {len(records)} | {' | '.join(cells)} |")
        lines.append("")
    missing = [name for name, records in results.records.items() if len(records) < len(e.seeds)]
    if missing:
        lines += [f"Not finished: {', '.join(missing)}.", ""]
    done = [r for records in results.records.values() for r in records]
    if done:
        seconds = np.array([r["seconds"] for r in done])
        lines.append(f"{len(done)} runs, {seconds.min():.0f} to {seconds.max():.0f} s each.")
    return "\n".join(lines) + "\n"


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
