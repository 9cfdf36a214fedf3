"""The catalogue: every metric's name, type, help and labels, and how facts become samples.

A row of the catalogue is all there is to a metric; the exposition (`exposition`) and docs/metrics.md
(`reference`) are made from the rows. Every name here is API.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from exporter.replication.destination_health import DestinationHealth
from exporter.replication.facts import ImageFacts
from exporter.replication.model import (
    KNOWN_STATUSES,
    Backfill,
    BackfillStatus,
    Destination,
    Name,
    Replica,
    ReplicaState,
    Replication,
    Since,
    Source,
    Status,
)
from exporter.replication.store import RegistrySnapshot

S = ("source_registry_id", "source_region")
I = ("repository", "tag", "digest", *S)  # noqa: E741 - the letter of the specification
D = ("region", "registry_id")

PREFIX = "ecr_replication_exporter_"
_POLLED = "Cached: from the last poll, not from the scrape."

#: The label values, in the order of the row's labels, and the value.
Sample = tuple[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Row:
    """One metric. `buckets` are for histograms."""

    name: str
    type: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageRow(Row):
    """A gauge of watched images: its first labels are I, and each name of an image has all its samples.

    A row with further labels has `fact` and `samples`. One without them has `value`.
    """

    #: What of an image the samples depend on. Many images have the same fact.
    fact: Callable[[ImageFacts], Any] = lambda _: None
    #: That fact -> samples, with the labels that follow I.
    samples: Callable[[Any], Iterable[Sample]] = lambda _: ()
    #: The value of the only sample; None for no sample.
    value: Callable[[ImageFacts], float | None] | None = None
    #: Whether the digest is filled also where the image is watched by tag.
    digest: bool = False
    #: Whether the fact has a part for each name of the image, in their order. It may be empty.
    by_name: bool = False

    def own_labels(self, source: Source, repository: str, name: Name, image: ImageFacts) -> tuple[str, ...]:
        """The values of I."""
        return (repository, name.tag, image.digest if self.digest else name.digest, *source)

    def samples_of(self, image: ImageFacts, name: Name) -> Iterator[Sample]:
        """All samples of the image under one of its names, with the labels that follow I."""
        if self.by_name:
            parts = dict(zip(image.names, self.fact(image), strict=False))
            yield from self.samples(parts.get(name, ()))
        elif self.value is None:
            yield from self.samples(self.fact(image))
        elif (value := self.value(image)) is not None:
            yield (), value

    def depends_on(self, image: ImageFacts) -> Any:
        """What of an image all its samples depend on."""
        return self.value(image) if self.value else self.fact(image)


@dataclass(frozen=True, slots=True)
class DestinationRow(Row):
    """A gauge of the destinations that are looked at."""

    samples: Callable[[DestinationHealth], Iterable[Sample]] = lambda _: ()


class Group(NamedTuple):
    """Images of one repository: all of them, or some. The last two fields are for rows about repositories."""

    source: Source
    repository: str
    images: tuple[ImageFacts, ...]
    #: How many destinations the rules have; None if unknown.
    destinations: int | None = None
    #: The settings of the repository that differ at destinations.
    settings_differ: tuple[tuple[Destination, str], ...] = ()

    @classmethod
    def whole(cls, registry: RegistrySnapshot, repository: str, images: tuple[ImageFacts, ...]) -> Group:
        """All that is known of a repository."""
        destinations = registry.destinations.get(repository)
        return cls(
            registry.source, repository, images, destinations, registry.settings_differ.get(repository, ())
        )


class Alike(NamedTuple):
    """Images of a repository of which the same is known."""

    replications: tuple[Replication, ...] | None
    replicas: tuple[tuple[Replica, ...], ...]
    unverified: bool
    images: list[ImageFacts]


def alike(images: Sequence[ImageFacts]) -> list[Alike]:
    """The images by what is known of them. Most hold the same objects, so a repository has a few groups."""
    groups: dict[tuple[int, int, bool], Alike] = {}
    for image in images:
        replications, replicas, unverified = image.replications, image.replicas, image.unverified
        key = (id(replications), id(replicas), unverified)
        if key in groups:
            groups[key].images.append(image)
        else:
            groups[key] = Alike(replications, replicas, unverified, [image])
    return list(groups.values())


@dataclass(frozen=True, slots=True)
class RepositoryRow(Row):
    """A gauge of repositories. Its samples are made of the repository and of `alike(its images)`."""

    samples: Callable[[Group, Sequence[Alike]], Iterable[Sample]] = lambda *_: ()


@dataclass(frozen=True, slots=True)
class RegistryRow(Row):
    """A gauge of source registries, their rules and targets."""

    samples: Callable[[RegistrySnapshot], Iterable[Sample]] = lambda *_: ()


# -- facts to samples ----------------------------------------------------------------------------


_replications = attrgetter("replications")


def _status(replications: tuple[Replication, ...] | None) -> Iterator[Sample]:
    for destination, status, _ in replications or ():
        for state in dict.fromkeys((*KNOWN_STATUSES, status)):
            yield (*destination, state), float(state == status)


def _failure_info(replications: tuple[Replication, ...] | None) -> Iterator[Sample]:
    for destination, status, code in replications or ():
        if status == Status.FAILED:
            yield (*destination, code), 1.0


def _since(states: tuple[Since, ...]) -> Iterator[Sample]:
    for destination, _, at, shown in states:
        if shown:
            yield destination, at


_replicas = attrgetter("replicas")


def _replica_present(replicas: tuple[Replica, ...]) -> Iterator[Sample]:
    for destination, state, _ in replicas:
        yield destination, float(state is ReplicaState.PRESENT)


def _replica_problem(replicas: tuple[Replica, ...]) -> Iterator[Sample]:
    for destination, state, _ in replicas:
        if state is not ReplicaState.PRESENT:
            yield (*destination, state), 1.0


def _images(group: Group, images: Sequence[Alike]) -> Iterator[Sample]:
    """That there is none in a state is known only when all images are."""
    all_known = all(each.replications is not None and not each.unverified for each in images)
    tally: Tally[tuple[Destination, str]] = Tally()
    for each in images:
        for destination, status, _ in each.replications or ():
            tally[destination, status] += len(each.images)
    for destination in sorted({destination for destination, _ in tally}):
        unknown = sorted({s for d, s in tally if d == destination} - set(KNOWN_STATUSES))
        for status in (*KNOWN_STATUSES, *unknown):
            if (number := tally[destination, status]) or all_known:
                yield (group.repository, *group.source, *destination, status), float(number)


def _oldest_pending(group: Group, images: Sequence[Alike]) -> Iterator[Sample]:
    oldest: dict[Destination, float] = {}
    for each in images:
        pending = (Status.IN_PROGRESS, Status.MISSING)
        waits_for = [d for d, status, _ in each.replications or () if status in pending]
        times = [image.pushed_at for image in each.images if image.pushed_at is not None] if waits_for else []
        for destination in waits_for if times else ():
            oldest[destination] = min(*times, oldest.get(destination, times[0]))
    for destination, pushed_at in sorted(oldest.items()):
        yield (group.repository, *group.source, *destination), pushed_at


def _destinations(group: Group, _: Sequence[Alike]) -> Iterator[Sample]:
    if group.destinations is not None:
        yield (group.repository, *group.source), float(group.destinations)


def _settings_differ(group: Group, _: Sequence[Alike]) -> Iterator[Sample]:
    for destination, setting in group.settings_differ:
        yield (group.repository, *group.source, *destination, setting), 1.0


def _replica_images(group: Group, images: Sequence[Alike]) -> Iterator[Sample]:
    """An image with several names is present if it is so under each, else it has its first problem.

    That there is none in a state is known only when all images were looked at that are expected there.
    """
    tally: Tally[tuple[Destination, ReplicaState]] = Tally()
    unknown: set[Destination] = set()
    for each in images:
        states: dict[Destination, list[ReplicaState]] = {}
        for destination, state, _ in (replica for of_name in each.replicas for replica in of_name):
            states.setdefault(destination, []).append(state)
        for destination, found in states.items():
            problems = [state for state in found if state is not ReplicaState.PRESENT]
            tally[destination, problems[0] if problems else ReplicaState.PRESENT] += len(each.images)
        expected = {replication.destination for replication in each.replications or ()}
        unknown |= expected - {d for d, found in states.items() if len(found) == len(each.replicas)}
    for destination in sorted({destination for destination, _ in tally}):
        for state in ReplicaState:
            if (count := tally[destination, state]) or destination not in unknown:
                yield (group.repository, *group.source, *destination, state), float(count)


def _rules(registry: RegistrySnapshot) -> Iterator[Sample]:
    routes = registry.rules.routes() if registry.rules else {}
    for (destination, prefix), mirrors_deletions in sorted(routes.items()):
        yield (*registry.source, *destination, prefix, str(mirrors_deletions).lower()), 1.0


def _target_success(registry: RegistrySnapshot) -> Iterator[Sample]:
    for target in registry.targets:
        if target.success is not None:
            yield (target.label, *registry.source), float(target.success)


def _target_failure_info(registry: RegistrySnapshot) -> Iterator[Sample]:
    for target in registry.targets:
        for reason in sorted(target.reasons):
            yield (target.label, *registry.source, reason), 1.0


def _target_images(registry: RegistrySnapshot) -> Iterator[Sample]:
    for target in registry.targets:
        if target.images is not None:
            yield (target.label, *registry.source), float(target.images)


def _destination_success(destination: DestinationHealth) -> Iterator[Sample]:
    if destination.success is not None:
        yield destination.destination, float(destination.success)


def _destination_failure_info(destination: DestinationHealth) -> Iterator[Sample]:
    for reason in sorted(destination.reasons):
        yield (*destination.destination, reason), 1.0


def _destination_last_success(destination: DestinationHealth) -> Iterator[Sample]:
    if destination.complete_time is not None:
        yield destination.destination, destination.complete_time


def _last_success(registry: RegistrySnapshot) -> Iterator[Sample]:
    if registry.complete_time is not None:
        yield registry.source, registry.complete_time


def _backfill_status(registry: RegistrySnapshot) -> Iterator[Sample]:
    for backfill in registry.backfills:
        for status in dict.fromkeys((*BackfillStatus, backfill.status)):
            yield (*registry.source, *backfill.destination, status), float(status == backfill.status)


def _backfill_images(registry: RegistrySnapshot) -> Iterator[Sample]:
    for backfill in registry.backfills:
        for state, number in backfill.images:
            yield (*registry.source, *backfill.destination, state), float(number)


def _backfill_failures(registry: RegistrySnapshot) -> Iterator[Sample]:
    for backfill in registry.backfills:
        for code in backfill.failure_codes:
            yield (*registry.source, *backfill.destination, code), 1.0


def _backfill_time(of: Callable[[Backfill], float | None]) -> Callable[[RegistrySnapshot], Iterator[Sample]]:
    def samples(registry: RegistrySnapshot) -> Iterator[Sample]:
        for backfill in registry.backfills:
            if (time := of(backfill)) is not None:
                yield (*registry.source, *backfill.destination), time

    return samples


# -- the catalogue -------------------------------------------------------------------------------

REPLICATION_DURATION = Row(
    "ecr_image_replication_duration_seconds",
    "histogram",
    "Seconds from the push of an image to the end of its replication: the time of its replication event if"
    " there is an events queue, else the first poll that reports it COMPLETE, which is an upper bound."
    " Counts images that were pushed while the exporter watched, each once for each destination.",
    (*S, *D),
    (5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400),
)
BUILD_INFO = Row(
    PREFIX + "build_info",
    "gauge",
    "Always 1. The labels give the versions of the exporter, Python and boto3.",
    ("version", "python_version", "boto3_version"),
)
RELOAD_SUCCESSFUL = Row(
    PREFIX + "config_last_reload_successful",
    "gauge",
    "1 if the last attempt to load the configuration succeeded. 0 if it failed and the previous configuration"
    " is still in use.",
)
RELOAD_TIME = Row(
    PREFIX + "config_last_reload_success_timestamp_seconds",
    "gauge",
    "Unix time at which the configuration in use was loaded.",
)
WEB_RELOAD_SUCCESSFUL = Row(
    PREFIX + "web_config_last_reload_successful",
    "gauge",
    "1 if the last load of the web configuration and its certificates succeeded, 0 if it failed."
    " Absent without --web.config.file.",
)
AWS_REQUESTS = Row(
    PREFIX + "aws_requests_total",
    "counter",
    "Calls to AWS by outcome: success, or a reason as in ecr_target_failure_info.",
    ("aws_service", "operation", *S, "outcome"),
)
AWS_DURATION = Row(
    PREFIX + "aws_request_duration_seconds",
    "histogram",
    "Duration in seconds of calls to AWS, with any outcome.",
    ("aws_service", "operation"),
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
IMAGES = Row(
    PREFIX + "images",
    "gauge",
    "Watched images by polling state: new (no status call yet), pending, failed, settled, unknown (no usable"
    " or no recent answer from ECR).",
    ("state",),
)
SKIPPED = Row(
    PREFIX + "images_skipped",
    "gauge",
    "Names of images that targets select but that exceed max_images. The exporter watches the newest images.",
)
OVERDUE = Row(
    PREFIX + "poll_overdue_seconds",
    "gauge",
    "Age in seconds of the oldest due ECR call that still waits for budget. If it keeps growing,"
    " requests_per_second is too small for the targets and intervals.",
)
RATE_LIMIT = Row(
    PREFIX + "request_rate_limit",
    "gauge",
    "ECR calls a second that the rate limiter allows at present.",
    S,
)

SHARD_ORDINAL = Row(
    PREFIX + "shard_ordinal",
    "gauge",
    "Ordinal of this shard, counted from 0.",
)
TOTAL_SHARDS = Row(
    PREFIX + "total_shards",
    "gauge",
    "Number of shards that share the repositories. 1 without sharding.",
)
STATE_WRITTEN = Row(
    PREFIX + "state_file_last_success_timestamp_seconds",
    "gauge",
    "Unix time of the last successful write of the state file. Absent before the first write and without"
    " state_file.",
)
STATE_FAILURES = Row(
    PREFIX + "state_file_failures_total",
    "counter",
    "Failed reads and writes of the state file. A failed read means a start without saved state.",
    ("operation",),
)
EVENTS = Row(
    PREFIX + "events_received_total",
    "counter",
    "Messages from the events queue of the registry by kind of event and outcome: used, foreign (nothing"
    " that is watched), duplicate, old (known already), invalid.",
    (*S, "kind", "outcome"),
)
EVENTS_QUEUE = Row(
    PREFIX + "events_queue_success",
    "gauge",
    "1 if the events queue of the registry can be read, 0 if not. Absent without a queue.",
    S,
)
EVENT_DELAY = Row(
    PREFIX + "event_delay_seconds",
    "histogram",
    "Seconds from an event that was used to its arrival here. Events have times in whole seconds.",
    S,
    buckets=(0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0),
)
LOG_DROPPED = Row(
    PREFIX + "log_lines_dropped_total",
    "counter",
    "Log lines that the exporter dropped because stderr did not accept them.",
)

DOMAIN: tuple[ImageRow | RepositoryRow | RegistryRow | DestinationRow, ...] = (
    ImageRow(
        "ecr_image_replication_status",
        "gauge",
        "1 for the current replication state of the image at the destination, 0 for the other states."
        " MISSING: the rules or a target expect the image there, ECR reports nothing, and it was not seen"
        " there. COMPLETE also if it was seen there and ECR reports nothing. " + _POLLED,
        (*I, *D, "status"),
        fact=_replications,
        samples=_status,
    ),
    ImageRow(
        "ecr_image_replication_failure_info",
        "gauge",
        "1 while the replication of the image to the destination is FAILED. ECR gives the failure_code. "
        + _POLLED,
        (*I, *D, "failure_code"),
        fact=_replications,
        samples=_failure_info,
    ),
    ImageRow(
        "ecr_image_replication_status_since_timestamp_seconds",
        "gauge",
        "Unix time at which the image was first seen in its present state at the destination. Only of states"
        " other than COMPLETE. " + _POLLED,
        (*I, *D),
        fact=attrgetter("since"),
        samples=_since,
    ),
    ImageRow(
        "ecr_image_replica_present",
        "gauge",
        "1 if the destination held the image, active and under this tag, at the last look. 0 if not."
        " Absent before the first look, and where the destination cannot be read. " + _POLLED,
        (*I, *D),
        fact=_replicas,
        samples=_replica_present,
        by_name=True,
    ),
    ImageRow(
        "ecr_image_replica_problem_info",
        "gauge",
        "1 while the copy at the destination is not present. The reason is absent, untagged, other_image (the"
        " tag names another digest there) or archived. " + _POLLED,
        (*I, *D, "reason"),
        fact=_replicas,
        samples=_replica_problem,
        by_name=True,
    ),
    ImageRow(
        "ecr_image_info",
        "gauge",
        "Always 1. The digest label is always set, also for an image that is watched by tag. " + _POLLED,
        I,
        value=lambda _: 1.0,
        digest=True,
    ),
    ImageRow(
        "ecr_image_pushed_timestamp_seconds",
        "gauge",
        "Unix time at which the image was pushed to the source registry. " + _POLLED,
        I,
        value=attrgetter("pushed_at"),
    ),
    RepositoryRow(
        "ecr_repository_replication_images",
        "gauge",
        "Watched images of the repository in this state at the destination. A 0 appears only when the state"
        " of every watched image is known. " + _POLLED,
        ("repository", *S, *D, "status"),
        samples=_images,
    ),
    RepositoryRow(
        "ecr_repository_replication_oldest_pending_timestamp_seconds",
        "gauge",
        "Unix push time of the oldest watched image that is IN_PROGRESS or MISSING at the destination. "
        + _POLLED,
        ("repository", *S, *D),
        samples=_oldest_pending,
    ),
    RepositoryRow(
        "ecr_repository_replica_images",
        "gauge",
        "Watched images of the repository whose copy at the destination is in this state: present, absent,"
        " untagged, other_image, archived. A 0 appears only when every copy was looked at. " + _POLLED,
        ("repository", *S, *D, "state"),
        samples=_replica_images,
    ),
    RepositoryRow(
        "ecr_repository_replication_destinations",
        "gauge",
        "Destinations at which the rules or a target expect the images of the repository. 0 if there is none,"
        " so that nothing is replicated. Absent while the rules are not known. " + _POLLED,
        ("repository", *S),
        samples=_destinations,
    ),
    RepositoryRow(
        "ecr_repository_replica_settings_differ",
        "gauge",
        "1 for each setting of the repository that has another value at the destination:"
        " image_tag_mutability, encryption, scan_on_push. Absent if it is the same, or not known at either"
        " end. " + _POLLED,
        ("repository", *S, *D, "setting"),
        samples=_settings_differ,
    ),
    RegistryRow(
        "ecr_registry_replication_rule_info",
        "gauge",
        "Always 1. One series for each destination and repository prefix in the registry's replication rules."
        " An empty repository_filter selects all repositories. delete_replication is true if deletions are"
        " mirrored to the destination, else false. " + _POLLED,
        (*S, *D, "repository_filter", "delete_replication"),
        samples=_rules,
    ),
    RegistryRow(
        "ecr_registry_backfill_status",
        "gauge",
        "1 for the current status of the newest backfill to the destination, 0 for the other statuses. Shown"
        " until a day after its end. " + _POLLED,
        (*S, *D, "status"),
        samples=_backfill_status,
    ),
    RegistryRow(
        "ecr_registry_backfill_images",
        "gauge",
        "Pairs of image and tag of the newest backfill to the destination by state: total, completed, failed."
        " Absent while ECR reports no progress. " + _POLLED,
        (*S, *D, "state"),
        samples=_backfill_images,
    ),
    RegistryRow(
        "ecr_registry_backfill_started_timestamp_seconds",
        "gauge",
        "Unix time at which the newest backfill to the destination started. " + _POLLED,
        (*S, *D),
        samples=_backfill_time(attrgetter("started_at")),
    ),
    RegistryRow(
        "ecr_registry_backfill_ended_timestamp_seconds",
        "gauge",
        "Unix time at which the newest backfill to the destination ended. Absent while it runs. " + _POLLED,
        (*S, *D),
        samples=_backfill_time(attrgetter("ended_at")),
    ),
    RegistryRow(
        "ecr_registry_backfill_failure_info",
        "gauge",
        "1 for each reason that ECR reports why the newest backfill to the destination, or an image of it,"
        " failed. At most 20 reasons. " + _POLLED,
        (*S, *D, "failure_code"),
        samples=_backfill_failures,
    ),
    RegistryRow(
        "ecr_target_success",
        "gauge",
        "1 if the last round found everything that the target names and read its status, 0 if not. Absent"
        " during the first round, unless something in it fails. " + _POLLED,
        ("target", *S),
        samples=_target_success,
    ),
    RegistryRow(
        "ecr_target_failure_info",
        "gauge",
        "1 for each reason why the target failed in its last round: repository_not_found,"
        " image_not_found, access_denied, throttled, invalid, unavailable. " + _POLLED,
        ("target", *S, "reason"),
        samples=_target_failure_info,
    ),
    RegistryRow(
        "ecr_target_images",
        "gauge",
        "Images that the target selects. " + _POLLED,
        ("target", *S),
        samples=_target_images,
    ),
    RegistryRow(
        "ecr_registry_last_success_timestamp_seconds",
        "gauge",
        "Unix time of the last complete listing of the watched repositories in the registry.",
        S,
        samples=_last_success,
    ),
    DestinationRow(
        "ecr_destination_success",
        "gauge",
        "1 if every repository that receives watched images there was looked at in time, 0 if not."
        " " + _POLLED,
        D,
        samples=_destination_success,
    ),
    DestinationRow(
        "ecr_destination_failure_info",
        "gauge",
        "1 for each reason why the destination cannot be looked at: access_denied, throttled, invalid,"
        " unavailable. " + _POLLED,
        (*D, "reason"),
        samples=_destination_failure_info,
    ),
    DestinationRow(
        "ecr_destination_last_success_timestamp_seconds",
        "gauge",
        "Unix time since which each of its repositories was looked at.",
        D,
        samples=_destination_last_success,
    ),
)
OWN = (
    BUILD_INFO,
    RELOAD_SUCCESSFUL,
    RELOAD_TIME,
    WEB_RELOAD_SUCCESSFUL,
    AWS_REQUESTS,
    AWS_DURATION,
    IMAGES,
    SKIPPED,
    OVERDUE,
    RATE_LIMIT,
    SHARD_ORDINAL,
    TOTAL_SHARDS,
    STATE_WRITTEN,
    STATE_FAILURES,
    EVENTS,
    EVENTS_QUEUE,
    EVENT_DELAY,
    LOG_DROPPED,
)
CATALOGUE: tuple[Row, ...] = (*DOMAIN, REPLICATION_DURATION, *OWN)
