"""Long work of the loop thread ends its turn in time, and a listing shows at once."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from support.fakes import (
    ACCOUNT,
    ALL,
    IRELAND,
    STATUS,
    FakeClock,
    FakeECR,
    Rig,
    complete,
    digest_of,
    settings,
)

from exporter.config.settings import TargetSettings
from exporter.polling.turns import MOST_WAITING, TURN, Turns
from exporter.replication.model import Image, ImageState, Source
from exporter.replication.state_file import StateCache, remembered
from exporter.replication.steps import SLICE, Steps

IMAGES = 10 * SLICE


@dataclass
class BusyClock(FakeClock):
    """A clock on which everything takes time: each look at it costs a whole turn while it is busy."""

    busy: bool = False

    def monotonic(self) -> float:
        self.now += TURN if self.busy else 0.0
        return self.now


def large() -> FakeECR:
    """A repository with a listing of one page, the oldest image first."""
    ecr = FakeECR(page_size=IMAGES)
    builds = [Image(digest_of(f"{n}"), (f"build-{n}",), 1.8e9 + n / 1000) for n in range(IMAGES)]
    ecr.repositories["team/app"] = {image.digest: image for image in builds}
    ecr.statuses = {("team/app", digest): (complete(),) for digest in ecr.repositories["team/app"]}
    return ecr


def shown(rig: Rig) -> int:
    return sum(len(images) for r in rig.snapshot().registries for _, images in r.repositories)


def counted(steps: int, done: list[int]) -> Steps[None]:
    for _ in range(steps):
        done.append(1)
        yield


def test_works_take_turns() -> None:
    clock, first, second = BusyClock(busy=True), [], []  # type: ignore[var-annotated]
    turns = Turns(clock)
    turns.begin(counted(3, first))
    turns.begin(counted(2, second))
    assert (len(first), len(second)) == (1, 1)
    turns.take()
    assert (len(first), len(second)) == (2, 1)
    turns.take()
    assert (len(first), len(second)) == (2, 2)
    for _ in range(3):
        turns.take()
    assert (len(first), len(second), bool(turns)) == (3, 2, False)


def test_a_turn_goes_on_while_there_is_time() -> None:
    done: list[int] = []
    turns = Turns(FakeClock())
    turns.begin(counted(100, done))
    assert (len(done), bool(turns)) == (100, False)


def test_no_more_work_should_come_while_much_waits() -> None:
    turns = Turns(BusyClock(busy=True))
    for _ in range(MOST_WAITING + 1):
        assert not turns.behind
        turns.begin(counted(2, []))
    for _ in range(3 * MOST_WAITING):
        turns.take()
    assert (turns.behind, bool(turns)) == (False, False)


def test_work_can_begin_later() -> None:
    clock, done = FakeClock(now=0.0), []  # type: ignore[var-annotated]
    turns = Turns(clock)
    turns.begin_later(counted(1, done), seconds=60)
    assert (turns.next_at, bool(turns)) == (60.0, False)
    clock.now = 59.0
    turns.take()
    assert not done
    clock.now = 60.0
    turns.take()
    assert (len(done), turns.next_at) == (1, float("inf"))


def turns_until(rig: Rig, images: int) -> int:
    """Turns until so many images are shown. Until then it is as many as before."""
    before = shown(rig)
    for turn in range(1, 1000):
        rig.poller.step()
        if shown(rig) == images:
            return turn
        assert shown(rig) == before
    raise AssertionError(f"{shown(rig)} images after {turn} turns")


SHAPES: dict[str, tuple[tuple[TargetSettings, ...], int, int]] = {
    "tags": ((TargetSettings("team/app", tags=("build-*",)),), 2 * IMAGES, IMAGES),
    "latest": ((TargetSettings("*", latest=IMAGES // 2),), 2 * IMAGES, IMAGES // 2),
    "several targets": ((ALL, TargetSettings("team/*", pushed_within=1e9)), 2 * IMAGES, IMAGES),
    "over max_images": ((ALL,), IMAGES // 4, IMAGES // 4),
}


@pytest.mark.parametrize(("targets", "max_images", "fit"), SHAPES.values(), ids=SHAPES)
def test_a_large_listing_is_taken_in_many_turns_and_shows_at_once(
    targets: tuple[TargetSettings, ...], max_images: int, fit: int
) -> None:
    """No turn looks at more than a few slices of the images, so that calls start in between."""
    clock, ecr = BusyClock(busy=True), large()
    rig = Rig(settings(*targets, max_images=max_images), ecr, clock=clock)
    assert turns_until(rig, fit) > IMAGES / SLICE
    ecr.repositories["team/app"] = dict(list(ecr.repositories["team/app"].items())[-2 * SLICE :])
    clock.now += 60
    assert turns_until(rig, 2 * SLICE) > 2
    clock.busy = False
    rig.run(100)
    assert len(rig.states()) == 2 * SLICE


@pytest.mark.parametrize("change", ["retarget", "retire", "limit"])
def test_a_reload_finishes_the_turns_that_are_under_way(change: str) -> None:
    clock = BusyClock(busy=True)
    rig = Rig(settings(ALL), large(), clock=clock)
    for _ in range(IMAGES // SLICE):
        rig.poller.step()
    assert shown(rig) == 0
    after, images = {
        "retarget": (settings(TargetSettings("*", tags=("build-1*",))), 1 + 10 + 100 + 1000),
        "retire": (settings(TargetSettings("other/*")), 0),
        "limit": (settings(ALL, max_images=10), 10),
    }[change]
    rig.poller.configure(after)
    clock.busy = False
    rig.run(200)
    assert len(rig.states()) == images
    assert all(rig.states().values())


@pytest.mark.parametrize("steps", range(36, 60, 3))
def test_a_limit_that_is_raised_while_images_are_taken_loses_none(steps: int) -> None:
    clock = BusyClock(busy=True)
    rig = Rig(settings(ALL, max_images=IMAGES // 4), large(), clock=clock)
    for _ in range(steps):
        rig.poller.step()
    rig.poller.configure(settings(ALL, max_images=2 * IMAGES))
    clock.busy = False
    rig.run(100)
    assert (shown(rig), rig.snapshot().skipped) == (IMAGES, 0)


@pytest.mark.parametrize("steps", range(5, 45, 5))
def test_a_repository_that_goes_while_a_look_is_taken_is_not_asked_for(steps: int) -> None:
    """The rest of the look sees that copies went, of images that are watched no longer."""
    clock, ecr = BusyClock(), large()
    there = FakeECR(source=Source(ACCOUNT, IRELAND.region), rules=(), page_size=IMAGES)
    there.repositories = {"team/app": dict(ecr.repositories["team/app"])}
    often = {"discovery_interval": 1.0, "replica_interval": 1.0}
    rig = Rig(settings(ALL, **often), ecr, there, clock=clock)
    rig.run(6)
    there.repositories["team/app"].clear()
    clock.busy = True
    for _ in range(steps):
        rig.poller.step()
    rig.poller.configure(settings(TargetSettings("other/*"), **often))
    clock.busy = False
    ecr.calls.clear()
    rig.run(20)
    assert shown(rig) == 0
    assert ecr.calls["DescribeImages"] == 0


def test_a_restart_takes_what_is_remembered_in_turns_too() -> None:
    """Images that the state file has as settled are not asked for again."""
    ecr = large()
    first = Rig(settings(ALL, requests_per_second=10_000.0), ecr)
    first.run(30)
    assert first.store.states(first.clock.now)[ImageState.SETTLED] == IMAGES
    ecr.calls.clear()
    memory = StateCache(remembered(first.store, first.clock))
    second = Rig(settings(ALL), ecr, memory=memory, clock=BusyClock(now=first.clock.now + 5, busy=True))
    assert turns_until(second, IMAGES) > IMAGES / SLICE
    assert ecr.calls[STATUS] == 0


def test_images_that_go_while_a_look_is_taken_in_steps() -> None:
    """The copies are compared in several turns, between which listings come."""
    ecr = large()
    there = FakeECR(source=Source(ACCOUNT, IRELAND.region), rules=(), page_size=IMAGES)
    there.repositories = {"team/app": dict(ecr.repositories["team/app"])}
    clock = BusyClock()
    rig = Rig(settings(ALL, discovery_interval=1.0, replica_interval=1.0), ecr, there, clock=clock)
    rig.run(30)
    clock.busy = True
    for digest in list(ecr.repositories["team/app"])[::500]:
        del ecr.repositories["team/app"][digest]
        there.repositories["team/app"].pop(digest)
        for _ in range(20):
            rig.poller.step()
    clock.busy = False
    there.repositories["team/app"].clear()
    rig.run(60)
    images = [image for r in rig.snapshot().registries for _, found in r.repositories for image in found]
    assert len(images) == IMAGES - IMAGES / 500
    assert {str(replica.state) for image in images for (replica,) in image.replicas} == {"absent"}
