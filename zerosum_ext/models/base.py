"""What every recommender here has in common: scores, recommendations, training, files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerosum_ext import _ops
from zerosum_ext._files import replacing

if TYPE_CHECKING:
    from zerosum_ext.training.loop import History

__all__ = ["DotProductRecommender", "Recommender"]

# recommend and its like score this many (user, item) cells at a time: 64 MiB of fp32.
CELLS_PER_CHUNK = 1 << 24
# What the ranking kernel takes.
_RANKED = (torch.float32, torch.float64)


def index_tensor(name: str, values: Any, size: int, device: torch.device) -> Tensor:
    """Checks ids against ``[0, size)`` and returns them as int64 on ``device``.

    Raises:
        TypeError: values are not whole numbers.
        ValueError: a value is out of range; the message names it.
    """
    index = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    if index.numel() == 0:
        return torch.empty(index.shape, dtype=torch.int64, device=device)
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(f"{name}: expected integer ids, got {index.dtype}")
    index = index.to(device=device, dtype=torch.int64)
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= size:
        raise ValueError(f"{name}: id {low if low < 0 else high} is out of range [0, {size})")
    return index


def positive_int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__} {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return int(value)


@contextlib.contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """No gradients, and evaluation mode (no dropout) for the time being."""
    training = model.training
    if training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if training:
            model.train()


class Recommender(nn.Module):
    """A model with one row of parameters a user and one an item, that scores (user, item) pairs.

    A subclass sets ``num_users``, ``num_items``, ``user_embedding`` and ``item_embedding`` and says how rows become
    scores: :meth:`score`, and where the rows are not simply looked up, :meth:`represent`.

    Attributes:
        user_embedding: Parameter [num_users, width].
        item_embedding: Parameter [num_items, width].
    """

    num_users: int
    num_items: int
    user_embedding: nn.Parameter
    item_embedding: nn.Parameter
    _kinds: ClassVar[dict[str, type[Recommender]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Which class a file belongs to is its name.
        Recommender._kinds[cls.__name__] = cls

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    # --- scores ------------------------------------------------------------------------------------------

    def embedding_rows(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the embedding tables: of ``users`` [B], [B, width], and of ``items``, [*items.shape, width]."""
        return F.embedding(users, self.user_embedding), F.embedding(items, self.item_embedding)

    def represent(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors that scores are made of: of ``users`` [B], [B, D], and of ``items``, [*items.shape, D']."""
        return self.embedding_rows(users, items)

    def score(self, user_rows: Tensor, item_rows: Tensor) -> Tensor:
        """Scores of vectors as ``represent`` gives them: [B, D] with [B, D'] or [B, K, D'] to [B] or [B, K]."""
        raise NotImplementedError

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of ``users`` [B] for ``items`` [B] or [B, K]; the result has the shape of ``items``.

        Both are integer tensors on the model's device. Differentiable.

        Raises:
            ValueError: users is not one-dimensional, or items does not have users' length.
            IndexError: an id out of range, on the CPU (torch's embedding says so).
        """
        check_pairs(users, items)
        return self.score(*self.represent(users, items))

    def score_all_items(self, users: Tensor) -> Tensor:
        """Scores of every item for ``users`` [B]: [B, num_items], without gradient or dropout."""
        raise NotImplementedError

    def l2_penalty(self, users: Tensor, items: Tensor) -> Tensor:
        """Half the mean over the batch of the summed squared norms of the rows it gathers ([BPR09] eq. 4).

        Of the embedding rows alone; biases and layers are left out. ``users`` [B], ``items`` [B] or [B, J]; returns a
        scalar, which ``training.fit(l2=...)`` multiplies by l2 and adds to the loss.
        """
        if users.shape[0] == 0:
            return self.user_embedding.sum() * 0.0
        user_rows, item_rows = self.embedding_rows(users, items)
        return 0.5 * (user_rows.square().sum() + item_rows.square().sum()) / users.shape[0]

    def predict(self, users: Any, items: Any) -> Tensor:
        """Scores without gradient or dropout, with the ids checked.

        Args:
            users: [B] or one id. Tensor, NumPy array or list of integers.
            items: [B] or [B, K].

        Raises:
            TypeError: ids that are not integers.
            ValueError: ids out of range, or shapes that do not match.
        """
        user_index = index_tensor("users", users, self.num_users, self.device)
        item_index = index_tensor("items", items, self.num_items, self.device)
        with inference(self):
            if user_index.dim() == 0:
                return self(user_index.expand(item_index.numel()), item_index.reshape(-1)).reshape(item_index.shape)
            return self(user_index, item_index)

    # --- recommendations ---------------------------------------------------------------------------------

    def recommend(self, users: Any, k: int = 10, exclude: Any = None) -> tuple[Tensor, Tensor]:
        """The k best items of each user, best first.

        Args:
            users: user ids [n], or one id. Tensor, NumPy array or list of integers.
            k: items a user. Where fewer are left, the row is filled with item -1, score -inf.
            exclude: interactions (or a scipy/torch CSR) of shape [num_users, num_items] whose items are not
                recommended to their users: usually the training data.

        Returns:
            items int64 [n, k] and scores [n, k], on the model's device.

        Raises:
            TypeError, ValueError: bad ids, a k below 1, an ``exclude`` of another shape, or scores with NaN
                (the model diverged).
        """
        k = positive_int("k", k)
        index = index_tensor("users", users, self.num_users, self.device).reshape(-1)
        seen = None if exclude is None else self._as_interactions("exclude", exclude)
        width = min(k, self.num_items)
        items = torch.full((index.numel(), k), -1, dtype=torch.int64, device=self.device)
        scores = torch.full((index.numel(), k), float("-inf"), dtype=next(self.parameters()).dtype, device=self.device)
        with inference(self):
            best, step = self._best_items(seen, width, index.numel())
            for start in range(0, index.numel(), step):
                found, values = best(index[start : start + step])
                items[start : start + step, :width] = found
                scores[start : start + step, :width] = values
        return items, scores

    def _best_items(
        self, seen: Any, width: int, num_users: int
    ) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], int]:
        """A function of users [B] that gives their best items and scores, and how many users it is to get."""

        def best(users: Tensor) -> tuple[Tensor, Tensor]:
            block = self.score_all_items(users)
            if seen is not None:
                rows, columns = _csr_cells(seen, users)
                block[rows, columns] = float("-inf")
            values, found = block.topk(width, dim=1)
            # topk puts NaN first, so looking at the winners is enough.
            _refuse_nan(bool(values.isnan().any()))
            return found.masked_fill(values == float("-inf"), -1), values

        return best, max(1, CELLS_PER_CHUNK // self.num_items)

    def _as_interactions(self, name: str, value: Any) -> Any:
        from zerosum_ext.data.interactions import Interactions

        matrix = Interactions.from_any(value)
        if tuple(matrix.shape) != (self.num_users, self.num_items):
            raise ValueError(
                f"{name}: expected shape ({self.num_users}, {self.num_items}) as the model's, got {tuple(matrix.shape)}"
            )
        return matrix.to(self.device)

    # --- training ----------------------------------------------------------------------------------------

    def fit(
        self,
        interactions: Any,
        loss: str | nn.Module = "zerosum",
        optimizer: torch.optim.Optimizer | Callable[..., torch.optim.Optimizer] | None = None,
        **options: Any,
    ) -> History:
        """Trains the model in place and returns the history: one mean loss per epoch.

        ``options`` are those of :func:`zerosum_ext.training.loop.fit`: batch_size, epochs, device, seed, negatives,
        draws,
        validation, l2, callbacks, checkpoint, ...

        Args:
            interactions: :class:`~zerosum_ext.Interactions`, or a scipy or torch CSR, [num_users, num_items].
            loss: a name of :func:`zerosum_ext.losses.get_loss`, or a module called as ``loss(pos, neg)``.
            optimizer: a torch.optim.Optimizer, a callable that makes one from a list of parameters, or None for Adam.
        """
        from zerosum_ext.training.loop import fit

        return fit(self, interactions, loss, optimizer, **options)

    # --- files -------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """What ``save`` writes beside the tensors: the constructor's arguments."""
        raise NotImplementedError

    def _extra_tensors(self) -> dict[str, Tensor]:
        """Tensors a file needs beside the state dict, by names that are not in it."""
        return {}

    @classmethod
    def _construct(cls, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Recommender:
        """A model of this class to load tensors into; the seed keeps torch's global generator out of it."""
        return cls(**config, seed=0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the parameters as safetensors, the configuration in the file's metadata.

        The file is complete or not there: it is written beside and then moved into place.

        Raises:
            OSError: it cannot be written.
        """
        metadata = {"format": _format(type(self)), "config": json.dumps(self.config())}
        save_tensors({**self.state_dict(), **self._extra_tensors()}, path, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str | None = None) -> Any:
        """Reads a model that ``save`` wrote, onto ``device`` (the CPU by default).

        ``Recommender.load`` reads every kind of model, ``MatrixFactorization.load`` that one, and so on.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a file of such a model; the message says what is wrong.
        """
        from safetensors import SafetensorError, safe_open

        name = os.fspath(path)
        if not os.path.isfile(name):
            raise FileNotFoundError(f"no model file {name!r}")
        try:
            with safe_open(name, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{name!r} is not a safetensors file: {error}") from None
        kinds = {_format(kind): kind for kind in Recommender._kinds.values() if issubclass(kind, cls)}
        kind = kinds.get(metadata.get("format", ""))
        if kind is None:
            raise ValueError(
                f"{name!r}: expected a file of format {' or '.join(map(repr, kinds))}, got {metadata.get('format')!r}"
            )
        model = kind._restore(json.loads(metadata["config"]), tensors)
        return model.to(device) if device is not None else model

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Recommender:
        """The model of a file's configuration and tensors."""
        model = cls._construct(config, tensors)
        names = model.state_dict().keys()
        state = {name: value for name, value in tensors.items() if name in names}
        model.to(next(value.dtype for value in state.values() if value.is_floating_point()))
        model.load_state_dict(state)
        return model


def save_tensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: dict[str, str] | None = None
) -> None:
    """Writes tensors as safetensors. OSError where that is not possible."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path, SafetensorError) as part:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part, metadata)


def _refuse_nan(found: bool) -> None:
    if found:
        raise ValueError("recommend: the model's scores contain NaN; its training diverged")


class DotProductRecommender(Recommender):
    """A recommender whose scores are dot products of one vector a user and one an item, plus an item's bias.

    A subclass defines :meth:`vectors`; evaluation then is a matrix product.
    """

    def vectors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(user [U, d], item [I, d], item bias [I] or None), differentiable."""
        raise NotImplementedError

    def represent(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        user, item, bias = self.vectors()
        if bias is not None:
            user = torch.cat([user, user.new_ones(user.shape[0], 1)], dim=1)
            item = torch.cat([item, bias.unsqueeze(1)], dim=1)
        return F.embedding(users, user), F.embedding(items, item)

    def score(self, user_rows: Tensor, item_rows: Tensor) -> Tensor:
        if item_rows.dim() == 2:
            return (user_rows * item_rows).sum(-1)
        return torch.bmm(item_rows, user_rows.unsqueeze(-1)).squeeze(-1)

    def score_all_items(self, users: Tensor) -> Tensor:
        """Scores of every item for ``users`` [B]: [B, num_items], without gradient or dropout."""
        user, item, bias = self.factors()
        scores = user[users] @ item.T
        return scores if bias is None else scores + bias

    def _best_items(
        self, seen: Any, width: int, num_users: int
    ) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], int]:
        # By the ranking kernel, where dot products decide alone and users are enough to prepare the item table for: no
        # scores are stored, and most are not needed exactly.
        alone = num_users >= 64 and type(self).score_all_items is DotProductRecommender.score_all_items
        factors = self.factors() if alone else None
        if factors is None or factors[0].dtype not in _RANKED or not _ops.has_op("rank_factors", factors[0].device):
            return super()._best_items(seen, width, num_users)
        user, item, bias = factors
        user, item, bias = user.contiguous(), item.contiguous(), None if bias is None else bias.contiguous()
        indptr, indices = (None, None) if seen is None else (seen.indptr, seen.indices)

        def best(users: Tensor) -> tuple[Tensor, Tensor]:
            found, values, failed = _ops.best_items(user, item, bias, users.contiguous(), indptr, indices, width)
            _refuse_nan(int(failed) >= 0)
            return found, values

        return best, 1 << 16

    def factors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """What :meth:`vectors` gives, without gradient or dropout."""
        with inference(self):
            user, item, bias = self.vectors()
            return user.detach(), item.detach(), None if bias is None else bias.detach()

    @torch.no_grad()
    def similar_items(self, items: Any, k: int = 10, *, metric: str = "cosine") -> tuple[Tensor, Tensor]:
        """The k items whose vectors are nearest to each given item's, the item itself left out.

        Args:
            items: item ids [n], or one id.
            k: neighbours an item; where the catalogue has fewer, filled with item -1, score -inf.
            metric: "cosine" or "dot".

        Returns:
            items int64 [n, k] and similarities [n, k].
        """
        k = positive_int("k", k)
        if metric not in ("cosine", "dot"):
            raise ValueError(f"metric: expected 'cosine' or 'dot', got {metric!r}")
        index = index_tensor("items", items, self.num_items, self.device).reshape(-1)
        table = self.factors()[1]
        if metric == "cosine":
            table = F.normalize(table, dim=1)
        width = min(k, self.num_items)
        neighbours = torch.full((index.numel(), k), -1, dtype=torch.int64, device=self.device)
        scores = torch.full((index.numel(), k), float("-inf"), dtype=table.dtype, device=self.device)
        step = max(1, CELLS_PER_CHUNK // self.num_items)
        for start in range(0, index.numel(), step):
            chunk = index[start : start + step]
            block = table[chunk] @ table.T
            block[torch.arange(chunk.numel(), device=self.device), chunk] = float("-inf")
            best, arg = block.topk(width, dim=1)
            neighbours[start : start + step, :width] = arg.masked_fill(best == float("-inf"), -1)
            scores[start : start + step, :width] = best
        return neighbours, scores


def check_pairs(users: Tensor, items: Tensor) -> None:
    """Raises where ``users`` is not [B] or ``items`` neither [B] nor [B, K]."""
    if users.dim() != 1:
        raise ValueError(f"users: expected shape [B], got {list(users.shape)}")
    if items.dim() not in (1, 2) or items.shape[0] != users.shape[0]:
        raise ValueError(f"items: expected shape [{users.shape[0]}] or [{users.shape[0]}, K], got {list(items.shape)}")


def _format(kind: type) -> str:
    return f"zerosum_ext.{kind.__name__}/1"


def _csr_cells(matrix: Any, users: Tensor) -> tuple[Tensor, Tensor]:
    """(row in users, item) of every interaction of ``users``: two int64 [n]."""
    starts, counts = matrix.indptr[users], matrix.indptr[users + 1] - matrix.indptr[users]
    rows = torch.repeat_interleave(torch.arange(users.numel(), device=users.device), counts)
    first = torch.cumsum(counts, 0) - counts
    offsets = torch.arange(rows.numel(), device=users.device) - first[rows] + starts[rows]
    return rows, matrix.indices[offsets].long()
