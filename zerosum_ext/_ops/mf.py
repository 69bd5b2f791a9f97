"""The ops of matrix factorization: a loss of dot products of embedding rows, its gradients, and training steps."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from zerosum_ext._ops.common import REDUCTIONS, fake_kernel, overload
from zerosum_ext._ops.losses import fake_loss_value, loss_number
from zerosum_ext.reference import Kernel, compute_dtype

_mf_loss = overload("mf_loss")
_mf_step = overload("mf_step")
_mf_train = overload("mf_train")
_mf_train_sampled = overload("mf_train_sampled")

#: From the derivatives in the scores, ``coefficient`` [B, J], those in the tables that are asked for.
#:
#: ``scale`` (one number) multiplies them; ``l2`` times each gathered row is added before. The op returns user rows,
#: user values, item rows, item values and bias values: dense with empty rows, or sparse with ascending distinct rows.
#: A GPU would have to be asked how many rows those are. With ``padded`` it is not asked: more rows may follow, all
#: numbered as the table's end, whose values mean nothing. ``atomics``: on a GPU and in float32 or float64, dense
#: gradients are summed in no certain order. Arguments: the schema in csrc/library.cpp.
mf_gradient = overload("mf_gradient")


def mf_loss(
    user_embedding: Tensor,
    item_embedding: Tensor,
    item_bias: Tensor | None,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    constants: Tensor | None,
    weight: Tensor | None,
    kernel: Kernel,
    l2: float,
    reduction: str,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a loss of dot products of rows and, with ``grad``, its derivatives in the scores.

    Only where there is a kernel; the definition is :func:`zerosum_ext.reference.mf_loss_value`.

    Args:
        user_embedding, item_embedding, item_bias: [U, d], [I, d] and [I] or None, of one dtype, contiguous.
        users, positives, negatives: int64, contiguous.
        constants: [I], those that the loss takes beside each item, in the dtype of the arithmetic.
        weight: of each sample, in the dtype of the arithmetic.
        kernel: the compiled loss and its parameters.
        l2: times half the summed squared norms of each sample's rows is added.
        reduction, grad: as for :func:`zerosum_ext._ops.pair_loss`.

    Returns:
        (value, derivatives [B, J], int64 [1]: the first id that is out of range, counted through users, positives and
        negatives, else -1).
    """
    name, a, b, c = kernel
    tensors = (user_embedding, item_embedding, item_bias, users, positives, negatives, constants, weight)
    value, coefficient, failed = _mf_loss(*tensors, loss_number(name), a, b, c, l2, REDUCTIONS[reduction], grad)
    return value, coefficient, failed


# Three arguments above the limit: the op takes 36, which are grouped here.
def mf_step(
    tables: Sequence[Tensor | None],
    states: Sequence[tuple[Tensor | None, Tensor | None]],
    samples: tuple[Tensor, Tensor, Tensor],
    constants: Tensor | None,
    settings: Tensor,
    numbers: Sequence[tuple[Tensor | None, Tensor | None]],
    total: Tensor | None,
    optimizer: int,
    kernel: Kernel,
    l2: float,
    longest: float,
    reduction: str,
    weight: Tensor | None = None,
    normalize: bool = False,
    shared: tuple[Tensor, Tensor, Tensor, Tensor, int] | None = None,
) -> Tensor:
    """Train on one batch, in place, and return its reduced loss without L2, a float64 scalar.

    An empty batch is no step.

    Args:
        tables, states, constants, optimizer, kernel, l2, longest, reduction: as for :func:`mf_train`.
        samples: users, positives and negatives, int64, contiguous.
        settings: float64 [3, 6] on the CPU: csrc/library.cpp.
        numbers: of each table its learning rate and the number of the step before (float32 or float64 scalars on the
            tables' device), or None for those of ``settings``. They are read when the kernels run, and the step's is
            moved on: a captured CUDA graph goes on with what it finds.
        total: a float64 scalar that the loss summed over the samples is added to, or None.
        weight: float32 [B], of each sample.
        normalize: scores are cosines; on a GPU of rows of at most 256 numbers, or of 64 where rows do not begin at
            multiples of 16 bytes.
        shared: lists of negatives, start, held, alone and the number of samples that share a list
            (csrc/library.cpp). The negatives of ``samples`` are then those of samples that share nothing.
    """
    name, a, b, c = kernel
    tensors = (*tables, *(t for state in states for t in state), *samples, constants, settings)
    of_each = (t for pair in numbers for t in pair)
    constant = (optimizer, loss_number(name), a, b, c, l2, longest, REDUCTIONS[reduction])
    parts = (None, None, None, None, 0) if shared is None else shared
    value: Tensor = _mf_step(*tensors, *of_each, total, *constant, weight, normalize, *parts)
    return value


# Three arguments above the limit: the op takes 25 or 45, which are grouped here.
def mf_train(
    tables: Sequence[Tensor | None],
    states: Sequence[tuple[Tensor | None, Tensor | None]],
    samples: tuple[Any, ...],
    drawn: bool,
    constants: Tensor | None,
    settings: Tensor,
    optimizer: int,
    kernel: Kernel,
    l2: float,
    longest: float,
    reduction: str,
    batch_size: int,
    asynchronous: bool,
    normalize: bool,
    weights: Tensor | None = None,
) -> Tensor:
    """Train on consecutive batches of the samples, in place, and return the loss of each batch, float64.

    Args:
        tables: user embedding, item embedding, item bias or None.
        states: the two tensors of torch.optim's state of each table.
        samples: users, positives and negatives; or (``drawn``) what the op needs to draw them while it trains, from
            indptr to replacement in its schema.
        drawn: which of the two the samples are.
        constants: [I], as for :func:`mf_loss`.
        settings: float64 [3, 6]: csrc/library.cpp.
        optimizer: its number, see csrc/common/optimizers.h.
        kernel, l2, reduction: as for :func:`mf_loss`.
        longest: rows of gradients are scaled down to this norm, if it is > 0.
        batch_size: samples of a batch.
        asynchronous: Hogwild SGD, sample by sample; the result is then one number.
        normalize: scores are cosines of the rows, to which a bias is added.
        weights: float32 [nnz], those of the entries of the matrix from which samples are drawn, and so of the samples;
            None with samples that are given.
    """
    name, a, b, c = kernel
    op = _mf_train_sampled if drawn else _mf_train
    numbers = (optimizer, loss_number(name), a, b, c, l2, longest, REDUCTIONS[reduction])
    steps = (batch_size, asynchronous, normalize, *(() if weights is None else (weights,)))
    of_tables = (*tables, *(t for state in states for t in state))
    values: Tensor = op(*of_tables, *samples, constants, settings, *numbers, *steps)
    return values


@fake_kernel("mf_loss")
def _fake_mf_loss(given: SimpleNamespace) -> tuple[Tensor, Tensor, Tensor]:
    user, users, ids = given.user_embedding, given.users, (given.positives, given.negatives)
    width = sum(1 if t.dim() == 1 else t.shape[1] for t in ids)
    coefficient = user.new_empty((users.shape[0], width) if given.grad else (0,), dtype=compute_dtype(user.dtype))
    return fake_loss_value(given, user, users, given.negatives), coefficient, users.new_empty((1,))


@fake_kernel("mf_train", elsewhere=("settings",))
def _fake_mf_train(given: SimpleNamespace) -> Tensor:
    steps = 1 if given.asynchronous else -(-given.users.shape[0] // given.batch_size)
    values: Tensor = given.user_embedding.new_empty((steps,), dtype=torch.float64)
    return values


@fake_kernel("mf_train_sampled", elsewhere=("settings",))
def _fake_mf_train_sampled(given: SimpleNamespace) -> Tensor:
    steps = 1 if given.asynchronous else -(-given.samples // given.batch_size)
    values: Tensor = given.user_embedding.new_empty((steps,), dtype=torch.float64)
    return values


@fake_kernel("mf_gradient")
def _fake_mf_gradient(given: SimpleNamespace) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    user, item, users, nothing = given.user_embedding, given.item_embedding, given.users, (0,)
    if not given.sparse:
        return (
            users.new_empty(nothing),
            user.new_empty(user.shape if given.user else nothing),
            users.new_empty(nothing),
            item.new_empty(item.shape if given.item else nothing),
            item.new_empty(item.shape[:1] if given.bias else nothing),
        )
    of_items = given.item or given.bias
    num_users: Any
    num_items: Any
    if given.padded and user.device.type == "cuda":
        num_users = min(users.shape[0], user.shape[0]) if given.user else 0
        num_items = min(given.coefficient.numel(), item.shape[0]) if of_items else 0
    else:
        context = torch.library.get_ctx()
        num_users = context.new_dynamic_size() if given.user else 0
        num_items = context.new_dynamic_size() if of_items else 0
    width = user.shape[1]
    return (
        users.new_empty((num_users,)),
        user.new_empty((num_users, width) if given.user else nothing),
        users.new_empty((num_items,)),
        item.new_empty((num_items, width) if given.item else nothing),
        item.new_empty((num_items,) if given.bias else nothing),
    )


@fake_kernel("mf_step", elsewhere=("settings",))
def _fake_mf_step(given: SimpleNamespace) -> Tensor:
    value: Tensor = given.user_embedding.new_empty((), dtype=torch.float64)
    return value
