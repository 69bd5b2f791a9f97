"""The processes that share a run, and what they send each other by torch.distributed.

Rows travel by ``all_to_all_single``: each process sends every other one the rows that it asked for, and nothing else.
Sums travel by ``all_reduce``. The same calls run on gloo (CPU) and NCCL (CUDA).
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import socket
import time
import zlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["Group", "LostProcess", "as_group", "even_cuts", "start_group"]

# How long a process waits for the others' sign of life after a collective has failed.
_SIGN_SECONDS = 2.0
# How long a process that ends gives gloo's threads.
_SETTLE_SECONDS = 0.1


class LostProcess(ConnectionError):
    """A process of the group ended while others waited for it; the message names it.

    Attributes:
        speaks: whether this process is the one of those left that is to tell of it.
    """

    speaks: bool = True


def even_cuts(size: int, parts: int) -> list[int]:
    """Return where ``parts`` parts of ``size`` rows begin, and the end of the last: parts + 1 numbers.

    All parts have ``ceil(size / parts)`` rows but the last ones, as those of ``torch.chunk`` and of DTensor's Shard(0).
    """
    each = -(-size // parts)
    return [min(part * each, size) for part in range(parts + 1)]


def start_group(seconds: float = 1800.0) -> Group:
    """Join the processes that torchrun started, unless this process has joined them already, and return the group.

    The backend is NCCL where each process has a GPU of its own, and gloo otherwise. Without torchrun the group is this
    process alone.

    Args:
        seconds: how long a collective waits for the slowest process.

    Raises:
        ValueError: the environment of torchrun is only partly there.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if name not in os.environ]
    if not dist.is_initialized() and len(missing) == len(names):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    if not dist.is_initialized():
        if missing:
            raise ValueError(
                f"mesh: expected the environment of torchrun, which lacks {', '.join(missing)}; start the program by "
                "torchrun --nproc-per-node N"
            )
        local = int(os.environ.get("LOCAL_RANK", "0"))
        gpu = torch.cuda.is_available() and torch.cuda.device_count() > local and dist.is_nccl_available()
        if gpu:
            torch.cuda.set_device(local)
        backend, timeout = "nccl" if gpu else "gloo", timedelta(seconds=seconds)
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store = _store_of_this_start(timeout)
            rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        else:
            dist.init_process_group(backend, timeout=timeout)
    return Group(dist.group.WORLD)


def _store_of_this_start(timeout: timedelta) -> Any:
    """Return the store of torchrun's agent, with names of its own for each time that torchrun starts the processes.

    With ``--master-port`` the agent keeps its store over ``--max-restarts``. Processes would find the addresses of
    those that were killed there, and would wait for them in vain.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
    number = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"start {number}", store)  # type: ignore[attr-defined]


def as_group(mesh: Any) -> Group:
    """Return the group of a mesh.

    Args:
        mesh: a one-dimensional ``torch.distributed.device_mesh.DeviceMesh``, a process group, or a :class:`Group`.

    Raises:
        TypeError: it is none of these.
        ValueError: the mesh has several dimensions, or this process is not part of it.
    """
    if isinstance(mesh, Group):
        return mesh
    if hasattr(mesh, "get_group") and hasattr(mesh, "ndim"):
        if mesh.ndim != 1:
            raise ValueError(f"mesh: expected one dimension, got {mesh.ndim}; pass one of them, such as mesh['data']")
        return Group(mesh.get_group())
    if isinstance(mesh, dist.ProcessGroup):
        return Group(mesh)
    raise TypeError(f"mesh: expected a DeviceMesh or a process group, got {type(mesh).__name__}")


@functools.cache
def _settle_at_exit() -> None:
    """Let gloo's threads free the last messages before Python ends.

    They need Python's lock for it. One that asks for the lock while Python ends aborts the process, after all its work
    is done (torch 2.13). Sleeping hands them the lock.
    """
    atexit.register(time.sleep, _SETTLE_SECONDS)


class Group:
    """Processes that work on one run, each with a number from 0, its rank.

    Attributes:
        rank: the number of this process.
        size: the number of processes.
        device: where tensors that are sent have to be.
        sent: the number of bytes that this process has handed over for others so far. A sum over n numbers counts as
            2 (size - 1) / size n numbers, which a ring sends.
        calls: the number of collectives so far.
    """

    def __init__(self, process_group: Any) -> None:
        self.process_group = process_group
        self.rank = dist.get_rank(process_group)
        if self.rank < 0:
            raise ValueError("mesh: expected one that this process is part of, got one of others")
        self.size = dist.get_world_size(process_group)
        cuda = "nccl" in dist.get_backend(process_group)
        self.device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        self.sent = 0
        self.calls = 0
        _settle_at_exit()
        self._introduce()

    # --- collectives ----------------------------------------------------------------------------------------

    def exchange(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """Send ``send[r]`` of the rows to each rank r, in the order of the ranks, and return what the others sent here.

        Args:
            rows: [sum(send), ...].
            send: the number of rows for each rank.
            receive: the number of rows from each rank.

        Returns:
            [sum(receive), ...], those of rank 0 first.
        """
        out = rows.new_empty((sum(receive), *rows.shape[1:]))
        width = rows.element_size() * (rows[0].numel() if len(rows) else 0)
        self._count((sum(send) - send[self.rank]) * width)
        if self.size == 1:
            return out.copy_(rows)
        with _Watch(self):
            dist.all_to_all_single(out, rows.contiguous(), list(receive), list(send), group=self.process_group)
        return out

    def swap(self, numbers: Tensor) -> Tensor:
        """Send row r of ``numbers`` [size, ...] to rank r, and return the rows that were sent here, [size, ...]."""
        ones = [1] * self.size
        return self.exchange(numbers, ones, ones)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over all processes; all of them get the same bits."""
        return self._reduce(tensor, dist.ReduceOp.SUM)

    def max_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its largest values over all processes."""
        return self._reduce(tensor, dist.ReduceOp.MAX)

    def gather(self, rows: Tensor) -> list[Tensor]:
        """Return the rows [n_r, ...] of each process, in the order of the ranks."""
        if self.size == 1:
            return [rows]
        counts = self.counts(len(rows))
        longest = max(counts)
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in counts]
        self._count((self.size - 1) * padded.numel() * padded.element_size())
        with _Watch(self):
            dist.all_gather(found, padded, group=self.process_group)
        return [one[:count] for one, count in zip(found, counts, strict=True)]

    def counts(self, number: int) -> list[int]:
        """Return the number of each process, in the order of the ranks."""
        numbers = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        numbers[self.rank] = number
        return [int(value) for value in self.sum_(numbers).tolist()]

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return bool(self.max_(torch.tensor([int(flag)], dtype=torch.int64, device=self.device)))

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """Fill the tensor of every process with that of one rank."""
        if self.size == 1:
            return tensor
        self._count(tensor.numel() * tensor.element_size() if self.rank == source else 0)
        with _Watch(self):
            dist.broadcast(tensor, group_src=source, group=self.process_group)
        return tensor

    def share(self, value: Any) -> Any:
        """Return the plain value, such as a dictionary of numbers and text, that rank 0 has."""
        values = [value]
        if self.size > 1:
            with _Watch(self):
                dist.broadcast_object_list(values, group_src=0, group=self.process_group, device=self.device)
        return values[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the value of each process, in the order of the ranks: anything that pickle takes, and small."""
        values = [value] * self.size
        if self.size > 1:
            with _Watch(self):
                dist.all_gather_object(values, value, group=self.process_group)
        return values

    def agree(self, what: str, value: Any, hint: str = "") -> None:
        """Raise in every process if a value is not the same in all of them.

        Args:
            what: the name of the value, for the message.
            value: text, numbers, or a dictionary of such, in which case the message names what differs.
            hint: what to do about it, for the message.

        Raises:
            ValueError: it differs; the message names a rank.
        """
        values = self.gather_objects(value)
        for rank, other in enumerate(values):
            if other == values[0]:
                continue
            name, ours, theirs = what, values[0], other
            if isinstance(ours, dict) and isinstance(theirs, dict):
                key = next(key for key in [*ours, *theirs] if ours.get(key) != theirs.get(key))
                name, ours, theirs = f"{what} {key}", ours.get(key), theirs.get(key)
            raise ValueError(
                f"{name}: expected the same in every process, got {ours!r} in rank 0 and {theirs!r} in rank {rank}"
                + (f"; {hint}" if hint else "")
            )

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.any(False)

    def together(self, error: BaseException | None) -> None:
        """Raise in every process where one of them has an error, so that none waits for ever for the others.

        Args:
            error: what went wrong in this process, or None.

        Raises:
            ValueError: the text of the error, in the other processes. The process that has the error raises it itself.
        """
        said = "" if error is None else " ".join(f"{error}".split())[:500]
        texts = self.gather_objects(said or ("" if error is None else type(error).__name__))
        if error is not None:
            raise error
        for rank, text in enumerate(texts):
            if text:
                raise ValueError(f"{text} (rank {rank})")

    def _reduce(self, tensor: Tensor, op: Any) -> Tensor:
        if self.size == 1:
            return tensor
        self._count(2 * (self.size - 1) * tensor.numel() * tensor.element_size() // self.size)
        with _Watch(self):
            dist.all_reduce(tensor, op=op, group=self.process_group)
        return tensor

    def _count(self, size: int) -> None:
        self.sent += size
        self.calls += 1

    # --- whose fault it was ---------------------------------------------------------------------------------

    def _introduce(self) -> None:
        """Leave the number and host of this process where the others find it when this one is gone."""
        self._attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        try:
            self._store: Any = dist.distributed_c10d._get_default_store()
            self._store.set(self._key("who"), f"process {os.getpid()} on {socket.gethostname()}")
        except (RuntimeError, ValueError):  # a group without a store, as of threads
            self._store = None

    def _key(self, what: str, rank: int | None = None) -> str:
        name = getattr(self.process_group, "group_name", "")
        return f"zerosum_ext/{name}/{self._attempt}/{what}/{self.rank if rank is None else rank}"

    def first_to_say(self, text: str) -> bool:
        """Return whether no other process has said this yet, so that one line tells what all of them know.

        That an error came from another rank, as :meth:`together` adds, makes no difference.
        """
        if self._store is None:
            return True
        plain = re.sub(r" \(rank \d+\)$", "", " ".join(text.split())[:500])
        try:
            return int(self._store.add(self._key(f"said {zlib.crc32(plain.encode()):08x}", 0), 1)) == 1
        except RuntimeError:  # the store went with the process that held it
            return True

    def lost(self, error: BaseException) -> LostProcess:
        """Return an error that names the processes that give no sign of life after a collective has failed."""
        said = str(error).partition("\n")[0]
        if self._store is None:
            return LostProcess(f"a process of the group ended: {said}")
        gone = []
        try:
            self._store.set(self._key("alive"), "1")
            end = time.monotonic() + _SIGN_SECONDS
            for rank in range(self.size):
                left = max(0.05, end - time.monotonic())
                try:
                    self._store.wait([self._key("alive", rank)], timedelta(seconds=left))
                except RuntimeError:
                    gone.append(rank)
            names = []
            for rank in gone:
                self._store.wait([self._key("who", rank)], timedelta(seconds=0.2))
                names.append(f"rank {rank} ({self._store.get(self._key('who', rank)).decode()})")
        except RuntimeError:  # the store went with the process that held it
            return LostProcess("rank 0, or the machine that holds the store, ended or cannot be reached")
        if not names:
            return LostProcess(f"a collective failed although all {self.size} processes run: {said}")
        found = LostProcess(f"{' and '.join(names)} ended or does not answer")
        found.speaks = self.rank == min(set(range(self.size)) - set(gone))
        return found


class _Watch:
    """Turns the failure of a collective into an error that names the process that is gone."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # torch raises bare RuntimeErrors (DistBackendError, DistNetworkError are such); bad arguments are ValueErrors.
        if isinstance(error, RuntimeError) and not isinstance(error, LostProcess):
            raise self.group.lost(error) from error
