"""The table of metrics that ``train`` and ``evaluate`` print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

# The part of metrics.json that the table shows: (metric, label) by group.
_ROWS = (
    ("accuracy", (("hr", "Hit"), ("recall", "Recall"), ("ndcg", "NDCG"), ("auc", "AUC"))),
    ("popularity bias among a user's own items", (("pri", "PRI"), ("pop_q_at_1", "PopQ@1"), ("upo", "uPO"))),
    (
        "exposure",
        (("arp", "ARP"), ("aplt", "long-tail share"), ("coverage", "coverage"), ("gini", "Gini")),
    ),
)


_LEGEND = (
    "PRI, uPO: 0 ideal, 1 the popular first. PopQ@1: .5 ideal, 0 the most popular on top. ARP: mean popularity of "
    "what is recommended."
)


def comparison(metrics: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return the metrics of one or two methods as a table, with the difference between two."""
    names = list(metrics)
    width = max(10, *(len(name) + 2 for name in names))
    head = "".join(f"{name:>{width}}" for name in names) + (f"{'difference':>12}" if len(names) == 2 else "")
    lines = [f"{'':<22}{head}"]
    for title, rows in _ROWS:
        lines.append(title)
        for metric, label in rows:
            for key in metrics[names[-1]]:
                name, at, cutoff = key.partition("@")
                if key == metric or (name == metric and at):
                    shown = label + (f" @{cutoff}" if at and key != metric else "")
                    lines.append(f"  {shown:<20}" + _cells([metrics[n].get(key) for n in names], width))
    return "\n".join([*lines, _LEGEND])


def _cells(values: Sequence[float | None], width: int) -> str:
    large = any(value is not None and abs(value) >= 10 for value in values)
    cells = [f"{_number(value, large):>{width}}" for value in values]
    if len(values) == 2:
        first, second = values
        difference = "" if first is None or second is None else _number(second - first, large, "+")
        cells.append(f"{difference:>12}")
    return "".join(cells)


def _number(value: float | None, large: bool, sign: str = "") -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:{sign}.1f}" if large else f"{value:{sign}.4f}"
