"""The table of metrics that ``train`` and ``evaluate`` print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

# The part of metrics.json that the table shows, by group.
_ROWS = (
    ("accuracy", ("hr", "recall", "ndcg", "auc")),
    ("popularity bias among a user's own items", ("pri", "pop_q_at_1", "upo")),
    ("exposure", ("arp", "aplt", "coverage", "gini")),
)


_LEGEND = (
    "PRI, uPO: 0 ideal, 1 the popular first. PopQ@1: .5 ideal, 0 the most popular on top. ARP: mean popularity of "
    "what is recommended."
)


def comparison(metrics: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return the metrics of one or two methods as a table, with the difference between two."""
    from zerosum_ext.metrics import MEASURES

    names = list(metrics)
    width = max(10, *(len(name) + 2 for name in names))
    head = "".join(f"{name:>{width}}" for name in names) + (f"{'difference':>12}" if len(names) == 2 else "")
    lines = [f"{'':<22}{head}"]
    for title, rows in _ROWS:
        lines.append(title)
        for metric in rows:
            for key in metrics[names[-1]]:
                name, at, cutoff = key.partition("@")
                if key == metric or (name == metric and at):
                    shown = MEASURES[metric].title + (f" @{cutoff}" if at and key != metric else "")
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


# Columns of the table of candidates: (label, key of the measures without its cut-off).
_COLUMNS = (("PopQ@1", "pop_q_at_1"), ("uPO", "upo"), ("ARP", "arp"), ("long-tail", "aplt"), ("coverage", "coverage"))


def candidates_table(told: Mapping[str, Any]) -> str:
    """Return the candidates of a comparison with their measures in validation, the most accurate first.

    Args:
        told: what :meth:`zerosum_ext.experiments.compare.Comparison.to_dict` returns.
    """
    rows = sorted(told["candidates"], key=lambda row: -(row["accuracy"] if row["accuracy"] is not None else -1.0))
    width = max(14, *(len(row["name"]) for row in rows))
    head = f"  {'':<{width}}  {'accuracy':>8}" + "".join(f"{label:>10}" for label, _ in _COLUMNS)
    lines = [f"{head}{'bias left':>10}  epochs"]
    for row in rows:
        mark = ">" if row["name"] == told["chosen"] else "*" if row["on_front"] else " "
        if row["failed"]:
            lines.append(f"{mark} {row['name']:<{width}}  failed: {row['failed']}")
            continue
        remark = {"post": " after training", "yardstick": " yardstick"}.get(row["kind"], "")
        remark += "" if row["finished"] else " (left)"
        values = _measures(row["values"])
        cells = "".join(f"{_short(values.get(name)):>10}" for _, name in _COLUMNS)
        accuracy, left = _short(row["accuracy"]), _short(row["bias_left"])
        lines.append(f"{mark} {row['name']:<{width}}  {accuracy:>8}{cells}{left:>10}  {row['trained']}{remark}")
    popular = _measures(told["most_popular"])
    accuracy = _short(next(iter(told["most_popular"].values())))
    cells = "".join(f"{_short(popular.get(name)):>10}" for _, name in _COLUMNS)
    lines.append(f"  {'most popular':<{width}}  {accuracy:>8}{cells}{'':>10}  0 yardstick")
    return "\n".join(lines)


def _measures(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {key.partition("@")[0]: value for key, value in values.items()}


def _short(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.4f}"
