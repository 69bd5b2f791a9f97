"""Every measure as one record: what it says, in which direction it is better, its ideal if any, how it is written.

Tables, verdicts and reports take their words from here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

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
        title: as tables, figures and sentences show it.
        about: what it is, in a phrase.
        kind: "accuracy"; "bias", among the items that a user likes; or "exposure", of what is recommended.
        direction: in which direction it is better.
        ideal: the ideal value, or None for a measure that has none.
        long: what the title stands for, if that is not plain.
        plain: what it says to people who meet it first, in a phrase; empty where ``about`` is plain enough.
        percent: it is a share that is written in percent.
    """

    name: str
    title: str
    about: str
    kind: Kind
    direction: Direction
    ideal: float | None = None
    long: str = ""
    plain: str = ""
    percent: bool = False

    @property
    def arrow(self) -> str:
        """The direction as a sign: "↑", "↓", "→ 0.5" for an ideal, or nothing."""
        if self.direction == "ideal" and self.ideal is not None:
            return f"→ {self.ideal:g}"
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

    def label(self, key: str, *, long: bool = False) -> str:
        """Return the title with the cut-off of a key: "NDCG@10", or "ARP@10 (average popularity of ...)" if long."""
        _, at, cutoff = key.partition("@")
        return f"{self.title}{at}{cutoff}" + (f" ({self.long})" if long and self.long else "")

    def write(self, value: float | None) -> str:
        """Return a value as text."""
        if value is None or not math.isfinite(value):
            return "no value"
        if self.percent:
            return f"{100 * value:.1f} %"
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"

    def describe(self) -> str:
        """Return a sentence: what the measure is, and what would be ideal."""
        # (A title with capitals of its own, such as uPO, keeps them.)
        title = self.title.capitalize() if self.title.islower() else self.title
        if self.direction == "none":
            return f"{title}: {self.about}. It has no ideal, and no direction is better by itself."
        better = {"up": "Higher is better", "down": "Lower is better"}.get(self.direction, "Nearer is better")
        ideal = "it has no ideal" if self.ideal is None else f"{self.ideal:g} is ideal"
        return f"{title}: {self.about}. {better}; {ideal}."


# Of the measures that verdicts and reports show: the fields ``long``, ``plain`` and ``percent``.
_WORDS: dict[str, dict[str, Any]] = {
    "hr": {"plain": "the share of users who have a held-out item in their list", "percent": True},
    "recall": {"plain": "the share of a user's held-out items in the list"},
    "ndcg": {"plain": "held-out items in the list, those near its top counting more"},
    "pri": {
        "long": "popularity-rank correlation of items",
        "plain": "whether popular items stand above unpopular ones among the items a user likes: 1 always, 0 not at "
        "all",
    },
    "pop_q_at_1": {
        "long": "popularity quantile of the top item",
        "plain": "how popular the item is that the model puts first among those a user likes: 0 the most popular, .5 "
        "ideal",
    },
    "upo": {
        "long": "popularity-opportunity bias of users",
        "plain": "whether a user's popular items score higher than the user's other items: 1 always, 0 not at all",
    },
    "arp": {
        "long": "average popularity of what is recommended",
        "plain": "how many users have the items that are recommended, on average",
    },
    "aplt": {
        "plain": "the share of a list that are unpopular items: those that have the last fifth of all interactions",
        "percent": True,
    },
    "coverage": {"plain": "the share of all items that anybody is recommended", "percent": True},
    "gini": {"plain": "how unequal the exposure of items is: 0 all alike, 1 one has all"},
}


def _measures(*records: tuple[str, str, str, Kind, Direction, float | None]) -> dict[str, Measure]:
    return {record[0]: Measure(*record, **_WORDS.get(record[0], {})) for record in records}


#: All measures of :func:`zerosum_ext.evaluate` by name.
MEASURES: dict[str, Measure] = _measures(
    ("hr", "Hit", "share of users with a hit among the first k", "accuracy", "up", 1.0),
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
    ("aplt", "long-tail share", "mean share of long-tail items in a list", "exposure", "up", None),
    ("aclt", "Long-tail items", "mean number of long-tail items in a list", "exposure", "up", None),
    ("tail_share", "Tail share", "share of all places that long-tail items fill", "exposure", "up", None),
    ("coverage", "coverage", "share of the catalogue that is recommended to anyone", "exposure", "up", 1.0),
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
