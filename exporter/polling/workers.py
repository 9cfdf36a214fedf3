"""The threads that make the calls of one registry."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Protocol

#: Calls in flight at once in one registry. At 20 ms a call this is as much as one process can do.
MAX_IN_FLIGHT = 16
#: Calls in flight and calls that wait for a free worker, so that a worker need not wait for the loop. Few
#: wait, because a more urgent call goes behind them.
MAX_HANDED_OUT = MAX_IN_FLIGHT + 4
#: Seconds for which a call waits for a scrape, at most.
MAX_PAUSE = 0.25


class WorkerPool(Protocol):
    """Makes calls, now or later, in any thread."""

    def submit(self, call: Callable[[], None]) -> None:
        """Have the call made. Raises RuntimeError if there is no thread that can make it."""

    def close(self) -> None: ...


class Pause:
    """Lets a scrape go first: while its page is rendered, workers start no calls, and long work waits.

    To parse an answer takes the interpreter, and a thread that renders a page gives it up hundreds of times.
    """

    def __init__(self, limit: float = MAX_PAUSE) -> None:
        self._limit = limit
        self._holder = threading.Lock()
        self._over = threading.Event()
        self._over.set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Pause, for one thread at a time, because pages that are rendered at once slow each other down."""
        with self._holder:
            self._over.clear()
            try:
                yield
            finally:
                self._over.set()

    def wait(self, limit: float | None = None) -> None:
        """Wait for the end of the pause, if there is one, and no longer than the limit."""
        self._over.wait(self._limit if limit is None else limit)


class ThreadPool:
    """At most `limit` daemon threads, started when there is work and none is idle.

    Daemon threads, so that a call that hangs does not delay the end of the process, as one in the standard
    library's ThreadPoolExecutor does.
    """

    def __init__(self, name: str, limit: int = MAX_IN_FLIGHT, *, pause: Pause | None = None) -> None:
        self._name = name
        self._limit = limit
        self._pause = pause or Pause()
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        #: Counts the threads that have no call to make.
        self._idle = threading.Semaphore(0)
        self._threads = 0

    def submit(self, call: Callable[[], None]) -> None:
        """Have the call made. Only ever called from one thread.

        Raises RuntimeError if no thread can be started and there is none.
        """
        if not self._idle.acquire(blocking=False) and self._threads < self._limit:
            name = f"{self._name}-{self._threads + 1}"
            try:
                threading.Thread(target=self._work, name=name, daemon=True).start()
                self._threads += 1
            except RuntimeError:
                if not self._threads:
                    raise
        self._calls.put(call)

    def close(self) -> None:
        """Let each thread end after its present call."""
        for _ in range(self._threads):
            self._calls.put(None)

    def _work(self) -> None:
        while call := self._calls.get():
            self._pause.wait()
            call()
            if self._calls.empty():
                self._idle.release()
