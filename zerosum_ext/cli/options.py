"""Options that several commands share, and what is made of them."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zerosum_ext.experiments import runs


def add_data_argument(command: argparse.ArgumentParser) -> None:
    """Add the file of interactions."""
    command.add_argument(
        "data",
        metavar="FILE",
        help="text with one interaction in each row, .npz or parquet; several as a pattern in quotes, such as "
        "'part-*.csv'; or a name in $ZEROSUM_EXT_DATA",
    )


def run_folder(arguments: argparse.Namespace, purpose: str) -> str:
    """Return the folder of a run, named after its data and purpose unless it is given.

    Raises:
        ValueError: the run in it is to be resumed and to be removed.
    """
    if arguments.resume and arguments.overwrite:
        raise ValueError("--resume and --overwrite: expected one of them")
    name = Path(arguments.data).name.split(".")[0]
    if set(name) & set("*?[]"):  # a pattern of files
        name = re.sub(r"[*?\[\]]", "", name).strip("-_ ") or "files"
    return arguments.output or f"runs/{name}-{purpose}"


@contextlib.contextmanager
def says_how_to_go_on(arguments: argparse.Namespace, folder: str) -> Iterator[None]:
    """Let Ctrl-C, or a worker that died, name the command that goes on, once there is something to go on with."""
    try:
        yield
    except (KeyboardInterrupt, ChildProcessError) as error:
        if not (Path(folder) / "config.json").is_file():
            raise
        again = [a for a in arguments.argv if a not in ("--resume", "--overwrite")]
        command = shlex.join(["zerosum-ext", *again, "--resume"])
        if isinstance(error, ChildProcessError):
            raise ChildProcessError(f"{error}; to go on: {command}") from None
        raise KeyboardInterrupt(f"; what was trained is kept, to go on: {command}") from None


def add_output_options(command: argparse.ArgumentParser) -> None:
    """Add the options of output and threads."""
    command.add_argument("--k", type=int, nargs="+", metavar="K", help="cut-offs of the metrics (default: 10 20)")
    command.add_argument("--threads", type=int, metavar="N", help="threads to compute with (default: all cores)")
    command.add_argument("--json", action="store_true", help="print JSON to stdout, and nothing else")
    command.add_argument("--quiet", action="store_true", help="no progress bar and no notes")


def add_reading_options(command: argparse.ArgumentParser) -> None:
    """Add the options that say how the file of interactions is read."""
    reading = command.add_argument_group(
        "reading",
        "Columns are given by name, or by number from 0. '' means that there is none. Common column names and layouts "
        "are detected.",
    )
    for name in ("user", "item", "rating", "timestamp", "split"):
        reading.add_argument(f"--{name}-column", metavar="COLUMN")
    reading.add_argument("--delimiter", metavar="TEXT", help="such as ',' or '::' or '\\t'. ' ' is any run of blanks")
    reading.add_argument(
        "--header", action=argparse.BooleanOptionalAction, default=None, help="column names in the first row"
    )
    reading.add_argument(
        "--ids",
        choices=("external", "index"),
        help="users and items are ids of any kind, or 0-based indices (default: ids, but indices in .npz)",
    )
    reading.add_argument(
        "--id-type",
        choices=("auto", "int", "str"),
        default="auto",
        help="auto: integers if each id is the only spelling of one, else text (default: auto)",
    )
    reading.add_argument("--shape", type=int, nargs=2, metavar=("USERS", "ITEMS"), help="with --ids index")
    reading.add_argument("--min-rating", type=float, metavar="R", help="leave out ratings below R")
    reading.add_argument("--min-item-count", type=int, default=0, metavar="N", help="leave out rarer items")
    reading.add_argument("--skip-bad-rows", action="store_true", help="count rows that cannot be read, and go on")
    reading.add_argument(
        "--format",
        choices=("text", "adjacency", "item-lists", "jsonl", "npz", "parquet", "feather"),
        help="adjacency: user item item ... on each line; item-lists: items alone (default: recognised)",
    )
    reading.add_argument("--encoding", default="utf-8", metavar="NAME", help="encoding of the text (default: utf-8)")


def data_source(file: str, arguments: argparse.Namespace) -> runs.DataSource:
    """Return where the interactions come from, and how they are read."""
    from zerosum_ext.experiments import runs

    columns: dict[str, str | int | None] = {}
    for name in ("user", "item", "rating", "timestamp", "split"):
        value = getattr(arguments, f"{name}_column")
        if value is not None:
            columns[name] = int(value) if value.isdecimal() else value or None
    return runs.DataSource(
        file,
        columns=columns or None,
        delimiter=None if arguments.delimiter is None else arguments.delimiter.replace("\\t", "\t"),
        header=arguments.header,
        ids=None if arguments.ids is None else arguments.ids == "external",
        id_type=arguments.id_type,
        shape=None if arguments.shape is None else tuple(arguments.shape),
        min_rating=arguments.min_rating,
        skip_bad_rows=arguments.skip_bad_rows,
        encoding=arguments.encoding,
        min_item_count=arguments.min_item_count,
        format=arguments.format,
    )


def named_values(name: str, given: Sequence[str]) -> dict[str, Any]:
    """Return NAME=VALUE pairs as a dictionary. Values are read as JSON if they are JSON, and are text otherwise."""
    result = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"--{name}: expected NAME=VALUE, got {text!r}")
        try:
            result[key] = json.loads(value)
        except ValueError:
            result[key] = value
    return result


def set_threads(arguments: argparse.Namespace) -> None:
    """Compute with the number of threads that --threads gives."""
    import torch

    from zerosum_ext._checks import MOST_THREADS, require_positive_int

    if arguments.threads is not None:
        require_positive_int("--threads", arguments.threads, maximum=MOST_THREADS)
        torch.set_num_threads(arguments.threads)


def note(arguments: argparse.Namespace) -> Callable[[str], Any]:
    """Return what logs notes, which --quiet and --log-level silence."""
    return logging.getLogger("zerosum_ext.cli").info
