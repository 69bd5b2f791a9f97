"""Reading: CPU seconds, wall and peak memory of from_file beside pyarrow, polars and pandas, taking turns.

Each method runs in a process of its own, so that peak memory is its own; it is counted from after the imports. The
others read the file and number the ids; only from_file also builds the CSR matrix.

    python benchmarks/bench_reading.py --rows 5000000 --output benchmarks/results/reading
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _timing import machine, spread, table, write_results

METHODS = ("zerosum_ext", "pyarrow", "polars", "pandas")
_RUN = """
import json, resource, sys, time
method, path, limit = sys.argv[1:]
def peak_kb():  # (ru_maxrss would begin with the memory of the process that started this one)
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
if method == "zerosum_ext":
    import torch, zerosum_ext as zx
    import pyarrow.csv
    torch.set_num_threads(2)
    interactions = zx.Interactions  # loads what reads
    read = lambda: interactions.from_file(path)
elif method == "pyarrow":
    import pyarrow.csv as csv
    def read():
        t = csv.read_csv(path)
        return t, t["user_id"].dictionary_encode(), t["item_id"].dictionary_encode()
elif method == "polars":
    import polars as pl
    def read():
        t = pl.read_csv(path)
        number = lambda c: c.cast(pl.Categorical) if c.dtype == pl.String else c.rank("dense")
        return t, number(t["user_id"]), number(t["item_id"])
else:
    import pandas as pd
    def read():
        t = pd.read_csv(path, engine="pyarrow")
        return t, pd.factorize(t["user_id"]), pd.factorize(t["item_id"])
before = peak_kb()
if float(limit):  # of all memory that can be written to, used or not, what was loaded before with it
    resource.setrlimit(resource.RLIMIT_DATA, (int(float(limit) * 2**30),) * 2)
cpu, wall = time.process_time(), time.perf_counter()
kept = read()
cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
peak = peak_kb() - before
print(json.dumps({"cpu": cpu, "wall": wall, "peak_mb": peak / 1024}))
"""
_ROWS_AT_A_TIME = 5_000_000


def make(path: Path, rows: int, ids: str, quotes: str) -> None:
    """Write a file of ratings with a long tail of items."""
    import pyarrow as pa
    from pyarrow import csv

    rng = np.random.default_rng(0)
    style = "all_valid" if quotes == "all" else "none"
    mark = "" if quotes == "none" else '"'
    names = ("user_id", "item_id", "rating", "timestamp")
    with path.open("wb") as file:
        file.write((",".join(f"{mark}{name}{mark}" for name in names) + "\n").encode())
        for begin in range(0, rows, _ROWS_AT_A_TIME):
            count = min(_ROWS_AT_A_TIME, rows - begin)
            users = (rng.lognormal(size=count) * 20_000).astype(np.int64) % 200_000
            items = (rng.pareto(1, size=count) * 500).astype(np.int64) % 100_000
            columns = {"user_id": pa.array(users), "item_id": pa.array(items)}
            if ids == "text":
                for name, pattern in (("user_id", "A{:013X}"), ("item_id", "B{:09d}")):
                    words = pa.array([pattern.format(k * 7919) for k in range(200_000)])
                    columns[name] = pa.DictionaryArray.from_arrays(columns[name], words).cast(pa.string())
            columns["rating"] = pa.array(rng.integers(1, 11, count) / 2)
            columns["timestamp"] = pa.array(rng.integers(1_500_000_000, 1_700_000_000, count))
            csv.write_csv(pa.table(columns), file, csv.WriteOptions(include_header=False, quoting_style=style))


def measure(path: Path, rounds: int, methods: list[str], limit: float) -> dict[str, dict[str, list[float]]]:
    """Return CPU seconds, wall seconds and megabytes of each method, round by round."""
    out: dict[str, dict[str, list[float]]] = {m: {"cpu": [], "wall": [], "peak_mb": []} for m in methods}
    for turn in range(rounds):
        for method in methods[turn % len(methods) :] + methods[: turn % len(methods)]:
            command = [sys.executable, "-c", _RUN, method, str(path), str(limit)]
            run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            for key, value in json.loads(run.stdout.splitlines()[-1]).items():
                out[method][key].append(value)
    return out


def pooled(earlier: list[dict[str, Any]], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rounds of both, file by file."""
    out = {(r["ids"], r["quotes"], r["rows"]): r for r in earlier}
    for one in results:
        before = out.setdefault((one["ids"], one["quotes"], one["rows"]), one)
        if before is not one:
            for method, values in one["measured"].items():
                for key in values:
                    before["measured"][method][key] += values[key]
    return list(out.values())


def rows_of(results: list[dict[str, Any]]) -> list[list[str]]:
    """Return the rows of the table of results."""
    rows = []
    for one in results:
        found = one["measured"]
        base = {key: np.array(values) for key, values in found.get("pyarrow", {}).items()}
        for method, values in found.items():
            ratios = [str(spread(np.array(values[key]) / base[key])) if base else "" for key in values]
            cpu, wall, peak = (float(np.median(values[key])) for key in ("cpu", "wall", "peak_mb"))
            rows.append([one["ids"], one["quotes"], method, f"{cpu:.2f}", f"{wall:.2f}", f"{peak:.0f}", *ratios])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=5, help="processes of each method; 0 only makes the files")
    parser.add_argument("--ids", nargs="+", choices=("int", "text"), default=["int", "text"])
    parser.add_argument("--quotes", nargs="+", choices=("none", "header", "all"), default=["none", "header", "all"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--limit", type=float, default=0, help="GiB of memory that a process may have; 0: no limit")
    parser.add_argument("--folder", type=Path, help="where the files are made, and found again; else they are not kept")
    parser.add_argument("--pool", type=Path, help="results of an earlier run, whose rounds are added")
    parser.add_argument("--output", help="write OUTPUT.md and OUTPUT.json")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        for ids in arguments.ids:
            for quotes in arguments.quotes:
                path = (arguments.folder or Path(temporary)) / f"{arguments.rows}-{ids}-{quotes}.csv"
                if not path.exists():
                    part = path.with_suffix(".part")
                    make(part, arguments.rows, ids, quotes)
                    part.rename(path)
                if not arguments.rounds:
                    continue
                found = measure(path, arguments.rounds, arguments.methods, arguments.limit)
                if arguments.folder is None:
                    path.unlink()
                results.append({"ids": ids, "quotes": quotes, "rows": arguments.rows, "measured": found})
    if arguments.pool:
        results = pooled(json.loads(arguments.pool.read_text(encoding="utf-8"))["results"], results)
    header = ["ids", "quotes", "method", "CPU s", "wall s", "peak MB"]
    header += [f"{what} / pyarrow" for what in ("CPU", "wall", "peak")]
    rounds = max((len(one["measured"][arguments.methods[0]]["cpu"]) for one in results), default=0)
    text = [f"{arguments.rows:,} rows; medians of {rounds} processes each, quartiles in brackets."]
    if arguments.limit:
        text.append(f"No process could have more than {arguments.limit:g} GiB of memory to write to (RLIMIT_DATA).")
    content = [*text, table(header, rows_of(results), text_columns=3)]
    write_results(arguments.output, "Reading a CSV file", machine(), content, results)


if __name__ == "__main__":
    main()
