"""MatrixFactorization and the training loop: what they learn, keep, resume and refuse."""

from __future__ import annotations

import pytest
import torch

import zerosum_ext as zx


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
