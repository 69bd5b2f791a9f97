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
    # A module without parts has one flag. To switch it by eval() takes as long as the scores of a thousand items.
    plain = module is not None and not module._modules and _is_plain(type(module))
    if module is not None:
        if plain:
            module.__dict__["training"] = False
        else:
            module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if module is not None:
            if plain:
                module.__dict__["training"] = True
            else:
                module.train()


def _is_plain(kind: type[nn.Module]) -> bool:
    """Return whether modules of this class do what all do when their mode is switched."""
    return kind.train is nn.Module.train and kind.eval is nn.Module.eval
