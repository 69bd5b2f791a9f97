"""The verdict in words: what it says where a method gains, loses, does nothing, and where data are poor."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import zerosum_ext as zx
from zerosum_ext.evaluation import compute, per_user, rank, significance
from zerosum_ext.experiments import runs
from zerosum_ext.experiments.verdict import (
    MOST_POPULAR,
    Verdict,
    cost_warnings,
    data_warnings,
    history_warnings,
    judge,
    popularity_scores,
)
from zerosum_ext.training import History

FAST = {"figures": False, "progress": False}


@pytest.fixture(scope="module")
def scene():
    """200 users with a taste for one of ten groups of items, and scores of a good, a bad and a popular ranker."""
    rng = np.random.default_rng(0)
    users, items = 200, 120
    popular = 1 / np.arange(1, items + 1)
    taste = rng.integers(0, 10, users)
    weight = popular * np.where(np.arange(items) % 10 == taste[:, None], 60.0, 1.0)
    cells = np.stack([rng.choice(items, 24, replace=False, p=row / row.sum()) for row in weight])
    data = zx.Interactions.from_arrays(np.repeat(np.arange(users), 24), cells.ravel(), shape=(users, items))
    split = data.split_random((0.6, 0.0, 0.4), seed=1)
    popularity = data.popularity
    # The good ranker knows the tastes and hardly minds popularity; the bad one is noise upon popularity.
    good = torch.tensor((weight / popular) + popular + rng.random((users, items)))
    bad = torch.tensor(popular * 5 + rng.random((users, items)))
    rankings = {name: [rank(s, split.train, split.test, k=10)] for name, s in (("good", good), ("bad", bad))}
    rankings[MOST_POPULAR] = [rank(popularity_scores(split.train), split.train, split.test, k=10)]
    return split, popularity, rankings


def named(rankings, **names):
    return {new: rankings[old] for new, old in names.items()}


def test_measures_are_those_of_evaluate_and_signs_are_right(scene):
    _, popularity, rankings = scene
    found = judge(named(rankings, bpr="bad", zerosum="good"), popularity, "zerosum")
    (one,) = found.against
    for change in one.changes:
        for value, name in ((change.before, "bad"), (change.after, "good")):
            expected = compute(rankings[name][0], popularity, metrics=[change.key])[change.key]
            assert value == pytest.approx(expected, rel=1e-9)
        assert change.low <= change.after - change.before <= change.high
        assert change.adjusted >= change.p_value
        assert change.better is True
    back = judge(named(rankings, bpr="good", zerosum="bad"), popularity, "zerosum").against[0]
    assert [change.better for change in back.changes] == [False] * 6


def test_the_sentence_says_what_changed(scene):
    _, popularity, rankings = scene
    found = judge(named(rankings, bpr="bad", zerosum="good"), popularity, "zerosum")
    change = found.against[0].change("ndcg")
    (sentence,) = found.sentences(intervals=False)
    assert sentence.startswith(f"Zerosum against BPR: accuracy (NDCG@10) +{100 * change.relative[0]:.1f} %, long-tail")
    tail = found.against[0].change("aplt")
    assert f"long-tail share@10 {100 * tail.before:.1f} % -> {100 * tail.after:.1f} %" in sentence
    assert "(ideal 0.5, better)" in sentence
    assert f"(95 %: +{100 * change.relative[1]:.1f} to +{100 * change.relative[2]:.1f})" in found.sentences()[0]


def test_no_change_is_called_not_significant(scene):
    _, popularity, rankings = scene
    found = judge(named(rankings, bpr="good", psl="good"), popularity, "psl")
    assert all(change.better is None for change in found.against[0].changes)
    assert found.sentences(False)[0].count("not significant") == 6
    assert "neither more accurate nor less biased than BPR" in found.warnings[0]


def test_a_method_that_loses_on_both_sides_is_warned_of(scene):
    _, popularity, rankings = scene
    found = judge(named(rankings, bpr="good", zerosum="bad"), popularity, "zerosum")
    assert found.warnings == (
        "Zerosum is less accurate than BPR and does not debias on these data: do not use this setting",
    )


def test_a_method_that_costs_more_in_the_test_than_it_may_is_warned_of(scene):
    _, popularity, rankings = scene
    found = judge(named(rankings, bpr="good", zerosum="bad"), popularity, "zerosum")
    share, _, high = found.against[0].accuracy.relative
    warnings, advice = cost_warnings(found, 0.01)
    assert f"costs {-100 * share:.1f} % of BPR's accuracy on the test part, more than the 1 %" in warnings[0]
    assert "--max-cost" in advice[0]
    assert cost_warnings(found, -high + 1e-6) == ([], [])  # its interval reaches what it may cost
    assert len(cost_warnings(found, -high - 1e-6)[0]) == 1
    better = judge(named(rankings, bpr="bad", zerosum="good"), popularity, "zerosum")
    assert cost_warnings(better, 0.0) == ([], [])
    without = judge({MOST_POPULAR: rankings[MOST_POPULAR], "zerosum": rankings["bad"]}, popularity, "zerosum")
    assert cost_warnings(without, 0.0) == ([], [])  # there is no BPR to compare with


def test_seeds_are_averaged_over_each_user(scene):
    _, popularity, rankings = scene
    good, bad = rankings["good"][0], rankings["bad"][0]
    found = judge({"bpr": [bad, good], "zerosum": [good, bad]}, popularity, "zerosum").against[0]
    for change in found.changes:
        mean = np.mean([compute(one, popularity, metrics=[change.key])[change.key] for one in (good, bad)])
        assert change.before == pytest.approx(mean)
        assert change.after == pytest.approx(mean)
        assert change.better is None
    one_against_two = judge({MOST_POPULAR: rankings[MOST_POPULAR], "bpr": [bad, good]}, popularity, "bpr").against[0]
    expected = compute(rankings[MOST_POPULAR][0], popularity, metrics=["coverage@10"])["coverage@10"]
    assert one_against_two.change("coverage").before == pytest.approx(expected)


def test_values_on_two_sides_of_the_ideal_are_compared_by_their_distance(scene):
    split, popularity, _ = scene
    # The most popular positive on top of every user's: 0. The least popular: 1.
    low, high = (rank(s.double().expand(200, 120), split.train, split.test, k=10) for s in (popularity, -popularity))
    change = judge({"bpr": [low], "zerosum": [high]}, popularity, "zerosum").against[0].change("pop_q_at_1")
    x, y = (per_user(one, popularity, metrics=["pop_q_at_1"])["pop_q_at_1"] for one in (low, high))
    known = ~np.isnan(x)
    expected = significance.compare(np.zeros(known.sum()), (x + y - 1)[known], resamples=999)
    assert change.p_value == expected.p_value
    assert change.low > 0.8  # the interval is that of the values


def test_verdicts_survive_json_and_damaged_ones_are_refused(scene):
    _, popularity, rankings = scene
    found = judge(named(rankings, bpr="bad", zerosum="good"), popularity, "zerosum")
    text = json.dumps(found.to_dict())
    assert Verdict.from_dict(json.loads(text)).lines() == found.lines()
    for spoil in ("[]", "{}", text.replace('"main"', '"mane"'), text.replace('"changes": [{', '"changes": [{"x": 1, ')):
        with pytest.raises(ValueError, match="it is no verdict"):
            Verdict.from_dict(json.loads(spoil))
    with pytest.raises(ValueError, match="main: expected one of bpr, got 'macr'"):
        judge(named(rankings, bpr="bad"), popularity, "macr")


def test_measures_without_a_value_are_said():
    data = zx.Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 0, 2])
    split = data.split_last(test=1)
    ranking = rank(torch.rand(3, 3), split.train, split.test, k=2)
    found = judge({"bpr": [ranking], "zerosum": [ranking]}, data.popularity, "zerosum", k=2, metric="ndcg@2")
    assert "PopQ@1 has no value here" in found.sentences()[0]


def test_the_cap_on_epochs_is_warned_of():
    rising, level = History([1.0] * 5), History([1.0] * 20)
    rising.validation, rising.best_epoch = [0.1, 0.2, 0.3, 0.4, 0.5], 4
    level.validation, level.best_epoch, level.stopped = [0.5] * 20, 9, "early stopping"
    told = history_warnings({"bpr": rising, "zerosum": level}, {"bpr": 10, "zerosum": 10})
    assert told == [
        "BPR was stopped by the cap of 5 epochs; its best was epoch 5, so more epochs (--epochs) may improve it"
    ]
    assert history_warnings({"bpr": History([1.0])}, {"bpr": 10}) == []


# ---- data on which little can be learned


def popularity_alone(users=300, items=150, each=20, seed=0):
    """Users without any taste: everybody draws from the same steep popularity, as in FilmTrust."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, items + 1) ** 1.5
    cells = np.stack([rng.choice(items, each, replace=False, p=share / share.sum()) for _ in range(users)])
    return zx.Interactions.from_arrays(np.repeat(np.arange(users), each), cells.ravel(), shape=(users, items))


METHOD = runs.Method(weight=0.9, embedding_dim=16, epochs=4, batch_size=512, patience=None)


def test_where_the_most_popular_items_win_the_verdict_says_so(tmp_path):
    run = runs.train(popularity_alone(), tmp_path / "r", METHOD, **FAST)
    found = runs.read_verdict(run)
    popular = next(one for one in found.against if one.name == MOST_POPULAR)
    assert popular.accuracy.before > popular.accuracy.after
    assert any(
        "the most popular items, the same for everybody, are more accurate than Zerosum" in w for w in found.warnings
    )
    assert any("recommend the most popular" in text for text in found.advice)
    expected = found.references[MOST_POPULAR]["ndcg@10"]
    assert popular.accuracy.before == pytest.approx(expected)


def test_no_user_with_two_items_is_said(tmp_path):
    rng = np.random.default_rng(0)
    data = zx.Interactions.from_arrays(np.arange(200), rng.integers(0, 20, 200))
    run = runs.train(data, tmp_path / "r", METHOD, **FAST)
    found = runs.read_verdict(run)
    assert any(text.startswith("no user has two items") for text in found.warnings)
    assert data_warnings(popularity_alone(20).split_random()) == ([], [])


def test_ten_users_are_said_to_be_few(tmp_path):
    run = runs.train(popularity_alone(users=10, each=12), tmp_path / "r", METHOD, **FAST)
    found = runs.read_verdict(run)
    assert found.users <= 10
    assert any(text.startswith(f"only {found.users} users were tested") for text in found.warnings)


def test_a_damaged_verdict_is_named(tmp_path):
    path = tmp_path / "ratings.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("user", "item"), *zip(*np.nonzero(np.tri(20)), strict=True)])
    run = runs.train(path, tmp_path / "r", replace(METHOD, epochs=1), **FAST)
    assert runs.read_verdict(run) is not None
    (run.folder / "verdict.json").write_text('{"main": 3}')
    with pytest.raises(ValueError, match=r"verdict.json is damaged: it is no verdict"):
        runs.read_verdict(run)
    runs.train(path, run.folder, replace(METHOD, epochs=1), overwrite=True, **FAST)
    (run.folder / "verdict.json").unlink()
    assert runs.read_verdict(run) is None
