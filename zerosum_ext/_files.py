"""Files that are complete or not there, and folders that one process at a time writes to.

Everything that this library writes goes through :func:`replacing`: to a temporary file of a name of its own beside the
target, then to the disk, then into place. Text is UTF-8 on every system.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import secrets
import socket
import threading
import tokenize
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO

import numpy as np

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: folders are not locked there
    fcntl = None

__all__ = [
    "LOCK",
    "check_npz",
    "flush",
    "flush_folder",
    "locked",
    "not_written",
    "read_text",
    "replacing",
    "same_name",
    "write_text",
]

#: The file that holds the lock of a folder, while it is locked.
LOCK = ".lock"
# How every temporary file ends. What a killed process left is removed by the next one that locks the folder.
_PART = ".part"
_FULL = 1 << 16  # a disk with fewer bytes left is full: writers keep as much in buffers
_locks_of_this_process: set[str] = set()
_locks_guard = threading.Lock()


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *failures: type[Exception]) -> Iterator[str]:
    """Yield a path to write to, beside ``path``, and move what was written into place at the end.

    The temporary file is made anew under a name that nobody can guess, so that two writers do not meet and no link is
    followed. Its bytes are on the disk before it takes the place of the target. A target that is a link is replaced
    itself. The file gets the mode that the process's umask gives to new files. On any error the temporary file is
    removed, and what was there before is still there.

    Args:
        path: of the file that is to be complete or not there.
        failures: what the writer raises, beside OSError, if it cannot write.

    Raises:
        OSError: it cannot be written; the message names the file.
    """
    target = os.fspath(path)
    folder, name = os.path.split(target)
    part = os.path.join(folder, f".{name[:32]}.{secrets.token_hex(8)}{_PART}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(part, flags, 0o666)
        try:
            mode = os.fstat(descriptor).st_mode & 0o777
        finally:
            os.close(descriptor)
        yield part
        flush(part, mode)
        os.replace(part, target)
        flush_folder(folder or ".")
    except BaseException as error:
        failed = not_written(target, error) if isinstance(error, failures) else None  # looks while the file is there
        with contextlib.suppress(OSError):
            os.unlink(part)
        if isinstance(error, OSError) and error.filename in (None, part) and error.strerror:
            raise OSError(error.errno, error.strerror, target) from error
        if failed is not None:
            raise failed from error
        raise


def not_written(target: str | os.PathLike[str], error: BaseException) -> OSError:
    """Return what to raise where a writer that knows no errno failed: that the disk is full, if it is."""
    folder = target if os.path.isdir(target) else os.path.dirname(os.path.abspath(target))
    with contextlib.suppress(OSError, AttributeError):  # statvfs is there on POSIX alone
        left = os.statvfs(folder)
        if left.f_bavail * left.f_frsize < _FULL:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(target))
    said = str(error).strip() or type(error).__name__
    return OSError(f"{os.fspath(target)} cannot be written: {said.splitlines()[-1]}")


def flush(path: str | os.PathLike[str], mode: int | None = None) -> None:
    """Bring a file to the disk, with this mode: some writers replace it by a private one of their own."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        if mode is not None and hasattr(os, "fchmod"):
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: str | os.PathLike[str]) -> None:
    """Bring the names in a folder to the disk, on systems that can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file as UTF-8, complete or not at all.

    Raises:
        OSError: it cannot be written. ValueError: the text cannot be encoded.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{os.fspath(path)} is not written: its text holds {text[error.start]!r}") from None
    with replacing(path) as part, open(part, "wb") as file:
        file.write(data)


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a UTF-8 text file.

    Raises:
        OSError: it cannot be read. ValueError: it is not UTF-8; the message names the file and the place.
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)} is not UTF-8 text: byte {error.start} cannot be read") from None


def check_npz(path: str | os.PathLike[str] | IO[bytes], stored: bool = False) -> None:
    """Raise where an .npz file claims arrays that are not in it, before memory is taken for them.

    Args:
        path: of the file, or the open file.
        stored: whether its arrays are not compressed, so that none is larger than the file.

    Raises:
        ValueError: an array's header says another size than its bytes have. OSError, zipfile.BadZipFile: no .npz file.
    """
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if stored and entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} is compressed")
            with archive.open(entry) as file:
                reader = readers.get(np.lib.format.read_magic(file))
                if reader is None:
                    raise ValueError(f"{entry.filename} has a header of an unknown version")
                try:
                    shape, _, dtype = reader(file)
                except (ValueError, SyntaxError, tokenize.TokenError, RecursionError):
                    raise ValueError(f"{entry.filename} has a damaged header") from None
                size = math.prod(shape) * dtype.itemsize
                if dtype.hasobject or size != entry.file_size - file.tell():
                    raise ValueError(
                        f"{entry.filename} claims an array of {size:,} bytes, and has {entry.file_size - file.tell():,}"
                    )


def same_name(name: str) -> str:
    """Return what two file names have in common if any file system takes them for one: case and form left out."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep a folder, which is made if it is not there, from other processes and threads that lock it too.

    The lock ends with this process, however that ends. Nothing is left in the folder.

    Raises:
        ValueError: it is a file, or the folder is in use; the message names the process.
        OSError: the folder cannot be made or written to.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, expected a folder to write the run to")
    path.mkdir(parents=True, exist_ok=True)
    key = os.path.realpath(path)
    with _locks_guard:
        if key in _locks_of_this_process:
            raise ValueError(f"{path} is in use by this process already: wait until that run has ended")
        _locks_of_this_process.add(key)
    try:
        descriptor = _lock(path)
        try:
            for left in path.glob(f".*{_PART}"):
                left.unlink(missing_ok=True)
            yield
        finally:
            if descriptor is not None:
                # In this order: whoever opened the file before it went finds that it is gone, and makes another.
                with contextlib.suppress(OSError):
                    os.unlink(path / LOCK)
                os.close(descriptor)
    finally:
        with _locks_guard:
            _locks_of_this_process.discard(key)


def _lock(folder: Path) -> int | None:
    """Return the descriptor that holds the lock of a folder."""
    if fcntl is None:
        return None
    file = folder / LOCK
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                message = f"{folder} is in use by {owner}: wait until that run has ended, or choose another folder"
                raise ValueError(message) from None
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                return None  # a file system that has no locks
            raise
        try:
            current = os.stat(file).st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            current = False
        if current:
            # (A full disk keeps the owner's name out of the file, and does not keep him from the lock.)
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            return descriptor
        os.close(descriptor)  # its owner has unlocked and removed it meanwhile
