"""Repositories that no replication rule covers: the metric and the warning."""

from __future__ import annotations

import pytest
from support.fakes import (
    IRELAND,
    OREGON,
    FakeECR,
    Fault,
    Rig,
    complete,
    denied,
    pushed,
    settings,
    throttled,
    world,
)

from exporter.config.settings import RegistrySettings, TargetSettings
from exporter.polling.coverage import COLLECT_FOR
from exporter.replication.model import Rule

#: Rules that send team/... to two destinations, and nothing else.
TEAM = (Rule((IRELAND, OREGON), ("team/",), ("team/",)),)


def destinations(rig: Rig) -> dict[str, int]:
    (registry,) = rig.snapshot().registries
    return dict(registry.destinations)


def warnings(rig: Rig) -> list[dict[str, object]]:
    return [fields for event, fields in rig.journal.events if event == "nothing_replicated"]


def test_the_destinations_of_each_repository_are_counted_and_none_is_a_warning() -> None:
    ecr = FakeECR(rules=TEAM)
    ecr.report("team/app", pushed(ecr), complete(), complete(OREGON))
    pushed(ecr, "other/app")
    rig = world(ecr)
    rig.run(600)
    assert destinations(rig) == {"team/app": 2, "other/app": 0}
    assert [warning["repository"] for warning in warnings(rig)] == ["other/app"]
    assert rig.target("*").success is True


def test_a_registry_without_rules_replicates_nothing() -> None:
    ecr = FakeECR(rules=())
    pushed(ecr)
    rig = world(ecr)
    rig.run(10)
    assert destinations(rig) == {"team/app": 0}
    assert [warning["repository"] for warning in warnings(rig)] == ["team/app"]


def test_it_is_a_warning_again_only_after_a_rule_covered_the_repository() -> None:
    ecr = FakeECR(rules=())
    pushed(ecr)
    rig = world(ecr)
    rig.run(600)
    rig.poller.configure(settings(TargetSettings(repository="team/*"), TargetSettings(repository="*")))
    rig.run(600)
    assert len(warnings(rig)) == 1
    ecr.rules = TEAM
    rig.run(120)
    assert destinations(rig) == {"team/app": 2}
    ecr.rules = ()
    rig.run(120)
    assert destinations(rig) == {"team/app": 0}
    assert len(warnings(rig)) == 2


def test_many_at_once_share_a_line_and_those_that_follow_within_a_minute_another() -> None:
    ecr = FakeECR(rules=(), page_size=1000)
    for number in range(100):
        pushed(ecr, f"app-{number:03}")
    rig = world(ecr, requests_per_second=1.0)
    rig.run(COLLECT_FOR / 2)
    before = len(warnings(rig))
    assert before <= 5
    rig.run(10 * COLLECT_FOR)
    told = warnings(rig)
    assert len(told) - before <= 10
    assert sum(int(str(warning["repositories"] or 1)) for warning in told) == 100


@pytest.mark.parametrize(
    "fault", [denied("DescribeRegistry"), throttled("DescribeRegistry")], ids=["denied", "throttled"]
)
def test_nothing_is_said_while_the_rules_are_not_known(fault: Fault) -> None:
    ecr = FakeECR(rules=())
    pushed(ecr)
    ecr.fault = fault
    role = RegistrySettings("home", region="us-east-1", role_arn="arn:aws:iam::111122223333:role/reader")
    rig = Rig(settings(TargetSettings(repository="*"), registries=(role,)), ecr)
    rig.run(600)
    assert (destinations(rig), warnings(rig)) == ({}, [])
    ecr.fault = lambda *_: None
    rig.run(120)
    assert destinations(rig) == {"team/app": 0}
    assert len(warnings(rig)) == 1


def test_rules_that_are_too_old_count_nothing() -> None:
    ecr = FakeECR(rules=TEAM)
    pushed(ecr)
    rig = world(ecr, stale_after=600.0)
    rig.run(30)
    assert destinations(rig) == {"team/app": 2}
    good_until = rig.snapshot().good_until
    ecr.fault = throttled("DescribeRegistry")
    rig.run(700)
    assert rig.clock.now > good_until
    assert destinations(rig) == {}


def test_a_repository_that_does_not_exist_has_no_count_until_it_does() -> None:
    ecr = FakeECR(rules=())
    rig = world(ecr, target=TargetSettings(repository="team/app", tag="v1"))
    rig.run(70)
    assert (destinations(rig), warnings(rig)) == ({}, [])
    before = rig.snapshot().version
    ecr.create("team/app")
    rig.run(70)
    assert rig.snapshot().version > before
    assert (destinations(rig), warnings(rig)) == ({"team/app": 0}, [])
    pushed(ecr)
    rig.run(70)
    assert len(warnings(rig)) == 1
