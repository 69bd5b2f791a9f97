"""Lightning trains what ``fit`` trains, resumes, and shares batches out to processes."""

from __future__ import annotations

import warnings

import pytest
import torch

import zerosum_ext as zx

try:
    import lightning.pytorch as lightning
except ImportError:
    lightning = pytest.importorskip("pytorch_lightning")

from zerosum_ext.integrations.lightning import InteractionsDataModule, RecommenderModule

SPLIT = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(40, 60)).split_random((0.8, 0.2, 0.0), seed=0)


def trainer(folder, **options):
    warnings.simplefilter("ignore")
    return lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=0,
        **{"max_epochs": 3, "enable_checkpointing": False, **options},
    )


@pytest.mark.parametrize(
    ("loss", "options"),
    [("zerosum", {}), ("pos2neg2", {}), ("sampled_softmax", {"negatives": 4}), ("bpr", {"l2": 0.01})],
)
def test_three_epochs_are_those_of_fit(tmp_path, loss, options):
    mine, theirs = (zx.MatrixFactorization(40, 60, 4, seed=0) for _ in range(2))
    l2 = options.pop("l2", 0.0)
    mine.fit(SPLIT.train, loss, lr=0.01, l2=l2, batch_size=256, epochs=3, engine="autograd", progress=False, **options)
    data = InteractionsDataModule(SPLIT.train, 256, loss=loss, **options)
    trainer(tmp_path).fit(RecommenderModule(theirs, loss, lr=0.01, l2=l2), data)
    assert torch.equal(mine.user_embedding, theirs.user_embedding)
    assert torch.equal(mine.item_embedding, theirs.item_embedding)


def test_validation_logs_what_evaluate_says(tmp_path):
    model = zx.MatrixFactorization(40, 60, 4, seed=0)
    data = InteractionsDataModule(SPLIT.train, 256, validation=SPLIT.valid)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(RecommenderModule(model, lr=0.05, metrics=("ndcg", "pri"), k=(5,)), data)
    want = zx.evaluate(model, SPLIT.train, SPLIT.valid, metrics=("ndcg", "pri"), k=(5,))
    assert float(run.callback_metrics["ndcg_at_5"]) == pytest.approx(want["ndcg@5"])
    assert float(run.callback_metrics["pri"]) == pytest.approx(want["pri"])


def test_a_run_goes_on_in_the_middle_of_an_epoch(tmp_path):
    def task():
        return RecommenderModule(zx.MatrixFactorization(40, 60, 4, seed=0), lr=0.01)

    whole = task()
    trainer(tmp_path, max_epochs=2).fit(whole, InteractionsDataModule(SPLIT.train, 128))
    saving = lightning.callbacks.ModelCheckpoint(tmp_path, "cut", every_n_train_steps=3, save_top_k=-1)
    run = trainer(tmp_path, max_steps=3, enable_checkpointing=True, callbacks=[saving])
    run.fit(task(), InteractionsDataModule(SPLIT.train, 128))
    resumed = task()
    trainer(tmp_path, max_epochs=2).fit(
        resumed, InteractionsDataModule(SPLIT.train, 128), ckpt_path=tmp_path / "cut.ckpt"
    )
    assert torch.equal(whole.model.user_embedding, resumed.model.user_embedding)
