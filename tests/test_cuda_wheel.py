"""A wheel with CUDA kernels on a CPU build of torch: it imports, works, and says why the kernels are not loaded."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zerosum_ext as zx
from zerosum_ext import _library as _extension

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is not a CPU build")

STUB = Path(__file__).resolve().parents[1] / "csrc" / "cuda" / "libtorch_cuda_stub.c"
CODE = """
import json, torch, zerosum_ext as zx
scores = torch.randn(50, requires_grad=True)
zx.zerosum_loss(scores, scores.detach().flip(0)).backward()
info = zx.build_info()
finite = bool(scores.grad.isfinite().all())
print(json.dumps({"file": zx.__file__, "cpu": info["cpu"]["loaded"], "cuda": info["cuda"], "finite": finite}))
"""


@pytest.fixture
def installed(tmp_path):
    """The package as a wheel with CUDA installs it, _C_cuda needing a libtorch_cuda.so that is not there."""
    package = Path(zx.__file__).parent
    shutil.copytree(package, tmp_path / "site" / "zerosum_ext", ignore=shutil.ignore_patterns("__pycache__"))
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        pytest.skip("there is no C compiler")
    library = tmp_path / "site" / "zerosum_ext" / "_C_cuda.abi3.so"
    library.unlink(missing_ok=True)
    (tmp_path / "kernels.c").write_text(
        "int aoti_torch_get_current_cuda_stream(int, void**);\n"
        "int launch(void) { void* stream; return aoti_torch_get_current_cuda_stream(0, &stream); }\n"
    )
    stub = tmp_path / "libtorch_cuda.so"
    shared = [compiler, "-shared", "-fPIC"]
    soname = "-Wl,-soname,libtorch_cuda.so"
    subprocess.run([*shared, soname, "-o", str(stub), str(STUB)], check=True)
    command = [*shared, "-o", str(library), str(tmp_path / "kernels.c"), f"-L{tmp_path}", "-ltorch_cuda"]
    subprocess.run(command, check=True)
    stub.unlink()  # as on the user's machine
    return tmp_path / "site"


@pytest.mark.skipif(not _extension.CPU.loaded, reason="needs _C, which is not loaded")
def test_it_works_and_says_why(installed, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE], env=env, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert Path(said["file"]).parents[1] == installed
    assert said["cpu"]
    assert said["finite"]
    assert not said["cuda"]["loaded"]
    assert said["cuda"]["file"] == str(installed / "zerosum_ext" / "_C_cuda.abi3.so")
    assert said["cuda"]["reason"] == f"torch {torch.__version__} is a CPU build"


def test_the_library_would_not_load(installed):
    """Else the test above would prove nothing."""
    with pytest.raises(OSError, match=r"libtorch_cuda\.so"):
        ctypes.CDLL(str(installed / "zerosum_ext" / "_C_cuda.abi3.so"))
