"""Reading tables of interactions from files: what :meth:`zerosum_ext.Interactions.from_file` stands on.

Text is read in blocks of whole lines and split with NumPy rather than line by line, so that a million rows
take well under a second without pandas. Every row is either used or accounted for: a bad one is named by file
and line.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import math
import re
import struct
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

__all__ = ["BadRows", "Column", "Table", "factorize", "read_table"]

BLOCK_BYTES = 1 << 23
MAX_BAD_ROWS_KEPT = 20
# Stands for a delimiter of several bytes, or of a quoted file, once a block has been normalised.
UNIT_SEPARATOR = 0x1F

IdType = Literal["auto", "int", "str"]

# Names by which common data sets call their columns, in lower case and without blanks, dashes and
# underscores.
ALIASES: dict[str, tuple[str, ...]] = {
    "user": ("user", "userid", "uid", "u", "reviewerid", "customerid", "visitorid", "sessionid", "username"),
    "item": (
        "item",
        "itemid",
        "iid",
        "i",
        "movieid",
        "asin",
        "parentasin",
        "productid",
        "businessid",
        "artistid",
        "trackid",
        "songid",
        "bookid",
        "isbn",
        "gameid",
        "videoid",
        "locationid",
        "newsid",
    ),
    "rating": (
        "rating",
        "ratings",
        "stars",
        "score",
        "overall",
        "bookrating",
        "weight",
        "playcount",
        "plays",
    ),
    "timestamp": (
        "timestamp",
        "time",
        "ts",
        "unixreviewtime",
        "unixtime",
        "date",
        "datetime",
        "eventtime",
        "eventtimestamp",
        "ratedat",
        "ratingtimestamp",
        "reviewedat",
        "reviewtimestamp",
        "createdat",
    ),
    "order": ("order",),
    "split": ("split",),
}
NUMERIC = ("rating", "timestamp", "order")

# What stands for "not known" where a number is due.
MISSING = ("", "na", "n/a", "nan", "nat", "none", "null", "\\n")
ISO_DATE = re.compile(
    r"(\d{4}(?:-\d\d(?:-\d\d)?)?|\d{4}-\d\d-\d\d[T ]\d\d(?::\d\d(?::\d\d(?:\.\d+)?)?)?)"
    r"(?: ?(?:Z|UTC)|([+-])(\d\d):?(\d\d)?)?",
    re.ASCII,
)
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
# What a file that is cut off or has wrong bits makes zipfile, NumPy and zlib raise.
DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error)


@dataclass
class Column:
    """One column: ``values`` themselves, or positions in ``vocabulary`` where the column is text."""

    values: np.ndarray
    vocabulary: np.ndarray | None = None

    def plain(self) -> np.ndarray:
        return self.values if self.vocabulary is None else self.vocabulary[self.values]


@dataclass
class Table:
    """Aligned columns of one file, ``user`` and ``item`` among them, and what was left out while reading."""

    columns: dict[str, Column]
    rows: int
    bad_rows: int = 0
    bad_row_messages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What was taken for granted, such as which column is which."""


@dataclass
class BadRows:
    """Raises for, or counts, the rows that cannot be used."""

    path: Path
    skip: bool
    count: int = 0
    messages: list[str] = field(default_factory=list)
    pending: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, problem: str) -> None:
        self.pending.append((line, problem))

    def flush(self) -> None:
        """At the end of a block, whose rows are found bad column by column: in the order of lines."""
        for line, problem in sorted(self.pending):
            message = f"{self.path}:{line}: {problem}"
            if not self.skip:
                raise ValueError(message)
            self.count += 1
            if len(self.messages) < MAX_BAD_ROWS_KEPT:
                self.messages.append(message)
        self.pending.clear()


def factorize(column: Column) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct ids of a column, and for each row the position (int64) of its id among them."""
    values = column.values
    if column.vocabulary is not None:
        used = np.bincount(values, minlength=len(column.vocabulary)) > 0  # words of rows left out are no ids
        order = np.flatnonzero(used)
        order = order[np.argsort(column.vocabulary[order], kind="stable")]
        rank = np.full(len(used), -1, np.int64)
        rank[order] = np.arange(len(order))
        return column.vocabulary[order], rank[values]
    if values.dtype.kind in "iu" and len(values):
        low, high = int(values.min()), int(values.max())
        if high - low < 4 * len(values) + 1_000_000:  # a table of all numbers beats sorting
            present = np.zeros(high - low + 1, bool)
            present[values - low] = True
            ids = np.flatnonzero(present)
            rank = np.cumsum(present, dtype=np.int64) - 1
            return ids + low, rank[values - low]
    ids, codes = np.unique(values, return_inverse=True)
    return ids, codes.astype(np.int64, copy=False)


def read_table(
    path: str | Path,
    *,
    columns: Mapping[str, str | int | None] | None = None,
    delimiter: str | None = None,
    header: bool | None = None,
    id_type: IdType = "auto",
    skip_bad_rows: bool = False,
    encoding: str = "utf-8",
) -> Table:
    """Reads text (also gzip'd), ``.npz`` arrays or parquet; see :meth:`zerosum_ext.Interactions.from_file`."""
    path = Path(path)
    if id_type not in ("auto", "int", "str"):
        raise ValueError(f"id_type: expected 'auto', 'int' or 'str', got {id_type!r}")
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise ValueError(f"encoding: expected the name of one, such as 'utf-8', got {encoding!r}") from None
    wanted = dict(columns or {})
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file")
    with path.open("rb") as probe:  # a missing file raises here, naming the path
        magic = probe.read(4)
    if not magic:
        raise ValueError(f"{path} is empty")
    if magic == b"PK\x03\x04":
        return _read_npz(path, wanted)
    if magic == b"PAR1":
        return _read_parquet(path, wanted)
    stream: BinaryIO = gzip.open(path, "rb") if magic[:2] == b"\x1f\x8b" else path.open("rb")  # type: ignore[assignment] # noqa: SIM115
    try:
        with stream:
            return _TextReader(path, stream, wanted, delimiter, header, id_type, skip_bad_rows, encoding).read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a complete gzip file: {error}") from None


# -------------------------------------------------------------------------------------- which column is which


def _normal(name: str) -> str:
    # RecBole's atomic files write the type behind a colon: user_id:token
    return "".join(c for c in name.split(":")[0].lower() if c not in " _-\"'")


def _choose(
    path: Path, names: list[str] | None, first: list[str], wanted: dict[str, str | int | None]
) -> dict[str, int]:
    """Column name -> position, from the header (if any), the first row of data and the caller's wishes."""
    width = len(first)
    chosen: dict[str, int] = {}
    if names is not None:
        normal = [_normal(name) for name in names]
        for key, aliases in ALIASES.items():
            for alias in aliases:
                if key not in wanted and alias in normal:
                    chosen[key] = normal.index(alias)
                    break
    taken: set[int] = set()
    for key, source in wanted.items():
        if source is None:
            continue
        if isinstance(source, int):
            if not 0 <= source < width:
                raise ValueError(
                    f"{path}: column {source} was asked for as {key!r}, but there are only {width} (0 to {width - 1})"
                )
            chosen[key] = source
        else:
            if names is None:
                raise ValueError(
                    f"{path}: column {source!r} was asked for as {key!r}, but the file has no header; give its number"
                )
            if source not in names:
                raise ValueError(
                    f"{path}: there is no column {source!r} (asked for as {key!r}); the header has {', '.join(names)}"
                )
            chosen[key] = names.index(source)
        taken.add(chosen[key])
    # An automatic match gives way to what was asked for by name.
    chosen = {k: c for k, c in chosen.items() if k in wanted or c not in taken}
    free = [c for c in range(width) if c not in chosen.values()]
    if names is not None:  # what has no name is the number of the row, as pandas writes it
        free = [c for c in free if _normal(names[c]) not in ("", "unnamed")]
    if names is None or ("user" not in chosen and "item" not in chosen):
        for key in ("user", "item"):
            if key not in chosen and free:
                chosen[key] = free.pop(0)
    for key in ("user", "item"):
        if key not in chosen:
            raise ValueError(
                f"{path}: cannot tell which column holds the {key}s; the header has {', '.join(names or [])}. "
                f"Name it: columns={{{key!r}: ...}}"
            )
    if names is None:
        # MovieLens order: rating, then time. A first "rating" that can only be a Unix time is one.
        for c in free:
            number = _number(first[c])
            if number is None or c < max(chosen["user"], chosen["item"]):
                continue
            key = "rating" if "rating" not in chosen and abs(number) < 1e8 else "timestamp"
            if key in chosen or key in wanted:
                continue
            chosen[key] = c
    if chosen["user"] == chosen["item"]:
        raise ValueError(f"{path}: user and item are the same column ({chosen['user']})")
    return chosen


def _note_columns(names: list[str] | None, chosen: dict[str, int]) -> str:
    places = {key: f"column {c}" if names is None else names[c] for key, c in chosen.items()}
    return "columns: " + ", ".join(key if place == key else f"{key} = {place}" for key, place in places.items())


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _seconds(text: str) -> float | None:
    """ISO 8601 date, which without an offset is UTC -> seconds since 1970; None where it is none."""
    found = ISO_DATE.fullmatch(text)
    if found is None:
        return None
    date, sign, hours, minutes = found.groups()
    if sign is not None and len(date) <= len("2020-01-02"):  # an offset of no time: 2020-0102 is no date
        return None
    try:
        seconds = float(np.datetime64(date[:26], "us").astype(np.int64)) / 1e6  # to the microsecond
    except ValueError:  # such as a month 13
        return None
    offset = 0 if sign is None else int(hours) * 3600 + int(minutes or 0) * 60
    return seconds + offset if sign == "-" else seconds - offset


def _is_integer(text: str) -> bool:
    """Whether text is the only spelling of an integer that fits: "007" and "1.0" must stay text to come back
    unchanged.
    """
    digits = text[1:] if text.startswith("-") else text
    return digits.isascii() and digits.isdigit() and len(digits) <= 18 and (digits[0] != "0" or text == "0")


# ------------------------------------------------------------------------------------------------------- text


class _Rows:
    """A block of rows of text with the same number of fields; starts, ends int64 [rows, fields], lines int64
    [rows].
    """

    def __init__(self, data: bytes, starts: np.ndarray, ends: np.ndarray, lines: np.ndarray) -> None:
        self.data, self.lines = data, lines
        self._buffer = np.frombuffer(data, np.uint8)
        self._starts, self._ends = starts, ends

    def bounds(self, c: int) -> tuple[np.ndarray, np.ndarray]:
        """First and one-past-last byte of column c, blanks around it taken off."""
        s, e = self._starts[:, c], self._ends[:, c]
        while (blank := (s < e) & np.isin(self._buffer[s], (32, 9))).any():
            s = s + blank
        while (blank := (s < e) & np.isin(self._buffer[e - 1], (32, 9))).any():
            e = e - blank
        return s, e

    def texts(self, c: int) -> list[bytes]:
        s, e = self.bounds(c)
        data = self.data
        return [data[a:b] for a, b in zip(s.tolist(), e.tolist(), strict=True)]

    def integers(self, c: int) -> tuple[np.ndarray, np.ndarray]:
        """Values int64, and which rows really are integers (as of _is_integer)."""
        s, e = self.bounds(c)
        buffer = self._buffer
        negative = (buffer[s] == 45) & (s < e)
        s = s + negative
        width = e - s
        ok = (width >= 1) & (width <= 18) & ~((buffer[s] == 48) & ((width > 1) | negative))
        values = np.zeros(len(s), np.int64)
        widest = int(width[ok].max(initial=0))
        power = 1
        for k in range(widest):
            inside = width > k
            digit = buffer[np.where(inside, e - 1 - k, 0)] - np.uint8(48)  # wraps: anything but a digit is above 9
            digit = np.where(inside, digit, np.uint8(0))
            ok &= digit <= 9
            values += digit.astype(np.int64) * power
            power *= 10
        return np.where(negative, -values, values), ok


class _Feed:
    """Lines for csv.reader, of which those of one record can be had, and put back."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._again: deque[str] = deque()
        self.taken: list[str] = []
        self.ended = False  # whether the record wanted a line after the last

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        if self._again:
            line = self._again.popleft()
        else:
            try:
                line = next(self._lines)
            except StopIteration:
                self.ended = True
                raise
        self.taken.append(line)
        return line

    def begin(self) -> None:
        self.taken, self.ended = [], False

    def put_back(self) -> None:
        """All lines of the record but its first."""
        self._again.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


class _TextReader:
    def __init__(
        self,
        path: Path,
        stream: BinaryIO,
        wanted: dict[str, str | int | None],
        delimiter: str | None,
        header: bool | None,
        id_type: IdType,
        skip_bad_rows: bool,
        encoding: str,
    ) -> None:
        self.path, self.stream, self.wanted, self.encoding = path, stream, wanted, encoding
        self.bad = BadRows(path, skip_bad_rows)
        self.id_type = id_type
        self.rows = 0
        head = stream.read(BLOCK_BYTES) + stream.readline()
        if head.startswith(b"\xef\xbb\xbf"):
            head = head[3:]
        if b"\0" in head:
            raise ValueError(f"{path} is not a text file (it has NUL bytes); expected text, .npz or parquet")
        if b"\r" in head.rstrip(b"\r") and b"\n" not in head:
            raise ValueError(f"{path}: its lines end in carriage returns alone, expected line feeds")
        self.line = 1  # the number of the line that the next block starts with
        self.head = self._skip_comments(head)
        sample = self._sample_lines()
        if not sample:
            raise ValueError(f"{path} has no rows")
        self.delimiter = self._check_delimiter(delimiter) if delimiter is not None else self._sniff_delimiter(sample)
        rows = [self._split_line(line) for line in sample]
        self.width = len(rows[0])
        if self.width < 2:
            raise ValueError(
                f"{path}:{self.line}: expected at least two columns, a user and an item, found one: {rows[0][0][:60]!r}"
            )
        self.header = self._has_header(rows) if header is None else header
        names = rows[0] if self.header else None
        data = rows[1:] if self.header else rows
        if not data:
            raise ValueError(f"{path} has a header but no rows")
        whole = [row for row in data if len(row) == self.width] or [(data[0] + [""] * self.width)[: self.width]]
        sampled = [[row[c] for row in whole] for c in range(self.width)]
        first = [next((text for text in texts if text.lower() not in MISSING), "") for texts in sampled]
        self.chosen = _choose(path, names, first, wanted)
        self.kinds = {key: self._kind(key, sampled[c]) for key, c in self.chosen.items()}
        self.notes = [_note_columns(names, self.chosen)]
        if names is not None and header is None and not self._names_known(names):
            shown = ", ".join(names)
            self.notes.insert(
                0, f"the first line is taken for a header: {shown[:80]}; if it is a row, say header=False (--no-header)"
            )

    # -- sniffing

    def _skip_comments(self, head: bytes) -> bytes:
        """Takes off blank lines and comments (# or %, as KONECT and SNAP write them) above the first row."""
        while head:
            line, newline, rest = head.partition(b"\n")
            if line.strip() and line.lstrip()[:1] not in (b"#", b"%"):
                break
            head = rest
            self.line += len(newline)
        return head

    def _sample_lines(self, count: int = 20) -> list[str]:
        lines = self.head[: 1 << 20].split(b"\n", count)[:count]
        return [self._decode(line).rstrip("\r") for line in lines if line.strip()]

    def _decode(self, raw: bytes) -> str:
        try:
            return raw.decode(self.encoding)
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: {raw[:40]!r} is not {self.encoding}; give the file's encoding=") from None

    @staticmethod
    def _check_delimiter(delimiter: str) -> str:
        if not delimiter or "\n" in delimiter or '"' in delimiter:
            raise ValueError(f"delimiter: expected a text such as ',' or '::' or ' ', got {delimiter!r}")
        return delimiter

    def _split_line(self, line: str, delimiter: str | None = None) -> list[str]:
        delimiter = delimiter or self.delimiter
        if delimiter == " ":
            return line.split()
        fields = line.split(delimiter)
        if len(delimiter) == 1 and '"' in line:
            with contextlib.suppress(csv.Error):  # which is reported where the row is read
                fields = next(csv.reader([line], delimiter=delimiter))
        return [text.strip() for text in fields]

    def _sniff_delimiter(self, sample: list[str]) -> str:
        candidates = ("::", "\t", ",", ";", "|", " ")
        widths = {d: [len(self._split_line(line, d)) for line in sample] for d in candidates}
        # As many lines as possible have the fields of the first; of several delimiters the first above.
        alike = {d: sum(w == widths[d][0] for w in widths[d]) for d in candidates if widths[d][0] > 1}
        best = max(alike, key=alike.__getitem__, default=",")
        for other in (";", "|"):  # 1;2;3,5: its commas are decimal ones
            if best == "," and alike.get(other) == alike.get(",", 0):
                fields = [text for line in sample for text in self._split_line(line, other) if "," in text]
                if all(DECIMAL_COMMA.fullmatch(text) for text in fields):
                    return other
        return best

    def _has_header(self, rows: list[list[str]]) -> bool:
        first = rows[0]
        if self._names_known(first):
            return True
        if any(_number(text) is not None for text in first):
            return False
        return any(_number(text) is not None for row in rows[1:] for text in row)

    def _names_known(self, names: list[str]) -> bool:
        if any(isinstance(source, str) for source in self.wanted.values()):
            return True
        known = {alias for aliases in ALIASES.values() for alias in aliases}
        return any(len(text) > 1 and _normal(text) in known for text in names)

    def _kind(self, key: str, texts: list[str]) -> str:
        """What a column holds, by its fields in the first rows."""
        text = next(filter(None, texts), "")
        if key in ("user", "item"):
            if self.id_type == "auto":
                return "id" if _is_integer(text) else "text"
            return "id" if self.id_type == "int" else "text"
        if key == "timestamp":  # by most of them: one may be empty or wrong, and a number of four digits a year
            numbers = [text for text in texts if _number(text) is not None]
            dates = sum(_number(text) is None and _seconds(text) is not None for text in texts)
            years = sum(_seconds(text) is not None for text in numbers)
            if not numbers and not dates:
                return "time"  # which of the two, a later block says
            return "number" if len(numbers) - years > dates or not dates else "date"
        if key in NUMERIC:
            return "number"
        return "number" if _number(text) is not None else "text"

    # -- blocks of whole lines

    def _blocks(self) -> Iterator[tuple[bytes, np.ndarray | None, int]]:
        """Yields (text that ends in a newline, line numbers or None where consecutive, number of the first
        line).
        """
        can_quote = len(self.delimiter) == 1 and self.delimiter != " "
        rest, line = self.head, self.line
        while rest:
            block = rest if rest.endswith(b"\n") else rest + self.stream.readline()
            if not block.endswith(b"\n"):
                block += b"\n"
            if can_quote and b'"' in block:
                yield from self._quoted_blocks(block, line)
                return
            yield block, None, line
            line += block.count(b"\n")
            rest = self.stream.read(BLOCK_BYTES)

    def _quoted_blocks(self, block: bytes, line: int) -> Iterator[tuple[bytes, np.ndarray | None, int]]:
        """Quoted fields may hold delimiters and newlines, so the rest of the file goes through the csv
        module.
        """

        def lines() -> Iterator[str]:
            for raw in io.BytesIO(block):
                yield self._decode(raw)
            for raw in self.stream:
                yield self._decode(raw)

        feed = _Feed(lines())
        reader = csv.reader(feed, delimiter=self.delimiter)
        separator = chr(UNIT_SEPARATOR)
        rows: list[str] = []
        numbers: list[int] = []
        at = line
        while True:
            feed.begin()
            row: list[str] | None = None
            problem = "a quoted field does not end on its line, nor as a row of several lines"
            try:
                row = next(reader)
            except StopIteration:
                break
            except csv.Error as error:  # such as a field beyond csv.field_size_limit
                if len(feed.taken) == 1:
                    problem = str(error)
            if row is None or len(feed.taken) > 1 or feed.ended:
                row = self._spanning_row(row, feed, at, problem)
            if row is not None:
                text = separator.join(row)
                rows.append(text.replace("\r", " ").replace("\n", " ") if "\n" in text or "\r" in text else text)
                numbers.append(at)
            at += len(feed.taken)
            if len(rows) == 100_000:
                yield ("\n".join(rows) + "\n").encode(self.encoding), np.array(numbers), line
                rows, numbers = [], []
        if rows:
            yield ("\n".join(rows) + "\n").encode(self.encoding), np.array(numbers), line

    def _spanning_row(self, row: list[str] | None, feed: _Feed, at: int, problem: str) -> list[str] | None:
        """The row that begins with ``feed.taken[0]``, where the csv module read on beyond that line, or could not.

        That is a quoted field of several lines, or a quote that is not closed (``"Heroes``) and would swallow the rows
        up to the next one. Then only its line is taken, as it stands, where it makes a row and the quote is in none of
        the columns that are read; otherwise it is a bad row.
        """
        plain = [line.rstrip("\r\n").split(self.delimiter) for line in feed.taken if line.strip()]
        each_a_row = all(len(fields) == self.width for fields in plain)
        if row is not None and not feed.ended and len(row) == self.width and self._well_quoted(feed.taken):
            if not each_a_row or not all(self._fits(fields) for fields in plain[1:]):
                return row
            if all(kind == "text" for kind in self.kinds.values()):  # of which a sentence with commas can be two
                self.rows += 1
                last = at + len(feed.taken) - 1
                self.bad.add(
                    at, f"lines {at} to {last} are one row with a quoted field of several lines, or several rows"
                )
                return None
        feed.put_back()
        if self.header and at == self.line:
            return plain[0]
        if each_a_row and not any(plain[0][c].startswith('"') for c in self.chosen.values()):
            return plain[0]
        self.rows += 1
        self.bad.add(at, problem)
        return None

    def _well_quoted(self, lines: list[str]) -> bool:
        """Whether no text follows a closing quote."""
        try:
            next(csv.reader(lines, delimiter=self.delimiter, strict=True))
        except csv.Error:
            return False
        return True

    def _fits(self, fields: list[str]) -> bool:
        """Whether fields can be a row: numbers and dates where such are due."""
        check = {
            "id": _is_integer,
            "number": lambda t: _number(t) is not None,
            "date": lambda t: _seconds(t) is not None,
        }
        return all(check.get(self.kinds[key], bool)(fields[c].strip()) for key, c in self.chosen.items())

    def _split_block(self, data: bytes, lines: np.ndarray | None, line: int) -> _Rows:
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        if len(self.delimiter) > 1:
            data = data.replace(self.delimiter.encode(self.encoding), bytes([UNIT_SEPARATOR]))
        buffer = np.frombuffer(data, np.uint8)
        if self.delimiter == " ":
            newlines = np.flatnonzero(buffer == 10)
            blank = np.isin(buffer, (32, 9, 10))
            before = np.concatenate(([True], blank[:-1]))
            starts, ends = np.flatnonzero(~blank & before), np.flatnonzero(blank & ~before)
            counts = np.bincount(np.searchsorted(newlines, starts), minlength=len(newlines))
            first = np.cumsum(counts) - counts
        else:
            one_byte = UNIT_SEPARATOR if lines is not None or len(self.delimiter) > 1 else ord(self.delimiter)
            ends = np.flatnonzero((buffer == one_byte) | (buffer == 10))
            starts = np.concatenate(([0], ends[:-1] + 1))
            last = np.flatnonzero(buffer[ends] == 10)
            first = np.concatenate(([0], last[:-1] + 1))
            counts = last - first + 1
            for row in np.flatnonzero(counts == 1):  # a line of nothing but blanks has no field
                if not data[starts[first[row]] : ends[first[row]]].strip():
                    counts[row] = 0
        if lines is None:
            lines = line + np.arange(len(counts))
        if (counts == self.width).all():
            return _Rows(data, starts.reshape(-1, self.width), ends.reshape(-1, self.width), lines)
        self.rows += int(((counts != self.width) & (counts > 0)).sum())
        for row in np.flatnonzero((counts != self.width) & (counts > 0)):
            self.bad.add(int(lines[row]), f"expected {self.width} fields as in the first row, found {counts[row]}")
        good = counts == self.width
        fields = first[good][:, None] + np.arange(self.width)
        return _Rows(data, starts[fields], ends[fields], lines[good])

    # -- columns

    def read(self) -> Table:
        parts: dict[str, list[np.ndarray]] = {key: [] for key in self.chosen}
        vocabularies: dict[str, dict[bytes, int]] = {k: {} for k, kind in self.kinds.items() if kind == "text"}
        skip_first = self.header
        for data, lines, line in self._blocks():
            if skip_first:
                skip_first = False
                if lines is None:
                    data = data.partition(b"\n")[2]
                    line += 1
                    if not data:
                        continue
                else:
                    data, lines = data.partition(b"\n")[2], lines[1:]
                    if not data:
                        continue
            rows = self._split_block(data, lines, line)
            self.rows += len(rows.lines)
            keep = np.ones(len(rows.lines), bool)
            values = {key: self._parse(key, c, rows, keep, vocabularies) for key, c in self.chosen.items()}
            self.bad.flush()
            for key, column in values.items():
                parts[key].append(column[keep])
        self.bad.flush()
        columns = {}
        for key, chunks in parts.items():
            joined = np.concatenate(chunks) if chunks else np.zeros(0, np.int64)
            if key in vocabularies:
                words = np.array([self._decode(word) for word in vocabularies[key]], dtype=np.str_)
                columns[key] = Column(joined, words)
            else:
                columns[key] = Column(joined)
        if not len(columns["user"].values):
            raise ValueError(
                f"{self.path} has no usable rows: {self.bad.messages[0] if self.bad.messages else 'none at all'}"
            )
        return Table(columns, self.rows, self.bad.count, tuple(self.bad.messages), tuple(self.notes))

    def _parse(
        self, key: str, c: int, rows: _Rows, keep: np.ndarray, vocabularies: dict[str, dict[bytes, int]]
    ) -> np.ndarray:
        """One column of a block; rows that cannot be used are reported and cleared in keep."""
        kind = self.kinds[key]

        def reject(row: int, problem: str) -> None:
            if keep[row]:
                keep[row] = False
                self.bad.add(int(rows.lines[row]), problem)

        if kind == "text":
            words = rows.texts(c)
            known = vocabularies[key]
            codes = np.fromiter((known.setdefault(word, len(known)) for word in words), np.int64, len(words))
            if b"" in known:
                for row in np.flatnonzero(codes == known[b""]):
                    reject(int(row), f"the {key} is empty")
            return codes
        if kind == "time":
            self.kinds[key] = kind = self._kind(key, [text.decode("ascii", "replace") for text in rows.texts(c)])
        if kind in ("date", "time"):
            return self._dates(key, rows.texts(c), reject)
        values, ok = rows.integers(c)
        if ok.all():
            return values
        if kind == "id":
            for row in np.flatnonzero(~ok):
                text = rows.data[slice(*(int(b[row]) for b in rows.bounds(c)))]
                hint = (
                    ""
                    if self.id_type == "int"
                    else f" (ids are integers as in the first row; id_type='str' makes every {key} text)"
                )
                reject(
                    int(row),
                    f"the {key} is {self._decode(text)[:60]!r}, expected an integer{hint}"
                    if text
                    else f"the {key} is empty",
                )
            return values
        numbers = values.astype(np.float64)
        texts = rows.texts(c)
        for row in np.flatnonzero(~ok).tolist():
            number = _number(texts[row].decode("ascii", "replace"))
            if number is None:
                reject(row, f"the {key} is {self._decode(texts[row])[:60]!r}, expected a finite number")
            else:
                numbers[row] = number
        return numbers

    def _dates(self, key: str, texts: list[bytes], reject: Any) -> np.ndarray:
        """ISO 8601 dates -> seconds since 1970 (UTC), float64."""
        seconds = np.zeros(len(texts))
        for row, raw in enumerate(texts):
            text = raw.decode("ascii", "replace")
            moment = _seconds(text)
            if moment is None:
                expected = "a number or an ISO 8601 date"
                if _number(text) is not None:
                    expected = "an ISO 8601 date as in other rows"
                reject(row, f"the {key} is {raw[:60].decode(self.encoding, 'replace')!r}, expected {expected}")
            else:
                seconds[row] = moment
        return seconds


# ----------------------------------------------------------------------------------------------- npz, parquet


def _from_named_arrays(path: Path, arrays: dict[str, Any], wanted: dict[str, str | int | None]) -> Table:
    names = list(arrays)
    chosen = _choose(path, names, [""] * len(names), wanted)
    columns = {key: np.asarray(arrays[names[c]]) for key, c in chosen.items()}
    rows = len(columns["user"])
    notes = (_note_columns(names, chosen),)
    # Named arrays carry no unrelated text: all that are aligned with the users are kept, under their own
    # names.
    for name, array in arrays.items():
        if name not in columns and names.index(name) not in chosen.values() and np.shape(array) == (rows,):
            columns[name] = np.asarray(array)
    for key, values in columns.items():
        if values.shape != (rows,):
            raise ValueError(f"{path}: column {key!r} has shape {values.shape}, expected ({rows},) as the users")
        if values.dtype.kind in "fM" and key in ("user", "item", *NUMERIC) and not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            expected = "a date" if values.dtype.kind == "M" else "a finite number"
            raise ValueError(f"{path}: row {row}: the {key} is {values[row]}, expected {expected}")
    if rows == 0:
        raise ValueError(f"{path} has no rows")
    return Table({key: Column(values) for key, values in columns.items()}, rows, notes=notes)


def _read_npz(path: Path, wanted: dict[str, str | int | None]) -> Table:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except DAMAGED as error:
        raise ValueError(f"{path} cannot be read as .npz: {error}") from None
    return _from_named_arrays(path, arrays, wanted)


def _read_parquet(path: Path, wanted: dict[str, str | int | None]) -> Table:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise ValueError(f"{path} is a parquet file, and reading it needs pyarrow: pip install pyarrow") from None
    table = parquet.read_table(path)
    arrays: dict[str, Any] = {}
    chosen = _choose(path, table.column_names, [""] * table.num_columns, wanted)
    for key, c in chosen.items():
        column = table.column(c)
        if column.null_count:
            row = next(r for r, valid in enumerate(column.is_valid().to_pylist()) if not valid)
            raise ValueError(f"{path}: row {row}: the {key} is missing (null)")
        values = column.to_numpy()
        if values.dtype.kind == "M":
            values = values.astype("datetime64[us]").astype(np.int64) / 1e6
        arrays[key] = values.astype(np.str_) if values.dtype.kind == "O" else values
    return _from_named_arrays(path, arrays, {key: key for key in arrays})
