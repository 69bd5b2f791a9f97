"""What the ways to train are worth on MovieLens-1M: accuracy, popularity bias and time, 80/10/10.

    ZEROSUM_EXT_DATA=DIR python benchmarks/training_quality.py [--output benchmarks/results/training-cpu] [--seeds 0 1]

Adam through autograd and through the fused step (the same samples, the same semantics), Hogwild SGD, and implicit's
BPR. The learning rate of each is chosen among a few on the validation part (NDCG@10, the first seed), and so is the
epoch of every run (best of at most --epochs, patience 3). Test figures: training and validation items are left out of
the ranking, means over seeds of split, initial tables and samples. Seconds are those of training up to the end of the
run, validation left out. The table is added to OUTPUT, which bench_training.py writes.
"""

from __future__ import annotations

import argparse
import importlib.util
from typing import Any

import bench_training
import numpy as np
import torch

import zerosum_ext as zx
from zerosum_ext.data import datasets
from zerosum_ext.evaluation import evaluate
from zerosum_ext.training import fit

METRICS = bench_training.QUALITY
RATES = {
    "Adam, fused": (1e-3, 3e-3, 1e-2),
    "Adam, autograd": (1e-3, 3e-3, 1e-2),
    "Hogwild SGD": (0.02, 0.05, 0.1, 0.2),
    "implicit": (0.02, 0.05, 0.1, 0.2),
}
PATIENCE = 3
LOSSES = {"bpr": zx.BPRLoss, "zerosum w=.9": lambda: zx.ZerosumLoss(w=0.9)}


def test_metrics(model: Any, split: zx.data.interactions.Split) -> dict[str, float]:
    popularity = split.train.popularity + split.valid.popularity + split.test.popularity
    names = ("ndcg", "recall", "pri", "pop_q_at_1")
    values = evaluate(model, split.train | split.valid, split.test, metrics=names, k=(10, 20), popularity=popularity)
    return {name: float(values[name]) for name in METRICS}


def ours(
    split: zx.data.interactions.Split, way: str, loss: str, rate: float, seed: int, args: argparse.Namespace
) -> dict:
    model = zx.MatrixFactorization(*split.train.shape, args.dim, seed=seed)
    hogwild = way.startswith("Hogwild")
    maker = torch.optim.SGD if hogwild else torch.optim.Adam
    try:
        history = fit(
            model,
            split.train,
            LOSSES[loss](),
            lambda parameters: maker(parameters, lr=rate),
            engine="hogwild" if hogwild else way.rpartition(" ")[2],
            batch_size=args.batch_size,
            epochs=args.epochs,
            seed=seed,
            l2=args.l2 if hogwild else 0.0,
            validation=split.valid,
            patience=PATIENCE,
            progress=False,
        )
    except ValueError as error:
        if "diverged" not in str(error):
            raise
        return {"validation": -1.0, "diverged": str(error)}  # a rate that is out of the question
    best = history.validation[history.best_epoch or 0]
    return {
        "validation": best,
        "epochs": len(history),
        "seconds": sum(history.seconds),
        "loss": list(history),
        **test_metrics(model, split),
    }


def implicit(split: zx.data.interactions.Split, rate: float, seed: int, args: argparse.Namespace) -> dict:
    """An epoch a call; its vectors, with the bias as their last number, as a MatrixFactorization."""
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    matrix = bench_training.csr_matrix_of(split.train)
    peer = BayesianPersonalizedRanking(
        factors=args.dim,
        learning_rate=rate,
        iterations=1,
        num_threads=torch.get_num_threads(),
        random_state=np.random.default_rng(seed),
    )
    model = zx.MatrixFactorization(*split.train.shape, args.dim + 1)
    best, since, best_state, seconds, epochs = -1.0, 0, None, [], 0
    while epochs < args.epochs and since < PATIENCE:
        peer.fit(matrix, show_progress=False, callback=lambda _, took, *__: seconds.append(took))
        epochs += 1
        with torch.no_grad():
            model.user_embedding.copy_(torch.from_numpy(peer.user_factors))
            model.item_embedding.copy_(torch.from_numpy(peer.item_factors))
        value = float(evaluate(model, split.train, split.valid, metrics=("ndcg",), k=(10,))["ndcg@10"])
        since += 1
        if value > best:
            best, since = value, 0
            best_state = {k: v.clone() for k, v in model.state_dict().items()}
    assert best_state is not None
    model.load_state_dict(best_state)
    return {"validation": best, "epochs": epochs, "seconds": sum(seconds), **test_metrics(model, split)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="OUTPUT.md and OUTPUT.json of bench_training.py, to add the table to")
    parser.add_argument("--data", default="ml-1m")
    parser.add_argument("--losses", nargs="+", choices=list(LOSSES), default=list(LOSSES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--l2", type=float, default=0.01, help="of Hogwild; implicit's default is .01 too")
    parser.add_argument("--rates", type=float, nargs="+", help="to choose from, instead of those of each way")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=list(RATES), default=list(RATES))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = datasets.load(args.data)
    splits = {seed: data.split_random((0.8, 0.1, 0.1), seed=seed) for seed in args.seeds}
    results = []
    for way in args.ways:
        if way == "implicit" and not importlib.util.find_spec("implicit"):
            continue
        for loss in ["bpr"] if way == "implicit" else args.losses:

            def train(rate: float, seed: int, way: str = way, loss: str = loss) -> dict[str, Any]:
                if way == "implicit":
                    return implicit(splits[seed], rate, seed, args)
                return ours(splits[seed], way, loss, rate, seed, args)

            first = {rate: train(rate, args.seeds[0]) for rate in args.rates or RATES[way]}
            rate = max(first, key=lambda r: first[r]["validation"])
            runs = [first[rate], *(train(rate, seed) for seed in args.seeds[1:])]
            settings = (
                f"d = {args.dim}, {args.threads} threads, Adam of batches of {args.batch_size}, Hogwild with l2 "
                f"{args.l2:g};\nat most {args.epochs} epochs, patience {PATIENCE}"
            )
            results.append(
                {
                    "key": ["quality", args.data, way, loss],
                    "settings": settings,
                    "rate": rate,
                    "tried": {str(tried): run["validation"] for tried, run in first.items()},
                    "runs": runs,
                }
            )
    bench_training.merge(args.output, results)


if __name__ == "__main__":
    main()
