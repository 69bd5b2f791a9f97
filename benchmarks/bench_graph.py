"""How fast the graph models propagate and train, against torch's sparse products and torch_geometric's LightGCN.

    python benchmarks/bench_graph.py [--output benchmarks/results/graph-cpu] [--threads 1 2] [--rounds 7] [--quick]

Data come from the folder that ZEROSUM_EXT_DATA names (gowalla.npz, ml-1m.npz; absent ones are skipped). A step is that
of LightGCN with three layers on 2048 triples: scores of a positive and a negative, BPR, gradients, Adam. Dropping
takes the narrow, row-normalised variant (concatenated layers), the others the original. torch's sparse path keeps the
adjacency as CSR tensors and draws the dropped entries by torch.rand; torch_geometric's has no dropout of entries.
Methods take turns, round by round; a ratio is the median of the rounds' ratios, its spread their quartiles.
"""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import _timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerosum_ext as zx
from zerosum_ext.models.graph import Graph, propagate_once

# data, width, share of entries dropped
CASES = (("gowalla", 10, 0.1), ("gowalla", 64, 0.0), ("ml-1m", 10, 0.1))
LAYERS, BATCH = 3, 2048


def train_part(name: str) -> zx.Interactions | None:
    """Gowalla's training part; of MovieLens-1M four fifths at random."""
    x = _timing.data_set(name)
    if x is None:
        return None
    return x.split_random((0.8, 0.2), seed=0).train if name == "ml-1m" else x.split_by().train


class Product(torch.autograd.Function):
    """A x, with A^T g as gradient: both in CSR."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.matrices = (matrix, transposed)
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        matrix, transposed = ctx.matrices
        return Product.apply(grad, transposed, matrix), None, None


class TorchSparse(nn.Module):
    """LightGCN by torch's sparse products."""

    def __init__(self, x: zx.Interactions, dim: int, dropout: float) -> None:
        super().__init__()
        graph = Graph(x, "row" if dropout else "symmetric", 0.0)
        self.num_users, self.dropout = x.num_users, dropout
        nodes, half = sum(x.shape), len(graph.by_item)
        self.indptr = graph.indptr
        self.indices = graph.indices + (torch.arange(2 * half) < half).to(graph.indices.dtype) * self.num_users
        rows = torch.repeat_interleave(torch.arange(nodes), graph.indptr.diff())
        self.values = graph.scale[rows] * (1 if dropout else graph.scale[self.indices.long()])
        self.mirror = torch.empty(2 * half, dtype=torch.int64)
        self.mirror[half:] = graph.by_item.long()
        self.mirror[graph.by_item.long()] = torch.arange(half) + half
        self.table = nn.Parameter(0.1 * torch.randn(nodes, dim))

    def matrices(self) -> tuple[Tensor, Tensor]:
        values = self.values
        if self.dropout:
            keep = torch.rand(len(values)) >= self.dropout
            values = torch.where(keep, values / (1 - self.dropout), 0)
        size = (len(self.table), len(self.table))
        make = lambda v: torch.sparse_csr_tensor(  # noqa: E731
            self.indptr, self.indices, v, size, check_invariants=False
        )
        matrix = make(values)
        return matrix, make(values[self.mirror]) if self.dropout else matrix

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        matrices = self.matrices()
        layers = [self.table]
        for _ in range(LAYERS):
            layers.append(Product.apply(layers[-1], *matrices))
        final = torch.cat(layers, 1) if self.dropout else sum(layers[1:], layers[0]) / len(layers)
        user, item = F.embedding(users, final[: self.num_users]), F.embedding(items, final[self.num_users :])
        return torch.bmm(item, user.unsqueeze(-1)).squeeze(-1)


class Geometric(nn.Module):
    """torch_geometric's LightGCN, which is given the graph in each call."""

    def __init__(self, x: zx.Interactions, dim: int) -> None:
        super().__init__()
        from torch_geometric.nn.models import LightGCN

        users, items = x.pairs()
        self.num_users = x.num_users
        edges = torch.stack([users, items + x.num_users])
        self.edges = torch.cat([edges, edges.flip(0)], 1)
        self.model = LightGCN(sum(x.shape), dim, LAYERS)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        pairs = torch.stack([users.repeat_interleave(items.shape[1]), items.reshape(-1) + self.num_users])
        return self.model(self.edges, pairs).view(items.shape)


def step(model: nn.Module, x: zx.Interactions) -> Callable[[], object]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = zx.TripletLoader(x, BATCH, seed=0)
    iterator = iter(batches)

    def run() -> None:
        nonlocal iterator
        batch = next(iterator, None)
        if batch is None:
            iterator = iter(batches)
            batch = next(iterator)
        users, positives, negatives = batch[:3]
        scores = model(users, torch.stack([positives.reshape(-1), negatives.reshape(-1)], 1))
        optimizer.zero_grad()
        F.softplus(scores[:, 1] - scores[:, 0]).mean().backward()
        optimizer.step()

    return run


def measure(name: str, x: zx.Interactions, dim: int, dropout: float, rounds: int, threads: int) -> list[dict]:
    torch.set_num_threads(threads)
    variant = {"normalization": "row", "combine": "concat", "node_dropout": dropout} if dropout else {}
    model = zx.LightGCN(x, dim, num_layers=LAYERS, seed=0, **variant)
    sparse = TorchSparse(x, dim, dropout)
    tables = [torch.randn(n, dim) for n in x.shape]
    both = torch.cat(tables)
    adjacency, matrices = model.interaction_graph.adjacency(), sparse.matrices()
    products: dict[str, Callable[[], object]] = {
        "zerosum_ext": lambda: propagate_once(*tables, *adjacency),
        "torch sparse": lambda: Product.apply(both, *matrices),
    }
    steps = {"zerosum_ext": step(model, x), "torch sparse": step(sparse, x)}
    if importlib.util.find_spec("torch_geometric") and not dropout:
        steps["torch_geometric"] = step(Geometric(x, dim), x)
    rows = []
    for part, methods in (("one product", products), ("step of LightGCN", steps)):
        seconds = _timing.take_turns(methods, rounds=rounds, block=0.02)
        for method in methods:
            rows.append(
                {
                    "data": name,
                    "dim": dim,
                    "node_dropout": dropout,
                    "threads": threads,
                    "part": part,
                    "method": method,
                    "milliseconds": 1e3 * _timing.spread(seconds[method]).median,
                    "times_as_long": _timing.ratio(seconds, method, "zerosum_ext"),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="write OUTPUT.md and OUTPUT.json")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a smoke test on generated data: no figures to quote")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # sparse CSR tensors are in beta
    rows = []
    for name, dim, dropout in (("generated", 10, 0.1), ("generated", 16, 0.0)) if arguments.quick else CASES:
        x = zx.Interactions.from_any(zx.datasets.synthetic_triangle(60, 50)) if arguments.quick else train_part(name)
        if x is None:
            print(f"{name}: skipped, ZEROSUM_EXT_DATA names no folder with {name}.npz")
            continue
        for threads in arguments.threads:
            rows += measure(name, x, dim, dropout, arguments.rounds, threads)
    text = (
        f"LightGCN, {LAYERS} layers, batches of {BATCH} triples. Median of paired rounds; how many times as long a\n"
        "method takes as zerosum_ext (quartiles). Dropout: the row-normalised variant, layers concatenated; without:\n"
        "the original. Measured by `python benchmarks/bench_graph.py`."
    )
    keys = ("data", "dim", "node_dropout", "threads", "part", "method")
    lines = [(*(r[k] for k in keys), f"{r['milliseconds']:.3g}", str(r["times_as_long"])) for r in rows]
    header = ("data", "d", "dropout", "threads", "what", "by", "ms", "times as long")
    report = _timing.table(header, lines, text_columns=6)
    info = _timing.machine() | {"rounds": arguments.rounds}
    _timing.write_results(arguments.output, "Graph models on the CPU", info, [text, report], rows)


if __name__ == "__main__":
    main()
