"""What changes while destinations are looked at: rules, tags, configuration, calls that fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.copies import HOUR, IMAGES, THERE, copied, health, looking, replicas, statuses, world
from support.fakes import (
    ACCOUNT,
    HOME,
    IRELAND,
    OREGON,
    STATUS,
    FakeECR,
    Inline,
    Rig,
    Together,
    complete,
    digest_of,
    pushed,
    refusal,
    settings,
)

from exporter.config.settings import RegistrySettings, TargetSettings
from exporter.replication.model import Reason, Replication, Rule, Source, Status
from exporter.replication.state_file import StateCache, remembered

BOTH = tuple(RegistrySettings(region=source.region) for source in (HOME, THERE))


def test_a_destination_can_become_a_watched_registry_and_back() -> None:
    home, there = world()
    copied(home, there, "v1")
    rig = Rig(looking(), home, there)
    for registries in (BOTH, (RegistrySettings(),), BOTH, (RegistrySettings(),)):
        rig.run(60)
        rig.poller.configure(looking(registries=registries))
        rig.run(60)
        assert replicas(rig)["v1"].get("eu-west-1", "present") == "present"
        assert list(health(rig).items()) == [("eu-west-1", (True, frozenset()))]
    digest = home.push("team/app", "v2", at=rig.clock.time())
    home.report("team/app", digest, complete())
    there.push("team/app", "v2", at=rig.clock.time(), digest=digest)
    rig.run(90)
    assert replicas(rig)["v2"] == {"eu-west-1": "present"}


def test_a_new_repository_does_not_fail_its_destination() -> None:
    home, there = world()
    copied(home, there, "v1")
    rig = Rig(looking(), home, there)
    rig.run(5 * HOUR)
    copied(home, there, "v1", repository="team/new")
    there.fault = lambda _, name: refusal(Reason.THROTTLED) if name == "team/new" else None
    for _ in range(30):
        rig.run(10)
        assert health(rig) == {"eu-west-1": (True, frozenset())}
    rig.run(2 * HOUR)
    assert health(rig)["eu-west-1"][0] is False, "it is not looked at in time"


def test_pushes_do_not_hasten_the_next_try_at_a_denied_destination() -> None:
    home, there = world()
    copied(home, there, "v1")
    rig = Rig(looking(), home, there)
    rig.run(60)
    there.fault = lambda *_: refusal(Reason.ACCESS_DENIED)
    rig.run(HOUR)
    there.calls.clear()
    for number in range(60):
        digest = home.push("team/app", f"n{number}", at=rig.clock.time())
        home.report("team/app", digest, complete())
        rig.run(60)
    assert there.calls[IMAGES] <= HOUR / 150 + 1


def test_a_denied_destination_that_was_never_read_is_not_tried_at_each_listing_of_its_own() -> None:
    home, there = world()
    copied(home, there, "v1")
    copied(home, there, "lost")
    there.repositories["team/app"].popitem()
    rig = Rig(looking(registries=BOTH), home, there)
    failed = 0
    images = there.images

    def fail(*args: object, archived: bool = False, **knobs: object) -> object:
        nonlocal failed
        if archived:
            failed += 1
            raise refusal(Reason.ACCESS_DENIED)
        return images(*args, **knobs)  # type: ignore[arg-type]

    there.images = fail  # type: ignore[method-assign,assignment]
    rig.run(60)
    failed = 0
    rig.run(HOUR)
    assert 0 < failed <= HOUR / 150 + 1


def test_copies_are_looked_up_soon_though_others_arrive_all_the_time() -> None:
    home, there = world()
    copied(home, there, "old")
    rig = Rig(looking(pending_interval=15.0, discovery_interval=2.0), home, there)
    rig.run(60)
    for number in range(30):
        digest = home.push("team/app", f"n{number}", at=rig.clock.time())
        home.report("team/app", digest, complete())
        there.push("team/app", f"n{number}", at=rig.clock.time(), digest=digest)
        rig.run(2)
    assert replicas(rig)["n15"] == {"eu-west-1": "present"}


def test_a_failed_look_is_over_when_the_registrys_own_listing_shows_all_copies() -> None:
    home, there = world()
    copied(home, there, "v1")
    rig = Rig(looking(registries=BOTH), home, there)
    rig.run(60)
    digest = copied(home, there, "v2")
    image = there.repositories["team/app"].pop(digest)
    images = there.images

    def fail(*args: object, archived: bool = False, **knobs: object) -> object:
        if archived:
            raise refusal(Reason.UNAVAILABLE)
        return images(*args, **knobs)  # type: ignore[arg-type]

    there.images = fail  # type: ignore[method-assign,assignment]
    rig.run(HOUR)
    assert health(rig) == {"eu-west-1": (False, frozenset({Reason.UNAVAILABLE}))}
    there.repositories["team/app"][digest] = image
    rig.run(400)
    assert health(rig) == {"eu-west-1": (True, frozenset())}


def test_a_destination_that_the_rules_drop_is_looked_at_and_shown_no_more() -> None:
    home, there = world()
    digest = copied(home, there, "v1")
    home.report("team/app", digest)
    rig = Rig(looking(), home, there)
    rig.run(60)
    assert replicas(rig) == {"v1": {"eu-west-1": "present"}}
    home.rules = ()
    rig.run(HOUR)
    assert (statuses(rig), replicas(rig), health(rig)) == ({"v1": ""}, {"v1": {}}, {})
    there.calls.clear()
    rig.run(HOUR)
    assert there.calls[IMAGES] == 0
    del there.repositories["team/app"][digest]
    home.rules = (Rule((IRELAND,)),)
    rig.run(120)
    assert (statuses(rig), replicas(rig)) == ({"v1": "MISSING"}, {"v1": {"eu-west-1": "absent"}})


def test_a_destination_that_the_target_drops_is_shown_no_more_though_ecr_does_not_answer() -> None:
    home, there = world()
    home.rules = ()
    digest = copied(home, there, "v1")
    home.report("team/app", digest)
    rig = Rig(looking(TargetSettings("team/*", destinations=("eu-west-1",))), home, there)
    rig.run(60)
    assert replicas(rig) == {"v1": {"eu-west-1": "present"}}
    home.fault = lambda operation, _: refusal(Reason.ACCESS_DENIED) if operation == STATUS else None
    rig.poller.configure(looking(TargetSettings("team/*")))
    rig.run(2 * HOUR)
    del there.repositories["team/app"][digest]
    rig.run(2 * HOUR)
    assert replicas(rig) == {"v1": {}}


def test_what_arrives_during_a_listing_is_not_absent() -> None:
    home, there = world()
    for number in range(30):
        copied(home, there, f"v{number}")
    there.page_size = 10
    workers = Together()
    rig = Rig(looking(), home, there, workers=lambda name: workers if "eu-west-1" in name else Inline())
    rig.run(1)
    digest = home.push("team/app", "new", at=rig.clock.time(), digest="sha256:" + "0" * 64)
    home.report("team/app", digest, Replication(IRELAND, Status.IN_PROGRESS))
    rig.run(58)
    workers.end()
    rig.run(6)
    # It is on the page that was read already.
    there.push("team/app", "new", at=rig.clock.time(), digest=digest)
    home.report("team/app", digest, complete())
    rig.run(30)
    assert statuses(rig)["new"] == "COMPLETE"
    seen = set()
    for _ in range(40):
        workers.end()
        rig.run(1)
        seen.add(replicas(rig)["new"].get("eu-west-1"))
    assert seen == {None, "present"}


def test_a_copy_that_gets_its_tag_during_a_look_is_not_absent() -> None:
    home, there = world()
    digest = copied(home, there, "v1")
    image = there.repositories["team/app"][digest]
    there.repositories["team/app"][digest] = replace(image, tags=())
    images = there.images

    def tag_between(repository: str, token: str | None, **which: object) -> object:
        page = images(repository, token, **which)  # type: ignore[arg-type]
        there.repositories[repository][digest] = image
        return page

    there.images = tag_between  # type: ignore[method-assign,assignment]
    rig = Rig(looking(), home, there)
    rig.run(60)
    assert replicas(rig) == {"v1": {"eu-west-1": "present"}}


def test_an_image_that_gets_another_tag_is_looked_up_though_another_destination_failed() -> None:
    home, there = world()
    home.rules = (Rule((IRELAND, OREGON)),)
    oregon = FakeECR(source=Source(ACCOUNT, OREGON.region), rules=())
    digest = copied(home, there, "v1")
    home.report("team/app", digest, complete(), Replication(OREGON, Status.FAILED, "X"))
    rig = Rig(looking(), home, there, oregon)
    rig.run(60)
    for ecr in (home, there):
        ecr.push("team/app", "stable", at=1.8e9 + 1000.0 - 10 * HOUR, digest=digest)
    rig.run(90)
    assert replicas(rig)["stable"].get("eu-west-1") == "present"


def test_a_lookup_of_many_unknown_names_becomes_a_listing() -> None:
    """The destination is immutable: each copy arrives without its tag."""
    home, there = world()
    for number in range(400):
        copied(home, there, f"v{number}")
    home.page_size = there.page_size = 10
    rig = Rig(looking(), home, there)
    rig.run(120)
    there.calls.clear()
    for number in range(100):
        digest = home.push("team/app", f"n{number}", at=rig.clock.time())
        home.report("team/app", digest, complete())
        there.push("team/app", at=rig.clock.time(), digest=digest)
    rig.run(120)
    assert {replicas(rig)[f"n{number}"]["eu-west-1"] for number in range(100)} == {"untagged"}
    assert there.calls[IMAGES] <= 10 + 50 + 40 + 10 + 51


def test_names_that_are_gone_are_learned_from_looks_that_were_given_up() -> None:
    home, there = world()
    for number in range(40):
        home.report("team/app", pushed(home, tag=f"v{number}", age=9 * HOUR), complete())
    for number in range(200):
        digest = home.push("team/app", f"other-{number}", digest=digest_of(f"{number}"))
        there.push("team/app", f"other-{number}", digest=digest)
    home.page_size = there.page_size = 10
    rig = Rig(looking(TargetSettings("team/*", tags=("v*",))), home, there)
    rig.run(2 * HOUR)
    assert {state for seen in replicas(rig).values() for state in seen.values()} == {"absent"}
    there.calls.clear()
    rig.run(4 * HOUR)
    assert there.calls[IMAGES] <= 4 * 4.5 * 25 + 4 * 25, "each look is a listing, an hourly one has two"


def test_images_are_asked_for_evenly_when_nothing_confirms_them() -> None:
    home, there = world()
    for number in range(200):
        copied(home, there, f"v{number}")
    rig = Rig(looking(), home, there)
    rig.run(HOUR)
    there.fault = lambda *_: refusal(Reason.UNAVAILABLE)
    rig.run(1.5 * HOUR)
    home.calls.clear()
    rig.run(3 * HOUR)
    assert 60 <= home.calls[STATUS] <= 140


def test_a_push_that_a_look_shows_first_still_counts_its_duration() -> None:
    home, there = world()
    copied(home, there, "old")
    rig = Rig(looking(replica_interval=20.0, pending_interval=60.0), home, there)
    rig.run(60)
    digest = home.push("team/app", "v1", at=rig.clock.time())
    home.report("team/app", digest)
    rig.run(61)
    there.push("team/app", "v1", at=rig.clock.time(), digest=digest)
    rig.run(21)
    home.report("team/app", digest, complete())
    rig.run(120)
    assert len(rig.completions) == 1


def test_a_restart_does_not_ask_for_what_was_present_for_days() -> None:
    home, there = world()
    copied(home, there, "v1")
    rig = Rig(looking(), home, there)
    rig.run(30 * HOUR)
    cache = StateCache(remembered(rig.store, rig.clock))
    home.calls.clear()
    again = Rig(looking(), home, there, clock=rig.clock, memory=cache)
    again.run(60)
    assert statuses(again) == {"v1": "COMPLETE"}
    assert home.calls[STATUS] == 0


def test_a_restart_with_another_destination_to_arrive_at_asks_again() -> None:
    home, there = world()
    copied(home, there, "v1")
    rig = Rig(settings(TargetSettings("team/*")), home)
    rig.run(60)
    cache = StateCache(remembered(rig.store, rig.clock))
    target = TargetSettings("team/*", destinations=("us-west-2",))
    again = Rig(settings(target), home, clock=rig.clock, memory=cache)
    again.run(60)
    assert again.states()["team/app", "v1", ""] == {IRELAND: "COMPLETE", OREGON: "MISSING"}


def test_without_an_interval_equal_listings_change_no_fact() -> None:
    home, there = world()
    copied(home, there, "v1")
    rig = Rig(looking(registries=BOTH, replica_interval=0.0), home, there)
    rig.run(300)
    version = rig.store.version
    rig.run(HOUR)
    assert rig.store.version == version


def test_an_image_loses_and_gets_tags_and_is_watched_by_digest_too() -> None:
    home, there = world()
    digest = copied(home, there, "v1", "v2")
    targets = (TargetSettings("team/*"), TargetSettings("team/app", digest=digest))
    rig = Rig(looking(*targets), home, there)
    rig.run(60)
    assert replicas(rig) == {name: {"eu-west-1": "present"} for name in ("v1", "v2", digest)}
    for ecr in (home, there):
        image = ecr.repositories["team/app"][digest]
        ecr.repositories["team/app"][digest] = replace(image, tags=("v2", "v3"))
    rig.run(90)
    assert replicas(rig) == {name: {"eu-west-1": "present"} for name in ("v2", "v3", digest)}


@pytest.mark.parametrize("by", ["a rule", "a target"])
def test_looks_do_not_put_off_what_is_asked_because_more_is_expected(by: str) -> None:
    """Looks at a place that was added come before the answers of ECR about most images."""
    home, there = world()
    oregon = FakeECR(source=Source(ACCOUNT, OREGON.region), rules=(), page_size=1000)
    tags = [f"v{number}" for number in range(30)]
    digests = [copied(home, there, tag) for tag in tags]
    elsewhere = digest_of("elsewhere")
    oregon.push("team/app", "other", at=1.8e9, digest=elsewhere)
    rig = Rig(looking(requests_per_second=1.0), home, there, oregon)
    rig.run(HOUR)
    if by == "a rule":
        home.rules = (Rule((IRELAND, OREGON)),)
    else:
        rig.poller.configure(
            looking(TargetSettings("*", destinations=("us-west-2",)), requests_per_second=1.0)
        )
    rig.run(70)
    del there.repositories["team/app"][digests[0]]  # is not present where it was either
    rig.run(1100)
    shown = {name[1]: states.get(OREGON) for name, states in rig.states().items()}
    assert shown == dict.fromkeys(tags, "MISSING")


@pytest.mark.parametrize("interval", [5.0, 3 * HOUR])
def test_any_replica_interval_works(interval: float) -> None:
    home, there = world()
    digest = copied(home, there, "v1")
    rig = Rig(looking(replica_interval=interval), home, there)
    rig.run(60)
    assert replicas(rig) == {"v1": {"eu-west-1": "present"}}
    del there.repositories["team/app"][digest]
    rig.run(interval)
    assert (replicas(rig), health(rig)) == (
        {"v1": {"eu-west-1": "absent"}},
        {"eu-west-1": (True, frozenset())},
    )
