"""One Python callable per op: the compiled kernel where there is one for the device, else the reference.

The fake kernels (shapes and dtypes without data, for torch.compile and torch.export) are registered here as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zerosum_ext import _library as _extension
from zerosum_ext import reference
from zerosum_ext._types import Ties
from zerosum_ext.reference import graph as _graph_reference
from zerosum_ext.reference import ranking as _ranking_reference
from zerosum_ext.reference import sampling as _sampling_reference
from zerosum_ext.reference.losses import compute_dtype

REDUCTIONS = {"none": 0, "sum": 1, "mean": 2}
# Numbers of the compiled losses, as csrc/common/losses.h counts them.
LOSS_IDS: dict[str, int] = {}
if _extension.CPU.loaded:
    LOSS_IDS = {name: i for i, name in enumerate(torch.ops.zerosum_ext.loss_names().split(","))}


def _kernels(library: _extension._Library, key: str) -> frozenset[str]:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return frozenset(op for op in _extension.OPS if library.loaded and has(f"zerosum_ext::{op}", key))


# Ops that have a compiled kernel, for each type of device.
_KERNELS = {"cpu": _kernels(_extension.CPU, "CPU"), "cuda": _kernels(_extension.CUDA, "CUDA")}
# Why the CUDA kernels do not run on a GPU, by its number, once that has been asked; nothing where they do.
_GPU_OBSTACLES: dict[int | None, str] = {}


def gpu_obstacle(index: int | None) -> str:
    """Why the CUDA kernels do not run on this GPU (None: the current one); nothing where they do. Warns once of each.

    Of a GPU that is not there, or before CUDA was first used, there are only fake tensors, for which they do.
    """
    known = _GPU_OBSTACLES.get(index)
    if known is not None:
        return known
    if index is None and torch.cuda.is_available():
        return gpu_obstacle(torch.cuda.current_device())
    if index is None or not torch.cuda.is_initialized() or index >= torch.cuda.device_count():
        return ""
    _GPU_OBSTACLES[index] = obstacle = _extension.gpu_obstacle(index)
    if obstacle:
        message = f"zerosum_ext runs on plain PyTorch there, slowly: {obstacle}"
        warnings.warn(f"{message}. To mend it: {_extension.gpu_remedy(index)}", RuntimeWarning, stacklevel=2)
    return obstacle


# What torch.compiler.assume_constant_result does, without the second that it takes to import the compiler: this is
# asked while a graph is traced, and is no part of it.
gpu_obstacle.__dict__["_dynamo_marked_constant"] = True


def has_op(name: str, device: torch.device) -> bool:
    """Whether this op has a compiled kernel for tensors of this device; without one the definition is evaluated."""
    kind = device.type
    return name in _KERNELS.get(kind, ()) and (kind != "cuda" or not gpu_obstacle(device.index))


if _extension.CPU.loaded:
    # A cached overload skips the dispatcher's look-up of overloads: about 1 us a call.
    _pair_loss = torch.ops.zerosum_ext.pair_loss.default
    _macr_loss = torch.ops.zerosum_ext.macr_loss.default
    _LOSS_NAMES = list(LOSS_IDS)

    def _check_alike(first_name: str, tensor: Tensor, **others: Tensor | None) -> None:
        for name, other in others.items():
            if other is not None:
                message = f"{first_name} is on {tensor.device}, {name} on {other.device}: expected one device"
                torch._check(tensor.device == other.device, lambda message=message: message)

    @torch.library.register_fake("zerosum_ext::pair_loss")
    def _(
        pos: Tensor,
        neg: Tensor,
        aux_pos: Tensor | None,
        aux_neg: Tensor | None,
        weight: Tensor | None,
        loss: int,
        a: float,
        b: float,
        c: float,
        reduction: int,
        grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        _check_alike("pos", pos, neg=neg, aux_pos=aux_pos, aux_neg=aux_neg, weight=weight)
        torch._check(pos.dtype == neg.dtype, lambda: f"pos is {pos.dtype}, neg {neg.dtype}")
        name = _LOSS_NAMES[loss]
        if reduction != 0:
            value = pos.new_empty((), dtype=compute_dtype(pos.dtype))
        elif name in reference.QUAD_LOSSES or name in reference.ROW_LOSSES:
            value = pos.new_empty(pos.shape[:1])
        else:
            value = pos.new_empty(neg.shape)
        if not grad:
            return value, pos.new_empty((0,)), pos.new_empty((0,))
        return value, pos.new_empty(pos.shape), pos.new_empty(neg.shape)

    @torch.library.register_fake("zerosum_ext::macr_loss")
    def _(
        pos: Tensor,
        neg: Tensor,
        user_branch: Tensor,
        pos_branch: Tensor,
        neg_branch: Tensor,
        weight: Tensor | None,
        alpha: float,
        beta: float,
        reduction: int,
        grad: bool,
    ) -> tuple[Tensor, ...]:
        inputs = (pos, neg, user_branch, pos_branch, neg_branch)
        _check_alike("pos", pos, neg=neg, user_branch=user_branch, pos_branch=pos_branch, neg_branch=neg_branch)
        _check_alike("pos", pos, weight=weight)
        value = pos.new_empty(neg.shape) if reduction == 0 else pos.new_empty((), dtype=compute_dtype(pos.dtype))
        return value, *(pos.new_empty(t.shape if grad else (0,)) for t in inputs)


def pair_loss(
    pos: Tensor,
    neg: Tensor,
    aux_pos: Tensor | None,
    aux_neg: Tensor | None,
    weight: Tensor | None,
    loss: str,
    a: float,
    b: float,
    c: float,
    reduction: str,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value of a loss and, with ``grad``, its derivatives in ``pos`` and ``neg`` (else two empty tensors).

    pos [B] and neg [B] or [B, K], or both [B, 2] for the losses of two positives and two negatives. The constants
    aux_pos and aux_neg and the weight are [B] or [B, K], in the dtype of the arithmetic. Not differentiable itself.
    """
    if has_op("pair_loss", pos.device):
        return _pair_loss(pos, neg, aux_pos, aux_neg, weight, LOSS_IDS[loss], a, b, c, REDUCTIONS[reduction], grad)
    return reference.pair_loss(pos, neg, aux_pos, aux_neg, weight, loss, a, b, c, reduction, grad)


def macr_loss(
    scores: Sequence[Tensor],
    weight: Tensor | None,
    alpha: float,
    beta: float,
    reduction: str,
    grad: bool,
) -> tuple[Tensor, ...]:
    """Value of MACR and, with ``grad``, its derivatives in the five scores (else empty tensors).

    The scores are those of the positive and the negative, and of the user, positive and negative branch, each [B] or
    [B, K] like that of the negative; the weight [B] or [B, K], in the dtype of the arithmetic.
    """
    if has_op("macr_loss", scores[0].device):
        return _macr_loss(*scores, weight, alpha, beta, REDUCTIONS[reduction], grad)
    return reference.macr_loss(scores, weight, alpha, beta, reduction, grad)


# -------------------------------------------------------------------------------------------- matrix factorization


if _extension.CPU.loaded:
    _mf_loss = torch.ops.zerosum_ext.mf_loss.default
    _mf_gradient = torch.ops.zerosum_ext.mf_gradient.default
    _mf_update = torch.ops.zerosum_ext.mf_update.default
    _mf_train = torch.ops.zerosum_ext.mf_train.default
    _mf_train_sampled = torch.ops.zerosum_ext.mf_train_sampled.default

    @torch.library.register_fake("zerosum_ext::mf_loss")
    def _(
        user_embedding: Tensor,
        item_embedding: Tensor,
        item_bias: Tensor | None,
        users: Tensor,
        positives: Tensor,
        negatives: Tensor,
        constants: Tensor | None,
        weight: Tensor | None,
        loss: int,
        a: float,
        b: float,
        c: float,
        l2: float,
        reduction: int,
        grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        _check_alike(
            "user_embedding",
            user_embedding,
            item_embedding=item_embedding,
            item_bias=item_bias,
            users=users,
            positives=positives,
            negatives=negatives,
            constants=constants,
            weight=weight,
        )
        compute = compute_dtype(user_embedding.dtype)
        name = _LOSS_NAMES[loss]
        if reduction != 0:
            value = user_embedding.new_empty((), dtype=compute)
        elif name in reference.QUAD_LOSSES or name in reference.ROW_LOSSES:
            value = user_embedding.new_empty(users.shape)
        else:
            value = user_embedding.new_empty(negatives.shape)
        width = sum(1 if t.dim() == 1 else t.shape[1] for t in (positives, negatives))
        shape = (users.shape[0], width) if grad else (0,)
        return value, user_embedding.new_empty(shape, dtype=compute), users.new_empty((1,))

    @torch.library.register_fake("zerosum_ext::mf_train")
    def _(
        user_embedding: Tensor,
        item_embedding: Tensor,
        item_bias: Tensor | None,
        user_first: Tensor | None,
        user_second: Tensor | None,
        item_first: Tensor | None,
        item_second: Tensor | None,
        bias_first: Tensor | None,
        bias_second: Tensor | None,
        users: Tensor,
        positives: Tensor,
        negatives: Tensor,
        constants: Tensor | None,
        settings: Tensor,
        optimizer: int,
        loss: int,
        a: float,
        b: float,
        c: float,
        l2: float,
        longest: float,
        reduction: int,
        batch_size: int,
        asynchronous: bool,
    ) -> Tensor:
        steps = 1 if asynchronous else -(-users.shape[0] // batch_size)
        return user_embedding.new_empty((steps,), dtype=torch.float64)

    @torch.library.register_fake("zerosum_ext::mf_train_sampled")
    def _(
        user_embedding: Tensor,
        item_embedding: Tensor,
        item_bias: Tensor | None,
        user_first: Tensor | None,
        user_second: Tensor | None,
        item_first: Tensor | None,
        item_second: Tensor | None,
        bias_first: Tensor | None,
        bias_second: Tensor | None,
        indptr: Tensor,
        indices: Tensor,
        hint: Tensor,
        hint_shift: int,
        gaps: Tensor | None,
        active: Tensor | None,
        order: int,
        kept: int,
        total: int,
        begin: int,
        samples: int,
        positives: int,
        excluded_indptr: Tensor,
        excluded_indices: Tensor,
        filter: Tensor | None,
        slots: Tensor | None,
        masses: Tensor | None,
        num_items: int,
        k: int,
        seed: int,
        epoch: int,
        replacement: bool,
        constants: Tensor | None,
        settings: Tensor,
        optimizer: int,
        loss: int,
        a: float,
        b: float,
        c: float,
        l2: float,
        longest: float,
        reduction: int,
        batch_size: int,
        asynchronous: bool,
    ) -> Tensor:
        steps = 1 if asynchronous else -(-samples // batch_size)
        return user_embedding.new_empty((steps,), dtype=torch.float64)

    @torch.library.register_fake("zerosum_ext::mf_gradient")
    def _(
        user_embedding: Tensor,
        item_embedding: Tensor,
        users: Tensor,
        positives: Tensor,
        negatives: Tensor,
        coefficient: Tensor,
        scale: Tensor,
        l2: float,
        user: bool,
        item: bool,
        bias: bool,
        sparse: bool,
        padded: bool = False,
        atomics: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        _check_alike(
            "user_embedding",
            user_embedding,
            item_embedding=item_embedding,
            users=users,
            positives=positives,
            negatives=negatives,
            coefficient=coefficient,
            scale=scale,
        )
        nothing = (0,)
        if not sparse:
            return (
                users.new_empty(nothing),
                user_embedding.new_empty(user_embedding.shape if user else nothing),
                users.new_empty(nothing),
                item_embedding.new_empty(item_embedding.shape if item else nothing),
                item_embedding.new_empty(item_embedding.shape[:1] if bias else nothing),
            )
        width = user_embedding.shape[1]
        if padded and user_embedding.device.type == "cuda":
            num_users = min(users.shape[0], user_embedding.shape[0]) if user else 0
            num_items = min(coefficient.numel(), item_embedding.shape[0]) if item or bias else 0
        else:
            context = torch.library.get_ctx()
            num_users = context.new_dynamic_size() if user else 0  # type: ignore[assignment]
            num_items = context.new_dynamic_size() if item or bias else 0  # type: ignore[assignment]
        return (
            users.new_empty((num_users,)),
            user_embedding.new_empty((num_users, width) if user else nothing),
            users.new_empty((num_items,)),
            item_embedding.new_empty((num_items, width) if item else nothing),
            item_embedding.new_empty((num_items,) if bias else nothing),
        )

    @torch.library.register_fake("zerosum_ext::mf_update")
    def _(
        table: Tensor,
        first: Tensor | None,
        second: Tensor | None,
        rows: Tensor,
        values: Tensor,
        optimizer: int,
        lr: float,
        x: float,
        y: float,
        eps: float,
        step: float,
        lr_tensor: Tensor | None = None,
        step_tensor: Tensor | None = None,
    ) -> None:
        _check_alike("table", table, first=first, second=second, rows=rows, values=values)
        _check_alike("table", table, lr_tensor=lr_tensor, step_tensor=step_tensor)


def mf_loss(
    user_embedding: Tensor,
    item_embedding: Tensor,
    item_bias: Tensor | None,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    constants: Tensor | None,
    weight: Tensor | None,
    loss: str,
    a: float,
    b: float,
    c: float,
    l2: float,
    reduction: str,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """A loss of dot products of rows, and with ``grad`` its derivatives in the scores; only where there is a kernel.

    Tables [U, d] and [I, d] and bias [I] of one dtype, contiguous; ids int64, contiguous; constants [I] and weight in
    the dtype of the arithmetic. Third result int64 [1]: the first id out of range, counted through users, positives and
    negatives, else -1. See :func:`zerosum_ext.reference.losses.mf_loss_value`.
    """
    return _mf_loss(
        user_embedding,
        item_embedding,
        item_bias,
        users,
        positives,
        negatives,
        constants,
        weight,
        LOSS_IDS[loss],
        a,
        b,
        c,
        l2,
        REDUCTIONS[reduction],
        grad,
    )


def mf_gradient(
    user_embedding: Tensor,
    item_embedding: Tensor,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    coefficient: Tensor,
    scale: Tensor,
    l2: float,
    user: bool,
    item: bool,
    bias: bool,
    sparse: bool,
    padded: bool = False,
    atomics: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """From the derivatives in the scores, ``coefficient`` [B, J], those in the tables that are asked for.

    ``scale`` (one number) multiplies them; ``l2`` times each gathered row is added before. Returns user rows, user
    values, item rows, item values and bias values: dense with empty rows, or sparse with ascending distinct rows. How
    many those are, a GPU has to be asked; with ``padded`` it is not, and more rows may follow, all numbered as the
    table's end, whose values mean nothing. ``atomics``: on a GPU and in float32 or float64, dense gradients are summed
    in no certain order.
    """
    return _mf_gradient(
        user_embedding,
        item_embedding,
        users,
        positives,
        negatives,
        coefficient,
        scale,
        l2,
        user,
        item,
        bias,
        sparse,
        padded,
        atomics,
    )


def mf_update(
    table: Tensor,
    first: Tensor | None,
    second: Tensor | None,
    rows: Tensor,
    values: Tensor,
    optimizer: int,
    lr: float,
    x: float,
    y: float,
    eps: float,
    step: float,
    lr_tensor: Tensor | None = None,
    step_tensor: Tensor | None = None,
) -> None:
    """An optimizer's step on ``table`` in place, from what :func:`mf_gradient` gives with ``sparse``.

    All float32, contiguous. ``optimizer`` and what x and y mean: csrc/common/optimizers.h. ``first`` and ``second`` are
    torch.optim's state of the table. On a GPU rows beyond the table, with which ``padded`` fills up, are skipped.
    ``lr_tensor`` and ``step_tensor`` (one float32 or float64 number each, on the table's device) are read when the
    kernel runs, in place of ``lr`` and ``step``: a captured CUDA graph sees what they hold at each replay.
    """
    _mf_update(table, first, second, rows, values, optimizer, lr, x, y, eps, step, lr_tensor, step_tensor)


def mf_train(
    tables: Sequence[Tensor | None],
    states: Sequence[tuple[Tensor | None, Tensor | None]],
    samples: tuple[Any, ...],
    drawn: bool,
    constants: Tensor | None,
    settings: Tensor,
    optimizer: int,
    loss: str,
    a: float,
    b: float,
    c: float,
    l2: float,
    longest: float,
    reduction: str,
    batch_size: int,
    asynchronous: bool,
) -> Tensor:
    """Training steps on consecutive batches of the samples, in place; the loss of each, float64.

    tables: user embedding, item embedding, item bias or None; states: the two tensors of torch.optim's state of each.
    samples: users, positives and negatives, or (``drawn``) what the op needs to draw them while it trains, from indptr
    to replacement in its schema. ``settings`` and the rest: csrc/library.cpp and csrc/common/optimizers.h.
    """
    (user_first, user_second), (item_first, item_second), (bias_first, bias_second) = states
    state = (user_first, user_second, item_first, item_second, bias_first, bias_second)
    numbers = (a, b, c, l2, longest, REDUCTIONS[reduction], batch_size, asynchronous)
    op = _mf_train_sampled if drawn else _mf_train
    return op(*tables, *state, *samples, constants, settings, optimizer, LOSS_IDS[loss], *numbers)


# -------------------------------------------------------------------------------------------------------- sampling


if _extension.CPU.loaded:
    _sample_negatives = torch.ops.zerosum_ext.sample_negatives.default
    _sample_positives = torch.ops.zerosum_ext.sample_positives.default
    _has_items = torch.ops.zerosum_ext.has_items.default

    @torch.library.register_fake("zerosum_ext::sample_negatives")
    def _(
        users: Tensor,
        indptr: Tensor,
        indices: Tensor,
        filter: Tensor | None,
        slots: Tensor | None,
        masses: Tensor | None,
        num_items: int,
        k: int,
        seed: int,
        epoch: int,
        offset: int,
        replacement: bool,
        key: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        _check_alike("users", users, indptr=indptr, indices=indices, filter=filter, slots=slots, masses=masses, key=key)
        return users.new_empty((users.shape[0], k)), users.new_empty((1,))

    @torch.library.register_fake("zerosum_ext::sample_positives")
    def _(
        indptr: Tensor,
        indices: Tensor,
        hint: Tensor,
        hint_shift: int,
        gaps: Tensor | None,
        active: Tensor | None,
        order: int,
        kept: int,
        total: int,
        begin: int,
        rows: int,
        positives: int,
        seed: int,
        epoch: int,
        key: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        _check_alike("indptr", indptr, indices=indices, hint=hint, gaps=gaps, active=active, key=key)
        return indptr.new_empty((rows,)), indptr.new_empty((rows,) if positives == 1 else (rows, positives))

    @torch.library.register_fake("zerosum_ext::row_filter")
    def _(indptr: Tensor, indices: Tensor, num_items: int) -> Tensor:
        _check_alike("indptr", indptr, indices=indices)
        return indptr.new_empty((indices.shape[0] + 1,), dtype=torch.int16)

    @torch.library.register_fake("zerosum_ext::has_items")
    def _(
        users: Tensor, items: Tensor, indptr: Tensor, indices: Tensor, filter: Tensor | None, num_items: int
    ) -> Tensor:
        _check_alike("users", users, items=items, indptr=indptr, indices=indices, filter=filter)
        return users.new_empty((users.shape[0], items.shape[-1]), dtype=torch.bool)


def sample_negatives(
    users: Tensor,
    indptr: Tensor,
    indices: Tensor,
    filter: Tensor | None,
    slots: Tensor | None,
    masses: Tensor | None,
    num_items: int,
    k: int,
    seed: int,
    epoch: int,
    offset: int,
    replacement: bool,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Negatives int64 [rows, k] of users int64 [rows]; row r is sample number offset + r.

    ``filter`` (from :func:`row_filter`, or None) changes only the speed. Uniform over all items; with ``masses`` alone
    uniform over these ascending item numbers (int64); with ``slots`` int64 [2**bits] and ``masses`` int64
    [num_items + 1] weighted, by an alias table and its prefix sums. Second result int64 [1]: the first row that has no
    (or not enough) items to draw from, or whose user does not exist, else -1. ``key`` int64 [3] holds seed, epoch and
    offset in place of the numbers and is read when the kernel runs: a captured CUDA graph draws anew at each replay.
    """
    if has_op("sample_negatives", users.device):
        return _sample_negatives(
            users, indptr, indices, filter, slots, masses, num_items, k, seed, epoch, offset, replacement, key
        )
    if key is not None:
        seed, epoch, offset = key.tolist()
    return _sampling_reference.sample_negatives(
        users, indptr, indices, slots, masses, num_items, k, seed, epoch, offset, replacement
    )


def sample_positives(
    indptr: Tensor,
    indices: Tensor,
    hint: Tensor,
    hint_shift: int,
    gaps: Tensor | None,
    active: Tensor | None,
    order: int,
    kept: int,
    total: int,
    begin: int,
    rows: int,
    positives: int,
    seed: int,
    epoch: int,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Users int64 [rows] and positives int64 [rows] or [rows, 2] of samples begin .. begin + rows of an epoch of total.

    ``order``: 0 as stored, 1 shuffled, 2 interactions with replacement, 3 users with replacement, then one of their
    items. ``hint[b]`` is the user of interaction ``b << hint_shift``. ``gaps`` int64 [2, G] leaves users out (starts
    among the ``kept`` interactions, running totals of what is left out); ``active`` lists the users for order 3.
    ``key``: seed, epoch and begin, as for :func:`sample_negatives`. Samples beyond the epoch are an error on the CPU;
    on a GPU, where nobody looks at ``key``, they are those of the epoch's start.
    """
    if has_op("sample_positives", indptr.device):
        return _sample_positives(
            *(indptr, indices, hint, hint_shift, gaps, active, order, kept, total, begin, rows, positives),
            *(seed, epoch, key),
        )
    if key is not None:
        seed, epoch, begin = key.tolist()
    return _sampling_reference.sample_positives(
        indptr, indices, gaps, active, order, kept, total, begin, rows, positives, seed, epoch
    )


def row_filter(indptr: Tensor, indices: Tensor, num_items: int) -> Tensor | None:
    """The row filter (csrc/common/csr.h) int16 [nnz + 1]; None where no compiled kernel would use it."""
    if has_op("row_filter", indptr.device):
        return torch.ops.zerosum_ext.row_filter(indptr, indices, num_items)
    return None


def has_items(
    users: Tensor, items: Tensor, indptr: Tensor, indices: Tensor, filter: Tensor | None, num_items: int
) -> Tensor:
    """Whether users int64 [B] have items int64 [C] (every pair) or [B, C] (row by row): bool [B, C]."""
    if has_op("has_items", users.device):
        return _has_items(users, items, indptr, indices, filter, num_items)
    return _sampling_reference.has_items(users, items, indptr, indices)


# --------------------------------------------------------------------------------------------------------- ranking


if _extension.CPU.loaded:
    _rank_factors = torch.ops.zerosum_ext.rank_factors.default
    _rank_scores = torch.ops.zerosum_ext.rank_scores.default

    def _fake_ranking(like: Tensor, dtype: torch.dtype, users: Tensor, k: int) -> tuple[Tensor, ...]:
        # How many positives the users have is written in `offset`, a value.
        positives, n = torch.library.get_ctx().new_dynamic_size(), users.shape[0]
        shapes = ((positives,), (positives,), (n,), (n, k), (1,))
        return like.new_empty((positives,), dtype=dtype), *(users.new_empty(s, dtype=torch.int64) for s in shapes)

    @torch.library.register_fake("zerosum_ext::rank_factors")
    def _(
        user_factors: Tensor,
        item_factors: Tensor,
        item_bias: Tensor | None,
        users: Tensor,
        offset: Tensor,
        indptr: Tensor,
        indices: Tensor,
        excluded_indptr: Tensor | None,
        excluded_indices: Tensor | None,
        k: int,
        top_only: bool = False,
    ) -> tuple[Tensor, ...]:
        _check_alike("user_factors", user_factors, item_factors=item_factors, users=users)
        top_scores = user_factors.new_empty((users.shape[0], k))
        return *_fake_ranking(user_factors, user_factors.dtype, users, k), top_scores

    @torch.library.register_fake("zerosum_ext::rank_scores")
    def _(
        scores: Tensor,
        users: Tensor,
        offset: Tensor,
        indptr: Tensor,
        indices: Tensor,
        excluded_indptr: Tensor | None,
        excluded_indices: Tensor | None,
        k: int,
    ) -> tuple[Tensor, ...]:
        _check_alike("scores", scores, users=users, indptr=indptr, indices=indices)
        return _fake_ranking(scores, compute_dtype(scores.dtype), users, k)

    @torch.library.register_fake("zerosum_ext::user_metrics")
    def _(
        offset: Tensor,
        greater: Tensor,
        equal: Tensor,
        candidates: Tensor,
        popularity: Tensor,
        cutoffs: Tensor,
        ties: int,
    ) -> tuple[Tensor, ...]:
        n = candidates.shape[0]
        shapes = ((6, cutoffs.shape[0], n), (n,), (n,), (n,), (n,), popularity.shape)
        return tuple(popularity.new_empty(shape) for shape in shapes)

    @torch.library.register_fake("zerosum_ext::list_metrics")
    def _(lists: Tensor, values: Tensor, cutoffs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count, k, n, items = values.shape[0], cutoffs.shape[0], lists.shape[0], values.shape[1]
        return values.new_empty((count, k, n)), lists.new_empty((k, n)), lists.new_empty((k, items))


def rank_factors(
    user_factors: Tensor,
    item_factors: Tensor,
    item_bias: Tensor | None,
    users: Tensor,
    offset: Tensor,
    indptr: Tensor,
    indices: Tensor,
    excluded_indptr: Tensor | None,
    excluded_indices: Tensor | None,
    k: int,
    top_only: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Ranks held-out positives by the scores ``user_factors @ item_factors.T + item_bias``.

    Candidates are all items but the excluded ones; a held-out positive is always one. A user's results do not depend
    on the other users, nor on the number of threads.

    Args:
        user_factors, item_factors, item_bias: contiguous [U, d], [I, d] and [I] or None; fp32 or fp64.
        users: int64 [n], whom to rank for: rows of user_factors and of the CSRs.
        offset: int64 [n + 1], where each one's positives lie in the results: running totals of their numbers. On the
            CPU, whatever the device of the rest; one on a GPU has to be waited for.
        indptr, indices: CSR of the held-out positives [U, I], sorted; int64 and int32 or int64.
        excluded_indptr, excluded_indices: the same of the items that are no candidates, or None.
        k: length of the lists.
        top_only: that k or more candidates are above a positive is all that has to be known of those: then ``greater``
            is at least k and ``equal`` anything. Less work.

    Returns:
        scores [P] of the positives; greater, equal int64 [P], how many candidates are above, and how many others are
        level; candidates int64 [n]; top_items int64 [n, k], best first, of equal ones the lower number first, without
        those scored -inf, padded by -1; failed int64 [1], a row of ``users`` with a candidate scored NaN (the other
        results then are not to be used), or -1.
    """
    if has_op("rank_factors", user_factors.device):
        return _rank_factors(
            user_factors,
            item_factors,
            item_bias,
            users,
            offset,
            indptr,
            indices,
            excluded_indptr,
            excluded_indices,
            k,
            top_only,
        )[:6]
    # A matrix product of torch's and, where there is a kernel for it, the ranking of what it yields: so on CUDA.
    return _ranking_reference.rank_factors(
        *(user_factors, item_factors, item_bias, users, offset, indptr, indices, excluded_indptr, excluded_indices, k),
        rank=rank_scores,
    )


def best_items(
    user_factors: Tensor,
    item_factors: Tensor,
    item_bias: Tensor | None,
    users: Tensor,
    excluded_indptr: Tensor | None,
    excluded_indices: Tensor | None,
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The lists of :func:`rank_factors` alone, where ``has_op("rank_factors", device)``.

    Returns:
        top_items int64 [n, k] and their scores [n, k], -inf where there is no item; failed, as there.
    """
    none = excluded_indices.new_empty(0) if excluded_indices is not None else users.new_empty(0)
    nobody = users.new_zeros(user_factors.shape[0] + 1)
    offset = users.new_zeros(users.shape[0] + 1)
    found = _rank_factors(
        user_factors, item_factors, item_bias, users, offset, nobody, none, excluded_indptr, excluded_indices, k
    )
    return found[4], found[6], found[5]


def rank_scores(
    scores: Tensor,
    users: Tensor,
    offset: Tensor,
    indptr: Tensor,
    indices: Tensor,
    excluded_indptr: Tensor | None,
    excluded_indices: Tensor | None,
    k: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same for given scores [n, I] of any floating dtype, row r belonging to ``users[r]``.

    fp16 and bf16 are ranked and returned as fp32.
    """
    if has_op("rank_scores", scores.device):
        return _rank_scores(scores, users, offset, indptr, indices, excluded_indptr, excluded_indices, k)
    return _ranking_reference.rank_scores(
        scores.to(compute_dtype(scores.dtype)),
        users,
        offset,
        indptr,
        indices,
        excluded_indptr,
        excluded_indices,
        k,
    )


TIES = {"average": 0, "pessimistic": 1, "optimistic": 2}


def user_metrics(
    offset: Tensor, greater: Tensor, equal: Tensor, candidates: Tensor, popularity: Tensor, cutoffs: Tensor, ties: Ties
) -> tuple[Tensor, ...]:
    """Metrics of n users from the counts that a ranking op returns, as :mod:`zerosum_ext.metrics` defines them.

    Args:
        offset, greater, equal, candidates: as above; every user has a positive.
        popularity: float64 [P], of the positives.
        cutoffs: int64 [K], at least 1.
        ties: "average", "pessimistic" or "optimistic".

    Returns:
        Float64 results, NaN where undefined: at_k [6, K, n], of HR, recall, precision, NDCG, MRR and MAP; auc
        [n]; right [n], the number of (positive, negative) pairs in order; correlation [n], Spearman's of popularity and
        score among the positives; top_quantile [n], PopQ@1; quantile [P], (average place among the user's positives
        - 1) / (n_u - 1).
    """
    if has_op("user_metrics", offset.device):
        return torch.ops.zerosum_ext.user_metrics(offset, greater, equal, candidates, popularity, cutoffs, TIES[ties])
    return _ranking_reference.user_metrics(offset, greater, equal, candidates, popularity, cutoffs, ties)


def list_metrics(lists: Tensor, values: Tensor, cutoffs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the first k items of lists int64 [n, L] (-1 pads at the end) add up to, for each k of cutoffs int64 [K].

    Returns (sums float64 [V, K, n] of the rows of ``values`` float64 [V, I], lengths int64 [K, n], exposure int64
    [K, I]: in how many lists each item is).
    """
    if has_op("list_metrics", lists.device):
        return torch.ops.zerosum_ext.list_metrics(lists, values, cutoffs)
    return _ranking_reference.list_metrics(lists, values, cutoffs)


# ---------------------------------------------------------------------------------------- scores of all positives

if _extension.CPU.loaded:
    _csr_score_moments = torch.ops.zerosum_ext.csr_score_moments.default
    _csr_weighted_columns = torch.ops.zerosum_ext.csr_weighted_columns.default

    @torch.library.register_fake("zerosum_ext::csr_score_moments")
    def _(
        rows: Tensor, columns: Tensor, column_bias: Tensor | None, indptr: Tensor, indices: Tensor, column_x: Tensor
    ) -> Tensor:
        others = {"columns": columns, "column_bias": column_bias, "indptr": indptr, "indices": indices}
        _check_alike("rows", rows, column_x=column_x, **others)
        return rows.new_empty((3,), dtype=torch.float64)

    @torch.library.register_fake("zerosum_ext::csr_weighted_columns")
    def _(
        rows: Tensor,
        columns: Tensor,
        row_bias: Tensor | None,
        column_bias: Tensor | None,
        indptr: Tensor,
        indices: Tensor,
        row_x: Tensor | None,
        column_x: Tensor | None,
        slope: float,
    ) -> tuple[Tensor, Tensor]:
        others = {"columns": columns, "row_bias": row_bias, "column_bias": column_bias, "row_x": row_x}
        _check_alike("rows", rows, indptr=indptr, indices=indices, column_x=column_x, **others)
        return rows.new_empty(rows.shape), rows.new_empty((rows.shape[0],))


def csr_score_moments(
    rows: Tensor, columns: Tensor, column_bias: Tensor | None, indptr: Tensor, indices: Tensor, column_x: Tensor
) -> Tensor:
    """Sums of s, s^2 and s x over all entries of a CSR matrix, float64 [3].

    s is the score of an entry, <rows[r], columns[c]> + column_bias[c], and x a constant of its column, column_x [C].
    rows [R, d] and columns [C, d] are float32 or float64, contiguous, and the vectors of their dtype.
    """
    if has_op("csr_score_moments", rows.device):
        return _csr_score_moments(rows, columns, column_bias, indptr, indices, column_x)
    return reference.csr_score_moments(rows, columns, column_bias, indptr, indices, column_x)


def csr_weighted_columns(
    rows: Tensor,
    columns: Tensor,
    row_bias: Tensor | None,
    column_bias: Tensor | None,
    indptr: Tensor,
    indices: Tensor,
    row_x: Tensor | None,
    column_x: Tensor | None,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """For each row of a CSR matrix the sum of g columns[c] over its entries, [R, d], and the sum of g, [R].

    g = x + slope s with the score s of the entry (biases of both sides added) and a constant x of its row or its
    column: one of row_x [R] and column_x [C] is given.
    """
    arguments = (rows, columns, row_bias, column_bias, indptr, indices, row_x, column_x, slope)
    if has_op("csr_weighted_columns", rows.device):
        return _csr_weighted_columns(*arguments)
    return reference.csr_weighted_columns(*arguments)


# ---------------------------------------------------------------------------------------- the graph of users and items

if _extension.CPU.loaded:
    _graph_propagate = torch.ops.zerosum_ext.graph_propagate.default
    _graph_dropout = torch.ops.zerosum_ext.graph_dropout.default

    @torch.library.register_fake("zerosum_ext::graph_propagate")
    def _(
        users: Tensor,
        items: Tensor,
        indptr: Tensor,
        end: Tensor | None,
        indices: Tensor,
        row_scale: Tensor | None,
        column_scale: Tensor | None,
        factor: float,
    ) -> tuple[Tensor, Tensor]:
        others = {"indptr": indptr, "end": end, "indices": indices, "row_scale": row_scale}
        _check_alike("users", users, items=items, column_scale=column_scale, **others)
        return users.new_empty(users.shape), items.new_empty(items.shape)

    @torch.library.register_fake("zerosum_ext::graph_dropout")
    def _(
        indptr: Tensor, indices: Tensor, by_item: Tensor, num_users: int, seed: Tensor, share: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _check_alike("indptr", indptr, indices=indices, by_item=by_item, seed=seed)
        nodes = (indptr.shape[0] - 1,)
        end, transposed_end = indptr.new_empty(nodes), indptr.new_empty(nodes)
        return end, indices.new_empty(indices.shape), transposed_end, indices.new_empty(indices.shape)


def graph_propagate(
    users: Tensor,
    items: Tensor,
    indptr: Tensor,
    end: Tensor | None,
    indices: Tensor,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
    factor: float,
) -> tuple[Tensor, Tensor]:
    """What a square matrix, given by its pattern and by constants of rows and columns, makes of users and items.

    For each row r, factor * row_scale[r] * the sum of column_scale[c] x[c] over its entries c: for the rows of users
    [U, d], x are the items [I, d], and the other way round. Row r of the U + I has the entries indices[indptr[r] ..
    indptr[r + 1]), or ends before end[r]; scales [U + I] are one where None. Tables and scales have one dtype; below
    float32 the sums are still made in float32. indptr, end and indices are all int32 or all int64.
    """
    dtype = users.dtype
    if dtype not in (torch.float32, torch.float64):
        row_scale = None if row_scale is None else row_scale.float()
        column_scale = None if column_scale is None else column_scale.float()
        out = graph_propagate(users.float(), items.float(), indptr, end, indices, row_scale, column_scale, factor)
        return out[0].to(dtype), out[1].to(dtype)
    arguments = (users.contiguous(), items.contiguous(), indptr, end, indices, row_scale, column_scale, factor)
    if has_op("graph_propagate", users.device):
        return _graph_propagate(*arguments)
    return _graph_reference.graph_propagate(*arguments)


def graph_dropout(
    indptr: Tensor, indices: Tensor, by_item: Tensor, num_users: int, seed: Tensor, share: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Drops each entry with probability ``share``, on its own, and returns what stays of the matrix and its transpose.

    Entries and what stays as for :func:`graph_propagate`: (end, indices) of the matrix, (end, indices) of its
    transpose. Behind a row's end the indices mean nothing. ``by_item`` [interactions]: those of the items' rows, one
    row after another, by their numbers in the order of the users' rows. Entries are dropped by Philox under the key
    ``seed`` (int64, one number, on the device of the others), the same for any device and number of threads.
    """
    if has_op("graph_dropout", indptr.device):
        return _graph_dropout(indptr, indices, by_item, num_users, seed, share)
    return _graph_reference.graph_dropout(indptr, indices, by_item, num_users, seed, share)
