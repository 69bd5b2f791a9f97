"""Python processes that tools and tests start."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def meeting_this_package(env: dict[str, str]) -> dict[str, str]:
    """``env`` for a process that shall import the zerosum_ext that this one would, or the sources where that is none.

    It must not be started in the root of the repository: Python looks there first, at sources that may not be built.
    """
    package = importlib.util.find_spec("zerosum_ext")
    home = Path(package.origin).resolve().parents[1] if package and package.origin else ROOT
    return {**env, "PYTHONPATH": os.pathsep.join(filter(None, [str(home), env.get("PYTHONPATH", "")]))}
