"""The recipes of several processes train what one process trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zerosum_ext as zx

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def of_one_process():
    train = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle())
    model = zx.MatrixFactorization.from_interactions(train, embedding_dim=16, seed=0)
    model.fit(train, zx.ZerosumLoss(w=0.9), lr=0.01, batch_size=256, epochs=3, seed=0, progress=False)
    return model


def close(model, path):
    found = zx.MatrixFactorization.load(path)
    torch.testing.assert_close(found.user_embedding, model.user_embedding, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.item_embedding, model.item_embedding, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_ddp.py", "train_accelerate.py"])
def test_two_processes_train_what_one_does(script, of_one_process, tmp_path):
    if script == "train_accelerate.py":
        pytest.importorskip("accelerate")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(
        [*launcher, str(EXAMPLES / script), str(tmp_path / "model.safetensors")],
        env=environment,
        check=True,
        timeout=300,
        cwd=tmp_path,
        capture_output=True,
    )
    close(of_one_process, tmp_path / "model.safetensors")


def test_accelerate_of_one_process_keeps_the_place_in_an_epoch(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    loader = zx.TripletLoader(zx.datasets.synthetic_triangle(), 1000, seed=3)
    accelerator.register_for_checkpointing(loader)
    steps = iter(loader)
    next(steps)
    accelerator.save_state(str(tmp_path / "state"))
    rest = [users for users, _, _ in steps]
    accelerator.load_state(str(tmp_path / "state"))
    again = [users for users, _, _ in loader]
    assert len(rest) == len(again) > 3
    assert all(torch.equal(a, b) for a, b in zip(rest, again, strict=True))
