"""PyTorch Geometric's LightGCN with our losses and samples.

    model = LightGCN(train.num_users + train.num_items, 64, 3, loss="zerosum")
    edges = edge_index(train)
    for users, positives, negatives in zx.TripletLoader(train, 8192):
        pos, neg = model(edges, edge_labels(train, users, positives, negatives)).chunk(2)
        model.recommendation_loss(pos, neg, node_id=...).backward()

Users are the nodes [0, num_users) and items the nodes after them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zerosum_ext.data.interactions import Interactions
from zerosum_ext.integrations.packages import needed
from zerosum_ext.losses import get_loss

__all__ = ["LightGCN", "edge_index", "edge_labels", "scores_of_samples"]

_models: Any = needed("torch_geometric.nn.models", "torch_geometric", __name__)


def edge_index(interactions: Interactions) -> Tensor:
    """Return the graph of interactions, both directions of each edge: int64 [2, 2 nnz]."""
    users, items = interactions.pairs()
    items = items + interactions.num_users
    return torch.stack([torch.cat([users, items]), torch.cat([items, users])])


def edge_labels(interactions: Interactions, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Return the edges whose scores a batch needs: those to all positives and then to all negatives, [2, B * J].

    Args:
        interactions: say how many users there are.
        users: int64 [B].
        positives: [B] or [B, 2].
        negatives: [B] or [B, K].
    """
    sides = []
    for items in (positives, negatives):
        flat = items.reshape(len(users), -1)
        sides.append(torch.stack([users.repeat_interleave(flat.shape[1]), flat.reshape(-1) + interactions.num_users]))
    return torch.cat(sides, dim=1)


def scores_of_samples(scores: Tensor, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores of :func:`edge_labels` in the shapes of positives and of negatives, as our losses take them."""
    pos, neg = scores.split([positives.numel(), negatives.numel()])
    return pos.view(positives.shape), neg.view(negatives.shape)


class LightGCN(_models.LightGCN):
    """torch_geometric.nn.LightGCN, whose ``recommendation_loss`` is one of ours.

    Args:
        num_nodes, embedding_dim, num_layers, alpha, kwargs: as of torch_geometric.nn.LightGCN.
        loss: a name of :func:`zerosum_ext.get_loss`, or a module that is called as ``loss(pos, neg)``.
    """

    def __init__(
        self,
        num_nodes: int,
        embedding_dim: int,
        num_layers: int,
        alpha: Any = None,
        *,
        loss: str | nn.Module = "zerosum",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_nodes, embedding_dim, num_layers, alpha, **kwargs)
        self.loss: nn.Module = get_loss(loss) if isinstance(loss, str) else loss

    def recommendation_loss(
        self,
        pos_edge_rank: Tensor,
        neg_edge_rank: Tensor,
        node_id: Tensor | None = None,
        lambda_reg: float = 1e-4,
        **kwargs: Any,
    ) -> Tensor:
        """Return the loss of scores, plus ``lambda_reg`` times the squared norms of the nodes, by their number.

        Args:
            pos_edge_rank: scores of positives [B], or [B, 2] for a loss of pairs.
            neg_edge_rank: scores of negatives [B] or [B, K].
            node_id: nodes whose rows are regularized; None: all.
            lambda_reg: the weight; the mean is over positives, as in torch_geometric.
            kwargs: keyword arguments of the loss.
        """
        value: Tensor = self.loss(pos_edge_rank, neg_edge_rank, **kwargs)
        if not lambda_reg:
            return value
        rows = self.embedding.weight if node_id is None else self.embedding.weight[node_id]
        value = value + lambda_reg * rows.norm(p=2).square() / pos_edge_rank.shape[0]
        return value
