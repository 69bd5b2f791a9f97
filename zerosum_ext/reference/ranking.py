"""The ranking ops in plain PyTorch: the definition, the tests' oracle, and the fall-back without kernels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from zerosum_ext import metrics
from zerosum_ext._types import Ties
from zerosum_ext.metrics.groups import group_ranks, group_spearman, tie_blocks
from zerosum_ext.reference.losses import compute_dtype

# Elements of a [users, items] block of scores in the pass (64 MiB of float32). A kernel that ranks a block needs no
# masks beside it, and is started seldom when blocks are large (512 MiB of float32).
BLOCK_ELEMENTS = 1 << 24
KERNEL_BLOCK_ELEMENTS = 1 << 27

Ranked = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def rank_factors(
    user_factors: Tensor,
    item_factors: Tensor,
    item_bias: Tensor | None,
    users: Tensor,
    offset: Tensor,
    indptr: Tensor,
    indices: Tensor,
    excluded_indptr: Tensor | None,
    excluded_indices: Tensor | None,
    k: int,
    rank: Callable[..., Ranked] | None = None,
) -> Ranked:
    """Rank as :func:`zerosum_ext._ops.rank_factors` does; ``rank`` is a kernel that ranks a block of scores, if any."""
    num_items = item_factors.shape[0]
    step = max(1, (BLOCK_ELEMENTS if rank is None else KERNEL_BLOCK_ELEMENTS) // max(1, num_items))
    rank = rank or rank_scores
    parts = []
    for start in range(0, max(1, users.numel()), step):
        block = users[start : start + step]
        scores = user_factors[block] @ item_factors.T
        if item_bias is not None:
            scores += item_bias
        part = offset[start : start + step + 1]
        *ranked, failed = rank(scores, block, part - part[0], indptr, indices, excluded_indptr, excluded_indices, k)
        # Without a branch on the value: a GPU is not waited for.
        parts.append((*ranked, torch.where(failed < 0, users.numel(), failed + start)))
    scores, greater, equal, candidates, top_items, failed = (torch.cat(column) for column in zip(*parts, strict=True))
    failed = failed.amin(0, keepdim=True)
    return scores, greater, equal, candidates, top_items, torch.where(failed < users.numel(), failed, -1)


def rank_scores(
    scores: Tensor,
    users: Tensor,
    offset: Tensor,
    indptr: Tensor,
    indices: Tensor,
    excluded_indptr: Tensor | None,
    excluded_indices: Tensor | None,
    k: int,
) -> Ranked:
    """Rank held-out positives by given scores [n, I] of any floating dtype; row r belongs to ``users[r]``.

    float16 and bfloat16 are ranked and returned as float32. Arguments and results are those of
    :func:`zerosum_ext._ops.rank_factors`.
    """
    scores = scores.to(compute_dtype(scores.dtype))
    num_items = scores.shape[1]
    pos_row, pos_items = _rows(users, indptr, indices)
    candidate = torch.ones_like(scores, dtype=torch.bool)
    if excluded_indptr is not None and excluded_indices is not None:
        candidate[_rows(users, excluded_indptr, excluded_indices)] = False
    candidate[pos_row, pos_items] = True
    target = scores[pos_row, pos_items]
    greater = torch.empty_like(pos_items)
    equal = torch.empty_like(pos_items)
    step = max(1, BLOCK_ELEMENTS // max(1, num_items))
    for start in range(0, target.numel(), step):
        part = slice(start, start + step)
        others, level = scores[pos_row[part]], target[part, None]
        valid = candidate[pos_row[part]]
        greater[part] = ((others > level) & valid).sum(1)
        equal[part] = ((others == level) & valid).sum(1) - 1
    masked = torch.where(candidate, scores, -torch.inf)
    nan = torch.isnan(masked).any(1).nonzero()[:1, 0]
    failed = nan if nan.numel() else torch.full((1,), -1, device=scores.device)
    return target, greater, equal, candidate.sum(1), _top_k(masked, k), failed


def _rows(users: Tensor, indptr: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return (number among the users, item) of each of the users' interactions."""
    counts = indptr[users + 1] - indptr[users]
    row = torch.arange(users.numel(), device=users.device).repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    place = torch.arange(row.numel(), device=users.device) - first[row] + indptr[users][row]
    return row, indices[place].long()


def _top_k(scores: Tensor, k: int) -> Tensor:
    """Return the items of the k highest scores of each row, ties by ascending item, -1 where the score is -inf."""
    width = min(k, scores.shape[1])
    if width == 0 or scores.shape[0] == 0:
        return torch.full((scores.shape[0], k), -1, dtype=torch.int64, device=scores.device)
    last = scores.topk(width, dim=1).values[:, -1:]
    above = scores > last
    level = scores == last
    room = width - above.sum(1, keepdim=True)
    items = (above | (level & (level.cumsum(1) <= room))).nonzero()[:, 1]
    if items.numel() != scores.shape[0] * width:  # only with NaN, which the caller reports
        return torch.full((scores.shape[0], k), -1, dtype=torch.int64, device=scores.device)
    items = items.reshape(-1, width)
    values, order = scores.gather(1, items).sort(dim=1, descending=True, stable=True)
    items = items.gather(1, order).masked_fill_(values == -torch.inf, -1)
    return torch.nn.functional.pad(items, (0, k - width), value=-1)


def user_metrics(
    offset: Tensor,
    greater: Tensor,
    equal: Tensor,
    candidates: Tensor,
    popularity: Tensor,
    cutoffs: Tensor,
    ties: Ties,
) -> tuple[Tensor, ...]:
    """Return metrics of n users from the counts of a ranking, as :mod:`zerosum_ext.metrics` defines them.

    Args:
        offset, greater, equal, candidates: of :func:`zerosum_ext._ops.rank_factors`; every user has a positive.
        popularity: float64 [P], of the positives.
        cutoffs: int64 [K], at least 1.
        ties: "average", "pessimistic" or "optimistic".

    Returns:
        float64 results, NaN where undefined: at_k [6, K, n], of HR, recall, precision, NDCG, MRR and MAP; auc
        [n]; right [n], the number of (positive, negative) pairs in order; correlation [n], Spearman's of popularity and
        score among the positives; top_quantile [n], PopQ@1; quantile [P], (average place among the user's positives
        - 1) / (n_u - 1).
    """
    device = offset.device
    first, above, same, total, counts = (x.cpu().numpy() for x in (offset, greater, equal, candidates, popularity))
    sizes = np.diff(first)
    group = np.repeat(np.arange(sizes.size), sizes)
    ranks = metrics.positive_ranks(group, -above, above, same, ties)  # more above is a lower score
    functions = (
        metrics.hit_rate,
        metrics.recall,
        metrics.precision,
        metrics.ndcg,
        metrics.mrr,
        metrics.mean_average_precision,
    )
    at_k = np.empty((len(functions), cutoffs.numel(), sizes.size))
    for i, function in enumerate(functions):
        for j, k in enumerate(cutoffs.tolist()):
            at_k[i, j] = function(group, ranks, k, reduction="none")
    order, run, start, size = tie_blocks(group, above)
    positives_above, level = np.empty(group.size, np.int64), np.empty(group.size, np.int64)
    positives_above[order], level[order] = start[run], size[run] - 1
    negatives = total - sizes
    tied = same - level
    below = negatives[group] - (above - positives_above) - tied
    right, half = (np.bincount(group, weights=w, minlength=sizes.size) for w in (below, tied / 2))
    place = group_ranks(group, above)
    popularity_rank = group_ranks(group, -counts)
    best = np.lexsort((above, group))[first[:-1]] if group.size else np.zeros(0, np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        auc = (right + half) / (sizes * negatives)
        quantile = (place - 1) / (sizes[group] - 1)
        top_quantile = (popularity_rank[best] - 1) / (sizes - 1)
    correlation = group_spearman(group, sizes, counts, -above)
    return tuple(torch.from_numpy(x).to(device) for x in (at_k, auc, right, correlation, top_quantile, quantile))


def list_metrics(lists: Tensor, values: Tensor, cutoffs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Add up the first k items of lists, for each k of the cut-offs.

    Args:
        lists: int64 [n, L], -1 pads at the end.
        values: float64 [V, I], what each item counts.
        cutoffs: int64 [K].

    Returns:
        sums float64 [V, K, n] of the values; lengths int64 [K, n]; exposure int64 [K, I], in how many lists each item
        is.
    """
    num_items = values.shape[1]
    padded = torch.nn.functional.pad(values, (0, 1))  # -1 reads the appended 0
    sums, lengths, exposure = [], [], []
    for k in cutoffs.tolist():
        part = lists[:, :k]
        sums.append(padded[:, part].sum(-1))
        lengths.append((part >= 0).sum(1))
        exposure.append(torch.bincount(part[part >= 0], minlength=num_items))
    return torch.stack(sums, 1), torch.stack(lengths), torch.stack(exposure)
