"""The command line: parses, calls the library, prints. Bad input is one line on stderr and exit status 2."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``zerosum-ext`` with the given arguments (default: the process's own); returns the exit status.

    0: done; 1: ``doctor`` found something missing; 2: bad input, one line on stderr; 130: Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        print("zerosum-ext: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"zerosum-ext: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zerosum-ext", description="Recommenders that do not just push what is popular."
    )
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
    demo.set_defaults(run=_demo)
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    import numpy as np

    from zerosum_ext import experiments, plots

    for name in ("seeds", "epochs"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name}: expected at least 1, got {getattr(arguments, name)}")
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(arguments.seeds)
    mean: dict[str, dict[str, float]] = {}
    runs: dict[str, list[dict[str, float]]] = {}
    scores, popq = {}, {}
    print(f"{'mean (lowest to highest)':<26}{'error %':>26}{'PRI':>26}{'PopQ@1':>26}")
    for method, published in experiments.SYNTHETIC_PUBLISHED.items():
        runs[method], scores[method], popq[method] = experiments.synthetic(
            method, seeds, epochs=arguments.epochs, weight=arguments.weight
        )
        mean[method] = {key: float(np.mean([run[key] for run in runs[method]])) for key in published}
        cells = []
        for key in published:
            factor = 100 if key == "error" else 1
            values = [factor * run[key] for run in runs[method]]
            cells.append(f"{factor * mean[method][key]:.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"{method:<26}" + "".join(f"{cell:>26}" for cell in cells))
        cells = [f"{(100 if key == 'error' else 1) * value:.3g}" for key, value in published.items()]
        print(f"{'  published':<26}" + "".join(f"{cell:>26}" for cell in cells))
    print("PRI: 1 ranks the popular first, 0 is ideal. PopQ@1: 0 puts the most popular on top, .5 is ideal.")
    (folder / "metrics.json").write_text(json.dumps(mean, indent=2) + "\n")
    (folder / "seeds.json").write_text(json.dumps(runs, indent=2) + "\n")
    plots.score_matrices(scores, folder / "scores.png")
    plots.popq_histogram(popq, folder / "popq.png")
    print(f"metrics.json, seeds.json, scores.png and popq.png are in {folder}")
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
            lines.append(f"{'':<12} to mend it: {part['remedy']}")
    lines.append(f"{'GPUs':<12} {', '.join(info['cuda_devices']) or 'none that torch sees'}")
    return "\n".join(lines)
