"""External ids: integers or text, never floats. The one rule for files, arrays and tables.

Ids are int64 or text. Text of a file is int64 only if every id of the column is printed back as it was read; else the
whole column stays text. Text of an array or a table stays text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Coded", "code", "is_integer", "join", "sort_words", "text_array"]

_LARGEST_TEXT = 1 << 31  # bytes of an array of text, beyond which one long id is to blame


@dataclass
class Coded:
    """Ids of rows: ``words[codes]``.

    Attributes:
        codes: int32 or int64 [n].
        words: distinct ids in ascending order, int64 or text; each occurs in codes.
    """

    codes: np.ndarray
    words: np.ndarray


def is_integer(text: str) -> bool:
    """Return whether text is the only spelling of an int64: "007", "+7", "-0" and "1.0" are not."""
    if not text or len(text) > 20 or not (text[0] == "-" or text[0].isdigit()):
        return False
    try:
        value = int(text)
    except ValueError:
        return False
    return -(2**63) <= value < 2**63 and str(value) == text


def sort_words(codes: np.ndarray, words: np.ndarray) -> Coded:
    """Return the same ids with distinct words in ascending order and without words that do not occur."""
    used = np.bincount(codes, minlength=len(words)) > 0
    kept = np.flatnonzero(used)
    distinct, place = np.unique(words[kept], return_inverse=True)
    rank = np.full(len(words), -1, codes.dtype)
    rank[kept] = place
    return Coded(rank[codes], distinct)


def join(parts: list[Coded]) -> Coded:
    """Return the ids of several sources one after another. If some are text, all are."""
    if len(parts) == 1:
        return parts[0]
    words = [part.words for part in parts]
    if len({part.dtype.kind for part in words}) > 1:
        words = [part.astype(np.str_) for part in words]
    first = np.cumsum([0, *(len(part) for part in words)])
    codes = [part.codes + start.astype(part.codes.dtype) for part, start in zip(parts, first, strict=False)]
    return sort_words(np.concatenate(codes), np.concatenate(words))


def text_array(values: list[str]) -> np.ndarray:
    """Return text as a NumPy array. ValueError if one very long id would blow up all others."""
    longest = max(map(len, values), default=1)
    if longest > 1000 and 4 * longest * len(values) > _LARGEST_TEXT:
        word = next(value for value in values if len(value) == longest)
        raise ValueError(f"an id has {longest:,} characters ({word[:40]!r}...), too many beside {len(values):,} ids")
    return np.array(values, np.str_) if values else np.zeros(0, np.str_)


def code(name: str, values: Any) -> Coded:
    """Return the ids of an array or a sequence by number.

    Args:
        name: of the argument, for messages.
        values: integers, integral floats below 2**53, or text [n].

    Raises:
        ValueError: an id is missing, empty, not integral or beyond int64, or integers and text are mixed.
    """
    array = values if isinstance(values, np.ndarray) else np.asarray(values)
    kind = array.dtype.kind
    if kind in "OT":
        return _code_objects(name, array)
    if kind == "S":
        array, kind = np.char.decode(array, "utf-8"), "U"
    if kind == "U":
        return _code_text(name, array)
    if kind not in "iuf":
        raise ValueError(f"{name}: expected ids that are text or integers, got {array.dtype}")
    if kind in "uf":
        largest = 2**63 if kind == "u" else 2**53  # beyond it two integers can be one float
        bad = array >= largest if kind == "u" else ~((array == np.floor(array)) & (np.abs(array) < largest))
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            limit = "2**63" if kind == "u" else "2**53, as they are floats"
            raise ValueError(
                f"{name}: expected ids that are text or integers below {limit}, got {array[at]} at position {at}"
            )
        array = array.astype(np.int64)
    return _code_integers(array.astype(np.int64, copy=False))


def _code_integers(values: np.ndarray) -> Coded:
    small = np.int32 if len(values) < 2**31 else np.int64
    if len(values):
        low, high = int(values.min()), int(values.max())
        if high - low < 4 * len(values) + 1_000_000:  # a table of all numbers beats sorting
            present = np.zeros(high - low + 1, bool)
            present[values - low] = True
            rank = np.cumsum(present, dtype=small) - small(1)
            return Coded(rank[values - low], np.flatnonzero(present) + low)
    words, codes = np.unique(values, return_inverse=True)
    return Coded(codes.astype(small), words)


def _code_text(name: str, values: np.ndarray) -> Coded:
    words, codes = np.unique(values, return_inverse=True)
    for at, word in enumerate(words.tolist()):
        if not word or "\0" in word:
            where = int(np.flatnonzero(codes == at)[0])
            what = "no empty ids" if not word else "ids without NUL characters"
            raise ValueError(f"{name}: expected {what}, got {word!r} at position {where}")
    return Coded(codes.astype(np.int32 if len(values) < 2**31 else np.int64), words)


def _code_objects(name: str, values: np.ndarray) -> Coded:
    """Ids as Python objects, of one kind: text, or numbers."""
    known: dict[Any, int] = {}
    codes = np.empty(len(values), np.int64)
    text = numbers = -1
    for at, value in enumerate(values.tolist()):
        try:
            codes[at] = known.setdefault(value, len(known))
        except TypeError:
            raise _not_an_id(name, value, at) from None
        if codes[at] + 1 < len(known):
            continue
        if isinstance(value, str):
            text = at if text < 0 else text
            if not value or "\0" in value:
                what = "no empty ids" if not value else "ids without NUL characters"
                raise ValueError(f"{name}: expected {what}, got {value!r} at position {at}")
        else:
            numbers = at if numbers < 0 else numbers
            _check_number(name, value, at)
    if text >= 0 and numbers >= 0:
        a, b = values[text], values[numbers]
        raise ValueError(
            f"{name}: expected ids of one kind, got {a!r} at position {text} and {b!r} at position {numbers}; convert "
            "them to text first"
        )
    words = text_array(list(known)) if text >= 0 else np.array([int(value) for value in known], np.int64)
    return sort_words(codes.astype(np.int32 if len(values) < 2**31 else np.int64), words)


def _not_an_id(name: str, value: object, at: int) -> ValueError:
    return ValueError(f"{name}: expected ids that are text or integers, got {value!r} at position {at}")


def _check_number(name: str, value: Any, at: int) -> None:
    try:
        missing = value is None or bool(value != value)
    except TypeError:  # pandas.NA
        missing = True
    if missing:
        raise ValueError(f"{name}: expected no missing values, got {value} at position {at}")
    if isinstance(value, (bool, np.bool_)):
        raise _not_an_id(name, value, at)
    if isinstance(value, (float, np.floating)):
        if value != int(value) if abs(value) < 2**53 else True:
            raise _not_an_id(name, float(value), at)
    elif not hasattr(type(value), "__index__") or not -(2**63) <= int(value) < 2**63:
        raise _not_an_id(name, value, at)
