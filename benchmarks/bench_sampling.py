"""How fast negatives and epochs are made, against the ways that are common.

    python benchmarks/bench_sampling.py [--output benchmarks/results/sampling-cpu] [--threads 1] [--large]

Data come from the folder that ZEROSUM_EXT_DATA names (ml-1m.npz, gowalla.npz, yelp2018.npz; absent ones are skipped)
and, with --large, from a generated power-law matrix of 10 M users x 1 M items x 100 M interactions. Users are asked for
in the order of shuffled positives. Methods take turns, round by round; a ratio is the median of the rounds' ratios, its
spread their quartiles.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy
import scipy.sparse as sp
import torch
from torch import Tensor

import zerosum_ext as zx
from zerosum_ext import _ops, sampling

NAMES = ("ml-1m", "gowalla", "yelp2018")


def real(name: str) -> zx.Interactions | None:
    path = Path(os.environ.get("ZEROSUM_EXT_DATA", "."), f"{name}.npz")
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        users, items = file["user"], file["item"]
        if name != "ml-1m":
            train = file["split"] == 0
            users, items = users[train], items[train]
    return zx.Interactions.from_arrays(users, items)


def power_law(num_users: int, num_items: int, nnz: int, seed: int = 0) -> zx.Interactions:
    """Activity and popularity fall as power laws; rows are made in slices to bound the memory."""
    rng = np.random.default_rng(seed)
    activity = (rng.pareto(1.3, num_users) + 0.3).clip(max=num_items / 10)
    counts = np.maximum((activity * (nnz * 1.06 / activity.sum())).astype(np.int64), 1)
    indptr, parts = [0], []
    for first in range(0, num_users, 1 << 20):
        part = counts[first : first + (1 << 20)]
        items = (num_items * rng.random(int(part.sum()), dtype=np.float32) ** 2.5).astype(np.int64)
        keys = np.unique(np.repeat(np.arange(len(part)), part) * num_items + items.clip(max=num_items - 1))
        parts.append((keys % num_items).astype(np.int32))
        indptr.append(np.bincount(keys // num_items, minlength=len(part)))
    pointers = np.concatenate([[0], *indptr[1:]]).cumsum()
    indices = np.concatenate(parts)
    return zx.Interactions.from_scipy(
        sp.csr_matrix((np.ones(len(indices), np.int8), indices, pointers), shape=(num_users, num_items))
    )


# ------------------------------------------------------------------------------------------------------------- peers


def keys_of(x: zx.Interactions) -> Tensor:
    owners = torch.repeat_interleave(torch.arange(x.num_users), x.user_counts)
    return owners * x.num_items + x.indices


def numpy_isin(x: zx.Interactions, users: Tensor) -> Callable[[], object]:
    """Vectorised rejection, membership by np.isin on user * num_items + item (graph libraries do it so)."""
    keys, u, rng = keys_of(x).numpy(), users.numpy(), np.random.default_rng(0)

    def run() -> np.ndarray:
        out = rng.integers(0, x.num_items, len(u))
        left = np.flatnonzero(np.isin(u * x.num_items + out, keys))
        while len(left):
            out[left] = rng.integers(0, x.num_items, len(left))
            left = left[np.isin(u[left] * x.num_items + out[left], keys)]
        return out

    return run


def torch_searchsorted(x: zx.Interactions, users: Tensor) -> Callable[[], object]:
    """Vectorised rejection, membership by torch.searchsorted on the sorted keys."""
    keys = keys_of(x)

    def run() -> Tensor:
        out = torch.empty_like(users)
        left = torch.arange(len(users))
        while len(left):
            out[left] = torch.randint(0, x.num_items, (len(left),))
            wanted = users[left] * x.num_items + out[left]
            at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
            left = left[keys[at] == wanted]
        return out

    return run


def python_sets(x: zx.Interactions, users: Tensor) -> Callable[[], object]:
    """The loop of many published training scripts: one draw at a time against a set for each user."""
    pointers, items = x.indptr.tolist(), x.indices.tolist()
    owned = [set(items[a:b]) for a, b in itertools.pairwise(pointers)]
    wanted, rng = users.tolist(), np.random.default_rng(0)

    def run() -> list[int]:
        out = []
        for u in wanted:
            item = rng.integers(x.num_items)
            while item in owned[u]:
                item = rng.integers(x.num_items)
            out.append(item)
        return out

    return run


def list_dataloader(x: zx.Interactions, samples: int, batch_size: int) -> Callable[[], object]:
    """torch DataLoader over a list of (user, positive), a negative drawn against a set in __getitem__."""
    pointers, items = x.indptr.tolist(), x.indices.tolist()
    owned = [set(items[a:b]) for a, b in itertools.pairwise(pointers)]
    order = np.random.default_rng(0).permutation(x.nnz)[:samples]
    owners = np.searchsorted(x.indptr.numpy(), order, side="right") - 1
    pairs = list(zip(owners.tolist(), x.indices.numpy()[order].tolist(), strict=True))

    class Triples(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pairs)

        def __getitem__(self, index: int) -> tuple[int, int, int]:
            user, positive = pairs[index]
            item = np.random.randint(x.num_items)
            while item in owned[user]:
                item = np.random.randint(x.num_items)
            return user, positive, item

    loader = torch.utils.data.DataLoader(Triples(), batch_size=batch_size, shuffle=True)

    def run() -> None:
        for _ in loader:
            pass

    return run


# ------------------------------------------------------------------------------------------------------- measurement


def take_turns(methods: dict[str, tuple[Callable[[], object], int]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds per sample of each method [rounds]; the methods alternate within a round."""
    for run, _ in methods.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, (run, samples) in methods.items():
            start = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - start) / samples)
    return {name: np.array(values) for name, values in seconds.items()}


def structure_bytes(x: zx.Interactions) -> dict[str, float]:
    """Bytes of the structures beside the CSR, as fractions of the CSR."""
    csr = x.indptr.nbytes + x.indices.nbytes
    index = sampling._index(x)
    beside = sum(t.nbytes for t in (index.filter, index.hint) if t is not None)
    tables = sum(t.nbytes for table in index.tables.values() for t in table)
    return {"uniform": beside / csr, "popularity": (beside + tables) / csr}


def measure(name: str, x: zx.Interactions, rounds: int, large: bool) -> list[dict]:
    rng = np.random.default_rng(1)
    asked = min(x.nnz, 4_000_000)
    edges = rng.integers(0, x.nnz, asked) if large else rng.permutation(x.nnz)
    users = torch.from_numpy(np.searchsorted(x.indptr.numpy(), edges, side="right") - 1)
    few, fewer = users[:65536], users[:10_000]
    batch = min(65536, x.nnz)
    epoch = 4_000_000 if large else x.nnz

    def ours(**options: object) -> tuple[Callable[[], object], int]:
        chosen = sampling._strategy(x, options.get("strategy", "uniform"), None, 1.0, None, True)
        return (lambda: chosen.draw(users, 1, 0, 0, 0)), len(users)

    def loader(**options: object) -> tuple[Callable[[], object], int]:
        made = zx.TripletLoader(x, batch, **options)

        def run() -> None:
            iterator = iter(made)
            for _ in range(-(-epoch // batch)):
                next(iterator)

        return run, epoch

    start = time.perf_counter()
    sampling._filter(x, x.nnz)
    built = time.perf_counter() - start
    quick = {
        "uniform negatives": ours(),
        "popularity negatives": ours(strategy="popularity"),
        "TripletLoader": loader(),
        "TripletLoader, pairs": loader(positives=2, negatives=2),
    }
    slow = {
        "randint + torch.searchsorted": (torch_searchsorted(x, few), len(few)),
    }
    if not large:
        slow |= {
            "randint + np.isin": (numpy_isin(x, few), len(few)),
            "Python loop over sets": (python_sets(x, fewer), len(fewer)),
            "DataLoader over lists": (list_dataloader(x, 10_000, 2048), 10_000),
        }
    seconds = take_turns(quick | slow, rounds)
    shape = f"{x.num_users} x {x.num_items} x {x.nnz}"
    rows = []
    for method, values in seconds.items():
        base = "TripletLoader" if "oader" in method else "uniform negatives"
        ratio = np.percentile(values / seconds[base], [25, 50, 75])
        rows.append(
            {
                "data": name,
                "shape": shape,
                "method": method,
                "million_per_second": float(1e-6 / np.median(values)),
                "compared_with": base,
                "times_as_long": [float(r) for r in ratio],
            }
        )
    rows.append({"data": name, "shape": shape, "filter_seconds": built, "beside_csr": structure_bytes(x)})
    return rows


def cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="write OUTPUT.md and OUTPUT.json")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--large", action="store_true", help="add the matrix of 100 M interactions (6 GB of memory)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not _ops.has_kernel(torch.device("cpu")):
        raise SystemExit("bench_sampling.py: build the compiled kernels first")
    rows = []
    for name in NAMES:
        x = real(name)
        if x is None:
            print(f"{name}: skipped, ZEROSUM_EXT_DATA names no folder with {name}.npz")
            continue
        rows += measure(name, x, arguments.rounds, large=False)
    if arguments.large:
        rows += measure("power law", power_law(10_000_000, 1_000_000, 100_000_000), arguments.rounds, large=True)

    model = next((s.split(":")[1].strip() for s in cpuinfo() if s.startswith("model name")), platform.processor())
    info = {
        "date": datetime.date.today().isoformat(),
        "cpu": f"{model}, {os.cpu_count()} cores",
        "threads": arguments.threads,
        "isa": zx.build_info()["isa"],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "rounds": arguments.rounds,
    }
    lines = ["# Sampling on the CPU", "", ", ".join(f"{k} {v}" for k, v in info.items()), ""]
    lines += [
        "Millions of samples a second (for the loaders: of triples; pairs have two positives and two negatives), and",
        "how many times as long a sample takes as with uniform negatives or TripletLoader: median of paired rounds",
        "(quartiles). Measured by `python benchmarks/bench_sampling.py --threads "
        f"{arguments.threads}{' --large' if arguments.large else ''}`.",
        "",
        "| data | users x items x interactions | method | M/s | times as long |",
        "|---|---|---|--:|--:|",
    ]
    for r in rows:
        if "method" in r:
            low, mid, high = r["times_as_long"]
            lines.append(
                f"| {r['data']} | {r['shape']} | {r['method']} | {r['million_per_second']:.3g} | "
                f"{mid:.3g} ({low:.3g} to {high:.3g}) of {r['compared_with']} |"
            )
    lines += ["", "| data | filter made in | structures beside the CSR, uniform | popularity |", "|---|--:|--:|--:|"]
    for r in rows:
        if "beside_csr" in r:
            b = r["beside_csr"]
            lines.append(
                f"| {r['data']} | {1e3 * r['filter_seconds']:.3g} ms | {b['uniform']:.2f} x CSR | "
                f"{b['popularity']:.2f} x CSR |"
            )
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        Path(f"{arguments.output}.md").write_text(text)
        Path(f"{arguments.output}.json").write_text(json.dumps({"machine": info, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
