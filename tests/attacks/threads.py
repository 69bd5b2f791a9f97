"""Calls of every compiled op that are large enough for several threads to share them, for ThreadSanitizer.

    python tests/attacks/threads.py [CASE ...]

sanitize_ops.py runs it with a library that counts the parallel regions in which more than one thread took part. A row
has their number. An op is met only where there was one: the status is 1 if an op of several threads never was.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

USERS, ITEMS, DIM, EACH = 3000, 2000, 16, 20
SGD, ADAGRAD, ADAM, LAZY = 0, 1, 2, 3
# Ops whose work is not worth a second thread.
SERIAL = ("loss_names", "cpu_isa", "scale_gradients", "scale_gradients_")


class World:
    """Tables, a matrix, and ids, of which all calls are made."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.indptr = torch.arange(USERS + 1) * EACH
        self.indices = torch.cat([torch.arange(u % 7, ITEMS, ITEMS // EACH)[:EACH] for u in range(USERS)])
        self.hint = torch.arange(USERS).repeat_interleave(EACH)[::4].contiguous()
        self.entries = USERS * EACH
        self.nobody = torch.zeros(USERS + 1, dtype=torch.int64)

    def table(self, rows: int, width: int = DIM) -> Tensor:
        return torch.randn(rows, width, generator=self.generator)

    def ids(self, bound: int, *shape: int) -> Tensor:
        return torch.randint(bound, shape, generator=self.generator)

    def tables(self, optimizer: int) -> list[Tensor | None]:
        """Return tables, with a bias, and what their optimizer keeps."""
        tables = [self.table(USERS), self.table(ITEMS), self.table(ITEMS, 1).view(-1)]
        state: list[Tensor | None] = []
        for of in tables:
            state.append(torch.zeros_like(of) if optimizer in (ADAM, LAZY) else None)
            state.append(torch.zeros_like(of) if optimizer != SGD else None)
        return [*tables, *state]


def _settings() -> Tensor:
    return torch.tensor([[1.0, 0.01, 0.9, 0.999, 1e-8, 1.0]] * 3).double()


def training(w: World) -> dict[str, Callable[[], tuple[Any, ...]]]:
    """Return calls of training: a few large batches that threads share, and many that some make ready for others."""

    def loss(optimizer: int, batch: int, asynchronous: bool, cosines: bool) -> tuple[Any, ...]:
        return (None, _settings(), optimizer, 1, 1.0, 1.0, 1.0, 0.01, 0.5 * (not asynchronous), 2, batch), (
            asynchronous,
            cosines,
        )

    def given(optimizer: int, batch: int, asynchronous: bool = False, cosines: bool = False) -> tuple[Any, ...]:
        before, after = loss(optimizer, batch, asynchronous, cosines)
        ids = w.ids(USERS, 30_000), w.ids(ITEMS, 30_000), w.ids(ITEMS, 30_000)
        return (*w.tables(optimizer), *ids, *before, *after)

    def drawn(
        optimizer: int, batch: int, shared: int, asynchronous: bool = False, cosines: bool = False
    ) -> tuple[Any, ...]:
        before, after = loss(optimizer, batch, asynchronous, cosines)
        matrix = w.indptr, w.indices
        lookup = torch.ops.zerosum_ext.row_filter(*matrix, ITEMS)
        epoch = *matrix, w.hint, 2, None, None, 1, w.entries, w.entries, 0, 20_000, 1
        k = 32 if shared else 1
        return (
            *(*w.tables(optimizer), *epoch, *matrix, lookup, None, None, ITEMS, k, 5, 1, True, shared),
            *(*before, *after, torch.rand(w.entries)),
        )

    made: dict[str, Callable[[], tuple[Any, ...]]] = {}
    names = {SGD: "SGD", ADAGRAD: "Adagrad", ADAM: "Adam", LAZY: "lazy Adam"}
    for (optimizer, name), batch in itertools.product(names.items(), (256, 15_000)):
        made[f"mf_train, {name}, batches of {batch}"] = lambda o=optimizer, b=batch: given(o, b)
        made[f"mf_train_sampled, {name}, batches of {batch}"] = lambda o=optimizer, b=batch: drawn(o, b, 0)
    for batch in (512, 10_000):
        made[f"mf_train_sampled, shared, batches of {batch}"] = lambda b=batch: drawn(ADAM, b, 64)
    made["mf_train, cosines"] = lambda: given(ADAM, 15_000, cosines=True)
    made["mf_train, hogwild"] = lambda: given(SGD, 256, True)
    made["mf_train, hogwild, cosines"] = lambda: given(SGD, 256, True, True)
    made["mf_train_sampled, hogwild"] = lambda: drawn(SGD, 256, 0, True)
    made["mf_train_sampled, shared, hogwild"] = lambda: drawn(SGD, 256, 64, True)
    ids = w.ids(USERS, 30_000), w.ids(ITEMS, 30_000), w.ids(ITEMS, 30_000)
    made["mf_step"] = lambda: (
        *(*w.tables(ADAM), *ids, None, _settings(), *(None,) * 7, ADAM, 1, 1.0, 1.0, 1.0, 0.0, 0.0, 2),
    )
    return made


def calls() -> dict[str, Callable[[], tuple[Any, ...]]]:
    """Return a function for each case that makes its arguments; a case is an op, perhaps with how it is called."""
    w = World()
    matrix = w.indptr, w.indices
    users = torch.arange(USERS)
    ids = w.ids(USERS, 30_000), w.ids(ITEMS, 30_000), w.ids(ITEMS, 30_000)
    square = torch.cat((w.indptr, w.indptr[-1] + torch.arange(1, ITEMS + 1) * (w.entries // ITEMS)))
    neighbours = torch.cat((w.indices, w.ids(USERS, w.entries)))
    chunks = [torch.randint(48, 58, (20_000, 6), dtype=torch.uint8, generator=w.generator).view(-1) for _ in range(6)]
    texts = chunks, [torch.arange(20_001, dtype=torch.int32) * 6] * 6
    long = torch.randn(300_000, generator=w.generator)
    slots = 2**31 - 1 << 32 | torch.arange(2048)
    masses = torch.arange(2049) * 2**31
    made: dict[str, Callable[[], tuple[Any, ...]]] = {
        "csr_build": lambda: (w.ids(USERS, 300_000), w.ids(ITEMS, 300_000), USERS, ITEMS),
        "csr_score_moments": lambda: (w.table(USERS), w.table(ITEMS), None, *matrix, torch.ones(ITEMS)),
        "csr_weighted_columns": lambda: (
            *(w.table(USERS), w.table(ITEMS), torch.ones(USERS), torch.ones(ITEMS), *matrix, torch.ones(USERS)),
            *(None, 0.5),
        ),
        "graph_propagate": lambda: (w.table(USERS), w.table(ITEMS), square, None, neighbours, None, None, 1.0),
        "graph_dropout": lambda: (square, neighbours, torch.randperm(w.entries), USERS, torch.tensor([3]), 0.3),
        "fold_in": lambda: (
            *(w.table(ITEMS), w.table(ITEMS, 1).view(-1), torch.arange(401) * 20, w.ids(ITEMS, 8000)),
            *(w.ids(ITEMS, 8000, 2), None, 1, 1.0, 1.0, 1.0, 0.02, 0.1, 1e-4, 20),
        ),
        "has_items": lambda: (w.ids(USERS, 30_000), w.ids(ITEMS, 30_000, 5), *matrix, None, ITEMS),
        "row_filter": lambda: (torch.arange(20_001) * 2, torch.tensor([3, 5]).repeat(20_000), ITEMS),
        "integer_ids": lambda: texts,
        "text_ids": lambda: (texts[0] * 3, texts[1] * 3),
        "list_metrics": lambda: (
            *(torch.rand(2000, 200).argsort(1)[:, :50].contiguous(), torch.ones(4, ITEMS).double()),
            torch.tensor([10, 50]),
        ),
        "user_metrics": lambda: (
            *(w.indptr, torch.arange(EACH).repeat(USERS), torch.zeros(w.entries).long(), torch.full((USERS,), ITEMS)),
            *(torch.rand(w.entries).double(), torch.tensor([10, 50]), 0),
        ),
        "macr_loss": lambda: (*(long, long.view(-1, 1), long, long, long.view(-1, 1)), None, 1.0, 1.0, 2, True),
        "pair_loss": lambda: (long, long, None, None, None, 1, 1.0, 1.0, 1.0, 2, True),
        "scale_gradients": lambda: ([w.table(300_000, 1)], torch.tensor(0.5)),
        "scale_gradients_": lambda: ([w.table(300_000, 1)], torch.tensor(0.5)),
        "mf_loss": lambda: (*(w.table(USERS), w.table(ITEMS), None, *ids, None, None, 1, 1.0, 1.0, 1.0, 0.1, 2, True),),
        "rank_factors": lambda: (
            *(w.table(USERS), w.table(ITEMS), w.table(ITEMS, 1).view(-1), users[:500], w.indptr[:501], *matrix),
            *(None, None, 10, False),
        ),
        "rank_factors, top only": lambda: (
            *(w.table(USERS), w.table(ITEMS), None, users[:500], w.nobody[:501], w.nobody, w.nobody[:0], *matrix),
            *(10, True),
        ),
        "rank_scores": lambda: (w.table(500, ITEMS), users[:500], w.indptr[:501], *matrix, None, None, 10),
        "sample_negatives": lambda: (w.ids(USERS, 30_000), *matrix, None, None, None, ITEMS, 2, 5, 1, 0, True, None),
        "sample_negatives, weighted": lambda: (
            *(w.ids(USERS, 30_000), w.nobody, w.nobody[:0], None, slots, masses, 2048, 2, 5, 1, 0, True, None),
        ),
        "sample_negatives_at": lambda: (
            *(w.ids(USERS, 30_000), w.ids(ITEMS, 30_000), *matrix, None, None, None, ITEMS, 2, 5, 1, False),
        ),
        "sample_positives": lambda: (
            *(*matrix, w.hint, 2, None, None, 1, w.entries, w.entries, 0, w.entries, 1, 5, 1, None),
        ),
        "unshuffle": lambda: (w.ids(w.entries, 100_000), w.entries, 5, 1),
    }
    for sparse in (False, True):
        made["mf_gradient, sparse" if sparse else "mf_gradient"] = lambda sparse=sparse: (
            *(w.table(USERS), w.table(ITEMS), *ids, torch.ones(30_000, 2), torch.tensor(1.0), 0.1),
            *(True, True, True, sparse, False, False),
        )
    return {**made, **training(w)}


def main() -> int:
    import zerosum_ext

    library = next(Path(zerosum_ext.__file__).parent.glob("_C.*so"))
    regions = ctypes.CDLL(str(library)).zx_tsan_regions
    regions.restype = ctypes.c_int64
    made, met = calls(), dict.fromkeys(SERIAL, 1)
    for name in sys.argv[1:] or made:
        op, values = name.partition(",")[0], made[name]()
        if not hasattr(torch.ops.zerosum_ext, op):
            print(f"  {name:48} is not there", flush=True)
            continue
        before = regions()
        getattr(torch.ops.zerosum_ext, op)(*values)
        shared = regions() - before
        met[op] = met.get(op, 0) + shared
        print(f"  {name:48} {shared:8} parallel regions", flush=True)
    listed = {
        name.partition("::")[2].partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("zerosum_ext::")
    }
    alone = sorted(op for op in (met if sys.argv[1:] else listed) if not met.get(op))
    print(f"  {len(listed)} ops; met by one thread alone, or not at all: {', '.join(alone) or 'none'}", flush=True)
    return 1 if alone else 0


if __name__ == "__main__":
    sys.exit(main())
