"""The names that others rely on, and what importing the package costs."""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zerosum_ext as zx
from zerosum_ext import _library


def test_every_public_name_is_there():
    for name in zx.__all__:
        assert getattr(zx, name) is not None
    assert set(zx.__all__) <= set(dir(zx))


@pytest.mark.parametrize("name", sorted(zx._MODULES))
def test_modules_come_when_they_are_asked_for(name):
    assert getattr(zx, name) is importlib.import_module(f"zerosum_ext.{zx._MODULES[name]}")
    assert name in dir(zx)


@pytest.mark.parametrize("name", sorted(zx._HOMES))
def test_names_come_from_the_module_that_the_table_says(name):
    assert getattr(zx, name) is getattr(importlib.import_module(f"zerosum_ext.{zx._HOMES[name]}"), name)
    assert (name in zx.__all__) is (name != "compare")  # which would draw in the experiments


def test_type_checkers_see_what_the_tables_load():
    """The imports under TYPE_CHECKING and the tables name the same things at the same places."""
    tree = ast.parse(Path(zx.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen: dict[str, str] = {}
    for node in block.body:
        home = node.module.removeprefix("zerosum_ext").removeprefix(".")
        for alias in node.names:
            names = importlib.import_module(node.module).__all__ if alias.name == "*" else [alias.name]
            seen |= dict.fromkeys(names, home)
    modules = {name: ".".join(filter(None, (seen.pop(name, "missing"), name))) for name in zx._MODULES}
    assert modules == zx._MODULES
    assert seen == zx._HOMES
    # compare draws in the experiments, so that a star import leaves it out.
    assert set(zx.__all__) == {*zx._HOMES, "__version__", "datasets", "functional", "metrics"} - {"compare"}


@pytest.mark.parametrize("name", ["nothing", "__wrapped__"])
def test_an_unknown_name_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
        getattr(zx, name)


def test_what_a_room_misses_is_not_taken_for_an_unknown_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "zerosum_ext.experiments.plots", None)
    monkeypatch.delitem(vars(zx), "plots", raising=False)
    with pytest.raises(AttributeError):  # the module itself is not there
        _ = zx.plots

    def fails(name):
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr(zx.importlib, "import_module", fails)
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):
        _ = zx.plots


def run_python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_a_bare_import_loads_nothing_and_the_first_name_its_room():
    code = """if True:
        import sys, zerosum_ext as zx
        print("torch" in sys.modules, "numpy" in sys.modules)
        zx.ZerosumLoss, zx.functional
        print("torch" in sys.modules, "zerosum_ext.models" in sys.modules, "ZerosumLoss" in vars(zx))
    """
    assert run_python(code) == ["False", "False", "True", "False", "True"]


def test_ops_are_registered_at_once_where_torch_is_loaded():
    code = "import torch, zerosum_ext; print(hasattr(torch.ops.zerosum_ext, 'pair_loss'))"
    assert run_python(code) == [str(_library.CPU.loaded)]


def test_everything_can_be_loaded_at_once():
    code = "import zerosum_ext as zx; print(set(zx.__all__) <= set(vars(zx)), 'evaluate' in vars(zx))"
    assert run_python(code, EAGER_IMPORT="1") == ["True", "True"]


def test_a_compiled_function_may_be_the_first_to_ask_for_a_name():
    code = """if True:
        import torch, zerosum_ext as zx
        compiled = torch.compile(lambda p, n: zx.bpr_loss(p, n), backend="eager", fullgraph=True)
        print(float(compiled(torch.zeros(3), torch.zeros(3))))
    """
    assert run_python(code) == [str(float(zx.bpr_loss(torch.zeros(3), torch.zeros(3))))]


def test_importing_the_package_draws_in_nothing_heavy():
    code = (
        "import sys, torch, zerosum_ext\n"
        "from zerosum_ext import *\n"
        "heavy = {'matplotlib', 'pandas', 'tensorboard', 'pyarrow', 'torch._dynamo', 'safetensors'}\n"
        "heavy |= {'zerosum_ext.experiments.runs', 'zerosum_ext.experiments.plots'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "import zerosum_ext.experiments.runs\n"  # what `zerosum-ext train` loads
        "slow = {'matplotlib', 'pandas', 'tensorboard', 'torch._dynamo', 'scipy.stats', 'scipy.optimize'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]


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
        [sys.executable, "-c", "import zerosum_ext; print(zerosum_ext.__file__); zerosum_ext.bpr_loss"],
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


def test_a_package_without_cuda_kernels_that_hides_one_with_them_says_so(tmp_path):
    here, installed = tmp_path / "sources", tmp_path / "site-packages"
    for folder in (here, installed):
        (folder / "zerosum_ext").mkdir(parents=True)
        (folder / "zerosum_ext" / "_C.abi3.so").touch()
    path = [str(here), str(installed)]
    assert _library.explain_missing_cuda(here / "zerosum_ext", path)[0] == "the package was built without CUDA kernels"
    (installed / "zerosum_ext" / "_C_cuda.so").touch()
    reason, remedy = _library.explain_missing_cuda(here / "zerosum_ext", path)
    assert reason == (
        f"Python runs the package in {here}, which has no CUDA kernels and hides the one in {installed}, which has"
    )
    assert "pytest instead of python -m pytest" in remedy
    reason, remedy = _library.explain_missing_cuda(installed / "zerosum_ext", path[1:])
    assert "FORCE_CUDA=1" in remedy


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
