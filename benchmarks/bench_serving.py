"""Serving beside implicit: lists of one user and of all, neighbours, and vectors of new users.

    python benchmarks/bench_serving.py --output benchmarks/results/serving-cpu    # needs implicit and $ZEROSUM_EXT_DATA

Both libraries get the same tables. Methods take turns, and ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _timing import data_set, machine, ratio, spread, table, take_turns

import zerosum_ext as zx
from zerosum_ext.models import usual_l2

K, DIM = 10, 64
LARGE = 1_000_000  # items of the catalogue where memory's speed counts


def theirs(model: zx.MatrixFactorization, threads: int) -> object:
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    made = BayesianPersonalizedRanking(factors=DIM, num_threads=threads)
    made.user_factors, made.item_factors = zx.export.arrays(model)
    return made


def measure(data: zx.Interactions, threads: int, rounds: int) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    model = zx.MatrixFactorization.from_interactions(data, embedding_dim=DIM, seed=0)
    model.fit(data, "bpr", lr=0.01, epochs=5, progress=False)
    matrix, other = data.to_scipy(), theirs(model, threads)
    users = np.arange(data.num_users)
    row = matrix[7]
    methods = {
        "one user": (lambda: model.recommend(7, K, row), lambda: other.recommend(7, row, K)),
        "one user, whole matrix given": (lambda: model.recommend(7, K, data), lambda: other.recommend(7, matrix[7], K)),
        "all users": (lambda: model.recommend(users, K, data), lambda: other.recommend(users, matrix, K)),
        "neighbours of one item": (lambda: model.similar_items(5, K), lambda: other.similar_items(5, K)),
    }
    large = zx.MatrixFactorization(10, LARGE, DIM, seed=0)
    large_other = theirs(large, threads)
    methods[f"neighbours of one item, {LARGE:,} items"] = (
        lambda: large.similar_items(5, K),
        lambda: large_other.similar_items(5, K),
    )
    same = model.recommend(users, K, data)[0].numpy() == other.recommend(users, matrix, K)[0]
    rows = []
    for name, (ours, implicit) in methods.items():
        seconds = take_turns({"zerosum_ext": ours, "implicit": implicit}, rounds=rounds, block=2e-2)
        rows.append(
            {
                "task": name,
                "threads": threads,
                "zerosum_ext_ms": list(spread(1e3 * seconds["zerosum_ext"])),
                "implicit_ms": list(spread(1e3 * seconds["implicit"])),
                "ratio": list(ratio(seconds, "zerosum_ext", "implicit")),
                "same_items": float(same.mean()),
            }
        )
    return rows


def fold(data: zx.Interactions, threads: int, rounds: int) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    rows, matrix = [], data.to_scipy()
    short = [matrix.indices[matrix.indptr[u] : matrix.indptr[u] + 10].tolist() for u in range(data.num_users)]
    for loss in ("bpr", "sampled_softmax", "zerosum"):
        model = zx.MatrixFactorization.from_interactions(data, embedding_dim=DIM, seed=0)
        model.fit(data, loss, lr=0.01, epochs=5, progress=False)
        l2 = usual_l2(loss)
        # Bound to this turn of the loop.
        method = lambda model=model, loss=loss, l2=l2: model.fold_in(matrix, loss=loss, l2=l2)  # noqa: E731
        seconds = take_turns({"fold_in": method}, rounds=rounds, block=1e-3)["fold_in"]
        method = lambda model=model, loss=loss, l2=l2: model.fold_in(short, loss=loss, l2=l2)  # noqa: E731
        of_ten = take_turns({"fold_in": method}, rounds=rounds, block=1e-3)["fold_in"]
        rows.append(
            {
                "loss": loss,
                "threads": threads,
                "users_a_second": list(spread(data.num_users / seconds)),
                "users_a_second_of_10_items": list(spread(data.num_users / of_ten)),
            }
        )
    return rows


def shown(values: Sequence[float]) -> str:
    low, middle, high = values
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def fold_table(rows: list[dict[str, Any]]) -> str:
    return "Users folded in a second, with their whole histories (106 items on average) and with 10 items:\n\n" + table(
        ["loss", "threads", "whole histories", "10 items"],
        [[r["loss"], r["threads"], shown(r["users_a_second"]), shown(r["users_a_second_of_10_items"])] for r in rows],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--no-fold", action="store_true")
    parser.add_argument("--output", help="write OUTPUT.json and OUTPUT.md")
    arguments = parser.parse_args()
    data = data_set("ml-100k")
    if data is None:
        raise SystemExit("ZEROSUM_EXT_DATA names no folder with ml-100k.npz")
    lists = [row for threads in arguments.threads for row in measure(data, threads, arguments.rounds)]
    folded = (
        [] if arguments.no_fold else [row for t in arguments.threads for row in fold(data, t, arguments.rounds // 3)]
    )

    text = "MovieLens-100K (943 users, 1,682 items), d = 64, k = 10, training items excluded.\n\n"
    text += table(
        ["task", "threads", "zerosum_ext, ms", "implicit, ms", "ratio"],
        [
            [r["task"], r["threads"], shown(r["zerosum_ext_ms"]), shown(r["implicit_ms"]), shown(r["ratio"])]
            for r in lists
        ],
    )
    if folded:
        text += "\n\n" + fold_table(folded)
    print(text)
    if arguments.output:
        if arguments.no_fold and Path(f"{arguments.output}.json").exists():  # what was measured before stays
            folded = json.loads(Path(f"{arguments.output}.json").read_text())["results"]["fold_in"]
            text += "\n\n" + fold_table(folded)
        result = {"machine": machine(), "results": {"lists": lists, "fold_in": folded}}
        Path(f"{arguments.output}.json").write_text(json.dumps(result, indent=1) + "\n")
        facts = ", ".join(f"{key} {value}" for key, value in machine().items())
        Path(f"{arguments.output}.md").write_text(f"# Serving\n\n{text}\n\n{facts}\n")


if __name__ == "__main__":
    main()
