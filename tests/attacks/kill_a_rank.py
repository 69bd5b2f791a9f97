"""Kill a process of a run of several at random moments, go on each time, and compare with a run that nobody disturbed.

    python tests/attacks/kill_a_rank.py --kills 20 --processes 2

Each round starts the processes of a run, kills one of them with SIGKILL after a random time, waits until the others
have
ended, and looks at what they said: one line that names the rank. At last the run goes on to its end. Losses and tables
are those of the run without kills, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ranks

TESTS = Path(ranks.__file__).parent

CHILD = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import distributed_worker as worker
from zerosum_ext import distributed as zxd
torch.set_num_threads(1)
group = zxd.start_group(60)
data = worker.interactions()
shares = zxd.ShardedInteractions.from_interactions(data, group)
model = worker.model_of("sharded", shares, True)
place = sys.argv[2] + "/checkpoint"
given = worker.options_of("zerosum", "adagrad", {"draws": 4}, data)
print("ready", flush=True)
going_on = group.share(zxd.latest_checkpoint(place) is not None)
try:
    history = model.fit(shares, **given, epochs=int(sys.argv[3]), checkpoint=place, checkpoint_every=10,
                        resume=place if going_on else None)
except zxd.LostProcess as lost:
    if lost.speaks:
        print("LOST", lost, flush=True)
    import os
    os._exit(3)
tables = worker.whole(model)
if group.rank == 0:
    torch.save((list(history), tables), sys.argv[2] + "/end.pt")
group.barrier()
"""


def start(folder: Path, size: int, epochs: int) -> list[subprocess.Popen[str]]:
    return ranks.start(["-c", CHILD, os.fspath(TESTS), os.fspath(folder), str(epochs)], size)


def attack(kills: int, size: int, epochs: int, seed: int) -> list[str]:
    """Return what went wrong, line by line."""
    rng, wrong = random.Random(seed), []
    with tempfile.TemporaryDirectory() as name:
        calm, rough = Path(name, "calm"), Path(name, "rough")
        calm.mkdir()
        rough.mkdir()
        began = time.monotonic()
        ranks.finish(start(calm, size, epochs), 600)
        whole = time.monotonic() - began
        for number in range(kills):
            processes = start(rough, size, epochs)
            processes[0].stdout.readline()  # "ready"
            victim, after = rng.randrange(size), rng.random() * min(4.0, whole / 2)
            time.sleep(after)
            processes[victim].send_signal(signal.SIGKILL)
            began = time.monotonic()
            said = ranks.finish(processes, 90)
            lines = [line for text in said for line in text.splitlines() if line.startswith("LOST")]
            killed = processes[victim].returncode == -signal.SIGKILL
            named = len(lines) == 1 and re.search(
                rf"rank {victim}\b|rank 0, or the machine that holds the store", lines[0]
            )
            done = (rough / "end.pt").exists()
            outcome = "done already" if done else "named" if named else "NOT NAMED"
            took = time.monotonic() - began
            print(
                f"kill {number}: rank {victim} after {after:.2f} s; the others ended in {took:.1f} s; {outcome}",
                flush=True,
            )
            if killed and not done and not named:
                wrong.append(f"kill {number}: expected one line that names rank {victim}, got {said}")
            if done:
                (rough / "end.pt").unlink()
        ranks.finish(start(rough, size, epochs), 600)
        first, second = (torch.load(place / "end.pt", weights_only=False) for place in (calm, rough))
        if first[0] != second[0]:
            wrong.append(f"losses differ: {first[0]} and {second[0]}")
        wrong += [f"{key} differs" for key, table in first[1].items() if not torch.equal(table, second[1][key])]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    wrong = attack(given.kills, given.processes, given.epochs, given.seed)
    print("\n".join(wrong) or f"{given.kills} kills: the run ends in the same bits")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
