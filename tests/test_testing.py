"""check_loss passes what is right, and fails what is wrong in its value, gradient or double backward."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import zerosum_ext as zx
from zerosum_ext import reference, testing
from zerosum_ext.cli import main as cli


def definition(p, n):
    return reference.softplus(n - p)


class Detached(torch.autograd.Function):
    """BPR whose backward pass is a constant to autograd: its double backward is 0, the classic mistake."""

    @staticmethod
    def forward(ctx, p, n):
        ctx.slope = torch.sigmoid(n - p).detach()
        return reference.softplus(n - p)

    @staticmethod
    def backward(ctx, grad_output):
        return -grad_output.detach() * ctx.slope, grad_output.detach() * ctx.slope


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", testing.checked_losses())
def test_the_losses_of_the_package_pass(name, dtype):
    report = testing.check_named_loss(name, dtype=dtype)
    assert report.passed, f"\n{report}"
    forms = [case for case in testing.loss_cases() if case.loss == name]
    assert len(report.rows) == 9 * len(forms)
    # Rows of different forms are told apart, in the table and in JSON.
    assert len({(row.form, row.quantity, row.magnitude) for row in report.rows}) == len(report.rows)
    assert str(report).count(":\n") == (len(forms) if len(forms) > 1 else 0)


@pytest.mark.parametrize(
    ("wrong", "failing"),
    [
        (lambda p, n: 1.001 * definition(p, n), {"value", "gradient", "double backward"}),
        (lambda p, n: definition(p, n).detach() + 0.0 * (p + n), {"gradient", "double backward"}),
        (Detached.apply, {"double backward"}),
        (lambda p, n: -torch.log(torch.sigmoid(p - n)), {"value", "gradient", "double backward"}),
        (lambda p, n: definition(p, n)[:, None], {"value"}),
    ],
    ids=["factor", "no gradient", "no double backward", "overflow", "shape"],
)
def test_what_is_wrong_fails(wrong, failing):
    report = testing.check_loss(wrong, definition)
    assert not report.passed
    assert failing <= {row.quantity for row in report.rows if not row.passed}
    assert "FAILED" in str(report)


def test_without_a_definition_finite_differences_decide():
    assert testing.check_loss(zx.zerosum_loss).passed
    failed = {row.quantity for row in testing.check_loss(Detached.apply).rows if not row.passed}
    assert "gradgradcheck" in failed


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match="fn: expected a function"):
        testing.check_loss(1.0)
    with pytest.raises(TypeError, match="dtype: expected one of"):
        testing.check_loss(zx.bpr_loss, dtype=torch.int64)


def test_command_line(capsys):
    assert cli.main(["gradcheck", "--loss", "zerosum", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["loss"] == "zerosum"
    assert report["passed"]
    assert cli.main(["gradcheck", "--loss", "bpr"]) == 0
    assert "double backward" in capsys.readouterr().out
    assert cli.main(["gradcheck", "--loss", "nothing"]) == 2
    assert "--loss: expected one of" in capsys.readouterr().err
    assert cli.main(["gradcheck", "--device", "abacus"]) == 2


def test_the_example_of_the_guide(capsys):
    guide = Path(__file__).parents[1] / "docs" / "adding_a_loss.md"
    if not guide.is_file():
        pytest.skip("the documentation is not here")
    code = guide.read_text().split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) < 30
    exec(compile(code, str(guide), "exec"), {})
    assert "double backward" in capsys.readouterr().out
