"""The weights of interactions as weights of samples."""

from __future__ import annotations

import torch
from torch import Tensor

from zerosum_ext.data.interactions import Interactions
from zerosum_ext.data.sampling import checked_weights

__all__ = ["PairWeights"]


class PairWeights:
    """Look up the weights of (user, positive) pairs.

    Args:
        interactions: the training interactions, with :attr:`zerosum_ext.Interactions.weights`.

    Raises:
        ValueError: they have no weights, or one that is negative or not finite.
    """

    def __init__(self, interactions: Interactions) -> None:
        self.weights = checked_weights("sample_weight", interactions)
        users, items = interactions.pairs()
        self.num_items = interactions.num_items
        # Ascending, as the rows and the items in them are.
        self.keys = users * self.num_items + items

    def __call__(self, users: Tensor, positives: Tensor) -> Tensor:
        """Return the weight of each sample, float32 [B]: of two positives [B, 2] the mean."""
        pairs = (
            users * self.num_items + positives if positives.dim() == 1 else users[:, None] * self.num_items + positives
        )
        weights = self.weights[torch.searchsorted(self.keys, pairs)]
        return weights if positives.dim() == 1 else weights.mean(1)
