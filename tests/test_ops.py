"""What torch asks of every op: that it does what its schema says, and that its fake kernel foretells shapes and dtypes.

opcheck's other two checks are for ops that take part in autograd: tests/test_losses_torch.py has them of the losses.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import zerosum_ext as zx
from zerosum_ext import _library as _extension
from zerosum_ext import _ops, reference

pytestmark = pytest.mark.skipif(not zx.build_info()["cpu"]["loaded"], reason="needs the compiled CPU kernels")

USERS, ITEMS, DIM = 7, 11, 5
ids = torch.tensor
CONSTANTS = ("ipw", "pd", "sampled_softmax", "refined_softmax")  # what losses may take beside each item


def tables(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(  # type: ignore[return-value]
        torch.randn(s, generator=generator, dtype=dtype) for s in ((USERS, DIM), (ITEMS, DIM), (ITEMS,))
    )


def matrix() -> zx.Interactions:
    return zx.Interactions.from_arrays([0, 0, 1, 1, 1, 4, 6, 6], [1, 2, 0, 5, 10, 3, 7, 8], shape=(USERS, ITEMS))


def loss_arguments() -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(1)
    for name, number in _ops.LOSS_IDS.items():
        for k in (0, 3):
            many = (4, k) if k else (4,)
            if (name == "pos2neg2" and k) or (reference.SHAPES[name] == "row" and not k):
                continue
            if name == "pos2neg2":
                many = (4, 2)
            pos = torch.randn((4, 2) if name == "pos2neg2" else (4,), generator=generator)
            neg, weight = torch.randn(many, generator=generator), torch.rand(4)
            constants = (torch.rand(4), torch.rand(many)) if name in ("ipw", "pd", "sampled_softmax") else (None, None)
            for reduction in range(3):
                for grad in (False, True):
                    yield pos, neg, *constants, weight, number, 1.0, 0.5, 0.25, reduction, grad


def macr_arguments() -> Iterator[tuple[Any, ...]]:
    one, many = torch.randn(4), torch.randn(4, 3)
    for reduction in range(3):
        for grad in (False, True):
            yield one, many, one, one + 1, many + 1, torch.rand(4), 0.3, 0.7, reduction, grad


def samples() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return ids([0, 3, 6, 3]), ids([1, 0, 10, 2]), ids([[2, 3], [4, 4], [9, 0], [1, 5]])


def mf_loss_arguments() -> Iterator[tuple[Any, ...]]:
    zerosum = _ops.LOSS_IDS["zerosum"]
    for dtype in (torch.float32, torch.float64):
        for reduction in range(3):
            for grad in (False, True):
                yield (
                    *tables(dtype),
                    *samples(),
                    None,
                    None,
                    zerosum,
                    1.0,
                    1.0,
                    0.0,
                    0.1 * (reduction > 0),
                    reduction,
                    grad,
                )
    constants = torch.rand(ITEMS)
    yield *tables(), *samples(), constants, torch.rand(4), _ops.LOSS_IDS["ipw"], 1.0, 1.0, 0.0, 0.0, 2, True


def mf_gradient_arguments() -> Iterator[tuple[Any, ...]]:
    coefficient = torch.randn(4, 3)
    for sparse in (False, True):
        for wanted in ((True, True, True), (False, True, False), (True, False, False)):
            yield *tables()[:2], *samples(), coefficient, torch.ones(()), 0.1, *wanted, sparse
    yield *tables()[:2], *samples(), coefficient, torch.ones(()), 0.1, True, True, True, True, True, True


def mf_step_arguments() -> Iterator[tuple[Any, ...]]:
    user, item, bias = tables()
    losses = _ops.LOSS_IDS["zerosum"], 1.0, 1.0, 0.0, 0.1, 0.0, 2
    nothing = (None,) * 6
    settings = torch.tensor([[1.0, 0.1, 0.9, 0.999, 1e-8, 1.0]] * 3, dtype=torch.float64)
    yield user, item, bias, *nothing, *samples(), None, settings, *nothing, None, 0, *losses
    states = tuple(torch.zeros_like(t) for t in (user, user, item, item, bias, bias))
    numbers = tuple(torch.tensor(v, dtype=torch.float64) for v in (0.1, 2.0) * 3)
    total = torch.zeros((), dtype=torch.float64)
    for optimizer in (1, 2, 3):
        yield user, item, bias, *states, *samples(), None, settings, *numbers, total, optimizer, *losses
    weight = torch.arange(samples()[0].numel(), dtype=torch.float32)
    yield user, item, bias, *nothing, *samples(), None, settings, *nothing, None, 0, *losses, weight, True
    held = torch.tensor([[False, True], [False, False], [True, True], [False, False]])
    shared = ids([[1, 2], [7, 8], [0, 5]]), ids([1]), held, ids([0, 0, 1, 1]), 3
    yield user, item, bias, *nothing, *samples(), None, settings, *nothing, None, 0, *losses, None, False, *shared


def mf_train_arguments() -> Iterator[tuple[Any, ...]]:
    user, item, bias = tables()
    zerosum = _ops.LOSS_IDS["zerosum"]
    settings = torch.tensor([[1.0, 0.1, 0.0, 0.0, 0.0, 1.0]] * 3, dtype=torch.float64)
    plain = (*samples(), None, settings, 0, zerosum, 1.0, 1.0, 0.0, 0.1, 0.0, 2)
    for asynchronous in (False, True):
        for normalize in (False, True):
            yield user, item, bias, *(None,) * 6, *plain, 3, asynchronous, normalize
    states = tuple(torch.zeros_like(t) for t in (user, user, item, item, bias, bias))
    settings = torch.tensor([[1.0, 0.1, 0.9, 0.999, 1e-8, 1.0]] * 3, dtype=torch.float64)
    yield user, item, bias, *states, *samples(), None, settings, 2, zerosum, 1.0, 1.0, 0.0, 0.1, 0.0, 2, 3, False


def mf_train_sampled_arguments() -> Iterator[tuple[Any, ...]]:
    x = matrix()
    user, item, bias = tables()
    settings = torch.tensor([[1.0, 0.1, 0.0, 0.0, 0.0, 1.0]] * 3, dtype=torch.float64)
    zerosum = _ops.LOSS_IDS["zerosum"]
    for filter in (None, _ops.row_filter(x.indptr, x.indices, ITEMS)):
        positives = (x.indptr, x.indices, ids([0]), 20, None, None, 1, x.nnz, x.nnz, 1, 6, 1)
        negatives = (x.indptr, x.indices, filter, None, None, ITEMS, 2, 0, 0, True)
        plain = (None, settings, 0, zerosum, 1.0, 1.0, 0.0, 0.1, 0.0, 2, 4)
        for asynchronous in (False, True):
            for shared, normalize in ((0, False), (0, True), (3, False), (3, True)):
                yield user, item, bias, *(None,) * 6, *positives, *negatives, shared, *plain, asynchronous, normalize
    weights = torch.arange(x.nnz, dtype=torch.float32)
    yield user, item, bias, *(None,) * 6, *positives, *negatives, 0, *plain, False, False, weights


def fold_in_arguments() -> Iterator[tuple[Any, ...]]:
    indptr = ids([0, 2, 2, 4])
    rest = (1.0, 0.5, 0.5, 0.02, 0.1, 1e-4, 20)
    for dtype in (torch.float32, torch.float64):
        _, item, bias = tables(dtype)
        for name, number in _ops.LOSS_IDS.items():
            kink = 0.02 if name in ("zerosum", "pos2neg2") else 0.0
            known = torch.rand(ITEMS, dtype=dtype) + 0.1
            constants = (-known if "softmax" in name else known) if name in CONSTANTS else None
            positives = ids([[1, 2], [0, 3], [10, 1], [2, 5]]) if name == "pos2neg2" else samples()[1]
            given = item, bias, indptr, positives, samples()[2], constants
            yield *given, number, *rest[:3], kink, *rest[4:]
        yield item, None, indptr, samples()[1], samples()[2][:, 0].contiguous(), None, 0, *rest[:3], 0.0, *rest[4:]


def sample_negatives_arguments() -> Iterator[tuple[Any, ...]]:
    x = matrix()
    bits = _ops.row_filter(x.indptr, x.indices, ITEMS)
    for filter in (None, bits):
        for replacement in (False, True):
            yield ids([0, 1, 5]), x.indptr, x.indices, filter, None, None, ITEMS, 2, 0, 0, 0, replacement
    yield ids([0, 1]), x.indptr, x.indices, bits, None, None, ITEMS, 2, 0, 0, 0, True, ids([3, 1, 0])
    yield ids([0, 1]), x.indptr, x.indices, bits, None, ids([2, 3, 5]), ITEMS, 2, 0, 0, 0, True, None, *nothing_summed()


def nothing_summed() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)


def sample_negatives_at_arguments() -> Iterator[tuple[Any, ...]]:
    x = matrix()
    for filter in (None, _ops.row_filter(x.indptr, x.indices, ITEMS)):
        for replacement in (False, True):
            yield (
                ids([0, 1, 5]),
                ids([7, 1 << 40, 3]),
                x.indptr,
                x.indices,
                filter,
                None,
                None,
                ITEMS,
                2,
                0,
                0,
                replacement,
            )
    given = (ids([0, 1]), ids([9, 4]), x.indptr, x.indices, None, None, ids([2, 3, 5]), ITEMS, 2, 0, 0, True)
    yield *given, ids([3, 1, 0]), *nothing_summed()


def unshuffle_arguments() -> Iterator[tuple[Any, ...]]:
    yield ids([0, 6, 3]), 7, 3, 1
    yield ids([0, 6, 3]), 7, 0, 0, ids([3, 1, 0])


def sample_positives_arguments() -> Iterator[tuple[Any, ...]]:
    x = matrix()
    for positives in (1, 2):
        yield x.indptr, x.indices, ids([0]), 20, None, None, 1, x.nnz, x.nnz, 0, 6, positives, 0, 0


def scale_gradients_arguments() -> Iterator[tuple[Any, ...]]:
    for dtype in (torch.float32, torch.float64):
        yield [torch.ones(4, dtype=dtype), torch.ones(4, 3, dtype=dtype)], torch.tensor(0.5, dtype=dtype)


def csr_build_arguments() -> Iterator[tuple[Any, ...]]:
    for dtype in (torch.int32, torch.int64):
        users, items = torch.tensor([3, 0, 3, 0, 2], dtype=dtype), torch.tensor([1, 4, 0, 4, 2], dtype=dtype)
        yield users, items, 5, 6
        yield users[:0], items[:0], 0, 0


def text_ids_arguments() -> Iterator[tuple[Any, ...]]:
    for dtype in (torch.int32, torch.int64):
        characters = [torch.tensor(list(text), dtype=torch.uint8) for text in (b"7-312", b"", b"100")]
        offsets = [torch.tensor(ends, dtype=dtype) for ends in ([0, 1, 3, 5], [0], [0, 2, 3])]
        yield characters, offsets


def row_filter_arguments() -> Iterator[tuple[Any, ...]]:
    yield matrix().indptr, matrix().indices, ITEMS


def has_items_arguments() -> Iterator[tuple[Any, ...]]:
    x = matrix()
    for filter in (None, _ops.row_filter(x.indptr, x.indices, ITEMS)):
        yield ids([0, 1, 5]), ids([1, 2, 3]), x.indptr, x.indices, filter, ITEMS


def ranking_arguments(x: zx.Interactions, excluded: bool) -> tuple[Any, ...]:
    users = ids([0, 1, 4, 6])
    counts = x.indptr[users + 1] - x.indptr[users]
    offset = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    known = zx.Interactions.from_arrays([0, 1, 6], [3, 4, 5], shape=(USERS, ITEMS))
    others = (known.indptr, known.indices) if excluded else (None, None)
    return users, offset, x.indptr, x.indices, *others, 4


def rank_factors_arguments() -> Iterator[tuple[Any, ...]]:
    for dtype in (torch.float32, torch.float64):
        user, item, bias = tables(dtype)
        yield user, item, bias, *ranking_arguments(matrix(), excluded=True)
        yield user, item, None, *ranking_arguments(matrix(), excluded=False)


def rank_scores_arguments() -> Iterator[tuple[Any, ...]]:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        yield torch.randn(4, ITEMS).to(dtype), *ranking_arguments(matrix(), excluded=dtype == torch.float32)


def user_metrics_arguments() -> Iterator[tuple[Any, ...]]:
    rest = ranking_arguments(matrix(), excluded=True)
    _, greater, equal, candidates, _, _ = _ops.rank_scores(torch.randn(4, ITEMS), *rest)
    for ties in range(3):
        popularity = torch.rand(len(greater), dtype=torch.float64)
        yield rest[1], greater, equal, candidates, popularity, ids([1, 5]), ties


def list_metrics_arguments() -> Iterator[tuple[Any, ...]]:
    yield ids([[3, 1, 0], [2, -1, -1]]), torch.rand(2, ITEMS, dtype=torch.float64), ids([1, 3])


def csr_score_moments_arguments() -> Iterator[tuple[Any, ...]]:
    for dtype in (torch.float32, torch.float64):
        user, item, bias = tables(dtype)
        for column_bias in (None, bias):
            yield user, item, column_bias, matrix().indptr, matrix().indices, torch.rand(ITEMS, dtype=dtype)


def csr_weighted_columns_arguments() -> Iterator[tuple[Any, ...]]:
    user, item, bias = tables()
    x = matrix()
    yield user, item, None, bias, x.indptr, x.indices, None, torch.rand(ITEMS), 0.5
    yield user, item, torch.rand(USERS), None, x.indptr, x.indices, torch.rand(USERS), None, 0.5


def graph(index: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    users, items = matrix().pairs()
    by_item = torch.sort(items, stable=True).indices
    degree = torch.cat([torch.bincount(users, minlength=USERS), torch.bincount(items, minlength=ITEMS)])
    indptr = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
    return indptr.to(index), torch.cat([items, users[by_item]]).to(index), by_item.to(index)


def graph_propagate_arguments() -> Iterator[tuple[Any, ...]]:
    for dtype in (torch.float32, torch.float64):
        user, item, _ = tables(dtype)
        scale = torch.rand(USERS + ITEMS, dtype=dtype)
        for index in (torch.int32, torch.int64):
            indptr, indices, _ = graph(index)
            yield user, item, indptr, None, indices, scale, None, 1.0
            yield user, item, indptr, indptr[:-1].clone(), indices, None, scale, 2.0


def graph_dropout_arguments() -> Iterator[tuple[Any, ...]]:
    for index in (torch.int32, torch.int64):
        yield *graph(index), USERS, ids(7), 0.5


ARGUMENTS = {
    "pair_loss": loss_arguments,
    "macr_loss": macr_arguments,
    "scale_gradients_": scale_gradients_arguments,
    "scale_gradients": scale_gradients_arguments,
    "mf_loss": mf_loss_arguments,
    "mf_gradient": mf_gradient_arguments,
    "mf_step": mf_step_arguments,
    "mf_train": mf_train_arguments,
    "mf_train_sampled": mf_train_sampled_arguments,
    "fold_in": fold_in_arguments,
    "sample_negatives": sample_negatives_arguments,
    "sample_negatives_at": sample_negatives_at_arguments,
    "sample_positives": sample_positives_arguments,
    "unshuffle": unshuffle_arguments,
    "csr_build": csr_build_arguments,
    "integer_ids": text_ids_arguments,
    "text_ids": text_ids_arguments,
    "row_filter": row_filter_arguments,
    "has_items": has_items_arguments,
    "rank_factors": rank_factors_arguments,
    "rank_scores": rank_scores_arguments,
    "user_metrics": user_metrics_arguments,
    "list_metrics": list_metrics_arguments,
    "csr_score_moments": csr_score_moments_arguments,
    "csr_weighted_columns": csr_weighted_columns_arguments,
    "graph_propagate": graph_propagate_arguments,
    "graph_dropout": graph_dropout_arguments,
}


@pytest.mark.parametrize(
    "definition",
    [
        reference.csr_score_moments,
        reference.csr_weighted_columns,
        reference.graph_dropout,
        reference.graph_propagate,
        reference.has_items,
        reference.list_metrics,
        reference.rank_scores,
        reference.sample_negatives,
        reference.sample_negatives_at,
        reference.sample_positives,
        reference.unshuffle,
    ],
)
def test_a_definition_takes_the_arguments_of_the_schema(definition):
    """One callable stands for both, and passes its arguments on as they are."""
    parameters = inspect.signature(definition).parameters
    schema = getattr(torch.ops.zerosum_ext, definition.__name__).default._schema
    assert list(parameters) == [argument.name for argument in schema.arguments]
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    assert {n: p.default for n, p in parameters.items() if p.default is not p.empty} == defaults


def test_a_stale_library_says_which_loss_it_lacks(monkeypatch):
    pos, neg = torch.zeros(3, requires_grad=True), torch.zeros(3)
    monkeypatch.delitem(_ops.LOSS_IDS, "zerosum")
    for call in (
        lambda: zx.zerosum_loss(pos, neg),
        lambda: zx.zerosum_loss(pos.detach(), neg, reduction="none"),
        lambda: zx.mf_loss(torch.zeros(3, 2), torch.zeros(4, 2), *(torch.zeros(5, dtype=torch.int64),) * 3),
    ):
        with pytest.raises(RuntimeError, match=r"lacks 'zerosum': it is older than the Python sources.*pip install"):
            call()
    assert zx.bpr_loss(pos, neg) > 0


def test_every_op_is_checked():
    registered = {
        schema.name.removeprefix("zerosum_ext::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("zerosum_ext::")
    }
    assert registered == set(ARGUMENTS) | {"loss_names", "cpu_isa"}  # these two take no tensors
    assert registered == set(_extension.OPS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_opcheck(name):
    op = getattr(torch.ops.zerosum_ext, name).default
    for arguments in ARGUMENTS[name]():
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


def test_fold_in_does_what_its_definition_says():
    names = {number: name for name, number in _ops.LOSS_IDS.items()}
    for item, *given, number, a, b, c, kink, l2, _, _ in fold_in_arguments():
        if names[number] in ("hinge", "ccl", "hardest", "psl_relu"):
            continue  # kinks: where a step ends depends on the last bits
        arguments = item, *given, reference.Kernel(names[number], a, b, c), kink, l2, 1e-6, 500
        got, want = _ops.fold_in(*arguments), reference.fold_in(*arguments)
        assert got.abs().max() > 0.01
        torch.testing.assert_close(got, want, atol=2e-4, rtol=2e-4, msg=lambda m: f"{names[number]}: {m}")  # noqa: B023
