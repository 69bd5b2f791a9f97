"""The run and its terminal: Ctrl-C between steps, and the progress bar."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

__all__ = ["Bar", "Interrupt", "deferred_interrupt", "progress_bar"]


class Interrupt:
    """Whether Ctrl-C has been pressed."""

    seen = False


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Turn the first Ctrl-C into a flag that is looked at between steps. A second one interrupts at once.

    An optimizer that is stopped half-way has updated some tables and not others. Signals are left alone in other
    threads than the main one, and where Python's own handler has been replaced.
    """
    interrupt = Interrupt()
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not ours:
        yield interrupt
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if interrupt.seen:
            raise KeyboardInterrupt
        interrupt.seen = True

    signal.signal(signal.SIGINT, handler)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Bar(Protocol):
    """The part of a tqdm bar that training uses."""

    def update(self, steps: int) -> Any:
        """Count further steps."""

    def set_postfix(self, values: dict[str, Any], refresh: bool = True) -> Any:
        """Show some values behind the bar."""

    def close(self) -> Any:
        """Take the bar away."""


class _NoBar:
    """Stands for a progress bar where none is wanted, so that tqdm need not be installed."""

    def update(self, steps: int) -> None:
        pass

    def set_postfix(self, values: dict[str, Any], refresh: bool = True) -> None:
        pass

    def close(self) -> None:
        pass


def progress_bar(shown: bool | None, total: int, initial: int, unit: str = "step") -> Bar:
    """Return a progress bar, of steps unless another unit is named.

    Args:
        shown: whether to show it; None shows it on a terminal.
        total: the number of steps of the whole run.
        initial: the number of steps that are done already.
        unit: the word for a step.
    """
    if shown is False:
        return _NoBar()
    from tqdm.auto import tqdm

    # tqdm's own None means: only on a terminal.
    disable = None if shown is None else False
    bar: Bar = tqdm(total=total, initial=initial, unit=unit, disable=disable, leave=False)
    return bar
