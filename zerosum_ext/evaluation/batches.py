"""The metrics of evaluate, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from zerosum_ext._types import ArrayLike, Ties
from zerosum_ext.evaluation.ranking import Ranking, evaluated_users, excluded_interactions, join_rankings, rank_users
from zerosum_ext.evaluation.sources import Data, Exclude, Popularity, require_interactions
from zerosum_ext.evaluation.table import METRICS, as_cutoffs, compute, counts_of_both, parse_metrics
from zerosum_ext.metrics import inputs


class RankingMetrics:
    """Compute the metrics of evaluate batch by batch, in an evaluation loop of one's own: update, compute, reset.

    Under torch.distributed each process updates with its own users, and :meth:`compute` gathers what all have seen, so
    that every process gets the metrics of all users. A user who was seen twice counts once: samplers pad the last
    batch.

    Args:
        train, test: interactions [num_users, num_items], as in :func:`evaluate`.
        metrics, k, popularity, exclude, ties, tail_mass: as in :func:`evaluate`; no :data:`SAMPLED_METRICS`.

    Example::

        metric = RankingMetrics(train, test, metrics=("ndcg", "pri"), k=10)
        for users in batches:
            metric.update(users, model(users))  # scores [B, num_items]
        values = metric.compute()

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> model = zx.MatrixFactorization(*data.shape, embedding_dim=8, seed=0)
        >>> metric = zx.RankingMetrics(None, data, metrics=("hr",), k=4, exclude=None)
        >>> metric.update(torch.arange(3), model.score_all_items(torch.arange(3)))
        >>> metric.compute()
        {'hr@4': 1.0}
    """

    def __init__(
        self,
        train: Data | None,
        test: Data,
        *,
        metrics: Sequence[str] = METRICS,
        k: int | Sequence[int] = (10, 20),
        popularity: Popularity | None = None,
        exclude: Exclude = "train",
        ties: Ties = "average",
        tail_mass: float = 0.2,
    ) -> None:
        self._test = require_interactions(test, "test")
        known = None if train is None else require_interactions(train, "train")
        self._excluded = excluded_interactions(exclude, known, self._test)
        if popularity is None:
            popularity = counts_of_both(known, self._test, torch.device("cpu"))
        self._popularity = popularity
        wanted = parse_metrics(metrics, as_cutoffs(k))
        self._length = max((cutoff for _, _, cutoff in wanted), default=0)
        self._options: dict[str, Any] = {
            "metrics": [key for key, _, _ in wanted],
            "ties": ties,
            "tail_mass": tail_mass,
        }
        self._parts: list[Ranking] = []

    def update(self, users: ArrayLike, scores: ArrayLike) -> None:
        """Add users [B] and their scores [B, num_items]; users without a held-out positive are left out.

        Raises:
            ValueError: shapes do not agree, a user is out of range, or a candidate's score is NaN.
        """
        index, values = inputs.as_integers(users, "users"), torch.as_tensor(scores).detach()
        if values.shape != (index.size, self._test.num_items):
            raise ValueError(f"scores: expected [{index.size}, {self._test.num_items}], got {[*values.shape]}")
        kept, first = np.unique(index, return_index=True)
        evaluated = evaluated_users(self._test.user_counts.cpu().numpy(), kept)
        rows = torch.from_numpy(first[np.isin(kept, evaluated)]).to(values.device)
        ranked = rank_users(
            lambda _: values[rows], evaluated, self._test, self._excluded, self._length, max(1, evaluated.size)
        )
        self._parts.append(ranked.on_host())

    def ranking(self) -> Ranking:
        """Return the ranking of all users seen so far, by all processes."""
        parts = list(self._parts)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, parts)
            parts = [part for some in gathered for part in some]
        none = rank_users(
            lambda _: torch.zeros(0, self._test.num_items), np.zeros(0, np.int64), self._test, None, self._length
        )
        return join_rankings([*parts, none.on_host()])

    def compute(self) -> dict[str, float]:
        """Return the metrics of all users seen, as :func:`evaluate` returns them."""
        return compute(self.ranking(), self._popularity, **self._options)

    def reset(self) -> None:
        """Forget all users."""
        self._parts.clear()
