"""Since when an image is in a state other than COMPLETE."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.fakes import (
    ACCOUNT,
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
    settings,
    throttled,
    world,
)

from exporter.config.settings import RegistrySettings, TargetSettings
from exporter.replication.model import Destination, Replication, Rule, Status

MISSING_FOR_LONG = 9999.0
UNDER_WAY = Replication(IRELAND, Status.IN_PROGRESS)


def since(rig: Rig, tag: str = "v1") -> dict[Destination, float]:
    return {
        state.destination: state.at
        for registry in rig.snapshot().registries
        for _, images in registry.repositories
        for image in images
        for state in image.since
        if state.shown and (tag, "") in image.names
    }


def test_it_is_when_the_state_was_first_seen_and_a_state_that_comes_back_has_a_new_time() -> None:
    ecr = FakeECR(rules=(Rule((IRELAND, OREGON)),))
    digest = pushed(ecr, age=5)
    ecr.report("team/app", digest, UNDER_WAY, complete(OREGON))
    rig = world(ecr)
    start = rig.clock.time()
    rig.run(5)
    assert since(rig).keys() == {IRELAND}
    under_way = since(rig)[IRELAND]
    assert start <= under_way <= start + 5
    rig.run(1000)
    assert since(rig) == {IRELAND: under_way}
    ecr.report("team/app", digest, Replication(IRELAND, Status.FAILED, "A"), complete(OREGON))
    rig.run(400)
    failed = since(rig)[IRELAND]
    assert start + 1005 <= failed <= start + 1405
    ecr.report("team/app", digest, Replication(IRELAND, Status.FAILED, "B"), complete(OREGON))
    rig.run(400)
    assert since(rig) == {IRELAND: failed}, "another code is the same state"
    ecr.report("team/app", digest, complete(), complete(OREGON))
    rig.run(400)
    assert since(rig) == {}
    rig.run(7 * 3600)
    ecr.report("team/app", digest, UNDER_WAY, complete(OREGON))
    rig.run(7 * 3600)
    assert since(rig)[IRELAND] > failed


def test_an_outage_and_answers_that_are_too_old_keep_it() -> None:
    ecr = FakeECR()
    pushed(ecr, age=MISSING_FOR_LONG)
    rig = world(ecr, stale_after=600.0)
    rig.run(30)
    before = since(rig)
    assert before.keys() == {IRELAND}
    ecr.fault = throttled(STATUS)
    rig.run(3000)
    assert since(rig) == {}, "it is not known whether it is still so"
    ecr.fault = lambda *_: None
    rig.run(120)
    assert since(rig) == before


@pytest.mark.parametrize("lasts", [900.0, 5000.0])
def test_rules_that_cannot_be_read_for_long_keep_it(lasts: float) -> None:
    ecr = FakeECR()
    pushed(ecr, age=MISSING_FOR_LONG)
    rig = world(ecr, stale_after=600.0)
    rig.run(30)
    before = since(rig)
    ecr.fault = denied("DescribeRegistry")
    rig.run(lasts)
    assert since(rig) == {}
    ecr.fault = lambda *_: None
    rig.run(400)
    assert since(rig) == before


def test_rules_that_go_and_come_back_give_a_new_time() -> None:
    ecr = FakeECR()
    pushed(ecr, age=MISSING_FOR_LONG)
    rig = world(ecr)
    rig.run(30)
    before = since(rig)[IRELAND]
    ecr.rules = ()
    rig.run(120)
    assert since(rig) == {}
    ecr.rules = (Rule((IRELAND,)),)
    rig.run(120)
    assert since(rig)[IRELAND] > before + 60


def test_reloads_another_role_and_another_name_keep_it() -> None:
    ecr = FakeECR()
    pushed(ecr, age=MISSING_FOR_LONG)
    role = RegistrySettings("home", region=HOME.region, role_arn=f"arn:aws:iam::{ACCOUNT}:role/one")
    rig = Rig(settings(ALL, registries=(role,)), ecr)
    rig.run(30)
    before = since(rig)
    assert before.keys() == {IRELAND}
    for changed in (
        settings(ALL, TargetSettings(repository="team/app", tag="v1"), registries=(role,)),
        settings(TargetSettings(repository="team/*"), registries=(role,), pending_interval=30.0),
        settings(ALL, registries=(replace(role, name="renamed"),)),
        settings(ALL, registries=(replace(role, role_arn=f"arn:aws:iam::{ACCOUNT}:role/two"),)),
    ):
        rig.poller.configure(changed)
        rig.run(400)
        assert since(rig) == before


def test_a_push_of_the_same_digest_gives_a_new_time() -> None:
    ecr = FakeECR()
    digest = pushed(ecr, age=MISSING_FOR_LONG)
    rig = world(ecr)
    rig.run(30)
    before = since(rig)[IRELAND]
    ecr.push("team/app", "v1", at=rig.clock.time(), digest=digest)
    rig.run(120)
    assert since(rig)[IRELAND] > before
