"""Matrix factorization: the score is the dot product of a user's and an item's embedding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerosum_ext._checks import MOST_DIM, require_finite_number, require_positive_int
from zerosum_ext.models.base import DotProductRecommender, check_pairs

__all__ = ["MatrixFactorization"]


class MatrixFactorization(DotProductRecommender):
    """Score by ``y_ui = <P_u, Q_i> (+ b_i)`` ([BPR09] section 4.3.1, [RCS22] section 4.1).

    Args:
        num_users: the number of rows of ``user_embedding``.
        num_items: the number of rows of ``item_embedding``.
        embedding_dim: the width d of both tables.
        item_bias: whether a learnt number is added to the scores of each item. It starts at zero.
        normalize: whether scores are cosines: both rows are scaled to length 1, as CCL and the softmax losses like it.
            A bias is added to the cosine.
        init_std: the standard deviation of the initial tables, N(0, init_std^2). [RCS22] uses .01.
        sparse: whether the gradients of the tables are sparse tensors of the batch's rows. SparseAdam needs them, and
            they are faster if a batch touches few of the rows. ``fit`` turns them on for SparseAdam.
        seed: the seed of the initial tables; torch's global generator then stays as it was. None draws from the global
            generator, as torch.nn does.
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Attributes:
        user_embedding: Parameter [num_users, d].
        item_embedding: Parameter [num_items, d].
        item_bias: Parameter [num_items], or None.

    To freeze a table, call ``model.item_embedding.requires_grad_(False)``. Training then leaves it as it is.

    References:
        [BPR09] Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009.
        [RCS22] Rhee, Cho, Suh, "Countering Popularity Bias by Regularizing Score Differences", RecSys 2022.

    Example:
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> model = zx.MatrixFactorization(*data.shape, embedding_dim=8, seed=0)
        >>> history = model.fit(data, "zerosum", epochs=2, seed=0, progress=False)
        >>> len(history), model.recommend([0, 1], k=2, exclude=data)[0].shape
        (2, torch.Size([2, 2]))
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        embedding_dim: int = 64,
        *,
        item_bias: bool = False,
        normalize: bool = False,
        init_std: float = 0.01,
        sparse: bool = False,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_users = require_positive_int("num_users", num_users)
        self.num_items = require_positive_int("num_items", num_items)
        self.embedding_dim = require_positive_int("embedding_dim", embedding_dim, maximum=MOST_DIM)
        self.init_std = require_finite_number("init_std", init_std, minimum=0)
        self.sparse, self.normalize = bool(sparse), bool(normalize)
        kwargs: dict[str, Any] = {"device": device, "dtype": dtype}
        self.user_embedding = nn.Parameter(torch.empty(self.num_users, self.embedding_dim, **kwargs))
        self.item_embedding = nn.Parameter(torch.empty(self.num_items, self.embedding_dim, **kwargs))
        self.item_bias: nn.Parameter | None
        if item_bias:
            self.item_bias = nn.Parameter(torch.zeros(self.num_items, **kwargs))
        else:
            self.register_parameter("item_bias", None)
        self.reset_parameters(seed)

    def reset_parameters(self, seed: int | None = None) -> None:
        """Draw both tables anew from N(0, init_std^2), set the biases and the count of trained epochs to zero."""
        self.epochs_trained = 0
        with torch.no_grad():
            if seed is None:
                nn.init.normal_(self.user_embedding, std=self.init_std)
                nn.init.normal_(self.item_embedding, std=self.init_std)
            else:
                # The CPU draws in float32, so that a seed means the same tables on every device.
                generator = torch.Generator().manual_seed(int(seed))
                for table in (self.user_embedding, self.item_embedding):
                    table.copy_(torch.randn(table.shape, generator=generator) * self.init_std)
            if self.item_bias is not None:
                self.item_bias.zero_()

    def extra_repr(self) -> str:
        bias = ", item_bias=True" if self.item_bias is not None else ""
        cosine = ", normalize=True" if self.normalize else ""
        return f"{self.num_users}, {self.num_items}, embedding_dim={self.embedding_dim}{bias}{cosine}"

    # --- scores ------------------------------------------------------------------------------------------

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        check_pairs(users, items)
        scores = self.score(*(self._scaled(rows) for rows in self.embedding_rows(users, items)))
        if self.item_bias is not None:
            # Not F.embedding of a [num_items, 1] view: a view has no sparse gradient.
            bias = torch.gather(self.item_bias, 0, items.reshape(-1), sparse_grad=self.sparse)
            scores = scores + bias.reshape(items.shape)
        return scores

    def embedding_rows(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        user_rows = F.embedding(users, self.user_embedding, sparse=self.sparse)
        return user_rows, F.embedding(items, self.item_embedding, sparse=self.sparse)

    def _scaled(self, rows: Tensor) -> Tensor:
        """Return rows of the tables as scores take them: of length 1 if the scores are cosines."""
        return F.normalize(rows, dim=-1) if self.normalize else rows

    def vectors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the vectors of users [U, d] and items [I, d], and the bias of items [I] or None.

        They are the tables themselves, or with ``normalize`` their rows scaled to length 1.
        """
        return self._scaled(self.user_embedding), self._scaled(self.item_embedding), self.item_bias

    # --- training ----------------------------------------------------------------------------------------

    def scores_from_tables(self) -> bool:
        """Return whether scores are exactly the formula of this class, so that compiled training may stand for it.

        They are not if a subclass, or this very object, replaces a method that scores or the L2 term are made of.
        """
        cls = type(self)
        return all(
            getattr(cls, name) is getattr(MatrixFactorization, name) and name not in self.__dict__
            for name in ("__call__", "forward", "embedding_rows", "_scaled", "score", "l2_penalty")
        )

    def use_sparse_gradients(self, enabled: bool = True) -> None:
        """Switch sparse gradients of the tables on or off, see ``sparse``."""
        self.sparse = bool(enabled)

    # --- files -------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        return {
            "num_users": self.num_users,
            "num_items": self.num_items,
            "embedding_dim": self.embedding_dim,
            "item_bias": self.item_bias is not None,
            "normalize": self.normalize,
            "init_std": self.init_std,
            "sparse": self.sparse,
        }
