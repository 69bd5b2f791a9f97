"""Attacks on what is promised of files and processes, with figures of how it went.

    python tests/attacks/attack.py kill [--times 500]       kill -9 in the middle of training; every resume, bit for bit
    python tests/attacks/attack.py disk [--offsets 200]     writes that end at an offset of each kind of file
    python tests/attacks/attack.py race [--seconds 60]      processes that want to train in one folder
    python tests/attacks/attack.py memory [--minutes 60]    steps of training; resident memory must not grow

Each prints a line of JSON, and ends with status 1 if the promise was broken. They take what time they are given, so the
test suite does not run them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import zerosum_ext as zx
from zerosum_ext import _files
from zerosum_ext.experiments import plots, runs
from zerosum_ext.experiments.reproduce import results
from zerosum_ext.models import write_recommendations

# What is attacked here needs no disk, which would be waited for.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One kind of training: what is trained, how, and with which further options of ``fit``."""

    model: str
    method: str
    engine: str = "auto"
    optimizer: str = "Adam"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return ", ".join([self.model, self.method, self.engine, self.optimizer, *self.options])


CASES = [
    Case("mf", "zerosum"),
    Case("mf", "bpr", "autograd", "Adagrad"),
    Case("mf", "bpr", "hogwild", "SGD"),
    Case("mf", "pos2neg2", "fused", "SGD"),
    Case("mf", "pos2neg2", "autograd"),
    Case("mf", "bpr", "fused", "Adagrad", {"l2": 0.01, "negatives": 1}),
    Case("mf", "sampled_softmax", "fused", "Adam", {"negatives": 4}),
    Case("mf", "zerosum", "autograd", "Adam", {"validation": True, "patience": 9}),
    Case("mf", "zerosum", "auto", "Adam", {"scheduler": True}),
    Case("mf", "bpr", "autograd", "Adam", {"precision": "bfloat16"}),
    Case("mf", "bpr", "autograd", "SparseAdam"),
    Case("mf", "macr"),
    Case("mf", "pearson"),
    Case("mf", "pd"),
    Case("mf", "ipw"),
    Case("neumf", "zerosum"),
    Case("ngcf", "zerosum"),
    Case("lightgcn", "bpr"),
    Case("mf", "run"),
]


def train(folder: Path, case: Case, resume: bool) -> None:
    """Train a case in this process; the result is the file final.pt."""
    data = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(40, 40))
    if case.method == "run":  # a run folder: several methods, figures left out
        method = runs.Method(loss="zerosum", weight=0.8, embedding_dim=8, epochs=4, batch_size=128)
        there = (folder / "run").exists()
        run = runs.train(data, folder / "run", method, resume=there, figures=False, progress=False)
        (folder / "metrics.json").write_text(json.dumps(run.metrics, sort_keys=True))
        (folder / "metrics.json").rename(folder / "final.pt")
        return
    model = zx.get_model(case.model, data, embedding_dim=8, seed=0)
    parts = zx.get_method(case.method, model, data)
    options = dict(case.options)
    if "validation" in options:
        options["validation"] = data
    if "scheduler" in options:
        options["scheduler"] = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    checkpoint = folder / "c.pt"
    history = zx.fit(
        parts.model,
        data,
        parts.loss,
        lambda parameters: getattr(torch.optim, case.optimizer)(parameters, lr=0.05),
        regularizer=parts.regularizer,
        epochs=5,
        batch_size=128,
        engine=case.engine,
        progress=False,
        checkpoint=checkpoint,
        checkpoint_every=3,
        resume=checkpoint if resume else None,
        **options,
    )
    torch.save({"history": list(history), **parts.model.state_dict()}, folder / "done")
    (folder / "done").rename(folder / "final.pt")


def start(folder: Path, case: Case) -> int:
    """Train in a child that has all that is imported already; return its process id."""
    child = os.fork()
    if child == 0:
        try:
            train(folder, case, (folder / "c.pt").is_file())
            (folder / "modules").write_text("\n".join(sys.modules))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Watched:
    """Counts how often a training has written what the next one goes on from, while it is asked again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: set[tuple[str, int, int]] = set()

    def count(self) -> int:
        for path in [self.folder / "c.pt", *(self.folder / "run").glob("*/*")]:
            with contextlib.suppress(OSError):
                state = path.stat()
                self.seen.add((path.name, state.st_ino, state.st_mtime_ns))
        return len(self.seen)


def watch(child: int, folder: Path, times: int) -> int | None:
    """Wait until a training has written so many times; return its exit status if it ended before, and None else."""
    watched = Watched(folder)
    begun = watched.count()
    while watched.count() - begun < times:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.003)
    return None


def same(one: Path, other: Path) -> bool:
    """Tell whether two results are the same numbers."""
    if one.read_bytes()[:2] != b"PK":
        return one.read_bytes() == other.read_bytes()
    first, second = torch.load(one), torch.load(other)
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        for name, value in first.items()
    )


def kill(times: int) -> dict[str, object]:
    """Kill trainings at random moments, resume each, and compare the end with a run that nobody touched."""
    rng, killed, rounds, resumed, failed = random.Random(0), 0, 0, 0, []
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        writes = {}
        for case in CASES:
            folder = Path(name) / case.name
            folder.mkdir()
            if watch(start(folder, case), folder, 10**9) != 0:
                raise RuntimeError(f"{case.name}: it does not train")
            writes[case] = 10 if case.method != "run" else 20
            # What a training imports, the next child has already. (Autograd itself must not run before a fork.)
            for module in (folder / "modules").read_text().split("\n"):
                if module not in sys.modules:
                    with contextlib.suppress(Exception):
                        importlib.import_module(module)
        while killed < times:
            case = CASES[rounds % len(CASES)]
            rounds += 1
            with tempfile.TemporaryDirectory(dir=MEMORY) as place:
                folder = Path(place)
                for _ in range(3):
                    resumed += (folder / "c.pt").is_file() or any((folder / "run").glob("*/checkpoint.pt"))
                    child = start(folder, case)
                    code = watch(child, folder, rng.randrange(writes[case]))
                    if code is None:
                        time.sleep(rng.random() * 0.01)
                        os.kill(child, signal.SIGKILL)
                        code = ended(child)
                    killed += code == -signal.SIGKILL
                    if code == 0:
                        break
                    if code != -signal.SIGKILL:
                        failed.append((case.name, f"exit status {code}"))
                if not (folder / "final.pt").is_file() and ended(start(folder, case)) != 0:
                    failed.append((case.name, "does not resume"))
                elif not same(folder / "final.pt", Path(name) / case.name / "final.pt"):
                    failed.append((case.name, "other numbers"))
            print(f"{killed} killed, {rounds} compared, {len(failed)} failed", file=sys.stderr, flush=True)
    return {
        "kinds of training": len(CASES),
        "killed": killed,
        "went on from a file": resumed,
        "finished and compared": rounds,
        "not bit-equal or refused": len(failed),
        "first": failed[:3],
        "broken": bool(failed),
    }


def writers() -> dict[str, Callable[[Path], object]]:
    """Return a function for each kind of file, which writes one at a path."""
    data = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(60, 60))
    model, small = zx.MatrixFactorization(60, 60, 8, seed=0), zx.MatrixFactorization(60, 60, 8, seed=0)
    small.fit(data, "bpr", epochs=1, progress=False)
    named = zx.Interactions.from_arrays([f"u{i}" for i in range(500)], [f"i{i % 90}" for i in range(500)], ids=True)
    split = runs.SplitRule().apply(data)
    table = {str(i): i / 3 for i in range(500)}

    def checkpoint(path: Path) -> None:
        zx.fit(small, data, "bpr", epochs=1, first_epoch=0, checkpoint=path, progress=False)

    def log(path: Path) -> None:
        event = zx.training.EpochEnd.__new__(zx.training.EpochEnd)
        history = zx.training.History([i / 7 for i in range(200)])
        history.seconds = [0.5] * 200
        for name, value in {"epoch": 199, "history": history, "optimizer": None}.items():
            object.__setattr__(event, name, value)
        zx.callbacks.CSVLogger(path)(event)

    return {
        "model.safetensors": model.save,
        "checkpoint.pt": checkpoint,
        "metrics.json": lambda path: runs.files.write_json(path, table),
        "split.npz": lambda path: runs.files.write_split(path, split),
        "interactions.npz": named.save,
        "vocabulary.npz": lambda path: named.vocabulary.save(path),
        "report.md": lambda path: _files.write_text(path, "a line of a report, with \u00e9\n" * 400),
        "lists.csv": lambda path: write_recommendations(model, path, k=10),
        "lists.parquet": lambda path: write_recommendations(model, path, k=10),
        "lists.csv.gz": lambda path: write_recommendations(model, path, k=10),
        "picture.png": lambda path: plots.popq_histogram({"a": torch.linspace(0, 1, 99).numpy()}, path),
        "results.jsonl": lambda path: results.append(path, {"method": "x", "values": table}),
    }


def cut_places(size: int, offsets: int) -> list[int]:
    """Return where a file's write is cut: at even distances, at its ends, and about the ends of buffers."""
    ends = {place + by for place in range(4096, size, 4096) for by in (-1, 0, 1)}
    return sorted(p for p in {0, 1, size - 1, *(i * size // offsets for i in range(offsets)), *ends} if 0 <= p < size)


def disk(offsets: int) -> dict[str, object]:
    """Cut the writes of each kind of file: an OSError of one line, and what was there must still be there."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    tried: dict[str, int] = {}
    broken = []
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for kind, write in writers().items():
        with tempfile.TemporaryDirectory(dir=MEMORY) as name:
            path = Path(name) / kind
            write(path)
            before = path.read_bytes()
            appended = kind == "results.jsonl"  # a second line: what is cut off of it is removed by the next one
            places = [len(before) + p if appended else p for p in cut_places(len(before), offsets)]
            for place in places:
                resource.setrlimit(resource.RLIMIT_FSIZE, (place, hard))
                try:
                    write(path)
                    said = "nothing"
                except OSError as error:
                    said = "" if "\n" not in str(error) else str(error)
                except Exception as error:
                    said = repr(error)
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
                now = path.read_bytes()
                kept = now.startswith(before) if appended else now == before
                if said or not kept or len(list(path.parent.iterdir())) != 1:
                    broken.append((kind, place, said, "kept" if kept else "lost"))
                if appended:
                    write(path)
                    if path.read_bytes() != before * 2:
                        broken.append((kind, place, "torn", "lost"))
                    path.write_bytes(before)
            tried[kind] = len(places)
    return {
        "kinds of files": len(tried),
        "writes that were cut off": sum(tried.values()),
        "of each kind": tried,
        "files that were lost or errors of another kind": len(broken),
        "first": broken[:3],
        "broken": bool(broken),
    }


RACE = """
import sys, zerosum_ext as zx
from zerosum_ext.experiments import runs
train = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(40, 40))
seed = int(sys.argv[2])
try:
    method = runs.Method(loss="bpr", embedding_dim=4, epochs=3, seed=seed)
    runs.train(train, sys.argv[1], method, overwrite=True, figures=False, progress=False)
except ValueError as error:
    assert "in use" in str(error), error
    sys.exit(7)
"""


def race(seconds: float) -> dict[str, object]:
    """Let processes train other runs in one folder; whatever is there in between is one run, whole."""
    end, rounds, refused, broken = time.monotonic() + seconds, 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        while time.monotonic() < end:
            children = [subprocess.Popen([sys.executable, "-c", RACE, str(folder), str(s)], cwd=name) for s in range(3)]
            codes = [child.wait() for child in children]
            rounds, refused = rounds + 1, refused + codes.count(7)
            run = runs.Run.open(folder)
            seed = run.methods["bpr"].seed
            again = Path(name) / "again"
            train = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(40, 40))
            method = runs.Method(loss="bpr", embedding_dim=4, epochs=3, seed=seed)
            same = runs.train(train, again, method, overwrite=rounds > 1, figures=False, progress=False)
            broken += not set(codes) <= {0, 7} or run.metrics != same.metrics
    return {"rounds of three": rounds, "refused": refused, "mixed": broken, "broken": bool(broken)}


def memory(minutes: float) -> dict[str, object]:
    """Train without an end, and look at the resident memory."""
    train = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(200, 200))
    model = zx.MatrixFactorization(200, 200, 32, seed=0)

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    end, samples, fits = time.monotonic() + 60 * minutes, [], 0
    while time.monotonic() < end:
        model.fit(train, "zerosum", epochs=2, validation=train, progress=False)
        model.recommend(list(range(200)), 10)
        fits += 1
        if fits > 5:
            samples.append(resident())
    growth = samples[-1] - samples[0]
    return {"fits": fits, "MiB at first": round(samples[0]), "growth in MiB": round(growth, 1), "broken": growth > 30}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attack", choices=("kill", "disk", "race", "memory"))
    parser.add_argument("--times", type=int, default=500)
    parser.add_argument("--offsets", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--minutes", type=float, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    outcome = {
        "kill": lambda: kill(options.times),
        "disk": lambda: disk(options.offsets),
        "race": lambda: race(options.seconds),
        "memory": lambda: memory(options.minutes),
    }[options.attack]()
    print(json.dumps({"attack": options.attack, **outcome}))
    return 1 if outcome["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
