"""The samples of an epoch that belong to one process: those whose users it owns.

Sample number n of an epoch is the interaction that the epoch's shuffle puts there, with negatives that follow from n. A
process that owns some users runs the shuffle backwards for its own interactions, and so learns the numbers of its
samples without a look at the others'. Together the processes draw what a single one draws.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zerosum_ext import _ops, reference
from zerosum_ext._group import Group
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.data.sampling import NegativeSource, num_negatives, signed_seed

__all__ = ["OwnedSamples"]


class OwnedSamples:
    """Draw the samples of an epoch whose users this process owns, by ranges of their numbers in the epoch.

    It takes 16 bytes for each own sample of an epoch, and twice as much while an epoch begins.

    Args:
        interactions: those of the own users.
        group: the processes; all of them make their samples at the same time.
        popularity: the number of interactions of each item over all processes, for ``strategy="popularity"``.
        seed: as in :class:`~zerosum_ext.TripletLoader`.
        positives: 1 or 2 of each sample.
        negatives: the number of negatives of each sample.
        draws: how often each interaction occurs in an epoch.
        exclude: further interactions of the own users that are not drawn as negatives.
        strategy: "uniform" or "popularity".

    Attributes:
        num_samples: the number of samples of an epoch, over all processes.

    Raises:
        ValueError: no user has both a positive and a negative.
    """

    def __init__(
        self,
        interactions: Interactions,
        group: Group,
        popularity: Tensor | None,
        *,
        seed: int,
        positives: int,
        negatives: int,
        draws: int,
        exclude: Any,
        strategy: str,
    ) -> None:
        self.interactions, self.positives, self.draws = interactions, positives, draws
        self.negatives = num_negatives("negatives", negatives, 1)
        self.seed = signed_seed(seed)
        self.strategy = NegativeSource.of(interactions, strategy, exclude, 1.0, None, True, popularity)
        counts = interactions.user_counts
        learnt = ~self.strategy.lacking(1) & (counts > 0)
        edges = torch.arange(interactions.nnz, device=interactions.device)
        # The own interactions that take part, or None where all do.
        self.kept: Tensor | None = None
        if not bool(learnt[counts > 0].all()):
            self.kept = edges[learnt.repeat_interleave(counts, output_size=interactions.nnz)]
        own = interactions.nnz if self.kept is None else self.kept.numel()
        everyone = group.counts(own)
        self.own, self.first, self.all = own, sum(everyone[: group.rank]), sum(everyone)
        if self.all == 0:
            raise ValueError("interactions: no user has both a positive and a negative; there is nothing to learn from")
        self.num_samples = draws * self.all
        self.epoch: int | None = None
        self.numbers = self.edges = edges[:0]

    def begin(self, epoch: int) -> None:
        """Find the own samples of an epoch, in the order of their numbers."""
        if epoch == self.epoch:
            return
        device = self.interactions.device
        self.numbers = self.edges = torch.empty(0, dtype=torch.int64, device=device)
        cells = torch.arange(self.first, self.first + self.own, device=device)
        if self.draws > 1:
            cells = torch.cat([cells + draw * self.all for draw in range(self.draws)])
        self.numbers, order = _ops.unshuffle(cells, self.num_samples, self.seed, epoch).sort()
        if self.draws > 1:
            order %= max(1, self.own)
        self.edges = order if self.kept is None else self.kept[order]
        self.epoch = epoch

    def between(self, begin: int, end: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the own samples with numbers [begin, end) of the epoch that was begun.

        Returns:
            numbers, users (counted from the first own one), positives and negatives, as a
            :class:`~zerosum_ext.TripletLoader` yields them.
        """
        assert self.epoch is not None
        ends = torch.tensor([begin, end], device=self.numbers.device)
        first, last = torch.searchsorted(self.numbers, ends).tolist()
        numbers, edges = self.numbers[first:last], self.edges[first:last]
        data = self.interactions
        users = torch.searchsorted(data.indptr, edges, right=True) - 1
        positives = data.indices[edges].long()
        if self.positives == 2:
            positives = torch.stack((positives, self._second(numbers, users, edges)), 1)
        negatives = self.strategy.draw_at(users, numbers, self.negatives, self.seed, self.epoch)[0]
        return numbers, users, positives, negatives[:, 0] if self.negatives == 1 else negatives

    def _second(self, numbers: Tensor, users: Tensor, edges: Tensor) -> Tensor:
        """Return the second positive of each sample: another one of the same user, where there is one."""
        assert self.epoch is not None
        start = self.interactions.indptr[users]
        count = self.interactions.indptr[users + 1] - start
        position = reference.second_position(numbers, edges - start, count, self.seed, self.epoch)
        return self.interactions.indices[start + position].long()
