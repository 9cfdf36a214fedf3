"""When ECR is asked for an image again, as the status page shows it."""

from __future__ import annotations

from support.fakes import HOME, FakeECR, complete, pushed, world

from exporter.replication.model import Source

SETTLED_INTERVAL = 6 * 3600.0


def test_when_an_image_is_asked_for_again_is_known() -> None:
    ecr = FakeECR()
    digest = pushed(ecr)
    ecr.report("team/app", digest, complete())
    rig = world(ecr)
    assert rig.poller.due(HOME, "team/app", digest) is None
    rig.run(1)
    due = rig.poller.due(HOME, "team/app", digest)
    assert due is not None
    assert 0.9 * SETTLED_INTERVAL - 1 <= due - rig.clock.now <= SETTLED_INTERVAL
    assert rig.poller.due(HOME, "team/app", "sha256:other") is None
    assert rig.poller.due(Source("999988887777", "eu-west-1"), "team/app", digest) is None


def test_an_image_that_is_gone_is_asked_for_no_more() -> None:
    ecr = FakeECR()
    digest = pushed(ecr)
    rig = world(ecr, discovery_interval=60.0)
    rig.run(1)
    assert rig.poller.due(HOME, "team/app", digest) is not None
    del ecr.repositories["team/app"][digest]
    rig.run(120)
    assert rig.poller.due(HOME, "team/app", digest) is None
