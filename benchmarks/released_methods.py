"""IPW and MACR as released with [RCS22], with their bugs, against the methods themselves, on MovieLens-1M.

    ZEROSUM_EXT_DATA=DIR python benchmarks/released_methods.py

The released losses were sums of four terms, for two positives and two negatives of a user, of which one, that of the
first positive, was kept: of IPW's cross-entropy, and of each of MACR's three. So nothing was learnt from a negative.
These forms live here alone. All methods train matrix factorization with d = 64 (Adam 1e-3, batches of 2048), keep the
epoch of the best validation NDCG@10 among --epochs, and are measured on the test part of a random 80/10/10 split of
items with at least 10 interactions, each seed with a split of its own. The c of MACR is chosen on the validation part.
Writes benchmarks/results/released_methods.json after every run, and .md.

[RCS22] Rhee, Cho, Suh, "Countering Popularity Bias by Regularizing Score Differences", RecSys 2022.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerosum_ext as zx
from zerosum_ext import losses, models
from zerosum_ext.evaluation import evaluate
from zerosum_ext.experiments import runs
from zerosum_ext.training import fit

RESULT = Path(__file__).parent / "results" / "released_methods.json"
METRICS = ("ndcg@10", "recall@10", "pri", "pop_q_at_1", "arp@10", "coverage@10")
TITLES = {
    "bpr": "BPR",
    "ipw released": "IPW, released form",
    "ipw": "IPW",
    "ipw clipped": "IPW, weights clipped at 2",
    "macr released": "MACR, released form",
    "macr": "MACR",
}


class ReleasedIPW(nn.Module):
    """x_p sp(-p): what is left of IPW where three of its four terms are lost."""

    needs_items = True
    reduction = "mean"

    def __init__(self, popularity: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", losses.ipw_weights(popularity).float())

    def forward(self, pos: Tensor, neg: Tensor, pos_items: Tensor, neg_items: Tensor) -> Tensor:
        return (self.weights[pos_items] * F.softplus(-pos)).mean()


class ReleasedMACR(nn.Module):
    """-log of s(y) s(u) s(i), + alpha that of s(i), + beta that of s(u), all three for the positive alone."""

    needs_branches = True
    reduction = "mean"

    def __init__(self, alpha: float = 1e-3, beta: float = 1e-3) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta

    def forward(self, pos: Tensor, neg: Tensor, user_branch: Tensor, pos_branch: Tensor, neg_branch: Tensor) -> Tensor:
        user, item = F.softplus(-user_branch), F.softplus(-pos_branch)  # -log of a product is a sum
        return (F.softplus(-pos) + (1 + self.alpha) * item + (1 + self.beta) * user).mean()


def parts_of(name: str, model: zx.MatrixFactorization, train: zx.Interactions) -> models.MethodParts:
    if name == "ipw released":
        return models.MethodParts(model, ReleasedIPW(train.popularity), None, lambda m: m)
    if name == "macr released":
        return models.MethodParts(models.MACR(model), ReleasedMACR(), None, lambda m: m)
    if name == "ipw clipped":
        return models.get_method("ipw", model, train, clip=2.0)
    return models.get_method(name, model, train)


def one(name: str, seed: int, split: zx.data.interactions.Split, epochs: int) -> dict[str, object]:
    model = zx.MatrixFactorization(split.train.num_users, split.train.num_items, 64, seed=seed)
    parts = parts_of(name, model, split.train)
    history = fit(
        parts.model,
        split.train,
        parts.loss,
        batch_size=2048,
        epochs=epochs,
        seed=seed,
        validation=split.valid,
        patience=10,
        progress=False,
    )
    ranker = parts.inference(parts.model)
    chosen = {}
    if name.startswith("macr"):
        models.choose(ranker, runs.MACR_REFERENCES, split.train, split.valid)
        chosen = {"c": float(ranker.c)}
    popularity = split.train.popularity + split.valid.popularity + split.test.popularity
    wanted = tuple(key.partition("@")[0] if "@" in key and key != "pop_q_at_1" else key for key in METRICS)
    values = evaluate(ranker, split.train | split.valid, split.test, metrics=wanted, k=(10,), popularity=popularity)
    return {
        "method": name,
        "seed": seed,
        **chosen,
        "best_epoch": history.best_epoch + 1,
        "epochs": len(history),
        "seconds": sum(history.seconds),
        **{key: values[key] for key in METRICS},
    }


def table(result: dict[str, object]) -> str:
    lines = [
        f"Measured by `python benchmarks/released_methods.py` on {result['machine']}, torch {result['torch']}: "
        f"MovieLens-1M, items with at least 10 interactions, 80/10/10, matrix factorization, d = 64, best validation "
        f"epoch of at most {result['epochs']}. Mean (lowest to highest) of the seeds.",
        "",
        "| | seeds | NDCG@10 | Recall@10 | PRI | PopQ@1 | ARP@10 | coverage@10 | best epoch | c |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, title in TITLES.items():
        rows = [row for row in result["rows"] if row["method"] == name]
        if not rows:
            continue
        cells = []
        for key, digits in zip(METRICS, (4, 4, 3, 3, 0, 3), strict=True):
            values = [row[key] for row in rows]
            cells.append(f"{mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})")
        for key in ("best_epoch", "c"):
            values = sorted({row[key] for row in rows if key in row})
            cells.append(", ".join(f"{v:g}" for v in values))
        lines.append(f"| {title} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-1m")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()

    data = zx.datasets.load(args.data).filter_items(10)
    result: dict[str, object] = {
        "data": args.data,
        "epochs": args.epochs,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "rows": [],
    }
    for seed in range(args.seeds):
        split = data.split_random((0.8, 0.1, 0.1), seed=seed)
        for name in TITLES:
            row = one(name, seed, split, args.epochs)
            result["rows"].append(row)
            args.output.write_text(json.dumps(result, indent=1) + "\n")
            args.output.with_suffix(".md").write_text(table(result))
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


if __name__ == "__main__":
    main()
