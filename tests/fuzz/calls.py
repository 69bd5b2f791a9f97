"""Calls of the compiled ops, made from their own signatures: sound ones, and hostile ones that go wrong somewhere.

A sound call of each op is written down here once. Hostile calls replace or damage its arguments. Those of
:func:`systematic` do so one argument at a time, in every way that fits its type. Those of :func:`at_random` do it to
one to three arguments at once, and are a function of the op's name and a seed.

Tensors lie against a page that cannot be read, so that reading or writing one element too many ends the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import mmap
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

USERS, ITEMS, DIM = 12, 20, 5
LOWEST, HIGHEST = -(2**63), 2**63 - 1
INTEGERS = (LOWEST, -(2**32), -1, 0, 1, 2, 7, 64, 65537, 2**31, 2**32, 2**62, HIGHEST - 1, HIGHEST)
FLOATS = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e308, 1e-320)
IDS = (LOWEST, -(2**31), -1, 0, 1, ITEMS - 1, ITEMS, 2**31 - 1, 2**31, 2**40, HIGHEST)
# So many samples are a legitimate wish that takes minutes: not what is looked for here.
PATIENCE = {"samples": lambda n: n <= 4096 or n >= 2**50, "batch_size": lambda n: True}
QUERIES = ("loss_names", "cpu_isa")
GUARDED = True
SOUND = 1000  # sound calls of an op, which are made once

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_mapped: list[tuple[int, int]] = []


def guarded(tensor: Tensor) -> Tensor:
    """Return a contiguous copy of a tensor that ends where memory ends."""
    if not GUARDED or tensor.numel() == 0:
        return tensor.clone()
    size = tensor.numel() * tensor.element_size()
    room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    base = _libc.mmap(None, room + mmap.PAGESIZE, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if base in (None, ctypes.c_void_p(-1).value):
        raise MemoryError("no memory to guard")
    _libc.mprotect(base + room, mmap.PAGESIZE, 0)
    _mapped.append((base, room + mmap.PAGESIZE))
    memory = (ctypes.c_char * size).from_address(base + room - size)
    out = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel()).view(tensor.shape)
    out.copy_(tensor)
    return out


def release() -> None:
    """Give the guarded memory back; tensors in it must no longer be used."""
    while _mapped:
        _libc.munmap(*_mapped.pop())


# ------------------------------------------------------------------------------------------------ sound calls


def _world(rng: np.random.Generator) -> dict[str, Any]:
    """Return small sound arguments, by the names that most ops use for them."""
    rows = [np.sort(rng.choice(ITEMS, size=int(rng.integers(0, 9)), replace=False)) for _ in range(USERS)]
    rows[0] = rows[0][:0] if len(rows[1]) else np.arange(3)
    indptr = np.concatenate(([0], np.cumsum([len(r) for r in rows])))
    indices = np.concatenate(rows)
    size = int(indptr[-1])
    owner = np.repeat(np.arange(USERS), np.diff(indptr))
    f32 = lambda *shape: torch.tensor(rng.normal(size=shape), dtype=torch.float32)  # noqa: E731
    index = torch.tensor(indices)
    order = np.lexsort((owner, indices))
    columns = np.bincount(indices, minlength=ITEMS)
    return {
        "rng": rng,
        "f32": f32,
        "user": f32(USERS, DIM),
        "item": f32(ITEMS, DIM),
        "bias": f32(ITEMS),
        "ids": lambda n, bound: torch.tensor(rng.integers(0, bound, size=n)),
        "indptr": torch.tensor(indptr),
        "indices": index,
        "size": size,
        "hint": torch.tensor(owner[::4] if size else np.zeros(1, np.int64)),
        "active": torch.tensor(np.flatnonzero(np.diff(indptr))),
        "square": torch.tensor(np.concatenate((indptr, size + np.cumsum(columns)))),
        "neighbours": torch.tensor(np.concatenate((indices, owner[order]))),
        "by_item": torch.tensor(order),
        "rows": [len(r) for r in rows],
    }


def _alias(num_items: int) -> tuple[Tensor, Tensor]:
    bits = max(1, (num_items - 1).bit_length())
    size = 2**bits
    # A slot of each item's own, and those that are left over for item 0. (A threshold of 2^31 would not fit the sign.)
    own = [(2**31 - 1) << 32 | i for i in range(num_items)]
    slots = torch.tensor(own + [0] * (size - num_items), dtype=torch.int64)
    first = (size - num_items + 1) * 2**31
    masses = torch.tensor([0] + [first + i * 2**31 for i in range(num_items)], dtype=torch.int64)
    return slots, masses


def _training(w: dict[str, Any], optimizer: int) -> list[Any]:
    tables = [w["user"], w["item"], w["bias"]]
    state = []
    for table in tables:
        state += [torch.zeros_like(table) if optimizer in (2, 3) else None]
        state += [torch.zeros_like(table) if optimizer else None]
    return tables + state


def _settings() -> Tensor:
    return torch.tensor([[1.0, 0.01, 0.9, 0.999, 1e-8, 1.0]] * 3, dtype=torch.float64)


def sound(op: str, seed: int) -> list[Any]:
    """Return the arguments of a call that the op takes, in the order of its schema; :func:`place` copies them."""
    return list(_sound(op, seed))


@functools.lru_cache(maxsize=SOUND)
def _sound(op: str, seed: int) -> list[Any]:
    rng = np.random.default_rng([seed, len(op)])
    w = _world(rng)
    f32, ids, pick = w["f32"], w["ids"], lambda *options: options[int(rng.integers(len(options)))]
    names = torch.ops.zerosum_ext.loss_names().split(",")
    of_rows = range(names.index("sampled_softmax"), len(names))  # those of a row of K negatives come last
    of_a_pair = [names.index("bpr"), names.index("zerosum"), names.index("hinge")]
    pairs = f32(9), f32(9), None, None, None, pick(*of_a_pair), 1.0, 1.0, 1.0, pick(0, 1, 2), True
    rows = f32(9), f32(9, 4), None, None, None, pick(*of_rows), 1.0, 1.0, 1.0, pick(0, 1, 2), True
    samples = ids(9, USERS), ids(9, ITEMS), ids(9, ITEMS)
    held = f32(9, 1) > 0
    lists = ids((4, 1), ITEMS), torch.tensor([pick(0, 2)]), held, held[:, 0].cumsum(0), 3
    slots, masses = _alias(ITEMS)
    strategy = pick((None, None), (slots, masses), (None, torch.arange(0, ITEMS, 2)))
    matrix = w["indptr"], w["indices"]
    lookup = pick(None, torch.ops.zerosum_ext.row_filter(*matrix, ITEMS))
    epoch = w["hint"], 2, None, pick(None, w["active"]), pick(0, 1, 2), w["size"], w["size"]
    optimizer = int(rng.integers(4))
    steps = optimizer, 1, 1.0, 1.0, 1.0, 0.01, 0.0, 2, 4, optimizer == 0 and pick(False, True)
    users = torch.arange(USERS)
    offset = w["indptr"].clone()
    ranking = users, offset, *matrix, None, None, pick(0, 3, 30)
    counts = [int(n) for n in w["rows"]]
    greater = torch.tensor([i for n in counts for i in range(n)], dtype=torch.int64)
    made: dict[str, Callable[[], tuple[Any, ...]]] = {
        "loss_names": lambda: (),
        "cpu_isa": lambda: (),
        "pair_loss": lambda: pick(pairs, rows),
        "macr_loss": lambda: (f32(9), f32(9, 4), f32(9), f32(9), f32(9, 4), None, 1.0, 1.0, pick(0, 1, 2), True),
        "scale_gradients_": lambda: ([f32(9), f32(9, 4)], torch.tensor(0.5)),
        "scale_gradients": lambda: ([f32(9), f32(9, 4)], torch.tensor(0.5)),
        "mf_loss": lambda: (
            *(w["user"], w["item"], pick(None, w["bias"]), *samples),
            *(None, None, 1, 1.0, 1.0, 1.0, 0.1, pick(1, 2), True),
        ),
        "mf_gradient": lambda: (
            *(w["user"], w["item"], *samples, f32(9, 2), torch.tensor(1.0), 0.1),
            *(True, True, True, pick(False, True), False, False),
        ),
        "mf_step": lambda: (
            *(*_training(w, optimizer), *samples, None, _settings(), *(pick(None, torch.tensor(0.01)), None) * 3),
            *(pick(None, torch.zeros((), dtype=torch.float64)), optimizer, 1, 1.0, 1.0, 1.0, 0.01, 0.0, 2),
            *(pick(None, f32(9).abs()), pick(False, True), *pick((*(None,) * 4, 0), lists)),
        ),
        "mf_train": lambda: (*_training(w, optimizer), *samples, None, _settings(), *steps, pick(False, True)),
        "mf_train_sampled": lambda: (
            *_training(w, optimizer),
            *(*matrix, *epoch, 0, w["size"], 1, *matrix, lookup, *strategy, ITEMS, 1, 3, 1, True, pick(0, 4)),
            *(None, _settings(), *steps, pick(False, True), pick(None, f32(w["size"]).abs())),
        ),
        "fold_in": lambda: (
            *(w["item"], pick(None, w["bias"]), torch.tensor([0, 2, 2, 9]), ids(9, ITEMS), ids((9, 4), ITEMS), None),
            *pick((0, 1.0, 1.0, 1.0, 0.0), (1, 1.0, 1.0, 1.0, 0.02), (1, 1.0, 1.0, 1.0, 0.0)),
            *(0.1, 1e-4, pick(0, 1, 50)),
        ),
        "sample_negatives": lambda: (
            *(ids(9, USERS), *matrix, lookup, *strategy, ITEMS, pick(1, 3), 5, 1, 0, pick(False, True)),
            *(None, None, None),
        ),
        "sample_negatives_at": lambda: (
            *(ids(9, USERS), ids(9, 1000), *matrix, lookup, *strategy, ITEMS, pick(1, 3), 5, 1, pick(False, True)),
            *(None, None, None),
        ),
        "unshuffle": lambda: (ids(9, w["size"]), w["size"], 5, 1, None),
        "sample_positives": lambda: (*matrix, *epoch, 0, w["size"], pick(1, 2), 5, 1, None),
        "row_filter": lambda: (*matrix, ITEMS),
        "csr_build": lambda: (ids(9, USERS), ids(9, ITEMS), USERS, ITEMS),
        "integer_ids": lambda: _text_column(rng),
        "text_ids": lambda: _text_column(rng),
        "has_items": lambda: (ids(9, USERS), pick(ids(9, ITEMS), ids((9, 3), ITEMS)), *matrix, lookup, ITEMS),
        "rank_factors": lambda: (w["user"], w["item"], pick(None, w["bias"]), *ranking, pick(False, True)),
        "rank_scores": lambda: (f32(USERS, ITEMS), *ranking),
        "user_metrics": lambda: (
            *(offset, greater, torch.zeros_like(greater), torch.full((USERS,), ITEMS)),
            *(torch.tensor(rng.normal(size=len(greater))), torch.tensor([1, 5, 30]), pick(0, 1, 2)),
        ),
        "list_metrics": lambda: (
            *(ids((USERS, 6), ITEMS), torch.tensor(rng.normal(size=(2, ITEMS))), torch.tensor([1, 5, 30])),
        ),
        "csr_score_moments": lambda: (w["user"], w["item"], pick(None, w["bias"]), *matrix, f32(ITEMS)),
        "csr_weighted_columns": lambda: (
            *(w["user"], w["item"], f32(USERS), w["bias"], *matrix, f32(USERS), None, 0.5),
        ),
        "graph_propagate": lambda: (
            *(w["user"], w["item"], w["square"], pick(None, w["square"][1:].clone()), w["neighbours"]),
            *(f32(USERS + ITEMS), pick(None, f32(USERS + ITEMS)), 1.0),
        ),
        "graph_dropout": lambda: (w["square"], w["neighbours"], w["by_item"], USERS, torch.tensor([3]), 0.3),
    }
    return list(made[op]())


def _text_column(rng: np.random.Generator) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Two chunks of short numbers."""
    chunks = [rng.integers(48, 58, 40).astype(np.uint8) for _ in range(2)]
    offsets = [np.concatenate(([0], np.sort(rng.integers(0, 40, 8)))).astype(np.int32) for _ in range(2)]
    return [torch.from_numpy(c) for c in chunks], [torch.from_numpy(o) for o in offsets]


# ------------------------------------------------------------------------------------------------ what goes wrong


def _poked(tensor: Tensor, place: int, value: float) -> Tensor:
    out = tensor.clone()
    if out.numel():
        number = int(value) if not out.is_floating_point() and math.isfinite(value) else value
        if not out.is_floating_point():
            info = torch.iinfo(out.dtype) if out.dtype != torch.bool else None
            number = (
                bool(number) if info is None else max(info.min, min(info.max, int(number) if number == number else 0))
            )
        out.view(-1)[place % out.numel()] = number
    return out


def _strided(tensor: Tensor) -> Tensor:
    wide = tensor.repeat_interleave(2, dim=-1) if tensor.dim() else tensor
    return wide[..., ::2] if tensor.dim() else wide


def _without_memory(tensor: Tensor) -> Tensor:
    out = tensor.clone()
    out.untyped_storage().resize_(0)
    return out


def _expanded(tensor: Tensor) -> Tensor:
    return tensor.flatten()[:1].expand(1 << 12) if tensor.numel() else tensor


def damages(tensor: Tensor) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yield the name of every kind of damage to a tensor, with the function that does it."""
    if tensor.numel() and tensor.layout == torch.strided and not tensor.untyped_storage().nbytes():
        return  # damaged before: its memory is gone
    wrong = torch.int32 if tensor.dtype == torch.int64 else torch.int64
    yield "empty", lambda: tensor.new_empty((0,) * max(1, tensor.dim()))
    yield "a number", lambda: tensor.flatten()[:1].reshape(()) if tensor.numel() else tensor.new_zeros(())
    yield "three dimensions", lambda: tensor.reshape(1, 1, -1)
    yield "flat", lambda: tensor.flatten()
    yield "another dtype", lambda: tensor.to(wrong)
    yield "bool", lambda: tensor.to(torch.bool)
    yield "float16", lambda: tensor.to(torch.float16)
    yield "float64", lambda: tensor.to(torch.float64)
    yield "complex", lambda: tensor.to(torch.complex64)
    yield "strided", lambda: _strided(tensor)
    yield "transposed", lambda: tensor.t() if tensor.dim() == 2 else tensor.unsqueeze(0)
    yield "expanded", lambda: _expanded(tensor)
    yield "meta", lambda: tensor.to("meta")
    yield "without memory", lambda: _without_memory(tensor)
    yield "sparse", lambda: tensor.to_sparse()
    yield "shorter", lambda: tensor[:-1].clone() if tensor.dim() and len(tensor) else tensor
    yield "longer", lambda: torch.cat((tensor, tensor[:1])) if tensor.dim() and len(tensor) else tensor
    values = IDS if not tensor.is_floating_point() else FLOATS
    for value in values:
        yield f"all {value}", lambda value=value: _filled(tensor, value)
        yield f"first {value}", lambda value=value: _poked(tensor, 0, value)
        yield f"last {value}", lambda value=value: _poked(tensor, -1, value)
        yield f"middle {value}", lambda value=value: _poked(tensor, tensor.numel() // 2, value)


def _filled(tensor: Tensor, value: float) -> Tensor:
    out = tensor.clone()
    for place in range(min(out.numel(), 4096)):
        if place > 0:
            out.view(-1)[place] = out.view(-1)[0]
        else:
            out = _poked(out, 0, value)
    return out


def _kind(argument: Any) -> str:
    return str(argument.type)


def substitutes(name: str, kind: str, value: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield hostile values for an argument of this type whose sound value is given."""
    if kind in ("Tensor", "Optional[Tensor]"):
        if value is None:
            for n in (1, ITEMS, ITEMS + 1):
                yield f"float32 [{n}]", lambda n=n: torch.zeros(n)
                yield f"int64 [{n}]", lambda n=n: torch.arange(n)
                yield f"int16 [{n}]", lambda n=n: torch.full((n,), -1, dtype=torch.int16)
            return
        if kind.startswith("Optional"):
            yield "None", lambda: None
        yield from damages(value)
    elif kind == "List[Tensor]":
        yield "no tensor", list
        yield "one fewer", lambda: value[:-1]
        yield "one more", lambda: [*value, value[0]]
        for at, one in enumerate(value):
            for what, damage in damages(one):
                yield f"{what} at {at}", lambda at=at, damage=damage: [*value[:at], damage(), *value[at + 1 :]]
    elif kind == "bool":
        yield "the other", lambda: not value
    elif kind == "int":
        for number in (*INTEGERS, int(value) + 1, int(value) - 1):
            if PATIENCE.get(name, lambda n: True)(number):
                yield str(number), lambda number=number: number
    elif kind == "float":
        for fraction in FLOATS:
            yield str(fraction), lambda fraction=fraction: fraction


def ops() -> list[str]:
    """Return the names of all ops of the library, as the dispatcher lists them."""
    names = {s.name.split("::")[1] for s in torch._C._jit_get_all_schemas() if s.name.startswith("zerosum_ext::")}
    return sorted(names)


def systematic(op: str) -> list[tuple[str, Callable[[], list[Any]]]]:
    """Return the hostile calls of an op that differ from a sound one in one argument."""
    arguments = getattr(torch.ops.zerosum_ext, op).default._schema.arguments
    calls: list[tuple[str, Callable[[], list[Any]]]] = []
    for seed in (0, 1):
        values = sound(op, seed)
        for place, argument in enumerate(arguments):
            for what, make in substitutes(argument.name, _kind(argument), values[place]):

                def call(seed: int = seed, place: int = place, make: Callable[[], Any] = make) -> list[Any]:
                    changed = sound(op, seed)
                    changed[place] = make()
                    return changed

                calls.append((f"{argument.name}: {what} ({seed})", call))
    return calls


def at_random(op: str, seed: int) -> list[Any]:
    """Return the arguments of example number ``seed`` of an op."""
    rng = random.Random(f"{op} {seed}")
    arguments = getattr(torch.ops.zerosum_ext, op).default._schema.arguments
    values = sound(op, rng.randrange(SOUND))
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        if not arguments:
            break
        place = rng.randrange(len(arguments))
        choices = list(substitutes(arguments[place].name, _kind(arguments[place]), values[place]))
        value = values[place]
        if isinstance(value, Tensor) and value.numel() and value.device.type == "cpu" and rng.random() < 0.5:
            if value.layout == torch.strided and not value.is_complex() and value.untyped_storage().nbytes():
                hostile = rng.choice(FLOATS if value.is_floating_point() else (*IDS, rng.randrange(-5, 2 * ITEMS)))
                values[place] = _poked(value.contiguous(), rng.randrange(value.numel()), hostile)
        # (What has a wrong type never comes to the op: torch prints it, and dies of a number without memory.)
        elif rng.random() < 0.1 and not isinstance(value, list):
            values[place] = rng.choice([v for v in values if isinstance(v, Tensor)] or [value])
        elif choices:
            # Not every tensor can be damaged in every way.
            with contextlib.suppress(RuntimeError, TypeError, ValueError, OverflowError):
                values[place] = rng.choice(choices)[1]()
    return values


def place(values: list[Any]) -> list[Any]:
    """Move contiguous tensors on the CPU to guarded memory."""
    out: list[Any] = []
    for value in values:
        if isinstance(value, list):
            out.append(place(value))
            continue
        plain = isinstance(value, Tensor) and value.device.type == "cpu" and value.layout == torch.strided
        if plain and value.is_contiguous() and value.untyped_storage().nbytes() and not value.is_complex():
            out.append(guarded(value))
        else:
            out.append(value)
    return out
