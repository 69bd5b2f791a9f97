"""How good a recommender is after so many seconds of training on so many cores: ours and other libraries'.

    ZEROSUM_EXT_DATA=DIR python benchmarks/training_budget.py [--seconds 30] [--threads 2]
        [--data ml-1m gowalla yelp2018] [--ways ...] [--output benchmarks/results/training-budget-cpu]

Each way trains epoch after epoch. After the first epoch that ends in each sixtieth of the time (see --looks) it is
looked at by NDCG@10 on the validation part (80/10/10, training items left out), until the time is used up or a fifth of
all looks in succession were no better. The rate of each way (see WAYS) is the best of those tried by validation; each
of them has the whole time. What is told is the test part's NDCG@10 of the best look within the time, and after how many
seconds of training it was. A first epoch that takes longer than the time counts all the same.

The clock counts the processor time of training divided by the number of threads, which other processes on the machine
hardly change. A thread that waits for another one idly does not count, to the advantage of libraries that use less than
all threads. Neither evaluation counts nor what brings a peer's tables to it. Results are merged into those that OUTPUT
has already.

    python benchmarks/training_budget.py --draw docs/images/training_budget.png --output OUTPUT

draws OUTPUT's curves instead: the best validation figure so far, which is what a user who stops then would get.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import _timing
import bench_training
import numpy as np
import torch

import zerosum_ext as zx
from zerosum_ext.data import datasets
from zerosum_ext.evaluation import evaluate
from zerosum_ext.training import fit

L2 = 0.01  # implicit's default, which all ways by SGD get

Step = Callable[[], None]


class Way(NamedTuple):
    """A model, what trains an epoch, what brings the model up to date with it, and what ends the training."""

    model: Any
    epoch: Step
    bring: Step = lambda: None
    end: Step = lambda: None


def metric(model: Any, exclude: Any, held_out: Any) -> float:
    return float(evaluate(model, exclude, held_out, metrics=("ndcg",), k=(10,))["ndcg@10"])


def ours(
    train: zx.Interactions,
    dim: int,
    choice: tuple[float, ...],
    *,
    loss: str,
    engine: str,
    negatives: int = 1,
    shared: bool = False,
    normalize: bool = False,
) -> Way:
    model = zx.MatrixFactorization(*train.shape, dim, seed=0, normalize=normalize)
    module = zx.SampledSoftmaxLoss(temperature=choice[1]) if loss == "softmax" else zx.losses.get_loss(loss)
    options: dict[str, Any] = {"batch_size": 4096, "epochs": 1, "progress": False, "engine": engine}
    options |= {"negatives": negatives, "negatives_shared": shared}
    if engine == "hogwild":
        options["l2"] = L2
    optimizer: Any = torch.optim.SGD if engine == "hogwild" else torch.optim.Adam
    parameters = list(model.parameters())
    kept = optimizer(parameters, lr=choice[0], **({"fused": True} if engine == "autograd" else {}))
    return Way(model, lambda: fit(model, train, module, kept, **options))


def implicit(train: zx.Interactions, dim: int, choice: tuple[float, ...], threads: int) -> Way:
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    matrix = bench_training.csr_matrix_of(train)
    # A generator, which goes on from call to call: a number would mean the same draws in every epoch.
    draws = np.random.default_rng(0)
    peer = BayesianPersonalizedRanking(
        factors=dim, learning_rate=choice[0], regularization=L2, iterations=1, num_threads=threads, random_state=draws
    )
    model = zx.MatrixFactorization(*train.shape, dim + 1)

    def bring() -> None:
        with torch.no_grad():
            model.user_embedding.copy_(torch.from_numpy(peer.user_factors))
            model.item_embedding.copy_(torch.from_numpy(peer.item_factors))

    return Way(model, lambda: peer.fit(matrix, show_progress=False), bring)


def cornac(train: zx.Interactions, dim: int, choice: tuple[float, ...], threads: int) -> Way:
    model = zx.MatrixFactorization(*train.shape, dim, seed=0)
    matrix = bench_training.csr_matrix_of(train)
    method = bench_training.cornac_bpr(matrix, model, threads, rate=choice[0], l2=L2)
    return Way(model, lambda: method.run(1))


def buffalo(train: zx.Interactions, dim: int, choice: tuple[float, ...], threads: int) -> Way:
    model = zx.MatrixFactorization(*train.shape, dim, seed=0)
    matrix = bench_training.csr_matrix_of(train)
    peer, epoch = bench_training.buffalo_peer(matrix, model, threads, choice[0], L2, epochs=1_000_000)
    peer.launch_workers()
    return Way(model, epoch, end=peer.join)


#: way -> what makes it, and the choices of (rate, temperature).
BPR_RATES = ((0.01,), (0.02,), (0.05,), (0.1,))
BUFFALO_RATES = ((0.01,), (0.02,), (0.05,))  # at .1 its numbers grow without bound, and then its process ends
SOFTMAX = ((1e-3, 0.2), (3e-3, 0.2))
WAYS: dict[str, tuple[Callable[..., Any], tuple[tuple[float, ...], ...]]] = {
    "hogwild bpr": (functools.partial(ours, loss="bpr", engine="hogwild"), BPR_RATES),
    "fused bpr, Adam": (functools.partial(ours, loss="bpr", engine="fused"), ((1e-3,), (3e-3,))),
    "fused softmax, 64 shared, Adam": (
        functools.partial(ours, loss="softmax", engine="fused", negatives=64, shared=True),
        SOFTMAX,
    ),
    "fused softmax, 64, Adam": (functools.partial(ours, loss="softmax", engine="fused", negatives=64), SOFTMAX),
    "implicit bpr": (implicit, BPR_RATES),
    "cornac bpr": (cornac, BPR_RATES),
    "buffalo bpr": (buffalo, BUFFALO_RATES),
    "PyTorch eager bpr, Adam": (functools.partial(ours, loss="bpr", engine="autograd"), ((3e-3,),)),
    "PyTorch eager softmax, 64, Adam": (
        functools.partial(ours, loss="softmax", engine="autograd", negatives=64),
        ((3e-3, 0.2),),
    ),
}


def trained(way: str, split: Any, choice: tuple[float, ...], arguments: argparse.Namespace) -> dict[str, Any]:
    """Train for the time given; return the best look's figures and the curve."""
    make = WAYS[way][0]
    threads = {} if way.startswith(("hogwild", "fused", "PyTorch")) else {"threads": arguments.threads}
    model, epoch, bring, end = make(split.train, arguments.dim, choice, **threads)
    used, epochs, curve, best, since, state = 0.0, 0, [], -1.0, 0, None
    wall, share = time.perf_counter(), arguments.seconds / arguments.looks
    while used < arguments.seconds and 5 * since < arguments.looks:
        start = time.process_time()
        epoch()
        before, used = used, used + (time.process_time() - start) / arguments.threads
        if used > arguments.seconds and curve:
            break  # this epoch did not end in time
        epochs += 1
        if curve and before // share == used // share:
            continue
        bring()
        value = metric(model, split.train, split.valid)
        curve.append((round(used, 3), round(value, 5), round(time.perf_counter() - wall, 3)))
        since += 1
        if value > best:
            best, since = value, 0
            state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    end()
    assert state is not None
    model.load_state_dict(state)
    test = metric(model, split.train | split.valid, split.test)
    at = next(seconds for seconds, value, _ in curve if abs(value - best) < 1e-4)
    return {"choice": choice, "validation": best, "test": test, "seconds": at, "epochs": epochs, "curve": curve}


def report(rows: list[dict[str, Any]]) -> list[str]:
    parts = []
    for name in dict.fromkeys(row["key"][1] for row in rows):
        found = [row for row in rows if row["key"][1] == name]
        parts += [
            f"## {name}",
            _timing.table(
                (
                    "way",
                    "test NDCG@10",
                    "validation",
                    "best after, s",
                    "epochs trained",
                    "rate, temperature",
                    "of rates",
                ),
                [
                    (
                        row["key"][2],
                        f"{row['test']:.4f}",
                        f"{row['validation']:.4f}",
                        f"{row['seconds']:.2f}",
                        row["epochs"],
                        ", ".join(f"{x:g}" for x in row["choice"]),
                        ", ".join(f"{x:g}" for x in row["rates"]),
                    )
                    for row in sorted(found, key=lambda row: -row["test"])
                ],
                text_columns=1,
            ),
        ]
    return parts


#: What is drawn, and how: ours in full lines.
LINES = {
    "fused softmax, 64 shared, Adam": ("zerosum_ext, softmax, shared negatives", "#0072B2", "-"),
    "fused softmax, 64, Adam": ("zerosum_ext, softmax", "#56B4E9", "-"),
    "fused bpr, Adam": ("zerosum_ext, BPR, Adam", "#009E73", "-"),
    "hogwild bpr": ("zerosum_ext, BPR, Hogwild", "#000000", "-"),
    "buffalo bpr": ("buffalo, BPR", "#D55E00", "--"),
    "cornac bpr": ("cornac, BPR", "#CC79A7", "--"),
    "implicit bpr": ("implicit, BPR", "#E69F00", "--"),
    "PyTorch eager bpr, Adam": ("PyTorch's autograd and Adam, BPR", "#888888", ":"),
    "PyTorch eager softmax, 64, Adam": ("PyTorch's autograd and Adam, softmax", "#888888", "-."),
}


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """A panel for each data set: the best validation figure so far over the seconds of training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["key"][1] for row in rows))
    figure = Figure(figsize=(3.6 * len(names), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for way, (label, colour, style) in LINES.items():
            for row in rows:
                if row["key"][1:] == [name, way]:
                    seconds, values, _ = zip(*row["curve"], strict=True)
                    best = list(itertools.accumulate(values, max))
                    last = max(row["seconds_given"], seconds[-1])
                    axes.plot([*seconds, last], [*best, best[-1]], style, color=colour, label=label, marker="", lw=1.6)
                    axes.plot(seconds[0], values[0], ".", color=colour, ms=4)
        axes.set(title=name, xlabel="seconds of training, on two cores", ylim=(0, None), xlim=(0, 30))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("best validation NDCG@10 so far")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--looks", type=int, default=60)
    parser.add_argument("--rates", type=float, nargs="+", help="try these alone, of those that a way has")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--data", nargs="+", default=["ml-1m", "gowalla", "yelp2018"])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--output", help="write OUTPUT.md and OUTPUT.json, merged with what is there")
    parser.add_argument("--draw", metavar="PNG", help="draw the curves of OUTPUT.json, and train nothing")
    arguments = parser.parse_args()
    if arguments.draw:
        with open(f"{arguments.output}.json", encoding="utf-8") as file:
            draw(json.load(file)["results"], arguments.draw)
        return
    torch.set_num_threads(arguments.threads)
    for name in arguments.data:
        split = datasets.load(name).split_random((0.8, 0.1, 0.1), seed=0)
        for way in arguments.ways:
            library = way.split()[0]
            if library in bench_training.PEERS and not importlib.util.find_spec(library):
                continue
            rates = arguments.rates or [choice[0] for choice in WAYS[way][1]]
            tried = [trained(way, split, choice, arguments) for choice in WAYS[way][1] if choice[0] in rates]
            best = max(tried, key=lambda run: run["validation"])
            row = {"key": ["budget", name, way], "seconds_given": arguments.seconds, **best}
            row |= {"rates": [run["choice"][0] for run in tried], "looks": arguments.looks}
            print(json.dumps({k: v for k, v in row.items() if k != "curve"}), flush=True)
            rows = [json.loads(json.dumps(row))]
            rows = _timing.earlier_rows(arguments.output, rows, lambda row: row["key"]) + rows
            info = _timing.machine() | bench_training.versions()
            text = (
                f"{arguments.seconds:g} s of processor time a thread on {arguments.threads} threads, "
                f"d = {arguments.dim}, 80/10/10, one seed.\n"
                "Measured by `python benchmarks/training_budget.py`, which says how. Hogwild and fused are ours.\n"
                "PyTorch eager has our samples and losses, and its own autograd and fused Adam.\n"
                "implicit draws negatives as often as they are liked, all others draw them uniformly."
            )
            title = "What a recommender is worth after half a minute of training"
            _timing.write_results(arguments.output, title, info, [text, *report(rows)], rows)


if __name__ == "__main__":
    main()
