"""What others wrote: a damaged or hostile file gives a ValueError that names it, and takes no memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pickles import Harmful
from safetensors.torch import save_file

import zerosum_ext as zx
from zerosum_ext._files import check_npz
from zerosum_ext.experiments import runs
from zerosum_ext.models import Recommender
from zerosum_ext.training import fit

OPTIONS = {"batch_size": 64, "seed": 3, "progress": False}


@pytest.fixture(scope="module")
def triangle():
    return zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(30, 30))


@pytest.fixture(autouse=True)
def little_memory():
    """2 GB beyond what the process has: a file of some bytes that asks for more fails, and fails wrongly."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# ---- models


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    zx.MatrixFactorization(30, 30, 8, seed=0, item_bias=True).save(path)
    return path.read_bytes()


CONFIG = {"num_users": 30, "num_items": 30, "embedding_dim": 8, "item_bias": False, "init_std": 0.01, "sparse": False}
TENSORS = {"user_embedding": torch.zeros(30, 8), "item_embedding": torch.zeros(30, 8)}
FORMAT = {"format": "zerosum_ext.MatrixFactorization/1"}
DAMAGED_MODELS = {
    "no configuration": (TENSORS, FORMAT),
    "no JSON": (TENSORS, {**FORMAT, "config": "{"}),
    "no object": (TENSORS, {**FORMAT, "config": "[1]"}),
    "nested": (TENSORS, {**FORMAT, "config": "[" * 100_000}),
    "another option": (TENSORS, {**FORMAT, "config": json.dumps({**CONFIG, "seed": 1, "why": 2})}),
    "lacks an option": (TENSORS, {**FORMAT, "config": json.dumps({"num_users": 30})}),
    "text": (TENSORS, {**FORMAT, "config": json.dumps({**CONFIG, "num_users": "30"})}),
    "a billion users": (TENSORS, {**FORMAT, "config": json.dumps({**CONFIG, "num_users": 10**9})}),
    "a billion items": (TENSORS, {**FORMAT, "config": json.dumps({**CONFIG, "num_items": 10**9})}),
    "very wide": (TENSORS, {**FORMAT, "config": json.dumps({**CONFIG, "embedding_dim": 10**7})}),
    "fewer users": (TENSORS, {**FORMAT, "config": json.dumps({**CONFIG, "num_users": 29})}),
    "lacks a tensor": ({"user_embedding": torch.zeros(30, 8)}, {**FORMAT, "config": json.dumps(CONFIG)}),
    "integers": ({n: t.long() for n, t in TENSORS.items()}, {**FORMAT, "config": json.dumps(CONFIG)}),
    "nothing": ({"x": torch.zeros(1)}, {**FORMAT, "config": json.dumps(CONFIG)}),
    "epochs": (TENSORS, {**FORMAT, "config": json.dumps(CONFIG), "epochs_trained": "-3"}),
    "epochs of text": (TENSORS, {**FORMAT, "config": json.dumps(CONFIG), "epochs_trained": "x"}),
    "another format": (TENSORS, {"format": "zerosum_ext.Nothing/1", "config": json.dumps(CONFIG)}),
}


@pytest.mark.parametrize("case", DAMAGED_MODELS)
def test_a_damaged_model_is_named(tmp_path, case):
    tensors, metadata = DAMAGED_MODELS[case]
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        Recommender.load(path)


@pytest.mark.parametrize("name", ["num_users", "num_items", "embedding_dim"])
@pytest.mark.parametrize("size", [5000, 10**5, 10**9])
def test_a_size_that_no_tensor_has_is_refused_before_memory_is_taken(tmp_path, monkeypatch, name, size):
    made = []
    monkeypatch.setattr(zx.MatrixFactorization, "_construct", lambda *args: made.append(args))
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, {**FORMAT, "config": json.dumps({**CONFIG, name: size})})
    with pytest.raises(ValueError, match=f"model.safetensors.*{name} is {size:,}, and no tensor of the file has that"):
        Recommender.load(path)
    assert not made


@pytest.mark.parametrize("at", [0, 1, 7, 8, 40, 200, -1])
def test_a_model_that_was_cut_off_is_named(tmp_path, saved, at):
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved[:at])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        Recommender.load(path)


@pytest.mark.parametrize("length", [2**63 - 1, 2**40, 2**31])
def test_a_header_that_claims_more_than_the_file_has_is_named(tmp_path, saved, length):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + saved[8:])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        Recommender.load(path)


@pytest.mark.parametrize("seed", range(60))
def test_a_model_with_some_other_bytes_loads_or_is_named(tmp_path, saved, seed):
    rng = np.random.default_rng(seed)
    data = bytearray(saved)
    for _ in range(int(rng.integers(1, 4))):
        data[int(rng.integers(min(len(data), 600)))] = int(rng.integers(256))
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    try:
        Recommender.load(path)
    except ValueError as error:
        assert "model.safetensors" in str(error)  # noqa: PT017  (it may load as well)


# ---- checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, triangle):
    path = tmp_path_factory.mktemp("run") / "c.pt"
    fit(zx.MatrixFactorization(30, 30, 8, seed=0), triangle, "bpr", epochs=2, checkpoint=path, **OPTIONS)
    return path


def resume(path, triangle, epochs=3):
    return fit(zx.MatrixFactorization(30, 30, 8, seed=0), triangle, "bpr", epochs=epochs, resume=path, **OPTIONS)


def _change(name, value):
    def change(state):
        state[name] = value

    return change


def _drop(name):
    return lambda state: state.pop(name)


def _moment(state):
    first = state["optimizer"]["state"][0]
    first["exp_avg"] = torch.zeros(3)


DAMAGED_CHECKPOINTS = {
    **{f"lacks {name}": _drop(name) for name in ("fingerprint", "epoch", "step", "model", "optimizer", "history")},
    **{f"lacks {name}": _drop(name) for name in ("rng", "best_value", "best_state", "loss", "scheduler", "seconds")},
    "epoch -5": _change("epoch", -5),
    "epoch 10^12": _change("epoch", 10**12),
    "epoch of text": _change("epoch", "2"),
    "step": _change("step", 10**9),
    "first epoch": _change("first_epoch", -1),
    "first epoch of 2^40": _change("first_epoch", 2**40),
    "seconds": _change("seconds", float("nan")),
    "loss": _change("loss_sum", torch.zeros(7)),
    "random numbers": _change("rng", torch.zeros(3, dtype=torch.uint8)),
    "random floats": _change("rng", torch.zeros(5056)),
    "model is a list": _change("model", [1]),
    "model without tensors": _change("model", {"user_embedding": 3, "item_embedding": 4}),
    "optimizer": _change("optimizer", {"state": {}, "param_groups": []}),
    "optimizer of text": _change("optimizer", {"state": {0: 3}, "param_groups": "x"}),
    "moments of another shape": _moment,
    "history": _change("history", {"loss": [1.0]}),
    "history of text": _change("history", {"loss": "ab"}),
    "best": _change("best_state", {"user_embedding": 3}),
    "best of no tensor": _change("best_state", {}),
    "best of another model": _change("best_state", {"user_embedding": torch.zeros(30, 8), "x": torch.zeros(3)}),
    "best of another width": _change(
        "best_state", dict.fromkeys(("user_embedding", "item_embedding"), torch.zeros(30, 4))
    ),
    "patience": _change("epochs_since_best", -1),
}


@pytest.mark.parametrize("case", DAMAGED_CHECKPOINTS)
def test_a_damaged_checkpoint_is_named(tmp_path, triangle, checkpoint, case):
    state = torch.load(checkpoint, weights_only=True)
    DAMAGED_CHECKPOINTS[case](state)
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"c\.pt"):
        resume(tmp_path / "c.pt", triangle)


OTHERS = (None, -5, 0, 10**12, 1.5, float("nan"), "x", [], [1], {}, {"a": 1}, True)


def test_whatever_an_entry_of_a_checkpoint_is_it_resumes_or_is_named(tmp_path, triangle, checkpoint):
    sound = torch.load(checkpoint, weights_only=True)
    refused = 0
    for name in sound:
        for value in OTHERS:
            torch.save({**sound, name: value}, tmp_path / "c.pt")
            try:
                resume(tmp_path / "c.pt", triangle, epochs=2)
            except ValueError as error:
                assert "c.pt" in str(error)  # noqa: PT017
                refused += 1
    assert refused > len(sound) * len(OTHERS) / 2


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_checkpoint_that_was_cut_off_is_named(tmp_path, triangle, checkpoint, part):
    data = checkpoint.read_bytes()
    (tmp_path / "c.pt").write_bytes(data[: int(part * len(data))])
    with pytest.raises(ValueError, match=r"c\.pt"):
        resume(tmp_path / "c.pt", triangle)


@pytest.mark.parametrize("seed", range(25))
def test_a_checkpoint_with_some_other_bytes_resumes_or_is_named(tmp_path, triangle, checkpoint, seed):
    rng = np.random.default_rng(seed)
    data = bytearray(checkpoint.read_bytes())
    for _ in range(3):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    (tmp_path / "c.pt").write_bytes(data)
    try:
        resume(tmp_path / "c.pt", triangle)
    except ValueError as error:
        assert "c.pt" in str(error) or "diverged" in str(error)  # noqa: PT017


@pytest.mark.parametrize("size", [1 << 14, 1 << 26])
def test_a_checkpoint_that_would_unpack_to_more_than_it_has_is_refused(tmp_path, triangle, checkpoint, size):
    with zipfile.ZipFile(checkpoint) as old, zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, data if "/data/" not in entry.filename else bytes(size))
    with pytest.raises(ValueError, match=r"c\.pt.*unpack"):
        resume(tmp_path / "c.pt", triangle)


def test_a_checkpoint_runs_no_code(tmp_path, triangle):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    torch.save({"format": "zerosum_ext.checkpoint/1", "x": Evil()}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"c\.pt"):
        resume(tmp_path / "c.pt", triangle)
    assert not (tmp_path / "evil").exists()


# ---- run folders


@pytest.fixture(scope="module")
def made(tmp_path_factory, triangle):
    folder = tmp_path_factory.mktemp("runs") / "run"
    runs.train(triangle, folder, runs.Method(loss="bpr", embedding_dim=4, epochs=1), figures=False, progress=False)
    return folder


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def _configured(change):
    def damage(folder):
        file = folder / "config.json"
        config = json.loads(file.read_text())
        change(config)
        file.write_text(json.dumps(config))

    return damage


def _methods(value):
    return _configured(lambda config: config.update(methods=value))


def _setting(name, value):
    return _configured(lambda config: config["methods"]["bpr"].update({name: value}))


DAMAGED_RUNS = {
    "no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "deep JSON": lambda folder: (folder / "config.json").write_text("[" * 100_000),
    "no UTF-8": lambda folder: (folder / "config.json").write_bytes(b'{"a": "\xff"}'),
    "a list": lambda folder: (folder / "config.json").write_text("[]"),
    "outside": _methods({"../victim": {}}),
    "absolute": _methods({"/etc": {}}),
    "unknown": _methods({"nothing": {}}),
    "methods": _methods([1]),
    "no methods": _configured(lambda config: config.pop("methods")),
    "a wide model": _setting("embedding_dim", 10**9),
    "a wide model of text": _setting("embedding_dim", "x"),
    "another setting": _setting("why", 1),
    "search": _configured(lambda config: config.update(search={"weights": ["../../x"]})),
    "no interactions": lambda folder: (folder / "interactions.npz").unlink(),
    "cut interactions": lambda folder: (folder / "interactions.npz").write_bytes(
        (folder / "interactions.npz").read_bytes()[:-40]
    ),
    "text for interactions": lambda folder: (folder / "interactions.npz").write_text("x"),
}


@pytest.mark.parametrize("case", DAMAGED_RUNS)
def test_a_damaged_run_is_named(run, case):
    DAMAGED_RUNS[case](run)
    with pytest.raises(ValueError, match="run"):
        runs.Run.open(run).evaluate()


def _places(value, place=()):
    """Every place of a nested configuration."""
    if place:
        yield place
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _places(inner, (*place, key))


def test_whatever_an_entry_of_a_configuration_is_the_run_opens_or_is_named(run):
    file = run / "config.json"
    sound = json.loads(file.read_text())
    refused = 0
    for place in _places(sound):
        for value in (None, -5, "x", [1], {"a": 1}):
            config = json.loads(json.dumps(sound))
            inside = config
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = value
            file.write_text(json.dumps(config))
            try:
                runs.Run.open(run).evaluate()
            except ValueError as error:
                assert "run" in str(error)  # noqa: PT017
                refused += 1
    assert refused > 80


@pytest.mark.parametrize("file", ["history.json", "metrics.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"loss": "x"}', b"\xff\xfe"])
def test_a_damaged_part_of_a_run_is_named(run, file, content):
    (run / "bpr" / file).write_bytes(content)
    opened = runs.Run.open(run)
    with pytest.raises(ValueError, match=file):
        _ = opened.histories if file == "history.json" else opened.metrics if file == "metrics.json" else opened.model()


def _npz_that_claims(shape):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "<i8", "fortran_order": False, "shape": shape})
        archive.writestr("user.npy", head.getvalue() + bytes(80))
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(10**12,), (9,), (2**40, 2**40)])
def test_interactions_that_claim_more_than_they_hold_are_named(run, shape):
    (run / "interactions.npz").write_bytes(_npz_that_claims(shape))
    with pytest.raises(ValueError, match=r"interactions\.npz is damaged: user\.npy claims"):
        runs.Run.open(run)
    with pytest.raises(ValueError, match="claims"):
        check_npz(run / "interactions.npz")


# ---- R1: nothing outside the folder


def test_overwriting_removes_nothing_outside_of_the_folder(run, tmp_path, triangle):
    victim = tmp_path / "victim"
    victim.mkdir()
    for name in ("model.safetensors", "history.json", "metrics.json"):
        (victim / name).write_text("mine")
    for evil in ("../victim", str(victim)):
        _configured(lambda config, evil=evil: config.update(methods={evil: config["methods"].get("bpr", {})}))(run)
        with pytest.raises(ValueError, match=r"config\.json is damaged"):
            runs.train(triangle, run, runs.Method(loss="bpr", embedding_dim=4, epochs=1), overwrite=True, figures=False)
    assert {p.name for p in victim.iterdir()} == {"model.safetensors", "history.json", "metrics.json"}


def test_a_link_in_a_run_folder_leads_nowhere(run, tmp_path, triangle):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "model.safetensors").write_text("mine")
    shutil.rmtree(run / "bpr")
    (run / "bpr").symlink_to(victim)
    with pytest.raises(ValueError, match="is a link"):
        runs.train(triangle, run, runs.Method(loss="bpr", embedding_dim=4, epochs=1), overwrite=True, figures=False)
    assert (victim / "model.safetensors").read_text() == "mine"


def test_a_run_that_another_process_writes_is_refused(run, triangle):
    from zerosum_ext._files import locked

    before = sorted(p.name for p in run.iterdir())
    with locked(run), pytest.raises(ValueError, match="in use"):
        runs.train(triangle, run, runs.Method(loss="bpr", embedding_dim=4, epochs=1), overwrite=True, figures=False)
    assert sorted(p.name for p in run.iterdir()) == before


# ------------------------------------------------------------------------------- files of the adapter to implicit


@pytest.fixture(scope="module")
def factorization(tmp_path_factory):
    from zerosum_ext.integrations.implicit import Factorization

    path = tmp_path_factory.mktemp("implicit") / "model.npz"
    made = Factorization(factors=4, iterations=1, random_state=0)
    made.fit(zx.datasets.synthetic_triangle(10, 10), show_progress=False)
    made.save(str(path))
    return path


def settings_of(**change):
    return lambda arrays: {**arrays, "settings": json.dumps({**json.loads(str(arrays["settings"])), **change})}


@pytest.mark.parametrize(
    "damage",
    [
        settings_of(factors=10**9),
        settings_of(loss="no such loss"),
        settings_of(model="x"),
        settings_of(random_state=[1]),
        lambda arrays: {**arrays, "settings": "{"},
        lambda arrays: {**arrays, "settings": "[]"},
        lambda arrays: {k: v for k, v in arrays.items() if k != "settings"},
        lambda arrays: {k: v for k, v in arrays.items() if k != "item_embedding"},
        lambda arrays: {**arrays, "user_embedding": np.zeros(4, np.float32)},
        lambda arrays: {**arrays, "item_embedding": np.zeros((9, 5), np.float32)},
        lambda arrays: {**arrays, "user_embedding": np.array(["a"])},
    ],
    ids=lambda damage: "",
)
def test_a_damaged_file_of_the_adapter_to_implicit_is_named(factorization, tmp_path, damage):
    from zerosum_ext.integrations.implicit import Factorization

    assert Factorization.load(str(factorization)).model is not None
    with np.load(factorization) as arrays:
        np.savez(tmp_path / "m.npz", **damage(dict(arrays)))
    with pytest.raises(ValueError, match=r"m\.npz' is no model that Factorization.save wrote, or damaged: \S"):
        Factorization.load(str(tmp_path / "m.npz"))
    with open(tmp_path / "m.npz", "rb") as file, pytest.raises(ValueError, match="the file is no model"):
        Factorization.load(file)


def test_other_bytes_are_no_model_of_the_adapter_to_implicit(factorization, tmp_path):
    from zerosum_ext.integrations.implicit import Factorization

    whole = factorization.read_bytes()
    for data in (b"", b"PK", whole[: len(whole) // 2], whole[:-40]):
        (tmp_path / "m.npz").write_bytes(data)
        with pytest.raises(ValueError, match=r"m\.npz' is no model"):
            Factorization.load(str(tmp_path / "m"))
    # A file of 100 kB that unpacks to 100 MB, and one that claims 8 TB.
    np.savez_compressed(tmp_path / "m.npz", user_embedding=np.zeros((25_000_000, 1), np.float32))
    with pytest.raises(ValueError, match="is compressed"):
        Factorization.load(str(tmp_path / "m.npz"))
    with pytest.raises(FileNotFoundError):
        Factorization.load(str(tmp_path / "none"))


# ------------------------------------------------------------------------------------ folders of several processes


def list_of_tables(**change):
    from torch.distributed.checkpoint import metadata

    tables = {"model/user_embedding": metadata.BytesStorageMetadata()} if change.pop("bytes", False) else {}
    return metadata.Metadata(**{"state_dict_metadata": tables, "storage_data": {}, **change})


def test_a_list_of_tables_runs_no_code(tmp_path):
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import MetadataIndex

    from zerosum_ext.training.part_files import reader

    harm = tmp_path / "harm"
    outside = {MetadataIndex("model/user_embedding"): _StorageInfo("../other/__0_0.distcp", 0, 8)}
    for content, message in (
        (Harmful(harm), r"names \w*io\.open"),
        (list_of_tables(planner_data=Harmful(harm)), r"names \w*io\.open"),
        (list_of_tables(bytes=True), "BytesStorageMetadata"),
        (list_of_tables(storage_data=outside), "not in the folder"),
        ([1, 2], "no list of tables"),
    ):
        (tmp_path / ".metadata").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=message):
            reader(tmp_path).read_metadata()
        assert not harm.exists()
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Harmful(harm)))
    FileSystemReader(tmp_path).read_metadata()  # as torch's own does
    assert harm.exists()


class Asked:
    """An object that a pickle writes as ``getattr(of, name)``."""

    def __init__(self, of, name):
        self.of, self.name = of, name

    def __reduce__(self):
        return getattr, (self.of, self.name)


def test_members_of_enumerations_are_read_in_both_ways_that_pythons_write_them(tmp_path):
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

    from zerosum_ext.training.part_files import reader

    def read(of, name):
        (tmp_path / ".metadata").write_bytes(pickle.dumps(list_of_tables(planner_data=Asked(of, name))))
        return reader(tmp_path).read_metadata()

    member = _MEM_FORMAT_ENCODING.TORCH_PRESERVE_FORMAT
    assert read(_MEM_FORMAT_ENCODING, member.name).planner_data is member
    others = ((_MEM_FORMAT_ENCODING, "mro"), (Metadata, "__init__"), (Metadata, "__class__"), ("text", "format"))
    for of, name in others:
        with pytest.raises(ValueError, match="no member of an enumeration"):
            read(of, name)


@pytest.mark.parametrize("content", ["[]", "{", '{"format": 3}', "\xff"])
def test_a_damaged_folder_of_several_processes_is_not_removed(tmp_path, content):
    from zerosum_ext.experiments.runs.together import _prepare

    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json|is not empty"):
        _prepare(tmp_path, False, True)
    assert (tmp_path / "config.json").exists()


def test_overwriting_a_run_of_several_processes_removes_what_it_wrote(tmp_path):
    from zerosum_ext.experiments.runs.together import _prepare

    run, other = tmp_path / "run", tmp_path / "other"
    step = run / "bpr" / "checkpoint" / "epoch-000002-step-000000000"
    step.mkdir(parents=True)
    other.mkdir()
    written = [run / "config.json", run / "metrics.json", run / "bpr" / "model.safetensors", step / "run.pt"]
    kept = [run / "notes.txt", run / "zerosum" / "mine.txt", run / "bpr" / "checkpoint" / "mine", other / "victim"]
    (run / "zerosum").mkdir()
    for file in (*written, *kept):
        file.write_text('{"format": "zerosum_ext.together/1", "methods": {"../other": {}}}')
    _prepare(run, False, True)
    assert not any(file.exists() for file in written)
    assert all(file.exists() for file in kept)
    (run / "zerosum" / "checkpoint").symlink_to(other)
    with pytest.raises(ValueError, match="is a link"):
        _prepare(run, False, True)


def test_shards_are_whole_or_not_there(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    from zerosum_ext.distributed import write_shards

    data = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(20, 20))

    class Full(pq.ParquetWriter):
        def close(self):
            if self.is_open:
                self.is_open = False
                raise OSError(28, "No space left on device")

    planted = tmp_path / ".shards.part"  # a name that could be guessed
    planted.mkdir()
    (planted / "mine").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(pq, "ParquetWriter", Full)
        opened = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="No space left"):
            write_shards(data, tmp_path / "shards", 3)
        assert len(os.listdir("/proc/self/fd")) == opened
    assert [p.name for p in tmp_path.iterdir()] == [".shards.part"]
    write_shards(data, tmp_path / "shards", 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".shards.part", "shards"]
    assert (planted / "mine").exists()
    monkeypatch.chdir(planted.parent)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_shards(data, ".", 2)
    assert len(list((tmp_path / "here").glob("*.parquet"))) == 2
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="folder: expected a new or empty one"):
        write_shards(data, tmp_path / "link", 2)


def test_two_writers_of_shards_do_not_mix(tmp_path, monkeypatch):
    from zerosum_ext.data import shard_files

    data = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(20, 20))
    whole = shard_files._batches

    def slow(source, user):
        monkeypatch.undo()
        shard_files.write_shards(data, tmp_path / "shards", 3)  # another one is faster
        return whole(source, user)

    monkeypatch.setattr(shard_files, "_batches", slow)
    with pytest.raises(ValueError, match="expected a new or empty one"):
        shard_files.write_shards(data, tmp_path / "shards", 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shards"]
    assert len(list((tmp_path / "shards").iterdir())) == 3
