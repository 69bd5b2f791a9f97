"""Errors that ops raise reach Python whole, whatever the C++ library and the unwinder are linked like."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from zerosum_ext import _library

TESTS = Path(__file__).resolve().parent
CSRC = TESTS.parent / "csrc"
LIBRARIES = [part for part in (_library.CPU, _library.CUDA) if part.loaded]
COMPILER = shutil.which(os.environ.get("CXX", "g++"))

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
needs_readelf = pytest.mark.skipif(shutil.which("readelf") is None, reason="there is no readelf")


@pytest.fixture(scope="module")
def setup_names():
    """What setup.py defines; nothing is built."""
    setuptools = pytest.importorskip("setuptools")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(TESTS.parent)
        patch.setenv("ZEROSUM_EXT_PURE", "1")
        patch.setattr(setuptools, "setup", lambda **_: None)
        return runpy.run_path(str(TESTS.parent / "setup.py"))


@needs_readelf
@pytest.mark.skipif(not LIBRARIES, reason="no library is loaded")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda part: Path(part.file).name)
def test_the_libraries_share_the_unwinder(library, setup_names):
    setup_names["check_linked"](Path(library.file))


def exports_facets(library: Path) -> bool:
    """Whether a library offers the locale facets of its own libstdc++ to all others."""
    said = subprocess.run(["readelf", "--dyn-syms", "-W", str(library)], capture_output=True, text=True, check=True)
    return any("St7num_put" in line and " UND " not in line for line in said.stdout.splitlines())


CALLS = """
import json, sys, torch
torch.ops.load_library(sys.argv[1])
ops = torch.ops.zx_errors
said = []
for _ in range(3):
    for call in (lambda: ops.check(7), lambda: ops.torch_check(7), lambda: ops.torch_call(torch.zeros(2, 3))):
        try:
            call()
        except RuntimeError as error:
            said.append(str(error))
print(json.dumps(said))
"""

CHECK = "zerosum_ext: the number 7 is below 18446744073709551615, and 0.5!"


def build(tmp_path: Path, source: Path, flags: list[str]) -> Path:
    library = tmp_path / f"{source.stem}.so"
    includes = [f"-I{path}" for path in [CSRC, *cpp_extension.include_paths()]]
    libraries = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch_cpu", "-lc10"]
    command = [COMPILER, "-O1", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", *includes]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000ULL", str(source), "-o", str(library), *libraries, *flags]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def errors_of(library: Path) -> tuple[int, list[str]]:
    done = subprocess.run([sys.executable, "-c", CALLS, str(library)], capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout) if done.returncode == 0 else [done.stderr]


@needs_compiler
@needs_readelf
@pytest.mark.parametrize("static", [(), ("-static-libstdc++",)], ids=["shared", "static"])
def test_every_kind_of_error_arrives_whole(tmp_path, setup_names, static):
    library = build(tmp_path, TESTS / "errors.cpp", [*setup_names["LINK_FLAGS"], *static])
    assert ("libstdc++.so.6" in setup_names["needed"](library)) == (not static)
    setup_names["check_linked"](library)
    assert not exports_facets(library)
    status, said = errors_of(library)
    assert status == 0, said
    assert len(said) == 9
    for check, torch_check, torch_call in (said[i : i + 3] for i in (0, 3, 6)):
        assert check == CHECK
        assert re.fullmatch(r"torch_check, .*errors\.cpp:\d+, got 7", torch_check)
        assert re.fullmatch(r"aoti_torch_get_size\(.*\) API call failed at .*\.h, line \d+", torch_call)


@needs_compiler
@needs_readelf
def test_a_static_unwinder_is_refused(tmp_path, setup_names):
    library = build(tmp_path, TESTS / "errors.cpp", ["-static-libstdc++", "-static-libgcc"])
    with pytest.raises(SystemExit, match=r"does not need libgcc_s\.so\.1, but .*libtorch_cpu"):
        setup_names["check_linked"](library)


def test_torch_is_included_where_its_macros_are_replaced():
    for path in [*CSRC.rglob("*.h"), *CSRC.rglob("*.cpp"), *CSRC.rglob("*.cu"), *CSRC.rglob("*.cuh")]:
        text = path.read_text()
        includes = re.findall(r'^#include [<"](.*)[>"]', text, re.MULTILINE)
        first_of_torch = next((i for i, name in enumerate(includes) if name.startswith("torch/")), None)
        if path.name == "errors.h" or first_of_torch is None:
            continue
        assert {"errors.h", "torch_stable.h"} & set(includes[:first_of_torch]), f"{path.name}: torch before errors.h"
        assert not re.search(r"#include <(iostream|sstream|iomanip)>", text), path.name


@pytest.mark.skipif(not _library.CPU.loaded, reason="_C is not loaded")
def test_an_op_of_the_package_raises_its_text():
    scores = torch.zeros(3)
    with pytest.raises(RuntimeError, match=r"^zerosum_ext: no loss has the number 99$"):
        torch.ops.zerosum_ext.pair_loss(scores, scores, None, None, None, 99, 1.0, 0.0, 0.0, 2, False)
