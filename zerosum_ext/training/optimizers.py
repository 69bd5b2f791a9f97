"""Optimizers of torch.optim that do not load torch.compile's machinery.

torch keeps its compiler away from ``add_param_group`` and ``state_dict`` by a decorator, whose first call imports
``torch._dynamo``: some 2 s of a process's time. Nothing is compiled here, so the methods below it are called.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


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


def _undecorated(kind: type[torch.optim.Optimizer], name: str) -> Any:
    """Return torch's own method without its decorator, or None where there is nothing to gain or it is another's."""
    method = getattr(kind, name)
    own = method is getattr(torch.optim.Optimizer, name)
    return None if "torch._dynamo" in sys.modules or not own else getattr(method, "__wrapped__", None)
