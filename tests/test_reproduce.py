"""Experiment files: cells, resuming, protocols, the report."""

import json

import numpy as np
import pytest
import torch

from zerosum_ext import Interactions, cli, datasets, metrics, reproduce, sample_negatives

SYNTHETIC = """
title = "Small"
protocol = "synthetic"
columns = ["error", "pri", "pop_q_at_1"]
seeds = [3, 4]
data = {source = "triangle"}
settings = {epochs = 1, batch_size = 4096, dim = 4}

[[methods]]
name = "BPR"
settings = {loss = "bpr"}
published = {error = 0.25, pri = 0.5}

[[methods]]
name = "Zerosum w=.8"
settings = {loss = "zerosum", weight = 0.8, epochs = 2}
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SYNTHETIC)
    return path


def test_finished_cells_are_not_run_again_and_others_are(experiment, tmp_path, monkeypatch):
    results = reproduce.run(experiment, tmp_path / "out", progress=False, only="BPR")
    assert [r["seed"] for r in results.records["BPR"]] == [3, 4]
    assert results.records["Zerosum w=.8"] == []
    assert {f.name for f in (tmp_path / "out" / "small").glob("*.json")} == {"bpr-seed3.json", "bpr-seed4.json"}
    ran = []
    real = reproduce._synthetic
    monkeypatch.setattr(reproduce, "_synthetic", lambda cell: ran.append((cell.name, cell.method.seed)) or real(cell))
    again = reproduce.run(experiment, tmp_path / "out", progress=False)
    assert ran == [("Zerosum w=.8", 3), ("Zerosum w=.8", 4)]
    assert again.records["BPR"] == results.records["BPR"]
    # A changed setting changes what a cell follows from, of the methods that have it.
    experiment.write_text(SYNTHETIC.replace("epochs = 2", "epochs = 3"))
    assert reproduce.load(experiment, tmp_path / "out").records["Zerosum w=.8"] == []
    assert len(reproduce.load(experiment, tmp_path / "out").records["BPR"]) == 2


def test_processes_give_the_same_figures(experiment, tmp_path):
    torch.set_num_threads(1)
    one = reproduce.run(experiment, tmp_path / "one", progress=False)
    two = reproduce.run(experiment, tmp_path / "two", jobs=2, progress=False)
    for name in one.records:
        assert [r["metrics"] for r in one.records[name]] == [r["metrics"] for r in two.records[name]]


def test_the_report_sets_ours_beside_the_published(experiment, tmp_path):
    results = reproduce.run(experiment, tmp_path / "out", progress=False, only="BPR")
    text = reproduce.report(results)
    errors = 100 * results.values("BPR", "error")
    row = next(line for line in text.splitlines() if line.startswith("| BPR"))
    assert f"{errors.mean():.4f} ± {errors.std(ddof=1):.4f} (published 25, {errors.mean() - 25:+.4f})" in row
    assert "Not finished: Zerosum w=.8." in text
    assert "| Zerosum" not in text


def benchmark_file(tmp_path, leak):
    rng = np.random.default_rng(0)
    x = datasets.power_law(60, 400, 2500, seed=1)
    users, items = (t.numpy() for t in Interactions.from_any(x).pairs())
    order = rng.permutation(len(users))
    np.savez(tmp_path / "few.npz", user=users[order], item=items[order])
    path = tmp_path / "few.toml"
    path.write_text(
        f"""
title = "Few"
protocol = "benchmark"
leak = {str(leak).lower()}
columns = ["hit@10", "ndcg@10", "pri"]
data = {{source = "{tmp_path / "few.npz"}", min_item_count = 2}}
settings = {{epochs = 3, batch_size = 64, dim = 8, lr = 0.01}}
[[methods]]
name = "BPR"
settings = {{loss = "bpr"}}
"""
    )
    return path


@pytest.mark.parametrize("leak", [False, True])
def test_benchmark_protocol(tmp_path, monkeypatch, leak):
    path = benchmark_file(tmp_path, leak)
    given = {}
    real = reproduce.fit
    monkeypatch.setattr(
        reproduce, "fit", lambda m, t, *a, **k: given.update(model=m, train=t, **k) or real(m, t, *a, **k)
    )
    results = reproduce.run(path, tmp_path / "out", progress=False)
    found = results.records["BPR"][0]["metrics"]
    everything = reproduce.Experiment.read(path).data.read()
    split = everything.split_random((0.6, 0.2, 0.2), seed=0)
    assert torch.equal(given["train"].indices, split.train.indices)
    users = torch.arange(everything.num_users)
    negatives = sample_negatives(everything, users, 100, seed=0, replacement=False)
    if leak:
        excluded = given["exclude"].to_scipy().toarray() > 0
        assert excluded[users[:, None], negatives].all()
        assert (excluded >= (split.test.to_scipy().toarray() > 0)).all()
        assert not (excluded & (split.train.to_scipy().toarray() > 0)).any()
    else:
        assert given["exclude"] is None
    # The definition, one positive at a time, with the weights that are in the model now: those of the best epoch.
    scores = given["model"].score_all_items(users).numpy()
    hits, gains = [], []
    for u, i in zip(*(t.tolist() for t in split.test.pairs()), strict=True):
        rank = 1 + (scores[u, negatives[u].numpy()] >= scores[u, i]).sum()
        hits.append(rank <= 10)
        gains.append((rank <= 10) / np.log2(rank + 1))
    assert found["best"]["hit@10"] == pytest.approx(np.mean(hits))
    assert found["best"]["ndcg@10"] == pytest.approx(np.mean(gains))
    u, i = (t.numpy() for t in split.test.pairs())
    assert found["best"]["pri"] == pytest.approx(metrics.pri(u, i, scores[u, i], everything.popularity))
    assert 1 <= found["best"]["epoch"] <= 3
    assert "Best epoch in validation" in reproduce.report(results)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("title =", "titel ="), "unknown: titel; missing: title"),
        (('"synthetic"', '"fast"'), "synthetic"),
        (('loss = "bpr"', 'loss = "bqr"'), "bqr"),
        (("weight = 0.8", "wait = 0.8"), "wait"),
        (("seeds = [3, 4]", "seeds = []"), "seeds"),
        (("seeds = [3, 4]", "seeds = [-1]"), "seeds"),
        (("[[methods]]", "[[methods"), "not a TOML file"),
        (('"triangle"', '"square"'), "square"),
    ],
)
def test_bad_files_are_named(experiment, tmp_path, capsys, change, said):
    experiment.write_text(SYNTHETIC.replace(*change))
    argv = ["reproduce", "--experiment", str(experiment), "--output", str(tmp_path / "out"), "--quiet"]
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert said in err


def test_command_line(experiment, tmp_path, capsys):
    argv = ["reproduce", "--experiment", str(experiment), "--output", str(tmp_path / "out"), "--quiet"]
    assert cli.main([*argv, "--no-run"]) == 0
    assert "Not finished: BPR, Zerosum w=.8." in capsys.readouterr().out
    assert cli.main([*argv, "--jobs", "1"]) == 0
    text = (tmp_path / "out" / "REPORT.md").read_text()
    assert "| BPR | 2 |" in text
    record = json.loads((tmp_path / "out" / "small" / "bpr-seed3.json").read_text())
    assert set(record["metrics"]["last"]) >= {"error", "pri", "pop_q_at_1"}
    assert cli.main(["reproduce", "--experiment", str(tmp_path / "none.toml")]) == 2


def test_the_projects_own_experiments_are_well_formed(request):
    files = sorted((request.config.rootpath / "benchmarks" / "paper").glob("*.toml"))
    assert files
    for file in files:
        names = [cell.file for cell in reproduce.Experiment.read(file).cells()]
        assert len(set(names)) == len(names)
