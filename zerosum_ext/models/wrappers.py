"""Models around other models, which change what is ranked by: MACR, PDA and popularity compensation.

References:
    [WFC21] Wei, Feng, Chen, Wu, Yi, He, "Model-Agnostic Counterfactual Reasoning for Eliminating Popularity Bias in
        Recommender System", KDD 2021.
    [ZFH21] Zhang, Feng, He, Wei, Song, Ling, Zhang, "Causal Intervention for Leveraging Popularity Bias in
        Recommendation", SIGIR 2021.
    [ZHZ21] Zhu, He, Zhao, Zhang, Wang, Caverlee, "Popularity-Opportunity Bias in Collaborative Filtering", WSDM 2021.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerosum_ext import losses
from zerosum_ext._checks import describe, require_finite_number
from zerosum_ext._inference import inference
from zerosum_ext._types import Reduction
from zerosum_ext.data.vocabulary import Vocabulary
from zerosum_ext.evaluation import evaluate
from zerosum_ext.models.base import Recommender, all_scores
from zerosum_ext.training import parse_metric

__all__ = ["MACR", "Compensated", "MACRLoss", "PopularityAdjusted", "Wrapper", "choose"]


class MACRLoss(losses.Loss):
    """The module of :func:`zerosum_ext.macr_loss`, for a model that has branches (:class:`MACR`).

    Args:
        alpha: the weight of the item branch's own cross-entropy, >= 0.
        beta: the weight of the user branch's own cross-entropy, >= 0.
        reduction: "none", "sum" or "mean".

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> loss = zx.MACRLoss()
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
        >>> user, pos_item, neg_item = torch.tensor([[0.5, 0.2], [1.0, 0.5], [0.0, 0.1]])
        >>> loss(pos, neg, user, pos_item, neg_item)
        tensor(1.3005)
    """

    #: Makes fit call ``model.branches(users, items)`` and pass on its results.
    needs_branches = True

    def __init__(self, alpha: float = 1e-3, beta: float = 1e-3, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        self.alpha = require_finite_number("alpha", alpha, minimum=0)
        self.beta = require_finite_number("beta", beta, minimum=0)

    def options(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "beta": self.beta, "reduction": self.reduction}

    def forward(
        self,
        pos: Tensor,
        neg: Tensor,
        user_branch: Tensor,
        pos_branch: Tensor,
        neg_branch: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        return losses.macr_loss(
            pos, neg, user_branch, pos_branch, neg_branch, sample_weight=sample_weight, **self.options()
        )


class Wrapper(Recommender):
    """A recommender that changes the scores of another one, its backbone."""

    def __init__(self, backbone: Recommender) -> None:
        super().__init__()
        if not isinstance(backbone, Recommender):
            raise TypeError(f"backbone: expected a Recommender, got {type(backbone).__name__}")
        self.backbone = backbone
        self.num_users, self.num_items = backbone.num_users, backbone.num_items

    @property
    def user_embedding(self) -> nn.Parameter:  # type: ignore[override]
        """The backbone's table of users."""
        return self.backbone.user_embedding

    @property
    def item_embedding(self) -> nn.Parameter:  # type: ignore[override]
        """The backbone's table of items."""
        return self.backbone.item_embedding

    @property
    def epochs_trained(self) -> int:
        """Those of the backbone."""
        return self.backbone.epochs_trained

    @epochs_trained.setter
    def epochs_trained(self, count: int) -> None:
        self.backbone.epochs_trained = count

    @property
    def vocabulary(self) -> Vocabulary | None:
        """That of the backbone."""
        return self.backbone.vocabulary

    @vocabulary.setter
    def vocabulary(self, vocabulary: Vocabulary | None) -> None:
        self.backbone.vocabulary = vocabulary

    def embedding_rows(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        return self.backbone.embedding_rows(users, items)

    def config(self) -> dict[str, Any]:
        return {"backbone": type(self.backbone).__name__, "options": self.backbone.config(), **self._own_config()}

    def _own_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, without the backbone and without those that are among the tensors."""
        return {}

    def _extra_tensors(self) -> dict[str, Tensor]:
        return {f"backbone.{name}": value for name, value in self.backbone._extra_tensors().items()}

    @classmethod
    def _construct(cls, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Recommender:
        own = {n.removeprefix("backbone."): t for n, t in tensors.items() if n.startswith("backbone.")}
        backbone = Recommender._kinds[config.pop("backbone")]._construct(config.pop("options"), own)
        return cls._around(backbone, config, tensors)

    @classmethod
    def _around(cls, backbone: Recommender, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Recommender:
        """Return the wrapper around a backbone, from a file's configuration and tensors."""
        return cls(backbone, **config)


class MACR(Wrapper):
    """A model with a user and an item branch, which learn what users and items score in general [WFC21].

    The branches are linear in the vectors that the backbone's scores are made of, as in the authors' code. Training by
    :class:`MACRLoss` fits ``s(y) s(u) s(i)``. The model itself, and everything at inference, scores by the
    counterfactual ``(y - c) s(u) s(i)``: the match without the effect of the branches alone.

    Args:
        backbone: any :class:`~zerosum_ext.Recommender`. It is trained together with the branches.
        c: the reference score. Larger values rank unpopular items higher; :func:`choose` finds one by validation.
        seed: the seed of the branches' initial weights, N(0, .01^2). None draws from torch's global generator.

    Attributes:
        c: a buffer; change it by ``set_strength``.

    Example:
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> model = zx.MatrixFactorization(*data.shape, embedding_dim=8, seed=0)
        >>> parts = zx.get_method("macr", model, data)
        >>> type(parts.model).__name__, type(parts.loss).__name__
        ('MACR', 'MACRLoss')
    """

    c: Tensor

    def __init__(self, backbone: Recommender, c: float = 0.0, *, seed: int | None = 0) -> None:
        super().__init__(backbone)
        generator = None if seed is None else torch.Generator().manual_seed(int(seed))
        origin = torch.zeros(1, dtype=torch.int64, device=backbone.device)
        with inference(backbone):
            rows = backbone.represent(origin, origin)
        for name, row in zip(("user_branch", "item_branch"), rows, strict=True):
            weight = torch.empty(row.shape[-1]).normal_(std=0.01, generator=generator)
            setattr(self, name, nn.Parameter(weight.to(row)))
        self.register_buffer("c", torch.tensor(require_finite_number("c", c)).to(backbone.user_embedding))

    user_branch: nn.Parameter
    item_branch: nn.Parameter

    def set_strength(self, value: float) -> None:
        """Set c."""
        self.c.fill_(require_finite_number("c", value))

    def branches(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits of the scores, the user branch and the item branch, differentiable.

        Args:
            users: [B].
            items: [B] or [B, J].

        Returns:
            Scores of the shape of ``items``, the user branch [B], and the item branch of the shape of ``items``.
        """
        user_rows, item_rows = self.backbone.represent(users, items)
        return self.backbone.score(user_rows, item_rows), user_rows @ self.user_branch, item_rows @ self.item_branch

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        scores, user, item = self.branches(users, items)
        user = user.unsqueeze(1) if item.dim() == 2 else user
        return (scores - self.c.to(scores.dtype)) * torch.sigmoid(user) * torch.sigmoid(item)

    def score_all_items(self, users: Tensor) -> Tensor:
        """Return the counterfactual scores of all items for ``users`` [B], [B, num_items], without gradient."""
        with inference(self):
            items = torch.arange(self.num_items, device=self.device)
            user_rows, item_rows = self.backbone.represent(users, items)
            factor = torch.sigmoid(user_rows @ self.user_branch)[:, None] * torch.sigmoid(item_rows @ self.item_branch)
            scores = all_scores(self.backbone, users)
            return (scores - self.c.to(scores.dtype)) * factor


class PopularityAdjusted(Wrapper):
    """PDA: rank by ``(ELU(y) + 1) popularity^gamma`` [ZFH21], with a model trained by :class:`zerosum_ext.PDLoss`.

    Args:
        backbone: the trained model.
        popularity: the popularity of the items [num_items], which is divided by its maximum. Give that of the training
            part, or a prediction for the time of the recommendations.
        gamma: the exponent, >= 0. With 0 the ranking is the backbone's, which is PD.

    Example:
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> model = zx.MatrixFactorization(*data.shape, embedding_dim=8, seed=0)
        >>> ranker = zx.PopularityAdjusted(model, data.popularity, gamma=0.5)
        >>> ranker.recommend([1], k=2)[0].shape
        torch.Size([1, 2])
    """

    popularity: Tensor
    gamma: Tensor

    def __init__(self, backbone: Recommender, popularity: Tensor, gamma: float = 0.25) -> None:
        super().__init__(backbone)
        counts = _item_vector(popularity, self.num_items)
        like = backbone.user_embedding
        self.register_buffer("popularity", (counts / counts.amax().clamp(min=1e-300)).to(like))
        self.register_buffer("gamma", torch.tensor(0.0).to(like))
        self.set_strength(gamma)

    def set_strength(self, value: float) -> None:
        """Set gamma."""
        self.gamma.fill_(require_finite_number("gamma", value, minimum=0))

    def _factor(self, like: Tensor) -> Tensor:
        return (self.popularity.double() ** self.gamma.double()).to(like.dtype)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        scores = self.backbone(users, items)
        return (F.elu(scores) + 1) * self._factor(scores)[items]

    def score_all_items(self, users: Tensor) -> Tensor:
        scores = all_scores(self.backbone, users)
        return (F.elu(scores) + 1) * self._factor(scores)

    @classmethod
    def _around(cls, backbone: Recommender, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Recommender:
        return cls(backbone, tensors["popularity"], float(tensors["gamma"]))


class Compensated(Wrapper):
    """Compensate finished scores for popularity, after [ZHZ21].

    The score is ``y + alpha n_u C`` with ``C = (beta y + 1 - beta) / popularity`` and ``n_u = |y_u| / |C_u|``. The
    norms are over all items, so that alpha means the same for every user and model. An item that nobody has counts as
    popularity 1.

    Args:
        backbone: the trained model.
        popularity: the numbers of interactions of the items [num_items].
        alpha: the strength, >= 0.
        beta: a number in [0, 1]. 1 compensates in proportion to the score, 0 equally for all users.

    Example:
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> model = zx.MatrixFactorization(*data.shape, embedding_dim=8, seed=0)
        >>> ranker = zx.Compensated(model, data.popularity, alpha=0.2)
        >>> ranker.recommend([1], k=2)[0].shape
        torch.Size([1, 2])
    """

    popularity: Tensor
    alpha: Tensor

    def __init__(self, backbone: Recommender, popularity: Tensor, alpha: float = 0.1, beta: float = 0.5) -> None:
        super().__init__(backbone)
        like = backbone.user_embedding
        self.register_buffer("popularity", _item_vector(popularity, self.num_items).clamp(min=1).to(like))
        self.register_buffer("alpha", torch.tensor(0.0).to(like))
        self.beta = require_finite_number("beta", beta, minimum=0, maximum=1)
        self.set_strength(alpha)

    def set_strength(self, value: float) -> None:
        """Set alpha."""
        self.alpha.fill_(require_finite_number("alpha", value, minimum=0))

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        # A user's norms are over all items.
        scores = self.score_all_items(users)
        return scores.gather(1, items.reshape(users.shape[0], -1)).reshape(items.shape)

    def score_all_items(self, users: Tensor) -> Tensor:
        scores = all_scores(self.backbone, users)
        compensation = (self.beta * scores + (1 - self.beta)) / self.popularity.to(scores.dtype)
        tiny = torch.finfo(scores.dtype).tiny
        norm: Tensor = scores.norm(dim=1, keepdim=True) / compensation.norm(dim=1, keepdim=True).clamp(min=tiny)
        return scores + self.alpha.to(scores.dtype) * norm * compensation

    def _own_config(self) -> dict[str, Any]:
        return {"beta": self.beta}

    @classmethod
    def _around(cls, backbone: Recommender, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Recommender:
        return cls(backbone, tensors["popularity"], float(tensors["alpha"]), **config)


def _item_vector(popularity: Tensor, num_items: int) -> Tensor:
    """Return checked popularities as float64 [num_items]."""
    if not isinstance(popularity, Tensor) or popularity.shape != (num_items,):
        raise ValueError(f"popularity: expected a tensor of shape ({num_items},), got {describe(popularity)}")
    return popularity.detach().double()


def choose(
    model: MACR | PopularityAdjusted | Compensated,
    candidates: Iterable[float],
    train: Any,
    valid: Any,
    metric: str = "ndcg@10",
) -> dict[float, float]:
    """Set the strength that a model has at inference (c, gamma or alpha) to the best of the candidates.

    Args:
        model: the model; it is changed in place.
        candidates: the strengths to try.
        train: the training interactions, whose items are no candidates of the ranking.
        valid: the interactions that the metric is computed on.
        metric: a key of :func:`zerosum_ext.evaluate` of which larger values are better.

    Returns:
        The value of the metric for each candidate. The first of equal candidates is taken.

    Raises:
        ValueError: there is no candidate, or the metric is unknown.
    """
    name, cutoff = parse_metric(metric)
    values = {}
    for candidate in candidates:
        model.set_strength(candidate)
        values[candidate] = evaluate(model, train, valid, metrics=(name,), k=(cutoff,))[metric]
    if not values:
        raise ValueError("candidates: expected at least one, got none")
    model.set_strength(max(values, key=values.__getitem__))
    return values
