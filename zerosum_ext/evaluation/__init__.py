"""From rankings to numbers: accuracy, popularity bias and exposure of a recommender, in one pass."""

from zerosum_ext.evaluation.batches import RankingMetrics
from zerosum_ext.evaluation.breakdowns import by_group, by_popularity
from zerosum_ext.evaluation.full import evaluate
from zerosum_ext.evaluation.ranking import Ranking, rank
from zerosum_ext.evaluation.sampled import sampled_ranks
from zerosum_ext.evaluation.table import (
    AT_K_METRICS,
    METRICS,
    PER_USER_METRICS,
    SAMPLED_METRICS,
    WEIGHTED_METRICS,
    compute,
    per_user,
)

__all__ = [
    "AT_K_METRICS",
    "METRICS",
    "PER_USER_METRICS",
    "SAMPLED_METRICS",
    "WEIGHTED_METRICS",
    "Ranking",
    "RankingMetrics",
    "by_group",
    "by_popularity",
    "compute",
    "evaluate",
    "per_user",
    "rank",
    "sampled_ranks",
]
