"""Checkpoints of several processes: a folder, in which each process writes its part, and any number of them can read.

``torch.distributed.checkpoint`` writes and reads the tables and the optimizer's state beside their rows. DTensor says
which rows a process holds. ``run.pt`` holds the rest. A checkpoint is written beside the last one and takes its place
when it is complete, so that a run that is killed at any moment has one to resume from.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zerosum_ext._files import not_written, replacing
from zerosum_ext._group import Group
from zerosum_ext.training.checkpoint import check_fingerprint, check_position, read_state, write_checkpoint
from zerosum_ext.training.engines import Parts
from zerosum_ext.training.parallel import is_sharded
from zerosum_ext.training.part_files import failures, reader

__all__ = ["checkpoints", "latest", "read_together", "to_safetensors", "write_together"]

_NAME = re.compile(r"epoch-(\d+)-step-(\d+)")
_RUN = "run.pt"
_UNFINISHED = ".part"


def write_together(path: str, state: dict[str, Any], written_by: dict[str, Any], parts: Parts) -> None:
    """Write a checkpoint of all processes, who call this together.

    Args:
        path: a folder for tables in parts; of a model that every process has in one piece, the file that rank 0 writes.
        state: the state of the run in this process.
        written_by: the run's fingerprint.
        parts: the parts of the run.

    Raises:
        OSError: rank 0 cannot write; ValueError in the other processes.
    """
    group, model = parts.group, parts.model
    assert group is not None
    error: Exception | None = None
    if not is_sharded(model):
        if group.rank == 0:
            try:
                write_checkpoint(path, state, written_by)
            except OSError as wrong:
                error = wrong
        group.together(error)
        return
    folder = Path(path)
    name = f"epoch-{state['epoch']:06d}-step-{state['step']:09d}"
    unfinished = folder / (name + _UNFINISHED)
    if group.rank == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove(folder, keep=2)
            unfinished.mkdir()
        except OSError as wrong:
            error = wrong
    group.together(error)
    tables, rest = _split(state, model, parts.optimizer)
    try:
        _save(_described(tables, model), unfinished, group)
    except failures() as wrong:  # whatever torch makes of a disk that is full
        error = not_written(folder, wrong)
    group.together(error)
    if group.rank == 0:
        try:
            write_checkpoint(os.fspath(unfinished / _RUN), rest, written_by)
            if (folder / name).exists():  # of a run that was resumed before it
                shutil.rmtree(folder / name)
            unfinished.rename(folder / name)
            _remove(folder, keep=1)
        except OSError as wrong:
            error = wrong
    group.together(error)


def latest(path: str | os.PathLike[str]) -> Path | None:
    """Return the newest complete checkpoint of a folder, or None."""
    found = [one for one in Path(path).glob("epoch-*") if _NAME.fullmatch(one.name) and (one / _RUN).is_file()]
    return max(found, key=lambda one: one.name, default=None)


def read_together(path: str, this_run: dict[str, Any], steps: int, parts: Parts) -> dict[str, Any]:
    """Return the state of a run at its newest checkpoint, with the rows of this process. All call this together.

    Raises:
        FileNotFoundError, ValueError: as of :func:`zerosum_ext.training.checkpoint.read_checkpoint`.
    """
    group, model = parts.group, parts.model
    assert group is not None
    sharded = is_sharded(model)
    error: Exception | None = None
    state: dict[str, Any] = {}
    folder: Path | None = None
    try:
        folder = latest(path) if sharded else None
        if sharded and folder is None:
            raise FileNotFoundError(f"resume: no complete checkpoint in the folder {path!r}")
        file = path if folder is None else os.fspath(folder / _RUN)
        if not os.path.isfile(file):
            raise FileNotFoundError(f"resume: no checkpoint file {path!r}")
        state = read_state(file)
        check_position(file, state, steps)
        check_fingerprint(path, state["fingerprint"], this_run)
    except (OSError, ValueError) as wrong:
        error = wrong
    group.together(error)
    if folder is None:
        return state
    try:
        _read_tables(folder, state, parts, group)
    except failures() as wrong:  # whatever torch makes of files that are none
        said = str(wrong).strip().splitlines()[-1] if str(wrong).strip() else type(wrong).__name__
        error = ValueError(f"resume: {os.fspath(folder)!r} is damaged: {said}")
    group.together(error)
    return state


def _read_tables(folder: Path, state: dict[str, Any], parts: Parts, group: Group) -> None:
    """Fill a state with the tables of this process."""
    model = parts.model
    empty: dict[str, dict[str, Tensor]] = {"model": {k: torch.empty_like(v) for k, v in model.state_dict().items()}}
    for number, held in state["optimizer"]["of_rows"].items():
        for name, dtype in held.items():
            like = _parameter(parts.optimizer, int(number))
            empty[f"optimizer.{number}.{name}"] = {
                _name_of(model, like): torch.empty_like(like, dtype=getattr(torch, dtype))
            }
    if state["best_state"] is not None:
        empty["best"] = {k: torch.empty_like(v) for k, v in model.state_dict().items()}
    from torch.distributed import checkpoint as dcp

    with _quiet():
        dcp.state_dict_loader.load(
            _described(empty, model), storage_reader=reader(folder), process_group=group.process_group
        )
    state["model"] = empty["model"]
    if state["best_state"] is not None:
        state["best_state"] = empty["best"]
    of_rows = state["optimizer"].pop("of_rows")
    for number, held in of_rows.items():
        for name in held:
            (table,) = empty[f"optimizer.{number}.{name}"].values()
            state["optimizer"]["state"].setdefault(int(number), {})[name] = table


def _split(
    state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return the tables of a state, by what they are of and by parameter, and all that is the same in every process."""
    tables: dict[str, dict[str, Tensor]] = {"model": dict(state["model"])}
    rest = {**state, "model": {}}
    if state["best_state"] is not None:
        tables["best"], rest["best_state"] = dict(state["best_state"]), {}
    numbers: dict[int, dict[str, Any]] = {}
    of_rows: dict[str, dict[str, str]] = {}
    for number, held in state["optimizer"]["state"].items():
        like = _parameter(optimizer, number)
        numbers[number] = {}
        for name, value in held.items():
            if isinstance(value, Tensor) and value.shape == like.shape and value.dim() > 0:
                tables[f"optimizer.{number}.{name}"] = {_name_of(model, like): value}
                of_rows.setdefault(str(number), {})[name] = str(value.dtype).removeprefix("torch.")
            else:
                numbers[number][name] = value
    rest["model_file"] = {
        "format": "zerosum_ext.MatrixFactorization/1",
        "config": json.dumps(model.config()),  # type: ignore[operator]
        "epochs_trained": str(model.epochs_trained),
    }
    rest["optimizer"] = {**state["optimizer"], "state": numbers, "of_rows": of_rows}
    return tables, rest


def _parameter(optimizer: torch.optim.Optimizer, number: int) -> nn.Parameter:
    """Return the parameter with this number in the optimizer's state."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    found: nn.Parameter = parameters[number]
    return found


def _name_of(model: nn.Module, parameter: nn.Parameter) -> str:
    return next(name for name, value in model.named_parameters() if value is parameter)


# --- DTensor and torch.distributed.checkpoint -------------------------------------------------------------------


def _described(tables: dict[str, dict[str, Tensor]], model: Any) -> dict[str, Any]:
    """Return tables as DTensors, which say where their rows are among those of all processes."""
    from torch.distributed.device_mesh import DeviceMesh

    mesh = DeviceMesh.from_group(model.group.process_group, model.group.device.type)
    known = model.named_tables()
    result: dict[str, Any] = {}
    for of, named in tables.items():
        for name, table in named.items():
            _, first, size = known[name]
            rows = table if table.dim() == 2 else table.unsqueeze(1)
            result[f"{of}/{name}"] = rows if len(rows) == size else _as_rows(rows, first, size, mesh)
    return result


def _as_rows(rows: Tensor, first: int, size: int, mesh: Any) -> Any:
    """Return rows ``first`` and following of a table with ``size`` rows as a DTensor."""
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor._shards_wrapper import LocalShardsWrapper

    # A process without rows is one without a part: parts are told apart by where they begin.
    part = LocalShardsWrapper([rows], [(first, 0)]) if len(rows) else LocalShardsWrapper([], [])
    shape = torch.Size((size, rows.shape[1]))
    return DTensor.from_local(part, mesh, [Shard(0)], run_check=False, shape=shape, stride=(rows.shape[1], 1))


def _save(tables: dict[str, Any], folder: Path, group: Group) -> None:
    from torch.distributed import checkpoint as dcp

    with _quiet():
        dcp.state_dict_saver.save(tables, checkpoint_id=folder, process_group=group.process_group)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's own notes on its checkpoints off the terminal."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def checkpoints(folder: Path) -> list[Path]:
    """Return the folders of the checkpoints in a folder, complete ones and others, in the order of their names."""
    found = [one for one in folder.glob("epoch-*") if _NAME.fullmatch(one.name.removesuffix(_UNFINISHED))]
    return sorted(one for one in found if one.is_dir() and not one.is_symlink())


def _remove(folder: Path, keep: int) -> None:
    """Remove what killed runs left unfinished, and all but the newest complete checkpoints."""
    found = checkpoints(folder)
    for left in found:
        if left.name.endswith(_UNFINISHED):
            shutil.rmtree(left)
    complete = [one for one in found if _NAME.fullmatch(one.name)]
    for old in complete[: max(0, len(complete) - keep)]:
        shutil.rmtree(old, ignore_errors=True)


def to_safetensors(checkpoint: str | os.PathLike[str], path: str | os.PathLike[str], *, best: bool = False) -> None:
    """Write the tables of a checkpoint in parts as one model file, which ``MatrixFactorization.load`` reads.

    One process does this, without the others and without the memory for the tables: they go to the file part by part.

    Args:
        checkpoint: the folder of a run's checkpoints, or one of them.
        path: the model file.
        best: take the weights of the best epoch by validation, not those of the last step.

    Raises:
        FileNotFoundError: there is no complete checkpoint.
        ValueError: it is damaged, or has no weights of a best epoch.
    """
    from torch.distributed import checkpoint as dcp

    folder = Path(checkpoint) if (Path(checkpoint) / _RUN).is_file() else latest(checkpoint)
    if folder is None:
        raise FileNotFoundError(f"no complete checkpoint in {os.fspath(checkpoint)!r}")
    state = read_state(os.fspath(folder / _RUN))
    if best and state["best_state"] is None:
        raise ValueError(f"best: {os.fspath(folder)!r} has no weights of a best epoch, as there was no validation")
    of = "best/" if best else "model/"
    try:
        files = reader(folder)
        metadata = files.read_metadata().state_dict_metadata
        saved: dict[str, Any] = {name.removeprefix(of): one for name, one in metadata.items() if name.startswith(of)}
        with replacing(path) as part, _quiet():
            tables = _mapped(
                part, {name: (tuple(one.size), one.properties.dtype) for name, one in saved.items()}, state
            )
            dcp.state_dict_loader.load(
                {of + name: table for name, table in tables.items()}, storage_reader=files, no_dist=True
            )
    except OSError:
        raise
    except failures() as wrong:  # whatever torch makes of files that are none
        raise ValueError(f"{os.fspath(folder)!r} is damaged: {str(wrong).strip().splitlines()[-1]}") from wrong


def _mapped(
    path: str, tables: dict[str, tuple[tuple[int, ...], torch.dtype]], state: dict[str, Any]
) -> dict[str, Tensor]:
    """Make a safetensors file of these shapes and return its tables, mapped into memory and still empty.

    The format is eight bytes, a header that says where each table is, and the tables one after the other. The
    safetensors library writes it from tables that memory holds.
    """
    header: dict[str, Any] = {"__metadata__": state["model_file"]}
    end = 0
    for name, (shape, dtype) in tables.items():
        size = math.prod(shape) * dtype.itemsize
        kind = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
        plain = shape[:1] if name == "item_bias" else shape
        header[name] = {"dtype": kind, "shape": plain, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        file.truncate(8 + len(text) + end)
        # A mapped page that finds no room on the disk would end the process.
        os.posix_fallocate(file.fileno(), 0, 8 + len(text) + end)
    mapped = {}
    for name, (shape, dtype) in tables.items():
        size = math.prod(shape) * dtype.itemsize
        at = 8 + len(text) + header[name]["data_offsets"][0]
        data = np.memmap(path, np.uint8, "r+", at, size) if size else np.zeros(0, np.uint8)
        mapped[name] = torch.from_numpy(data).view(dtype).view(shape)
    return mapped
