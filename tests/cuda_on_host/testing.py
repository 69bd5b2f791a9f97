"""What the tests of the kernels share. Where kernels cannot be compiled, importing this skips the whole module."""

from __future__ import annotations

import os
import tempfile

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


# Elements before those that a test of large tensors looks at: 32 bits do not count them.
FAR = (1 << 31) + 3


def far_tensor(folder, dtype, size):
    """A tensor of that many elements, of which the disk keeps those that are written; the others are 0."""
    if os.environ.get("CUDA_ON_HOST_RECORD") or os.environ.get("CUDA_ON_HOST_SANITIZE"):
        pytest.skip("a recorded call has all the memory that its tensors belong to, and a sanitizer marks all of it")
    handle, path = tempfile.mkstemp(dir=folder)
    os.close(handle)
    return torch.from_file(path, shared=True, size=size, dtype=dtype)


def moved_far(folder, t, before=FAR):
    """A copy of ``t`` behind ``before`` elements: the whole tensor, and the copy in it.

    Of a table ``before`` counts rows.
    """
    row = t[0].numel() if t.dim() > 1 else 1
    whole = far_tensor(folder, t.dtype, before * row + t.numel())
    whole = whole.view(-1, *t.shape[1:])
    whole[before:] = t
    return whole, whole[before:]
