"""Which replications the histogram counts, and with how many seconds, in virtual time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.fakes import (
    ALL,
    HOME,
    IRELAND,
    OREGON,
    STATUS,
    FakeECR,
    Rig,
    complete,
    denied,
    pushed,
    refusal,
    settings,
    world,
)

from exporter.config.settings import TargetSettings
from exporter.replication.model import Destination, Reason, Replication, Rule, Status

UNDER_WAY = Replication(IRELAND, Status.IN_PROGRESS)
FAILED = Replication(IRELAND, Status.FAILED, "X")
DAY = 86400.0


def watched(ecr: FakeECR, **knobs: Any) -> Rig:
    """A rig that has listed the only repository."""
    ecr.report("team/app", pushed(ecr, tag="old", age=30 * DAY), complete())
    rig = world(ecr, **knobs)
    rig.run(100)
    assert rig.completions == []
    return rig


def push(rig: Rig, *states: Replication, tag: str = "v1") -> str:
    digest = rig.ecr.push("team/app", tag, at=rig.clock.time())
    rig.ecr.report("team/app", digest, *states)
    return digest


def durations(rig: Rig) -> list[tuple[Destination, float]]:
    assert all(source == HOME for source, _, _ in rig.completions)
    return [(destination, seconds) for _, destination, seconds in rig.completions]


def test_an_image_that_is_complete_at_its_first_answer_counts_with_an_upper_bound() -> None:
    """Most images replicate in 2 to 4 seconds, long before the next listing."""
    rig = watched(FakeECR())
    for number in range(10):
        push(rig, complete(), tag=f"v{number}")
        rig.run(100)
    seconds = [seconds for _, seconds in durations(rig)]
    assert len(seconds) == 10
    assert all(0 < each <= 61 for each in seconds)
    rig.run(DAY)
    assert len(rig.completions) == 10


def test_an_image_counts_once_for_each_destination() -> None:
    ecr = FakeECR(rules=(Rule((IRELAND, OREGON)),))
    ecr.report("team/app", pushed(ecr, tag="old", age=30 * DAY), complete(), complete(OREGON))
    rig = world(ecr)
    rig.run(100)
    digest = push(rig, UNDER_WAY, complete(OREGON))
    rig.run(300)
    assert [destination for destination, _ in durations(rig)] == [OREGON]
    ecr.report("team/app", digest, complete(), complete(OREGON))
    rig.run(300)
    assert [destination for destination, _ in durations(rig)] == [OREGON, IRELAND]
    assert 300 <= durations(rig)[1][1] <= 300 * 9 / 8, "it is asked about after an eighth of its age"
    for states in ((UNDER_WAY, complete(OREGON)), (complete(), complete(OREGON))):
        ecr.report("team/app", digest, *states)
        rig.run(DAY / 2)
    assert len(rig.completions) == 2


def test_images_that_are_older_than_the_first_listing_do_not_count() -> None:
    ecr = FakeECR()
    digests = [pushed(ecr, tag="new", age=3), pushed(ecr, tag="old", age=9999)]
    ecr.report("team/app", digests[0], UNDER_WAY)
    rig = world(ecr)
    rig.run(100)
    for digest in digests:
        ecr.report("team/app", digest, complete())
    rig.run(1000)
    assert all(states == {IRELAND: "COMPLETE"} for states in rig.states().values())
    assert rig.completions == []


@pytest.mark.parametrize("before", [(), (UNDER_WAY,)], ids=["missing", "in progress"])
def test_a_backfill_of_an_old_image_does_not_count(before: tuple[Replication, ...]) -> None:
    ecr = FakeECR()
    digest = pushed(ecr, age=60 * DAY)
    rig = world(ecr)
    rig.run(100)
    for states in (before, (UNDER_WAY,), (complete(),)):
        ecr.report("team/app", digest, *states)
        rig.run(700)
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "COMPLETE"}}
    assert rig.completions == []


@pytest.mark.parametrize("state", [(), (FAILED,)], ids=["missing", "failed"])
def test_what_is_not_under_way_an_hour_after_its_push_is_completed_by_something_else(
    state: tuple[Replication, ...],
) -> None:
    rig = watched(FakeECR())
    digest = push(rig, *state)
    rig.run(4500)
    for states in ((UNDER_WAY,), (complete(),)):
        rig.ecr.report("team/app", digest, *states)
        rig.run(700)
    assert rig.states()["team/app", "v1", ""] == {IRELAND: "COMPLETE"}
    assert rig.completions == []


def test_what_ecr_reports_late_and_what_stays_under_way_for_hours_counts() -> None:
    rig = watched(FakeECR())
    digest = push(rig)
    rig.run(200)
    assert rig.states()["team/app", "v1", ""] == {IRELAND: "MISSING"}
    rig.ecr.report("team/app", digest, UNDER_WAY)
    rig.run(9000)
    rig.ecr.report("team/app", digest, complete())
    rig.run(400)
    ((destination, seconds),) = durations(rig)
    assert destination == IRELAND
    assert 9200 <= seconds <= 9600


def test_a_destination_that_a_later_rule_adds_is_a_backfill() -> None:
    rig = watched(FakeECR())
    digest = push(rig, complete())
    rig.run(100)
    assert len(rig.completions) == 1
    rig.ecr.rules = (Rule((IRELAND, OREGON)),)
    rig.run(300)
    assert rig.states()["team/app", "v1", ""] == {IRELAND: "COMPLETE", OREGON: "MISSING"}
    for status in (Status.IN_PROGRESS, Status.COMPLETE):
        rig.ecr.report("team/app", digest, complete(), Replication(OREGON, status))
        rig.run(400)
    assert len(rig.completions) == 1


def test_a_restore_from_the_archive_does_not_count() -> None:
    rig = watched(FakeECR())
    (digest,) = rig.ecr.repositories["team/app"]
    image = rig.ecr.repositories["team/app"][digest]
    rig.ecr.repositories["team/app"][digest] = replace(image, activated_at=rig.clock.time())
    rig.ecr.report("team/app", digest, UNDER_WAY)
    rig.run(200)
    rig.ecr.report("team/app", digest, complete())
    rig.run(200)
    assert rig.states()["team/app", "old", ""] == {IRELAND: "COMPLETE"}
    assert rig.completions == []


def test_an_image_that_was_pushed_during_a_gap_does_not_count() -> None:
    rig = watched(FakeECR(), stale_after=600.0)
    rig.ecr.fault = lambda operation, _: (
        refusal(Reason.UNAVAILABLE) if operation == "DescribeImages" else None
    )
    rig.run(300)
    push(rig, complete())
    rig.run(900)
    rig.ecr.fault = lambda *_: None
    rig.run(200)
    assert ("team/app", "v1", "") in rig.states()
    assert rig.completions == []
    push(rig, complete(), tag="v2")
    rig.run(200)
    assert len(rig.completions) == 1


def test_an_image_that_is_selected_long_after_its_push_does_not_count() -> None:
    ecr = FakeECR()
    rig = watched(ecr, max_images=100)
    rig.poller.configure(settings(TargetSettings(repository="team/app", tags=("v*", "old"))))
    rig.run(100)
    digest = push(rig, complete(), tag="build-1")
    rig.run(600)
    assert ("team/app", "build-1", "") not in rig.states()
    at = ecr.repositories["team/app"][digest].pushed_at
    ecr.push("team/app", "v1", at=at, digest=digest)
    rig.run(200)
    assert ("team/app", "v1", "") in rig.states()
    assert rig.completions == []


def test_reloads_count_nothing_twice_and_lose_nothing_that_was_seen() -> None:
    rig = watched(FakeECR())
    done, digest = push(rig, complete(), tag="v1"), push(rig, UNDER_WAY, tag="v2")
    rig.run(100)
    assert len(rig.completions) == 1
    for changed in (
        settings(TargetSettings(repository="team/*")),
        settings(TargetSettings(repository="team/*"), ALL, pending_interval=30.0),
        settings(TargetSettings(repository="team/app", tag="v2")),
        settings(ALL),
    ):
        rig.poller.configure(changed)
        rig.run(100)
    assert len(rig.completions) == 1
    assert done != digest
    rig.ecr.report("team/app", digest, complete())
    rig.run(100)
    assert len(rig.completions) == 2
    rig.run(DAY)
    assert len(rig.completions) == 2


def test_an_image_that_max_images_left_out_for_a_while_counts_once() -> None:
    rig = watched(FakeECR(page_size=1000), max_images=2, discovery_interval=2.0)
    push(rig, complete(), tag="v1")
    rig.run(3)
    newer = [push(rig, complete(), tag=f"n{number}") for number in range(3)]
    rig.run(3)
    for digest in newer:
        del rig.ecr.repositories["team/app"][digest]
    rig.run(10)
    assert ("team/app", "v1", "") in rig.states()
    assert len(rig.completions) == 1 + 2, "v1, and two of the newer ones"


def test_without_rules_a_push_that_nothing_is_reported_of_is_waited_for_an_hour() -> None:
    ecr = FakeECR()
    ecr.fault = denied("DescribeRegistry")
    rig = watched(ecr)
    slow, never = push(rig, tag="v1"), push(rig, tag="v2")
    rig.run(600)
    ecr.report("team/app", slow, complete())
    rig.run(4500)
    assert len(rig.completions) == 1
    ecr.report("team/app", never, UNDER_WAY)
    rig.run(7 * 3600)
    ecr.report("team/app", never, complete())
    rig.run(7 * 3600)
    assert rig.states()["team/app", "v2", ""] == {IRELAND: "COMPLETE"}
    assert len(rig.completions) == 1


def test_a_status_call_that_fails_for_long_loses_no_duration() -> None:
    rig = watched(FakeECR())
    push(rig, complete())
    rig.ecr.fault = lambda operation, _: refusal(Reason.THROTTLED) if operation == STATUS else None
    rig.run(900)
    rig.ecr.fault = lambda *_: None
    rig.run(100)
    assert len(rig.completions) == 1


def test_a_destination_is_known_as_soon_as_the_rules_name_it() -> None:
    """rate() does not see the first replication of a histogram that begins with it."""
    ecr = FakeECR(rules=(Rule((IRELAND,)), Rule((OREGON,), ("team/",), ("team/",))))
    rig = world(ecr)
    rig.run(10)
    assert rig.destinations == {(HOME, IRELAND), (HOME, OREGON)}
    assert rig.completions == []
