"""The rate that learns, against make-believe servers in virtual time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.polling.rate_limit import Bucket, Operation, Rate, RateLimiter

Allowance = Callable[[float], float]


class Server(Protocol):
    """Allows a call, or refuses it."""

    def allows(self, now: float) -> bool: ...


@dataclass
class TokenBucket:
    """A server that allows a rate, and so many calls at once."""

    allowance: Allowance
    burst: float
    tokens: float = 0.0
    at: float = 0.0

    def allows(self, now: float) -> bool:
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.allowance(now))
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@dataclass
class Window:
    """A server that counts the calls of each second."""

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
    """Asks as fast as the budget lets it, in turns; answers take a while."""

    budget: RateLimiter
    servers: Mapping[Operation, Server]
    share: dict[Operation, float] = field(default_factory=lambda: {Operation.STATUS: 1.0})
    latency: float = 0.03
    at_once: float = math.inf
    now: float = 0.0
    calls: list[tuple[float, Operation, bool]] = field(default_factory=list)
    due: dict[Operation, float] = field(default_factory=dict)
    #: On their way: when they come in, and of what.
    answers: list[tuple[float, int, Operation, float, bool]] = field(default_factory=list)

    def run(self, seconds: float, random: Random) -> None:
        end = self.now + seconds
        while True:
            at, _, operation = min(
                (self._next(operation), self.due.get(operation, 0.0), operation) for operation in self.share
            )
            busy = len(self.answers) >= self.at_once
            if self.answers and self.answers[0][0] <= (end if busy else min(at, end)):
                self.now, _, answered, sent, granted = heappop(self.answers)
                self.budget.answered(answered, refused=not granted, sent=sent, now=self.now)
                continue
            if busy or at >= end:
                self.now = end
                return
            if at > self.now:
                self.now = at
                continue
            self.budget.take(operation, at)
            self.due[operation] = max(at, self.due.get(operation, 0.0)) + self.share[operation]
            granted = self.servers[operation].allows(at)
            self.calls.append((at, operation, granted))
            delay = random.uniform(0.5, 1.5) * self.latency
            heappush(self.answers, (at + delay, len(self.calls), operation, at, granted))

    def _next(self, operation: Operation) -> float:
        due = self.due.get(operation, 0.0)
        return due if due > self.now else self.budget.next_at(operation, self.now)

    def refused(self, since: float, operation: Operation | None = None) -> float:
        some = [granted for at, of, granted in self.calls if at >= since and operation in (None, of)]
        return some.count(False) / len(some)

    def granted(self, since: float) -> int:
        return sum(granted for at, _, granted in self.calls if at >= since)


def steady(_: float) -> float:
    return 40.0


def halves(now: float) -> float:
    return 40.0 if now < 30 else 20.0


def doubles(now: float) -> float:
    return 40.0 if now < 30 else 80.0


def servers(allowance: Allowance) -> dict[str, Server]:
    """Those that keep nothing of what is not used, a second's worth, and more; and one that counts."""
    return {
        "tight": TokenBucket(allowance, burst=2),
        "second": TokenBucket(allowance, burst=40),
        "minute": TokenBucket(allowance, burst=200),
        "window": Window(allowance),
    }


def ask_rate(rate: Rate, calls: int, now: float, *, latency: float) -> float:
    """Make some calls as fast as is allowed, all of which are answered; the time afterwards."""
    for _ in range(calls):
        now += 1 / rate()
        rate.taken(now, used=True)
        rate.answered(refused=False, sent=now - latency, now=now)
    return now


WARM = 5.0
LONG = 60.0


@pytest.mark.parametrize("allowance", [steady, halves, doubles])
@pytest.mark.parametrize("server", ["tight", "second", "minute", "window"])
def test_it_uses_what_is_allowed_and_is_seldom_refused(allowance: Allowance, server: str) -> None:
    client = Client(
        RateLimiter(400, now=0.0), {Operation.STATUS: servers(allowance)[server]}, {Operation.STATUS: 0.0}
    )
    client.run(LONG, Random(1))
    allowed = sum(allowance(WARM + step / 100) for step in range(int((LONG - WARM) * 100))) / 100
    assert client.refused(WARM) <= 0.05
    assert client.granted(WARM) / allowed >= 0.85


@pytest.mark.parametrize("latency", [0.1, 0.3, 0.36])
@pytest.mark.parametrize("server", ["tight", "second", "minute", "window"])
def test_it_is_seldom_refused_though_answers_take_their_time(server: str, latency: float) -> None:
    """Sixteen calls under way at once come to little more than is allowed, then: the rate is not beyond."""
    budget = RateLimiter(400, at_once=16, now=0.0)
    served = {Operation.STATUS: servers(steady)[server]}
    client = Client(budget, served, {Operation.STATUS: 0.0}, latency=latency, at_once=16)
    client.run(20, Random(1))
    assert client.refused(WARM) <= 0.05
    assert client.granted(WARM) >= 0.85 * 40 * (20 - WARM)


def test_the_rate_does_not_rise_beyond_what_calls_under_way_can_come_to() -> None:
    unlimited = {Operation.STATUS: TokenBucket(lambda _: 1e9, burst=1e9)}
    budget = RateLimiter(400, at_once=16, now=0.0)
    client = Client(budget, unlimited, {Operation.STATUS: 0.0}, latency=0.4, at_once=16)
    client.run(20, Random(1))
    assert 40 <= budget.rate <= 52
    client.latency = 0.02
    client.run(20, Random(1))
    assert budget.rate == 400


def test_a_cut_begins_from_what_calls_under_way_could_come_to() -> None:
    """And not from a rate that was learnt when answers were faster."""
    rate = Rate(100, at_once=16)
    now = ask_rate(rate, 400, 0.0, latency=0.01)
    assert rate() == 100
    now = ask_rate(rate, 400, now, latency=0.4)
    rate.answered(refused=True, sent=now - 0.4, now=now)
    assert rate() == pytest.approx(0.8 * 16 / 0.4, rel=0.02)


def test_what_was_saved_at_a_rate_that_is_too_much_is_gone() -> None:
    bucket = Bucket(Rate(100, begin=100.0), now=0.0)
    for _ in range(10):
        assert bucket.next_at(1.0) == 1.0
        bucket.take(1.0)
    bucket.answered(refused=False, sent=1.0, now=2.0)
    assert bucket.next_at(2.0) == 2.0
    bucket.answered(refused=True, sent=1.0, now=2.0)
    assert bucket.next_at(2.0) == pytest.approx(2.0 + 1 / 80)


def test_without_refusals_it_is_as_configured_soon_and_never_beyond() -> None:
    server = TokenBucket(lambda _: 1e9, burst=1e9)
    client = Client(RateLimiter(100, now=0.0), {Operation.STATUS: server}, {Operation.STATUS: 0.0})
    client.run(20, Random(1))
    assert client.budget.rate == 100
    assert 990 <= client.granted(10) <= 1001


@pytest.mark.parametrize("latency", [0.3, 2.0, 5.0])
@pytest.mark.parametrize("allowed", [5.0, 10.0, 40.0])
def test_slow_answers_are_waited_for(allowed: float, latency: float) -> None:
    server = TokenBucket(lambda _: allowed, burst=allowed)
    client = Client(
        RateLimiter(400, now=0.0), {Operation.STATUS: server}, {Operation.STATUS: 0.0}, latency=latency
    )
    client.run(600, Random(1))
    assert client.refused(60) <= 0.05
    assert client.granted(60) >= 0.95 * allowed * 540


def test_what_was_too_much_is_the_rate_at_which_the_call_was_sent() -> None:
    rate = Rate(400.0, begin=10.0)
    sent, now = rise(rate, 50.0), rise(rate, 80.0)
    rate.answered(refused=True, sent=sent, now=now)
    assert 0.75 * 50.0 <= rate() <= 0.85 * 50.0


def test_one_refusal_that_took_long_takes_no_more_than_half_of_the_rate_and_a_fifth() -> None:
    rate = Rate(400.0, begin=10.0)
    now = rise(rate, 400.0)
    rate.answered(refused=True, sent=0.0, now=now)
    assert rate() == pytest.approx(0.5 * 0.8 * 400.0, rel=0.05)


def test_a_rate_that_stood_still_meanwhile_is_lowered_by_a_fifth_however_long_a_refusal_took() -> None:
    rate = Rate(400.0, begin=10.0)
    now = rise(rate, 400.0)
    rate.answered(refused=True, sent=now + 60.0, now=now + 85.0)
    assert rate() == pytest.approx(0.8 * 400.0)


def rise(rate: Rate, to: float) -> float:
    """Have it rise by being used; when, if it began at time 0 at 10 a second, it came to be so high."""
    now = math.log2(rate() / 10.0)
    while rate() < to:
        rate.taken(now, used=True)
        now += 1 / rate()
    return now


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rest", [20.0, 60.0])
@pytest.mark.parametrize("part", [0.0, 0.05, 0.125, 0.5, 0.8])
@pytest.mark.parametrize("allowed", [10.0, 20.0, 40.0])
def test_who_asks_little_for_a_while_does_not_ask_too_much_afterwards(
    allowed: float, part: float, rest: float, seed: int
) -> None:
    server = TokenBucket(lambda _: allowed, burst=allowed)
    client = Client(RateLimiter(400, now=0.0), {Operation.STATUS: server})
    random = Random(seed)
    loaded: list[bool] = []
    for cycle in range(8):
        client.share = {Operation.STATUS: 1 / (part * allowed) if part else rest}
        client.run(rest, random)
        client.share, client.due, before = {Operation.STATUS: 0.0}, {}, len(client.calls)
        client.run(10, random)
        if cycle >= 2:
            loaded += [granted for *_, granted in client.calls[before:]]
    assert client.refused(60) <= 0.05
    assert loaded.count(False) <= 0.06 * len(loaded)
    assert loaded.count(True) >= 0.95 * allowed * 60


@pytest.mark.parametrize("late", [0.0, 0.12, 0.5])
def test_who_takes_tokens_late_is_not_taken_for_one_who_asks_little(late: float) -> None:
    budget = RateLimiter(1000, now=0.0)
    now = 0.0
    for _ in range(2000):
        while (at := budget.next_at(Operation.STATUS, now)) == now:
            budget.take(Operation.STATUS, now)
        now = at + late
    assert budget.rate == 1000


def test_what_a_storm_left_of_the_rate_comes_back_for_who_asks_little() -> None:
    storm = TokenBucket(lambda now: 0.0 if now < 30 else 1e9, burst=1e9)
    client = Client(RateLimiter(400, now=0.0), {Operation.STATUS: storm}, {Operation.STATUS: 2.0})
    client.run(30, Random(1))
    assert client.budget.rate < 1
    client.run(600, Random(1))
    assert 10 <= client.budget.rate < 20
    before = client.now
    client.share = {Operation.STATUS: 0.0}
    client.run(20, Random(1))
    assert client.granted(before) > 20 * 10


@pytest.mark.parametrize("storm", [5.0, 120.0])
@pytest.mark.parametrize("allowed", [10.0, 40.0, 400.0])
def test_what_is_allowed_after_a_storm_is_soon_used(allowed: float, storm: float) -> None:
    server = TokenBucket(lambda now: 0.0 if 60 < now < 60 + storm else allowed, burst=10)
    client = Client(RateLimiter(400, now=0.0), {Operation.STATUS: server}, {Operation.STATUS: 0.0})
    client.run(60 + storm + 180, Random(1))
    before = client.now
    client.run(60, Random(1))
    assert client.granted(before) >= 0.85 * allowed * 60


def test_it_comes_back_from_a_storm_within_minutes() -> None:
    stormy = TokenBucket(lambda now: 0.0 if 10 < now < 130 else 1e9, burst=10)
    client = Client(RateLimiter(10, now=0.0), {Operation.STATUS: stormy}, {Operation.STATUS: 0.0})
    client.run(130, Random(1))
    assert client.budget.rate < 1
    client.run(240, Random(1))
    assert client.budget.rate == 10


def test_a_lane_that_is_throttled_alone_is_slowed_alone() -> None:
    free, tight = TokenBucket(lambda _: 1e9, burst=1e9), TokenBucket(lambda _: 5.0, burst=5)
    client = Client(
        RateLimiter(100, now=0.0),
        {Operation.IMAGES: free, Operation.STATUS: tight},
        {Operation.IMAGES: 1 / 30, Operation.STATUS: 0.0},
    )
    client.run(120, Random(1))
    listed = [at for at, operation, _ in client.calls if operation is Operation.IMAGES and at > 60]
    assert len(listed) >= 0.9 * 30 * 60
    assert client.refused(60, Operation.STATUS) <= 0.05
    assert client.budget.rate > 50


def test_refusals_that_meet_everybody_slow_everybody() -> None:
    shared = TokenBucket(steady, burst=10)
    client = Client(
        RateLimiter(400, now=0.0),
        {Operation.IMAGES: shared, Operation.STATUS: shared},
        {Operation.IMAGES: 1 / 15, Operation.STATUS: 0.0},
    )
    client.run(120, Random(1))
    assert client.budget.rate < 60
    assert client.refused(20) <= 0.05


def throttles_alone(operation: Operation, allowed: float, *, since: float) -> dict[Operation, Server]:
    free = TokenBucket(lambda _: 1e9, burst=1e9)
    tight = TokenBucket(lambda now: allowed if now >= since else 1e9, burst=max(1.0, allowed))
    return {**dict.fromkeys(Operation, free), operation: tight}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("allowed", [1.0, 2.0, 3.0, 5.0])
@pytest.mark.parametrize("operation", [Operation.IMAGES, Operation.STATUS])
def test_a_lane_that_is_allowed_next_to_nothing_does_not_hold_up_another_that_never_rests(
    operation: Operation, allowed: float, seed: int
) -> None:
    other = Operation.STATUS if operation is Operation.IMAGES else Operation.IMAGES
    servers = throttles_alone(operation, allowed, since=30)
    client = Client(RateLimiter(40, now=0.0), servers, {operation: 0.0, other: 0.0})
    client.run(240, Random(seed))
    went = sum(granted for at, of, granted in client.calls if of is other and at >= 45)
    assert went >= 0.85 * (40 - allowed) * 195
    assert client.refused(45) <= 0.01
    assert client.refused(45, operation) <= (0.05 if allowed >= 2 else 0.08)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("allowed", [1.0, 2.0, 3.0, 5.0])
def test_a_few_calls_beside_a_lane_that_is_throttled_alone_go_when_they_like(
    allowed: float, seed: int
) -> None:
    servers = throttles_alone(Operation.STATUS, allowed, since=30)
    client = Client(RateLimiter(40, now=0.0), servers, {Operation.STATUS: 0.0, Operation.IMAGES: 6.0 / 40})
    client.run(240, Random(seed))
    went = sum(
        granted for at, operation, granted in client.calls if operation is Operation.IMAGES and at >= 120
    )
    assert went >= 0.95 * 40 / 6 * 120
    used = sum(
        granted for at, operation, granted in client.calls if operation is Operation.STATUS and at >= 120
    )
    assert used >= 0.85 * allowed * 120


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("allowed", [3.0, 5.0, 40.0])
@pytest.mark.parametrize("rare", [0.0, 1.0, 7.0])
def test_whoever_refusals_meet_by_chance_what_is_shared_stays_well_used(
    rare: float, allowed: float, seed: int
) -> None:
    shared = TokenBucket(lambda _: allowed, burst=allowed)
    client = Client(
        RateLimiter(400, now=0.0),
        dict.fromkeys(Operation, shared),
        {Operation.STATUS: 0.0, Operation.IMAGES: rare},
    )
    client.run(900, Random(seed))
    assert client.refused(30) <= 0.05
    assert client.granted(30) >= 0.95 * allowed * 870


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("allowed", [10.0, 20.0])
@pytest.mark.parametrize("phases", [(1.0, 29.0), (2.0, 8.0), (10.0, 50.0), (20.0, 20.0)])
@pytest.mark.parametrize("rare", [0.0, 0.15, 0.5])
def test_operations_that_take_turns_on_what_is_shared_are_seldom_refused(
    rare: float, phases: tuple[float, float], allowed: float, seed: int
) -> None:
    """Listings in bursts, then status calls with listings now and then: chance looks like blame here."""
    shared = TokenBucket(lambda _: allowed, burst=allowed)
    client = Client(RateLimiter(400, now=0.0), dict.fromkeys(Operation, shared), {Operation.STATUS: 0.0})
    random = Random(seed)
    alone, both = phases
    while client.now < 600:
        client.share = {Operation.IMAGES: 0.0}
        client.run(alone * random.uniform(0.6, 1.4), random)
        client.share = {Operation.IMAGES: rare, Operation.STATUS: 0.0}
        client.run(both * random.uniform(0.6, 1.4), random)
    assert client.refused(30) <= 0.05
    assert client.granted(30) >= 0.9 * allowed * (client.now - 30)


@dataclass
class Both:
    """A server that allows what each of two allows."""

    one: TokenBucket
    other: TokenBucket

    def allows(self, now: float) -> bool:
        return self.one.allows(now) and self.other.allows(now)


@pytest.mark.parametrize("burst", [5.0, 40.0])
@pytest.mark.parametrize("alone", [2.0, 5.0, 8.0, 15.0])
def test_a_lane_that_is_throttled_alone_beside_what_all_share(alone: float, burst: float) -> None:
    shared = TokenBucket(steady, burst=burst)
    tight = TokenBucket(lambda _: alone, burst=alone)
    servers: dict[Operation, Server] = {
        **dict.fromkeys(Operation, shared),
        Operation.STATUS: Both(tight, shared),
    }
    client = Client(RateLimiter(400, now=0.0), servers, {Operation.STATUS: 0.0, Operation.IMAGES: 0.0})
    client.run(400, Random(1))
    assert client.refused(30) <= 0.04
    assert client.granted(30) >= 0.95 * 40 * 370


def throttled_each(status: float, images: float) -> Client:
    """Asks for both as fast as it may of a server that allows so many a second of each."""
    servers = {
        Operation.STATUS: TokenBucket(lambda _: status, burst=status),
        Operation.IMAGES: TokenBucket(lambda _: images, burst=images),
    }
    return Client(RateLimiter(400, now=0.0), servers, {Operation.STATUS: 0.0, Operation.IMAGES: 0.0})


@pytest.mark.parametrize(("status", "images"), [(5.0, 2.0), (5.0, 4.0), (20.0, 5.0), (3.0, 40.0)])
def test_lanes_that_are_throttled_each_for_itself_use_what_each_is_allowed(
    status: float, images: float
) -> None:
    client = throttled_each(status, images)
    client.run(400, Random(1))
    assert client.refused(60) <= 0.04
    for operation, allowed in ((Operation.STATUS, status), (Operation.IMAGES, images)):
        went = sum(granted for at, of, granted in client.calls if of is operation and at >= 60)
        assert went >= 0.9 * allowed * 340


def ask(budget: RateLimiter, operation: Operation, calls: int, now: float, *, refused: bool = False) -> float:
    for _ in range(calls):
        now = budget.next_at(operation, now)
        budget.take(operation, now)
        budget.answered(operation, refused=refused, sent=now, now=now + 0.01)
        now += 0.01
    return now


@pytest.mark.parametrize("early", [0, 1, 2, 3, 10])
def test_refusals_of_a_time_when_one_lane_asked_alone_are_not_held_against_it(early: int) -> None:
    budget = RateLimiter(40, now=0.0)
    now = ask(budget, Operation.IMAGES, 20, 0.0)
    now = ask(budget, Operation.IMAGES, early, now, refused=True)
    for _ in range(20):
        now = ask(budget, Operation.STATUS, 99, now)
        now = ask(budget, Operation.IMAGES, 1, now)
    rate = budget.rate
    now = ask(budget, Operation.IMAGES, 1, now, refused=True)
    assert budget.rate >= 0.75 * rate


@pytest.mark.parametrize("operation", list(Operation))
def test_a_few_refusals_of_one_among_the_calls_of_others_are_meant_for_it(operation: Operation) -> None:
    budget = RateLimiter(40, now=0.0)
    other = Operation.IMAGES if operation is Operation.STATUS else Operation.STATUS
    now = 0.0
    for _ in range(6):
        now = ask(budget, other, 20, now)
        now = ask(budget, operation, 1, now, refused=True)
    now = ask(budget, other, 200, now)
    assert budget.rate == 40
    assert budget.next_at(other, now + 1) == now + 1
    now = ask(budget, operation, 11, now + 1)
    asked = [now := ask(budget, operation, 1, now) for _ in range(11)]
    assert asked[-1] - asked[0] > 10 / 30, "its own rate is lower"


def test_who_asks_is_told_by_more_than_the_latest_turn() -> None:
    budget = RateLimiter(40, now=0.0)
    now = 0.0
    for _ in range(10):
        now = ask(budget, Operation.STATUS, 20, now)
        now = ask(budget, Operation.IMAGES, 19, now)
        now = ask(budget, Operation.IMAGES, 1, now, refused=True)
    assert not lowers(budget, Operation.IMAGES, now)


@pytest.mark.parametrize("pause", [0.0, 20.0, 3600.0])
def test_refusals_say_the_same_however_far_apart_they_come(pause: float) -> None:
    budget = RateLimiter(40, now=0.0)
    now = 0.0
    for _ in range(40):
        for operation in (Operation.STATUS,) * 4 + (Operation.IMAGES,):
            now = ask(budget, operation, 1, now)
        now = ask(budget, Operation.STATUS, 1, now, refused=True) + pause
    now = ask(budget, Operation.IMAGES, 200, now)
    assert budget.rate == 40


def lowers(budget: RateLimiter, operation: Operation, now: float) -> bool:
    """Whether a refusal of the operation lowers the rate of all."""
    now = ask(budget, operation, 1, now + 1)
    rate = budget.rate
    ask(budget, operation, 1, now, refused=True)
    return budget.rate < 0.9 * rate


def split(ceiling: float, *, at_once: float = math.inf) -> tuple[RateLimiter, float]:
    """A budget whose listings have a rate of their own, and the time."""
    budget = RateLimiter(ceiling, at_once=at_once, now=0.0)
    now = ask(budget, Operation.STATUS, 200, 0.0)
    for _ in range(4):
        now = ask(budget, Operation.IMAGES, 1, now + 1, refused=True)
    assert not lowers(deepcopy(budget), Operation.IMAGES, now)
    return budget, now


def test_who_is_left_when_a_lane_gets_its_own_rate_has_no_more_calls_under_way_than_before() -> None:
    budget, now = split(400, at_once=16)
    unlimited = {Operation.STATUS: TokenBucket(lambda _: 1e9, burst=1e9, at=now)}
    client = Client(budget, unlimited, {Operation.STATUS: 0.0}, latency=0.4, at_once=16, now=now)
    client.run(30, Random(1))
    assert 40 <= budget.rate <= 64


def test_the_first_refusal_of_the_others_counts() -> None:
    budget, now = split(400)
    assert lowers(budget, Operation.STATUS, now)


def test_who_shares_again_is_judged_anew() -> None:
    budget, now = split(8)
    budget.configure(400)
    now = ask(budget, Operation.STATUS, 100, now)
    for _ in range(1000):
        if budget._own:
            now = ask(budget, Operation.IMAGES, 1, now)
    for _ in range(3):
        assert lowers(budget, Operation.IMAGES, now)
        now += 10


def test_a_lane_that_got_its_own_rate_by_mistake_shares_again() -> None:
    budget, now = split(400)
    shared = TokenBucket(steady, burst=4, at=now + 1)
    client = Client(
        budget, dict.fromkeys(Operation, shared), {Operation.STATUS: 0.0, Operation.IMAGES: 0.0}, now=now + 1
    )
    client.run(120, Random(1))
    assert lowers(budget, Operation.IMAGES, client.now)
    assert client.refused(now + 10) <= 0.05


@pytest.mark.parametrize("every", [0.06, 0.2, 1.0, 5.0])
def test_also_one_that_asks_little_shares_again_when_it_asks_more(every: float) -> None:
    budget, now = split(400)
    shared = TokenBucket(steady, burst=4, at=now + 1)
    client = Client(
        budget,
        dict.fromkeys(Operation, shared),
        {Operation.STATUS: 0.0, Operation.IMAGES: every},
        now=now + 1,
    )
    client.run(600, Random(1))
    client.share, client.due = {Operation.IMAGES: 0.0}, {}
    client.run(30, Random(1))
    since = client.now
    client.run(30, Random(1))
    assert client.granted(since) >= 0.95 * 40 * 30


@pytest.mark.parametrize("listings", [15.0, 1e9])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("allowed", [12.0, 15.0, 25.0])
def test_one_that_is_throttled_alone_and_asks_little_for_a_while(
    allowed: float, part: float, listings: float
) -> None:
    client = Client(RateLimiter(100, now=0.0), throttles_alone(Operation.STATUS, allowed, since=0))
    random, loaded = Random(1), []
    client.share = {Operation.STATUS: 0.0, Operation.IMAGES: 1 / listings}
    client.run(60, random)
    for _ in range(8):
        client.share[Operation.STATUS] = 1 / (part * allowed)
        client.run(60, random)
        client.share[Operation.STATUS], client.due, before = 0.0, {}, len(client.calls)
        client.run(10, random)
        loaded += [
            granted for _, operation, granted in client.calls[before:] if operation is Operation.STATUS
        ]
    assert client.refused(60, Operation.STATUS) <= 0.05
    assert loaded.count(False) <= 0.06 * len(loaded)
    listed = sum(operation is Operation.IMAGES for at, operation, _ in client.calls if at >= 60)
    assert listed >= 0.95 * min(listings, 100 - allowed) * 560


@pytest.mark.parametrize(("status", "images"), [(2.0, 11.0), (3.0, 12.0), (5.0, 14.0)])
def test_one_that_waits_for_its_own_rate_does_not_raise_that_of_the_others(
    status: float, images: float
) -> None:
    client = throttled_each(status, images)
    random, loaded = Random(1), []
    client.run(120, random)
    for _ in range(10):
        client.share[Operation.IMAGES] = 0.5
        client.run(60, random)
        client.share[Operation.IMAGES], client.due, before = 0.0, {}, len(client.calls)
        client.run(10, random)
        loaded += [
            granted for _, operation, granted in client.calls[before:] if operation is Operation.IMAGES
        ]
    assert loaded.count(False) <= 0.03 * len(loaded)


def test_bursts_of_listings_beside_a_stream_of_status_calls_share_their_refusals() -> None:
    shared = TokenBucket(steady, burst=10)
    client = Client(RateLimiter(400, now=0.0), dict.fromkeys(Operation, shared), {Operation.STATUS: 0.0})
    random = Random(1)
    for _ in range(10):
        client.share = {Operation.IMAGES: 0.0}
        client.run(1.0, random)
        client.share = {Operation.IMAGES: 0.5, Operation.STATUS: 0.0}
        client.run(29.0, random)
    assert client.refused(WARM) <= 0.05
    for start in range(10, 300, 5):
        granted = sum(granted for at, _, granted in client.calls if start <= at < start + 5)
        assert granted >= 0.75 * 5 * 40, start


def test_an_idle_client_learns_nothing_and_does_not_burst() -> None:
    rate = Rate(400)
    bucket = Bucket(rate, now=0.0)
    now = 0.0
    for _ in range(100):
        now = bucket.next_at(now)
        bucket.take(now)
    rate.answered(refused=True, sent=now, now=now)
    before = rate()
    bucket.take(now + 3600)
    assert rate() < before * 1.2


@given(
    st.floats(0.5, 1000),
    st.lists(st.floats(0.0, 5.0), min_size=1, max_size=200),
)
def test_no_window_ever_sees_more_than_the_rate_and_a_tenth_of_a_second(
    ceiling: float, pauses: list[float]
) -> None:
    budget = RateLimiter(ceiling, now=0.0)
    now, taken = 0.0, []
    for pause in pauses:
        now = max(now + pause, budget.next_at(Operation.STATUS, now + pause))
        budget.take(Operation.STATUS, now)
        taken.append(now)
    burst = max(1.0, ceiling / 10)
    for first in range(0, len(taken), 7):
        for last in range(first, len(taken), 5):
            assert last - first + 1 <= ceiling * (taken[last] - taken[first]) + burst + 1e-6


@given(
    st.floats(0.05, 10_000),
    st.floats(0, 1e8),
    st.lists(
        st.tuples(st.sampled_from(Operation), st.booleans(), st.floats(0, 30), st.floats(0, 60)), max_size=300
    ),
)
def test_whatever_is_refused_every_lane_goes_on_and_none_beyond_the_ceiling(
    ceiling: float, start: float, calls: list[tuple[Operation, bool, float, float]]
) -> None:
    budget = RateLimiter(ceiling, now=start)
    now = start
    for operation, refused, pause, latency in calls:
        now += pause
        at = budget.next_at(operation, now)
        assert now <= at <= now + 2 / min(ceiling, 0.2)
        now = budget.next_at(operation, at)
        budget.take(operation, now)
        budget.answered(operation, refused=refused, sent=now, now=now + latency)
        assert 0 < budget.rate <= ceiling


def test_a_new_ceiling_keeps_what_was_learnt() -> None:
    client = Client(
        RateLimiter(400, now=0.0), {Operation.STATUS: TokenBucket(steady, 2)}, {Operation.STATUS: 0.0}
    )
    client.run(30, Random(1))
    learnt = client.budget.rate
    client.budget.configure(300)
    assert client.budget.rate == learnt
    client.budget.configure(20)
    assert client.budget.rate == 20


@pytest.mark.parametrize("refused", [False, True])
def test_a_higher_ceiling_is_approached_from_what_was_learnt_below_the_lower(refused: bool) -> None:
    client = Client(
        RateLimiter(20, now=0.0), {Operation.STATUS: TokenBucket(steady, 40)}, {Operation.STATUS: 0.0}
    )
    now = ask(client.budget, Operation.STATUS, 50, 0.0)
    client.now = ask(client.budget, Operation.STATUS, 1, now, refused=refused)
    client.run(60, Random(1))
    client.budget.configure(400)
    assert client.budget.rate < 25
    changed = client.now
    client.run(30, Random(1))
    assert client.refused(changed) <= 0.05


@pytest.mark.parametrize("pause", [2.0, 600.0])
def test_a_refusal_long_after_another_counts_though_nothing_was_asked_meanwhile(pause: float) -> None:
    budget = RateLimiter(40, now=0.0)
    now = ask(budget, Operation.STATUS, 50, 0.0)
    now = ask(budget, Operation.STATUS, 1, now, refused=True) + pause
    rate = budget.rate
    ask(budget, Operation.STATUS, 1, now, refused=True)
    assert budget.rate < 0.9 * rate


def test_only_the_first_refusal_may_be_somebody_elses_fault() -> None:
    budget = RateLimiter(40, now=0.0)
    now = ask(budget, Operation.STATUS, 50, 0.0)
    now = ask(budget, Operation.STATUS, 1, now, refused=True) + 1
    now = ask(budget, Operation.STATUS, 2, now)
    rate = budget.rate
    ask(budget, Operation.STATUS, 1, now, refused=True)
    assert budget.rate < 0.9 * rate


@given(st.floats(0.5, 10_000), st.floats(0, 1e8))
def test_who_waits_for_tokens_gets_the_whole_rate(rate: float, start: float) -> None:
    bucket = Bucket(Rate(rate, begin=rate), now=start)
    now = start
    for _ in range(200):
        now = bucket.next_at(now)
        assert bucket.next_at(now) == now, "clocks round, tokens do not vanish"
        bucket.take(now)
    assert now - start <= 200 / rate + 1e-5


def test_a_small_budget_is_kept_also_after_a_refusal() -> None:
    rate = Rate(0.05)
    for now in range(40):
        rate.taken(now, used=True)
        rate.answered(refused=True, sent=now, now=now + 0.1)
        assert rate() <= 0.05
