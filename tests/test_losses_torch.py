"""What torch asks of ops: opcheck, autocast, and inductor's code around them."""

from __future__ import annotations

import pytest
import torch

import zerosum_ext as zx
from zerosum_ext import _ops

kernels = pytest.mark.skipif(not zx.build_info()["cpu"]["loaded"], reason="needs the compiled CPU kernels")


def scores(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@kernels
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", ["bpr", "zerosum", "pos2neg2", "sampled_softmax"])
def test_opcheck_pair_loss(loss, dtype, reduction, grad):
    shape = (5, 2) if loss == "pos2neg2" else (5,)
    neg = scores(5, 2, dtype=dtype, seed=1)
    arguments = (scores(*shape, dtype=dtype), neg, None, None, None, _ops.LOSS_IDS[loss], 1.0, 1.0, 1.0)
    op = torch.ops.zerosum_ext.pair_loss.default
    torch.library.opcheck(op, (*arguments, _ops.REDUCTIONS[reduction], grad))


@kernels
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_opcheck_macr_loss(reduction, grad):
    five, many = scores(5), scores(5, 3, seed=1)
    arguments = (five, many, five, five, many, torch.rand(5), 0.3, 0.7, _ops.REDUCTIONS[reduction], grad)
    torch.library.opcheck(torch.ops.zerosum_ext.macr_loss.default, arguments)


@pytest.mark.parametrize("function", [zx.bpr_loss, zx.zerosum_loss])
def test_autocast_keeps_the_arithmetic_in_float32(function):
    users, items = scores(64, 8).requires_grad_(), scores(64, 8, seed=1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        matrix = users @ items.T
        assert matrix.dtype == torch.bfloat16
        value = function(matrix[:, 0], matrix[:, 1])
        assert value.dtype == torch.float32
    value.backward()
    assert users.grad.dtype == torch.float32
    expected = function(matrix[:, 0].float(), matrix[:, 1].float())
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_inductor():
    pos, neg = scores(33).requires_grad_(), scores(33, seed=1).requires_grad_()

    def function(pos, neg):
        return zx.zerosum_loss(2 * pos, neg + 1, w=0.8)

    got = torch.compile(function, fullgraph=True)(pos, neg)
    want = function(pos, neg)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, (pos, neg)), torch.autograd.grad(want, (pos, neg)))
