"""What setup.py asks nvcc for, with a script in the place of nvcc."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

setuptools = pytest.importorskip("setuptools")
from torch.utils import cpp_extension  # noqa: E402

SETUP = Path(__file__).resolve().parents[1] / "setup.py"
KNOWN = {
    "12.6": "50 52 53 60 61 62 70 72 75 80 86 87 89 90",
    "12.8": "50 52 53 60 61 62 70 72 75 80 86 87 89 90 100 101 120",
    "13.0": "75 80 86 87 88 89 90 100 110 103 120 121",
}


@pytest.fixture
def cuda_extension(monkeypatch, tmp_path):
    """Runs setup.py beside an nvcc of this version, which knows these architectures; the extension of the kernels."""
    monkeypatch.chdir(SETUP.parent)
    for name in ("FORCE_CUDA", "ZEROSUM_EXT_PURE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    # setup.py makes a library to link against where torch has none.
    monkeypatch.setattr("torch.version.cuda", "13.0")

    def run(known: str, version: str = "13.0") -> setuptools.Extension:
        nvcc = tmp_path / "bin" / "nvcc"
        nvcc.parent.mkdir()
        lines = "\n".join(f"compute_{n}" for n in known.split())
        release = f"Cuda compilation tools, release {version}, V{version}.88"
        nvcc.write_text(
            f'#!/bin/sh\n[ "$1" = --list-gpu-arch ] && echo "{lines}"\n[ "$1" = --version ] && echo "{release}"\n'
        )
        nvcc.chmod(0o755)
        said = {}
        monkeypatch.setattr(setuptools, "setup", said.update)
        monkeypatch.setenv("CUDA_HOME", str(tmp_path))
        runpy.run_path(str(SETUP))
        cuda = said["ext_modules"][1]
        assert "csrc/cuda/archs.cpp" in cuda.sources
        return cuda

    return run


@pytest.fixture
def archs(cuda_extension):
    """Runs setup.py beside an nvcc that knows these architectures; what torch and the library are told of them."""

    def run(known: str) -> tuple[str, str]:
        cuda = cuda_extension(known)
        macro = next(flag for flag in cuda.extra_compile_args["cxx"] if flag.startswith("-DZX_CUDA_ARCHS="))
        return cpp_extension.os.environ["TORCH_CUDA_ARCH_LIST"], macro.partition("=")[2]

    return run


@pytest.mark.parametrize("said", [None, ""])
@pytest.mark.parametrize(
    ("version", "kept"),
    [
        ("12.6", "7.5;8.0;9.0+PTX"),
        ("12.8", "7.5;8.0;9.0;10.0;12.0+PTX"),
        ("13.0", "7.5;8.0;9.0;10.0;12.0+PTX"),
    ],
)
def test_nvcc_is_asked_for_what_it_knows(monkeypatch, archs, version, kept, said):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", said or "")  # put back afterwards
    if said is None:
        monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    numbers = kept.replace(".", "").removesuffix("+PTX").split(";")
    asked, macro = archs(KNOWN[version])
    assert asked == kept
    assert sorted(macro.split(",")) == sorted([f"sm_{n}" for n in numbers] + [f"compute_{numbers[-1]}"])


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("8.6 12.0+PTX", ["compute_120", "sm_120", "sm_86"]),
        ("7.5 9.0+PTX", ["compute_90", "sm_75", "sm_90"]),
        ("9.0a", ["sm_90a"]),
    ],
)
def test_what_the_user_wants_is_left_as_it_is(monkeypatch, archs, wanted, told):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    asked, macro = archs(KNOWN["12.8"])
    assert asked == wanted
    assert sorted(macro.split(",")) == told


@pytest.mark.parametrize("wanted", ["7.0", "sm90", "native", "9.0;13.7", ";"])
def test_architectures_that_cannot_be_compiled_for_end_the_build_at_once(monkeypatch, archs, wanted):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    with pytest.raises(SystemExit, match=rf"TORCH_CUDA_ARCH_LIST={wanted!r}.*know 7\.5 9\.0"):
        archs("75 90")


def test_an_nvcc_that_knows_none_of_them(monkeypatch, archs):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    with pytest.raises(SystemExit, match=r"--list-gpu-arch names none of 7\.5;8\.0"):
        archs("35 37")


@pytest.mark.parametrize(
    ("version", "debug", "expected"),
    [
        # Drivers that run what CUDA 12 makes may be older than 12.4, whose drivers are the first that unpack it.
        ("12.6", "", []),
        ("12.9", "", []),
        ("13.0", "", ["--compress-mode=size"]),
        ("14.1", "", ["--compress-mode=size"]),
        ("13.0", "1", ["--compress-mode=size", "-lineinfo"]),
        ("unknown", "", []),
    ],
)
def test_kernels_are_packed_as_every_driver_that_runs_them_unpacks_them(
    monkeypatch, cuda_extension, version, debug, expected
):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    monkeypatch.setenv("ZEROSUM_EXT_DEBUG", debug)
    flags = cuda_extension(KNOWN["12.6"], version).extra_compile_args["nvcc"]
    assert [flag for flag in flags if flag.startswith(("--compress-mode", "-lineinfo"))] == expected
