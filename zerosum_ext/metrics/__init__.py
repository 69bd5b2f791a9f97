"""Accuracy and popularity-bias metrics as pure functions.

Every function takes flat arrays (NumPy arrays, torch tensors of any device, or sequences), computes in
float64 on the CPU without a Python loop over users, and returns a float, or one value per user where
``reduction="none"``. (:func:`zerosum_ext.evaluate` computes where the scores are.) Two shapes of input occur:

- *Positives*: ``users``, ``items``, ``scores`` [P], one entry per evaluated positive, in any order.
- *Ranks*: ``users``, ``ranks`` [P], the 1-based places of the evaluated positives in their users' rankings,
  as :func:`positive_ranks` makes them.

``popularity`` is an array [num_items] of interaction counts, or an interaction matrix (scipy sparse, or an
object with a ``popularity`` attribute), whose counts per item are then taken. Which interactions to count
(train only, or all) is the caller's decision and is never guessed here.

A quantity without a value (a correlation with a constant, a mean over no user) is NaN unless its docstring
says otherwise.

References: [RCS22] Rhee, Cho, Suh, RecSys 2022; [ZHU21] Zhu et al., "Popularity-Opportunity Bias in
Collaborative Filtering", WSDM 2021; [ABD19] Abdollahpouri, Burke, Mobasher, "Managing Popularity Bias in
Recommender Systems with Personalized Re-ranking", FLAIRS 2019; [MN08] McSherry, Najork, "Computing
Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores", ECIR 2008; [ZHOU10]
Zhou et al., "Solving the apparent diversity-accuracy dilemma of recommender systems", PNAS 2010; [SAI20] Saito et al.,
"Unbiased Recommender Learning from Missing-Not-At-Random Implicit Feedback", WSDM 2020; [YAN18] Yang et al., "Unbiased
Offline Recommender Evaluation for Missing-Not-At-Random Implicit Feedback", RecSys 2018.
"""

from __future__ import annotations

from zerosum_ext.metrics.bias import average_ranks, pcc, pop_q_at_1, pri, pru, upo
from zerosum_ext.metrics.inputs import popularity_counts
from zerosum_ext.metrics.lists import aclt, aplt, arp, coverage, entropy, gini, long_tail, novelty, tail_share
from zerosum_ext.metrics.pairs import auc, pairwise_accuracy
from zerosum_ext.metrics.ranking import hit_rate, mean_average_precision, mrr, ndcg, positive_ranks, precision, recall
from zerosum_ext.metrics.records import MEASURES, Measure, measure_of
from zerosum_ext.metrics.sampled import sampled_hit, sampled_ndcg, sampled_ranks
from zerosum_ext.metrics.weighted import popularity_groups, propensities, weighted_ndcg, weighted_recall

__all__ = [
    "MEASURES",
    "Measure",
    "aclt",
    "aplt",
    "arp",
    "auc",
    "average_ranks",
    "coverage",
    "entropy",
    "gini",
    "hit_rate",
    "long_tail",
    "mean_average_precision",
    "measure_of",
    "mrr",
    "ndcg",
    "novelty",
    "pairwise_accuracy",
    "pcc",
    "pop_q_at_1",
    "popularity_counts",
    "popularity_groups",
    "positive_ranks",
    "precision",
    "pri",
    "propensities",
    "pru",
    "recall",
    "sampled_hit",
    "sampled_ndcg",
    "sampled_ranks",
    "tail_share",
    "upo",
    "weighted_ndcg",
    "weighted_recall",
]
