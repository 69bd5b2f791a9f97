"""What a file may hold that somebody else wrote, and that unpickles to more than numbers."""

from __future__ import annotations

import os
from typing import Any


class Harmful:
    """Unpickled, it makes a file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")
