"""Losses, matrix factorization and sampling on a GPU, against eager PyTorch, torch.compile and the speed of a copy.

    python benchmarks/bench_gpu.py [--device cuda] [--output benchmarks/results/gpu-NAME-DATE] [--rounds 15] [--small]

Every call of a loss works on other inputs, so many that they exceed the L2 cache together (unless they are captured
in a CUDA graph, which replays on the same ones). The bytes are those of benchmarks/ROOFLINE.md: what must be moved at
least. Methods take turns, round by round; times are from CUDA events. --device cpu runs the same code on a CPU, which
tells whether the script is in order, and nothing else.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _timing import Method, copies_beyond_cache, machine, ratio, rotating, spread, table, take_turns, write_results
from torch import Tensor

import zerosum_ext as zx
from zerosum_ext import _ops, sampling
from zerosum_ext.fused import FusedStep

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


def eager_factorization(user: Tensor, item: Tensor, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    rows = user[users]
    return eager_zerosum((rows * item[positives]).sum(1), (rows * item[negatives]).sum(1))


def triples(num_users: int, num_items: int, size: int, device: str) -> list[Tensor]:
    """Users, positives and negatives; the positives are skewed as in MovieLens."""
    generator = torch.Generator().manual_seed(0)
    users = torch.randint(0, num_users, (size,), generator=generator)
    positives = (torch.rand(size, generator=generator, dtype=torch.float64) ** 2 * num_items).long()
    negatives = torch.randint(0, num_items, (size,), generator=generator)
    return [t.to(device) for t in (users, positives, negatives)]


def bench_factorization(device: str, rounds: int, small: bool, speed: float) -> tuple[str, list[dict[str, Any]]]:
    """zx.mf_loss with Zerosum, forward and backward, dense gradients; tables that fit in L2 and tables that do not."""
    rows, results = [], []
    compiled = torch.compile(eager_factorization)
    dim = 64
    shapes = ((60, 37),) if small else ((6040, 3706), (1_000_000, 1_000_000))
    for num_users, num_items in shapes:
        tables = [torch.randn(n, dim, device=device).mul_(0.1).requires_grad_() for n in (num_users, num_items)]
        for size in (1 << 10,) if small else (1 << 12, 1 << 16, 1 << 20):
            ids = triples(num_users, num_items, size, device)

            def ours(deterministic: bool, ids: list[Tensor] = ids, tables: list[Tensor] = tables) -> Any:
                return torch.autograd.grad(zx.mf_loss(*tables, *ids, deterministic=deterministic), tables)

            def plain(function: Callable[..., Tensor], ids: list[Tensor] = ids, tables: list[Tensor] = tables) -> Any:
                return torch.autograd.grad(function(*tables, *ids), tables)

            methods: dict[str, Method] = {
                "ours": functools.partial(ours, True),
                "ours, atomics": functools.partial(ours, False),
                "eager": functools.partial(plain, eager_factorization),
                "compile": functools.partial(plain, compiled),
            }
            if device.startswith("cuda") and size <= 1 << 16:
                methods["ours, graph"] = captured(methods["ours"], ())
            seconds = take_turns(methods, rounds=rounds, device=device)
            # benchmarks/ROOFLINE.md, J = 2; and the dense gradients, zeroed and written.
            words = (2100 + (96 if num_users > 65535 else 0)) * size + 8 * dim * (num_users + num_items)
            achieved = words / float(np.median(seconds["ours"]))
            rows.append(
                [
                    *(f"{num_users} x {num_items}", size, f"{1e6 * np.median(seconds['ours']):.1f}"),
                    *(f"{1e6 * np.median(seconds['ours, graph']):.1f}" if "ours, graph" in seconds else "-",),
                    *(f"{achieved / 1e9:.0f}", f"{100 * achieved / speed:.0f} %"),
                    *(ratio(seconds, name, "ours") for name in ("ours, atomics", "eager", "compile")),
                ]
            )
            results.append(
                {
                    "users": num_users,
                    "items": num_items,
                    "dim": dim,
                    "samples": size,
                    "bytes": words,
                    "seconds": {k: list(v) for k, v in seconds.items()},
                }
            )
    header = ["tables", "samples", "us", "us in a graph", "GB/s", "of a copy", "atomics / ours", "eager / ours"]
    return table([*header, "compile / ours"], rows), results


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "SparseAdam": lambda p: torch.optim.SparseAdam(p, lr=1e-3),
}


def bench_steps(device: str, rounds: int, small: bool) -> tuple[str, list[dict[str, Any]]]:
    """Training steps with Zerosum at MovieLens-1M's size: the fused one, zx.mf_loss with torch.optim, and eager."""
    rows, results = [], []
    num_users, num_items, dim = (60, 37, 64) if small else (6040, 3706, 64)
    compiled = torch.compile(eager_factorization)
    for name, make in OPTIMIZERS.items():
        for size in (1 << 10,) if small else (1 << 12, 1 << 16, 1 << 20):
            ids = triples(num_users, num_items, size, device)
            methods: dict[str, Method] = {}
            for label in ("fused", "mf_loss", "eager", "compile"):
                sparse = name == "SparseAdam"
                if sparse and label in ("eager", "compile"):
                    continue  # indexing has dense gradients alone
                model = zx.MatrixFactorization(num_users, num_items, dim, seed=0, init_std=0.1, device=device)
                optimizer = make(model.parameters())
                tables = (model.user_embedding, model.item_embedding)
                if label == "fused":
                    methods[label] = functools.partial(FusedStep(model, zx.ZerosumLoss(), optimizer), *ids)
                    continue
                if label == "mf_loss":
                    function: Callable[..., Tensor] = functools.partial(zx.mf_loss, sparse=sparse)
                else:
                    function = compiled if label == "compile" else eager_factorization

                def run(
                    function: Callable[..., Tensor] = function,
                    optimizer: torch.optim.Optimizer = optimizer,
                    tables: tuple[Tensor, ...] = tables,
                    ids: list[Tensor] = ids,
                ) -> None:
                    optimizer.zero_grad(set_to_none=True)
                    function(*tables, *ids).backward()
                    optimizer.step()

                methods[label] = run
            if device.startswith("cuda") and name == "SGD":
                methods["fused, graph"] = captured(methods["fused"], ())
            seconds = take_turns(methods, rounds=rounds, device=device)
            best = seconds["fused, graph" if "fused, graph" in seconds else "fused"]
            rows.append(
                [
                    *(name, size, f"{1e6 * np.median(seconds['fused']):.1f}", spread(size / best * 1e-9)),
                    *(ratio(seconds, k, "fused") if k in seconds else "-" for k in ("mf_loss", "eager", "compile")),
                ]
            )
            results.append({"optimizer": name, "samples": size, "seconds": {k: list(v) for k, v in seconds.items()}})
    header = ["optimizer", "triples", "us", "1e9 triples a second", "mf_loss / fused", "eager / fused"]
    return table([*header, "compile / fused"], rows), results


def bench_pearson(device: str, rounds: int, small: bool) -> tuple[str, list[dict[str, Any]]]:
    """One step of the Pearson regularizer: the correlation over all positives, and its gradient."""
    data = interactions(small)
    regularizer = zx.PearsonRegularizer(data)
    model = zx.MatrixFactorization(*data.shape, 64, seed=0, init_std=0.1, device=device)
    seconds = take_turns({"ours": lambda: regularizer.add_gradients(model)}, rounds=rounds, device=device)["ours"]
    rows = [
        ["Pearson regularizer, a step", data.nnz, f"{1e6 * np.median(seconds):.1f}", spread(data.nnz / seconds * 1e-9)]
    ]
    results = [{"what": "pearson", "positives": data.nnz, "seconds": list(seconds)}]
    return table(["what", "positives", "us", "1e9 positives a second"], rows), results


def interactions(small: bool) -> zx.Interactions:
    num_users, num_items, nnz = (300, 200, 6000) if small else (6040, 3706, 1_000_000)  # MovieLens-1M's size
    rng = np.random.default_rng(0)
    users = (num_users * rng.random(nnz) ** 1.5).astype(np.int64)
    items = (num_items * rng.random(nnz) ** 2).astype(np.int64)
    return zx.Interactions.from_arrays(users, items, shape=(num_users, num_items))


def bench_sampling(device: str, rounds: int, small: bool) -> tuple[str, list[dict[str, Any]]]:
    data = interactions(small).to(device)
    rows_asked = 1 << (12 if small else 22)
    users = data.pairs()[0].cpu()
    asked = users[torch.randint(0, len(users), (rows_asked,), generator=torch.Generator().manual_seed(0))].to(device)
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
    factors, factor_results = bench_factorization(args.device, args.rounds, args.small, speed)
    steps, step_results = bench_steps(args.device, args.rounds, args.small)
    pearson, pearson_results = bench_pearson(args.device, args.rounds, args.small)
    write_results(
        args.output,
        f"Losses, matrix factorization and sampling on {args.device}",
        machine(args.device),
        [
            f"A copy from memory to memory moves {speed / 1e9:.0f} GB/s (read and written).",
            "Losses, forward and backward, float32, mean. Ratios: median of the rounds, with quartiles.",
            *(losses, "Sampling, with the row filter.", samples),
            *("zx.mf_loss, Zerosum, d = 64, float32, forward and backward, dense gradients.", factors),
            *("Training steps, Zerosum, d = 64, tables of MovieLens-1M's size.", steps),
            *("All positives, d = 64, float32, at MovieLens-1M's size.", pearson),
        ],
        {
            "copy_bytes_per_second": speed,
            "losses": loss_results,
            "sampling": sample_results,
            "factorization": factor_results,
            "steps": step_results,
            "pearson": pearson_results,
        },
    )


if __name__ == "__main__":
    main()
