"""The ops that rank held-out positives among all items, and the metrics that follow from their counts."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from zerosum_ext import reference
from zerosum_ext._ops.common import fake_kernel, has_op, kernel_or_definition, overload
from zerosum_ext._types import Ties
from zerosum_ext.reference import compute_dtype

Ranked = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

#: Numbers of the ways to treat ties, as csrc/common/ranking.h counts them.
TIES: dict[str, int] = {"average": 0, "pessimistic": 1, "optimistic": 2}

_rank_factors = overload("rank_factors")
_user_metrics = overload("user_metrics")

rank_scores = kernel_or_definition("rank_scores", reference.rank_scores)
list_metrics = kernel_or_definition("list_metrics", reference.list_metrics)


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
    top_only: bool = False,
) -> Ranked:
    """Rank held-out positives by the scores ``user_factors @ item_factors.T + item_bias``.

    Candidates are all items but the excluded ones; a held-out positive is always one. A user's results do not depend
    on the other users, nor on the number of threads.

    Args:
        user_factors, item_factors, item_bias: contiguous [U, d], [I, d] and [I] or None; float32 or float64.
        users: int64 [n], the users to rank for: rows of user_factors and of the CSR matrices.
        offset: int64 [n + 1], where each user's positives lie in the results: running totals of their numbers. Always
            on the CPU; one on a GPU would have to be waited for.
        indptr, indices: CSR of the held-out positives [U, I], sorted; int64, and int32 or int64.
        excluded_indptr, excluded_indices: the same of the items that are not candidates, or None.
        k: length of the lists.
        top_only: ranks beyond k need not be known: ``greater`` is then at least k and ``equal`` anything. Less work.

    Returns:
        scores [P] of the positives; greater, equal int64 [P], how many candidates are above, and how many others are
        level; candidates int64 [n]; top_items int64 [n, k], best first, of equal ones the lower number first, without
        those scored -inf, padded by -1; failed int64 [1], a row of ``users`` with a candidate scored NaN (the other
        results are then meaningless), or -1.
    """
    matrices = (users, offset, indptr, indices, excluded_indptr, excluded_indices, k)
    if has_op("rank_factors", user_factors.device):
        scores, greater, equal, candidates, top_items, failed, _ = _rank_factors(
            user_factors, item_factors, item_bias, *matrices, top_only
        )
        return scores, greater, equal, candidates, top_items, failed
    # A matrix product by torch and, where there is a kernel for it, the ranking of its result: so on CUDA.
    kernel = rank_scores if has_op("rank_scores", user_factors.device) else None
    return reference.rank_factors(user_factors, item_factors, item_bias, *matrices, rank=kernel)


def best_items(
    user_factors: Tensor,
    item_factors: Tensor,
    item_bias: Tensor | None,
    users: Tensor,
    excluded_indptr: Tensor | None,
    excluded_indices: Tensor | None,
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the lists of :func:`rank_factors` alone, where ``has_op("rank_factors", device)``.

    Returns:
        top_items int64 [n, k] and their scores [n, k], -inf where there is no item; failed, as there.
    """
    none = excluded_indices.new_empty(0) if excluded_indices is not None else users.new_empty(0)
    nobody = users.new_zeros(user_factors.shape[0] + 1)
    offset = users.new_zeros(users.shape[0] + 1)
    found = _rank_factors(
        user_factors, item_factors, item_bias, users, offset, nobody, none, excluded_indptr, excluded_indices, k
    )
    return found[4], found[6], found[5]


def best_of_scores(
    scores: Tensor,
    users: Tensor,
    num_users: int,
    excluded_indptr: Tensor | None,
    excluded_indices: Tensor | None,
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the lists of :func:`rank_scores` alone, for ``users`` out of ``num_users``.

    Returns:
        What :func:`best_items` returns; the scores have the dtype of ``scores``.
    """
    none = excluded_indices.new_empty(0) if excluded_indices is not None else users.new_empty(0)
    offset = torch.zeros(users.shape[0] + 1, dtype=torch.int64)  # on the host, so that a GPU is not waited for
    nobody = users.new_zeros(num_users + 1)
    found = rank_scores(scores, users, offset, nobody, none, excluded_indptr, excluded_indices, k)
    items, failed = found[4], found[5]
    values = scores.gather(1, items.clamp(min=0)).masked_fill(items < 0, -torch.inf)
    return items, values, failed


def user_metrics(
    offset: Tensor, greater: Tensor, equal: Tensor, candidates: Tensor, popularity: Tensor, cutoffs: Tensor, ties: Ties
) -> tuple[Tensor, ...]:
    """Return metrics of n users from the counts of a ranking, as :func:`zerosum_ext.reference.user_metrics` does."""
    if has_op("user_metrics", offset.device):
        return tuple(_user_metrics(offset, greater, equal, candidates, popularity, cutoffs, TIES[ties]))
    return reference.user_metrics(offset, greater, equal, candidates, popularity, cutoffs, ties)


def _fake_ranking(like: Tensor, dtype: torch.dtype, users: Tensor, k: int) -> tuple[Tensor, ...]:
    # How many positives the users have is written in `offset`, a value.
    positives, n = torch.library.get_ctx().new_dynamic_size(), users.shape[0]
    shapes = ((positives,), (positives,), (n,), (n, k), (1,))
    return like.new_empty((positives,), dtype=dtype), *(users.new_empty(s, dtype=torch.int64) for s in shapes)


@fake_kernel("rank_factors", elsewhere=("offset",))
def _fake_rank_factors(given: SimpleNamespace) -> tuple[Tensor, ...]:
    factors, users, k = given.user_factors, given.users, given.k
    return *_fake_ranking(factors, factors.dtype, users, k), factors.new_empty((users.shape[0], k))


@fake_kernel("rank_scores", elsewhere=("offset",))
def _fake_rank_scores(given: SimpleNamespace) -> tuple[Tensor, ...]:
    return _fake_ranking(given.scores, compute_dtype(given.scores.dtype), given.users, given.k)


@fake_kernel("user_metrics")
def _fake_user_metrics(given: SimpleNamespace) -> tuple[Tensor, ...]:
    n, popularity = given.candidates.shape[0], given.popularity
    shapes = ((6, given.cutoffs.shape[0], n), (n,), (n,), (n,), (n,), popularity.shape)
    return tuple(popularity.new_empty(shape) for shape in shapes)


@fake_kernel("list_metrics")
def _fake_list_metrics(given: SimpleNamespace) -> tuple[Tensor, Tensor, Tensor]:
    lists, values = given.lists, given.values
    count, k, n, items = values.shape[0], given.cutoffs.shape[0], lists.shape[0], values.shape[1]
    return values.new_empty((count, k, n)), lists.new_empty((k, n)), lists.new_empty((k, items))
