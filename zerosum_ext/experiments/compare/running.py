"""The comparison itself: train candidates in rungs, take one, test it once, write the run folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from zerosum_ext._files import locked, replacing
from zerosum_ext.data.interactions import Interactions, Split
from zerosum_ext.evaluation import Ranking, evaluate
from zerosum_ext.experiments.compare.candidates import Candidate, candidates
from zerosum_ext.experiments.compare.choice import Point, choose
from zerosum_ext.experiments.compare.search import Search, of_seed
from zerosum_ext.experiments.compare.settings import Plan
from zerosum_ext.experiments.compare.trials import TRIALS, Record
from zerosum_ext.experiments.compare.wider import draw_settings
from zerosum_ext.experiments.processes import Workers
from zerosum_ext.experiments.runs import DataSource, Run, SplitRule, judge_run, measure, to_json, write_report
from zerosum_ext.experiments.runs import files as run_files
from zerosum_ext.experiments.runs.method import read_model
from zerosum_ext.experiments.runs.training import Note, tell_of_data
from zerosum_ext.experiments.verdict import Verdict, data_warnings, popularity_scores

__all__ = ["COMPARISON", "Comparison", "compare"]

#: The file of all that was compared, in a run folder.
COMPARISON = "compare.json"


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        run: the run folder, opened: BPR and the chosen setting, trained and tested.
        verdict: what the chosen setting changed.
        chosen: the name of the chosen setting.
        front: the names of the settings that no other beats in validation, the most accurate first.
        candidates: all settings that were tried.
        records: {name: how far it was trained, and its measures in validation}.
        points: {name: (accuracy, bias left) in validation}.
        most_popular: the measures of the most popular items in validation.
        left_out: {family: why it was not tried}.
    """

    run: Run
    verdict: Verdict
    chosen: str
    front: list[str]
    candidates: list[Candidate]
    records: Mapping[str, Record]
    points: Mapping[str, Point]
    most_popular: Mapping[str, float | None]
    left_out: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values that JSON can hold."""
        return {
            "folder": str(self.run.folder),
            "verdict": self.verdict.to_dict(),
            "metrics": self.run.metrics,
            **_table(self.candidates, self.records, self.points, self.front, self.chosen),
            "most_popular": dict(self.most_popular),
            "left_out": dict(self.left_out),
        }


def _table(
    everyone: Sequence[Candidate],
    records: Mapping[str, Record],
    points: Mapping[str, Point],
    front: Sequence[str],
    chosen: str,
) -> dict[str, Any]:
    rows = [
        {
            "name": one.name,
            "family": one.family,
            "kind": one.kind,
            "on_front": one.name in front,
            **asdict(records[one.name]),
            "accuracy": points[one.name][0] if one.name in points else None,
            "bias_left": points[one.name][1] if one.name in points else None,
            "method": asdict(one.method),
        }
        for one in everyone
    ]
    return {"chosen": chosen, "front": list(front), "candidates": rows}


# One parameter above the limit would be a setting; these say where, how and what is told meanwhile.
def compare(
    data: DataSource | Interactions | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    plan: Plan | None = None,
    *,
    split: SplitRule | None = None,
    k: Sequence[int] = (10, 20),
    jobs: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    figures: bool = True,
    items: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    note: Note = lambda text: None,
    **settings: Any,
) -> Comparison:
    """Find the method and the setting that serve these data best, test it once, and write a run folder.

    Candidates are trained for few epochs and measured on the validation part. The promising ones are trained on
    (successive halving). From the front of accuracy against bias one setting is taken, by validation alone. It and BPR
    are measured on the test part. The same call with ``resume=True`` goes on after any interruption.

    Args:
        data: a file, a :class:`DataSource` that says how to read it, or interactions.
        folder: the folder of the run.
        plan: what is compared and looked for; or give its fields as keywords, such as ``goal="long-tail"``.
        split: how to split the interactions, by default random, 80/10/10. It needs a validation part.
        k: cut-offs of the measures on the test part. Those of validation follow from ``plan.metric``.
        jobs: the number of processes. None: one for each core, at most eight.
        resume: go on with the comparison in the folder, or show it where it is complete.
        overwrite: remove the run that is in the folder.
        figures: draw the PNG figures. (Those of report.html are always drawn.)
        items: a table of items and their names, for report.html.
        progress: show a progress bar. None: on a terminal.
        note: called with lines that a person would want to read meanwhile.

    Returns:
        What was found.

    Raises:
        KeyboardInterrupt: on Ctrl-C. The same call with ``resume=True`` goes on.
        ValueError, OSError: bad settings or data, or a folder that cannot be written.

    Example::

        found = zx.compare("ratings.csv", "runs/compared", goal="balanced", max_cost=0.05)
        print(found.verdict.sentences()[0])
        found.run.recommend(["alice"], 10)
    """
    if plan is not None and settings:
        raise ValueError(f"plan: expected a plan or its fields, got both: {', '.join(settings)}")
    plan = Plan(**settings) if plan is None else plan
    work = _prepare(data, split or SplitRule(), plan, k, note)
    jobs = min(8, len(os.sched_getaffinity(0))) if jobs is None else jobs
    path = Path(folder)
    with locked(path), Workers(jobs) as workers:
        run_files.prepare(path, work.config(), resume, overwrite)
        run_files.write_json(path / "config.json", work.config())
        run_files.keep_split(path / "interactions.npz", work.split, note)
        search = Search(path, plan, work.everyone, work.split.train.nnz, workers, progress, note)
        with search:
            search.halve()
            if plan.engine == "optuna":
                draw_settings(search)
            taken, on_front, points = choose(search.everyone, search.records, plan, search.base.name)
            search.train_seeds(taken)
        return _finish(path, work, search, (taken, on_front, points), figures, items, note)


@dataclass
class _Work:
    """What a comparison is about."""

    source: DataSource | str
    rule: SplitRule
    interactions: Interactions
    split: Split
    plan: Plan
    cutoffs: tuple[int, ...]
    everyone: list[Candidate]
    left_out: dict[str, str]
    chosen: list[Candidate] = field(default_factory=list)

    def config(self) -> dict[str, Any]:
        """Return config.json. Its methods are BPR and the chosen one, once it is known."""
        kept = self.chosen or self.everyone[:1]
        config = {
            "format": run_files.FORMAT,
            "data": asdict(self.source) if isinstance(self.source, DataSource) else {"source": self.source},
            "split": asdict(self.rule),
            "methods": {one.method.loss: asdict(one.method) for one in kept},
            "evaluation": {"k": list(self.cutoffs)},
            "interactions": run_files.describe(self.interactions, self.split),
            "environment": run_files.environment(),
            "search": None,
            "compare": {**asdict(self.plan), "candidates": [one.name for one in self.everyone]},
        }
        return dict(json.loads(json.dumps(config)))


def _prepare(
    data: DataSource | Interactions | str | os.PathLike[str], rule: SplitRule, plan: Plan, k: Sequence[int], note: Note
) -> _Work:
    if isinstance(data, (str, os.PathLike)):
        data = DataSource(os.fspath(data))
    interactions = data.read() if isinstance(data, DataSource) else Interactions.from_any(data)
    if interactions.nnz and int(interactions.user_counts.max()) < 2:
        raise ValueError(
            f"{interactions.report.source}: no user has two items, so nothing can be learned of what a user likes, and "
            "a held-out item tells nothing: recommend the most popular items, or give a file with several items a user"
        )
    split = rule.apply(interactions)
    if split.valid.nnz == 0:
        raise ValueError("split: expected a validation part to choose the method by, got none")
    if min(part.num_items for part in split) < 2:
        raise ValueError("data: expected at least two items to choose from, got one")
    tell_of_data(interactions, rule, split, note)
    everyone, left_out = candidates(plan.methods, plan.common(split.train.nnz), plan.epochs, split.train.num_items)
    for name, reason in left_out.items():
        note(f"{name}: not tried, {reason}")
    source = data if isinstance(data, DataSource) else interactions.report.source
    cutoffs = tuple(dict.fromkeys((plan.cutoff, *k)))
    return _Work(source, rule, interactions, split, plan, cutoffs, everyone, left_out)


def _finish(
    path: Path,
    work: _Work,
    search: Search,
    choice: tuple[str, list[str], Mapping[str, Point]],
    figures: bool,
    items: str | os.PathLike[str] | None,
    note: Note,
) -> Comparison:
    """Measure BPR and the chosen setting on the test part, and write the run folder."""
    taken, on_front, points = choice
    by_name = {one.name: one for one in search.everyone}
    work.chosen = [search.base, *([by_name[taken]] if taken != search.base.name else [])]
    run_files.write_json(path / "config.json", work.config())
    note(f"{taken} is taken; measuring it on the test part")
    rankings: dict[str, list[Ranking]] = {}
    for one in work.chosen:
        place = path / one.method.loss
        place.mkdir(exist_ok=True)
        for name in ("model.safetensors", "history.json"):
            with replacing(place / name) as part:
                shutil.copyfile(path / TRIALS / one.name / name, part)
        values, rankings[one.method.loss] = _test(path, one, work)
        run_files.write_json(place / "metrics.json", values)
    run = Run(path, work.config(), work.split)
    run.write_tables()
    if figures:
        run.draw({name: several[0] for name, several in rankings.items()})
    popular = _popular(work)
    further = _further_warnings(work, search, taken, points, popular)
    cost = None if work.plan.goal == "accuracy" else work.plan.cost
    verdict = judge_run(run, rankings, *further, cost=cost)
    found = Comparison(run, verdict, taken, on_front, search.everyone, search.records, points, popular, work.left_out)
    with replacing(path / COMPARISON) as part, open(part, "w", encoding="utf-8") as file:
        file.write(to_json({**found.to_dict(), "plan": asdict(work.plan)}) + "\n")
    write_report(run, rankings, items=items)
    return found


def _test(path: Path, one: Candidate, work: _Work) -> tuple[dict[str, float], list[Ranking]]:
    """Return the means over seeds of the measures on the test part, and the ranking of each seed."""
    each, rankings = [], []
    for seed in work.plan.seeds:
        name = one.name if seed == work.plan.seeds[0] else of_seed(one, seed).name
        model = read_model(replace(one.method, seed=seed), work.split.train, path / TRIALS / name / "model.safetensors")
        values, ranking = measure(model, work.split, k=work.cutoffs)
        each.append(values)
        rankings.append(ranking)
    return {key: float(np.mean([values[key] for values in each])) for key in each[0]}, rankings


def _popular(work: _Work) -> dict[str, float | None]:
    """Measure the most popular items on the validation part, as candidates are measured."""
    scores = popularity_scores(work.split.train)
    values = evaluate(scores, work.split.train, work.split.valid, metrics=work.plan.keys)
    return {key: value if np.isfinite(value) else None for key, value in values.items()}


def _further_warnings(
    work: _Work, search: Search, taken: str, points: Mapping[str, Point], popular: Mapping[str, float | None]
) -> tuple[list[str], list[str]]:
    """Return what the search itself warns of, and what to try."""
    plan = work.plan
    warnings, advice = data_warnings(work.split)
    best = max(p[0] for p in points.values())
    if (popular.get(plan.metric) or 0.0) >= best:
        warnings.append("in validation too the most popular items are more accurate than every candidate")
    elif taken == search.base.name and plan.goal != "accuracy":
        warnings.append(
            f"no candidate has less bias than BPR at a cost of at most {100 * plan.cost:g} % of its accuracy: BPR is "
            "kept"
        )
        advice.append(f"a larger --max-cost than {100 * plan.cost:g}%, or --goal long-tail")
    failed = [name for name, record in search.records.items() if record.failed]
    if failed:
        warnings.append(f"{len(failed)} candidates could not be trained: {', '.join(failed)}")
    unfinished = [
        name
        for name, record in search.records.items()
        if name in points and points[name][0] >= best and not record.finished
    ]
    if unfinished:
        advice.append(f"more rungs or epochs: {unfinished[0]} was left before its end though it was the most accurate")
    return warnings, advice
