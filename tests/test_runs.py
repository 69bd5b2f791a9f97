"""Run folders: training beside BPR, going on after an interruption, opening, evaluating, recommending."""

from __future__ import annotations

import csv
import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import zerosum_ext as zx
from zerosum_ext import evaluation
from zerosum_ext.experiments import runs
from zerosum_ext.experiments.runs import method as training_of_one

METHOD = runs.Method(weight=0.8, embedding_dim=8, epochs=3, batch_size=64, patience=None)
FAST = {"figures": False, "progress": False}
FILES = {"config.json", "interactions.npz", "metrics.json", "history.csv", "verdict.json", "report.html"}
FILES |= {"curves.png", "popq.png", "ranks.png"}


@pytest.fixture(scope="module")
def ratings(tmp_path_factory):
    """A file of a triangle's interactions, with ids that are not indices: users u007, ..., items 1000, 1003, ..."""
    path = tmp_path_factory.mktemp("data") / "ratings.csv"
    users, items = zx.datasets.synthetic_triangle(40, 40).nonzero()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item"])
        writer.writerows([f"u{u:03}", 1000 + 3 * i] for u, i in zip(users, items, strict=True))
    return path


@pytest.fixture(scope="module")
def finished(ratings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return runs.train(ratings, folder, METHOD, progress=False)


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_run_has_all_it_needs(finished):
    names = {p.name for p in finished.folder.iterdir()}
    assert names == FILES | {"scores.png", "bpr", "zerosum"}
    for name in finished.methods:
        assert {p.name for p in (finished.folder / name).iterdir()} == {
            "model.safetensors",
            "history.json",
            "metrics.json",
        }
    assert finished.main == "zerosum"
    assert finished.methods["bpr"] == replace(METHOD, loss="bpr", weight=None)
    assert json.loads((finished.folder / "metrics.json").read_text()) == finished.metrics
    assert {"hr@10", "ndcg@20", "pri", "pop_q_at_1", "arp@10", "coverage@20"} <= set(finished.metrics["bpr"])
    rows = list(csv.reader((finished.folder / "history.csv").open()))
    assert rows[0] == ["method", "epoch", "loss", "validation ndcg@10", "seconds", "samples"]
    assert [row[:2] for row in rows[1:]] == [[m, str(e)] for m in ("bpr", "zerosum") for e in (1, 2, 3)]
    config = json.loads((finished.folder / "config.json").read_text())
    assert config["methods"]["zerosum"]["weight"] == 0.8
    assert config["environment"]["torch"] == torch.__version__


def test_the_model_file_is_one_of_matrix_factorization(finished):
    model = zx.MatrixFactorization.load(finished.folder / "zerosum" / "model.safetensors")
    assert same_weights(model, finished.model())


def test_a_model_file_says_where_it_comes_from(finished):
    for name, method in finished.methods.items():
        known = zx.Recommender.load(finished.folder / name / "model.safetensors").information
        assert known["version"] == zx.__version__
        assert known["settings"]["loss"] == name
        assert known["settings"]["lr"] == method.lr
        assert known["settings"]["data"]["source"] in str(finished.config["data"])
        assert known["metrics"] == {k: v for k, v in finished.metrics[name].items() if np.isfinite(v)}


def test_a_card_is_written_where_asked_for(ratings, tmp_path):
    run = runs.train(ratings, tmp_path / "run", METHOD, baseline=False, figures=False, card=True, progress=False)
    text = (run.folder / "zerosum" / "card.md").read_text()
    assert text.startswith("---\nlibrary_name: zerosum-ext")
    assert f"| ndcg@10 | {run.metrics['zerosum']['ndcg@10']:.6g} |" in text
    assert "| loss | zerosum |" in text
    again = runs.train(ratings, tmp_path / "run", METHOD, baseline=False, figures=False, resume=True, progress=False)
    assert again.metrics == run.metrics


def test_an_opened_run_is_the_run(finished):
    run = runs.Run.open(finished.folder)
    assert run.methods == finished.methods
    for part, expected in zip(run.split, finished.split, strict=True):
        assert torch.equal(part.indptr, expected.indptr)
        assert torch.equal(part.indices, expected.indices)
    np.testing.assert_array_equal(run.split.train.user_ids, finished.split.train.user_ids)
    assert run.evaluate()[0] == finished.metrics
    # The figures are those of the library's own evaluate with the run's conventions.
    seen = run.split.train | run.split.valid
    names = (*evaluation.METRICS, *evaluation.WEIGHTED_METRICS)
    popularity = (seen | run.split.test).popularity
    values = zx.evaluate(run.model(), seen, run.split.test, metrics=names, popularity=popularity)
    assert values == pytest.approx(finished.metrics["zerosum"], nan_ok=True)


def test_recommendations_are_in_external_ids_and_new_to_the_user(finished):
    run = runs.Run.open(finished.folder)
    users = ["u005", "u030", "u001"]
    found = run.recommend(users, 50)
    assert [one.user for one in found] == users
    for one in found:
        u = int(one.user[1:])
        owned = {1000 + 3 * i for i in np.flatnonzero(zx.datasets.synthetic_triangle(40, 40)[u].toarray()[0])}
        assert set(one.items) == {1000 + 3 * i for i in range(40)} - owned
        assert one.scores == sorted(one.scores, reverse=True)
        index, item = run.split.train.encode_users([one.user]), run.split.train.encode_items([one.items[0]])
        assert one.scores[0] == pytest.approx(float(run.model().predict(index, item)))
    assert len(run.recommend(["u005"], 50, include_seen=True)[0].items) == 40
    assert run.recommend(["u030"], 3, method="bpr")[0].items != []
    with pytest.raises(ValueError, match="no user 'u999'"):
        run.recommend(["u005", "u999"])


def test_recommendations_for_users_who_are_new(finished, tmp_path):
    run = runs.Run.open(finished.folder)
    file = tmp_path / "week.csv"
    file.write_text("user,item\nnew,1000\nu030,1099\nnew,1006\nother,1003\n")
    source = runs.DataSource(str(file))
    found = {one.user: one for one in run.recommend_by_history(source, 50)}
    assert set(found) == {"new", "other", "u030"}
    owned = [1000 + 3 * i for i in np.flatnonzero(zx.datasets.synthetic_triangle(40, 40)[30].toarray()[0])]
    histories = {"new": [1000, 1006], "other": [1003], "u030": [*owned, 1099]}  # a known user keeps what the run has
    model, items = run.model(), {name: run.split.train.encode_items(own) for name, own in histories.items()}
    for name, own in items.items():
        assert set(found[name].items) == {1000 + 3 * i for i in range(40)} - set(histories[name])
        row = model.fold_in([own], loss=zx.ZerosumLoss(w=METHOD.weight), l2=0.1)
        best, scores = model.recommend_for(row, 3, exclude=[own])
        assert found[name].items[:3] == run.split.train.decode_items(best[0].numpy()).tolist()
        assert found[name].scores[:3] == pytest.approx(scores[0].tolist())
    one = run.recommend_by_history(source, 2, users=["other", "new"], method="bpr", include_seen=True)
    assert [each.user for each in one] == ["other", "new"]
    assert one[0].items != found["other"].items[:2]
    with pytest.raises(ValueError, match="user ids: the history has no user 'u001'"):
        run.recommend_by_history(source, users=["new", "u001"])
    with pytest.raises(ValueError, match=r"no user 'new' among these 40; recommend_by_history recommends for"):
        run.recommend(["new"])


def test_a_history_with_items_that_are_new(finished, tmp_path):
    run = runs.Run.open(finished.folder)
    file, notes = tmp_path / "week.csv", []
    file.write_text("user,item\nnew,1000\nnew,5\nlost,5\nnew,1003\n")
    with pytest.raises(ValueError, match=r"no item 5 \(2 of 4 rows .*; skip_unknown=True leaves such rows out"):
        run.recommend_by_history(runs.DataSource(str(file)))
    found = run.recommend_by_history(runs.DataSource(str(file)), 3, skip_unknown=True, note=notes.append)
    assert [one.user for one in found] == ["new"]
    assert not {1000, 1003} & set(found[0].items)
    assert notes == [
        "2 rows are of items that the run does not know, and were left out; 1 users have no other item, and get no list"
    ]
    file.write_text("user,item\nlost,5\n")
    with pytest.raises(ValueError, match="no row is of an item that the run knows"):
        run.recommend_by_history(runs.DataSource(str(file)), skip_unknown=True)


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"model": "lightgcn"}, ""),
        ({"loss": "ipw"}, ""),
        ({"loss": "pos2neg2", "weight": 0.8}, ""),
        ({"loss": "ease"}, "fold_in: expected a model whose scores are dot products"),
        ({"loss": "hinge"}, "loss: expected one without kinks"),
    ],
)
def test_models_that_fold_new_users_in_and_models_that_do_not(ratings, tmp_path, settings, refused):
    method = replace(METHOD, **{"loss": "bpr", "weight": None, "epochs": 1, **settings})
    run = runs.train(ratings, tmp_path / "run", method, baseline=False, **FAST)
    week = zx.Interactions.from_arrays(["new", "new"], [1000, 1006], ids=True)
    if refused:
        with pytest.raises(ValueError, match=refused):
            run.recommend_by_history(week, 3)
    else:
        assert [len(one.items) for one in run.recommend_by_history(week, 3)] == [3]


def test_a_user_who_owns_every_item_trains_and_gets_an_empty_list(tmp_path):
    notes = []
    cells = zx.datasets.synthetic_triangle(20, 20).toarray()
    cells[3] = 1
    users, items = np.nonzero(cells)
    data = zx.Interactions.from_arrays(users, items, columns={"split": np.where(users % 5 == 4, items % 2, 0)})
    run = runs.train(data, tmp_path / "r", METHOD, split=runs.SplitRule("column"), note=notes.append, **FAST)
    assert any("have every item" in note for note in notes)
    assert run.recommend([3], 5)[0].items == []
    assert run.histories["zerosum"].validation == []


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_interrupted_run_goes_on_to_the_same_bits(ratings, finished, tmp_path, monkeypatch, epoch):
    original, calls = training_of_one.fit, []

    def interrupted_fit(model, *args, **options):
        calls.append(options["resume"])
        if len(calls) == 2:  # Ctrl-C in the main method
            options["callbacks"] = [lambda e: signal.raise_signal(signal.SIGINT) if e.epoch == epoch - 1 else None]
        return original(model, *args, **options)

    monkeypatch.setattr(training_of_one, "fit", interrupted_fit)
    with pytest.raises(KeyboardInterrupt):
        runs.train(ratings, tmp_path / "r", METHOD, **FAST)
    assert (tmp_path / "r" / "zerosum" / "checkpoint.pt").is_file()
    with pytest.raises(ValueError, match="its training is not over"):
        runs.Run.open(tmp_path / "r").recommend(["u005"])
    run = runs.train(ratings, tmp_path / "r", METHOD, **FAST, resume=True)
    assert calls == [None, None, tmp_path / "r" / "zerosum" / "checkpoint.pt"]  # bpr was not trained again
    assert same_weights(run.model(), finished.model())
    assert run.metrics == finished.metrics
    assert not (tmp_path / "r" / "zerosum" / "checkpoint.pt").exists()


def test_a_finished_run_is_shown_again_by_resuming(ratings, finished, monkeypatch):
    monkeypatch.setattr(training_of_one, "fit", None)
    assert runs.train(ratings, finished.folder, METHOD, resume=True).metrics == finished.metrics


def test_a_folder_in_use_is_respected(ratings, tmp_path):
    folder = tmp_path / "r"
    short = replace(METHOD, epochs=1)
    runs.train(ratings, folder, short, baseline=False, **FAST)
    with pytest.raises(ValueError, match="with these settings already: resume"):
        runs.train(ratings, folder, short, baseline=False, **FAST)
    for other, said in (
        ({"method": replace(short, lr=0.1)}, r"zerosum.lr: 0.001 there, 0.1 now"),
        ({"k": (5,)}, r"k: \[10, 20\] there, \[5\] now"),
        ({"split": runs.SplitRule(seed=1)}, "another split"),
        ({"baseline": True}, "bpr"),
    ):
        for resume in (False, True):
            with pytest.raises(ValueError, match=said):
                runs.train(ratings, folder, **{"method": short, "baseline": False, **other}, resume=resume)
    (folder / "mine.txt").write_text("keep")
    run = runs.train(ratings, folder, replace(short, lr=0.1), baseline=False, overwrite=True, **FAST)
    assert run.methods["zerosum"].lr == 0.1
    assert (folder / "mine.txt").read_text() == "keep"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="not a run folder"):
            runs.train(ratings, tmp_path / "other", short, overwrite=overwrite, **FAST)


def test_bad_settings_leave_nothing_behind(ratings, tmp_path):
    for change, said in (({"weight": 1.5}, r"w: expected a number in \[0, 1\]"), ({"loss_options": {"x": 1}}, "'x'")):
        with pytest.raises(ValueError, match=said):
            runs.train(ratings, tmp_path / "r", replace(METHOD, **change))
    with pytest.raises(ValueError, match="model_options: 'mf' takes"):
        runs.train(ratings, tmp_path / "r", replace(METHOD, model_options={"nonsense": 1}))
    with pytest.raises(ValueError, match="left for test"):
        runs.train(ratings, tmp_path / "r", METHOD, split=runs.SplitRule(ratios=(1.0, 0.0)))
    assert not (tmp_path / "r").exists()
    for options in (
        {"loss": "nonsense"},
        {"loss": "bpr", "weight": 0.5},
        {"weight": 0.5, "loss_options": {"w": 0.8}},
        {"metric": "pri"},
        {"metric": "ndcg"},
        {"device": "nonsense"},
        {"batch_size": 0},
        {"patience": 0},
        {"negatives": 0},
        {"draws": 0},
        {"l2": -1.0},
        {"strategy": "nonsense"},
    ):
        with pytest.raises(ValueError):
            runs.Method(**options)


@pytest.mark.parametrize("loss", zx.losses.loss_names())
def test_every_loss_trains(ratings, tmp_path, loss):
    method = replace(METHOD, loss=loss, weight=None, epochs=1)
    run = runs.train(ratings, tmp_path / "r", method, baseline=False, **FAST)
    assert list(run.metrics) == [loss]


@pytest.mark.parametrize("optimizer", list(runs.OPTIMIZERS))
def test_every_optimizer_trains(ratings, tmp_path, optimizer):
    method = replace(METHOD, optimizer=optimizer, lr=0.05, epochs=2)
    run = runs.train(ratings, tmp_path / "r", method, baseline=False, **FAST)
    history = run.histories["zerosum"]
    assert history[1] < history[0]


def test_another_model_is_one_line(ratings, tmp_path, monkeypatch):
    class Popular(torch.nn.Module):
        """Scores an item by what it learns of the item alone."""

        def __init__(self, num_users, num_items):
            super().__init__()
            self.num_users, self.num_items = num_users, num_items
            self.value = torch.nn.Parameter(torch.zeros(num_items))

        def forward(self, users, items):
            return self.value[items]

        @torch.no_grad()
        def score_all_items(self, users):
            return self.value.expand(len(users), -1)

    monkeypatch.setitem(runs.MODELS, "popular", lambda train, embedding_dim, seed: Popular(*train.shape))
    run = runs.train(ratings, tmp_path / "r", replace(METHOD, model="popular"), progress=False)
    assert runs.Run.open(run.folder).evaluate()[0] == run.metrics


def test_evaluating_on_other_data(finished, tmp_path):
    run = runs.Run.open(finished.folder)
    file = tmp_path / "later.csv"
    file.write_text("user,item\nu003,1117\nu010,1003\n")
    values, skipped = run.evaluate(runs.DataSource(str(file)), methods=["zerosum"], k=[5])
    assert skipped == 0
    users, items = run.split.train.encode_users(["u003", "u010"]), run.split.train.encode_items([1117, 1003])
    test = zx.Interactions.from_arrays(users, items, shape=run.split.train.shape)
    seen = run.split.train | run.split.valid
    names = (*evaluation.METRICS, *evaluation.WEIGHTED_METRICS)
    expected = zx.evaluate(run.model(), seen, test, metrics=names, k=[5], popularity=run.seen().popularity)
    assert values["zerosum"] == pytest.approx(expected, nan_ok=True)
    file.write_text("user,item\nu003,1117\nu777,1003\nu010,5\n")
    with pytest.raises(ValueError, match=r"no user 'u777' \(1 of 3 rows"):
        run.evaluate(runs.DataSource(str(file)))
    assert run.evaluate(runs.DataSource(str(file)), skip_unknown=True)[1] == 2
    file.write_text("user,item\nx,y\n")
    with pytest.raises(ValueError, match="no row is of a user and an item that the run knows"):
        run.evaluate(runs.DataSource(str(file)), skip_unknown=True)


@pytest.fixture
def copy(finished, tmp_path):
    import shutil

    return shutil.copytree(finished.folder, tmp_path / "copy")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", None, "not a run folder"),
        ("config.json", b"{", "no JSON"),
        ("config.json", b"[1]", "not the configuration"),
        ("config.json", b'{"format": "zerosum_ext.run/1"}', "damaged"),
        ("config.json", b'{"format": "zerosum_ext.run/1", "evaluation": {"k": "five"}}', "damaged: evaluation"),
        (
            "config.json",
            b'{"format": "zerosum_ext.run/1", "evaluation": {"k": [5]}, "methods": [1]}',
            "damaged: methods",
        ),
        ("interactions.npz", None, "damaged"),
        ("interactions.npz", b"PK\x03\x04 half", "damaged"),
        ("zerosum/model.safetensors", None, "not over"),
        ("zerosum/model.safetensors", b"\x00" * 100, "not a model"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_damaged_folder_is_named(copy, file, content, said):
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        runs.Run.open(copy).recommend(["u005"])


def test_nan_weights_are_named(copy):
    path = copy / "zerosum" / "model.safetensors"
    tensors = load_file(path)
    tensors["item_embedding"][39] = float("nan")
    save_file(tensors, path)
    for act in (lambda run: run.recommend(["u005"]), lambda run: run.evaluate()):
        with pytest.raises(ValueError, match="NaN"):
            act(runs.Run.open(copy))


def test_sources_are_files_or_names(tmp_path, monkeypatch):
    np.savez(tmp_path / "tiny.npz", user=np.array([0, 1]), item=np.array([1, 0]))
    monkeypatch.setenv("ZEROSUM_EXT_DATA", str(tmp_path))
    assert runs.DataSource("tiny").read().shape == (2, 2)
    assert runs.DataSource(str(tmp_path / "tiny.npz")).read().shape == (2, 2)
    with pytest.raises(FileNotFoundError, match="nor a data set of that name"):
        runs.DataSource("nonsense").read()
    monkeypatch.delenv("ZEROSUM_EXT_DATA")
    with pytest.raises(FileNotFoundError, match="ZEROSUM_EXT_DATA"):
        runs.DataSource("tiny").read()


# ---- searching for the weight

SEARCH = runs.WeightSearch(max_cost=0.3, bias="pri", weights=(0.5, 0.9))


@pytest.fixture(scope="module")
def searched(ratings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "searched"
    return runs.train(ratings, folder, replace(METHOD, weight=None, epochs=8, lr=0.02), search=SEARCH, **FAST)


def test_a_search_takes_the_least_biased_that_costs_little(searched):
    found = json.loads((searched.folder / "weights" / "search.json").read_text())
    tried = found["tried"]
    assert [t["weight"] for t in tried] == [1.0, 0.9, 0.5]  # the mildest first
    for t in tried:
        assert t["affordable"] == (t["accuracy"] >= 0.7 * tried[0]["accuracy"])
    best = min((t for t in tried if t["affordable"]), key=lambda t: abs(t["bias"]))
    assert found["weight"] == best["weight"] == searched.methods["zerosum"].weight
    assert best["weight"] < 1  # else this test says little
    # The figures are those of the library's own evaluate, on the validation part alone.
    folder = searched.folder / "weights" / f"w{best['weight']:g}"
    model = zx.MatrixFactorization.load(folder / "model.safetensors")
    values = zx.evaluate(model, searched.split.train, searched.split.valid, metrics=("ndcg", "pri"), k=(10,))
    assert (values["ndcg@10"], values["pri"]) == (best["accuracy"], best["bias"])
    assert same_weights(model, searched.model())


def test_a_search_is_gone_on_with(ratings, searched, monkeypatch):
    method = replace(METHOD, weight=None, epochs=8, lr=0.02)
    with monkeypatch.context() as patch:
        patch.setattr(training_of_one, "fit", lambda *a, **k: pytest.fail("trained again"))
        again = runs.train(ratings, searched.folder, method, search=SEARCH, resume=True, **FAST)
    assert again.metrics == searched.metrics
    with pytest.raises(ValueError, match="max_cost"):
        runs.train(ratings, searched.folder, method, search=replace(SEARCH, max_cost=0.2), resume=True, **FAST)


def test_bpr_is_taken_where_all_costs_too_much(ratings, tmp_path):
    split = runs.SplitRule().apply(runs.DataSource(str(ratings)).read())
    search = runs.WeightSearch(max_cost=0.0, bias="pri", weights=(0.02, 0.01, 0.005))
    notes = []
    # So much of the regularizer keeps all scores near 0: nothing is learnt.
    method = replace(METHOD, weight=None, epochs=8, lr=0.02)
    weight, tried = runs.choose_weight(method, split, tmp_path / "w", search, note=notes.append, progress=False)
    if any(t.affordable for t in tried[1:]):
        pytest.fail(f"expected weights that cost something, got {tried}")
    assert weight == 1.0
    assert len(tried) == 3  # not the third weight, after two that cost too much
    assert "no weight reduced the bias" in notes[-1]


def test_bad_searches_are_named(ratings, tmp_path):
    for options, said in (
        ({"max_cost": 1.0}, "max_cost"),
        ({"bias": "gini"}, "bias"),
        ({"weights": ()}, "weights"),
        ({"weights": (1.0,)}, "weights"),
    ):
        with pytest.raises(ValueError, match=said):
            runs.WeightSearch(**options)
    with pytest.raises(ValueError, match="has a w"):
        runs.train(ratings, tmp_path / "a", replace(METHOD, loss="pd", weight=None), search=SEARCH, **FAST)
    with pytest.raises(ValueError, match="weight: expected None"):
        runs.train(ratings, tmp_path / "b", METHOD, search=SEARCH, **FAST)
    rule = runs.SplitRule(ratios=(0.8, 0.2))
    with pytest.raises(ValueError, match="validation"):
        runs.train(ratings, tmp_path / "c", replace(METHOD, weight=None), split=rule, search=SEARCH, **FAST)
    assert not any((tmp_path / name).exists() for name in "abc")


def test_a_weight_costs_what_it_loses_against_bpr(tmp_path, monkeypatch):
    # Each loses 4 % of the one before: only the first is within 5 % of BPR.
    from zerosum_ext.experiments.runs import search

    measured = iter([(0.5, 0.1), (0.48, 0.2), (0.46, 0.3), (0.44, 0.5), (0.42, 0.5)])
    monkeypatch.setattr(search, "train_method", lambda *args, **options: (None, None))
    monkeypatch.setattr(search, "_validate", lambda *args: next(measured))
    split = runs.SplitRule().apply(zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(40, 40)))
    chosen, tried = runs.choose_weight(runs.Method(loss="zerosum"), split, tmp_path)
    assert [(t.weight, t.affordable) for t in tried] == [(1.0, True), (0.98, True), (0.95, False), (0.9, False)]
    assert chosen == 0.98
