"""Answers of AWS -> the nouns of the model. An answer that cannot be read completely is an error.

An answer that is read in part would become a false statement: a skipped row looks like a deleted image, a
MISSING replication or a deleted rule. So one unreadable row makes the whole answer unusable, and the last
facts stay. Fields may be absent or null, as the service model allows, but they may not have another type.
Every function raises UnusableAnswer, or the ValueError or OverflowError of a time that is none. All are pure.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from math import isfinite
from typing import Any

from botocore.utils import parse_timestamp

from exporter.aws.errors import MAX_LABEL, UnusableAnswer
from exporter.replication.model import (
    Backfill,
    BackfillStatus,
    Destination,
    Image,
    Page,
    Registry,
    Replication,
    Repository,
    RepositorySettings,
    Rule,
    Status,
)

#: An answer as botocore returns it, or one row of it.
Row = dict[str, Any]

#: Unix time of the start of 2015, the year in which ECR was released. No push is older.
FIRST_PUSH = 1_420_070_400.0
#: Seconds that a push time may lie ahead of the exporter's clock. AWS refuses calls from a clock that is off
#: by more.
SKEW = 86_400.0

#: The statuses of images that cannot be pulled: in the archive, or on the way back (botocore service model).
_ARCHIVED = ("ARCHIVED", "ACTIVATING")
#: So many failure codes of a backfill are kept.
MAX_CODES = 20

#: How many different replications are shared between images, and settings between repositories. Each
#: destination has a few states.
_SHARED = 1024


def account(answer: Row) -> str:
    """GetCallerIdentity: the account of the credentials; "" if the answer has none."""
    return _account_id(answer, "Account")


def caller(answer: Row) -> str:
    """GetCallerIdentity: the ARN of the credentials."""
    return _needed(answer, "Arn")


def registry_policy(answer: Row) -> str:
    """GetRegistryPolicy: the policy as JSON."""
    return _needed(answer, "policyText")


def registry(answer: Row) -> Registry:
    """DescribeRegistry: the account and the rules. A registry without rules has an empty list of rules."""
    rules = _rows(_part(answer, "replicationConfiguration"), "rules")
    return Registry(_account_id(answer, "registryId"), tuple(_rule(rule) for rule in rules))


def repositories(answer: Row) -> Page[Repository]:
    """DescribeRepositories: one page of repositories."""
    rows = _rows(answer, "repositories")
    found = tuple(Repository(_needed(row, "repositoryName"), _repository_settings(row)) for row in rows)
    return Page(found, _text(answer, "nextToken") or None)


def images(answer: Row, *, now: float) -> Page[Image]:
    """DescribeImages: one page of images, or the images of the given names. `now` is Unix time."""
    found = tuple(
        Image(
            digest=_needed(row, "imageDigest"),
            tags=_texts(row, "imageTags"),
            pushed_at=_unix(row.get("imagePushedAt"), now),
            activated_at=_unix(row.get("lastActivatedAt"), now),
            archived=_text(row, "imageStatus") in _ARCHIVED,
        )
        for row in _rows(answer, "imageDetails")
    )
    return Page(found, _text(answer, "nextToken") or None)


def replications(answer: Row, *, repository: str, digest: str) -> tuple[Replication, ...]:
    """DescribeImageReplicationStatus: the state of that image at each destination.

    AWS may leave out the list of states, like any other field. This means that nothing is reported, but only
    in an answer that names the image. Otherwise a truncated answer would turn into MISSING.
    """
    image = answer.get("imageId")
    echo = (
        _text(answer, "repositoryName"),
        _text(image if isinstance(image, dict) else {}, "imageDigest"),
    )
    if echo[0] not in ("", repository) or echo[1] not in ("", digest):
        raise UnusableAnswer("the answer has the status of another image")
    if answer.get("replicationStatuses") is None and all(echo):
        return ()
    return tuple(_replication(row) for row in _rows(answer, "replicationStatuses"))


def backfills(answer: Row, *, registry_id: str, now: float) -> Page[Backfill]:
    """ListReplicationBackfills: one page of the backfills of a registry, "" if its account is not known.

    AWS may leave out the list, like any other field. This means that there is no backfill, but only in an
    answer that names the registry. `now` is Unix time.
    """
    named = _account_id(answer, "registryId")
    if registry_id and named not in ("", registry_id):
        raise UnusableAnswer("the answer has the backfills of another registry")
    rows = _optional(answer, "backfills") if named else _rows(answer, "backfills")
    return Page(tuple(_backfill(row, now) for row in rows), _text(answer, "nextToken") or None)


def _rows(row: Row, key: str) -> list[Row]:
    rows = row.get(key)
    if not isinstance(rows, list) or not all(isinstance(each, dict) for each in rows):
        raise UnusableAnswer(f"the answer has no {key} that can be understood")
    return rows


def _optional(row: Row, key: str) -> list[Row]:
    return [] if row.get(key) is None else _rows(row, key)


def _part(row: Row, key: str) -> Row:
    part = row.get(key)
    if part is not None and not isinstance(part, dict):
        raise UnusableAnswer(f"the answer has a {key} that cannot be understood")
    return part or {}


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UnusableAnswer(f"the answer has a {key} that is no text")
    return value if value.isascii() else _encodable(value)


def _needed(row: Row, key: str) -> str:
    if not (text := _text(row, key)):
        raise UnusableAnswer(f"the answer has a row without {key}")
    return text


def _label(row: Row, key: str) -> str:
    """A text that becomes the value of a label, cut to MAX_LABEL characters."""
    return _text(row, key)[:MAX_LABEL]


def _encodable(text: str) -> str:
    """The text without lone surrogates, which JSON can contain and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _account_id(row: Row, key: str) -> str:
    text = _text(row, key)
    if text and not (len(text) == 12 and text.isascii() and text.isdecimal()):
        raise UnusableAnswer(f"the answer has a {key} that is no account id of 12 digits")
    return text


def _texts(row: Row, key: str) -> tuple[str, ...]:
    texts = row.get(key)
    if texts is None:
        return ()
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UnusableAnswer(f"the answer has no {key} that can be understood")
    return tuple(text if text.isascii() else _encodable(text) for text in texts)


def _count(row: Row, key: str) -> int | None:
    count = row.get(key)
    if count is not None and (type(count) is not int or not 0 <= count < 2**63):
        raise UnusableAnswer(f"the answer has a {key} that is no count")
    return count


def _flag(row: Row, key: str) -> bool | None:
    flag = row.get(key)
    if flag is not None and not isinstance(flag, bool):
        raise UnusableAnswer(f"the answer has a {key} that is neither true nor false")
    return flag


def _unix(moment: object, now: float) -> float | None:
    """The Unix time of a timestamp as botocore returns it or as AWS sends it (`aws.long_answers`).

    A time without a zone is UTC. None if no image can have been pushed then.
    """
    if moment is None:
        return None
    if isinstance(moment, str):
        moment = parse_timestamp(moment)
    if isinstance(moment, datetime):
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not isinstance(moment, int | float) or not isfinite(moment):
        raise UnusableAnswer("the answer has a time that cannot be understood")
    return float(moment) if FIRST_PUSH <= moment <= now + SKEW else None


def _repository_settings(row: Row) -> RepositorySettings:
    encryption = _part(row, "encryptionConfiguration")
    _, is_key, key_id = _text(encryption, "kmsKey").partition(":key/")
    key = "multi-region" if key_id.startswith("mrk-") else "single-region"
    scan_on_push = _flag(_part(row, "imageScanningConfiguration"), "scanOnPush")
    return _shared_settings(
        image_tag_mutability=_text(row, "imageTagMutability"),
        encryption=_text(encryption, "encryptionType"),
        encryption_key=key if is_key else "",
        scan_on_push="" if scan_on_push is None else str(scan_on_push),
    )


#: One object for all repositories with these settings, which saves memory.
_shared_settings = lru_cache(maxsize=_SHARED)(RepositorySettings)


def _rule(row: Row) -> Rule:
    """One rule. A filter of an unknown type or without a prefix covers nothing.

    If it covered everything, images would be MISSING by mistake.
    """
    filters = _optional(row, "repositoryFilters")
    prefixes = (_text(each, "filter") for each in filters if each.get("filterType") == "PREFIX_MATCH")
    return Rule(
        destinations=tuple(_destination(each) for each in _optional(row, "destinations")),
        filters=tuple(_text(each, "filter") for each in filters),
        prefixes=tuple(prefix for prefix in prefixes if prefix),
        delete_replication=_mirrors_deletions(row),
    )


def _mirrors_deletions(row: Row) -> bool:
    """Whether deleteReplication is enabled. botocore before 1.44.4 leaves the field out of every answer."""
    return bool(_flag(_part(row, "deleteReplication"), "enabled"))


def _destination(row: Row) -> Destination:
    return Destination(region=_label(row, "region"), registry_id=_label(row, "registryId"))


def _backfill(row: Row, now: float) -> Backfill:
    progress = _part(row, "progress")
    counts = {
        state: _count(progress, f"{state}ReplicationCount") for state in ("total", "completed", "failed")
    }
    status = _label(row, "status") or Status.UNKNOWN
    codes = (_text(row, "failureCode"), *_texts(progress, "failureCodes"))
    known = dict.fromkeys(code[:MAX_LABEL] for code in codes if code)
    unknown = ["UNKNOWN"] if status == BackfillStatus.FAILED else []
    return Backfill(
        id=_text(row, "replicationBackfillId"),
        destination=_destination(_part(row, "destination")),
        status=status,
        started_at=_unix(row.get("startedAt"), now),
        ended_at=_unix(row.get("endedAt"), now),
        images=tuple((state, count) for state, count in counts.items() if count is not None),
        failure_codes=tuple(known or unknown)[:MAX_CODES],
    )


def _replication(row: Row) -> Replication:
    status = _label(row, "status") or Status.UNKNOWN
    failed = status == Status.FAILED
    code = _label(row, "failureCode") or "UNKNOWN"
    return _shared(_label(row, "region"), _label(row, "registryId"), status, code if failed else "")


@lru_cache(maxsize=_SHARED)
def _shared(region: str, registry_id: str, status: str, failure_code: str) -> Replication:
    """One object for all images with this state at this destination, which saves memory."""
    return Replication(Destination(region, registry_id), status, failure_code)
