"""What conftest.py does for benchmarks/gpu_run.sh: after a crash another process goes on with the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
TESTS = """
import os, time
import torch

def test_first():
    pass

def test_that_fails():
    assert False

def test_that_crashes():
    os._exit(9)

def test_that_hangs():
    time.sleep(60)

def test_that_loses_the_gpu():
    def refuse():
        raise RuntimeError("an illegal memory access was encountered")
    torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, refuse

def test_last():
    pass
"""


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="this system has no alarms")
def test_each_process_goes_on_where_one_was_lost(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    path = os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "TESTS_BEGUN": str(tmp_path / "begun"), "TESTS_SECONDS": "5"}
    env.pop("TESTS_SHARE", None)
    command = [sys.executable, "-m", "pytest", "-v", "-p", "conftest", "-p", "no:cacheprovider", "test_some.py"]
    ends, begun = [], []
    for _ in range(5):
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        ends.append(done.returncode)
        now = (tmp_path / "begun").read_text().split()
        begun.append([name.rpartition("_")[2] for name in now[sum(map(len, begun)) :]])
    assert ends == [9, -signal.SIGALRM, 3, 0, 5]
    assert begun == [["first", "fails", "crashes"], ["hangs"], ["gpu"], ["last"], []]


def test_what_belongs_together_is_run_by_one_process(request: pytest.FixtureRequest) -> None:
    """pytest-xdist reads a group from the end of a test's name, which has to be there in time."""
    if not request.config.getoption("loadgroup", None):
        pytest.skip("the tests are not shared out by groups")
    for item in request.session.items:
        groups = [mark.args[0] for mark in item.iter_markers("xdist_group")]
        assert item.nodeid.endswith("".join(f"@{group}" for group in groups)), item.nodeid
        assert groups == ["threads"] or not item.get_closest_marker("threads"), item.nodeid
