"""Full ranking: each positive among all candidates of its user."""

from __future__ import annotations

from typing import Any

import numpy as np

from zerosum_ext._checks import require_choice
from zerosum_ext._types import MetricReduction, Ties
from zerosum_ext.metrics.groups import groups_of, reduced, tie_blocks
from zerosum_ext.metrics.inputs import as_cutoff, as_integers, as_numbers, require_same_length


def positive_ranks(users: Any, scores: Any, greater: Any, equal: Any, ties: Ties = "average") -> np.ndarray:
    """Return 1-based places of the positives in their users' rankings, float64 [P], from counts.

    Where several candidates share a score their order is open. N candidates of one score, m of them
    positives, fill the places g + 1 .. g + N, g being the number of candidates above. The m positives get
    *different* places:

    - ``"optimistic"``: the first m of them;
    - ``"pessimistic"``: the last m of them;
    - ``"average"``: their expected places under a random order, g + j (N + 1) / (m + 1) for j = 1 .. m; a
      single positive gets the average rank of the tie.

    Args:
        users: integers [P].
        scores: numbers [P], the positives' scores.
        greater: integers [P], candidates of the user with a higher score (positives included).
        equal: integers [P], *other* candidates of the user with the same score (positives included).
        ties: one of the above.
    """
    require_choice("ties", ties, ("average", "pessimistic", "optimistic"))
    u, s = as_integers(users, "users"), as_numbers(scores, "scores")
    above, same = as_integers(greater, "greater"), as_integers(equal, "equal")
    require_same_length(users=u, scores=s, greater=above, equal=same)
    if not same.any():
        return above + 1.0
    group, _ = groups_of(u)
    order, run, _, size = tie_blocks(group, s)
    run_start = np.cumsum(size) - size
    j = np.empty(u.size, np.int64)
    m = np.empty(u.size, np.int64)
    j[order] = np.arange(u.size) - run_start[run] + 1
    m[order] = size[run]
    total = same + 1
    if (total < m).any():
        bad = int(np.flatnonzero(total < m)[0])
        raise ValueError(f"equal: entry {bad} counts {same[bad]}, but {m[bad] - 1} other positives tie with it")
    if ties == "optimistic":
        return above + j.astype(np.float64)
    if ties == "pessimistic":
        return above + (total - m + j).astype(np.float64)
    expected: np.ndarray = above + j * (total + 1) / (m + 1)
    return expected


def _ranked(users: Any, ranks: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, r = as_integers(users, "users"), as_numbers(ranks, "ranks")
    require_same_length(users=u, ranks=r)
    if r.size and r.min() < 1:
        raise ValueError(f"ranks: expected at least 1, got {r.min()}")
    group, sizes = groups_of(u)
    return group, sizes, r


def _hits(group: np.ndarray, sizes: np.ndarray, ranks: np.ndarray, k: int) -> np.ndarray:
    return np.bincount(group, weights=ranks <= k, minlength=sizes.size)


def hit_rate(users: Any, ranks: Any, k: int = 10, *, reduction: MetricReduction = "mean") -> Any:
    """Return HR@k, whether at least one of the user's positives has a rank <= k; mean over users.

    Range 0 to 1, ideal 1.
    """
    group, sizes, r = _ranked(users, ranks)
    return reduced((_hits(group, sizes, r, as_cutoff(k)) > 0).astype(np.float64), reduction)


def recall(users: Any, ranks: Any, k: int = 10, *, reduction: MetricReduction = "mean") -> Any:
    """Return Recall@k, (positives with rank <= k) / n_u; mean over users.

    Range 0 to 1, ideal 1 where k >= n_u.
    """
    group, sizes, r = _ranked(users, ranks)
    return reduced(_hits(group, sizes, r, as_cutoff(k)) / sizes, reduction)


def precision(users: Any, ranks: Any, k: int = 10, *, reduction: MetricReduction = "mean") -> Any:
    """Return Precision@k, (positives with rank <= k) / k; mean over users.

    Range 0 to 1, ideal min(k, n_u) / k.
    """
    group, sizes, r = _ranked(users, ranks)
    return reduced(_hits(group, sizes, r, as_cutoff(k)) / k, reduction)


def ndcg(users: Any, ranks: Any, k: int = 10, *, reduction: MetricReduction = "mean") -> Any:
    """Return NDCG@k with binary relevance; mean over users.

    The sum of 1 / log2(rank + 1) over positives with rank <= k, divided by that sum for the ranks 1 .. min(k, n_u).
    Range 0 to 1, ideal 1.
    """
    group, sizes, r = _ranked(users, ranks)
    k = as_cutoff(k)
    gain = np.bincount(group, weights=(r <= k) / np.log2(r + 1), minlength=sizes.size)
    best = np.minimum(sizes, k)
    ideal = np.cumsum(1 / np.log2(np.arange(2, best.max(initial=1) + 2)))
    return reduced(gain / ideal[best - 1], reduction)


def mrr(users: Any, ranks: Any, k: int = 10, *, reduction: MetricReduction = "mean") -> Any:
    """Return MRR@k, 1 / (rank of the user's best positive), 0 where that rank is beyond k; mean over users.

    Range 0 to 1, ideal 1. A k of at least the number of items gives the uncut MRR.
    """
    group, sizes, r = _ranked(users, ranks)
    best = np.full(sizes.size, np.inf)
    np.minimum.at(best, group, r)
    return reduced(np.where(best <= as_cutoff(k), 1 / best, 0.0), reduction)


def mean_average_precision(users: Any, ranks: Any, k: int = 10, *, reduction: MetricReduction = "mean") -> Any:
    """Return MAP@k; mean over users.

    The sum over positives with rank <= k of (the user's positives up to this rank) / rank, divided by min(k, n_u).
    Range 0 to 1, ideal 1.
    """
    group, sizes, r = _ranked(users, ranks)
    k = as_cutoff(k)
    order = np.lexsort((r, group))
    g, ordered = group[order], r[order]
    place = np.arange(g.size) - (np.cumsum(sizes) - sizes)[g] + 1
    total = np.bincount(g, weights=(ordered <= k) * place / ordered, minlength=sizes.size)
    return reduced(total / np.minimum(sizes, k), reduction)
