"""The engines of training: three ways to turn batches into updated parameters.

Each engine draws its own samples, so that the loop only says how far to go. Sample number n of an epoch is the same
for every engine.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zerosum_ext._group import Group
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.data.sampling import TripletLoader
from zerosum_ext.reference import mf_items, split_scores
from zerosum_ext.training.fused import FusedStep, clip_rows, fused_obstacle, scores_from_tables
from zerosum_ext.training.settings import Settings
from zerosum_ext.training.weights import PairWeights

__all__ = ["AutogradEngine", "FusedEngine", "HogwildEngine", "Parts", "choose_engine", "sample_widths"]


@dataclass(frozen=True)
class Parts:
    """The objects that a run works on, all of them on one device.

    Attributes:
        model: the model that is trained in place.
        train: the training interactions.
        loss: the loss module.
        optimizer: the optimizer, which holds parameters of the model.
        exclude: further interactions that are not drawn as negatives, or None.
        group: the processes that train together, or None.
    """

    model: nn.Module
    train: Interactions
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    exclude: Interactions | None = None
    group: Group | None = None

    @property
    def device(self) -> torch.device:
        """The device that training runs on."""
        return self.train.device


class AutogradEngine:
    """Forward, backward and optimizer step by torch, for any model, loss and optimizer.

    Attributes:
        name: the engine's name in ``fit(engine=...)`` and in the history.
        steps: the number of steps of an epoch.
        samples: the number of samples of an epoch.
        position: the number of steps since the beginning of the run.
        scaler: scales the loss of a float16 run; otherwise it does nothing.
        torn: whether parameters may have changed by steps that nobody has counted yet.
    """

    name = "autograd"
    torn = False

    def __init__(self, parts: Parts, settings: Settings) -> None:
        self.model, self.loss, self.optimizer = parts.model, parts.loss, parts.optimizer
        self.objective = settings.objective
        self.position = 0
        self.device_type = next(parts.model.parameters()).device.type
        precision = settings.objective.precision
        self.mixed: torch.dtype | None = None if precision == "float32" else getattr(torch, precision)
        # float16 has no exponents for small gradients: the loss is scaled up, and gradients are scaled back.
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=self.mixed is torch.float16)
        self.summed = getattr(parts.loss, "reduction", "mean") == "sum"
        self.needs_items = bool(getattr(parts.loss, "needs_items", False))
        self.needs_branches = bool(getattr(parts.loss, "needs_branches", False))
        if self.needs_branches and not hasattr(parts.model, "branches"):
            raise ValueError(
                f"loss: {type(parts.loss).__name__} needs a model with branches, got {type(parts.model).__name__}"
            )
        self.weights = PairWeights(parts.train) if self.objective.sample_weight == "weights" else None
        if self.weights is not None and not _takes_weights(parts.loss):
            raise ValueError(f"sample_weight: {type(parts.loss).__name__} takes no sample_weight")
        self.loader = _make_loader(parts, settings)
        self.steps = len(self.loader)
        self.samples = self.loader.num_samples
        self.epoch = self.step = 0

    def begin(self, epoch: int, first_step: int) -> None:
        """Go to a step of an epoch."""
        # A callback may have changed the loss between epochs.
        self.summed = getattr(self.loss, "reduction", "mean") == "sum"
        self.epoch, self.step = epoch, first_step
        self.position = epoch * self.steps + first_step

    def advance(self, limit: int, loss_sum: Tensor, after_step: Callable[[], None]) -> int:
        """Train some steps, at least one and at most ``limit``.

        Args:
            limit: the number of steps that are left.
            loss_sum: a float64 scalar, to which the summed loss of the samples is added.
            after_step: is called after the steps; engines do one step at a time where it has to be each of them.

        Returns:
            The number of steps.
        """
        self._train_batch(*self._next(1), loss_sum)
        after_step()
        return 1

    def end(self) -> None:
        """Finish an epoch, with the step of a regularizer that has one of its own."""
        regularizer = self.objective.regularizer
        if regularizer is not None and regularizer.every is None:
            self.optimizer.zero_grad(set_to_none=True)
            regularizer.add_gradients(self.model)
            self._update()

    def _next(self, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the samples of the next steps. Their numbers are consecutive, so that one call draws them all."""
        samples = self.loader.samples_between(*self._advance_samples(steps), self.epoch)
        transform = self.objective.transform
        return samples if transform is None else transform(*samples)

    def _advance_samples(self, steps: int) -> tuple[int, int]:
        """Move on by some steps and return the numbers [begin, end) of their samples."""
        size, begin = self.loader.batch_size, self.step * self.loader.batch_size
        self.step += steps
        return begin, min(begin + steps * size, self.loader.num_samples)

    def _train_batch(self, users: Tensor, positives: Tensor, negatives: Tensor, loss_sum: Tensor) -> None:
        """Do one step on a batch and add the summed loss of its samples to ``loss_sum``."""
        value, objective = self._objective_of(users, positives, negatives)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(objective).backward()
        self.position += 1
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        self._regularize()
        self._update(self.scaler)
        loss_sum += value.detach() if self.summed else value.detach() * users.shape[0]

    def _objective_of(self, users: Tensor, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch, and the loss with its penalty, which is minimized."""
        items = mf_items(positives, negatives)
        value = objective = self._loss_of(users, positives, negatives, items)
        if self.objective.l2:
            penalty = self.objective.l2 * self.model.l2_penalty(users, items)  # type: ignore[operator]
            objective = value + (penalty * users.shape[0] if self.summed else penalty)
        return value, objective

    def _regularize(self) -> None:
        """Add the regularizer's gradients, in the steps that it asks for."""
        regularizer = self.objective.regularizer
        if regularizer is not None and regularizer.every is not None and self.position % regularizer.every == 0:
            regularizer.add_gradients(self.model)

    def _loss_of(self, users: Tensor, positives: Tensor, negatives: Tensor, items: Tensor) -> Tensor:
        """Return the loss of a batch; ``items`` [B, J] are its positives and then its negatives."""
        scores, *branches = self._scores(users, items)
        constants = {"pos_items": positives, "neg_items": negatives} if self.needs_items else {}
        if self.needs_branches:
            user_branch, branch = branches
            pos_branch, neg_branch = split_scores(branch, positives, negatives)
            constants |= {"user_branch": user_branch, "pos_branch": pos_branch, "neg_branch": neg_branch}
        pos, neg = split_scores(scores, positives, negatives)
        if self.weights is not None:
            constants["sample_weight"] = self.weights(users, positives)
        value: Tensor = self.loss(pos, neg, **constants)
        return value

    def _scores(self, users: Tensor, items: Tensor) -> tuple[Tensor, ...]:
        """Return the scores, and the branches where the loss needs them, in the parameters' precision."""
        with self._autocast():
            if self.needs_branches:
                outputs: tuple[Tensor, ...] = self.model.branches(users, items)  # type: ignore[operator]
            else:
                outputs = (self.model(users, items),)
        return outputs if self.mixed is None else tuple(output.float() for output in outputs)

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.mixed is None else torch.autocast(self.device_type, self.mixed)

    def _update(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Clip the gradients and step the optimizer."""
        if self.objective.clip_row_norm is not None:
            _clip_gradients(self.optimizer, self.objective.clip_row_norm)
        self.torn = True
        if scaler is None or not scaler.is_enabled():
            self.optimizer.step()
        else:  # which leaves the step out where a gradient is not finite
            scaler.step(self.optimizer)
            scaler.update()


class FusedEngine(AutogradEngine):
    """The same samples, trained on by :class:`~zerosum_ext.training.fused.FusedStep`."""

    name = "fused"
    asynchronous = False

    def __init__(self, parts: Parts, settings: Settings) -> None:
        super().__init__(parts, settings)
        model, objective = parts.model, settings.objective
        assert scores_from_tables(model)  # as fused_obstacle made sure of
        self.fused = FusedStep(
            model,
            parts.loss,
            parts.optimizer,
            objective.l2,
            objective.clip_row_norm,
            self.asynchronous,
            weights=self.weights,
        )
        # A transform takes a batch at a time.
        one = settings.schedule.each_step or objective.transform is not None
        # The number of steps between two looks at the progress bar and at Ctrl-C.
        self.steps_at_once = 1 if one else self.fused.steps_at_once(settings.sampling.batch_size)
        self.only = settings.engine != "auto"  # the caller insists on it
        self.obstacle: str | None = None

    def begin(self, epoch: int, first_step: int) -> None:
        super().begin(epoch, first_step)
        # What a callback has changed since the last epoch counts here as it does for autograd.
        self.obstacle = fused_obstacle(self.model, self.loss, self.optimizer, self.asynchronous)
        if self.obstacle is None:
            self.fused.refresh()
        elif self.only or self.asynchronous:
            raise ValueError(f"engine: {self.name!r} does not fit this run any longer. {self.obstacle}")

    def advance(self, limit: int, loss_sum: Tensor, after_step: Callable[[], None]) -> int:
        if self.obstacle is not None:
            return super().advance(limit, loss_sum, after_step)
        steps = min(limit, self.steps_at_once)
        regularizer = self.objective.regularizer
        if regularizer is not None and regularizer.every is not None:
            until = -(self.position + 1) % regularizer.every
            if until == 0:  # its gradient joins that of the batch: a step for autograd
                return super().advance(limit, loss_sum, after_step)
            steps = min(steps, until)
        self.torn = True
        if self.objective.transform is None and not self.loader.draws_by_weight:
            loss_sum += self.fused.draw_and_train(self.loader, *self._advance_samples(steps), self.epoch)
        else:
            loss_sum += self.fused(*self._next(steps), self.loader.batch_size)
        self.position += steps
        # A scheduler looks at this to see that the optimizer has stepped before it.
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        after_step()
        return steps


class HogwildEngine(FusedEngine):
    """Asynchronous SGD on single samples."""

    name = "hogwild"
    asynchronous = True


def choose_engine(parts: Parts, settings: Settings) -> type[AutogradEngine]:
    """Return the class of the engine that runs these parts.

    Raises:
        ValueError: the engine that was asked for by name cannot run them; the message says why.
    """
    if settings.engine == "autograd":
        return AutogradEngine
    hogwild = settings.engine == "hogwild"
    obstacle = _settings_obstacle(settings, parts, hogwild) or fused_obstacle(
        parts.model, parts.loss, parts.optimizer, hogwild
    )
    if obstacle is None:
        return HogwildEngine if hogwild else FusedEngine
    if settings.engine != "auto":
        raise ValueError(f"engine: {settings.engine!r} does not fit this run. {obstacle}")
    return AutogradEngine


def _settings_obstacle(settings: Settings, parts: Parts, hogwild: bool) -> str | None:
    """Return why the fused step cannot follow these settings, or None."""
    objective = settings.objective
    if objective.precision != "float32":
        return f"precision: expected 'float32', got {objective.precision!r}"
    if hogwild and objective.clip_row_norm is not None:
        return f"clip_row_norm: expected None, got {objective.clip_row_norm}"
    if hogwild and objective.regularizer is not None and objective.regularizer.every is not None:
        return f"regularizer: expected every=None, got {objective.regularizer!r}"
    return None


def sample_widths(loss: nn.Module, negatives: int) -> tuple[int, int]:
    """Return the numbers of positives and negatives of each sample that a loss takes, if ``negatives`` were asked for.

    Raises:
        ValueError: the loss takes another number of negatives.
    """
    positives = int(getattr(loss, "num_positives", 1))
    if positives != 2:
        return positives, negatives
    if negatives not in (1, 2):
        raise ValueError(f"negatives: {type(loss).__name__} uses two, got {negatives}")
    return 2, 2


def _takes_weights(loss: nn.Module) -> bool:
    """Return whether a loss has a parameter ``sample_weight``."""
    parameters = inspect.signature(loss.forward).parameters.values()
    return any(p.name == "sample_weight" or p.kind is p.VAR_KEYWORD for p in parameters)


def _make_loader(parts: Parts, settings: Settings) -> TripletLoader:
    """Return the loader of a run, with the numbers of positives and negatives that its loss takes."""
    sampling = settings.sampling
    positives, negatives = sample_widths(parts.loss, sampling.negatives)
    loader = TripletLoader(
        parts.train,
        sampling.batch_size,
        seed=sampling.seed,
        positives=positives,
        negatives=negatives,
        draws=sampling.draws,
        exclude=parts.exclude,
        strategy=sampling.strategy,
        negatives_shared=sampling.negatives_shared,
        positive_strategy="weights" if settings.objective.sample_weight == "drawn" else "epoch",
    )
    if len(loader) == 0:
        raise ValueError("interactions: no user has both a positive and a negative; there is nothing to learn from")
    return loader


def _clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    """Scale the rows of every gradient that are longer than ``max_norm`` down to it."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            grad = parameter.grad
            if grad is None:
                continue
            if grad.is_sparse:
                # Only the sum of a row's entries has the row's norm.
                parameter.grad = grad = grad.coalesce()
                clip_rows(grad.values(), max_norm)
            else:
                clip_rows(grad, max_norm)
