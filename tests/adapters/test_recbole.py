"""RecBole trains and evaluates our model, and its BPR is ours."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

import zerosum_ext as zx

pytest.importorskip("recbole")

# RecBole 1.2.1 names aliases that NumPy 2 has dropped, and loads its checkpoints by a default that torch has changed.
for _old, _new in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
    if not hasattr(np, _old):
        setattr(np, _old, _new)
for _name in ("bool8", "object", "float", "int", "bool"):
    if _name not in np.__dict__:
        setattr(np, _name, {"bool8": np.bool_, "object": object, "float": float, "int": int, "bool": bool}[_name])


@pytest.fixture
def recbole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "triangle"
    folder.mkdir(parents=True)
    users, items = zx.datasets.synthetic_triangle(40, 60).nonzero()
    rows = "".join(f"{u}\t{i}\n" for u, i in zip(users, items, strict=True))
    (folder / "triangle.inter").write_text("user_id:token\titem_id:token\n" + rows)

    def run(model, **settings):
        from recbole.config import Config
        from recbole.data import create_dataset, data_preparation
        from recbole.trainer import Trainer
        from recbole.utils import get_model, init_seed

        config = Config(
            model=model,
            dataset="triangle",
            config_dict={
                "data_path": str(tmp_path / "data"),
                "USER_ID_FIELD": "user_id",
                "ITEM_ID_FIELD": "item_id",
                "load_col": {"inter": ["user_id", "item_id"]},
                "checkpoint_dir": str(tmp_path / "saved"),
                "use_gpu": False,
                "device": "cpu",
                "epochs": 15,
                "train_batch_size": 256,
                "learning_rate": 0.02,
                "embedding_size": 8,
                "show_progress": False,
                "state": "ERROR",
                **settings,
            },
        )
        logging.disable(logging.CRITICAL)
        init_seed(1, True)
        dataset = create_dataset(config)
        train, _, test = data_preparation(config, dataset)
        made = get_model(model) if isinstance(model, str) else model
        init_seed(1, True)
        trained = made(config, train.dataset)
        trainer = Trainer(config, trained)
        trainer.fit(train, saved=False, show_progress=False)
        result = trainer.evaluate(test, load_best_model=False, show_progress=False)
        return trained, result

    yield run
    logging.disable(logging.NOTSET)


def test_bpr_is_recboles_own(recbole):
    from zerosum_ext.integrations.recbole import ZerosumMF

    ours, result = recbole(ZerosumMF, loss_name="bpr")
    theirs, expected = recbole("BPR")
    torch.testing.assert_close(ours.user_embedding.weight, theirs.user_embedding.weight, rtol=1e-3, atol=1e-4)
    assert result["ndcg@10"] == pytest.approx(expected["ndcg@10"], abs=0.02)


def test_zerosum_trains_and_is_evaluated(recbole):
    from zerosum_ext.integrations.recbole import ZerosumMF

    model, result = recbole(ZerosumMF, loss_options={"w": 0.9}, reg_weight=1e-3)
    assert isinstance(model.loss, zx.ZerosumLoss)
    assert result["ndcg@10"] > 0.4
    with pytest.raises(ValueError, match="loss_name: expected a loss of scores of one positive, got 'pos2neg2'"):
        recbole(ZerosumMF, loss_name="pos2neg2")
