"""Groups of processes that find each other as those of torchrun do, for tests and attacks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

SECONDS = 240


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(command: list[str], size: int, **options: Any) -> list[subprocess.Popen[str]]:
    """Start processes that find each other as those of torchrun do."""
    port = str(free_port())
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )
        for rank in range(size)
    ]


def finish(processes: list[subprocess.Popen[str]], seconds: float = SECONDS) -> list[str]:
    """Wait for processes, kill what hangs, and return what they said."""
    said = []
    try:
        for process in processes:
            said.append(process.communicate(timeout=seconds)[0])
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return said
