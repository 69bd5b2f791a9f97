"""The training loop: interrupted, resumed, stopped early, with schedules, frozen tables and sparse gradients."""

from __future__ import annotations

import contextlib
import resource

import numpy as np
import pytest
import torch
from torch import nn

import zerosum_ext as zx
from zerosum_ext import _ops

OPTIONS = {"epochs": 4, "batch_size": 64, "seed": 3, "draws": 2, "progress": False}


@pytest.fixture(scope="module")
def triangle():
    return zx.datasets.synthetic_triangle(40, 40)


def new_model(**options):
    return zx.MatrixFactorization(40, 40, 8, seed=1, **options)


@contextlib.contextmanager
def files_of_at_most(size):
    """Stands for a full disk: what is written to a file beyond so many bytes fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class InterruptedLoss(nn.Module):
    """Zerosum, and a KeyboardInterrupt at the call number ``at``."""

    num_positives = 1
    reduction = "mean"

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.at, self.calls = at, 0
        self.loss = zx.ZerosumLoss(w=0.8)

    def forward(self, pos, neg):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.loss(pos, neg)


def test_an_interrupted_op_leaves_the_last_checkpoint(triangle, tmp_path, monkeypatch):
    # A second Ctrl-C ends steps of which nobody knows how many were done.
    class Counted:
        calls = 0

    def train(*arguments):
        Counted.calls += 1
        result = whole_op(*arguments)
        if Counted.calls == 3:
            raise KeyboardInterrupt
        return result

    whole_op = _ops.mf_train
    expected = new_model()
    history = expected.fit(triangle, "bpr", engine="fused", **OPTIONS)
    monkeypatch.setattr(_ops, "mf_train", train)
    cut, resumed = new_model(), new_model()
    saved = []
    stopped = cut.fit(
        triangle,
        "bpr",
        engine="fused",
        checkpoint=tmp_path / "run.pt",
        callbacks=[lambda event: saved.append(0)],
        **OPTIONS,
    )
    assert stopped.stopped == "interrupted"
    assert len(saved) == 2
    monkeypatch.undo()
    assert torch.load(tmp_path / "run.pt")["epoch"] == 2
    again = resumed.fit(triangle, "bpr", engine="fused", resume=tmp_path / "run.pt", **OPTIONS)
    assert list(again) == list(history)
    for one, other in zip(expected.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("at", [1, 5, 30])
def test_an_interrupted_run_resumes_to_the_same_bits(triangle, tmp_path, at, interval):
    options = dict(
        OPTIONS,
        scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
        scheduler_interval=interval,
    )
    whole, broken, resumed = new_model(), new_model(), new_model()
    expected = whole.fit(triangle, InterruptedLoss(), **options)
    cut = broken.fit(triangle, InterruptedLoss(at), checkpoint=tmp_path / "run.pt", **options)
    assert cut.stopped == "interrupted"
    assert list(cut) == list(expected)[: len(cut)]
    assert not torch.equal(broken.user_embedding, whole.user_embedding)
    history = resumed.fit(triangle, InterruptedLoss(), resume=tmp_path / "run.pt", **options)
    assert history.stopped == "completed"
    assert list(history) == list(expected)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_another_run_is_refused(triangle, tmp_path):
    new_model().fit(triangle, checkpoint=tmp_path / "run.pt", **dict(OPTIONS, epochs=1))
    with pytest.raises(ValueError, match="seed=3, this run has 4"):
        new_model().fit(triangle, resume=tmp_path / "run.pt", **dict(OPTIONS, seed=4))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"exclude": zx.datasets.synthetic_triangle(40, 40, boundary=45)}, "exclude"),
        ({"optimizer": lambda p: torch.optim.Adam(p, lr=2e-3)}, "optimizer groups"),
        ({"optimizer": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=0.1)}, "optimizer groups"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=1e-3)}, "optimizer"),
        ({"loss": zx.ZerosumLoss(w=0.5)}, "loss"),
        ({"validation": lambda model: 0.5}, "metric"),
        ({"l2": 0.1}, "l2"),
        ({"clip_row_norm": 0.1}, "clip_row_norm"),
        ({"batch_size": 32}, "batch_size"),
        ({"negatives": 2}, "negatives"),
        ({"draws": 1}, "draws"),
        ({"strategy": "popularity"}, "strategy"),
        ({"precision": "bfloat16", "engine": "autograd"}, "precision"),
        ({"engine": "hogwild", "loss": "bpr", "optimizer": lambda p: torch.optim.SGD(p, lr=1e-3)}, "loss"),
    ],
)
def test_a_checkpoint_names_what_is_other_in_this_run(triangle, tmp_path, change, name):
    new_model().fit(triangle, checkpoint=tmp_path / "run.pt", **dict(OPTIONS, epochs=1))
    with pytest.raises(ValueError, match=f"written with {name}="):
        new_model().fit(triangle, resume=tmp_path / "run.pt", **dict(OPTIONS, **change))


def test_a_checkpoint_of_other_interactions_or_another_measure_is_refused(triangle, tmp_path):
    options = dict(OPTIONS, epochs=1, validation=triangle)
    new_model().fit(triangle, checkpoint=tmp_path / "run.pt", **options)
    turned = triangle[:, ::-1].tocsr()  # as many interactions, of other items
    assert turned.nnz == triangle.nnz
    for data, change, name in (
        (turned, {}, "interactions"),
        (triangle, {"metric": "recall@20"}, "metric"),
        (triangle, {"maximize": False}, "maximize"),
    ):
        with pytest.raises(ValueError, match=f"written with {name}="):
            new_model().fit(data, resume=tmp_path / "run.pt", **dict(options, **change))
    assert len(new_model().fit(triangle, resume=tmp_path / "run.pt", **options)) == 1


@pytest.mark.parametrize("content", [b"", b"x" * 100, None], ids=["empty", "junk", "half"])
def test_a_damaged_checkpoint_is_named(triangle, tmp_path, content):
    path = tmp_path / "run.pt"
    new_model().fit(triangle, checkpoint=path, **dict(OPTIONS, epochs=1))
    path.write_bytes(path.read_bytes()[:5000] if content is None else content)
    with pytest.raises(ValueError, match=r"resume: .*run\.pt' is damaged"):
        new_model().fit(triangle, resume=path, **OPTIONS)


def test_a_checkpoint_of_a_model_of_another_width_is_refused(triangle, tmp_path):
    new_model().fit(triangle, checkpoint=tmp_path / "run.pt", **dict(OPTIONS, epochs=1))
    with pytest.raises(ValueError, match="written with another model"):
        zx.MatrixFactorization(40, 40, 4).fit(triangle, resume=tmp_path / "run.pt", **OPTIONS)


def test_a_full_disk_is_said_with_the_name_of_the_file(triangle, tmp_path):
    path = tmp_path / "run.pt"
    new_model().fit(triangle, checkpoint=path, **dict(OPTIONS, epochs=1))
    before = path.read_bytes()
    with files_of_at_most(5000):
        with pytest.raises(OSError, match=r"run\.pt"):
            new_model().fit(triangle, checkpoint=path, **dict(OPTIONS, epochs=1))
        with pytest.raises(OSError, match=r"model\.safetensors"):
            zx.MatrixFactorization(400, 400, 8).save(tmp_path / "model.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("metric", ["ndcg", "ndcg@x", "ndcg@0", "ndcg@", "pri@10", "nonsense", "ndcg@5@5"])
def test_a_metric_that_is_none_is_refused_before_training(triangle, metric):
    model = new_model()
    before = model.user_embedding.clone()
    with pytest.raises(ValueError, match="metric: expected"):
        model.fit(triangle, validation=triangle, metric=metric, **OPTIONS)
    assert torch.equal(model.user_embedding, before)


def test_the_optimizer_is_the_third_argument_of_the_model_too(triangle):
    one, other = new_model(), new_model()
    one.fit(triangle, "bpr", lambda p: torch.optim.SGD(p, lr=0.1), **OPTIONS)
    zx.training.fit(other, triangle, "bpr", lambda p: torch.optim.SGD(p, lr=0.1), **OPTIONS)
    assert torch.equal(one.user_embedding, other.user_embedding)


def test_a_schedule_does_not_make_a_run_another(triangle, tmp_path):
    options = dict(OPTIONS, scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5))
    new_model().fit(triangle, checkpoint=tmp_path / "run.pt", **dict(options, epochs=2))
    assert len(new_model().fit(triangle, resume=tmp_path / "run.pt", **options)) == OPTIONS["epochs"]


@pytest.mark.parametrize("item_bias", [False, True])
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_sparse_adam_needs_no_further_setting(triangle, item_bias, clip):
    model = new_model(item_bias=item_bias)
    history = model.fit(triangle, optimizer=torch.optim.SparseAdam, clip_row_norm=clip, **OPTIONS)
    assert history[-1] < history[0]


def test_fit_asks_the_model_for_sparse_gradients(triangle):
    model = new_model()
    model.fit(triangle, optimizer=torch.optim.SparseAdam, engine="autograd", **dict(OPTIONS, epochs=1))
    assert model.sparse
    assert model.config()["sparse"]
    users = torch.tensor([0, 3])
    model.zero_grad(set_to_none=True)
    model(users, users).sum().backward()
    assert model.user_embedding.grad.is_sparse
    model.use_sparse_gradients(False)
    model.zero_grad(set_to_none=True)
    model(users, users).sum().backward()
    assert not model.user_embedding.grad.is_sparse


def test_a_frozen_table_stays(triangle):
    model = new_model()
    model.item_embedding.requires_grad_(False)
    users, items = model.user_embedding.clone(), model.item_embedding.clone()
    model.fit(triangle, **OPTIONS)
    assert torch.equal(model.item_embedding, items)
    assert not torch.equal(model.user_embedding, users)


def test_early_stopping_restores_the_best_epoch(triangle):
    values = iter([0.1, 0.3, 0.2, 0.25, 0.9])
    kept = []

    def validate(model):
        kept.append(model.user_embedding.detach().clone())
        return next(values)

    model = new_model()
    history = model.fit(triangle, validation=validate, patience=2, **dict(OPTIONS, epochs=5))
    assert (history.stopped, history.best_epoch, len(history)) == ("early stopping", 1, 4)
    assert torch.equal(model.user_embedding, kept[1])


@pytest.mark.parametrize(("maximize", "values"), [(True, [0.3, 0.3, 0.1]), (False, [0.3, 0.3, 0.5])])
def test_of_equal_epochs_the_first_is_the_best(triangle, maximize, values):
    given, kept = iter(values), []

    def validate(model):
        kept.append(model.user_embedding.detach().clone())
        return next(given)

    model = new_model()
    options = dict(OPTIONS, epochs=3, patience=2, maximize=maximize)
    history = model.fit(triangle, validation=validate, **options)
    assert (history.best_epoch, history.stopped, len(history)) == (0, "early stopping", 3)
    assert torch.equal(model.user_embedding, kept[0])


def test_dropout_goes_on_where_an_interrupted_run_stopped(triangle, tmp_path):
    def new_network():
        return zx.NGCF(triangle, 4, layers=[4], message_dropout=0.4, node_dropout=0.2, seed=0)

    def interrupt(event):
        if event.epoch == 0:
            raise KeyboardInterrupt

    whole, broken, resumed = new_network(), new_network(), new_network()
    options = dict(OPTIONS, epochs=2)
    expected = whole.fit(triangle, **options)
    broken.fit(triangle, checkpoint=tmp_path / "run.pt", callbacks=[interrupt], **options)
    assert list(resumed.fit(triangle, resume=tmp_path / "run.pt", **options)) == list(expected)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_rows_of_sparse_gradients_are_clipped_as_dense_ones_are(triangle):
    def run(sparse, clip):
        model = new_model(sparse=sparse, init_std=1.0)
        options = dict(OPTIONS, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), epochs=1, batch_size=512)
        model.fit(triangle, "bpr", engine="autograd", clip_row_norm=clip, **options)
        return model.item_embedding.detach()

    dense, sparse, unclipped = run(False, 1e-3), run(True, 1e-3), run(True, None)
    torch.testing.assert_close(sparse, dense, atol=1e-6, rtol=1e-5)
    assert (unclipped - dense).abs().max() > 1e-2


@pytest.mark.parametrize("engine", ["autograd", "fused", "hogwild"])
def test_the_history_of_a_summed_loss_is_its_mean(triangle, engine):
    def run(reduction):
        options = dict(OPTIONS, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), epochs=2)
        return new_model().fit(triangle, zx.BPRLoss(reduction=reduction), engine=engine, **options)

    # Without a step the losses are the same; the last batch is smaller than the others.
    assert list(run("sum")) == pytest.approx(list(run("mean")), rel=1e-5)


def test_a_run_that_stopped_early_is_not_trained_further_by_resuming(triangle, tmp_path):
    options = dict(OPTIONS, patience=1, epochs=4)
    values = iter([0.3, 0.2])
    model = new_model()
    model.fit(triangle, validation=lambda m: next(values), checkpoint=tmp_path / "run.pt", **options)
    again = new_model()
    history = again.fit(triangle, validation=lambda m: 1.0, resume=tmp_path / "run.pt", **options)
    assert (history.stopped, len(history)) == ("early stopping", 2)
    assert torch.equal(again.user_embedding, model.user_embedding)


def test_the_last_weights_stay_where_asked_for(triangle):
    last, plain = new_model(), new_model()
    values = iter([0.4, 0.3, 0.2, 0.1])
    history = last.fit(triangle, validation=lambda m: next(values), restore_best=False, **OPTIONS)
    plain.fit(triangle, **OPTIONS)
    assert history.best_epoch == 0
    assert torch.equal(last.user_embedding, plain.user_embedding)


def test_the_global_generator_is_left_alone(triangle):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    new_model().fit(triangle, **OPTIONS)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("negatives", [1, 3])
@pytest.mark.parametrize("name", ["ipw", "pd", "sampled_softmax"])
def test_losses_of_the_items_are_given_their_indices(triangle, name, negatives):
    popularity = zx.Interactions.from_scipy(triangle).popularity
    if name == "sampled_softmax":
        loss = zx.SampledSoftmaxLoss(log_q=(popularity / popularity.sum()).clamp(min=1e-6).log())
    else:
        loss = zx.losses.get_loss(name, popularity=popularity)
    model = new_model()
    history = model.fit(triangle, loss, **dict(OPTIONS, epochs=8, negatives=negatives))
    assert history[-1] < history[0]
    # The first batch's loss is what the loss gives for that batch's own items.
    users, positives, items = next(iter(zx.TripletLoader(triangle, 64, seed=3, negatives=negatives, draws=2)))
    fresh = new_model()
    expected = loss(fresh(users, positives), fresh(users, items), pos_items=positives, neg_items=items)
    seen = []
    loss.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    new_model().fit(triangle, loss, **dict(OPTIONS, epochs=1, negatives=negatives))
    torch.testing.assert_close(seen[0], expected.detach())


@pytest.mark.parametrize("engine", ["autograd", "fused"])
def test_batches_are_transformed_before_they_are_trained_on(triangle, engine):
    seen = []

    def swap(users, positives, negatives):
        seen.append(len(users))
        return users, negatives, positives

    plain, swapped, again = new_model(), new_model(), new_model()
    plain.fit(triangle, "bpr", engine=engine, **OPTIONS)
    history = swapped.fit(triangle, "bpr", engine=engine, transform=swap, **OPTIONS)
    assert sum(seen) == sum(history.samples)
    again.fit(triangle, "bpr", engine=engine, transform=lambda *batch: batch, **OPTIONS)
    assert torch.equal(again.item_embedding, plain.item_embedding)

    def margin(model):
        scores = model.score_all_items(torch.arange(40)).numpy()
        return scores[triangle.toarray() > 0].mean() - scores[triangle.toarray() == 0].mean()

    assert margin(plain) > 0 > margin(swapped)
    with pytest.raises(TypeError, match="transform"):
        plain.fit(triangle, "bpr", transform=3, **OPTIONS)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["mf", "gmf", "mlp", "neumf", "ngcf", "lightgcn"])
@pytest.mark.parametrize("method", ["zerosum", "pos2neg2", "macr"])
def test_mixed_precision_trains_to_about_the_same_loss(triangle, name, method, precision):
    losses = {}
    for kind in ("float32", precision):
        model = zx.get_model(name, triangle, embedding_dim=8, seed=1)
        parts = zx.get_method(method, model, triangle)
        adam = lambda parameters: torch.optim.Adam(parameters, lr=0.02)  # noqa: E731
        options = dict(OPTIONS, engine="autograd", precision=kind, l2=1e-3, clip_row_norm=1.0)
        losses[kind] = zx.training.fit(parts.model, triangle, parts.loss, adam, **options)
        assert all(p.dtype == torch.float32 for p in model.parameters())
    exact, mixed = losses.values()
    assert mixed[-1] < mixed[0]
    assert list(mixed) == pytest.approx(list(exact), rel=0.1)
    uses_matrix_products = name in ("mlp", "neumf", "ngcf") or method == "macr"
    assert (list(mixed) != list(exact)) or not uses_matrix_products


def test_mixed_precision_reaches_the_model_and_not_the_loss(triangle):
    seen = []

    class Linear(nn.Module):
        num_users = num_items = 40

        def __init__(self):
            super().__init__()
            self.table, self.layer = nn.Embedding(40, 8), nn.Linear(8, 40)

        def forward(self, users, items):
            scores = self.layer(self.table(users))
            seen.append(scores.dtype)
            return scores.gather(1, items)

    class Loss(nn.Module):
        def forward(self, pos, neg):
            seen.append(pos.dtype)
            return nn.functional.softplus(neg - pos).mean()

    zx.training.fit(Linear(), triangle, Loss(), precision="bfloat16", **dict(OPTIONS, epochs=1))
    assert set(seen[::2]) == {torch.bfloat16}
    assert set(seen[1::2]) == {torch.float32}


def test_the_scale_of_float16_is_kept_in_checkpoints(triangle, tmp_path):
    def train(epochs, **options):
        torch.manual_seed(0)
        model = zx.get_model("mlp", triangle, embedding_dim=8, seed=1)
        options = dict(OPTIONS, epochs=epochs, precision="float16", **options)
        return model, zx.training.fit(model, triangle, "bpr", **options)

    whole, expected = train(4)
    train(2, checkpoint=tmp_path / "run.pt")
    resumed, history = train(4, resume=tmp_path / "run.pt")
    assert list(history) == list(expected)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert torch.load(tmp_path / "run.pt")["scaler"]["scale"] >= 1
    with pytest.raises(ValueError, match="written with precision='float16', this run has None"):
        zx.get_model("mlp", triangle, embedding_dim=8).fit(triangle, "bpr", resume=tmp_path / "run.pt", **OPTIONS)


def test_mixed_precision_is_refused_where_it_is_not(triangle):
    with pytest.raises(ValueError, match="precision: expected 'float32', 'bfloat16'"):
        new_model().fit(triangle, precision="half", **OPTIONS)
    with pytest.raises(ValueError, match=r"does not fit this run\. precision: expected 'float32'"):
        new_model().fit(triangle, precision="bfloat16", engine="fused", **OPTIONS)
    assert new_model().fit(triangle, precision="bfloat16", **OPTIONS).engine == "autograd"


def test_integers_of_numpy_are_settings(triangle, tmp_path):
    whole, given = new_model(), new_model()
    whole.fit(triangle, **dict(OPTIONS, negatives=2))
    numbers = {name: np.int64(OPTIONS[name]) for name in ("epochs", "batch_size", "seed", "draws")}
    options = {**OPTIONS, **numbers, "negatives": np.int32(2), "checkpoint": tmp_path / "run.pt"}
    given.fit(triangle, **options, checkpoint_every=np.int64(7))
    assert torch.equal(whole.user_embedding, given.user_embedding)
    assert len(new_model().fit(triangle, resume=tmp_path / "run.pt", **dict(OPTIONS, negatives=2))) == OPTIONS["epochs"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size: expected an integer >= 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size: expected an integer"),
        ({"epochs": True}, TypeError, "epochs: expected an integer"),
        ({"seed": -1}, ValueError, "seed: expected an integer >= 0, got -1"),
        ({"negatives": 0}, ValueError, "negatives"),
        ({"draws": 0}, ValueError, "draws"),
        ({"l2": -1.0}, ValueError, "l2: expected a number >= 0, got -1.0"),
        ({"clip_row_norm": 0.0}, ValueError, "clip_row_norm: expected None or a finite number > 0, got 0.0"),
        ({"scheduler_interval": "batch"}, ValueError, "scheduler_interval: expected 'epoch' or 'step', got 'batch'"),
        ({"patience": 3}, ValueError, "patience: expected None without validation, got 3"),
        ({"patience": 0, "validation": len}, ValueError, "patience: expected an integer >= 1, got 0"),
        ({"checkpoint_every": 3}, ValueError, "checkpoint_every: expected None without checkpoint, got 3"),
        ({"callbacks": [3]}, TypeError, "callbacks: expected callables, got int 3"),
        ({"regularizer": 3}, TypeError, "regularizer: expected a Regularizer or None, got int"),
    ],
)
def test_a_setting_that_is_none_is_named(triangle, change, error, message):
    model = new_model()
    before = model.user_embedding.clone()
    with pytest.raises(error, match=message):
        model.fit(triangle, **{**OPTIONS, **change})
    assert torch.equal(model.user_embedding, before)


def test_a_history_is_read_under_the_names_of_both_versions():
    history = zx.training.History([0.5, 0.25])
    history.engine, history.seconds, history.samples = "hogwild", [1.0, 2.0], [10, 10]
    values = history.to_dict()
    old = {"path" if name == "engine" else name: value for name, value in values.items()}
    for one in (values, old):
        read = zx.training.History.from_dict(one)
        assert (list(read), read.engine, read.samples) == ([0.5, 0.25], "hogwild", [10, 10])
