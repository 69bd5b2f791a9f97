"""What tuned experiments show together, from records and values of users made by hand."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from zerosum_ext.cli import main as cli
from zerosum_ext.experiments import reproduce
from zerosum_ext.experiments.reproduce import evidence, glance, results
from zerosum_ext.experiments.reproduce.tuned import bias_index

FILE = """
title = "Made up, matrix factorization"
protocol = "tuned"
seeds = [0, 1]
columns = ["ndcg@10"]
data = {source = "nowhere.csv"}
split = {ratios = [0.8, 0.1, 0.1]}

[[methods]]
name = "BPR"
settings = {loss = "bpr"}
[[methods]]
name = "Good"
settings = {loss = "popularity_softmax", loss_options = {alpha = 0.3}}
[[methods]]
name = "Poor"
settings = {loss = "zerosum", weight = 0.9, lr = 3e-3}
[[methods]]
name = "Popular"
settings = {loss = "popular"}
"""
USERS, ITEMS = 300, 50
# Means of NDCG, PopQ, uPO and ARP, and of how many items the lists are drawn.
MADE = {"BPR": (0.3, 0.2, 0.5, 90, 20), "Good": (0.31, 0.3, 0.3, 60, 40), "Poor": (0.2, 0.1, 0.7, 99, 12)}
MADE["Popular"] = (0.05, 0.0, 1.0, 200, 10)


@pytest.fixture
def made(tmp_path):
    """An experiment whose cells are finished, with the values of each user."""
    path, out = tmp_path / "made.toml", tmp_path / "out"
    path.write_text(FILE)
    experiment = reproduce.read_experiment(path)
    for cell in experiment.cells():
        rng = np.random.default_rng(cell.method.seed)  # the same users for all methods, so that pairs are alike
        ndcg, quantile, upo, arp, pool = MADE[cell.name]
        noise = rng.normal(0, 0.05, USERS)
        lists = np.stack([rng.permutation(pool)[:10] for _ in range(USERS)])
        known = np.arange(USERS) % 3 > 0  # users with few positives have no value
        arrays = {
            "ndcg@10": ndcg + noise + rng.normal(0, 0.01, USERS),
            "pop_q_at_1": np.where(known, quantile + noise, np.nan),
            "upo": np.where(known, upo + noise, np.nan),
            "arp@10": arp + 10 * noise,
            "lists": lists,
        }
        file = results.scores_file(cell, out)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file, **arrays)
        best = {key: float(np.nanmean(arrays[key])) for key in ("ndcg@10", "pop_q_at_1", "upo", "arp@10")}
        best |= {"coverage@10": len(np.unique(lists)) / ITEMS, "epoch": 3}
        method = cell.method
        record = {
            "method": cell.name,
            "seed": method.seed,
            "digest": cell.digest,
            "metrics": {"best": best},
            "validation": best,
            "history": {"loss": [1.0], "seconds": [1.0], "engine": "fused"},
            "trained_here": True,
            "threads": 1,
            **dict.fromkeys(("seconds", "cpu_seconds", "peak_memory_mb"), 1.0),
            "settings": {
                **{name: getattr(method, name) for name in ("loss", "weight", "lr", "l2", "negatives", "strategy")},
                "loss_options": dict(method.loss_options),
                "model_options": {},
            },
        }
        results.append(results.results_file(experiment, out), record)
    return path, out


def test_methods_beside_bpr(made):
    path, out = made
    found = reproduce.compared(reproduce.load(path, out), out)
    assert [name for name, one in found.items() if one["recommended"]] == ["Good"]
    good, poor = found["Good"]["against"], found["Poor"]["against"]
    assert good["keeps_accuracy"]
    assert (good["better"], good["worse"]) == (4, 0)
    assert (poor["better"], poor["worse"]) == (0, 4)
    assert not poor["keeps_accuracy"]
    assert good["ndcg@10"]["relative"]["difference"] == pytest.approx(0.01 / 0.3, rel=0.2)
    assert good["pop_q_at_1"]["difference"] == pytest.approx(-0.1, abs=0.01)  # of the distance from .5
    assert good["coverage@10"]["difference"] == pytest.approx(-0.4)
    assert found["Good"]["index"] == pytest.approx(bias_index(found["Good"]["mean"], found["BPR"]["mean"]))
    assert found["Good"]["index"] < 1 < found["Poor"]["index"]
    assert not found["Popular"]["trained"]  # which is never recommended


def test_comparisons_outlive_the_values_of_users(made):
    path, out = made
    before = reproduce.compared(reproduce.load(path, out), out)
    for file in (out / "made").iterdir():
        file.unlink()
    assert reproduce.compared(reproduce.load(path, out), out) == before
    path.write_text(FILE.replace("alpha = 0.3", "alpha = 0.4"))  # other cells: theirs are not to be taken
    assert "Good" not in reproduce.compared(reproduce.load(path, out), out)


def test_comparisons_with_another_bpr_are_not_kept(made):
    path, out = made
    reproduce.compared(reproduce.load(path, out), out)
    for file in (out / "made").iterdir():
        file.unlink()
    lines = [json.loads(line) for line in (out / "made.jsonl").read_text().splitlines()]
    path.write_text(FILE.replace('{loss = "bpr"}', '{loss = "bpr", lr = 0.002}'))
    digests = {(c.name, c.method.seed): c.digest for c in reproduce.read_experiment(path).cells()}
    for line in lines:  # BPR was run again, with another setting
        results.append(out / "made.jsonl", line | {"digest": digests[line["method"], line["seed"]]})
    found = reproduce.compared(reproduce.load(path, out), out)
    assert found["Good"]["against"] is None
    assert "not compared" in reproduce.overview([reproduce.Shown(reproduce.load(path, out), found)])


def test_a_method_with_fewer_seeds_is_beside_bpr_of_the_same_seeds(made):
    path, out = made
    lines = [json.loads(line) for line in (out / "made.jsonl").read_text().splitlines()]
    for line in lines:
        if line["method"] == "BPR" and line["seed"] == 0:  # BPR's first seed is a lucky one: better than "Good" in all
            line["validation"] = {"ndcg@10": 0.4, "pop_q_at_1": 0.5, "upo": 0.0, "arp@10": 1.0, "coverage@10": 1.0}
            results.append(out / "made.jsonl", line)
    path.write_text(FILE.replace('name = "Good"', 'name = "Good"\nseeds = [0]'))
    found = reproduce.compared(reproduce.load(path, out), out)
    assert found["Good"]["seeds"] == [0]
    assert found["Good"]["bpr"]["validation"]["ndcg@10"] == 0.4
    first = next(line for line in lines if line["method"] == "BPR")
    assert found["Good"]["bpr"]["mean"]["upo"] == first["metrics"]["best"]["upo"]
    assert found["BPR"]["recommended"]
    text = reproduce.report(reproduce.load(path, out))
    assert "Not finished" not in text


def test_the_report(made, tmp_path, capsys):
    path, out = made
    report = tmp_path / "REPORT.md"
    argv = ["reproduce", "--experiment", str(path), "--output", str(out), "--report", str(report), "--no-run"]
    assert cli.main(argv) == 0
    assert "| Made up | Good (2 seeds) |" in capsys.readouterr().out
    text = report.read_text(encoding="utf-8")
    assert "On 1 of 1 data sets the recommended setting keeps the accuracy of BPR and is less biased." in text
    line = next(line for line in text.splitlines() if line.startswith("| Made up | Good"))
    assert line.count(" **+** |") == 4  # better in all four
    assert line.endswith("| yes |")
    line = next(line for line in text.splitlines() if line.startswith("| Poor |"))
    assert "%*, 0 / 4, " in line
    rows = list(csv.DictReader(io.StringIO((tmp_path / "figures.csv").read_text())))
    row = next(r for r in rows if r["method"] == "Good" and r["measure"] == "upo")
    assert row["setting"] == "alpha=0.3"
    assert float(row["against_bpr"]) == pytest.approx(-0.2, abs=0.01)
    assert float(row["p_holm"]) < 0.05
    assert next(r for r in rows if r["method"] == "Poor")["setting"] == "w=0.9 lr=0.003"
    assert (tmp_path / "figures" / "accuracy-and-bias.png").stat().st_size > 5000
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "On 1 of 1 data sets the recommended setting keeps the accuracy of BPR" in page
    assert "Made up: Good against BPR: accuracy (NDCG@10) +3." in page
    assert page.count("<figure>") == 1
    assert "Named is what validation recommends. Not shown: 2 that lose more than 30 %." in page
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")


def test_the_overview_is_renewed_in_other_texts_and_names_what_was_cut(made, tmp_path, capsys):
    path, out = made
    other = tmp_path / "other.toml"
    other.write_text(FILE.replace('"Made up, matrix', '"Elsewhere (Berlin), matrix').replace("nowhere", "no"))
    graph = tmp_path / "graph.toml"
    graph.write_text(FILE.replace("Made up, matrix factorization", "Made up, LightGCN"))
    path.write_text(FILE.replace('name = "Poor"', 'name = "Poor"\nseeds = [0]') + '\n[[methods]]\nname = "New"\n')
    path.write_text(path.read_text() + 'settings = {loss = "ccl"}\n')
    text = tmp_path / "sub" / "FINDINGS.md"
    text.parent.mkdir()
    marks = glance.MARKS
    text.write_text(f"Before.\n{marks[0]}\nOUTDATED\n{marks[1]}\nAfter.\n")
    argv = ["reproduce", "--experiment", *map(str, (path, other, graph)), "--output", str(out), "--no-run"]
    argv += ["--report", str(tmp_path / "REPORT.md"), "--renew", str(text)]
    assert cli.main(argv) == 0
    capsys.readouterr()
    got = text.read_text(encoding="utf-8")
    assert got.startswith("Before.\n")
    assert got.endswith("After.\n")
    assert "OUTDATED" not in got
    assert "](../figures/accuracy-and-bias.png)" in got
    assert "- **Elsewhere**: not run." in got
    assert "- **Made up, LightGCN**: not run." in got
    assert "- **Made up**: fewer seeds: Poor; 0 of 2 seeds: New." in got
    assert cli.main(argv) == 0  # again, upon what it wrote itself
    assert text.read_text(encoding="utf-8") == got
    text.write_text("Before.\n")
    assert cli.main(argv) == 2
    assert "FINDINGS.md: expected the lines <!-- overview" in capsys.readouterr().err
    assert text.read_text() == "Before.\n"


def test_what_shows_data_again_is_counted_by_itself(made, tmp_path):
    path, out = made
    found = results.load(path, out)
    again = {
        "Made up again": FILE.replace("Made up", "Made up again"),
        "Balanced": FILE.replace("Made up", "Balanced").replace("ratios", 'kind = "balanced", ratios'),
        "Graph": FILE.replace("Made up, matrix factorization", "Graph, LightGCN").replace("nowhere", "third")
        + '[[methods]]\nname = "New"\nsettings = {loss = "bpr", model = "lightgcn"}\n',
        "Elsewhere": FILE.replace("Made up", "Elsewhere").replace("nowhere", "elsewhere"),
    }
    shown = [reproduce.Shown(found, {})]
    for name, text in again.items():
        (tmp_path / f"{name}.toml").write_text(text)
        shown.append(reproduce.Shown(results.load(tmp_path / f"{name}.toml", out), {}))
    words = glance.in_words(shown)
    assert words.startswith("On 0 of 2 data sets")
    assert "0 of 3 further experiments (Made up again; Balanced; Graph, LightGCN)" in words
    assert glance.in_words(shown[3:4]).startswith("On 0 of 1 data sets")  # alone, it is nothing further
    table = glance.overview(shown).split("## Every method")[0]
    assert [table.index(f"| {name}") for name in ("Made up |", "Elsewhere |", "Made up again |")] == sorted(
        table.index(f"| {name}") for name in ("Made up |", "Elsewhere |", "Made up again |")
    )


def test_bpr_alone_is_recommended_without_a_rival(made):
    told = {"BPR": {"trained": True, "validation": {"ndcg@10": 0.3, **_biases()}}}
    told["Other"] = {"trained": True, "validation": {"ndcg@10": 0.29, **_biases(0.4)}}
    assert evidence.recommended(told, "BPR") == "BPR"
    told["Other"]["validation"]["ndcg@10"] = 0.3
    assert evidence.recommended(told, "BPR") == "Other"
    assert json.dumps(told)


def _biases(quantile=0.2):
    return {"pop_q_at_1": quantile, "upo": 0.5, "arp@10": 90.0, "coverage@10": 0.4}
