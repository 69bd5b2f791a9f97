"""What a model's file holds beside its parameters: ids, names of items, settings, metrics; and its card."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from zerosum_ext._files import replacing
from zerosum_ext._version import __version__
from zerosum_ext.data.vocabulary import Vocabulary

__all__ = ["Target", "card", "information", "names_of", "read", "text_tensors", "vocabulary_of", "write"]

#: A path, or a file that is open for bytes.
Target: TypeAlias = "str | os.PathLike[str] | IO[bytes]"

# What the names of tensors begin with that are no parameters.
PREFIX = "zerosum_ext."
# An array of text has room for the longest text in each place: more than this, and than 64 times the text, is refused.
_ROOM = 1 << 28


def write(target: Target, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None) -> None:
    """Write tensors as safetensors, to a path (complete or not there) or to an open file.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save, save_file

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    if isinstance(target, (str, os.PathLike)):
        with replacing(target, SafetensorError) as part:
            save_file(plain, part, metadata)
    elif hasattr(target, "write"):
        target.write(save(plain, metadata))
    else:
        raise TypeError(f"path: expected a path or a file that is open for writing, got {type(target).__name__}")


def read(source: Target) -> tuple[str, dict[str, Tensor], dict[str, str]]:
    """Return the name of a file for messages, its tensors and its metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no safetensors.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load

    name = "the file"
    try:
        if isinstance(source, (str, os.PathLike)):
            name = repr(os.fspath(source))
            if not os.path.isfile(source):
                raise FileNotFoundError(f"no model file {name}")
            with safe_open(os.fspath(source), framework="pt", device="cpu") as file:
                return name, {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        if not hasattr(source, "read"):
            raise TypeError(f"path: expected a path or a file that is open for reading, got {type(source).__name__}")
        name = repr(getattr(source, "name", "the file"))
        data = source.read()
        if not isinstance(data, bytes):
            raise TypeError("path: expected a file that is open for bytes, got one for text")
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return name, tensors, dict(header.get("__metadata__", {}))
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} is not a safetensors file: {error}") from None


# --- ids and names --------------------------------------------------------------------------------------------------


def text_tensors(name: str, values: np.ndarray | None) -> dict[str, Tensor]:
    """Return tensors of ids or names: int64 [n], or text as UTF-8 [bytes] with the ends of each [n]."""
    if values is None:
        return {}
    if values.dtype.kind in "iu":
        return {PREFIX + name: torch.from_numpy(values.astype(np.int64))}
    parts = [text.encode("utf-8", "surrogatepass") for text in values.tolist()]
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return {
        f"{PREFIX}{name}.bytes": torch.from_numpy(np.frombuffer(b"".join(parts), np.uint8).copy()),
        f"{PREFIX}{name}.ends": torch.from_numpy(ends),
    }


def names_of(name: str, tensors: Mapping[str, Tensor]) -> np.ndarray | None:
    """Return what :func:`text_tensors` made tensors of, or None where a file has none.

    Raises:
        ValueError: the tensors are damaged.
    """
    numbers = tensors.get(PREFIX + name)
    if numbers is not None:
        if numbers.dtype != torch.int64 or numbers.dim() != 1:
            raise ValueError(f"{name}: expected int64 numbers")
        return numbers.numpy()
    data, ends = tensors.get(f"{PREFIX}{name}.bytes"), tensors.get(f"{PREFIX}{name}.ends")
    if data is None and ends is None:
        return None
    if data is None or ends is None or (data.dtype, ends.dtype) != (torch.uint8, torch.int64):
        raise ValueError(f"{name}: expected bytes and ends")
    lengths = np.diff(ends.numpy(), prepend=0)
    if data.dim() != 1 or ends.dim() != 1 or (lengths < 0).any() or int(lengths.sum()) != data.numel():
        raise ValueError(f"{name}: the ends do not fit the bytes")
    room = 4 * len(lengths) * int(lengths.max(initial=0))
    if room > max(_ROOM, 64 * data.numel()):
        raise ValueError(f"{name}: a text of {lengths.max():,} bytes would take {room:,} bytes for all")
    raw, begin, texts = data.numpy().tobytes(), 0, []
    for end in ends.tolist():
        texts.append(raw[begin:end].decode("utf-8", "surrogatepass"))
        begin = end
    return np.array(texts, dtype=np.str_)


def vocabulary_of(tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Vocabulary | None:
    """Return the vocabulary in a file's tensors, or None."""
    users, items = names_of("user_ids", tensors), names_of("item_ids", tensors)
    return None if users is None and items is None else Vocabulary(users, items, shape=shape)


def information(
    settings: Mapping[str, Any] | None, metrics: Mapping[str, float] | None, known: Mapping[str, Any]
) -> dict[str, str]:
    """Return what a file says in its metadata of where a model comes from.

    Raises:
        TypeError: settings or metrics are nothing that JSON can hold.
    """
    found = {**known, **{k: v for k, v in (("settings", settings), ("metrics", metrics)) if v is not None}}
    found["version"] = __version__
    try:
        return {"information": json.dumps(found, default=_plain)}
    except TypeError as error:
        raise TypeError(f"settings and metrics: expected what JSON can hold: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, Tensor)):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} {value!r}")


def item_names(names: Sequence[str] | np.ndarray | None, num_items: int) -> np.ndarray | None:
    """Return checked names of items."""
    if names is None:
        return None
    array = np.array([str(name) for name in names], dtype=np.str_)
    if len(array) != num_items:
        raise ValueError(f"item_names: expected {num_items}, one for each item, got {len(array)}")
    return array


# --- the card -------------------------------------------------------------------------------------------------------


class Described(Protocol):
    """What a model card tells of a model."""

    num_users: int
    num_items: int
    epochs_trained: int
    vocabulary: Vocabulary | None
    information: Mapping[str, Any]

    def config(self) -> dict[str, Any]:
        """Return the arguments that make such a model."""

    def parameters(self) -> Iterator[Tensor]:
        """Return the parameters, as a module does."""


def card(model: Described, name: str | None = None) -> str:
    """Return a model card: what the model is, what it was trained with, how good it is, how it is loaded. Markdown."""
    known = dict(model.information)
    kind = type(model).__name__
    title = name or kind
    lines = [
        "---",
        "library_name: zerosum-ext",
        "tags: [recommender-system, popularity-bias]",
        "---",
        "",
        f"# {title}",
        "",
        f"A {kind} of {model.num_users:,} users and {model.num_items:,} items with "
        f"{sum(p.numel() for p in model.parameters()):,} parameters, trained for {model.epochs_trained} epochs "
        f"with zerosum-ext {known.get('version', __version__)}.",
        "",
    ]
    lines += _table("Configuration", model.config())
    lines += _table("Training", known.get("settings"))
    lines += _table("Results", known.get("metrics"))
    ids = "external ids (`model.vocabulary`)" if model.vocabulary is not None else "numbers from 0"
    lines += [
        "## Use",
        "",
        "```python",
        "import zerosum_ext as zx",
        "",
        'model = zx.Recommender.load("model.safetensors")',
        "items, scores = model.recommend([0], 10)",
        "```",
        "",
        f"Users and items are {ids}.",
        "",
        "## Limits",
        "",
        "The model knows what was interacted with, and no more. It says nothing of users and items that it was not "
        "trained with; `fold_in` and `grow` bring them in where the model can. Lists follow the popularity of the "
        "training data unless the loss works against it: look at PopQ@1 and coverage beside accuracy.",
        "",
    ]
    return "\n".join(lines)


def _table(title: str, values: Any) -> list[str]:
    if not isinstance(values, Mapping) or not values:
        return []

    def shown(value: Any) -> str:
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        return " ".join(text.split()).replace("|", "\\|")

    rows = [f"| {shown(key)} | {shown(value)} |" for key, value in values.items()]
    return [f"## {title}", "", "| | |", "|---|---|", *rows, ""]
