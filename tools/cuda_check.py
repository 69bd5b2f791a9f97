"""Compiles every CUDA kernel with nvcc, for every architecture, and says what the assembler made of it.

    python tools/cuda_check.py [--archs 7.5 9.0] [--jobs 2] [--json FILE] [--all]

No GPU and no CUDA build of torch are needed: the headers of a CPU build do. A kernel that spills registers or keeps
anything in local memory is an error, except in float64, where no speed is promised. So is one whose static and dynamic
shared memory together are more than a launch gets unasked. The table holds registers, static shared memory and the
occupancy that they allow at 256 threads a block, for the last architecture or, with --all, for each.
The newest architecture is compiled to PTX as well, as the package is. At last the objects of one architecture are
linked and loaded against a stub of libtorch_cuda.so: every kernel must register under the schema that _C gives its op.
A kernel that the host launches and no compilation for a GPU has met is an error too, of which nvcc says nothing.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from children import meeting_this_package

ROOT = Path(__file__).resolve().parents[1]
ARCHS = ("7.5", "8.0", "9.0", "10.0", "12.0")
FLAGS = ("-O3", "-std=c++17", "--expt-relaxed-constexpr", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000ULL")
THREADS = 256  # a block of every kernel but these
THREADS_OF = {"small_sort_kernel": 1024, "rank_select_kernel": 512, "fold_in_kernel": 128}
# Bytes of dynamic shared memory that these are launched with, at most.
DYNAMIC_SHARED = {
    "fold_in_kernel": 40 << 10,
    "rank_kernel": 28 << 10,
    "rank_select_kernel": 40 << 10,
    "step_block_kernel": 3 * 64 * 68 * 4,
}
UNASKED = 48 << 10  # bytes of both kinds together that a launch may have without asking (cudaFuncSetAttribute)
MOST_SHARED = 64 << 10  # and after it, of every architecture here
ASKING = {"step_block_kernel"}
REGISTERS = 65536  # of a multiprocessor, on every architecture here
# Threads, blocks and bytes of shared memory of a multiprocessor (CUDA C++ Programming Guide, compute capabilities).
LIMITS = {
    "7.5": (1024, 16, 64 << 10),
    "8.0": (2048, 32, 164 << 10),
    "9.0": (2048, 32, 228 << 10),
    "10.0": (2048, 32, 228 << 10),
    "12.0": (1536, 24, 100 << 10),
}


@dataclass
class Kernel:
    arch: str
    source: str
    name: str
    registers: int
    shared: int  # bytes of static shared memory
    stack: int  # bytes of local memory of a thread
    spills: int  # bytes stored and loaded because registers ran out
    occupancy: float  # share of the multiprocessor's threads that can be resident

    @property
    def local(self) -> bool:
        return self.stack > 0 or self.spills > 0

    @property
    def refused(self) -> bool:
        """Whether a launch would fail: there is more shared memory than is granted."""
        name = self.name.partition("<")[0]
        return self.shared + DYNAMIC_SHARED.get(name, 0) > (MOST_SHARED if name in ASKING else UNASKED)

    @property
    def hot(self) -> bool:
        return "double" not in self.name


def occupancy(arch: str, registers: int, shared: int, block: int = THREADS) -> float:
    """Return the resident threads over the largest number, at ``block`` threads a block."""
    threads, blocks, memory = LIMITS[arch]
    per_warp = -(-registers * 32 // 256) * 256  # registers are given out 256 at a time
    by_registers = REGISTERS // per_warp // (block // 32) if registers else blocks
    by_memory = memory // (shared + 1024)  # a block reserves 1 KiB for the system
    return min(blocks, threads // block, by_registers, by_memory) * block / threads


def demangle(text: str) -> str:
    tool = shutil.which("c++filt")
    return subprocess.run([tool], input=text, capture_output=True, text=True, check=True).stdout if tool else text


def short_name(name: str) -> str:
    """``kernel<Loss, dtype>`` of a demangled signature."""
    depth, end = 0, len(name)
    for i, c in enumerate(name):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            end = i
            break
    name = re.sub(r"^void ", "", name[:end])
    name = re.sub(r"zx::(cuda_build::)?", "", name)
    return name.replace("__nv_bfloat16", "bfloat16").replace("__half", "float16")


def parse(log: str, arch: str, source: str) -> list[Kernel]:
    """The kernels that ``ptxas -v`` reports."""
    kernels = []
    for part in demangle(log).split("Compiling entry function '")[1:]:
        name = part[: part.index("' for 'sm_")]
        stack, stores, loads = map(
            int, re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", part).groups()
        )
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        found = re.search(r"(\d+) bytes smem", part)
        shared = int(found[1]) if found else 0
        block = next((threads for kernel, threads in THREADS_OF.items() if kernel in name), THREADS)
        kernels.append(
            Kernel(
                *(arch, source, short_name(name), registers, shared, stack, stores + loads),
                occupancy(arch, registers, shared, block),
            )
        )
    return kernels


def forgotten(symbols: str, kernels: list[Kernel]) -> list[str]:
    """Return the kernels that an object's host code launches (``nm -C``), less those that were compiled for the GPU."""
    found = re.findall(r"^[0-9a-f]+ [tTwW] (?!__)(.*_kernel(?:<.*>)?\(.*\))$", symbols, re.MULTILINE)
    return sorted({short_name(name) for name in found} - {kernel.name for kernel in kernels})


def compile_one(nvcc: str, source: Path, arch: str, includes: list[str], folder: Path) -> list[Kernel]:
    number = arch.replace(".", "")
    object_file = folder / f"{source.stem}-{arch}.o"
    code = f"[sm_{number},compute_{number}]" if arch == ARCHS[-1] else f"sm_{number}"
    command = [nvcc, *FLAGS, "-Xcompiler", "-fPIC", "-Xptxas", "-v", "-gencode", f"arch=compute_{number},code={code}"]
    command += [*includes, "-c", str(source), "-o", str(object_file)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    kernels = parse(done.stdout + done.stderr, arch, source.name)
    symbols = subprocess.run(["nm", "-C", str(object_file)], capture_output=True, text=True, check=True).stdout
    missing = forgotten(symbols, kernels)
    if missing:
        raise RuntimeError(f"{source.name}: launched, but not compiled for the GPU: {', '.join(missing)}")
    return kernels


# Runs in a process of its own: loads the library after the stub, and prints the ops that have a CUDA kernel.
LOAD = """
import ctypes, sys
import torch
from zerosum_ext import _library
if not _library.CPU.loaded:
    sys.exit(f"_C is not loaded: {_library.CPU.reason}")
ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
torch.ops.load_library(sys.argv[2])
has = torch._C._dispatch_has_kernel_for_dispatch_key
print(" ".join(op for op in _library.OPS if has(f"zerosum_ext::{op}", "CUDA")))
"""


def link_and_load(nvcc: str, objects: list[Path], folder: Path) -> list[str]:
    """Links as setup.py does and loads the library into a CPU build of torch; returns the ops with a CUDA kernel."""
    from torch.utils.cpp_extension import library_paths

    stub, library = folder / "libtorch_cuda.so", folder / "_C_cuda.so"
    source = ROOT / "csrc" / "cuda" / "libtorch_cuda_stub.c"
    env = meeting_this_package(dict(os.environ))
    linker = [nvcc, "-shared", "-cudart", "static"]
    libraries = [*(f"-L{p}" for p in library_paths()), f"-L{folder}", "-ltorch_cuda", "-ltorch_cpu", "-lc10"]
    for command in (
        ["gcc", "-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so", "-o", str(stub), str(source)],
        [*linker, "-o", str(library), *map(str, objects), *libraries],
        [sys.executable, "-c", LOAD, str(stub), str(library)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout.split()


def table(kernels: list[Kernel]) -> str:
    lines = [f"{'kernel':58}{'arch':>6}{'registers':>11}{'shared B':>10}{'local B':>9}{'occupancy':>11}"]
    for k in kernels:
        lines.append(
            f"{k.name[:57]:58}{k.arch:>6}{k.registers:>11}{k.shared:>10}{k.stack + k.spills:>9}{k.occupancy:>10.0%} "
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", choices=ARCHS, default=list(ARCHS), metavar="ARCH")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all kernels there")
    parser.add_argument("--all", action="store_true", help="a table of every architecture, not only of the last")
    args = parser.parse_args()
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("cuda-check: skipped, there is no nvcc on PATH")
        return 0
    import torch
    from torch.utils.cpp_extension import include_paths

    includes = [f"-I{ROOT / 'csrc'}", *(f"-I{p}" for p in include_paths())]
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    start = time.monotonic()
    kernels: list[Kernel] = []
    with tempfile.TemporaryDirectory() as name, concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        folder = Path(name)
        jobs = [pool.submit(compile_one, nvcc, s, arch, includes, folder) for arch in args.archs for s in sources]
        for job in jobs:
            kernels += job.result()
        loaded = []
        if torch.version.cuda is None:
            loaded = link_and_load(nvcc, [folder / f"{s.stem}-{args.archs[-1]}.o" for s in sources], folder)
            print(f"linked and loaded; kernels of: {', '.join(loaded)}")
    if not kernels:
        print("cuda-check: nvcc reported no kernel", file=sys.stderr)
        return 1
    print(table(sorted((k for k in kernels if args.all or k.arch == args.archs[-1]), key=lambda k: (k.source, k.name))))
    if args.json:
        args.json.write_text(json.dumps([asdict(k) for k in kernels], indent=1) + "\n")
    bad = [k for k in kernels if k.local and k.hot]
    slow = [k for k in kernels if k.local and not k.hot]
    print(
        f"{len(sources)} files, {len(kernels)} kernels over {len(args.archs)} architectures in "
        f"{time.monotonic() - start:.0f} s; {len(bad)} use local memory, and {len(slow)} of float64"
    )
    if bad:
        print(f"local memory or spills in:\n{table(bad)}", file=sys.stderr)
    refused = [k for k in kernels if k.refused]
    if refused:
        print(f"more static and dynamic shared memory than is granted in:\n{table(refused)}", file=sys.stderr)
    declared = {op for s in sources for op in re.findall(r'm\.impl\("(\w+)"', s.read_text())}
    missing = declared - set(loaded) if torch.version.cuda is None else set()
    if missing:
        print(f"not registered after loading: {', '.join(sorted(missing))}", file=sys.stderr)
    return 1 if bad or refused or missing else 0


if __name__ == "__main__":
    sys.exit(main())
