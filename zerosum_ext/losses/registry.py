"""The losses by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from zerosum_ext._checks import require_choice
from zerosum_ext.losses import modules
from zerosum_ext.losses.base import RecordLoss
from zerosum_ext.losses.records import RECORDS
from zerosum_ext.reference import Kernel

#: The modules by name. MACR has none here: it goes with a model of its own.
MODULES: dict[str, type[RecordLoss]] = {
    name: getattr(modules, record.class_name) for name, record in RECORDS.items() if record.scores != "branches"
}


def loss_names() -> list[str]:
    """Return the names that :func:`get_loss` knows."""
    return list(MODULES)


@functools.cache
def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    """Return the arguments of a loss's module, which take a tenth of a millisecond to find out."""
    return inspect.signature(MODULES[name]).parameters


def loss_options(name: str) -> list[str]:
    """Return the names of the options that :func:`get_loss` takes for a loss."""
    require_choice("loss", name, loss_names())
    return list(_parameters(name))


def get_loss(name: str, **options: Any) -> RecordLoss:
    """Return the loss module of that name, made with the given options.

    Raises:
        ValueError: the name or an option is unknown, an option is missing, or its value is out of range.
        TypeError: an option is of the wrong type.

    Example:
        >>> import zerosum_ext as zx
        >>> zx.get_loss("zerosum", w=0.9).w
        0.9
    """
    require_choice("loss", name, loss_names())
    parameters = _parameters(name)
    unknown = [repr(option) for option in options if option not in parameters]
    if unknown:
        raise ValueError(f"loss {name!r}: expected options among {', '.join(parameters)}, got {', '.join(unknown)}")
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise ValueError(f"loss {name!r}: expected the option {option!r}, got {sorted(options)}")
    return MODULES[name](**options)


def compiled_loss(loss: nn.Module) -> Kernel | None:
    """Return the compiled loss that one of the library's own modules amounts to, or None for any other module.

    A subclass may have a forward of its own, and hooks want to be called: neither is what the kernel computes.
    """
    if type(loss) not in MODULES.values() or loss._forward_hooks or loss._forward_pre_hooks:
        return None
    assert isinstance(loss, RecordLoss)
    return loss.kernel()
