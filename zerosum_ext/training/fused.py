"""Matrix factorization in one pass: gather, dot products, a loss of the library, and gradients of the rows."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from zerosum_ext import _ops
from zerosum_ext._checks import (
    describe,
    out_of_range,
    require_choice,
    require_finite_number,
    require_floating,
    require_index_tensor,
    require_same_device,
)
from zerosum_ext._ops import autograd as _autograd
from zerosum_ext.data.sampling import TripletLoader
from zerosum_ext.losses import compiled_loss, get_loss
from zerosum_ext.models.mf import MatrixFactorization
from zerosum_ext.reference.losses import ROW_LOSSES, compute_dtype, mf_items, mf_scores, reduce, split_scores

__all__ = ["mf_loss"]


def mf_loss(
    user_embedding: Tensor,
    item_embedding: Tensor,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    loss: str | nn.Module = "zerosum",
    item_bias: Tensor | None = None,
    l2: float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: str | None = None,
    sparse: bool = False,
    deterministic: bool = True,
) -> Tensor:
    """A loss of matrix factorization scores ``<P_u, Q_i> (+ b_i)``, straight from the tables.

    Equal to gathering the rows, multiplying them and calling the loss ([BPR09] section 4.3.1), but the gathered blocks
    [B, d] never exist: forward keeps one number for each score, backward sums the rows' gradients in the order of the
    samples (on a GPU: of the batch sorted by row). Values and gradients have the same bits for any number of threads,
    and each time.

    Args:
        user_embedding: P, [num_users, d]. float64, float32, float16 or bfloat16; the arithmetic is in float32 or
            better.
        item_embedding: Q, [num_items, d], of the same dtype and device.
        users: int64 or int32 [B].
        positives, negatives: int64 or int32; [B] and [B] or [B, K], or both [B, 2] for a loss of two positives and two
            negatives (Pos2Neg2).
        loss: a name of :func:`zerosum_ext.losses.get_loss`, or a module called as ``loss(pos, neg)`` (with
            ``sample_weight`` where one is given). Modules that are not of this package, and :class:`CustomLoss`, run
            on plain PyTorch.
        item_bias: b, [num_items], of the tables' dtype.
        l2: adds l2 / 2 times the summed squared norms of each sample's rows (biases left out), averaged over B for
            "mean", summed for "sum".
        sample_weight: factor of each sample, [B], or [B, K] for losses of pairs; a constant.
        reduction: "none", "sum" or "mean" as in the losses; None is the loss module's own, or "mean" for a name.
        sparse: gradients as coalesced sparse tensors with ascending rows, for SparseAdam, Adagrad and SGD: what to
            choose where a batch touches few of the rows. Under ``create_graph=True`` gradients are dense.
        deterministic: False lets a GPU sum dense gradients of float32 and float64 tables by atomic additions, without
            sorting the batch: their last bits then differ from call to call. It changes nothing else, and nothing on
            the CPU.

    Returns:
        A scalar of float32 (float64 for float64), or for "none" the values in the tables' dtype: [B], or [B, K] for
        losses of pairs. Differentiable in the tables and the bias, to any order.

    Raises:
        TypeError: tables that are not floating-point tensors, ids that are not integers.
        ValueError: shapes, dtypes or devices that do not fit, ids out of range (on the CPU; the message names the
            argument and the id. On a GPU, which is not waited for, the value and what the ids touch become NaN), l2
            with reduction "none".
    """
    require_floating("user_embedding", user_embedding)
    require_floating("item_embedding", item_embedding)
    tables = {"user_embedding": user_embedding, "item_embedding": item_embedding}
    for name, table in tables.items():
        if table.dim() != 2:
            raise ValueError(f"{name}: expected shape [rows, d], got {describe(table)}")
    if item_embedding.shape[1] != user_embedding.shape[1]:
        raise ValueError(
            f"item_embedding: expected {user_embedding.shape[1]} columns as user_embedding has, got "
            f"{describe(item_embedding)}"
        )
    if item_bias is not None:
        require_floating("item_bias", item_bias)
        if item_bias.shape != item_embedding.shape[:1]:
            raise ValueError(f"item_bias: expected shape ({item_embedding.shape[0]},), got {describe(item_bias)}")
        tables["item_bias"] = item_bias
    for name, table in tables.items():
        require_same_device(name, table, "user_embedding", user_embedding)
        if table.dtype != user_embedding.dtype:
            raise ValueError(f"{name}: expected {user_embedding.dtype} as user_embedding, got {describe(table)}")
    l2 = require_finite_number("l2", l2, minimum=0)

    module = get_loss(loss) if isinstance(loss, str) else loss
    if not isinstance(module, nn.Module):
        raise TypeError(f"loss: expected a name or an nn.Module, got {describe(loss)}")
    own = getattr(module, "reduction", "mean")
    if reduction is None:
        reduction = own
    elif isinstance(loss, str):
        require_choice("reduction", reduction, tuple(_ops.REDUCTIONS))
    elif reduction != own:
        raise ValueError(f"reduction: expected {own!r}, that of the loss module given, or None, got {reduction!r}")
    if l2 and reduction == "none":
        raise ValueError(f"l2: expected 0 with reduction 'none', got {l2}")

    kernel = compiled_loss(module)
    name = kernel[0] if kernel else ""
    quad = getattr(module, "num_positives", 1) == 2
    users, positives, negatives = _ids(users, positives, negatives, quad, name, user_embedding.device)
    if kernel is None or not _ops.has_op("mf_loss", user_embedding.device):
        _check_range(users, positives, negatives, user_embedding, item_embedding)
    if sample_weight is not None:
        require_floating("sample_weight", sample_weight)
        require_same_device("sample_weight", sample_weight, "user_embedding", user_embedding)
        shapes = {users.shape} if quad or name in ROW_LOSSES else {users.shape, negatives.shape}
        if sample_weight.shape not in shapes:
            either = " or ".join(str(tuple(s)) for s in sorted(shapes, key=len))
            raise ValueError(f"sample_weight: expected shape {either}, got {describe(sample_weight)}")
        sample_weight = sample_weight.to(compute_dtype(user_embedding.dtype)).contiguous()
    if kernel is None:
        return _composed(
            user_embedding, item_embedding, item_bias, users, positives, negatives, module, l2, sample_weight, sparse
        )
    constants = module.item_constants()  # type: ignore[operator]
    if constants is not None:
        if constants.shape != item_embedding.shape[:1]:
            raise ValueError(
                f"loss: expected constants of {item_embedding.shape[0]} items, got {type(module).__name__} with "
                f"{tuple(constants.shape)}"
            )
        require_same_device("loss", constants, "user_embedding", user_embedding)
        constants = constants.to(compute_dtype(user_embedding.dtype)).contiguous()
    bias = None if item_bias is None else item_bias.contiguous()
    tensors = (user_embedding.contiguous(), item_embedding.contiguous(), bias)
    return _autograd.mf_loss(
        *tensors,
        (users, positives, negatives),
        constants,
        sample_weight,
        (*kernel, l2, reduction),
        sparse,
        deterministic,
    )


def _ids(
    users: Tensor, positives: Tensor, negatives: Tensor, quad: bool, name: str, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Checks the shapes of the samples, and brings the ids to contiguous int64."""
    for argument, value in (("users", users), ("positives", positives), ("negatives", negatives)):
        require_index_tensor(argument, value)
        if value.device != device:
            raise ValueError(f"{argument}: expected a tensor on {device}, where the tables are, got {describe(value)}")
    if users.dim() != 1:
        raise ValueError(f"users: expected shape [B], got {describe(users)}")
    rows = users.shape[0]
    if quad:
        for argument, value in (("positives", positives), ("negatives", negatives)):
            if value.shape != (rows, 2):
                raise ValueError(f"{argument}: expected two items of each user, ({rows}, 2), got {describe(value)}")
    else:
        if positives.shape != users.shape:
            raise ValueError(f"positives: expected shape {tuple(users.shape)} as users, got {describe(positives)}")
        if negatives.dim() not in (1, 2) or negatives.shape[0] != rows:
            raise ValueError(f"negatives: expected shape ({rows},) or ({rows}, K), got {describe(negatives)}")
        if name in ROW_LOSSES:
            negatives = negatives.unsqueeze(1) if negatives.dim() == 1 else negatives
            if negatives.shape[1] < 1:
                raise ValueError(f"negatives: expected [B, K] with K >= 1, got {describe(negatives)}")
    return users.long().contiguous(), positives.long().contiguous(), negatives.long().contiguous()


def _check_range(users: Tensor, positives: Tensor, negatives: Tensor, user: Tensor, item: Tensor) -> None:
    # As in the kernels: ids on a GPU are not looked at, that would wait for it.
    if users.device.type != "cpu" or torch.compiler.is_compiling():
        return
    for name, ids, table in (("users", users, user), ("positives", positives, item), ("negatives", negatives, item)):
        wrong = ((ids < 0) | (ids >= table.shape[0])).reshape(-1).nonzero()
        if wrong.numel():
            raise out_of_range(name, ids, int(wrong[0]), table.shape[0])


def _composed(
    user_embedding: Tensor,
    item_embedding: Tensor,
    item_bias: Tensor | None,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    loss: nn.Module,
    l2: float,
    weight: Tensor | None,
    sparse: bool,
) -> Tensor:
    """The same for a loss that is a module of somebody's own: its scores by PyTorch, then the module."""
    items = mf_items(positives, negatives)
    scores, norms = mf_scores(user_embedding, item_embedding, item_bias, users, items, sparse)
    options: dict[str, Tensor] = {} if weight is None else {"sample_weight": weight}
    if getattr(loss, "needs_items", False):
        options |= {"pos_items": positives, "neg_items": negatives}
    value = loss(*split_scores(scores, positives, negatives), **options)
    return value + l2 * reduce(norms, getattr(loss, "reduction", "mean")) if l2 else value


# ---- the training step of fit

# The optimizers as csrc/common/optimizers.h numbers them, and the names of their state in torch.optim.
_OPTIMIZERS: dict[type[torch.optim.Optimizer], tuple[int, tuple[str | None, str | None]]] = {
    torch.optim.SGD: (0, (None, None)),
    torch.optim.Adagrad: (1, (None, "sum")),
    torch.optim.Adam: (2, ("exp_avg", "exp_avg_sq")),
    torch.optim.SparseAdam: (3, ("exp_avg", "exp_avg_sq")),
}
# Options that must be off.
_OFF = (
    "momentum",
    "nesterov",
    "weight_decay",
    "amsgrad",
    "maximize",
    "differentiable",
    "fused",
    "decoupled_weight_decay",
)


def fused_obstacle(
    model: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, asynchronous: bool = False
) -> str | None:
    """Why :class:`FusedStep` cannot stand for autograd and ``optimizer.step()``; None where it can."""
    if type(model) is not MatrixFactorization or model._forward_hooks or model._forward_pre_hooks:
        return f"model: expected a MatrixFactorization without hooks, got {type(model).__name__}"
    parameters = list(model.parameters())
    device = parameters[0].device
    for p in parameters:
        if p.device != device or p.dtype != torch.float32 or not p.is_contiguous() or p._backward_hooks:
            return f"model: expected contiguous float32 parameters on one device without hooks, got {describe(p)}"
    if asynchronous and device.type != "cpu":
        return f"model: expected parameters on the CPU, got {describe(parameters[0])}"
    if not all(_ops.has_op(op, device) for op in ("mf_loss", "mf_gradient", "mf_update")):
        obstacle = _ops.gpu_obstacle(device.index) if device.type == "cuda" else ""
        return f"model: {obstacle or f'the compiled part of zerosum_ext for {device.type} is not loaded'}"
    if compiled_loss(loss) is None:
        return f"loss: expected a compiled loss of zerosum_ext, got {type(loss).__name__}"
    constants = loss.item_constants()  # type: ignore[operator]
    if constants is not None and constants.shape != (model.num_items,):
        return f"loss: expected constants of {model.num_items} items, got {tuple(constants.shape)}"
    allowed = [torch.optim.SGD] if asynchronous else list(_OPTIMIZERS)
    if type(optimizer) not in allowed or optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        names = ", ".join(t.__name__ for t in allowed)
        return f"optimizer: expected one of torch.optim's {names} without hooks, got {type(optimizer).__name__}"
    for group in optimizer.param_groups:
        for option in _OFF:
            if group.get(option):
                return f"optimizer: expected no {option}, got {group[option]!r}"
    return None


class FusedStep:
    """Loss, gradients and update of a MatrixFactorization, batch after batch, without an autograd graph.

    Exact mini-batch semantics, and the same bits for any number of threads; dense Adam's last bits depend on how many
    steps a call does where tables are large beside a batch (csrc/cpu/deferred_adam.h). The state is the optimizer's own
    (``optimizer.state``), as torch.optim keeps it: checkpoints are the same, and either way of training can go on from
    the other's. A GPU is not waited for. Only where :func:`fused_obstacle` finds none.

    A step that is captured into a CUDA graph does at each replay what it was captured with, but for what lies in
    tensors on the model's device, which is read anew: the samples; the learning rate, where ``lr`` of an optimizer's
    group is such a tensor (torch's schedulers change it in place); and with ``capturable`` the number of the step,
    which the graph itself moves on. ``optimizer.load_state_dict`` puts other tensors in their place: capture again.

    Args:
        l2, max_row_norm: as ``l2`` and ``clip_row_norm`` of :func:`zerosum_ext.training.loop.fit`.
        asynchronous: Hogwild SGD instead: a step for each sample, threads writing into the tables as they go. The
            learning rate is then that of one sample.
        capturable: counts the steps in a tensor on the model's device (``optimizer.state[p]["step"]``), as
            torch.optim.Adam does with its option of this name, which has the same effect here, and for SparseAdam and
            Adagrad as well. The state is then made at once and not with the first step.
    """

    def __init__(
        self,
        model: MatrixFactorization,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        l2: float = 0.0,
        max_row_norm: float | None = None,
        asynchronous: bool = False,
        capturable: bool = False,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.l2, self.max_row_norm = l2, max_row_norm
        self.asynchronous = asynchronous
        kernel = compiled_loss(loss)
        assert kernel is not None
        self.kernel = kernel
        self.reduction: str = loss.reduction  # type: ignore[assignment]
        constants = loss.item_constants()  # type: ignore[operator]
        device = model.user_embedding.device
        self.constants: Tensor | None = None if constants is None else constants.to(device).float().contiguous()
        self.kind, self.state_names = _OPTIMIZERS[type(optimizer)]
        self.scale = torch.ones((), device=device)
        self.capturable = capturable
        for table in (model.user_embedding, model.item_embedding, model.item_bias):
            group = None if table is None else self._groups().get(id(table))
            if table is not None and group is not None and self._counts_on_device(group):
                self._state(table, group)

    def steps_at_once(self, batch_size: int) -> int:
        """How many steps a call should do, some hundredths of a second of them: calls and steps cost something.

        Dense Adam, which on the CPU leaves rows alone until a batch needs them, comes to all of them at the end of a
        call; the larger the tables, the rarer that should be.
        """
        samples = 1 << 17
        if isinstance(self.optimizer, torch.optim.Adam):
            samples = min(max(samples, sum(p.numel() for p in self.model.parameters()) // 16), 1 << 21)
        return max(1, samples // (batch_size + 32))

    def _groups(self) -> dict[int, dict[str, Any]]:
        """The optimizer's group of each parameter that is trained, by its id."""
        return {id(p): group for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad}

    def _counts_on_device(self, group: dict[str, Any]) -> bool:
        return self.state_names[1] is not None and (self.capturable or bool(group.get("capturable")))

    @torch.no_grad()
    def __call__(self, users: Tensor, positives: Tensor, negatives: Tensor, batch_size: int | None = None) -> Tensor:
        """Trains on consecutive batches of the samples; the last may be smaller.

        Args:
            users, positives, negatives: int64 [N] and [N], [N, 2] or [N, K], in range.
            batch_size: samples of a step; None makes one step of all.

        Returns:
            The summed loss of all samples, without L2, float64.
        """
        groups = self._groups()
        if self.kernel[0] in ROW_LOSSES and negatives.dim() == 1:
            negatives = negatives.unsqueeze(1)
        users, positives, negatives = users.contiguous(), positives.contiguous(), negatives.contiguous()
        size = batch_size or max(1, users.shape[0])
        if users.device.type == "cpu":
            return self._train((users, positives, negatives), False, users.shape[0], size, groups)
        total: Tensor | None = None
        for batch in zip(users.split(size), positives.split(size), negatives.split(size), strict=True):
            value = self._one(*batch, groups).double()
            value = value if self.reduction == "sum" else value * batch[0].shape[0]
            total = value if total is None else total + value
        return self.scale.double() * 0 if total is None else total

    @torch.no_grad()
    def draw_and_train(self, loader: TripletLoader, begin: int, end: int, epoch: int) -> Tensor:
        """Trains on the loader's samples with the numbers [begin, end) of an epoch, in batches of its size: the same as
        a call with these samples, but on the CPU in one op, which draws the next batches while it trains.

        Returns:
            The summed loss of these samples, without L2, float64.
        """
        size = loader.batch_size
        if self.scale.device.type != "cpu":
            return self(*loader._between(begin, end, epoch), size)
        return self._train(loader._source(begin, end, epoch), True, end - begin, size, self._groups())

    def _train(
        self,
        samples: tuple[Any, ...],
        drawn: bool,
        count: int,
        batch_size: int,
        groups: dict[int, dict[str, Any]],
    ) -> Tensor:
        """All steps in one op, on ``count`` samples; what these are: :func:`zerosum_ext._ops.mf_train`."""
        model = self.model
        name, a, b, c = self.kernel
        tables = (model.user_embedding, model.item_embedding, model.item_bias)
        steps = -(-count // batch_size)
        states: list[tuple[Tensor | None, Tensor | None]] = []
        settings = []
        for table in tables:
            group = None if table is None else groups.get(id(table))
            if table is None or group is None:
                states.append((None, None))
                settings.append([0.0] * 6)
            else:
                state = self._state(table, group)
                states.append(self._moments(state))
                settings.append([1.0, float(group["lr"]), *_constants(group), float(state.get("step", 0)) + 1])
                if "step" in state:
                    state["step"] += steps
        values = _ops.mf_train(
            tables,
            states,
            samples,
            drawn,
            self.constants,
            torch.tensor(settings, dtype=torch.float64),
            self.kind,
            name,
            a,
            b,
            c,
            self.l2,
            self.max_row_norm or 0.0,
            self.reduction,
            batch_size,
            self.asynchronous,
        )
        if self.asynchronous or self.reduction == "sum":
            return values.sum()
        last = count - (steps - 1) * batch_size
        return batch_size * values[:-1].sum() + last * values[-1]

    def _one(self, users: Tensor, positives: Tensor, negatives: Tensor, groups: dict[int, dict[str, Any]]) -> Tensor:
        """One step from the ops for its parts; its loss without L2."""
        model = self.model
        user, item, bias = model.user_embedding, model.item_embedding, model.item_bias
        name, a, b, c = self.kernel
        ids = (users, positives, negatives)
        value, coefficient, _ = _ops.mf_loss(
            user, item, bias, *ids, self.constants, None, name, a, b, c, 0.0, self.reduction, True
        )
        wanted = (id(user) in groups, id(item) in groups, bias is not None and id(bias) in groups)
        row_l2 = self.l2 / max(users.shape[0], 1) if self.reduction == "mean" else self.l2
        # All gradients first: each table's is made of the other's rows.
        user_rows, user_values, item_rows, item_values, bias_values = _ops.mf_gradient(
            user, item, *ids, coefficient, self.scale, row_l2, *wanted, True, padded=True
        )
        tables = ((user, user_rows, user_values), (item, item_rows, item_values), (bias, item_rows, bias_values))
        updates = [
            (table, groups[id(table)], self._state(table, groups[id(table)]), rows, values)
            for needed, (table, rows, values) in zip(wanted, tables, strict=True)
            if needed and table is not None
        ]
        # What is counted where the tables are is moved on at once, and read by the kernels.
        counters = [step for table, _, state, _, _ in updates if _is_at(step := state.get("step"), table)]
        if counters:
            torch._foreach_add_(counters, 1)
        for table, group, state, rows, values in updates:
            if self.max_row_norm is not None:
                clip_rows(values, self.max_row_norm)
            lr, step = group["lr"], state.get("step")
            counter = step if _is_at(step, table) else None
            number = 1.0
            if step is not None and counter is None:
                self._refuse_to_be_captured(group, table)
                number += float(step)
                state["step"] += 1
            rate = lr if _is_at(lr, table) else None
            known = float(lr) if rate is None else 0.0
            first, second = self._moments(state)
            constants = _constants(group)
            _ops.mf_update(table, first, second, rows, values, self.kind, known, *constants, number, rate, counter)
        return value

    def _state(self, table: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The optimizer's state of a table, made where it has none yet; {} for an optimizer without state."""
        if self.state_names[1] is None:
            return {}
        state, on_device = self.optimizer.state[table], self._counts_on_device(group)
        if not state:
            # As torch.optim.Adam and SparseAdam begin; Adagrad has its state from the start.
            number = isinstance(self.optimizer, torch.optim.SparseAdam) and not on_device
            place = table.device if on_device else "cpu"
            state["step"] = 0 if number else torch.zeros((), dtype=torch.float32, device=place)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(table, memory_format=torch.preserve_format)
        if on_device and not _is_at(state["step"], table):
            # Of a run that counted on the host, or Adagrad's.
            state["step"] = torch.full((), float(state["step"]), dtype=torch.float32, device=table.device)
        return state

    def _moments(self, state: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        first, second = self.state_names
        return None if first is None else state[first], None if second is None else state[second]

    def _refuse_to_be_captured(self, group: dict[str, Any], table: Tensor) -> None:
        """Raises where a graph is captured that would do the same step, by its number, at each replay."""
        same = self.kind == 1 and not group["lr_decay"]  # Adagrad's rule then does not depend on it
        # (Without CUDA, or without a driver, that question has no answer: the tensors are fake.)
        if same or not torch.cuda.is_initialized() or table.device.type != "cuda":
            return
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{type(self.optimizer).__name__} counts its steps on the host, and a CUDA graph would repeat one of "
                "them: expected FusedStep(..., capturable=True)"
            )


def _is_at(value: Any, table: Tensor) -> TypeGuard[Tensor]:
    """Whether it is a tensor on the device of a table."""
    return isinstance(value, Tensor) and value.device == table.device


def _constants(group: dict[str, Any]) -> tuple[float, float, float]:
    """x, y and eps of an optimizer's group, as csrc/common/optimizers.h wants them."""
    x, y = group.get("betas", (group.get("lr_decay", 0.0), 0.0))
    return float(x), float(y), float(group.get("eps", 0.0))


def clip_rows(values: Tensor, max_norm: float) -> None:
    """Scales the rows (the first dimension counts them) that are longer than ``max_norm`` down to it, in place."""
    rows = values.reshape(values.shape[0], -1) if values.dim() else values.reshape(1, 1)
    norms = rows.norm(dim=1, keepdim=True)
    rows.mul_(torch.where(norms > max_norm, max_norm / norms, torch.ones_like(norms)))
