"""The CUDA kernels of a whole training step, run on the host: against torch.optim in float64 on the same batches."""

from __future__ import annotations

import cuda_on_host
import pytest
import torch
from cuda_on_host import planted
from cuda_on_host.losses import CONSTANTS, LOSSES, PAIR, REDUCTIONS, numbers
from cuda_on_host.testing import counted_kernels_of, kernels_of, misaligned, moved_far

from zerosum_ext import reference

kernels = kernels_of("mf_step")

LR, BETAS, EPS, DECAY = 0.05, (0.8, 0.99), 1e-3, 0.01
# The numbers of csrc/common/optimizers.h; torch's optimizer, x and y, and the names of its state.
OPTIMIZERS = {
    "sgd": (0, lambda p: torch.optim.SGD(p, lr=LR), (0.0, 0.0), (None, None)),
    "adagrad": (1, lambda p: torch.optim.Adagrad(p, lr=LR, lr_decay=DECAY, eps=EPS), (DECAY, 0.0), (None, "sum")),
    "adam": (2, lambda p: torch.optim.Adam(p, lr=LR, betas=BETAS, eps=EPS), BETAS, ("exp_avg", "exp_avg_sq")),
    "lazy_adam": (
        *(3, lambda p: torch.optim.SparseAdam(p, lr=LR, betas=BETAS, eps=EPS)),
        *(BETAS, ("exp_avg", "exp_avg_sq")),
    ),
}


def generator(seed):
    return torch.Generator().manual_seed(seed)


# ---- the sort


def joint_sort(kernels, users, positives, negatives, num_users, num_items):
    n = users.numel() + positives.numel() + negatives.numel()
    sizes = torch.zeros(4, dtype=torch.int64)
    kernels.sort_sizes(n, num_users, num_items, sizes)
    keys, order = (torch.full((2, n), -7, dtype=torch.int32) for _ in range(2))
    zeros = torch.zeros(int(sizes[0]), dtype=torch.int32)
    rules = torch.full((3, 7), torch.nan)
    kernels.sort_batch(users, positives, negatives, num_users, num_items, keys, order, zeros, rules)
    return keys[1], order[1]


def check_sort(kernels, users, positives, negatives, num_users, num_items):
    rows = users.shape[0]
    items = torch.cat([positives.reshape(rows, -1), negatives.reshape(rows, -1)], 1).flatten() if rows else positives
    bad_user, bad_item = (users < 0) | (users >= num_users), (items < 0) | (items >= num_items)
    wanted = torch.cat(
        [torch.where(bad_user, num_users, users), num_users + 1 + torch.where(bad_item, num_items, items)]
    )
    expected, places = torch.sort(wanted, stable=True)
    keys, order = joint_sort(kernels, users, positives, negatives, num_users, num_items)
    assert torch.equal(keys.long() & 0xFFFFFFFF, expected)
    assert torch.equal(order.long(), places)


def draw_ids(rows, k, num_users, num_items, seed=0, quad=False):
    g = generator(seed)
    users = torch.randint(0, num_users, (rows,), generator=g)
    if quad:
        return users, *(torch.randint(0, num_items, (rows, 2), generator=g) for _ in range(2))
    shape = (rows,) if k is None else (rows, k)
    return users, torch.randint(0, num_items, (rows,), generator=g), torch.randint(0, num_items, shape, generator=g)


# One block's sort and that of several tiles; keys of one digit and of several.
@pytest.mark.parametrize("rows", [0, 1, 11, 341, 1366, 5461, 5462, 8000])
@pytest.mark.parametrize("tables", [(1, 1), (100, 150), (6040, 3706), (70_000, 90_000)])
def test_users_and_items_are_sorted_together(kernels, rows, tables):
    users, positives, negatives = draw_ids(rows, None, *tables, seed=rows)
    skewed = ((negatives.double() / tables[1]) ** 8 * tables[1]).long()
    check_sort(kernels, users, positives, skewed, *tables)


@pytest.mark.parametrize("tables", [(1 << 24, 5), (3, (1 << 31) + 5), ((1 << 32) - 9, 6)])
def test_keys_of_many_bits(kernels, tables):
    for rows in (50, 5600):
        users, positives, negatives = draw_ids(rows, None, *tables, seed=1)
        check_sort(kernels, users, positives, negatives, *tables)


@pytest.mark.parametrize("k", [1, 2, 3, 7, 64])
def test_positions_of_several_items(kernels, k):
    check_sort(kernels, *draw_ids(130, k, 40, 50), 40, 50)
    check_sort(kernels, *draw_ids(130, 2, 40, 50, quad=True), 40, 50)


def test_ids_out_of_range_stay_on_their_side(kernels):
    for rows in (700, 6000):
        users, positives, negatives = draw_ids(rows, 2, 20, 16, seed=2)
        users[::7] += 20
        users[3], negatives[5, 1], negatives[6, 0] = -(1 << 62), 1 << 40, -1
        positives[::5] -= 16
        check_sort(kernels, users, positives, negatives, 20, 16)
    check_sort(kernels, users, positives, negatives, 0, 0)


@pytest.mark.parametrize("settings", cuda_on_host.SCHEDULES, ids=str)
@pytest.mark.parametrize("rows", [900, 5700])
def test_sorting_in_any_schedule(kernels, settings, rows):
    with cuda_on_host.schedule(settings):
        check_sort(kernels, *draw_ids(rows, None, 300, 500, seed=3), 300, 500)


# ---- steps


class Step:
    """Tables and state of one optimizer on the device that is played, and what a step needs of memory."""

    def __init__(self, kernels, tables, optimizer, *, move=lambda t: t, chunks=(0, 0), in_memory=False, cosines=False):
        self.kernels, self.name, self.chunks, self.cosines = kernels, optimizer, chunks, cosines
        self.kind, self.make, (self.x, self.y), self.names = OPTIMIZERS[optimizer]
        self.tables = [None if t is None else move(t.clone()) for t in tables]
        self.state = [
            [None if t is None or n is None else move(torch.zeros_like(t)) for n in self.names] for t in self.tables
        ]
        self.number = 1.0
        self.lr = torch.tensor(LR, dtype=torch.float64) if in_memory else None
        self.steps = [torch.zeros(()) for _ in tables] if in_memory else [None] * 3
        self.total = torch.tensor(10.0, dtype=torch.float64)
        self.plan = torch.zeros(8, dtype=torch.int64)

    def __call__(
        self,
        loss,
        ids,
        constants=None,
        *,
        l2=0.0,
        longest=0.0,
        reduction="mean",
        wanted=(1, 1, 1),
        weight=None,
        shared=None,
    ):
        of_tables = torch.tensor(
            [[float(w), -1.0 if self.lr is not None else LR, self.x, self.y, EPS, self.number] for w in wanted],
            dtype=torch.float64,
        )
        options = torch.tensor(
            [self.kind, *numbers(self.kernels, loss), REDUCTIONS[reduction], l2, longest, *self.chunks, self.cosines]
            + [shared.size if shared else 1],
            dtype=torch.float64,
        )
        value = torch.full((), torch.nan, dtype=torch.float64)
        tables = [t for table, state in zip(self.tables, self.state, strict=True) for t in (table, *state)]
        if shared is not None:
            ids = (*ids[:2], shared.own)
        parts = (None,) * 4 if shared is None else (shared.lists, shared.start, shared.held, shared.alone)
        arguments = (*tables, *ids, constants, of_tables, self.lr, *self.steps, options, value, self.total, weight)
        arguments = (*arguments, *parts)
        self.kernels.mf_step(*arguments, None, self.plan)
        # As the op finds it: full of something, and of the exact size.
        memory = torch.full((int(self.plan[0]),), -7, dtype=torch.int32)
        self.kernels.mf_step(*arguments, memory, None)
        self.number += 1
        return value


def definition(loss, tables, ids, constants, l2, reduction, weight=None, cosines=False):
    """Value without L2, and with it, in float64."""
    user, item, bias = tables
    users, positives, negatives = ids
    items = reference.mf_items(positives, negatives)
    scores, norms = reference.mf_scores(user, item, bias, users, items, False)
    if cosines:
        user, item = (torch.nn.functional.normalize(t, dim=-1) for t in (user, item))
        scores = reference.mf_scores(user, item, bias, users, items, False)[0]
    pos, neg = reference.split_scores(scores, positives, negatives)
    aux = (None, None) if constants is None else (constants.double()[positives], constants.double()[negatives])
    if loss not in PAIR and loss != "pos2neg2" and neg.dim() == 1:
        neg = neg.unsqueeze(1)
    if weight is not None:
        pair = loss in PAIR and neg.dim() == 2
        weight = weight.double().unsqueeze(1).expand_as(neg) if pair else weight.double()
    value = reference.pair_loss_value(pos, neg, *aux, weight, LOSSES[loss], reduction)
    return value, value + l2 * reference.reduce(norms, reduction)


def new_tables(num_users, num_items, dim, bias=True, seed=0):
    g = generator(seed)
    scale = 1.2 / max(dim, 1) ** 0.25
    user, item = (torch.randn(n, dim, generator=g) * scale for n in (num_users, num_items))
    return [user, item, torch.randn(num_items, generator=g) * 0.3 if bias else None]


def new_constants(loss, num_items):
    return torch.rand(num_items, generator=generator(5)) if loss in CONSTANTS else None


def check(
    kernels,
    loss,
    optimizer,
    batches,
    *,
    num_users=23,
    num_items=31,
    dim=8,
    bias=True,
    l2=0.0,
    longest=0.0,
    reduction="mean",
    wanted=(1, 1, 1),
    rtol=2e-4,
    weights=None,
    shared=None,
    **options,
):
    """Steps on some batches, against torch.optim in float64. weights, shared: of the samples of each batch."""
    start = new_tables(num_users, num_items, dim, bias)
    constants = new_constants(loss, num_items)
    step = Step(kernels, start, optimizer, **options)
    doubles = [None if t is None else t.double().requires_grad_() for t in start]
    trained = [t for t, w in zip(doubles, wanted, strict=True) if t is not None and w]
    torchs = step.make(trained) if trained else None
    total = 10.0
    for number, ids in enumerate(batches):
        weight = None if weights is None else weights[number]
        value, objective = definition(loss, doubles, ids, constants, l2, reduction, weight, step.cosines)
        gradients = (
            torch.autograd.grad(objective, trained, allow_unused=True)
            if trained and len(ids[0])
            else [None] * len(trained)
        )
        occurring = {
            id(doubles[0]): ids[0].unique(),
            **{id(t): torch.cat([ids[1].flatten(), ids[2].flatten()]).unique() for t in doubles[1:] if t is not None},
        }
        for table, gradient in zip(trained, gradients, strict=True):
            grad = torch.zeros_like(table) if gradient is None else gradient.clone()
            if longest:
                norms = grad.reshape(len(grad), -1).norm(dim=1)
                factor = torch.where(norms > longest, longest / norms, 1.0)
                grad *= factor.reshape(-1, *[1] * (grad.dim() - 1))
            if optimizer == "lazy_adam":
                rows = occurring[id(table)]
                grad = torch.sparse_coo_tensor(rows.unsqueeze(0), grad[rows], grad.shape, check_invariants=True)
            table.grad = grad
        if torchs is not None:
            torchs.step()
        settings = {"l2": l2, "longest": longest, "reduction": reduction, "wanted": wanted}
        settings["shared"] = None if shared is None else shared[number]
        got = step(loss, ids, constants, weight=weight, **settings)
        want = float(value.detach()) if len(ids[0]) else 0.0
        assert float(got) == pytest.approx(want, rel=2e-5, abs=1e-6)
        total += want * (len(ids[0]) if reduction == "mean" else 1)
        assert float(step.total) == pytest.approx(total, rel=2e-5, abs=1e-6)
    for got, want, state in zip(step.tables, doubles, step.state, strict=True):
        if got is None:
            continue
        scale = max(1.0, float(want.detach().abs().max())) if want.numel() else 1.0
        torch.testing.assert_close(got.double(), want.detach(), rtol=rtol, atol=2e-6 * scale)
        for name, kept in zip(step.names, state, strict=True):
            if name is not None and torchs is not None and want in torchs.state:
                torch.testing.assert_close(kept.double(), torchs.state[want][name], rtol=5e-4, atol=1e-6)
    return step


def shape_of_negatives(loss, k):
    return {"k": 2, "quad": True} if loss == "pos2neg2" else {"k": k}


@pytest.mark.parametrize("k", [None, 1, 2, 5, 64])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses(kernels, loss, k):
    if loss == "pos2neg2" and k != 2:
        pytest.skip("two negatives")
    if loss not in PAIR and k is None:
        pytest.skip("losses of rows have [B, K]")
    for dim in (8, 5, 64):
        ids = draw_ids(50, num_users=23, num_items=31, seed=dim, **shape_of_negatives(loss, k))
        check(kernels, loss, "sgd", [ids], dim=dim, l2=0.3)
        check(kernels, loss, "sgd", [ids], dim=dim, bias=False, reduction="sum", rtol=2e-3)


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7, 16, 33, 63, 64, 65, 128, 200, 255, 256, 257, 264, 300, 1000])
@pytest.mark.parametrize("loss", ["bpr", "pos2neg2", "bsl", "hardest"])
def test_widths(kernels, loss, dim):
    k = {"bpr": None, "pos2neg2": 2, "bsl": 9, "hardest": 3}[loss]
    batches = [draw_ids(30, k, 23, 31, seed=s, quad=loss == "pos2neg2") for s in range(2)]
    for optimizer in ("sgd", "adam"):
        check(kernels, loss, optimizer, batches, dim=dim, l2=0.2, longest=0.4, move=misaligned)
        step = check(kernels, loss, optimizer, batches, dim=dim, l2=0.2, longest=0.4, chunks=(4, 8))
        assert int(step.plan[4]) == (dim > (256 if dim % 4 == 0 else 64))


@pytest.mark.parametrize("wanted", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 0, 0)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers(kernels, optimizer, wanted):
    batches = [draw_ids(40, None, 23, 31, seed=s) for s in range(3)]
    for options in ({}, {"l2": 0.4, "longest": 0.05}, {"bias": False}, {"l2": 0.1, "reduction": "sum", "dim": 20}):
        check(kernels, "zerosum", optimizer, batches, wanted=wanted, **options)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_numbers_in_memory(kernels, optimizer):
    """One launch again and again, as a CUDA graph makes it: what is counted in memory moves on."""
    batches = [draw_ids(20, 3, 23, 31, seed=s) for s in range(6)]
    known = check(kernels, "bpr", optimizer, batches)
    step = check(kernels, "bpr", optimizer, batches, in_memory=True)
    assert [float(s) for s in step.steps] == [6.0] * 3
    for a, b in zip(known.tables, step.tables, strict=True):
        assert torch.equal(a, b)


def weights_of(batches, seed=7):
    """Weights of samples, one in five of them 0."""
    g = generator(seed)
    weights = [torch.rand(len(ids[0]), generator=g) * 3 for ids in batches]
    for weight in weights:
        weight[::5] = 0
    return weights


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_of_samples(kernels, loss):
    for k, dim in ((None, 8), (5, 12), (64, 300)):
        if (loss not in PAIR and k is None) or (loss == "pos2neg2" and k != 5):
            continue
        batches = [draw_ids(50, num_users=23, num_items=31, seed=s, **shape_of_negatives(loss, k)) for s in range(2)]
        options = {"dim": dim, "l2": 0.2, "weights": weights_of(batches)}
        check(kernels, loss, "sgd", batches, chunks=(4, 8), **options)
        check(kernels, loss, "sgd", batches, reduction="sum", rtol=2e-3, **options)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_with_every_optimizer(kernels, optimizer):
    batches = [draw_ids(60, None, 23, 31, seed=s) for s in range(3)]
    for chunks in ((0, 0), (2, 4)):
        for options in ({}, {"longest": 0.05}, {"dim": 300}):
            check(kernels, "zerosum", optimizer, batches, weights=weights_of(batches), chunks=chunks, **options)


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_of_one_give_the_bits_of_none(kernels, loss):
    ids = draw_ids(70, num_users=23, num_items=31, seed=1, **shape_of_negatives(loss, 3))
    steps = [Step(kernels, new_tables(23, 31, 8), "adagrad", chunks=(4, 8)) for _ in range(2)]
    values = [
        step(loss, ids, new_constants(loss, 31), l2=0.1, weight=weight)
        for step, weight in zip(steps, (None, torch.ones(70)), strict=True)
    ]
    assert torch.equal(*values)
    for a, b in zip(steps[0].tables, steps[1].tables, strict=True):
        assert torch.equal(a, b)


def test_a_weight_is_read_once_and_launches_are_the_same(kernels, counted):
    ids = draw_ids(1500, None, 300, 200, seed=1)
    moved = []
    for weight in (None, torch.rand(1500, generator=generator(2))):
        with counted.count() as counts:
            Step(counted, new_tables(300, 200, 16), "sgd")("zerosum", ids, weight=weight)
        assert len(counts.nodes) == 4
        moved.append((counts.loaded, counts.stored))
    assert (moved[1][0] - moved[0][0], moved[1][1] - moved[0][1]) == (4 * 1500, 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_cosines(kernels, loss):
    for k, dim in ((None, 8), (2, 5), (5, 33), (9, 256)):
        if (loss not in PAIR and k is None) or (loss == "pos2neg2" and k != 2):
            continue
        batches = [draw_ids(50, num_users=23, num_items=31, seed=s, **shape_of_negatives(loss, k)) for s in range(2)]
        check(kernels, loss, "sgd", batches, dim=dim, l2=0.2, chunks=(4, 8), cosines=True)
        check(kernels, loss, "adagrad", batches, dim=dim, bias=False, weights=weights_of(batches), cosines=True)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["drawn", "one user", "one item"])
def test_cosines_with_every_optimizer(kernels, optimizer, kind):
    """Rows within a chunk, over edges, and over so many chunks that a block adds up what each has made of its part."""
    for chunks in ((1, 1), (4, 8)):
        for wanted in ((1, 1, 1), (1, 0, 1), (0, 1, 0)):
            options = {"l2": 0.3, "longest": 0.2, "chunks": chunks, "wanted": wanted, "cosines": True}
            check(kernels, "zerosum", optimizer, [worst_ids(150, kind)] * 2, dim=12, rtol=1e-3, **options)


def test_cosines_of_rows_of_zeros(kernels):
    """They are 0, and their derivatives those of a row that was as long as the shortest: finite."""
    step = Step(kernels, new_tables(23, 31, 8), "sgd", cosines=True)
    ids = worst_ids(40, "distinct")
    step.tables[0][3], step.tables[1][4] = 0, 0
    assert step("zerosum", ids).isfinite()
    for table in step.tables:
        assert table.isfinite().all()


def worst_ids(rows, kind, num_users=23, num_items=31):
    users, positives, negatives = draw_ids(rows, None, num_users, num_items, seed=4)
    if kind == "one user":
        users = torch.full_like(users, 5)
    if kind == "one item":
        positives = torch.full_like(positives, num_items - 1)
    if kind == "one pair":
        users, positives, negatives = (torch.full_like(t, t[0]) for t in (users, positives, negatives))
    if kind == "equal":
        negatives = positives.clone()
    if kind == "distinct":
        users = torch.arange(rows) % num_users
        positives = torch.arange(rows) % num_items
    return users, positives, negatives


# Rows within a chunk, over an edge, over whole chunks, and over so many that a block adds up their parts.
@pytest.mark.parametrize("chunks", [(1, 1), (2, 1), (4, 8), (16, 32), (32, 16), (0, 0)])
@pytest.mark.parametrize("kind", ["drawn", "one user", "one item", "one pair", "equal", "distinct"])
def test_chunks(kernels, kind, chunks):
    for rows in (1, 16, 33, 150):
        ids = worst_ids(rows, kind)
        for optimizer in ("sgd", "lazy_adam", "adam"):
            check(kernels, "zerosum", optimizer, [ids], l2=0.2, longest=1.5, chunks=chunks)


def test_chunks_of_many_samples(kernels):
    """Chunks as a large batch has them, several blocks of them, and the sort of several tiles."""
    ids = draw_ids(9000, None, 400, 300, seed=8)
    ids[1][::3] = 7
    ids[0][::5] = 11
    for optimizer in ("adagrad", "adam"):
        step = check(kernels, "zerosum", optimizer, [ids], num_users=400, num_items=300, l2=0.1, rtol=1e-3)
        assert step.plan[1:3].tolist() == [2, 4]


@pytest.mark.parametrize("settings", cuda_on_host.SCHEDULES, ids=str)
def test_the_same_bits_in_any_schedule(kernels, settings):
    for chunks, loss, k in (((1, 1), "zerosum", None), ((4, 16), "psl_tanh", 6)):
        for optimizer in ("adam", "adagrad"):
            results = []
            for environment in ({}, settings):
                with cuda_on_host.schedule(environment):
                    step = Step(kernels, new_tables(19, 23, 12), optimizer, chunks=chunks)
                    for seed in range(2):
                        step(loss, draw_ids(140, k, 19, 23, seed=seed), l2=0.1, longest=0.5)
                    results.append([*step.tables, *[t for s in step.state for t in s if t is not None], step.total])
            for a, b in zip(*results, strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nothing_to_do(kernels, optimizer):
    batches = [draw_ids(20, 2, 23, 31), draw_ids(0, 2, 23, 31), draw_ids(20, 2, 23, 31, seed=1)]
    check(kernels, "zerosum", optimizer, batches[:1] if optimizer == "lazy_adam" else batches)
    before = Step(kernels, new_tables(23, 31, 4), optimizer)
    before("bpr", draw_ids(0, None, 23, 31))
    for got, was in zip(before.tables, new_tables(23, 31, 4), strict=True):
        assert torch.equal(got, was)
    # Tables without rows: every id is out of range.
    none = Step(kernels, [torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0)], optimizer)
    assert none("bpr", draw_ids(9, None, 5, 5)).isnan()


def test_no_negatives(kernels):
    users, positives, _ = draw_ids(20, None, 23, 31)
    step = Step(kernels, new_tables(23, 31, 8), "sgd")
    value = step("bpr", (users, positives, torch.empty(20, 0, dtype=torch.int64)))
    assert float(value) == 0
    for got, was in zip(step.tables, new_tables(23, 31, 8), strict=True):
        assert torch.equal(got, was)


@pytest.mark.parametrize("chunks", [(1, 1), (8, 8)])
@pytest.mark.parametrize("loss", ["zerosum", "psl_tanh"])
def test_ids_out_of_range_spoil_what_they_touch(kernels, loss, chunks):
    users, positives, negatives = draw_ids(40, 3 if loss == "psl_tanh" else None, 23, 31, seed=6)
    users[4], negatives.view(40, -1)[9, 0] = 23, -1
    for optimizer in ("sgd", "adam"):
        step = Step(kernels, new_tables(23, 31, 8), optimizer, chunks=chunks)
        assert step(loss, (users, positives, negatives)).isnan()
        spoiled = {int(positives[4]), *negatives[4:5].flatten().tolist()}
        spoiled |= {int(positives[9]), *[i for i in negatives[9:10].flatten().tolist() if i >= 0]}
        assert step.tables[0].isnan().any(1).nonzero().flatten().tolist() == [int(users[9])]
        assert step.tables[1].isnan().any(1).nonzero().flatten().tolist() == sorted(spoiled)
        assert step.tables[2].isnan().nonzero().flatten().tolist() == sorted(spoiled)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "lazy_adam"])
def test_tables_that_32_bits_do_not_count(kernels, optimizer, tmp_path):
    """Rows behind 2^31 numbers are trained as elsewhere, to the bit."""
    before = (1 << 24) + 1  # rows of 128 numbers
    ids = draw_ids(60, None, 23, 31, seed=2)
    near, far = (Step(kernels, new_tables(23, 31, 128), optimizer, chunks=(2, 4)) for _ in range(2))
    for number, table in enumerate(far.tables):
        far.tables[number] = moved_far(tmp_path, table, before)[0]
        far.state[number] = [None if t is None else moved_far(tmp_path, t, before)[0] for t in far.state[number]]
    values = [step("zerosum", i, l2=0.2, longest=0.4) for step, i in ((near, ids), (far, [t + before for t in ids]))]
    assert torch.equal(*values)
    for mine, theirs in zip((*far.state, far.tables), (*near.state, near.tables), strict=True):
        for got, want in zip(mine, theirs, strict=True):
            assert want is None or torch.equal(got[before:], want)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_memory_of_very_large_steps(kernels, optimizer):
    """By arithmetic: tables of 2^32 - 10 rows in all, 2^30 - 4 positions, rows of 300 numbers and of 2^20."""
    kind = OPTIMIZERS[optimizer][0]
    samples, rows = (1 << 30) // 3 - 1, (1 << 31) - 5

    def like(*shape, dtype=torch.float32):
        return torch.zeros((), dtype=dtype).expand(shape)  # (Nothing is read.)

    for dim, count in ((300, samples), (1 << 20, samples), (1, 5)):
        table = like(rows, dim)
        plan, ids = torch.zeros(8, dtype=torch.int64), [like(count, dtype=torch.int64)] * 3
        of_tables = torch.tensor([[1.0, LR, 0.5, 0.5, EPS, 1.0]] * 3, dtype=torch.float64)
        options = torch.tensor([kind, *numbers(kernels, "bpr"), 2, 0.0, 0.0, 0, 0, 0, 1], dtype=torch.float64)
        number = torch.zeros((), dtype=torch.float64)
        tables = (table, table, table, table, table, table, like(rows), like(rows), like(rows))
        kernels.mf_step(*tables, *ids, None, of_tables, *[None] * 4, options, number, number, *[None] * 6, plan)
        words, user_chunk, item_chunk, width, wide, stored, _, passes = plan.tolist()
        assert (user_chunk, item_chunk) == ((16, 32) if count == samples else (1, 1))
        assert (width, wide, passes) == ((32, dim > 64, 4) if dim > 1 else (1, 0, 4))
        positions = 3 * count
        chunks = [-(-count // user_chunk), -(-2 * count // item_chunk)]
        kept = [count, 2 * count if stored else 0]
        floats = 2 * count + sum(kept) * dim + sum(2 * c * dim for c in chunks) + 2 * chunks[1]
        if stored:
            floats += 2 * count  # biases
        sort = 2 * positions if positions <= 1 << 14 else 4 * positions + passes * 256 * (-(-positions // 4096) + 1)
        maps = 2 * rows if optimizer == "adam" else 0
        assert floats + sort + maps <= words <= floats + sort + maps + 200 + chunks[0]


# ---- samples that share lists of negatives


class Shared:
    """A batch whose samples share lists, drawn as if users had items of theirs at random.

    ``ids`` has the negatives one by one, by the rule of docs/training.md. One sample in ten shares nothing.
    """

    def __init__(self, rows, k, size, num_users=23, num_items=31, *, start=0, alone=0.1, items=None, seed=0):
        g = generator(seed)
        self.size, self.start = size, torch.tensor([start])
        lists = (rows + size - 2) // size + 1
        self.lists = torch.randint(0, items or num_items, (lists, k), generator=g)
        self.held = torch.rand(rows, k, generator=g) < 0.3
        self.held[torch.rand(rows, generator=g) < alone] = True
        self.own = torch.randint(0, num_items, (rows, k), generator=g)
        self.users, self.positives = (torch.randint(0, n, (rows,), generator=g) for n in (num_users, num_items))

    @property
    def alone(self):
        return self.held.all(1).cumsum(0)

    @property
    def ids(self):
        negatives = self.own.clone()
        for i, held in enumerate(self.held.tolist()):
            row, k = self.lists[(int(self.start) + i) // self.size].tolist(), len(held)
            if not all(held):
                free = [p for p in range(2 * k) if not held[p % k]]
                negatives[i] = torch.tensor([row[next(p for p in free if p >= j) % k] for j in range(k)])
        return self.users, self.positives, negatives


def check_shared(kernels, loss, optimizer, batches, **options):
    return check(kernels, loss, optimizer, [b.ids for b in batches], shared=batches, **options)


# Samples and items off every multiple, one list and several, pieces of lists, of rows and of both.
SHARED_SIZES = [(50, 5, 16, 8), (70, 64, 64, 64), (90, 70, 33, 5), (67, 33, 100, 100), (40, 1, 7, 12), (1, 3, 4, 4)]


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "pos2neg2"])
def test_shared_losses(kernels, loss):
    for rows, k, size, dim in SHARED_SIZES:
        batches = [Shared(rows, k, size, start=3, seed=s) for s in range(2)]
        check_shared(kernels, loss, "sgd", batches, dim=dim, l2=0.3)
        options = {"bias": False, "reduction": "sum", "rtol": 2e-3, "weights": weights_of([batches[0].ids])}
        check_shared(kernels, loss, "sgd", batches[:1], dim=dim, **options)


@pytest.mark.parametrize("wanted", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 0, 0)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_shared_with_every_optimizer(kernels, optimizer, wanted):
    """Lists of few items name them again and again, and so do positives."""
    for items, chunks in ((None, (0, 0)), (4, (4, 8))):
        batches = [Shared(75, 9, 16, start=5, items=items, seed=s) for s in range(2)]
        options = {"wanted": wanted, "chunks": chunks}
        check_shared(kernels, "zerosum", optimizer, batches, l2=0.4, longest=0.05, dim=20, **options)
        check_shared(kernels, "bpr", optimizer, batches, dim=8, move=misaligned, **options)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("dim", [1, 33, 65, 256, 300])
def test_shared_rows_of_every_width(kernels, optimizer, dim):
    for cosines in (False, True):
        if not cosines or dim <= 64 or dim in (128, 256):
            batches = [Shared(45, 70, 70, start=59, seed=s) for s in range(1 + (dim < 65))]
            check_shared(
                *(kernels, "sampled_softmax", optimizer, batches),
                dim=dim,
                l2=0.3,
                longest=0.2,
                cosines=cosines,
                rtol=1e-3,
            )


def test_shared_lists_that_nobody_can_use(kernels):
    """An item that all samples of its list have is not named; who has all items shares nothing."""
    for held, alone in ((slice(2, 5), 0.0), (slice(None), 1.0)):
        batch = Shared(60, 8, 20, start=7, alone=alone, seed=3)
        batch.held[:, held] = True
        for optimizer in ("lazy_adam", "adam", "adagrad"):
            check_shared(kernels, "sampled_softmax", optimizer, [batch] * 2, l2=0.2)
    nobody = Shared(60, 8, 20, alone=0.0)
    nobody.held[:] = False
    check_shared(kernels, "sampled_softmax", "lazy_adam", [nobody] * 2, l2=0.2)


def test_shared_positives_that_are_negatives_of_others(kernels):
    batch = Shared(80, 6, 40, seed=2)
    batch.positives[:] = batch.lists[0, 1]
    batch.lists[1, :] = batch.lists[0, 2]
    for optimizer in ("sgd", "adam"):
        check_shared(kernels, "bpr", optimizer, [batch] * 2, l2=0.1)


@pytest.mark.parametrize(("optimizer", "alone"), [("sgd", 0.0), ("sgd", 0.1), ("adam", 1.0)])
def test_shared_batches_of_many_positions(kernels, optimizer, alone):
    """How many positions there are the sort finds out: one tile of it, or several."""
    batch = Shared(3000, 8, 100, 400, 300, start=99, alone=alone)
    options = {"num_users": 400, "num_items": 300, "dim": 4, "rtol": 1e-3}
    check_shared(kernels, "zerosum", optimizer, [batch], l2=0.3, **options)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_shared_numbers_in_memory_and_empty_batches(kernels, optimizer):
    batches = [Shared(40, 5, 8, start=s, seed=s) for s in range(3)]
    batches.insert(1, Shared(0, 5, 8))
    if optimizer == "lazy_adam":  # (torch's definition takes no empty gradient)
        del batches[1]
    check_shared(kernels, "sampled_softmax", optimizer, batches, in_memory=True)


@pytest.mark.parametrize("settings", cuda_on_host.SCHEDULES[1:], ids=str)
@pytest.mark.parametrize("loss", ["zerosum", "sampled_softmax", "hardest", "ccl"])
def test_shared_bits_are_the_same_in_any_schedule(kernels, settings, loss):
    results = []
    for environment in ({}, settings):
        with cuda_on_host.schedule(environment):
            step = Step(kernels, new_tables(19, 23, 12), "adagrad", chunks=(2, 4), cosines=loss == "ccl")
            for seed in range(2):
                batch = Shared(90, 70, 70, 19, 23, start=11, seed=seed)
                step(loss, batch.ids, l2=0.1, longest=0.5, shared=batch)
            results.append([*step.tables, *[t for s in step.state for t in s if t is not None], step.total])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_shared_ids_out_of_range_spoil_what_they_touch(kernels):
    for optimizer in ("sgd", "adam"):
        batch = Shared(40, 6, 16, alone=0.0, seed=1)
        batch.held[:, 0] = False
        batch.users[4], batch.lists[1, 2], batch.positives[39], batch.held[20, 2] = 23, -1, 1 << 40, True
        users, positives, negatives = batch.ids
        touched = torch.zeros(40, dtype=torch.bool)
        touched[4], touched[39] = True, True
        touched |= (negatives < 0).any(1)
        step = Step(kernels, new_tables(23, 31, 8), optimizer)
        assert step("sampled_softmax", batch.ids, shared=batch).isnan()
        spoiled = {i for i in [*positives[touched].tolist(), *negatives[touched].flatten().tolist()] if 0 <= i < 31}
        assert set(step.tables[0].isnan().any(1).nonzero().flatten().tolist()) == set(users[touched].tolist()) - {23}
        assert set(step.tables[1].isnan().any(1).nonzero().flatten().tolist()) == spoiled


def test_shared_parts_that_make_no_sense_are_not_followed(kernels):
    """Starts and counts from nowhere: whatever is trained, nothing is read or written that is not there."""
    for start, alone in ((-1, 0), (1 << 40, 1 << 40), (16, -5)):
        batch = Shared(40, 6, 16, seed=1)
        ids, batch.start = batch.ids, torch.tensor([start])
        step = Step(kernels, new_tables(23, 31, 8), "adagrad")
        made = type("Made", (), {**vars(batch), "alone": torch.full((40,), alone)})
        step("bpr", ids, shared=made)


def test_shared_and_one_by_one_are_the_same_samples(kernels):
    """The pass over shared negatives and that over samples differ in the order of their sums alone."""
    batch = Shared(200, 20, 64, seed=5)
    steps = [Step(kernels, new_tables(23, 31, 32), "adagrad") for _ in range(2)]
    values = [step("psl_tanh", batch.ids, l2=0.1, shared=s) for step, s in zip(steps, (None, batch), strict=True)]
    assert float(values[0]) == pytest.approx(float(values[1]), rel=1e-6)
    for one, other in zip(steps[0].tables, steps[1].tables, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_launches_of_shared_negatives(kernels, optimizer):
    """At most 9 nodes, or one more where the tables have so many rows that the sort takes four passes."""
    for rows, k, tables in ((50, 5, (50, 60)), (2000, 16, (50, 60)), (2000, 16, (70_000, 90))):
        step = Step(kernels, new_tables(*tables, 1), optimizer)
        batch = Shared(rows, k, 64, *tables)
        with kernels.count() as counts:
            step("bpr", batch.ids, shared=batch)
        names = [node.kernel for node in counts.nodes]
        large = 2 * rows + (len(batch.lists) + rows) * k > 1 << 14
        memset = ["memset"] if large or optimizer == "adam" else []
        sort = ["digits", *["sort_pass"] * int(step.plan[7])] if large else ["small_sort"]
        wanted = [*memset, "step_block", *sort, "step_items", "step_end"]
        assert len(names) == len(wanted) <= 9
        assert all(part in name for part, name in zip(wanted, names, strict=True))


# ---- the budget of launches and bytes


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_launches(kernels, optimizer):
    """At most 10 nodes of a CUDA graph, whatever the batch: 4 or 5 up to 16 K positions."""
    kinds = {0: "small_sort_kernel", 1: "step_users_kernel", 2: "step_items_kernel", 3: "step_end_kernel"}
    for rows, k in ((1, None), (300, 5), (5461, None)):
        step = Step(kernels, new_tables(50, 60, 4), optimizer)
        with kernels.count() as counts:
            step("zerosum", draw_ids(rows, k, 50, 60), l2=0.1, longest=0.5)
        names = [node.kernel for node in counts.nodes]
        if optimizer == "adam":  # which looks rows up in a map
            assert names.pop(0) == "memset"
        assert len(names) == 4
        assert all(kinds[i] in name for i, name in enumerate(names))
    for tables in ((50, 60), (300, 500), (70_000, 90), *([((1 << 24) + 5, 6)] if optimizer == "sgd" else [])):
        step = Step(kernels, new_tables(*tables, 1), optimizer)
        with kernels.count() as counts:
            step("bpr", draw_ids(5462, None, *tables))
        passes = int(step.plan[7])
        assert len(counts.nodes) == 5 + passes <= 9
        assert counts.nodes[0].kernel == "memset"
        assert sum("sort_pass_kernel" in node.kernel for node in counts.nodes) == passes


counted = counted_kernels_of("mf_step")


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "lazy_adam", "adam"])
@pytest.mark.parametrize("rows", [1500, 6000])
def test_bytes(counted, optimizer, rows):
    """What instructions load and store in memory, against the arithmetic of benchmarks/ROOFLINE.md."""
    num_users, num_items, dim, columns = 900, 700, 64, 2
    ids = draw_ids(rows, None, num_users, num_items, seed=1)
    step = Step(counted, new_tables(num_users, num_items, dim), optimizer)
    with counted.count() as counts:
        step("zerosum", ids, l2=0.1)
    row, positions = 4 * dim, (1 + columns) * rows
    states = {"sgd": 0, "adagrad": 1, "adam": 2, "lazy_adam": 2}[optimizer]
    users, items = len(ids[0].unique()), len(torch.cat(ids[1:]).unique())
    user_chunk, item_chunk = step.plan[1:3].tolist()
    # A row's sum has a part in each chunk that it is in.
    user_parts = users + -(-rows // user_chunk)
    item_parts = items + -(-columns * rows // item_chunk)
    if optimizer == "adam":
        updates = (num_users + num_items) * row * 2 * (1 + states) + (user_parts + item_parts) * row * 2
    else:
        # Users: the sum is written and read, whole or in parts. Items: those that cross an edge.
        updates = (users + items) * row * 2 * (1 + states) + user_parts * row * 2 + (item_parts - items) * row * 2 * 2
    gathers = (columns * rows + columns * rows) * row  # each row of items once, each row of users once an item
    own = (user_parts + item_parts) * row  # the row itself: to multiply by, and for L2
    if positions <= 1 << 14:
        sort = 16 * positions
    else:
        sort = positions * (8 + 8 + 8 + 16 * (int(step.plan[7]) - 1)) + 10_000 * 5 * int(step.plan[7])
    # Keys at a chunk's edges, and where dense Adam looks for a row's sum, are read by all of a group's lanes.
    lanes = 4 * int(step.plan[3])
    edges = lanes * 8 * (-(-rows // user_chunk) + -(-columns * rows // item_chunk))
    lookups = lanes * 8 * (num_users + num_items) if optimizer == "adam" else 0
    places = positions * 48 + 24 * (num_users + num_items) + edges + lookups
    budget = gathers + own + updates + sort + places
    assert counts.loaded + counts.stored <= budget
    assert counts.loaded + counts.stored >= gathers  # (that something was counted)
    # Users' gradients alone would be as much again, if items were read twice.
    assert budget < 1.35 * (counts.loaded + counts.stored)


def test_bytes_of_many_negatives(counted):
    """With softmax each row of items is read once, for scores and gradient, as ROOFLINE.md has it for 64 negatives.

    Few rows in chunks of 32, as in a large batch: parts of their sums count little.
    """
    samples, k, num_users, num_items, dim, chunk = 300, 64, 60, 34, 64, 32
    ids = draw_ids(samples, k, num_users, num_items, seed=1)
    step = Step(counted, new_tables(num_users, num_items, dim, bias=False), "sgd", chunks=(0, chunk))
    with counted.count() as counts:
        step("sampled_softmax", ids)
    assert step.plan[1:3].tolist() == [1, chunk]
    row, entries, passes = 4 * dim, samples * (1 + k), int(step.plan[7])
    gathers = 2 * entries * row
    # The users' pass reads an id for the score and again for the coefficient that takes the score's place.
    scores = entries * (2 * 8 + 3 * 4)
    sort = (samples + entries) * (16 + 8 + 16 * (passes - 1)) + 10_000 * 5 * passes
    chunks = samples + -(-entries // chunk)
    places = (samples + entries) * 40 + 4 * int(step.plan[3]) * 8 * chunks
    sums = (chunks + num_users + num_items) * row * 3  # a row itself, and its part written and read
    updates = (num_users + num_items) * row * 2
    budget = gathers + scores + sort + places + sums + updates
    assert gathers <= counts.loaded + counts.stored <= budget < 1.15 * (counts.loaded + counts.stored)


@pytest.mark.parametrize("optimizer", ["sgd", "lazy_adam"])
def test_bytes_of_shared_negatives(counted, optimizer):
    """The arithmetic of benchmarks/ROOFLINE.md: a row of a list is read once a block, and not once a sample."""
    rows, k, size, num_users, num_items, dim = 384, 64, 64, 300, 200, 64
    batch = Shared(rows, k, size, num_users, num_items, alone=0.0)
    moved, nodes = {}, {}
    for shared in (None, batch):
        step = Step(counted, new_tables(num_users, num_items, dim, bias=False), optimizer)
        with counted.count() as counts:
            step("sampled_softmax", batch.ids, shared=shared)
        moved[shared is not None], nodes[shared is not None] = counts.loaded + counts.stored, counts.nodes
    row, lists = 4 * dim, rows // size * k
    states = {"sgd": 0, "lazy_adam": 2}[optimizer]
    users, items = len(batch.users.unique()), len(torch.cat([batch.positives, batch.lists.flatten()]).unique())
    # The pass: a user's row for the positive's score and as a tile, a positive's for its score and the user's
    # derivative, each row of a list once; derivatives in users and in lists are written.
    block = (4 * rows + lists + rows + lists) * row
    # Their sums: rows that were left, and users' rows for positives. (There is one more list than this batch needs.)
    positions = 2 * rows + lists + k
    # A chunk has one position here, so that each row's sum is written and read in parts.
    sums = 3 * positions * row + (users + items) * row * 2 * (1 + states)
    # What users hold is looked at for each pair where scores are replaced and put back, and where uses are counted.
    held = 8 * rows * k
    # How many positions there are is read by each thread of the last two kernels, and of the sort's.
    asked = 8 * sum(node.grid[0] * node.block[0] for node in nodes[True] if node.kernel != "memset")
    sort = positions * 60 + 10_000 * 5 * int(step.plan[7])
    edges = positions * 4 * int(step.plan[3]) * 6
    budget = block + sums + held + asked + sort + edges
    assert moved[True] <= budget < 1.25 * moved[True]
    assert moved[False] > 5 * moved[True]


# ------------------------------------------------------------------------------------------------------ planted bugs

SORT = "cuda/batch_sort.cuh"
BUGS = [
    # The sort.
    planted.Bug("an item has the key of the one before", "num_users + 1", "num_users", SORT),
    planted.Bug(
        "pairs of a digit change places",
        "__popc(equals & ((1u << lane) - 1))",
        "__popc(equals & ~((2u << lane) - 1))",
        SORT,
    ),
    planted.Bug("looking back ends at the next tile", "if (said & kCountSoFar) break;", "break;", SORT),
    planted.Bug(
        "a tile's own count is said to be that of all",
        "gpu_store_relaxed(mine, kOwnCount | count);",
        "gpu_store_relaxed(mine, kCountSoFar | count);",
        SORT,
    ),
    planted.Bug("a block's tile is its number", "atomicAdd(a.ticket, 1u)", "blockIdx.x", SORT),
    planted.Bug("upper halves of keys stay where they are", "plan.passes * plan.width <= 16", "true", SORT),
    planted.Bug("what is behind the end comes first", "narrow ? 0xffffu : ~0u", "0u", SORT),
    planted.Bug("the step does not count", "counted ? 0 : 1", "0", SORT),
    planted.Bug(
        "the step in memory stays", "*const_cast<float*>(number.single) = static_cast<float>(step);", ";", SORT
    ),
    planted.Bug("the rate in memory is not read", "a.lr[t].read()", "a.lr[t].value", SORT),
    # Chunks and their edges.
    planted.Bug("a row at an edge is finished twice", "chunk.keys[chunk.begin] == key && chunk.comes_in()", "false"),
    planted.Bug("a row's last chunk is lost", "step > 0", "step > 1"),
    planted.Bug(
        "a row ends with its chunk", "return end > 0 && end < s.size && keys[end - 1] == keys[end];", "return false;"
    ),
    planted.Bug("parts of two rows have one place", "came_in ? 0 : 1", "0"),
    planted.Bug(
        "rows of very many chunks are left out",
        "if (sum.row != kNone) finish_long<kKind, N>(a, side, g, users, sum);",
        ";",
    ),
    planted.Bug("parts are added by two groups", "i += stride", "i += stride - stride / 2"),
    planted.Bug(
        "biases' parts are added by their first thread", "factors = block_combine<kStepThreads>(factors, Add{});", ";"
    ),
    planted.Bug(
        "the end comes first",
        "if (p.samples > 0 && !p.shared()) step_users(p.loss, a, plan, stream);",
        "step_users(p.loss, a, plan, stream); step_end<kStepPack>(p.kind(), a, layout, stream);",
    ),
    planted.Bug(
        "dense Adam leaves rows without gradients alone",
        "if (begins == 0) return {chunk.number, 0, 0, 0};",
        "if (begins == 0) return none;",
    ),
    planted.Bug(
        "dense Adam finds the last of a row's chunks",
        "if (side.begins != nullptr && !in && g.lane == 0) side.begins[row] = first + 1;",
        "if (side.begins != nullptr && g.lane == 0) side.begins[row] = first + 1;",
    ),
    planted.Bug(
        "the running total is that of this step",
        "*a.total += total * a.value_scale * a.total_scale;",
        "*a.total = total * a.value_scale * a.total_scale;",
    ),
    planted.Bug("a block's part of the loss is lost", "total += a.partials[i];", "total += i > 0 ? a.partials[i] : 0;"),
    # Rules.
    planted.Bug("gradients have any length", "norm > longest ? longest / norm : 1.0f", "1.0f"),
    planted.Bug(
        "gradients of biases have any length",
        "gradient > a.longest ? a.longest : gradient < -a.longest ? -a.longest : gradient",
        "gradient",
    ),
    # Weights of samples.
    planted.Bug("a weight is that of the place", "a.weight[sample]", "a.weight[base + g.lane]"),
    planted.Bug("all have the first lane's weight", "g.get(weight, i)", "g.get(weight, 0)"),
    planted.Bug("derivatives have no weight", "its_weight * a.scale", "a.scale"),
    planted.Bug("the value has no weight", "its_weight * value", "value"),
    # K negatives.
    planted.Bug("a sum is not rescaled to a larger logit", "r.sum * before + e", "r.sum + e"),
    planted.Bug("rows are not rescaled to a larger logit", "scale_piece<N>(r.rows, before);", ";"),
    planted.Bug("the positive's part in the logits is lost", "factor * r.slopes", "0.0f"),
    planted.Bug("a mean's derivatives are a sum's", "factor *= share;", ";"),
    planted.Bug("the hardest is the first", "z > r.top || j0 + i + m == 0", "j0 + i + m == 0"),
    planted.Bug(
        "coefficients are those of unshifted logits",
        "factor * exp_nonpositive(l.z - shift) * l.dn",
        "factor * exp_nonpositive(l.z) * l.dn",
    ),
    planted.Bug("scores are taken for coefficients", "scores[at] = factor;", "scores[at] = score;"),
    # Rows that do not fit into registers.
    planted.Bug("a wide row's sum is not begun anew", "user.fresh ? 0.0f : user.sum[c]", "user.sum[c]"),
    planted.Bug("of a wide row the first piece alone is summed", "kStored && table.wanted && c0 < a.dim", "false"),
    planted.Bug(
        "a wide row's product ends with the first turn",
        "sum += user.values[c] * row[c];",
        "sum += c < g.width ? user.values[c] * row[c] : 0.0f;",
    ),
    # Cosines.
    planted.Bug(
        "items are no directions", "scale_piece<N>(kept, inverse_length(g.sum(dot_piece<N>(kept, kept))));", ";"
    ),
    planted.Bug(
        "users are no directions", "if (begins) scale_piece<N>(user.p, scale_now), user.scale = scale_now;", ";"
    ),
    planted.Bug("users' lengths are forgotten", "slope * a.user_scale[sample]", "slope"),
    planted.Bug(
        "the derivative in a bias is that in a direction", "a.cosines || kShared ? g.get(entry.bias, i0 + m) : f", "f"
    ),
    planted.Bug("L2 is that of a direction", "decay / user.scale", "decay"),
    planted.Bug("derivatives along an item stay", "add_piece<N>(sum, -along_row(product, scale), own);", ";"),
    planted.Bug(
        "derivatives along a user stay",
        "if (ends) add_piece<N>(user.gradient, -along_row(product / user.scale, user.scale) / user.scale, user.p);",
        ";",
    ),
    planted.Bug(
        "an item's parts in chunks are not scaled",
        "if (row != kNone) scale_piece<N>(sum, scale);",
        "if (whole) scale_piece<N>(sum, scale);",
    ),
    planted.Bug(
        "a user's parts in chunks are not scaled",
        "if (ends) scale_piece<N>(user.gradient, user.scale);",
        "if (ends && !comes_in) scale_piece<N>(user.gradient, user.scale);",
    ),
]

wrong = planted.kernels_of(
    "mf_step",
    "cuda/mf_step.cuh",
    BUGS,
    losses=("bpr", "zerosum", "pos2neg2", "sampled_softmax", "psl_tanh", "hardest", "ccl"),
    kind="plain",
)


def battery(kernels):
    """One case for each thing that can go wrong, the sort first: a wrong order would name rows that are none."""
    check_sort(kernels, *draw_ids(200, None, 30, 40, seed=1), 30, 40)
    check_sort(kernels, *draw_ids(200, None, 70_000, 90_000, seed=1), 70_000, 90_000)
    random = [{"CUEMU_ORDER": "2", "CUEMU_RESIDENT": "6", "CUEMU_SEED": seed} for seed in ("7", "8")]
    for settings in ({}, {"CUEMU_ORDER": "1", "CUEMU_RESIDENT": "2"}, *random):
        with cuda_on_host.schedule(settings):
            check_sort(kernels, *draw_ids(7000, None, 30, 40, seed=1), 30, 40)
    for chunks in ((1, 1), (4, 8)):
        for kind in ("one user", "one item", "drawn"):
            check(kernels, "zerosum", "lazy_adam", [worst_ids(150, kind)], l2=0.2, longest=0.05, chunks=chunks)
            # (Rows that the first batch names, and the second does not, go on moving.)
            check(kernels, "zerosum", "adam", [worst_ids(20, "drawn"), worst_ids(150, kind)], chunks=chunks)
    check(kernels, "zerosum", "adagrad", [worst_ids(150, "one item")] * 2, chunks=(4, 8), in_memory=True)
    drawn = [draw_ids(60, None, 23, 31, seed=3)]
    # (Rows of 20: a group of several lanes.)
    check(kernels, "zerosum", "sgd", drawn, dim=20, chunks=(4, 8), weights=weights_of(drawn))
    for chunks in ((1, 1), (4, 8)):
        check(kernels, "zerosum", "sgd", drawn, dim=20, chunks=chunks, l2=0.2, cosines=True)
        # (Small derivatives along a row make as much difference here as large ones.)
        check(kernels, "zerosum", "adagrad", drawn, dim=20, chunks=chunks, rtol=1e-3, cosines=True)
    for loss in ("bpr", "pos2neg2", "sampled_softmax", "psl_tanh", "hardest", "ccl"):
        batches = [draw_ids(60, num_users=23, num_items=31, seed=3, **shape_of_negatives(loss, 9))]
        for dim in (12, 300):
            check(kernels, loss, "sgd", batches, dim=dim, l2=0.2, weights=weights_of(batches))


@pytest.mark.slow
@planted.each_of(BUGS)
def test_planted_bugs_are_noticed(wrong, bug):
    planted.look_for(bug, BUGS, wrong, battery)


# Of shared negatives.
SHARED_BUGS = [
    planted.Bug("the first list", "a.ids.lists[b.list * k + k0 + j]", "a.ids.lists[k0 + j]"),
    planted.Bug("a batch begins with a list", "int64_t{b.list} * a.size - start", "int64_t{b.list} * a.size"),
    planted.Bug("a list has one tile", "int64_t{b.tile % a.ids.tiles_each} * kTile", "int64_t{0}"),
    planted.Bug("replaced slots have no derivative", "row[j] += row[slot], row[slot] = 0.0f", "row[slot] = 0.0f"),
    planted.Bug("replaced slots are not those of the place", "slot != place && held[slot]", "false"),
    planted.Bug(
        "the place before",
        "place = place + 1 == k ? 0 : place + 1",
        "place = place == 0 ? k - 1 : place - 1",
        "common/shared_negatives.h",
    ),
    planted.Bug("a score is replaced too late", "__syncwarp(kFullWarp);", ";"),
    planted.Bug("uses are samples", "uses += 1", "uses += 0"),
    planted.Bug("an unused item is named", "uses[at] == 0", "false", "cuda/batch_sort.cuh"),
    planted.Bug("the next one is alone", "count_alone(middle) > n", "count_alone(middle) >= n", "cuda/batch_sort.cuh"),
    planted.Bug("nobody is alone", "tiles + count_alone(samples - 1)", "tiles", "cuda/batch_sort.cuh"),
    planted.Bug("a piece of columns is left out", "tile_depth(a.dim - c0)", "c0 > 0 ? 0 : kTile"),
    planted.Bug("a piece of the list is left out", "tile_depth(int64_t{k} - k0)", "k0 > 0 ? 0 : kTile"),
    planted.Bug("a positive is no direction", "s.slope[i] * s.positive_scale[i]", "s.slope[i]"),
    planted.Bug("a bias is that of one sample", "sum += b.scores[i * kTileRow + j];", "sum = b.scores[i];"),
]

wrong_shared = planted.kernels_of(
    "mf_step", "cuda/mf_shared.cuh", SHARED_BUGS, losses=("zerosum", "pos2neg2", "sampled_softmax"), kind="plain"
)


def shared_battery(kernels):
    for loss in ("zerosum", "sampled_softmax"):
        for rows, k, size, dim in ((90, 70, 33, 70), (75, 9, 70, 12), (40, 5, 8, 8)):
            batches = [Shared(rows, k, size, start=size - 3, seed=s) for s in range(2)]
            batches[0].held[:, 2] = True
            check_shared(kernels, loss, "lazy_adam", batches, dim=dim, l2=0.3)
    check_shared(kernels, "zerosum", "sgd", [Shared(75, 9, 70, start=5)], cosines=True, chunks=(2, 4))


@pytest.mark.slow
@planted.each_of(SHARED_BUGS)
def test_planted_bugs_of_shared_negatives_are_noticed(wrong_shared, bug):
    planted.look_for(bug, SHARED_BUGS, wrong_shared, shared_battery)
