"""Files that are complete or not there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *failures: type[Exception]) -> Iterator[str]:
    """A path to write to, beside ``path``; what was written is moved into place at the end, or removed on an error.

    Args:
        path: of the file that is to be complete or not there.
        failures: what the writer raises, beside OSError, where it cannot write.

    Raises:
        OSError: it cannot be written; the message names the file.
    """
    target = os.fspath(path)
    part = f"{target}.part"
    try:
        yield part
        os.replace(part, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(part)
        if isinstance(error, OSError) and error.filename in (None, part) and error.strerror:
            raise OSError(error.errno, error.strerror, target) from error
        if isinstance(error, failures):
            raise OSError(f"{target} cannot be written: {error}") from error
        raise
