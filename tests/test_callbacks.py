"""Loggers: one row or point for every epoch, also of runs that were interrupted and resumed."""

from __future__ import annotations

import csv
import sys

import pytest
import torch

import zerosum_ext as zx
from zerosum_ext.training.callbacks import CSVLogger, TensorBoardLogger

OPTIONS = {"batch_size": 64, "seed": 3, "progress": False}


@pytest.fixture(scope="module")
def triangle():
    return zx.datasets.synthetic_triangle(40, 40)


def new_model():
    return zx.MatrixFactorization(40, 40, 8, seed=1)


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def halved(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


def test_csv(triangle, tmp_path):
    path = tmp_path / "new" / "log.csv"
    counts = []
    history = new_model().fit(
        triangle,
        epochs=3,
        validation=zx.datasets.synthetic_triangle(40, 40, boundary=50) - triangle,
        scheduler=halved,
        callbacks=[CSVLogger(path), lambda event: counts.append(len(rows(path)))],
        **OPTIONS,
    )
    assert counts == [1, 2, 3]  # the file is complete after every epoch
    got = rows(path)
    names = ["epoch", "loss", "validation ndcg@10", "seconds", "samples_per_second", "learning_rate"]
    assert list(got[0]) == names
    assert [row["epoch"] for row in got] == ["1", "2", "3"]
    assert [float(row["loss"]) for row in got] == list(history)
    assert [float(row["validation ndcg@10"]) for row in got] == history.validation
    assert [float(row["learning_rate"]) for row in got] == [5e-4, 2.5e-4, 1.25e-4]
    for row, samples, seconds in zip(got, history.samples, history.seconds, strict=True):
        assert float(row["samples_per_second"]) == pytest.approx(samples / seconds, rel=1e-3)


def test_csv_of_a_resumed_run_has_each_epoch_once(triangle, tmp_path):
    path, checkpoint = tmp_path / "log.csv", tmp_path / "run.pt"
    options = dict(OPTIONS, scheduler=halved)
    new_model().fit(triangle, epochs=2, checkpoint=checkpoint, callbacks=[CSVLogger(path)], **options)
    # As if epochs 3 and 4 of an abandoned run had been written after the checkpoint.
    path.write_text(path.read_text() + "3,9,9,9,9\n4,9,9,9,9\n")
    history = new_model().fit(triangle, epochs=4, resume=checkpoint, callbacks=[CSVLogger(path)], **options)
    got = rows(path)
    assert [row["epoch"] for row in got] == ["1", "2", "3", "4"]
    assert [float(row["loss"]) for row in got] == list(history)
    assert [float(row["learning_rate"]) for row in got] == [1e-3 * 0.5**k for k in (1, 2, 3, 4)]
    assert "validation ndcg@10" not in got[0]


def test_tensorboard(triangle, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, {"dim": 8})
    history = new_model().fit(triangle, epochs=3, validation=triangle, callbacks=[logger], **OPTIONS)
    logger.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    values = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert set(values) == {
        *("loss/train", "validation/ndcg@10", "time/seconds", "time/samples_per_second", "learning_rate")
    }
    assert [step for step, _ in values["loss/train"]] == [1, 2, 3]
    assert [value for _, value in values["loss/train"]] == pytest.approx(list(history), rel=1e-6)
    assert [value for _, value in values["validation/ndcg@10"]] == pytest.approx(history.validation, rel=1e-6)
    assert [value for _, value in values["learning_rate"]] == pytest.approx([1e-3] * 3)
    [tag] = events.Tags()["tensors"]
    assert '"dim": 8' in events.Tensors(tag)[0].tensor_proto.string_val[0].decode()


def test_tensorboard_that_is_missing_is_said(triangle, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        new_model().fit(triangle, epochs=1, callbacks=[TensorBoardLogger(tmp_path)], **OPTIONS)
