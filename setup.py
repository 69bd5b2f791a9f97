"""Builds the compiled parts of zerosum_ext.

_C       CPU kernels and the schema of every op. Needs a C++17 compiler and the headers of torch >= 2.11.
_C_cuda  CUDA kernels. Built when nvcc is there and either torch is a CUDA build or FORCE_CUDA=1.

Both use only LibTorch's stable ABI, so one wheel serves every Python >= 3.10 and every torch >= 2.11.

Environment
  ZEROSUM_EXT_PURE=1     build no extension: the package runs on plain PyTorch
  FORCE_CUDA=1 | 0       build _C_cuda, or do not, whatever torch says
  TORCH_CUDA_ARCH_LIST   architectures for nvcc, as in torch ("8.0;9.0+PTX")
  MAX_JOBS               parallel compile jobs
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent.resolve()
# The oldest torch whose stable ABI the sources use (2.11.0), in the encoding of torch/headeronly/version.h.
TORCH_TARGET_VERSION = "0x020b000000000000ULL"
DEFAULT_ARCHS = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"


def env_flag(name: str) -> bool | None:
    """Returns the environment's flag as True or False, or None where it is not set."""
    value = os.environ.get(name, "").strip().lower()
    if value == "":
        return None
    if value in ("1", "on", "true", "yes"):
        return True
    if value in ("0", "off", "false", "no"):
        return False
    sys.exit(f"setup.py: {name}={value!r}: expected 1 or 0")


def sources(folder: str, *suffixes: str) -> list[str]:
    """Every source file of a folder below csrc, relative to the root, in a fixed order."""
    found = [p for s in suffixes for p in (ROOT / "csrc" / folder).glob(f"*{s}")]
    return sorted(str(p.relative_to(ROOT)) for p in found)


def stub_cuda_library() -> str:
    """Makes an empty libtorch_cuda.so to link against where torch is a CPU build.

    Every symbol of _C_cuda is looked up at run time in the libtorch_cuda.so of the user's torch; the stub
    only records that soname.
    """
    folder = tempfile.mkdtemp(prefix="zerosum_ext_stub_")
    source = Path(folder, "stub.c")
    source.write_text("")
    command = [os.environ.get("CC", "gcc"), "-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so"]
    subprocess.run([*command, "-o", f"{folder}/libtorch_cuda.so", str(source)], check=True)
    return folder


def extensions() -> tuple[list, dict]:
    if env_flag("ZEROSUM_EXT_PURE"):
        return [], {}
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        sys.exit(
            f"setup.py: torch is needed to build zerosum_ext ({error}). Install torch >= 2.11 first, or set "
            "ZEROSUM_EXT_PURE=1 to install without compiled kernels."
        )

    common = {"include_dirs": [str(ROOT / "csrc")], "py_limited_api": True}
    macros = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", "-DPy_LIMITED_API=0x030A0000"]
    # No -ffast-math and no -march: errno and traps are the only parts of IEEE arithmetic given up.
    flags = ["-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wall"]
    ext_modules = [
        cpp_extension.CppExtension(
            "zerosum_ext._C",
            ["csrc/library.cpp", *sources("cpu", ".cpp")],
            extra_compile_args={"cxx": [*flags, *macros, *os.environ.get("ZEROSUM_EXT_CXXFLAGS", "").split()]},
            # Nothing of torch is linked by name: import torch has loaded it, and any torch >= 2.11 will do.
            extra_link_args=["-Wl,--as-needed"],
            **common,
        )
    ]

    force_cuda = env_flag("FORCE_CUDA")
    nvcc = shutil.which("nvcc") or (cpp_extension.CUDA_HOME and f"{cpp_extension.CUDA_HOME}/bin/nvcc")
    has_nvcc = bool(nvcc) and Path(str(nvcc)).exists()
    if force_cuda and not has_nvcc:
        sys.exit("setup.py: FORCE_CUDA=1 but no nvcc was found; put it on PATH or set CUDA_HOME")
    wanted = force_cuda if force_cuda is not None else (has_nvcc and torch.version.cuda is not None)
    cuda_sources = sources("cuda", ".cu")
    if wanted and cuda_sources:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHS)
        os.environ.setdefault("CUDA_HOME", str(Path(str(nvcc)).resolve().parent.parent))
        stub = [] if torch.version.cuda else [f"-L{stub_cuda_library()}"]
        ext_modules.append(
            cpp_extension.CUDAExtension(
                "zerosum_ext._C_cuda",
                cuda_sources,
                extra_compile_args={
                    "cxx": [*flags, *macros, "-DUSE_CUDA"],
                    "nvcc": [
                        "-O3",
                        "-std=c++17",
                        "-lineinfo",
                        "--expt-relaxed-constexpr",
                        *macros,
                        "-DUSE_CUDA",
                    ],
                },
                extra_link_args=[*stub, "-Wl,--as-needed"],
                **common,
            )
        )
    return ext_modules, {"build_ext": cpp_extension.BuildExtension.with_options(use_ninja=bool(shutil.which("ninja")))}


ext_modules, cmdclass = extensions()
setup(ext_modules=ext_modules, cmdclass=cmdclass, options={"bdist_wheel": {"py_limited_api": "cp310"}})
