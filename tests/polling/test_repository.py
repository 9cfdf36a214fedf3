"""The images of a repository in virtual time: listings, moved tags, names, and `max_images`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from support.fakes import (
    ALL,
    IRELAND,
    FakeECR,
    Rig,
    complete,
    digest_of,
    pushed,
    refusal,
    settings,
    world,
)

from exporter.aws.errors import ECRError
from exporter.config.settings import TargetSettings
from exporter.replication.model import (
    Image,
    Name,
    Page,
    Reason,
    Replication,
    Status,
)


def test_a_moved_tag_carries_the_status_of_its_new_digest() -> None:
    ecr = FakeECR()
    old = ecr.push("team/app", "latest", at=1.8e9)
    ecr.report("team/app", old, complete())
    rig = world(ecr)
    rig.run(5)
    new = ecr.push("team/app", "latest", at=1.8e9 + 900)
    ecr.report("team/app", new, Replication(IRELAND, Status.FAILED, "X"))
    rig.run(65)
    assert rig.states() == {("team/app", "latest", ""): {IRELAND: "FAILED"}}


def test_a_deleted_image_goes_at_the_next_listing() -> None:
    ecr = FakeECR()
    digest = pushed(ecr)
    rig = world(ecr)
    rig.run(5)
    del ecr.repositories["team/app"][digest]
    rig.run(65)
    assert rig.states() == {}
    assert rig.target("*").images == 0


def test_a_named_tag_that_does_not_exist_fails_its_target_alone() -> None:
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr), complete())
    rig = Rig(
        settings(
            TargetSettings(repository="team/app", tag="v1"),
            TargetSettings(repository="team/app", tag="v2"),
            TargetSettings(repository="team/gone", tag="v1"),
        ),
        ecr,
    )
    rig.run(30)
    assert rig.target("team/app:v1").success is True
    assert rig.target("team/app:v2").reasons == {Reason.IMAGE_NOT_FOUND}
    assert rig.target("team/gone:v1").reasons == {Reason.REPOSITORY_NOT_FOUND}
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "COMPLETE"}}
    pushed(ecr, "team/gone")
    pushed(ecr, tag="v2")
    rig.run(130)
    assert rig.target("team/app:v2").success is True
    assert rig.target("team/gone:v1").success is True
    assert rig.journal.failing == {}


class FindsArchived(FakeECR):
    """A look-up by name finds images in the archive too. AWS does not document whether it does."""

    def find(self, repository: str, names: Sequence[Name], *, archived: bool = False) -> tuple[Image, ...]:
        del archived
        return super().find(repository, names, archived=True)


@pytest.mark.parametrize("ecr", [FakeECR(), FindsArchived()])
def test_a_named_image_in_the_archive_is_not_found(ecr: FakeECR) -> None:
    """As where the repository is listed. It cannot be pulled."""
    for tag in ("v1", "v2"):
        ecr.report("team/app", pushed(ecr, tag=tag), complete())
    rig = Rig(settings(*(TargetSettings(repository="team/app", tag=tag) for tag in ("v1", "v2"))), ecr)
    rig.run(30)
    images = ecr.repositories["team/app"]
    digest = next(digest for digest, image in images.items() if image.tags == ("v1",))
    images[digest] = replace(images[digest], archived=True)
    rig.run(90)
    assert rig.target("team/app:v1").reasons == {Reason.IMAGE_NOT_FOUND}
    assert rig.states() == {("team/app", "v2", ""): {IRELAND: "COMPLETE"}}


def test_many_names_are_looked_up_in_batches_and_the_unknown_ones_do_not_lose_the_rest() -> None:
    ecr = FakeECR()
    tags = [f"v{number}" for number in range(90)]
    for tag in tags:
        pushed(ecr, tag=tag)
    named = [TargetSettings(repository="team/app", tag=tag) for tag in [*tags, "gone-1", "gone-2"]]
    rig = Rig(settings(*named), ecr)
    rig.run(50)
    assert {tag for _, tag, _ in rig.states()} == set(tags)
    assert rig.target("team/app:gone-1").reasons == {Reason.IMAGE_NOT_FOUND}
    rig.run(60)  # finds out that a listing takes more calls than that
    before = ecr.calls["DescribeImages"]
    rig.run(60)
    assert ecr.calls["DescribeImages"] - before == 3, "one batch, and each missing name by itself"


def test_one_denied_repository_leaves_the_others_alone() -> None:
    ecr = FakeECR()
    for repository in ("team/good", "team/bad"):
        ecr.report(repository, pushed(ecr, repository), complete())
    denied = True

    def fault(_: str, repository: str) -> ECRError | None:
        return refusal(Reason.ACCESS_DENIED) if denied and repository == "team/bad" else None

    ecr.fault = fault
    rig = Rig(settings(TargetSettings("team/good"), TargetSettings("team/bad")), ecr)
    rig.run(600)
    assert rig.target("team/good").success is True
    assert rig.target("team/bad").reasons == {Reason.ACCESS_DENIED}
    assert rig.target("team/bad").images is None
    assert len(rig.journal.failing) == 1
    assert ecr.calls["DescribeImages"] < 40
    denied = False
    rig.run(65)
    assert rig.target("team/bad").success is True
    assert ("team/bad", "v1", "") in rig.states()


def test_a_tag_that_moves_between_two_pages_is_its_newest_images() -> None:
    ecr = FakeECR()
    old, new = pushed(ecr, age=100), digest_of("new")
    ecr.repositories["team/app"][new] = replace(
        ecr.repositories["team/app"][old], digest=new, pushed_at=1.8e9 + 995
    )
    ecr.report("team/app", new, Replication(IRELAND, Status.FAILED, "X"))
    ecr.report("team/app", old, complete())
    rig = world(ecr)
    rig.run(5)
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "FAILED"}}
    assert rig.target("*").images == 1


def test_an_untagged_and_a_digest_watched_image_are_named_by_digest() -> None:
    ecr = FakeECR()
    digest = ecr.push("team/app", at=1.8e9)
    tagged = pushed(ecr)
    rig = Rig(
        settings(
            TargetSettings("team/app", untagged=True, tags=("nothing",)),
            TargetSettings("team/app", digest=tagged),
            TargetSettings("team/app", digest=digest_of("nowhere")),
        ),
        ecr,
    )
    rig.run(10)
    assert set(rig.states()) == {("team/app", "", digest), ("team/app", "", tagged)}
    wanted = f"team/app@{digest_of('nowhere')}"
    assert rig.target(wanted).reasons == {Reason.IMAGE_NOT_FOUND}


def test_the_newest_images_win_when_there_are_too_many() -> None:
    ecr = FakeECR(page_size=1000)
    for number in range(40):
        pushed(ecr, f"team/app-{number % 4}", tag=f"v{number}", age=100 + number)
    rig = world(ecr, max_images=10)
    rig.run(130)
    assert {tag for _, tag, _ in rig.states()} == {f"v{number}" for number in range(10)}
    assert rig.store.skipped == 30


@pytest.mark.parametrize("names", [1, 3])
def test_repositories_that_come_first_give_way_as_soon_as_newer_images_are_known(names: int) -> None:
    """Each repository has newer images than all before it, and its listing comes once in an hour."""
    ecr, most = FakeECR(page_size=1000), 0
    for number in range(40):
        for image in range(10):
            tags = [f"v{image}-{name}" for name in range(names)]
            ecr.push(f"team/app-{number:02}", *tags, at=1.8e9 + 10 * number + image)
    rig = world(ecr, max_images=60, discovery_interval=3600.0)
    for _ in range(60):
        rig.run(1)
        most = max(most, len(rig.states()))
    assert rig.store.skipped == 400 * names - 60
    assert 60 <= len(rig.states()) <= 66  # a tenth more may stay until their next listing
    assert most <= 66 + 10 * names  # with those of the last listing


def test_a_repository_that_waits_for_other_targets_shows_nothing_of_the_targets_before() -> None:
    """Repositories that are listed with the new targets have so many images that the others give way."""
    ecr, most = FakeECR(page_size=1000), 0
    for number in range(10):
        for image in range(6):
            for age, kind in ((900, "late"), (920, "late-too"), (930, "kept"), (925, "old")):
                ecr.push(f"team/app-{number}", f"{kind}-{image}", at=1.8e9 + 1000 - age - image / 10)
    first = TargetSettings("team/*", tags=("kept-*", "old-*"))
    knobs = {"max_images": 120, "requests_per_second": 1.0, "discovery_interval": 3600.0}
    rig = world(ecr, target=first, **knobs)
    rig.run(600)
    assert len(rig.states()) == 120
    rig.poller.configure(settings(replace(first, tags=("kept-*", "late-*")), **knobs))
    for _ in range(300):
        rig.run(1)
        shown = [tag.partition("-")[0] for _, tag, _ in rig.states()]
        assert set(shown) == {"kept", "late"} or set(shown) == {"kept"}
        most = max(most, len(shown))
    assert rig.store.skipped == 60
    assert 120 <= len(rig.states()) <= 132
    assert most <= 132 + 18  # a tenth more, with those of the last listing


def test_what_is_left_out_for_want_of_room_is_logged_once_until_it_fits() -> None:
    ecr = FakeECR()
    for number in range(6):
        pushed(ecr, f"team/app-{number % 3}", tag=f"v{number}", age=100 + number)
    rig = world(ecr, max_images=5)
    rig.run(200)

    def warnings() -> int:
        return sum(event == "images_skipped" for event, _ in rig.journal.events)

    assert rig.store.skipped == 1
    assert warnings() == 1
    del ecr.repositories["team/app-2"]
    rig.run(70)
    assert rig.store.skipped == 0
    for number in range(6, 9):
        pushed(ecr, tag=f"v{number}")
    rig.run(200)
    assert rig.store.skipped == 2
    assert warnings() == 2


def test_an_unchanged_repository_gives_way_to_newer_images_elsewhere() -> None:
    ecr = FakeECR()
    pushed(ecr, "team/old", tag="v1", age=9000)
    pushed(ecr, "team/new", tag="v1")
    rig = world(ecr, max_images=2)
    rig.run(10)
    assert {repository for repository, _, _ in rig.states()} == {"team/old", "team/new"}
    pushed(ecr, "team/new", tag="v2")
    rig.run(130)
    assert {(repository, tag) for repository, tag, _ in rig.states()} == {
        ("team/new", "v1"),
        ("team/new", "v2"),
    }
    del ecr.repositories["team/new"]
    rig.run(130)
    assert {repository for repository, _, _ in rig.states()} == {"team/old"}


def test_an_image_grows_too_old_though_its_listing_stays_the_same() -> None:
    ecr = FakeECR()
    pushed(ecr, tag="v1", age=10)
    rig = world(ecr, target=TargetSettings("*", pushed_within=600.0))
    rig.run(500)
    assert rig.states()
    rig.run(200)
    assert rig.states() == {}


@pytest.mark.parametrize("operation", ["DescribeRepositories", "DescribeImages"])
def test_a_listing_that_leads_in_a_circle_is_a_failure_and_ends(operation: str) -> None:
    ecr = FakeECR()
    for number in range(8):
        pushed(ecr, f"team/app-{number}", tag="v1")
        pushed(ecr, "team/app-0", tag=f"v{number}")
    ecr.change_page = lambda called, _, page: Page(page.items, "3") if called == operation else page
    rig = world(ecr)
    rig.run(300)
    assert ecr.calls[operation] < 300
    assert rig.target("*").reasons == {Reason.INVALID}
    ecr.change_page = lambda _, __, page: page
    rig.run(130)
    assert rig.target("*").success is True


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("empty", [True, False])
def test_a_listing_whose_tokens_never_end_is_a_failure_and_ends(
    fresh: bool, empty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.polling.listing.MOST_PAGES", 40)
    ecr = FakeECR()
    for number in range(8):
        pushed(ecr, "team/app", tag=f"v{number}")

    def endless(operation: str, items: Sequence[Any], page: Page[Any]) -> Page[Any]:
        if operation != "DescribeImages":
            return page
        token = str(ecr.calls[operation] if fresh else 7)
        return Page(() if empty else tuple(items[:3]), token)

    rig = world(ecr)
    rig.run(100)
    before = rig.states()
    assert len(before) == 8
    ecr.change_page = endless
    rig.run(300)
    assert rig.target("*").reasons == {Reason.INVALID}
    assert rig.states() == before
    ecr.change_page = lambda _, __, page: page
    rig.run(130)
    assert rig.target("*").success is True


def test_a_name_that_does_not_exist_does_not_cost_more_calls_every_other_time() -> None:
    ecr = FakeECR(page_size=100)
    for number in range(49):
        ecr.report("team/app", pushed(ecr, tag=f"v{number}", age=9999), complete())
    rig = Rig(settings(*(TargetSettings("team/app", tag=f"v{number}") for number in range(50))), ecr)
    rig.run(100)
    for _ in range(4):
        ecr.calls.clear()
        rig.run(60)
        assert ecr.calls["DescribeImages"] <= 2


def test_a_longer_interval_does_not_put_off_the_first_listing() -> None:
    ecr = FakeECR()
    for number in range(10):
        pushed(ecr, f"team/app-{number}")
    rig = world(ecr, requests_per_second=1.0)
    rig.run(4)
    rig.poller.configure(settings(ALL, requests_per_second=1.0, discovery_interval=3600.0))
    rig.run(60)
    assert len(rig.states()) == 10


def test_a_look_up_that_a_reload_overtakes_fails_no_new_target() -> None:
    ecr = FakeECR()
    pushed(ecr, tag="v1")
    rig = Rig(settings(TargetSettings("team/app", tag="gone")), ecr)

    def reload(operation: str, _: str) -> ECRError | None:
        if operation == "DescribeImages":
            ecr.fault = lambda *_: None
            rig.poller.configure(settings(TargetSettings("team/app", tag="v1")))
        return None

    ecr.fault = reload
    for _ in range(30):
        rig.run(1)
        assert rig.target("team/app:v1").success is not False
    assert not rig.journal.failing


def test_a_smaller_max_images_counts_at_once() -> None:
    ecr = FakeECR(page_size=100)
    for number in range(20):
        ecr.report("team/app", pushed(ecr, tag=f"v{number}", age=9999 - number), complete())
    rig = world(ecr)
    rig.run(30)
    rig.poller.configure(settings(ALL, max_images=5))
    assert {tag for _, tag, _ in rig.states()} == {f"v{number}" for number in range(15, 20)}
    assert rig.store.skipped == 15
    rig.poller.configure(settings(ALL, max_images=10))
    assert len(rig.states()) == 10
