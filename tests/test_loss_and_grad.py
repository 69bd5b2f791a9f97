"""zx.loss_and_grad: one op call, and what autograd gives."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import zerosum_ext as zx
from zerosum_ext import _ops

OPTIONS = {
    "bpr": {},
    "zerosum": {"w": 0.8},
    "pos2neg2": {"bpr_weight": 0.5, "reg_weight": 2.0},
    "pos2": {"w": 0.8},
    "neg2": {"w": 0.8},
    "sampled_softmax": {"temperature": 0.7},
    "bsl": {"positive_temperature": 0.5, "negative_temperature": 0.3},
    "psl": {"temperature": 0.4, "activation": "relu"},
    "hardest": {},
}
QUAD, ROW = ("pos2neg2", "pos2", "neg2"), ("sampled_softmax", "bsl", "psl", "hardest")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
requires_kernels = pytest.mark.skipif(not _ops.LOSS_IDS, reason="_C is not loaded")


def inputs(name, rows=9, k=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, 2), (rows, 2)) if name in QUAD else ((rows,), (rows, k))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def by_autograd(pos, neg, loss, sample_weight=None):
    leaves = [t.detach().clone().requires_grad_() for t in (pos, neg)]
    value = loss(*leaves, sample_weight)
    value.sum().backward()
    return value.detach(), *(t.grad for t in leaves)


def compare(pos, neg, loss, weight=None, *, exact=True):
    got = zx.loss_and_grad(pos, neg, loss, sample_weight=weight)
    assert not any(t.requires_grad for t in got)
    for x, y, like in zip(got, by_autograd(pos, neg, loss, weight), (None, pos, neg), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert like is None or (x.shape, x.dtype) == (like.shape, like.dtype)
        if exact:
            assert torch.equal(x, y)
        else:  # in float16 autograd evaluates the loss again, with other roundings
            torch.testing.assert_close(x, y, rtol=2e-3, atol=2e-3)


@pytest.fixture(params=["kernels", "definition"])
def either(request, monkeypatch):
    if request.param == "definition":
        monkeypatch.setitem(_ops.KERNELS, "cpu", frozenset())
    elif not _ops.LOSS_IDS:
        pytest.skip("_C is not loaded")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("name", OPTIONS)
def test_what_autograd_gives(either, name, reduction, dtype):
    loss = zx.get_loss(name, reduction=reduction, **OPTIONS[name])
    pos, neg = inputs(name, dtype=dtype)
    exact = dtype is not torch.float16 and reduction != "none"
    weights = [None, torch.rand(9)]
    if name not in QUAD + ROW:
        weights.append(torch.rand(9, 4))
        compare(pos, neg[:, 0].contiguous(), loss, exact=exact)
    for weight in weights:
        if reduction == "none" and dtype in (torch.bfloat16, torch.float16):
            continue  # the definition rounds each value's gradient
        compare(pos, neg, loss, weight, exact=exact)


@pytest.mark.parametrize("name", OPTIONS)
def test_shapes_and_strides(either, name):
    loss = zx.get_loss(name, **OPTIONS[name])
    pos, neg = inputs(name, 20, 6, torch.float64)
    near = {"exact": False}
    if name in QUAD:
        compare(pos[:, :1].expand(-1, 2), neg.flip(1), loss, **near)
        compare(pos.T.contiguous().T, neg[::1], loss, **near)
    else:
        compare(pos[::2], neg[::2, 1:5], loss, **near)
        compare(pos.unsqueeze(1), neg, loss, **near)
        compare(neg[:, 0], neg.T.contiguous().T, loss, **near)
    if name in ("bpr", "zerosum"):
        compare(neg, neg.flip(0), loss, **near)
        compare(neg.view(4, 5, 6), neg.flip(0).view(4, 5, 6), loss, **near)
    compare(pos, neg.float(), loss, **near)  # the gradients have the dtypes of the scores
    compare(*inputs(name, 0, 3), loss)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_gradients_are_the_derivatives(either, name):
    loss = zx.get_loss(name, reduction="sum", **OPTIONS[name])
    pos, neg = inputs(name, dtype=torch.float64)
    _, grad_pos, grad_neg = zx.loss_and_grad(pos, neg, loss)
    step = 1e-6
    for t, grad in ((pos, grad_pos), (neg, grad_neg)):
        for i in range(t.numel()):
            values = []
            for sign in (1, -1):
                moved = t.clone()
                moved.view(-1)[i] += sign * step
                values.append(loss(*((moved, neg) if t is pos else (pos, moved))))
            numeric = float(values[0] - values[1]) / (2 * step)
            assert float(grad.reshape(-1)[i]) == pytest.approx(numeric, abs=1e-6)


class Ops(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@requires_kernels
@pytest.mark.parametrize("name", OPTIONS)
def test_one_op_does_all(name):
    pos, neg = inputs(name)
    with Ops() as ops:
        zx.loss_and_grad(pos.requires_grad_(), neg.requires_grad_(), name, **OPTIONS[name])
    assert [op for op in ops.names if op not in ("aten::view", "aten::detach", "aten::_unsafe_view")] == [
        "zerosum_ext::pair_loss"
    ]


def test_names_options_and_modules(either):
    pos, neg = inputs("zerosum")
    by_name = zx.loss_and_grad(pos, neg, loss="zerosum", w=0.3, reduction="sum")
    by_module = zx.loss_and_grad(pos, neg, zx.ZerosumLoss(w=0.3, reduction="sum"))
    assert all(torch.equal(x, y) for x, y in zip(by_name, by_module, strict=True))
    assert torch.equal(zx.loss_and_grad(pos, neg)[0], zx.zerosum_loss(pos, neg))
    with pytest.raises(ValueError, match=r"options: expected none beside a module, got \['w'\]"):
        zx.loss_and_grad(pos, neg, zx.BPRLoss(), w=0.3)
    with pytest.raises(ValueError, match="loss: expected one of"):
        zx.loss_and_grad(pos, neg, "nonsense")
    with pytest.raises(ValueError, match="neg: expected"):
        zx.loss_and_grad(pos, neg.T)
    with pytest.raises(ValueError, match="sample_weight: expected shape"):
        zx.loss_and_grad(pos, neg, sample_weight=torch.rand(3))


def test_a_module_of_the_users_own_is_differentiated():
    class Squares(torch.nn.Module):
        def forward(self, pos, neg, sample_weight=None):
            return (sample_weight * pos**2).sum() if sample_weight is not None else (pos**2).sum()

    pos, neg = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
    with torch.no_grad():
        value, grad_pos, grad_neg = zx.loss_and_grad(pos, neg, Squares(), sample_weight=torch.tensor([1.0, 0.5]))
    assert value == 3
    assert grad_pos.tolist() == [2, -2]
    assert grad_neg.tolist() == [0, 0]
    assert not value.requires_grad


class Doubled(zx.BPRLoss):
    def forward(self, pos, neg, sample_weight=None):
        return 2 * super().forward(pos, neg, sample_weight)


def test_a_loss_with_a_forward_of_its_own_is_taken_as_it_is():
    pos, neg = inputs("bpr")
    for x, y in zip(zx.loss_and_grad(pos, neg, Doubled()), zx.loss_and_grad(pos, neg, "bpr"), strict=True):
        torch.testing.assert_close(x, 2 * y)


def test_shared_scores_and_items():
    pos, neg = inputs("pos2")
    compare(pos, neg, zx.Pos2Loss(w=0.8, shared=True))
    compare(pos, neg[:, 0], zx.Pos2Loss(w=0.8, shared=True))


@requires_kernels
def test_under_transforms_and_torch_compile():
    pos, neg = inputs("zerosum")
    expected = zx.loss_and_grad(pos, neg)
    rows = torch.func.vmap(lambda p, n: zx.loss_and_grad(p.expand(1), n.unsqueeze(0), reduction="sum")[0])(pos, neg)
    torch.testing.assert_close(rows.sum() / neg.numel(), expected[0])
    torch.compiler.reset()
    compiled = torch.compile(lambda p, n: zx.loss_and_grad(p, n), fullgraph=True, backend="aot_eager")(pos, neg)
    assert all(torch.equal(x, y) for x, y in zip(expected, compiled, strict=True))
