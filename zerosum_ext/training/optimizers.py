"""Optimizers of torch.optim by name, made without loading torch.compile's machinery.

torch keeps its compiler away from ``add_param_group`` its state's methods by a decorator, whose first call
imports ``torch._dynamo``: some 2 s of a process's time. Nothing is compiled here, so the methods below it are called.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import nn

from zerosum_ext._checks import require_choice, require_finite_number

__all__ = ["OPTIMIZERS", "OptimizerLike", "load_optimizer_state", "make_optimizer", "optimizer_from", "optimizer_state"]

#: Optimizers by name. "sparse_adam" updates only the rows of the batch.
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "sparse_adam": torch.optim.SparseAdam,
}

#: What ``fit`` takes: an optimizer, a class or another callable that makes one from a list of parameters, or a name.
OptimizerLike: TypeAlias = "torch.optim.Optimizer | Callable[..., torch.optim.Optimizer] | str | None"


def optimizer_from(
    given: OptimizerLike, parameters: Iterable[nn.Parameter], lr: float | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer that is meant by an argument of ``fit``.

    A name, a class and a ``functools.partial`` of a class do not load torch.compile's machinery; another callable does,
    if it makes an optimizer of torch.optim.

    Args:
        given: an optimizer, which is returned as it is; a callable that makes one from a list of parameters; a name of
            :data:`OPTIMIZERS`; or None for "adam".
        parameters: what a new optimizer is to update.
        lr: the learning rate of an optimizer given by its name or class, or None for torch's own default.

    Raises:
        TypeError: the result is not an optimizer.
        ValueError: an unknown name, or a learning rate that is out of range or beside an optimizer that has its own.
    """
    maker: Any = "adam" if given is None else given
    if isinstance(maker, str):
        require_choice("optimizer", maker, list(OPTIMIZERS))
        maker = OPTIMIZERS[maker]
    if _is_class(maker):
        options = {} if lr is None else {"lr": require_finite_number("lr", lr, minimum=0)}
        return make_optimizer(maker, parameters, **options)
    if lr is not None:
        raise ValueError(f"lr: expected None with an optimizer that has its own, as {maker!r}, got {lr!r}")
    if isinstance(maker, functools.partial) and _is_class(maker.func) and not maker.args:
        return make_optimizer(maker.func, parameters, **maker.keywords)
    made = maker(parameters) if callable(maker) and not isinstance(maker, torch.optim.Optimizer) else maker
    if not isinstance(made, torch.optim.Optimizer):
        names = ", ".join(OPTIMIZERS)
        raise TypeError(f"optimizer: expected a torch.optim.Optimizer or one of {names}, got {type(made).__name__}")
    return made


def _is_class(maker: Any) -> TypeGuard[type[torch.optim.Optimizer]]:
    return isinstance(maker, type) and issubclass(maker, torch.optim.Optimizer)


def make_optimizer(
    kind: type[torch.optim.Optimizer], parameters: Iterable[nn.Parameter], **options: Any
) -> torch.optim.Optimizer:
    """Return ``kind(parameters, **options)``.

    Args:
        kind: a class of torch.optim, or a subclass.
        parameters: what it is to update.
        options: what it is made with besides.
    """
    plain = _undecorated(kind, "add_param_group")
    if plain is None:
        return kind(parameters, **options)
    optimizer = kind.__new__(kind)
    # __init__ finds the object's own attribute before the class's method.
    optimizer.__dict__["add_param_group"] = plain.__get__(optimizer)
    try:
        optimizer.__init__(parameters, **options)  # type: ignore[misc]
    finally:
        optimizer.__dict__.pop("add_param_group", None)
    return optimizer


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return ``optimizer.state_dict()``."""
    plain = _undecorated(type(optimizer), "state_dict")
    state: dict[str, Any] = optimizer.state_dict() if plain is None else plain(optimizer)
    return state


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Do what ``optimizer.load_state_dict(state)`` does."""
    plain = _undecorated(type(optimizer), "load_state_dict")
    if plain is None:
        optimizer.load_state_dict(state)
    else:
        plain(optimizer, state)


def _undecorated(kind: type[torch.optim.Optimizer], name: str) -> Any:
    """Return torch's own method without its decorator, or None where there is nothing to gain or it is another's."""
    method = getattr(kind, name)
    own = method is getattr(torch.optim.Optimizer, name)
    return None if "torch._dynamo" in sys.modules or not own else getattr(method, "__wrapped__", None)
