"""Benchmarks of a GPU without one: all that they do there runs on the CPU, CUDA's part of torch being played."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import zerosum_ext as zx
from zerosum_ext import _ops

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.skipif(
    not _ops.has_op("mf_train", torch.device("cpu")), reason="the compiled kernels are not loaded"
)


class Event:
    """Of CUDA: time passes by itself."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.now += 1.0
        self.at = Event.now

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return end.at - self.at


class Stream:
    def wait_stream(self, other):
        assert isinstance(other, Stream)


class Graph:
    captured = 0

    def replay(self):
        pass


@contextlib.contextmanager
def capture(graph):
    assert isinstance(graph, Graph)
    Graph.captured += 1
    yield


@pytest.fixture
def bench(monkeypatch):
    """The benchmark as a module; torch.compile takes longer than all the rest, and is tested elsewhere."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.delenv("ZEROSUM_EXT_DATA", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the inputs are tiny
    yield importlib.import_module("bench_gpu")
    torch.set_num_threads(threads)


@pytest.fixture
def played_gpu(bench, monkeypatch):
    """As on a GPU: events, streams, graphs and a cache of 16 KiB; the tensors stay on the CPU."""
    import _timing
    import bench_evaluation

    for module in (_timing, bench_evaluation):
        monkeypatch.setattr(module, "on_gpu", lambda device: True)
    played = {
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "current_stream": Stream,
        "stream": contextlib.nullcontext,
        "graph": capture,
        "synchronize": lambda: None,
        "get_device_properties": lambda device: types.SimpleNamespace(L2_cache_size=1 << 14),
        "get_device_name": lambda device: "played",
    }
    for name, value in played.items():
        monkeypatch.setattr(torch.cuda, name, value)
    Graph.captured = 0


def run(bench, monkeypatch, output, *arguments):
    command = ["bench_gpu.py", "--device", "cpu", "--small", "--rounds", "2", "--output", str(output), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    bench.main()
    return json.loads(Path(f"{output}.json").read_text()), Path(f"{output}.md").read_text()


def peer_of(calls):
    """A module as implicit.gpu is where it has CUDA."""
    peer = types.ModuleType("implicit.gpu")
    peer.HAS_CUDA = peer.HAS_RMM = True
    peer.Matrix = peer.IntVector = lambda array: array
    peer.bpr_update = lambda *arguments: calls.append(arguments)
    package = types.ModuleType("implicit")
    package.gpu = peer
    return {"implicit": package, "implicit.gpu": peer}


@pytest.mark.filterwarnings("ignore")
def test_every_section_as_on_a_gpu(bench, played_gpu, monkeypatch, tmp_path):
    calls = []
    for name, module in peer_of(calls).items():
        monkeypatch.setitem(sys.modules, name, module)
    result, text = run(bench, monkeypatch, tmp_path / "out")
    found = result["results"]
    assert set(found) == {"copy_bytes_per_second", *bench.SECTIONS}
    assert result["machine"]["gpu"] == "played"
    assert all(r["bytes"] > 0 for name in bench.SECTIONS if name != "epochs" for r in found[name])
    seconds = [r["seconds"] for name in bench.SECTIONS for r in found[name]]
    timed = [v for s in seconds for v in (s.values() if isinstance(s, dict) else [s])]
    assert all(len(v) == 2 and min(v) > 0 for v in timed)
    # Three in each of the six rows of losses, one in each row of steps, of many negatives and of factorizations.
    assert Graph.captured == 18 + 6 + 2 + 2
    methods = {"ours", "direct", "eager", "compile", "ours, graph", "direct, graph", "compile, graph"}
    assert methods == set(found["losses"][0]["seconds"])
    assert "implicit" in [r["what"] for r in found["epochs"]]
    users, items, indptr, *tables, rate, decay, _, verify = calls[0]
    nnz = found["epochs"][0]["samples"]
    assert (users.dtype, items.shape, indptr[-1], len(indptr)) == (np.int32, (nnz,), nnz, tables[0].shape[0] + 1)
    assert [t.dtype for t in tables] == [np.float32] * 2
    assert (rate, decay, verify) == (0.05, 0.01, True)
    assert "compile / loss_and_grad in graphs" in text
    assert "implicit updates rows" in text
    assert set(found["negatives"][0]["seconds"]) == {"fused", "fused, graph", "eager", "compile"}
    assert [set(r["seconds"]) for r in found["host"]] == [{"ours", "eager", "direct"}] * 3


def test_the_peer_of_many_negatives_is_the_loss(bench):
    users, positives = torch.tensor([0, 2, 2]), torch.tensor([1, 0, 4])
    negatives = torch.tensor([[0, 1, 2], [3, 3, 1], [2, 0, 1]])
    user, item = torch.randn(3, 6), torch.randn(5, 6)
    want = zx.mf_loss(user, item, users, positives, negatives, loss="sampled_softmax")
    torch.testing.assert_close(bench.eager_softmax(user, item, users, positives, negatives), want)
    users, positives, lists = users.repeat(2)[:4], positives.repeat(2)[:4], negatives[:2]
    want = zx.mf_loss(user, item, users, positives, lists.repeat_interleave(2, 0), loss="sampled_softmax")
    torch.testing.assert_close(bench.eager_shared_softmax(user, item, users, positives, lists), want)


def test_ways_to_share_lists_train_alike(bench):
    """What is timed against each other does the same: a step on lists, and eager PyTorch's."""
    setting = bench.Setting("cpu", 1, True)
    made = []
    keep = zx.MatrixFactorization
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(zx, "MatrixFactorization", lambda *a, **o: made.append(keep(*a, **o)) or made[-1])
        patched.setattr(bench, "compiled", lambda function: function)
        methods = bench.softmax_methods(setting, (70, 50), 128, 16, 64)
    before = [p.detach().clone() for p in made[0].parameters()]
    for name in ("fused", "eager", "compile"):
        methods[name]()
    for model in made:
        for got, want, was in zip(model.parameters(), made[1].parameters(), before, strict=True):
            torch.testing.assert_close(got, want)
            assert not torch.equal(got, was)


@pytest.mark.filterwarnings("ignore")
def test_kernels_of_a_call(bench, monkeypatch, tmp_path, capfd):
    kernels = importlib.import_module("bench_kernels")
    command = ["bench_kernels.py", "--device", "cpu", "--small", "--calls", "2", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*command, "--only", "losses", "draws", "new users"])
    kernels.main()
    found = json.loads((tmp_path / "out.json").read_text())["results"]
    direct = next(r for r in found["losses"] if r["what"] == "bpr, 4096, loss_and_grad")
    assert direct["bytes"] == 4 * 4096 * 4
    assert {"zerosum_ext::pair_loss"} <= {k["kernel"] for k in direct["kernels"] if k["launches"] == 1}
    assert direct["microseconds"] == pytest.approx(sum(k["microseconds"] for k in direct["kernels"]))
    drawn = ["uniform", "popularity", "triplets", "popularity by numbers", "unshuffle"]
    assert [r["what"].split(",")[0] for r in found["draws"]] == drawn
    for row in found["new users"]:
        assert any(k["kernel"] == "zerosum_ext::fold_in" and k["launches"] == 1 for k in row["kernels"])
    monkeypatch.setattr(sys, "argv", [*command[:4], "--plain"])
    capfd.readouterr()
    kernels.main()
    made = [line.split(": ")[1].split(",")[0] for line in capfd.readouterr().out.splitlines()]
    # So few that a profiler that looks into 40 launches comes to the rankings.
    assert made == ["zerosum", "sampled_softmax", "SGD", "SGD", "uniform", "popularity", "rank"]
    monkeypatch.setattr(sys, "argv", [*command, "--only", "losses", "draws", "new users"])
    monkeypatch.setitem(kernels.GROUPS, "losses", lambda s: [kernels.Case("losses", "broken", lambda: 1 / 0)])
    with pytest.raises(SystemExit):
        kernels.main()
    assert "Failed: broken: ZeroDivisionError" in (tmp_path / "out.md").read_text()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["losses", "sampling", "evaluation"])
def test_the_benchmarks_of_the_cpu_take_a_device(bench, played_gpu, monkeypatch, tmp_path, name):
    module = importlib.import_module(f"bench_{name}")
    title, train, test = bench.gowalla(True)
    if name == "losses":
        monkeypatch.setattr(module, "SIZES", (16,))
        monkeypatch.setattr(module, "MATRICES", ((8, 3),))
    elif name == "sampling":
        monkeypatch.setattr(module, "real", lambda name: train if name == "ml-1m" else None)
    else:
        monkeypatch.setattr(module, "splits", lambda: {title: (train, test)})
    command = [f"bench_{name}.py", "--device", "cpu", "--rounds", "2", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    module.main()
    result = json.loads((tmp_path / "out.json").read_text())
    rows = result["results"]["timings"] if name == "evaluation" else result["results"]
    assert result["machine"]["gpu"] == "played"
    methods = {row.get("method") for row in rows}
    if name == "losses":
        assert {tuple(row["shape"]) for row in rows} == {(16,), (8, 3), (16, 2)}
        assert all(set(row["times_ours"]) == {"usual", "stable", "compiled", "copy"} for row in rows)
    elif name == "sampling":
        assert {"uniform negatives", "TripletLoader", "randint + torch.searchsorted"} <= methods
        assert "Python loop over sets" not in methods
    else:
        assert {"product", "evaluate", "eager sort"} <= methods
        assert "per-user NumPy loop" not in methods


@pytest.mark.filterwarnings("ignore")
def test_what_was_measured_is_kept(bench, monkeypatch, tmp_path):
    """A section that fails, or does not come to its turn, does not cost the others."""
    monkeypatch.setitem(bench.SECTIONS, "positives", lambda setting: 1 / 0)
    with pytest.raises(SystemExit) as end:
        run(bench, monkeypatch, tmp_path / "out", "--section", "positives", "sampling")
    assert end.value.code == 1
    assert "**positives failed**: ZeroDivisionError: division by zero" in (tmp_path / "out.md").read_text()
    assert {r["what"] for r in json.loads((tmp_path / "out.json").read_text())["results"]["sampling"]} == {
        "negatives, uniform",
        "negatives, popularity",
        "triplets (positive, negative)",
        "eager: randint, torch.searchsorted",
    }
    result, text = run(bench, monkeypatch, tmp_path / "late", "--section", "sampling", "--seconds", "0")
    assert set(result["results"]) == {"copy_bytes_per_second"}
    assert "sampling: left out, 0 s had passed." in text


@pytest.mark.filterwarnings("ignore")
def test_methods_that_fail_are_left_out(bench, played_gpu, monkeypatch, tmp_path):
    def compiler(function, **options):
        def run(*arguments):
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

        return run

    def refuse(*arguments, **options):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(zx, "mf_loss", refuse)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.raises(SystemExit) as end:
        run(bench, monkeypatch, tmp_path / "out", "--section", "losses", "factorization")
    assert end.value.code == 1
    found = json.loads((tmp_path / "out.json").read_text())["results"]
    assert {"ours", "direct", "eager", "ours, graph", "direct, graph"} == set(found["losses"][0]["seconds"])
    assert found["factorization"] == []
    text = (tmp_path / "out.md").read_text()
    assert "bpr, 4096, compile, graph: OutOfMemoryError: CUDA out of memory. Tried to allocate" in text
    assert "ours, atomics: RuntimeError: no kernel" in text
    assert bench.targets(found) == []  # nothing of what a verdict is about was measured


@pytest.mark.filterwarnings("ignore")
def test_what_takes_long_is_not_compiled_any_more(bench, played_gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench.signal, "alarm", lambda seconds: None)
    monkeypatch.setattr(bench, "COMPILING", -1)
    found, text = run(bench, monkeypatch, tmp_path / "out", "--section", "losses", "--limit", "1000")
    assert {"ours", "direct", "eager", "ours, graph", "direct, graph"} == set(found["results"]["losses"][0]["seconds"])
    assert "bpr, 4096, compile: no time; bpr, 4096, compile, graph: no time" in text
    assert re.search(r"^  zerosum, 16384: ours \d+\.\d us; eager ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.filterwarnings("ignore")
def test_a_section_keeps_what_it_has_when_its_time_is_over(bench, monkeypatch, tmp_path):
    """No case is begun any more, and those with targets come first."""
    begun = []
    monkeypatch.setattr(bench.signal, "alarm", lambda seconds: None)
    turns = bench.Setting.turns

    def slow(setting, what, methods, most=1 << 30):
        begun.append(what)
        if len(begun) == 2:
            setting.until = 0
        return turns(setting, what, methods, most)

    monkeypatch.setattr(bench.Setting, "turns", slow)
    for name, first, cases in (
        ("losses", ["bpr, 4096", "zerosum, 4096"], 6),
        ("steps", ["SGD, 60 x 37, 1024", "SGD, 300 x 200, 1024"], 6),
    ):
        begun.clear()
        found, text = run(bench, monkeypatch, tmp_path / name, "--section", name, "--limit", "1000")
        assert begun == first
        assert len(found["results"][name]) == 2
        assert text.count(": no time") == cases - 2
    for seconds, left in (("inf", 750), ("100", 130)):
        starts = []
        monkeypatch.setitem(bench.SECTIONS, "host", lambda s, starts=starts: starts.append(s.until) or ([], []))
        before = bench.time.monotonic()
        run(bench, monkeypatch, tmp_path / "until", "--section", "host", "--limit", "1000", "--seconds", seconds)
        assert left <= starts[0] - before <= left + 20


def test_a_process_without_its_gpu_ends(bench, played_gpu, monkeypatch, tmp_path):
    """Another one goes on with what was not begun."""

    def refuse():
        raise RuntimeError("an illegal memory access was encountered")

    def lose(setting):
        monkeypatch.setattr(torch.cuda, "synchronize", refuse)
        setting.turns("a step", {"ours": refuse})

    monkeypatch.setitem(bench.SECTIONS, "steps", lose)
    begun = "--begun", str(tmp_path / "begun"), "--section", "sampling", "steps", "positives"
    with pytest.raises(SystemExit) as end:
        run(bench, monkeypatch, tmp_path / "out", *begun)
    assert end.value.code == 3
    assert set(json.loads((tmp_path / "out.json").read_text())["results"]) == {"copy_bytes_per_second", "sampling"}
    assert "**steps failed**: RuntimeError: an illegal" in (tmp_path / "out.md").read_text()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    found, _ = run(bench, monkeypatch, tmp_path / "rest", *begun)
    assert set(found["results"]) == {"copy_bytes_per_second", "positives"}
    assert (tmp_path / "begun").read_text().split() == ["sampling", "steps", "positives"]


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="this system has no alarms")
def test_a_section_that_hangs_is_ended(tmp_path):
    code = "import sys, time, bench_gpu\nbench_gpu.SECTIONS['steps'] = lambda setting: time.sleep(60)\nbench_gpu.main()"
    arguments = ("--device", "cpu", "--small", "--rounds", "1", "--section", "sampling", "steps", "--limit", "10")
    command = [sys.executable, "-c", code, *arguments, "--output", str(tmp_path / "out")]
    path = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
    command[2] = path + code
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == -signal.SIGALRM, done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["results"]["sampling"]


@pytest.mark.parametrize("module", [None, "without CUDA"])
def test_without_implicit(bench, monkeypatch, module):
    if module is not None:
        module = types.ModuleType("implicit.gpu")
        module.HAS_CUDA = False
    monkeypatch.setitem(sys.modules, "implicit.gpu", module)
    data = zx.Interactions.from_arrays([0, 1, 1], [2, 0, 1])
    assert bench.implicit_epoch(data) is None


def test_bytes_are_those_of_the_roofline(bench):
    assert bench.factorization_bytes(6040, 3706, 1) == 2100
    assert bench.factorization_bytes(1_000_000, 1_000_000, 1) == 2100 + 3 * 24
    assert bench.sort_bytes(65_535) == 76
    assert bench.sort_bytes(65_536) == 100
    batch = torch.tensor([0, 0, 1]), torch.tensor([4, 5, 6]), torch.tensor([4, 4, 7])
    shape = (10, 20)
    # Six positions' rows, those of 2 users and 4 items, 2 users' gradients; 64 bytes for each of nine places.
    gathers = 256 * (2 * 6 + 2 + 4 + 2 * 2)
    assert bench.step_bytes("SGD", shape, batch) == 9 * 64 + gathers + 2 * 256 * (2 + 4)
    assert bench.step_bytes("SparseAdam", shape, batch) == 9 * 64 + gathers + 6 * 256 * (2 + 4)
    assert bench.step_bytes("Adam", shape, batch) == 9 * 64 + gathers + 6 * 256 * 30
    three_passes = bench.step_bytes("SGD", (1 << 16, 1 << 16), batch)
    assert three_passes == bench.step_bytes("SGD", shape, batch) + 2 * 16 * 9


def test_verdicts(bench):
    def loss(samples, took, **in_graphs):
        seconds = {"ours": [took], "compile": [9.0], **{f"{k}, graph": [v] for k, v in in_graphs.items()}}
        return {"loss": "bpr", "samples": samples, "bytes": 24 * samples, "seconds": seconds}

    def step(shape, samples, size, **seconds):
        what = {"optimizer": "SGD", "users": shape[0], "items": shape[1], "samples": samples, "bytes": size}
        return what | {"seconds": {name.replace("_", ", "): [value] for name, value in seconds.items()}}

    pairs = 1 << 24
    results = {
        "copy_bytes_per_second": 24.0 * pairs,
        "losses": [loss(pairs, 1.1), loss(1 << 12, 1.0, ours=1.0, direct=1.0, compile=1.3), loss(1 << 20, 1.0)],
        "host": [{"loss": "bpr", "seconds": {"ours": [2.0], "eager": [1.9], "direct": [1.0]}}],
        "negatives": [
            {"samples": n, "negatives": 64, "seconds": {"fused": [1.0], "fused, graph": [0.5], "compile": [compiled]}}
            for n, compiled in ((4096, 2.6), (32768, 2.4))
        ]
        + [{"samples": 4096, "negatives": 64, "share": 64, "seconds": {"fused": [1.0], "compile": [4.9]}}],
        "sampling": [
            {"what": "negatives, uniform", "samples": 10**10, "seconds": [0.9, 0.8, 2.0]},
            {"what": "negatives, popularity", "samples": 10**10, "seconds": [1.9]},
        ],
        "steps": [
            step((6040, 3706), 1 << 12, 1, fused=1e-9),  # the largest batch counts
            step((6040, 3706), 1 << 20, 1, fused=2e-3, fused_graph=6e-4),
            step(bench.BEYOND_CACHE, 1 << 20, 24 * pairs, fused=1.5),
        ],
        "evaluation": [
            {"what": "product", "seconds": [0.1]},
            {"what": "evaluate", "seconds": [0.011]},
            {"what": "eager sort", "seconds": [5.0]},
        ],
    }
    verdicts = {row[0]: row[-1] for row in bench.targets(results)}
    assert verdicts == {
        "bpr loss, 16777216 samples": "met",
        "bpr loss, 4096 samples, autograd in graphs": "met",
        "bpr loss, 4096 samples, loss_and_grad in graphs": "**missed**",
        "bpr loss, host's time of a call": "**missed**",
        "softmax step, K = 64, 4096 samples": "met",
        "softmax step, K = 64, 32768 samples": "**missed**",
        "softmax step, K = 64, 4096 samples, 64 share a list": "**missed**",
        "fused step, SGD, 4096 triples": "met",
        "uniform negatives": "met",
        "negatives by popularity": "**missed**",
        "fused step, SGD, 6040 x 3706, 1048576 triples": "met",
        "fused step, SGD, 1000000 x 1000000, 1048576 triples": "**missed**",
        "full-ranking evaluation of Gowalla": "met",
    }
    assert bench.targets({"copy_bytes_per_second": 1.0}) == []


def test_verdicts_of_nodes(bench):
    kernels = importlib.import_module("bench_kernels")
    nodes = {"bpr, 4096, autograd": 3, "bpr, 4096, loss_and_grad": 2, "zerosum, 9, autograd": 4}
    losses = [{"what": what, "nodes": count} for what, count in nodes.items()]
    steps = [{"what": "SGD, 6 x 3, 4096 triples", "nodes": 9}, {"what": "Adam, 6 x 3, 4096 triples"}]
    rows = kernels.targets({"losses": losses, "steps": steps, "draws": [{"what": "uniform, 3", "nodes": 50}]})
    assert [row[2:] for row in rows] == [["3", "met"], ["2", "**missed**"], ["4", "**missed**"], ["9", "met"]]
