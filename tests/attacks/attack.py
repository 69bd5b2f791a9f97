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
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import zerosum_ext as zx
from zerosum_ext.experiments import runs

TRAIN = """
import sys, torch, zerosum_ext as zx
folder, engine, optimizer, loss, resume = sys.argv[1:6]
torch.set_num_threads(1)
train = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(60, 60))
model = zx.MatrixFactorization(60, 60, 8, seed=0)
make = lambda p: getattr(torch.optim, optimizer)(p, lr=0.05)
model.fit(train, loss, make, epochs=40, batch_size=64, engine=engine, progress=False, checkpoint=f"{folder}/c.pt",
          checkpoint_every=3, resume=f"{folder}/c.pt" if resume == "yes" else None,
          callbacks=[lambda event: print(event.epoch, flush=True)])
torch.save(model.state_dict(), f"{folder}/final.pt")
"""
CASES = [
    ("auto", "Adam", "zerosum"),
    ("autograd", "Adagrad", "bpr"),
    ("hogwild", "SGD", "bpr"),
    ("fused", "SGD", "pos2neg2"),
    ("autograd", "Adam", "pos2neg2"),
]


def start(folder: Path, case: tuple[str, str, str], resume: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", TRAIN, str(folder), *case, "yes" if resume else "no"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=folder)


def kill(times: int) -> dict[str, object]:
    """Kill trainings at random moments, resume each, and compare the end with a run that nobody touched."""
    rng, expected, different, killed = random.Random(0), {}, [], 0
    while killed < times:
        case = CASES[killed % len(CASES)]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if case not in expected:
                assert start(folder, case, False).wait() == 0
                expected[case] = torch.load(folder / "final.pt")
                (folder / "final.pt").unlink()
                (folder / "c.pt").unlink()
            resume = False
            while True:
                child = start(folder, case, resume)
                assert child.stdout is not None
                child.stdout.readline()
                time.sleep(rng.random() * 0.4)
                child.send_signal(signal.SIGKILL)
                ended = child.wait()
                killed += ended != 0
                if ended == 0 or rng.random() < 0.5:
                    break
                resume = (folder / "c.pt").is_file()
            if not (folder / "final.pt").is_file():
                assert start(folder, case, (folder / "c.pt").is_file()).wait() == 0
            final = torch.load(folder / "final.pt")
            if any(not torch.equal(final[name], expected[case][name]) for name in final):
                different.append(case)
    return {"killed": killed, "not bit-equal after the resume": len(different), "broken": bool(different)}


def disk(offsets: int) -> dict[str, object]:
    """End each kind of file at offsets, its first and last bytes among them: what was there must still be there."""
    train = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(60, 60))
    model = zx.MatrixFactorization(60, 60, 8, seed=0)

    def checkpoint(path: Path) -> None:
        zx.fit(model, train, "bpr", epochs=1, checkpoint=path, progress=False)

    kinds = {
        "model": lambda path: model.save(path),
        "checkpoint": checkpoint,
        "metrics": lambda path: runs.files.write_json(path, {str(i): i / 3 for i in range(500)}),
        "interactions": lambda path: runs.files.write_split(path, runs.SplitRule().apply(train)),
    }
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    tried, broken = 0, []
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for kind, write in kinds.items():
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "file"
            write(path)
            before = path.read_bytes()
            size = len(before)
            places = {0, 1, size - 1, size // 2, *(int(i * size / offsets) for i in range(offsets))}
            for place in sorted(p for p in places if p < size):
                tried += 1
                resource.setrlimit(resource.RLIMIT_FSIZE, (place, hard))
                try:
                    write(path)
                    said = "nothing"
                except OSError as error:
                    said = "" if "\n" not in str(error) and "file" in str(error) else str(error)
                except Exception as error:
                    said = repr(error)
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
                if said or path.read_bytes() != before or len(list(path.parent.iterdir())) != 1:
                    broken.append((kind, place, said))
    return {
        "writes that were cut off": tried,
        "files that were lost": len(broken),
        "first": broken[:1],
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
