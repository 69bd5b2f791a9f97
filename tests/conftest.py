"""What all tests share."""

from __future__ import annotations

import os
import signal
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from children import meeting_this_package


@pytest.fixture(scope="session", autouse=True)
def children_meet_the_package_under_test(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ.update(meeting_this_package(dict(os.environ)))
    os.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(scope="session", autouse=True)
def control_c_is_heard() -> None:
    """A shell starts what it leaves in the background deaf to it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if "PYTEST_XDIST_WORKER" in os.environ:
    # There is a process for each core. Children that tests start compute with one thread too.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

# Modules whose fixtures take long to make: kernels are compiled, models trained. Each stays in one process.
_TOGETHER = (
    "test_cuda_",
    "test_bench",
    "test_cli",
    "test_errors",
    "test_fuzz",
    "test_packaging",
    "test_reproduce",
    "test_runs",
)


def _groups(items: list[pytest.Item]) -> None:
    """Keep together, under ``pytest -n N --dist loadgroup``, what shares fixtures, and what uses many threads."""
    for item in items:
        module = item.path.stem
        if item.get_closest_marker("threads"):
            item.add_marker(pytest.mark.xdist_group("threads"))
        elif module.startswith(_TOGETHER):
            item.add_marker(pytest.mark.xdist_group(module))


def _begun() -> set[str]:
    notes = os.environ.get("TESTS_BEGUN")
    return set(Path(notes).read_text().splitlines()) if notes and Path(notes).exists() else set()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist, which reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """TESTS_SHARE=n keeps about one test in n, always the same ones: for what is slow under sanitizers.

    TESTS_BEGUN=FILE notes each test that begins, and leaves out those that are noted already: after a crash another
    process goes on with the rest. With TESTS_SECONDS=n a test that takes longer ends the process. So does one, with
    status 3, after which CUDA refuses the process everything. (benchmarks/gpu_run.sh)
    """
    _groups(items)
    begun = _begun()
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in begun])
    items[:] = [item for item in items if item.nodeid not in begun]
    share = int(os.environ.get("TESTS_SHARE", "1"))
    if share > 1:
        shares: dict[bool, list[pytest.Item]] = {True: [], False: []}
        for item in items:
            shares[zlib.crc32(item.nodeid.rpartition("/")[2].encode()) % share == 0].append(item)
        config.hook.pytest_deselected(items=shares[False])
        items[:] = shares[True]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if "TESTS_BEGUN" not in os.environ:
        return (yield)
    with open(os.environ["TESTS_BEGUN"], "a") as notes:
        notes.write(f"{item.nodeid}\n")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # wherever the test hangs
    signal.alarm(int(os.environ.get("TESTS_SECONDS", "0")))
    result = yield
    signal.alarm(0)
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            pytest.exit(f"CUDA refuses this process everything from now on: {error}", returncode=3)
    return result


def _need_gpu() -> None:
    from zerosum_ext import _library as _extension
    from zerosum_ext import _ops

    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    if not _extension.CUDA.loaded:
        pytest.skip(f"_C_cuda is not loaded: {_extension.CUDA.reason}")
    if _ops.gpu_obstacle(None):
        pytest.skip(_ops.gpu_obstacle(None))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that tests run on; a GPU is skipped where there is none, or no kernels for it."""
    if request.param == "cuda":
        _need_gpu()
    return torch.device(request.param)


@pytest.fixture
def gpu() -> torch.device:
    """For what only a GPU has; to be used with the marker cuda."""
    _need_gpu()
    return torch.device("cuda")
