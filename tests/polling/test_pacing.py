"""What may go when: intervals, their random part, and a pause of everything."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import ALL, FakeClock, settings

from exporter.polling.calls import Job
from exporter.polling.pacing import Pacing
from exporter.polling.queue import PROBE_TIMEOUT
from exporter.polling.rate_limit import Operation
from exporter.replication.model import ImageState

JOBS = [Job(Operation.STATUS, "team/app", digest) for digest in "abc"]


def pacing_at(clock: FakeClock, *, seed: int = 0, **intervals: float) -> Pacing:
    return Pacing(clock=clock, random=Random(seed), settings=settings(ALL, **intervals))


@given(st.floats(0, 1e9), st.integers())
def test_an_interval_is_shortened_by_a_tenth_at_most_and_never_lengthened(seconds: float, seed: int) -> None:
    assert 0.9 * seconds <= pacing_at(FakeClock(now=0.0), seed=seed).later(seconds) <= seconds


def test_the_shortening_uses_the_whole_tenth() -> None:
    pacing = pacing_at(FakeClock(now=0.0))
    times = [pacing.later(100) for _ in range(1000)]
    assert min(times) < 90.5
    assert max(times) > 99.5


@pytest.mark.parametrize(
    ("state", "interval"),
    [
        (ImageState.PENDING, 2),
        (ImageState.FAILED, 3),
        (ImageState.UNKNOWN, 3),
        (ImageState.SETTLED, 4),
    ],
)
def test_how_long_an_answer_is_good_for_follows_from_the_state(state: ImageState, interval: float) -> None:
    pacing = pacing_at(FakeClock(), pending_interval=2.0, failed_interval=3.0, settled_interval=4.0)
    assert pacing.interval(state, age=10.0) == interval


@pytest.mark.parametrize(
    ("failed", "ages"), [(300.0, {0: 15, 120: 15, 240: 30, 2400: 300, 3600: 300}), (5.0, {0: 15, 3600: 15})]
)
def test_the_interval_of_a_pending_image_grows_with_its_age(failed: float, ages: dict[float, float]) -> None:
    pacing = pacing_at(FakeClock(), pending_interval=15.0, failed_interval=failed)
    assert {age: pacing.interval(ImageState.PENDING, age=age) for age in ages} == ages


def test_listings_of_images_can_be_kept_back() -> None:
    clock = FakeClock(now=0.0)
    pacing = pacing_at(clock)
    listing = Job(Operation.IMAGES, "team/app")
    pacing.book(listing)
    assert pacing.take((), listings=False) == float("inf"), "nothing else is due"
    pacing.book(JOBS[0])
    assert pacing.take((), listings=False) == JOBS[0]
    clock.now = 1.0
    assert pacing.take(()) == listing


def test_a_pause_lets_one_probe_go_at_a_time() -> None:
    clock = FakeClock(now=0.0)
    pacing = pacing_at(clock)
    for job in JOBS:
        pacing.book(job)
    pacing.pause(until=100.0)
    assert pacing.take(set()) == 100.0
    assert pacing.overdue_since() is None, "what is paused is not overdue"
    clock.now = 100.0
    assert pacing.take(set()) == JOBS[0]
    assert pacing.take(set()) == 100.0 + PROBE_TIMEOUT
    pacing.resume()
    clock.now = 101.0
    assert pacing.take(set()) == JOBS[1]
    assert pacing.overdue_since() == 0.0


def test_a_job_in_flight_is_not_the_probe() -> None:
    clock = FakeClock(now=0.0)
    pacing = pacing_at(clock)
    for job in JOBS[:2]:
        pacing.book(job)
    pacing.pause(until=0.0)
    assert pacing.take({JOBS[0]}) == JOBS[1]
