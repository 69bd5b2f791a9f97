"""The fused training step: against torch.optim on the same batches, its bits, resuming, and when fit takes it."""

from __future__ import annotations

import functools

import pytest
import torch

import zerosum_ext as zx
from zerosum_ext import _ops
from zerosum_ext.training import fit

pytestmark = pytest.mark.skipif(not _ops.has_op("mf_update", torch.device("cpu")), reason="no compiled kernels")

OPTIONS = {"epochs": 3, "batch_size": 64, "seed": 3, "draws": 2, "progress": False}
OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.5),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=0.05, lr_decay=0.01, initial_accumulator_value=0.1, eps=1e-8),
    "adam": functools.partial(torch.optim.Adam, lr=0.01, betas=(0.8, 0.99), eps=1e-6),
    "sparse_adam": functools.partial(torch.optim.SparseAdam, lr=0.01, betas=(0.8, 0.99), eps=1e-6),
}


@pytest.fixture(scope="module")
def triangle():
    return zx.datasets.synthetic_triangle(40, 40)


def new_model(**options):
    return zx.MatrixFactorization(40, 40, 20, **{"seed": 1, "init_std": 0.3, **options})


def train(data, engine, optimizer="adam", loss="zerosum", bias=True, **options):
    model, kept = new_model(item_bias=bias), []
    options = OPTIONS | {"callbacks": [lambda end: kept.append(end.optimizer)]} | options
    history = fit(model, data, loss, OPTIMIZERS[optimizer], engine=engine, **options)
    assert history.path == engine
    return model, history, kept[-1] if kept else None


def check(data, **options):
    results = [train(data, engine, **options) for engine in ("fused", "autograd")]
    (fused, history, optimizer), (model, expected, torchs) = results
    assert history == pytest.approx(expected, rel=1e-5)
    moved = new_model(item_bias=True)
    for name, value in model.named_parameters():
        got = fused.get_parameter(name)
        torch.testing.assert_close(got, value, rtol=2e-4, atol=2e-5)
        assert not torch.equal(got, moved.get_parameter(name))
        state, wanted = optimizer.state[got], torchs.state[value]
        for key in wanted.keys() - {"momentum_buffer"}:
            assert type(state[key]) is type(wanted[key])
            torch.testing.assert_close(state[key], wanted[key], rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("loss", "negatives"), [("zerosum", 1), ("bpr", 3), ("pos2neg2", 2)])
def test_trains_as_torch_optim_does(triangle, optimizer, loss, negatives):
    check(triangle, optimizer=optimizer, loss=loss, negatives=negatives)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_with_l2_and_clipped_rows(triangle, optimizer):
    check(triangle, optimizer=optimizer, l2=0.1, clip_row_norm=0.01)


@pytest.mark.parametrize(
    "loss",
    [zx.ZerosumLoss(reduction="sum"), zx.SampledSoftmaxLoss(), zx.IPWLoss(torch.arange(1.0, 41.0))],
    ids=lambda loss: type(loss).__name__,
)
def test_other_losses_and_reductions(triangle, loss):
    check(triangle, loss=loss, l2=0.01, negatives=2)


@pytest.mark.parametrize("every", [None, 3])
def test_with_a_regularizer(triangle, every):
    check(triangle, loss="bpr", regularizer=zx.PearsonRegularizer(triangle, weight=5.0, every=every))


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.filterwarnings("error")
def test_a_schedule_changes_the_rate(triangle, interval):
    schedule = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.9)
    check(triangle, scheduler=schedule, scheduler_interval=interval)


def test_a_frozen_table_stays(triangle):
    for frozen in ("user_embedding", "item_embedding", "item_bias"):
        model = new_model(item_bias=True)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        model.get_parameter(frozen).requires_grad_(False)
        assert fit(model, triangle, engine="fused", **OPTIONS).path == "fused"
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]) == (name == frozen)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_same_bits_for_any_number_of_threads(optimizer):
    # Large enough that tables and batches are shared among threads.
    data = zx.datasets.synthetic_triangle(2000, 90)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            model = zx.MatrixFactorization(2000, 90, 64, seed=1, item_bias=True)
            options = {"batch_size": 8192, "epochs": 1, "engine": "fused", "progress": False}
            fit(model, data, "zerosum", OPTIMIZERS[optimizer], **options)
            results.append(model.state_dict())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_run_ends_in_the_same_bits(triangle, tmp_path, optimizer):
    whole, _, _ = train(triangle, "fused", optimizer)
    file = tmp_path / "run.pt"
    train(triangle, "fused", optimizer, checkpoint=file, epochs=1)
    resumed, history, _ = train(triangle, "fused", optimizer, resume=file)
    assert len(history) == 3
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("engines", [("fused", "autograd"), ("autograd", "fused")])
def test_either_engine_goes_on_from_the_other(triangle, tmp_path, optimizer, engines):
    whole, _, _ = train(triangle, "autograd", optimizer)
    file = tmp_path / "run.pt"
    train(triangle, engines[0], optimizer, checkpoint=file, epochs=1)
    resumed, _, _ = train(triangle, engines[1], optimizer, resume=file)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, resumed.state_dict()[name], rtol=2e-4, atol=2e-5)


class Doubled(zx.BPRLoss):
    def forward(self, pos, neg, sample_weight=None):
        return 2 * super().forward(pos, neg, sample_weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": zx.GMF(40, 40, 8)}, "model: expected a MatrixFactorization"),
        ({"model": new_model(dtype=torch.float64)}, "model: expected contiguous float32 parameters"),
        ({"loss": Doubled()}, "loss: expected a compiled loss of zerosum_ext, got Doubled"),
        ({"optimizer": torch.optim.RMSprop}, "optimizer: expected one of .*, got RMSprop"),
        ({"optimizer": torch.optim.AdamW}, "optimizer: expected one of .*, got AdamW"),
        ({"optimizer": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)}, "expected no momentum, got 0.9"),
        ({"optimizer": functools.partial(torch.optim.Adam, amsgrad=True)}, "expected no amsgrad, got True"),
        ({"optimizer": functools.partial(torch.optim.Adam, weight_decay=0.1)}, "expected no weight_decay, got 0.1"),
    ],
)
def test_what_does_not_fit_is_named_and_goes_through_autograd(triangle, change, message):
    arguments = {"model": new_model(), "interactions": triangle, "loss": "zerosum"} | change
    with pytest.raises(ValueError, match=message):
        fit(**arguments, **OPTIONS, engine="fused")
    assert fit(**arguments, **OPTIONS | {"epochs": 1}).path == "autograd"


def test_what_fits_is_taken_unless_refused(triangle):
    assert fit(new_model(), triangle, "zerosum", OPTIMIZERS["sgd"], **OPTIONS).path == "fused"
    assert fit(new_model(), triangle, **OPTIONS).path == "fused"
    assert fit(new_model(), triangle, engine="autograd", **OPTIONS).path == "autograd"
    with pytest.raises(ValueError, match="engine: expected 'auto', 'fused' or 'autograd', got 'fast'"):
        fit(new_model(), triangle, engine="fast", **OPTIONS)
