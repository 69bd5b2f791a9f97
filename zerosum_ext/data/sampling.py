"""Negatives and training triplets: exact, reproducible on any device, resumable.

Every sample is a function of ``(seed, epoch, number of the sample)``: the random bits come from Philox4x32-10 with the
sample's number as its counter. So the same samples result for any number of threads or processes, any batch size, on
the CPU and on a GPU, and from the middle of an epoch as well as from its start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeAlias, get_args
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from zerosum_ext import _checks, _ops
from zerosum_ext._types import Strategy
from zerosum_ext.data.complements import Complements, Sums
from zerosum_ext.data.interactions import Interactions

__all__ = ["TripletLoader", "hardest_negatives", "in_batch_mask", "sample_negatives", "shared_samples"]

STRATEGIES = get_args(Strategy)
POSITIVES = ("epoch", "interactions", "users", "weights")
# Entries are drawn by another seed than negatives, so that the two are independent.
_ENTRY_SEED = 0x5851F42D4C957F2D
MAX_NEGATIVES = 1 << 16  # their number is 16 bits of the counter

#: Lists of negatives, [lists, k]; how many samples of the first list come before, int64 [1]; which items of its list
#: each sample's user has, bool [n, k]; how many samples up to each one share nothing, int64 [n]; how many share a list.
SharedLists: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, int]
#: Samples of a block, with ``negatives_shared=True``, and the most that can be asked for.
SHARED_SAMPLES, MOST_SHARED = 64, 4096
# The lists of blocks are those of samples with numbers from here on: an epoch's are less.
_SHARED_NUMBERS = 1 << 62

_HINT_SHIFT = 6  # one entry of the coarse index (the user of an interaction) per 64 interactions
_UNIT = 1 << 31  # probability units of an alias slot


class _Index:
    """What speeds sampling up beside the CSR, made when first needed and kept as long as the interactions live."""

    def __init__(self) -> None:
        self.filter: Tensor | None = None
        self.hint: Tensor | None = None
        self.tables: dict[float, tuple[Tensor, Tensor]] = {}
        self.complements: dict[int, Complements] = {}  # by the id of the masses, which they keep alive
        self.lookups = 0  # memberships asked for so far without a filter


_indexes: WeakKeyDictionary[Interactions, _Index] = WeakKeyDictionary()
# Of interactions and exclude: their union, or None where exclude holds the interactions already.
_unions: WeakKeyDictionary[Interactions, WeakKeyDictionary[Interactions, Interactions | None]] = WeakKeyDictionary()


def _index(interactions: Interactions) -> _Index:
    found = _indexes.get(interactions)
    if found is None:
        found = _indexes[interactions] = _Index()
    return found


def _filter(interactions: Interactions, lookups: int) -> Tensor | None:
    """The row filter, once as many memberships were asked for as make up for the pass that makes it."""
    index = _index(interactions)
    index.lookups += lookups
    enough = 16 * index.lookups >= interactions.nnz
    if index.filter is None and enough and not _ops.capturing(interactions.device):
        index.filter = _ops.row_filter(interactions.indptr, interactions.indices, interactions.num_items)
        _ops.finish(interactions.device)
    return index.filter


def _hint(interactions: Interactions) -> Tensor:
    index = _index(interactions)
    if index.hint is None:
        starts = torch.arange(0, interactions.nnz, 1 << _HINT_SHIFT, device=interactions.device)
        hint = torch.searchsorted(interactions.indptr, starts, right=True) - 1
        if _ops.capturing(interactions.device):
            return hint
        index.hint = hint
        _ops.finish(interactions.device)
    return index.hint


def _excluded(interactions: Interactions, exclude: Any) -> Interactions:
    """What negatives must avoid: the interactions and, if given, those of ``exclude``."""
    if exclude is None or exclude is interactions:
        return interactions
    other = exclude if isinstance(exclude, Interactions) else Interactions.from_any(exclude)
    if other.shape != interactions.shape:
        raise ValueError(f"exclude: expected shape {interactions.shape}, that of interactions, got {other.shape}")
    if other.device != interactions.device:
        raise ValueError(f"exclude: expected {interactions.device}, where interactions are, got {other.device}")
    cached = _unions.setdefault(interactions, WeakKeyDictionary())
    if other not in cached:
        union = interactions.union(other)
        cached[other] = union if union.nnz > other.nnz else None
    return cached[other] or other


# ------------------------------------------------------------------------------------------------------ distributions


def _integer_weights(popularity: Tensor, alpha: float, total: int) -> Tensor:
    """popularity**alpha as positive integers (zero for popularity 0, unless alpha is 0) that sum to ``total``.

    All is done on the device of ``popularity``. Only the distinct counts, and how many items have each, come to the
    host.
    """
    distinct, inverse, numbers = popularity.unique(return_inverse=True, return_counts=True)
    if distinct.is_floating_point():  # weights, beside which numbers would lose bits
        counts, sizes = distinct.cpu().tolist(), numbers.cpu().tolist()
    else:
        counts, sizes = torch.stack((distinct, numbers)).cpu().tolist()
    top = max(counts[-1], 1)
    if alpha == 0:
        powers = [1.0] * len(counts)
    else:
        # math.pow, not a vectorized one: the table should not depend on which unit this machine has. Scaled so that the
        # largest weight is 1.
        base = top if alpha > 0 else next(c for c in counts if c > 0)
        powers = [math.pow(c / base, alpha) if c > 0 else 0.0 for c in counts]
    scale = total / math.fsum(p * n for p, n in zip(powers, sizes, strict=True))
    # (A power may be too small for a float; its item can be drawn all the same.)
    drawn = [alpha == 0 or c > 0 for c in counts]
    per_count = [max(int(p * scale), 1) if d else 0 for p, d in zip(powers, drawn, strict=True)]
    weights = torch.tensor(per_count, dtype=torch.int64).to(popularity.device)[inverse]
    # What rounding left over is spread over the items of at least half the mean weight, which it does not change by
    # more than a few units in 2**30.
    half_mean = total // (2 * weights.numel())
    rest = total - sum(w * n for w, n in zip(per_count, sizes, strict=True))
    each, more = divmod(rest, sum(n for w, n in zip(per_count, sizes, strict=True) if w >= half_mean))
    large = weights >= half_mean
    result: Tensor = weights + large * each + (large & (large.cumsum(0) <= more))
    return result


def _alias_table(weights: Tensor, slots: int) -> Tensor:
    """Alias table of integer weights that sum to ``slots * 2**31``: int64 [slots], threshold << 32 | alias.

    Items below the mean (light) are filled up by those above (heavy), both in ascending order. A heavy item that has
    given too much is filled up by the next. With running totals of what is missing and of what is to spare, every slot
    is known at once (Huebschle-Schneider and Sanders, "Parallel weighted random sampling", ESA 2019).
    """
    threshold = torch.nn.functional.pad(weights, (0, slots - weights.numel()))
    alias = torch.arange(slots, device=weights.device)
    light, heavy = (threshold < _UNIT).nonzero()[:, 0], (threshold >= _UNIT).nonzero()[:, 0]
    lacking = _UNIT - threshold[light]
    missing, spare = lacking.cumsum(0), (threshold[heavy] - _UNIT).cumsum(0)
    threshold[heavy] = _UNIT
    if light.numel():
        alias[light] = heavy[torch.searchsorted(spare, missing - lacking, right=True)]
        threshold[heavy] -= missing[torch.searchsorted(missing, spare)] - spare
        alias[heavy[:-1]] = heavy[1:]
    return threshold << 32 | alias


# indptr and indices of what is excluded, its filter, slots, masses and the number of items.
Source: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, int]


@dataclass(frozen=True)
class NegativeSource:
    """Which items are drawn, with which weights, and which ones must be avoided."""

    slots: Tensor | None
    masses: Tensor | None
    excluded: Interactions
    replacement: bool
    name: str
    complements: Complements

    @classmethod
    def of(
        cls,
        interactions: Interactions,
        name: str,
        exclude: Any,
        alpha: float,
        candidates: Any,
        replacement: bool,
        popularity: Tensor | None = None,
    ) -> NegativeSource:
        """Return the strategy of these arguments of :func:`sample_negatives`, which are checked.

        ``popularity`` stands for the counts of the interactions, where these are only a part of all.
        """
        _checks.require_choice("strategy", name, STRATEGIES)
        if interactions.num_items == 0:
            raise ValueError(f"interactions: expected at least one item, got shape {interactions.shape}")
        excluded = _excluded(interactions, exclude)
        slots = masses = None
        if name == "popularity":
            alpha = _checks.require_finite_number("alpha", alpha)
            tables = {} if popularity is not None else _index(interactions).tables
            if alpha not in tables:
                tables[alpha] = _popularity_table(interactions.popularity if popularity is None else popularity, alpha)
            slots, masses = tables[alpha]
        if (candidates is None) == (name == "candidates"):
            expected = "item numbers" if candidates is None else "None, or strategy='candidates' to draw from them,"
            raise ValueError(
                f"candidates: expected {expected} with strategy={name!r}, got {_checks.describe(candidates)}"
            )
        if candidates is not None:
            masses = _item_numbers("candidates", candidates, interactions).unique()
            if masses.numel() == 0:
                raise ValueError("candidates: expected at least one item, got none")
        complements = Complements(slots, masses)
        if name == "popularity" and popularity is None:  # the table is kept with the interactions, and so are its sums
            complements = _index(excluded).complements.setdefault(id(masses), complements)
        return cls(slots, masses, excluded, bool(replacement), name, complements)

    def support(self) -> Tensor | None:
        """Whether an item can be drawn at all, bool [num_items]; None: all can."""
        if self.masses is None:
            return None
        if self.slots is not None:
            return self.masses.diff() > 0
        mask = torch.zeros(self.excluded.num_items, dtype=torch.bool, device=self.masses.device)
        mask[self.masses] = True
        return mask

    def available(self, first: int, last: int) -> Tensor:
        """How many items each of the users [first, last) can draw from, int64."""
        excluded = self.excluded
        support = self.support()
        if support is None:
            return excluded.num_items - excluded.user_counts[first:last]
        begin, end = int(excluded.indptr[first]), int(excluded.indptr[last])
        hits = support[excluded.indices[begin:end].long()].cumsum(0)
        hits = torch.cat((hits.new_zeros(1), hits))
        row = excluded.indptr[first : last + 1] - begin
        return int(support.sum()) - (hits[row[1:]] - hits[row[:-1]])

    def lacking(self, need: int) -> Tensor:
        """Which users can draw from fewer than ``need`` items, bool [num_users]."""
        counts = self.excluded.user_counts
        support = self.support()
        total = self.excluded.num_items if support is None else int(support.sum())
        # Even if all of a row's items could be drawn otherwise, this many are left; the other rows are looked at.
        lacking = total - counts < need
        if support is not None and bool(lacking.any()):
            for first in range(0, counts.numel(), 1 << 16):
                part = slice(first, min(first + (1 << 16), counts.numel()))
                if bool(lacking[part].any()):
                    lacking[part] = self.available(part.start, part.stop) < need
        return lacking

    def source(self, lookups: int) -> Source:
        """What the ops draw ``lookups`` negatives from."""
        excluded = self.excluded
        lookup = _filter(excluded, lookups)
        return excluded.indptr, excluded.indices, lookup, self.slots, self.masses, excluded.num_items

    def _tables(self, lookups: int) -> tuple[Source, Sums]:
        """What so many negatives are drawn from, and the sums by which dense rows are searched."""
        return self.source(lookups), self.complements.of(self.excluded, lookups)

    def draw(
        self, users: Tensor, k: int, seed: int, epoch: int, offset: int, key: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        source, sums = self._tables(users.numel() * k)
        return _ops.sample_negatives(users, *source, k, seed, epoch, offset, self.replacement, key, *sums)

    def draw_at(self, users: Tensor, numbers: Tensor, k: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Negatives of samples with these numbers, in any order."""
        source, sums = self._tables(users.numel() * k)
        return _ops.sample_negatives_at(users, numbers, *source, k, seed, epoch, self.replacement, None, *sums)

    def prepare(self) -> None:
        """Make what speeds drawing up, as before very many draws."""
        self._tables(self.excluded.nnz)

    def draw_lists(
        self, users: Tensor, k: int, seed: int, epoch: int, offset: int, size: int, key: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The lists that ``size`` samples in succession share, [lists, k], and what :meth:`draw_shared` makes of them.

        There are as many lists as any first sample asks for. With them come the number of samples of the first list
        that are before these, int64 [1], each sample's list, [n, k], and which of its items the user has, bool [n, k].
        """
        excluded, n = self.excluded, users.numel()
        nobody, nothing = users.new_zeros(2), excluded.indices[:0]
        from_all = (nobody, nothing, None, self.slots, self.masses, excluded.num_items, k)
        most = (n + size - 2) // size + 1
        if key is None:
            numbers = (seed, epoch, _SHARED_NUMBERS + offset // size, True, None)
            lists, _ = _ops.sample_negatives(users.new_zeros(most), *from_all, *numbers)
            start = users.new_full((1,), offset % size)
        else:  # where in its block the first sample is, nobody knows here
            at = _SHARED_NUMBERS + key[2] // size + torch.arange(most, device=users.device)
            lists, _ = _ops.sample_negatives_at(torch.zeros_like(at), at, *from_all, 0, 0, True, key)
            start = (key[2] % size).reshape(1)
        items = lists[(start + torch.arange(n, device=users.device)) // size]
        lookup = _filter(excluded, n * k)
        held = _ops.has_items(users, items, excluded.indptr, excluded.indices, lookup, excluded.num_items)
        return lists, start, items, held

    def draw_shared(
        self, users: Tensor, k: int, seed: int, epoch: int, offset: int, size: int, key: Tensor | None = None
    ) -> Tensor:
        """Negatives [n, k] of which ``size`` samples in succession share a list, as csrc/cpu/shared_samples.h says.

        Each block's list of k items is drawn from all items. A slot has the first item of the list, from its own place
        on and around the end, that the user does not have. A user who has them all has the negatives of ``draw``.
        ``key`` holds seed, epoch and offset in place of the numbers, as for ``draw``.
        """
        if users.numel() == 0:
            return users.new_empty((0, k))
        _, _, items, held = self.draw_lists(users, k, seed, epoch, offset, size, key)
        place = torch.arange(k, device=users.device)
        free = torch.where(held, 3 * k, place)
        there = torch.cat((free, free + k), 1).flip(1).cummin(1).values.flip(1)[:, :k] % k
        shared = items.gather(1, there)
        alone = held.all(1, keepdim=True)
        # Few or none are: where that can be seen at once. A GPU draws for all sooner than it answers.
        drawn_by_gpu = users.device.type != "cpu" and _ops.has_op("sample_negatives", users.device)
        if not drawn_by_gpu and not bool(alone.any()):
            return shared
        return torch.where(alone, self.draw(users, k, seed, epoch, offset, key)[0], shared)


def shared_samples(value: bool | int) -> int:
    """Return the number of samples that share their negatives, 0 for none, from what a caller gives."""
    if isinstance(value, bool):
        return SHARED_SAMPLES if value else 0
    return _checks.require_positive_int("negatives_shared", value, minimum=0, maximum=MOST_SHARED)


def checked_weights(name: str, interactions: Interactions) -> Tensor:
    """Return the weights of interactions, float32 [nnz].

    Raises:
        ValueError: they have none, or one that is negative or not finite; the message begins with ``name``.
    """
    weights = interactions.weights
    if weights is None:
        raise ValueError(
            f"{name}: expected interactions with weights, such as from_scipy(matrix, weights=True) or "
            "from_file(path, weights='rating')"
        )
    wrong = ~(weights.isfinite() & (weights >= 0))
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise ValueError(f"{name}: expected finite weights >= 0, got {float(weights[at])} at position {at}")
    return weights.float().contiguous()


def _popularity_table(popularity: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    num_items = popularity.numel()
    if num_items >= 1 << 30:
        raise ValueError(f"strategy: 'popularity' handles fewer than 2**30 items, got {num_items}")
    if not bool(popularity.any()):
        raise ValueError("strategy: 'popularity' needs at least one interaction, got none")
    size = 1 << (num_items - 1).bit_length()
    weights = _integer_weights(popularity, alpha, size * _UNIT)
    return _alias_table(weights, size), torch.nn.functional.pad(weights.cumsum(0), (1, 0))


def _item_numbers(name: str, values: Any, interactions: Interactions) -> Tensor:
    return _numbers(name, values, interactions.num_items, interactions.device)


def _numbers(name: str, values: Any, size: int, device: torch.device, *, check: bool = True) -> Tensor:
    """A vector of indices as contiguous int64 on the device; with ``check``, all within [0, size)."""
    if isinstance(values, Tensor):
        if values.device != device:
            raise ValueError(f"{name}: expected a tensor on {device}, where interactions are, got {values.device}")
    else:
        array = np.asarray(values)
        if array.size and array.dtype.kind not in "iu":
            raise TypeError(f"{name}: expected integers, got {_checks.describe(values)}")
        _checks.require_int64(name, array)
        values = torch.from_numpy(np.array(array, np.int64)).to(device)
    if values.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        raise TypeError(f"{name}: expected integers, got {_checks.describe(values)}")
    if values.dim() != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {tuple(values.shape)}")
    numbers: Tensor = values.long().contiguous()
    if check and numbers.numel():
        wrong = ((numbers < 0) | (numbers >= size)).nonzero()
        if wrong.numel():
            at = int(wrong[0])
            raise ValueError(f"{name}: expected numbers from 0 to {size - 1}, got {int(numbers[at])} at position {at}")
    return numbers


def signed_seed(seed: Any) -> int:
    number = _checks.require_positive_int("seed", seed, minimum=0)
    if number >= 1 << 64:
        raise ValueError(f"seed: expected a number below 2**64, got {number}")
    return number - (1 << 64) if number >= 1 << 63 else number


def _epoch_number(epoch: Any) -> int:
    number = _checks.require_positive_int("epoch", epoch, minimum=0)
    if number >= 1 << 32:
        raise ValueError(f"epoch: expected a number below 2**32, got {number}")
    return number


def num_negatives(name: str, k: Any, minimum: int) -> int:
    number = _checks.require_positive_int(name, k, minimum=minimum)
    if number > MAX_NEGATIVES:
        raise ValueError(f"{name}: expected at most {MAX_NEGATIVES}, got {number}")
    return number


# ---------------------------------------------------------------------------------------------------------- functions


def sample_negatives(
    interactions: Any,
    users: Any,
    k: int = 1,
    *,
    seed: int = 0,
    epoch: int = 0,
    strategy: Strategy = "uniform",
    offset: int = 0,
    exclude: Any = None,
    alpha: float = 1.0,
    candidates: Any = None,
    replacement: bool = True,
) -> Tensor:
    """Draw ``k`` negatives for each user: items that the user has not interacted with.

    Row r is sample number ``offset + r`` of ``(seed, epoch)``. So two calls, the second with the first one's length as
    offset, give what one call gives. The draws are exact: bounded rejection, then directly from the complement of the
    user's row. A probability differs from the stated one by at most the number of the user's negatives times 2**-64.

    Args:
        interactions: :class:`Interactions`, or anything that :meth:`Interactions.from_any` takes. Pass
            :class:`Interactions` if you call this often: what speeds up drawing is kept with them.
        users: integers [B], as a tensor on the interactions' device, an array or a sequence. A user may occur any
            number of times.
        k: number of negatives, 1 to 65536.
        seed: below 2**64.
        epoch: below 2**32.
        offset: number of the first row's sample.
        strategy: "uniform" draws uniformly from the user's negatives. "popularity" draws them in proportion to
            (number of the item's interactions)**alpha, where items without interactions have weight 0 unless alpha is
            0. "candidates" draws uniformly from those of ``candidates`` that are negatives.
        exclude: further pairs that must not be drawn, such as validation positives: :class:`Interactions` of the same
            shape, or what ``from_any`` takes.
        alpha: exponent of "popularity". The weights are integers, rounded by less than 2**-30 of the mean weight.
        candidates: the items that "candidates" draws from. Repeated ones count once.
        replacement: False makes the k negatives of a row distinct. Each is then drawn from what the ones before leave.

    Returns:
        int64 [B, k] on the interactions' device.

    Raises:
        ValueError: a user does not exist, or has no negative to draw, or fewer than ``k`` without replacement. The
            message names the user.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> zx.sample_negatives(data, torch.tensor([0, 1, 2]), k=2, seed=0).shape
        torch.Size([3, 2])
    """
    data = Interactions.from_any(interactions)
    k = num_negatives("k", k, 1)
    offset = _checks.require_positive_int("offset", offset, minimum=0)
    chosen = NegativeSource.of(data, strategy, exclude, alpha, candidates, replacement)
    rows = _numbers("users", users, data.num_users, data.device, check=False)
    out, failed = chosen.draw(rows, k, signed_seed(seed), _epoch_number(epoch), offset)
    row = int(failed)
    if row >= 0:
        user = int(rows[row])
        if not 0 <= user < data.num_users:
            raise ValueError(f"users: expected numbers from 0 to {data.num_users - 1}, got {user} at position {row}")
        available = int(chosen.available(user, user + 1))
        wanted = "at least one" if replacement else f"{k} distinct ones"
        raise ValueError(
            f"users: user {user} (position {row}) has {available} of {data.num_items} items to draw a negative from "
            f"with strategy={strategy!r}, expected {wanted}"
        )
    return out


def in_batch_mask(interactions: Any, users: Any, items: Any, *, exclude: Any = None) -> Tensor:
    """Return which items of a batch can serve as negatives of which of its users.

    This is for in-batch negatives. Score all pairs of a batch, ``scores[r, c]`` of user r and the positive of row c.
    Then use column c as a negative of row r only where this mask says so. It masks row r's own positive, and whatever
    else of the batch the user has interacted with.

    Args:
        interactions: as in :func:`sample_negatives`.
        users: integers [B].
        items: integers [C], usually the batch's positives.
        exclude: as in :func:`sample_negatives`.

    Returns:
        bool [B, C], True where ``items[c]`` is a negative of ``users[r]``.

    Example:
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> zx.in_batch_mask(data, [0, 1, 2], [1, 2, 3]).tolist()
        [[False, True, True], [True, False, True], [True, True, False]]
    """
    data = Interactions.from_any(interactions)
    excluded = _excluded(data, exclude)
    rows = _numbers("users", users, data.num_users, data.device)
    columns = _item_numbers("items", items, data)
    lookup = _filter(excluded, rows.numel() * columns.numel())
    return ~_ops.has_items(rows, columns, excluded.indptr, excluded.indices, lookup, excluded.num_items)


def hardest_negatives(negatives: Tensor, scores: Tensor, k: int = 1) -> Tensor:
    """Return the ``k`` candidates of each row that have the highest scores.

    This is dynamic negative sampling (Zhang et al., SIGIR 2013).

    Args:
        negatives: integers [B, K].
        scores: floating-point numbers [B, K], the model's present scores of these items. NaN counts as highest, so
            that it does not go unseen.
        k: at most K.

    Returns:
        [B] for k = 1, else [B, k], hardest first. Of equal scores the one further left comes first.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> negatives = torch.tensor([[3, 5, 7], [2, 4, 6]])
        >>> scores = torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.2, 0.3]])
        >>> zx.hardest_negatives(negatives, scores).tolist()
        [5, 2]
    """
    _checks.require_tensor("negatives", negatives)
    _checks.require_floating("scores", scores)
    if negatives.dim() != 2 or negatives.shape != scores.shape:
        raise ValueError(
            f"negatives and scores: expected one shape [B, K], got {tuple(negatives.shape)} and {tuple(scores.shape)}"
        )
    k = _checks.require_positive_int("k", k)
    if k > negatives.shape[1]:
        raise ValueError(f"k: expected at most {negatives.shape[1]}, the candidates of a row, got {k}")
    order = torch.sort(scores.detach(), dim=1, descending=True, stable=True).indices[:, :k]
    hardest = negatives.gather(1, order)
    return hardest[:, 0] if k == 1 else hardest


# ------------------------------------------------------------------------------------------------------------- loader


class TripletLoader:
    """Batches of (users, positives, negatives), made on the interactions' device without workers or copies.

    Iterating goes through one epoch: every interaction ``draws`` times, in an order that is shuffled without storing
    it. After a complete pass ``epoch`` has advanced by one. So a plain loop sees another order and other negatives
    every time; :meth:`set_epoch` chooses. Batches depend only on the arguments and ``(seed, epoch)``.

    Each batch is a tuple of int64 tensors: users [B], positives [B] or [B, 2] with ``positives=2``, and negatives [B]
    with ``negatives=1``, else [B, negatives]. Users who have every item have no triplets and are left out; see
    ``skipped_users``.

    Args:
        interactions: :class:`Interactions`, or anything that :meth:`Interactions.from_any` takes.
        batch_size: samples in a batch. The last batch may be smaller. Nothing is dropped.
        seed: of the order and the draws.
        positives: 1 or 2. With 2 each sample has a second positive of the same user, distinct from the first if the
            user has two.
        negatives: negatives of each sample, 0 to 65536.
        draws: how often each interaction occurs in an epoch.
        exclude: as in :func:`sample_negatives`, like the next three.
        strategy: as there.
        alpha: as there.
        candidates: as there.
        replacement: as there. Without it, users with fewer than ``negatives`` negatives are left out.
        negatives_shared: how many samples in succession share their negatives. True is 64, which makes training on
            many negatives several times as fast. A block of samples draws one list of ``negatives`` items. An item
            that a user has is replaced, for this user, by the next one of the list that the user does not have. So
            each negative is distributed exactly as without sharing, and none is a positive of its user. But the
            samples of a block depend on each other, and a sample may name an item more than once.
        shuffle: False takes the interactions in stored order.
        positive_strategy: "epoch" takes each interaction as often as any other. "interactions" draws interactions
            with replacement. "users" draws a user uniformly, then one of the user's items. "weights" draws
            interactions with replacement, in proportion to ``interactions.weights``, exact to 2^-30 of the mean
            weight; it takes one positive, and none of weight 0. An epoch has ``draws`` times the number of
            interactions in any case.
        rank: this process's number under data parallelism. Of each group of ``world_size`` batches the process takes
            number ``rank``.
        world_size: the number of processes. Together they see exactly the epoch of a single one, and make the same
            number of steps. No batch is empty, unless ``batch_size`` is 1 and the samples cannot be shared out evenly.

    Example:
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> for users, positives, negatives in zx.TripletLoader(data, 4, seed=1, negatives=2):
        ...     print(tuple(users.shape), tuple(positives.shape), tuple(negatives.shape))
        (4,) (4,) (4, 2)
        (2,) (2,) (2, 2)
    """

    # What users of torch's data loaders give by name; none of it belongs together.
    def __init__(
        self,
        interactions: Any,
        batch_size: int,
        *,
        seed: int = 0,
        positives: int = 1,
        negatives: int = 1,
        draws: int = 1,
        exclude: Any = None,
        strategy: Strategy = "uniform",
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        positive_strategy: Literal["epoch", "interactions", "users", "weights"] = "epoch",
        alpha: float = 1.0,
        candidates: Any = None,
        replacement: bool = True,
        negatives_shared: bool | int = False,
    ) -> None:
        self.interactions = Interactions.from_any(interactions)
        self.batch_size = _checks.require_positive_int("batch_size", batch_size)
        self._signed_seed = signed_seed(seed)
        self.seed = int(seed)
        if positives not in (1, 2):
            raise ValueError(f"positives: expected 1 or 2, got {positives!r}")
        self.positives = int(positives)
        self.negatives = num_negatives("negatives", negatives, 0)
        self.draws = _checks.require_positive_int("draws", draws)
        self.world_size = _checks.require_positive_int("world_size", world_size)
        self.rank = _checks.require_positive_int("rank", rank, minimum=0)
        if self.rank >= self.world_size:
            raise ValueError(f"rank: expected a number below world_size = {self.world_size}, got {self.rank}")
        _checks.require_choice("positive_strategy", positive_strategy, POSITIVES)
        self._strategy = NegativeSource.of(self.interactions, strategy, exclude, alpha, candidates, replacement)
        self.negatives_shared = shared_samples(negatives_shared)
        if self.negatives_shared:
            for name, value, expected in (
                ("positives", self.positives, 1),
                ("replacement", self._strategy.replacement, True),
            ):
                if value != expected:
                    raise ValueError(f"{name}: expected {expected} with negatives_shared, got {value}")
            if not 0 < self.negatives < MAX_NEGATIVES:
                most = MAX_NEGATIVES - 1
                raise ValueError(f"negatives: expected 1 to {most} with negatives_shared, got {self.negatives}")
        if positive_strategy == "weights" and self.positives != 1:
            raise ValueError(f"positives: expected 1 with positive_strategy='weights', got {self.positives}")
        if positive_strategy == "epoch":
            self._order = 1 if shuffle else 0
        else:
            self._order = 3 if positive_strategy == "users" else 2
        self._leave_out()
        self._entries = self._table_of_entries() if positive_strategy == "weights" else None
        self._samples = self.draws * self._kept
        if self._samples >= 1 << 62:
            raise ValueError(f"draws: expected an epoch of fewer than 2**62 samples, got {self._samples}")
        if self._samples < self.world_size:
            raise ValueError(f"world_size: expected at most {self._samples}, the samples of an epoch, got {world_size}")
        self._epoch = 0
        self._step = 0
        self._resume = False

    def _leave_out(self) -> None:
        data = self.interactions
        counts = data.user_counts
        need = min(self.negatives, 1) if self._strategy.replacement else self.negatives
        lacking = self._strategy.lacking(need)
        skipped = (lacking & (counts > 0)).nonzero().flatten()
        self._skipped = skipped
        self._gaps = None
        self._kept = data.nnz
        if skipped.numel():
            total = counts[skipped].cumsum(0)
            self._gaps = torch.stack((data.indptr[skipped] - total + counts[skipped], total)).contiguous()
            self._kept -= int(total[-1])
        if self._kept == 0:
            raise ValueError(
                f"interactions: expected a user with a positive and {self.negatives} negative(s) to draw, got none "
                f"(shape {data.shape}, {data.nnz} interactions)"
            )
        self._active = (~lacking & (counts > 0)).nonzero().flatten() if self._order == 3 else None

    def _table_of_entries(self) -> tuple[Tensor, Tensor]:
        """Return what entries of the matrix are drawn by, in proportion to their weights."""
        weights = checked_weights("positive_strategy", self.interactions).double()
        if self._skipped.numel():
            users = self.interactions.pairs()[0]
            weights = torch.where(torch.isin(users, self._skipped), 0.0, weights)
        if not bool(weights.any()):
            raise ValueError("positive_strategy: 'weights' needs a weight above 0, got none")
        return _popularity_table(weights, 1.0)

    @property
    def draws_by_weight(self) -> bool:
        """Whether positives are drawn in proportion to their weights."""
        return self._entries is not None

    def _weighted_positives(self, begin: int, end: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Return users and positives of the samples [begin, end): entries of one long row that nobody has."""
        data = self.interactions
        assert self._entries is not None
        nobody = data.indptr.new_zeros(2)
        row = (data.indptr.new_zeros(end - begin), nobody, data.indices[:0], None, *self._entries, data.nnz)
        drawn, _ = _ops.sample_negatives(*row, 1, self._signed_seed ^ _ENTRY_SEED, epoch, begin, True, None)
        entries = drawn[:, 0]
        users = torch.searchsorted(data.indptr, entries, right=True) - 1
        return users, data.indices[entries].long()

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration yields, or that is under way."""
        return self._epoch

    @property
    def num_samples(self) -> int:
        """Samples in an epoch, over all processes."""
        return self._samples

    @property
    def skipped_users(self) -> Tensor:
        """Users with positives who are left out because they lack negatives, int64, ascending."""
        return self._skipped

    def __len__(self) -> int:
        """Batches that each process yields in an epoch."""
        return -(-self._samples // (self.batch_size * self.world_size))

    def __getitem__(self, index: Any) -> NoReturn:
        """Say what to do instead: a DataLoader asks for single samples, but here batches are made whole."""
        raise TypeError(
            "TripletLoader: expected to be iterated over, got a request for a single sample, as a DataLoader makes it. "
            "It is a loader itself: do not wrap it in a DataLoader, and leave it out of accelerator.prepare(). With "
            "several processes give it rank= and world_size="
        )

    def _slice(self, step: int) -> tuple[int, int]:
        """The sample numbers [begin, end) of this process's batch."""
        together = self.batch_size * self.world_size
        steps = len(self)
        begin, end = step * together, min((step + 1) * together, self._samples)
        last = self._samples - (steps - 1) * together
        if last < self.world_size and steps > 1:  # too few for all: the last but one step leaves them some
            if step == steps - 2:
                end = self._samples - self.world_size
            elif step == steps - 1:
                begin = self._samples - self.world_size
        size = end - begin
        if size == together:
            return begin + self.rank * self.batch_size, begin + (self.rank + 1) * self.batch_size
        return begin + size * self.rank // self.world_size, begin + size * (self.rank + 1) // self.world_size

    def _batch(self, step: int, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.samples_between(*self._slice(step), epoch)

    def samples_between(
        self, begin: int, end: int, epoch: int, key: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the samples (users, positives, negatives) with the numbers [begin, end) of an epoch.

        ``key``, int64 [3] on the device of the interactions, holds seed, epoch and first number in place of these. It
        is read when the kernels run, so that a captured CUDA graph draws anew at each replay.
        """
        seed = self._signed_seed
        users, positives = self._positives_between(begin, end, epoch, key)
        if self.negatives_shared:
            size = self.negatives_shared
            negatives = self._strategy.draw_shared(users, self.negatives, seed, epoch, begin, size, key)
        else:
            negatives = self._strategy.draw(users, self.negatives, seed, epoch, begin, key)[0]
        return users, positives, negatives[:, 0] if self.negatives == 1 else negatives

    def lists_between(
        self, begin: int, end: int, epoch: int, key: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, SharedLists]:
        """Return these samples with the lists of negatives that they share, as the op ``mf_step`` takes them.

        The negatives, [n, k], are those of samples that share nothing; the others' have no meaning.
        """
        size, k, seed = self.negatives_shared, self.negatives, self._signed_seed
        users, positives = self._positives_between(begin, end, epoch, key)
        lists, start, _, held = self._strategy.draw_lists(users, k, seed, epoch, begin, size, key)
        own, _ = self._strategy.draw(users, k, seed, epoch, begin, key)
        return users, positives, own, (lists, start, held, held.all(1).cumsum(0), size)

    def _positives_between(self, begin: int, end: int, epoch: int, key: Tensor | None) -> tuple[Tensor, Tensor]:
        if not self.draws_by_weight:
            source = (*self._positives_source(begin, end), self._signed_seed, epoch, key)
            return _ops.sample_positives(*source)
        if key is not None:
            raise ValueError("key: expected None with positive_strategy='weights'")
        return self._weighted_positives(begin, end, epoch)

    def prepare(self) -> None:
        """Make now what speeds up drawing an epoch, and is made after some batches otherwise."""
        _hint(self.interactions)
        self._strategy.prepare()

    def _positives_source(self, begin: int, end: int) -> tuple[Any, ...]:
        """What the ops draw the positives of these samples from."""
        data = self.interactions
        matrix = (data.indptr, data.indices, _hint(data), _HINT_SHIFT, self._gaps, self._active)
        return *matrix, self._order, self._kept, self._samples, begin, end - begin, self.positives

    def sample_source(self, begin: int, end: int, epoch: int) -> tuple[Any, ...]:
        """Return what the fused training step needs to draw these samples by itself."""
        strategy, k = self._strategy, self.negatives
        if self.draws_by_weight:
            raise ValueError(
                "positive_strategy: expected another one than 'weights', of which no op draws while it trains"
            )
        negatives = (*strategy.source((end - begin) * k), k, self._signed_seed, epoch, strategy.replacement)
        shared = self.negatives_shared
        return *self._positives_source(begin, end), *negatives, shared

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        start = self._step if self._resume else 0
        self._resume = False
        self._step = start
        return self._run(start, self._epoch)

    def _run(self, start: int, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for step in range(start, len(self)):
            batch = self._batch(step, epoch)
            # With the last batch the epoch is over: a loop that counts batches never asks for the end (Lightning's).
            last = step + 1 == len(self)
            self._epoch, self._step = ((epoch + 1) % (1 << 32), 0) if last else (epoch, step + 1)
            yield batch

    @property
    def sampler(self) -> TripletLoader:
        """The loader itself: frameworks call ``loader.sampler.set_epoch`` before an epoch (Lightning does)."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The next iteration yields this epoch; from its start, unless just resumed in the middle of the same one."""
        number = _epoch_number(epoch)
        if number != self._epoch or not self._resume:
            self._epoch, self._step, self._resume = number, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, also in the middle of an epoch: after the batch that was yielded last."""
        return {
            "seed": self.seed,
            "epoch": self._epoch,
            "step": self._step,
            "num_samples": self._samples,
            "samples_per_step": self.batch_size * self.world_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration goes on where ``state`` was taken.

        The loader must have been made with the same arguments; another ``world_size`` is allowed where ``batch_size *
        world_size`` is the same.
        """
        expected = self.state_dict()
        missing = sorted(set(expected) - set(state))
        if missing:
            raise ValueError(f"state: expected the keys {', '.join(expected)}, got none of {', '.join(missing)}")
        for name in ("seed", "num_samples", "samples_per_step"):
            if state[name] != expected[name]:
                raise ValueError(f"state: expected {name} = {expected[name]}, as this loader has, got {state[name]}")
        step = _checks.require_positive_int("state['step']", state["step"], minimum=0)
        if step > len(self):
            raise ValueError(f"state['step']: expected at most {len(self)}, got {step}")
        epoch = _epoch_number(state["epoch"])
        if step == len(self):  # taken after the last batch, before the loop had ended
            epoch, step = (epoch + 1) % (1 << 32), 0
        self._epoch, self._step, self._resume = epoch, step, True
