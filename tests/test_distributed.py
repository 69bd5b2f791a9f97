"""Several processes train, evaluate and resume as one does.

Every group of processes is started once and does many jobs, since each process takes seconds to load torch.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import distributed_worker as worker
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ranks import SECONDS, finish, free_port, start

import zerosum_ext as zx
from zerosum_ext._group import even_cuts
from zerosum_ext.distributed import to_safetensors, write_shards

pytestmark = pytest.mark.threads
WORKER = Path(__file__).with_name("distributed_worker.py")


def run(folder: Path, size: int, *jobs: str) -> dict[str, Any]:
    processes = start([str(WORKER), str(folder), *jobs], size)
    said = finish(processes)
    assert [process.returncode for process in processes] == [0] * size, "\n".join(said)[-4000:]
    return {job: torch.load(folder / f"{job}-{size}.pt", weights_only=False) for job in jobs}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    write_folders(folder)
    return folder


def table(kind: str) -> dict[str, list[Any]]:
    """Return some rows: text ids of several lengths and alphabets, or integers, and a rating."""
    rng = np.random.default_rng(5)
    users, items = rng.integers(0, 40, 300), rng.integers(0, 30, 300)
    pairs = sorted({*zip(users.tolist(), items.tolist(), strict=True)})
    users, items = zip(*pairs, strict=True)
    if kind == "text":
        users, items = [f"user {u * 7919 % 1000}" for u in users], ["ä" * (i % 3) + f"{i:x}" for i in items]
    else:
        items = [i * 1_000_003 - 7_000_000 for i in items]
    return {"user": list(users), "item": list(items), "rating": [float(n) for n in range(len(pairs))]}


def write_folders(folder: Path) -> None:
    """Write parts that are right, and some that are not."""
    for kind in ("text", "numbers"):
        pq.write_table(pa.table(table(kind)), folder / f"{kind}.parquet", row_group_size=50)
        write_shards(folder / f"{kind}.parquet", folder / kind, 5)
    for name, users in (("twice", ["a", "b"]), ("few", None), ("mixed", [1, 2]), ("broken", ["c"])):
        (folder / name).mkdir()
        pq.write_table(pa.table({"user": ["a"], "item": ["x"]}), folder / name / "0.parquet")
        if users is not None:
            pq.write_table(pa.table({"user": users, "item": ["y"] * len(users)}), folder / name / "1.parquet")
        if name == "broken":
            (folder / name / "1.parquet").write_bytes(b"PAR1 and no more")


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, Any]:
    return run(folder, 2, "train", "evaluate", "shards", "save", "refuse")


@pytest.fixture(scope="module")
def four(folder: Path, two: dict[str, Any]) -> dict[str, Any]:
    return run(folder, 4, "train", "evaluate", "shards", "resume")


@pytest.fixture(scope="module")
def alone() -> dict[int, Any]:
    """What one process trains without a group."""
    data, out = worker.interactions(), {}
    for number, (loss, optimizer, bias, options) in enumerate(worker.CASES):
        model = worker.model_of("one", data, bias)
        given = worker.options_of(loss, optimizer, options, data)
        history = model.fit(data, **given, epochs=2, engine="autograd")
        out[number] = list(history), history.samples, model
    return out


@pytest.mark.parametrize("number", range(len(worker.CASES)))
@pytest.mark.parametrize("size", [2, 4])
def test_processes_train_as_one_does(size, number, two, four, alone):
    """The same samples: losses and tables are equal up to the order of additions, and so are the rankings."""
    losses, samples, model = alone[number]
    trained = {layout: out for (n, layout), out in (two, four)[size == 4]["train"].items() if n == number}
    assert trained
    for layout, (theirs, their_samples, engine, tables) in trained.items():
        assert engine == ("data-parallel" if layout == "data-parallel" else "sharded")
        assert their_samples == samples
        np.testing.assert_allclose(theirs, losses, rtol=0, atol=1e-10)
        for name, table in model.state_dict().items():
            torch.testing.assert_close(tables[name], table, rtol=0, atol=1e-9)
        other = zx.MatrixFactorization(worker.USERS, worker.ITEMS, worker.DIM, item_bias=model.item_bias is not None)
        other.double().load_state_dict(tables)
        assert torch.equal(other.recommend(range(worker.USERS), 20)[0], model.recommend(range(worker.USERS), 20)[0])


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("layout", worker.LAYOUTS[:2])
@pytest.mark.parametrize("bias", [False, True])
def test_processes_evaluate_and_recommend_as_one_does(size, layout, bias, two, four):
    values, (items, scores), tables = (two, four)[size == 4]["evaluate"][layout, bias]
    data, test = worker.interactions(), worker.interactions(1)
    model = zx.MatrixFactorization(worker.USERS, worker.ITEMS, worker.DIM, item_bias=bias)
    model.load_state_dict(tables)
    expected = zx.evaluate(model, data, test)
    assert values == pytest.approx(expected, rel=1e-13, nan_ok=True)
    for name in ("hr@10", "hr@20", "pairwise_accuracy", "coverage@10", "gini@20", "entropy@10", "tail_share@10"):
        assert values[name] == expected[name]  # sums of whole numbers
    wanted, wanted_scores = model.recommend(range(worker.USERS), 7, exclude=data)
    assert torch.equal(items, wanted)
    assert torch.equal(scores, wanted_scores)


def test_data_parallel_validation_has_the_bits_of_one_process(two, four):
    data, test = worker.interactions(), worker.interactions(1)
    one = worker.model_of("one", data, dtype=torch.float32)
    options = {"epochs": 2, "batch_size": 64, "validation": test, "metric": "ndcg@10", "engine": "autograd"}
    expected = one.fit(data, "zerosum", **options).validation
    for out in (two, four):
        assert out["evaluate"]["validation"] == pytest.approx(expected, rel=1e-6)


def test_splits_and_digests_do_not_depend_on_the_number_of_processes(two, four):
    first, second = two["evaluate"], four["evaluate"]
    assert first["digest"] == second["digest"]
    for mine, theirs in zip(first["split"], second["split"], strict=True):
        assert torch.equal(mine, theirs)
    data = worker.interactions()
    assert sum(len(part) for part in first["split"]) == data.nnz
    assert len(first["split"][0]) == pytest.approx(0.7 * data.nnz, rel=0.1)


@pytest.mark.parametrize("number", [1, 3])
def test_a_checkpoint_of_two_processes_is_resumed_by_four(number, two, four):
    losses, tables = two["save"][number]
    resumed, their_tables = four["resume"][number]
    np.testing.assert_allclose(resumed, losses, rtol=0, atol=1e-10)
    for name, table in tables.items():
        torch.testing.assert_close(their_tables[name], table, rtol=0, atol=1e-9)


def test_a_checkpoint_of_another_run_is_refused(four):
    assert "batch_size=64, this run has 32" in four["resume"]["other run"]


def test_resuming_a_checkpoint_of_others_runs_no_code(folder, four):
    said = four["resume"]["hostile"]
    assert re.search(r"hostile/epoch-\S* is damaged: .*io\.open, which no list of tables consists of", said), said
    assert not (folder / "harm").exists()


def test_a_checkpoint_becomes_one_model_file(folder, two, tmp_path):
    """The newest complete checkpoint alone is kept, and one process makes a model file of it."""
    tables = two["save"][1][1]
    kept = sorted(p.name for p in (folder / "whole-1").iterdir())
    assert kept == ["epoch-000003-step-000000000"]
    to_safetensors(folder / "whole-1", tmp_path / "model.safetensors")
    model = zx.MatrixFactorization.load(tmp_path / "model.safetensors")
    assert model.epochs_trained == 3
    for name, table in tables.items():
        assert torch.equal(model.state_dict()[name], table)
    with pytest.raises(ValueError, match="no weights of a best epoch"):
        to_safetensors(folder / "whole-1", tmp_path / "best.safetensors", best=True)
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        to_safetensors(tmp_path, tmp_path / "none.safetensors")


def test_what_does_not_fit_is_refused_by_every_process(two):
    said = two["refuse"]
    assert said["whole interactions"].startswith("TypeError: interactions: expected ShardedInteractions")
    assert said["hogwild"].startswith("ValueError: engine: expected 'auto' or 'autograd' with mesh, got 'hogwild'")
    assert "precision: expected 'float32' with mesh" in said["precision"]
    assert "transform: expected None with sharded tables" in said["transform"]
    for name in ("weights", "drawn"):
        assert "sample_weight: expected None with sharded tables" in said[name]
    assert "interactions: expected the users of the model" in said["users"]
    assert said["one process errs"].endswith("(rank 1)")  # and rank 0 does not wait for it for ever
    assert "FileNotFoundError: resume: no complete checkpoint" in said["no checkpoint"]


@pytest.mark.parametrize("kind", ["text", "numbers"])
def test_processes_read_their_own_parts(kind, two, four):
    """Items are numbered as one process numbers them; users file by file, whatever the number of processes."""
    rows = table(kind)
    expected = sorted(zip(*rows.values(), strict=True))
    digests = []
    for out in (two, four):
        cells, parts, shape, digest = out["shards"][kind]
        users = np.concatenate([ids for ids, _, _ in parts if ids is not None])
        items = np.concatenate([ids for _, ids, _ in parts])
        ratings = np.concatenate([values for _, _, values in parts])
        assert (len(users), len(items)) == shape
        assert np.array_equal(items, np.unique(np.array(rows["item"])))
        found = zip(
            users[cells[:, 0].numpy()].tolist(), items[cells[:, 1].numpy()].tolist(), ratings.tolist(), strict=True
        )
        assert sorted(found) == expected
        digests.append(digest)
    assert digests[0] == digests[1]


def test_parts_that_do_not_fit_are_refused_by_every_process(two, four):
    said = two["shards"]
    assert "expected all rows of a user in one file, got 1 users in several" in said["twice"]
    assert "text in some files and integers in others" in said["mixed"]
    assert "1.parquet is not parquet" in said["broken"]
    assert "expected a file for each of the 2 processes, got 1" in said["few"]
    assert "expected a file for each of the 4 processes, got 2" in four["shards"]["twice"]


def test_parts_are_written_by_user(folder, tmp_path):
    files = sorted((folder / "text").glob("*.parquet"))
    assert [file.name for file in files] == [f"part-{n:05d}.parquet" for n in range(5)]
    users = [set(pq.read_table(file)["user"].to_pylist()) for file in files]
    assert sum(map(len, users)) == len(set.union(*users)) == len(set(table("text")["user"]))
    with pytest.raises(ValueError, match="folder: expected a new or empty one"):
        write_shards(folder / "text.parquet", folder / "text", 5)
    with pytest.raises(ValueError, match="user: expected a column of user, item, rating, got 'who'"):
        write_shards(folder / "text.parquet", tmp_path / "new", 5, user="who")
    assert not (tmp_path / "new").exists()
    pq.write_table(pa.table({"user": ["a", None], "item": [1, 2]}), tmp_path / "null.parquet")
    with pytest.raises(ValueError, match="user: expected an id in every row, got null"):
        write_shards(tmp_path / "null.parquet", tmp_path / "new", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["null.parquet"]  # nothing half written
    data = worker.interactions()
    assert sum(write_shards(data, tmp_path / "indices", 3)) == data.nnz


def test_even_cuts_are_those_of_chunk():
    for size, parts in ((10, 4), (3, 5), (0, 2), (16, 4)):
        chunks = [len(c) for c in torch.arange(size).chunk(parts)] if size else []
        assert [b - a for a, b in zip(even_cuts(size, parts), even_cuts(size, parts)[1:], strict=False) if b > a] == [
            c for c in chunks if c
        ]


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system does not tell a process's children")
def test_torchrun_starts_a_lost_process_anew_and_the_run_ends_as_if_undisturbed(tmp_path):
    write_shards(worker.interactions(), tmp_path / "shards", parts=4)
    told = {}
    for name, kills in (("calm", 0), ("rough", 2)):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=3"]
        command += [f"--master-port={free_port()}", "-m", "zerosum_ext", "train", "shards", "--loss=zerosum"]
        command += ["--epochs=60", "--batch-size=256", "--no-baseline", "--quiet", "--json", f"--output={name}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (tmp_path / f"{name}.json").open("w") as out:
            process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=subprocess.PIPE)
        known: set[Path] = set()
        until = time.monotonic() + SECONDS
        for rank in range(kills):
            while not (found := set(tmp_path.glob(f"{name}/*/checkpoint/epoch-*")) - known):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < until
                time.sleep(0.05)
            known |= found
            os.kill(_children(process.pid)[rank], signal.SIGKILL)
            time.sleep(1)
        said = process.communicate(timeout=SECONDS)[1].decode()
        assert process.returncode == 0, said
        assert said.count("failed (exitcode: -9)") == kills
        told[name] = json.loads((tmp_path / f"{name}.json").read_text())["metrics"]
    assert told["rough"] == told["calm"]
