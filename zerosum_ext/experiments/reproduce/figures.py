"""The pictures of an experiment."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from zerosum_ext import metrics
from zerosum_ext.experiments import plots
from zerosum_ext.experiments.reproduce.protocols import synthetic_data
from zerosum_ext.experiments.reproduce.results import Results, scores_file
from zerosum_ext.experiments.reproduce.tables import ACCURACY, BIAS, NAMES, points


def draw(results: Results, output: str | Path, folder: str | Path) -> dict[str, Path]:
    """Draw the pictures of an experiment as PNG files in ``folder``.

    Experiments on synthetic data have score matrices, average ranks and PopQ@1 of every method [RCS22 figures 1 to 3],
    of the first seed. They are drawn from the scores that :func:`run` left beside the results in ``output``. Pictures
    that are there already are kept if the scores are gone. Experiments with sweeps have frontiers.

    Returns:
        {caption: file} of the pictures that are there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if results.experiment.protocol == "synthetic":
        return _draw_synthetic(results, Path(output), folder)
    return _draw_frontiers(results, folder)


def _draw_synthetic(results: Results, output: Path, folder: Path) -> dict[str, Path]:
    e = results.experiment
    files = {
        f"{e.title}: {what}": folder / f"{e.name}-{short}.png"
        for short, what in (("scores", "score matrices"), ("ranks", "average ranks"), ("popq", "PopQ@1"))
    }
    scores = {}
    for cell in e.cells():
        path = scores_file(cell, output)
        if cell.method.seed == e.seeds[0] and path.is_file() and results.records[cell.name]:
            with np.load(path, allow_pickle=False) as archive:
                scores[cell.name] = archive["scores"].astype(np.float32)
    if scores:
        x = synthetic_data(e)
        users, items = (t.numpy() for t in x.pairs())
        curves, quantiles = {}, {}
        for name, matrix in scores.items():
            ranked, average = metrics.average_ranks(users, items, matrix[users, items])
            curves[name] = (x.popularity.numpy()[ranked], average)
            quantiles[name] = metrics.pop_q_at_1(users, items, matrix[users, items], x.popularity, reduction="none")
        matrices, ranks, popq = files.values()
        plots.score_matrices(scores, matrices)
        plots.rank_curves(curves, ranks)
        plots.popq_histogram(quantiles, popq)
    return {caption: path for caption, path in files.items() if path.is_file()}


def _draw_frontiers(results: Results, folder: Path) -> dict[str, Path]:
    e, base = results.experiment, results.experiment.baseline
    made: dict[str, Path] = {}
    if not e.families or base is None or not results.records[base]:
        return made
    for epoch, accuracy in itertools.product(e.epochs(), ACCURACY):
        panels = {}
        for bias, ideal in BIAS.items():
            start = points(results, [base], accuracy, bias, epoch)[0]
            curves = {f: points(results, n, accuracy, bias, epoch) for f, n in e.families.items()}
            panels[NAMES[bias]] = ({f: c for f, c in curves.items() if c}, start, ideal)
        path = folder / f"{e.name}-{accuracy.partition('@')[0].replace('/', '-')}-{epoch}.png"
        plots.frontier_curves(panels, path, accuracy=NAMES[accuracy])
        made[f"{e.title}: {NAMES[accuracy]} against bias, {epoch} epoch"] = path
    return made
