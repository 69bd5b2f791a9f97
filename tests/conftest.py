"""What all tests share."""

from __future__ import annotations

import pytest
import torch


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
