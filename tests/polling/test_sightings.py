"""Registries that replicate to each other, both watched: what one lists is not MISSING there."""

from __future__ import annotations

from support.fakes import (
    ACCOUNT,
    ALL,
    HOME,
    IRELAND,
    STATUS,
    FakeECR,
    Rig,
    complete,
    denied,
    pushed,
    refusal,
    settings,
)

from exporter.config.settings import RegistrySettings, Settings, TargetSettings
from exporter.replication.facts import ImageFacts
from exporter.replication.model import Destination, ImageState, Reason, Replication, Rule, Source, Status

BACK = Destination(HOME.region, HOME.registry_id)
REGISTRIES = tuple(RegistrySettings(name=r, region=r) for r in (HOME.region, IRELAND.region))


def mutual(*targets: TargetSettings, **knobs: object) -> Settings:
    return settings(*(targets or (ALL,)), registries=REGISTRIES, **knobs)


def two() -> tuple[FakeECR, FakeECR]:
    """A registry and one in Ireland. Each sends all images to the other."""
    return FakeECR(), FakeECR(source=Source(ACCOUNT, IRELAND.region), rules=(Rule((BACK,)),))


def copied(home: FakeECR, ireland: FakeECR, tag: str = "v1", age: float = 10.0) -> str:
    """Push an image at home that has a copy in Ireland. ECR reports nothing of the way back."""
    digest = pushed(home, tag=tag, age=age)
    home.report("team/app", digest, complete())
    return ireland.push("team/app", tag, at=1.8e9 + 1005.0 - age, digest=digest)


def way_back(rig: Rig) -> dict[str, str]:
    """The states of Ireland's images at home, by tag."""
    return {
        name.tag: str(replication.status)
        for registry in rig.snapshot().registries
        if registry.source.region == IRELAND.region
        for _, images in registry.repositories
        for image in images
        for name in image.names
        for replication in image.replications or ()
    }


def images_of(rig: Rig) -> list[ImageFacts]:
    """The images at home that are exported."""
    homes = [r for r in rig.snapshot().registries if r.source == HOME]
    return [image for r in homes for _, images in r.repositories for image in images]


def test_a_copy_is_not_missing_where_it_comes_from() -> None:
    home, ireland = two()
    copied(home, ireland)
    copied(home, ireland, "old", age=1e6)
    rig = Rig(mutual(), home, ireland)
    rig.run(10)
    assert way_back(rig) == {"v1": "COMPLETE", "old": "COMPLETE"}
    assert rig.store.states(rig.clock.now)[ImageState.SETTLED] == 4
    rig.run(7200)
    assert way_back(rig) == {"v1": "COMPLETE", "old": "COMPLETE"}
    assert ireland.calls[STATUS] <= 4, "a settled image is asked for at the settled interval"


def test_an_arrival_while_both_are_watched_is_never_missing() -> None:
    home, ireland = two()
    home.create("team/app")
    ireland.create("team/app")
    rig = Rig(mutual(), home, ireland)
    rig.run(60)
    digest = home.push("team/app", "v1", at=rig.clock.time())
    home.report("team/app", digest, complete())
    rig.run(65)
    ireland.push("team/app", "v1", at=rig.clock.time(), digest=digest)
    seen = set()
    for _ in range(300):
        rig.run(1)
        seen |= {tuple(way_back(rig).values())}
    assert seen == {(), ("COMPLETE",)}
    ways = [(source, destination) for source, destination, _ in rig.completions]
    assert ways == [(HOME, IRELAND)], "a copy that arrives is no replication to where it comes from"


def test_an_image_that_the_destination_does_not_list_is_missing() -> None:
    home, ireland = two()
    copied(home, ireland)
    pushed(ireland, tag="lost")
    elsewhere = pushed(ireland, tag="elsewhere")
    home.push("team/other", "elsewhere", at=1.8e9, digest=elsewhere)
    rig = Rig(mutual(), home, ireland)
    rig.run(10)
    assert way_back(rig) == {"v1": "COMPLETE", "lost": "MISSING", "elsewhere": "MISSING"}


def test_a_listing_that_comes_later_ends_missing_without_a_status_call() -> None:
    home, ireland = two()
    copied(home, ireland, age=9000)
    home.fault = denied("DescribeImages")
    rig = Rig(mutual(), home, ireland)
    rig.run(30)
    assert way_back(rig) == {"v1": "MISSING"}
    asked = ireland.calls[STATUS]
    home.fault = lambda *_: None
    rig.run(62)
    assert way_back(rig) == {"v1": "COMPLETE"}
    rig.run(3600)
    assert ireland.calls[STATUS] == asked
    assert rig.completions == []


def test_images_that_no_target_selects_are_seen_too() -> None:
    home, ireland = two()
    copied(home, ireland)
    copied(home, ireland, "v2", age=5.0)
    newest = TargetSettings("*", latest=1, registries=(HOME.region,))
    rig = Rig(mutual(newest, TargetSettings("*", registries=(IRELAND.region,))), home, ireland)
    rig.run(10)
    assert way_back(rig) == {"v1": "COMPLETE", "v2": "COMPLETE"}


def test_an_image_that_was_copied_by_other_means_is_complete() -> None:
    home, ireland = two()
    digest = copied(home, ireland)
    home.report("team/app", digest)
    rig = Rig(mutual(), home, ireland)
    rig.run(10)
    assert rig.states()["team/app", "v1", ""] == {BACK: "COMPLETE"}
    assert {*way_back(rig).values()} == {"COMPLETE"}
    registry = next(r for r in rig.snapshot().registries if r.source == HOME)
    ((_, (image,)),) = registry.repositories
    assert image.replications == (complete(),)


def test_what_ecr_reports_counts_more_than_what_is_seen() -> None:
    home, ireland = two()
    digest = copied(home, ireland)
    ireland.report("team/app", digest, Replication(BACK, Status.IN_PROGRESS))
    rig = Rig(mutual(), home, ireland)
    rig.run(10)
    assert way_back(rig) == {"v1": "IN_PROGRESS"}


def test_a_copy_whose_origin_is_deleted_stays_complete() -> None:
    home, ireland = two()
    copied(home, ireland)
    gone = copied(home, ireland, "gone")
    rig = Rig(mutual(settled_interval=600.0), home, ireland)
    rig.run(10)
    del home.repositories["team/app"][gone]
    rig.run(1300)
    assert way_back(rig) == {"v1": "COMPLETE", "gone": "COMPLETE"}
    del home.repositories["team/app"]
    rig.run(1300)
    assert way_back(rig) == {"v1": "COMPLETE", "gone": "COMPLETE"}


def test_a_registry_that_a_reload_adds_is_seen() -> None:
    home, ireland = two()
    copied(home, ireland, age=9000)
    rig = Rig(settings(ALL, registries=REGISTRIES[1:]), home, ireland)
    rig.run(10)
    assert way_back(rig) == {"v1": "MISSING"}
    rig.poller.configure(mutual())
    rig.run(10)
    assert way_back(rig) == {"v1": "COMPLETE"}


def test_a_denied_registry_hides_nothing() -> None:
    home, ireland = two()
    copied(home, ireland)
    home.fault = lambda *_: refusal(Reason.ACCESS_DENIED)
    rig = Rig(mutual(), home, ireland)
    rig.run(30)
    assert way_back(rig) == {"v1": "MISSING"}


def test_a_listing_that_is_too_old_shows_no_copy_where_a_new_rule_sends_the_images() -> None:
    home, ireland = two()
    digest = copied(home, ireland, age=1e6)
    home.rules = ()
    rig = Rig(mutual(replica_interval=900.0), home, ireland)
    rig.run(100)
    ireland.fault = lambda *_: refusal(Reason.ACCESS_DENIED)
    del ireland.repositories["team/app"][digest]
    rig.run(7200)
    home.rules = (Rule((IRELAND,)),)
    rig.run(600)
    assert [(image.complete_at(), image.replicas) for image in images_of(rig)] == [([IRELAND], ())]


def test_an_image_is_missing_though_a_listing_that_is_too_old_has_it() -> None:
    home, ireland = two()
    home.create("team/app")
    digest = ireland.push("team/app", "v1", at=1.8e9)
    rig = Rig(mutual(), home, ireland)
    rig.run(100)
    ireland.fault = lambda *_: refusal(Reason.ACCESS_DENIED)
    rig.run(7200)
    home.push("team/app", "v1", at=rig.clock.time(), digest=digest)
    rig.run(600)
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "MISSING"}}


def test_a_copy_that_only_a_listing_before_the_rule_showed_is_forgotten_in_time() -> None:
    home, ireland = two()
    copied(home, ireland, age=1e6)
    home.rules = ()
    rig = Rig(mutual(replica_interval=900.0), home, ireland)
    rig.run(100)
    ireland.fault = lambda *_: refusal(Reason.ACCESS_DENIED)
    rig.run(600)
    home.rules = (Rule((IRELAND,)),)
    rig.run(300)
    assert [image.held() for image in images_of(rig)] == [{IRELAND}]
    rig.run(7200)
    assert [(image.complete_at(), image.replicas) for image in images_of(rig)] == [([IRELAND], ())]
