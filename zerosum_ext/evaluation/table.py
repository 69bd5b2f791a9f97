"""Metrics of a ranking: every value that follows from the counts of its positives and from its lists."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from zerosum_ext import _ops
from zerosum_ext._checks import require_choice
from zerosum_ext._types import Ties
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.evaluation.ranking import Check, RankedTensors, Ranking, to_device
from zerosum_ext.evaluation.sources import Popularity, require_same_shape
from zerosum_ext.metrics import inputs, tensors
from zerosum_ext.metrics.inputs import popularity_counts
from zerosum_ext.metrics.weighted import GROUPS

# Metrics that have a cut-off, reported as "name@k" for each k.
AT_K_METRICS = (
    "hr",
    "recall",
    "precision",
    "ndcg",
    "mrr",
    "map",
    "arp",
    "aplt",
    "aclt",
    "tail_share",
    "coverage",
    "gini",
    "entropy",
    "novelty",
)
# Everything evaluate computes by default.
METRICS = (*AT_K_METRICS, "auc", "pairwise_accuracy", "pri", "pop_q_at_1", "upo", "pcc", "pru")

# Each held-out positive against some negatives of its user; evaluate computes them when they are asked for.
SAMPLED_METRICS = ("sampled_hit", "sampled_ndcg")

# Accuracy by popularity; computed when it is asked for, and in runs.
WEIGHTED_METRICS = ("recall_head", "recall_mid", "recall_tail", "snips_recall", "snips_ndcg")
# All that take a cut-off.
_CUT = (*AT_K_METRICS, *SAMPLED_METRICS, *WEIGHTED_METRICS)

_BY_RANK = ("hr", "recall", "precision", "ndcg", "mrr", "map")  # in the order of _ops.user_metrics
_BY_LIST = {"arp": 0, "aplt": 1, "aclt": 1, "novelty": 2}  # the rows of the values that are added up
# Means over users, of which per_user gives the values.
PER_USER_METRICS = (*_BY_RANK, *_BY_LIST, "auc", "pop_q_at_1", "upo", "pru")
_PER_USER = (*PER_USER_METRICS, *WEIGHTED_METRICS)


def counts_of_both(train: Interactions | None, test: Interactions, device: torch.device) -> Tensor:
    """Return the counts of train + test, float64."""
    counts = test.popularity.to(device)
    if train is not None:
        require_same_shape(train.shape, test.shape)
        counts = counts + train.popularity.to(device)
    return counts.double()


def as_cutoffs(k: int | Sequence[int]) -> tuple[int, ...]:
    return (int(k),) if isinstance(k, (int, np.integer)) and not isinstance(k, bool) else tuple(k)  # type: ignore[arg-type]


def parse_metrics(metrics: Sequence[str], k: Sequence[int]) -> list[tuple[str, str, int]]:
    """[(key, name, cut-off or 0)] of the metrics asked for, in order, each once."""
    if isinstance(metrics, str):
        raise TypeError(f"metrics: expected a sequence of names, got the string {metrics!r}")
    wanted: dict[str, tuple[str, str, int]] = {}
    for entry in metrics:
        name, at, cut = entry.partition("@")
        known = (*METRICS, *SAMPLED_METRICS, *WEIGHTED_METRICS)
        if name not in known:
            raise ValueError(f"metrics: unknown {entry!r}; known are {', '.join(known)}")
        if name not in _CUT:
            if at:
                raise ValueError(f"metrics: {name} takes no cut-off, got {entry!r}")
            wanted[name] = (name, name, 0)
            continue
        if at and not cut.isdecimal():
            raise ValueError(f"metrics: expected {name}@k with an integer k, got {entry!r}")
        for value in (int(cut),) if at else k:
            cutoff = inputs.as_cutoff(value)
            wanted[f"{name}@{cutoff}"] = (f"{name}@{cutoff}", name, cutoff)
    return list(wanted.values())


def compute(
    ranking: Ranking,
    popularity: Popularity,
    *,
    metrics: Sequence[str] = METRICS,
    k: int | Sequence[int] = (10, 20),
    ties: Ties = "average",
    tail_mass: float = 0.2,
) -> dict[str, float]:
    """Compute metrics from a :class:`Ranking`; means are over the ranking's users.

    Args:
        ranking: of :func:`rank`, whose k is at least the largest cut-off of a metric of lists.
        popularity: interaction counts [num_items], or an interaction matrix.
        metrics, k, ties, tail_mass: as in :func:`evaluate`.
    """
    wanted = parse_metrics(metrics, as_cutoffs(k))
    for key, name, _ in wanted:
        if name in SAMPLED_METRICS:
            raise ValueError(f"metrics: {key} needs the model's scores of negatives; evaluate computes it")
    counts = item_counts(popularity, torch.device("cpu"))
    table = MetricTable(RankedTensors.of(ranking), counts, [cut for _, _, cut in wanted if cut], ties, tail_mass)
    return fetch_values({key: table.value(name, cut) for key, name, cut in wanted}, table.checks)


def per_user(
    ranking: Ranking,
    popularity: Popularity,
    *,
    metrics: Sequence[str] = PER_USER_METRICS,
    k: int | Sequence[int] = (10, 20),
    ties: Ties = "average",
    tail_mass: float = 0.2,
) -> dict[str, np.ndarray]:
    """Return the values whose means :func:`compute` reports: float64 [n], aligned with ``ranking.users``.

    NaN marks users who have no value and are left out of the mean, such as the PopQ@1 of a user with fewer than
    five positives. Arguments as in :func:`compute`; ``metrics`` from :data:`PER_USER_METRICS` and
    :data:`WEIGHTED_METRICS`.
    """
    wanted = parse_metrics(metrics, as_cutoffs(k))
    for key, name, _ in wanted:
        if name not in _PER_USER:
            raise ValueError(f"metrics: {key} is no mean over users; those are {', '.join(_PER_USER)}")
    counts = item_counts(popularity, torch.device("cpu"))
    table = MetricTable(RankedTensors.of(ranking), counts, [cut for _, _, cut in wanted if cut], ties, tail_mass)
    return {key: table.per_user(name, cut).numpy() for key, name, cut in wanted}


def fetch_values(values: dict[str, Tensor], checks: Sequence[Check]) -> dict[str, float]:
    """Return the numbers, float64 [] each, fetched in one transfer from their device."""
    tensors = [*(number.double() for number, _ in checks), *values.values()]
    numbers = torch.stack(tensors).cpu().tolist() if tensors else []
    for (_, complain), number in zip(checks, numbers, strict=False):
        complain(number)
    return dict(zip(values, numbers[len(checks) :], strict=True))


def _refuse_infinite(found: float) -> None:
    if found:
        raise ValueError("scores: expected finite numbers for a Pearson correlation, got an infinite one")


class MetricTable:
    """All metrics of a ranking, on its device; intermediate results that several share are computed once.

    ``checks`` are to be looked at before the values are used.
    """

    def __init__(
        self, ranking: RankedTensors, counts: Tensor, cutoffs: Sequence[int], ties: Ties, tail_mass: float
    ) -> None:
        require_choice("ties", ties, tuple(_ops.TIES))
        inputs.require_tail_mass(tail_mass)
        self.ranking, self.ties, self.tail_mass = ranking, ties, tail_mass
        self.device, self.counts = ranking.indptr.device, counts
        if self.counts.numel() != ranking.num_items:
            raise ValueError(f"popularity: expected {ranking.num_items} items, got {self.counts.numel()}")
        self.cutoffs = sorted(set(cutoffs))
        self.sizes = ranking.indptr.diff()
        self.checks: list[Check] = [(ranking.failed, ranking.complain)]

    @cached_property
    def _at_cutoffs(self) -> Tensor:
        return to_device(np.array(self.cutoffs, np.int64), self.device)

    @cached_property
    def by_rank(self) -> tuple[Tensor, ...]:
        r = self.ranking
        counts = (r.indptr, r.greater, r.equal, r.num_candidates)
        return _ops.user_metrics(*counts, self.counts[r.items], self._at_cutoffs, self.ties)

    @cached_property
    def tail(self) -> Tensor:
        return tensors.long_tail(self.counts, self.tail_mass)

    @cached_property
    def by_list(self) -> tuple[Tensor, ...]:
        information = tensors.self_information(self.counts, max(1, self.ranking.num_users))
        values = torch.stack((self.counts, self.tail.double(), information))
        return _ops.list_metrics(self.ranking.top_items, values, self._at_cutoffs)

    @cached_property
    def several(self) -> Tensor:
        """Return which positives belong to users who have several, bool [P]."""
        return (self.sizes > 1).repeat_interleave(self.sizes, output_size=self.ranking.items.numel())

    def per_user(self, name: str, cutoff: int) -> Tensor:
        """Return a metric of each user, float64 [n], NaN where a user has no value."""
        if name in _BY_RANK:
            return self.by_rank[0][_BY_RANK.index(name), self.cutoffs.index(cutoff)]
        if name in _BY_LIST:
            kind, at = _BY_LIST[name], self._at(name, cutoff)
            sums, length = self.by_list[0][kind, at], self.by_list[1][at]
            return sums if name == "aclt" else sums / length
        if name in WEIGHTED_METRICS:
            return self._weighted(name, cutoff)
        if name == "auc":
            return self.by_rank[1]
        if name == "pop_q_at_1":
            return torch.where(self.sizes >= 5, self.by_rank[4], torch.nan)
        if name == "upo":
            return torch.where(self.sizes >= 4, self.by_rank[3].nan_to_num(nan=0.0), torch.nan)
        return self.by_rank[3]  # pru: minus the correlation with the place is the one with the score

    @cached_property
    def places(self) -> Tensor:
        """Return the place of each positive, float64 [P]; positives that tie share their place here."""
        r = self.ranking
        share = {"average": 0.5, "pessimistic": 1.0, "optimistic": 0.0}[self.ties]
        return r.greater.double() + share * r.equal.double() + 1

    @cached_property
    def user_of(self) -> Tensor:
        """Return the number, among the ranking's users, of each positive's user, int64 [P]."""
        users = torch.arange(self.sizes.numel(), device=self.device)
        return users.repeat_interleave(self.sizes, output_size=self.ranking.items.numel())

    def _weighted(self, name: str, cutoff: int) -> Tensor:
        """Return a metric of weighted positives of each user."""
        items = self.ranking.items
        if name.startswith("recall_"):
            part = tensors.popularity_groups(self.counts, self.tail_mass)[items]
            weights = (part == GROUPS.index(name.removeprefix("recall_"))).double()
        else:
            weights = 1 / tensors.propensities(self.counts, 0.5)[items]
        if name == "snips_ndcg":
            return tensors.weighted_ndcg(self.places, weights, self.user_of, self.sizes, cutoff)
        return tensors.weighted_recall(self.places, weights, self.user_of, self.sizes.numel(), cutoff)

    def value(self, name: str, cutoff: int) -> Tensor:
        """Return a metric, float64 []."""
        r = self.ranking
        if name in _PER_USER:
            return tensors.mean_of_known(self.per_user(name, cutoff))
        if name == "pairwise_accuracy":
            pairs = self.sizes * (r.num_candidates - self.sizes)
            return tensors.ordered_sum(self.by_rank[2]) / tensors.ordered_sum(pairs.double())
        if name == "pri":
            return tensors.pri_of_quantiles(r.items, self.by_rank[5], self.several, self.counts)
        if name == "pcc":
            scores = r.scores.double()
            self.checks.append(((scores.isinf() & self.several).any(), _refuse_infinite))
            return tensors.pearson(self.counts[r.items], scores, self.several)
        exposure = self.exposure(name, cutoff)
        if name == "tail_share":
            return tensors.share_of_exposure(exposure, self.tail)
        if name == "coverage":
            return tensors.coverage_of_exposure(exposure)
        return tensors.gini_of_exposure(exposure) if name == "gini" else tensors.entropy_of_exposure(exposure)

    def exposure(self, name: str, cutoff: int) -> Tensor:
        """Return how often each item is in a list of this length, int64 [num_items]."""
        return self.by_list[2][self._at(name, cutoff)]

    def _at(self, name: str, cutoff: int) -> int:
        kept = self.ranking.top_items.shape[1]
        if cutoff > kept < self.ranking.num_items:
            raise ValueError(f"ranking: keeps {kept} items per user, {name}@{cutoff} needs {cutoff}")
        return self.cutoffs.index(cutoff)


def item_counts(popularity: Popularity, device: torch.device) -> Tensor:
    """Return interaction counts per item, float64 [num_items], of interactions or from an array, which is checked."""
    if isinstance(popularity, Interactions):
        return popularity.popularity.to(device).double()
    return torch.tensor(popularity_counts(popularity), dtype=torch.float64, device=device)
