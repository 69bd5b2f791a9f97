"""The files of a run folder: its configuration, its interactions, and what is removed with it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

from zerosum_ext._checks import MOST_K
from zerosum_ext._files import LOCK, check_npz, read_text, replacing, write_text
from zerosum_ext._library import build_info
from zerosum_ext.data.interactions import Interactions, Report, Split
from zerosum_ext.data.readers import DAMAGED
from zerosum_ext.data.vocabulary import Vocabulary
from zerosum_ext.experiments.runs.settings import Method, new_options, todays_names
from zerosum_ext.models import method_names
from zerosum_ext.training import History

FORMAT = "zerosum_ext.run/1"
# The files of one method, and those of the run itself: what ``remove_run`` removes.
_METHOD_FILES = ("model.safetensors", "history.json", "metrics.json", "checkpoint.pt", "log.csv", "card.md")
_FIGURES = ("curves.png", "popq.png", "ranks.png", "scores.png")
_RUN_FILES: tuple[str, ...] = ("metrics.json", "history.csv", "interactions.npz", "verdict.json", "config.json")
_RUN_FILES += ("compare.json", "report.html", *_FIGURES)
PARTS = ("train", "valid", "test")


def environment() -> dict[str, Any]:
    """Return the versions of what the figures of a run depend on, its threads and its instruction set."""
    info = build_info()
    versions = {name: info[name] for name in ("zerosum_ext", "python", "platform", "torch", "threads")}
    return {**versions, "numpy": np.__version__, "scipy": scipy.__version__, "isa": info.get("isa")}


def to_json(values: Any) -> str:
    """Return plain values as JSON. JSON knows no NaN, so a figure without a value is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, Mapping):
            return {key: plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value

    return json.dumps(plain(values), indent=2, allow_nan=False)


def write_json(path: Path, values: Any) -> None:
    """Write plain values as JSON. A reader sees the old file or the whole new one."""
    write_text(path, to_json(values) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. A damaged file is a ValueError that names it."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, it is no JSON: {error}") from None


def read_metrics(path: Path) -> dict[str, float]:
    """Read the figures of a method. A damaged file is a ValueError that names it."""
    values = read_json(path)
    # (JSON knows no NaN: a figure without a value is null.)
    if not isinstance(values, dict) or not all(v is None or isinstance(v, (int, float)) for v in values.values()):
        raise ValueError(f"{path} is damaged: expected an object of numbers")
    return values


def read_history(path: Path) -> History:
    """Read the history of a training. A damaged file is a ValueError that names it."""
    values = read_json(path)
    try:
        return History.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path} is damaged, it is no history of a training: {error}") from None


def prepare(folder: Path, config: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Make the folder of a run, or decide what becomes of what is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*config["methods"], "weights", "trials"):
        # A link could lead what is written, or removed, to anywhere.
        if (folder / name).is_symlink():
            raise ValueError(f"{folder / name} is a link, expected a folder of the run")
    if all(entry.name == LOCK for entry in folder.iterdir()):
        return
    old = read_config(folder)
    if overwrite:
        remove_run(folder, old)
        return
    other = difference(old, config)
    if other:
        raise ValueError(
            f"{folder} holds a run with other settings ({other}); choose another folder (--output), or overwrite it "
            "(--overwrite)"
        )
    if not resume:
        raise ValueError(
            f"{folder} holds a run with these settings already: resume (--resume) goes on with it, or shows it "
            "where it is complete; overwrite (--overwrite) starts again"
        )


def difference(old: Any, new: Any) -> str:
    """Return the first setting in which two configurations differ, in words, or an empty string if they agree."""
    for part in ("compare", "methods", "evaluation", "search"):
        if part == "methods" and old.get("compare") and new.get("compare"):
            continue  # they are what was looked for
        before, after = _flat(old.get(part)), _flat(new.get(part))
        for name in [*after, *before]:
            if old.get("search") and new.get("search") and part == "methods" and name.endswith(".weight"):
                continue  # that is what was searched for
            if before.get(name) != after.get(name):
                return f"{name}: {before.get(name)!r} there, {after.get(name)!r} now"
    if old.get("interactions", {}).get("digest") != new["interactions"]["digest"]:
        return "other interactions, or another split of them"
    return ""


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    result = {}
    for key, inner in value.items():
        result.update(_flat(inner, f"{prefix}.{key}" if prefix else key))
    return result


def remove_run(folder: Path, config: dict[str, Any]) -> None:
    """Remove the files that a run consists of, and nothing else."""
    weights = (config.get("search") or {}).get("weights", ())
    linked = (folder / "weights").is_symlink()
    tried = [] if linked else [f"weights/{folder_of_weight(weight)}" for weight in (1.0, *weights)]
    for name in (*config.get("methods", {}), *tried):
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            for file in _METHOD_FILES:
                (folder / name / file).unlink(missing_ok=True)
            if not (folder / name / "tensorboard").is_symlink():
                for events in (folder / name / "tensorboard").glob("events.out.tfevents.*"):
                    events.unlink()
    if not linked:
        (folder / "weights" / "search.json").unlink(missing_ok=True)
    _remove_trials(folder / "trials")
    for file in _RUN_FILES:
        (folder / file).unlink(missing_ok=True)


def _remove_trials(folder: Path) -> None:
    """Remove the files of the candidates of a comparison, and the folders that are empty then."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for place in folder.iterdir():
        if place.is_symlink() or not place.is_dir() or not re.fullmatch(r"[A-Za-z0-9_.=+-]+", place.name):
            continue
        for inner in (place / "model", place):
            if inner.is_dir() and not inner.is_symlink():
                for file in (*_METHOD_FILES, "record.json"):
                    (inner / file).unlink(missing_ok=True)
                if not any(inner.iterdir()):
                    inner.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a run folder, with the option names of today.

    Raises:
        ValueError: not a run folder, or a damaged one.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a run folder: it is not empty and has no config.json")
    config = read_json(path)
    if isinstance(config, dict) and config.get("format") == "zerosum_ext.together/1":
        raise ValueError(
            f"{folder} was written by several processes: MatrixFactorization.load reads METHOD/model.safetensors, "
            "whose rows have the numbers that read_shards gives"
        )
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{path} is not the configuration of a run ({FORMAT})")
    for name in ("search", "interactions", "evaluation", "compare"):
        if not isinstance(config.get(name) or {}, dict):
            raise ValueError(f"{path} is damaged: {name}: expected an object, got {config[name]!r}")
    cutoffs = (config.get("evaluation") or {}).get("k")
    if not isinstance(cutoffs, list) or not cutoffs or not all(type(k) is int and 1 <= k <= MOST_K for k in cutoffs):
        raise ValueError(f"{path} is damaged: evaluation: expected k, a list of cut-offs, got {cutoffs!r}")
    weights = (config.get("search") or {}).get("weights", ())
    if not isinstance(weights, (list, tuple)) or not all(_is_share(weight) for weight in weights):
        raise ValueError(f"{path} is damaged: search: expected weights in [0, 1], got {weights!r}")
    methods = config.get("methods")
    if not isinstance(methods, dict) or not methods:
        raise ValueError(f"{path} is damaged: methods: expected an object, got {methods!r}")
    for name, settings in methods.items():
        # Names become folders in which files are written and removed: only what this program writes is believed.
        if name not in method_names():
            raise ValueError(f"{path} is damaged: methods: expected names of methods, got {name!r}")
        if not isinstance(settings, dict):
            raise ValueError(f"{path} is damaged: methods: {name}: expected an object, got {settings!r}")
    new = new_options(Method)
    return {**config, "methods": {name: {**new, **todays_names(settings)} for name, settings in methods.items()}}


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def digest(split: Split) -> str:
    """Return a short name of the interactions, their ids and their split."""
    digest = hashlib.blake2b(digest_size=16)
    for part in split:
        for array in (part.indptr.cpu().numpy(), part.indices.cpu().numpy()):
            digest.update(array.tobytes())
    for ids in (split.train.user_ids, split.train.item_ids):
        digest.update(b"none" if ids is None else str(ids.dtype).encode() + ids.tobytes())
    return digest.hexdigest()


def describe(data: Interactions, split: Split) -> dict[str, Any]:
    """Return what config.json says of the interactions."""
    counts = {name: part.nnz for name, part in zip(PARTS, split, strict=True)}
    return {
        "users": data.num_users,
        "items": data.num_items,
        **counts,
        "report": str(data.report),
        "digest": digest(split),
    }


def write_split(path: Path, split: Split) -> None:
    """Write the three parts as one list of interactions with a mark each, and the ids."""
    users, items = (torch.cat(t).numpy() for t in zip(*(part.pairs() for part in split), strict=True))
    mark = np.repeat(np.arange(3, dtype=np.int8), [part.nnz for part in split])
    train = split.train
    arrays: dict[str, Any] = {"user": users.astype(np.int32 if train.num_users < 2**31 else np.int64), "part": mark}
    arrays["item"] = items.astype(train.indices.numpy().dtype)
    arrays["shape"] = np.array(train.shape)
    for name, ids in (("user_ids", train.user_ids), ("item_ids", train.item_ids)):
        if ids is not None:
            arrays[name] = ids
    with replacing(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, **arrays)


def keep_split(file: Path, split: Split, note: Callable[[str], Any]) -> None:
    """Write the interactions, unless the file holds them already."""
    if not holds(file, split):
        if file.is_file():
            note(f"{file} was damaged, and is written anew")
        write_split(file, split)


def holds(path: Path, split: Split) -> bool:
    """Tell whether the file is there, whole, and of this split."""
    try:
        return path.is_file() and digest(read_split(path)) == digest(split)
    except ValueError:
        return False


def read_split(path: Path) -> Split:
    """Read the three parts. A damaged file is a ValueError that names it."""
    if not path.is_file():
        raise ValueError(f"{path.parent} is a damaged run folder: it has no {path.name}")
    try:
        check_npz(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        parts = []
        for code in range(3):
            chosen = arrays["part"] == code
            shape = (int(arrays["shape"][0]), int(arrays["shape"][1]))
            part = Interactions.from_arrays(arrays["user"][chosen], arrays["item"][chosen], shape=shape)
            report = Report(str(path), int(chosen.sum()))
            vocabulary = Vocabulary(arrays.get("user_ids"), arrays.get("item_ids"), shape=shape)
            parts.append(part.with_columns({}).with_report(report).with_vocabulary(vocabulary))
        return Split(*parts)
    except (*DAMAGED, IndexError, TypeError, MemoryError, OverflowError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def folder_of_weight(weight: float) -> str:
    """Return the name of the folder, below weights/, of a weight that was tried. Weight 1 is plain BPR."""
    return "bpr" if weight == 1.0 else f"w{weight:g}"
