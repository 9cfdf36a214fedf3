"""Status calls in virtual time: when an image is asked for, and what the answers show."""

from __future__ import annotations

import pytest
from support.fakes import (
    ALL,
    IRELAND,
    OREGON,
    STATUS,
    FakeECR,
    Rig,
    Together,
    complete,
    pushed,
    refusal,
    settings,
    world,
)

from exporter.aws.errors import ECRError
from exporter.replication.model import (
    ImageState,
    Reason,
    Replication,
    Rule,
    Status,
)


def test_every_reported_state_is_told() -> None:
    ecr = FakeECR(rules=(Rule((IRELAND, OREGON)),))
    digest = pushed(ecr)
    ecr.report("team/app", digest, complete(), Replication(OREGON, Status.FAILED, "DENIED"))
    rig = world(ecr)
    rig.run(5)
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "COMPLETE", OREGON: "FAILED"}}
    assert rig.target("*").success is True
    assert rig.target("*").images == 1


def test_what_the_rules_owe_and_ecr_does_not_report_is_missing() -> None:
    ecr = FakeECR(rules=(Rule((IRELAND,)), Rule((OREGON,), ("other/",), ("other/",))))
    pushed(ecr)
    rig = world(ecr)
    rig.run(5)
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "MISSING"}}


def test_an_unknown_status_is_told_by_its_own_name_and_noted_once() -> None:
    ecr = FakeECR()
    digest = pushed(ecr)
    ecr.report("team/app", digest, Replication(IRELAND, "TELEPORTED"))
    rig = world(ecr)
    rig.run(600)
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "TELEPORTED"}}
    noted = [fields for event, fields in rig.journal.events if event == "unknown_status"]
    assert [fields["status"] for fields in noted] == ["TELEPORTED"]


def test_settled_images_are_not_asked_again_before_their_interval() -> None:
    ecr = FakeECR()
    for number in range(20):
        digest = pushed(ecr, tag=f"v{number}", age=9999)
        ecr.report("team/app", digest, complete())
    rig = world(ecr, settled_interval=7200.0)
    rig.run(60)
    assert ecr.calls[STATUS] == 20
    rig.run(6000)
    assert ecr.calls[STATUS] == 20
    rig.run(1500)
    assert ecr.calls[STATUS] == 40


def test_one_call_serves_all_tags_of_a_digest() -> None:
    ecr = FakeECR()
    digest = ecr.push("team/app", "v1", "latest", "stable", at=1.8e9)
    ecr.report("team/app", digest, complete())
    rig = world(ecr)
    rig.run(50)
    assert ecr.calls[STATUS] == 1
    assert {tag for _, tag, _ in rig.states()} == {"v1", "latest", "stable"}


def test_a_pending_image_is_asked_at_the_pending_interval() -> None:
    ecr = FakeECR()
    digest = pushed(ecr, age=5)
    ecr.report("team/app", digest, Replication(IRELAND, Status.IN_PROGRESS))
    rig = world(ecr, pending_interval=15.0)
    rig.run(31)
    assert ecr.calls[STATUS] == 3
    ecr.report("team/app", digest, complete())
    rig.run(16)
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "COMPLETE"}}


@pytest.mark.parametrize("reported", [(), (Replication(IRELAND, Status.IN_PROGRESS),)])
def test_a_push_that_does_not_replicate_costs_forty_calls_in_its_first_hour(
    reported: tuple[Replication, ...],
) -> None:
    """At the default intervals. In the first two minutes it is asked for at each pending_interval."""
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr, age=0), *reported)
    rig = world(ecr)
    rig.run(120)
    assert 8 <= ecr.calls[STATUS] <= 10
    rig.run(3480)
    assert 35 <= ecr.calls[STATUS] <= 45
    rig.run(3600)
    assert ecr.calls[STATUS] <= 60, "12 to 14 calls at the failed_interval"
    (states,) = rig.states().values()
    assert set(states.values()) == {"IN_PROGRESS" if reported else "MISSING"}


@pytest.mark.parametrize("after", [200.0, 1000.0, 3000.0])
def test_the_end_of_a_replication_is_seen_within_an_eighth_of_its_time(after: float) -> None:
    ecr = FakeECR()
    digest = pushed(ecr, age=0)
    ecr.report("team/app", digest, Replication(IRELAND, Status.IN_PROGRESS))
    rig = world(ecr)
    rig.run(after)
    ecr.report("team/app", digest, complete())
    rig.run(after / 8 + 1)
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "COMPLETE"}}


def test_long_stuck_images_are_asked_at_the_failed_interval() -> None:
    ecr = FakeECR()
    digest = pushed(ecr, age=8000)
    ecr.report("team/app", digest, Replication(IRELAND, Status.IN_PROGRESS))
    rig = world(ecr, failed_interval=300.0)
    rig.run(901)
    assert 4 <= ecr.calls[STATUS] <= 5


def test_a_digest_pushed_again_is_asked_again() -> None:
    ecr = FakeECR()
    digest = pushed(ecr, age=9000)
    ecr.report("team/app", digest, complete())
    rig = world(ecr)
    rig.run(5)
    ecr.push("team/app", "v1", at=1.8e9 + 1005, digest=digest)
    ecr.report("team/app", digest, Replication(IRELAND, Status.FAILED, "X"))
    rig.run(65)
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "FAILED"}}


def test_denied_status_calls_are_held_back_as_one() -> None:
    ecr = FakeECR()
    for number in range(50):
        pushed(ecr, tag=f"v{number}")
    ecr.fault = lambda op, _: refusal(Reason.ACCESS_DENIED) if op == STATUS else None
    rig = world(ecr)
    rig.run(600)
    assert ecr.calls[STATUS] < 30
    assert rig.states() == {("team/app", f"v{n}", ""): {} for n in range(50)}
    assert rig.target("*").reasons == {Reason.ACCESS_DENIED}
    ecr.fault = lambda *_: None
    rig.run(65)
    assert rig.target("*").success is True
    assert all(states == {IRELAND: "MISSING"} for states in rig.states().values())


def test_a_status_that_is_never_found_is_a_failure() -> None:
    ecr = FakeECR()
    pushed(ecr)
    ecr.fault = lambda op, _: refusal(Reason.IMAGE_NOT_FOUND) if op == STATUS else None
    rig = world(ecr)
    rig.run(20)
    assert rig.target("*").success is None
    rig.run(400)
    assert rig.target("*").reasons == {Reason.IMAGE_NOT_FOUND}


def test_one_image_that_gets_no_answer_does_not_hold_up_the_others() -> None:
    ecr = FakeECR()
    poison = pushed(ecr, tag="poison", age=-1)
    for number in range(20):
        ecr.report("team/app", pushed(ecr, tag=f"v{number}"), complete())

    def fault(operation: str, _: str) -> ECRError | None:
        poisoned = operation == STATUS and ecr.log[-1][2] == poison
        return refusal(Reason.UNAVAILABLE) if poisoned else None

    ecr.fault = fault
    rig = world(ecr)
    rig.run(10)
    assert sum(bool(states) for states in rig.states().values()) == 20
    for _ in range(20):
        rig.run(5)
        assert rig.target("*").reasons == {Reason.UNAVAILABLE}


def test_new_pushes_overtake_a_backlog() -> None:
    ecr = FakeECR(page_size=1000)
    for number in range(300):
        pushed(ecr, tag=f"v{number}", age=10000 + number)
    rig = world(ecr, requests_per_second=1.0)
    rig.run(20)
    asked = len(ecr.log)
    digest = pushed(ecr, tag="new", age=-60)
    rig.run(70)
    rows = ecr.log[asked:]
    listed = next(i for i, row in enumerate(rows) if row[0] == "DescribeImages")
    assert (STATUS, "team/app", digest) in rows[listed : listed + 5]


def test_a_shorter_interval_counts_from_the_last_answer() -> None:
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr, age=9000), complete())
    rig = world(ecr, settled_interval=7200.0)
    rig.run(1000)
    rig.poller.configure(settings(ALL, settled_interval=1500.0))
    rig.run(300)
    assert ecr.calls[STATUS] == 1
    rig.run(250)
    assert ecr.calls[STATUS] == 2


def test_states_are_counted() -> None:
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr, tag="ok"), complete())
    ecr.report("team/app", pushed(ecr, tag="bad"), Replication(IRELAND, Status.FAILED, "X"))
    pushed(ecr, tag="new")
    rig = world(ecr)
    rig.run(5)
    states = rig.store.states(rig.clock.now)
    assert [states[s] for s in ImageState] == [0, 1, 1, 1, 0]


def test_many_that_fail_together_keep_a_repository_away_for_no_longer_than_one() -> None:
    ecr = FakeECR(page_size=100)
    for number in range(40):
        ecr.report("team/app", pushed(ecr, tag=f"v{number}", age=9999), complete())
    workers = Together()
    rig = Rig(settings(ALL, settled_interval=60.0), ecr, workers=lambda _: workers)

    def run(seconds: float, *, ends_every: float) -> None:
        for _ in range(round(seconds / ends_every)):
            rig.run(ends_every)
            workers.end()

    run(59, ends_every=0.1)
    ecr.fault = lambda operation, _: refusal(Reason.ACCESS_DENIED) if operation == STATUS else None
    run(10, ends_every=5)
    ecr.fault = lambda *_: None
    ecr.calls.clear()
    run(5, ends_every=0.1)
    assert ecr.calls[STATUS] >= 20
