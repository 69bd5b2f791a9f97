"""Recommendations over HTTP from a saved model: FastAPI, an index by usearch, and fold-in of anonymous sessions.

    pip install -r examples/serve/requirements.txt
    MODEL=model.safetensors INDEX=model.usearch uvicorn --app-dir examples/serve app:app --workers 2

    GET  /users/ann?k=10               lists of a user whom the model knows
    POST /sessions  {"items": [..]}    lists for somebody of whom only some items are known
    GET  /items/42/similar
    GET  /health

The index is built and written where INDEX names no file yet, which takes minutes for a million items. Afterwards it is
mapped into memory, once for all workers. What a user already has is not in the model: send it along (``exclude``), or
keep it beside the service.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
import torch
from fastapi import FastAPI, HTTPException, Query, Request
from pydantic import BaseModel, Field

import zerosum_ext as zx
from zerosum_ext.models import usual_l2

MOST = 100  # items of a list, and of a session
SEARCH = 64  # candidates that a search keeps: more find more of the best items, and take longer


class Catalogue:
    """A model with an index of its items.

    Args:
        path: the model's file.
        loss: the loss that the model was trained with, for sessions. None takes it from the file.
        index: the file of the index, which is made if it is not there. None builds it in memory.
    """

    def __init__(self, path: str, loss: str | None = None, index: str | None = None) -> None:
        self.model = zx.Recommender.load(path)
        self.users, self.items = zx.export.arrays(self.model)
        self.has_bias = self.model.factors()[2] is not None
        self.index = self.stored(index)
        settings: Any = self.model.information.get("settings", {})
        self.loss = loss or settings.get("loss", "bpr")
        self.l2 = usual_l2(self.loss)
        self.session([0])  # a loss that sessions cannot take shows at once

    def stored(self, path: str | None) -> Any:
        """Return the index of a file, or a new one that is written there."""
        if path is not None and os.path.exists(path):
            from usearch.index import Index

            made = Index.restore(path, view=True)
            if made is None or (len(made), made.ndim) != self.items.shape:
                raise ValueError(f"{path}: expected an index of this model's {len(self.items)} items; remove it")
            made.expansion_search = SEARCH
            return made
        options = {"dtype": "f16", "connectivity": 16, "expansion_add": 64, "expansion_search": SEARCH}
        made = zx.export.index(self.model, "usearch", **options)
        if path is not None:
            made.save(path)
        return made

    def number_of_user(self, name: str) -> int:
        vocabulary = self.model.vocabulary
        if vocabulary is None:
            number = int(name) if name.isascii() and name.isdecimal() else -1
            if not 0 <= number < self.model.num_users:
                raise KeyError(f"there is no user {name}")
            return number
        try:
            return int(vocabulary.encode_users([name])[0])
        except (ValueError, TypeError):
            raise KeyError(f"there is no user {name}") from None

    def numbers_of_items(self, names: Sequence[str]) -> list[int]:
        """Return the numbers of the items that are known; others are left out."""
        vocabulary = self.model.vocabulary
        given = np.array(list(names), dtype=np.str_)
        if not len(given):
            return []
        if vocabulary is None:
            numbers = [int(name) if name.isascii() and name.isdecimal() else -1 for name in given.tolist()]
            return [number for number in numbers if 0 <= number < self.model.num_items]
        found = vocabulary.find("item", given)
        return [int(number) for number in found[found >= 0]]

    def best(self, vector: np.ndarray, k: int, without: Sequence[int]) -> list[dict[str, Any]]:
        """Return the best items for a user's vector by the index, without those that the user has."""
        found = self.index.search(vector, k + len(without))
        kept = [(int(key), 1 - float(distance)) for key, distance in zip(found.keys, found.distances, strict=True)]
        seen = set(without)
        return [self.item(number, score) for number, score in kept if number not in seen][:k]

    def item(self, number: int, score: float) -> dict[str, Any]:
        vocabulary, names = self.model.vocabulary, self.model.item_names
        ids = None if vocabulary is None else vocabulary.item_ids
        entry: dict[str, Any] = {"item": number if ids is None else ids[number].item(), "score": score}
        if names is not None:
            entry["name"] = str(names[number])
        return entry

    def session(self, items: Sequence[int]) -> np.ndarray:
        """Return the vector of somebody who has these items."""
        rows = self.model.fold_in([list(items)], loss=self.loss, l2=self.l2)
        return zx.export.query(self.model, rows)[0]


class Session(BaseModel):
    """What is known of somebody who has no account."""

    items: Annotated[list[str | int], Field(min_length=1, max_length=MOST)]
    k: Annotated[int, Field(ge=1, le=MOST)] = 10


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    torch.set_num_threads(1)  # a worker process for each core serves more than threads of one do
    app.state.catalogue = Catalogue(os.environ["MODEL"], os.environ.get("LOSS"), os.environ.get("INDEX"))
    yield


app = FastAPI(title="zerosum_ext", lifespan=lifespan)


@app.get("/health")
async def health(request: Request) -> dict[str, Any]:
    catalogue: Catalogue = request.app.state.catalogue
    return {"model": type(catalogue.model).__name__, "items": catalogue.model.num_items, "loss": catalogue.loss}


@app.get("/users/{user}")
async def recommend(
    request: Request,
    user: str,
    k: Annotated[int, Query(ge=1, le=MOST)] = 10,
    exclude: Annotated[list[str] | None, Query(max_length=MOST)] = None,
) -> dict[str, Any]:
    catalogue: Catalogue = request.app.state.catalogue
    try:
        number = catalogue.number_of_user(user)
    except KeyError as error:
        raise HTTPException(404, error.args[0]) from None
    known = catalogue.numbers_of_items(exclude or [])
    return {"user": user, "items": catalogue.best(catalogue.users[number], k, known)}


@app.post("/sessions")
async def of_session(request: Request, session: Session) -> dict[str, Any]:
    catalogue: Catalogue = request.app.state.catalogue
    items = sorted(set(catalogue.numbers_of_items([str(item) for item in session.items])))
    if not items:
        raise HTTPException(422, "the model knows none of these items")
    return {"known": len(items), "items": catalogue.best(catalogue.session(items), session.k, items)}


@app.get("/items/{item}/similar")
async def similar(request: Request, item: str, k: Annotated[int, Query(ge=1, le=MOST)] = 10) -> dict[str, Any]:
    catalogue: Catalogue = request.app.state.catalogue
    numbers = catalogue.numbers_of_items([item])
    if not numbers:
        raise HTTPException(404, f"there is no item {item}")
    vector = catalogue.items[numbers[0]].copy()
    if catalogue.has_bias:
        vector[-1] = 0  # of the other items, not of this one
    return {"item": item, "items": catalogue.best(vector, k, numbers)}
