"""Neural collaborative filtering: GMF, MLP and NeuMF.

References:
    [HLZ17] He, Liao, Zhang, Nie, Hu, Chua, "Neural Collaborative Filtering", WWW 2017.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerosum_ext._checks import require_positive_int
from zerosum_ext.models.base import DotProductRecommender
from zerosum_ext.models.tables import TableRecommender, seeded_generator, xavier

__all__ = ["GMF", "MLP", "NeuMF"]

# The number of hidden cells that a multi-layer model computes at once when it scores all items: 64 MiB of float32.
HIDDEN_PER_CHUNK = 1 << 24


class GMF(TableRecommender, DotProductRecommender):
    """Generalised matrix factorization: ``y_ui = <h, P_u * Q_i>`` with learnt weights h [HLZ17 eq. 9].

    The paper puts a logistic function around it, which belongs to its loss. The score is the argument of that function.

    Args:
        num_users: the number of users.
        num_items: the number of items.
        embedding_dim: the width d of both tables.
        init_std: the standard deviation of the initial tables, N(0, init_std^2). h starts as ones, so that the model
            starts as matrix factorization.
        seed: the seed of the initial parameters. None draws from torch's global generator.
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> model = zx.GMF(100, 50, embedding_dim=8, seed=0)
        >>> model.score_all_items(torch.arange(3)).shape
        torch.Size([3, 50])
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
        self._set_up(num_users, num_items, self.embedding_dim, init_std, seeded_generator(seed))
        self.weight = nn.Parameter(torch.ones(self.embedding_dim))
        self.to(device=device, dtype=dtype)

    def vectors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.user_embedding * self.weight, self.item_embedding, None

    def represent(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        user_rows, item_rows = self.embedding_rows(users, items)
        return user_rows * self.weight, item_rows

    def _frozen_items(self) -> tuple[Tensor, Tensor | None]:
        return (self.item_embedding * self.weight).detach(), None

    def config(self) -> dict[str, Any]:
        return {
            "num_users": self.num_users,
            "num_items": self.num_items,
            "embedding_dim": self.embedding_dim,
            "init_std": self.init_std,
        }


class _Tower(nn.Module):
    """A multi-layer perceptron on the concatenation [user, item], with the weights of the last layer [HLZ17 eq. 10].

    The first layer is applied to user and item separately: W [u; i] = W_u u + W_i i. So each half is computed once for
    many items of a user, or many users of an item.
    """

    def __init__(self, width: int, hidden: Sequence[int], generator: torch.Generator | None) -> None:
        super().__init__()
        sizes = [2 * width, *hidden]
        self.weights = nn.ParameterList(xavier(after, before, generator) for before, after in itertools.pairwise(sizes))
        self.biases = nn.ParameterList(torch.zeros(size) for size in hidden)
        self.last = nn.Parameter(xavier(1, sizes[-1], generator).squeeze(0))
        self.width = width

    def first(self, user_rows: Tensor, item_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two halves of the first layer, before they are added. Leading shapes are arbitrary."""
        weight = self.weights[0]
        user = F.linear(user_rows, weight[:, : self.width], self.biases[0])
        return user, F.linear(item_rows, weight[:, self.width :])

    def rest(self, hidden: Tensor) -> Tensor:
        """Return the logit [...] from the sum of the halves [..., hidden[0]]."""
        hidden = F.relu(hidden)
        for weight, bias in zip(list(self.weights)[1:], list(self.biases)[1:], strict=True):
            hidden = F.relu(F.linear(hidden, weight, bias))
        return hidden @ self.last


class MLP(TableRecommender):
    """A multi-layer perceptron on the concatenated user and item embedding [HLZ17 eq. 10].

    Args:
        num_users: the number of users.
        num_items: the number of items.
        embedding_dim: the width d of both tables.
        hidden: the sizes of the hidden layers, which are followed by ReLU. None means (d, d/2, d/4).
        init_std: the standard deviation of the initial tables, N(0, init_std^2). The layers start from the uniform
            distribution of Glorot and Bengio.
        seed: the seed of the initial parameters. None draws from torch's global generator.
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> model = zx.MLP(100, 50, embedding_dim=8, seed=0)
        >>> model.score_all_items(torch.arange(3)).shape
        torch.Size([3, 50])
    """

    # Whether the tables also hold the embeddings of GMF, whose product is added to the score.
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
        generator = seeded_generator(seed)
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
        """Return the scores of all items for ``users`` [B], [B, num_items], without gradient or dropout."""
        d = self.embedding_dim
        table = self.user_embedding[users]
        user, item = self.tower.first(table[:, -d:], self.item_embedding[:, -d:])
        scores = torch.empty(len(users), self.num_items, dtype=table.dtype, device=table.device)
        step = max(1, HIDDEN_PER_CHUNK // (self.num_items * max(self.hidden)))
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

    ``y_ui = <h_1, P_u * Q_i> + <h_2, MLP(P'_u, Q'_i)>``. The tables hold both embeddings: the first d columns are
    GMF's, the others MLP's. Both parts are trained together from scratch; the paper also trains them separately first.

    The arguments are those of :class:`MLP`; ``embedding_dim`` is the width of each part.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> model = zx.NeuMF(100, 50, embedding_dim=8, seed=0)
        >>> model.score_all_items(torch.arange(3)).shape
        torch.Size([3, 50])
    """

    _with_product = True
