"""Exports agree with the model that they are of."""

import numpy as np
import pytest
import torch

import zerosum_ext as zx
from zerosum_ext.data import datasets

NAMES = ["mf", "gmf", "lightgcn", "ngcf", "mlp", "neumf"]
DOTS = NAMES[:4]


def make(name):
    train = zx.Interactions.from_scipy(datasets.synthetic_triangle(40, 60))
    options = {"init_std": 0.5, "seed": 0, "embedding_dim": 8}
    model = zx.get_model(name, train, **options, **({"item_bias": True} if name == "mf" else {}))
    if name == "mf":
        torch.nn.init.normal_(model.item_bias, generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("name", DOTS)
def test_arrays(name):
    model = make(name)
    users, items = zx.export.arrays(model)
    scores = model.eval().score_all_items(torch.arange(40)).detach().numpy()
    np.testing.assert_allclose(users @ items.T, scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DOTS)
@pytest.mark.parametrize("library", ["faiss", "usearch"])
def test_an_index_finds_what_recommend_finds(name, library):
    pytest.importorskip(library)
    model = make(name)
    want, scores = model.recommend(range(40), 5)
    users = zx.export.arrays(model)[0]
    if library == "faiss":
        values, found = zx.export.index(model, "faiss").search(users, 5)
    else:
        result = zx.export.index(model, "usearch").search(users, 5)
        found, values = result.keys.astype(np.int64), 1 - result.distances
    np.testing.assert_allclose(values, scores.numpy(), rtol=1e-3, atol=1e-4)
    assert (found == want.numpy()).mean() > 0.99


@pytest.mark.parametrize("name", ["mf", "gmf", "lightgcn"])
def test_folded_users_search_an_index(name):
    faiss = pytest.importorskip("faiss")
    assert faiss
    model = make(name)
    rows = model.fold_in([[1, 2, 3], [7]])
    want = model.recommend_for(rows, 5)
    values, found = zx.export.index(model, "faiss").search(zx.export.query(model, rows), 5)
    np.testing.assert_allclose(values, want[1].numpy(), rtol=1e-3, atol=1e-5)
    assert (found == want[0].numpy()).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_torch_program_scores_as_the_model(name):
    model = make(name).eval()
    users, items = torch.tensor([0, 7, 3, 29, 1]), torch.tensor([24, 0, 4, 7, 2])
    torch.testing.assert_close(zx.export.torch_program(model).module()(users, items), model.predict(users, items))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_onnx_scores_as_the_model_for_any_batch(name, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = make(name)
    zx.export.onnx(model, tmp_path / "model.onnx")
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [one.name for one in session.get_inputs()] == ["users", "items"]
    for size in (1, 2, 7):
        users, items = np.arange(size) * 5, np.arange(size)[::-1].copy()
        (scores,) = session.run(["scores"], {"users": users, "items": items})
        np.testing.assert_allclose(scores, model.predict(users, items).numpy(), rtol=1e-4, atol=1e-5)


def test_what_is_refused():
    with pytest.raises(ValueError, match="expected one whose scores are dot products, got NeuMF"):
        zx.export.arrays(make("neumf"))
    with pytest.raises(ValueError, match="library: expected one of 'faiss', 'usearch', got 'annoy'"):
        zx.export.index(make("mf"), "annoy")
