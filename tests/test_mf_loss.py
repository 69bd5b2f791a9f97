"""mf_loss against its definition: every loss, dtype and shape, dense and sparse gradients, and what is refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import zerosum_ext as zx
from zerosum_ext import _ops, reference
from zerosum_ext.testing import loss_cases

compiled = pytest.mark.skipif(not _ops.has_op("mf_loss", torch.device("cpu")), reason="no compiled kernels")
COUNTS = torch.arange(1, 41)


def modules(scores):
    """Modules of all losses of these scores, by the names of their cases."""
    made = {}
    for case in loss_cases():
        options = dict(case.options)
        if case.constants:
            constants = zx.losses.RECORDS[case.loss].constants
            options[constants.items] = (COUNTS / COUNTS.sum()).log() if constants.items == "log_q" else COUNTS
        if case.scores == scores:
            made[case.name] = partial(zx.get_loss, case.loss, **options)
    return made


PAIR, ROW, QUAD = modules("pair"), modules("row"), modules("quad")
LOSSES = PAIR | ROW | QUAD
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def tables(dtype=torch.float64, dim=20, num_users=30, num_items=40, scale=0.5):
    generator = torch.Generator().manual_seed(5)

    def table(*shape):
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype).requires_grad_()

    return table(num_users, dim), table(num_items, dim), table(num_items)


def samples(name, rows=50, k=3, num_users=30, num_items=40):
    generator = torch.Generator().manual_seed(6)
    ids = [torch.randint(0, size, (rows, 4 + k), generator=generator) for size in (num_users, num_items)]
    if name in QUAD:
        return ids[0][:, 0], ids[1][:, :2], ids[1][:, 2:4]
    return ids[0][:, 0], ids[1][:, 0], ids[1][:, 1] if k == 0 else ids[1][:, 1 : 1 + k]


def definition(leaves, ids, module, l2, weight, reduction):
    """Value and gradients in float64."""
    constants = module.item_constants()
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    value = reference.mf_loss_value(
        *doubles,
        *ids,
        None if constants is None else constants.double(),
        None if weight is None else weight.double(),
        module.kernel(),
        l2,
        reduction,
    )
    return value, doubles


def check(name, dtype=torch.float64, *, k=3, rows=50, dim=20, l2=0.3, reduction="mean", weight=None, sparse=False):
    leaves, ids = tables(dtype, dim), samples(name, rows, k)
    module = LOSSES[name](reduction=reduction)
    value = zx.mf_loss(*leaves[:2], *ids, loss=module, item_bias=leaves[2], l2=l2, sample_weight=weight, sparse=sparse)
    expected, doubles = definition(leaves, ids, module, l2, weight, reduction)
    assert value.shape == expected.shape
    assert value.dtype == (dtype if reduction == "none" else reference.compute_dtype(dtype))
    generator = torch.Generator().manual_seed(7)
    upstream = torch.randn(value.shape, generator=generator).to(value.dtype)
    got = torch.autograd.grad(value, leaves, upstream)
    want = torch.autograd.grad(expected, doubles, upstream.double())
    for x, y in zip((value, *got), (expected, *want), strict=True):
        if x.is_sparse:
            assert x.is_coalesced()
            rows_of = x.indices()[0]
            assert bool((rows_of.diff() > 0).all())
            x = x.to_dense()
        assert x.shape == y.shape
        tolerance = TOLERANCE[dtype] * max(1.0, float(y.detach().abs().max())) if y.numel() else 0.0
        torch.testing.assert_close(x.double(), y, rtol=TOLERANCE[dtype], atol=tolerance)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradients_of_every_loss(name, dtype, sparse):
    check(name, dtype, sparse=sparse)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("name", LOSSES)
def test_reductions_and_weights(name, reduction):
    weight = torch.rand(50, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    l2 = 0.0 if reduction == "none" else 0.2
    check(name, reduction=reduction, weight=weight, l2=l2)
    if name in PAIR:
        pairs = torch.rand(50, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
        check(name, reduction=reduction, weight=pairs, l2=l2)


@pytest.mark.parametrize("dim", [1, 7, 16, 48, 64, 100, 129])
@pytest.mark.parametrize("name", ["zerosum", "bsl", "pos2neg2"])
def test_widths(name, dim):
    check(name, dim=dim)
    check(name, torch.float32, dim=dim)


@pytest.mark.parametrize(
    ("name", "k", "rows"), [("zerosum", 0, 700), ("zerosum", 1, 5), ("bpr", 600, 9), ("bsl", 600, 9)]
)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_numbers_of_negatives(name, k, rows, reduction):
    check(name, k=k, rows=rows, reduction=reduction, l2=0.0)


@pytest.mark.parametrize("sparse", [False, True])
def test_equals_the_composition_of_model_and_loss(sparse):
    """The value that MatrixFactorization, a loss module and l2_penalty give together."""
    model = zx.MatrixFactorization(30, 40, 16, item_bias=True, seed=1, init_std=0.5, sparse=sparse)
    users, positives, negatives = samples("zerosum", k=0)
    loss = zx.ZerosumLoss(w=0.9)
    items = torch.stack([positives, negatives], 1)
    scores = model(users, items)
    expected = loss(scores[:, 0], scores[:, 1]) + 0.2 * model.l2_penalty(users, items)
    value = zx.mf_loss(
        model.user_embedding,
        model.item_embedding,
        users,
        positives,
        negatives,
        loss=loss,
        item_bias=model.item_bias,
        l2=0.2,
        sparse=sparse,
    )
    torch.testing.assert_close(value, expected)
    want = torch.autograd.grad(expected, list(model.parameters()))
    got = torch.autograd.grad(value, list(model.parameters()))
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x.to_dense(), y.to_dense())


@pytest.mark.parametrize("name", ["bpr", "zerosum", "pos2neg2", "sampled_softmax"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradcheck_to_second_order(name, reduction):
    leaves, ids = tables(dim=2, num_users=3, num_items=4), samples(name, 4, 2, 3, 4)
    module = LOSSES[name](reduction=reduction)

    def function(user, item, bias):
        l2 = 0.0 if reduction == "none" else 0.1
        return zx.mf_loss(user, item, *ids, loss=module, item_bias=bias, l2=l2)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_a_second_derivative_is_that_of_the_definition_also_with_sparse_gradients():
    leaves, ids = tables()[:2], samples("zerosum")
    module = zx.ZerosumLoss()
    results = []
    for value in (
        zx.mf_loss(*leaves, *ids, loss=module, sparse=True),
        reference.mf_loss_value(*leaves, None, *ids, None, None, module.kernel(), 0.0, "mean"),
    ):
        first = torch.autograd.grad(value, leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for x, y in zip(*results, strict=True):
        assert float(y.abs().max()) > 0
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("frozen", [0, 1, 2])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_frozen_table_has_no_gradient_and_changes_no_other(frozen, sparse):
    leaves, ids = tables(), samples("zerosum")
    zx.mf_loss(*leaves[:2], *ids, item_bias=leaves[2], l2=0.1, sparse=sparse).backward()
    expected = [t.grad.to_dense() for t in leaves]
    for t in leaves:
        t.grad = None
    leaves[frozen].requires_grad_(False)
    zx.mf_loss(*leaves[:2], *ids, item_bias=leaves[2], l2=0.1, sparse=sparse).backward()
    for i, t in enumerate(leaves):
        assert (t.grad is None) == (i == frozen)
        if i != frozen:
            assert torch.equal(t.grad.to_dense(), expected[i])


@pytest.mark.threads
@compiled
@pytest.mark.parametrize("sparse", [False, True])
def test_the_same_bits_for_any_number_of_threads(sparse):
    leaves = tables(torch.float32, 33, 3000, 500)
    ids = samples("zerosum", 20000, 2, 3000, 500)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            value = zx.mf_loss(*leaves[:2], *ids, item_bias=leaves[2], l2=0.1, sparse=sparse)
            results.append([value, *(g.to_dense() for g in torch.autograd.grad(value, leaves))])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert torch.equal(x, y)


def test_empty_batches():
    leaves = tables()
    none = torch.empty(0, dtype=torch.int64)
    for sparse in (False, True):
        value = zx.mf_loss(*leaves[:2], none, none, none, item_bias=leaves[2], l2=0.1, sparse=sparse)
        assert value.item() == 0.0
        for g, t in zip(torch.autograd.grad(value, leaves), leaves, strict=True):
            assert g.shape == t.shape
            assert g.to_dense().count_nonzero() == 0
    assert zx.mf_loss(*leaves[:2], none, none, none, reduction="none").shape == (0,)
    users = torch.zeros(3, dtype=torch.int64)
    assert zx.mf_loss(*leaves[:2], users, users, users.reshape(3, 1)[:, :0]).item() == 0.0
    with pytest.raises(ValueError, match="K >= 1"):
        zx.mf_loss(*leaves[:2], users, users, users.reshape(3, 1)[:, :0], loss="hardest")


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("users", 30, "users: expected numbers from 0 to 29, got 30 at position 2"),
        ("users", -1, "users: expected numbers from 0 to 29, got -1 at position 2"),
        ("positives", 40, "positives: expected numbers from 0 to 39, got 40 at position 2"),
        ("negatives", 1 << 40, "negatives: expected numbers from 0 to 39, got 1099511627776 at position 6"),
    ],
)
def test_ids_out_of_range_are_named(monkeypatch, kernels, argument, value, message):
    if not kernels:
        monkeypatch.setitem(_ops.KERNELS, "cpu", frozenset())
    leaves = tables()
    ids = dict(zip(("users", "positives", "negatives"), samples("zerosum"), strict=True))
    ids[argument] = ids[argument].clone()
    ids[argument].reshape(50, -1)[2, 0] = value
    for call in (leaves, [t.detach() for t in leaves]):
        with pytest.raises(ValueError, match=message):
            zx.mf_loss(*call[:2], **ids)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"users": torch.zeros(50)}, TypeError, "users: expected an int32 or int64 tensor"),
        ({"users": torch.zeros(50, 1, dtype=torch.int64)}, ValueError, r"users: expected shape \[B\]"),
        ({"positives": torch.zeros(49, dtype=torch.int64)}, ValueError, r"positives: expected shape \(50,\)"),
        ({"negatives": torch.zeros(49, 2, dtype=torch.int64)}, ValueError, r"negatives: expected shape \(50,\)"),
        ({"loss": "pos2neg2"}, ValueError, r"positives: expected two items of each user, \(50, 2\)"),
        ({"loss": "nothing"}, ValueError, "loss: expected one of 'bpr'"),
        ({"loss": 3}, TypeError, "loss: expected a name or an nn.Module"),
        ({"loss": "ipw"}, ValueError, "popularity"),
        ({"loss": zx.IPWLoss(torch.ones(39))}, ValueError, "loss: expected constants of 40 items"),
        ({"l2": -1.0}, ValueError, "l2: expected a number >= 0"),
        ({"l2": 1.0, "reduction": "none"}, ValueError, "l2: expected 0 with reduction 'none'"),
        ({"reduction": "average"}, ValueError, "reduction: expected one of"),
        ({"loss": zx.BPRLoss(), "reduction": "sum"}, ValueError, "reduction: expected 'mean', that of the loss module"),
        ({"item_bias": torch.zeros(39)}, ValueError, r"item_bias: expected shape \(40,\)"),
        ({"item_bias": torch.zeros(40)}, ValueError, "item_bias: expected torch.float64"),
        ({"item_embedding": torch.zeros(40, 19)}, ValueError, "item_embedding: expected 20 columns"),
        ({"user_embedding": torch.zeros(20)}, ValueError, r"user_embedding: expected shape \[rows, d\]"),
        ({"item_embedding": torch.zeros(40, 20, dtype=torch.int64)}, TypeError, "item_embedding: expected a floating"),
        ({"sample_weight": torch.zeros(49)}, ValueError, r"sample_weight: expected shape \(50,\) or \(50, 3\)"),
        (
            {"loss": "hardest", "sample_weight": torch.zeros(50, 3)},
            ValueError,
            r"sample_weight: expected shape \(50,\)",
        ),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = dict(zip(("user_embedding", "item_embedding"), tables()[:2], strict=True))
    arguments |= dict(zip(("users", "positives", "negatives"), samples("zerosum"), strict=True)) | change
    with pytest.raises(error, match=message):
        zx.mf_loss(**arguments)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", ["zerosum", "ipw", "hardest", "pos2neg2"])
def test_without_kernels_the_definition_computes_it(monkeypatch, name, sparse):
    monkeypatch.setitem(_ops.KERNELS, "cpu", frozenset())
    leaves, ids, module = tables(), samples(name), LOSSES[name]()
    value = zx.mf_loss(*leaves[:2], *ids, loss=module, item_bias=leaves[2], l2=0.3, sparse=sparse)
    expected, doubles = definition(leaves, ids, module, 0.3, None, "mean")
    assert torch.equal(value, expected)
    for t, g in zip(leaves, torch.autograd.grad(value, leaves), strict=True):
        assert g.is_sparse == sparse
        assert g.shape == t.shape
    assert len(doubles) == 3


class Hinge(nn.Module):
    def forward(self, pos, neg):
        return torch.relu(1 - (pos - neg)).mean()


class Doubled(zx.BPRLoss):
    def forward(self, pos, neg, sample_weight=None):
        return 2 * super().forward(pos, neg, sample_weight)


def test_modules_of_ones_own_are_called():
    (user, item, _), (users, positives, negatives) = tables(), samples("zerosum", k=0)
    scores = [(user[users] * item[items]).sum(-1) for items in (positives, negatives)]
    plain = zx.mf_loss(user, item, users, positives, negatives, loss=Hinge())
    torch.testing.assert_close(plain, torch.relu(1 - (scores[0] - scores[1])).mean())
    doubled = zx.mf_loss(user, item, users, positives, negatives, loss=Doubled())
    torch.testing.assert_close(doubled, 2 * zx.bpr_loss(*scores))
    hooked, seen = zx.BPRLoss(), []
    hooked.register_forward_hook(lambda *_: seen.append(1))
    zx.mf_loss(user, item, users, positives, negatives, loss=hooked)
    assert seen == [1]
    shared = zx.mf_loss(user, item, *samples("pos2"), loss=zx.Pos2Loss(shared=True))
    assert shared.isfinite()


def test_other_layouts_and_integer_types():
    leaves, ids = tables(), samples("zerosum")
    expected = zx.mf_loss(*leaves[:2], *ids)
    transposed = [t.detach().t().contiguous().t().requires_grad_() for t in leaves[:2]]
    assert torch.equal(zx.mf_loss(*transposed, *(t.int() for t in ids)), expected)
    got = torch.autograd.grad(zx.mf_loss(*transposed, *ids), transposed)
    for x, y in zip(got, torch.autograd.grad(expected, leaves[:2]), strict=True):
        assert torch.equal(x, y)


def test_transforms_differentiate_the_definition():
    (user, item, _), ids = tables(), samples("zerosum")
    function = torch.func.grad(lambda u: zx.mf_loss(u, item, *ids))
    expected = torch.autograd.grad(zx.mf_loss(user, item, *ids), user)[0]
    torch.testing.assert_close(function(user), expected)


@compiled
def test_the_ops_keep_their_schemas_and_fakes():
    leaves, ids = [t.detach() for t in tables(torch.float32)], [t.contiguous() for t in samples("zerosum")]
    loss = _ops.LOSS_IDS["zerosum"]
    arguments = (*leaves, *ids, None, None, loss, 1.0, 1.0, 0.0, 0.1, 2, True)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.zerosum_ext.mf_loss.default, arguments, test_utils=checks)
    coefficient = _ops.mf_loss(*leaves, *ids, None, None, reference.Kernel("zerosum", 1.0, 1.0), 0.1, "mean", True)[1]
    for sparse in (False, True):
        arguments = (*leaves[:2], *ids, coefficient, torch.ones(()), 0.1, True, True, True, sparse)
        torch.library.opcheck(torch.ops.zerosum_ext.mf_gradient.default, arguments, test_utils=checks)


@compiled
def test_compiles_without_graph_breaks():
    leaves, ids = tables(torch.float32), samples("zerosum")

    def step(user, item, bias):
        return zx.mf_loss(user, item, *ids, item_bias=bias, l2=0.1) * 2

    expected = step(*leaves)
    value = torch.compile(step, fullgraph=True, backend="aot_eager")(*leaves)
    torch.testing.assert_close(value, expected)
    for x, y in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(x, y)
