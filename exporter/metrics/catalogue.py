"""The catalogue: every metric's name, type, help and labels, and how facts become samples.

A row of the catalogue is all there is to a metric; the exposition (`exposition`) and docs/metrics.md
(`python -m exporter.metrics.catalogue`) are made from the rows. Every name here is API.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.replication.model import KNOWN_STATUSES, Destination, Name, Replication, Source, Status
from exporter.replication.store import ImageFacts, RegistrySnapshot

S = ("source_registry_id", "source_region")
I = ("repository", "tag", "digest", *S)  # noqa: E741 - the letter of the specification
D = ("region", "registry_id")

PREFIX = "ecr_replication_exporter_"
_POLLED = "As of the last poll, not of the scrape."

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
    """A gauge of watched images: its first labels are I, and each name of an image has all its samples."""

    #: What of an image the samples depend on.
    fact: Callable[[ImageFacts], Any] = lambda _: None
    #: That fact -> samples, with the labels that follow I.
    samples: Callable[[Any], Iterable[Sample]] = lambda _: ()
    #: Whether many images have the same fact, so that its samples are worth keeping.
    shared: bool = True
    #: Whether the digest is filled also where the image is watched by tag.
    digest: bool = False

    def own_labels(self, source: Source, repository: str, name: Name, image: ImageFacts) -> tuple[str, ...]:
        """The values of I."""
        return (repository, name.tag, image.digest if self.digest else name.digest, *source)


@dataclass(frozen=True, slots=True)
class RepositoryRow(Row):
    """A gauge of repositories."""

    samples: Callable[[Source, str, Sequence[ImageFacts]], Iterable[Sample]] = lambda *_: ()


@dataclass(frozen=True, slots=True)
class RegistryRow(Row):
    """A gauge of source registries, their rules and targets."""

    samples: Callable[[RegistrySnapshot], Iterable[Sample]] = lambda *_: ()


# -- facts to samples ----------------------------------------------------------------------------


def _replications(image: ImageFacts) -> tuple[Replication, ...]:
    return image.replications or ()


def _pushed_at(image: ImageFacts) -> float | None:
    return image.pushed_at


def _status(replications: tuple[Replication, ...]) -> Iterator[Sample]:
    for destination, status, _ in replications:
        for state in dict.fromkeys((*KNOWN_STATUSES, status)):
            yield (*destination, state), float(state == status)


def _failure_info(replications: tuple[Replication, ...]) -> Iterator[Sample]:
    for destination, status, code in replications:
        if status == Status.FAILED:
            yield (*destination, code), 1.0


def _info(_: None) -> Iterator[Sample]:
    yield (), 1.0


def _timestamp(seconds: float | None) -> Iterator[Sample]:
    if seconds is not None:
        yield (), seconds


def _images(source: Source, repository: str, images: Sequence[ImageFacts]) -> Iterator[Sample]:
    """That there is none in a state is known only when all images are."""
    all_known = all(image.replications is not None and not image.unverified for image in images)
    tally = Tally((r.destination, r.status) for image in images for r in image.replications or ())
    for destination in sorted({destination for destination, _ in tally}):
        unheard_of = sorted({s for d, s in tally if d == destination} - set(KNOWN_STATUSES))
        for status in (*KNOWN_STATUSES, *unheard_of):
            if (number := tally[destination, status]) or all_known:
                yield (repository, *source, *destination, status), float(number)


def _oldest_pending(source: Source, repository: str, images: Sequence[ImageFacts]) -> Iterator[Sample]:
    oldest: dict[Destination, float] = {}
    for image in images:
        for destination, status, _ in image.replications or ():
            if status in (Status.IN_PROGRESS, Status.MISSING) and image.pushed_at is not None:
                oldest[destination] = min(image.pushed_at, oldest.get(destination, image.pushed_at))
    for destination, pushed_at in sorted(oldest.items()):
        yield (repository, *source, *destination), pushed_at


def _rules(registry: RegistrySnapshot) -> Iterator[Sample]:
    rules = registry.rules.rules if registry.rules else ()
    pairs = {(d, prefix) for r in rules for d in r.destinations for prefix in r.filters or ("",)}
    for destination, prefix in sorted(pairs):
        yield (*registry.source, *destination, prefix), 1.0


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


def _last_success(registry: RegistrySnapshot) -> Iterator[Sample]:
    if registry.complete_time is not None:
        yield registry.source, registry.complete_time


# -- the catalogue -------------------------------------------------------------------------------

REPLICATION_DURATION = Row(
    "ecr_image_replication_duration_seconds",
    "histogram",
    "Seconds from the push of an image to the first poll that found its replication COMPLETE, for images"
    " that were seen unfinished before. The resolution is the polling interval.",
    (*S, *D),
    (5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400),
)
BUILD_INFO = Row(
    PREFIX + "build_info",
    "gauge",
    "Always 1; the labels are the versions of the exporter and of what it runs on.",
    ("version", "python_version", "boto3_version"),
)
RELOAD_SUCCESSFUL = Row(
    PREFIX + "config_last_reload_successful",
    "gauge",
    "1 if the last attempt to load the configuration succeeded, 0 if an older one is still in force.",
)
RELOAD_TIME = Row(
    PREFIX + "config_last_reload_success_timestamp_seconds",
    "gauge",
    "Unix time at which the configuration in force was loaded.",
)
WEB_RELOAD_SUCCESSFUL = Row(
    PREFIX + "web_config_last_reload_successful",
    "gauge",
    "1 if the web configuration and its certificates could be taken when they last changed, 0 if not."
    " Absent without --web.config.file.",
)
AWS_REQUESTS = Row(
    PREFIX + "aws_requests_total",
    "counter",
    "Calls to AWS by outcome: success, or why not (the reasons of ecr_target_failure_info).",
    ("aws_service", "operation", *S, "outcome"),
)
AWS_DURATION = Row(
    PREFIX + "aws_request_duration_seconds",
    "histogram",
    "Seconds that calls to AWS took, whatever their outcome.",
    ("aws_service", "operation"),
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
IMAGES = Row(
    PREFIX + "images",
    "gauge",
    "Watched images by what the exporter expects of them: new (not asked yet), pending, failed, settled,"
    " unknown (no usable or no recent answer).",
    ("state",),
)
SKIPPED = Row(
    PREFIX + "images_skipped",
    "gauge",
    "Images that targets select and max_images leaves out; the newest are watched.",
)
OVERDUE = Row(
    PREFIX + "poll_overdue_seconds",
    "gauge",
    "How late the latest due call to ECR is. If this grows, requests_per_second is too small for the"
    " targets and intervals.",
)
RATE_LIMIT = Row(
    PREFIX + "request_rate_limit",
    "gauge",
    "Calls a second to ECR that the exporter allows itself now.",
    S,
)

SHARD_ORDINAL = Row(
    PREFIX + "shard_ordinal",
    "gauge",
    "Which of the shards this one is, counted from 0.",
)
TOTAL_SHARDS = Row(
    PREFIX + "total_shards",
    "gauge",
    "How many shards the repositories are split between; 1 if they are not.",
)
STATE_WRITTEN = Row(
    PREFIX + "state_file_last_success_timestamp_seconds",
    "gauge",
    "Unix time at which the state file was last written. Absent until then, and without state_file.",
)
STATE_FAILURES = Row(
    PREFIX + "state_file_failures_total",
    "counter",
    "How often the state file could not be read (read: the start was cold) or written (write).",
    ("operation",),
)
LOG_DROPPED = Row(
    PREFIX + "log_lines_dropped_total",
    "counter",
    "Log lines that were lost because stderr did not take them.",
)

DOMAIN: tuple[ImageRow | RepositoryRow | RegistryRow, ...] = (
    ImageRow(
        "ecr_image_replication_status",
        "gauge",
        "1 for the state that the replication of the image to the destination is in, 0 for the others."
        " MISSING: the registry's rules send it there and ECR reports nothing. " + _POLLED,
        (*I, *D, "status"),
        fact=_replications,
        samples=_status,
    ),
    ImageRow(
        "ecr_image_replication_failure_info",
        "gauge",
        "1 while the replication of the image to the destination is FAILED, with the code that ECR gives. "
        + _POLLED,
        (*I, *D, "failure_code"),
        fact=_replications,
        samples=_failure_info,
    ),
    ImageRow(
        "ecr_image_info",
        "gauge",
        "Always 1; gives the digest of a watched image, also of one that is watched by tag. " + _POLLED,
        I,
        samples=_info,
        digest=True,
    ),
    ImageRow(
        "ecr_image_pushed_timestamp_seconds",
        "gauge",
        "Unix time at which the image was pushed to the source registry. " + _POLLED,
        I,
        fact=_pushed_at,
        shared=False,
        samples=_timestamp,
    ),
    RepositoryRow(
        "ecr_repository_replication_images",
        "gauge",
        "Watched images of the repository whose replication to the destination is known to be in the state;"
        " 0 is told only when that of all of them is known. " + _POLLED,
        ("repository", *S, *D, "status"),
        samples=_images,
    ),
    RepositoryRow(
        "ecr_repository_replication_oldest_pending_timestamp_seconds",
        "gauge",
        "Unix push time of the oldest watched image known to be IN_PROGRESS or MISSING at the destination. "
        + _POLLED,
        ("repository", *S, *D),
        samples=_oldest_pending,
    ),
    RegistryRow(
        "ecr_registry_replication_rule_info",
        "gauge",
        "Always 1; a destination of the registry's replication rules and the prefix of the repositories that"
        " go there, empty for all. " + _POLLED,
        (*S, *D, "repository_filter"),
        samples=_rules,
    ),
    RegistryRow(
        "ecr_target_success",
        "gauge",
        "1 if all that the target names was found and asked in its last round, 0 if not. " + _POLLED,
        ("target", *S),
        samples=_target_success,
    ),
    RegistryRow(
        "ecr_target_failure_info",
        "gauge",
        "1 for each reason why the target failed in its last round: repository_not_found, image_not_found,"
        " access_denied, throttled, invalid, unavailable. " + _POLLED,
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
        "Unix time since which all that is watched in the registry has been listed.",
        S,
        samples=_last_success,
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
    LOG_DROPPED,
)
CATALOGUE: tuple[Row, ...] = (*DOMAIN, REPLICATION_DURATION, *OWN)


def markdown() -> str:
    """docs/metrics.md, made from the catalogue."""
    head = (
        "# Metrics\n\nMade from the catalogue in `exporter/metrics/catalogue.py` by `make docs`. Every name"
        " is API: renaming one is a breaking change.\n"
    )
    replication = _table("Replication", [*DOMAIN, REPLICATION_DURATION])
    own = _table("The exporter itself", OWN)
    return f"{head}{replication}{own}\nThe usual `process_*` metrics come with them.\n"


def _table(title: str, rows: Iterable[Row]) -> str:
    lines = [f"\n## {title}\n", "| name | type | labels | |", "|---|---|---|---|"]
    for row in rows:
        labels = ", ".join(f"`{label}`" for label in row.labels)
        lines.append(f"| `{row.name}` | {row.type} | {labels} | {row.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")  # noqa: T201 - this is what the command is for
