"""Rank each held-out positive against some negatives of its user [RCS22]."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from zerosum_ext._checks import require_positive_int
from zerosum_ext._inference import inference
from zerosum_ext._types import ArrayLike, Scorer
from zerosum_ext.data.sampling import sample_negatives
from zerosum_ext.evaluation.ranking import Check, HeldOut, to_device
from zerosum_ext.evaluation.sources import Data, Factors, as_floating, require_interactions, score_source
from zerosum_ext.metrics import inputs, tensors


def sampled_ranks(
    model: Scorer,
    known: Data | None,
    test: Data,
    *,
    negatives: int | ArrayLike = 100,
    seed: int = 0,
    users: ArrayLike | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rank each held-out positive among itself and some negatives of its user; ties count against it [RCS22].

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
    users, places, (failed, complain) = rank_against_samples(model, known, test, negatives, seed, users)
    complain(float(failed))
    return users, places.cpu().numpy()


def rank_against_samples(
    model: Scorer, known: Data | None, test: Data, negatives: int | ArrayLike, seed: int, users: ArrayLike | None
) -> tuple[np.ndarray, Tensor, Check]:
    """Rank as :func:`sampled_ranks` does; return (users, ranks on the device of the scores, the check for NaN)."""
    interactions = require_interactions(test, "test")
    num_users, num_items = interactions.shape
    held_out = HeldOut.of(interactions, users)
    evaluated, offset = held_out.users, held_out.offset
    if isinstance(negatives, (int, np.integer)):
        size = require_positive_int("negatives", negatives)
        chosen = sample_negatives(
            interactions if known is None else require_interactions(known, "known"),
            evaluated,
            size,
            seed=seed,
            exclude=None if known is None else interactions,
            replacement=False,
        )
    else:
        given = inputs.as_integers(negatives, "negatives", ndim=2)
        if len(given) != num_users:
            raise ValueError(f"negatives: expected one row for each of {num_users} users, got {len(given)}")
        chosen = torch.from_numpy(given[evaluated])
        if chosen.numel() and (int(chosen.min()) < 0 or int(chosen.max()) >= num_items):
            raise ValueError(f"negatives: expected items in [0, {num_items})")
    step, places, failed = 512, [], []
    with inference(model):
        source = score_source(model, num_users, num_items)

        @functools.cache
        def on(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
            return held_out.items(device), chosen.to(device), to_device(evaluated, device)

        for first in range(0, evaluated.size, step) or range(1):
            part = slice(first, first + step)
            asked = torch.from_numpy(evaluated[part])
            scores = None if isinstance(source, tuple) else as_floating(source(asked))
            device = source[0].device if isinstance(source, tuple) else scores.device  # type: ignore[union-attr]
            items, others, index = on(device)
            here = offset[part.start : part.stop + 1]
            items, others, index = items[here[0] : here[-1]], others[part], index[part]
            row = to_device(np.repeat(np.arange(asked.numel()), np.diff(here)), device)
            if isinstance(source, tuple):
                positive_scores = _pair_scores(source, index[row], items)
                negative_scores = _pair_scores(source, index[:, None].expand_as(others), others)
            else:
                assert scores is not None
                positive_scores, negative_scores = scores[row, items], scores.gather(1, others)
            failed.append(positive_scores.isnan().any() | negative_scores.isnan().any())
            places.append(tensors.sampled_ranks(positive_scores, negative_scores[row]))
    bad = torch.stack(failed)
    block = torch.where(bad, torch.arange(len(failed), device=bad.device), len(failed)).amin()

    def complain(number: float) -> None:
        if number < len(failed):
            some = evaluated[int(number) * step : (int(number) + 1) * step]
            raise ValueError(f"model: NaN among the scores of users {some[0]} .. {some[-1]}")

    return np.repeat(evaluated, np.diff(offset)), torch.cat(places), (block, complain)


def _pair_scores(factors: Factors, users: Tensor, items: Tensor) -> Tensor:
    """Return the scores of (user, item) pairs, each the same sum whatever the shape: ties are exact."""
    user, item, bias = factors
    scores = (user[users] * item[items]).sum(-1)
    return scores if bias is None else scores + bias[items]
