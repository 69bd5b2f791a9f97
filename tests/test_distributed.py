"""Several processes train, evaluate and resume as one does.

Every group of processes is started once and does many jobs, since each process takes seconds to load torch.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed_worker as worker
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from ranks import SECONDS, finish, free_port, start

import zerosum_ext as zx
from zerosum_ext._group import even_cuts
from zerosum_ext.data import row_groups
from zerosum_ext.distributed import start_group, to_safetensors, write_shards

pytestmark = pytest.mark.threads
ROOT = Path(__file__).resolve().parents[1]
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
        write_shards(folder / f"{kind}.parquet", folder / f"read-{kind}", 5)
        write_row_groups(folder, kind)
    for name, users in (("twice", ["a", "b"]), ("mixed", [1, 2]), ("broken", ["c"]), ("nothing", None)):
        (folder / name).mkdir()
        if users is not None:
            pq.write_table(pa.table({"user": ["a"], "item": ["x"]}), folder / name / "0.parquet")
            pq.write_table(pa.table({"user": users, "item": ["y"] * len(users)}), folder / name / "1.parquet")
        if name == "broken":
            (folder / name / "1.parquet").write_bytes(b"PAR1 and no more")
    for name, users in (("damaged", None), ("null", ["a", "b", None, "c"]), ("no rows", [])):
        (folder / name).mkdir()
        rows = table("numbers") if users is None else {"user": pa.array(users, pa.string()), "item": ["y"] * len(users)}
        pq.write_table(pa.table(rows), folder / name / "0.parquet", row_group_size=2, compression="none")
    data = (folder / "damaged" / "0.parquet").read_bytes()
    (folder / "damaged" / "0.parquet").write_bytes(b"PAR1" + b"\xff" * 2000 + data[2004:])
    for first in (True, False):  # what rank 0 sees, and what the others see
        for name, length in (("other", 2), ("stale", 1)):  # files of other lengths, and of the same
            (folder / f"{name} {first}").mkdir()
            rows = {side: [side * (length if first else 1)] * (1 + first) for side in ("user", "item")}
            pq.write_table(pa.table(rows), folder / f"{name} {first}" / "0.parquet")


def write_row_groups(folder: Path, kind: str) -> None:
    """Write one file with users all over its row groups, a sorted one, uneven ones, and what others write."""
    rows = pa.table(table(kind))
    shuffled = rows.take(np.random.default_rng(1).permutation(len(rows)))
    few = pc.is_in(shuffled["user"], value_set=pa.array(sorted({*rows["user"].to_pylist()})[:5]))
    uneven = shuffled.filter(few), rows.slice(0, 0), shuffled.filter(pc.invert(few))
    for name, files in (("one", [shuffled]), ("sorted", [rows.sort_by("user")]), ("uneven", uneven)):
        (folder / f"read-{name}-{kind}").mkdir()
        for number, file in enumerate(files):
            pq.write_table(file, folder / f"read-{name}-{kind}" / f"{number}.parquet", row_group_size=32)
    if importlib.util.find_spec("polars"):
        import polars as pl

        (folder / f"read-polars-{kind}").mkdir()
        pl.from_arrow(shuffled).write_parquet(folder / f"read-polars-{kind}" / "all.parquet", row_group_size=50)
    if importlib.util.find_spec("duckdb"):
        import duckdb

        with duckdb.connect() as base:
            base.register("rows", shuffled)
            target = f"'{folder}/read-duckdb-{kind}' (FORMAT parquet, PARTITION_BY (part))"
            base.execute(f'COPY (SELECT *, hash("user") % 3 AS part FROM rows) TO {target}')


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, Any]:
    return run(folder, 2, "train", "evaluate", "shards", "save", "refuse", "adam")


@pytest.fixture(scope="module")
def four(folder: Path, two: dict[str, Any]) -> dict[str, Any]:
    return run(folder, 4, "train", "evaluate", "shards", "resume", "adam")


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


@pytest.mark.parametrize("loss", ["bpr", "zerosum"])
def test_adam_in_float32_ends_at_the_same_ndcg(loss, two, four):
    """Other numbers of processes add in another order; what Adam makes of the last bits stays small."""
    train, test = worker.like_movielens()
    model = zx.MatrixFactorization(*train.shape, 16, seed=3)
    worker.adam_of(model, train, loss, engine="autograd")
    expected = zx.evaluate(model, train, test)
    assert expected["ndcg@10"] > 0.1  # it has learnt something
    for out in (two, four):
        for layout in worker.LAYOUTS:
            found, tables = out["adam"][loss, layout]
            assert found["ndcg@10"] == pytest.approx(expected["ndcg@10"], abs=0.002)
            for name, table in model.state_dict().items():
                torch.testing.assert_close(tables[name], table, rtol=0, atol=1e-4)


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
    differs = "expected the same in every process, got"
    assert said["epochs"] == f"ValueError: fit epochs: {differs} 1 in rank 0 and 2 in rank 1"
    assert said["data"].startswith(f"ValueError: interactions: {differs}")
    assert said["data of a whole model"].startswith(f"ValueError: fit interactions: {differs}")
    assert "full cannot be written: " in said["full disk"]
    assert said["no memory"].startswith("MemoryError: no memory for the tables: 5,000,000,000,000 users and 5 items of")
    assert said["no memory"].endswith("in this process, one of 2; start more processes")
    assert "FileNotFoundError: resume: no complete checkpoint" in said["no checkpoint"]


@pytest.fixture(scope="module")
def one(folder: Path) -> Iterator[dict[str, Any]]:
    """What a group of one process reads."""
    group = start_group()
    try:
        yield {"shards": worker.shards(group, folder)}
    finally:
        torch.distributed.destroy_process_group()


WRITERS = ("", "one-", "sorted-", "uneven-", "polars-", "duckdb-")


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", ["text", "numbers"])
def test_processes_read_their_own_parts(kind, writer, one, two, four):
    """Items are numbered as one process numbers them; users file by file, whatever the number of processes.

    A file for several processes is read by row groups, in which users may be anywhere, and each user is in one process.
    """
    if writer in ("polars-", "duckdb-"):
        pytest.importorskip(writer.strip("-"))
    rows = table(kind)
    expected = sorted(zip(*rows.values(), strict=True))
    digests, orders = [], []
    for out in (one, two, four):
        cells, parts, shape, digest = out["shards"][f"read-{writer}{kind}"]
        owned = [len(ids) for ids, _, _ in parts]
        users = np.concatenate([ids for ids, _, _ in parts])
        items = np.concatenate([ids for _, ids, _ in parts])
        ratings = np.concatenate([values for _, _, values in parts])
        assert (len(users), len(items)) == shape
        assert len(np.unique(users)) == len(users)
        assert np.array_equal(items, np.unique(np.array(rows["item"])))
        found = zip(
            users[cells[:, 0].numpy()].tolist(), items[cells[:, 1].numpy()].tolist(), ratings.tolist(), strict=True
        )
        assert sorted(found) == expected
        digests.append(digest)
        orders.append(users.tolist())
        if writer:  # shares of as many rows, also of one file
            assert min(len(values) for _, _, values in parts) > 0.6 * len(expected) / len(parts), owned
    assert digests[0] == digests[1] == digests[2]
    assert orders[0] == orders[1] == orders[2]


def test_parts_that_do_not_fit_are_refused_by_every_process(one, two, four):
    for out in (one, two, four):
        said = out["shards"]
        assert "expected all rows of a user in one file, got 1 users in several" in said["twice"]
        assert "text in some files and integers in others" in said["mixed"]
        assert "1.parquet is not parquet" in said["broken"]
        assert "damaged/0.parquet cannot be read as parquet" in said["damaged"]
        assert "null/0.parquet" in said["null"]
        assert "the user is missing (null)" in said["null"]
        assert "expected rows, got 1 parquet files without any" in said["no rows"]
        assert "no parquet files in" in said["nothing"]
    for out in (two, four):
        assert "folder: expected the same in every process, got '1 files" in out["shards"]["other True"]


class Rank:
    """The part of a group that the plan of reading asks for."""

    device = torch.device("cpu")

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def test_every_row_group_is_read_once_and_every_file_has_its_owners(monkeypatch):
    rng = np.random.default_rng(0)
    for number in range(60):
        files = [rng.integers(0, 40, rng.integers(1, 9)).tolist() for _ in range(rng.integers(1, 12))]
        if not sum(map(sum, files)):
            continue
        monkeypatch.setattr(row_groups, "_sizes", lambda paths, group, files=files: files)
        size = int(rng.integers(1, 10))
        shares = [row_groups.own_share([Path(str(n)) for n in range(len(files))], Rank(r, size)) for r in range(size)]
        full = [groups for groups in files if sum(groups)]
        read = sorted(
            (piece.file, group)
            for share in shares
            for piece in share.pieces
            for group in range(piece.first, piece.last)
        )
        whole = sorted(file for share in shares for file in share.whole)
        shared = [file for file in range(len(full)) if file not in whole]
        assert len({*whole}) == len(whole)
        assert read == [(file, group) for file in shared for group in range(len(full[file]))], number
        last = 0
        for file in range(len(full)):
            low, high = shares[0].owners(file)
            assert last <= low <= high < size
            assert (low == high) == (file in whole)
            last = high


def test_parts_are_written_by_user(folder, tmp_path):
    files = sorted((folder / "read-text").glob("*.parquet"))
    assert [file.name for file in files] == [f"part-{n:05d}.parquet" for n in range(5)]
    users = [set(pq.read_table(file)["user"].to_pylist()) for file in files]
    assert sum(map(len, users)) == len(set.union(*users)) == len(set(table("text")["user"]))
    with pytest.raises(ValueError, match="folder: expected a new or empty one"):
        write_shards(folder / "text.parquet", folder / "read-text", 5)
    with pytest.raises(ValueError, match="user: expected a column of user, item, rating, got 'who'"):
        write_shards(folder / "text.parquet", tmp_path / "new", 5, user="who")
    assert not (tmp_path / "new").exists()
    pq.write_table(pa.table({"user": ["a", None], "item": [1, 2]}), tmp_path / "null.parquet")
    with pytest.raises(ValueError, match="user: expected an id in every row, got null"):
        write_shards(tmp_path / "null.parquet", tmp_path / "new", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["null.parquet"]  # nothing half written
    data = worker.interactions()
    assert sum(write_shards(data, tmp_path / "indices", 3)) == data.nnz


def test_the_plan_on_paper_is_what_its_arithmetic_gives():
    """Both columns of the page, from the sizes of what the code sends and keeps, and from the measured CPU time."""
    page, bench = ROOT / "docs" / "scale.md", ROOT / "benchmarks" / "bench_scale.py"
    if not (page.is_file() and bench.is_file()):
        pytest.skip("the page or the benchmark is not here")
    found = importlib.util.spec_from_file_location("bench_scale", bench)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    eight = module.plan(1e9, 1e8, 1e11, 64, 8, 450e9)
    sixteen = module.plan(1e9, 1e8, 1e11, 64, 16, 12.5e9)
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in page.read_text().splitlines() if line.startswith("|")]
    said = {row[0].partition(":")[0].partition(",")[0]: row[1:] for row in rows}
    giga = lambda name: [f"{plan[name] / 1e9:.0f} GB each" for plan in (eight, sixteen)]  # noqa: E731
    for row, name in (
        ("tables", "tables"),
        ("interactions with filter", "interactions"),
        ("order of an epoch", "order"),
    ):
        assert all(value in cell for value, cell in zip(giga(name), said[row], strict=True)), row
    each_sample = next(row for row in rows if row[0].startswith("network: bytes"))
    assert each_sample[1:] == [f"{plan['bytes a sample']:.0f}" for plan in (eight, sixteen)]
    rates = next(row for row in rows if row[0] == "network, at least")
    assert f"{eight['samples a second'] / 1e6:.0f} M samples/s" in rates[1]
    assert f"an epoch in {eight['epoch seconds']:.0f} s" in rates[1]
    assert f"{sixteen['samples a second'] / 1e6:.1f} M samples/s" in rates[2]
    assert f"an epoch in {sixteen['epoch seconds']:.0f} s" in rates[2]
    results = json.loads((ROOT / "benchmarks" / "results" / "scale-cpu.json").read_text())["network"]
    four = next(one for one in results if one["size"] == 4 and one["rate"] == "1gbit")
    each = 1e6 * four["mean"]["cpu"] / four["mean"]["steps"] / four["settings"]["samples"]
    computing = next(row for row in rows if row[0].startswith("computing"))
    assert f"{each:.2f} us a sample" in computing[0]
    assert f"{round(1e11 / 16 * round(each, 2) * 1e-6 / 16):,}".replace(",", " ") in computing[2]


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
