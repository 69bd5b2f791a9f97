"""A run folder, opened: its models, its figures, and recommendations by external ids."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from zerosum_ext import metrics, models
from zerosum_ext._checks import MOST_K, require_choice, require_positive_int
from zerosum_ext._files import replacing
from zerosum_ext.data.interactions import Interactions, Split
from zerosum_ext.data.wording import option
from zerosum_ext.evaluation.full import Ranking
from zerosum_ext.experiments import plots
from zerosum_ext.experiments.runs.files import read_config, read_history, read_metrics, read_split, write_json
from zerosum_ext.experiments.runs.method import measure, popularity_of, read_model
from zerosum_ext.experiments.runs.settings import DataSource, Method
from zerosum_ext.training import History

# Score matrices are drawn up to this many cells. Beyond that a picture shows nothing.
_CELLS_DRAWN = 2_000_000


@dataclass(frozen=True)
class Recommended:
    """A user's recommendations, best first: external ids and scores; fewer than asked for where items run out."""

    user: Any
    items: list[Any]
    scores: list[float]


class Run:
    """A run folder, opened.

    Attributes:
        folder: its path.
        config: what config.json holds.
        split: the interactions that were trained on, validated and tested with, with their external ids.
        methods: {name: Method}, the main one last.
        metrics: {name: {metric: value}} of the methods that are finished.
    """

    def __init__(self, folder: Path, config: dict[str, Any], split: Split) -> None:
        self.folder, self.config, self.split = folder, config, split
        self.methods = {name: Method(**values) for name, values in config["methods"].items()}

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """Open a folder that :func:`train` wrote.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it is not a run folder, or a damaged one. The message says how.
        """
        path = Path(folder)
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: there is no such run folder")
        config = read_config(path)
        try:
            return cls(path, config, read_split(path / "interactions.npz"))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is a damaged run folder: {error!r}") from None
        except ValueError as error:
            if str(path) in str(error):
                raise
            raise ValueError(f"{path / 'config.json'} is damaged: {error}") from None

    @property
    def main(self) -> str:
        """The name of the method that the run is about."""
        return str(list(self.methods)[-1])

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Return {name: {metric: value}} of the methods that are finished."""
        found = {name: self.folder / name / "metrics.json" for name in self.methods}
        return {name: read_metrics(path) for name, path in found.items() if path.is_file()}

    @property
    def histories(self) -> dict[str, History]:
        """Return {name: History} of the methods that are trained."""
        found = {name: self.folder / name / "history.json" for name in self.methods}
        return {name: read_history(path) for name, path in found.items() if path.is_file()}

    def model(self, method: str | None = None) -> nn.Module:
        """Return the trained model of a method, by default of the main one."""
        name = self._name(method)
        try:
            return read_model(self.methods[name], self.split.train, self.folder / name / "model.safetensors")
        except ValueError as error:
            if str(self.folder) in str(error):
                raise
            raise ValueError(f"{self.folder / 'config.json'} is damaged: methods: {name}: {error}") from None

    def _name(self, method: str | None) -> str:
        return self.main if method is None else require_choice("method", method, list(self.methods))

    def evaluate(
        self,
        data: DataSource | Interactions | None = None,
        *,
        methods: Sequence[str] | None = None,
        k: Sequence[int] | None = None,
        skip_unknown: bool = False,
        note: Callable[[str], Any] = lambda text: None,
    ) -> tuple[dict[str, dict[str, float]], int]:
        """Measure the run's models again, on its own test part or on other interactions.

        Args:
            data: held-out interactions with the run's ids. None: the run's test part.
            methods: names of the methods to measure, by default all.
            k: cut-offs, by default those of the run.
            skip_unknown: leave out rows of users or items that the run does not know, instead of raising.
            note: called with a warning if models are measured on interactions that they were trained on.

        Returns:
            ({method: {metric: value}}, rows left out).
        """
        split, skipped = self.split, 0
        if data is not None:
            read = data.read() if isinstance(data, DataSource) else data
            test, skipped = self._in_my_ids(read, skip_unknown)
            new = (test | split.train).nnz - split.train.nnz
            if new < test.nnz:
                note(f"{test.nnz - new:,} of the {test.nnz:,} interactions to measure on were trained on")
            split = split._replace(test=test)
        wanted = self.config["evaluation"]["k"] if k is None else k
        cutoffs = tuple(require_positive_int("k", value, maximum=MOST_K) for value in wanted)
        popularity = popularity_of(self.split)
        names = list(self.methods) if methods is None else [self._name(name) for name in methods]
        return {n: measure(self.model(n), split, k=cutoffs, popularity=popularity)[0] for n in names}, skipped

    def _in_my_ids(self, data: Interactions, skip_unknown: bool) -> tuple[Interactions, int]:
        """Number other interactions as this run does. Return them and the count of rows left out."""
        users, items = (t.numpy() for t in data.pairs())
        train = self.split.train
        mapped, known = [], np.ones(users.size, bool)
        for what, ids in (("user", data.decode_users(users)), ("item", data.decode_items(items))):
            index, found = self._find_known(what, data, ids, skip_unknown)
            mapped.append(index)
            known &= found
        if not known.any():
            raise ValueError(f"{data.report.source}: no row is of a user and an item that the run knows")
        test = Interactions.from_arrays(mapped[0][known], mapped[1][known], shape=train.shape)
        return test, int((~known).sum())

    def _find_known(
        self, what: str, data: Interactions, ids: np.ndarray, skip_unknown: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (the number of each user or item here, whether it is known), or raise if unknown ones are errors."""
        train = self.split.train
        mine = (train.user_ids, train.num_users) if what == "user" else (train.item_ids, train.num_items)
        index, found = _find(ids, *mine)
        if not found.all() and not skip_unknown:
            raise ValueError(
                f"{data.report.source}: the run knows no {what} {ids[~found][0].item()!r} "
                f"({int((~found).sum()):,} of {found.size:,} rows are of unknown {what}s); "
                f"{option('skip unknown')} leaves such rows out"
            )
        return index, found

    def recommend(
        self, users: Sequence[Any], k: int = 10, *, method: str | None = None, include_seen: bool = False
    ) -> list[Recommended]:
        """Return the k best items of each user, by external ids.

        Args:
            users: external ids. Text is read as a number if the run's ids are numbers.
            k: the number of items for each user.
            method: the method whose model recommends, by default the main one.
            include_seen: recommend items that the user has interacted with too.

        Raises:
            ValueError: a user that the run does not know, or scores with NaN.
        """
        require_positive_int("k", k, maximum=MOST_K)
        train = self.split.train
        index = self._numbers(users)
        seen = None if include_seen else self.seen()
        items, scores = self.model(method).recommend(index, k, exclude=seen)  # type: ignore[operator]
        return self._recommended(train.decode_users(index), items, scores)

    def recommend_by_history(
        self,
        data: DataSource | Interactions,
        k: int = 10,
        *,
        users: Sequence[Any] | None = None,
        method: str | None = None,
        include_seen: bool = False,
        skip_unknown: bool = False,
        note: Callable[[str], Any] = lambda text: None,
    ) -> list[Recommended]:
        """Return the k best items of users by what they have in other interactions, without training.

        Users may be new to the run. One whom the run knows has the interactions of the run too. The row of each is
        folded in with the loss of the method (see :meth:`zerosum_ext.MatrixFactorization.fold_in`).

        Args:
            data: interactions with items of the run.
            k: the number of items for each user.
            users: external ids of users of ``data``. None: all of them.
            method: the method whose model recommends, by default the main one.
            include_seen: recommend items that the user has too.
            skip_unknown: leave out rows of items that the run does not know, instead of raising.
            note: called with what was left out.

        Raises:
            ValueError: an item that the run does not know, a user without interactions in ``data``, or a model that
                folds nobody in.
        """
        require_positive_int("k", k, maximum=MOST_K)
        name = self._name(method)
        ids, histories = self._histories(data.read() if isinstance(data, DataSource) else data, skip_unknown, note)
        if users is not None:
            place, found = _find(np.asarray(list(users)), ids, len(ids))
            if not found.all():
                raise ValueError(f"user ids: the history has no user {list(users)[int(np.argmin(found))]!r}")
            ids, histories = ids[place], Interactions.from_scipy(histories.to_scipy()[place])
        model: Any = self.model(name)
        options: dict[str, Any] = {}
        if type(model).fold_in is models.DotProductRecommender.fold_in:  # others take no loss, or refuse
            loss = self.methods[name].make_loss(self.split.train)
            options = {} if loss is None else {"loss": loss, "l2": models.usual_l2(self.methods[name].loss)}
        rows = model.fold_in(histories, **options)
        return self._recommended(ids, *model.recommend_for(rows, k, exclude=None if include_seen else histories))

    def _histories(
        self, data: Interactions, skip_unknown: bool, note: Callable[[str], Any]
    ) -> tuple[np.ndarray, Interactions]:
        """Return the external ids of the users of other interactions, and their items here [n, num_items]."""
        users, items = (t.numpy() for t in data.pairs())
        train = self.split.train
        index, known = self._find_known("item", data, data.decode_items(items), skip_unknown)
        if not known.any():
            raise ValueError(f"{data.report.source}: no row is of an item that the run knows")
        if not known.all():
            lost = len(np.unique(users)) - len(np.unique(users[known]))
            rest = f"; {lost:,} users have no other item, and get no list" if lost else ""
            note(f"{int((~known).sum()):,} rows are of items that the run does not know, and were left out{rest}")
        numbers, row = np.unique(users[known], return_inverse=True)
        ids = data.decode_users(numbers)
        mine, found = _find(ids, train.user_ids, train.num_users)
        before = self.seen().to_scipy()[mine[found]].tocoo()
        return ids, Interactions.from_arrays(
            np.concatenate([row, np.flatnonzero(found)[before.row]]),
            np.concatenate([index[known], before.col]),
            shape=(len(ids), train.num_items),
        )

    def _numbers(self, users: Sequence[Any]) -> np.ndarray:
        """Return the numbers of external ids of users, or raise and say what serves new ones."""
        try:
            return self.split.train.encode_users(np.asarray(list(users)))
        except ValueError as error:
            raise ValueError(f"{error}; {option('history')} recommends for users who are new") from None

    def _recommended(self, users: np.ndarray, items: torch.Tensor, scores: torch.Tensor) -> list[Recommended]:
        """Return lists by external ids, of external ids of users and items and scores [n, k]."""
        return [
            Recommended(user, self.split.train.decode_items(row[row >= 0]).tolist(), values[row >= 0].tolist())
            for user, row, values in zip(users.tolist(), items.cpu().numpy(), scores.cpu().numpy(), strict=True)
        ]

    def write_recommendations(
        self,
        path: str | os.PathLike[str],
        k: int = 10,
        *,
        users: Sequence[Any] | None = None,
        method: str | None = None,
        include_seen: bool = False,
        progress: bool | None = None,
        resume: bool = False,
    ) -> int:
        """Write the k best items of many users to a parquet or CSV file, by external ids and with bounded memory.

        Args:
            path: ends in ".parquet", ".csv" or ".csv.gz".
            k: the number of items for each user.
            users: external ids as in :meth:`recommend`. None: all users.
            method: the method whose model recommends, by default the main one.
            include_seen: recommend items that the user has interacted with too.
            progress: whether to show the progress bar. None shows it on a terminal.
            resume: as in :func:`zerosum_ext.models.write_recommendations`.

        Returns:
            The number of rows.
        """
        train = self.split.train
        return models.write_recommendations(
            self.model(method),  # type: ignore[arg-type]  # of a run it is a Recommender
            path,
            k,
            users=None if users is None else self._numbers(users),
            exclude=None if include_seen else self.seen(),
            vocabulary=train.vocabulary,
            progress=progress,
            resume=resume,
        )

    def seen(self) -> Interactions:
        """Return all interactions that the run knows of: its three parts together."""
        return self.split.train | self.split.valid | self.split.test

    # --- what is written once all methods are trained --------------------------------------------------------

    def write_tables(self) -> None:
        """Write metrics.json and history.csv of the methods that are finished."""
        write_json(self.folder / "metrics.json", self.metrics)
        histories = self.histories
        metric = self.methods[self.main].metric
        with replacing(self.folder / "history.csv") as part, open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["method", "epoch", "loss", f"validation {metric}", "seconds", "samples"])
            for name, history in histories.items():
                validation: list[Any] = list(history.validation) or [""] * len(history)
                for epoch, row in enumerate(zip(history, validation, history.seconds, history.samples, strict=True)):
                    writer.writerow([name, epoch + 1, *row])

    def draw(self, rankings: Mapping[str, Ranking]) -> None:
        """Draw the figures from {method: ranking of :func:`measure`}."""
        popularity = popularity_of(self.split)
        quantiles, curves = {}, {}
        for name, ranking in rankings.items():
            positives = (ranking.positive_users, ranking.items, ranking.scores)
            quantiles[name] = metrics.pop_q_at_1(*positives, popularity, reduction="none")
            items, ranks = metrics.average_ranks(*positives)
            curves[name] = (popularity.numpy()[items], ranks)
        plots.training_curves(self.histories, self.folder / "curves.png")
        plots.popq_histogram(quantiles, self.folder / "popq.png")
        plots.rank_curves(curves, self.folder / "ranks.png")
        if self.split.train.num_users * self.split.train.num_items <= _CELLS_DRAWN:
            self._draw_scores(list(rankings), popularity)

    def _draw_scores(self, names: Sequence[str], popularity: torch.Tensor) -> None:
        active = torch.argsort(self.split.train.user_counts, descending=True, stable=True)
        popular = torch.argsort(popularity, descending=True, stable=True)
        scores = {}
        with torch.no_grad():
            for name in names:
                users = active.to(self.methods[name].device)
                scores[name] = self.model(name).score_all_items(users).cpu()[:, popular]  # type: ignore[operator]
        labels = ("item, most popular first", "user, most active first")
        plots.score_matrices(scores, self.folder / "scores.png", *labels)


def _find(ids: np.ndarray, known: np.ndarray | None, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (index of each id, whether it is known)."""
    if known is None:
        if ids.dtype.kind not in "iu":
            return np.zeros(ids.shape, np.int64), np.zeros(ids.shape, bool)
        return ids.astype(np.int64), (ids >= 0) & (ids < size)
    if (ids.dtype.kind == "U") != (known.dtype.kind == "U"):
        ids = ids.astype(known.dtype if known.dtype.kind == "U" else np.str_)
        known = known if known.dtype.kind == "U" else known.astype(np.str_)
    order = np.argsort(known, kind="stable")
    place = np.minimum(np.searchsorted(known, ids, sorter=order), size - 1)
    index = order[place]
    return index, known[index] == ids
