"""Our samples and losses for Lightning: a module and a data module.

    data = InteractionsDataModule(train, batch_size=4096, validation=valid)
    task = RecommenderModule(zx.MatrixFactorization.from_interactions(train), "zerosum", lr=1e-2)
    Trainer(max_epochs=20).fit(task, data)

Each epoch has the samples of ``fit``, also over several processes, whose batches are those of one. Either name of the
package will do, ``lightning`` or ``pytorch_lightning``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zerosum_ext.data.interactions import Interactions
from zerosum_ext.data.sampling import TripletLoader
from zerosum_ext.evaluation import evaluate
from zerosum_ext.integrations.packages import needed
from zerosum_ext.losses import get_loss
from zerosum_ext.models import Recommender
from zerosum_ext.reference import mf_items, split_scores

__all__ = ["InteractionsDataModule", "RecommenderModule"]


def _lightning() -> Any:
    try:
        return needed("lightning.pytorch", "lightning", __name__)
    except ImportError as error:
        try:
            return needed("pytorch_lightning", "lightning", __name__)
        except ImportError:
            raise error from None


_L: Any = _lightning()


class RecommenderModule(_L.LightningModule):
    """Train a model by Lightning.

    Args:
        model: one of the library's models, or a module that is called as ``model(users [B], items [B, J])``.
        loss: a name of :func:`zerosum_ext.get_loss`, or a module that is called as ``loss(pos, neg)``.
        optimizer: from parameters to an optimizer; None is Adam.
        lr: the learning rate of Adam.
        l2: the weight of ``model.l2_penalty``, as in :func:`zerosum_ext.fit`.
        metrics, k: what :func:`zerosum_ext.evaluate` computes for a :class:`Recommender` at the end of an epoch, where
            the data module has validation data. They are logged by their keys with "_at_" for the at sign.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str | nn.Module = "zerosum",
        *,
        optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
        lr: float = 1e-3,
        l2: float = 0.0,
        metrics: tuple[str, ...] = ("ndcg",),
        k: tuple[int, ...] = (10,),
    ) -> None:
        super().__init__()
        self.model = model
        self.loss: nn.Module = get_loss(loss) if isinstance(loss, str) else loss
        self.optimizer, self.lr, self.l2 = optimizer, lr, l2
        self.metrics, self.k = metrics, k

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of users, positives and negatives."""
        users, positives, negatives = batch
        items = mf_items(positives, negatives)
        pos, neg = split_scores(self.model(users, items), positives, negatives)
        constants = {}
        if getattr(self.loss, "needs_items", False):
            constants = {"pos_items": positives, "neg_items": negatives}
        value: Tensor = self.loss(pos, neg, **constants)
        self.log("loss", value.detach(), on_step=False, on_epoch=True, batch_size=len(users))
        if self.l2:
            value = value + self.l2 * self.model.l2_penalty(users, items)  # type: ignore[operator]
        return value

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate on the data module's validation interactions; the batch is a sign that it is time."""
        train, validation = self.trainer.datamodule.matrices()
        if not isinstance(self.model, Recommender):
            raise TypeError(f"model: expected a Recommender to validate, got {type(self.model).__name__}")
        values = evaluate(self.model, train, validation, metrics=self.metrics, k=self.k)
        self.log_dict({name.replace("@", "_at_"): value for name, value in values.items()}, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        if self.optimizer is not None:
            return self.optimizer(self.model.parameters())
        return torch.optim.Adam(self.model.parameters(), lr=self.lr)


class InteractionsDataModule(_L.LightningDataModule):
    """Batches of :class:`~zerosum_ext.TripletLoader` for Lightning, each process with its share of them.

    A run that is resumed from Lightning's checkpoint goes on with the batches that were missing.

    Args:
        train: the training interactions.
        batch_size: the samples of a step of one process.
        validation: held-out interactions of the same shape, or None.
        loss: the loss, if it takes pairs of positives (``num_positives`` of 2).
        options: keyword arguments of the loader: ``negatives``, ``seed``, ``draws``, ``strategy``, ...
    """

    def __init__(
        self,
        train: Any,
        batch_size: int = 2048,
        *,
        validation: Any = None,
        loss: str | nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.train = Interactions.from_any(train)
        self.validation = None if validation is None else Interactions.from_any(validation)
        module = get_loss(loss) if isinstance(loss, str) else loss
        if getattr(module, "num_positives", 1) == 2:
            options = {"positives": 2, "negatives": 2, **options}
        self.batch_size, self.options = batch_size, options
        self.loader: TripletLoader | None = None
        self._state: dict[str, Any] | None = None

    def train_dataloader(self) -> TripletLoader:
        """Return the loader of this process. Its epoch is set by Lightning."""
        trainer = self.trainer
        rank, size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        self.loader = TripletLoader(self.train, self.batch_size, rank=rank, world_size=size, **self.options)
        if self._state is not None:
            self.loader.load_state_dict(self._state)
            self._state = None
        return self.loader

    def val_dataloader(self) -> list[list[int]] | list[Any]:
        """Return one batch that stands for all of the validation data, or nothing."""
        return [] if self.validation is None else [[0]]

    def matrices(self) -> tuple[Interactions, Interactions]:
        """Return the training and the validation interactions."""
        assert self.validation is not None
        return self.train, self.validation

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader is, for Lightning's checkpoints."""
        return {} if self.loader is None else self.loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the state was taken."""
        self._state = state_dict or None
