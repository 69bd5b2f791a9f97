"""Makes small mistakes in the sources, one at a time, and looks whether the tests that should notice do.

    python tools/mutate.py [--only TEXT] [--python] [--whole] [--output tools/mutations.jsonl]

The mistakes are listed in tools/mutations.toml: a file, a text that occurs in it once, what it is replaced by, and the
tests that should fail then. Each is made in a copy of the repository, so the sources stay as they are. A mistake in C++
is compiled. The test that fails runs once more without the mistake, where it must pass. The outcome is written as a
line of JSON, with the test that noticed. A mistake is not tried again until its file, its tests or the mistake itself
change. ``--whole`` runs the whole suite on those that the named tests do not notice.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tools" / "mutations.toml"
RESULTS = ROOT / "tools" / "mutations.jsonl"
PATIENCE = 1800  # seconds for the tests of one mistake


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One mistake: ``old`` becomes ``new`` in ``file``, and ``tests`` should fail.

    ``survives`` says why no test can notice it; without such a reason every mistake must be noticed.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    survives: str = ""

    @property
    def compiled(self) -> bool:
        """Tell whether the mistake is in a source that has to be compiled."""
        return not self.file.endswith(".py")

    def mutated(self, text: str) -> str:
        """Return the file's text with the mistake in it.

        Raises:
            ValueError: the text to replace does not occur exactly once.
        """
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.old!r} occurs {text.count(self.old)} times in {self.file}")
        return text.replace(self.old, self.new)

    def digest(self, root: Path = ROOT) -> str:
        """Return a short name of everything that the outcome follows from."""
        change = (self.name, self.file, self.old, self.new, self.tests)
        parts = [str(change), (root / self.file).read_text()]
        parts += [(root / test.partition("::")[0]).read_text() for test in self.tests]
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


def read(path: Path = LIST) -> list[Mutation]:
    """Read the list of mistakes."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["mutation"]
    return [Mutation(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def finished(output: Path) -> dict[str, dict[str, Any]]:
    """Return what is known already: {name: outcome}."""
    if not output.is_file():
        return {}
    return {record["name"]: record for record in map(json.loads, output.read_text().splitlines())}


def write(output: Path, known: dict[str, dict[str, Any]]) -> None:
    """Write what is known, in the order of the list; mistakes that are no longer listed are left out."""
    lines = [json.dumps(known[mutation.name]) + "\n" for mutation in read() if mutation.name in known]
    part = output.with_suffix(".part")
    part.write_text("".join(lines), encoding="utf-8")
    part.replace(output)


def copy_repository(target: Path) -> None:
    """Copy what git tracks, and the compiled libraries, to a folder of its own."""
    if target.exists():
        shutil.rmtree(target)
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    for name in filter(None, names.decode().split("\0")):
        if not name.startswith("benchmarks/paper/"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    for library in (ROOT / "zerosum_ext").glob("*.so"):
        shutil.copy2(library, target / "zerosum_ext" / library.name)


def keep_one_isa(target: Path) -> None:
    """Make the copy compile kernels for this processor's instruction set alone, which takes a third of the time."""
    code = "import torch, zerosum_ext; print(torch.ops.zerosum_ext.cpu_isa())"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    isa = subprocess.run([sys.executable, "-c", code], env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    file = target / "csrc" / "cpu" / "simd.h"
    text = file.read_text()
    for other in ("avx512", "avx2", "baseline"):
        text = text.replace(f"return run_{other}<Kernel>", f"return run_{isa.strip()}<Kernel>")
    file.write_text(text)


def has_kernels(target: Path) -> bool:
    """Tell whether the copy loads its compiled library: with an old one it runs on plain PyTorch."""
    code = "from zerosum_ext import _library; raise SystemExit(not _library.CPU.loaded)"
    env = {**os.environ, "PYTHONPATH": str(target)}
    return (
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=target, env=env, check=False).returncode == 0
    )


def fingerprint_of_sources() -> str:
    """Return a short name of all that is compiled."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted((ROOT / "csrc").rglob("*.*")):
        digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()


def build(target: Path) -> str:
    """Compile the copy; return the last line of an error, or an empty string."""
    # Without --force a change in a header alone compiles nothing.
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
    # What is compiled is thrown away: half the time for code that computes the same.
    env = {**os.environ, "PYTHONPATH": str(target), "ZEROSUM_EXT_CXXFLAGS": "-O1"}
    done = subprocess.run(
        command, cwd=target, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stdout.strip().splitlines()[-1]


def run_tests(target: Path, tests: list[str]) -> tuple[str, str]:
    """Run tests in the copy until one fails.

    Returns:
        ``("passed", "")``, ``("failed", the test)`` or ``("timed out", "")``. The test is a file if that file cannot be
        imported.
    """
    cache = target / "build" / "pytest_cache"
    shutil.rmtree(cache, ignore_errors=True)
    env = {**os.environ, "PYTHONPATH": str(target), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-o", f"cache_dir={cache}", *tests]
    try:
        done = subprocess.run(
            command,
            cwd=target,
            env=env,
            timeout=PATIENCE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "timed out", ""
    if done.returncode == 0:
        return "passed", ""
    failed = cache / "v" / "cache" / "lastfailed"
    names = list(json.loads(failed.read_text())) if failed.is_file() else []
    if done.returncode not in (1, 2) or not names:
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout.strip().splitlines()[-1:]}")
    return "failed", str(names[-1])


def holds(target: Path, test: str) -> bool:
    """Tell whether a test passes in the copy; for a file, whether it can be imported."""
    return run_tests(target, [test] if "::" in test else ["--collect-only", test])[0] == "passed"


def try_out(mutation: Mutation, target: Path, whole: bool, killer: str = "") -> dict[str, Any]:
    """Make a mistake in the copy, run its tests, take it back, and run the test that failed once more.

    Args:
        mutation: the mistake.
        target: the copy of the repository.
        whole: run the whole suite if the named tests pass.
        killer: the test that noticed the mistake the last time; it runs first.
    """
    file, start = target / mutation.file, time.monotonic()
    digest = mutation.digest(target)
    original = file.read_text()
    file.write_text(mutation.mutated(original))
    result, test = "", ""
    try:
        if mutation.compiled and build(target):
            result = "does not compile"
        else:
            for tests in ([killer] if killer else None, list(mutation.tests), [] if whole else None):
                if tests is not None:
                    result, test = run_tests(target, tests)
                    if result != "passed":
                        break
    finally:
        file.write_text(original)
    # The next mistake is made in a sound copy, and a test that fails there as well has noticed nothing.
    if mutation.compiled and (error := build(target)):
        raise RuntimeError(f"the sources without a mistake do not compile: {error}")
    if result == "failed" and not holds(target, test):
        result = "fails without it"
    return {
        "name": mutation.name,
        "file": mutation.file,
        "outcome": {"passed": "survived", "failed": "noticed"}.get(result, result),
        "by": test,
        "whole": whole,
        "seconds": round(time.monotonic() - start, 1),
        "digest": digest,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mistakes whose name contains this")
    parser.add_argument("--python", action="store_true", help="leave out mistakes that have to be compiled")
    parser.add_argument("--whole", action="store_true", help="run the whole suite on those that survive")
    parser.add_argument("--copy", type=Path, default=ROOT / "build" / "mutate", help="where the copy goes")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    known = finished(options.output)
    chosen = [m for m in read() if options.only in m.name and not (options.python and m.compiled)]
    open_ones = []
    # First those of which nothing good is known; what takes long comes last.
    noticed = {name for name, record in known.items() if record["outcome"] == "noticed"}
    for mutation in sorted(chosen, key=lambda m: (m.name in noticed, m.compiled)):
        record = known.get(mutation.name)
        undecided = record is not None and record["outcome"] == "survived" and options.whole and not record["whole"]
        if record is None or record["digest"] != mutation.digest() or undecided:
            open_ones.append(mutation)
    if open_ones:
        copy_repository(options.copy)
    if any(mutation.compiled for mutation in open_ones):
        keep_one_isa(options.copy)
        if error := build(options.copy):
            raise RuntimeError(f"the sources without a mistake do not compile: {error}")
    if open_ones and not has_kernels(options.copy):
        raise RuntimeError("the copy runs on plain PyTorch, where mistakes go unnoticed: rebuild the library")
    for mutation in open_ones:
        record = try_out(mutation, options.copy, options.whole, known.get(mutation.name, {}).get("by", ""))
        known = {**finished(options.output), mutation.name: record}
        write(options.output, known)
        print(f"{record['outcome']:18} {record['seconds']:7.1f} s  {mutation.name}  {record['by']}", flush=True)
    return summary(chosen, known)


def summary(chosen: list[Mutation], known: dict[str, dict[str, Any]]) -> int:
    """Print what came of the mistakes; return 1 if one was not noticed that no reason excuses."""
    status, counts = 0, dict.fromkeys(("noticed", "excused"), 0)
    for mutation in chosen:
        outcome = known[mutation.name]["outcome"]
        excused = outcome == "survived" and mutation.survives
        kind = "excused" if excused else outcome
        counts[kind] = counts.get(kind, 0) + 1
        if kind != "noticed":
            print(f"  {outcome}: {mutation.name}" + (f" ({mutation.survives})" if excused else ""))
        status |= kind not in ("noticed", "excused")
    print(f"{len(chosen)} mistakes: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    return status


if __name__ == "__main__":
    sys.exit(main())
