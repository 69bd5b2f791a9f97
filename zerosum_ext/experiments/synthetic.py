"""The synthetic experiment of [RCS22] section 4.1, run with the library's own parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from zerosum_ext import metrics
from zerosum_ext.data import datasets
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.evaluation.full import evaluate
from zerosum_ext.losses import get_loss
from zerosum_ext.models import MatrixFactorization

__all__ = ["SYNTHETIC_PUBLISHED", "Synthetic", "synthetic"]

# [RCS22] section 4.1, matrix factorization on the synthetic triangle.
SYNTHETIC_PUBLISHED: dict[str, dict[str, float]] = {
    "bpr": {"error": 1e-4, "pri": 0.99, "pop_q_at_1": 0.02},
    "pos2neg2": {"error": 3e-4, "pri": 0.42, "pop_q_at_1": 0.62},
    "zerosum": {"error": 7e-5, "pri": 0.50, "pop_q_at_1": 0.61},
}


@dataclass
class Synthetic:
    """What :func:`synthetic` returns.

    Attributes:
        values: for each seed {"error" (1 - pairwise accuracy, a fraction), "pri", "pop_q_at_1"}.
        scores: the scores of the last seed, [200, 200].
        pop_q: PopQ@1 of each user, of the last seed.
        ranks: (popularity, average rank) of the items, of the last seed [RCS22 fig. 2].
    """

    values: list[dict[str, float]]
    scores: np.ndarray
    pop_q: np.ndarray
    ranks: tuple[np.ndarray, np.ndarray]


def synthetic(
    method: str,
    seeds: Sequence[int] = (0,),
    *,
    epochs: int = 10,
    weight: float = 0.8,
    after_seed: Callable[[], object] = lambda: None,
) -> Synthetic:
    """Train matrix factorization on the synthetic triangle by the protocol of [RCS22] section 4.1.

    d = 64, initial N(0, .01), Adam 1e-3, batches of 256, 3 draws per positive and epoch. The matrix that is trained on
    is evaluated too. ``after_seed`` is called when a seed is done, to show progress.

    Raises:
        ValueError: no seeds, an unknown method, or a weight outside [0, 1].
    """
    if len(seeds) == 0:
        raise ValueError("seeds: expected at least one, got none")
    x = Interactions.from_scipy(datasets.synthetic_triangle())
    users, items = (t.numpy() for t in x.pairs())
    values: list[dict[str, float]] = []
    for seed in seeds:
        model = MatrixFactorization(x.num_users, x.num_items, 64, seed=seed)
        loss = get_loss(method) if method == "bpr" else get_loss(method, w=weight)
        model.fit(x, loss, batch_size=256, epochs=epochs, draws=3, seed=seed, progress=False)
        names = ("pairwise_accuracy", "pri", "pop_q_at_1")
        found = evaluate(model, None, x, metrics=names, popularity=x, exclude=None)
        values.append({"error": 1 - found["pairwise_accuracy"], "pri": found["pri"], "pop_q_at_1": found["pop_q_at_1"]})
        after_seed()
    scores = model.score_all_items(torch.arange(x.num_users)).numpy()
    pop_q = metrics.pop_q_at_1(users, items, scores[users, items], x.popularity, reduction="none")
    ranked, r = metrics.average_ranks(users, items, scores[users, items])
    return Synthetic(values, scores, pop_q, (x.popularity.numpy()[ranked], r))
