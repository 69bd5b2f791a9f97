"""zerosum_ext: train recommenders that do not just push what is popular.

Fused BPR, Zerosum and Pos2Neg2 losses, exact negative sampling, matrix factorization and bias metrics for
PyTorch.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from zerosum_ext import metrics
from zerosum_ext._library import build_info
from zerosum_ext._version import __version__
from zerosum_ext.data import datasets
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.data.sampling import TripletLoader, hardest_negatives, in_batch_mask, sample_negatives
from zerosum_ext.evaluation import Ranking, RankingMetrics, evaluate, rank
from zerosum_ext.losses import CustomLoss, functional, get_loss, loss_and_grad, mf_loss
from zerosum_ext.losses import modules as _modules
from zerosum_ext.losses.functional import *  # noqa: F403
from zerosum_ext.losses.modules import *  # noqa: F403
from zerosum_ext.models import (
    GMF,
    MACR,
    MLP,
    NGCF,
    Compensated,
    LightGCN,
    MACRLoss,
    MatrixFactorization,
    NeuMF,
    PopularityAdjusted,
    Recommender,
    get_method,
    get_model,
)
from zerosum_ext.training import PearsonRegularizer, fit, popularity_correlation

__all__ = [
    "GMF",
    "MACR",
    "MLP",
    "NGCF",
    "Compensated",
    "CustomLoss",
    "Interactions",
    "LightGCN",
    "MACRLoss",
    "MatrixFactorization",
    "NeuMF",
    "PearsonRegularizer",
    "PopularityAdjusted",
    "Ranking",
    "RankingMetrics",
    "Recommender",
    "TripletLoader",
    "__version__",
    "build_info",
    "datasets",
    "evaluate",
    "fit",
    "functional",
    "get_loss",
    "get_method",
    "get_model",
    "hardest_negatives",
    "in_batch_mask",
    "loss_and_grad",
    "metrics",
    "mf_loss",
    "popularity_correlation",
    "rank",
    "sample_negatives",
]
# All losses, as they are generated from their records.
__all__ += functional.__all__
__all__ += _modules.__all__

# Modules that not everybody needs, loaded when they are first asked for: zx.testing, zx.runs, ...
_LAZY = {
    "callbacks": "training.callbacks",
    "plots": "experiments.plots",
    "presets": "models.presets",
    "reproduce": "experiments.reproduce",
    "runs": "experiments.runs",
    "significance": "evaluation.significance",
    "testing": "testing",
}


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{_LAZY[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
