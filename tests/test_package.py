"""The names that others rely on, and what importing the package costs."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import zerosum_ext as zx


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
        "heavy = {'matplotlib', 'pandas', 'tensorboard', 'pyarrow'}\n"
        "heavy |= {'zerosum_ext.experiments.runs', 'zerosum_ext.experiments.plots'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_children_of_the_tests_meet_the_package_under_test():
    code = "import zerosum_ext; print(zerosum_ext.__file__); print(zerosum_ext.build_info()['cpu'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [zx.__file__, str(zx.build_info()["cpu"])]
