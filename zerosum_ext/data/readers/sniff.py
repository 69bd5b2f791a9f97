"""What the first lines of a text file say: its delimiter, header, columns and the kinds of their fields."""

from __future__ import annotations

import contextlib
import csv
import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path

from zerosum_ext.data import times
from zerosum_ext.data.ids import is_integer
from zerosum_ext.data.readers.columns import NUMERIC, Choice, choose, known_names
from zerosum_ext.data.readers.table import Options
from zerosum_ext.data.wording import option

__all__ = ["Layout", "sniff", "sniff_format"]

_SAMPLE_LINES, _SAMPLE_BYTES = 1000, 1 << 20
_DELIMITERS = ("::", "\t", ",", ";", "|", " ")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
_COMMENT = re.compile(rb"\s*(#|%|//)")
_LISTED_COLUMNS = 5  # rows of so many integers and no header are lists: user, item, rating and time are four


@dataclass
class Layout:
    """How a text file is laid out.

    Attributes:
        line: the number of the first line of data, from 1.
        skip: lines above it.
        kinds: what each column holds: "id" (integers so far), "text", "number", "date", "time" (not told yet).
    """

    delimiter: str
    width: int
    line: int
    skip: int
    names: list[str] | None
    choice: Choice
    kinds: dict[str, str]
    block_bytes: int = 1 << 30
    time_format: str = ""
    whole_times: bool = False
    decimal_comma: bool = False
    comments: int = 0
    notes: list[str] = field(default_factory=list)


def _sample(head: bytes) -> list[tuple[int, bytes]]:
    """The first lines that are not blank, with their numbers: up to 1 MiB, but two at least."""
    lines: list[tuple[int, bytes]] = []
    size = at = 0
    number = 0
    while at < len(head) and len(lines) < _SAMPLE_LINES:
        end = head.index(b"\n", at)
        number += 1
        line, at = head[at:end], end + 1
        if line.strip():
            size += len(line)
            if size > _SAMPLE_BYTES and len(lines) >= 2:
                break
            lines.append((number, line))
    return lines


def split_line(line: str, delimiter: str) -> list[str]:
    """Return the fields of one line, blanks around them taken off."""
    if delimiter == " ":
        return line.split()
    fields = line.split(delimiter)
    if len(delimiter) == 1 and '"' in line:
        with contextlib.suppress(csv.Error):  # which is reported where the row is read
            fields = next(csv.reader([line], delimiter=delimiter))
    return [text.strip() for text in fields]


def decode(path: Path, line: bytes, number: int) -> str:
    """Return a line as text, or raise ValueError."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        wrong = line[max(error.start - 10, 0) : error.start + 30]
        raise ValueError(
            f"{path}:{number}: {wrong!r} is not utf-8; give the file's {option('encoding')}, such as latin-1"
        ) from None


def _sniff_delimiter(lines: list[str]) -> str:
    widths = {d: [len(split_line(line, d)) for line in lines] for d in _DELIMITERS}
    # As many lines as possible have the fields of the first; of several delimiters the first above.
    alike = {d: sum(w == widths[d][0] for w in widths[d]) for d in _DELIMITERS if widths[d][0] > 1}
    best = max(alike, key=alike.__getitem__, default=",")
    for other in (";", "|"):  # 1;2;3,5: its commas are decimal ones
        if best == "," and alike.get(other) == alike.get(",", 0):
            fields = [text for line in lines for text in split_line(line, other) if "," in text]
            if all(_DECIMAL_COMMA.fullmatch(text) for text in fields):
                return other
    return best


def _check_delimiter(delimiter: str) -> str:
    if not delimiter or "\n" in delimiter or "\r" in delimiter or '"' in delimiter:
        raise ValueError(f"delimiter: expected a text such as ',' or '::' or ' ', got {delimiter!r}")
    return delimiter


def sniff_format(path: Path, head: bytes, options: Options) -> str:
    """Return "text", "adjacency", "item-lists" or "jsonl" for the first block of a text file.

    Raises:
        ValueError: the rows are lists, and nothing says whether each begins with its user.
    """
    start = head.lstrip()[:1]
    if start == b"{":
        return "jsonl"
    if options.header or options.columns or options.delimiter not in (None, " ", "\t", ","):
        return "text"
    rows = [
        line.split() if options.delimiter is None else line.replace(b",", b" ").split() for _, line in _sample(head)
    ]
    rows = [row for row in rows if not _COMMENT.match(row[0])]
    if not rows or not all(part.isdigit() for row in rows for part in row):
        return "text"
    widths = {len(row) for row in rows}
    ragged = len(widths) > 1
    if max(widths) < 2 or not (ragged or (min(widths) >= _LISTED_COLUMNS and len(rows) > 1)):
        return "text"
    if ragged and max(widths) <= 4 and sum(len(row) == len(rows[0]) for row in rows) > len(rows) // 2:
        return "text"  # a table with a bad row
    first = [int(row[0]) for row in rows]
    if all(a < b for a, b in itertools.pairwise(first)):
        return "adjacency"
    counts = f"{min(widths)} to {max(widths)}" if ragged else f"{min(widths)}"
    raise ValueError(
        f"{path}: its rows are lists of {counts} integers, and nothing says whether each begins with its user: give "
        f"{option('adjacency')} (user item item ...), {option('item lists')} (a line of items for each user), or "
        f"{option('table columns')} where they are columns of a table"
    )


def sniff(path: Path, head: bytes, options: Options) -> Layout:
    """Return the layout of a file of delimited text from its first block.

    Raises:
        ValueError: there are no rows, fewer than two columns, or users or items cannot be told.
    """
    lines = [(number, decode(path, line, number)) for number, line in _sample(head)]
    if not lines:
        raise ValueError(f"{path} has no rows")
    given = None if options.delimiter is None else _check_delimiter(options.delimiter)
    body = [text for _, text in lines if not _COMMENT.match(text.encode())]
    delimiter = given or _sniff_delimiter(body or [text for _, text in lines])
    top, names = _above(lines, delimiter, options)
    comments = len(top)
    lines = lines[len(top) :]
    if not lines:
        raise ValueError(f"{path} has no rows")
    rows = [split_line(text, delimiter) for _, text in lines]
    width = len(rows[0])
    if width < 2:
        raise ValueError(
            f"{path}:{lines[0][0]}: expected at least two columns, a user and an item, found one: {rows[0][0][:60]!r}"
        )
    guesses = []
    if names is not None:
        comments -= 1
    elif _has_header(rows, options) if options.header is None else options.header:
        names = rows.pop(0)
        lines.pop(0)
        if options.header is None and not _names_known(names, options):
            guesses.append(
                f"the first line is taken for a header: {', '.join(names)[:80]}; if it is a row, say "
                f"{option('no header')}"
            )
        if not rows:
            raise ValueError(f"{path} has a header but no rows")
    whole = [row for row in rows if len(row) == width] or [(rows[0] + [""] * width)[:width]]
    sample = [[row[c] for row in whole] for c in range(width)]
    choice = choose(str(path), names, sample, options.columns)
    choice.guesses[:0] = guesses
    comma = (given is not None and "," not in given) or "," not in delimiter
    layout = Layout(delimiter, width, lines[0][0], lines[0][0] - 1, names, choice, {}, comments=comments)
    layout.decimal_comma = comma and _decimal_commas(choice, sample)
    layout.kinds = {key: _kind(key, sample[c], options.id_type) for key, c in choice.columns.items()}
    if layout.kinds.get("timestamp") == "number":
        layout.whole_times = all(map(is_integer, sample[choice.columns["timestamp"]]))
    if layout.kinds.get("timestamp") == "date":
        layout.time_format = _time_format(sample[choice.columns["timestamp"]])
    layout.notes = [*choice.guesses[: len(guesses)], choice.note(names), *choice.guesses[len(guesses) :]]
    unread = choice.unread(names, width)
    if unread:
        layout.notes.append(f"not read: {', '.join(unread)}")
    return layout


def _above(
    lines: list[tuple[int, str]], delimiter: str, options: Options
) -> tuple[list[tuple[int, str]], list[str] | None]:
    """The comments above the first row, and the header where the last of them is one."""
    top = []
    for number, text in lines:
        if not _COMMENT.match(text.encode()):
            break
        top.append((number, text))
    if not top:
        return [], None
    width = len(split_line(lines[len(top)][1], delimiter)) if len(top) < len(lines) else 0
    last = split_line(re.sub(r"^\s*(#|%|//)\s*", "", top[-1][1]), delimiter)
    if (
        options.header is not False
        and width == len(last) > 1
        and known_names(last, ("user",))
        and known_names(last, ("item",))
    ):
        return top, last
    # Lines with as many fields as the rows, and no blank after the mark, are rows: #a,1
    while (
        top
        and not re.match(r"\s*(#|%|//)\s", top[-1][1])
        and len(split_line(top[-1][1], delimiter)) in (width, 0 if width else len(split_line(top[-1][1], delimiter)))
    ):
        top.pop()
    return top, None


def _has_header(rows: list[list[str]], options: Options) -> bool:
    first = rows[0]
    if _names_known(first, options):
        return True
    if any(times.number(text) is not None for text in first):
        return False
    return any(times.number(text) is not None for row in rows[1:] for text in row)


def _names_known(names: list[str], options: Options) -> bool:
    return any(isinstance(source, str) for source in options.columns.values()) or known_names(names)


def _decimal_commas(choice: Choice, sample: list[list[str]]) -> bool:
    fields = [text for key, c in choice.columns.items() if key in NUMERIC for text in sample[c] if "," in text]
    return bool(fields) and all(_DECIMAL_COMMA.fullmatch(text) for text in fields)


def _kind(key: str, texts: list[str], id_type: str) -> str:
    """What a column holds, by its fields in the first rows."""
    if key in ("user", "item"):
        if id_type == "auto":
            return "id" if is_integer(next(filter(None, texts), "")) else "text"
        return "id" if id_type == "int" else "text"
    if key != "timestamp":
        return "number" if key in NUMERIC else "text"
    # By most of them: one may be empty or wrong, and a number of four digits a year.
    numbers = [text for text in texts if times.number(text) is not None]
    dates = sum(times.number(text) is None and times.iso_seconds(text) is not None for text in texts)
    years = sum(times.iso_seconds(text) is not None for text in numbers)
    if not numbers and not dates:
        return "time"
    return "number" if len(numbers) - years > dates or not dates else "date"


def _time_format(texts: list[str]) -> str:
    """What Arrow reads the dates of the sample as: "us" or "ns", with "z" if all have a zone; "" for our own way."""
    plain = all(re.fullmatch(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?)?", text) for text in texts)
    zoned = all(
        re.fullmatch(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d(?::?\d\d)?)", text)
        for text in texts
    )
    if not plain and not zoned:
        return ""
    fine = any(re.search(r"\.\d{7}", text) for text in texts)
    return ("ns" if fine else "us") + ("z" if zoned else "")
