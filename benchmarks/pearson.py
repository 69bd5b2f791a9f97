"""How far the Pearson term brings the correlation of score and popularity down, and what that costs.

    ZEROSUM_EXT_DATA=DIR python benchmarks/pearson.py [--grid WEIGHT:EVERY ...]

Matrix factorization on one 80/10/10 split of MovieLens-1M (items with at least 10 interactions), BPR and then BPR with
``weight corr(score, popularity)^2`` over all training positives added to every n-th step. Each keeps the epoch of its
best validation NDCG@10 among --epochs, or, with --keep last, its last. Writes benchmarks/results/pearson.json and .md.

A number added to all scores of a user moves the correlation, and no ranking. So it can be brought to 0 for any model,
at no cost and to no use: the report says by what shift. --user-shift gives the model that freedom, a vector component
that all items share at the start, for the term to find by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

import torch

import zerosum_ext as zx
from zerosum_ext.evaluation import evaluate
from zerosum_ext.training import fit

RESULT = Path(__file__).parent / "results" / "pearson.json"
METRICS = ("ndcg@10", "recall@10", "pri", "pop_q_at_1", "upo", "arp@10", "coverage@10")
GRID = ("0.03:5", "0.1:5", "1:5", "10:5")


def one(
    weight: float, every: int | None, split: zx.data.interactions.Split, args: argparse.Namespace
) -> dict[str, object]:
    model = zx.MatrixFactorization(split.train.num_users, split.train.num_items, args.dim, seed=args.seed)
    if args.user_shift:
        with torch.no_grad():
            model.item_embedding[:, 0] = 1.0
            model.user_embedding[:, 0] = 0.0
    measure = zx.PearsonRegularizer(split.train)
    regularizer = zx.PearsonRegularizer(split.train, weight=weight, every=every) if weight else None
    history = fit(
        model,
        split.train,
        "bpr",
        lambda p: torch.optim.Adam(p, lr=args.lr),
        regularizer=regularizer,
        batch_size=args.batch_size,
        epochs=args.epochs,
        l2=args.l2,
        seed=args.seed,
        validation=split.valid,
        patience=None if args.keep == "last" else args.patience,
        restore_best=args.keep == "best",
        progress=False,
    )
    popularity = split.train.popularity + split.valid.popularity + split.test.popularity
    wanted = ("ndcg", "recall", "pri", "pop_q_at_1", "upo", "arp", "coverage")
    values = evaluate(model, split.train | split.valid, split.test, metrics=wanted, k=(10,), popularity=popularity)
    return {
        "weight": weight,
        "every": every,
        "correlation": float(measure.correlation(model)),
        "correlation_after_shifts": shifted_correlation(model, split.train),
        "validation ndcg@10": history.validation[-1] if args.keep == "last" else max(history.validation),
        "best_epoch": history.best_epoch + 1,
        "epochs": len(history),
        "seconds": sum(history.seconds),
        **{key: values[key] for key in METRICS},
    }


@torch.no_grad()
def shifted_correlation(model: zx.MatrixFactorization, train: zx.Interactions) -> float:
    """The correlation once each user's scores are shifted in proportion to the mean popularity of his positives."""
    users, items = train.pairs()
    scores = torch.cat([model.predict(u, i) for u, i in zip(users.split(1 << 18), items.split(1 << 18), strict=True)])
    scores, popularity = scores.double(), train.popularity.double()[items]
    popularity -= popularity.mean()
    count = train.user_counts.double().clamp(min=1)
    of_user = torch.zeros(train.num_users, dtype=torch.float64).index_add_(0, users, popularity) / count
    shift = -(scores * popularity).mean() / (of_user[users] * popularity).mean() * of_user
    return float(torch.corrcoef(torch.stack([scores + shift[users], popularity]))[0, 1])


def table(result: dict[str, object]) -> str:
    s = result["settings"]
    lines = [
        f"Measured by `python benchmarks/pearson.py{result['arguments']}` on {result['machine']}, torch "
        f"{result['torch']}: {s['data']}, items with at least 10 interactions, 80/10/10, matrix factorization, "
        f"d = {s['dim']}, Adam {s['lr']}, batches of {s['batch_size']}, one seed; of at most {s['epochs']} epochs the "
        f"{s['keep']} one. corr: score against popularity over all training positives.",
        "",
        "| weight | every | corr | NDCG@10 | points lost | Recall@10 | PRI | PopQ@1 | uPO | ARP@10 | coverage@10 "
        "| epoch |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    plain = result["rows"][0]
    for r in result["rows"]:
        name = f"{r['weight']:g} | {r['every'] or 'epoch'}" if r["weight"] else "0 (BPR) |"
        lines.append(
            f"| {name} | {r['correlation']:.3f} | {r['ndcg@10']:.4f} | "
            f"{100 * (plain['ndcg@10'] - r['ndcg@10']):.1f} | {r['recall@10']:.4f} | {r['pri']:.3f} | "
            f"{r['pop_q_at_1']:.3f} | {r['upo']:.3f} | {r['arp@10']:.0f} | {r['coverage@10']:.3f} | "
            f"{r['epochs'] if s['keep'] == 'last' else r['best_epoch']} |"
        )
    after = plain["correlation_after_shifts"]
    lines += ["", f"BPR's corr after a shift of each user's scores, which changes no ranking: {abs(after):.1e}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-1m")
    parser.add_argument("--grid", nargs="+", default=GRID, metavar="WEIGHT:EVERY", help="EVERY in steps, or 'epoch'")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--patience", type=int, default=25)
    parser.add_argument("--keep", choices=("best", "last"), default="best")
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--l2", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--user-shift", action="store_true", help="a component that all items share at the start")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()

    split = zx.datasets.load(args.data).filter_items(10).split_random((0.8, 0.1, 0.1), seed=args.seed)
    settings = {k: v for k, v in vars(args).items() if k != "output"}
    defaults = {action.dest: action.default for action in parser._actions}
    given = [
        f" --{k.replace('_', '-')}" + ("" if v is True else f" {' '.join(v) if isinstance(v, list) else v}")
        for k, v in settings.items()
        if v != defaults[k]
    ]
    result: dict[str, object] = {
        "settings": settings,
        "arguments": "".join(given),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "rows": [],
    }
    cells = [(0.0, None)]
    for text in args.grid:
        weight, _, every = text.partition(":")
        cells.append((float(weight), None if every == "epoch" else int(every)))
    for weight, every in cells:
        row = one(weight, every, split, args)
        result["rows"].append(row)
        args.output.write_text(json.dumps(result, indent=1) + "\n")
        args.output.with_suffix(".md").write_text(table(result))
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


if __name__ == "__main__":
    main()
