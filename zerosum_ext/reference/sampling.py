"""The sampling ops in plain PyTorch: the same integers as csrc/common/sampler.h, on any device.

64-bit words are held in int64 tensors, as bit patterns: additions and products wrap as unsigned ones do, and a right
shift is made logical by a mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

LOW32 = 0xFFFFFFFF
REJECTION_BLOCKS = 16

NEGATIVE, SECOND_POSITIVE, REPLACEMENT_POSITIVE, PERMUTATION, ALIAS, CANDIDATE, NODE_DROPOUT = range(7)
SEQUENTIAL, SHUFFLED, REPLACEMENT, USERS = range(4)


def _high32(x: Tensor) -> Tensor:
    return (x >> 32) & LOW32


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int | Tensor, int | Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run ten rounds of Philox4x32 (Salmon et al., SC 2011); words are int64 tensors with values in [0, 2**32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = _high32(p1) ^ c1 ^ k0, p1 & LOW32, _high32(p0) ^ c3 ^ k1, p0 & LOW32
        k0, k1 = (k0 + 0x9E3779B9) & LOW32, (k1 + 0xBB67AE85) & LOW32
    return c0, c1, c2, c3


def draws(sample: Tensor, seed: int, epoch: int, stream: int, j: int, attempt: int) -> tuple[Tensor, Tensor]:
    """Return the two 64-bit draws of each sample number, as int64 bit patterns."""
    purpose = stream << 24 | j << 8 | attempt
    counter = (
        sample & LOW32,
        _high32(sample),
        torch.full_like(sample, epoch & LOW32),
        torch.full_like(sample, purpose),
    )
    w0, w1, w2, w3 = philox4x32(counter, (seed & LOW32, (seed >> 32) & LOW32))
    return w0 | w1 << 32, w2 | w3 << 32


def mulhi64(a: Tensor, b: Tensor | int) -> Tensor:
    """Return the high 64 bits of the product of unsigned 64-bit numbers; b is below 2**63."""
    b_low, b_high = b & LOW32, b >> 32
    a_low, a_high = a & LOW32, _high32(a)
    low, middle, other, high = a_low * b_low, a_low * b_high, a_high * b_low, a_high * b_high
    carry = _high32(low) + (middle & LOW32) + (other & LOW32)
    return high + _high32(middle) + _high32(other) + (carry >> 32)


def lower_bound(values: Tensor, begin: Tensor, count: Tensor, wanted: Tensor) -> Tensor:
    """Count how many of values[begin : begin + count], ascending, are less than `wanted`; element by element."""
    low, size = torch.zeros_like(count), count
    limit = max(values.numel() - 1, 0)
    for _ in range(int(count.max()).bit_length() if count.numel() else 0):
        half = size >> 1
        right = (size > 0) & (values[(begin + low + half).clamp(max=limit)] < wanted)
        low = torch.where(right, low + half + 1, low)
        size = torch.where(right, size - half - 1, half)
    return low


def contains(indices: Tensor, begin: Tensor, count: Tensor, item: Tensor) -> Tensor:
    """Return whether the row indices[begin : begin + count] holds the item; element by element."""
    if indices.numel() == 0:
        return torch.zeros_like(item, dtype=torch.bool)
    at = lower_bound(indices, begin, count, item)
    return (at < count) & (indices[(begin + at).clamp(max=indices.numel() - 1)] == item)


# ---------------------------------------------------------------------------------------------------- negatives


class _Items:
    """The distribution that negatives are drawn from; see csrc/common/sampler.h."""

    def __init__(self, num_items: int, slots: Tensor | None, masses: Tensor | None) -> None:
        self.num_items, self.slots, self.masses = num_items, slots, masses
        self.stream = NEGATIVE if masses is None else CANDIDATE if slots is None else ALIAS

    def item(self, draw: Tensor) -> Tensor:
        if self.masses is None:
            return mulhi64(draw, self.num_items)
        if self.slots is None:
            return self.masses[mulhi64(draw, self.masses.numel())]
        bits = self.slots.numel().bit_length() - 1
        index = (draw >> (64 - bits)) & (self.slots.numel() - 1) if bits else torch.zeros_like(draw)
        unit = ((draw << bits) >> 33) & 0x7FFFFFFF
        slot = self.slots[index]
        return torch.where(unit < _high32(slot), index, slot & LOW32)

    def mass_below(self, item: Tensor) -> Tensor:
        if self.masses is None:
            return item
        if self.slots is None:
            return torch.searchsorted(self.masses, item)
        return self.masses[item]

    def total(self) -> int:
        if self.masses is None:
            return self.num_items
        return self.masses.numel() if self.slots is None else int(self.masses[-1])

    def item_at(self, mass: Tensor) -> Tensor:
        if self.slots is None:
            return mass if self.masses is None else self.masses[mass]
        assert self.masses is not None
        return torch.searchsorted(self.masses[1:], mass, right=True)

    def complement_mass(self, indices: Tensor, begin: Tensor, count: Tensor) -> Tensor:
        if self.masses is None:
            return self.num_items - count
        masses = []
        for start, size in zip(begin.tolist(), count.tolist(), strict=True):
            row = indices[start : start + size].long()
            masses.append(self.total() - int((self.mass_below(row + 1) - self.mass_below(row)).sum()))
        return torch.tensor(masses, dtype=torch.int64, device=begin.device)

    def complement_item(self, indices: Tensor, begin: Tensor, count: Tensor, mass: Tensor) -> Tensor:
        if self.masses is None:  # the k-th missing item: how many items[j] have items[j] - j <= k
            low, size = torch.zeros_like(count), count
            limit = max(indices.numel() - 1, 0)
            for _ in range(int(count.max()).bit_length()):
                half = size >> 1
                at = low + half
                right = (size > 0) & (indices[(begin + at).clamp(max=limit)] - at <= mass)
                low = torch.where(right, at + 1, low)
                size = torch.where(right, size - half - 1, half)
            return mass + low
        units = []
        for start, size, unit in zip(begin.tolist(), count.tolist(), mass.tolist(), strict=True):
            row = indices[start : start + size].long()
            below = self.mass_below(row)
            weight = self.mass_below(row + 1) - below
            skipped = weight.cumsum(0) - weight
            units.append(unit + int(weight[below - skipped <= unit].sum()))
        return self.item_at(torch.tensor(units, dtype=torch.int64, device=begin.device))


def _complement(
    items: _Items,
    indices: Tensor,
    begin: Tensor,
    count: Tensor,
    sample: Tensor,
    seed: int,
    epoch: int,
    j: int,
    previous: Tensor,
) -> Tensor:
    """Draw from what is left outside the row and the previous items [rows, j]; -1 where that is nothing."""
    weight = items.mass_below(previous.clamp(min=0) + 1) - items.mass_below(previous.clamp(min=0))
    weight = torch.where(previous < 0, 0, weight)
    mass = items.complement_mass(indices, begin, count) - weight.sum(1)
    out = torch.full_like(begin, -1)
    some = (mass > 0).nonzero().flatten()
    if some.numel() == 0:
        return out
    begin, count, previous, weight = begin[some], count[some], previous[some], weight[some]
    unit = mulhi64(draws(sample[some], seed, epoch, items.stream, j, REJECTION_BLOCKS)[0], mass[some])
    item = items.complement_item(indices, begin, count, unit)
    for _ in range(previous.shape[1]):
        taken = torch.where(previous <= item[:, None], weight, 0).sum(1)
        moved = items.complement_item(indices, begin, count, unit + taken)
        if torch.equal(moved, item):
            break
        item = moved
    out[some] = item
    return out


# As many arguments as the op's schema has, in its order.
def sample_negatives(
    users: Tensor,
    indptr: Tensor,
    indices: Tensor,
    filter: Tensor | None,
    slots: Tensor | None,
    masses: Tensor | None,
    num_items: int,
    k: int,
    seed: int,
    epoch: int,
    offset: int,
    replacement: bool,
    key: Tensor | None = None,
    complement_rows: Tensor | None = None,
    complement_masses: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw negatives int64 [rows, k] of users int64 [rows]; row r is sample number offset + r.

    Uniform over all items; with ``masses`` alone uniform over these ascending item numbers (int64); with ``slots``
    int64 [2**bits] and ``masses`` int64 [num_items + 1] weighted, by an alias table and its prefix sums.

    Args:
        users: whom to draw for.
        indptr, indices: CSR of the items that are not drawn.
        filter: of :func:`zerosum_ext._ops.row_filter`, or None; it changes only the speed of kernels.
        slots, masses: the distribution, see above.
        num_items: how many items there are.
        k: negatives of each user.
        seed, epoch, offset: of the counter-based generator.
        replacement: whether a row may hold an item twice.
        key: int64 [3], seed, epoch and offset in place of the numbers, read when a kernel runs: a captured CUDA graph
            draws anew at each replay.
        complement_rows, complement_masses: of :func:`zerosum_ext.data.complements.complement_sums`, or None; they
            change only the speed of kernels.

    Returns:
        (items, int64 [1]: the first row that has not enough items to draw from or whose user does not exist, else -1).
    """
    if key is not None:
        seed, epoch, offset = key.tolist()
    numbers = offset + torch.arange(users.numel(), device=users.device)
    return sample_negatives_at(
        users, numbers, indptr, indices, filter, slots, masses, num_items, k, seed, epoch, replacement
    )


# As many arguments as the op's schema has, in its order.
def sample_negatives_at(
    users: Tensor,
    numbers: Tensor,
    indptr: Tensor,
    indices: Tensor,
    filter: Tensor | None,
    slots: Tensor | None,
    masses: Tensor | None,
    num_items: int,
    k: int,
    seed: int,
    epoch: int,
    replacement: bool,
    key: Tensor | None = None,
    complement_rows: Tensor | None = None,
    complement_masses: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw negatives as :func:`sample_negatives` does, of samples with these numbers, int64 [rows], in any order.

    The third number of ``key`` says nothing here.
    """
    if key is not None:
        seed, epoch, _ = key.tolist()
    rows, num_users = users.numel(), indptr.numel() - 1
    items = _Items(num_items, slots, masses)
    valid = (users >= 0) & (users < num_users)
    known = torch.where(valid, users, 0)
    begin = indptr[known] if num_users else torch.zeros_like(users)
    count = (indptr[known + 1] if num_users else begin) - begin
    sample = numbers
    by_rejection = 2 * count <= num_items
    out = torch.full((rows, k), -1, dtype=torch.int64, device=users.device)
    for j in range(k):
        lanes = (valid & by_rejection).nonzero().flatten()
        for attempt in range(REJECTION_BLOCKS):
            if lanes.numel() == 0:
                break
            draw = torch.stack(draws(sample[lanes], seed, epoch, items.stream, j, attempt))
            for half in range(2):
                item = items.item(draw[half])
                refused = contains(indices, begin[lanes], count[lanes], item)
                if not replacement:
                    refused |= (out[lanes, :j] == item[:, None]).any(1)
                out[lanes, j] = item
                lanes, draw = lanes[refused], draw[:, refused]
        left = torch.cat(((valid & ~by_rejection).nonzero().flatten(), lanes))
        if left.numel():
            previous = out[left, : 0 if replacement else j]
            out[left, j] = _complement(items, indices, begin[left], count[left], sample[left], seed, epoch, j, previous)
    bad = (~valid | (out < 0).any(1)).nonzero().flatten()
    return out, bad[:1] if bad.numel() else torch.full((1,), -1, dtype=torch.int64, device=users.device)


def has_items(
    users: Tensor, items: Tensor, indptr: Tensor, indices: Tensor, filter: Tensor | None, num_items: int
) -> Tensor:
    """Return whether users int64 [B] have items int64 [C] (every pair) or [B, C] (row by row): bool [B, C]."""
    begin = indptr[users]
    count = indptr[users + 1] - begin
    items = items if items.dim() == 2 else items.expand(users.numel(), -1)
    begin, count = begin[:, None].expand_as(items), count[:, None].expand_as(items)
    return contains(indices, begin.reshape(-1), count.reshape(-1), items.reshape(-1)).view(items.shape)


# ---------------------------------------------------------------------------------------------------- positives


def _hash(x: Tensor, k0: int, k1: int) -> Tensor:
    x = ((x ^ k0) * 0x85EBCA6B) & LOW32
    x = ((((x ^ (x >> 15)) + k1) & LOW32) * 0xC2B2AE35) & LOW32
    return x ^ (x >> 16)


class Permutation:
    """The permutation of [0, size) of csrc/common/permutation.h."""

    def __init__(self, size: int, seed: int, epoch: int) -> None:
        self.size = size
        self.columns = max(1, math.isqrt(size - 1) + 1) if size else 1
        self.rows = max(1, -(-size // self.columns))
        rounds = 24 if size < 4096 else 8
        blocks = torch.arange(rounds // 2)
        first, second = draws(blocks, seed, epoch, PERMUTATION, 0, 0)
        self.key = torch.stack((first & LOW32, _high32(first), second & LOW32, _high32(second)), 1).tolist()

    def __call__(self, x: Tensor) -> Tensor:
        return self._within(self._cell, x)

    def inverse(self, y: Tensor) -> Tensor:
        """Return the numbers that the permutation takes to ``y``."""
        return self._within(self._undo, y)

    def _within(self, step: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return what ``step`` makes of ``x``, taken again where it leads out of the range."""
        out = step(x)
        beyond = (out >= self.size).nonzero().flatten()
        while beyond.numel():
            out[beyond] = step(out[beyond])
            beyond = beyond[out[beyond] >= self.size]
        return out

    def _undo(self, y: Tensor) -> Tensor:
        left, right = y // self.columns, y % self.columns
        for k in reversed(self.key):
            right = right - (_hash(left, k[2], k[3]) * self.columns >> 32)
            right = torch.where(right < 0, right + self.columns, right)
            left = left - (_hash(right, k[0], k[1]) * self.rows >> 32)
            left = torch.where(left < 0, left + self.rows, left)
        return left * self.columns + right

    def _cell(self, x: Tensor) -> Tensor:
        left, right = x // self.columns, x % self.columns
        for k in self.key:
            left = left + (_hash(right, k[0], k[1]) * self.rows >> 32)
            left = torch.where(left >= self.rows, left - self.rows, left)
            right = right + (_hash(left, k[2], k[3]) * self.columns >> 32)
            right = torch.where(right >= self.columns, right - self.columns, right)
        return left * self.columns + right


def unshuffle(cells: Tensor, total: int, seed: int, epoch: int, key: Tensor | None = None) -> Tensor:
    """Return the numbers of the samples that an epoch's shuffle takes to ``cells`` of [0, total): int64, as cells.

    ``key`` int64 [3] holds seed and epoch in place of the numbers, as for :func:`sample_negatives`. Its third number
    says nothing here.
    """
    if key is not None:
        seed, epoch, _ = key.tolist()
    return Permutation(total, seed, epoch).inverse(cells)


# As many arguments as the op's schema has, in its order.
def sample_positives(
    indptr: Tensor,
    indices: Tensor,
    hint: Tensor | None,
    hint_shift: int,
    gaps: Tensor | None,
    active: Tensor | None,
    order: int,
    kept: int,
    total: int,
    begin: int,
    rows: int,
    positives: int,
    seed: int,
    epoch: int,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw users int64 [rows] and positives int64 [rows] or [rows, 2] of samples begin .. begin + rows of an epoch.

    Args:
        indptr, indices: CSR of the interactions.
        hint, hint_shift: ``hint[b]`` is the user of interaction ``b << hint_shift``; only kernels use it.
        gaps: int64 [2, G], leaves users out: starts among the ``kept`` interactions, running totals of what is left
            out. None leaves out nobody.
        active: the users to draw from, for order 3.
        order: 0 as stored, 1 shuffled, 2 interactions with replacement, 3 users with replacement, then one of their
            items.
        kept: interactions that take part.
        total: samples of the epoch. Samples beyond it are an error on the CPU; on a GPU, where nobody looks at
            ``key``, they are those of the epoch's start.
        begin, rows: which samples.
        positives: 1, or 2 of the same user.
        seed, epoch: of the counter-based generator.
        key: seed, epoch and begin, as for :func:`sample_negatives`.
    """
    if key is not None:
        seed, epoch, begin = key.tolist()
    sample = torch.arange(begin, begin + rows, device=indptr.device)
    first, second = draws(sample, seed, epoch, REPLACEMENT_POSITIVE, 0, 0)
    if order == USERS:
        assert active is not None
        users = active[mulhi64(first, active.numel())]
        edge = indptr[users] + mulhi64(second, indptr[users + 1] - indptr[users])
    else:
        if order == REPLACEMENT:
            edge = mulhi64(first, kept)
        else:
            edge = (Permutation(total, seed, epoch)(sample) if order == SHUFFLED else sample) % kept
        if gaps is not None:
            passed = torch.searchsorted(gaps[0], edge, right=True)
            edge = edge + torch.where(passed > 0, gaps[1][(passed - 1).clamp(min=0)], 0)
        users = torch.searchsorted(indptr, edge, right=True) - 1
    items = indices[edge].long()
    if positives == 1:
        return users, items
    start = indptr[users]
    other = second_position(sample, edge - start, indptr[users + 1] - start, seed, epoch)
    return users, torch.stack((items, indices[start + other].long()), 1)


def second_position(numbers: Tensor, position: Tensor, count: Tensor, seed: int, epoch: int) -> Tensor:
    """Return where the second positives of samples lie in their users' rows.

    Args:
        numbers: of the samples, int64 [rows].
        position: where the first positives lie.
        count: the lengths of the rows. In a row of one item the second positive is the first one.
        seed, epoch: of the counter-based generator.
    """
    other = mulhi64(draws(numbers, seed, epoch, SECOND_POSITIVE, 0, 0)[0], (count - 1).clamp(min=1))
    return torch.where(count < 2, position, other + (other >= position))
