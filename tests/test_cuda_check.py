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


def test_shared_memory_that_a_launch_does_not_get(check):
    """Static and dynamic together: nvcc sees the one alone, and the host's runner the other."""
    dynamic = check.DYNAMIC_SHARED["fold_in_kernel"]
    for name, static, refused in (
        ("fold_in_kernel", check.UNASKED - dynamic, False),
        ("fold_in_kernel", check.UNASKED - dynamic + 16, True),
        ("other_kernel", check.UNASKED, False),
        ("other_kernel", check.UNASKED + 16, True),
        ("step_block_kernel", 2304, False),
        ("step_block_kernel", check.MOST_SHARED - check.DYNAMIC_SHARED["step_block_kernel"] + 16, True),
    ):
        report = REPORT.replace("b_kernel", name).replace("0 barriers", f"0 barriers, {static} bytes smem")
        assert [k.refused for k in check.parse(report, "9.0", "x.cu")] == [False, refused]


def test_the_dynamic_shared_memory_is_what_launches_have(check):
    """As the sources compute it: of fold_in and of long lists at most so much, of short lists two entries a place."""

    def constant(name, file):
        text = (ROOT / "csrc" / "cuda" / file).read_text()
        return eval(re.search(rf"constexpr \w+ {name} = ([\d<< ]+);", text)[1])

    bits = constant("kSelectBits", "rank_select.cuh")
    of_select = 4 * (1 << bits) + constant("kSelectBytes", "rank_select.cuh")
    levels = 2 * (constant("kRankLevels", "rank.cuh") + 1) * (8 + 4)  # float64 has the largest
    assert {
        "fold_in_kernel": constant("kFoldShared", "fold_in.cuh"),
        "rank_select_kernel": of_select,
        "rank_kernel": 2 * constant("kRankList", "rank.cuh") * 16 + levels,
        "step_block_kernel": 3 * 4 * constant("kTile", "mf_shared.cuh") * constant("kTileRow", "mf_shared.cuh"),
    } == check.DYNAMIC_SHARED
    launched, asking = set(), set()
    for path in (ROOT / "csrc" / "cuda").glob("*.cuh"):
        asking |= set(re.findall(r"GPU_ALLOW_SHARED\(\((\w+)", path.read_text()))
        for kernel, arguments in re.findall(r"GPU_LAUNCH\(\((\w+)[^;{]*?\)\s*,([^;]*?)stream\)", path.read_text()):
            if arguments.rstrip(", \n").rpartition(",")[2].strip() != "0":
                launched.add(kernel)
    assert launched == set(check.DYNAMIC_SHARED)
    assert asking == check.ASKING


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
