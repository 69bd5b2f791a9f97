"""The command line, and that it never shows a traceback for bad input."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import zerosum_ext as zx
from zerosum_ext import _library, build_info
from zerosum_ext.cli import main as cli
from zerosum_ext.cli import parser as argument_parser
from zerosum_ext.cli.tables import comparison
from zerosum_ext.data import datasets
from zerosum_ext.experiments import runs


def loaded_by(*argv):
    """The output, the heavy modules loaded and the CPU seconds of the command in a process of its own."""
    code = """if True:
        import contextlib, io, sys, time
        sys.argv[:] = ["zerosum-ext", *sys.argv[1:]]
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            from zerosum_ext.cli.main import main
            main()
        heavy = {"torch", "numpy", "scipy", "matplotlib", "pyarrow", "tqdm"} & set(sys.modules)
        print(text.getvalue() + f"\\n{sorted(heavy)}")
    """
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True, timeout=60)
    text, _, heavy = done.stdout.strip().rpartition("\n")
    return text, heavy


@pytest.mark.parametrize("argv", [["--version"], ["--help-all"], []], ids=" ".join)
def test_help_and_version_load_nothing_heavy(argv):
    text, heavy = loaded_by(*argv)
    assert heavy == "[]"
    assert text.strip()


def test_completion_loads_nothing_heavy():
    pytest.importorskip("shtab")
    text, heavy = loaded_by("--print-completion", "bash")
    assert heavy == "[]"
    assert "--min-item-count" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True, timeout=20).returncode == 0


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"zerosum-ext {zx.__version__}\n"


def test_a_bare_call_prints_help(capsys, monkeypatch):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert "commands:" in out
    assert "exit status:" in out
    assert "  130  interrupted by Ctrl-C\n" in out


COMMANDS = next(a.choices for a in cli._parser()._actions if isinstance(a.choices, dict))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_common_options(name):
    options = {option for action in COMMANDS[name]._actions for option in action.option_strings}
    assert {"--json", "--log-level", "--help-all"} <= options


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_two_levels(name, capsys):
    command = COMMANDS[name]
    texts = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stop:
            cli.main([name, flag])
        assert stop.value.code == 0
        texts[flag] = capsys.readouterr().out
        assert "%%" not in texts[flag]
    options = [action.option_strings[0] for action in command._actions if action.option_strings]
    usages = {flag: text.partition("\n\n")[0] for flag, text in texts.items()}
    shown = {flag: {o for o in options if re.search(rf"[ \[]{o}(?![\w-])", usage)} for flag, usage in usages.items()}
    assert shown["--help-all"] == set(options)
    assert "--json" in shown["--help"]
    if name == "train":
        assert len(shown["--help"]) <= 20
        assert "--user-column" not in shown["--help"]
        assert f"{len(options) - len(shown['--help'])} more options: zerosum-ext train --help-all" in texts["--help"]


def test_only_known_options_are_essential():
    parser = argument_parser.Parser(prog="x")
    parser.add_argument("--a")
    with pytest.raises(ValueError, match="--b"):
        parser.essential("--a", "--b")


def test_levels_of_logging(tmp_path, capsys):
    missing = ["recommend", str(tmp_path / "nothing"), "--user", "1"]
    assert cli.main(missing) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert cli.main([*missing, "--log-level", "debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("zerosum-ext: error:")
    assert not logging.getLogger("zerosum_ext").handlers


def test_doctor(capsys):
    status = cli.main(["doctor"])
    text = capsys.readouterr().out
    info = build_info()
    assert status == (0 if info["cpu"]["loaded"] else 1)
    assert info["torch"] in text
    for part in (info["cpu"], info["cuda"]):
        if not part["loaded"]:
            assert part["remedy"] in text


@pytest.mark.skipif(not build_info()["cpu"]["loaded"], reason="the compiled kernels are not loaded")
def test_an_instruction_set_that_is_not_there(capsys, monkeypatch):
    runs = build_info()["isa"]
    monkeypatch.setenv("ZEROSUM_EXT_ISA", runs)
    assert _library.isa_obstacle() == ""
    monkeypatch.setenv("ZEROSUM_EXT_ISA", "sse2")
    said = f"ZEROSUM_EXT_ISA='sse2': expected one of avx512, avx2, baseline; {runs} runs"
    with pytest.warns(RuntimeWarning, match=re.escape(said)):
        _library._load_cpu()
    assert cli.main(["doctor"]) == 0
    assert said in capsys.readouterr().out
    if runs != "avx512":
        monkeypatch.setenv("ZEROSUM_EXT_ISA", "avx512")
        assert _library.isa_obstacle() == f"ZEROSUM_EXT_ISA='avx512': this processor does not have it; {runs} runs"


def test_doctor_json_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "zerosum_ext", "doctor", "--json"], capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout)["torch"] == build_info()["torch"]


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("w:\n bad"), 2), (OSError("gone"), 2), (KeyboardInterrupt(), 130)]
)
def test_errors_are_one_line(monkeypatch, capsys, error, status):
    def fail(arguments):
        raise error

    monkeypatch.setattr(cli.doctor, "_run", fail)
    assert cli.main(["doctor"]) == status
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--"], "the following arguments are required: COMMAND"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["train"], "train: error: the following arguments are required: FILE"),
        (["train", "x.csv", "--weight", "much"], "argument --weight: expected a number in [0, 1] or auto, got 'much'"),
        (["train", "x.csv", "--shape", "3", "b"], "argument --shape: invalid int value: 'b'"),
        (["train", "x.csv", "--preset", "best"], "argument --preset: invalid choice: 'best'"),
        (["train", "x.csv", "--preset", "lightgcn", "--model", "ngcf"], "model of preset 'lightgcn': expected one of"),
        (["train", "x.csv", "--log", "html"], "argument --log: invalid choice: 'html'"),
        (["recommend", "run", "--csv", "--json"], "not allowed with argument"),
        (["train", "x.csv", "--weigth=1"], "train: error: unrecognized arguments: --weigth=1; did you mean --weight?"),
        (["demo", "--nothing-like-it"], "arguments: --nothing-like-it (see zerosum-ext demo --help)"),
    ],
)
def test_a_command_line_that_is_wrong_is_one_line_and_exits_with_2(capsys, argv, said):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said in err
    assert "--help" in err


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("max_cost: expected a share in [0, 1), got 3.0", "--max-cost: expected a share in [0, 1), got 3.0"),
        ("split: expected a validation part: none", "--split: expected a validation part: none"),
        ("folder: no option of this name", "folder: no option of this name"),
        ("Weight: no argument", "Weight: no argument"),
        ("w: expected a number", "--weight: expected a number"),
        ("model_options: 'mf' takes none", "--model-option: 'mf' takes none"),
        ("no colon", "no colon"),
    ],
)
def test_errors_of_the_library_name_the_option_of_the_command(monkeypatch, capsys, said, shown):
    def fail(arguments):
        raise ValueError(said)

    monkeypatch.setattr(cli.train, "_run", fail)
    assert cli.main(["train", "x.csv"]) == 2
    assert capsys.readouterr().err == f"zerosum-ext: error: {shown}\n"


def test_an_option_of_one_letter_has_one_dash(run_folder, capsys):
    assert one_line_of_error(capsys, ["recommend", run_folder, "--user", "u7", "-k", 0]).startswith(
        "zerosum-ext: error: -k: expected an integer in [1, "
    )


EXPERIMENT = """
title = "Small"
protocol = "synthetic"
columns = ["error", "pri"]
seeds = [3]
data = {source = "triangle"}
settings = {epochs = 1, batch_size = 4096, embedding_dim = 4}

[[methods]]
name = "BPR"
settings = {loss = "bpr"}
"""


def test_every_command_prints_json_and_nothing_else(ratings, run_folder, tmp_path, capsys):
    """Those of train, compare and demo have tests of their own."""
    experiment = tmp_path / "small.toml"
    experiment.write_text(EXPERIMENT)
    for argv in (
        ["report", run_folder],
        ["evaluate", run_folder],
        ["recommend", run_folder, "--user", "u7"],
        ["recommend", run_folder, "--all-users", "--output", tmp_path / "all.csv"],
        ["shard", ratings, "--parts", 2, "--output", tmp_path / "parts"],
        ["reproduce", "--experiment", experiment, "--output", tmp_path / "results"],
        ["gradcheck", "--loss", "bpr"],
        ["doctor"],
    ):
        cli.main([*map(str, argv), "--json"])
        assert json.loads(capsys.readouterr().out), argv


def test_demo(tmp_path, capsys):
    assert cli.main(["demo", "--output", str(tmp_path / "out"), "--seeds", "1", "--epochs", "1"]) == 0
    values = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(values) == {"bpr", "pos2neg2", "zerosum"}
    assert all(set(v) == {"error", "pri", "pop_q_at_1"} for v in values.values())
    drawn = {"shown.png", "scores.png", "ranks.png", "popq.png", "seeds.json"}
    assert drawn <= {p.name for p in (tmp_path / "out").iterdir()}
    assert "published" in capsys.readouterr().out


def test_demo_json_is_all_of_stdout(tmp_path, capsys):
    assert cli.main(["demo", "--output", str(tmp_path), "--seeds", "2", "--epochs", "1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["mean"] == json.loads((tmp_path / "metrics.json").read_text())
    assert len(shown["seeds"]["bpr"]) == 2


@pytest.mark.parametrize("option", [["--seeds", "0"], ["--epochs", "0"], ["--weight", "1.5"], ["--weight", "nan"]])
def test_demo_refuses_bad_options(tmp_path, capsys, option):
    assert cli.main(["demo", "--output", str(tmp_path), "--epochs", "1", "--seeds", "1", *option]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# ---- train, evaluate, recommend

SMALL = ["--embedding-dim", "8", "--batch-size", "64", "--epochs", "2"]


@pytest.fixture(scope="module")
def ratings(tmp_path_factory):
    """Interactions of 40 users and 40 items, whose ids are letters and numbers from 100."""
    path = tmp_path_factory.mktemp("cli") / "ratings.tsv"
    users, items = datasets.synthetic_triangle(40, 40).nonzero()
    path.write_text("".join(f"u{u}\t{100 + i}\n" for u, i in zip(users, items, strict=True)))
    return path


@pytest.fixture(scope="module")
def run_folder(ratings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert cli.main(["train", str(ratings), "--output", str(folder), "--quiet", *SMALL]) == 0
    return folder


def one_line_of_error(capsys, argv):
    """The error of a command that must exit with 2 and say one line on stderr, nothing on stdout."""
    capsys.readouterr()
    status = cli.main([str(a) for a in argv])
    out, err = capsys.readouterr()
    assert status == 2, err
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("zerosum-ext: error: ")
    return err


def test_train_prints_both_methods_and_says_where_all_is(ratings, tmp_path, capsys):
    folder = tmp_path / "run"
    assert cli.main(["train", str(ratings), "--output", str(folder), *SMALL]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("Zerosum against BPR: accuracy (NDCG@10) ")
    assert lines[1].startswith("Zerosum against most popular: accuracy (NDCG@10) ")
    assert lines[2].startswith("warning: only 31 users were tested")
    head = next(i for i, line in enumerate(lines) if line.split() == ["bpr", "zerosum", "difference"])
    out = "\n".join(lines[head:])
    for label in ("Hit @10", "NDCG @20", "PRI", "PopQ@1", "ARP @10", "coverage @10"):
        assert label in out
    assert str(folder) in out
    assert "782 interactions" in err
    row = next(line.split() for line in out.splitlines() if "PopQ@1 " in line)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert float(row[1]) == pytest.approx(metrics["bpr"]["pop_q_at_1"], abs=1e-4)
    assert float(row[3]) == pytest.approx(metrics["zerosum"]["pop_q_at_1"] - metrics["bpr"]["pop_q_at_1"], abs=1e-4)


def test_train_finds_the_weight(ratings, tmp_path, capsys):
    folder = tmp_path / "run"
    options = [
        "--weight",
        "auto",
        "--max-cost",
        "0.9",
        "--bias",
        "pri",
        "--epochs",
        "1",
        "--embedding-dim",
        "4",
        "--log",
        "csv",
    ]
    assert cli.main(["train", str(ratings), "--output", str(folder), "--no-figures", *options]) == 0
    found = json.loads((folder / "weights" / "search.json").read_text())
    assert json.loads((folder / "config.json").read_text())["methods"]["zerosum"]["weight"] == found["weight"]
    err = capsys.readouterr().err
    assert f"w={found['weight']:g} is taken" in err
    for one in found["tried"]:
        assert f"w={one['weight']:g}: validation ndcg@10 {one['accuracy']:.4f}" in err
    # What was trained is logged, the search's models in their own folders.
    tried = [folder / "weights" / (f"w{t['weight']:g}" if t["weight"] < 1 else "bpr") for t in found["tried"]]
    for place in (folder / "bpr", folder / "zerosum", *tried):
        assert len((place / "log.csv").read_text().splitlines()) == 2
    with pytest.raises(SystemExit):
        cli.main(["train", str(ratings), "--weight", "automatic"])


def test_train_json_is_all_of_stdout(ratings, tmp_path, capsys):
    argv = ["train", str(ratings), "--output", str(tmp_path / "r"), "--json", "--no-baseline", "--no-figures", *SMALL]
    assert cli.main([*argv, "--k", "3", "--loss", "pd", "--loss-option", "gamma=0.5"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert list(values["metrics"]) == ["pd"]
    assert [one["name"] for one in values["verdict"]["against"]] == ["most_popular"]
    assert values["verdict"]["references"]["most_popular"].keys() == values["metrics"]["pd"].keys()
    assert "ndcg@3" in values["metrics"]["pd"]
    assert len(values["histories"]["pd"]["loss"]) == 2
    assert runs.Run.open(tmp_path / "r").methods["pd"].loss_options == {"gamma": 0.5}


@pytest.mark.parametrize("kind", ["csv", "movielens", "npz"])
def test_train_reads_every_kind_of_file_with_its_options(tmp_path, kind):
    users, items = datasets.synthetic_triangle(20, 20).nonzero()
    rows = list(zip(users.tolist(), items.tolist(), strict=True))
    if kind == "csv":
        path, extra = tmp_path / "r.csv", ["--user-column", "who", "--item-column", "2", "--split", "column"]
        extra += ["--split-column", "part", "--split-values", "a", "b", "c", "--min-rating", "3"]
        lines = [f"{u % 5 + 1},{u},{i},{'cab'[(u + i) % 3]}" for u, i in rows]
        path.write_text("stars,who,what,part\n" + "\n".join(lines) + "\n")
    elif kind == "movielens":
        path, extra = tmp_path / "r.dat", ["--delimiter", "::", "--no-header", "--split", "last", "--hold-out", "2"]
        path.write_text("".join(f"{u}::{i}::5::{1000 - i}\n" for u, i in rows))
    else:
        path, extra = tmp_path / "r.npz", ["--min-item-count", "3", "--ratios", "0.7", "0.3"]
        np.savez(path, user=users, item=items)
    argv = ["train", path, "--output", tmp_path / "run", "--quiet", "--no-figures", *SMALL, *extra]
    assert cli.main([str(a) for a in argv]) == 0
    run = runs.Run.open(tmp_path / "run")
    if kind == "csv":
        assert run.split.train.num_users == 12  # u % 5 + 1 >= 3
        assert set(run.split.valid.pairs()[0].tolist()) != set()
    elif kind == "movielens":  # the latest are the lowest items
        assert run.split.test.indices[:2].tolist() == [0, 1]
        assert run.split.valid.indices[:2].tolist() == [2, 3]
    else:
        assert run.split.valid.nnz == 0
        assert run.split.train.num_items == 17  # item i has 19 - i users


def test_train_says_what_the_columns_were_taken_for(tmp_path, capsys):
    users, items = datasets.synthetic_triangle(20, 20).nonzero()
    path = tmp_path / "r.csv"
    rows = "".join(f"{u},{i},{1000 - i}\n" for u, i in zip(users, items, strict=True))
    path.write_text("user_id,item,created_at\n" + rows)
    argv = ["train", path, "--output", tmp_path / "run", "--overwrite", "--no-figures", "--split", "last", *SMALL]
    assert cli.main([str(a) for a in argv]) == 0
    said = capsys.readouterr().err.splitlines()
    assert "columns: user = user_id, item, timestamp = created_at" in said
    assert "last by timestamp" in said
    assert cli.main([str(a) for a in [*argv, "--timestamp-column", ""]]) == 0
    said = capsys.readouterr().err.splitlines()
    assert "columns: user = user_id, item" in said
    assert "no column of times was recognised: last by the order of rows" in said


def test_train_says_how_it_split_and_splits_by_time(tmp_path, capsys):
    rng = np.random.default_rng(0)
    path = tmp_path / "x.npz"
    times = rng.permutation(600)
    part = (times > 500).astype(int)
    np.savez(path, user=rng.integers(0, 20, 600), item=rng.integers(0, 30, 600), timestamp=times, split=part)
    argv = ["train", str(path), "--epochs", "1", "--embedding-dim", "2", "--no-baseline", "--no-figures"]
    said = {}
    for how in ("random", "time", "column"):
        assert cli.main([*argv, "--split", how, "--output", str(tmp_path / how)]) == 0
        said[how] = capsys.readouterr().err
        hinted = "there is a column split, which is not used: --split column goes by it" in said[how]
        assert hinted == (how != "column"), how
    assert "test (at random, seed 0)" in said["random"]
    assert "test (as column split says)" in said["column"]
    assert "test (by time, at the same moments for all users)" in said["time"]
    split = runs.SplitRule("time").apply(zx.Interactions.from_file(path))
    assert split.train.columns["timestamp"].max() < split.valid.columns["timestamp"].min()
    assert split.valid.columns["timestamp"].max() < split.test.columns["timestamp"].min()
    assert torch.equal(runs.Run.open(tmp_path / "time").split.test.indices, split.test.indices)


def test_train_reads_parquet(tmp_path, capsys):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as pq

    users, items = datasets.synthetic_triangle(20, 20).nonzero()
    table = {"who": [f"u{u}" for u in users], "what": items, "stars": users % 5 + 1}
    pq.write_table(pa.table(table), tmp_path / "r.parquet")
    columns = ["--user-column", "who", "--item-column", "what", "--rating-column", "stars"]
    argv = ["train", str(tmp_path / "r.parquet"), "--output", str(tmp_path / "run"), "--no-figures", *columns, *SMALL]
    assert cli.main([*argv, "--min-rating", "3"]) == 0
    assert runs.Run.open(tmp_path / "run").split.train.num_users == 12
    assert cli.main(["recommend", str(tmp_path / "run"), "--user", "u8", "-k", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()[-2:]) == 2
    bad = pa.table({"user": [1, None], "item": [1, 2]})
    pq.write_table(bad, tmp_path / "bad.parquet")
    assert "bad.parquet" in one_line_of_error(capsys, ["train", tmp_path / "bad.parquet"])


def test_a_preset_gives_defaults(ratings, tmp_path, capsys):
    argv = ["train", str(ratings), "--preset", "paper", "--no-baseline", "--no-figures", "--quiet"]
    given = ["--epochs", "2", "--model", "lightgcn", "--model-option", "num_layers=1", "--output", str(tmp_path / "r")]
    assert cli.main([*argv, *given]) == 0
    method = runs.Run.open(tmp_path / "r").methods["zerosum"]
    assert (method.epochs, method.batch_size, method.draws, method.embedding_dim) == (2, 2048, 3, 10)
    assert (method.restore_best, method.patience) == (False, 20)
    expected = {"num_layers": 1, "normalization": "row", "combine": "concat", "node_dropout": 0.1, "init_std": 0.01}
    assert method.model_options == expected
    assert cli.main([*argv, "--epochs", "1", "--output", str(tmp_path / "mf")]) == 0
    method = runs.Run.open(tmp_path / "mf").methods["zerosum"]
    assert (method.embedding_dim, method.weight, method.model_options) == (64, 0.9, {"init_std": 0.01})


def test_train_logs(ratings, tmp_path, capsys):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    argv = ["train", str(ratings), "--output", str(tmp_path / "r"), "--no-figures", "--quiet", *SMALL]
    assert cli.main([*argv, "--log", "csv", "tensorboard"]) == 0
    for name in ("bpr", "zerosum"):
        rows = list(csv.DictReader((tmp_path / "r" / name / "log.csv").open()))
        assert [row["epoch"] for row in rows] == ["1", "2"]
        assert len(list((tmp_path / "r" / name / "tensorboard").iterdir())) == 1
    assert cli.main([*argv, "--overwrite"]) == 0
    assert not list((tmp_path / "r").rglob("log.csv")) + list((tmp_path / "r").rglob("events.*"))


def test_figures_of_one_row_have_the_same_digits():
    table = comparison({"bpr": {"arp@10": 243.51, "pri": 0.5}, "zerosum": {"arp@10": 242.02, "pri": float("nan")}})
    rows = {line.split()[0]: line.split()[-3:] for line in table.splitlines() if line.strip()}
    assert rows["ARP"] == ["243.5", "242.0", "-1.5"]
    assert [line.split() for line in table.splitlines() if "  PRI" in line] == [["PRI", "0.5000", "-", "-"]]


def test_evaluate(run_folder, tmp_path, capsys):
    assert cli.main(["evaluate", str(run_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((run_folder / "metrics.json").read_text())
    later = tmp_path / "later.tsv"
    later.write_text("u5\t139\nu9\t120\nnobody\t100\n")
    assert cli.main(["evaluate", str(run_folder), "--data", str(later), "--skip-unknown", "--method", "bpr"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["bpr"]
    assert "1 rows" in err
    refused = one_line_of_error(capsys, ["evaluate", run_folder, "--data", later])
    assert "no user 'nobody'" in refused
    assert "--skip-unknown leaves such rows out" in refused


def test_evaluating_on_what_was_trained_on_is_said(ratings, run_folder, capsys):
    assert cli.main(["evaluate", str(run_folder), "--data", str(ratings)]) == 0
    train = runs.Run.open(run_folder).split.train.nnz
    assert f"{train} of the 782 interactions to measure on were trained on" in capsys.readouterr().err
    assert cli.main(["evaluate", str(run_folder)]) == 0
    assert capsys.readouterr().err == ""


def test_recommend(run_folder, tmp_path, capsys):
    users = tmp_path / "users.txt"
    users.write_text("u30\n\nu7\n", encoding="utf-8-sig")  # a byte order mark, as spreadsheets write it
    command = ["recommend", str(run_folder), "--user", "u20", "--user-file", str(users), "-k", "3"]
    assert cli.main([*command, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [v["user"] for v in values] == ["u20", "u30", "u7"]
    assert cli.main([*command, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 3
    for k, value in enumerate(values):
        user = int(value["user"][1:])
        assert all(100 + 39 - user <= item < 140 for item in value["items"])  # not yet the user's
        assert [int(row["item"]) for row in rows[3 * k : 3 * k + 3]] == value["items"]
    assert cli.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["user", "rank", "item", "score"]
    assert len(lines) == 10


def test_several_files_as_a_pattern(ratings, run_folder, tmp_path, capsys, monkeypatch):
    lines = ratings.read_text().splitlines(keepends=True)
    (tmp_path / "part-1.tsv").write_text("".join(lines[:400]))
    (tmp_path / "part-2.tsv").write_text("".join(lines[400:]))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "part-*.tsv", "--quiet", "--no-figures", *SMALL]) == 0
    one, several = runs.Run.open(run_folder), runs.Run.open(tmp_path / "runs" / "part-zerosum")
    assert several.metrics == one.metrics
    assert cli.main(["evaluate", str(run_folder), "--data", "part-*.tsv", "--quiet"]) == 0
    assert "no file fits this pattern" in one_line_of_error(capsys, ["train", "none-*.tsv"])
    assert "say which column has them: --timestamp-column" in one_line_of_error(
        capsys, ["train", "part-*.tsv", "--split", "time", "--output", "timed", "--quiet", *SMALL]
    )


def test_recommend_for_users_who_are_new(run_folder, tmp_path, capsys):
    week = tmp_path / "week.csv"
    week.write_text("Kunde;Artikel\nann;100\nu30;139\nann;103\nbob;7\n")
    command = ["recommend", str(run_folder), "--history", str(week), "-k", "2"]
    assert "no item 7" in one_line_of_error(capsys, command)
    assert cli.main([*command, "--skip-unknown", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "1 users have no other item, and get no list" in err
    lists = {one["user"]: one["items"] for one in json.loads(out)}
    assert set(lists) == {"ann", "u30"}
    assert not {100, 103} & set(lists["ann"])
    assert all(100 + 39 - 30 <= item < 139 for item in lists["u30"])
    assert cli.main([*command, "--skip-unknown", "--user", "ann", "--csv", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert [line.split(",")[0] for line in out.splitlines()] == ["user", "ann", "ann"]
    assert err == ""
    assert "--output" in one_line_of_error(capsys, [*command, "--output", tmp_path / "x.csv"])
    assert "--history FILE recommends for users who are new" in one_line_of_error(
        capsys, ["recommend", run_folder, "--user", "ann"]
    )


def test_recommend_all_users_to_a_file(run_folder, tmp_path, capsys):
    import pyarrow.parquet as pq

    file = tmp_path / "lists.parquet"
    assert cli.main(["recommend", str(run_folder), "--all-users", "--output", str(file), "-k", "3", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    rows = pq.read_table(file).to_pylist()
    assert cli.main(["recommend", str(run_folder), "--user", "u20", "-k", "3", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert [row["item"] for row in rows if row["user"] == "u20"] == one["items"]
    assert len({row["user"] for row in rows}) == runs.Run.open(run_folder).split.train.num_users
    some = tmp_path / "some.csv"
    argv = ["recommend", str(run_folder), "--user", "u20", "--output", str(some), "-k", "3"]
    assert cli.main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(some), "rows": 3}
    assert cli.main(argv) == 0
    assert [line.split(",")[2] for line in some.read_text().splitlines()] == ["item", *map(str, one["items"])]
    for options, message in (
        (["--all-users"], "--output FILE"),
        (["--all-users", "--user", "u20", "--output", file], "neither --user nor --user-file"),
        (["--all-users", "--output", file, "--csv"], "no --csv beside it"),
        (["--all-users", "--output", tmp_path / "x.txt"], "ends in .parquet"),
    ):
        assert message in one_line_of_error(capsys, ["recommend", run_folder, *options])


def test_recommend_reads_users_from_the_standard_input(run_folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("u3\n"))
    assert cli.main(["recommend", str(run_folder), "--user-file", "-", "-k", "1", "--csv"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("u3,1,")


def test_a_user_who_owns_every_item(tmp_path, capsys):
    cells = datasets.synthetic_triangle(20, 20).toarray()
    cells[4] = 1
    path = tmp_path / "full.csv"
    path.write_text("".join(f"{u},{i},0\n" for u, i in zip(*np.nonzero(cells), strict=True)) + "0,0,1\n")
    argv = ["--output", str(tmp_path / "run"), "--split", "column", "--split-column", "2", *SMALL]
    assert cli.main(["train", str(path), *argv]) == 0
    assert "1 users have every item" in capsys.readouterr().err
    assert cli.main(["recommend", str(tmp_path / "run"), "--user", "4", "--csv"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["user,rank,item,score"]
    assert err.splitlines() == ["user 4: nothing is left to recommend, every item was interacted with"]
    path.write_text("".join(f"{u},{i}\n" for u in range(9) for i in range(9)))
    argv = ["train", path, "--output", tmp_path / "other", "--quiet", "--split", "last"]
    assert cli.main([str(a) for a in argv + SMALL]) == 0  # what is held out is no negative of the rest


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n\n", "has no rows"),
        (b"user,item\n", "a header but no rows"),
        (b"1\n2\n3\n", "at least two columns"),
        (b"1,2\n3,\n", "bad.csv:2: the item is empty. --skip-bad-rows leaves such rows out"),
        (
            b"order,sku\n1,2\n",
            "cannot tell which column holds the users; the header has order, sku. Name it: --user-column",
        ),
        (b"1,2\n3\n", "bad.csv:2: expected 2 fields"),
        (b"user,item,date\n1,2,13.11.2020\n", "and which the month; --timestamp-column '' reads no times"),
        (b"1,2,4\n1,3,good\n", "bad.csv:2: the rating is 'good', expected a finite number"),
        (b"1,2\n", "left for t"),
        (b"\x00\x01\x02", "not a text file"),
        (b"PK\x03\x04 and then nothing", "cannot be read as .npz"),
    ],
)
def test_train_refuses_bad_files(tmp_path, capsys, content, said):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    assert said in one_line_of_error(capsys, ["train", path, "--output", tmp_path / "run"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--weight", "1.5"], "--weight: expected a number in [0, 1], got 1.5"),
        (["--weight", "nan"], "--weight: expected a number in [0, 1], got nan"),
        (["--weight", "auto", "--loss", "bpr"], "needs a loss that has a w"),
        (["--weight", "auto", "--ratios", "0.8", "0.2"], "validation part"),
        (["--weight", "auto", "--max-cost", "1"], "--max-cost: expected a share in [0, 1)"),
        (["--loss", "nonsense"], "--loss: expected one of 'bpr'"),
        (["--loss", "bpr", "--weight", "0.5"], "--weight: expected none for loss 'bpr'"),
        (["--loss-option", "gamma=1"], "gamma"),
        (["--loss-option", "gamma"], "expected NAME=VALUE"),
        (["--model", "nonsense"], "--model: expected one of 'mf'"),
        (["--model-option", "nonsense=1"], "--model-option: 'mf' takes"),
        (["--optimizer", "nonsense"], "--optimizer: expected one of 'adam'"),
        (["--embedding-dim", "0"], "--embedding-dim: expected an integer in [1, 65536], got 0"),
        (["--epochs", "0"], "--epochs: expected an integer in [1, "),
        (["--batch-size", "0"], "--batch-size: expected an integer in [1, "),
        (["--negatives", "0"], "--negatives: expected an integer in [1, "),
        (["--negatives", "3", "--loss", "pos2neg2"], "--negatives: Pos2Neg2Loss uses two, got 3"),
        (["--draws", "0"], "--draws: expected an integer in [1, "),
        (["--patience", "0"], "--patience: expected an integer in [1, "),
        (["--l2", "-1"], "--l2: expected a number >= 0"),
        (["--lr", "-1"], "--lr: expected a number >= 0"),
        (["--lr", "nan"], "--lr: expected a number >= 0"),
        (["--lr", "1e30"], "diverged"),
        (["--seed", "-1"], "--seed: expected an integer in [0, "),
        (["--k", "0"], "--k: expected an integer in [1, 1048576], got 0"),
        (["--threads", "0"], "--threads: expected an integer in [1, 1024], got 0"),
        (["--metric", "pri"], "--metric: expected one of hr"),
        (["--metric", "nonsense@3"], "--metric: expected one of hr"),
        (["--metric", "ndcg"], "--metric: expected a cut-off as in 'ndcg@10', got 'ndcg'"),
        (["--metric", "ndcg", "--weight", "auto"], "--metric: expected a cut-off"),
        (["--metric", "ndcg@x"], "--metric: expected a cut-off"),
        (["--optimizer", "sparse_adam", "--loss", "pearson"], "regularizer: expected None with SparseAdam"),
        (["--loss-option", "w=0.5"], "--loss-option: expected w as --weight 0.5, got w=0.5"),
        (["--loss", "pd", "--loss-option", "gamma=much"], "gamma"),
        (["--device", "nonsense"], "device"),
        (["--ratios", "0.5", "0.6"], "--ratios: expected two or three numbers"),
        (["--hold-out", "0"], None),
        (["--split", "last", "--hold-out", "0"], "expected at least 1"),
        (["--split", "column"], "no column 'split'"),
        (["--user-column", "9"], "column 9 was asked for as 'user'"),
        (["--user-column", "who"], "no column 'who'"),
        (["--min-rating", "3"], "no rating column"),
        (["--ids", "index"], "are not integers, as ids=False needs"),
        (["--shape", "3", "3"], "shape"),
        (["--encoding", "nonsense"], "encoding"),
        (["--resume", "--overwrite"], "--resume and --overwrite"),
    ],
)
def test_train_refuses_bad_options(ratings, tmp_path, capsys, options, said):
    argv = ["train", ratings, "--output", tmp_path / "run", "--quiet", "--no-figures", *SMALL, *options]
    if said is None:  # an option of another kind of split is of no account
        assert cli.main([str(a) for a in argv]) == 0
    else:
        assert said in one_line_of_error(capsys, argv)
        if said != "diverged":  # all else shows before anything is written, so that the corrected command is taken
            assert not (tmp_path / "run").exists()


def test_what_is_damaged_is_named_or_written_anew_on_resuming(ratings, run_folder, tmp_path, capsys):
    copy = shutil.copytree(run_folder, tmp_path / "copy")
    argv = ["train", ratings, "--output", copy, "--no-figures", "--resume", *SMALL]
    (copy / "interactions.npz").write_bytes((copy / "interactions.npz").read_bytes()[:200])
    assert cli.main([str(a) for a in argv]) == 0
    assert "interactions.npz was damaged, and is written anew" in capsys.readouterr().err
    assert cli.main(["recommend", str(copy), "--user", "u3"]) == 0
    (copy / "bpr" / "history.json").write_text("{}")
    assert "bpr/history.json is damaged" in one_line_of_error(capsys, [*argv, "--quiet"])
    (copy / "bpr" / "history.json").unlink()
    (copy / "bpr" / "checkpoint.pt").write_bytes(b"PK half")
    damaged = one_line_of_error(capsys, [*argv, "--quiet"])
    assert "bpr/checkpoint.pt' is damaged" in damaged
    assert "remove the file to train from the start" in damaged
    (copy / "bpr" / "checkpoint.pt").unlink()
    assert cli.main([str(a) for a in [*argv, "--quiet"]]) == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "there is not enough memory\n"),
        (MemoryError("Unable to allocate 9 GiB"), "not enough memory: Unable to allocate 9 GiB"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 9 GiB"), "not enough memory: CUDA out of memory"),
        (
            RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            "there is not enough memory: can't allocate memory: you tried to allocate 9 bytes.",
        ),
    ],
)
def test_what_needs_too_much_memory(run_folder, capsys, monkeypatch, error, said):
    def no_memory(*arguments, **options):
        raise error

    monkeypatch.setattr("zerosum_ext.experiments.runs.Run.evaluate", no_memory)
    assert said in one_line_of_error(capsys, ["evaluate", run_folder])


def test_a_fault_of_the_program_keeps_its_traceback(run_folder, monkeypatch):
    def fault(*arguments, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr("zerosum_ext.experiments.runs.Run.evaluate", fault)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["evaluate", str(run_folder)])


def test_an_item_out_of_range(tmp_path, capsys):
    path = tmp_path / "r.csv"
    path.write_text("0,0\n1,1\n2,7\n")
    argv = ["train", path, "--output", tmp_path / "run", "--ids", "index", "--shape", "3", "5"]
    assert "expected indices from 0 to 4, got 7" in one_line_of_error(capsys, argv)


def test_missing_files_and_folders(run_folder, tmp_path, capsys):
    assert "no such file" in one_line_of_error(capsys, ["train", tmp_path / "none.csv"])
    assert "is a folder" in one_line_of_error(capsys, ["train", tmp_path])
    assert "no such run folder" in one_line_of_error(capsys, ["evaluate", tmp_path / "none"])
    assert "no such run folder" in one_line_of_error(capsys, ["recommend", tmp_path / "none", "--user", "1"])
    assert "not a run folder" in one_line_of_error(capsys, ["evaluate", tmp_path])
    assert "none.txt" in one_line_of_error(capsys, ["recommend", run_folder, "--user-file", tmp_path / "none.txt"])


def test_folders_that_cannot_be_written(ratings, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for folder, said in (("file", "is a file, expected a folder"), ("file/run", "file")):
        assert said in one_line_of_error(capsys, ["train", ratings, "--output", tmp_path / folder, "--quiet"])
    assert "proc" in one_line_of_error(capsys, ["train", ratings, "--output", "/proc/zerosum_ext/run", "--quiet"])


def test_recommend_refuses_what_it_cannot_do(run_folder, capsys):
    def error(*options):
        return one_line_of_error(capsys, ["recommend", run_folder, *options])

    assert "no user 'nobody'" in error("--user", "nobody")
    assert "no users: give --user" in error()
    assert "k: expected an integer in [1, 1048576], got 0" in error("--user", "u3", "-k", "0")
    assert "method: expected one of 'bpr', 'zerosum'" in error("--user", "u3", "--method", "nonsense")


def test_ids_of_the_wrong_kind_are_quoted(tmp_path, capsys):
    users, items = datasets.synthetic_triangle(20, 20).nonzero()
    np.savez(tmp_path / "r.npz", user=users, item=items)
    argv = ["train", str(tmp_path / "r.npz"), "--output", str(tmp_path / "run"), "--quiet", "--no-figures", *SMALL]
    assert cli.main(argv) == 0
    for user in ("alice", "1.5"):
        error = one_line_of_error(capsys, ["recommend", tmp_path / "run", "--user", "3", "--user", user])
        assert f"user ids: expected integers, got '{user}'" in error
    assert "there is no user 99 among these 20" in one_line_of_error(
        capsys, ["recommend", tmp_path / "run", "--user", "99"]
    )


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"user": [0, 1], "item": [0, 1, 2]}, "item"),
        ({"user": [0.5, 1.5], "item": [0, 1]}, "user"),
        ({"user": [[0, 1]], "item": [[0, 1]]}, "user"),
        ({"user": [0, -1], "item": [0, 1]}, "-1"),
        ({"user": [0, 1]}, "item"),
    ],
)
def test_arrays_of_other_shapes_and_kinds(tmp_path, capsys, arrays, said):
    np.savez(tmp_path / "bad.npz", **arrays)
    error = one_line_of_error(capsys, ["train", tmp_path / "bad.npz", "--output", tmp_path / "run"])
    assert said in error
    assert "bad.npz" in error


def test_damaged_runs(run_folder, tmp_path, capsys):
    copy = shutil.copytree(run_folder, tmp_path / "copy")
    path = copy / "zerosum" / "model.safetensors"
    tensors = load_file(path)
    tensors["user_embedding"][:] = float("nan")
    save_file(tensors, path)
    assert "NaN" in one_line_of_error(capsys, ["recommend", copy, "--user", "u3"])
    assert "NaN" in one_line_of_error(capsys, ["evaluate", copy])
    path.write_bytes(path.read_bytes()[:50])
    assert "is not a model of this run" in one_line_of_error(capsys, ["recommend", copy, "--user", "u3"])
    (copy / "config.json").write_text("{")
    assert "config.json is damaged" in one_line_of_error(capsys, ["evaluate", copy])


def test_a_folder_in_use_is_refused(ratings, run_folder, capsys):
    argv = ["train", ratings, "--output", run_folder, "--quiet", *SMALL]
    assert "resume (--resume) goes on with it" in one_line_of_error(capsys, argv)
    assert "bpr.lr: 0.001 there, 0.1 now" in one_line_of_error(capsys, [*argv, "--resume", "--lr", "0.1"])


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(ratings, tmp_path):
    folder = tmp_path / "my run"
    argv = ["train", str(ratings), "--output", str(folder), "--no-figures", "--embedding-dim", "8", "--batch-size", "2"]
    argv += ["--epochs", "100000", "--patience", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "zerosum_ext", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, SIGINT may be ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    checkpoint = folder / "bpr" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    again = shlex.split(last.partition("to go on: ")[2])
    assert again == ["zerosum-ext", *argv, "--resume"]
    assert checkpoint.is_file()
