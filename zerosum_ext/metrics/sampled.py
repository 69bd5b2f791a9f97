"""Sampled ranking: each positive among itself and some negatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from zerosum_ext.metrics import tensors
from zerosum_ext.metrics.inputs import as_numbers, require_same_length


def sampled_ranks(positive_scores: Any, negative_scores: Any) -> np.ndarray:
    """Return the 1-based rank of each positive among itself and its negatives; ties count against it.

    Args:
        positive_scores: numbers [P].
        negative_scores: numbers [P, M], the scores of the M negatives each positive is ranked among.
    """
    p = as_numbers(positive_scores, "positive_scores")
    n = as_numbers(negative_scores, "negative_scores", ndim=2)
    require_same_length(positive_scores=p, negative_scores=n)
    return tensors.sampled_ranks(torch.tensor(p), torch.tensor(n)).numpy()


def sampled_hit(positive_scores: Any, negative_scores: Any, k: int = 10) -> float:
    """Return Hit@k against sampled negatives, the share of positives with :func:`sampled_ranks` <= k [RCS22].

    Range 0 to 1, ideal 1. A figure of the sample, comparable only at the same number of negatives.
    """
    return float(tensors.hit_of_ranks(torch.from_numpy(sampled_ranks(positive_scores, negative_scores)), k))


def sampled_ndcg(positive_scores: Any, negative_scores: Any, k: int = 10) -> float:
    """Return NDCG@k against sampled negatives, the mean over positives of 1[rank <= k] / log2(rank + 1) [RCS22].

    Range 0 to 1, ideal 1. A figure of the sample, comparable only at the same number of negatives.
    """
    return float(tensors.ndcg_of_ranks(torch.from_numpy(sampled_ranks(positive_scores, negative_scores)), k))
