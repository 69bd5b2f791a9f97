"""``zerosum-ext doctor``: what is installed and loaded."""

from __future__ import annotations

import argparse
import json
import warnings
from typing import Any


def add_to(commands: Any) -> None:
    """Add the command."""
    doctor = commands.add_parser(
        "doctor",
        help="say what is installed and loaded, and how to mend what is not",
        description="Says what is installed and loaded, and the command that mends what is not. Exit status 1 where "
        "the compiled CPU kernels are missing.",
    )
    doctor.add_argument("--json", action="store_true", help="print the same as JSON")
    doctor.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what the import warns of is reported below
        from zerosum_ext import _library, build_info
    from zerosum_ext.integrations import torchrec

    found = torchrec.versions()
    installed = found["torchrec"] is not None or found["fbgemm-gpu"] is not None
    info = {**build_info(), "torchrec": torchrec.obstacle() or found["torchrec"] if installed else None}
    if arguments.json:
        print(json.dumps(info, indent=2))
    else:
        told = _library.isa_obstacle() if info["cpu"]["loaded"] else ""
        print(_describe(info, told))
    return 0 if info["cpu"]["loaded"] else 1


def _describe(info: dict[str, Any], isa_obstacle: str) -> str:
    lines = [f"{name:<12} {info[name]}" for name in ("zerosum_ext", "python", "platform", "torch", "threads")]
    for name, what in (("cpu", "CPU kernels"), ("cuda", "CUDA kernels")):
        part = info[name]
        if part["loaded"]:
            isa = f" ({info['isa']})" if name == "cpu" else ""
            lines.append(f"{what:<12} loaded{isa} from {part['file']}")
        else:
            lines.append(f"{what:<12} not loaded: {part['reason']}")
        if name == "cpu" and isa_obstacle:
            lines.append(f"{'':<12} {isa_obstacle}")
        if part["loaded"] and "reason" in part:
            lines.append(f"{'':<12} plain PyTorch runs in their place: {part['reason']}")
        if "reason" in part:
            lines.append(f"{'':<12} to mend it: {part['remedy']}")
    lines.append(f"{'GPUs':<12} {', '.join(info['cuda_devices']) or 'none that torch sees'}")
    if info["torchrec"] is not None:
        lines.append(f"{'torchrec':<12} {info['torchrec']}")
    return "\n".join(lines)
