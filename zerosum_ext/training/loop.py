"""The training loop: any model that scores (users, items), any loss on positive and negative scores.

    history = fit(model, train, "zerosum", epochs=20, validation=valid, metric="ndcg@10", patience=3)

Everything random follows from ``seed``: the samples are counter-based (seed, epoch, position). So a run that was
interrupted and resumed in the middle of an epoch ends in the same bits as one that was not.

This module is not called ``fit``: ``zerosum_ext.training.fit`` is the function, and a module of that name would take
its place when it is imported.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from zerosum_ext._checks import describe, require_device
from zerosum_ext._group import Group, as_group
from zerosum_ext._types import Strategy
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.data.shards import ShardedInteractions, digest_of
from zerosum_ext.losses import get_loss, loss_names, loss_options
from zerosum_ext.metrics import measure_of
from zerosum_ext.training.checkpoint import check_moments, fingerprint, read_checkpoint, write_checkpoint
from zerosum_ext.training.choice import Front, State
from zerosum_ext.training.console import Bar, Interrupt, deferred_interrupt, progress_bar
from zerosum_ext.training.engines import AutogradEngine, Parts, choose_engine
from zerosum_ext.training.growing import grown_optimizer_state, grown_tensor
from zerosum_ext.training.history import Callback, EpochEnd, History, StopTraining
from zerosum_ext.training.optimizers import OptimizerLike, load_optimizer_state, optimizer_from, optimizer_state
from zerosum_ext.training.parallel import ShardedEngine, is_sharded, parallel_engine
from zerosum_ext.training.parts import read_together, write_together
from zerosum_ext.training.regularizers import Regularizer
from zerosum_ext.training.settings import (
    Engine,
    Interval,
    Objective,
    Precision,
    Sampling,
    Saving,
    Schedule,
    Settings,
    Transform,
    Validation,
)
from zerosum_ext.training.validation import Evaluator, Validated, make_evaluator, matching_interactions

__all__ = ["fit"]

# Apart in torch's 64-bit seeds: seeds of fits that go on where others stopped.
_LATER_SEEDS = 0x9E3779B97F4A7C15


# More than thirty keywords, since each is a setting that users give by name. They are sorted into dataclasses at once.
def fit(
    model: nn.Module,
    interactions: Any,
    loss: str | nn.Module = "zerosum",
    optimizer: OptimizerLike = None,
    *,
    lr: float | None = None,
    batch_size: int = 2048,
    epochs: int = 20,
    device: torch.device | str | None = None,
    seed: int = 0,
    negatives: int = 1,
    draws: int = 1,
    strategy: Strategy = "uniform",
    negatives_shared: bool | int = False,
    exclude: Any = None,
    l2: float = 0.0,
    clip_row_norm: float | None = None,
    regularizer: Regularizer | None = None,
    transform: Transform | None = None,
    scheduler: Any = None,
    scheduler_interval: Interval = "epoch",
    validation: Any = None,
    metric: str = "ndcg@10",
    maximize: bool = True,
    patience: int | None = None,
    restore_best: bool = True,
    bias: str | None = None,
    max_cost: float = 0.05,
    callbacks: Iterable[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    resume_grown: bool = False,
    progress: bool | None = None,
    engine: Engine = "auto",
    precision: Precision = "float32",
    sample_weight: Literal["weights", "drawn"] | None = None,
    first_epoch: int | None = None,
    mesh: Any = None,
) -> History:
    """Train a model in place on sampled (user, positives, negatives).

    Args:
        model: an nn.Module that is called as ``model(users [B], items [B, J])`` and returns scores [B, J].
        interactions: the training positives: :class:`~zerosum_ext.Interactions`, or a scipy or torch CSR.
        loss: a name of :func:`zerosum_ext.losses.get_loss`; a loss that needs popularities gets those of the training
            positives. Or a module that is called as ``loss(pos, neg)`` with pos [B] and neg [B], or neg [B, K] for K
            negatives. A loss whose ``num_positives`` is 2 gets pos and neg [B, 2]: two positives and two negatives of
            one user. Its reduction must be "mean" or "sum". A loss without this attribute counts as "mean".
        optimizer: "adam", "sgd", "adagrad", "sparse_adam" or "adamw"; or a class of torch.optim, another callable that
            makes an optimizer from a list of parameters, or a torch.optim.Optimizer. None is "adam": dense
            torch.optim.Adam, with lr 1e-3 as in [RCS22].
        lr: the learning rate of an optimizer that is given by its name or class. None is torch's default.
        batch_size: the number of samples of a step.
        epochs: the number of epochs. An epoch visits each positive ``draws`` times, each time with fresh negatives.
        device: where to train; the model is moved there. None leaves it where it is.
        seed: the seed of samples, dropout and all else that is random. torch's global generators stay as they were.
        negatives: the number K of negatives of each positive.
        draws: the number of visits to each positive in an epoch. [RCS22] uses 3.
        strategy: how negatives are drawn, as in :func:`zerosum_ext.sample_negatives`.
        negatives_shared: how many samples in succession share their negatives, as in
            :class:`~zerosum_ext.TripletLoader`. True is 64. The fused engines are then several times as fast with many
            negatives. Hogwild trains on such a block as on a mini-batch whose gradients are summed.
        exclude: a further matrix of the same shape whose cells are not drawn as negatives. None excludes the training
            positives alone, which is the honest setting. The released code of [RCS22] also excludes the negatives of
            the evaluation. That is a leak, and its published MovieLens figures need it.
        l2: the weight of ``model.l2_penalty(users, items)``, which is half the mean over the batch of the summed
            squared norms of the gathered rows ([BPR09] section 4.3.1).
        clip_row_norm: the largest norm of a row of a gradient; longer rows are scaled down to it. The first dimension
            of a gradient counts its rows.
        regularizer: a term over all training positives, such as
            :class:`~zerosum_ext.training.regularizers.PearsonRegularizer`. Its ``every`` says when it is added.
        transform: is called with (users, positives, negatives) of each batch and returns those to train on: int64
            tensors of shapes that the loss takes. A run that is to be resumed needs a transform without memory.
        scheduler: a torch learning-rate scheduler on ``optimizer``, or a callable that makes one from it.
        scheduler_interval: whether the scheduler advances after each "epoch" or each "step". ReduceLROnPlateau advances
            after each epoch by the validation value, or by the loss without validation.
        validation: interactions of the same shape to evaluate on after each epoch, with training items excluded; or a
            callable that takes the model and returns a number.
        metric: the key of :func:`zerosum_ext.evaluate` to watch: "ndcg@10", "recall@20", "pop_q_at_1", ...
        maximize: whether larger values of the metric are better.
        patience: stop after this many epochs without a better value. None runs all epochs.
        restore_best: with validation, end with the weights of the best epoch. False keeps those of the last.
        bias: a measure of bias or exposure to watch beside the metric: "pop_q_at_1", "upo", "arp@10", ... The best
            epoch is then the least biased one, by the measure's ideal (:data:`zerosum_ext.metrics.MEASURES`), among
            those that lose at most ``max_cost`` of the best value of the metric. Patience counts epochs that are
            neither more accurate nor, at that cost, less biased. Weights of all epochs that may still be chosen, mostly
            a few, stay in memory and in the checkpoint.
        max_cost: that share, in [0, 1).
        callbacks: are called with an :class:`EpochEnd` after each epoch. Training stops if one
            of them returns True or raises :class:`~zerosum_ext.training.StopTraining`.
        checkpoint: the file that the whole state is written to after each epoch and on an interrupt.
        checkpoint_every: also write it each time after this many steps.
        resume: a checkpoint to continue from, with the same data and settings. ``epochs`` and ``patience`` may differ.
        resume_grown: the data may have grown since the checkpoint, which must be of an epoch's end: more interactions,
            and users and items after those of before. Their rows are those that the model has now, and the optimizer
            begins with them. The best epoch is that of the new data.
        progress: whether to show the progress bar. None shows it on a terminal.
        engine: "autograd": forward, backward and optimizer step by torch.
            "fused": gather, loss, gradients and update in compiled code. It needs a float32 MatrixFactorization, a
            compiled loss, and torch.optim's SGD, Adagrad, Adam or SparseAdam without further options. Semantics and
            optimizer state are those of "autograd", so each can resume the other's checkpoint. The bits are the same
            for any number of threads.
            "hogwild": asynchronous SGD on single samples, the fastest. It needs the same on the CPU, and
            torch.optim.SGD. Each sample is a step with the learning rate lr; ``batch_size`` only says how steps are
            counted. Threads write into the tables without waiting for each other, so runs with several threads differ
            a little. With one thread a run can be repeated bit for bit.
            "auto": "fused" where it is possible, otherwise "autograd". On a GPU the fused steps are replayed as a CUDA
            graph.
        precision: "bfloat16" and "float16" run the model's forward pass under torch.autocast, which affects matrix
            products: models such as "mlp", "neumf" and "ngcf" spend their time there. Parameters, losses and updates
            stay float32. With "float16" the loss is scaled (torch.amp.GradScaler). Needs the engine "autograd".
        sample_weight: "weights" weighs each sample by the weight of its interaction (``interactions.weights``), which
            the loss takes as its ``sample_weight``; of two positives by the mean. Weights are taken as they are: a mean
            loss divides by the number of samples. On a GPU it needs the engine "autograd". "drawn" draws positives by
            these weights instead: interactions with replacement, as many as there are, each with a probability in
            proportion to its weight. Losses of two positives cannot be drawn so.
        first_epoch: the number of the first epoch, from which its samples follow. None goes on where the model's last
            training stopped (``model.epochs_trained``, 0 for modules without it). So fits of one epoch each draw what a
            single longer fit draws. A resumed run keeps the numbers of its checkpoint.
        mesh: a one-dimensional torch.distributed DeviceMesh, or a process group, whose processes train together; each
            of them calls fit with the same settings. ``batch_size`` counts the samples of all. They draw the samples of
            one process, and the losses are the same up to the order of additions. A model in one piece is trained data
            parallel, and every process needs all interactions. A
            :class:`~zerosum_ext.distributed.ShardedMatrixFactorization` takes
            :class:`~zerosum_ext.distributed.ShardedInteractions`; its checkpoint is a folder, from which any number of
            processes can resume. Callbacks are called in every process.

    Returns:
        The history. On Ctrl-C the current step is finished, a checkpoint is written if one was asked for, and the
        history of the whole epochs is returned with ``stopped="interrupted"``. The model then has the weights of the
        last step.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: an argument out of its range, data of another shape than the model, a damaged checkpoint or one of
            another run, or a loss that is no longer finite (the message names the epoch).
        OSError: a checkpoint that cannot be written, or that does not exist.

    References:
        [BPR09] Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009.
        [RCS22] Rhee, Cho, Suh, "Countering Popularity Bias by Regularizing Score Differences", RecSys 2022.

    Example:
        >>> import zerosum_ext as zx
        >>> data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3])
        >>> model = zx.MatrixFactorization(*data.shape, embedding_dim=8, seed=0)
        >>> history = zx.fit(model, data, "zerosum", epochs=3, batch_size=4, seed=0, progress=False)
        >>> len(history)
        3
    """
    settings = Settings(
        epochs=epochs,
        first_epoch=first_epoch,
        engine=engine,
        sampling=Sampling(batch_size, seed, negatives, draws, strategy, negatives_shared),
        objective=Objective(l2, clip_row_norm, regularizer, transform, precision, sample_weight),
        schedule=Schedule(scheduler, scheduler_interval),
        validation=Validation(validation, metric, maximize, patience, restore_best, bias, max_cost),
        saving=Saving(checkpoint, checkpoint_every, resume, resume_grown),
        callbacks=tuple(callbacks),
        progress=progress,
    )
    group = None if mesh is None else as_group(mesh)
    return _Run(
        _prepare(model, interactions, loss, (optimizer, lr), device, exclude, settings, group), settings
    ).train()


# --- before the first step -----------------------------------------------------------------------------------


def _prepare(
    model: nn.Module,
    interactions: Any,
    loss: str | nn.Module,
    optimizer: tuple[OptimizerLike, float | None],
    device: torch.device | str | None,
    exclude: Any,
    settings: Settings,
    group: Group | None,
) -> Parts:
    """Return the parts of a run, checked against each other and on one device."""
    place = None if device is None else require_device("device", device)
    sharded = is_sharded(model)
    if sharded != isinstance(interactions, ShardedInteractions) or (sharded and group is None):
        raise TypeError(
            "interactions: expected ShardedInteractions and mesh with a model in parts, and neither with another, "
            f"got {type(interactions).__name__} with {type(model).__name__}"
        )
    train = interactions if sharded else Interactions.from_any(interactions)
    if group is not None:
        _agree(group, train, loss, optimizer, exclude, settings)
    loss_module = _loss_module(loss, train)
    expected = (getattr(model, "num_users", train.shape[0]), getattr(model, "num_items", train.shape[1]))
    if train.shape != expected:
        raise ValueError(f"interactions: expected shape {expected} as the model's, got {train.shape}")
    if train.nnz == 0:
        raise ValueError("interactions: expected at least one interaction, got none")
    if settings.objective.l2 and not hasattr(model, "l2_penalty") and not sharded:
        raise ValueError(f"l2: expected 0, since {type(model).__name__} has no method l2_penalty(users, items)")
    if hasattr(model, "vocabulary") and (train.user_ids is not None or train.item_ids is not None):
        # The ids that its rows belong to from now on.
        setattr(model, "vocabulary", train.vocabulary)  # noqa: B010  (mypy)
    if place is not None:
        model.to(place)
    place = next(iter(model.parameters())).device
    loss_module.to(place)
    train = train.to(place)
    excluded = exclude if exclude is None or sharded else matching_interactions("exclude", exclude, train)
    chosen = _make_optimizer(*optimizer, model, loss_module)
    if isinstance(chosen, torch.optim.SparseAdam):  # which refuses dense gradients
        if settings.objective.regularizer is not None:
            raise ValueError("regularizer: expected None with SparseAdam, which takes no gradient of all rows")
        if hasattr(model, "use_sparse_gradients"):
            model.use_sparse_gradients()  # type: ignore[operator]
    return Parts(model, train, loss_module, chosen, excluded, group)


def _agree(
    group: Group, train: Any, loss: Any, optimizer: tuple[OptimizerLike, float | None], exclude: Any, settings: Settings
) -> None:
    """Raise in every process if they were told different things, which would make some wait for others for ever."""
    if group.size == 1:
        return

    def name(value: Any) -> str | None:
        return value if value is None or isinstance(value, str) else getattr(value, "__name__", type(value).__name__)

    sampling, objective, validation, saving = (
        settings.sampling,
        settings.objective,
        settings.validation,
        settings.saving,
    )
    told: dict[str, Any] = {
        "epochs": settings.epochs,
        "first_epoch": settings.first_epoch,
        "engine": settings.engine,
        "loss": name(loss),
        "optimizer": name(optimizer[0]),
        "lr": optimizer[1],
        **{field.name: getattr(sampling, field.name) for field in fields(sampling)},
        "l2": objective.l2,
        "clip_row_norm": objective.clip_row_norm,
        "regularizer": name(objective.regularizer),
        "scheduler": name(settings.schedule.scheduler),
        "exclude": exclude is not None,
        "validation": validation.source is not None,
        **{key: getattr(validation, key) for key in ("metric", "maximize", "patience", "restore_best", "bias")},
        "checkpoint": saving.path is not None,
        "checkpoint_every": saving.every,
        "resume": saving.resume is not None,
    }
    if isinstance(train, Interactions):
        told["interactions"] = digest_of(train)
    group.agree("fit", told)


def _loss_module(loss: str | nn.Module, train: Interactions) -> nn.Module:
    """Return the loss as a module. A loss by name that needs popularities takes those of the training part."""
    module = loss
    if isinstance(loss, str):
        known = loss in loss_names() and "popularity" in loss_options(loss)
        module = get_loss(loss, **({"popularity": train.popularity} if known else {}))
    if not isinstance(module, nn.Module):
        hint = "; CustomLoss makes a module of a function and its derivative" if callable(loss) else ""
        raise TypeError(f"loss: expected a name or an nn.Module, got {describe(loss)}{hint}")
    if getattr(module, "reduction", "mean") not in ("mean", "sum"):
        raise ValueError(f"loss: expected reduction 'mean' or 'sum', got {module.reduction!r}")
    return module


def _make_optimizer(given: OptimizerLike, lr: float | None, model: nn.Module, loss: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in [*model.parameters(), *loss.parameters()] if p.requires_grad]
    if not parameters:
        raise ValueError("model: expected a parameter that requires a gradient, got none")
    optimizer = optimizer_from(given, parameters, lr)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in parameters):
        raise ValueError("optimizer: expected one that holds parameters of the model, got one that holds none of them")
    return optimizer


def _make_scheduler(schedule: Schedule, optimizer: torch.optim.Optimizer) -> Any:
    scheduler = schedule.scheduler
    if callable(scheduler) and not hasattr(scheduler, "step"):
        scheduler = scheduler(optimizer)
    if scheduler is not None and not hasattr(scheduler, "step"):
        raise TypeError(f"scheduler: expected a torch scheduler, got {type(scheduler).__name__}")
    if schedule.each_step and _is_on_plateau(scheduler):
        raise ValueError("scheduler_interval: expected 'epoch' with ReduceLROnPlateau, got 'step'")
    return scheduler


def _is_on_plateau(scheduler: Any) -> bool:
    return isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)


def _asks_to_stop(callback: Callback, event: EpochEnd) -> bool:
    try:
        answer = callback(event)
    except StopTraining:
        return True
    # A callback may return whatever its last line gives, as the length of a line that it has written.
    return isinstance(answer, (bool, np.bool_)) and bool(answer)


# --- the loop ------------------------------------------------------------------------------------------------


class _Run:
    """One run of training: where it stands, and how it goes on from there."""

    def __init__(self, parts: Parts, settings: Settings) -> None:
        self.parts, self.settings = parts, settings
        validation = settings.validation
        self.group = parts.group
        self.evaluator: Evaluator | None = make_evaluator(
            validation.source, validation.metric, parts.train, parts.model, validation.bias, parts.group
        )
        # The number of the first epoch: that given, or where the model's last training stopped.
        counted = int(getattr(parts.model, "epochs_trained", 0))
        self.first_epoch = counted if settings.first_epoch is None else settings.first_epoch
        choose = choose_engine if parts.group is None else parallel_engine
        self.engine: AutogradEngine | ShardedEngine = choose(parts, settings)(parts, settings)
        self.scheduler = _make_scheduler(settings.schedule, parts.optimizer)
        saving = settings.saving
        self.fingerprint: dict[str, Any] = {}
        if saving.path is not None or saving.resume is not None:
            self.fingerprint = fingerprint(parts, settings, self.engine.name)
        self.history = History()
        # Where the run stands; a checkpoint holds this beside the state of the parts.
        self.epoch = 0
        self.step = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=parts.device)
        self.seconds = 0.0
        self.best_value: float | None = None
        self.best_state: dict[str, Tensor] | None = None
        self.epochs_since_best = 0
        self.front = None if validation.bias is None else Front(validation.maximize, validation.max_cost)

    def train(self) -> History:
        """Train until the last epoch, a reason to stop, or Ctrl-C."""
        settings, model = self.settings, self.parts.model
        devices = [self.parts.device] if self.parts.device.type == "cuda" else []
        was_training = model.training
        with torch.random.fork_rng(devices=devices), deferred_interrupt() as interrupt:
            # What draws from torch's generators, as dropout, goes on where an earlier fit stopped, too.
            torch.manual_seed((settings.sampling.seed + _LATER_SEEDS * self.first_epoch) % 2**64)
            if settings.saving.resume is not None:
                self._load(os.fspath(settings.saving.resume))
            self.history.engine, self.history.optimizer = self.engine.name, self.parts.optimizer
            self.history.metric = None if self.evaluator is None else settings.validation.metric
            self.history.stopped = "completed"
            model.train()
            steps = self.engine.steps
            shown = settings.progress if self.group is None or self.group.rank == 0 else False
            bar = progress_bar(shown, settings.epochs * steps, self.epoch * steps + self.step)
            try:
                self._train_epochs(bar, interrupt)
            except KeyboardInterrupt:
                # The user's own model, loss or callback raised it, or a second Ctrl-C did.
                interrupt.seen = True
            finally:
                bar.close()
                model.train(was_training)
            if interrupt.seen:
                self.history.stopped = "interrupted"
                # Steps that were ended in their midst would be done once more by whoever goes on: the last whole
                # checkpoint stays instead.
                if not self.engine.torn:
                    self._save()
            elif self.best_state is not None and settings.validation.restore_best:
                model.load_state_dict(self.best_state)
        return self.history

    def _train_epochs(self, bar: Bar, interrupt: Interrupt) -> None:
        stop = self._out_of_patience()  # a checkpoint may be from the very end
        while self.epoch < self.settings.epochs and not stop:
            self._train_epoch(bar, interrupt)
            stop = interrupt.seen or self._end_epoch(bar)

    def _out_of_patience(self) -> bool:
        patience = self.settings.validation.patience
        if patience is None or self.epochs_since_best < patience:
            return False
        self.history.stopped = "early stopping"
        return True

    def _train_epoch(self, bar: Bar, interrupt: Interrupt) -> None:
        """Train from where the run stands to the end of the epoch, or until Ctrl-C."""
        engine, every = self.engine, self.settings.saving.every
        start = time.perf_counter()
        engine.begin(self.first_epoch + self.epoch, self.step)
        while self.step < engine.steps and not interrupt.seen:
            limit = engine.steps - self.step
            if every is not None:
                limit = min(limit, every - self.step % every)
            done = engine.advance(limit, self.loss_sum, self._after_step)
            self.step += done
            engine.torn = False
            bar.update(done)
            if self.group is not None:
                interrupt.seen = self.group.any(interrupt.seen)
            if every is not None and self.step % every == 0 and self.step < engine.steps and not interrupt.seen:
                self._save()
        self.seconds += time.perf_counter() - start

    def _count_epochs(self) -> None:
        """Tell the model how many epochs it has been trained for, if it keeps count of them."""
        if hasattr(self.parts.model, "epochs_trained"):
            setattr(self.parts.model, "epochs_trained", self.first_epoch + self.epoch)  # noqa: B010  (mypy)

    def _after_step(self) -> None:
        if self.settings.schedule.each_step:
            self.scheduler.step()

    def _end_epoch(self, bar: Bar) -> bool:
        """Finish an epoch: record, validate, advance the schedule, call back, save. Return whether to stop."""
        self.engine.end()
        if self.group is not None:
            self.group.sum_(self.loss_sum)
        mean = float(self.loss_sum) / max(1, self.engine.samples)
        if not math.isfinite(mean):
            raise ValueError(
                f"the loss became {mean} in epoch {self.epoch}: the training diverged; lower the learning rate or "
                "look for NaN in the model's initial parameters"
            )
        history = self.history
        history.append(mean)
        history.seconds.append(self.seconds)
        history.samples.append(self.engine.samples)
        shown = {"epoch": self.epoch + 1, "loss": f"{mean:.5f}"}
        stop = False
        if self.evaluator is not None:
            value, bias = self._validate(self.evaluator)
            shown[self.settings.validation.metric] = f"{value:.4f}"
            if bias is not None:
                shown[str(self.settings.validation.bias)] = f"{bias:.4f}"
            stop = self._out_of_patience()
        bar.set_postfix(shown, refresh=False)
        self._end_schedule(mean)
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self._count_epochs()
        self.loss_sum.zero_()
        event = EpochEnd(self.epoch - 1, self.parts.model, self.parts.optimizer, history)
        # Every callback hears of every epoch, also where an earlier one asks to stop.
        answers = [_asks_to_stop(callback, event) for callback in self.settings.callbacks]
        if any(answers) if self.group is None else self.group.any(any(answers)):
            history.stopped, stop = "callback", True
        self._save()
        return stop

    def _validate(self, evaluator: Evaluator) -> Validated:
        """Record the validation values, and the weights if they are the best so far."""
        model, validation = self.parts.model, self.settings.validation
        model.eval()
        try:
            value, bias = evaluator(model)
        finally:
            model.train()
        if math.isnan(value):
            raise ValueError(f"metric: {validation.metric} is nan in epoch {self.epoch}; nothing to compare by")
        self.history.validation.append(value)
        if self.front is not None and bias is not None:
            self._offer(self.front, value, bias)
        elif validation.is_better(value, self.best_value):
            self.best_value, self.epochs_since_best = value, 0
            self.history.best_epoch = self.epoch
            self.best_state = self._weights()
        else:
            self.epochs_since_best += 1
        return Validated(value, bias)

    def _offer(self, front: Front, value: float, bias: float) -> None:
        """Record the bias, and the weights if the epoch may be chosen by accuracy and bias."""
        name = str(self.settings.validation.bias)
        if math.isnan(bias):
            raise ValueError(
                f"bias: {name} is nan in epoch {self.epoch}; the validation part has too few positives for it"
            )
        self.history.bias.append(bias)
        kept = front.offer(self.epoch, value, measure_of(name).distance(bias), self._weights)
        self.epochs_since_best = 0 if kept else self.epochs_since_best + 1
        chosen = front.chosen
        assert chosen is not None  # the first epoch is kept
        self.best_value, self.best_state, self.history.best_epoch = chosen.accuracy, chosen.state, chosen.epoch

    def _weights(self) -> State:
        """Return a copy of the model's weights."""
        return {k: v.detach().clone() for k, v in self.parts.model.state_dict().items()}

    def _end_schedule(self, mean: float) -> None:
        """Advance a schedule that goes by the epoch."""
        if _is_on_plateau(self.scheduler):
            self.scheduler.step(mean if self.evaluator is None else self.history.validation[-1])
        elif self.scheduler is not None and not self.settings.schedule.each_step:
            self.scheduler.step()

    # --- checkpoints -----------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Write a checkpoint, if one was asked for."""
        path, parts = self.settings.saving.path, self.parts
        if path is None:
            return
        state = self._state()
        if self.group is None:
            write_checkpoint(os.fspath(path), state, self.fingerprint)
        else:
            write_together(os.fspath(path), state, self.fingerprint, parts)

    def _state(self) -> dict[str, Any]:
        """Return where the run stands, and the state of its parts in this process."""
        parts, loss_sum = self.parts, self.loss_sum.clone()
        return {
            "epoch": self.epoch,
            "step": self.step,
            "first_epoch": self.first_epoch,
            "loss_sum": (loss_sum if self.group is None else self.group.sum_(loss_sum)).cpu(),
            "seconds": self.seconds,
            "model": parts.model.state_dict(),
            "loss": parts.loss.state_dict(),
            "optimizer": optimizer_state(parts.optimizer),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": self.engine.scaler.state_dict(),
            "history": self.history.to_dict(),
            "best_value": self.best_value,
            "best_state": self.best_state,
            "epochs_since_best": self.epochs_since_best,
            **({} if self.front is None else {"front": self.front.to_list()}),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(parts.device) if parts.device.type == "cuda" else None,
        }

    def _grow_state(self, path: str, state: dict[str, Any]) -> None:
        """Bring a checkpoint's state to the shapes of the parts, in place."""
        now = self.parts.model.state_dict()
        try:
            for name, value in state["model"].items():
                if name in now and isinstance(value, Tensor):
                    state["model"][name] = grown_tensor(value, now[name], now[name].cpu())
            state["optimizer"] = grown_optimizer_state(state["optimizer"], self.parts.optimizer)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"resume: {path!r} does not grow into this model: {error}") from None
        state["best_value"], state["best_state"], state["epochs_since_best"] = None, None, 0
        state.pop("front", None)

    def _load(self, path: str) -> None:
        """Go to where a checkpoint was written."""
        parts = self.parts
        grown = self.settings.saving.grown
        if self.group is not None:
            if grown:
                raise ValueError("resume_grown: expected False with mesh, got True")
            state = read_together(path, self.fingerprint, self.engine.steps, parts)
        else:
            state = read_checkpoint(path, self.fingerprint, self.engine.steps, grown)
        if grown:
            self._grow_state(path, state)
        first = state.get("first_epoch", 0)
        if self.settings.first_epoch not in (None, first):
            raise ValueError(f"first_epoch: {path!r} was written with {first}, this run has {self.first_epoch}")
        try:
            parts.model.load_state_dict(state["model"])
            parts.loss.load_state_dict(state["loss"])
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"resume: {path!r} was written with another model or loss: {error}") from None
        if (state["scheduler"] is None) != (self.scheduler is None):
            has = "no" if state["scheduler"] is None else "a"
            raise ValueError(f"resume: {path!r} was written with {has} scheduler; give the same to fit")
        try:
            load_optimizer_state(parts.optimizer, state["optimizer"])
            check_moments(parts.optimizer)
            if self.scheduler is not None:
                self.scheduler.load_state_dict(state["scheduler"])
            if state.get("scaler"):
                self.engine.scaler.load_state_dict(state["scaler"])
            torch.set_rng_state(state["rng"])
        except Exception as error:  # whatever torch makes of a state that is none
            said = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"resume: {path!r} is damaged: {said}") from error
        self.history = History.from_dict(state["history"])
        self.first_epoch = first
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        if self.group is None or self.group.rank == 0:  # (the sum over the processes is taken at the end of an epoch)
            self.loss_sum.copy_(state["loss_sum"])
        self.best_value, self.epochs_since_best = state["best_value"], state["epochs_since_best"]
        if state["best_state"] is not None:
            _check_state(path, state["best_state"], parts.model)
            self.best_state = {k: v.to(parts.device) for k, v in state["best_state"].items()}
        if self.front is not None:
            try:
                self.front.load(state.get("front", []), parts.device)
            except ValueError as error:
                raise ValueError(f"resume: {path!r} is damaged: {error}") from None
        self._count_epochs()
        if state["cuda_rng"] is not None and parts.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], parts.device)


def _check_state(path: str, state: dict[str, Tensor], model: nn.Module) -> None:
    """Raise where the best weights of a checkpoint are not the model's: they are loaded at the end of the run."""
    expected = {name: value.shape for name, value in model.state_dict().items()}
    if {name: value.shape for name, value in state.items()} != expected:
        raise ValueError(f"resume: {path!r} is damaged: best_state: expected tensors of the model's names and shapes")
