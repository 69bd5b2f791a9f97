"""torch.autograd.Functions over the loss ops.

Functions of the old style (ctx in forward) cost half of what newer styles do per call. Under torch.func transforms, in
forward mode and where a constant itself needs a gradient, the plain-PyTorch definition is differentiated instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from zerosum_ext import reference
from zerosum_ext._checks import describe, out_of_range
from zerosum_ext._ops import losses, mf
from zerosum_ext._ops.common import KERNELS, REDUCTIONS, has_op
from zerosum_ext._ops.losses import loss_number, pair_loss_kernel
from zerosum_ext.reference import SHAPES, Kernel, compute_dtype


def _keeps_derivatives(scores: Tensor, reduction: str) -> bool:
    """Return whether the forward pass leaves derivatives for the backward pass to scale.

    Elsewhere the backward pass evaluates the loss again: in float16, where the derivatives of a large batch would be
    rounded to 0 before a loss scale can save them, and where each sample's value has a gradient of its own.
    """
    return reduction != "none" and scores.dtype is not torch.float16


#: What apply of a Function is.
Apply = Callable[..., Tensor]


class MfOptions(NamedTuple):
    """The loss, L2 and reduction of a loss of matrix factorization."""

    kernel: Kernel
    l2: float
    reduction: str


class _PairLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pos: Tensor,
        neg: Tensor,
        aux_pos: Tensor | None,
        aux_neg: Tensor | None,
        weight: Tensor | None,
        kernel: Kernel,
        reduction: str,
    ) -> Tensor:
        ctx.kernel, ctx.reduction = kernel, reduction
        keep = _keeps_derivatives(pos, reduction)
        value, *grads = losses.pair_loss(pos, neg, aux_pos, aux_neg, weight, kernel, reduction, keep)
        ctx.save_for_backward(pos, neg, aux_pos, aux_neg, weight, *(grads if keep else ()))
        return value

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        pos, neg, aux_pos, aux_neg, weight, *grads = ctx.saved_tensors
        if torch.is_grad_enabled():
            grad_pos, grad_neg = _differentiable_gradients(
                lambda p, n: reference.pair_loss_value(p, n, aux_pos, aux_neg, weight, ctx.kernel, ctx.reduction),
                (pos, neg),
                grad_output,
            )
        elif not grads:
            # sum_k grad_output_k loss_k is the same loss with other weights.
            samples = neg.numel() if SHAPES[ctx.kernel.loss] == "pair" else pos.shape[0]
            upstream = _per_sample(grad_output.to(compute_dtype(pos.dtype)), ctx.reduction, samples, pos)
            scaled = reference.weigh(upstream, weight)
            _, grad_pos, grad_neg = losses.pair_loss(pos, neg, aux_pos, aux_neg, scaled, ctx.kernel, "sum", True)
        else:
            grad_pos, grad_neg = _scale(grads, grad_output)
        return grad_pos, grad_neg, None, None, None, None, None


class _PlainPairLoss(torch.autograd.Function):
    """_PairLoss for what is commonest, a mean or sum over scores on a CPU without weights and constants.

    At a few hundred samples Python's part is all that counts: fewer arguments and saved tensors, and the op called
    without its wrapper, save a third of it.
    """

    @staticmethod
    def forward(ctx: Any, pos: Tensor, neg: Tensor, kernel: Kernel, reduction: str) -> Tensor:
        loss, a, b, c = kernel
        value: Tensor
        value, grad_pos, grad_neg = pair_loss_kernel(
            pos, neg, None, None, None, loss_number(loss), a, b, c, REDUCTIONS[reduction], True
        )
        ctx.kernel, ctx.reduction = kernel, reduction
        ctx.save_for_backward(pos, neg, grad_pos, grad_neg)
        return value

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        pos, neg, *grads = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_plain_gradients(pos, neg, ctx.kernel, ctx.reduction, grad_output), None, None
        return *_scale(grads, grad_output), None, None


def _plain_gradients(
    pos: Tensor, neg: Tensor, kernel: Kernel, reduction: str, grad_output: Tensor
) -> tuple[Tensor | None, ...]:
    return _differentiable_gradients(
        lambda p, n: reference.pair_loss_value(p, n, None, None, None, kernel, reduction), (pos, neg), grad_output
    )


# What Function.apply comes down to outside of torch.func transforms, without the time it takes to find that out again.
_apply_plain: Apply = super(torch.autograd.Function, _PlainPairLoss).apply


class _MacrLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor | None, alpha: float, beta: float, reduction: str, *scores: Tensor) -> Tensor:
        ctx.args = (alpha, beta, reduction)
        keep = _keeps_derivatives(scores[0], reduction)
        value, *grads = losses.macr_loss(scores, weight, alpha, beta, reduction, keep)
        ctx.save_for_backward(weight, *scores, *(grads if keep else ()))
        return value

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        scores, grads = tuple(saved[:5]), saved[5:]
        alpha, beta, reduction = ctx.args
        if torch.is_grad_enabled():
            out = _differentiable_gradients(
                lambda *s: reference.macr_loss_value(s, weight, alpha, beta, reduction), scores, grad_output
            )
        elif not grads:
            upstream = grad_output.to(compute_dtype(scores[0].dtype))
            scaled = reference.weigh(_per_sample(upstream, reduction, scores[1].numel(), scores[0]), weight)
            out = losses.macr_loss(scores, scaled, alpha, beta, "sum", True)[1:]
        else:
            out = _scale(grads, grad_output)
        return None, None, None, None, *out


class _MfLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        user_embedding: Tensor,
        item_embedding: Tensor,
        item_bias: Tensor | None,
        users: Tensor,
        positives: Tensor,
        negatives: Tensor,
        constants: Tensor | None,
        weight: Tensor | None,
        options: MfOptions,
        sparse: bool,
        deterministic: bool,
    ) -> Tensor:
        ctx.options, ctx.sparse, ctx.atomics = options, sparse, not deterministic
        grad = options.reduction != "none"
        value, coefficient, failed = mf.mf_loss(
            user_embedding, item_embedding, item_bias, users, positives, negatives, constants, weight, *options, grad
        )
        _check_ids(failed, user_embedding, item_embedding, (users, positives, negatives))
        ctx.save_for_backward(
            user_embedding, item_embedding, item_bias, users, positives, negatives, constants, weight, coefficient
        )
        return value

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        user, item, bias, users, positives, negatives, constants, weight, coefficient = ctx.saved_tensors
        kernel, l2, reduction = ctx.options
        needed: tuple[bool, bool, bool] = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            # Dense, also where sparse gradients are asked for: torch cannot differentiate those again.
            given = (user, item, bias)
            chosen = tuple(t for t, wanted in zip(given, needed, strict=True) if wanted)

            def value(*tensors: Tensor) -> Tensor:
                rest = iter(tensors)
                p, q, r = (next(rest) if wanted else t for t, wanted in zip(given, needed, strict=True))
                return reference.mf_loss_value(p, q, r, users, positives, negatives, constants, weight, *ctx.options)

            grads = iter(_differentiable_gradients(value, chosen, grad_output))
            return *(next(grads) if wanted else None for wanted in needed), *(None,) * 8
        scale = grad_output.to(compute_dtype(user.dtype))
        if reduction == "none":
            # sum_k grad_output_k loss_k is the same loss with other weights.
            scaled = reference.weigh(scale, weight).contiguous()
            ids = (users, positives, negatives)
            coefficient = mf.mf_loss(user, item, bias, *ids, constants, scaled, kernel, 0.0, "sum", True)[1]
            scale = torch.ones((), dtype=scale.dtype, device=scale.device)
        row_l2 = l2 / max(users.shape[0], 1) if reduction == "mean" else l2
        user_rows, user_values, item_rows, item_values, bias_values = mf.mf_gradient(
            user, item, users, positives, negatives, coefficient, scale, row_l2, *needed, ctx.sparse, False, ctx.atomics
        )
        out = []
        for wanted, table, rows, values in (
            (needed[0], user, user_rows, user_values),
            (needed[1], item, item_rows, item_values),
            (needed[2], bias, item_rows, bias_values),
        ):
            if wanted and ctx.sparse:
                values = torch.sparse_coo_tensor(
                    rows.unsqueeze(0), values, table.shape, is_coalesced=True, check_invariants=False
                )
            out.append(values if wanted else None)
        return *out, *(None,) * 8


def _check_ids(failed: Tensor, user: Tensor, item: Tensor, ids: tuple[Tensor, Tensor, Tensor]) -> None:
    """Raise an error for the id that the op found out of range."""
    # Where looking would synchronise, or is not possible while tracing, the value is NaN, which says that much.
    if failed.device.type != "cpu" or torch.compiler.is_compiling() or type(failed) is not Tensor:
        return
    at = int(failed)
    if at < 0:
        return
    for name, numbers, table in zip(("users", "positives", "negatives"), ids, (user, item, item), strict=True):
        if at < numbers.numel():
            raise out_of_range(name, numbers, at, table.shape[0])
        at -= numbers.numel()


class _CustomLoss(torch.autograd.Function):
    """A user's loss from its value and derivatives, which are Python functions of tensors of one shape."""

    @staticmethod
    def forward(
        ctx: Any, pos: Tensor, neg: Tensor, value: Callable[..., Tensor], derivative: Callable[..., Any]
    ) -> Tensor:
        ctx.save_for_backward(pos, neg)
        ctx.derivative = derivative
        return value(pos, neg)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # Differentiable as long as the user's derivative is made of differentiable operations.
        pos, neg = ctx.saved_tensors
        returned = ctx.derivative(pos, neg)
        derivatives = returned if isinstance(returned, (tuple, list)) else (returned,)
        if [_shape_of(d, pos) for d in derivatives] != [pos.shape] * 2:
            raise ValueError(
                f"derivative: expected a function that returns two tensors of shape {tuple(pos.shape)}, got "
                + ", ".join(map(describe, derivatives))
            )
        d_pos, d_neg = derivatives
        return grad_output * d_pos, grad_output * d_neg, None, None


def _shape_of(derivative: Any, scores: Tensor) -> torch.Size | None:
    """Return the shape of a derivative, that of the scores if it is a number, or None if it is neither."""
    if isinstance(derivative, (int, float)) or (isinstance(derivative, Tensor) and derivative.dim() == 0):
        return scores.shape
    return derivative.shape if isinstance(derivative, Tensor) else None


# Whether backward was called with retain_graph=True; AOTAutograd asks this, for the same reason.
_graph_is_kept: Callable[[], bool] = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def _per_sample(grad_output: Tensor, reduction: str, samples: int, pos: Tensor) -> Tensor:
    """Return the gradient of each sample's value from that of the reduced value, [B] without memory of its own."""
    if reduction == "none":
        return grad_output
    return (grad_output / max(samples, 1) if reduction == "mean" else grad_output).expand(pos.shape[0])


def _scale(grads: Sequence[Tensor], grad_output: Tensor) -> tuple[Tensor, ...]:
    """Return the derivatives times the gradient of the loss, which loss.backward() passes as exactly 1.

    The derivatives are handed out themselves, scaled where they lie, unless the graph is kept and with it they are used
    again: what autograd hands out may be changed in place.
    """
    # Of tensor subclasses no value is looked at; is_grads_batched passes many gradients at once.
    plain = grad_output.is_cpu and type(grad_output) is not Tensor
    if plain or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return tuple((g * grad_output).to(g.dtype) for g in grads)
    in_place = not _graph_is_kept()
    # On a CPU looking at the value is free. On a GPU it would be waited for: the kernel looks.
    if grad_output.is_cpu:
        if in_place and grad_output.item() == 1.0:
            return tuple(grads)
        return tuple((g * grad_output).to(g.dtype) for g in grads)
    return losses.scale_gradients(grads, grad_output, in_place)


def _differentiable_gradients(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad_output: Tensor
) -> tuple[Tensor | None, ...]:
    """Return gradients that can be differentiated again, for create_graph=True; None for inputs that need none.

    The fused derivatives are constants to autograd, so a second derivative through them would silently be 0: the
    definition is differentiated instead. The views cut the inputs off from each other: where one was computed from
    another, autograd.grad would otherwise count the path between them twice.
    """
    views = tuple(t.view_as(t) for t in inputs)
    wanted = [view for view in views if view.requires_grad]
    grads = iter(torch.autograd.grad(function(*views), wanted, grad_output, create_graph=True))
    return tuple(next(grads) if view.requires_grad else None for view in views)


def transforms_active() -> bool:
    """Return whether torch.func or forward mode is at work; Functions of the old style support neither."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _needs_definition(op: str, device: torch.device, *constants: Tensor | None) -> bool:
    """Return whether the plain-PyTorch definition has to be evaluated instead of a kernel."""
    if not has_op(op, device) or transforms_active():
        return True
    for t in constants:  # noqa: SIM110 (a generator in any() costs more than the rest of this)
        if t is not None and t.requires_grad and torch.is_grad_enabled():
            return True
    return False


def pair_loss(
    pos: Tensor,
    neg: Tensor,
    aux_pos: Tensor | None,
    aux_neg: Tensor | None,
    weight: Tensor | None,
    kernel: Kernel,
    reduction: str,
) -> Tensor:
    """Evaluate the op pair_loss, differentiable in every tensor."""
    if (
        weight is None
        and aux_pos is None
        and aux_neg is None
        and _keeps_derivatives(pos, reduction)
        and (pos.requires_grad or neg.requires_grad)
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not transforms_active()
        and ("pair_loss" in KERNELS["cpu"] if pos.is_cpu else has_op("pair_loss", pos.device))
    ):
        return _apply_plain(pos, neg, kernel, reduction)
    if _needs_definition("pair_loss", pos.device, aux_pos, aux_neg, weight):
        return reference.pair_loss_value(pos, neg, aux_pos, aux_neg, weight, kernel, reduction)
    if torch.is_grad_enabled() and (pos.requires_grad or neg.requires_grad):
        apply: Apply = _PairLoss.apply
        return apply(pos, neg, aux_pos, aux_neg, weight, kernel, reduction)
    return losses.pair_loss(pos, neg, aux_pos, aux_neg, weight, kernel, reduction, False)[0]


def macr_loss(
    scores: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    weight: Tensor | None,
    alpha: float,
    beta: float,
    reduction: str,
) -> Tensor:
    """Evaluate the op macr_loss, differentiable in every tensor."""
    if _needs_definition("macr_loss", scores[0].device, weight):
        return reference.macr_loss_value(scores, weight, alpha, beta, reduction)
    if torch.is_grad_enabled() and any(t.requires_grad for t in scores):
        apply: Apply = _MacrLoss.apply
        return apply(weight, alpha, beta, reduction, *scores)
    return losses.macr_loss(scores, weight, alpha, beta, reduction, False)[0]


def mf_loss(
    user_embedding: Tensor,
    item_embedding: Tensor,
    item_bias: Tensor | None,
    ids: tuple[Tensor, Tensor, Tensor],
    constants: Tensor | None,
    weight: Tensor | None,
    options: MfOptions,
    sparse: bool,
    deterministic: bool = True,
) -> Tensor:
    """Evaluate the op mf_loss, differentiable in tables and bias, and by its definition in the other tensors."""
    users, positives, negatives = ids
    given = (user_embedding, item_embedding, item_bias, users, positives, negatives, constants, weight)
    if _needs_definition("mf_loss", user_embedding.device, constants, weight):
        return reference.mf_loss_value(*given, *options, sparse)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given[:3]):
        apply: Apply = _MfLoss.apply
        return apply(*given, options, sparse, deterministic)
    value, _, failed = mf.mf_loss(*given, *options, False)
    _check_ids(failed, user_embedding, item_embedding, ids)
    return value


def custom_loss(
    pos: Tensor, neg: Tensor, value: Callable[..., Tensor], derivative: Callable[..., tuple[Tensor, Tensor]]
) -> Tensor:
    """Evaluate a user's loss of two tensors of one shape, without reduction."""
    if transforms_active():
        return value(pos, neg)
    apply: Apply = _CustomLoss.apply
    return apply(pos, neg, value, derivative)
