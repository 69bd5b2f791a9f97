"""Evaluate a model on held-out interactions, in one call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from zerosum_ext._types import ArrayLike, Scorer, Ties
from zerosum_ext.evaluation.ranking import Check, Ranking, rank, rank_tensors
from zerosum_ext.evaluation.sampled import rank_against_samples
from zerosum_ext.evaluation.sources import Data, Exclude, Popularity, require_interactions, require_same_shape
from zerosum_ext.evaluation.table import (
    AT_K_METRICS,
    METRICS,
    SAMPLED_METRICS,
    MetricTable,
    as_cutoffs,
    compute,
    counts_of_both,
    fetch_values,
    item_counts,
    parse_metrics,
)
from zerosum_ext.metrics import tensors

__all__ = ["AT_K_METRICS", "METRICS", "SAMPLED_METRICS", "Ranking", "compute", "evaluate", "rank"]


# One argument above the limit: all but the first three are options, and each stands for itself.
def evaluate(
    model: Scorer,
    train: Data | None,
    test: Data,
    *,
    metrics: Sequence[str] = METRICS,
    k: int | Sequence[int] = (10, 20),
    popularity: Popularity | None = None,
    exclude: Exclude = "train",
    ties: Ties = "average",
    tail_mass: float = 0.2,
    users: ArrayLike | None = None,
    batch_size: int | None = None,
    negatives: int | ArrayLike = 100,
    seed: int = 0,
) -> dict[str, float]:
    """Evaluate a model on held-out interactions: accuracy, popularity bias and exposure in one pass.

    Means are over the users with a held-out positive. Definitions, ranges and sources:
    :mod:`zerosum_ext.metrics`.

    Args:
        model, train, test, exclude, users, batch_size: as in :func:`rank`.
        metrics: names of :data:`METRICS`, :data:`~zerosum_ext.evaluation.WEIGHTED_METRICS` or
            :data:`SAMPLED_METRICS`; those of :data:`AT_K_METRICS` and of the last two are reported at each of ``k``, or
            at a cut-off of their own ("ndcg@5").
        k: one cut-off or several.
        popularity: interaction counts [num_items] or an interaction matrix; None counts train + test.
        ties: what happens to equal scores, see :func:`zerosum_ext.metrics.positive_ranks`. AUC counts a tie
            1/2 and pairwise accuracy counts it as wrong, whatever this says; lists take the lower item
            number.
        tail_mass: share of the interactions that the long tail has, see
            :func:`zerosum_ext.metrics.long_tail`.
        negatives, seed: for :data:`SAMPLED_METRICS`, see :func:`sampled_ranks`; what is excluded is not drawn.

    Returns:
        {"hr@10": .., "hr@20": .., ..., "pri": .., "pop_q_at_1": ..}, in the order of ``metrics``.

    Example:
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> model = zx.MatrixFactorization(*data.shape, embedding_dim=8, seed=0)
        >>> sorted(zx.evaluate(model, None, data, metrics=("ndcg", "pop_q_at_1"), k=2, exclude=None))
        ['ndcg@2', 'pop_q_at_1']
    """
    cutoffs = as_cutoffs(k)
    wanted = parse_metrics(metrics, cutoffs)
    # Once, here: to rank would convert both again.
    test, train = require_interactions(test, "test"), None if train is None else require_interactions(train, "train")
    if train is not None:
        require_same_shape(train.shape, test.shape)
    full = [entry for entry in wanted if entry[1] not in SAMPLED_METRICS]
    values: dict[str, Tensor] = {}
    checks: list[Check] = []
    if full:
        length = max(cutoff for _, _, cutoff in full)
        # Where every metric has a cut-off nothing has to be known of what lies beyond the largest.
        top_only = all(cutoff for _, _, cutoff in full)
        ranked = rank_tensors(model, train, test, length, exclude, users, batch_size, top_only)
        device = ranked.indptr.device
        counts = counts_of_both(train, test, device) if popularity is None else item_counts(popularity, device)
        table = MetricTable(ranked, counts, [cut for _, _, cut in full if cut], ties, tail_mass)
        values = {key: table.value(name, cut) for key, name, cut in full}
        checks = table.checks
    if len(full) < len(wanted):
        known = train if isinstance(exclude, str) else exclude
        _, places, check = rank_against_samples(model, known, test, negatives, seed, users)
        checks = [*checks, check]
        for key, name, cutoff in wanted:
            if name in SAMPLED_METRICS:
                function = tensors.hit_of_ranks if name == "sampled_hit" else tensors.ndcg_of_ranks
                values[key] = function(places, cutoff)
    return fetch_values({key: values[key] for key, _, _ in wanted}, checks)
