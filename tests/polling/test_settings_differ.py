"""Settings that replicas lose: compared where the repositories of both ends can be listed, else not known."""

from __future__ import annotations

import pytest
from support.fakes import (
    ACCOUNT,
    HOME,
    IRELAND,
    OREGON,
    FakeAWS,
    FakeECR,
    Rig,
    complete,
    denied,
    pushed,
    refusal,
    settings,
)

from exporter.config.settings import DestinationSettings, RegistrySettings, Settings, TargetSettings
from exporter.polling.optional import REFUSED_INTERVAL
from exporter.polling.repository_settings import COMPARE_EVERY, INTERVAL
from exporter.replication.model import Destination, FailureScope, Reason, RepositorySettings, Rule, Source

THERE = Source(ACCOUNT, IRELAND.region)
LIST = "DescribeRepositories"
DAY = 86_400.0
#: Until the first look and the first listings were made and compared.
SOON = 4 * COMPARE_EVERY
NAMED = TargetSettings("team/app", tag="v1")
STRICT = RepositorySettings("IMMUTABLE", "KMS", "single-region", "True")
DEFAULT = RepositorySettings("MUTABLE", "AES256", "", "False")
ALL_THREE = {"image_tag_mutability", "encryption", "scan_on_push"}
TARGETS = pytest.mark.parametrize("target", [TargetSettings("team/*"), NAMED], ids=["glob", "name"])


def world(
    mine: RepositorySettings = STRICT, its: RepositorySettings = DEFAULT, repository: str = "team/app"
) -> tuple[FakeECR, FakeECR]:
    """A registry that replicates to Ireland, and Ireland, each with a repository with these settings."""
    home, there = FakeECR(page_size=100), FakeECR(source=THERE, rules=(), page_size=100)
    replicate(home, there, repository)
    home.settings[repository], there.settings[repository] = mine, its
    return home, there


def replicate(home: FakeECR, there: FakeECR, repository: str) -> None:
    digest = pushed(home, repository, age=9 * 3600)
    home.report(repository, digest, complete())
    there.push(repository, "v1", digest=digest)


def looking(target: TargetSettings = NAMED, **knobs: object) -> Settings:
    return settings(target, **{"replica_interval": 900.0, **knobs})


def differ(rig: Rig) -> dict[tuple[str, Destination], set[str]]:
    found: dict[tuple[str, Destination], set[str]] = {}
    for registry in rig.snapshot().registries:
        for repository, settings_differ in registry.settings_differ.items():
            for destination, setting in settings_differ:
                found.setdefault((repository, destination), set()).add(setting)
    return found


def warnings(rig: Rig) -> list[object]:
    return [f["registry"] for name, f in rig.journal.events if name == "settings_not_compared"]


@TARGETS
def test_each_setting_that_differs_is_shown(target: TargetSettings) -> None:
    rig = Rig(looking(target), *world())
    rig.run(SOON)
    assert differ(rig) == {("team/app", IRELAND): ALL_THREE}


@pytest.mark.parametrize(
    ("mine", "its", "expected"),
    [
        (STRICT, STRICT, set()),
        (STRICT, STRICT._replace(scan_on_push="False"), {"scan_on_push"}),
        (STRICT, STRICT._replace(image_tag_mutability="IMMUTABLE_WITH_EXCLUSION"), {"image_tag_mutability"}),
        (STRICT, STRICT._replace(encryption="KMS_DSSE"), {"encryption"}),
        (STRICT, STRICT._replace(encryption_key="multi-region"), {"encryption"}),
        (STRICT, STRICT._replace(encryption_key=""), set()),
        (STRICT, RepositorySettings(), set()),
        (RepositorySettings(), STRICT, set()),
        (DEFAULT._replace(scan_on_push=""), STRICT, ALL_THREE - {"scan_on_push"}),
    ],
)
def test_only_what_is_known_at_both_ends_differs(
    mine: RepositorySettings, its: RepositorySettings, expected: set[str]
) -> None:
    home, there = world(mine, its)
    rig = Rig(looking(), home, there)
    rig.run(SOON)
    assert home.calls[LIST] == there.calls[LIST] == 1
    assert differ(rig).get(("team/app", IRELAND), set()) == expected


def test_a_listing_of_several_pages_is_taken_whole() -> None:
    home, there = world(repository="team/z")
    for number in range(7):
        replicate(home, there, f"team/{number}")
    there.page_size = 3
    rig = Rig(looking(TargetSettings("team/*")), home, there)
    rig.run(SOON)
    assert differ(rig) == {("team/z", IRELAND): ALL_THREE}
    assert there.calls[LIST] == 3


@TARGETS
def test_destinations_are_listed_every_six_hours_and_a_glob_needs_no_more_calls(
    target: TargetSettings,
) -> None:
    alone, _ = world()
    rig = Rig(looking(target, replica_interval=0.0), alone)
    rig.run(DAY)
    home, there = world()
    rig = Rig(looking(target), home, there)
    rig.run(DAY)
    assert 4 <= there.calls[LIST] <= 5
    own = home.calls[LIST] - alone.calls[LIST]
    assert 4 <= own <= 5 if target is NAMED else abs(own) <= 0.02 * DAY / 60, "jitter"


def test_a_change_at_either_end_is_seen() -> None:
    home, there = world()
    rig = Rig(looking(), home, there)
    rig.run(SOON)
    home.settings["team/app"] = DEFAULT._replace(scan_on_push="True")
    rig.run(INTERVAL + COMPARE_EVERY)
    assert differ(rig) == {("team/app", IRELAND): {"scan_on_push"}}
    there.settings["team/app"] = home.settings["team/app"]
    rig.run(INTERVAL + COMPARE_EVERY)
    assert differ(rig) == {}


def test_a_repository_that_is_new_at_the_destination_is_seen_soon() -> None:
    home, there = world()
    copies = there.repositories.pop("team/app")
    rig = Rig(looking(), home, there)
    rig.run(3600)
    assert differ(rig) == {}
    calls = there.calls[LIST]
    there.repositories["team/app"] = copies
    rig.run(900 + SOON)
    assert differ(rig) == {("team/app", IRELAND): ALL_THREE}
    assert there.calls[LIST] - calls == 1


def test_a_repository_that_is_deleted_has_no_settings() -> None:
    home, there = world()
    rig = Rig(looking(), home, there)
    rig.run(SOON)
    copies = there.repositories.pop("team/app")
    rig.run(900 + COMPARE_EVERY)
    assert differ(rig) == {}
    there.repositories["team/app"] = copies
    rig.run(900 + SOON)
    assert differ(rig) == {("team/app", IRELAND): ALL_THREE}
    del home.repositories["team/app"]
    rig.run(65)
    assert differ(rig) == {}


def test_a_repository_that_no_listing_has_is_not_looked_for_all_the_time() -> None:
    home, there = world()
    there.change_page = lambda operation, _, page: (
        type(page)(tuple(r for r in page.items if r.name != "team/app"), page.token)
        if operation == LIST
        else page
    )
    rig = Rig(looking(), home, there)
    rig.run(DAY)
    assert there.calls[LIST] <= 5
    assert differ(rig) == {}


@pytest.mark.parametrize("reason", [Reason.ACCESS_DENIED, Reason.INVALID])
@pytest.mark.parametrize("end", ["source", "destination"])
def test_a_refusal_is_warned_of_once_and_nothing_fails(end: str, reason: Reason) -> None:
    home, there = world()
    ecr = home if end == "source" else there
    ecr.fault = lambda operation, _: refusal(reason) if operation == LIST else None
    rig = Rig(looking(), home, there)
    rig.run(SOON)
    assert ecr.calls[LIST] == 1
    rig.run(4 * REFUSED_INTERVAL)
    assert 4 <= ecr.calls[LIST] - 1 <= 5
    assert (differ(rig), warnings(rig)) == ({}, [f"{ACCOUNT}/{ecr.source.region}"])
    assert rig.target("team/app:v1").success is True
    (health,) = rig.snapshot().destinations
    assert (health.success, health.reasons) == (True, frozenset())
    assert rig.journal.failing == {}
    ecr.fault = lambda *_: None
    rig.poller.configure(looking())
    rig.run(SOON)
    assert differ(rig) == {("team/app", IRELAND): ALL_THREE}, "a reload tries again"


@pytest.mark.parametrize("reason", [Reason.UNAVAILABLE, Reason.THROTTLED])
def test_what_cannot_be_confirmed_is_forgotten(reason: Reason) -> None:
    home, there = world()
    rig = Rig(looking(stale_after=3600.0), home, there)
    rig.run(SOON)
    there.fault = lambda operation, _: refusal(reason) if operation == LIST else None
    rig.run(INTERVAL + 3600 - SOON - COMPARE_EVERY)
    assert differ(rig) == {("team/app", IRELAND): ALL_THREE}
    rig.run(SOON + 3 * COMPARE_EVERY)
    assert differ(rig) == {}
    assert rig.target("team/app:v1").success is True
    (health,) = rig.snapshot().destinations
    assert (health.success, health.reasons) == (True, frozenset())
    there.fault = lambda *_: None
    rig.run(600)
    assert differ(rig) == {("team/app", IRELAND): ALL_THREE}
    assert rig.journal.failing == {}


def test_a_failure_is_logged_and_ends() -> None:
    home, there = world()
    there.fault = lambda operation, _: refusal(Reason.UNAVAILABLE) if operation == LIST else None
    rig = Rig(looking(), home, there)
    rig.run(120)
    assert rig.journal.failing == {
        (f"{ACCOUNT}/eu-west-1", FailureScope("settings")): Reason.UNAVAILABLE,
    }
    there.fault = lambda *_: None
    rig.run(300 + SOON)
    assert (rig.journal.failing, differ(rig)) == ({}, {("team/app", IRELAND): ALL_THREE})


def test_new_repositories_do_not_shorten_the_wait_after_a_refusal() -> None:
    home, there = world()
    there.fault = denied(LIST)
    rig = Rig(looking(TargetSettings("team/*")), home, there)
    rig.run(SOON)
    for number in range(20):
        replicate(home, there, f"team/new-{number}")
        rig.run(100)
    assert there.calls[LIST] == 1


def test_another_entry_is_tried_where_one_is_refused() -> None:
    home, there = world()
    entries = tuple(
        DestinationSettings(ACCOUNT, region, f"arn:aws:iam::{ACCOUNT}:role/{name}")
        for name, region in (("strict", IRELAND.region), ("lax", None))
    )

    def permission(entry: RegistrySettings, operation: str, _: str) -> object:
        strict = (entry.role_arn or "").endswith("strict")
        return refusal(Reason.ACCESS_DENIED) if strict and operation == LIST else None

    aws = FakeAWS({HOME: home, THERE: there}, permission=permission)  # type: ignore[arg-type]
    rig = Rig(looking(destinations=entries), home, there, connector=aws)
    rig.run(SOON)
    assert (differ(rig), warnings(rig)) == ({("team/app", IRELAND): ALL_THREE}, [])


def test_each_destination_is_compared_by_itself() -> None:
    home, there = world()
    oregon = FakeECR(source=Source(ACCOUNT, OREGON.region), rules=(), page_size=100)
    home.rules = (Rule((IRELAND, OREGON)),)
    oregon.create("team/app")
    oregon.settings["team/app"] = STRICT._replace(encryption="AES256")
    there.fault = denied(LIST)
    rig = Rig(looking(), home, there, oregon)
    rig.run(SOON)
    assert differ(rig) == {("team/app", OREGON): {"encryption"}}


def test_a_watched_destination_is_listed_once_for_both_uses() -> None:
    home, there = world()
    both = tuple(RegistrySettings(region=source.region) for source in (HOME, THERE))
    alone = Rig(looking(TargetSettings("team/*"), registries=both, replica_interval=0.0), home, there)
    alone.run(3600)
    calls = there.calls[LIST]
    there.calls.clear()
    rig = Rig(looking(TargetSettings("team/*"), registries=both), home, there)
    rig.run(3600)
    assert differ(rig) == {("team/app", IRELAND): ALL_THREE}
    assert there.calls[LIST] <= calls + 2


def test_where_nothing_is_looked_at_nothing_is_listed_or_shown() -> None:
    home, there = world()
    rig = Rig(looking(replica_interval=0.0), home, there)
    rig.run(3600)
    assert home.calls[LIST] == there.calls[LIST] == 0
    rig.poller.configure(looking())
    rig.run(SOON)
    assert differ(rig) == {("team/app", IRELAND): ALL_THREE}
    rig.poller.configure(looking(replica_interval=0.0))
    rig.run(COMPARE_EVERY)
    assert differ(rig) == {}
