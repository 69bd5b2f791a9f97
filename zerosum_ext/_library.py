"""Find and load the compiled libraries, and say what is loaded and why something is not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from zerosum_ext._version import __version__

_PACKAGE = Path(__file__).parent
#: The command that builds the compiled libraries anew, in the source folder.
REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."
#: The command that builds them into the source folder itself.
BUILD_IN_PLACE = "python setup.py build_ext --inplace"
# The ops that the Python sources call. A library that lacks one of them was built from other sources.
OPS = (
    "loss_names",
    "cpu_isa",
    "pair_loss",
    "macr_loss",
    "scale_gradients_",
    "scale_gradients",
    "mf_loss",
    "mf_gradient",
    "mf_step",
    "mf_train",
    "mf_train_sampled",
    "fold_in",
    "sample_negatives",
    "sample_negatives_at",
    "sample_positives",
    "unshuffle",
    "csr_build",
    "integer_ids",
    "text_ids",
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
    """One compiled library, which may be missing or out of date.

    Attributes:
        file: the file, or None.
        loaded: whether it is loaded and fits the Python sources.
        reason: why it is not.
        remedy: what to do about it.
        archs: the architectures that CUDA kernels were compiled for: sm_90 (machine code), compute_90 (PTX).
    """

    def __init__(self, stem: str) -> None:
        self.stem = stem
        self.loaded = False
        self.reason = ""
        self.remedy = ""
        self.archs: tuple[str, ...] = ()
        files = sorted(_PACKAGE.glob(f"{stem}.*so")) + sorted(_PACKAGE.glob(f"{stem}.*pyd"))
        self.file: Path | None = files[0] if files else None

    def load(self) -> None:
        """Load the file, or note why it does not load."""
        try:
            torch.ops.load_library(str(self.file))
            self.loaded = True
        except (OSError, RuntimeError) as error:
            self.reason = f"{self.file} does not load: {str(error).splitlines()[0]}"
            self.remedy = f"rebuild it for this torch ({torch.__version__}), in the source folder: {REBUILD}"

    def require(self, ops: Sequence[str]) -> None:
        """Treat a library that lacks one of these ops as not loaded: it is older than the Python sources."""
        missing = [op for op in ops if self.loaded and not hasattr(torch.ops.zerosum_ext, op)]
        if missing:
            self.loaded = False
            self.reason = f"{self.file} is older than the Python sources: it lacks {', '.join(missing)}"
            self.remedy = f"rebuild it, in the source folder: {REBUILD}"

    def require_losses(self, names: str, expected: str) -> None:
        """Take the library for one that is not loaded if it numbers the losses otherwise than _C does."""
        if names != expected:
            self.loaded = False
            self.reason = f"{self.file} was built from other sources than _C: it has the losses {names}, _C {expected}"
            self.remedy = f"with nvcc on PATH, in the source folder: FORCE_CUDA=1 {REBUILD}"

    def describe(self) -> dict[str, Any]:
        """Return what ``build_info`` says of this library."""
        out: dict[str, Any] = {"loaded": self.loaded, "file": str(self.file) if self.file else None}
        if not self.loaded:
            out |= {"reason": self.reason, "remedy": self.remedy}
        return out


def explain_missing(package: Path, path: Sequence[str]) -> tuple[str, str]:
    """Return why a package has no compiled library, and what to do.

    Args:
        package: the folder of the package that Python runs.
        path: the folders that Python looks for packages in, ``sys.path``.
    """
    root = package.parent
    if not ((root / "setup.py").is_file() and (root / "csrc").is_dir()):
        reason = "the package was installed without its compiled part"
        return reason, f"install a C++17 compiler (g++) and run, in the source folder: {REBUILD}"
    if other := _hidden(package, path, "_C"):
        return (
            f"Python runs the source folder {root}, which has no compiled library and hides the package that is "
            f"installed in {other}",
            f"start Python in another folder, or build the library here: {BUILD_IN_PLACE}",
        )
    return (
        f"Python runs the source folder {root}, which has no compiled library",
        f"build it there: {BUILD_IN_PLACE}; or install the package ({REBUILD}) and start Python in another folder, "
        "since the source folder hides an installed package",
    )


def explain_missing_cuda(package: Path, path: Sequence[str]) -> tuple[str, str]:
    """Return why a package has no CUDA kernels, and what to do. The arguments are those of :func:`explain_missing`."""
    if other := _hidden(package, path, "_C_cuda"):
        return (
            f"Python runs the package in {package.parent}, which has no CUDA kernels and hides the one in {other}, "
            "which has",
            "start Python in another folder (pytest instead of python -m pytest), or, with nvcc on PATH, build them "
            f"here: FORCE_CUDA=1 {BUILD_IN_PLACE}",
        )
    return (
        "the package was built without CUDA kernels",
        f"with nvcc on PATH, in the source folder: FORCE_CUDA=1 {REBUILD}",
    )


def _hidden(package: Path, path: Sequence[str], stem: str) -> Path | None:
    """Return where else on the path the package is installed with this compiled library."""
    for folder in path:
        other = Path(folder or ".").resolve() / package.name
        if other != package.resolve() and any(other.glob(f"{stem}.*")):
            return other.parent
    return None


def _load_cpu() -> Library:
    library = Library("_C")
    if library.file is None:
        library.reason, library.remedy = explain_missing(_PACKAGE, sys.path)
    else:
        library.load()
        library.require(OPS)
    if not library.loaded:
        warnings.warn(
            f"zerosum_ext runs on plain PyTorch, slowly: {library.reason}. To mend it: {library.remedy}",
            RuntimeWarning,
            stacklevel=2,
        )
    elif told := isa_obstacle():
        warnings.warn(told, RuntimeWarning, stacklevel=2)
    return library


def isa_obstacle() -> str:
    """Return why the loaded CPU kernels do not run the instruction set that is asked for, or an empty string."""
    asked = os.environ.get("ZEROSUM_EXT_ISA", "")
    runs = str(torch.ops.zerosum_ext.cpu_isa()) if asked else ""
    if asked == runs:
        return ""
    known = ("avx512", "avx2", "baseline")
    why = "this processor does not have it" if asked in known else f"expected one of {', '.join(known)}"
    return f"ZEROSUM_EXT_ISA={asked!r}: {why}; {runs} runs"


def _load_cuda(cpu: Library) -> Library:
    library = Library("_C_cuda")
    if library.file is None:
        library.reason, library.remedy = explain_missing_cuda(_PACKAGE, sys.path)
    elif torch.version.cuda is None:
        library.reason = f"torch {torch.__version__} is a CPU build"
        library.remedy = "install a CUDA build of torch"
    elif not cpu.loaded:
        library.reason = "_C, which defines the ops, is not loaded"
        library.remedy = cpu.remedy
    else:
        library.load()
        library.require(("cuda_archs", "cuda_loss_names"))
        if library.loaded:
            ops = torch.ops.zerosum_ext
            library.require_losses(ops.cuda_loss_names(), ops.loss_names())
        if library.loaded:
            library.archs = tuple(torch.ops.zerosum_ext.cuda_archs().split(","))
    return library


def runs_on(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Return whether kernels for these architectures run on a GPU of this compute capability.

    Machine code (sm_86) also runs on later minor versions of its major version. PTX (compute_86) runs on all later
    GPUs. Code with the features of one GPU (sm_90a) or of one family (sm_100f) runs nowhere else.
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
    """Return why the loaded CUDA kernels cannot run on this GPU, or an empty string if they can."""
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
    """Return the command that builds kernels for these GPUs."""
    capabilities = sorted({torch.cuda.get_device_capability(index) for index in indices})
    archs = ";".join(f"{major}.{minor}" for major, minor in capabilities)
    return f'with nvcc on PATH, in the source folder: TORCH_CUDA_ARCH_LIST="{archs}" FORCE_CUDA=1 {REBUILD}'


CPU = _load_cpu()
CUDA = _load_cuda(CPU)


def build_info() -> dict[str, Any]:
    """Return what is installed and loaded.

    Returns:
        A dictionary:

        - ``zerosum_ext``, ``python``, ``platform``, ``torch``: versions.
        - ``cpu``, ``cuda``: for each compiled library whether it is ``loaded`` and its ``file``. If it is not loaded,
          also the ``reason`` and the ``remedy``. For loaded CUDA kernels also the ``archs`` they were built for, and
          ``reason`` and ``remedy`` if they cannot run on one of the GPUs.
        - ``isa``: the instruction set of the CPU kernels, ``avx512``, ``avx2`` or ``baseline``; None without them.
        - ``losses``: the names of the compiled losses.
        - ``threads``: the number of torch's intra-op threads.
        - ``cuda_devices``: the names of the GPUs that torch sees.

    Example:
        >>> import zerosum_ext as zx
        >>> sorted(zx.build_info())
        ['cpu', 'cuda', 'cuda_devices', 'isa', 'losses', 'platform', 'python', 'threads', 'torch', 'zerosum_ext']
    """
    try:
        version = importlib.metadata.version("zerosum-ext")
    except importlib.metadata.PackageNotFoundError:
        version = __version__
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
