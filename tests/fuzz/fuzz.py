"""Fuzzes all compiled ops in children and prints, for each op, how many calls were made, raised and ended the process.

A child that dies or hangs is a finding; another one goes on behind the call that did it. Each finding can be run again
by its op and number: ``python tests/fuzz/child.py MODE OP NUMBER NUMBER+1 /tmp/progress``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
HANG = 60.0  # seconds of a processor that a child works without a step
STUCK = 600  # looks, a second apart, without a step and without work


@dataclasses.dataclass
class Outcome:
    """What came of the calls of one op."""

    op: str
    mode: str
    calls: int = 0
    raised: int = 0
    findings: list[dict[str, object]] = dataclasses.field(default_factory=list)


def _read(progress: Path) -> tuple[int, int]:
    try:
        number, raised = progress.read_text().split()
    except (OSError, ValueError):
        return -2, 0
    return int(number), int(raised)


def _worked(child: subprocess.Popen[bytes]) -> float:
    """Return how many seconds a child has had of a processor: on a busy machine others have the rest."""
    try:
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _watch(child: subprocess.Popen[bytes], progress: Path) -> str:
    """Wait for a child; return how it ended if it did not end well."""
    seen, looks, since = -2, 0, 0.0
    while True:
        try:
            code = child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            number, looks = _read(progress)[0], looks + 1
            if number != seen:
                seen, looks, since = number, 0, _worked(child)
            elif looks > STUCK or _worked(child) - since > HANG:
                child.kill()
                child.wait()
                return "hangs"
            continue
        return "" if code == 0 else f"signal {-code}" if code < 0 else f"exit status {code}"


def fuzz(op: str, mode: str, count: int, env: dict[str, str] | None = None, most: int = 1000) -> Outcome:
    """Run the first ``count`` calls of an op; ``most``: findings after which it is given up."""
    outcome = Outcome(op, mode)
    first = 0
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder) / "progress"
        while first < count and len(outcome.findings) < most:
            progress.unlink(missing_ok=True)
            command = [sys.executable, str(HERE / "child.py"), mode, op, str(first), str(count), str(progress)]
            with open(Path(folder) / "stderr", "wb") as stderr:
                child = subprocess.Popen(command, cwd=folder, env=env, stderr=stderr)
                end = _watch(child, progress)
            number, raised = _read(progress)
            outcome.raised += raised
            if not end:
                break
            last = (Path(folder) / "stderr").read_text(errors="replace").strip().splitlines()[-1:]
            if number < first:  # it did not come to the first call
                raise RuntimeError(f"the child for {op} does not start: {end} {last}")
            outcome.findings.append({"number": number, "end": end, "said": last[0][:200] if last else ""})
            first = number + 1
    outcome.calls = count
    return outcome


def run(mode: str, count: int, ops: list[str], jobs: int, env: dict[str, str] | None = None) -> list[Outcome]:
    """Fuzz ops, ``jobs`` at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda op: fuzz(op, mode, count, env), ops))


def listed(env: dict[str, str] | None = None) -> dict[str, int]:
    """Return the ops, and how many systematic calls each has."""
    code = (
        "import json, torch, zerosum_ext, calls; print(json.dumps({o: len(calls.systematic(o)) for o in calls.ops()}))"
    )
    path = os.pathsep.join((str(HERE), (env or os.environ).get("PYTHONPATH", "")))
    made = subprocess.run(
        [sys.executable, "-c", code],
        env={**(env or os.environ), "PYTHONPATH": path},
        cwd="/",
        stdout=subprocess.PIPE,
        check=True,
    )
    return dict(json.loads(made.stdout))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("systematic", "random"), default="random")
    parser.add_argument("--examples", type=int, default=10_000, help="random calls of each op")
    parser.add_argument("--op", nargs="*", help="only these")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--json", type=Path, help="write the outcomes here as well")
    options = parser.parse_args()
    counts = listed()
    ops = options.op or sorted(counts)
    outcomes = []
    with ThreadPoolExecutor(options.jobs) as pool, contextlib.suppress(KeyboardInterrupt):
        count = (lambda op: counts[op]) if options.mode == "systematic" else (lambda op: options.examples)
        for outcome in pool.map(lambda op: fuzz(op, options.mode, count(op)), ops):
            outcomes.append(outcome)
            print(
                f"{outcome.op:22} {outcome.calls:7} calls {outcome.raised:7} raised {len(outcome.findings):5} ended",
                flush=True,
            )
            for finding in outcome.findings[:5]:
                print(f"    {finding}", flush=True)
    total = sum(o.calls for o in outcomes), sum(o.raised for o in outcomes), sum(len(o.findings) for o in outcomes)
    print(f"{'all':22} {total[0]:7} calls {total[1]:7} raised {total[2]:5} ended")
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(o) for o in outcomes], indent=1))
    return 1 if total[2] else 0


if __name__ == "__main__":
    sys.exit(main())
