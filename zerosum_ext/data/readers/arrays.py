"""Archives of NumPy arrays (.npz), one for each column."""

from __future__ import annotations

import struct
import tokenize
import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format

from zerosum_ext.data import times
from zerosum_ext.data.readers.columns import NUMERIC, choose
from zerosum_ext.data.readers.sources import DAMAGED
from zerosum_ext.data.readers.table import Options, Table

__all__ = ["load_arrays", "read_npz"]


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an archive.

    Raises:
        ValueError: it is damaged, or an array claims more bytes than the archive holds.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _check_claim(archive, member)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except DAMAGED as error:
        raise ValueError(
            f"{path} cannot be read as .npz: {' '.join(str(error).split()) or type(error).__name__}"
        ) from None


def _check_claim(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Refuse an array whose header asks for memory that its data cannot fill."""
    if member.file_size > 1100 * member.compress_size + 1000:  # deflate packs 1032 bytes into one at best
        raise ValueError(f"{member.filename} claims {member.file_size:,} bytes, more than its data can hold")
    with archive.open(member) as file:
        version = npy_format.read_magic(file)
        read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        try:
            shape, _, dtype = read(file)
        except (struct.error, ValueError, SyntaxError, tokenize.TokenError, RecursionError) as error:
            raise ValueError(f"{member.filename} has a damaged header ({error})") from None
        size = int(np.prod([int(length) for length in shape], dtype=object)) * dtype.itemsize
        if size > member.file_size:
            raise ValueError(f"{member.filename} claims {size:,} bytes and has {member.file_size:,}")


def read_npz(path: Path, options: Options) -> Table:
    """Return the columns of an archive of aligned arrays.

    Raises:
        ValueError: the archive is damaged, or its arrays are not aligned with the users.
    """
    arrays = load_arrays(path)
    names = list(arrays)
    choice = choose(str(path), names, [[] for _ in names], options.columns)
    columns = {key: np.asarray(arrays[names[c]]) for key, c in choice.columns.items()}
    shape = columns["user"].shape
    left = []
    # Named arrays carry no unrelated text: all that are aligned with the users are kept, under their own names.
    for at, (name, array) in enumerate(arrays.items()):
        if at in choice.columns.values():
            continue
        if name not in columns and np.shape(array) == shape:
            columns[name] = np.asarray(array)
            choice.columns[name] = at
        else:
            left.append(name)
    if len(shape) != 1:
        raise ValueError(f"{path}: column 'user' has shape {shape}, expected one dimension")
    for key, values in columns.items():
        if values.shape != shape:
            raise ValueError(f"{path}: column {key!r} has shape {values.shape}, expected {shape} as the users")
        if values.dtype.kind in "fM" and key in ("user", "item", *NUMERIC) and not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            expected = "a date" if values.dtype.kind == "M" else "a finite number"
            raise ValueError(f"{path}: row {row}: the {key} is {values[row]}, expected {expected}")
    if shape == (0,):
        raise ValueError(f"{path} has no rows")
    if "timestamp" in columns:
        columns["timestamp"] = times.to_numbers(f"{path}: timestamp", columns["timestamp"])
    notes = [choice.note(names), *choice.guesses]
    return Table(
        dict(columns),
        shape[0],
        notes=tuple([*notes, f"not read: {', '.join(left)}"] if left else notes),
        used=choice.used(names),
        unread=tuple(left),
        guesses=tuple(choice.guesses),
        numbered=True,
    )
