"""Matrix factorization: a user and an item embedding whose dot product is the score."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from .training import History

__all__ = ["MatrixFactorization"]

# recommend scores this many (user, item) cells at a time: 64 MiB of fp32.
_CELLS_PER_CHUNK = 1 << 24
_FORMAT = "zerosum_ext.MatrixFactorization/1"


def _index_tensor(name: str, values: Any, size: int, device: torch.device) -> Tensor:
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


def _positive_int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__} {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return int(value)


class MatrixFactorization(nn.Module):
    """Scores ``y_ui = <P_u, Q_i> (+ b_i)`` ([BPR09] section 4.3.1, [RCS22] section 4.1).

    Args:
        num_users: rows of ``user_embedding``.
        num_items: rows of ``item_embedding``.
        embedding_dim: width d of both tables.
        item_bias: adds one learnt number an item to its scores. It starts at zero.
        init_std: both tables start as N(0, init_std^2); the paper uses .01.
        sparse: gradients of the tables are sparse tensors of the batch's rows, which SparseAdam needs and which
            pays where a batch touches few of the rows. ``fit`` turns it on by itself for SparseAdam.
        seed: makes the initial tables reproducible without touching torch's global generator; None draws from
            the global generator, as torch.nn does.
        device, dtype: of the parameters, as in torch.nn.

    Attributes:
        user_embedding: Parameter [num_users, d].
        item_embedding: Parameter [num_items, d].
        item_bias: Parameter [num_items], or None.

    Freeze a table by ``model.item_embedding.requires_grad_(False)``; training then leaves it as it is.

    References:
        [BPR09] Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009.
        [RCS22] Rhee, Cho, Suh, "Countering Popularity Bias by Regularizing Score Differences", RecSys 2022.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        embedding_dim: int = 64,
        *,
        item_bias: bool = False,
        init_std: float = 0.01,
        sparse: bool = False,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_users = _positive_int("num_users", num_users)
        self.num_items = _positive_int("num_items", num_items)
        self.embedding_dim = _positive_int("embedding_dim", embedding_dim)
        if not 0.0 <= init_std < float("inf"):
            raise ValueError(f"init_std: expected a finite number >= 0, got {init_std}")
        self.init_std = float(init_std)
        self.sparse = bool(sparse)
        kwargs: dict[str, Any] = {"device": device, "dtype": dtype}
        self.user_embedding = nn.Parameter(torch.empty(self.num_users, self.embedding_dim, **kwargs))
        self.item_embedding = nn.Parameter(torch.empty(self.num_items, self.embedding_dim, **kwargs))
        self.item_bias: nn.Parameter | None
        if item_bias:
            self.item_bias = nn.Parameter(torch.zeros(self.num_items, **kwargs))
        else:
            self.register_parameter("item_bias", None)
        self.reset_parameters(seed)

    def reset_parameters(self, seed: int | None = None) -> None:
        """Draws both tables anew from N(0, init_std^2) and sets the biases to zero."""
        with torch.no_grad():
            if seed is None:
                nn.init.normal_(self.user_embedding, std=self.init_std)
                nn.init.normal_(self.item_embedding, std=self.init_std)
            else:
                # Drawn on the CPU in fp32, so that a seed means the same tables on every device.
                generator = torch.Generator().manual_seed(int(seed))
                for table in (self.user_embedding, self.item_embedding):
                    table.copy_(torch.randn(table.shape, generator=generator) * self.init_std)
            if self.item_bias is not None:
                self.item_bias.zero_()

    def extra_repr(self) -> str:
        bias = ", item_bias=True" if self.item_bias is not None else ""
        return f"{self.num_users}, {self.num_items}, embedding_dim={self.embedding_dim}{bias}"

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.user_embedding.device

    # --- scores ------------------------------------------------------------------------------------------

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of ``users`` [B] for ``items`` [B] or [B, K]; the result has the shape of ``items``.

        Both are integer tensors on the model's device. Differentiable.

        Raises:
            ValueError: users is not one-dimensional, or items does not have users' length.
            IndexError: an id out of range, on the CPU (torch's embedding says so).
        """
        if users.dim() != 1:
            raise ValueError(f"users: expected shape [B], got {list(users.shape)}")
        if items.dim() not in (1, 2) or items.shape[0] != users.shape[0]:
            raise ValueError(
                f"items: expected shape [{users.shape[0]}] or [{users.shape[0]}, K], got {list(items.shape)}"
            )
        user_rows = F.embedding(users, self.user_embedding, sparse=self.sparse)
        item_rows = F.embedding(items, self.item_embedding, sparse=self.sparse)
        if items.dim() == 1:
            scores = (user_rows * item_rows).sum(-1)
        else:
            scores = torch.bmm(item_rows, user_rows.unsqueeze(-1)).squeeze(-1)
        if self.item_bias is not None:
            # Not F.embedding of a [num_items, 1] view: a view has no sparse gradient.
            bias = torch.gather(self.item_bias, 0, items.reshape(-1), sparse_grad=self.sparse)
            scores = scores + bias.reshape(items.shape)
        return scores

    def l2_penalty(self, users: Tensor, items: Tensor) -> Tensor:
        """Half the mean over the batch of the summed squared norms of the rows it gathers ([BPR09] eq. 4).

        Biases are left out. ``users`` [B], ``items`` [B] or [B, J]; returns a scalar, which
        ``training.fit(l2=...)`` multiplies by l2 and adds to the loss.
        """
        if users.shape[0] == 0:
            return self.user_embedding.sum() * 0.0
        user_rows = F.embedding(users, self.user_embedding, sparse=self.sparse)
        item_rows = F.embedding(items, self.item_embedding, sparse=self.sparse)
        return 0.5 * (user_rows.square().sum() + item_rows.square().sum()) / users.shape[0]

    @torch.no_grad()
    def score_all_items(self, users: Tensor) -> Tensor:
        """Scores of every item for ``users`` [B]: [B, num_items], without gradient."""
        scores = self.user_embedding[users] @ self.item_embedding.T
        return scores if self.item_bias is None else scores + self.item_bias

    def factors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The tables that scores are dot products of: (user [U, d], item [I, d], item bias [I] or None)."""
        bias = None if self.item_bias is None else self.item_bias.detach()
        return self.user_embedding.detach(), self.item_embedding.detach(), bias

    @torch.no_grad()
    def predict(self, users: Any, items: Any) -> Tensor:
        """Scores without gradient, with the ids checked.

        Args:
            users: [B] or one id. Tensor, NumPy array or list of integers.
            items: [B] or [B, K].

        Raises:
            TypeError: ids that are not integers.
            ValueError: ids out of range, or shapes that do not match.
        """
        user_index = _index_tensor("users", users, self.num_users, self.device)
        item_index = _index_tensor("items", items, self.num_items, self.device)
        if user_index.dim() == 0:
            return self(user_index.expand(item_index.numel()), item_index.reshape(-1)).reshape(item_index.shape)
        return self(user_index, item_index)

    # --- recommendations ---------------------------------------------------------------------------------

    @torch.no_grad()
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
        k = _positive_int("k", k)
        index = _index_tensor("users", users, self.num_users, self.device).reshape(-1)
        seen = None if exclude is None else self._as_interactions("exclude", exclude)
        width = min(k, self.num_items)
        items = torch.full((index.numel(), k), -1, dtype=torch.int64, device=self.device)
        scores = torch.full((index.numel(), k), float("-inf"), dtype=self.user_embedding.dtype, device=self.device)
        step = max(1, _CELLS_PER_CHUNK // self.num_items)
        for start in range(0, index.numel(), step):
            chunk = index[start : start + step]
            block = self.score_all_items(chunk)
            if seen is not None:
                rows, columns = _csr_cells(seen, chunk)
                block[rows, columns] = float("-inf")
            best, arg = block.topk(width, dim=1)
            # topk puts NaN first, so looking at the winners is enough.
            if bool(best.isnan().any()):
                raise ValueError("recommend: the model's scores contain NaN; its training diverged")
            arg = arg.masked_fill(best == float("-inf"), -1)
            items[start : start + step, :width] = arg
            scores[start : start + step, :width] = best
        return items, scores

    @torch.no_grad()
    def similar_items(self, items: Any, k: int = 10, *, metric: str = "cosine") -> tuple[Tensor, Tensor]:
        """The k items whose embeddings are nearest to each given item's, the item itself left out.

        Args:
            items: item ids [n], or one id.
            k: neighbours an item; where the catalogue has fewer, filled with item -1, score -inf.
            metric: "cosine" or "dot".

        Returns:
            items int64 [n, k] and similarities [n, k].
        """
        k = _positive_int("k", k)
        if metric not in ("cosine", "dot"):
            raise ValueError(f"metric: expected 'cosine' or 'dot', got {metric!r}")
        index = _index_tensor("items", items, self.num_items, self.device).reshape(-1)
        table = self.item_embedding.detach()
        if metric == "cosine":
            table = F.normalize(table, dim=1)
        width = min(k, self.num_items)
        neighbours = torch.full((index.numel(), k), -1, dtype=torch.int64, device=self.device)
        scores = torch.full((index.numel(), k), float("-inf"), dtype=table.dtype, device=self.device)
        step = max(1, _CELLS_PER_CHUNK // self.num_items)
        for start in range(0, index.numel(), step):
            chunk = index[start : start + step]
            block = table[chunk] @ table.T
            block[torch.arange(chunk.numel(), device=self.device), chunk] = float("-inf")
            best, arg = block.topk(width, dim=1)
            neighbours[start : start + step, :width] = arg.masked_fill(best == float("-inf"), -1)
            scores[start : start + step, :width] = best
        return neighbours, scores

    def _as_interactions(self, name: str, value: Any) -> Any:
        from .interactions import Interactions

        matrix = Interactions.from_any(value)
        if tuple(matrix.shape) != (self.num_users, self.num_items):
            raise ValueError(
                f"{name}: expected shape ({self.num_users}, {self.num_items}) as the model's, got {tuple(matrix.shape)}"
            )
        return matrix.to(self.device)

    # --- training ----------------------------------------------------------------------------------------

    def fit(self, interactions: Any, loss: str | nn.Module = "zerosum", **options: Any) -> History:
        """Trains the model in place and returns the history: one mean loss per epoch.

        ``options`` are those of :func:`zerosum_ext.training.fit`: optimizer, batch_size, epochs, device, seed,
        negatives, draws, validation, l2, callbacks, checkpoint, ...

        Args:
            interactions: :class:`~zerosum_ext.Interactions`, or a scipy or torch CSR, [num_users, num_items].
            loss: a name of :func:`zerosum_ext.losses.get_loss`, or a module called as ``loss(pos, neg)``.
        """
        from .training import fit

        return fit(self, interactions, loss, **options)

    # --- files -------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """What ``save`` writes beside the tables: the constructor's arguments."""
        return {
            "num_users": self.num_users,
            "num_items": self.num_items,
            "embedding_dim": self.embedding_dim,
            "item_bias": self.item_bias is not None,
            "init_std": self.init_std,
            "sparse": self.sparse,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the tables as safetensors, the configuration in the file's metadata.

        The file is complete or not there: it is written beside and then moved into place.
        """
        from safetensors.torch import save_file

        target = os.fspath(path)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        part = f"{target}.part"
        save_file(tensors, part, metadata={"format": _FORMAT, "config": json.dumps(self.config())})
        os.replace(part, target)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str | None = None) -> MatrixFactorization:
        """Reads a model that ``save`` wrote, onto ``device`` (the CPU by default).

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a file of this model; the message says what is wrong.
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
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{name!r}: expected a file of format {_FORMAT!r}, got {metadata.get('format')!r}")
        config = json.loads(metadata["config"])
        model = cls(**config, dtype=tensors["user_embedding"].dtype)
        model.load_state_dict(tensors)
        return model.to(device) if device is not None else model


def _csr_cells(matrix: Any, users: Tensor) -> tuple[Tensor, Tensor]:
    """(row in users, item) of every interaction of ``users``: two int64 [n]."""
    starts, counts = matrix.indptr[users], matrix.indptr[users + 1] - matrix.indptr[users]
    rows = torch.repeat_interleave(torch.arange(users.numel(), device=users.device), counts)
    first = torch.cumsum(counts, 0) - counts
    offsets = torch.arange(rows.numel(), device=users.device) - first[rows] + starts[rows]
    return rows, matrix.indices[offsets].long()
