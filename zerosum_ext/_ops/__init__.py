"""How tensors reach kernels: one callable per op, compiled where the device has a kernel, else its definition."""

from zerosum_ext._ops.common import GPU_OBSTACLES, KERNELS, REDUCTIONS, capturing, finish, gpu_obstacle, has_op
from zerosum_ext._ops.csr import csr_build
from zerosum_ext._ops.csr_scores import csr_score_moments, csr_weighted_columns
from zerosum_ext._ops.folding import fold_in
from zerosum_ext._ops.graph import graph_dropout, graph_propagate
from zerosum_ext._ops.losses import LOSS_IDS, loss_number, macr_loss, pair_loss, scale_gradients
from zerosum_ext._ops.mf import mf_gradient, mf_loss, mf_step, mf_train
from zerosum_ext._ops.ranking import (
    TIES,
    best_items,
    best_of_scores,
    list_metrics,
    rank_factors,
    rank_scores,
    user_metrics,
)
from zerosum_ext._ops.sampling import (
    has_items,
    row_filter,
    sample_negatives,
    sample_negatives_at,
    sample_positives,
    unshuffle,
)
from zerosum_ext._ops.text_ids import integer_ids, text_ids

__all__ = [
    "GPU_OBSTACLES",
    "KERNELS",
    "LOSS_IDS",
    "REDUCTIONS",
    "TIES",
    "best_items",
    "best_of_scores",
    "capturing",
    "csr_build",
    "csr_score_moments",
    "csr_weighted_columns",
    "finish",
    "fold_in",
    "gpu_obstacle",
    "graph_dropout",
    "graph_propagate",
    "has_items",
    "has_op",
    "integer_ids",
    "list_metrics",
    "loss_number",
    "macr_loss",
    "mf_gradient",
    "mf_loss",
    "mf_step",
    "mf_train",
    "pair_loss",
    "rank_factors",
    "rank_scores",
    "row_filter",
    "sample_negatives",
    "sample_negatives_at",
    "sample_positives",
    "scale_gradients",
    "text_ids",
    "unshuffle",
    "user_metrics",
]
