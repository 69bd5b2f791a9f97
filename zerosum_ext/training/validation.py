"""The number that a run is validated by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from zerosum_ext._group import Group
from zerosum_ext._inference import inference
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.data.shards import ShardedInteractions
from zerosum_ext.evaluation import AT_K_METRICS, METRICS, SAMPLED_METRICS, WEIGHTED_METRICS, evaluate
from zerosum_ext.evaluation.sharded import evaluate_shards, evaluate_together
from zerosum_ext.evaluation.sources import score_source

__all__ = ["Evaluator", "Validated", "make_evaluator", "matching_interactions", "parse_metric"]


class Validated(NamedTuple):
    """The value of the validation metric, and that of the measure of bias, if one is watched."""

    value: float
    bias: float | None = None


#: From a model to what validation says of it.
Evaluator: TypeAlias = Callable[[nn.Module], Validated]


def make_evaluator(
    source: Any,
    metric: str,
    train: Interactions,
    model: nn.Module,
    bias: str | None = None,
    group: Group | None = None,
) -> Evaluator | None:
    """Return the function that validates a model, or None without validation.

    Args:
        source: interactions to evaluate on, a callable from the model to a number, or None.
        metric: a key of :func:`zerosum_ext.evaluate`; not read where ``source`` is a callable.
        train: the training interactions, whose items are no candidates.
        model: the model that is going to be validated.
        bias: a measure of bias to compute with it, or None.
        group: the processes that evaluate together, or None.

    Raises:
        ValueError: the metric is unknown, the shapes differ, or the model cannot score all items of a user.
    """
    if source is None:
        return None
    if callable(source) and not hasattr(source, "indptr"):
        if bias is not None:
            raise ValueError(f"bias: expected None where validation is a callable, got {bias!r}")
        return lambda model: Validated(float(source(model)))
    name, cutoff = parse_metric(metric)
    if isinstance(train, ShardedInteractions):
        if not isinstance(source, ShardedInteractions):
            raise TypeError(f"validation: expected ShardedInteractions or a callable, got {type(source).__name__}")
    else:
        source = matching_interactions("validation", source, train)
        _try_scores(model, train)
    wanted = (name,) if bias is None else (name, bias)

    def validate(model: nn.Module) -> Validated:
        if isinstance(train, ShardedInteractions):
            values = evaluate_shards(model, train, source, metrics=wanted, k=(cutoff,))
        elif group is not None:
            values = evaluate_together(model, train, source, group, metrics=wanted, k=(cutoff,))
        else:
            values = evaluate(model, train, source, metrics=wanted, k=(cutoff,))
        return Validated(float(values[metric]), None if bias is None else float(values[bias]))

    return validate


def _try_scores(model: nn.Module, train: Interactions) -> None:
    """Raise where a model cannot be evaluated, before it is trained for an epoch."""
    try:
        with inference(model):
            source = score_source(model, train.num_users, train.num_items)
            if callable(source) and train.num_users:
                source(torch.zeros(1, dtype=torch.int64, device=train.device))
    except Exception as error:  # whatever the user's forward raises for a user and all items
        said = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"validation: {type(model).__name__} cannot score all items of a user, as validation needs: {said}. "
            "Give it score_all_items(users), or pass a callable as validation"
        ) from error


def matching_interactions(name: str, matrix: Any, train: Interactions) -> Interactions:
    """Return further interactions on the device of the training interactions.

    Args:
        name: the name of the argument, for the message.
        matrix: :class:`~zerosum_ext.Interactions`, or a scipy or torch CSR.
        train: the training interactions.

    Raises:
        ValueError: the shapes differ.
    """
    other = Interactions.from_any(matrix)
    if other.shape != train.shape:
        raise ValueError(f"{name}: expected shape {train.shape} as interactions, got {other.shape}")
    return other.to(train.device)


def parse_metric(metric: str) -> tuple[str, int]:
    """Return the name and the cut-off of a metric such as "ndcg@10".

    Metrics without a cut-off, such as "pri", get 10, which has no effect.

    Raises:
        ValueError: the metric is no key of :func:`zerosum_ext.evaluate`.
    """
    name, at, cutoff = metric.partition("@")
    more = (*SAMPLED_METRICS, *WEIGHTED_METRICS)
    known, with_cutoff = (*METRICS, *more), (*AT_K_METRICS, *more)
    if name not in known:
        raise ValueError(f"metric: expected one of {', '.join(known)}, got {metric!r}")
    if name not in with_cutoff and at:
        raise ValueError(f"metric: expected {name!r}, which has no cut-off, got {metric!r}")
    if name in with_cutoff and not (cutoff.isdecimal() and cutoff.isascii() and cutoff[0] != "0"):
        raise ValueError(f"metric: expected a cut-off as in '{name}@10', got {metric!r}")
    return name, int(cutoff or 10)
