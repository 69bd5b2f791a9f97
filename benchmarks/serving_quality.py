"""Whether new users and new data are served as if they had been there all along, on MovieLens-100K.

    python benchmarks/serving_quality.py --output benchmarks/results/serving-quality    # needs $ZEROSUM_EXT_DATA

A fifth of the users is left out of training and folded in. NDCG@10 of these users is compared with that of a model that
was trained with them, over five seeds of split, users and model. With each of these, users are folded in with three
seeds of negatives, whose mean counts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from _timing import data_set, machine, table

import zerosum_ext as zx
from zerosum_ext.models import usual_l2

FOLD_SEEDS = 3
LOSSES = {
    "bpr": zx.BPRLoss(),
    "sampled_softmax": zx.get_loss("sampled_softmax"),
    "zerosum (w = .9)": zx.ZerosumLoss(w=0.9),
    "zerosum": zx.ZerosumLoss(),
}


def folded(data: zx.Interactions, loss: torch.nn.Module, l2: float, seed: int, epochs: int, lr: float) -> list[float]:
    """Return NDCG@10 of the new users: trained with, and folded in."""
    split = data.split_random((0.8, 0.2), seed=seed)
    train, test = split.train, split.test
    new = np.random.default_rng(seed).permutation(data.num_users)[: data.num_users // 5]
    old = train.take(~np.isin(train.pairs()[0].numpy(), new))
    negatives = 4 if "softmax" in repr(loss).lower() else 1
    settings = {"epochs": epochs, "lr": lr, "seed": seed, "negatives": negatives, "progress": False}
    full, part = (zx.MatrixFactorization(*data.shape, 64, seed=seed) for _ in range(2))
    full.fit(train, loss, **settings)
    part.fit(old, loss, **settings)

    def ndcg(model: zx.MatrixFactorization) -> float:
        return float(zx.evaluate(model, train, test, metrics=("ndcg",), k=(10,), users=new)["ndcg@10"])

    drawn = []
    for fold_seed in range(FOLD_SEEDS):
        with torch.no_grad():
            rows = part.fold_in(train.to_scipy()[new], loss=loss, l2=l2, seed=fold_seed)
            part.user_embedding[torch.from_numpy(new)] = rows
        drawn.append(ndcg(part))
    return [ndcg(full), float(np.mean(drawn))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--l2", type=float, help="the default is that of docs/serving.md")
    parser.add_argument("--output", help="write OUTPUT.json and OUTPUT.md")
    arguments = parser.parse_args()
    data = data_set("ml-100k")
    if data is None:
        raise SystemExit("ZEROSUM_EXT_DATA names no folder with ml-100k.npz")
    rows = []
    for name in arguments.losses:
        l2 = arguments.l2 or usual_l2(name.partition(" ")[0])
        options = (l2, arguments.epochs, arguments.lr)
        pairs = [folded(data, LOSSES[name], l2, seed, *options[1:]) for seed in range(arguments.seeds)]
        gaps = [after - before for before, after in pairs]
        rows.append({"loss": name, "l2": l2, "epochs": arguments.epochs, "lr": arguments.lr, "ndcg@10": pairs})
        print(name, [f"{gap:+.4f}" for gap in gaps], f"mean {np.mean(gaps):+.4f}", np.mean(pairs, 0), flush=True)
    text = table(
        ["loss", "l2 of fold_in", "NDCG@10, trained with", "folded in", "difference", "least", "most"],
        [
            [r["loss"], r["l2"], *(f"{value:.4f}" for value in np.mean(r["ndcg@10"], 0))]
            + [f"{f(np.diff(r['ndcg@10'], axis=1)):+.4f}" for f in (np.mean, np.min, np.max)]
            for r in rows
        ],
    )
    print(text)
    if arguments.output:
        Path(f"{arguments.output}.json").write_text(
            json.dumps({"machine": machine(), "results": rows}, indent=1) + "\n"
        )
        facts = ", ".join(f"{key} {value}" for key, value in machine().items())
        about = f"{arguments.epochs} epochs, Adam {arguments.lr}, d = 64, {arguments.seeds} seeds, MovieLens-100K."
        about += f" Users are folded in with {FOLD_SEEDS} seeds of negatives each."
        Path(f"{arguments.output}.md").write_text(f"# Users who are folded in\n\n{about}\n\n{text}\n\n{facts}\n")


if __name__ == "__main__":
    main()
