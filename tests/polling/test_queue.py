"""When ECR is asked, and what goes first: all of it without a clock."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial
from itertools import count
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.polling.queue import PROBE_TIMEOUT, DueQueue
from exporter.polling.rate_limit import Operation

LISTING, STATUS = Operation.IMAGES, Operation.STATUS


def next_at(schedule: DueQueue[Any], now: float) -> float:
    """When something may go: now, or when the next becomes due."""
    return now if schedule.ready(now) else schedule.next_at(now)


def drain(schedule: DueQueue[str], now: float) -> list[str]:
    """All that may go at this moment, in order."""
    taken = []
    while (key := schedule.take(now)) is not None or next_at(schedule, now) <= now:
        if key is not None:
            taken.append(key)
    return taken


def booked(*keys: str, scope: str | None = None) -> DueQueue[str]:
    """Status calls that are due one after the other, from 1 on."""
    schedule: DueQueue[str] = DueQueue()
    for due, key in enumerate(keys, 1):
        schedule.book(key, due=due, operation=STATUS, scope=scope)
    return schedule


# -- order -----------------------------------------------------------------------------------------


def test_listings_newest_pushes_and_the_most_overdue_take_turns() -> None:
    schedule: DueQueue[str] = DueQueue()
    for number in range(1, 6):
        schedule.book(f"listing {number}", due=10 + number, operation=LISTING)
    for number in range(1, 5):
        schedule.book(f"push {number}", due=20 - number, operation=STATUS, rank=10 - number)
    schedule.book("oldest", due=0, operation=STATUS, rank=1)
    schedule.book("not yet", due=31, operation=STATUS, rank=99)
    assert drain(schedule, 30) == [
        *("listing 1", "push 1", "listing 2", "push 2", "listing 3", "push 3"),
        *("listing 4", "oldest", "listing 5", "push 4"),
    ]


def test_a_burst_of_20_pushes_goes_within_50_calls_before_a_backlog_of_everything() -> None:
    """That is 5 s at 10 calls a second, wherever the turns are when the burst comes."""
    for offset in range(15):
        schedule: DueQueue[int] = DueQueue()
        for number in range(2_000):
            schedule.book(number, due=0, operation=STATUS, rank=number)
            schedule.book(-1 - number, due=0, operation=LISTING)
        for _ in range(offset):
            schedule.take(1)
        burst = set(range(10_000, 10_020))
        for number in burst:
            schedule.book(number, due=1, operation=STATUS, rank=number)
        taken = [schedule.take(1) for _ in range(51)]
        assert burst <= set(taken)
        assert sum(key is not None and key < 0 for key in taken) >= 22


def test_what_is_in_no_hurry_goes_by_how_overdue_it_is_and_never_before_a_push() -> None:
    schedule: DueQueue[str] = DueQueue()
    for number in range(9):
        schedule.book(f"settled {number}", due=number, operation=STATUS, rank=None)
    for number in range(3):
        schedule.book(f"push {number}", due=10, operation=STATUS, rank=number)
    order = drain(schedule, 30)
    assert order[:3] == ["push 2", "push 1", "push 0"]
    assert order[3:] == [f"settled {number}" for number in range(9)]


def test_a_turn_without_work_passes_to_the_next() -> None:
    schedule = booked("a", "b", "c")
    assert drain(schedule, 3) == ["a", "b", "c"]
    schedule.book("listing 2", due=2, operation=LISTING)
    schedule.book("listing 1", due=1, operation=LISTING)
    assert drain(schedule, 3) == ["listing 1", "listing 2"]


def test_what_is_equally_urgent_goes_in_the_order_of_booking() -> None:
    schedule: DueQueue[str] = DueQueue()
    for key in "cab":
        schedule.book(key, due=1, operation=STATUS, rank=1)
    assert drain(schedule, 1) == ["c", "a", "b"]


def test_nothing_goes_before_it_is_due() -> None:
    schedule = booked("a")
    assert schedule.take(0.999) is None
    assert next_at(schedule, 0) == 1
    assert schedule.take(1) == "a"
    assert schedule.take(1) is None
    assert next_at(schedule, 1) == float("inf")


def test_a_new_push_overtakes_a_backlog_of_50000() -> None:
    schedule: DueQueue[int] = DueQueue()
    for number in range(50_000):
        schedule.book(number, due=number / 1000, operation=STATUS, rank=number)
    for moment in range(100, 110):
        schedule.book(-moment, due=moment, operation=STATUS, rank=1e9 + moment)
        assert -moment in {schedule.take(moment), schedule.take(moment)}


@given(st.lists(st.tuples(st.sampled_from(Operation), st.floats(0, 100)), min_size=1, max_size=20))
def test_nothing_starves_whatever_else_comes_in(old: list[tuple[Operation, float]]) -> None:
    schedule: DueQueue[int] = DueQueue()
    for key, (operation, due) in enumerate(old):
        schedule.book(key, due=due, operation=operation)
    flood = count(1000)
    left = set(range(len(old)))
    for now in range(101, 101 + 10 * len(old)):
        schedule.book(next(flood), due=now, operation=LISTING)
        schedule.book(next(flood), due=now, operation=STATUS, rank=now)
        left.discard(schedule.take(now) or 0)
    assert not left


# -- booking again ----------------------------------------------------------------------------------


def test_a_call_that_is_booked_anew_goes_once_and_at_its_new_time() -> None:
    schedule = booked("a", "b")
    schedule.book("a", due=5, operation=STATUS)
    assert drain(schedule, 4) == ["b"]
    schedule.book("a", due=4, operation=LISTING)
    assert drain(schedule, 9) == ["a"]


def test_what_is_cancelled_does_not_go() -> None:
    schedule = booked("a", "b")
    assert next_at(schedule, 9) == 9  # both are ready
    schedule.cancel("a")
    schedule.cancel("never booked")
    assert drain(schedule, 9) == ["b"]


def test_rules_that_flap_each_minute_take_no_more_memory() -> None:
    """Each change books all images again: some are due, some wait, some are on hold."""
    schedule: DueQueue[int] = DueQueue()

    def flap(minutes: range) -> None:
        for minute in minutes:
            for key in range(500):
                scope = "denied" if key % 3 == 0 else None
                schedule.book(key, due=minute + key % 2, operation=STATUS, rank=key, scope=scope)
            for _ in range(10):
                schedule.take(minute)

    schedule.hold("denied", until=1e9)
    flap(range(20))
    tracemalloc.start()
    try:
        flap(range(20, 40))
        before, _ = tracemalloc.get_traced_memory()
        flap(range(40, 200))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert schedule.ready(200)
    assert after - before < 1_000_000


# -- what fails is held back -----------------------------------------------------------------------


def test_a_held_scope_waits_and_the_others_do_not_notice() -> None:
    schedule = booked("a", "b", scope="denied")
    schedule.book("c", due=0, operation=STATUS, scope="fine")
    schedule.hold("denied", until=100)
    assert drain(schedule, 50) == ["c"]
    assert next_at(schedule, 50) == 100


def test_one_call_at_a_time_probes_a_held_scope() -> None:
    schedule = booked(*"abc", scope="denied")
    schedule.hold("denied", until=100)
    assert len(drain(schedule, 100)) == 1
    assert next_at(schedule, 100) == 100 + PROBE_TIMEOUT
    schedule.hold("denied", until=110)  # the probe failed
    assert len(drain(schedule, 109)) == 0
    assert len(drain(schedule, 110)) == 1


def test_a_probe_that_never_reports_back_is_replaced() -> None:
    schedule = booked(*"abc", scope="denied")
    schedule.hold("denied", until=10)
    probes = [drain(schedule, now) for now in (10, 10 + PROBE_TIMEOUT - 1, 10 + PROBE_TIMEOUT)]
    assert [len(probe) for probe in probes] == [1, 0, 1]


@pytest.mark.parametrize("probe", ["a", "b", "c"])
@pytest.mark.parametrize("at", [50, 120], ids=["before its time", "at its time"])
def test_a_probe_that_is_cancelled_is_replaced(at: float, probe: str) -> None:
    schedule = booked(*"abc", scope="denied")
    schedule.hold("denied", until=100)
    assert drain(schedule, 50) == []
    next_at(schedule, at)
    schedule.cancel(probe)
    assert len(drain(schedule, 120)) == 1


def test_a_scope_that_works_again_lets_everything_go_at_once() -> None:
    schedule = booked(*"abcd", scope="denied")
    schedule.hold("denied", until=100)
    assert drain(schedule, 50) == []
    schedule.cancel("b")
    schedule.release("denied")
    assert sorted(drain(schedule, 51)) == ["a", "c", "d"]
    schedule.release("denied")  # nothing is held: nothing happens


def test_what_is_held_is_not_overdue() -> None:
    schedule = booked("a", "b", scope="denied")
    assert schedule.oldest_due(0.5) is None
    assert schedule.oldest_due(9) == 1
    schedule.hold("denied", until=100)
    schedule.book("c", due=5, operation=STATUS)
    schedule.book("d", due=6, operation=STATUS)
    assert {schedule.take(9) for _ in range(2)} == {"c", "d"}
    assert schedule.take(9) is None
    assert schedule.oldest_due(9) is None
    schedule.book("c", due=7, operation=STATUS)
    assert schedule.oldest_due(9) == 7


class NaiveSchedule:
    """A schedule, and a dictionary of what is booked that knows what may go."""

    def __init__(self) -> None:
        self.queue: DueQueue[int] = DueQueue()
        self.booked: dict[int, tuple[float, str | None]] = {}
        self.held: dict[str | None, float] = {}
        self.now = 0.0

    def book(self, key: int, due: float, operation: Operation, rank: float, scope: str | None) -> None:
        self.queue.book(key, due=due, operation=operation, rank=rank, scope=scope)
        self.booked[key] = (due, scope)

    def cancel(self, key: int) -> None:
        self.queue.cancel(key)
        self.booked.pop(key, None)

    def hold(self, scope: str, until: float) -> None:
        self.queue.hold(scope, until=until)
        self.held[scope] = until

    def release(self, scope: str) -> None:
        self.queue.release(scope)
        self.held.pop(scope, None)

    def wait(self, seconds: float) -> None:
        """Let time pass; until the moment that `next_at` named, nothing may go."""
        if (said := next_at(self.queue, self.now)) > self.now:
            before = min(self.now + seconds, (self.now + said) / 2)
            assert self.queue.take(before) is None
        self.now += seconds

    def take(self) -> bool:
        key = self.queue.take(self.now)
        if key is None and next_at(self.queue, self.now) <= self.now:
            key = self.queue.take(self.now)  # the first look found who is to be the probe
        if key is None:
            assert self.earliest() > self.now
            assert next_at(self.queue, self.now) > self.now
            assert self.queue.oldest_due(self.now) is None
            return False
        assert self.may_go(key) <= self.now
        _, scope = self.booked.pop(key)
        if scope in self.held:
            self.held[scope] = self.now + PROBE_TIMEOUT
        return True

    def take_all(self) -> None:
        while self.take():
            pass

    def may_go(self, key: int) -> float:
        due, scope = self.booked[key]
        return max(due, self.held.get(scope, due))

    def earliest(self) -> float:
        return min(map(self.may_go, self.booked), default=float("inf"))

    def step(self, random: Random) -> None:
        """One operation, whichever."""
        key, scope, operation = random.randrange(6), random.choice("aab"), random.choice([*Operation])
        soon = self.now + random.choice([-1, 0, 0, 5, PROBE_TIMEOUT])
        chances: list[tuple[int, Callable[[], object]]] = [
            (4, partial(self.book, key, soon, operation, random.random(), scope)),
            (2, partial(self.book, key, soon, operation, random.random(), None)),
            (2, partial(self.cancel, key)),
            (2, partial(self.hold, scope, soon)),
            (1, partial(self.release, scope)),
            (3, partial(self.wait, random.choice([0.5, 1, 5, PROBE_TIMEOUT]))),
            (2, self.take),
            (1, self.take_all),
        ]
        weights, operations = zip(*chances, strict=True)
        random.choices(operations, weights)[0]()


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_nothing_is_lost_or_doubled_or_late_or_sent_where_it_is_held(seed: int) -> None:
    naive, random = NaiveSchedule(), Random(seed)
    for _ in range(1000):
        naive.step(random)
        assert next_at(naive.queue, naive.now) <= max(naive.now, naive.earliest())
    for scope in "ab":
        naive.release(scope)
    naive.wait(1000)
    naive.take_all()
    assert not naive.booked
