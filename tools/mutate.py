"""Makes small mistakes in the sources, one at a time, and looks whether the tests that should notice do.

    python tools/mutate.py [--only TEXT] [--python] [--whole] [--output build/mutations.jsonl]

The mistakes are listed in tools/mutations.toml: a file, a text that occurs in it once, what it is replaced by, and the
tests that should fail then. Each is made in a copy of the repository, so the sources stay as they are. A mistake in C++
is compiled. What a mistake came to is written as a line of JSON. It is not tried again until its file, its tests or the
mistake itself change. ``--whole`` runs the whole suite on those that the named tests do not notice.
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
# A test that does not end is a test that noticed; this is how long it may take.
PATIENCE = 900


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One mistake: ``old`` becomes ``new`` in ``file``, and ``tests`` should fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

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

    def digest(self) -> str:
        """Return a short name of everything that the outcome follows from."""
        parts = [str(dataclasses.astuple(self)), (ROOT / self.file).read_text()]
        parts += [(ROOT / test.partition("::")[0]).read_text() for test in self.tests]
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
    """Return what is known already: {digest: outcome}."""
    if not output.is_file():
        return {}
    lines = output.read_text().splitlines()
    return {record["digest"]: record for record in map(json.loads, lines)}


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


def build(target: Path) -> str:
    """Compile the copy; return the last line of an error, or an empty string."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=target, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout.strip().splitlines()[-1]


def fails(target: Path, tests: list[str]) -> bool:
    """Tell whether one of the tests fails in the copy."""
    env = {**os.environ, "PYTHONPATH": str(target), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *tests]
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
        return True
    if done.returncode in (0, 1):
        return done.returncode == 1
    if "error" in done.stdout.lower() and done.returncode == 2:
        return True  # the package cannot be imported any more
    raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout.strip().splitlines()[-1:]}")


def try_out(mutation: Mutation, target: Path, whole: bool) -> dict[str, Any]:
    """Make a mistake in the copy, run its tests, and take it back."""
    file, start = target / mutation.file, time.monotonic()
    original = file.read_text()
    file.write_text(mutation.mutated(original))
    try:
        error = build(target) if mutation.compiled else ""
        if error:
            outcome = "does not compile"
        elif fails(target, list(mutation.tests)):
            outcome = "noticed"
        elif whole and fails(target, []):
            outcome = "noticed by others"
        else:
            outcome = "survived"
    finally:
        file.write_text(original)
    return {
        "name": mutation.name,
        "file": mutation.file,
        "outcome": outcome,
        "whole": whole,
        "seconds": round(time.monotonic() - start, 1),
        "digest": mutation.digest(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mistakes whose name contains this")
    parser.add_argument("--python", action="store_true", help="leave out mistakes that have to be compiled")
    parser.add_argument("--whole", action="store_true", help="run the whole suite on those that survive")
    parser.add_argument("--copy", type=Path, default=ROOT / "build" / "mutate", help="where the copy goes")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "mutations.jsonl")
    options = parser.parse_args()
    known = finished(options.output)
    chosen = [m for m in read() if options.only in m.name and not (options.python and m.compiled)]
    open_ones = []
    for mutation in chosen:
        record = known.get(mutation.digest())
        if record is None or (options.whole and record["outcome"] == "survived" and not record["whole"]):
            open_ones.append(mutation)
    if open_ones:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        copy_repository(options.copy)
    for mutation in open_ones:
        record = try_out(mutation, options.copy, options.whole)
        with open(options.output, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{record['outcome']:18} {record['seconds']:7.1f} s  {mutation.name}", flush=True)
    known = finished(options.output)
    outcomes = [known[m.digest()] for m in chosen]
    survivors = [record["name"] for record in outcomes if record["outcome"] == "survived"]
    print(f"{len(outcomes)} mistakes, {len(survivors)} survived" + "".join(f"\n  {name}" for name in survivors))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
