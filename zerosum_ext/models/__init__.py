"""From parameters to scores: models, wrappers around them, and both by name."""

from zerosum_ext.models.base import DotProductRecommender, Recommender
from zerosum_ext.models.folding import usual_l2
from zerosum_ext.models.graph import NGCF, LightGCN
from zerosum_ext.models.mf import MatrixFactorization
from zerosum_ext.models.neural import GMF, MLP, NeuMF
from zerosum_ext.models.registry import (
    MethodParts,
    get_method,
    get_model,
    method_names,
    method_options,
    model_names,
    trained_directly,
)
from zerosum_ext.models.streaming import write_recommendations
from zerosum_ext.models.wrappers import MACR, Compensated, MACRLoss, PopularityAdjusted, choose
from zerosum_ext.models.yardsticks import EASE, IALS, MostPopular

__all__ = [
    "EASE",
    "GMF",
    "IALS",
    "MACR",
    "MLP",
    "NGCF",
    "Compensated",
    "DotProductRecommender",
    "LightGCN",
    "MACRLoss",
    "MatrixFactorization",
    "MethodParts",
    "MostPopular",
    "NeuMF",
    "PopularityAdjusted",
    "Recommender",
    "choose",
    "get_method",
    "get_model",
    "method_names",
    "method_options",
    "model_names",
    "trained_directly",
    "usual_l2",
    "write_recommendations",
]
