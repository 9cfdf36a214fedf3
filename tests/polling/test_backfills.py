"""The backfills of a registry in virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.fakes import (
    ACCOUNT,
    ALL,
    IRELAND,
    OREGON,
    FakeECR,
    Rig,
    complete,
    pushed,
    refusal,
    settings,
    throttled,
    world,
)

from exporter.config.settings import RegistrySettings
from exporter.polling.backfills import INTERVAL, RUNNING_INTERVAL, SHOWN_AFTER_END
from exporter.polling.optional import REFUSED_INTERVAL
from exporter.polling.rate_limit import LEAST_RATE
from exporter.replication.model import Backfill, FailureScope, Page, Reason

LIST = "ListReplicationBackfills"
NAME = f"{ACCOUNT}/us-east-1"
SCOPE = (NAME, FailureScope("backfills"))
#: The Unix time at which a rig starts.
NOW = 1.8e9 + 1000.0
PREPARING = Backfill("1", IRELAND, "PREPARING", started_at=NOW - 60)
RUNNING = replace(PREPARING, status="IN_PROGRESS", images=(("total", 9), ("completed", 3), ("failed", 0)))
DONE = replace(RUNNING, status="COMPLETE", ended_at=NOW - 5, images=(("total", 9), ("completed", 9)))
FAILED = replace(RUNNING, status="FAILED", ended_at=NOW - 5, failure_codes=("DENIED", "GONE"))
#: What is refused for long.
REFUSALS = pytest.mark.parametrize("reason", [Reason.ACCESS_DENIED, Reason.INVALID])


def registry(*backfills: Backfill) -> FakeECR:
    ecr = FakeECR(backfills=backfills)
    ecr.report("team/app", pushed(ecr), complete())
    return ecr


def shown(rig: Rig) -> tuple[Backfill, ...]:
    (found,) = rig.snapshot().registries
    return found.backfills


def logged(rig: Rig, event: str = "backfill") -> list[str]:
    return [name for name, _ in rig.journal.events if name.startswith(event)]


def fields_of(rig: Rig, event: str) -> dict[str, object]:
    (fields,) = [fields for name, fields in rig.journal.events if name == event]
    return fields


def test_no_backfill_is_listed_every_five_minutes() -> None:
    ecr = registry()
    rig = world(ecr)
    rig.run(5)
    assert (ecr.calls[LIST], shown(rig)) == (1, ())
    rig.run(20 * INTERVAL)
    assert 20 <= ecr.calls[LIST] - 1 <= 22
    assert logged(rig) == []


def test_a_running_backfill_is_listed_every_minute() -> None:
    ecr = registry(PREPARING)
    rig = world(ecr)
    rig.run(5)
    assert shown(rig) == (PREPARING,)
    ecr.backfills = (RUNNING,)
    rig.run(RUNNING_INTERVAL)
    assert shown(rig) == (RUNNING,)
    calls = ecr.calls[LIST]
    rig.run(20 * RUNNING_INTERVAL)
    assert 20 <= ecr.calls[LIST] - calls <= 22
    ecr.backfills = (DONE,)
    rig.run(RUNNING_INTERVAL)
    calls = ecr.calls[LIST]
    rig.run(INTERVAL)
    assert ecr.calls[LIST] - calls <= 2
    assert shown(rig) == (DONE,)


def test_the_newest_backfill_to_each_destination_is_shown_whatever_the_pages() -> None:
    old = [replace(DONE, id=str(n), started_at=NOW - n, destination=OREGON) for n in range(100, 110)]
    failed = replace(FAILED, id="2", started_at=NOW - 3600)
    ecr = registry(*old[:5], RUNNING, *old[5:], failed)
    rig = world(ecr)
    rig.run(5)
    assert ecr.page_size < len(ecr.backfills)
    assert shown(rig) == (RUNNING, old[0])


def test_pages_that_lead_in_a_circle_end() -> None:
    ecr = registry(*(replace(DONE, id=str(n)) for n in range(10)))
    ecr.change_page = lambda operation, items, page: (
        Page(tuple(items[:3]), "3") if operation == LIST else page
    )
    rig = world(ecr)
    rig.run(30)
    assert ecr.calls[LIST] < 20
    assert rig.journal.failing == {SCOPE: Reason.INVALID}
    assert rig.target("*").success is True


def test_what_ended_is_shown_for_a_day() -> None:
    rig = world(registry(replace(DONE, ended_at=NOW - SHOWN_AFTER_END + 600)))
    rig.run(599)
    assert len(shown(rig)) == 1
    rig.run(INTERVAL + 2)
    assert shown(rig) == ()


def test_an_older_backfill_does_not_come_back_when_the_newest_leaves() -> None:
    newest = replace(DONE, id="2", started_at=NOW - 2 * SHOWN_AFTER_END, ended_at=NOW - 1.5 * SHOWN_AFTER_END)
    older = replace(RUNNING, started_at=NOW - 3 * SHOWN_AFTER_END)
    rig = world(registry(newest, older))
    rig.run(5)
    assert shown(rig) == ()


@pytest.mark.parametrize(
    ("backfill", "runs"),
    [
        (Backfill("1", IRELAND, "UNKNOWN"), True),
        (Backfill("1", IRELAND, "PAUSED", started_at=NOW), True),
        (Backfill("1", IRELAND, "STOPPING", started_at=NOW), True),
        (Backfill("1", IRELAND, "PAUSED", started_at=NOW, ended_at=NOW), False),
        (Backfill("1", IRELAND, "FAILED"), False),
        (Backfill("1", IRELAND, "STOPPED", started_at=1.5e9), False),
    ],
)
def test_a_backfill_of_which_aws_says_little_is_shown(backfill: Backfill, runs: bool) -> None:
    ecr = registry(backfill)
    rig = world(ecr)
    rig.run(2 * RUNNING_INTERVAL + 5)
    assert shown(rig) == (backfill,)
    assert (ecr.calls[LIST] > 1) is runs


def test_without_an_answer_the_last_one_is_shown_until_it_is_stale() -> None:
    ecr = registry(RUNNING)
    rig = world(ecr, stale_after=1200.0)
    rig.run(5)
    ecr.fault = lambda operation, _: refusal(Reason.UNAVAILABLE) if operation == LIST else None
    rig.run(1100)
    assert shown(rig) == (RUNNING,)
    assert rig.journal.failing == {SCOPE: Reason.UNAVAILABLE}
    rig.run(200)
    assert shown(rig) == ()
    assert (rig.target("*").success, rig.target("*").reasons) == (True, frozenset())
    ecr.fault = lambda *_: None
    rig.run(INTERVAL)
    assert shown(rig) == (RUNNING,)
    assert rig.journal.failing == {}


def test_a_short_stale_after_does_not_hide_what_is_listed_in_time() -> None:
    rig = world(registry(DONE), stale_after=60.0)
    rig.run(5)
    for _ in range(600):
        rig.run(1)
        assert shown(rig) == (DONE,)


@REFUSALS
def test_a_refusal_is_one_warning_and_changes_nothing_else(reason: Reason) -> None:
    ecr = registry(RUNNING)
    ecr.fault = lambda operation, _: refusal(reason, f"ecr:{LIST}") if operation == LIST else None
    rig = world(ecr, discovery_interval=900.0)
    rig.run(4 * REFUSED_INTERVAL)
    assert 4 <= ecr.calls[LIST] <= 5
    assert logged(rig) == ["backfills_not_listed"]
    assert fields_of(rig, "backfills_not_listed")["reason"] == reason
    assert rig.journal.failing == {}
    assert shown(rig) == ()
    assert (rig.target("*").success, rig.target("*").reasons) == (True, frozenset())
    assert rig.store.unheard(rig.clock.now) == []
    ecr.fault = lambda *_: None
    rig.run(REFUSED_INTERVAL)
    assert shown(rig) == (RUNNING,)


@pytest.mark.parametrize("knobs", [{}, {"discovery_interval": 90.0}], ids=["same", "another"])
def test_a_reload_asks_again_for_what_was_refused(knobs: dict[str, object]) -> None:
    ecr = registry(RUNNING)
    ecr.fault = lambda operation, _: refusal(Reason.ACCESS_DENIED) if operation == LIST else None
    rig = world(ecr)
    rig.run(60)
    rig.poller.configure(settings(ALL, **knobs))
    rig.run(5)
    assert (ecr.calls[LIST], logged(rig)) == (2, ["backfills_not_listed"])
    ecr.fault = lambda *_: None
    rig.poller.configure(settings(ALL))
    rig.run(5)
    assert shown(rig) == (RUNNING,)
    rig.poller.configure(settings(ALL))
    rig.run(5)
    assert ecr.calls[LIST] == 3


def test_a_token_that_aws_takes_no_longer_is_no_refusal() -> None:
    ecr = registry(RUNNING, *(replace(DONE, id=str(n), destination=OREGON) for n in range(2, 9)))
    refusals = [None, refusal(Reason.INVALID)]
    ecr.fault = lambda operation, _: refusals.pop(0) if operation == LIST and refusals else None
    rig = world(ecr)
    rig.run(30)
    assert not refusals
    assert RUNNING in shown(rig)
    assert "backfills_not_listed" not in logged(rig)


def test_an_entry_that_is_denied_leaves_it_to_another() -> None:
    ecr = registry(RUNNING)
    role = RegistrySettings(name="role", role_arn=f"arn:aws:iam::{ACCOUNT}:role/r", region="us-east-1")
    rig = Rig(settings(ALL, registries=(RegistrySettings(name="own"), role)), ecr)
    refusals = [refusal(Reason.ACCESS_DENIED)]
    ecr.fault = lambda operation, _: refusals.pop() if operation == LIST and refusals else None
    rig.run(5)
    assert shown(rig) == (RUNNING,)
    assert logged(rig) == ["backfill_started"]


def test_throttling_slows_nothing_else() -> None:
    ecr = registry(RUNNING)
    ecr.fault = throttled(LIST)
    rig = world(ecr, discovery_interval=10.0)
    rig.run(600)
    assert ecr.calls[LIST] <= 600 * LEAST_RATE + 20
    assert ecr.calls["DescribeImages"] >= 60
    assert rig.target("*").success is True
    ecr.fault = lambda *_: None
    rig.run(30)
    assert shown(rig) == (RUNNING,)


def test_the_log_has_each_beginning_and_end_once() -> None:
    ecr = registry(RUNNING, replace(FAILED, id="2", destination=OREGON))
    rig = world(ecr)
    rig.run(200)
    assert logged(rig) == ["backfill_started"]
    assert fields_of(rig, "backfill_started") == {
        "registry": NAME,
        "backfill": "1",
        "destination": f"{ACCOUNT}/eu-west-1",
        "status": "IN_PROGRESS",
    }
    ecr.backfills = (DONE, *ecr.backfills[1:])
    rig.run(200)
    assert logged(rig) == ["backfill_started", "backfill_ended"]
    assert fields_of(rig, "backfill_ended")["completed"] == 9


@pytest.mark.parametrize(
    ("end", "event"),
    [
        (FAILED, "backfill_failed"),
        (replace(DONE, images=(("completed", 8), ("failed", 1))), "backfill_failed"),
        (replace(DONE, status="STOPPED"), "backfill_ended"),
        (replace(DONE, status="STOPPED", images=()), "backfill_ended"),
    ],
)
def test_an_end_with_failures_is_a_warning(end: Backfill, event: str) -> None:
    ecr = registry(RUNNING)
    rig = world(ecr)
    rig.run(5)
    ecr.backfills = (end,)
    rig.run(200)
    assert logged(rig) == ["backfill_started", event]
    assert fields_of(rig, event)["status"] == end.status


def test_a_backfill_that_begins_and_ends_between_two_listings_is_logged() -> None:
    ecr = registry()
    rig = world(ecr)
    rig.run(5)
    ecr.backfills = (FAILED,)
    rig.run(2 * INTERVAL)
    assert logged(rig) == ["backfill_failed"]
    assert fields_of(rig, "backfill_failed")["failure_codes"] == "DENIED, GONE"


def test_two_backfills_without_an_id_are_two() -> None:
    first, second = (replace(RUNNING, id="", destination=to) for to in (IRELAND, OREGON))
    rig = world(registry(first, second))
    rig.run(200)
    assert shown(rig) == (first, second)
    assert logged(rig) == ["backfill_started"] * 2
