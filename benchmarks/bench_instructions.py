"""Instructions a triple of ours and of other libraries, which no other process on the machine changes.

    ZEROSUM_EXT_DATA=DIR python benchmarks/bench_instructions.py [--data ml-100k] [--dim 64]
        [--output benchmarks/results/instructions-cpu]

The script starts itself under valgrind's callgrind, which counts the instructions of one thread. Each way trains an
epoch, which is not counted, and then another one. Drawing the samples is part of it. What callgrind does not know
(AVX-512) is not used: the library takes its clone for AVX2 there, or for the baseline, which ZEROSUM_EXT_ISA asks for.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import _timing

WAYS = ("hogwild bpr", "hogwild zerosum", "exact bpr 256", "exact bpr 4096", "implicit", "cornac", "buffalo")


def epochs(data: str, dim: int) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """Yield each way with its triples an epoch, and what trains one."""
    import bench_training
    import torch

    import zerosum_ext as zx
    from zerosum_ext.data import datasets

    torch.set_num_threads(1)
    train = datasets.load(data).split_random((0.8, 0.1, 0.1), seed=0).train
    matrix = bench_training.csr_matrix_of(train)
    for way in WAYS:
        if way in bench_training.PEERS and not importlib.util.find_spec(way):
            continue
        model = zx.MatrixFactorization(*train.shape, dim, seed=0)
        if way.split()[0] in ("hogwild", "exact"):
            engine, loss, *size = way.split()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            options = {"engine": "hogwild" if engine == "hogwild" else "fused", "epochs": 1, "progress": False}
            batch = int(size[0]) if size else 65_536
            module = zx.losses.get_loss(loss)
            yield (
                way,
                matrix.nnz,
                lambda m=model, o=optimizer, k=options, b=batch, f=module: zx.fit(m, train, f, o, batch_size=b, **k),
            )
        elif way == "buffalo":
            peer, epoch = bench_training.buffalo_peer(matrix, model, 1, 0.05, 0.0, epochs=1_000_000)
            peer.launch_workers()
            yield way, matrix.nnz, epoch
            peer.join()  # a process whose threads still run does not end well
        else:
            make = {"implicit": bench_training.implicit_bpr, "cornac": bench_training.cornac_bpr}[way]
            method = make(matrix, model, 1)
            yield way, matrix.nnz, lambda m=method: m.run(1)


def count(data: str, dim: int, folder: Path) -> None:
    """In the process that callgrind watches: write what each way takes to FOLDER/counts.json."""

    def dump() -> None:
        subprocess.run(["callgrind_control", "--dump", str(os.getpid())], check=True, capture_output=True)

    counts = {}
    for way, triples, epoch in epochs(data, dim):
        epoch()
        dump()
        epoch()
        dump()
        files = sorted(folder.glob("out.*"), key=lambda file: int(file.suffix[1:]))
        total = re.search(r"^(?:summary|totals): (\d+)", files[-1].read_text(), re.MULTILINE)
        counts[way] = int(total[1]) / triples  # type: ignore[index]
        print(f"{way}: {counts[way]:.0f} instructions a triple", file=sys.stderr, flush=True)
    (folder / "counts.json").write_text(json.dumps(counts))


def write(counts: dict[str, float], arguments: argparse.Namespace) -> None:
    import bench_training

    rows = [(way, f"{n:.0f}", f"{n / counts['hogwild bpr']:.2f}") for way, n in counts.items()]
    _timing.write_results(
        arguments.output,
        "Instructions a triple",
        _timing.machine() | bench_training.versions(),
        [
            f"{arguments.data}, d = {arguments.dim}, one thread, counted by callgrind. Measured by\n"
            "`python benchmarks/bench_instructions.py`, which says how. A draw that a peer skips is a triple too.",
            _timing.table(("way", "instructions a triple", "times Hogwild BPR"), rows, text_columns=1),
        ],
        counts,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--output", help="write OUTPUT.md and OUTPUT.json")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        count(arguments.data, arguments.dim, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        callgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", "--quiet"]
        itself = [sys.executable, __file__, "--data", arguments.data, "--dim", str(arguments.dim), "--folder", folder]
        subprocess.run([*callgrind, *itself], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        counts = json.loads((Path(folder) / "counts.json").read_text())
    write(counts, arguments)


if __name__ == "__main__":
    main()
