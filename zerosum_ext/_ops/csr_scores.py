"""The ops of sums over the scores of all positives, which are never stored."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from zerosum_ext import reference
from zerosum_ext._ops.common import fake_kernel, kernel_or_definition

csr_score_moments = kernel_or_definition("csr_score_moments", reference.csr_score_moments)
csr_weighted_columns = kernel_or_definition("csr_weighted_columns", reference.csr_weighted_columns)


@fake_kernel("csr_score_moments")
def _fake_csr_score_moments(given: SimpleNamespace) -> Tensor:
    moments: Tensor = given.rows.new_empty((3,), dtype=torch.float64)
    return moments


@fake_kernel("csr_weighted_columns")
def _fake_csr_weighted_columns(given: SimpleNamespace) -> tuple[Tensor, Tensor]:
    return given.rows.new_empty(given.rows.shape), given.rows.new_empty((given.rows.shape[0],))
