"""Training by a captured graph, on a GPU that is played: the same bits as without, whatever changes between batches."""

from __future__ import annotations

import contextlib
import functools
import types

import numpy as np
import pytest
import torch
from played_device import PLAYED, Played, PlayedDevice
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import zerosum_ext as zx
from zerosum_ext import _library as _extension
from zerosum_ext import _ops
from zerosum_ext.training import fused
from zerosum_ext.training.weights import PairWeights

if not _extension.CPU.loaded:
    pytest.skip("the kernels that play those of a GPU are in _C, which is not loaded", allow_module_level=True)

OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.5),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=0.05, lr_decay=0.01, initial_accumulator_value=0.1),
    "adam": functools.partial(torch.optim.Adam, lr=0.01, betas=(0.8, 0.99), eps=1e-6),
    "sparse_adam": functools.partial(torch.optim.SparseAdam, lr=0.01, betas=(0.8, 0.99), eps=1e-6),
}
USERS, ITEMS, SIZE = 40, 40, 64


class Capture(TorchDispatchMode):
    """Keeps the operations of a call with the very tensors they work on, and leaves no other trace of it."""

    def __init__(self):
        super().__init__()
        self.calls, self.found = [], {}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        for tensor in tree_leaves((arguments, options)):
            if isinstance(tensor, Played) and id(tensor) not in self.found:
                self.found[id(tensor)] = tensor, tensor.held.clone()
        out = function(*arguments, **(options or {}))
        self.calls.append((function, arguments, options or {}, out))
        return out

    def undo(self):
        for tensor, value in self.found.values():
            tensor.held.copy_(value)

    @torch.no_grad()
    def replay(self):
        for function, arguments, options, out in self.calls:
            again = function(*arguments, **options)
            for kept, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(kept, torch.Tensor) and kept is not new:
                    kept.copy_(new)


class Graphs:
    """Plays the capturing: counts graphs and replays."""

    def __init__(self):
        self.captured = self.replayed = 0

    def capture(self, work, device):
        assert device.type == PLAYED.type
        graph = Capture()
        with torch.no_grad(), graph:
            work()
        graph.undo()
        self.captured += 1
        self.graph = graph

        def replay():
            self.replayed += 1
            graph.replay()

        return replay


@pytest.fixture
def played(monkeypatch):
    lacking = {"mf_train", "mf_train_sampled"}
    monkeypatch.setitem(_ops.KERNELS, PLAYED.type, frozenset(_extension.OPS) - lacking)
    with PlayedDevice() as device:
        yield device


@pytest.fixture
def graphs(monkeypatch):
    found = Graphs()
    monkeypatch.setattr(fused, "can_capture", lambda device: device.type == PLAYED.type)
    monkeypatch.setattr(fused, "capture", found.capture)
    return found


def new_model(sparse=False, normalize=False, place=Played):
    options = {"item_bias": True, "sparse": sparse, "normalize": normalize}
    model = zx.MatrixFactorization(USERS, ITEMS, 6, seed=1, init_std=0.3, **options)
    for name, parameter in list(model.named_parameters()):
        setattr(model, name, torch.nn.Parameter(place(parameter.detach().clone())))
    return model


def interactions(weights=False):
    matrix = zx.datasets.synthetic_triangle(USERS, ITEMS)
    if not weights:
        return zx.Interactions.from_any(matrix)
    matrix.data = np.random.default_rng(0).integers(0, 5, matrix.nnz).astype(np.float32)
    return zx.Interactions.from_scipy(matrix, weights=True)


class Run:
    """A model in training, a graph at hand or not."""

    def __init__(
        self,
        optimizer="adam",
        loss=None,
        negatives=1,
        capturable=False,
        weights=False,
        normalize=False,
        device=PLAYED,
        shared=False,
    ):
        loss = zx.ZerosumLoss() if loss is None else loss
        place = Played if device == PLAYED else torch.Tensor
        self.model = new_model(optimizer == "sparse_adam", normalize, place)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        for group in self.optimizer.param_groups:
            group["capturable"] = capturable
        assert fused.fused_obstacle(self.model, loss, self.optimizer) is None
        data = interactions(weights).to(device)
        self.step = fused.FusedStep(
            *(self.model, loss, self.optimizer, 0.01, 0.5),
            capturable=capturable,
            weights=PairWeights(data) if weights else None,
        )
        positives = getattr(loss, "num_positives", 1)
        negatives = negatives if positives == 1 else 2
        options = {"seed": 3, "positives": positives, "negatives": negatives, "negatives_shared": shared}
        self.loader = zx.TripletLoader(data, SIZE, **options)
        self.totals = []

    def train(self, epoch=0, begin=0, end=None):
        end = self.loader.num_samples if end is None else end
        self.totals.append(_held(self.step.draw_and_train(self.loader, begin, end, epoch)))

    def everything(self):
        """All numbers that training leaves."""
        found = {name: _held(p) for name, p in self.model.named_parameters()}
        for number, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                found[f"{number} {key}"] = _held(torch.as_tensor(value)).double()
        return found | {f"total {i}": total for i, total in enumerate(self.totals)}


def _held(tensor):
    return (tensor.held if isinstance(tensor, Played) else tensor).detach().clone()


def same(first, second):
    a, b = first.everything(), second.everything()
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def both(monkeypatch, graphs, work, **options):
    """The run with a graph, after it has been found to be the one without."""
    runs = []
    for captured in (True, False):
        if not captured:
            monkeypatch.setattr(fused, "can_capture", lambda device: False)
        run = Run(**options)
        work(run)
        runs.append(run)
    same(*runs)
    return runs[0]


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_epochs(played, graphs, monkeypatch, optimizer, capturable):
    """Whole epochs, of which the last batch is short: one graph for all full batches but the first."""

    def work(run):
        played.asked.clear()  # (the loader has looked for users without negatives)
        for epoch in range(3):
            run.train(epoch)
        assert played.asked == []

    run = both(monkeypatch, graphs, work, optimizer=optimizer, capturable=capturable)
    full, rest = divmod(run.loader.num_samples, SIZE)
    assert rest > 0
    assert (graphs.captured, graphs.replayed) == (1, 3 * full - 1)
    for state in run.optimizer.state.values():
        if "step" in state:
            assert float(state["step"].held if isinstance(state["step"], Played) else state["step"]) == 3 * (full + 1)


@pytest.mark.parametrize("kind", ["pos2neg2", "softmax", "softmax of one"])
def test_losses(played, graphs, monkeypatch, kind):
    loss = zx.Pos2Neg2Loss() if kind == "pos2neg2" else zx.SampledSoftmaxLoss()
    negatives = 1 if kind == "softmax of one" else 5

    def work(run):
        run.train(0)
        run.train(1)

    both(monkeypatch, graphs, work, loss=loss, negatives=negatives)
    assert graphs.captured == 1


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", ["zerosum", "pos2neg2", "softmax"])
def test_weights_of_interactions_and_cosines(played, graphs, monkeypatch, kind, normalize):
    """What a graph does, what steps without one do, and what the CPU's engine does."""
    losses = {"zerosum": zx.ZerosumLoss(), "pos2neg2": zx.Pos2Neg2Loss(), "softmax": zx.SampledSoftmaxLoss()}
    options = {"loss": losses[kind], "negatives": 5, "normalize": normalize}

    def work(run):
        played.asked.clear()  # (weights were looked at, and users without negatives)
        run.train(0)
        run.train(1)
        assert played.asked == []

    run = both(monkeypatch, graphs, work, weights=True, **options)
    assert graphs.captured == 1
    on_cpu, plain = Run(weights=True, device=torch.device("cpu"), **options), Run(**options)
    for other in (on_cpu, plain):
        other.train(0)
        other.train(1)
    for name, value in run.everything().items():
        torch.testing.assert_close(value, on_cpu.everything()[name], rtol=1e-4, atol=1e-5, msg=name)
    assert not torch.allclose(run.everything()["user_embedding"], plain.everything()["user_embedding"], atol=1e-3)


def test_weights_of_samples_that_are_given(played, graphs, monkeypatch):
    """Batches that somebody else has drawn, on either device."""
    runs = [Run("sgd", weights=True, normalize=True, device=d) for d in (PLAYED, torch.device("cpu"))]
    runs.append(Run("sgd", normalize=True, device=torch.device("cpu")))
    for run in runs:
        run.totals.append(_held(run.step(*run.loader.samples_between(5, 177, 9), 30)))
    played_run, on_cpu, plain = (run.everything() for run in runs)
    for name, value in played_run.items():
        assert torch.equal(value, on_cpu[name])
    assert not torch.equal(plain["user_embedding"], on_cpu["user_embedding"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_learning_rate_that_changes(played, graphs, monkeypatch, optimizer):
    """A scheduler that advances with each step: calls of one batch."""

    def work(run):
        for batch in range(6):
            run.train(0, batch * SIZE, (batch + 1) * SIZE)
            for group in run.optimizer.param_groups:
                group["lr"] *= 0.7

    both(monkeypatch, graphs, work, optimizer=optimizer)
    assert (graphs.captured, graphs.replayed) == (1, 5)


@pytest.mark.parametrize("optimizer", ["adam", "sparse_adam", "adagrad"])
def test_a_state_that_is_loaded(played, graphs, monkeypatch, optimizer):
    """Other tensors, which the graph does not know, and another count: it is captured anew."""

    def work(run):
        run.train(0)
        saved = {
            "state": {
                number: {k: Played(v.held.clone()) if isinstance(v, Played) else v for k, v in state.items()}
                for number, state in run.optimizer.state_dict()["state"].items()
            },
            "param_groups": run.optimizer.state_dict()["param_groups"],
        }
        run.train(1)
        for p, state in zip(run.optimizer.param_groups[0]["params"], saved["state"].values(), strict=True):
            run.optimizer.state[p] = state
        run.train(2)

    both(monkeypatch, graphs, work, optimizer=optimizer)
    assert graphs.captured == 2


def test_a_loss_that_changes_between_epochs(played, graphs, monkeypatch):
    """By a callback: its options lie in the graph, which is captured anew. What is only read anew is no change."""

    def work(run):
        loss = run.step.loss
        loss.bpr_weight, loss.reduction = 1.0, "mean"
        for epoch, (weight, reduction) in enumerate([(1.0, "mean"), (0.4, "mean"), (0.4, "sum"), (0.4, "sum")]):
            loss.bpr_weight, loss.reduction = weight, reduction
            run.step.refresh()
            run.train(epoch)

    both(monkeypatch, graphs, work, optimizer="sgd")
    assert graphs.captured == 3


def test_constants_that_change_between_epochs(played, graphs, monkeypatch):
    """The graph reads them where they lay when it was captured; others may lie there since."""
    generator = torch.Generator().manual_seed(0)
    tables = [torch.rand(ITEMS, generator=generator) + 0.5 for _ in range(2)]
    name = zx.IPWLoss.record.constants.buffer

    def work(run):
        for epoch, table in enumerate((tables[0], tables[0], tables[1])):
            if getattr(run.step.loss, name).held is not table:
                setattr(run.step.loss, name, Played(table))
            run.step.refresh()
            run.train(epoch)

    loss = zx.IPWLoss(torch.ones(ITEMS))
    setattr(loss, name, Played(torch.ones(ITEMS)))
    both(monkeypatch, graphs, work, optimizer="sgd", loss=loss)
    assert graphs.captured == 2


class Cuda:
    """CUDA's streams and captures as torch has them, with two GPUs."""

    def __init__(self, monkeypatch):
        self.device, self.streams, self.ran, self.fails = 0, {}, [], False
        self.first = None  # the stream of captures that name none
        replaced = {
            "device": self.on,
            "Stream": self.new_stream,
            "current_stream": lambda: self.streams.setdefault(self.device, ("default", self.device)),
            "set_stream": self.set_stream,
            "CUDAGraph": lambda: types.SimpleNamespace(replay=lambda: self.ran.append(("replay", self.device))),
            "graph": self.graph,
        }
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)

    @contextlib.contextmanager
    def on(self, device):
        before, self.device = self.device, device.index
        try:
            yield
        finally:
            self.device = before

    def new_stream(self):
        return object(), self.device

    def set_stream(self, stream):
        self.device = stream[1]
        self.streams[self.device] = stream

    @contextlib.contextmanager
    def graph(self, graph, stream=None, capture_error_mode="global"):
        self.first = self.first or self.new_stream()
        device, before = self.device, self.streams.get(self.device, ("default", self.device))
        self.set_stream(stream or self.first)
        self.captured_on = self.streams[self.device]
        try:
            yield
        finally:  # torch puts the stream back after this, or not at all
            if self.fails:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.device = device
            self.set_stream(before)


def test_a_capture_is_one_of_its_own_gpu(monkeypatch):
    """Torch's own stream of captures belongs to the GPU of the process's first one."""
    cuda = Cuda(monkeypatch)
    for index in (0, 1, 0):
        seen = []
        replay = fused.capture(
            lambda seen=seen: seen.append((cuda.device, cuda.captured_on[1])), torch.device("cuda", index)
        )
        assert seen == [(index, index)]
        assert cuda.device == 0
        replay()
        assert cuda.ran.pop() == ("replay", index)
        assert cuda.streams[index] == ("default", index)


def test_a_capture_that_fails_leaves_the_stream_as_it_was(monkeypatch):
    """And the warning says what failed, not that the capture did."""
    cuda = Cuda(monkeypatch)
    cuda.fails, place = True, torch.device("cuda", 1)
    with cuda.on(place):
        cuda.set_stream(("mine", 1))

    def work():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="previous error") as caught:
        fused.capture(work, place)
    assert cuda.streams[1] == ("mine", 1)
    assert cuda.device == 0
    assert str(caught.value.__context__) == "out of memory"


def test_steps_between_that_no_graph_does(played, graphs, monkeypatch):
    """Batches by a plain call in between: the numbers on the device are set anew, and the place in the epoch too."""

    def work(run):
        run.train(0, 0, 4 * SIZE)
        run.step(*run.loader.samples_between(5, 77, 9), 30)
        run.train(0, 7 * SIZE, 9 * SIZE)
        run.train(4, SIZE, 3 * SIZE)

    both(monkeypatch, graphs, work, optimizer="adam")
    assert (graphs.captured, graphs.replayed) == (1, 7)


def test_what_cannot_be_captured_is_done_step_by_step(played, graphs, monkeypatch):
    def refuse(work, device):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(fused, "capture", refuse)
    run = Run()
    with pytest.warns(RuntimeWarning, match="without a CUDA graph: operation not permitted when stream is capturing$"):
        run.train(0)
    run.train(1)  # (not tried again)
    monkeypatch.setattr(fused, "can_capture", lambda device: False)
    plain = Run()
    plain.train(0)
    plain.train(1)
    same(run, plain)


def test_parameters_that_are_not_trained(played, graphs, monkeypatch):
    def work(run):
        run.model.item_bias.requires_grad_(False)
        run.train(0)
        run.model.item_bias.requires_grad_(True)
        run.train(1)

    both(monkeypatch, graphs, work, optimizer="sgd")
    assert graphs.captured == 2


@pytest.mark.cuda
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fit_replays_a_graph(gpu, monkeypatch, optimizer, weights):
    """fit on a GPU: the fused engine by itself, its graph, and the bits of the steps without one."""
    x = interactions(weights)
    results, captured = [], []
    plain = fused.capture
    monkeypatch.setattr(fused, "capture", lambda *a: captured.append(1) or plain(*a))
    for graph in (True, True, False):
        if not graph:
            monkeypatch.setattr(fused, "can_capture", lambda device: False)
        model = zx.MatrixFactorization(USERS, ITEMS, 20, seed=1, init_std=0.3, item_bias=True, normalize=weights)
        options = {"epochs": 3, "batch_size": SIZE, "seed": 3, "sample_weight": "weights" if weights else None}
        history = zx.fit(model, x, "zerosum", OPTIMIZERS[optimizer], device=gpu, progress=False, **options)
        assert history.path == "fused"
        results.append(([p.detach().cpu() for p in model.parameters()], list(history)))
    assert len(captured) == 2
    for tables, losses in results[1:]:
        assert losses == results[0][1]
        for got, want in zip(tables, results[0][0], strict=True):
            assert torch.equal(got, want)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
def test_each_gpu_has_its_own_graphs(gpu):
    """After a capture on one GPU, another one's steps are not done while they are captured, but replayed."""
    tables = []
    for place in ("cuda:0", "cuda:1"):
        model = zx.MatrixFactorization(USERS, ITEMS, 20, seed=1, init_std=0.3)
        zx.fit(model, interactions(), "zerosum", lr=0.01, epochs=2, batch_size=SIZE, device=place, progress=False)
        tables.append([p.detach().cpu() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*tables, strict=True))


def test_a_graph_has_the_filter_and_the_sums_from_its_first_batch_on(played, graphs):
    """They would be made after a part of an epoch; but what a graph was captured without, it goes on without."""
    generator = torch.Generator().manual_seed(0)
    has = torch.rand(USERS, ITEMS, generator=generator) < 0.3
    has[5], has[5, 7:9] = True, False  # more than 32 items, and more than half of them
    users, items = has.nonzero(as_tuple=True)
    data = zx.Interactions.from_arrays(users.numpy(), items.numpy(), shape=(USERS, ITEMS)).to(PLAYED)
    run = Run("sgd")
    run.loader = zx.TripletLoader(data, 4, seed=3, strategy="popularity")
    assert data.nnz > 16 * 2 * 4
    run.train(end=12)
    assert (graphs.captured, graphs.replayed) == (1, 2)
    (drawn,) = [arguments for function, arguments, _, _ in graphs.graph.calls if "sample_negatives" in str(function)]
    names = [a.name for a in torch.ops.zerosum_ext.sample_negatives.default._schema.arguments]
    given = dict(zip(names, drawn, strict=True))
    assert all(given[name] is not None for name in ("filter", "complement_rows", "complement_masses"))
    assert not any("row_filter" in str(function) for function, *_ in graphs.graph.calls)


@pytest.mark.parametrize(("shared", "negatives"), [(1, 5), (10, 5), (64, 5), (100, 5), (64, 16), (37, 64), (100, 20)])
def test_negatives_that_samples_share(played, graphs, monkeypatch, shared, negatives):
    """Blocks begin within batches, or go on beyond them; nobody is asked where."""

    def work(run):
        played.asked.clear()
        run.train(0, begin=7)
        run.train(1)
        assert played.asked == []

    run = both(monkeypatch, graphs, work, loss=zx.SampledSoftmaxLoss(), negatives=negatives, shared=shared)
    assert fused.shares_lists(run.loader) == (min(shared, 64) * negatives >= 1024)
    assert graphs.captured == 1
    assert graphs.replayed >= 2 * (run.loader.num_samples // SIZE) - 2


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("kind", "normalize"), [("softmax", False), ("bpr", True)])
def test_lists_make_the_samples_that_they_stand_for(played, graphs, monkeypatch, optimizer, kind, normalize):
    """Steps on lists, on their samples one by one, and on those that the CPU's engine draws by itself."""
    loss = {"softmax": zx.SampledSoftmaxLoss(), "bpr": zx.BPRLoss()}[kind]
    options = {"optimizer": optimizer, "loss": loss, "negatives": 30, "shared": 40, "normalize": normalize}
    options["weights"] = kind == "bpr"
    runs = [Run(**options), Run(**options), Run(**options, device=torch.device("cpu"))]
    assert fused.shares_lists(runs[0].loader)
    alone = runs[0].loader.lists_between(0, 300, 0)[3][3]
    assert kind == "bpr" or 0 < int(_held(alone)[-1]) < 300
    for run, lists in zip(runs, (True, False, False), strict=True):
        monkeypatch.setattr(fused, "shares_lists", lambda loader, lists=lists: lists)
        run.train(0, begin=7)
        run.train(1)
    same(*runs[:2])
    for name, value in runs[2].everything().items():
        torch.testing.assert_close(runs[0].everything()[name], value, rtol=1e-4, atol=1e-5, msg=name)
