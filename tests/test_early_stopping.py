"""The epoch that a run ends with, by accuracy and bias together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import zerosum_ext as zx
from zerosum_ext.experiments import runs
from zerosum_ext.training import fit
from zerosum_ext.training.choice import Front


def data(seed=0):
    rng = np.random.default_rng(seed)
    owned = rng.random((80, 60)) < np.linspace(0.6, 0.05, 60)
    return zx.Interactions.from_arrays(*owned.nonzero(), shape=owned.shape).split_random((0.6, 0.2, 0.2), seed=0)


def trained(split, *, epochs=12, callbacks=(), **options):
    model = zx.MatrixFactorization(80, 60, 8, seed=0, init_std=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    history = fit(
        model,
        split.train,
        "bpr",
        optimizer,
        epochs=epochs,
        batch_size=256,
        validation=split.valid,
        bias="pop_q_at_1",
        progress=False,
        callbacks=callbacks,
        **options,
    )
    return model, history


def test_the_least_biased_epoch_of_those_that_cost_little():
    split, states = data(), []
    model, history = trained(
        split, max_cost=0.1, callbacks=[lambda e: states.append(e.model.item_embedding.detach().clone())]
    )
    values, bias = np.array(history.validation), np.array(history.bias)
    affordable = np.flatnonzero(values >= 0.9 * values.max())
    best = affordable[np.argmin(np.abs(bias[affordable] - 0.5))]
    assert history.best_epoch == best
    assert best != values.argmax()  # or the test would show nothing
    assert torch.equal(model.item_embedding, states[best])
    again = zx.evaluate(model, split.train, split.valid, metrics=("ndcg", "pop_q_at_1"), k=10)
    assert again == {"ndcg@10": values[best], "pop_q_at_1": bias[best]}


def test_no_cost_allowed_is_the_most_accurate_epoch():
    _, history = trained(data(), max_cost=0.0)
    assert history.best_epoch == int(np.argmax(history.validation))


def test_a_resumed_run_chooses_the_same_epoch(tmp_path):
    split, file = data(), tmp_path / "c.pt"
    whole, history = trained(split, max_cost=0.1)
    trained(split, max_cost=0.1, epochs=5, checkpoint=file)
    resumed, later = trained(split, max_cost=0.1, resume=file)
    assert later.to_dict() | {"seconds": 0} == history.to_dict() | {"seconds": 0}
    assert torch.equal(whole.item_embedding, resumed.item_embedding)
    with pytest.raises(ValueError, match=r"written with max_cost=0.1, this run has 0.2"):
        trained(split, max_cost=0.2, resume=file)
    state = torch.load(file, weights_only=True)
    for damage in ([{"epoch": 1}], "x", [{"epoch": 1, "accuracy": "a", "distance": 0.1, "state": {}}]):
        torch.save({**state, "front": damage}, file)
        with pytest.raises(ValueError, match="is damaged: front"):
            trained(split, max_cost=0.1, resume=file)


def test_patience_counts_epochs_that_are_better_in_nothing():
    _, history = trained(data(), epochs=200, patience=3, max_cost=0.1)
    assert history.stopped == "early stopping"
    front = Front(True, 0.1)
    kept = [
        front.offer(e, v, abs(b - 0.5), dict)
        for e, (v, b) in enumerate(zip(history.validation, history.bias, strict=True))
    ]
    assert kept[-3:] == [False] * 3
    assert not any(kept[i : i + 3] == [False] * 3 for i in range(len(kept) - 3))
    assert front.chosen.epoch == history.best_epoch


@pytest.mark.parametrize("maximize", [True, False])
def test_the_front_keeps_what_may_still_be_chosen_and_no_more(maximize):
    rng = np.random.default_rng(0)
    for _ in range(200):
        accuracy, distance = rng.integers(1, 12, 9) / 10, rng.integers(0, 6, 9) / 10
        front = Front(maximize, 0.3)
        for epoch in range(9):
            front.offer(epoch, accuracy[epoch], distance[epoch], dict)
            known = accuracy[: epoch + 1]
            least = known.max() * 0.7 if maximize else known.min() * 1.3
            within = known >= least if maximize else known <= least
            assert front.chosen.distance == distance[: epoch + 1][within].min()
        assert len({(k.accuracy, k.distance) for k in front.kept}) == len(front.kept)
        for one in front.kept:  # none beats another in both
            others = [k for k in front.kept if k is not one]
            better = [(k.accuracy >= one.accuracy) == maximize or k.accuracy == one.accuracy for k in others]
            assert not any(b and k.distance <= one.distance for b, k in zip(better, others, strict=True))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bias": "novelty@10"}, "bias: expected a measure of which a direction is better, got 'novelty@10'"),
        ({"bias": "ndcg@10"}, "bias: expected one of"),
        ({"bias": "arp"}, "expected a cut-off as in 'arp@10'"),
        ({"max_cost": 1.0}, r"max_cost: expected a share in \[0, 1\), got 1.0"),
        ({"max_cost": -0.1}, "max_cost: expected a number >= 0, got -0.1"),
        ({"validation": None}, "bias: expected None without validation, got 'pop_q_at_1'"),
        ({"validation": lambda model: 1.0}, "bias: expected None where validation is a callable"),
    ],
)
def test_bad_settings(options, text):
    split = data()
    model = zx.MatrixFactorization(80, 60, 4, seed=0)
    given = {"validation": split.valid, "bias": "pop_q_at_1", "max_cost": 0.05} | options
    with pytest.raises(ValueError, match=text):
        fit(model, split.train, "bpr", epochs=1, progress=False, **given)


def test_too_few_positives_for_the_measure():
    split = data()
    users = torch.arange(80)
    first = split.valid.indices[split.valid.indptr[:-1].clamp(max=split.valid.nnz - 1)]
    one_each = zx.Interactions.from_arrays(users, first, shape=split.train.shape)
    with pytest.raises(ValueError, match="bias: pop_q_at_1 is nan in epoch 0"):
        fit(
            zx.MatrixFactorization(80, 60, 4, seed=0),
            split.train,
            "bpr",
            epochs=1,
            validation=one_each,
            bias="pop_q_at_1",
            progress=False,
        )


def test_in_a_run(tmp_path):
    rng = np.random.default_rng(0)
    owned = rng.random((80, 60)) < np.linspace(0.6, 0.05, 60)
    everything = zx.Interactions.from_arrays(*owned.nonzero(), shape=owned.shape)
    method = runs.Method(loss="bpr", embedding_dim=8, epochs=6, batch_size=256, bias="upo", max_cost=0.2, lr=0.02)
    run = runs.train(everything, tmp_path / "run", method, figures=False, progress=False)
    history = run.histories["bpr"]
    assert len(history.bias) == 6
    assert runs.Run.open(tmp_path / "run").methods["bpr"].bias == "upo"
    with pytest.raises(ValueError, match="bias: expected one of"):
        runs.Method(bias="recall@10")
