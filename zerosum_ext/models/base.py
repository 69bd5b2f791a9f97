"""The base classes of all models: scores, recommendations, training and files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerosum_ext._checks import MOST_K, describe, require_choice, require_device, require_ids, require_positive_int
from zerosum_ext._inference import inference
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.data.vocabulary import Vocabulary
from zerosum_ext.evaluation.sources import forward_decides, scores_by_forward
from zerosum_ext.models import files, folding, lists
from zerosum_ext.reference import compute_dtype
from zerosum_ext.training import History, fit
from zerosum_ext.training.growing import grow_parameter
from zerosum_ext.training.optimizers import OptimizerLike

__all__ = ["DotProductRecommender", "Recommender", "check_pairs", "index_tensor", "save_tensors"]

#: The similarity of two items' vectors.
Similarity: TypeAlias = Literal["cosine", "dot"]
_Model = TypeVar("_Model", bound="Recommender")


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
    with inference(model):
        return candidate_scores(model, users, None)


def candidate_scores(model: Recommender, users: Tensor, candidates: Tensor | None) -> Tensor:
    """Return the scores of candidates for ``users`` [B], by whatever the model says scores are.

    Args:
        model: the model, in evaluation mode.
        users: int64 [B].
        candidates: int64 [C], or None for all items.

    Returns:
        [B, C] or [B, num_items].
    """
    if candidates is not None and 4 * candidates.numel() < model.num_items:
        scores: Tensor = model(users, candidates.expand(users.numel(), -1))
        return scores
    if forward_decides(model):
        scores = scores_by_forward(model, users, model.num_items)
    else:
        scores = model.score_all_items(users)
    return scores if candidates is None else scores[:, candidates]


class Recommender(nn.Module):
    """A model that scores (user, item) pairs, with one row of parameters for each user and each item.

    A subclass sets ``num_users``, ``num_items``, ``user_embedding`` and ``item_embedding``. It defines :meth:`score`,
    which turns rows into scores, and :meth:`represent` if the rows are not simply looked up.

    Attributes:
        user_embedding: Parameter [num_users, width].
        item_embedding: Parameter [num_items, width].
        epochs_trained: the number of epochs that ``fit`` has trained the model for. The next fit goes on counting
            there. Model files and checkpoints keep it; ``reset_parameters`` sets it to 0.
        vocabulary: the external ids of users and items, or None. ``fit`` takes them from its interactions.
        item_names: names of the items for people [num_items], such as titles, or None. Model files keep them.
        information: what a model file says of where the model comes from: version, settings, metrics.

    Example:
        >>> import zerosum_ext as zx
        >>> isinstance(zx.MatrixFactorization(3, 4), zx.Recommender)
        True
    """

    epochs_trained: int = 0
    vocabulary: Vocabulary | None = None
    item_names: Any = None
    information: Mapping[str, Any] = MappingProxyType({})
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
        return cls(interactions.num_users, interactions.num_items, **options)._named(interactions)

    def _named(self: _Model, interactions: Interactions) -> _Model:
        """Take the external ids of interactions, if they have some, and return the model."""
        if interactions.user_ids is not None or interactions.item_ids is not None:
            self.vocabulary = interactions.vocabulary
        return self

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self._some_parameter().device

    def _some_parameter(self) -> nn.Parameter:
        """Return a parameter: one of the model's own where it has some, for a walk over the modules takes longer."""
        for parameter in self._parameters.values():
            if parameter is not None:
                return parameter
        return next(self.parameters())

    # --- scores ------------------------------------------------------------------------------------------

    def embedding_rows(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of the embedding tables: ``[B, width]`` of users, ``[*items.shape, width]`` of items."""
        return F.embedding(users, self.user_embedding), F.embedding(items, self.item_embedding)

    def represent(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors that scores are made of: ``[B, D]`` of users, ``[*items.shape, D']`` of items."""
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

    # What recommenders of other libraries take by name.
    def recommend(
        self,
        users: Any,
        k: int = 10,
        exclude: Any = None,
        *,
        items: Any = None,
        filter_items: Any = None,
        return_ids: bool = False,
    ) -> tuple[Any, Tensor]:
        """Return the k best items of each user, best first.

        Args:
            users: one user id, or ids [n], or a mask over all users: a tensor, a NumPy array or a list.
            k: the number of items of each user, at most 2^20. If fewer are left, the row ends in item -1 with score
                -inf.
            exclude: items that are not recommended to their users, usually the training data: a matrix [num_users,
                num_items], or [n, num_items] with a row for each of ``users``. Interactions, a scipy or a torch CSR;
                only the rows of ``users`` are read. A matrix of num_users rows is always that of all users. Or a list
                of the ids of each of ``users``.
            items: the candidates: ids or a mask for all users alike, or a matrix as ``exclude`` with the candidates of
                each user. None: all items.
            filter_items: ids or a mask of items that are recommended to nobody, such as those out of stock.
            return_ids: return external ids of items, from ``model.vocabulary``, as a NumPy array [n, k]. Where the row
                ends early they are "" or -1, and the scores -inf.

        Returns:
            Items, int64 [n, k], and scores, [n, k], on the model's device.

        Raises:
            TypeError: the ids or k are no integers.
            ValueError: an id is out of range, k is below 1, a matrix has another shape, or a score is NaN because the
                model diverged; ``return_ids`` of a model without a vocabulary.
        """
        k = require_positive_int("k", k, maximum=MOST_K)
        shape = (self.num_users, self.num_items)
        index = require_ids("users", users, self.num_users, self.device).reshape(-1)
        if return_ids:
            self._require_vocabulary()
        candidates = lists.allowed_items(items, filter_items, index, shape, ("items", "filter_items"))
        seen = None if exclude is None else lists.rows_of("exclude", exclude, index, shape)
        with inference(self):
            if isinstance(candidates, lists.Rows):
                found, scores = lists.best_of_own(self, index, candidates, seen, k, self.num_items, self._dtype)
            else:
                found, scores = self._padded_best(index, seen, candidates, k)
        return (self._item_ids(found) if return_ids else found), scores

    def fold_in(self, histories: Any, **options: Any) -> Tensor:
        """Return vectors of new users; see :meth:`DotProductRecommender.fold_in`.

        Raises:
            ValueError: scores of this model are no dot products.
        """
        raise _no_dot_products("fold_in", self)

    def recommend_for(self, *arguments: Any, **options: Any) -> tuple[Any, Tensor]:
        """Return lists for rows of new users; see :meth:`DotProductRecommender.recommend_for`.

        Raises:
            ValueError: scores of this model are no dot products.
        """
        raise _no_dot_products("recommend_for", self)

    def similar_items(self, *arguments: Any, **options: Any) -> tuple[Any, Tensor]:
        """Return neighbours of items; see :meth:`DotProductRecommender.similar_items`.

        Raises:
            ValueError: scores of this model are no dot products, so that its vectors say nothing of likeness.
        """
        raise _no_dot_products("similar_items", self)

    def similar_users(self, *arguments: Any, **options: Any) -> tuple[Any, Tensor]:
        """Return neighbours of users; see :meth:`DotProductRecommender.similar_users`.

        Raises:
            ValueError: as of :meth:`similar_items`.
        """
        raise _no_dot_products("similar_users", self)

    def _padded_best(
        self, users: Tensor, seen: lists.Rows | None, candidates: Tensor | None, k: int
    ) -> tuple[Tensor, Tensor]:
        """Return the best of the candidates (None: all items) for users [n]: items and scores, [n, k] each."""

        def best(known: lists.Rows | None, width: int) -> tuple[Tensor, Tensor]:
            return self._best_items(users, known, candidates, width)

        return lists.padded_by(best, users, seen, candidates, k, self.num_items, self._dtype)

    def _best_items(
        self, users: Tensor, seen: lists.Rows | None, candidates: Tensor | None, width: int
    ) -> tuple[Tensor, Tensor]:
        """Return the best items by their numbers among the candidates, and their scores: [n, width] each."""
        number = self.num_items if candidates is None else candidates.numel()
        return lists.best_by_scores(lambda part: candidate_scores(self, part, candidates), users, seen, width, number)

    @property
    def _dtype(self) -> torch.dtype:
        return self._some_parameter().dtype

    def _require_vocabulary(self) -> Vocabulary:
        if self.vocabulary is None:
            raise ValueError(
                "return_ids: expected a model with a vocabulary, which it gets when it is trained on interactions with "
                "external ids, or by model.vocabulary = train.vocabulary"
            )
        return self.vocabulary

    def _item_ids(self, items: Tensor) -> np.ndarray:
        """Return the external ids of items, "" or -1 where the number is -1."""
        return _external(self._require_vocabulary().item_ids, items)

    # --- growth ------------------------------------------------------------------------------------------

    def grow(
        self,
        vocabulary: Vocabulary | tuple[int, int],
        *,
        interactions: Any = None,
        optimizer: torch.optim.Optimizer | None = None,
        seed: int = 0,
    ) -> None:
        """Make room for new users and items in place. Those that are known keep their rows.

        Args:
            vocabulary: the external ids, of which the first are those of before, such as ``more.vocabulary`` of
                interactions that were read with ``vocabulary=train.vocabulary, unknown="grow"``; or (num_users,
                num_items).
            interactions: the graph of models on a graph, of the new shape. Others do not need it.
            optimizer: an optimizer that goes on training the model, such as ``history.optimizer``. What it knows of
                the rows grows with them.
            seed: the seed of the new rows, which are drawn as the first ones were. Biases begin at 0.

        Raises:
            ValueError: the new shape is smaller, or the vocabulary does not begin with the ids of before; the model
                has no tables of its own.
        """
        shape = self._check_growth(vocabulary)
        std = getattr(self, "init_std", None)
        if std is None:
            raise ValueError(f"grow: {type(self).__name__} has no tables; grow its backbone and wrap it anew")
        generator = torch.Generator().manual_seed(require_positive_int("seed", seed, minimum=0))
        for table, size in ((self.user_embedding, shape[0]), (self.item_embedding, shape[1])):
            rows = torch.empty(size - len(table), *table.shape[1:]).normal_(std=std, generator=generator)
            grow_parameter(table, rows, optimizer)
        bias = getattr(self, "item_bias", None)
        if bias is not None:
            grow_parameter(bias, torch.zeros(shape[1] - len(bias)), optimizer)
        self.num_users, self.num_items = shape
        if isinstance(vocabulary, Vocabulary):
            self.vocabulary = vocabulary
        elif self.vocabulary is not None and self.vocabulary.shape != shape:
            self.vocabulary = None

    def _check_growth(self, vocabulary: Vocabulary | tuple[int, int]) -> tuple[int, int]:
        """Return the new shape."""
        before = (self.num_users, self.num_items)
        named = isinstance(vocabulary, Vocabulary)
        sizes = vocabulary.shape if isinstance(vocabulary, Vocabulary) else vocabulary
        if len(sizes) != 2:
            raise ValueError(f"vocabulary: expected a Vocabulary or (num_users, num_items), got {vocabulary!r}")
        shape = tuple(require_positive_int("vocabulary", size) for size in sizes)
        if shape[0] < before[0] or shape[1] < before[1]:
            raise ValueError(f"vocabulary: expected at least {before[0]} users and {before[1]} items, got {shape}")
        if named and self.vocabulary is not None and isinstance(vocabulary, Vocabulary):
            self.vocabulary.require_beginning_of(vocabulary)
        return shape[0], shape[1]

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

    def save(
        self,
        path: files.Target,
        *,
        settings: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Write the parameters as safetensors, with the configuration in the file's metadata.

        The file also holds the vocabulary and the names of items, where the model has them, and the library's version.
        It is complete or not there: it is written under another name and then moved into place.

        Args:
            path: a path, or a file that is open for writing bytes.
            settings: how the model was trained, such as the keywords of ``fit``: what JSON can hold. They come back as
                ``model.information["settings"]``. None keeps what is known.
            metrics: how good it is, such as the result of ``evaluate``; likewise.

        Raises:
            OSError: the file cannot be written.
            TypeError: settings or metrics are nothing that JSON can hold.
        """
        metadata = {
            "format": _format(type(self)),
            "config": json.dumps(self.config()),
            "epochs_trained": str(self.epochs_trained),
            **files.information(settings, metrics, self.information),
        }
        tensors = {**self.state_dict(), **self._extra_tensors()}
        if self.vocabulary is not None:
            tensors |= files.text_tensors("user_ids", self.vocabulary.user_ids)
            tensors |= files.text_tensors("item_ids", self.vocabulary.item_ids)
        tensors |= files.text_tensors("item_names", files.item_names(self.item_names, self.num_items))
        files.write(path, tensors, metadata)

    def card(self, name: str | None = None) -> str:
        """Return a model card in Markdown: what the model is, settings, results and limits, as far as they are known.

        Args:
            name: the title. None takes the class's name.
        """
        return files.card(self, name)

    @classmethod
    def load(cls, path: files.Target, device: torch.device | str | None = None) -> Any:
        """Return a model that ``save`` wrote, on ``device`` (the CPU by default).

        ``Recommender.load`` reads every kind of model; a subclass reads its own kind.

        Args:
            path: a path, or a file that is open for reading bytes.
            device: where the model is to be.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file does not hold such a model; the message says what is wrong.
        """
        place = None if device is None else require_device("device", device)
        name, all_tensors, metadata = files.read(path)
        tensors = {key: value for key, value in all_tensors.items() if not key.startswith(files.PREFIX)}
        kinds = {_format(kind): kind for kind in Recommender._kinds.values() if issubclass(kind, cls)}
        kind = kinds.get(metadata.get("format", ""))
        if kind is None:
            raise ValueError(
                f"{name}: expected a file of format {' or '.join(map(repr, kinds))}, got {metadata.get('format')!r}"
            )
        try:
            config = json.loads(metadata["config"])
            if not isinstance(config, dict):
                raise ValueError(f"config: expected an object, got {config!r}")
            _check_size(config, tensors)
            model = kind._restore(config, tensors)
            trained = int(metadata.get("epochs_trained", 0))
            model.epochs_trained = require_positive_int("epochs_trained", trained, minimum=0)
            model._know(all_tensors, metadata)
        except KeyError as error:
            raise ValueError(f"{name} is damaged: it lacks {error}") from None
        except (ValueError, TypeError, RuntimeError, AttributeError, IndexError, RecursionError) as error:
            raise ValueError(f"{name} is damaged: {error}") from None
        return model if place is None else model.to(place)

    def _know(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Take what a file says beside the parameters. Files of before say nothing."""
        found = files.vocabulary_of(tensors, (self.num_users, self.num_items))
        if found is not None:
            self.vocabulary = found
        self.item_names = files.item_names(files.names_of("item_names", tensors), self.num_items)
        information = json.loads(metadata.get("information", "{}"))
        if not isinstance(information, dict):
            raise ValueError(f"information: expected an object, got {information!r}")
        self.information = information

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
    files.write(path, tensors, metadata)


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

    def _best_items(
        self, users: Tensor, seen: lists.Rows | None, candidates: Tensor | None, width: int
    ) -> tuple[Tensor, Tensor]:
        # Dot products, where they alone decide.
        replaced = type(self).score_all_items is not DotProductRecommender.score_all_items
        if replaced or "score_all_items" in vars(self) or forward_decides(self):
            return super()._best_items(users, seen, candidates, width)
        user, item, bias = self.factors()
        if candidates is not None:
            item, bias = item[candidates], None if bias is None else bias[candidates]
        return lists.best_by_factors((user, item, bias), users, seen, width)

    def factors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return :meth:`vectors` without gradient or dropout."""
        with inference(self):
            user, item, bias = self.vectors()
            return user.detach(), item.detach(), None if bias is None else bias.detach()

    # --- users that were not trained with --------------------------------------------------------------------

    def _frozen_items(self) -> tuple[Tensor, Tensor | None]:
        """Return what the row of a new user is multiplied with: vectors of items [I, d], and their bias [I] or None."""
        _, item, bias = self.factors()
        return item, bias

    # The settings of an optimisation.
    def fold_in(  # type: ignore[override]  # its options by name
        self,
        histories: Any,
        *,
        loss: str | nn.Module = "bpr",
        l2: float = 0.03,
        negatives: int | None = 16,
        seed: int = 0,
        tolerance: float = 1e-4,
        max_iterations: int = 200,
    ) -> Tensor:
        """Return the rows that users who were not trained with would have, with the items as they are.

        A user's row p minimises ``mean of loss(positives, negatives) + l2/2 |p|^2`` over the user's own samples: each
        positive with negatives that are drawn once, or with all of them. Take the loss that the model was trained with.

        Args:
            histories: the users' items: a matrix [n, num_items] (Interactions, scipy or torch CSR), or a list of the
                ids of each user.
            loss: a name of :func:`zerosum_ext.get_loss`, or a module. The kinks of "zerosum" and "pos2neg2" are rounded
                off by .02; losses with other kinks are refused.
            l2: > 0, the weight of the squared length of p.
            negatives: the number of negatives of each positive; 2 with losses of two positives. None: all items that
                are not in the history.
            seed: the seed of the negatives, which follow from it and the user's history, whoever else is asked for.
            tolerance: the length of the gradient at the result, as a share of that at p = 0.
            max_iterations: the largest number of steps.

        Returns:
            [n, d], for :meth:`recommend_for`, or to be put into ``user_embedding``. Zero where a history is empty, or
            has all items.

        Raises:
            TypeError: ``histories`` or the loss is nothing of the kind.
            ValueError: an item or a setting is out of range, or the model's scores are not dot products.

        Examples:
            >>> import zerosum_ext as zx
            >>> model = zx.MatrixFactorization(5, 30, 4, seed=0)
            >>> rows = model.fold_in([[3, 4], [7]])
            >>> items, scores = model.recommend_for(rows, 3, exclude=[[3, 4], [7]])
            >>> items.shape
            torch.Size([2, 3])
        """
        settings = folding.FoldIn.of(loss, l2, negatives, seed, tolerance, max_iterations)
        item, bias = self._frozen_items()
        return folding.fold_in(item, bias, folding.histories_of(histories, self.num_items), settings)

    def recommend_for(
        self,
        rows: Tensor,
        k: int = 10,
        exclude: Any = None,
        *,
        items: Any = None,
        filter_items: Any = None,
        return_ids: bool = False,
    ) -> tuple[Any, Tensor]:
        """Return the k best items of users who are given by their rows, such as :meth:`fold_in` returns.

        Args:
            rows: [n, d].
            k: as in :meth:`recommend`.
            exclude: a matrix [n, num_items], or a list of the ids of each user, usually the histories.
            items: the candidates: ids or a mask, or a matrix [n, num_items].
            filter_items: as in :meth:`recommend`.
            return_ids: as in :meth:`recommend`.

        Returns:
            Items, int64 [n, k], and scores, [n, k].

        Raises:
            TypeError, ValueError: as of :meth:`recommend`.
        """
        k = require_positive_int("k", k, maximum=MOST_K)
        item, bias = self._frozen_items()
        if not isinstance(rows, Tensor) or rows.dim() != 2 or rows.shape[1] != item.shape[1]:
            raise ValueError(f"rows: expected a tensor [n, {item.shape[1]}], got {describe(rows)}")
        rows = rows.detach().to(item)
        index = torch.arange(len(rows), device=item.device)
        shape = (len(rows), self.num_items)
        seen = None if exclude is None else lists.rows_of("exclude", exclude, index, shape)
        allowed = lists.allowed_items(items, filter_items, index, shape, ("items", "filter_items"))
        if return_ids:
            self._require_vocabulary()
        with torch.no_grad():
            if isinstance(allowed, lists.Rows):

                def score(users: Tensor, own: Tensor) -> Tensor:
                    scores = (rows[users] * item[own]).sum(1)
                    return scores if bias is None else scores + bias[own]

                found, scores = lists.best_of_own(score, index, allowed, seen, k, self.num_items, item.dtype)
            else:
                found, scores = lists.padded((rows, item, bias), index, seen, allowed, k)
        return (self._item_ids(found) if return_ids else found), scores

    # --- neighbours ------------------------------------------------------------------------------------------

    def similar_items(
        self,
        items: Any,
        k: int = 10,
        *,
        metric: Similarity = "cosine",
        candidates: Any = None,
        filter_items: Any = None,
        return_ids: bool = False,
    ) -> tuple[Any, Tensor]:
        """Return the k items whose vectors are most similar to each given item's, without the item itself.

        The cosine of a vector of zeros is not defined. With "cosine" such an item has no neighbours and is nobody's.

        Args:
            items: one item id, or ids [n], or a mask over all items.
            k: the number of neighbours. If fewer are left, the row ends in item -1 with similarity -inf.
            metric: "cosine" or "dot".
            candidates: ids or a mask of the items that neighbours are looked for among. None: all.
            filter_items: ids or a mask of items that are nobody's neighbours.
            return_ids: return external ids, as in :meth:`recommend`.

        Returns:
            Items, int64 [n, k], and similarities, [n, k].

        Raises:
            TypeError: the ids or k are no integers.
            ValueError: an id is out of range, k is below 1, the metric is unknown, or a vector is not finite because
                the model diverged.
        """
        return self._similar("item", items, k, metric, candidates, filter_items, return_ids)

    def similar_users(
        self,
        users: Any,
        k: int = 10,
        *,
        metric: Similarity = "cosine",
        candidates: Any = None,
        filter_users: Any = None,
        return_ids: bool = False,
    ) -> tuple[Any, Tensor]:
        """Return the k users whose vectors are most similar to each given user's, without the user.

        The arguments are those of :meth:`similar_items`, for users.
        """
        return self._similar("user", users, k, metric, candidates, filter_users, return_ids)

    def _similar(
        self,
        side: Literal["user", "item"],
        given: Any,
        k: int,
        metric: Similarity,
        candidates: Any,
        filtered: Any,
        return_ids: bool,
    ) -> tuple[Any, Tensor]:
        """Return the neighbours of given users, or of given items."""
        of_items = side == "item"
        size = self.num_items if of_items else self.num_users
        index = require_ids(f"{side}s", given, size, self.device).reshape(-1)
        names = ("candidates", f"filter_{side}s")
        allowed = lists.allowed_items(_plain(names[0], candidates), filtered, index, (0, size), names)
        vocabulary = self._require_vocabulary() if return_ids else None
        user, item, _ = self.factors()
        found, scores = similar(item if of_items else user, index, k, metric, allowed, side)
        if vocabulary is None:
            return found, scores
        return _external(vocabulary.item_ids if of_items else vocabulary.user_ids, found), scores


def _no_dot_products(name: str, model: Recommender) -> ValueError:
    return ValueError(f"{name}: expected a model whose scores are dot products, got {type(model).__name__}")


def _plain(name: str, values: Any) -> Any:
    """Refuse a matrix where ids are due."""
    if isinstance(values, Interactions) or sp.issparse(values) or getattr(values, "is_sparse_csr", False):
        raise TypeError(f"{name}: expected ids or a mask, got {describe(values)}")
    return values


def _external(ids: np.ndarray | None, index: Tensor) -> np.ndarray:
    """Return external ids (None: the numbers are the ids), "" or -1 where the number is -1."""
    numbers = index.cpu().numpy()
    if ids is None:
        return numbers
    if not len(ids):
        return np.full(numbers.shape, "" if ids.dtype.kind == "U" else -1, ids.dtype)
    return np.where(numbers < 0, np.array("" if ids.dtype.kind == "U" else -1, ids.dtype), ids[numbers])


# Lengths of vectors whose squares are far from the ends of float32.
_USUAL_LENGTHS = 1e-12, 1e12


@torch.no_grad()
def similar(table: Tensor, index: Tensor, k: int, metric: Similarity, allowed: Any, what: str) -> tuple[Tensor, Tensor]:
    """Return the k rows of a table most similar to each of some rows, without these: numbers and similarities [n, k].

    Vectors are scaled before they are multiplied, so that lengths of 1e30 or 1e-30 do no harm.

    Args:
        table: [N, d].
        index: int64 [n].
        k: at least 1.
        metric: "cosine" or "dot".
        allowed: candidates, ascending [C], or None for all rows.
        what: the word for a row in messages.
    """
    k = require_positive_int("k", k, maximum=MOST_K)
    require_choice("metric", metric, ("cosine", "dot"))
    if index.numel() < lists.FEW_USERS:
        plain = _plain_neighbours(table, index, k, metric, allowed)
        if plain is not None:
            return plain
    # The largest entry of a row is infinite or NaN if any is.
    largest = table.abs().amax(1) if table.shape[1] else table.new_zeros(len(table))
    if not bool(largest.isfinite().all()):
        wrong = int((~largest.isfinite()).nonzero()[0])
        raise ValueError(f"similar_{what}s: the vector of {what} {wrong} is not finite; the model's training diverged")
    scale = table.new_ones(())
    nowhere = largest == 0
    if metric == "cosine":
        table = _unit_rows(table, largest)
        if bool(nowhere.any()):
            somewhere = (~nowhere).nonzero().flatten()
            allowed = somewhere if allowed is None else allowed[~nowhere[allowed]]
    elif table.numel() and bool((top := largest.amax()) > 0):
        # A power of two, which changes no bit of what is neither very large nor very small.
        scale = torch.ldexp(scale, torch.frexp(top.float()).exponent.clamp(-120, 120))
        table = table / scale
    own = lists.Rows(torch.arange(index.numel() + 1, device=index.device), index, True)
    found, scores = lists.padded((table, table, None), index, own, allowed, k)
    scores = scores * scale * scale
    if metric == "cosine":
        found[nowhere[index]], scores[nowhere[index]] = -1, float("-inf")
    return found, scores


def _plain_neighbours(
    table: Tensor, index: Tensor, k: int, metric: Similarity, allowed: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Return what :func:`similar` does, or None where a length is not of the usual size, or no number.

    Lengths are computed anew in each call, which costs as much as the products. Kept ones would be wrong after changes
    of the table that nothing announces, such as those through ``.data`` or NumPy.
    """
    if table.dtype not in (torch.float32, torch.float64) or 0 in table.shape or index.numel() == 0:
        return None
    lengths = torch.linalg.vector_norm(table, dim=1)
    least, most = torch.stack(torch.aminmax(lengths)).tolist()
    usual = _USUAL_LENGTHS[0] < (least if metric == "cosine" else most) and most < _USUAL_LENGTHS[1]
    if not usual:  # (or NaN)
        return None
    if index.numel() == 1:
        scores = torch.mv(table, table[int(index)]).unsqueeze(0)
    else:
        scores = table[index] @ table.T
    if metric == "cosine":
        scores = scores.div_(lengths).div_(lengths[index].unsqueeze(1))
    scores.scatter_(1, index.unsqueeze(1), float("-inf"))
    if allowed is not None:
        scores = scores[:, allowed]
    values, found = scores.topk(min(k, scores.shape[1]), dim=1)
    if allowed is not None:
        found = allowed[found]
    if values.shape[1] == scores.shape[1]:  # the item itself may be among them
        found = found.masked_fill(values == float("-inf"), -1)
    if found.shape[1] < k:
        found = F.pad(found, (0, k - found.shape[1]), value=-1)
        values = F.pad(values, (0, k - values.shape[1]), value=float("-inf"))
    return found, values


def _unit_rows(table: Tensor, largest: Tensor) -> Tensor:
    """Return the rows scaled to length 1, given the largest magnitude in each; rows of zeros stay.

    The square of a large or a small entry is infinite or zero. A power of two that brings the largest entry near 1
    prevents that without a rounding error.
    """
    wide = table.to(compute_dtype(table.dtype))
    most = 1022 if wide.dtype == torch.float64 else 126
    exponent = torch.frexp(largest.to(wide.dtype)).exponent.clamp(-most, most)
    return F.normalize(torch.ldexp(wide, -exponent.unsqueeze(1)), dim=1).to(table.dtype)


def check_pairs(users: Tensor, items: Tensor) -> None:
    """Raise a TypeError if they are no tensors, a ValueError if their shapes are not [B] with [B] or [B, K]."""
    for name, ids in (("users", users), ("items", items)):
        if not hasattr(ids, "dim"):  # rather than isinstance, which a tracer's stand-in would not pass
            raise TypeError(f"{name}: expected a tensor, got {describe(ids)}; predict takes lists and arrays")
    if users.dim() != 1:
        raise ValueError(f"users: expected shape [B], got {list(users.shape)}")
    if items.dim() not in (1, 2) or items.shape[0] != users.shape[0]:
        raise ValueError(f"items: expected shape [{users.shape[0]}] or [{users.shape[0]}, K], got {list(items.shape)}")


def _format(kind: type) -> str:
    return f"zerosum_ext.{kind.__name__}/1"
