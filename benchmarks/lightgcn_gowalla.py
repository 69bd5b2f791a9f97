"""LightGCN (the original: d = 64, three layers, symmetric mean) on Gowalla: Recall@20 and NDCG@20 over time.

    ZEROSUM_EXT_DATA=DIR python benchmarks/lightgcn_gowalla.py [--epochs N] [--resume]

Reads gowalla.npz, the split of NGCF and LightGCN. Published after 1000 epochs of batches of 2048: Recall@20 .1830,
NDCG@20 .1550 [HDW20 table 3]. Writes benchmarks/results/lightgcn_gowalla.json after every evaluation, and a checkpoint
to go on from beside --checkpoint. The test part is only looked at: nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import torch

import zerosum_ext as zx
from zerosum_ext.training import EpochEnd, fit

RESULT = Path(__file__).parent / "results" / "lightgcn_gowalla.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=16384)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--l2", type=float, default=1e-4)
    parser.add_argument("--negatives", type=int, default=1)
    parser.add_argument("--every", type=int, default=5, help="epochs between evaluations")
    parser.add_argument("--checkpoint", type=Path, default=Path("lightgcn_gowalla.pt"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()

    split = zx.datasets.load("gowalla").split_by("split")
    model = zx.get_model("lightgcn", split.train, preset="lightgcn", seed=0)
    settings = {k: v for k, v in vars(args).items() if k in ("batch_size", "lr", "l2", "negatives")}
    result = {
        "model": model.config(),
        "loss": "bpr",
        **settings,
        "optimizer": "Adam",
        "seed": 0,
        "published": {"recall@20": 0.1830, "ndcg@20": 0.1550, "epochs": 1000, "batch_size": 2048},
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "train_seconds": 0.0,
        "curve": [],
    }
    if args.resume:
        result["curve"] = json.loads(args.output.read_text())["curve"]
    started = time.time()

    def report(event: EpochEnd) -> None:
        epoch = event.epoch + 1
        if epoch % args.every and epoch != args.epochs:
            return
        values = zx.evaluate(event.model, split.train, split.test, metrics=("recall", "ndcg"), k=(20,))
        point = {"epoch": epoch, "loss": event.history[-1], "seconds": sum(event.history.seconds), **values}
        result["curve"].append(point)
        result["train_seconds"] = point["seconds"]
        args.output.write_text(json.dumps(result, indent=2) + "\n")
        print(f"{time.time() - started:7.0f} s", {k: round(v, 4) for k, v in point.items()}, flush=True)

    fit(
        model,
        split.train,
        "bpr",
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=args.lr),
        batch_size=args.batch_size,
        negatives=args.negatives,
        epochs=args.epochs,
        l2=args.l2,
        seed=0,
        callbacks=[report],
        checkpoint=args.checkpoint,
        resume=args.checkpoint if args.resume else None,
        progress=False,
    )


if __name__ == "__main__":
    main()
