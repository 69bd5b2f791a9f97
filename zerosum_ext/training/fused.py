"""A training step of matrix factorization in one pass: loss, gradients of the rows, and the optimizer's update."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from zerosum_ext import _ops
from zerosum_ext._checks import describe
from zerosum_ext.data.sampling import SharedLists, TripletLoader
from zerosum_ext.losses import Loss, compiled_loss
from zerosum_ext.reference import SHAPES
from zerosum_ext.training.weights import PairWeights

__all__ = ["FusedStep", "TableModel", "clip_rows", "fused_obstacle", "scores_from_tables"]


class TableModel(Protocol):
    """A model whose scores are ``<P_u, Q_i> (+ b_i)``, read straight from its parameters.

    If it has an attribute ``normalize`` that is true, both rows are scaled to length 1 before they are multiplied.
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


def scores_are_cosines(model: object) -> bool:
    """Return whether the rows are scaled to length 1 before they are multiplied."""
    return bool(getattr(model, "normalize", False))


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
    if scores_are_cosines(model) and device.type != "cpu" and (dim := parameters[0].shape[1]) > _widest(parameters):
        return f"model: expected rows of at most {_widest(parameters)} numbers for cosines on a GPU, got {dim}"
    if asynchronous and device.type != "cpu":
        return f"model: expected parameters on the CPU, got {describe(parameters[0])}"
    if not _ops.has_op("mf_step", device):
        obstacle = _ops.gpu_obstacle(device.index) if device.type == "cuda" else ""
        return f"model: {obstacle or f'the compiled part of zerosum_ext for {device.type} is not loaded'}"
    return None


def _widest(tables: list[nn.Parameter]) -> int:
    """Return the length of the longest rows that a GPU's threads hold in registers, as they have to for cosines."""
    aligned = tables[0].shape[1] % 4 == 0 and all(p.storage_offset() % 4 == 0 for p in tables)
    return 256 if aligned else 64  # csrc/cuda/mf_step.cuh


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
        weights: of the interactions that samples are drawn from, and so of the samples.
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
        weights: PairWeights | None = None,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.weights = weights
        self.l2, self.max_row_norm = l2, max_row_norm
        self.asynchronous = asynchronous
        self.loss = loss
        device = model.user_embedding.device
        self.refresh()
        self.kind, self.state_names = _OPTIMIZERS[type(optimizer)]
        self.device = device
        self.graph: CapturedSteps | None = None
        self.capturable = capturable
        for table in self._tables():
            group = None if table is None else self._groups().get(id(table))
            if table is not None and group is not None and self._counts_on_device(group):
                self._state(table, group)

    def refresh(self) -> None:
        """Read the loss's options anew, after somebody may have changed them."""
        loss = self.loss
        kernel = compiled_loss(loss)
        assert kernel is not None
        assert isinstance(loss, Loss)
        self.kernel, self.reduction = kernel, loss.reduction
        constants = loss.item_constants()
        device = self.model.user_embedding.device
        self.constants: Tensor | None = None if constants is None else constants.to(device).float().contiguous()

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
        if users.device.type == "cpu" and self.weights is None:
            return self._train((users, positives, negatives), False, users.shape[0], size, groups)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in zip(users.split(size), positives.split(size), negatives.split(size), strict=True):
            if batch[0].shape[0] > 0:
                self._one(*batch, groups, total)
        return total

    @torch.no_grad()
    def draw_and_train(self, loader: TripletLoader, begin: int, end: int, epoch: int) -> Tensor:
        """Train on the loader's samples with the numbers [begin, end) of an epoch, in batches of the loader's size.

        The result is that of a call with these samples. On the CPU one op draws the next batches while it trains. On a
        GPU a CUDA graph of drawing and training is replayed, where one can be captured.

        Returns:
            The summed loss of these samples, without L2, a float64 scalar.
        """
        size = loader.batch_size
        if self.device.type != "cpu":
            total = torch.zeros((), dtype=torch.float64, device=self.device)
            if self.graph is None or self.graph.loader is not loader:
                self.graph = CapturedSteps(self, loader)
            begin += size * self.graph.run(begin, (end - begin) // size, epoch, total)
            if not shares_lists(loader):
                return total + self(*loader.samples_between(begin, end, epoch), size) if begin < end else total
            for first in range(begin, end, size):
                self.train_drawn(loader, first, min(first + size, end), epoch, total)
            return total
        return self._train(loader.sample_source(begin, end, epoch), True, end - begin, size, self._groups())

    def train_drawn(
        self,
        loader: TripletLoader,
        begin: int,
        end: int,
        epoch: int,
        total: Tensor,
        key: Tensor | None = None,
        held: HeldNumbers | None = None,
    ) -> None:
        """Draw a batch, do a step on it, and add its summed loss to ``total``. ``key``: as for the loader."""
        if shares_lists(loader):
            users, positives, negatives, shared = loader.lists_between(begin, end, epoch, key)
        else:
            (users, positives, negatives), shared = loader.samples_between(begin, end, epoch, key), None
        if SHAPES[self.kernel.loss] == "row" and negatives.dim() == 1:
            negatives = negatives.unsqueeze(1)
        self._one(users, positives, negatives.contiguous(), self._groups(), total, held, shared)

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
            scores_are_cosines(self.model),
            None if self.weights is None else self.weights.weights,
        )
        if self.asynchronous or self.reduction == "sum":
            return values.sum()
        last = count - (steps - 1) * batch_size
        return batch_size * values[:-1].sum() + last * values[-1]

    def _one(
        self,
        users: Tensor,
        positives: Tensor,
        negatives: Tensor,
        groups: dict[int, dict[str, Any]],
        total: Tensor | None = None,
        held: HeldNumbers | None = None,
        shared: SharedLists | None = None,
    ) -> Tensor:
        """Do one step and return its loss without L2. What ``held`` holds is not counted on the host."""
        tables = self._tables()
        states: list[tuple[Tensor | None, Tensor | None]] = []
        numbers: list[tuple[Tensor | None, Tensor | None]] = []
        settings = []
        for place, table in enumerate(tables):
            group = None if table is None else groups.get(id(table))
            if table is None or group is None:
                states.append((None, None))
                numbers.append((None, None))
                settings.append([0.0] * 6)
                continue
            state = self._state(table, group)
            lr, step = group["lr"], state.get("step")
            rate, counter = (lr if _is_at(lr, table) else None), (step if _is_at(step, table) else None)
            number = 1.0
            if held is not None:
                rate = held.rates[place] if rate is None else rate
                counter = held.steps[place] if counter is None and step is not None else counter
            elif step is not None and counter is None:
                self._refuse_to_be_captured(group, table)
                number += float(step)
                state["step"] += 1
            states.append(self._moments(state))
            numbers.append((rate, counter))
            settings.append([1.0, float(lr) if rate is None else 0.0, *_constants(group), number])
        return _ops.mf_step(
            tables,
            states,
            (users, positives, negatives),
            self.constants,
            torch.tensor(settings, dtype=torch.float64),
            numbers,
            total,
            self.kind,
            self.kernel,
            self.l2,
            self.max_row_norm or 0.0,
            self.reduction,
            None if self.weights is None else self.weights(users, positives),
            scores_are_cosines(self.model),
            shared,
        )

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
        if not same and _ops.capturing(table.device):
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


# ---- the same as a CUDA graph


class HeldNumbers:
    """Numbers that a captured step reads from the device: learning rates and steps' numbers, float64, of three tables.

    The host knows what it has put there, and puts there only what changed.
    """

    def __init__(self, device: torch.device) -> None:
        def numbers(dtype: torch.dtype) -> list[Tensor]:
            return list(torch.zeros(3, dtype=dtype, device=device).unbind())

        self.rates, self.steps = numbers(torch.float64), numbers(torch.float64)
        # Seed, epoch, and the number of the first sample: what a batch is drawn by.
        self.key = torch.zeros(3, dtype=torch.int64, device=device)
        self.total = torch.zeros((), dtype=torch.float64, device=device)
        self._known: dict[int, float] = {}

    def put(self, place: Tensor, value: float) -> None:
        """Make ``place`` hold ``value``, without a transfer: the number travels in a kernel's arguments."""
        if self._known.get(id(place)) != value:
            place.fill_(value)
            self._known[id(place)] = value

    def moved(self, place: Tensor, by: float) -> None:
        """Note that the device has added ``by`` to what ``place`` holds."""
        self._known[id(place)] += by


class CapturedSteps:
    """Draw and train on full batches of a loader by one CUDA graph, which is replayed batch after batch.

    The graph reads what changes from step to step from the device (:class:`HeldNumbers`) and moves it on itself, so
    that the host does nothing between two steps but launch it. It is captured anew where the tensors that it works on
    are others than those that it was captured with. Where it cannot be captured, steps are done one op at a time.
    """

    def __init__(self, step: FusedStep, loader: TripletLoader) -> None:
        self.step, self.loader = step, loader
        self.held = HeldNumbers(step.device)
        self.by_batch = torch.tensor([0, 0, loader.batch_size]).to(step.device)
        self._key = self.held.key.unbind()
        self.replay: Callable[[], None] | None = None
        self.captured_with: tuple[Any, ...] = ()
        self.warm, self.refused = False, False

    def run(self, begin: int, batches: int, epoch: int, total: Tensor) -> int:
        """Train on full batches from sample number ``begin`` of an epoch on, and add their summed loss to ``total``.

        Returns:
            The number of batches that it did: all, or fewer (none) where it cannot go on.
        """
        if batches < 1 or self.refused or not can_capture(self.step.device):
            return 0
        size, done = self.loader.batch_size, 0
        if not self.warm:
            # One step as usual: what is made at first use, such as the optimizer's state, is made outside of the graph.
            self.loader.prepare()
            self.step.train_drawn(self.loader, begin, begin + size, epoch, total)
            self.warm, done = True, 1
        if done == batches:
            return done
        groups = self.step._groups()
        identity = self._identity(groups)
        counted = self._put(begin + done * size, epoch, groups)
        if self.replay is None or identity != self.captured_with:
            try:
                self.replay = capture(self._one, self.step.device)
            except RuntimeError as error:
                # (The end of a capture that failed says no more than that.)
                first = str(error.__context__ or error).partition("\n")[0]
                warnings.warn(f"training goes on without a CUDA graph: {first}", RuntimeWarning, stacklevel=2)
                self.refused = True
                return done
            self.captured_with = identity
        for _ in range(done, batches):
            self.replay()
        self.held.moved(self._key[2], (batches - done) * size)
        for step, state in counted:
            self.held.moved(step, batches - done)
            state["step"] += batches - done
        total += self.held.total
        self.held.total.zero_()
        return batches

    def _one(self) -> None:
        """Draw a batch, train on it, and go on to the next one: what the graph does."""
        held = self.held
        self.step.train_drawn(self.loader, 0, self.loader.batch_size, 0, held.total, held.key, held)
        self.held.key.add_(self.by_batch)

    def _put(self, begin: int, epoch: int, groups: dict[int, dict[str, Any]]) -> list[tuple[Tensor, dict[str, Any]]]:
        """Put the next batch's numbers on the device; return what counts steps there for a state on the host."""
        held, counted = self.held, []
        for place, number in zip(self._key, (self.loader._signed_seed, epoch, begin), strict=True):
            held.put(place, number)
        for number, table in enumerate(self.step._tables()):
            if table is None or id(table) not in groups:
                continue
            group = groups[id(table)]
            state = self.step._state(table, group)
            if not _is_at(group["lr"], table):
                held.put(held.rates[number], float(group["lr"]))
            if "step" in state and not _is_at(state["step"], table):
                held.put(held.steps[number], float(state["step"]))
                counted.append((held.steps[number], state))
        return counted

    def _identity(self, groups: dict[int, dict[str, Any]]) -> tuple[Any, ...]:
        """Return what a graph keeps of its capture: tensors, and numbers that do not lie in memory."""
        step, constants = self.step, self.step.constants
        # A callback may change the loss between epochs.
        parts: list[Any] = [(*step.kernel, step.reduction, step.l2, step.max_row_norm, scores_are_cosines(step.model))]
        parts.append(None if constants is None else (id(constants), constants.data_ptr()))
        for table in self.step._tables():
            if table is None or id(table) not in groups:
                parts.append(None if table is None else (id(table), table.data_ptr()))
                continue
            group = groups[id(table)]
            state = self.step._state(table, group)
            tensors = [table, *self.step._moments(state), group["lr"], state.get("step")]
            parts.append([(id(t), t.data_ptr()) for t in tensors if isinstance(t, Tensor) and t.device == table.device])
            parts.append(_constants(group))
        return tuple(map(repr, parts))


# Pairs of a tile of samples (csrc/cuda/mf_shared.cuh) from which on its products cost less than to read each row once a
# sample: the arithmetic is in benchmarks/ROOFLINE.md.
_TILE, _ENOUGH_PAIRS = 64, 1024


def shares_lists(loader: TripletLoader) -> bool:
    """Return whether a step on a GPU takes the lists that samples share, rather than each sample's negatives."""
    return min(loader.negatives_shared, _TILE) * min(loader.negatives, _TILE) >= _ENOUGH_PAIRS


def can_capture(device: torch.device) -> bool:
    """Return whether CUDA graphs can be captured on this device."""
    return device.type == "cuda"


def capture(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Capture what ``work`` does on the device, without doing it; return what does it.

    Raises:
        RuntimeError: something in it cannot be captured.
    """
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        # Without a stream of this GPU torch takes the one of the process's first capture, whichever GPU that was on:
        # from another one nothing would be captured, and all of it be done instead. Where the capture ends in an error
        # torch leaves its stream in place, which waits for no other: whatever comes next would run there.
        before = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
                work()
        finally:
            torch.cuda.set_stream(before)

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay
