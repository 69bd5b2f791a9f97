"""The CUDA kernel of fold_in, run on the host: the rows that the definition finds, to within what both promise.

Both end where the gradient is shorter than a share of that at zero. The objective's second derivatives are at least l2
where the loss is convex, so that two such rows differ by at most the sum of the two gradients over l2.
"""

from __future__ import annotations

import cuda_on_host
import pytest
import torch
from cuda_on_host import planted
from cuda_on_host.testing import FAR, counted_kernels_of, far_tensor, kernels_of, misaligned, moved_far

from zerosum_ext import reference
from zerosum_ext.reference import Kernel

kernels = kernels_of("fold_in")
counted = counted_kernels_of("fold_in")

ITEMS, L2, TOLERANCE = 40, 0.1, 1e-5
ROUNDED = ("zerosum", "pos2neg2")
CONSTANTS = ("ipw", "pd", "sampled_softmax", "refined_softmax")
# Those without kinks, or whose kinks are rounded off. PD's and BSL's objectives are not convex, nor is PSL's.
CONVEX = ("bpr", "zerosum", "ipw", "pos2neg2", "sampled_softmax", "refined_softmax")
LOSSES = (*CONVEX, "pd", "bsl", "psl_tanh")


def case(name, k, dim, dtype=torch.float32, sizes=(3, 0, 1, 17, 5), seed=0, items=ITEMS):
    """Users with so many samples each: the op's tensors."""
    generator = torch.Generator().manual_seed(seed)
    item = (0.7 * torch.randn(items, dim, generator=generator)).to(dtype)
    bias = (0.3 * torch.randn(items, generator=generator)).to(dtype)
    indptr = torch.tensor([0, *sizes]).cumsum(0)
    n = int(indptr[-1])
    quad = name == "pos2neg2"
    positives = torch.randint(0, items, (n, 2) if quad else (n,), generator=generator)
    negatives = torch.randint(0, items, (n, 2 if quad else k), generator=generator)
    known = (torch.rand(items, generator=generator) + 0.1).to(dtype)
    constants = None
    if name in CONSTANTS:
        constants = -known if "softmax" in name else known
    return item, bias, indptr, positives, negatives, constants


def settings(name, l2=L2, tolerance=TOLERANCE, iterations=200):
    kernel = Kernel(name, 1.0, 0.5, 0.5)
    return kernel, (0.02 if name in ROUNDED else 0.0), l2, tolerance, iterations


def run(kernels, tensors, kernel, kink, l2, tolerance, iterations):
    item, bias, indptr, positives, negatives, constants = tensors
    users, dim = len(indptr) - 1, item.shape[1]
    grid = torch.zeros(3, dtype=torch.int64)
    kernels.fold_in_grid(grid, users, dim, item.dtype == torch.float64)
    rows = torch.full((users, dim), torch.nan, dtype=item.dtype)
    pos, neg = (torch.full(t.shape, torch.nan, dtype=item.dtype) for t in (positives, negatives))
    workspace = torch.full((int(grid[2]) // 8,), torch.nan, dtype=torch.float64) if grid[2] else None
    next_user = torch.full((1,), 77)
    kernels.fold_in(
        *(item, bias, indptr, positives, negatives, constants, pos, neg, next_user, workspace, rows),
        *(kernels.loss_names().index(kernel.loss), kernel.a, kernel.b, kernel.c, kink, l2, tolerance, iterations),
    )
    return rows


def gradients(tensors, rows, kernel, kink, l2):
    """The lengths of the objective's gradients at these rows, in float64."""
    item, bias, indptr, positives, negatives, constants = (
        t.double() if t is not None and t.is_floating_point() else t for t in tensors
    )
    users = (indptr.diff() > 0).nonzero().flatten()
    loss = reference.folding.rounded_loss(kernel, constants, kink)
    problem = reference.folding.Objective(item, bias, (indptr, positives, negatives), users, loss, l2)
    return users, problem(rows[users].double())[1].norm(dim=1)


def check(kernels, name, tensors, l2=L2, tolerance=TOLERANCE, iterations=200):
    given = settings(name, l2, tolerance, iterations)
    kernel, kink = given[:2]
    got = run(kernels, tensors, *given)
    want = reference.fold_in(*tensors, *given)
    assert torch.equal(got.isnan(), want.isnan())
    users, at_zero = gradients(tensors, torch.zeros_like(got), kernel, kink, l2)
    ends = [gradients(tensors, rows, kernel, kink, l2)[1] for rows in (got, want)]
    # (Gradients of float32 are sums that are rounded; those are of float64.)
    slack = 1 + 200 * torch.finfo(got.dtype).eps / tolerance
    for end in ends:
        assert bool((end <= slack * tolerance * at_zero).all()), (end / at_zero).max()
    if name in CONVEX:
        apart = (got[users] - want[users]).norm(dim=1)
        assert bool((apart <= (ends[0] + ends[1]) / l2 + 1e-6).all())
    empty = (tensors[2].diff() == 0).nonzero().flatten()
    assert bool((got[empty] == 0).all())


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(kernels, name):
    check(kernels, name, case(name, 3, 8))


@pytest.mark.parametrize("k", [1, 2, 33])
@pytest.mark.parametrize("name", ["zerosum", "sampled_softmax"])
def test_negatives_of_a_sample(kernels, name, k):
    check(kernels, name, case(name, k, 5))


def test_one_column_of_negatives_may_be_a_vector(kernels):
    tensors = case("bpr", 1, 4)
    given = settings("bpr")
    got = run(kernels, tensors, *given)
    item, bias, indptr, positives, negatives, constants = tensors
    assert torch.equal(got, run(kernels, (item, bias, indptr, positives, negatives[:, 0], constants), *given))


@pytest.mark.parametrize("dim", [1, 3, 64])
def test_widths_in_float64(kernels, dim):
    """The bounds are of double: far below what float32 could reach."""
    check(kernels, "bpr", case("bpr", 2, dim, torch.float64, sizes=(4, 2)), tolerance=1e-10)
    if dim < 64:
        check(kernels, "pos2neg2", case("pos2neg2", 2, dim, torch.float64, sizes=(4, 2)), tolerance=1e-8)


@pytest.mark.parametrize("dim", [63, 65, 255, 257, 1000])
def test_widths_in_float32(kernels, dim):
    check(kernels, "zerosum", case("zerosum", 2, dim, sizes=(3, 1)), l2=0.5, tolerance=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_in_global_memory(kernels, dtype):
    """Of long rows nothing but sums fits into shared memory."""
    dim = 260
    grid = torch.zeros(3, dtype=torch.int64)
    kernels.fold_in_grid(grid, 3, dim, dtype == torch.float64)
    assert grid[1] == 0
    assert grid[2] > 0
    check(kernels, "zerosum", case("zerosum", 1, dim, dtype, sizes=(2, 0, 1)))


def test_no_alignment_is_asked_for(kernels):
    tensors = case("bpr", 2, 8)
    moved = (misaligned(tensors[0]), *tensors[1:])
    check(kernels, "bpr", moved)


@pytest.mark.parametrize("order", cuda_on_host.SCHEDULES, ids=str)
def test_a_row_depends_on_nobody_else(kernels, order):
    """The same bits alone and among others, in any order of threads and blocks, with few blocks and many."""
    tensors = case("zerosum", 2, 6, sizes=(5, 2, 7, 0, 1, 4))
    item, bias, indptr, positives, negatives, constants = tensors
    given = settings("zerosum")
    want = run(kernels, tensors, *given)
    with cuda_on_host.schedule({**order, "CUEMU_SMS": "1"}):
        assert torch.equal(run(kernels, tensors, *given), want)
        for user in (0, 2):
            part = slice(int(indptr[user]), int(indptr[user + 1]))
            alone = torch.tensor([0, part.stop - part.start])
            assert torch.equal(
                run(kernels, (item, bias, alone, positives[part], negatives[part], constants), *given)[0], want[user]
            )


def test_few_iterations(kernels):
    """None: zero. One: a step downhill."""
    tensors = case("bpr", 2, 4)
    kernel, kink, l2, tolerance, _ = settings("bpr")
    assert not run(kernels, tensors, kernel, kink, l2, tolerance, 0).any()
    users, at_zero = gradients(tensors, torch.zeros(5, 4), kernel, kink, l2)
    _, after = gradients(tensors, run(kernels, tensors, kernel, kink, l2, tolerance, 1), kernel, kink, l2)
    assert len(users) == 4
    assert bool((after < at_zero).all())
    want = reference.fold_in(*tensors, kernel, kink, l2, tolerance, 3)
    torch.testing.assert_close(run(kernels, tensors, kernel, kink, l2, tolerance, 3), want, rtol=1e-4, atol=1e-5)


def test_what_is_not_finite_makes_a_row_nan(kernels):
    item, bias, indptr, positives, negatives, constants = case("bpr", 2, 4)
    given = settings("bpr")
    want = run(kernels, (item, bias, indptr, positives, negatives, constants), *given)
    for spoil in ("item", "bias", "id", "large id", "indptr"):
        parts = [t.clone() for t in (item, bias, indptr, positives, negatives)]
        at = int(indptr[3])  # user 3's first sample
        if spoil == "item":
            parts[0] = torch.cat((parts[0], torch.full((1, 4), torch.inf)))
            parts[1], parts[3][at] = torch.cat((parts[1], parts[1][:1])), ITEMS
        elif spoil == "bias":
            parts[1] = torch.cat((parts[1], torch.tensor([torch.nan])))
            parts[0], parts[4][at, 1] = torch.cat((parts[0], parts[0][:1])), ITEMS
        elif spoil == "indptr":
            parts[2][4] = -3  # of users 3 and 4
        else:
            parts[4][at, 1] = -1 if spoil == "id" else 2**62
        got = run(kernels, (*parts, constants), *given)
        wrong = got.isnan().all(1)
        assert wrong.tolist() == [False, False, False, True, spoil == "indptr"]
        assert torch.equal(got[~wrong], want[~wrong])


def test_nobody_and_nothing(kernels):
    item, bias, _, positives, negatives, _ = case("bpr", 2, 4)
    given = settings("bpr")
    none = torch.tensor([0])
    assert run(kernels, (item, bias, none, positives[:0], negatives[:0], None), *given).shape == (0, 4)
    nobody = torch.tensor([0, 0, 0])
    assert not run(kernels, (item, bias, nobody, positives[:0], negatives[:0], None), *given).any()
    # A catalogue of no items, and rows of no numbers.
    ids = torch.zeros(2, dtype=torch.int64)
    got = run(kernels, (item[:0], None, torch.tensor([0, 2]), ids, ids, None), *given)
    assert bool(got.isnan().all())
    assert run(kernels, (item[:, :0], bias, torch.tensor([0, 2]), ids, ids, None), *given).shape == (1, 0)


def test_grid_of_very_many_users(kernels):
    """More users and longer rows than 32 bits count: by arithmetic."""
    grid = torch.zeros(3, dtype=torch.int64)
    for wide, resident in ((False, 4), (True, 3)):
        kernels.fold_in_grid(grid, 2**40, 64, wide)
        blocks, shared, workspace = grid.tolist()
        assert (blocks, workspace) == (4 * resident, 0)  # multiprocessors, and blocks of each
        assert 21 * 64 * 8 <= shared <= 48 << 10
        kernels.fold_in_grid(grid, 2**40, 2**31 + 8, wide)
        blocks, shared, workspace = grid.tolist()
        assert (blocks, shared) == (4 * resident, 0)
        assert workspace >= 4 * resident * 21 * 8 * (2**31 + 8)


def test_samples_and_items_that_32_bits_do_not_count(kernels, tmp_path):
    """Samples behind 2^31 others, of items behind 2^31 numbers, give the bits that they give elsewhere."""
    before = (1 << 24) + 1  # rows of 128 numbers
    item, bias, indptr, positives, negatives, constants = case("ipw", 1, 128, sizes=(3, 0, 5))
    given = settings("ipw", iterations=3)
    want = run(kernels, (item, bias, indptr, positives, negatives, constants), *given)
    table, biases, known = (moved_far(tmp_path, t, before)[0] for t in (item, bias, constants))
    samples = [moved_far(tmp_path, t.view(-1) + before)[0] for t in (positives, negatives)]
    kernel, kink, l2, tolerance, iterations = given
    rows = torch.full((3, 128), torch.nan)
    scores = [far_tensor(tmp_path, torch.float32, t.numel()) for t in samples]
    kernels.fold_in(
        *(table, biases, indptr + FAR, *samples, known, *scores, torch.full((1,), 77), None, rows),
        *(kernels.loss_names().index(kernel.loss), kernel.a, kernel.b, kernel.c, kink, l2, tolerance, iterations),
    )
    assert torch.equal(rows, want)


def test_budget(counted):
    """One launch and one memset. An evaluation reads each item's row twice, and no more than ids and scores besides."""
    tensors = case("bpr", 2, 16, sizes=(6, 9))
    kernel, kink, l2, tolerance, _ = settings("bpr")
    moved = []
    for iterations in (0, 4):
        with counted.count() as counts:
            run(counted, tensors, kernel, kink, l2, tolerance, iterations)
        assert [node.kernel for node in counts.nodes] == ["memset", "(fold_in_kernel<T>)"]
        moved.append(counts.loaded)
    # The last group of threads reads the last item up to four times.
    entries, groups = 15 * 3 + 2 * 2 * 3, 4
    row = 4 * 16
    # An id is read by each thread of a group, and once for the sum; a score by the loss and by the sum.
    each = entries * (2 * row + (groups + 1) * 8 + 4 + 3 * 4)
    first = each + entries * (row + groups * 8)  # and the rows' norms
    assert moved[0] <= first + 3 * 128 * 2 * 8  # each thread reads where a user's samples lie
    assert moved[0] >= entries * 3 * row
    evaluations = (moved[1] - moved[0]) / each
    assert 0.7 * 4 <= evaluations <= 4 * 2  # (of what is read, a fifth is the last item once more)


BUGS = [
    planted.Bug("derivatives are not scaled", "d[0] *= scale, d[1] *= scale;", ";"),
    planted.Bug("the row's own decay is left out", "a.settings.l2 * at[c + n]", "0 * at[c + n]"),
    planted.Bug("negatives are the first ones", "s.negatives[e - s.num_pos]", "s.negatives[0]"),
    planted.Bug("biases are left out", "there && a.bias != nullptr ? a.bias[id[m]] : T(0)", "T(0)"),
    planted.Bug("items out of range score 0", "there ? products[m] + bias : static_cast<T>(NAN)", "products[m] + bias"),
    planted.Bug("a sample's negatives are those of the first", "neg + (live ? i : 0) * a.k", "neg"),
    planted.Bug("nothing is remembered", "++known;", ";"),
    planted.Bug("the oldest step is taken for the last", "(last - 1 - age) % kFoldMemory", "age"),
    planted.Bug(
        "a change of the gradient is the gradient",
        "changes[at * dim() + i] = new_gradient[i] - gradient[i]",
        "changes[at * dim() + i] = new_gradient[i]",
    ),
    planted.Bug("a step goes uphill", "step[i] = -gradient[i];", "step[i] = gradient[i];"),
    planted.Bug("a step is never halved", "share /= 2;", ";"),
    planted.Bug("the first step has any length", "1 / (a.settings.l2 + longest())", "1000.0"),
    planted.Bug("kinks are kept beside what rounds them off", "rounded ? 0 : w.b", "w.b"),
    planted.Bug("of long rows the first columns alone are summed", "c0 < dim()", "c0 == 0"),
    planted.Bug("a user is left out", "atomicAdd(a.next, 1ull)", "atomicAdd(a.next, 2ull)"),
    planted.Bug("scores are of the row while it is written", "__syncthreads();\n    score();", "score();"),
]


wrong = planted.kernels_of("fold_in", "cuda/fold_in.cuh", BUGS)


def battery(kernels):
    sizes = (3, 24, 1)
    for name in ("zerosum", "pos2neg2"):
        tensors = case(name, 3, 6, sizes=sizes)
        tensors[0].mul_(3)  # long rows: steps have to be halved
        kernel, kink, l2, tolerance, _ = settings(name, 0.02)
        check(kernels, name, tensors, l2, iterations=50)  # (a wrong kernel goes on to the end)
        # After so few steps each of them counts.
        for iterations in (3, 11):
            few = kernel, kink, l2, tolerance, iterations
            torch.testing.assert_close(
                run(kernels, tensors, *few), reference.fold_in(*tensors, *few), rtol=2e-3, atol=2e-4
            )
    check(kernels, "bpr", case("bpr", 1, 67, sizes=(2,)), iterations=50)
    tensors[4][2, 1] = ITEMS
    assert run(kernels, tensors, *settings(name)).isnan().all(1).tolist() == [True, False, False]


@planted.each_of(BUGS)
def test_planted_bugs_are_noticed(wrong, bug):
    planted.look_for(bug, BUGS, wrong, battery)
