"""The class with implicit's interface: implicit's own base tests, and what they do not ask.

The tests of implicit are those of its source distribution, in the folder that IMPLICIT_TESTS names: ``make adapters``
puts them there.
"""

from __future__ import annotations

import importlib
import os
import sys
import unittest
import warnings

import numpy as np
import pytest
import scipy.sparse as sp

import zerosum_ext as zx
from zerosum_ext.integrations.implicit import Factorization

# What does not hold, and why. Each is tried, and has to fail as is said.
EXPECTED_FAILURES: dict[str, str] = {
    "test_recalculate_user": "rows of fold_in minimise an objective with L2. Those of SGD are not at its minimum, so "
    "that scores differ by more than the .0005 that the test allows. implicit's own BPR has no recalculate_user",
}


def blocks(size: int = 50) -> sp.csr_matrix:
    """Even users like even items and odd users odd items, but for one item each."""
    users, items = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    return sp.csr_matrix(((users % 2 == items % 2) & (users != items)).astype(np.float32))


def make(**options):
    return Factorization(**{"factors": 8, "iterations": 60, "random_state": 1, "num_threads": 1, **options})


@pytest.fixture(scope="module")
def trained():
    model = make()
    model.fit(blocks(), show_progress=False)
    return model


@pytest.fixture(scope="module")
def suite():
    folder = os.environ.get("IMPLICIT_TESTS")
    if not folder:
        pytest.skip("IMPLICIT_TESTS is not set: the folder tests of implicit's source distribution")
    pytest.importorskip("implicit")
    sys.path.insert(0, folder)
    return importlib.import_module("recommender_base_test").RecommenderBaseTestMixin


def names() -> list[str]:
    folder = os.environ.get("IMPLICIT_TESTS")
    if not folder:
        return ["test_of_implicit"]
    with open(os.path.join(folder, "recommender_base_test.py"), encoding="utf-8") as file:
        return [line.split()[1].partition("(")[0] for line in file if line.startswith("    def test_")]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("loss", ["bpr", "zerosum"])
def test_the_base_tests_of_implicit(suite, name, loss):
    case = type("Case", (unittest.TestCase, suite), {"_get_model": lambda self: make(loss=loss)})(name)
    result = unittest.TestResult()
    with warnings.catch_warnings():
        case.run(result)
    problems = [text.strip().splitlines()[-1] for _, text in result.failures + result.errors]
    if name in EXPECTED_FAILURES:
        assert problems, f"{name} passes now"
        pytest.xfail(EXPECTED_FAILURES[name])
    assert result.testsRun == 1
    assert not problems


def test_the_evaluation_of_implicit_agrees_with_ours(trained):
    evaluation = pytest.importorskip("implicit.evaluation")
    held_out = sp.csr_matrix(np.eye(50, dtype=np.float32))
    theirs = evaluation.ranking_metrics_at_k(trained, blocks(), held_out, K=3, show_progress=False)
    ours = zx.evaluate(trained.model, blocks(), held_out, metrics=("ndcg", "precision"), k=(3,))
    assert theirs["ndcg"] == pytest.approx(ours["ndcg@3"])


def test_what_is_liked_comes_last(trained):
    ids, scores = trained.recommend(4, blocks()[4], N=10**6)
    assert sorted(ids) == list(range(50))
    assert set(ids[-24:]) == set(blocks()[4].indices)
    assert (np.diff(scores) <= 0).all()
    ids, _ = trained.recommend(4, N=5, filter_already_liked_items=False)
    want = trained.model.recommend(4, 5)[0][0]
    assert list(ids) == want.tolist()


def test_a_user_is_recalculated_from_a_history(trained):
    new = sp.csr_matrix((np.ones(6), (np.zeros(6, int), [1, 3, 5, 7, 9, 11])), shape=(1, 50))
    ids, _ = trained.recommend(0, new, N=15, recalculate_user=True)
    assert (ids % 2 == 1).all()
    assert not set(ids) & {1, 3, 5, 7, 9, 11}


def test_the_tables_give_the_scores(trained):
    biased = make(item_bias=True, iterations=3)
    biased.fit(blocks(), show_progress=False)
    for model in (trained, biased):
        ids, scores = model.recommend(7, N=5, filter_already_liked_items=False)
        np.testing.assert_allclose(model.item_factors[ids] @ model.user_factors[7], scores, rtol=1e-5)


def test_values_weigh_the_samples_where_asked_for():
    heavy = blocks().multiply(3).tocsr()
    tables = []
    for matrix, weights in ((blocks(), False), (heavy, False), (blocks(), True), (heavy, True)):
        model = make(iterations=2, weights=weights)
        model.fit(matrix, show_progress=False)
        tables.append(model.user_factors)
    assert (tables[0] == tables[1]).all()
    assert (tables[0] == tables[2]).all()
    assert not (tables[2] == tables[3]).all()


def test_what_is_refused(trained):
    with pytest.raises(ValueError, match="not trained"):
        make().recommend(0, blocks()[0])
    with pytest.raises(ValueError, match="loss: expected one of"):
        make(loss="nothing")
    with pytest.raises(ValueError, match="a row for each of 2 users"):
        trained.recommend([0, 1], blocks()[0])
    with pytest.raises(ValueError, match="got both"):
        trained.similar_items(0, items=[1, 2], filter_items=[3])
    with pytest.raises(IndexError, match="from 0 to 49"):
        trained.similar_users(50)
    with pytest.raises(TypeError, match="random_state"):
        make(random_state="x")
