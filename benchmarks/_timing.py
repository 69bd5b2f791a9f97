"""What the benchmarks share: methods that take turns, ratios with their spread, and results as Markdown and JSON.

Machines drift (clocks, neighbours), so that two timings taken one after the other do not compare. Here every method
runs once in every round, a ratio is taken within each round, and what is reported is the median of those ratios with
their quartiles.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import zerosum_ext as zx

Method = Callable[[], object]


def on_gpu(device: str) -> bool:
    return device.startswith("cuda")


class Spread(NamedTuple):
    """The lower quartile, median and upper quartile of something measured."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def spread(values: np.ndarray) -> Spread:
    return Spread(*(float(v) for v in np.percentile(values, [25, 50, 75])))


def take_turns(
    methods: Mapping[str, Method],
    *,
    rounds: int = 15,
    block: float = 2e-3,
    device: str = "cpu",
    clock_name: str = "wall",
) -> dict[str, np.ndarray]:
    """Seconds per call of each method [rounds].

    In a round every method runs for about ``block`` seconds (at least one call), each round beginning with another
    one. On a GPU the time is that between two events on the current stream, after everything earlier has finished.
    ``clock_name="cpu"`` takes the processor's time of this thread instead of the wall clock's: for methods of one
    thread on a machine that others use too.
    """
    if on_gpu(device):
        clock = _cuda_seconds
    else:
        clock = _thread_seconds if clock_name == "cpu" else _cpu_seconds
    calls = {}
    for name, method in methods.items():
        clock(method, 2)  # compiles, allocates, fills caches
        calls[name] = max(1, math.ceil(block / max(min(clock(method, 1) for _ in range(3)), 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    names = list(methods)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(clock(methods[name], calls[name]) / calls[name])
    return {name: np.array(values) for name, values in seconds.items()}


def _cpu_seconds(method: Method, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        method()
    return time.perf_counter() - start


def _thread_seconds(method: Method, calls: int) -> float:
    start = time.thread_time()
    for _ in range(calls):
        method()
    return time.thread_time() - start


def _cuda_seconds(method: Method, calls: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        method()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


def ratio(seconds: Mapping[str, np.ndarray], method: str, base: str) -> Spread:
    """How many times as long as ``base`` a method takes, round by round."""
    return spread(seconds[method] / seconds[base])


def rotating(function: Callable[..., object], inputs: Sequence[tuple[Any, ...]]) -> Method:
    """A method that calls the function with each of the inputs in turn.

    With inputs larger together than a cache, every call reads from memory.
    """
    turns = itertools.cycle(inputs)
    return lambda: function(*next(turns))


def copies_beyond_cache(size: int, device: str = "cpu") -> int:
    """How many inputs of ``size`` bytes exceed the last-level cache together, at least 1.

    One where four would fit: a loop that is small enough stays in the cache in practice too.
    """
    if on_gpu(device):
        cache = int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20))
        return max(1, math.ceil(4 * cache / max(size, 1)))
    sizes = [_sysfs_bytes(path) for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    cache = max(sizes, default=32 << 20)
    return 1 if 4 * size < cache else max(2, math.ceil(2 * cache / size))


def _sysfs_bytes(path: Path) -> int:
    text = path.read_text().strip()
    return int(text.rstrip("KM")) * {"K": 1 << 10, "M": 1 << 20}.get(text[-1], 1)


def machine(device: str = "cpu") -> dict[str, Any]:
    """What a result depends on: date, processor, versions."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    model = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), platform.processor())
    info = zx.build_info()
    out = {"date": datetime.date.today().isoformat(), "cpu": f"{model}, {os.cpu_count()} cores", "isa": info["isa"]}
    if on_gpu(device):
        out |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    if "OMP_PROC_BIND" in os.environ:  # else a scheduler may leave two threads on one processor
        out["OMP_PROC_BIND"] = os.environ["OMP_PROC_BIND"]
    return out | {
        "zerosum_ext": info["zerosum_ext"],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, text_columns: int = 1) -> str:
    """A Markdown table; the first ``text_columns`` are text, the others numbers."""
    rule = ["---" if i < text_columns else "--:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(str(cell) for cell in row)} |" for row in [header, rule, *rows])


def data_set(name: str) -> zx.Interactions | None:
    """``zx.datasets.load(name)``; None where $ZEROSUM_EXT_DATA names no folder with the file."""
    path = Path(os.environ.get("ZEROSUM_EXT_DATA", "."), f"{name}.npz")
    return zx.Interactions.from_file(path) if path.exists() else None


def earlier_rows(
    output: str | None,
    rows: Sequence[Mapping[str, Any]],
    key: Callable[[Mapping[str, Any]], Any],
    pick: Callable[[Any], list[dict[str, Any]]] = lambda results: results,
) -> list[dict[str, Any]]:
    """The rows of OUTPUT.json (``pick`` finds them among its results) that are of other keys than ``rows``."""
    path = Path(f"{output}.json")
    if not output or not path.exists():
        return []
    comparable = lambda row: json.dumps(key(row))  # noqa: E731  (tuples became lists in the file)
    now = set(map(comparable, rows))
    return [row for row in pick(json.loads(path.read_text())["results"]) if comparable(row) not in now]


def write_results(
    output: str | None,
    title: str,
    info: Mapping[str, Any],
    paragraphs: Sequence[str],
    results: Any,
    *,
    quiet: bool = False,
) -> str:
    """Prints the report, unless ``quiet``, and returns it; with ``output`` also writes OUTPUT.md and OUTPUT.json (the
    machine and the raw results)."""
    text = "\n\n".join([f"# {title}", ", ".join(f"{k} {v}" for k, v in info.items()), *paragraphs]) + "\n"
    if not quiet:
        print(text)
    if output:
        Path(f"{output}.md").write_text(text)
        Path(f"{output}.json").write_text(json.dumps({"machine": dict(info), "results": results}, indent=1) + "\n")
    return text
