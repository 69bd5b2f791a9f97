"""Experiment files: cells, resuming, protocols, the report."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from zerosum_ext import Interactions, metrics, sample_negatives
from zerosum_ext.cli import main as cli
from zerosum_ext.data import datasets
from zerosum_ext.experiments import frontier, reproduce, runs
from zerosum_ext.experiments.reproduce import protocols, running
from zerosum_ext.training import fit

SYNTHETIC = """
title = "Small"
protocol = "synthetic"
columns = ["error", "pri", "pop_q_at_1"]
seeds = [3, 4]
data = {source = "triangle"}
settings = {epochs = 1, batch_size = 4096, embedding_dim = 4}

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


def lines(path):
    """The results in a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_finished_cells_are_not_run_again_and_others_are(experiment, tmp_path, monkeypatch):
    results = reproduce.run(experiment, tmp_path / "out", progress=False, only="BPR")
    assert [r["seed"] for r in results.records["BPR"]] == [3, 4]
    assert results.records["Zerosum w=.8"] == []
    assert [(r["method"], r["seed"]) for r in lines(tmp_path / "out" / "small.jsonl")] == [("BPR", 3), ("BPR", 4)]
    ran = []
    real = running.run_cell

    def run_cell(cell, data):
        ran.append((cell.name, cell.method.seed))
        return real(cell, data)

    monkeypatch.setattr(running, "run_cell", run_cell)
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
    # The figures of each epoch, of which the last are those of the trained model.
    every = [r["history"]["figures"] for r in results.records["BPR"]]
    assert [one[-1]["pri"] for one in every] == results.values("BPR", "pri").tolist()
    row = next(line for line in text.splitlines() if line.startswith("| BPR |") and " to " in line)
    pri = [x["pri"] for one in every for x in one]
    assert f"{min(pri):.3f} to {max(pri):.3f}" in row
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
leak = {json.dumps(leak)}
columns = ["hit@10", "ndcg@10", "pri"]
data = {{source = "{tmp_path / "few.npz"}", min_item_count = 2}}
settings = {{epochs = 3, batch_size = 64, embedding_dim = 8, lr = 0.01}}
[[methods]]
name = "BPR"
settings = {{loss = "bpr"}}
"""
    )
    return path


@pytest.mark.parametrize("leak", [False, "positives", True])
def test_benchmark_protocol(tmp_path, monkeypatch, leak):
    path = benchmark_file(tmp_path, leak)
    given = {}
    real = protocols.fit
    monkeypatch.setattr(
        protocols, "fit", lambda m, t, *a, **k: given.update(model=m, train=t, **k) or real(m, t, *a, **k)
    )
    results = reproduce.run(path, tmp_path / "out", progress=False)
    found = results.records["BPR"][0]["metrics"]
    everything = reproduce.read_experiment(path).data.read()
    split = everything.split_random((0.6, 0.2, 0.2), seed=0)
    assert torch.equal(given["train"].indices, split.train.indices)
    users = torch.arange(everything.num_users)
    negatives = sample_negatives(everything, users, 100, seed=0, replacement=False)
    if leak:
        excluded = given["exclude"].to_scipy().toarray() > 0
        assert excluded[users[:, None], negatives].all() == (leak is True)
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
        (("weight = 0.8", "wait = 0.8"), "device, negatives_shared, got 'wait'"),
        (('loss = "bpr"}', 'loss = "bpr", loss_options = {gamma = 1}}'), "method 'BPR': loss_options: expected those"),
        (("seeds = [3, 4]", 'leak = "some"'), "leak"),
        (("seeds = [3, 4]", "seeds = []"), "seeds"),
        (("seeds = [3, 4]", "seeds = [-1]"), "seeds"),
        (("weight = 0.8, epochs = 2}", 'weight = 0.8}\npairing = "wrong"'), "pairing"),
        (("weight = 0.8, epochs = 2}", 'weight = 0.8}\npairing = "released"'), "pos2neg2"),
        (("weight = 0.8, epochs = 2}", "weight = 0.8}\nsweep = {epochs = [1], embedding_dim = [2]}"), "sweep"),
        (("weight = 0.8, epochs = 2}", "weight = 0.8}\nseeds = [1]"), "seeds"),
        (('"Zerosum w=.8"', '"BPR"'), "'BPR'"),
        (("[[methods]]", "[[methods"), "not a TOML file"),
        (('"triangle"', '"square"'), "square"),
        (('"Zerosum w=.8"', '"bpr+"'), "methods 'BPR' and 'bpr+': expected names that differ in more than case"),
        (('"Zerosum w=.8"', '"β"'), "method 'β': expected a name with a letter"),
        (('"Zerosum w=.8"', "3"), "method 2: name: expected a text, got int 3"),
        (('"Small"', "3"), "title: expected a text, got int 3"),
        (("seeds = [3, 4]", "seeds = [3, 3]"), "seeds: expected each once"),
        (("seeds = [3, 4]", 'seeds = ["a"]'), "seeds: expected an integer >= 0, got str 'a'"),
        (("seeds = [3, 4]", "seeds = 3"), "seeds: expected a list"),
        (("seeds = [3, 4]", "note = 3"), "note: expected a text, got int 3"),
        (("{source =", "{sauce ="), "data: expected source, "),
        (('{source = "triangle"}', '"triangle"'), "data: expected a table, got str 'triangle'"),
        (('{source = "triangle"}', "{source = 3}"), "data: source: expected a text"),
        (
            ("settings = {epochs = 1, batch_size = 4096, embedding_dim = 4}", "settings = 3"),
            "settings: expected a table",
        ),
        (('settings = {loss = "bpr"}', ""), "method 'BPR': settings: expected a table"),
        (("epochs = 1,", 'epochs = "one",'), "epochs: expected an integer"),
        (("epochs = 1,", "epochs = 1, negatives = 0,"), "negatives: expected an integer in [1, 65536], got 0"),
        (("published = {error = 0.25, pri = 0.5}", "published = 3"), "method 'BPR': published: expected a table"),
        (("pri = 0.5", 'pri = "low"'), "method 'BPR': published 'pri': expected a number, got str 'low'"),
        (('"pop_q_at_1"', '"prii"'), "'prii'"),
        (('["error", "pri", "pop_q_at_1"]', '"pri"'), "columns: expected a list"),
        (("weight = 0.8, epochs = 2}", "epochs = 2}\nsweep = {weight = 0.5}"), "sweep: weight: expected a list"),
        (("weight = 0.8, epochs = 2}", "epochs = 2}\nsweep = {weight = [0.5, 0.5]}"), "w=0.5' twice"),
    ],
)
def test_bad_files_are_named(experiment, tmp_path, capsys, change, said):
    experiment.write_text(SYNTHETIC.replace(*change))
    argv = ["reproduce", "--experiment", str(experiment), "--output", str(tmp_path / "out"), "--quiet"]
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert said in err
    assert "small.toml" in err or change[1] == '"square"'


def test_a_single_table_of_methods_is_named(experiment):
    experiment.write_text(SYNTHETIC.partition("[[methods]]")[0] + '[methods]\nname = "BPR"\n')
    with pytest.raises(ValueError, match=r"small\.toml: methods: expected tables \[\[methods\]\], got dict"):
        reproduce.read_experiment(experiment)


@pytest.mark.parametrize("content", ["", "{}", "[1]", "{"])
def test_a_damaged_cell_is_named(experiment, tmp_path, capsys, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "small.jsonl").write_text(content + "\n")
    argv = ["reproduce", "--experiment", str(experiment), "--output", str(tmp_path / "out"), "--quiet"]
    for more in ([], ["--no-run"]):
        assert cli.main([*argv, *more]) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        assert "small.jsonl, line 1, is damaged" in err


@pytest.mark.parametrize("torn", [1, 20, -1])
def test_a_result_that_was_cut_off_is_run_again(experiment, tmp_path, torn):
    file = tmp_path / "out" / "small.jsonl"
    results = reproduce.run(experiment, tmp_path / "out", progress=False, only="BPR")
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + second[:torn])
    assert len(reproduce.load(experiment, tmp_path / "out").records["BPR"]) == 1
    again = reproduce.run(experiment, tmp_path / "out", progress=False, only="BPR")
    assert [r["metrics"] for r in again.records["BPR"]] == [r["metrics"] for r in results.records["BPR"]]
    assert [r["seed"] for r in lines(file)] == [3, 4]


def test_what_selects_nothing_is_refused(experiment, tmp_path, capsys):
    argv = ["reproduce", "--experiment", str(experiment), "--output", str(tmp_path / "out"), "--quiet"]
    for more, said in (
        (["--only", "nothing"], "--only: expected a part of a method's name, 'BPR', 'Zerosum w=.8', got 'nothing'"),
        (["--seed", "3", "7"], "--seed: expected seeds of the files, 3, 4, got 7"),
    ):
        assert cli.main([*argv, *more]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_experiments_of_one_name_are_refused(experiment, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "small.toml"
    other.write_text(SYNTHETIC)
    argv = ["reproduce", "--experiment", str(experiment), str(other), "--output", str(tmp_path / "out"), "--no-run"]
    assert cli.main(argv) == 2
    assert "--experiment: expected files of different names" in capsys.readouterr().err


def test_a_sweep_over_texts(experiment):
    experiment.write_text(SYNTHETIC.replace(", epochs = 2}", '}\nsweep = {model = ["mf", "gmf"]}'))
    read = reproduce.read_experiment(experiment)
    assert read.families == {"Zerosum w=.8": ("Zerosum w=.8 model=mf", "Zerosum w=.8 model=gmf")}
    assert read.methods["Zerosum w=.8 model=gmf"].model == "gmf"


def test_other_data_under_the_same_name_are_trained_on_anew(tmp_path):
    path = benchmark_file(tmp_path, False)
    before = reproduce.run(path, tmp_path / "out", progress=False).records["BPR"][0]
    assert reproduce.run(path, tmp_path / "out", progress=False).records["BPR"][0] == before
    with np.load(tmp_path / "few.npz") as archive:
        arrays = {name: array[:2000] for name, array in archive.items()}
    np.savez(tmp_path / "few.npz", **arrays)
    # Nothing is read where nothing is run; what is not run again does not pass for a result on these data.
    assert reproduce.load(path, tmp_path / "out").records["BPR"] == [before]
    assert reproduce.run(path, tmp_path / "out", progress=False, only="none").records["BPR"] == []
    after = reproduce.run(path, tmp_path / "out", progress=False).records["BPR"][0]
    assert after["data"] != before["data"]
    assert after["digest"] == before["digest"]
    assert after["history"]["samples"] != before["history"]["samples"]
    # A record of before there was a digest of the data stays valid.
    record = json.dumps({name: value for name, value in after.items() if name != "data"})
    (tmp_path / "out" / "few.jsonl").write_text(record + "\n")
    assert "data" not in reproduce.run(path, tmp_path / "out", progress=False).records["BPR"][0]


def workers_of(session):
    """Processes of a session that a pool has started."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, its = (folder / "stat").read_text().rpartition(") ")[2].split()[:4]
            if int(its) == session and state != "Z" and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("event", ["ctrl-c", "killed", "worker killed"])
def test_processes_end_with_what_started_them(experiment, tmp_path, event):
    text = SYNTHETIC.replace("epochs = 2", "epochs = 1000000").replace("[3, 4]", "[3, 4, 5, 6]")
    experiment.write_text(text)
    argv = ["reproduce", "--experiment", str(experiment), "--output", str(tmp_path / "out"), "--jobs", "2", "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-m", "zerosum_ext", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        file = tmp_path / "out" / "small.jsonl"

        def bpr_is_finished():  # both processes are up then, and begin cells that take long
            return file.is_file() and {3, 4} <= {r["seed"] for r in lines(file) if r["method"] == "BPR"}

        wait_until(lambda: bpr_is_finished() or process.poll() is not None)
        workers = workers_of(process.pid)
        assert len(workers) == 2
        if event == "ctrl-c":  # a terminal sends it to all
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGINT)
        else:
            os.kill(process.pid if event == "killed" else workers[0], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        wait_until(lambda: not workers_of(process.pid), 20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == {"ctrl-c": 130, "killed": -signal.SIGKILL, "worker killed": 2}[event], err
    if event != "killed":
        assert len(err.splitlines()) == 1, err
    if event == "worker killed":
        assert "one of 2 processes died" in err
    assert bpr_is_finished()


def test_command_line(experiment, tmp_path, capsys):
    argv = ["reproduce", "--experiment", str(experiment), "--output", str(tmp_path / "out"), "--quiet"]
    assert cli.main([*argv, "--no-run"]) == 0
    assert "Not finished: BPR, Zerosum w=.8." in capsys.readouterr().out
    assert cli.main([*argv, "--jobs", "1"]) == 0
    text = (tmp_path / "out" / "REPORT.md").read_text()
    assert "| BPR | 2 |" in text
    record = lines(tmp_path / "out" / "small.jsonl")[0]
    assert set(record["metrics"]["last"]) >= {"error", "pri", "pop_q_at_1"}
    assert cli.main(["reproduce", "--experiment", str(tmp_path / "none.toml")]) == 2


def test_some_seeds_alone(experiment, tmp_path):
    results = reproduce.run(experiment, tmp_path / "out", progress=False, only="BPR", seeds=[4])
    assert [r["seed"] for r in results.records["BPR"]] == [4]


def test_the_released_pairing():
    """Second positives are those of the user at the row's place in the table by user, in the order of the file."""
    x = Interactions.from_scipy(datasets.synthetic_triangle(30, 30))
    users, items = (t.long() for t in x.pairs())
    by_item = torch.argsort(items, stable=True)
    pairing = protocols._ReleasedPairing(x, by_item, seed=0)
    positives, negatives = torch.stack([items, items], 1), torch.zeros(x.nnz, 2, dtype=torch.int64)
    dense = torch.from_numpy(x.to_scipy().toarray() > 0)
    # Row r of the file is interaction by_item[r]; the table by user is in the interactions' own order.
    partner = dict(zip(by_item.tolist(), users.tolist(), strict=True))
    partners = torch.tensor([partner[q] for q in range(x.nnz)])
    drawn = set()
    for _ in range(20):
        same_users, pairs, same_negatives = pairing(users, positives, negatives)
        assert same_users is users
        assert same_negatives is negatives
        assert torch.equal(pairs[:, 0], items)
        assert dense[partners, pairs[:, 1]].all()
        drawn |= set(pairs[partners == 0, 1].tolist())
    assert drawn == set(items[users == 0].tolist())  # each positive of that user comes up
    # The share of wrong pairs that is known of the released synthetic data: 19 %.
    x = Interactions.from_scipy(datasets.synthetic_triangle())
    users, items = (t.long() for t in x.pairs())
    pairing = protocols._ReleasedPairing(x, torch.argsort(items, stable=True), seed=0)
    second = pairing(users, torch.stack([items, items], 1), items)[1][:, 1]
    dense = torch.from_numpy(x.to_scipy().toarray() > 0)
    assert float((~dense[users, second]).float().mean()) == pytest.approx(0.19, abs=0.01)


def test_the_released_pairing_is_trained_with(experiment, tmp_path):
    method = 'settings = {loss = "pos2neg2", weight = 0.8}\n'
    experiment.write_text(
        SYNTHETIC.replace('settings = {loss = "bpr"}\n', method).replace(
            'settings = {loss = "zerosum", weight = 0.8, epochs = 2}', method + 'pairing = "released"'
        )
    )
    results = reproduce.run(experiment, tmp_path / "out", progress=False)
    right, wrong = (records[0]["history"]["loss"] for records in results.records.values())
    assert right != wrong
    assert results.records["Zerosum w=.8"][0]["settings"]["pairing"] == "released"


SWEEP = """
[[methods]]
name = "Compensation"
settings = {loss = "compensation"}
sweep = {"loss_options.alpha" = [0.0, 0.5]}
[[methods]]
name = "Zerosum"
settings = {loss = "zerosum"}
sweep = {weight = [0.9, 0.5]}
[[methods]]
name = "Pearson"
settings = {loss = "pearson", loss_options = {weight = 10.0}}
[[methods]]
name = "MACR"
settings = {loss = "macr"}
[[methods]]
name = "PDA"
settings = {loss = "pda", loss_options = {gamma = 0.5}}
"""


def test_methods_of_every_kind_and_their_frontiers(tmp_path):
    path = benchmark_file(tmp_path, False)
    path.write_text(path.read_text() + SWEEP)
    results = reproduce.run(path, tmp_path / "out", progress=False)
    first = {name: records[0] for name, records in results.records.items()}
    last = {name: record["metrics"]["last"] for name, record in first.items()}
    # Trained once: BPR and what compensates its scores; alpha 0 leaves them as they are.
    assert [first[f"Compensation alpha={a}"]["trained_here"] for a in ("0", "0.5")] == [False, False]
    assert last["Compensation alpha=0"] == pytest.approx(last["BPR"])
    assert last["Compensation alpha=0.5"]["pri"] < last["BPR"]["pri"]
    # The regularizer acts, the last epoch's step of its own in the last figures.
    assert last["Pearson"]["pcc"] < last["BPR"]["pcc"]
    # The best epoch is that of what ranks, popularity in it.
    validation = first["PDA"]["history"]["validation"]
    assert first["PDA"]["metrics"]["best"]["epoch"] == 1 + int(np.argmax(validation))
    assert first["PDA"]["trained_here"]
    _, split, negatives = protocols._benchmark_data(results.experiment)
    parts = results.experiment.methods["PDA"].make_parts(split.train)
    fit(
        parts.model,
        split.train,
        parts.loss,
        epochs=3,
        batch_size=64,
        progress=False,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.01),
    )
    ranker = parts.inference(parts.model)
    assert protocols._sampled(ranker, split.valid, negatives)["ndcg@10"] == validation[-1]
    assert protocols._sampled(parts.model, split.valid, negatives)["ndcg@10"] != validation[-1]
    # c is the best of the candidates in validation.
    assert last["MACR"]["c"] in runs.MACR_REFERENCES
    assert results.experiment.families == {
        "Compensation": ("Compensation alpha=0", "Compensation alpha=0.5"),
        "Zerosum": ("Zerosum w=0.9", "Zerosum w=0.5"),
    }
    drawn = reproduce.draw(results, tmp_path / "out", tmp_path / "figures")
    names = {f"few-{a}-{e}.png" for a in ("ndcg", "full-ndcg") for e in ("last", "best")}
    assert {file.name for file in drawn.values()} == names
    text = reproduce.report(results, {caption: file.name for caption, file in drawn.items()})
    assert "few-full-ndcg-last.png" in text
    row = next(line for line in text.splitlines() if line.startswith("| Compensation | 2 |"))
    base = (last["BPR"]["ndcg@10"], last["BPR"]["pri"])
    points = [(last[n]["ndcg@10"], last[n]["pri"]) for n in results.experiment.families["Compensation"]]
    assert f"{frontier.area(points, base):.3f}" in row
    # The cell's own training is what a process would have done that had trained nothing before.
    protocols._last_trained.clear()
    again = reproduce.run(path, tmp_path / "again", progress=False, only="alpha=0.5")
    assert again.records["Compensation alpha=0.5"][0]["trained_here"]
    assert again.records["Compensation alpha=0.5"][0]["metrics"] == first["Compensation alpha=0.5"]["metrics"]


def test_another_split(tmp_path):
    path = benchmark_file(tmp_path, False)
    with np.load(tmp_path / "few.npz") as archive:
        arrays = dict(archive)
    arrays["split"] = (np.arange(len(arrays["user"])) % 4 == 0).astype(np.int8)  # 1: test
    np.savez(tmp_path / "few.npz", **arrays)
    path.write_text('split = {kind = "column"}\n' + path.read_text())
    experiment = reproduce.read_experiment(path)
    everything, split, negatives = protocols._benchmark_data(experiment)
    assert (split.train | split.valid | split.test).nnz == sum(part.nnz for part in split) == everything.nnz
    expected = experiment.data.read().split_by("split", train=0, valid=2, test=1)
    assert torch.equal(split.test.indices, expected.test.indices)
    assert (split.train | split.valid).nnz == expected.train.nnz
    assert split.valid.nnz == pytest.approx(0.1 * expected.train.nnz, rel=0.1)
    held = everything.to_scipy().toarray() > 0
    assert not held[torch.arange(everything.num_users)[:, None], negatives].any()
    plain = reproduce.read_experiment(benchmark_file(tmp_path, False)).cells()[0]
    assert plain.digest != experiment.cells()[0].digest
    path.write_text(path.read_text().replace("title", 'split = {sort = "column"}\ntitle', 1))
    with pytest.raises(ValueError, match="sort"):
        reproduce.read_experiment(path)


def test_pictures_of_synthetic_data(experiment, tmp_path):
    results = reproduce.run(experiment, tmp_path / "out", progress=False)
    drawn = reproduce.draw(results, tmp_path / "out", tmp_path / "figures")
    names = {"small-scores.png", "small-ranks.png", "small-popq.png"}
    assert {file.name for file in drawn.values()} == names
    # Without the scores the pictures that are there are shown.
    for file in (tmp_path / "out" / "small").glob("*.npz"):
        file.unlink()
    assert reproduce.draw(results, tmp_path / "out", tmp_path / "figures") == drawn
    assert reproduce.draw(results, tmp_path / "out", tmp_path / "elsewhere") == {}


def test_what_has_no_data_is_skipped_and_said(experiment, tmp_path, capsys):
    absent = tmp_path / "absent.toml"
    absent.write_text(benchmark_file(tmp_path, False).read_text().replace("few.npz", "none.npz"))
    (tmp_path / "FINDINGS.md").write_text("What was found.\n")
    argv = ["reproduce", "--experiment", str(absent), str(experiment), "--output", str(tmp_path / "out"), "--quiet"]
    assert cli.main([*argv, "--only", "BPR", "--seed", "3"]) == 0
    captured = capsys.readouterr()
    assert "absent.toml: skipped." in captured.err
    assert "none.npz" in captured.err
    text = (tmp_path / "out" / "REPORT.md").read_text()
    assert "What was found." in text
    assert "| BPR | 1 |" in text
    assert "figures/small-scores.png" in text


def test_the_projects_own_experiments_are_well_formed(request):
    files = sorted((request.config.rootpath / "benchmarks" / "paper").glob("*.toml"))
    assert files
    for file in files:
        names = [cell.stem for cell in reproduce.read_experiment(file).cells()]
        assert len(set(names)) == len(names)


def test_the_projects_own_results_are_those_of_its_experiments(request):
    """A new option, or a new name of one, must not make finished results look like those of other settings."""
    folder = request.config.rootpath / "benchmarks" / "paper"
    found = 0
    for file in sorted(folder.glob("*.toml")):
        results = folder / "results" / f"{file.stem}.jsonl"
        if results.is_file():
            records = reproduce.load(file, folder / "results").records
            assert sum(map(len, records.values())) == len(lines(results)), file.name
            found += len(lines(results))
    assert found > 500
