"""report.html of a run: what the page shows, gathered from the run folder."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zerosum_ext import metrics
from zerosum_ext._files import write_text
from zerosum_ext.evaluation import Ranking, by_popularity
from zerosum_ext.experiments.report import Figure, Listed, Page, Section, UserLists, read_names, render, svg
from zerosum_ext.experiments.runs.files import read_json
from zerosum_ext.experiments.runs.judging import judge_run, popular_ranking, read_verdict
from zerosum_ext.experiments.runs.method import measure, popularity_of
from zerosum_ext.experiments.runs.run import Run
from zerosum_ext.experiments.verdict import MOST_POPULAR, Verdict, method_label
from zerosum_ext.metrics import measure_of

__all__ = ["write_report"]

# The measures of the first table, without their cut-offs.
_SHOWN = ("ndcg", "recall", "hr", "pri", "pop_q_at_1", "upo", "arp", "aplt", "coverage", "gini")
_USERS, _LIST, _KNOWN = 5, 10, 8


def write_report(
    run: Run,
    rankings: Mapping[str, Ranking | Sequence[Ranking]] | None = None,
    *,
    items: str | os.PathLike[str] | None = None,
) -> Path:
    """Write report.html into a run folder, and return its path.

    Args:
        run: the run, all methods of which are trained.
        rankings: {method: its ranking of the test part, or one for each seed}. None ranks again.
        items: a table of items and their names (:func:`zerosum_ext.experiments.report.read_names`).

    Raises:
        ValueError: a damaged run folder, or a table without two columns. OSError: a file cannot be read or written.
    """
    names = {} if items is None else read_names(items)
    cutoffs = run.config["evaluation"]["k"]
    if rankings is None:
        rankings = {name: measure(run.model(name), run.split, k=cutoffs)[1] for name in run.methods}
    first = {name: one if isinstance(one, Ranking) else one[0] for name, one in rankings.items()}
    verdict = read_verdict(run) or judge_run(run, first)
    compared = _read_comparison(run.folder / "compare.json")
    popular = popular_ranking(run.split, max(cutoffs))
    page = Page(
        title=f"{method_label(run.main)} on {Path(str(run.config['data'].get('source', 'data'))).name}",
        verdict=verdict.sentences()
        or [f"{method_label(run.main)} was trained alone: there is nothing to compare with."],
        warnings=verdict.warnings,
        advice=verdict.advice,
        measures=_measures(run, verdict),
        figures=_figures(run, {**first, MOST_POPULAR: popular}, compared, verdict),
        users=_users(run, first, popularity_of(run.split), names),
        sections=[*_candidates(compared), *_further_sections(run, verdict)],
    )
    path = run.folder / "report.html"
    write_text(path, render(page))
    return path


def _read_comparison(path: Path) -> dict[str, Any] | None:
    """Return compare.json, or None if there is none. A damaged file is a ValueError that names it."""
    if not path.is_file():
        return None
    told = read_json(path)
    fields = ("name", "kind", "on_front", "finished", "failed", "trained", "accuracy", "bias_left", "values")
    try:
        for row in told["candidates"]:
            for field in fields:
                row[field]
            dict(row["values"])
        dict(told["most_popular"]), dict(told["left_out"]), dict(told["plan"]), str(told["chosen"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None
    return dict(told)


# --- tables ------------------------------------------------------------------------------------------------------


def _columns(run: Run, verdict: Verdict) -> dict[str, Mapping[str, float | None]]:
    """Return the measures of every method, and of the most popular items."""
    return {**run.metrics, **(verdict.references or {})}


def _measures(run: Run, verdict: Verdict) -> Section:
    """Return the table of measures with their ideals, and what changed."""
    columns = _columns(run, verdict)
    base = next((one for one in verdict.against if one.name == "bpr"), None) or next(iter(verdict.against), None)
    changes = {} if base is None else {change.key: change for change in base.changes}
    head = ["measure", "better", *(method_label(name) for name in columns)]
    head += [] if base is None else [f"change against {method_label(base.name)}, 95 % interval"]
    rows = []
    for key in _keys(run):
        measure_ = measure_of(key)
        written = [measure_.write(values.get(key)) for values in columns.values()]
        cells = [measure_.label(key, long=True), measure_.arrow, *written]
        if base is not None:
            cells.append(_change(changes.get(key)))
        rows.append(cells)
    text = (
        "An arrow says which values are better; after an arrow to the right stands the ideal value. A measure without "
        "an ideal has none. Changes are differences of the same users' values; n.s.: not significant, after Holm's "
        "adjustment for all measures."
    )
    return Section("Measures on the test part", head, rows, text)


def _keys(run: Run) -> list[str]:
    """Return the measures of the first table that the run has, at its first cut-off."""
    cutoff, known = run.config["evaluation"]["k"][0], run.metrics.get(run.main, {})
    return [key for name in _SHOWN for key in (f"{name}@{cutoff}", name) if key in known]


def _change(change: Any) -> str:
    if change is None or change.low is None or change.high is None:
        return ""
    measure_ = measure_of(change.key)
    factor, unit = (100, " %") if measure_.percent else (1, "")
    digits = 1 if measure_.percent or abs(change.before) >= 10 else 3
    difference = factor * (change.after - change.before)
    remark = "n.s." if change.better is None else "better" if change.better else "worse"
    low, high = factor * change.low, factor * change.high
    return f"{difference:+.{digits}f}{unit} ({low:+.{digits}f} to {high:+.{digits}f}), {remark}"


def _candidates(compared: dict[str, Any] | None) -> list[Section]:
    """Return the table of what was compared, with what was left out and why."""
    if compared is None:
        return []
    keys = [key for key in next(iter(compared["candidates"]))["values"] if key.partition("@")[0] != "pcc"]
    kinds = {"post": "after training", "yardstick": "yardstick"}
    rows: list[list[str]] = []
    marked = set()
    order = sorted(compared["candidates"], key=lambda row: -(row["accuracy"] if row["accuracy"] is not None else -1.0))
    for row in order:
        if row["name"] == compared["chosen"]:
            marked.add(len(rows))
        state = [
            "taken" if row["name"] == compared["chosen"] else "on the front" if row["on_front"] else "",
            kinds.get(row["kind"], ""),
            f"failed: {row['failed']}" if row["failed"] else "" if row["finished"] else "left early",
        ]
        cells = [measure_of(key).write(row["values"].get(key)) for key in keys]
        left = "" if row["bias_left"] is None else f"{row['bias_left']:.3f}"
        rows.append([row["name"], *cells, left, str(row["trained"]), ", ".join(filter(None, state))])
    cells = [measure_of(key).write(compared["most_popular"].get(key)) for key in keys]
    rows.append(["most popular", *cells, "", "0", "yardstick"])
    plan = compared["plan"]
    text = (
        f"{len(order)} settings, measured on the validation part; the goal was {plan.get('goal')}. Settings that are "
        "marked as left early were trained for few epochs and were not promising. Only settings trained to their end "
        "can be taken; what only changes finished scores, and yardsticks, cannot."
    )
    head = ["setting", *(measure_of(key).label(key) for key in keys), "bias left", "epochs", ""]
    sections = [Section("What was compared", head, rows, text, marked=frozenset(marked))]
    if compared["left_out"]:
        rows = [[str(name), str(reason)] for name, reason in compared["left_out"].items()]
        sections.append(Section("What was not tried", ["method", "reason"], rows))
    return sections


def _further_sections(run: Run, verdict: Verdict) -> list[Section]:
    """Return the meaning of the measures, all measures, the settings, the data and the environment."""
    columns = _columns(run, verdict)
    records = [(key, measure_of(key)) for key in _keys(run)]
    about = [[record.label(key, long=True), record.plain or record.about, record.arrow] for key, record in records]
    records = [(key, measure_of(key)) for key in run.metrics.get(run.main, {})]
    every = [
        [record.label(key, long=True), *(record.write(values.get(key)) for values in columns.values())]
        for key, record in records
    ]
    settings = {name: asdict(method) for name, method in run.methods.items()}
    fields = list(settings[run.main])
    data, environment = run.config["interactions"], run.config["environment"]
    return [
        Section("What the measures mean", ["measure", "meaning", "better"], about),
        Section("All measures", ["measure", *map(method_label, columns)], every, folded=True),
        Section(
            "Settings",
            ["setting", *map(method_label, settings)],
            [[field, *(str(values[field]) for values in settings.values())] for field in fields],
            folded=True,
        ),
        Section(
            "Data", ["", ""], [[str(n), _plain(v)] for n, v in {**data, **run.config["split"]}.items()], folded=True
        ),
        Section("Environment", ["", ""], [[str(n), _plain(v)] for n, v in environment.items()], folded=True),
    ]


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


# --- figures -----------------------------------------------------------------------------------------------------


def _figures(
    run: Run, rankings: Mapping[str, Ranking], compared: dict[str, Any] | None, verdict: Verdict
) -> list[Figure]:
    popularity = popularity_of(run.split)
    found = [
        _compared_front(compared) if compared is not None else _tested_front(run, verdict),
        _exposure(run, rankings, popularity),
        _average_ranks(rankings, popularity),
        *_quantiles(rankings, popularity),
        _curves(run),
    ]
    return [figure for figure in found if figure is not None]


def _compared_front(compared: dict[str, Any]) -> Figure | None:
    rows = [row for row in compared["candidates"] if row["accuracy"] is not None and row["bias_left"] is not None]
    if not rows:
        return None
    dots = []
    for row in rows:
        taken, base = row["name"] == compared["chosen"], row["name"] == "bpr"
        series = "taken" if taken else "BPR" if base else "on the front" if row["on_front"] else "others"
        shown = taken or base or row["on_front"]
        dots.append(svg.Dot(row["bias_left"], row["accuracy"], row["name"], series, shown, row["on_front"]))
    overall = (compared["plan"].get("bias") or "overall") == "overall" and compared["plan"].get("goal") != "long-tail"
    label = "bias left, 1: as BPR, 0: none" if overall else "bias left (smaller is better)"
    # (Settings that lose more than half would press all others into a corner.)
    most = max(dot.y for dot in dots)
    far = sum(dot.y < most / 2 for dot in dots)
    dots = [dot for dot in dots if dot.y >= most / 2]
    x = svg.Axis.of(label, [dot.x for dot in dots], ideal=0.0 if overall else None)
    y = svg.Axis.of(f"{compared['plan'].get('metric')} in validation", [dot.y for dot in dots])
    best, taken = max(rows, key=lambda row: row["accuracy"])["name"], compared["chosen"]
    alt = f"Accuracy against bias of {len(dots)} settings; the most accurate is {best}, taken is {taken}."
    return Figure(
        svg.scatter(alt, dots, x, y),
        "Accuracy against bias of all settings in validation. The line joins those that no other beats in both."
        + (f" Not shown: {far} with less than half of the best accuracy." if far else ""),
    )


def _tested_front(run: Run, verdict: Verdict) -> Figure | None:
    columns = _columns(run, verdict)
    accuracy = _keys(run)[0] if _keys(run) else None
    for bias in ("pop_q_at_1", "upo"):
        points = {name: (values.get(bias), values.get(accuracy or "")) for name, values in columns.items()}
        if all(v is not None and math.isfinite(v) for point in points.values() for v in point):
            break
    else:
        return None
    dots = [
        svg.Dot(float(x or 0.0), float(y or 0.0), method_label(name), method_label(name), True)
        for name, (x, y) in points.items()
    ]
    measure_ = measure_of(bias)
    x_axis = svg.Axis.of(measure_.label(bias), [dot.x for dot in dots], ideal=measure_.ideal)
    y_axis = svg.Axis.of(measure_of(accuracy or "").label(accuracy or ""), [dot.y for dot in dots], zero=True)
    alt = "; ".join(f"{dot.name}: {y_axis.label} {dot.y:.3f}, {x_axis.label} {dot.x:.3f}" for dot in dots)
    caption = f"Accuracy against {measure_.label(bias, long=True)} on the test part."
    return Figure(svg.scatter(alt, dots, x_axis, y_axis), caption)


def _exposure(run: Run, rankings: Mapping[str, Ranking], popularity: torch.Tensor) -> Figure | None:
    k = min(run.config["evaluation"]["k"])
    bins = min(10, run.split.train.num_items)
    parts = {name: by_popularity(ranking, popularity, bins=bins, k=k) for name, ranking in rankings.items()}
    positives = next(iter(parts.values()))["positives"]
    series = {"held out (what users have)": positives / max(1, positives.sum())}
    series |= {method_label(name): part["exposure"] for name, part in parts.items()}
    y = svg.Axis.of("share of places", [float(v) for values in series.values() for v in values], zero=True)
    alt = f"Share of the first {k} places by tenths of items, the most popular first. " + "; ".join(
        f"{name}: {100 * float(values[0]):.0f} % in the first tenth" for name, values in series.items()
    )
    text = svg.bars(alt, [str(place + 1) for place in range(bins)], series, "items by popularity, in tenths", y)
    return Figure(
        text, f"Who gets the first {k} places: tenths of the items, the most popular first, beside what users have."
    )


def _average_ranks(rankings: Mapping[str, Ranking], popularity: torch.Tensor) -> Figure | None:
    series = {}
    for name, ranking in rankings.items():
        items, ranks = metrics.average_ranks(ranking.positive_users, ranking.items, ranking.scores)
        if len(items):
            series[method_label(name)] = _binned(popularity.numpy()[items].astype(float), np.asarray(ranks))
    if not series:
        return None
    x = svg.Axis.of("popularity of the item", [v for across, _ in series.values() for v in across], log=True)
    # The top of the list is the top of the figure.
    y = svg.Axis("average rank (1: top)", 0.0, 1.0, 0.5)
    series = {name: (across, [1 - v for v in up]) for name, (across, up) in series.items()}
    alt = "Average rank of items among what users have, by popularity; level at .5 is ideal. " + "; ".join(
        f"{name}: {up[0]:.2f} for the least popular, {up[-1]:.2f} for the most popular"
        for name, (_, up) in series.items()
    )
    return Figure(
        svg.lines(alt, series, x, y),
        "Where an item stands among the items that a user likes, by its popularity. A line that climbs ranks popular "
        "items above others that the user likes as well.",
    )


def _binned(x: np.ndarray, y: np.ndarray, bins: int = 12) -> tuple[list[float], list[float]]:
    """Return the means of x and y in bins along x of about equally many entries."""
    parts = np.array_split(np.argsort(x, kind="stable"), min(bins, x.size))
    return [float(x[part].mean()) for part in parts], [float(y[part].mean()) for part in parts]


def _quantiles(rankings: Mapping[str, Ranking], popularity: torch.Tensor) -> list[Figure]:
    """Return a histogram of PopQ@1 for each method, with one scale for all."""
    edges = np.linspace(0, 1, 11)
    shares: dict[str, np.ndarray] = {}
    means = {}
    for name, ranking in rankings.items():
        values = np.asarray(
            metrics.pop_q_at_1(ranking.positive_users, ranking.items, ranking.scores, popularity, reduction="none")
        )
        if not values.size:
            return []
        shares[name] = np.histogram(values, edges)[0] / values.size
        means[name] = float(values.mean())
    top = svg.Axis("share of users", 0.0, 1.05 * max(float(share.max()) for share in shares.values()))
    groups = [f"{edge:.1f}" for edge in edges[:-1]]
    found = []
    for name, share in shares.items():
        label = method_label(name)
        alt = f"PopQ@1 of users with {label}: {100 * share[0]:.0f} % below .1, mean {means[name]:.2f}, ideal .5."
        text = svg.bars(alt, groups, {f"{label}, mean {means[name]:.2f}": share.tolist()}, "PopQ@1", top, steps=2)
        caption = f"{label}: how popular the first of a user's own items is; 0 the most popular, mean .5 ideal."
        found.append(Figure(text, caption))
    return found


def _curves(run: Run) -> Figure | None:
    series = {
        method_label(name): (list(range(1, len(history.validation) + 1)), list(history.validation))
        for name, history in run.histories.items()
        if history.validation
    }
    if not series:
        return None
    metric = run.methods[run.main].metric
    x = svg.Axis("epoch", 0.0, 1.0 + max(len(up) for _, up in series.values()))
    y = svg.Axis.of(f"{metric} in validation", [v for _, up in series.values() for v in up])
    alt = "; ".join(
        f"{name}: best {max(up):.3f} in epoch {up.index(max(up)) + 1} of {len(up)}" for name, (_, up) in series.items()
    )
    return Figure(svg.lines(alt, series, x, y), "Validation after each epoch. The best epoch is kept.")


# --- lists of users ----------------------------------------------------------------------------------------------


def _users(
    run: Run, rankings: Mapping[str, Ranking], popularity: torch.Tensor, names: Mapping[str, str]
) -> list[UserLists]:
    """Return the lists of five users, from one with little to one with much in training: before and after."""
    train = run.split.train
    ranking = rankings[run.main]
    if not ranking.users.size:
        return []
    counts = train.user_counts.cpu().numpy()[ranking.users]
    order = np.argsort(counts, kind="stable")
    places = np.unique(np.round(np.linspace(0, order.size - 1, min(_USERS, order.size))).astype(int))
    decoded = train.decode_items(np.arange(train.num_items))
    count = popularity.numpy()

    def named(item: int) -> str:
        return names.get(str(decoded[item]), str(decoded[item]))

    shown = ("bpr", run.main) if run.main != "bpr" and "bpr" in rankings else (run.main,)
    found = []
    indptr, indices = train.indptr.cpu().numpy(), train.indices.cpu().numpy()
    for place in order[places]:
        user = int(ranking.users[place])
        held_out = set(ranking.items[ranking.indptr[place] : ranking.indptr[place + 1]].tolist())
        own = indices[indptr[user] : indptr[user + 1]]
        known = own[np.argsort(-count[own], kind="stable")][:_KNOWN]
        lists = {}
        for name in shown:
            items = rankings[name].top_items[place][:_LIST]
            lists[method_label(name)] = [
                Listed(named(i), int(count[i]), i in held_out) for i in items.tolist() if i >= 0
            ]
        name = str(train.decode_users(user).item())
        found.append(UserLists(name, [named(int(i)) for i in known], lists, len(own) - len(known)))
    return found
