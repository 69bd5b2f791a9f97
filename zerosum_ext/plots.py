"""Figures as PNG files: score matrices and the PopQ histogram. matplotlib is imported only when one is drawn."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["popq_histogram", "score_matrices"]

# Okabe and Ito's palette, which stays apart for every common kind of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def score_matrices(scores: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Heat maps of score matrices side by side, to a PNG.

    Args:
        scores: title -> array [users, items]. The colours of each panel are symmetric about 0.
        path: of the PNG.
    """
    figure = _figure(3.4 * len(scores) + 0.6, 3.6)
    for axes, (title, matrix) in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores.items(), strict=True):
        matrix = np.asarray(matrix)
        limit = float(np.abs(matrix).max(initial=0)) or 1.0
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        axes.set(title=title, xlabel="item", ylabel="user")
        figure.colorbar(image, ax=axes, label="score")
    figure.savefig(path, dpi=150)


def popq_histogram(values: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """How popular each user's top positive is among his own positives, to a PNG.

    Args:
        values: title -> PopQ@1 of each user, as ``metrics.pop_q_at_1(..., reduction="none")`` returns them
            [RCS22 eq. 3]: 0 is the user's most popular positive, .5 the ideal mean.
        path: of the PNG.
    """
    figure = _figure(3.4 * len(values), 3.4)
    row = figure.subplots(1, len(values), squeeze=False, sharey=True)[0]
    for k, (axes, (title, quantiles)) in enumerate(zip(row, values.items(), strict=True)):
        quantiles = np.asarray(quantiles)
        share = np.full(quantiles.size, 1 / max(1, quantiles.size))
        axes.hist(quantiles, bins=np.linspace(0, 1, 21), weights=share, color=COLOURS[k % len(COLOURS)])
        if quantiles.size:
            axes.axvline(quantiles.mean(), color="black", linestyle="--", label=f"mean {quantiles.mean():.2f}")
            axes.legend(frameon=False)
        axes.set(title=title, xlabel="PopQ@1 (0: most popular)", xlim=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
    row[0].set_ylabel("share of users")
    figure.savefig(path, dpi=150)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    return Figure(figsize=(width, height), layout="constrained")
