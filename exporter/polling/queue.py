"""When ECR is asked, and what goes first. No clock, no threads: time is an argument.

The policy in five points:

1. Everything worth asking is booked under a key for a due time; how long an answer is good for
   follows from the state of the image (`Intervals`).
2. Pushes of the moment go first, the newest before the others: forty in a row, and from then on every
   second call. All else that is due is taken in turns, and so are pushes that were tried before. While
   there is a backlog of everything, every second turn is for listings, because only they find new
   pushes; of the other turns three in four are for the newest push of those that are new or on their
   way, and one is for whatever is overdue the longest. So pushes overtake any backlog, nothing starves.
3. Every call of one account and Region takes a token from one bucket, whose rate learns what AWS
   allows, and one of an operation that AWS throttles alone from a second one as well (`budget`): work
   is spread evenly, in bursts of a tenth of a second at most, whatever becomes due at once.
4. What fails is held back with its scope (`Backoff` says how long), one probe at a time, until one
   succeeds; the rest of the schedule does not notice.
5. Times are monotonic seconds, so that a clock that is set moves nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heapify, heappop, heappush
from itertools import count
from random import Random
from typing import Generic, TypeVar

from exporter.polling.rate_limit import Operation
from exporter.replication.model import ImageState

K = TypeVar("K", bound=Hashable)

#: So many calls that are to go first do so in a row, if others wait: twice what the default budget has for
#: the two seconds within which a push is to be asked about. Then one does for each other call.
FIRST_IN_A_ROW = 40
#: A probe that never reports back is written off after so many seconds, and another one sent.
PROBE_TIMEOUT = 30.0


class _Queue(StrEnum):
    """The orders in which due work stands; a status call stands in OLDEST, and in FIRST or NEWEST."""

    REGISTRY = "registry"  # the longest overdue first, as in the next two
    REPOSITORIES = "repositories"
    IMAGES = "images"
    FIRST = "first"  # status calls that go before all others; the newest push first
    NEWEST = "newest"  # status calls that are in a hurry; the newest push first
    OLDEST = "oldest"  # status calls, the longest overdue first


#: The queue in which all of a operation's work stands, the longest overdue first.
_OLDEST = {
    Operation.REGISTRY: _Queue.REGISTRY,
    Operation.REPOSITORIES: _Queue.REPOSITORIES,
    Operation.IMAGES: _Queue.IMAGES,
    Operation.STATUS: _Queue.OLDEST,
}
#: Who may go next, over and over; a turn without due work passes to the next one at once.
_TURNS = (
    *(_Queue.REGISTRY, _Queue.REPOSITORIES),
    *(_Queue.IMAGES, _Queue.NEWEST) * 3,
    *(_Queue.IMAGES, _Queue.OLDEST),
)
_ALL = frozenset(Operation)


@dataclass(slots=True, eq=False)
class _Booking(Generic[K]):
    key: K
    due: float
    operation: Operation
    rank: float | None
    scope: Hashable
    first: bool
    #: A heap gives up only its head: what is cancelled or moved dies, and is dropped when it comes up.
    alive: bool = True

    def renewed(self) -> _Booking[K]:
        """A copy to go on with, in turn; whatever queue still holds this one drops it."""
        self.alive = False
        return _Booking(self.key, self.due, self.operation, self.rank, self.scope, first=False)


@dataclass(slots=True)
class _Hold(Generic[K]):
    """A scope that fails: its due calls are parked, and one of them waits to be the probe."""

    until: float
    probe: _Booking[K] | None = None
    parked: list[_Booking[K]] = field(default_factory=list)


class DueQueue(Generic[K]):
    """The due-list of one source registry."""

    def __init__(self) -> None:
        self._bookings: dict[K, _Booking[K]] = {}
        self._serial = count()
        self._waiting: list[tuple[float, int, _Booking[K]]] = []
        self._ready: dict[_Queue, list[tuple[float, int, _Booking[K]]]] = {queue: [] for queue in _Queue}
        #: Those in which all of a operation's work stands; the very lists.
        self._lanes = [(operation, self._ready[queue]) for operation, queue in _OLDEST.items()]
        self._turn = 0
        #: How many more calls went first than did not, of those made while a status call might be made too;
        #: none when nothing is due.
        self._ahead = 0
        self._holds: dict[Hashable, _Hold[K]] = {}
        self._paused_until: float | None = None

    def __len__(self) -> int:
        return len(self._bookings)

    def __contains__(self, key: K) -> bool:
        return key in self._bookings

    def book(
        self,
        key: K,
        *,
        due: float,
        operation: Operation,
        rank: float | None = 0.0,
        scope: Hashable = None,
        first: bool = False,
    ) -> None:
        """Book a call, or book it anew. Among due STATUS calls a greater `rank` goes first.

        None stands for a call that is in no hurry: it waits until it is overdue the longest. And those that
        are to go `first` go before all other calls, as long as there are not too many.
        """
        self.cancel(key)
        self._add(_Booking(key, due, operation, rank, scope, first), until=due)
        self._compact()

    def cancel(self, key: K) -> None:
        """Forget a booking, if there is one."""
        if booking := self._bookings.pop(key, None):
            booking.alive = False
            hold = self._holds.get(booking.scope)
            if hold and booking is hold.probe:
                self._choose_probe(hold)

    def take(self, now: float, operations: Collection[Operation] = _ALL) -> K | None:
        """The call to make now, of one of the operations, removed from the list; None if there is none."""
        if self._paused_until is not None and now < self._paused_until:
            return None
        self._promote(now)
        while booking := (first := self._pick_first(operations)) or self._pick(operations):
            hold = self._holds.get(booking.scope)
            if hold is None or booking is hold.probe:
                if Operation.STATUS in operations:  # otherwise it took nothing from those that go first
                    self._ahead = max(0, self._ahead + (1 if first else -1))
                self._send(booking, hold, now)
                return booking.key
            self._park(booking, hold)
        return None

    def ready(self, now: float) -> list[Operation]:
        """The operations of which something is due."""
        if self._paused_until is not None and now < self._paused_until:
            return []
        self._promote(now)
        operations = [operation for operation, queue in self._lanes if queue and self._first(queue)]
        if not operations:
            self._ahead = 0
        return operations

    def next_at(self, now: float) -> float:
        """When something becomes due that is not yet; infinity if nothing will."""
        if self._paused_until is not None and now < self._paused_until:
            return self._paused_until
        self._promote(now)
        return self._waiting[0][0] if self._first(self._waiting) else float("inf")

    def oldest_due(self, now: float) -> float | None:
        """Since when the latest call waits for want of budget; what is held back does not count."""
        if self._paused_until is not None:
            return None
        self._promote(now)
        return min((queue[0][0] for _, queue in self._lanes if queue and self._first(queue)), default=None)

    def hold(self, scope: Hashable, *, until: float) -> None:
        """Keep back all calls of the scope; after `until` one goes ahead as a probe."""
        hold = self._holds.setdefault(scope, _Hold(until))
        hold.until = until
        self._choose_probe(hold)

    def probe_again(self, scope: Hashable, *, at: float) -> None:
        """If the scope is held, have the next probe go then, unless one may go sooner."""
        if hold := self._holds.get(scope):
            hold.until = min(hold.until, at)
            self._choose_probe(hold)

    def release(self, scope: Hashable) -> None:
        """The scope works (again): what was kept back may go at once."""
        hold = self._holds.pop(scope, None)
        for booking in (hold.probe, *hold.parked) if hold else ():
            if booking and booking.alive:
                self._wait(booking, until=booking.due)

    def pause(self, *, until: float) -> None:
        """Keep back everything; after `until` one call goes ahead as a probe."""
        self._paused_until = until

    def resume(self) -> None:
        """The registry answers (again)."""
        self._paused_until = None

    def _wait(self, booking: _Booking[K], *, until: float) -> _Booking[K]:
        """Have the booking wait again."""
        return self._add(booking.renewed(), until=until)

    def _add(self, booking: _Booking[K], *, until: float) -> _Booking[K]:
        self._bookings[booking.key] = booking
        heappush(self._waiting, (until, next(self._serial), booking))
        return booking

    def _send(self, booking: _Booking[K], hold: _Hold[K] | None, now: float) -> None:
        self.cancel(booking.key)
        if self._paused_until is not None:
            self._paused_until = now + PROBE_TIMEOUT
        if hold:
            hold.until = now + PROBE_TIMEOUT
            self._choose_probe(hold)

    def _park(self, booking: _Booking[K], hold: _Hold[K]) -> None:
        parked = booking.renewed()
        self._bookings[booking.key] = parked
        hold.parked.append(parked)
        if not (hold.probe and hold.probe.alive):
            self._choose_probe(hold)

    def _choose_probe(self, hold: _Hold[K]) -> None:
        """Have one of the parked calls wait for the end of the hold."""
        if hold.probe and hold.probe.alive:
            hold.parked.append(hold.probe)
        hold.probe = None
        while hold.parked and hold.probe is None:
            if (booking := hold.parked.pop()).alive:
                hold.probe = self._wait(booking, until=hold.until)

    def _promote(self, now: float) -> None:
        """Move what has become due from the waiting list to the queues of those who may take it."""
        while self._waiting and self._waiting[0][0] <= now:
            _, serial, booking = heappop(self._waiting)
            if not booking.alive:
                continue
            heappush(self._ready[_OLDEST[booking.operation]], (booking.due, serial, booking))
            if booking.operation is Operation.STATUS and booking.rank is not None:
                queue = _Queue.FIRST if booking.first else _Queue.NEWEST
                heappush(self._ready[queue], (-booking.rank, serial, booking))

    def _pick_first(self, operations: Collection[Operation]) -> _Booking[K] | None:
        """One that is to go first, unless it is the others' turn."""
        if Operation.STATUS not in operations or self._ahead >= FIRST_IN_A_ROW:
            return None
        booking = self._top(_Queue.FIRST)
        if booking:
            heappop(self._ready[_Queue.FIRST])
        return booking

    def _pick(self, operations: Collection[Operation]) -> _Booking[K] | None:
        """Whose turn it is; what else stands for it in a queue is dropped there when it comes up."""
        for _ in _TURNS:
            queue = _TURNS[self._turn]
            self._turn = (self._turn + 1) % len(_TURNS)
            booking = self._top(queue)
            if booking and booking.operation in operations:
                heappop(self._ready[queue])
                return booking
        return None

    def _top(self, queue: _Queue) -> _Booking[K] | None:
        return self._first(self._ready[queue])

    @staticmethod
    def _first(queue: list[tuple[float, int, _Booking[K]]]) -> _Booking[K] | None:
        """The head of a queue, after dropping what was cancelled or taken by another turn."""
        while queue and not queue[0][2].alive:
            heappop(queue)
        return queue[0][2] if queue else None

    def _compact(self) -> None:
        """Cancelled bookings would otherwise stay until they are due."""
        if len(self._waiting) > 2 * len(self._bookings) + 1000:
            self._waiting = [entry for entry in self._waiting if entry[2].alive]
            heapify(self._waiting)


@dataclass(frozen=True, slots=True)
class Intervals:
    """How many seconds an answer is good for."""

    discovery: float
    pending: float
    failed: float
    settled: float

    def after(self, state: ImageState) -> float:
        """How long to wait before asking about an image in this state again."""
        if state is ImageState.PENDING or state is ImageState.NEW:
            return self.pending
        return self.settled if state is ImageState.SETTLED else self.failed


def spread(interval: float, random: Random) -> float:
    """The interval, shortened by up to a tenth, so that what began together drifts apart.

    Never longer: asking in time is the promise, and a little early costs a tenth at most.
    """
    return interval * random.uniform(0.9, 1.0)


@dataclass(slots=True)
class Backoff:
    """How long to stay away after failures in a row: doubling from `base` to `cap` seconds."""

    base: float = 1.0
    cap: float = 60.0
    failures: int = 0

    def failed(self, random: Random) -> float:
        """Count a failure; how many seconds to wait, of which the last half is chance."""
        longest = min(self.cap, self.base * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return longest * random.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        self.failures = 0
