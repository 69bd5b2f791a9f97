"""The training benchmark: its quick mode runs everything, and its verdicts follow from its figures."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import zerosum_ext as zx
from zerosum_ext import _ops

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.skipif(
    not _ops.has_op("mf_train", torch.device("cpu")), reason="the compiled kernels are not loaded"
)


@pytest.fixture
def script(monkeypatch):
    """A benchmark as a module, and how to call its main; torch's number of threads is put back afterwards."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


@pytest.fixture
def bench_training(script):
    return script("bench_training")


@pytest.fixture
def call(monkeypatch):
    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
        module.main()

    return run


@pytest.mark.filterwarnings("ignore")
def test_quick_mode_and_merging(tmp_path, bench_training, call):
    output = str(tmp_path / "out")
    call(bench_training, "--quick", "--part", "engines", "negatives", "optimizers", "--output", output)
    first = json.loads(Path(f"{output}.json").read_text())["results"]
    assert [r["key"] for r in first[:1]] == [["engines", "generated", 8, 1]]
    assert {"hogwild zerosum", "hogwild bpr", "exact zerosum 64", "exact zerosum 512"} <= set(
        first[0]["million_per_second"]
    )
    steps = {tuple(r["key"][5:]): r for r in first if r["key"][0] == "optimizers"}
    assert set(steps) == {(o, b) for o in ("SGD", "Adagrad", "Adam", "SparseAdam") for b in (64, 512)}
    for (optimizer, _), r in steps.items():
        assert ("dense" in r["million_per_second"]) == (optimizer != "SparseAdam")
        assert ("sparse" in r["million_per_second"]) == (optimizer != "Adam")
        assert all(v > 0 for v in r["million_per_second"].values())
    (many,) = [r for r in first if r["key"][0] == "negatives"]
    assert set(many["million_per_second"]) >= {"exact", "exact, shared", "hogwild, shared", "eager"}
    assert many["share_of_multiply_adds"] > 0
    if not sys.platform.startswith("linux"):
        return
    call(bench_training, "--quick", "--part", "large", "--output", output)
    merged = json.loads(Path(f"{output}.json").read_text())["results"]
    assert [r for r in merged if r["key"][0] in ("engines", "negatives", "optimizers")] == first
    assert {r["key"][0] for r in merged} == {"engines", "negatives", "optimizers", "large", "memory"}
    text = Path(f"{output}.md").read_text()
    assert all(heading in text for heading in ("Whole epochs", "Many negatives", "Exact steps", "1000 users", "GiB"))


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_bandwidth_quick_mode(tmp_path, script, call):
    output = str(tmp_path / "out")
    call(script("bench_bandwidth"), "--quick", "--threads", "1", "--output", output)
    rows = json.loads(Path(f"{output}.json").read_text())["results"]
    assert [r["access"] for r in rows] == ["read", "update", "multiply-add, GFLOP/s", "copy"]
    assert all(r["gb_per_second"][1] > 0 for r in rows)


def test_verdicts(bench_training):
    def engine(hogwild, exact):
        ratios = {
            "implicit": {"hogwild zerosum": hogwild, "hogwild bpr": [9, 9, 9], "exact zerosum 4096": exact},
            "buffalo": {"hogwild zerosum": [9, 9, 9]},  # slower: the fastest peer counts
        }
        return {"key": ["engines", "ml-1m", 64, 2], "faster_than": ratios}

    step = {"key": ["optimizers", "ml-1m", 64, 2, "zerosum", "Adam", 256], "faster_than": {"best eager": [8, 9, 11]}}
    large = {
        "key": ["large", 2],
        "small": "ml-1m",
        "times_small": {"hogwild zerosum": [2, 2.5, 4], "implicit": [9, 9, 9]},
    }
    verdicts = [row[-1] for row in bench_training.targets([engine([2, 2.6, 5], [1, 1.4, 3]), step, large])]
    assert verdicts == ["met", "**missed**", "**missed**", "met"]
    one_thread = {**engine([1, 1, 1], [1, 1, 1]), "key": ["engines", "ml-1m", 64, 1]}
    assert bench_training.targets([one_thread]) == []


def test_spans_cover_epochs_once(bench_training):
    walk = bench_training.spans(10, 4, 2)  # steps of 4, 4 and 2 samples
    assert list(walk(2)) == [(0, 0, 8)]
    assert list(walk(4)) == [(0, 8, 10), (1, 0, 8), (1, 8, 10)]
    assert list(walk(1)) == [(2, 0, 4)]


def test_slices_are_whole_steps_and_epochs_whole(bench_training):
    asked = {"slow": [], "whole": []}

    def method(name, per_step, whole):
        def run(steps):
            asked[name].append(steps)
            return steps * per_step, steps * 10

        return bench_training.Method(100, run, whole)

    methods = {"slow": method("slow", 1e-3, False), "whole": method("whole", 1e-3, True)}
    seconds = bench_training.paired(methods, 3, 0.02)
    assert asked["whole"] == [100] * 4
    assert 20 <= asked["slow"][-1] < 30
    assert all(values == pytest.approx([1e-4] * 3) for values in seconds.values())


@pytest.mark.filterwarnings("ignore")
def test_graph_quick_mode(tmp_path, script, call):
    output = str(tmp_path / "out")
    call(script("bench_graph"), "--quick", "--threads", "1", "--rounds", "2", "--output", output)
    rows = json.loads(Path(f"{output}.json").read_text())["results"]
    assert {(r["dim"], r["part"], r["method"]) for r in rows} >= {
        (dim, part, method)
        for dim in (10, 16)
        for part in ("one product", "step of LightGCN")
        for method in ("zerosum_ext", "torch sparse")
    }
    assert all(r["milliseconds"] > 0 for r in rows)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_graph_peer_computes_the_same(script, dropout):
    bench_graph = script("bench_graph")
    x = zx.Interactions.from_any(zx.datasets.synthetic_triangle(30, 20))
    variant = {"normalization": "row", "combine": "concat", "node_dropout": dropout} if dropout else {}
    ours = zx.LightGCN(x, 6, num_layers=bench_graph.LAYERS, seed=0, **variant).eval()
    peer = bench_graph.TorchSparse(x, 6, dropout)
    with torch.no_grad():
        peer.table.copy_(torch.cat([ours.user_embedding, ours.item_embedding]))
        peer.dropout = 0.0  # of its entries; the variant stays
        users, items = torch.arange(30), torch.arange(60).view(30, 2) % 20
        layers = [peer.table]
        for _ in range(bench_graph.LAYERS):
            layers.append(bench_graph.Product.apply(layers[-1], *peer.matrices()))
        torch.testing.assert_close(
            torch.cat([layer[0] for layer in ours.propagate()]), torch.cat([p[:30] for p in layers])
        )
        if not dropout:
            torch.testing.assert_close(peer(users, items), ours(users, items))
