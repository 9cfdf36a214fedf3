"""The replication rules and the account in virtual time: what is missing, and by which rules."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.fakes import (
    ACCOUNT,
    ALL,
    EVERYTHING,
    HOME,
    IRELAND,
    OREGON,
    STATUS,
    FakeECR,
    Rig,
    Stuck,
    complete,
    denied,
    pushed,
    refusal,
    settings,
    throttled,
    world,
)

from exporter.config.settings import RegistrySettings
from exporter.metrics.catalogue import DOMAIN, Group, RepositoryRow, alike
from exporter.replication.model import (
    ImageState,
    Reason,
    Replication,
    Rule,
    Source,
    Status,
)


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


def test_a_single_time_out_of_the_rules_does_not_begin_without_them() -> None:
    """Without them everything that is remembered would have to be asked again."""
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


def test_nothing_is_missing_by_rules_that_were_read_before_the_push() -> None:
    ecr = FakeECR(rules=(Rule((IRELAND, OREGON)),))
    ecr.report("team/app", pushed(ecr), complete(), complete(OREGON))
    rig = world(ecr, discovery_interval=60.0)
    rig.run(30)
    ecr.fault = denied("DescribeRegistry")
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
    ecr.fault = denied("DescribeRegistry")
    ecr.push("team/app", "v2", at=rig.clock.time())
    rig.run(unread_for)
    assert "MISSING" not in rig.states().get(("team/app", "v2", ""), {}).values()
    calls = ecr.calls[STATUS]
    ecr.fault = lambda *_: None
    rig.run(60 + 300)
    assert rig.states()["team/app", "v2", ""] == {IRELAND: "MISSING"}
    assert ecr.calls[STATUS] - calls < 2 * 360 / 15


def test_what_is_missing_is_told_again_once_rules_that_were_too_old_are_read_again() -> None:
    ecr = FakeECR()
    pushed(ecr, age=9999)
    rig = world(ecr, discovery_interval=60.0, stale_after=3600.0)
    rig.run(30)
    ecr.fault = throttled("DescribeRegistry")
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
    ecr.fault = throttled("DescribeRegistry")
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
    ecr.fault = denied("DescribeRegistry")
    digest = ecr.push("team/app", "v2", at=rig.clock.time())
    rig.run(62)
    (registry,) = rig.snapshot().registries
    ((name, images),) = registry.repositories
    counts = next(row for row in DOMAIN if row.name == "ecr_repository_replication_images")
    assert isinstance(counts, RepositoryRow)
    samples = counts.samples(Group.whole(registry, name, images), alike(images))
    values = {labels[-1]: value for labels, value in samples}
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
    ecr.fault = denied("DescribeRegistry")
    digest = ecr.push("team/app", "v2", at=rig.clock.time())
    rig.run(4200)
    assert rig.states()["team/app", "v2", ""] == {}
    ecr.report("team/app", digest, complete())
    rig.run(400)
    ((_, destination, seconds),) = rig.completions
    assert destination == IRELAND
    assert 4200 <= seconds <= 4600


def changes(rig: Rig) -> list[dict[str, object]]:
    return [fields for event, fields in rig.journal.events if event == "rules_changed"]


TEAM = Rule((IRELAND,), ("team/",), ("team/",))
TO_IRELAND, TO_OREGON = (f"team/* -> {ACCOUNT}/{region}" for region in ("eu-west-1", "us-west-2"))


@pytest.mark.parametrize(
    ("rules", "changed"),
    [
        ((Rule((OREGON,), ("team/",), ("team/",)),), {"went": TO_IRELAND, "came": TO_OREGON}),
        ((), {"went": TO_IRELAND}),
        ((TEAM, Rule((OREGON,))), {"came": f"* -> {ACCOUNT}/us-west-2"}),
        ((replace(TEAM, delete_replication=True),), {"delete_replication_on": TO_IRELAND}),
        (
            (TEAM, Rule((OREGON,), ("team/",), ("team/",), delete_replication=True)),
            {"came": TO_OREGON, "delete_replication_on": TO_OREGON},
        ),
        # the same in other words
        ((TEAM, TEAM), None),
    ],
    ids=["moved", "went", "came", "mirrored", "came mirrored", "same"],
)
def test_a_change_of_the_rules_is_a_warning(
    rules: tuple[Rule, ...], changed: dict[str, object] | None
) -> None:
    ecr = FakeECR(rules=(TEAM,))
    rig = world(ecr)
    rig.run(120)
    read = [fields for event, fields in rig.journal.events if event == "replication_rules_read"]
    assert [fields["rules"] for fields in read] == [1]
    assert changes(rig) == []
    ecr.rules = rules
    rig.run(120)
    told = [
        {key: value for key, value in fields.items() if key != "registry" and value is not None}
        for fields in changes(rig)
    ]
    assert told == ([changed] if changed else [])


def test_deletion_mirroring_that_is_switched_off_is_a_warning() -> None:
    ecr = FakeECR(rules=(replace(TEAM, delete_replication=True),))
    rig = world(ecr)
    rig.run(30)
    ecr.rules = (TEAM,)
    rig.run(120)
    (change,) = changes(rig)
    assert change["delete_replication_off"] == TO_IRELAND
    assert change["went"] is change["came"] is change["delete_replication_on"] is None


def test_a_change_during_an_outage_that_was_longer_than_stale_after_is_a_warning_after_it() -> None:
    ecr = FakeECR(rules=(TEAM,))
    rig = world(ecr, stale_after=600.0)
    rig.run(30)
    ecr.fault = denied("DescribeRegistry")
    rig.run(900)
    ecr.rules = ()
    ecr.fault = lambda *_: None
    rig.run(120)
    assert [change["went"] for change in changes(rig)] == [TO_IRELAND]


def test_of_many_rules_that_change_a_few_are_named() -> None:
    prefixes = tuple(f"team-{number:02}/" for number in range(40))
    ecr = FakeECR(rules=(Rule((IRELAND,), prefixes, prefixes),))
    rig = world(ecr)
    rig.run(30)
    ecr.rules = ()
    rig.run(120)
    (change,) = changes(rig)
    went = str(change["went"]).split(", ")
    assert (went[0], went[-1], len(went)) == (f"team-00/* -> {ACCOUNT}/eu-west-1", "30 more", 11)
