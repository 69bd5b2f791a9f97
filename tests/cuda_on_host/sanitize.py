"""Runs the CUDA kernels on the host under AddressSanitizer + UBSan and under ThreadSanitizer.

    python tests/cuda_on_host/sanitize.py [--short] [--calls N] [bugs] [asan] [tsan]

bugs   the planted bugs of bugs.cpp in all three builds: each must be caught where the table says so, and the
       control must pass everywhere. What catches nothing proves nothing.
asan   the tests of the kernels (tests/test_cuda_*.py), the kernels compiled under ASan and UBSan.
tsan   the same tests record their smaller calls, which a program compiled under TSan then replays: the first N (3) of
       each launcher with the same dtypes. clang-14 with libclang-rt-14-dev is used where it is installed; gcc's TSan
       needs far longer for each thread. With clang --calls 60 takes half an hour.

--short leaves out what takes long: the tests marked slow, of the others all but one in eight, and for tsan all but the
first call of each kind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from children import meeting_this_package

import cuda_on_host

# Which builds must catch which bug, whatever the schedule; other builds may.
BUGS: dict[str, tuple[str, ...]] = {
    "tail_guard": ("asan",),
    "short_shared": ("asan",),
    "no_barrier": ("plain", "asan", "tsan"),
    "no_barrier_neighbour": ("tsan",),
    "plain_scatter": ("tsan",),
    "misaligned": ("asan",),
    "divergent_barrier": ("plain", "asan", "tsan"),
    "divergent_shuffle": ("plain", "asan", "tsan"),
    "bad_mask": ("plain", "asan", "tsan"),
    "early_exit": ("plain", "asan", "tsan"),
    "unwritten_shared": ("plain", "asan", "tsan"),
    "reused_scratch": ("tsan",),
    "warp_in_step": ("plain", "asan", "tsan"),
    "index_overflow": ("asan",),
    "small_dynamic": ("asan",),
    "large_dynamic": ("plain", "asan", "tsan"),
    "last_block_unfenced": ("tsan",),
    "cluster_unsynced": ("plain", "asan", "tsan"),
    "cluster_early_exit": ("plain", "asan", "tsan"),
    "cluster_block_barrier": ("tsan",),
    "lost_tile": ("plain", "asan", "tsan"),
    "early_flag": ("tsan",),
    "relaxed_flag": ("tsan",),
    "lost_flag": ("plain", "asan", "tsan"),
    "control": (),
}

SHORT_SHARE = "8"  # of the tests, one in so many

SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:exitcode=66",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66",
}


def run_bug(program: Path, bug: str, **env: str) -> tuple[int, str]:
    """Runs one planted bug; returns the exit status and what the program said."""
    done = subprocess.run(
        [program, bug],
        env={**os.environ, **SANITIZER_OPTIONS, **env},
        capture_output=True,
        text=True,
        errors="replace",
    )
    return done.returncode, done.stdout + done.stderr


@contextlib.contextmanager
def tsan_compiler() -> Iterator[str]:
    """Chooses clang for TSan where it can link a TSan program, else leaves the compiler as it is."""
    before = os.environ.get("CXX")
    for candidate in ("clang++-14", "clang++"):
        path = shutil.which(candidate)
        if path is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            source.write_text("#include <vector>\nint main() { return int(std::vector<int>(1).size()) - 1; }\n")
            program = Path(folder, "probe")
            command = [path, "-fsanitize=thread", str(source), "-o", str(program)]
            if (
                subprocess.run(command, capture_output=True).returncode == 0
                and subprocess.run([program]).returncode == 0
            ):
                os.environ["CXX"] = path
                break
    try:
        yield cuda_on_host.compiler() or "g++"
    finally:
        if before is None:
            os.environ.pop("CXX", None)
        else:
            os.environ["CXX"] = before


def check_bugs() -> list[str]:
    failures = []
    for kind in ("plain", "asan", "tsan"):
        with tsan_compiler() if kind == "tsan" else contextlib.nullcontext():
            program = cuda_on_host.build_program("bugs.cpp", kind)
        for bug, catchers in BUGS.items():
            status, text = run_bug(program, bug)
            said = re.search(r"cuemu: .*|wrong result|ERROR: .*|.*runtime error: .*|WARNING: .*", text)
            print(f"{kind:6}{bug:22}{status:3}  {said[0][:120] if said else ''}")
            if kind in catchers and status == 0:
                failures.append(f"{kind} did not catch the planted bug {bug}")
            if bug == "control" and status != 0:
                failures.append(f"{kind} complains about the control: {text}")
            if bug not in text and status == 2:
                failures.append(f"bugs.cpp has no bug {bug}")
    return failures


def kernel_tests() -> list[str]:
    return sorted(str(p) for p in (cuda_on_host.ROOT / "tests").glob("test_cuda_*.py"))


def preload() -> str:
    """The sanitizers' libraries, which Python must load before anything else."""
    found = []
    for name in ("libasan.so", "libubsan.so"):
        command = [cuda_on_host.compiler() or "g++", f"-print-file-name={name}"]
        found.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    return " ".join(found)


def run_kernel_tests(env: dict[str, str], *options: str) -> int:
    """Runs them in a process of its own, on the package that this process would import; returns the exit status."""
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(cuda_on_host.ROOT / "pyproject.toml")]
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            [*command, "-p", "no:cacheprovider", *options, *kernel_tests()], env=meeting_this_package(env), cwd=folder
        ).returncode


def check_asan(short: bool) -> list[str]:
    env = {**os.environ, **SANITIZER_OPTIONS, "CUDA_ON_HOST_SANITIZE": "asan", "LD_PRELOAD": preload()}
    options = ["-s"]  # a sanitizer writes its report to the real stderr and ends the process
    if short:
        options += ["-m", "not slow"]
        env["TESTS_SHARE"] = SHORT_SHARE
    status = run_kernel_tests(env, *options)
    return [f"the kernels' tests under ASan + UBSan ended with {status}"] if status else []


def check_tsan(short: bool, calls_of_a_kind: int) -> list[str]:
    failures = []
    with tempfile.TemporaryDirectory(prefix="cuda_on_host_") as folder:
        env = {
            **os.environ,
            "CUDA_ON_HOST_RECORD": folder,
            "CUDA_ON_HOST_RECORD_PER_KIND": "1" if short else str(calls_of_a_kind),
        }
        # Kernels with planted bugs are not recorded, and take long to compile.
        options = ["-k", "not planted", *(["-m", "not slow"] if short else [])]
        status = run_kernel_tests(env, *options)
        if status:
            failures.append(f"the kernels' tests ended with {status} while recording")
        with tsan_compiler() as cxx:
            print(f"replaying under TSan, compiled with {cxx}")
            for topic in cuda_on_host.topics():
                calls = Path(folder, f"{topic}.calls")
                if not calls.exists():
                    failures.append(f"no test recorded a call of {topic}")
                    continue
                program = cuda_on_host.build_program("replay.cpp", "tsan", topic)
                done = subprocess.run(
                    [program, calls],
                    env={**os.environ, **SANITIZER_OPTIONS},
                    capture_output=True,
                    text=True,
                    errors="replace",
                )
                print(f"{topic}: {done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ''}")
                if done.returncode:
                    failures.append(f"TSan, {topic}, status {done.returncode}:\n{done.stdout[-300:]}{done.stderr}")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="bugs, asan, tsan (default: all)")
    parser.add_argument("--short", action="store_true", help="leave out what takes long")
    parser.add_argument("--calls", type=int, default=3, metavar="N", help="of a kind that TSan replays (default 3)")
    args = parser.parse_args()
    what = args.what or ["bugs", "asan", "tsan"]
    if unknown := set(what) - {"bugs", "asan", "tsan"}:
        parser.error(f"unknown: {sorted(unknown)}; expected bugs, asan or tsan")
    if reason := cuda_on_host.missing():
        print(f"skipped: {reason}")
        return 0
    checks = {
        "bugs": check_bugs,
        "asan": lambda: check_asan(args.short),
        "tsan": lambda: check_tsan(args.short, args.calls),
    }
    failures = []
    for name in what:
        start = time.monotonic()
        found = checks[name]()
        print(f"{name}: {'FAILED' if found else 'ok'} in {time.monotonic() - start:.0f} s", flush=True)
        failures += found
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
