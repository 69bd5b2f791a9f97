"""Interactions that are spread over processes: each holds all interactions of the users that it owns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zerosum_ext import reference
from zerosum_ext._checks import require_positive_int
from zerosum_ext._group import Group, as_group
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.data.sampling import signed_seed

__all__ = ["ShardedInteractions", "balanced_cuts", "digest_of"]

# The stream of random numbers that splits are drawn from: an epoch number that no training reaches.
_SPLIT_EPOCH = 2**32 - 1


class ShardedInteractions:
    """The interactions of all processes, of which this one holds those of its own users.

    Users have numbers from 0 over all processes; those of rank r are ``user_cuts[r] .. user_cuts[r + 1]``. Items have
    the same numbers everywhere. Negatives stay exact, since a user's whole row is in one place.

    Attributes:
        local: :class:`~zerosum_ext.Interactions` of the own users, [own users, num_items].
        group: the processes.
        user_cuts: where the users of each rank begin, and their number at the end.
        shape: (users, items) over all processes.
        nnz: the number of interactions over all processes.
        first: the number of interactions of the ranks before this one.
        item_ids: external ids of the own share of the items, or None. See ``item_cuts``.
        item_cuts: where the share of each rank begins among ``item_ids`` of all.
    """

    def __init__(
        self,
        local: Interactions,
        mesh: Any,
        *,
        item_ids: np.ndarray | None = None,
        item_cuts: Sequence[int] | None = None,
    ) -> None:
        self.local = local
        self.group: Group = as_group(mesh)
        users = self.group.counts(local.num_users)
        self.user_cuts = [sum(users[:rank]) for rank in range(len(users) + 1)]
        entries = self.group.counts(local.nnz)
        self.first, self.nnz = sum(entries[: self.group.rank]), sum(entries)
        items = torch.tensor([local.num_items, -local.num_items], device=self.group.device)
        if int(self.group.max_(items).sum()) != 0:
            raise ValueError(f"local: expected as many items in every process, got {local.num_items} here")
        self.shape = (self.user_cuts[-1], local.num_items)
        self.item_ids, self.item_cuts = item_ids, None if item_cuts is None else list(item_cuts)
        self._popularity: Tensor | None = None

    @classmethod
    def from_interactions(cls, interactions: Any, mesh: Any) -> ShardedInteractions:
        """Return this process's share of interactions that every process holds.

        Users are cut in their order, so that each process has about as many interactions as the others.

        Args:
            interactions: :class:`~zerosum_ext.Interactions` or a scipy or torch CSR, the same in every process.
            mesh: a DeviceMesh or a process group.

        Raises:
            ValueError: another process holds others.
        """
        data, group = Interactions.from_any(interactions), as_group(mesh)
        if group.size > 1:
            group.agree("interactions", digest_of(data))
        cuts = balanced_cuts(data, group.size)
        return cls(data.rows(cuts[group.rank], cuts[group.rank + 1]), group)

    @property
    def num_users(self) -> int:
        """The number of users over all processes."""
        return self.shape[0]

    @property
    def num_items(self) -> int:
        """The number of items."""
        return self.shape[1]

    @property
    def device(self) -> torch.device:
        """The device of the own interactions."""
        return self.local.device

    @property
    def first_user(self) -> int:
        """The number of the first own user."""
        return self.user_cuts[self.group.rank]

    @property
    def popularity(self) -> Tensor:
        """The number of interactions of each item over all processes, int64 [num_items]. All processes ask together."""
        if self._popularity is None:
            counts = self.local.popularity.to(self.group.device, torch.int64, copy=True)
            self._popularity = self.group.sum_(counts).to(self.device)
        return self._popularity

    def to(self, device: torch.device | str) -> ShardedInteractions:
        """Return the same interactions on a device."""
        moved = object.__new__(ShardedInteractions)
        moved.__dict__.update(self.__dict__)
        moved.local = self.local.to(device)
        moved._popularity = None if self._popularity is None else self._popularity.to(device)
        return moved

    def split_random(
        self, ratios: Sequence[float] = (0.8, 0.1, 0.1), *, seed: int = 0
    ) -> tuple[ShardedInteractions, ...]:
        """Return parts, each with every interaction in it with the given probability.

        Interaction number n, counted over all processes, goes to the same part whatever the number of processes. The
        parts have about the given sizes, not exactly.

        Args:
            ratios: positive numbers that sum to 1.
            seed: of the draw.
        """
        shares = np.asarray(ratios, dtype=np.float64)
        if shares.ndim != 1 or len(shares) < 2 or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
            raise ValueError(f"ratios: expected positive numbers that sum to 1, got {tuple(ratios)}")
        require_positive_int("seed", seed, minimum=0)
        numbers = torch.arange(self.first, self.first + self.local.nnz)
        draw = reference.draws(numbers, signed_seed(seed), _SPLIT_EPOCH, 0, 0, 0)[0]
        unit = ((draw >> 11) & ((1 << 53) - 1)).double() * 2.0**-53
        part = torch.searchsorted(torch.from_numpy(shares.cumsum()[:-1]), unit, right=True).numpy()
        return tuple(self.with_local(self.local.take(part == number)) for number in range(len(shares)))

    def digest(self) -> str:
        """Return a short name of the interactions of all processes, who ask together, whatever their number."""
        users, items = self.local.pairs()
        # A sum of well mixed numbers, one of each interaction: its order, and who adds, make no difference.
        numbers = ((users + self.first_user) * 0x9E3779B97F4A7C1 + items) ^ (items << 21)
        numbers = (numbers ^ (numbers >> 29)) * 0x3F58476D1CE4E5B9
        total = ((numbers ^ (numbers >> 32)) * 0x14D049BB133111EB).sum().reshape(1).to(self.group.device)
        return f"{self.nnz:x}-{int(self.group.sum_(total)) % 2**64:016x}"

    def with_local(self, local: Interactions) -> ShardedInteractions:
        """Return other interactions of the same users and items."""
        return ShardedInteractions(local, self.group, item_ids=self.item_ids, item_cuts=self.item_cuts)

    def __repr__(self) -> str:
        own = f"{self.local.num_users:,} users and {self.local.nnz:,} interactions here"
        return (
            f"ShardedInteractions({self.num_users:,} users x {self.num_items:,} items, {self.nnz:,} interactions, rank "
            f"{self.group.rank} of {self.group.size}: {own})"
        )


def digest_of(interactions: Interactions | ShardedInteractions) -> str:
    """Return a short name of the interactions themselves, the same on every machine."""
    if isinstance(interactions, ShardedInteractions):
        return interactions.digest()
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (interactions.indptr, interactions.indices):
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def balanced_cuts(interactions: Interactions, parts: int) -> list[int]:
    """Return where ``parts`` ranges of users with about as many interactions begin, and the end of the last."""
    aims = torch.arange(1, parts, dtype=torch.float64) * (interactions.nnz / parts)
    ends = torch.searchsorted(interactions.indptr.cpu().double(), aims).clamp(max=interactions.num_users)
    return [0, *ends.tolist(), interactions.num_users]
