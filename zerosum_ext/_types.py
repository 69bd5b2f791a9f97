"""Types that every room may use: choices by name, and what the library asks of objects that it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from torch import Tensor, nn

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: How the values of the samples become the loss.
Reduction: TypeAlias = Literal["none", "sum", "mean"]
#: How the values of the users become a metric.
MetricReduction: TypeAlias = Literal["mean", "none"]
#: Which places equal scores get, see :func:`zerosum_ext.metrics.positive_ranks`.
Ties: TypeAlias = Literal["average", "pessimistic", "optimistic"]

#: How negatives are drawn, see :func:`zerosum_ext.sample_negatives`.
Strategy: TypeAlias = Literal["uniform", "popularity", "candidates"]

#: A NumPy array of any shape and dtype.
Array: TypeAlias = "NDArray[Any]"
#: Numbers of any kind that NumPy reads: an array, a tensor, a sequence.
ArrayLike: TypeAlias = Any


@runtime_checkable
class InteractionsLike(Protocol):
    """A user-item matrix in CSR form, as :class:`zerosum_ext.Interactions` holds it.

    Row u has the items ``indices[indptr[u]:indptr[u + 1]]``, ascending and each once.
    """

    @property
    def indptr(self) -> Tensor:
        """int64 [num_users + 1]."""

    @property
    def indices(self) -> Tensor:
        """int32 or int64 [number of interactions]."""

    @property
    def shape(self) -> tuple[int, int]:
        """(num_users, num_items)."""

    @property
    def popularity(self) -> Tensor:
        """int64 [num_items], the number of users who have each item."""


class ScoringModel(Protocol):
    """A model that scores all items for some users, as evaluation and recommendation ask for it."""

    def score_all_items(self, users: Tensor) -> Tensor:
        """Return the scores [B, num_items] of users int64 [B]."""


class FactorModel(Protocol):
    """A model whose scores are dot products of factors, plus a bias of the item."""

    def factors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the factors of users [U, d] and of items [I, d], and the bias of items [I] or None."""


#: What evaluation takes for a model: one of the two protocols (also a Module that has its method), factors as a tuple,
#: or a matrix of scores.
Scorer: TypeAlias = (
    "ScoringModel | FactorModel | nn.Module | tuple[Tensor | np.ndarray[Any, Any] | None, ...] | Tensor | Array"
)
#: Options by name, for what passes them on.
Options: TypeAlias = Mapping[str, Any]
