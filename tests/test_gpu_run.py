"""benchmarks/gpu_run.sh with programs that only note how they are called in the place of Python and the sanitizer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu_run.sh"

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "timeout", "nproc"))), reason="there is no bash, timeout or nproc"
)

PYTHON = """#!/bin/bash
echo "python $*" >> "$CALLS"
if [ -n "${PYTORCH_NO_CUDA_MEMORY_CACHING:-}" ]; then echo "Python without a cache of memory" >> "$CALLS"; fi
case "$*" in
  -) cat > "$CALLS.stdin"; exit ${CHECK_STATUS:-0} ;;
  *get_device_capability*) echo 9.0 ;;
  "-c import pytest") exit ${HAS_PYTEST:-0} ;;
  "-c import zerosum_ext"*) exit ${LOADED:-0} ;;
  "-m pytest"*) echo "TESTS_BEGUN=$TESTS_BEGUN TESTS_SECONDS=$TESTS_SECONDS" >> "$CALLS"; exit ${PYTEST_STATUS:-0} ;;
  *bench_gpu.py*) exit ${BENCH_STATUS:-0} ;;
  *setup.py*)
    echo "FORCE_CUDA=$FORCE_CUDA TORCH_CUDA_ARCH_LIST=$TORCH_CUDA_ARCH_LIST MAX_JOBS=$MAX_JOBS" >> "$CALLS"
    ls >> "$CALLS.tree"
    exit ${BUILD_STATUS:-0} ;;
esac
"""
SANITIZER = """#!/bin/bash
if [ "$1" = --help ]; then echo "$HELP"; exit; fi
echo "compute-sanitizer $*" >> "$CALLS"
echo "PYTORCH_NO_CUDA_MEMORY_CACHING=${PYTORCH_NO_CUDA_MEMORY_CACHING:-}" >> "$CALLS"
exit ${SANITIZER_STATUS:-0}
"""
NCU = """#!/bin/bash
echo "ncu $*" >> "$CALLS"
while [ $# -gt 0 ]; do
  if [ "$1" = --log-file ]; then echo counted > "$2"; fi
  shift
done
exit ${NCU_STATUS:-0}
"""
TIMEOUT = f"""#!/bin/bash
echo "$*" >> "$CALLS.timeouts"
exec {shutil.which("timeout")} "$@"
"""
PROGRAMS = {"python": PYTHON, "compute-sanitizer": SANITIZER, "ncu": NCU, "timeout": TIMEOUT}


@pytest.fixture
def run(tmp_path):
    """Runs the script; returns its status, what it said and the programs that it called."""

    def run(sanitizer=True, ncu=True, **settings):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, text in PROGRAMS.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        for wanted, name in ((sanitizer, "compute-sanitizer"), (ncu, "ncu")):
            if not wanted:
                (folder / name).unlink()
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        unset = ("TORCH_CUDA_ARCH_LIST", "MAX_JOBS", "PYTORCH_NO_CUDA_MEMORY_CACHING")
        env = {k: v for k, v in os.environ.items() if k not in unset}
        env |= {"CALLS": str(calls), "HELP": "--kernel-name arg", "RESULTS": str(tmp_path / "results"), **settings}
        command = ["bash", str(SCRIPT), "NAME", str(folder / "python")]
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines()

    return run


def count(calls, part):
    return sum(part in call for call in calls)


def test_what_it_runs(run, tmp_path):
    status, text, calls = run()
    assert status == 0, text
    assert compile((tmp_path / "calls.stdin").read_text(), "heredoc", "exec")
    build, test, race, memory, bench = (
        next(i for i, call in enumerate(calls) if part in call)
        for part in ("setup.py -q build_ext --inplace", "-m pytest -v -m cuda", "racecheck", "memcheck", "bench_gpu.py")
    )
    assert build < test < bench < race < memory
    assert re.fullmatch(r"FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0 MAX_JOBS=\d+", calls[build + 1])
    # pyproject.toml is too new for some setuptools.
    assert (tmp_path / "calls.tree").read_text().split() == ["csrc", "setup.py", "zerosum_ext"]
    compile("\n".join(calls[build + 2 : build + 4]).removeprefix("python -c "), "-c", "exec")
    assert re.fullmatch(r"TESTS_BEGUN=/.+ TESTS_SECONDS=60", calls[test + 1])
    assert "--kernel-name kns=zx" in calls[race]
    # With torch's cache of memory an overrun would stay within a segment; all others want that cache.
    assert calls[race + 1] == calls[memory + 1] == "PYTORCH_NO_CUDA_MEMORY_CACHING=1"
    assert not count(calls, "Python without a cache")
    timeouts = (tmp_path / "calls.timeouts").read_text()
    seconds = [int(n) for n in re.findall(r"(\d+) compute-sanitizer", timeouts)]
    assert 85 < seconds[0] <= 90  # half of it, and then the rest, for these end at once
    assert 170 < seconds[1] <= 180
    assert next(i for i, call in enumerate(calls) if call.startswith("ncu")) > memory
    for call in calls:
        for path in re.findall(r"(?<= )(?:tests|benchmarks)/\S+\.py", call):
            assert (ROOT / path).is_file()
    output = rf"{tmp_path}/results/gpu-NAME-\d{{4}}-\d\d-\d\d"
    arguments = re.search(rf"--begun /\S+ --limit 120 --output ({output}) --seconds (\d+)$", calls[bench])
    assert 300 < int(arguments[2]) <= 330  # of 580, with 180 kept for the sanitizer
    assert "compute-sanitizer memcheck" in text
    assert Path(f"{arguments[1]}.log").read_text() == text


def test_a_failure_does_not_keep_the_rest_from_running(run):
    status, _, calls = run(PYTEST_STATUS="1", HELP="")
    assert status == 1
    assert count(calls, "bench_gpu.py") == 1
    assert [call.split()[2] for call in calls if call.startswith("compute")] == ["racecheck", "memcheck"]
    assert not any("--kernel-name kns" in call for call in calls)


@pytest.mark.parametrize("lost", ["139", "3"])
def test_a_process_that_is_lost_is_followed_by_another(run, lost):
    status, text, calls = run(PYTEST_STATUS=lost, BENCH_STATUS=lost)
    assert status == 1
    assert f"tests: the process ended with {lost}" in text
    begun = [call for call in calls if call.startswith("TESTS_BEGUN")]
    assert len(begun) == 8
    assert len(set(begun)) == 1
    benches = [call for call in calls if "bench_gpu.py" in call]
    assert [re.search(r"-\d\d-\d\d(-\d)? ", call)[1] for call in benches] == [None, "-2", "-3", "-4"]
    assert len({re.search(r"--begun (\S+)", call)[1] for call in benches}) == 1
    assert count(calls, "compute-sanitizer") == 2


def test_a_benchmark_that_failed_is_told_and_not_repeated(run):
    status, _, calls = run(BENCH_STATUS="1")
    assert (status, count(calls, "bench_gpu.py"), count(calls, "compute-sanitizer")) == (1, 1, 2)


def test_no_test_is_left(run):
    status, _, calls = run(PYTEST_STATUS="5")
    assert (status, count(calls, "TESTS_BEGUN")) == (0, 1)


def test_a_build_that_fails(run):
    """It is tried again by fewer compilers at once; then libraries that are there may do."""
    status, text, calls = run(BUILD_STATUS="1", MAX_JOBS="7")
    assert status == 1
    assert [call.split()[-1] for call in calls if "FORCE_CUDA" in call] == ["MAX_JOBS=7", "MAX_JOBS=2"]
    assert count(calls, "bench_gpu.py") == 1
    status, text, calls = run(BUILD_STATUS="1", LOADED="1")
    assert status == 1
    assert count(calls, "bench_gpu.py") == 0
    assert "nothing to measure" in text
    status, _, calls = run(BUILD="0")
    assert (status, count(calls, "setup.py"), count(calls, "bench_gpu.py")) == (0, 0, 1)
    assert not count(calls, "get_device_capability")  # another start of torch, for what only a build wants to know


def test_without_a_gpu(run):
    status, text, calls = run(CHECK_STATUS="1")
    assert (status, len(calls)) == (1, 1)
    assert "nothing can be measured here" in text


def test_without_pytest(run):
    status, text, calls = run(HAS_PYTEST="1")
    assert (status, count(calls, "TESTS_BEGUN"), count(calls, "bench_gpu.py")) == (1, 0, 1)
    assert "skipped, there is no pytest" in text


def test_without_time(run):
    status, text, calls = run(SECONDS_AT_MOST="25")
    assert (status, count(calls, "bench_gpu.py"), count(calls, "--tool")) == (1, 0, 0)
    assert text.count("NOT RUN, no time is left") == 2
    assert "done, status 1, NOT FINISHED: racecheck memcheck;" in text


def test_five_minutes_with_libraries_that_are_there(run, tmp_path):
    """The benchmarks have most of the time, and all tests, kernels and sections end within their own."""
    status, _, calls = run(SECONDS_AT_MOST="300", BUILD="0")
    assert (status, count(calls, "bench_gpu.py"), count(calls, "--tool"), count(calls, "ncu --")) == (0, 1, 2, 1)
    timeouts = (tmp_path / "calls.timeouts").read_text()
    (tests,) = re.findall(r"^-k 5 (\d+) \S+ -m pytest", timeouts, re.MULTILINE)
    (kernels,) = re.findall(r"^-k 5 (\d+) \S+ benchmarks/bench_kernels.py --seconds", timeouts, re.MULTILINE)
    (bench,) = re.findall(r"^-k 5 (\d+) \S+ benchmarks/bench_gpu.py", timeouts, re.MULTILINE)
    # (These end at once, so that each finds the whole time; a hang in each of them leaves the next one some.)
    assert 65 < int(tests) <= 75
    assert 65 < int(kernels) <= 75
    assert 180 < int(bench) <= 190
    limit, seconds = map(int, re.search(r"--limit (\d+) .*--seconds (\d+)$", "\n".join(calls), re.MULTILINE).groups())
    assert 85 < limit <= 95
    assert 115 < seconds <= 130


def test_the_sanitizer_has_what_the_benchmarks_leave(run, tmp_path):
    status, _, calls = run(SECONDS_AT_MOST="170")
    assert (status, count(calls, "bench_gpu.py")) == (0, 1)
    timeouts = (tmp_path / "calls.timeouts").read_text()
    (bench,) = re.findall(r"^-k 5 (\d+) \S+ benchmarks/bench_gpu.py", timeouts, re.MULTILINE)
    seconds = [int(n) for n in re.findall(r"(\d+) compute-sanitizer", timeouts)]
    assert 95 < int(bench) <= 105  # a third is kept
    assert 70 < seconds[0] <= 80
    assert 145 < seconds[1] <= 160


def test_what_the_sanitizer_finds_is_told(run):
    status, text, calls = run(SANITIZER_STATUS="9")
    assert (status, count(calls, "compute-sanitizer"), count(calls, "bench_gpu.py")) == (1, 2, 1)
    assert "NOT FINISHED" not in text


@pytest.mark.parametrize("ended", ["124", "137"])  # how timeout ends
def test_a_sanitizer_that_does_not_finish_is_no_success(run, ended):
    status, text, calls = run(SANITIZER_STATUS=ended)
    assert (status, count(calls, "compute-sanitizer"), count(calls, "bench_gpu.py")) == (1, 2, 1)
    assert re.search(r"racecheck: NOT FINISHED in \d+ s", text)
    assert "done, status 1, NOT FINISHED: racecheck memcheck;" in text


def test_without_a_sanitizer(run):
    if shutil.which("compute-sanitizer"):
        pytest.skip("there is one on PATH")
    status, text, calls = run(sanitizer=False)
    assert (status, any(call.startswith("compute") for call in calls)) == (0, False)
    assert "not installed: skipped" in text


def test_ncu_looks_into_kernels_that_there_are(run, tmp_path):
    status, _, calls = run()
    assert (status, count(calls, "ncu --")) == (0, 1)
    call = next(call for call in calls if call.startswith("ncu"))
    names = re.search(r"--kernel-name regex:\^\(([a-z_|]+)\)_kernel ", call)[1].split("|")
    sources = "".join(path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.cuh"))
    assert len(names) == 6
    assert [name for name in names if f" {name}_kernel(" not in sources] == []
    assert "bench_kernels.py --plain" in call
    assert len(list((tmp_path / "results").glob("ncu-NAME-*.txt"))) == 1


def test_ncu_that_may_not_count_is_no_failure(run):
    status, text, calls = run(NCU_STATUS="1")
    assert (status, count(calls, "bench_gpu.py")) == (0, 1)
    assert "it may not count" in text


def test_without_ncu(run):
    if shutil.which("ncu"):
        pytest.skip("there is one on PATH")
    status, text, calls = run(ncu=False)
    assert (status, count(calls, "ncu --")) == (0, 0)
    assert "ncu is not installed" in text


def test_all_tests_for_a_gpu_are_where_the_script_looks():
    files = {path.name for path in (ROOT / "tests").glob("test_*.py") if path.name != Path(__file__).name}
    wants_gpu = re.compile(r"pytest\.mark\.cuda|^def test_\w+\([^)]*\b(device|gpu)\b", re.MULTILINE)
    run = re.search(r"pytest -v -m cuda --durations=5 (.*) \|\|", (ROOT / "benchmarks" / "gpu_run.sh").read_text())[1]
    wanting = {f"tests/{name}" for name in files if wants_gpu.search((ROOT / "tests" / name).read_text())}
    assert wanting == set(run.split())
