"""TorchRec: which versions are a pair, and, where it is installed, our samples and losses on its tables."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import SECONDS, free_port

import zerosum_ext as zx
from zerosum_ext.integrations import torchrec as rec

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "torchrec_parallel.py"


def test_doctor_knows_which_pair_fits_which_torch():
    def said(torch_version: str, torchrec: str | None, fbgemm: str | None) -> str:
        return rec.obstacle({"torch": torch_version, "torchrec": torchrec, "fbgemm-gpu": fbgemm})

    assert said("2.13.0+cpu", "1.8.0", "1.8.0") == ""
    assert "does not load with torch 2.13.0" in said("2.13.0", "1.9.1", "1.9.1")
    assert "torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0" in said("2.13.0", "1.9.1", "1.9.1")
    assert "no pair" in said("2.13.0", "1.8.0", "1.7.0")
    assert said("2.13.0", None, "1.8.0").startswith("torchrec is not installed: pip install torchrec==1.8.0")
    assert said("2.99.0", None, None).startswith(
        "torchrec and fbgemm-gpu is not installed: pip install torchrec fbgemm"
    )


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("zerosum", {}),
        ("pos2neg2", {"positives": 2, "negatives": 2}),
        (
            "sampled_softmax",
            {"negatives": 3},
        ),
    ],
)
def test_a_step_on_an_embedding_collection_is_that_of_our_model(loss, options):
    pytest.importorskip("torchrec", reason="torchrec is not installed")
    data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 3], [0, 1, 1, 2, 3, 4], shape=(4, 9))
    loader = zx.TripletLoader(data, 4, seed=3, **options)
    task = rec.FactorizationTask(4, 9, 8, loss=loss)
    model = zx.MatrixFactorization(4, 9, 8)
    tables = task.embeddings.embeddings
    model.load_state_dict({f"{name}_embedding": tables[name].weight.detach() for name in ("user", "item")})
    sample = next(iter(loader))
    value, (_, pos, neg) = task(rec.Batch.of(*sample))
    users, positives, negatives = sample
    assert pos.shape == positives.shape
    assert neg.shape == negatives.shape
    expected = zx.get_loss(loss)(model(users, positives), model(users, negatives))
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    for name in ("user", "item"):
        torch.testing.assert_close(tables[name].weight.grad, getattr(model, f"{name}_embedding").grad)


@pytest.mark.slow
def test_the_example_trains_tables_that_two_processes_share(tmp_path):
    pytest.importorskip("torchrec", reason="torchrec is not installed")
    if not EXAMPLE.is_file():
        pytest.skip("the examples are not here")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += [f"--master-port={free_port()}", str(EXAMPLE)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-4000:]
    losses = [float(value) for value in re.findall(r"^epoch \d+: loss (.*)$", done.stdout, re.M)]
    assert len(losses) == 15
    assert losses[-1] < losses[0] - 0.1
