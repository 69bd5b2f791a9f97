"""Delimited text: Arrow parses and encodes it in threads; what it cannot read is named by file and line here.

A file is read the fast way first. If anything in it is odd (a row of another width, a value that is none, a quoted
field of several lines), it is read once more the careful way: line by line, into rows that Arrow reads again, with the
line of each row.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zerosum_ext.data import times
from zerosum_ext.data.ids import Coded, is_integer, sort_words
from zerosum_ext.data.readers import sources
from zerosum_ext.data.readers.gathered import Gathered
from zerosum_ext.data.readers.sniff import Layout, decode, sniff
from zerosum_ext.data.readers.table import BadRows, Column, Options, Table
from zerosum_ext.data.wording import option

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_text"]

# Stands for a delimiter of several bytes, or of a quoted file, once a block has been normalised.
_SEPARATOR = b"\x1f"
_BLANKS = re.compile(rb"[ \t]+")
# Of text that Arrow reads at a time; memory holds the columns of one piece as text, beside those of all as numbers.
PIECE_BYTES = 1 << 27


def read_text(path: Path, open_lines: Callable[[], sources.Lines], options: Options) -> Table:
    """Return the columns of a file of delimited text.

    Args:
        path: of the file, for messages.
        open_lines: opens the file anew.
        options: how it is read.
    """
    lines = open_lines()
    blocks = iter(lines)
    head = sources.first_lines(blocks)
    layout = sniff(path, head, options)
    table = _fast(path, layout, lines, head, blocks, options, open_lines)
    if table is not None:
        return table
    return _Careful(path, open_lines, layout, options).read()


# ---- the fast way


class _Watch:
    """Blocks for Arrow, with what was seen in them."""

    def __init__(self, layout: Layout, head: bytes, blocks: Iterator[bytes]) -> None:
        self.quotes = self.odd = False
        self._layout, self._head, self._blocks = layout, head, blocks
        self._delimiter = layout.delimiter.encode()
        self.separator = self._delimiter if len(self._delimiter) == 1 and self._delimiter != b" " else _SEPARATOR
        self.can_quote = self.separator != _SEPARATOR

    def __iter__(self) -> Iterator[bytes]:
        at = 0
        for _ in range(self._layout.skip):
            at = self._head.index(b"\n", at) + 1
        yield from self._seen(self._head[at:])
        del self._head
        for block in self._blocks:
            yield from self._seen(block)

    def _seen(self, block: bytes) -> Iterator[bytes]:
        if b"\r" in block or (not self.can_quote and _SEPARATOR in block):
            self.odd = True
            return
        if self.can_quote and not self.quotes:
            self.quotes = b'"' in block
        if self._delimiter == b" ":
            block = _BLANKS.sub(_SEPARATOR, block)
            if block.startswith(_SEPARATOR) or b"\n\x1f" in block or b"\x1f\n" in block:
                block = re.sub(rb"\n\x1f|\x1f\n", b"\n", block.lstrip(_SEPARATOR))
        elif not self.can_quote:
            block = block.replace(self._delimiter, _SEPARATOR)
        yield block


def _blank_lines(lines: sources.Lines, skip: int) -> int:
    """How many lines after the first ones are empty."""
    blank = 0
    for block in lines:
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10)
        empty = np.diff(ends, prepend=-1) == 1
        blank += int(empty[min(skip, len(empty)) :].sum())
        skip -= min(skip, len(empty))
    return blank


def _fast(
    path: Path,
    layout: Layout,
    lines: sources.Lines,
    head: bytes,
    blocks: Iterator[bytes],
    options: Options,
    open_lines: Callable[[], sources.Lines],
) -> Table | None:
    """The table, or None where anything is odd."""
    import pyarrow as pa

    watch = _Watch(layout, head, blocks)
    types = {key: _arrow_type(key, kind, layout) for key, kind in layout.kinds.items()}
    gathered = Gathered(layout, options.id_type)
    try:
        for piece in _pieces(iter(watch)):
            read = _parse(piece, layout, watch.separator, watch.can_quote, types)
            if watch.odd:
                return None
            gathered.add(read)
            del read
            if gathered.bad.rows:
                return None
    except (pa.ArrowInvalid, pa.ArrowKeyError, pa.ArrowNotImplementedError):
        if layout.whole_times:  # some have a fraction, or something is odd
            layout.whole_times = False
            again = open_lines()
            blocks = iter(again)
            return _fast(path, layout, again, sources.first_lines(blocks), blocks, options, open_lines)
        return None
    # Fewer rows than lines: a quoted field goes on over several lines, or a quote is not closed.
    found = gathered.rows
    if not found:
        return None
    rows = lines.count - layout.skip
    if watch.quotes and found != rows and found != rows - _blank_lines(open_lines(), layout.skip):
        return None
    columns = gathered.columns()
    return None if gathered.bad.rows else _table(columns, layout, BadRows(path, options.skip_bad_rows), 0)


def _pieces(blocks: Iterator[bytes]) -> Iterator[Iterator[bytes]]:
    """Yield runs of blocks, each of about PIECE_BYTES, that must be read one after the other."""

    def run(first: bytes) -> Iterator[bytes]:
        left = PIECE_BYTES - len(first)
        yield first
        del first
        while left > 0:
            block = next(blocks, None)
            if block is None:
                return
            left -= len(block)
            yield block

    for block in blocks:
        yield run(block)


def _arrow_type(key: str, kind: str, layout: Layout) -> pa.DataType:
    import pyarrow as pa

    if kind == "number":
        return pa.int64() if key == "timestamp" and layout.whole_times else pa.float64()
    if kind == "date" and layout.time_format:
        unit = layout.time_format[:2]
        return pa.timestamp(unit, "UTC") if layout.time_format.endswith("z") else pa.timestamp(unit)
    return pa.string()


def _parse(
    blocks: Iterator[bytes], layout: Layout, separator: bytes, quotes: bool, types: dict[str, pa.DataType]
) -> pa.Table:
    """What Arrow reads from the blocks: the columns that were chosen, by number."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    pipe = sources.Pipe(blocks)
    used = sorted(set(layout.choice.columns.values()))
    by_number = {str(c): types[key] for key, c in layout.choice.columns.items()}
    try:
        return arrow_csv.read_csv(
            pa.PythonFile(pipe, mode="r"),
            read_options=arrow_csv.ReadOptions(
                block_size=layout.block_bytes,  # of what one read returns at most; the pipe returns less
                column_names=[str(c) for c in range(layout.width)],
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=separator.decode(), quote_char='"' if quotes else False, double_quote=quotes
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types=by_number,
                include_columns=[str(c) for c in used],
                null_values=[],
                strings_can_be_null=False,
                decimal_point="," if layout.decimal_comma else ".",
            ),
        )
    except BaseException:
        if pipe.error is not None:  # what a file that is cut off raises, not what Arrow makes of it
            raise pipe.error from None
        raise


def _table(columns: dict[str, Column], layout: Layout, bad: BadRows, dropped: int) -> Table:
    users = columns["user"]
    assert isinstance(users, Coded)
    return Table(
        columns,
        len(users.codes) + dropped,
        bad.count,
        tuple(bad.messages),
        tuple(layout.notes),
        layout.choice.used(layout.names),
        layout.choice.unread(layout.names, layout.width),
        tuple(layout.choice.guesses),
        layout.comments,
    )


# ---- the careful way


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
        """Start a record."""
        self.taken, self.ended = [], False

    def put_back(self) -> None:
        """Put back all lines of the record but its first."""
        self._again.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


class _Careful:
    """Reads line by line what Arrow refuses or would misread, and knows the line of each row."""

    def __init__(self, path: Path, open_lines: Callable[[], sources.Lines], layout: Layout, options: Options) -> None:
        self.path, self.open_lines, self.layout, self.options = path, open_lines, layout, options
        self.bad = BadRows(path, options.skip_bad_rows)
        self.numbers: list[np.ndarray] = []  # of the lines of rows, block by block
        self.found = 0  # rows of the wrong width and the like

    def read(self) -> Table:
        import pyarrow as pa

        types = dict.fromkeys(self.layout.kinds, pa.string())
        try:
            read = _parse(self._blocks(), self.layout, _SEPARATOR, False, types)
        except pa.ArrowInvalid as error:
            if "Empty CSV" not in str(error):
                raise ValueError(f"{self.path}: {str(error).splitlines()[0]}") from None
            self.bad.flush()
            raise self._nothing() from None
        gathered, rows = Gathered(self.layout, self.options.id_type), read.num_rows
        gathered.add(read)
        del read
        columns, bad = gathered.columns(), gathered.bad
        lines = np.concatenate(self.numbers) if self.numbers else np.zeros(0, np.int64)
        for row, problem in bad.rows.items():
            self.bad.add(int(lines[row]), problem)
        self.bad.flush()
        if bad.rows:
            keep = np.ones(rows, bool)
            keep[list(bad.rows)] = False
            columns = {key: _kept(column, keep) for key, column in columns.items()}
            values = columns.get("timestamp")
            if isinstance(values, np.ndarray) and self.layout.kinds["timestamp"] == "number":
                columns["timestamp"] = times.to_numbers("timestamp", values)
        users = columns["user"]
        assert isinstance(users, Coded)
        if not len(users.codes):
            raise self._nothing()
        return _table(columns, self.layout, self.bad, self.bad.count)

    def _nothing(self) -> ValueError:
        return ValueError(
            f"{self.path} has no usable rows: {self.bad.messages[0] if self.bad.messages else 'none at all'}"
        )

    # -- lines into rows

    def _blocks(self) -> Iterator[bytes]:
        """Rows with separators in place of delimiters and quotes."""
        skip, line = self.layout.skip, 1
        delimiter = self.layout.delimiter
        can_quote = len(delimiter) == 1 and delimiter != " "
        blocks = iter(self.open_lines())
        for block in blocks:
            at = 0
            while skip and at < len(block):
                at = block.index(b"\n", at) + 1
                skip -= 1
                line += 1
            block = block[at:]
            if can_quote and b'"' in block:
                yield from self._quoted(block, blocks, line)
                return
            count = block.count(b"\n")
            rows = self._plain(block, line)
            if rows:
                yield rows
            line += count
            if self._stop():
                return

    def _stop(self) -> bool:
        """Whether rows after this one no longer matter."""
        return bool(self.bad.pending) and not self.options.skip_bad_rows

    def _plain(self, block: bytes, line: int) -> bytes:
        delimiter = self.layout.delimiter.encode()
        width, blanks = self.layout.width, self.layout.delimiter == " "
        rows: list[bytes] = []
        numbers: list[int] = []
        for at, text in enumerate(block.split(b"\n")[:-1], line):
            fields = text.split() if blanks else text.split(delimiter)
            if len(fields) != width or b"\r" in text or _SEPARATOR in text:
                if text.strip():
                    self._reject(at, self._problem(text, len(fields)))
                    if self._stop():
                        break
                continue
            rows.append(_SEPARATOR.join(fields))
            numbers.append(at)
        self.numbers.append(np.array(numbers, np.int64))
        rows.append(b"")
        return self._decoded(b"\n".join(rows), numbers)

    def _reject(self, line: int, problem: str) -> None:
        self.bad.add(line, problem)

    def _problem(self, text: bytes, fields: int) -> str:
        if b"\r" in text:
            return "a new-line character (a carriage return) stands within the line"
        if fields == self.layout.width:
            return "a control character (1f) stands within the line"
        hint = ""
        if self.layout.names is None and all(part.isdigit() for part in text.replace(b",", b" ").split()):
            hint = f"; if each row is a list of items, say {option('adjacency')} or {option('item lists')}"
        return f"expected {self.layout.width} fields as in the first row, found {fields}{hint}"

    def _decoded(self, data: bytes, numbers: list[int]) -> bytes:
        """The same, or a ValueError that names the line that is no UTF-8."""
        try:
            data.decode()
        except UnicodeDecodeError as error:
            at = data.count(b"\n", 0, error.start)
            decode(self.path, data.split(b"\n")[at], numbers[at])
        return data

    # -- quoted fields, which may hold delimiters and line feeds

    def _quoted(self, block: bytes, blocks: Iterator[bytes], line: int) -> Iterator[bytes]:
        def lines() -> Iterator[str]:
            at = line
            for part in [block], blocks:
                for data in part:
                    for raw in data.split(b"\n")[:-1]:
                        yield decode(self.path, raw, at) + "\n"
                        at += 1

        feed = _Feed(lines())
        reader = csv.reader(feed, delimiter=self.layout.delimiter)
        separator = _SEPARATOR.decode()
        rows: list[str] = []
        numbers: list[int] = []
        at = line
        while not self._stop():
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
                row = self._spanning(row, feed, at, problem)
            if row and len(row) == self.layout.width and separator not in "".join(row):
                text = separator.join(row)
                rows.append(text.replace("\r", " ").replace("\n", " ") if "\n" in text or "\r" in text else text)
                numbers.append(at)
            elif row and (len(row) > 1 or row[0].strip()):
                self._reject(at, self._problem("".join(feed.taken).rstrip("\n").encode(), len(row)))
            at += len(feed.taken)
            if len(rows) == 100_000:
                self.numbers.append(np.array(numbers, np.int64))
                yield "\n".join([*rows, ""]).encode()
                rows, numbers = [], []
        self.numbers.append(np.array(numbers, np.int64))
        if rows:
            yield "\n".join([*rows, ""]).encode()

    def _spanning(self, row: list[str] | None, feed: _Feed, at: int, problem: str) -> list[str] | None:
        """The row that begins with ``feed.taken[0]``, where the csv module read on beyond that line, or could not.

        That is a quoted field of several lines, or a quote that is not closed (``"Heroes``) and would swallow the rows
        up to the next one. Then only its line is taken, as it stands, where it makes a row and the quote is in none of
        the columns that are read; otherwise it is a bad row.
        """
        layout = self.layout
        plain = [line.rstrip("\r\n").split(layout.delimiter) for line in feed.taken if line.strip()]
        each_a_row = all(len(fields) == layout.width for fields in plain)
        if row is not None and not feed.ended and len(row) == layout.width and self._well_quoted(feed.taken):
            if not each_a_row or not all(self._fits(fields) for fields in plain[1:]):
                return row
            if all(kind == "text" for kind in layout.kinds.values()):  # of which a sentence with commas can be two
                last = at + len(feed.taken) - 1
                self._reject(
                    at, f"lines {at} to {last} are one row with a quoted field of several lines, or several rows"
                )
                return None
        feed.put_back()
        if each_a_row and not any(plain[0][c].startswith('"') for c in layout.choice.columns.values()):
            return plain[0]
        self._reject(at, problem)
        return None

    def _well_quoted(self, lines: list[str]) -> bool:
        """Whether no text follows a closing quote."""
        try:
            next(csv.reader(lines, delimiter=self.layout.delimiter, strict=True))
        except csv.Error:
            return False
        return True

    def _fits(self, fields: list[str]) -> bool:
        """Whether fields can be a row: numbers and dates where such are due."""
        check: dict[str, Callable[[str], bool]] = {
            "id": is_integer,
            "number": lambda text: times.number(text) is not None,
            "date": lambda text: times.iso_seconds(text) is not None,
        }
        kinds = self.layout.kinds
        return all(check.get(kinds[key], bool)(fields[c].strip()) for key, c in self.layout.choice.columns.items())


def _kept(column: Column, keep: np.ndarray) -> Column:
    return sort_words(column.codes[keep], column.words) if isinstance(column, Coded) else column[keep]
