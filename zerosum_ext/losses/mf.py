"""A loss of matrix factorization scores straight from the tables: gather, dot products, loss and gradients in one."""

from __future__ import annotations

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
from zerosum_ext._ops import autograd
from zerosum_ext.losses.base import Loss
from zerosum_ext.losses.registry import compiled_loss, get_loss
from zerosum_ext.reference import SHAPES, compute_dtype, mf_items, mf_scores, reduce, split_scores

Tables = tuple[Tensor, Tensor, Tensor | None]
Ids = tuple[Tensor, Tensor, Tensor]


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
    """Return a loss of matrix factorization scores ``<P_u, Q_i> (+ b_i)``, straight from the tables.

    It equals gathering the rows, multiplying them and calling the loss ([BPR09] section 4.3.1), but the gathered blocks
    [B, d] never exist. Forward keeps one number for each score; backward sums the rows' gradients in the order of the
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
            choose if a batch touches few of the rows. Under ``create_graph=True`` gradients are dense.
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

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> model = zx.MatrixFactorization(3, 4, embedding_dim=8, seed=0)
        >>> users, positives, negatives = torch.tensor([[0, 1], [0, 2], [3, 1]])
        >>> loss = zx.mf_loss(model.user_embedding, model.item_embedding, users, positives, negatives, loss="bpr")
        >>> loss.backward()
        >>> model.user_embedding.grad.shape
        torch.Size([3, 8])
    """
    tables = _checked_tables(user_embedding, item_embedding, item_bias)
    l2 = require_finite_number("l2", l2, minimum=0)
    module, reduction = _checked_loss(loss, reduction)
    if l2 and reduction == "none":
        raise ValueError(f"l2: expected 0 with reduction 'none', got {l2}")
    kernel = compiled_loss(module)
    row = kernel is not None and SHAPES[kernel.loss] == "row"
    quad = getattr(module, "num_positives", 1) == 2
    ids = _checked_ids(users, positives, negatives, quad, row, user_embedding.device)
    if kernel is None or not _ops.has_op("mf_loss", user_embedding.device):
        _check_range(*ids, user_embedding, item_embedding)
    if sample_weight is not None:
        sample_weight = _checked_weight(sample_weight, ids, quad or row, user_embedding)
    if kernel is None:
        return _composed(tables, ids, module, l2, sample_weight, sparse)
    constants = _checked_constants(module, item_embedding)
    user, item, bias = (None if t is None else t.contiguous() for t in tables)
    assert user is not None
    assert item is not None
    options = autograd.MfOptions(kernel, l2, reduction)
    return autograd.mf_loss(user, item, bias, ids, constants, sample_weight, options, sparse, deterministic)


def _checked_tables(user: Tensor, item: Tensor, bias: Tensor | None) -> Tables:
    """Check the embeddings and the bias, and return them."""
    require_floating("user_embedding", user)
    require_floating("item_embedding", item)
    tables = {"user_embedding": user, "item_embedding": item}
    for name, table in tables.items():
        if table.dim() != 2:
            raise ValueError(f"{name}: expected shape [rows, d], got {describe(table)}")
    if item.shape[1] != user.shape[1]:
        raise ValueError(
            f"item_embedding: expected {user.shape[1]} columns as user_embedding has, got {describe(item)}"
        )
    if bias is not None:
        require_floating("item_bias", bias)
        if bias.shape != item.shape[:1]:
            raise ValueError(f"item_bias: expected shape ({item.shape[0]},), got {describe(bias)}")
        tables["item_bias"] = bias
    for name, table in tables.items():
        require_same_device(name, table, "user_embedding", user)
        if table.dtype != user.dtype:
            raise ValueError(f"{name}: expected {user.dtype} as user_embedding, got {describe(table)}")
    return user, item, bias


def _checked_loss(loss: str | nn.Module, reduction: str | None) -> tuple[nn.Module, str]:
    """Return the loss as a module, and its reduction."""
    module = get_loss(loss) if isinstance(loss, str) else loss
    if not isinstance(module, nn.Module):
        raise TypeError(f"loss: expected a name or an nn.Module, got {describe(loss)}")
    own = str(getattr(module, "reduction", "mean"))
    if reduction is None:
        return module, own
    if isinstance(loss, str):
        require_choice("reduction", reduction, tuple(_ops.REDUCTIONS))
    elif reduction != own:
        raise ValueError(f"reduction: expected {own!r}, that of the loss module given, or None, got {reduction!r}")
    return module, reduction


def _checked_weight(weight: Tensor, ids: Ids, by_row: bool, like: Tensor) -> Tensor:
    """Check the weight of each sample, and return it in the dtype of the arithmetic."""
    users, _, negatives = ids
    require_floating("sample_weight", weight)
    require_same_device("sample_weight", weight, "user_embedding", like)
    shapes = {users.shape} if by_row else {users.shape, negatives.shape}
    if weight.shape not in shapes:
        either = " or ".join(str(tuple(s)) for s in sorted(shapes, key=len))
        raise ValueError(f"sample_weight: expected shape {either}, got {describe(weight)}")
    return weight.to(compute_dtype(like.dtype)).contiguous()


def _checked_constants(module: nn.Module, item: Tensor) -> Tensor | None:
    """Return the constants that the loss takes beside each item, in the dtype of the arithmetic."""
    assert isinstance(module, Loss)  # a compiled loss is one
    constants = module.item_constants()
    if constants is None:
        return None
    if constants.shape != item.shape[:1]:
        raise ValueError(
            f"loss: expected constants of {item.shape[0]} items, got {type(module).__name__} with "
            f"{tuple(constants.shape)}"
        )
    require_same_device("loss", constants, "user_embedding", item)
    return constants.to(compute_dtype(item.dtype)).contiguous()


def _checked_ids(
    users: Tensor, positives: Tensor, negatives: Tensor, quad: bool, row: bool, device: torch.device
) -> Ids:
    """Check the shapes of the samples, and return the ids as contiguous int64."""
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
        if row:
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


def _composed(tables: Tables, ids: Ids, loss: nn.Module, l2: float, weight: Tensor | None, sparse: bool) -> Tensor:
    """Return the same for a module that is not of the library: its scores by PyTorch, then the module."""
    (user, item, bias), (users, positives, negatives) = tables, ids
    items = mf_items(positives, negatives)
    scores, norms = mf_scores(user, item, bias, users, items, sparse)
    options: dict[str, Tensor] = {} if weight is None else {"sample_weight": weight}
    if getattr(loss, "needs_items", False):
        options |= {"pos_items": positives, "neg_items": negatives}
    value: Tensor = loss(*split_scores(scores, positives, negatives), **options)
    return value + l2 * reduce(norms, getattr(loss, "reduction", "mean")) if l2 else value
