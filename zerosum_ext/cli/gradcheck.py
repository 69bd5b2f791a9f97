"""``zerosum-ext gradcheck``: the losses against their definitions."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_to(commands: Any) -> None:
    """Add the command."""
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
    gradcheck.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
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
