"""zerosum_ext: train recommenders that do not just push what is popular.

Fused BPR, Zerosum and Pos2Neg2 losses, exact negative sampling, matrix factorization and bias metrics for
PyTorch.
"""

from __future__ import annotations

__version__ = "0.1.0"

from zerosum_ext import datasets, metrics
from zerosum_ext._extension import build_info
from zerosum_ext.evaluation import Ranking, evaluate, rank
from zerosum_ext.interactions import Interactions
from zerosum_ext.losses import (
    BPRLoss,
    Pos2Neg2Loss,
    ZerosumLoss,
    bpr_loss,
    pos2neg2_loss,
    zerosum_loss,
)
from zerosum_ext.sampling import TripletLoader, hardest_negatives, in_batch_mask, sample_negatives

__all__ = [
    "BPRLoss",
    "Interactions",
    "Pos2Neg2Loss",
    "Ranking",
    "TripletLoader",
    "ZerosumLoss",
    "bpr_loss",
    "build_info",
    "datasets",
    "evaluate",
    "hardest_negatives",
    "in_batch_mask",
    "metrics",
    "pos2neg2_loss",
    "rank",
    "sample_negatives",
    "zerosum_loss",
]
