"""Published experiments, run again by the library's own parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from zerosum_ext import datasets, metrics
from zerosum_ext.evaluation import evaluate
from zerosum_ext.interactions import Interactions
from zerosum_ext.losses import get_loss
from zerosum_ext.models import MatrixFactorization

__all__ = ["SYNTHETIC_PUBLISHED", "synthetic"]

# [RCS22] section 4.1, matrix factorization on the synthetic triangle.
SYNTHETIC_PUBLISHED: dict[str, dict[str, float]] = {
    "bpr": {"error": 1e-4, "pri": 0.99, "pop_q_at_1": 0.02},
    "pos2neg2": {"error": 3e-4, "pri": 0.42, "pop_q_at_1": 0.62},
    "zerosum": {"error": 7e-5, "pri": 0.50, "pop_q_at_1": 0.61},
}


def synthetic(
    method: str, seeds: Sequence[int] = (0,), *, epochs: int = 10, weight: float = 0.8
) -> tuple[list[dict[str, float]], np.ndarray, np.ndarray]:
    """Matrix factorization on the synthetic triangle by the protocol of [RCS22] section 4.1.

    d = 64, initial N(0, .01), Adam 1e-3, batches of 256, 3 draws per positive and epoch; train and evaluated positives
    are the same matrix.

    Returns:
        For each seed {"error" (1 - pairwise accuracy, a fraction), "pri", "pop_q_at_1"}; of the last seed the scores
        [200, 200] and the PopQ@1 of each user.
    """
    x = Interactions.from_scipy(datasets.synthetic_triangle())
    results: list[dict[str, float]] = []
    scores = popq = np.zeros(0)
    for seed in seeds:
        model = MatrixFactorization(x.num_users, x.num_items, 64, seed=seed)
        loss = get_loss(method) if method == "bpr" else get_loss(method, w=weight)
        model.fit(x, loss, batch_size=256, epochs=epochs, draws=3, seed=seed)
        names = ("pairwise_accuracy", "pri", "pop_q_at_1")
        values = evaluate(model, None, x, metrics=names, popularity=x, exclude=None)
        results.append(
            {"error": 1 - values["pairwise_accuracy"], "pri": values["pri"], "pop_q_at_1": values["pop_q_at_1"]}
        )
        scores = model.score_all_items(torch.arange(x.num_users)).numpy()
        users, items = (t.numpy() for t in x.pairs())
        popq = metrics.pop_q_at_1(users, items, scores[users, items], x.popularity, reduction="none")
    return results, scores, popq
