"""Runs: methods trained side by side on one split of real interactions, in a folder.

    run = runs.train("ratings.csv", "runs/mine", runs.Method(loss="zerosum", weight=0.9))
    run.metrics["zerosum"]["ndcg@10"], run.metrics["bpr"]["ndcg@10"]
    runs.Run.open("runs/mine").recommend(["alice"], 10)

The folder holds everything that the figures follow from and all that recommending needs:

.. code-block:: text

    config.json         data, split, hyper-parameters of every method, versions
    interactions.npz    the interactions with their external ids, and which part of the split each belongs to
    METHOD/             model.safetensors, history.json, metrics.json; checkpoint.pt while it is being trained; log.csv,
                        tensorboard/ and card.md where asked for
    weights/            models of the weights that were tried, and search.json, where the weight was searched for
    metrics.json        {method: {metric: value}}
    history.csv         one row for each epoch of each method
    verdict.json        what the main method changed against BPR and the most popular items, with intervals
    report.html         all of it as one page, with figures, lists of some users and settings
    *.png               curves, PopQ histogram, average ranks, score matrices where small

A run that was interrupted goes on where it was (``resume=True``) and ends in the same bits. Larger experiments, of
many splits and methods, are made of the same parts: :class:`Method` and :func:`train_method` for one cell,
:func:`measure` for its figures.
"""

from zerosum_ext.experiments.runs.files import environment, to_json
from zerosum_ext.experiments.runs.judging import judge_run, read_verdict
from zerosum_ext.experiments.runs.method import MACR_REFERENCES, measure, popularity_of, train_method
from zerosum_ext.experiments.runs.reporting import write_report
from zerosum_ext.experiments.runs.run import Recommended, Run
from zerosum_ext.experiments.runs.search import Tried, WeightSearch, choose_weight
from zerosum_ext.experiments.runs.settings import MODELS, DataSource, Method, SplitRule
from zerosum_ext.experiments.runs.together import train_together
from zerosum_ext.experiments.runs.training import train
from zerosum_ext.training.optimizers import OPTIMIZERS

__all__ = [
    "MACR_REFERENCES",
    "MODELS",
    "OPTIMIZERS",
    "DataSource",
    "Method",
    "Recommended",
    "Run",
    "SplitRule",
    "Tried",
    "WeightSearch",
    "choose_weight",
    "environment",
    "judge_run",
    "measure",
    "popularity_of",
    "read_verdict",
    "to_json",
    "train",
    "train_method",
    "train_together",
    "write_report",
]
