"""tools/cuda_check.py: what it reads from the assembler's report, and what it makes of it."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("cuda_check", ROOT / "tools" / "cuda_check.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["cuda_check"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'void zx::cuda_build::a_kernel<zx::Bpr, __half>(Args)' for 'sm_90'
ptxas info    : Function properties for void zx::cuda_build::a_kernel<zx::Bpr, __half>(Args)
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 96 bytes smem
ptxas info    : Compile time = 5.0 ms
ptxas info    : Compiling entry function 'void zx::cuda_build::b_kernel<double>(Args)' for 'sm_90'
ptxas info    : Function properties for void zx::cuda_build::b_kernel<double>(Args)
    24 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""


def test_report(check):
    a, b = check.parse(REPORT, "9.0", "x.cu")
    assert (a.name, a.registers, a.shared, a.local, a.hot) == ("a_kernel<Bpr, float16>", 64, 96, False, True)
    assert (b.name, b.registers, b.shared, b.stack, b.spills) == ("b_kernel<double>", 32, 0, 24, 12)
    assert b.local
    assert not b.hot
    assert "a_kernel<Bpr, float16>" in check.table([a, b])


SYMBOLS = """\
00000000000000e0 t __device_stub__ZN2zx8a_kernelEv(Args const&)
                 U cudaLaunchKernel
0000000000000010 t void zx::cuda_build::a_kernel<zx::Bpr, __half>(Args)
0000000000000011 t void zx::cuda_build::a_kernel<zx::Bpr, __half>(Args) [clone .cold]
0000000000000020 t void zx::cuda_build::b_kernel<double>(Args)
0000000000000030 T zx::cuda_build::plain_kernel(Args, int)
0000000000000040 T zx::cuda_build::launches_a_kernel_or_two(Args)
0000000000000050 t void zx::cuda_build::c_kernel<float, 4>(zx::Other<int>)
"""


def test_kernels_that_no_gpu_has(check):
    assert check.forgotten(SYMBOLS, check.parse(REPORT, "9.0", "x.cu")) == ["c_kernel<float, 4>", "plain_kernel"]


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "expected"),
    [
        ("9.0", 32, 0, 1.0),  # 65536 registers hold 2048 threads of 32
        ("9.0", 33, 0, 0.75),  # given out 8 at a time: 40, and whole blocks
        ("9.0", 64, 0, 0.5),
        ("9.0", 255, 0, 0.125),
        ("9.0", 16, 100 << 10, 0.25),  # two blocks of 101 KiB in 228
        ("7.5", 64, 0, 1.0),
        ("12.0", 64, 0, 4 / 6),
    ],
)
def test_occupancy(check, arch, registers, shared, expected):
    assert check.occupancy(arch, registers, shared) == pytest.approx(expected)


def test_every_kernel_has_blocks_of_the_size_that_occupancy_assumes(check):
    sources = [path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.cuh")]
    bounds = [found for text in sources for found in re.findall(r"__launch_bounds__\((\w+).*?\)?\)?\s+(\w+)\(", text)]
    assert bounds
    for constant, kernel in bounds:
        (value,) = {m for text in sources for m in re.findall(rf"constexpr int [^;]*\b{constant} = (\d+)[,;]", text)}
        assert int(value) == check.THREADS_OF.get(kernel, check.THREADS), (kernel, constant)
    assert set(check.THREADS_OF) <= {kernel for _, kernel in bounds}


def test_the_architectures_are_those_of_the_package(check):
    archs = re.search(r'DEFAULT_ARCHS = "([^"]+)"', (ROOT / "setup.py").read_text())[1]
    assert tuple(archs.split(";")) == check.ARCHS == tuple(check.LIMITS)
