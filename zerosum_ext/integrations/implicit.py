"""Matrix factorization with our losses behind the interface of implicit's models.

    model = Factorization(factors=64, loss="zerosum", iterations=30)
    model.fit(user_items)
    ids, scores = model.recommend(userid, user_items[userid], N=10)

Programs that call implicit's models take this class instead, implicit's own evaluation among them. implicit need not be
installed.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeAlias

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerosum_ext._checks import describe, require_choice, require_finite_number, require_positive_int
from zerosum_ext._files import check_npz, replacing
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.integrations.packages import needed
from zerosum_ext.losses import get_loss, loss_names
from zerosum_ext.models import MatrixFactorization, export, lists, usual_l2

__all__ = ["Factorization"]

#: The result of every query: ids, int32 as implicit has them, and scores, [N] of one and [n, N] of many.
Found: TypeAlias = "tuple[np.ndarray, np.ndarray]"
_TABLES = ("user_embedding", "item_embedding", "item_bias")


class Factorization:
    """Train and ask a :class:`~zerosum_ext.MatrixFactorization` as implicit's models are trained and asked.

    Args:
        factors: the width of the tables.
        loss: a name of :func:`zerosum_ext.get_loss`.
        loss_options: its options, such as ``{"w": 0.9}``.
        learning_rate: that of SGD for one sample, as in implicit.
        regularization: the weight of the squared norms of the rows of a sample.
        iterations: the number of epochs.
        negatives: the number of negatives of each positive.
        item_bias: whether items have a bias.
        weights: whether the values of the matrix weigh the samples. Otherwise each entry counts alike, as in implicit's
            BPR.
        num_threads: the number of threads of training; 0 is torch's setting. Runs with one thread can be repeated.
        random_state: a seed, a RandomState, a Generator, or None for a seed of chance.

    Attributes:
        model: the trained model, None before :meth:`fit`.
    """

    # One keyword a setting, as implicit's models have them.
    def __init__(
        self,
        factors: int = 64,
        loss: str = "zerosum",
        learning_rate: float = 0.05,
        regularization: float = 0.002,
        iterations: int = 50,
        *,
        loss_options: dict[str, Any] | None = None,
        negatives: int = 1,
        item_bias: bool = False,
        weights: bool = False,
        num_threads: int = 0,
        random_state: Any = None,
    ) -> None:
        self.factors = require_positive_int("factors", factors)
        self.loss = require_choice("loss", loss, loss_names())
        self.loss_options = dict(loss_options or {})
        self.learning_rate = require_finite_number("learning_rate", learning_rate, minimum=0)
        self.regularization = require_finite_number("regularization", regularization, minimum=0)
        self.iterations = require_positive_int("iterations", iterations)
        self.negatives = require_positive_int("negatives", negatives)
        self.item_bias, self.weights = bool(item_bias), bool(weights)
        self.num_threads = require_positive_int("num_threads", num_threads, minimum=0)
        self.random_state = _seed(random_state)
        self.model: MatrixFactorization | None = None

    # --- training ----------------------------------------------------------------------------------------------

    def fit(self, user_items: Any, show_progress: bool = True, callback: Callable[..., Any] | None = None) -> None:
        """Train on a CSR matrix [num_users, num_items].

        Args:
            user_items: its entries above zero are what users like.
            show_progress: whether to show a bar.
            callback: is called after each epoch with its number, its seconds and its loss.

        Raises:
            ValueError: the matrix has no entry.
        """
        if not (sp.issparse(user_items) and user_items.format == "csr"):
            warnings.warn(
                f"user_items: expected a CSR matrix, got {describe(user_items)}; it is converted",
                _parameter_warning(),
                stacklevel=2,
            )
        train = Interactions.from_scipy(sp.csr_matrix(user_items), weights=self.weights)
        seed = np.random.default_rng().integers(2**31) if self.random_state is None else self.random_state
        model = MatrixFactorization(
            train.num_users, train.num_items, self.factors, item_bias=self.item_bias, init_std=0.1, seed=int(seed)
        )
        with _threads(self.num_threads):
            model.fit(
                train,
                self._loss(),
                "sgd",
                lr=self.learning_rate,
                engine="hogwild",
                l2=self.regularization,
                epochs=self.iterations,
                negatives=self.negatives,
                seed=int(seed),
                sample_weight="weights" if self.weights else None,
                progress=bool(show_progress),
                callbacks=() if callback is None else [lambda event: _tell(callback, event)],
            )
        self.model = model

    @property
    def user_factors(self) -> np.ndarray | None:
        """The users' vectors, float32 [num_users, D]: those of items, times them, are the scores."""
        return None if self.model is None else export.arrays(self.model)[0]

    @property
    def item_factors(self) -> np.ndarray | None:
        """The items' vectors, float32 [num_items, D]; a bias is their last column."""
        return None if self.model is None else export.arrays(self.model)[1]

    def _loss(self) -> str | nn.Module:
        return get_loss(self.loss, **self.loss_options) if self.loss_options else self.loss

    def _trained(self) -> MatrixFactorization:
        if self.model is None:
            raise ValueError("the model is not trained: call fit before")
        return self.model

    # --- queries -----------------------------------------------------------------------------------------------

    # The arguments of implicit's models.
    def recommend(
        self,
        userid: Any,
        user_items: Any = None,
        N: int = 10,
        filter_already_liked_items: bool = True,
        filter_items: Any = None,
        recalculate_user: bool = False,
        items: Any = None,
    ) -> Found:
        """Return the N best items of a user, or of each of some users, and their scores.

        Args:
            userid: one number, or numbers [n].
            user_items: a CSR with a row for each of the users.
            N: the number of items; fewer if there are not as many.
            filter_already_liked_items: whether the items of ``user_items`` come last.
            filter_items: ids of items that come last too.
            recalculate_user: take the vectors of the rows of ``user_items``, by
                :meth:`~zerosum_ext.models.DotProductRecommender.fold_in`, not those of training.
            items: the only candidates.

        Raises:
            IndexError: an item of ``items`` is not in the model.
            ValueError: ``user_items`` is no CSR with a row for each user; items and filter_items are both given.
        """
        model, one = self._trained(), np.isscalar(userid)
        users = np.atleast_1d(userid)
        if filter_already_liked_items or recalculate_user:
            if not (sp.issparse(user_items) and user_items.format == "csr"):
                raise ValueError(f"user_items: expected a CSR matrix, got {describe(user_items)}")
            if user_items.shape[0] != len(users):
                raise ValueError(f"user_items: expected a row for each of {len(users)} users, got {user_items.shape}")
        candidates = _candidates("items", items, filter_items, model.num_items)
        if recalculate_user:
            l2 = max(self.regularization, usual_l2(self.loss))
            rows = model.fold_in(user_items, loss=self._loss(), l2=l2)
        else:
            rows = model.factors()[0][torch.as_tensor(users)]
        width = min(N, model.num_items if candidates is None else len(candidates))
        found, scores = model.recommend_for(
            rows,
            width,
            user_items if filter_already_liked_items else None,
            items=candidates,
            filter_items=_some(filter_items),
        )
        ids, values = found.numpy().astype(np.int32), scores.numpy().copy()
        _put_last(ids, values, np.arange(model.num_items) if candidates is None else candidates)
        return (ids[0], values[0]) if one else (ids, values)

    def similar_items(
        self,
        itemid: Any,
        N: int = 10,
        recalculate_item: bool = False,
        item_users: Any = None,
        filter_items: Any = None,
        items: Any = None,
    ) -> Found:
        """Return the items whose vectors have the largest cosine with an item's, the item itself first, and cosines.

        Raises:
            NotImplementedError: ``recalculate_item`` is true.
            IndexError: an item of ``items`` is not in the model.
        """
        if recalculate_item:
            raise NotImplementedError("recalculate_item is not supported with this model")
        return _similar(self._trained().factors()[1], itemid, N, "items", items, filter_items)

    def similar_users(
        self,
        userid: Any,
        N: int = 10,
        filter_users: Any = None,
        users: Any = None,
    ) -> Found:
        """Return the users whose vectors have the largest cosine with a user's, the user first, and cosines."""
        return _similar(self._trained().factors()[0], userid, N, "users", users, filter_users)

    # --- files -------------------------------------------------------------------------------------------------

    def save(self, file: str | IO[bytes]) -> None:
        """Write settings and tables to a file of NumPy's format .npz, complete or not at all, or to an open file."""
        settings = {key: value for key, value in vars(self).items() if key != "model"}
        state = {} if self.model is None else self.model.state_dict()
        arrays: dict[str, Any] = {name: table.numpy() for name, table in state.items()}
        arrays["settings"] = json.dumps(settings)
        if not isinstance(file, str):
            np.savez(file, **arrays)
            return
        with replacing(_with_suffix(file)) as part, open(part, "wb") as opened:
            np.savez(opened, **arrays)

    @classmethod
    def load(cls, fileobj_or_path: str | IO[bytes]) -> Factorization:
        """Return a model that :meth:`save` wrote.

        Raises:
            ValueError: the file is damaged, or another one; the message names it. OSError: it cannot be read.
        """
        given = fileobj_or_path
        if not isinstance(given, str):
            return cls._read(given, "the file")
        with open(_with_suffix(given), "rb") as file:
            return cls._read(file, repr(_with_suffix(given)))

    @classmethod
    def _read(cls, file: IO[bytes], name: str) -> Factorization:
        begin = file.tell()
        try:
            check_npz(file, stored=True)
            file.seek(begin)
            with np.load(file, allow_pickle=False) as data:
                made = cls(**json.loads(str(data["settings"])))
                tables = {table: torch.from_numpy(data[table]) for table in _TABLES if table in data}
            if tables:
                users, items = tables["user_embedding"], tables["item_embedding"]
                if {users.shape[1:], items.shape[1:]} != {(made.factors,)}:
                    raise ValueError(f"expected {made.factors} factors, got {[*users.shape]} and {[*items.shape]}")
                made.model = MatrixFactorization(len(users), len(items), made.factors, item_bias=made.item_bias, seed=0)
                made.model.load_state_dict(tables)
        except OSError:
            raise
        except Exception as error:  # whatever zipfile, json, numpy and torch make of other bytes
            said = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
            raise ValueError(f"{name} is no model that Factorization.save wrote, or damaged: {said}") from None
        return made


def _with_suffix(path: str) -> str:
    return path if path.endswith(".npz") else f"{path}.npz"


def _tell(callback: Callable[..., Any], event: Any) -> None:
    # What implicit's callbacks return is not looked at; ours may stop training.
    callback(event.epoch, event.history.seconds[-1], event.history[-1])


def _seed(random_state: Any) -> int | None:
    if random_state is None or isinstance(random_state, (int, np.integer)):
        return None if random_state is None else int(random_state)
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31))
    raise TypeError(f"random_state: expected a seed, a RandomState, a Generator or None, got {describe(random_state)}")


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Compute with this number of threads, or as it is for 0."""
    before = torch.get_num_threads()
    try:
        if number:
            torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)


def _parameter_warning() -> type[Warning]:
    """Return the category that implicit warns with of matrices of other formats, where it is installed."""
    try:
        category: type[Warning] = needed("implicit.utils", "implicit", __name__).ParameterWarning
    except ImportError:
        return UserWarning
    return category


def _some(values: Any) -> Any:
    return None if values is None or len(values) == 0 else np.asarray(values)


def _candidates(name: str, values: Any, filtered: Any, size: int) -> np.ndarray | None:
    """Return candidates as ascending ids without repetition."""
    if values is None:
        return None
    if _some(filtered) is not None:
        raise ValueError(f"{name}: expected either this or what is filtered out, got both")
    ids = np.unique(np.asarray(values))
    if len(ids) and (ids[0] < 0 or ids[-1] >= size):
        raise IndexError(f"{name}: expected ids from 0 to {size - 1}, got {ids[0]} to {ids[-1]}")
    return ids


def _put_last(ids: np.ndarray, scores: np.ndarray, candidates: np.ndarray) -> None:
    """Fill places that are left over with the candidates that were filtered out, in place, as implicit does."""
    for row in np.flatnonzero((ids < 0).any(1)):
        empty = np.flatnonzero(ids[row] < 0)
        ids[row, empty] = np.setdiff1d(candidates, ids[row])[: len(empty)]
        scores[row, empty] = -np.finfo(np.float32).max


def _similar(table: Tensor, given: Any, count: int, name: str, allowed: Any, filtered: Any) -> Found:
    """Return the rows of largest cosine with each given row, and the cosines."""
    ids = np.atleast_1d(given)
    if len(ids) and (ids.min() < 0 or ids.max() >= len(table)):
        raise IndexError(f"expected ids from 0 to {len(table) - 1}, got {ids.min()} to {ids.max()}")
    candidates = _candidates(name, allowed, filtered, len(table))
    if _some(filtered) is not None:
        candidates = np.setdiff1d(np.arange(len(table)), filtered)
    chosen = None if candidates is None else torch.from_numpy(candidates)
    unit = F.normalize(table, dim=1)
    width = min(count, len(table) if chosen is None else len(chosen))
    found, scores = lists.padded((unit, unit, None), torch.as_tensor(ids), None, chosen, width)
    result = found.numpy().astype(np.int32), scores.numpy()
    return (result[0][0], result[1][0]) if np.isscalar(given) else result
