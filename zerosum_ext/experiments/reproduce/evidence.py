"""What a tuned experiment shows: each method beside BPR, paired over users and averaged over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from zerosum_ext._files import check_npz, write_text
from zerosum_ext.evaluation.significance import compare, coverage_of_lists, exchange, holm
from zerosum_ext.experiments.reproduce.results import Results, scores_file
from zerosum_ext.experiments.reproduce.tuned import bias_index
from zerosum_ext.experiments.runs.files import read_json, to_json
from zerosum_ext.metrics import measure_of
from zerosum_ext.models import trained_directly

#: What a tuned experiment shows: method -> figures, comparisons, settings.
Compared: TypeAlias = dict[str, dict[str, Any]]
#: The measures of bias and exposure that a method is compared by.
BIASES = ("pop_q_at_1", "upo", "arp@10", "coverage@10")
# The share of BPR's NDCG@10 that a method may lose.
_MARGIN = 0.01
_RESAMPLES = 1999
# Figures of the test that are reported: means over seeds, with their spread.
REPORTED = (
    "ndcg@10",
    "recall@20",
    *("pri", "pop_q_at_1", "upo", "arp@10", "aplt@10", "coverage@10", "gini@10"),
    *("recall_head@10", "recall_mid@10", "recall_tail@10", "snips_recall@10", "snips_ndcg@10"),
)


def compared(results: Results, output: str | Path) -> Compared:
    """Return what a tuned experiment shows of each finished method, and keep it beside the results.

    Comparisons need the values of each user, which :func:`run` leaves in files of their own. Comparisons that were kept
    of the same cells are read instead.

    Returns:
        {method: {"seeds", "setting", "validation", "mean", "sd", "bpr", "index", "against", "recommended"}}. ``bpr``
        holds "validation" and "mean" of BPR over the method's seeds, ``index`` is the bias beside BPR's in the test,
        ``against`` holds a comparison with BPR for NDCG@10 and each of :data:`BIASES`, whose p-values are adjusted
        by Holm.
    """
    experiment = results.experiment
    base = experiment.baseline
    done = {name: list(records) for name, records in results.records.items() if records}
    file = Path(output) / f"{experiment.name}.compared.json"
    kept = read_json(file) if file.is_file() else {}
    told = {name: _told(records, experiment.grids[name][0].loss) for name, records in done.items()}
    for name, one in told.items():
        # A method may have fewer seeds than BPR has.
        common = [r for r in done.get(base or "", ()) if r["seed"] in one["seeds"]]
        if base is not None and common:
            beside = _told(common, "bpr")
            one["bpr"] = {key: beside[key] for key in ("validation", "mean")}
        if base is not None and common and name != base:
            one["index"] = bias_index(one["mean"], one["bpr"]["mean"])
            same = all(kept.get(x, {}).get("cells") == told[x]["cells"] for x in (base, name))
            # A comparison takes up to minutes, and that of the same cells is the same.
            one["against"] = (kept[name].get("against") if same else None) or _against(results, output, base, name)
    if base in done:
        best = recommended(told, base)
        for name, one in told.items():
            one["recommended"] = name == best
    write_text(file, to_json(told) + "\n")
    return told


def _told(records: Sequence[Mapping[str, Any]], loss: str) -> dict[str, Any]:
    """Return a method's figures over its seeds, of the test and of the validation part."""
    figures = {key: [r["metrics"]["best"].get(key) for r in records] for key in REPORTED}
    known = {key: [v for v in values if v is not None] for key, values in figures.items()}
    first = records[0]
    validations = [r["validation"] for r in records]
    return {
        "seeds": [r["seed"] for r in records],
        "cells": [r["digest"] for r in records],
        "trained": not trained_directly(loss),
        "setting": first["settings"],
        # A single seed may be a lucky one. The mean still knows nothing of the test.
        "validation": {key: float(np.mean([one[key] for one in validations])) for key in validations[0]},
        "mean": {key: float(np.mean(values)) for key, values in known.items() if values},
        "sd": {key: float(np.std(values, ddof=1)) for key, values in known.items() if len(values) > 1},
    }


def recommended(told: Mapping[str, Mapping[str, Any]], base: str) -> str:
    """Return the trained method that validation recommends: the least biased of those as accurate as BPR at least."""
    able = {}
    for name, one in told.items():
        baseline = one.get("bpr", told[base])["validation"]
        if one["trained"] and one["validation"]["ndcg@10"] >= baseline["ndcg@10"]:
            able[name] = bias_index(one["validation"], baseline)
    return min(able, key=able.__getitem__)


def _arrays(results: Results, output: str | Path, name: str) -> dict[int, dict[str, np.ndarray]]:
    """Return the values of each user by seed, of the cells that have them."""
    found = {}
    for cell in results.experiment.cells():
        path = scores_file(cell, output)
        known = any(r["seed"] == cell.method.seed for r in results.records[cell.name])
        if cell.name == name and known and path.is_file():
            check_npz(path)
            with np.load(path, allow_pickle=False) as archive:
                found[cell.method.seed] = dict(archive)
    return found


def _against(results: Results, output: str | Path, base: str, name: str) -> dict[str, Any] | None:
    """Compare a method with BPR over the seeds that both have; None without the values of each user."""
    a, b = _arrays(results, output, base), _arrays(results, output, name)
    seeds = sorted(set(a) & set(b))
    if not seeds or results.experiment.seeds[0] not in a:
        return None

    def values(of: Mapping[int, Mapping[str, np.ndarray]], key: str) -> np.ndarray:
        # Rows of NaN are users without a value, in all seeds alike.
        return np.asarray(np.mean([of[seed][key] for seed in seeds], axis=0, dtype=np.float64))

    told: dict[str, Any] = {"ndcg@10": vars(compare(values(a, "ndcg@10"), values(b, "ndcg@10"), resamples=_RESAMPLES))}
    for key in BIASES[:-1]:
        pair = [_distances(values(of, key), key) for of in (a, b)]
        told[key] = vars(compare(*pair, resamples=_RESAMPLES))
    lists = [np.concatenate([of[seed]["lists"] for seed in seeds], 1) for of in (a, b)]
    catalogue = _catalogue(results, base, a[results.experiment.seeds[0]]["lists"])

    def uncovered(both: np.ndarray, num_items: int) -> float:
        parts = np.split(both, len(seeds), axis=1)
        return 1 - float(np.mean([coverage_of_lists(part, num_items) for part in parts]))

    told["coverage@10"] = vars(exchange(lists[0], lists[1], catalogue, statistic=uncovered))
    for key, p in zip(BIASES, holm([told[key]["p_value"] for key in BIASES]), strict=True):
        told[key]["p_holm"] = p
        told[key]["better"] = bool(p < 0.05 and told[key]["difference"] < 0)
        told[key]["worse"] = bool(p < 0.05 and told[key]["difference"] > 0)
    kept = told["ndcg@10"]
    kept["relative"] = {side: kept[side] / kept["mean_a"] for side in ("difference", "low", "high")}
    told["keeps_accuracy"] = kept["relative"]["low"] >= -_MARGIN
    told["better"] = sum(told[key]["better"] for key in BIASES)
    told["worse"] = sum(told[key]["worse"] for key in BIASES)
    return told


def _distances(values: np.ndarray, key: str) -> np.ndarray:
    """Return values whose mean is the distance of the mean from the ideal; without an ideal, the values."""
    ideal = measure_of(key).ideal
    if ideal is None:
        return values
    return (values - ideal) * (1.0 if np.nanmean(values) >= ideal else -1.0)


def _catalogue(results: Results, base: str, lists: np.ndarray) -> int:
    """Return the number of items: the first seed's lists hold a share of them that is known, the coverage."""
    return round(len(np.unique(lists[lists >= 0])) / float(results.values(base, "coverage@10", "best")[0]))
