"""What the tests of the kernels share. Where kernels cannot be compiled, importing this skips the whole module."""

from __future__ import annotations

import pytest
import torch

import cuda_on_host

if reason := cuda_on_host.missing():
    pytest.skip(f"kernels cannot be compiled here: {reason}", allow_module_level=True)


def kernels_of(topic):
    """A fixture: the launchers of ``<topic>.cpp``."""

    @pytest.fixture(scope="module")
    def kernels():
        return cuda_on_host.load(topic)

    return kernels


def counted_kernels_of(topic):
    """A fixture: the same launchers, compiled to count the bytes that they move (`cuda_on_host.Counts`)."""

    @pytest.fixture(scope="module")
    def counted():
        return cuda_on_host.load(topic, "count")

    return counted


def misaligned(t):
    """The same values at an address that is no multiple of 16 bytes."""
    moved = torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape)
    return moved.copy_(t)
