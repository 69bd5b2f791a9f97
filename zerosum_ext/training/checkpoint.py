"""Checkpoints: what a run needs to go on, in one file that is complete or not there."""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
from typing import Any

import torch
from torch import Tensor

from zerosum_ext._files import replacing
from zerosum_ext.data.shards import digest_of
from zerosum_ext.data.wording import option
from zerosum_ext.training.engines import Parts
from zerosum_ext.training.history import History
from zerosum_ext.training.settings import MOST_EPOCHS, Settings

__all__ = [
    "check_fingerprint",
    "check_moments",
    "check_position",
    "fingerprint",
    "read_checkpoint",
    "read_state",
    "write_checkpoint",
]

_FORMAT = "zerosum_ext.checkpoint/1"


def fingerprint(parts: Parts, settings: Settings, engine: str) -> dict[str, Any]:
    """Return what has to agree for a resumed run to be the same run.

    Take it when the scheduler is made and has not advanced yet: both change the optimizer's groups.
    """
    sampling, objective, validation = settings.sampling, settings.objective, settings.validation
    validated = validation.source is not None
    # Files from before these settings lack their entries.
    mixed: dict[str, Any] = {} if objective.precision == "float32" else {"precision": objective.precision}
    shared = {"negatives_shared": sampling.negatives_shared} if sampling.negatives_shared else {}
    if objective.sample_weight is not None:
        assert parts.train.weights is not None
        digest = hashlib.blake2b(parts.train.weights.cpu().numpy().tobytes(), digest_size=16)
        mixed["weights"] = digest.hexdigest()
        if objective.sample_weight == "drawn":
            mixed["weights_drawn"] = True
    return {
        **mixed,
        **shared,
        "shape": list(parts.train.shape),
        "nnz": int(parts.train.nnz),
        "interactions": digest_of(parts.train),
        "exclude": None if parts.exclude is None else digest_of(parts.exclude),
        "batch_size": sampling.batch_size,
        "seed": sampling.seed,
        "negatives": sampling.negatives,
        "draws": sampling.draws,
        "strategy": sampling.strategy,
        "loss": repr(parts.loss),
        "l2": objective.l2,
        "clip_row_norm": objective.clip_row_norm,
        "regularizer": None if objective.regularizer is None else repr(objective.regularizer),
        "hogwild": engine == "hogwild",
        "optimizer": type(parts.optimizer).__name__,
        "optimizer groups": [_plain_values(group) for group in parts.optimizer.param_groups],
        # The best epoch so far is the best by these.
        "metric": validation.metric if validated else None,
        "maximize": validation.maximize if validated else None,
        **({} if validation.bias is None else {"bias": validation.bias, "max_cost": validation.max_cost}),
    }


def write_checkpoint(path: str, run: dict[str, Any], written_by: dict[str, Any]) -> None:
    """Write the state of a run.

    Args:
        path: the file.
        run: plain values, tensors and state dicts by name.
        written_by: the run's :func:`fingerprint`.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path, RuntimeError) as part:  # which torch raises where the disk is full
        torch.save({"format": _FORMAT, "fingerprint": written_by, **run}, part)


# What may differ where the data has grown.
_OF_THE_DATA = ("shape", "nnz", "interactions", "exclude", "weights")


def read_checkpoint(path: str, this_run: dict[str, Any], steps: int, grown: bool = False) -> dict[str, Any]:
    """Return the state that a run was written with, on the CPU.

    Args:
        path: the file.
        this_run: the :func:`fingerprint` of the run that is to go on.
        steps: the number of steps of its epochs.
        grown: whether the data may have grown since; the file has to be of an epoch's end then.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or no checkpoint, or another run wrote it; the message names the difference.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"resume: no checkpoint file {path!r}")
    state = read_state(path)
    check_position(path, state, steps)
    if grown and state["step"] != 0:
        raise ValueError(f"resume: {path!r} was written within an epoch, which does not go on with other data")
    check_fingerprint(path, state["fingerprint"], this_run, grown)
    return state


def check_fingerprint(path: str, written_by: dict[str, Any], this_run: dict[str, Any], grown: bool = False) -> None:
    """Raise ValueError where a checkpoint was written by another run; the message names the difference."""
    for name in {**this_run, **written_by}:
        if grown and name in _OF_THE_DATA:
            continue
        written, value = written_by.get(name), this_run.get(name)
        if written != value:
            raise ValueError(f"resume: {path!r} was written with {name}={written!r}, this run has {value!r}")


def read_state(path: str) -> dict[str, Any]:
    """Read the file, without running code that it holds and without taking memory that it does not need."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > os.path.getsize(path):  # torch stores, and never compresses
            raise ValueError(f"it would unpack to {unpacked:,} bytes")
        with open(path, "rb") as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever zipfile, pickle and torch make of bytes that are no checkpoint
        said = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"resume: {path!r} is damaged, or no checkpoint of this program: {said}; {option('train anew')}"
        ) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(f"resume: {path!r} is not a checkpoint of this program ({_FORMAT})")
    kinds: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(("fingerprint", "model", "loss", "optimizer", "history"), (dict,)),
        **dict.fromkeys(("epoch", "step", "epochs_since_best"), (int,)),
        **dict.fromkeys(("loss_sum", "rng"), (Tensor,)),
        **dict.fromkeys(("scheduler", "best_state"), (dict, type(None))),
        "seconds": (int, float),
        "best_value": (int, float, type(None)),
        "cuda_rng": (Tensor, type(None)),
        **({"front": (list,)} if "front" in state else {}),
    }
    missing = object()
    for name, allowed in kinds.items():
        value = state.get(name, missing)
        if not isinstance(value, allowed) or isinstance(value, bool):
            expected = " or ".join(kind.__name__ for kind in allowed)
            got = "nothing" if value is missing else type(value).__name__
            raise ValueError(f"resume: {path!r} is damaged: {name}: expected {expected}, got {got}")
    return state


def check_position(path: str, state: dict[str, Any], steps: int) -> None:
    """Raise where a checkpoint's numbers cannot be those of a run whose epochs have so many steps."""
    first, best = state.get("first_epoch", 0), state["best_state"]
    try:
        history = History.from_dict(state["history"])
    except ValueError as error:
        raise ValueError(f"resume: {path!r} is damaged: {error}") from None
    sound = {
        "epoch": state["epoch"] == len(history),
        "step": 0 <= state["step"] <= steps,  # (the last one done, and the epoch not booked yet)
        "seconds": 0 <= state["seconds"] < math.inf,
        "loss_sum": state["loss_sum"].numel() == 1,
        "epochs_since_best": 0 <= state["epochs_since_best"] <= len(history),
        "first_epoch": isinstance(first, int) and 0 <= first < MOST_EPOCHS,
        "best_state": best is None or all(isinstance(value, Tensor) for value in best.values()),
    }
    for name, holds in sound.items():
        if not holds:
            raise ValueError(f"resume: {path!r} is damaged: {name} is {state.get(name)!r}")


def check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Raise where an optimizer's state of a parameter does not have its shape."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.dim() > 0 and value.shape != parameter.shape:
                    raise ValueError(f"{name} has shape {tuple(value.shape)}, its parameter {tuple(parameter.shape)}")


def _plain_values(group: dict[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters of an optimizer's group that mean the same in any process and on any device."""
    values: dict[str, Any] = {}
    for name, value in group.items():
        if name == "params":
            continue
        if isinstance(value, (tuple, list)):
            values[name] = [float(v) for v in value]
        elif isinstance(value, Tensor):
            values[name] = float(value)
        elif value is None or isinstance(value, (bool, int, float, str)):
            values[name] = value
    return values
