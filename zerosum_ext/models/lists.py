"""Lists of the best items: which items are candidates, and how the best of them are found."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from zerosum_ext import _ops
from zerosum_ext._checks import describe, require_ids
from zerosum_ext.data.interactions import Interactions

__all__ = ["Factors", "Rows", "allowed_items", "best_by_factors", "best_by_scores", "best_of_own", "rows_of"]

#: Vectors of users [U, d] and of items [I, d], and the bias of items [I] or None.
Factors = tuple[Tensor, Tensor, "Tensor | None"]

# The number of (user, item) cells that are scored at once: 64 MiB of float32.
CELLS_PER_CHUNK = 1 << 24
# Users that the ranking kernel gets in one call, and the number from which it makes up for preparing the item table.
KERNEL_USERS = 1 << 16
FEW_USERS = 64
# The dtypes that the ranking kernel takes.
_RANKED = (torch.float32, torch.float64)


class Rows(NamedTuple):
    """Items of users as CSR, ascending and each once.

    Attributes:
        indptr: int64 [rows + 1].
        indices: int32 or int64.
        aligned: whether row r belongs to the r-th user that was asked for. Otherwise it belongs to user r.
    """

    indptr: Tensor
    indices: Tensor
    aligned: bool

    def cells(self, places: Tensor, users: Tensor) -> tuple[Tensor, Tensor]:
        """Return (number in ``places``, item) of each item of some of the users that were asked for.

        Args:
            places: which of them, int64 [B].
            users: their ids, int64 [B].
        """
        rows = places if self.aligned else users
        if rows.numel() == 1 and rows.device.type == "cpu":
            first, last = self.indptr[rows[0] : rows[0] + 2].tolist()
            own = self.indices[first:last].long()
            return torch.zeros_like(own), own
        starts, counts = self.indptr[rows], self.indptr[rows + 1] - self.indptr[rows]
        numbers = torch.repeat_interleave(torch.arange(rows.numel(), device=rows.device), counts)
        ends = torch.cumsum(counts, 0)
        offsets = torch.arange(numbers.numel(), device=rows.device) + (starts - ends + counts)[numbers]
        return numbers, self.indices[offsets].long()


def _aligned(numbers: Tensor, items: Tensor, count: int) -> Rows:
    """Return rows of (row, item) pairs that are sorted."""
    if count == 1:
        return Rows(torch.tensor([0, items.numel()], device=items.device), items, True)
    indptr = torch.zeros(count + 1, dtype=torch.int64, device=items.device)
    torch.cumsum(torch.bincount(numbers, minlength=count), 0, out=indptr[1:])
    return Rows(indptr, items, True)


# --- what callers give --------------------------------------------------------------------------------------------


def rows_of(name: str, value: Any, users: Tensor, shape: tuple[int, int]) -> Rows:
    """Return the rows that a matrix has for the users that are asked for, without converting the whole of it.

    Args:
        name: of the argument.
        value: [num_users, num_items], or [n, num_items] with a row for each of ``users``: Interactions, or a scipy or
            torch CSR. A matrix of num_users rows is always that of all users. Or a list of the ids of each of
            ``users``.
        users: int64 [n].
        shape: (num_users, num_items).

    Raises:
        TypeError: it is no such matrix.
        ValueError: it has another shape; a value is negative or NaN.
    """
    if isinstance(value, list):
        return _listed(name, value, users, shape)
    if sp.issparse(value):
        if value.ndim != 2:
            raise ValueError(f"{name}: expected two dimensions, got shape {value.shape}")
        aligned = _is_aligned(name, tuple(value.shape), users, shape)
        matrix = value if value.format == "csr" else value.tocsr()
        return _sliced(name, matrix.indptr, matrix.indices, matrix.data, aligned, users, shape)
    if isinstance(value, Tensor) and value.layout == torch.sparse_csr:
        aligned = _is_aligned(name, tuple(value.shape), users, shape)
        parts = (part.detach().cpu() for part in (value.crow_indices(), value.col_indices(), value.values()))
        indptr, indices, data = ((part.float() if part.dtype == torch.bfloat16 else part).numpy() for part in parts)
        return _sliced(name, indptr, indices, data, aligned, users, shape)
    dense = isinstance(value, np.ndarray) or (isinstance(value, Tensor) and value.layout == torch.strided)
    if dense or isinstance(value, (str, bytes)):
        raise TypeError(
            f"{name}: expected Interactions, a scipy or torch CSR matrix, or a list of the ids of each user, got "
            f"{describe(value)}"
        )
    matrix = Interactions.from_any(value)
    aligned = _is_aligned(name, tuple(matrix.shape), users, shape)
    matrix = matrix.to(users.device)
    return Rows(matrix.indptr, matrix.indices, aligned)


def _listed(name: str, value: list[Any], users: Tensor, shape: tuple[int, int]) -> Rows:
    """Return the rows of a list of each user's ids."""
    if len(value) != users.numel():
        raise ValueError(f"{name}: expected a list of ids for each of {users.numel()} users, got {len(value)} lists")
    rows = []
    for own in value:
        ids = require_ids(name, own, shape[1], users.device)
        if ids.dim() != 1:
            raise TypeError(f"{name}: expected a list of lists of ids, got {describe(own)} in it")
        rows.append(ids.unique())
    counts = torch.tensor([len(own) for own in rows], dtype=torch.int64, device=users.device)
    items = torch.cat(rows) if rows else users.new_zeros(0)
    return Rows(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), items, True)


def _is_aligned(name: str, got: tuple[int, ...], users: Tensor, shape: tuple[int, int]) -> bool:
    if got == shape:
        return False
    if got == (users.numel(), shape[1]):
        return True
    raise ValueError(
        f"{name}: expected shape {shape} as the model's, or {(users.numel(), shape[1])} with a row for each of the "
        f"users, got {got}"
    )


def _plain_row(indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, row: int, num_items: int) -> Tensor | None:
    """Return the items of a row, int64, or None where one is out of order or range, or a value is not above 0."""
    begin, end = int(indptr[row]), int(indptr[row + 1])
    if not 0 <= begin <= end <= min(len(indices), len(values)):
        return None
    items = indices[begin:end]
    if begin < end and not (
        items[0] >= 0 and items[-1] < num_items and values[begin:end].min() > 0 and (items[1:] > items[:-1]).all()
    ):
        return None
    return torch.from_numpy(items.astype(np.int64))


def _sliced(
    name: str,
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    aligned: bool,
    users: Tensor,
    shape: tuple[int, int],
) -> Rows:
    """Return the rows of ``users``: entries that are not zero, ascending and each once."""
    if users.numel() == 1:  # a request, which has not much time
        plain = _plain_row(indptr, indices, values, 0 if aligned else int(users[0]), shape[1])
        if plain is not None:
            return Rows(torch.tensor([0, len(plain)], device=users.device), plain.to(users.device), True)
    rows = np.arange(users.numel()) if aligned else users.cpu().numpy()
    starts = indptr[rows].astype(np.int64)
    counts = indptr[rows + 1] - starts
    if rows.size and (starts.min() < 0 or counts.min() < 0 or (starts + counts).max() > min(len(indices), len(values))):
        raise ValueError(f"{name}: indptr is not a valid CSR row pointer (ascending from 0, within the entries)")
    if rows.size == 1:
        part: Any = slice(starts[0], starts[0] + counts[0])
        numbers = np.zeros(int(counts[0]), np.int64)
    else:
        numbers = np.repeat(np.arange(rows.size), counts)
        part = np.arange(numbers.size) + np.repeat(starts - np.cumsum(counts) + counts, counts)
    items, data = indices[part].astype(np.int64), values[part]
    if items.size:
        if items.min() < 0 or items.max() >= shape[1]:
            raise ValueError(f"{name}: expected items from 0 to {shape[1] - 1}, got {items.min()} to {items.max()}")
        if data.dtype != np.bool_ and not (data >= 0).all():
            at = int(np.flatnonzero(~(data >= 0))[0])
            user = int(users[numbers[at]])
            raise ValueError(
                f"{name}: the value at user {user}, item {items[at]} is {data[at]}, expected none below zero and no NaN"
            )
        if not data.all():
            numbers, items = numbers[data != 0], items[data != 0]
        keys = numbers * shape[1] + items
        if (np.diff(keys) <= 0).any():
            numbers, items = np.divmod(np.unique(keys), shape[1])
    device = users.device
    return _aligned(torch.from_numpy(numbers).to(device), torch.from_numpy(items).to(device), rows.size)


def allowed_items(
    items: Any, filter_items: Any, users: Tensor, shape: tuple[int, int], names: tuple[str, str]
) -> Tensor | Rows | None:
    """Return the candidates: None for all, ascending ids [C] for all users alike, or rows for each of the users.

    Args:
        items: ids or a mask, or a matrix as in :func:`rows_of`, or None.
        filter_items: ids or a mask of what is no candidate, or None.
        users: int64 [n].
        shape: (num_users, num_items).
        names: those of the two arguments.

    Raises:
        TypeError, ValueError: they are nothing of the kind; the message names the argument.
    """
    device = users.device
    per_user = isinstance(items, Interactions) or sp.issparse(items)
    if per_user or (isinstance(items, Tensor) and items.layout == torch.sparse_csr):
        rows = rows_of(names[0], items, users, shape)
        if filter_items is not None or not rows.aligned:
            numbers, own = rows.cells(torch.arange(users.numel(), device=device), users)
            if filter_items is not None:
                keep = ~_mask(names[1], filter_items, shape[1], device)[own]
                numbers, own = numbers[keep], own[keep]
            rows = _aligned(numbers, own, users.numel())
        return rows
    if items is None and filter_items is None:
        return None
    allowed = torch.ones(shape[1], dtype=torch.bool, device=device)
    if items is not None:
        allowed = _mask(names[0], items, shape[1], device)
    if filter_items is not None:
        allowed &= ~_mask(names[1], filter_items, shape[1], device)
    return allowed.nonzero().flatten()


def _mask(name: str, values: Any, size: int, device: torch.device) -> Tensor:
    """Return a mask of ids."""
    ids = require_ids(name, values, size, device)
    if ids.dim() > 1:
        raise ValueError(f"{name}: expected ids [C] or a mask [{size}], got {describe(values)}")
    mask = torch.zeros(size, dtype=torch.bool, device=device)
    mask[ids] = True
    return mask


def among(rows: Rows, users: Tensor, candidates: Tensor, num_items: int) -> Rows:
    """Return rows whose items are numbered by their places among the candidates; the others are left out."""
    numbers, items = rows.cells(torch.arange(users.numel(), device=users.device), users)
    place = torch.full((num_items,), -1, dtype=torch.int64, device=users.device)
    place[candidates] = torch.arange(candidates.numel(), device=users.device)
    places = place[items]
    return _aligned(numbers[places >= 0], places[places >= 0], users.numel())


# --- the best of them ---------------------------------------------------------------------------------------------


def refuse_nan(found: bool) -> None:
    if found:
        raise ValueError("recommend: the model's scores contain NaN; its training diverged")


def best_by_factors(factors: Factors, users: Tensor, seen: Rows | None, width: int) -> tuple[Tensor, Tensor]:
    """Return the best items by dot products, [n, width] each, -1 and -inf where there is none.

    Args:
        factors: vectors of users, of candidates, and the bias of these.
        users: int64 [n].
        seen: items that are not recommended, or None.
        width: at most the number of candidates.
    """
    user, item, bias = factors
    many = users.numel() >= FEW_USERS
    if not (many and item.dtype in _RANKED and _ops.has_op("rank_factors", item.device)):

        def score(part: Tensor) -> Tensor:
            scores = user[part] @ item.T
            return scores if bias is None else scores + bias

        return best_by_scores(score, users, seen, width, item.shape[0])
    # The kernel stores no scores and needs most of them only roughly. It takes the rows that users' ids name.
    if seen is not None and seen.aligned:
        user, users = user[users], torch.arange(users.numel(), device=users.device)
    user, item, bias = user.contiguous(), item.contiguous(), None if bias is None else bias.contiguous()
    indptr, indices = (None, None) if seen is None else (seen.indptr, seen.indices)
    parts = []
    for part in users.contiguous().split(KERNEL_USERS):
        found, values, failed = _ops.best_items(user, item, bias, part, indptr, indices, width)
        refuse_nan(int(failed) >= 0)
        parts.append((found, values))
    return _joined(parts)


def padded_by(
    best: Callable[[Rows | None, int], tuple[Tensor, Tensor]],
    users: Tensor,
    seen: Rows | None,
    candidates: Tensor | None,
    k: int,
    num_items: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return items and scores, [n, k] each, from what finds the best by their numbers among the candidates.

    Args:
        best: from what is not recommended, numbered among the candidates, and a width to lists of this width.
        users: int64 [n].
        seen: items that are not recommended, or None.
        candidates: ascending ids [C], or None for all items.
        k: the length of the lists.
        num_items: the size of the catalogue.
        dtype: that of the scores.
    """
    width = min(k, num_items if candidates is None else candidates.numel())
    if width == 0 or users.numel() == 0:
        found = users.new_full((users.numel(), k), -1)
        return found, torch.full(found.shape, float("-inf"), dtype=dtype, device=users.device)
    if candidates is not None and seen is not None:
        seen = among(seen, users, candidates, num_items)
    found, scores = best(seen, width)
    if candidates is not None:
        found = torch.where(found < 0, found, candidates[found.clamp(min=0)])
    if width < k:
        found = torch.nn.functional.pad(found, (0, k - width), value=-1)
        scores = torch.nn.functional.pad(scores, (0, k - width), value=float("-inf"))
    return found, scores


def padded(
    factors: Factors, users: Tensor, seen: Rows | None, candidates: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    """Return the best items by dot products, [n, k] each; ``candidates`` as in :func:`padded_by`."""
    user, item, bias = factors
    kept = item if candidates is None else item[candidates]
    kept_bias = bias if bias is None or candidates is None else bias[candidates]

    def best(known: Rows | None, width: int) -> tuple[Tensor, Tensor]:
        return best_by_factors((user, kept, kept_bias), users, known, width)

    return padded_by(best, users, seen, candidates, k, item.shape[0], item.dtype)


def best_by_scores(
    score: Callable[[Tensor], Tensor], users: Tensor, seen: Rows | None, width: int, number: int
) -> tuple[Tensor, Tensor]:
    """Return the best items by given scores, as :func:`best_by_factors` does.

    Args:
        score: from users [B] to a new tensor of the scores of the candidates, [B, number].
        users: int64 [n].
        seen: items that are not recommended, by their numbers among the candidates, or None.
        width: at most ``number``.
        number: the number of candidates.
    """
    device = users.device
    if users.numel() == 1 and device.type == "cpu":
        return _best_of_one(score(users), users, seen, width)
    kernel = device.type != "cpu" and _ops.has_op("rank_scores", device)
    step = max(1, CELLS_PER_CHUNK // max(1, number))
    parts = []
    for start in range(0, users.numel(), step):
        part = users[start : start + step]
        block = score(part)
        places = None
        if seen is not None:
            places = torch.arange(start, start + part.numel(), device=device) if seen.aligned else part
        if kernel:  # one pass over the scores, and of equal ones the lower item first
            indptr, indices = (None, None) if seen is None else (seen.indptr, seen.indices)
            asked = torch.arange(part.numel(), device=device) if places is None else places
            rows = part.numel() if indptr is None else indptr.numel() - 1
            found, values, failed = _ops.best_of_scores(block, asked.contiguous(), rows, indptr, indices, width)
            refuse_nan(int(failed) >= 0)
            parts.append((found, values))
            continue
        if seen is not None and places is not None:
            numbers, columns = seen.cells(places, part)
            block[numbers, columns] = float("-inf")
        values, found = block.topk(width, dim=1)
        # topk puts NaN first, so that a look at the winners is enough.
        refuse_nan(bool(values.isnan().any()))
        parts.append((found.masked_fill_(values == float("-inf"), -1), values))
    return _joined(parts)


def _best_of_one(scores: Tensor, users: Tensor, seen: Rows | None, width: int) -> tuple[Tensor, Tensor]:
    """Return the best items of one user [1], a request, in as few operations as there can be."""
    if seen is not None:
        row = 0 if seen.aligned else int(users)
        first, last = seen.indptr[row : row + 2].tolist()
        scores.index_fill_(1, seen.indices[first:last].long(), float("-inf"))
    values, found = scores.topk(width, dim=1)
    listed = values[0].tolist()
    refuse_nan(listed[0] != listed[0])  # topk puts NaN first
    if listed[-1] == -math.inf:
        found.masked_fill_(values == -math.inf, -1)
    return found, values


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(parts) == 1:
        return parts[0]
    found, values = zip(*parts, strict=True)
    return torch.cat(found), torch.cat(values)


def best_of_own(
    score: Callable[[Tensor, Tensor], Tensor],
    users: Tensor,
    own: Rows,
    seen: Rows | None,
    k: int,
    num_items: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return the best of the candidates that each user has of his own, [n, k] each.

    Args:
        score: from users [P] and items [P] to the scores of these pairs [P].
        users: int64 [n].
        own: the candidates, a row for each of the users.
        seen: items that are not recommended, or None.
        k: the number of items of each user.
        num_items: the size of the catalogue.
        dtype: that of the scores.
    """
    device = users.device
    items = torch.full((users.numel(), k), -1, dtype=torch.int64, device=device)
    values = torch.full((users.numel(), k), float("-inf"), dtype=dtype, device=device)
    longest = int(own.indptr.diff().amax()) if users.numel() else 0
    step = max(1, CELLS_PER_CHUNK // (64 * max(1, longest)))  # a pair's vectors take more room than its score
    for start in range(0, users.numel(), step):
        part = users[start : start + step]
        places = torch.arange(start, start + part.numel(), device=device)
        numbers, columns = own.cells(places, part)
        if seen is not None:
            known = torch.stack(seen.cells(places, part))
            keep = ~torch.isin(numbers * num_items + columns, known[0] * num_items + known[1])
            numbers, columns = numbers[keep], columns[keep]
        counts = torch.bincount(numbers, minlength=part.numel())
        width = int(counts.amax()) if numbers.numel() else 0
        if width == 0:
            continue
        at = torch.arange(numbers.numel(), device=device) - (counts.cumsum(0) - counts)[numbers]
        block = torch.full((part.numel(), width), float("-inf"), dtype=dtype, device=device)
        names = torch.full((part.numel(), width), -1, dtype=torch.int64, device=device)
        names[numbers, at] = columns
        block[numbers, at] = score(part[numbers], columns).to(dtype)
        best, places_of_best = block.topk(min(k, width), dim=1)
        refuse_nan(bool(best.isnan().any()))
        found = names.gather(1, places_of_best).masked_fill_(best == float("-inf"), -1)
        items[start : start + step, : found.shape[1]] = found
        values[start : start + step, : found.shape[1]] = best
    return items, values
