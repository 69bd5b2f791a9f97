"""Evaluation by several processes: each ranks for its own users, and sees the items part by part.

Ranks are counts, so those within each part of the items add up, and the best of the parts hold the best of all. Metrics
are sums over users or items, which are added up over the processes: those of whole numbers have the bits of one
process, the others may differ from it in the last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zerosum_ext import _ops
from zerosum_ext._group import Group
from zerosum_ext._types import Ties
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.data.shards import ShardedInteractions
from zerosum_ext.evaluation.full import rank
from zerosum_ext.evaluation.ranking import BLOCK_USERS, RankedTensors, evaluated_users, join_rankings
from zerosum_ext.evaluation.sources import Popularity
from zerosum_ext.evaluation.table import (
    METRICS,
    PER_USER_METRICS,
    SAMPLED_METRICS,
    WEIGHTED_METRICS,
    MetricTable,
    as_cutoffs,
    compute,
    counts_of_both,
    item_counts,
    parse_metrics,
)
from zerosum_ext.metrics import tensors

__all__ = ["best_items_of_shards", "evaluate_shards", "evaluate_together"]

# The numbers of a part of the item table that is sent to all at once: 64 MiB of float32.
_PART_NUMBERS = 1 << 24


def evaluate_together(
    model: Any,
    train: Interactions,
    test: Interactions,
    group: Group,
    *,
    metrics: Sequence[str] = METRICS,
    k: int | Sequence[int] = (10, 20),
) -> dict[str, float]:
    """Evaluate a model that every process has in one piece: each ranks for its share of the users.

    All processes call this together and get the values of :func:`zerosum_ext.evaluate`, bit for bit.
    """
    wanted = parse_metrics(metrics, as_cutoffs(k))
    if any(name in SAMPLED_METRICS for _, name, _ in wanted):
        raise ValueError(f"metrics: expected none of {', '.join(SAMPLED_METRICS)} with several processes")
    users = evaluated_users(test.user_counts.cpu().numpy(), None)
    part = users[len(users) * group.rank // group.size : len(users) * (group.rank + 1) // group.size]
    length = max((cutoff for _, _, cutoff in wanted), default=0)
    error: Exception | None = None
    own: Any = None
    try:
        own = rank(model, train, test, k=length, users=part)
    except ValueError as wrong:
        error = wrong
    group.together(error)
    found = group.gather_objects(own)
    popularity = counts_of_both(train, test, torch.device("cpu"))
    return compute(join_rankings(found), popularity.numpy(), metrics=[key for key, _, _ in wanted])


def evaluate_shards(
    model: Any,
    train: ShardedInteractions | None,
    test: ShardedInteractions,
    *,
    metrics: Sequence[str] = METRICS,
    k: int | Sequence[int] = (10, 20),
    popularity: Popularity | None = None,
    ties: Ties = "average",
    tail_mass: float = 0.2,
) -> dict[str, float]:
    """Evaluate a model in parts on interactions in parts. All processes call this together and get the same values.

    Args:
        model: a :class:`~zerosum_ext.distributed.ShardedMatrixFactorization`.
        train: the interactions whose items are no candidates, or None.
        test: the held-out interactions, of the same users.
        metrics: names of :data:`zerosum_ext.evaluation.METRICS`, none of the sampled ones.
        k, popularity, ties, tail_mass: as in :func:`zerosum_ext.evaluate`.

    Returns:
        The values of :func:`zerosum_ext.evaluate` for the whole model.

    Raises:
        ValueError: a score is NaN, or the users of the model, ``train`` and ``test`` are not the same.
    """
    wanted = parse_metrics(metrics, as_cutoffs(k))
    if any(name in SAMPLED_METRICS for _, name, _ in wanted):
        raise ValueError(f"metrics: expected none of {', '.join(SAMPLED_METRICS)} with tables in parts")
    for name, one in (("train", train), ("test", test)):
        if one is not None and (list(one.user_cuts) != list(model.user_cuts) or one.num_items != model.num_items):
            raise ValueError(f"{name}: expected the users and items of the model, {model!r}, got {one!r}")
    device = model.user_embedding.device
    length = max((cutoff for _, _, cutoff in wanted), default=0)
    ranked = _rank(model, None if train is None else train.local, test.local, length)
    if popularity is None:
        counts = test.popularity.to(device).double()
        counts = counts if train is None else counts + train.popularity.to(device)
    else:
        counts = item_counts(popularity, device)
    table = MetricTable(ranked, counts, [cut for _, _, cut in wanted if cut], ties, tail_mass)
    return {key: _value(table, name, cut, model.group, model.num_users) for key, name, cut in wanted}


def best_items_of_shards(model: Any, users: Tensor, k: int, seen: Interactions | None) -> tuple[Tensor, Tensor]:
    """Return the k best items of some of the own users and their scores, as ``recommend`` does.

    Args:
        model: a model in parts.
        users: int64 [n], counted from the first own user.
        k: the number of items.
        seen: the items that are left out, of the own users.
    """
    group = model.group
    rounds = int(group.max_(torch.tensor([-(-users.numel() // BLOCK_USERS)], device=group.device)))
    items, scores = [], []
    for number in range(rounds):
        block = users[number * BLOCK_USERS : (number + 1) * BLOCK_USERS]
        best = _Best(block.numel(), k, model.user_embedding)
        nan = False
        for first, rows, bias in _item_parts(model):
            excluded = None if seen is None else _columns(seen, block, first, first + len(rows))
            found, values, failed = _best_of_part(model.user_embedding.detach()[block], rows, bias, excluded, k)
            nan |= failed
            best.add(found, values, first)
        if group.any(nan):
            raise ValueError("recommend: the model's scores contain NaN; its training diverged")
        items.append(best.items)
        scores.append(best.scores)
    empty = _Best(0, k, model.user_embedding)
    return torch.cat([*items, empty.items]), torch.cat([*scores, empty.scores])


# --- parts of the item table -----------------------------------------------------------------------------------


def _item_parts(model: Any) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Yield the item table part by part: the number of the first item, rows [n, d] and biases [n] or None.

    The process that has a part sends it to all others. So all processes go through the parts together.
    """
    group = model.group
    table, bias = model.item_embedding.detach(), model.item_bias
    step = max(1, _PART_NUMBERS // model.embedding_dim)
    owners = [group.rank] if model.replicated else range(group.size)
    for place, owner in enumerate(owners):
        begin, end = model.item_cuts[place : place + 2]
        for first in range(begin, end, step):
            last = min(end, first + step)
            own = slice(first - begin, last - begin)
            if model.replicated:
                yield first, table[own], None if bias is None else bias.detach()[own]
                continue
            here = owner == group.rank
            rows = table[own].contiguous() if here else table.new_empty(last - first, table.shape[1])
            group.broadcast(rows, owner)
            biases = None
            if bias is not None:
                biases = bias.detach()[own].contiguous() if here else bias.detach().new_empty(last - first)
                group.broadcast(biases, owner)
            yield first, rows, biases


def _item_rows(model: Any, items: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the rows and biases of items, ascending, from whoever has them. All processes call this together."""
    group, bias = model.group, model.item_bias
    table = model.item_embedding.detach()
    if bias is not None:
        table = torch.cat((table, bias.detach().unsqueeze(1)), 1)
    if model.replicated:
        rows = table[items]
    else:
        bounds = torch.tensor(model.item_cuts, device=items.device)
        want = torch.searchsorted(items, bounds).diff()
        serve = group.swap(want.to(group.device)).tolist()
        asked = group.exchange(items.to(group.device), want.tolist(), serve) - model.item_cuts[group.rank]
        rows = group.exchange(table[asked], serve, want.tolist())
    if bias is None:
        return rows, None
    return rows[:, :-1].contiguous(), rows[:, -1].contiguous()


def _columns(matrix: Interactions, users: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Return the CSR of some users and of items [first, last), counted from the first of them: indptr, indices."""
    counts = matrix.indptr[users + 1] - matrix.indptr[users]
    ends = counts.cumsum(0)
    at = torch.arange(int(ends[-1]) if len(ends) else 0, device=users.device)
    at = at + (matrix.indptr[users] - ends + counts).repeat_interleave(counts, output_size=at.numel())
    items = matrix.indices[at].long()
    inside = (items >= first) & (items < last)
    before = torch.nn.functional.pad(inside.cumsum(0), (1, 0))
    indptr = before[torch.nn.functional.pad(ends, (1, 0))]
    return indptr, items[inside] - first


# --- ranks that add up ------------------------------------------------------------------------------------------


def _rank(model: Any, train: Interactions | None, test: Interactions, k: int) -> RankedTensors:
    """Rank the held-out items of the own users among the items of all parts."""
    group = model.group
    users = np.flatnonzero(test.user_counts.cpu().numpy())
    rounds = int(group.max_(torch.tensor([-(-len(users) // BLOCK_USERS)], device=group.device)))
    device = model.user_embedding.device
    chosen = torch.from_numpy(users).to(device)
    seen = None if train is None else _without(train.to(device), test.to(device))
    parts = []
    for number in range(max(1, rounds)):
        block = chosen[number * BLOCK_USERS : (number + 1) * BLOCK_USERS]
        parts.append(_rank_block(model, block, seen, test.to(device), k))
    scores, greater, equal, candidates, top, failed = zip(*parts, strict=True)
    wrong = any(failed)
    if group.any(wrong):
        raise ValueError("model: NaN among the scores" + (" of a user of this process" if wrong else ""))
    counts = test.user_counts.to(device)[chosen]
    return RankedTensors(
        users=users,
        indptr=torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
        items=test.indices.to(device).long(),
        scores=torch.cat(scores),
        greater=torch.cat(greater),
        equal=torch.cat(equal),
        num_candidates=torch.cat(candidates),
        top_items=torch.cat(top),
        failed=torch.tensor(len(users)),
        num_users=model.num_users,
        num_items=model.num_items,
    )


def _without(matrix: Interactions, other: Interactions) -> Interactions:
    """Return the interactions of a matrix that another one lacks."""
    users, items = matrix.pairs()
    theirs, kept = other.pairs()
    width = matrix.num_items
    keep = ~torch.isin(users.long() * width + items.long(), theirs.long() * width + kept.long(), assume_unique=True)
    return matrix.take(keep.cpu().numpy())


def _rank_block(
    model: Any, users: Tensor, seen: Interactions | None, test: Interactions, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, bool]:
    """Rank for some of the own users.

    The rows of all held-out items of the block stand behind those of each part of the items. A held-out item is ranked
    by its row there, so that its score is compared with those of a part that it does not belong to. What those rows
    count among themselves is subtracted.
    """
    positives = _columns(test, users, 0, model.num_items)
    distinct, place = positives[1].unique(return_inverse=True)
    rows, biases = _item_rows(model, distinct)
    own = model.user_embedding.detach()[users].contiguous()
    offset = positives[0].cpu()
    scores, among, level, failed = _counts(own, rows, biases, offset, positives[0], place, None)
    # (One too many stands level with a held-out item: its own row in the part that it belongs to.)
    greater, equal = torch.zeros_like(among), torch.full_like(level, -1)
    best = _Best(users.numel(), k, own)
    for first, part, bias in _item_parts(model):
        excluded = None if seen is None else _columns(seen, users, first, first + len(part))
        both = torch.cat((part, rows))
        both_biases = None if bias is None or biases is None else torch.cat((bias, biases))
        above, ties, nan = _counts(own, both, both_biases, offset, positives[0], place + len(part), excluded)[1:]
        greater += above - among
        equal += ties - level
        failed |= nan
        if k:
            found, values, nan = _best_of_part(own, part, bias, excluded, k)
            best.add(found, values, first)
    candidates = torch.full((users.numel(),), model.num_items, device=users.device)
    if seen is not None:
        candidates -= seen.indptr[users + 1] - seen.indptr[users]
    return scores, greater, equal, candidates, best.items, failed


def _counts(
    users: Tensor,
    items: Tensor,
    bias: Tensor | None,
    offset: Tensor,
    indptr: Tensor,
    indices: Tensor,
    excluded: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Return the scores of items, how many others are above and level, and whether a score is NaN."""
    everyone = torch.arange(len(users), device=users.device)
    order = _by_row(indptr, indices)
    seen, its_items = excluded if excluded is not None else (None, None)
    table = items.contiguous()
    scores, greater, equal, _, _, failed = _ops.rank_factors(
        users, table, bias, everyone, offset, indptr, indices[order], seen, its_items, 0
    )
    back = torch.empty_like(order)
    back[order] = torch.arange(order.numel(), device=order.device)
    return scores[back], greater[back], equal[back], int(failed) >= 0


def _by_row(indptr: Tensor, indices: Tensor) -> Tensor:
    """Return the order that sorts each row."""
    rows = torch.arange(len(indptr) - 1, device=indptr.device).repeat_interleave(indptr.diff())
    order = indices.argsort(stable=True)
    return order[rows[order].argsort(stable=True)]


class _Best:
    """The best items of some users so far: items [n, k], -1 where there is none, and scores [n, k]."""

    def __init__(self, users: int, k: int, like: Tensor) -> None:
        self.items = torch.full((users, k), -1, dtype=torch.int64, device=like.device)
        self.scores = torch.full((users, k), -torch.inf, dtype=like.dtype, device=like.device)

    def add(self, items: Tensor, scores: Tensor, first: int) -> None:
        """Take in the best of a part whose items are numbered from ``first``, above all that were seen before."""
        k = self.items.shape[1]
        both = torch.cat((self.scores, scores), 1)
        numbers = torch.cat((self.items, torch.where(items < 0, -1, items + first)), 1)
        # Stable, and parts come in the order of their items: of equal scores the lower number comes first.
        order = both.sort(dim=1, descending=True, stable=True).indices[:, :k]
        self.scores, self.items = both.gather(1, order), numbers.gather(1, order)
        self.items.masked_fill_(self.scores == -torch.inf, -1)


def _best_of_part(
    users: Tensor, rows: Tensor, bias: Tensor | None, excluded: tuple[Tensor, Tensor] | None, k: int
) -> tuple[Tensor, Tensor, bool]:
    """Return the best items of a part, counted from its first, their scores, and whether a score is NaN."""
    width = min(k, len(rows))
    everyone = torch.arange(len(users), device=users.device)
    indptr, indices = excluded if excluded is not None else (None, None)
    if _ops.has_op("rank_factors", users.device):
        items, scores, failed = _ops.best_items(users.contiguous(), rows, bias, everyone, indptr, indices, width)
        return items, scores, int(failed) >= 0
    scores = users @ rows.T
    scores = scores if bias is None else scores + bias
    items, values, failed = _ops.best_of_scores(scores, everyone, len(users), indptr, indices, width)
    return items, values, int(failed) >= 0


# --- sums over the processes ------------------------------------------------------------------------------------


def _value(table: MetricTable, name: str, cutoff: int, group: Group, num_users: int) -> float:
    """Return a metric over the users of all processes."""
    ranking, counts, device = table.ranking, table.counts, table.device

    def total(*numbers: Tensor) -> list[float]:
        values = torch.stack([number.double().reshape(()) for number in numbers])
        return [float(value) for value in group.sum_(values)]

    if name in PER_USER_METRICS or name in WEIGHTED_METRICS:
        values = table.per_user(name, cutoff)
        known = ~values.isnan()
        summed, number = total(tensors.ordered_sum(torch.where(known, values, 0.0)), known.sum())
        return summed / number if number else float("nan")
    if name == "pairwise_accuracy":
        pairs = table.sizes * (ranking.num_candidates - table.sizes)
        right, number = total(tensors.ordered_sum(table.by_rank[2]), tensors.ordered_sum(pairs.double()))
        return right / number if number else float("nan")
    if name == "pri":
        sums = [torch.zeros(ranking.num_items, dtype=torch.float64, device=device) for _ in range(2)]
        for into, values in zip(sums, (table.several.double(), table.by_rank[5]), strict=True):
            into.index_add_(0, ranking.items, torch.where(table.several, values, 0.0))
            group.sum_(into)
        return float(tensors.pri_of_means(sums[0], sums[1] / sums[0], counts))
    if name == "pcc":
        return _pooled_correlation(table, total, group)
    exposure = group.sum_(table.exposure(name, cutoff).clone())
    if name == "tail_share":
        return float(tensors.share_of_exposure(exposure, table.tail))
    functions = {
        "coverage": tensors.coverage_of_exposure,
        "gini": tensors.gini_of_exposure,
        "entropy": tensors.entropy_of_exposure,
    }
    return float(functions[name](exposure))


def _pooled_correlation(table: MetricTable, total: Callable[..., list[float]], group: Group) -> float:
    """Return Pearson's correlation of popularity and score over the positives of all processes."""
    ranking, part = table.ranking, table.several
    pair = table.counts[ranking.items], ranking.scores.double()
    extremes = torch.full((4,), -torch.inf, dtype=torch.float64, device=table.device)
    for place, values in enumerate(pair):
        chosen = values[part]
        if chosen.numel():
            extremes[2 * place], extremes[2 * place + 1] = chosen.amax(), -chosen.amin()
    extremes = group.max_(extremes)
    number, *sums = total(part.sum(), *(torch.where(part, values, 0.0).sum() for values in pair))
    if number < 2 or any(float(extremes[i]) == -float(extremes[i + 1]) for i in (0, 2)):
        return float("nan")
    x, y = (torch.where(part, values - mean / number, 0.0) for values, mean in zip(pair, sums, strict=True))
    xy, xx, yy = total((x * y).sum(), (x * x).sum(), (y * y).sum())
    return max(-1.0, min(1.0, xy / math.sqrt(xx * yy)))
