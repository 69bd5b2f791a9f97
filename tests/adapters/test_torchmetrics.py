"""The measures of bias as torchmetrics: in batches, in collections, and over two processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import zerosum_ext as zx

torchmetrics = pytest.importorskip("torchmetrics")

from zerosum_ext.integrations.torchmetrics import Exposure, PopularityBias


@pytest.fixture(scope="module")
def positives():
    rng = np.random.default_rng(0)
    matrix = np.argwhere(rng.random((30, 20)) < 0.5)
    users, items = torch.from_numpy(matrix.T.copy())
    return users, items, torch.from_numpy(rng.normal(size=len(users)))


POPULARITY = np.arange(20) + 1


@pytest.mark.parametrize("measure", ["pri", "pop_q_at_1", "upo", "pcc"])
def test_batches_give_what_the_function_gives_of_all(positives, measure):
    users, items, scores = positives
    metric = PopularityBias(measure, POPULARITY)
    order = torch.randperm(len(users), generator=torch.Generator().manual_seed(0))
    for part in order.split(37):
        metric.update(users[part], items[part], scores[part])
    want = getattr(zx.metrics, measure)(users, items, scores, POPULARITY)
    assert float(metric.compute()) == pytest.approx(want, abs=1e-12)
    metric.reset()
    assert metric.compute().isnan()


@pytest.mark.parametrize("measure", ["arp", "aplt", "aclt", "tail_share", "coverage", "gini", "entropy", "novelty"])
def test_lists_give_what_the_function_gives_of_all(measure):
    lists = torch.from_numpy(np.random.default_rng(1).integers(-1, 20, (50, 5)))
    metric = Exposure(measure, POPULARITY, **({"num_users": 30} if measure == "novelty" else {}))
    for part in lists.split(7):
        metric.update(part)
    function = getattr(zx.metrics, measure)
    arguments = {"novelty": (POPULARITY, 30)}.get(measure, (20,) if measure in ("coverage", "gini", "entropy") else ())
    want = function(lists, *(arguments or (POPULARITY,)))
    assert float(metric.compute()) == pytest.approx(float(want), abs=1e-12)


def test_a_collection_a_clone_and_a_copy_on_disk(positives, tmp_path):
    users, items, scores = positives
    both = torchmetrics.MetricCollection(
        {"pri": PopularityBias("pri", POPULARITY), "pcc": PopularityBias("pcc", POPULARITY, min_positives=3)}
    )
    both.update(users, items, scores)
    assert set(both.compute()) == {"pri", "pcc"}
    torch.save(both["pri"], tmp_path / "metric.pt")
    again = torch.load(tmp_path / "metric.pt", weights_only=False)
    assert float(again.compute()) == float(both["pri"].compute())
    assert PopularityBias("pri", POPULARITY).clone().compute().isnan()
    assert Exposure("arp", POPULARITY).higher_is_better is False


def _worker(rank: int, folder: str, arrays: list[torch.Tensor]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    metric = PopularityBias("pri", POPULARITY)
    metric.update(*(values[rank::2] for values in arrays))
    value = float(metric.compute())
    if rank == 0:
        torch.save(value, f"{folder}/value.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_agree_with_one(positives, tmp_path):
    torch.multiprocessing.spawn(_worker, (str(tmp_path), list(positives)), nprocs=2)
    want = zx.metrics.pri(*positives, POPULARITY)
    assert torch.load(tmp_path / "value.pt") == pytest.approx(want, abs=1e-12)


def test_what_is_refused(positives):
    with pytest.raises(ValueError, match="measure: expected one of"):
        PopularityBias("gini", POPULARITY)
    with pytest.raises(ValueError, match="num_users"):
        Exposure("novelty", POPULARITY)
    with pytest.raises(ValueError, match=r"users, items and scores \[P\]"):
        PopularityBias("pri", POPULARITY).update(positives[0], positives[1][:3], positives[2])
    with pytest.raises(ValueError, match="recommended"):
        Exposure("arp", POPULARITY).update(positives[1])
