"""The losses of the kernels' tests, from the records of the library."""

from __future__ import annotations

from typing import Any

from zerosum_ext.reference import SHAPES, Kernel
from zerosum_ext.testing import loss_cases

# Each compiled loss once, with parameters that make every term count. Of Pos2Neg2, whose functions have b = c or one of
# them 0, b and c differ here.
LOSSES: dict[str, Kernel] = {case.kernel.loss: case.kernel for case in loss_cases() if case.kernel.loss in SHAPES}
LOSSES["pos2neg2"] = Kernel("pos2neg2", 0.2, 0.1, 0.3)
PAIR = tuple(name for name in LOSSES if SHAPES[name] == "pair")
ROW = tuple(name for name in LOSSES if SHAPES[name] == "row")
#: Losses that take a constant of each item, and those that cannot do without.
CONSTANTS = {case.kernel.loss for case in loss_cases() if case.constants}
NEED_CONSTANTS = CONSTANTS - {case.kernel.loss for case in loss_cases() if not case.constants}
REDUCTIONS = {"none": 0, "sum": 1, "mean": 2}


def numbers(kernels: Any, loss: str) -> tuple[int, float, float, float]:
    """The loss's number, asked of the compiled kernels, and its parameters."""
    return kernels.loss_names().index(loss), *LOSSES[loss][1:]
