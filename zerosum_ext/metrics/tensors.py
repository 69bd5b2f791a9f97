"""Metrics of tensors on one device, whose values are never looked at.

They serve evaluation on a GPU as well as the functions of arrays. An entry that takes no part is masked: to leave it
out, one would have to know how many there are.
"""

from __future__ import annotations

import torch

from zerosum_ext.metrics.inputs import as_cutoff

_SUM_BLOCK = 16384  # fewer than torch sums with several threads


def ordered_sum(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of a float64 vector, in an order that depends on its length alone, not on the threads."""
    if values.numel() <= _SUM_BLOCK:
        return values.sum()
    padded = torch.nn.functional.pad(values, (0, -values.numel() % _SUM_BLOCK))
    return ordered_sum(padded.view(-1, _SUM_BLOCK).sum(1))


def mean_of_known(values: torch.Tensor) -> torch.Tensor:
    """Return the mean of the values that are not NaN; NaN if there is none."""
    known = ~values.isnan()
    return ordered_sum(torch.where(known, values, 0.0)) / known.sum().double()


def average_ranks(values: torch.Tensor) -> torch.Tensor:
    """Return 1-based ascending ranks of a vector; ties get the mean of the places they fill."""
    ordered, order = values.sort()
    # Searched for in ascending order, which is fastest.
    below, up_to = (torch.searchsorted(ordered, ordered, right=right) for right in (False, True))
    return torch.empty_like(values).scatter_(0, order, (below + up_to + 1).double() / 2)


def mean_by_item(
    items: torch.Tensor, values: torch.Tensor, part: torch.Tensor, num_items: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (number of an item's values that take part, their mean or NaN), float64 [num_items] each."""
    weights = part.double(), torch.where(part, values, 0.0)
    number, total = (sum_by(items, x, num_items) for x in weights)
    return number, total / number


def correlation_of_deviations(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the correlation of deviations from the mean; NaN where x or y has none."""
    xy, xx, yy = (ordered_sum(a * b) for a, b in ((x, y), (x, x), (y, y)))
    return (xy / (xx * yy).sqrt()).clamp(-1, 1)


def pearson(x: torch.Tensor, y: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Return Pearson's correlation of the entries that take part; NaN where x or y is constant."""
    number, deviations, constant = part.sum().double(), [], part.sum() < 2
    for values in (x, y):
        if values.numel():
            least, most = torch.where(part, values, torch.inf).amin(), torch.where(part, values, -torch.inf).amax()
            constant = constant | (least == most)
        mean = ordered_sum(torch.where(part, values, 0.0)) / number
        deviations.append(torch.where(part, values - mean, 0.0))
    return torch.where(constant, torch.nan, correlation_of_deviations(*deviations))


def pri_of_quantiles(
    items: torch.Tensor, quantile: torch.Tensor, part: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """Return PRI from each positive's (rank among its user's positives - 1) / (n_u - 1)."""
    return pri_of_means(*mean_by_item(items, quantile, part, counts.numel()), counts)


def pri_of_means(number: torch.Tensor, means: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return PRI from how many positives of each item take part, and the means of their quantiles."""
    evaluated = number > 0
    # Means of different fractions can agree in exact arithmetic and differ in the last bit: those are ties.
    means = means.round(decimals=12)
    middle = (evaluated.sum().double() + 1) / 2  # the mean of average ranks, exactly
    x, y = (
        torch.where(evaluated, average_ranks(torch.where(evaluated, values, torch.inf)) - middle, 0.0)
        for values in (counts, means)
    )
    return -correlation_of_deviations(x, y)


def sampled_ranks(positive_scores: torch.Tensor, negative_scores: torch.Tensor) -> torch.Tensor:
    return 1 + (negative_scores >= positive_scores.unsqueeze(1)).sum(1)


def hit_of_ranks(ranks: torch.Tensor, k: int) -> torch.Tensor:
    return mean_of_known((ranks <= as_cutoff(k)).double())


def ndcg_of_ranks(ranks: torch.Tensor, k: int) -> torch.Tensor:
    return mean_of_known((ranks <= as_cutoff(k)).double() / (ranks + 1).double().log2())


def long_tail(counts: torch.Tensor, tail_mass: float) -> torch.Tensor:
    if not counts.numel():
        return torch.zeros(0, dtype=torch.bool, device=counts.device)
    ordered, order = counts.sort()
    mass = ordered.cumsum(0)
    # Of all items that are not more popular than each one.
    up_to = mass[torch.searchsorted(ordered, ordered, right=True) - 1]
    within = up_to <= tail_mass * mass[-1] * (1 + 1e-12)
    return torch.empty_like(within).scatter_(0, order, within)


def share_of_exposure(exposure: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    return (exposure * items).sum().double() / exposure.sum().double()


def coverage_of_exposure(exposure: torch.Tensor) -> torch.Tensor:
    return mean_of_known((exposure > 0).double())


def gini_of_exposure(exposure: torch.Tensor) -> torch.Tensor:
    x, n = exposure.sort().values.double(), exposure.numel()
    weight = 2 * torch.arange(1, n + 1, dtype=torch.float64, device=x.device) - n - 1
    return ordered_sum(weight * x) / (n * ordered_sum(x))


def entropy_of_exposure(exposure: torch.Tensor) -> torch.Tensor:
    x = exposure.double()
    total = ordered_sum(x)
    p = x / total
    bits = -ordered_sum(torch.where(x > 0, p * p.log2(), 0.0)) + 0.0
    return torch.where(total > 0, bits, torch.nan)


def self_information(counts: torch.Tensor, num_users: int) -> torch.Tensor:
    return (num_users / counts.clamp(min=1)).log2()


def popularity_groups(counts: torch.Tensor, tail_mass: float) -> torch.Tensor:
    """Return the part of the catalogue of each item: 0 the head, 1 the middle, 2 the tail."""
    head = ~long_tail(counts, max(tail_mass, 1 - tail_mass))
    return torch.where(long_tail(counts, tail_mass), 2, torch.where(head, 0, 1))


def propensities(counts: torch.Tensor, exponent: float) -> torch.Tensor:
    """Return (count / largest count)^exponent; a count of 0 counts as the smallest of the others, or as 1."""
    if not counts.numel():
        return counts
    rarest = torch.where(counts > 0, counts, torch.inf).amin()
    known = torch.where(counts > 0, counts, torch.where(rarest.isinf(), 1.0, rarest))
    return (known / known.amax()) ** exponent


def sum_by(group: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
    """Return the sum of the values of each group, float64 [count]."""
    if group.device.type == "cpu":
        return torch.bincount(group, weights=values, minlength=count).double()
    # (where bincount and index_add_ have no certain order)
    nothing = torch.zeros(count, dtype=torch.float64, device=group.device)
    return nothing.index_put((group,), values, accumulate=True)


def weighted_recall(
    ranks: torch.Tensor, weights: torch.Tensor, group: torch.Tensor, count: int, k: int
) -> torch.Tensor:
    """Return the share of each group's weight that has a rank <= k, float64 [count]; NaN without weight."""
    within = torch.where(ranks <= k, weights, 0.0)
    return sum_by(group, within, count) / sum_by(group, weights, count)


def weighted_ndcg(
    ranks: torch.Tensor, weights: torch.Tensor, group: torch.Tensor, sizes: torch.Tensor, k: int
) -> torch.Tensor:
    """Return the NDCG@k of each group, of that size, with the weights as gains, float64; NaN without weight."""
    gains = torch.where(ranks <= k, weights / (ranks + 1).double().log2(), 0.0)
    # The best order: each group's weights descending, by two stable sorts.
    heaviest = torch.argsort(weights, descending=True, stable=True)
    order = heaviest[torch.argsort(group[heaviest], stable=True)]
    starts = sizes.cumsum(0) - sizes
    place = torch.arange(order.numel(), device=order.device) - starts[group[order]]
    best = torch.where(place < k, weights[order] / (place + 2).double().log2(), 0.0)
    return sum_by(group, gains, sizes.numel()) / sum_by(group[order], best, sizes.numel())
