"""Runs hostile calls one after another; which one is next is written down before it runs.

Usage: python child.py MODE OP FIRST LAST PROGRESS, with MODE systematic or random. Exceptions are what is expected.
"""

from __future__ import annotations

import os
import resource
import sys
import warnings

import calls
import torch

import zerosum_ext  # noqa: F401  (registers the ops)

MEMORY = 2 << 30  # beyond what the process has at the start


def main(mode: str, op: str, first: int, last: int, progress: str) -> None:
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    function = getattr(torch.ops.zerosum_ext, op)
    listed = calls.systematic(op) if mode == "systematic" else []
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    file = os.open(progress, os.O_WRONLY | os.O_CREAT, 0o600)
    raised = 0
    for number in range(first, min(last, len(listed)) if listed else last):
        os.pwrite(file, f"{number:20d} {raised:20d}".encode(), 0)
        try:
            values = listed[number][1]() if listed else calls.at_random(op, number)
            values = calls.place(values)
        except Exception:
            continue  # the call could not be made
        try:
            function(*values)
        except Exception:
            raised += 1
        del values
        calls.release()
    os.pwrite(file, f"{-1:20d} {raised:20d}".encode(), 0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    # What was damaged on purpose need not be torn down in order.
    sys.stdout.flush()
    os._exit(0)
