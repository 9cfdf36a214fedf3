"""What must hold of every page, whatever the configuration and whatever AWS refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parse
from support.fakes import (
    ACCOUNT,
    HOME,
    IRELAND,
    OREGON,
    STATUS,
    FakeAWS,
    FakeECR,
    Rig,
    complete,
    pushed,
    refusal,
    settings,
)

from exporter.aws.errors import ECRError
from exporter.config.settings import RegistrySettings, TargetSettings
from exporter.metrics.exposition import Exposition
from exporter.metrics.self_metrics import Instruments
from exporter.replication.model import Reason, Replication, Rule, Source, Status

PARTNER = "444455556666"
ENTRIES = (
    RegistrySettings(),
    RegistrySettings(name="home", region=HOME.region),
    RegistrySettings(name="role", region=HOME.region, role_arn=f"arn:aws:iam::{ACCOUNT}:role/one"),
    RegistrySettings(name="other", region=HOME.region, role_arn=f"arn:aws:iam::{ACCOUNT}:role/two"),
    RegistrySettings(name="id", region=HOME.region, registry_id=ACCOUNT),
    RegistrySettings(name="foreign", region=HOME.region, registry_id=PARTNER),
    RegistrySettings(name="partner", region=HOME.region, role_arn=f"arn:aws:iam::{PARTNER}:role/one"),
    RegistrySettings(name="eu", region="eu-west-1"),
)
TARGETS = (
    TargetSettings(repository="*"),
    TargetSettings(repository="team/*", latest=1),
    TargetSettings(repository="team/app", tag="v1"),
    TargetSettings(repository="team/app", tags=("v1", "v9")),
    TargetSettings(repository="team/gone", tag="v1"),
    TargetSettings(repository="team/app", registries=("home", "role", "partner")),
)
OPERATIONS = ("DescribeRegistry", "DescribeRepositories", "DescribeImages", STATUS)
STATES = (
    (complete(),),
    (Replication(IRELAND, Status.FAILED, "X"), complete(OREGON)),
    (Replication(IRELAND, Status.IN_PROGRESS),),
    (),
)


def peopled(source: Source) -> FakeECR:
    ecr = FakeECR(source=source, rules=(Rule((IRELAND,)), Rule((OREGON,), ("team/",), ("team/",))))
    states = iter(STATES * 2)
    for repository, tag in product(("team/app", "team/api", "other/app"), ("v1", "v2")):
        ecr.report(repository, pushed(ecr, repository, tag, age=9999), *next(states))
    return ecr


class Pages:
    """The pages of a rig."""

    def __init__(self, rig: Rig) -> None:
        self._exposition = Exposition(
            instruments=Instruments(), store=rig.store, figures=rig.poller, clock=rig.clock
        )

    def text(self) -> str:
        """The lines of the exporter's own series."""
        page = self._exposition.page(accept="", accept_encoding="", names=()).whole().decode()
        return "\n".join(line for line in page.split("\n") if line.startswith("ecr_"))

    def read(self) -> Mapping[tuple[str, frozenset[tuple[str, str]]], float]:
        """Each of the exporter's own series. Fails if one appears twice."""
        samples = [
            ((sample.name, frozenset(sample.labels.items())), sample.value)
            for family in parse(self.text())
            for sample in family.samples
        ]
        twice = [series for series, number in Counter(series for series, _ in samples).items() if number > 1]
        assert twice == []
        return dict(samples)


def succeeded(pages: Pages) -> set[tuple[str, str, str]]:
    """The targets with success 1: label, account and Region."""
    found = set()
    for (name, pairs), value in pages.read().items():
        labels = dict(pairs)
        if name == "ecr_target_success" and value == 1:
            found.add((labels["target"], labels["source_registry_id"], labels["source_region"]))
    return found


def missing_answers(target: TargetSettings, ecr: FakeECR) -> set[str]:
    """What the target names in the registry and what was not found or not asked for."""
    asked = {(repository, digest) for operation, repository, digest in ecr.log if operation == STATUS}
    missing = set()
    for repository, images in ecr.repositories.items():
        if target.repository not in (repository, "*") and not (
            target.repository == "team/*" and repository.startswith("team/")
        ):
            continue
        ordered = sorted(images.values(), key=lambda image: image.pushed_at or 0.0, reverse=True)
        wanted = set(target.tags) | ({target.tag} if target.tag else set())
        chosen = [i for i in ordered if not wanted or wanted & set(i.tags)][: target.latest]
        missing |= {image.digest for image in chosen if (repository, image.digest) not in asked}
        missing |= wanted - {tag for image in chosen for tag in image.tags}
    exact = "*" not in target.repository
    return missing | ({target.repository} if exact and target.repository not in ecr.repositories else set())


@given(
    entries=st.lists(st.sampled_from(ENTRIES), min_size=1, unique=True),
    targets=st.lists(st.sampled_from(TARGETS), min_size=1, max_size=3, unique=True),
    refused=st.sets(st.tuples(st.sampled_from(ENTRIES), st.sampled_from(OPERATIONS)), max_size=6),
    without_credentials=st.sets(st.sampled_from(ENTRIES), max_size=4),
    reason=st.sampled_from([Reason.ACCESS_DENIED, Reason.THROTTLED, Reason.UNAVAILABLE]),
    recovers=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_no_series_twice_two_reads_equal_and_success_only_when_asked(
    *,
    entries: list[RegistrySettings],
    targets: list[TargetSettings],
    refused: set[tuple[RegistrySettings, str]],
    without_credentials: set[RegistrySettings],
    reason: Reason,
    recovers: bool,
    seed: int,
) -> None:
    random = Random(seed)
    broken = True

    def access(entry: RegistrySettings) -> RegistrySettings:
        return replace(entry, name="", region=entry.region or HOME.region)

    shut = {access(entry) for entry in without_credentials}
    closed = {(access(entry), operation) for entry, operation in refused}

    def permission(entry: RegistrySettings, operation: str, _: str) -> ECRError | None:
        if not broken:
            return None
        if entry in shut:
            return refusal(Reason.ACCESS_DENIED, "sts:AssumeRole", everything=True)
        return refusal(reason) if (entry, operation) in closed else None

    names = {entry.name for entry in entries}
    usable = [target for target in targets if not target.registries or names & set(target.registries)]
    usable = [replace(t, registries=tuple(names & set(t.registries))) for t in usable]
    ecrs = {s: peopled(s) for s in (HOME, Source(PARTNER, HOME.region), Source(ACCOUNT, "eu-west-1"))}
    rig = Rig(
        settings(*(usable or [TARGETS[0]]), registries=tuple(entries)),
        *ecrs.values(),
        connector=FakeAWS(ecrs, permission=permission),
    )
    first, second = Pages(rig), Pages(rig)
    by_label = {target.label: target for target in usable or [TARGETS[0]]}
    for turn in range(6):
        rig.run(random.choice([0.0, 0.1, 1.0, 30.0, 200.0]))
        one = first.text()
        assert one
        snapshot = rig.snapshot()
        rig.store.unheard(rig.clock.now)
        assert one == second.text() == first.text()
        assert snapshot == rig.snapshot()
        for label, account, region in succeeded(second):
            assert missing_answers(by_label[label], ecrs[Source(account, region)]) == set()
        broken = not (recovers and turn >= 2)
    if recovers:
        rig.run(300)
        good = {
            label for label, target in by_label.items() if "v9" not in target.tags and "gone" not in label
        }
        assert {label for label, _, _ in succeeded(first)} >= good
