"""A run of several processes: the methods trained side by side, with tables and interactions in parts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zerosum_ext import losses
from zerosum_ext._checks import require_choice
from zerosum_ext._files import LOCK, locked
from zerosum_ext._group import Group
from zerosum_ext.data.interactions import Split
from zerosum_ext.data.shard_files import read_shards
from zerosum_ext.data.shards import ShardedInteractions, balanced_cuts, digest_of
from zerosum_ext.evaluation.sharded import evaluate_shards
from zerosum_ext.experiments.runs.files import environment, read_json, write_json
from zerosum_ext.experiments.runs.settings import DataSource, Method, SplitRule
from zerosum_ext.models.sharded import ShardedMatrixFactorization
from zerosum_ext.training import History, fit
from zerosum_ext.training.parts import checkpoints, latest, to_safetensors

__all__ = ["TABLES", "train_together"]

#: Which tables are in parts: those of users and items, or those of users alone.
TABLES = ("sharded", "users")
# Methods that are a loss of scores; the others need all scores at once, further branches, or change the scores.
_LOSSES = tuple(name for name in losses.loss_names() if name != "macr")
_FORMAT = "zerosum_ext.together/1"
Parts = tuple[ShardedInteractions, ShardedInteractions, ShardedInteractions]


# Each parameter is an option of the command line's ``train``.
def train_together(
    data: DataSource,
    folder: str | os.PathLike[str],
    group: Group,
    method: Method,
    *,
    split: SplitRule | None = None,
    tables: str = "sharded",
    baseline: bool = True,
    k: Sequence[int] = (10, 20),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    note: Callable[[str], Any] = lambda text: None,
) -> dict[str, dict[str, float]]:
    """Train matrix factorization in several processes, which call this together, and write a folder.

    The folder gets config.json, metrics.json and for each method history.json, metrics.json, model.safetensors and the
    folder checkpoint. Rank 0 writes all but the checkpoint's parts.

    Args:
        data: a file, which every process reads, or a folder of parquet files, of which each reads its own.
        folder: the folder of the run.
        group: the processes.
        method: what to train; its model has to be "mf".
        split: how to split each user's interactions.
        tables: which tables are in parts, of :data:`TABLES`.
        baseline: train BPR with the same settings too.
        k: cut-offs of the metrics.
        resume: go on from the checkpoints in the folder.
        overwrite: remove the run that is in the folder.
        progress: show a progress bar in rank 0. None: on a terminal.
        note: called with lines that a person would want to read.

    Returns:
        {method: {metric: value}}, the same in every process.

    Raises:
        ValueError, OSError: bad settings or data, in every process. LostProcess: another process ended.
    """
    path, rule = Path(folder), split or SplitRule()
    chosen = {one.loss: one for one in ([method.plain_bpr()] if baseline and method.loss != "bpr" else []) + [method]}
    with ExitStack() as held:  # the lock of the folder, by rank 0
        error: Exception | None = None
        try:
            require_choice("tables", tables, TABLES)
            if method.model != "mf":
                raise ValueError(f"model: expected 'mf' with several processes, got {method.model!r}")
            require_choice("loss", method.loss, _LOSSES)
            if group.rank == 0:
                held.enter_context(locked(path))
                _prepare(path, resume, overwrite)
        except (ValueError, OSError, TypeError) as wrong:
            error = wrong
        group.together(error)
        parts = _parts(data, rule, group)
        note(f"{parts[0]!r}; {parts[0].nnz:,} train, {parts[1].nnz:,} validation, {parts[2].nnz:,} test")
        if group.rank == 0:
            config = {
                "format": _FORMAT,
                "data": asdict(data),
                "split": asdict(rule),
                "methods": {name: asdict(one) for name, one in chosen.items()},
                "evaluation": {"k": list(k)},
                "tables": tables,
                "processes": group.size,
                "environment": environment(),
            }
            write_json(path / "config.json", json.loads(json.dumps(config)))
        metrics = {}
        for name, one in chosen.items():
            model, history = _train(one, parts, path / name, group, tables, resume, progress)
            note(f"{name}: {len(history)} epochs ({history.stopped}) in {sum(history.seconds):.1f} s; evaluating")
            metrics[name] = _measure(model, parts, k)
            if group.rank == 0:
                write_json(path / name / "history.json", history.to_dict())
                write_json(path / name / "metrics.json", metrics[name])
                best = one.restore_best and history.best_epoch is not None
                to_safetensors(path / name / "checkpoint", path / name / "model.safetensors", best=best)
        if group.rank == 0:
            write_json(path / "metrics.json", metrics)
        group.barrier()
        return metrics


def _loss(method: Method, popularity: Tensor) -> nn.Module:
    """Return the loss of a method."""
    options = dict(method.loss_options)
    if method.weight is not None:
        options["w"] = method.weight
    if "popularity" in losses.loss_options(method.loss):
        options.setdefault("popularity", popularity)
    return losses.get_loss(method.loss, **options)


def _prepare(path: Path, resume: bool, overwrite: bool) -> None:
    """Make the folder, or look whether what is there may stay."""
    for name in _LOSSES:
        # A link could lead what is written, or removed, to anywhere.
        for place in (path / name, path / name / "checkpoint"):
            if place.is_symlink():
                raise ValueError(f"{place} is a link, expected a folder of the run")
    ours = False
    if (path / "config.json").is_file():
        config = read_json(path / "config.json")
        ours = isinstance(config, dict) and config.get("format") == _FORMAT
    if any(entry.name != LOCK for entry in path.iterdir()) and not (ours and resume):
        if not (ours and overwrite):
            raise ValueError(f"{path} is not empty: choose another folder, or --resume or --overwrite a run in it")
        _remove(path)


def _remove(path: Path) -> None:
    """Remove the files that a run of several processes consists of, and nothing else."""
    for name in _LOSSES:
        if not (path / name).is_dir():
            continue
        for file in ("history.json", "metrics.json", "model.safetensors"):
            (path / name / file).unlink(missing_ok=True)
        for place in checkpoints(path / name / "checkpoint"):
            shutil.rmtree(place)
        for place in (path / name / "checkpoint", path / name):
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
    for file in ("metrics.json", "config.json"):
        (path / file).unlink(missing_ok=True)


def _parts(data: DataSource, rule: SplitRule, group: Group) -> Parts:
    """Return this process's share of train, validation and test."""
    error: Exception | None = None
    if Path(data.source).is_dir():
        shares = read_shards(
            data.source,
            group,
            columns=data.columns,
            id_type=data.id_type,  # type: ignore[arg-type]
            min_rating=data.min_rating,
        )
        if rule.kind == "random":
            made = shares.split_random(_three(rule.ratios), seed=rule.seed)
            return made[0], made[1], made[2]
        own = None
        try:
            # A process without interactions has nothing to split, and its parts are as empty.
            own = rule.apply(shares.local) if shares.local.nnz else Split(shares.local, shares.local, shares.local)
        except ValueError as wrong:
            error = wrong
        group.together(error)
        assert own is not None
        return shares.with_local(own.train), shares.with_local(own.valid), shares.with_local(own.test)
    split = None
    try:
        split = rule.apply(data.read())
    except (ValueError, OSError) as wrong:
        error = wrong
    group.together(error)
    assert split is not None
    if group.size > 1:
        group.agree(
            f"interactions of {data.source}", [digest_of(part) for part in (split.train, split.valid, split.test)]
        )
    first, last = balanced_cuts(split.train, group.size)[group.rank : group.rank + 2]
    train, valid, test = (
        ShardedInteractions(part.rows(first, last), group) for part in (split.train, split.valid, split.test)
    )
    return train, valid, test


def _three(ratios: Sequence[float]) -> tuple[float, ...]:
    if len(ratios) != 3:
        raise ValueError(f"ratios: expected three with a folder of parts, got {tuple(ratios)}")
    return tuple(ratios)


def _train(
    method: Method,
    parts: Parts,
    folder: Path,
    group: Group,
    tables: str,
    resume: bool,
    progress: bool | None,
) -> tuple[ShardedMatrixFactorization, History]:
    train, valid, _ = parts
    model = ShardedMatrixFactorization.from_interactions(
        train,
        embedding_dim=method.embedding_dim,
        items="replicated" if tables == "users" else "sharded",
        seed=method.seed,
        **method.model_options,
    )
    checkpoint = folder / "checkpoint"
    going_on = group.share(resume and latest(checkpoint) is not None)
    validated = valid.nnz > 0
    history = fit(
        model,
        train,
        _loss(method, train.popularity),
        method.make_optimizer,
        batch_size=method.batch_size,
        epochs=method.epochs,
        seed=method.seed,
        negatives=method.negatives,
        draws=method.draws,
        strategy=method.strategy,
        l2=method.l2,
        validation=valid if validated else None,
        metric=method.metric,
        patience=method.patience if validated else None,
        restore_best=method.restore_best,
        checkpoint=checkpoint,
        resume=checkpoint if going_on else None,
        progress=progress if group.rank == 0 else False,
        mesh=group,
    )
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    return model, history


def _measure(model: ShardedMatrixFactorization, parts: Parts, k: Sequence[int]) -> dict[str, float]:
    """Compute all metrics on the test part, as :func:`zerosum_ext.experiments.runs.measure` does."""
    train, valid, test = parts
    seen = train.with_local(train.local.union(valid.local)) if valid.nnz else train
    popularity = train.popularity + valid.popularity + test.popularity
    return evaluate_shards(model, seen, test, k=tuple(k), popularity=popularity.numpy())
