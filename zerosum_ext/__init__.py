"""zerosum_ext: train recommenders that do not just push what is popular.

Fused BPR, Zerosum and Pos2Neg2 losses, exact negative sampling, matrix factorization and bias metrics for
PyTorch.

Importing the package loads nothing else: each name brings its room, and with it torch, when it is first asked for.
That is why ``zerosum-ext --help`` answers at once. EAGER_IMPORT=1 in the environment loads everything with the package.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from zerosum_ext._names import LOSSES
from zerosum_ext._version import __version__

if TYPE_CHECKING:  # what editors and type checkers see
    from zerosum_ext import metrics
    from zerosum_ext import testing as testing
    from zerosum_ext._library import build_info
    from zerosum_ext.data import datasets
    from zerosum_ext.data.interactions import Interactions
    from zerosum_ext.data.sampling import TripletLoader, hardest_negatives, in_batch_mask, sample_negatives
    from zerosum_ext.evaluation import Ranking, RankingMetrics, evaluate, rank
    from zerosum_ext.evaluation import significance as significance
    from zerosum_ext.experiments import plots as plots
    from zerosum_ext.experiments import reproduce as reproduce
    from zerosum_ext.experiments import runs as runs
    from zerosum_ext.experiments.compare import compare as compare
    from zerosum_ext.losses import CustomLoss, functional, get_loss, loss_and_grad, mf_loss
    from zerosum_ext.losses.functional import *  # noqa: F403
    from zerosum_ext.losses.modules import *  # noqa: F403
    from zerosum_ext.models import (
        EASE,
        GMF,
        IALS,
        MACR,
        MLP,
        NGCF,
        Compensated,
        LightGCN,
        MACRLoss,
        MatrixFactorization,
        MostPopular,
        NeuMF,
        PopularityAdjusted,
        Recommender,
        get_method,
        get_model,
    )
    from zerosum_ext.models import export as export
    from zerosum_ext.models import presets as presets
    from zerosum_ext.training import PearsonRegularizer, fit, popularity_correlation
    from zerosum_ext.training import callbacks as callbacks

__all__ = [
    "EASE",
    "GMF",
    "IALS",
    "MACR",
    "MLP",
    "NGCF",
    "Compensated",
    "CustomLoss",
    "Interactions",
    "LightGCN",
    "MACRLoss",
    "MatrixFactorization",
    "MostPopular",
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
__all__ += list(LOSSES)

# Where a name is found: the module that defines it, or the module that has this name itself. tests/test_package.py
# compares this table with the imports above.
_HOMES: dict[str, str] = {
    name: home
    for home, names in {
        "_library": ("build_info",),
        "data.interactions": ("Interactions",),
        "data.sampling": ("TripletLoader", "hardest_negatives", "in_batch_mask", "sample_negatives"),
        "evaluation": ("Ranking", "RankingMetrics", "evaluate", "rank"),
        "experiments.compare": ("compare",),
        "losses": ("CustomLoss", "get_loss", "loss_and_grad", "mf_loss"),
        "models": ("GMF", "MACR", "MLP", "NGCF", "Compensated", "LightGCN", "MACRLoss", "MatrixFactorization")
        + ("EASE", "IALS", "MostPopular", "NeuMF", "PopularityAdjusted", "Recommender", "get_method", "get_model"),
        "training": ("PearsonRegularizer", "fit", "popularity_correlation"),
    }.items()
    for name in names
} | LOSSES
_MODULES: dict[str, str] = {
    "callbacks": "training.callbacks",
    "datasets": "data.datasets",
    "export": "models.export",
    "functional": "losses.functional",
    "metrics": "metrics",
    "plots": "experiments.plots",
    "presets": "models.presets",
    "reproduce": "experiments.reproduce",
    "runs": "experiments.runs",
    "significance": "evaluation.significance",
    "testing": "testing",
}


def __getattr__(name: str) -> Any:
    """Load what a name stands for, the first time that it is asked for."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    else:  # a module of the table, or a room under its own name
        module = f"{__name__}.{_MODULES.get(name, name)}"
        try:
            value = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_HOMES, *_MODULES})


if os.environ.get("EAGER_IMPORT"):
    for _name in __all__:
        getattr(sys.modules[__name__], _name)
elif "torch" in sys.modules:  # then torch.ops.zerosum_ext is expected to be there
    importlib.import_module("zerosum_ext._library")
