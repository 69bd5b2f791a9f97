"""A verdict in words: what a method changed against others on the same users, and whether that is more than chance.

    found = judge({"bpr": [ranking], "zerosum": [ranking]}, popularity, "zerosum", metric="ndcg@10", k=10)
    print(found.sentences()[0])

Values of each user are compared in pairs by :func:`zerosum_ext.evaluation.significance.compare`. The coverage of the
catalogue has no value for a user; the two models' lists are exchanged for each user instead
(:func:`zerosum_ext.evaluation.significance.exchange`). The p-values of one comparison are adjusted by Holm's method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from zerosum_ext.data.interactions import Interactions, Split
from zerosum_ext.evaluation import Ranking, per_user
from zerosum_ext.evaluation.significance import Comparison, compare, coverage_of_lists, exchange, holm
from zerosum_ext.metrics import measure_of
from zerosum_ext.training import History

__all__ = [
    "MOST_POPULAR",
    "Against",
    "Change",
    "Verdict",
    "bias_measures",
    "cost_warnings",
    "data_warnings",
    "history_warnings",
    "judge",
    "method_label",
    "popularity_scores",
]

#: The name of the ranking by popularity alone, which needs no training.
MOST_POPULAR = "most_popular"

# Changes with an adjusted p-value below this are called significant.
LEVEL = 0.05
# Random permutations and bootstrap samples of a comparison: p-values are exact to about .01 at .05.
RESAMPLES = 999


_LABELS = {
    MOST_POPULAR: "most popular",
    "popular": "most popular",
    "bpr": "BPR",
    "zerosum": "Zerosum",
    "pos2neg2": "Pos2Neg2",
    "macr": "MACR",
    "pd": "PD",
    "pda": "PDA",
    "ipw": "IPW",
    "bsl": "BSL",
    "psl": "PSL",
    "ccl": "CCL",
    "ease": "EASE",
    "ials": "iALS",
    "sampled_softmax": "softmax",
    "popularity_softmax": "popularity softmax",
    "refined_softmax": "refined softmax",
    "hardest": "hard negatives (DNS)",
    "pearson": "Pearson",
    "compensation": "compensation",
}


def method_label(name: str) -> str:
    """Return a method's name as people write it."""
    return _LABELS.get(name, name)


def bias_measures(k: int) -> tuple[str, ...]:
    """Return the keys of the measures that a verdict compares beside accuracy, for lists of k items."""
    return (f"aplt@{k}", "pop_q_at_1", "upo", f"arp@{k}", f"coverage@{k}")


@dataclass(frozen=True)
class Change:
    """A measure of two models over the same users.

    Attributes:
        key: the measure.
        before: the value of the other model.
        after: the value of the model that is judged.
        low: lower end of the 95 % confidence interval of ``after - before``.
        high: its upper end.
        p_value: of no difference.
        adjusted: the p-value, adjusted for all measures compared.
        better: whether ``after`` is better than ``before``. None: not significant, or no value.
        users: users with a value under both models.
    """

    key: str
    before: float | None
    after: float | None
    low: float | None
    high: float | None
    p_value: float | None
    adjusted: float | None
    better: bool | None
    users: int

    @property
    def relative(self) -> tuple[float, float, float] | None:
        """Return the change and its interval as shares of ``before``, or None without a value above 0."""
        if self.before is None or self.after is None or self.before <= 0 or self.low is None or self.high is None:
            return None
        return (self.after - self.before) / self.before, self.low / self.before, self.high / self.before

    def text(self, intervals: bool = True) -> str:
        """Return the change in words, such as "long-tail share 8.0 % -> 21.0 %"."""
        measure = measure_of(self.key)
        name = measure.label(self.key)
        if self.before is None or self.after is None:
            return f"{name} has no value here"
        remark = "" if self.better is not None else "not significant"
        if measure.kind == "accuracy" and (relative := self.relative) is not None:
            said = f"accuracy ({name}) {_signed(100 * relative[0])} %"
            interval = f"95 %: {_signed(100 * relative[1])} to {_signed(100 * relative[2])}"
        else:
            said = f"{name} {measure.write(self.before)} -> {measure.write(self.after)}"
            factor = 100 if measure.percent else 1
            digits = 3 if not measure.percent and abs(self.before) < 10 else 1
            low, high = self.low or 0.0, self.high or 0.0
            interval = f"95 %: {_signed(factor * low, digits)} to {_signed(factor * high, digits)}"
            if measure.direction == "ideal" and not remark:
                remark = f"ideal {measure.ideal:g}, " + ("better" if self.better else "worse")
            elif not remark and not self.better:
                remark = "worse"
        inside = [part for part in (interval if intervals else "", remark) if part]
        return f"{said} ({'; '.join(inside)})" if inside else said


def _signed(value: float, digits: int = 1) -> str:
    text = f"{value:+.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text


@dataclass(frozen=True)
class Against:
    """What changed against one other model."""

    name: str
    changes: tuple[Change, ...]

    def change(self, name: str) -> Change | None:
        """Return the change of a measure, by its name without the cut-off."""
        return next((c for c in self.changes if c.key.partition("@")[0] == name), None)

    @property
    def accuracy(self) -> Change:
        """The change of accuracy."""
        return self.changes[0]

    @property
    def bias(self) -> tuple[Change, ...]:
        """The changes of all measures but accuracy."""
        return self.changes[1:]


@dataclass(frozen=True)
class Verdict:
    """What a method changed, warnings, and what to try.

    Attributes:
        main: the method judged.
        users: how many users were tested.
        against: the comparisons.
        warnings: what a reader must know before the figures are used.
        advice: what to try next.
        references: measures of models that the run folder does not hold, such as the most popular items.
    """

    main: str
    users: int
    against: tuple[Against, ...]
    warnings: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    references: Mapping[str, Mapping[str, float]] | None = None

    def sentences(self, intervals: bool = True) -> list[str]:
        """Return one sentence for each comparison."""
        return [
            f"{method_label(self.main)} against {method_label(one.name)}: "
            + ", ".join(change.text(intervals) for change in one.changes)
            for one in self.against
        ]

    def lines(self, intervals: bool = True) -> list[str]:
        """Return the sentences, the warnings and the advice, each a line."""
        return [
            *self.sentences(intervals),
            *(f"warning: {text}" for text in self.warnings),
            *(f"try: {text}" for text in self.advice),
        ]

    def with_warnings(self, warnings: Sequence[str], advice: Sequence[str] = ()) -> Verdict:
        """Return this verdict with further warnings and advice; each stands once."""
        return replace(
            self,
            warnings=tuple(dict.fromkeys((*self.warnings, *warnings))),
            advice=tuple(dict.fromkeys((*self.advice, *advice))),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values that JSON can hold."""
        return {**asdict(self), "sentences": self.sentences()}

    @classmethod
    def from_dict(cls, values: Any) -> Verdict:
        """Return the verdict that ``to_dict`` wrote.

        Raises:
            ValueError: values that no verdict has.
        """
        try:
            against = tuple(
                Against(str(one["name"]), tuple(Change(**_checked_change(c)) for c in one["changes"]))
                for one in values["against"]
            )
            texts = {name: tuple(map(str, values[name])) for name in ("warnings", "advice")}
            references = {str(n): {str(k): v for k, v in r.items()} for n, r in (values["references"] or {}).items()}
            if not all(one.changes for one in against):
                raise ValueError("a comparison without measures")
            return cls(str(values["main"]), int(values["users"]), against, **texts, references=references)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"it is no verdict: {error}") from None


def _checked_change(values: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        number = value is None or (isinstance(value, (int, float)) and math.isfinite(value))
        if not (isinstance(value, str) if name == "key" else number):
            raise ValueError(f"{name}: got {value!r}")
    return dict(values)


def popularity_scores(train: Interactions) -> tuple[torch.Tensor, torch.Tensor]:
    """Return factors whose scores rank every user's items by their popularity in the training part."""
    counts = train.popularity.cpu().double()
    return torch.ones(train.num_users, 1, dtype=torch.float64), counts[:, None]


def judge(
    rankings: Mapping[str, Sequence[Ranking]],
    popularity: torch.Tensor,
    main: str,
    *,
    metric: str = "ndcg@10",
    k: int = 10,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Verdict:
    """Compare a method with every other one over the same users.

    Args:
        rankings: {method: its rankings of the test part, one for each seed}. Values of a user are averaged over
            seeds. The lists hold at least ``k`` items.
        popularity: interaction counts [num_items].
        main: the method to judge.
        metric: the measure of accuracy, a mean over users.
        k: the cut-off of the measures of lists.
        resamples, seed: of the bootstrap and the permutations.

    Returns:
        The verdict, with the warnings that follow from the comparisons.

    Raises:
        ValueError: ``main`` has no ranking.
    """
    if main not in rankings:
        raise ValueError(f"main: expected one of {', '.join(rankings)}, got {main!r}")
    keys = (metric, *bias_measures(k))
    values = {name: _values(several, popularity, keys) for name, several in rankings.items()}
    against = []
    for name in rankings:
        if name != main:
            found = [_compared(key, values[name], values[main], resamples, seed) for key in keys]
            against.append(Against(name, _adjusted(keys, found)))
    users = int(rankings[main][0].users.size)
    return Verdict(main, users, tuple(against)).with_warnings(*_warnings(main, users, against))


@dataclass(frozen=True)
class _Values:
    """What one method reaches: values of each user, averaged over seeds, and the lists of all seeds."""

    per_user: dict[str, np.ndarray]
    lists: list[np.ndarray]
    num_items: int


def _values(rankings: Sequence[Ranking], popularity: torch.Tensor, keys: Sequence[str]) -> _Values:
    wanted = [key for key in keys if not key.startswith("coverage")]
    cutoff = next(int(key.partition("@")[2]) for key in keys if key.startswith("coverage"))
    each = [per_user(ranking, popularity, metrics=wanted) for ranking in rankings]
    mean = {key: np.mean([one[key] for one in each], axis=0) for key in wanted}
    lists = [ranking.top_items[:, :cutoff] for ranking in rankings]
    return _Values(mean, lists, rankings[0].num_items)


def _compared(key: str, a: _Values, b: _Values, resamples: int, seed: int) -> Comparison | None:
    """Return the comparison of a measure, or None if fewer than two users have a value."""
    if key.startswith("coverage"):
        return _compared_coverage(a, b, seed)
    x, y = a.per_user[key], b.per_user[key]
    both = ~(np.isnan(x) | np.isnan(y))
    if both.sum() < 2:
        return None
    x, y = x[both], y[both]
    found = compare(x, y, resamples=resamples, seed=seed)
    measure = measure_of(key)
    ideal = measure.ideal if measure.direction == "ideal" else None
    if ideal is not None and (found.mean_a - ideal) * (found.mean_b - ideal) < 0:
        # On two sides of the ideal: what is tested is the difference of the distances from it.
        sign = math.copysign(1.0, found.mean_b - ideal)
        moved = compare(np.zeros_like(x), sign * (x + y - 2 * ideal), resamples=resamples, seed=seed)
        found = replace(found, p_value=moved.p_value)
    return found


def _compared_coverage(a: _Values, b: _Values, seed: int) -> Comparison | None:
    """Exchange the lists of users, all seeds of a user together. The coverage is the mean of the seeds'."""
    if len(a.lists[0]) < 2:
        return None
    count = max(len(a.lists), len(b.lists))

    def mean_coverage(lists: np.ndarray, num_items: int) -> float:
        parts = np.split(lists, count, axis=1)
        return float(np.mean([coverage_of_lists(part, num_items) for part in parts]))

    # (A ranking without a seed, as by popularity, stands for each of the other's.)
    x, y = (np.concatenate(v.lists * (count // len(v.lists)), axis=1) for v in (a, b))
    return exchange(x, y, a.num_items, statistic=mean_coverage, seed=seed)


def _adjusted(keys: Sequence[str], found: Sequence[Comparison | None]) -> tuple[Change, ...]:
    adjusted = holm([math.nan if one is None else one.p_value for one in found])
    return tuple(_change(key, one, p) for key, one, p in zip(keys, found, adjusted, strict=True))


def _change(key: str, found: Comparison | None, adjusted: float) -> Change:
    if found is None:
        return Change(key, None, None, None, None, None, None, None, 0)
    measure = measure_of(key)
    better = None
    if adjusted < LEVEL:
        better = measure.direction != "none" and measure.is_better(found.mean_b, found.mean_a)
    numbers = (found.mean_a, found.mean_b, found.low, found.high, found.p_value, adjusted)
    return Change(key, *numbers, better, found.users)


# Fewer users than this seldom show a difference.
FEW_USERS = 50


def _warnings(main: str, users: int, against: Sequence[Against]) -> tuple[list[str], list[str]]:
    """Return what the comparisons warn of, and what to try."""
    warnings, advice = [], []
    label = method_label(main)
    if users < FEW_USERS:
        warnings.append(
            f"only {users} users were tested: with so few, chance hides all but large differences, and the "
            "percentages say little"
        )
    by_name = {one.name: one for one in against}
    base = by_name.get("bpr")
    if base is not None:
        gained = [change for change in base.bias if change.better]
        lost = [change for change in base.bias if change.better is False]
        if base.accuracy.better is False and len(gained) <= len(lost):
            what = "and does not debias" if not gained else "and is worse in as many measures of bias as it is better"
            warnings.append(f"{label} is less accurate than BPR {what} on these data: do not use this setting")
        elif base.accuracy.better is not True and not gained and users >= FEW_USERS:
            warnings.append(f"{label} is neither more accurate nor less biased than BPR on these data")
    popular = None if MOST_POPULAR not in by_name else by_name[MOST_POPULAR].accuracy
    if popular is not None and 0 < (popular.before or 0) >= (popular.after or 0):
        sure = "" if popular.better is False else " (not significantly)"
        warnings.append(
            f"the most popular items, the same for everybody, are more accurate than {label}{sure}: these data say "
            "little about what individual users like"
        )
        advice.append(
            "data that say more of each user (more interactions a user, other signals), or recommend the most popular "
            "items"
        )
    return warnings, advice


def cost_warnings(verdict: Verdict, most: float) -> tuple[list[str], list[str]]:
    """Return a warning if a method costs more of BPR's accuracy on the test part than it may, and what to try.

    Args:
        verdict: of the test part.
        most: the share of BPR's accuracy that may be lost. The method was chosen for keeping to it in validation.

    Returns:
        Two lists, empty unless the whole confidence interval of the change lies below ``-most``.
    """
    base = next((one for one in verdict.against if one.name == "bpr"), None)
    relative = None if base is None else base.accuracy.relative
    if relative is None or relative[2] >= -most:
        return [], []
    warning = (
        f"{method_label(verdict.main)} costs {-100 * relative[0]:.1f} % of BPR's accuracy on the test part, more than "
        f"the {100 * most:g} % that it may cost: in validation it kept to that"
    )
    return [warning], ["a smaller --max-cost such as 0%, --goal accuracy, or several --seeds"]


def history_warnings(histories: Mapping[str, History], patience: Mapping[str, int | None]) -> list[str]:
    """Return a warning for each method whose validation was still rising when the number of epochs ran out."""
    told = []
    for name, history in histories.items():
        best, limit = history.best_epoch, patience.get(name)
        if history.stopped == "completed" and best is not None and len(history) > 1:
            since = len(history) - 1 - best
            # It was not level for as long as it takes to stop early: the cap stopped it.
            if since < (limit if limit is not None else max(1, len(history) // 10)):
                told.append(
                    f"{method_label(name)} was stopped by the cap of {len(history)} epochs; its best was epoch "
                    f"{best + 1}, so more epochs (--epochs) may improve it"
                )
    return told


def data_warnings(split: Split) -> tuple[list[str], list[str]]:
    """Return what the interactions themselves warn of, and what to try."""
    counts = split.train.user_counts.cpu() + split.valid.user_counts.cpu() + split.test.user_counts.cpu()
    if int((counts > 1).sum()) == 0:
        return (
            [
                "no user has two items: an item that is held out belongs to a user of whom nothing is known, so no "
                "model can learn what a user likes from these data"
            ],
            ["a file with several items of each user; until then recommend the most popular items"],
        )
    return [], []
