"""JSON lines, one object a line, as Amazon and Yelp publish their reviews."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zerosum_ext.data import times
from zerosum_ext.data.ids import Coded, is_integer, sort_words, text_array
from zerosum_ext.data.readers import arrow as _arrow
from zerosum_ext.data.readers import sources
from zerosum_ext.data.readers.columns import Choice, choose
from zerosum_ext.data.readers.table import BadRows, Column, Options, Table

__all__ = ["read_json_lines"]

_SAMPLE = 100


def read_json_lines(path: Path, open_lines: Callable[[], sources.Lines], options: Options) -> Table:
    """Return the columns of a file with a JSON object on each line.

    Args:
        path: of the file, for messages.
        open_lines: opens the file anew.
        options: how it is read; columns are keys of the objects.

    Raises:
        ValueError: a line is no object or lacks a column ("file:line: ...").
    """
    lines = open_lines()
    blocks = iter(lines)
    head = sources.first_lines(blocks)
    sample = _sample(path, head)
    names = list(dict.fromkeys(name for row in sample for name in row))
    choice = choose(str(path), names, [[] for _ in names], options.columns)
    keys = {key: names[c] for key, c in choice.columns.items()}
    bad = BadRows(path, options.skip_bad_rows)
    columns = _fast(keys, sample, head, blocks, options)
    if columns is None:
        columns = _careful(path, open_lines(), keys, bad, options)
    unread = choice.unread(names, len(names))
    users = columns["user"]
    assert isinstance(users, Coded)
    if not len(users.codes):
        raise ValueError(f"{path} has no usable rows: {bad.messages[0] if bad.messages else 'none at all'}")
    return Table(
        columns,
        len(users.codes) + bad.count,
        bad.count,
        tuple(bad.messages),
        _notes(choice, names, unread),
        choice.used(names),
        unread,
        tuple(choice.guesses),
    )


def _notes(choice: Choice, names: list[str], unread: tuple[str, ...]) -> tuple[str, ...]:
    left = (f"not read: {', '.join(unread)}",) if unread else ()
    return (choice.note(names), *choice.guesses, *left)


def _sample(path: Path, head: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(head.split(b"\n")[:_SAMPLE], 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                if not rows:
                    raise ValueError(f"{path}:{number}: expected a JSON object, got {line[:60]!r} ({error})") from None
                continue
            if isinstance(row, dict):
                rows.append(row)
    if not rows:
        raise ValueError(f"{path}:1: expected a JSON object on each line, got {head[:60]!r}")
    return rows


def _fast(
    keys: dict[str, str], sample: list[dict[str, Any]], head: bytes, blocks: Iterator[bytes], options: Options
) -> dict[str, Column] | None:
    """The columns by Arrow, or None where a row is odd."""
    import pyarrow as pa
    from pyarrow import json as arrow_json

    schema = []
    for key, name in keys.items():
        kind = _type(key, [row.get(name) for row in sample])
        if kind is None:
            return None
        schema.append(pa.field(name, kind))
    if len(set(keys.values())) < len(keys):
        return None
    pipe = sources.Pipe(_chain(head, blocks))
    try:
        read = arrow_json.read_json(
            pa.PythonFile(pipe, mode="r"),
            read_options=arrow_json.ReadOptions(block_size=1 << 30),
            parse_options=arrow_json.ParseOptions(
                explicit_schema=pa.schema(schema), unexpected_field_behavior="ignore", newlines_in_values=False
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if pipe.error is not None:
            raise pipe.error from None
        return None
    bad = _arrow.Bad()
    columns: dict[str, Column] = {}
    try:
        for key, name in keys.items():
            column = read.column(name)
            if column.null_count or (key in ("user", "item") and pa.types.is_floating(column.type)):
                return None
            if key == "timestamp" and pa.types.is_string(column.type):
                columns[key] = _arrow.text_times(column, key, "any", bad)
            else:
                columns[key] = _arrow.to_column(column, key, options.id_type, bad)
    except ValueError:
        return None
    return None if bad.rows else columns


def _chain(head: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from blocks


def _type(key: str, values: list[Any]) -> Any:
    """The Arrow type that all values of the sample have, or None."""
    import pyarrow as pa

    kinds = {type(value) for value in values}
    if kinds == {str}:
        return pa.string()
    if key in ("user", "item"):
        return pa.int64() if kinds == {int} else None
    return pa.float64() if kinds and kinds <= {int, float} else None


def _careful(
    path: Path, lines: sources.Lines, keys: dict[str, str], bad: BadRows, options: Options
) -> dict[str, Column]:
    """The columns line by line, with the line of what cannot be used."""
    values: dict[str, list[Any]] = {key: [] for key in keys}
    number = 0
    for block in lines:
        for line in block.split(b"\n")[:-1]:
            number += 1
            if not line.strip():
                continue
            row = _row(line, keys, options)
            if isinstance(row, str):
                bad.add(number, row)
                bad.flush()
                continue
            for key, value in row.items():
                values[key].append(value)
    columns: dict[str, Column] = {}
    for key, column in values.items():
        if key in ("user", "item") or (column and isinstance(column[0], str)):
            columns[key] = _coded([str(value) for value in column], column)
        else:
            array = np.array(column, np.float64)
            columns[key] = _arrow.whole(array)
            if key == "timestamp":
                columns[key] = times.to_numbers("timestamp", columns[key])
    return columns


def _coded(texts: list[str], values: list[Any]) -> Coded:
    """Ids: integers if each one is, else text."""
    known: dict[str, int] = {}
    codes = np.fromiter((known.setdefault(text, len(known)) for text in texts), np.int32, len(texts))
    integers = bool(values) and not any(isinstance(value, str) for value in values) and all(map(is_integer, known))
    words = np.array([int(text) for text in known], np.int64) if integers else text_array(list(known))
    return sort_words(codes, words)


def _row(line: bytes, keys: dict[str, str], options: Options) -> dict[str, Any] | str:
    """The values of one line, or what is wrong with it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"expected a JSON object, got {line[:60]!r} ({str(error).splitlines()[0][:80]})"
    if not isinstance(row, dict):
        return f"expected a JSON object, got {line[:60]!r}"
    out: dict[str, Any] = {}
    for key, name in keys.items():
        value = row.get(name)
        if value is None or value == "":
            return f"the {key} is missing ({name})"
        if key in ("user", "item"):
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole and not isinstance(value, str):
                return f"the {key} is {value!r}, expected text or an integer"
            if options.id_type == "int" and not is_integer(str(value)):
                return f"the {key} is {value!r}, expected an integer"
            if isinstance(value, str) and "\0" in value:
                return f"the {key} is {value!r}, expected no NUL characters"
            out[key] = str(value) if options.id_type == "str" else int(value) if options.id_type == "int" else value
        elif key in _arrow.times_and_numbers:
            plain = _number(key, value)
            if plain is None:
                expected = "a number or an ISO 8601 date" if key == "timestamp" else "a finite number"
                return f"the {key} is {str(value)[:60]!r}, expected {expected}"
            out[key] = plain
        else:
            out[key] = value if isinstance(value, str) else json.dumps(value)
    return out


def _number(key: str, value: Any) -> float | None:
    if isinstance(value, str):
        return times.text_seconds(value) if key == "timestamp" else times.number(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return times.number(repr(value)) if isinstance(value, float) else float(value)
