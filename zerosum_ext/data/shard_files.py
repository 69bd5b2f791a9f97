"""Folders of parquet files in which all rows of a user are in one file: written here or by others, read by many
processes.

No process reads more than its own files. Users are numbered file by file, so their numbers do not depend on the number
of processes. Items are numbered in ascending order of their ids: each process sorts a range of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zerosum_ext._checks import require_positive_int
from zerosum_ext._files import flush, flush_folder
from zerosum_ext._group import Group, as_group
from zerosum_ext.data.interactions import IdType, Interactions
from zerosum_ext.data.row_groups import SAME_FILES, find_files, own_share, shared_rows
from zerosum_ext.data.shards import ShardedInteractions

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_shards", "write_shards"]

# How many ids of each process are looked at to cut all of them into ranges.
_SAMPLES = 1024
_MOST_PARTS = 100_000
_BATCH_ROWS = 1 << 20


# --- writing -----------------------------------------------------------------------------------------------------


def write_shards(
    source: Interactions | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    parts: int,
    *,
    user: str = "user",
    note: Callable[[str], Any] = lambda text: None,
) -> list[int]:
    """Write interactions as a folder of parquet files, with all rows of a user in one of them.

    A user's file follows from the user's id alone. Parquet is read and written batch by batch, so that it need not fit
    into memory; interactions in memory keep their ids, or else their numbers, and their columns.

    Args:
        source: interactions, or a parquet file or a folder of such.
        folder: a new folder.
        parts: the number of files: at least the number of processes that are to read them, and better four times as
            many.
        user: the column of the user in a parquet source.
        note: called with lines that a person would want to read.

    Returns:
        The number of rows of each file.

    Raises:
        ValueError: the folder holds something, the column is missing, or a user is null.
        OSError: a file cannot be read or written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = require_positive_int("parts", parts, maximum=_MOST_PARTS)
    rows = [0] * parts
    with _new_folder(folder) as unfinished:
        schema, batches = _batches(source, user)
        with contextlib.ExitStack() as files:
            writers: list[Any] = [None] * parts
            for batch in batches:
                place = _part_of(batch.column(schema.get_field_index(user)), parts)
                order = np.argsort(place, kind="stable")
                ends = np.searchsorted(place[order], np.arange(parts + 1))
                for part in np.unique(place):
                    if writers[part] is None:
                        # What pyarrow opens itself stays open where its last bytes cannot be written.
                        file = files.enter_context(pa.OSFile(os.fspath(unfinished / _name(part)), "wb"))
                        writers[part] = files.enter_context(pq.ParquetWriter(file, schema))
                    chosen = batch.take(order[ends[part] : ends[part + 1]])
                    writers[part].write_batch(chosen)
                    rows[part] += chosen.num_rows
        for part, writer in enumerate(writers):
            if writer is None:  # an empty file, so that the number of files is as asked for
                pq.write_table(schema.empty_table(), unfinished / _name(part))
    mean = max(1.0, sum(rows) / parts)
    note(f"{sum(rows):,} rows in {parts} files, the largest {max(rows) / mean:.2f} times the mean")
    return rows


def _name(part: int) -> str:
    return f"part-{part:05d}.parquet"


@contextlib.contextmanager
def _new_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a folder to write files to, and move it into place at the end; on any error it is removed.

    Its name is its own, so that two writers do not meet, and its files are on the disk before they are in place.
    """
    target = Path(os.path.abspath(folder))
    taken = f"folder: expected a new or empty one, got {os.fspath(folder)!r}"
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise ValueError(taken)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name[:32]}.{secrets.token_hex(8)}.part")
    unfinished.mkdir()
    try:
        yield unfinished
        for file in unfinished.iterdir():
            flush(file)
        if target.exists():
            target.rmdir()
        unfinished.rename(target)
        flush_folder(target.parent)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise ValueError(taken) from error
        raise


def _batches(source: Any, user: str) -> tuple[pa.Schema, Any]:
    """Return the schema of the rows, and the rows batch by batch."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    if isinstance(source, Interactions):
        users, items = (side.cpu().numpy() for side in source.pairs())
        columns = {user: source.decode_users(users), "item": source.decode_items(items), **source.columns}
        columns.pop("row", None)
        table = pa.table(
            {
                name: pa.array(values.tolist() if values.dtype.kind == "U" else values)
                for name, values in columns.items()
            }
        )
        return table.schema, table.to_batches(max_chunksize=_BATCH_ROWS)
    if not Path(source).exists():
        raise FileNotFoundError(f"no file or folder {os.fspath(source)!r}")
    try:
        data = ds.dataset(source, format="parquet")
    except pa.ArrowInvalid as error:
        raise ValueError(f"{os.fspath(source)!r} is not parquet: {str(error).splitlines()[0]}") from None
    if user not in data.schema.names:
        raise ValueError(f"user: expected a column of {', '.join(data.schema.names)}, got {user!r}")
    return data.schema, data.to_batches(batch_size=_BATCH_ROWS)


def _part_of(users: pa.Array, parts: int) -> np.ndarray:
    """Return the file of each row, which follows from the spelling of the user's id."""
    if users.null_count:
        raise ValueError("user: expected an id in every row, got null")
    encoded = users.dictionary_encode()
    words = encoded.dictionary.to_pylist()
    places = np.fromiter((zlib.crc32(str(word).encode()) % parts for word in words), np.int64, len(words))
    place: np.ndarray = places[np.asarray(encoded.indices)]
    return place


# --- reading -----------------------------------------------------------------------------------------------------


def read_shards(
    folder: str | os.PathLike[str],
    mesh: Any,
    *,
    columns: Mapping[str, str | int | None] | None = None,
    id_type: IdType = "auto",
    min_rating: float | None = None,
) -> ShardedInteractions:
    """Read this process's share of a folder of parquet files. All processes call this together.

    Files are laid one after the other in the order of their names, and cut into shares of as many rows. A file that a
    cut goes through is read by several processes, each some of its row groups; every row of it is then sent to the
    process that owns its user. Other rows and the ids of their users are held by one process alone. Of the ids of the
    items each process keeps those of its own range.

    Args:
        folder: the folder. All rows of a user have to be in one file, in any row groups of it; this is checked.
        mesh: a DeviceMesh or a process group.
        columns, id_type, min_rating: as in :meth:`Interactions.from_file`. ``min_rating`` leaves out rows, and users
            and items that only have such.

    Raises:
        ValueError: no rows, other files in another process, ids of two kinds, a user in two files, or what from_file
            raises.
        OSError: a file cannot be read.
    """
    group = as_group(mesh)
    files: list[Path] = []
    error: Exception | None = None
    try:
        files = find_files(Path(folder))
    except OSError as wrong:
        error = wrong
    group.together(error)
    _same_files(Path(folder), files, group)
    share = own_share(files, group)
    options: dict[str, Any] = {"columns": columns, "id_type": id_type, "min_rating": min_rating}
    shared = shared_rows(share, group, columns=columns or {}, id_type=id_type)
    found: list[Interactions] = []
    try:
        for number in sorted({*share.whole, *shared}):
            file = share.files[number]
            if number in shared:
                found.append(Interactions.from_table(shared.pop(number), **options))
            else:
                found.append(Interactions.from_file(file, format="parquet", **options))
                share.check_rows(number, found[-1].report.rows)
    except (OSError, ValueError, TypeError) as wrong:
        error = wrong
    group.together(error)
    users = _one_kind("user", [one.user_ids for one in found], group)
    items = _one_kind("item", [one.item_ids for one in found], group)
    # Each user in one file: the process that a user's id falls to sees it once.
    numbers, own, _ = _number(users, group)
    twice: Any = np.flatnonzero(np.bincount(numbers - numbers.min(initial=0)) > 1) if len(numbers) else []
    total = int(group.sum_(torch.tensor([len(own)], device=group.device)))
    every = sum(group.counts(len(users)))
    if total != every:
        here = f"; user {users[np.flatnonzero(numbers == twice[0] + numbers.min())[0]]!r}" if len(twice) else ""
        raise ValueError(
            f"folder: expected all rows of a user in one file, got {every - total:,} users in several{here}. Write the "
            "files by zerosum-ext shard, or partitioned by a hash of the user"
        )
    numbers, item_ids, cuts = _number(items, group)
    local = _stacked(found, users, numbers, cuts[-1], group)
    return ShardedInteractions(local, group, item_ids=item_ids, item_cuts=cuts)


def _same_files(folder: Path, files: list[Path], group: Group) -> None:
    """Raise if the processes do not see the same files."""
    sizes: dict[str, int] = {}
    error: Exception | None = None
    try:
        sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    except OSError as wrong:
        error = wrong
    group.together(error)
    group.agree(
        "folder", f"{len(files)} files, {sum(sizes.values())} bytes, {zlib.crc32(repr(sizes).encode()):08x}", SAME_FILES
    )


def _one_kind(what: str, parts: list[np.ndarray | None], group: Group) -> np.ndarray:
    """Return ids one after the other, as int64 or as UTF-8 of one width in all processes."""
    sides = [np.zeros(0, np.int64) if ids is None else ids for ids in parts]
    text = [ids for ids in sides if ids.dtype.kind == "U"]
    kinds = torch.tensor([bool(text), any(ids.dtype.kind != "U" and len(ids) for ids in sides)], device=group.device)
    is_text, is_number = group.max_(kinds.long()).tolist()
    if is_text and is_number:
        raise ValueError(f"id_type: {what}s are text in some files and integers in others; say id_type='str' or 'int'")
    if not is_text:
        return np.concatenate(sides).astype(np.int64) if sides else np.zeros(0, np.int64)
    encoded = np.char.encode(np.concatenate(text), "utf-8") if text else np.zeros(0, "S1")
    width = int(group.max_(torch.tensor([encoded.dtype.itemsize], device=group.device)))
    return encoded.astype(f"S{width}")


def _stacked(
    found: list[Interactions], users: np.ndarray, numbers: np.ndarray, num_items: int, group: Group
) -> Interactions:
    """Return the interactions of several files as one: users one after the other, items by their numbers."""
    pairs_users, pairs_items, at_user, at_item = [], [], 0, 0
    columns: dict[str, list[np.ndarray]] = {}
    for one in found:
        own_users, own_items = (side.numpy() for side in one.pairs())
        pairs_users.append(own_users + at_user)
        pairs_items.append(numbers[at_item + own_items])
        for name, values in one.columns.items():
            columns.setdefault(name, []).append(values)
        at_user += one.num_users
        at_item += one.num_items
    whole = {name: np.concatenate(values) for name, values in columns.items() if len(values) == len(found)}
    whole.pop("row", None)
    # A process without rows has the columns that all others have.
    kinds = group.gather_objects({name: values.dtype.str for name, values in whole.items()} if found else None)
    named = [one for one in kinds if one is not None]
    whole = {
        name: whole.get(name, np.zeros(0, kind)) for name, kind in named[0].items() if all(name in one for one in named)
    }
    none = np.zeros(0, np.int64)
    local = Interactions.from_arrays(
        np.concatenate([none, *pairs_users]),
        np.concatenate([none, *pairs_items]),
        shape=(at_user, num_items),
        columns=whole,
    )
    ids = np.char.decode(users, "utf-8") if users.dtype.kind == "S" else users
    return local.with_user_ids(ids)


# --- ids in ascending order over all processes -------------------------------------------------------------------


def _number(ids: np.ndarray, group: Group) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Number the ids of all processes in ascending order.

    Each process sorts the ids of one range: the ranges follow from a sample of all. An id that several processes have
    gets one number.

    Args:
        ids: those of this process, in any order, int64 or UTF-8 of one width.
        group: the processes, who call this together.

    Returns:
        The number of each id; the distinct ids of this process's range; where each range begins, and the number of all.
    """
    distinct, inverse = np.unique(ids, return_inverse=True)
    step = max(1, len(distinct) // _SAMPLES)
    samples = np.sort(
        np.concatenate([_ids(part, ids.dtype) for part in group.gather(_tensor(distinct[::step], group))])
    )
    aims = [len(samples) * rank // group.size for rank in range(1, group.size)]
    bounds = samples[aims] if len(samples) else samples
    ends = [
        0,
        *np.searchsorted(distinct, bounds).tolist(),
        *([] if len(samples) else [0] * (group.size - 1)),
        len(distinct),
    ]
    send = [b - a for a, b in pairwise(ends)]
    receive = group.swap(torch.tensor(send, device=group.device)).tolist()
    came = _ids(group.exchange(_tensor(distinct, group), send, receive), ids.dtype)
    own, place = np.unique(came, return_inverse=True)
    counts = group.counts(len(own))
    cuts = [sum(counts[:rank]) for rank in range(group.size + 1)]
    back = torch.from_numpy(place.astype(np.int64) + cuts[group.rank]).to(group.device)
    numbers = group.exchange(back, receive, send).cpu().numpy()
    kept = np.char.decode(own, "utf-8") if own.dtype.kind == "S" else own
    return numbers[inverse.reshape(-1)], kept, cuts


def _tensor(ids: np.ndarray, group: Group) -> Tensor:
    """Return ids as what can be sent: numbers, or rows of bytes."""
    if ids.dtype.kind != "S":
        return torch.from_numpy(np.ascontiguousarray(ids)).to(group.device)
    rows = np.frombuffer(ids.tobytes(), np.uint8).reshape(len(ids), ids.dtype.itemsize)
    return torch.from_numpy(rows.copy()).to(group.device)


def _ids(rows: Tensor, dtype: np.dtype[Any]) -> np.ndarray:
    return np.frombuffer(rows.cpu().numpy().tobytes(), dtype)
