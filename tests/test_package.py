"""The names that others rely on, and what importing the package costs."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import zerosum_ext as zx
from zerosum_ext import _library


def test_every_public_name_is_there():
    for name in zx.__all__:
        assert getattr(zx, name) is not None
    assert set(zx.__all__) <= set(dir(zx))


@pytest.mark.parametrize("name", sorted(zx._LAZY))
def test_modules_come_when_they_are_asked_for(name):
    assert getattr(zx, name) is importlib.import_module(f"zerosum_ext.{zx._LAZY[name]}")
    assert name in dir(zx)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = zx.nothing


def test_importing_the_package_draws_in_nothing_heavy():
    code = (
        "import sys, zerosum_ext\n"
        "heavy = {'matplotlib', 'pandas', 'tensorboard', 'pyarrow', 'torch._dynamo', 'safetensors'}\n"
        "heavy |= {'zerosum_ext.experiments.runs', 'zerosum_ext.experiments.plots'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_children_of_the_tests_meet_the_package_under_test():
    code = "import zerosum_ext; print(zerosum_ext.__file__); print(zerosum_ext.build_info()['cpu'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [zx.__file__, str(zx.build_info()["cpu"])]


@pytest.fixture
def source_folder(tmp_path):
    """The Python sources as they are in a source folder in which no library is built."""
    folder = tmp_path / "source"
    shutil.copytree(Path(zx.__file__).parent, folder / "zerosum_ext", ignore=shutil.ignore_patterns("*.so", "*.pyd"))
    (folder / "csrc").mkdir()
    (folder / "setup.py").touch()
    return folder


def warning_in(folder, *path):
    """What a Python that is started in a folder, with further folders in its path, warns of."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [sys.executable, "-c", "import zerosum_ext; print(zerosum_ext.__file__)"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(folder / "zerosum_ext" / "__init__.py")
    return done.stderr


def test_a_source_folder_that_hides_the_installed_package_says_so(source_folder, tmp_path):
    installed = tmp_path / "site-packages"
    (installed / "zerosum_ext").mkdir(parents=True)
    (installed / "zerosum_ext" / "_C.abi3.so").touch()
    said = warning_in(source_folder, installed)
    assert "runs on plain PyTorch" in said
    assert f"hides the package that is installed in {installed}" in said
    assert "start Python in another folder" in said


def test_a_source_folder_without_a_library_says_how_to_build_it(source_folder):
    said = warning_in(source_folder)
    assert f"Python runs the source folder {source_folder}, which has no compiled library" in said
    assert _library.BUILD_IN_PLACE in said


def test_an_installed_package_without_a_library_says_what_it_needs(tmp_path):
    reason, remedy = _library.explain_missing(tmp_path / "zerosum_ext", [str(tmp_path)])
    assert reason == "the package was installed without its compiled part"
    assert remedy.endswith(_library.REBUILD)


def test_a_library_older_than_the_sources_says_how_to_rebuild_it():
    library = _library.Library("_C")
    library.loaded = True
    library.require(("cpu_isa", "an_op_of_tomorrow"))
    assert not library.loaded
    assert library.reason.endswith(
        "is older than the Python sources: it lacks "
        + ", ".join(([] if _library.CPU.loaded else ["cpu_isa"]) + ["an_op_of_tomorrow"])
    )
    assert library.remedy == f"rebuild it, in the source folder: {_library.REBUILD}"
