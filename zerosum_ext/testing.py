"""Check a loss against a definition: value, gradient and double backward, as a table.

It works for losses of one's own and for those of the package: ``check_loss(my_loss, my_definition)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zerosum_ext import losses, reference
from zerosum_ext._checks import describe, require_choice
from zerosum_ext.losses.records import Scores
from zerosum_ext.reference import Kernel, compute_dtype

__all__ = ["LossCase", "LossReport", "Row", "check_loss", "check_named_loss", "checked_losses", "loss_cases"]

# Largest error allowed, relative to the largest entry of what is expected and at least to 1.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


class Row(NamedTuple):
    """One comparison: the quantity, the magnitude of the scores, the error, and the largest error allowed.

    ``form`` names the options that a loss of the package was checked with, if it is checked with several.
    """

    quantity: str
    magnitude: float
    error: float
    tolerance: float
    form: str = ""

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
        """Return the report as JSON can hold it."""
        rows = [{**row._asdict(), "passed": row.passed} for row in self.rows]
        return {"loss": self.name, "passed": self.passed, "rows": rows}

    def __str__(self) -> str:
        lines = [f"{self.name:<18}{'scores up to':>14}{'error':>12}{'allowed':>12}"]
        form = ""
        for row in self.rows:
            if row.form != form:
                form = row.form
                lines.append(f"  {form}:")
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
    """Compare a loss with its definition: value, gradient, and gradient of the gradient.

    Args:
        fn: the loss, a differentiable function of as many tensors as there are shapes. It should return the sum over
            the samples, or each sample's value: a mean has small gradients, whose errors would pass beside 1.
        reference: its definition in plain PyTorch, evaluated in float64. None: fn itself in float64; its gradients are
            then also compared with finite differences of its values, at magnitude 1.
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
    """Return value, gradient and double backward, under random numbers that are the same in every dtype."""
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
    """Return the largest difference, relative to the largest expected entry or 1; infinite where the shapes differ."""
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


class LossCase(NamedTuple):
    """A loss of the package with options, constants and shapes that make every term of it count."""

    name: str
    loss: str
    options: Mapping[str, Any]
    function: Callable[..., Tensor]
    definition: Callable[..., Tensor]
    kernel: Kernel
    scores: Scores
    constants: bool
    shapes: tuple[tuple[int, ...], ...]


_SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "pair": ((48,), (48, 5)),
    "row": ((48,), (48, 5)),
    "quad": ((48, 2), (48, 2)),
    "branches": ((48,), (48, 5), (48,), (48,), (48, 5)),
}


def loss_cases(device: str | torch.device = "cpu") -> list[LossCase]:
    """Return all losses of the package as their records ask to be checked.

    The function of a case takes the scores, ``sample_weight`` and ``reduction``; the definition takes the scores, and
    returns the sum over the samples.
    """
    cases = []
    for name, record in losses.RECORDS.items():
        function: Callable[..., Tensor] = getattr(losses, f"{name}_loss")
        for options in record.checks:
            label = " ".join([name, *(f"{option}={value}" for option, value in options.items())])
            plain = name if options is record.checks[0] else label
            kernel, shapes = record.compiled(options), _SHAPES[record.scores]
            variants: list[tuple[str, tuple[Tensor, Tensor] | None]] = [(plain, None)]
            if record.constants is not None:
                given = _example_constants(record.constants.buffer, device)
                variants = [(plain, given)] if record.constants.required else [*variants, (f"{plain} constants", given)]
            for variant, constants in variants:
                call, aux = partial(function, **options), None
                if constants is not None and record.constants is not None:
                    names = (record.constants.pos, record.constants.neg)
                    call = partial(call, **dict(zip(names, constants, strict=True)))
                    own = {k: v for k, v in options.items() if k not in signature(record.kernel).parameters}
                    aux = record.constants.of_scores(*constants, **own)
                definition = _definition(record.scores, kernel, *(aux or (None, None)))
                cases.append(
                    LossCase(variant, name, options, call, definition, kernel, record.scores, aux is not None, shapes)
                )
    return cases


def _example_constants(kind: str, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Return constants of items [48] and [48, 5]: shares in (0, 1], or their logarithms."""
    shares = (
        torch.arange(1.0, 49.0, dtype=torch.float64, device=device) / 240,
        torch.arange(1.0, 241.0, dtype=torch.float64, device=device).reshape(48, 5) / 240,
    )
    return (shares[0].log(), shares[1].log()) if kind == "log_q" else shares


def _definition(scores: Scores, kernel: Kernel, x_pos: Tensor | None, x_neg: Tensor | None) -> Callable[..., Tensor]:
    if scores == "branches":
        return lambda *s: reference.macr_loss_value(s, None, kernel.a, kernel.b, "sum")
    return lambda p, n: reference.pair_loss_value(p, n, x_pos, x_neg, None, kernel, "sum")


def checked_losses() -> list[str]:
    """Return the names that :func:`check_named_loss` knows."""
    return list(losses.RECORDS)


def check_named_loss(
    name: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> LossReport:
    """Check a loss of this package, in all of its forms, against its definition in :mod:`zerosum_ext.reference`."""
    require_choice("loss", name, checked_losses())
    rows: list[Row] = []
    cases = [case for case in loss_cases(device) if case.loss == name]
    for case in cases:
        # The sum: the mean's small gradients would hide beside the 1 that errors are relative to.
        function = partial(case.function, reduction="sum")
        found = check_loss(function, case.definition, shapes=case.shapes, dtype=dtype, device=device).rows
        rows += [row._replace(form=_form(case)) for row in found] if len(cases) > 1 else found
    return LossReport(name, tuple(rows))


def _form(case: LossCase) -> str:
    """Return what sets a case apart from the others of its loss: its options, and constants of items if it has some."""
    options = [f"{option}={value}" for option, value in case.options.items()]
    constants = "with constants of items" if case.constants else ""
    return " ".join([*options, constants]).strip() or "default options"
