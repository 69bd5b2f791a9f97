"""Types that every room may use: choices by name, and what the library asks of objects that it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

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


_Rows = TypeVar("_Rows", bound="InteractionRows")


class InteractionRows(InteractionsLike, Protocol):
    """Interactions with their columns and ids: what is split, filtered and cut, and comes back as the same kind."""

    @property
    def columns(self) -> Mapping[str, Array]:
        """Arrays [nnz] in the order of the indices."""

    @property
    def report(self) -> Any:
        """What became of the rows: a dataclass of counts and notes."""

    @property
    def nnz(self) -> int:
        """The number of interactions."""

    @property
    def num_users(self) -> int:
        """The number of users."""

    @property
    def num_items(self) -> int:
        """The number of items."""

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Return (users, items), int64 [nnz] each."""

    def column(self, argument: str, name: str) -> Array:
        """Return a column, or raise ValueError that names the argument."""

    def decode_users(self, indices: Any) -> Array:
        """Return external ids of users."""

    def decode_items(self, indices: Any) -> Array:
        """Return external ids of items."""

    def take(self: _Rows, keep: Array, report: Any = None) -> _Rows:
        """Return the interactions where keep, bool [nnz], holds."""

    def drop_empty(self: _Rows) -> _Rows:
        """Return the same without users and items that have nothing."""

    def with_report(self: _Rows, report: Any) -> _Rows:
        """Return the same with another report."""

    def with_columns(self: _Rows, columns: Mapping[str, Array]) -> _Rows:
        """Return the same with other columns."""


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
