"""The fused training step: against torch.optim on the same batches, its bits, resuming, and when fit takes it."""

from __future__ import annotations

import contextlib
import functools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import zerosum_ext as zx
from zerosum_ext import _ops
from zerosum_ext.training import fit, fused

pytestmark = pytest.mark.skipif(not _ops.has_op("mf_step", torch.device("cpu")), reason="no compiled kernels")

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
    assert history.engine == engine
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
        assert fit(model, triangle, engine="fused", **OPTIONS).engine == "fused"
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]) == (name == frozen)


@pytest.mark.threads
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
    assert fit(**arguments, **OPTIONS | {"epochs": 1}).engine == "autograd"


class Named(zx.MatrixFactorization):
    """Scores as its base class does."""


class Halved(zx.MatrixFactorization):
    def forward(self, users, items):
        return super().forward(users, items) / 2


def test_a_model_is_asked_whether_its_scores_come_from_its_tables(triangle):
    plain, named, halved, changed = (
        kind(40, 40, 8, seed=1, init_std=0.5)
        for kind in (zx.MatrixFactorization, Named, Halved, zx.MatrixFactorization)
    )
    changed.forward = lambda users, items: zx.MatrixFactorization.forward(changed, users, items) / 2
    models = {"fused": [plain, named], "autograd": [halved, changed]}
    for engine, with_it in models.items():
        for model in with_it:
            assert model.scores_from_tables() == (engine == "fused")
            assert fit(model, triangle, "zerosum", OPTIMIZERS["sgd"], **OPTIONS).engine == engine
    # The two that halve their scores train alike, and not as the class itself does.
    assert torch.equal(plain.user_embedding, named.user_embedding)
    assert torch.equal(halved.user_embedding, changed.user_embedding)
    assert not torch.allclose(halved.user_embedding, plain.user_embedding)


def test_what_fits_is_taken_unless_refused(triangle):
    assert fit(new_model(), triangle, "zerosum", OPTIMIZERS["sgd"], **OPTIONS).engine == "fused"
    assert fit(new_model(), triangle, **OPTIONS).engine == "fused"
    assert fit(new_model(), triangle, engine="autograd", **OPTIONS).engine == "autograd"
    with pytest.raises(ValueError, match="engine: expected 'auto', 'fused', 'hogwild' or 'autograd', got 'fast'"):
        fit(new_model(), triangle, engine="fast", **OPTIONS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("loss", "negatives"), [("zerosum", 1), ("bpr", 3), ("pos2neg2", 2)])
def test_many_steps_in_one_call_are_steps_one_by_one(triangle, optimizer, loss, negatives):
    """Steps of the op for many, of the ops for the parts, and one at a time: the last bit of what each leaves."""
    data = zx.Interactions.from_any(triangle)
    positives = 2 if loss == "pos2neg2" else 1
    samples = zx.TripletLoader(data, 500, seed=1, positives=positives, negatives=negatives)
    users, pos, neg = next(iter(samples))
    trained = []
    for how in ("many", "single", "parts"):
        model = new_model(item_bias=True)
        step = fused.FusedStep(model, zx.losses.get_loss(loss), OPTIMIZERS[optimizer](model.parameters()), 0.01, 0.5)
        if how == "many":
            total = step(users, pos, neg, 96)
        else:
            call = step._train if how == "single" else step._one
            groups = {id(p): group for group in step.optimizer.param_groups for p in group["params"]}
            with torch.no_grad():
                for first in range(0, 500, 96):
                    batch = [t[first : first + 96].contiguous() for t in (users, pos, neg)]
                    if how == "single":
                        call(tuple(batch), False, len(batch[0]), 96, groups)
                    else:
                        call(*batch, groups)
        trained.append(model.state_dict())
    assert math.isfinite(total)
    for other in trained[1:]:
        for name, value in trained[0].items():
            torch.testing.assert_close(value, other[name], rtol=0, atol=0)


# ---- samples that are drawn within the op


def uneven(users=70, items=60, full=2):
    """Rows of very different lengths, some empty, the first ones full: users that have no negative."""
    generator = torch.Generator().manual_seed(2)
    dense = torch.rand(users, items, generator=generator) < torch.rand(users, 1, generator=generator) ** 2
    dense[:full], dense[full : full + 3] = True, False
    owners, owned = dense.nonzero(as_tuple=True)
    return zx.Interactions.from_arrays(owners, owned, shape=(users, items))


def trained_both_ways(data, loss, number, batch_size=48, asynchronous=False, make=OPTIMIZERS["sgd"], **options):
    """The tables and the loss after an epoch and the half of another, of ids drawn before and within the op."""
    results = []
    with threads(number):
        for within in (False, True):
            model = zx.MatrixFactorization(*data.shape, 20, seed=1, init_std=0.3, item_bias=True)
            loader = zx.TripletLoader(data, batch_size, seed=3, **options)
            step = fused.FusedStep(
                model, zx.losses.get_loss(loss), make(model.parameters()), 0.01, asynchronous=asynchronous
            )
            total = torch.zeros((), dtype=torch.float64)
            whole = loader.num_samples
            for begin, end, epoch in ((0, whole, 0), (whole // 4, whole // 2, 1)):
                if within:
                    total += step.draw_and_train(loader, begin, end, epoch)
                else:
                    total += step(*loader.samples_between(begin, end, epoch), batch_size)
            results.append([*model.state_dict().values(), total])
    return results


SAMPLING = {
    "uniform": {},
    "popularity": {"strategy": "popularity", "alpha": 0.5},
    "candidates": {"strategy": "candidates", "candidates": [1, 4, 7, 30, 31, 59]},
    "three negatives": {"negatives": 3, "replacement": False},
    "in order, twice": {"shuffle": False, "draws": 2},
    "users": {"positive_strategy": "users"},
    "interactions": {"positive_strategy": "interactions"},
    "exclude": {"exclude": zx.Interactions.from_arrays([9, 9, 20], [0, 1, 2], shape=(70, 60))},
}


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("name", SAMPLING)
def test_samples_drawn_within_the_op_are_those_of_the_loader(name, number):
    loss = "sampled_softmax" if "negatives" in SAMPLING[name] else "bpr"
    before, within = trained_both_ways(uneven(), loss, number, **SAMPLING[name])
    for a, b in zip(before, within, strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 7, 300, 5000, 1 << 60])
def test_batches_of_any_size_are_drawn_within_the_op(batch_size, number):
    options = {"positives": 2, "negatives": 2, "draws": 3, "make": functools.partial(torch.optim.SGD, lr=0.01)}
    before, within = trained_both_ways(uneven(), "pos2neg2", number, batch_size, **options)
    for a, b in zip(before, within, strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_with_samples_drawn_within_the_op(optimizer):
    results = [
        trained_both_ways(uneven(200, 150), "zerosum", number, make=OPTIMIZERS[optimizer], draws=3)
        for number in (1, 2, 5)
    ]
    for other in (results[0][1], *results[1], *results[2]):
        for a, b in zip(results[0][0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_batches_that_are_too_large_for_others_to_wait():
    results = [trained_both_ways(uneven(200, 150), "zerosum", n, 100_000, draws=20) for n in (1, 2, 5)]
    for other in (results[0][1], *results[1], *results[2]):
        for a, b in zip(results[0][0], other, strict=True):
            assert torch.isfinite(a).all()
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_hogwild_of_one_thread_draws_the_same_samples():
    sgd = functools.partial(torch.optim.SGD, lr=0.05)
    before, within = trained_both_ways(uneven(200, 150), "zerosum", 1, asynchronous=True, make=sgd)
    for a, b in zip(before, within, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.threads
@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("shape", "batch_size"), [((70, 40), 16), ((60, 60), 16), ((70, 40), 4096)])
def test_samples_that_the_tables_do_not_have_are_refused(shape, batch_size, asynchronous, number):
    """Also in a thread that draws ahead: nothing hangs, and the next call works."""
    data = uneven()
    loader = zx.TripletLoader(data, batch_size, draws=5)
    with threads(number):
        for size in (shape, data.shape):
            model = zx.MatrixFactorization(*size, 20, seed=1)
            step = fused.FusedStep(
                model, zx.BPRLoss(), OPTIMIZERS["sgd"](model.parameters()), asynchronous=asynchronous
            )
            if size == data.shape:
                assert step.draw_and_train(loader, 0, loader.num_samples, 0).isfinite()
            else:
                with pytest.raises(RuntimeError, match="the samples name rows that the tables do not have"):
                    step.draw_and_train(loader, 0, loader.num_samples, 0)


# ---- what a CUDA graph would keep of a step


class Recorded(TorchDispatchMode):
    """Plays a CUDA graph: keeps the operations of a call with the very tensors they work on, and nothing of Python."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        self.calls.append((function, arguments, options or {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        for function, arguments, options, out in self.calls:
            again = function(*arguments, **options)
            for kept, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(kept, torch.Tensor) and kept is not new:
                    kept.copy_(new)


# With distinct ids the sparse gradients of all batches have one size, as on a GPU.
def distinct_batches(steps, size=12):
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        items = torch.randperm(40, generator=generator)[: 2 * size]
        yield torch.randperm(40, generator=generator)[:size], items[:size].clone(), items[size:].clone()


CAPTURABLE = {
    "adam": (functools.partial(torch.optim.Adam, lr=0.01, betas=(0.8, 0.99), eps=1e-6), True),
    "adam's own": (functools.partial(torch.optim.Adam, lr=0.01, betas=(0.8, 0.99), eps=1e-6, capturable=True), False),
    "sparse_adam": (OPTIMIZERS["sparse_adam"], True),
    "adagrad": (OPTIMIZERS["adagrad"], True),
    "sgd": (OPTIMIZERS["sgd"], False),
    "adam on the host": (OPTIMIZERS["adam"], False),
    "sparse_adam on the host": (OPTIMIZERS["sparse_adam"], False),
}


@pytest.mark.parametrize("name", CAPTURABLE)
def test_replays_are_steps(name):
    """The ops of one step, again and again, against torch.optim step by step, under a schedule."""
    make, capturable = CAPTURABLE[name]
    loss, batches = zx.ZerosumLoss(), list(distinct_batches(9))
    model, wanted = new_model(item_bias=True), new_model(item_bias=True, sparse="sparse" in name)
    optimizer, torchs = make(model.parameters()), make(wanted.parameters())
    for group in (*optimizer.param_groups, *torchs.param_groups):
        group.update(initial_lr=group["lr"], capturable=False)
    for group in optimizer.param_groups:
        group["capturable"] = name == "adam's own"
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    step = fused.FusedStep(model, loss, optimizer, 0.01, 0.5, capturable=capturable)
    schedules = [torch.optim.lr_scheduler.StepLR(o, 3, 0.5) for o in (optimizer, torchs)]
    for o in (optimizer, torchs):
        o._opt_called = True
    current = [t.clone() for t in batches[0]]
    groups = step._groups()
    graph = Recorded()
    with torch.no_grad(), graph:
        value = step._one(*current, groups)
    for number, batch in enumerate(batches):
        if number > 0:  # the step that was recorded was done
            for kept, new in zip(current, batch, strict=True):
                kept.copy_(new)
            graph.replay()
        torchs.zero_grad()
        tables = (wanted.user_embedding, wanted.item_embedding)
        expected = zx.mf_loss(*tables, *batch, loss=loss, item_bias=wanted.item_bias, sparse="sparse" in name)
        objective = expected + 0.01 * wanted.l2_penalty(batch[0], torch.stack(batch[1:], 1))
        objective.backward()
        for p in wanted.parameters():
            p.grad = p.grad.coalesce() if p.grad.is_sparse else p.grad
            fused.clip_rows(p.grad.values() if p.grad.is_sparse else p.grad, 0.5)
        torchs.step()
        if "host" not in name:
            torch.testing.assert_close(value, expected.detach().double(), rtol=1e-5, atol=1e-6)
        for schedule in schedules:
            schedule.step()
    assert float(groups[id(model.user_embedding)]["lr"]) == pytest.approx(torchs.param_groups[0]["lr"])
    pairs = list(zip(model.parameters(), wanted.parameters(), strict=True))
    far = [float((got - want).detach().abs().max()) for got, want in pairs]
    if "host" in name:
        assert min(far) > 1e-3  # what is counted on the host stands still
        return
    assert max(far) < 2e-5
    for got, want in pairs:
        state, kept = optimizer.state[got], torchs.state[want]
        for key in kept.keys() - {"momentum_buffer"}:
            assert isinstance(state[key], torch.Tensor)
            torch.testing.assert_close(state[key].double(), torch.as_tensor(kept[key]).double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "sparse_adam", "adagrad"])
def test_counting_in_a_tensor_changes_nothing(triangle, optimizer):
    samples = next(iter(zx.TripletLoader(zx.Interactions.from_any(triangle), 500, seed=1)))
    results = []
    for capturable in (False, True):
        model = new_model(item_bias=True)
        made = OPTIMIZERS[optimizer](model.parameters())
        if capturable:
            for group in made.param_groups:
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
        step = fused.FusedStep(model, zx.ZerosumLoss(), made, capturable=capturable)
        step(*samples, 96)
        results.append((model.state_dict(), made.state_dict()["state"]))
    (tables, states), (same, counted) = results
    for name, value in tables.items():
        assert torch.equal(value, same[name])
    for number, state in states.items():
        assert isinstance(counted[number]["step"], torch.Tensor)
        assert float(state["step"]) == float(counted[number]["step"]) == 6


@pytest.mark.parametrize("optimizer", ["adam", "sparse_adam", "adagrad"])
@pytest.mark.parametrize("first", [False, True])
def test_states_are_read_whoever_counted(triangle, optimizer, first):
    """A state dict of a run that counted on the host goes on in one that counts on the device, and the other way."""
    samples = next(iter(zx.TripletLoader(zx.Interactions.from_any(triangle), 500, seed=1)))
    model, whole = new_model(item_bias=True), new_model(item_bias=True)
    saved = None
    for capturable in (first, not first):
        made = OPTIMIZERS[optimizer](model.parameters())
        step = fused.FusedStep(model, zx.ZerosumLoss(), made, capturable=capturable)
        if saved is not None:
            made.load_state_dict(saved)
        step(*samples, 96)
        saved = made.state_dict()
    assert {float(state["step"]) for state in saved["state"].values()} == {12}
    step = fused.FusedStep(whole, zx.ZerosumLoss(), OPTIMIZERS[optimizer](whole.parameters()))
    for _ in range(2):
        step(*samples, 96)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


@pytest.mark.parametrize("optimizer", ["sparse_adam", "adagrad"])
def test_torch_goes_on_from_a_counter_in_a_tensor(triangle, tmp_path, optimizer):
    whole, _, _ = train(triangle, "autograd", optimizer)
    file = tmp_path / "run.pt"
    train(triangle, "fused", optimizer, checkpoint=file, epochs=1)
    checkpoint = torch.load(file)
    for state in checkpoint["optimizer"]["state"].values():
        state["step"] = torch.tensor(float(state["step"]))
    torch.save(checkpoint, file)
    for engine in ("autograd", "fused"):
        resumed, _, _ = train(triangle, engine, optimizer, resume=file)
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(value, resumed.state_dict()[name], rtol=2e-4, atol=2e-5)


# Tables that are small beside a batch, large beside it, and too large for a counter a row, in turns: what is kept from
# step to step must not matter.
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "sparse_adam"])
@pytest.mark.parametrize(("loss", "negatives"), [("zerosum", 1), ("bpr", 3), ("pos2neg2", 2)])
def test_batches_are_grouped_right_whatever_the_tables(optimizer, loss, negatives):
    generator = torch.Generator().manual_seed(7)
    positives = 2 if loss == "pos2neg2" else 1
    module = zx.losses.get_loss(loss)
    for num_users, num_items in [(20, 30), (5000, 30), (30, 7000), (900, 1100), (20, 30), (1 << 20, (1 << 20) + 3)]:
        # Few distinct rows, so that groups have several samples.
        users = torch.randint(num_users, (40,), generator=generator)[torch.randint(40, (192,), generator=generator)]
        pool = torch.randint(num_items, (60,), generator=generator)
        items = pool[torch.randint(60, (192, positives + negatives), generator=generator)]
        pos, neg = items[:, :positives].squeeze(1).contiguous(), items[:, positives:].squeeze(1).contiguous()
        results = []
        for engine in ("fused", "torch"):
            model = zx.MatrixFactorization(num_users, num_items, 4, seed=1, init_std=0.5)
            made = OPTIMIZERS[optimizer](list(model.parameters()))
            if engine == "fused":
                fused.FusedStep(model, module, made)(users, pos, neg, 64)
            else:
                for at in range(0, 192, 64):
                    batch = users[at : at + 64], pos[at : at + 64], neg[at : at + 64]
                    value = zx.mf_loss(
                        model.user_embedding, model.item_embedding, *batch, loss=module, sparse=optimizer != "adagrad"
                    )
                    made.zero_grad()
                    value.backward()
                    made.step()
            results.append(model.state_dict())
        for name, value in results[1].items():
            torch.testing.assert_close(results[0][name], value, rtol=1e-4, atol=1e-6)


# ---- Hogwild


def one_by_one(model, loss, lr, l2, samples):
    """SGD on single samples by autograd."""
    for users, positives, negatives in zip(*(t.split(1) for t in samples), strict=True):
        items = torch.cat([positives.reshape(1, -1), negatives.reshape(1, -1)], dim=1)
        scores = model(users, items)
        split = positives.reshape(1, -1).shape[1]
        value = loss(scores[:, :split].reshape(positives.shape), scores[:, split:].reshape(negatives.shape))
        value = value + l2 * model.l2_penalty(users, items)
        model.zero_grad()
        value.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= lr * p.grad


@pytest.mark.threads
@pytest.mark.parametrize("dim", [1, 16, 20, 64, 70])
@pytest.mark.parametrize(("loss", "negatives"), [("zerosum", 1), ("bpr", 3), ("pos2neg2", 2), ("sampled_softmax", 4)])
def test_hogwild_of_one_thread_is_sgd_on_single_samples(dim, loss, negatives):
    # A user and an item occur once in sixteen samples: what a thread does at a time.
    samples, per = 64, 16
    users = torch.arange(samples) % per
    positives = 2 if loss == "pos2neg2" else 1
    items = torch.arange(samples * (positives + negatives)).reshape(samples, -1) % (per * (positives + negatives))
    pos, neg = items[:, :positives], items[:, positives:]
    pos, neg = (pos if positives == 2 else pos[:, 0]), (neg if negatives > 1 else neg[:, 0])
    models = [zx.MatrixFactorization(per, per * (positives + negatives), dim, seed=1, init_std=0.5) for _ in range(2)]
    module = zx.losses.get_loss(loss)
    step = fused.FusedStep(models[0], module, torch.optim.SGD(models[0].parameters(), lr=0.1), 0.3, asynchronous=True)
    with threads(1):
        total = step(users, pos, neg, 8)
    assert total > 0
    one_by_one(models[1], module, 0.1, 0.3, (users, pos, neg))
    for name, value in models[0].state_dict().items():
        torch.testing.assert_close(value, models[1].state_dict()[name], rtol=1e-5, atol=1e-6)


@contextlib.contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.threads
@pytest.mark.parametrize("number", [1, 2, 4])
def test_hogwild_learns_what_exact_steps_learn(number):
    data = zx.datasets.synthetic_triangle(200, 200)
    options = {"epochs": 8, "seed": 1, "progress": False}
    with threads(number):
        model = zx.MatrixFactorization(200, 200, 16, seed=1, item_bias=True)
        history = fit(
            model, data, "bpr", functools.partial(torch.optim.SGD, lr=0.05), batch_size=64, engine="hogwild", **options
        )
        exact = zx.MatrixFactorization(200, 200, 16, seed=1, item_bias=True)
        expected = fit(exact, data, "bpr", functools.partial(torch.optim.SGD, lr=0.05), batch_size=1, **options)
    assert history.engine == "hogwild"
    assert expected.engine == "fused"
    assert history == pytest.approx(expected, rel=0.05)
    assert history[-1] < 0.5 * history[0]


@pytest.mark.threads
def test_hogwild_of_one_thread_can_be_repeated_and_resumed(triangle, tmp_path):
    file, results = tmp_path / "run.pt", []
    sgd = functools.partial(torch.optim.SGD, lr=0.05)
    with threads(1):
        for first in (None, None, 1):
            model = new_model()
            if first is not None:
                fit(model, triangle, "zerosum", sgd, **OPTIONS | {"epochs": 1}, engine="hogwild", checkpoint=file)
                model = new_model()
            fit(model, triangle, "zerosum", sgd, **OPTIONS, engine="hogwild", resume=file if first else None)
            results.append(model.state_dict())
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name])
    with pytest.raises(ValueError, match="written with hogwild=True, this run has False"):
        fit(new_model(), triangle, "zerosum", sgd, **OPTIONS, resume=file)


def test_hogwild_leaves_frozen_tables(triangle):
    for frozen in ("user_embedding", "item_embedding", "item_bias"):
        model = new_model(item_bias=True)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        model.get_parameter(frozen).requires_grad_(False)
        fit(model, triangle, "bpr", OPTIMIZERS["sgd"], **OPTIONS, engine="hogwild")
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]) == (name == frozen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": torch.optim.Adam}, "optimizer: expected one of torch.optim's SGD without hooks, got Adam"),
        ({"clip_row_norm": 1.0}, "clip_row_norm: expected None, got 1.0"),
        ({"model": zx.GMF(40, 40, 8)}, "model: expected a MatrixFactorization"),
    ],
)
def test_what_hogwild_does_not_do_is_named(triangle, change, message):
    arguments = {"model": new_model(), "interactions": triangle, "optimizer": OPTIMIZERS["sgd"]} | OPTIONS | change
    with pytest.raises(ValueError, match=message):
        fit(**arguments, engine="hogwild")


# ---- dense Adam, deferred

ADAMS = {
    "usual": {},
    "short memory": {"betas": (0.8, 0.99), "eps": 1e-6},
    "no momentum": {"betas": (0.0, 0.999)},
    "long momentum": {"betas": (0.99, 0.9999)},
    "large eps": {"lr": 0.01, "eps": 1e-3},
}


def skewed(steps, batch, users=300, items=500):
    """Samples of which some rows get many, most few, and the last users and items none."""
    generator = torch.Generator().manual_seed(0)
    draw = [torch.rand(steps * batch, generator=generator).pow(power) for power in (3, 2, 1)]
    return [(x * (rows - 20)).long() for x, rows in zip(draw, (users, items, items), strict=True)]


def adam_steps(samples, batch, per_call, options, dtype=torch.float32, freeze=()):
    """Trains step by step through autograd (per_call None) or so many steps a call; the model and the optimizer."""
    model = zx.MatrixFactorization(300, 500, 19, seed=0, init_std=0.3, item_bias=True).to(dtype)
    for name in freeze:
        model.get_parameter(name).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), **{"lr": 1e-3, **options})
    loss = zx.losses.get_loss("zerosum")
    step = None if per_call is None else fused.FusedStep(model, loss, optimizer)
    size = batch if per_call is None else per_call * batch
    for users, pos, neg in zip(*(t.split(size) for t in samples), strict=True):
        if step is not None:
            step(users, pos, neg, batch)
        else:
            optimizer.zero_grad()
            loss(model(users, pos), model(users, neg)).backward()
            optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("options", ADAMS.values(), ids=ADAMS)
def test_deferred_adam_is_at_least_as_exact_as_torch(options):
    """In the distance from float64; rows wait for up to a thousand steps."""
    batch, steps = 8, 1000
    samples = skewed(steps, batch)
    exact, exact_state = adam_steps(samples, batch, None, options, torch.float64)
    torchs, torchs_state = adam_steps(samples, batch, None, options)
    for per_call in (steps, 300):
        ours, ours_state = adam_steps(samples, batch, per_call, options)
        for name, value in exact.named_parameters():
            got, other = ours.get_parameter(name), torchs.get_parameter(name)

            def far(a, b=value):
                return (a.double() - b).square().mean().sqrt()

            assert far(got) < 1.1 * far(other) + 1e-9
            mine, theirs, right = (
                s.state[p] for s, p in ((ours_state, got), (torchs_state, other), (exact_state, value))
            )
            assert mine["step"] == steps
            for moment in ("exp_avg", "exp_avg_sq"):
                assert far(mine[moment], right[moment]) <= 1.5 * far(theirs[moment], right[moment]) + 1e-12


def test_deferred_adam_is_what_runs_and_sweeps_are_near():
    samples = skewed(200, 8)
    deferred, _ = adam_steps(samples, 8, 200, {})
    swept, _ = adam_steps(samples, 8, 1, {})
    start = zx.MatrixFactorization(300, 500, 19, seed=0, init_std=0.3, item_bias=True)
    for name, value in deferred.named_parameters():
        other = swept.get_parameter(name)
        assert not torch.equal(value, other)
        torch.testing.assert_close(value, other, rtol=0, atol=1e-5)
        # What no sample touches has no momentum, and stays.
        moved = (value - start.get_parameter(name)).abs().reshape(len(value), -1).amax(1)
        touched = torch.cat(samples[:1] if name == "user_embedding" else samples[1:]).unique()
        assert (moved[touched] > 1e-4).all()
        moved[touched] = 0
        assert not moved.any()


@pytest.mark.parametrize("frozen", ["user_embedding", "item_embedding", "item_bias"])
def test_deferred_adam_with_a_frozen_table(frozen):
    samples = skewed(100, 8)
    ours, _ = adam_steps(samples, 8, 50, {"lr": 0.01}, freeze=[frozen])
    torchs, _ = adam_steps(samples, 8, None, {"lr": 0.01}, freeze=[frozen])
    start = zx.MatrixFactorization(300, 500, 19, seed=0, init_std=0.3, item_bias=True)
    for name, value in ours.named_parameters():
        torch.testing.assert_close(value, torchs.get_parameter(name), rtol=0, atol=2e-5)
        assert torch.equal(value, start.get_parameter(name)) == (name == frozen)


@pytest.mark.threads
def test_deferred_adam_has_the_same_bits_for_any_number_of_threads():
    samples = skewed(12, 2500, 20_000, 30_000)  # batches that two threads share
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            model = zx.MatrixFactorization(20_000, 30_000, 17, seed=1, item_bias=True)
            step = fused.FusedStep(model, zx.losses.get_loss("bpr"), torch.optim.Adam(model.parameters()))
            step(*samples, 2500)
            results.append(model.state_dict())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name])


def test_deferred_adam_resumes_in_the_same_bits(tmp_path):
    generator = torch.Generator().manual_seed(1)
    pairs = torch.randint(300, (3000, 2), generator=generator).numpy()
    data = zx.Interactions.from_arrays(pairs[:, 0], pairs[:, 1], shape=(300, 300))
    options = {"batch_size": 32, "seed": 3, "progress": False, "engine": "fused", "checkpoint_every": 20}

    def run(**more):
        model = zx.MatrixFactorization(300, 300, 16, seed=1)
        fit(model, data, "zerosum", OPTIMIZERS["adam"], **{"epochs": 3, **options, **more})
        return model.state_dict()

    whole = run(checkpoint=tmp_path / "whole.pt")
    run(checkpoint=tmp_path / "run.pt", epochs=1)
    resumed = run(resume=tmp_path / "run.pt", checkpoint=tmp_path / "run.pt")
    for name, value in whole.items():
        assert torch.equal(value, resumed[name])


def test_deferred_adam_after_a_step_that_is_no_number():
    """What a sweep would do with a NaN: it stays in the rows that it reached, and nothing hangs."""
    samples = skewed(40, 8)
    model = zx.MatrixFactorization(300, 500, 19, seed=0, init_std=0.3)
    with torch.no_grad():
        model.user_embedding[samples[0][0]] = math.nan
    step = fused.FusedStep(model, zx.losses.get_loss("bpr"), torch.optim.Adam(model.parameters()))
    assert math.isnan(step(*samples, 8))
    assert model.user_embedding[samples[0][0]].isnan().all()
    assert not model.user_embedding[-20:].isnan().any()
