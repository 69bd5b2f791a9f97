"""Builds the compiled parts of zerosum_ext.

_C       CPU kernels and the schema of every op. Needs a C++17 compiler and the headers of torch >= 2.11.
_C_cuda  CUDA kernels. Built when nvcc is there and either torch is a CUDA build or FORCE_CUDA=1.

Both use only LibTorch's stable ABI, so one wheel serves every Python >= 3.10 and every torch >= 2.11.

Environment
  ZEROSUM_EXT_PURE=1     build no extension: the package runs on plain PyTorch
  FORCE_CUDA=1 | 0       build _C_cuda, or do not, whatever torch says
  CUDA_HOME              the CUDA toolkit, where the nvcc on PATH is not the one to take
  TORCH_CUDA_ARCH_LIST   architectures for nvcc, as in torch ("8.0;9.0+PTX"); else what nvcc knows of DEFAULT_ARCHS
  MAX_JOBS               parallel compile jobs
  ZEROSUM_EXT_DEBUG=1    keep symbols, and lines of the source in the kernels (for profilers)
  ZEROSUM_EXT_CXXFLAGS   more flags for the C++ compiler
  ZEROSUM_EXT_VARIANT    what the version of a wheel ends in: cu130 makes 0.2.0+cu130
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent.resolve()
# The oldest torch whose stable ABI the sources use (2.11.0), in the encoding of torch/headeronly/version.h.
TORCH_TARGET_VERSION = "0x020b000000000000ULL"
# GPUs of 8.6 and 8.9 run what was compiled for 8.0: no kernel here uses what these two added.
DEFAULT_ARCHS = "7.5;8.0;9.0;10.0;12.0"
NVCC_FLAGS = ["-O3", "-std=c++17", "--expt-relaxed-constexpr"]
# Both libraries throw. What a static library defines, such as a compiler's own libstdc++.a, stays their own business,
# and the unwinder is the process's: with a second one no exception is caught.
LINK_FLAGS = ["-Wl,--as-needed", "-Wl,--exclude-libs,ALL", "-shared-libgcc"]


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


def find_cuda_home() -> str | None:
    """The folder of the CUDA toolkit: CUDA_HOME, or where the nvcc on PATH says that it is."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return home if Path(home, "bin", "nvcc").exists() else None
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    # The nvcc on PATH may be a link or a script.
    said = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", "/dev/null"], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.*)$", said, re.MULTILINE)
    return str(Path(top[1]).resolve()) if top else None


def chosen_archs(nvcc: Path) -> list[str]:
    """Returns what torch tells nvcc to compile for, such as ["sm_90", "compute_90"], and sets what torch goes by.

    Without TORCH_CUDA_ARCH_LIST these are those of DEFAULT_ARCHS that this nvcc knows, and PTX of the highest, for GPUs
    that are newer. What torch or this nvcc do not know ends the build at once.
    """
    from torch.utils import cpp_extension

    said = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    known = re.findall(r"^compute_(\d+)$", said.stdout, re.MULTILINE)
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if not asked:
        archs = [arch for arch in DEFAULT_ARCHS.split(";") if arch.replace(".", "") in known]
        if not archs:
            sys.exit(
                f"setup.py: {nvcc} --list-gpu-arch names none of {DEFAULT_ARCHS}, but {said.stdout.split()} "
                f"{said.stderr}: set TORCH_CUDA_ARCH_LIST to what it compiles for, or FORCE_CUDA=0"
            )
        asked = ";".join(archs) + "+PTX"
    os.environ["TORCH_CUDA_ARCH_LIST"] = asked
    try:
        codes = re.findall(r",code=(\w+)", " ".join(cpp_extension._get_cuda_arch_flags()))
    except (ValueError, IndexError):  # a name that torch does not know; "native" on a machine without a GPU
        codes = []
    # (9.0a is an architecture of 9.0's compiler, and not in its list.)
    if not codes or (known and any(re.sub(r"\D", "", code) not in known for code in codes)):
        examples = " ".join(f"{n[:-1]}.{n[-1]}" for n in known) or DEFAULT_ARCHS
        sys.exit(f"setup.py: TORCH_CUDA_ARCH_LIST={asked!r}: torch and {nvcc} know {examples}, and +PTX after one")
    return codes


def compression(nvcc: Path) -> list[str]:
    """Returns the nvcc option for the smallest kernels, where each driver that can run them can also unpack them.

    By nvcc's documentation drivers older than CUDA 12.4 cannot. They run what CUDA 12 makes, but nothing of CUDA 13.
    """
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.", said)
    return ["--compress-mode=size"] if release and int(release[1]) >= 13 else []


def needed(library: Path) -> list[str]:
    """Returns the shared libraries that a library asks for."""
    said = subprocess.run(["readelf", "-dW", str(library)], capture_output=True, text=True, check=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.*)\]", said)


def check_linked(library: Path) -> None:
    """Ends the build unless a library shares the unwinder with the process; else its errors would end that."""
    if "libgcc_s.so.1" not in needed(library):
        sys.exit(
            f"setup.py: {library} does not need libgcc_s.so.1, but {needed(library)}: an error that it raises would "
            "end the process. Is there a -static-libgcc in CXX, LDFLAGS or the compiler's specs?"
        )


def stub_cuda_library() -> str:
    """Makes a libtorch_cuda.so to link against where torch is a CPU build, and returns its folder."""
    folder = tempfile.mkdtemp(prefix="zerosum_ext_stub_")
    source = ROOT / "csrc" / "cuda" / "libtorch_cuda_stub.c"
    command = [os.environ.get("CC", "gcc"), "-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so"]
    subprocess.run([*command, "-o", f"{folder}/libtorch_cuda.so", str(source)], check=True)
    return folder


def check_tools() -> None:
    """Ends the build where a compiler or Python's headers are missing, and says what to install or to do without."""
    compiler = os.environ.get("CXX", "").strip() or "c++"
    headers = Path(sysconfig.get_paths()["include"])
    if shutil.which(shlex.split(compiler)[0]) is None:
        missing = f"no C++ compiler was found ({compiler!r}; the variable CXX names another). Install one, such as g++"
    elif not (headers / "Python.h").is_file():
        missing = f"the headers of Python are not in {headers}. Install them (python3-dev)"
    else:
        return
    sys.exit(f"setup.py: {missing}, or set ZEROSUM_EXT_PURE=1 to install without compiled kernels, in plain PyTorch.")


def has_ninja() -> bool:
    """Returns whether ninja is there to compile on all cores; PATH is led to the one beside Python.

    Who calls VENV/bin/pip by its path has installed ninja there, but PATH need not know the folder.
    """
    beside = shutil.which("ninja", path=str(Path(sys.executable).parent))
    if shutil.which("ninja") is None and beside:
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(beside).parent)])
    return shutil.which("ninja") is not None


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
    check_tools()

    common = {"include_dirs": [str(ROOT / "csrc")], "py_limited_api": True}
    macros = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", "-DPy_LIMITED_API=0x030A0000"]
    # No -ffast-math and no -march: errno and traps are the only parts of IEEE arithmetic given up.
    flags = ["-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wall"]
    debug = env_flag("ZEROSUM_EXT_DEBUG")
    link_flags = LINK_FLAGS if debug else [*LINK_FLAGS, "-Wl,--strip-all"]
    ext_modules = [
        cpp_extension.CppExtension(
            "zerosum_ext._C",
            ["csrc/library.cpp", *sources("cpu", ".cpp")],
            extra_compile_args={"cxx": [*flags, *macros, *os.environ.get("ZEROSUM_EXT_CXXFLAGS", "").split()]},
            # Nothing of torch is linked by name: import torch has loaded it, and any torch >= 2.11 will do.
            extra_link_args=link_flags,
            **common,
        )
    ]

    force_cuda = env_flag("FORCE_CUDA")
    cuda_home = find_cuda_home()
    if force_cuda and cuda_home is None:
        sys.exit("setup.py: FORCE_CUDA=1 but no nvcc was found; put it on PATH or set CUDA_HOME")
    wanted = force_cuda if force_cuda is not None else (cuda_home is not None and torch.version.cuda is not None)
    cuda_sources = sources("cuda", ".cpp", ".cu")
    if wanted and cuda_sources:
        nvcc = Path(cuda_home, "bin", "nvcc")
        archs = ",".join(chosen_archs(nvcc))  # (which csrc/cuda/archs.cpp tells)
        nvcc_flags = [*NVCC_FLAGS, *compression(nvcc), *(["-lineinfo"] if debug else [])]
        # torch looks for CUDA only where it is itself a CUDA build, and takes a script named nvcc for the compiler.
        cpp_extension.CUDA_HOME = cuda_home
        stub = [] if torch.version.cuda else [f"-L{stub_cuda_library()}"]
        cuda = cpp_extension.CUDAExtension(
            "zerosum_ext._C_cuda",
            cuda_sources,
            extra_compile_args={
                "cxx": [*flags, *macros, "-DUSE_CUDA", f"-DZX_CUDA_ARCHS={archs}"],
                "nvcc": [*nvcc_flags, *macros, "-DUSE_CUDA"],
            },
            extra_link_args=[*stub, *link_flags],
            **common,
        )
        # The CUDA runtime is linked in: then the library does not ask for the very version that it was built with.
        taken = {"cudart": "cudart_static", "c10_cuda": None}
        cuda.libraries = [name for name in (taken.get(n, n) for n in cuda.libraries) if name] + ["rt", "dl", "pthread"]
        ext_modules.append(cuda)

    class BuildExtension(cpp_extension.BuildExtension):
        def build_extension(self, extension) -> None:
            super().build_extension(extension)
            check_linked(Path(self.get_ext_fullpath(extension.name)))

    return ext_modules, {"build_ext": BuildExtension.with_options(use_ninja=has_ninja())}


def variant() -> dict[str, dict[str, str]]:
    """Returns the options that end the version in a wheel's variant, or none where there is none."""
    name = os.environ.get("ZEROSUM_EXT_VARIANT", "").strip()
    if name and not re.fullmatch(r"[a-z0-9]+(\.[a-z0-9]+)*", name):
        sys.exit(f"setup.py: ZEROSUM_EXT_VARIANT={name!r}: expected lower-case letters and digits, such as cu130")
    return {"egg_info": {"tag_build": f"+{name}"}} if name else {}


ext_modules, cmdclass = extensions()
setup(ext_modules=ext_modules, cmdclass=cmdclass, options={"bdist_wheel": {"py_limited_api": "cp310"}, **variant()})
