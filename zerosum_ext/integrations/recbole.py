"""Matrix factorization with our losses as a model of RecBole.

    from recbole.quick_start import ...          # config["loss_name"] = "zerosum", config["loss_options"] = {"w": 0.9}
    model = ZerosumMF(config, train_data.dataset)

RecBole draws the samples, trains and evaluates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zerosum_ext.integrations.packages import needed
from zerosum_ext.losses import get_loss

__all__ = ["ZerosumMF"]

_abstract: Any = needed("recbole.model.abstract_recommender", "recbole", __name__)
_init: Any = needed("recbole.model.init", "recbole", __name__)
_utils: Any = needed("recbole.utils", "recbole", __name__)


class ZerosumMF(_abstract.GeneralRecommender):
    """Dot products of embeddings, trained pairwise on one of our losses of a positive and a negative.

    The settings are ``embedding_size``, ``loss_name`` ("zerosum" if it is not there), ``loss_options`` and
    ``reg_weight``, the weight of L2 as of :func:`zerosum_ext.mf_loss`.

    Raises:
        ValueError: the loss takes two positives, for which RecBole has no samples.
    """

    input_type = _utils.InputType.PAIRWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        name = _setting(config, "loss_name", "zerosum")
        self.loss: nn.Module = get_loss(name, **_setting(config, "loss_options", {}))
        if getattr(self.loss, "num_positives", 1) != 1 or getattr(self.loss, "needs_items", False):
            raise ValueError(f"loss_name: expected a loss of scores of one positive, got {name!r}")
        self.reg_weight = float(_setting(config, "reg_weight", 0.0))
        self.user_embedding = nn.Embedding(self.n_users, config["embedding_size"])
        self.item_embedding = nn.Embedding(self.n_items, config["embedding_size"])
        self.apply(_init.xavier_normal_initialization)

    def forward(self, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of users and of items."""
        return self.user_embedding(user), self.item_embedding(item)

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Return the loss of a batch."""
        user, positive = self.forward(interaction[self.USER_ID], interaction[self.ITEM_ID])
        negative = self.item_embedding(interaction[self.NEG_ITEM_ID])
        value: Tensor = self.loss((user * positive).sum(-1), (user * negative).sum(-1))
        if self.reg_weight:
            squares = user.square().sum() + positive.square().sum() + negative.square().sum()
            value = value + 0.5 * self.reg_weight * squares / len(user)
        return value

    def predict(self, interaction: Any) -> Tensor:
        """Return the scores of the pairs of a batch."""
        user, item = self.forward(interaction[self.USER_ID], interaction[self.ITEM_ID])
        return (user * item).sum(-1)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Return the scores of all items for each user of a batch, one after the other."""
        user = self.user_embedding(interaction[self.USER_ID])
        return torch.matmul(user, self.item_embedding.weight.T).view(-1)


def _setting(config: Any, name: str, default: Any) -> Any:
    """Return a setting of RecBole's, whose ``config[...]`` is None where nobody has set it."""
    value = config[name] if name in config else None  # noqa: SIM401  (RecBole's Config has no get)
    return default if value is None else value
