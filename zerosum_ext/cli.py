"""The command line: parses, calls the library, prints. Bad input is one line on stderr and exit status 2."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
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
    return parser


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
