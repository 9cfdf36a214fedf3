"""Which ECR call is next. Times are monotonic seconds and arguments; nothing here waits.

The policy:

1. Each call has a due time, which follows from the state of its image (docs/scaling.md).
2. Among due status calls the newest push goes first, but every fourth is the most overdue one.
3. While listings are due too, they get 7 of 15 calls, because only they find new pushes.
4. So a new push overtakes any backlog, listings keep their pace, and nothing starves.
5. A failing scope is on hold: one call at a time probes it, until one succeeds.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, TypeAlias, TypeVar

from exporter.polling.rate_limit import Operation

K = TypeVar("K", bound=Hashable)

#: Seconds after which a probe without a result is given up and another one is sent.
PROBE_TIMEOUT = 30.0
_LISTING, _NEWEST, _OVERDUE = range(3)
#: The order of calls, repeated. A turn without due work passes to the next one.
_TURNS = (_LISTING, _NEWEST) * 3 + (_LISTING, _OVERDUE) + (_LISTING, _NEWEST) * 3 + (_OVERDUE,)
_ALL = frozenset(Operation)
_STATUS = frozenset({Operation.STATUS})
_LISTINGS = _ALL - _STATUS
#: The serial number of a booking that is in no heap.
_NOWHERE = -1


@dataclass(slots=True, eq=False)
class _Booking(Generic[K]):
    key: K
    due: float
    operation: Operation
    rank: float | None
    scope: Hashable
    #: A heap entry with another serial number is out of date. It is dropped when it reaches the top.
    serial: int = _NOWHERE


#: Entries are (order, serial number, booking).
_Heap: TypeAlias = list[tuple[float, int, _Booking[K]]]


@dataclass(slots=True)
class _Hold(Generic[K]):
    """A scope that fails: its due calls are parked, and one of them waits to be the probe."""

    until: float
    probe: _Booking[K] | None = None
    parked: dict[K, _Booking[K]] = field(default_factory=dict)


class DueQueue(Generic[K]):
    """The calls that one source registry needs, by key."""

    def __init__(self) -> None:
        self._bookings: dict[K, _Booking[K]] = {}
        self._serials = count()
        # A booking waits until it is due. A due status call is in two heaps: the newest and the overdue.
        self._waiting: _Heap[K] = []
        self._newest: _Heap[K] = []
        self._overdue: dict[Operation, _Heap[K]] = {operation: [] for operation in Operation}
        self._turn = 0
        self._holds: dict[Hashable, _Hold[K]] = {}

    def book(
        self,
        key: K,
        *,
        due: float,
        operation: Operation,
        rank: float | None = 0.0,
        scope: Hashable = None,
    ) -> None:
        """Book a call; an earlier booking under the key is replaced.

        Among due STATUS calls the greatest `rank` goes first: the push time. A call with the rank None
        is not urgent: it goes when it is the most overdue one.
        """
        self.cancel(key)
        booking = _Booking(key, due, operation, rank, scope)
        self._bookings[key] = booking
        self._wait(booking, until=due)
        self._compact()

    def cancel(self, key: K) -> None:
        """Drop a booking, if there is one."""
        if booking := self._bookings.pop(key, None):
            booking.serial = _NOWHERE
            if hold := self._holds.get(booking.scope):
                hold.parked.pop(key, None)
                if booking is hold.probe:
                    hold.probe = None
                    self._choose_probe(hold)
            self._compact()

    def due(self, key: K) -> float | None:
        """When a call is due; None if it is not booked. For any thread."""
        booking = self._bookings.get(key)
        return booking.due if booking else None

    def take(self, now: float, operations: Collection[Operation] = _ALL) -> K | None:
        """Remove and return the next call of one of the operations; None if none may go now."""
        self._promote(now)
        while booking := self._next(operations):
            hold = self._holds.get(booking.scope)
            if hold and booking is not hold.probe:
                booking.serial = _NOWHERE
                hold.parked[booking.key] = booking
                if hold.probe is None:
                    self._choose_probe(hold)
                continue
            if hold:
                hold.until = now + PROBE_TIMEOUT
            self.cancel(booking.key)
            return booking.key
        return None

    def ready(self, now: float) -> list[Operation]:
        """Return the operations that have due calls."""
        self._promote(now)
        return [operation for operation, heap in self._overdue.items() if _top(heap)]

    def next_at(self, now: float) -> float:
        """Return when the next call becomes due that is not due yet; infinity if there is none."""
        self._promote(now)
        return self._waiting[0][0] if _top(self._waiting) else float("inf")

    def oldest_due(self, now: float) -> float | None:
        """Return the due time of the most overdue call; calls on hold do not count."""
        self._promote(now)
        return min((booking.due for heap in self._overdue.values() if (booking := _top(heap))), default=None)

    def hold(self, scope: Hashable, *, until: float) -> None:
        """Keep back all calls of the scope; one of them is a probe at `until`."""
        hold = self._holds.setdefault(scope, _Hold(until))
        hold.until = until
        self._choose_probe(hold)

    def probe_again(self, scope: Hashable, *, at: float) -> None:
        """Send the next probe of a scope on hold at this time, unless one is due sooner."""
        if hold := self._holds.get(scope):
            self.hold(scope, until=min(hold.until, at))

    def release(self, scope: Hashable) -> None:
        """End the hold: all calls of the scope may go when they are due."""
        if hold := self._holds.pop(scope, None):
            for booking in (*hold.parked.values(), *([hold.probe] if hold.probe else [])):
                self._wait(booking, until=booking.due)

    def _wait(self, booking: _Booking[K], *, until: float) -> None:
        booking.serial = next(self._serials)
        heappush(self._waiting, (until, booking.serial, booking))

    def _promote(self, now: float) -> None:
        """Move what has become due to the heaps of due calls."""
        while self._waiting and self._waiting[0][0] <= now:
            _, serial, booking = heappop(self._waiting)
            if serial == booking.serial:
                heappush(self._overdue[booking.operation], (booking.due, serial, booking))
                if booking.operation is Operation.STATUS and booking.rank is not None:
                    heappush(self._newest, (-booking.rank, serial, booking))

    def _next(self, operations: Collection[Operation]) -> _Booking[K] | None:
        for _ in _TURNS:
            turn = _TURNS[self._turn]
            self._turn = (self._turn + 1) % len(_TURNS)
            wanted = _LISTINGS if turn == _LISTING else _STATUS
            heaps = [self._overdue[operation] for operation in wanted.intersection(operations)]
            if turn == _NEWEST and heaps:
                heaps = [self._newest]
            if heap := min((heap for heap in heaps if _top(heap)), default=None):
                return heap[0][2]
        return None

    def _choose_probe(self, hold: _Hold[K]) -> None:
        """Let the probe, or else a parked call, wait for the end of the hold."""
        if hold.probe is None and hold.parked:
            _, hold.probe = hold.parked.popitem()
        if hold.probe:
            self._wait(hold.probe, until=hold.until)

    def _compact(self) -> None:
        """Drop entries that are out of date before they are most of the memory."""
        heaps = (self._waiting, self._newest, *self._overdue.values())
        if sum(map(len, heaps)) > 3 * len(self._bookings) + 100:
            for heap in heaps:
                heap[:] = [entry for entry in heap if entry[1] == entry[2].serial]
                heapify(heap)
            self._bookings = dict(self._bookings)  # a dict keeps the room of what was removed


def _top(heap: _Heap[K]) -> _Booking[K] | None:
    """Return the first booking, after dropping entries that are out of date."""
    while heap and heap[0][1] != heap[0][2].serial:
        heappop(heap)
    return heap[0][2] if heap else None
