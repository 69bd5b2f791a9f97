"""The losses by name."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from zerosum_ext._checks import require_choice
from zerosum_ext.losses.kernels import Kernel
from zerosum_ext.losses.modules import (
    BPRLoss,
    BSLLoss,
    HardestLoss,
    IPWLoss,
    Loss,
    Neg2Loss,
    PDLoss,
    Pos2Loss,
    Pos2Neg2Loss,
    PSLLoss,
    SampledSoftmaxLoss,
    ZerosumLoss,
)

MODULES: dict[str, type[Loss]] = {
    "bpr": BPRLoss,
    "zerosum": ZerosumLoss,
    "pos2neg2": Pos2Neg2Loss,
    "pos2": Pos2Loss,
    "neg2": Neg2Loss,
    "ipw": IPWLoss,
    "pd": PDLoss,
    "sampled_softmax": SampledSoftmaxLoss,
    "bsl": BSLLoss,
    "psl": PSLLoss,
    "hardest": HardestLoss,
}


def loss_names() -> list[str]:
    """The names that :func:`get_loss` knows."""
    return list(MODULES)


def loss_options(name: str) -> list[str]:
    """The names of the options that :func:`get_loss` takes for a loss."""
    require_choice("loss", name, loss_names())
    return list(inspect.signature(MODULES[name]).parameters)


def get_loss(name: str, **options: Any) -> Loss:
    """The loss module of that name, made with the given options.

    Raises:
        ValueError: an unknown name or option.
    """
    require_choice("loss", name, loss_names())
    try:
        return MODULES[name](**options)
    except TypeError as error:
        if "unexpected keyword" in str(error) or "missing" in str(error):
            raise ValueError(f"loss {name!r}: {str(error).split('() ')[-1]}; got options {sorted(options)}") from None
        raise


def compiled_loss(loss: nn.Module) -> Kernel | None:
    """What :meth:`Loss.kernel` says of one of this module's own losses; None for any other module.

    A subclass may have a forward of its own, and hooks want to be called: neither is what the kernel computes.
    """
    if type(loss) not in MODULES.values() or loss._forward_hooks or loss._forward_pre_hooks:
        return None
    return loss.kernel()  # type: ignore[operator]
