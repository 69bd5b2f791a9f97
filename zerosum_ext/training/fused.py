"""A training step of matrix factorization in one pass: loss, gradients of the rows, and the optimizer's update."""

from __future__ import annotations

from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from zerosum_ext import _ops
from zerosum_ext._checks import describe
from zerosum_ext.data.sampling import TripletLoader
from zerosum_ext.losses import Loss, compiled_loss
from zerosum_ext.reference import SHAPES

__all__ = ["FusedStep", "TableModel", "clip_rows", "fused_obstacle", "scores_from_tables"]


class TableModel(Protocol):
    """A model whose scores are ``<P_u, Q_i> (+ b_i)``, read straight from its parameters.

    The fused step never calls the model: it works on these parameters. A class declares that this is right by a method
    ``scores_from_tables()``, see :meth:`zerosum_ext.MatrixFactorization.scores_from_tables`.
    """

    num_items: int

    @property
    def user_embedding(self) -> nn.Parameter:
        """P, [num_users, d]."""

    @property
    def item_embedding(self) -> nn.Parameter:
        """Q, [num_items, d]."""

    @property
    def item_bias(self) -> nn.Parameter | None:
        """b, [num_items], or None."""

    def scores_from_tables(self) -> bool:
        """Return whether the scores are nothing but the formula above."""


def scores_from_tables(model: object) -> TypeGuard[TableModel]:
    """Return whether a model declares that its scores come straight from its parameters."""
    declared = getattr(model, "scores_from_tables", None)
    return callable(declared) and bool(declared())


# The number of each optimizer in csrc/common/optimizers.h, and the names of its state in torch.optim.
_OPTIMIZERS: dict[type[torch.optim.Optimizer], tuple[int, tuple[str | None, str | None]]] = {
    torch.optim.SGD: (0, (None, None)),
    torch.optim.Adagrad: (1, (None, "sum")),
    torch.optim.Adam: (2, ("exp_avg", "exp_avg_sq")),
    torch.optim.SparseAdam: (3, ("exp_avg", "exp_avg_sq")),
}
# Options of torch.optim that the fused step does not have.
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
    """Return why :class:`FusedStep` cannot stand for autograd and ``optimizer.step()``, or None if it can."""
    return (
        _model_obstacle(model, asynchronous)
        or _loss_obstacle(loss, model.num_items)
        or _optimizer_obstacle(optimizer, asynchronous)
    )


def _model_obstacle(model: nn.Module, asynchronous: bool) -> str | None:
    from_tables: bool = scores_from_tables(model)  # a bool, so that mypy keeps the model's type
    if not from_tables or model._forward_hooks or model._forward_pre_hooks:
        kind = type(model).__name__
        return f"model: expected a MatrixFactorization with the scores of its class and without hooks, got {kind}"
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
    return None


def _loss_obstacle(loss: nn.Module, num_items: object) -> str | None:
    if not isinstance(loss, Loss) or compiled_loss(loss) is None:
        return f"loss: expected a compiled loss of zerosum_ext, got {type(loss).__name__}"
    constants = loss.item_constants()
    if constants is not None and tuple(constants.shape) != (num_items,):
        return f"loss: expected constants of {num_items} items, got {tuple(constants.shape)}"
    return None


def _optimizer_obstacle(optimizer: torch.optim.Optimizer, asynchronous: bool) -> str | None:
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
    """Compute loss, gradients and update of a :class:`TableModel`, batch after batch, without an autograd graph.

    A step has exact mini-batch semantics and the same bits for any number of threads. The last bits of dense Adam
    depend on the number of steps a call does where tables are large beside a batch (csrc/cpu/deferred_adam.h).

    The state is the optimizer's own (``optimizer.state``), as torch.optim keeps it. So checkpoints are the same, and
    autograd and the fused step can continue each other's runs. The host does not wait for a GPU. Use it only where
    :func:`fused_obstacle` returns None.

    A step that is captured into a CUDA graph repeats itself at each replay. Only tensors on the model's device are read
    anew: the samples; the learning rate, if the ``lr`` of an optimizer's group is such a tensor (torch's schedulers
    change it in place); and with ``capturable`` the number of the step, which the graph itself counts on.
    ``optimizer.load_state_dict`` replaces these tensors, so capture again after it.

    Args:
        model: the model whose parameters are trained.
        loss: a compiled loss of the library.
        optimizer: SGD, Adagrad, Adam or SparseAdam of torch.optim.
        l2: the weight of the L2 term, as in :func:`zerosum_ext.training.fit`.
        max_row_norm: the ``clip_row_norm`` of :func:`zerosum_ext.training.fit`.
        asynchronous: train by Hogwild SGD instead: each sample is a step, and threads write into the tables without
            waiting for each other. The learning rate is then that of one sample.
        capturable: count the steps in a tensor on the model's device (``optimizer.state[p]["step"]``). torch.optim.Adam
            does so by its option of this name, which has the same effect here; this also covers SparseAdam and
            Adagrad. The state is then made at once, not by the first step.
    """

    def __init__(
        self,
        model: TableModel,
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
        assert isinstance(loss, Loss)
        self.kernel, self.reduction = kernel, loss.reduction
        constants = loss.item_constants()
        device = model.user_embedding.device
        self.constants: Tensor | None = None if constants is None else constants.to(device).float().contiguous()
        self.kind, self.state_names = _OPTIMIZERS[type(optimizer)]
        self.scale = torch.ones((), device=device)
        self.capturable = capturable
        for table in self._tables():
            group = None if table is None else self._groups().get(id(table))
            if table is not None and group is not None and self._counts_on_device(group):
                self._state(table, group)

    def steps_at_once(self, batch_size: int) -> int:
        """Return the number of steps a call should do: some hundredths of a second, since each call has a cost.

        On the CPU dense Adam leaves rows alone until a batch needs them, and visits all of them at the end of a call.
        The larger the tables, the rarer that should be.
        """
        samples = 1 << 17
        if isinstance(self.optimizer, torch.optim.Adam):
            cells = sum(table.numel() for table in self._tables() if table is not None)
            samples = min(max(samples, cells // 16), 1 << 21)
        return max(1, samples // (batch_size + 32))

    def _tables(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the parameters that scores are made of: of users, of items, and the bias of items."""
        return self.model.user_embedding, self.model.item_embedding, self.model.item_bias

    def _groups(self) -> dict[int, dict[str, Any]]:
        """Return the optimizer's group of each parameter that is trained, by the parameter's id."""
        return {id(p): group for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad}

    def _counts_on_device(self, group: dict[str, Any]) -> bool:
        return self.state_names[1] is not None and (self.capturable or bool(group.get("capturable")))

    @torch.no_grad()
    def __call__(self, users: Tensor, positives: Tensor, negatives: Tensor, batch_size: int | None = None) -> Tensor:
        """Train on consecutive batches of the samples. The last batch may be smaller.

        Args:
            users: int64 [N].
            positives: int64 [N], or [N, 2] for a loss of two positives.
            negatives: int64 [N], [N, 2] or [N, K].
            batch_size: the number of samples of a step; None makes one step of all.

        Returns:
            The summed loss of all samples, without L2, a float64 scalar.
        """
        groups = self._groups()
        if SHAPES[self.kernel.loss] == "row" and negatives.dim() == 1:
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
        """Train on the loader's samples with the numbers [begin, end) of an epoch, in batches of the loader's size.

        The result is that of a call with these samples. On the CPU one op draws the next batches while it trains.

        Returns:
            The summed loss of these samples, without L2, a float64 scalar.
        """
        size = loader.batch_size
        if self.scale.device.type != "cpu":
            return self(*loader.samples_between(begin, end, epoch), size)
        return self._train(loader.sample_source(begin, end, epoch), True, end - begin, size, self._groups())

    def _train(
        self,
        samples: tuple[Any, ...],
        drawn: bool,
        count: int,
        batch_size: int,
        groups: dict[int, dict[str, Any]],
    ) -> Tensor:
        """Do all steps on ``count`` samples in one op. :func:`zerosum_ext._ops.mf_train` says what samples are."""
        tables = self._tables()
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
            self.kernel,
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
        """Do one step by the ops for its parts, and return its loss without L2."""
        user, item, bias = self._tables()
        ids = (users, positives, negatives)
        value, coefficient, _ = _ops.mf_loss(
            user, item, bias, *ids, self.constants, None, self.kernel, 0.0, self.reduction, True
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
        # Counters on the tables' device are advanced in one call, and read by the kernels.
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
        """Return the optimizer's state of a table, and make it where there is none yet. SGD has {}."""
        if self.state_names[1] is None:
            return {}
        state: dict[str, Any] = self.optimizer.state[table]
        on_device = self._counts_on_device(group)
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
        """Raise if a CUDA graph is being captured that would repeat the step of one number at each replay."""
        same = self.kind == 1 and not group["lr_decay"]  # Adagrad's rule then does not depend on it
        # Without CUDA, or without a driver, the tensors are fake and torch cannot answer.
        if same or not torch.cuda.is_initialized() or table.device.type != "cuda":
            return
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{type(self.optimizer).__name__} counts its steps on the host, and a CUDA graph would repeat one of "
                "them: expected FusedStep(..., capturable=True)"
            )


def _is_at(value: Any, table: Tensor) -> TypeGuard[Tensor]:
    """Return whether a value is a tensor on the device of a table."""
    return isinstance(value, Tensor) and value.device == table.device


def _constants(group: dict[str, Any]) -> tuple[float, float, float]:
    """Return x, y and eps of an optimizer's group, as csrc/common/optimizers.h names them."""
    x, y = group.get("betas", (group.get("lr_decay", 0.0), 0.0))
    return float(x), float(y), float(group.get("eps", 0.0))


def clip_rows(values: Tensor, max_norm: float) -> None:
    """Scale the rows that are longer than ``max_norm`` down to it, in place. The first dimension counts the rows."""
    rows = values.reshape(values.shape[0], -1) if values.dim() else values.reshape(1, 1)
    norms = rows.norm(dim=1, keepdim=True)
    rows.mul_(torch.where(norms > max_norm, max_norm / norms, torch.ones_like(norms)))
