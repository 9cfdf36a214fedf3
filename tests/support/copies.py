"""Rigs whose destinations are looked at, and what was seen there."""

from __future__ import annotations

from exporter.config.settings import Settings, TargetSettings
from exporter.replication.model import Reason, Source
from support.fakes import ACCOUNT, ALL, IRELAND, FakeECR, Rig, complete, settings

THERE = Source(ACCOUNT, IRELAND.region)
IMAGES = "DescribeImages"
HOUR = 3600.0


def looking(*targets: TargetSettings, **knobs: object) -> Settings:
    return settings(*(targets or (ALL,)), **{"replica_interval": 900.0, **knobs})


def world() -> tuple[FakeECR, FakeECR]:
    """A registry that replicates to Ireland, and Ireland, with room for a page of a thousand."""
    return FakeECR(page_size=1000), FakeECR(source=THERE, rules=(), page_size=1000)


def copied(
    home: FakeECR, there: FakeECR, *tags: str, age: float = 10 * HOUR, repository: str = "team/app"
) -> str:
    """Push an image at home that is COMPLETE, with its copy."""
    digest = home.push(repository, *tags, at=1.8e9 + 1000.0 - age)
    home.report(repository, digest, complete())
    return there.push(repository, *tags, at=1.8e9 + 1005.0 - age, digest=digest)


def replicas(rig: Rig) -> dict[str, dict[str, str]]:
    """What was seen of each name, by Region."""
    return {
        name.tag or name.digest: {r.destination.region: str(r.state) for r in of_name}
        for registry in rig.snapshot().registries
        for _, images in registry.repositories
        for image in images
        for name, of_name in zip(image.names, image.replicas or ((),) * len(image.names), strict=True)
    }


def health(rig: Rig) -> dict[str, tuple[bool | None, frozenset[Reason]]]:
    return {h.destination.region: (h.success, h.reasons) for h in rig.snapshot().destinations}


def statuses(rig: Rig) -> dict[str, str]:
    return {key[1]: states.get(IRELAND, "") for key, states in rig.states().items()}
