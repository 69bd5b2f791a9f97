"""Reads the files of ``torch.distributed.checkpoint`` without running anything that stands in them.

torch keeps the list of a checkpoint's tables as a pickle, and reads it by ``pickle.load``: a file that somebody else
wrote could run any code. Here such a list may name the classes that it consists of, and nothing else.
"""

from __future__ import annotations

import enum
import os
import pickle
from pathlib import Path
from typing import Any

import torch

__all__ = ["failures", "reader"]

_LIST = ".metadata"
# What a list of tables is made of. (BytesStorageMetadata is missing on purpose: torch unpickles what it stands for.)
_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata",
        "TensorStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "collections": ("OrderedDict",),
    **dict.fromkeys(("pathlib", "pathlib._local"), ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
}


def _member(kind: Any, name: str) -> Any:
    """Return a member of an enumeration: some Pythons (3.11.2 is one) write it as ``getattr(enumeration, name)``."""
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum) and name in kind.__members__):
        raise ValueError(f"{_LIST} asks for {name!r} of {kind!r}, which is no member of an enumeration")
    return kind.__members__[name]


class _Plain(pickle.Unpickler):
    """Makes objects of the classes of a list of tables alone."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and name not in _CLASSES.get(module, ()):
            raise ValueError(f"{_LIST} names {module}.{name}, which no list of tables consists of")
        return super().find_class(module, name)


def failures() -> tuple[type[BaseException], ...]:
    """Return what is raised where a checkpoint cannot be read or written.

    What torch raises in all processes, if one of them failed, is no Exception, but a BaseException.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    return Exception, CheckpointException


def reader(folder: str | os.PathLike[str]) -> Any:
    """Return a storage reader of torch.distributed.checkpoint for a folder.

    Its methods raise what torch makes of damaged files, and a ValueError where the list of tables names code to run, or
    files outside the folder.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
            with open(Path(folder) / _LIST, "rb") as file:
                found = _Plain(file).load()
            if not isinstance(found, Metadata) or not isinstance(found.storage_data, dict):
                raise ValueError(f"{_LIST} is no list of tables")
            for place in found.storage_data.values():
                name = place.relative_path
                if not isinstance(name, str) or name in ("", ".", "..") or name != os.path.basename(name):
                    raise ValueError(f"{_LIST} names a file {name!r}, which is not in the folder")
            found.storage_meta = getattr(found, "storage_meta", None) or StorageMeta()
            found.storage_meta.load_id = self.load_id
            return found

    return Reader(folder)
