"""The compiled ops refuse what they cannot work on, by name; hostile calls in numbers are in tests/fuzz."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from zerosum_ext import _library, _ops

pytestmark = pytest.mark.skipif(not _library.CPU.loaded, reason="the compiled library is not loaded")
ops = torch.ops.zerosum_ext
INDPTR, INDICES = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1])
USERS = torch.tensor([0, 1])
INT = torch.int64


def ints(*values):
    return torch.tensor(values)


def fold_in(**changes):
    """Call the op with something wrong."""
    sound = {
        "item_embedding": torch.ones(3, 4), "item_bias": None, "indptr": ints(0, 1), "positives": ints(0),
        "negatives": ints([1, 2]).view(1, 2), "constants": None, "loss": 0, "a": 1.0, "b": 1.0, "c": 1.0, "kink": 0.0,
        "l2": 0.1, "tolerance": 1e-4, "max_iterations": 9,
    }  # fmt: skip
    return ops.fold_in(**{**sound, **changes})


NEGATIVES = (None, None, None, 3, 1, 0, 0, 0, True)
RANKED = (torch.zeros(2, 4), torch.zeros(3, 4), None, USERS, ints(0, 2, 3), INDPTR, INDICES, None, None, 1)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("lists hold items", lambda: ops.list_metrics(ints([0, 9]).reshape(1, 2), torch.ones(1, 3).double(), ints(1))),
        ("at least 1", lambda: ops.list_metrics(torch.zeros(1, 2, dtype=INT), torch.ones(1, 3).double(), ints(0))),
        (
            "must be in range",
            lambda: ops.mf_gradient(
                *(torch.ones(2, 4), torch.ones(3, 4), ints(-1), ints(0), ints(1)),
                *(torch.ones(1, 2), torch.tensor(1.0), 0.0, True, True, False, False),
            ),
        ),
        ("must be in range", lambda: fold_in(positives=ints(3))),
        ("must be in range", lambda: fold_in(negatives=ints([-1, 0]).view(1, 2))),
        ("indptr", lambda: fold_in(indptr=ints(0, 2))),
        ("indptr", lambda: fold_in(indptr=ints(1, 0))),
        ("shape of this loss", lambda: fold_in(negatives=torch.zeros(1, 0, dtype=INT))),
        ("shape of this loss", lambda: fold_in(loss=_ops.LOSS_IDS["pos2neg2"])),
        ("needs constants", lambda: fold_in(loss=_ops.LOSS_IDS["ipw"])),
        ("kinks of this loss", lambda: fold_in(kink=0.1)),
        ("positive numbers", lambda: fold_in(l2=0.0)),
        ("positive numbers", lambda: fold_in(tolerance=float("nan"))),
        ("max_iterations", lambda: fold_in(max_iterations=2**40)),
        ("float32 or float64", lambda: fold_in(item_embedding=torch.ones(3, 4).half())),
        ("indptr", lambda: ops.row_filter(ints(0, 9), INDICES, 3)),
        ("indptr", lambda: ops.row_filter(ints(0, 2, 1), INDICES, 3)),
        ("indptr", lambda: ops.row_filter(INDPTR, ints(0, 2, 7), 3)),
        ("indptr", lambda: ops.sample_negatives(USERS, torch.arange(6)[::2], INDICES, *NEGATIVES)),
        ("masses", lambda: ops.sample_negatives(USERS, INDPTR, INDICES, None, None, ints(), *NEGATIVES[3:])),
        ("masses", lambda: ops.sample_negatives(USERS, INDPTR, INDICES, None, ints(0, 0), None, *NEGATIVES[3:])),
        (
            "slots",
            lambda: ops.sample_negatives(
                USERS, INDPTR, INDICES, None, torch.zeros(4, dtype=torch.int32), torch.arange(4), *NEGATIVES[3:]
            ),
        ),
        ("kept", lambda: ops.sample_positives(INDPTR, INDICES, ints(0), 8, None, None, 0, 0, 3, 0, 3, 1, 0, 0)),
        (
            "within the epoch",
            lambda: ops.sample_positives(INDPTR, INDICES, ints(0), 8, None, None, 0, 3, 3, 2**63 - 1, 3, 1, 0, 0),
        ),
        ("users are out of range", lambda: ops.has_items(ints(5), ints(0), INDPTR, INDICES, None, 3)),
        # What lies behind indptr would do as the end of a row.
        ("users are out of range", lambda: ops.has_items(ints(2), ints(0), ints(0, 2, 3, 3)[:3], INDICES, None, 3)),
        ("row 1 of users is 2", lambda: ops.rank_factors(*RANKED[:3], ints(0, 2), *RANKED[4:])),
        ("do not go with offset", lambda: ops.rank_factors(*RANKED[:4], ints(0, 1, 3), *RANKED[5:])),
        ("both of indptr and indices", lambda: ops.rank_factors(*RANKED[:7], INDPTR, None, 1)),
        ("ascend", lambda: ops.rank_factors(*RANKED[:4], ints(0, 3, 2), *RANKED[5:])),
        ("out of order", lambda: ops.rank_factors(*RANKED[:6], ints(2, 0, 1), *RANKED[7:])),
        (
            "contradict",
            lambda: ops.user_metrics(ints(0, 1), ints(5), ints(0), ints(3), torch.ones(1).double(), ints(10), 0),
        ),
        (
            "indptr",
            lambda: ops.csr_score_moments(
                torch.ones(2, 4), torch.ones(3, 4), None, INDPTR, ints(0, 2, 9), torch.ones(3)
            ),
        ),
        (
            "other side",
            lambda: ops.graph_propagate(
                torch.ones(1, 4), torch.ones(1, 4), ints(0, 1, 2), None, ints(0, 9), None, None, 1.0
            ),
        ),
        ("by_item", lambda: ops.graph_dropout(ints(0, 1, 2), ints(0, 0), ints(5), 1, ints(1), 0.5)),
        ("reduction", lambda: ops.pair_loss(torch.ones(2), torch.ones(2), None, None, None, 0, 1.0, 1.0, 1.0, 7, True)),
        ("no loss", lambda: ops.pair_loss(torch.ones(2), torch.ones(2), None, None, None, 99, 1.0, 1.0, 1.0, 1, True)),
    ],
)
def test_what_an_op_cannot_work_on_is_refused(message, call):
    with pytest.raises(RuntimeError, match=message):
        call()


def test_a_tensor_without_memory_is_refused():
    scores = torch.ones(1000)
    scores.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="which does not hold them"):
        ops.pair_loss(scores, torch.ones(1000), None, None, None, 0, 1.0, 1.0, 1.0, 1, False)


def test_items_that_are_none_are_had_by_nobody():
    items = ints(-1, 3, 2**40, 0)
    for lookup in (None, ops.row_filter(INDPTR, INDICES, 3)):
        assert ops.has_items(ints(0), items, INDPTR, INDICES, lookup, 3).tolist() == [[False, False, False, True]]


def test_the_first_row_with_nan_is_named():
    # Row 70 has a NaN among its positives, row 40 among the others; both are in one block of users or not.
    n, items = 100, 500
    indptr, indices = torch.arange(n + 1), torch.full((n,), 499)
    for early, late in ((40, 70), (36, 37), (0, 99)):
        scores = torch.randn(n, items, generator=torch.Generator().manual_seed(0))
        scores[late, 499] = torch.nan
        scores[early, 3] = torch.nan
        failed = _ops.rank_scores(scores, torch.arange(n), indptr, indptr, indices, None, None, 5)[5]
        assert failed.tolist() == [early]


LONG = """
import sys, torch, zerosum_ext, time
torch.set_num_threads(2)
n = 20_000
user, item = torch.randn(n, 256), torch.randn(n, 256)
nobody = torch.zeros(n + 1, dtype=torch.int64)
print("begun", flush=True)
try:
    for _ in range(1000):
        if sys.argv[1] == "rank_factors":
            torch.ops.zerosum_ext.rank_factors(
                user, item, None, torch.arange(n), nobody, nobody, nobody[:0], None, None, 10
            )
        else:
            torch.ops.zerosum_ext.mf_train(
                user, item, None, None, None, None, None, None, None, *torch.randint(n, (3, 8_000_000)), None,
                torch.tensor([[1.0, 0.01, 0, 0, 0, 1]] * 3).double(), 0, 0, 1.0, 0.0, 0.0, 0.0, 0.0, 2, 4096, False,
            )
except KeyboardInterrupt:
    pass
except RuntimeError as error:
    try:
        (lambda: time.sleep(0.5))()  # the interpreter raises what the handler wants, as soon as it goes on
    except KeyboardInterrupt:
        print("interrupted", "interrupted" in str(error), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the interpreter is asked on Linux")
@pytest.mark.parametrize("op", ["rank_factors", "mf_train"])
def test_ctrl_c_ends_a_long_op_soon(tmp_path, op):
    child = subprocess.Popen(
        [sys.executable, "-c", LONG, op], stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=os.environ
    )
    assert child.stdout.readline() == "begun\n"
    time.sleep(2 if op == "rank_factors" else 6)
    start = time.monotonic()
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=120)
    took = time.monotonic() - start
    assert child.returncode == 0
    assert out in ("", "interrupted True\n")  # it may come between two ops
    # A second at most on an idle machine; this test must also hold where others keep the processors busy.
    assert took < 20


def column(root):
    """One chunk of root * root ids of twelve digits, all different."""
    halves = torch.tensor([list(f"{100_000 + i}".encode()) for i in range(root)], dtype=torch.uint8)
    ids = torch.cat((halves.repeat_interleave(root, 0), halves.repeat(root, 1)), 1)
    return [ids.view(-1)], [torch.arange(root * root + 1, dtype=torch.int32) * 12]


@pytest.mark.skipif(sys.platform != "linux", reason="the interpreter is asked on Linux")
@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        (ops.csr_build, lambda: (*torch.randint(5000, (2, 12_000_000)), 5000, 5000)),
        (ops.csr_build, lambda: (torch.zeros(8_000_000, dtype=INT), torch.randint(2**31, (8_000_000,)), 1, 2**31 - 1)),
        (ops.integer_ids, lambda: column(2500)),
        (ops.text_ids, lambda: column(1500)),
    ],
    ids=["csr_build", "one long row", "integer_ids", "text_ids"],
)
def test_a_signal_ends_a_pass_in_its_midst(op, arguments):
    assert "interrupted" in said(interrupted(op, arguments(), 0.1))


def interrupted(op, values, seconds):
    """Return the interrupt of a call after so much of the processor's time, by when the op has begun."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    def call():
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        try:
            op(*values)
        except RuntimeError:
            time.sleep(1)
            raise

    handler = signal.signal(signal.SIGVTALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt) as raised:
            call()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)
    # The handler's exception comes as soon as the interpreter goes on, with the op's own, if it raised one.
    return raised.value


def step_of_one_batch(samples, users, dim, optimizer, shared):
    """Return a call of one long step of training, the tables that it trains, and copies of them."""
    generator = torch.Generator().manual_seed(0)
    tables = [torch.rand(size, dim, generator=generator) for size in (users, 5000)]
    copies = [table.clone() for table in tables]
    state = [torch.zeros_like(t) if optimizer == 2 else None for t in tables for _ in range(2)]
    settings = torch.tensor([[1.0, 0.01, 0.9, 0.999, 1e-8, 1.0]] * 2 + [[0.0] * 6]).double()
    rest = None, settings, optimizer, 1, 1.0, 1.0, 1.0, 0.0, 0.0, 2, samples, False, False
    if not shared:
        ids = torch.randint(5000, (3, samples), generator=generator) * torch.tensor([[users // 5000], [1], [1]])
        return ops.mf_train, (*tables, None, *state, None, None, *ids, *rest), tables, copies
    matrix = torch.arange(users + 1) * 50, (torch.arange(50) * 100).repeat(users)
    hint = torch.arange(users).repeat_interleave(50)[::4].contiguous()
    drawn = *matrix, hint, 2, None, None, 1, users * 50, users * 50, 0, samples, 1
    excluded = *matrix, None, None, None, 5000, 64, 5, 1, True, 64
    return ops.mf_train_sampled, (*tables, None, *state, None, None, *drawn, *excluded, *rest), tables, copies


@pytest.mark.skipif(sys.platform != "linux", reason="the interpreter is asked on Linux")
@pytest.mark.parametrize(
    ("samples", "users", "dim", "optimizer", "shared"),
    # So long that a fast machine, too, is at it when the interpreter is asked, after a tenth of a second.
    [(8_000_000, 5000, 64, 0, False), (8_000_000, 5000, 64, 2, False), (1_000_000, 20_000, 128, 0, True)]
    + [(10_000_000, 200_000, 2, 0, False), (10_000_000, 10_000, 2, 0, False)],  # that take long to group
    ids=["SGD", "Adam", "shared negatives", "grouped by touch", "grouped by counting"],
)
def test_a_signal_ends_a_step_before_it_changes_a_table(samples, users, dim, optimizer, shared):
    op, values, tables, copies = step_of_one_batch(samples, users, dim, optimizer, shared)
    assert "interrupted" in said(interrupted(op, values, 0.02))
    for table, copy in zip(tables, copies, strict=True):
        assert torch.equal(table, copy)
    # What the op keeps from call to call is sound.
    other = step_of_one_batch(5000, users, dim, optimizer, shared)
    other[0](*other[1])
    again = step_of_one_batch(5000, users, dim, optimizer, shared)
    thread = threading.Thread(target=lambda: again[0](*again[1]))  # with memory of its own
    thread.start()
    thread.join()
    for table, expected in zip(other[2], again[2], strict=True):
        assert torch.equal(table, expected)


def said(error):
    """Return all that an exception and those before it say."""
    return "" if error is None else f"{error} {said(error.__context__)}"
