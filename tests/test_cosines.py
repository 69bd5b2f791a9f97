"""Training on cosines: ``MatrixFactorization(normalize=True)`` in the compiled step, against autograd in float64."""

from __future__ import annotations

import functools

import pytest
import torch

import zerosum_ext as zx
from zerosum_ext import _ops
from zerosum_ext.training import fit, fused

pytestmark = pytest.mark.skipif(not _ops.has_op("mf_train", torch.device("cpu")), reason="no compiled kernels")

USERS, ITEMS = 23, 37
LOSSES = {
    "zerosum": (zx.ZerosumLoss(), 1),
    "bpr": (zx.BPRLoss(), 3),
    "pos2neg2": (zx.Pos2Neg2Loss(), 2),
    "softmax": (zx.SampledSoftmaxLoss(temperature=0.2), 20),
    "ccl": (zx.losses.get_loss("ccl", margin=0.1, weight=2.0), 20),
    "bsl": (zx.losses.get_loss("bsl", positive_temperature=0.2, negative_temperature=0.3), 5),
    "hardest": (zx.losses.get_loss("hardest"), 5),
    "ipw": (zx.IPWLoss(torch.arange(1.0, ITEMS + 1)), 1),
}
OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.5),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=0.05),
    "adam": functools.partial(torch.optim.Adam, lr=0.01, eps=1e-6),
    "sparse_adam": functools.partial(torch.optim.SparseAdam, lr=0.01, eps=1e-6),
}


def new_model(dim=20, **options):
    return zx.MatrixFactorization(USERS, ITEMS, dim, seed=1, init_std=0.4, normalize=True, **options)


def some_samples(number, loss, negatives, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(rows, width):
        return torch.randint(rows, (number, width), generator=generator).squeeze(1)

    return draw(USERS, 1), draw(ITEMS, 2 if loss == "pos2neg2" else 1), draw(ITEMS, negatives)


def loss_in_float64(model, module, samples, l2):
    users, positives, negatives = samples
    items = torch.cat([t.reshape(len(users), -1) for t in (positives, negatives)], 1)
    scores = model(users, items)
    split = 2 if positives.dim() == 2 else 1
    pos, neg = scores[:, :split].reshape(positives.shape), scores[:, split:].reshape(negatives.shape)
    constants = {"pos_items": positives, "neg_items": negatives} if module.needs_items else {}
    return module(pos, neg, **constants) + l2 * model.l2_penalty(users, items)


def trained_in_float64(model, module, optimizer, samples, size, l2):
    double = zx.MatrixFactorization(
        USERS, ITEMS, model.embedding_dim, normalize=True, item_bias=model.item_bias is not None, dtype=torch.float64
    )
    double.load_state_dict(model.state_dict())
    double.use_sparse_gradients(optimizer == "sparse_adam")
    made = OPTIMIZERS[optimizer](double.parameters())
    for batch in zip(*(t.split(size) for t in samples), strict=True):
        made.zero_grad()
        loss_in_float64(double, module, batch, 0.0 if optimizer == "sparse_adam" else l2).backward()
        made.step()
    return double


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_steps_are_those_of_autograd_in_float64(loss, optimizer):
    module, negatives = LOSSES[loss]
    bias = optimizer in ("sgd", "adam")
    l2 = 0.0 if optimizer == "sparse_adam" else 0.1
    model, samples = new_model(item_bias=bias), some_samples(90, loss, negatives)
    expected = trained_in_float64(model, module, optimizer, samples, 30, l2)
    fused.FusedStep(model, module, OPTIMIZERS[optimizer](model.parameters()), l2)(*samples, 30)
    for name, value in expected.state_dict().items():
        moved = (value - new_model(item_bias=bias).state_dict()[name]).abs().max()
        assert moved > 1e-4
        share = 5e-3 if "adam" in optimizer else 2e-4  # it divides small gradients by their own size
        torch.testing.assert_close(model.state_dict()[name].double(), value, rtol=1e-4, atol=share * float(moved))


@pytest.mark.parametrize("frozen", ["user_embedding", "item_embedding", "both", "item_bias"])
def test_frozen_tables_and_clipped_rows(frozen):
    train = zx.datasets.synthetic_triangle(USERS, ITEMS)
    results = []
    for engine in ("fused", "autograd"):
        model = new_model(item_bias=True)
        for name in ("user_embedding", "item_embedding") if frozen == "both" else (frozen,):
            model.get_parameter(name).requires_grad_(False)
        options = {"batch_size": 64, "epochs": 2, "progress": False, "negatives": 5}
        softmax = zx.SampledSoftmaxLoss(temperature=0.2)
        history = fit(model, train, softmax, "sgd", lr=0.5, engine=engine, clip_row_norm=0.01, **options)
        results.append((model.state_dict(), list(history)))
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)
    for name, value in results[1][0].items():
        torch.testing.assert_close(results[0][0][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ["fused", "hogwild"])
def test_rows_without_a_direction(engine):
    """F.normalize divides rows shorter than 1e-12 by 1e-12: no nan, and no pull from their own direction."""
    model = new_model()
    with torch.no_grad():
        model.user_embedding[0], model.item_embedding[1], model.item_embedding[2] = 0.0, 0.0, 1e-16
    samples = torch.tensor([0, 3]), torch.tensor([1, 2]), torch.tensor([5, 6])
    module = zx.BPRLoss(reduction="sum")
    double = zx.MatrixFactorization(USERS, ITEMS, 20, normalize=True, dtype=torch.float64)
    double.load_state_dict(model.state_dict())
    loss_in_float64(double, module, samples, 0.0).backward()
    sgd = torch.optim.SGD(model.parameters(), lr=1e-13)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused.FusedStep(model, module, sgd, asynchronous=engine == "hogwild")(*samples)
    for name, parameter in double.named_parameters():
        after = before[name].double() - 1e-13 * parameter.grad
        torch.testing.assert_close(model.state_dict()[name].double(), after, rtol=1e-5, atol=1e-9)
    assert torch.isfinite(model.user_embedding).all()
    assert not torch.equal(model.item_embedding, before["item_embedding"])


@pytest.mark.threads
@pytest.mark.parametrize(("loss", "negatives", "batch"), [("ccl", 8, 4096), ("softmax", 8, 256), ("zerosum", 1, 8192)])
def test_the_same_bits_for_any_number_of_threads(loss, negatives, batch):
    data = zx.datasets.synthetic_triangle(1500, 90)
    before, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            model = zx.MatrixFactorization(1500, 90, 64, seed=1, normalize=True, item_bias=True)
            options = {"batch_size": batch, "negatives": negatives, "epochs": 1, "progress": False}
            history = fit(model, data, LOSSES[loss][0], "adam", lr=0.01, **options)
            assert history.engine == "fused"
            results.append(model.state_dict())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(value, other[name]) for name, value in results[0].items())


@pytest.mark.threads
@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("dim", [3, 20, 64])
@pytest.mark.parametrize("loss", ["zerosum", "pos2neg2", "softmax", "ccl"])
def test_hogwild_of_one_thread_is_sgd_on_single_samples(dim, loss, repeated):
    # A user and an item occur once in sixteen samples: what a thread does at a time. But a sample may name one twice.
    module, per = LOSSES[loss][0], 16
    negatives, positives = {"zerosum": 1, "pos2neg2": 2, "softmax": 9, "ccl": 4}[loss], 2 if loss == "pos2neg2" else 1
    width = positives + negatives
    items = torch.arange(2 * per * width).reshape(-1, width) % (per * width)
    if repeated:
        items[:, -1] = items[:, 0]
    users = torch.arange(2 * per) % per
    samples = users, items[:, :positives].squeeze(1), items[:, positives:].squeeze(1)
    model = zx.MatrixFactorization(per, per * width, dim, seed=1, init_std=0.5, normalize=True, item_bias=True)
    double = zx.MatrixFactorization(per, per * width, dim, normalize=True, item_bias=True, dtype=torch.float64)
    double.load_state_dict(model.state_dict())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        total = float(fused.FusedStep(model, module, sgd, 0.3, asynchronous=True)(*samples, 8))
    finally:
        torch.set_num_threads(before)
    expected = 0.0
    for sample in zip(*(t.split(1) for t in samples), strict=True):
        double.zero_grad()
        value = loss_in_float64(double, module, sample, 0.3)
        items = torch.cat([t.reshape(1, -1) for t in sample[1:]], 1)
        expected += float((value - 0.3 * double.l2_penalty(sample[0], items)).detach())
        value.backward()
        with torch.no_grad():
            for parameter in double.parameters():
                parameter -= 0.1 * parameter.grad
    assert total == pytest.approx(expected, rel=1e-4)
    for name, value in double.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name].double(), value, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("dim", "widest"), [(20, None), (256, None), (260, 256), (64, None), (63, None), (66, 64)])
def test_a_gpu_trains_rows_that_its_registers_hold(monkeypatch, dim, widest):
    monkeypatch.setattr(fused._ops, "has_op", lambda op, device: True)
    model = new_model(dim)
    assert fused.fused_obstacle(model, zx.BPRLoss(), torch.optim.SGD(model.parameters(), lr=0.1)) is None
    meta = torch.nn.Module.to(model, "meta")
    obstacle = fused.fused_obstacle(meta, zx.BPRLoss(), torch.optim.SGD(meta.parameters(), lr=0.1))
    said = f"model: expected rows of at most {widest} numbers for cosines on a GPU, got {dim}"
    assert obstacle == (None if widest is None else said)


def test_a_softmax_of_cosines_is_learnt_by_every_engine(tmp_path):
    train = zx.datasets.synthetic_triangle(60, 60)
    softmax = zx.SampledSoftmaxLoss(temperature=0.2)
    for engine, optimizer, lr in (("fused", "adam", 0.02), ("hogwild", "sgd", 0.002), ("autograd", "adam", 0.02)):
        model = zx.MatrixFactorization(60, 60, 16, seed=1, normalize=True)
        options = {"batch_size": 64, "epochs": 6, "progress": False, "negatives": 8}
        history = fit(model, train, softmax, optimizer, lr=lr, engine=engine, **options)
        assert history.engine == engine
        assert history[-1] < 0.7 * history[0]
        scores = model(torch.arange(60), torch.arange(60).repeat(60, 1))
        assert scores.abs().max() <= 1 + 1e-6
        model.save(tmp_path / "m.safetensors")
        again = zx.MatrixFactorization.load(tmp_path / "m.safetensors")
        assert torch.equal(again(torch.arange(60), torch.arange(60)), model(torch.arange(60), torch.arange(60)))
