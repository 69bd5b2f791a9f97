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
case "$*" in
  -) cat > "$CALLS.stdin" ;;
  *get_device_capability*) echo 9.0 ;;
  "-m pytest"*) exit ${PYTEST_STATUS:-0} ;;
  *setup.py*) echo "FORCE_CUDA=$FORCE_CUDA TORCH_CUDA_ARCH_LIST=$TORCH_CUDA_ARCH_LIST" >> "$CALLS" ;;
esac
"""
SANITIZER = """#!/bin/bash
if [ "$1" = --help ]; then echo "$HELP"; exit; fi
echo "compute-sanitizer $*" >> "$CALLS"
exit ${SANITIZER_STATUS:-0}
"""


@pytest.fixture
def run(tmp_path):
    """Runs the script; returns its status, what it said and the programs that it called."""

    def run(sanitizer=True, **settings):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, text in {"python": PYTHON, "compute-sanitizer": SANITIZER}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        if not sanitizer:
            (folder / "compute-sanitizer").unlink()
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        env = {k: v for k, v in os.environ.items() if k != "TORCH_CUDA_ARCH_LIST"}
        env |= {"CALLS": str(calls), "HELP": "--kernel-name arg", **settings}
        command = ["bash", str(SCRIPT), "NAME", str(folder / "python")]
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines()

    return run


def test_what_it_runs(run, tmp_path):
    status, text, calls = run()
    assert status == 0, text
    assert compile((tmp_path / "calls.stdin").read_text(), "heredoc", "exec")
    build, test, bench, memory, race = (
        next(i for i, call in enumerate(calls) if part in call)
        for part in ("setup.py -q build_ext --inplace", "-m pytest -q -m cuda", "bench_gpu.py", "memcheck", "racecheck")
    )
    assert build < test < bench < memory < race
    assert calls[build + 1] == "FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0"
    compile(re.search(r"-c (import zerosum_ext.*)", calls[build + 2])[1], "-c", "exec")
    assert "--kernel-name kns=zx" in calls[race]
    for call in calls:
        for path in re.findall(r"(?<= )(?:tests|benchmarks)/\S+\.py", call):
            assert (ROOT / path).is_file()
    arguments = re.search(r"--output benchmarks/results/gpu-NAME-\d{4}-\d\d-\d\d --seconds (\d+)$", calls[bench])
    assert 200 < int(arguments[1]) <= 290
    assert "compute-sanitizer memcheck" in text


def test_a_failure_does_not_keep_the_rest_from_running(run):
    status, _, calls = run(PYTEST_STATUS="1", HELP="")
    assert status == 1
    assert sum("bench_gpu.py" in call for call in calls) == 1
    assert [call.split()[2] for call in calls if call.startswith("compute")] == ["memcheck", "racecheck"]
    assert not any("--kernel-name" in call for call in calls)


def test_what_the_sanitizer_finds_is_told(run):
    assert run(SANITIZER_STATUS="9")[0] == 1
    status, text, _ = run(SANITIZER_STATUS="124")  # how timeout ends
    assert status == 0
    assert "racecheck: out of time" in text


def test_without_a_sanitizer(run):
    if shutil.which("compute-sanitizer"):
        pytest.skip("there is one on PATH")
    status, text, calls = run(sanitizer=False)
    assert (status, any(call.startswith("compute") for call in calls)) == (0, False)
    assert "not installed: skipped" in text


def test_all_tests_for_a_gpu_are_where_the_script_looks():
    files = {path.name for path in (ROOT / "tests").glob("test_*.py") if path.name != Path(__file__).name}
    wants_gpu = re.compile(r"pytest\.mark\.cuda|^def test_\w+\([^)]*\b(device|gpu)\b", re.MULTILINE)
    assert {name for name in files if wants_gpu.search((ROOT / "tests" / name).read_text())} == {"test_devices.py"}
