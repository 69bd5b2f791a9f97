"""Train the methods of a run side by side, measure them, and write the run folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from zerosum_ext import models
from zerosum_ext._checks import MOST_K, require_choice, require_positive_int
from zerosum_ext._files import locked, replacing
from zerosum_ext.data.interactions import Interactions, Split
from zerosum_ext.data.wording import option
from zerosum_ext.experiments.runs import files
from zerosum_ext.experiments.runs.judging import judge_run
from zerosum_ext.experiments.runs.method import (
    describe_model,
    loggers,
    measure,
    train_method,
    training_options,
)
from zerosum_ext.experiments.runs.reporting import write_report
from zerosum_ext.experiments.runs.run import Run
from zerosum_ext.experiments.runs.search import WeightSearch, choose_weight
from zerosum_ext.experiments.runs.settings import DataSource, Method, SplitRule
from zerosum_ext.training import fit

Note = Callable[[str], Any]


# Each parameter is an option of the command line's ``train``; they are checked and bundled at once.
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
    card: bool = False,
    progress: bool | None = None,
    note: Note = lambda text: None,
) -> Run:
    """Train a method and plain BPR on the same split, measure both, and write the run folder.

    Args:
        data: a file, a :class:`DataSource` that says how to read it, or interactions.
        folder: the folder of the run. It is made if it is not there.
        method: what to train, by default Zerosum with w = .9.
        split: how to split the interactions, by default random, 80/10/10.
        baseline: train BPR with the same settings too. (There is nothing to compare if the loss is BPR.)
        k: cut-offs of the metrics.
        search: find the method's weight by :func:`choose_weight`. ``method.weight`` must then be None.
        resume: go on with the run in the folder, if there is one. It must have the same settings and data.
        overwrite: remove the run that is in the folder. Without it, or resume, a folder that is not empty is refused.
            A folder that holds something other than a run is always refused.
        figures: draw the figures.
        log: "csv" writes METHOD/log.csv during training, "tensorboard" the folder METHOD/tensorboard. A search writes
            them in the folders of the weights too.
        card: write METHOD/card.md too: a model card in Markdown. Model files hold what it says in any case: settings,
            metrics and the library's version.
        progress: show progress bars. None: on a terminal.
        note: called with lines that a person would want to read meanwhile.

    Returns:
        The run, opened.

    Raises:
        KeyboardInterrupt: on Ctrl-C, after a checkpoint was written. The same call with ``resume=True`` goes on.
        ValueError, OSError: bad settings or data, or a folder that cannot be written.
    """
    method = method or Method(weight=None if search else 0.9)
    cutoffs = _check_settings(method, search, k, log)
    work = _prepare(data, split or SplitRule(), method, baseline, search, note)
    path = Path(folder)
    with locked(path):
        return _train_in(path, work, method, cutoffs, resume, overwrite, figures, log, card, progress, note)


def _train_in(
    path: Path,
    work: _Work,
    method: Method,
    cutoffs: tuple[int, ...],
    resume: bool,
    overwrite: bool,
    figures: bool,
    log: Sequence[str],
    card: bool,
    progress: bool | None,
    note: Note,
) -> Run:
    """Do what :func:`train` says, in a folder that is locked."""
    search = work.search
    config = work.config(cutoffs)
    files.prepare(path, config, resume, overwrite)
    files.write_json(path / "config.json", config)
    files.keep_split(path / "interactions.npz", work.split, note)
    if search is not None:
        weights = path / "weights"
        weight, _ = choose_weight(
            method, work.split, weights, search, resume=resume, progress=progress, log=log, note=note
        )
        work.chosen[method.loss] = replace(method, weight=weight)
        config = work.config(cutoffs)
        files.write_json(path / "config.json", config)
        _take_models_of_search(path, work.chosen, method.loss, weight)

    rankings = {}
    for number, (name, one) in enumerate(work.chosen.items(), 1):
        note(f"{name} ({number} of {len(work.chosen)}): training")
        found = search is not None and (path / name / "history.json").is_file()
        callbacks = loggers(log, path / name, one)
        model, history = train_method(
            one, work.split, path / name, resume=resume or found, progress=progress, callbacks=callbacks
        )
        best = "" if history.best_epoch is None else f", best of epoch {history.best_epoch + 1}"
        note(f"{name}: {len(history)} epochs ({history.stopped}{best}) in {sum(history.seconds):.1f} s; evaluating")
        values, rankings[name] = measure(model, work.split, k=cutoffs)
        files.write_json(path / name / "metrics.json", values)
        describe_model(
            model, path / name, {**asdict(one), "data": config["data"], "split": config["split"]}, values, card
        )
    run = Run(path, config, work.split)
    run.write_tables()
    if figures:
        run.draw(rankings)
    judge_run(run, rankings)
    write_report(run, rankings)
    return run


@dataclass
class _Work:
    """What a run is about: the interactions, their split, and the methods to train by name, the main one last."""

    source: DataSource | str
    rule: SplitRule
    interactions: Interactions
    split: Split
    chosen: dict[str, Method]
    search: WeightSearch | None

    def config(self, cutoffs: Sequence[int]) -> dict[str, Any]:
        """Return config.json."""
        config = {
            "format": files.FORMAT,
            "data": asdict(self.source) if isinstance(self.source, DataSource) else {"source": self.source},
            "split": asdict(self.rule),
            "methods": {name: asdict(method) for name, method in self.chosen.items()},
            "evaluation": {"k": list(cutoffs)},
            "interactions": files.describe(self.interactions, self.split),
            "environment": files.environment(),
            "search": None if self.search is None else asdict(self.search),
        }
        return dict(json.loads(json.dumps(config)))  # tuples become lists, as they will be when read again


def _check_settings(
    method: Method, search: WeightSearch | None, k: Sequence[int], log: Sequence[str]
) -> tuple[int, ...]:
    """Check what needs no data, and return the cut-offs."""
    if search and method.weight is not None:
        raise ValueError(f"weight: expected None with a search for it, got {method.weight}")
    for kind in log:
        require_choice("log", kind, ("csv", "tensorboard"))
    cutoffs = tuple(require_positive_int("k", value, maximum=MOST_K) for value in k)
    if not cutoffs:
        raise ValueError("k: expected at least one cut-off, got none")
    return cutoffs


def _prepare(
    data: DataSource | Interactions | str | os.PathLike[str],
    rule: SplitRule,
    method: Method,
    baseline: bool,
    search: WeightSearch | None,
    note: Note,
) -> _Work:
    """Read and split the interactions. Try out the methods, so that bad settings show before anything is written."""
    if isinstance(data, (str, os.PathLike)):
        data = DataSource(os.fspath(data))
    interactions = data.read() if isinstance(data, DataSource) else Interactions.from_any(data)
    split = rule.apply(interactions)
    tell_of_data(interactions, rule, split, note)
    chosen = {}
    if baseline and method.loss != "bpr":
        chosen["bpr"] = method.plain_bpr()
    chosen[method.loss] = method
    for one in chosen.values():
        _try_out(one, split)
    if search and ("w" not in models.method_options(method.loss) or split.valid.nnz == 0):
        raise ValueError(
            f"weight: a search for it needs a loss that has a w, and a validation part, got loss {method.loss!r} and "
            f"{split.valid.nnz} validation interactions"
        )
    source = data if isinstance(data, DataSource) else interactions.report.source
    return _Work(source, rule, interactions, split, chosen, search)


def tell_of_data(interactions: Interactions, rule: SplitRule, split: Split, note: Note) -> None:
    """Tell what was read, what was guessed, and how it was split."""
    note(str(interactions.report))
    for message in interactions.report.bad_row_messages:
        note(f"skipped: {message}")
    for message in split.train.report.notes:
        note(message)
    parts = f"{split.train.nnz:,} train, {split.valid.nnz:,} validation, {split.test.nnz:,} test"
    note(f"{interactions!r}; {parts} ({rule})")
    if rule.kind != "column" and "split" in interactions.columns:
        note(f"there is a column split, which is not used: {option('split column')} goes by it")
    full = int((split.train.user_counts == split.train.num_items).sum())
    if full:
        note(f"{full:,} users have every item in the training part: without a negative they cannot be learnt from")
    if split.valid.nnz == 0:
        note("no validation part: all epochs are trained and the last one is kept")


def _take_models_of_search(path: Path, chosen: dict[str, Method], loss: str, weight: float) -> None:
    """Copy the models of the search that are those of the run, so that they are not trained again."""
    for name, place in (("bpr", files.folder_of_weight(1.0)), (loss, files.folder_of_weight(weight))):
        if name not in chosen or (name != "bpr" and weight == 1.0):
            continue
        tried = path / "weights" / place
        (path / name).mkdir(exist_ok=True)
        for kept in ("model.safetensors", "history.json", "log.csv"):
            if (tried / kept).is_file():
                with replacing(path / name / kept) as part:
                    shutil.copyfile(tried / kept, part)
        if (tried / "tensorboard").is_dir():
            shutil.copytree(tried / "tensorboard", path / name / "tensorboard", dirs_exist_ok=True)


def _try_out(method: Method, split: Split) -> None:
    """Do all of training but its epochs. It raises if settings do not fit each other or the data."""
    parts = method.make_parts(split.train)
    if parts.loss is None:
        return
    options = training_options(method, parts, split)
    fit(parts.model, split.train, parts.loss, method.make_optimizer, **options, epochs=0, progress=False)
