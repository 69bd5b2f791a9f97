"""The search of a comparison: candidates on their way through the rungs, the promising ones further than others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zerosum_ext._files import locked
from zerosum_ext.experiments.compare.candidates import Candidate
from zerosum_ext.experiments.compare.choice import promoted
from zerosum_ext.experiments.compare.settings import Plan
from zerosum_ext.experiments.compare.trials import CHECKPOINT, TRIALS, Record, advance, read_record, trained_by_fit
from zerosum_ext.experiments.processes import Workers
from zerosum_ext.experiments.runs.training import Note

__all__ = ["Search", "least_epochs", "of_seed"]


class Search:
    """The candidates on their way through the rungs, with one bar for all."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        everyone: Sequence[Candidate],
        interactions: int,
        workers: Workers,
        progress: bool | None,
        note: Note,
    ) -> None:
        self.folder, self.plan, self.workers, self.note = folder, plan, workers, note
        self.everyone = list(everyone)
        self.base = self.everyone[0]
        self.least = least_epochs(plan, interactions)
        self.records: dict[str, Record] = {}
        self.progress = progress
        self.bar: Any = None

    def __enter__(self) -> Search:
        from tqdm import tqdm

        total = sum(cost for _, _, cost in self._schedule())
        disable = None if self.progress is None else not self.progress
        form = "{desc}{percentage:3.0f}%|{bar}| {elapsed} gone, about {remaining} to go{postfix}"
        self.bar = tqdm(total=round(total), desc="compare", bar_format=form, disable=disable, leave=False)
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def _schedule(self) -> list[tuple[int, int, float]]:
        """Return (rung, candidates in it, its cost) as far as it can be known in advance."""
        rows, count = [], len(self.everyone)
        mean = sum(_cost(one, one.method.epochs) for one in self.everyone) / count
        for rung in range(self.plan.rungs):
            share = self._share(rung) - (self._share(rung - 1) if rung else 0.0)
            rows.append((rung, count, count * mean * share))
            count = max(2, -(-count // self.plan.keep))
        return rows

    def _share(self, rung: int) -> float:
        """Return the share of its epochs that a candidate may have had after a rung."""
        return float(self.plan.keep ** (rung - self.plan.rungs + 1))

    def halve(self) -> None:
        """Train all candidates a little, and the promising ones on."""
        alive = [one for one in self.everyone if one.kind != "post"]
        for rung in range(self.plan.rungs):
            tasks = [(one, max(self.least, round(one.method.epochs * self._share(rung)))) for one in alive]
            self.advance(tasks)
            measured = [one for one in alive if trained_by_fit(one.method)]
            if rung + 1 < self.plan.rungs:
                last = rung + 2 == self.plan.rungs
                alive = promoted(measured, self.records, self.plan, self.base.name, last)
                self._forget([one for one in measured if one not in alive])
                most = max(epochs for _, epochs in tasks)
                names = ", ".join(one.name for one in alive)
                self.note(f"after {most} epochs at most, {len(alive)} of {len(measured)} go on: {names}")
        self.advance([(one, one.method.epochs) for one in self.everyone if one.kind == "post"], base=self.base.name)

    def _forget(self, left: Sequence[Candidate]) -> None:
        """Remove what only further training needs, several times a model's size, of candidates that were left."""
        for one in left:
            folder = self.folder / TRIALS / one.name
            with locked(folder):
                (folder / CHECKPOINT).unlink(missing_ok=True)

    def train_seeds(self, taken: str) -> None:
        """Train the chosen setting and BPR with the further seeds."""
        chosen = {self.base.name, taken}
        tasks = [
            (of_seed(one, seed), one.method.epochs)
            for one in self.everyone
            if one.name in chosen
            for seed in self.plan.seeds[1:]
        ]
        self.advance(tasks)
        for one, _ in tasks:
            if self.records[one.name].failed:
                raise ValueError(f"{one.name}: {self.records[one.name].failed}")

    def advance(self, tasks: Sequence[tuple[Candidate, int]], base: str | None = None) -> None:
        """Train candidates to the epochs given, the longest first, and keep their records."""
        order = sorted(tasks, key=lambda task: -_cost(*task))
        done = {one.name: read_record(self.folder / TRIALS / one.name, one.method) for one, _ in order}
        before = {name: 0 if record is None else record.epochs for name, record in done.items()}

        def after_each(place: int, record: Record) -> None:
            one, epochs = order[place]
            self.records[one.name] = record
            if record.failed:
                self.note(f"{one.name}: could not be trained: {record.failed}")
            self.bar.set_postfix_str(one.name, refresh=False)
            self.bar.update(max(0, round(_cost(one, epochs) - _cost(one, before[one.name]))))

        run = os.fspath(self.folder)
        keys = self.plan.keys
        self.workers.run(advance, [(run, one, epochs, keys, base) for one, epochs in order], after_each)
        failed = self.records.get(self.base.name)
        if failed is not None and failed.failed:
            raise ValueError(f"BPR, which all are compared with, could not be trained: {failed.failed}")


# After fewer steps than these nothing can be said of a candidate.
_LEAST_STEPS = 300


def least_epochs(plan: Plan, interactions: int) -> int:
    """Return the epochs that every candidate gets before any is left, so that small data are not judged by noise."""
    return max(1, -(-_LEAST_STEPS // max(1, -(-interactions // plan.batch(interactions)))))


def _cost(one: Candidate, epochs: int) -> float:
    """Return about how long a candidate takes, in epochs of BPR."""
    return min(epochs, one.method.epochs) * (1 + one.method.negatives / 6)


def of_seed(one: Candidate, seed: int) -> Candidate:
    """Return a candidate with another seed."""
    return replace(one, name=f"{one.name}-seed{seed}", method=replace(one.method, seed=seed))
