"""The nouns that every room shares: frozen facts and closed vocabularies.

Times are float seconds. A field named `*_at` that comes from AWS is Unix time; everything that
measures an interval inside the process is monotonic and says so. What AWS may leave out is None.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

#: The largest page of a listing, and the most names of one look-up (botocore service model).
PAGE_SIZE = 1000
LOOKUP_SIZE = 100
#: The largest page of the backfills (botocore service model).
BACKFILL_PAGE_SIZE = 50


class Status(StrEnum):
    """The states of one image at one destination.

    The first three are ECR's ReplicationStatus (botocore service model). MISSING is ours: the
    registry's rules send the image there, ECR reports nothing, and it was not seen there. UNKNOWN is
    ours too: ECR names the destination but leaves the status out. A status that AWS adds later is a
    plain string.
    """

    IN_PROGRESS = "IN_PROGRESS"
    COMPLETE = "COMPLETE"
    FAILED = "FAILED"
    MISSING = "MISSING"
    UNKNOWN = "UNKNOWN"


#: The states of which every image exports a 0 or a 1 for every destination.
KNOWN_STATUSES = (Status.IN_PROGRESS, Status.COMPLETE, Status.FAILED, Status.MISSING)


class ReplicaState(StrEnum):
    """What a look at a destination says of an image under one of its names. Only PRESENT can be pulled."""

    PRESENT = "present"
    #: The destination does not hold the digest, and the tag names no other.
    ABSENT = "absent"
    #: It holds the digest, but not under the tag, which names no other image there.
    UNTAGGED = "untagged"
    #: The tag names another digest there. The digest may be held too.
    OTHER_IMAGE = "other_image"
    #: It holds the digest in the archive.
    ARCHIVED = "archived"


class Reason(StrEnum):
    """Why a call, and with it a target, failed. The client maps every AWS error to one of these."""

    REPOSITORY_NOT_FOUND = "repository_not_found"
    IMAGE_NOT_FOUND = "image_not_found"
    ACCESS_DENIED = "access_denied"
    THROTTLED = "throttled"
    INVALID = "invalid"
    UNAVAILABLE = "unavailable"


class ImageState(StrEnum):
    """What the exporter expects of an image next; it decides how soon ECR is asked again."""

    NEW = "new"  # never asked
    PENDING = "pending"  # unfinished, and the push is recent
    FAILED = "failed"  # a destination FAILED, or is unfinished though the push is long ago
    SETTLED = "settled"  # COMPLETE everywhere it should be
    UNKNOWN = "unknown"  # asked, but no usable answer


class Source(NamedTuple):
    """A source registry: one account in one Region. `registry_id` is "" until AWS names it."""

    registry_id: str
    region: str


class Destination(NamedTuple):
    """Where a copy goes. A field that ECR left out is "" (every field of its answer is optional)."""

    region: str
    registry_id: str


class Name(NamedTuple):
    """How a watched image is labelled: by a tag (digest ""), or by its digest (tag "")."""

    tag: str
    digest: str


class FailureScope(NamedTuple):
    """What a failure concerns: a kind of call, in the whole registry, a repository, or for one image."""

    kind: str
    repository: str = ""
    digest: str = ""

    def __str__(self) -> str:
        where = f"{self.repository}@{self.digest}" if self.digest else self.repository
        return f"{self.kind} {where}".strip()


class RepositorySettings(NamedTuple):
    """The settings of a repository that replication does not copy; "" if AWS leaves one out."""

    image_tag_mutability: str = ""
    encryption: str = ""
    #: The kind of the KMS key: multi-region if its id starts with "mrk-" (KMS documentation), or
    #: single-region. Keys are not compared, because the replica cannot have the same one in another Region.
    encryption_key: str = ""
    scan_on_push: str = ""

    def differing(self, other: RepositorySettings) -> tuple[str, ...]:
        """The settings that are known of both and differ. The key is part of the encryption."""
        pairs = zip(self._fields, self, other, strict=True)
        names = (name.removesuffix("_key") for name, mine, its in pairs if mine and its and mine != its)
        return tuple(dict.fromkeys(names))


class Repository(NamedTuple):
    """A repository, as DescribeRepositories lists it."""

    name: str
    settings: RepositorySettings


@dataclass(frozen=True, slots=True)
class Image:
    """One digest of one repository, as DescribeImages lists it."""

    digest: str
    tags: tuple[str, ...] = ()
    pushed_at: float | None = None
    #: When it was restored from the archive, which starts its replication again.
    activated_at: float | None = None
    #: Whether it is in the archive, so that it cannot be pulled (ECR documentation).
    archived: bool = False

    @property
    def replicated_from(self) -> float | None:
        """When its latest replication began: the push or the restore. None if ECR reports neither."""
        times = [at for at in (self.pushed_at, self.activated_at) if at is not None]
        return max(times, default=None)


class Replication(NamedTuple):
    """The state of one image at one destination. `failure_code` is "" unless it FAILED."""

    destination: Destination
    status: str
    failure_code: str = ""


class Replica(NamedTuple):
    """What one destination was seen to hold of an image, under one of its names."""

    destination: Destination
    state: ReplicaState
    #: Whether it holds the digest, active or archived, under whatever tag.
    held: bool


class Since(NamedTuple):
    """When an image that is not COMPLETE at a destination was first seen in its present state there."""

    destination: Destination
    status: str
    at: float
    #: False while it is not known whether the image still is in that state.
    shown: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """One replication rule: its destinations, and its filters. Without filters it covers every repository."""

    destinations: tuple[Destination, ...]
    filters: tuple[str, ...] = ()
    #: The filters that are prefixes. What a filter of another type matches is unknown.
    prefixes: tuple[str, ...] = ()
    #: Whether deletions of images and tags are mirrored to the destinations. ECR mirrors none by default
    #: (botocore service model).
    delete_replication: bool = False

    def covers(self, repository: str) -> bool:
        """Whether images that are pushed to the repository are certainly sent to the destinations.

        PREFIX_MATCH is a plain prefix: "prod" covers "production-x" too (ECR documentation).
        """
        return not self.filters or repository.startswith(self.prefixes)


@dataclass(frozen=True, slots=True)
class Registry:
    """The answer of DescribeRegistry: the account of the registry, and its replication rules."""

    registry_id: str
    rules: tuple[Rule, ...] = ()
    #: A cache by repository. The first caller adds an entry, in any thread.
    _destinations: dict[str, frozenset[Destination]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def routes(self) -> dict[tuple[Destination, str], bool]:
        """Each destination and filter of the rules, and whether some rule mirrors deletions there.

        The filter is "" where a rule has none.
        """
        routes: dict[tuple[Destination, str], bool] = {}
        for rule in self.rules:
            for route in product(rule.destinations, rule.filters or ("",)):
                routes[route] = routes.get(route, False) or rule.delete_replication
        return routes

    def destinations(self, repository: str) -> frozenset[Destination]:
        """Where the rules send what is pushed to the repository."""
        found = self._destinations.get(repository)
        if found is None:
            rules = (rule for rule in self.rules if rule.covers(repository))
            found = frozenset(destination for rule in rules for destination in rule.destinations)
            self._destinations[repository] = found
        return found


class BackfillStatus(StrEnum):
    """ECR's ReplicationBackfillStatus (botocore service model). One that AWS adds later is a plain string."""

    PREPARING = "PREPARING"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETE = "COMPLETE"
    FAILED = "FAILED"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"


_ENDED = frozenset({BackfillStatus.COMPLETE, BackfillStatus.FAILED, BackfillStatus.STOPPED})


@dataclass(frozen=True, slots=True)
class Backfill:
    """One backfill, as ListReplicationBackfills lists it. Its times are Unix time."""

    id: str
    destination: Destination
    status: str
    started_at: float | None = None
    ended_at: float | None = None
    #: How many pairs of image and tag it has by state: total, completed, failed. Empty without progress.
    images: tuple[tuple[str, int], ...] = ()
    #: Why it failed, or its images did.
    failure_codes: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether it does not run any more."""
        return self.status in _ENDED or self.ended_at is not None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a listing; `token` is None on the last."""

    items: tuple[T, ...]
    token: str | None = None
