"""Which candidates go on, which no other beats, and which one is taken: all by the validation part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from zerosum_ext.experiments.compare.candidates import Candidate
from zerosum_ext.experiments.compare.settings import Plan
from zerosum_ext.experiments.compare.trials import Record
from zerosum_ext.metrics import measure_of

__all__ = ["bias_left", "choose", "front", "layers", "promoted"]

# Candidates that keep less of BPR's accuracy than this do not go on before all others have.
_LEAST_ACCURACY = 0.7
_FIRST_CLASS = ("zerosum", "pos2neg2")


def bias_left(values: Mapping[str, float | None], base: Mapping[str, float | None], key: str) -> float:
    """Return how much bias there is; smaller is better.

    For a measure it is :meth:`zerosum_ext.metrics.Measure.distance`. For "overall" it is the mean of PopQ@1, uPO, ARP
    and coverage, each as a share of BPR's distance from the ideal: 1 is as biased as BPR, 0 without bias. Measures
    without a value are left out.

    Args:
        values, base: measures of a candidate and of BPR.
        key: "overall", or the key of a measure.

    Returns:
        A number, or NaN without any value.
    """
    if key != "overall":
        value = values.get(key)
        return math.nan if value is None else measure_of(key).distance(value)
    shares = []
    for name in values:
        mine, theirs = _distance_from_best(name, values.get(name)), _distance_from_best(name, base.get(name))
        if math.isfinite(mine) and math.isfinite(theirs) and theirs > 0:
            shares.append(mine / theirs)
    return sum(shares) / len(shares) if shares else math.nan


def _distance_from_best(key: str, value: float | None) -> float:
    """Return a distance of the measures of "overall", which is 0 without bias; NaN for other measures."""
    if value is None or key.partition("@")[0] not in ("pop_q_at_1", "upo", "arp", "coverage"):
        return math.nan
    return measure_of(key).distance(value)


Point = tuple[float, float]


def front(points: Mapping[str, Point]) -> list[str]:
    """Return the names of the points (accuracy, bias left) that no other beats in both, the most accurate first."""
    best = [
        name
        for name, (accuracy, bias) in points.items()
        if not any(a >= accuracy and b <= bias and (a > accuracy or b < bias) for a, b in points.values())
    ]
    return sorted(best, key=lambda name: (-points[name][0], points[name][1]))


def layers(points: Mapping[str, Point]) -> list[str]:
    """Return all names: those on the front, then those on the front of the rest, and so on."""
    rest, order = dict(points), []
    while rest:
        for name in front(rest):
            order.append(name)
        for name in order:
            rest.pop(name, None)
    return order


def _points(records: Mapping[str, Record], plan: Plan, base: str) -> dict[str, Point]:
    reference = records[base].values
    found = {}
    for name, record in records.items():
        accuracy, bias = record.value(plan.metric), bias_left(record.values, reference, plan.bias_key)
        if not record.failed and math.isfinite(accuracy) and math.isfinite(bias):
            found[name] = (accuracy, bias)
    return found


def promoted(
    everyone: Sequence[Candidate], records: Mapping[str, Record], plan: Plan, base: str, last: bool
) -> list[Candidate]:
    """Return the candidates that go on to the next rung.

    One in ``plan.keep`` goes on, in the order of :func:`layers`; candidates that lose much accuracy come last. Before
    the last rung each family keeps its first one as well, and so do Zerosum and Pos2Neg2 in the last. BPR, which all
    are measured against, always goes on.

    Args:
        everyone: the candidates that were measured in this rung, all for about the same share of their epochs.
        records: what was measured.
        plan: the settings.
        base: the name of BPR.
        last: whether the next rung is the last one.
    """
    points = _points({one.name: records[one.name] for one in everyone}, plan, base)
    least = _LEAST_ACCURACY * points[base][0] if base in points else 0.0
    order = layers({name: p for name, p in points.items() if p[0] >= least})
    order += layers({name: p for name, p in points.items() if p[0] < least})
    count = math.ceil(len(everyone) / plan.keep)
    chosen = set(order[:count]) | {base}
    family = {one.name: one.family for one in everyone}
    seen: set[str] = set()
    for name in order:
        if family[name] not in seen and (not last or family[name] in _FIRST_CLASS):
            chosen.add(name)
        seen.add(family[name])
    return [one for one in everyone if one.name in chosen]


def choose(
    everyone: Sequence[Candidate], records: Mapping[str, Record], plan: Plan, base: str
) -> tuple[str, list[str], dict[str, Point]]:
    """Take a setting from the front.

    Returns:
        (the name of the setting taken, the names on the front, the points of all that have values). Only settings that
        are trained to their end are on the front; only kind "trained" is taken.

    Raises:
        ValueError: the measure of bias has no value for BPR.
    """
    points = _points(records, plan, base)
    if base not in points:
        reason = records[base].failed or f"{plan.bias_key} has no value on the validation part; choose another --bias"
        raise ValueError(f"bias: BPR, which all are compared with, has no point: {reason}")
    kind = {one.name: one.kind for one in everyone}
    done = {name: p for name, p in points.items() if records[name].finished and kind[name] != "yardstick"}
    able = {name: p for name, p in done.items() if kind[name] == "trained"}
    if plan.goal == "accuracy":
        taken = max(able, key=lambda name: (able[name][0], -able[name][1]))
    else:
        least = (1 - plan.cost) * points[base][0]
        affordable = [name for name, p in able.items() if p[0] >= least]
        taken = min(affordable, key=lambda name: (able[name][1], -able[name][0]))
    return taken, front(done), points
