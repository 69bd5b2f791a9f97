"""Figures are written, also of degenerate input."""

from __future__ import annotations

import numpy as np
import pytest

from zerosum_ext import plots


@pytest.mark.parametrize("count", [1, 3])
def test_figures_are_png_files(tmp_path, count):
    rng = np.random.default_rng(0)
    plots.score_matrices({f"m{k}": rng.normal(size=(20, 30)) for k in range(count)}, tmp_path / "scores.png")
    plots.popq_histogram({f"m{k}": rng.random(50) ** (k + 1) for k in range(count)}, tmp_path / "popq.png")
    plots.score_matrices({"flat": np.zeros((3, 3))}, tmp_path / "flat.png")
    plots.popq_histogram({"none": []}, tmp_path / "none.png")
    for name in ("scores", "popq", "flat", "none"):
        assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
