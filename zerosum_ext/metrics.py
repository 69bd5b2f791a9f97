"""Accuracy and popularity-bias metrics as pure functions.

Every function takes flat arrays (NumPy arrays, torch tensors of any device, or sequences), computes in
float64 on the CPU without a Python loop over users, and returns a float, or one value per user where
``reduction="none"``. (:func:`zerosum_ext.evaluate` computes where the scores are.) Two shapes of input occur:

- *Positives*: ``users``, ``items``, ``scores`` [P], one entry per evaluated positive, in any order.
- *Ranks*: ``users``, ``ranks`` [P], the 1-based places of the evaluated positives in their users' rankings,
  as :func:`positive_ranks` makes them.

``popularity`` is an array [num_items] of interaction counts, or an interaction matrix (scipy sparse, or an
object with a ``popularity`` attribute), whose counts per item are then taken. Which interactions to count
(train only, or all) is the caller's decision and is never guessed here.

A quantity without a value (a correlation with a constant, a mean over no user) is NaN unless its docstring
says otherwise.

References: [RCS22] Rhee, Cho, Suh, RecSys 2022; [ZHU21] Zhu et al., "Popularity-Opportunity Bias in
Collaborative Filtering", WSDM 2021; [ABD19] Abdollahpouri, Burke, Mobasher, "Managing Popularity Bias in
Recommender Systems with Personalized Re-ranking", FLAIRS 2019; [MN08] McSherry, Najork, "Computing
Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores", ECIR 2008; [ZHOU10]
Zhou et al., "Solving the apparent diversity-accuracy dilemma of recommender systems", PNAS 2010.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from scipy import sparse

from zerosum_ext.data.interactions import Interactions

__all__ = [
    "aclt",
    "aplt",
    "arp",
    "auc",
    "average_ranks",
    "coverage",
    "entropy",
    "gini",
    "hit_rate",
    "long_tail",
    "mean_average_precision",
    "mrr",
    "ndcg",
    "novelty",
    "pairwise_accuracy",
    "pcc",
    "pop_q_at_1",
    "positive_ranks",
    "precision",
    "pri",
    "pru",
    "recall",
    "sampled_hit",
    "sampled_ndcg",
    "sampled_ranks",
    "tail_share",
    "upo",
]

Ties = Literal["average", "pessimistic", "optimistic"]
Reduction = Literal["mean", "none"]

# ----------------------------------------------------------------------------------------------------------
# Input
# ----------------------------------------------------------------------------------------------------------


def _array(values: Any, name: str) -> np.ndarray:
    """A NumPy view or copy of an array, tensor or sequence."""
    if isinstance(values, torch.Tensor):
        values = values.detach()
        if values.dtype in (torch.bfloat16, torch.float16):
            values = values.float()
        return values.cpu().numpy()
    result = np.asarray(values)
    if result.dtype == object:
        raise TypeError(f"{name}: expected numbers, got {type(values).__name__} of mixed or nested objects")
    return result


def _integers(values: Any, name: str, ndim: int = 1) -> np.ndarray:
    result = _array(values, name)
    if result.size == 0:
        result = result.astype(np.int64)
    if result.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {result.dtype}")
    if result.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimension(s), got shape {result.shape}")
    return result.astype(np.int64, copy=False)


def _numbers(values: Any, name: str, ndim: int = 1) -> np.ndarray:
    result = _array(values, name)
    if result.dtype.kind not in "iufb":
        raise TypeError(f"{name}: expected real numbers, got {result.dtype}")
    if result.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimension(s), got shape {result.shape}")
    result = result.astype(np.float64, copy=False)
    missing = np.isnan(result)
    if missing.any():
        where = tuple(int(x) for x in np.argwhere(missing)[0])
        raise ValueError(f"{name}: NaN at index {where if ndim > 1 else where[0]} ({int(missing.sum())} in all)")
    return result


def _same_length(**arrays: np.ndarray) -> None:
    lengths = {name: len(a) for name, a in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError("expected one length, got " + ", ".join(f"{n} {v}" for n, v in lengths.items()))


def popularity_counts(popularity: Any) -> np.ndarray:
    """Interaction counts per item, float64 [num_items], from an array of counts or an interaction matrix."""
    if sparse.issparse(popularity):
        # As everywhere: a pair counts once, a stored zero not at all.
        popularity = Interactions.from_scipy(popularity).popularity
    elif hasattr(popularity, "popularity"):
        popularity = popularity.popularity
    counts = _numbers(popularity, "popularity")
    if counts.size and (counts.min() < 0 or np.isinf(counts.max())):
        raise ValueError("popularity: expected finite counts >= 0")
    return counts


def _positives(
    users: Any, items: Any, scores: Any, popularity: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    u, i, s = _integers(users, "users"), _integers(items, "items"), _numbers(scores, "scores")
    counts = popularity_counts(popularity)
    _same_length(users=u, items=i, scores=s)
    if i.size and (i.min() < 0 or i.max() >= counts.size):
        bad = int(i.min()) if i.min() < 0 else int(i.max())
        raise ValueError(f"items: {bad} is out of range for a popularity of {counts.size} items")
    return u, i, s, counts


def _cutoff(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
        raise TypeError(f"k: expected an int, got {type(k).__name__}")
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    return int(k)


def _choice(value: str, name: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")


# ----------------------------------------------------------------------------------------------------------
# Groups: users as consecutive numbers, ranks and correlations within each
# ----------------------------------------------------------------------------------------------------------


def _groups(users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(group of each entry, entries per group); groups are the distinct users in ascending order."""
    if users.size and np.all(users[1:] >= users[:-1]):  # the usual case, without a sort
        group = np.concatenate(([0], np.cumsum(users[1:] != users[:-1])))
    else:
        group = np.unique(users, return_inverse=True)[1].reshape(-1)
    return group, np.bincount(group)


def _tie_blocks(group: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Orders entries by (group, value) and finds the runs of equal ones.

    Returns (order, run of each ordered entry, first place of each run within its group, entries of each run).
    """
    order = np.lexsort((values, group))
    g, v = group[order], values[order]
    change = g[1:] != g[:-1]
    new_group = np.concatenate((np.ones(min(1, g.size), bool), change))
    new_run = np.concatenate((np.ones(min(1, g.size), bool), change | (v[1:] != v[:-1])))
    starts = np.flatnonzero(new_run)
    sizes = np.diff(np.append(starts, g.size))
    group_start = np.flatnonzero(new_group)[np.cumsum(new_group)[starts] - 1]
    return order, np.cumsum(new_run) - 1, starts - group_start, sizes


def _average_ranks(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """1-based ascending ranks of values within each group; ties get the mean of the places they fill."""
    order, run, start, size = _tie_blocks(group, values)
    ranks = np.empty(values.size)
    ranks[order] = (start + (size + 1) / 2)[run]
    return ranks


def _grouped_spearman(group: np.ndarray, sizes: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's correlation of x and y within each group; NaN where x or y is constant."""
    middle = ((sizes + 1) / 2)[group]  # the mean of average ranks, exactly
    rx, ry = _average_ranks(group, x) - middle, _average_ranks(group, y) - middle
    n = sizes.size
    xy, xx, yy = (np.bincount(group, weights=w, minlength=n) for w in (rx * ry, rx * rx, ry * ry))
    with np.errstate(invalid="ignore", divide="ignore"):
        return xy / np.sqrt(xx * yy)


def _mean(values: np.ndarray) -> float:
    return float(_mean_of_known(torch.tensor(values, dtype=torch.float64)))


def _keep(u: np.ndarray, min_positives: int, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """(group, sizes, *others) of the entries whose users have at least min_positives entries."""
    if min_positives < 2:
        raise ValueError(f"min_positives: expected at least 2 (a rank among one is no rank), got {min_positives}")
    group, sizes = _groups(u)
    wanted = sizes[group] >= min_positives
    group, sizes = _groups(group[wanted])
    return group, sizes, *(x[wanted] for x in others)


# ----------------------------------------------------------------------------------------------------------
# The same on tensors of one device, which are never looked at: what evaluate computes on a GPU as well. An entry
# that takes no part is masked, since to leave it out would need to know how many there are.
# ----------------------------------------------------------------------------------------------------------

_SUM_BLOCK = 16384  # fewer than torch sums with several threads


def _sum(values: torch.Tensor) -> torch.Tensor:
    """The sum of a float64 vector, in an order that depends on its length alone, not on the number of threads."""
    if values.numel() <= _SUM_BLOCK:
        return values.sum()
    padded = torch.nn.functional.pad(values, (0, -values.numel() % _SUM_BLOCK))
    return _sum(padded.view(-1, _SUM_BLOCK).sum(1))


def _mean_of_known(values: torch.Tensor) -> torch.Tensor:
    """The mean of those that are not NaN; NaN of none."""
    known = ~values.isnan()
    return _sum(torch.where(known, values, 0.0)) / known.sum().double()


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """1-based ascending ranks of a vector; ties get the mean of the places they fill."""
    ordered, order = values.sort()
    # (In ascending order, as they are found soonest.)
    below, up_to = (torch.searchsorted(ordered, ordered, right=right) for right in (False, True))
    return torch.empty_like(values).scatter_(0, order, (below + up_to + 1).double() / 2)


def _mean_by_item(
    items: torch.Tensor, values: torch.Tensor, part: torch.Tensor, num_items: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(how many of an item's values take part, the mean of these or NaN), float64 [num_items] each."""
    weights = part.double(), torch.where(part, values, 0.0)
    if items.device.type == "cpu":
        number, total = (torch.bincount(items, weights=x, minlength=num_items).double() for x in weights)
    else:  # where bincount and index_add_ have no certain order
        nothing = torch.zeros(num_items, dtype=torch.float64, device=items.device)
        number, total = (nothing.index_put((items,), x, accumulate=True) for x in weights)
    return number, total / number


def _correlation(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of deviations from the mean; NaN where x or y has none."""
    xy, xx, yy = (_sum(a * b) for a, b in ((x, y), (x, x), (y, y)))
    return (xy / (xx * yy).sqrt()).clamp(-1, 1)


def _pearson(x: torch.Tensor, y: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation of the entries that take part; NaN where x or y is constant."""
    number, deviations, constant = part.sum().double(), [], part.sum() < 2
    for values in (x, y):
        if values.numel():
            least, most = torch.where(part, values, torch.inf).amin(), torch.where(part, values, -torch.inf).amax()
            constant = constant | (least == most)
        mean = _sum(torch.where(part, values, 0.0)) / number
        deviations.append(torch.where(part, values - mean, 0.0))
    return torch.where(constant, torch.nan, _correlation(*deviations))


# ----------------------------------------------------------------------------------------------------------
# Popularity-opportunity bias: does a user's popular positive outrank his less popular one?
# ----------------------------------------------------------------------------------------------------------


def average_ranks(users: Any, items: Any, scores: Any, min_positives: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Average rank quantile r(i) of each item among the positives of those who have it: the r(i) of [RCS22 eq. 2].

    r(i) is the mean over users of (rank of i by descending score among the user's evaluated positives - 1) /
    (n_u - 1): 0 is always a user's top, 1 always the bottom, .5 as good as any other. Equal scores share their
    average rank; users with fewer than ``min_positives`` evaluated positives are left out.

    Args:
        users, items: integers [P].
        scores: numbers [P].
        min_positives: users with fewer positives do not take part.

    Returns:
        (items that take part, ascending, int64 [m]; their r(i), float64 [m]).
    """
    u, i, s = _integers(users, "users"), _integers(items, "items"), _numbers(scores, "scores")
    _same_length(users=u, items=i, scores=s)
    if i.size and i.min() < 0:
        raise ValueError(f"items: expected indices from 0, got {i.min()}")
    group, sizes, i, s = _keep(u, min_positives, i, s)
    quantile = torch.from_numpy((_average_ranks(group, -s) - 1) / (sizes[group] - 1))
    everyone = torch.ones(i.size, dtype=torch.bool)
    number, means = _mean_by_item(torch.from_numpy(i), quantile, everyone, int(i.max(initial=-1)) + 1)
    distinct = np.flatnonzero(number.numpy())
    return distinct, means.numpy()[distinct]


def pri(users: Any, items: Any, scores: Any, popularity: Any, min_positives: int = 2) -> float:
    """Popularity-rank correlation over items, -Spearman(popularity(i), r(i)) [RCS22 eq. 2].

    r(i) is that of :func:`average_ranks`, from the users with at least ``min_positives`` evaluated positives.
    Range -1 to 1: 1 means that popular items are on top, 0 is ideal. Equal scores share their average rank.

    Args:
        users, items: integers [P].
        scores: numbers [P].
        popularity: interaction counts [num_items], or an interaction matrix.
        min_positives: users with fewer positives do not take part.
    """
    u, i, s, counts = _positives(users, items, scores, popularity)
    group, sizes, i, s = _keep(u, min_positives, i, s)
    quantile = torch.from_numpy((_average_ranks(group, -s) - 1) / (sizes[group] - 1))
    everyone = torch.ones(i.size, dtype=torch.bool)
    return float(_pri_of_quantiles(torch.from_numpy(i), quantile, everyone, torch.tensor(counts)))


def _pri_of_quantiles(
    items: torch.Tensor, quantile: torch.Tensor, part: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """PRI from each positive's (rank among its user's positives - 1) / (n_u - 1)."""
    number, means = _mean_by_item(items, quantile, part, counts.numel())
    evaluated = number > 0
    # Means of different fractions can agree in exact arithmetic and differ in the last bit: those are ties.
    means = means.round(decimals=12)
    middle = (evaluated.sum().double() + 1) / 2  # the mean of average ranks, exactly
    x, y = (
        torch.where(evaluated, _ranks(torch.where(evaluated, values, torch.inf)) - middle, 0.0)
        for values in (counts, means)
    )
    return -_correlation(x, y)


def pop_q_at_1(
    users: Any,
    items: Any,
    scores: Any,
    popularity: Any,
    min_positives: int = 5,
    *,
    reduction: Reduction = "mean",
) -> Any:
    """Popularity quantile of each user's top positive [RCS22 eq. 3].

    For a user with at least ``min_positives`` evaluated positives: (rank by descending popularity, among
    these positives, of the one with the highest score - 1) / (n_u - 1). Of equal scores the first in the
    given order is the top; equal popularities share their average rank. Range 0 to 1: 0 means that the top is
    the most popular one, .5 is ideal.

    Returns a float, or with ``reduction="none"`` one value per user taking part, in ascending order of users.
    """
    u, i, s, counts = _positives(users, items, scores, popularity)
    group, sizes, i, s = _keep(u, min_positives, i, s)
    rank = _average_ranks(group, -counts[i])
    order = np.lexsort((-s, group))  # stable: the first of equal scores comes first
    top = order[np.cumsum(sizes) - sizes]
    return _reduced((rank[top] - 1) / (sizes - 1), reduction)


def upo(
    users: Any,
    items: Any,
    scores: Any,
    popularity: Any,
    min_positives: int = 4,
    *,
    reduction: Reduction = "mean",
) -> Any:
    """Mean over users of Spearman(popularity, score) within the user's evaluated positives [RCS22].

    Users with at least ``min_positives`` positives take part; where the correlation is undefined (constant
    scores or popularities) it counts as 0. Range -1 to 1, ideal 0.

    Returns a float, or with ``reduction="none"`` one value per user taking part, in ascending order of users.
    """
    u, i, s, counts = _positives(users, items, scores, popularity)
    group, sizes, i, s = _keep(u, min_positives, i, s)
    return _reduced(np.nan_to_num(_grouped_spearman(group, sizes, counts[i], s), nan=0.0), reduction)


def pru(
    users: Any,
    items: Any,
    scores: Any,
    popularity: Any,
    min_positives: int = 2,
    *,
    reduction: Reduction = "mean",
) -> Any:
    """Popularity-rank correlation for users, mean over users of -Spearman(popularity, rank) [ZHU21].

    The rank is the positive's place in the user's ranking; only its order among the user's positives matters,
    so scores are what is asked for. Unlike :func:`upo`, users whose correlation is undefined are left out of
    the mean. Range -1 to 1: 1 means that popular items are on top, 0 is ideal.

    Returns a float, or with ``reduction="none"`` one value (NaN where undefined) per user taking part, in
    ascending order of users.
    """
    u, i, s, counts = _positives(users, items, scores, popularity)
    group, sizes, i, s = _keep(u, min_positives, i, s)
    values = _grouped_spearman(group, sizes, counts[i], s)
    return _reduced(values, reduction) if reduction == "none" else _reduced(values[~np.isnan(values)], reduction)


def pcc(users: Any, items: Any, scores: Any, popularity: Any, min_positives: int = 2) -> float:
    """Pearson's correlation of popularity and score, pooled over evaluated positives [RCS22].

    Only positives of users who have at least ``min_positives`` of them take part. Range -1 to 1, ideal 0.
    Scores must be finite.
    """
    u, i, s, counts = _positives(users, items, scores, popularity)
    _, _, i, s = _keep(u, min_positives, i, s)
    if np.isinf(s).any():
        raise ValueError("scores: expected finite numbers for a Pearson correlation, got an infinite one")
    x, y = torch.from_numpy(counts[i]), torch.from_numpy(s)
    return float(_pearson(x, y, torch.ones(s.size, dtype=torch.bool)))


def _reduced(values: np.ndarray, reduction: str) -> Any:
    _choice(reduction, "reduction", ("mean", "none"))
    return values if reduction == "none" else _mean(values)


# ----------------------------------------------------------------------------------------------------------
# Pairs of a positive and a negative
# ----------------------------------------------------------------------------------------------------------


def _pair_counts(users: Any, labels: Any, scores: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Per user: (pairs ranked right, tied pairs, positives, negatives)."""
    u, s = _integers(users, "users"), _numbers(scores, "scores")
    y = _array(labels, "labels")
    if y.ndim != 1 or (y.dtype != bool and not np.isin(y, (0, 1)).all()):
        raise ValueError(f"labels: expected booleans or 0/1 of one dimension, got {y.dtype} {y.shape}")
    y = y.astype(bool)
    _same_length(users=u, labels=y, scores=s)
    group, sizes = _groups(u)
    n = sizes.size
    order, run, _, _ = _tie_blocks(group, s)
    negative = ~y[order]
    before = np.cumsum(negative) - negative  # negatives of any user ahead of this entry
    first = np.cumsum(sizes) - sizes
    run_start = np.flatnonzero(np.concatenate((np.ones(min(1, run.size), bool), run[1:] != run[:-1])))
    run_negatives = np.add.reduceat(negative, run_start) if run.size else np.zeros(0, np.int64)
    g = group[order]
    below = before[run_start][run] - before[first][g]
    pos = ~negative
    right = np.bincount(g[pos], weights=below[pos], minlength=n)
    tied = np.bincount(g[pos], weights=run_negatives[run][pos], minlength=n)
    positives = np.bincount(group, weights=y, minlength=n)
    return right, tied, positives, sizes - positives


def pairwise_accuracy(users: Any, labels: Any, scores: Any) -> float:
    """Fraction of (positive, negative) pairs of one user with score(positive) > score(negative), over all
    pairs.

    The error that [RCS22] reports is one minus this. Range 0 to 1, ideal 1; a tie is not right.

    Args:
        users: integers [N], the user of each scored entry.
        labels: bool [N], whether the entry is a positive.
        scores: numbers [N].
    """
    right, _, positives, negatives = _pair_counts(users, labels, scores)
    pairs = float(positives @ negatives)
    return float(right.sum() / pairs) if pairs else float("nan")


def auc(users: Any, labels: Any, scores: Any, *, reduction: Reduction = "mean") -> Any:
    """Area under each user's ROC curve: the share of his pairs ranked right, ties counting one half; mean
    over users.

    Users without a positive or without a negative have no value: left out of the mean, NaN with
    ``reduction="none"``. Range 0 to 1, ideal 1, .5 for a random order [BPR09]. Arguments as in
    :func:`pairwise_accuracy`.
    """
    right, tied, positives, negatives = _pair_counts(users, labels, scores)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = (right + tied / 2) / (positives * negatives)
    return _reduced(values, reduction) if reduction == "none" else _reduced(values[~np.isnan(values)], reduction)


# ----------------------------------------------------------------------------------------------------------
# Sampled ranking: each positive among itself and some negatives
# ----------------------------------------------------------------------------------------------------------


def sampled_ranks(positive_scores: Any, negative_scores: Any) -> np.ndarray:
    """1-based rank of each positive among itself and its negatives; ties count against it.

    Args:
        positive_scores: numbers [P].
        negative_scores: numbers [P, M], the scores of the M negatives each positive is ranked among.
    """
    p = _numbers(positive_scores, "positive_scores")
    n = _numbers(negative_scores, "negative_scores", ndim=2)
    _same_length(positive_scores=p, negative_scores=n)
    return _sampled_ranks(torch.tensor(p), torch.tensor(n)).numpy()


def _sampled_ranks(positive_scores: torch.Tensor, negative_scores: torch.Tensor) -> torch.Tensor:
    return 1 + (negative_scores >= positive_scores.unsqueeze(1)).sum(1)


def sampled_hit(positive_scores: Any, negative_scores: Any, k: int = 10) -> float:
    """Hit@k against sampled negatives: the share of positives with :func:`sampled_ranks` <= k [RCS22].

    Range 0 to 1, ideal 1. A figure of the sample, comparable only at the same number of negatives.
    """
    return float(_hit_of_ranks(torch.from_numpy(sampled_ranks(positive_scores, negative_scores)), k))


def _hit_of_ranks(ranks: torch.Tensor, k: int) -> torch.Tensor:
    return _mean_of_known((ranks <= _cutoff(k)).double())


def sampled_ndcg(positive_scores: Any, negative_scores: Any, k: int = 10) -> float:
    """NDCG@k against sampled negatives: mean over positives of 1[rank <= k] / log2(rank + 1) [RCS22].

    Range 0 to 1, ideal 1. A figure of the sample, comparable only at the same number of negatives.
    """
    return float(_ndcg_of_ranks(torch.from_numpy(sampled_ranks(positive_scores, negative_scores)), k))


def _ndcg_of_ranks(ranks: torch.Tensor, k: int) -> torch.Tensor:
    return _mean_of_known((ranks <= _cutoff(k)).double() / (ranks + 1).double().log2())


# ----------------------------------------------------------------------------------------------------------
# Full ranking
# ----------------------------------------------------------------------------------------------------------


def positive_ranks(users: Any, scores: Any, greater: Any, equal: Any, ties: Ties = "average") -> np.ndarray:
    """1-based places of the positives in their users' rankings, float64 [P], from counts.

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
    _choice(ties, "ties", ("average", "pessimistic", "optimistic"))
    u, s = _integers(users, "users"), _numbers(scores, "scores")
    above, same = _integers(greater, "greater"), _integers(equal, "equal")
    _same_length(users=u, scores=s, greater=above, equal=same)
    if not same.any():
        return above + 1.0
    group, _ = _groups(u)
    order, run, _, size = _tie_blocks(group, s)
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
    return above + j * (total + 1) / (m + 1)


def _ranked(users: Any, ranks: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, r = _integers(users, "users"), _numbers(ranks, "ranks")
    _same_length(users=u, ranks=r)
    if r.size and r.min() < 1:
        raise ValueError(f"ranks: expected at least 1, got {r.min()}")
    group, sizes = _groups(u)
    return group, sizes, r


def _hits(group: np.ndarray, sizes: np.ndarray, ranks: np.ndarray, k: int) -> np.ndarray:
    return np.bincount(group, weights=ranks <= k, minlength=sizes.size)


def hit_rate(users: Any, ranks: Any, k: int = 10, *, reduction: Reduction = "mean") -> Any:
    """HR@k: whether at least one of the user's positives has a rank <= k; mean over users. Range 0 to 1,
    ideal 1."""
    group, sizes, r = _ranked(users, ranks)
    return _reduced((_hits(group, sizes, r, _cutoff(k)) > 0).astype(np.float64), reduction)


def recall(users: Any, ranks: Any, k: int = 10, *, reduction: Reduction = "mean") -> Any:
    """Recall@k: (positives with rank <= k) / n_u, mean over users. Range 0 to 1, ideal 1 where k >= n_u."""
    group, sizes, r = _ranked(users, ranks)
    return _reduced(_hits(group, sizes, r, _cutoff(k)) / sizes, reduction)


def precision(users: Any, ranks: Any, k: int = 10, *, reduction: Reduction = "mean") -> Any:
    """Precision@k: (positives with rank <= k) / k, mean over users. Range 0 to 1, ideal min(k, n_u) / k."""
    group, sizes, r = _ranked(users, ranks)
    return _reduced(_hits(group, sizes, r, _cutoff(k)) / k, reduction)


def ndcg(users: Any, ranks: Any, k: int = 10, *, reduction: Reduction = "mean") -> Any:
    """NDCG@k with binary relevance: sum of 1 / log2(rank + 1) over positives with rank <= k, divided by that
    sum for the ranks 1 .. min(k, n_u); mean over users. Range 0 to 1, ideal 1."""
    group, sizes, r = _ranked(users, ranks)
    k = _cutoff(k)
    gain = np.bincount(group, weights=(r <= k) / np.log2(r + 1), minlength=sizes.size)
    best = np.minimum(sizes, k)
    ideal = np.cumsum(1 / np.log2(np.arange(2, best.max(initial=1) + 2)))
    return _reduced(gain / ideal[best - 1], reduction)


def mrr(users: Any, ranks: Any, k: int = 10, *, reduction: Reduction = "mean") -> Any:
    """MRR@k: 1 / (rank of the user's best positive), 0 where that rank is beyond k; mean over users.

    Range 0 to 1, ideal 1. A k of at least the number of items gives the uncut MRR.
    """
    group, sizes, r = _ranked(users, ranks)
    best = np.full(sizes.size, np.inf)
    np.minimum.at(best, group, r)
    return _reduced(np.where(best <= _cutoff(k), 1 / best, 0.0), reduction)


def mean_average_precision(users: Any, ranks: Any, k: int = 10, *, reduction: Reduction = "mean") -> Any:
    """MAP@k: sum over positives with rank <= k of (the user's positives up to this rank) / rank, divided by
    min(k, n_u); mean over users. Range 0 to 1, ideal 1."""
    group, sizes, r = _ranked(users, ranks)
    k = _cutoff(k)
    order = np.lexsort((r, group))
    g, ordered = group[order], r[order]
    place = np.arange(g.size) - (np.cumsum(sizes) - sizes)[g] + 1
    total = np.bincount(g, weights=(ordered <= k) * place / ordered, minlength=sizes.size)
    return _reduced(total / np.minimum(sizes, k), reduction)


# ----------------------------------------------------------------------------------------------------------
# What the recommendation lists expose
# ----------------------------------------------------------------------------------------------------------


def _lists(recommended: Any, num_items: int) -> np.ndarray:
    lists = _integers(recommended, "recommended", ndim=2)
    if lists.size and (lists.min() < -1 or lists.max() >= num_items):
        bad = int(lists.max()) if lists.max() >= num_items else int(lists.min())
        raise ValueError(f"recommended: item {bad} is out of range for {num_items} items (-1 is padding)")
    return lists


def _exposure(recommended: Any, num_items: int) -> torch.Tensor:
    lists = _lists(recommended, num_items)
    return torch.from_numpy(np.bincount(lists[lists >= 0], minlength=num_items))


def long_tail(popularity: Any, tail_mass: float = 0.2) -> np.ndarray:
    """Marks the long tail, bool [num_items]: the largest set of least popular items that together have at
    most a share ``tail_mass`` of all interactions (the complement of the head that has the rest) [ABD19].

    Items of equal popularity are all in the tail or all in the head, so the mark does not depend on item
    numbers.
    """
    counts = popularity_counts(popularity)
    _check_tail_mass(tail_mass)
    return _long_tail(torch.tensor(counts), tail_mass).numpy()


def _check_tail_mass(tail_mass: float) -> None:
    if not 0 <= tail_mass <= 1:
        raise ValueError(f"tail_mass: expected a share between 0 and 1, got {tail_mass}")


def _long_tail(counts: torch.Tensor, tail_mass: float) -> torch.Tensor:
    if not counts.numel():
        return torch.zeros(0, dtype=torch.bool, device=counts.device)
    ordered, order = counts.sort()
    mass = ordered.cumsum(0)
    # Of all items that are not more popular than each one.
    up_to = mass[torch.searchsorted(ordered, ordered, right=True) - 1]
    within = up_to <= tail_mass * mass[-1] * (1 + 1e-12)
    return torch.empty_like(within).scatter_(0, order, within)


def _mean_over_lists(recommended: Any, values: np.ndarray, reduction: str) -> Any:
    lists = _lists(recommended, values.size)
    valid = lists >= 0
    lengths = valid.sum(axis=1)
    padded = np.append(values, 0.0)  # -1 reads the appended 0
    with np.errstate(invalid="ignore"):
        means = padded[lists].sum(axis=1) / lengths
    return _reduced(means, reduction) if reduction == "none" else _reduced(means[lengths > 0], reduction)


def arp(recommended: Any, popularity: Any, *, reduction: Reduction = "mean") -> Any:
    """Average recommendation popularity: mean over users of the mean popularity of the recommended items
    [ABD19].

    Range 0 to max(popularity), lower is less biased.

    Args:
        recommended: integers [n, k], one list per user, -1 for padding. Users with an empty list are left
            out.
        popularity: interaction counts [num_items], or an interaction matrix.
    """
    return _mean_over_lists(recommended, popularity_counts(popularity), reduction)


def aplt(recommended: Any, popularity: Any, tail_mass: float = 0.2, *, reduction: Reduction = "mean") -> Any:
    """Average percentage of long-tail items: mean over users of the share of :func:`long_tail` items in the
    list.

    Range 0 to 1 [ABD19]. Higher exposes more of the tail; no value is ideal by itself. Arguments as in
    :func:`arp`.
    """
    return _mean_over_lists(recommended, long_tail(popularity, tail_mass).astype(np.float64), reduction)


def aclt(recommended: Any, popularity: Any, tail_mass: float = 0.2, *, reduction: Reduction = "mean") -> Any:
    """Average coverage of long-tail items: mean over users of the *number* of :func:`long_tail` items in the
    list.

    Range 0 to k [ABD19]. Higher exposes more of the tail. Arguments as in :func:`arp`.
    """
    tail = np.append(long_tail(popularity, tail_mass), False)
    return _reduced(tail[_lists(recommended, tail.size - 1)].sum(axis=1).astype(np.float64), reduction)


def tail_share(recommended: Any, popularity: Any, tail_mass: float = 0.2) -> float:
    """Share of all recommended places, pooled over users, that :func:`long_tail` items fill.

    Differs from :func:`aplt` where lists have different lengths. Range 0 to 1; a recommender that exposes
    items as they were consumed has about ``tail_mass``. Arguments as in :func:`arp`.
    """
    tail = long_tail(popularity, tail_mass)
    return float(_share_of_exposure(_exposure(recommended, tail.size), torch.from_numpy(tail)))


def _share_of_exposure(exposure: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    return (exposure * items).sum().double() / exposure.sum().double()


def coverage(recommended: Any, num_items: int) -> float:
    """Catalogue coverage: the share of all items recommended to at least one user. Range 0 to 1, higher is
    wider."""
    return float(_coverage_of_exposure(_exposure(recommended, num_items)))


def _coverage_of_exposure(exposure: torch.Tensor) -> torch.Tensor:
    return _mean_of_known((exposure > 0).double())


def gini(recommended: Any, num_items: int) -> float:
    """Gini coefficient of how often each item of the catalogue is recommended, never-recommended items
    included.

    sum_j (2 j - n - 1) x_j / (n sum x) for exposures x ascending, j = 1 .. n. Range 0 (all alike) to 1 - 1/n
    (one item takes all); lower is more even.
    """
    return float(_gini_of_exposure(_exposure(recommended, num_items)))


def _gini_of_exposure(exposure: torch.Tensor) -> torch.Tensor:
    x, n = exposure.sort().values.double(), exposure.numel()
    weight = 2 * torch.arange(1, n + 1, dtype=torch.float64, device=x.device) - n - 1
    return _sum(weight * x) / (n * _sum(x))


def entropy(recommended: Any, num_items: int) -> float:
    """Shannon entropy, in bits, of the distribution of recommended places over items.

    Range 0 (one item takes all) to log2(num_items) (all alike); higher is more even.
    """
    return float(_entropy_of_exposure(_exposure(recommended, num_items)))


def _entropy_of_exposure(exposure: torch.Tensor) -> torch.Tensor:
    x = exposure.double()
    total = _sum(x)
    p = x / total
    bits = -_sum(torch.where(x > 0, p * p.log2(), 0.0)) + 0.0
    return torch.where(total > 0, bits, torch.nan)


def novelty(recommended: Any, popularity: Any, num_users: int, *, reduction: Reduction = "mean") -> Any:
    """Mean self-information, in bits, of the recommended items: mean over users of the mean of
    log2(num_users / popularity(i)) [ZHOU10].

    An item without interactions is treated as if it had one. Range 0 (known by every user) to
    log2(num_users); higher is more novel. Arguments as in :func:`arp`; ``num_users`` is the number of users
    the counts come from.
    """
    if num_users < 1:
        raise ValueError(f"num_users: expected at least 1, got {num_users}")
    counts = popularity_counts(popularity)
    information = _self_information(torch.tensor(counts), num_users)
    return _mean_over_lists(recommended, information.numpy(), reduction)


def _self_information(counts: torch.Tensor, num_users: int) -> torch.Tensor:
    return (num_users / counts.clamp(min=1)).log2()
