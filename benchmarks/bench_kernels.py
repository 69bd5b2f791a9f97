"""What the GPU does in a call: the time of each kernel, launches and graph nodes, beside the bytes that must be moved.

    python benchmarks/bench_kernels.py [--device cuda] [--output benchmarks/results/kernels-NAME-DATE] [--calls 20]
        [--only losses steps ...] [--seconds 60] [--small] [--plain]

torch.profiler records the kernels, so that neither the host's time nor gaps between launches count: the first question
to a slow call is which of them takes its time. A call's bytes are those that the algorithm must read and write at
least (benchmarks/ROOFLINE.md); its share of a copy is those bytes, by the time of its kernels alone, against what a
copy from memory to memory moves. Graph nodes are counted in the captured call. No case begins once --seconds have
passed. --plain makes a few calls, which have the kernels that matter most in them, once, and measures nothing: for
another profiler, such as ncu. --device cpu runs the same code with the operators of the CPU in the kernels' place: it
tells whether the script is in order, and nothing else.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_gpu
import torch
from _timing import machine, rotating, table, write_results
from bench_gpu import DIM, Setting
from torch.profiler import ProfilerActivity, profile

import zerosum_ext as zx
from zerosum_ext import _ops
from zerosum_ext.data import sampling
from zerosum_ext.models import folding
from zerosum_ext.training.fused import FusedStep

# Words that a pair's loss and its gradients move where derivatives are written once: both scores, both derivatives.
LOSS_WORDS = {"bpr": 4, "zerosum": 4, "pos2neg2": 8}


@dataclass(frozen=True)
class Case:
    """A call to look into. ``moved`` is in bytes, 0 where it is not known."""

    group: str
    name: str
    call: Callable[[], Any]
    moved: int = 0
    capturable: bool = True


def losses(s: Setting) -> Iterator[Case]:
    for name, words in LOSS_WORDS.items():
        for size in (1 << 12,) if s.small else (1 << 12, 1 << 16, 1 << 20, 1 << 24):
            shape = (size, 2) if name == "pos2neg2" else (size,)
            pos, neg = (torch.randn(shape, device=s.device, requires_grad=True) for _ in range(2))
            moved = 4 * words * size
            function = bench_gpu.peers.LOSSES[name][0]
            grads = bench_gpu.gradients(function)
            yield Case("losses", f"{name}, {size}, autograd", lambda g=grads, p=pos, n=neg: g(p, n), moved)
            direct = functools.partial(zx.loss_and_grad, pos.detach(), neg.detach(), name)
            yield Case("losses", f"{name}, {size}, loss_and_grad", direct, moved)
    rows, columns = (64, 8) if s.small else (1 << 16, 64)
    pos, neg = torch.randn(rows, device=s.device), torch.randn((rows, columns), device=s.device)
    direct = functools.partial(zx.loss_and_grad, pos, neg, "sampled_softmax")
    moved = 8 * rows * (1 + columns)
    yield Case("losses", f"sampled_softmax, {rows} x {columns}, loss_and_grad", direct, moved)


def steps(s: Setting) -> Iterator[Case]:
    in_cache, beyond = bench_gpu.shapes(s)
    kinds = [("SGD", in_cache), ("SGD", beyond), ("Adam", in_cache), ("SparseAdam", beyond)]
    for optimizer, shape in kinds:
        for size in bench_gpu.sizes(s):
            batches = bench_gpu.triples(*shape, size, s.device)
            model = zx.MatrixFactorization(*shape, DIM, seed=0, init_std=0.1, device=s.device)
            step = FusedStep(
                model, zx.ZerosumLoss(), bench_gpu.OPTIMIZERS[optimizer](model.parameters()), capturable=s.on_gpu
            )
            name = f"{optimizer}, {shape[0]} x {shape[1]}, {size} triples"
            yield Case("steps", name, rotating(step, batches), bench_gpu.step_bytes(optimizer, shape, batches[0]))


def ranking(s: Setting) -> Iterator[Case]:
    _, train, test = bench_gpu.gowalla(s.small)
    train, test = train.to(s.device), test.to(s.device)
    generator = torch.Generator().manual_seed(0)
    user, item = ((torch.randn(n, DIM, generator=generator) * 0.1).to(s.device) for n in test.shape)
    train.popularity, test.popularity  # noqa: B018  kept with the interactions
    moved = 8 * user.shape[0] * item.shape[0]  # each score is written by the product and read once
    for k in (20, 100):
        call = lambda k=k: zx.rank((user, item), train, test, k=k)  # noqa: E731
        yield Case("ranking", f"rank, {user.shape[0]} users, {item.shape[0]} items, k = {k}", call, moved, False)
    call = lambda: zx.evaluate((user, item), train, test, k=20)  # noqa: E731
    yield Case("ranking", "evaluate, all metrics, k = 20", call, moved, False)


def draws(s: Setting) -> Iterator[Case]:
    data = bench_gpu.interactions(s.small).to(s.device)
    size = 1 << (12 if s.small else 22)
    generator = torch.Generator().manual_seed(0)
    users = data.pairs()[0].cpu()
    users = users[torch.randint(0, len(users), (size,), generator=generator)].to(s.device)
    for strategy in ("uniform", "popularity"):
        chosen = sampling.NegativeSource.of(data, strategy, None, 0.75, None, True)
        yield Case("draws", f"{strategy}, {size}", lambda c=chosen: c.draw(users, 1, 0, 0, 0), 16 * size)
    loader = zx.TripletLoader(data, size, draws=1 + size // data.nnz, seed=0)
    yield Case("draws", f"triplets, {size}", lambda: loader._batch(0, 0), 24 * size)
    numbers = torch.randint(0, 1 << 40, (size,), generator=generator).to(s.device)
    at = functools.partial(chosen.draw_at, users, numbers, 1, 0, 0)
    yield Case("draws", f"popularity by numbers, {size}", at, 24 * size)
    cells = torch.arange(size, device=s.device)
    yield Case("draws", f"unshuffle, {size}", lambda: _ops.unshuffle(cells, size, 0, 0), 16 * size)


def new_users(s: Setting) -> Iterator[Case]:
    """Rows of users for frozen items. Bytes are not known: how often the samples are read, each user decides."""
    data = bench_gpu.interactions(s.small).to(s.device)
    generator = torch.Generator().manual_seed(0)
    item = (torch.randn((data.num_items, DIM), generator=generator) * 0.1).to(s.device)
    for loss in ("bpr", "zerosum"):
        settings = folding.FoldIn.of(loss, folding.usual_l2(loss), 16, 0, 1e-4, 100)
        samples = folding.samples_of(data, settings)
        kink = 0.02 if loss == "zerosum" else 0.0
        call = functools.partial(
            _ops.fold_in, item, None, *samples, None, settings.kernel, kink, settings.l2, 1e-4, 100
        )
        yield Case("new users", f"{loss}, {data.num_users} users, {len(samples[1])} samples", call)


GROUPS: dict[str, Callable[[Setting], Iterator[Case]]] = {
    "losses": losses,
    "steps": steps,
    "ranking": ranking,
    "draws": draws,
    "new users": new_users,
}


def kernels_of(call: Callable[[], Any], calls: int, on_gpu: bool) -> list[dict[str, Any]]:
    """The kernels of a call: name, launches a call, microseconds a call; those that take longest first.

    On a CPU: its operators and their own time.
    """
    for _ in range(3):
        call()
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    if on_gpu:
        torch.cuda.synchronize()
    with profile(activities=[activity]) as profiled:
        for _ in range(calls):
            call()
        if on_gpu:
            torch.cuda.synchronize()
    rows = []
    for event in profiled.key_averages():
        took = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        # The profiler lists the calls of the driver too; what ran on the device has a time there.
        if took > 0 and not (on_gpu and event.key.startswith("cuda")):
            rows.append({"kernel": event.key, "launches": event.count / calls, "microseconds": took / calls})
    return sorted(rows, key=lambda row: -row["microseconds"])


@functools.cache
def cuda_runtime() -> ctypes.CDLL:
    """The CUDA runtime that torch has loaded, wherever it came from."""
    loaded = (line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines())
    return ctypes.CDLL(next((file for file in loaded if "libcudart.so" in file), "libcudart.so"))


def graph_nodes(call: Callable[[], Any]) -> int:
    """How many nodes the call has as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        call()
    count = ctypes.c_size_t(0)
    get = cuda_runtime().cudaGraphGetNodes
    get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)]
    status = get(graph.raw_cuda_graph(), None, ctypes.byref(count))
    if status:
        raise RuntimeError(f"cudaGraphGetNodes: error {status}")
    return int(count.value)


def short(kernel: str, most: int = 60) -> str:
    """A kernel's name without its arguments and name spaces."""
    name = kernel.removeprefix("void ").split("(")[0].replace("zx::", "").replace("at::native::", "")
    return name if len(name) <= most else name[: most - 3] + "..."


def measure(s: Setting, case: Case, calls: int) -> dict[str, Any]:
    kernels = kernels_of(case.call, calls, s.on_gpu)
    result: dict[str, Any] = {
        "group": case.group,
        "what": case.name,
        "bytes": case.moved,
        "launches": sum(row["launches"] for row in kernels),
        "microseconds": sum(row["microseconds"] for row in kernels),
        "kernels": kernels,
    }
    if s.on_gpu and case.capturable:
        try:
            result["nodes"] = graph_nodes(case.call)
        except Exception as error:
            if s.gpu_is_lost():
                raise
            result["not_captured"] = bench_gpu.told(error)
    return result


def row_of(s: Setting, result: Mapping[str, Any]) -> list[object]:
    longest = result["kernels"][0] if result["kernels"] else None
    took = result["microseconds"]
    share = f"{100 * result['bytes'] / (took * 1e-6) / s.speed:.0f} %" if result["bytes"] and took else "-"
    first = f"{short(longest['kernel'])} ({100 * longest['microseconds'] / took:.0f} %)" if longest and took else "-"
    return [
        *(result["what"], first, f"{result['launches']:.3g}", result.get("nodes", "-")),
        *(f"{took:.1f}", share),
    ]


# Nodes of a CUDA graph that a call has at most: of losses by autograd and by loss_and_grad, and of fused steps.
MOST_NODES = {"autograd": 3, "loss_and_grad": 1, "triples": 10}


def targets(results: Mapping[str, Any]) -> list[list[str]]:
    """What graph nodes the calls were to have, what they have, and the verdict."""
    rows = []
    for result in (*results.get("losses", ()), *results.get("steps", ())):
        kind = next(kind for kind in MOST_NODES if result["what"].endswith(kind))
        if "nodes" in result:
            met = result["nodes"] <= MOST_NODES[kind]
            rows.append(
                [result["what"], f"{MOST_NODES[kind]} nodes", str(result["nodes"]), "met" if met else "**missed**"]
            )
    return rows


# Of a group's cases, those that --plain makes: the kernels that matter most, in few launches. (Rankings have a launch a
# block of users: they come last.)
PLAIN = {
    "losses": r"zerosum, .*, loss_and_grad|sampled_softmax, ",
    "steps": r"SGD, .* triples",
    "draws": r"uniform|popularity, ",
    "ranking": r"rank, .*, k = 20",
}


def make_calls(s: Setting, groups: Iterable[str], seconds: float) -> None:
    """Make some calls once, as long as there is time: a profiler that runs this script sees their kernels."""
    start = time.monotonic()
    for group, wanted in PLAIN.items():
        for case in GROUPS[group](s) if group in groups else ():
            if not re.match(wanted, case.name):
                continue
            if time.monotonic() - start > seconds:
                return
            print(f"{group}: {case.name}", flush=True)
            case.call()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", metavar="PATH", help="write PATH.md and PATH.json")
    parser.add_argument("--calls", type=int, default=20, help="calls that are profiled (default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=tuple(GROUPS), default=list(GROUPS))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no case after so long")
    parser.add_argument("--small", action="store_true", help="tiny inputs: does the script run?")
    parser.add_argument("--plain", action="store_true", help="make some calls once, and measure nothing")
    arguments = parser.parse_args()
    bench_gpu.require_kernels(torch.device(arguments.device))
    s = Setting(arguments.device, rounds=5, small=arguments.small)
    if arguments.plain:
        make_calls(s, arguments.only, arguments.seconds)
        return
    s.speed = bench_gpu.copy_speed(s)
    start, left_out, failed = time.monotonic(), [], []
    results: dict[str, Any] = {"copy_bytes_per_second": s.speed}
    text = [
        f"A copy from memory to memory moves {s.speed / 1e9:.0f} GB/s (read and written). "
        f"Times are those of the kernels alone, from torch.profiler, {arguments.calls} calls."
    ]
    header = ["call", "its longest kernel", "launches", "graph nodes", "us", "of a copy"]

    def save(quiet: bool = True) -> None:
        parts = [*text]
        for group in GROUPS:
            if group in results:
                parts += [f"## {group}", table(header, [row_of(s, r) for r in results[group]], text_columns=2)]
        if verdicts := targets(results):
            parts.append(table(["call", "target", "nodes of a graph", ""], verdicts, text_columns=4))
        for what, names in (("Left out, as the time was over", left_out), ("Failed", failed)):
            if names:
                parts.append(f"{what}: {'; '.join(names)}.")
        write_results(arguments.output, f"Kernels on {s.device}", machine(s.device), parts, results, quiet=quiet)

    for group in arguments.only:
        results[group] = []
        for case in GROUPS[group](s):
            if time.monotonic() - start > arguments.seconds:
                left_out.append(case.name)
                continue
            try:
                results[group].append(measure(s, case, arguments.calls))
                print(" | ".join(map(str, row_of(s, results[group][-1]))), flush=True)
            except Exception as error:
                failed.append(f"{case.name}: {bench_gpu.told(error)}")
                print(failed[-1], flush=True)
                if s.gpu_is_lost():
                    save()
                    raise
        save()  # what was measured is kept, whatever comes
    save(quiet=False)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
