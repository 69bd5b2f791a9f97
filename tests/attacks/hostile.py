"""Hostile calls of every compiled op, chosen by hand, each in a child of its own.

    python tests/attacks/hostile.py [OP ...] [--json FILE]

A row counts how many of an op's calls returned, raised an error, ended the process, or did not end within a minute of
a processor's time. The status is 1 if there was any of the last two. A call of an op or an argument that this version
does not have counts as not there, so that older versions can be attacked by the same calls.

tests/fuzz makes calls by the thousands. These are the ones that somebody who means it would try first: what an index
reads or writes at, what a size allocates, what a division divides by, what a loop ends at.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MEMORY = 4 << 30  # beyond what the process has at the start
SECONDS = 60
TOP, BOTTOM = 2**63 - 1, -(2**63)
FAR = (2**31, 2**40, TOP, BOTTOM, -1)
NAN, INF = float("nan"), float("inf")
Call = tuple[str, Callable[[], dict[str, Any]]]


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def gone(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor whose memory was taken away."""
    out = torch.ones(shape, dtype=dtype)
    out.untyped_storage().resize_(0)
    return out


def base(op: str) -> dict[str, Any]:
    """Return the arguments of a sound call by name: three users, four items, two dimensions."""
    indptr, indices = ints(0, 2, 3, 3), ints(0, 2, 1)
    tables = {"user_embedding": torch.ones(3, 2), "item_embedding": torch.ones(4, 2), "item_bias": None}
    ids = {"users": ints(0, 2), "positives": ints(0, 3), "negatives": ints(1, 1)}
    loss = {"loss": 1, "a": 1.0, "b": 1.0, "c": 1.0, "l2": 0.1, "reduction": 2}
    state = dict.fromkeys(f"{of}_{n}" for of in ("user", "item", "bias") for n in ("first", "second"))
    settings = torch.tensor([[1.0, 0.1, 0.9, 0.999, 1e-8, 1.0]] * 2 + [[0.0] * 6]).double()
    train = {**tables, **state, "constants": None, "settings": settings, "optimizer": 0, **loss, "longest": 0.0}
    ways = {"batch_size": 2, "asynchronous": False, "normalize": False}
    matrix = {"indptr": indptr, "indices": indices}
    draw = {"filter": None, "slots": None, "masses": None, "num_items": 4, "k": 1, "seed": 1, "epoch": 0}
    epoch = {"hint": ints(0), "hint_shift": 2, "gaps": None, "active": None, "order": 0, "kept": 3, "total": 3}
    ranking = {
        "users": ints(0, 1, 2),
        "offset": ints(0, 2, 3, 3),
        **matrix,
        "excluded_indptr": None,
        "excluded_indices": None,
        "k": 2,
    }
    text = {"characters": [torch.tensor([49, 50, 51], dtype=torch.uint8)]}
    text |= {"offsets": [torch.tensor([0, 1, 3], dtype=torch.int32)]}
    two = torch.ones(2)
    return {
        "loss_names": dict,
        "cpu_isa": dict,
        "csr_build": lambda: {"users": ints(0, 1), "items": ints(3, 0), "num_users": 3, "num_items": 4},
        "csr_score_moments": lambda: {
            "rows": torch.ones(3, 2),
            "columns": torch.ones(4, 2),
            "column_bias": None,
            **matrix,
            "column_x": torch.ones(4),
        },
        "csr_weighted_columns": lambda: {
            "rows": torch.ones(3, 2),
            "columns": torch.ones(4, 2),
            "row_bias": None,
            "column_bias": None,
            **matrix,
            "row_x": torch.ones(3),
            "column_x": None,
            "slope": 0.5,
        },
        "graph_dropout": lambda: {
            "indptr": ints(0, 1, 1, 2),
            "indices": ints(0, 0),
            "by_item": ints(0),
            "num_users": 2,
            "seed": ints(3),
            "share": 0.5,
        },
        "graph_propagate": lambda: {
            "users": torch.ones(2, 2),
            "items": torch.ones(1, 2),
            "indptr": ints(0, 1, 1, 2),
            "end": None,
            "indices": ints(0, 0),
            "row_scale": torch.ones(3),
            "column_scale": None,
            "factor": 1.0,
        },
        "has_items": lambda: {"users": ints(0, 1), "items": ints(0, 1), **matrix, "filter": None, "num_items": 4},
        "fold_in": lambda: {
            "item_embedding": torch.ones(4, 2),
            "item_bias": None,
            "indptr": ints(0, 2, 3, 3),
            "positives": ints(0, 2, 1),
            "negatives": ints(1, 1, 3),
            "constants": None,
            "loss": 1,
            "a": 1.0,
            "b": 1.0,
            "c": 1.0,
            "kink": 0.02,
            "l2": 0.1,
            "tolerance": 1e-4,
            "max_iterations": 9,
        },
        "integer_ids": lambda: text,
        "text_ids": lambda: text,
        "list_metrics": lambda: {
            "lists": ints(0, 1).view(1, 2),
            "values": torch.ones(1, 4).double(),
            "cutoffs": ints(1),
        },
        "macr_loss": lambda: {
            "pos": two,
            "neg": two,
            "user_branch": two,
            "pos_branch": two,
            "neg_branch": two,
            "weight": None,
            "alpha": 1.0,
            "beta": 1.0,
            "reduction": 2,
            "grad": True,
        },
        "pair_loss": lambda: {
            "pos": two,
            "neg": two,
            "aux_pos": None,
            "aux_neg": None,
            "weight": None,
            "loss": 1,
            "a": 1.0,
            "b": 1.0,
            "c": 1.0,
            "reduction": 2,
            "grad": True,
        },
        "scale_gradients": lambda: {"gradients": [torch.ones(3)], "factor": torch.tensor(0.5)},
        "scale_gradients_": lambda: {"gradients": [torch.ones(3)], "factor": torch.tensor(0.5)},
        "mf_loss": lambda: {**tables, **ids, "constants": None, "weight": None, **loss, "grad": True},
        "mf_gradient": lambda: {
            **tables,
            **ids,
            "coefficient": torch.ones(2, 2),
            "scale": torch.tensor(1.0),
            "l2": 0.1,
            "user": True,
            "item": True,
            "bias": True,
            "sparse": False,
            "padded": False,
            "atomics": False,
        },
        "mf_step": lambda: {
            **train,
            **ids,
            **dict.fromkeys(("total", "weight", "lists", "start", "held", "alone")),
            "normalize": False,
            "share": 0,
            **dict.fromkeys(f"{of}_{n}" for of in ("user", "item", "bias") for n in ("lr", "step")),
        },
        "mf_train": lambda: {**train, **ids, **ways},
        "mf_train_sampled": lambda: {
            **train,
            **matrix,
            **epoch,
            "begin": 0,
            "samples": 3,
            "positives": 1,
            "excluded_indptr": indptr,
            "excluded_indices": indices,
            **draw,
            "replacement": True,
            "shared": 0,
            **ways,
            "weights": None,
        },
        "rank_factors": lambda: {
            "user_factors": torch.ones(3, 2),
            "item_factors": torch.ones(4, 2),
            "item_bias": None,
            **ranking,
            "top_only": False,
        },
        "rank_scores": lambda: {"scores": torch.ones(3, 4), **ranking},
        "row_filter": lambda: {**matrix, "num_items": 4},
        "sample_negatives": lambda: {
            "users": ints(0, 1, 2),
            **matrix,
            **draw,
            "offset": 0,
            "replacement": True,
            "key": None,
            "complement_rows": None,
            "complement_masses": None,
        },
        "sample_negatives_at": lambda: {
            "users": ints(0, 1),
            "numbers": ints(5, 9),
            **matrix,
            **draw,
            "replacement": True,
            "key": None,
            "complement_rows": None,
            "complement_masses": None,
        },
        "sample_positives": lambda: {
            **matrix,
            **epoch,
            "begin": 0,
            "rows": 3,
            "positives": 1,
            "seed": 5,
            "epoch": 1,
            "key": None,
        },
        "unshuffle": lambda: {"cells": ints(0, 1, 2), "total": 3, "seed": 5, "epoch": 1, "key": None},
        "user_metrics": lambda: {
            "offset": ints(0, 2, 3),
            "greater": ints(0, 1, 0),
            "equal": ints(0, 0, 0),
            "candidates": ints(4, 4),
            "popularity": torch.ones(3).double(),
            "cutoffs": ints(1, 2),
            "ties": 0,
        },
    }[op]()


def each(name: str, values: Any) -> list[Call]:
    """Return a call for each value of an argument."""
    said = [f"{name}, number {i}" if isinstance(value, Tensor) else f"{name}={value}" for i, value in enumerate(values)]
    return [(text, lambda value=value: {name: value}) for text, value in zip(said, values, strict=True)]


def made(said: str, **values: Any) -> Call:
    """Return one call."""
    return said, lambda: values


def shared(**values: Any) -> dict[str, Any]:
    """Return a sound batch of two samples that share a list of one negative, but for these arguments."""
    held = torch.tensor([[False], [True]])
    sound = {"lists": ints(0, 1).view(2, 1), "start": ints(0), "held": held, "alone": ints(0, 1), "share": 2}
    return sound | values


def bad_ids(*names: str) -> list[Call]:
    """Return calls with ids that no table has, in each of these arguments of two ids."""
    return [(f"{name} has {far}", lambda n=name, f=far: {n: ints(0, f)}) for name in names for far in (4, *FAR)]


def bad_matrix(indptr: str = "indptr", indices: str = "indices") -> list[Call]:
    """Return calls with a matrix of three rows whose pointers or indices lie."""
    return [
        made(f"{indptr} ends far beyond", **{indptr: ints(0, 2, 3, 2**40)}),
        made(f"{indptr} is negative", **{indptr: ints(0, -(2**40), 3, 3)}),
        made(f"{indptr} descends", **{indptr: ints(3, 2, 1, 0)}),
        made(f"{indptr} leaps and returns", **{indptr: ints(0, TOP, 3, 3)}),
        made(f"{indptr} is empty", **{indptr: ints()}),
        made(f"{indptr} is strided", **{indptr: ints(0, 9, 2, 9, 3, 9, 3, 9)[::2]}),
        made(f"{indptr} is int32", **{indptr: ints(0, 2, 3, 3).int()}),
        made(f"{indices} has no entries", **{indices: ints()}),
        made(f"{indices} far away", **{indices: ints(0, 2**40, BOTTOM)}),
        made(f"{indices} has lost its memory", **{indices: gone(3, dtype=torch.int64)}),
    ]


def no_tensor(*names: str) -> list[Call]:
    """Return calls with tensors that have no numbers to read, in each of these arguments."""
    return [
        call
        for name in names
        for call in (
            made(f"{name} is on meta", **{name: torch.ones(3, 2, device="meta")}),
            made(f"{name} has lost its memory", **{name: gone(3, 2)}),
            made(f"{name} is sparse", **{name: torch.ones(3, 2).to_sparse()}),
        )
    ]


def training() -> list[Call]:
    """Return calls that all ops of training are tried with."""
    return [
        *no_tensor("user_embedding", "item_embedding"),
        *each("optimizer", (-1, 4, TOP)),
        *each("loss", (-1, 99, TOP, BOTTOM)),
        *each("reduction", (-1, 0, 7)),
        made("settings of one row", settings=torch.zeros(1, 6).double()),
        made("settings in float32", settings=torch.zeros(3, 6)),
        made("settings without memory", settings=gone(3, 6, dtype=torch.float64)),
        made("Adam without moments", optimizer=2),
        made("moments of one row", optimizer=2, **dict.fromkeys(("user_first", "user_second"), torch.zeros(1, 2))),
        made("a bias of one item", item_bias=torch.ones(1)),
        made("tables of two widths", item_embedding=torch.ones(4, 200)),
        made("a table that is a view", user_embedding=torch.ones(3, 4)[:, ::2]),
        made("a table of one number", user_embedding=torch.ones(1, 1).expand(3, 2)),
    ]


def attacks() -> dict[str, list[Call]]:
    """Return the calls of each op: a name, and the arguments that differ from those of a sound call."""
    sizes = (0, -1, 2**31, 2**62, TOP, BOTTOM)
    text = [
        made("offsets beyond the characters", offsets=[torch.tensor([0, 2, 2**30], dtype=torch.int32)]),
        made("offsets below zero", offsets=[torch.tensor([-5, 1, 3], dtype=torch.int32)]),
        made("offsets that descend", offsets=[torch.tensor([3, 1, 0], dtype=torch.int32)]),
        made("no offsets", offsets=[torch.tensor([], dtype=torch.int32)]),
        made("int64 offsets", offsets=[ints(0, 1, 3)]),
        made("more chunks than offsets", characters=[torch.zeros(3, dtype=torch.uint8)] * 3),
        made("no chunks", characters=[], offsets=[]),
        made("characters without memory", characters=[gone(3, dtype=torch.uint8)]),
        made("characters that are floats", characters=[torch.ones(3)]),
    ]
    sampled = [
        *each("num_items", sizes),
        *each("k", (-1, 2**31, 2**62, TOP)),
        made("int32 slots", slots=torch.zeros(4, dtype=torch.int32), masses=ints(0, 1, 2, 3, 4)),
        made("slots without masses", slots=torch.zeros(4, dtype=torch.int64)),
        made("slots that name far items", slots=ints(*[TOP] * 4), masses=ints(0, 1, 2, 3, 4)),
        made("masses without slots that are empty", masses=ints()),
        made("a filter of one word", filter=ints(1)),
        made("a user who has all items, without replacement", indptr=ints(0, 4, 4, 4), indices=ints(0, 1, 2, 3)),
    ]
    sums = {"masses": ints(1, 2, 3), "complement_masses": ints(0, TOP, BOTTOM)}
    summed = [
        made("sums without rows", **sums),
        made("sums without masses", complement_rows=ints(0, 0).view(2, 1), complement_masses=ints(0, 1)),
        made("rows of sums that are a vector", complement_rows=ints(0, 0), **sums),
        made("sums that begin far away", complement_rows=torch.stack((ints(0, 1, 3), ints(TOP, BOTTOM, 2))), **sums),
        made("sums gone", **{**sums, "complement_masses": gone(3)}, complement_rows=ints(0, 0).view(2, 1)),
    ]
    positives = [
        *each("kept", (0, -1, 2**62, TOP)),
        *each("total", (0, -1, 2**62, TOP)),
        *each("begin", (-1, TOP, BOTTOM)),
        *each("hint_shift", (-1, 64, 200, TOP)),
        *each("order", (-1, 3, TOP)),
        *each("positives", (0, 3, TOP)),
        made("no hint", hint=ints()),
        made("a hint far away", hint=ints(2**40)),
        made("active users that nobody is", active=ints(7, -1), order=1),
    ]
    return {
        "loss_names": [made("nothing")],
        "cpu_isa": [made("nothing")],
        "csr_build": [
            *bad_ids("users", "items"),
            *each("num_users", sizes),
            *each("num_items", sizes),
            made("more users than items", users=ints(0, 1, 2)),
            *no_tensor("users"),
        ],
        "csr_score_moments": [*bad_matrix(), *no_tensor("rows", "columns"), made("one x", column_x=torch.ones(1))],
        "csr_weighted_columns": [
            *bad_matrix(),
            *no_tensor("rows"),
            *each("slope", (NAN, INF)),
            made("x", row_x=torch.ones(1)),
        ],
        "graph_dropout": [
            *bad_matrix(),
            *each("num_users", (-1, 0, 9, TOP)),
            *each("share", (-1.0, 2.0, NAN)),
            made("by_item far away", by_item=ints(2**40)),
            made("no seed", seed=ints()),
        ],
        "graph_propagate": [
            *bad_matrix(),
            *no_tensor("users", "items"),
            made("one end", end=ints(1)),
            made("far end", end=ints(9, 9, 9)),
        ],
        "has_items": [
            *bad_ids("users", "items"),
            *bad_matrix(),
            *each("num_items", sizes),
            made("a filter", filter=ints(1)),
        ],
        "fold_in": [
            *[(f"positives have {far}", lambda far=far: {"positives": ints(0, far, 1)}) for far in (4, *FAR)],
            *[(f"negatives have {far}", lambda far=far: {"negatives": ints(0, far, 1)}) for far in (4, *FAR)],
            *bad_matrix(indices="positives"),
            *no_tensor("item_embedding"),
            *each("loss", (-1, 99, TOP)),
            *each("l2", (0.0, -1.0, NAN, INF, 1e-300)),
            *each("tolerance", (0.0, NAN, 1e-300)),
            *each("max_iterations", (-1, 2**20, 2**31, TOP)),
            *each("kink", (-1.0, NAN, 1e300)),
            *each("a", (NAN, INF, -1e300)),
            made("no users", indptr=ints()),
            made("users who overlap", indptr=ints(0, 3, 0, 3)),
            made("negatives of no width", negatives=torch.zeros(3, 0, dtype=torch.int64)),
            made("items of no width", item_embedding=torch.ones(4, 0)),
        ],
        "integer_ids": text,
        "text_ids": text,
        "list_metrics": [
            *[(f"lists have {far}", lambda far=far: {"lists": ints(0, far).view(1, 2)}) for far in (4, *FAR)],
            *each("cutoffs", (ints(), ints(0), ints(-1), ints(TOP), ints(5, 1))),
            *no_tensor("values"),
            made("lists of no place", lists=torch.zeros(3, 0, dtype=torch.int64)),
        ],
        "macr_loss": [
            *no_tensor("pos", "neg"),
            *each("reduction", (-1, 7)),
            made("one branch", user_branch=torch.ones(1)),
            made("no branch", pos_branch=torch.ones(0)),
        ],
        "pair_loss": [
            *no_tensor("pos", "neg"),
            *each("loss", (-1, 99, TOP, BOTTOM)),
            *each("reduction", (-1, 7, TOP)),
            made("fewer negatives", neg=torch.ones(1)),
            made("one weight", weight=torch.ones(1)),
            made("weights without memory", weight=gone(2)),
        ],
        "scale_gradients": [
            made("none", gradients=[]),
            made("no factor", factor=torch.ones(0)),
            made("two factors", factor=torch.ones(2)),
            made("without memory", gradients=[gone(3)]),
            made("on meta", gradients=[torch.ones(3, device="meta")]),
        ],
        "scale_gradients_": [
            made("none", gradients=[]),
            made("no factor", factor=torch.ones(0)),
            made("strided", gradients=[torch.ones(9)[::3]]),
            made("without memory", gradients=[gone(3)]),
            made("one number", gradients=[torch.ones(1).expand(9)]),
        ],
        "mf_loss": [
            *bad_ids("users", "positives", "negatives"),
            *no_tensor("user_embedding"),
            *each("loss", (-1, 99)),
            *each("reduction", (-1, 7)),
            made("one bias", item_bias=torch.ones(1)),
        ],
        "mf_gradient": [
            *bad_ids("users", "positives", "negatives"),
            *no_tensor("item_embedding"),
            made("one coefficient", coefficient=torch.ones(1, 1)),
            made("no scale", scale=torch.ones(0)),
            made("sparse", users=ints(0, -1), sparse=True),
        ],
        "mf_step": [
            *bad_ids("users", "positives", "negatives"),
            *training(),
            made("a rate of int", user_lr=ints(1)),
            made("a rate without memory", user_lr=gone()),
            made("one weight too few", weight=torch.ones(1)),
            made("weights of float64", weight=torch.ones(2).double()),
            made("weights without memory", weight=gone(2)),
            made("lists alone", lists=ints(0, 1).view(2, 1), share=2),
            *[made(f"lists shared by {share}", **shared(share=share)) for share in (-1, 0, 4097, 2**31, TOP)],
            *[made(f"lists with items {i}", **shared(lists=ints(0, i).view(2, 1))) for i in (-1, 4, TOP)],
            *[made(f"lists from {start} on", **shared(start=ints(start))) for start in (-1, 2, TOP)],
            made("one list too few", **shared(lists=ints(0).view(1, 1))),
            made("counts of nothing", **shared(alone=ints(-1, TOP))),
            made("lists without memory", **shared(lists=gone(2, 1, dtype=torch.int64))),
            made("samples held too few", **shared(held=torch.zeros(1, 1, dtype=torch.bool))),
        ],
        "mf_train": [
            *bad_ids("users", "positives", "negatives"),
            *training(),
            *each("batch_size", sizes),
            *[
                (f"Hogwild, {said}", lambda v=values: {**v(), "asynchronous": True})
                for said, values in bad_ids("users")
            ],
        ],
        "mf_train_sampled": [
            *bad_matrix(),
            *bad_matrix("excluded_indptr", "excluded_indices"),
            *sampled,
            *positives,
            *training(),
            *each("shared", (-1, 2**31, TOP)),
            *each("samples", (-1, TOP)),
        ],
        "rank_factors": [
            *bad_ids("users"),
            *bad_matrix(),
            *each("k", (-1, TOP)),
            *no_tensor("user_factors", "item_factors"),
            made("pointers alone", excluded_indptr=ints(0, 1, 2, 3)),
            made("offset", offset=ints(0, 99, 3, 3)),
        ],
        "rank_scores": [
            *bad_ids("users"),
            *bad_matrix(),
            *each("k", (-1, TOP)),
            *no_tensor("scores"),
            made("offset below zero", offset=ints(-9, 0, 0, 0)),
        ],
        "row_filter": [*bad_matrix(), *each("num_items", sizes)],
        "sample_negatives": [
            *bad_ids("users"),
            *bad_matrix(),
            *sampled,
            *each("offset", (TOP, BOTTOM)),
            made("a key of one number", key=ints(1)),
            *summed,
        ],
        "sample_negatives_at": [
            *bad_ids("users", "numbers"),
            *bad_matrix(),
            *sampled,
            made("a key of one number", key=ints(1)),
            *summed,
        ],
        "sample_positives": [
            *bad_matrix(),
            *positives,
            *each("rows", (-1, 2**62, TOP)),
            made("a key of one number", key=ints(1)),
        ],
        "unshuffle": [
            *each("total", sizes),
            *[(f"cells have {far}", lambda far=far: {"cells": ints(0, far)}) for far in FAR],
            made("cells gone", cells=gone(3, dtype=torch.int64)),
            made("a key of one number", key=ints(1)),
        ],
        "user_metrics": [
            *each("offset", (ints(), ints(0), ints(0, 2**40, 3), ints(0, -1, 3), ints(3, 2, 0))),
            *each("greater", (ints(), ints(0, -1, TOP), gone(3, dtype=torch.int64))),
            *each("candidates", (ints(), ints(0, 0), ints(-1, TOP))),
            *each("cutoffs", (ints(), ints(0), ints(TOP), ints(BOTTOM))),
            *each("ties", (-1, 3, TOP)),
        ],
    }


def outcome(op: str, change: Callable[[], dict[str, Any]]) -> str:
    """Make a call in a child, and return how it ended: returned, raised, not there, hangs, or a signal."""
    child = os.fork()
    if child == 0:
        code = 4
        try:
            code = _call(op, change)
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status in (-signal.SIGXCPU, -signal.SIGALRM):
        return "hangs"
    said = {0: "returned", 1: "raised", 3: "not there"}.get(status)
    return said or (f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}")


def _call(op: str, change: Callable[[], dict[str, Any]]) -> int:
    function = getattr(torch.ops.zerosum_ext, op, None)
    if function is None:
        return 3
    names = [argument.name for argument in function.default._schema.arguments]
    values = {**base(op), **change()}
    if not set(names) <= set(values) or not set(change()) <= set(names):
        return 3
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    signal.alarm(10 * SECONDS)  # also what waits without working
    try:
        function(**{name: values[name] for name in names})
    except Exception:
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", help="only these")
    parser.add_argument("--json", type=Path, help="write what came of each call here as well")
    options = parser.parse_args()
    import zerosum_ext  # noqa: F401  (registers the ops)

    warnings.simplefilter("ignore")
    listed = attacks()
    missing = {
        name.partition("::")[2].partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("zerosum_ext::")
    } - set(listed)
    if missing:
        print(f"no calls are written for {', '.join(sorted(missing))}")
    for op in listed:
        sound = outcome(op, dict)
        if sound not in ("returned", "not there"):
            print(f"{op}: the sound call {sound}")
            missing.add(op)
    results = {op: [(said, outcome(op, change)) for said, change in listed[op]] for op in options.ops or listed}
    bad = 0
    for op, made_calls in results.items():
        ends = [end for _, end in made_calls]
        ended = [(said, end) for said, end in made_calls if end.startswith(("ended", "hangs"))]
        bad += len(ended)
        print(
            f"{op:22} {len(ends):4} calls, {ends.count('returned'):4} returned, {ends.count('raised'):4} raised, "
            f"{ends.count('not there'):4} not there, {len(ended):4} ended the process or hung",
            flush=True,
        )
        for said, end in ended:
            print(f"    {end}: {said}")
    total = sum(map(len, results.values()))
    there = sum(end != "not there" for calls in results.values() for _, end in calls)
    print(f"{total} calls, of which {there} are there: {bad} ended the process or hung")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 1 if bad or missing else 0


if __name__ == "__main__":
    sys.exit(main())
