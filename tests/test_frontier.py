"""The area under the frontier of accuracy and bias, against its definition."""

import numpy as np
import pytest

from zerosum_ext.experiments import frontier


def by_definition(points, baseline, ideal, steps=20001):
    """The integral of f(r) as a mean over a fine grid of r."""
    accuracy, bias = baseline
    every = [(1 - abs(b - ideal) / abs(bias - ideal), a / accuracy) for a, b in points] + [(0.0, 1.0)]
    grid = (np.arange(steps) + 0.5) / steps
    return np.mean([max((a for r, a in every if r >= x), default=0.0) for x in grid])


def test_known_areas():
    base = (0.5, 0.8)
    assert frontier.area([], base) == 0
    assert frontier.area([base], base) == 0
    assert frontier.area([(0.5, 0.0)], base) == 1  # no bias at no cost
    assert frontier.area([(0.4, 0.4)], base) == pytest.approx(0.5 * 0.8)
    assert frontier.area([(0.4, -0.4)], base) == pytest.approx(0.5 * 0.8)  # beyond the ideal counts as much
    assert frontier.area([(0.5, 0.4), (0.25, 0.0)], base) == pytest.approx(0.5 + 0.5 * 0.5)
    assert frontier.area([(0.5, 0.4), (0.4, 0.6)], base) == pytest.approx(0.5)  # beaten in both
    assert frontier.area([(0.9, 1.2)], base) == 0  # more bias than before
    assert frontier.area([(0.3, 0.3)], (0.3, 0.2), ideal=0.5) == pytest.approx(1 / 3)


@pytest.mark.parametrize("ideal", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_against_the_definition(seed, ideal):
    rng = np.random.default_rng(seed)
    points = list(zip(rng.uniform(0, 0.6, 9), rng.uniform(-1, 1, 9), strict=True))
    base = (0.5, 0.9)
    assert frontier.area(points, base, ideal) == pytest.approx(by_definition(points, base, ideal), abs=2e-4)


def test_best_reduction_at_a_cost():
    base, points = (0.5, 0.8), [(0.49, 0.6), (0.46, 0.2), (0.3, 0.0)]
    assert frontier.best_reduction(points, base, share=0.95) == pytest.approx(0.25)
    assert frontier.best_reduction(points, base, share=0.9) == pytest.approx(0.75)
    assert frontier.best_reduction(points, base, share=0.5) == pytest.approx(1.0)
    assert frontier.best_reduction([(0.5, 0.9)], base, share=0.99) == 0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="baseline"):
        frontier.reduction(0.3, 0.5, 0.5)
    with pytest.raises(ValueError, match="accuracy"):
        frontier.area([], (0.0, 0.5))
    with pytest.raises(ValueError, match="bias"):
        frontier.reduction(float("nan"), 0.5)
