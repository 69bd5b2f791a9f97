"""``zerosum-ext compare``: which method, and which setting of it, serves these data best."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zerosum_ext.cli.options import (
    add_data_argument,
    add_output_options,
    add_reading_options,
    data_source,
    note,
    run_folder,
    says_how_to_go_on,
    set_threads,
)
from zerosum_ext.cli.tables import candidates_table, comparison
from zerosum_ext.cli.train import add_split_options, split_rule

if TYPE_CHECKING:
    from zerosum_ext.experiments.compare import Comparison, Plan

# What --help shows of the options.
_ESSENTIAL = (
    *("--output", "--resume", "--overwrite", "--goal", "--max-cost", "--bias", "--methods", "--jobs", "--seeds"),
    *("--epochs", "--split", "--items", "--min-rating"),
)


def add_to(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser(
        "compare",
        help="find the method and weight that serve your data best, and say what that changes",
        description="Trains BPR, Zerosum, Pos2Neg2, softmax and other debiasing methods with small grids of settings "
        "on one split: all for few epochs, the promising ones on. Takes one from the front of accuracy against bias by "
        "validation alone, tests it once, and says in words what it changes against BPR and against the most popular "
        "items.",
        epilog="example: zerosum-ext compare ratings.csv --goal long-tail --max-cost 5% --jobs 2",
    )
    add_data_argument(command)
    command.add_argument("--output", metavar="DIR", help="run folder (default: runs/NAME_OF_FILE-compare)")
    command.add_argument("--resume", action="store_true", help="go on with the comparison in the folder")
    command.add_argument("--overwrite", action="store_true", help="remove the run that is in the folder")
    command.add_argument("--no-figures", action="store_true", help="draw no PNG figures")
    command.add_argument("--items", metavar="FILE", help="names of items for report.html: a table of item and name")
    _add_goal_options(command.add_argument_group("goal"))
    _add_search_options(command.add_argument_group("search"))
    add_output_options(command)
    add_split_options(command.add_argument_group("split"))
    add_reading_options(command)
    command.essential(*_ESSENTIAL)
    command.set_defaults(run=_run)


def _add_goal_options(group: Any) -> None:
    group.add_argument(
        "--goal",
        choices=("accuracy", "balanced", "long-tail"),
        default="balanced",
        help="accuracy: the most accurate setting. balanced, long-tail: the least biased one that costs at most "
        "--max-cost (default: balanced)",
    )
    group.add_argument(
        "--max-cost",
        type=share,
        metavar="SHARE",
        help="how much of BPR's accuracy in validation may be lost, such as 5%% or 0.05 (default: 1%% with balanced, "
        "10%% with long-tail)",
    )
    group.add_argument(
        "--bias",
        choices=("overall", "pop_q_at_1", "pri", "upo", "pcc", "arp", "aplt", "coverage"),
        help="the measure of bias. overall: PopQ@1, uPO, ARP and coverage together, as shares of BPR's (default: "
        "overall; aplt, the long-tail share, with --goal long-tail)",
    )
    group.add_argument("--metric", default="ndcg@10", metavar="NAME", help="the measure of accuracy (default: ndcg@10)")


def _add_search_options(group: Any) -> None:
    group.add_argument("--methods", nargs="+", metavar="NAME", help="only these, beside BPR (default: all)")
    group.add_argument("--jobs", type=int, metavar="N", help="processes at once (default: one for each core)")
    group.add_argument(
        "--seeds", type=int, nargs="+", default=(0,), metavar="S", help="the first searches (default: 0)"
    )
    group.add_argument("--epochs", type=int, default=90, metavar="N", help="most epochs of a candidate (default: 90)")
    group.add_argument(
        "--patience", type=int, default=5, metavar="N", help="stop after N epochs without a better one (default: 5)"
    )
    group.add_argument(
        "--batch-size", type=int, metavar="B", help="samples in a step (default: 1024, 2048 or 4096 by the data)"
    )
    group.add_argument("--model", default="mf", metavar="NAME", help="the model (default: mf, matrix factorization)")
    group.add_argument("--embedding-dim", type=int, default=64, metavar="D", help="width of embeddings (default: 64)")
    group.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")
    group.add_argument(
        "--rungs", type=int, default=3, metavar="N", help="how often candidates are measured and left (default: 3)"
    )
    group.add_argument("--keep", type=int, default=3, metavar="N", help="one of N goes on from a rung (default: 3)")
    group.add_argument(
        "--engine",
        choices=("halving", "optuna"),
        default="halving",
        help="optuna also draws --trials settings from ranges; it needs the package optuna (default: halving)",
    )
    group.add_argument("--trials", type=int, default=20, metavar="N", help="settings that Optuna draws (default: 20)")


def share(text: str) -> float:
    """Return a share from text such as "5%" or "0.05"."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a share such as 5% or 0.05, got {text!r}") from None


def _plan(arguments: argparse.Namespace) -> Plan:
    from zerosum_ext.experiments.compare import Plan

    return Plan(
        goal=arguments.goal,
        max_cost=arguments.max_cost,
        bias=arguments.bias,
        metric=arguments.metric,
        methods=None if arguments.methods is None else tuple(arguments.methods),
        model=arguments.model,
        embedding_dim=arguments.embedding_dim,
        epochs=arguments.epochs,
        patience=arguments.patience,
        batch_size=arguments.batch_size,
        rungs=arguments.rungs,
        keep=arguments.keep,
        seeds=tuple(arguments.seeds),
        engine=arguments.engine,
        trials=arguments.trials,
        device=arguments.device,
    )


def _run(arguments: argparse.Namespace) -> int:
    from zerosum_ext.experiments import runs
    from zerosum_ext.experiments.compare import compare

    set_threads(arguments)
    folder = run_folder(arguments, "compare")
    with says_how_to_go_on(arguments, folder):
        found = compare(
            data_source(arguments.data, arguments),
            folder,
            _plan(arguments),
            split=split_rule(arguments),
            k=arguments.k or (10, 20),
            jobs=arguments.jobs,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            figures=not arguments.no_figures,
            items=arguments.items,
            progress=False if arguments.quiet else None,
            note=note(arguments),
        )
    print(runs.to_json(found.to_dict()) if arguments.json else _text(found))
    return 0


def _text(found: Comparison) -> str:
    told: Mapping[str, Any] = found.to_dict()
    lines = [
        *found.verdict.lines(),
        "",
        f"in validation ({len(found.candidates)} settings; * on the front, > taken):",
        candidates_table(told),
        *(f"not tried: {name}, {reason}" for name, reason in found.left_out.items()),
        "",
        "on the test part:",
        comparison(found.run.metrics),
        f"recommend with it: zerosum-ext recommend {shlex.quote(str(found.run.folder))} --user ID",
        f"read more: {found.run.folder / 'report.html'}",
    ]
    return "\n".join(lines)
