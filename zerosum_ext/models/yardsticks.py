"""Models that are not trained by sampling: the most popular items, EASE and implicit ALS.

They show what a trained model has to beat. Each is made from the training interactions, in one go::

    model = EASE.from_interactions(train, l2=300.0)
    zx.evaluate(model, train, test)

References:
    [STE19] Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019 (EASE).
    [HKV08] Hu, Koren, Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008 (iALS).
    [RKZ22] Rendle, Krichene, Zhang, Koren, "Revisiting the Performance of iALS on Item Recommendation Benchmarks",
        RecSys 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zerosum_ext._checks import require_finite_number, require_positive_int
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.models.base import Recommender, check_pairs
from zerosum_ext.models.mf import MatrixFactorization

__all__ = ["EASE", "IALS", "MostPopular"]

#: The most items that :class:`EASE` takes: its weights are a matrix of items x items.
MOST_EASE_ITEMS = 20_000
# Up to this number of items EASE solves in float64.
_DOUBLE = 8000
# The number of entries that a block of padded rows of iALS has at most.
_BLOCK = 1 << 22


class MostPopular(MatrixFactorization):
    """Score every item by its number of training interactions, the same for all users.

    Args:
        num_users: the number of users.
        num_items: the number of items.

    Example:
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> model = zx.MostPopular.from_interactions(data)
        >>> model.recommend([0], k=2)[0].tolist()
        [[0, 2]]
    """

    def __init__(self, num_users: int, num_items: int, *, seed: int | None = None) -> None:
        super().__init__(num_users, num_items, 1, seed=seed)
        self.requires_grad_(False)
        self.user_embedding.fill_(1.0)
        self.item_embedding.zero_()

    @classmethod
    def from_interactions(cls, interactions: Interactions, **options: Any) -> MostPopular:
        """Return the model of these training interactions, on their device."""
        model = cls(interactions.num_users, interactions.num_items, **options).to(interactions.indptr.device)
        model.item_embedding.copy_(interactions.popularity.unsqueeze(1))
        return model

    def config(self) -> dict[str, Any]:
        return {"num_users": self.num_users, "num_items": self.num_items}


class IALS(MatrixFactorization):
    """Matrix factorization by alternating least squares over all cells [HKV08], with the weights of [RKZ22].

    It minimises ``sum over positives (y - 1)^2 + alpha0 sum over all cells y^2 + l2 (sum_u (n_u + alpha0 I) |P_u|^2 +
    sum_i (n_i + alpha0 U) |Q_i|^2)`` for U users and I items, where n counts training interactions: each sweep solves
    for all users, and then for all items, exactly.

    Args:
        num_users: the number of users.
        num_items: the number of items.
        embedding_dim: the width d.
        alpha0: the weight of a cell that is not observed, beside 1 for one that is; > 0.
        l2: the strength of the regularisation, >= 0.
        sweeps: the number of sweeps.
        seed: of the initial tables.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> model = zx.IALS.from_interactions(data, embedding_dim=8)
        >>> model.score_all_items(torch.arange(2)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        embedding_dim: int = 64,
        *,
        alpha0: float = 0.1,
        l2: float = 0.003,
        sweeps: int = 16,
        seed: int | None = 0,
    ) -> None:
        super().__init__(num_users, num_items, embedding_dim, init_std=0.1 / max(1, embedding_dim) ** 0.5, seed=seed)
        self.alpha0 = require_finite_number("alpha0", alpha0)
        if self.alpha0 <= 0:
            raise ValueError(f"alpha0: expected a number > 0, got {alpha0}")
        self.l2 = require_finite_number("l2", l2, minimum=0)
        self.sweeps = require_positive_int("sweeps", sweeps)
        self.requires_grad_(False)

    @classmethod
    def from_interactions(cls, interactions: Interactions, **options: Any) -> IALS:
        """Return the model of these training interactions, solved, on their device."""
        model = cls(interactions.num_users, interactions.num_items, **options).to(interactions.indptr.device)
        by_item = Interactions.from_scipy(interactions.to_scipy().T.tocsr()).to(interactions.indptr.device)
        for _ in range(model.sweeps):
            _solve(model.user_embedding, model.item_embedding, interactions, model.alpha0, model.l2)
            _solve(model.item_embedding, model.user_embedding, by_item, model.alpha0, model.l2)
        return model

    def config(self) -> dict[str, Any]:
        own = {"embedding_dim": self.embedding_dim, "alpha0": self.alpha0, "l2": self.l2, "sweeps": self.sweeps}
        return {"num_users": self.num_users, "num_items": self.num_items, **own}


def _solve(rows: Tensor, fixed: Tensor, matrix: Interactions, alpha0: float, l2: float) -> None:
    """Set each row to the solution of its least-squares problem; ``fixed`` are the vectors of the other side."""
    dim, counts = fixed.shape[1], matrix.indptr.diff()
    everywhere = alpha0 * (fixed.T @ fixed)
    identity = torch.eye(dim, dtype=fixed.dtype, device=fixed.device)
    padded = torch.cat([fixed, fixed.new_zeros(1, dim)])
    order = torch.argsort(counts, stable=True)
    begin = 0
    while begin < order.numel():
        # Rows of about one length: those of a block are padded to its longest.
        ahead = counts[order[begin : begin + max(1, _BLOCK // dim)]].clamp(min=1)
        fits = int((ahead * torch.arange(1, ahead.numel() + 1, device=ahead.device) * dim <= _BLOCK).sum())
        block = order[begin : begin + max(1, fits)]
        lengths = counts[block]
        place = torch.arange(max(1, int(lengths[-1])), device=fixed.device)
        known = place < lengths.unsqueeze(1)
        at = (matrix.indptr[block].unsqueeze(1) + place).clamp(max=max(0, matrix.nnz - 1))
        columns = torch.where(known, matrix.indices[at].long(), fixed.shape[0])
        vectors = padded[columns]
        strength = l2 * (lengths + alpha0 * fixed.shape[0]).to(fixed.dtype)
        left = vectors.transpose(1, 2) @ vectors + everywhere + strength[:, None, None] * identity
        rows[block] = torch.linalg.solve(left, vectors.sum(1))
        begin += block.numel()


class EASE(Recommender):
    """The linear autoencoder of items, in closed form [STE19]: scores are ``X_u B``, X_u a user's training row.

    ``B = I - P / diag(P)`` by columns, ``P = (X'X + l2 I)^-1``. It needs items x items numbers, so it takes at most
    20 000 items (1.6 GB).

    Args:
        interactions: the training interactions.
        l2: the strength of the regularisation, > 0.

    Attributes:
        item_embedding: Parameter [num_items, num_items]; row i holds the weights with which a user's items speak for i.
        user_embedding: Parameter [num_users, 0]: a user is his training row.

    Example:
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> model = zx.EASE.from_interactions(data)
        >>> model.recommend([1], k=1, exclude=data)[0].tolist()
        [[1]]
    """

    def __init__(self, interactions: Any, *, l2: float = 500.0) -> None:
        super().__init__()
        train = Interactions.from_any(interactions)
        self.num_users, self.num_items = train.shape
        self.l2 = require_finite_number("l2", l2)
        if self.l2 <= 0:
            raise ValueError(f"l2: expected a number > 0, got {l2}")
        if self.num_items > MOST_EASE_ITEMS:
            raise ValueError(
                f"interactions: expected at most {MOST_EASE_ITEMS:,} items, as EASE holds items x items numbers, got "
                f"{self.num_items:,}; leave out rare ones (min_item_count), or take IALS"
            )
        self.train_part = train
        empty = torch.empty(self.num_items, self.num_items)
        self.item_embedding = nn.Parameter(empty, requires_grad=False)
        self.user_embedding = nn.Parameter(torch.empty(self.num_users, 0), requires_grad=False)

    @classmethod
    def from_interactions(cls, interactions: Interactions, **options: Any) -> EASE:
        """Return the model of these training interactions, solved."""
        model = cls(interactions, **options)
        model.item_embedding.copy_(_ease_weights(model.train_part, model.l2))
        return model.to(interactions.indptr.device)

    def rows(self, users: Tensor) -> Tensor:
        """Return the training rows of users [B] as numbers 0 and 1, [B, num_items]."""
        train = self.train_part = self.train_part.to(self.device)
        counts = train.indptr[users + 1] - train.indptr[users]
        row = torch.repeat_interleave(torch.arange(users.numel(), device=users.device), counts)
        offset = torch.arange(row.numel(), device=users.device) - (counts.cumsum(0) - counts)[row]
        dense = torch.zeros(users.numel(), self.num_items, dtype=self.item_embedding.dtype, device=users.device)
        dense[row, train.indices[train.indptr[users][row] + offset].long()] = 1.0
        return dense

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        check_pairs(users, items)
        distinct, place = torch.unique(users, return_inverse=True)
        scores = self.score_all_items(distinct)[place]
        return scores.gather(1, items.reshape(len(users), -1)).reshape(items.shape)

    def score_all_items(self, users: Tensor) -> Tensor:
        return self.rows(users) @ self.item_embedding.detach().T

    def config(self) -> dict[str, Any]:
        return {"num_users": self.num_users, "num_items": self.num_items, "l2": self.l2}

    def _extra_tensors(self) -> dict[str, Tensor]:
        return {"train.indptr": self.train_part.indptr, "train.indices": self.train_part.indices}

    @classmethod
    def _construct(cls, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Recommender:
        shape = (config.pop("num_users"), config.pop("num_items"))
        users = torch.repeat_interleave(torch.arange(shape[0]), tensors["train.indptr"].diff())
        train = Interactions.from_arrays(users.numpy(), tensors["train.indices"].numpy(), shape=shape)
        return cls(train, **config)


def _ease_weights(train: Interactions, l2: float) -> Tensor:
    """Return B transposed, [num_items, num_items]."""
    x = train.to_scipy().astype("float32")
    gram = torch.from_numpy((x.T @ x).toarray())
    if train.num_items <= _DOUBLE:
        gram = gram.double()
    gram.diagonal().add_(l2)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    weights = inverse.div_(-inverse.diagonal())
    weights.fill_diagonal_(0)
    return weights.T.float()
