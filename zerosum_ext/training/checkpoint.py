"""Checkpoints: what a run needs to go on, in one file that is complete or not there."""

from __future__ import annotations

import hashlib
import os
import pickle
from typing import Any

import torch
from torch import Tensor

from zerosum_ext._files import replacing
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.training.engines import Parts
from zerosum_ext.training.settings import Settings

__all__ = ["fingerprint", "read_checkpoint", "write_checkpoint"]

_FORMAT = "zerosum_ext.checkpoint/1"


def fingerprint(parts: Parts, settings: Settings, engine: str) -> dict[str, Any]:
    """Return what has to agree for a resumed run to be the same run.

    Take it when the scheduler is made and has not advanced yet: both change the optimizer's groups.
    """
    sampling, objective, validation = settings.sampling, settings.objective, settings.validation
    validated = validation.source is not None
    # Files from before mixed precision lack the entry.
    mixed = {} if objective.precision == "float32" else {"precision": objective.precision}
    return {
        **mixed,
        "shape": list(parts.train.shape),
        "nnz": int(parts.train.nnz),
        "interactions": _digest(parts.train),
        "exclude": None if parts.exclude is None else _digest(parts.exclude),
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


def read_checkpoint(path: str, this_run: dict[str, Any]) -> dict[str, Any]:
    """Return the state that a run was written with, on the CPU.

    Args:
        path: the file.
        this_run: the :func:`fingerprint` of the run that is to go on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or no checkpoint, or another run wrote it; the message names the difference.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"resume: no checkpoint file {path!r}")
    with open(path, "rb") as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            first = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"resume: {path!r} is damaged, or no checkpoint of this program: {first}") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(f"resume: {path!r} is not a checkpoint of this program ({_FORMAT})")
    written_by = state["fingerprint"]
    for name in {**this_run, **written_by}:
        written, value = written_by.get(name), this_run.get(name)
        if written != value:
            raise ValueError(f"resume: {path!r} was written with {name}={written!r}, this run has {value!r}")
    return state


def _digest(interactions: Interactions) -> str:
    """Return a short name of the interactions themselves, the same on every machine."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (interactions.indptr, interactions.indices):
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


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
