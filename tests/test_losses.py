"""Losses against their definitions in float64, over shapes, dtypes, weights, reductions and magnitudes."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

import zerosum_ext as zx
from zerosum_ext import reference
from zerosum_ext.reference import Kernel
from zerosum_ext.testing import loss_cases

# Every loss of the records that takes no constants, with options that make all of its terms count.
CASES = [case for case in loss_cases() if not case.constants]
PAIR, ROW, QUAD = (
    {case.name: (case.function, case.kernel) for case in CASES if case.scores == shape}
    for shape in ("pair", "row", "quad")
)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.mark.parametrize(
    ("make", "kernel"),
    [
        (zx.BPRLoss, ("bpr", 1.0, 0.0, 0.0)),
        (zx.ZerosumLoss, ("zerosum", 1.0, 1.0, 0.0)),
        (partial(zx.ZerosumLoss, w=0.75), ("zerosum", 0.375, 0.125, 0.0)),
        (partial(zx.ZerosumLoss, 0.5, 2.0), ("zerosum", 0.5, 2.0, 0.0)),
        (zx.Pos2Neg2Loss, ("pos2neg2", 1.0, 1.0, 1.0)),
        (partial(zx.Pos2Neg2Loss, w=0.75), ("pos2neg2", 0.1875, 0.0625, 0.0625)),
        (partial(zx.Pos2Loss, w=0.75), ("pos2neg2", 0.1875, 0.125, 0.0)),
        (partial(zx.Neg2Loss, w=0.75), ("pos2neg2", 0.1875, 0.0, 0.125)),
        (partial(zx.SampledSoftmaxLoss, temperature=0.5), ("sampled_softmax", 2.0, 0.0, 0.0)),
        (partial(zx.BSLLoss, positive_temperature=0.5, negative_temperature=0.25), ("bsl", 2.0, 4.0, 0.5)),
        (partial(zx.PSLLoss, temperature=0.5), ("psl_tanh", 2.0, 0.0, 0.0)),
        (partial(zx.PSLLoss, temperature=0.5, activation="relu"), ("psl_relu", 2.0, 0.0, 0.0)),
        (zx.HardestLoss, ("hardest", 1.0, 0.0, 0.0)),
    ],
)
def test_the_kernel_that_a_loss_amounts_to(make, kernel):
    """The numbers by hand: all other tests take them from the records."""
    assert make().kernel() == kernel


def scores(shape, dtype=torch.float32, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype).requires_grad_()


def check(function, definition, pos, neg, weight, reduction):
    """Value and gradients of a function against its definition in float64, under a random gradient of the output."""
    value = function(pos, neg, sample_weight=weight, reduction=reduction)
    p, n = (t.detach().double().requires_grad_() for t in (pos, neg))
    w = None if weight is None else weight.double()
    expected = reference.pair_loss_value(p, n, None, None, w, definition, reduction)
    upstream = scores(value.shape, value.dtype, seed=9, scale=1.0).detach()
    got = (value, *torch.autograd.grad(value, (pos, neg), upstream))
    want = (expected, *torch.autograd.grad(expected, (p, n), upstream.double()))
    for x, y in zip(got, want, strict=True):
        assert x.shape == y.shape
        tolerance = TOLERANCE[pos.dtype]
        scale = max(1.0, float(y.detach().abs().max())) if y.numel() else 1.0
        torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", [(1,), (7,), (1025,), (20000,), (5, 3), (3, 2500), (100, 16), (0,)])
@pytest.mark.parametrize("name", PAIR)
def test_pair_losses(name, shape, reduction, dtype):
    function, definition = PAIR[name]
    pos, neg = scores(shape[:1], dtype), scores(shape, dtype, seed=1)
    check(function, definition, pos, neg, None, reduction)
    for weight_shape in {shape, shape[:1]}:
        check(function, definition, pos, neg, torch.rand(weight_shape), reduction)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("k", [1, 5, 16, 33, 1500])
@pytest.mark.parametrize("name", ROW)
def test_row_losses(name, k, reduction, dtype):
    function, definition = ROW[name]
    pos, neg = scores((9,), dtype), scores((9, k), dtype, seed=1)
    check(function, definition, pos, neg, None, reduction)
    check(function, definition, pos, neg, torch.rand(9), reduction)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("rows", [0, 1, 777])
@pytest.mark.parametrize("name", QUAD)
def test_quad_losses(name, rows, reduction, dtype):
    function, definition = QUAD[name]
    pos, neg = scores((rows, 2), dtype), scores((rows, 2), dtype, seed=1)
    check(function, definition, pos, neg, None, reduction)
    check(function, definition, pos, neg, torch.rand(rows), reduction)


@pytest.mark.parametrize("name", [*PAIR, *ROW])
def test_no_negatives_or_no_rows(name):
    function, _ = (PAIR | ROW)[name]
    pos, neg = scores((0,)), scores((0, 4))
    value = function(pos, neg)
    value.backward()
    assert value == 0
    assert pos.grad.shape == (0,)
    assert neg.grad.shape == (0, 4)


def test_no_columns_gives_zero_gradients():
    pos, neg = scores((4,)), scores((4, 0))
    value = zx.zerosum_loss(pos, neg)
    value.backward()
    assert value == 0
    assert torch.equal(pos.grad, torch.zeros(4))


def test_non_contiguous_and_expanded_scores():
    base = scores((6, 10)).detach()
    pos, neg = base[:, 3].requires_grad_(), base[:, ::3].requires_grad_()
    check(zx.zerosum_loss, Kernel("zerosum", 1.0, 1.0), pos, neg, None, "sum")
    row = scores((5,)).detach()
    check(
        zx.bpr_loss,
        Kernel("bpr", 1.0),
        row[:1].expand(6).requires_grad_(),
        base[:, 0].requires_grad_(),
        None,
        "sum",
    )


MAGNITUDES = [0.0, 1e-6, 1e-3, 1.0, 9.02, 30.0, 90.0, 1e3, 1e4]


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
@pytest.mark.parametrize("name", [*PAIR, *QUAD, *ROW])
def test_finite_and_exact_to_1e4(name, signs, magnitude):
    """Every loss, in every dtype: value and gradient are finite to 1e4, and in float32 the value is right to 1e-6."""
    function, definition = (PAIR | QUAD | ROW)[name]
    shape = (3, 2) if name in QUAD else (3,)
    for dtype in TOLERANCE:
        # Scores that differ a little in each row, so that no two of them are equal throughout.
        pos = (
            torch.linspace(0.9, 1, 3).reshape(3, *[1] * (len(shape) - 1)).expand(shape) * signs[0] * magnitude
        ).clone()
        neg = torch.linspace(1, 0.8, 12 if name in ROW else pos.numel()).reshape(3, -1) * signs[1] * magnitude
        pos, neg = pos.to(dtype).requires_grad_(), (neg if name not in PAIR else neg[:, 0]).to(dtype).requires_grad_()
        value = function(pos, neg, reduction="none")
        assert value.dtype == dtype
        total = function(pos, neg)
        grads = torch.autograd.grad(total, (pos, neg)) + torch.autograd.grad(value.sum(), (pos, neg))
        assert all(bool(x.isfinite().all()) for x in (total, *grads))
        p, n = pos.detach().double().requires_grad_(), neg.detach().double().requires_grad_()
        expected = reference.pair_loss_value(p, n, None, None, None, definition, "none")
        wanted = torch.autograd.grad(expected.sum(), (p, n))
        exact = 1e-6 if dtype == torch.float32 else TOLERANCE[dtype]
        # Where a loss is a difference of numbers as large as the scores, rounding is of their size.
        size = max(1.0, magnitude if name in ROW else 0.0, float(expected.detach().abs().max()))
        # PSL's value is 4 times the scores' difference here: more than float16 holds from 65504 on.
        held = expected.detach().abs() <= torch.finfo(dtype).max
        assert bool(held.all()) or (dtype, definition.loss) == (torch.float16, "psl_tanh")
        assert ((value.double() - expected).abs()[held] <= exact * size).all()
        for got, want in zip(grads[2:], wanted, strict=True):
            # The derivative of a difference of scores: as exact as the difference, of up to 2e4, is.
            rounding = TOLERANCE[dtype] * max(1.0, float(want.abs().max()))
            assert (got.double() - want).abs().max() <= rounding + 8 * magnitude * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("name", ["ipw", "pd", "macr"])
@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_losses_with_more_inputs_are_finite_to_1e4(name, magnitude):
    popularity = torch.tensor([1.0, 5.0, 2.0, 9.0])
    for dtype in TOLERANCE:
        for sign in (1, -1):
            pos = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).mul(magnitude)
            neg = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64).mul(sign * magnitude)
            pos, neg, user, item, other = (x.to(dtype, copy=True).requires_grad_() for x in (pos, neg, -pos, neg, -neg))
            if name == "ipw":
                call, inputs = partial(zx.ipw_loss, pos_popularity=popularity, neg_popularity=popularity), (pos, neg)
            elif name == "pd":
                counts = {"pos_popularity": popularity, "neg_popularity": popularity.flip(0)}
                call, inputs = partial(zx.pd_loss, **counts, gamma=0.1), (pos, neg)
            else:
                call, inputs = partial(zx.macr_loss, alpha=0.5, beta=0.25), (pos, neg, user, item, other)
            doubles = [x.detach().double().requires_grad_() for x in inputs]
            value, expected = call(*inputs, reduction="none"), call(*doubles, reduction="none")
            grads, wanted = (torch.autograd.grad(v.sum(), x) for v, x in ((value, inputs), (expected, doubles)))
            assert bool(value.isfinite().all())
            assert all(bool(g.isfinite().all()) for g in grads)
            exact = 1e-6 if dtype == torch.float32 else TOLERANCE[dtype]
            assert (value.double() - expected).abs().max() <= exact * max(1.0, float(expected.detach().abs().max()))
            for got, want in zip(grads, wanted, strict=True):
                rounding = TOLERANCE[dtype] * max(1.0, float(want.abs().max()))
                assert (got.double() - want).abs().max() <= rounding + 8 * magnitude * torch.finfo(torch.float32).eps


# From where on the forms as they are written fail in each dtype: rho as log(1 - tanh|x|), and BPR as log(sigmoid).
LITERAL = [
    ("rho", torch.float64, 19.1),
    ("rho", torch.float32, 9.02),
    ("rho", torch.float16, 4.6),
    ("rho", torch.bfloat16, 3.5),
    ("bpr", torch.float64, 746.0),
    ("bpr", torch.float32, 105.0),
    ("bpr", torch.float16, 18.0),
    ("bpr", torch.bfloat16, 94.0),
]


@pytest.mark.parametrize(("form", "dtype", "limit"), LITERAL)
def test_where_the_literal_forms_overflow_these_do_not(form, dtype, limit):
    for x in (limit, 2 * limit, 1e4):
        score = torch.tensor([x], dtype=dtype, requires_grad=True)
        zero = torch.zeros(1, dtype=dtype)
        if form == "rho":
            literal = -torch.log(1 - torch.tanh(score.abs()))
            ours = zx.zerosum_loss(score, zero, bpr_weight=0.0)
            size = 2 * float(score.detach()) + math.log1p(math.expm1(-2 * float(score.detach())) / 2)
        else:
            literal = -torch.log(torch.sigmoid(-score))
            ours = zx.bpr_loss(zero, score)
            size = float(score.detach())
        assert torch.isinf(literal)
        assert not torch.autograd.grad(literal, score)[0].isfinite().all()
        assert ours.item() == pytest.approx(size, rel=1e-6)
        slope = torch.autograd.grad(ours, score)[0]
        assert float(slope) == pytest.approx(2.0 if form == "rho" else 1.0, rel=4 * torch.finfo(dtype).eps, abs=1e-2)


def test_nan_in_nan_out():
    pos = torch.tensor([float("nan"), 1.0])
    for function in (zx.bpr_loss, zx.zerosum_loss):
        assert function(pos, torch.zeros(2), reduction="none").isnan().tolist() == [True, False]
    neg = torch.tensor([[0.0, float("nan")], [0.0, 1.0]])
    for function, _ in ROW.values():
        assert function(torch.zeros(2), neg, reduction="none").isnan().tolist() == [True, False]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("name", ["bpr", *ROW])
def test_a_negative_of_minus_infinity_is_masked(name, dtype):
    function, definition = (PAIR | ROW)[name]
    pos, neg = scores((3,), dtype), scores((3, 40), dtype, seed=1).detach()
    neg[0, ::2], neg[1] = -math.inf, -math.inf
    if definition.loss in ("psl_tanh", "bsl"):
        neg[1] = 0.0  # a row without negatives has the value -inf by its definition
    check(function, definition, pos, neg.requires_grad_(), None, "none")
    assert torch.isfinite(function(pos, neg))


def test_nan_beside_minus_infinity_is_nan():
    neg = torch.full((2, 40), -math.inf)
    neg[:, 17] = math.nan
    for name, (function, _) in ROW.items():
        assert function(torch.zeros(2), neg).isnan(), name


def test_float16_derivatives_are_scaled_before_they_are_rounded():
    """Of a mean over 65 536 the derivatives are below float16's numbers; a loss scale is there to save them."""
    pos, neg = torch.full((65536,), 9.0, dtype=torch.float16), torch.zeros(65536, dtype=torch.float16)
    for weight in (None, torch.ones(65536)):
        p = pos.clone().requires_grad_()
        (zx.bpr_loss(p, neg, sample_weight=weight) * 65536.0).backward()
        torch.testing.assert_close(p.grad.float(), -torch.sigmoid(neg.float() - pos.float()), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("name", [*PAIR, *ROW, *QUAD])
def test_gradcheck_and_double_backward(name, reduction):
    function, _ = (PAIR | ROW | QUAD)[name]
    shape = (4, 2) if name in QUAD else (4,)
    pos, neg = scores(shape, torch.float64, scale=1.0), scores((4, 2), torch.float64, seed=1, scale=1.0)
    call = partial(function, reduction=reduction)
    assert torch.autograd.gradcheck(call, (pos, neg))
    assert torch.autograd.gradgradcheck(call, (pos, neg))


@pytest.mark.parametrize("constant", [0, 1])
@pytest.mark.parametrize("name", [*PAIR, *ROW, *QUAD])
def test_double_backward_where_one_score_is_a_constant(name, constant):
    function, _ = (PAIR | ROW | QUAD)[name]
    shapes = ((4, 2), (4, 2)) if name in QUAD else ((4,), (4, 3))
    given = [scores(s, torch.float64, seed=i).detach() for i, s in enumerate(shapes)]
    free = given[1 - constant].requires_grad_()

    def with_constant(x):
        return function(*((x, given[1]) if constant else (given[0], x)))

    assert torch.autograd.gradcheck(with_constant, free)
    assert torch.autograd.gradgradcheck(with_constant, free)


@pytest.mark.parametrize("name", [*PAIR, *ROW, *QUAD])
def test_forward_mode(name):
    function, _ = (PAIR | ROW | QUAD)[name]
    shapes = ((4, 2), (4, 2)) if name in QUAD else ((4,), (4, 3))
    pos, neg = (scores(s, torch.float64, seed=i) for i, s in enumerate(shapes))
    assert torch.autograd.gradcheck(function, (pos, neg), check_forward_ad=True)
    _, tangent = torch.func.linearize(function, pos.detach(), neg.detach())
    want = sum(
        (g * t).sum() for g, t in zip(torch.autograd.grad(function(pos, neg), (pos, neg)), (pos, neg), strict=True)
    )
    torch.testing.assert_close(tangent(pos.detach(), neg.detach()), want)


def test_double_backward_where_one_score_comes_from_the_other():
    x = scores((5,), torch.float64)

    def function(x):
        return zx.zerosum_loss(x * 1.0, (x * 1.0) * 2)

    assert torch.autograd.gradgradcheck(function, (x,))


@pytest.mark.parametrize("name", ["ipw", "pd", "macr"])
def test_methods_the_paper_compares_with(name):
    pos, neg = scores((6,), torch.float64), scores((6, 3), torch.float64, seed=1)
    pop_pos, pop_neg = torch.arange(1.0, 7.0), torch.arange(1.0, 19.0).reshape(6, 3)
    if name == "ipw":
        call = partial(zx.ipw_loss, pos_popularity=pop_pos, neg_popularity=pop_neg, clip=2.0)
        weights = zx.ipw_weights(torch.cat([pop_pos, pop_neg.reshape(-1)]), 2.0)
        expected = reference.LOSSES["ipw"](
            pos.unsqueeze(1), neg, weights[:6, None], weights[6:].reshape(6, 3), Kernel("ipw")
        ).mean()
    elif name == "pd":
        call = partial(zx.pd_loss, pos_popularity=pop_pos, neg_popularity=pop_neg, gamma=0.25)
        expected = reference.LOSSES["pd"](
            pos.unsqueeze(1), neg, pop_pos.double()[:, None] ** 0.25, pop_neg.double() ** 0.25, Kernel("pd")
        )
        expected = expected.mean()
    else:
        user, item, others = (scores(s, torch.float64, seed=7) for s in ((6,), (6,), (6, 3)))
        call = partial(zx.macr_loss, user_branch=user, pos_branch=item, neg_branch=others, alpha=0.5, beta=0.25)
        s = torch.sigmoid
        q_pos, q_neg = s(pos) * s(user) * s(item), s(neg) * s(user)[:, None] * s(others)
        expected = (
            -q_pos.log()[:, None]
            - (1 - q_neg).log()
            - 0.5 * (s(item).log()[:, None] + (1 - s(others)).log())
            - 0.25 * (s(user).log() + (1 - s(user)).log())[:, None]
        ).mean()
    torch.testing.assert_close(call(pos, neg), expected)
    assert torch.autograd.gradcheck(call, (pos, neg))
    assert torch.autograd.gradgradcheck(call, (pos, neg))


def test_many_gradients_at_once():
    pos, neg = scores((4,)), scores((4,), seed=1)
    value = zx.bpr_loss(pos, neg)
    upstream = torch.tensor([1.0, -2.0, 0.5])
    got = torch.autograd.grad(value, (pos, neg), upstream, is_grads_batched=True, retain_graph=True)
    one = torch.autograd.grad(value, (pos, neg))
    for many, g in zip(got, one, strict=True):
        torch.testing.assert_close(many, upstream[:, None] * g)


def test_the_graph_can_be_used_again():
    pos, neg = scores((4,)), scores((4,), seed=1)
    value = zx.zerosum_loss(pos, neg, reduction="sum")
    first = torch.autograd.grad(value, (pos, neg), torch.tensor(3.0), retain_graph=True)
    value.backward(retain_graph=True)
    pos.grad.mul_(7)
    value.backward()
    torch.testing.assert_close(pos.grad, first[0] / 3 * 8)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


@pytest.mark.parametrize("weight", [None, torch.ones(4)])
def test_what_is_done_to_gradients_does_not_reach_a_graph_that_is_kept(weight):
    leaf = scores((8,))
    value = zx.bpr_loss(leaf[:4], leaf[4:], sample_weight=weight)
    (first,) = torch.autograd.grad(value, leaf, retain_graph=True)
    expected = first.clone()
    first.mul_(5)
    leaf.register_hook(lambda g: g.mul_(1))
    value.backward(retain_graph=True)
    leaf.grad.data.zero_()
    value.backward(retain_graph=True)
    torch.testing.assert_close(leaf.grad, expected)
    value.backward()
    torch.testing.assert_close(leaf.grad, 2 * expected)


def test_scores_that_are_changed_in_place_are_noticed():
    pos, neg = scores((4,)), scores((4,), seed=1)
    other = pos * 1.0
    value = zx.bpr_loss(other, neg)
    other.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_compile_is_one_graph_and_func_transforms_work():
    pos, neg = scores((33,)), scores((33,), seed=1)
    exported = torch.export.export(zx.ZerosumLoss(w=0.9), (pos.detach(), neg.detach()))
    torch.testing.assert_close(exported.module()(pos.detach(), neg.detach()), zx.zerosum_loss(pos, neg, w=0.9).detach())
    compiled = torch.compile(zx.zerosum_loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(pos, neg), (pos, neg))
    want = torch.autograd.grad(zx.zerosum_loss(pos, neg), (pos, neg))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.func.grad(zx.zerosum_loss)(pos.detach(), neg.detach()), want[0])
    batched = torch.func.vmap(zx.bpr_loss)(pos.detach().reshape(3, 11), neg.detach().reshape(3, 11))
    assert batched.shape == (3,)


@pytest.mark.parametrize("custom", [False, True])
def test_transforms_within_compile(custom):
    """Traced, a kernel would hide its derivatives from torch.func: they would be 0."""
    loss = zx.bpr_loss
    if custom:
        loss = zx.CustomLoss(
            lambda p, n: reference.softplus(n - p), lambda p, n: (-torch.sigmoid(n - p), torch.sigmoid(n - p))
        )
    pos, neg = scores((3,)), scores((3,), seed=1)
    (want,) = torch.autograd.grad(loss(pos, neg), pos)
    p, n = pos.detach(), neg.detach()
    grad = torch.compile(torch.func.grad(loss), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(grad(p, n), want)
    tangent = torch.compile(
        lambda p, n, t: torch.func.jvp(lambda x: loss(x, n), (p,), (t,))[1], fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(tangent(p, n, p), (want * p).sum())


@pytest.mark.parametrize("make", [zx.ZerosumLoss, zx.SampledSoftmaxLoss, partial(zx.BSLLoss, 0.5, 0.25)])
def test_compile_with_numbers_that_change(make):
    loss, pos = make(), scores((4,)).detach()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for k in (2, 3, 5):
        neg = scores((4, k), seed=1).detach()
        torch.testing.assert_close(compiled(pos, neg), loss(pos, neg))
    if make is zx.ZerosumLoss:
        annealed = zx.ZerosumLoss(w=0.9)
        compiled = torch.compile(annealed, fullgraph=True, backend="aot_eager")
        for annealed.w in (0.9, 0.8, 0.7, 0.6):
            torch.testing.assert_close(compiled(pos, neg), zx.zerosum_loss(pos, neg, w=annealed.w))


def test_constants_of_negatives_that_all_rows_share():
    pos, neg, q = scores((4,)), scores((4, 4), seed=1), torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    want = zx.sampled_softmax_loss(pos, neg, log_q_neg=q.expand(4, 4).contiguous())
    torch.testing.assert_close(zx.sampled_softmax_loss(pos, neg, log_q_neg=q), want)
    with pytest.raises(ValueError, match=r"neg_popularity: expected shape \(4, 4\), got"):
        zx.ipw_loss(pos, neg, pos_popularity=q.exp(), neg_popularity=q.exp())
    with pytest.raises(TypeError, match=r"log_q_neg: expected a torch.Tensor, got list"):
        zx.sampled_softmax_loss(pos, neg, log_q_neg=[0.1])


def test_numbers_of_numpy_are_numbers():
    pos, neg = scores((4,)), scores((4,), seed=1)
    assert zx.zerosum_loss(pos, neg, w=np.float32(0.5)) == zx.zerosum_loss(pos, neg, w=0.5)
    assert zx.zerosum_loss(pos, neg, reg_weight=np.int64(2)) == zx.zerosum_loss(pos, neg, reg_weight=2)


@pytest.mark.parametrize(
    "derivative", [lambda p, n: (p, n[:, :1]), lambda p, n: (p,), lambda p, n: p, lambda p, n: (p, None)]
)
def test_a_custom_derivative_of_another_shape_is_refused(derivative):
    pos, neg = scores((4,)), scores((4, 3), seed=1)
    value = zx.CustomLoss(lambda p, n: n - p, derivative)(pos, neg)
    with pytest.raises(ValueError, match=r"derivative: expected a function that returns two tensors of shape \(4, 3\)"):
        value.backward()
    with pytest.raises(ValueError, match=r"value: expected a function that returns shape"):
        zx.CustomLoss(lambda p, n: 1.0, derivative)(pos, neg)


@pytest.mark.threads
@pytest.mark.skipif(not zx.build_info()["cpu"]["loaded"], reason="plain PyTorch does not promise it")
def test_same_bits_for_any_number_of_threads():
    pos, neg = scores((200_000,)), scores((200_000,), seed=1)
    results = []
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            value = zx.zerosum_loss(pos, neg)
            results.append((value.detach(), *torch.autograd.grad(value, (pos, neg))))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_custom_loss_equals_the_fused_one():
    custom = zx.CustomLoss(
        value=lambda p, n: reference.softplus(n - p),
        derivative=lambda p, n: (-torch.sigmoid(n - p), torch.sigmoid(n - p)),
    )
    pos, neg = scores((5,), torch.float64), scores((5, 3), torch.float64, seed=1)
    torch.testing.assert_close(custom(pos, neg), zx.bpr_loss(pos, neg))
    assert torch.autograd.gradcheck(custom, (pos, neg))
    assert torch.autograd.gradgradcheck(custom, (pos, neg))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p, n: zx.bpr_loss(p, n[:2]), ValueError, "neg: expected"),
        (lambda p, n: zx.bpr_loss(p.long(), n), TypeError, "pos: expected a floating"),
        (lambda p, n: zx.bpr_loss([1.0], n), TypeError, "pos: expected a torch.Tensor"),
        (lambda p, n: zx.bpr_loss(p, n, reduction="max"), ValueError, "reduction: expected one of"),
        (lambda p, n: zx.bpr_loss(p, n, sample_weight=p[:1]), ValueError, "sample_weight: expected shape"),
        (lambda p, n: zx.zerosum_loss(p, n, w=1.5), ValueError, r"w: expected a number in \[0, 1\], got 1.5"),
        (lambda p, n: zx.zerosum_loss(p, n, w=0.5, reg_weight=2.0), ValueError, "not both"),
        (lambda p, n: zx.pos2neg2_loss(p, n), ValueError, r"pos: expected two scores.*\[B, 2\], as of .*positives=2"),
        (lambda p, n: zx.psl_loss(p, n, temperature=0.0), ValueError, "temperature: expected a number > 0"),
        (lambda p, n: zx.bpr_loss(p, n.to("meta")), ValueError, "neg: expected a tensor on cpu"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(3), torch.zeros(3))
