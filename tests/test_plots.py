"""Figures are written, also of degenerate input."""

from __future__ import annotations

import numpy as np
import pytest

from zerosum_ext.experiments import plots


@pytest.mark.parametrize("count", [1, 3, 6])
def test_figures_are_png_files(tmp_path, count):
    rng = np.random.default_rng(0)
    plots.score_matrices({f"m{k}": rng.normal(size=(20, 30)) for k in range(count)}, tmp_path / "scores.png")
    plots.popq_histogram({f"m{k}": rng.random(50) ** (k + 1) for k in range(count)}, tmp_path / "popq.png")
    plots.score_matrices({"flat": np.zeros((3, 3))}, tmp_path / "flat.png")
    plots.popq_histogram({"none": []}, tmp_path / "none.png")
    for name in ("scores", "popq", "flat", "none"):
        assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_what_users_are_shown(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(plots, "_save", lambda figure, *_: titles.extend(a.get_title("left") for a in figure.axes))
    liked = np.tri(50, 30, dtype=bool)
    same, own = np.zeros((50, 2), int) + [0, 1], np.arange(100).reshape(50, 2) % 30
    plots.shown_items({"before": same, "after": own}, liked, tmp_path / "shown.png")
    assert titles == ["before: 2 of 30 articles are shown", "after: 30 of 30 articles are shown"]
    monkeypatch.undo()
    plots.shown_items({"before": same, "after": own}, liked, tmp_path / "shown.png", rows=7)
    plots.shown_items({"nobody": np.zeros((0, 2), int)}, np.zeros((0, 5), bool), tmp_path / "nobody.png")
    plots.shown_items({}, liked, tmp_path / "none.png")
    for name in ("shown", "nobody", "none"):
        assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_frontier_and_exposure(tmp_path):
    points = {"bpr": (0.48, 0.91), "zerosum": (0.45, 0.37), "pd": (0.44, -0.5), "both best": (0.5, 0.4)}
    assert plots.pareto(points) == ["zerosum", "both best"]
    assert plots.pareto({"a": (0.5, 0.2), "b": (0.5, 0.2)}) == ["a", "b"]
    assert plots.pareto({"a": (0.5, 0.9), "b": (0.4, 0.5)}, ideal=0.5) == ["b", "a"]
    plots.frontier(points, tmp_path / "frontier.png")
    part = {"exposure": np.full(10, 0.1), "positives": np.arange(10)}
    plots.popularity_exposure({"a": part, "b": part}, tmp_path / "exposure.png")
    plots.popularity_exposure({}, tmp_path / "none.png")
    for name in ("frontier", "exposure", "none"):
        assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_frontier_curves(tmp_path):
    curves = {"zerosum": [(0.49, 0.8), (0.4, 0.3)], "pd": [(0.45, 0.6)]}
    panels = {"PRI": (curves, (0.5, 0.9), 0.0), "PopQ@1": (curves, (0.5, 0.1), 0.5)}
    plots.frontier_curves(panels, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
