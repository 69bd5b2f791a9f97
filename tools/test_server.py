"""Runs pytest again and again in children of one process that has imported what is slow to import and never changes.

    python tools/test_server.py LOG

Each line of standard input is a JSON list of pytest's arguments. The answer is a line with the exit status. What the
tests print is written to LOG. tools/mutate.py starts it in a copy of the repository, whose package it does not import.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

SLOW = ("numpy", "scipy.sparse", "scipy.stats", "torch", "safetensors.torch", "pytest")


def main(log: str) -> None:
    for name in SLOW:
        importlib.import_module(name)
    import pytest

    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            code = 70
            try:
                code = int(pytest.main(json.loads(line)))
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        print(f"child {child}", flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
