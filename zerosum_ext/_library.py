"""Finds and loads the compiled libraries, and says what is loaded and why something is not."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_PACKAGE = Path(__file__).parent
#: The command that builds the compiled libraries anew, in the source folder.
REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."
# What the Python sources call; a library without one of them was built from other sources.
OPS = (
    "loss_names",
    "cpu_isa",
    "pair_loss",
    "macr_loss",
    "mf_loss",
    "mf_gradient",
    "mf_step",
    "mf_train",
    "mf_train_sampled",
    "sample_negatives",
    "sample_positives",
    "row_filter",
    "has_items",
    "rank_factors",
    "rank_scores",
    "user_metrics",
    "list_metrics",
    "csr_score_moments",
    "csr_weighted_columns",
    "graph_propagate",
    "graph_dropout",
)


class Library:
    """One compiled library: its file, whether it is loaded, and otherwise the reason and the remedy."""

    def __init__(self, stem: str) -> None:
        self.stem = stem
        self.loaded = False
        self.reason = ""
        self.remedy = ""
        self.archs: tuple[str, ...] = ()  # what CUDA kernels were compiled for: sm_90 (machine code), compute_90 (PTX)
        files = sorted(_PACKAGE.glob(f"{stem}.*so")) + sorted(_PACKAGE.glob(f"{stem}.*pyd"))
        self.file: Path | None = files[0] if files else None

    def load(self) -> None:
        try:
            torch.ops.load_library(str(self.file))
            self.loaded = True
        except (OSError, RuntimeError) as error:
            self.reason = f"{self.file} does not load: {str(error).splitlines()[0]}"
            self.remedy = f"rebuild it for this torch ({torch.__version__}): {REBUILD}"

    def require(self, ops: Sequence[str]) -> None:
        """Takes a library that lacks one of these ops for one that is not loaded."""
        missing = [op for op in ops if self.loaded and not hasattr(torch.ops.zerosum_ext, op)]
        if missing:
            self.loaded = False
            self.reason = f"{self.file} is older than the Python sources: it lacks {', '.join(missing)}"
            self.remedy = f"rebuild it: {REBUILD}"

    def describe(self) -> dict[str, Any]:
        out: dict[str, Any] = {"loaded": self.loaded, "file": str(self.file) if self.file else None}
        if not self.loaded:
            out |= {"reason": self.reason, "remedy": self.remedy}
        return out


def _load_cpu() -> Library:
    library = Library("_C")
    if library.file is None:
        library.reason = "the package was installed without its compiled part"
        library.remedy = f"install a C++17 compiler (g++) and run, in the source folder: {REBUILD}"
    else:
        library.load()
        library.require(OPS)
    if not library.loaded:
        warnings.warn(
            f"zerosum_ext runs on plain PyTorch, slowly: {library.reason}. To mend it: {library.remedy}",
            RuntimeWarning,
            stacklevel=2,
        )
    return library


def _load_cuda(cpu: Library) -> Library:
    library = Library("_C_cuda")
    if library.file is None:
        library.reason = "the package was built without CUDA kernels"
        library.remedy = f"with nvcc on PATH, in the source folder: FORCE_CUDA=1 {REBUILD}"
    elif torch.version.cuda is None:
        library.reason = f"torch {torch.__version__} is a CPU build"
        library.remedy = "install a CUDA build of torch"
    elif not cpu.loaded:
        library.reason = "_C, which defines the ops, is not loaded"
        library.remedy = cpu.remedy
    else:
        library.load()
        library.require(("cuda_archs",))
        if library.loaded:
            library.archs = tuple(torch.ops.zerosum_ext.cuda_archs().split(","))
    return library


def runs_on(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether something compiled for these architectures runs on a GPU of this compute capability.

    Machine code (sm_86) runs on later minor versions of its major one as well, PTX (compute_86) on all that is later.
    What is compiled with features of one GPU (sm_90a) or of its family (sm_100f) runs nowhere else.
    """
    for arch in archs:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
        if found is None:
            continue
        kind, major, minor, features = found.groups()
        built = int(major), int(minor)
        if features == "a":
            runs = built == capability
        else:
            same = built[0] == capability[0] or (kind == "compute" and not features)
            runs = same and built <= capability
        if runs:
            return True
    return False


def gpu_obstacle(index: int) -> str:
    """Why the CUDA kernels, which are loaded, do not run on this GPU; nothing where they do."""
    if not CUDA.loaded:
        return ""
    capability = torch.cuda.get_device_capability(index)
    if runs_on(CUDA.archs, capability):
        return ""
    return (
        f"cuda:{index} ({torch.cuda.get_device_name(index)}) has compute capability {capability[0]}.{capability[1]}, "
        f"and the CUDA kernels were built for {', '.join(CUDA.archs)}"
    )


def gpu_remedy(*indices: int) -> str:
    """How kernels for these GPUs are had."""
    capabilities = sorted({torch.cuda.get_device_capability(index) for index in indices})
    archs = ";".join(f"{major}.{minor}" for major, minor in capabilities)
    return f'with nvcc on PATH, in the source folder: TORCH_CUDA_ARCH_LIST="{archs}" FORCE_CUDA=1 {REBUILD}'


CPU = _load_cpu()
CUDA = _load_cuda(CPU)


def build_info() -> dict[str, Any]:
    """What is installed and loaded.

    Returns:
        A dictionary with the versions of zerosum_ext, Python and torch; ``cpu`` and ``cuda``: whether that compiled
        library is ``loaded``, its ``file``, and otherwise the ``reason`` and a ``remedy``; of CUDA kernels that are
        loaded the ``archs`` that they were built for, and, where they run on some GPU not at all, ``reason`` and
        ``remedy`` of that; ``isa``: the instruction set of the CPU kernels (``avx512``, ``avx2`` or ``baseline``; None
        without them); ``losses``: the names of the compiled losses; ``threads``: torch's intra-op threads;
        ``cuda_devices``: names of the GPUs torch sees.
    """
    try:
        version = importlib.metadata.version("zerosum-ext")
    except importlib.metadata.PackageNotFoundError:
        from zerosum_ext import __version__ as version
    ops, cuda, gpus = torch.ops.zerosum_ext, CUDA.describe(), range(torch.cuda.device_count())
    if CUDA.loaded:
        cuda["archs"] = list(CUDA.archs)
        obstacles = {index: why for index in gpus if (why := gpu_obstacle(index))}
        if obstacles:
            cuda |= {"reason": "; ".join(obstacles.values()), "remedy": gpu_remedy(*gpus)}
    return {
        "zerosum_ext": version,
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "torch": torch.__version__,
        "cpu": CPU.describe(),
        "cuda": cuda,
        "isa": ops.cpu_isa() if CPU.loaded else None,
        "losses": ops.loss_names().split(",") if CPU.loaded else [],
        "threads": torch.get_num_threads(),
        "cuda_devices": [torch.cuda.get_device_name(index) for index in gpus],
    }
