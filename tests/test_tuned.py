"""The protocol "tuned": settings are halved on the validation part, and later seeds train what the first one chose."""

from __future__ import annotations

import json

import numpy as np
import pytest

import zerosum_ext as zx
from zerosum_ext.cli import main as cli
from zerosum_ext.experiments import reproduce
from zerosum_ext.experiments.reproduce import tuned
from zerosum_ext.experiments.runs import Method

FILE = """
title = "Small"
protocol = "tuned"
seeds = [0, 1]
columns = ["ndcg@10", "pop_q_at_1", "arp@10"]
data = {source = "ratings.csv"}
split = {kind = "random", ratios = [0.7, 0.15, 0.15]}
settings = {epochs = 9, patience = 3, batch_size = 64, embedding_dim = 4, lr = 0.05}
tuning = {rungs = [4, 6], finalists = 1, users = 50}

[[methods]]
name = "Popular"
settings = {loss = "popular"}

[[methods]]
name = "BPR"
settings = {loss = "bpr"}
grid = [{lr = 0.05}, {lr = 1e-6}]

[[methods]]
name = "Adjusted"
goal = "balanced"
settings = {loss = "popularity_softmax", negatives = 4, loss_options = {temperature = 0.5}}
grid = [{loss_options = {alpha = 0.0}}, {loss_options = {alpha = 0.5}}, {loss_options = {alpha = 20.0}}]
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    users, items = (rng.random((90, 70)) < np.linspace(0.5, 0.05, 70)).nonzero()
    lines = [f"u{u},i{i}" for u, i in zip(users, items, strict=True)]
    (tmp_path / "ratings.csv").write_text("\n".join(["user,item", *lines]))
    (tmp_path / "small.toml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "small.toml"


def test_a_tuned_experiment(file, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["reproduce", "--experiment", str(file), "--output", str(out), "--quiet", "--no-figures"]) == 0
    said = capsys.readouterr().out
    results = reproduce.load(file, out)
    records = {(name, r["seed"]): r for name, found in results.records.items() for r in found}
    assert set(records) == {(name, seed) for name in ("Popular", "BPR", "Adjusted") for seed in (0, 1)}
    bpr = records["BPR", 0]
    assert bpr["settings"]["lr"] == 0.05
    assert [one["settings"]["lr"] for one in bpr["trials"]] == [0.05, 1e-6]
    assert bpr["trials"][1]["epochs"] == 4  # half of two settings go on after the first rung
    assert bpr["trials"][0]["validation"] == bpr["validation"]
    assert bpr["history"]["best_epoch"] + 1 == bpr["metrics"]["best"]["epoch"] == bpr["trials"][0]["best_epoch"]
    assert bpr["validation"]["ndcg@10"] == max(bpr["history"]["validation"])
    # The second seed trains the setting of the first, with other weights, and tunes nothing.
    assert records["BPR", 1]["settings"] == {**bpr["settings"], "seed": 1}
    assert records["BPR", 1]["trials"] == []
    assert records["BPR", 1]["metrics"] != bpr["metrics"]
    assert records["Adjusted", 0]["settings"]["loss_options"]["temperature"] == 0.5
    assert records["Adjusted", 0]["settings"]["loss_options"]["alpha"] < 20  # which keeps no accuracy
    assert len(records["Adjusted", 0]["trials"]) == 3
    for name in ("Popular", "BPR", "Adjusted"):
        assert f"| {name} | 2 |" in said
    with np.load(out / "small" / "bpr-seed0.npz") as kept:
        assert np.nanmean(kept["ndcg@10"]) == pytest.approx(bpr["metrics"]["best"]["ndcg@10"], rel=1e-5)
        assert kept["lists"].shape == (len(kept["users"]), 10)
    # Nothing is run again.
    before = (out / "small.jsonl").read_bytes()
    assert cli.main(["reproduce", "--experiment", str(file), "--output", str(out), "--quiet", "--no-figures"]) == 0
    assert (out / "small.jsonl").read_bytes() == before


def test_figures_are_those_of_fit_and_evaluate(file, tmp_path):
    results = reproduce.run(file, tmp_path / "out", only="BPR", seeds=[0], progress=False)
    (record,) = results.records["BPR"]
    split = results.experiment.split.apply(results.experiment.data.read())
    method = results.experiment.method_of(record["settings"])
    model = method.make_model(split.train)
    options = {"batch_size": 64, "epochs": record["trials"][0]["epochs"], "validation": split.valid, "progress": False}
    history = model.fit(split.train, "bpr", method.make_optimizer(list(model.parameters())), **options)
    # 50 of the users validate, so that the best epoch may be another one; the losses are the same.
    assert list(history) == record["history"]["loss"]
    assert method.seed == 0


def test_what_needs_another_record_says_so(file, tmp_path):
    with pytest.raises(ValueError, match="Adjusted: expected BPR to be run before, for its goal"):
        reproduce.run(file, tmp_path / "out", only="Adjusted", seeds=[0], progress=False)
    with pytest.raises(ValueError, match="BPR: expected seed 0, which tunes it, to be run before"):
        reproduce.run(file, tmp_path / "out", only="BPR", seeds=[1], progress=False)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (('goal = "balanced"', 'goal = "fair"'), "goal: expected one of"),
        (("grid = [{lr = 0.05}, {lr = 1e-6}]", "grid = []"), "grid: expected a list of at least one value"),
        (("grid = [{lr = 0.05}, {lr = 1e-6}]", "grid = [3]"), "grid 1: expected a table, got int 3"),
        (
            ("grid = [{lr = 0.05}, {lr = 1e-6}]", "sweep = {lr = [1.0]}"),
            "expected name, settings, grid, goal, seeds, got 'sweep'",
        ),
        (
            ('name = "BPR"', 'name = "BPR"\nseeds = [1]'),
            r"method 'BPR': seeds: expected 0 and others of the file's \[0, 1\]",
        ),
        (('name = "BPR"', 'name = "BPR"\nseeds = [0, 7]'), "seeds: expected 0 and others of the file's"),
        (('name = "BPR"', 'name = "BPR"\nseeds = []'), "seeds: expected a list of at least one value"),
        (("rungs = [4, 6]", "rungs = [6, 4]"), "rungs: expected ascending numbers of epochs"),
        (("rungs = [4, 6]", "rungs = 3"), "rungs: expected a list of numbers of epochs"),
        (("finalists = 1", "finalists = 0"), "finalists: expected an integer"),
        (('"tuned"', '"benchmark"'), "except in the protocol 'tuned', got 'popular'"),
    ],
)
def test_bad_files(file, change, text):
    file.write_text(FILE.replace(*change))
    with pytest.raises(ValueError, match=r"small\.toml"):
        reproduce.read_experiment(file)
    with pytest.raises(ValueError, match=text):
        reproduce.read_experiment(file)


def test_a_method_with_fewer_seeds(file):
    before = {(cell.name, cell.method.seed): cell.digest for cell in reproduce.read_experiment(file).cells()}
    file.write_text(FILE.replace('name = "Popular"', 'name = "Popular"\nseeds = [0]'))
    cells = reproduce.read_experiment(file).cells()
    assert [(c.name, c.method.seed) for c in cells] == [
        *(("Popular", 0), ("BPR", 0), ("Adjusted", 0)),
        *(("BPR", 1), ("Adjusted", 1)),
    ]
    assert all(before[cell.name, cell.method.seed] == cell.digest for cell in cells)  # so finished results stay


def test_the_bias_index():
    base = {"pop_q_at_1": 0.1, "upo": 0.6, "arp@10": 200.0, "coverage@10": 0.2}
    assert tuned.bias_index(base, base) == 1
    half = {"pop_q_at_1": 0.7, "upo": -0.3, "arp@10": 100.0, "coverage@10": 0.6}
    assert tuned.bias_index(half, base) == pytest.approx(0.5)


def test_a_balanced_split_of_items():
    rng = np.random.default_rng(0)
    owned = rng.random((200, 50)) < np.linspace(0.9, 0.02, 50)
    data = zx.Interactions.from_arrays(*owned.nonzero(), shape=owned.shape)
    split = data.split_balanced((0.8, 0.1, 0.1), seed=3)
    assert sum(part.nnz for part in split) == data.nnz
    assert (split.train | split.valid | split.test).nnz == data.nnz
    assert split.valid.nnz == round(0.1 * data.nnz)
    held = (split.valid.popularity + split.test.popularity).numpy()
    limit = data.popularity.numpy() // 2
    assert (held <= limit).all()
    level = held.max()
    assert (held[limit >= level] >= level - 1).all()
    assert (held[limit < level - 1] == limit[limit < level - 1]).all()
    again = data.split_balanced((0.8, 0.1, 0.1), seed=3)
    assert np.array_equal(again.test.indices, split.test.indices)
    assert not np.array_equal(data.split_balanced(seed=4).test.indices, split.test.indices)
    two = data.split_balanced((0.9, 0.1))
    assert two.valid.nnz == 0
    assert two.test.nnz == round(data.nnz * (1 - 0.9))
    with pytest.raises(ValueError, match="to hold out with this share of each item, got"):
        data.split_balanced((0.2, 0.4, 0.4))
    for bad, text in (({"most": 0}, "most: expected a share"), ({"seed": -1}, "seed: expected a number from 0")):
        with pytest.raises(ValueError, match=text):
            data.split_balanced(**bad)


def test_the_balanced_split_of_a_run(tmp_path):
    rng = np.random.default_rng(0)
    owned = rng.random((60, 40)) < np.linspace(0.7, 0.1, 40)
    lines = [f"{u},{i}" for u, i in zip(*owned.nonzero(), strict=True)]
    (tmp_path / "x.csv").write_text("\n".join(["user,item", *lines]))
    argv = ["train", str(tmp_path / "x.csv"), "--method", "popular", "--split", "balanced", "--output"]
    assert cli.main([*argv, str(tmp_path / "run"), "--quiet", "--json", "--epochs", "1"]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["split"]["kind"] == "balanced"
    assert Method(**config["methods"]["popular"]).loss == "popular"
