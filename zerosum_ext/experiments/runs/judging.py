"""The verdict of a run: its main method against BPR and against the most popular items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zerosum_ext.data.interactions import Split
from zerosum_ext.evaluation import METRICS, PER_USER_METRICS, WEIGHTED_METRICS, Ranking, compute, rank
from zerosum_ext.experiments.runs.files import read_json, write_json
from zerosum_ext.experiments.runs.method import popularity_of
from zerosum_ext.experiments.runs.run import Run
from zerosum_ext.experiments.verdict import (
    MOST_POPULAR,
    Verdict,
    cost_warnings,
    data_warnings,
    history_warnings,
    judge,
    popularity_scores,
)

__all__ = ["VERDICT", "judge_run", "popular_ranking", "read_verdict"]

#: The file of the verdict in a run folder.
VERDICT = "verdict.json"


def popular_ranking(split: Split, k: int) -> Ranking:
    """Rank the test part by the popularity of items in the training part, as :func:`measure` ranks by a model."""
    seen = split.train | split.valid if split.valid.nnz else split.train
    return rank(popularity_scores(split.train), seen, split.test, k=k)


def judge_run(
    run: Run,
    rankings: Mapping[str, Ranking | Sequence[Ranking]],
    warnings: Sequence[str] = (),
    advice: Sequence[str] = (),
    cost: float | None = None,
) -> Verdict:
    """Compare the main method of a run with its others and with the most popular items, and write verdict.json.

    Args:
        run: the run, all methods of which are trained.
        rankings: {method: its ranking of the test part, or one for each seed}.
        warnings, advice: what is known beside that, and belongs to the verdict.
        cost: the share of BPR's accuracy that the main method may cost. None: nothing was said of it.
    """
    cutoffs = run.config["evaluation"]["k"]
    name, _, _ = run.methods[run.main].metric.partition("@")
    metric = run.methods[run.main].metric if name in PER_USER_METRICS else f"ndcg@{cutoffs[0]}"
    popularity = popularity_of(run.split)
    popular = popular_ranking(run.split, max(cutoffs))
    several = {n: [r] if isinstance(r, Ranking) else list(r) for n, r in rankings.items()}
    verdict = judge({**several, MOST_POPULAR: [popular]}, popularity, run.main, metric=metric, k=cutoffs[0])
    verdict = verdict.with_warnings(*data_warnings(run.split))
    if cost is not None:
        verdict = verdict.with_warnings(*cost_warnings(verdict, cost))
    verdict = verdict.with_warnings(
        history_warnings(run.histories, {name: method.patience for name, method in run.methods.items()})
    )
    verdict = verdict.with_warnings(warnings, advice)
    references = {MOST_POPULAR: compute(popular, popularity, metrics=(*METRICS, *WEIGHTED_METRICS), k=tuple(cutoffs))}
    verdict = Verdict(verdict.main, verdict.users, verdict.against, verdict.warnings, verdict.advice, references)
    write_json(run.folder / VERDICT, verdict.to_dict())
    return verdict


def read_verdict(run: Run) -> Verdict | None:
    """Return the verdict of a run folder, or None if it has none. A damaged file is a ValueError that names it."""
    path = run.folder / VERDICT
    if not path.is_file():
        return None
    try:
        return Verdict.from_dict(read_json(path))
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(path) in text else f"{path} is damaged: {text}") from None
