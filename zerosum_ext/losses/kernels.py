"""The compiled loss that each loss amounts to: its name and three parameters, from the options."""

from __future__ import annotations

from zerosum_ext._checks import require_choice, require_finite_number

# What each function amounts to among the compiled losses (csrc/common/losses.h): a name and three parameters.
Kernel = tuple[str, float, float, float]


def _weights(
    bpr_weight: float, reg_weight: float, w: float | None, a_share: float, b_share: float
) -> tuple[float, float]:
    """The factors (a, b) of the BPR and the regularising terms, from either convention of the authors."""
    if w is None:
        a = require_finite_number("bpr_weight", bpr_weight, minimum=0)
        return a, require_finite_number("reg_weight", reg_weight, minimum=0)
    if bpr_weight != 1.0 or reg_weight != 1.0:
        raise ValueError(
            f"w: expected w or bpr_weight and reg_weight, not both; got w={w!r}, bpr_weight={bpr_weight!r}, "
            f"reg_weight={reg_weight!r}"
        )
    w = require_finite_number("w", w, minimum=0, maximum=1)
    return w * a_share, (1 - w) * b_share


def require_positive(name: str, value: float) -> float:
    number = require_finite_number(name, value)
    if number <= 0:
        raise ValueError(f"{name}: expected a number > 0, got {value!r}")
    return number


def bpr_kernel() -> Kernel:
    return "bpr", 1.0, 0.0, 0.0


def zerosum_kernel(bpr_weight: float = 1.0, reg_weight: float = 1.0, w: float | None = None) -> Kernel:
    return "zerosum", *_weights(bpr_weight, reg_weight, w, 0.5, 0.5), 0.0


def pos2neg2_kernel(bpr_weight: float = 1.0, reg_weight: float = 1.0, w: float | None = None) -> Kernel:
    a, b = _weights(bpr_weight, reg_weight, w, 0.25, 0.25)
    return "pos2neg2", a, b, b


def pos2_kernel(bpr_weight: float = 1.0, reg_weight: float = 1.0, w: float | None = None) -> Kernel:
    return "pos2neg2", *_weights(bpr_weight, reg_weight, w, 0.25, 0.5), 0.0


def neg2_kernel(bpr_weight: float = 1.0, reg_weight: float = 1.0, w: float | None = None) -> Kernel:
    a, b = _weights(bpr_weight, reg_weight, w, 0.25, 0.5)
    return "pos2neg2", a, 0.0, b


def sampled_softmax_kernel(temperature: float = 1.0) -> Kernel:
    return "sampled_softmax", 1 / require_positive("temperature", temperature), 0.0, 0.0


def bsl_kernel(t1: float, t2: float) -> Kernel:
    t1, t2 = require_positive("t1", t1), require_positive("t2", t2)
    return "bsl", 1 / t1, 1 / t2, t2 / t1


def psl_kernel(temperature: float, activation: str = "tanh") -> Kernel:
    inverse = 1 / require_positive("temperature", temperature)
    return f"psl_{require_choice('activation', activation, ('tanh', 'relu'))}", inverse, 0.0, 0.0


def hardest_kernel() -> Kernel:
    return "hardest", 1.0, 0.0, 0.0
