"""``zerosum-ext train``: train on a file, compare with plain BPR, write a run folder."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

from zerosum_ext.cli.options import (
    add_data_argument,
    add_output_options,
    add_reading_options,
    data_source,
    named_values,
    note,
    run_folder,
    says_how_to_go_on,
    set_threads,
)
from zerosum_ext.cli.tables import comparison

if TYPE_CHECKING:
    from zerosum_ext.experiments import runs

# What --help shows of the options.
_ESSENTIAL = (
    *("--output", "--resume", "--overwrite", "--loss", "--weight", "--preset", "--model", "--epochs", "--seed"),
    *("--device", "--split", "--k", "--min-rating"),
)


def add_to(commands: Any) -> None:
    """Add the command."""
    train = commands.add_parser(
        "train",
        help="train on interactions, measure against plain BPR, write a run folder",
        description="Splits interactions, trains a model with the chosen loss and with plain BPR on the same split, "
        "prints accuracy and popularity bias of both side by side, and writes model, metrics, history and figures to "
        "a run folder.",
        epilog="example: zerosum-ext train ratings.csv --loss zerosum --weight 0.9 --output runs/mine, then "
        "zerosum-ext recommend runs/mine --user 42",
    )
    add_data_argument(train)
    _add_run_options(train)
    add_output_options(train)
    method = train.add_argument_group("method")
    _add_loss_options(method)
    _add_training_options(method)
    add_split_options(train.add_argument_group("split"))
    add_reading_options(train)
    train.essential(*_ESSENTIAL)
    train.set_defaults(run=_run)


def _add_run_options(train: argparse.ArgumentParser) -> None:
    train.add_argument("--output", metavar="DIR", help="run folder (default: runs/NAME_OF_FILE-LOSS)")
    train.add_argument("--resume", action="store_true", help="go on with the run in the folder, if there is one")
    train.add_argument("--overwrite", action="store_true", help="remove the run that is in the folder, and start again")
    train.add_argument("--no-baseline", action="store_true", help="do not train plain BPR to compare with")
    train.add_argument(
        "--tables",
        choices=("sharded", "users"),
        help="with torchrun: which tables are in parts, those of users and items or those of users alone (default: "
        "sharded)",
    )
    train.add_argument("--no-figures", action="store_true", help="draw no figures")
    train.add_argument(
        "--log",
        nargs="+",
        choices=("csv", "tensorboard"),
        default=(),
        help="after every epoch write METHOD/log.csv, the folder METHOD/tensorboard, or both",
    )
    train.add_argument("--card", action="store_true", help="write METHOD/card.md, a model card in Markdown")


def _add_loss_options(group: Any) -> None:
    group.add_argument(
        "--preset",
        choices=("paper", "lightgcn"),
        help="published hyper-parameters of model and training, without early stopping: all epochs are trained and "
        "the last is kept. Explicit options override the preset",
    )
    group.add_argument(
        "--loss",
        "--method",
        dest="loss",
        default="zerosum",
        metavar="NAME",
        help="the name of a loss or another method (default: zerosum)",
    )
    group.add_argument(
        "--weight",
        type=_weight,
        metavar="W",
        help="the weight of losses that have one: w times BPR and 1 - w times the regularizer, 0 to 1 (default: 0.9). "
        "auto trains several weights and takes the one that removes most bias at the cost of --max-cost",
    )
    group.add_argument(
        "--max-cost",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="the share of the best epoch's --metric that --bias may cost; with --weight auto that of BPR's --metric "
        "in validation (default: 0.05)",
    )
    group.add_argument(
        "--bias",
        metavar="NAME",
        help="keep the least biased epoch, by this measure, of those that lose at most --max-cost of the best "
        "--metric: pop_q_at_1, upo, arp@10, ... With --weight auto the measure to compare weights by: pop_q_at_1 (the "
        "default), pri, upo or pcc",
    )
    group.add_argument(
        "--loss-option", action="append", default=[], metavar="NAME=VALUE", help="a further option of the loss"
    )
    group.add_argument("--model", default="mf", metavar="NAME", help="the model (default: mf, matrix factorization)")
    group.add_argument(
        "--model-option", action="append", default=[], metavar="NAME=VALUE", help="a further option of the model"
    )
    group.add_argument(
        "--embedding-dim", type=int, default=64, metavar="D", help="width of the embeddings (default: 64)"
    )


def _add_training_options(group: Any) -> None:
    def add(name: str, kind: type, default: Any, metavar: str, text: str) -> None:
        group.add_argument(name, type=kind, default=default, metavar=metavar, help=f"{text} (default: {default})")

    add("--epochs", int, 100, "N", "maximum number of epochs")
    add("--batch-size", int, 1024, "B", "samples in a step")
    add("--lr", float, 1e-3, "RATE", "learning rate")
    add("--optimizer", str, "adam", "NAME", "adam, adamw, adagrad, sgd or sparse_adam")
    add("--weight-decay", float, 0.0, "X", "weight decay of the optimizer")
    add("--l2", float, 0.0, "X", "L2 on the rows of the batch")
    add("--negatives", int, 1, "K", "negatives for each positive")
    add("--draws", int, 1, "N", "visits to each positive in an epoch")
    group.add_argument(
        "--strategy", choices=("uniform", "popularity"), default="uniform", help="how negatives are drawn"
    )
    group.add_argument(
        "--negatives-shared",
        type=int,
        nargs="?",
        const=64,
        default=0,
        metavar="N",
        help="N samples in succession (64 if no number is given) share their negatives: fast with many negatives",
    )
    add("--seed", int, 0, "S", "seed of the initial weights and the samples")
    add("--metric", str, "ndcg@10", "NAME", "the metric to watch in validation")
    add("--patience", int, 10, "N", "stop after N epochs without a better one")
    group.add_argument(
        "--restore-best",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep the best epoch by validation, or else the last one (default: the best)",
    )
    add("--device", str, "cpu", "NAME", "cpu, cuda or cuda:N")


def add_split_options(group: Any) -> None:
    """Add the options of the split."""
    group.add_argument(
        "--split",
        choices=("random", "balanced", "last", "time", "column"),
        default="random",
        help="random; balanced: items are equally frequent in validation and test; last: hold out each user's latest; "
        "time: at the same moments for all users; column: as --split-column says (default: random)",
    )
    group.add_argument(
        "--ratios",
        type=float,
        nargs="+",
        default=(0.8, 0.1, 0.1),
        metavar="R",
        help="with random, balanced and time: train, validation, test, or train and test (default: 0.8 0.1 0.1)",
    )
    group.add_argument(
        "--split-seed", type=int, default=0, metavar="S", help="with random and balanced: their seed (default: 0)"
    )
    group.add_argument(
        "--hold-out", type=int, default=1, metavar="N", help="with last: N to test with, N to validate (default: 1)"
    )
    group.add_argument(
        "--split-values",
        nargs=3,
        default=("0", "2", "1"),
        metavar=("TRAIN", "VALID", "TEST"),
        help="with column: the values that mark the parts (default: 0 2 1)",
    )


def _weight(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1] or auto, got {text!r}") from None


def preset_defaults(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the preset says, as defaults of the options of ``train``."""
    from zerosum_ext.models import presets

    try:
        model = presets.model_options(arguments.preset, arguments.model)
    except ValueError as error:
        arguments.parser.error(str(error))
    training = presets.training_options(arguments.preset)
    return {
        **training,
        "embedding_dim": model.pop("embedding_dim"),
        "model_option": [f"{name}={json.dumps(value)}" for name, value in model.items()],
        "patience": training["epochs"],
        "restore_best": False,
    }


def _run(arguments: argparse.Namespace) -> int:
    from zerosum_ext.experiments import runs

    set_threads(arguments)
    folder = run_folder(arguments, arguments.loss)
    method, search = _method(arguments)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or arguments.tables is not None:
        return _run_together(arguments, folder, method, search)
    with says_how_to_go_on(arguments, folder):
        run = runs.train(
            data_source(arguments.data, arguments),
            folder,
            method,
            split=split_rule(arguments),
            baseline=not arguments.no_baseline,
            k=arguments.k or (10, 20),
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            figures=not arguments.no_figures,
            log=arguments.log,
            card=arguments.card,
            search=search,
            progress=False if arguments.quiet else None,
            note=note(arguments),
        )
    found = runs.read_verdict(run)
    if found is None:
        raise ValueError(f"{run.folder}: its verdict.json is gone; --resume makes it anew")
    if arguments.json:
        verdict = found.to_dict()
        histories = {name: history.to_dict() for name, history in run.histories.items()}
        weights = {name: method.weight for name, method in run.methods.items() if method.weight is not None}
        told = {"folder": str(run.folder), "verdict": verdict, "metrics": run.metrics}
        told |= {"histories": histories, "weights": weights}
        print(runs.to_json(told))
        return 0
    print("\n".join(found.lines(intervals=False)))
    print(comparison(run.metrics))
    if search is not None:
        print(f"--weight auto chose w = {run.methods[run.main].weight:g} for {run.main}")
    written = sorted(p.name for p in run.folder.iterdir() if p.is_file())
    print(f"{', '.join(written)} and the models are in {run.folder}")
    print(f"which method and weight serve these data best: zerosum-ext compare {shlex.quote(arguments.data)}")
    return 0


def _run_together(
    arguments: argparse.Namespace, folder: str, method: runs.Method, search: runs.WeightSearch | None
) -> int:
    """Train in the processes that torchrun started; rank 0 speaks for all."""
    from zerosum_ext import distributed
    from zerosum_ext.experiments import runs

    if search is not None:
        raise ValueError("--weight: expected a number with several processes, got auto")
    group = distributed.start_group()
    first = group.rank == 0
    # torchrun starts all processes anew when one was lost: they go on from the checkpoint.
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    try:
        metrics = runs.train_together(
            data_source(arguments.data, arguments),
            folder,
            group,
            method,
            split=split_rule(arguments),
            tables=arguments.tables or "sharded",
            baseline=not arguments.no_baseline,
            k=arguments.k or (10, 20),
            resume=arguments.resume or again,
            overwrite=arguments.overwrite and not again,
            progress=False if arguments.quiet else None,
            note=note(arguments) if first else lambda text: None,
        )
    except distributed.LostProcess as lost:
        if lost.speaks:
            print(
                f"zerosum-ext: error: {lost}; to go on from the last checkpoint: --resume", file=sys.stderr, flush=True
            )
        os._exit(2)  # the threads of a broken group would not let the process end
    except (ValueError, OSError, MemoryError) as error:
        if group.first_to_say(str(error)):
            raise
        return 2
    if first:
        print(runs.to_json({"folder": folder, "metrics": metrics}) if arguments.json else comparison(metrics))
    return 0


def _method(arguments: argparse.Namespace) -> tuple[runs.Method, runs.WeightSearch | None]:
    """Return the method that the options describe, and the search for its weight with ``--weight auto``."""
    from zerosum_ext.experiments import runs
    from zerosum_ext.models import method_names, method_options

    weight, loss_options = arguments.weight, named_values("loss-option", arguments.loss_option)
    if "w" in loss_options:
        raise ValueError(f"--loss-option: expected w as --weight {loss_options['w']}, got w={loss_options['w']}")
    if weight is None and arguments.loss in method_names() and "w" in method_options(arguments.loss):
        weight = 0.9
    search = runs.WeightSearch(arguments.max_cost, arguments.bias or "pop_q_at_1") if weight == "auto" else None
    method = runs.Method(
        loss=arguments.loss,
        weight=None if search else weight,
        loss_options=loss_options,
        model=arguments.model,
        model_options=named_values("model-option", arguments.model_option),
        embedding_dim=arguments.embedding_dim,
        optimizer=arguments.optimizer,
        lr=arguments.lr,
        weight_decay=arguments.weight_decay,
        l2=arguments.l2,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        negatives=arguments.negatives,
        draws=arguments.draws,
        strategy=arguments.strategy,
        negatives_shared=arguments.negatives_shared,
        metric=arguments.metric,
        patience=arguments.patience,
        restore_best=arguments.restore_best,
        bias=None if search else arguments.bias,
        max_cost=arguments.max_cost,
        seed=arguments.seed,
        device=arguments.device,
    )
    return method, search


def split_rule(arguments: argparse.Namespace) -> runs.SplitRule:
    """Return the split that the options describe."""
    from zerosum_ext.experiments import runs

    train, valid, test = (int(v) if v.lstrip("-").isdecimal() else v for v in arguments.split_values)
    return runs.SplitRule(
        kind=arguments.split,
        ratios=tuple(arguments.ratios),
        seed=arguments.split_seed,
        count=arguments.hold_out,
        values=(train, valid, test),
    )
