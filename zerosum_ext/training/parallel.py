"""The engines of several processes: each trains on its share of every batch, and together they take the steps of one.

Sample number n of an epoch is the same for any number of processes. A batch of ``batch_size`` samples is that of all
processes together, and its gradient is that of one process up to the order of additions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from zerosum_ext._group import Group
from zerosum_ext.data.owned import OwnedSamples
from zerosum_ext.data.shards import ShardedInteractions
from zerosum_ext.losses.mf import mf_loss
from zerosum_ext.training.engines import AutogradEngine, Parts, sample_widths
from zerosum_ext.training.fused import clip_rows
from zerosum_ext.training.settings import Settings

__all__ = ["DataParallelEngine", "ShardedEngine", "is_sharded", "parallel_engine"]

# The samples whose items are asked for at once, so that few messages are small.
_WINDOW_SAMPLES = 1 << 18
_MOST_STEPS = 64


def is_sharded(model: nn.Module) -> bool:
    """Return whether a model says that its tables are spread over processes."""
    return hasattr(model, "user_cuts") and hasattr(model, "item_cuts")


def parallel_engine(parts: Parts, settings: Settings) -> type[AutogradEngine] | type[ShardedEngine]:
    """Return the class of the engine that runs these parts in several processes.

    Raises:
        ValueError: settings that no such engine has.
    """
    if settings.engine not in ("auto", "autograd"):
        raise ValueError(f"engine: expected 'auto' or 'autograd' with mesh, got {settings.engine!r}")
    if settings.objective.precision != "float32":
        raise ValueError(f"precision: expected 'float32' with mesh, got {settings.objective.precision!r}")
    return ShardedEngine if is_sharded(parts.model) else DataParallelEngine


class DataParallelEngine(AutogradEngine):
    """The whole model in every process: each works on its share of a batch, and gradients are added up."""

    name = "data-parallel"

    def __init__(self, parts: Parts, settings: Settings) -> None:
        super().__init__(parts, settings)
        assert parts.group is not None
        self.group: Group = parts.group
        self.batch = 0
        self._agree()

    def _agree(self) -> None:
        """Give every process the parameters and buffers of rank 0."""
        with torch.no_grad():
            for tensor in self.model.state_dict().values():
                if isinstance(tensor, Tensor):
                    there = tensor.detach().to(self.group.device).contiguous()
                    tensor.copy_(self.group.broadcast(there, 0))

    def _advance_samples(self, steps: int) -> tuple[int, int]:
        begin, end = super()._advance_samples(steps)
        self.batch, size, rank = end - begin, self.group.size, self.group.rank
        return begin + self.batch * rank // size, begin + self.batch * (rank + 1) // size

    def _train_batch(self, users: Tensor, positives: Tensor, negatives: Tensor, loss_sum: Tensor) -> None:
        size = users.shape[0]
        self.optimizer.zero_grad(set_to_none=True)
        if size:
            value, objective = self._objective_of(users, positives, negatives)
            (objective if self.summed else objective * (size / self.batch)).backward()
            loss_sum += value.detach() if self.summed else value.detach() * size
        self.position += 1
        self._add_up()
        self._regularize()
        self._update()

    def _add_up(self) -> None:
        """Replace the gradients by their sums over all processes."""
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        trained = [p for p in [*self.model.parameters(), *self.loss.parameters()] if p.requires_grad and id(p) in held]
        sparse = isinstance(self.optimizer, torch.optim.SparseAdam)
        dense = []
        for p in trained:
            if sparse:
                p.grad = self._sum_of_rows(p)
            else:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
                elif p.grad.is_sparse:
                    p.grad = p.grad.to_dense()
                dense.append(p.grad)
        # One message for all of one dtype.
        for dtype in sorted({grad.dtype for grad in dense}, key=str):
            some = [grad for grad in dense if grad.dtype == dtype]
            flat = self.group.sum_(torch.cat([grad.reshape(-1) for grad in some]))
            for grad, total in zip(some, flat.split([grad.numel() for grad in some]), strict=True):
                grad.copy_(total.view_as(grad))

    def _sum_of_rows(self, p: nn.Parameter) -> Tensor:
        """Return the sum of sparse gradients, with the rows of all processes."""
        rows, values = p.new_empty(0, dtype=torch.int64), p.new_empty(0, *p.shape[1:])
        if p.grad is not None:
            own = (p.grad if p.grad.is_sparse else p.grad.to_sparse(1)).coalesce()
            rows, values = own.indices()[0], own.values()
        both = torch.cat(self.group.gather(rows)), torch.cat(self.group.gather(values))
        return torch.sparse_coo_tensor(both[0][None], both[1], p.shape, check_invariants=False).coalesce()


# --- tables in parts ---------------------------------------------------------------------------------------------


@dataclass
class _Step:
    """One step of this process: its samples, with rows numbered as they are fetched, and who needs which rows.

    Attributes:
        users: the distinct own users; ``user_at`` says which of them each sample has.
        items: the distinct items, ascending; ``positives`` and ``negatives`` count among them.
        batch: the number of samples of all processes.
        want: how many of the items each rank has.
        serve: the own rows that others want, by rank; ``serve_counts`` says how many each one wants.
        touched: the distinct ones of these, and ``touched_at`` where each of ``serve`` is among them.
    """

    users: Tensor
    user_at: Tensor
    items: Tensor
    positives: Tensor
    negatives: Tensor
    batch: int
    want: list[int]
    serve: Tensor
    serve_counts: list[int]
    touched: Tensor
    touched_at: Tensor


class ShardedEngine:
    """Tables in parts: user rows stay where they are, the rows of a batch's items travel, and their gradients back.

    The attributes are those of :class:`~zerosum_ext.training.engines.AutogradEngine`.
    """

    name = "sharded"
    torn = False

    def __init__(self, parts: Parts, settings: Settings) -> None:
        assert parts.group is not None
        train: Any = parts.train
        assert isinstance(train, ShardedInteractions)
        self.model: Any = parts.model
        self.loss, self.optimizer, self.group = parts.loss, parts.optimizer, parts.group
        self.objective = settings.objective
        self.train: ShardedInteractions = train
        self._refuse(parts, settings)
        exclude: Any = parts.exclude
        sampling = settings.sampling
        positives, negatives = sample_widths(parts.loss, sampling.negatives)
        self.draw = OwnedSamples(
            self.train.local,
            self.group,
            self.train.popularity if sampling.strategy == "popularity" else None,
            seed=sampling.seed,
            positives=positives,
            negatives=negatives,
            draws=sampling.draws,
            exclude=None if exclude is None else exclude.local.to(self.train.device),
            strategy=sampling.strategy,
        )
        self.batch_size = sampling.batch_size
        self.samples = self.draw.num_samples
        self.steps = -(-self.samples // self.batch_size)
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.epoch = self.step = self.position = 0
        width = (1 + negatives) * max(1, self.batch_size // self.group.size)
        self.window = max(1, min(_MOST_STEPS, _WINDOW_SAMPLES // width))

    def _refuse(self, parts: Parts, settings: Settings) -> None:
        model, objective = self.model, settings.objective
        if list(model.user_cuts) != list(self.train.user_cuts):
            raise ValueError(
                f"interactions: expected the users of the model, {model.user_cuts}, got {self.train.user_cuts}; make "
                "the model by from_interactions"
            )
        for name in ("regularizer", "transform", "sample_weight"):
            if getattr(objective, name) is not None:
                raise ValueError(f"{name}: expected None with sharded tables, got {getattr(objective, name)!r}")
        if settings.sampling.negatives_shared:
            shared = settings.sampling.negatives_shared
            raise ValueError(f"negatives_shared: expected False with sharded tables, got {shared}")
        if settings.validation.bias is not None:
            raise ValueError(f"bias: expected None with sharded tables, got {settings.validation.bias!r}")
        if getattr(parts.loss, "needs_branches", False) or any(p.requires_grad for p in parts.loss.parameters()):
            raise ValueError(f"loss: expected one of scores alone with sharded tables, got {type(parts.loss).__name__}")
        exclude: Any = parts.exclude
        if exclude is not None and not isinstance(exclude, ShardedInteractions):
            raise TypeError(f"exclude: expected ShardedInteractions, got {type(exclude).__name__}")

    def begin(self, epoch: int, first_step: int) -> None:
        """Go to a step of an epoch."""
        self.epoch, self.step = epoch, first_step
        self.position = epoch * self.steps + first_step
        self.draw.begin(epoch)

    def end(self) -> None:
        """Finish an epoch."""

    def advance(self, limit: int, loss_sum: Tensor, after_step: Callable[[], None]) -> int:
        """Train some steps, at least one and at most ``limit``, whose items are asked for at once."""
        steps = min(limit, self.window)
        plans = self._plan(steps)
        self.torn = True
        for plan in plans:
            self._train(plan, loss_sum)
            after_step()
        self.step += steps
        self.position += steps
        return steps

    # --- who needs what ----------------------------------------------------------------------------------

    def _plan(self, steps: int) -> list[_Step]:
        """Draw the samples of the next steps, and ask the other processes for their items."""
        size = self.batch_size
        begin, end = self.step * size, min((self.step + steps) * size, self.samples)
        numbers, users, positives, negatives = self.draw.between(begin, end)
        starts = torch.tensor([begin + i * size for i in range(steps)], device=numbers.device)
        cuts = [*torch.searchsorted(numbers, starts).tolist(), numbers.numel()]
        plans = []
        for i, (first, last) in enumerate(pairwise(cuts)):
            part = slice(first, last)
            plans.append(self._own(users[part], positives[part], negatives[part], min(size, end - begin - i * size)))
        if not self.model.replicated:
            self._ask(plans)
        return plans

    def _own(self, users: Tensor, positives: Tensor, negatives: Tensor, batch: int) -> _Step:
        """Number the rows of a step's own samples."""
        rows, user_at = users.unique(return_inverse=True)
        count, split = users.numel(), positives.numel()
        items, at = torch.cat((positives.reshape(-1), negatives.reshape(-1))).unique(return_inverse=True)
        bounds = torch.tensor(self.model.item_cuts, device=items.device)
        want = torch.searchsorted(items, bounds).diff().tolist() if count else [0] * (len(bounds) - 1)
        none = items[:0]
        shapes = positives.shape, negatives.shape
        parts = at[:split].view(shapes[0]), at[split:].view(shapes[1])
        return _Step(rows, user_at, items, *parts, batch, want, none, [], none, none)

    def _ask(self, plans: list[_Step]) -> None:
        """Tell every process which of its items each of the steps needs."""
        size, device = self.group.size, self.group.device
        want = torch.tensor([plan.want for plan in plans], device=device).view(len(plans), size)
        serve = self.group.swap(want.T.contiguous())  # [rank, step]
        ids = [plan.items.split(plan.want) for plan in plans]
        asked = torch.cat([ids[step][rank] for rank in range(size) for step in range(len(plans))])
        sums = want.sum(0).tolist(), serve.sum(1).tolist()
        needed = self.group.exchange(asked.to(device), *sums) - self.model.item_cuts[self.group.rank]
        pieces = needed.split(serve.reshape(-1).tolist())
        for step, plan in enumerate(plans):
            plan.serve = torch.cat([pieces[rank * len(plans) + step] for rank in range(size)])
            plan.serve_counts = serve[:, step].tolist()
            plan.touched, plan.touched_at = plan.serve.unique(return_inverse=True)

    # --- a step --------------------------------------------------------------------------------------------

    def _train(self, plan: _Step, loss_sum: Tensor) -> None:
        model = self.model
        with torch.no_grad():
            user_rows = model.user_embedding.detach()[plan.users]
            item_rows = self._fetch(plan)
        of_users, of_items = self._gradients(plan, user_rows, item_rows, loss_sum)
        with torch.no_grad():
            self.optimizer.zero_grad(set_to_none=True)
            self._set(model.user_embedding, plan.users, of_users)
            if model.item_embedding.requires_grad or (model.item_bias is not None and model.item_bias.requires_grad):
                rows, values = self._return(plan, of_items)
                self._set(model.item_embedding, rows, values[:, : model.embedding_dim])
                if model.item_bias is not None:
                    self._set(model.item_bias, rows, values[:, model.embedding_dim])
        self.optimizer.step()

    def _fetch(self, plan: _Step) -> Tensor:
        """Return the rows of the step's items [n, d], or [n, d + 1] with the biases."""
        model = self.model
        at = plan.items if model.replicated else plan.serve
        rows: Tensor = model.item_embedding.detach()[at]
        if model.item_bias is not None:
            rows = torch.cat((rows, model.item_bias.detach()[at].unsqueeze(1)), 1)
        return rows if model.replicated else self.group.exchange(rows, plan.serve_counts, plan.want)

    def _return(self, plan: _Step, values: Tensor) -> tuple[Tensor, Tensor]:
        """Bring gradients to the processes that have the rows; return the own rows, ascending, and the sums."""
        if not self.model.replicated:
            back = self.group.exchange(values, plan.want, plan.serve_counts)
            total = back.new_zeros(plan.touched.numel(), back.shape[1])
            return plan.touched, total.index_add_(0, plan.touched_at, back)
        # A last column says which rows some process has.
        table = values.new_zeros(self.model.num_items, values.shape[1] + 1)
        table[plan.items, :-1] = values
        table[plan.items, -1] = 1
        rows = self.group.sum_(table)[:, -1].nonzero()[:, 0]
        return rows, table[rows, :-1]

    def _gradients(self, plan: _Step, users: Tensor, items: Tensor, loss_sum: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the fetched rows, and add the summed loss of the own samples."""
        size = plan.user_at.numel()
        if size == 0:
            return torch.zeros_like(users), torch.zeros_like(items)
        users.requires_grad_()
        items.requires_grad_()
        summed = getattr(self.loss, "reduction", "mean") == "sum"
        value = self._value(plan, users, items)
        objective = value
        if self.objective.l2:
            norms = users.square().sum(1)[plan.user_at].sum()
            by_item = items[:, : self.model.embedding_dim].square().sum(1)
            norms = norms + by_item[plan.positives].sum() + by_item[plan.negatives].sum()
            penalty = 0.5 * self.objective.l2 * norms
            objective = value + (penalty if summed else penalty / size)
        loss_sum += value.detach() if summed else value.detach() * size
        objective = objective if summed else objective * (size / plan.batch)
        of_users, of_items = torch.autograd.grad(objective, (users, items))
        return of_users, of_items

    def _value(self, plan: _Step, users: Tensor, items: Tensor) -> Tensor:
        dim = self.model.embedding_dim
        bias = items[:, dim] if self.model.item_bias is not None else None
        rows = items[:, :dim] if bias is not None else items
        if not getattr(self.loss, "needs_items", False):
            ids = plan.user_at, plan.positives, plan.negatives
            return mf_loss(users, rows, *ids, loss=self.loss, item_bias=bias)

        def scores(at: Tensor) -> Tensor:
            own = users[plan.user_at]
            products = (own * rows[at]).sum(-1) if at.dim() == 1 else torch.bmm(rows[at], own.unsqueeze(-1)).squeeze(-1)
            return products if bias is None else products + bias[at]

        constants = {"pos_items": plan.items[plan.positives], "neg_items": plan.items[plan.negatives]}
        value: Tensor = self.loss(scores(plan.positives), scores(plan.negatives), **constants)
        return value

    def _set(self, table: nn.Parameter, rows: Tensor, values: Tensor) -> None:
        """Give a table the gradient of some of its rows."""
        if not table.requires_grad:
            return
        if self.objective.clip_row_norm is not None:
            clip_rows(values, self.objective.clip_row_norm)
        if _takes_rows(self.optimizer):
            table.grad = _of_rows(rows, values, table)
        else:
            table.grad = torch.zeros_like(table)
            table.grad[rows] = values


def _of_rows(rows: Tensor, values: Tensor, table: Tensor) -> Tensor:
    """Return a sparse gradient of a table from its rows, ascending, and their values."""
    if values.stride() != torch.empty(values.shape, device="meta").stride():
        # torch adds a sparse tensor by the stride of its values. That of a single row may be any number, and the tensor
        # counts as contiguous all the same.
        values = torch.empty(values.shape, dtype=values.dtype, device=values.device).copy_(values)
    return torch.sparse_coo_tensor(rows[None], values, table.shape, is_coalesced=True, check_invariants=False)


def _takes_rows(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a step with a sparse gradient is that with the dense one, or the only one that there is."""
    if isinstance(optimizer, torch.optim.SparseAdam):
        return True
    plain = not any(
        group.get(name) for group in optimizer.param_groups for name in ("momentum", "weight_decay", "maximize")
    )
    return plain and isinstance(optimizer, (torch.optim.SGD, torch.optim.Adagrad))
