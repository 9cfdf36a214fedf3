"""What the state of an image at a destination means, and what to do: one table. All pure."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from exporter.replication.model import ReplicaState, Status


class Verdict(StrEnum):
    """What the state of an image at a destination means, worst first."""

    FAILED = "failed"
    COPY_GONE = "copy_gone"
    TAG_DIFFERS = "tag_differs"
    MISSING = "missing"
    UNKNOWN_STATUS = "unknown_status"
    STUCK = "stuck"
    ON_THE_WAY = "on_the_way"
    #: ECR did not answer yet, or its answer is too old.
    NOT_KNOWN = "not_known"
    #: No rule or target sends the image anywhere, and ECR reports nothing.
    NOWHERE = "nowhere"
    WELL = "well"


NOT_WELL = frozenset(list(Verdict)[: list(Verdict).index(Verdict.ON_THE_WAY)])
#: The verdicts about unfinished replication, which hold once an image is late. Until then it is ON_THE_WAY.
UNFINISHED = frozenset({Verdict.MISSING, Verdict.UNKNOWN_STATUS, Verdict.STUCK})
_LOST = {ReplicaState.ABSENT, ReplicaState.ARCHIVED}


def verdict_of(status: str, copies: Collection[ReplicaState | None]) -> Verdict:
    """What the status of an image at a destination means.

    `copies`: what the destination holds under each name of the image; None where it was not looked at.
    """
    if status == Status.COMPLETE:
        problems = {*copies} - {ReplicaState.PRESENT, None}
        return Verdict.COPY_GONE if problems & _LOST else Verdict.TAG_DIFFERS if problems else Verdict.WELL
    if copies and {*copies} == {ReplicaState.PRESENT}:
        return Verdict.WELL  # it was copied by other means
    return _OTHERS.get(status, Verdict.UNKNOWN_STATUS)


_OTHERS: Mapping[str, Verdict] = {
    Status.FAILED: Verdict.FAILED,
    Status.MISSING: Verdict.MISSING,
    Status.IN_PROGRESS: Verdict.STUCK,
}


@dataclass(frozen=True, slots=True)
class Command:
    """A command line for a POSIX shell, filled in for one image."""

    purpose: str
    command: str
    #: Whether it changes something. The others only look.
    repairs: bool


class _Template(NamedTuple):
    purpose: str
    #: For the shell, with the names of facts in braces.
    command: str
    repairs: bool = False


_SOURCE = "--region {source_region} --registry-id {source_registry_id}"
_THERE = "--region {region} --registry-id {registry_id}"
_STATUS = _Template(
    "Ask ECR for the status, with credentials of the source account",
    f"aws ecr describe-image-replication-status {_SOURCE} --repository-name {{repository}}"
    " --image-id imageDigest={digest}",
)
_COPY = _Template(
    "Look for the copy, with credentials of the destination account",
    f"aws ecr describe-images {_THERE} --repository-name {{repository}} --image-ids imageDigest={{digest}}"
    " --filter imageStatus=ANY",
)
_TAG_THERE = _Template(
    "Show which image has the tag at the destination",
    f"aws ecr describe-images {_THERE} --repository-name {{repository}} --image-ids imageTag={{tag}}",
)
_POLICY = _Template(
    "Show the registry policy, with credentials of the destination account",
    "aws ecr get-registry-policy --region {region}",
)
_RULES = _Template(
    "Show the replication rules, with credentials of the source account",
    "aws ecr describe-registry --region {source_region}",
)
_LIFECYCLE = _Template(
    "Show the lifecycle policy at the destination",
    f"aws ecr get-lifecycle-policy {_THERE} --repository-name {{repository}}",
)
_RESTORE = _Template(
    "Restore the image from the archive",
    f"aws ecr update-image-storage-class {_THERE} --repository-name {{repository}}"
    " --image-id imageDigest={digest} --target-storage-class STANDARD",
    repairs=True,
)
_MUTABILITY = _Template(
    "Show whether tags can move at the destination",
    f"aws ecr describe-repositories {_THERE} --repository-names {{repository}}"
    " --query 'repositories[].imageTagMutability'",
)
_CRANE_COPY = _Template(
    "Copy the image by hand; crane keeps the digest",
    "crane copy {source_host}/{repository}@{digest} {host}/{repository}{name}",
    repairs=True,
)
_CRANE_TAG = _Template(
    "Set the tag at the destination", "crane tag {host}/{repository}@{digest} {tag}", repairs=True
)


@dataclass(frozen=True, slots=True)
class Advice:
    """Why an image is not well, and what to do, in sentences with the names of facts in braces."""

    cause: str
    remedy: str = ""
    #: The name of a page in docs/runbooks.
    runbook: str = ""
    #: Those that look before those that repair.
    commands: tuple[_Template, ...] = ()


_AGAIN = "Then copy the image by hand, push it under a new tag, or run a backfill: ECR does not try again."
#: By verdict and what it depends on: the failure code, or the worst state of the copies. "" is any other.
_ADVICE: Mapping[tuple[Verdict, str], Advice] = {
    (Verdict.FAILED, "DESTINATION_REGISTRY_ACCESS_DENIED"): Advice(
        "The registry policy of the destination does not allow account {source_registry_id} to replicate.",
        "Allow ecr:ReplicateImage and ecr:CreateRepository there, without a condition on aws:SourceAccount or"
        f" aws:SourceArn. {_AGAIN}",
        "ECRReplicationFailed",
        (_STATUS, _POLICY, _COPY, _CRANE_COPY),
    ),
    (Verdict.FAILED, "none"): Advice(
        "ECR reports no failure code.",
        f"Look for failed ReplicateImage calls in CloudTrail of the destination. {_AGAIN}",
        "ECRReplicationFailed",
        (_STATUS, _COPY, _CRANE_COPY),
    ),
    (Verdict.FAILED, ""): Advice(
        "ECR reports the failure code {failure_code}.",
        f"Look up the code and remove the cause. {_AGAIN}",
        "ECRReplicationFailed",
        (_STATUS, _COPY, _CRANE_COPY),
    ),
    (Verdict.COPY_GONE, ReplicaState.ABSENT): Advice(
        "The replication ended, but the destination does not hold the image any more.",
        "Find what deleted it, for example a lifecycle policy. Then copy the image: ECR replicates it once.",
        "ECRReplicaGone",
        (_COPY, _LIFECYCLE, _CRANE_COPY),
    ),
    (Verdict.COPY_GONE, ReplicaState.ARCHIVED): Advice(
        "The destination holds the image in the archive, so it cannot be pulled there.",
        "Restore the image. Then correct the lifecycle policy.",
        "ECRReplicaGone",
        (_COPY, _LIFECYCLE, _RESTORE),
    ),
    (Verdict.TAG_DIFFERS, ReplicaState.OTHER_IMAGE): Advice(
        "At the destination the tag {tag} names another image.",
        "Make the repository mutable if tags cannot move there. Set the tag. Until then deploy by digest.",
        "ECRReplicaTagDiffers",
        (_TAG_THERE, _MUTABILITY, _COPY, _CRANE_TAG),
    ),
    (Verdict.TAG_DIFFERS, ReplicaState.UNTAGGED): Advice(
        "The destination holds the image without the tag {tag}.",
        "Find what removed the tag. Then set it. Until then deploy by digest.",
        "ECRReplicaTagDiffers",
        (_COPY, _MUTABILITY, _CRANE_TAG),
    ),
    (Verdict.MISSING, ""): Advice(
        "The image is expected there, but ECR reports no replication and made no attempt that could fail.",
        "Compare the push with the time of the rule: a rule does not replicate older images. If the"
        " destination needs the image, copy it, push it under a new tag, or run a backfill.",
        "ECRReplicationMissing",
        (_STATUS, _RULES, _COPY, _CRANE_COPY),
    ),
    (Verdict.UNKNOWN_STATUS, ""): Advice(
        "ECR reports a status that this version of the exporter does not know, or none.",
        "Ask ECR, and compare with its documentation.",
        "ECRReplicationStatusUnknown",
        (_STATUS, _COPY),
    ),
    (Verdict.STUCK, ""): Advice(
        "The replication has not ended for longer than the 30 minutes that most images take.",
        "Look at the AWS Health Dashboard for both Regions. If only this image is late, copy it by hand or"
        " push it under a new tag.",
        "ECRReplicationStuck",
        (_STATUS, _COPY, _CRANE_COPY),
    ),
    (Verdict.ON_THE_WAY, ""): Advice("The push is recent. Most images take less than 30 minutes."),
    (Verdict.NOT_KNOWN, ""): Advice("ECR has not answered for this image, or too long ago."),
    (Verdict.NOWHERE, ""): Advice(
        "No replication rule and no target sends the image anywhere.",
        "Add a rule if a copy is needed.",
        "ECRReplicationNothingReplicated",
        (_RULES,),
    ),
    (Verdict.WELL, "seen"): Advice("ECR reports {status}, but the destination holds the image."),
    (Verdict.WELL, ""): Advice(""),
}
#: Tags of an image for which there are commands.
_MOST_TAGS = 5
#: The verdicts that depend on the copies.
_BY_COPY = {Verdict.COPY_GONE, Verdict.TAG_DIFFERS}
#: Which state of several copies gives the advice.
_WORST_COPY = (ReplicaState.ABSENT, ReplicaState.ARCHIVED, ReplicaState.OTHER_IMAGE, ReplicaState.UNTAGGED)


class Advised(NamedTuple):
    """The advice for one image at one destination."""

    cause: str
    remedy: str
    runbook: str
    commands: tuple[Command, ...]


def advise(verdict: Verdict, facts: Mapping[str, str], copies: Mapping[str, ReplicaState | None]) -> Advised:
    """What to say of an image at a destination.

    `facts`: source_registry_id, source_region, repository, digest, region, registry_id, status,
    failure_code.
    What is not known is "". `copies`: what the destination holds under each tag; "" stands for no tag.
    """
    detail: str = facts["failure_code"] or "none"
    tags = [tag for tag in copies if tag]
    if verdict in _BY_COPY:
        detail = next((state for state in _WORST_COPY if state in copies.values()), "")
        tags = [tag for tag in tags if copies[tag] == detail]
    elif verdict is Verdict.WELL and facts["status"] != Status.COMPLETE:
        detail = "seen"
    advice = _ADVICE.get((verdict, detail)) or _ADVICE[verdict, ""]
    known = {**facts, "tag": ", ".join(tags)}
    commands = tuple(_filled(advice.commands, facts, tags[:_MOST_TAGS] or [""]))
    return Advised(advice.cause.format_map(known), advice.remedy.format_map(known), advice.runbook, commands)


def _filled(templates: tuple[_Template, ...], facts: Mapping[str, str], tags: list[str]) -> Iterator[Command]:
    """The commands for which all facts are known, once for each tag where they name one."""
    known = {name: quoted for name, value in facts.items() if (quoted := _quoted(value))}
    if host := _host(facts["source_registry_id"], facts["source_region"]):
        known["source_host"] = _quoted(host)
    if host := _host(facts["registry_id"], facts["region"]):
        known["host"] = _quoted(host)
    for purpose, command, repairs in templates:
        for tag in tags if "{tag}" in command or "{name}" in command else ("",):
            known.pop("tag", None)
            known["name"] = f"@{known.get('digest', '')}"
            if quoted := _quoted(tag):
                known |= {"tag": quoted, "name": f":{quoted}"}
            which = f"{purpose}: tag {tag}" if tag and len(tags) > 1 else purpose
            with suppress(KeyError):
                yield Command(which, command.format_map(known), repairs)


@lru_cache(maxsize=4096)
def _quoted(value: str) -> str:
    """A value as a part of a word for the shell. "" if it cannot stand in a command.

    It can if it is known, is no flag and no URL, which the AWS CLI would load, and has no character that a
    terminal would act on.
    """
    usable = value.isprintable() and not value.startswith("-") and "://" not in value
    return shlex.quote(value) if value and usable else ""


def _host(account: str, region: str) -> str:
    """The host name of a registry; "" in partitions whose domain is not known here (ECR documentation)."""
    if not account or not region or "-iso" in region or region.startswith("eusc-"):
        return ""
    return f"{account}.dkr.ecr.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"
