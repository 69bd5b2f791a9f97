"""Synthetic matrices against their definitions, and the loader of real ones."""

from __future__ import annotations

import numpy as np
import pytest

from zerosum_ext.data import datasets
from zerosum_ext.data.interactions import Interactions


def test_synthetic_triangle_is_the_released_matrix():
    matrix = datasets.synthetic_triangle().toarray()
    expected = np.zeros((200, 200))
    for u in range(200):
        for i in range(200):
            expected[u, i] = u + i <= 198
    expected[1, 199] = expected[199, 0] = 1
    np.testing.assert_array_equal(matrix, expected)
    assert matrix.sum() == 19_902


def test_synthetic_triangle_with_a_boundary_is_the_papers_text():
    matrix = datasets.synthetic_triangle(boundary=200).toarray()
    assert matrix[0].all()
    assert matrix[1].all()
    assert not matrix[2, 199]
    assert matrix[2, 198]
    assert datasets.synthetic_triangle(10, 6, boundary=3).toarray().sum() == 4 + 3 + 2 + 1


@pytest.mark.parametrize(("users", "items"), [(50, 200), (200, 50), (3, 3), (7, 100)])
def test_every_user_of_a_triangle_has_positives_and_negatives(users, items):
    matrix = datasets.synthetic_triangle(users, items).toarray()
    assert ((matrix.sum(1) > 0) & (matrix.sum(1) < items)).all()
    assert (matrix.sum(0) > 0).all()
    with pytest.raises(ValueError, match="at least 3"):
        datasets.synthetic_triangle(2, items)


def test_synthetic4():
    matrix = datasets.synthetic4().toarray()
    assert matrix.shape == (400, 200)
    assert matrix[200:, :199].all()
    assert not matrix[:, 199].any()
    assert not matrix[199].any()
    assert matrix[:200].sum() == 19_900


def test_power_law():
    x = datasets.power_law(500, 300, 20_000, seed=1)
    assert (x.shape, x.nnz) == ((500, 300), 20_000)
    popularity = np.sort(x.popularity.numpy())[::-1]
    assert popularity[:30].mean() > 4 * popularity[150:].mean()
    y = datasets.power_law(500, 300, 20_000, seed=1)
    assert (x.indices == y.indices).all()
    assert not (x.indices == datasets.power_law(500, 300, 20_000, seed=2).indices).all()
    with pytest.raises(ValueError, match="too dense"):
        datasets.power_law(20, 20, 401)
    with pytest.raises(ValueError, match="num_items"):
        datasets.power_law(20, 0, 1)


def test_load(tmp_path, monkeypatch):
    np.savez(tmp_path / "mine.npz", user=[0, 1], item=[1, 0], split=[0, 1])
    monkeypatch.setenv("ZEROSUM_EXT_DATA", str(tmp_path))
    assert datasets.load("mine").split_by().test.nnz == 1
    assert isinstance(datasets.load("mine", tmp_path), Interactions)
    with pytest.raises(ValueError, match=r"no 'other' in .*; it has mine"):
        datasets.load("other")
    monkeypatch.delenv("ZEROSUM_EXT_DATA")
    with pytest.raises(ValueError, match="ZEROSUM_EXT_DATA"):
        datasets.load("mine")
