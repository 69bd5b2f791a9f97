"""Recommenders beside matrix factorization: neural ones (GMF, MLP, NeuMF) and those of a graph (NGCF, LightGCN).

Each is used as :class:`~zerosum_ext.MatrixFactorization` is: ``model(users, items)``, ``fit``, ``recommend``, ``save``,
``evaluate(model, ...)``. :func:`get_model` makes one by its name.

References:
    [HLZ17] He, Liao, Zhang, Nie, Hu, Chua, "Neural Collaborative Filtering", WWW 2017.
    [WHW19] Wang, He, Wang, Feng, Chua, "Neural Graph Collaborative Filtering", SIGIR 2019.
    [HDW20] He, Deng, Wang, Li, Zhang, Wang, "LightGCN: Simplifying and Powering Graph Convolution Network for
        Recommendation", SIGIR 2020.
    [RCS22] Rhee, Cho, Suh, "Countering Popularity Bias by Regularizing Score Differences", RecSys 2022.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerosum_ext import _ops
from zerosum_ext._checks import require_choice, require_finite_number, require_positive_int
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.models.base import DotProductRecommender, Recommender
from zerosum_ext.models.mf import MatrixFactorization

__all__ = ["GMF", "MLP", "NGCF", "LightGCN", "NeuMF", "get_model", "model_names"]

# Hidden cells that scoring all items of a multi-layer model works on at a time: 64 MiB of fp32.
_HIDDEN_PER_CHUNK = 1 << 24


def _normal(shape: tuple[int, ...], std: float, generator: torch.Generator | None) -> Tensor:
    return torch.empty(shape).normal_(std=std, generator=generator)


def _xavier(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    return nn.init.xavier_uniform_(torch.empty(rows, columns), generator=generator)


def _seeded(seed: int | None) -> torch.Generator | None:
    """On the CPU, so that a seed means the same parameters on every device; None: torch's global generator."""
    return None if seed is None else torch.Generator().manual_seed(int(seed))


class _Tables(Recommender):
    """Sets up the two embedding tables, drawn from N(0, init_std^2), and notes the arguments for ``save``."""

    def _set_up(
        self, num_users: int, num_items: int, width: int, init_std: float, generator: torch.Generator | None
    ) -> None:
        self.num_users = require_positive_int("num_users", num_users)
        self.num_items = require_positive_int("num_items", num_items)
        self.init_std = require_finite_number("init_std", init_std, minimum=0)
        self.user_embedding = nn.Parameter(_normal((self.num_users, width), self.init_std, generator))
        self.item_embedding = nn.Parameter(_normal((self.num_items, width), self.init_std, generator))


# ---- neural collaborative filtering


class GMF(_Tables, DotProductRecommender):
    """Generalised matrix factorization: ``y_ui = <h, P_u * Q_i>`` with learnt weights h [HLZ17 eq. 9].

    The logistic function that the paper puts around it belongs to its loss; the score is what is inside.

    Args:
        num_users, num_items: rows of the tables.
        embedding_dim: their width d.
        init_std: the tables start as N(0, init_std^2), h as ones (the model then starts as MF does).
        seed: of the initial parameters; None draws from torch's global generator.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        embedding_dim: int = 64,
        *,
        init_std: float = 0.01,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embedding_dim = require_positive_int("embedding_dim", embedding_dim)
        self._set_up(num_users, num_items, self.embedding_dim, init_std, _seeded(seed))
        self.weight = nn.Parameter(torch.ones(self.embedding_dim))
        self.to(device=device, dtype=dtype)

    def vectors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.user_embedding * self.weight, self.item_embedding, None

    def represent(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        user_rows, item_rows = self.embedding_rows(users, items)
        return user_rows * self.weight, item_rows

    def config(self) -> dict[str, Any]:
        return {
            "num_users": self.num_users,
            "num_items": self.num_items,
            "embedding_dim": self.embedding_dim,
            "init_std": self.init_std,
        }


class _Tower(nn.Module):
    """A multi-layer perceptron on the concatenation [user, item], and the last layer's weights [HLZ17 eq. 10].

    The first layer is applied to user and item apart: W [u; i] = W_u u + W_i i, so that with many items of a user, or
    many users of an item, each half is computed once.
    """

    def __init__(self, width: int, hidden: Sequence[int], generator: torch.Generator | None) -> None:
        super().__init__()
        sizes = [2 * width, *hidden]
        self.weights = nn.ParameterList(
            _xavier(after, before, generator) for before, after in itertools.pairwise(sizes)
        )
        self.biases = nn.ParameterList(torch.zeros(size) for size in hidden)
        self.last = nn.Parameter(_xavier(1, sizes[-1], generator).squeeze(0))
        self.width = width

    def first(self, user_rows: Tensor, item_rows: Tensor) -> tuple[Tensor, Tensor]:
        """The two halves of the first layer, before they are added: of whatever leading shapes."""
        weight = self.weights[0]
        user = F.linear(user_rows, weight[:, : self.width], self.biases[0])
        return user, F.linear(item_rows, weight[:, self.width :])

    def rest(self, hidden: Tensor) -> Tensor:
        """From the sum of the halves [..., hidden[0]] to the logit [...]."""
        hidden = F.relu(hidden)
        for weight, bias in zip(list(self.weights)[1:], list(self.biases)[1:], strict=True):
            hidden = F.relu(F.linear(hidden, weight, bias))
        return hidden @ self.last


class MLP(_Tables):
    """A multi-layer perceptron on the concatenated user and item embedding [HLZ17 eq. 10].

    Args:
        num_users, num_items: rows of the tables.
        embedding_dim: their width d.
        hidden: sizes of the hidden layers (ReLU); None halves from d: (d, d/2, d/4).
        init_std: the tables start as N(0, init_std^2), the layers as Glorot and Bengio's uniform distribution.
        seed, device, dtype: as for :class:`GMF`.
    """

    # The share of the embedding's width that the product of GMF takes, in units of embedding_dim.
    _with_product = False

    def __init__(
        self,
        num_users: int,
        num_items: int,
        embedding_dim: int = 64,
        *,
        hidden: Sequence[int] | None = None,
        init_std: float = 0.01,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        d = self.embedding_dim = require_positive_int("embedding_dim", embedding_dim)
        sizes = [max(1, d // 2**i) for i in range(3)] if hidden is None else list(hidden)
        if not sizes:
            raise ValueError("hidden: expected the size of at least one layer, got none")
        self.hidden = tuple(require_positive_int("hidden", size) for size in sizes)
        generator = _seeded(seed)
        self._set_up(num_users, num_items, 2 * d if self._with_product else d, init_std, generator)
        self.tower = _Tower(d, self.hidden, generator)
        if self._with_product:
            self.weight = nn.Parameter(torch.ones(d))
        self.to(device=device, dtype=dtype)

    def score(self, user_rows: Tensor, item_rows: Tensor) -> Tensor:
        d = self.embedding_dim
        if item_rows.dim() == 3:
            user_rows = user_rows.unsqueeze(1)
        user, item = self.tower.first(user_rows[..., -d:], item_rows[..., -d:])
        scores = self.tower.rest(user + item)
        if self._with_product:
            scores = scores + (user_rows[..., :d] * item_rows[..., :d]) @ self.weight
        return scores

    @torch.no_grad()
    def score_all_items(self, users: Tensor) -> Tensor:
        """Scores of every item for ``users`` [B]: [B, num_items], without gradient or dropout."""
        d = self.embedding_dim
        table = self.user_embedding[users]
        user, item = self.tower.first(table[:, -d:], self.item_embedding[:, -d:])
        scores = torch.empty(len(users), self.num_items, dtype=table.dtype, device=table.device)
        step = max(1, _HIDDEN_PER_CHUNK // (self.num_items * max(self.hidden)))
        for start in range(0, len(users), step):
            scores[start : start + step] = self.tower.rest(user[start : start + step].unsqueeze(1) + item)
        if self._with_product:
            scores += (table[:, :d] * self.weight) @ self.item_embedding[:, :d].T
        return scores

    def config(self) -> dict[str, Any]:
        return {
            "num_users": self.num_users,
            "num_items": self.num_items,
            "embedding_dim": self.embedding_dim,
            "hidden": list(self.hidden),
            "init_std": self.init_std,
        }


class NeuMF(MLP):
    """Neural matrix factorization: GMF and MLP side by side, with embeddings of their own [HLZ17 eq. 12].

    ``y_ui = <h_1, P_u * Q_i> + <h_2, MLP(P'_u, Q'_i)>``. The tables hold both embeddings: columns :d are GMF's, d:
    MLP's. Both parts are trained from scratch together; the paper also tries to train them apart first.

    Arguments as for :class:`MLP`; ``embedding_dim`` is the width of each part.
    """

    _with_product = True


# ---- graphs


class _Propagate(torch.autograd.Function):
    """What the adjacency matrix makes of the users' and the items' rows; the gradient is its transpose's product."""

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
        users, items = _Propagate.apply(*grads, indptr, *matrix[3:], *matrix[:3], ctx.factor)
        return users, items, *(None,) * 8


class _Graph(nn.Module):
    """The bipartite graph of interactions with a normalised adjacency matrix, whose pattern is computed once.

    Nodes are users, then items. Row r of the adjacency has 1/sqrt(degree(r) degree(c)) at its neighbours c
    ("symmetric"), or 1/degree(r) ("row"): a constant of the row times a constant of the column. Neighbours are counted
    on their own side.
    """

    user_indptr: Tensor
    user_indices: Tensor
    indptr: Tensor
    indices: Tensor
    by_item: Tensor
    scale: Tensor

    def __init__(self, interactions: Interactions, normalization: str, node_dropout: float) -> None:
        super().__init__()
        self.shape = interactions.shape
        self.normalization = normalization
        self.node_dropout = node_dropout
        users, items = interactions.to("cpu").pairs()
        # Interactions are sorted by user, then item; a stable sort by item leaves users ascending.
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
            # Not in the state dict: the graph is what the model was made with, not what it learnt.
            self.register_buffer(name, tensor, persistent=False)
        self._rescale()
        with warnings.catch_warnings():
            # torch says once a process that sparse CSR tensors, which the reference uses, are in beta.
            warnings.simplefilter("ignore", UserWarning)
            none = torch.zeros(0, dtype=torch.int64)
            torch.sparse_csr_tensor(torch.zeros(1, dtype=torch.int64), none, none.float(), (0, 0))

    def _rescale(self) -> None:
        """The constants of the rows, rounded once: from the degrees to the parameters' dtype."""
        degree = self.indptr.diff().double().clamp(min=1)
        self.scale = (degree.rsqrt() if self.normalization == "symmetric" else 1 / degree).to(self.scale.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        if self.scale.is_floating_point() and not self.scale.is_meta:
            self._rescale()
        return self

    def adjacency(self) -> tuple[Tensor | float | None, ...]:
        """The arguments of :class:`_Propagate`; in training with entries dropped, and the others scaled to make up.

        Each entry is dropped on its own, so that its mirror image may stay.
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


class _GraphRecommender(_Tables, DotProductRecommender):
    """Embeddings propagated over the graph of the training interactions.

    Propagation runs once for a training step and, in evaluation mode without gradients, once for as long as the
    parameters stay as they are.
    """

    graph: _Graph

    def __init__(self) -> None:
        super().__init__()
        self._cached: tuple[Any, tuple[Tensor, Tensor]] | None = None

    def propagate(self) -> list[tuple[Tensor, Tensor]]:
        """What each layer makes of all (users, items), from the embeddings themselves (layer 0) on."""
        raise NotImplementedError

    def combine(self, layers: list[Tensor]) -> Tensor:
        """The final vectors [..., D] from the layers' rows [..., d] of the same nodes."""
        return torch.cat(layers, dim=-1)

    def represent(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        if not (self.training or torch.is_grad_enabled()):
            return super().represent(users, items)
        # Of the layers' tables only the batch's rows are combined.
        with torch.autocast(self.user_embedding.device.type, enabled=False):
            layers = self.propagate()
            user_rows = self.combine([_rows(layer[0], users) for layer in layers])
            return user_rows, self.combine([_rows(layer[1], items) for layer in layers])

    def vectors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The final (user [U, D], item [I, D], None), differentiable."""
        if self.training or torch.is_grad_enabled():
            return (*self._final(), None)
        # In-place changes, which optimizers and load_state_dict make, count up a tensor's version.
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
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None}

    def _extra_tensors(self) -> dict[str, Tensor]:
        return {"graph.indptr": self.graph.user_indptr, "graph.indices": self.graph.user_indices}

    @classmethod
    def _construct(cls, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Recommender:
        shape = (config.pop("num_users"), config.pop("num_items"))
        indptr, indices = tensors["graph.indptr"], tensors["graph.indices"]
        users = torch.repeat_interleave(torch.arange(shape[0]), indptr.diff())
        interactions = Interactions.from_arrays(users.numpy(), indices.numpy(), shape=shape)
        return cls(interactions, **config, seed=0)  # type: ignore[call-arg]


class LightGCN(_GraphRecommender):
    """Embeddings averaged with those of their neighbourhoods in the graph of interactions, nothing else [HDW20].

    ``E^(l+1) = A E^(l)``; the final vectors are the mean of E^(0) .. E^(L) [HDW20 eq. 8], the score their dot product.
    The defaults are the original. The variant that [RCS22] compares, whose code descends from NGCF's, is
    ``normalization="row", combine="concat"`` with node dropout (preset "paper" of :func:`get_model`).

    Args:
        interactions: the training interactions: :class:`~zerosum_ext.Interactions` or a scipy or torch CSR.
        embedding_dim: width d.
        num_layers: L.
        normalization: "symmetric" (A_uv = 1/sqrt(degree(u) degree(v))) or "row" (1/degree(u)).
        combine: "mean" of the layers, or "concat": their concatenation, of width (L + 1) d.
        node_dropout: share of A's entries dropped in each training step.
        init_std: the embeddings start as N(0, init_std^2); the original code uses .1.
        seed, device, dtype: as for :class:`GMF`.
    """

    def __init__(
        self,
        interactions: Any,
        embedding_dim: int = 64,
        *,
        num_layers: int = 3,
        normalization: str = "symmetric",
        combine: str = "mean",
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
        self.normalization = require_choice("normalization", normalization, ("symmetric", "row"))
        self.combination = require_choice("combine", combine, ("mean", "concat"))
        self.graph = _Graph(matrix, self.normalization, _share("node_dropout", node_dropout))
        self._set_up(matrix.num_users, matrix.num_items, self.embedding_dim, init_std, _seeded(seed))
        self.to(device=device, dtype=dtype)

    def propagate(self) -> list[tuple[Tensor, Tensor]]:
        adjacency = self.graph.adjacency()
        layers: list[tuple[Tensor, Tensor]] = [(self.user_embedding, self.item_embedding)]
        for _ in range(self.num_layers):
            layers.append(_Propagate.apply(*layers[-1], *adjacency))
        return layers

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
            "node_dropout": self.graph.node_dropout,
            "init_std": self.init_std,
        }


class NGCF(_GraphRecommender):
    """Neural graph collaborative filtering [WHW19 eq. 7].

    ``E^(l+1) = LeakyReLU((A + 1) E^(l) W_1 + A E^(l) * E^(l) W_2)``, slope .2; the final vectors are the concatenation
    of E^(0) and, as in the authors' code, the rows of E^(1) .. E^(L) scaled to length 1. That code applies the
    LeakyReLU to the two terms apart and adds biases; here both are as in the paper.

    With ``self_loops`` and ``bias`` a layer is that of the code that [RCS22] trained, which descends from NGCF's:
    ``LeakyReLU(B E^(l) W_1 + b_1 + B E^(l) * E^(l) W_2 + b_2)``, B being A + 1 normalised by degrees that count the
    node itself.

    Args:
        interactions, embedding_dim, normalization, node_dropout, seed, device, dtype: as for :class:`LightGCN`.
        layers: widths of E^(1) .. E^(L); None: three of embedding_dim.
        message_dropout: share of the entries of E^(1) .. E^(L) dropped in training.
        self_loops: each node is among its own neighbours, instead of being added to them.
        bias: adds b_1 and b_2, drawn as the layers are.
        init_std: E^(0) starts as N(0, init_std^2), the layers as Glorot and Bengio's uniform distribution.
    """

    def __init__(
        self,
        interactions: Any,
        embedding_dim: int = 64,
        *,
        layers: Sequence[int] | None = None,
        normalization: str = "symmetric",
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
        self.normalization = require_choice("normalization", normalization, ("symmetric", "row"))
        self.message_dropout = _share("message_dropout", message_dropout)
        self.graph = _Graph(matrix, self.normalization, _share("node_dropout", node_dropout))
        generator = _seeded(seed)
        self._set_up(matrix.num_users, matrix.num_items, self.embedding_dim, init_std, generator)
        widths = [self.embedding_dim, *self.layers]
        pairs = list(itertools.pairwise(widths))
        self.sum_weights = nn.ParameterList(_xavier(before, after, generator) for before, after in pairs)
        self.product_weights = nn.ParameterList(_xavier(before, after, generator) for before, after in pairs)
        # Of both terms, though only their sum counts: Adam moves it twice as fast as one would be.
        widths = [after for _, after in pairs for _ in range(2)] if self.bias else []
        self.biases = nn.ParameterList(_xavier(1, width, generator)[0] for width in widths)
        self.to(device=device, dtype=dtype)

    def propagate(self) -> list[tuple[Tensor, Tensor]]:
        adjacency, sizes = self.graph.adjacency(), list(self.graph.shape)
        loops = self._loops() if self.self_loops else None
        layer = torch.cat([self.user_embedding, self.item_embedding])
        layers: list[tuple[Tensor, Tensor]] = [(self.user_embedding, self.item_embedding)]
        for depth, (sum_weight, product_weight) in enumerate(zip(self.sum_weights, self.product_weights, strict=True)):
            if loops is None:
                side = torch.cat(_Propagate.apply(*layer.split(sizes), *adjacency))
                total = side + layer
            else:
                before, after, own = loops
                scaled = layer if before is None else before * layer
                side = total = after * torch.cat(_Propagate.apply(*scaled.split(sizes), *adjacency)) + own * layer
            hidden = total @ sum_weight + (side * layer) @ product_weight
            if self.bias:
                hidden = hidden + self.biases[2 * depth] + self.biases[2 * depth + 1]
            layer = F.leaky_relu(hidden, 0.2)
            layer = F.dropout(layer, self.message_dropout, self.training)
            # Not F.normalize, whose second derivative is NaN at a row of zeros.
            unit = layer * (layer.square().sum(1, keepdim=True) + 1e-24).rsqrt()
            layers.append(unit.split(sizes))
        return layers

    def _loops(self) -> tuple[Tensor | None, Tensor, Tensor]:
        """Factors [nodes, 1] that make A + 1, normalised, of the normalised A and the nodes themselves."""
        degree = self.graph.indptr.diff()[:, None].to(self.graph.scale.dtype)
        share, own = degree / (degree + 1), 1 / (degree + 1)
        if self.training and self.graph.node_dropout:
            own = F.dropout(own, self.graph.node_dropout)
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
            "node_dropout": self.graph.node_dropout,
            "message_dropout": self.message_dropout,
            "self_loops": self.self_loops,
            "bias": self.bias,
            "init_std": self.init_std,
        }


def _rows(table: Tensor, ids: Tensor) -> Tensor:
    """The rows ``ids`` of any shape."""
    if table.is_cuda:  # where the gradient of an index_select is summed in no certain order
        return F.embedding(ids, table)
    return table.index_select(0, ids.reshape(-1)).view(*ids.shape, -1)


def _share(name: str, value: float) -> float:
    share = require_finite_number(name, value, minimum=0)
    if share >= 1:
        raise ValueError(f"{name}: expected a number in [0, 1), got {value!r}")
    return share


# ---- by name

_MODELS: dict[str, type[Recommender]] = {
    "mf": MatrixFactorization,
    "gmf": GMF,
    "mlp": MLP,
    "neumf": NeuMF,
    "ngcf": NGCF,
    "lightgcn": LightGCN,
}


def model_names() -> list[str]:
    """The names that :func:`get_model` knows."""
    return list(_MODELS)


def get_model(name: str, interactions: Any, *, preset: str | None = None, **options: Any) -> Recommender:
    """The model of that name for these training interactions, with fresh parameters.

    Args:
        name: "mf", "gmf", "mlp", "neumf", "ngcf" or "lightgcn".
        interactions: the training interactions (:class:`~zerosum_ext.Interactions` or a scipy or torch CSR): of "ngcf"
            and "lightgcn" the graph, of the others only the shape counts.
        preset: a name of :data:`zerosum_ext.models.presets.MODELS` whose hyper-parameters to start from, such as
            "paper" for those of [RCS22]; None: the defaults of the class.
        options: of the model's class, before those of the preset.

    Raises:
        ValueError: an unknown name, preset or option.
    """
    from zerosum_ext.models import presets

    kind = _MODELS[require_choice("name", name, model_names())]
    if preset is not None:
        options = {**presets.model_options(preset, name), **options}
    matrix = Interactions.from_any(interactions)
    shape = () if issubclass(kind, _GraphRecommender) else matrix.shape
    try:
        return kind(*shape, **options) if shape else kind(matrix, **options)
    except TypeError as error:
        if "unexpected keyword" in str(error):
            raise ValueError(f"model {name!r}: {str(error).split('() ')[-1]}; got options {sorted(options)}") from None
        raise
