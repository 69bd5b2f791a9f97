"""Checks of a loss against a definition: value, gradient and double backward, as a table.

For losses of one's own as much as for those of the package: ``check_loss(my_loss, my_definition)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zerosum_ext import losses, reference
from zerosum_ext._checks import describe, require_choice
from zerosum_ext.reference.losses import compute_dtype

__all__ = ["LossReport", "Row", "check_loss", "check_named_loss", "checked_losses"]

# Largest error allowed, relative to the largest entry of what is expected and at least to 1.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


class Row(NamedTuple):
    """One comparison: what was compared, at which magnitude of the scores, the error and what was allowed."""

    quantity: str
    magnitude: float
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # False for a NaN


class LossReport(NamedTuple):
    """All comparisons of a loss; prints as a table."""

    name: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        rows = [{**row._asdict(), "passed": row.passed} for row in self.rows]
        return {"loss": self.name, "passed": self.passed, "rows": rows}

    def __str__(self) -> str:
        lines = [f"{self.name:<18}{'scores up to':>14}{'error':>12}{'allowed':>12}"]
        for row in self.rows:
            verdict = "ok" if row.passed else "FAILED"
            lines.append(f"  {row.quantity:<16}{row.magnitude:>14g}{row.error:>12.2e}{row.tolerance:>12.2e}  {verdict}")
        return "\n".join(lines)


def check_loss(
    fn: Callable[..., Tensor],
    reference: Callable[..., Tensor] | None = None,
    *,
    shapes: Sequence[tuple[int, ...]] = ((64,), (64,)),
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    magnitudes: Sequence[float] = (1.0, 30.0, 1e4),
    tolerance: float | None = None,
    seed: int = 0,
    name: str | None = None,
) -> LossReport:
    """Compares a loss with its definition: value, gradient, and gradient of the gradient.

    Args:
        fn: the loss, a differentiable function of as many tensors as there are shapes. Best the sum over the samples,
            or each sample's value: a mean has small gradients, whose errors would pass beside 1.
        reference: its definition in plain PyTorch, evaluated in float64. None: fn itself in float64, whose gradients
            are then compared with those of its own values by finite differences at the smallest magnitude too.
        shapes: of the scores; default pos [64] and neg [64].
        dtype, device: of the scores that fn gets.
        magnitudes: the scores are normal numbers times each of these, cut at 10^4.
        tolerance: the largest error, relative to the largest expected entry or 1; default by dtype.
            Gradients are allowed the rounding of the scores in addition.
        seed: of the scores.
        name: for the table; default that of fn.

    Returns:
        A report; ``report.passed`` says whether every row did, ``print(report)`` shows them. The gradient is that under
        a random gradient of the output; the double backward that of its product with random directions.

    Raises:
        TypeError: fn or reference is not callable, or dtype not one of float64, float32, float16, bfloat16.
    """
    for what, function in (("fn", fn), ("reference", reference)):
        if not callable(function) and not (what == "reference" and function is None):
            raise TypeError(f"{what}: expected a function of the scores, got {describe(function)}")
    if dtype not in _TOLERANCE:
        raise TypeError(f"dtype: expected one of {', '.join(map(str, _TOLERANCE))}, got {dtype!r}")
    allowed = _TOLERANCE[dtype] if tolerance is None else tolerance
    rows = []
    for magnitude in magnitudes:
        generator = torch.Generator().manual_seed(seed)
        scores = [torch.randn(s, generator=generator, dtype=torch.float64) * magnitude for s in shapes]
        scores = [s.clamp(-1e4, 1e4).to(device, dtype) for s in scores]
        got = _derivatives(fn, scores, seed)
        want = _derivatives(fn if reference is None else reference, [s.double() for s in scores], seed)
        for quantity, x, y in zip(("value", "gradient", "double backward"), got, want, strict=True):
            # Scores are subtracted before they are exponentiated: their rounding is an absolute error of a gradient.
            rounding = 8 * magnitude * torch.finfo(compute_dtype(dtype)).eps if quantity != "value" else 0.0
            rows.append(Row(quantity, magnitude, _error(x, y), allowed + rounding))
    if reference is None:
        inputs = [s.double().requires_grad_() for s in _first(shapes, seed, device)]
        for quantity, check in (
            ("gradcheck", torch.autograd.gradcheck),
            ("gradgradcheck", torch.autograd.gradgradcheck),
        ):
            passed = check(fn, inputs, raise_exception=False)
            rows.append(Row(quantity, 1.0, 0.0 if passed else float("inf"), 0.0))
    return LossReport(name or str(getattr(fn, "__name__", type(fn).__name__)), tuple(rows))


def _first(shapes: Sequence[tuple[int, ...]], seed: int, device: str | torch.device) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for shape in shapes:
        yield torch.randn((min(shape[0], 4), *shape[1:]), generator=generator, dtype=torch.float64).to(device)


def _derivatives(function: Callable[..., Tensor], scores: Sequence[Tensor], seed: int) -> tuple[list[Tensor], ...]:
    """Value, gradient and double backward, under random numbers that are the same in every dtype."""
    generator = torch.Generator().manual_seed(seed + 1)

    def random(like: Tensor) -> Tensor:
        numbers = torch.randint(-4, 5, like.shape, generator=generator) / 4  # exact in every dtype
        return numbers.to(like.device, like.dtype)

    leaves = [s.detach().clone().requires_grad_() for s in scores]
    value = function(*leaves)
    upstream = random(value) if value.dim() else torch.full_like(value, 0.75)
    first = torch.autograd.grad(value, leaves, upstream, retain_graph=True, allow_unused=True)
    # Once more, and differentiable: a separate path through most hand-written backward passes.
    again = torch.autograd.grad(value, leaves, upstream, create_graph=True, allow_unused=True)
    product = sum((g * random(g)).sum() for g in again if g is not None)
    if isinstance(product, Tensor) and product.requires_grad:
        second: tuple[Tensor | None, ...] = torch.autograd.grad(product, leaves, allow_unused=True)
    else:  # the first derivative is a constant to autograd: as if the loss were linear
        second = (None,) * len(leaves)

    def dense(grads: Sequence[Tensor | None]) -> list[Tensor]:
        return [torch.zeros_like(s) if g is None else g for g, s in zip(grads, leaves, strict=True)]

    return [value.detach()], dense(first), dense(second)


def _error(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """Largest difference, relative to the largest expected entry or 1; infinite where the shapes differ."""
    worst = 0.0
    for x, y in zip(got, want, strict=True):
        if x.shape != y.shape:
            return float("inf")
        if y.numel():
            scale = max(1.0, float(y.abs().max()))
            error = float((x.double() - y.double()).abs().max()) / scale
            worst = error if error != error or error > worst else worst
            if worst != worst:
                return worst
    return worst


# ---- the losses of the package

_MANY, _QUAD = ((48,), (48, 5)), ((48, 2), (48, 2))


def _popularity(device: str | torch.device) -> tuple[Tensor, Tensor]:
    return (
        torch.arange(1.0, 49.0, dtype=torch.float64, device=device),
        torch.arange(1.0, 241.0, dtype=torch.float64, device=device).reshape(48, 5),
    )


def _definition(loss: str, a: float, b: float, c: float, *aux: Tensor) -> Callable[..., Tensor]:
    x_pos, x_neg = aux or (None, None)
    return lambda p, n: reference.pair_loss_value(p, n, x_pos, x_neg, None, loss, a, b, c, "sum")


def _cases(device: str | torch.device) -> dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Any]]:
    counts = _popularity(device)
    inverse = losses.ipw_weights(torch.cat([c.reshape(-1) for c in counts]))
    weights = (inverse[:48], inverse[48:].reshape(48, 5))
    factors = tuple((c / 240) ** 0.25 for c in counts)
    ipw = partial(losses.ipw_loss, pos_popularity=counts[0], neg_popularity=counts[1])
    pd = partial(losses.pd_loss, pos_popularity=counts[0] / 240, neg_popularity=counts[1] / 240, gamma=0.25)
    softmax, psl = partial(losses.sampled_softmax_loss, temperature=0.5), partial(losses.psl_loss, temperature=0.5)
    return {
        "bpr": (losses.bpr_loss, _definition("bpr", 1, 0, 0), _MANY),
        "zerosum": (losses.zerosum_loss, _definition("zerosum", 1, 1, 0), _MANY),
        "pos2neg2": (losses.pos2neg2_loss, _definition("pos2neg2", 1, 1, 1), _QUAD),
        "pos2": (losses.pos2_loss, _definition("pos2neg2", 1, 1, 0), _QUAD),
        "neg2": (losses.neg2_loss, _definition("pos2neg2", 1, 0, 1), _QUAD),
        "ipw": (ipw, _definition("ipw", 1, 0, 0, *weights), _MANY),
        "pd": (pd, _definition("pd", 1, 0, 0, *factors), _MANY),
        "macr": (
            partial(losses.macr_loss, alpha=0.3, beta=0.7),
            lambda *s: reference.macr_loss_value(s, None, 0.3, 0.7, "sum"),
            ((48,), (48, 5), (48,), (48,), (48, 5)),
        ),
        "sampled_softmax": (softmax, _definition("sampled_softmax", 2, 0, 0), _MANY),
        "bsl": (partial(losses.bsl_loss, t1=0.5, t2=0.25), _definition("bsl", 2, 4, 0.5), _MANY),
        "psl": (psl, _definition("psl_tanh", 2, 0, 0), _MANY),
        "hardest": (losses.hardest_loss, _definition("hardest", 1, 0, 0), _MANY),
    }


def checked_losses() -> list[str]:
    """The names that :func:`check_named_loss` knows."""
    return list(_cases("cpu"))


def check_named_loss(
    name: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> LossReport:
    """:func:`check_loss` of a loss of this package against its definition in :mod:`zerosum_ext.reference.losses`."""
    cases = _cases(device)
    require_choice("loss", name, list(cases))
    fn, definition, shapes = cases[name]
    # The sum: the mean's small gradients would hide beside the 1 that errors are relative to.
    return check_loss(partial(fn, reduction="sum"), definition, shapes=shapes, dtype=dtype, device=device, name=name)
