"""``zerosum-ext report``: a run as one page."""

from __future__ import annotations

import argparse
import json
from typing import Any

from zerosum_ext.cli.options import set_threads


def add_to(commands: Any) -> None:
    """Add the command."""
    report = commands.add_parser(
        "report",
        help="write report.html of a run: verdict, measures, figures, lists of users",
        description="Writes report.html into a run folder: one page without network or scripts, with the verdict, "
        "measures, figures, lists of five users before and after, settings, data and environment.",
        epilog="example: zerosum-ext report runs/mine --items movies.csv",
    )
    report.add_argument("folder", metavar="RUN", help="a run folder of zerosum-ext train or compare")
    report.add_argument("--items", metavar="FILE", help="names of items: a table of item and name")
    report.add_argument("--threads", type=int, metavar="N", help="threads to compute with (default: all cores)")
    report.add_argument("--json", action="store_true", help="print the path and the verdict as JSON")
    report.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from zerosum_ext.experiments import runs

    set_threads(arguments)
    run = runs.Run.open(arguments.folder)
    path = runs.write_report(run, items=arguments.items)
    verdict = runs.read_verdict(run)
    if arguments.json:
        print(json.dumps({"report": str(path), "verdict": None if verdict is None else verdict.to_dict()}, indent=2))
        return 0
    if verdict is not None:
        print("\n".join(verdict.lines()))
    print(f"the report is in {path}")
    return 0
