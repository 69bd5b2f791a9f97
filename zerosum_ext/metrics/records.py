"""Every measure as one record: what it says, in which direction it is better, and its ideal, if it has one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from zerosum_ext._checks import require_choice

#: "up": larger is better. "down": smaller is better. "ideal": nearer to the ideal is better, from either side. "none":
#: a description, of which no direction is better by itself.
Direction = Literal["up", "down", "ideal", "none"]
Kind = Literal["accuracy", "bias", "exposure"]


@dataclass(frozen=True)
class Measure:
    """What the library knows of one measure.

    Attributes:
        name: as :func:`zerosum_ext.evaluate` takes it, without a cut-off.
        title: as tables and figures show it.
        about: what it says, in a phrase.
        kind: "accuracy"; "bias", among the items that a user likes; or "exposure", of what is recommended.
        direction: in which direction it is better.
        ideal: the ideal value, or None for a measure that has none.
    """

    name: str
    title: str
    about: str
    kind: Kind
    direction: Direction
    ideal: float | None = None

    @property
    def arrow(self) -> str:
        """The direction as a sign: "↑", "↓", "→ .5" for an ideal, or nothing."""
        if self.direction == "ideal" and self.ideal is not None:
            return f"→ {self.ideal:g}".replace("0.", ".")
        return {"up": "↑", "down": "↓"}.get(self.direction, "")

    def distance(self, value: float) -> float:
        """Return how far a value is from what is best: smaller is better, and 0 is the ideal.

        Without an ideal, the value itself counts where smaller is better, and its negative where larger is.

        Raises:
            ValueError: no direction is better for this measure.
        """
        if self.direction == "none":
            raise ValueError(f"{self.name}: has no direction that is better, so that no value is far from the best")
        if self.ideal is not None:
            return abs(value - self.ideal)
        return value if self.direction == "down" else -value

    def is_better(self, value: float, other: float) -> bool:
        """Return whether a value is better than another one. NaN is worse than every number."""
        if math.isnan(value) or math.isnan(other):
            return not math.isnan(value)
        return self.distance(value) < self.distance(other)

    def describe(self) -> str:
        """Return a sentence: what the measure says, and what would be ideal."""
        if self.direction == "none":
            return f"{self.title}: {self.about}. It has no ideal, and no direction is better by itself."
        better = {"up": "Higher is better", "down": "Lower is better"}.get(self.direction, "Nearer is better")
        ideal = "it has no ideal" if self.ideal is None else f"{self.ideal:g} is ideal"
        return f"{self.title}: {self.about}. {better}; {ideal}."


def _measures(*records: tuple[str, str, str, Kind, Direction, float | None]) -> dict[str, Measure]:
    return {record[0]: Measure(*record) for record in records}


#: All measures of :func:`zerosum_ext.evaluate` by name.
MEASURES: dict[str, Measure] = _measures(
    ("hr", "Hit rate", "share of users with a hit among the first k", "accuracy", "up", 1.0),
    ("recall", "Recall", "share of a user's held-out items among the first k", "accuracy", "up", 1.0),
    ("precision", "Precision", "share of the first k that the user's held-out items fill", "accuracy", "up", 1.0),
    ("ndcg", "NDCG", "hits among the first k, discounted by their place", "accuracy", "up", 1.0),
    ("mrr", "MRR", "one over the place of the first hit", "accuracy", "up", 1.0),
    ("map", "MAP", "mean precision at the places of the hits", "accuracy", "up", 1.0),
    ("auc", "AUC", "share of a user's (liked, other) pairs in order", "accuracy", "up", 1.0),
    ("pairwise_accuracy", "Pairwise accuracy", "share of all (liked, other) pairs in order", "accuracy", "up", 1.0),
    ("sampled_hit", "Sampled hit", "share of liked items among the first k of 1 + M sampled", "accuracy", "up", 1.0),
    ("sampled_ndcg", "Sampled NDCG", "the same, discounted by place", "accuracy", "up", 1.0),
    ("snips_recall", "SNIPS recall", "recall weighted by inverse propensity", "accuracy", "up", 1.0),
    ("snips_ndcg", "SNIPS NDCG", "NDCG weighted by inverse propensity", "accuracy", "up", 1.0),
    ("recall_head", "Recall, head", "recall of popular items, a fifth of all interactions", "accuracy", "up", 1.0),
    ("recall_mid", "Recall, middle", "recall of items between head and tail", "accuracy", "up", 1.0),
    ("recall_tail", "Recall, tail", "recall of rare items, a fifth of all interactions", "accuracy", "up", 1.0),
    ("pri", "PRI", "rank correlation of items' popularity and mean place among users' own", "bias", "ideal", 0.0),
    ("pop_q_at_1", "PopQ@1", "popularity quantile of the best-scored of a user's own items", "bias", "ideal", 0.5),
    ("upo", "uPO", "rank correlation of popularity and score within a user's own items", "bias", "ideal", 0.0),
    ("pru", "PRU", "rank correlation of popularity and place within a user's own items", "bias", "ideal", 0.0),
    ("pcc", "PCC", "correlation of popularity and score over all own items", "bias", "ideal", 0.0),
    ("arp", "ARP", "mean popularity of what is recommended", "exposure", "down", None),
    ("aplt", "Long-tail share", "mean share of long-tail items in a list", "exposure", "up", None),
    ("aclt", "Long-tail items", "mean number of long-tail items in a list", "exposure", "up", None),
    ("tail_share", "Tail share", "share of all places that long-tail items fill", "exposure", "up", None),
    ("coverage", "Coverage", "share of the catalogue that is recommended to anyone", "exposure", "up", 1.0),
    ("gini", "Gini", "inequality of how often items are recommended", "exposure", "down", 0.0),
    ("entropy", "Entropy", "evenness of how often items are recommended, in bits", "exposure", "up", None),
    ("novelty", "Novelty", "self-information of what is recommended, in bits", "exposure", "none", None),
)


def measure_of(key: str) -> Measure:
    """Return the record of a measure, by its name or by a key of :func:`zerosum_ext.evaluate` such as "ndcg@10".

    Raises:
        ValueError: there is no such measure.
    """
    return MEASURES[require_choice("measure", key.partition("@")[0], list(MEASURES))]
