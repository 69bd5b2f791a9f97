"""A scikit-learn estimator on pairs of (user, item): for clone, cross_val_score, GridSearchCV and pipelines.

    grid = {"loss": ["bpr", "zerosum"], "lr": [1e-3, 1e-2]}
    search = GridSearchCV(PairRecommender(epochs=20), grid, cv=KFold(3, shuffle=True))
    search.fit(pairs)                            # [n, 2]: the external ids of users and items
    search.best_estimator_.recommend(["ann"])

A fold holds pairs back, and the estimator ranks all items but those that the user has in the other folds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from zerosum_ext._checks import describe
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.data.vocabulary import Vocabulary
from zerosum_ext.evaluation import evaluate
from zerosum_ext.integrations.packages import needed
from zerosum_ext.losses import get_loss
from zerosum_ext.metrics import measure_of
from zerosum_ext.models import Recommender, get_model

__all__ = ["PairRecommender", "bias_scorer"]

_utils: Any = needed("sklearn.utils", "scikit-learn", __name__)
_base: Any = needed("sklearn.base", "scikit-learn", __name__)
_validation: Any = needed("sklearn.utils.validation", "scikit-learn", __name__)


class PairRecommender(_base.BaseEstimator):
    """Train one of the library's models on pairs.

    Args:
        model: a name of :func:`zerosum_ext.get_model`.
        loss: a name of :func:`zerosum_ext.get_loss`.
        embedding_dim: the width of the tables.
        epochs, lr, batch_size, negatives, l2: as in :func:`zerosum_ext.fit`.
        loss_options, model_options, fit_options: further keywords of the three, or None.
        metric: what :meth:`score` returns: a key of :func:`zerosum_ext.evaluate`, such as "ndcg@10".
        random_state: a seed, a RandomState, or None for a seed of chance.

    Attributes:
        model_: the trained model, whose vocabulary holds the external ids.
        train_: the interactions that it was trained on.
        history_: one mean loss for each epoch.
        n_features_in_: 2.
    """

    # An estimator's settings are keywords of its constructor, which keeps them as they are.
    def __init__(
        self,
        *,
        model: str = "mf",
        loss: str = "zerosum",
        embedding_dim: int = 64,
        epochs: int = 20,
        lr: float | None = None,
        batch_size: int = 2048,
        negatives: int = 1,
        l2: float = 0.0,
        loss_options: dict[str, Any] | None = None,
        model_options: dict[str, Any] | None = None,
        fit_options: dict[str, Any] | None = None,
        metric: str = "ndcg@10",
        random_state: Any = 0,
    ) -> None:
        self.model = model
        self.loss = loss
        self.embedding_dim = embedding_dim
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.negatives = negatives
        self.l2 = l2
        self.loss_options = loss_options
        self.model_options = model_options
        self.fit_options = fit_options
        self.metric = metric
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> PairRecommender:
        """Train a new model.

        Args:
            X: pairs [n, 2]: the ids of users and of items, integers or text; or Interactions, a scipy or a torch CSR.
            y: is not looked at.
            sample_weight: the weight of each pair [n], summed over pairs that occur twice.

        Raises:
            TypeError, ValueError: X is nothing of the kind.
        """
        train = self._interactions(X, sample_weight)
        seed = int(_utils.check_random_state(self.random_state).randint(2**31))
        options = {"embedding_dim": self.embedding_dim, "seed": seed, **(self.model_options or {})}
        made = get_model(self.model, train, **options)
        # By its name a loss gets the popularities that it needs.
        loss = get_loss(self.loss, **self.loss_options) if self.loss_options else self.loss
        self.history_ = made.fit(
            train,
            loss,
            lr=self.lr,
            epochs=self.epochs,
            batch_size=self.batch_size,
            negatives=self.negatives,
            l2=self.l2,
            **{
                "seed": seed,
                "progress": False,
                "sample_weight": None if train.weights is None else "weights",
                **(self.fit_options or {}),
            },
        )
        self.model_: Recommender = made
        self.train_ = train
        self.n_features_in_ = 2
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the scores of pairs [n, 2]: NaN where the model knows the user or the item not."""
        users, items, known = self._numbers(X)
        scores = np.full(len(known), np.nan)
        scores[known] = self.model_.predict(users[known], items[known]).numpy()
        return scores

    def score(self, X: Any, y: Any = None) -> float:
        """Return the metric on held-out pairs, larger is better.

        Pairs of users and items that are not in the training pairs, and training pairs themselves, are left out.

        Raises:
            ValueError: no pair is left, or no direction of the metric is better.
        """
        return bias_scorer(self.metric)(self, X, y)

    def recommend(self, users: Any, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best new items of users by their external ids: ids [n, k] and scores [n, k]."""
        _validation.check_is_fitted(self)
        named = self.model_.vocabulary is not None
        found, scores = self.model_.recommend(self.train_.encode_users(users), k, exclude=self.train_, return_ids=named)
        return np.asarray(found), scores.numpy()

    def _interactions(self, X: Any, sample_weight: Any) -> Interactions:
        if isinstance(X, Interactions) or hasattr(X, "tocsr") or getattr(X, "is_sparse_csr", False):
            if sample_weight is not None:
                raise ValueError("sample_weight: expected None with a matrix, whose weights are its own")
            return Interactions.from_any(X)
        users, items = _columns(X)
        if sample_weight is None:
            return Interactions.from_arrays(users, items, ids=True)
        weight = np.asarray(sample_weight)
        if weight.shape != users.shape:
            raise ValueError(f"sample_weight: expected {len(users)} numbers, got {describe(sample_weight)}")
        return Interactions.from_arrays(users, items, ids=True, columns={"weight": weight}, weights="weight")

    def _numbers(self, X: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the numbers of users and items, and which pairs the model knows."""
        _validation.check_is_fitted(self)
        users, items = _columns(X)
        vocabulary = self.train_.vocabulary
        numbers = [_find(vocabulary, "user", users), _find(vocabulary, "item", items)]
        return numbers[0], numbers[1], (numbers[0] >= 0) & (numbers[1] >= 0)


def bias_scorer(metric: str) -> Callable[..., float]:
    """Return a scorer for ``scoring=`` of GridSearchCV and cross_val_score: a metric, turned so that larger is better.

    A measure with an ideal counts by its distance from it, and one of which less is better by its negative.

    Args:
        metric: a key of :func:`zerosum_ext.evaluate`, such as "ndcg@10", "pop_q_at_1" or "arp@10".

    Raises:
        ValueError: the metric is unknown, or has no direction.
    """
    record = measure_of(metric)
    record.distance(0.0)
    name, _, cutoff = metric.partition("@")

    def scorer(estimator: Any, X: Any, y: Any = None) -> float:
        users, items, known = estimator._numbers(X)
        train: Interactions = estimator.train_
        test = Interactions.from_arrays(users[known], items[known], shape=train.shape)
        k = (int(cutoff),) if cutoff else (10,)
        value = evaluate(estimator.model_, train, test, metrics=(name,), k=k)[metric]
        plain = record.kind == "accuracy"
        return value if plain else -record.distance(value)

    return scorer


def _find(vocabulary: Vocabulary, what: Literal["user", "item"], ids: np.ndarray) -> np.ndarray:
    """Return the numbers of external ids, -1 of those that are not there."""
    known = vocabulary.user_ids if what == "user" else vocabulary.item_ids
    numeric = known is None or known.dtype.kind in "iu"
    if ids.size and numeric != (ids.dtype.kind in "iu"):
        raise TypeError(f"X: expected {what}s that are {'integers' if numeric else 'text'} as in fit, got {ids.dtype}")
    return vocabulary.find(what, ids)


def _columns(pairs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the two columns of pairs, each with a type of its own."""
    if hasattr(pairs, "iloc"):  # pandas
        if pairs.shape[1] != 2:
            raise ValueError(f"X: expected two columns, user and item, got {pairs.shape[1]}")
        return np.asarray(pairs.iloc[:, 0]), np.asarray(pairs.iloc[:, 1])
    values = np.asarray(pairs)
    if values.ndim != 2 or values.shape[1] != 2:
        raise ValueError(f"X: expected pairs [n, 2] of users and items, got {describe(pairs)}")
    if values.dtype.kind == "O":  # of numbers beside text
        return np.array(values[:, 0].tolist()), np.array(values[:, 1].tolist())
    return values[:, 0], values[:, 1]
