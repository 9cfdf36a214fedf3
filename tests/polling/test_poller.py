"""The poller in virtual time: reloads, registries side by side, shards, and workers."""

from __future__ import annotations

from support.fakes import (
    ACCOUNT,
    ALL,
    HOME,
    IRELAND,
    STATUS,
    FakeECR,
    Rig,
    Together,
    complete,
    denied,
    pushed,
    settings,
    world,
)

from exporter.config.settings import RegistrySettings, TargetSettings
from exporter.polling.workers import MAX_HANDED_OUT
from exporter.replication.model import Reason, Replication, Source, Status
from exporter.replication.targets import Shard


def test_a_target_that_a_reload_adds_is_not_judged_by_what_was_asked_before() -> None:
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr), complete())
    rig = world(ecr, target=TargetSettings("team/app", tag="v1"))
    rig.run(10)
    rig.poller.configure(settings(TargetSettings("team/app", tag="v1"), TargetSettings("team/app", tag="v2")))
    assert rig.target("team/app:v2").success is None
    assert rig.target("team/app:v1").success is True
    rig.run(10)
    assert rig.target("team/app:v2").reasons == {Reason.IMAGE_NOT_FOUND}


def test_a_target_that_selects_differently_under_its_name_is_asked_again() -> None:
    ecr = FakeECR()
    for tag in ("v1", "dev"):
        ecr.report("team/app", pushed(ecr, tag=tag), complete())
    rig = world(ecr, target=TargetSettings("team/*", tags=("v*",), name="mine"))
    rig.run(10)
    assert set(rig.states()) == {("team/app", "v1", "")}
    before = ecr.calls.copy()
    rig.poller.configure(settings(TargetSettings("team/*", tags=("v*",), name="mine", registries=())))
    assert rig.target("mine").success is True
    rig.poller.configure(settings(TargetSettings("team/*", tags=("d*",), name="mine")))
    assert rig.target("mine").success is None
    assert rig.states() == {}
    rig.run(10)
    assert rig.target("mine").success is True
    assert set(rig.states()) == {("team/app", "dev", "")}
    assert (ecr.calls - before)[STATUS] == 1


def test_a_target_that_is_renamed_keeps_its_images() -> None:
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr), complete())
    rig = world(ecr)
    rig.run(10)
    before = rig.states()
    assert before
    rig.poller.configure(settings(TargetSettings("*", name="all")))
    assert rig.states() == before
    rig.run(10)
    assert rig.target("all").success is True
    assert ecr.calls[STATUS] == 1


def test_reloads_give_no_budget_away() -> None:
    ecr = FakeECR()
    for number in range(50):
        pushed(ecr, tag=f"v{number}")
    rig = world(ecr, requests_per_second=1.0)
    for _ in range(100):
        rig.run(0.1)
        rig.poller.configure(settings(ALL, requests_per_second=1.0))
    assert ecr.calls.total() <= 12


def test_nothing_is_told_of_a_target_before_its_first_round() -> None:
    ecr = FakeECR()
    for number in range(50):
        pushed(ecr, tag=f"v{number}", age=10 + number)
    rig = world(ecr, requests_per_second=2.0)
    rig.run(15)
    assert rig.target("*").success is None
    assert rig.store.unheard(rig.clock.now) == [], "readiness does not wait for images"
    rig.run(60)
    assert rig.target("*").success is True


def test_nothing_is_told_of_a_named_target_before_anything_is_known() -> None:
    ecr = FakeECR()
    pushed(ecr)
    rig = world(ecr, target=TargetSettings("team/app"), requests_per_second=0.5)
    seen = []
    for _ in range(20):
        target = rig.target("team/app")
        seen.append((target.success, target.images))
        rig.run(0.5)
    assert list(dict.fromkeys(seen)) == [(None, None), (None, 1), (True, 1)]


def test_the_budget_is_kept_from_the_first_second_on() -> None:
    ecr = FakeECR()
    for number in range(100):
        pushed(ecr, f"team/app-{number}")
    rig = world(ecr, requests_per_second=10.0)
    rig.run(1)
    assert ecr.calls.total() <= 12
    rig.run(9)
    assert 95 <= ecr.calls.total() <= 102


def test_the_loop_is_awake_in_time_for_each_registry() -> None:
    busy, idle = FakeECR(), FakeECR(source=Source(ACCOUNT, "eu-west-1"))
    for number in range(30):
        pushed(busy, tag=f"v{number}")
    regions = (RegistrySettings("one", region=HOME.region), RegistrySettings("two", region="eu-west-1"))
    for entries in (regions, regions[::-1]):
        busy.calls.clear()
        rig = Rig(settings(ALL, registries=entries, requests_per_second=2.0), busy, idle)
        rig.run(10)
        assert busy.calls.total() >= 19


def test_a_reload_keeps_what_stays_and_drops_the_rest_at_once() -> None:
    ecr = FakeECR()
    for tag in ("v1", "v2-dev"):
        ecr.report("team/app", pushed(ecr, tag=tag, age=9000), complete())
    rig = world(ecr)
    rig.run(10)
    calls = ecr.calls[STATUS]
    narrower = settings(TargetSettings("team/app", tags=("v*",), exclude_tags=("*-dev",)))
    rig.poller.configure(narrower)  # what `reload` has the loop thread do
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "COMPLETE"}}
    rig.run(100)
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "COMPLETE"}}
    assert ecr.calls[STATUS] == calls


def test_a_reload_takes_another_choice_of_series() -> None:
    ecr = FakeECR()
    for tag, report in (("v1", complete()), ("v2", Replication(IRELAND, Status.FAILED, "DENIED"))):
        ecr.report("team/app", pushed(ecr, tag=tag, age=9000), report)
    rig = world(ecr)
    rig.run(10)
    for choice, shown in (("all", 2), ("unfinished", 1), ("all", 2)):
        version = rig.store.version
        rig.poller.configure(settings(ALL, image_series=choice))
        [registry] = rig.snapshot().registries
        assert [len(images) for _, images in registry.shown] == [shown]
        assert [len(images) for _, images in registry.repositories] == [2]
        assert rig.store.version > version, "the page is rendered again"


def sharded(total: int, *targets: TargetSettings) -> list[Rig]:
    """All shards, after their first rounds on registries that are alike."""
    rigs = []
    for ordinal in range(total):
        ecr = FakeECR()
        for number in range(10):
            digest = pushed(ecr, f"team/app-{number}", age=9999)
            ecr.report(f"team/app-{number}", digest, complete())
        rigs.append(Rig(settings(*targets, requests_per_second=20.0), ecr, shard=Shard(ordinal, total)))
        rigs[-1].run(30)
    return rigs


def test_shards_are_disjoint_and_complete() -> None:
    (whole,) = sharded(1, ALL)
    shards = sharded(3, ALL)
    told = [set(rig.states()) for rig in shards]
    assert set.union(*told) == set(whole.states())
    assert sum(map(len, told)) == len(whole.states())
    assert sum(rig.ecr.calls[STATUS] for rig in shards) == 10
    assert sum(rig.target("*").images for rig in shards) == 10


def test_shards_divide_the_budget() -> None:
    rates = [rig.poller.rates()[HOME] for rig in sharded(4, ALL)]
    assert rates == [5.0] * 4


def test_a_target_that_names_a_repository_is_its_shards_alone() -> None:
    rigs = sharded(3, TargetSettings("team/app-0", tag="v1"), TargetSettings("team/gone", tag="v1"))
    told = [t.label for rig in rigs for r in rig.snapshot().registries for t in r.targets]
    assert sorted(told) == ["team/app-0:v1", "team/gone:v1"]
    assert all(t.success is not None for rig in rigs for r in rig.snapshot().registries for t in r.targets)


def test_a_shard_keeps_its_part_after_a_reload() -> None:
    (rig, _, _) = sharded(3, ALL)
    before = set(rig.states())
    calls = rig.ecr.calls[STATUS]
    rig.poller.configure(settings(ALL, TargetSettings("team/app-0", tag="v1")))
    rig.run(100)
    assert set(rig.states()) == before
    assert rig.ecr.calls[STATUS] == calls


def test_a_glob_whose_repositories_are_all_of_other_shards_is_not_warned_of() -> None:
    rigs = sharded(3, TargetSettings("team/app-0*"))
    assert not [event for rig in rigs for event, _ in rig.journal.events if "matches_no" in event]


def test_another_stale_after_counts_for_what_is_known() -> None:
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr, age=9999), complete())
    rig = world(ecr, stale_after=600.0)
    rig.run(30)
    rig.poller.configure(settings(ALL, stale_after=7200.0))
    (image,) = rig.store.registries[0].repositories["team/app"].images.values()
    assert image.good_until == image.answered_at + 21600.0 + 7200.0


def test_few_calls_wait_for_a_worker_so_that_a_new_push_need_not() -> None:
    ecr = FakeECR(page_size=1000)
    for number in range(3 * MAX_HANDED_OUT):
        pushed(ecr, tag=f"v{number}")
    rig = world(ecr, discovery_interval=3600.0)
    while not ecr.calls["DescribeImages"]:
        rig.run(0.01)
    busy = Together()
    rig.workers.pool = busy
    rig.run(90)
    assert len(busy.calls) == MAX_HANDED_OUT


def test_an_unnamed_registry_is_named_by_its_account_once_that_is_known() -> None:
    ecr = FakeECR()
    pushed(ecr)
    rig = world(ecr)
    rig.run(10)
    assert "111122223333/us-east-1" in {fields["registry"] for _, fields in rig.journal.events}
    ecr.fault = denied(STATUS)
    rig.run(60)
    assert {registry for registry, _ in rig.journal.failing} == {"111122223333/us-east-1"}


def test_a_registry_that_a_reload_renames_has_its_new_name_in_the_log() -> None:
    ecr = FakeECR()
    pushed(ecr)
    ecr.fault = denied(STATUS)
    old, new = (RegistrySettings(name, region=HOME.region) for name in ("old", "new"))
    rig = Rig(settings(ALL, registries=(old,)), ecr)
    rig.run(10)
    failing = {scope for _, scope in rig.journal.failing}
    assert {registry for registry, _ in rig.journal.failing} == {"old"}
    rig.poller.configure(settings(ALL, registries=(new,)))
    assert set(rig.journal.failing) == {("new", scope) for scope in failing}
    ecr.fault = lambda *_: None
    rig.journal.events.clear()
    rig.run(90)
    assert rig.journal.failing == {}
    assert {fields["registry"] for _, fields in rig.journal.events} == {"new"}
