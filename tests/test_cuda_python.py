"""The Python side of CUDA without a GPU: fake CUDA tensors, and what the backward pass computes."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import zerosum_ext as zx
from zerosum_ext import _library as _extension
from zerosum_ext import _ops
from zerosum_ext._ops import autograd as _autograd
from zerosum_ext.cli import main as cli
from zerosum_ext.reference import Kernel
from zerosum_ext.training import fused

if not _extension.CPU.loaded:
    pytest.skip("the schemas of the ops are in _C, which is not loaded", allow_module_level=True)

CUDA = torch.device("cuda:0")


@pytest.fixture
def kernels_on_cuda(monkeypatch):
    """As if _C_cuda were loaded: a call with fake tensors goes as far as where a kernel would start."""
    monkeypatch.setitem(_ops.KERNELS, "cuda", frozenset(_extension.OPS))


@pytest.fixture
def fake():
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def scores(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device=CUDA)


LOSSES = {
    "bpr": (zx.bpr_loss, (7,), (7,)),
    "zerosum": (zx.zerosum_loss, (7,), (7, 5)),
    "pos2neg2": (zx.pos2neg2_loss, (7, 2), (7, 2)),
    "softmax": (zx.sampled_softmax_loss, (7,), (7, 5)),
    "hardest": (zx.hardest_loss, (7,), (7, 5)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("compiled", [True, False])
def test_losses_on_fake_tensors(request, fake, name, reduction, dtype, compiled):
    if compiled:
        request.getfixturevalue("kernels_on_cuda")
    function, pos_shape, neg_shape = LOSSES[name]
    pos, neg = scores(*pos_shape, dtype=dtype), scores(*neg_shape, dtype=dtype)
    value = function(pos, neg, reduction=reduction)
    samples = neg_shape if name in ("bpr", "zerosum") else (7,)
    assert value.device == CUDA
    assert value.shape == (samples if reduction == "none" else ())
    half = dtype in (torch.float16, torch.bfloat16)
    assert value.dtype == (torch.float32 if half and reduction != "none" else dtype)


class Context:
    """What autograd passes to a Function, which cannot run on fake CUDA tensors in a torch without CUDA."""

    def save_for_backward(self, *tensors):
        self.saved_tensors = tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_backward_pass_waits_for_nothing(fake, kernels_on_cuda, weighted, reduction, dtype):
    # .item() of a fake tensor raises: nothing on this path looks at a value.
    context, pos, neg = Context(), scores(7, dtype=dtype), scores(7, 5, dtype=dtype)
    weight = torch.empty(7, device=CUDA) if weighted else None
    with torch.no_grad():
        value = _autograd._PairLoss.forward(
            context, pos, neg, None, None, weight, Kernel("zerosum", 1.0, 1.0), reduction
        )
        grads = _autograd._PairLoss.backward(context, torch.empty_like(value))
    assert [(g.shape, g.dtype, g.device) for g in grads[:2]] == [(t.shape, dtype, CUDA) for t in (pos, neg)]
    context = Context()
    branches = [scores(*s, dtype=dtype) for s in ((7,), (7, 5), (7,), (7,), (7, 5))]
    with torch.no_grad():
        value = _autograd._MacrLoss.forward(context, weight, 0.1, 0.2, reduction, *branches)
        grads = _autograd._MacrLoss.backward(context, torch.empty_like(value))[4:]
    assert [(g.shape, g.dtype, g.device) for g in grads] == [(t.shape, dtype, CUDA) for t in branches]


MF_LOSSES = {"zerosum": (7, 5), "bpr": (7,), "bsl": (7, 5), "pos2neg2": (7, 2)}


def mf_inputs(name, dtype):
    user, item = scores(9, 16, dtype=dtype), scores(11, 16, dtype=dtype)
    shapes = (7,), (7, 2) if name == "pos2neg2" else (7,), MF_LOSSES[name]
    return user, item, [torch.empty(s, dtype=torch.int64, device=CUDA) for s in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("name", MF_LOSSES)
def test_matrix_factorization_on_fake_tensors(fake, kernels_on_cuda, name, reduction, dtype):
    user, item, ids = mf_inputs(name, dtype)
    value = zx.mf_loss(user, item, *ids, loss=name, reduction=reduction, item_bias=scores(11, dtype=dtype))
    samples = (MF_LOSSES[name] if name in ("zerosum", "bpr") else (7,)) if reduction == "none" else ()
    compute = torch.float32 if dtype == torch.float16 else dtype
    assert (value.shape, value.device) == (samples, CUDA)
    assert value.dtype == (dtype if reduction == "none" else compute)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("name", MF_LOSSES)
@pytest.mark.parametrize("deterministic", [True, False])
def test_its_backward_pass_waits_for_nothing(fake, kernels_on_cuda, deterministic, name, reduction):
    user, item, ids = mf_inputs(name, torch.float32)
    bias, context = scores(11), Context()
    context.needs_input_grad = (True, True, True)
    l2 = 0.0 if reduction == "none" else 0.1
    with torch.no_grad():
        value = _autograd._MfLoss.forward(
            context,
            user,
            item,
            bias,
            *ids,
            None,
            None,
            _autograd.MfOptions(Kernel(name, 1.0, 1.0, 1.0), l2, reduction),
            False,
            deterministic,
        )
        grads = _autograd._MfLoss.backward(context, torch.empty_like(value))
    assert [(g.shape, g.device) for g in grads[:3]] == [(t.shape, CUDA) for t in (user, item, bias)]
    assert len(grads) == 11
    assert grads[3:] == (None,) * 8


# (Without capturable torch.optim.Adam counts its steps in a tensor on the CPU, which here would be fake as well.)
@pytest.mark.parametrize(
    ("optimizer", "capturable"),
    [("SGD", False), ("Adagrad", False), ("SparseAdam", False), ("SGD", True), ("SparseAdam", True), ("Adam", True)],
)
@pytest.mark.parametrize("name", MF_LOSSES)
def test_the_fused_step_waits_for_nothing(fake, kernels_on_cuda, name, optimizer, capturable):
    model = zx.MatrixFactorization(9, 11, 16, item_bias=True, device=CUDA, seed=None)
    loss = {"zerosum": zx.ZerosumLoss, "bpr": zx.BPRLoss, "bsl": zx.BSLLoss, "pos2neg2": zx.Pos2Neg2Loss}[name]()
    options = getattr(torch.optim, optimizer)(model.parameters(), lr=0.1)
    if capturable:
        for group in options.param_groups:
            group["lr"] = torch.empty((), device=CUDA)
    assert fused.fused_obstacle(model, loss, options) is None
    step = fused.FusedStep(model, loss, options, l2=0.1, max_row_norm=1.0, capturable=capturable)
    for _ in range(2):
        value = step(*mf_inputs(name, torch.float32)[2])
    assert (value.shape, value.device) == ((), CUDA)
    for state in options.state.values():
        if capturable:
            assert (state["step"].shape, state["step"].dtype, state["step"].device) == ((), torch.float32, CUDA)
        else:
            assert not isinstance(state["step"], torch.Tensor) or state["step"].device.type == "cpu"


def test_adams_own_option_counts_on_the_device(fake, kernels_on_cuda):
    model = zx.MatrixFactorization(9, 11, 16, device=CUDA, seed=None)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, capturable=True)
    optimizer.param_groups[0]["lr"] = torch.empty((), device=CUDA)  # (its constructor compares the rate with 0)
    assert fused.fused_obstacle(model, zx.BPRLoss(), optimizer) is None
    fused.FusedStep(model, zx.BPRLoss(), optimizer)(*mf_inputs("bpr", torch.float32)[2])
    assert [state["step"].device for state in optimizer.state.values()] == [CUDA] * 2


def test_the_fused_step_needs_kernels_for_the_device(fake, monkeypatch):
    monkeypatch.setitem(_ops.KERNELS, "cuda", frozenset())
    model = zx.MatrixFactorization(9, 11, 16, device=CUDA, seed=None)
    obstacle = fused.fused_obstacle(model, zx.BPRLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    assert obstacle == "model: the compiled part of zerosum_ext for cuda is not loaded"
    model.item_embedding = torch.nn.Parameter(torch.empty(11, 16))
    obstacle = fused.fused_obstacle(model, zx.BPRLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    assert obstacle.startswith("model: expected contiguous float32 parameters on one device")


def test_padded_gradients_have_as_many_rows_as_could_occur(fake, kernels_on_cuda):
    user, item, ids = mf_inputs("zerosum", torch.float32)
    arguments = (scores(7, 6), scores(), 0.0, True, True, True, True)
    out = _ops.mf_gradient(user, item, *ids, *arguments, padded=True)
    assert [t.shape for t in out] == [(7,), (7, 16), (11,), (11, 16), (11,)]


def test_scores_of_all_positives_on_fake_tensors(fake, kernels_on_cuda):
    user, item, bias, x = scores(9, 16), scores(11, 16), scores(11), scores(11)
    csr = [torch.empty(n, dtype=torch.int64, device=CUDA) for n in (10, 50)]
    moments = _ops.csr_score_moments(user, item, bias, *csr, x)
    assert (moments.shape, moments.dtype, moments.device) == ((3,), torch.float64, CUDA)
    out = _ops.csr_weighted_columns(user, item, None, bias, *csr, None, x, 0.5)
    assert [(t.shape, t.device) for t in out] == [((9, 16), CUDA), ((9,), CUDA)]
    with pytest.raises(RuntimeError, match="rows is on cuda:0, indptr on cpu"):
        _ops.csr_score_moments(user, item, bias, torch.empty(10, dtype=torch.int64), csr[1], x)


def test_matrix_factorization_exports(fake, kernels_on_cuda):
    class Loss(torch.nn.Module):
        def forward(self, user, item, users, positives, negatives):
            return zx.mf_loss(user, item, users, positives, negatives)

    user, item, ids = mf_inputs("zerosum", torch.float32)
    exported = torch.export.export(Loss(), (user, item, *ids))
    targets = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert torch.ops.zerosum_ext.mf_loss.default in targets


@pytest.mark.parametrize("other", [torch.device("cpu"), torch.device("cuda:1")])
def test_one_device_for_matrix_factorization(fake, other):
    user, item, ids = mf_inputs("bpr", torch.float32)
    with pytest.raises(ValueError, match=f"item_embedding: expected a tensor on cuda:0, .* on {other}"):
        zx.mf_loss(user, torch.empty(11, 16, device=other), *ids)
    moved = torch.empty(7, dtype=torch.int64, device=other)
    with pytest.raises(ValueError, match="positives: expected a tensor on cuda:0, where the tables are"):
        zx.mf_loss(user, item, ids[0], moved, ids[2])
    coefficient, scale = scores(7, 2), scores()
    arguments = (coefficient, scale, 0.0, True, True, False, False)
    with pytest.raises(RuntimeError, match=f"user_embedding is on cuda:0, negatives on {other}"):
        torch.ops.zerosum_ext.mf_gradient(user, item, ids[0], ids[1], moved, *arguments)
    counter, nothing = torch.empty((), device=other), (None, None)
    settings = torch.zeros(3, 6, dtype=torch.float64, device="cpu")
    with pytest.raises(RuntimeError, match=f"user_embedding is on cuda:0, item_step on {other}"):
        _ops.mf_step(
            *((user, item, None), [nothing] * 3, ids, None, settings, [nothing, (None, counter), nothing], None, 0),
            *(Kernel("bpr", 1.0, 0.0, 0.0), 0.0, 0.0, "mean"),
        )


@pytest.mark.parametrize("name", ["zerosum", "bpr", "pos2neg2", "bsl"])
def test_compiled_with_fake_inputs(fake, kernels_on_cuda, name):
    """torch.compile traces losses of scores and of tables without looking at a value: one graph, with our op in it."""
    graphs = []

    def backend(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    user, item, ids = mf_inputs(name, torch.float32)
    pos = scores(8, 2) if name == "pos2neg2" else scores(8)
    neg = scores(8, 5) if name == "bsl" else pos
    loss = {"zerosum": zx.ZerosumLoss, "bpr": zx.BPRLoss, "bsl": zx.BSLLoss, "pos2neg2": zx.Pos2Neg2Loss}[name]()
    torch.compiler.reset()
    calls = {
        "pair_loss": (lambda *x: loss(*x), (pos, neg)),
        "mf_loss": (lambda *x: zx.mf_loss(*x, loss=loss), (user, item, *ids)),
    }
    for op, (function, arguments) in calls.items():
        value = torch.compile(function, fullgraph=True, backend=backend)(*arguments)
        assert (value.shape, value.device) == ((), CUDA)
        assert getattr(torch.ops.zerosum_ext, op).default in graphs[-1]
    assert len(graphs) == 2


def test_export_keeps_the_op(fake, kernels_on_cuda):
    exported = torch.export.export(zx.ZerosumLoss(), (scores(8), scores(8)))
    targets = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert torch.ops.zerosum_ext.pair_loss.default in targets


def test_sampling_on_fake_tensors(fake, kernels_on_cuda):
    indptr, indices = (torch.empty(n, dtype=torch.int64, device=CUDA) for n in (11, 50))
    users = torch.empty(6, dtype=torch.int64, device=CUDA)
    items, failed = _ops.sample_negatives(users, indptr, indices, None, None, None, 9, 3, 0, 0, 0, True)
    assert (items.shape, failed.shape, items.device) == ((6, 3), (1,), CUDA)
    lookup = _ops.row_filter(indptr, indices, 9)
    assert (lookup.shape, lookup.dtype) == ((51,), torch.int16)
    found = _ops.has_items(users, items, indptr, indices, lookup, 9)
    assert (found.shape, found.dtype) == ((6, 3), torch.bool)
    args = (indptr, indices, torch.empty(1, dtype=torch.int64, device=CUDA), 6, None, None, 1, 50, 50, 0, 20)
    assert [t.shape for t in _ops.sample_positives(*args, 2, 0, 0)] == [(20,), (20, 2)]


# ---- tensors of several devices


@pytest.mark.parametrize("other", [torch.device("cpu"), torch.device("cuda:1")])
def test_one_device_for_scores(fake, other):
    with pytest.raises(ValueError, match=rf"neg: expected a tensor on cuda:0, where pos is, got .* on {other}"):
        zx.zerosum_loss(scores(4), torch.empty(4, device=other))
    with pytest.raises(ValueError, match=rf"sample_weight: expected a tensor on cuda:0, .* on {other}"):
        zx.zerosum_loss(scores(4), scores(4), sample_weight=torch.empty(4, device=other))


@pytest.mark.parametrize("other", [torch.device("cpu"), torch.device("cuda:1")])
def test_the_ops_themselves_name_what_lies_elsewhere(fake, other):
    pos, neg = torch.empty(4, device=CUDA), torch.empty(4, device=other)
    with pytest.raises(RuntimeError, match=f"pos is on cuda:0, neg on {other}"):
        torch.ops.zerosum_ext.pair_loss(pos, neg, None, None, None, 0, 1.0, 0.0, 0.0, 2, False)
    indptr, indices = torch.empty(5, dtype=torch.int64, device=CUDA), torch.empty(9, dtype=torch.int64, device=other)
    with pytest.raises(RuntimeError, match=f"users is on cuda:0, indices on {other}"):
        torch.ops.zerosum_ext.sample_negatives(indptr, indptr, indices, None, None, None, 9, 1, 0, 0, 0, True)


def test_users_must_be_where_the_interactions_are():
    data = zx.Interactions.from_arrays([0, 1, 1], [2, 0, 1])
    with pytest.raises(ValueError, match="users: expected a tensor on cpu, where interactions are, got meta"):
        zx.sample_negatives(data, torch.zeros(2, dtype=torch.int64, device="meta"))


# ---- the backward pass on a GPU: launches, and gradients that are scaled where they lie


class Launches(TorchDispatchMode):
    """The ops that are called: on a GPU each is a launch, as far as it is no view and only asks for memory."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split(".")[0]
        if name.split("::")[1] not in ("empty", "empty_like", "new_empty", "view", "detach", "expand", "device"):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_one_launch_and_its_backward_pass_another(fake, kernels_on_cuda, monkeypatch, name, kept, dtype):
    monkeypatch.setattr(_autograd, "_graph_is_kept", lambda: kept)
    _, pos_shape, neg_shape = LOSSES[name]
    loss = {"softmax": "sampled_softmax"}.get(name, name)
    context = Context()
    tensors = scores(*pos_shape, dtype=dtype), scores(*neg_shape, dtype=dtype)
    with Launches() as launches, torch.no_grad():
        value = _autograd._PlainPairLoss.forward(context, *tensors, Kernel(loss, 1.0, 1.0, 0.0), "mean")
        torch.ones_like(value)  # what loss.backward() starts with
        grads = _autograd._PlainPairLoss.backward(context, torch.empty_like(value))
    scale = "zerosum_ext::scale_gradients" if kept else "zerosum_ext::scale_gradients_"
    assert launches.names == ["zerosum_ext::pair_loss", "aten::ones_like", scale]
    assert [(g.shape, g.dtype, g.device) for g in grads[:2]] == [(t.shape, dtype, CUDA) for t in tensors]


def test_loss_and_grad_is_one_launch(fake, kernels_on_cuda):
    for name, (_, pos_shape, neg_shape) in LOSSES.items():
        loss = {"softmax": "sampled_softmax"}.get(name, name)
        with Launches() as launches:
            value, *grads = zx.loss_and_grad(scores(*pos_shape), scores(*neg_shape), loss)
        assert launches.names == ["zerosum_ext::pair_loss"]
        assert (value.shape, value.device) == ((), CUDA)
        assert [g.shape for g in grads] == [pos_shape, neg_shape]


def test_macr_scales_all_five_gradients_in_one_launch(fake, kernels_on_cuda, monkeypatch):
    monkeypatch.setattr(_autograd, "_graph_is_kept", lambda: False)
    context, branches = Context(), [scores(*s) for s in ((7,), (7, 5), (7,), (7,), (7, 5))]
    with Launches() as launches, torch.no_grad():
        value = _autograd._MacrLoss.forward(context, None, 0.1, 0.2, "mean", *branches)
        _autograd._MacrLoss.backward(context, torch.empty_like(value))
    assert launches.names == ["zerosum_ext::macr_loss", "zerosum_ext::scale_gradients_"]


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The CPU's ops behind the GPU's backward pass."""

    def scale(grads, grad_output):
        return _ops.scale_gradients(grads, grad_output, not _autograd._graph_is_kept())

    monkeypatch.setattr(_autograd, "_scale", scale)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_scaled_in_place_are_right_whatever_is_done_with_the_graph(as_on_a_gpu, name):
    function, pos_shape, neg_shape = LOSSES[name]
    generator = torch.Generator().manual_seed(0)
    pos, neg = (torch.randn(s, generator=generator, requires_grad=True) for s in (pos_shape, neg_shape))
    one = torch.autograd.grad(function(pos, neg), (pos, neg))
    for factor in (1.0, 2.5):
        value = function(pos, neg) * factor
        kept = torch.autograd.grad(value, (pos, neg), retain_graph=True)
        for g in kept:
            g.zero_()  # what was handed out is the caller's own
        again = torch.autograd.grad(value, (pos, neg), retain_graph=True)
        last = torch.autograd.grad(value, (pos, neg))
        for expected, x, y in zip(one, again, last, strict=True):
            torch.testing.assert_close(x, expected * factor)
            assert torch.equal(x, y)
    value = function(pos, neg)
    value.backward()
    assert torch.equal(pos.grad, one[0])


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_op_that_scales(dtype, in_place):
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    for factor in (1.0, 0.3):
        given = [torch.randn(5, dtype=torch.float64).to(dtype), torch.randn(3, 4, dtype=torch.float64).to(dtype)]
        expected = [(g.to(compute) * torch.tensor(factor, dtype=compute)).to(dtype) for g in given]
        got = _ops.scale_gradients(given, torch.tensor(factor, dtype=compute), in_place)
        assert [torch.equal(x, y) for x, y in zip(expected, got, strict=True)] == [True, True]
        assert all((x.data_ptr() == y.data_ptr()) == in_place for x, y in zip(given, got, strict=True))
    with pytest.raises(RuntimeError, match="gradients must be contiguous"):
        _ops.scale_gradients([torch.zeros(4, 4).T], torch.ones(()), True)
    with pytest.raises(RuntimeError, match="factor one number"):
        _ops.scale_gradients([torch.zeros(4)], torch.ones(2), True)


# ---- gradients computed again in the backward pass, as in float16


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [None, "rows", "samples"])
@pytest.mark.parametrize("name", LOSSES)
def test_recomputed_gradients(monkeypatch, name, weighted, reduction):
    function, pos_shape, neg_shape = LOSSES[name]
    generator = torch.Generator().manual_seed(0)
    pos, neg = (torch.randn(s, generator=generator, requires_grad=True) for s in (pos_shape, neg_shape))
    weight = torch.rand(7, generator=generator) if weighted else None
    if weighted == "samples":
        shape = function(pos, neg, reduction="none").shape
        weight = torch.rand(shape, generator=generator)
    results = []
    for keeps in (True, False):
        monkeypatch.setattr(_autograd, "_keeps_derivatives", lambda _, how, keeps=keeps: keeps and how != "none")
        value = function(pos, neg, sample_weight=weight, reduction=reduction)
        upstream = torch.rand(value.shape, generator=torch.Generator().manual_seed(1))
        results.append((value.detach(), *torch.autograd.grad(value, (pos, neg), upstream)))
    for kept, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(kept, recomputed)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_recomputed_gradients_of_macr(monkeypatch, reduction):
    generator = torch.Generator().manual_seed(0)
    branches = [torch.randn(s, generator=generator, requires_grad=True) for s in ((7,), (7, 5), (7,), (7,), (7, 5))]
    results = []
    for keeps in (True, False):
        monkeypatch.setattr(_autograd, "_keeps_derivatives", lambda _, how, keeps=keeps: keeps and how != "none")
        value = zx.macr_loss(*branches, alpha=0.3, beta=0.7, reduction=reduction)
        upstream = torch.rand(value.shape, generator=torch.Generator().manual_seed(1))
        results.append(torch.autograd.grad(value, branches, upstream))
    for kept, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(kept, recomputed)


def test_without_its_own_kernel_an_op_on_cuda_is_the_definition(fake, monkeypatch):
    monkeypatch.setitem(_ops.KERNELS, "cuda", frozenset({"pair_loss"}))
    assert zx.macr_loss(*(scores(4) for _ in range(5)), alpha=0.1, beta=0.1).device == CUDA
    assert zx.bpr_loss(scores(4), scores(4)).device == CUDA


# ---- GPUs that the kernels were not built for


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        ("sm_75 sm_90", (7, 5), True),
        ("sm_75 sm_90", (7, 0), False),
        ("sm_75 sm_90", (8, 0), False),
        ("sm_80", (8, 9), True),
        ("sm_86", (8, 0), False),
        ("sm_86 compute_86", (12, 0), True),
        ("compute_86", (8, 0), False),
        ("sm_120", (12, 1), True),
        ("sm_120", (10, 0), False),
        ("sm_90a compute_90a", (9, 0), True),
        ("sm_90a compute_90a", (10, 0), False),
        ("sm_100f compute_100f", (10, 3), True),
        ("sm_100f compute_100f", (11, 0), False),
        ("", (9, 0), False),
    ],
)
def test_what_runs_on_a_gpu(archs, capability, runs):
    assert _extension.runs_on(archs.split(), capability) == runs


@pytest.fixture
def gpus(monkeypatch, kernels_on_cuda):
    """As if CUDA were in use on GPUs of 9.0 and 7.0, and the kernels were built for 7.5 and 9.0."""
    capabilities = [(9, 0), (7, 0)]
    monkeypatch.setattr(_ops.common, "GPU_OBSTACLES", {})
    monkeypatch.setattr(_extension.CUDA, "loaded", True)
    monkeypatch.setattr(_extension.CUDA, "archs", ("sm_75", "sm_90", "compute_90"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")


OBSTACLE = "cuda:1 (GPU 1) has compute capability 7.0, and the CUDA kernels were built for sm_75, sm_90, compute_90"


def test_a_gpu_that_the_kernels_were_not_built_for_is_left_to_pytorch(gpus, fake, monkeypatch, recwarn):
    device, kernels = torch.device("cuda:1"), []
    monkeypatch.setattr(_ops.losses, "pair_loss_kernel", lambda pos, *_: kernels.append(pos.device) or (pos, pos, pos))
    model = zx.MatrixFactorization(9, 11, 16, device=device, seed=None)
    obstacle = fused.fused_obstacle(model, zx.BPRLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    assert obstacle == f"model: {OBSTACLE}"
    for _ in range(2):
        assert zx.bpr_loss(*(torch.empty(4, device=device) for _ in range(2))).shape == ()
    zx.bpr_loss(scores(4), scores(4))
    assert kernels == [CUDA]
    assert not _ops.has_op("pair_loss", device)
    for other in ("cpu", "cuda:0", "cuda:2"):  # (the last one is there in fake tensors alone)
        assert _ops.has_op("pair_loss", torch.device(other))
    assert len(recwarn) == 1
    warning = recwarn.pop(RuntimeWarning)
    assert f"plain PyTorch there, slowly: {OBSTACLE}. To mend it: " in str(warning.message)
    assert 'TORCH_CUDA_ARCH_LIST="7.0" FORCE_CUDA=1 pip install' in str(warning.message)


def test_the_gpu_of_a_device_without_a_number_is_the_current_one(gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert _ops.has_op("pair_loss", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    with pytest.warns(RuntimeWarning, match="compute capability 7.0"):
        assert not _ops.has_op("pair_loss", torch.device("cuda"))


def test_before_cuda_is_used_no_gpu_is_asked(gpus, fake, monkeypatch, recwarn):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert _ops.has_op("pair_loss", torch.device("cuda:1"))
    assert not _ops.common.GPU_OBSTACLES
    assert not recwarn


@pytest.mark.filterwarnings("ignore:zerosum_ext runs on plain PyTorch")
def test_torch_compile_knows_what_a_gpu_runs(gpus, fake):
    graphs = []

    def backend(graph, inputs):
        graphs.append({node.target for node in graph.graph.nodes if node.op == "call_function"})
        return graph.forward

    for device in ("cuda:0", "cuda:1"):
        torch.compiler.reset()
        pos, neg = (torch.empty(4, device=device) for _ in range(2))
        value = torch.compile(zx.zerosum_loss, fullgraph=True, backend=backend)(pos, neg)
        assert (value.shape, value.device) == ((), torch.device(device))
    assert [torch.ops.zerosum_ext.pair_loss.default in graph for graph in graphs] == [True, False]


def test_build_info_and_doctor_name_it(gpus, capsys):
    info = zx.build_info()["cuda"]
    assert (info["loaded"], info["archs"], info["reason"]) == (True, ["sm_75", "sm_90", "compute_90"], OBSTACLE)
    assert 'TORCH_CUDA_ARCH_LIST="7.0;9.0" FORCE_CUDA=1' in info["remedy"]  # what is there runs on
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "CUDA kernels loaded" in text
    assert f"plain PyTorch runs in their place: {OBSTACLE}" in text
    assert info["remedy"] in text


def test_without_a_driver_no_stream_is_asked_whether_it_is_captured(fake, kernels_on_cuda, monkeypatch):
    """As in a CUDA build of torch on a machine without a GPU."""

    def capturing():
        raise RuntimeError("Found no NVIDIA driver on your system")

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", capturing)
    model = zx.MatrixFactorization(9, 11, 16, device=CUDA, seed=None)
    step = fused.FusedStep(model, zx.BPRLoss(), torch.optim.SparseAdam(model.parameters(), lr=0.1))
    step(*mf_inputs("bpr", torch.float32)[2])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="SparseAdam counts its steps on the host"):
        step(*mf_inputs("bpr", torch.float32)[2])


def test_a_cuda_library_that_numbers_the_losses_otherwise_is_not_used():
    """It was left over from an older build: a number would stand for another loss."""
    library = _extension.Library("_C_cuda")
    for names, loaded in (("bpr,zerosum", True), ("bpr,hinge,zerosum", False)):
        library.loaded = True
        library.require_losses(names, "bpr,zerosum")
        assert library.loaded == loaded
    assert "it has the losses bpr,hinge,zerosum, _C bpr,zerosum" in library.reason
    assert "FORCE_CUDA=1 pip install" in library.remedy
