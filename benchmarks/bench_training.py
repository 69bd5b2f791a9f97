"""Training matrix factorization: triples a second against implicit, cornac and PyTorch, and what it needs of memory.

    python benchmarks/bench_training.py [--part engines negatives optimizers large] [--data ml-1m gowalla yelp2018]
        [--dims 32 64 128] [--threads 1 2] [--losses zerosum bpr] [--optimizers SGD Adagrad Adam SparseAdam]
        [--output benchmarks/results/training-cpu] [--quick]

Data come from the folder that ZEROSUM_EXT_DATA names; absent ones are skipped. Results are merged into those that
OUTPUT has already, so that the parts can be measured one after another. --quick runs everything on little generated
data.

engines     whole epochs, sampling included: Hogwild and exact SGD, implicit's, cornac's and buffalo's BPR (each with
            its own threads and sampling; a draw that they skip counts as a triple; buffalo verifies its negatives).
negatives   softmax and CCL with K negatives: both engines, with and without shared negatives, eager PyTorch; and the
            share of the processor's multiply-adds that shared negatives reach.
optimizers  the exact step of each optimizer and batch size against eager PyTorch (gradients as dense tensors with
            torch.optim's fused kernels, and as sparse ones) and torch.compile of its forward and backward pass.
            PyTorch is given the triples of zx.TripletLoader, which makes it faster than torch.randint and rejection
            would. What takes long is timed on so many steps as fill a slice of time.
large       10 M users x 1 M items x 100 M interactions, d = 64: a slice of the epoch, paired with MovieLens-1M, and the
            peak of the memory. implicit and cornac, which cannot stop within an epoch, get a sample of the interactions
            as their matrix, with tables of all users and items.

All methods train the same tables in turn, round by round; a ratio is the median of the rounds' ratios, its spread their
quartiles.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import importlib.metadata
import importlib.util
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _timing
import bench_losses
import bench_sampling
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn import functional as F

import zerosum_ext as zx
from zerosum_ext import _ops
from zerosum_ext.data import datasets
from zerosum_ext.losses import get_loss
from zerosum_ext.training.fused import FusedStep

NAMES = bench_sampling.NAMES
PARTS = ("engines", "negatives", "optimizers", "large")
BATCHES = (256, 4096, 65_536)
RATES = {"SGD": 0.05, "Adagrad": 0.01, "Adam": 1e-3, "SparseAdam": 1e-3}
PEERS = ("implicit", "cornac", "buffalo")
QUALITY = ("ndcg@10", "recall@20", "pri", "pop_q_at_1")
LARGE = (10_000_000, 1_000_000, 100_000_000)
SHOWN = ("hogwild bpr", "hogwild zerosum", "exact bpr 65536", "exact zerosum 256", "exact zerosum 4096")
TARGETS = {"hogwild": 2.5, "eager": 10.0, "large": 3.0, "shared": 15.0, "share": 0.5}
# Exact steps against the fastest peer, by the size of the batch.
EXACT_TARGETS = {256: 1.2, 4096: 1.5, 65536: 2.0}


@dataclass
class Method:
    """A way to train: ``run(steps)`` goes on for so many steps and returns its seconds and the triples seen."""

    steps: int  # of an epoch
    run: Callable[[int], tuple[float, int]]
    whole: bool = True  # epochs; else as many steps as fill a slice of time
    skipped: float = 0.0  # share of the triples that it drew and then left out (negatives that are none)


def paired(methods: Mapping[str, Method], rounds: int, slice_seconds: float) -> dict[str, np.ndarray]:
    """Seconds a triple [rounds] of each method; methods take turns, each round beginning with another one."""
    steps = {}
    for name, method in methods.items():
        # The first call compiles, allocates and makes what sampling looks up.
        method.run(method.steps if method.whole else 1)
        count = method.steps if method.whole else 1
        while not method.whole and count < method.steps:
            seconds, _ = method.run(count)
            if seconds > slice_seconds / 2:
                break
            count = min(method.steps, math.ceil(count * min(8.0, 1.1 * slice_seconds / max(seconds, 1e-6))))
        steps[name] = count
    out: dict[str, list[float]] = {name: [] for name in methods}
    names = list(methods)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds, triples = methods[name].run(steps[name])
            out[name].append(seconds / triples)
    return {name: np.array(values) for name, values in out.items()}


# ------------------------------------------------------------------------------------------------------------ methods


def optimizer_of(name: str, model: zx.MatrixFactorization, **options: Any) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = getattr(torch.optim, name)(list(model.parameters()), lr=RATES[name], **options)
    return made


def spans(samples: int, batch: int, at_once: int) -> Callable[[int], Iterator[tuple[int, int, int]]]:
    """What calls of a method train on: (epoch, first sample, end) of runs of at most ``at_once`` steps, going on where
    the last call stopped."""
    steps, position = -(-samples // batch), 0

    def walk(count: int) -> Iterator[tuple[int, int, int]]:
        nonlocal position
        while count > 0:
            epoch, step = divmod(position, steps)
            now = min(count, at_once, steps - step)
            yield epoch, step * batch, min((step + now) * batch, samples)
            position, count = position + now, count - now

    return walk


def ours(
    x: zx.Interactions,
    model: zx.MatrixFactorization,
    loss: str,
    optimizer: str,
    batch: int,
    *,
    hogwild: bool = False,
    negatives: int = 1,
    shared: bool = False,
) -> Method:
    """What ``fit(engine="fused")`` or "hogwild" does in an epoch: samples, and trains on them."""
    loader = zx.TripletLoader(x, batch, seed=1, negatives=negatives, negatives_shared=shared)
    step = FusedStep(model, get_loss(loss), optimizer_of(optimizer, model), asynchronous=hogwild)
    walk = spans(loader.num_samples, batch, step.steps_at_once(batch))  # as fit does

    def run(steps: int) -> tuple[float, int]:
        start, triples = time.perf_counter(), 0
        for epoch, first, end in walk(steps):
            step.draw_and_train(loader, first, end, epoch)
            triples += end - first
        return time.perf_counter() - start, triples

    return Method(len(loader), run)


def objective_of(loss: str, model: zx.MatrixFactorization, sparse: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of users [B] and items [2, B] in plain PyTorch, every table looked up once."""

    def objective(users: Tensor, items: Tensor) -> Tensor:
        user = F.embedding(users, model.user_embedding, sparse=sparse)
        item = F.embedding(items, model.item_embedding, sparse=sparse)
        if loss == "bpr":
            return F.softplus((user * (item[1] - item[0])).sum(-1)).mean()
        scores = (user * item).sum(-1)
        return bench_losses.stable_zerosum(scores[0], scores[1])

    return objective


def eager(
    x: zx.Interactions,
    model: zx.MatrixFactorization,
    objective: Callable[[Tensor, Tensor], Tensor],
    optimizer: str,
    batch: int,
    *,
    fused: bool = False,
) -> Method:
    loader = zx.TripletLoader(x, batch, seed=1)
    stepper = optimizer_of(optimizer, model, **({"fused": True} if fused else {}))
    walk = spans(loader.num_samples, batch, 1)

    def run(steps: int) -> tuple[float, int]:
        start, triples = time.perf_counter(), 0
        for epoch, first, end in walk(steps):
            users, positives, negatives = loader.samples_between(first, end, epoch)
            stepper.zero_grad(set_to_none=True)
            objective(users, torch.stack((positives, negatives))).backward()
            stepper.step()
            triples += end - first
        seconds = time.perf_counter() - start
        for table in model.parameters():
            table.grad = None
        return seconds, triples

    return Method(len(loader), run, whole=False)


def implicit_bpr(matrix: sp.csr_matrix, model: zx.MatrixFactorization, threads: int) -> Method:
    """implicit's BPR, its last number of a row being the item's bias: rows of d numbers as ours. Its own clock, which
    leaves out what a call of fit does before the first epoch."""
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    peer = BayesianPersonalizedRanking(
        factors=model.embedding_dim - 1,
        learning_rate=0.05,
        iterations=1,
        num_threads=threads,
        random_state=np.random.default_rng(0),
    )
    peer.user_factors, peer.item_factors = (t.detach().numpy() for t in (model.user_embedding, model.item_embedding))

    def run(steps: int) -> tuple[float, int]:
        epochs: list[tuple[float, int]] = []
        for _ in range(steps):
            peer.fit(matrix, show_progress=False, callback=lambda _, took, __, out: epochs.append((took, out)))
        method.skipped = epochs[-1][1] / matrix.nnz
        return sum(seconds for seconds, _ in epochs), steps * matrix.nnz

    method = Method(1, run)
    return method


def cornac_bpr(
    matrix: sp.csr_matrix, model: zx.MatrixFactorization, threads: int, rate: float = 0.05, l2: float = 0.01
) -> Method:
    """cornac's BPR without biases: the compiled epoch that its fit calls."""
    from cornac.models.bpr.recom_bpr import BPR, RNGVector

    peer = BPR(k=model.embedding_dim, learning_rate=rate, lambda_reg=l2, use_bias=False)
    tables = [t.detach().numpy() for t in (model.user_embedding, model.item_embedding)]
    users = np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))
    items, bias = np.arange(matrix.shape[1], dtype=np.int32), np.zeros(matrix.shape[1], np.float32)
    random = (RNGVector(threads, len(users) - 1, 1), RNGVector(threads, len(items) - 1, 2))

    def run(steps: int) -> tuple[float, int]:
        start = time.perf_counter()
        for _ in range(steps):
            _, out = peer._fit_sgd(*random, threads, users, matrix.indices, items, matrix.indptr, *tables, bias)
            method.skipped = out / len(users)
        return time.perf_counter() - start, steps * len(users)

    method = Method(1, run)
    return method


def buffalo_peer(
    matrix: sp.csr_matrix, model: zx.MatrixFactorization, threads: int, rate: float, l2: float, epochs: int
) -> tuple[Any, Callable[[], None]]:
    """The compiled part of buffalo's BPR, which its train calls for each piece of its data file, and an epoch of it.

    It has no biases, and verifies its negatives. Between `launch_workers` and `join` it trains at most `epochs` epochs.
    """
    from buffalo.algo._bpr import CyBPRMF
    from buffalo.algo.options import BPRMFOption

    tables = [t.detach().numpy() for t in (model.user_embedding, model.item_embedding)]
    bias, popularity = np.zeros((matrix.shape[1], 1), np.float32), np.zeros(matrix.shape[1], np.int64)
    ends, keys = matrix.indptr[1:].astype(np.int64), matrix.indices.astype(np.int32)
    options = dict(BPRMFOption().get_default_option(), lr=rate, min_lr=rate, use_bias=False, verify_neg=True)
    options |= {"d": model.embedding_dim, "num_workers": threads, "num_iters": epochs}
    options |= {"reg_u": l2, "reg_i": l2, "reg_j": l2, "compute_loss_on_training": False}
    peer = CyBPRMF()
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(options, file)
        file.flush()
        if not peer.init(file.name.encode()):
            raise RuntimeError(f"buffalo does not take its options {options}")
    peer.initialize_model(*tables, bias, matrix.nnz)
    peer.set_cumulative_table(popularity, matrix.shape[1])

    kept = (tables, bias, popularity)  # the peer has their addresses alone

    def epoch() -> None:
        assert kept
        peer.add_jobs(0, matrix.shape[0], ends, keys)
        peer.update_parameters()
        peer.wait_until_done()

    return peer, epoch


def buffalo_bpr(
    matrix: sp.csr_matrix, model: zx.MatrixFactorization, threads: int, rate: float = 0.05, l2: float = 0.0
) -> Method:
    """buffalo's BPR by SGD. A call starts the threads and joins them, once for all epochs."""

    def run(steps: int) -> tuple[float, int]:
        peer, epoch = buffalo_peer(matrix, model, threads, rate, l2, steps)
        start = time.perf_counter()
        peer.launch_workers()
        for _ in range(steps):
            epoch()
        peer.join()
        return time.perf_counter() - start, steps * matrix.nnz

    return Method(1, run)


def peers(matrix: sp.csr_matrix, model: zx.MatrixFactorization, threads: int) -> dict[str, Method]:
    """Those of the peers that are installed."""
    makers = {"implicit": implicit_bpr, "cornac": cornac_bpr, "buffalo": buffalo_bpr}
    return {name: makers[name](matrix, model, threads) for name in PEERS if importlib.util.find_spec(name)}


def csr_matrix_of(x: zx.Interactions) -> sp.csr_matrix:
    """Interactions as other libraries take them."""
    users, items = (t.numpy() for t in x.pairs())
    return csr_of(users, items, x.shape)


def csr_of(users: np.ndarray, items: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    """float32 values and int32 indices, which both peers take as they are."""
    pointers = np.concatenate(([0], np.bincount(users, minlength=shape[0]).cumsum())).astype(np.int32)
    return sp.csr_matrix((np.ones(len(items), np.float32), items.astype(np.int32), pointers), shape=shape)


# -------------------------------------------------------------------------------------------------------------- parts


def multiply_adds(threads: int) -> float:
    """GFLOP/s of products of square matrices that the caches hold, each thread with its own: a speed of the machine."""
    a = torch.rand(threads, 256, 256)
    best = math.inf
    for _ in range(40):
        start = time.perf_counter()
        torch.bmm(a, a)
        best = min(best, time.perf_counter() - start)
    return 2e-9 * a.numel() * 256 / best


def eager_row_loss(x: zx.Interactions, model: zx.MatrixFactorization, loss: str, batch: int, negatives: int) -> Method:
    """The same loss of K negatives in plain PyTorch, with torch.optim's fused SGD."""
    loader = zx.TripletLoader(x, batch, seed=1, negatives=negatives)
    stepper = optimizer_of("SGD", model, fused=True)
    walk = spans(loader.num_samples, batch, 1)

    def run(steps: int) -> tuple[float, int]:
        start, triples = time.perf_counter(), 0
        for epoch, first, end in walk(steps):
            users, positives, drawn = loader.samples_between(first, end, epoch)
            user, items = model.user_embedding[users], torch.cat((positives.unsqueeze(1), drawn), 1)
            scores = torch.bmm(F.embedding(items, model.item_embedding), user.unsqueeze(2)).squeeze(2)
            if loss == "ccl":
                value = (1 - scores[:, 0] + torch.relu(scores[:, 1:]).mean(1)).mean()
            else:
                value = (torch.logsumexp(scores, 1) - scores[:, 0]).mean()
            stepper.zero_grad(set_to_none=True)
            value.backward()
            stepper.step()
            triples += end - first
        seconds = time.perf_counter() - start
        for table in model.parameters():
            table.grad = None
        return seconds, triples

    return Method(len(loader), run, whole=False)


def many_negatives(
    name: str, x: zx.Interactions, d: int, threads: int, rounds: int, loss: str, negatives: int, slice_seconds: float
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    before = multiply_adds(threads)
    model, cosines = (zx.MatrixFactorization(*x.shape, d, seed=0, normalize=n) for n in (False, True))
    batch = min(4096, x.nnz)
    make = functools.partial(ours, x, loss=loss, optimizer="SGD", batch=batch, negatives=negatives)
    methods = {
        "exact": make(model=model),
        "exact, shared": make(model=model, shared=True),
        "exact, shared, cosines": make(model=cosines, shared=True),
        "hogwild": make(model=model, hogwild=True),
        "hogwild, shared": make(model=model, hogwild=True, shared=True),
        "eager": eager_row_loss(x, model, loss, batch, negatives),
    }
    for method in methods.values():
        method.whole = False
    seconds = paired(methods, rounds, slice_seconds)
    after = multiply_adds(threads)
    speed = {m: float(1e-6 * negatives / np.median(v)) for m, v in seconds.items()}
    return {
        "key": ["negatives", name, d, threads, loss, negatives],
        "million_per_second": speed,
        "faster_than": {"eager": {m: _timing.ratio(seconds, "eager", m) for m in seconds if m != "eager"}},
        "gflops_before_after": [before, after],
        # Three products of 2 d operations a pair.
        "share_of_multiply_adds": 6e-3 * d * speed["exact, shared"] / max(before, after),
    }


def engines(name: str, x: zx.Interactions, d: int, threads: int, rounds: int, batches: Sequence[int]) -> dict[str, Any]:
    torch.set_num_threads(threads)
    before = multiply_adds(threads)
    model = zx.MatrixFactorization(*x.shape, d, seed=0)
    methods = {f"hogwild {loss}": ours(x, model, loss, "SGD", 4096, hogwild=True) for loss in ("zerosum", "bpr")}
    methods |= {f"exact zerosum {batch}": ours(x, model, "zerosum", "SGD", batch) for batch in batches}
    methods[f"exact bpr {batches[-1]}"] = ours(x, model, "bpr", "SGD", batches[-1])
    methods |= peers(csr_matrix_of(x), model, threads)
    seconds = paired(methods, rounds, math.inf)
    return {
        "key": ["engines", name, d, threads],
        "shape": [*x.shape, x.nnz],
        "million_per_second": {m: float(1e-6 / np.median(v)) for m, v in seconds.items()},
        "skipped": {m: methods[m].skipped for m in PEERS if m in methods},
        "gflops_before_after": [before, multiply_adds(threads)],
        "faster_than": {
            peer: {m: _timing.ratio(seconds, peer, m) for m in seconds if m not in PEERS}
            for peer in PEERS
            if peer in seconds
        },
    }


def optimizers(
    name: str,
    x: zx.Interactions,
    d: int,
    threads: int,
    rounds: int,
    batches: Sequence[int],
    losses: Sequence[str],
    kinds: Sequence[str],
    slice_seconds: float,
    compiled: bool,
) -> Iterator[dict[str, Any]]:
    torch.set_num_threads(threads)
    model = zx.MatrixFactorization(*x.shape, d, seed=0)
    for loss in losses:
        dense, sparse = objective_of(loss, model, False), objective_of(loss, model, True)
        for batch in batches:
            batch = min(batch, x.nnz)
            torch.compiler.reset()
            # One compilation for each shape: the best that torch.compile can do.
            traced = torch.compile(dense, dynamic=False) if compiled else None
            for optimizer in kinds:
                methods = {"ours": ours(x, model, loss, optimizer, batch)}
                # (Dense Adam's first steps, and calls of few, are not what an epoch costs.)
                methods["ours"].whole = optimizer == "Adam" and batch < x.nnz // 4
                if optimizer != "SparseAdam":
                    methods["dense"] = eager(x, model, dense, optimizer, batch, fused=True)
                    if traced is not None:
                        methods["compiled"] = eager(x, model, traced, optimizer, batch, fused=True)
                if optimizer != "Adam":
                    methods["sparse"] = eager(x, model, sparse, optimizer, batch)
                seconds = paired(methods, rounds, slice_seconds)
                best = np.min([seconds[m] for m in ("dense", "sparse") if m in seconds], axis=0)
                yield {
                    "key": ["optimizers", name, d, threads, loss, optimizer, batch],
                    "million_per_second": {m: float(1e-6 / np.median(v)) for m, v in seconds.items()},
                    "faster_than": {
                        "best eager": _timing.spread(best / seconds["ours"]),
                        **{m: _timing.ratio(seconds, m, "ours") for m in seconds if m != "ours"},
                    },
                }


def power_law(shape: tuple[int, int, int], path: str | None) -> zx.Interactions:
    """bench_sampling's matrix, kept in a .npz file where a path is given: minutes to make, seconds to read."""
    if path is None or not Path(path).exists():
        x = bench_sampling.power_law(*shape)
        if path is None:
            return x
        np.savez(path, indptr=x.indptr.numpy(), indices=x.indices.numpy())
        del x
    with np.load(path, allow_pickle=False) as file:
        indptr, indices = file["indptr"], file["indices"]
    matrix = sp.csr_matrix((np.ones(len(indices), np.int8), indices, indptr), shape=shape[:2])
    return zx.Interactions.from_scipy(matrix)


def resident(key: str) -> float:
    """GiB of VmRSS (now) or VmHWM (the most so far)."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(key))
    return int(line.split()[1]) / (1 << 20)


def large(
    x: zx.Interactions, small_name: str, small: zx.Interactions, threads: int, rounds: int, d: int, samples: int
) -> list[dict[str, Any]]:
    """Speed on a slice of ``samples`` triples, with MovieLens-1M in the same rounds; and the memory."""
    torch.set_num_threads(threads)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the making of the matrix left behind would hide the peak
    Path("/proc/self/clear_refs").write_text("5")
    memory: dict[str, Any] = {"matrix": resident("VmRSS:")}
    model = zx.MatrixFactorization(*x.shape, d, seed=0)
    memory["matrix and tables"] = resident("VmRSS:")
    memory["peak while the tables are drawn"] = resident("VmHWM:")
    batches = [min(b, samples) for b in BATCHES]
    methods = {f"hogwild {loss}": ours(x, model, loss, "SGD", 4096, hogwild=True) for loss in ("zerosum", "bpr")}
    methods["hogwild zerosum"].run(-(-samples // 4096))
    memory["peak with Hogwild"] = resident("VmHWM:")
    methods |= {f"exact zerosum {b}": ours(x, model, "zerosum", "SGD", b) for b in batches}
    # (One optimizer's: the state of another would be 5.6 GB more.)
    methods[f"exact Adam zerosum {batches[1]}"] = ours(x, model, "zerosum", "Adam", batches[1])
    methods[f"exact Adam zerosum {batches[1]}"].run(1)
    memory["peak with Adam"] = resident("VmHWM:")
    rng = np.random.default_rng(0)
    edges = np.unique(rng.integers(0, x.nnz, samples))
    users = np.searchsorted(x.indptr.numpy(), edges, side="right") - 1
    methods |= peers(csr_of(users, x.indices.numpy()[edges], x.shape), model, threads)
    sparse = objective_of("zerosum", model, True)
    for b in batches[1:]:
        methods[f"eager sparse SGD zerosum {b}"] = eager(x, model, sparse, "SGD", b)
    tables = zx.MatrixFactorization(*small.shape, d, seed=0)
    others = {"hogwild zerosum": ours(small, tables, "zerosum", "SGD", 4096, hogwild=True)}
    others |= {f"exact zerosum {b}": ours(small, tables, "zerosum", "SGD", b) for b in batches}
    others |= peers(csr_matrix_of(small), tables, threads)
    whole = {**methods, **{f"{small_name}: {name}": method for name, method in others.items()}}
    for name, method in whole.items():
        if not name.startswith(small_name) and name not in PEERS:
            # A slice of the epoch stands for it: runs go on where the last one stopped.
            batch = next((b for b in reversed(batches) if name.endswith(f" {b}")), 4096)
            method.steps, method.whole = max(1, samples // batch), not name.startswith("eager")
    seconds = paired(whole, rounds, 1.0)
    return [
        {
            "key": ["large", threads],
            "shape": [*x.shape, x.nnz],
            "d": d,
            "samples": samples,
            "small": small_name,
            "million_per_second": {m: float(1e-6 / np.median(v)) for m, v in seconds.items()},
            "times_small": {m: _timing.ratio(seconds, m, f"{small_name}: {m}") for m in others},
            "faster_than": {p: {m: _timing.ratio(seconds, p, m) for m in methods} for p in PEERS if p in methods},
        },
        {"key": ["memory"], "shape": [*x.shape, x.nnz], "d": d, "gib": memory},
    ]


# ------------------------------------------------------------------------------------------------- pytest-benchmark


@pytest.mark.parametrize("method", ["hogwild", "exact 4096"])
@pytest.mark.parametrize("name", NAMES)
def test_training(benchmark: Any, name: str, method: str) -> None:
    x = bench_sampling.real(name)
    if x is None:
        pytest.skip(f"ZEROSUM_EXT_DATA names no folder with {name}.npz")
    model = zx.MatrixFactorization(*x.shape, 64, seed=0)
    trained = ours(x, model, "zerosum", "SGD", 4096, hogwild=method == "hogwild")
    benchmark.extra_info["samples"] = x.nnz
    benchmark(trained.run, trained.steps)


# ------------------------------------------------------------------------------------------------------------- report


def shown(ratio: Sequence[float] | None) -> str:
    return "" if ratio is None else str(_timing.Spread(*ratio))


def speed(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def targets(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """What was wanted at d = 64 on two threads, what was measured, and whether that is enough."""
    out: list[tuple[str, str, str, str]] = []

    def judge(what: str, goal: str, ratio: Sequence[float] | None, enough: Callable[[float], bool]) -> None:
        if ratio is not None:
            out.append((what, goal, shown(ratio), "met" if enough(ratio[1]) else "**missed**"))

    for row in rows:
        key = row["key"]
        if key[0] == "engines" and key[2:4] == [64, 2]:
            goals = {"hogwild zerosum": TARGETS["hogwild"]}
            goals |= {f"exact zerosum {batch}": goal for batch, goal in EXACT_TARGETS.items()}
            for method, goal in goals.items():
                ratios = {peer: r[method] for peer, r in row["faster_than"].items() if method in r}
                if ratios:  # the fastest peer is the one that ours is the least ahead of
                    peer = min(ratios, key=lambda name: ratios[name][1])
                    what = f"{key[1]}: {method.replace('zerosum', 'Zerosum')} against {peer}'s BPR"
                    judge(what, f">= {goal:g} x", ratios[peer], lambda r, goal=goal: r >= goal)
        if key[0] == "negatives" and key[2:4] == [64, 2] and key[4:6] == ["sampled_softmax", 64]:
            what = f"{key[1]}: softmax, 64 shared negatives"
            goal = TARGETS["shared"]
            judge(
                f"{what}, against eager PyTorch",
                f">= {goal:g} x",
                row["faster_than"]["eager"]["exact, shared"],
                lambda r, goal=goal: r >= goal,
            )
            share = row["share_of_multiply_adds"]
            judge(
                f"{what}, share of multiply-adds",
                f">= {TARGETS['share']:g}",
                (share, share, share),
                lambda r: r >= TARGETS["share"],
            )
        if key[0] == "optimizers" and key[2:5] == [64, 2, "zerosum"]:
            judge(
                f"{key[1]}: exact {key[5]} Zerosum, batch {key[6]}, against the best eager PyTorch",
                f">= {TARGETS['eager']:g} x",
                row["faster_than"]["best eager"],
                lambda r: r >= TARGETS["eager"],
            )
        if key == ["large", 2]:
            for method, ratio in row["times_small"].items():
                if method not in PEERS:
                    judge(
                        f"time a triple, 10 M users against {row['small']}: {method}",
                        f"<= {TARGETS['large']:g} x",
                        ratio,
                        lambda r: r <= TARGETS["large"],
                    )
    return out


def report(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The paragraphs and tables of all results at hand."""
    parts: list[str] = []
    by_part: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_part.setdefault(row["key"][0], []).append(row)
    parts += [row["text"] for row in by_part.get("note", [])]
    judged = targets(rows)
    if judged:
        parts += ["## Targets", "d = 64, two threads: how many times as fast (or long), median of rounds (quartiles)."]
        parts.append(_timing.table(("what", "wanted", "measured", ""), judged))
    found = sorted(by_part.get("engines", []), key=lambda r: [NAMES.index(r["key"][1]) if r["key"][1] in NAMES else 9])
    if found:
        skips = list(
            {
                (p, r["key"][1]): f"{p} {100 * v:.2g} % of {r['key'][1]}"
                for r in found
                for p, v in r["skipped"].items()
            }.values()
        )
        names = list(dict.fromkeys(m for r in found for m in r["million_per_second"]))
        parts += [
            "## Whole epochs",
            "Million triples a second, sampling included, and how many times as fast as implicit's BPR Hogwild (h)\n"
            "and the exact step of the largest batch (e) are with Zerosum. Draws that a peer skips, since the\n"
            f"negative is none, count as triples of its: {', '.join(skips)}.",
            _timing.table(
                ("data", "d", "threads", *names, "h / implicit", "e / implicit"),
                [
                    (
                        *r["key"][1:],
                        *(speed(r["million_per_second"].get(m)) for m in names),
                        shown(r["faster_than"].get("implicit", {}).get("hogwild zerosum")),
                        shown(
                            next(
                                (
                                    v
                                    for m, v in reversed(r["faster_than"].get("implicit", {}).items())
                                    if m.startswith("exact zerosum")
                                ),
                                None,
                            )
                        ),
                    )
                    for r in found
                ],
            ),
        ]
    parts += fastest_peers(by_part.get("engines", []))
    found = by_part.get("negatives", [])
    if found:
        names = list(dict.fromkeys(m for r in found for m in r["million_per_second"]))
        parts += [
            "## Many negatives",
            "Million pairs of a positive and a negative a second, SGD, batches of 4096, sampling included; shared: 64\n"
            "samples share their negatives. Then how many times as fast as eager PyTorch, and the share of the\n"
            "multiply-adds of torch.bmm that the exact step with shared negatives reaches (GFLOP/s before and after).",
            _timing.table(
                ("data", "d", "threads", "loss", "K", *names, "shared / eager", "exact / eager", "share", "GFLOP/s"),
                [
                    (
                        *r["key"][1:],
                        *(speed(r["million_per_second"].get(m)) for m in names),
                        shown(r["faster_than"]["eager"]["exact, shared"]),
                        shown(r["faster_than"]["eager"]["exact"]),
                        f"{100 * r['share_of_multiply_adds']:.0f} %",
                        " ".join(f"{g:.0f}" for g in r["gflops_before_after"]),
                    )
                    for r in found
                ],
            ),
        ]
    found = by_part.get("optimizers", [])
    if found:
        parts += [
            "## Exact steps of every optimizer, against PyTorch",
            "Million triples a second, sampling included. dense: eager, dense gradients, torch.optim with fused=True;\n"
            "sparse: eager, sparse gradients; compiled: torch.compile of dense.",
            _timing.table(
                (
                    "data",
                    "loss",
                    "optimizer",
                    "batch",
                    "d",
                    "threads",
                    "ours",
                    "dense",
                    "sparse",
                    "compiled",
                    "ours / best eager",
                    "ours / compiled",
                ),
                [
                    (
                        r["key"][1],
                        *r["key"][4:7],
                        *r["key"][2:4],
                        *(speed(r["million_per_second"].get(m)) for m in ("ours", "dense", "sparse", "compiled")),
                        shown(r["faster_than"]["best eager"]),
                        shown(r["faster_than"].get("compiled")),
                    )
                    for r in found
                ],
                text_columns=3,
            ),
        ]
    for r in by_part.get("large", []):
        users, items, nnz = r["shape"]
        parts += [
            f"## {users} users x {items} items x {nnz} interactions, d = {r['d']}, threads {r['key'][1]}",
            f"Million triples a second on slices of {r['samples']} triples, how many times as fast as the peers, and\n"
            f"how many times as long a triple takes as on {r['small']}, in the same rounds.",
            _timing.table(
                ("method", "M/s", *(f"/ {p}" for p in r["faster_than"]), f"{r['small']}, M/s", "times as long"),
                [
                    (
                        m,
                        speed(v),
                        *(shown(ratios.get(m)) for ratios in r["faster_than"].values()),
                        speed(r["million_per_second"].get(f"{r['small']}: {m}")),
                        shown(r["times_small"].get(m)),
                    )
                    for m, v in r["million_per_second"].items()
                    if ": " not in m
                ],
            ),
        ]
    for r in by_part.get("memory", []):
        users, items, nnz = r["shape"]
        parts += [
            f"Resident memory of the process, {users} x {items} x {nnz}, d = {r['d']} (GiB; the peak is the kernel's\n"
            "high-water mark after the matrix was made; one after another in this order):",
            _timing.table(("", "GiB"), [(name, f"{v:.2f}") for name, v in r["gib"].items()]),
        ]
    qualities: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for r in by_part.get("quality", []):
        qualities.setdefault((r["key"][1], r["settings"]), []).append(r)
    for (data, settings), found in qualities.items():
        parts += [
            f"## Quality on {data}, 80/10/10",
            f"{settings}. Test figures, mean over seeds (lowest to highest); rate and epoch are chosen by NDCG@10 on\n"
            "the validation part. Seconds of training alone.",
            _timing.table(
                ("way", "loss", "lr", "of", "seeds", *QUALITY, "epochs", "seconds", "seconds an epoch"),
                [quality_row(r) for r in found],
                text_columns=2,
            ),
        ]
    return parts


def fastest_peers(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of each way against the fastest peer of its run."""
    rows = []
    for r in found:
        measured = {p: r["million_per_second"][p] for p in PEERS if p in r["million_per_second"]}
        if not measured or "gflops_before_after" not in r:
            continue
        best = max(measured, key=lambda p: measured[p])
        ratios = r["faster_than"][best]
        machine = " ".join(f"{g:.0f}" for g in r["gflops_before_after"])
        rows.append((*r["key"][1:], best, machine, *(shown(ratios.get(m)) for m in SHOWN)))
    if not rows:
        return []
    header = ("data", "d", "threads", "fastest peer", "GFLOP/s", *SHOWN)
    return [
        "How many times as fast as the fastest peer; GFLOP/s of torch.bmm before and after the run.",
        _timing.table(header, rows),
    ]


def quality_row(result: Mapping[str, Any]) -> tuple[object, ...]:
    runs = result["runs"]

    def mean(values: Sequence[float]) -> str:
        return f"{np.mean(values):.3g}"

    cells = [[run[name] for run in runs] for name in QUALITY]
    return (
        *result["key"][2:],
        f"{result['rate']:g}",
        ", ".join(f"{rate}" + " (diverged)" * (value < 0) for rate, value in result["tried"].items()),
        len(runs),
        *(f"{np.mean(c):.4f} ({min(c):.4f} to {max(c):.4f})" for c in cells),
        mean([run["epochs"] for run in runs]),
        mean([run["seconds"] for run in runs]),
        mean([run["seconds"] / run["epochs"] for run in runs]),
    )


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PEERS if importlib.util.find_spec(name)}


def merge(output: str | None, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the report of these results, and of those that OUTPUT.json holds of other keys; writes both files."""
    rows = json.loads(json.dumps(rows))  # tuples become lists, as those of the file are
    rows = _timing.earlier_rows(output, rows, lambda row: row["key"]) + list(rows)
    rows = sorted(rows, key=lambda r: ("note", *PARTS, "memory", "quality").index(r["key"][0]))
    text = "Measured by `python benchmarks/bench_training.py`, part after part, and `benchmarks/training_quality.py`."
    info = _timing.machine() | versions()
    _timing.write_results(output, "Training on the CPU", info, [text, *report(rows)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="write OUTPUT.md and OUTPUT.json, merged with what is there")
    parser.add_argument("--part", nargs="*", choices=PARTS, default=list(PARTS), help="none: only --note")
    parser.add_argument("--data", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--dims", type=int, nargs="+", default=[32, 64, 128], help="of the engines; others: 64")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of the engines; others: the last one")
    parser.add_argument(
        "--losses", nargs="+", choices=("zerosum", "bpr"), default=["zerosum"], help="of the optimizers"
    )
    parser.add_argument("--optimizers", nargs="+", choices=tuple(RATES), default=list(RATES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--matrix", help="a .npz file to keep the matrix of the large part in")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--note", help="something about the circumstances, to stand at the head of the report")
    parser.add_argument("--quick", action="store_true", help="a smoke test on generated data: no figures to quote")
    arguments = parser.parse_args()
    if not _ops.has_op("mf_train", torch.device("cpu")):
        raise SystemExit("bench_training.py: build the compiled kernels first")
    quick, rounds, batches = arguments.quick, arguments.rounds, BATCHES
    dims, threads, d, samples, slice_seconds = arguments.dims, arguments.threads, 64, 2_000_000, 0.1
    if quick:
        rounds, batches, dims, threads, d, samples, slice_seconds = 2, (64, 512), [8], [1], 8, 4096, 1e-3
    rows: list[dict[str, Any]] = []
    data: dict[str, zx.Interactions] = {}
    if quick:
        data["generated"] = datasets.power_law(300, 200, 5000)
    else:
        for name in arguments.data:
            x = bench_sampling.real(name)
            if x is None:
                print(f"{name}: skipped, ZEROSUM_EXT_DATA names no folder with {name}.npz")
            else:
                data[name] = x
    for name, x in data.items():
        if "engines" in arguments.part:
            rows += [engines(name, x, dim, n, rounds, batches) for n in threads for dim in dims]
        if "negatives" in arguments.part:
            losses = (("sampled_softmax", 4),) if quick else (("sampled_softmax", 64), ("ccl", 64))
            rows += [many_negatives(name, x, d, n, rounds, *one, slice_seconds) for n in threads for one in losses]
        if "optimizers" in arguments.part:
            compiled = not (quick or arguments.no_compile)
            kinds = arguments.optimizers
            rows += optimizers(
                name, x, d, threads[-1], rounds, batches, arguments.losses, kinds, slice_seconds, compiled
            )
    if "large" in arguments.part and data:
        small = next(iter(data))
        shape = (1000, 500, 20_000) if quick else LARGE
        x = power_law(shape, None if quick else arguments.matrix)
        rows += large(x, small, data[small], threads[-1], rounds, d, samples)
    if arguments.note:
        rows.append({"key": ["note"], "text": arguments.note})
    merge(arguments.output, rows)


if __name__ == "__main__":
    main()
