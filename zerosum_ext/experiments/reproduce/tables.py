"""The report of an experiment: Markdown tables with the published figures beside those reached."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zerosum_ext.experiments import frontier
from zerosum_ext.experiments.reproduce.results import Results
from zerosum_ext.metrics import measure_of

NAMES = {
    "error": "error %",
    "pri": "PRI",
    "pop_q_at_1": "PopQ@1",
    "upo": "uPO",
    "hit@10": "Hit@10",
    "ndcg@10": "NDCG@10",
    "full/ndcg@10": "full NDCG@10",
}


def report(results: Results, figures: Mapping[str, str] | None = None) -> str:
    """Return a Markdown section: mean and standard deviation over seeds of every figure, beside the published one.

    Args:
        results: what :func:`run` or :func:`load` returned.
        figures: caption -> address of the pictures to show, such as :func:`draw` returns.
    """
    e = results.experiment
    header = ["method", "seeds", *(head(c, e.protocol) for c in e.columns)]
    lines = [f"## {e.title}", ""]
    if e.note:
        lines += [e.note.strip(), ""]
    for epoch in e.epochs() if any(results.records.values()) else ():
        if e.protocol != "synthetic":
            lines += [{"last": "Last epoch, as in the paper:", "best": "Best epoch in validation:"}[epoch], ""]
        extra = ["epoch"] if epoch == "best" else []
        lines += [
            f"| {' | '.join(header + extra)} |",
            f"|---|--:|{'--:|' * len(e.columns + tuple(extra))}",
        ]
        for name, records in results.records.items():
            if records:
                cells = [cell(results, name, column, epoch) for column in e.columns]
                cells += ["-".join(f"{v:.0f}" for v in _range(results.values(name, c, epoch))) for c in extra]
                lines.append(f"| {name} | {len(records)} | {' | '.join(cells)} |")
        lines.append("")
    lines += [*_epoch_lines(results), *_frontier_lines(results)]
    for caption, address in (figures or {}).items():
        lines += [f"![{caption}]({address})", ""]
    missing = [
        name for name, records in results.records.items() if len(records) < len(e.fewer_seeds.get(name, e.seeds))
    ]
    if missing:
        lines += [f"Not finished: {', '.join(missing)}.", ""]
    lines += _cost_lines(results)
    return "\n".join(lines) + "\n"


def head(column: str, protocol: str) -> str:
    """Return the head of a column; of tuned experiments with an arrow to what is better."""
    if protocol != "tuned":
        return NAMES.get(column, column)
    return f"{measure_of(column).label(column)} {measure_of(column).arrow}".strip()


def _range(values: np.ndarray) -> list[float]:
    return sorted({float(np.min(values)), float(np.max(values))})


def _epoch_lines(results: Results, count: int = 3) -> list[str]:
    """Return a table of how far figures move in the last epochs, from records that have figures of each epoch."""
    e = results.experiment
    lines = []
    for name, records in results.records.items():
        figures = [r["history"]["figures"][-count:] for r in records if "figures" in r["history"]]
        if figures:
            cells = []
            for column in e.columns:
                factor, digits = (100, 4) if column == "error" else (1, 3)
                low, high = (f([x[column] for one in figures for x in one]) * factor for f in (np.nanmin, np.nanmax))
                cells.append(f"{low:.{digits}f} to {high:.{digits}f}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    if not lines:
        return []
    head = ["method", *(NAMES.get(c, c) for c in e.columns)]
    text = f"Lowest to highest over the last {count} epochs of all seeds:"
    return [text, "", f"| {' | '.join(head)} |", f"|---|{'--:|' * len(e.columns)}", *lines, ""]


def _cost_lines(results: Results) -> list[str]:
    """Return a table of each method's time (medians) and largest memory. A sweep has one line for all its strengths."""
    e = results.experiment
    member = {name: family for family, names in e.families.items() for name in names}
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, records in results.records.items():
        groups.setdefault(member.get(name, name), []).extend(r for r in records if r["trained_here"])
    lines = ["| one run | CPU s | s | of these training | s an epoch | peak MB |", "|---|--:|--:|--:|--:|--:|"]
    for name, records in groups.items():
        if records:
            cpu, whole = (np.median([r[key] for r in records]) for key in ("cpu_seconds", "seconds"))
            training = np.median([sum(r["history"]["seconds"]) for r in records])
            each = [x for r in records for x in r["history"]["seconds"]]
            epoch = f"{np.median(each):.2f}" if each else "-"
            memory, engine = max(r["peak_memory_mb"] for r in records), records[0]["history"]["engine"]
            lines.append(f"| {name} ({engine}) | {cpu:.1f} | {whole:.1f} | {training:.1f} | {epoch} | {memory:.0f} |")
    done = [r for records in results.records.values() for r in records]
    if not done:
        return []
    threads = "-".join(str(int(v)) for v in _range(np.array([r["threads"] for r in done])))
    minutes = sum(r["cpu_seconds"] for r in done) / 60
    text = f"{len(done)} runs of {threads} thread(s), {minutes:.1f} CPU minutes in all. Times are medians."
    return [*lines, "", text]


def points(results: Results, names: Sequence[str], accuracy: str, bias: str, epoch: str) -> list[tuple[float, float]]:
    """Return (accuracy, bias), means over seeds, of those methods that are finished."""
    return [
        (float(np.mean(results.values(n, accuracy, epoch))), float(np.mean(results.values(n, bias, epoch))))
        for n in names
        if results.records[n]
    ]


# Measures of bias and their ideal values.
BIAS = {"pri": 0.0, "pop_q_at_1": 0.5}


_KEPT = (0.99, 0.98, 0.95, 0.90)


# Sampled, as in the paper, and over all items.
ACCURACY = ("ndcg@10", "full/ndcg@10")


def _frontier_lines(results: Results) -> list[str]:
    """Return tables of the areas under the frontiers, and of what each family reaches at a given cost."""
    e = results.experiment
    base = e.baseline
    if not e.families or base is None or not results.records[base]:
        return []
    lines = []
    for epoch, accuracy in itertools.product(e.epochs(), ACCURACY):
        for bias, ideal in BIAS.items():
            lines += _frontier_table(results, base, accuracy, bias, ideal, epoch)
    return lines


def _frontier_table(results: Results, base: str, accuracy: str, bias: str, ideal: float, epoch: str) -> list[str]:
    start = points(results, [base], accuracy, bias, epoch)[0]
    head = [f"keeps {100 * k:.0f} %" for k in _KEPT]
    lines = [
        f"Frontier of {NAMES[accuracy]} and {NAMES[bias]}, {epoch} epoch: area under it, and the largest "
        f"share of BPR's bias ({start[1]:.3f}, ideal {ideal:g}) that is taken away while so much of its "
        f"{NAMES[accuracy]} ({start[0]:.3f}) is kept:",
        "",
        f"| family | strengths | area | {' | '.join(head)} |",
        f"|---|--:|--:|{'--:|' * len(head)}",
    ]
    rows = {}
    for family, names in results.experiment.families.items():
        reached = points(results, names, accuracy, bias, epoch)
        shares = [frontier.best_reduction(reached, start, ideal, share=kept) for kept in _KEPT]
        rows[family] = (len(reached), [frontier.area(reached, start, ideal), *shares])
    best = np.max([values for _, values in rows.values()], axis=0)
    for family, (count, values) in rows.items():
        cells = [f"**{v:.3f}**" if v == top and v > 0 else f"{v:.3f}" for v, top in zip(values, best, strict=True)]
        lines.append(f"| {family} | {count} | {' | '.join(cells)} |")
    return [*lines, ""]


def cell(results: Results, name: str, column: str, epoch: str) -> str:
    """Return a figure of a method: mean and standard deviation over seeds, beside the published one."""
    factor, digits = (100, 4) if column == "error" else (1, 1 if column.startswith("arp") else 3)
    values = factor * results.values(name, column, epoch)
    text = f"{np.mean(values):.{digits}f}"
    if values.size > 1:
        text += f" ± {np.std(values, ddof=1):.{digits}f}"
    published = results.experiment.published[name].get(column)
    if published is not None and epoch == "last":
        text += f" (published {factor * published:.3g}, {np.mean(values) - factor * published:+.{digits}f})"
    return text
