"""How fast negatives and epochs are made, against the ways that are common.

    python benchmarks/bench_sampling.py [--output benchmarks/results/sampling-cpu] [--threads 1] [--large]
        [--device cuda]

Data come from the folder that ZEROSUM_EXT_DATA names (ml-1m.npz, gowalla.npz, yelp2018.npz; absent ones are skipped)
and, with --large, from a generated power-law matrix of 10 M users x 1 M items x 100 M interactions. Users are asked for
in the order of shuffled positives. Methods take turns, round by round; a ratio is the median of the rounds' ratios, its
spread their quartiles. With --device cuda, by CUDA events, and without the peers that cannot run there.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import _timing
import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

import zerosum_ext as zx
from zerosum_ext import _ops
from zerosum_ext.data import sampling

NAMES = ("ml-1m", "gowalla", "yelp2018")


def real(name: str) -> zx.Interactions | None:
    """A data set's training part; MovieLens-1M whole."""
    x = _timing.data_set(name)
    return x if x is None or name == "ml-1m" else x.split_by().train


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
    owners = torch.repeat_interleave(torch.arange(x.num_users, device=x.device), x.user_counts)
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


def pyg_structured(x: zx.Interactions) -> Callable[[], object]:
    """torch_geometric's structured_negative_sampling: a negative for every interaction, its user kept."""
    from torch_geometric.utils import structured_negative_sampling

    edges = torch.stack((torch.repeat_interleave(torch.arange(x.num_users), x.user_counts), x.indices.long()))
    return lambda: structured_negative_sampling(edges, num_nodes=x.num_items, contains_neg_self_loops=True)


def torch_searchsorted(x: zx.Interactions, users: Tensor) -> Callable[[], object]:
    """Vectorised rejection, membership by torch.searchsorted on the sorted keys."""
    keys = keys_of(x)

    def run() -> Tensor:
        out = torch.empty_like(users)
        left = torch.arange(len(users), device=x.device)
        while len(left):
            out[left] = torch.randint(0, x.num_items, (len(left),), device=x.device)
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


def structure_bytes(x: zx.Interactions) -> dict[str, float]:
    """Bytes of the structures beside the CSR, as fractions of the CSR."""
    csr = x.indptr.nbytes + x.indices.nbytes
    index = sampling._index(x)
    beside = sum(t.nbytes for t in (index.filter, index.hint) if t is not None)
    tables = sum(t.nbytes for table in index.tables.values() for t in table)
    return {"uniform": beside / csr, "popularity": (beside + tables) / csr}


def memory(name: str, x: zx.Interactions) -> dict:
    """What the structures beside the CSR take, and the peak of the resident memory while they are made and used.

    The peak is the kernel's own high-water mark (Linux), reset first; None elsewhere, and for matrices so small that
    all fits in memory that the process has already.
    """
    csr = x.indptr.nbytes + x.indices.nbytes
    users = torch.arange(min(x.num_users, 1 << 20))
    measured = csr > (256 << 20) and Path("/proc/self/clear_refs").exists()

    def status(key: str) -> int:
        line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(key))
        return int(line.split()[1]) << 10

    if measured:
        ctypes.CDLL(None).malloc_trim(0)  # what the making of the matrix left behind would hide the peak
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS:")
    start = time.perf_counter()
    sampling._filter(x, x.nnz)
    built = time.perf_counter() - start
    zx.sample_negatives(x, users)
    peak = (status("VmHWM:") - before) / csr if measured else None
    zx.sample_negatives(x, users, strategy="popularity")
    return {"data": name, "filter_seconds": built, "peak": peak, "beside_csr": structure_bytes(x)}


def methods(x: zx.Interactions, large: bool, device: str = "cpu") -> dict[str, tuple[Callable[[], object], int]]:
    """What is timed on a matrix, and how many samples a call makes."""
    rng = np.random.default_rng(1)
    asked = min(x.nnz, 4_000_000)
    edges = rng.integers(0, x.nnz, asked) if large else rng.permutation(x.nnz)
    users = torch.from_numpy(np.searchsorted(x.indptr.numpy(), edges, side="right") - 1).to(device)
    x = x.to(device)
    few, fewer = users[:65536], users[:10_000]
    batch = min(65536, x.nnz)
    epoch = 4_000_000 if large else x.nnz

    def ours(**options: object) -> tuple[Callable[[], object], int]:
        chosen = sampling.NegativeSource.of(x, options.get("strategy", "uniform"), None, 1.0, None, True)
        return (lambda: chosen.draw(users, 1, 0, 0, 0)), len(users)

    def loader(**options: object) -> tuple[Callable[[], object], int]:
        made = zx.TripletLoader(x, batch, **options)

        def run() -> None:
            iterator = iter(made)
            for _ in range(-(-epoch // batch)):
                next(iterator)

        return run, epoch

    out: dict[str, tuple[Callable[[], object], int]] = {
        "uniform negatives": ours(),
        "popularity negatives": ours(strategy="popularity"),
        "TripletLoader": loader(),
        "TripletLoader, pairs": loader(positives=2, negatives=2),
        "randint + torch.searchsorted": (torch_searchsorted(x, few), len(few)),
    }
    if not large and not _timing.on_gpu(device):
        out["randint + np.isin"] = (numpy_isin(x, users), len(users))
        if importlib.util.find_spec("torch_geometric"):
            out["torch_geometric structured_negative_sampling"] = (pyg_structured(x), x.nnz)
        out["Python loop over sets"] = (python_sets(x, fewer), len(fewer))
        out["DataLoader over lists"] = (list_dataloader(x, 10_000, 2048), 10_000)
    return out


# ------------------------------------------------------------------------------------------------- pytest-benchmark


try:
    import pytest
except ImportError:  # the report needs none
    pass
else:

    @pytest.fixture(scope="module", params=NAMES)
    def case(request: pytest.FixtureRequest) -> dict[str, tuple[Callable[[], object], int]]:
        x = real(request.param)
        if x is None:
            pytest.skip(f"ZEROSUM_EXT_DATA names no folder with {request.param}.npz")
        return methods(x, large=False)

    @pytest.mark.parametrize(
        "method", ["uniform negatives", "popularity negatives", "TripletLoader", "randint + torch.searchsorted"]
    )
    def test_sampling(benchmark, case: dict[str, tuple[Callable[[], object], int]], method: str) -> None:
        run, samples = case[method]
        benchmark.extra_info["samples"] = samples
        benchmark(run)


# ----------------------------------------------------------------------------------------------------- paired report


def speed(name: str, x: zx.Interactions, rounds: int, large: bool, device: str) -> list[dict]:
    timed = methods(x, large, device)
    seconds = _timing.take_turns({method: run for method, (run, _) in timed.items()}, rounds=rounds, device=device)
    seconds = {method: values / timed[method][1] for method, values in seconds.items()}
    rows = []
    for method, values in seconds.items():
        base = "TripletLoader" if "oader" in method else "uniform negatives"
        rows.append(
            {
                "data": name,
                "shape": f"{x.num_users} x {x.num_items} x {x.nnz}",
                "method": method,
                "million_per_second": float(1e-6 / np.median(values)),
                "compared_with": base,
                "times_as_long": _timing.ratio(seconds, method, base),
            }
        )
    return rows


def speed_table(rows: list[dict]) -> str:
    return _timing.table(
        ("data", "users x items x interactions", "method", "M/s", "times as long"),
        [
            (
                r["data"],
                r["shape"],
                r["method"],
                f"{r['million_per_second']:.3g}",
                f"{r['times_as_long']} of {r['compared_with']}",
            )
            for r in rows
        ],
        text_columns=3,
    )


def memory_table(rows: list[dict]) -> str:
    return _timing.table(
        ("data", "filter made in", "structures beside the CSR, uniform", "popularity", "peak memory above the CSR"),
        [
            (
                r["data"],
                f"{1e3 * r['filter_seconds']:.3g} ms",
                f"{r['beside_csr']['uniform']:.2f} x CSR",
                f"{r['beside_csr']['popularity']:.2f} x CSR",
                "too small" if r["peak"] is None else f"{r['peak']:.2f} x CSR",
            )
            for r in rows
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="write OUTPUT.md and OUTPUT.json")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--large", action="store_true", help="add the matrix of 100 M interactions (6 GB of memory)")
    parser.add_argument("--data", nargs="+", help="only these, by their names")
    parser.add_argument("--merge", action="store_true", help="keep the rows of OUTPUT.json of other data")
    parser.add_argument("--memory", action="store_true", help="report memory instead of speed")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.memory and _timing.on_gpu(arguments.device):
        parser.error("--memory: expected --device cpu")
    torch.set_num_threads(arguments.threads)
    if not _ops.has_op("sample_negatives", torch.device(arguments.device)):
        raise SystemExit("bench_sampling.py: build the compiled kernels first")
    rows = []
    for name in (*NAMES, "power law") if arguments.large else NAMES:
        if arguments.data and name not in arguments.data:
            continue
        x = power_law(10_000_000, 1_000_000, 100_000_000) if name == "power law" else real(name)
        if x is None:
            print(f"{name}: skipped, ZEROSUM_EXT_DATA names no folder with {name}.npz")
        elif arguments.memory:
            rows.append(memory(name, x))
        else:
            rows += speed(name, x, arguments.rounds, name == "power law", arguments.device)
    if arguments.merge:
        for row in _timing.earlier_rows(arguments.output, rows, lambda row: row["data"]):
            rows.append(row | {"times_as_long": _timing.Spread(*row["times_as_long"])})
    options = "".join(f" --{flag}" for flag in ("large", "memory") if getattr(arguments, flag))
    where = "the CPU"
    if _timing.on_gpu(arguments.device):
        where, options = arguments.device, f"{options} --device {arguments.device}"
    command = f"`python benchmarks/bench_sampling.py --threads {arguments.threads}{options}`"
    if arguments.memory:
        title, text = "Memory of sampling on the CPU", f"Measured by {command}."
    else:
        title = f"Sampling on {where}"
        text = (
            "Millions of samples a second (for the loaders: of triples; pairs have two positives and two negatives),\n"
            "and how many times as long a sample takes as with uniform negatives or TripletLoader: median of paired\n"
            f"rounds (quartiles). Measured by {command}."
        )
    _timing.write_results(
        arguments.output,
        title,
        _timing.machine(arguments.device) | {"threads": arguments.threads, "rounds": arguments.rounds},
        [text, memory_table(rows) if arguments.memory else speed_table(rows)],
        rows,
    )


if __name__ == "__main__":
    main()
