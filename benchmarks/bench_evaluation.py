"""How long evaluating takes, all metrics, against the matrix product alone and the ways that are common.

    python benchmarks/bench_evaluation.py [--output benchmarks/results/evaluation-cpu] [--threads 1] [--users 0]
        [--device cuda]

Data come from the folder that ZEROSUM_EXT_DATA names (ml-1m.npz, gowalla.npz, yelp2018.npz; absent ones are skipped).
Factors, 64 wide, are those of ten epochs of BPR on the training part, or random ones with --factors random: the
positives of a model that has learned something stand near the top, which is less work to count. "leave one out" holds
one item a user out. Peers that need a package (torchmetrics, ranx, pandas) are skipped where it is missing; slow ones
see the first users only, and their time is scaled to all. What a peer computes is said at its function: none computes
as much as ours. With --device cuda, by CUDA events, and without the peers that cannot run there.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable

import numpy as np
import torch
from _timing import (
    Method,
    Spread,
    data_set,
    earlier_rows,
    machine,
    on_gpu,
    ratio,
    spread,
    table,
    take_turns,
    write_results,
)

import zerosum_ext as zx

DIM, K = 64, 20


def splits_of(name: str) -> dict[str, tuple[zx.Interactions, zx.Interactions]]:
    """Title -> (train, test) of a data set; none where its file is not there."""
    x = data_set(name)
    if x is None:
        return {}
    if name == "ml-1m":
        last, random = x.split_last(), x.split_random((0.8, 0.2), seed=0)
        return {"ml-1m, leave one out": (last.train, last.test), "ml-1m, 80/20": (random.train, random.test)}
    split = x.split_by()
    return {name: (split.train, split.test)}


def splits() -> dict[str, tuple[zx.Interactions, zx.Interactions]]:
    """Title -> (train, test), of all data sets."""
    out: dict[str, tuple[zx.Interactions, zx.Interactions]] = {}
    for name in ("ml-1m", "gowalla", "yelp2018"):
        found = splits_of(name)
        if not found:
            print(f"{name}: skipped, ZEROSUM_EXT_DATA names no folder with {name}.npz")
        out |= found
    return out


# ------------------------------------------------------------------------------------------------------------- peers


def product(user: torch.Tensor, item: torch.Tensor) -> Method:
    """The matrix product in blocks of users, into memory that is there already."""
    step = max(1, (1 << 24) // len(item))
    out = torch.empty(min(step, len(user)), len(item), device=user.device)

    def run() -> None:
        for start in range(0, len(user), step):
            block = user[start : start + step]
            torch.mm(block, item.T, out=out[: len(block)])

    return run


def recommend(user: torch.Tensor, item: torch.Tensor, train: zx.Interactions) -> Method:
    """The 20 best new items of every user, without metrics."""
    model = zx.MatrixFactorization(len(user), len(item), DIM, device=user.device)
    with torch.no_grad():
        model.user_embedding.copy_(user)
        model.item_embedding.copy_(item)
    users = torch.arange(len(user), device=user.device)
    return lambda: model.recommend(users, K, exclude=train)


def eager_topk(user: torch.Tensor, item: torch.Tensor, train: zx.Interactions, test: zx.Interactions) -> Method:
    """Product, masking, torch.topk, and recall and NDCG from a look-up of the hits: the usual evaluation loop."""
    step = max(1, (1 << 24) // len(item))
    owners = torch.repeat_interleave(torch.arange(test.num_users, device=user.device), test.user_counts)
    keys = owners * test.num_items + test.indices
    discount = 1 / torch.log2(torch.arange(2, K + 2, device=user.device))
    ideal = discount.cumsum(0)

    def run() -> tuple[float, float]:
        recall, ndcg = [], []
        for start in range(0, len(user), step):
            users = torch.arange(start, min(len(user), start + step), device=user.device)
            scores = user[users] @ item.T
            counts = train.indptr[users + 1] - train.indptr[users]
            rows = torch.repeat_interleave(torch.arange(len(users), device=user.device), counts)
            scores[rows, train.indices[train.indptr[start] : train.indptr[users[-1] + 1]].long()] = -torch.inf
            top = scores.topk(K, dim=1).indices
            wanted = users[:, None] * test.num_items + top
            at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
            hit = (keys[at] == wanted).float()
            n = test.user_counts[users]
            kept = n > 0
            recall.append((hit.sum(1)[kept] / n[kept]).double())
            ndcg.append(((hit @ discount)[kept] / ideal[n[kept].clamp(max=K) - 1]).double())
        return float(torch.cat(recall).mean()), float(torch.cat(ndcg).mean())

    return run


def python_loop(
    user: torch.Tensor, item: torch.Tensor, train: zx.Interactions, test: zx.Interactions, users: int
) -> Method:
    """One user after the other in NumPy: mask, argsort, and HR, recall and NDCG from Python sets."""
    p, q = user.numpy(), item.numpy()
    pointers, items, known, seen = (x.numpy() for x in (test.indptr, test.indices, train.indptr, train.indices))

    def run() -> float:
        total = 0.0
        for u in range(users):
            scores = q @ p[u]
            scores[seen[known[u] : known[u + 1]]] = -np.inf
            wanted = set(items[pointers[u] : pointers[u + 1]].tolist())
            if not wanted:
                continue
            order = np.argsort(-scores)[:K].tolist()
            hits = [i in wanted for i in order]
            ideal = sum(1 / np.log2(r + 2) for r in range(min(K, len(wanted))))
            total += sum(hits) / len(wanted) + sum(h / np.log2(r + 2) for r, h in enumerate(hits)) / ideal
        return total

    return run


def eager_sort(user: torch.Tensor, item: torch.Tensor, train: zx.Interactions, test: zx.Interactions) -> Method:
    """Product, masking and torch.sort: what PyTorch code does that wants the rank of every positive.

    From the ranks HR, recall, precision, NDCG and MRR at 10 and 20, AUC, and from the lists ARP and coverage: still
    fewer metrics than ours. Ties fall as the sort leaves them.
    """
    step = max(1, (1 << 24) // len(item))
    places = torch.arange(len(item), device=user.device)
    discount = 1 / torch.log2(places + 2)
    ideal = discount.cumsum(0)
    popularity = (train.popularity + test.popularity).double()

    def run() -> list[float]:
        parts: list[list[torch.Tensor]] = []
        shown = torch.zeros(len(item), dtype=torch.bool, device=user.device)
        for start in range(0, len(user), step):
            users = torch.arange(start, min(len(user), start + step), device=user.device)
            scores = user[users] @ item.T
            counts = train.indptr[users + 1] - train.indptr[users]
            numbers = torch.arange(len(users), device=user.device)
            rows = torch.repeat_interleave(numbers, counts)
            scores[rows, train.indices[train.indptr[start] : train.indptr[users[-1] + 1]].long()] = -torch.inf
            order = scores.argsort(dim=1, descending=True)
            rank = torch.empty_like(order).scatter_(
                1, order, torch.arange(len(item), device=user.device).expand_as(order)
            )
            n = test.user_counts[users]
            rows = torch.repeat_interleave(numbers, n)
            place = rank[rows, test.indices[test.indptr[start] : test.indptr[users[-1] + 1]].long()]
            kept = n > 0
            sums = lambda x: torch.zeros(len(users), device=user.device).index_add_(0, rows, x.float())[kept]  # noqa: E731, B023
            m, negatives = n[kept].float(), (len(item) - counts - n)[kept].float()
            part = [((m * (m + 1) / 2 + m * negatives - sums(place + 1)) / (m * negatives))]
            for k in (10, 20):
                hit = place < k
                first = torch.full_like(numbers, len(item), dtype=torch.float32).scatter_reduce_(
                    0, rows, place.float(), "amin"
                )[kept]
                part += [
                    sums(hit) / m,
                    sums(hit) / k,
                    (sums(hit) > 0).float(),
                    torch.where(first < k, 1 / (first + 1), 0),
                ]
                part.append(sums(discount[place] * hit) / ideal[n[kept].clamp(max=k) - 1])
                part.append(popularity[order[:, :k]].mean(1))
            shown[order[:, :20].flatten()] = True
            parts.append(part)
        return [float(torch.cat(x).double().mean()) for x in zip(*parts, strict=True)] + [float(shown.double().mean())]

    return run


def python_loop_all(
    user: torch.Tensor, item: torch.Tensor, train: zx.Interactions, test: zx.Interactions, users: int
) -> Method:
    """One user after the other with NumPy and scipy, and most of the metrics that ours has.

    Ranks from a full argsort; HR, recall, precision, NDCG, MRR and MAP at 10 and 20, AUC, the rank correlation of
    popularity and score among the positives (scipy.stats.spearmanr, as for uPO and PRU), and ARP of the list.
    """
    from scipy.stats import spearmanr

    p, q = user.numpy(), item.numpy()
    pointers, items, known, seen = (x.numpy() for x in (test.indptr, test.indices, train.indptr, train.indices))
    popularity = (train.popularity + test.popularity).numpy()

    def run() -> float:
        total = 0.0
        for u in range(users):
            scores = q @ p[u]
            scores[seen[known[u] : known[u + 1]]] = -np.inf
            wanted = items[pointers[u] : pointers[u + 1]]
            if not len(wanted):
                continue
            order = np.argsort(-scores)
            rank = np.empty(len(order), np.int64)
            rank[order] = np.arange(1, len(order) + 1)
            places = sorted(rank[wanted].tolist())
            n, candidates = len(places), len(q) - (known[u + 1] - known[u])
            for k in (10, 20):
                top = [r for r in places if r <= k]
                total += len(top) / n + len(top) / k + (len(top) > 0) + (1 / top[0] if top else 0.0)
                ideal = sum(1 / np.log2(r + 1) for r in range(1, min(k, n) + 1))
                total += sum(1 / np.log2(r + 1) for r in top) / ideal
                total += sum((i + 1) / r for i, r in enumerate(top)) / min(k, n)
                total += popularity[order[:k]].mean()
            above = sum(r - 1 - i for i, r in enumerate(places))
            total += 1 - above / max(1, n * (candidates - n))
            if n >= 4:
                total += spearmanr(popularity[wanted], scores[wanted]).statistic
        return total

    return run


def dense_scores(
    user: torch.Tensor, item: torch.Tensor, train: zx.Interactions, test: zx.Interactions, users: int
) -> tuple[np.ndarray, np.ndarray]:
    """(scores with known items at -1e9, labels) of the first users, for the peers that want every pair."""
    scores = (user[:users] @ item.T).numpy()
    labels = np.zeros(scores.shape, bool)
    for u in range(users):
        scores[u, train.indices[train.indptr[u] : train.indptr[u + 1]].numpy()] = -1e9
        labels[u, test.indices[test.indptr[u] : test.indptr[u + 1]].numpy()] = True
    return scores, labels


def torchmetrics_peer(
    user: torch.Tensor, item: torch.Tensor, train: zx.Interactions, test: zx.Interactions, users: int
) -> Method:
    """RetrievalNormalizedDCG and RetrievalRecall over every (user, item) pair."""
    from torchmetrics.retrieval import RetrievalNormalizedDCG, RetrievalRecall

    scores, labels = (torch.from_numpy(x) for x in dense_scores(user, item, train, test, users))
    index = torch.arange(users).repeat_interleave(len(item))

    def run() -> float:
        total = 0.0
        for metric in (RetrievalNormalizedDCG(top_k=K), RetrievalRecall(top_k=K)):
            metric.update(scores.flatten(), labels.flatten(), indexes=index)
            total += float(metric.compute())
        return total

    return run


def ranx_peer(
    user: torch.Tensor, item: torch.Tensor, train: zx.Interactions, test: zx.Interactions, users: int
) -> Method:
    """ranx on each user's 100 best, which are given: building its two dictionaries, and NDCG, recall and MRR."""
    from ranx import Qrels, Run
    from ranx import evaluate as ranx_evaluate

    scores, labels = dense_scores(user, item, train, test, users)
    best = np.argsort(-scores, axis=1)[:, :100]

    def run() -> object:
        truth = {str(u): {str(i): 1 for i in np.flatnonzero(labels[u])} for u in range(users) if labels[u].any()}
        lists = {u: {str(i): float(scores[int(u), i]) for i in best[int(u)]} for u in truth}
        return ranx_evaluate(Qrels(truth), Run(lists), [f"ndcg@{K}", f"recall@{K}", "mrr"])

    run()  # compiles
    return run


def pandas_peer(
    user: torch.Tensor, item: torch.Tensor, train: zx.Interactions, test: zx.Interactions, users: int
) -> Method:
    """groupby over every (user, item) pair: rank, hits, recall, NDCG."""
    import pandas as pd

    scores, labels = dense_scores(user, item, train, test, users)
    frame = pd.DataFrame(
        {"user": np.repeat(np.arange(users), len(item)), "score": scores.ravel(), "label": labels.ravel()}
    )

    def run() -> float:
        rank = frame.groupby("user")["score"].rank(ascending=False, method="first")
        top = frame.assign(rank=rank)[frame["label"]]
        top = top.assign(gain=np.where(top["rank"] <= K, 1 / np.log2(top["rank"] + 1), 0), hit=top["rank"] <= K)
        return float(top.groupby("user")[["gain", "hit"]].sum().mean().sum())

    return run


def factors_of(train: zx.Interactions, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors [num_users, DIM] and [num_items, DIM]: of a trained model, or random."""
    if kind == "random":
        generator = torch.Generator().manual_seed(0)
        user, item = (torch.randn(n, DIM, generator=generator) * 0.1 for n in train.shape)
        return user, item
    model = zx.MatrixFactorization(*train.shape, DIM, seed=0)
    model.fit(train, loss="bpr", epochs=10, seed=0, progress=False)
    return model.user_embedding.detach(), model.item_embedding.detach()


def measure(
    title: str,
    train: zx.Interactions,
    test: zx.Interactions,
    rounds: int,
    threads: int,
    packages: list[str],
    device: str,
    chosen: list[str] | None,
    factors: str,
) -> list[dict]:
    user, item = (table.to(device) for table in factors_of(train, factors))
    title += ", random factors" if factors == "random" else ""
    train, test = train.to(device), test.to(device)
    train.popularity, test.popularity  # noqa: B018  kept with the interactions from the first epoch on
    methods: dict[str, Method] = {
        "product": product(user, item),
        "evaluate": lambda: zx.evaluate((user, item), train, test, k=(10, 20)),
        "rank": lambda: zx.rank((user, item), train, test, k=K),
        "evaluate, recall and NDCG at 20": lambda: zx.evaluate(
            (user, item), train, test, metrics=("recall", "ndcg"), k=(K,)
        ),
        "recommend": recommend(user, item, train),
        "eager top-k": eager_topk(user, item, train, test),
        "eager sort": eager_sort(user, item, train, test),
    }
    scale = dict.fromkeys(methods, 1.0)
    few = min(test.num_users, 20_000_000 // test.num_items)
    peers: dict[str, Callable[..., Method]] = {
        "per-user NumPy loop": python_loop,
        "per-user loop, all metrics": python_loop_all,
    }
    for package, peer in (("torchmetrics", torchmetrics_peer), ("ranx", ranx_peer), ("pandas", pandas_peer)):
        if package in packages and importlib.util.find_spec(package):
            peers[package] = peer
    if on_gpu(device):
        peers = {}
    for name, peer in peers.items():
        users = min(few, 200) if name in ("torchmetrics", "pandas") else min(few, 500)
        methods[name] = peer(user, item, train, test, users)
        scale[name] = test.num_users / users
    if chosen is not None:
        methods = {name: method for name, method in methods.items() if name in ("product", "evaluate", *chosen)}
    seconds = take_turns(methods, rounds=rounds, device=device)
    seconds = {name: values * scale[name] for name, values in seconds.items()}
    shape = f"{test.num_users} x {test.num_items}, {test.nnz / max(1, int((test.user_counts > 0).sum())):.3g} held out"
    rows = []
    for name, values in seconds.items():
        rows.append(
            {
                "data": title,
                "shape": shape,
                "threads": threads,
                "method": name,
                "seconds": spread(values),
                "of_product": ratio(seconds, name, "product"),
                "of_evaluate": ratio(seconds, name, "evaluate"),
            }
        )
        print(title, name, *(f"{rows[-1][c]}" for c in ("seconds", "of_product", "of_evaluate")), sep=" | ", flush=True)
    return rows


def large_memory() -> float:
    """MiB that evaluate adds to the peak for 1 M items, measured in a process of its own (Linux)."""
    code = f"""
import numpy as np, torch, zerosum_ext as zx
def status(key):
    return int(next(x for x in open("/proc/self/status") if x.startswith(key)).split()[1]) / 1024
rng = np.random.default_rng(0)
users, items = 2000, 1_000_000
train, test = (zx.Interactions.from_arrays(np.repeat(np.arange(users), 20), rng.integers(0, items, users * 20),
               shape=(users, items)) for _ in range(2))
factors = torch.randn(users, {DIM}), torch.randn(items, {DIM})
zx.evaluate((factors[0], factors[1][:1000]), *(zx.Interactions.from_arrays([0, 1], [2, 3], shape=(users, 1000)),) * 2)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = status("VmRSS")
zx.evaluate(factors, train, test)
print(status("VmHWM") - before)
"""
    with tempfile.TemporaryDirectory() as folder:  # not where the sources are: they may not be built
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    return float(run.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="write OUTPUT.md and OUTPUT.json")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--users", type=int, default=8192, help="the first users of each data set; 0 for all")
    parser.add_argument("--data", nargs="*", help="only these, by the beginning of their names")
    parser.add_argument("--packages", nargs="*", default=["torchmetrics", "ranx", "pandas"], help="peers to measure")
    parser.add_argument("--methods", nargs="*", help="beside product and evaluate only these; all by default")
    parser.add_argument("--merge", action="store_true", help="keep the other rows of OUTPUT.json")
    parser.add_argument("--factors", choices=("trained", "random"), default="trained")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = arguments.device
    torch.set_num_threads(arguments.threads)
    rows = []
    for title, split in splits().items():
        if arguments.data and not any(title.startswith(name) for name in arguments.data):
            continue
        train, test = (zx.Interactions.from_scipy(x.to_scipy()[: arguments.users or None]) for x in split)
        options = arguments.rounds, arguments.threads, arguments.packages, device, arguments.methods, arguments.factors
        rows += measure(title, train, test, *options)
    memory, memory_text = None, []
    if not on_gpu(device):
        memory = large_memory()
        memory_text = [
            f"Peak memory that `evaluate` adds for 1 000 000 items and 2000 users, d = {DIM}: {memory:.0f} MiB."
        ]
    if arguments.merge:
        key = lambda row: (row["data"], row.get("threads", 1), row["method"])  # noqa: E731
        for row in earlier_rows(arguments.output, rows, key, lambda results: results["timings"]):
            spreads = {name: Spread(*row[name]) for name in ("seconds", "of_product", "of_evaluate")}
            rows.append({"threads": 1} | row | spreads)
        rows.sort(key=lambda row: (row["data"], row["threads"]))
    columns = ("data", "shape", "method", "threads", "seconds", "of_product", "of_evaluate")
    header = (
        "data",
        "users x items, held-out items a user",
        "method",
        "threads",
        "s",
        "times the product",
        "times evaluate",
    )
    write_results(
        arguments.output,
        f"Evaluation on {device if on_gpu(device) else 'the CPU'}",
        machine(device) | {"rounds": arguments.rounds, "d": DIM},
        [
            "`evaluate` computes all its metrics at 10 and 20. `product` is torch.mm alone, block by block into one "
            "piece of memory. Seconds, and how many times as long as the product and as `evaluate`: median of paired "
            "rounds (quartiles). Where only some users were given to a peer its time is scaled to all.",
            "What the peers compute. `eager top-k` and `per-user NumPy loop`: recall and NDCG at 20 (the loop also "
            "hits), nothing else; `evaluate, recall and NDCG at 20` is the same from ours, `recommend` the lists "
            "alone. `eager sort` and `per-user loop, all metrics` compute most of what `evaluate` does, which takes "
            "the rank of every positive: they are the ones to compare `evaluate` with. What each does exactly is said "
            "at its function.",
            "Factors are of ten epochs of BPR, or random where that is said.",
            "The targets were 1.3 times the product, a fifth of `eager top-k` and a hundredth of per-query loops; "
            "which of them are reached: docs/metrics.md.",
            table(header, [[row[c] for c in columns] for row in rows], text_columns=3),
            *memory_text,
        ],
        {"timings": rows, "peak_mib_1m_items": memory},
    )


if __name__ == "__main__":
    main()
