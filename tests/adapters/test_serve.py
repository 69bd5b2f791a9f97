"""The example of a service: lists, sessions and neighbours over HTTP, as the model says them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import zerosum_ext as zx

pytest.importorskip("fastapi")
pytest.importorskip("usearch")
pytest.importorskip("httpx")
from fastapi.testclient import TestClient

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve"


def trained(bias=False, ids=True):
    users, items = zx.datasets.synthetic_triangle(40, 60).nonzero()
    names = [f"u{u}" for u in users], [f"i{i}" for i in items]
    data = zx.Interactions.from_arrays(*(names if ids else (users, items)), ids=ids)
    model = zx.MatrixFactorization.from_interactions(data, embedding_dim=8, item_bias=bias, init_std=0.3, seed=0)
    model.fit(data, "bpr", lr=0.02, epochs=5, progress=False)
    if ids:
        model.item_names = [f"The {name}" for name in data.item_ids]
    return data, model


@pytest.fixture
def service(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(EXAMPLE))
    sys.modules.pop("app", None)
    app = importlib.import_module("app")

    def start(model, **settings):
        model.save(tmp_path / "model.safetensors", settings={"loss": "bpr", **settings})
        monkeypatch.setenv("MODEL", str(tmp_path / "model.safetensors"))
        return TestClient(app.app)

    yield start
    torch.set_num_threads(threads)


@pytest.mark.parametrize("bias", [False, True])
def test_a_known_user_gets_the_lists_of_recommend(service, bias):
    data, model = trained(bias)
    user = int(data.encode_users(["u3"])[0])
    own = data.decode_items(data.to_scipy()[user].indices).tolist()
    with service(model) as client:
        assert client.get("/health").json() == {"model": "MatrixFactorization", "items": 60, "loss": "bpr"}
        found = client.get("/users/u3", params={"k": 5, "exclude": own}).json()["items"]
        want, scores = model.recommend(user, 5, data)
        assert [one["item"] for one in found] == data.decode_items(want[0]).tolist()
        np.testing.assert_allclose([one["score"] for one in found], scores[0], rtol=2e-2, atol=2e-3)
        assert found[0]["name"] == f"The {found[0]['item']}"
        assert client.get("/users/nobody").status_code == 404
        assert client.get("/users/u3", params={"k": 0}).status_code == 422


def test_a_session_is_folded_in(service):
    data, model = trained()
    items = ["i3", "i7", "i8", "unheard of"]
    with service(model) as client:
        answer = client.post("/sessions", json={"items": items, "k": 6}).json()
        numbers = sorted(data.encode_items(items[:3]).tolist())
        want, _ = model.recommend_for(model.fold_in([numbers]), 6, [numbers])
        assert answer["known"] == 3
        assert [one["item"] for one in answer["items"]] == data.decode_items(want[0]).tolist()
        assert client.post("/sessions", json={"items": ["unheard of"]}).status_code == 422
        assert client.post("/sessions", json={"items": []}).status_code == 422
        assert client.post("/sessions", json={"items": ["i3"] * 101}).status_code == 422


def test_neighbours_and_numbers_for_ids(service):
    _, model = trained(ids=False)
    with service(model) as client:
        found = client.get("/items/4/similar", params={"k": 4}).json()["items"]
        want, scores = model.similar_items([4], 4, metric="dot")
        assert [one["item"] for one in found] == want[0].tolist()
        np.testing.assert_allclose([one["score"] for one in found], scores[0], rtol=2e-2, atol=2e-3)
        assert client.get("/items/60/similar").status_code == 404
        for wrong in ("-1", "40", "x", "²"):
            assert client.get(f"/users/{wrong}").status_code == 404


def test_an_index_is_written_once_and_is_of_this_model(service, tmp_path, monkeypatch):
    _, model = trained(ids=False)
    monkeypatch.setenv("INDEX", str(tmp_path / "model.usearch"))
    with service(model) as client:
        first = client.get("/users/3").json()
    written = (tmp_path / "model.usearch").stat()
    with service(model) as client:
        assert client.get("/users/3").json() == first
    assert (tmp_path / "model.usearch").stat().st_mtime_ns == written.st_mtime_ns
    with (
        pytest.raises(ValueError, match="expected an index of this model's 50 items"),
        service(zx.MatrixFactorization(40, 50, 8, seed=0)),
    ):
        pass


def test_a_loss_that_sessions_cannot_take_shows_at_the_start(service):
    with pytest.raises(ValueError, match="without kinks"), service(trained()[1], loss="hinge"):
        pass
