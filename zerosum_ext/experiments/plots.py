"""Draw training, scores and popularity bias as PNG files. matplotlib is imported only when a figure is drawn."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from zerosum_ext._files import replacing

__all__ = [
    "Beside",
    "accuracy_and_bias",
    "frontier",
    "frontier_curves",
    "pareto",
    "popq_histogram",
    "popularity_exposure",
    "rank_curves",
    "score_matrices",
    "shown_items",
    "training_curves",
]

# Okabe and Ito's palette, which stays apart for every common kind of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def _save(figure: Any, path: str | os.PathLike[str], resolution: int) -> None:
    with replacing(path) as part:
        figure.savefig(part, dpi=resolution, format="png")


def score_matrices(
    scores: Mapping[str, Any], path: str | os.PathLike[str], items: str = "item", users: str = "user"
) -> None:
    """Draw heat maps of score matrices side by side.

    Args:
        scores: title -> array [users, items]. The colours of each panel are symmetric about 0, up to the 99.5th
            percentile of the scores' sizes.
        path: the PNG file to write.
        items, users: labels of the axes.
    """
    figure, panels = _panels(len(scores), 3.6)
    for axes, (title, matrix) in zip(panels, scores.items(), strict=True):
        matrix = np.asarray(matrix)
        limit = float(np.quantile(np.abs(matrix), 0.995)) if matrix.size else 1.0
        limit = limit or 1.0
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        axes.set(title=title, xlabel=items, ylabel=users)
        figure.colorbar(image, ax=axes, label="score")
    _save(figure, path, _resolution(panels))


def shown_items(lists: Mapping[str, Any], liked: Any, path: str | os.PathLike[str], rows: int = 40) -> None:
    """Draw which items users are shown, in panels from top to bottom: before and after a change, for example.

    A row is a user and a column an item. The light part of a row is what the user likes, and dots are what is shown.

    Args:
        lists: title -> items that each user is shown, integer [users, k]. The number of different ones is added to
            the title.
        liked: what each user likes, bool [users, items], the items from the most popular on.
        path: the PNG file to write. Its text can be read at the width of a phone.
        rows: the number of users that are drawn, evenly chosen.
    """
    liked = np.asarray(liked, bool)
    users, items = liked.shape
    chosen = np.unique(np.linspace(0, users - 1, min(rows, users)).astype(int)) if users else np.zeros(0, int)
    figure = _figure(5.0, 2.2 * max(1, len(lists)) + 0.5)
    panels = list(figure.subplots(max(1, len(lists)), 1, squeeze=False, sharex=True)[:, 0])
    handles: list[Any] = []
    for axes, (title, shown) in zip(panels, lists.items(), strict=False):  # no lists: one empty panel
        table = np.asarray(shown)
        likes, wants = np.nonzero(liked[chosen])
        handles = [
            axes.scatter(wants, likes, s=3, marker="s", color="#BFD9EC", linewidths=0, label="likes"),
            axes.scatter(
                table[chosen].ravel(),
                np.repeat(np.arange(chosen.size), table.shape[1]),
                s=9,
                color="#C04000",
                linewidths=0,
                label=f"is shown, {table.shape[1]} a customer",
            ),
        ]
        axes.set_title(f"{title}: {np.unique(table).size} of {items} articles are shown", fontsize=11, loc="left")
        axes.set(xlim=(-2, items + 1), ylim=(chosen.size, -1), xticks=[], yticks=[])
        axes.set_ylabel("customers", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("articles: best-sellers on the left, rare ones on the right", fontsize=11)
    if handles:
        figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=11, markerscale=2)
    _save(figure, path, 150)


def popq_histogram(values: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw how popular each user's top positive is among the user's own positives.

    Args:
        values: title -> PopQ@1 of each user [RCS22 eq. 3], as ``metrics.pop_q_at_1(..., reduction="none")`` returns
            them. 0 is the user's most popular positive, .5 the ideal mean.
        path: the PNG file to write.
    """
    figure, panels = _panels(len(values), 3.4, sharey=True)
    for k, (axes, (title, quantiles)) in enumerate(zip(panels, values.items(), strict=True)):
        quantiles = np.asarray(quantiles)
        share = np.full(quantiles.size, 1 / max(1, quantiles.size))
        axes.hist(quantiles, bins=np.linspace(0, 1, 21), weights=share, color=COLOURS[k % len(COLOURS)])
        if quantiles.size:
            axes.axvline(quantiles.mean(), color="black", linestyle="--", label=f"mean {quantiles.mean():.2f}")
            axes.legend(frameon=False)
        axes.set(title=title, xlabel="PopQ@1 (0: most popular)", xlim=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
        if k % _COLUMNS == 0:
            axes.set_ylabel("share of users")
    _save(figure, path, _resolution(panels))


def rank_curves(curves: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw the average rank of each item against its popularity [RCS22 fig. 2].

    A dot is an item. The line is the mean of items of similar popularity. A line that climbs to the right ranks popular
    positives of users above unpopular ones. A level line at .5 is ideal.

    Args:
        curves: title -> (popularity [m], average rank [m]) of the items. ``metrics.average_ranks`` returns the ranks.
        path: the PNG file to write.
    """
    figure, panels = _panels(len(curves), 3.6, sharey=True)
    for k, (axes, (title, (popularity, ranks))) in enumerate(zip(panels, curves.items(), strict=True)):
        x, y = np.asarray(popularity, np.float64), np.asarray(ranks, np.float64)
        colour = COLOURS[k % len(COLOURS)]
        axes.axhline(0.5, color="grey", linestyle=":", linewidth=1)
        axes.scatter(x, y, s=6, color=colour, alpha=min(1.0, max(0.08, 150 / max(1, x.size))), linewidths=0)
        if x.size and x.max() > 10 * max(1.0, float(np.median(x))):
            axes.set_xscale("log")
        axes.plot(*_binned_mean(x, y), color=colour, linewidth=2)
        axes.set(title=title, xlabel="item popularity", ylim=(1.03, -0.03))
        axes.spines[["top", "right"]].set_visible(False)
        if k % _COLUMNS == 0:
            axes.set_ylabel("average rank of the item\n(0: top of the user's positives)")
    _save(figure, path, _resolution(panels))


def _binned_mean(x: np.ndarray, y: np.ndarray, bins: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of x and y in bins along x that hold about equally many entries."""
    if not x.size:
        return x, y
    parts = np.array_split(np.argsort(x, kind="stable"), min(bins, x.size))
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def training_curves(histories: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw validation metric and loss by epoch.

    Args:
        histories: title -> :class:`zerosum_ext.training.History`. All validation values share one
            panel. Losses of different methods cannot be compared, so each has a panel of its own.
        path: the PNG file to write.
    """
    validated = {title: h for title, h in histories.items() if h.validation}
    panels = len(histories) + bool(validated)
    figure = _figure(3.4 * panels, 3.2)
    row = list(figure.subplots(1, panels, squeeze=False)[0])
    for axes in row:
        axes.set_xlabel("epoch")
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    if validated:
        axes = row.pop(0)
        for k, (title, history) in enumerate(histories.items()):
            if not history.validation:
                continue
            colour = COLOURS[k % len(COLOURS)]
            epochs = np.arange(1, len(history.validation) + 1)
            axes.plot(epochs, history.validation, color=colour, label=title)
            best = history.best_epoch
            axes.plot([best + 1], [history.validation[best]], "o", color=colour, markersize=5)
        metric = next(iter(validated.values())).metric
        axes.set(title="validation (dot: best epoch)", ylabel=metric)
        axes.legend(frameon=False)
    for k, (axes, (title, history)) in enumerate(zip(row, histories.items(), strict=True)):
        axes.plot(np.arange(1, len(history) + 1), list(history), color=COLOURS[k % len(COLOURS)])
        axes.set(title=title, ylabel="mean training loss")
    _save(figure, path, 150)


def frontier(
    points: Mapping[str, tuple[float, float]],
    path: str | os.PathLike[str],
    *,
    accuracy: str = "NDCG@10",
    bias: str = "PRI",
    ideal: float = 0.0,
) -> None:
    """Draw accuracy against popularity bias, one point for each model.

    The line joins the models that no other model beats in both.

    Args:
        points: title -> (accuracy, bias), for example two values of ``evaluate``.
        path: the PNG file to write.
        accuracy, bias: labels of the axes.
        ideal: the value of the bias metric if there is no bias: 0 for PRI, .5 for PopQ@1.
    """
    figure = _figure(5.0, 4.0)
    axes = figure.subplots()
    for k, (title, (y, x)) in enumerate(points.items()):
        axes.scatter([x], [y], color=COLOURS[k % len(COLOURS)], zorder=3)
        axes.annotate(title, (x, y), xytext=(6, 4), textcoords="offset points")
    best = pareto(points, ideal)
    axes.plot([points[t][1] for t in best], [points[t][0] for t in best], color="0.6", linewidth=1)
    axes.axvline(ideal, color="black", linestyle="--", linewidth=1, label="no bias")
    axes.set(xlabel=bias, ylabel=accuracy)
    axes.margins(0.15)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path, 150)


def frontier_curves(
    panels: Mapping[str, tuple[Mapping[str, Any], tuple[float, float], float]],
    path: str | os.PathLike[str],
    *,
    accuracy: str = "NDCG@10",
    least: float = 0.6,
) -> None:
    """Draw accuracy against bias over the strengths of several methods, with a panel for each measure of bias.

    Args:
        panels: name of the bias metric -> (curves, baseline, ideal). ``curves`` is title -> points (accuracy, bias) in
            the order of the strength, ``baseline`` the point without debiasing, ``ideal`` the unbiased value.
        path: the PNG file to write.
        accuracy: label of the axis of accuracy.
        least: points below this share of the baseline's accuracy are not shown.
    """
    figure = _figure(5.2 * len(panels), 4.2)
    row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (bias, (curves, (y, x), ideal)) in zip(row, panels.items(), strict=True):
        for k, (title, points) in enumerate(curves.items()):
            values = np.array([(x, y), *((b, a) for a, b in points)])
            style = "os^Dv<>"[k % 7]
            axes.plot(*values.T, f"-{style}", color=COLOURS[k % len(COLOURS)], markersize=4, linewidth=1.2, label=title)
        axes.plot([x], [y], "*", color="black", markersize=12, zorder=4, label="BPR", linestyle="none")
        axes.axvline(ideal, color="black", linestyle="--", linewidth=1, label="no bias")
        shown = [(y, x), (y, ideal), *((a, b) for points in curves.values() for a, b in points if a >= least * y)]
        for values, limit in zip(np.array(shown).T, (axes.set_ylim, axes.set_xlim), strict=True):
            margin = 0.05 * float(np.ptp(values)) + 1e-6
            limit(values.min() - margin, values.max() + margin)
        axes.set_xlabel(bias)
        axes.spines[["top", "right"]].set_visible(False)
    row[0].set_ylabel(accuracy)
    row[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    _save(figure, path, 120)


def pareto(points: Mapping[str, tuple[float, float]], ideal: float = 0.0) -> list[str]:
    """Return the titles that no other beats in both accuracy and distance from the ideal bias, by ascending bias."""
    best = [
        title
        for title, (y, x) in points.items()
        if not any(
            v >= y and abs(w - ideal) <= abs(x - ideal) and (v > y or abs(w - ideal) < abs(x - ideal))
            for v, w in points.values()
        )
    ]
    return sorted(best, key=lambda title: points[title][1])


def popularity_exposure(breakdowns: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw the share of the recommended places that each decile of items gets.

    Args:
        breakdowns: title -> what :func:`zerosum_ext.evaluation.full.by_popularity` returns. The line
            shows the shares of the held-out positives, taken from the first.
        path: the PNG file to write.
    """
    figure = _figure(5.6, 3.6)
    axes = figure.subplots()
    width = 0.8 / max(1, len(breakdowns))
    for k, (title, parts) in enumerate(breakdowns.items()):
        exposure = np.asarray(parts["exposure"])
        place = np.arange(1, exposure.size + 1)
        if k == 0:
            positives = np.asarray(parts["positives"])
            share = positives / max(1, positives.sum())
            axes.plot(place, share, color="black", marker="o", markersize=3, linewidth=1, label="held out")
        axes.bar(place - 0.4 + (k + 0.5) * width, exposure, width, color=COLOURS[k % len(COLOURS)], label=title)
    axes.set(xlabel="items by popularity, the most popular part first", ylabel="share of recommended places")
    if breakdowns:
        axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path, 150)


class Beside(NamedTuple):
    """Where a method stands beside BPR.

    Attributes:
        accuracy: what it changes of BPR's NDCG@10, in per cent.
        bias: its bias as a share of BPR's.
        recommended: it is the one that is recommended.
        yardstick: it is shown to compare with, and not among the methods to choose from.
    """

    accuracy: float
    bias: float
    recommended: bool = False
    yardstick: bool = False


def accuracy_and_bias(data: Mapping[str, Mapping[str, Beside]], path: str | os.PathLike[str]) -> None:
    """Draw methods beside BPR, a panel for each data set, with shared scales: up is more accurate, left less biased.

    What is better on both sides lies in the shaded part. Yardsticks are hollow. What is far off, as the most popular
    items are, stands at the edge with its figure.

    Args:
        data: title -> method -> where it stands. BPR itself is at (0, 1).
        path: the PNG file to write.
    """
    columns = len(data) if len(data) <= _COLUMNS else 3
    figure, panels = _panels(len(data), 3.1, sharey=True, columns=columns)
    names = list(dict.fromkeys(name for methods in data.values() for name in methods))
    signs = "osD^vP*"  # seven, and six colours: 42 pairs
    usual = [one for methods in data.values() for one in methods.values() if not one.yardstick]
    left = min([0.5, *(one.bias for one in usual)]) - 0.06
    limits = (left, 1.45), (-24.0, min(60.0, max([10.0, *(one.accuracy for one in usual)])) + 5)
    for number, (axes, (title, methods)) in enumerate(zip(panels, data.items(), strict=True)):
        axes.fill_between([limits[0][0], 1], 0, limits[1][1], color="#009E73", alpha=0.08, linewidth=0, zorder=0)
        axes.axhline(0, color="0.7", linewidth=1, zorder=0)
        axes.axvline(1, color="0.7", linewidth=1, zorder=0)
        if number == 0:
            place = (limits[0][0] + 0.02, limits[1][1] - 1)
            axes.text(*place, "more accurate and less biased", fontsize=7, color="#00684c", va="top")
        for name, one in methods.items():
            _draw_method(axes, name, one, _look(names.index(name), signs, one.yardstick), limits)
        axes.set_title(title, fontsize=10)
        axes.set(xlim=limits[0], ylim=limits[1])
        axes.spines[["top", "right"]].set_visible(False)
        if number + columns >= len(data):
            axes.set_xlabel("bias, BPR = 1 (left is better)", fontsize=9)
        if number % columns == 0:
            axes.set_ylabel("NDCG@10 beside BPR, %", fontsize=9)
    yardsticks = {name for methods in data.values() for name, one in methods.items() if one.yardstick}
    handles = [
        panels[0].scatter([], [], label=name, s=34, **_look(k, signs, name in yardsticks))
        for k, name in enumerate(names)
    ]
    if handles:
        edge = {"facecolors": "none", "edgecolors": "black", "linewidths": 1.6}
        handles.append(panels[0].scatter([], [], s=90, label="recommended, by validation", **edge))
        figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8)
    _save(figure, path, 110 if len(data) > _COLUMNS else 130)


def _look(k: int, signs: str, hollow: bool) -> dict[str, Any]:
    """Return the colour and the sign of the k-th method."""
    colour = COLOURS[k % len(COLOURS)]
    face = "none" if hollow else colour
    return {"facecolors": face, "edgecolors": colour, "marker": signs[k % len(signs)], "linewidths": 1.2}


def _draw_method(axes: Any, name: str, one: Beside, look: dict[str, Any], limits: Any) -> None:
    """Draw one method of a panel; at the edge, with its figure, if it is beyond the scales."""
    x, y = (float(np.clip(v, *edges)) for v, edges in zip((one.bias, one.accuracy), limits, strict=True))
    axes.scatter([x], [y], clip_on=False, s=34, zorder=3, **look)
    if one.recommended:
        ring = {"facecolors": "none", "edgecolors": "black", "marker": look["marker"], "linewidths": 1.6}
        axes.scatter([x], [y], clip_on=False, s=90, zorder=4, **ring)
        # Few others are less biased, so that there is room on the left, unless it is at the edge.
        right = x < limits[0][0] + 0.33 * (limits[0][1] - limits[0][0])
        shift, side = ((8, -3), "left") if right else ((-8, -3), "right")
        text = {"xytext": shift, "textcoords": "offset points", "ha": side, "fontsize": 8, "weight": "bold"}
        axes.annotate(name, (x, y), zorder=5, **text)
    elif y != one.accuracy:
        shift, side = ((-6, 4), "right") if y < 0 else ((6, -3), "left")
        text = {"xytext": shift, "textcoords": "offset points", "ha": side, "fontsize": 7, "color": "0.35"}
        axes.annotate(f"{one.accuracy:+.0f} %", (x, y), **text)


# Panels in a row. Further panels go below.
_COLUMNS = 4


def _panels(count: int, height: float, sharey: bool = False, columns: int = _COLUMNS) -> tuple[Any, list[Any]]:
    """Return a figure with ``count`` panels, row by row."""
    columns = max(1, min(count, columns))
    rows = max(1, -(-count // columns))
    figure = _figure(3.4 * columns + 0.5, height * rows)
    every = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for axes in every[count:]:
        axes.remove()
    return figure, every[:count]


def _resolution(panels: list[Any]) -> int:
    """Return the dots per inch: fewer for many panels, so that the file stays small."""
    return 150 if len(panels) <= _COLUMNS else 90


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    return Figure(figsize=(width, height), layout="constrained")
