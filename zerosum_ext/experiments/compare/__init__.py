"""Comparisons: the method and the setting that serve given interactions best.

    found = compare("ratings.csv", "runs/compared", goal="balanced", max_cost=0.05)
    print(found.verdict.sentences()[0])

The folder is a run folder (:mod:`zerosum_ext.experiments.runs`) of BPR and the chosen setting, and holds beside that::

    trials/NAME/        record.json, history.json and model.safetensors of every candidate; checkpoint.pt while it may
                        be trained on
    compare.json        all candidates with their measures in validation, the front, and what was left out and why
"""

from zerosum_ext.experiments.compare.candidates import Candidate, Family, candidates, families
from zerosum_ext.experiments.compare.choice import front
from zerosum_ext.experiments.compare.running import Comparison, compare
from zerosum_ext.experiments.compare.settings import BIASES, GOALS, Plan
from zerosum_ext.experiments.compare.trials import Record

__all__ = [
    "BIASES",
    "GOALS",
    "Candidate",
    "Comparison",
    "Family",
    "Plan",
    "Record",
    "candidates",
    "compare",
    "families",
    "front",
]
