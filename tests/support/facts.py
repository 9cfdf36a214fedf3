"""Facts made by hand: a store in which every state and reason that matters is there."""

from __future__ import annotations

from exporter.replication.facts import (
    DestinationFacts,
    ImageFacts,
    Look,
    RegistryFacts,
    RepositoryFacts,
    TargetImages,
)
from exporter.replication.model import (
    Backfill,
    Destination,
    FailureScope,
    ImageState,
    Name,
    Reason,
    Registry,
    Replica,
    ReplicaState,
    Replication,
    Rule,
    Since,
    Source,
    Status,
)
from exporter.replication.store import Store
from support.fakes import ACCOUNT, HOME, IRELAND, OREGON, digest_of

PUSHED = 1_800_000_000.0
OTHER = Destination("eu-west-1", "444455556666")
HERE = Replica(IRELAND, ReplicaState.PRESENT, held=True)


def image(
    tag: str,
    *replications: Replication,
    digest: str = "",
    state: ImageState = ImageState.SETTLED,
    pushed_at: float | None = PUSHED,
    replicas: tuple[tuple[Replica, ...], ...] = (),
) -> ImageFacts:
    names = tuple(Name(word, "") for word in tag.split(",")) if tag else (Name("", digest_of(digest)),)
    return ImageFacts(
        digest=digest_of(digest or tag),
        names=names,
        pushed_at=pushed_at,
        replicated_from=pushed_at,
        replications=replications or None,
        since=tuple(Since(to, status, PUSHED + 5) for to, status, _ in replications if status != "COMPLETE"),
        state=state if replications else ImageState.NEW,
        good_until=9e9,
        replicas=replicas,
    )


def repository(label: str, *images: ImageFacts) -> RepositoryFacts:
    return RepositoryFacts(
        labels=(label,),
        images={facts.digest: facts for facts in images},
        targets=(TargetImages(label, len(images), complete=True),),
        listed_at=0.0,
        listed_time=PUSHED + 60,
        asked=True,
    )


def hand_made() -> Store:
    """Every row has a sample, and every state and reason that matters is there."""
    team = repository(
        "team/*",
        image(
            "v1,latest",
            Replication(IRELAND, Status.COMPLETE),
            Replication(OTHER, Status.FAILED, "DENIED"),
            replicas=(
                (HERE, Replica(OTHER, ReplicaState.ABSENT, held=False)),
                (Replica(IRELAND, ReplicaState.UNTAGGED, held=True),),
            ),
        ),
        image(
            "v2",
            Replication(IRELAND, Status.IN_PROGRESS),
            Replication(OTHER, "TELEPORTED"),
            state=ImageState.PENDING,
            pushed_at=PUSHED + 10,
            replicas=((Replica(IRELAND, ReplicaState.OTHER_IMAGE, held=False),),),
        ),
        image("v3", Replication(IRELAND, Status.MISSING), state=ImageState.FAILED, pushed_at=PUSHED - 10),
        image("v4", Replication(IRELAND, Status.IN_PROGRESS), state=ImageState.FAILED, pushed_at=None),
        image("v5"),
        image("", Replication(IRELAND, Status.COMPLETE), digest="untagged", replicas=((HERE,),)),
        image(
            "v6",
            Replication(IRELAND, Status.COMPLETE),
            replicas=((Replica(IRELAND, ReplicaState.ARCHIVED, held=True),),),
        ),
    )
    team.settings_differ = ((IRELAND, "encryption"), (IRELAND, "scan_on_push"), (OTHER, "scan_on_push"))
    gone = repository("team/gone")
    gone.exists = False
    gone.failures[FailureScope("images", "team/gone")] = Reason.REPOSITORY_NOT_FOUND
    unlisted = RepositoryFacts(labels=("team/unlisted",))
    home = RegistryFacts(
        HOME,
        labels=("team/*", "team/gone"),
        globs=frozenset({"team/*"}),
        rules=Registry(
            ACCOUNT,
            (
                Rule((IRELAND, OTHER), ("team/", "x"), ("team/", "x")),
                Rule((OREGON,), delete_replication=True),
            ),
        ),
        backfills=(
            Backfill(
                "1",
                IRELAND,
                "FAILED",
                PUSHED,
                PUSHED + 90,
                (("total", 9), ("completed", 2), ("failed", 7)),
                ("DENIED", "GONE"),
            ),
            Backfill("2", OREGON, "PAUSED"),
        ),
        begun=True,
        repositories_known=True,
        repositories_time=PUSHED + 60,
        repositories={"team/app": team, "team/gone": gone},
    )
    elsewhere = RegistryFacts(Source("", "eu-west-1"), labels=("team/unlisted",))
    elsewhere.repositories["team/unlisted"] = unlisted
    store = Store()
    store.registries = [home, elsewhere]
    broken = DestinationFacts(OTHER, RegistryFacts(Source(OTHER.registry_id, OTHER.region)), since=0.0)
    broken.failures[FailureScope("replicas", "team/app")] = Reason.ACCESS_DENIED
    works = DestinationFacts(IRELAND, RegistryFacts(Source(ACCOUNT, IRELAND.region), heard_at=0.0), since=0.0)
    works.looked("team/app", Look(0.0, PUSHED + 40))
    store.destinations = [broken, works]
    store.stale_after = 600.0
    store.skipped = 7
    return store
