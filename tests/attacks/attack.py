"""Attacks on what is promised of files and processes, with figures of how it went.

    python tests/attacks/attack.py kill [--times 500]       kill -9 in the middle of training; every resume, bit for bit
    python tests/attacks/attack.py disk [--offsets 200]     writes that end at an offset of each kind of file
    python tests/attacks/attack.py full [--offsets 200]     a disk that is full, has no inodes or is read-only (as root)
    python tests/attacks/attack.py race [--seconds 60]      processes that want to train in one folder
    python tests/attacks/attack.py memory [--minutes 60]    steps of training; resident memory must not grow

Each prints a line of JSON, and ends with status 1 if the promise was broken. They take what time they are given, so the
test suite does not run them.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import importlib
import json
import mmap
import os
import random
import re
import resource
import shutil
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


# To this kind of file lines are appended; the others are replaced.
APPENDED = "results.jsonl"


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
    """Train in a child; return its process id."""

    def call() -> int:
        train(folder, case, (folder / "c.pt").is_file())
        (folder / "modules").write_text("\n".join(sys.modules))
        return 0

    return forked(call)


def forked(call: Callable[[], int]) -> int:
    """Call a function in a child that has all that is imported already; return its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = call()
        except BaseException:
            traceback.print_exc()
        os._exit(code)
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


def writers(large: bool = False) -> dict[str, Callable[[Path], object]]:
    """Return a function for each kind of file, which writes one at a path; large: of a megabyte or so."""
    size, dim, lines = (3000, 64, 40_000) if large else (60, 8, 400)
    data = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(60, 60))
    # (Compressing the largest takes most of the time.)
    pairs = torch.randint(size, (2, 30 * size), generator=torch.Generator().manual_seed(0)).numpy()
    split = runs.SplitRule().apply(zx.Interactions.from_arrays(*pairs))
    if large:
        data = zx.Interactions.from_arrays(*pairs)
    model = zx.MatrixFactorization(*data.shape, dim, seed=0)
    small = zx.MatrixFactorization(*data.shape, dim, seed=0)
    small.fit(data, "bpr", epochs=1, progress=False)
    texts = 10 * size if large else 500
    named = zx.Interactions.from_arrays(
        [f"u{i * 7919}" for i in range(texts)], [f"i{i % (texts // 5)}" for i in range(texts)], ids=True
    )
    table = {str(i): i / 3 for i in range(lines)}

    def checkpoint(path: Path) -> None:
        zx.fit(small, data, "bpr", epochs=1, first_epoch=0, checkpoint=path, progress=False)

    history = zx.training.History([i / 7 for i in range(lines)])
    history.seconds, history.samples = [0.5] * lines, [7] * lines
    event = zx.training.EpochEnd.__new__(zx.training.EpochEnd)  # the end of so many epochs
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    for name, value in {"epoch": lines - 1, "history": history, "optimizer": sgd}.items():
        object.__setattr__(event, name, value)

    return {
        "model.safetensors": model.save,
        "checkpoint.pt": checkpoint,
        "metrics.json": lambda path: runs.files.write_json(path, table),
        "split.npz": lambda path: runs.files.write_split(path, split),
        "interactions.npz": named.save,
        "vocabulary.npz": lambda path: named.vocabulary.save(path),
        "report.md": lambda path: _files.write_text(path, "a line of a report, with \u00e9\n" * lines),
        "log.csv": lambda path: zx.callbacks.CSVLogger(path)(event),
        "lists.csv": lambda path: write_recommendations(model, path, k=10),
        "lists.parquet": lambda path: write_recommendations(model, path, k=10),
        "lists.csv.gz": lambda path: write_recommendations(model, path, k=10),
        "picture.png": lambda path: plots.popq_histogram({"a": torch.linspace(0, 1, 99).numpy()}, path),
        "results.jsonl": lambda path: results.append(path, {"method": "x", "values": table}),
    }


def ends_of_writes(folder: Path) -> dict[str, list[int]]:
    """Return where each write to each kind of file ends, as strace tells; nothing where there is no strace."""
    strace = shutil.which("strace")
    if strace is None:
        return {}
    log = folder / "strace"
    calls = "trace=openat,write,writev,pwrite64,lseek"
    command = [strace, "-f", "-y", "-s", "0", "-e", calls, "-o", os.fspath(log)]
    subprocess.run([*command, sys.executable, __file__, "write", "--folder", os.fspath(folder)], check=True)
    ends: dict[str, list[int]] = {}
    at: dict[str, int] = {}
    kind = ""
    for line in log.read_text(errors="replace").splitlines():
        begun = re.search(r"openat\(.*\"[^\"]*/begin-([^\"]*)\"", line)
        if begun:
            kind, at = begun[1], {}
        said = re.search(r"(lseek|writev?|pwrite64)\(\d+<([^>]*)>.*?(?:, (\d+))?\) += (\d+)$", line)
        if said is None or not kind or not said[2].startswith(f"{folder}/written/"):
            continue
        call, of, place, number = said[1], said[2], said[3], int(said[4])
        if call == "lseek":
            at[of] = number
            continue
        if call == "pwrite64":
            at[of] = int(place)
        at[of] = at.get(of, 0) + number
        ends.setdefault(kind, []).append(at[of])
    return ends


def write_each(folder: Path) -> None:
    """Write a file of each kind, and look for one that is not there before each, so that a trace tells them apart."""
    (folder / "written").mkdir()
    for kind, write in writers().items():
        with contextlib.suppress(FileNotFoundError):
            os.open(folder / f"begin-{kind}", os.O_RDONLY)
        write(folder / "written" / kind)


def cut_places(size: int, offsets: int, ends: list[int]) -> list[int]:
    """Return where a file's write is cut: at even distances, at its ends, and about the ends of writes and buffers."""
    about = {place + by for place in (*range(4096, size, 4096), *ends) for by in (-1, 0, 1)}
    if len(about) > 2 * offsets:  # a file of very many small writes
        about = set(random.Random(0).sample(sorted(about), 2 * offsets))
    even = {i * size // offsets for i in range(offsets)}
    return sorted(p for p in {0, 1, size - 1, *even, *about} if 0 <= p < size)


def complaint(write: Callable[[Path], object], path: Path) -> str:
    """Return what is wrong with the error of a write that cannot succeed, or nothing."""
    try:
        write(path)
    except OSError as error:
        return "" if "\n" not in str(error) else str(error)
    except Exception as error:
        return repr(error)
    return "no error"


class Outcomes:
    """Counts the writes of each kind of file, and keeps what went wrong."""

    def __init__(self) -> None:
        self.tried: dict[str, int] = {}
        self.broken: list[tuple[str, str, str]] = []

    def attempt(self, kind: str, where: str, write: Callable[[Path], object], path: Path, before: bytes) -> None:
        """Write where it cannot succeed: an error of one line, what was there is there, and nothing beside it."""
        said, now = complaint(write, path), path.read_bytes()
        self.tried[kind] = self.tried.get(kind, 0) + 1
        if not (now.startswith(before) if kind == APPENDED else now == before):
            said = f"lost; {said}"
        if len(list(path.parent.iterdir())) != 1:
            said = f"something is left behind; {said}"
        if said:
            self.broken.append((kind, where, said))

    def go_on(self, kind: str, where: str, write: Callable[[Path], object], path: Path, before: bytes) -> None:
        """Append once more, where there is room again: what was cut off is gone."""
        if kind == APPENDED:
            write(path)
            if path.read_bytes() != before * 2:
                self.broken.append((kind, where, "torn"))
            path.write_bytes(before)

    def told(self, **more: object) -> dict[str, object]:
        return {
            "kinds of files": len(self.tried),
            "writes": sum(self.tried.values()),
            "of each kind": self.tried,
            **more,
            "files that were lost or errors of another kind": len(self.broken),
            "first": self.broken[:3],
            "broken": bool(self.broken),
        }


def disk(offsets: int, kinds: list[str]) -> dict[str, object]:
    """Cut the writes of each kind of file at bytes: an OSError of one line, and what was there must still be there."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    outcomes = Outcomes()
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        ends = ends_of_writes(Path(name))
    for kind, write in writers().items():
        if kinds and kind not in kinds:
            continue
        with tempfile.TemporaryDirectory(dir=MEMORY) as name:
            path = Path(name) / kind
            write(path)
            before = path.read_bytes()
            for place in cut_places(len(before), offsets, ends.get(kind, [])):
                resource.setrlimit(resource.RLIMIT_FSIZE, (place + (kind == APPENDED) * len(before), hard))
                outcomes.attempt(kind, f"byte {place}", write, path, before)
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
                outcomes.go_on(kind, f"byte {place}", write, path, before)
        print(f"{kind}: {outcomes.tried[kind]} writes, {len(outcomes.broken)} broken", file=sys.stderr, flush=True)
    return outcomes.told(**{"ends of writes": {kind: len(set(places)) for kind, places in ends.items()}})


def mount(folder: Path, options: str, flags: int = 0) -> None:
    """Mount a disk in memory, which ends with this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fspath(folder).encode(), b"tmpfs", flags, options.encode()):
        raise OSError(ctypes.get_errno(), f"no disk of its own: {os.strerror(ctypes.get_errno())}")


def full(offsets: int, kinds: list[str]) -> dict[str, object]:
    """Let a real disk run full within each kind of file, run out of inodes, and be read-only."""
    read_only, remount, whole = 1, 32, "size=64m,nr_inodes=64"
    libc = ctypes.CDLL(None, use_errno=True)
    # Mounts of this process alone, from now on.
    if libc.unshare(0x20000) or libc.mount(b"none", b"/", None, 0x44000, None):
        raise OSError(ctypes.get_errno(), "a disk of its own needs root, or unshare -rm")
    outcomes = Outcomes()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, write in writers(large=True).items():
            if kinds and kind not in kinds:
                continue
            path = folder / kind
            write(path)  # once where nothing can go wrong, which also imports what it needs
            path.unlink()
            mount(folder, whole)
            write(path)
            before, there = path.read_bytes(), os.statvfs(folder)
            used, pages = there.f_blocks - there.f_bfree, -(-len(before) // mmap.PAGESIZE)
            for room in sorted({i * pages // offsets for i in range(offsets)}):
                mount(folder, f"size={(used + room) * mmap.PAGESIZE},nr_inodes=64", remount)
                outcomes.attempt(kind, f"page {room} of {pages}", write, path, before)
                mount(folder, whole, remount)
                outcomes.go_on(kind, f"page {room} of {pages}", write, path, before)
            if kind != APPENDED:  # which makes no file
                mount(folder, f"size=64m,nr_inodes={there.f_files - there.f_ffree}", remount)
                outcomes.attempt(kind, "no inodes", write, path, before)
            mount(folder, whole, remount | read_only)
            outcomes.attempt(kind, "read-only", write, path, before)
            libc.umount2(os.fspath(folder).encode(), 2)
            print(f"{kind}: {outcomes.tried[kind]} writes, {len(outcomes.broken)} broken", file=sys.stderr, flush=True)
    return outcomes.told()


def racer(folder: Path, seed: int, begin: float) -> int:
    """Train a run into a folder, from a moment on; return 0, or 7 if another process has the folder."""
    train = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(40, 40))
    method = runs.Method(loss="bpr", embedding_dim=4, epochs=3, seed=seed)
    time.sleep(max(0.0, begin - time.monotonic()))
    try:
        runs.train(train, folder, method, overwrite=True, figures=False, progress=False)
    except ValueError as error:
        if "in use by process" in str(error):
            return 7
        raise
    return 0


def race(seconds: float) -> dict[str, object]:
    """Let two to four processes train other runs in one folder, some of which are killed: what is left is one run."""
    rng, end = random.Random(0), time.monotonic() + seconds
    counts = dict.fromkeys(("rounds", "processes", "refused", "killed", "mixed"), 0)
    first: list[object] = []
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        folder = Path(name) / "run"
        expected = {}
        for seed in range(4):
            alone = Path(name) / f"alone{seed}"
            if ended(forked(lambda alone=alone, seed=seed: racer(alone, seed, 0.0))):
                raise RuntimeError("a run does not train")
            expected[seed] = runs.Run.open(alone).metrics
        while time.monotonic() < end:
            begin, count = time.monotonic() + 0.05, rng.randint(2, 4)
            late = [begin + rng.random() * 0.1 for _ in range(count)]
            children = [forked(lambda seed=seed, at=at: racer(folder, seed, at)) for seed, at in enumerate(late)]
            if rng.random() < 0.3:  # a lock dies with its owner
                time.sleep(0.05 + rng.random() * 0.3)
                os.kill(rng.choice(children), signal.SIGKILL)
            codes = [ended(child) for child in children]
            wrong: list[object] = [code for code in codes if code not in (0, 7, -signal.SIGKILL)]
            if 0 not in codes and ended(forked(lambda: racer(folder, 0, 0.0))):
                wrong.append("the next one is refused")
            run = runs.Run.open(folder)
            if run.metrics != expected[run.methods["bpr"].seed]:
                wrong.append("another run's figures")
            for what, by in {
                "rounds": 1,
                "processes": count,
                "refused": codes.count(7),
                "killed": codes.count(-signal.SIGKILL),
                "mixed": bool(wrong),
            }.items():
                counts[what] += by
            if wrong:
                first.append((codes, wrong))
            print(json.dumps(counts), file=sys.stderr, flush=True)
    return {**counts, "first": first[:3], "broken": bool(first)}


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
    parser.add_argument("attack", choices=("kill", "disk", "full", "race", "memory", "write"))
    parser.add_argument("--times", type=int, default=500)
    parser.add_argument("--offsets", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--kinds", nargs="*", default=[], help="disk, full: only these kinds of files")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.attack == "write":
        write_each(options.folder)
        return 0
    outcome = {
        "kill": lambda: kill(options.times),
        "disk": lambda: disk(options.offsets, options.kinds),
        "full": lambda: full(options.offsets, options.kinds),
        "race": lambda: race(options.seconds),
        "memory": lambda: memory(options.minutes),
    }[options.attack]()
    print(json.dumps({"attack": options.attack, **outcome}))
    return 1 if outcome["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
