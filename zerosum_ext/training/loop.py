"""The training loop: any model that scores (users, items), any loss on positive and negative scores.

    history = fit(model, train, "zerosum", epochs=20, validation=valid, metric="ndcg@10", patience=3)

Everything random follows from ``seed``: the samples are counter-based (seed, epoch, position), so a run that was
interrupted and resumed in the middle of an epoch ends in the same bits as one that was not.
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from zerosum_ext._files import replacing
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.data.sampling import TripletLoader
from zerosum_ext.evaluation.full import AT_K_METRICS, METRICS, SAMPLED_METRICS, evaluate
from zerosum_ext.losses import get_loss
from zerosum_ext.models.mf import MatrixFactorization
from zerosum_ext.training.fused import FusedStep, clip_rows, fused_obstacle
from zerosum_ext.training.regularizers import Regularizer

__all__ = ["EpochEnd", "History", "fit"]

_FORMAT = "zerosum_ext.checkpoint/1"


class History(list):
    """One mean loss per epoch (a list of floats), and what else happened.

    The loss is that of the loss module, averaged over the epoch's samples while the model changed under them; an
    L2 term is not in it.

    Attributes:
        validation: values of the validation metric, one per epoch (empty without validation).
        metric: its name, or None.
        best_epoch: index of the epoch with the best value, or None.
        stopped: "completed", "early stopping", "callback" or "interrupted".
        path: the engine that ran: "fused", "hogwild" or "autograd".
        seconds: wall time of each epoch's training, validation left out. Not restored bit for bit on resume.
        samples: training samples of each epoch.
    """

    def __init__(self, losses: Iterable[float] = ()) -> None:
        super().__init__(losses)
        self.validation: list[float] = []
        self.metric: str | None = None
        self.best_epoch: int | None = None
        self.stopped: str = "completed"
        self.path: str = "autograd"
        self.seconds: list[float] = []
        self.samples: list[int] = []

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON-able values."""
        return {
            "loss": list(self),
            "validation": list(self.validation),
            "metric": self.metric,
            "best_epoch": self.best_epoch,
            "stopped": self.stopped,
            "path": self.path,
            "seconds": list(self.seconds),
            "samples": list(self.samples),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> History:
        """The inverse of ``to_dict``."""
        history = cls(values["loss"])
        for name in ("validation", "metric", "best_epoch", "stopped", "path", "seconds", "samples"):
            setattr(history, name, values[name])
        return history


@dataclass
class EpochEnd:
    """What a callback is given after each epoch.

    Attributes:
        epoch: index of the epoch that ended, from 0.
        model, optimizer: as they are now; a callback may change the learning rate.
        history: with this epoch's loss and validation value already in it.
    """

    epoch: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    history: History


def fit(
    model: nn.Module,
    interactions: Any,
    loss: str | nn.Module = "zerosum",
    optimizer: torch.optim.Optimizer | Callable[..., torch.optim.Optimizer] | None = None,
    *,
    batch_size: int = 2048,
    epochs: int = 20,
    device: torch.device | str | None = None,
    seed: int = 0,
    negatives: int = 1,
    draws: int = 1,
    strategy: str = "uniform",
    exclude: Any = None,
    l2: float = 0.0,
    clip_row_norm: float | None = None,
    regularizer: Regularizer | None = None,
    transform: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None,
    scheduler: Any = None,
    scheduler_interval: str = "epoch",
    validation: Any = None,
    metric: str = "ndcg@10",
    maximize: bool = True,
    patience: int | None = None,
    restore_best: bool = True,
    callbacks: Iterable[Callable[[EpochEnd], Any]] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    engine: str = "auto",
    precision: str = "float32",
) -> History:
    """Trains ``model`` in place on sampled (user, positives, negatives).

    Args:
        model: an nn.Module called as ``model(users [B], items [B, J])`` that returns scores [B, J].
        interactions: the training positives: :class:`~zerosum_ext.Interactions`, or a scipy or torch CSR.
        loss: a name of :func:`zerosum_ext.losses.get_loss`, or a module called as ``loss(pos, neg)`` with pos [B]
            and neg [B] (or [B, K] for negatives=K). A loss whose ``num_positives`` is 2 gets pos, neg [B, 2]: two
            positives and two negatives of one user. Its reduction must be "mean" (assumed where it has no such
            attribute) or "sum".
        optimizer: a torch.optim.Optimizer, a callable that makes one from a list of parameters, or None for
            torch.optim.Adam with its dense semantics and lr 1e-3, as [RCS22] used.
        batch_size: samples a step.
        epochs: passes; an epoch visits each positive ``draws`` times, each time with fresh negatives.
        device: where to train; the model is moved there. None leaves it where it is.
        seed: of samples, dropout and whatever else draws while training. torch's global generators are left as
            they were.
        negatives: K negatives a positive.
        draws: visits to each positive an epoch (the paper uses 3).
        strategy: how negatives are drawn, as in :func:`zerosum_ext.sample_negatives`.
        exclude: a further matrix of the same shape whose cells are not drawn as negatives either. None, the
            honest setting, excludes the training positives alone. Passing the evaluation's negatives is the
            leak of the released code of [RCS22], which its published MovieLens figures need.
        l2: weight of ``model.l2_penalty(users, items)``: l2/2 times the mean over the batch of the summed squared
            norms of the gathered rows ([BPR09] section 4.3.1).
        clip_row_norm: scales each row of each gradient (its first dimension counts rows) down to this norm.
        regularizer: a term over all training positives, such as
            :class:`~zerosum_ext.training.regularizers.PearsonRegularizer`; its ``every`` says when it is added.
        transform: called with (users, positives, negatives) of each batch; returns those to train on instead, int64
            tensors of shapes that the loss takes. A run that is to be resumed needs one that has no memory.
        scheduler: a torch learning-rate scheduler on ``optimizer``, or a callable that makes one from it.
        scheduler_interval: "epoch" or "step": when the scheduler advances. ReduceLROnPlateau advances once an
            epoch on the validation value (on the loss where there is no validation).
        validation: interactions of the same shape to evaluate on after each epoch, training items excluded, or
            a callable that takes the model and returns a number.
        metric: key of :func:`zerosum_ext.evaluate` to watch: "ndcg@10", "recall@20", "pop_q_at_1", ...
        maximize: whether larger values of the metric are better.
        patience: stops after this many epochs without a better value. None runs all epochs.
        restore_best: with validation, the model ends with the weights of its best epoch; False leaves the last.
        callbacks: called with :class:`EpochEnd` after each epoch; a true result stops training.
        checkpoint: file to write the whole state to after each epoch and when interrupted.
        checkpoint_every: writes it every so many steps too.
        resume: a checkpoint to go on from, given the same data and settings (``epochs`` and ``patience`` may differ).
        progress: True or False shows or hides the progress bar; None shows it on a terminal.
        engine: "autograd", or "fused": gather, loss, gradients and update in compiled code, for a MatrixFactorization
            of float32, a compiled loss, and torch.optim's SGD, Adagrad, Adam or SparseAdam without further
            options. The same mini-batch semantics and optimizer state, so that a checkpoint of one can be resumed by
            the other; the same bits for any number of threads. "auto" takes it where it is possible, on the CPU.
            "hogwild", for the same models and losses on the CPU and torch.optim.SGD: asynchronous SGD, the fastest.
            Every sample is a step of its own with the learning rate lr (``batch_size`` says only how steps are
            counted), and threads write into the tables without waiting for each other, so that runs with several
            threads differ a little from each other; with one thread a run can be repeated bit for bit.
        precision: "bfloat16" or "float16" run the model's forward pass under torch.autocast, on the CPU or a GPU: its
            matrix products, where models such as "mlp", "neumf" and "ngcf" spend their time. Parameters, losses and
            updates stay float32; with "float16" the loss is scaled (torch.amp.GradScaler). Of the engine "autograd".

    Returns:
        The history. On Ctrl-C the step under way is finished, a checkpoint is written where one is asked for, and
        the history of the whole epochs is returned with ``stopped="interrupted"``; the model has the weights of
        the last step.

    Raises:
        TypeError, ValueError: an argument out of its range, data of another shape than the model, a checkpoint of
            another run or a damaged one, or a loss that is no longer finite (the message names the epoch).
        OSError: a checkpoint that cannot be written or is not there.
    """
    settings = _checked(locals())
    loss_module = _loss_module(loss)
    train = Interactions.from_any(interactions)
    _check_shape("interactions", train, model)
    if train.nnz == 0:
        raise ValueError("interactions: expected at least one interaction, got none")
    if device is not None:
        model.to(device)
    place = next(iter(model.parameters())).device
    loss_module.to(place)
    train = train.to(place)
    extra = None if exclude is None else _matching("exclude", exclude, train)
    if l2 and not hasattr(model, "l2_penalty"):
        raise ValueError(f"l2: expected 0, since {type(model).__name__} has no method l2_penalty(users, items)")
    evaluator = _evaluator(validation, metric, train, model)

    chosen = _make_optimizer(optimizer, model, loss_module)
    if regularizer is not None and isinstance(chosen, torch.optim.SparseAdam):
        raise ValueError("regularizer: expected None with SparseAdam, which takes no gradient of all rows")
    if isinstance(chosen, torch.optim.SparseAdam) and hasattr(model, "sparse"):
        setattr(model, "sparse", True)  # noqa: B010  (SparseAdam refuses dense gradients; mypy, undeclared attributes)
    trainer = _Trainer(model, train, loss_module, chosen, settings, extra)
    return trainer.run(evaluator, resume)


# --- arguments -----------------------------------------------------------------------------------------------


@dataclass
class _Settings:
    """The checked arguments of fit that are plain values."""

    batch_size: int
    epochs: int
    seed: int
    negatives: int
    draws: int
    strategy: str
    l2: float
    clip_row_norm: float | None
    regularizer: Regularizer | None
    transform: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] | None
    scheduler: Any
    scheduler_interval: str
    metric: str
    maximize: bool
    patience: int | None
    restore_best: bool
    callbacks: tuple[Callable[[EpochEnd], Any], ...]
    checkpoint: str | None
    checkpoint_every: int | None
    progress: bool | None
    engine: str
    precision: str


def _checked(given: dict[str, Any]) -> _Settings:
    def count(name: str, least: int, optional: bool = False) -> None:
        value = given[name]
        if value is None and optional:
            return
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected an integer, got {type(value).__name__} {value!r}")
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")

    count("batch_size", 1)
    count("epochs", 0)
    count("seed", 0)
    count("negatives", 1)
    count("draws", 1)
    count("patience", 1, optional=True)
    count("checkpoint_every", 1, optional=True)
    if not 0.0 <= given["l2"] < math.inf:
        raise ValueError(f"l2: expected a finite number >= 0, got {given['l2']}")
    clip = given["clip_row_norm"]
    if clip is not None and not 0.0 < clip < math.inf:
        raise ValueError(f"clip_row_norm: expected None or a finite number > 0, got {clip}")
    if given["engine"] not in ("auto", "fused", "hogwild", "autograd"):
        raise ValueError(f"engine: expected 'auto', 'fused', 'hogwild' or 'autograd', got {given['engine']!r}")
    if given["precision"] not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"precision: expected 'float32', 'bfloat16' or 'float16', got {given['precision']!r}")
    if given["scheduler_interval"] not in ("epoch", "step"):
        raise ValueError(f"scheduler_interval: expected 'epoch' or 'step', got {given['scheduler_interval']!r}")
    if given["patience"] is not None and given["validation"] is None:
        raise ValueError(f"patience: expected None without validation, got {given['patience']}")
    if given["checkpoint_every"] is not None and given["checkpoint"] is None:
        raise ValueError(f"checkpoint_every: expected None without checkpoint, got {given['checkpoint_every']}")
    regularizer = given["regularizer"]
    if regularizer is not None and not isinstance(regularizer, Regularizer):
        raise TypeError(f"regularizer: expected a Regularizer or None, got {type(regularizer).__name__}")
    if given["transform"] is not None and not callable(given["transform"]):
        raise TypeError(f"transform: expected a callable or None, got {type(given['transform']).__name__}")
    callbacks = tuple(given["callbacks"])
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(f"callbacks: expected callables, got {type(callback).__name__} {callback!r}")
    values = {name: given[name] for name in _Settings.__dataclass_fields__}
    values["callbacks"] = callbacks
    if given["checkpoint"] is not None:
        values["checkpoint"] = os.fspath(given["checkpoint"])
    return _Settings(**values)


def _loss_module(loss: str | nn.Module) -> nn.Module:
    module = get_loss(loss) if isinstance(loss, str) else loss
    if not isinstance(module, nn.Module):
        raise TypeError(f"loss: expected a name or an nn.Module, got {type(loss).__name__} {loss!r}")
    if getattr(module, "reduction", "mean") not in ("mean", "sum"):
        raise ValueError(f"loss: expected reduction 'mean' or 'sum', got {module.reduction!r}")
    return module


def _check_shape(name: str, matrix: Any, model: nn.Module) -> None:
    expected = (getattr(model, "num_users", matrix.shape[0]), getattr(model, "num_items", matrix.shape[1]))
    if tuple(matrix.shape) != expected:
        raise ValueError(f"{name}: expected shape {expected} as the model's, got {tuple(matrix.shape)}")


def _matching(name: str, matrix: Any, train: Interactions) -> Interactions:
    """Further interactions of the shape, and on the device, of those to train on."""
    other = Interactions.from_any(matrix)
    if other.shape != train.shape:
        raise ValueError(f"{name}: expected shape {train.shape} as interactions, got {other.shape}")
    return other.to(train.device)


def _make_optimizer(optimizer: Any, model: nn.Module, loss: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in [*model.parameters(), *loss.parameters()] if p.requires_grad]
    if not parameters:
        raise ValueError("model: expected a parameter that requires a gradient, got none")
    if optimizer is None:
        return torch.optim.Adam(parameters, lr=1e-3)
    if callable(optimizer) and not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizer(parameters)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in parameters):
        raise ValueError("optimizer: expected one that holds parameters of the model, got one that holds none of them")
    return optimizer


def _evaluator(validation: Any, metric: str, train: Any, model: nn.Module) -> Callable[[nn.Module], float] | None:
    if validation is None:
        return None
    if callable(validation) and not hasattr(validation, "indptr"):
        return lambda m: float(validation(m))
    held_out = _matching("validation", validation, train)
    name, cutoff = parse_metric(metric)

    def evaluate_metric(m: nn.Module) -> float:
        return float(evaluate(m, train, held_out, metrics=(name,), k=(cutoff,))[metric])

    return evaluate_metric


def parse_metric(metric: str) -> tuple[str, int]:
    """(name, cut-off) of "ndcg@10" and its like; of "pri" and others that have none, 10, which is of no account.

    Raises:
        ValueError: what is no key of :func:`zerosum_ext.evaluate`.
    """
    name, at, cutoff = metric.partition("@")
    known, with_cutoff = (*METRICS, *SAMPLED_METRICS), (*AT_K_METRICS, *SAMPLED_METRICS)
    if name not in known:
        raise ValueError(f"metric: expected one of {', '.join(known)}, got {metric!r}")
    if name not in with_cutoff and at:
        raise ValueError(f"metric: expected {name!r}, which has no cut-off, got {metric!r}")
    if name in with_cutoff and not (cutoff.isdecimal() and cutoff.isascii() and cutoff[0] != "0"):
        raise ValueError(f"metric: expected a cut-off as in '{name}@10', got {metric!r}")
    return name, int(cutoff or 10)


# --- the loop ------------------------------------------------------------------------------------------------


class _Trainer:
    def __init__(
        self,
        model: nn.Module,
        train: Any,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: _Settings,
        exclude: Any,
    ) -> None:
        self.model, self.train, self.loss, self.optimizer = model, train, loss, optimizer
        self.settings = settings
        self.device = train.device
        self.engine = _choose_engine(model, loss, optimizer, settings)(model, train, loss, optimizer, settings, exclude)
        self.scheduler = settings.scheduler
        if callable(self.scheduler) and not hasattr(self.scheduler, "step"):
            self.scheduler = self.scheduler(optimizer)
        if self.scheduler is not None and not hasattr(self.scheduler, "step"):
            raise TypeError(f"scheduler: expected a torch scheduler, got {type(self.scheduler).__name__}")
        self.on_plateau = isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        if self.on_plateau and settings.scheduler_interval == "step":
            raise ValueError("scheduler_interval: expected 'epoch' with ReduceLROnPlateau, got 'step'")
        self.history = History()
        self.history.path = self.engine.path
        # The position in the run: what a checkpoint has to hold beside the tensors.
        self.epoch = 0
        self.step = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.seconds = 0.0
        self.best_value: float | None = None
        self.best_state: dict[str, Tensor] | None = None
        self.epochs_since_best = 0
        self.exclude = exclude
        self.fingerprint: dict[str, Any] = {}

    def run(self, evaluator: Callable[[nn.Module], float] | None, resume: Any) -> History:
        settings, history = self.settings, self.history
        if settings.checkpoint is not None or resume is not None:
            self.fingerprint = self._fingerprint(evaluator is not None)
        devices = [self.device] if self.device.type == "cuda" else []
        was_training = self.model.training
        with torch.random.fork_rng(devices=devices), _deferred_interrupt() as interrupt:
            torch.manual_seed(settings.seed)
            if resume is not None:
                self._load(os.fspath(resume))
                history = self.history
            history.metric = settings.metric if evaluator is not None else None
            history.stopped = "completed"
            self.model.train()
            bar = _progress_bar(settings, self.engine.steps, self.epoch * self.engine.steps + self.step)
            try:
                stop = self._out_of_patience()  # a checkpoint may be of the very end
                while self.epoch < settings.epochs and not stop:
                    self._train_epoch(bar, interrupt)
                    stop = interrupt.seen or self._end_epoch(evaluator, bar)
            except KeyboardInterrupt:
                # Raised by the user's own model, loss or callback, or by an impatient second Ctrl-C.
                interrupt.seen = True
            finally:
                bar.close()
                self.model.train(was_training)
            if interrupt.seen:
                history.stopped = "interrupted"
                if settings.checkpoint is not None:
                    self._save(settings.checkpoint)
            elif self.best_state is not None and settings.restore_best:
                self.model.load_state_dict(self.best_state)
        return history

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        if patience is None or self.epochs_since_best < patience:
            return False
        self.history.stopped = "early stopping"
        return True

    def _train_epoch(self, bar: Any, interrupt: _Interrupt) -> None:
        settings, engine = self.settings, self.engine
        every = settings.checkpoint_every
        start = time.perf_counter()
        engine.begin(self.epoch, self.step)
        while self.step < engine.steps:
            limit = engine.steps - self.step
            if every is not None:
                limit = min(limit, every - self.step % every)
            done = engine.advance(limit, self.loss_sum, self._step_scheduler)
            self.step += done
            bar.update(done)
            if interrupt.seen:
                self.seconds += time.perf_counter() - start
                return
            if every is not None and self.step % every == 0 and self.step < engine.steps:
                self._save(settings.checkpoint)
        self.seconds += time.perf_counter() - start

    def _step_scheduler(self) -> None:
        if self.scheduler is not None and self.settings.scheduler_interval == "step":
            self.scheduler.step()

    def _end_epoch(self, evaluator: Callable[[nn.Module], float] | None, bar: Any) -> bool:
        """Books the epoch, validates, advances the schedule, checkpoints. True where training is to stop."""
        settings, history = self.settings, self.history
        self.engine.end()
        mean = float(self.loss_sum) / max(1, self.engine.samples)
        if not math.isfinite(mean):
            raise ValueError(
                f"the loss became {mean} in epoch {self.epoch}: the training diverged; lower the learning rate or "
                "look for NaN in the model's initial parameters"
            )
        history.append(mean)
        history.seconds.append(self.seconds)
        history.samples.append(self.engine.samples)
        shown = {"epoch": self.epoch + 1, "loss": f"{mean:.5f}"}
        stop = False
        if evaluator is not None:
            self.model.eval()
            try:
                value = evaluator(self.model)
            finally:
                self.model.train()
            if math.isnan(value):
                raise ValueError(f"metric: {settings.metric} is nan in epoch {self.epoch}; nothing to compare by")
            history.validation.append(value)
            shown[settings.metric] = f"{value:.4f}"
            sign = 1.0 if settings.maximize else -1.0
            if self.best_value is None or sign * value > sign * self.best_value:
                self.best_value, self.epochs_since_best = value, 0
                history.best_epoch = self.epoch
                self.best_state = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
            else:
                self.epochs_since_best += 1
                stop = self._out_of_patience()
        bar.set_postfix(shown, refresh=False)
        if self.on_plateau:
            self.scheduler.step(history.validation[-1] if evaluator is not None else mean)
        elif self.scheduler is not None and settings.scheduler_interval == "epoch":
            self.scheduler.step()
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.loss_sum.zero_()
        event = EpochEnd(self.epoch - 1, self.model, self.optimizer, history)
        # Every callback hears of every epoch, also where an earlier one asks to stop.
        answers = [bool(callback(event)) for callback in settings.callbacks]
        if any(answers):
            history.stopped, stop = "callback", True
        if settings.checkpoint is not None:
            self._save(settings.checkpoint)
        return stop

    # --- checkpoints -----------------------------------------------------------------------------------------

    def _fingerprint(self, validated: bool) -> dict[str, Any]:
        """What has to agree for a resumed run to be the same run. Taken before a schedule changes the optimizer."""
        s, exclude = self.settings, self.exclude
        mixed = {} if s.precision == "float32" else {"precision": s.precision}
        return {
            **mixed,
            "shape": list(self.train.shape),
            "nnz": int(self.train.nnz),
            "interactions": _digest(self.train),
            "exclude": None if exclude is None else _digest(exclude),
            "batch_size": s.batch_size,
            "seed": s.seed,
            "negatives": s.negatives,
            "draws": s.draws,
            "strategy": s.strategy,
            "loss": repr(self.loss),
            "l2": s.l2,
            "clip_row_norm": s.clip_row_norm,
            "regularizer": None if s.regularizer is None else repr(s.regularizer),
            "hogwild": self.engine.path == "hogwild",
            "optimizer": type(self.optimizer).__name__,
            "optimizer groups": [_plain_values(group) for group in self.optimizer.param_groups],
            # What the best epoch so far is the best by.
            "metric": s.metric if validated else None,
            "maximize": s.maximize if validated else None,
        }

    def _save(self, path: str | None) -> None:
        assert path is not None
        state = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "epoch": self.epoch,
            "step": self.step,
            "loss_sum": self.loss_sum.cpu(),
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": self.engine.scaler.state_dict(),
            "history": self.history.to_dict(),
            "best_value": self.best_value,
            "best_state": self.best_state,
            "epochs_since_best": self.epochs_since_best,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        with replacing(path, RuntimeError) as part:  # which torch raises where the disk is full
            torch.save(state, part)

    def _load(self, path: str) -> None:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"resume: no checkpoint file {path!r}")
        with open(path, "rb") as file:
            try:
                state = torch.load(file, map_location="cpu", weights_only=True)
            except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
                first = str(error).partition("\n")[0] or type(error).__name__
                raise ValueError(f"resume: {path!r} is damaged, or no checkpoint of this program: {first}") from error
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise ValueError(f"resume: {path!r} is not a checkpoint of this program ({_FORMAT})")
        for name in {**self.fingerprint, **state["fingerprint"]}:
            written, value = state["fingerprint"].get(name), self.fingerprint.get(name)
            if written != value:
                raise ValueError(f"resume: {path!r} was written with {name}={written!r}, this run has {value!r}")
        try:
            self.model.load_state_dict(state["model"])
            self.loss.load_state_dict(state["loss"])
        except RuntimeError as error:
            raise ValueError(f"resume: {path!r} was written with another model or loss: {error}") from None
        self.optimizer.load_state_dict(state["optimizer"])
        if (state["scheduler"] is None) != (self.scheduler is None):
            has = "no" if state["scheduler"] is None else "a"
            raise ValueError(f"resume: {path!r} was written with {has} scheduler; give the same to fit")
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if state.get("scaler"):
            self.engine.scaler.load_state_dict(state["scaler"])
        self.history = History.from_dict(state["history"])
        self.history.path = self.engine.path
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.loss_sum.copy_(state["loss_sum"])
        self.best_value, self.epochs_since_best = state["best_value"], state["epochs_since_best"]
        if state["best_state"] is not None:
            self.best_state = {k: v.to(self.device) for k, v in state["best_state"].items()}
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)


def _digest(interactions: Interactions) -> str:
    """A short name of the interactions themselves, the same on every machine."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (interactions.indptr, interactions.indices):
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _plain_values(group: dict[str, Any]) -> dict[str, Any]:
    """The hyper-parameters of an optimizer's group, without what only this process or device has."""
    values: dict[str, Any] = {}
    for name, value in group.items():
        if name == "params":
            continue
        if isinstance(value, (tuple, list)):
            values[name] = [float(v) for v in value]
        elif isinstance(value, Tensor):
            values[name] = float(value)
        elif value is None or isinstance(value, (bool, int, float, str)):
            values[name] = value
    return values


class _AutogradEngine:
    """Forward, backward and optimizer step by torch, for any model, loss and optimizer."""

    path = "autograd"

    def __init__(
        self,
        model: nn.Module,
        train: Any,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: _Settings,
        exclude: Any,
    ) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.l2, self.clip = settings.l2, settings.clip_row_norm
        self.regularizer, self.transform = settings.regularizer, settings.transform
        self.position = 0  # steps since the beginning of the run
        device = next(model.parameters()).device.type
        self.mixed = None if settings.precision == "float32" else getattr(torch, settings.precision)
        self.device_type = device
        # float16 has no exponents for small gradients: the loss is scaled up, and gradients are scaled back.
        self.scaler = torch.amp.GradScaler(device, enabled=self.mixed is torch.float16)
        self.summed = getattr(loss, "reduction", "mean") == "sum"
        self.positives = int(getattr(loss, "num_positives", 1))
        self.needs_items = bool(getattr(loss, "needs_items", False))
        self.needs_branches = bool(getattr(loss, "needs_branches", False))
        if self.needs_branches and not hasattr(model, "branches"):
            raise ValueError(f"loss: {type(loss).__name__} needs a model with branches, got {type(model).__name__}")
        negatives = settings.negatives
        if self.positives == 2:
            if negatives not in (1, 2):
                raise ValueError(f"negatives: {type(loss).__name__} uses two, got {negatives}")
            negatives = 2
        self.loader = TripletLoader(
            train,
            settings.batch_size,
            seed=settings.seed,
            positives=self.positives,
            negatives=negatives,
            draws=settings.draws,
            exclude=exclude,
            strategy=settings.strategy,
        )
        self.steps = len(self.loader)
        if self.steps == 0:
            raise ValueError("interactions: no user has both a positive and a negative; there is nothing to learn from")
        self.samples = self.loader.num_samples
        self.epoch = self.step = 0

    def begin(self, epoch: int, first_step: int) -> None:
        self.epoch, self.step = epoch, first_step
        self.position = epoch * self.steps + first_step

    def _next(self, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """The samples of the next steps: the numbers are consecutive, so that one call draws them all."""
        samples = self.loader._between(*self._advance(steps), self.epoch)
        return samples if self.transform is None else self.transform(*samples)

    def _advance(self, steps: int) -> tuple[int, int]:
        """Moves on by so many steps; returns the numbers [begin, end) of their samples."""
        size, begin = self.loader.batch_size, self.step * self.loader.batch_size
        self.step += steps
        return begin, min(begin + steps * size, self.loader.num_samples)

    def end(self) -> None:
        """What follows the last step of an epoch: the step of a regularizer that has one of its own."""
        if self.regularizer is not None and self.regularizer.every is None:
            self.optimizer.zero_grad(set_to_none=True)
            self.regularizer.add_gradients(self.model)
            self._update()

    def _update(self, scaler: torch.amp.GradScaler | None = None) -> None:
        if self.clip is not None:
            _clip_rows(self.optimizer, self.clip)
        if scaler is None or not scaler.is_enabled():
            self.optimizer.step()
        else:  # leaves the step out where a gradient is not finite
            scaler.step(self.optimizer)
            scaler.update()

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.mixed is None else torch.autocast(self.device_type, self.mixed)

    def _scores(self, users: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """The scores, and where the loss needs them the branches, in the parameters' precision."""
        with self._autocast():
            if self.needs_branches:
                outputs = self.model.branches(users, items)  # type: ignore[operator]
            else:
                outputs = (self.model(users, items),)
        return outputs if self.mixed is None else tuple(output.float() for output in outputs)

    def advance(self, limit: int, loss_sum: Tensor, after_step: Callable[[], None]) -> int:
        """Does one step and adds the summed loss of its samples to ``loss_sum``. Returns the steps done."""
        users, positives, negatives = self._next(1)
        size = users.shape[0]
        items = torch.cat([positives.reshape(size, -1), negatives.reshape(size, -1)], dim=1)
        split = items.shape[1] - negatives.reshape(size, -1).shape[1]
        constants = {"pos_items": positives, "neg_items": negatives} if self.needs_items else {}
        scores, *branches = self._scores(users, items)
        if self.needs_branches:
            user_branch, branch = branches
            constants |= {
                "user_branch": user_branch,
                "pos_branch": branch[:, :split].reshape(positives.shape),
                "neg_branch": branch[:, split:].reshape(negatives.shape),
            }
        pos, neg = scores[:, :split].reshape(positives.shape), scores[:, split:].reshape(negatives.shape)
        value = self.loss(pos, neg, **constants)
        objective = value
        if self.l2:
            penalty = self.l2 * self.model.l2_penalty(users, items)  # type: ignore[operator]
            objective = value + (penalty * size if self.summed else penalty)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(objective).backward()
        self.position += 1
        regularizer = self.regularizer
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        if regularizer is not None and regularizer.every is not None and self.position % regularizer.every == 0:
            regularizer.add_gradients(self.model)
        self._update(self.scaler)
        loss_sum += value.detach() if self.summed else value.detach() * size
        after_step()
        return 1


class _FusedEngine(_AutogradEngine):
    """The same samples through :class:`~zerosum_ext.training.fused.FusedStep`."""

    path = "fused"
    asynchronous = False

    def __init__(
        self,
        model: nn.Module,
        train: Any,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: _Settings,
        exclude: Any,
    ) -> None:
        super().__init__(model, train, loss, optimizer, settings, exclude)
        assert isinstance(model, MatrixFactorization)
        self.fused = FusedStep(model, loss, optimizer, self.l2, self.clip, self.asynchronous)
        each = settings.scheduler is not None and settings.scheduler_interval == "step"
        each = each or settings.transform is not None  # which takes batches
        # What is done between two looks at the progress bar and at Ctrl-C.
        self.steps_at_once = 1 if each else self.fused.steps_at_once(settings.batch_size)

    def advance(self, limit: int, loss_sum: Tensor, after_step: Callable[[], None]) -> int:
        steps = min(limit, self.steps_at_once)
        if self.regularizer is not None and self.regularizer.every is not None:
            until = -(self.position + 1) % self.regularizer.every
            if until == 0:  # its gradient joins that of the batch: a step for autograd
                return super().advance(limit, loss_sum, after_step)
            steps = min(steps, until)
        if self.transform is None:
            loss_sum += self.fused.draw_and_train(self.loader, *self._advance(steps), self.epoch)
        else:
            loss_sum += self.fused(*self._next(steps), self.loader.batch_size)
        self.position += steps
        # What a scheduler looks at to see that the optimizer has gone before it.
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        after_step()
        return steps


class _HogwildEngine(_FusedEngine):
    """Asynchronous SGD on single samples."""

    path = "hogwild"
    asynchronous = True


def _choose_engine(
    model: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, settings: _Settings
) -> type[_AutogradEngine]:
    # On a GPU the fused step has not been measured yet: it has to be asked for.
    on_gpu = next(model.parameters()).device.type == "cuda"
    if settings.engine == "autograd" or (settings.engine == "auto" and on_gpu):
        return _AutogradEngine
    hogwild = settings.engine == "hogwild"
    obstacle = fused_obstacle(model, loss, optimizer, hogwild)
    if settings.precision != "float32":
        obstacle = f"precision: expected 'float32', got {settings.precision!r}"
    if hogwild and settings.clip_row_norm is not None:
        obstacle = f"clip_row_norm: expected None, got {settings.clip_row_norm}"
    if hogwild and settings.regularizer is not None and settings.regularizer.every is not None:
        obstacle = f"regularizer: expected every=None, got {settings.regularizer!r}"
    if obstacle is None:
        return _HogwildEngine if hogwild else _FusedEngine
    if settings.engine != "auto":
        raise ValueError(f"engine: {settings.engine!r} does not fit this run. {obstacle}")
    return _AutogradEngine


def _clip_rows(optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    """Scales the rows of every gradient that are longer than ``max_norm`` down to it."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            grad = parameter.grad
            if grad is None:
                continue
            if grad.is_sparse:
                # Only the sum of a row's entries has the row's norm.
                parameter.grad = grad = grad.coalesce()
                values = grad.values()
            else:
                values = grad
            clip_rows(values, max_norm)


class _NoBar:
    """Stands for a progress bar that is not wanted: tqdm need not be there then."""

    def update(self, steps: int) -> None:
        pass

    def set_postfix(self, values: dict[str, Any], refresh: bool = True) -> None:
        pass

    def close(self) -> None:
        pass


def _progress_bar(settings: _Settings, steps: int, initial: int) -> Any:
    if settings.progress is False:
        return _NoBar()
    from tqdm.auto import tqdm

    return tqdm(
        total=settings.epochs * steps,
        initial=initial,
        unit="step",
        # tqdm's None means: only on a terminal.
        disable=None if settings.progress is None else False,
        leave=False,
    )


class _Interrupt:
    seen = False


@contextmanager
def _deferred_interrupt() -> Iterator[_Interrupt]:
    """Turns the first Ctrl-C into a flag that is looked at between steps; a second one interrupts at once.

    An optimizer that is stopped half-way has updated some tables and not others. Where Python's own handler is
    not the one in place, or this is not the main thread, signals are left alone.
    """
    interrupt = _Interrupt()
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not ours:
        yield interrupt
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if interrupt.seen:
            raise KeyboardInterrupt
        interrupt.seen = True

    signal.signal(signal.SIGINT, handler)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
