"""The estimator on pairs, with scikit-learn's own tools."""

from __future__ import annotations

import numpy as np
import pytest

import zerosum_ext as zx

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from zerosum_ext.integrations.sklearn import PairRecommender, bias_scorer

FOLDS = KFold(3, shuffle=True, random_state=0)


@pytest.fixture(scope="module")
def pairs():
    users, items = zx.datasets.synthetic_triangle(40, 60).nonzero()
    return np.stack([np.char.add("u", users.astype(str)), np.char.add("i", items.astype(str))], 1)


def make(**options):
    return PairRecommender(**{"epochs": 3, "lr": 0.02, "embedding_dim": 8, "batch_size": 256, "loss": "bpr", **options})


def test_a_clone_is_untrained_and_trains_to_the_same(pairs):
    first = make(loss_options={"reduction": "mean"}).fit(pairs)
    other = clone(first)
    assert other.get_params() == first.get_params()
    with pytest.raises(NotFittedError):
        other.predict(pairs)
    np.testing.assert_array_equal(other.fit(pairs).predict(pairs[:9]), first.predict(pairs[:9]))


def test_the_score_of_a_fold_is_that_of_evaluate(pairs):
    train, test = next(FOLDS.split(pairs))
    estimator = make(metric="recall@5").fit(pairs[train])
    whole = zx.Interactions.from_arrays(*pairs[train].T, ids=True)
    held = zx.Interactions.from_arrays(*pairs[test].T, vocabulary=whole.vocabulary, unknown="skip")
    want = zx.evaluate(estimator.model_, whole, held, metrics=("recall",), k=(5,))["recall@5"]
    assert estimator.score(pairs[test]) == pytest.approx(want)
    assert cross_val_score(make(metric="recall@5"), pairs, cv=FOLDS)[0] == pytest.approx(want)


def test_a_grid_is_searched_by_accuracy_and_by_bias(pairs):
    grid = {"loss": ["bpr", "zerosum"], "epochs": [1, 4]}
    scoring = {"ndcg": bias_scorer("ndcg@10"), "bias": bias_scorer("pop_q_at_1")}
    search = GridSearchCV(make(), grid, cv=FOLDS, scoring=scoring, refit="ndcg", error_score="raise").fit(pairs)
    assert len(search.cv_results_["params"]) == 4
    assert search.best_params_["epochs"] == 4
    assert (search.cv_results_["mean_test_bias"] <= 0).all()  # minus the distance from the ideal
    ids, scores = search.best_estimator_.recommend(["u3", "u0"], 4)
    assert ids.shape == scores.shape == (2, 4)
    assert not {("u3", item) for item in ids[0]} & {tuple(pair) for pair in pairs}


def test_the_end_of_a_pipeline(pairs):
    text = make_pipeline(FunctionTransformer(lambda rows: np.char.upper(rows)), make())
    assert text.fit(pairs).score(pairs[::2]) >= 0
    assert text[-1].model_.vocabulary.user_ids[0].startswith("U")


def test_unknown_pairs_have_no_score(pairs):
    scores = make().fit(pairs).predict(np.array([["u1", "i2"], ["nobody", "i2"], ["u1", "nothing"]]))
    assert np.isfinite(scores[0])
    assert np.isnan(scores[1:]).all()


def test_integers_frames_matrices_and_weights(pairs):
    numbers = np.array([[9, 100], [9, 200], [7, 100], [8, 300], [8, 200]])
    plain = make(embedding_dim=2).fit(numbers)
    assert plain.train_.user_ids.tolist() == [7, 8, 9]
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"user": numbers[:, 0], "item": [f"i{n}" for n in numbers[:, 1]]})
    assert make(embedding_dim=2).fit(frame).recommend([9], 1)[0].tolist() == [["i300"]]
    weighted = make(embedding_dim=2).fit(numbers, sample_weight=[1.0, 2, 1, 1, 1])
    assert weighted.train_.weights.tolist() == [1, 1, 1, 1, 2]
    assert not np.array_equal(weighted.predict(numbers), plain.predict(numbers))
    matrix = make(embedding_dim=2).fit(zx.datasets.synthetic_triangle(40, 60))
    assert matrix.recommend([3], 2)[0].shape == (1, 2)


def test_what_is_refused(pairs):
    with pytest.raises(ValueError, match="X: expected pairs"):
        make().fit(pairs[:, 0])
    with pytest.raises(TypeError, match="users that are text as in fit"):
        make().fit(pairs).predict(np.array([[1, 2]]))
    with pytest.raises(ValueError, match="has no direction"):
        bias_scorer("novelty@10")
    with pytest.raises(ValueError, match="sample_weight: expected 3 numbers"):
        make().fit(pairs[:3], sample_weight=[1.0])
