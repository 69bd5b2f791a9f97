"""Evaluating a recommender: every accuracy and bias metric from one pass over users x items.

:func:`rank` streams over blocks of users. For each it takes the scores of all items, leaves out the
interactions to exclude, *counts* how many candidates are above and level with each held-out positive (nothing
is sorted) and selects the top k. What it keeps is small: two counts per positive and k items per user. Every
metric then comes from these (:func:`compute`); :func:`evaluate` does both, on the device of the scores, and
fetches nothing from there but the values of the metrics.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from zerosum_ext import _ops
from zerosum_ext import metrics as m
from zerosum_ext._checks import require_positive_int
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.data.sampling import sample_negatives

__all__ = [
    "AT_K_METRICS",
    "METRICS",
    "PER_USER_METRICS",
    "SAMPLED_METRICS",
    "Ranking",
    "RankingMetrics",
    "by_group",
    "by_popularity",
    "compute",
    "evaluate",
    "per_user",
    "rank",
    "sampled_ranks",
]

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

_BY_RANK = ("hr", "recall", "precision", "ndcg", "mrr", "map")  # in the order of _ops.user_metrics
_BY_LIST = {"arp": 0, "aplt": 1, "aclt": 1, "novelty": 2}  # the rows of the values that are added up
# Means over users, of which per_user gives the values.
PER_USER_METRICS = (*_BY_RANK, *_BY_LIST, "auc", "pop_q_at_1", "upo", "pru")

# Elements of a block of scores [users, items] that a model is asked for at once (64 MiB of float32), and users a call
# of the fused pass, which an interrupt has to wait for.
_BLOCK_ELEMENTS = 1 << 24
_BLOCK_USERS = 1 << 16


@dataclass(frozen=True)
class Ranking:
    """Where each user's held-out positives stand among all candidates, and each user's top k.

    Candidates are all items but the excluded ones; a held-out positive is always a candidate. Only users with
    a held-out positive appear.

    Attributes:
        users: int64 [n], the evaluated users, ascending.
        indptr: int64 [n + 1], where each user's positives lie in the next four arrays.
        items: int64 [P], the held-out positives.
        scores: float [P], their scores.
        greater: int64 [P], candidates with a higher score.
        equal: int64 [P], other candidates with the same score.
        num_candidates: int64 [n].
        top_items: int64 [n, k], best first, equal scores by ascending item; -1 pads. Items scored -inf are
            never in it.
        num_users, num_items: the shape of the interaction matrix.
    """

    users: np.ndarray
    indptr: np.ndarray
    items: np.ndarray
    scores: np.ndarray
    greater: np.ndarray
    equal: np.ndarray
    num_candidates: np.ndarray
    top_items: np.ndarray
    num_users: int
    num_items: int

    @property
    def positive_users(self) -> np.ndarray:
        """int64 [P], the user of each positive."""
        return np.repeat(self.users, np.diff(self.indptr))

    def select(self, users: Any) -> Ranking:
        """The part of this ranking that belongs to the given users (integers, or a mask over all users)."""
        chosen = np.asarray(users)
        if chosen.dtype == bool:
            if chosen.shape != (self.num_users,):
                raise ValueError(f"users: expected a mask of shape ({self.num_users},), got {chosen.shape}")
            keep = chosen[self.users]
        else:
            keep = np.isin(self.users, chosen)
        counts = np.diff(self.indptr)
        positive = np.repeat(keep, counts)
        return Ranking(
            users=self.users[keep],
            indptr=np.concatenate(([0], np.cumsum(counts[keep]))),
            items=self.items[positive],
            scores=self.scores[positive],
            greater=self.greater[positive],
            equal=self.equal[positive],
            num_candidates=self.num_candidates[keep],
            top_items=self.top_items[keep],
            num_users=self.num_users,
            num_items=self.num_items,
        )


# The arrays of a ranking that follow from scores.
_TENSORS = ("indptr", "items", "scores", "greater", "equal", "num_candidates", "top_items")

# A number that is known when the values of metrics are, and what raises where it tells that they are none.
_Check = tuple[Tensor, Callable[[float], None]]


@dataclass(frozen=True)
class _Ranked:
    """A :class:`Ranking` where it was made: tensors on one device, but for the users.

    ``failed``, int64 [], is the first row of ``users`` with a candidate scored NaN, or the number of users.
    """

    users: np.ndarray
    indptr: Tensor
    items: Tensor
    scores: Tensor
    greater: Tensor
    equal: Tensor
    num_candidates: Tensor
    top_items: Tensor
    failed: Tensor
    num_users: int
    num_items: int

    @classmethod
    def of(cls, ranking: Ranking) -> _Ranked:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(ranking, name))) for name in _TENSORS}
        shape = {"num_users": ranking.num_users, "num_items": ranking.num_items}
        return cls(users=ranking.users, failed=torch.tensor(len(ranking.users)), **tensors, **shape)  # type: ignore[arg-type]

    def on_host(self) -> Ranking:
        self.complain(float(self.failed))
        arrays = {name: getattr(self, name).cpu().numpy() for name in _TENSORS}
        return Ranking(users=self.users, **arrays, num_users=self.num_users, num_items=self.num_items)

    def complain(self, failed: float) -> None:
        if failed < len(self.users):
            raise ValueError(f"model: NaN among the scores of user {self.users[int(failed)]}")


def _interactions(value: Any, name: str) -> Interactions:
    if not isinstance(value, Interactions) and not sparse.issparse(value):
        raise TypeError(f"{name}: expected Interactions or a scipy sparse matrix, got {type(value).__name__}")
    return Interactions.from_any(value)


def _same_shape(train: tuple[int, int], test: tuple[int, int]) -> None:
    if train != test:
        raise ValueError(f"test: expected the shape of the train or excluded interactions {train}, got {test}")


# ----------------------------------------------------------------------------------------------------------
# Models
# ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _inference(model: Any) -> Iterator[None]:
    """No gradients, and evaluation mode for the time being where the model is a Module."""
    training = isinstance(model, torch.nn.Module) and model.training
    if training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if training:
            model.train()


Factors = tuple[Tensor, Tensor, "Tensor | None"]


def _floating(values: Any) -> Tensor:
    """A tensor of floating-point numbers; integers become float64."""
    result = torch.as_tensor(values)
    return result if result.is_floating_point() else result.double()


def _source(model: Any, num_users: int, num_items: int) -> Factors | Callable[[Tensor], Any]:
    """Factors (user [U, d], item [I, d], item bias), or a function from users [B] to scores [B, num_items]."""
    if hasattr(model, "factors"):
        model = tuple(model.factors())
    elif hasattr(model, "score_all_items"):
        return model.score_all_items
    if isinstance(model, (tuple, list)):
        if len(model) not in (2, 3):
            raise ValueError(f"model: expected (user factors, item factors[, item bias]), got {len(model)} entries")
        user, item = _floating(model[0]), _floating(model[1])
        bias = None if len(model) == 2 or model[2] is None else _floating(model[2])
        if user.ndim != 2 or item.ndim != 2 or user.shape[1] != item.shape[1]:
            raise ValueError(f"model: expected factors [U, d] and [I, d], got {[*user.shape]} and {[*item.shape]}")
        _check_shape("user factors", user.shape[0], num_users, "users")
        _check_shape("item factors", item.shape[0], num_items, "items")
        if bias is not None and bias.shape != (num_items,):
            raise ValueError(f"model: expected an item bias of shape [{num_items}], got {[*bias.shape]}")
        wide = torch.float64 in (user.dtype, item.dtype, item.dtype if bias is None else bias.dtype)
        options: dict[str, Any] = {"device": user.device, "dtype": torch.float64 if wide else torch.float32}
        return (
            user.to(**options).contiguous(),
            item.to(**options).contiguous(),
            None if bias is None else bias.to(**options).contiguous(),
        )
    if isinstance(model, (np.ndarray, Tensor)):
        matrix = _floating(model)
        if matrix.shape != (num_users, num_items):
            raise ValueError(f"model: expected scores [{num_users}, {num_items}], got {[*matrix.shape]}")
        return lambda users: matrix[users.to(matrix.device)]
    raise TypeError(
        "model: expected an object with factors() or score_all_items(users), (user factors, item "
        f"factors[, item bias]), or a matrix of scores, got {type(model).__name__}"
    )


def _check_shape(what: str, got: int, expected: int, axis: str) -> None:
    if got != expected:
        raise ValueError(f"model: {what} has {got} rows, the interactions have {expected} {axis}")


# ----------------------------------------------------------------------------------------------------------
# Ranking
# ----------------------------------------------------------------------------------------------------------


def rank(
    model: Any,
    train: Any,
    test: Any,
    *,
    k: int = 20,
    exclude: Any = "train",
    users: Any = None,
    batch_size: int | None = None,
) -> Ranking:
    """Ranks every user's held-out positives among all items and selects the user's top k.

    Args:
        model: an object with ``factors() -> (user [U, d], item [I, d], item_bias [I] | None)`` or with
            ``score_all_items(users [B]) -> [B, I]``, such factors as a tuple, or a matrix of scores [U, I].
            NumPy or torch, on any device; fp16 and bf16 are widened to fp32 (exact).
        train: interactions the model was trained on (Interactions or scipy sparse [U, I]); None for none.
        test: the held-out positives, of the same shape.
        k: length of the lists to keep, at least 0.
        exclude: interactions that are no candidates: ``"train"``, None for none, or an interaction matrix. A
            held-out positive is a candidate even where it is excluded.
        users: evaluate only these (integers); by default all who have a held-out positive.
        batch_size: users per block of scores; by default as many as fit in 64 MiB. Does not affect the
            result. Factors need no blocks of scores: they are multiplied and ranked in one go.

    Raises:
        ValueError: a candidate's score is NaN; shapes do not agree.
    """
    return _rank(model, train, test, k, exclude, users, batch_size).on_host()


def _rank(
    model: Any,
    train: Any,
    test: Any,
    k: int,
    exclude: Any,
    users: Any,
    batch_size: int | None,
    top_only: bool = False,
) -> _Ranked:
    """With ``top_only`` ranks beyond k are only known to be so."""
    held_out = _interactions(test, "test")
    excluded = _excluded(exclude, train, held_out)
    k = require_positive_int("k", k, minimum=0)
    if batch_size is not None:
        batch_size = require_positive_int("batch_size", batch_size)
    with _inference(model):
        source = _source(model, *held_out.shape)
        return _rank_users(source, users, held_out, excluded, k, batch_size, top_only)


def _excluded(exclude: Any, train: Any, held_out: Interactions) -> Interactions | None:
    if isinstance(exclude, str):
        if exclude != "train":
            raise ValueError(f"exclude: expected 'train', None or an interaction matrix, got {exclude!r}")
        exclude = train
    excluded = None if exclude is None else _interactions(exclude, "exclude")
    if excluded is not None:
        _same_shape(excluded.shape, held_out.shape)
    return excluded


def _popularity_of(train: Interactions | None, test: Interactions, device: torch.device) -> Tensor:
    """Counts of train + test, float64."""
    counts = test.popularity.to(device)
    if train is not None:
        _same_shape(train.shape, test.shape)
        counts = counts + train.popularity.to(device)
    return counts.double()


def _evaluated(counts: np.ndarray, users: Any) -> np.ndarray:
    """Those of the users (None: all) who have a positive, ascending."""
    evaluated = np.flatnonzero(counts)
    if users is None:
        return evaluated
    chosen = np.unique(np.asarray(users, dtype=np.int64))
    if chosen.size and (chosen[0] < 0 or chosen[-1] >= counts.size):
        raise ValueError(f"users: expected integers in [0, {counts.size}), got {chosen[0]} .. {chosen[-1]}")
    return np.intersect1d(evaluated, chosen)


def _moved(array: np.ndarray, device: torch.device) -> Tensor:
    # Pageable memory has been read when the call returns: CUDA may wait for the stream to do so, but no longer.
    return torch.from_numpy(array).to(device, non_blocking=True)


@dataclass(frozen=True)
class _HeldOut:
    """Whose positives are evaluated, and where they lie: all that has to be known on the host."""

    interactions: Interactions
    users: np.ndarray
    offset: np.ndarray  # int64 [n + 1], of each one's positives among all of them
    start: np.ndarray  # int64 [n], of the same in the interactions

    @classmethod
    def of(cls, interactions: Interactions, users: Any) -> _HeldOut:
        indptr = interactions.indptr.cpu().numpy()
        counts = np.diff(indptr)
        evaluated = _evaluated(counts, users)
        offset = np.concatenate(([0], np.cumsum(counts[evaluated])))
        return cls(interactions, evaluated, offset, indptr[evaluated])

    def items(self, device: torch.device) -> Tensor:
        """int64 [P], the positives."""
        indices = self.interactions.indices.to(device)
        if self.offset[-1] < indices.numel():
            place = np.arange(self.offset[-1]) + np.repeat(self.start - self.offset[:-1], np.diff(self.offset))
            indices = indices[_moved(place, device)]
        return indices.long()


def _rank_users(
    source: Factors | Callable[[Tensor], Any],
    users: Any,
    interactions: Interactions,
    excluded: Interactions | None,
    k: int,
    batch_size: int | None = None,
    top_only: bool = False,
) -> _Ranked:
    num_users, num_items = interactions.shape
    held_out = _HeldOut.of(interactions, users)
    evaluated, offset = held_out.users, held_out.offset
    if isinstance(source, tuple):
        step = _BLOCK_USERS
    else:
        step = batch_size or max(1, _BLOCK_ELEMENTS // max(1, num_items))

    @functools.cache
    def on(device: torch.device) -> tuple[Tensor, Interactions, Interactions | None]:
        others = None if excluded is None else excluded.to(device)
        return _moved(evaluated, device), interactions.to(device), others

    parts, failed = [], []
    for first in range(0, evaluated.size, step) or range(1):  # nobody is one block of no users
        *ranked, row = _rank_block(source, evaluated, offset, slice(first, first + step), on, num_items, k, top_only)
        parts.append(ranked)
        failed.append(torch.where(row < 0, evaluated.size, row + first))
    target, greater, equal, candidates, top = (
        torch.cat(column) if len(parts) > 1 else column[0] for column in zip(*parts, strict=True)
    )
    device = target.device
    result = _Ranked(
        users=evaluated,
        indptr=_moved(offset, device),
        items=held_out.items(device),
        scores=target,
        greater=greater,
        equal=equal,
        num_candidates=candidates,
        top_items=top,
        failed=torch.cat(failed).amin(),
        num_users=num_users,
        num_items=num_items,
    )
    if device.type == "cpu" or not _ops.has_op("user_metrics", device):  # what works on the host would take offence
        result.complain(float(result.failed))
    return result


def _rank_block(
    source: Factors | Callable[[Tensor], Any],
    users: np.ndarray,
    offset: np.ndarray,
    part: slice,
    on: Callable[[torch.device], tuple[Tensor, Interactions, Interactions | None]],
    num_items: int,
    k: int,
    top_only: bool,
) -> tuple[Tensor, ...]:
    """(positives' scores, greater, equal, candidates, top items, failed) of some users, on the device of the scores."""
    op: Callable[..., tuple[Tensor, ...]]
    if isinstance(source, tuple):
        device = source[0].device
        op = partial(_ops.rank_factors, *source, top_only=top_only)
    else:
        asked = torch.from_numpy(users[part])
        scores = _floating(source(asked))
        if scores.shape != (asked.numel(), num_items):
            raise ValueError(f"model: expected scores [{asked.numel()}, {num_items}], got {[*scores.shape]}")
        device = scores.device
        op = partial(_ops.rank_scores, scores)
    index, positives, others = on(device)
    return op(
        index[part],
        # On the host: a GPU need not be asked for how many positives there are.
        torch.from_numpy(offset[part.start : part.stop + 1] - offset[part.start]),
        positives.indptr,
        positives.indices,
        None if others is None else others.indptr,
        None if others is None else others.indices,
        k,
    )


# ----------------------------------------------------------------------------------------------------------
# Metrics
# ----------------------------------------------------------------------------------------------------------


def _cutoffs(k: int | Sequence[int]) -> tuple[int, ...]:
    return (int(k),) if isinstance(k, (int, np.integer)) and not isinstance(k, bool) else tuple(k)  # type: ignore[arg-type]


def _parse(metrics: Sequence[str], k: Sequence[int]) -> list[tuple[str, str, int]]:
    """[(key, name, cut-off or 0)] of the metrics asked for, in order, each once."""
    if isinstance(metrics, str):
        raise TypeError(f"metrics: expected a sequence of names, got the string {metrics!r}")
    wanted: dict[str, tuple[str, str, int]] = {}
    for entry in metrics:
        name, at, cut = entry.partition("@")
        known = (*METRICS, *SAMPLED_METRICS)
        if name not in known:
            raise ValueError(f"metrics: unknown {entry!r}; known are {', '.join(known)}")
        if name not in (*AT_K_METRICS, *SAMPLED_METRICS):
            if at:
                raise ValueError(f"metrics: {name} takes no cut-off, got {entry!r}")
            wanted[name] = (name, name, 0)
            continue
        if at and not cut.isdecimal():
            raise ValueError(f"metrics: expected {name}@k with an integer k, got {entry!r}")
        for value in (int(cut),) if at else k:
            cutoff = m._cutoff(value)
            wanted[f"{name}@{cutoff}"] = (f"{name}@{cutoff}", name, cutoff)
    return list(wanted.values())


def compute(
    ranking: Ranking,
    popularity: Any,
    *,
    metrics: Sequence[str] = METRICS,
    k: int | Sequence[int] = (10, 20),
    ties: m.Ties = "average",
    tail_mass: float = 0.2,
) -> dict[str, float]:
    """Every metric asked for, from a :class:`Ranking`; means are over the ranking's users.

    Args:
        ranking: of :func:`rank`, whose k is at least the largest cut-off of a metric of lists.
        popularity: interaction counts [num_items], or an interaction matrix.
        metrics, k, ties, tail_mass: as in :func:`evaluate`.
    """
    wanted = _parse(metrics, _cutoffs(k))
    for key, name, _ in wanted:
        if name in SAMPLED_METRICS:
            raise ValueError(f"metrics: {key} needs the model's scores of negatives; evaluate computes it")
    counts = _counts(popularity, torch.device("cpu"))
    table = _Table(_Ranked.of(ranking), counts, [cut for _, _, cut in wanted if cut], ties, tail_mass)
    return _fetched({key: table.value(name, cut) for key, name, cut in wanted}, table.checks)


def per_user(
    ranking: Ranking,
    popularity: Any,
    *,
    metrics: Sequence[str] = PER_USER_METRICS,
    k: int | Sequence[int] = (10, 20),
    ties: m.Ties = "average",
    tail_mass: float = 0.2,
) -> dict[str, np.ndarray]:
    """The values whose means :func:`compute` reports: float64 [n], aligned with ``ranking.users``.

    NaN marks users who have no value and are left out of the mean, such as the PopQ@1 of a user with fewer than
    five positives. Arguments as in :func:`compute`; ``metrics`` from :data:`PER_USER_METRICS`.
    """
    wanted = _parse(metrics, _cutoffs(k))
    for key, name, _ in wanted:
        if name not in PER_USER_METRICS:
            raise ValueError(f"metrics: {key} is no mean over users; those are {', '.join(PER_USER_METRICS)}")
    counts = _counts(popularity, torch.device("cpu"))
    table = _Table(_Ranked.of(ranking), counts, [cut for _, _, cut in wanted if cut], ties, tail_mass)
    return {key: table.per_user(name, cut).numpy() for key, name, cut in wanted}


def _fetched(values: dict[str, Tensor], checks: Sequence[_Check]) -> dict[str, float]:
    """The numbers, float64 [] each, in one transfer from where they were computed."""
    tensors = [*(number.double() for number, _ in checks), *values.values()]
    numbers = torch.stack(tensors).cpu().tolist() if tensors else []
    for (_, complain), number in zip(checks, numbers, strict=False):
        complain(number)
    return dict(zip(values, numbers[len(checks) :], strict=True))


def _refuse_infinite(found: float) -> None:
    if found:
        raise ValueError("scores: expected finite numbers for a Pearson correlation, got an infinite one")


class _Table:
    """Every metric of a ranking, on its device; what several have in common is computed once.

    ``checks`` are to be looked at before the values are used.
    """

    def __init__(
        self, ranking: _Ranked, counts: Tensor, cutoffs: Sequence[int], ties: m.Ties, tail_mass: float
    ) -> None:
        m._choice(ties, "ties", tuple(_ops.TIES))
        m._check_tail_mass(tail_mass)
        self.ranking, self.ties, self.tail_mass = ranking, ties, tail_mass
        self.device, self.counts = ranking.indptr.device, counts
        if self.counts.numel() != ranking.num_items:
            raise ValueError(f"popularity: expected {ranking.num_items} items, got {self.counts.numel()}")
        self.cutoffs = sorted(set(cutoffs))
        self.sizes = ranking.indptr.diff()
        self.checks: list[_Check] = [(ranking.failed, ranking.complain)]

    @cached_property
    def _at_cutoffs(self) -> Tensor:
        return _moved(np.array(self.cutoffs, np.int64), self.device)

    @cached_property
    def by_rank(self) -> tuple[Tensor, ...]:
        r = self.ranking
        counts = (r.indptr, r.greater, r.equal, r.num_candidates)
        return _ops.user_metrics(*counts, self.counts[r.items], self._at_cutoffs, self.ties)

    @cached_property
    def tail(self) -> Tensor:
        return m._long_tail(self.counts, self.tail_mass)

    @cached_property
    def by_list(self) -> tuple[Tensor, ...]:
        information = m._self_information(self.counts, max(1, self.ranking.num_users))
        values = torch.stack((self.counts, self.tail.double(), information))
        return _ops.list_metrics(self.ranking.top_items, values, self._at_cutoffs)

    @cached_property
    def several(self) -> Tensor:
        """bool [P], the positives of users who have several."""
        return (self.sizes > 1).repeat_interleave(self.sizes, output_size=self.ranking.items.numel())

    def per_user(self, name: str, cutoff: int) -> Tensor:
        """float64 [n], NaN where a user has no value."""
        if name in _BY_RANK:
            return self.by_rank[0][_BY_RANK.index(name), self.cutoffs.index(cutoff)]
        if name in _BY_LIST:
            kind, at = _BY_LIST[name], self._at(name, cutoff)
            sums, length = self.by_list[0][kind, at], self.by_list[1][at]
            return sums if name == "aclt" else sums / length
        if name == "auc":
            return self.by_rank[1]
        if name == "pop_q_at_1":
            return torch.where(self.sizes >= 5, self.by_rank[4], torch.nan)
        if name == "upo":
            return torch.where(self.sizes >= 4, self.by_rank[3].nan_to_num(nan=0.0), torch.nan)
        return self.by_rank[3]  # pru: minus the correlation with the place is the one with the score

    def value(self, name: str, cutoff: int) -> Tensor:
        """float64 []."""
        r = self.ranking
        if name in PER_USER_METRICS:
            return m._mean_of_known(self.per_user(name, cutoff))
        if name == "pairwise_accuracy":
            pairs = self.sizes * (r.num_candidates - self.sizes)
            return m._sum(self.by_rank[2]) / m._sum(pairs.double())
        if name == "pri":
            return m._pri_of_quantiles(r.items, self.by_rank[5], self.several, self.counts)
        if name == "pcc":
            scores = r.scores.double()
            self.checks.append(((scores.isinf() & self.several).any(), _refuse_infinite))
            return m._pearson(self.counts[r.items], scores, self.several)
        exposure = self.by_list[2][self._at(name, cutoff)]
        if name == "tail_share":
            return m._share_of_exposure(exposure, self.tail)
        if name == "coverage":
            return m._coverage_of_exposure(exposure)
        return m._gini_of_exposure(exposure) if name == "gini" else m._entropy_of_exposure(exposure)

    def _at(self, name: str, cutoff: int) -> int:
        kept = self.ranking.top_items.shape[1]
        if cutoff > kept < self.ranking.num_items:
            raise ValueError(f"ranking: keeps {kept} items per user, {name}@{cutoff} needs {cutoff}")
        return self.cutoffs.index(cutoff)


def _counts(popularity: Any, device: torch.device) -> Tensor:
    """Interaction counts per item, float64 [num_items]: of interactions, or as given, which is then checked."""
    if isinstance(popularity, Interactions):
        return popularity.popularity.to(device).double()
    return torch.tensor(m.popularity_counts(popularity), dtype=torch.float64, device=device)


def evaluate(
    model: Any,
    train: Any,
    test: Any,
    *,
    metrics: Sequence[str] = METRICS,
    k: int | Sequence[int] = (10, 20),
    popularity: Any = None,
    exclude: Any = "train",
    ties: m.Ties = "average",
    tail_mass: float = 0.2,
    users: Any = None,
    batch_size: int | None = None,
    negatives: Any = 100,
    seed: int = 0,
) -> dict[str, float]:
    """Evaluates a model on held-out interactions: accuracy, popularity bias and exposure in one pass.

    Means are over the users with a held-out positive. Definitions, ranges and sources:
    :mod:`zerosum_ext.metrics`.

    Args:
        model, train, test, exclude, users, batch_size: as in :func:`rank`.
        metrics: names of :data:`METRICS`; those of :data:`AT_K_METRICS` are reported at each of ``k``, or at
            a cut-off of their own ("ndcg@5").
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
    """
    cutoffs = _cutoffs(k)
    wanted = _parse(metrics, cutoffs)
    # Once, here: to rank would convert both again.
    test, train = _interactions(test, "test"), None if train is None else _interactions(train, "train")
    if train is not None:
        _same_shape(train.shape, test.shape)
    full = [entry for entry in wanted if entry[1] not in SAMPLED_METRICS]
    values: dict[str, Tensor] = {}
    checks: list[_Check] = []
    if full:
        length = max(cutoff for _, _, cutoff in full)
        # Where every metric has a cut-off nothing has to be known of what lies beyond the largest.
        top_only = all(cutoff for _, _, cutoff in full)
        ranked = _rank(model, train, test, length, exclude, users, batch_size, top_only)
        device = ranked.indptr.device
        counts = _popularity_of(train, test, device) if popularity is None else _counts(popularity, device)
        table = _Table(ranked, counts, [cut for _, _, cut in full if cut], ties, tail_mass)
        values = {key: table.value(name, cut) for key, name, cut in full}
        checks = table.checks
    if len(full) < len(wanted):
        known = train if isinstance(exclude, str) else exclude
        _, places, check = _sampled_ranks(model, known, test, negatives, seed, users)
        checks = [*checks, check]
        for key, name, cutoff in wanted:
            if name in SAMPLED_METRICS:
                function = m._hit_of_ranks if name == "sampled_hit" else m._ndcg_of_ranks
                values[key] = function(places, cutoff)
    return _fetched({key: values[key] for key, _, _ in wanted}, checks)


# ----------------------------------------------------------------------------------------------------------
# Sampled ranking
# ----------------------------------------------------------------------------------------------------------


def sampled_ranks(
    model: Any, known: Any, test: Any, *, negatives: Any = 100, seed: int = 0, users: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks each held-out positive among itself and some negatives of its user; ties count against it [RCS22].

    Args:
        model, test, users: as in :func:`rank`.
        known: interactions that are not drawn as negatives, beside the held-out ones; None for none.
        negatives: integers [num_users, M], the negatives of each user; or M, to draw as many distinct ones for every
            evaluated user, uniformly and reproducibly: they depend on ``known``, ``test``, ``users`` and ``seed``.

    Returns:
        (user, 1-based rank) of each positive: int64 [P] each.

    Raises:
        ValueError: a user has fewer than M negatives, a negative is out of range, or a score is NaN.
    """
    users, places, (failed, complain) = _sampled_ranks(model, known, test, negatives, seed, users)
    complain(float(failed))
    return users, places.cpu().numpy()


def _sampled_ranks(
    model: Any, known: Any, test: Any, negatives: Any, seed: int, users: Any
) -> tuple[np.ndarray, Tensor, _Check]:
    """The same, the ranks where the scores are, and what tells of NaN."""
    interactions = _interactions(test, "test")
    num_users, num_items = interactions.shape
    held_out = _HeldOut.of(interactions, users)
    evaluated, offset = held_out.users, held_out.offset
    if isinstance(negatives, (int, np.integer)):
        size = require_positive_int("negatives", negatives)
        chosen = sample_negatives(
            interactions if known is None else _interactions(known, "known"),
            evaluated,
            size,
            seed=seed,
            exclude=None if known is None else interactions,
            replacement=False,
        )
    else:
        given = m._integers(negatives, "negatives", ndim=2)
        if len(given) != num_users:
            raise ValueError(f"negatives: expected one row for each of {num_users} users, got {len(given)}")
        chosen = torch.from_numpy(given[evaluated])
        if chosen.numel() and (int(chosen.min()) < 0 or int(chosen.max()) >= num_items):
            raise ValueError(f"negatives: expected items in [0, {num_items})")
    step, places, failed = 512, [], []
    with _inference(model):
        source = _source(model, num_users, num_items)

        @functools.cache
        def on(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
            return held_out.items(device), chosen.to(device), _moved(evaluated, device)

        for first in range(0, evaluated.size, step) or range(1):
            part = slice(first, first + step)
            asked = torch.from_numpy(evaluated[part])
            scores = None if isinstance(source, tuple) else _floating(source(asked))
            device = source[0].device if isinstance(source, tuple) else scores.device  # type: ignore[union-attr]
            items, others, index = on(device)
            here = offset[part.start : part.stop + 1]
            items, others, index = items[here[0] : here[-1]], others[part], index[part]
            row = _moved(np.repeat(np.arange(asked.numel()), np.diff(here)), device)
            if isinstance(source, tuple):
                positive_scores = _pair_scores(source, index[row], items)
                negative_scores = _pair_scores(source, index[:, None].expand_as(others), others)
            else:
                assert scores is not None
                positive_scores, negative_scores = scores[row, items], scores.gather(1, others)
            failed.append(positive_scores.isnan().any() | negative_scores.isnan().any())
            places.append(m._sampled_ranks(positive_scores, negative_scores[row]))
    bad = torch.stack(failed)
    block = torch.where(bad, torch.arange(len(failed), device=bad.device), len(failed)).amin()

    def complain(number: float) -> None:
        if number < len(failed):
            some = evaluated[int(number) * step : (int(number) + 1) * step]
            raise ValueError(f"model: NaN among the scores of users {some[0]} .. {some[-1]}")

    return np.repeat(evaluated, np.diff(offset)), torch.cat(places), (block, complain)


def _pair_scores(factors: Factors, users: Tensor, items: Tensor) -> Tensor:
    """Scores of (user, item) pairs, each one the same sum whatever the shape: ties are exact."""
    user, item, bias = factors
    scores = (user[users] * item[items]).sum(-1)
    return scores if bias is None else scores + bias[items]


# ----------------------------------------------------------------------------------------------------------
# Breakdowns
# ----------------------------------------------------------------------------------------------------------


def by_group(ranking: Ranking, groups: Any, popularity: Any, **options: Any) -> dict[Any, dict[str, float]]:
    """:func:`compute` for each group of users, in ascending order of the groups.

    Args:
        ranking, popularity, options: as in :func:`compute`.
        groups: [num_users], the group of each user: integers or text.
    """
    labels = np.asarray(groups)
    if labels.shape != (ranking.num_users,):
        raise ValueError(f"groups: expected shape ({ranking.num_users},), got {labels.shape}")
    return {
        label.item(): compute(ranking.select(labels == label), popularity, **options) for label in np.unique(labels)
    }


def by_popularity(
    ranking: Ranking, popularity: Any, *, bins: int = 10, k: int = 10, ties: m.Ties = "average"
) -> dict[str, np.ndarray]:
    """How items fare by their popularity: ten deciles of items, the most popular first.

    Deciles hold equally many items (to within one); items of equal popularity are in order of their numbers.

    Args:
        ranking: of :func:`rank`, whose k is at least ``k``.
        popularity: interaction counts [num_items], or an interaction matrix.
        bins: how many parts, ten for deciles.
        k, ties: as in :func:`compute`.

    Returns:
        Arrays [bins]: ``popularity`` (mean count of the items), ``positives`` (held-out positives), ``recall`` (share
        of these with a rank <= k; NaN without any) and ``exposure`` (share of all places in the users' first k).
    """
    bins, k = require_positive_int("bins", bins), m._cutoff(k)
    counts = m.popularity_counts(popularity)
    if counts.size != ranking.num_items:
        raise ValueError(f"popularity: expected {ranking.num_items} items, got {counts.size}")
    if k > ranking.top_items.shape[1] < ranking.num_items:
        raise ValueError(f"ranking: keeps {ranking.top_items.shape[1]} items per user, k is {k}")
    part = np.empty(counts.size, np.int64)
    part[np.argsort(-counts, kind="stable")] = np.arange(counts.size) * bins // max(1, counts.size)
    users = ranking.positive_users
    ranks = m.positive_ranks(users, ranking.scores, ranking.greater, ranking.equal, ties)
    positives = np.bincount(part[ranking.items], minlength=bins)
    hits = np.bincount(part[ranking.items], weights=ranks <= k, minlength=bins)
    lists = ranking.top_items[:, :k]
    places = np.bincount(part[lists[lists >= 0]], minlength=bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "popularity": np.bincount(part, weights=counts, minlength=bins) / np.bincount(part, minlength=bins),
            "positives": positives,
            "recall": hits / positives,
            "exposure": places / places.sum(),
        }


# ----------------------------------------------------------------------------------------------------------
# Batch by batch
# ----------------------------------------------------------------------------------------------------------


class RankingMetrics:
    """The same metrics batch by batch, for evaluation loops of one's own: update, compute, reset.

    Under torch.distributed each process updates with its own users, and :meth:`compute` gathers what all have seen, so
    that every process gets the metrics of all users. A user who was seen twice (samplers pad the last batch) counts
    once.

    Args:
        train, test: interactions [num_users, num_items], as in :func:`evaluate`.
        metrics, k, popularity, exclude, ties, tail_mass: as in :func:`evaluate`; no :data:`SAMPLED_METRICS`.

    Example::

        metric = RankingMetrics(train, test, metrics=("ndcg", "pri"), k=10)
        for users in batches:
            metric.update(users, model(users))  # scores [B, num_items]
        values = metric.compute()
    """

    def __init__(
        self,
        train: Any,
        test: Any,
        *,
        metrics: Sequence[str] = METRICS,
        k: int | Sequence[int] = (10, 20),
        popularity: Any = None,
        exclude: Any = "train",
        ties: m.Ties = "average",
        tail_mass: float = 0.2,
    ) -> None:
        self._test = _interactions(test, "test")
        known = None if train is None else _interactions(train, "train")
        self._excluded = _excluded(exclude, known, self._test)
        if popularity is None:
            popularity = _popularity_of(known, self._test, torch.device("cpu"))
        self._popularity = popularity
        wanted = _parse(metrics, _cutoffs(k))
        self._length = max((cutoff for _, _, cutoff in wanted), default=0)
        self._options: dict[str, Any] = {
            "metrics": [key for key, _, _ in wanted],
            "ties": ties,
            "tail_mass": tail_mass,
        }
        self._parts: list[Ranking] = []

    def update(self, users: Any, scores: Any) -> None:
        """Adds users [B] and their scores [B, num_items]; those without a held-out positive are left out.

        Raises:
            ValueError: shapes do not agree, a user is out of range, or a candidate's score is NaN.
        """
        index, values = m._integers(users, "users"), torch.as_tensor(scores).detach()
        if values.shape != (index.size, self._test.num_items):
            raise ValueError(f"scores: expected [{index.size}, {self._test.num_items}], got {[*values.shape]}")
        kept, first = np.unique(index, return_index=True)
        evaluated = _evaluated(self._test.user_counts.cpu().numpy(), kept)
        rows = torch.from_numpy(first[np.isin(kept, evaluated)]).to(values.device)
        ranked = _rank_users(
            lambda _: values[rows], evaluated, self._test, self._excluded, self._length, max(1, evaluated.size)
        )
        self._parts.append(ranked.on_host())

    def ranking(self) -> Ranking:
        """What was seen so far, of all processes."""
        parts = list(self._parts)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, parts)
            parts = [part for some in gathered for part in some]
        none = _rank_users(
            lambda _: torch.zeros(0, self._test.num_items), np.zeros(0, np.int64), self._test, None, self._length
        )
        return _join([*parts, none.on_host()])

    def compute(self) -> dict[str, float]:
        """The metrics of all users seen, as :func:`evaluate` returns them."""
        return compute(self.ranking(), self._popularity, **self._options)

    def reset(self) -> None:
        """Forgets what was seen."""
        self._parts.clear()


def _join(parts: Sequence[Ranking]) -> Ranking:
    """One ranking of several, users ascending, each once."""
    users, first = np.unique(np.concatenate([part.users for part in parts]), return_index=True)
    sizes = np.concatenate([np.diff(part.indptr) for part in parts])
    start = np.cumsum(sizes) - sizes
    kept = sizes[first]
    indptr = np.concatenate(([0], np.cumsum(kept)))
    where = np.arange(indptr[-1]) + np.repeat(start[first] - indptr[:-1], kept)

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    return Ranking(
        users=users,
        indptr=indptr,
        items=joined("items")[where],
        scores=joined("scores")[where],
        greater=joined("greater")[where],
        equal=joined("equal")[where],
        num_candidates=joined("num_candidates")[first],
        top_items=joined("top_items")[first],
        num_users=parts[0].num_users,
        num_items=parts[0].num_items,
    )
