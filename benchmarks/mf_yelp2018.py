"""Matrix factorization with BPR on Yelp2018: Recall@20 and NDCG@20 over the epochs.

    ZEROSUM_EXT_DATA=DIR python benchmarks/mf_yelp2018.py [--l2 X] [--validate]

Reads yelp2018.npz, the split of LightGCN. Published for BPR-MF on it: Recall@20 .0433, NDCG@20 .0354 ([WHW19] table 3,
repeated by [HDW20]). --validate holds a tenth of the training part out and measures on that instead: settings are
chosen so, and the test part is only looked at. Writes benchmarks/results/mf_yelp2018.json after every evaluation.

[WHW19] Wang et al., "Neural Graph Collaborative Filtering", SIGIR 2019.
[HDW20] He et al., "LightGCN", SIGIR 2020.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

import torch

import zerosum_ext as zx
from zerosum_ext.training import EpochEnd, fit

RESULT = Path(__file__).parent / "results" / "mf_yelp2018.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--l2", type=float, default=1e-2)
    parser.add_argument("--every", type=int, default=10, help="epochs between evaluations")
    parser.add_argument("--validate", action="store_true", help="measure on a tenth of the training part")
    parser.add_argument("--output", type=Path, help=f"default: {RESULT.name} in results/, with --validate: nowhere")
    args = parser.parse_args()

    split = zx.datasets.load("yelp2018").split_by("split")
    train, test = split.train, split.test
    if args.validate:
        train, _, test = train.split_random((0.9, 0.1), seed=0)
    output = args.output or (None if args.validate else RESULT)
    settings = {k: v for k, v in vars(args).items() if k in ("epochs", "dim", "batch_size", "lr", "l2")}
    result = {
        "model": "mf",
        "loss": "bpr",
        **settings,
        "optimizer": "Adam",
        "init_std": 0.01,
        "seed": 0,
        "published": {"recall@20": 0.0433, "ndcg@20": 0.0354},
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "curve": [],
    }
    model = zx.MatrixFactorization(train.num_users, train.num_items, args.dim, init_std=0.01, seed=0)

    def report(event: EpochEnd) -> None:
        epoch = event.epoch + 1
        if epoch % args.every and epoch != args.epochs:
            return
        values = zx.evaluate(event.model, train, test, metrics=("recall", "ndcg", "arp", "coverage"), k=(20,))
        point = {"epoch": epoch, "loss": event.history[-1], "seconds": sum(event.history.seconds), **values}
        result["curve"].append(point)
        result["engine"] = event.history.engine
        if output is not None:
            output.write_text(json.dumps(result, indent=2) + "\n")
        print({k: round(v, 4) for k, v in point.items()}, flush=True)

    print(settings, flush=True)
    fit(
        model,
        train,
        "bpr",
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=args.lr),
        batch_size=args.batch_size,
        epochs=args.epochs,
        l2=args.l2,
        seed=0,
        callbacks=[report],
        progress=False,
    )


if __name__ == "__main__":
    main()
