"""What tuned experiments show at a glance: a sentence, a picture, a table for all data sets, and what was cut."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zerosum_ext.experiments import plots
from zerosum_ext.experiments.reproduce.evidence import BIASES, Compared
from zerosum_ext.experiments.reproduce.experiment import Experiment
from zerosum_ext.experiments.reproduce.results import Results
from zerosum_ext.metrics import measure_of

#: Measures of what a test part that is biased itself hides.
BEYOND = ("snips_recall@10", "snips_ndcg@10", "recall_head@10", "recall_mid@10", "recall_tail@10", "arp@10")
#: Comments between which a text holds the overview, so that it can be renewed there.
MARKS = (
    "<!-- overview of tuned experiments: written by zerosum-ext reproduce -->",
    "<!-- end of the overview -->",
)


class Shown(NamedTuple):
    """A tuned experiment: what is finished of it, and what that shows."""

    results: Results
    told: Compared

    @property
    def title(self) -> str:
        """The data, and the model or the kind of test part where these are not the usual ones."""
        return title_of(self.results.experiment)

    @property
    def is_plain(self) -> bool:
        """Whether it is matrix factorization on a test part that is as the data are."""
        e = self.results.experiment
        return e.split.kind != "balanced" and all(method.model == "mf" for method in e.methods.values())

    def recommended(self) -> tuple[str, str] | None:
        """Return the names of plain BPR and of the recommended method, where both are there."""
        base = self.results.experiment.baseline
        best = next((name for name, one in self.told.items() if one.get("recommended")), None)
        return None if base is None or base not in self.told or best is None else (base, best)

    def reached(self) -> bool | None:
        """Return whether the recommended method keeps BPR's accuracy and is less biased; None: not compared."""
        found = self.recommended()
        against = None if found is None else self.told[found[1]].get("against")
        if found is not None and found[0] == found[1]:
            return False  # BPR itself
        return None if against is None else bool(against["keeps_accuracy"] and against["better"] >= 3)

    def verdict(self) -> str:
        """Return :meth:`reached` as a word."""
        return {True: "yes", False: "no", None: "not compared"}[self.reached()]

    def beside(self) -> dict[str, plots.Beside]:
        """Return where each method stands beside BPR in accuracy and in bias, those without BPR left out."""
        return {
            name: plots.Beside(
                100 * (one["mean"]["ndcg@10"] / one["bpr"]["mean"]["ndcg@10"] - 1),
                one.get("index", 1.0),
                bool(one.get("recommended")),
                not one["trained"],
            )
            for name, one in self.told.items()
            if "bpr" in one
        }


def title_of(experiment: Experiment) -> str:
    """Return what a table calls an experiment: "Ciao", or "Gowalla, LightGCN"."""
    data, _, rest = experiment.title.partition(",")
    model = rest.partition(",")[0].strip()
    name = re.sub(r" \([^)]*\)", "", data)
    return name if model.startswith("matrix factorization") or not model else f"{name}, {model}"


def _parted(shown: Sequence[Shown]) -> tuple[list[Shown], list[Shown]]:
    """Return the first plain experiment of each data set, and those that show data again.

    The others have another model, another test part or another split.
    """
    first: dict[str, Shown] = {}
    for one in shown:
        if one.is_plain:
            first.setdefault(one.results.experiment.data.source, one)
    main = list(first.values())
    return main, [one for one in shown if not any(one is other for other in main)]


def _ordered(shown: Sequence[Shown]) -> list[Shown]:
    main, extra = _parted(shown)
    return main + extra


def overview(shown: Sequence[Shown], picture: str | None = None, not_run: Sequence[str] = ()) -> str:
    """Return, as Markdown, what a reader is to understand in a minute.

    Args:
        shown: the experiments that have a finished cell.
        picture: the address of the picture that :func:`draw` made.
        not_run: titles of experiments that have none.
    """
    rows = _ordered(shown)
    lines = [f"**{in_words(rows)}**", ""]
    if picture:
        lines += [f"![Accuracy and bias of every method beside BPR]({picture})", ""]
    lines += [*_table(rows), "", _LEGEND, ""]
    lines += ["### Every method", "", *_methods(rows), ""]
    lines += ["### Beyond a biased test part", "", *_beyond(rows), ""]
    lines += ["### What was cut", "", *_cut(rows, not_run), ""]
    return "\n".join(lines)


_LEGEND = (
    "From BPR to the recommended setting, on the test part; **+** is better and **-** worse than BPR at 95 %. "
    "Recommended is the least biased method of those whose NDCG@10 in validation is not below BPR's. BPR is tuned like "
    "all others. Reached: NDCG@10 is at most 1 % below BPR's (lower bound of the interval), and three of the four "
    "measures are better.\n\n"
    "PopQ@1: how popular the item is that the model puts first among those a user likes, 0 the most popular. uPO: "
    "correlation of popularity and score within a user's own items. ARP: mean popularity of what is recommended, "
    "without an ideal. Intervals are paired over users, with means over seeds; Holm over the four measures; "
    "coverage by exchanging lists."
)


def in_words(rows: Sequence[Shown]) -> str:
    """Return on how many data sets the recommended setting keeps BPR's accuracy and is less biased."""

    def count(part: Sequence[Shown]) -> str:
        return f"{sum(one.reached() is True for one in part)} of {len(part)}"

    main, extra = _parted(rows)
    if not main:
        main, extra = extra, []
    text = f"On {count(main)} data sets the recommended setting keeps the accuracy of BPR and is less biased."
    if extra:
        text += f" The same holds in {count(extra)} further experiments ({'; '.join(one.title for one in extra)})."
    return text


def _table(rows: Sequence[Shown]) -> list[str]:
    heads = [f"{measure_of(key).label(key)} {measure_of(key).arrow}" for key in BIASES]
    lines = [
        f"| data | recommended | NDCG@10 ↑ | change (95 %) | {' | '.join(heads)} | reached |",
        f"|---|---|--:|--:|{'--:|' * len(BIASES)}---|",
    ]
    for row in rows:
        found = row.recommended()
        if found is None:
            lines.append(f"| {row.title} | not known yet |{' |' * (len(BIASES) + 3)}")
            continue
        base, best = found
        one = row.told[best]
        against = one.get("against")
        a, b = one["bpr"]["mean"], one["mean"]
        cells = [f"{_write(key, a[key])} to {_write(key, b[key])}" for key in BIASES]
        change = "BPR itself" if best == base else "not compared"
        if against is not None:
            cells = [cell + _mark(against[key]) for cell, key in zip(cells, BIASES, strict=True)]
            change = _interval(against["ndcg@10"]["relative"])
        accuracy = f"{a['ndcg@10']:.4f} to {b['ndcg@10']:.4f}"
        seeds = f"{len(one['seeds'])} seed" + ("s" if len(one["seeds"]) > 1 else "")
        cells = [f"{best} ({seeds})", accuracy, change, *cells, row.verdict()]
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return lines


def _write(key: str, value: float) -> str:
    return f"{value:.0f}" if key.startswith("arp") else f"{value:.3f}"


def _interval(relative: Mapping[str, float]) -> str:
    low, high = 100 * relative["low"], 100 * relative["high"]
    return f"{100 * relative['difference']:+.1f} % ({low:+.1f} to {high:+.1f})"


def _mark(change: Mapping[str, Any]) -> str:
    return " **+**" if change["better"] else " **-**" if change["worse"] else ""


def _names(rows: Sequence[Shown]) -> list[str]:
    """Return the methods of all experiments, those that several have in their order."""
    return list(dict.fromkeys(name for row in rows for name in row.results.experiment.methods))


def _methods(rows: Sequence[Shown]) -> list[str]:
    """Return the table of each method beside BPR on each data set."""
    lines = [
        "NDCG@10 beside BPR's (* not equal to it at 95 %), how many of the four measures of bias are better and worse, "
        "and the bias beside BPR's: the mean of the four distances from the ideal, where BPR has 1.",
        "",
        f"| method | {' | '.join(row.title for row in rows)} |",
        f"|---|{'--:|' * len(rows)}",
    ]
    for name in _names(rows):
        cells = []
        for row in rows:
            one = row.told.get(name)
            against = None if one is None else one.get("against")
            if name == row.results.experiment.baseline and one is not None:
                cells.append(f"NDCG@10 {one['mean']['ndcg@10']:.4f}")
            elif against is None or one is None:
                cells.append("" if one is None else "not compared")
            else:
                relative = against["ndcg@10"]["relative"]
                sure = "*" if relative["low"] > 0 or relative["high"] < 0 else ""
                text = f"{100 * relative['difference']:+.1f} %{sure}, {against['better']} / {against['worse']}"
                cell = f"{text}, {one['index']:.2f}"
                cells.append(f"**{cell}**" if one.get("recommended") else cell)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _beyond(rows: Sequence[Shown]) -> list[str]:
    """Return the table of recall by popularity, and of accuracy weighted by inverse propensity."""
    heads = [f"{measure_of(key).label(key)} {measure_of(key).arrow}" for key in BEYOND]
    lines = [
        "What users were shown decides what a test part holds. So accuracy is also weighted by inverse propensity "
        "(SNIPS), and recall is given of popular (head), middling and rare (tail) items, which have a fifth, three "
        "fifths and a fifth of all interactions. From BPR to the recommended setting:",
        "",
        f"| data | {' | '.join(heads)} |",
        f"|---|{'--:|' * len(BEYOND)}",
    ]
    for row in rows:
        found = row.recommended()
        if found is not None:
            a, b = row.told[found[1]]["bpr"]["mean"], row.told[found[1]]["mean"]
            known = [
                f"{_write(key, a[key])} to {_write(key, b[key])}" if key in a and key in b else "" for key in BEYOND
            ]
            lines.append(f"| {row.title} | {' | '.join(known)} |")
    return lines


def _cut(rows: Sequence[Shown], not_run: Sequence[str]) -> list[str]:
    """Return a list of what was not run, of what all experiments together have."""
    lines = [f"- **{title}**: not run." for title in not_run]
    main, _ = _parted(rows)
    everything = _names(main)
    for row in rows:
        e, records = row.results.experiment, row.results.records
        said = []
        if any(row is one for one in main):
            absent = [name for name in everything if name not in e.methods]
            if absent:
                said.append(f"not in the file: {', '.join(absent)}")
        fewer = [name for name in e.fewer_seeds if records[name]]
        if fewer:
            said.append(f"fewer seeds: {', '.join(fewer)}")
        open_: dict[str, list[str]] = {}
        for name in e.methods:
            wanted = len(e.fewer_seeds.get(name, e.seeds))
            if len(records[name]) < wanted:
                open_.setdefault(f"{len(records[name])} of {wanted} seeds", []).append(name)
        said += [f"{count}: {', '.join(names)}" for count, names in open_.items()]
        if e.seeds == (e.seeds[0],):
            said.append("one seed")
        if said:
            lines.append(f"- **{row.title}**: {'; '.join(said)}.")
    return lines or ["Nothing: every method of every data set is finished with all seeds."]


def renew(text: str, overview: str) -> str:
    """Return a text with the overview in the place that two comments in it mark.

    Raises:
        ValueError: the text has not these comments, once each. The message shows them.
    """
    first, last = MARKS
    if text.count(first) != 1 or text.count(last) != 1 or text.index(first) > text.index(last):
        raise ValueError(f"expected the lines {first} and {last}, once each, got another text")
    return f"{text.partition(first)[0]}{first}\n\n{overview.strip()}\n\n{last}{text.partition(last)[2]}"


# ---- one file, one picture


def figures_csv(shown: Sequence[Shown]) -> str:
    """Return all figures as CSV, a row for each data set, method and measure, for others to cite."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["data", "method", "setting", "seeds", "recommended", "measure", "mean", "sd"]
    writer.writerow([*head, "against_bpr", "low", "high", "p_holm", "bias_index"])
    for row in _ordered(shown):
        for name, one in row.told.items():
            against = one.get("against") or {}
            for key, mean in one["mean"].items():
                change = against.get(key, {})
                more = [change.get(field, "") for field in ("difference", "low", "high", "p_holm")]
                cells = [row.title, name, short_setting(one["setting"]), len(one["seeds"]), one.get("recommended", "")]
                sd = one["sd"].get(key)
                writer.writerow(
                    [*cells, key, f"{mean:.6g}", "" if sd is None else f"{sd:.3g}", *map(_number, more)]
                    + [_number(one.get("index", ""))]
                )
    return text.getvalue()


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def short_setting(settings: Mapping[str, Any]) -> str:
    """Return what a grid changes of a setting, as text."""
    told = dict(settings["loss_options"])
    if settings["weight"] is not None:
        told["w"] = settings["weight"]
    for name, usual in (("lr", 1e-3), ("l2", 0.0), ("negatives", 1), ("strategy", "uniform")):
        if settings[name] != usual:
            told[name] = settings[name]
    if settings["model_options"].get("normalize"):
        told["cosine"] = True
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in told.items()
    )


def draw(shown: Sequence[Shown], path: str | Path) -> None:
    """Draw each data set's methods: NDCG@10 beside BPR's against the bias beside BPR's, with shared scales."""
    rows = [row for row in _ordered(shown) if row.results.experiment.baseline in row.told]
    panels = {row.title: row.beside() for row in rows}
    plots.accuracy_and_bias(panels, path)
