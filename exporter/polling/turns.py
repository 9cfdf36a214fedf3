"""Turns of the loop thread: how long it works before it takes answers and starts calls again."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from itertools import count
from math import inf

from exporter.polling.calls import Clock
from exporter.replication.steps import Steps

#: Seconds after which a turn ends, when its present step is done.
TURN = 0.01
#: So many listings may wait for their turn. More would fill the memory.
MOST_WAITING = 4


class Turns:
    """Work in steps that is under way, the longest wait first. Loop thread only."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._under_way: deque[Steps[None]] = deque()
        #: Work that begins at a monotonic time. The number keeps the order total.
        self._later: list[tuple[float, int, Steps[None]]] = []
        self._numbers = count()

    def __bool__(self) -> bool:
        """Whether some work is under way."""
        return bool(self._under_way)

    @property
    def behind(self) -> bool:
        """Whether so much work waits that no more should come."""
        return len(self._under_way) > MOST_WAITING

    @property
    def next_at(self) -> float:
        """When the next work begins (monotonic); infinity if none is to begin."""
        return self._later[0][0] if self._later else inf

    def begin_later(self, work: Steps[None], *, seconds: float) -> None:
        """Do the work in so many seconds."""
        heappush(self._later, (self._clock.monotonic() + seconds, next(self._numbers), work))

    def begin(self, work: Steps[None]) -> None:
        """Do the first steps now, and the rest in later turns."""
        if not self._done(work):
            self._under_way.append(work)

    def take(self) -> None:
        """Go on with the work that waits longest, for one turn."""
        while self.next_at <= self._clock.monotonic():
            self._under_way.append(heappop(self._later)[2])
        if self._under_way:
            self.begin(self._under_way.popleft())

    def _done(self, work: Steps[None]) -> bool:
        """Whether the work ends in this turn."""
        end = self._clock.monotonic() + TURN
        return all(self._clock.monotonic() < end for _ in work)
