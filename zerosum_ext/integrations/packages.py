"""Packages of others, which the adapters import when somebody uses them."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["needed"]


def needed(module: str, package: str, user: str) -> Any:
    """Return a module of a package that zerosum_ext does not depend on.

    Args:
        module: its name, such as "sklearn.base".
        package: what pip calls the package.
        user: who needs it, for the message.

    Raises:
        ImportError: it is not installed, or does not load; the message names the package.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name is not None and module.partition(".")[0] == error.name.partition(".")[0]
        why = "is not installed" if missing else f"does not load ({error})"
        raise ImportError(f"{user}: {package} {why}: pip install {package}", name=error.name) from error
