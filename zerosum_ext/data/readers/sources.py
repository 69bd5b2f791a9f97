"""The bytes of a file: unpacked, in UTF-8, in blocks of whole lines that end in line feeds."""

from __future__ import annotations

import bz2
import codecs
import contextvars
import errno
import gzip
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from zerosum_ext.data.wording import option

__all__ = ["DAMAGED", "ByteStream", "Lines", "Pipe", "first_lines", "kind_of", "open_stream"]

BLOCK_BYTES = 1 << 22

# What a file that is cut off or has wrong bits makes zipfile, NumPy, Arrow and zlib raise.
DAMAGED = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError, OverflowError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, SyntaxError, UnicodeError),
)

# By their first bytes: (kind, how an error names it).
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"PAR1", "parquet"),
    (b"ARROW1", "feather"),
    (b"FEA1", "feather"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstandard"),
)


class ByteStream(Protocol):
    """What is read from: a file, or what unpacks one."""

    def read(self, size: int = ..., /) -> bytes:
        """Return up to size bytes, and none at the end."""
        ...


def kind_of(path: Path) -> str:
    """Return what the first bytes of a file say that it is: a name of _MAGIC, "empty" or "text".

    Raises:
        OSError: the file cannot be read.
        ValueError: it is a folder.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file")
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        return "empty"
    kind = next((kind for magic, kind in _MAGIC if start.startswith(magic)), "text")
    if kind == "zip":
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
        except DAMAGED:
            return "npz" if path.suffix != ".zip" else "zip"  # their readers say what is wrong
        return "npz" if names and all(name.endswith(".npy") for name in names) else "zip"
    return kind


class _Unpacked:
    """The stream of a packed file, whose errors name the file."""

    def __init__(self, path: Path, kind: str, stream: ByteStream) -> None:
        self._path, self._kind, self._stream = path, kind, stream

    def read(self, size: int = -1, /) -> bytes:
        try:
            return self._stream.read(size)
        except DAMAGED as error:
            raise ValueError(f"{self._path} is not a complete {self._kind} file: {error}") from None


def open_stream(path: Path, kind: str) -> ByteStream:
    """Return the stream of a file of text, unpacked if :func:`kind_of` says that it is packed."""
    if kind == "text":
        return path.open("rb")
    stream: ByteStream
    try:
        if kind == "gzip":
            stream = gzip.open(path, "rb")  # noqa: SIM115
        elif kind == "bzip2":
            stream = bz2.open(path, "rb")  # noqa: SIM115
        elif kind == "xz":
            stream = lzma.open(path, "rb")  # noqa: SIM115
        elif kind == "zstandard":
            import pyarrow as pa

            stream = pa.input_stream(str(path), compression="zstd")
        else:
            stream = _zip_member(path)
    except DAMAGED as error:
        if no_fault_of_the_file(error):
            raise
        raise ValueError(f"{path} is not a complete {kind} file: {error}") from None
    return _Unpacked(path, kind, stream)


def no_fault_of_the_file(error: BaseException) -> bool:
    """Return whether a file could not be reached, rather than holds what it should not."""
    # Places before the file's beginning, where a damaged one leads, are an invalid argument.
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def _zip_member(path: Path) -> ByteStream:
    archive = zipfile.ZipFile(path)
    members = [one for one in archive.infolist() if not one.is_dir() and not one.filename.startswith("__MACOSX/")]
    if len(members) != 1:
        names = ", ".join(one.filename for one in members[:5]) or "none"
        raise ValueError(f"expected one file in it, found {len(members)} ({names}); unpack it and give one")
    return archive.open(members[0])


def count_lines(block: bytes) -> int:
    """Return the number of line feeds; where lines are short, bytes.count takes three times as long."""
    ends = np.frombuffer(block, np.uint8)
    step = 1 << 18  # so that what is compared stays in the cache
    return sum(int(np.count_nonzero(ends[at : at + step] == 10)) for at in range(0, len(ends), step))


class Lines:
    """Blocks of whole lines of a text file.

    Each block ends in a line feed; carriage returns before it are taken off, and lines that end in carriage returns
    alone are recognised. The text is UTF-8 whatever the file's encoding.

    Args:
        path: of the file, for messages.
        stream: its bytes.
        encoding: of the bytes.
        max_line_bytes: a longer line is an error, as memory would not hold it.
    """

    def __init__(self, path: Path, stream: ByteStream, encoding: str, max_line_bytes: int) -> None:
        self._path, self._stream, self._encoding, self._limit = path, stream, encoding, max_line_bytes
        self._returns = False  # lines end in carriage returns alone
        self.count = 0  # lines so far

    def __iter__(self) -> Iterator[bytes]:
        """Yield the blocks.

        Raises:
            ValueError: NUL bytes, a line beyond the limit, or bytes of another encoding.
        """
        rest: list[bytes] = []
        size, first = 0, True
        for chunk in self._chunks():
            if b"\0" in chunk:
                raise self._no_text(b"".join([*rest, chunk]))
            if first and chunk.strip(b"\r\n"):
                body = chunk.rstrip(b"\r")
                self._returns = b"\r" in body and b"\n" not in body
                first = False
            if self._returns:
                chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            cut = chunk.rfind(b"\n") + 1
            if not cut:
                rest.append(chunk)
                size += len(chunk)
                if size > self._limit:
                    raise ValueError(
                        f"{self._path}:{self.count + 1}: the line has more than {self._limit:,} bytes; expected a "
                        f"file of lines. {option('line limit')} raises the limit"
                    )
                continue
            block = b"".join([*rest, memoryview(chunk)[:cut]])
            rest, size = [chunk[cut:]], len(chunk) - cut
            self.count += count_lines(block)
            yield self._plain(block)
        last = b"".join(rest)
        if last:
            self.count += 1
            yield self._plain(last + b"\n")

    def _plain(self, block: bytes) -> bytes:
        return block.replace(b"\r\n", b"\n") if b"\r" in block else block

    def _no_text(self, data: bytes) -> ValueError:
        line = 1 + self.count + data[: data.index(b"\0")].count(b"\n")
        return ValueError(
            f"{self._path}:{line}: not a text file (it has NUL bytes); expected text, JSON lines, .npz, parquet or "
            f"feather, or {option('encoding')} of text in another encoding"
        )

    def _chunks(self) -> Iterator[bytes]:
        start = self._stream.read(BLOCK_BYTES)
        encoding = codecs.lookup(self._encoding).name
        if encoding == "utf-8" and start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            encoding = "utf-16"  # only that has such a mark
        if encoding in ("utf-8", "utf-8-sig"):
            start = start.removeprefix(b"\xef\xbb\xbf")
            while start:
                yield start
                start = self._stream.read(BLOCK_BYTES)
            return
        decoder = codecs.getincrementaldecoder(encoding)()
        while True:
            try:
                text = decoder.decode(start, final=not start)
            except UnicodeDecodeError as error:
                wrong = start[error.start : error.start + 40] or start[:40]
                raise ValueError(
                    f"{self._path}: {wrong!r} is not {self._encoding}; give the file's {option('encoding')}"
                ) from None
            if text:
                yield text.removeprefix("\ufeff").encode()
            if not start:
                return
            start = self._stream.read(BLOCK_BYTES)


def first_lines(blocks: Iterator[bytes]) -> bytes:
    """Return the first block, or as many as hold a thousand lines, or two lines that are long."""
    head = next(blocks, b"")
    while (count := head.count(b"\n")) < 1000 and (count < 2 or len(head) < 1 << 20):
        block = next(blocks, b"")
        if not block:
            break
        head += block
    return head


class Pipe(io.RawIOBase):
    """A file object over blocks of bytes, for Arrow to read from. It keeps what the blocks raise."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._block, self._at = b"", 0
        self._context = (
            contextvars.copy_context()
        )  # Arrow reads in a thread of its own; errors speak as the caller does
        self.error: BaseException | None = None

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, at most size; fewer come at the end of a block."""
        while self._at >= len(self._block):
            try:
                block = self._context.run(next, self._blocks, None)
            except BaseException as error:
                self.error = error
                raise
            if block is None:
                return b""
            self._block, self._at = block, 0
        if self._at == 0 and 0 < len(self._block) <= size:
            data, self._block = self._block, b""
            return data
        end = len(self._block) if size < 0 else self._at + size
        data = self._block[self._at : end]
        self._at += len(data)
        return data
