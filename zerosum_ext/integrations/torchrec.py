"""Our samples and losses for TorchRec, whose DistributedModelParallel shards the tables.

    loader = zx.TripletLoader(train, 8192, negatives=4, rank=rank, world_size=size)
    task = FactorizationTask(num_users, num_items, 64, loss="zerosum", device="meta")
    apply_optimizer_in_backward(torch.optim.Adagrad, task.parameters(), {"lr": 0.05})
    model = DistributedModelParallel(task, device=device)
    for batch in batches(loader):
        loss, _ = model(batch)
        loss.backward()

TorchRec is not a dependency: pip install torchrec with the fbgemm-gpu of the same version. :func:`obstacle` says
whether the installed pair fits the installed torch.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zerosum_ext.losses import get_loss
from zerosum_ext.reference import mf_items

if TYPE_CHECKING:
    from torchrec import EmbeddingCollection, KeyedJaggedTensor

__all__ = ["Batch", "FactorizationTask", "batches", "obstacle", "pair_scores", "versions"]

#: The features of a batch, and so the keys of its embeddings.
USER, ITEM = "user", "item"
# Pairs that were tried, by the version of torch: those that load and train, and those that do not load.
_FITS = {"2.13": "1.8"}
_FAILS = {("2.13", "1.9")}


def versions() -> dict[str, str | None]:
    """Return the installed versions of torch, torchrec and fbgemm-gpu; None of what is not installed."""

    def of(*names: str) -> str | None:
        for name in names:
            try:
                return importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return None

    return {
        "torch": torch.__version__,
        "torchrec": of("torchrec", "torchrec-cpu", "torchrec-nightly"),
        "fbgemm-gpu": of("fbgemm-gpu", "fbgemm-gpu-cpu", "fbgemm-gpu-nightly"),
    }


def obstacle(found: dict[str, str | None] | None = None) -> str:
    """Return why the installed TorchRec cannot be expected to run, with what to install, or "" if it can.

    Args:
        found: what :func:`versions` returns; by default that of this process.
    """
    found = versions() if found is None else found
    short = {name: _short(version) for name, version in found.items()}
    torch_version = short["torch"] or ""
    fitting = _FITS.get(torch_version)
    wanted = f"torchrec=={fitting}.0 fbgemm-gpu-cpu=={fitting}.0" if fitting else "torchrec fbgemm-gpu-cpu"
    how = f"pip install {wanted} (fbgemm-gpu for CUDA)"
    if short["torchrec"] is None or short["fbgemm-gpu"] is None:
        lacking = " and ".join(name for name in ("torchrec", "fbgemm-gpu") if short[name] is None)
        return f"{lacking} is not installed: {how}"
    if short["torchrec"] != short["fbgemm-gpu"]:
        return f"torchrec {found['torchrec']} and fbgemm-gpu {found['fbgemm-gpu']} are no pair: {how}"
    if (torch_version, short["torchrec"]) in _FAILS:
        return f"torchrec {found['torchrec']} does not load with torch {found['torch']}: {how}"
    return ""


def _short(version: str | None) -> str | None:
    """Return the first two numbers of a version."""
    found = None if version is None else re.match(r"\d+\.\d+", version)
    return None if found is None else found.group()


@dataclass
class Batch:
    """Samples as TorchRec takes them.

    Attributes:
        features: KeyedJaggedTensor with one user, and the positives and then the negatives of each sample.
        num_positives: of each sample, 1 or 2.
        single_negative: whether negatives were [B], not [B, K].
    """

    features: KeyedJaggedTensor
    num_positives: int
    single_negative: bool

    @classmethod
    def of(cls, users: Tensor, positives: Tensor, negatives: Tensor) -> Batch:
        """Return the batch of users [B], positives [B] or [B, 2] and negatives [B] or [B, K]."""
        items = mf_items(positives, negatives)
        lengths = torch.cat((torch.ones_like(users), torch.full_like(users, items.shape[1]))).to(torch.int32)
        values = torch.cat((users, items.reshape(-1)))
        features = _torchrec().KeyedJaggedTensor.from_lengths_sync([USER, ITEM], values, lengths)
        return cls(features, 1 if positives.dim() == 1 else positives.shape[1], negatives.dim() == 1)

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """Return the batch on a device, as TorchRec's pipelines ask for it."""
        return Batch(self.features.to(device, non_blocking), self.num_positives, self.single_negative)

    def record_stream(self, stream: Any) -> None:
        """Keep the memory for the work on a stream, as TorchRec's pipelines ask for it."""
        self.features.record_stream(stream)


def batches(loader: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Iterator[Batch]:
    """Yield the batches of a :class:`~zerosum_ext.TripletLoader` as TorchRec takes them."""
    for sample in loader:
        yield Batch.of(*sample)


def pair_scores(embeddings: dict[str, Any], batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the scores of positives and negatives, of the shapes that our losses take.

    Args:
        embeddings: what an EmbeddingCollection returns for the batch's features: JaggedTensors by feature.
        batch: the batch.
    """
    users = embeddings[USER].values()
    items = embeddings[ITEM].values().view(users.shape[0], -1, users.shape[1])
    scores = torch.bmm(items, users.unsqueeze(-1)).squeeze(-1)
    pos, neg = scores[:, : batch.num_positives], scores[:, batch.num_positives :]
    return pos[:, 0] if batch.num_positives == 1 else pos, neg[:, 0] if batch.single_negative else neg


class FactorizationTask(nn.Module):
    """Matrix factorization on an EmbeddingCollection with one of our losses: what DistributedModelParallel wraps.

    Args:
        num_users, num_items, embedding_dim: the shapes of the two tables, "user" and "item".
        loss: a name of :func:`zerosum_ext.losses.get_loss`, or a module that is called as ``loss(pos, neg)``.
        init_std: the tables start as N(0, init_std^2).
        device: of the tables; "meta" where DistributedModelParallel is to make them.

    Returns:
        forward(batch) returns the loss and (the loss, scores of positives, scores of negatives), the latter without a
        gradient, as TorchRec's training pipelines expect.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        embedding_dim: int = 64,
        *,
        loss: str | nn.Module = "zerosum",
        init_std: float = 0.01,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        made = _torchrec()

        def table(name: str, rows: int) -> Any:
            return made.EmbeddingConfig(
                name=name,
                embedding_dim=embedding_dim,
                num_embeddings=rows,
                feature_names=[name],
                init_fn=lambda weight: nn.init.normal_(weight, std=init_std),
            )

        tables = [table(USER, num_users), table(ITEM, num_items)]
        place = None if device is None else torch.device(device)
        self.embeddings: EmbeddingCollection = made.EmbeddingCollection(tables=tables, device=place)
        self.loss: nn.Module = get_loss(loss) if isinstance(loss, str) else loss

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        pos, neg = pair_scores(self.embeddings(batch.features), batch)
        value: Tensor = self.loss(pos, neg)
        return value, (value.detach(), pos.detach(), neg.detach())


def _torchrec() -> Any:
    """Import TorchRec, or say what to install."""
    try:
        import torchrec
    except ImportError as error:
        raise ImportError(f"zerosum_ext.integrations.torchrec: {obstacle() or error}") from error
    return torchrec
