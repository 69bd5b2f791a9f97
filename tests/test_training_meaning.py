"""Training does what its arguments and its model say: epochs count on, callbacks count, forwards are used."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import zerosum_ext as zx
from zerosum_ext import _ops
from zerosum_ext.models import write_recommendations
from zerosum_ext.training import StopTraining, fit

OPTIONS = {"batch_size": 64, "seed": 3, "progress": False}


@pytest.fixture(scope="module")
def triangle():
    return zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(40, 40))


def model(**options):
    return zx.MatrixFactorization(40, 40, 8, seed=0, **options)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


# ---- T1: the counter of epochs


@pytest.mark.parametrize("engine", ["auto", "autograd"])
def test_fits_of_one_epoch_are_a_longer_fit(triangle, engine):
    whole, parts = model(), model()
    history = whole.fit(triangle, "zerosum", sgd, epochs=4, engine=engine, **OPTIONS)
    losses = [parts.fit(triangle, "zerosum", sgd, epochs=1, engine=engine, **OPTIONS)[0] for _ in range(4)]
    assert losses == list(history)
    assert torch.equal(whole.user_embedding, parts.user_embedding)
    assert whole.epochs_trained == parts.epochs_trained == 4


def test_first_epoch_overrides_the_count_and_serves_plain_modules(triangle):
    again, first = model(), model()
    again.fit(triangle, "bpr", sgd, epochs=2, **OPTIONS)
    again.load_state_dict(model().state_dict())
    assert again.fit(triangle, "bpr", sgd, epochs=2, first_epoch=0, **OPTIONS) == first.fit(
        triangle, "bpr", sgd, epochs=2, **OPTIONS
    )
    plain, other = Plain(), Plain()
    whole = fit(plain, triangle, "bpr", sgd, epochs=2, **OPTIONS)
    fit(other, triangle, "bpr", sgd, epochs=1, **OPTIONS)
    assert fit(other, triangle, "bpr", sgd, epochs=1, first_epoch=1, **OPTIONS)[0] == whole[1]
    assert not hasattr(plain, "epochs_trained")
    for wrong in (-1, 2**32):
        with pytest.raises(ValueError, match="first_epoch"):
            fit(other, triangle, "bpr", sgd, epochs=1, first_epoch=wrong, **OPTIONS)


def test_the_count_is_in_files_and_not_in_the_state(triangle, tmp_path):
    trained = model()
    trained.fit(triangle, "bpr", sgd, epochs=3, checkpoint=tmp_path / "c.pt", **OPTIONS)
    assert not any("epoch" in name for name in trained.state_dict())
    trained.save(tmp_path / "m.safetensors")
    loaded = zx.MatrixFactorization.load(tmp_path / "m.safetensors")
    assert loaded.epochs_trained == 3
    other = model()
    other.fit(triangle, "bpr", sgd, epochs=3, resume=tmp_path / "c.pt", **OPTIONS)
    assert other.epochs_trained == 3
    loaded.reset_parameters(0)
    assert loaded.epochs_trained == 0


def test_a_resumed_run_keeps_the_numbers_of_its_epochs(triangle, tmp_path):
    def interrupt(event):
        if event.epoch == 0:
            raise KeyboardInterrupt

    whole = model()
    whole.fit(triangle, "bpr", sgd, epochs=2, **OPTIONS)
    whole.fit(triangle, "bpr", sgd, epochs=3, **OPTIONS)
    parts = model()
    parts.fit(triangle, "bpr", sgd, epochs=2, **OPTIONS)
    parts.fit(triangle, "bpr", sgd, epochs=3, checkpoint=tmp_path / "c.pt", callbacks=[interrupt], **OPTIONS)
    assert parts.epochs_trained == 3
    fresh = model()  # of another process: it has not counted
    fresh.fit(triangle, "bpr", sgd, epochs=3, resume=tmp_path / "c.pt", **OPTIONS)
    assert torch.equal(fresh.user_embedding, whole.user_embedding)
    assert fresh.epochs_trained == 5
    with pytest.raises(ValueError, match="first_epoch"):
        model().fit(triangle, "bpr", sgd, epochs=3, resume=tmp_path / "c.pt", first_epoch=1, **OPTIONS)


def test_wrapped_models_count_with_their_backbone(triangle):
    from zerosum_ext.models import get_method

    backbone = model()
    parts = get_method("macr", backbone, triangle)
    fit(parts.model, triangle, parts.loss, epochs=2, **OPTIONS)
    assert backbone.epochs_trained == parts.model.epochs_trained == 2


# ---- T2, T3: NumPy's numbers, and what stops


def test_settings_may_be_numbers_of_numpy(triangle, tmp_path):
    plain = {"epochs": 2, "batch_size": 64, "seed": 3, "negatives": 2, "draws": 2, "patience": 5}
    numpy = {name: np.int64(value) for name, value in plain.items()}
    rest = {"progress": False, "validation": triangle, "l2": np.float32(0.0), "checkpoint": tmp_path / "c.pt"}
    first, second = model(), model()
    assert first.fit(triangle, "bpr", sgd, **plain, **rest) == second.fit(triangle, "bpr", sgd, **numpy, **rest)
    for wrong in (True, 2.0, "2"):
        with pytest.raises(TypeError, match="epochs"):
            first.fit(triangle, "bpr", sgd, epochs=wrong, progress=False)


@pytest.mark.parametrize("answer", [None, False, 1, 17, "text", [1], np.int64(3)])
def test_what_a_callback_returns_does_not_stop_training(triangle, answer):
    history = model().fit(triangle, "bpr", sgd, epochs=3, callbacks=[lambda event: answer], **OPTIONS)
    assert len(history) == 3
    assert history.stopped == "completed"


def _raise_stop(event):
    raise StopTraining


@pytest.mark.parametrize("callback", [lambda event: True, lambda event: np.bool_(True), _raise_stop])
def test_true_or_stop_training_stops(triangle, callback):
    heard = []
    history = model().fit(triangle, "bpr", sgd, epochs=3, callbacks=[callback, heard.append], **OPTIONS)
    assert len(history) == len(heard) == 1
    assert history.stopped == "callback"


# ---- T4: plain modules with validation


class Plain(nn.Module):
    """What is no Recommender: two tables and a forward."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.user = nn.Parameter(torch.randn(40, 8, generator=generator) * 0.01)
        self.item = nn.Parameter(torch.randn(40, 8, generator=generator) * 0.01)

    def forward(self, users, items):
        rows = self.item[items]
        return (self.user[users].reshape(len(users), *[1] * (rows.dim() - 2), 8) * rows).sum(-1)


def test_a_plain_module_is_validated_by_its_forward(triangle):
    plain = Plain()
    history = fit(plain, triangle, "bpr", epochs=2, validation=triangle, metric="ndcg@10", **OPTIONS)
    same = model()
    same.load_state_dict({"user_embedding": plain.user, "item_embedding": plain.item})
    expected = zx.evaluate(same, triangle, triangle, metrics=("ndcg",), k=(10,))["ndcg@10"]
    assert history.validation[history.best_epoch] == pytest.approx(expected, abs=1e-12)


def test_a_module_that_cannot_be_validated_is_refused_before_training(triangle):
    class PairsOnly(Plain):
        def forward(self, users, items):
            if items.dim() != 2 or items.shape[1] > 2:
                raise RuntimeError("pairs only")
            return super().forward(users, items)

    plain = PairsOnly()
    before = plain.user.clone()
    with pytest.raises(ValueError, match=r"validation: PairsOnly cannot score all items.*pairs only"):
        fit(plain, triangle, "bpr", epochs=2, validation=triangle, **OPTIONS)
    assert torch.equal(before, plain.user)


# ---- T5: what a callback changes


@pytest.mark.parametrize("engine", ["fused", "autograd", "hogwild"])
def test_a_changed_loss_counts_in_every_engine(triangle, engine):
    def run(change):
        loss, trained = zx.ZerosumLoss(w=0.9), model()

        def callback(event):
            if change and event.epoch == 0:
                loss.w = 0.2

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            trained.fit(triangle, loss, sgd, epochs=2, engine=engine, callbacks=[callback], **OPTIONS)
        finally:
            torch.set_num_threads(threads)
        return trained

    changed, unchanged = run(True), run(False)
    assert not torch.equal(changed.user_embedding, unchanged.user_embedding)
    if engine == "fused":
        loss, expected = zx.ZerosumLoss(w=0.9), model()
        expected.fit(
            triangle,
            loss,
            sgd,
            epochs=2,
            engine="autograd",
            callbacks=[lambda event: setattr(loss, "w", 0.2)],
            **OPTIONS,
        )
        assert torch.allclose(changed.user_embedding, expected.user_embedding, atol=1e-5)


def test_an_option_that_a_callback_turns_on_is_not_ignored(triangle):
    def decay(event):
        event.optimizer.param_groups[0]["weight_decay"] = 0.5

    def run(engine):
        trained = model()
        history = trained.fit(triangle, "bpr", sgd, epochs=3, engine=engine, callbacks=[decay], **OPTIONS)
        return trained, history

    automatic, history = run("auto")
    expected, _ = run("autograd")
    assert history.engine == "fused"
    assert torch.allclose(automatic.user_embedding, expected.user_embedding, atol=1e-5)
    with pytest.raises(ValueError, match=r"does not fit this run any longer.*weight_decay"):
        run("fused")


# ---- T6: replaced forwards


class Shifted(zx.MatrixFactorization):
    """Scores that are not dot products: what ranks by factors alone ranks wrongly."""

    def forward(self, users, items):
        return super().forward(users, items) + 0.1 * items.to(torch.float32)


@pytest.mark.parametrize("count", [1, 40])
def test_an_overridden_forward_ranks(triangle, count):
    shifted = Shifted(40, 40, 8, seed=0)
    users = torch.arange(count)
    scores = shifted(users, torch.arange(40).expand(count, 40))
    items, values = shifted.recommend(users, 5)
    assert torch.equal(items, scores.topk(5).indices)
    assert torch.allclose(values, scores.topk(5).values)
    matrix = shifted(torch.arange(40), torch.arange(40).expand(40, 40)).detach()
    options = {"metrics": ("ndcg", "pri"), "k": (5,), "exclude": None}
    assert zx.evaluate(shifted, triangle, triangle, **options) == zx.evaluate(matrix, triangle, triangle, **options)


def test_an_overridden_forward_ranks_under_a_method_that_wraps_the_model(triangle):
    from zerosum_ext.models import Compensated

    shifted = Shifted(40, 40, 8, seed=0)
    users = torch.arange(3)
    wrapped = Compensated(shifted, triangle.popularity, alpha=0.0)
    scores = shifted(users, torch.arange(40).expand(3, 40))
    assert torch.allclose(wrapped.score_all_items(users), scores)


def test_a_replaced_forward_is_trained(triangle):
    replaced, expected = model(), model()
    calls = []
    original = replaced.forward

    def forward(users, items):
        calls.append(1)
        return original(users, items)

    replaced.forward = forward
    history = replaced.fit(triangle, "bpr", sgd, epochs=1, **OPTIONS)
    expected.fit(triangle, "bpr", sgd, epochs=1, engine="autograd", **OPTIONS)
    assert history.engine == "autograd"
    assert calls
    assert torch.equal(replaced.user_embedding, expected.user_embedding)
    with pytest.raises(ValueError, match="scores of its class"):
        replaced.fit(triangle, "bpr", sgd, epochs=1, engine="fused", **OPTIONS)


def test_no_model_of_ours_is_ranked_by_its_forward(triangle):
    from zerosum_ext.evaluation.sources import forward_decides
    from zerosum_ext.models import MACR, Compensated, PopularityAdjusted, get_model, model_names

    ours = [get_model(name, triangle, embedding_dim=4, seed=0) for name in model_names()]
    counts = triangle.popularity
    ours += [model(), MACR(model()), Compensated(model(), counts), PopularityAdjusted(model(), counts)]
    assert [type(m).__name__ for m in ours if forward_decides(m)] == []


# ---- T7: Hogwild's definition


def _step(tables, ids, w, l2, loss=zx.ZerosumLoss):
    """SGD of one sample by autograd, of its own loss and the L2 of the rows that it gathers."""
    user, item, bias = (t.clone().requires_grad_() for t in tables)
    users, positives, negatives = ids
    rows = item[torch.cat([positives.reshape(1, -1), negatives.reshape(1, -1)], 1)][0]
    b = bias[torch.cat([positives.reshape(1, -1), negatives.reshape(1, -1)], 1)][0]
    scores = rows @ user[users[0]] + b
    n = positives.numel()
    if n == 2:
        value = zx.Pos2Neg2Loss(w=w)(scores[None, :2], scores[None, 2:])
    else:
        value = loss(w=w)(scores[:1], scores[1:] if scores.numel() == 2 else scores[None, 1:])
    objective = value + 0.5 * l2 * (user[users[0]].square().sum() + rows.square().sum())
    grads = torch.autograd.grad(objective, (user, item, bias))
    return [t.detach() - 0.3 * g for t, g in zip((user, item, bias), grads, strict=True)]


@pytest.mark.skipif(not _ops.has_op("mf_train", torch.device("cpu")), reason="needs the compiled ops")
@pytest.mark.parametrize("l2", [0.0, 0.2])
@pytest.mark.parametrize(
    ("positives", "negatives"),
    [
        ([1], [1]),
        ([1], [2]),
        ([1], [2, 2, 3]),
        ([1], [1, 2, 1]),
        ([1], [*range(20), 1, 5]),
        ([1, 1], [2, 2]),
        ([1, 2], [2, 1]),
        ([1, 2], [3, 4]),
    ],
)
def test_hogwild_is_sgd_on_each_sample_also_where_a_row_occurs_twice(positives, negatives, l2):
    generator = torch.Generator().manual_seed(5)
    tables = [torch.randn(6, 8, generator=generator), torch.randn(30, 8, generator=generator)]
    tables.append(torch.randn(30, generator=generator))
    ids = (torch.tensor([3]), torch.tensor([positives]), torch.tensor([negatives]))
    expected = _step(tables, ids, 0.7, l2)
    user, item, bias = (t.clone() for t in tables)
    loss = "pos2neg2" if len(positives) == 2 else "zerosum"
    a, b = (0.175, 0.075) if len(positives) == 2 else (0.35, 0.15)
    settings = torch.tensor([[1.0, 0.3, 0.0, 0.0, 0.0, 1.0]] * 3, dtype=torch.float64)
    kernel = torch.ops.zerosum_ext.mf_train
    kernel(
        *(user, item, bias, None, None, None, None, None, None),
        *(ids[0], ids[1].reshape(-1) if len(positives) == 1 else ids[1], ids[2]),
        *(None, settings, 0, _ops.LOSS_IDS[loss], a, b, b, l2, 0.0, 2, 1, True),
    )
    for got, want in zip((user, item, bias), expected, strict=True):
        assert torch.allclose(got, want, atol=2e-6), (got - want).abs().max()


# ---- T8


@pytest.mark.parametrize("alpha", [1000.0, -1000.0, 1e308])
def test_items_whose_weight_is_too_small_for_a_float_can_be_drawn(alpha):
    # User 0 has the item of the largest weight: the others' powers of their counts are zero in floating point.
    counts = np.array([9, 5, 3, 1])
    users = np.concatenate([np.arange(10, 10 + c) for c in counts] + [[0]])
    items = np.concatenate([np.repeat(np.arange(4), counts), [0 if alpha > 0 else 3]])
    data = zx.Interactions.from_arrays(users, items)
    drawn = zx.sample_negatives(data, [0] * 200, strategy="popularity", alpha=alpha)
    assert set(drawn.flatten().tolist()) <= {1, 2, 3} if alpha > 0 else {0, 1, 2}


# ---- D17, R11: who takes users and items


MASK = np.arange(40) % 3 == 0
WAYS = {
    "array": np.flatnonzero(MASK),
    "list": np.flatnonzero(MASK).tolist(),
    "tensor": torch.from_numpy(np.flatnonzero(MASK)),
    "uint": np.flatnonzero(MASK).astype(np.uint16),
    "reversed": np.flatnonzero(MASK)[::-1][::-1],
    "mask": MASK,
    "mask tensor": torch.from_numpy(MASK),
    "list of bools": MASK.tolist(),
}


@pytest.mark.parametrize("way", WAYS)
def test_users_may_be_numbers_or_a_mask_everywhere(triangle, way):
    users, plain, m = WAYS[way], WAYS["array"], model()
    assert zx.evaluate(m, triangle, triangle, users=users, k=(5,)) == zx.evaluate(
        m, triangle, triangle, users=plain, k=(5,)
    )
    ranking = zx.rank(m, triangle, triangle, k=5)
    assert np.array_equal(ranking.select(users).users, ranking.select(plain).users)
    assert torch.equal(m.recommend(users, 3)[0], m.recommend(plain, 3)[0])
    assert torch.equal(m.similar_items(users, 3)[0], m.similar_items(plain, 3)[0])


@pytest.mark.parametrize(
    ("users", "error"),
    [
        ([2.9], TypeError),
        (["2"], TypeError),
        ([None], TypeError),
        ([-1], ValueError),
        ([40], ValueError),
        (MASK[:-1], ValueError),
    ],
)
def test_what_names_no_user_is_refused_everywhere(triangle, users, error):
    m = model()
    ranking = zx.rank(m, triangle, triangle, k=5)
    for call in (
        lambda: zx.evaluate(m, triangle, triangle, users=users, k=(5,)),
        lambda: ranking.select(users),
        lambda: m.recommend(users, 3),
        lambda: m.similar_items(users, 3),
    ):
        with pytest.raises(error, match=r"users|items"):
            call()


def _recommended(m, folder, **chosen):
    """What a file of recommendations holds."""
    import csv

    write_recommendations(m, folder / "x.csv", 3, progress=False, **chosen)
    with (folder / "x.csv").open() as file:
        return list(csv.reader(file))


# Every place that takes users or items, by what it makes of them: numbers that can be compared.
PLACES = {
    "evaluate": lambda m, data, some, _: zx.evaluate(m, data, data, users=some, k=(5,)),
    "rank": lambda m, data, some, _: zx.rank(m, data, data, k=5, users=some).users.tolist(),
    "select": lambda m, data, some, _: zx.rank(m, data, data, k=5).select(some).users.tolist(),
    "sampled_ranks": lambda m, data, some, _: np.stack(
        zx.evaluation.sampled_ranks(m, None, data, negatives=np.tile(np.arange(4), (40, 1)), users=some)
    ).tolist(),
    "recommend": lambda m, data, some, _: m.recommend(some, 3)[0].tolist(),
    "recommend, items": lambda m, data, some, _: m.recommend([1], 3, items=some)[0].tolist(),
    "recommend, filter_items": lambda m, data, some, _: m.recommend([1], 3, filter_items=some)[0].tolist(),
    "similar_items": lambda m, data, some, _: m.similar_items(some, 3)[0].tolist(),
    "similar_items, candidates": lambda m, data, some, _: m.similar_items([1], 3, candidates=some)[0].tolist(),
    "similar_items, filter_items": lambda m, data, some, _: m.similar_items([1], 3, filter_items=some)[0].tolist(),
    "similar_users": lambda m, data, some, _: m.similar_users(some, 3)[0].tolist(),
    "predict": lambda m, data, some, _: m.predict(some, [0] * 14).tolist(),
    "predict, items": lambda m, data, some, _: m.predict([0] * 14, some).tolist(),
    "write_recommendations": lambda m, data, some, folder: _recommended(m, folder, users=some),
    "write_recommendations, items": lambda m, data, some, folder: _recommended(m, folder, items=some),
    "sample_negatives": lambda m, data, some, _: zx.sample_negatives(data, some, seed=1).tolist(),
}


# Where users and items come in pairs, a mask says nothing.
OF_PAIRS = ("predict", "predict, items", "sample_negatives")


@pytest.mark.parametrize("place", PLACES)
def test_all_places_agree_on_what_users_and_items_are(triangle, tmp_path, place):
    call, m = PLACES[place], model()
    expected = call(m, triangle, WAYS["array"], tmp_path)
    ways = {**WAYS, "uint64": WAYS["array"].astype(np.uint64), "int8": WAYS["array"].astype(np.int8)}
    pandas = pytest.importorskip("pandas")
    ways.update(series=pandas.Series(WAYS["array"], index=range(14, 0, -1)), series_mask=pandas.Series(MASK))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for way, some in ways.items():
            if place in OF_PAIRS and np.asarray(some).dtype == bool:
                with pytest.raises(TypeError, match="expected integer"):
                    call(m, triangle, some, tmp_path)
            else:
                assert call(m, triangle, some, tmp_path) == expected, way
    for wrong, error in (
        ([2.9], TypeError),
        (["2"], TypeError),
        ([None], TypeError),
        (pandas.Series(["2"]), TypeError),
        (np.array(["2020-01-01"], "M8[D]"), TypeError),
        ([-1], ValueError),
        ([40], ValueError),
        (MASK[:-1], TypeError if place in OF_PAIRS else ValueError),
        (np.array([2**64 - 1], np.uint64), ValueError),
    ):
        with pytest.raises(error, match=r"users|items|candidates"):
            call(m, triangle, wrong, tmp_path)


def test_text_ids_are_pointed_to_encode_users():
    with pytest.raises(TypeError, match="encode_users"):
        model().recommend(["alice"], 3)


@pytest.mark.parametrize("k", [0, 2**20 + 1, 10**9])
def test_k_has_a_range(triangle, k):
    for call in (lambda: model().recommend([1], k), lambda: model().similar_items([1], k)):
        with pytest.raises(ValueError, match=r"k: expected an integer in \[1, 1048576\]"):
            call()


@pytest.mark.parametrize("labels", [[float("nan")] + [1.0] * 39, [None] + ["a"] * 39, [float("nan")] + ["a"] * 39])
def test_a_user_without_a_group_is_named(triangle, labels):
    ranking = zx.rank(model(), triangle, triangle, k=5)
    with pytest.raises(ValueError, match="groups: user 0 has none"):
        zx.evaluation.by_group(ranking, labels, triangle)


def test_methods_of_a_run_may_have_numbers_of_numpy():
    from dataclasses import asdict

    from zerosum_ext.experiments.runs import Method

    json.dumps(asdict(Method(embedding_dim=np.int64(8), epochs=np.int32(2), lr=np.float32(0.5), l2=np.float64(0.0))))
