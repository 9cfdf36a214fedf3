"""Reloads, one at a time: whoever asks while one runs shares the next, however many ask."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

#: Seconds that somebody waits for the end of a reload.
LONGEST_WAIT = 10.0
#: How many may wait at once: each takes a place from those who want to scrape.
MAX_WAITING = 4


class _Turn:
    """One reload, before and after. `problems` is for whoever waited until it is done."""

    __slots__ = ("done", "problems")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.problems: Sequence[str] = ()


class Reloads:
    """Makes them, in the thread of `run`. The other methods are for any thread."""

    def __init__(self, load: Callable[[], Sequence[str]]) -> None:
        """`load` gives the problems, none if all went well; it raises nothing."""
        self._load = load
        self._lock = threading.Lock()
        #: The one that was asked for and did not begin.
        self._next: _Turn | None = None
        self._turns: SimpleQueue[_Turn] = SimpleQueue()
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)

    def ask(self) -> _Turn:
        """Have one that begins after this; at once."""
        with self._lock:
            if self._next is None:
                self._next = _Turn()
                self._turns.put(self._next)
            return self._next

    def wait(self, *, timeout: float = LONGEST_WAIT) -> Sequence[str]:
        """Have one that begins after this, and wait for its end; the problems."""
        turn = self.ask()
        if not self._waiting.acquire(blocking=False):
            return ["a reload is under way, and enough others wait for the next; it will come all the same"]
        try:
            if not turn.done.wait(timeout):
                return [f"the reload did not end within {timeout:g} s; it may yet"]
            return turn.problems
        finally:
            self._waiting.release()

    def run(self) -> None:
        """Never ends."""
        while True:
            turn = self._turns.get()
            with self._lock:
                self._next = None
            turn.problems = self._load()
            turn.done.set()
