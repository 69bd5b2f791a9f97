"""What the ops' checks cost: calls of this library and of an older one that checked less, in pairs.

    python tests/attacks/check_cost.py FOLDER [--now FOLDER] [--rounds 15]

FOLDER holds the older version with its compiled library; --now another one than these sources. Each version runs in a
process of its own. They take turns at the same call, and the order in a pair alternates. A row gives the median time of
the older one, the median of the paired ratios (this one / the older one) and their middle half. What else changed
between the versions is in it as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

ROOT = Path(__file__).resolve().parents[2]


def large() -> dict[str, Callable[[], Any]]:
    """Return calls that take milliseconds, by name."""
    ops = torch.ops.zerosum_ext
    generator = torch.Generator().manual_seed(0)
    users, items, dim, each = 20_000, 20_000, 64, 20
    counts = torch.full((users,), each)
    indptr = torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0)))
    indices = torch.cat([torch.arange(u % 7, items, items // each)[:each] for u in range(users)])
    user, item = (torch.randn(n, dim, generator=generator) for n in (users, items))
    asked = torch.randint(users, (50_000,), generator=generator)
    lookup = ops.row_filter(indptr, indices, items)
    lists = torch.rand(2000, 500, generator=generator).argsort(1)[:, :100].contiguous()
    few = torch.arange(200)
    positives, negatives = (torch.randint(items, (50_000,), generator=generator) for _ in range(2))
    square = torch.cat((indptr, indptr[1:] + len(indices)))
    neighbours = torch.cat((indices, indices))
    greater, popularity = torch.arange(each).repeat(users), torch.rand(users * each, generator=generator).double()
    hint = torch.arange(users).repeat_interleave(each)[::4].contiguous()
    return {
        "sample_positives": lambda: ops.sample_positives(
            indptr, indices, hint, 2, None, None, 1, users * each, users * each, 0, users * each, 1, 5, 1
        ),
        "mf_loss": lambda: ops.mf_loss(
            user, item, None, asked, positives, negatives, None, None, 1, 1.0, 1.0, 1.0, 0.1, 2, True
        ),
        "mf_gradient": lambda: ops.mf_gradient(
            *(user, item, asked, positives, negatives, torch.ones(50_000, 2), torch.tensor(1.0), 0.1),
            *(True, True, True, True),
        ),
        "user_metrics": lambda: ops.user_metrics(
            *(indptr, greater, torch.zeros_like(greater), torch.full((users,), items), popularity),
            *(torch.tensor([10, 100]), 0),
        ),
        "graph_propagate": lambda: ops.graph_propagate(user, item, square, None, neighbours, None, None, 1.0),
        "csr_weighted_columns": lambda: ops.csr_weighted_columns(
            user, item, torch.ones(users), torch.ones(items), indptr, indices, torch.ones(users), None, 0.5
        ),
        "row_filter": lambda: ops.row_filter(indptr, indices, items),
        "sample_negatives": lambda: ops.sample_negatives(
            asked, indptr, indices, lookup, None, None, items, 1, 5, 1, 0, True, None
        ),
        "has_items": lambda: ops.has_items(asked, (asked % items).view(-1, 1), indptr, indices, lookup, items),
        "list_metrics": lambda: ops.list_metrics(lists, torch.ones(2, items).double(), torch.tensor([10, 100])),
        "rank_factors": lambda: ops.rank_factors(
            user, item, None, few, indptr[:201], indptr, indices, indptr, indices, 20, False
        ),
        "csr_score_moments": lambda: ops.csr_score_moments(user, item, None, indptr, indices, torch.ones(items)),
        "pair_loss": lambda: ops.pair_loss(user.view(-1), item.view(-1), None, None, None, 0, 1.0, 1.0, 1.0, 2, True),
    }


def work() -> None:
    """Answer, line by line, how many seconds so many calls take."""
    import zerosum_ext

    sys.path.insert(0, str(ROOT / "tests" / "fuzz"))
    import calls

    torch.set_num_threads(1)
    names = ",".join(sorted(zerosum_ext._ops.LOSS_IDS, key=zerosum_ext._ops.LOSS_IDS.__getitem__))
    if "hinge" not in names:  # version 0.1.0, whose other numbers will do
        torch.ops.zerosum_ext.loss_names = lambda: f"{names},hinge"
    made: dict[str, Callable[[], Any]] = {}
    for op in calls.ops():
        function = getattr(torch.ops.zerosum_ext, op)
        try:
            values = calls.sound(op, 0)
            function(*values)
        except Exception:
            continue  # the other version's op takes other arguments
        made[f"{op}, small"] = lambda function=function, values=values: function(*values)
    for name, call in large().items():
        try:
            call()
        except Exception:
            continue
        made[f"{name}, large"] = call
    print(json.dumps(list(made)), flush=True)
    for line in sys.stdin:
        name, times = json.loads(line)
        call = made[name]
        start = time.perf_counter()
        for _ in range(times):
            call()
        print(time.perf_counter() - start, flush=True)


class Worker:
    """A process that calls the ops of one version."""

    def __init__(self, folder: Path) -> None:
        env = {**os.environ, "PYTHONPATH": str(folder)}
        self.child = subprocess.Popen(
            [sys.executable, __file__, "--work", str(folder)],
            env=env,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.names: list[str] = json.loads(self._pipe(self.child.stdout).readline())

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def seconds(self, name: str, times: int) -> float:
        self._pipe(self.child.stdin).write(json.dumps([name, times]) + "\n")
        self._pipe(self.child.stdin).flush()
        return float(self._pipe(self.child.stdout).readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--now", type=Path, default=ROOT)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help='calls whose name contains this, as in "large"')
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work()
    before, now = Worker(options.folder), Worker(options.now)
    for name in (n for n in now.names if n in before.names and options.only in n):
        times = max(1, int(0.01 / max(1e-7, before.seconds(name, 3) / 3)))
        old, ratios = [], []
        for turn in range(options.rounds):
            pair = {}
            for which in (before, now) if turn % 2 else (now, before):
                pair[which] = which.seconds(name, times) / times
            old.append(pair[before])
            ratios.append(pair[now] / pair[before])
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"{name:32} {1e6 * statistics.median(old):10.1f} us  x {middle:.2f} ({low:.2f} to {high:.2f})", flush=True
        )


if __name__ == "__main__":
    main()
