"""``zerosum-ext recommend``: the best items for users."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from zerosum_ext.cli.options import add_reading_options, data_source, note

if TYPE_CHECKING:
    from zerosum_ext.experiments import runs

_HEAD = ("user", "rank", "item", "score")


def add_to(commands: Any) -> None:
    """Add the command."""
    recommend = commands.add_parser(
        "recommend",
        help="the best items for users, by the model of a run",
        description="Prints the best items for users by a run's model, with the ids of the file that was trained on. "
        "Items that a user has interacted with are left out.",
        epilog="examples: zerosum-ext recommend runs/mine --user 42 --user 43 -k 5 --csv; "
        "zerosum-ext recommend runs/mine --all-users --output lists.parquet; "
        "zerosum-ext recommend runs/mine --history this_week.csv",
    )
    recommend.add_argument("folder", metavar="RUN", help="a run folder of zerosum-ext train")
    recommend.add_argument("--user", action="append", default=[], metavar="ID", help="may be given more than once")
    recommend.add_argument("--user-file", metavar="FILE", help="one id in each line; - is standard input")
    recommend.add_argument("--all-users", action="store_true", help="every user of the run; needs --output")
    recommend.add_argument(
        "--history",
        metavar="FILE",
        help="interactions of users who may be new: lists for them (or those of --user) by what they have there and in "
        "the run, without training",
    )
    recommend.add_argument(
        "--skip-unknown", action="store_true", help="leave out items of --history that are new to the run"
    )
    recommend.add_argument("--output", metavar="FILE", help="write to a file: .parquet, .csv or .csv.gz")
    recommend.add_argument(
        "--resume", action="store_true", help="keep what is done in FILE.parts, and go on with what is there"
    )
    recommend.add_argument("--quiet", action="store_true", help="no progress bar")
    recommend.add_argument("-k", type=int, default=10, metavar="K", help="items for each user (default: 10)")
    recommend.add_argument("--method", metavar="NAME", help="the one to recommend with (default: the main one)")
    recommend.add_argument("--include-seen", action="store_true", help="items that the user knows too")
    form = recommend.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON: of the lists, or of what --output wrote")
    form.add_argument("--csv", action="store_true", help="print CSV: user, rank, item, score")
    names = [option for action in recommend._actions for option in action.option_strings[:1]]
    add_reading_options(recommend)
    recommend.essential(*names)
    recommend.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from zerosum_ext._files import read_text
    from zerosum_ext.experiments import runs

    users = list(arguments.user)
    if arguments.user_file is not None:
        text = sys.stdin.read() if arguments.user_file == "-" else read_text(arguments.user_file)
        users += [line.strip() for line in text.splitlines() if line.strip()]
    if arguments.all_users and (users or arguments.user_file is not None):
        raise ValueError("--all-users: expected neither --user nor --user-file beside it")
    if arguments.all_users and arguments.output is None:
        raise ValueError("--all-users: expected --output FILE")
    if arguments.history is not None and (arguments.all_users or arguments.output is not None):
        raise ValueError("--history: expected neither --all-users nor --output beside it; all its users get lists")
    if arguments.skip_unknown and arguments.history is None:
        raise ValueError("--skip-unknown: expected --history FILE")
    if not users and not arguments.all_users and arguments.history is None:
        raise ValueError("no users: give --user ID, --user-file FILE, --all-users or --history FILE")
    if arguments.resume and arguments.output is None:
        raise ValueError("--resume: expected --output FILE")
    run = runs.Run.open(arguments.folder)
    if arguments.output is not None:
        return _write(run, None if arguments.all_users else users, arguments)
    chosen = {"method": arguments.method, "include_seen": arguments.include_seen}
    if arguments.history is None:
        found = run.recommend(users, arguments.k, **chosen)
    else:
        found = run.recommend_by_history(
            data_source(arguments.history, arguments),
            arguments.k,
            users=users or None,
            skip_unknown=arguments.skip_unknown,
            note=note(arguments),
            **chosen,
        )
    for one in found:
        if not one.items:
            print(f"user {one.user}: nothing is left to recommend, every item was interacted with", file=sys.stderr)
    if arguments.json:
        print(runs.to_json([asdict(one) for one in found]))
        return 0
    rows = [
        (one.user, place, item, f"{score:.6g}")
        for one in found
        for place, (item, score) in enumerate(zip(one.items, one.scores, strict=True), 1)
    ]
    if arguments.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(_HEAD)
        writer.writerows(rows)
    else:
        print(_aligned([_HEAD, *(tuple(str(cell) for cell in row) for row in rows)]))
    return 0


def _write(run: runs.Run, users: list[str] | None, arguments: argparse.Namespace) -> int:
    """Write to a file, and say so on stderr, or with --json on stdout."""
    from zerosum_ext.experiments import runs

    if arguments.csv:
        raise ValueError("--output: expected no --csv beside it; the file's name says its form")
    rows = run.write_recommendations(
        arguments.output,
        arguments.k,
        users=users,
        method=arguments.method,
        include_seen=arguments.include_seen,
        progress=False if arguments.quiet else None,
        resume=arguments.resume,
    )
    if arguments.json:
        print(runs.to_json({"file": arguments.output, "rows": rows}))
    elif not arguments.quiet:
        print(f"{arguments.output}: {rows:,} rows", file=sys.stderr)
    return 0


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
