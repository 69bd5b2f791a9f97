"""Every op on a GPU, against eager PyTorch, torch.compile, implicit's BPR and the speed of a copy.

    python benchmarks/bench_gpu.py [--device cuda] [--output benchmarks/results/gpu-NAME-DATE] [--rounds 15] [--small]
        [--section losses steps ...] [--seconds 150] [--limit 120] [--begun FILE]

Inputs rotate: every call works on others, so many that they exceed the L2 cache together (unless the call is captured
in a CUDA graph, which replays on the same ones, or tables are meant to lie in L2). The bytes are those of
benchmarks/ROOFLINE.md: what must be moved at least. Methods take turns, round by round; times are from CUDA events, and
the copy that bytes a second are compared with is timed before all others. MovieLens-1M and Gowalla are read from the
folder that ZEROSUM_EXT_DATA names, or generated at their size. implicit's BPR is left out where it is not installed
with CUDA. --device cpu runs the same code on a CPU, which tells whether the script is in order, and nothing else.

What was measured is kept, whatever comes: results are written after each section, and no section begins once --seconds
have passed. A method that fails, as one that needs more memory than there is, is left out; a section that fails is told
of, and the exit status is 1. It is 3 where a failure has cost the process its GPU, and a signal ends a section that
takes more than --limit seconds. (After half of them nothing is compiled any more, which takes peers the longest. After
three quarters, or half a minute after --seconds, a section begins no further case, so that it keeps what it has.)
Called again with the same --begun, which notes the sections that were begun, another process goes on with the rest.

Sections with targets come first, and in each the cases that have one.
"""

from __future__ import annotations

import argparse
import functools
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _timing
import bench_evaluation
import bench_losses as peers
import bench_sampling
import numpy as np
import torch
from _timing import Method, copies_beyond_cache, machine, ratio, rotating, spread, table, take_turns, write_results
from torch import Tensor

import zerosum_ext as zx
from zerosum_ext import _ops
from zerosum_ext.data import sampling
from zerosum_ext.training.fused import FusedStep

DIM = 64
WORDS = {"bpr": 6, "zerosum": 6, "pos2neg2": 12}  # read and written for a sample, forward and backward
# How many times as fast as torch.compile, both in CUDA graphs, at 4096 samples.
GRAPH_GOALS = (
    ("ours", "autograd", {"bpr": 1.2, "zerosum": 1.3, "pos2neg2": 2.5}),
    ("direct", "loss_and_grad", {"bpr": 2.3, "zerosum": 2.8, "pos2neg2": 5.0}),
)
MOVIELENS, BEYOND_CACHE = (6040, 3706), (1_000_000, 1_000_000)  # rows of tables that lie in L2, and that do not
# Of a section's limit: as long as something is compiled, and as long as a case is begun.
COMPILING, CASES = 0.5, 0.75
Seconds = Mapping[str, np.ndarray]
# Paragraphs and results of a section.
Section = tuple[list[str], list[dict[str, Any]]]


@dataclass
class Setting:
    device: str
    rounds: int
    small: bool
    speed: float = 1.0  # bytes a second of a copy, read and written ones
    left_out: list[str] = field(default_factory=list)  # methods, and why
    failed: bool = False  # whether one of them did
    compile_until: float = float("inf")  # time.monotonic() from which on nothing is compiled any more
    until: float = float("inf")  # and from which on a section begins no further case

    @property
    def on_gpu(self) -> bool:
        return _timing.on_gpu(self.device)

    def is_over(self, what: str) -> bool:
        """Whether a case is left out, as the section's time is over."""
        over = time.monotonic() > self.until
        if over:
            self.left_out.append(f"{what}: no time")
        return over

    def turns(self, what: str, methods: Mapping[str, Method], most: int = 1 << 30) -> dict[str, np.ndarray]:
        """Seconds of each method, in at most so many rounds; of those that do not fail.

        The medians are printed at once: if the section does not come to its end, they are what is left of it.
        """
        working = {}
        for name, method in methods.items():
            if name.startswith("compile") and time.monotonic() > self.compile_until:
                self.left_out.append(f"{what}, {name}: no time")
                continue
            try:
                method()
                if self.on_gpu:
                    torch.cuda.synchronize()
                working[name] = method
            except Exception as error:
                if self.gpu_is_lost():
                    raise
                self.left_out.append(f"{what}, {name}: {told(error)}")
                self.failed = True
                if self.on_gpu:
                    torch.cuda.empty_cache()
        seconds = take_turns(working, rounds=min(self.rounds, most), device=self.device)
        medians = (f"{name} {1e6 * np.median(values):.1f} us" for name, values in seconds.items())
        print(f"  {what}: {'; '.join(medians)}", flush=True)
        return seconds

    def gpu_is_lost(self) -> bool:
        """Whether an error is one after which CUDA refuses this process everything."""
        if not self.on_gpu:
            return False
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return True
        return False

    def share(self, moved: float, seconds: np.ndarray) -> list[str]:
        """GB/s, and that of a copy's."""
        achieved = moved / float(np.median(seconds))
        return [f"{achieved / 1e9:.0f}", f"{100 * achieved / self.speed:.0f} %"]


def told(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def microseconds(seconds: Seconds, name: str) -> str:
    return f"{1e6 * np.median(seconds[name]):.1f}" if name in seconds else "-"


def ratios(seconds: Seconds, names: Sequence[str], base: str) -> list[str]:
    return [str(ratio(seconds, name, base)) if name in seconds and base in seconds else "-" for name in names]


def faster(seconds: Seconds, *names: str) -> str:
    """The method that takes the least time, of those that were timed."""
    return min((name for name in names if name in seconds), key=lambda name: np.median(seconds[name]))


def lists(seconds: Seconds) -> dict[str, list[float]]:
    return {name: list(values) for name, values in seconds.items()}


def captured(run: Callable[..., Any], arguments: tuple[Any, ...] = ()) -> Method:
    """The call as a CUDA graph, which is captured when it is first wanted."""

    @functools.cache
    def graph() -> Any:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run(*arguments)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run(*arguments)
        return graph

    return lambda: graph().replay()


def copy_speed(s: Setting) -> float:
    """Bytes per second of a copy from memory to memory, read and written bytes counted."""
    source = torch.ones((1 << 20) if s.small else (1 << 28), device=s.device)
    target = torch.empty_like(source)
    methods = {"copy": lambda: target.copy_(source)}
    seconds = take_turns(methods, rounds=s.rounds, block=2e-2, device=s.device)["copy"]
    return 2 * source.nbytes / float(np.median(seconds))


# ------------------------------------------------------------------------------------------------------------- losses


def gradients(loss: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Any]:
    def run(pos: Tensor, neg: Tensor) -> Any:
        return torch.autograd.grad(loss(pos, neg), (pos, neg))

    return run


def direct(name: str, pos: Tensor, neg: Tensor) -> Any:
    """The value and both gradients from one launch."""
    return zx.loss_and_grad(pos.detach(), neg.detach(), name)


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """One compilation for each shape, the best that torch.compile can do; of at most eight shapes."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def bench_losses(s: Setting) -> Section:
    rows, results = [], []
    plain = {name: compiled(eager) for name, (*_, eager) in peers.LOSSES.items()}
    for size in (1 << 12, 1 << 14) if s.small else (1 << 12, 1 << 24, 1 << 16, 1 << 20):  # those with targets first
        for name, (ours, _, eager) in peers.LOSSES.items():
            if s.is_over(f"{name}, {size}"):
                continue
            functions = {"ours": ours, "eager": eager, "compile": plain[name]}
            shape = (size, 2) if name == "pos2neg2" else (size,)
            moved = WORDS[name] * size * 4
            inputs = [
                tuple(torch.randn(shape, device=s.device, requires_grad=True) for _ in range(2))
                for _ in range(copies_beyond_cache(moved // 3, s.device))
            ]
            calls = {label: gradients(function) for label, function in functions.items()}
            calls["direct"] = functools.partial(direct, name)
            methods = {label: rotating(call, inputs) for label, call in calls.items()}
            if s.on_gpu:  # beyond the cache it makes no difference that a graph has the same inputs each time
                methods |= {f"{x}, graph": captured(calls[x], inputs[0]) for x in ("ours", "direct", "compile")}
            seconds = s.turns(f"{name}, {size}", methods)
            if "ours" not in seconds:
                continue
            rows.append(
                [
                    *(name, size, *(microseconds(seconds, x) for x in ("ours", "ours, graph", "direct, graph"))),
                    *s.share(moved, seconds["ours, graph" if "ours, graph" in seconds else "ours"]),
                    *ratios(seconds, ("eager", "compile"), "ours"),
                    *(r for x in ("ours", "direct") for r in ratios(seconds, ("compile, graph",), f"{x}, graph")),
                ]
            )
            results.append({"loss": name, "samples": size, "bytes": moved, "seconds": lists(seconds)})
    order = list(peers.LOSSES)
    rows.sort(key=lambda row: (order.index(row[0]), row[1]))
    results.sort(key=lambda result: (order.index(result["loss"]), result["samples"]))
    header = ["loss", "samples", "us", "us in a graph", "us of loss_and_grad in a graph", "GB/s", "of a copy"]
    header += ["eager / ours", "compile / ours", "compile / ours in graphs", "compile / loss_and_grad in graphs"]
    text = (
        "Losses, forward and backward, float32, mean; eager and compiled are the forms of benchmarks/bench_losses.py "
        "that do not overflow. GB/s: six words a pair (twelve of Pos2Neg2) by the time in a graph; ours moves 4 (and "
        "8). Ratios: median of the rounds, with quartiles."
    )
    return [text, table(header, rows)], results


def host_seconds(call: Method, calls: int, on_gpu: bool) -> float:
    """The host's time of a call, which does not wait for what the GPU has to do."""
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    took = time.perf_counter() - start
    if on_gpu:
        torch.cuda.synchronize()
    return took / calls


def bench_host(s: Setting) -> Section:
    """What a call costs the host: losses of so few pairs that the GPU never keeps it waiting."""
    rows, results = [], []
    size, calls = 256, 20 if s.small else 100
    for name, (ours, _, eager) in peers.LOSSES.items():
        shape = (size, 2) if name == "pos2neg2" else (size,)
        pos, neg = (torch.randn(shape, device=s.device, requires_grad=True) for _ in range(2))
        functions = {"ours": gradients(ours), "eager": gradients(eager), "direct": functools.partial(direct, name)}
        methods = {label: functools.partial(function, pos, neg) for label, function in functions.items()}
        seconds: dict[str, list[float]] = {label: [] for label in methods}
        for call in methods.values():
            host_seconds(call, 3, s.on_gpu)
        for turn in range(s.rounds):
            for label in list(methods)[turn % 3 :] + list(methods)[: turn % 3]:
                seconds[label].append(host_seconds(methods[label], calls, s.on_gpu))
        arrays = {label: np.array(values) for label, values in seconds.items()}
        rows.append(
            [name, *(microseconds(arrays, label) for label in methods), *ratios(arrays, ("eager",), "ours")],
        )
        results.append({"loss": name, "samples": size, "bytes": WORDS[name] * size * 4, "seconds": seconds})
    text = f"The host's time of a call, forward and backward, {size} pairs; nothing waits for the GPU."
    return [text, table(["loss", "us", "us of eager", "us of loss_and_grad", "eager / ours"], rows)], results


# ----------------------------------------------------------------------------------------------- matrix factorization


def sort_bytes(rows: int) -> int:
    """To sort a position of a batch by its row in a table of so many."""
    return 28 + 24 * -(-rows.bit_length() // 8)


def factorization_bytes(num_users: int, num_items: int, samples: int, dim: int = DIM, items: int = 2) -> int:
    """Of mf_loss and both sides' sorted gradients (benchmarks/ROOFLINE.md)."""
    loss = 4 * dim * (1 + items) + 8 * (1 + items) + 4 * items
    users = 4 * dim * items + 12 * items + sort_bytes(num_users)
    return samples * (loss + users + items * (4 * dim + 12 + sort_bytes(num_items)))


def eager_factorization(user: Tensor, item: Tensor, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    rows = user[users]
    return peers.stable_zerosum((rows * item[positives]).sum(1), (rows * item[negatives]).sum(1))


def triples(num_users: int, num_items: int, size: int, device: str) -> list[tuple[Tensor, ...]]:
    """Batches of users, positives and negatives, so many that their rows exceed the cache together (at most 64).

    The positives are skewed as in MovieLens.
    """
    generator = torch.Generator().manual_seed(0)
    out = []
    for _ in range(min(64, copies_beyond_cache(3 * 4 * DIM * size, device))):
        users = torch.randint(0, num_users, (size,), generator=generator)
        positives = (torch.rand(size, generator=generator, dtype=torch.float64) ** 2 * num_items).long()
        negatives = torch.randint(0, num_items, (size,), generator=generator)
        out.append(tuple(t.to(device) for t in (users, positives, negatives)))
    return out


def shapes(s: Setting) -> tuple[tuple[int, int], ...]:
    return ((60, 37), (300, 200)) if s.small else (MOVIELENS, BEYOND_CACHE)


def sizes(s: Setting) -> tuple[int, ...]:
    return (1 << 10,) if s.small else (1 << 12, 1 << 16, 1 << 20)


def bench_factorization(s: Setting) -> Section:
    """zx.mf_loss with Zerosum, forward and backward, dense gradients; tables that fit in L2 and tables that do not."""
    rows, results = [], []
    plain = compiled(eager_factorization)
    for num_users, num_items in shapes(s):
        tables = [torch.randn(n, DIM, device=s.device).mul_(0.1).requires_grad_() for n in (num_users, num_items)]
        for size in sizes(s):
            if s.is_over(f"{num_users} x {num_items}, {size}"):
                continue
            batches = triples(num_users, num_items, size, s.device)

            def grads(function: Callable[..., Tensor], tables: list[Tensor] = tables) -> Callable[..., Any]:
                return lambda *ids: torch.autograd.grad(function(*tables, *ids), tables)

            functions = {
                "ours": zx.mf_loss,
                "ours, atomics": functools.partial(zx.mf_loss, deterministic=False),
                "eager": eager_factorization,
                "compile": plain,
            }
            methods = {label: rotating(grads(function), batches) for label, function in functions.items()}
            if s.on_gpu and size <= 1 << 16:
                methods["ours, graph"] = captured(grads(zx.mf_loss), batches[0])
            seconds = s.turns(f"{num_users} x {num_items}, {size}", methods)
            if "ours" not in seconds:
                continue
            # The dense gradients are zeroed and written.
            moved = factorization_bytes(num_users, num_items, size) + 8 * DIM * (num_users + num_items)
            rows.append(
                [
                    *(f"{num_users} x {num_items}", size),
                    *(microseconds(seconds, name) for name in ("ours", "ours, graph")),
                    *s.share(moved, seconds["ours"]),
                    *ratios(seconds, ("ours, atomics", "eager", "compile"), "ours"),
                ]
            )
            results.append(
                {
                    "users": num_users,
                    "items": num_items,
                    "dim": DIM,
                    "samples": size,
                    "bytes": moved,
                    "seconds": lists(seconds),
                }
            )
    header = ["tables", "samples", "us", "us in a graph", "GB/s", "of a copy", "atomics / ours", "eager / ours"]
    text = "zx.mf_loss, Zerosum, d = 64, float32, forward and backward, dense gradients."
    return [text, table([*header, "compile / ours"], rows)], results


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "SparseAdam": lambda p: torch.optim.SparseAdam(p, lr=1e-3),
}
# Bytes that an optimizer reads and writes for each number of a row that it updates: the row and its state.
UPDATE_BYTES = {"SGD": 8, "Adagrad": 16, "Adam": 24, "SparseAdam": 24}


def step_bytes(optimizer: str, shape: tuple[int, int], batch: tuple[Tensor, ...]) -> int:
    """Of a fused step on this batch, as benchmarks/ROOFLINE.md reckons them (chunks' edges left out)."""
    users, *items = batch
    samples, columns = len(users), 2
    distinct_users, distinct = users.unique().numel(), users.unique().numel() + torch.cat(items).unique().numel()
    updated = sum(shape) if optimizer == "Adam" else distinct
    passes = -(-(sum(shape) + 1).bit_length() // 8)  # of a sort by keys up to U + I + 1
    places = (64 + 16 * (passes - 1)) * (1 + columns) * samples
    gathers = 8 * DIM * columns * samples + 4 * DIM * distinct + 8 * DIM * distinct_users
    return places + gathers + UPDATE_BYTES[optimizer] * DIM * updated


def trained(model: zx.MatrixFactorization, optimizer: torch.optim.Optimizer, loss: Callable[..., Tensor]) -> Any:
    """A step by autograd and torch.optim."""

    def run(*ids: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(model.user_embedding, model.item_embedding, *ids).backward()
        optimizer.step()

    return run


def bench_steps(s: Setting) -> Section:
    """Training steps with Zerosum: the fused one, zx.mf_loss with torch.optim, and eager."""
    rows, results = [], []
    plain = compiled(eager_factorization)
    in_cache, beyond = shapes(s)
    # Dense optimizers of large tables spend their time on the tables, whoever makes the gradients.
    cases = [("SGD", in_cache), ("SGD", beyond)]  # those with targets first
    cases += [(name, in_cache) for name in OPTIMIZERS if name != "SGD"] + [("SparseAdam", beyond)]
    for name, shape in cases:
        for size in sizes(s):
            if s.is_over(f"{name}, {shape[0]} x {shape[1]}, {size}"):
                continue
            batches = triples(*shape, size, s.device)
            # Indexing has dense gradients alone: no peers for lazy Adam, nor where dense ones would be all that counts.
            sparse = name == "SparseAdam" or shape == beyond
            methods: dict[str, Method] = {}
            for label in ("fused", "mf_loss") if sparse else ("fused", "mf_loss", "eager", "compile"):
                model = zx.MatrixFactorization(*shape, DIM, seed=0, init_std=0.1, device=s.device)
                optimizer = OPTIMIZERS[name](model.parameters())
                step = {
                    "fused": lambda m=model, o=optimizer: FusedStep(m, zx.ZerosumLoss(), o, capturable=s.on_gpu),
                    "mf_loss": lambda m=model, o=optimizer, x=sparse: trained(
                        m, o, functools.partial(zx.mf_loss, sparse=x)
                    ),
                    "eager": lambda m=model, o=optimizer: trained(m, o, eager_factorization),
                    "compile": lambda m=model, o=optimizer: trained(m, o, plain),
                }[label]()
                methods[label] = rotating(step, batches)
                if label == "fused" and s.on_gpu:
                    methods["fused, graph"] = captured(step, batches[0])
            seconds = s.turns(f"{name}, {shape[0]} x {shape[1]}, {size}", methods)
            if "fused" not in seconds:
                continue
            moved = step_bytes(name, shape, batches[0])
            best = faster(seconds, "fused", "fused, graph")
            rows.append(
                [
                    *(name, "{} x {}".format(*shape), size),
                    *(microseconds(seconds, "fused"), microseconds(seconds, "fused, graph")),
                    *(spread(size / seconds[best] * 1e-9), *s.share(moved, seconds[best])),
                    *ratios(seconds, ("mf_loss", "eager", "compile"), "fused"),
                ]
            )
            results.append(
                {
                    "optimizer": name,
                    "users": shape[0],
                    "items": shape[1],
                    "samples": size,
                    "bytes": moved,
                    "seconds": lists(seconds),
                }
            )
    header = ["optimizer", "tables", "triples", "us", "us in a graph", "1e9 a second", "GB/s", "of a copy"]
    text = "Training steps, Zerosum, d = 64; triples and bytes a second are those of the faster of the two."
    header += [f"{name} / fused" for name in ("mf_loss", "eager", "compile")]
    return [text, table(header, rows, text_columns=2)], results


def eager_softmax(user: Tensor, item: Tensor, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Sampled softmax of a positive and K negatives."""
    rows = user[users]
    positive = (rows * item[positives]).sum(1, keepdim=True)
    negative = torch.einsum("bd,bkd->bk", rows, item[negatives])
    return (torch.cat([positive, negative], 1).logsumexp(1) - positive.squeeze(1)).mean()


def eager_shared_softmax(user: Tensor, item: Tensor, users: Tensor, positives: Tensor, lists: Tensor) -> Tensor:
    """The same of lists of negatives, [L, K], each of which users.numel() / L samples in succession share."""
    rows = user[users]
    positive = (rows * item[positives]).sum(1, keepdim=True)
    negative = torch.bmm(rows.view(len(lists), -1, rows.shape[1]), item[lists].transpose(1, 2))
    logits = torch.cat([positive, negative.reshape(len(users), -1)], 1)
    return (logits.logsumexp(1) - positive.squeeze(1)).mean()


def many_negatives_bytes(shape: tuple[int, int], samples: int, k: int, share: int) -> int:
    """Of a fused SGD step, every row of the tables updated once: what no cache can save it.

    A row of items and one of users is read for each item of a sample. Of lists that ``share`` samples share (0: none)
    the rows of users, positives and the list are read once; derivatives are written and read for users and the list;
    and users' rows are read for the positives.
    """
    if share:
        samples_bytes = samples // share * 4 * DIM * (5 * share + 3 * k) + samples * k
    else:
        samples_bytes = samples * (8 * DIM * (1 + k) + 64 * (2 + k))
    return samples_bytes + 8 * DIM * sum(shape)


def softmax_methods(s: Setting, shape: tuple[int, int], size: int, k: int, share: int) -> dict[str, Method]:
    """Ways to do one step with k negatives: of each sample its own, or in lists that so many samples share."""
    generator = torch.Generator().manual_seed(0)
    eager = eager_shared_softmax if share else eager_softmax
    users, positives, _ = triples(*shape, size, s.device)[0]
    negatives = torch.randint(0, shape[1], (size // share if share else size, k), generator=generator).to(s.device)
    methods: dict[str, Method] = {}
    for label in ("fused", "eager", "compile"):
        model = zx.MatrixFactorization(*shape, DIM, seed=0, init_std=0.1, device=s.device)
        optimizer = OPTIMIZERS["SGD"](model.parameters())
        if label != "fused":
            step = trained(model, optimizer, compiled(eager) if label == "compile" else eager)
            methods[label] = functools.partial(step, users, positives, negatives)
            continue
        fused = FusedStep(model, zx.SampledSoftmaxLoss(), optimizer, capturable=s.on_gpu)
        run: Method = functools.partial(fused, users, positives, negatives)
        if share:  # nobody has an item of a list; an op wants one more, as the first sample may not begin a list
            one_more = torch.cat([negatives, negatives[:1]])
            nobody = torch.zeros(size, k, dtype=torch.bool, device=s.device)
            shared = (one_more, users.new_zeros(1), nobody, users.new_zeros(size), share)
            own, groups = users.new_zeros(size, k), fused._groups()
            run = functools.partial(fused._one, users, positives, own, groups, shared=shared)
        methods["fused"] = run
        if s.on_gpu:
            methods["fused, graph"] = captured(run)
    return methods


def bench_negatives(s: Setting) -> Section:
    """Training steps with sampled softmax over K = 64 negatives: the fused one, and eager compiled and not."""
    rows, results, k = [], [], 64
    shape = shapes(s)[0]
    for size in (1 << 8,) if s.small else (1 << 12, 1 << 15):
        for share in (0, 64):
            what = f"softmax, K = {k}, {size}" + (f", {share} share a list" if share else "")
            if s.is_over(what):
                continue
            seconds = s.turns(what, softmax_methods(s, shape, size, k, share))
            if "fused" not in seconds:
                continue
            best = faster(seconds, "fused", "fused, graph")
            rows.append(
                [
                    *(size, share or 1, microseconds(seconds, "fused"), microseconds(seconds, "fused, graph")),
                    *(spread(size * k / seconds[best] * 1e-9), *ratios(seconds, ("eager", "compile"), best)),
                ]
            )
            moved = many_negatives_bytes(shape, size, k, share)
            results.append({"samples": size, "negatives": k, "share": share, "bytes": moved, "seconds": lists(seconds)})
    header = [
        "samples",
        "share a list",
        "us",
        "us in a graph",
        "1e9 pairs a second",
        "eager / fused",
        "compile / fused",
    ]
    text = f"Training steps, sampled softmax with {k} negatives, {shape[0]} x {shape[1]} rows, d = {DIM}, SGD."
    text += " Peers of shared lists share them too, by a product of matrices."
    return [text, table(header, rows)], results


def implicit_epoch(data: zx.Interactions) -> Method | None:
    """An epoch of implicit's BPR on the GPU with everything there already; None where it is not installed with CUDA.

    The last number of a row is the item's bias: rows of DIM numbers as ours.
    """
    try:
        import implicit.gpu as peer
    except ImportError:
        return None
    if not (getattr(peer, "HAS_CUDA", False) and getattr(peer, "HAS_RMM", True)):
        return None
    rng = np.random.default_rng(0)
    tables = [peer.Matrix((rng.random((n, DIM), np.float32) - 0.5) / DIM) for n in data.shape]
    owners, items = (x.cpu().numpy().astype(np.int32) for x in data.pairs())
    vectors = [peer.IntVector(x) for x in (owners, items, data.indptr.cpu().numpy().astype(np.int32))]

    def run() -> None:
        peer.bpr_update(*vectors, *tables, 0.05, 0.01, int(rng.integers(2**31)), True)

    return run


def bench_epochs(s: Setting) -> Section:
    """Whole epochs of SGD, sampling included."""
    data = interactions(s.small).to(s.device)
    methods: dict[str, Method] = {}
    for size in sizes(s):
        for name, loss in (("zerosum", zx.ZerosumLoss()), ("bpr", zx.BPRLoss())):
            model = zx.MatrixFactorization(*data.shape, DIM, seed=0, init_std=0.1, device=s.device)
            step = FusedStep(model, loss, torch.optim.SGD(model.parameters(), lr=0.05))
            loader = zx.TripletLoader(data, size, seed=0)

            def run(step: FusedStep = step, loader: zx.TripletLoader = loader) -> None:
                step.draw_and_train(loader, 0, loader.num_samples, loader.epoch)
                loader.set_epoch(loader.epoch + 1)

            methods[f"fused {name}, {size}"] = run
    peer = implicit_epoch(data)
    if peer is not None:
        methods["implicit"] = peer
    seconds = s.turns("epochs", methods)
    rows = [
        [name, microseconds(seconds, name), spread(1e-6 * data.nnz / values), *ratios(seconds, ("implicit",), name)]
        for name, values in seconds.items()
    ]
    results = [{"what": name, "samples": data.nnz, "seconds": x} for name, x in lists(seconds).items()]
    text = (
        f"Whole epochs of {data.nnz} interactions, SGD, d = 64, sampling included; the number is the batch size. "
        + ("implicit updates rows as it goes." if peer else "implicit is not installed with CUDA: left out.")
    )
    return [text, table(["what", "us", "M triples a second", "implicit / it"], rows)], results


# ------------------------------------------------------------------------------------------------ positives, sampling


def interactions(small: bool) -> zx.Interactions:
    """MovieLens-1M, or as many generated."""
    real = None if small else bench_sampling.real("ml-1m")
    if real is not None:
        return real
    num_users, num_items, nnz = (300, 200, 6000) if small else (*MOVIELENS, 1_000_000)
    rng = np.random.default_rng(0)
    users = (num_users * rng.random(nnz) ** 1.5).astype(np.int64)
    items = (num_items * rng.random(nnz) ** 2).astype(np.int64)
    return zx.Interactions.from_arrays(users, items, shape=(num_users, num_items))


def bench_pearson(s: Setting) -> Section:
    """One step of the Pearson regularizer: the correlation over all positives, and its gradient."""
    data = interactions(s.small)
    regularizer = zx.PearsonRegularizer(data)
    model = zx.MatrixFactorization(*data.shape, DIM, seed=0, init_std=0.1, device=s.device)
    seconds = s.turns("a step", {"ours": lambda: regularizer.add_gradients(model)})["ours"]
    moved = 3 * 268 * data.nnz  # one pass of moments, two of weighted columns
    rows = [
        [
            *("a step", data.nnz, f"{1e6 * np.median(seconds):.1f}", spread(data.nnz / seconds * 1e-9)),
            *s.share(moved, seconds),
        ]
    ]
    results = [{"what": "pearson", "samples": data.nnz, "bytes": moved, "seconds": list(seconds)}]
    header = ["Pearson regularizer", "positives", "us", "1e9 positives a second", "GB/s, from L2", "of a copy"]
    return ["The scores of all positives, d = 64, float32.", table(header, rows)], results


def bench_sampling_ops(s: Setting) -> Section:
    data = interactions(s.small).to(s.device)
    size = 1 << (12 if s.small else 22)
    users = data.pairs()[0].cpu()
    generator = torch.Generator().manual_seed(0)
    asked = [
        (users[torch.randint(0, len(users), (size,), generator=generator)].to(s.device),)
        for _ in range(min(8, copies_beyond_cache(16 * size, s.device)))
    ]
    methods: dict[str, Method] = {}
    for strategy in ("uniform", "popularity"):
        chosen = sampling.NegativeSource.of(data, strategy, None, 0.75, None, True)
        methods[f"negatives, {strategy}"] = rotating(lambda u, chosen=chosen: chosen.draw(u, 1, 0, 0, 0), asked)
        methods[f"negatives, {strategy}"]()  # makes the filter and the tables
    loader = zx.TripletLoader(data, size, draws=1 + size // data.nnz, seed=0)
    methods["triplets (positive, negative)"] = lambda: loader._batch(0, 0)
    methods["eager: randint, torch.searchsorted"] = bench_sampling.torch_searchsorted(data, asked[0][0])
    seconds = s.turns("samples", methods)
    # Ids read and written; the matrix lies in L2. A triplet reads none, and writes three.
    moved = {name: (24 if name.startswith("triplets") else 16) * size for name in methods}
    rows = [
        [
            name,
            size,
            spread(size / values * 1e-9),
            *s.share(moved[name], values),
            *ratios(seconds, (name,), "negatives, uniform"),
        ]
        for name, values in seconds.items()
    ]
    results = [
        {"what": name, "samples": size, "bytes": moved[name], "seconds": values}
        for name, values in lists(seconds).items()
    ]
    header = [
        "what",
        "samples a call",
        "1e9 a second",
        "GB/s of ids",
        "of a copy",
        "times as long as uniform negatives",
    ]
    return [f"Sampling, with the row filter, {data.nnz} interactions.", table(header, rows)], results


# --------------------------------------------------------------------------------------------------------- evaluation


def gowalla(small: bool) -> tuple[str, zx.Interactions, zx.Interactions]:
    """Title, train and test: Gowalla, or as many users, items and interactions generated."""
    for title, (train, test) in ({} if small else bench_evaluation.splits_of("gowalla")).items():
        return title, train, test
    num_users, num_items, nnz = (90, 130, 2000) if small else (29_858, 40_981, 1_100_000)
    rng = np.random.default_rng(0)
    users = (num_users * rng.random(nnz) ** 1.3).astype(np.int64)
    items = (num_items * rng.random(nnz) ** 2).astype(np.int64)
    data = zx.Interactions.from_arrays(users, items, shape=(num_users, num_items))
    split = data.split_random((0.8, 0.2), seed=0)
    return "generated at Gowalla's size", split.train, split.test


def bench_ranking(s: Setting) -> Section:
    """zx.evaluate with all its metrics, against the matrix product alone and what PyTorch code does."""
    title, train, test = gowalla(s.small)
    train, test = train.to(s.device), test.to(s.device)
    generator = torch.Generator().manual_seed(0)
    user, item = ((torch.randn(n, DIM, generator=generator) * 0.1).to(s.device) for n in test.shape)
    train.popularity, test.popularity  # noqa: B018  kept with the interactions
    k = bench_evaluation.K
    methods: dict[str, Method] = {
        "product": bench_evaluation.product(user, item),
        "rank": lambda: zx.rank((user, item), train, test, k=k),
        "evaluate": lambda: zx.evaluate((user, item), train, test, k=(10, k)),
        "eager top-k": bench_evaluation.eager_topk(user, item, train, test),
        "eager sort": bench_evaluation.eager_sort(user, item, train, test),
    }
    seconds = s.turns("rankings", methods, most=5)  # a sort of a thousand million scores takes its time
    moved = 8 * user.shape[0] * item.shape[0]  # scores written by the product, and read once
    rows = [
        [name, spread(values), *s.share(moved, values), *ratios(seconds, (name,), "product")]
        for name, values in seconds.items()
    ]
    results = [
        {"what": name, "users": user.shape[0], "items": item.shape[0], "bytes": moved, "seconds": values}
        for name, values in lists(seconds).items()
    ]
    text = f"Full ranking of {user.shape[0]} users and {item.shape[0]} items, {title}, d = 64, {test.nnz} held out."
    header = ["what", "s", "GB/s of scores, written and read", "of a copy", "times as long as the product"]
    return [text, table(header, rows)], results


# ------------------------------------------------------------------------------------------------------------- report

# Those with targets first: what is soon done, then what torch.compile has a part in.
SECTIONS: dict[str, Callable[[Setting], Section]] = {
    "evaluation": bench_ranking,
    "sampling": bench_sampling_ops,
    "host": bench_host,
    "losses": bench_losses,
    "steps": bench_steps,
    "negatives": bench_negatives,
    "epochs": bench_epochs,
    "positives": bench_pearson,
    "factorization": bench_factorization,
}


def targets(results: Mapping[str, Any]) -> list[list[str]]:
    """What was to be reached on an H200, what was, and the verdict; of the sections that were measured."""
    speed = results["copy_bytes_per_second"]
    uniform = product = float("inf")  # seconds of what others are compared with, which come first in their sections
    rows: list[list[str]] = []

    def judge(what: str, goal: str, shown: str, reached: bool) -> None:
        rows.append([what, goal, shown, "met" if reached else "**missed**"])

    def fastest(seconds: Mapping[str, Sequence[float]], *names: str) -> float:
        return min(float(np.median(seconds[name])) for name in names if name in seconds)

    for r in results.get("losses", ()):
        what = f"{r['loss']} loss, {r['samples']} samples"
        if r["samples"] == 1 << 24:
            share = r["bytes"] / fastest(r["seconds"], "ours", "ours, graph") / speed
            judge(what, "85 % of a copy", f"{100 * share:.0f} %", share >= 0.85)
        if r["samples"] == 1 << 12 and "compile, graph" in r["seconds"]:
            for label, title, goals in GRAPH_GOALS:
                if f"{label}, graph" in r["seconds"]:
                    times = fastest(r["seconds"], "compile, graph") / fastest(r["seconds"], f"{label}, graph")
                    goal = goals[r["loss"]]
                    judge(f"{what}, {title} in graphs", f"{goal} x torch.compile", f"{times:.2f} x", times >= goal)
    for r in results.get("sampling", ()):
        took = float(np.median(r["seconds"]))
        if r["what"] == "negatives, uniform":
            uniform = took
            judge("uniform negatives", "1e10 a second", f"{r['samples'] / took:.3g}", r["samples"] / took >= 1e10)
        if r["what"] == "negatives, popularity":
            judge("negatives by popularity", "2 x uniform's time", f"{took / uniform:.2f} x", took <= 2 * uniform)
    largest: dict[tuple[int, int], Mapping[str, Any]] = {}
    for r in results.get("steps", ()):
        if r["optimizer"] == "SGD":
            shape = (r["users"], r["items"])
            best = largest.get(shape)
            if best is None or r["samples"] > best["samples"]:
                largest[shape] = r
    for r in results.get("host", ()):
        times = fastest(r["seconds"], "eager") / fastest(r["seconds"], "ours")
        judge(f"{r['loss']} loss, host's time of a call", "eager's", f"eager takes {times:.2f} x", times >= 1)
    for r in results.get("negatives", ()):
        if "compile" in r["seconds"]:
            times = fastest(r["seconds"], "compile") / fastest(r["seconds"], "fused", "fused, graph")
            what = f"softmax step, K = {r['negatives']}, {r['samples']} samples"
            if r.get("share"):
                what += f", {r['share']} share a list"
            judge(what, "5 x torch.compile", f"{times:.2f} x", times >= 5)
    for r in results.get("steps", ()):
        if r["optimizer"] == "SGD" and r["samples"] == 1 << 12 and (r["users"], r["items"]) == MOVIELENS:
            took = fastest(r["seconds"], "fused", "fused, graph")
            judge("fused step, SGD, 4096 triples", "40 us", f"{1e6 * took:.1f} us", took <= 40e-6)
    for shape, r in largest.items():
        took = fastest(r["seconds"], "fused", "fused, graph")
        what = f"fused step, SGD, {shape[0]} x {shape[1]}, {r['samples']} triples"
        if shape == BEYOND_CACHE:
            share = r["bytes"] / took / speed
            judge(what, "70 % of a copy", f"{100 * share:.0f} %", share >= 0.7)
        else:
            judge(what, "1.5e9 a second", f"{r['samples'] / took:.3g}", r["samples"] / took >= 1.5e9)
    for r in results.get("evaluation", ()):
        took = float(np.median(r["seconds"]))
        if r["what"] == "product":
            product = took
        if r["what"] == "evaluate":
            goal = min(0.012, 1.5 * product)
            judge("full-ranking evaluation of Gowalla", f"{1e3 * goal:.3g} ms", f"{1e3 * took:.3g} ms", took <= goal)
    return rows


def report(s: Setting, output: str | None, paragraphs: Sequence[str], results: Mapping[str, Any]) -> str:
    verdicts = [] if s.small else targets(results)
    if verdicts:
        text = "The targets are for an H200; what to expect: benchmarks/ROOFLINE.md."
        paragraphs = [*paragraphs, text, table(["what", "target", "measured", ""], verdicts, text_columns=4)]
    info = machine(s.device) | {"rounds": s.rounds}
    return write_results(output, f"Ops on {s.device}", info, paragraphs, results, quiet=True)


def require_kernels(device: torch.device) -> None:
    """End the program with one line where the package has no kernels for a device."""
    if not _ops.has_op("pair_loss", device):
        part = zx.build_info()["cuda" if device.type == "cuda" else "cpu"]
        raise SystemExit(f"no kernels for {device}: {part.get('reason')}. To mend it: {part.get('remedy')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", metavar="PATH", help="write PATH.md and PATH.json")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--small", action="store_true", help="tiny inputs: does the script run?")
    parser.add_argument("--section", nargs="+", choices=tuple(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no section after so long")
    parser.add_argument("--limit", type=int, default=0, metavar="SECONDS", help="a section that takes longer is ended")
    parser.add_argument("--begun", type=Path, metavar="FILE", help="leave out, and note, sections that were begun")
    arguments = parser.parse_args()
    require_kernels(torch.device(arguments.device))
    start = time.monotonic()
    s = Setting(arguments.device, arguments.rounds, arguments.small)
    s.speed = copy_speed(s)
    paragraphs = [f"A copy from memory to memory moves {s.speed / 1e9:.0f} GB/s (read and written)."]
    results: dict[str, Any] = {"copy_bytes_per_second": s.speed}
    begun = arguments.begun.read_text().split() if arguments.begun and arguments.begun.exists() else []
    status = 0
    for name in arguments.section:
        if name in begun:
            continue
        if time.monotonic() - start > arguments.seconds:
            paragraphs.append(f"{name}: left out, {arguments.seconds:.0f} s had passed.")
            continue
        if arguments.begun:
            with arguments.begun.open("a") as notes:
                notes.write(f"{name}\n")
        began = time.monotonic()
        print(f"{name} ...", flush=True)
        s.until = start + arguments.seconds + 30
        if arguments.limit:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, wherever it hangs
            signal.alarm(arguments.limit)
            s.compile_until = began + COMPILING * arguments.limit
            s.until = min(s.until, began + CASES * arguments.limit)
        try:
            text, results[name] = SECTIONS[name](s)
            paragraphs += text
        except Exception as error:
            traceback.print_exc()
            paragraphs.append(f"**{name} failed**: {told(error)}")
            status = 3 if s.gpu_is_lost() else 1
        finally:
            if arguments.limit:
                signal.alarm(0)
        if s.left_out:
            paragraphs.append(f"Left out of {name}: {'; '.join(s.left_out)}.")
            print(paragraphs[-1], flush=True)
            s.left_out.clear()
            status = status or int(s.failed)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
        report(s, arguments.output, paragraphs, results)
        if status == 3:
            break
    print(report(s, arguments.output, paragraphs, results))
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
