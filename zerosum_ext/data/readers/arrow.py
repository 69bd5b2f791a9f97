"""Columns as Arrow hands them over, converted by our own rules: ids, numbers, times.

Text is looked at once for each distinct value, not for each row.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from zerosum_ext import _ops
from zerosum_ext.data import times
from zerosum_ext.data.ids import Coded, is_integer, sort_words, text_array
from zerosum_ext.data.wording import option

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Bad", "ids", "numbers", "text_ids", "text_numbers", "text_times", "to_column"]

Kind = Literal["id", "int id", "text", "number", "time"]


@dataclass
class Bad:
    """Rows of a column that cannot be used: row -> what is wrong with it."""

    rows: dict[int, str] = field(default_factory=dict)


def _dictionary(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Codes int32 [n] and distinct values."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        encoded = column.unify_dictionaries()
    else:
        encoded = column.dictionary_encode()
    if encoded.num_chunks == 0:
        value = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        return np.zeros(0, np.int32), pa.array([], value)
    words = encoded.chunk(encoded.num_chunks - 1).dictionary  # of all chunks
    codes = np.empty(len(encoded), np.int32)
    at = 0
    for chunk in encoded.chunks:
        codes[at : at + len(chunk)] = values_of(chunk.indices)
        at += len(chunk)
    return codes, words


def values_of(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return integers or floats without nulls as an array, of one chunk without a copy.

    Arrow's to_numpy imports pandas where it is installed, which takes longer than most files.
    """
    import pyarrow as pa

    dtype = {"halffloat": "float16", "float": "float32", "double": "float64"}.get(str(column.type), str(column.type))
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = []
    for chunk in chunks:
        if len(chunk):
            values = np.frombuffer(chunk.buffers()[1], dtype, len(chunk), chunk.offset * np.dtype(dtype).itemsize)
            parts.append(values)
    if len(parts) == 1:
        return parts[0]
    # (NumPy asks for huge pages, which cost several times what the copy does where memory is in pieces.)
    out: np.ndarray = torch.empty(sum(map(len, parts)), dtype=getattr(torch, dtype)).numpy()
    return np.concatenate(parts, out=out) if parts else out


def _text(words: pa.Array) -> pa.Array:
    """Words as plain strings."""
    import pyarrow as pa

    return words if pa.types.is_string(words.type) else words.cast(pa.string())


def words_array(words: pa.Array) -> np.ndarray:
    """Return Arrow strings as a NumPy array of text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = pc.binary_length(words)
    longest = pc.max(lengths).as_py() or 0
    if not 0 < longest <= 64 or pc.sum(pc.utf8_length(words)).as_py() != pc.sum(lengths).as_py():
        return text_array(words.to_pylist())
    padded = pc.ascii_rpad(words, longest, padding="\0")  # ASCII alone: a character is a byte
    buffer = padded.buffers()[2]
    size = len(words) * longest
    first = (
        int(np.frombuffer(padded.buffers()[1], np.int32, 1, 4 * padded.offset)[0])
        if pa.types.is_string(padded.type)
        else 0
    )
    characters = np.frombuffer(buffer, np.uint8, size, first).astype(np.uint32)
    return characters.view(f"<U{longest}").reshape(len(words))


def _canonical(words: pa.Array) -> np.ndarray | None:
    """Words as int64 if each is the only spelling of one, else None."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not len(words) or not is_integer(words[0].as_py()):
        return None
    try:
        values = words.cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    return values_of(values) if pc.all(pc.equal(values.cast(pa.string()), words)).as_py() is not False else None


def text_ids(column: pa.ChunkedArray, what: str, id_type: str, bad: Bad) -> Coded:
    """Return the ids of a column of text, blanks around them taken off.

    Args:
        column: strings or a dictionary of such, without nulls [n].
        what: user or item, for messages.
        id_type: "auto", "int" or "str".
        bad: gets the rows without a usable id; their codes mean nothing.
    """
    return join_pieces([piece_of_ids(column, what, id_type, bad)])


@dataclass
class Piece:
    """Ids of some of a column's rows: ``words[codes]``.

    Attributes:
        codes: int32 [n].
        words: distinct ids in ascending order, int64 or Arrow strings.
    """

    codes: np.ndarray
    words: np.ndarray | pa.Array


def piece_of_ids(column: pa.ChunkedArray, what: str, id_type: str, bad: Bad) -> Piece:
    """Return the ids of some rows of a column of text; see :func:`text_ids` and :func:`join_pieces`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = _numbered(column, id_type)
    if isinstance(found.words, np.ndarray):
        return found
    if id_type == "int" or _have_blanks(found.words) or (len(found.words) and not found.words[0].as_py()):
        trimmed = pc.utf8_trim(found.words, " \t\r")
        ids = _trimmed_ids(found.codes, trimmed.to_pylist(), what, id_type, bad)
        integers = ids.words.dtype.kind != "U"
        return Piece(ids.codes, ids.words if integers else pa.array(ids.words.tolist(), pa.string()))
    return found


def join_pieces(pieces: list[Piece]) -> Coded:
    """Return the ids of a whole column. If those of one piece are text, all are. The list is emptied."""
    pieces[:] = [piece for piece in pieces if len(piece.codes)] or pieces[:1]  # no rows are no text
    if len(pieces) == 1:
        words = pieces[0].words
        return Coded(pieces[0].codes, words if isinstance(words, np.ndarray) else words_array(words))
    rank, joined = _join_words([piece.words for piece in pieces])
    codes = torch.empty(sum(len(piece.codes) for piece in pieces), dtype=torch.int32)
    at = first = 0
    while pieces:  # each is let go once it is copied, as memory is what large files lack
        piece = pieces.pop(0)
        numbers = torch.from_numpy(piece.codes)
        mine = rank[first : first + len(piece.words)]
        torch.index_select(mine, 0, numbers, out=codes[at : at + len(numbers)])
        at, first = at + len(numbers), first + len(piece.words)
    return Coded(codes.numpy(), joined)


def _join_words(words: list[np.ndarray | pa.Array]) -> tuple[torch.Tensor, np.ndarray]:
    """The rank of each word of all pieces, one piece after the other, int32; and the distinct words in that order."""
    import pyarrow as pa

    integers = [part for part in words if isinstance(part, np.ndarray)]
    if len(integers) == len(words):
        return _join_integers(integers)
    texts = [pa.array(part).cast(pa.string()) if isinstance(part, np.ndarray) else part for part in words]
    wide = any(pa.types.is_large_string(part.type) for part in texts)
    kind = pa.large_string() if wide else pa.string()
    found = _numbered(pa.chunked_array([part.cast(kind) for part in texts], kind), "str")
    assert not isinstance(found.words, np.ndarray)
    return torch.from_numpy(found.codes), words_array(found.words)


def _join_integers(parts: list[np.ndarray]) -> tuple[torch.Tensor, np.ndarray]:
    values = np.concatenate(parts)
    low = min(int(part[0]) for part in parts if len(part))
    high = max(int(part[-1]) for part in parts if len(part))
    if high - low < 4 * len(values) + 1_000_000:  # a table of all numbers between them, rather than to sort
        seen = np.zeros(high - low + 1, bool)
        seen[values - low] = True
        rank = np.cumsum(seen, dtype=np.int32)
        rank -= 1
        return torch.from_numpy(rank[values - low]), np.flatnonzero(seen) + low
    distinct, place = np.unique(values, return_inverse=True)
    return torch.from_numpy(place.astype(np.int32)), distinct


def _numbered(column: pa.ChunkedArray, id_type: str) -> Piece:
    """Integers if all are such as they stand, unless id_type is "str"; else text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    chunks = _chunks(column)
    if chunks is not None:
        if id_type != "str":
            codes, values, failed = _ops.integer_ids(*chunks)
            if failed < 0:
                return Piece(codes.numpy(), values.numpy())
        codes, characters, offsets = _ops.text_ids(*chunks)
        buffers = [None, pa.py_buffer(offsets.numpy()), pa.py_buffer(characters.numpy())]
        text = pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers)
        return Piece(codes.numpy(), text if len(characters) >= 1 << 31 else text.cast(pa.string()))
    numbers, words = _dictionary(column)
    words = _text(words)
    found = _canonical(words) if id_type != "str" else None
    if found is not None:
        order = np.argsort(found, kind="stable")
        return Piece(_rank(order)[numbers] if len(order) else numbers, found[order])
    order = pc.array_sort_indices(words)  # bytes of UTF-8 are in the order of characters
    return Piece(_rank(values_of(order))[numbers], words.take(order))


def _chunks(column: pa.ChunkedArray) -> tuple[list[torch.Tensor], list[torch.Tensor]] | None:
    """The characters and offsets of each chunk of a column of strings, or None where the ops cannot take them."""
    import pyarrow as pa

    wide = pa.types.is_large_string(column.type)
    if not (wide or pa.types.is_string(column.type)) or not len(column) or len(column) >= 1 << 31:
        return None
    if not _ops.has_op("text_ids", torch.device("cpu")):
        return None
    kind = torch.int64 if wide else torch.int32
    characters, offsets = [], []
    for chunk in column.chunks:
        if len(chunk):
            _, ends, text = chunk.buffers()
            characters.append(_view(text, torch.uint8))
            offsets.append(_view(ends, kind)[chunk.offset : chunk.offset + len(chunk) + 1])
    return characters, offsets


def _view(buffer: pa.Buffer | None, dtype: torch.dtype) -> torch.Tensor:
    """A buffer as a tensor that shares its memory, to be read alone, and for no longer than the buffer lives."""
    size = 0 if buffer is None else buffer.size // dtype.itemsize
    if buffer is None or not size:
        return torch.empty(0, dtype=dtype)
    # (torch.frombuffer warns where memory is read-only.)
    memory = (ctypes.c_char * (size * dtype.itemsize)).from_address(buffer.address)
    return torch.frombuffer(memory, dtype=dtype)


def _have_blanks(words: pa.Array) -> bool:
    """Whether there is a blank or a control character in any word."""
    characters = words.buffers()[2]
    return characters is not None and bool((np.frombuffer(characters, np.uint8) <= 32).any())


def _rank(order: np.ndarray) -> np.ndarray:
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return rank


def _trimmed_ids(codes: np.ndarray, words: list[str], what: str, id_type: str, bad: Bad) -> Coded:
    """Ids of which some had blanks around them, are empty or are no integers where such are due."""
    problems: dict[int, str] = {}
    for at, word in enumerate(words):
        if not word:
            problems[at] = f"the {what} is empty"
        elif id_type == "int" and not is_integer(word):
            problems[at] = f"the {what} is {word[:60]!r}, expected an integer"
    _report(codes, problems, bad)
    good = [word for at, word in enumerate(words) if at not in problems]
    integers = id_type != "str" and all(map(is_integer, good))
    if integers:
        array = np.array([0 if at in problems else int(word) for at, word in enumerate(words)], np.int64)
    else:
        array = text_array(words)
    return sort_words(codes, array)


def _report(codes: np.ndarray, problems: dict[int, str], bad: Bad) -> None:
    if problems:
        wrong = np.zeros(int(codes.max(initial=-1)) + 1, bool)
        wrong[[at for at in problems if at < len(wrong)]] = True
        for row in np.flatnonzero(wrong[codes]).tolist():
            bad.rows.setdefault(row, problems[int(codes[row])])


def _each_word(
    column: pa.ChunkedArray, parse: Callable[[str], float | None], problem: Callable[[str], str], bad: Bad
) -> np.ndarray:
    codes, words = _dictionary(column)
    values = np.zeros(max(len(words), 1))
    problems: dict[int, str] = {}
    for at, word in enumerate(_text(words).to_pylist()):
        value = parse(word.strip())
        if value is None:
            problems[at] = problem(word.strip()[:60])
        else:
            values[at] = value
    _report(codes, problems, bad)
    out: np.ndarray = values[codes]
    return out


def other_text(column: pa.ChunkedArray, what: str, bad: Bad) -> Coded | np.ndarray:
    """Return a column that is no id, rating or time: numbers if each field is one, else text."""
    coded = text_ids(column, what, "auto", bad)
    if coded.words.dtype.kind != "U":
        integers: np.ndarray = coded.words[coded.codes]
        return integers
    values = [times.number(word) for word in coded.words.tolist()]
    found = [value for value in values if value is not None]
    return np.array(found)[coded.codes] if found and len(found) == len(values) else coded


def whole(values: np.ndarray) -> np.ndarray:
    """Return numbers as int64 if all are whole and below 2**53."""
    return join_numbers([values])


def join_numbers(parts: list[np.ndarray], *, keep: bool = False) -> np.ndarray:
    """Return the numbers of all pieces of a column. The list is emptied.

    Args:
        parts: numbers of each piece.
        keep: floats stay such; else they become int64 if all are whole and below 2**53.
    """
    floats = any(part.dtype.kind == "f" for part in parts)
    to_integers = not keep and floats and any(map(len, parts)) and all(map(_whole, parts))
    if len(parts) == 1:
        only = parts.pop()
        return only.astype(np.int64) if to_integers else only
    dtype = np.dtype(np.int64) if to_integers else np.result_type(*parts)
    out: np.ndarray = torch.empty(sum(map(len, parts)), dtype=getattr(torch, dtype.name)).numpy()
    at = 0
    while parts:  # each is let go once it is copied, as memory is what large files lack
        part = parts.pop(0)
        out[at : at + len(part)] = part
        at += len(part)
    return out


def _whole(values: np.ndarray) -> bool:
    """Whether all numbers are whole and below 2**53."""
    with np.errstate(invalid="ignore"):
        if (values[:1000] != np.trunc(values[:1000])).any():  # ratings in halves are told by the first of them
            return False
        step = 1 << 16  # so that what is compared stays in the cache
        for at in range(0, len(values), step):
            some = values[at : at + step]
            if (some.astype(np.int64) != some).any() or not np.abs(some).max() < 2**53:
                return False
    return True


def text_numbers(column: pa.ChunkedArray, what: str, decimal_comma: bool, bad: Bad) -> np.ndarray:
    """Return a column of text as numbers; rows without one go to bad."""

    def parse(text: str) -> float | None:
        return times.number(text.replace(",", ".") if decimal_comma else text)

    return whole(_each_word(column, parse, lambda text: f"the {what} is {text!r}, expected a finite number", bad))


def text_times(column: pa.ChunkedArray, what: str, kind: str, bad: Bad) -> np.ndarray:
    """Return a column of text as times; rows without one go to bad.

    Args:
        column: strings [n].
        what: the column's name, for messages.
        kind: "number", "date", or "any" if the first rows did not tell.
        bad: gets the rows without a usable time.
    """
    if kind == "any":
        kind = _time_kind(column)
    parse = {"number": times.number, "date": times.iso_seconds}.get(kind, times.text_seconds)

    def problem(text: str) -> str:
        if kind == "number":
            return f"the {what} is {text!r}, expected a finite number"
        expected = "a number or an ISO 8601 date"
        if times.number(text) is not None:
            expected = "an ISO 8601 date as in other rows"
        elif re.fullmatch(r"\d{1,2}[/.-]\d{1,2}[/.-]\d{2,4}.*", text):
            expected = (
                "an ISO 8601 date such as 2020-12-31: which of these is the day and which the month; "
                f"{option('no times')} reads no times"
            )
        return f"the {what} is {text!r}, expected {expected}"

    values = _each_word(column, parse, problem, bad)
    return whole(values) if kind == "number" else values


def _time_kind(column: pa.ChunkedArray) -> str:
    """What most of the fields are that can be read."""
    sample = column.slice(0, 100_000).to_pylist()
    numbers = [text for text in sample if times.number(text) is not None]
    dates = sum(times.number(text) is None and times.iso_seconds(text.strip()) is not None for text in sample)
    years = sum(times.iso_seconds(text.strip()) is not None for text in numbers)
    if not numbers and not dates:
        return "any"
    return "number" if len(numbers) - years > dates or not dates else "date"


# ---- columns with types: parquet, feather, data frames


def to_column(column: pa.ChunkedArray, key: str, id_type: str, bad: Bad) -> Coded | np.ndarray:
    """Return a typed column as ids (users, items, text) or numbers (all else).

    Args:
        column: of any type that can hold such [n].
        key: user, item, rating, timestamp, order, or any other name.
        id_type: "auto" or "str"; "int" demands integers.
        bad: gets the rows with nulls and other values that cannot be used.

    Raises:
        ValueError: the column's type cannot hold what it should.
    """
    import pyarrow as pa

    for row in _nulls(column):
        bad.rows.setdefault(row, f"the {key} is missing (null)")
    if column.null_count:
        column = _filled(column)
    if key in ("user", "item"):
        return ids(column, key, id_type, bad)
    if key == "timestamp":
        return _times(column, bad)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if _is_text(kind):
        return text_numbers(column, key, False, bad) if key in times_and_numbers else _plain_text(column)
    return numbers(column, key, bad)


times_and_numbers = ("rating", "timestamp", "order")


def _nulls(column: pa.ChunkedArray) -> list[int]:
    if not column.null_count:
        return []
    rows: list[int] = np.flatnonzero(column.is_null().to_numpy()).tolist()
    return rows


def _filled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with a valid value in place of nulls, which are reported already."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    valid = column.drop_null()
    if not len(valid):
        kind = pa.string() if pa.types.is_null(column.type) else column.type
        return pa.chunked_array(
            [
                pa.array(["missing"] * len(column), pa.string())
                if pa.types.is_string(kind)
                else pa.array(np.zeros(len(column), np.int64)).cast(kind)
            ]
        )
    return pc.fill_null(column, valid[0])


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    view = getattr(pa.types, "is_string_view", lambda kind: False)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or view(kind))


def _plain_text(column: pa.ChunkedArray) -> Coded:
    codes, words = _dictionary(column)
    return sort_words(codes, text_array(_text(words).to_pylist()))


def ids(column: pa.ChunkedArray, what: str, id_type: str, bad: Bad) -> Coded:
    """Return the ids of a typed column: integers as int64, text as it is."""
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if _is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        codes, words = _dictionary(column)
        try:
            values = _text(words).to_pylist()
        except (pa.ArrowInvalid, UnicodeDecodeError):
            raise ValueError(f"the {what}s are bytes that are not UTF-8") from None
        problems = {}
        for at, word in enumerate(values):
            if not word or "\0" in word:
                problems[at] = f"the {what} is {'empty' if not word else repr(word) + ', expected no NUL characters'}"
            elif id_type == "int" and not is_integer(word):
                problems[at] = f"the {what} is {word[:60]!r}, expected an integer"
        _report(codes, problems, bad)
        if id_type == "int":
            array = np.array([0 if at in problems else int(word) for at, word in enumerate(values)], np.int64)
            return sort_words(codes, array)
        return sort_words(codes, text_array([word.rstrip("\0") for word in values]))
    if pa.types.is_decimal(kind) or pa.types.is_floating(kind):
        column = _integral(column, what, bad)
    elif not pa.types.is_integer(kind):
        raise ValueError(f"the {what}s are {kind}, expected integers or text")
    codes, words = _dictionary(column)
    array = values_of(words)
    if array.dtype.kind == "u" and array.dtype.itemsize == 8:
        _report(
            codes,
            {
                at: f"the {what} is {array[at]}, expected an integer below 2**63"
                for at in np.flatnonzero(array >= 2**63).tolist()
            },
            bad,
        )
    array = array.astype(np.int64)
    return sort_words(codes, array.astype(np.str_) if id_type == "str" else array)


def _integral(column: pa.ChunkedArray, what: str, bad: Bad) -> pa.ChunkedArray:
    import pyarrow as pa

    values = numbers(column, what, Bad())
    with np.errstate(invalid="ignore"):
        wrong = ~((values == np.floor(values)) & (np.abs(values) < 2**53))
    for row in np.flatnonzero(wrong).tolist():
        bad.rows.setdefault(
            row, f"the {what} is {values[row]}, expected an integer (a float from 2**53 may be any of several)"
        )
    return pa.chunked_array([pa.array(np.where(wrong, 0, values).astype(np.int64))])


def numbers(column: pa.ChunkedArray, what: str, bad: Bad) -> np.ndarray:
    """Return a typed column as numbers; rows with NaN or infinity go to bad."""
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_dictionary(column.type):
        column = column.cast(kind)
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        if pa.types.is_temporal(kind):
            return _times(column, bad)
        raise ValueError(f"the {what}s are {kind}, expected numbers")
    values = column.to_numpy() if pa.types.is_boolean(kind) else values_of(column)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        for row in np.flatnonzero(~np.isfinite(values)).tolist():
            bad.rows.setdefault(row, f"the {what} is {values[row]}, expected a finite number")
    return values


def _times(column: pa.ChunkedArray, bad: Bad) -> np.ndarray:
    """A typed column of times as numbers: dates as seconds since 1970."""
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_dictionary(column.type):
        column = column.cast(kind)
    if pa.types.is_date(kind):
        column = column.cast(pa.timestamp("ms" if pa.types.is_date64(kind) else "s"))
        kind = column.type
    if pa.types.is_timestamp(kind):  # with a zone the numbers are UTC, too
        per_second = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000}[kind.unit]
        since = values_of(column.cast(pa.int64()))
        return since // 1000 / 1e6 if kind.unit == "ns" else since / per_second  # to the microsecond, as text is
    if _is_text(kind):
        return times.to_numbers("timestamp", np.array(column.to_pylist(), object))
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise ValueError(f"the timestamps are {kind}, expected dates or numbers")
    values = numbers(column, "timestamp", bad)
    return values if bad.rows else times.to_numbers("timestamp", values)
