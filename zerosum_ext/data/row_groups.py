"""Who reads which row groups of a folder of parquet files, and to whom the rows of a shared file go.

Files are laid one after the other and cut into shares of as many rows. A cut that falls near the end of a file moves
there, so that the file stays whole. A file that a cut goes through is shared: each process reads row groups of it, and
sends every row to the process that owns the row's user. Those are ranges of the file's users in ascending order. So a
user's rows end in one process, also where they stand in several row groups, and users keep the numbers that they have
when one process reads the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zerosum_ext._group import Group
from zerosum_ext.data import readers
from zerosum_ext.data.ids import Coded
from zerosum_ext.data.readers.columns import choose

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SAME_FILES", "Piece", "Share", "find_files", "own_share", "shared_rows"]

# A cut moves to the end of a file that is nearer than this part of a share.
_NEAR = 0.125
# How many users of its rows a process tells the others, to cut the users of a shared file into ranges.
_SAMPLES = 1024
SAME_FILES = "every process has to see the same files, on a disk that all share or in copies of one folder"


@dataclass(frozen=True)
class Piece:
    """Row groups ``first`` to ``last`` of the file with this number."""

    file: int
    first: int
    last: int


@dataclass
class Share:
    """What this process reads and owns.

    Attributes:
        files: all files with rows, in the order of their names.
        rows: the number of rows of each of their row groups.
        whole: the numbers of those that this process has for itself.
        pieces: what it reads of shared files.
        cuts: for each boundary between two ranks, the number of a file and the part of its rows that stands before the
            boundary, 0 where the boundary is the file's beginning.
    """

    files: list[Path]
    rows: list[list[int]]
    whole: list[int]
    pieces: list[Piece]
    cuts: list[tuple[int, float]]

    def check_rows(self, file: int, found: int, first: int = 0, last: int | None = None) -> None:
        """Raise ValueError if row groups of a file have not as many rows as the process found that planned with it."""
        planned = sum(self.rows[file][first:last])
        if found != planned:
            seen = f"expected {planned:,} rows as another process sees them, got {found:,}"
            raise ValueError(f"{self.files[file]}: {seen}; {SAME_FILES}")

    def owners(self, file: int) -> tuple[int, int]:
        """Return the first and the last rank that own users of a file."""
        before = sum(1 for at, part in self.cuts if (at, part) <= (file, 0.0))
        inside = sum(1 for at, part in self.cuts if at == file and part > 0)
        return before, before + inside


def find_files(folder: Path) -> list[Path]:
    """Return the parquet files of a folder and of the folders in it, in the order of their names."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}")
    files = sorted(file for file in folder.rglob("*.parquet") if not file.name.startswith((".", "_")))
    if not files:
        raise FileNotFoundError(f"no parquet files in {str(folder)!r}")
    return files


def own_share(files: Sequence[Path], group: Group) -> Share:
    """Return this process's share of files that are the same for all. All processes call this together.

    Raises:
        ValueError: a file is not parquet, or no file has a row.
    """
    sizes = _sizes(files, group)
    full = [number for number, rows in enumerate(sizes) if sum(rows)]
    if not full:
        raise ValueError(f"{files[0].parent}: expected rows, got {len(files)} parquet files without any")
    rows = [sizes[number] for number in full]
    cuts, reads = plan_cuts(rows, group.size)
    share = Share([files[number] for number in full], rows, [], [], cuts)
    starts, ends = [(0, 0), *reads], [*reads, (len(rows), 0)]
    (first, first_group), (last, last_group) = starts[group.rank], ends[group.rank]
    for file in range(len(rows)):
        low, high = share.owners(file)
        if low == high:
            if low == group.rank:
                share.whole.append(file)
            continue
        begin = 0 if file > first else first_group if file == first else len(rows[file])
        end = len(rows[file]) if file < last else last_group if file == last else 0
        if begin < end:
            share.pieces.append(Piece(file, begin, end))
    return share


def plan_cuts(rows: Sequence[Sequence[int]], size: int) -> tuple[list[tuple[int, float]], list[tuple[int, int]]]:
    """Return the boundaries between ``size`` ranks.

    Args:
        rows: the number of rows of each row group of each file; each file has rows.
        size: the number of ranks.

    Returns:
        For each boundary the file and the part of its rows before it, and the file and the row group where the next
        rank begins to read.
    """
    totals = [sum(groups) for groups in rows]
    ends = np.cumsum(totals)
    total = int(ends[-1])
    starts = np.concatenate(([0], ends))
    cuts: list[tuple[int, float]] = []
    reads: list[tuple[int, int]] = []
    for rank in range(1, size):
        at = total * rank / size
        near = int(np.abs(starts - at).argmin())
        if abs(starts[near] - at) <= _NEAR * total / size:
            cuts.append((near, 0.0))
            reads.append((near, 0))
            continue
        file = int(np.searchsorted(ends, at, side="right"))
        inside = at - starts[file]
        edges = np.concatenate(([0], np.cumsum(rows[file])))
        cuts.append((file, inside / totals[file]))
        reads.append((file, int(np.abs(edges - inside).argmin())))
    return cuts, reads


def _sizes(files: Sequence[Path], group: Group) -> list[list[int]]:
    """Return the number of rows of each row group of each file. Each process looks at some of the files."""
    import pyarrow.parquet as pq

    found: list[tuple[int, int, int]] = []
    wrong: Exception | None = None
    for place in range(group.rank, len(files), group.size):
        try:
            known = pq.read_metadata(files[place])
            found += [(place, number, known.row_group(number).num_rows) for number in range(known.num_row_groups)]
        except Exception as error:  # whatever pyarrow makes of a file that is none
            wrong = ValueError(f"{files[place]} is not parquet: {str(error).splitlines()[0]}")
    group.together(wrong)
    own = torch.tensor(found, dtype=torch.int64, device=group.device).reshape(-1, 3)
    sizes: list[list[int]] = [[] for _ in files]
    for place, _, rows in sorted(torch.cat(group.gather(own)).tolist()):
        sizes[place].append(rows)
    return sizes


# --- files that several processes share --------------------------------------------------------------------------


def shared_rows(
    share: Share, group: Group, *, columns: Mapping[str, str | int | None], id_type: str
) -> dict[int, pa.Table]:
    """Read the own row groups of shared files, and return all rows of the own users of such files, by file.

    All processes call this together. The rows of a user stay in the order of the file.

    Raises:
        ValueError: a file is damaged, or has rows that cannot be used.
    """
    read: dict[int, pa.Table] = {}
    users: dict[int, Coded] = {}
    error: Exception | None = None
    try:
        for piece in share.pieces:
            table = _read(share.files[piece.file], piece, columns)
            share.check_rows(piece.file, table.num_rows, piece.first, piece.last)
            if not table.num_rows:
                continue
            read[piece.file] = table
            users[piece.file] = _users(share.files[piece.file], piece, table, columns, id_type)
    except (OSError, ValueError, TypeError) as wrong:
        error = wrong
    group.together(error)
    bounds = _bounds(share, users, group)
    parts: list[list[tuple[int, Any]]] = [[] for _ in range(group.size)]
    for file, table in read.items():
        first, last = share.owners(file)
        owner = first + np.searchsorted(bounds[file], users[file].words, side="right")[users[file].codes]
        for rank in range(first, last + 1):
            chosen = np.flatnonzero(owner == rank)
            if len(chosen):
                parts[rank].append((file, table if len(chosen) == table.num_rows else table.take(chosen)))
    del read, users
    return _exchange(parts, group)


def _read(path: Path, piece: Piece, columns: Mapping[str, str | int | None]) -> pa.Table:
    """Return the columns that are used of some row groups."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    try:
        data = ds.dataset(path, format="parquet", partitioning="hive")
        names = data.schema.names
        choice = choose(str(path), names, [[] for _ in names], columns)
        (fragment,) = data.get_fragments()
        some = fragment.subset(row_group_ids=list(range(piece.first, piece.last)))
        source = ds.FileSystemDataset([some], data.schema, data.format, filesystem=data.filesystem)
        table = source.to_table(columns=[names[place] for place in sorted(set(choice.columns.values()))])
    except (pa.ArrowException, IndexError, *readers.DAMAGED) as error:
        raise ValueError(f"{path} cannot be read as parquet: {str(error).splitlines()[0][:200]}") from None
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):  # each message would bring all words of the column
            table = table.set_column(place, field.name, table.column(place).cast(field.type.value_type))
    return table


def _users(path: Path, piece: Piece, table: pa.Table, columns: Mapping[str, str | int | None], id_type: str) -> Coded:
    """Return the users of rows, as the reader of files makes them, which looks at all columns."""
    options = readers.Options(columns=dict(columns), id_type=id_type)
    try:
        found = readers.from_stream(table, options).columns["user"]
    except ValueError as error:
        said = str(error).removeprefix("pyarrow table").removeprefix(":").strip()
        raise ValueError(f"{path}, row groups {piece.first} to {piece.last - 1}: {said}") from None
    assert isinstance(found, Coded)
    return found


def _bounds(share: Share, users: Mapping[int, Coded], group: Group) -> dict[int, np.ndarray]:
    """Return for each shared file the first user of each owner but the first one."""
    samples: dict[int, tuple[int, np.ndarray]] = {}
    for file, found in users.items():
        ordered = np.sort(found.codes)
        places = (np.arange(_SAMPLES) * len(ordered)) // _SAMPLES
        samples[file] = len(ordered), found.words[ordered[places]]
    everyone = group.gather_objects(samples)
    bounds = {}
    for file in sorted({file for one in everyone for file in one}):
        known = [one[file] for one in everyone if file in one]
        words = np.concatenate([words for _, words in known])
        weights = np.concatenate([np.full(len(words), rows / len(words)) for rows, words in known])
        distinct, place = np.unique(words, return_inverse=True)
        edges = np.concatenate(([0.0], np.cumsum(np.bincount(place.reshape(-1), weights))))
        aims = [part * edges[-1] for at, part in share.cuts if at == file and part > 0]
        # The user whose first row is nearest to where the cut should be.
        bounds[file] = distinct[[int(np.abs(edges[:-1] - aim).argmin()) for aim in aims]]
    return bounds


def _exchange(parts: list[list[tuple[int, Any]]], group: Group) -> dict[int, pa.Table]:
    """Send tables, each with the number of its file, to the ranks that they are for; return what came, by file."""
    import pyarrow as pa

    messages = [b"".join(_packed(file, table) for file, table in part) for part in parts]
    send = [len(message) for message in messages]
    receive = group.swap(torch.tensor(send, device=group.device)).tolist()
    own = torch.from_numpy(np.frombuffer(b"".join(messages), np.uint8).copy()).to(group.device)
    del messages, parts
    came = memoryview(group.exchange(own, send, receive).cpu().numpy().data)
    tables: dict[int, list[pa.Table]] = {}
    at = 0
    while at < len(came):
        file, length = (int.from_bytes(came[at + 8 * i : at + 8 * i + 8], "little") for i in range(2))
        at += 16
        tables.setdefault(file, []).append(pa.ipc.open_stream(pa.py_buffer(came[at : at + length])).read_all())
        at += length
    return {file: pa.concat_tables(some) for file, some in tables.items()}


def _packed(file: int, table: pa.Table) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return file.to_bytes(8, "little") + len(body).to_bytes(8, "little") + body
