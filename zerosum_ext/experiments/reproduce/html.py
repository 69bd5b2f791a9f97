"""report.html of experiments: verdict, tables, figures with shared scales, settings and environment on one page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zerosum_ext.experiments.report import Figure, Page, Section, render, svg
from zerosum_ext.experiments.reproduce.evidence import BIASES
from zerosum_ext.experiments.reproduce.glance import Shown, in_words, short_setting
from zerosum_ext.experiments.reproduce.results import Results
from zerosum_ext.experiments.reproduce.tables import cell, head
from zerosum_ext.metrics import measure_of

__all__ = ["page"]

# A method that loses more than this of BPR's accuracy would press all others of a figure into a corner.
_FAR = -30.0


def page(results: Sequence[Results], tuned: Sequence[Shown], title: str = "Experiments") -> str:
    """Return the report of experiments as HTML: one file that loads nothing and runs no script.

    Args:
        results: what is finished of each experiment.
        tuned: those of them that have the protocol "tuned" and a finished cell.
        title: the heading.
    """
    done = [one for one in results if any(one.records.values())]
    verdict = [in_words(tuned), *_sentences(tuned)] if tuned else []
    verdict += [text for one in done if (text := _beside_the_published(one))]
    open_ = [
        f"{one.experiment.title}: {len(one.experiment.cells()) - sum(map(len, one.records.values()))} of "
        f"{len(one.experiment.cells())} runs are not finished"
        for one in results
        if sum(map(len, one.records.values())) < len(one.experiment.cells())
    ]
    return render(
        Page(
            title=title,
            verdict=verdict or ["Nothing is finished yet."],
            warnings=open_,
            advice=["the same command again: it goes on"] if open_ else [],
            measures=_measures(tuned) if tuned else _table(done[0], "Figures") if done else Section("Figures"),
            figures=[*_tuned_figures(tuned), *_figures([one for one in done if one.experiment.protocol != "tuned"])],
            users=(),
            sections=[
                *(_table(one, one.experiment.title) for one in (done if tuned else done[1:])),
                *(_settings(one) for one in done),
                _environment(done),
            ],
        )
    )


def _sentences(tuned: Sequence[Shown]) -> list[str]:
    """Return what the recommended setting of each data set changes against BPR."""
    lines = []
    for one in tuned:
        found = one.recommended()
        against = None if found is None else one.told[found[1]].get("against")
        if found is None or against is None:
            continue
        change = against["ndcg@10"]["relative"]
        a, b = one.told[found[1]]["bpr"]["mean"], one.told[found[1]]["mean"]
        moved = [
            f"{measure_of(key).label(key)} {measure_of(key).write(a[key])} -> {measure_of(key).write(b[key])}"
            + ("" if against[key]["better"] or against[key]["worse"] else " (not significant)")
            for key in BIASES
        ]
        sure = "" if change["low"] > 0 or change["high"] < 0 else "; not significant"
        lines.append(
            f"{one.title}: {found[1]} against BPR: accuracy (NDCG@10) {100 * change['difference']:+.1f} % (95 %: "
            f"{100 * change['low']:+.1f} to {100 * change['high']:+.1f}{sure}), {', '.join(moved)}."
        )
    return lines


def _beside_the_published(one: Results) -> str:
    """Return how far the figures are from the published ones, or an empty text without any."""
    far = [
        (abs(float(np.mean(one.values(name, column))) - value), name, column)
        for name, columns in one.experiment.published.items()
        if one.records[name]
        for column, value in columns.items()
    ]
    if not far:
        return ""
    most, name, column = max(far)
    return (
        f"{one.experiment.title}: {len(far)} published figures are beside those reached; the largest difference is "
        f"{most:.3f} ({name}, {head(column, one.experiment.protocol)})."
    )


def _measures(tuned: Sequence[Shown]) -> Section:
    keys = ("ndcg@10", *BIASES)
    heads = [f"{measure_of(key).label(key)} {measure_of(key).arrow}" for key in keys]
    rows = []
    for one in tuned:
        found = one.recommended()
        if found is not None:
            a, b = one.told[found[1]]["bpr"]["mean"], one.told[found[1]]["mean"]
            cells = [f"{measure_of(key).write(a[key])} -> {measure_of(key).write(b[key])}" for key in keys]
            rows.append([one.title, found[1], *cells, one.verdict()])
    text = (
        "From BPR to the setting that validation recommends, on the test part. Reached: at most 1 % less accurate than "
        "BPR (lower bound of the 95 % interval), and three of the four measures of bias better. PopQ@1 says how "
        "popular the item is that the model puts first among those a user likes, 0 the most popular."
    )
    return Section("Recommended settings", ["data", "recommended", *heads, "reached"], rows, text)


def _tuned_figures(tuned: Sequence[Shown]) -> list[Figure]:
    """Return a figure for each data set, all with the same scales."""
    points = {
        one.title: {
            name: (each.bias, each.accuracy)
            # Yardsticks come last, so that methods have the same mark where one of these is too far off to be shown.
            for name, each in sorted(one.beside().items(), key=lambda told: told[1].yardstick)
        }
        for one in tuned
    }
    shown = {
        title: {name: p for name, p in methods.items() if math.isfinite(p[0]) and p[1] >= _FAR}
        for title, methods in points.items()
    }
    x = svg.Axis.of("bias, 1: as BPR, 0: none", [p[0] for each in shown.values() for p in each.values()], ideal=0.0)
    y = svg.Axis.of("NDCG@10 beside BPR, %", [p[1] for each in shown.values() for p in each.values()], zero=True)
    figures = []
    for one in tuned:
        methods = shown[one.title]
        found = one.recommended()
        best = "" if found is None else found[1]
        dots = [svg.Dot(*p, name, name, name == best) for name, p in methods.items()]
        alt = f"{one.title}: " + "; ".join(
            f"{name}: NDCG@10 {p[1]:+.1f} %, bias {p[0]:.2f}" for name, p in methods.items()
        )
        far = len(points[one.title]) - len(methods)
        text = f"{one.title}. Named is what validation recommends." + (
            f" Not shown: {far} that lose more than {-_FAR:.0f} %." if far else ""
        )
        if dots:
            figures.append(Figure(svg.scatter(alt, dots, x, y), text))
    return figures


def _figures(results: Sequence[Results]) -> list[Figure]:
    """Return a figure for each other experiment: a measure against PopQ@1, with shared scales and ideals."""
    found: dict[str, list[tuple[Results, dict[str, tuple[float, float]]]]] = {}
    for one in results:
        e = one.experiment
        key = "ndcg@10" if "ndcg@10" in e.columns else "pri" if "pri" in e.columns else ""
        if key and "pop_q_at_1" in e.columns:
            epoch = e.epochs()[-1]
            points = {
                name: (
                    float(np.mean(one.values(name, "pop_q_at_1", epoch))),
                    float(np.mean(one.values(name, key, epoch))),
                )
                for name, records in one.records.items()
                if records
            }
            found.setdefault(key, []).append((one, points))
    figures = []
    for key, several in found.items():
        ys = [p[1] for _, points in several for p in points.values()]
        label = measure_of(key).label(key)
        y = svg.Axis.of(label, ys, ideal=measure_of(key).ideal if key == "pri" else None)
        quantile = measure_of("pop_q_at_1")
        x = svg.Axis.of("PopQ@1", [p[0] for _, points in several for p in points.values()], ideal=quantile.ideal)
        for one, points in several:
            # More would hide each other.
            names = list(points) if len(points) <= 8 else [n for n in points if n == one.experiment.baseline]
            dots = [svg.Dot(*p, name, name if name in names else "others", name in names) for name, p in points.items()]
            alt = f"{one.experiment.title}: " + "; ".join(
                f"{n}: {label} {p[1]:.3f}, PopQ@1 {p[0]:.3f}" for n, p in points.items()
            )
            figures.append(Figure(svg.scatter(alt, dots, x, y), f"{one.experiment.title}: {label} against PopQ@1."))
    return figures


def _table(one: Results, title: str) -> Section:
    """Return the figures of all methods, of the best epoch where there is one."""
    e = one.experiment
    epoch = e.epochs()[-1]
    rows: list[list[str]] = []
    marked = set[int]()
    for name, records in one.records.items():
        if records:
            if name == e.baseline:
                marked.add(len(rows))
            rows.append([name, str(len(records)), *(cell(one, name, column, epoch) for column in e.columns)])
    heads = ["method", "seeds", *(head(column, e.protocol) for column in e.columns)]
    said = {"last": "After the last epoch.", "best": "At the best epoch in validation."}[epoch]
    note = " ".join(e.note.split())
    return Section(
        title, heads, rows, f"{note} {said} Means and standard deviations over seeds.".strip(), False, frozenset(marked)
    )


def _settings(one: Results) -> Section:
    e = one.experiment
    rows: list[list[str]] = [["data", _plain({**vars(e.data), "split": e.split.kind, "ratios": list(e.split.ratios)})]]
    for name, records in one.records.items():
        if records:
            chosen = records[0]["settings"]
            text = short_setting(chosen) if e.protocol == "tuned" else ""
            rows.append([name, (f"chosen: {text or 'as given'}; " if e.protocol == "tuned" else "") + _plain(chosen)])
    return Section(f"Settings: {e.title}", ["", ""], rows, folded=True)


def _plain(values: Mapping[str, Any]) -> str:
    """Return settings that are set, as text."""
    return ", ".join(f"{name} = {value}" for name, value in values.items() if value not in (None, "", {}, [], False))


def _environment(done: Sequence[Results]) -> Section:
    """Return the versions that the runs were made with, and how many of each."""
    fields = ("zerosum_ext", "python", "platform", "torch", "numpy", "scipy", "threads", "isa", "date")
    records = [r for one in done for several in one.records.values() for r in several]
    rows: list[list[str]] = []
    for name in fields:
        values = sorted({str(r[name]) for r in records if name in r})
        if values:
            rows.append([name, ", ".join(values)])
    return Section("Environment", ["", ""], rows, folded=True)
