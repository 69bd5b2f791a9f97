"""Forward and backward passes of the losses, against plain PyTorch, torch.compile and copying the same bytes.

    python benchmarks/bench_losses.py [--output benchmarks/results/losses-cpu [--merge]] [--threads 1 2] [--isa avx2]
        [--clock cpu] [--loss bpr] [--no-compile] [--device cuda]

Every method evaluates the mean loss and its gradient in the scores of fresh leaves. "usual" is how the loss is commonly
written, which overflows; "stable" is the same in forms that do not, and "compiled" is torch.compile of it. "copy" moves
as many words between buffers beyond the last-level cache as an implementation without waste does: six a pair of scores.
Methods take turns, round by round; a ratio is the median of the rounds' ratios.``--isa`` takes the AVX2 or the
default version of the kernels, torch's as well as ours, as a machine without better would. ``--clock cpu`` measures the
processor's time of one thread, where others use the machine too and the wall clock says little. ``--merge`` keeps the
rows of OUTPUT.json that were not measured anew.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

import _timing
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

import zerosum_ext as zx
from zerosum_ext import _ops

SIZES = (16, 256, 4096, 65_536, 1_000_000)
# B and K of [B] positives with [B, K] negatives
MATRICES = ((4096, 16), (1024, 256))


def usual_bpr(p: Tensor, n: Tensor) -> Tensor:
    return -torch.log(torch.sigmoid(p - n)).mean()


def usual_zerosum(p: Tensor, n: Tensor) -> Tensor:
    return (-torch.log(torch.sigmoid(p - n)) - torch.log(1 - torch.tanh(torch.abs(p + n)))).mean()


def usual_pos2neg2(p: Tensor, n: Tensor) -> Tensor:
    ranking = -torch.log(torch.sigmoid(p - n)).sum(-1)
    p, n = p[:, 0] - p[:, 1], n[:, 0] - n[:, 1]
    return (ranking - torch.log(1 - torch.tanh(torch.abs(p))) - torch.log(1 - torch.tanh(torch.abs(n)))).mean()


def stable_rho(x: Tensor) -> Tensor:
    y = 2 * x.abs()
    return y + torch.log1p(torch.expm1(-y) / 2)


def stable_bpr(p: Tensor, n: Tensor) -> Tensor:
    return -logsigmoid(p - n).mean()


def stable_zerosum(p: Tensor, n: Tensor) -> Tensor:
    return (stable_rho(p + n) - logsigmoid(p - n)).mean()


def stable_pos2neg2(p: Tensor, n: Tensor) -> Tensor:
    regularizer = stable_rho(p[:, 0] - p[:, 1]) + stable_rho(n[:, 0] - n[:, 1])
    return (regularizer - logsigmoid(p - n).sum(-1)).mean()


LOSSES: dict[str, tuple[Callable[..., Tensor], ...]] = {
    "bpr": (zx.bpr_loss, usual_bpr, stable_bpr),
    "zerosum": (zx.zerosum_loss, usual_zerosum, stable_zerosum),
    "pos2neg2": (zx.pos2neg2_loss, usual_pos2neg2, stable_pos2neg2),
}


def shapes(loss: str) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The shapes of pos and neg that are measured; B counts rows, so that Pos2Neg2 has 2 B pairs."""
    if loss == "pos2neg2":
        return [((b, 2), (b, 2)) for b in SIZES]
    return [((b,), (b,)) for b in SIZES] + [((b,), (b, k)) for b, k in MATRICES]


def step(loss: Callable[..., Tensor], column: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Forward and backward; plain PyTorch needs a column of positives to broadcast against [B, K] negatives."""

    def run(pos: Tensor, neg: Tensor) -> Tensor:
        value = loss(pos.unsqueeze(1) if column else pos, neg)
        value.backward()
        pos.grad = neg.grad = None
        return value

    return run


def methods(
    loss: str, pos_shape: tuple[int, ...], neg_shape: tuple[int, ...], compiled: bool, device: str = "cpu"
) -> dict[str, Callable[[], object]]:
    fused, usual, stable = LOSSES[loss]
    size = 4 * (int(np.prod(pos_shape)) + int(np.prod(neg_shape)))
    generator = torch.Generator().manual_seed(0)
    inputs = [
        tuple(torch.randn(s, generator=generator).to(device).requires_grad_() for s in (pos_shape, neg_shape))
        for _ in range(_timing.copies_beyond_cache(3 * size, device))
    ]
    column = pos_shape != neg_shape
    out = {
        "zerosum_ext": _timing.rotating(step(fused, False), inputs),
        "usual": _timing.rotating(step(usual, column), inputs),
        "stable": _timing.rotating(step(stable, column), inputs),
    }
    if compiled:
        # One compilation for each shape: the best that torch.compile can do.
        torch.compiler.reset()
        out["compiled"] = _timing.rotating(step(torch.compile(stable, dynamic=False), column), inputs)
    # 6 words a pair: reads and writes of 3/2 of the scores' bytes each.
    words = max(1, 3 * size // 8)
    buffers = [
        (torch.zeros(words, device=device), torch.zeros(words, device=device))
        for _ in range(_timing.copies_beyond_cache(3 * size, device))
    ]
    out["copy"] = _timing.rotating(lambda source, target: target.copy_(source), buffers)
    return out


# ------------------------------------------------------------------------------------------------- pytest-benchmark


try:
    import pytest
except ImportError:  # the report needs none
    pass
else:

    @pytest.mark.parametrize("method", ["zerosum_ext", "usual", "stable"])
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("loss", LOSSES)
    def test_loss(benchmark: Any, loss: str, size: int, method: str) -> None:
        shape = (size, 2) if loss == "pos2neg2" else (size,)
        benchmark(methods(loss, shape, shape, compiled=False)[method])


# ----------------------------------------------------------------------------------------------------- paired report


def measure(
    losses: list[str], threads: int, rounds: int, compiled: bool, clock: str, device: str
) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    isa = device if _timing.on_gpu(device) else str(zx.build_info()["isa"])
    rows = []
    for loss in losses:
        for pos_shape, neg_shape in shapes(loss):
            seconds = _timing.take_turns(
                methods(loss, pos_shape, neg_shape, compiled, device),
                rounds=rounds,
                clock_name=clock,
                block=3e-3,
                device=device,
            )
            rows.append(
                {
                    "loss": loss,
                    "shape": list(neg_shape),
                    "isa": isa,
                    "threads": threads,
                    "clock": clock,
                    "microseconds": {name: float(1e6 * np.median(values)) for name, values in seconds.items()},
                    "times_ours": {
                        name: _timing.ratio(seconds, name, "zerosum_ext") for name in seconds if name != "zerosum_ext"
                    },
                }
            )
    return rows


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells rows apart, in the order of the table."""
    isas, losses = ("avx512", "avx2", "baseline"), list(LOSSES)
    return (
        isas.index(row["isa"]) if row["isa"] in isas else len(isas),
        row["threads"],
        row["clock"],
        losses.index(row["loss"]),
        len(row["shape"]),
        row["shape"],
    )


def merged(rows: list[dict[str, Any]], output: str) -> list[dict[str, Any]]:
    """The rows, and those of an earlier result that are not among them."""
    old = _timing.earlier_rows(output, rows, key)
    for row in old:
        row["times_ours"] = {name: _timing.Spread(*values) for name, values in row["times_ours"].items()}
    return sorted(old + rows, key=key)


def speed_table(rows: list[dict[str, Any]]) -> str:
    peers = ("usual", "stable", "compiled", "copy")
    return _timing.table(
        ("loss", "scores", "isa", "threads", "clock", "zerosum_ext, us", *(f"{peer} / ours" for peer in peers)),
        [
            (
                r["loss"],
                str(r["shape"]),
                r["isa"],
                r["threads"],
                r["clock"],
                f"{r['microseconds']['zerosum_ext']:.4g}",
                *(str(r["times_ours"].get(peer, "-")) for peer in peers),
            )
            for r in rows
        ],
        text_columns=3,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="write OUTPUT.md and OUTPUT.json")
    parser.add_argument("--merge", action="store_true", help="keep the other rows of OUTPUT.json")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--loss", nargs="+", choices=tuple(LOSSES), default=list(LOSSES))
    parser.add_argument("--isa", choices=("avx512", "avx2", "baseline"), help="force a version of the kernels")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if _timing.on_gpu(arguments.device):
        arguments.threads, arguments.clock, arguments.isa = [1], "wall", None
    if arguments.clock == "cpu" and arguments.threads != [1]:
        parser.error("--clock cpu: expected --threads 1")
    if arguments.isa and os.environ.get("ZEROSUM_EXT_ISA") != arguments.isa:
        # The kernels choose when they are loaded, before this line: begin again.
        os.environ["ZEROSUM_EXT_ISA"] = arguments.isa
        # As on a machine that has no more: torch's own kernels too.
        os.environ["ATEN_CPU_CAPABILITY"] = {"baseline": "default"}.get(arguments.isa, arguments.isa)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    if not _ops.has_op("pair_loss", torch.device(arguments.device)):
        raise SystemExit("bench_losses.py: build the compiled kernels first")
    rows = [
        row
        for n in arguments.threads
        for row in measure(
            arguments.loss, n, arguments.rounds, not arguments.no_compile, arguments.clock, arguments.device
        )
    ]
    if arguments.merge and arguments.output:
        rows = merged(rows, arguments.output)
    text = (
        "Microseconds of a forward and a backward pass in float32, and how many times as long the others take: median "
        "of paired rounds (quartiles). Measured by `python benchmarks/bench_losses.py`, with `--isa` and `--clock` as "
        "the columns say. For avx2 and baseline torch's kernels are held to the same (ATEN_CPU_CAPABILITY). `cpu` is "
        "the processor's time of one thread, `wall` the clock on the wall, which other programs on the machine "
        "disturb. What the targets were and which are not reached: docs/losses.md."
    )
    info = _timing.machine(arguments.device) | {"rounds": arguments.rounds}
    del info["isa"]
    where = arguments.device if _timing.on_gpu(arguments.device) else "the CPU"
    _timing.write_results(arguments.output, f"Losses on {where}", info, [text, speed_table(rows)], rows)


if __name__ == "__main__":
    main()
