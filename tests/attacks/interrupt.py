"""Measures how soon Ctrl-C ends an op: a child calls it with much work, and is interrupted at a moment of a call.

    python tests/attacks/interrupt.py [OP ...] [--tries 3]

A row gives the seconds that one call takes when nobody interrupts it, and the longest time from the signal to the end
of the op; the moments are spread evenly over the call, so that every phase of it is met. The status is 1 if one was
later than a second, or if an op has no call here. On a machine that does other work the times mean little.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

MILLION = 1_000_000
PATIENCE = 240  # seconds for a child


def calls() -> dict[str, Callable[[], tuple[Any, ...]]]:
    """Return a function for each op that makes arguments of a call of a second or so."""
    generator = torch.Generator().manual_seed(0)
    size, dim = 20_000, 256

    def table(rows: int = size, width: int = dim) -> torch.Tensor:
        return torch.randn(rows, width, generator=generator)

    def ids(*shape: int) -> torch.Tensor:
        return torch.randint(size, shape, generator=generator)

    def matrix(each: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = torch.arange(0, size, size // each)[:each]
        return torch.arange(size + 1) * each, row.repeat(size)

    def graph(each: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = torch.arange(0, size, size // each)[:each]
        return torch.arange(2 * size + 1) * each, row.repeat(2 * size)

    def dropout(each: int) -> tuple[torch.Tensor, ...]:
        return (*graph(each), torch.randperm(size * each, generator=generator))

    def column(rows: int, low: int, high: int, width: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """One chunk of ids of so many digits each, which is the worst for whatever looks between chunks."""
        left = torch.randint(low, high, (rows,), generator=generator)
        digits = torch.empty(rows, width, dtype=torch.uint8)
        for place in reversed(range(width)):
            digits[:, place] = left % 10 + 48
            left //= 10
        return [digits.view(-1)], [torch.arange(rows + 1, dtype=torch.int32) * width]

    def epoch(each: int) -> tuple[Any, ...]:
        indptr, indices = matrix(each)
        owner = torch.arange(size).repeat_interleave(each)
        return indptr, indices, owner[::4].contiguous(), 2, None, None, 1, size * each, size * each

    nobody = torch.zeros(size + 1, dtype=torch.int64)
    settings = torch.tensor([[1.0, 0.01, 0, 0, 0, 1]] * 3).double()
    none: tuple[None, ...] = (None,) * 7
    users = torch.arange(size)
    training = (0, 1, 1.0, 1.0, 1.0, 0.0, 0.0, 2, 4096)
    return {
        "sample_negatives": lambda: (ids(5 * MILLION), *matrix(50), None, None, None, size, 8, 5, 1, 0, True, None),
        "fold_in": lambda: (
            *(table(), None, torch.arange(2001) * 20, ids(40_000), ids(40_000, 4), None),
            *(0, 1.0, 1.0, 1.0, 0.0, 0.1, 1e-4, 200),
        ),
        "fold_in, one user": lambda: (
            *(table(), None, torch.tensor([0, MILLION]), ids(MILLION), ids(MILLION, 1), None),
            *(1, 1.0, 1.0, 1.0, 0.02, 1e-6, 1e-12, 50),
        ),
        "csr_build": lambda: (ids(20 * MILLION), ids(20 * MILLION), size, size),
        "has_items": lambda: (ids(5 * MILLION), ids(5 * MILLION, 5), *matrix(50), None, size),
        "row_filter": lambda: (*matrix(10_000), size),
        "rank_factors": lambda: (*(table(), table(), None, users, nobody, nobody, nobody[:0], None, None, 10, False),),
        "rank_scores": lambda: (
            *(table(10_000, size), users[:10_000], torch.arange(10_001) * 50, *matrix(50), None, None, 10),
        ),
        "list_metrics": lambda: (ids(200_000, 100), torch.ones(4, size).double(), torch.tensor([10, 100])),
        "csr_score_moments": lambda: (table(), table(), None, *matrix(1000), torch.ones(size)),
        "csr_weighted_columns": lambda: (
            *(table(), table(), torch.ones(size), torch.ones(size), *matrix(1000), torch.ones(size), None, 0.5),
        ),
        "graph_propagate": lambda: (table(), table(), *graph(1000)[:1], None, graph(1000)[1], None, None, 1.0),
        "mf_loss": lambda: (
            *(table(), table(), None, ids(2 * MILLION), ids(2 * MILLION), ids(2 * MILLION), None, None),
            *(1, 1.0, 1.0, 1.0, 0.1, 2, True),
        ),
        "mf_gradient": lambda: (
            *(table(), table(), ids(2 * MILLION), ids(2 * MILLION), ids(2 * MILLION), table(2 * MILLION, 2)),
            *(torch.tensor(1.0), 0.1, True, True, True, False, False, False),
        ),
        "mf_gradient, sparse": lambda: (
            *(table(), table(), ids(2 * MILLION), ids(2 * MILLION), ids(2 * MILLION), table(2 * MILLION, 2)),
            *(torch.tensor(1.0), 0.1, True, True, True, True, False, False),
        ),
        "mf_step": lambda: (
            *(table(), table(), *none, ids(2 * MILLION), ids(2 * MILLION), ids(2 * MILLION), None, settings),
            *(None,) * 7,
            *(0, 1, 1.0, 1.0, 1.0, 0.0, 0.0, 2),
        ),
        "mf_train": lambda: (
            *(table(), table(), *none, ids(4 * MILLION), ids(4 * MILLION), ids(4 * MILLION), None, settings),
            *(*training, False),
        ),
        "mf_train, one batch": lambda: (
            *(table(), table(), *none, ids(4 * MILLION), ids(4 * MILLION), ids(4 * MILLION), None, settings),
            *(*training[:-1], 4 * MILLION, False),
        ),
        "mf_train, hogwild": lambda: (
            *(table(), table(), *none, ids(4 * MILLION), ids(4 * MILLION), ids(4 * MILLION), None, settings),
            *(*training, True),
        ),
        "mf_train_sampled": lambda: (
            *(table(), table(), *none, *epoch(200), 0, 4 * MILLION, 1, *matrix(200), None, None, None, size, 1, 5, 1),
            *(True, 0, None, settings, *training, False),
        ),
        "mf_train_sampled, shared": lambda: (
            *(table(), table(), *none, *epoch(200), 0, 4 * MILLION, 1, *matrix(200), None, None, None, size, 1, 5, 1),
            *(True, 256, None, settings, *training, False),
        ),
        "sample_negatives_at": lambda: (
            *(ids(4 * MILLION), ids(4 * MILLION), *matrix(50), None, None, None, size),
            *(8, 5, 1, True),
        ),
        "sample_positives": lambda: (*epoch(2000), 0, 40 * MILLION, 1, 5, 1),
        "unshuffle": lambda: (ids(20 * MILLION), size, 5, 1),
        "integer_ids": lambda: column(30 * MILLION, 10**8, 10**9, 9),
        "integer_ids, far apart": lambda: column(10 * MILLION, 10**17, 10**18, 18),
        "text_ids": lambda: column(10 * MILLION, 0, 10**17, 18),
        "user_metrics": lambda: (
            *(torch.arange(size + 1) * 500, torch.arange(500).repeat(size), torch.zeros(500 * size).long()),
            *(torch.full((size,), size), torch.rand(500 * size).double(), torch.tensor([10, 100]), 0),
        ),
        "graph_dropout": lambda: (*dropout(500), size, torch.tensor([3]), 0.3),
        "macr_loss": lambda: (
            *(table(20 * MILLION, 1).view(-1), table(20 * MILLION, 2), table(20 * MILLION, 1).view(-1)),
            *(table(20 * MILLION, 1).view(-1), table(20 * MILLION, 2), None, 1.0, 1.0, 2, True),
        ),
        "scale_gradients": lambda: ([table(100 * MILLION, 1), table(100 * MILLION, 1)], torch.tensor(0.5)),
        "scale_gradients_": lambda: ([table(100 * MILLION, 1), table(100 * MILLION, 1)], torch.tensor(0.5)),
        "pair_loss": lambda: (
            *(table(100 * MILLION, 1).view(-1), table(100 * MILLION, 1).view(-1), None, None, None),
            *(1, 1.0, 1.0, 1.0, 2, True),
        ),
    }


def child(name: str, pipe: IO[str], tries: int) -> None:
    """Call an op again and again, be interrupted so often, and say how long calls take and when they ended."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where this runs in the background
    values = calls()[name]()
    op = getattr(torch.ops.zerosum_ext, name.partition(",")[0])
    op(*values)  # the first call also meets new memory
    for _ in range(tries):
        try:
            start = time.monotonic()
            op(*values)
            now = time.monotonic()
            print("call", now - start, now, file=pipe, flush=True)
            try:
                while True:
                    op(*values)
            except RuntimeError as error:
                if "interrupted" not in str(error):
                    raise
                time.sleep(2)  # the interpreter raises what the handler wants as soon as it goes on
        except KeyboardInterrupt:
            now = time.monotonic()
        print("ended", now, now, file=pipe, flush=True)


def measure(name: str, tries: int) -> tuple[float, list[float]]:
    """Return the seconds of a call, and those from the signal to the end of the op, at evenly spread moments."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            with os.fdopen(writer, "w") as pipe:
                child(name, pipe, tries)
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(writer)
    guard = threading.Timer(PATIENCE, os.kill, (process, signal.SIGKILL))
    guard.start()

    def said(pipe: IO[str], word: str) -> tuple[float, float]:
        line = pipe.readline().split()
        if line[:1] != [word]:
            raise RuntimeError(f"the call fails, or does not end within {PATIENCE} s")
        return float(line[1]), float(line[2])

    after = []
    try:
        with os.fdopen(reader) as pipe:
            for turn in range(tries):
                takes, begun = said(pipe, "call")
                time.sleep(max(0.0, begun + (turn + 0.5) / tries * takes - time.monotonic()))
                sent = time.monotonic()
                os.kill(process, signal.SIGINT)
                after.append(said(pipe, "ended")[1] - sent)
    finally:
        guard.cancel()
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return takes, after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", help="only these")
    parser.add_argument("--tries", type=int, default=4, help="moments of a call at which it is interrupted")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fuzz"))
    import calls as fuzz_calls

    import zerosum_ext  # noqa: F401  (registers the ops)

    torch.set_num_threads(1)
    names = options.ops or list(calls())
    missing = set(fuzz_calls.ops()) - {name.partition(",")[0] for name in calls()} - set(fuzz_calls.QUERIES)
    if not options.ops and missing:
        print(f"no call is written for {', '.join(sorted(missing))}")
    slow = bool(missing) and not options.ops
    for name in names:
        try:
            takes, after = measure(name, options.tries)
        except (RuntimeError, ValueError) as error:
            print(f"{name:26} {error}", flush=True)
            slow = True
            continue
        slow |= max(after) > 1
        print(f"{name:26} a call {takes:6.2f} s, ended {max(after):5.2f} s after the signal", flush=True)
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
