"""The guide docs/adding_a_loss.md does what it says, and what is generated from the records is current."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zerosum_ext import reference

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs" / "adding_a_loss.md"

pytestmark = pytest.mark.skipif(not GUIDE.is_file(), reason="the documentation is not here")


def blocks(language: str) -> list[str]:
    """The blocks of code in the guide's part on C++."""
    text = GUIDE.read_text().partition("## In C++")[2]
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


@pytest.fixture(scope="module")
def generator():
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("ruff, which formats what is generated, is not installed")
    spec = importlib.util.spec_from_file_location("generate_losses", ROOT / "tools" / "generate_losses.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_generated_is_current(generator):
    for path, text in generator.contents().items():
        assert path.read_text() == text, f"{path}: run python tools/generate_losses.py"


@pytest.fixture(scope="module")
def copy(tmp_path_factory, generator):
    """A copy of the sources, without compiled libraries, to which the guide was applied."""
    root = tmp_path_factory.mktemp("copy")
    for folder in ("zerosum_ext", "csrc/common", "tools", "docs"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    struct, line = blocks("cpp")
    definition, record = blocks("python")
    header = root / "csrc/common/losses.h"
    text, before = header.read_text(), "// ---- element losses of two positives and two negatives of one user"
    assert before in text
    text = text.replace(before, f"{struct}\n{before}", 1)
    header.write_text(re.sub(r"(#define ZX_PAIR_LOSSES\(X\) +\\\n)", rf"\1{line.rstrip()} \\\n", text))
    for path, added in (("reference/losses.py", definition), ("losses/records.py", record)):
        with (root / "zerosum_ext" / path).open("a") as file:
            file.write(f"\n\n{added}")
    run(root, "tools/generate_losses.py")
    return root


def run(root: Path, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", *arguments]
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "HOME": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_loss_added_as_the_guide_says_is_everywhere(copy):
    program = """if True:
        import torch
        import zerosum_ext as zx
        from zerosum_ext import testing

        pos, neg = torch.tensor([0.0, 2.0]), torch.tensor([[0.5, -3.0], [0.0, 1.5]])
        expected = torch.tensor([[1.125, 0.0], [0.0, 0.125]])
        assert torch.equal(zx.smooth_hinge_loss(pos, neg, reduction="none"), expected)
        assert torch.equal(zx.functional.smooth_hinge_loss(pos, neg, margin=1.0, reduction="none"), expected)
        assert torch.equal(zx.SmoothHingeLoss(reduction="none")(pos, neg), expected)
        assert str(zx.get_loss("smooth_hinge", margin=2)) == "SmoothHingeLoss(margin=2, reduction='mean')"
        assert testing.check_named_loss("smooth_hinge").passed
        assert "smooth_hinge" in {case.loss for case in testing.loss_cases()}
        assert "margin" in zx.smooth_hinge_loss.__doc__
        users = torch.zeros(2, dtype=torch.int64)
        value = zx.mf_loss(torch.ones(1, 3), torch.eye(3), users, users, users + 1, loss="smooth_hinge")
        assert float(value) == 0.5
        print("smooth_hinge_loss" in zx.__all__, "SmoothHingeLoss" in zx.__all__)
    """
    assert run(copy, "-c", program).split() == ["True", "True"]
    assert "| `smooth_hinge_loss` | `max(0, margin - p + n)^2 / 2` |" in (copy / "docs/losses.md").read_text()
    assert run(copy, "tools/generate_losses.py", "--check") == ""


@pytest.mark.slow
def test_its_struct_compiles_and_is_the_definition(copy, tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++) on PATH")
    source = """
        #include <string>

        #include "common/losses.h"

        static std::string names() {
          std::string out;
        #define ZX_NAME(kind, name, type) out += std::string(name) + " ";
          ZX_ALL_LOSSES(ZX_NAME)
        #undef ZX_NAME
          return out;
        }
        static const std::string kNames = names();
        extern "C" const char* all_names() { return kNames.c_str(); }
        extern "C" double evaluate(const double* s, double margin, double* d) {
          static_assert(zx::shape_of(zx::Loss::kSmoothHinge) == zx::Shape::kPair, "");
          return zx::SmoothHinge::eval<double>(s, nullptr, zx::Params<double>{margin, 0, 0}, d);
        }
    """
    (tmp_path / "loss.cpp").write_text(source)
    library = tmp_path / "loss.so"
    command = [compiler, "-std=c++17", "-shared", "-fPIC", "-Wall", "-Werror", f"-I{copy}/csrc", "-o", str(library)]
    subprocess.run([*command, str(tmp_path / "loss.cpp")], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.all_names.restype, loaded.evaluate.restype = ctypes.c_char_p, ctypes.c_double
    names = loaded.all_names().decode().split()
    assert sorted(names) == sorted([*reference.LOSSES, "smooth_hinge"])
    for p, n in ((0.0, 0.5), (2.0, 1.5), (3.0, -1.0), (float("nan"), 1.0)):
        scores, derivatives = (ctypes.c_double * 2)(p, n), (ctypes.c_double * 2)()
        value = loaded.evaluate(scores, ctypes.c_double(0.7), derivatives)
        tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (p, n)]
        expected = 0.5 * torch.relu(0.7 - tensors[0] + tensors[1]) ** 2
        expected.backward()
        assert value == pytest.approx(expected.item(), nan_ok=True)
        if p == p:
            assert list(derivatives) == pytest.approx([float(t.grad) for t in tensors])
