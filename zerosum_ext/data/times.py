"""Times from any source as numbers: the one converter of files, arrays and tables.

A time is a number, which keeps its value if it is in seconds, or a date, which becomes seconds since 1970 in UTC.
"""

from __future__ import annotations

import datetime
import math
import re
from typing import Any

import numpy as np

__all__ = ["MISSING", "iso_seconds", "number", "text_seconds", "to_numbers", "unit_of"]

# What stands for "not known" where a number is due, in lower case.
MISSING = ("", "na", "n/a", "nan", "nat", "none", "null", "<na>", "\\n")

_ISO_DATE = re.compile(
    r"(\d{4}(?:-\d\d(?:-\d\d)?)?|\d{4}-\d\d-\d\d[T ]\d\d(?::\d\d(?::\d\d(?:\.\d+)?)?)?)"
    r"(?: ?(?:Z|UTC)|([+-])(\d\d):?(\d\d)?)?",
    re.ASCII,
)
_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*", re.ASCII)
# From 1973 to 5138, a time since 1970 has 9 to 11 digits in seconds, and 3 more in each finer unit.
_UNITS = (("seconds", 1e11, 1), ("milliseconds", 1e14, 1_000), ("microseconds", 1e17, 1_000_000))
_EPOCH = datetime.datetime(1970, 1, 1)


def number(text: str) -> float | None:
    """Return the finite number that text spells, or None."""
    if _NUMBER.fullmatch(text) is None:
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def iso_seconds(text: str) -> float | None:
    """Return an ISO 8601 date as seconds since 1970, or None. Without an offset it is UTC."""
    found = _ISO_DATE.fullmatch(text)
    if found is None:
        return None
    date, sign, hours, minutes = found.groups()
    if sign is not None and len(date) <= len("2020-01-02"):  # an offset of no time: 2020-0102 is no date
        return None
    if len(date) == len("2020-01-02 03"):
        date += ":00"
    try:
        seconds = float(np.datetime64(date[:26], "us").astype(np.int64)) / 1e6  # to the microsecond
    except ValueError:  # such as a month 13
        return None
    offset = 0 if sign is None else int(hours) * 3600 + int(minutes or 0) * 60
    return seconds + offset if sign == "-" else seconds - offset


def text_seconds(text: str) -> float | None:
    """Return the time that text spells, a number or an ISO 8601 date, or None."""
    value = number(text)
    return iso_seconds(text.strip()) if value is None else value


def unit_of(value: float) -> tuple[str, int]:
    """Return the unit that a time since 1970 of this size is in, and how many of it make a second."""
    for unit, limit, per_second in _UNITS:
        if abs(value) < limit:
            return unit, per_second
    return "nanoseconds", 1_000_000_000


def to_numbers(name: str, values: Any, *, missing: bool = False) -> np.ndarray:
    """Return times of any kind as int64 or float64 [n].

    Args:
        name: of the argument, for messages.
        values: numbers; NumPy, pandas or Python dates, with or without a zone; text with numbers or ISO 8601 dates.
        missing: NaN and NaT of NumPy are no error and become NaN.

    Raises:
        ValueError: a time is missing or cannot be read without a guess; units or kinds of dates are mixed.
    """
    zone = getattr(getattr(values, "dtype", None), "tz", None)
    if zone is not None and hasattr(values, "dt"):  # a pandas Series; its array of objects would be slow
        values = values.dt.tz_convert("UTC").dt.tz_localize(None)
    elif zone is not None:
        values = values.tz_convert("UTC").tz_localize(None)
    array = values if isinstance(values, np.ndarray) else np.asarray(values)
    if array.dtype.kind == "M":
        return _dates(name, array, missing)
    if array.dtype.kind in "OUST":
        return _objects(name, array)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name}: expected times as numbers or dates, got {array.dtype}")
    if missing and array.dtype.kind == "f" and np.isnan(array).any():
        out = np.full(len(array), np.nan)
        known = ~np.isnan(array)
        out[known] = _numbers(name, array[known])
        return out
    return _numbers(name, array)


def _fail(name: str, value: object, at: int, why: str) -> ValueError:
    return ValueError(f"{name}: {why}, got {value!r} at position {at}")


def _dates(name: str, array: np.ndarray, allowed: bool) -> np.ndarray:
    missing = np.isnat(array)
    if missing.any() and not allowed:
        raise _fail(name, "NaT", int(np.flatnonzero(missing)[0]), "expected no missing values")
    return np.where(missing, np.nan, array.astype("datetime64[us]").astype(np.int64) / 1e6)


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    if not len(array):
        return array
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        at = int(np.flatnonzero(~np.isfinite(array))[0])
        raise _fail(name, float(array[at]), at, "expected finite times")
    if max(abs(float(array.max())), abs(float(array.min()))) < _UNITS[0][1]:
        return array
    size = np.abs(array.astype(np.float64))
    largest = int(size.argmax())
    unit, per_second = unit_of(float(size[largest]))
    if per_second == 1:
        return array
    for _, limit, _ in _UNITS:
        other = (size > 0) & (size < limit)
        if limit <= size[largest] and other.any():
            at = int(np.flatnonzero(other)[0])
            finer = array[largest].item()
            raise ValueError(
                f"{name}: {array[at].item()} at position {at} looks like {unit_of(float(size[at]))[0]} since 1970, and "
                f"{finer} at position {largest} like {unit}; convert them to one unit first"
            )
    return array / per_second


def _objects(name: str, array: np.ndarray) -> np.ndarray:
    """Times as text and Python objects. A date with a zone beside one without is ambiguous."""
    out = np.empty(len(array))
    kinds: dict[str, tuple[int, object]] = {}
    for at, value in enumerate(array.tolist()):
        kind, seconds = _one(name, value, at)
        out[at] = seconds
        kinds.setdefault(kind, (at, value))
    if len(kinds) > 1:
        (a, (at_a, first)), (b, (at_b, second)) = list(kinds.items())[:2]
        raise ValueError(
            f"{name}: {first!r} at position {at_a} is {a}, and {second!r} at position {at_b} is {b}; expected one kind"
        )
    if "a number" in kinds:
        whole = np.abs(out) < 2**53
        return _numbers(name, out.astype(np.int64) if (whole & (out == np.floor(out))).all() else out)
    return out


def _one(name: str, value: Any, at: int) -> tuple[str, float]:
    if isinstance(value, str):
        plain = number(value)
        if plain is not None:
            return "a number", plain
        seconds = iso_seconds(value.strip())
        if seconds is not None:
            found = _ISO_DATE.fullmatch(value.strip())
            dated = found is not None and len(found.group(1)) > len("2020-01-02")
            zoned = found is not None and found.end(1) != found.end()
            return ("a time with a zone" if dated and zoned else "a date without a zone"), seconds
        if value.strip().lower() in MISSING:
            raise _fail(name, value, at, "expected no missing values")
        raise _fail(name, value, at, "expected a number or an ISO 8601 date such as 2020-01-02 03:04:05")
    try:
        missing = value is None or bool(value != value)  # NaN, NaT
    except TypeError:  # pandas.NA is neither equal nor unequal
        missing = True
    if missing:
        raise ValueError(f"{name}: expected no missing values, got {value} at position {at}")
    if isinstance(value, datetime.datetime):
        if value.tzinfo is not None:
            return "a time with a zone", value.timestamp()
        return "a date without a zone", (value - _EPOCH).total_seconds()
    if isinstance(value, datetime.date):
        return "a date without a zone", float((value - _EPOCH.date()).days * 86400)
    if isinstance(value, np.datetime64):
        return "a date without a zone", float(value.astype("datetime64[us]").astype(np.int64)) / 1e6
    if isinstance(value, (bool, np.bool_)):
        raise _fail(name, value, at, "expected times as numbers or dates")
    try:
        plain = float(value)
    except (TypeError, ValueError):
        raise _fail(name, value, at, "expected times as numbers or dates") from None
    if not math.isfinite(plain):
        raise _fail(name, value, at, "expected finite times")
    return "a number", plain
