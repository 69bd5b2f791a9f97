"""Debiasing methods by name: what to train, with which loss and regularizer, and how to rank with the result.

    parts = get_method("macr", model, train)
    fit(parts.model, train, parts.loss, regularizer=parts.regularizer)
    ranker = parts.inference(parts.model)

Every loss of :func:`zerosum_ext.losses.get_loss` is a method. Beside these there are

=============== =============================================================================================
"macr"          user and item branch around any model, counterfactual scores at inference [WFC21]
"pda"           the loss of "pd"; scores are multiplied by (predicted) popularity again at inference [ZFH21]
"pearson"       BPR and ``weight corr(score, popularity)^2`` over all training positives [ZHZ21]
"compensation"  BPR; scores of unpopular items are raised at inference [ZHZ21]
=============== =============================================================================================

References:
    [WFC21] Wei, Feng, Chen, Wu, Yi, He, "Model-Agnostic Counterfactual Reasoning for Eliminating Popularity Bias in
        Recommender System", KDD 2021.
    [ZFH21] Zhang, Feng, He, Wei, Song, Ling, Zhang, "Causal Intervention for Leveraging Popularity Bias in
        Recommendation", SIGIR 2021.
    [ZHZ21] Zhu, He, Zhao, Zhang, Wang, Caverlee, "Popularity-Opportunity Bias in Collaborative Filtering", WSDM 2021.
    [RCS22] Rhee, Cho, Suh, "Countering Popularity Bias by Regularizing Score Differences", RecSys 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerosum_ext import losses
from zerosum_ext._checks import describe, require_choice, require_finite_number
from zerosum_ext._types import Reduction
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.evaluation.full import evaluate
from zerosum_ext.models.base import Recommender, inference
from zerosum_ext.training.regularizers import PearsonRegularizer, Regularizer

__all__ = [
    "MACR",
    "Compensated",
    "MACRLoss",
    "MethodParts",
    "PopularityAdjusted",
    "choose",
    "get_method",
    "method_names",
    "method_options",
]


class MACRLoss(losses.Loss):
    """Module over :func:`zerosum_ext.macr_loss`, for a model that has branches (:class:`MACR`).

    Args:
        alpha, beta: weights of the item branch's and the user branch's own cross-entropy, >= 0.
    """

    #: fit then calls ``model.branches(users, items)`` and passes what it returns.
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


# ---- models around models


class _Wrapper(Recommender):
    """A recommender whose scores are made of another's."""

    def __init__(self, backbone: Recommender) -> None:
        super().__init__()
        if not isinstance(backbone, Recommender):
            raise TypeError(f"backbone: expected a Recommender, got {type(backbone).__name__}")
        self.backbone = backbone
        self.num_users, self.num_items = backbone.num_users, backbone.num_items

    @property
    def user_embedding(self) -> nn.Parameter:  # type: ignore[override]
        """Of the backbone."""
        return self.backbone.user_embedding

    @property
    def item_embedding(self) -> nn.Parameter:  # type: ignore[override]
        """Of the backbone."""
        return self.backbone.item_embedding

    def embedding_rows(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        return self.backbone.embedding_rows(users, items)

    def config(self) -> dict[str, Any]:
        return {"backbone": type(self.backbone).__name__, "options": self.backbone.config(), **self._own_config()}

    def _own_config(self) -> dict[str, Any]:
        """The constructor's arguments but the backbone and what is among the tensors."""
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
        return cls(backbone, **config)


class MACR(_Wrapper):
    """A model with a user and an item branch, which take up what users and items score in general [WFC21].

    The branches are linear in the vectors that the model's own scores are made of, as in the authors' code. Training
    (:class:`MACRLoss`) fits ``s(y) s(u) s(i)``; ``model(users, items)`` and everything at inference is the
    counterfactual ``(y - c) s(u) s(i)``: what is left of the match when the effect of the branches alone is taken
    away.

    Args:
        backbone: any :class:`~zerosum_ext.Recommender`; it is trained along.
        c: the reference score. Larger values rank unpopular items higher; :func:`choose` picks one by a validation
            part.
        seed: of the branches' initial weights, N(0, .01^2); None draws from torch's global generator.

    Attributes:
        c: a buffer; set it with ``set_strength``.
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
        """Sets c."""
        self.c.fill_(require_finite_number("c", value))

    def branches(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(scores like items, user branch [B], item branch like items): logits, for ``users`` [B]; differentiable."""
        user_rows, item_rows = self.backbone.represent(users, items)
        return self.backbone.score(user_rows, item_rows), user_rows @ self.user_branch, item_rows @ self.item_branch

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        scores, user, item = self.branches(users, items)
        user = user.unsqueeze(1) if item.dim() == 2 else user
        return (scores - self.c.to(scores.dtype)) * torch.sigmoid(user) * torch.sigmoid(item)

    def score_all_items(self, users: Tensor) -> Tensor:
        """Counterfactual scores of every item for ``users`` [B]: [B, num_items], without gradient or dropout."""
        with inference(self):
            items = torch.arange(self.num_items, device=self.device)
            user_rows, item_rows = self.backbone.represent(users, items)
            factor = torch.sigmoid(user_rows @ self.user_branch)[:, None] * torch.sigmoid(item_rows @ self.item_branch)
            scores = self.backbone.score_all_items(users)
            return (scores - self.c.to(scores.dtype)) * factor


class PopularityAdjusted(_Wrapper):
    """PDA: ranks by ``(ELU(y) + 1) popularity^gamma`` [ZFH21], for a model trained with :class:`PDLoss`.

    Args:
        backbone: the trained model.
        popularity: of the items, [num_items], divided by its maximum here: that of the training part, or a prediction
            of what it will be when recommendations are made.
        gamma: the exponent, >= 0; 0 ranks as the model does, which is PD.
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
        """Sets gamma."""
        self.gamma.fill_(require_finite_number("gamma", value, minimum=0))

    def _factor(self, like: Tensor) -> Tensor:
        return (self.popularity.double() ** self.gamma.double()).to(like.dtype)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        scores = self.backbone(users, items)
        return (F.elu(scores) + 1) * self._factor(scores)[items]

    def score_all_items(self, users: Tensor) -> Tensor:
        scores = self.backbone.score_all_items(users)
        return (F.elu(scores) + 1) * self._factor(scores)

    @classmethod
    def _around(cls, backbone: Recommender, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Recommender:
        return cls(backbone, tensors["popularity"], float(tensors["gamma"]))


class Compensated(_Wrapper):
    """Popularity compensation of finished scores, after [ZHZ21].

    ``y + alpha n_u C`` with ``C = (beta y + 1 - beta) / popularity`` and ``n_u = |y_u| / |C_u|``, norms over all items,
    so that alpha means the same for every user and model. An item that nobody has counts as popularity 1.

    Args:
        backbone: the trained model.
        popularity: interaction counts of the items, [num_items].
        alpha: strength, >= 0.
        beta: in [0, 1]: 1 compensates in proportion to the score, 0 alike for all users.
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
        """Sets alpha."""
        self.alpha.fill_(require_finite_number("alpha", value, minimum=0))

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        # A user's norms are over all items.
        scores = self.score_all_items(users)
        return scores.gather(1, items.reshape(len(users), -1)).reshape(items.shape)

    def score_all_items(self, users: Tensor) -> Tensor:
        scores = self.backbone.score_all_items(users)
        compensation = (self.beta * scores + (1 - self.beta)) / self.popularity.to(scores.dtype)
        tiny = torch.finfo(scores.dtype).tiny
        norm = scores.norm(dim=1, keepdim=True) / compensation.norm(dim=1, keepdim=True).clamp(min=tiny)
        return scores + self.alpha.to(scores.dtype) * norm * compensation

    def _own_config(self) -> dict[str, Any]:
        return {"beta": self.beta}

    @classmethod
    def _around(cls, backbone: Recommender, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Recommender:
        return cls(backbone, tensors["popularity"], float(tensors["alpha"]), **config)


def _item_vector(popularity: Tensor, num_items: int) -> Tensor:
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
    """Sets the strength that a model has at inference (c, gamma or alpha) to the best of the candidates.

    Returns:
        {candidate: value of the metric on ``valid``}, larger being better; of equal ones the first is taken.
    """
    name, _, cutoff = metric.partition("@")
    values = {}
    for candidate in candidates:
        model.set_strength(candidate)
        values[candidate] = evaluate(model, train, valid, metrics=(name,), k=(int(cutoff or 10),))[metric]
    if not values:
        raise ValueError("candidates: expected at least one, got none")
    model.set_strength(max(values, key=values.__getitem__))
    return values


# ---- by name


class MethodParts(NamedTuple):
    """What a method consists of.

    Attributes:
        model: what to train: the model given, or a wrapper around it.
        loss: of :func:`zerosum_ext.training.loop.fit`.
        regularizer: likewise, or None.
        inference: from the trained model to the one to rank with; often the same.
    """

    model: Recommender
    loss: nn.Module
    regularizer: Regularizer | None
    inference: Callable[[Recommender], Recommender]


# The loss that each of the others trains with, and the options that go elsewhere, with their defaults.
_OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "macr": ("macr", {"c": 0.0}),
    "pda": ("pd", {"popularity": None}),
    "pearson": ("bpr", {"weight": 5.0, "every": None}),
    "compensation": ("bpr", {"alpha": 0.1, "beta": 0.5}),
}


def method_names() -> list[str]:
    """The names that :func:`get_method` knows."""
    return [*losses.loss_names(), *_OTHERS]


def method_options(name: str) -> list[str]:
    """The names of the options of a method."""
    require_choice("method", name, method_names())
    loss, own = _OTHERS.get(name, (name, {}))
    of_loss = ["alpha", "beta", "reduction"] if loss == "macr" else losses.loss_options(loss)
    return [*of_loss, *(option for option in own if option not in of_loss)]


def get_method(name: str, model: Recommender, train: Any, **options: Any) -> MethodParts:
    """The parts of a method for a model and its training interactions.

    Args:
        name: one of :func:`method_names`.
        model: any recommender, not trained yet.
        train: the training interactions; popularities are theirs unless ``popularity`` is given.
        options: of the loss (:func:`zerosum_ext.losses.get_loss`), and of "macr" c, of "pearson" weight and every, of
            "compensation" alpha and beta.

    Raises:
        ValueError: an unknown name or option.
    """
    known = method_options(name)
    for option in options:
        if option not in known:
            raise ValueError(f"method {name!r}: expected options of {', '.join(known)}, got {option!r}")
    train = Interactions.from_any(train)
    loss_name, defaults = _OTHERS.get(name, (name, {}))
    own = {**defaults, **{option: value for option, value in options.items() if option in defaults}}
    of_loss = {option: value for option, value in options.items() if option not in defaults}
    popularity = options.get("popularity")
    popularity = train.popularity.cpu() if popularity is None else popularity
    if name == "macr":
        return MethodParts(MACR(model, own["c"]), MACRLoss(**of_loss), None, _same)
    if "popularity" in losses.loss_options(loss_name):
        of_loss["popularity"] = popularity
    loss = losses.get_loss(loss_name, **of_loss)
    if name == "pda":
        gamma = getattr(loss, "gamma")  # noqa: B009  (mypy knows the base class alone)
        return MethodParts(model, loss, None, lambda m: PopularityAdjusted(m, popularity, gamma))
    if name == "pearson":
        return MethodParts(model, loss, PearsonRegularizer(train, **own), _same)
    if name == "compensation":
        return MethodParts(model, loss, None, lambda m: Compensated(m, popularity, **own))
    return MethodParts(model, loss, None, _same)


def _same(model: Recommender) -> Recommender:
    return model
