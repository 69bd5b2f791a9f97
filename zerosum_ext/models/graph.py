"""Models on the graph of the training interactions: NGCF and LightGCN.

References:
    [WHW19] Wang, He, Wang, Feng, Chua, "Neural Graph Collaborative Filtering", SIGIR 2019.
    [HDW20] He, Deng, Wang, Li, Zhang, Wang, "LightGCN: Simplifying and Powering Graph Convolution Network for
        Recommendation", SIGIR 2020.
    [RCS22] Rhee, Cho, Suh, "Countering Popularity Bias by Regularizing Score Differences", RecSys 2022.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerosum_ext import _ops
from zerosum_ext._checks import require_choice, require_finite_number, require_positive_int
from zerosum_ext._inference import inference
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.data.vocabulary import Vocabulary
from zerosum_ext.models import folding
from zerosum_ext.models.base import DotProductRecommender, Recommender
from zerosum_ext.models.tables import TableRecommender, seeded_generator, xavier

__all__ = ["NGCF", "Graph", "GraphRecommender", "LightGCN", "propagate_once"]

#: "symmetric": A_uv = 1/sqrt(degree(u) degree(v)); "row": A_uv = 1/degree(u).
Normalization: TypeAlias = Literal["symmetric", "row"]
#: How the layers make the final vectors.
Combination: TypeAlias = Literal["mean", "concat"]
_GraphModel = TypeVar("_GraphModel", bound="GraphRecommender")
_NORMALIZATIONS = ("symmetric", "row")


class Propagate(torch.autograd.Function):
    """Multiply the adjacency matrix with the rows of users and items. The gradient is the product of its transpose."""

    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        items: Tensor,
        indptr: Tensor,
        end: Tensor | None,
        indices: Tensor,
        row_scale: Tensor | None,
        transposed_end: Tensor | None,
        transposed_indices: Tensor,
        column_scale: Tensor | None,
        factor: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(indptr, end, indices, row_scale, transposed_end, transposed_indices, column_scale)
        ctx.factor = factor
        return _ops.graph_propagate(users, items, indptr, end, indices, row_scale, column_scale, factor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        indptr, *matrix = ctx.saved_tensors
        users, items = propagate_once(*grads, indptr, *matrix[3:], *matrix[:3], ctx.factor)
        return users, items, *(None,) * 8


#: Multiply a matrix with the rows of users and items: :class:`Propagate` with types.
propagate_once: Callable[..., tuple[Tensor, Tensor]] = Propagate.apply


class Graph(nn.Module):
    """The bipartite graph of interactions with a normalised adjacency matrix, whose pattern is computed once.

    The nodes are the users and then the items. Row r of the adjacency has 1/sqrt(degree(r) degree(c)) at each neighbour
    c ("symmetric"), or 1/degree(r) ("row"). Both are a constant of the row times a constant of the column. Neighbours
    are numbered on their own side.

    Args:
        interactions: the edges.
        normalization: "symmetric" or "row".
        node_dropout: the share of entries that are dropped in each training step.
    """

    user_indptr: Tensor
    user_indices: Tensor
    indptr: Tensor
    indices: Tensor
    by_item: Tensor
    scale: Tensor

    def __init__(self, interactions: Interactions, normalization: Normalization, node_dropout: float) -> None:
        super().__init__()
        self.shape = interactions.shape
        self.normalization = normalization
        self.node_dropout = node_dropout
        users, items = interactions.to("cpu").pairs()
        # Interactions are sorted by user and item, so that a stable sort by item leaves the users ascending.
        by_item = torch.sort(items, stable=True).indices
        degree = [torch.bincount(ids, minlength=n) for ids, n in zip((users, items), self.shape, strict=True)]
        indptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(torch.cat(degree), 0)])
        index = torch.int32 if 2 * len(users) < 2**31 else torch.int64
        for name, tensor in {
            "user_indptr": interactions.indptr.cpu(),
            "user_indices": interactions.indices.cpu(),
            "indptr": indptr.to(index),
            "indices": torch.cat([items, users[by_item]]).to(index),
            "by_item": by_item.to(index),
            "scale": torch.empty(0),
        }.items():
            # Not in the state dict: the graph is an argument of the model, not a thing it learnt.
            self.register_buffer(name, tensor, persistent=False)
        self._rescale()
        with warnings.catch_warnings():
            # The reference uses sparse CSR tensors. torch says once in a process that they are in beta.
            warnings.simplefilter("ignore", UserWarning)
            none = torch.zeros(0, dtype=torch.int64)
            torch.sparse_csr_tensor(torch.zeros(1, dtype=torch.int64), none, none.float(), (0, 0))

    def _rescale(self) -> None:
        """Compute the constants of the rows from the degrees, rounded once to the parameters' dtype."""
        degree = self.indptr.diff().double().clamp(min=1)
        self.scale = (degree.rsqrt() if self.normalization == "symmetric" else 1 / degree).to(self.scale.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        apply: Callable[..., Any] = super()._apply  # which torch leaves without types
        apply(fn, recurse)
        if self.scale.is_floating_point() and not self.scale.is_meta:
            self._rescale()
        return self

    def adjacency(self) -> tuple[Tensor | float | None, ...]:
        """Return the arguments of :data:`propagate_once`.

        In training some entries are dropped, and the others scaled up in turn. Each entry is dropped on its own, so
        that its mirror image may stay.
        """
        column_scale = self.scale if self.normalization == "symmetric" else None
        if not (self.training and self.node_dropout):
            return self.indptr, None, self.indices, self.scale, None, self.indices, column_scale, 1.0
        seed = torch.empty((), dtype=torch.int64, device=self.indptr.device).random_()
        end, indices, transposed_end, transposed_indices = _ops.graph_dropout(
            self.indptr, self.indices, self.by_item, self.shape[0], seed, self.node_dropout
        )
        factor = 1 / (1 - self.node_dropout)
        return self.indptr, end, indices, self.scale, transposed_end, transposed_indices, column_scale, factor


class GraphRecommender(TableRecommender, DotProductRecommender):
    """Embeddings that are propagated over the graph of the training interactions.

    Propagation runs once in each training step. In evaluation mode without gradients its result is kept until the
    parameters change.
    """

    # Not "graph": a module of torch.export or torch.fx has an attribute of that name.
    interaction_graph: Graph

    @classmethod
    def from_interactions(cls: type[_GraphModel], interactions: Interactions, **options: Any) -> _GraphModel:
        """Return a new model on the graph of these training interactions."""
        return cls(interactions, **options)._named(interactions)  # type: ignore[call-arg]  # that of a subclass

    def __init__(self) -> None:
        super().__init__()
        self._cached: tuple[Any, tuple[Tensor, Tensor]] | None = None

    def propagate(self) -> list[tuple[Tensor, Tensor]]:
        """Return the rows of all (users, items) in each layer. Layer 0 is the embeddings themselves."""
        raise NotImplementedError

    def combine(self, layers: list[Tensor]) -> Tensor:
        """Return the final vectors [..., D], from the rows [..., d] of the same nodes in each layer."""
        return torch.cat(layers, dim=-1)

    def represent(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        if not (self.training or torch.is_grad_enabled()):
            return super().represent(users, items)
        # Only the batch's rows of the layers' tables are combined.
        with torch.autocast(self.user_embedding.device.type, enabled=False):
            layers = self.propagate()
            user_rows = self.combine([_rows(layer[0], users) for layer in layers])
            return user_rows, self.combine([_rows(layer[1], items) for layer in layers])

    def vectors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the final vectors of users [U, D] and of items [I, D], and None; differentiable."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return (*self._final(), None)  # torch.export's tensors have no memory to recognise them by
        # Optimizers and load_state_dict change tensors in place, which counts up a tensor's version.
        state = tuple((p.data_ptr(), p._version) for p in self.parameters())
        if self._cached is None or self._cached[0] != state:
            self._cached = (state, self._final())
        return (*self._cached[1], None)

    def train(self, mode: bool = True) -> Any:
        self._cached = None
        return super().train(mode)

    def _final(self) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.user_embedding.device.type, enabled=False):
            users, items = zip(*self.propagate(), strict=True)
            return self.combine(list(users)), self.combine(list(items))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._cached = None
        apply: Callable[..., Any] = super()._apply
        return apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None}

    def grow(
        self,
        vocabulary: Vocabulary | tuple[int, int],
        *,
        interactions: Any = None,
        optimizer: torch.optim.Optimizer | None = None,
        seed: int = 0,
    ) -> None:
        if interactions is None:
            raise ValueError("interactions: expected those that are the new graph, got None")
        shape = self._check_growth(vocabulary)
        matrix = Interactions.from_any(interactions)
        if tuple(matrix.shape) != shape:
            raise ValueError(f"interactions: expected shape {shape}, got {tuple(matrix.shape)}")
        super().grow(vocabulary, optimizer=optimizer, seed=seed)
        old = self.interaction_graph
        self.interaction_graph = Graph(matrix, old.normalization, old.node_dropout).to(old.scale)
        self.interaction_graph.train(self.training)
        self._cached = None

    def _extra_tensors(self) -> dict[str, Tensor]:
        graph = self.interaction_graph
        return {"graph.indptr": graph.user_indptr, "graph.indices": graph.user_indices}

    @classmethod
    def _construct(cls, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Recommender:
        shape = (config.pop("num_users"), config.pop("num_items"))
        indptr, indices = tensors["graph.indptr"], tensors["graph.indices"]
        users = torch.repeat_interleave(torch.arange(shape[0]), indptr.diff())
        interactions = Interactions.from_arrays(users.numpy(), indices.numpy(), shape=shape)
        return cls.from_interactions(interactions, **config, seed=0)


class LightGCN(GraphRecommender):
    """Average embeddings with those of their neighbourhoods in the graph of interactions, and nothing else [HDW20].

    ``E^(l+1) = A E^(l)``. The final vectors are the mean of E^(0) .. E^(L) [HDW20 eq. 8], and the score is their dot
    product. The defaults are those of the paper. [RCS22] compares with a variant whose code descends from NGCF's:
    ``normalization="row", combine="concat"`` with node dropout (preset "paper" of :func:`zerosum_ext.get_model`).

    Args:
        interactions: the training interactions: :class:`~zerosum_ext.Interactions`, or a scipy or torch CSR.
        embedding_dim: the width d of the embeddings.
        num_layers: the number L of layers.
        normalization: "symmetric" (A_uv = 1/sqrt(degree(u) degree(v))) or "row" (A_uv = 1/degree(u)).
        combine: "mean" of the layers, or "concat" for their concatenation, of width (L + 1) d.
        node_dropout: the share of A's entries that are dropped in each training step.
        init_std: the standard deviation of the initial embeddings, N(0, init_std^2). The original code uses .1.
        seed: the seed of the initial parameters. None draws from torch's global generator.
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> model = zx.LightGCN(data, embedding_dim=8, num_layers=2, seed=0)
        >>> model.score_all_items(torch.arange(3)).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        interactions: Any,
        embedding_dim: int = 64,
        *,
        num_layers: int = 3,
        normalization: Normalization = "symmetric",
        combine: Combination = "mean",
        node_dropout: float = 0.0,
        init_std: float = 0.1,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        matrix = Interactions.from_any(interactions)
        self.embedding_dim = require_positive_int("embedding_dim", embedding_dim)
        self.num_layers = require_positive_int("num_layers", num_layers)
        require_choice("normalization", normalization, _NORMALIZATIONS)
        self.normalization: Normalization = normalization
        require_choice("combine", combine, ("mean", "concat"))
        self.combination: Combination = combine
        self.interaction_graph = Graph(matrix, self.normalization, _share("node_dropout", node_dropout))
        self._set_up(matrix.num_users, matrix.num_items, self.embedding_dim, init_std, seeded_generator(seed))
        self.to(device=device, dtype=dtype)

    def propagate(self) -> list[tuple[Tensor, Tensor]]:
        adjacency = self.interaction_graph.adjacency()
        layers: list[tuple[Tensor, Tensor]] = [(self.user_embedding, self.item_embedding)]
        for _ in range(self.num_layers):
            layers.append(propagate_once(*layers[-1], *adjacency))
        return layers

    @torch.no_grad()
    def fold_in(self, histories: Any, **options: Any) -> Tensor:
        """Return the vectors of users who were not trained with, by propagation from the items as they are.

        Such a user has no embedding of his own: layer 0 is zero, and layer l + 1 is the normalised sum of his items'
        rows in layer l. His edges change no item. Nothing is optimised, so that there are no options.

        Args:
            histories: as in :meth:`DotProductRecommender.fold_in`.
            options: none.

        Returns:
            [n, D], for :meth:`recommend_for`.
        """
        if options:
            raise ValueError(f"{next(iter(options))}: LightGCN folds users in by propagation, which has no options")
        matrix = folding.histories_of(histories, self.num_items).to(self.device)
        with inference(self):
            tables = [layer[1] for layer in self.propagate()]
        users, items = matrix.pairs()
        scale = self.interaction_graph.scale[self.num_users :][items]
        own = matrix.user_counts.clamp(min=1).to(scale.dtype)
        symmetric = self.normalization == "symmetric"
        weight = own.rsqrt()[users] * scale if symmetric else (1 / own)[users]
        layers = [tables[0].new_zeros(matrix.num_users, tables[0].shape[1])]
        for table in tables[:-1]:
            rows = table.new_zeros(matrix.num_users, table.shape[1])
            layers.append(rows.index_add_(0, users, table[items] * weight.unsqueeze(1)))
        return self.combine(layers)

    def combine(self, layers: list[Tensor]) -> Tensor:
        if self.combination == "concat":
            return super().combine(layers)
        total = layers[0]
        for layer in layers[1:]:
            total = total + layer
        return total / len(layers)

    def config(self) -> dict[str, Any]:
        return {
            "num_users": self.num_users,
            "num_items": self.num_items,
            "embedding_dim": self.embedding_dim,
            "num_layers": self.num_layers,
            "normalization": self.normalization,
            "combine": self.combination,
            "node_dropout": self.interaction_graph.node_dropout,
            "init_std": self.init_std,
        }


class NGCF(GraphRecommender):
    """Neural graph collaborative filtering [WHW19 eq. 7].

    ``E^(l+1) = LeakyReLU((A + 1) E^(l) W_1 + A E^(l) * E^(l) W_2)``, with slope .2. The final vectors are the
    concatenation of E^(0) and of the rows of E^(1) .. E^(L), which are scaled to length 1 as in the authors' code. That
    code also applies the LeakyReLU to the two terms separately and adds biases. Here both follow the paper.

    With ``self_loops`` and ``bias`` a layer is that of the code that [RCS22] trained, which descends from NGCF's:
    ``LeakyReLU(B E^(l) W_1 + b_1 + B E^(l) * E^(l) W_2 + b_2)``. B is A + 1, normalised by degrees that count the node
    itself.

    Args:
        interactions: the training interactions: :class:`~zerosum_ext.Interactions`, or a scipy or torch CSR.
        embedding_dim: the width d of E^(0).
        layers: the widths of E^(1) .. E^(L). None means three layers of width d.
        normalization: as for :class:`LightGCN`.
        node_dropout: as for :class:`LightGCN`.
        message_dropout: the share of the entries of E^(1) .. E^(L) that are dropped in training.
        self_loops: whether each node is one of its own neighbours, instead of being added to them.
        bias: whether b_1 and b_2 are added. They are drawn as the layers are.
        init_std: the standard deviation of the initial E^(0), N(0, init_std^2). The layers start from the uniform
            distribution of Glorot and Bengio.
        seed: the seed of the initial parameters. None draws from torch's global generator.
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> model = zx.NGCF(data, embedding_dim=8, layers=[8, 8], seed=0)
        >>> model.score_all_items(torch.arange(3)).shape
        torch.Size([3, 4])
    """

    # The published model's hyper-parameters, which presets and files of settings give by name.
    def __init__(
        self,
        interactions: Any,
        embedding_dim: int = 64,
        *,
        layers: Sequence[int] | None = None,
        normalization: Normalization = "symmetric",
        node_dropout: float = 0.0,
        message_dropout: float = 0.1,
        self_loops: bool = False,
        bias: bool = False,
        init_std: float = 0.01,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        matrix = Interactions.from_any(interactions)
        self.embedding_dim = require_positive_int("embedding_dim", embedding_dim)
        self.self_loops, self.bias = bool(self_loops), bool(bias)
        sizes = [self.embedding_dim] * 3 if layers is None else list(layers)
        self.layers = tuple(require_positive_int("layers", size) for size in sizes)
        require_choice("normalization", normalization, _NORMALIZATIONS)
        self.normalization: Normalization = normalization
        self.message_dropout = _share("message_dropout", message_dropout)
        self.interaction_graph = Graph(matrix, self.normalization, _share("node_dropout", node_dropout))
        generator = seeded_generator(seed)
        self._set_up(matrix.num_users, matrix.num_items, self.embedding_dim, init_std, generator)
        widths = [self.embedding_dim, *self.layers]
        pairs = list(itertools.pairwise(widths))
        self.sum_weights = nn.ParameterList(xavier(before, after, generator) for before, after in pairs)
        self.product_weights = nn.ParameterList(xavier(before, after, generator) for before, after in pairs)
        # One bias for each term, though only their sum counts: Adam moves the sum twice as fast as a single one.
        widths = [after for _, after in pairs for _ in range(2)] if self.bias else []
        self.biases = nn.ParameterList(xavier(1, width, generator)[0] for width in widths)
        self.to(device=device, dtype=dtype)

    def propagate(self) -> list[tuple[Tensor, Tensor]]:
        adjacency, sizes = self.interaction_graph.adjacency(), list(self.interaction_graph.shape)
        loops = self._loops() if self.self_loops else None
        layer = torch.cat([self.user_embedding, self.item_embedding])
        layers: list[tuple[Tensor, Tensor]] = [(self.user_embedding, self.item_embedding)]
        for depth, (sum_weight, product_weight) in enumerate(zip(self.sum_weights, self.product_weights, strict=True)):
            if loops is None:
                side = torch.cat(propagate_once(*layer.split(sizes), *adjacency))
                total = side + layer
            else:
                before, after, own = loops
                scaled = layer if before is None else before * layer
                side = total = after * torch.cat(propagate_once(*scaled.split(sizes), *adjacency)) + own * layer
            hidden = total @ sum_weight + (side * layer) @ product_weight
            if self.bias:
                hidden = hidden + self.biases[2 * depth] + self.biases[2 * depth + 1]
            layer = F.leaky_relu(hidden, 0.2)
            layer = F.dropout(layer, self.message_dropout, self.training)
            # Not F.normalize, whose second derivative is NaN at a row of zeros.
            unit = layer * (layer.square().sum(1, keepdim=True) + 1e-24).rsqrt()
            layers.append(unit.split(sizes))
        return layers

    def fold_in(self, histories: Any, **options: Any) -> Tensor:
        """Refuse: a new user's layers are no linear function of a row that could be found."""
        raise ValueError("fold_in: expected a model whose scores are dot products with a user's row, got NGCF")

    def _loops(self) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return factors [nodes, 1] that make the normalised A + 1 of the normalised A and the nodes themselves."""
        degree = self.interaction_graph.indptr.diff()[:, None].to(self.interaction_graph.scale.dtype)
        share, own = degree / (degree + 1), 1 / (degree + 1)
        if self.training and self.interaction_graph.node_dropout:
            own = F.dropout(own, self.interaction_graph.node_dropout)
        if self.normalization == "row":
            return None, share, own
        return share.sqrt(), share.sqrt(), own

    def config(self) -> dict[str, Any]:
        return {
            "num_users": self.num_users,
            "num_items": self.num_items,
            "embedding_dim": self.embedding_dim,
            "layers": list(self.layers),
            "normalization": self.normalization,
            "node_dropout": self.interaction_graph.node_dropout,
            "message_dropout": self.message_dropout,
            "self_loops": self.self_loops,
            "bias": self.bias,
            "init_std": self.init_std,
        }


def _rows(table: Tensor, ids: Tensor) -> Tensor:
    """Return the rows of a table; ``ids`` may have any shape."""
    if table.is_cuda:  # where index_select sums its gradient in no fixed order
        return F.embedding(ids, table)
    return table.index_select(0, ids.reshape(-1)).view(*ids.shape, -1)


def _share(name: str, value: float) -> float:
    """Return a number that was checked to be in [0, 1)."""
    share = require_finite_number(name, value, minimum=0)
    if share >= 1:
        raise ValueError(f"{name}: expected a number in [0, 1), got {value!r}")
    return share
