"""The state of models while they are evaluated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

__all__ = ["inference"]


@contextlib.contextmanager
def inference(model: object) -> Iterator[None]:
    """Switch gradients off, and a module into evaluation mode (without dropout), for a while.

    Args:
        model: a module; any other object has no mode to switch.
    """
    if torch.compiler.is_exporting():  # a program has no gradients to switch off, and cannot be saved if it tries
        yield
        return
    module = model if isinstance(model, nn.Module) and model.training else None
    if module is not None:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if module is not None:
            module.train()
