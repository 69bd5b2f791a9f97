"""Training with tables in parts: CPU time and bytes of each process, against the formula, for 1, 2 and 4 processes.

    python benchmarks/bench_scale.py --sizes 1 2 4 --samples 8192 --steps 60 --output scale.json
    python benchmarks/bench_scale.py --limit-gib 3          # a table that is larger than what one process may take

Weak scaling: each process has as many users, interactions and samples a step as the one of the smallest run. On a
machine with fewer cores than processes wall time says nothing; CPU time does, and the bytes do. With --network NAME,...
the processes run in network namespaces that exist already (ip netns), rank by rank.

Formula: a process with n distinct items in a step sends the ids of those that others own, and their gradients, and the
rows that others ask for: n (size - 1) / size (8 + 2 w) bytes, w = 4 d bytes a row.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]


def child(settings: dict[str, Any]) -> None:
    """Train one process's part, and write what it took."""
    from zerosum_ext import Interactions
    from zerosum_ext import distributed as zxd
    from zerosum_ext.training.parallel import ShardedEngine

    if settings["limit"]:
        resource.setrlimit(resource.RLIMIT_AS, (settings["limit"], settings["limit"]))
    torch.set_num_threads(1)
    group = zxd.start_group(300)
    rng = np.random.default_rng(group.rank)
    users, items, per_user = settings["users"], settings["items"], settings["per_user"]
    # Popularity falls as a power, as that of catalogues does; numbers are shuffled alike in all processes.
    names = np.random.default_rng(1).permutation(items)
    drawn = (items * rng.random((users, per_user)) ** settings["skew"]).astype(np.int64)
    local = Interactions.from_arrays(
        np.repeat(np.arange(users), per_user), names[drawn.reshape(-1)], shape=(users, items)
    )
    data = zxd.ShardedInteractions(local, group)
    start = time.process_time()
    model = zxd.ShardedMatrixFactorization.from_interactions(data, embedding_dim=settings["dim"])
    made = time.process_time() - start
    steps: list[tuple[float, int, int]] = []
    distinct = [0, 0]
    own = ShardedEngine._own

    def counted(self: Any, *args: Any) -> Any:
        plan = own(self, *args)
        distinct[0] += plan.items.numel()
        distinct[1] += 1
        return plan

    ShardedEngine._own = counted  # type: ignore[method-assign]

    class Enough(Exception):
        pass

    train = ShardedEngine._train

    def timed(self: Any, *args: Any) -> None:
        train(self, *args)
        steps.append((time.process_time(), group.sent, group.calls))
        if len(steps) >= settings["steps"]:
            raise Enough

    ShardedEngine._train = timed  # type: ignore[method-assign]
    began = time.process_time()
    wall = time.perf_counter()
    sent = group.sent
    with contextlib.suppress(Enough):
        model.fit(
            data,
            "bpr",
            lambda p: torch.optim.SGD(p, lr=0.1),
            batch_size=settings["samples"] * group.size,
            negatives=settings["negatives"],
            epochs=1000,
            progress=False,
        )
    wall = time.perf_counter() - wall
    out = {
        "rank": group.rank,
        "cpu": steps[-1][0] - steps[0][0],
        "begin_cpu": steps[0][0] - began,
        "made_cpu": made,
        "wall": wall,
        "steps": len(steps) - 1,
        "bytes": (steps[-1][1] - sent) / len(steps),
        "calls": (steps[-1][2] - steps[0][2]) / (len(steps) - 1),
        "distinct": distinct[0] / max(1, distinct[1]),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "table_mib": model.user_embedding.numel() * 4 / 2**20 + model.item_embedding.numel() * 4 / 2**20,
    }
    Path(settings["folder"], f"{group.rank}.json").write_text(json.dumps(out))
    group.barrier()
    os._exit(0)


def run(size: int, settings: dict[str, Any], network: list[str]) -> list[dict[str, Any]]:
    """Start the processes and return what each of them took."""
    with tempfile.TemporaryDirectory() as folder:
        address = "127.0.0.1" if not network else network[0].partition("=")[2]
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = str(one.getsockname()[1])
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": address, "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        processes = []
        for rank in range(size):
            inside: list[str] = []
            if network:
                inside = ["ip", "netns", "exec", network[rank].partition("=")[0]]
            command = [*inside, sys.executable, __file__, "--child", json.dumps({**settings, "folder": folder})]
            here = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": os.fspath(ROOT)}
            if network:
                here["GLOO_SOCKET_IFNAME"] = "eth0"
            processes.append(subprocess.Popen(command, env=here))
        try:
            for process in processes:
                if process.wait(timeout=550) != 0:
                    raise SystemExit(f"a process of {size} ended with status {process.returncode}")
        finally:
            for process in processes:
                process.kill()
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(size)]


def plan(users: float, items: float, interactions: float, dim: int, nodes: int, link: float) -> dict[str, float]:
    """Return what one of the processes holds and sends, on paper: bytes, and samples a second at most.

    Args:
        users, items, interactions: over all processes.
        dim: of the embeddings.
        nodes: the number of processes, each with a link of its own.
        link: bytes a second in each direction.
    """
    sample = 2 * (nodes - 1) / nodes * (8 + 2 * 4 * dim)  # two items, none of which occurs twice in a step
    return {
        "bytes a sample": sample,
        "tables": 4 * dim * (users + items) / nodes,
        "interactions": 6 * interactions / nodes,
        "order": 16 * interactions / nodes,
        "order while an epoch begins": 32 * interactions / nodes,
        "popularity": 8 * items,
        "samples a second": link / sample,
        "epoch seconds": interactions / nodes * sample / link,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--users", type=int, default=50_000, help="of each process")
    parser.add_argument("--items", type=int, default=200_000, help="of all processes")
    parser.add_argument("--per-user", type=int, default=20)
    parser.add_argument("--skew", type=float, default=3.0)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8192, help="of each process in a step")
    parser.add_argument("--negatives", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--limit-gib", type=float, default=0.0, help="address space of each process")
    parser.add_argument("--network", nargs="+", default=[], metavar="NAMESPACE=ADDRESS", help="of each rank")
    parser.add_argument("--output")
    given = parser.parse_args()
    if given.child:
        child(json.loads(given.child))
    settings = {
        **{
            name: getattr(given, name) for name in ("users", "items", "per_user", "skew", "dim", "samples", "negatives")
        },
        "steps": given.steps,
        "limit": int(given.limit_gib * 2**30),
    }
    results = []
    print("processes  CPU us a sample  bytes a step  by the formula  collectives a step  wall s  peak MiB  tables MiB")
    for size in given.sizes:
        found = run(size, settings, given.network)
        width = 4 * given.dim
        mean = {key: sum(one[key] for one in found) / size for key in found[0]}
        formula = mean["distinct"] * (size - 1) / size * (8 + 2 * width)
        cpu = 1e6 * mean["cpu"] / mean["steps"] / given.samples
        print(
            f"{size:>9}{cpu:>17.3f}{mean['bytes']:>14,.0f}{formula:>16,.0f}{mean['calls']:>20.2f}{mean['wall']:>8.1f}"
            f"{mean['peak_mib']:>10,.0f}{mean['table_mib']:>12,.0f}",
            flush=True,
        )
        results.append({"size": size, "settings": settings, "formula": formula, "mean": mean, "ranks": found})
    if given.output:
        from _timing import machine

        out = {"versions": machine(), "network": given.network, "results": results}
        Path(given.output).write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
