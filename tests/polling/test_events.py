"""Events in virtual time: what they make the poller ask, and that polling stays the truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from support.events import failed_call, image_action, replication_action
from support.fakes import (
    ALL,
    HOME,
    IRELAND,
    OREGON,
    STATUS,
    FakeAWS,
    FakeECR,
    FakeQueue,
    Inline,
    Rig,
    Stuck,
    complete,
    digest_of,
    pushed,
    refusal,
    settings,
)

from exporter.aws.errors import ECRError
from exporter.aws.sqs import BATCH
from exporter.config.settings import RegistrySettings, TargetSettings
from exporter.polling.calls import LOST_AFTER
from exporter.polling.events import MOST_IDS
from exporter.polling.repository import MOST_HINTS
from exporter.polling.workers import WorkerPool
from exporter.replication.model import Destination, Page, Reason, Replication, Rule, Source, Status
from exporter.replication.targets import WHOLE, Shard

URL = "https://sqs.us-east-1.amazonaws.com/111122223333/ecr-events"


def rig_of(
    *ecrs: FakeECR,
    targets: tuple[TargetSettings, ...] = (ALL,),
    url: str = URL,
    shard: Shard = WHOLE,
    workers: Callable[[str], WorkerPool] | None = None,
    **knobs: Any,
) -> tuple[Rig, FakeQueue]:
    """A rig that has listed everything, and its queue. Listings come each quarter of an hour."""
    knobs = {"discovery_interval": 900.0, "registries": (RegistrySettings(events_queue_url=url),)} | knobs
    rig = Rig(settings(*targets, **knobs), *ecrs, shard=shard, workers=workers)
    rig.run(30)
    rig.ecr.calls.clear()
    assert isinstance(rig.connector, FakeAWS)
    return rig, rig.connector.queues[url.replace("{shard}", str(shard.ordinal))]


def push(rig: Rig, tag: str = "v2", repository: str = "team/app") -> str:
    """Push an image now that is COMPLETE."""
    digest = rig.ecr.push(repository, tag, at=rig.clock.time())
    rig.ecr.report(repository, digest, complete())
    return digest


def large(images: int = 10, page_size: int = 3) -> FakeECR:
    """A registry with a repository of several pages."""
    ecr = FakeECR(page_size=page_size)
    for number in range(images):
        ecr.report("team/app", pushed(ecr, tag=f"build-{number}", age=9000 + number), complete())
    return ecr


# -- pushes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 10])
def test_a_push_is_one_listing_call_and_one_status_call(images: int) -> None:
    rig, queue = rig_of(large(images))
    queue.send(image_action("PUSH", "team/app", push(rig), at=rig.clock.time(), tag="v2"))
    rig.run(2)
    assert rig.states()["team/app", "v2", ""] == {IRELAND: "COMPLETE"}
    assert rig.ecr.calls == {"DescribeImages": 1, STATUS: 1}
    assert rig.observer.events == {(HOME, "PUSH", "used"): 1}
    assert rig.observer.delays == [pytest.approx(1.0, abs=1.5)]
    assert not queue.messages
    assert rig.poller.queues() == {HOME: True}


def test_the_listing_of_a_push_takes_the_place_of_the_next_periodic_one() -> None:
    rig, queue = rig_of(large(images=2))
    rig.run(700)
    rig.ecr.calls.clear()
    queue.send(image_action("PUSH", "team/app", push(rig), at=rig.clock.time()))
    rig.run(800)
    assert rig.ecr.calls["DescribeImages"] == 1
    rig.run(110)
    assert rig.ecr.calls["DescribeImages"] == 2


def test_a_looked_up_push_takes_its_tag_from_the_other_image() -> None:
    ecr = large()
    old = pushed(ecr, tag="latest", age=8000)
    rig, queue = rig_of(ecr)
    digest = rig.ecr.push("team/app", "latest", at=rig.clock.time())
    rig.ecr.report("team/app", digest, Replication(IRELAND, Status.FAILED, "X"))
    queue.send(image_action("PUSH", "team/app", digest, at=rig.clock.time()))
    rig.run(2)
    assert rig.states()["team/app", "latest", ""] == {IRELAND: "FAILED"}
    assert len(rig.states()) == 11
    assert old not in {digest for _, _, digest in rig.states()}


def test_an_older_image_that_gets_the_tag_again_has_it() -> None:
    ecr = large()
    old, new = (pushed(ecr, tag=tag, age=age) for tag, age in (("v1", 500), ("latest", 400)))
    ecr.report("team/app", old, complete())
    ecr.report("team/app", new, Replication(IRELAND, Status.IN_PROGRESS))
    rig, queue = rig_of(ecr)
    rig.ecr.push("team/app", "latest", at=1.8e9 + 500, digest=old)
    queue.send(image_action("PUSH", "team/app", old, at=rig.clock.time(), tag="latest"))
    rig.run(2)
    assert rig.states()["team/app", "latest", ""] == {IRELAND: "COMPLETE"}
    assert rig.ecr.calls["DescribeImages"] == 1


def test_a_tag_that_moves_leaves_no_untagged_image_where_other_tags_are_not_watched() -> None:
    ecr = large()
    old = ecr.push("team/app", "v1", "dev", at=1.8e9)
    target = TargetSettings("team/app", tags=("v*", "build-*"), untagged=True)
    rig, queue = rig_of(ecr, targets=(target,))
    assert len(rig.states()) == 11
    queue.send(image_action("PUSH", "team/app", push(rig, "v1"), at=rig.clock.time(), tag="v1"))
    rig.run(2)
    assert ("team/app", "v1", "") in rig.states()
    assert ("team/app", "", old) not in rig.states()
    assert rig.ecr.calls["DescribeImages"] == 4, "a listing"


def test_an_image_that_is_watched_by_digest_is_not_counted_as_untagged() -> None:
    ecr = large()
    old = ecr.push("team/app", "v1", at=1.8e9)
    by_digest = TargetSettings("team/app", digest=old)
    untagged = TargetSettings("team/app", tags=("build-*",), untagged=True)
    rig, queue = rig_of(ecr, targets=(by_digest, untagged))
    queue.send(image_action("PUSH", "team/app", push(rig, "build-x"), at=rig.clock.time(), tag="build-x"))
    rig.run(2)
    counts = {target.label: target.images for target in rig.snapshot().registries[0].targets}
    assert counts == {by_digest.label: 1, untagged.label: 11}


def test_the_tag_of_one_of_the_latest_images_moves_to_an_old_one() -> None:
    ecr = large()
    digests = {tag: digest for digest, image in ecr.repositories["team/app"].items() for tag in image.tags}
    rig, queue = rig_of(ecr, targets=(TargetSettings("team/app", latest=3),))
    assert {tag for _, tag, _ in rig.states()} == {"build-0", "build-1", "build-2"}
    ecr.push("team/app", "build-0", at=1.8e9 - 9000, digest=digests["build-9"])
    at = rig.clock.time()
    queue.send(image_action("PUSH", "team/app", digests["build-9"], at=at, tag="build-0"))
    rig.run(2)
    assert {tag for _, tag, _ in rig.states()} == {"build-1", "build-2", "build-3"}


def test_a_moving_tag_beside_a_lasting_one_costs_no_listing_of_the_latest_images() -> None:
    ecr = large()
    ecr.push("team/app", "v1", "latest", at=1.8e9)
    rig, queue = rig_of(ecr, targets=(TargetSettings("team/app", latest=3),))
    digest = ecr.push("team/app", "v2", "latest", at=rig.clock.time())
    for tag in ("v2", "latest"):
        queue.send(image_action("PUSH", "team/app", digest, at=rig.clock.time(), tag=tag))
    rig.run(2)
    assert {tag for _, tag, _ in rig.states()} == {"v2", "latest", "v1", "build-0"}
    assert ecr.calls["DescribeImages"] == 1


def test_one_of_the_latest_images_is_deleted() -> None:
    ecr = large()
    rig, queue = rig_of(ecr, targets=(TargetSettings("team/app", latest=3),))
    newest = max(ecr.repositories["team/app"].values(), key=lambda image: image.pushed_at or 0.0)
    del ecr.repositories["team/app"][newest.digest]
    queue.send(image_action("DELETE", "team/app", newest.digest, at=rig.clock.time()))
    rig.run(2)
    assert {tag for _, tag, _ in rig.states()} == {"build-1", "build-2", "build-3"}


def test_pushes_of_tags_that_no_target_selects_cost_nothing() -> None:
    ecr = large()
    rig, queue = rig_of(ecr, targets=(TargetSettings("team/app", tags=("build-*",)),))
    for number in range(20):
        digest = push(rig, f"dev-{number}")
        queue.send(image_action("PUSH", "team/app", digest, at=rig.clock.time(), tag=f"dev-{number}"))
        rig.run(1)
    assert not ecr.calls
    assert rig.observer.outcomes() == {("PUSH", "foreign"): 20}
    watched = next(iter(ecr.repositories["team/app"]))
    ecr.push("team/app", "dev-x", at=rig.clock.time(), digest=watched)
    queue.send(image_action("PUSH", "team/app", watched, at=rig.clock.time(), tag="dev-x"))
    queue.send(image_action("PUSH", "team/app", push(rig, "build-x"), at=rig.clock.time(), tag="build-x"))
    rig.run(2)
    assert rig.observer.outcomes() == {("PUSH", "foreign"): 20, ("PUSH", "used"): 2}


@pytest.mark.parametrize("more", [{"untagged": True}, {"digest": digest_of("team/app-later")}], ids=str)
def test_pushes_of_other_tags_are_used_where_untagged_images_or_digests_are_watched(more: Any) -> None:
    targets = (TargetSettings("team/app", tags=("build-*",)), TargetSettings("team/app", **more))
    rig, queue = rig_of(large(), targets=targets)
    queue.send(image_action("PUSH", "team/app", push(rig, "dev-1"), at=rig.clock.time(), tag="dev-1"))
    rig.run(2)
    assert rig.observer.outcomes() == {("PUSH", "used"): 1}


def test_a_burst_in_a_large_repository_is_one_listing() -> None:
    rig, queue = rig_of(large())
    for number in range(MOST_HINTS + 1):
        queue.send(image_action("PUSH", "team/app", push(rig, f"v{number}"), at=rig.clock.time()))
    calls = rig.ecr.calls
    rig.run(2)
    assert {f"v{number}" for number in range(MOST_HINTS + 1)} <= {tag for _, tag, _ in rig.states()}
    assert calls["DescribeImages"] <= 1 + 7, "a look-up of the first batch, and a listing of seven pages"


@pytest.mark.parametrize("digest", [None, digest_of("not there")])
def test_a_push_without_a_digest_or_that_is_not_found_is_a_listing(digest: str | None) -> None:
    rig, queue = rig_of(large())
    push(rig)
    queue.send(image_action("PUSH", "team/app", digest, at=rig.clock.time()))
    rig.run(2)
    assert ("team/app", "v2", "") in rig.states()
    assert rig.ecr.calls["DescribeImages"] == 4 + bool(digest)


def test_a_push_to_a_new_repository_lists_it_and_not_all_repositories() -> None:
    rig, queue = rig_of(large(), targets=(TargetSettings("team/*"),))
    queue.send(image_action("PUSH", "team/new", push(rig, repository="team/new"), at=rig.clock.time()))
    queue.send(image_action("PUSH", "other/new", push(rig, repository="other/new"), at=rig.clock.time()))
    rig.run(2)
    assert rig.states()["team/new", "v2", ""] == {IRELAND: "COMPLETE"}
    assert rig.ecr.calls == {"DescribeImages": 1, STATUS: 1}
    assert rig.observer.outcomes() == {("PUSH", "used"): 1, ("PUSH", "foreign"): 1}


def test_a_repository_that_an_event_adds_during_an_older_listing_of_repositories_stays() -> None:
    ecr = FakeECR(page_size=1)
    for name in ("team/a", "team/b", "team/c"):
        ecr.report(name, pushed(ecr, name), complete())
    rig, queue = rig_of(ecr, requests_per_second=0.5, discovery_interval=120.0, settled_interval=9e4)
    rig.run(60)
    ecr.calls.clear()
    while not ecr.calls["DescribeRepositories"]:
        rig.run(0.1)
    # The pages of the listing are older than the repository.
    ecr.change_page = lambda operation, _, page: (
        Page(tuple(i for i in page.items if i.name != "team/z"), page.token)
        if operation == "DescribeRepositories"
        else page
    )
    queue.send(image_action("PUSH", "team/z", push(rig, repository="team/z"), at=rig.clock.time()))
    rig.run(2)
    assert rig.observer.outcomes() == {("PUSH", "used"): 1}
    assert ecr.calls["DescribeRepositories"] < 4
    rig.run(20)
    assert ecr.calls["DescribeRepositories"] == 4
    assert ("team/z", "v2", "") in rig.states()
    ecr.calls.clear()
    rig.run(140)
    assert ecr.calls["DescribeRepositories"] == 4
    assert ("team/z", "v2", "") not in rig.states(), "a listing that began later does not have it"


def test_a_new_repository_that_is_gone_again_fails_no_target() -> None:
    rig, queue = rig_of(large())
    queue.send(image_action("PUSH", "team/gone", digest_of("x"), at=rig.clock.time()))
    rig.run(2)
    assert rig.target("*").success is True
    assert {repository for repository, _, _ in rig.states()} == {"team/app"}


def test_an_event_changes_no_time_and_no_success_of_a_listing() -> None:
    named = tuple(TargetSettings("team/app", tag=tag) for tag in ("build-1", "gone"))
    recent = TargetSettings("team/app", pushed_within=60.0)
    rig, queue = rig_of(large(), targets=(*named, recent))
    before = rig.snapshot().registries[0]
    assert [target.success for target in before.targets] == [True, False, True]
    queue.send(image_action("PUSH", "team/app", push(rig), at=rig.clock.time()))
    rig.run(2)
    after = rig.snapshot().registries[0]
    assert after.complete_time == before.complete_time
    assert [target.success for target in after.targets] == [True, False, True]
    assert ("team/app", "v2", "") in rig.states()


def test_a_named_tag_that_an_event_brings_ends_the_failure_of_its_target_and_its_deletion_begins_it() -> None:
    rig, queue = rig_of(large(), targets=(TargetSettings("team/app", tag="v2"), TargetSettings("team/app")))
    assert rig.target("team/app:v2").success is False
    digest = push(rig)
    queue.send(image_action("PUSH", "team/app", digest, at=rig.clock.time(), tag="v2"))
    rig.run(2)
    assert rig.target("team/app:v2").success is True
    del rig.ecr.repositories["team/app"][digest]
    queue.send(image_action("DELETE", "team/app", digest, at=rig.clock.time(), tag="v2"))
    rig.run(2)
    assert rig.target("team/app:v2").reasons == {Reason.IMAGE_NOT_FOUND}


def test_the_latest_images_and_the_room_for_images_count_all_of_a_repository() -> None:
    rig, queue = rig_of(large(), targets=(TargetSettings("team/app", latest=3),), max_images=2)
    assert {tag for _, tag, _ in rig.states()} == {"build-0", "build-1"}
    assert rig.store.skipped == 1
    queue.send(image_action("PUSH", "team/app", push(rig), at=rig.clock.time()))
    rig.run(2)
    assert {tag for _, tag, _ in rig.states()} == {"v2", "build-0"}
    assert rig.store.skipped == 1


# -- deletions and storage classes ------------------------------------------------------------------


@pytest.mark.parametrize("action", ["DELETE", "UPDATE_STORAGE_CLASS"])
def test_an_image_that_is_deleted_or_archived_goes_for_one_call(action: str) -> None:
    ecr = large()
    digest = pushed(ecr, tag="v1")
    rig, queue = rig_of(ecr)
    assert ("team/app", "v1", "") in rig.states()
    del ecr.repositories["team/app"][digest]
    queue.send(image_action(action, "team/app", digest, at=rig.clock.time()))
    rig.run(2)
    assert ("team/app", "v1", "") not in rig.states()
    assert len(rig.states()) == 10
    assert ecr.calls == {"DescribeImages": 1}


def test_a_tag_that_is_deleted_goes_and_its_image_stays() -> None:
    ecr = large()
    digest = ecr.push("team/app", "v1", "latest", at=1.8e9)
    rig, queue = rig_of(ecr)
    ecr.push("team/app", "latest", at=1.8e9, digest=digest_of("another"))
    del ecr.repositories["team/app"][digest_of("another")]
    queue.send(image_action("DELETE", "team/app", digest, at=rig.clock.time(), tag="latest"))
    rig.run(2)
    assert ("team/app", "v1", "") in rig.states()
    assert ("team/app", "latest", "") not in rig.states()


def test_a_deletion_of_what_is_not_watched_costs_nothing() -> None:
    rig, queue = rig_of(large())
    queue.send(image_action("DELETE", "team/app", digest_of("never seen"), at=rig.clock.time()))
    rig.run(2)
    assert not rig.ecr.calls
    assert rig.observer.outcomes() == {("DELETE", "foreign"): 1}


# -- replications -----------------------------------------------------------------------------------


def in_progress() -> tuple[Rig, FakeQueue, str]:
    """An image that was pushed 100 s ago, and whose replication is IN_PROGRESS."""
    rig, queue = rig_of(large(1), pending_interval=300.0)
    digest = rig.ecr.push("team/app", "v2", at=rig.clock.time())
    rig.ecr.report("team/app", digest, Replication(IRELAND, Status.IN_PROGRESS))
    queue.send(image_action("PUSH", "team/app", digest, at=rig.clock.time()))
    rig.run(100)
    assert rig.states()["team/app", "v2", ""] == {IRELAND: "IN_PROGRESS"}
    rig.ecr.calls.clear()
    return rig, queue, digest


def seconds_of_the_only_completion(rig: Rig) -> float:
    ((source, destination, seconds),) = rig.completions
    assert (source, destination) == (HOME, IRELAND)
    return seconds


def test_a_replication_that_ends_is_asked_about_at_once_and_its_time_is_exact() -> None:
    rig, queue, digest = in_progress()
    rig.ecr.report("team/app", digest, complete())
    queue.send(replication_action("team/app", digest, IRELAND, at=rig.clock.time() - 40))
    rig.run(2)
    assert rig.states()["team/app", "v2", ""] == {IRELAND: "COMPLETE"}
    assert rig.ecr.calls == {STATUS: 1}
    assert seconds_of_the_only_completion(rig) == pytest.approx(60.0, abs=1.0)


def test_a_replication_that_fails_is_asked_about_at_once() -> None:
    rig, queue, digest = in_progress()
    rig.ecr.report("team/app", digest, Replication(IRELAND, Status.FAILED, "X"))
    queue.send(replication_action("team/app", digest, IRELAND, at=rig.clock.time(), result="FAILED"))
    rig.run(2)
    assert rig.states()["team/app", "v2", ""] == {IRELAND: "FAILED"}


def test_a_failed_call_in_cloudtrail_has_what_is_under_way_asked_about() -> None:
    rig, queue, digest = in_progress()
    rig.ecr.report("team/app", digest, Replication(IRELAND, Status.FAILED, "X"))
    queue.send(failed_call("team/app", IRELAND, at=rig.clock.time()))
    queue.send(failed_call("other/app", IRELAND, at=rig.clock.time()))
    rig.run(2)
    assert rig.states()["team/app", "v2", ""] == {IRELAND: "FAILED"}
    assert rig.ecr.calls == {STATUS: 1}
    assert rig.observer.outcomes()["ReplicateImage", "foreign"] == 1


def test_failed_calls_elsewhere_and_many_of_them_cost_nothing_more() -> None:
    rig, queue, _ = in_progress()
    here = Destination(HOME.region, HOME.registry_id)
    for place in (OREGON, here, Destination(IRELAND.region, "999988887777")):
        queue.send(failed_call("team/app", place, at=rig.clock.time()))
    rig.run(2)
    assert not rig.ecr.calls
    assert rig.observer.outcomes()["ReplicateImage", "foreign"] == 3
    for _ in range(100):
        queue.send(failed_call("team/app", IRELAND, at=rig.clock.time()))
        rig.run(2)
    assert rig.ecr.calls[STATUS] == 1, "the first event has the image asked about"
    assert rig.ecr.calls["DescribeImages"] == 0
    assert rig.observer.outcomes()["ReplicateImage", "old"] == 99
    rig.run(200)
    rig.ecr.calls.clear()
    queue.send(failed_call("team/app", IRELAND, at=rig.clock.time()))
    rig.run(2)
    assert rig.ecr.calls[STATUS] == 1


def test_an_event_that_says_complete_makes_nothing_complete() -> None:
    rig, queue, digest = in_progress()
    queue.send(replication_action("team/app", digest, IRELAND, at=rig.clock.time()))
    rig.run(2)
    assert rig.states()["team/app", "v2", ""] == {IRELAND: "IN_PROGRESS"}
    assert rig.completions == []


def test_a_replication_before_its_push_gives_the_exact_time_too() -> None:
    rig, queue = rig_of(large(1))
    digest, at = push(rig), rig.clock.time()
    rig.run(4)
    queue.send(replication_action("team/app", digest, IRELAND, at=at + 4))
    rig.run(6)
    queue.send(image_action("PUSH", "team/app", digest, at=at))
    rig.run(2)
    assert seconds_of_the_only_completion(rig) == pytest.approx(4.0, abs=1.0)
    assert rig.observer.outcomes() == {("REPLICATE", "foreign"): 1, ("PUSH", "used"): 1}


def test_an_end_in_the_future_does_not_replace_the_exact_one() -> None:
    rig, queue, digest = in_progress()
    rig.ecr.report("team/app", digest, complete())
    for at in (rig.clock.time() - 40, rig.clock.time() + 3600):
        queue.send(replication_action("team/app", digest, IRELAND, at=at))
    rig.run(2)
    assert seconds_of_the_only_completion(rig) == pytest.approx(60.0, abs=1.0)


@pytest.mark.parametrize(("status", "result"), [(Status.COMPLETE, "SUCCESS"), (Status.FAILED, "FAILED")])
def test_a_replication_that_ended_before_the_last_answer_is_old_if_the_answer_says_the_same(
    status: Status, result: str
) -> None:
    rig, queue, digest = in_progress()
    at = rig.clock.time()
    rig.ecr.report("team/app", digest, Replication(IRELAND, status))
    rig.run(300)
    assert rig.states()["team/app", "v2", ""] == {IRELAND: str(status)}
    rig.ecr.calls.clear()
    queue.send(replication_action("team/app", digest, IRELAND, at=at, result=result))
    rig.run(2)
    assert rig.observer.outcomes()["REPLICATE", "old"] == 1
    assert rig.ecr.calls[STATUS] == 0
    other = "FAILED" if result == "SUCCESS" else "SUCCESS"
    queue.send(replication_action("team/app", digest, IRELAND, at=at, result=other))
    rig.run(2)
    assert rig.observer.outcomes()["REPLICATE", "used"] == 1
    assert rig.ecr.calls[STATUS] == 1


def replicas(rig: Rig, digest: str = "") -> list[str]:
    """What was seen of the copies of an image, by default of all images."""
    images = rig.store.listed_images()[HOME, "team/app"]
    wanted = (image for image in images if digest in ("", image.digest))
    return [str(replica.state) for image in wanted for of_name in image.replicas for replica in of_name]


def test_a_copy_is_looked_at_soon_after_its_event() -> None:
    there = FakeECR(Source(HOME.registry_id, IRELAND.region), rules=())
    here = large(1)
    pushed(there, tag="build-0")
    rig, queue = rig_of(here, there, replica_interval=3600.0, pending_interval=15.0)
    digest = rig.ecr.push("team/app", "v2", at=rig.clock.time())
    rig.ecr.report("team/app", digest, Replication(IRELAND, Status.IN_PROGRESS))
    queue.send(image_action("PUSH", "team/app", digest, at=rig.clock.time()))
    rig.run(4)
    rig.ecr.report("team/app", digest, complete())
    there.push("team/app", "v2", at=rig.clock.time(), digest=digest)
    queue.send(replication_action("team/app", digest, IRELAND, at=rig.clock.time()))
    rig.run(8)
    assert replicas(rig, digest) == ["present"]


def test_a_copy_that_arrives_in_a_watched_registry_is_listed_there() -> None:
    there = FakeECR(Source(HOME.registry_id, IRELAND.region), rules=())
    there.create("team/app")
    registries = (RegistrySettings(events_queue_url=URL), RegistrySettings(region=IRELAND.region))
    rig, queue = rig_of(large(1), there, registries=registries)
    digest = there.push("team/app", "v2", at=rig.clock.time())
    queue.send(replication_action("team/app", digest, IRELAND, at=rig.clock.time()))
    rig.run(2)
    assert ("team/app", "v2", "") in rig.states()


@pytest.mark.parametrize("action", ["DELETE", "UPDATE_STORAGE_CLASS"])
def test_a_copy_that_is_deleted_or_archived_is_looked_up(action: str) -> None:
    there = FakeECR(Source(HOME.registry_id, IRELAND.region), rules=())
    here = large(1)
    (digest,) = here.repositories["team/app"]
    there.push("team/app", "build-0", at=1.8e9, digest=digest)
    rig, queue = rig_of(here, there, replica_interval=3600.0)
    assert replicas(rig) == ["present"]
    there.calls.clear()
    del there.repositories["team/app"][digest]
    queue.send(image_action(action, "team/app", digest, at=rig.clock.time(), region=IRELAND.region))
    queue.send(
        image_action(action, "team/app", digest_of("other"), at=rig.clock.time(), region=IRELAND.region)
    )
    rig.run(8)
    assert replicas(rig) == ["absent"]
    assert there.calls["DescribeImages"] <= 3, "its digest and its tag, which are both unknown"
    assert rig.observer.outcomes() == {(action, "used"): 1, (action, "foreign"): 1}


# -- what is not used -------------------------------------------------------------------------------


def test_old_duplicate_foreign_and_junk_messages_are_deleted_and_cost_no_call() -> None:
    rig, queue = rig_of(large())
    used = image_action("PUSH", "team/app", push(rig), at=rig.clock.time())
    queue.send(used)
    rig.run(2)
    rig.ecr.calls.clear()
    rig.journal.events.clear()
    digest = digest_of("x")
    queue.send(
        used,
        image_action("PUSH", "team/app", digest, at=rig.clock.time() - 3600),
        image_action("PUSH", "team/app", digest, at=rig.clock.time(), account="999988887777"),
        image_action("PUSH", "team/app", digest, at=rig.clock.time(), region="eu-west-1"),
        replication_action("team/app", digest, OREGON, at=rig.clock.time(), account="999988887777"),
        {"source": "aws.ecr", "detail-type": "ECR Image Scan", "detail": {}},
        "junk",
        "",
    )
    rig.run(2)
    assert not rig.ecr.calls
    assert not queue.messages
    assert rig.observer.outcomes() == {
        ("PUSH", "used"): 1,
        ("PUSH", "duplicate"): 1,
        ("PUSH", "old"): 1,
        ("PUSH", "foreign"): 2,
        ("REPLICATE", "foreign"): 1,
        ("unknown", "foreign"): 1,
        ("unknown", "invalid"): 2,
    }
    assert rig.journal.events == []


def test_only_so_many_ids_are_remembered() -> None:
    rig, queue = rig_of(FakeECR(repositories={"team/app": {}}), requests_per_second=1.0)
    first = image_action("PUSH", "team/app", digest_of("x"), at=rig.clock.time())
    queue.send(first)
    for _ in range(MOST_IDS):
        queue.send(image_action("PUSH", "team/app", digest_of("x"), at=rig.clock.time()))
    rig.run(2)
    queue.send(first)
    rig.run(2)
    assert rig.observer.outcomes() == {("PUSH", "used"): MOST_IDS + 2}


def test_an_event_without_an_account_is_of_the_registry_of_its_queue() -> None:
    rig, queue = rig_of(large())
    event = image_action("PUSH", "team/app", push(rig), at=rig.clock.time())
    del event["account"]
    queue.send(event)
    rig.run(2)
    assert ("team/app", "v2", "") in rig.states()


def test_an_event_in_the_envelope_of_a_topic_is_used() -> None:
    rig, queue = rig_of(large())
    event = image_action("PUSH", "team/app", push(rig), at=rig.clock.time())
    queue.send({"Type": "Notification", "TopicArn": "arn:aws:sns:x", "Message": json.dumps(event)})
    rig.run(2)
    assert ("team/app", "v2", "") in rig.states()


# -- bad weather ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        refusal(Reason.ACCESS_DENIED, "sqs:ReceiveMessage"),
        refusal(Reason.ACCESS_DENIED, "sqs:ReceiveMessage", everything=True),
        refusal(Reason.INVALID, "sqs:ReceiveMessage"),
        refusal(Reason.THROTTLED, "sqs:ReceiveMessage", retry_after=5.0),
        refusal(Reason.UNAVAILABLE, "sqs:ReceiveMessage"),
    ],
    ids=["denied", "expired", "deleted queue", "throttled", "hangs"],
)
def test_a_queue_that_fails_is_left_alone_for_longer_and_longer_and_recovers(error: ECRError) -> None:
    rig, queue = rig_of(large())
    queue.calls.clear()
    queue.fault = lambda _: error
    rig.run(600)
    assert 5 <= queue.calls["ReceiveMessage"] <= 40
    assert rig.poller.queues() == {HOME: False}
    assert [str(scope) for _, scope in rig.journal.failing] == ["events ecr-events"]
    assert rig.target("*").success is True
    queue.fault = lambda _: None
    queue.send(image_action("PUSH", "team/app", push(rig), at=rig.clock.time()))
    rig.run(62)
    assert rig.poller.queues() == {HOME: True}
    assert rig.journal.failing == {}
    assert ("team/app", "v2", "") in rig.states()


def test_a_steady_stream_of_events_is_received_in_full_batches() -> None:
    rig, queue = rig_of(large(), targets=(TargetSettings("team/*"),))
    queue.calls.clear()
    for number in range(1000):
        queue.send(image_action("PUSH", "other/app", digest_of(f"{number}"), at=rig.clock.time()))
        rig.run(0.01)
    rig.run(2)
    assert rig.observer.outcomes() == {("PUSH", "foreign"): 1000}
    assert not queue.messages
    assert queue.calls["ReceiveMessage"] <= 1.3 * 1000 / BATCH


def test_a_backlog_is_received_without_a_pause() -> None:
    rig, queue = rig_of(large(), targets=(TargetSettings("team/*"),))
    queue.send(
        *(image_action("PUSH", "other/app", digest_of(f"{n}"), at=rig.clock.time()) for n in range(1000))
    )
    rig.run(1.1)
    assert rig.observer.outcomes() == {("PUSH", "foreign"): 1000}


def test_a_call_that_never_ends_is_given_up() -> None:
    stuck = Stuck()
    rig, queue = rig_of(large(), workers=lambda name: stuck if name.startswith("events") else Inline())
    stuck.hangs = True
    rig.run(LOST_AFTER - 5)
    stuck.hangs = False
    rig.run(10)
    queue.send(image_action("PUSH", "team/app", push(rig), at=rig.clock.time()))
    rig.run(2)
    assert ("team/app", "v2", "") in rig.states()
    queue.send(image_action("PUSH", "team/app", push(rig, "v3"), at=rig.clock.time()))
    stuck.free()  # what it receives is not deleted, so it is not lost
    queue.show_again()
    rig.run(2)
    assert ("team/app", "v3", "") in rig.states()
    assert rig.poller.queues() == {HOME: True}


def test_nothing_is_received_while_messages_cannot_be_deleted() -> None:
    rig, queue = rig_of(large())
    queue.fault = lambda operation: (
        refusal(Reason.ACCESS_DENIED, "sqs:DeleteMessageBatch") if operation == "DeleteMessageBatch" else None
    )
    queue.send(image_action("PUSH", "team/app", push(rig), at=rig.clock.time()))
    rig.run(2)
    queue.calls.clear()
    queue.show_again()
    rig.run(100)
    assert queue.messages
    assert queue.calls["ReceiveMessage"] == 0
    assert rig.poller.queues() == {HOME: False}
    queue.fault = lambda _: None
    rig.run(62)
    assert not queue.messages
    assert rig.poller.queues() == {HOME: True}
    assert rig.observer.outcomes() == {("PUSH", "used"): 1}


def test_with_all_events_lost_nothing_is_wrong_for_longer_than_the_discovery_interval() -> None:
    rig, queue = rig_of(large())
    queue.fault = lambda _: refusal(Reason.UNAVAILABLE)
    push(rig)
    rig.run(901)
    assert ("team/app", "v2", "") in rig.states()


def test_events_an_hour_late_and_out_of_order_change_nothing() -> None:
    rig, queue = rig_of(large())
    at = rig.clock.time()
    digests = [push(rig, f"v{number}") for number in range(3)]
    rig.run(3600)
    before = rig.states()
    rig.ecr.calls.clear()
    queue.send(*(image_action("PUSH", "team/app", digest, at=at) for digest in reversed(digests)))
    queue.send(image_action("DELETE", "team/app", digests[0], at=at - 5))
    rig.run(2)
    assert rig.states() == before
    assert rig.ecr.calls["DescribeImages"] == 0
    assert {outcome for _, outcome in rig.observer.outcomes()} == {"old"}


@pytest.mark.parametrize("reason", [Reason.ACCESS_DENIED, Reason.UNAVAILABLE])
def test_events_do_not_hurry_a_repository_that_fails(reason: Reason) -> None:
    rig, queue = rig_of(large())

    def fault(operation: str, _: str) -> ECRError | None:
        return refusal(reason) if operation == "DescribeImages" else None

    rig.ecr.fault = fault
    for number in range(600):
        queue.send(image_action("PUSH", "team/app", digest_of(f"{number}"), at=rig.clock.time()))
        rig.run(1)
    assert rig.ecr.calls["DescribeImages"] <= 40
    rig.ecr.fault = lambda *_: None
    push(rig)
    rig.run(61)
    assert ("team/app", "v2", "") in rig.states()
    assert rig.target("*").success is True


def test_a_throttled_look_up_goes_on() -> None:
    rig, queue = rig_of(large())
    faults = [refusal(Reason.THROTTLED)]
    rig.ecr.fault = lambda operation, _: faults.pop() if faults and operation == "DescribeImages" else None
    queue.send(image_action("PUSH", "team/app", push(rig), at=rig.clock.time()))
    rig.run(20)
    assert ("team/app", "v2", "") in rig.states()
    assert rig.ecr.calls["DescribeImages"] == 2


def test_an_event_during_a_listing_is_not_lost() -> None:
    ecr = large()
    rig, queue = rig_of(ecr)
    event: list[dict[str, Any]] = []

    def late(operation: str, _: str) -> None:
        # The page with its place in the listing is answered already.
        if operation == "DescribeImages" and ecr.calls[operation] == 4 and not event:
            digest = ecr.push("team/app", "v2", at=rig.clock.time(), digest="sha256:" + "0" * 64)
            event.append(image_action("PUSH", "team/app", digest, at=rig.clock.time()))
            queue.send(*event)

    ecr.fault = late
    rig.run(910)
    assert event
    rig.run(2)
    assert ("team/app", "v2", "") in rig.states()


def test_an_image_that_status_calls_do_not_find_has_its_repository_listed() -> None:
    rig, queue = rig_of(large(), settled_interval=100.0)
    (gone, *_) = rig.ecr.repositories["team/app"]
    del rig.ecr.repositories["team/app"][gone]
    for _ in range(120):
        queue.send(image_action("PUSH", "team/app", push(rig), at=rig.clock.time()))
        rig.run(1)
    assert len(rig.states()) == 10


# -- configuration ----------------------------------------------------------------------------------


def test_a_shard_reads_its_own_queue_and_leaves_repositories_of_others_alone() -> None:
    ecr = FakeECR()
    names = [f"team/app-{number}" for number in range(8)]
    for name in names:
        ecr.create(name)
    shard = Shard(1, 2)
    rig, queue = rig_of(ecr, url=URL + "-{shard}", shard=shard)
    for name in names:
        queue.send(image_action("PUSH", name, push(rig, repository=name), at=rig.clock.time()))
    rig.run(5)
    mine = {name for name in names if shard.owns(HOME, name)}
    assert {repository for repository, _, _ in rig.states()} == mine
    outcomes = {("PUSH", "used"): len(mine), ("PUSH", "foreign"): 8 - len(mine)}
    assert rig.observer.outcomes() == outcomes
    assert "events_queue_shared" not in {event for event, _ in rig.journal.events}


def test_shards_that_share_a_queue_are_warned_about() -> None:
    rig, _ = rig_of(large(), shard=Shard(0, 2))
    shared = [fields["queue"] for event, fields in rig.journal.events if event == "events_queue_shared"]
    assert shared == [URL]


def test_two_entries_with_one_queue_read_it_once() -> None:
    registries = (
        RegistrySettings(events_queue_url=URL),
        RegistrySettings(region=IRELAND.region, events_queue_url=URL),
    )
    there = FakeECR(Source(HOME.registry_id, IRELAND.region), rules=(Rule((OREGON,)),))
    there.create("team/app")
    rig, queue = rig_of(large(), there, registries=registries)
    queue.calls.clear()
    rig.run(60)
    assert queue.calls["ReceiveMessage"] <= 61
    digest = there.push("team/app", "v9", at=rig.clock.time())
    queue.send(image_action("PUSH", "team/app", digest, at=rig.clock.time(), region=IRELAND.region))
    rig.run(2)
    assert ("team/app", "v9", "") in rig.states()


def test_a_queue_that_fails_and_is_removed_fails_no_longer() -> None:
    rig, queue = rig_of(large())
    queue.fault = lambda _: refusal(Reason.ACCESS_DENIED)
    rig.run(30)
    assert len(rig.journal.failing) == 1
    rig.poller.configure(settings(ALL, discovery_interval=900.0))
    rig.run(2)
    assert rig.journal.failing == {}


def test_a_reload_adds_removes_and_keeps_queues() -> None:
    rig, queue = rig_of(large())
    other_url = URL + "-2"

    def reload(url: str | None) -> None:
        entry = RegistrySettings(events_queue_url=url)
        rig.poller.configure(settings(ALL, discovery_interval=900.0, registries=(entry,)))
        rig.run(2)

    assert isinstance(rig.connector, FakeAWS)
    seen: Callable[[FakeQueue], int] = lambda queue: queue.calls["ReceiveMessage"]  # noqa: E731
    reload(other_url)
    other, before = rig.connector.queues[other_url], seen(queue)
    rig.run(10)
    assert seen(queue) == before
    assert seen(other) > 1
    reload(None)
    before = seen(other)
    rig.run(10)
    assert seen(other) == before
    assert rig.poller.queues() == {}
    reload(URL)
    assert rig.poller.queues() == {HOME: True}
    assert seen(queue) > 0
