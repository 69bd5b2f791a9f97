"""What all tests share."""

from __future__ import annotations

import os
import signal
import sys
import zlib
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """TESTS_SHARE=n keeps about one test in n, always the same ones: for what is slow under sanitizers."""
    share = int(os.environ.get("TESTS_SHARE", "1"))
    if share > 1:
        shares: dict[bool, list[pytest.Item]] = {True: [], False: []}
        for item in items:
            shares[zlib.crc32(item.nodeid.rpartition("/")[2].encode()) % share == 0].append(item)
        config.hook.pytest_deselected(items=shares[False])
        items[:] = shares[True]


def _need_gpu() -> None:
    from zerosum_ext import _extension

    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    if not _extension.CUDA.loaded:
        pytest.skip(f"_C_cuda is not loaded: {_extension.CUDA.reason}")


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
