"""The log of images that fail and recover, and of copies that go and come back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.copies import copied, looking, replicas
from support.copies import world as copies
from support.fakes import IRELAND, OREGON, FakeECR, Rig, complete, pushed, settings, world

from exporter.config.settings import TargetSettings
from exporter.polling.transitions import COLLECT_FOR, MOST_LINES, REPEAT_AFTER
from exporter.replication.model import Destination, Replication, Rule, Status
from exporter.replication.state_file import StateCache, remembered

PLACES = {IRELAND: f"{IRELAND.registry_id}/eu-west-1", OREGON: f"{OREGON.registry_id}/us-west-2"}
EVENTS = {"replication_failed", "replication_recovered", "replica_gone", "replica_returned"}


def failed(destination: Destination = IRELAND, code: str = "DENIED") -> Replication:
    return Replication(destination, Status.FAILED, code)


def logged(rig: Rig) -> list[tuple[str, dict[str, object]]]:
    """The events about images; fields without a value are left out, as in the log."""
    return [
        (event, {key: value for key, value in fields.items() if value is not None and key != "registry"})
        for event, fields in rig.journal.events
        if event in EVENTS
    ]


def restarted(rig: Rig, *ecrs: FakeECR, replica_interval: float = 900.0) -> Rig:
    """Another exporter with the state file of this one."""
    rig.clock.now += 10
    memory = StateCache(remembered(rig.store, rig.clock))
    return Rig(looking(replica_interval=replica_interval), *ecrs, memory=memory, clock=rig.clock)


def test_a_failure_and_its_end_are_a_line_each() -> None:
    ecr = FakeECR()
    digest = pushed(ecr)
    ecr.report("team/app", digest, failed())
    rig = world(ecr)
    rig.run(5)
    image = {"image": "team/app:v1", "digest": digest, "destination": PLACES[IRELAND]}
    assert logged(rig) == [("replication_failed", {**image, "failure_code": "DENIED"})]
    rig.run(7200)
    assert len(logged(rig)) == 1, "it is the same failure"
    ecr.report("team/app", digest, Replication(IRELAND, Status.IN_PROGRESS))
    rig.run(3600)
    assert len(logged(rig)) == 1, "it is not over"
    ecr.report("team/app", digest, complete())
    rig.run(3600)
    assert logged(rig)[1:] == [("replication_recovered", image)]


def test_another_failure_code_is_logged_when_the_hour_is_over() -> None:
    ecr = FakeECR()
    digest = pushed(ecr, age=7200)
    ecr.report("team/app", digest, failed(code="X"))
    rig = world(ecr, failed_interval=10.0)
    for code in "YXYXY":
        rig.run(120)
        ecr.report("team/app", digest, failed(code=code))
    rig.run(120)
    assert [fields["failure_code"] for _, fields in logged(rig)] == ["X"]
    rig.run(2 * REPEAT_AFTER)
    assert [(event, fields["failure_code"]) for event, fields in logged(rig)] == [
        ("replication_failed", "X"),
        ("replication_failed", "Y"),
    ]


@pytest.mark.parametrize("code", ["X", "Y"])
def test_an_image_that_is_replicated_again_and_fails_again_is_logged_at_once(code: str) -> None:
    ecr = FakeECR()
    digest = pushed(ecr, age=7200)
    ecr.report("team/app", digest, failed(code="X"))
    rig = world(ecr, failed_interval=10.0)
    rig.run(120)
    image = ecr.repositories["team/app"][digest]
    ecr.repositories["team/app"][digest] = replace(image, activated_at=rig.clock.time())
    ecr.report("team/app", digest, Replication(IRELAND, Status.IN_PROGRESS))
    rig.run(120)
    ecr.report("team/app", digest, failed(code=code))
    rig.run(240)
    events = [(event, fields["failure_code"]) for event, fields in logged(rig)]
    assert events == [("replication_failed", "X"), ("replication_failed", code)]
    ecr.report("team/app", digest, complete())
    rig.run(240)
    assert [event for event, _ in logged(rig)[2:]] == ["replication_recovered"]


def test_an_image_without_a_tag_is_named_by_its_digest_and_a_failure_may_have_no_code() -> None:
    ecr = FakeECR()
    digest = pushed(ecr)
    ecr.report("team/app", digest, failed(code=""))
    rig = Rig(settings(TargetSettings(repository="team/app", digest=digest)), ecr)
    rig.run(30)
    fields = {"image": f"team/app@{digest}", "digest": digest, "destination": PLACES[IRELAND]}
    assert logged(rig) == [("replication_failed", fields)]


def test_each_destination_has_its_own_lines() -> None:
    ecr = FakeECR(rules=(Rule((IRELAND, OREGON)),))
    digest = pushed(ecr)
    ecr.report("team/app", digest, failed(), failed(OREGON))
    rig = world(ecr)
    rig.run(30)
    assert {fields["destination"] for _, fields in logged(rig)} == set(PLACES.values())
    ecr.report("team/app", digest, failed(), complete(OREGON))
    rig.run(900)
    assert [(event, fields["destination"]) for event, fields in logged(rig)[2:]] == [
        ("replication_recovered", PLACES[OREGON])
    ]


def test_an_image_that_is_deleted_or_expected_there_no_longer_did_not_recover() -> None:
    ecr = FakeECR()
    for tag in ("v1", "v2"):
        ecr.report("team/app", pushed(ecr, tag=tag), failed())
    rig = world(ecr)
    rig.run(30)
    before = logged(rig)
    del ecr.repositories["team/app"][digest_of_tag(ecr, "v1")]
    ecr.rules = ()
    ecr.report("team/app", digest_of_tag(ecr, "v2"))
    rig.run(7200)
    assert len(before) == 2
    assert logged(rig) == before


def digest_of_tag(ecr: FakeECR, tag: str) -> str:
    return next(image.digest for image in ecr.repositories["team/app"].values() if tag in image.tags)


def test_what_flaps_is_logged_once_an_hour() -> None:
    ecr = FakeECR()
    digest = pushed(ecr, age=7200)
    ecr.report("team/app", digest, failed())
    rig = world(ecr, failed_interval=10.0, settled_interval=10.0)
    hours = 3
    for _ in range(int(hours * REPEAT_AFTER / 60)):
        rig.run(30)
        ecr.report("team/app", digest, complete())
        rig.run(30)
        ecr.report("team/app", digest, failed())
    events = [event for event, _ in logged(rig)]
    assert events == ["replication_failed", "replication_recovered"] * hours


def test_a_failure_that_comes_back_is_logged_when_it_lasts() -> None:
    ecr = FakeECR()
    digest = pushed(ecr, age=7200)
    ecr.report("team/app", digest, failed())
    rig = world(ecr, failed_interval=10.0, settled_interval=10.0)
    rig.run(30)
    ecr.report("team/app", digest, complete())
    rig.run(120)
    ecr.report("team/app", digest, failed())
    rig.run(2 * REPEAT_AFTER)
    assert [event for event, _ in logged(rig)] == [
        "replication_failed",
        "replication_recovered",
        "replication_failed",
    ]


@pytest.mark.parametrize("per_second", [10.0, 1000.0])
def test_a_burst_is_few_lines_with_a_count(per_second: float) -> None:
    ecr = FakeECR(page_size=1000)
    for number in range(1000):
        ecr.report("team/app", pushed(ecr, tag=f"v{number:04}"), failed())
    rig = world(ecr, requests_per_second=per_second)
    rig.run(5 * COLLECT_FOR)
    lines = logged(rig)
    assert len(lines) <= MOST_LINES + 4
    assert sum(int(str(fields.get("images", 1))) for _, fields in lines) == 1000
    most = max(lines, key=lambda line: int(str(line[1].get("images", 1))))[1]
    assert most.keys() == {"image", "images", "destination", "failure_code"}
    assert str(most["image"]).count("team/app:v") == 5


def test_a_burst_of_many_kinds_is_few_lines_too() -> None:
    ecr = FakeECR(page_size=1000)
    for number in range(200):
        ecr.report("team/app", pushed(ecr, tag=f"v{number:03}"), failed(code=f"CODE_{number}"))
    rig = world(ecr)
    rig.run(5 * COLLECT_FOR)
    lines = [fields for _, fields in logged(rig)]
    assert len(lines) <= 3 * (MOST_LINES + 1)
    assert sum(int(str(fields.get("images", 1))) for fields in lines) == 200
    rest = max(lines, key=lambda fields: int(str(fields.get("images", 1))))
    assert rest["destination"] == PLACES[IRELAND]
    assert "failure_code" not in rest


def test_what_an_earlier_exporter_saw_is_not_logged_again() -> None:
    ecr = FakeECR()
    old, young = pushed(ecr, tag="old"), pushed(ecr, tag="young")
    ecr.report("team/app", old, failed())
    rig = world(ecr)
    rig.run(120)
    assert len(logged(rig)) == 1
    ecr.report("team/app", young, failed())
    second = restarted(rig, ecr, replica_interval=0.0)
    second.run(120)
    assert [fields["digest"] for _, fields in logged(second)] == [young]
    ecr.report("team/app", old, complete())
    second.run(3600)
    assert [(event, fields["digest"]) for event, fields in logged(second)[1:]] == [
        ("replication_recovered", old)
    ]


def test_a_copy_that_goes_and_comes_back_is_a_line_each() -> None:
    home, there = copies()
    digest = copied(home, there, "v1", "v2")
    rig = Rig(looking(), home, there)
    rig.run(1000)
    assert logged(rig) == []
    image = there.repositories["team/app"].pop(digest)
    rig.run(7200)
    fields = {"image": "team/app:v1", "digest": digest, "destination": PLACES[IRELAND]}
    assert logged(rig) == [("replica_gone", {**fields, "reason": "absent"})]
    there.repositories["team/app"][digest] = image
    rig.run(7200)
    assert logged(rig)[1:] == [("replica_returned", fields)]


def test_copies_that_go_are_logged_soon_after_the_look_for_one_listing_of_the_source() -> None:
    home, there = copies()
    digests = [copied(home, there, f"v{number}") for number in range(300)]
    rig = Rig(looking(discovery_interval=3600.0, replica_interval=300.0), home, there)
    rig.run(1000)
    assert logged(rig) == []
    home.calls.clear()
    for digest in digests[1:]:
        del there.repositories["team/app"][digest]
    rig.run(400)
    assert {event for event, _ in logged(rig)} == {"replica_gone"}
    assert sum(int(str(fields.get("images", 1))) for _, fields in logged(rig)) == 299
    assert home.calls["DescribeImages"] == 1
    rig.run(1500)
    assert home.calls["DescribeImages"] == 1, "a copy that stays away costs no listing"


def test_a_copy_that_is_gone_at_the_first_look_is_logged_and_not_again_by_the_next_exporter() -> None:
    home, there = copies()
    digest = copied(home, there, "v1")
    copied(home, there, "v2")
    del there.repositories["team/app"][digest]
    rig = Rig(looking(), home, there)
    rig.run(2000)
    assert [event for event, _ in logged(rig)] == ["replica_gone"]
    second = restarted(rig, home, there)
    second.run(2000)
    assert replicas(second)["v1"] == {"eu-west-1": "absent"}
    assert logged(second) == []


def test_a_copy_that_goes_with_its_image_is_not_logged() -> None:
    """Deletions may be mirrored, and the destination may be looked at before the source is listed."""
    home, there = copies()
    digest = copied(home, there, "v1")
    copied(home, there, "v2")
    rig = Rig(looking(discovery_interval=3600.0, replica_interval=60.0), home, there)
    rig.run(2000)
    home.calls.clear()
    for ecr in (home, there):
        del ecr.repositories["team/app"][digest]
    rig.run(120)
    assert home.calls["DescribeImages"] == 1, "the look has the source listed"
    rig.run(7200)
    assert "v1" not in replicas(rig)
    assert logged(rig) == []


def test_a_failed_image_that_is_copied_by_other_means_recovers_once() -> None:
    home, there = copies()
    digest = copied(home, there, "v1")
    image = there.repositories["team/app"].pop(digest)
    home.report("team/app", digest, failed())
    rig = Rig(looking(), home, there)
    rig.run(2000)
    there.repositories["team/app"][digest] = image
    rig.run(2000)
    assert [event for event, _ in logged(rig)] == ["replication_failed", "replication_recovered"]
    second = restarted(rig, home, there)
    second.run(4000)
    assert logged(second) == []
    del there.repositories["team/app"][digest]
    second.run(4000)
    assert [event for event, _ in logged(second)] == ["replica_gone"], "ECR was not asked yet"
    second.run(25_000)
    assert [event for event, _ in logged(second)] == ["replica_gone", "replication_failed"]


def test_a_copy_that_comes_after_a_restart_is_logged() -> None:
    home, there = copies()
    digest = copied(home, there, "v1")
    image = there.repositories["team/app"].pop(digest)
    home.report("team/app", digest, failed())
    rig = Rig(looking(), home, there)
    rig.run(2000)
    second = restarted(rig, home, there)
    second.run(2000)
    there.repositories["team/app"][digest] = image
    second.run(4000)
    assert [event for event, _ in logged(second)] == ["replication_recovered"]
