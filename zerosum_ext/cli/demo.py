"""``zerosum-ext demo``: the synthetic experiment of the paper."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from zerosum_ext.experiments.synthetic import Synthetic


def add_to(commands: Any) -> None:
    """Add the command."""
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
    demo.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from zerosum_ext._files import write_text
    from zerosum_ext.data import datasets
    from zerosum_ext.experiments import plots
    from zerosum_ext.experiments.synthetic import SYNTHETIC_PUBLISHED

    for name in ("seeds", "epochs"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name}: expected at least 1, got {getattr(arguments, name)}")
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    runs = _train(arguments)
    seeds = {method: run.values for method, run in runs.items()}
    mean = {method: _mean(values) for method, values in seeds.items()}
    for file, content in (("metrics.json", mean), ("seeds.json", seeds)):
        write_text(folder / file, json.dumps(content, indent=2) + "\n")
    plots.score_matrices({method: run.scores for method, run in runs.items()}, folder / "scores.png")
    plots.rank_curves({method: run.ranks for method, run in runs.items()}, folder / "ranks.png")
    plots.popq_histogram({method: run.pop_q for method, run in runs.items()}, folder / "popq.png")
    best = {
        title: _best(runs[method].scores) for title, method in (("Before (BPR)", "bpr"), ("After (Zerosum)", "zerosum"))
    }
    plots.shown_items(best, datasets.synthetic_triangle().toarray() > 0, folder / "shown.png")
    if arguments.json:
        told = {"mean": mean, "seeds": seeds, "published": SYNTHETIC_PUBLISHED, "folder": str(folder)}
        print(json.dumps(told, indent=2))
        return 0
    print(_table(seeds, mean, SYNTHETIC_PUBLISHED))
    print("PRI: 1 ranks the popular first, 0 is ideal. PopQ@1: 0 puts the most popular on top, .5 is ideal.")
    print(f"metrics.json, seeds.json, shown.png, scores.png, ranks.png and popq.png are in {folder}")
    return 0


def _train(arguments: argparse.Namespace) -> dict[str, Synthetic]:
    from tqdm import tqdm

    from zerosum_ext.experiments.synthetic import SYNTHETIC_PUBLISHED, synthetic

    runs = {}
    total = len(SYNTHETIC_PUBLISHED) * arguments.seeds
    with tqdm(total=total, unit="run", leave=False, disable=arguments.quiet or None) as bar:
        for method in SYNTHETIC_PUBLISHED:
            bar.set_description(method)
            runs[method] = synthetic(
                method, range(arguments.seeds), epochs=arguments.epochs, weight=arguments.weight, after_seed=bar.update
            )
    return runs


def _best(scores: np.ndarray, k: int = 10) -> np.ndarray:
    """Return the items of the k highest scores of each user, [users, k]."""
    return (-scores).argsort(axis=1, kind="stable")[:, :k]


def _mean(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: statistics.fmean(one[key] for one in values) for key in values[0]}


def _table(
    seeds: Mapping[str, Sequence[Mapping[str, float]]],
    mean: Mapping[str, Mapping[str, float]],
    published: Mapping[str, Mapping[str, float]],
) -> str:
    lines = [f"{'mean (lowest to highest)':<26}{'error %':>26}{'PRI':>26}{'PopQ@1':>26}"]
    for method, figures in published.items():
        cells = []
        for key in figures:
            factor = 100 if key == "error" else 1
            values = [factor * one[key] for one in seeds[method]]
            cells.append(f"{factor * mean[method][key]:.3f} ({min(values):.3f} to {max(values):.3f})")
        lines.append(f"{method:<26}" + "".join(f"{cell:>26}" for cell in cells))
        cells = [f"{(100 if key == 'error' else 1) * value:.3g}" for key, value in figures.items()]
        lines.append(f"{'  published':<26}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)
