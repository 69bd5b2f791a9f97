"""One Python callable per op: the compiled kernel where there is one for the device, else the reference.

The fake kernels (shapes and dtypes without data, for torch.compile and torch.export) are registered here as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zerosum_ext import _extension, reference

REDUCTIONS = {"none": 0, "sum": 1, "mean": 2}
# Numbers of the compiled losses, as csrc/common/losses.h counts them.
LOSS_IDS: dict[str, int] = {}
if _extension.CPU.loaded:
    LOSS_IDS = {name: i for i, name in enumerate(torch.ops.zerosum_ext.loss_names().split(","))}


def has_kernel(device: torch.device) -> bool:
    """Whether ops on tensors of this device run compiled kernels."""
    if device.type == "cpu":
        return _extension.CPU.loaded
    if device.type == "cuda":
        return _extension.CUDA.loaded
    return False


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of the arithmetic: float64 for float64, float32 for every other."""
    return torch.float64 if dtype == torch.float64 else torch.float32


if _extension.CPU.loaded:
    # A cached overload skips the dispatcher's look-up of overloads: about 1 us a call.
    _pair_loss = torch.ops.zerosum_ext.pair_loss.default

    @torch.library.register_fake("zerosum_ext::pair_loss")
    def _(
        pos: Tensor,
        neg: Tensor,
        weight: Tensor | None,
        loss: int,
        a: float,
        b: float,
        c: float,
        reduction: int,
        grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        torch._check(pos.device == neg.device, lambda: f"pos is on {pos.device}, neg on {neg.device}")
        torch._check(pos.dtype == neg.dtype, lambda: f"pos is {pos.dtype}, neg {neg.dtype}")
        quad = loss >= LOSS_IDS["pos2neg2"]
        if reduction != 0:
            value = pos.new_empty((), dtype=compute_dtype(pos.dtype))
        else:
            value = pos.new_empty(pos.shape[:1] if quad else neg.shape)
        if not grad:
            return value, pos.new_empty((0,)), pos.new_empty((0,))
        return value, pos.new_empty(pos.shape), pos.new_empty(neg.shape)


def pair_loss(
    pos: Tensor,
    neg: Tensor,
    weight: Tensor | None,
    loss: str,
    a: float,
    b: float,
    c: float,
    reduction: str,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value of a loss and, with ``grad``, its derivatives in ``pos`` and ``neg`` (else two empty tensors).

    pos [B] and neg [B] or [B, K], or both [B, 2] for the losses of two positives and two negatives; weight [B] or
    [B, K] in the dtype of the arithmetic. Not differentiable itself.
    """
    if has_kernel(pos.device):
        return _pair_loss(pos, neg, weight, LOSS_IDS[loss], a, b, c, REDUCTIONS[reduction], grad)
    return reference.pair_loss(pos, neg, weight, loss, a, b, c, reduction, grad)
