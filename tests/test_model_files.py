"""Model files: ids, names, settings and metrics beside the parameters; open files; damaged ones; the card."""

import io
import pathlib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import zerosum_ext as zx

USERS, ITEMS = ["ann", "böb", "日本", "a\nb"], ["x", "y", "z"]


def _model(**options):
    train = zx.Interactions.from_arrays(USERS[:3] + USERS[3:], ["x", "y", "z", "x"], ids=True)
    return train, zx.MatrixFactorization.from_interactions(train, embedding_dim=2, seed=0, **options)


@pytest.mark.parametrize("form", ["str", "path", "file", "memory"])
def test_a_file_keeps_what_is_known_of_a_model(tmp_path, form):
    train, model = _model()
    model.item_names = ["The X", "Ÿ", "z" * 300]
    path = tmp_path / "m.safetensors"
    about = {
        "settings": {"loss": "zerosum", "lr": np.float32(0.5), "file": pathlib.Path("a")},
        "metrics": {"ndcg@10": 0.25},
    }
    if form == "memory":
        target = io.BytesIO()
        model.save(target, **about)
        target.seek(0)
        read = zx.Recommender.load(target)
    elif form == "file":
        with path.open("wb") as file:
            model.save(file, **about)
        with path.open("rb") as file:
            read = zx.MatrixFactorization.load(file)
    else:
        model.save(str(path) if form == "str" else path, **about)
        read = zx.Recommender.load(str(path) if form == "str" else path)
    assert read.vocabulary == train.vocabulary
    assert list(read.item_names) == model.item_names
    assert read.information == {
        "settings": {"loss": "zerosum", "lr": 0.5, "file": "a"},
        "metrics": {"ndcg@10": 0.25},
        "version": zx.__version__,
    }
    for one, other in zip(model.parameters(), read.parameters(), strict=True):
        assert torch.equal(one, other)
    again = io.BytesIO()
    read.save(again, metrics={"hr@10": 1})  # what is known is kept, and what is given replaces it
    again.seek(0)
    information = zx.Recommender.load(again).information
    assert information["settings"]["loss"] == "zerosum"
    assert information["metrics"] == {"hr@10": 1}


def test_ids_that_are_numbers_and_models_without_ids(tmp_path):
    train = zx.Interactions.from_arrays([2**62, -5], [9, 8], ids=True)
    model = zx.LightGCN.from_interactions(train, embedding_dim=2)
    zx.MACR(model).save(tmp_path / "m.safetensors")
    read = zx.Recommender.load(tmp_path / "m.safetensors")
    assert read.vocabulary == read.backbone.vocabulary == train.vocabulary
    plain = zx.MatrixFactorization(2, 3, 2)
    plain.save(tmp_path / "p.safetensors")
    read = zx.Recommender.load(tmp_path / "p.safetensors")
    assert read.vocabulary is None
    assert read.item_names is None


def test_what_cannot_be_written(tmp_path):
    model = _model()[1]
    with pytest.raises(TypeError, match="settings and metrics: expected what JSON can hold"):
        model.save(tmp_path / "m.safetensors", settings={"loss": object()})
    model.item_names = ["one"]
    with pytest.raises(ValueError, match="item_names: expected 3"):
        model.save(tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TypeError, match="path: expected a path or a file"):
        _model()[1].save(3)
    with pytest.raises(TypeError, match="path: expected a path or a file"):
        zx.Recommender.load(3)
    with pytest.raises(TypeError, match="open for bytes"):
        zx.Recommender.load(io.StringIO("text"))
    with pytest.raises(ValueError, match="is not a safetensors file"):
        zx.Recommender.load(io.BytesIO(b"12345678 no such file"))


@pytest.mark.parametrize(
    "damage",
    [
        {"user_ids.ends": torch.tensor([3, 2, 1, 9])},
        {"user_ids.ends": torch.tensor([3, 7, 13])},
        {"user_ids.ends": torch.tensor([3, 7, 13, 2**60])},
        {"user_ids.bytes": torch.full((16,), 255, dtype=torch.uint8)},
        {"user_ids.bytes": torch.full((16,), 97, dtype=torch.uint8)},  # the same id twice
        {"item_ids": torch.tensor([1.5, 2, 3])},
        {"item_ids": torch.tensor([1, 2])},
        {"item_names": torch.tensor([1, 2])},
        # A name that would make the others take 4 TB.
        {
            "item_names.bytes": torch.zeros(1 << 20, dtype=torch.uint8),
            "item_names.ends": torch.arange(1 << 20).clamp(min=1 << 19) + 1,
        },
    ],
)
def test_a_damaged_file_says_so(tmp_path, damage):
    path = tmp_path / "m.safetensors"
    _model()[1].save(path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    assert "zerosum_ext.user_ids.ends" in tensors
    save_file({**tensors, **{f"zerosum_ext.{k}": v for k, v in damage.items()}}, path, metadata)
    with pytest.raises(ValueError, match="is damaged: "):
        zx.Recommender.load(path)


def test_ids_do_not_vouch_for_a_larger_model(tmp_path):
    path = tmp_path / "m.safetensors"
    _model()[1].save(path)
    big = {"num_users": 5000, "num_items": 3, "embedding_dim": 2}
    import json

    metadata = {"format": "zerosum_ext.MatrixFactorization/1", "config": json.dumps(big)}
    save_file({**load_file(path), "zerosum_ext.user_ids": torch.arange(5000)}, path, metadata)
    with pytest.raises(ValueError, match="num_users is 5,000"):
        zx.Recommender.load(path)


def test_the_card():
    model = _model()[1]
    model.information = {"settings": {"loss": "zero|sum"}, "metrics": {"ndcg@10": 1 / 3}}
    text = model.card("Films")
    assert text.startswith("---\nlibrary_name: zerosum-ext\n")
    for part in (
        "# Films",
        "4 users and 3 items with 14 parameters",
        "| loss | zero\\|sum |",
        "| ndcg@10 | 0.333333 |",
    ):
        assert part in text
    assert "## Results" not in zx.MatrixFactorization(2, 3, 2).card()
