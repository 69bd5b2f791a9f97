"""Optimizers that are made without torch.compile's machinery: the same as torch.optim's."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

import zerosum_ext as zx
from zerosum_ext import _ops


def in_a_new_process(code: str) -> None:
    """Runs code where nothing has imported torch._dynamo yet."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not _ops.has_op("mf_train", torch.device("cpu")), reason="no compiled kernels")
def test_fit_and_its_checkpoint_leave_the_compiler_alone(tmp_path):
    in_a_new_process(f"""
        import sys
        import zerosum_ext as zx

        model = zx.MatrixFactorization(40, 40, 8, seed=1)
        train = zx.datasets.synthetic_triangle(40, 40)
        options = dict(epochs=2, batch_size=64, progress=False, engine="fused")
        model.fit(train, **options, checkpoint={str(tmp_path / "c.pt")!r})
        assert "torch._dynamo" not in sys.modules
    """)


@pytest.mark.skipif(not _ops.has_op("mf_train", torch.device("cpu")), reason="no compiled kernels")
def test_neither_do_names_classes_partials_and_resumed_runs(tmp_path):
    in_a_new_process(f"""
        import functools
        import sys
        import torch
        import zerosum_ext as zx

        train, file = zx.datasets.synthetic_triangle(40, 40), {str(tmp_path / "c.pt")!r}
        options = dict(batch_size=64, progress=False, engine="fused")

        def trained(optimizer, **more):
            model = zx.MatrixFactorization(40, 40, 8, seed=1)
            model.fit(train, "bpr", optimizer, **options, **more)
            return model.user_embedding

        for name, kind in (("sgd", "SGD"), ("adagrad", "Adagrad"), ("adam", "Adam"), ("sparse_adam", "SparseAdam")):
            kind = getattr(torch.optim, kind)
            by_name = trained(name, lr=0.05, epochs=2)
            assert torch.equal(by_name, trained(kind, lr=0.05, epochs=2)), name
            assert torch.equal(by_name, trained(functools.partial(kind, lr=0.05), epochs=2)), name
            trained(name, lr=0.05, epochs=1, checkpoint=file)
            assert torch.equal(by_name, trained(name, lr=0.05, epochs=2, resume=file)), name
        assert torch.equal(trained(None, lr=0.01, epochs=1), trained("adam", lr=0.01, epochs=1))
        trained("sgd", lr=0.05, epochs=1, checkpoint=file, scheduler=functools.partial(
            torch.optim.lr_scheduler.StepLR, step_size=1))
        assert "torch._dynamo" not in sys.modules
        assert torch.equal(trained(lambda p: torch.optim.SGD(p, lr=0.05), epochs=1), trained("sgd", lr=0.05, epochs=1))
    """)


def test_what_is_no_optimizer_is_refused():
    model, train = zx.MatrixFactorization(40, 40, 8, seed=1), zx.datasets.synthetic_triangle(40, 40)
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    for optimizer, lr, error, text in (
        ("rmsprop", None, ValueError, r"optimizer: expected .*adamw.*, got 'rmsprop'"),
        ("adam", -1, ValueError, "lr: expected a number >= 0, got -1"),
        ("adam", "fast", TypeError, "lr: expected a number"),
        (None, float("nan"), ValueError, "lr: expected a number >= 0, got nan"),
        (own, 0.1, ValueError, "lr: expected None with an optimizer that has its own"),
        (lambda p: own, 0.1, ValueError, "lr: expected None with an optimizer that has its own"),
        (3, None, TypeError, "optimizer: expected a torch.optim.Optimizer or one of adam, .*, got int"),
        (lambda p: None, None, TypeError, "optimizer: expected a torch.optim.Optimizer .*, got NoneType"),
    ):
        with pytest.raises(error, match=text):
            model.fit(train, "bpr", optimizer, lr=lr, epochs=1)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Adagrad", "SGD", "SparseAdam"])
def test_they_are_torchs_own(name):
    in_a_new_process(f"""
        import sys
        import torch
        from zerosum_ext.training.optimizers import make_optimizer, optimizer_state

        def parameters():
            return [torch.nn.Parameter(torch.full((3, 2), 0.5)), torch.nn.Parameter(torch.ones(4))]

        def sparse(p):
            rows = torch.tensor([[1]])
            return torch.sparse_coo_tensor(rows, torch.full((1, *p.shape[1:]), 0.25), p.shape)

        kind, sizes = torch.optim.{name}, []
        ours, theirs = parameters(), parameters()
        made = make_optimizer(kind, ours, lr=0.1)
        state = optimizer_state(made)
        assert type(made) is kind and "torch._dynamo" not in sys.modules
        expected = kind(theirs, lr=0.1)
        assert str(state) == str(expected.state_dict())
        assert made.__dict__.keys() == expected.__dict__.keys()
        for optimizer, tables in ((made, ours), (expected, theirs)):
            for _ in range(3):
                for p in tables:
                    p.grad = sparse(p) if {name!r} == "SparseAdam" else torch.full_like(p, 0.25)
                optimizer.step()
            optimizer.add_param_group({{"params": [torch.nn.Parameter(torch.ones(1))]}})
            sizes.append(len(optimizer.param_groups))
        assert sizes == [2, 2] and str(optimizer_state(made)) == str(expected.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    """)


def test_a_subclass_keeps_its_own_methods():
    in_a_new_process("""
        import torch
        from zerosum_ext.training.optimizers import make_optimizer, optimizer_state

        class Counting(torch.optim.SGD):
            groups = 0

            def add_param_group(self, group):
                self.groups += 1
                super().add_param_group(group)

            def state_dict(self):
                return {"groups": self.groups}

        made = make_optimizer(Counting, [torch.nn.Parameter(torch.ones(2))], lr=0.1)
        assert made.groups == 1 and optimizer_state(made) == {"groups": 1}
    """)


def test_options_are_checked_as_torch_does():
    in_a_new_process("""
        import torch
        from zerosum_ext.training.optimizers import make_optimizer

        for options, text in ((dict(lr=-1.0), "Invalid learning rate"), (dict(nonsense=1), "nonsense")):
            try:
                make_optimizer(torch.optim.Adam, [torch.nn.Parameter(torch.ones(2))], **options)
            except (TypeError, ValueError) as error:
                assert text in str(error)
            else:
                raise AssertionError(options)
    """)
