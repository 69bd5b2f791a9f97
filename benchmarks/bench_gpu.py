"""Losses and sampling on a GPU, against eager PyTorch, torch.compile and the speed of a copy.

    python benchmarks/bench_gpu.py [--device cuda] [--output benchmarks/results/gpu-NAME-DATE] [--rounds 15] [--small]

Every call of a loss works on other inputs, so many that they exceed the L2 cache together (unless they are captured
in a CUDA graph, which replays on the same ones). The bytes are those of benchmarks/ROOFLINE.md: what must be moved at
least. Methods take turns, round by round; times are from CUDA events. --device cpu runs the same code on a CPU, which
tells whether the script is in order, and nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _timing import Method, copies_beyond_cache, machine, ratio, rotating, spread, table, take_turns, write_results
from torch import Tensor

import zerosum_ext as zx
from zerosum_ext import _ops, sampling

WORDS = {"bpr": 6, "zerosum": 6, "pos2neg2": 12}  # read and written for a sample, forward and backward


def eager_bpr(pos: Tensor, neg: Tensor) -> Tensor:
    return torch.nn.functional.softplus(neg - pos).mean()


def eager_zerosum(pos: Tensor, neg: Tensor) -> Tensor:
    return (torch.nn.functional.softplus(neg - pos) - torch.log(1 - torch.tanh((pos + neg).abs()))).mean()


def eager_pos2neg2(pos: Tensor, neg: Tensor) -> Tensor:
    between = (pos[:, 0] - pos[:, 1]).abs(), (neg[:, 0] - neg[:, 1]).abs()
    rho = sum(-torch.log(1 - torch.tanh(x)) for x in between)
    return (torch.nn.functional.softplus(neg - pos).sum(1) + rho).mean()


LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "bpr": (zx.bpr_loss, eager_bpr),
    "zerosum": (zx.zerosum_loss, eager_zerosum),
    "pos2neg2": (zx.pos2neg2_loss, eager_pos2neg2),
}


def step(loss: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Any]:
    def run(pos: Tensor, neg: Tensor) -> Any:
        return torch.autograd.grad(loss(pos, neg), (pos, neg))

    return run


def captured(run: Callable[..., Any], arguments: tuple[Any, ...]) -> Method:
    """The call as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(*arguments)
    return graph.replay


def copy_speed(device: str, rounds: int, small: bool) -> float:
    """Bytes per second of a copy from memory to memory, read and written bytes counted."""
    source = torch.ones((1 << 20) if small else (1 << 28), device=device)
    target = torch.empty_like(source)
    seconds = take_turns({"copy": lambda: target.copy_(source)}, rounds=rounds, block=2e-2, device=device)["copy"]
    return 2 * source.nbytes / float(np.median(seconds))


def bench_losses(device: str, rounds: int, small: bool, speed: float) -> tuple[str, list[dict[str, Any]]]:
    rows, results = [], []
    on_gpu = device.startswith("cuda")
    for name, (ours, eager) in LOSSES.items():
        compiled = torch.compile(eager)
        for size in (1 << 12, 1 << 14) if small else (1 << 12, 1 << 16, 1 << 20, 1 << 24):
            shape = (size, 2) if name == "pos2neg2" else (size,)
            words = WORDS[name] * size * 4
            inputs = [
                tuple(torch.randn(shape, device=device, requires_grad=True) for _ in range(2))
                for _ in range(copies_beyond_cache(words // 3, device))
            ]
            methods = {
                label: rotating(step(function), inputs)
                for label, function in (("ours", ours), ("eager", eager), ("compile", compiled))
            }
            if on_gpu and size <= 1 << 16:
                methods |= {
                    f"{label}, graph": captured(step(function), inputs[0])
                    for label, function in (("ours", ours), ("compile", compiled))
                }
            seconds = take_turns(methods, rounds=rounds, device=device)
            achieved = words / float(np.median(seconds["ours"]))
            graphs = ratio(seconds, "compile, graph", "ours, graph") if "ours, graph" in seconds else "-"
            rows.append(
                [
                    *(name, size, f"{1e6 * np.median(seconds['ours']):.1f}"),
                    *(f"{achieved / 1e9:.0f}", f"{100 * achieved / speed:.0f} %"),
                    *(ratio(seconds, "eager", "ours"), ratio(seconds, "compile", "ours"), graphs),
                ]
            )
            results.append(
                {"loss": name, "samples": size, "bytes": words, "seconds": {k: list(v) for k, v in seconds.items()}}
            )
    header = ["loss", "samples", "us", "GB/s", "of a copy", "eager / ours", "compile / ours", "the same, graphs"]
    return table(header, rows), results


def bench_sampling(device: str, rounds: int, small: bool) -> tuple[str, list[dict[str, Any]]]:
    num_users, num_items, nnz = (300, 200, 6000) if small else (6040, 3706, 1_000_000)  # MovieLens-1M's size
    rng = np.random.default_rng(0)
    users = (num_users * rng.random(nnz) ** 1.5).astype(np.int64)
    items = (num_items * rng.random(nnz) ** 2).astype(np.int64)
    data = zx.Interactions.from_arrays(users, items, shape=(num_users, num_items)).to(device)
    rows_asked = 1 << (12 if small else 22)
    asked = torch.from_numpy(users[rng.integers(0, nnz, rows_asked)]).to(device)
    methods: dict[str, Method] = {}
    for strategy in ("uniform", "popularity"):
        chosen = sampling._strategy(data, strategy, None, 0.75, None, True)
        chosen.draw(asked, 1, 0, 0, 0)
        methods[f"negatives, {strategy}"] = lambda chosen=chosen: chosen.draw(asked, 1, 0, 0, 0)
    loader = zx.TripletLoader(data, rows_asked, draws=8, seed=0)
    methods["triplets (positive, negative)"] = lambda: loader._batch(0, 0)
    seconds = take_turns(methods, rounds=rounds, device=device)
    rows = [[name, rows_asked, spread(rows_asked / values * 1e-9)] for name, values in seconds.items()]
    results = [{"what": name, "samples": rows_asked, "seconds": list(v)} for name, v in seconds.items()]
    return table(["what", "samples a call", "1e9 a second"], rows), results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", metavar="PATH", help="write PATH.md and PATH.json")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--small", action="store_true", help="tiny inputs: does the script run?")
    args = parser.parse_args()
    device = torch.device(args.device)
    if not _ops.has_op("pair_loss", device):
        raise SystemExit(f"no kernels for {device}: {zx.build_info()['cuda' if device.type == 'cuda' else 'cpu']}")
    speed = copy_speed(args.device, args.rounds, args.small)
    losses, loss_results = bench_losses(args.device, args.rounds, args.small, speed)
    samples, sample_results = bench_sampling(args.device, args.rounds, args.small)
    write_results(
        args.output,
        f"Losses and sampling on {args.device}",
        machine(args.device),
        [
            f"A copy from memory to memory moves {speed / 1e9:.0f} GB/s (read and written).",
            "Losses, forward and backward, float32, mean. Ratios: median of the rounds, with quartiles.",
            *(losses, "Sampling, with the row filter.", samples),
        ],
        {"copy_bytes_per_second": speed, "losses": loss_results, "sampling": sample_results},
    )


if __name__ == "__main__":
    main()
