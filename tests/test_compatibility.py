"""Files that version 0.1.0 wrote still load, and mean the same.

``tests/data/v0.1.0`` was written by 0.1.0 itself from 316 made-up interactions: a run folder, one model file of each
kind, and a checkpoint of each engine after two epochs of four. ``expected.json`` holds what 0.1.0 recommended with each
model, and where training for four epochs without a break ended.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import zerosum_ext as zx

FOLDER = Path(__file__).parent / "data" / "v0.1.0"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
MODELS = sorted(name for name in EXPECTED if not name.startswith("checkpoint-"))
ENGINES = sorted(name.removeprefix("checkpoint-") for name in EXPECTED if name.startswith("checkpoint-"))


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def interactions() -> zx.Interactions:
    """The interactions of ``ratings.csv`` with the numbers in their names as indices, as 0.1.0 trained on them."""
    pairs = np.loadtxt(FOLDER / "ratings.csv", delimiter=",", skiprows=1, dtype=str)
    users, items = (np.char.lstrip(pairs[:, column], "ui").astype(np.int64) for column in (0, 1))
    return zx.Interactions.from_arrays(users, items, shape=(30, 24))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_file_recommends_what_it_recommended(name):
    model = zx.Recommender.load(FOLDER / f"{name}.safetensors")
    items, scores = model.recommend(torch.arange(6), 5)
    assert items.tolist() == EXPECTED[name]["items"]
    torch.testing.assert_close(scores, torch.tensor(EXPECTED[name]["scores"]), rtol=1e-5, atol=1e-7)


def test_a_model_file_is_read_by_its_own_class():
    assert zx.MatrixFactorization.load(FOLDER / "mf.safetensors").num_items == 24


@pytest.mark.parametrize("engine", ENGINES)
def test_a_checkpoint_resumes_to_the_end_of_an_unbroken_training(engine, one_thread):
    torch.manual_seed(7)
    model = zx.MatrixFactorization(30, 24, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.05) if engine == "hogwild" else None
    options = {"epochs": 4, "batch_size": 64, "seed": 3, "engine": engine}
    losses = model.fit(interactions(), "zerosum", optimizer, resume=FOLDER / f"checkpoint-{engine}-half.pt", **options)
    expected = EXPECTED[f"checkpoint-{engine}"]
    # The kernels of another processor may add in another order.
    np.testing.assert_allclose(list(losses), expected["losses"], rtol=1e-5)
    torch.testing.assert_close(model.vectors()[0].detach(), torch.tensor(expected["user"]), rtol=1e-4, atol=1e-6)


def test_a_run_folder_opens_measures_and_recommends(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(FOLDER / "run", folder)
    run = zx.runs.Run.open(folder)
    assert run.main == "zerosum"
    measured, left_out = run.evaluate(k=(5,))
    assert left_out == 0
    assert list(measured) == ["bpr", "zerosum"]
    for method, values in measured.items():
        written = json.loads((folder / method / "metrics.json").read_text(encoding="utf-8"))
        # JSON has no NaN: a measure that is not defined stands there as null.
        expected = {name: math.nan if value is None else value for name, value in written.items()}
        assert {name: values[name] for name in written} == pytest.approx(expected, rel=1e-5, nan_ok=True)
        assert len(run.histories[method]) == 2
    (recommended,) = run.recommend(["u3"], 4)
    assert recommended.user == "u3"
    assert len(recommended.items) == 4


def test_a_finished_run_is_not_trained_again(tmp_path):
    shutil.copy(FOLDER / "ratings.csv", tmp_path)
    shutil.copytree(FOLDER / "run", tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").glob("*/model.safetensors")}
    assert len(before) == 2
    settings = "--loss zerosum --weight 0.8 --epochs 2 --batch-size 64 --embedding-dim 4 --k 5 --no-figures --quiet"
    main = ["-m", "zerosum_ext", "train", "ratings.csv", "--output", "run", "--resume", *settings.split()]
    subprocess.run([sys.executable, *main], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert {p: p.read_bytes() for p in before} == before


def test_options_of_losses_that_0_1_0_named_otherwise():
    """BSL's temperatures were t1 and t2, in run folders and in experiment files."""
    from zerosum_ext.experiments.runs import settings

    written = {"loss": "bsl", "loss_options": {"t1": 0.5, "t2": 0.25}}
    method = settings.Method(**settings.todays_names(written))
    assert method.loss_options == {"positive_temperature": 0.5, "negative_temperature": 0.25}
    assert settings.settings_of_0_1_0(method)["loss_options"] == written["loss_options"]
