#!/usr/bin/env python
"""Write docs/performance.md from the results in benchmarks/results: python tools/performance.py."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
HEAD = """# Performance

Generated from the files in `benchmarks/results` by `python tools/performance.py`. Each part says when and where it was
measured, and by which version. Ratios are medians of paired rounds: the two things that are compared run in turn. Above
1 the other one takes longer. The files have the quartiles, more sizes and more peers.
"""


def read(name: str) -> dict[str, Any]:
    """Return a file of results."""
    data: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return data


def paragraphs(name: str) -> list[str]:
    """Return what a report says below its title and its machine."""
    return (RESULTS / f"{name}.md").read_text(encoding="utf-8").strip().split("\n\n")[2:]


def number(value: float) -> str:
    """Return a number with three figures."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def median(values: Sequence[float]) -> float:
    """Return the middle one of (lower quartile, median, upper quartile)."""
    return sorted(values)[len(values) // 2]


def where(machine: dict[str, Any], name: str) -> str:
    """Return a sentence about date, machine and file."""
    isa = f", {machine['isa']}" if "isa" in machine else ""
    gpu = f", {machine['gpu']}" if "gpu" in machine else ""
    return (
        f"Measured {machine['date']} on {machine['cpu']}{isa}{gpu}, zerosum_ext {machine['zerosum_ext']}, "
        f"torch {machine['torch']}. All figures: [{name}.md](../benchmarks/results/{name}.md).\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; columns of numbers are aligned to the right."""
    rows = list(rows)
    numbers = [all(re.fullmatch(r"[\d.,e+-]*", cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join('--:' if right else '---' for right in numbers)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def losses() -> str:
    """Return the part on losses."""
    data = read("losses-cpu")
    rows = [
        (
            r["loss"],
            " x ".join(map(str, r["shape"])),
            r["isa"],
            str(r["threads"]),
            number(r["microseconds"]["zerosum_ext"]),
            *(number(median(r["times_ours"][k])) if k in r["times_ours"] else "" for k in ("usual", "compiled")),
        )
        for r in data["results"]
        if r["loss"] in ("bpr", "zerosum", "pos2neg2") and r["shape"][0] in (16, 4096, 65536, 1000000)
    ]
    head = ("loss", "scores", "instructions", "threads", "microseconds", "usual PyTorch / ours", "torch.compile / ours")
    return f"## Losses, forward and backward\n\n{where(data['machine'], 'losses-cpu')}\n{table(head, rows)}"


def sampling() -> str:
    """Return the part on sampling."""
    data = read("sampling-cpu")
    rows = [
        (
            r["data"],
            r["method"],
            number(r["million_per_second"]),
            number(median(r["times_as_long"])),
            r["compared_with"],
        )
        for r in data["results"]
    ]
    head = ("data", "method", "million a second", "times as long", "as")
    return f"## Negative sampling\n\n{where(data['machine'], 'sampling-cpu')}\n{table(head, rows)}"


def evaluation() -> str:
    """Return the part on evaluation, on each kind of processor that was measured."""
    head = ("data", "method", "threads", "seconds", "times torch.mm", "times evaluate")
    parts = ["## Evaluation\n\n`torch.mm` is the matrix product of all scores alone.\n"]
    for name in ("evaluation-cpu", "evaluation-cpu-avx2"):
        data = read(name)
        rows = [
            (
                r["data"],
                r["method"],
                str(r["threads"]),
                number(median(r["seconds"])),
                number(median(r["of_product"])),
                number(median(r["of_evaluate"])),
            )
            for r in data["results"]["timings"]
            if r["threads"] == 1
        ]
        parts.append(f"{where(data['machine'], name)}\n{table(head, rows)}")
    return "\n".join(parts)


def graphs() -> str:
    """Return the part on graph models."""
    data = read("graph-cpu")
    rows = [
        (
            r["data"],
            str(r["dim"]),
            str(r["threads"]),
            r["part"],
            r["method"],
            number(r["milliseconds"]),
            number(median(r["times_as_long"])),
        )
        for r in data["results"]
    ]
    head = ("data", "d", "threads", "what", "by", "milliseconds", "times ours")
    return f"## Graph models\n\n{where(data['machine'], 'graph-cpu')}\n{table(head, rows)}"


def training() -> str:
    """Return the part on training: the targets, and what was reached, on each kind of processor that was measured."""
    parts = ["## Training\n"]
    for name in ("training-cpu-avx2", "training-cpu"):
        text = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
        targets = text.partition("## Targets\n")[2].partition("\n## ")[0].strip()
        parts.append(f"{where(read(name)['machine'], name)}\n{targets}\n")
    return "\n".join(parts)


def budget() -> str:
    """Return the part on what half a minute of training is worth: the curves, then what the results' file says."""
    name = "training-budget-cpu"
    text, *tables = paragraphs(name)
    picture = "![Validation NDCG@10 over the seconds of training, on three data sets](images/training_budget.png)"
    shown = "\n\n".join([text, picture, *(block.replace("## ", "### ") for block in tables)])
    return f"## What half a minute of training is worth\n\n{where(read(name)['machine'], name)}\n{shown}\n"


def instructions() -> str:
    """Return the part on instructions a triple."""
    name = "instructions-cpu"
    text, shown = paragraphs(name)
    return f"## Instructions a triple\n\n{where(read(name)['machine'], name)}\n{text}\n\n{shown}\n"


# The parts of a GPU's file that are shown: how their captions begin.
GPU_PARTS = ("Sampling", "Full ranking", "Whole epochs", "Losses", "The targets")


def gpu() -> str:
    """Return the part on GPUs: captions and tables of each GPU's file."""
    parts = ["## GPU\n"]
    for file in sorted(RESULTS.glob("gpu-*.json")):
        parts.append(where(read(file.stem)["machine"], file.stem))
        blocks = file.with_suffix(".md").read_text(encoding="utf-8").strip().split("\n\n")
        for caption, shown in pairwise(blocks):
            if caption.startswith(GPU_PARTS):
                parts.append(f"{caption}\n\n{shown}\n")
    parts.append("[cuda.md](cuda.md) says what these runs show, and what has not run on a GPU since.\n")
    return "\n".join(parts)


def page() -> str:
    """Return the text of docs/performance.md."""
    return "\n".join(
        [HEAD, losses(), sampling(), evaluation(), training(), instructions(), budget(), graphs(), reading(), gpu()]
    )


def reading() -> str:
    """Return the part on reading a CSV file."""
    rows, said = [], []
    for name in ("reading-cpu", "reading-20m-cpu", "reading-100m-cpu"):
        data = read(name)
        said.append(where(data["machine"], name))
        for r in data["results"]:
            ours = {key: median(values) for key, values in r["measured"]["zerosum_ext"].items()}
            others = {
                method: {
                    key: median([v / w for v, w in zip(values, r["measured"]["zerosum_ext"][key], strict=True)])
                    for key, values in measured.items()
                }
                for method, measured in r["measured"].items()
                if method != "zerosum_ext"
            }
            ratios = [number(others[m]["cpu"]) if m in others else "" for m in ("pyarrow", "polars", "pandas")]
            peak = number(others["pyarrow"]["peak_mb"]) if others else ""
            rows.append(
                [
                    r["ids"],
                    r["quotes"],
                    f"{r['rows'] / 1e6:g} M",
                    number(ours["cpu"]),
                    *ratios,
                    number(ours["peak_mb"]),
                    peak,
                ]
            )
    head = ["ids", "quotes", "rows", "CPU seconds", "pyarrow / ours", "polars / ours", "pandas / ours", "peak MB"]
    return (
        "## Reading a CSV file with user, item, rating and time\n\n"
        + "\n".join(said)
        + "\nThe others read the file and number the ids; ours also builds the matrix. Peak memory is counted from\n"
        "after the imports. With 100 million rows no process could have more than 6 GiB.\n\n"
        + table([*head, "pyarrow's peak / ours"], rows)
    )


def main() -> int:
    (ROOT / "docs" / "performance.md").write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
