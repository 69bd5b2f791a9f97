"""One of several processes that test_distributed.py starts: it does a named job and rank 0 writes what came out."""

from __future__ import annotations

import pickle
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pickles import Harmful

import zerosum_ext as zx
from zerosum_ext import distributed as zxd

USERS, ITEMS, DIM = 150, 90, 8
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=2.0),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "sparse_adam": lambda p: torch.optim.SparseAdam(list(p), lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}
# Losses, optimizers and options: pairs, rows of K, two positives, constants of items, biases, L2, clipping.
CASES: list[tuple[str, str, bool, dict[str, Any]]] = [
    ("zerosum", "sgd", False, {}),
    ("bpr", "sgd", True, {"l2": 0.01, "clip_row_norm": 0.02, "draws": 2}),
    ("pos2neg2", "adagrad", False, {"draws": 2}),
    ("bpr", "sparse_adam", True, {"strategy": "popularity", "negatives": 3}),
    ("sampled_softmax", "adam", False, {"negatives": 4, "l2": 0.001}),
    ("popularity", "sgd", True, {}),
]
LAYOUTS = ("sharded", "replicated", "data-parallel")


def interactions(seed: int = 0) -> zx.Interactions:
    """Return some interactions: popular and rare items, a user who has all of them and one who has none."""
    rng = np.random.default_rng(seed)
    cells = rng.random((USERS, ITEMS)) < (0.02 + 0.25 * rng.random(ITEMS) ** 3)[None]
    cells[5], cells[7] = True, False
    return zx.Interactions.from_arrays(*cells.nonzero(), shape=(USERS, ITEMS))


def loss_of(name: str, data: zx.Interactions) -> Any:
    return zx.IPWLoss(data.popularity) if name == "popularity" else name


def options_of(name: str, optimizer: str, options: dict[str, Any], data: zx.Interactions) -> dict[str, Any]:
    return {"loss": loss_of(name, data), "optimizer": OPTIMIZERS[optimizer], "batch_size": 64, "seed": 9, **options}


def model_of(layout: str, data: Any, bias: bool = False, dtype: torch.dtype = torch.float64, group: Any = None) -> Any:
    options: dict[str, Any] = {"embedding_dim": DIM, "seed": 3, "dtype": dtype, "item_bias": bias}
    if layout in ("one", "data-parallel"):
        return zx.MatrixFactorization(USERS, ITEMS, **options)
    return zxd.ShardedMatrixFactorization.from_interactions(data, items=layout, **options)


def whole(model: Any) -> dict[str, torch.Tensor]:
    return (model.gather() if hasattr(model, "gather") else model).state_dict()


def train(group: zxd.Group, folder: Path) -> dict[str, Any]:
    """Train every case in every layout."""
    data, out = interactions(), {}
    shares = zxd.ShardedInteractions.from_interactions(data, group)
    for number, (loss, optimizer, bias, options) in enumerate(CASES):
        for layout in LAYOUTS if number < 2 else LAYOUTS[: 3 - group.size // 2]:
            mine = data if layout == "data-parallel" else shares
            model = model_of(layout, mine, bias)
            history = (
                model.fit(mine, **options_of(loss, optimizer, options, data), epochs=2, mesh=group)
                if layout == ("data-parallel")
                else model.fit(mine, **options_of(loss, optimizer, options, data), epochs=2)
            )
            out[number, layout] = list(history), history.samples, history.engine, whole(model)
    return out


def like_movielens() -> tuple[zx.Interactions, zx.Interactions]:
    """Return train and test: popularity as of MovieLens-100K, users with tastes, 20 to 200 interactions of each."""
    rng = np.random.default_rng(11)
    users, items = 300, 420
    appeal = np.exp(rng.normal(0, 1.2, items))[None] * np.exp(
        rng.normal(0, 1, (users, 4)) @ rng.normal(0, 0.7, (4, items))
    )
    counts = np.clip(rng.lognormal(3.8, 0.8, users), 20, 200).astype(int)
    chosen = [
        rng.choice(items, count, replace=False, p=row / row.sum()) for count, row in zip(counts, appeal, strict=True)
    ]
    data = zx.Interactions.from_arrays(
        np.repeat(np.arange(users), counts), np.concatenate(chosen), shape=(users, items)
    )
    split = data.split_random((0.8, 0.2), seed=0)
    return split.train, split.test


def adam_of(model: Any, train: Any, loss: str, **options: Any) -> Any:
    """Train with Adam in float32 as published work does, in fewer steps."""
    adam = lambda p: torch.optim.Adam(p, lr=0.005)  # noqa: E731
    module = zx.ZerosumLoss(w=0.9) if loss == "zerosum" else zx.BPRLoss()
    return model.fit(train, module, adam, batch_size=512, epochs=4, seed=0, progress=False, **options)


def adam(group: zxd.Group, folder: Path) -> dict[str, Any]:
    """Train with Adam in float32, in every layout, and evaluate."""
    train, test = like_movielens()
    shares = zxd.ShardedInteractions.from_interactions(train, group)
    first, last = shares.user_cuts[group.rank : group.rank + 2]
    held_out = shares.with_local(test.rows(first, last))
    out: dict[str, Any] = {}
    for loss in ("bpr", "zerosum"):
        for layout in LAYOUTS:
            if layout == "data-parallel":
                model: Any = zx.MatrixFactorization(*train.shape, 16, seed=3)
                adam_of(model, train, loss, mesh=group)
                found = zx.evaluate(model, train, test)
            else:
                model = zxd.ShardedMatrixFactorization.from_interactions(shares, embedding_dim=16, items=layout, seed=3)
                adam_of(model, shares, loss)
                found = zxd.evaluate(model, shares, held_out)
            out[loss, layout] = found, whole(model)
    return out


def evaluate(group: zxd.Group, folder: Path) -> dict[str, Any]:
    """Evaluate and recommend, with all layouts."""
    data, test = interactions(), interactions(1)
    shares = zxd.ShardedInteractions.from_interactions(data, group)
    first, last = shares.user_cuts[group.rank : group.rank + 2]
    held_out = shares.with_local(test.rows(first, last))
    out: dict[str, Any] = {}
    for layout in LAYOUTS[:2]:
        for bias in (False, True):
            model = model_of(layout, shares, bias, torch.float32)
            if bias:
                with torch.no_grad():
                    offset = model.item_cuts[group.rank] if layout == "sharded" else 0
                    model.item_bias.copy_(torch.arange(offset, offset + len(model.item_bias)) % 7 * 0.001)
            items, scores = model.recommend(range(first, last), 7, exclude=shares)
            lists = torch.cat(group.gather(items)), torch.cat(group.gather(scores))
            out[layout, bias] = zxd.evaluate(model, shares, held_out), lists, whole(model)
    one = model_of("data-parallel", data, dtype=torch.float32)
    options = {"epochs": 2, "batch_size": 64, "validation": test, "metric": "ndcg@10"}
    out["validation"] = one.fit(data, "zerosum", **options, mesh=group).validation
    parts = shares.split_random((0.7, 0.3), seed=4)
    out["split"] = [torch.cat(group.gather(_cells(part))) for part in parts]
    out["digest"] = shares.digest()
    return out


def _cells(part: zxd.ShardedInteractions) -> torch.Tensor:
    users, items = part.local.pairs()
    return (users + part.first_user) * ITEMS + items


def shards(group: zxd.Group, folder: Path) -> dict[str, Any]:
    """Read folders of parquet parts, and gather what the processes have."""
    out: dict[str, Any] = {}
    for kind in sorted(path.name for path in folder.glob("*") if path.is_dir() and path.name.startswith("read-")):
        part = zxd.read_shards(folder / kind, group)
        users, items = part.local.pairs()
        cells = torch.stack((users + part.first_user, items), 1)
        parts: list[Any] = [None] * group.size
        mine = part.local.user_ids, part.item_ids, part.local.column("test", "rating")
        torch.distributed.all_gather_object(parts, mine, group=group.process_group)
        out[kind] = torch.cat(group.gather(cells)), parts, part.shape, part.digest()
    for name in (
        "twice",
        "mixed",
        "broken",
        "damaged",
        "null",
        "no rows",
        "nothing",
        f"other {group.rank == 0}",
        f"stale {group.rank == 0}",
    ):
        try:
            zxd.read_shards(folder / name, group)
            out[name] = "read"
        except (ValueError, OSError) as error:
            out[name] = str(error)
    return out


def save(group: zxd.Group, folder: Path) -> dict[str, Any]:
    """Train for three epochs, and again with a stop in the middle of the second, whose checkpoint is kept."""
    data = interactions()
    shares = zxd.ShardedInteractions.from_interactions(data, group)
    out = {}
    for number in (1, 3):
        loss, optimizer, bias, options = CASES[number]
        given = options_of(loss, optimizer, options, data)
        model = model_of("sharded", shares, bias)
        history = model.fit(shares, **given, epochs=3, checkpoint=folder / f"whole-{number}", checkpoint_every=7)
        out[number] = list(history), whole(model)
        stopped = model_of("sharded", shares, bias)
        stopped.fit(shares, **given, epochs=1, checkpoint=folder / f"stopped-{number}")
    return out


def resume(group: zxd.Group, folder: Path) -> dict[str, Any]:
    """Go on where ``save`` stopped, with another number of processes."""
    data = interactions()
    shares = zxd.ShardedInteractions.from_interactions(data, group)
    out = {}
    for number in (1, 3):
        loss, optimizer, bias, options = CASES[number]
        model = model_of("sharded", shares, bias)
        place = folder / f"stopped-{number}"
        given = options_of(loss, optimizer, options, data)
        history = model.fit(shares, **given, epochs=3, resume=place)
        out[number] = list(history), whole(model)
    try:
        model.fit(shares, "bpr", batch_size=32, resume=folder / "stopped-1")
    except ValueError as error:
        out["other run"] = str(error)
    if group.rank == 0:
        shutil.copytree(folder / "stopped-1", folder / "hostile")
        (next((folder / "hostile").iterdir()) / ".metadata").write_bytes(pickle.dumps(Harmful(folder / "harm")))
    group.barrier()
    loss, optimizer, bias, options = CASES[1]
    try:
        model_of("sharded", shares, bias).fit(
            shares, **options_of(loss, optimizer, options, data), epochs=3, resume=folder / "hostile"
        )
    except ValueError as error:
        out["hostile"] = str(error)
    return out


def refuse(group: zxd.Group, folder: Path) -> dict[str, Any]:
    """Give fit what it cannot take, in one process or in all of them."""
    data = interactions()
    shares = zxd.ShardedInteractions.from_interactions(data, group)
    model = model_of("sharded", shares)
    even = zxd.ShardedMatrixFactorization(USERS, ITEMS, DIM, mesh=group)
    whole_model = model_of("data-parallel", data)
    wrong = USERS if group.rank == 1 else shares.first_user

    def full_disk() -> None:
        """Save while rank 1 can write no more than a little."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if group.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        try:
            model.fit(shares, epochs=1, checkpoint=folder / "full")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    calls: dict[str, Callable[[], Any]] = {
        "whole interactions": lambda: model.fit(data),
        "hogwild": lambda: model.fit(shares, engine="hogwild"),
        "precision": lambda: model.fit(shares, precision="bfloat16"),
        "transform": lambda: model.fit(shares, transform=lambda *batch: batch),
        "weights": lambda: model.fit(shares, sample_weight="weights"),
        "drawn": lambda: model.fit(shares, sample_weight="drawn"),
        "users": lambda: even.fit(shares),
        "one process errs": lambda: model.recommend([wrong]),
        "epochs": lambda: model.fit(shares, epochs=1 + group.rank),
        "data": lambda: zxd.ShardedInteractions.from_interactions(interactions(group.rank), group),
        "data of a whole model": lambda: whole_model.fit(interactions(group.rank), mesh=group),
        "no memory": lambda: zxd.ShardedMatrixFactorization(10**13, 10, mesh=group),
        "full disk": full_disk,
        "no checkpoint": lambda: model.fit(shares, resume=folder / "nothing"),
    }
    said = {}
    for name, call in calls.items():
        try:
            call()
            said[name] = "nothing"
        except (TypeError, ValueError, OSError, MemoryError) as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


def main() -> None:
    torch.set_num_threads(1)
    folder, jobs = Path(sys.argv[1]), sys.argv[2:]
    group = zxd.start_group(150)
    for job in jobs:
        out = globals()[job](group, folder)
        if group.rank == 0:
            torch.save(out, folder / f"{job}-{group.size}.pt")
    group.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
