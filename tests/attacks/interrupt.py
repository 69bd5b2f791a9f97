"""Measures how soon Ctrl-C ends an op: a child calls it with much work, and is interrupted in the midst of a call.

    python tests/attacks/interrupt.py [OP ...] [--tries 3]

A row gives the seconds that one call takes when nobody interrupts it, and the longest time from the signal to the end
of the op. On a machine that does other work the times mean little.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

MILLION = 1_000_000


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

    nobody = torch.zeros(size + 1, dtype=torch.int64)
    settings = torch.tensor([[1.0, 0.01, 0, 0, 0, 1]] * 3).double()
    none: tuple[None, ...] = (None,) * 7
    users = torch.arange(size)
    return {
        "sample_negatives": lambda: (ids(5 * MILLION), *matrix(50), None, None, None, size, 8, 5, 1, 0, True, None),
        "csr_build": lambda: (ids(20 * MILLION), ids(20 * MILLION), size, size),
        "has_items": lambda: (ids(5 * MILLION), ids(5 * MILLION, 5), *matrix(50), None, size),
        "row_filter": lambda: (*matrix(2000), size),
        "rank_factors": lambda: (*(table(), table(), None, users, nobody, nobody, nobody[:0], None, None, 10, False),),
        "rank_scores": lambda: (table(5000, size), users[:5000], nobody[:5001], nobody, nobody[:0], None, None, 10),
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
        "mf_train": lambda: (
            *(table(), table(), *none, ids(4 * MILLION), ids(4 * MILLION), ids(4 * MILLION), None, settings),
            *(0, 0, 1.0, 0.0, 0.0, 0.0, 0.0, 2, 4096, False),
        ),
        "mf_train, hogwild": lambda: (
            *(table(), table(), *none, ids(4 * MILLION), ids(4 * MILLION), ids(4 * MILLION), None, settings),
            *(0, 0, 1.0, 0.0, 0.0, 0.0, 0.0, 2, 4096, True),
        ),
        "pair_loss": lambda: (
            *(table(100 * MILLION, 1).view(-1), table(100 * MILLION, 1).view(-1), None, None, None),
            *(1, 1.0, 1.0, 1.0, 2, True),
        ),
    }


def child(name: str) -> None:
    """Call an op again and again until it is interrupted."""
    import zerosum_ext  # noqa: F401  (registers the ops)

    torch.set_num_threads(1)
    values = calls()[name]()
    op = getattr(torch.ops.zerosum_ext, name.partition(",")[0])
    start = time.perf_counter()
    op(*values)
    print(time.perf_counter() - start, flush=True)
    try:
        while True:
            op(*values)
    except (KeyboardInterrupt, RuntimeError):
        print(time.monotonic(), flush=True)


def measure(name: str, rng: random.Random) -> tuple[float, float]:
    """Return the seconds of a call, and those from the signal to the end."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{name}: the call fails")
    takes = float(line)
    time.sleep(rng.random() * takes)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    ended = float(process.stdout.readline())
    process.kill()
    process.wait()
    return takes, ended - sent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", help="only these")
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return 0
    rng, slow = random.Random(0), False
    for name in options.ops or list(calls()):
        try:
            pairs = [measure(name, rng) for _ in range(options.tries)]
        except (RuntimeError, ValueError) as error:
            print(f"{name:24} {error}", flush=True)
            slow = True
            continue
        longest = max(after for _, after in pairs)
        slow |= longest > 1
        print(f"{name:24} a call {pairs[0][0]:6.2f} s, ended {longest:5.2f} s after the signal", flush=True)
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
