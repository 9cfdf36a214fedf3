"""What `/api/v1/status` answers with, and what `/` shows: the fields of the report.

pydantic makes docs/api.schema.json from these classes and from the texts below their fields
(`python -m exporter.http.report`). All times are Unix time in seconds. What is not known is null. Every name
here is API.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, with_config

from exporter.http.advice import Command, Verdict

_Documented = with_config(use_attribute_docstrings=True, json_schema_mode_override="serialization")


@_Documented
@dataclass(frozen=True, slots=True)
class Summary:
    """How many watched images there are. Each image counts once."""

    images: int
    """All watched images."""
    not_well: int
    """Images with a problem at some destination."""
    on_the_way: int
    """Images without a problem whose replication has not ended and began less than 30 minutes ago."""
    not_known: int
    """Images for which ECR has not answered, or too long ago."""
    verdicts: dict[Verdict, int]
    """Pairs of image and destination that are not well or on the way, by verdict."""
    skipped: int
    """Images that the targets select and `max_images` leaves out. They are in no other number."""


@_Documented
@dataclass(frozen=True, slots=True)
class DestinationReport:
    """The images that go to one destination, and how looking at it goes."""

    region: str
    registry_id: str
    statuses: dict[str, int]
    """Images by replication status, as in `ecr_repository_replication_images`."""
    copies: dict[str, int]
    """Images by what was seen at the destination, as in `ecr_repository_replica_images`."""
    success: bool | None
    """Whether looking at the destination works. Null if the exporter does not look, or has not yet."""
    reasons: list[str]
    """Why looking does not work, as in `ecr_destination_failure_info`."""
    last_success_timestamp_seconds: float | None
    """The time since which each repository there was looked at."""
    remedy: str | None
    """What to do so that the copies can be looked at."""


@_Documented
@dataclass(frozen=True, slots=True)
class Failure:
    """A kind of call that fails."""

    call: str
    """What the exporter asks for, for example `images` or `status`."""
    repository: str
    """The repository that it concerns; empty for the whole registry."""
    digest: str
    """The image that it concerns; empty for all."""
    reason: str
    """As in `ecr_target_failure_info`."""


@_Documented
@dataclass(frozen=True, slots=True)
class RegistryReport:
    """A watched registry."""

    source_registry_id: str
    source_region: str
    last_success_timestamp_seconds: float | None
    """The time of the last complete listing."""
    failures: list[Failure]
    """At most 100."""


@_Documented
@dataclass(frozen=True, slots=True)
class TargetReport:
    """A target in one registry."""

    target: str
    source_registry_id: str
    source_region: str
    success: bool | None
    """Whether the last round found and asked all that the target names. Null during the first round."""
    reasons: list[str]
    """As in `ecr_target_failure_info`."""
    images: int | None
    """Images that the target selects."""


@_Documented
@dataclass(frozen=True, slots=True)
class UnreplicatedRepository:
    """A watched repository whose images no rule and no target sends anywhere."""

    source_registry_id: str
    source_region: str
    repository: str


@_Documented
@dataclass(frozen=True, slots=True)
class Copy:
    """What a destination holds of an image under one of its names."""

    tag: str
    """Empty for an image that is watched by its digest."""
    state: str | None
    """As in `ecr_repository_replica_images`. Null if the destination was not looked at."""


@_Documented
@dataclass(frozen=True, slots=True)
class ImageReport:
    """One image at one destination."""

    source_registry_id: str
    source_region: str
    repository: str
    tags: list[str]
    """The tags under which it is watched; none if it is watched by its digest."""
    digest: str
    region: str | None
    """The destination. Null if none is known."""
    registry_id: str | None
    status: str | None
    """The replication status, as in `ecr_image_replication_status`."""
    failure_code: str | None
    """The code that ECR gives for a FAILED replication."""
    copies: list[Copy]
    verdict: Verdict
    """What all this means. failed, copy_gone, tag_differs, missing, unknown_status and stuck are not well."""
    cause: str
    """Why, in a sentence."""
    remedy: str
    """What to do, in sentences."""
    runbook: str | None
    """The name of the runbook, which the exporter serves as /runbooks/NAME.md."""
    commands: list[Command]
    """Command lines for a POSIX shell, filled in for this image."""
    since_timestamp_seconds: float | None
    """When the present status was first seen. Null for a problem of the copy, of which that is not known."""
    pushed_timestamp_seconds: float | None
    asked_timestamp_seconds: float | None
    """When ECR last answered for the image."""
    next_ask_timestamp_seconds: float | None
    """When ECR is asked again. Null during a call, and if the copies are looked at instead."""
    looked_timestamp_seconds: float | None
    """When the copy was last looked at."""
    next_look_timestamp_seconds: float | None
    """When it is looked at again."""


@_Documented
@dataclass(frozen=True, slots=True)
class Report:
    """The answer of `/api/v1/status`."""

    version: str
    """The version of the exporter."""
    timestamp_seconds: float
    """The time of the report."""
    shard: int
    """The shard that this is about. It counts from 0."""
    total_shards: int
    summary: Summary
    destinations: list[DestinationReport]
    registries: list[RegistryReport]
    targets: list[TargetReport]
    unreplicated: list[UnreplicatedRepository]
    """At most 100."""
    images: list[ImageReport]
    """Worst first. Without a filter only images that are not well or on the way, else all that match."""
    matched: int
    """How many rows `images` would have without a limit."""
    truncated: bool
    """Whether `images` was cut at the limit."""


_ADAPTER = TypeAdapter(Report)


def as_json(report: Report) -> bytes:
    """The report as JSON."""
    return _ADAPTER.dump_json(report)


def schema() -> dict[str, Any]:
    """The JSON Schema of `as_json`, draft 2020-12."""
    made = _ADAPTER.json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


if __name__ == "__main__":
    json.dump(schema(), sys.stdout, indent=2)
    sys.stdout.write("\n")
