"""The base classes of all models: scores, recommendations, training and files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerosum_ext import _ops
from zerosum_ext._checks import MOST_K, require_choice, require_ids, require_positive_int
from zerosum_ext._files import replacing
from zerosum_ext._inference import inference
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.evaluation.sources import forward_decides, scores_by_forward
from zerosum_ext.training import History, fit
from zerosum_ext.training.optimizers import OptimizerLike

__all__ = ["DotProductRecommender", "Recommender", "check_pairs", "index_tensor", "save_tensors"]

#: The similarity of two items' vectors.
Similarity: TypeAlias = Literal["cosine", "dot"]
# From users [B] to their best items and the scores of these, [B, k] each.
_BestItems: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
_Model = TypeVar("_Model", bound="Recommender")

# The number of (user, item) cells that recommend and its like score at once: 64 MiB of float32.
CELLS_PER_CHUNK = 1 << 24
# The dtypes that the ranking kernel takes.
_RANKED = (torch.float32, torch.float64)


def index_tensor(name: str, values: Any, size: int, device: torch.device) -> Tensor:
    """Return ids as int64 on ``device``, after checking them against ``[0, size)``.

    Raises:
        TypeError: the values are no integers.
        ValueError: a value is out of range; the message names it.
    """
    if (values.dtype if isinstance(values, Tensor) else np.asarray(values).dtype) in (torch.bool, np.bool_):
        raise TypeError(f"{name}: expected integer ids, got booleans")
    return require_ids(name, values, size, device)


def all_scores(model: Recommender, users: Tensor) -> Tensor:
    """Return the scores of every item for ``users`` [B], by whatever the model says scores are: [B, num_items]."""
    if forward_decides(model):
        with inference(model):
            return scores_by_forward(model, users, model.num_items)
    return model.score_all_items(users)


class Recommender(nn.Module):
    """A model that scores (user, item) pairs, with one row of parameters for each user and each item.

    A subclass sets ``num_users``, ``num_items``, ``user_embedding`` and ``item_embedding``. It defines :meth:`score`,
    which turns rows into scores, and :meth:`represent` if the rows are not simply looked up.

    Attributes:
        user_embedding: Parameter [num_users, width].
        item_embedding: Parameter [num_items, width].
        epochs_trained: the number of epochs that ``fit`` has trained the model for. The next fit goes on counting
            there. Model files and checkpoints keep it; ``reset_parameters`` sets it to 0.
    """

    epochs_trained: int = 0
    num_users: int
    num_items: int
    user_embedding: nn.Parameter
    item_embedding: nn.Parameter
    _kinds: ClassVar[dict[str, type[Recommender]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A file names its class.
        Recommender._kinds[cls.__name__] = cls

    @classmethod
    def from_interactions(cls: type[_Model], interactions: Interactions, **options: Any) -> _Model:
        """Return a new model for these training interactions.

        Args:
            interactions: the training interactions. Here only their shape counts; models on a graph use all of it.
            options: keyword arguments of the class.
        """
        return cls(interactions.num_users, interactions.num_items, **options)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    # --- scores ------------------------------------------------------------------------------------------

    def embedding_rows(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of the embedding tables: [B, width] of ``users`` [B], [*items.shape, width] of ``items``."""
        return F.embedding(users, self.user_embedding), F.embedding(items, self.item_embedding)

    def represent(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors that scores are made of: [B, D] of ``users`` [B], [*items.shape, D'] of ``items``."""
        return self.embedding_rows(users, items)

    def score(self, user_rows: Tensor, item_rows: Tensor) -> Tensor:
        """Return the scores of vectors from :meth:`represent`.

        Args:
            user_rows: [B, D].
            item_rows: [B, D'] or [B, K, D'].

        Returns:
            [B] or [B, K].
        """
        raise NotImplementedError

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Return the scores of users for items, differentiable.

        Args:
            users: an integer tensor [B] on the model's device.
            items: an integer tensor [B] or [B, K] on the model's device.

        Returns:
            A tensor of the shape of ``items``.

        Raises:
            ValueError: ``users`` is not one-dimensional, or ``items`` has another length.
            IndexError: an id is out of range. On a GPU nothing checks the ids.
        """
        check_pairs(users, items)
        return self.score(*self.represent(users, items))

    def score_all_items(self, users: Tensor) -> Tensor:
        """Return the scores of all items for ``users`` [B], [B, num_items], without gradient or dropout."""
        raise NotImplementedError

    def l2_penalty(self, users: Tensor, items: Tensor) -> Tensor:
        """Return half the mean over the batch of the summed squared norms of the gathered rows ([BPR09] eq. 4).

        Only embedding rows count, not biases and layers. ``fit(l2=...)`` multiplies the value by l2 and adds it to the
        loss.

        Args:
            users: [B].
            items: [B] or [B, J].

        Returns:
            A scalar.
        """
        if users.shape[0] == 0:
            return self.user_embedding.sum() * 0.0
        user_rows, item_rows = self.embedding_rows(users, items)
        return 0.5 * (user_rows.square().sum() + item_rows.square().sum()) / users.shape[0]

    def predict(self, users: Any, items: Any) -> Tensor:
        """Return scores without gradient or dropout, after checking the ids.

        Args:
            users: one id, or ids [B]: a tensor, a NumPy array or a list of integers.
            items: ids [B] or [B, K].

        Returns:
            A tensor of the shape of ``items``.

        Raises:
            TypeError: the ids are no integers.
            ValueError: an id is out of range, or the shapes do not match.
        """
        user_index = index_tensor("users", users, self.num_users, self.device)
        item_index = index_tensor("items", items, self.num_items, self.device)
        with inference(self):
            shape = item_index.shape
            if user_index.dim() == 0:
                user_index, item_index = user_index.expand(item_index.numel()), item_index.reshape(-1)
            scores: Tensor = self(user_index, item_index)
            return scores.reshape(shape)

    # --- recommendations ---------------------------------------------------------------------------------

    def recommend(self, users: Any, k: int = 10, exclude: Any = None) -> tuple[Tensor, Tensor]:
        """Return the k best items of each user, best first.

        Args:
            users: one user id, or ids [n], or a mask over all users: a tensor, a NumPy array or a list.
            k: the number of items of each user, at most 2^20. If fewer are left, the row ends in item -1 with score
                -inf.
            exclude: interactions of shape [num_users, num_items], or a scipy or torch CSR, whose items are not
                recommended to their users. Usually the training data.

        Returns:
            Items, int64 [n, k], and scores, [n, k], on the model's device.

        Raises:
            TypeError: the ids or k are no integers.
            ValueError: an id is out of range, k is below 1, ``exclude`` has another shape, or a score is NaN because
                the model diverged.
        """
        k = require_positive_int("k", k, maximum=MOST_K)
        index = require_ids("users", users, self.num_users, self.device).reshape(-1)
        seen = None if exclude is None else self._as_interactions("exclude", exclude, index)
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

    def _best_items(self, seen: Interactions | None, width: int, num_users: int) -> tuple[_BestItems, int]:
        """Return a function from users [B] to their best items and scores, and the number of users to call it with."""
        kernel = self.device.type != "cpu" and _ops.has_op("rank_scores", self.device)

        def best(users: Tensor) -> tuple[Tensor, Tensor]:
            block = all_scores(self, users)
            if kernel:  # one pass over the scores, and of equal ones the lower item first
                indptr, indices = (None, None) if seen is None else (seen.indptr, seen.indices)
                items, values, failed = _ops.best_of_scores(
                    block, users.contiguous(), self.num_users, indptr, indices, width
                )
                _refuse_nan(int(failed) >= 0)
                return items, values
            if seen is not None:
                rows, columns = _csr_cells(seen, users)
                block[rows, columns] = float("-inf")
            values, found = block.topk(width, dim=1)
            # topk puts NaN first, so that a look at the winners is enough.
            _refuse_nan(bool(values.isnan().any()))
            return found.masked_fill(values == float("-inf"), -1), values

        return best, max(1, CELLS_PER_CHUNK // self.num_items)

    def _as_interactions(self, name: str, value: Any, users: Tensor) -> Interactions:
        """Return interactions of the model's shape, with at least the rows of ``users``."""
        matrix = Interactions.from_any(value, users=users.cpu().numpy())
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
        optimizer: OptimizerLike = None,
        **options: Any,
    ) -> History:
        """Train the model in place.

        Args:
            interactions: :class:`~zerosum_ext.Interactions`, or a scipy or torch CSR, [num_users, num_items].
            loss: a name of :func:`zerosum_ext.losses.get_loss`, or a module that is called as ``loss(pos, neg)``.
            optimizer: a name such as "adam" or "sgd", a class of torch.optim, another callable that makes an optimizer
                from a list of parameters, a torch.optim.Optimizer, or None for "adam".
            options: keyword arguments of :func:`zerosum_ext.training.fit`: lr, batch_size, epochs, device, seed,
                negatives, draws, validation, l2, callbacks, checkpoint, ...

        Returns:
            The history: one mean loss for each epoch, and more.
        """
        return fit(self, interactions, loss, optimizer, **options)

    # --- files -------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, which ``save`` writes beside the tensors."""
        raise NotImplementedError

    def _extra_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a file needs beside the state dict, by names that are not in it."""
        return {}

    @classmethod
    def _construct(cls, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Recommender:
        """Return a model of this class to load tensors into. The seed spares torch's global generator."""
        return cls(**config, seed=0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters as safetensors, with the configuration in the file's metadata.

        The file is complete or not there: it is written under another name and then moved into place.

        Raises:
            OSError: the file cannot be written.
        """
        metadata = {
            "format": _format(type(self)),
            "config": json.dumps(self.config()),
            "epochs_trained": str(self.epochs_trained),
        }
        save_tensors({**self.state_dict(), **self._extra_tensors()}, path, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str | None = None) -> Any:
        """Return a model that ``save`` wrote, on ``device`` (the CPU by default).

        ``Recommender.load`` reads every kind of model; a subclass reads its own kind.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file does not hold such a model; the message says what is wrong.
        """
        from safetensors import SafetensorError, safe_open

        name = os.fspath(path)
        if not os.path.isfile(name):
            raise FileNotFoundError(f"no model file {name!r}")
        try:
            with safe_open(name, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, OverflowError) as error:
            raise ValueError(f"{name!r} is not a safetensors file: {error}") from None
        kinds = {_format(kind): kind for kind in Recommender._kinds.values() if issubclass(kind, cls)}
        kind = kinds.get(metadata.get("format", ""))
        if kind is None:
            raise ValueError(
                f"{name!r}: expected a file of format {' or '.join(map(repr, kinds))}, got {metadata.get('format')!r}"
            )
        try:
            config = json.loads(metadata["config"])
            if not isinstance(config, dict):
                raise ValueError(f"config: expected an object, got {config!r}")
            _check_size(config, tensors)
            model = kind._restore(config, tensors)
            trained = int(metadata.get("epochs_trained", 0))
            model.epochs_trained = require_positive_int("epochs_trained", trained, minimum=0)
        except KeyError as error:
            raise ValueError(f"{name!r} is damaged: it lacks {error}") from None
        except (ValueError, TypeError, RuntimeError, AttributeError, IndexError, RecursionError) as error:
            raise ValueError(f"{name!r} is damaged: {error}") from None
        return model.to(device) if device is not None else model

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Recommender:
        """Return the model of a file's configuration and tensors."""
        model = cls._construct(config, tensors)
        names = model.state_dict().keys()
        state = {name: value for name, value in tensors.items() if name in names}
        dtype = next((value.dtype for value in state.values() if value.is_floating_point()), None)
        if dtype is None:
            raise ValueError("it holds no parameters")
        model.to(dtype)
        model.load_state_dict(state)
        return model


# Numbers of a configuration that need no tensor to vouch for them: layers of such widths take little memory.
_SMALL = 4096


def _check_size(config: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise where a configuration asks for a model much larger than the tensors that are to fill it.

    A file of some bytes must not make us take gigabytes before its tensors are looked at.
    """
    rows = {size for tensor in tensors.values() for size in tensor.shape[:1]}
    rows |= {size - 1 for size in rows}  # (the graph's indptr has one entry more than there are users)
    widths = {size for tensor in tensors.values() for size in tensor.shape[1:]}

    def look(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                look(str(key), inner)
        elif isinstance(value, list):
            if len(value) > _SMALL:
                raise ValueError(f"{name}: expected at most {_SMALL} entries, got {len(value)}")
            for inner in value:
                look(name, inner)
        elif isinstance(value, int) and value > _SMALL:
            known = rows if name in ("num_users", "num_items") else widths
            if value not in known:
                raise ValueError(f"{name} is {value:,}, and no tensor of the file has that size")

    for name, value in config.items():
        look(name, value)


def save_tensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors.

    Args:
        tensors: tensors by name.
        path: the file.
        metadata: further text in the file, by name.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path, SafetensorError) as part:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part, metadata)


def _refuse_nan(found: bool) -> None:
    if found:
        raise ValueError("recommend: the model's scores contain NaN; its training diverged")


class DotProductRecommender(Recommender):
    """A recommender whose scores are dot products of a user's and an item's vector, plus the item's bias.

    A subclass defines :meth:`vectors`. Evaluation is then a matrix product.
    """

    def vectors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the vectors of users [U, d] and of items [I, d], and the bias of items [I] or None; differentiable."""
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
        """Return the scores of all items for ``users`` [B], [B, num_items], without gradient or dropout."""
        user, item, bias = self.factors()
        scores = user[users] @ item.T
        return scores if bias is None else scores + bias

    def _best_items(self, seen: Interactions | None, width: int, num_users: int) -> tuple[_BestItems, int]:
        # The ranking kernel stores no scores and needs most of them only roughly. It is used where dot products alone
        # decide, for enough users to make up for preparing the item table.
        alone = num_users >= 64 and type(self).score_all_items is DotProductRecommender.score_all_items
        alone = alone and "score_all_items" not in vars(self) and not forward_decides(self)
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
        """Return :meth:`vectors` without gradient or dropout."""
        with inference(self):
            user, item, bias = self.vectors()
            return user.detach(), item.detach(), None if bias is None else bias.detach()

    @torch.no_grad()
    def similar_items(self, items: Any, k: int = 10, *, metric: Similarity = "cosine") -> tuple[Tensor, Tensor]:
        """Return the k items whose vectors are most similar to each given item's, without the item itself.

        The cosine of a vector of zeros is not defined. With "cosine" such an item has no neighbours and is nobody's.

        Args:
            items: one item id, or ids [n], or a mask over all items.
            k: the number of neighbours. If the catalogue has fewer, the row ends in item -1 with similarity -inf.
            metric: "cosine" or "dot".

        Returns:
            Items, int64 [n, k], and similarities, [n, k].

        Raises:
            TypeError: the ids or k are no integers.
            ValueError: an id is out of range, k is below 1, the metric is unknown, or a vector is not finite because
                the model diverged.
        """
        k = require_positive_int("k", k, maximum=MOST_K)
        require_choice("metric", metric, ("cosine", "dot"))
        index = require_ids("items", items, self.num_items, self.device).reshape(-1)
        table = self.factors()[1]
        # The largest entry of a row is infinite or NaN if any is.
        largest = table.abs().amax(1) if table.shape[1] else table.new_zeros(len(table))
        if not largest.isfinite().all():
            wrong = int((~largest.isfinite()).nonzero()[0])
            raise ValueError(f"similar_items: the vector of item {wrong} is not finite; the model's training diverged")
        nowhere = largest == 0
        if metric == "cosine":
            table = _unit_rows(table, largest)
        width = min(k, self.num_items)
        neighbours = torch.full((index.numel(), k), -1, dtype=torch.int64, device=self.device)
        scores = torch.full((index.numel(), k), float("-inf"), dtype=table.dtype, device=self.device)
        step = max(1, CELLS_PER_CHUNK // self.num_items)
        for start in range(0, index.numel(), step):
            chunk = index[start : start + step]
            block = table[chunk] @ table.T
            block[torch.arange(chunk.numel(), device=self.device), chunk] = float("-inf")
            if metric == "cosine":
                block.masked_fill_(nowhere | nowhere[chunk].unsqueeze(1), float("-inf"))
            best, arg = block.topk(width, dim=1)
            neighbours[start : start + step, :width] = arg.masked_fill(best == float("-inf"), -1)
            scores[start : start + step, :width] = best
        return neighbours, scores


def _unit_rows(table: Tensor, largest: Tensor) -> Tensor:
    """Return the rows scaled to length 1, given the largest magnitude in each; rows of zeros stay.

    The square of a large or a small entry is infinite or zero. A power of two that brings the largest entry near 1
    prevents that without a rounding error.
    """
    wide = table.float() if table.dtype in (torch.float16, torch.bfloat16) else table
    most = 1022 if wide.dtype == torch.float64 else 126
    exponent = torch.frexp(largest.to(wide.dtype)).exponent.clamp(-most, most)
    return F.normalize(torch.ldexp(wide, -exponent.unsqueeze(1)), dim=1).to(table.dtype)


def check_pairs(users: Tensor, items: Tensor) -> None:
    """Raise a ValueError if ``users`` is not [B], or ``items`` is neither [B] nor [B, K]."""
    if users.dim() != 1:
        raise ValueError(f"users: expected shape [B], got {list(users.shape)}")
    if items.dim() not in (1, 2) or items.shape[0] != users.shape[0]:
        raise ValueError(f"items: expected shape [{users.shape[0]}] or [{users.shape[0]}, K], got {list(items.shape)}")


def _format(kind: type) -> str:
    return f"zerosum_ext.{kind.__name__}/1"


def _csr_cells(matrix: Interactions, users: Tensor) -> tuple[Tensor, Tensor]:
    """Return the position in ``users`` and the item of each of their interactions: two tensors, int64 [n]."""
    starts, counts = matrix.indptr[users], matrix.indptr[users + 1] - matrix.indptr[users]
    rows = torch.repeat_interleave(torch.arange(users.numel(), device=users.device), counts)
    first = torch.cumsum(counts, 0) - counts
    offsets = torch.arange(rows.numel(), device=users.device) - first[rows] + starts[rows]
    return rows, matrix.indices[offsets].long()
