"""Accuracy against bias: numbers for what a method reaches over the values of its strength.

A method gives a point (accuracy, bias) for each value of its strength. Plain BPR is the baseline of all. Bias is turned
into the share of the baseline's bias that is taken away::

    reduction = 1 - |bias - ideal| / |baseline's bias - ideal|

It is 0 at the baseline, 1 if no bias is left, and negative if there is more bias than before. Accuracy is a share of
the baseline's. The frontier is the step function

    f(r) = the largest accuracy of the points, the baseline among them, whose reduction is at least r; 0 where none has

and the area is its integral over r from 0 to 1. Nothing is interpolated: between two strengths that were tried, the
stronger one counts. A method that takes all bias away at no cost has area 1, and a method that does nothing has area 0.
More strengths can only raise the area, so compare methods that have about equally many.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from zerosum_ext._checks import require_finite_number

__all__ = ["area", "best_reduction", "reduction"]

Point = tuple[float, float]


def reduction(bias: float, baseline: float, ideal: float = 0.0) -> float:
    """Return the share of the baseline's distance from the ideal that is taken away (see the module's text).

    Raises:
        ValueError: the baseline has no bias to take away, or a value is not finite.
    """
    values = {"bias": bias, "baseline": baseline, "ideal": ideal}
    for name, value in values.items():
        require_finite_number(name, value)
    if baseline == ideal:
        raise ValueError(f"baseline: expected a bias other than the ideal {ideal}, got {baseline}")
    return 1 - abs(bias - ideal) / abs(baseline - ideal)


def area(points: Iterable[Point], baseline: Point, ideal: float = 0.0) -> float:
    """Return the area under the frontier of the points (accuracy, bias) and the baseline (see the module's text).

    Args:
        points: one point for each strength.
        baseline: (accuracy, bias) of plain BPR, with accuracy > 0.
        ideal: the value of the bias metric if there is no bias: 0 for PRI, .5 for PopQ@1.
    """
    total = reached = 0.0
    for r, share in _steps(points, baseline, ideal):
        r = min(max(r, 0.0), 1.0)
        if r > reached:
            total += (r - reached) * share
            reached = r
    return total


def _steps(points: Iterable[Point], baseline: Point, ideal: float) -> list[tuple[float, float]]:
    """Return (reduction, share of accuracy), the most accurate first: the first to reach a reduction is the best."""
    accuracy, bias = baseline
    if not accuracy > 0 or not math.isfinite(accuracy):
        raise ValueError(f"baseline: expected a finite accuracy above 0, got {accuracy}")
    shares = [(reduction(b, bias, ideal), require_finite_number("accuracy", a) / accuracy) for a, b in points]
    return sorted([*shares, (0.0, 1.0)], key=lambda step: -step[1])


def best_reduction(points: Iterable[Point], baseline: Point, ideal: float = 0.0, *, share: float = 0.95) -> float:
    """Return the largest reduction among points that keep ``share`` of the baseline's accuracy, and at least 0."""
    return max(r for r, kept in [*_steps(points, baseline, ideal), (0.0, math.inf)] if kept >= share)
