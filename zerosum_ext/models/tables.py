"""The two embedding tables that most models have, and how parameters are drawn at the start."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zerosum_ext._checks import require_finite_number, require_positive_int
from zerosum_ext.models.base import Recommender

__all__ = ["TableRecommender", "normal", "seeded_generator", "xavier"]


def normal(shape: tuple[int, ...], std: float, generator: torch.Generator | None) -> Tensor:
    """Return float32 numbers from N(0, std^2)."""
    return torch.empty(shape).normal_(std=std, generator=generator)


def xavier(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """Return a float32 matrix from the uniform distribution of Glorot and Bengio."""
    return nn.init.xavier_uniform_(torch.empty(rows, columns), generator=generator)


def seeded_generator(seed: int | None) -> torch.Generator | None:
    """Return a generator on the CPU, so that a seed means the same parameters on every device.

    None returns None, which means torch's global generator.
    """
    return None if seed is None else torch.Generator().manual_seed(int(seed))


class TableRecommender(Recommender):
    """A recommender with two embedding tables."""

    def _set_up(
        self, num_users: int, num_items: int, width: int, init_std: float, generator: torch.Generator | None
    ) -> None:
        """Draw both tables from N(0, init_std^2), and keep the arguments for ``save``."""
        self.num_users = require_positive_int("num_users", num_users)
        self.num_items = require_positive_int("num_items", num_items)
        self.init_std = require_finite_number("init_std", init_std, minimum=0)
        self.user_embedding = nn.Parameter(normal((self.num_users, width), self.init_std, generator))
        self.item_embedding = nn.Parameter(normal((self.num_items, width), self.init_std, generator))
