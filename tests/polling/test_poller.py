"""The engine in virtual time, on a make-believe ECR: what is asked when, and what is told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support.command import eventually
from support.fakes import (
    ACCOUNT,
    EVERYTHING,
    HOME,
    IRELAND,
    OREGON,
    FakeECR,
    Fault,
    Inline,
    Rig,
    Stuck,
    digest_of,
    refusal,
)

from exporter.aws.errors import ECRError
from exporter.aws.timeouts import Deadline
from exporter.config.settings import RegistrySettings, Settings, TargetSettings
from exporter.metrics.catalogue import DOMAIN, RepositoryRow
from exporter.polling.calls import LOST_AFTER, Kind
from exporter.polling.poller import HEARTBEAT
from exporter.polling.workers import MAX_HANDED_OUT, ThreadPool
from exporter.replication.model import (
    Destination,
    FailureScope,
    ImageState,
    Reason,
    Replication,
    Rule,
    Source,
    Status,
)
from exporter.replication.targets import Shard

STATUS = "DescribeImageReplicationStatus"


def settings(*targets: TargetSettings, **knobs: object) -> Settings:
    base: dict[str, object] = {"registries": (RegistrySettings(),), "requests_per_second": 100.0}
    return Settings(targets=targets, **{**base, **knobs})  # type: ignore[arg-type]


ALL = TargetSettings(repository="*")


def world(*ecrs: FakeECR, target: TargetSettings = ALL, **knobs: object) -> Rig:
    return Rig(settings(target, **knobs), *ecrs)


def complete(destination: Destination = IRELAND) -> Replication:
    return Replication(destination, Status.COMPLETE)


def pushed(ecr: FakeECR, repository: str = "team/app", tag: str = "v1", age: float = 10.0) -> str:
    return ecr.push(repository, tag, at=1.8e9 + 1000.0 - age)


def test_every_reported_state_is_told() -> None:
    ecr = FakeECR(rules=(Rule((IRELAND, OREGON)),))
    digest = pushed(ecr)
    ecr.report("team/app", digest, complete(), Replication(OREGON, Status.FAILED, "DENIED"))
    rig = world(ecr)
    rig.run(5)
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "COMPLETE", OREGON: "FAILED"}}
    assert rig.target("*").success is True
    assert rig.target("*").images == 1


def test_what_the_rules_owe_and_ecr_does_not_report_is_missing() -> None:
    ecr = FakeECR(rules=(Rule((IRELAND,)), Rule((OREGON,), ("other/",), ("other/",))))
    pushed(ecr)
    rig = world(ecr)
    rig.run(5)
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "MISSING"}}


def test_an_unheard_of_status_is_told_by_its_own_name_and_noted_once() -> None:
    ecr = FakeECR()
    digest = pushed(ecr)
    ecr.report("team/app", digest, Replication(IRELAND, "TELEPORTED"))
    rig = world(ecr)
    rig.run(600)
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "TELEPORTED"}}
    noted = [fields for event, fields in rig.journal.events if event == "unheard_of_status"]
    assert [fields["status"] for fields in noted] == ["TELEPORTED"]


def test_settled_images_are_not_asked_again_before_their_interval() -> None:
    ecr = FakeECR()
    for number in range(20):
        digest = pushed(ecr, tag=f"v{number}", age=9999)
        ecr.report("team/app", digest, complete())
    rig = world(ecr, settled_interval=7200.0)
    rig.run(60)
    assert ecr.calls[STATUS] == 20
    rig.run(6000)
    assert ecr.calls[STATUS] == 20
    rig.run(1500)
    assert ecr.calls[STATUS] == 40


def test_one_call_serves_all_tags_of_a_digest() -> None:
    ecr = FakeECR()
    digest = ecr.push("team/app", "v1", "latest", "stable", at=1.8e9)
    ecr.report("team/app", digest, complete())
    rig = world(ecr)
    rig.run(50)
    assert ecr.calls[STATUS] == 1
    assert {tag for _, tag, _ in rig.states()} == {"v1", "latest", "stable"}


def test_a_pending_image_is_asked_at_the_pending_interval_and_its_duration_observed() -> None:
    ecr = FakeECR()
    digest = pushed(ecr, age=5)
    ecr.report("team/app", digest, Replication(IRELAND, Status.IN_PROGRESS))
    rig = world(ecr, pending_interval=15.0)
    rig.run(31)
    assert ecr.calls[STATUS] == 3
    ecr.report("team/app", digest, complete())
    rig.run(16)
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "COMPLETE"}}
    ((source, destination, seconds),) = rig.completions
    assert (source, destination) == (HOME, IRELAND)
    assert 31 <= seconds <= 52
    rig.run(1000)
    assert len(rig.completions) == 1


def test_an_image_first_seen_complete_has_no_duration() -> None:
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr), complete())
    rig = world(ecr)
    rig.run(100)
    assert rig.completions == []


def test_long_stuck_images_are_asked_at_the_failed_interval() -> None:
    ecr = FakeECR()
    digest = pushed(ecr, age=8000)
    ecr.report("team/app", digest, Replication(IRELAND, Status.IN_PROGRESS))
    rig = world(ecr, failed_interval=300.0)
    rig.run(901)
    assert 4 <= ecr.calls[STATUS] <= 5


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


def test_a_digest_pushed_again_is_asked_again() -> None:
    ecr = FakeECR()
    digest = pushed(ecr, age=9000)
    ecr.report("team/app", digest, complete())
    rig = world(ecr)
    rig.run(5)
    ecr.push("team/app", "v1", at=1.8e9 + 1005, digest=digest)
    ecr.report("team/app", digest, Replication(IRELAND, Status.FAILED, "X"))
    rig.run(65)
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "FAILED"}}


def test_changed_rules_have_everything_in_scope_asked_again() -> None:
    ecr = FakeECR(rules=(Rule((IRELAND,), ("team/",), ("team/",)),))
    for repository in ("team/app", "other/app"):
        digest = pushed(ecr, repository, age=9000)
        ecr.report(repository, digest, complete())
    rig = world(ecr)
    rig.run(10)
    assert ecr.calls[STATUS] == 2
    ecr.rules = (*ecr.rules, Rule((OREGON,), ("team/",), ("team/",)))
    rig.run(65)
    assert ecr.calls[STATUS] == 3
    assert rig.states()["team/app", "v1", ""] == {IRELAND: "COMPLETE", OREGON: "MISSING"}
    ecr.rules = EVERYTHING
    rig.run(65)
    assert rig.states()["team/app", "v1", ""] == {IRELAND: "COMPLETE"}


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


def test_denied_status_calls_are_held_back_as_one() -> None:
    ecr = FakeECR()
    for number in range(50):
        pushed(ecr, tag=f"v{number}")
    ecr.fault = lambda op, _: refusal(Reason.ACCESS_DENIED) if op == STATUS else None
    rig = world(ecr)
    rig.run(600)
    assert ecr.calls[STATUS] < 30
    assert rig.states() == {("team/app", f"v{n}", ""): {} for n in range(50)}
    assert rig.target("*").reasons == {Reason.ACCESS_DENIED}
    ecr.fault = lambda *_: None
    rig.run(65)
    assert rig.target("*").success is True
    assert all(states == {IRELAND: "MISSING"} for states in rig.states().values())


def test_an_outage_keeps_the_last_word_until_stale_after_and_heals_by_itself() -> None:
    ecr = FakeECR()
    for number in range(30):
        digest = pushed(ecr, tag=f"v{number}", age=9000)
        ecr.report("team/app", digest, complete())
    rig = world(ecr, stale_after=3600.0)
    rig.run(120)
    ecr.fault = lambda *_: refusal(Reason.UNAVAILABLE)
    calls = ecr.calls.total()
    rig.run(3000)
    assert len(rig.states()) == 30
    assert rig.target("*").reasons == {Reason.UNAVAILABLE}
    assert set(rig.journal.failing.values()) == {Reason.UNAVAILABLE}
    assert ecr.calls.total() - calls < 3000 / 10
    rig.run(700)
    assert rig.states() == {}
    assert rig.target("*").images is None
    ecr.fault = lambda *_: None
    calls = ecr.calls[STATUS]
    rig.run(60)
    assert len(rig.states()) == 30
    assert ecr.calls[STATUS] == calls, "what is settled needs no new call"
    assert rig.target("*").success is True
    assert rig.journal.failing == {}


def test_one_dropped_connection_is_no_failure() -> None:
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr), complete())
    rig = world(ecr)
    rig.run(5)
    once = iter([refusal(Reason.UNAVAILABLE)])
    ecr.fault = lambda *_: next(once, None)
    for _ in range(100):
        rig.run(1)
        assert rig.target("*").success is True


def test_a_call_that_never_ends_is_a_failure_and_is_made_again() -> None:
    ecr, workers = FakeECR(), Stuck()
    for number in range(3):
        pushed(ecr, tag=f"v{number}")
    rig = Rig(settings(ALL), ecr, workers=lambda _: workers)
    rig.run(60)
    assert rig.target("*").success is True
    workers.hangs = True
    while not workers.stuck:
        rig.run(1)
    rig.run(LOST_AFTER + HEARTBEAT)
    assert rig.target("*").reasons == {Reason.UNAVAILABLE}
    assert {scope for _, scope in rig.journal.failing} == {FailureScope("registry")}
    workers.hangs = False
    rig.run(60)
    assert rig.target("*").success is True
    assert rig.journal.failing == {}
    # What the lost workers bring after all is no answer to the calls that were made in their stead.
    assert 0 < len(workers.stuck) < MAX_HANDED_OUT
    before, asked = rig.states(), ecr.calls.total()
    ecr.fault = lambda *_: refusal(Reason.ACCESS_DENIED)
    workers.free()
    came_late = ecr.calls.total() - asked
    ecr.fault = lambda *_: None
    rig.run(5)
    assert came_late > 0
    assert rig.journal.failing == {}
    assert (rig.target("*").success, rig.states()) == (True, before)


def test_a_refused_call_is_booked_again_and_fails_nothing() -> None:
    ecr = FakeECR()
    for number in range(10):
        ecr.report("team/app", pushed(ecr, tag=f"v{number}"), complete())
    refusals = iter(range(25))
    ecr.fault = lambda *_: refusal(Reason.THROTTLED) if next(refusals, None) is not None else None
    rig = world(ecr)
    rig.run(200)
    assert len(rig.states()) == 10
    assert [str(scope) for _, scope in rig.journal.failing] == ["budget"]
    assert rig.target("*").success is True


def test_throttling_that_is_over_is_said_to_be() -> None:
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr), complete())
    rig = world(ecr)
    rig.run(5)
    once = iter([refusal(Reason.THROTTLED)])
    ecr.fault = lambda *_: next(once, None)
    rig.run(200)
    assert set(rig.journal.failing.values()) == {Reason.THROTTLED}
    rig.run(300)
    assert rig.journal.failing == {}


def test_throttled_from_the_start_fails_the_first_round_in_the_end() -> None:
    ecr = FakeECR()
    pushed(ecr)
    ecr.fault = lambda *_: refusal(Reason.THROTTLED)
    rig = world(ecr, stale_after=600.0)
    rig.run(50)
    assert rig.store.unheard(rig.clock.now) == [Source("", HOME.region)]
    assert rig.target("*").success is None
    rig.run(450)
    assert ecr.calls.total() < 300, "it backs off"
    for _ in range(100):
        assert rig.target("*").success is False
        assert rig.target("*").reasons == {Reason.THROTTLED}
        rig.run(10)
    assert rig.store.unheard(rig.clock.now) == []
    ecr.fault = lambda *_: None
    rig.run(120)
    assert rig.target("*").success is True


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


def test_a_status_that_is_never_found_is_a_failure() -> None:
    ecr = FakeECR()
    pushed(ecr)
    ecr.fault = lambda op, _: refusal(Reason.IMAGE_NOT_FOUND) if op == STATUS else None
    rig = world(ecr)
    rig.run(20)
    assert rig.target("*").success is None
    rig.run(400)
    assert rig.target("*").reasons == {Reason.IMAGE_NOT_FOUND}


def test_one_image_that_gets_no_answer_does_not_hold_up_the_others() -> None:
    ecr = FakeECR()
    poison = pushed(ecr, tag="poison", age=-1)
    for number in range(20):
        ecr.report("team/app", pushed(ecr, tag=f"v{number}"), complete())

    def fault(operation: str, _: str) -> ECRError | None:
        poisoned = operation == STATUS and ecr.log[-1][2] == poison
        return refusal(Reason.UNAVAILABLE) if poisoned else None

    ecr.fault = fault
    rig = world(ecr)
    rig.run(10)
    assert sum(bool(states) for states in rig.states().values()) == 20
    for _ in range(20):
        rig.run(5)
        assert rig.target("*").reasons == {Reason.UNAVAILABLE}


def test_a_target_that_a_reload_adds_is_not_judged_by_what_was_asked_before() -> None:
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr), complete())
    rig = world(ecr, target=TargetSettings("team/app", tag="v1"))
    rig.run(10)
    rig.poller._configure(
        settings(TargetSettings("team/app", tag="v1"), TargetSettings("team/app", tag="v2"))
    )
    assert rig.target("team/app:v2").success is None
    assert rig.target("team/app:v1").success is True
    rig.run(10)
    assert rig.target("team/app:v2").reasons == {Reason.IMAGE_NOT_FOUND}


def test_credentials_of_another_account_show_another_registry() -> None:
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr), complete())
    rig = world(ecr)
    rig.run(10)
    ecr.source = Source("999988887777", "us-east-1")
    ecr.repositories = {}
    ecr.report("team/api", pushed(ecr, "team/api"), complete())
    rig.run(70)
    assert [registry.source for registry in rig.snapshot().registries] == [ecr.source]
    assert set(rig.states()) == {("team/api", "v1", "")}


def test_reloads_give_no_budget_away() -> None:
    ecr = FakeECR()
    for number in range(50):
        pushed(ecr, tag=f"v{number}")
    rig = world(ecr, requests_per_second=1.0)
    for _ in range(100):
        rig.run(0.1)
        rig.poller._configure(settings(ALL, requests_per_second=1.0))
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
    for _ in range(20):
        target = rig.target("team/app")
        assert (target.success, target.images) in [(None, None), (None, 1)] or rig.states()
        rig.run(0.5)
    assert rig.target("team/app").success is True


def test_new_pushes_overtake_a_backlog() -> None:
    ecr = FakeECR(page_size=1000)
    for number in range(300):
        pushed(ecr, tag=f"v{number}", age=10000 + number)
    rig = world(ecr, requests_per_second=1.0)
    rig.run(20)
    asked = len(ecr.log)
    digest = pushed(ecr, tag="new", age=-60)
    rig.run(70)
    rows = ecr.log[asked:]
    listed = next(i for i, row in enumerate(rows) if row[0] == "DescribeImages")
    assert (STATUS, "team/app", digest) in rows[listed : listed + 5]


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


def test_two_entries_for_one_registry_ask_once() -> None:
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr), complete())
    entries = (
        RegistrySettings(name="one"),
        RegistrySettings(name="two", role_arn=f"arn:aws:iam::{ACCOUNT}:role/r", region="us-east-1"),
        RegistrySettings(name="three", registry_id=ACCOUNT, region="us-east-1"),
    )
    rig = Rig(settings(ALL, registries=entries), ecr)
    rig.run(10)
    assert ecr.calls[STATUS] == 1
    assert [registry.source for registry in rig.snapshot().registries] == [HOME]
    assert rig.target("*").success is True


def test_somebody_elses_registry_is_read_without_its_rules() -> None:
    other = FakeECR(source=Source("444455556666", "us-east-1"))
    other.report("team/app", pushed(other), complete(OREGON))
    pushed(other, tag="v2", age=9000)
    home = FakeECR()
    entry = RegistrySettings(registry_id="444455556666")
    rig = Rig(settings(ALL, registries=(entry,)), home, other)
    rig.run(10)
    assert rig.states() == {
        ("team/app", "v1", ""): {OREGON: "COMPLETE"},
        ("team/app", "v2", ""): {},
    }
    assert rig.snapshot().registries[0].rules is None
    assert rig.target("*").success is True


def test_an_account_that_may_not_describe_its_registry_is_named_by_sts() -> None:
    ecr = FakeECR()
    pushed(ecr)
    ecr.fault = lambda op, _: refusal(Reason.ACCESS_DENIED) if op == "DescribeRegistry" else None
    rig = world(ecr)
    rig.run(20)
    assert rig.snapshot().registries[0].source == HOME
    assert ("team/app", "v1", "") in rig.states()
    assert rig.target("*").reasons == {Reason.ACCESS_DENIED}


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


def test_a_reload_keeps_what_stays_and_drops_the_rest_at_once() -> None:
    ecr = FakeECR()
    for tag in ("v1", "v2-dev"):
        ecr.report("team/app", pushed(ecr, tag=tag, age=9000), complete())
    rig = world(ecr)
    rig.run(10)
    calls = ecr.calls[STATUS]
    narrower = settings(TargetSettings("team/app", tags=("v*",), exclude_tags=("*-dev",)))
    rig.poller._configure(narrower)  # what `reload` has the loop thread do
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "COMPLETE"}}
    rig.run(100)
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "COMPLETE"}}
    assert ecr.calls[STATUS] == calls


def test_a_shorter_interval_counts_from_the_last_answer() -> None:
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr, age=9000), complete())
    rig = world(ecr, settled_interval=7200.0)
    rig.run(1000)
    rig.poller._configure(settings(ALL, settled_interval=1500.0))
    rig.run(300)
    assert ecr.calls[STATUS] == 1
    rig.run(250)
    assert ecr.calls[STATUS] == 2


def test_states_are_counted() -> None:
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr, tag="ok"), complete())
    ecr.report("team/app", pushed(ecr, tag="bad"), Replication(IRELAND, Status.FAILED, "X"))
    pushed(ecr, tag="new")
    rig = world(ecr)
    rig.run(5)
    states = rig.store.states(rig.clock.now)
    assert [states[s] for s in ImageState] == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("operation", ["DescribeRepositories", "DescribeImages"])
def test_a_listing_that_leads_in_a_circle_is_a_failure_and_ends(operation: str) -> None:
    ecr = FakeECR()
    for number in range(8):
        pushed(ecr, f"team/app-{number}", tag="v1")
        pushed(ecr, "team/app-0", tag=f"v{number}")
    whole = ecr._page
    circling = True

    def page(items: object, token: str | None) -> object:
        found = whole(items, token)  # type: ignore[arg-type]
        wanted = "DescribeRepositories" if ecr.log[-1][1] == "" else "DescribeImages"
        return type(found)(found.items, "3") if circling and wanted == operation else found

    ecr._page = page  # type: ignore[method-assign, assignment]
    rig = world(ecr)
    rig.run(300)
    assert ecr.calls[operation] < 300
    assert rig.target("*").reasons == {Reason.INVALID}
    circling = False
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
    whole = ecr._page
    looping = False

    def page(items: object, token: str | None) -> object:
        if not looping or ecr.log[-1][0] != "DescribeImages":
            return whole(items, token)  # type: ignore[arg-type]
        found = whole(items, None)  # type: ignore[arg-type]
        token = f"token-{ecr.calls['DescribeImages'] if fresh else 7}"
        return type(found)(() if empty else found.items, token)

    ecr._page = page  # type: ignore[method-assign, assignment]
    rig = world(ecr)
    rig.run(100)
    before = rig.states()
    assert len(before) == 8
    looping = True
    rig.run(300)
    assert rig.target("*").reasons == {Reason.INVALID}
    assert rig.states() == before
    looping = False
    rig.run(130)
    assert rig.target("*").success is True


# -- shards ----------------------------------------------------------------------------------------


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
    rig.poller._configure(settings(ALL, TargetSettings("team/app-0", tag="v1")))
    rig.run(100)
    assert set(rig.states()) == before
    assert rig.ecr.calls[STATUS] == calls


def test_a_glob_whose_repositories_are_all_of_other_shards_is_not_warned_of() -> None:
    rigs = sharded(3, TargetSettings("team/app-0*"))
    assert not [event for rig in rigs for event, _ in rig.journal.events if "matches_no" in event]


# -- trouble in one place --------------------------------------------------------------------------


def test_a_repository_that_never_answers_is_no_outage_of_the_registry() -> None:
    ecr = FakeECR()
    for repository in ("team/app", "team/hung"):
        ecr.report(repository, pushed(ecr, repository, age=9999), complete())
    rig = Rig(settings(TargetSettings("team/hung"), TargetSettings("team/app")), ecr)
    rig.run(30)
    for number in range(2, 20):
        pushed(ecr, "team/hung", tag=f"v{number}")
    ecr.fault = lambda operation, _: refusal(Reason.UNAVAILABLE) if operation == STATUS else None
    for _ in range(60):
        rig.run(1)
        assert rig.target("team/app").success is True
    assert rig.target("team/hung").reasons == {Reason.UNAVAILABLE}


def test_a_single_time_out_of_the_rules_does_not_begin_without_them() -> None:
    """Without them everything that is remembered would have to be asked anew."""
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr), complete())
    failures = [refusal(Reason.UNAVAILABLE)]
    ecr.fault = lambda operation, _: failures.pop() if operation == "DescribeRegistry" and failures else None
    role = RegistrySettings("home", region=HOME.region, role_arn=f"arn:aws:iam::{ACCOUNT}:role/reader")
    rig = Rig(settings(ALL, registries=(role,)), ecr)
    rig.run(20)
    assert [operation for operation, _, _ in ecr.log[:3]] == ["DescribeRegistry"] * 2 + [
        "DescribeRepositories"
    ]


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
    rig.poller._configure(settings(ALL, requests_per_second=1.0, discovery_interval=3600.0))
    rig.run(60)
    assert len(rig.states()) == 10


def test_a_look_up_that_a_reload_overtakes_fails_no_new_target() -> None:
    ecr = FakeECR()
    pushed(ecr, tag="v1")
    rig = Rig(settings(TargetSettings("team/app", tag="gone")), ecr)

    def reload(operation: str, _: str) -> ECRError | None:
        if operation == "DescribeImages":
            ecr.fault = lambda *_: None
            rig.poller._configure(settings(TargetSettings("team/app", tag="v1")))
        return None

    ecr.fault = reload
    for _ in range(30):
        rig.run(1)
        assert rig.target("team/app:v1").success is not False
    assert not rig.journal.failing


def test_another_stale_after_counts_for_what_is_known() -> None:
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr, age=9999), complete())
    rig = world(ecr, stale_after=600.0)
    rig.run(30)
    rig.poller._configure(settings(ALL, stale_after=7200.0))
    (image,) = rig.store.registries[0].repositories["team/app"].images.values()
    assert image.good_until == image.answered_at + 21600.0 + 7200.0


def test_a_smaller_max_images_counts_at_once() -> None:
    ecr = FakeECR(page_size=100)
    for number in range(20):
        ecr.report("team/app", pushed(ecr, tag=f"v{number}", age=9999 - number), complete())
    rig = world(ecr)
    rig.run(30)
    rig.poller._configure(settings(ALL, max_images=5))
    assert {tag for _, tag, _ in rig.states()} == {f"v{number}" for number in range(15, 20)}
    assert rig.store.skipped == 15
    rig.poller._configure(settings(ALL, max_images=10))
    assert len(rig.states()) == 10


def test_an_operation_that_is_always_refused_holds_up_no_other() -> None:
    def listings(fault: Fault) -> int:
        ecr = FakeECR(page_size=100)
        for number in range(100):
            ecr.report(f"team/app-{number}", pushed(ecr, f"team/app-{number}", age=9999), complete())
        rig = world(ecr, requests_per_second=3.0)
        rig.run(120)
        ecr.fault = fault
        ecr.calls.clear()
        rig.run(900)
        assert rig.poller.overdue() < 5
        return ecr.calls["DescribeImages"]

    refused = listings(
        lambda operation, _: refusal(Reason.THROTTLED) if operation == "DescribeRegistry" else None
    )
    assert refused >= 0.95 * listings(lambda *_: None)


class Busy(Inline):
    """Workers that never come to an end with a status call."""

    def __init__(self) -> None:
        self.handed_out = 0

    def submit(self, call: Callable[[], None]) -> None:
        made: Any = call.args[1]  # type: ignore[attr-defined]
        if made.job.kind is Kind.STATUS:
            self.handed_out += 1
        else:
            call()


def test_few_calls_wait_for_a_worker_so_that_a_new_push_need_not() -> None:
    ecr = FakeECR()
    ecr.create("team/app")
    rig = world(ecr)
    rig.run(30)
    for number in range(2 * MAX_HANDED_OUT):
        pushed(ecr, tag=f"v{number}")
    busy = Busy()
    rig.workers.pool = busy
    rig.run(90)
    assert busy.handed_out == MAX_HANDED_OUT


class Together(Inline):
    """Workers whose calls all end at once, when told."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def submit(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def end(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


def test_calls_that_time_out_together_are_one_failure_in_a_row() -> None:
    ecr = FakeECR()
    for number in range(16):
        ecr.report(f"team/app-{number}", pushed(ecr, f"team/app-{number}"), complete())
    rig = world(ecr)
    rig.run(120)
    together = Together()
    rig.workers.pool = together
    rig.run(120)
    assert len(together.calls) > 8
    ecr.fault = lambda *_: refusal(Reason.UNAVAILABLE)
    together.end()
    ecr.fault = lambda *_: None
    rig.workers.pool = Inline()
    rig.run(0.1)
    assert rig.journal.failing
    rig.run(5)
    assert not rig.journal.failing
    assert rig.target("*").success is True


class Nobody(Inline):
    """Workers for whom there is no thread."""

    def submit(self, call: Callable[[], None]) -> None:
        del call
        raise RuntimeError("can't start new thread")


def test_without_threads_calls_fail_and_heal() -> None:
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr), complete())
    rig = world(ecr)
    rig.run(30)
    rig.workers.pool = Nobody()
    rig.run(600)
    assert set(rig.journal.failing.values()) == {Reason.UNAVAILABLE}
    rig.workers.pool = Inline()
    rig.run(900)
    assert not rig.journal.failing
    assert rig.target("*").success is True


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many more threads can be started, as the first and only element."""
    left = [0]
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if left[0] <= 0:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    return left


def test_workers_make_do_with_the_threads_that_there_are(room: list[int]) -> None:
    workers = ThreadPool("test", limit=4)
    done = threading.Semaphore(0)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        workers.submit(done.release)
    room[0] = 1
    for _ in range(50):
        workers.submit(done.release)
    assert all(done.acquire(timeout=5) for _ in range(50))
    assert workers._threads == 1
    room[0] = 100
    together = threading.Barrier(5)

    def meet() -> None:
        together.wait(5)

    for _ in range(4):
        workers.submit(meet)
    assert together.wait(5) in range(5)
    assert workers._threads == 4
    workers.close()


def test_a_deadline_without_a_thread_is_kept_once_there_is_one(room: list[int]) -> None:
    deadline = Deadline(0.5)
    with deadline() as unwatched:
        assert not unwatched.late
        room[0] = 1
        with deadline() as call:
            eventually(lambda: call.late and unwatched.late, within=5)
    assert not deadline._calls


def test_many_that_fail_together_keep_a_repository_away_for_no_longer_than_one() -> None:
    ecr = FakeECR(page_size=100)
    for number in range(40):
        ecr.report("team/app", pushed(ecr, tag=f"v{number}", age=9999), complete())
    workers = Together()
    rig = Rig(settings(ALL, settled_interval=60.0), ecr, workers=lambda _: workers)

    def run(seconds: float, *, ends_every: float) -> None:
        for _ in range(round(seconds / ends_every)):
            rig.run(ends_every)
            workers.end()

    run(59, ends_every=0.1)
    ecr.fault = lambda operation, _: refusal(Reason.ACCESS_DENIED) if operation == STATUS else None
    run(10, ends_every=5)
    ecr.fault = lambda *_: None
    ecr.calls.clear()
    run(5, ends_every=0.1)
    assert ecr.calls[STATUS] >= 20


@pytest.mark.parametrize("rules", [(), (Rule((OREGON,)),)], ids=["none", "another"])
def test_rules_that_changed_while_nobody_could_read_them_leave_nothing_missing(
    rules: tuple[Rule, ...],
) -> None:
    ecr = FakeECR()
    pushed(ecr, age=9999)
    rig = world(ecr, stale_after=600.0, failed_interval=7200.0)
    rig.run(30)
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "MISSING"}}
    ecr.fault = lambda operation, _: (
        refusal(Reason.ACCESS_DENIED) if operation == "DescribeRegistry" else None
    )
    rig.run(900)
    ecr.rules = rules
    ecr.fault = lambda operation, _: refusal(Reason.THROTTLED) if operation == STATUS else None
    rig.run(70)
    assert IRELAND not in rig.states()["team/app", "v1", ""]


def rules_denied(operation: str, _: str) -> ECRError | None:
    return refusal(Reason.ACCESS_DENIED) if operation == "DescribeRegistry" else None


def test_nothing_is_missing_by_rules_that_were_read_before_the_push() -> None:
    ecr = FakeECR(rules=(Rule((IRELAND, OREGON)),))
    ecr.report("team/app", pushed(ecr), complete(), complete(OREGON))
    rig = world(ecr, discovery_interval=60.0)
    rig.run(30)
    ecr.fault = rules_denied
    ecr.rules = (Rule((IRELAND,)),)
    digest = ecr.push("team/app", "v2", at=rig.clock.time())
    ecr.report("team/app", digest, complete())
    rig.run(1200)
    assert rig.states()["team/app", "v2", ""] == {IRELAND: "COMPLETE"}
    ecr.fault = lambda *_: None
    rig.run(120)
    assert rig.states()["team/app", "v2", ""] == {IRELAND: "COMPLETE"}


@pytest.mark.parametrize("unread_for", [0, 1200, 5000], ids=lambda seconds: f"unread for {seconds} s")
def test_a_new_push_is_missing_once_the_rules_were_read_after_it(unread_for: int) -> None:
    ecr = FakeECR()
    pushed(ecr, tag="v1", age=9999)
    rig = world(ecr, discovery_interval=60.0, stale_after=7200.0)
    rig.run(30)
    ecr.fault = rules_denied
    ecr.push("team/app", "v2", at=rig.clock.time())
    rig.run(unread_for)
    assert "MISSING" not in rig.states().get(("team/app", "v2", ""), {}).values()
    calls = ecr.calls[STATUS]
    ecr.fault = lambda *_: None
    rig.run(60 + 300)
    assert rig.states()["team/app", "v2", ""] == {IRELAND: "MISSING"}
    assert ecr.calls[STATUS] - calls < 2 * 360 / 15


def rules_throttled(operation: str, _: str) -> ECRError | None:
    return refusal(Reason.THROTTLED) if operation == "DescribeRegistry" else None


def test_what_is_missing_is_told_again_once_rules_that_were_too_old_are_read_again() -> None:
    ecr = FakeECR()
    pushed(ecr, age=9999)
    rig = world(ecr, discovery_interval=60.0, stale_after=3600.0)
    rig.run(30)
    ecr.fault = rules_throttled
    rig.run(3000)
    assert rig.states()["team/app", "v1", ""] == {IRELAND: "MISSING"}
    assert rig.target("*").success
    rig.run(1500)
    assert rig.states()["team/app", "v1", ""] == {}
    target = rig.target("*")
    assert (target.success, target.reasons) == (False, {Reason.THROTTLED})
    ecr.fault = lambda *_: None
    rig.run(120)
    assert rig.states()["team/app", "v1", ""] == {IRELAND: "MISSING"}
    assert rig.target("*").success


def test_an_image_that_goes_while_its_rules_are_too_old_is_not_asked_for_when_they_are_read_again() -> None:
    ecr = FakeECR()
    pushed(ecr, tag="v1", age=9999)
    gone = pushed(ecr, tag="v2", age=9999)
    rig = world(ecr, discovery_interval=60.0, failed_interval=600.0, stale_after=3600.0)
    rig.run(30)
    ecr.fault = rules_throttled
    rig.run(5000)
    del ecr.repositories["team/app"][gone]
    rig.run(120)
    ecr.fault = lambda *_: None
    rig.run(120)
    assert rig.states() == {("team/app", "v1", ""): {IRELAND: "MISSING"}}
    assert rig.target("*").success


def test_after_an_outage_that_was_longer_than_stale_after_all_that_is_missing_is_told_again() -> None:
    ecr = FakeECR(page_size=1000)
    for number in range(100):
        pushed(ecr, tag=f"v{number}", age=9999)
    rig = world(ecr, discovery_interval=60.0, stale_after=600.0, requests_per_second=10.0)
    rig.run(120)
    for _ in range(3):
        ecr.fault = lambda *_: refusal(Reason.UNAVAILABLE)
        rig.run(1500)
        assert not rig.states()
        ecr.fault = lambda *_: None
        rig.run(120)
        assert list(rig.states().values()) == [{IRELAND: "MISSING"}] * 100


def test_what_is_sent_nowhere_by_rules_that_were_read_before_the_push_is_asked_about_again() -> None:
    ecr = FakeECR(rules=())
    ecr.report("team/app", pushed(ecr), complete())
    rig = world(ecr, discovery_interval=60.0)
    rig.run(30)
    ecr.fault = rules_denied
    digest = ecr.push("team/app", "v2", at=rig.clock.time())
    rig.run(62)
    (registry,) = rig.snapshot().registries
    ((name, images),) = registry.repositories
    counts = next(row for row in DOMAIN if row.name == "ecr_repository_replication_images")
    assert isinstance(counts, RepositoryRow)
    values = {labels[-1]: value for labels, value in counts.samples(registry.source, name, images)}
    assert values == {"COMPLETE": 1}  # and no zeros: it may have been sent anywhere
    assert {image.state for image in images} == {ImageState.SETTLED, ImageState.PENDING}
    ecr.report("team/app", digest, Replication(IRELAND, Status.FAILED, "IMAGE_NOT_FOUND"))
    rig.run(1200)
    assert rig.states()["team/app", "v2", ""] == {IRELAND: "FAILED"}


def test_rules_that_were_asked_for_before_the_push_do_not_say_that_it_is_missing() -> None:
    ecr, workers = FakeECR(), Stuck()
    pushed(ecr, age=9999)
    rig = Rig(settings(ALL, discovery_interval=60.0), ecr, workers=lambda _: workers)
    rig.run(30)
    workers.hangs = True
    rig.run(40)
    ecr.push("team/app", "v2", at=rig.clock.time())
    workers.free()
    rig.run(20)
    assert rig.states()["team/app", "v2", ""] == {}
    rig.run(120)
    assert rig.states()["team/app", "v2", ""] == {IRELAND: "MISSING"}


def test_how_long_replication_took_is_told_though_nobody_could_say_for_long_that_it_was_missing() -> None:
    ecr = FakeECR()
    pushed(ecr, tag="v1", age=9999)
    rig = world(ecr, discovery_interval=60.0, stale_after=7200.0)
    rig.run(30)
    ecr.fault = rules_denied
    digest = ecr.push("team/app", "v2", at=rig.clock.time())
    rig.run(4200)
    assert rig.states()["team/app", "v2", ""] == {}
    ecr.report("team/app", digest, complete())
    rig.run(400)
    ((_, destination, seconds),) = rig.completions
    assert destination == IRELAND
    assert 4200 <= seconds <= 4600
