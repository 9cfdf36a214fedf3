"""Outages, throttling and lost calls in virtual time: what fails, for how long, and what heals."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from support.fakes import (
    ALL,
    HOME,
    STATUS,
    FakeECR,
    Fault,
    Inline,
    Rig,
    Stuck,
    Together,
    complete,
    pushed,
    refusal,
    settings,
    world,
)

from exporter.aws.errors import ECRError
from exporter.config.settings import RegistrySettings, TargetSettings
from exporter.polling.calls import LOST_AFTER
from exporter.polling.poller import HEARTBEAT
from exporter.polling.workers import MAX_HANDED_OUT
from exporter.replication.model import (
    FailureScope,
    Reason,
    Source,
)


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


class NoWorkers(Inline):
    """Workers for whom there is no thread."""

    def submit(self, call: Callable[[], None]) -> None:
        del call
        raise RuntimeError("can't start new thread")


def test_without_threads_calls_fail_and_heal() -> None:
    ecr = FakeECR()
    ecr.report("team/app", pushed(ecr), complete())
    rig = world(ecr)
    rig.run(30)
    rig.workers.pool = NoWorkers()
    rig.run(600)
    assert set(rig.journal.failing.values()) == {Reason.UNAVAILABLE}
    rig.workers.pool = Inline()
    rig.run(900)
    assert not rig.journal.failing
    assert rig.target("*").success is True


def test_throttling_by_sts_does_not_lower_the_rate_of_ecr() -> None:
    ecr = FakeECR()
    for number in range(30):
        ecr.report("team/app", pushed(ecr, tag=f"v{number}"), complete())
    rig = world(ecr, pending_interval=1.0)
    rig.run(60)
    before = rig.poller.rates()[HOME]
    ecr.fault = lambda *_: refusal(Reason.THROTTLED, "sts:AssumeRole", everything=True)
    rig.run(60)
    assert rig.poller.rates()[HOME] >= before
    assert rig.target("*").reasons == {Reason.THROTTLED}
    ecr.fault = lambda *_: None
    rig.run(60)
    assert rig.target("*").success is True


@pytest.mark.parametrize("reason", [Reason.THROTTLED, Reason.ACCESS_DENIED, Reason.UNAVAILABLE])
@pytest.mark.parametrize("operation", ["DescribeRegistry", "DescribeRepositories", "DescribeImages", STATUS])
def test_a_pause_that_aws_asks_for_is_kept(reason: Reason, operation: str) -> None:
    ecr = FakeECR()
    pushed(ecr)
    refused_at: list[float] = []

    def fault(called: str, _: str) -> ECRError | None:
        if called != operation:
            return None
        refused_at.append(rig.clock.now)
        return refusal(reason, retry_after=120.0)

    rig = world(ecr, failed_interval=30.0, pending_interval=15.0)
    ecr.fault = fault
    rig.run(1000)
    pauses = [after - before for before, after in pairwise(refused_at)]
    assert pauses
    assert min(pauses) >= 120.0


def test_a_pause_that_aws_asks_for_has_an_end() -> None:
    ecr = FakeECR()
    pushed(ecr)
    ecr.fault = lambda *_: refusal(Reason.THROTTLED, retry_after=99_999.0)
    rig = world(ecr)
    rig.run(10)
    ecr.fault = lambda *_: None
    rig.run(310)
    assert rig.states()


def test_aws_that_is_dead_from_the_start_is_a_failure_of_the_registry() -> None:
    ecr = FakeECR()
    pushed(ecr)
    ecr.fault = lambda *_: refusal(Reason.UNAVAILABLE)
    rig = world(ecr)
    seen: set[FailureScope] = set()
    for _ in range(60):
        rig.run(1)
        seen |= {scope for _, scope in rig.journal.failing}
    assert seen == {FailureScope("registry")}
    ecr.fault = lambda *_: None
    rig.run(60)
    assert rig.target("*").success is True
    assert rig.journal.failing == {}


def test_rules_that_alone_are_never_answered_are_a_failure_of_the_rules() -> None:
    ecr = FakeECR()
    pushed(ecr)
    ecr.fault = lambda operation, _: refusal(Reason.UNAVAILABLE) if operation == "DescribeRegistry" else None
    role = RegistrySettings("home", region=HOME.region, role_arn=f"arn:aws:iam::{HOME.registry_id}:role/r")
    rig = Rig(settings(ALL, registries=(role,)), ecr)
    rig.run(120)
    assert {scope for _, scope in rig.journal.failing} == {FailureScope("rules")}
    assert rig.states()
