"""The command line: parses, calls the library, prints. Bad input is one line on stderr and exit status 2."""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shlex
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from zerosum_ext.experiments import reproduce, runs

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``zerosum-ext`` with the given arguments (default: the process's own); returns the exit status.

    0: done; 1: ``doctor`` found something missing, ``gradcheck`` a difference; 2: bad input, one line on stderr;
    130: Ctrl-C.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if getattr(arguments, "preset", None):
        arguments.parser.set_defaults(**_preset(arguments))
        arguments = parser.parse_args(argv)  # what was given goes before what the preset says
    arguments.argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt as interrupt:
        print(f"zerosum-ext: interrupted{interrupt}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        named = isinstance(error, OSError) and error.filename is not None and error.strerror
        text = f"{error.filename}: {error.strerror}" if named else str(error)  # type: ignore[union-attr]
        print(f"zerosum-ext: error: {' '.join(text.split())}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    """Errors in one line; argparse would print the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="zerosum-ext", description="Recommenders that do not just push what is popular.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    doctor = commands.add_parser(
        "doctor",
        help="say what is installed and loaded, and how to mend what is not",
        description="Says what is installed and loaded, and the command that mends what is not. Exit status 1 where "
        "the compiled CPU kernels are missing.",
    )
    doctor.add_argument("--json", action="store_true", help="print the same as JSON")
    doctor.set_defaults(run=_doctor)
    demo = commands.add_parser(
        "demo",
        help="the synthetic experiment of the paper: BPR, Pos2Neg2 and Zerosum side by side",
        description="Trains matrix factorization on the paper's synthetic data with BPR, Pos2Neg2 and Zerosum, prints "
        "the table of [RCS22] beside what was reached, and writes metrics.json, seeds.json and figures.",
        epilog="example: zerosum-ext demo --seeds 3 --output runs/demo",
    )
    demo.add_argument("--output", default="runs/demo", metavar="DIR", help="folder to write to (default: %(default)s)")
    demo.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each method (default: %(default)s)")
    demo.add_argument("--epochs", type=int, default=10, metavar="N", help="default: %(default)s, as in the paper")
    demo.add_argument(
        "--weight",
        type=float,
        default=0.8,
        metavar="W",
        help="w of Pos2Neg2 and Zerosum, 0 to 1 (default: %(default)s)",
    )
    demo.add_argument("--json", action="store_true", help="print JSON to stdout, and nothing else")
    demo.add_argument("--quiet", action="store_true", help="no progress bar")
    demo.set_defaults(run=_demo)
    _add_gradcheck(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_recommend(commands)
    _add_reproduce(commands)
    return parser


# --- gradcheck -----------------------------------------------------------------------------------------------


def _add_gradcheck(commands: Any) -> None:
    gradcheck = commands.add_parser(
        "gradcheck",
        help="compare the losses with their definitions: value, gradient, double backward",
        description="Compares losses with their definitions in float64: value, gradient and double backward, of scores "
        "up to 10^4. Exit status 1 where one differs.",
        epilog="example: zerosum-ext gradcheck --loss zerosum --dtype bfloat16 --device cuda",
    )
    gradcheck.add_argument("--loss", default="all", metavar="NAME", help="default: all")
    gradcheck.add_argument(
        "--dtype", choices=("float64", "float32", "float16", "bfloat16"), default="float32", help="default: float32"
    )
    gradcheck.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default) or cuda")
    gradcheck.add_argument("--json", action="store_true", help="print the same as JSON")
    gradcheck.set_defaults(run=_gradcheck)


def _gradcheck(arguments: argparse.Namespace) -> int:
    import torch

    from zerosum_ext import testing

    if arguments.device.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda, got {arguments.device!r}")
    if arguments.device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device: torch sees no GPU, got {arguments.device!r}")
    names = testing.checked_losses() if arguments.loss == "all" else [arguments.loss]
    dtype = getattr(torch, arguments.dtype)
    reports = [testing.check_named_loss(name, dtype=dtype, device=arguments.device) for name in names]
    if arguments.json:
        print(json.dumps([report.to_dict() for report in reports], indent=2))
    else:
        print("\n".join(map(str, reports)))
    return 0 if all(report.passed for report in reports) else 1


# --- train ---------------------------------------------------------------------------------------------------


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train on interactions, measure against plain BPR, write a run folder",
        description="Splits interactions, trains a model with the chosen loss and with plain BPR on the same split, "
        "prints accuracy and popularity bias of both side by side, and writes model, metrics, history and figures to "
        "a run folder.",
        epilog="example: zerosum-ext train ratings.csv --loss zerosum --weight 0.9 --output runs/mine, then "
        "zerosum-ext recommend runs/mine --user 42",
    )
    train.add_argument(
        "data", metavar="FILE", help="text with one interaction a row, .npz or parquet; or a name in $ZEROSUM_EXT_DATA"
    )
    train.add_argument("--output", metavar="DIR", help="run folder (default: runs/NAME_OF_FILE-LOSS)")
    train.add_argument("--resume", action="store_true", help="go on with the run in the folder, if there is one")
    train.add_argument("--overwrite", action="store_true", help="remove the run that is in the folder, and start again")
    train.add_argument("--no-baseline", action="store_true", help="do not train plain BPR beside it")
    train.add_argument("--no-figures", action="store_true", help="draw none")
    _add_output_options(train)

    train.add_argument(
        "--log",
        nargs="+",
        choices=("csv", "tensorboard"),
        default=(),
        help="write METHOD/log.csv, the folder METHOD/tensorboard, or both, after every epoch",
    )
    train.set_defaults(parser=train)

    how = train.add_argument_group("method")
    how.add_argument(
        "--preset",
        choices=("paper", "lightgcn"),
        help="hyper-parameters of model and training as published (zerosum_ext.models.presets), and no early "
        "stopping: all epochs are trained and the last is kept; other options go before it",
    )
    how.add_argument(
        "--loss",
        default="zerosum",
        metavar="NAME",
        help="a loss or method of zerosum_ext.models.methods (default: zerosum)",
    )
    how.add_argument(
        "--weight",
        type=_weight,
        metavar="W",
        help="w of losses that have one: w times BPR and 1 - w times the regularizer, 0 to 1 (default: 0.9); auto "
        "finds the one that takes away most bias at the cost of --max-cost, by training several",
    )
    how.add_argument(
        "--max-cost",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="with --weight auto: of BPR's --metric in validation that may be lost (default: 0.05)",
    )
    how.add_argument(
        "--bias",
        choices=("pop_q_at_1", "pri", "upo", "pcc"),
        default="pop_q_at_1",
        help="with --weight auto: the measure of bias (default: pop_q_at_1)",
    )
    how.add_argument(
        "--loss-option", action="append", default=[], metavar="NAME=VALUE", help="a further option of the loss"
    )
    how.add_argument("--model", default="mf", metavar="NAME", help="what to train (default: mf, matrix factorization)")
    how.add_argument(
        "--model-option", action="append", default=[], metavar="NAME=VALUE", help="a further option of the model"
    )
    how.add_argument("--dim", type=int, default=64, metavar="D", help="width of the embeddings (default: 64)")
    how.add_argument("--epochs", type=int, default=100, metavar="N", help="at most so many (default: 100)")
    how.add_argument("--batch-size", type=int, default=1024, metavar="B", help="default: 1024")
    how.add_argument("--lr", type=float, default=1e-3, metavar="RATE", help="learning rate (default: 0.001)")
    how.add_argument("--optimizer", default="adam", metavar="NAME", help="adam, adamw, adagrad, sgd or sparse_adam")
    how.add_argument("--weight-decay", type=float, default=0.0, metavar="X", help="of the optimizer (default: 0)")
    how.add_argument("--l2", type=float, default=0.0, metavar="X", help="L2 on the rows of the batch (default: 0)")
    how.add_argument("--negatives", type=int, default=1, metavar="K", help="negatives a positive (default: 1)")
    how.add_argument("--draws", type=int, default=1, metavar="N", help="visits to each positive an epoch (default: 1)")
    how.add_argument("--strategy", choices=("uniform", "popularity"), default="uniform", help="how negatives are drawn")
    how.add_argument("--seed", type=int, default=0, metavar="S", help="of initial weights and samples (default: 0)")
    how.add_argument("--metric", default="ndcg@10", metavar="NAME", help="watched in validation (default: ndcg@10)")
    how.add_argument(
        "--patience", type=int, default=10, metavar="N", help="stop after N epochs without a better one (default: 10)"
    )
    how.add_argument("--keep", choices=("best", "last"), default="best", help="epoch to keep (default: best)")
    how.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")

    split = train.add_argument_group("split")
    split.add_argument(
        "--split",
        choices=("random", "last", "column"),
        default="random",
        help="random; last: each user's latest are held out; column: as --split-column says (default: random)",
    )
    split.add_argument(
        "--ratios",
        type=float,
        nargs="+",
        default=(0.8, 0.1, 0.1),
        metavar="R",
        help="of random: train, validation, test, or train and test (default: 0.8 0.1 0.1)",
    )
    split.add_argument("--split-seed", type=int, default=0, metavar="S", help="of random (default: 0)")
    split.add_argument(
        "--hold-out", type=int, default=1, metavar="N", help="of last: N to test with, N to validate (default: 1)"
    )
    split.add_argument(
        "--split-values",
        nargs=3,
        default=("0", "2", "1"),
        metavar=("TRAIN", "VALID", "TEST"),
        help="of column: what it says (default: 0 2 1)",
    )
    _add_reading_options(train)
    train.set_defaults(run=_train)


def _add_output_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--k", type=int, nargs="+", metavar="K", help="cut-offs of the metrics (default: 10 20)")
    command.add_argument("--threads", type=int, metavar="N", help="threads to compute with (default: all cores)")
    command.add_argument("--json", action="store_true", help="print JSON to stdout, and nothing else")
    command.add_argument("--quiet", action="store_true", help="no progress bar and no notes")


def _add_reading_options(command: argparse.ArgumentParser) -> None:
    reading = command.add_argument_group(
        "reading", "Columns are names, or numbers from 0; '' is none. All is recognised if usual."
    )
    for name in ("user", "item", "rating", "timestamp", "split"):
        reading.add_argument(f"--{name}-column", metavar="COLUMN")
    reading.add_argument("--delimiter", metavar="TEXT", help="such as ',' or '::' or '\\t'; ' ' is any run of blanks")
    reading.add_argument("--header", action=argparse.BooleanOptionalAction, default=None, help="the first row is names")
    reading.add_argument(
        "--ids",
        choices=("external", "index"),
        help="users and items are ids of any kind, or 0-based indices (default: ids; indices in .npz)",
    )
    reading.add_argument(
        "--id-type", choices=("auto", "int", "str"), default="auto", help="default: as in the first row"
    )
    reading.add_argument("--shape", type=int, nargs=2, metavar=("USERS", "ITEMS"), help="with --ids index")
    reading.add_argument("--min-rating", type=float, metavar="R", help="leave out lower ratings")
    reading.add_argument("--min-item-count", type=int, default=0, metavar="N", help="leave out items that occur less")
    reading.add_argument("--skip-bad-rows", action="store_true", help="count rows that cannot be read, and go on")
    reading.add_argument("--encoding", default="utf-8", metavar="NAME", help="of text (default: utf-8)")


def _source(file: str, arguments: argparse.Namespace) -> runs.DataSource:
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
    )


def _options(name: str, given: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE pairs; values are JSON where they can be read as such (numbers, true, null), else text."""
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


def _set_threads(arguments: argparse.Namespace) -> None:
    import torch

    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f"--threads: expected at least 1, got {arguments.threads}")
        torch.set_num_threads(arguments.threads)


def _note(arguments: argparse.Namespace) -> Any:
    return (lambda text: None) if arguments.quiet else (lambda text: print(text, file=sys.stderr))


def _weight(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1] or auto, got {text!r}") from None


def _preset(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a preset says, as defaults of the options of train."""
    from zerosum_ext.models import presets

    try:
        model = presets.model_options(arguments.preset, arguments.model)
    except ValueError as error:
        arguments.parser.error(str(error))
    training = presets.training_options(arguments.preset)
    return {
        **training,
        "dim": model.pop("embedding_dim"),
        "model_option": [f"{name}={json.dumps(value)}" for name, value in model.items()],
        "patience": training["epochs"],
        "keep": "last",
    }


def _train(arguments: argparse.Namespace) -> int:
    from zerosum_ext.experiments import runs
    from zerosum_ext.models import methods

    _set_threads(arguments)
    if arguments.resume and arguments.overwrite:
        raise ValueError("--resume and --overwrite: expected one of them")
    weight, loss_options = arguments.weight, _options("loss-option", arguments.loss_option)
    if "w" in loss_options:
        raise ValueError(f"--loss-option: expected w as --weight {loss_options['w']}, got w={loss_options['w']}")
    if weight is None and arguments.loss in methods.method_names() and "w" in methods.method_options(arguments.loss):
        weight = 0.9
    search = runs.WeightSearch(arguments.max_cost, arguments.bias) if weight == "auto" else None
    method = runs.Method(
        loss=arguments.loss,
        weight=None if search else weight,
        loss_options=loss_options,
        model_options=_options("model-option", arguments.model_option),
        **{
            name: getattr(arguments, name)
            for name in (
                *("model", "dim", "epochs", "batch_size", "lr", "optimizer", "weight_decay", "l2", "negatives"),
                *("draws", "strategy", "seed", "metric", "patience", "keep", "device"),
            )
        },
    )
    values = [int(v) if v.lstrip("-").isdecimal() else v for v in arguments.split_values]
    rule = runs.SplitRule(
        kind=arguments.split,
        ratios=tuple(arguments.ratios),
        seed=arguments.split_seed,
        count=arguments.hold_out,
        values=(values[0], values[1], values[2]),
    )
    folder = arguments.output or f"runs/{Path(arguments.data).name.split('.')[0]}-{arguments.loss}"
    try:
        run = runs.train(
            _source(arguments.data, arguments),
            folder,
            method,
            split=rule,
            baseline=not arguments.no_baseline,
            k=arguments.k or (10, 20),
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            figures=not arguments.no_figures,
            log=arguments.log,
            search=search,
            progress=False if arguments.quiet else None,
            note=_note(arguments),
        )
    except KeyboardInterrupt:
        if not (Path(folder) / "config.json").is_file():
            raise
        again = [a for a in arguments.argv if a not in ("--resume", "--overwrite")]
        command = shlex.join(["zerosum-ext", *again, "--resume"])
        raise KeyboardInterrupt(f"; what was trained is kept, to go on: {command}") from None
    if arguments.json:
        histories = {name: history.to_dict() for name, history in run.histories.items()}
        print(runs.to_json({"folder": str(run.folder), "metrics": run.metrics, "histories": histories}))
        return 0
    print(_comparison(run.metrics))
    written = sorted(p.name for p in run.folder.iterdir() if p.is_file())
    print(f"{', '.join(written)} and the models are in {run.folder}")
    return 0


# What the table shows, of all that metrics.json holds: metric, label, what is good.
_ROWS = (
    ("accuracy", (("hr", "Hit"), ("recall", "Recall"), ("ndcg", "NDCG"), ("auc", "AUC"))),
    ("popularity bias among a user's own items", (("pri", "PRI"), ("pop_q_at_1", "PopQ@1"), ("upo", "uPO"))),
    (
        "exposure",
        (("arp", "ARP"), ("aplt", "long-tail share"), ("coverage", "coverage"), ("gini", "Gini")),
    ),
)
_LEGEND = (
    "PRI, uPO: 0 ideal, 1 the popular first. PopQ@1: .5 ideal, 0 the most popular on top. ARP: mean popularity of "
    "what is recommended."
)


def _comparison(metrics: Mapping[str, Mapping[str, float | None]]) -> str:
    """The metrics of one or two methods as a table, and where there are two, their difference."""
    names = list(metrics)
    keys = list(metrics[names[-1]])
    width = max(10, *(len(name) + 2 for name in names))
    head = "".join(f"{name:>{width}}" for name in names) + (f"{'difference':>12}" if len(names) == 2 else "")
    lines = [f"{'':<22}{head}"]
    for title, rows in _ROWS:
        lines.append(title)
        for metric, label in rows:
            for key in keys:
                name, at, cutoff = key.partition("@")
                if key != metric and not (name == metric and at):
                    continue
                values = [metrics[n].get(key) for n in names]
                large = any(value is not None and abs(value) >= 10 for value in values)
                cells = [f"{_number(value, large):>{width}}" for value in values]
                if len(values) == 2:
                    first, second = values
                    known = first is not None and second is not None
                    cells.append(f"{_number(second - first, large, '+') if known else '':>12}")  # type: ignore[operator]
                lines.append(f"  {label + (f' @{cutoff}' if at and key != metric else ''):<20}" + "".join(cells))
    return "\n".join([*lines, _LEGEND])


def _number(value: float | None, large: bool, sign: str = "") -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:{sign}.1f}" if large else f"{value:{sign}.4f}"


# --- evaluate and recommend ----------------------------------------------------------------------------------


def _add_evaluate(commands: Any) -> None:
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
    _add_output_options(evaluate)
    _add_reading_options(evaluate)
    evaluate.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    from zerosum_ext.experiments import runs

    _set_threads(arguments)
    run = runs.Run.open(arguments.folder)
    data = None if arguments.data is None else _source(arguments.data, arguments)
    values, skipped = run.evaluate(
        data,
        methods=arguments.method,
        k=arguments.k,
        skip_unknown=arguments.skip_unknown,
        note=_note(arguments),
    )
    if skipped:
        _note(arguments)(f"{skipped:,} rows are of users or items that the run does not know, and were left out")
    if arguments.json:
        print(runs.to_json(values))
    else:
        print(_comparison(values))
    return 0


def _add_recommend(commands: Any) -> None:
    recommend = commands.add_parser(
        "recommend",
        help="the best items for users, by the model of a run",
        description="Prints the best items for users by a run's model, with the ids of the file that was trained on. "
        "What a user has interacted with is left out.",
        epilog="example: zerosum-ext recommend runs/mine --user 42 --user 43 -k 5 --csv",
    )
    recommend.add_argument("folder", metavar="RUN", help="a run folder of zerosum-ext train")
    recommend.add_argument("--user", action="append", default=[], metavar="ID", help="may be given more than once")
    recommend.add_argument("--user-file", metavar="FILE", help="one id a line; - is the standard input")
    recommend.add_argument("-k", type=int, default=10, metavar="K", help="items a user (default: 10)")
    recommend.add_argument("--method", metavar="NAME", help="whose model, such as bpr (default: the run's main one)")
    recommend.add_argument("--include-seen", action="store_true", help="also what the user has interacted with")
    form = recommend.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--csv", action="store_true", help="print CSV: user, rank, item, score")
    recommend.set_defaults(run=_recommend)


def _recommend(arguments: argparse.Namespace) -> int:
    from zerosum_ext.experiments import runs

    users = list(arguments.user)
    if arguments.user_file is not None:
        text = sys.stdin.read() if arguments.user_file == "-" else Path(arguments.user_file).read_text("utf-8-sig")
        users += [line.strip() for line in text.splitlines() if line.strip()]
    if not users:
        raise ValueError("no users: give --user ID or --user-file FILE")
    run = runs.Run.open(arguments.folder)
    found = run.recommend(users, arguments.k, method=arguments.method, include_seen=arguments.include_seen)
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
    head = ("user", "rank", "item", "score")
    if arguments.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)
        return 0
    table = [head, *((str(cell) for cell in row) for row in rows)]
    cells = [list(row) for row in table]
    widths = [max(len(row[c]) for row in cells) for c in range(4)]
    for row in cells:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


# --- reproduce -----------------------------------------------------------------------------------------------


def _add_reproduce(commands: Any) -> None:
    reproduce = commands.add_parser(
        "reproduce",
        help="run experiment files, and report beside the published figures",
        description="Runs the methods and seeds of experiment files that are not finished yet, and writes a report "
        "with the published figures beside those reached. Interrupt it and run it again: it goes on.",
        epilog="example: zerosum-ext reproduce --experiment benchmarks/paper/synthetic.toml --jobs 2",
    )
    reproduce.add_argument("--experiment", nargs="+", required=True, metavar="FILE", help="TOML files")
    reproduce.add_argument(
        "--output", default="runs/paper", metavar="DIR", help="results go here (default: %(default)s)"
    )
    reproduce.add_argument("--report", metavar="FILE", help="the report (default: REPORT.md in the results' folder)")
    reproduce.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at once (default: %(default)s)")
    reproduce.add_argument("--only", metavar="TEXT", help="run only methods whose name contains this")
    reproduce.add_argument("--seed", type=int, nargs="+", metavar="S", help="run only these of the file's seeds")
    reproduce.add_argument("--no-run", action="store_true", help="report what is finished, run nothing")
    reproduce.add_argument("--no-figures", action="store_true", help="draw none")
    reproduce.add_argument(
        "--findings", metavar="FILE", help="text that opens the report (default: FINDINGS.md beside the first file)"
    )
    reproduce.add_argument("--quiet", action="store_true", help="no progress bar")
    reproduce.set_defaults(run=_reproduce)


def _reproduce(arguments: argparse.Namespace) -> int:
    from zerosum_ext.experiments import reproduce

    report = Path(arguments.report) if arguments.report else Path(arguments.output) / "REPORT.md"
    findings = Path(arguments.findings or Path(arguments.experiment[0]).parent / "FINDINGS.md")
    head = ["# Published experiments, run again", ""]
    if arguments.findings or findings.is_file():
        head += [findings.read_text().strip(), ""]
    experiments = {path: reproduce.Experiment.read(path) for path in arguments.experiment}
    for name in (experiment.name for experiment in experiments.values()):
        files = [path for path in arguments.experiment if experiments[path].name == name]
        if len(files) > 1:
            raise ValueError(
                f"--experiment: expected files of different names, got {' and '.join(files)}: results of one folder"
            )
    if not arguments.no_run:
        _check_selection(experiments.values(), arguments.only, arguments.seed)
    sections = []
    for path, experiment in experiments.items():
        missing = "" if arguments.no_run else experiment.missing_data()
        if missing:
            print(f"{path}: skipped. {missing}", file=sys.stderr)
        if missing or arguments.no_run:
            results = reproduce.load(path, arguments.output)
        else:
            results = reproduce.run(
                path,
                arguments.output,
                jobs=arguments.jobs,
                only=arguments.only,
                seeds=arguments.seed,
                progress=False if arguments.quiet else None,
            )
        report.parent.mkdir(parents=True, exist_ok=True)
        figures = {}
        if not arguments.no_figures:
            drawn = reproduce.draw(results, arguments.output, report.parent / "figures")
            figures = {caption: f"figures/{file.name}" for caption, file in drawn.items()}
        sections.append(reproduce.report(results, figures))
        # Written after every experiment, so that an interrupted command has reported what it ran.
        report.write_text("\n".join([*head, *sections]))
    print("\n".join(sections))
    print(f"the report is in {report}, the results in {arguments.output}")
    return 0


def _check_selection(experiments: Iterable[reproduce.Experiment], only: str | None, seeds: list[int] | None) -> None:
    """Raises where --only or --seed name nothing that any of the experiments has."""
    cells = [cell for experiment in experiments for cell in experiment.cells()]
    for seed in seeds or ():
        if not any(cell.method.seed == seed for cell in cells):
            known = sorted({cell.method.seed for cell in cells})
            raise ValueError(f"--seed: expected seeds of the files, {', '.join(map(str, known))}, got {seed}")
    if only is not None and not any(
        only in cell.name and (seeds is None or cell.method.seed in seeds) for cell in cells
    ):
        methods = ", ".join(dict.fromkeys(repr(cell.name) for cell in cells))
        raise ValueError(f"--only: expected a part of a method's name, {methods}, got {only!r}")


# --- demo and doctor -----------------------------------------------------------------------------------------


def _demo(arguments: argparse.Namespace) -> int:
    import numpy as np
    from tqdm import tqdm

    from zerosum_ext.experiments import plots
    from zerosum_ext.experiments import synthetic as experiments

    for name in ("seeds", "epochs"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name}: expected at least 1, got {getattr(arguments, name)}")
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    runs: dict[str, experiments.Synthetic] = {}
    methods = list(experiments.SYNTHETIC_PUBLISHED)
    with tqdm(total=len(methods) * arguments.seeds, unit="run", leave=False, disable=arguments.quiet or None) as bar:
        for method in methods:
            bar.set_description(method)
            runs[method] = experiments.synthetic(
                method, range(arguments.seeds), epochs=arguments.epochs, weight=arguments.weight, after_seed=bar.update
            )
    keys = list(experiments.SYNTHETIC_PUBLISHED[methods[0]])
    mean = {method: {key: float(np.mean([v[key] for v in run.values])) for key in keys} for method, run in runs.items()}
    seeds = {method: run.values for method, run in runs.items()}
    (folder / "metrics.json").write_text(json.dumps(mean, indent=2) + "\n")
    (folder / "seeds.json").write_text(json.dumps(seeds, indent=2) + "\n")
    plots.score_matrices({method: run.scores for method, run in runs.items()}, folder / "scores.png")
    plots.rank_curves({method: run.ranks for method, run in runs.items()}, folder / "ranks.png")
    plots.popq_histogram({method: run.pop_q for method, run in runs.items()}, folder / "popq.png")
    if arguments.json:
        published = experiments.SYNTHETIC_PUBLISHED
        print(json.dumps({"mean": mean, "seeds": seeds, "published": published, "folder": str(folder)}, indent=2))
        return 0
    print(f"{'mean (lowest to highest)':<26}{'error %':>26}{'PRI':>26}{'PopQ@1':>26}")
    for method, published_values in experiments.SYNTHETIC_PUBLISHED.items():
        cells = []
        for key in keys:
            factor = 100 if key == "error" else 1
            values = [factor * one[key] for one in seeds[method]]
            cells.append(f"{factor * mean[method][key]:.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"{method:<26}" + "".join(f"{cell:>26}" for cell in cells))
        cells = [f"{(100 if key == 'error' else 1) * value:.3g}" for key, value in published_values.items()]
        print(f"{'  published':<26}" + "".join(f"{cell:>26}" for cell in cells))
    print("PRI: 1 ranks the popular first, 0 is ideal. PopQ@1: 0 puts the most popular on top, .5 is ideal.")
    print(f"metrics.json, seeds.json, scores.png, ranks.png and popq.png are in {folder}")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what the import warns of is reported below
        from zerosum_ext import build_info
    info = build_info()
    if arguments.json:
        print(json.dumps(info, indent=2))
    else:
        print(_describe(info))
    return 0 if info["cpu"]["loaded"] else 1


def _describe(info: dict[str, Any]) -> str:
    lines = [f"{name:<12} {info[name]}" for name in ("zerosum_ext", "python", "platform", "torch", "threads")]
    for name, what in (("cpu", "CPU kernels"), ("cuda", "CUDA kernels")):
        part = info[name]
        if part["loaded"]:
            isa = f" ({info['isa']})" if name == "cpu" else ""
            lines.append(f"{what:<12} loaded{isa} from {part['file']}")
        else:
            lines.append(f"{what:<12} not loaded: {part['reason']}")
        if part["loaded"] and "reason" in part:
            lines.append(f"{'':<12} plain PyTorch runs in their place: {part['reason']}")
        if "reason" in part:
            lines.append(f"{'':<12} to mend it: {part['remedy']}")
    lines.append(f"{'GPUs':<12} {', '.join(info['cuda_devices']) or 'none that torch sees'}")
    return "\n".join(lines)
