"""The learnt call rate, against simulated servers in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.polling.rate_limit import Operation, RateLimiter

IMAGES, STATUS = Operation.IMAGES, Operation.STATUS
Allowance = Callable[[float], float]


class Server(Protocol):
    """Allows a call, or throttles it."""

    def allows(self, now: float) -> bool: ...


class TokenBucket:
    """Allows a rate, and a burst of calls at once."""

    def __init__(self, allowance: Allowance, burst: float) -> None:
        self.allowance, self.burst, self.tokens, self.at = allowance, burst, burst, 0.0

    def allows(self, now: float) -> bool:
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.allowance(now))
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@dataclass
class FixedWindow:
    """Counts the calls of each second."""

    allowance: Allowance
    second: int = -1
    calls: int = 0

    def allows(self, now: float) -> bool:
        if int(now) != self.second:
            self.second, self.calls = int(now), 0
        self.calls += 1
        return self.calls <= self.allowance(now)


@dataclass
class Client:
    """Makes a call of each operation every `every` seconds, or as fast as it may if that is 0."""

    limiter: RateLimiter
    servers: Mapping[Operation, Server]
    every: dict[Operation, float]
    latency: float = 0.03
    now: float = 0.0
    random: Random = field(default_factory=lambda: Random(1))
    calls: list[tuple[float, Operation, bool]] = field(default_factory=list)
    due: dict[Operation, float] = field(default_factory=dict)
    answers: list[tuple[float, int, Operation, float, bool]] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            at, _, operation = min((self._next(op), self.due.get(op, 0.0), op) for op in self.every)
            if self.answers and self.answers[0][0] <= min(at, end):
                self.now, _, answered, sent, granted = heappop(self.answers)
                self.limiter.answered(answered, refused=not granted, sent=sent, now=self.now)
            elif at > self.now:
                self.now = min(at, end)
            else:
                self._call(operation)

    def _next(self, operation: Operation) -> float:
        due = self.due.get(operation, 0.0)
        return due if due > self.now else self.limiter.next_at(operation, self.now)

    def _call(self, operation: Operation) -> None:
        self.limiter.take(operation, self.now)
        self.due[operation] = self.now + self.every[operation]
        granted = self.servers[operation].allows(self.now)
        self.calls.append((self.now, operation, granted))
        delay = self.random.uniform(0.5, 1.5) * self.latency
        heappush(self.answers, (self.now + delay, len(self.calls), operation, self.now, granted))

    def granted(self, since: float, until: float = 1e9, operation: Operation | None = None) -> int:
        return self._ended(since, until, operation).count(True)

    def refused(self, since: float, until: float = 1e9, operation: Operation | None = None) -> float:
        """The share of calls that were throttled."""
        ended = self._ended(since, until, operation)
        return ended.count(False) / len(ended)

    def _ended(self, since: float, until: float, operation: Operation | None) -> list[bool]:
        return [ok for at, of, ok in self.calls if since <= at < until and operation in (None, of)]


#: Seconds of allowance that a server saves while calls are few; 0: next to none.
SAVED = {"token bucket": 0.0, "token bucket of 1 s": 1.0, "token bucket of 5 s": 5.0}


def server(kind: str, allowance: Allowance) -> Server:
    if kind == "fixed window":
        return FixedWindow(allowance)
    return TokenBucket(allowance, burst=max(2.0, SAVED[kind] * allowance(0.0)))


@pytest.mark.parametrize("latency", [0.03, 0.1, 0.3])
@pytest.mark.parametrize("kind", [*SAVED, "fixed window"])
@pytest.mark.parametrize(
    ("before", "after"),
    [(5, 5), (10, 5), (5, 10), (40, 40), (40, 20), (40, 80), (100, 100), (100, 50), (100, 200)],
)
def test_it_uses_the_allowance_and_is_seldom_refused(
    before: int, after: int, kind: str, latency: float
) -> None:
    """Judged after the first 5 s; where the server saves 5 s of calls, it takes 10 s to use them up."""
    settled = 10.0 if kind == "token bucket of 5 s" else 5.0
    phase = 6 * settled
    served = server(kind, lambda now: before if now < phase else after)
    client = Client(RateLimiter(400, now=0.0), {STATUS: served}, {STATUS: 0.0}, latency=latency)
    client.run(2 * phase)
    for begin, allowed in ((0.0, before), (phase, after)):
        since, until = begin + settled, begin + phase
        assert client.refused(since, until) <= 0.05
        assert client.granted(since, until) >= 0.85 * allowed * (until - since)


def test_without_refusals_the_rate_is_at_the_ceiling_soon() -> None:
    free = TokenBucket(lambda _: 1e9, burst=1e9)
    client = Client(RateLimiter(100, now=0.0), {STATUS: free}, {STATUS: 0.0})
    client.run(20)
    assert client.limiter.rate(client.now) == 100
    assert 990 <= client.granted(10) <= 1001


@pytest.mark.parametrize("alone", [2.0, 5.0])
@pytest.mark.parametrize("throttled", [IMAGES, STATUS])
def test_a_refusal_lowers_the_rate_of_its_operation_alone(throttled: Operation, alone: float) -> None:
    free = TokenBucket(lambda _: 1e9, burst=1e9)
    servers: dict[Operation, Server] = dict.fromkeys((IMAGES, STATUS), free)
    servers[throttled] = TokenBucket(lambda _: alone, burst=2)
    client = Client(RateLimiter(40, now=0.0), servers, {IMAGES: 0.0, STATUS: 0.0})
    client.run(120)
    (other,) = {IMAGES, STATUS} - {throttled}
    assert client.granted(60, operation=other) >= 0.95 * (40 - alone) * 60
    assert client.granted(60, operation=throttled) >= 0.85 * alone * 60
    assert client.refused(60, operation=throttled) <= 0.05
    assert client.limiter.rate(client.now) < 1.5 * alone


def test_operations_share_an_allowance_of_all() -> None:
    shared = TokenBucket(lambda _: 40.0, burst=40)
    client = Client(RateLimiter(400, now=0.0), {IMAGES: shared, STATUS: shared}, {IMAGES: 0.0, STATUS: 0.0})
    client.run(120)
    assert client.refused(20) <= 0.05
    assert client.granted(20) >= 0.85 * 40 * 100


@pytest.mark.parametrize("phases", [(2.0, 8.0), (10.0, 50.0), (20.0, 20.0)])
def test_operations_that_take_turns_on_a_shared_allowance_are_seldom_refused(
    phases: tuple[float, float],
) -> None:
    """Bursts of listings, then status calls beside a few listings."""
    shared = TokenBucket(lambda _: 10.0, burst=10)
    client = Client(RateLimiter(400, now=0.0), {IMAGES: shared, STATUS: shared}, {})
    while client.now < 300:
        client.every = {IMAGES: 0.0}
        client.run(phases[0])
        client.every = {IMAGES: 0.15, STATUS: 0.0}
        client.run(phases[1])
    assert client.refused(30) <= 0.05
    assert client.granted(30) >= 0.85 * 10 * (client.now - 30)


@pytest.mark.parametrize("storm", [5.0, 120.0])
def test_it_recovers_from_a_time_when_everything_is_refused(storm: float) -> None:
    stormy = TokenBucket(lambda now: 0.0 if 20 < now < 20 + storm else 40.0, burst=2)
    client = Client(RateLimiter(400, now=0.0), {STATUS: stormy}, {STATUS: 0.0})
    client.run(20 + storm + 120)
    before = client.now
    client.run(60)
    assert client.granted(before) >= 0.85 * 40 * 60


def test_an_operation_that_is_seldom_asked_does_not_raise_its_rate_or_save_a_burst() -> None:
    served = TokenBucket(lambda _: 20.0, burst=20)
    client = Client(RateLimiter(400, now=0.0), {STATUS: served}, {STATUS: 0.0})
    client.run(60)
    client.every, client.due = {STATUS: 1.0}, {}
    client.run(3600)
    client.every, client.due, busy = {STATUS: 0.0}, {}, client.now
    client.run(10)
    assert client.refused(busy) <= 0.05
    assert client.granted(busy, busy + 0.5) <= 20


@pytest.mark.parametrize("late", [0.0, 0.12])
def test_a_client_that_wakes_up_late_still_raises_the_rate(late: float) -> None:
    limiter, now = RateLimiter(1000, now=0.0), 0.0
    for _ in range(500):
        while (at := limiter.next_at(STATUS, now)) == now:
            limiter.take(STATUS, now)
        now = at + late
    assert limiter.rate(now) > 500 if late else limiter.rate(now) > 100


@given(st.floats(0.5, 1000), st.lists(st.floats(0.0, 5.0), min_size=1, max_size=200))
def test_no_period_has_more_calls_than_the_ceiling_and_a_tenth_of_a_second(
    ceiling: float, pauses: list[float]
) -> None:
    limiter, now, taken = RateLimiter(ceiling, now=0.0), 0.0, []
    for number, pause in enumerate(pauses):
        operation = STATUS if number % 2 else IMAGES
        while (at := limiter.next_at(operation, now + pause)) > now + pause:
            now = at - pause
        now += pause
        limiter.take(operation, now)
        taken.append(now)
    burst = max(1.0, ceiling / 10)
    for first in range(0, len(taken), 7):
        for last in range(first, len(taken), 5):
            assert last - first + 1 <= ceiling * (taken[last] - taken[first]) + burst + 1e-3


@given(
    st.floats(0.05, 10_000),
    st.lists(
        st.tuples(st.sampled_from(Operation), st.booleans(), st.floats(0, 30), st.floats(0, 60)), max_size=200
    ),
)
def test_no_sequence_of_answers_stops_an_operation_or_passes_the_ceiling(
    ceiling: float, calls: list[tuple[Operation, bool, float, float]]
) -> None:
    limiter, now = RateLimiter(ceiling, now=0.0), 0.0
    for operation, refused, pause, latency in calls:
        now += pause
        at = limiter.next_at(operation, now)
        assert now <= at <= now + 2 / min(ceiling, 0.2)
        now = at
        limiter.take(operation, now)
        limiter.answered(operation, refused=refused, sent=now, now=now + latency)
        assert 0 < limiter.rate(now) <= ceiling


def test_a_new_ceiling_keeps_what_was_learnt() -> None:
    served = TokenBucket(lambda _: 40.0, burst=2)
    client = Client(RateLimiter(400, now=0.0), {STATUS: served}, {STATUS: 0.0})
    client.run(30)
    learnt = client.limiter.rate(client.now)
    client.limiter.configure(300)
    assert client.limiter.rate(client.now) == learnt
    client.limiter.configure(20)
    assert client.limiter.rate(client.now) == 20


@pytest.mark.parametrize("refusals", [1, 3])
def test_the_rate_names_the_throttled_operation_until_it_is_calm(refusals: int) -> None:
    limiter = RateLimiter(10, now=0.0)
    for number in range(refusals):
        limiter.answered(IMAGES, refused=True, sent=float(number), now=number + 0.1)
    assert limiter.rate(3.0) < 10
    limiter.answered(IMAGES, refused=False, sent=400.0, now=400.1)
    assert limiter.rate(400.1) == 10
