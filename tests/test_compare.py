"""compare: halving, the front, the choice, going on after an interruption, and what is said of poor data."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import zerosum_ext as zx
from zerosum_ext.cli import main as cli
from zerosum_ext.cli.compare import share
from zerosum_ext.experiments import runs
from zerosum_ext.experiments.compare import Candidate, Plan, Record, candidates, choice, families, front, search
from zerosum_ext.experiments.compare.trials import advance, read_record
from zerosum_ext.experiments.runs import Method

SMALL = {"methods": ("zerosum", "softmax", "compensation"), "epochs": 27, "embedding_dim": 8, "batch_size": 16}
GOAL = {"goal": "balanced", "max_cost": 0.2, "bias": "upo"}
FAST = {"jobs": 1, "figures": False, "progress": False}


def with_tastes(users=80, items=60, each=16, seed=0):
    """Users with a taste for one of five groups of items, upon a steep popularity."""
    rng = np.random.default_rng(seed)
    popular = 1 / np.arange(1, items + 1)
    taste = rng.integers(0, 5, users)
    weight = popular * np.where(np.arange(items) % 5 == taste[:, None], 20.0, 1.0)
    cells = np.stack([rng.choice(items, each, replace=False, p=row / row.sum()) for row in weight])
    return zx.Interactions.from_arrays(np.repeat(np.arange(users), each), cells.ravel(), shape=(users, items))


@pytest.fixture(scope="module")
def data():
    return with_tastes()


@pytest.fixture(scope="module")
def found(data, tmp_path_factory):
    return zx.compare(data, tmp_path_factory.mktemp("compare") / "c", **GOAL, **SMALL, **FAST)


def figures(comparison):
    """What must be the same however often a comparison was interrupted: all but the seconds."""
    told = comparison.to_dict()
    for row in told["candidates"]:
        del row["seconds"]
    return {**told, "folder": ""}


def test_the_run_folder_is_one_that_everything_reads(found, data):
    run = runs.Run.open(found.run.folder)
    assert next(iter(run.methods)) == "bpr"
    assert run.metrics == found.run.metrics
    for name, values in run.evaluate()[0].items():
        assert values == pytest.approx(run.metrics[name], nan_ok=True)
    assert found.chosen != "bpr"  # so that the tests below are of a setting that was looked for
    assert len(run.recommend([3], 5)[0].items) == 5
    assert runs.read_verdict(run).lines() == found.verdict.lines()
    told = json.loads((run.folder / "compare.json").read_text())
    assert told["chosen"] == found.chosen
    assert (run.folder / "report.html").is_file()
    assert cli.main(["evaluate", str(run.folder)]) == 0
    assert cli.main(["report", str(run.folder)]) == 0


def test_the_setting_taken_is_what_training_it_alone_gives(found, data, tmp_path):
    one = next(one for one in found.candidates if one.name == found.chosen)
    model, history = runs.train_method(one.method, found.run.split, tmp_path / "m", progress=False)
    for mine, theirs in zip(model.state_dict().values(), found.run.model().state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert list(history) == list(found.run.histories[one.method.loss])
    values, _ = runs.measure(model, found.run.split, k=(10, 20))
    assert found.run.metrics[one.method.loss] == values


def test_few_epochs_first_and_the_promising_ones_on(found):
    plan = Plan(**GOAL, **SMALL)
    least = search.least_epochs(plan, found.run.split.train.nnz)
    assert least == 5  # 300 steps of 64 an epoch
    trained = {name: record.trained for name, record in found.records.items()}
    assert all(epochs >= 1 for epochs in trained.values())
    left = [name for name, record in found.records.items() if not record.finished]
    assert left  # not all were trained to their end
    for name in left:
        method = next(one.method for one in found.candidates if one.name == name)
        assert trained[name] <= max(least, round(method.epochs / plan.keep))
    assert found.records["bpr"].finished
    assert found.records[found.chosen].finished


def test_the_choice_keeps_to_its_cost_and_is_by_validation(found, data):
    base, taken = found.points["bpr"], found.points[found.chosen]
    assert taken[0] >= 0.8 * base[0]
    assert taken[1] <= base[1]
    one = next(one for one in found.candidates if one.name == found.chosen)
    values = zx.evaluate(found.run.model(), found.run.split.train, found.run.split.valid, metrics=("ndcg", "upo"), k=10)
    assert found.records[one.name].values["ndcg@10"] == pytest.approx(values["ndcg@10"])
    assert taken[1] == pytest.approx(abs(values["upo"]))
    # What it costs on the test part is said where it is surely more than it may cost.
    against = next(other for other in found.verdict.against if other.name == "bpr")
    assert any("may cost" in text for text in found.verdict.warnings) == (against.accuracy.relative[2] < -0.2)


def test_what_changes_finished_scores_is_shown_and_not_taken(found):
    kinds = {one.name: one.kind for one in found.candidates}
    post = [name for name, kind in kinds.items() if kind == "post"]
    assert len(post) == 3
    assert kinds[found.chosen] == "trained"
    assert all(found.records[name].trained == found.records["bpr"].trained for name in post)
    # It is BPR's own model whose scores are changed.
    folder = found.run.folder / "trials"
    compensated = runs.Method(**_settings(folder / post[0] / "record.json"))
    model = compensated.make_parts(found.run.split.train)
    ranker = model.inference(model.model)
    ranker.backbone.load_state_dict(found.run.model("bpr").state_dict())
    values = zx.evaluate(ranker, found.run.split.train, found.run.split.valid, metrics=("ndcg",), k=10)
    assert found.records[post[0]].values["ndcg@10"] == pytest.approx(values["ndcg@10"])


def _settings(path):
    return json.loads(path.read_text())["method"]


@pytest.mark.parametrize("calls", [1, 11])
def test_an_interrupted_comparison_goes_on_to_the_same_figures(found, data, tmp_path, monkeypatch, calls):
    original, seen = search.advance, []

    def interrupted(*args):
        seen.append(args)
        if len(seen) > calls:
            raise KeyboardInterrupt
        return original(*args)

    options = {**GOAL, **SMALL, **FAST}
    monkeypatch.setattr(search, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        zx.compare(data, tmp_path / "c", **options)
    monkeypatch.setattr(search, "advance", original)
    with pytest.raises(ValueError, match="with these settings already: resume"):
        zx.compare(data, tmp_path / "c", **options)
    with pytest.raises(ValueError, match=r"epochs: 27 there, 8 now"):
        zx.compare(data, tmp_path / "c", **{**options, "epochs": 8}, resume=True)
    again = zx.compare(data, tmp_path / "c", **options, resume=True)
    assert figures(again) == figures(found)


def test_a_finished_comparison_is_shown_again_without_training(found, data, tmp_path, monkeypatch):
    shutil.copytree(found.run.folder, tmp_path / "c")
    monkeypatch.setattr("zerosum_ext.experiments.compare.trials.fit", None)
    again = zx.compare(data, tmp_path / "c", **GOAL, **SMALL, **FAST, resume=True)
    assert figures(again) == figures(found)


def test_overwriting_removes_the_candidates_and_nothing_else(found, data, tmp_path):
    folder = tmp_path / "c"
    shutil.copytree(found.run.folder, folder)
    (folder / "trials" / "mine.txt").write_text("keep")
    (folder / "trials" / "bpr" / "mine.txt").write_text("keep")
    method = Method(loss="bpr", embedding_dim=4, epochs=1)
    runs.train(data, folder, method, overwrite=True, figures=False, progress=False)
    assert sorted(p.name for p in (folder / "trials").iterdir()) == ["bpr", "mine.txt"]
    assert [p.name for p in (folder / "trials" / "bpr").iterdir()] == ["mine.txt"]
    assert not (folder / "compare.json").exists()


def test_seeds_are_averaged(data, tmp_path):
    small = {**SMALL, "methods": ("zerosum",), "epochs": 3, "rungs": 1}
    got = zx.compare(data, tmp_path / "c", goal="accuracy", seeds=(0, 5), **small, **FAST)
    each = []
    for name in ("bpr", "bpr-seed5"):
        method = Method(**_settings(got.run.folder / "trials" / name / "record.json"))
        model = runs.method.read_model(
            method, got.run.split.train, got.run.folder / "trials" / name / "model.safetensors"
        )
        each.append(runs.measure(model, got.run.split, k=(10, 20))[0]["ndcg@10"])
    assert each[0] != each[1]
    assert got.run.metrics["bpr"]["ndcg@10"] == pytest.approx(np.mean(each))


# ---- the parts


def record(accuracy, bias, finished=True, failed=""):
    values = {"ndcg@10": accuracy, "upo": bias}
    return Record(3, 3, 3, finished, 0.0, values if not failed else dict.fromkeys(values), failed)


def one(name, family=None, kind="trained"):
    return Candidate(name, family or name, kind, Method(loss="bpr"))


PLAN = Plan(goal="balanced", bias="upo", max_cost=0.05)
EVERYONE = [
    one("bpr"),
    one("mild"),
    one("strong"),
    one("best"),
    one("post", kind="post"),
    one("ease", kind="yardstick"),
]
RECORDS = {
    "bpr": record(0.2, 0.8),
    "mild": record(0.195, 0.6),
    "strong": record(0.17, 0.1),
    "best": record(0.25, 0.75),
    "post": record(0.199, 0.2),
    "ease": record(0.3, 0.05),
}


def test_the_front_is_what_nothing_beats_in_both():
    points = {"a": (0.3, 0.5), "b": (0.2, 0.1), "c": (0.2, 0.4), "d": (0.3, 0.6), "e": (0.1, 0.1)}
    assert front(points) == ["a", "b"]
    assert choice.layers(points) == ["a", "b", "d", "c", "e"]
    assert front({"a": (0.3, 0.5), "b": (0.3, 0.5)}) == ["a", "b"]


@pytest.mark.parametrize(
    ("plan", "taken"),
    [
        (PLAN, "mild"),
        (replace(PLAN, max_cost=0.2), "strong"),
        (replace(PLAN, max_cost=0.0), "best"),
        (replace(PLAN, goal="accuracy"), "best"),
        (replace(PLAN, goal="long-tail", max_cost=None), "mild"),
    ],
)
def test_the_choice_by_goal_and_cost(plan, taken):
    got, on_front, points = choice.choose(EVERYONE, RECORDS, plan, "bpr")
    assert got == taken
    assert on_front == ["best", "post", "strong"]  # the yardstick is no setting to take
    assert points["ease"] == (0.3, 0.05)


def test_settings_that_were_left_or_failed_are_not_taken():
    records = {**RECORDS, "mild": record(0.195, 0.6, finished=False), "best": record(0, 0, failed="diverged")}
    got, on_front, points = choice.choose(EVERYONE, records, PLAN, "bpr")
    assert got == "bpr"
    assert "best" not in points
    assert "mild" not in on_front
    with pytest.raises(ValueError, match="bias: BPR, which all are compared with, has no point"):
        choice.choose(EVERYONE, {**RECORDS, "bpr": record(0.2, None)}, PLAN, "bpr")


def test_promotion_keeps_bpr_and_each_family_until_the_last_rung():
    everyone = [one("bpr")] + [one(f"{family}{n}", family) for family in ("zerosum", "psl", "ccl") for n in range(4)]
    records = {one.name: record(0.2 - 0.001 * n, 0.5 + 0.01 * n) for n, one in enumerate(everyone)}
    records["bpr"] = record(0.2, 0.99)
    kept = [one.name for one in choice.promoted(everyone, records, PLAN, "bpr", last=False)]
    assert {"bpr", "zerosum0", "psl0", "ccl0"} <= set(kept)
    assert len(kept) <= 5 + 3
    last = [one.name for one in choice.promoted(everyone, records, PLAN, "bpr", last=True)]
    assert "bpr" in last
    assert "ccl0" not in last
    # What loses much accuracy goes on after all others, however little bias it has.
    records["psl3"] = record(0.05, 0.0)
    assert "psl3" not in [one.name for one in choice.promoted(everyone, records, PLAN, "bpr", last=True)]


def test_bias_left_is_a_share_of_bprs():
    base = {"pop_q_at_1": 0.1, "upo": 0.8, "arp@10": 100.0, "coverage@10": 0.2, "pri": 0.9, "aplt@10": 0.1}
    better = {"pop_q_at_1": 0.3, "upo": -0.4, "arp@10": 50.0, "coverage@10": 0.6, "pri": 0.9, "aplt@10": 0.2}
    assert choice.bias_left(base, base, "overall") == pytest.approx(1)
    assert choice.bias_left(better, base, "overall") == pytest.approx(0.5)
    assert choice.bias_left({**better, "upo": None}, base, "overall") == pytest.approx(0.5)
    assert choice.bias_left(better, base, "upo") == pytest.approx(0.4)
    assert choice.bias_left(better, base, "aplt@10") == -0.2
    assert choice.bias_left(better, base, "coverage@10") == pytest.approx(0.4)
    assert np.isnan(choice.bias_left({"upo": None}, base, "upo"))


def test_no_family_is_left_out_in_silence():
    plan = Plan()
    tried, left_out = candidates(None, plan.common(1000), 9, num_items=30_000)
    told = {one.family for one in tried} | set(left_out) | {"most_popular"}  # which is always measured
    assert told == set(families())
    assert tried[0].name == "bpr"
    assert len({one.name for one in tried}) == len(tried)
    assert all(len([c for c in tried if c.family == family]) <= 8 for family in families())
    for name, reason in left_out.items():
        assert name not in {one.family for one in tried}
        assert reason
    assert candidates(["zerosum"], plan.common(1000), 9, 100)[0][0].name == "bpr"


def test_training_that_diverges_is_a_record_that_says_so(found, tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    shutil.copy(found.run.folder / "interactions.npz", folder)
    method = Method(loss="bpr", embedding_dim=4, epochs=3, lr=1e30, optimizer="sgd", batch_size=8)
    got = advance(str(folder), Candidate("wild", "bpr", "trained", method), 3, ("ndcg@10",))
    assert "diverged" in got.failed
    assert got.finished
    assert got == read_record(folder / "trials" / "wild", method)
    (folder / "trials" / "wild" / "record.json").write_text("{}")
    with pytest.raises(ValueError, match=r"record.json is damaged"):
        read_record(folder / "trials" / "wild", method)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"goal": "fame"}, "goal: expected one of"),
        ({"max_cost": 1.0}, r"max_cost: expected a share in \[0, 1\), got 1.0"),
        ({"bias": "ndcg"}, "bias: expected one of"),
        ({"metric": "arp@10"}, "metric: expected a measure"),
        ({"methods": ("magic",)}, "methods: expected one of"),
        ({"seeds": ()}, "seeds: expected one or several"),
        ({"seeds": (1, 1)}, "seeds: expected one or several"),
        ({"rungs": 0}, "rungs: expected an integer >= 1"),
        ({"keep": 1}, "keep: expected an integer >= 2"),
    ],
)
def test_bad_settings_are_named(settings, said):
    with pytest.raises(ValueError, match=said):
        Plan(**settings)


# ---- data on which little can be learned


def test_a_file_in_which_no_user_has_two_items_is_refused_in_plain_words(tmp_path, capsys):
    path = tmp_path / "once.csv"
    path.write_text("user,item\n" + "".join(f"u{n},i{n % 7}\n" for n in range(60)))
    assert cli.main(["compare", str(path), "--output", str(tmp_path / "c"), "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "no user has two items" in err
    assert "recommend the most popular items" in err
    assert not (tmp_path / "c" / "config.json").exists()


def test_where_the_most_popular_items_win_the_comparison_says_so(tmp_path):
    """Everybody draws from one steep popularity, as in FilmTrust: there is no taste to learn."""
    rng = np.random.default_rng(0)
    chance = 1 / np.arange(1, 101) ** 1.5
    cells = np.stack([rng.choice(100, 15, replace=False, p=chance / chance.sum()) for _ in range(150)])
    data = zx.Interactions.from_arrays(np.repeat(np.arange(150), 15), cells.ravel())
    small = {**SMALL, "methods": ("zerosum",), "epochs": 3, "rungs": 1, "batch_size": 256}
    got = zx.compare(data, tmp_path / "c", goal="accuracy", **small, **FAST)
    best = max(accuracy for accuracy, _ in got.points.values())
    assert got.most_popular["ndcg@10"] >= best
    assert any("the most popular items, the same for everybody, are more accurate" in w for w in got.verdict.warnings)
    assert "in validation too the most popular items are more accurate than every candidate" in got.verdict.warnings


def test_ten_users_are_compared_and_said_to_be_few(tmp_path):
    small = {**SMALL, "methods": ("zerosum",), "epochs": 2, "rungs": 1}
    got = zx.compare(with_tastes(users=10), tmp_path / "c", **small, **FAST)
    assert got.verdict.users <= 10
    assert f"only {got.verdict.users} users were tested" in got.verdict.warnings[0]


# ---- the command line


def test_the_command_prints_the_verdict_first(data, tmp_path, capsys):
    path = tmp_path / "ratings.csv"
    users, items = data.pairs()
    path.write_text("user,item\n" + "".join(f"u{u},i{i}\n" for u, i in zip(users, items, strict=True)))
    argv = ["compare", str(path), "--output", str(tmp_path / "c"), "--methods", "zerosum", "ease", "--epochs", "3"]
    argv += ["--rungs", "1", "--embedding-dim", "8", "--jobs", "1", "--no-figures", "--goal", "accuracy"]
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert " against " in lines[0]
    assert "accuracy (NDCG@10)" in lines[0]
    assert any(line.startswith("> ") for line in lines)
    assert any(line.split()[:2] == ["most", "popular"] for line in lines)
    if "ease" not in zx.models.method_names():
        assert "not tried: ease, this version has no such method" in out
    assert "1,280 rows read" in err
    assert cli.main([*argv, "--resume", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["chosen"] in told["front"]
    assert told["verdict"]["sentences"][0] == lines[0]
    assert cli.main([*argv, "--resume", "--overwrite"]) == 2
    assert cli.main([*argv, "--overwrite", "--max-cost", "2"]) == 2
    assert "--max-cost" in capsys.readouterr().err


def test_shares_are_percents_or_fractions():
    assert share("5%") == pytest.approx(0.05)
    assert share("0.05") == 0.05
    with pytest.raises(Exception, match=r"expected a share such as 5% or 0\.05, got 'x'"):
        share("x")


def test_optuna_draws_further_settings(data, tmp_path):
    pytest.importorskip("optuna")
    small = {**SMALL, "methods": ("zerosum",), "epochs": 2, "rungs": 1, "engine": "optuna", "trials": 2}
    got = zx.compare(data, tmp_path / "c", **small, **FAST)
    drawn = [one.name for one in got.candidates if one.name.startswith("drawn")]
    assert drawn == ["drawn000-zerosum", "drawn001-zerosum"]
    assert all(name in got.points for name in drawn)
    again = zx.compare(data, tmp_path / "c", **small, **FAST, resume=True)
    assert figures(again) == figures(got)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def test_killed_at_any_write_it_goes_on_to_the_same_figures(found, data, tmp_path, monkeypatch):
    """What is written goes into place by os.replace: just before it or just after it is when a kill could do harm."""
    moments = [
        *(("config.json", 1, "before"), ("interactions.npz", 1, "after"), ("checkpoint.pt", 4, "before")),
        *(("record.json", 3, "before"), ("model.safetensors", 2, "after"), ("record.json", 6, "after")),
        # These are written when a setting is taken.
        *(("config.json", 2, "after"), ("metrics.json", 1, "before"), ("verdict.json", 1, "after")),
        *(("compare.json", 1, "before"), ("report.html", 1, "before")),
    ]
    original, moment, writes = os.replace, list(moments[0]), []

    def replace_or_die(source, target):
        writes.append(os.path.basename(target))
        now = [writes[-1], writes.count(writes[-1])] == moment[:2]
        if now and moment[2] == "before":
            raise Killed
        original(source, target)
        if now:
            raise Killed

    monkeypatch.setattr(os, "replace", replace_or_die)
    for moment[:] in moments:
        writes.clear()
        with pytest.raises(Killed):
            zx.compare(data, tmp_path / "c", **GOAL, **SMALL, **FAST, resume=True)
    monkeypatch.setattr(os, "replace", original)
    again = zx.compare(data, tmp_path / "c", **GOAL, **SMALL, **FAST, resume=True)
    assert figures(again) == figures(found)
    assert not list((tmp_path / "c").rglob("checkpoint.pt"))  # several times the size of a model each


# ---- processes that are killed


def children_of(process):
    """The workers of a command; not the process that multiprocessing keeps for itself."""
    found = []
    for text in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{text}/cmdline").read_bytes():
                found.append(int(text))
    return found


def killed(command, folder, who, pattern, count):
    """Run the command until so many files are there, kill it or one of its workers, and return what it said."""
    deadline = time.time() + 600
    with open(folder.with_suffix(".said"), "w+") as said:  # (a pipe would stay open as long as any worker lives)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        try:
            workers = []
            while len(list(folder.glob(pattern))) < count or (who == "child" and not workers):
                assert process.poll() is None, Path(said.name).read_text()
                assert time.time() < deadline, f"no {count} files {pattern} in 600 s"
                time.sleep(0.01)
                workers = children_of(process)
            os.kill(process.pid if who == "parent" else workers[-1], signal.SIGKILL)
            process.wait(timeout=deadline - time.time())
        finally:
            process.kill()
    while any(map(is_running, workers)):
        assert time.time() < deadline, "a worker outlives its parent"
        time.sleep(0.02)
    return process.returncode, Path(said.name).read_text()


def is_running(pid):
    """Say whether a process runs. One that has ended and that nobody asked for has no command line any more."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds workers in /proc")
def test_two_processes_killed_again_and_again_go_on_to_the_same_figures(found, data, tmp_path):
    path, folder = tmp_path / "data.npz", tmp_path / "c"
    users, items = (side.numpy() for side in data.pairs())
    np.savez(path, user=users, item=items)
    argv = ["compare", str(path), "--output", str(folder), "--methods", "zerosum", "softmax", "compensation"]
    argv += ["--epochs", "27", "--embedding-dim", "8", "--batch-size", "16", "--bias", "upo", "--max-cost", "20%"]
    command = [sys.executable, "-m", "zerosum_ext", *argv, "--jobs", "2", "--no-figures", "--quiet", "--resume"]
    moments = [
        ("parent", "interactions.npz", 1),
        ("child", "trials/*/checkpoint.pt", 1),
        ("parent", "trials/*/record.json", 2),
        ("child", "trials/*/record.json", 4),
        ("parent", "trials/*/record.json", 7),
        ("child", "trials/*/record.json", len(found.candidates) - 1),
        ("parent", "bpr/model.safetensors", 1),
    ]
    for who, pattern, count in moments:
        code, said = killed(command, folder, who, pattern, count)
        if who == "parent":
            assert code == -signal.SIGKILL
        elif code != 0 or not (folder / "compare.json").is_file():  # (or the worker had nothing left to do)
            assert code == 2
            assert "one of 2 processes died" in said
            assert "--resume" in said
            assert "Traceback" not in said
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=300, check=True)
    told, expected = json.loads(done.stdout), json.loads(runs.to_json(figures(found)))
    for row in told["candidates"]:
        del row["seconds"]
    assert told["candidates"] == expected["candidates"]
    assert (told["chosen"], told["front"]) == (expected["chosen"], expected["front"])
    assert told["verdict"] == expected["verdict"]
