"""The bandwidth that training has to live on: rows at random places, by the size of the table, and a stream's copy.

    python benchmarks/bench_bandwidth.py [--output benchmarks/results/bandwidth-cpu] [--threads 1 2] [--quick]

rows.c, compiled here for this processor by the C compiler that $CC names (cc), reads or updates (reads and writes) rows
of 64 floats whose numbers are drawn uniformly beforehand, asking for each 48 rows ahead. Threads draw
from all rows of one table or, "no row shared", each from a part of it: what the former costs more is that a line that
was written has to come from the other core's cache. Tables are torch's (as those of a model) or, "huge pages", numpy's,
which asks the kernel for huge pages. The copy is Tensor.copy_ of 512 MB, with torch's threads. Bytes count once for
each read and each write. multiply-add is what the arithmetic units give to the same number of threads: where two
threads get no more than one, the two processors of a virtual machine are one core's.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _timing
import numpy as np
import torch

DIM = 64
SIZES = {"256 KiB": 1 << 18, "8 MiB": 1 << 23, "256 MiB": 1 << 28, "2.5 GiB": 5 << 29}


def compiled() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "rows.so")
        source = Path(__file__).with_name("rows.c")
        command = [
            os.environ.get("CC", "cc"),
            "-O3",
            "-march=native",
            f"-DDIM={DIM}",
            "-shared",
            "-fPIC",
            source,
            "-o",
            library,
        ]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(library))  # stays mapped when the file is gone


def pointer(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.data_ptr() if isinstance(array, torch.Tensor) else array.ctypes.data)


def in_threads(work: list[Callable[[], object]]) -> None:
    """Each on a processor of its own: a scheduler may leave two threads on one for seconds. ctypes lets go of the
    interpreter's lock while C runs."""
    processors = sorted(os.sched_getaffinity(0))

    def bound(number: int) -> None:
        before = os.sched_getaffinity(0)  # of this thread
        os.sched_setaffinity(0, {processors[number % len(processors)]})
        try:
            work[number]()
        finally:
            os.sched_setaffinity(0, before)

    others = [threading.Thread(target=bound, args=(i,)) for i in range(1, len(work))]
    for thread in others:
        thread.start()
    bound(0)
    for thread in others:
        thread.join()


def methods(rows: ctypes.CDLL, size: int, threads: int, visits: int) -> dict[str, Callable[[], object]]:
    """Each visits so many rows."""
    count = size // (4 * DIM)
    rng = np.random.default_rng(0)
    each = visits // threads
    ids = [rng.integers(0, count, each, dtype=np.int32) for _ in range(threads)]
    part = count // threads
    own = [rng.integers(t * part, (t + 1) * part, each, dtype=np.int32) for t in range(threads)]
    sums = [np.zeros(DIM, np.float32) for _ in range(threads)]
    n = ctypes.c_int64(each)
    keep, step = ctypes.c_float(0.5), ctypes.c_float(0.25)
    out: dict[str, Callable[[], object]] = {}
    tables: dict[str, Any] = {"": torch.zeros(count, DIM)}
    if size > 1 << 25:
        tables[", huge pages"] = np.zeros((count, DIM), np.float32)
    for name, table in tables.items():
        table[:] = 1.0  # pages are given when they are written

        def read(table: Any = table) -> None:
            at = pointer(table)
            in_threads([lambda t=t: rows.read_rows(at, pointer(ids[t]), n, pointer(sums[t])) for t in range(threads)])

        def update(table: Any = table) -> None:
            at = pointer(table)
            in_threads([lambda t=t: rows.update_rows(at, pointer(ids[t]), n, keep, step) for t in range(threads)])

        def update_own(table: Any = table) -> None:
            at = pointer(table)
            in_threads([lambda t=t: rows.update_rows(at, pointer(own[t]), n, keep, step) for t in range(threads)])

        out |= {f"read{name}": read, f"update{name}": update}
        if threads > 1:
            out[f"update, no row shared{name}"] = update_own
    return out


def measure(threads: int, rounds: int, sizes: dict[str, int], base: int, stream: int) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    library, out = compiled(), []
    for name, size in sizes.items():
        # Small tables are visited longer: a call has to outlast the start of its threads.
        visits = base if size > 1 << 25 else 8 * base
        for method, seconds in _timing.take_turns(
            methods(library, size, threads, visits), rounds=rounds, block=0.05
        ).items():
            each = visits // threads * threads * 4 * DIM * (2 if method.startswith("update") else 1)
            out.append(
                {
                    "threads": threads,
                    "table": name,
                    "access": method,
                    "gb_per_second": _timing.spread(1e-9 * each / seconds),
                }
            )
    numbers = [np.ones(16, np.float32) for _ in range(threads)]
    n = ctypes.c_int64(32 * base)

    def multiply_add() -> None:
        in_threads([lambda t=t: library.multiply_add(n, pointer(numbers[t])) for t in range(threads)])

    seconds = _timing.take_turns({"multiply-add": multiply_add}, rounds=rounds, block=0.05)["multiply-add"]
    gflops = _timing.spread(1e-9 * 384 * 32 * base * threads / seconds)
    out.append({"threads": threads, "table": "registers", "access": "multiply-add, GFLOP/s", "gb_per_second": gflops})
    source, target = torch.ones(stream // 4), torch.zeros(stream // 4)
    seconds = _timing.take_turns({"copy": lambda: target.copy_(source)}, rounds=rounds, block=0.05)["copy"]
    gb = _timing.spread(1e-9 * 2 * source.nbytes / seconds)
    out.append({"threads": threads, "table": "512 MB to 512 MB", "access": "copy", "gb_per_second": gb})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="write OUTPUT.md and OUTPUT.json")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a smoke test: no figures to quote")
    arguments = parser.parse_args()
    rows = []
    for threads in arguments.threads:
        if arguments.quick:
            rows += measure(threads, 2, {"256 KiB": 1 << 18}, 2048, 1 << 20)
        else:
            rows += measure(threads, arguments.rounds, SIZES, 1 << 19, 512_000_000)
    text = (
        "GB/s (1e9 bytes, reads and writes each counted; of multiply-add, GFLOP/s) of rows of 256 bytes at random\n"
        "places, and of a copy: median of rounds (quartiles). Measured by `python benchmarks/bench_bandwidth.py`."
    )
    shown = [(r["table"], r["access"], r["threads"], str(r["gb_per_second"])) for r in rows]
    info = _timing.machine() | {"rounds": arguments.rounds}
    tables = _timing.table(("table", "access", "threads", "GB/s"), shown, text_columns=2)
    _timing.write_results(arguments.output, "Bandwidth of the CPU's memory", info, [text, tables], rows)


if __name__ == "__main__":
    main()
