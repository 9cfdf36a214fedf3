"""Destinations are looked at: what they hold, and what that changes for the images and for the calls."""

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
    FakeAWS,
    FakeECR,
    Rig,
    complete,
    digest_of,
    pushed,
    refusal,
    settings,
)

from exporter.config.settings import DestinationSettings, RegistrySettings, TargetSettings
from exporter.polling.statuses import LOOK_PATIENCE
from exporter.replication.model import Destination, Reason, Replication, Rule, Source, Status

OTHER_ACCOUNT = Source("444455556666", "us-west-2")


def test_each_state_of_a_copy_is_seen() -> None:
    home, there = world()
    copied(home, there, "here")
    for tag in ("gone", "untagged", "other", "archived"):
        digest = copied(home, there, tag)
        images = there.repositories["team/app"]
        if tag == "gone":
            del images[digest]
        elif tag == "archived":
            images[digest] = replace(images[digest], archived=True)
        else:
            images[digest] = replace(images[digest], tags=())
            if tag == "other":
                there.push("team/app", tag, at=1.8e9)
    rig = Rig(looking(), home, there)
    rig.run(30)
    assert replicas(rig) == {
        "here": {"eu-west-1": "present"},
        "gone": {"eu-west-1": "absent"},
        "untagged": {"eu-west-1": "untagged"},
        "other": {"eu-west-1": "other_image"},
        "archived": {"eu-west-1": "archived"},
    }
    assert set(statuses(rig).values()) == {"COMPLETE"}, "what ECR reports stands"
    assert health(rig) == {"eu-west-1": (True, frozenset())}


def test_a_destination_without_any_repository_answers() -> None:
    home, there = world()
    copied(home, there, "v1")
    there.repositories.clear()
    rig = Rig(looking(), home, there)
    rig.run(300)
    assert replicas(rig) == {"v1": {"eu-west-1": "absent"}}
    assert health(rig) == {"eu-west-1": (True, frozenset())}


def test_a_copy_that_goes_and_comes_back_is_seen_within_an_interval() -> None:
    home, there = world()
    digest = copied(home, there, "v1")
    rig = Rig(looking(), home, there)
    rig.run(30)
    image = there.repositories["team/app"].pop(digest)
    rig.run(900)
    assert replicas(rig) == {"v1": {"eu-west-1": "absent"}}
    assert statuses(rig) == {"v1": "COMPLETE"}
    there.repositories["team/app"][digest] = image
    rig.run(900)
    assert replicas(rig) == {"v1": {"eu-west-1": "present"}}


def test_images_that_are_present_everywhere_cost_no_status_call() -> None:
    home, there = world()
    for number in range(50):
        copied(home, there, f"v{number}")
    lost = pushed(home, tag="lost", age=9 * HOUR)
    home.report("team/app", lost, complete())
    rig = Rig(looking(), home, there)
    rig.run(60)
    asked = home.calls[STATUS]
    rig.run(7 * HOUR)
    assert home.calls[STATUS] - asked <= 2, "only the one whose copy is absent, at the settled interval"
    assert there.calls[IMAGES] <= 2 * (7 * 4.5 + 2), "one look each quarter of an hour, of two stages"
    assert statuses(rig)["v0"] == "COMPLETE"


def test_old_images_are_looked_at_before_ecr_is_asked() -> None:
    home, there = world()
    for number in range(30):
        copied(home, there, f"v{number}")
    lost = pushed(home, tag="lost", age=9 * HOUR)
    home.report("team/app", lost, complete())
    home.report("team/app", pushed(home, tag="fresh", age=60), complete())
    rig = Rig(looking(), home, there)
    rig.run(60)
    assert home.calls[STATUS] == 2, "the image whose copy is absent, and the recent push"
    assert set(statuses(rig).values()) == {"COMPLETE"}


def test_a_destination_that_does_not_answer_delays_the_question_for_a_minute() -> None:
    home, there = world()
    for number in range(5):
        copied(home, there, f"v{number}")
    there.fault = lambda *_: refusal(Reason.UNAVAILABLE)
    rig = Rig(looking(discovery_interval=3600.0), home, there)
    rig.run(LOOK_PATIENCE - 1)
    assert home.calls[STATUS] == 0
    rig.run(2)
    assert home.calls[STATUS] == 5
    assert set(statuses(rig).values()) == {"COMPLETE"}


def test_nothing_waits_for_a_look_at_an_account_that_nothing_reads() -> None:
    home, there = world()
    digest = pushed(home, tag="v1", age=9 * HOUR)
    elsewhere = Destination("us-west-2", "444455556666")
    home.rules = (Rule((elsewhere,)),)
    home.report("team/app", digest, Replication(elsewhere, Status.COMPLETE))
    rig = Rig(looking(), home, there)
    rig.run(10)
    assert home.calls[STATUS] == 1


def test_what_is_present_is_settled_without_a_status_call_and_ecr_need_not_report_it() -> None:
    """An image that was copied by hand, by a backfill, or before the rule."""
    home, there = world()
    digest = copied(home, there, "v1")
    home.report("team/app", digest)
    home.fault = lambda operation, _: refusal(Reason.ACCESS_DENIED) if operation == STATUS else None
    rig = Rig(looking(), home, there)
    rig.run(30)
    assert statuses(rig) == {"v1": "COMPLETE"}
    home.fault = lambda *_: None
    rig.run(2 * HOUR)
    assert statuses(rig) == {"v1": "COMPLETE"}


def test_missing_ends_when_the_copy_is_seen_and_a_lost_copy_is_missing_no_more() -> None:
    home, there = world()
    there.create("team/app")
    digest = home.push("team/app", "v1", at=1.8e9 - 9 * HOUR)
    rig = Rig(looking(), home, there)
    rig.run(30)
    assert statuses(rig) == {"v1": "MISSING"}
    there.push("team/app", "v1", at=1.8e9, digest=digest)
    rig.run(900)
    assert (statuses(rig), replicas(rig)["v1"]["eu-west-1"]) == ({"v1": "COMPLETE"}, "present")
    del there.repositories["team/app"][digest]
    rig.run(7 * HOUR)
    assert (statuses(rig), replicas(rig)["v1"]["eu-west-1"]) == ({"v1": "COMPLETE"}, "absent")


def test_a_copy_is_looked_up_soon_after_it_is_complete() -> None:
    home, there = world()
    copied(home, there, "old")
    rig = Rig(looking(pending_interval=15.0), home, there)
    rig.run(60)
    digest = home.push("team/app", "v1", at=rig.clock.time())
    home.report("team/app", digest, Replication(IRELAND, Status.IN_PROGRESS))
    rig.run(61)
    assert replicas(rig)["v1"] == {}, "what was not looked at is not absent"
    home.report("team/app", digest, complete())
    there.push("team/app", "v1", at=rig.clock.time(), digest=digest)
    rig.run(15)
    rig.run(15)
    assert statuses(rig)["v1"] == "COMPLETE"
    assert replicas(rig)["v1"] == {"eu-west-1": "present"}


def test_a_tag_that_moves_names_another_image_until_the_copy_arrives() -> None:
    home, there = world()
    copied(home, there, "latest")
    rig = Rig(looking(), home, there)
    rig.run(60)
    digest = home.push("team/app", "latest", at=rig.clock.time())
    home.report("team/app", digest, Replication(IRELAND, Status.IN_PROGRESS))
    rig.run(1000)
    assert replicas(rig)["latest"] == {"eu-west-1": "other_image"}
    there.push("team/app", "latest", at=rig.clock.time(), digest=digest)
    home.report("team/app", digest, complete())
    rig.run(320)
    assert replicas(rig)["latest"] == {"eu-west-1": "present"}


def test_what_was_absent_before_its_replication_ended_is_not_absent_after_it() -> None:
    """Also while the destination cannot be read."""
    home, there = world()
    copied(home, there, "old")
    rig = Rig(looking(), home, there)
    rig.run(60)
    digest = home.push("team/app", "v1", at=rig.clock.time())
    home.report("team/app", digest, Replication(IRELAND, Status.IN_PROGRESS))
    rig.run(1000)
    assert replicas(rig)["v1"] == {"eu-west-1": "absent"}
    there.fault = lambda *_: refusal(Reason.UNAVAILABLE)
    there.push("team/app", "v1", at=rig.clock.time(), digest=digest)
    home.report("team/app", digest, complete())
    rig.run(600)
    assert statuses(rig)["v1"] == "COMPLETE"
    assert replicas(rig) == {"old": {"eu-west-1": "present"}, "v1": {}}
    there.fault = lambda *_: None
    rig.run(300)
    assert replicas(rig)["v1"] == {"eu-west-1": "present"}


def test_a_repository_that_is_not_there_holds_nothing() -> None:
    home, there = world()
    home.report("team/app", pushed(home, tag="v1", age=9 * HOUR), complete())
    rig = Rig(looking(), home, there)
    rig.run(30)
    assert replicas(rig) == {"v1": {"eu-west-1": "absent"}}
    assert health(rig) == {"eu-west-1": (True, frozenset())}
    assert rig.journal.failing == {}


@pytest.mark.parametrize("reason", [Reason.ACCESS_DENIED, Reason.UNAVAILABLE, Reason.THROTTLED])
def test_a_destination_that_fails_keeps_its_last_word_and_disturbs_nothing_else(reason: Reason) -> None:
    home, there = world()
    oregon = FakeECR(source=Source(ACCOUNT, OREGON.region), rules=(), page_size=1000)
    home.rules = (Rule((IRELAND, OREGON)),)
    digest = copied(home, there, "v1")
    home.report("team/app", digest, complete(), complete(OREGON))
    oregon.push("team/app", "v1", digest=digest)
    rig = Rig(looking(stale_after=2 * HOUR), home, there, oregon)
    rig.run(60)
    there.fault = lambda *_: refusal(reason)
    del there.repositories["team/app"][digest]
    del oregon.repositories["team/app"][digest]
    rig.run(HOUR)
    assert replicas(rig) == {"v1": {"eu-west-1": "present", "us-west-2": "absent"}}
    rig.run(1.4 * HOUR)
    assert replicas(rig) == {"v1": {"us-west-2": "absent"}}, "too old to be believed"
    assert health(rig) == {"eu-west-1": (False, frozenset({reason})), "us-west-2": (True, frozenset())}
    assert rig.target("*").success is True
    there.fault = lambda *_: None
    rig.run(400)
    assert replicas(rig) == {"v1": {"eu-west-1": "absent", "us-west-2": "absent"}}
    assert health(rig)["eu-west-1"] == (True, frozenset())


def test_a_denied_destination_is_not_asked_all_the_time() -> None:
    home, there = world()
    for number in range(20):
        copied(home, there, "v1", repository=f"team/app-{number}")
    there.fault = lambda *_: refusal(Reason.ACCESS_DENIED)
    rig = Rig(looking(), home, there)
    rig.run(60)
    before = there.calls[IMAGES]
    rig.run(HOUR)
    assert there.calls[IMAGES] - before <= 20 * HOUR / 150, "every failed_interval, half of it by chance"


def test_images_are_asked_for_again_when_nothing_confirms_them() -> None:
    home, there = world()
    copied(home, there, "v1")
    rig = Rig(looking(stale_after=2 * HOUR), home, there)
    rig.run(7 * HOUR)
    asked = home.calls[STATUS]
    there.fault = lambda *_: refusal(Reason.UNAVAILABLE)
    rig.run(9 * HOUR)
    assert 1 <= home.calls[STATUS] - asked <= 2
    assert statuses(rig) == {"v1": "COMPLETE"}


def test_a_listing_under_way_shows_nothing() -> None:
    home, there = world()
    for number in range(400):
        copied(home, there, f"v{number}")
    there.page_size = 100
    rig = Rig(looking(), home, there)
    calls = 0

    def third(operation: str, _: str) -> object:
        nonlocal calls
        calls += operation == IMAGES
        return refusal(Reason.UNAVAILABLE) if calls >= 3 else None

    there.fault = third  # type: ignore[assignment]
    rig.run(60)
    assert set(map(str, replicas(rig).values())) == {"{}"}
    there.fault = lambda *_: None
    rig.run(120)
    assert {state for seen in replicas(rig).values() for state in seen.values()} == {"present"}


def test_few_images_in_a_large_repository_are_looked_up_by_name() -> None:
    home, there = world()
    digest = copied(home, there, "v1")
    home.page_size = there.page_size = 10
    for number in range(40):
        there.push("team/app", f"other-{number}", digest=digest_of(f"{number}"))
        home.push("team/app", f"other-{number}", digest=digest_of(f"{number}"))
    rig = Rig(looking(TargetSettings("team/*", tags=("v*",))), home, there)
    rig.run(60)
    assert replicas(rig) == {"v1": {"eu-west-1": "present"}}
    assert there.calls[IMAGES] == 1
    del there.repositories["team/app"][digest]
    there.push("team/app", "v1", digest=digest_of("else"))
    rig.run(900)
    assert replicas(rig) == {"v1": {"eu-west-1": "other_image"}}
    there.calls.clear()
    rig.run(4 * HOUR)
    assert there.calls[IMAGES] <= 2.5 * 4 * 4.5


def test_a_registry_that_refuses_to_look_names_up_in_the_archive_is_listed() -> None:
    home, there = world()
    copied(home, there, "v1")
    home.page_size = 10
    for number in range(40):
        home.push("team/app", f"other-{number}", digest=digest_of(f"{number}"))
    find = there.find

    def refuse(repository: str, names: object, *, archived: bool = False) -> object:
        if archived:
            raise refusal(Reason.INVALID)
        return find(repository, names)  # type: ignore[arg-type]

    there.find = refuse  # type: ignore[method-assign,assignment]
    rig = Rig(looking(TargetSettings("team/*", tags=("v*",))), home, there)
    rig.run(60)
    assert replicas(rig) == {"v1": {"eu-west-1": "present"}}
    assert health(rig) == {"eu-west-1": (True, frozenset())}


def test_a_destination_that_is_watched_too_is_listed_once_for_both_uses() -> None:
    home, there = world()
    copied(home, there, "v1")
    both = tuple(RegistrySettings(region=source.region) for source in (HOME, THERE))
    alone = Rig(looking(registries=both, replica_interval=0.0), home, there)
    alone.run(2 * HOUR)
    listings = there.calls[IMAGES]
    there.calls.clear()
    rig = Rig(looking(registries=both), home, there)
    rig.run(2 * HOUR)
    assert replicas(rig)["v1"].get("eu-west-1", "present") == "present"
    assert health(rig) == {"eu-west-1": (True, frozenset())}
    assert there.calls[IMAGES] <= listings + 2
    there.repositories["team/app"].clear()
    rig.run(1000)
    seen = [
        r
        for reg in rig.snapshot().registries
        for _, images in reg.repositories
        for i in images
        for r in i.replicas
    ]
    assert [[str(r.state) for r in of_name] for of_name in seen] == [["absent"]]


def test_a_destination_in_another_account_needs_an_entry() -> None:
    place = Destination(OTHER_ACCOUNT.region, OTHER_ACCOUNT.registry_id)
    home = FakeECR(rules=(Rule((place,)),), page_size=1000)
    there = FakeECR(source=OTHER_ACCOUNT, rules=(), page_size=1000)
    digest = pushed(home, tag="v1", age=9 * HOUR)
    home.report("team/app", digest, complete(place))
    there.push("team/app", "v1", digest=digest)
    rig = Rig(looking(), home, there)
    rig.run(60)
    assert (replicas(rig), health(rig), rig.store.unread) == ({"v1": {}}, {}, (place,))
    assert sum(there.calls.values()) == 0
    assert [event for event, _ in rig.journal.events].count("destination_not_read") == 1
    role = "arn:aws:iam::444455556666:role/reader"
    entry = DestinationSettings(OTHER_ACCOUNT.registry_id, OTHER_ACCOUNT.region, role)
    rig.poller.configure(looking(destinations=(entry,)))
    rig.run(60)
    assert (replicas(rig), rig.store.unread) == ({"v1": {"us-west-2": "present"}}, ())
    rig.poller.configure(looking())
    rig.run(60)
    assert (replicas(rig), health(rig)) == ({"v1": {}}, {}), "nothing is said where nothing is known"


def test_a_repository_that_one_entry_may_not_read_is_read_with_another() -> None:
    home, there = world()
    copied(home, there, "v1")
    copied(home, there, "v1", repository="web/app")
    entries = tuple(
        DestinationSettings(ACCOUNT, region, f"arn:aws:iam::{ACCOUNT}:role/{name}")
        for name, region in (("web", None), ("team", IRELAND.region))
    )

    def permission(entry: RegistrySettings, operation: str, repository: str) -> object:
        role = (entry.role_arn or "").rpartition("/")[2]
        denied = role and operation == IMAGES and not repository.startswith(role)
        return refusal(Reason.ACCESS_DENIED) if denied else None

    aws = FakeAWS({HOME: home, THERE: there}, permission=permission)  # type: ignore[arg-type]
    rig = Rig(looking(destinations=entries), home, there, connector=aws)
    rig.run(60)
    assert health(rig) == {"eu-west-1": (True, frozenset())}
    refused = there.calls[IMAGES]
    rig.run(2 * HOUR)
    assert health(rig) == {"eu-west-1": (True, frozenset())}
    assert there.calls[IMAGES] <= refused + 2 * 9.5


def test_a_target_expects_its_images_whatever_the_rules_say() -> None:
    home = FakeECR(rules=(), page_size=1000)
    pushed(home, tag="v1", age=9 * HOUR)
    pushed(home, "web/app", age=9 * HOUR)
    rig = Rig(settings(TargetSettings("team/*", destinations=("eu-west-1",)), TargetSettings("web/*")), home)
    rig.run(60)
    assert rig.states() == {
        ("team/app", "v1", ""): {IRELAND: "MISSING"},
        ("web/app", "v1", ""): {},
    }
    counts = rig.snapshot().registries[0].destinations
    assert counts == {"team/app": 1, "web/app": 0}
    rig.poller.configure(settings(TargetSettings("team/*"), TargetSettings("web/*")))
    rig.run(60)
    assert rig.states()["team/app", "v1", ""] == {}


def test_a_target_expects_its_images_where_the_rules_cannot_be_read() -> None:
    entry = RegistrySettings(region="us-west-2", registry_id=OTHER_ACCOUNT.registry_id)
    other = FakeECR(source=OTHER_ACCOUNT, page_size=1000)
    own = FakeECR(source=Source(ACCOUNT, "us-west-2"))
    own.fault = lambda *_: refusal(Reason.ACCESS_DENIED)
    home = FakeECR(source=HOME)
    pushed(other, age=9 * HOUR)
    target = TargetSettings("team/app", destinations=(f"{ACCOUNT}/eu-west-1",))
    rig = Rig(settings(target, registries=(entry,)), other, own, home)
    rig.run(60)
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "MISSING"}}


def test_registries_that_replicate_to_each_other_see_each_others_copies() -> None:
    home, there = world()
    there.rules = (Rule((Destination(HOME.region, HOME.registry_id),)),)
    digest = pushed(home, tag="v1", age=9 * HOUR)
    home.report("team/app", digest, complete())
    there.push("team/app", "v1", at=1.8e9, digest=digest)
    rig = Rig(looking(registries=(RegistrySettings(region=THERE.region),)), home, there)
    rig.run(60)
    back = {d.region: str(s) for states in rig.states().values() for d, s in states.items()}
    assert back == {HOME.region: "COMPLETE"}, "the origin of a replicated image"


def test_without_an_interval_nothing_is_looked_at() -> None:
    home, there = world()
    copied(home, there, "v1")
    rig = Rig(looking(replica_interval=0.0), home, there)
    rig.run(HOUR)
    assert (replicas(rig), health(rig), sum(there.calls.values())) == ({"v1": {}}, {}, 0)
    rig.poller.configure(looking())
    rig.run(60)
    assert replicas(rig) == {"v1": {"eu-west-1": "present"}}
    rig.poller.configure(looking(replica_interval=0.0))
    rig.run(60)
    assert (replicas(rig), health(rig)) == ({"v1": {}}, {})


def test_two_reads_of_one_state_are_equal() -> None:
    home, there = world()
    copied(home, there, "v1")
    rig = Rig(looking(), home, there)
    for _ in range(100):
        rig.run(1)
        assert rig.snapshot() == rig.snapshot()


def test_an_old_image_that_a_reload_selects_is_looked_up_soon() -> None:
    home, there = world()
    copied(home, there, "v1")
    home.report("team/app", copied(home, there, "w1"))
    rig = Rig(looking(TargetSettings("team/*", tags=("v*",))), home, there)
    rig.run(60)
    rig.poller.configure(looking(TargetSettings("team/*", tags=("v*", "w*"))))
    rig.run(30)
    assert statuses(rig)["w1"] == "COMPLETE"
    assert replicas(rig)["w1"] == {"eu-west-1": "present"}
