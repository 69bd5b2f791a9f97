"""Matrix factorization whose tables are spread over processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from zerosum_ext._checks import MOST_DIM, MOST_K, require_choice, require_finite_number, require_positive_int
from zerosum_ext._group import Group, as_group, even_cuts
from zerosum_ext.data.shards import ShardedInteractions
from zerosum_ext.evaluation.sharded import best_items_of_shards
from zerosum_ext.models.base import index_tensor
from zerosum_ext.models.mf import MatrixFactorization
from zerosum_ext.training import History, fit

__all__ = ["ShardedMatrixFactorization"]

#: Whether each process holds a share of a table, or all of it.
Layout: TypeAlias = Literal["sharded", "replicated"]
# Tables up to this many numbers start as those of MatrixFactorization; larger ones are drawn block by block.
_ONE_STREAM = 1 << 30
_BLOCK_ROWS = 1 << 12
# Numbers that are drawn at once on the way to the own rows; torch draws them in groups of 16.
_CHUNK = 1 << 22


class ShardedMatrixFactorization(nn.Module):
    """Score by ``y_ui = <P_u, Q_i> (+ b_i)``, as :class:`~zerosum_ext.MatrixFactorization`, with tables in parts.

    The rows of users are where their interactions are, and never travel. The rows of items are in equal ranges, or all
    of them in every process. No process holds a whole table that is sharded.

    Args:
        num_users, num_items, embedding_dim, item_bias, init_std, dtype: as in
            :class:`~zerosum_ext.MatrixFactorization`.
        mesh: a one-dimensional DeviceMesh, or a process group.
        user_cuts: where the users of each rank begin, and their number; by default equal ranges. Training needs those
            of
            the interactions: see :meth:`from_interactions`.
        items: "sharded": each process has a range of the items. "replicated": each has all of them, for tables of items
            that are small.
        seed: of the initial tables, which do not depend on the number of processes. Up to 2^30 numbers they are those
            of MatrixFactorization with this seed. Every process then draws them all, and keeps its own. Larger tables
            are drawn in blocks of 4096 rows, each from a seed of its own.
        device: of the parameters; by default that of the group.

    Raises:
        MemoryError: this process has no memory for its part of the tables; ValueError in the other processes.

    Attributes:
        user_embedding: Parameter [own users, d].
        item_embedding: Parameter [own items, d], or [num_items, d] if replicated.
        item_bias: Parameter [own items] or [num_items], or None.
        user_cuts, item_cuts: where each rank's rows begin, and the end of the last. Replicated items are in one range.
        group: the processes.
        epochs_trained: as of every model.
    """

    # The options of MatrixFactorization, and how the tables are spread.
    def __init__(
        self,
        num_users: int,
        num_items: int,
        embedding_dim: int = 64,
        *,
        mesh: Any,
        user_cuts: Sequence[int] | None = None,
        items: Layout = "sharded",
        item_bias: bool = False,
        init_std: float = 0.01,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.group: Group = as_group(mesh)
        self.num_users = require_positive_int("num_users", num_users)
        self.num_items = require_positive_int("num_items", num_items)
        self.embedding_dim = require_positive_int("embedding_dim", embedding_dim, maximum=MOST_DIM)
        self.init_std = require_finite_number("init_std", init_std, minimum=0)
        self.seed = require_positive_int("seed", seed, minimum=0)
        require_choice("items", items, ("sharded", "replicated"))
        self.replicated = items == "replicated"
        size, rank = self.group.size, self.group.rank
        self.user_cuts = even_cuts(self.num_users, size) if user_cuts is None else list(user_cuts)
        if len(self.user_cuts) != size + 1 or self.user_cuts[0] != 0 or self.user_cuts[-1] != self.num_users:
            raise ValueError(f"user_cuts: expected {size + 1} numbers from 0 to {self.num_users}, got {self.user_cuts}")
        if any(a > b for a, b in zip(self.user_cuts, self.user_cuts[1:], strict=False)):
            raise ValueError(f"user_cuts: expected ascending numbers, got {self.user_cuts}")
        self.item_cuts = [0, self.num_items] if self.replicated else even_cuts(self.num_items, size)
        first_item, last_item = (0, self.num_items) if self.replicated else self.item_cuts[rank : rank + 2]
        options: dict[str, Any] = {"device": device or self.group.device, "dtype": dtype}
        self._rows = (self.user_cuts[rank], self.user_cuts[rank + 1]), (first_item, last_item)
        shapes = [(last - first, self.embedding_dim) for first, last in self._rows]
        user_table, item_table = self._tables(shapes, options)
        self.user_embedding = nn.Parameter(user_table)
        self.item_embedding = nn.Parameter(item_table)
        self.item_bias: nn.Parameter | None
        if item_bias:
            self.item_bias = nn.Parameter(torch.zeros(shapes[1][0], **options))
        else:
            self.register_parameter("item_bias", None)
        self.reset_parameters(self.seed)

    def _tables(self, shapes: Sequence[tuple[int, int]], options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return room for both tables, or raise in every process if one of them has none."""
        error: Exception | None = None
        made: list[Tensor] = []
        try:
            made = [torch.empty(shape, **options) for shape in shapes]
        except (RuntimeError, MemoryError):  # that of CUDA is a RuntimeError, too
            size = (
                sum(rows * width for rows, width in shapes) * (options["dtype"] or torch.get_default_dtype()).itemsize
            )
            error = MemoryError(
                f"no memory for the tables: {shapes[0][0]:,} users and {shapes[1][0]:,} items of {self.embedding_dim} "
                f"numbers take {size / 2**30:.2f} GiB in this process, one of {self.group.size}; start more processes"
            )
        self.group.together(error)
        return made[0], made[1]

    @classmethod
    def from_interactions(cls, interactions: ShardedInteractions, **options: Any) -> ShardedMatrixFactorization:
        """Return a new model for these interactions, whose users are where their interactions are."""
        return cls(*interactions.shape, mesh=interactions.group, user_cuts=interactions.user_cuts, **options)

    def reset_parameters(self, seed: int = 0) -> None:
        """Draw both tables anew from N(0, init_std^2), set the biases and the count of trained epochs to zero."""
        self.epochs_trained = 0
        tables = self.user_embedding, self.item_embedding
        sizes = self.num_users, self.num_items
        with torch.no_grad():
            if sum(sizes) * self.embedding_dim <= _ONE_STREAM:
                generator = torch.Generator().manual_seed(int(seed))
                for table, size, (first, _) in zip(tables, sizes, self._rows, strict=True):
                    size, first = size * self.embedding_dim, first * self.embedding_dim
                    _draw_stream(generator, size, first, table, self.init_std)
            else:
                for number, (table, (first, last)) in enumerate(zip(tables, self._rows, strict=True)):
                    _draw_blocks(table, first, last, int(seed), number, self.init_std)
            if self.item_bias is not None:
                self.item_bias.zero_()

    def extra_repr(self) -> str:
        items = "replicated" if self.replicated else "sharded"
        return f"{self.num_users}, {self.num_items}, embedding_dim={self.embedding_dim}, items={items!r}"

    def config(self) -> dict[str, Any]:
        """Return the arguments of the same model in one process."""
        return {
            "num_users": self.num_users,
            "num_items": self.num_items,
            "embedding_dim": self.embedding_dim,
            "item_bias": self.item_bias is not None,
            "init_std": self.init_std,
            "sparse": False,
        }

    # --- training and recommendations ---------------------------------------------------------------------

    def fit(
        self, interactions: ShardedInteractions, loss: str | nn.Module = "zerosum", *args: Any, **options: Any
    ) -> History:
        """Train in place. Every process calls this with its own interactions; see :func:`zerosum_ext.training.fit`."""
        return fit(self, interactions, loss, *args, mesh=self.group, **options)

    def recommend(self, users: Any, k: int = 10, exclude: ShardedInteractions | None = None) -> tuple[Tensor, Tensor]:
        """Return the k best items of each of the own users that are asked for. All processes call this together.

        Args:
            users: numbers of own users, counted over all processes.
            k: the number of items of each user.
            exclude: interactions whose items are not recommended to their users; usually the training data.

        Returns:
            Items, int64 [n, k], and scores, [n, k], as :meth:`MatrixFactorization.recommend` of the whole tables
            returns.
        """
        error: Exception | None = None
        index = torch.empty(0, dtype=torch.int64)
        first = self._rows[0][0]
        try:
            k = require_positive_int("k", k, maximum=MOST_K)
            own = torch.as_tensor(users).reshape(-1) - first
            index = index_tensor("users", own, len(self.user_embedding), self.user_embedding.device)
            if exclude is not None and list(exclude.user_cuts) != self.user_cuts:
                raise ValueError(f"exclude: expected the users of the model {self.user_cuts}, got {exclude.user_cuts}")
        except (TypeError, ValueError) as wrong:
            error = wrong
        self.group.together(error)
        seen = None if exclude is None else exclude.local.to(index.device)
        return best_items_of_shards(self, index, k, seen)

    # --- one table of all parts -----------------------------------------------------------------------------

    def named_tables(self) -> dict[str, tuple[Tensor, int, int]]:
        """Return each parameter with the number of its first row and the number of rows over all processes."""
        (first_user, _), (first_item, _) = self._rows
        tables = {
            "user_embedding": (self.user_embedding.detach(), first_user, self.num_users),
            "item_embedding": (self.item_embedding.detach(), first_item, self.num_items),
        }
        if self.item_bias is not None:
            tables["item_bias"] = (self.item_bias.detach(), first_item, self.num_items)
        return tables

    def gather(self) -> MatrixFactorization:
        """Return the same model in one piece, in every process: for tables that fit."""
        whole = MatrixFactorization(
            self.num_users,
            self.num_items,
            self.embedding_dim,
            item_bias=self.item_bias is not None,
            init_std=self.init_std,
            device=self.user_embedding.device,
            dtype=self.user_embedding.dtype,
        )
        with torch.no_grad():
            for name, (own, _, size) in self.named_tables().items():
                everything = own if len(own) == size else torch.cat(self.group.gather(own))
                getattr(whole, name).copy_(everything)
        whole.epochs_trained = self.epochs_trained
        return whole

    def scatter(self, model: MatrixFactorization) -> None:
        """Take the rows of this process from a model in one piece."""
        if (model.num_users, model.num_items, model.embedding_dim) != (
            self.num_users,
            self.num_items,
            self.embedding_dim,
        ):
            raise ValueError(f"model: expected the shape of {self!r}, got {model!r}")
        with torch.no_grad():
            for name, (own, first, _) in self.named_tables().items():
                own.copy_(getattr(model, name)[first : first + len(own)])
        self.epochs_trained = model.epochs_trained


def _draw_stream(generator: torch.Generator, size: int, first: int, table: Tensor, std: float) -> None:
    """Draw ``size`` normal numbers as torch.randn does, and fill the table with those from ``first``, times std."""
    out = table.view(-1)
    last = first + out.numel()
    at = 0
    while at < size:
        # torch draws in groups of 16, and the end of a call otherwise: no call but the last may end elsewhere, and the
        # last one needs 16 numbers.
        step = _CHUNK if size - at >= _CHUNK + 16 else size - at
        numbers = torch.randn(step, generator=generator) * std
        begin, end = max(first, at), min(last, at + step)
        if begin < end:
            out[begin - first : end - first] = numbers[begin - at : end - at].to(out)
        at += step


def _draw_blocks(table: Tensor, first: int, last: int, seed: int, number: int, std: float) -> None:
    """Fill rows [first, last) of a table from blocks of rows, each with a seed that follows from its number."""
    for block in range(first // _BLOCK_ROWS, -(-last // _BLOCK_ROWS)):
        generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + 2 * block + number + 1) % 2**63)
        rows = torch.randn(_BLOCK_ROWS, table.shape[1], generator=generator) * std
        begin = block * _BLOCK_ROWS
        low, high = max(first, begin), min(last, begin + _BLOCK_ROWS)
        table[low - first : high - first] = rows[low - begin : high - begin].to(table)
