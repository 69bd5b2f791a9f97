"""Runs tests of the CPU ops with a library that was compiled under sanitizers.

    python tests/attacks/sanitize_ops.py [asan] [tsan] [--share 4] [--folder build/sanitize]

asan   AddressSanitizer and UndefinedBehaviorSanitizer
tsan   ThreadSanitizer; blocks of work then run in four std::threads, whatever torch is told

Each builds a copy of the repository in a folder of its own and runs the tests of TESTS in it, one in ``--share`` of
them; 0 runs none. Under ``tsan`` the calls of threads.py come first: of each op one that several threads share. A
report of a sanitizer is a finding. So is a test that fails. ``control`` calls are made first, whose mistake each
sanitizer has to report: what catches nothing proves nothing. Races of Hogwild are meant, and left out by name: those
of the functions with "hogwild" in their name, and none else.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import mutate  # noqa: E402

FLAGS = {
    "asan": "-fsanitize=address,undefined -fno-omit-frame-pointer -O1 -g1",
    "tsan": "-fsanitize=thread -fno-omit-frame-pointer -O0 -g1",
}
LIBRARIES = {"asan": ("libasan.so", "libubsan.so"), "tsan": ("libtsan.so",)}
TESTS = [
    "tests/test_op_checks.py",
    "tests/test_ops.py",
    "tests/test_csr_build.py",
    "tests/test_graph.py",
    "tests/test_mf_loss.py",
    "tests/test_sampling.py",
    "tests/test_loader.py",
    "tests/test_ranking.py",
    "tests/test_fused.py",
    "tests/test_regularizers.py",
    "tests/test_training_meaning.py",
    "tests/test_loss_and_grad.py",
]
# What a compiler or a child process that a sanitizer is preloaded into does is not the ops' business.
LEFT_OUT = "not compile and not ctrl_c and not processes and not export and not opcheck"
RACES = "race:zx::cpu::hogwild\nrace:zx::cpu::shared_hogwild\n"
CONTROL = {
    # The tensor claims more memory than there is.
    "asan": """
import ctypes, numpy, torch, zerosum_ext
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
place = ctypes.cast(libc.malloc(4 * 64), ctypes.POINTER(ctypes.c_float))
whole = torch.from_numpy(numpy.ctypeslib.as_array(place, (4096,)))
torch.ops.zerosum_ext.pair_loss(whole, whole, None, None, None, 0, 1.0, 1.0, 1.0, 1, False)
""",
    # Hogwild with the suppression taken away.
    "tsan": """
import torch, zerosum_ext as zx
data = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(60, 60))
model = zx.MatrixFactorization(60, 60, 8, seed=0)
sgd = lambda p: torch.optim.SGD(p, lr=0.1)
model.fit(data, "bpr", sgd, epochs=30, batch_size=64, draws=8, engine="hogwild", progress=False)
""",
}


def environment(kind: str, folder: Path, suppress: bool = True) -> dict[str, str]:
    """Return the environment of a process whose ops are watched; reports go to files in ``folder``."""
    names = [
        subprocess.run(["gcc", f"-print-file-name={name}"], check=True, stdout=subprocess.PIPE, text=True)
        for name in LIBRARIES[kind]
    ]
    reports = folder / "reports" / "found"
    options = f"log_path={reports}:exitcode=66"
    races = folder / "races.txt"
    races.write_text(RACES if suppress else "")
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(name.stdout.strip() for name in names),
        "ASAN_OPTIONS": f"{options}:detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": f"{options}:print_stacktrace=1",
        "TSAN_OPTIONS": f"{options}:suppressions={races}:report_signal_unsafe=0",
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }


def build(kind: str, folder: Path) -> None:
    """Compile a copy of the repository under a sanitizer, unless it is there already."""
    stamp, done = folder / "built", mutate.fingerprint_of_sources()
    if stamp.is_file() and stamp.read_text() == done:
        return
    mutate.copy_repository(folder)
    mutate.keep_one_isa(folder)
    flags = FLAGS[kind]
    if kind == "tsan":
        flags += f" -include {folder / 'tests' / 'attacks' / 'tsan_threads.h'}"
        for file in (folder / "csrc" / "cpu").iterdir():
            text = file.read_text()
            for name in ("parallel_for", "get_num_threads"):
                text = text.replace(f"torch::stable::{name}", f"zx_tsan::{name}")
            file.write_text(text)
    env = {**os.environ, "ZEROSUM_EXT_CXXFLAGS": flags, "LDFLAGS": FLAGS[kind], "ZEROSUM_EXT_DEBUG": "1"}
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
    subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
    stamp.write_text(done)


def reports(folder: Path) -> dict[str, int]:
    """Return how often each place of our sources was reported, and empty the folder of reports.

    Reports without a place of ours are printed.
    """
    found: dict[str, int] = {}
    place = folder / "reports"
    place.mkdir(exist_ok=True)
    for file in place.iterdir():
        for text in re.split(r"={18,}|(?=^[^\n]*runtime error:)", file.read_text(errors="replace"), flags=re.M):
            said = re.search(r"(WARNING: ThreadSanitizer|ERROR: AddressSanitizer|runtime error): (.*)", text)
            if said:
                where = re.search(r"csrc/[\w/.]+:\d+", text)
                if where is None:
                    print("\n".join(text.strip().splitlines()[:24]), flush=True)
                kind = re.sub(r"0x[0-9a-f]+|pid=\d+", "", said[2])
                name = f"{where[0] if where else 'elsewhere'}: {kind[:80]}"
                found[name] = found.get(name, 0) + 1
        file.unlink()
    return found


def run(command: list[str], kind: str, folder: Path, suppress: bool = True) -> int:
    """Run Python under the sanitizer."""
    # ThreadSanitizer maps memory at fixed places, which a random layout may have taken.
    fixed = ["setarch", "-R"] if kind == "tsan" else []
    env = environment(kind, folder, suppress)
    return subprocess.run([*fixed, sys.executable, *command], cwd=folder, env=env, check=False).returncode


def check(kind: str, folder: Path, share: int, tests: list[str]) -> bool:
    """Build, look whether the sanitizer sees anything at all, and run the tests; return whether all is well."""
    build(kind, folder)
    reports(folder)
    run(["-c", CONTROL[kind]], kind, folder, suppress=False)
    control = reports(folder)
    print(f"{kind}: the control is {'reported' if control else 'NOT reported'}: {control}", flush=True)
    sound = bool(control)
    if kind == "tsan":
        status = run([str(ROOT / "tests" / "attacks" / "threads.py")], kind, folder)
        sound &= told(kind, "the calls", status, folder)
    if share > 0:
        os.environ["TESTS_SHARE"] = str(share)
        status = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", LEFT_OUT, "-rf", *tests], kind, folder)
        sound &= told(kind, "the tests", status, folder)
    return sound


def told(kind: str, what: str, status: int, folder: Path) -> bool:
    """Print what the sanitizer reported of a run; return whether that and the run's status are well."""
    found = reports(folder)
    print(f"{kind}: {what} ended with {status}; {sum(found.values())} reports of {len(found)} places", flush=True)
    for place, times in sorted(found.items()):
        print(f"  {times:5} x {place}", flush=True)
    return status == 0 and not found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="asan, tsan (default: both)")
    parser.add_argument("--share", type=int, default=4, help="run one test in so many")
    parser.add_argument("--tests", nargs="*", default=TESTS)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "sanitize")
    options = parser.parse_args()
    outcomes = [check(kind, options.folder / kind, options.share, options.tests) for kind in options.what or FLAGS]
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
