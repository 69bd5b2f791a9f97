"""From batches to updated parameters: ``fit``, its engines, and what can be added to a run."""

from zerosum_ext.training.fused import FusedStep, fused_obstacle
from zerosum_ext.training.history import Callback, EpochEnd, History, StopTraining
from zerosum_ext.training.loop import fit
from zerosum_ext.training.regularizers import PearsonRegularizer, Regularizer, popularity_correlation
from zerosum_ext.training.settings import require_bias
from zerosum_ext.training.validation import parse_metric

__all__ = [
    "Callback",
    "EpochEnd",
    "FusedStep",
    "History",
    "PearsonRegularizer",
    "Regularizer",
    "StopTraining",
    "fit",
    "fused_obstacle",
    "parse_metric",
    "popularity_correlation",
    "require_bias",
]
