"""Identity apart from access: several entries, roles and accounts for one registry, in virtual time."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import (
    ACCOUNT,
    HOME,
    IRELAND,
    STATUS,
    FakeAWS,
    FakeClient,
    FakeECR,
    Permission,
    Rig,
    refusal,
)

from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.config.settings import RegistrySettings, Settings, TargetSettings
from exporter.config.validators import Secret
from exporter.polling.access import grouped
from exporter.replication.model import Reason, Replication, Source, Status

OTHER = Source("444455556666", HOME.region)
ROLE_A = f"arn:aws:iam::{OTHER.registry_id}:role/a"
ROLE_B = f"arn:aws:iam::{OTHER.registry_id}:role/b"
A = RegistrySettings(name="a", region=HOME.region, role_arn=ROLE_A)
B = RegistrySettings(name="b", region=HOME.region, role_arn=ROLE_B)
FOREIGN = RegistrySettings(name="foreign", region=HOME.region, registry_id=OTHER.registry_id)


def settings(registries: tuple[RegistrySettings, ...], *targets: TargetSettings) -> Settings:
    return Settings(targets=targets, registries=registries, requests_per_second=100.0)


def peopled(source: Source = OTHER, *repositories: str) -> FakeECR:
    ecr = FakeECR(source=source)
    for repository in repositories:
        digest = ecr.push(repository, "v1", at=1.8e9)
        ecr.report(repository, digest, Replication(IRELAND, Status.COMPLETE))
    return ecr


def rig_of(config: Settings, *ecrs: FakeECR, permission: Permission = lambda *_: None) -> Rig:
    connector = FakeAWS({ecr.source: ecr for ecr in ecrs}, permission=permission)
    return Rig(config, *ecrs, connector=connector)


def test_each_target_is_asked_with_the_entries_that_it_names() -> None:
    """Each role may read one repository."""
    used: set[tuple[str | None, str]] = set()

    def permission(entry: RegistrySettings, operation: str, repository: str) -> ECRError | None:
        used.add((entry.role_arn, repository))
        allowed = {ROLE_A: "team/a", ROLE_B: "team/b"}
        wrong = repository and allowed[entry.role_arn or ""] != repository
        return refusal(Reason.ACCESS_DENIED, f"ecr:{operation}") if wrong else None

    targets = (
        TargetSettings("team/a", tag="v1", registries=("a",)),
        TargetSettings("team/b", tag="v1", registries=("b",)),
    )
    rig = rig_of(
        settings((A, B), *targets), peopled(OTHER, "team/a", "team/b"), peopled(HOME), permission=permission
    )
    rig.run(30)
    assert rig.target("team/a:v1").success is True
    assert rig.target("team/b:v1").success is True
    assert {(ROLE_A, "team/b"), (ROLE_B, "team/a")}.isdisjoint(used)
    assert len(rig.snapshot().registries) == 1


@pytest.mark.parametrize("denied_operation", ["DescribeImages", STATUS])
def test_a_repository_that_one_role_may_not_read_is_asked_with_another(denied_operation: str) -> None:
    def permission(entry: RegistrySettings, operation: str, repository: str) -> ECRError | None:
        denied = entry.role_arn == ROLE_A and (operation, repository) == (denied_operation, "team/b")
        return refusal(Reason.ACCESS_DENIED, f"ecr:{operation}") if denied else None

    ecr = peopled(OTHER, "team/a", "team/b")
    rig = rig_of(settings((A, B), TargetSettings("team/*")), ecr, peopled(HOME), permission=permission)
    rig.run(30)
    assert rig.target("team/*").success is True
    assert {repository for repository, _, _ in rig.states()} == {"team/a", "team/b"}


def test_credentials_that_are_of_no_use_fail_only_what_no_other_access_can_read() -> None:
    def permission(entry: RegistrySettings, *_: str) -> ECRError | None:
        useless = entry.role_arn == ROLE_A
        return refusal(Reason.ACCESS_DENIED, "sts:AssumeRole", everything=True) if useless else None

    targets = (TargetSettings("team/a", registries=("a",)), TargetSettings("team/b"))
    rig = rig_of(
        settings((A, B), *targets), peopled(OTHER, "team/a", "team/b"), peopled(HOME), permission=permission
    )
    rig.run(30)
    assert rig.target("team/a").reasons == {Reason.ACCESS_DENIED}
    assert rig.target("team/b").success is True


@pytest.mark.parametrize("operation", ["DescribeRegistry", ""], ids=["rules", "everything"])
def test_a_registry_id_reads_images_though_no_other_access_may_read_the_rules(operation: str) -> None:
    def permission(entry: RegistrySettings, called: str, _: str) -> ECRError | None:
        refused = entry.role_arn == ROLE_A and operation in ("", called)
        return refusal(Reason.ACCESS_DENIED, everything=not operation) if refused else None

    rig = rig_of(
        settings((FOREIGN, A), TargetSettings("team/*")),
        peopled(OTHER, "team/a"),
        peopled(HOME),
        permission=permission,
    )
    rig.run(120)
    assert rig.target("team/*").success is True
    assert rig.states()
    assert [str(scope) for _, scope in rig.journal.failing] == ["rules"]


@pytest.mark.parametrize("reader", ["own credentials", "a role", "none"])
def test_credentials_that_change_to_another_account_read_for_it_no_more_and_the_log_says_so(
    reader: str,
) -> None:
    """The account is confirmed whichever access reads the rules, and if none does."""
    own = RegistrySettings("own", region=HOME.region)
    role = RegistrySettings("role", region=HOME.region, role_arn=f"arn:aws:iam::{ACCOUNT}:role/r")
    home, other = peopled(HOME, "team/a"), peopled(OTHER, "team/a")
    account = [home]

    def permission(entry: RegistrySettings, called: str, _: str) -> ECRError | None:
        may = reader == "own credentials" if entry.role_arn is None else reader == "a role"
        return None if may or called != "DescribeRegistry" else refusal(Reason.ACCESS_DENIED)

    class Rotating(FakeAWS):
        def ecr(self, settings: RegistrySettings, *, connections: int) -> EcrClient:
            client = super().ecr(settings, connections=connections)
            return client if settings.role_arn else OwnClient(client)

    class OwnClient:
        """A client whose registry is that of the credentials of the moment."""

        def __init__(self, client: EcrClient) -> None:
            self._client = client

        def __getattr__(self, name: str) -> Any:
            if account[0] is other:
                return getattr(FakeClient(other, other, partial(permission, own)), name)
            return getattr(self._client, name)

    connector = Rotating({HOME: home, OTHER: other}, permission=permission)
    rig = Rig(settings((own, role), TargetSettings("team/*")), home, connector=connector)
    rig.run(60)
    assert [r.source for r in rig.snapshot().registries] == [HOME]
    account[0] = other
    rig.run(120)
    assert {r.source for r in rig.snapshot().registries} == {HOME, OTHER}
    lines = [f for event, f in rig.journal.events if event == "credentials_of_another_account"]
    assert [(f["expected"], f["registry_id"]) for f in lines] == [(ACCOUNT, OTHER.registry_id)]


def test_a_reload_that_adds_a_role_keeps_what_is_known_and_reads_the_rules() -> None:
    ecr = peopled(OTHER, "team/a")
    rig = rig_of(settings((FOREIGN,), TargetSettings("team/*")), ecr, peopled(HOME))
    rig.run(30)
    before, asked = rig.states(), ecr.calls[STATUS]
    assert before
    assert rig.snapshot().registries[0].rules is None, "an access to another account cannot read its rules"
    since = rig.snapshot().registries[0].complete_time

    rig.poller.configure(settings((FOREIGN, A), TargetSettings("team/*")))
    assert rig.states() == before
    assert rig.snapshot().registries[0].complete_time == since
    rig.run(5)
    assert rig.states() == before
    rules = rig.snapshot().registries[0].rules
    assert rules is not None
    assert rules.registry_id == OTHER.registry_id
    assert ecr.calls[STATUS] <= asked + 1, "only because the rules became known"


def test_a_changed_external_id_is_used_at_once_and_nothing_is_asked_again() -> None:
    used: list[object] = []

    def permission(entry: RegistrySettings, *_: str) -> ECRError | None:
        used.append(entry.external_id)
        return None

    ecr = peopled(OTHER, "team/a")
    old, new = (replace(A, external_id=Secret(text)) for text in ("old", "new"))
    rig = rig_of(settings((old,), TargetSettings("team/*")), ecr, peopled(HOME), permission=permission)
    rig.run(30)
    before, asked = rig.states(), ecr.calls[STATUS]
    assert before
    used.clear()
    rig.poller.configure(settings((new,), TargetSettings("team/*")))
    assert rig.states() == before
    rig.run(130)
    assert rig.states() == before
    assert set(used) == {Secret("new")}
    assert ecr.calls[STATUS] == asked


def test_a_changed_role_is_used_at_once_and_keeps_what_is_known() -> None:
    used: list[str | None] = []

    def permission(entry: RegistrySettings, *_: str) -> ECRError | None:
        used.append(entry.role_arn)
        return None

    ecr = peopled(OTHER, "team/a")
    rig = rig_of(settings((A,), TargetSettings("team/*")), ecr, peopled(HOME), permission=permission)
    rig.run(30)
    before, asked = rig.snapshot(), ecr.calls[STATUS]
    assert rig.states()
    used.clear()
    rig.poller.configure(settings((replace(A, role_arn=ROLE_B),), TargetSettings("team/*")))
    assert rig.snapshot().registries == before.registries
    rig.run(130)
    assert set(used) == {ROLE_B}
    assert ecr.calls[STATUS] == asked


def test_another_account_starts_without_the_facts_of_the_old_one() -> None:
    ecr = peopled(HOME, "team/a")
    rig = rig_of(settings((RegistrySettings(),), TargetSettings("team/*")), ecr)
    rig.run(30)
    listed = rig.snapshot().registries[0].complete_time
    assert listed is not None
    ecr.source = OTHER
    ecr.fault = lambda operation, _: (
        refusal(Reason.UNAVAILABLE) if operation not in ("DescribeRegistry", "GetCallerIdentity") else None
    )
    rig.run(70)
    (registry,) = rig.snapshot().registries
    assert registry.source == OTHER
    assert registry.complete_time is None
    assert rig.states() == {}


def test_two_entries_whose_account_is_unknown_are_one_registry() -> None:
    ecr = peopled(HOME, "team/a")
    ecr.fault = lambda *_: refusal(Reason.ACCESS_DENIED, everything=True)
    entries = (RegistrySettings(), RegistrySettings(name="home", region=HOME.region))
    rig = rig_of(settings(entries, TargetSettings("team/*")), ecr)
    rig.run(30)
    assert [registry.source for registry in rig.snapshot().registries] == [Source("", HOME.region)]


ENTRIES = (
    RegistrySettings(),
    RegistrySettings(name="home", region=HOME.region),
    RegistrySettings(name="id", region=HOME.region, registry_id=ACCOUNT),
    RegistrySettings(name="self", region=HOME.region, role_arn=f"arn:aws:iam::{ACCOUNT}:role/r"),
    RegistrySettings(name="eu", region="eu-west-1"),
    A,
    B,
    FOREIGN,
)


@given(
    configurations=st.lists(
        st.lists(st.sampled_from(ENTRIES), min_size=1, unique=True), min_size=1, max_size=4
    ),
    denied=st.sets(st.sampled_from(ENTRIES)),
    pauses=st.lists(st.sampled_from([0.0, 0.2, 1.0, 70.0]), min_size=4, max_size=4),
)
def test_no_registry_appears_twice_whatever_the_configuration_and_the_order_of_answers(
    configurations: list[list[RegistrySettings]], denied: set[RegistrySettings], pauses: list[float]
) -> None:
    shut = {replace(entry, name="", region=entry.region or HOME.region) for entry in denied}

    def permission(entry: RegistrySettings, operation: str, _: str) -> ECRError | None:
        return refusal(Reason.ACCESS_DENIED) if entry in shut and operation == "DescribeRegistry" else None

    ecrs = [peopled(source, "team/a") for source in (HOME, OTHER, Source(ACCOUNT, "eu-west-1"))]
    rig = rig_of(settings(tuple(configurations[0]), TargetSettings("team/*")), *ecrs, permission=permission)
    for configuration, pause in zip(configurations, pauses, strict=False):
        rig.poller.configure(settings(tuple(configuration), TargetSettings("team/*")))
        for _ in range(4):
            rig.run(pause)
            sources = [registry.source for registry in rig.snapshot().registries]
            assert len(sources) == len(set(sources))
            assert rig.snapshot() == rig.snapshot()
    rig.run(60)
    named = {registry.source.registry_id for registry in rig.snapshot().registries}
    assert named <= {ACCOUNT, OTHER.registry_id}


@given(
    entries=st.lists(st.sampled_from(ENTRIES), unique=True),
    known=st.dictionaries(st.sampled_from(ENTRIES), st.sampled_from([ACCOUNT, OTHER.registry_id])),
)
def test_a_grouping_holds_each_entry_once_and_each_registry_once(
    entries: list[RegistrySettings], known: dict[RegistrySettings, str]
) -> None:
    accounts = {replace(entry, name="", region=entry.region or HOME.region): a for entry, a in known.items()}
    groups = grouped(entries, accounts=accounts, region=HOME.region)
    assert len({group.source for group in groups}) == len(groups)
    assert sorted(e.name for g in groups for e in g.entries) == sorted(e.name for e in entries)
