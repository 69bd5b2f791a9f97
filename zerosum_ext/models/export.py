"""A trained model for other programs: arrays, an index of nearest neighbours, torch.export, ONNX."""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from zerosum_ext._checks import require_choice
from zerosum_ext._files import replacing
from zerosum_ext._inference import inference
from zerosum_ext.models.base import DotProductRecommender, Recommender

__all__ = ["IndexLibrary", "arrays", "index", "onnx", "query", "torch_program"]

IndexLibrary: TypeAlias = Literal["faiss", "usearch"]


def arrays(model: Recommender) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors of users [U, D] and of items [I, D], float32, whose dot products are the scores.

    The bias of items, where a model has one, is the last dimension; it is 1 for users.

    Raises:
        ValueError: scores of this model are no dot products.

    Examples:
        >>> import zerosum_ext as zx
        >>> users, items = zx.export.arrays(zx.MatrixFactorization(3, 5, 4, item_bias=True))
        >>> users.shape, items.shape
        ((3, 5), (5, 5))
    """
    if not isinstance(model, DotProductRecommender):
        raise ValueError(f"model: expected one whose scores are dot products, got {type(model).__name__}")
    user, item, bias = model.factors()
    if bias is not None:
        user = torch.cat([user, user.new_ones(len(user), 1)], 1)
        item = torch.cat([item, bias.unsqueeze(1)], 1)
    return user.float().cpu().numpy(), item.float().cpu().numpy()


def index(model: Recommender, library: IndexLibrary = "usearch", **options: Any) -> Any:
    """Return an index of the items that finds those of highest score for a user's vector.

    Search it with rows of ``arrays(model)[0]``, or with ``query`` of rows that :meth:`fold_in` returns.

    Args:
        model: a model whose scores are dot products.
        library: "faiss" (exact, IndexFlatIP, unless ``factory`` says otherwise) or "usearch" (a graph, approximate).
        options: of "faiss": ``factory``, a string of faiss.index_factory such as "HNSW32,Flat". Of "usearch": keyword
            arguments of ``usearch.index.Index`` such as ``connectivity`` and ``dtype``.

    Returns:
        A faiss.Index, or a usearch.index.Index whose keys are item numbers; usearch's distance is 1 - score.

    Raises:
        ImportError: the library is not installed.
        ValueError: the library is unknown, or the scores are no dot products.
    """
    require_choice("library", library, ("faiss", "usearch"))
    items = np.ascontiguousarray(arrays(model)[1])
    if library == "faiss":
        faiss = _library("faiss", "faiss-cpu")
        factory = options.pop("factory", "Flat")
        if options:
            raise ValueError(f"options: expected factory alone with faiss, got {', '.join(options)}")
        made = faiss.index_factory(items.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if not made.is_trained:
            made.train(items)
        made.add(items)
        return made
    usearch = _library("usearch.index", "usearch")
    made = usearch.Index(ndim=items.shape[1], metric="ip", **{"dtype": "f32", **options})
    made.add(np.arange(len(items)), items)
    return made


def query(model: DotProductRecommender, rows: Tensor) -> np.ndarray:
    """Return rows of users, such as :meth:`fold_in` gives, as vectors to search an :func:`index` with: [n, D]."""
    item, bias = model._frozen_items()
    own = model.factors()[1]
    # One table in memory needs no comparison, which takes tens of milliseconds for a million items.
    same = item.shape == own.shape and (item.data_ptr() == own.data_ptr() or torch.equal(item, own))
    if not same:  # GMF's weights belong to the users in an index
        rows = rows * getattr(model, "weight")  # noqa: B009  (mypy)
    if bias is not None:
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
    return rows.detach().float().cpu().numpy()


class _Propagated(nn.Module):
    """A model of dot products as its final vectors."""

    def __init__(self, model: DotProductRecommender) -> None:
        super().__init__()
        user, item, bias = model.factors()
        self.user, self.item = nn.Parameter(user.clone(), False), nn.Parameter(item.clone(), False)
        self.bias = None if bias is None else nn.Parameter(bias.clone(), False)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        scores = (self.user[users] * self.item[items]).sum(-1)
        return scores if self.bias is None else scores + self.bias[items]


def torch_program(model: Recommender) -> Any:
    """Return the model as a torch.export.ExportedProgram of (users [B], items [B]) to scores [B], for any B >= 2.

    It is in evaluation mode. ``torch.export.save`` writes it, and C++ or another process runs it without this library
    where no op of it is in the graph: all but LightGCN, NGCF and the wrappers around them.
    """
    # Two tensors: one object that is given twice would be one input.
    users, items = (torch.zeros(2, dtype=torch.int64, device=model.device) for _ in range(2))
    batch = torch.export.Dim("batch", min=2, max=1 << 20)
    with inference(model):
        return torch.export.export(model, (users, items), dynamic_shapes=({0: batch}, {0: batch}), strict=False)


def onnx(model: Recommender, path: str | os.PathLike[str], *, opset: int = 18) -> None:
    """Write the model as ONNX: inputs ``users`` and ``items``, int64 [batch], output ``scores`` [batch].

    A model of dot products, those on a graph among them, is written as its final vectors; a neural one as its layers.

    Args:
        model: any but the wrappers.
        path: the file; it is complete or not there.
        opset: the version of ONNX's operators.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        OSError: the file cannot be written.
    """
    _library("onnx", "onnx")
    _library("onnxscript", "onnxscript")
    with inference(model):
        module = _Propagated(model) if isinstance(model, DotProductRecommender) else model
        users, items = (torch.zeros(2, dtype=torch.int64, device=model.device) for _ in range(2))
        batch = torch.export.Dim("batch", min=1, max=1 << 20)
        program = torch.onnx.export(
            module.eval(),
            (users, items),
            input_names=["users", "items"],
            output_names=["scores"],
            dynamic_shapes=({0: batch}, {0: batch}),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    with replacing(path) as part:
        program.save(part, external_data=False)


def _library(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is not installed: pip install {package}") from error
