"""Bring what evaluation is given, interactions and models, to one form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from zerosum_ext._types import ArrayLike, InteractionsLike
from zerosum_ext.data.interactions import Interactions

#: Interactions, or a scipy sparse matrix [num_users, num_items].
Data: TypeAlias = "Interactions | sparse.spmatrix | sparse.sparray"
#: The interactions that are no candidates: those of training, None, or others.
Exclude: TypeAlias = "Literal['train'] | Data | None"
#: Interaction counts [num_items], or an interaction matrix.
Popularity: TypeAlias = "ArrayLike | Data | InteractionsLike"


def require_interactions(value: Any, name: str) -> Interactions:
    """Return the interactions, made of a scipy matrix if need be, or raise TypeError."""
    if not isinstance(value, Interactions) and not sparse.issparse(value):
        raise TypeError(f"{name}: expected Interactions or a scipy sparse matrix, got {type(value).__name__}")
    return Interactions.from_any(value)


def require_same_shape(train: tuple[int, int], test: tuple[int, int]) -> None:
    if train != test:
        raise ValueError(f"test: expected the shape of the train or excluded interactions {train}, got {test}")


def forward_decides(model: torch.nn.Module) -> bool:
    """Return whether a model's forward is overridden without what ranks all items: then its forward has to score them.

    A class, or an object, that replaces ``forward`` (or ``score``, ``represent``, ``embedding_rows``, of which it is
    made) but inherits ``vectors``, ``factors`` and ``score_all_items`` would be ranked by scores that it does not give.
    """

    def depth(*names: str) -> int:
        if any(name in vars(model) for name in names):
            return -1
        classes = type(model).__mro__
        return next((i for i, kind in enumerate(classes) if any(name in vars(kind) for name in names)), len(classes))

    ranked = depth("vectors", "factors", "score_all_items")
    return depth("forward", "score", "represent", "embedding_rows") < ranked


def scores_by_forward(model: torch.nn.Module, users: Tensor, num_items: int) -> Tensor:
    """Return the scores of every item for ``users`` [B], as the model's forward gives them: [B, num_items]."""
    parameter = next(model.parameters(), None)
    place = users.device if parameter is None else parameter.device
    users = users.to(place)
    scores: Tensor = model(users, torch.arange(num_items, device=place).expand(users.numel(), num_items))
    if tuple(scores.shape) != (users.numel(), num_items):
        raise ValueError(
            f"model: expected scores of shape {(users.numel(), num_items)} for all items, got {tuple(scores.shape)}"
        )
    return scores


Factors = tuple[Tensor, Tensor, "Tensor | None"]


def as_floating(values: Any) -> Tensor:
    """Return a tensor of floating-point numbers; integers become float64."""
    result = torch.as_tensor(values)
    return result if result.is_floating_point() else result.double()


def score_source(model: Any, num_users: int, num_items: int) -> Factors | Callable[[Tensor], Any]:
    """Return factors (user [U, d], item [I, d], item bias), or a function from users [B] to scores [B, num_items].

    Raises:
        TypeError: the model is nothing that evaluation takes.
        ValueError: its shapes do not fit.
    """
    module = isinstance(model, torch.nn.Module)
    if module and (forward_decides(model) or not (hasattr(model, "factors") or hasattr(model, "score_all_items"))):
        return lambda users: scores_by_forward(model, users, num_items)
    if hasattr(model, "factors"):
        model = tuple(model.factors())
    elif hasattr(model, "score_all_items"):
        function: Callable[[Tensor], Any] = model.score_all_items
        return function
    if isinstance(model, (tuple, list)):
        if len(model) not in (2, 3):
            raise ValueError(f"model: expected (user factors, item factors[, item bias]), got {len(model)} entries")
        user, item = as_floating(model[0]), as_floating(model[1])
        bias = None if len(model) == 2 or model[2] is None else as_floating(model[2])
        if user.ndim != 2 or item.ndim != 2 or user.shape[1] != item.shape[1]:
            raise ValueError(f"model: expected factors [U, d] and [I, d], got {[*user.shape]} and {[*item.shape]}")
        _check_shape("user factors", user.shape[0], num_users, "users")
        _check_shape("item factors", item.shape[0], num_items, "items")
        if bias is not None and bias.shape != (num_items,):
            raise ValueError(f"model: expected an item bias of shape [{num_items}], got {[*bias.shape]}")
        wide = torch.float64 in (user.dtype, item.dtype, item.dtype if bias is None else bias.dtype)
        options: dict[str, Any] = {"device": user.device, "dtype": torch.float64 if wide else torch.float32}
        return (
            user.to(**options).contiguous(),
            item.to(**options).contiguous(),
            None if bias is None else bias.to(**options).contiguous(),
        )
    if isinstance(model, (np.ndarray, Tensor)):
        matrix = as_floating(model)
        if matrix.shape != (num_users, num_items):
            raise ValueError(f"model: expected scores [{num_users}, {num_items}], got {[*matrix.shape]}")
        return lambda users: matrix[users.to(matrix.device)]
    raise TypeError(
        "model: expected an nn.Module, an object with factors() or score_all_items(users), (user factors, item "
        f"factors[, item bias]), or a matrix of scores, got {type(model).__name__}"
    )


def _check_shape(what: str, got: int, expected: int, axis: str) -> None:
    if got != expected:
        raise ValueError(f"model: {what} has {got} rows, the interactions have {expected} {axis}")
