"""Models and debiasing methods by name.

    model = get_model("lightgcn", train)
    parts = get_method("macr", model, train)
    fit(parts.model, train, parts.loss, regularizer=parts.regularizer)
    ranker = parts.inference(parts.model)

A method says what to train, with which loss and regularizer, and how to rank with the result. Every loss of
:func:`zerosum_ext.losses.get_loss` is a method. The others are:

=============== =============================================================================================
"macr"          a user and an item branch around any model, counterfactual scores at inference [WFC21]
"pda"           the loss of "pd"; scores are multiplied by (predicted) popularity again at inference [ZFH21]
"pearson"       BPR and ``weight corr(score, popularity)^2`` over all training positives [ZHZ21]
"compensation"  BPR; scores of unpopular items are raised at inference [ZHZ21]
"popular"       no training: items by their number of training interactions
"ease"          no training: EASE in closed form, at most 20 000 items [STE19]
"ials"          no training by samples: implicit ALS of the model's width [HKV08], [RKZ22]
=============== =============================================================================================

References:
    [WFC21] Wei, Feng, Chen, Wu, Yi, He, "Model-Agnostic Counterfactual Reasoning for Eliminating Popularity Bias in
        Recommender System", KDD 2021.
    [ZFH21] Zhang, Feng, He, Wei, Song, Ling, Zhang, "Causal Intervention for Leveraging Popularity Bias in
        Recommendation", SIGIR 2021.
    [ZHZ21] Zhu, He, Zhao, Zhang, Wang, Caverlee, "Popularity-Opportunity Bias in Collaborative Filtering", WSDM 2021.
    [STE19], [HKV08], [RKZ22]: see :mod:`zerosum_ext.models.yardsticks`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from zerosum_ext import losses
from zerosum_ext._checks import require_choice
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.models import presets
from zerosum_ext.models.base import Recommender
from zerosum_ext.models.graph import NGCF, LightGCN
from zerosum_ext.models.mf import MatrixFactorization
from zerosum_ext.models.neural import GMF, MLP, NeuMF
from zerosum_ext.models.wrappers import MACR, Compensated, MACRLoss, PopularityAdjusted
from zerosum_ext.models.yardsticks import EASE, IALS, MostPopular
from zerosum_ext.training import PearsonRegularizer, Regularizer

__all__ = [
    "MethodParts",
    "get_method",
    "get_model",
    "method_names",
    "method_options",
    "model_names",
    "trained_directly",
]

_MODELS: dict[str, type[Recommender]] = {
    "mf": MatrixFactorization,
    "gmf": GMF,
    "mlp": MLP,
    "neumf": NeuMF,
    "ngcf": NGCF,
    "lightgcn": LightGCN,
}


def model_names() -> list[str]:
    """Return the names that :func:`get_model` knows."""
    return list(_MODELS)


def get_model(name: str, interactions: Any, *, preset: str | None = None, **options: Any) -> Recommender:
    """Return the model of that name for these training interactions, with fresh parameters.

    Args:
        name: "mf", "gmf", "mlp", "neumf", "ngcf" or "lightgcn".
        interactions: the training interactions: :class:`~zerosum_ext.Interactions`, or a scipy or torch CSR. They are
            the graph of "ngcf" and "lightgcn". For the others only their shape counts.
        preset: a name of :data:`zerosum_ext.models.presets.MODELS` whose hyper-parameters are the defaults, such as
            "paper" for those of [RCS22]. None takes the defaults of the class.
        options: keyword arguments of the model's class. They override the preset.

    Raises:
        ValueError: the name, the preset or an option is unknown.

    Example:
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> zx.get_model("neumf", data, embedding_dim=8).num_items
        4
    """
    kind = _MODELS[require_choice("name", name, model_names())]
    if preset is not None:
        options = {**presets.model_options(preset, name), **options}
    known = [p.name for p in inspect.signature(kind).parameters.values() if p.name not in _GIVEN]
    for option in options:
        if option not in known:
            raise ValueError(f"model {name!r}: expected options of {', '.join(known)}, got {option!r}")
    return kind.from_interactions(Interactions.from_any(interactions), **options)


# Arguments of models that follow from the interactions.
_GIVEN = ("num_users", "num_items", "interactions")


# ---- methods


class MethodParts(NamedTuple):
    """The parts of a method.

    Attributes:
        model: the model to train: the one given, or a wrapper around it. Where ``loss`` is None it is one that is made
            from the training interactions already.
        loss: the ``loss`` of :func:`zerosum_ext.training.fit`, or None where there is nothing to train.
        regularizer: the ``regularizer`` of :func:`zerosum_ext.training.fit`, or None.
        inference: a function from the trained model to the one to rank with, which is often the same.
    """

    model: Recommender
    loss: nn.Module | None
    regularizer: Regularizer | None
    inference: Callable[[Recommender], Recommender]


# The loss that each of the other methods trains with, and its options that are not the loss's, with their defaults.
_OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "macr": ("macr", {"c": 0.0}),
    "pda": ("pd", {"popularity": None}),
    "pearson": ("bpr", {"weight": 5.0, "every": None}),
    "compensation": ("bpr", {"alpha": 0.1, "beta": 0.5}),
}

# Methods without samples: the model's class, and the options that it takes.
_DIRECT: dict[str, tuple[type[Recommender], tuple[str, ...]]] = {
    "popular": (MostPopular, ()),
    "ease": (EASE, ("l2",)),
    "ials": (IALS, ("alpha0", "l2", "sweeps")),
}


def method_names() -> list[str]:
    """Return the names that :func:`get_method` knows."""
    return [*losses.loss_names(), *_OTHERS, *_DIRECT]


def trained_directly(name: str) -> bool:
    """Return whether a method is made from the training interactions at once, so that there is nothing to fit."""
    return require_choice("method", name, method_names()) in _DIRECT


def method_options(name: str) -> list[str]:
    """Return the names of the options of a method.

    Raises:
        ValueError: the name is unknown.
    """
    if trained_directly(name):
        return list(_DIRECT[name][1])
    loss, own = _OTHERS.get(name, (name, {}))
    of_loss = ["alpha", "beta", "reduction"] if loss == "macr" else losses.loss_options(loss)
    return [*of_loss, *(option for option in own if option not in of_loss)]


def get_method(name: str, model: Recommender, train: Any, **options: Any) -> MethodParts:
    """Return the parts of a method for a model and its training interactions.

    Args:
        name: one of :func:`method_names`.
        model: any recommender that has not been trained yet.
        train: the training interactions. They are also the source of popularities, unless ``popularity`` is given.
        options: options of the loss (:func:`zerosum_ext.losses.get_loss`), and further ones of the method: c of
            "macr", weight and every of "pearson", alpha and beta of "compensation", l2 of "ease", alpha0, l2 and sweeps
            of "ials".

    Raises:
        ValueError: the name or an option is unknown.

    Example:
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> model = zx.MatrixFactorization(*data.shape, embedding_dim=8, seed=0)
        >>> parts = zx.get_method("pd", model, data, gamma=0.5)
        >>> type(parts.loss).__name__
        'PDLoss'
    """
    known = method_options(name)
    for option in options:
        if option not in known:
            wanted = f"options of {', '.join(known)}" if known else "no option"
            raise ValueError(f"method {name!r}: expected {wanted}, got {option!r}")
    train = Interactions.from_any(train)
    if name in _DIRECT:
        width = {"embedding_dim": getattr(model, "embedding_dim", 64)} if name == "ials" else {}
        return MethodParts(_DIRECT[name][0].from_interactions(train, **width, **options), None, None, _same)
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
