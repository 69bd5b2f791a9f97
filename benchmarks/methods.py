"""Every debiasing method with every backbone on MovieLens-100K: accuracy and popularity bias, and whether it learns.

    ZEROSUM_EXT_DATA=DIR python benchmarks/methods.py [--data ml-100k] [--models mf,lightgcn] [--methods bpr,macr] ...

One split (80/10/10, seed 0), one seed, the same few epochs of Adam for all: a comparison under equal and short
training, not of each at its best. Test figures are of the last epoch; only the c of MACR is chosen, on the validation
part. Writes benchmarks/results/NAME.json after every pair (a pair that is there already is not trained again) and
NAME.md at the end.
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
from zerosum_ext import models
from zerosum_ext.evaluation import evaluate
from zerosum_ext.experiments import runs
from zerosum_ext.training import fit

RESULTS = Path(__file__).parent / "results"
METHODS = ("bpr", "zerosum", "pos2neg2", "pos2", "neg2", "ipw", "pd", "pda", "macr", "pearson", "compensation")
WEIGHTED = {"zerosum": 0.9, "pos2neg2": 0.9, "pos2": 0.9, "neg2": 0.9}


def one(split: zx.data.interactions.Split, model_name: str, name: str, args: argparse.Namespace) -> dict[str, object]:
    """Trains one pair and measures it."""
    model = zx.get_model(model_name, split.train, embedding_dim=args.dim, seed=0)
    options = {"w": WEIGHTED[name]} if name in WEIGHTED else {}
    if name == "pearson":
        options = {"weight": args.pearson_weight, "every": args.pearson_every}
    parts = models.get_method(name, model, split.train, **options)
    losses: list[float] = []

    def validation_loss(event: object) -> None:
        losses.append(held_out_loss(parts, split))

    validation_loss(None)
    history = fit(
        parts.model,
        split.train,
        parts.loss,
        lambda p: torch.optim.Adam(p, lr=args.lr),
        regularizer=parts.regularizer,
        epochs=args.epochs,
        batch_size=args.batch_size,
        seed=0,
        callbacks=[validation_loss],
        progress=False,
    )
    ranker = parts.inference(parts.model)
    chosen = {}
    if name == "macr":
        models.choose(ranker, runs.MACR_REFERENCES, split.train, split.valid)
        chosen = {"c": float(ranker.c)}
    seen = split.train | split.valid
    popularity = split.train.popularity + split.valid.popularity + split.test.popularity
    names = ("ndcg", "recall", "pri", "pop_q_at_1", "arp")
    values = evaluate(ranker, seen, split.test, metrics=names, k=(10,), popularity=popularity)
    if args.correlation:
        values["train_correlation"] = zx.PearsonRegularizer(split.train).correlation(ranker)
    return {
        "model": model_name,
        "method": name,
        **options,
        **chosen,
        "train_loss": list(history),
        "validation_loss": losses,
        "seconds": sum(history.seconds),
        **values,
    }


@torch.no_grad()
def held_out_loss(parts: models.MethodParts, split: zx.data.interactions.Split) -> float:
    """The method's own loss on the validation positives against fixed negatives."""
    model, loss = parts.model, parts.loss
    was_training = model.training
    model.eval()
    quad = getattr(loss, "num_positives", 1) == 2
    loader = zx.TripletLoader(
        split.valid, 1 << 20, seed=7, positives=2 if quad else 1, negatives=2 if quad else 1, exclude=split.train
    )
    users, pos, neg = next(iter(loader))
    shape = (len(users), -1)
    items = torch.cat([pos.reshape(shape), neg.reshape(shape)], dim=1)
    half = items.shape[1] // 2
    extra = {"pos_items": pos, "neg_items": neg} if getattr(loss, "needs_items", False) else {}
    if getattr(loss, "needs_branches", False):
        scores, user, branch = model.branches(users, items)
        extra = {"user_branch": user, "pos_branch": branch[:, 0], "neg_branch": branch[:, 1]}
    else:
        scores = model(users, items)
    value = loss(scores[:, :half].reshape(pos.shape), scores[:, half:].reshape(neg.shape), **extra)
    model.train(was_training)
    return float(value)


def table(result: dict[str, object]) -> str:
    """The result as Markdown."""
    s = result["settings"]
    correlation = any("train_correlation" in row for row in result["rows"])
    lines = [
        f"Measured by `python benchmarks/methods.py{result['arguments']}` on {result['machine']}, torch "
        f"{result['torch']}: {s['data']}, split 80/10/10, d = {s['dim']}, {s['epochs']} epochs of Adam {s['lr']}, "
        f"batches of {s['batch_size']}, one seed. Equal, short training for all: not each at its best. Validation "
        "loss: before training, and its lowest. Seconds of training on a machine in use: not to be compared.",
        "",
        "| model | method | validation loss | NDCG@10 | Recall@10 | PRI | PopQ@1 | ARP@10 |"
        + (" corr, train |" if correlation else "")
        + " s |",
        "|---|---|---|---|---|---|---|---|" + ("---|" if correlation else "") + "---|",
    ]
    for r in result["rows"]:
        extra = ", ".join(f"{key} = {r[key]:g}" for key in ("w", "weight", "every", "c") if r.get(key) is not None)
        lines.append(
            f"| {r['model']} | {r['method']}{f' ({extra})' if extra else ''} | {r['validation_loss'][0]:.4f} -> "
            f"{min(r['validation_loss']):.4f} | {r['ndcg@10']:.4f} | {r['recall@10']:.4f} | {r['pri']:.3f} | "
            f"{r['pop_q_at_1']:.3f} | {r['arp@10']:.0f} |"
            + (f" {r['train_correlation']:.3f} |" if "train_correlation" in r else "")
            + f" {r['seconds']:.1f} |"
        )
    lowered = sum(min(r["validation_loss"][1:]) < r["validation_loss"][0] for r in result["rows"])
    lines += ["", f"{lowered} of {len(result['rows'])} pairs lower their validation loss."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--models", default="mf,gmf,mlp,neumf,ngcf,lightgcn")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--pearson-weight", type=float, default=5.0)
    parser.add_argument("--pearson-every", type=int, help="steps; default: after each epoch")
    parser.add_argument("--correlation", action="store_true", help="corr(score, popularity) over training positives")
    parser.add_argument("--name", default="methods", help="of the files of results")
    args = parser.parse_args()

    data = zx.datasets.load(args.data)
    split = data.filter_items(10).split_random((0.8, 0.1, 0.1), seed=0)
    settings = {k: v for k, v in vars(args).items() if k not in ("models", "methods", "name", "correlation")}
    path = RESULTS / f"{args.name}.json"
    result: dict[str, object] = json.loads(path.read_text()) if path.is_file() else {"settings": settings, "rows": []}
    if result["settings"] != settings:
        raise SystemExit(f"{path} is of other settings: {result['settings']}; give another --name, or remove it")
    defaults = {action.dest: action.default for action in parser._actions}
    given = [f" --{k.replace('_', '-')} {v}" for k, v in settings.items() if v != defaults[k]]
    result |= {
        "arguments": "".join(given),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
    }
    done = {(r["model"], r["method"]) for r in result["rows"]}
    for model in args.models.split(","):
        for method in args.methods.split(","):
            if (model, method) in done:
                continue
            start = time.time()
            row = one(split, model, method, args)
            result["rows"].append(row)
            path.write_text(json.dumps(result, indent=1) + "\n")
            print(
                f"{model:9} {method:13} {time.time() - start:5.1f} s  "
                f"ndcg {row['ndcg@10']:.4f}  popq {row['pop_q_at_1']:.3f}",
                flush=True,
            )
    path.with_suffix(".md").write_text(table(result))


if __name__ == "__main__":
    main()
