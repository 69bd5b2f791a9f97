"""Rank held-out positives: one pass over users x items, from which every metric follows.

:func:`rank` streams over blocks of users. For each block it takes the scores of all items and leaves out the excluded
interactions. It counts how many candidates are above and level with each held-out positive, without sorting, and
selects the top k. What it keeps is small: two counts per positive and k items per user.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zerosum_ext import _ops
from zerosum_ext._checks import require_ids, require_positive_int
from zerosum_ext._inference import inference
from zerosum_ext._types import ArrayLike, Scorer
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.evaluation.sources import (
    Data,
    Exclude,
    Factors,
    as_floating,
    require_interactions,
    require_same_shape,
    score_source,
)

# Elements of a block of scores [users, items] that a model is asked for at once (64 MiB of float32), and users a call
# of the fused pass, which an interrupt has to wait for.
BLOCK_ELEMENTS = 1 << 24
BLOCK_USERS = 1 << 16


@dataclass(frozen=True)
class Ranking:
    """The places of each user's held-out positives among all candidates, and each user's top k.

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

    Example:
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> ranking = zx.rank(zx.MatrixFactorization(*data.shape, 8, seed=0), None, data, k=2, exclude=None)
        >>> ranking.users.tolist(), ranking.top_items.shape
        ([0, 1, 2], (3, 2))
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
        """Return the user of each positive, int64 [P]."""
        return np.repeat(self.users, np.diff(self.indptr))

    def select(self, users: ArrayLike) -> Ranking:
        """Return the part of this ranking that belongs to the given users (integers, or a mask over all users)."""
        keep = np.isin(self.users, require_ids("users", users, self.num_users).cpu().numpy())
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
TENSORS = ("indptr", "items", "scores", "greater", "equal", "num_candidates", "top_items")

# A number that is known when the values of metrics are, and what raises where it tells that they are none.
Check = tuple[Tensor, Callable[[float], None]]


@dataclass(frozen=True)
class RankedTensors:
    """A :class:`Ranking` on the device that it was made on; only the users are a NumPy array.

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
    def of(cls, ranking: Ranking) -> RankedTensors:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(ranking, name))) for name in TENSORS}
        shape = {"num_users": ranking.num_users, "num_items": ranking.num_items}
        return cls(users=ranking.users, failed=torch.tensor(len(ranking.users)), **tensors, **shape)  # type: ignore[arg-type]

    def on_host(self) -> Ranking:
        self.complain(float(self.failed))
        arrays = {name: getattr(self, name).cpu().numpy() for name in TENSORS}
        return Ranking(users=self.users, **arrays, num_users=self.num_users, num_items=self.num_items)

    def complain(self, failed: float) -> None:
        if failed < len(self.users):
            raise ValueError(f"model: NaN among the scores of user {self.users[int(failed)]}")


def rank(
    model: Scorer,
    train: Data | None,
    test: Data,
    *,
    k: int = 20,
    exclude: Exclude = "train",
    users: ArrayLike | None = None,
    batch_size: int | None = None,
) -> Ranking:
    """Rank every user's held-out positives among all items, and select the user's top k.

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

    Example:
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> model = zx.MatrixFactorization(*data.shape, embedding_dim=8, seed=0)
        >>> zx.rank(model, None, data, k=2, exclude=None).top_items.shape
        (3, 2)
    """
    return rank_tensors(model, train, test, k, exclude, users, batch_size).on_host()


def rank_tensors(
    model: Scorer,
    train: Data | None,
    test: Data,
    k: int,
    exclude: Exclude,
    users: ArrayLike | None,
    batch_size: int | None,
    top_only: bool = False,
) -> RankedTensors:
    """Rank as :func:`rank` does, and leave the results on their device.

    With ``top_only`` ranks beyond k need not be known.
    """
    held_out = require_interactions(test, "test")
    excluded = excluded_interactions(exclude, train, held_out)
    k = require_positive_int("k", k, minimum=0)
    if batch_size is not None:
        batch_size = require_positive_int("batch_size", batch_size)
    with inference(model):
        source = score_source(model, *held_out.shape)
        return rank_users(source, users, held_out, excluded, k, batch_size, top_only)


def excluded_interactions(exclude: Exclude, train: Data | None, held_out: Interactions) -> Interactions | None:
    if isinstance(exclude, str):
        if exclude != "train":
            raise ValueError(f"exclude: expected 'train', None or an interaction matrix, got {exclude!r}")
        exclude = train
    excluded = None if exclude is None else require_interactions(exclude, "exclude")
    if excluded is not None:
        require_same_shape(excluded.shape, held_out.shape)
    return excluded


def evaluated_users(counts: np.ndarray, users: ArrayLike | None) -> np.ndarray:
    """Return those of the users (None: all) who have a positive, ascending."""
    evaluated = np.flatnonzero(counts)
    if users is None:
        return evaluated
    return np.intersect1d(evaluated, require_ids("users", users, counts.size).cpu().numpy())


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    # Pageable memory has been read when the call returns: CUDA may wait for the stream to do so, but no longer.
    return torch.from_numpy(array).to(device, non_blocking=True)


@dataclass(frozen=True)
class HeldOut:
    """The users whose positives are evaluated, and the places of these: all that the host has to know."""

    interactions: Interactions
    users: np.ndarray
    offset: np.ndarray  # int64 [n + 1], of each one's positives among all of them
    start: np.ndarray  # int64 [n], of the same in the interactions

    @classmethod
    def of(cls, interactions: Interactions, users: ArrayLike | None) -> HeldOut:
        indptr = interactions.indptr.cpu().numpy()
        counts = np.diff(indptr)
        evaluated = evaluated_users(counts, users)
        offset = np.concatenate(([0], np.cumsum(counts[evaluated])))
        return cls(interactions, evaluated, offset, indptr[evaluated])

    def items(self, device: torch.device) -> Tensor:
        """Return the positives, int64 [P]."""
        indices = self.interactions.indices.to(device)
        if self.offset[-1] < indices.numel():
            place = np.arange(self.offset[-1]) + np.repeat(self.start - self.offset[:-1], np.diff(self.offset))
            indices = indices[to_device(place, device)]
        return indices.long()


def rank_users(
    source: Factors | Callable[[Tensor], Any],
    users: ArrayLike | None,
    interactions: Interactions,
    excluded: Interactions | None,
    k: int,
    batch_size: int | None = None,
    top_only: bool = False,
) -> RankedTensors:
    num_users, num_items = interactions.shape
    held_out = HeldOut.of(interactions, users)
    evaluated, offset = held_out.users, held_out.offset
    if isinstance(source, tuple):
        step = BLOCK_USERS
    else:
        step = batch_size or max(1, BLOCK_ELEMENTS // max(1, num_items))

    @functools.cache
    def on(device: torch.device) -> tuple[Tensor, Interactions, Interactions | None]:
        others = None if excluded is None else excluded.to(device)
        return to_device(evaluated, device), interactions.to(device), others

    parts, failed = [], []
    for first in range(0, evaluated.size, step) or range(1):  # nobody is one block of no users
        *ranked, row = _rank_block(source, evaluated, offset, slice(first, first + step), on, num_items, k, top_only)
        parts.append(ranked)
        failed.append(torch.where(row < 0, evaluated.size, row + first))
    target, greater, equal, candidates, top = (
        torch.cat(column) if len(parts) > 1 else column[0] for column in zip(*parts, strict=True)
    )
    device = target.device
    result = RankedTensors(
        users=evaluated,
        indptr=to_device(offset, device),
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
    """Rank some users on the device of the scores: (scores, greater, equal, candidates, top items, failed)."""
    op: Callable[..., tuple[Tensor, ...]]
    if isinstance(source, tuple):
        device = source[0].device
        op = partial(_ops.rank_factors, *source, top_only=top_only)
    else:
        asked = torch.from_numpy(users[part])
        scores = as_floating(source(asked))
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


def join_rankings(parts: Sequence[Ranking]) -> Ranking:
    """Return one ranking of several, users ascending, each once."""
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
