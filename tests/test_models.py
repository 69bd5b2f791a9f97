"""MatrixFactorization and the training loop: what they learn, keep, resume and refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import zerosum_ext as zx
from zerosum_ext._checks import require_device


@pytest.fixture(scope="module")
def triangle():
    return zx.datasets.synthetic_triangle(40, 40)


def trained(triangle, loss="zerosum", epochs=3, **options):
    torch.manual_seed(0)
    model = zx.MatrixFactorization(40, 40, 8)
    history = model.fit(triangle, loss=loss, epochs=epochs, batch_size=64, seed=0, progress=False, **options)
    return model, history


@pytest.mark.parametrize("loss", ["bpr", "zerosum", "pos2neg2", zx.ZerosumLoss(w=0.9)])
def test_the_loss_falls(triangle, loss):
    _, history = trained(triangle, loss, epochs=8)
    assert len(history) == 8
    assert history[-1] < history[0]


def test_the_same_seed_gives_the_same_model(triangle):
    first, _ = trained(triangle)
    second, _ = trained(triangle)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_scores_have_the_shape_of_items():
    model = zx.MatrixFactorization(5, 7, 4)
    users, items = torch.tensor([0, 4]), torch.tensor([[1, 2, 6], [0, 0, 3]])
    scores = model(users, items)
    assert scores.shape == (2, 3)
    torch.testing.assert_close(scores[:, 1], model(users, items[:, 1]))
    torch.testing.assert_close(model.score_all_items(users).gather(1, items), scores)


@pytest.mark.parametrize("ids", [[0, 4], np.array([0, 4])], ids=["list", "array"])
def test_ids_that_are_no_tensors(ids):
    for model in (zx.MatrixFactorization(5, 7, 4), zx.GMF(5, 7, 4)):
        with pytest.raises(TypeError, match=r"users: expected a tensor, got .*; predict takes lists and arrays"):
            model(ids, torch.tensor([0, 4]))
        with pytest.raises(TypeError, match="items: expected a tensor, got"):
            model(torch.tensor([0, 4]), ids)
        assert model.predict(ids, ids).shape == (2,)


def test_a_function_as_the_loss(triangle):
    model = zx.MatrixFactorization(*triangle.shape, 4)
    with pytest.raises(TypeError, match=r"loss: expected a name or an nn\.Module, got function .*; CustomLoss makes"):
        model.fit(triangle, zx.bpr_loss)
    with pytest.raises(TypeError, match=r"loss: expected a name or an nn\.Module, got int 3$"):
        model.fit(triangle, 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_devices_that_are_not_there(triangle, tmp_path):
    model = zx.MatrixFactorization(*triangle.shape, 4)
    model.save(tmp_path / "model.safetensors")
    for call in (
        lambda device: model.fit(triangle, epochs=0, device=device),
        lambda device: zx.Recommender.load(tmp_path / "model.safetensors", device),
        lambda device: zx.runs.Method(device=device),
    ):
        with pytest.raises(ValueError, match=r"^device: 'cuda:1' was asked for, but this torch sees no GPU"):
            call("cuda:1")
        with pytest.raises(ValueError, match=r"^device: expected 'cpu', 'cuda' or 'cuda:N', got 'gpu'"):
            call("gpu")


def test_a_gpu_beyond_the_last(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert require_device("device", "cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="'cuda:2' was asked for, but the last GPU that this torch sees is 1"):
        require_device("device", "cuda:2")


def test_recommend_leaves_out_and_pads(triangle):
    model, _ = trained(triangle)
    items, scores = model.recommend(torch.arange(40), 30, exclude=zx.Interactions.from_scipy(triangle))
    dense = torch.from_numpy(triangle.toarray()) != 0
    for user in range(40):
        found = items[user][items[user] >= 0]
        assert len(found) == min(30, int((~dense[user]).sum()))
        assert not dense[user][found].any()
        assert bool(torch.isneginf(scores[user][items[user] < 0]).all())
        assert bool((scores[user].diff()[: len(found) - 1] <= 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("num_items", "dim", "k"), [(50, 5, 60), (3000, 32, 20), (5000, 16, 1)])
@pytest.mark.parametrize("item_bias", [False, True])
def test_many_users_get_the_items_that_few_get(dtype, num_items, dim, k, item_bias):
    """A kernel lists the best items of many users, torch.topk those of a few."""
    model = zx.MatrixFactorization(90, num_items, dim, item_bias=item_bias, init_std=1.0, seed=0, dtype=dtype)
    if item_bias:
        torch.nn.init.normal_(model.item_bias, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(90, num_items, generator=generator) < 0.05
    mask[3] = True
    seen = zx.Interactions.from_arrays(*mask.nonzero().T.numpy(), shape=(90, num_items))
    users = torch.randint(90, (200,), generator=generator)
    for exclude in (None, seen):
        items, scores = model.recommend(users, k, exclude=exclude)
        few = [model.recommend(part, k, exclude=exclude) for part in users.split(10)]
        expected_items, expected = (torch.cat(x) for x in zip(*few, strict=True))
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5 if dtype != torch.bfloat16 else 0)
        assert bool((scores[:, 1:] <= scores[:, :-1]).all())
        assert torch.equal(items < 0, expected_items < 0)
        # Of scores that are equal to the last bits either item may come first.
        other = (items != expected_items).nonzero(as_tuple=True)
        all_scores = model.score_all_items(users).double()
        found, wanted = (all_scores[other[0]].gather(1, x[other][:, None]) for x in (items, expected_items))
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-5)


def test_recommending_by_a_model_that_diverged():
    model = zx.MatrixFactorization(100, 500, 16, init_std=1.0, seed=0)
    with torch.no_grad():
        model.user_embedding[70] = torch.nan
    for users in (torch.arange(100), torch.tensor([70])):
        with pytest.raises(ValueError, match="diverged"):
            model.recommend(users)
    assert model.recommend(torch.arange(70))[0].min() >= 0


def test_save_and_load(tmp_path, triangle):
    model, _ = trained(triangle)
    model.save(tmp_path / "model.safetensors")
    loaded = zx.MatrixFactorization.load(tmp_path / "model.safetensors")
    users = torch.arange(40)
    assert torch.equal(loaded.score_all_items(users), model.score_all_items(users))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zx.MatrixFactorization(0, 3, 2), "num_users"),
        (lambda: zx.MatrixFactorization(3, 3, 2).fit(zx.datasets.synthetic_triangle(40, 40)), "interactions"),
        (lambda: zx.MatrixFactorization(40, 40, 2).fit(zx.datasets.synthetic_triangle(40, 40), loss="no"), "loss"),
        (lambda: zx.MatrixFactorization(40, 40, 2).fit(zx.datasets.synthetic_triangle(40, 40), epochs=-1), "epochs"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- similar_items: vectors without a direction, of any size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e30, 1e-39, 3e4, 1e-7])
def test_the_cosine_does_not_depend_on_a_vectors_length(dtype, size):
    if not torch.tensor(size, dtype=dtype).isfinite() or torch.tensor(size, dtype=dtype) == 0:
        pytest.skip("the dtype has no such number")
    model = zx.MatrixFactorization(5, 12, 4, seed=0, init_std=1.0).to(dtype)
    plain, cosines = model.similar_items(range(12), 11)
    with torch.no_grad():
        model.item_embedding[3] = (model.item_embedding[3].double().sign() * size).to(dtype)
    rows = model.item_embedding.detach().double()
    expected = torch.nn.functional.normalize(rows, dim=1, eps=1e-300)
    expected = (expected @ expected.T).fill_diagonal_(float("-inf"))
    items, scores = model.similar_items(range(12), 11)
    tolerance = 4 * torch.finfo(dtype).eps + (1e-2 if size == 1e-7 and dtype == torch.float16 else 0)
    torch.testing.assert_close(scores.double(), expected.gather(1, items), atol=tolerance, rtol=0)
    assert torch.equal(items.sort(1).values, plain.sort(1).values)
    assert cosines.dtype == scores.dtype == dtype


def test_an_item_without_a_direction_is_nobodys_neighbour():
    model = zx.MatrixFactorization(5, 12, 4, seed=0, init_std=1.0)
    with torch.no_grad():
        model.item_embedding[[2, 7]] = 0
        model.item_embedding[3] = -model.item_embedding[0]
    items, scores = model.similar_items(range(12), 11)
    assert not torch.isin(items, torch.tensor([2, 7])).any()
    assert (items[[2, 7]] == -1).all()
    assert torch.isneginf(scores[items == -1]).all()
    assert items[0, 8] == 3  # the opposite direction still comes before nothing
    assert (items[0, 9:] == -1).all()
    dots, _ = model.similar_items(range(12), 11, metric="dot")
    assert sorted(dots[0].tolist()) == [i for i in range(12) if i != 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_a_vector_that_is_not_finite_is_named(value, metric):
    model = zx.MatrixFactorization(5, 12, 4, seed=0)
    with torch.no_grad():
        model.item_embedding[7, 1] = model.item_embedding[9, 0] = value
    with pytest.raises(ValueError, match="similar_items: the vector of item 7 is not finite"):
        model.similar_items([0], 3, metric=metric)


# ---- recommend(exclude=scipy) looks at the rows of its users


@pytest.mark.parametrize("users", [[5], [9, 5, 5], list(range(40)), [True, False] * 20, []])
def test_a_scipy_matrix_excludes_what_interactions_do(triangle, users):
    model = zx.MatrixFactorization(40, 40, 4, seed=0)
    matrix = triangle.copy().astype("float32")
    matrix.data[::7] = 0  # stored zeros are no interactions
    unsorted = matrix.copy()
    for row in range(40):
        begin, end = unsorted.indptr[row : row + 2]
        for part in (unsorted.indices, unsorted.data):
            part[begin:end] = part[begin:end][::-1].copy()
    expected = model.recommend(users, 40, exclude=zx.Interactions.from_scipy(matrix))
    for given in (matrix, unsorted, matrix.tocoo(), matrix.tocsc()):
        found = model.recommend(users, 40, exclude=given)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_only_the_rows_of_the_users_are_looked_at(triangle):
    model = zx.MatrixFactorization(40, 40, 4, seed=0)
    matrix = triangle.copy().astype("float32")
    matrix.data[matrix.indptr[30]] = float("nan")
    model.recommend([5], 3, exclude=matrix)  # user 30 is not converted
    with pytest.raises(ValueError, match=r"user 30.*NaN"):
        model.recommend([5, 30], 3, exclude=matrix)


@pytest.mark.parametrize("place", [5, 6])
@pytest.mark.parametrize("value", [-1, 10**6])
def test_a_row_pointer_out_of_range_is_refused(triangle, place, value):
    model = zx.MatrixFactorization(40, 40, 4, seed=0)
    matrix = triangle.copy()
    matrix.indptr[place] = value
    with pytest.raises(ValueError, match="indptr is not a valid CSR row pointer"):
        model.recommend([5], 3, exclude=matrix)


# ---- scores that are NaN


@pytest.mark.parametrize("row", [0, 1, 99])
@pytest.mark.parametrize("count", [1, 100])
def test_recommend_notices_nan_in_any_row(row, count):
    model = zx.MatrixFactorization(100, 30, 4, seed=0)
    with torch.no_grad():
        model.user_embedding[row, 1] = float("nan")
    users = torch.arange(100) if count > 1 else torch.tensor([row])
    with pytest.raises(ValueError, match="scores contain NaN"):
        model.recommend(users, 3)
    model.recommend([2, 3], 3)
