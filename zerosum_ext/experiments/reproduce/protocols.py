"""The protocols: how a cell is trained and measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from zerosum_ext import metrics
from zerosum_ext._checks import require_choice
from zerosum_ext.data import datasets
from zerosum_ext.data.interactions import Interactions, Split
from zerosum_ext.data.sampling import sample_negatives
from zerosum_ext.evaluation.full import evaluate
from zerosum_ext.experiments.reproduce.experiment import AT_INFERENCE, Cell, Experiment
from zerosum_ext.experiments.reproduce.file import CUTOFFS
from zerosum_ext.experiments.runs import MACR_REFERENCES, measure
from zerosum_ext.models import MACR, Compensated, MethodParts
from zerosum_ext.training import EpochEnd, fit

_EVALUATION_NEGATIVES = 100


def run_cell(cell: Cell, data: str | None) -> Measured:
    """Train and measure a cell by the protocol of its experiment. ``data`` is the digest of the data's file."""
    return _synthetic(cell) if cell.experiment.protocol == "synthetic" else _benchmark(cell, data)


class Measured(NamedTuple):
    """What a cell yields: figures by epoch ("last", "best"), the history, and all scores if the data are synthetic."""

    metrics: dict[str, dict[str, float]]
    history: dict[str, Any]
    trained_here: bool
    scores: np.ndarray | None = None


class _Trained(NamedTuple):
    """A model with its weights after the last and the best epoch."""

    digest: str
    model: nn.Module
    states: dict[str, dict[str, Tensor]]
    best_epoch: int | None
    history: dict[str, Any]


# The model that this process trained last, for cells that differ from it at inference alone, and the data read last.
_last_trained: list[_Trained] = []
_last_data: list[tuple[str, _Data]] = []
_last_split: list[tuple[str, Split]] = []


def synthetic_data(experiment: Experiment) -> Interactions:
    """Return the synthetic interactions that the experiment names."""
    sources = {"triangle": datasets.synthetic_triangle, "synthetic4": datasets.synthetic4}
    return Interactions.from_scipy(sources[require_choice("data.source", experiment.data.source, list(sources))]())


def _synthetic(cell: Cell) -> Measured:
    x = synthetic_data(cell.experiment)
    # The released file is in the order of the items.
    by_item = torch.argsort(x.indices, stable=True)
    parts = cell.method.make_parts(x)

    def figures(model: nn.Module) -> dict[str, float]:
        names = ("pairwise_accuracy", "pri", "pop_q_at_1", "upo")
        found = evaluate(model, None, x, metrics=names, popularity=x, exclude=None)
        return {"error": 1 - found.pop("pairwise_accuracy"), **found}

    def watch(model: nn.Module) -> dict[str, float]:
        return figures(parts.inference(model))  # type: ignore[arg-type]

    trained, here = _train(cell, x, parts, file_order=by_item, watch=watch)
    ranker = parts.inference(trained.model)  # type: ignore[arg-type]
    # There is no validation part: what is evaluated is what was trained on.
    chosen = _choose_reference(cell, ranker, lambda model: -figures(model)["error"])
    found = figures(ranker)
    ranker.eval()
    scores = ranker.score_all_items(torch.arange(x.num_users)).detach().numpy()
    return Measured({"last": {**found, **chosen}}, trained.history, here, scores)


class _Data(NamedTuple):
    everything: Interactions
    split: Split
    negatives: Tensor


def _key_of_data(experiment: Experiment, digest: str | None) -> str:
    """Return what the parts of an experiment follow from, as text."""
    settings = [vars(experiment.data), digest, vars(experiment.split), experiment.split_seed]
    return json.dumps(settings, default=str)


def _split(experiment: Experiment, everything: Interactions) -> Split:
    """Split the interactions; where there is no validation part, a tenth of the training part becomes it."""
    split = experiment.split.apply(everything)
    if split.valid.nnz == 0:
        train, valid = split.train.split_random((0.9, 0.1), seed=experiment.split_seed)[::2]
        split = split._replace(train=train, valid=valid)
    return split


def _benchmark_data(experiment: Experiment, digest: str | None = None) -> _Data:
    """Return the data of an experiment, read anew only if they differ from those of the call before.

    ``digest`` is that of the file, if it is known.
    """
    key = _key_of_data(experiment, digest or experiment.data_digest())
    if not _last_data or _last_data[0][0] != key:
        _last_trained.clear()  # perhaps on what the file held before
        everything = experiment.data.read()
        split = _split(experiment, everything)
        users = torch.arange(everything.num_users)
        negatives = sample_negatives(
            everything, users, _EVALUATION_NEGATIVES, seed=experiment.split_seed, replacement=False
        )
        _last_data[:] = [(key, _Data(everything, split, negatives))]
    return _last_data[0][1]


def tuned_data(experiment: Experiment, digest: str | None = None) -> Split:
    """Return the parts that the protocol "tuned" works on, read anew only if they differ from those before."""
    key = _key_of_data(experiment, digest or experiment.data_digest())
    if not _last_split or _last_split[0][0] != key:
        _last_split[:] = [(key, _split(experiment, experiment.data.read()))]
    return _last_split[0][1]


def _benchmark(cell: Cell, data: str | None) -> Measured:
    everything, split, negatives = _benchmark_data(cell.experiment, data)
    exclude = split.valid | split.test if cell.experiment.leak else None
    if exclude is not None and cell.experiment.leak is True:
        owners = torch.arange(everything.num_users).repeat_interleave(negatives.shape[1])
        exclude = exclude | Interactions.from_arrays(owners, negatives.reshape(-1), shape=everything.shape)

    parts = cell.method.make_parts(split.train)

    def validate(model: nn.Module) -> float:
        return _sampled(model, split.valid, negatives)["ndcg@10"]

    def validate_trained(model: nn.Module) -> float:
        # What is trained once for several strengths has one best epoch for all of them.
        shared = cell.method.loss in AT_INFERENCE
        return validate(model if shared else parts.inference(model))  # type: ignore[arg-type]

    order = torch.randperm(split.train.nnz, generator=torch.Generator().manual_seed(cell.experiment.split_seed))
    trained, here = _train(cell, split.train, parts, file_order=order, exclude=exclude, validation=validate_trained)
    found = {}
    for epoch, state in trained.states.items():
        trained.model.load_state_dict(state)
        ranker = parts.inference(trained.model)  # type: ignore[arg-type]
        chosen = _choose_reference(cell, ranker, validate)
        found[epoch] = _measured(ranker, split, negatives, everything.popularity) | chosen
    if trained.best_epoch is not None:
        found["best"]["epoch"] = trained.best_epoch + 1
    return Measured(found, trained.history, here)


def _choose_reference(cell: Cell, model: nn.Module, validate: Callable[[nn.Module], float]) -> dict[str, float]:
    """Set the c of MACR to the best one in validation unless the file gives it. Return {"c": it}, or {} otherwise."""
    if not isinstance(model, MACR):
        return {}
    if "c" in cell.method.loss_options:
        model.set_strength(cell.method.loss_options["c"])
    else:
        values = {}
        for candidate in MACR_REFERENCES:
            model.set_strength(candidate)
            values[candidate] = validate(model)
        model.set_strength(max(values, key=values.__getitem__))
    return {"c": float(model.c)}


def _train(
    cell: Cell,
    train: Interactions,
    parts: MethodParts,
    *,
    file_order: Tensor,
    exclude: Interactions | None = None,
    validation: Callable[[nn.Module], float] | None = None,
    watch: Callable[[nn.Module], dict[str, float]] | None = None,
) -> tuple[_Trained, bool]:
    """Return the trained model of a cell, and whether it was trained for it (or else for the cell before).

    What ``watch`` returns after each epoch is in the history as "figures".
    """
    method, digest = cell.method, cell.trained_digest
    assert parts.loss is not None  # as the file of the experiment was checked for
    if _last_trained and _last_trained[0].digest == digest:
        return _last_trained[0], False
    best: dict[str, Any] = {"value": -1.0, "epoch": None}
    watched: list[dict[str, float]] = []

    def remember(end: EpochEnd) -> None:
        if watch is not None:
            watched.append(watch(end.model))
        if end.history.validation and end.history.validation[-1] > best["value"]:
            best.update(value=end.history.validation[-1], epoch=end.epoch, state=_copy(end.model))

    history = fit(
        parts.model,
        train,
        parts.loss,
        method.make_optimizer,
        regularizer=parts.regularizer,
        transform=_ReleasedPairing(train, file_order, method.seed) if cell.pairing == "released" else None,
        batch_size=method.batch_size,
        epochs=method.epochs,
        device=method.device,
        seed=method.seed,
        negatives=method.negatives,
        draws=method.draws,
        strategy=method.strategy,
        negatives_shared=method.negatives_shared,
        l2=method.l2,
        exclude=exclude,
        validation=validation,
        restore_best=False,
        callbacks=[remember],
        progress=False,
    )
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    states = {"last": _copy(parts.model)}
    if best["epoch"] is not None:
        states["best"] = best["state"]
    told = history.to_dict() | ({"figures": watched} if watch is not None else {})
    _last_trained[:] = [_Trained(digest, parts.model, states, best["epoch"], told)]
    return _last_trained[0], True


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


class _ReleasedPairing:
    """Replace second positives as the released code did (see the package's text), anew in every batch."""

    def __init__(self, train: Interactions, file_order: Tensor, seed: int) -> None:
        users, items = train.pairs()
        self.num_items = train.num_items
        self.keys = users.long() * train.num_items + items.long()  # ascending
        self.items, self.indptr, self.counts = items.long(), train.indptr.long(), train.user_counts.long()
        # Of each interaction, the user at its place in the table by user, where interactions are numbered as here.
        self.partner = torch.empty_like(users.long())
        self.partner[file_order] = users.long()
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, users: Tensor, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        place = torch.searchsorted(self.keys, users * self.num_items + positives[:, 0])
        partner = self.partner[place]
        step = (torch.rand(len(users), generator=self.generator) * self.counts[partner]).long()
        second = self.items[self.indptr[partner] + torch.minimum(step, self.counts[partner] - 1)]
        return users, torch.stack([positives[:, 0], second], dim=1), negatives


def _sampled(model: nn.Module, held_out: Interactions, negatives: Tensor, block: int = 1024) -> dict[str, float]:
    """Return the sampled Hit@10 and NDCG@10 of the held-out positives [RCS22 section 5]."""
    ranks = []
    training = model.training
    model.eval()
    # A compensated score needs all of a user's; others are taken one by one.
    whole = isinstance(model, Compensated)
    with torch.no_grad():
        for first in range(0, held_out.num_users, block):
            users = torch.arange(first, min(first + block, held_out.num_users))
            local = torch.repeat_interleave(users - first, held_out.user_counts[users])
            items = held_out.indices[held_out.indptr[first] : held_out.indptr[users[-1] + 1]].long()
            if whole:
                scores = model.score_all_items(users)  # type: ignore[operator]
                positive, negative = scores[local, items], scores.gather(1, negatives[users])
            else:
                positive, negative = model(users[local], items), model(users, negatives[users])
            ranks.append(metrics.sampled_ranks(positive, negative[local]))
    model.train(training)
    rank = np.concatenate(ranks)
    hit = rank <= 10
    return {"hit@10": float(hit.mean()), "ndcg@10": float((hit / np.log2(rank + 1)).mean())}


def _measured(model: nn.Module, split: Split, negatives: Tensor, popularity: Tensor) -> dict[str, float]:
    found, _ = measure(model, split, k=CUTOFFS, popularity=popularity)
    # In the paper Hit@10 and NDCG@10 are the sampled ones; "full/" marks those over all items.
    full = {f"full/{name}" if name in ("hr@10", "ndcg@10") else name: value for name, value in found.items()}
    return full | _sampled(model, split.test, negatives)
