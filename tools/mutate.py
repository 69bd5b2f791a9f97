"""Makes small mistakes in the sources, one at a time, and looks whether the tests that should notice do.

    python tools/mutate.py [--only TEXT] [--python] [--whole] [--output tools/mutations.jsonl]

The mistakes are listed in tools/mutations.toml: a file, a text that occurs in it once, what it is replaced by, and the
tests that should fail then. Each is made in a copy of the repository, so the sources stay as they are. For a mistake in
C++ the units that it names are compiled, and linked with the rest. The tests that fail run once more at the end,
without a mistake, where they must pass. The outcome is written as a line of JSON, with the test that noticed. A mistake
is not tried again until its file, its tests or the mistake itself change. ``--whole`` runs the whole suite on those
that the named tests do not notice.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
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

    ``units`` are what has to be compiled where the file is a header. ``survives`` says why no test can notice it;
    without such a reason every mistake must be noticed.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    units: tuple[str, ...] = ()
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
    lists = ("tests", "units")
    return [Mutation(**{k: tuple(v) if k in lists else v for k, v in entry.items()}) for entry in entries]


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


def run(command: list[str], target: Path) -> str:
    """Run a command in the copy; return the last lines of an error, or an empty string."""
    env = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run(
        command, cwd=target, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return "" if done.returncode == 0 else "\n".join(done.stdout.strip().splitlines()[-5:])


class Compiled:
    """The copy's library: with a mistake in some of its units, or without."""

    def __init__(self, target: Path) -> None:
        self.target = target
        if error := run([sys.executable, "setup.py", "build_ext", "--inplace"], target):
            raise RuntimeError(f"the sources without a mistake do not compile: {error}")
        (self.library,) = (target / "zerosum_ext").glob("_C.*so")
        (self.rules,) = (target / "build").glob("temp.*/build.ninja")
        self.sound = self.library.with_suffix(".sound")
        shutil.copy2(self.library, self.sound)
        keep_one_isa(target)

    def make(self, units: tuple[str, ...]) -> str:
        """Compile some units anew and link them with the others; return an error, or an empty string."""
        flags = dict(re.findall(r"^(cxx|cflags|post_cflags) = (.*)$", self.rules.read_text(), re.MULTILINE))
        objects = {file.relative_to(self.rules.parent).with_suffix(".cpp") for file in self.rules.parent.rglob("*.o")}
        rest = [str((self.rules.parent / o).with_suffix(".o")) for o in objects if str(o) not in units]
        made = []
        for number, unit in enumerate(units):
            made.append(str(self.target / "build" / f"mistake{number}.o"))
            # What is compiled is thrown away: a fraction of the time for code that computes the same.
            options = [*shlex.split(flags["cflags"]), unit, "-o", made[-1], *shlex.split(flags["post_cflags"]), "-O0"]
            if error := run([*shlex.split(flags["cxx"]), *options], self.target):
                return error
        torch = importlib.util.find_spec("torch")
        assert torch is not None
        assert torch.origin is not None
        link = ["-shared", "-Wl,--exclude-libs,ALL", "-shared-libgcc", "-o", str(self.library)]
        link += [f"-L{Path(torch.origin).parent / 'lib'}", "-lc10", "-ltorch", "-ltorch_cpu"]
        self.library.unlink()
        error = run([os.environ.get("CXX", "g++"), *made, *rest, *link], self.target)
        return error or ("" if has_kernels(self.target) else "the library with the mistake does not load")

    def restore(self) -> None:
        self.library.unlink(missing_ok=True)
        shutil.copy2(self.sound, self.library)


class Tests:
    """Runs tests in the copy."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.log = target / "build" / "tests.log"
        self.cache = target / "build" / "pytest_cache"
        self.log.parent.mkdir(exist_ok=True)
        # Sources without a mistake are compiled to bytecode once; with one, for that process alone.
        run([sys.executable, "-m", "compileall", "-q", "zerosum_ext"], target)
        env = {**os.environ, "PYTHONPATH": str(target), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, str(ROOT / "tools" / "test_server.py"), str(self.log)]
        self.server = subprocess.Popen(
            command, cwd=target, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self._line() != "ready":
            raise RuntimeError("the server of tests does not start")

    def _line(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline().strip()

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait()

    def run(self, tests: list[str], *options: str) -> tuple[str, list[str]]:
        """Run tests, until one fails unless options say otherwise.

        Returns:
            ``("passed", [])``, ``("failed", the tests)``, ``("died", [])`` or ``("timed out", [])``. A test is a file
            if that file cannot be imported.
        """
        shutil.rmtree(self.cache, ignore_errors=True)
        arguments = ["-q", *(options or ("-x",)), "--no-header", "-o", f"cache_dir={self.cache}", *tests]
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(arguments) + "\n")
        self.server.stdin.flush()
        child = int(self._line().partition(" ")[2])
        late = threading.Event()

        def kill() -> None:
            late.set()
            os.kill(child, signal.SIGKILL)

        guard = threading.Timer(PATIENCE, kill)
        guard.start()
        code = int(self._line())
        guard.cancel()
        if late.is_set():
            return "timed out", []
        if code == 0:
            return "passed", []
        if code < 0:
            return "died", []
        failed = self.cache / "v" / "cache" / "lastfailed"
        names = list(json.loads(failed.read_text())) if failed.is_file() else []
        if code not in (1, 2) or not names:
            raise RuntimeError(f"pytest ended with {code}: {self.log.read_text().strip().splitlines()[-1:]}")
        return "failed", names


def try_out(
    mutation: Mutation, tests: Tests, compiled: Compiled | None, whole: bool, killer: str = ""
) -> dict[str, Any]:
    """Make a mistake in the copy, run its tests, and take it back.

    Args:
        mutation: the mistake.
        tests: of the copy.
        compiled: the copy's library; None: the mistake is in Python.
        whole: run the whole suite if the named tests pass.
        killer: the test that noticed the mistake the last time; it runs first.
    """
    file, start = tests.target / mutation.file, time.monotonic()
    digest = mutation.digest(tests.target)
    original, times = file.read_text(), file.stat()
    file.write_text(mutation.mutated(original))
    result, failed = "", [""]
    try:
        if compiled is not None and (error := compiled.make(mutation.units or (mutation.file,))):
            print(error, file=sys.stderr)
            result = "does not compile"
        else:
            for chosen in ([killer] if killer else None, list(mutation.tests), [] if whole else None):
                if chosen is not None:
                    result, failed = tests.run(chosen)
                    if result != "passed":
                        break
    finally:
        # The next mistake is made in a sound copy. (With its old time, so that its bytecode counts.)
        file.write_text(original)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        if compiled is not None:
            compiled.restore()
    return {
        "name": mutation.name,
        "file": mutation.file,
        "outcome": {"passed": "survived", "failed": "noticed", "died": "noticed"}.get(result, result),
        "by": failed[-1] if failed else "the end of the process" if result == "died" else "",
        "whole": whole,
        "seconds": round(time.monotonic() - start, 1),
        "digest": digest,
    }


def check_killers(made: list[dict[str, Any]], tests: Tests) -> None:
    """Run the tests that noticed in the sound copy: what fails there as well has noticed nothing."""
    killers = sorted({record["by"] for record in made if "::" in record["by"]})
    failing = set(tests.run(killers, "--maxfail=1000")[1]) if killers else set()
    for record in made:
        if record["by"] in failing:
            record["outcome"] = "fails without it"


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
        known = try_all(open_ones, known, options)
    return summary(chosen, known)


def try_all(
    open_ones: list[Mutation], known: dict[str, dict[str, Any]], options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Try mistakes, write down what comes of each, and return what is known then."""
    copy_repository(options.copy)
    compiled = Compiled(options.copy) if any(mutation.compiled for mutation in open_ones) else None
    if not has_kernels(options.copy):
        raise RuntimeError("the copy runs on plain PyTorch, where mistakes go unnoticed: rebuild the library")
    tests, made = Tests(options.copy), []
    try:
        for mutation in open_ones:
            killer = known.get(mutation.name, {}).get("by", "")
            library = compiled if mutation.compiled else None
            made.append(try_out(mutation, tests, library, options.whole, killer if "::" in killer else ""))
            known = {**finished(options.output), mutation.name: made[-1]}
            write(options.output, known)
            said = made[-1]
            print(f"{said['outcome']:18} {said['seconds']:7.1f} s  {mutation.name}  {said['by']}", flush=True)
    finally:
        check_killers(made, tests)
        tests.close()
        known = {**finished(options.output), **{record["name"]: record for record in made}}
        write(options.output, known)
    return known


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
