"""Work in processes of one thread each, which end with the process that started them."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

from zerosum_ext._checks import require_positive_int

__all__ = ["Workers"]


class Workers:
    """A number of processes, or this one alone.

    With ``jobs`` = 1 the work is done in this process, with all of its threads. Otherwise there are as many processes,
    each with one thread. Ctrl-C ends them at once, and so does the end of this process, however it ends.

    Example::

        with Workers(2) as workers:
            workers.run(train_one, [("a", 1), ("b", 2)], after_each=lambda place, result: bar.update())
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = require_positive_int("jobs", jobs)
        self._pool: ProcessPoolExecutor | None = None
        self._ends: tuple[Connection, ...] = ()

    def __enter__(self) -> Workers:
        if self.jobs > 1:
            context = multiprocessing.get_context("spawn")
            # The workers end at once when its other end is closed: by us, or because this process is gone.
            theirs, ours = context.Pipe(duplex=False)
            self._ends = (theirs, ours)
            self._pool = ProcessPoolExecutor(self.jobs, context, initializer=_begin, initargs=(theirs,))
            self._pool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            if isinstance(error, KeyboardInterrupt):
                self._ends[1].close()  # what runs ends now
            with contextlib.suppress(BrokenProcessPool):
                self._pool.__exit__(kind, error, trace)
        for end in self._ends:
            end.close()

    def run(
        self,
        function: Callable[..., Any],
        tasks: Sequence[tuple[Any, ...]],
        after_each: Callable[[int, Any], Any] = lambda place, result: None,
    ) -> list[Any]:
        """Call ``function(*task)`` for each task, and return the results in their order.

        Args:
            function: a function of a module, which other processes can import.
            tasks: its arguments, which can be pickled.
            after_each: is called in this process with (the task's place, the result) when one is done.

        Raises:
            ChildProcessError: a process died.
            Exception: whatever ``function`` raises.
        """
        results: list[Any] = [None] * len(tasks)
        if self._pool is None:
            for place, task in enumerate(tasks):
                results[place] = function(*task)
                after_each(place, results[place])
            return results
        queue = iter(enumerate(tasks))
        try:
            # Never more are handed out than there are processes: tasks that wait in the pool cannot be taken back,
            # and would begin after an interruption.
            running = self._submit(function, queue, self.jobs)
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for one in done:
                    place = running.pop(one)
                    results[place] = one.result()
                    after_each(place, results[place])
                running |= self._submit(function, queue, len(done))
        except BrokenProcessPool:
            raise ChildProcessError(
                f"jobs: one of {self.jobs} processes died, killed or for want of memory; what is finished is kept: run "
                "the same again, with fewer jobs where memory is short"
            ) from None
        return results

    def _submit(self, function: Callable[..., Any], queue: Any, count: int) -> dict[Future[Any], int]:
        assert self._pool is not None
        # Ctrl-C is for this process to answer: workers inherit that it is blocked.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return {self._pool.submit(function, *task): place for place, task in itertools.islice(queue, count)}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _begin(parents: Connection) -> None:
    """Compute with one thread, and end when the parent's end of the pipe is closed."""
    torch.set_num_threads(1)

    def end_with_the_parent() -> None:
        with contextlib.suppress(EOFError, OSError):
            parents.recv()
        os._exit(1)

    threading.Thread(target=end_with_the_parent, daemon=True).start()
