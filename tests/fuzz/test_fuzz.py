"""Hostile calls of every compiled op: whatever is passed, the process lives. More of them: ``make fuzz``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from zerosum_ext import _library

sys.path.insert(0, str(Path(__file__).parent))
import calls
import fuzz

pytestmark = pytest.mark.skipif(not _library.CPU.loaded, reason="the compiled library is not loaded")
EXAMPLES = 20


def test_every_op_has_a_sound_call_that_it_takes():
    import torch

    for op in calls.ops():
        for seed in range(5):
            getattr(torch.ops.zerosum_ext, op)(*calls.place(calls.sound(op, seed)))


def test_no_random_call_ends_the_process():
    outcomes = fuzz.run("random", EXAMPLES, calls.ops(), jobs=2)
    assert [o.findings for o in outcomes if o.findings] == []
    taking = [o for o in outcomes if o.op not in calls.QUERIES]
    assert sum(o.raised for o in taking) > EXAMPLES * len(taking) / 4  # the calls are hostile


def test_a_child_that_dies_is_a_finding_and_another_goes_on(tmp_path):
    # An op that ends the process at one call of ten stands in for one of ours.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, os\n"
        "if any('child.py' in a for a in sys.orig_argv):\n"
        "    import types, ctypes\n"
        "    fake = types.ModuleType('calls')\n"
        "    fake.systematic = lambda op: []\n"
        "    fake.place = lambda values: values\n"
        "    fake.release = lambda: None\n"
        "    fake.at_random = lambda op, n: os.abort() if n % 10 == 3 else []\n"
        "    sys.modules['calls'] = fake\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    outcome = fuzz.fuzz("cpu_isa", "random", 20, {**os.environ, "PYTHONPATH": path})
    assert [(f["number"], f["end"]) for f in outcome.findings] == [(3, "signal 6"), (13, "signal 6")]
