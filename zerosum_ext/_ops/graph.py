"""The ops on the graph of users and items."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from zerosum_ext import reference
from zerosum_ext._ops.common import fake_kernel, kernel_or_definition

graph_dropout = kernel_or_definition("graph_dropout", reference.graph_dropout)
_graph_propagate = kernel_or_definition("graph_propagate", reference.graph_propagate)


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
    """Multiply a matrix of the graph with users and items, as :func:`zerosum_ext.reference.graph_propagate` does.

    Tables below float32 are widened first, so that sums are made in float32, and the results are narrowed.
    """
    dtype = users.dtype
    if dtype in (torch.float32, torch.float64):
        tables = (users.contiguous(), items.contiguous())
        return _graph_propagate(*tables, indptr, end, indices, row_scale, column_scale, factor)
    row_scale = None if row_scale is None else row_scale.float()
    column_scale = None if column_scale is None else column_scale.float()
    out = graph_propagate(users.float(), items.float(), indptr, end, indices, row_scale, column_scale, factor)
    return out[0].to(dtype), out[1].to(dtype)


@fake_kernel("graph_propagate")
def _fake_graph_propagate(given: SimpleNamespace) -> tuple[Tensor, Tensor]:
    return given.users.new_empty(given.users.shape), given.items.new_empty(given.items.shape)


@fake_kernel("graph_dropout")
def _fake_graph_dropout(given: SimpleNamespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    indptr, indices = given.indptr, given.indices
    nodes = (indptr.shape[0] - 1,)
    end, transposed_end = indptr.new_empty(nodes), indptr.new_empty(nodes)
    return end, indices.new_empty(indices.shape), transposed_end, indices.new_empty(indices.shape)
