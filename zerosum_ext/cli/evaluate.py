"""``zerosum-ext evaluate``: measure the models of a run again."""

from __future__ import annotations

import argparse
from typing import Any

from zerosum_ext.cli.options import add_output_options, add_reading_options, data_source, note, set_threads
from zerosum_ext.cli.tables import comparison


def add_to(commands: Any) -> None:
    """Add the command."""
    evaluate = commands.add_parser(
        "evaluate",
        help="measure the models of a run again, also on other data",
        description="Measures the models of a run folder, on its own test part or on held-out interactions from a file "
        "with the same ids.",
        epilog="example: zerosum-ext evaluate runs/mine --data later.csv --k 5 10",
    )
    evaluate.add_argument("folder", metavar="RUN", help="a run folder of zerosum-ext train")
    evaluate.add_argument("--data", metavar="FILE", help="held-out interactions (default: the run's own test part)")
    evaluate.add_argument("--method", action="append", metavar="NAME", help="only this one, such as bpr (default: all)")
    evaluate.add_argument("--skip-unknown", action="store_true", help="leave out users and items new to the run")
    add_output_options(evaluate)
    add_reading_options(evaluate)
    evaluate.essential("--data", "--method", "--skip-unknown", "--k", "--threads")
    evaluate.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from zerosum_ext.experiments import runs

    set_threads(arguments)
    run = runs.Run.open(arguments.folder)
    data = None if arguments.data is None else data_source(arguments.data, arguments)
    values, skipped = run.evaluate(
        data,
        methods=arguments.method,
        k=arguments.k,
        skip_unknown=arguments.skip_unknown,
        note=note(arguments),
    )
    if skipped:
        note(arguments)(f"{skipped:,} rows are of users or items that the run does not know, and were left out")
    if arguments.json:
        print(runs.to_json(values))
    else:
        print(comparison(values))
    return 0
