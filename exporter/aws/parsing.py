"""What AWS answered -> the nouns; or an error, where the answer would have to be guessed at.

An answer that is read in part becomes a false statement: a row that was left out passes for an image
that is gone, a replication that is MISSING, a rule that was deleted. So one row that cannot be read makes
all of the answer unusable, and what was known stays. Fields may be left out or null, as the service model
says, but they are not of another type. Every function raises ECRError. Pure, for any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

from exporter.aws.errors import MAX_LABEL, ECRError
from exporter.replication.model import (
    Destination,
    Image,
    Page,
    Reason,
    Registry,
    Replication,
    Rule,
    Status,
)

P = ParamSpec("P")
T = TypeVar("T")

#: What botocore makes of an answer, or of a row in it.
Row = dict[str, Any]

#: Unix time of the start of 2015. ECR is younger, so nothing was pushed before.
FIRST_PUSH = 1_420_070_400.0
#: Seconds ahead of our clock in which a push time may lie. AWS refuses the calls of one that is more wrong.
SKEW = 86_400.0

#: So many states of images at destinations are kept to be shared; a few destinations have a few each.
_SHARED = 1024


class _UnreadableError(Exception):
    """Something is not what the service model says it is."""


def _of(action: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Reads an answer to the action."""

    def decorated(read: Callable[P, T]) -> Callable[P, T]:
        @wraps(read)
        def understood(*args: P.args, **options: P.kwargs) -> T:
            try:
                return read(*args, **options)
            except _UnreadableError as error:
                raise ECRError(
                    Reason.UNAVAILABLE,
                    action=action,
                    code="UnusableAnswer",
                    message=f"the answer has {error}",
                ) from error

        return understood

    return decorated


@_of("sts:GetCallerIdentity")
def account(answer: Row) -> str:
    """Of GetCallerIdentity: whose credentials these are; "" if it does not say."""
    return _account_id(answer, "Account")


@_of("ecr:DescribeRegistry")
def registry(answer: Row) -> Registry:
    """Of DescribeRegistry. One without rules has an empty list of them; anything else says nothing."""
    configuration = answer.get("replicationConfiguration")
    rules = _rows(configuration if isinstance(configuration, dict) else {}, "rules")
    return Registry(_account_id(answer, "registryId"), tuple(_rule(rule) for rule in rules))


@_of("ecr:DescribeRepositories")
def repositories(answer: Row) -> Page[str]:
    """Of DescribeRepositories: a page of names."""
    names = tuple(_needed(row, "repositoryName") for row in _rows(answer, "repositories"))
    return Page(names, _text(answer, "nextToken") or None)


@_of("ecr:DescribeImages")
def images(answer: Row, *, now: float) -> Page[Image]:
    """Of DescribeImages: a page of all. `now` is Unix time, which no push is after."""
    return Page(_images(answer, now), _text(answer, "nextToken") or None)


@_of("ecr:DescribeImages")
def found(answer: Row, *, now: float) -> tuple[Image, ...]:
    """Of DescribeImages, of given names. ECR may leave out a name, as that of an archived image."""
    return _images(answer, now)


@_of("ecr:DescribeImageReplicationStatus")
def replications(answer: Row, *, repository: str, digest: str) -> tuple[Replication, ...]:
    """Of DescribeImageReplicationStatus for that image.

    Its list may be left out like any other field. That nothing is reported is then believed of an answer
    that names the image; it may turn into MISSING, so half an answer must not pass for it.
    """
    image = answer.get("imageId")
    echo = (
        _text(answer, "repositoryName"),
        _text(image if isinstance(image, dict) else {}, "imageDigest"),
    )
    if echo[0] not in ("", repository) or echo[1] not in ("", digest):
        raise _UnreadableError("the status of another image")
    if answer.get("replicationStatuses") is None and all(echo):
        return ()
    return tuple(_replication(row) for row in _rows(answer, "replicationStatuses"))


def _rows(row: Row, key: str) -> list[Row]:
    rows = row.get(key)
    if not isinstance(rows, list) or not all(isinstance(each, dict) for each in rows):
        raise _UnreadableError(f"no {key} that can be understood")
    return rows


def _optional(row: Row, key: str) -> list[Row]:
    return [] if row.get(key) is None else _rows(row, key)


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _UnreadableError(f"a {key} that is no text")
    return value if value.isascii() else _encodable(value)


def _needed(row: Row, key: str) -> str:
    if not (text := _text(row, key)):
        raise _UnreadableError(f"a row without {key}")
    return text


def _label(row: Row, key: str) -> str:
    """Text from outside that becomes the value of a label: bounded."""
    return _text(row, key)[:MAX_LABEL]


def _encodable(text: str) -> str:
    """JSON can spell lone surrogates, which no exposition can."""
    return text.encode("utf-8", "replace").decode()


def _account_id(row: Row, key: str) -> str:
    text = _text(row, key)
    if text and not (len(text) == 12 and text.isascii() and text.isdecimal()):
        raise _UnreadableError(f"a {key} that is no account id of 12 digits")
    return text


def _images(answer: Row, now: float) -> tuple[Image, ...]:
    return tuple(
        Image(
            digest=_needed(row, "imageDigest"),
            tags=_tags(row),
            pushed_at=_unix(row.get("imagePushedAt"), now),
            activated_at=_unix(row.get("lastActivatedAt"), now),
        )
        for row in _rows(answer, "imageDetails")
    )


def _tags(row: Row) -> tuple[str, ...]:
    tags = row.get("imageTags")
    if tags is None:
        return ()
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise _UnreadableError("no imageTags that can be understood")
    return tuple(tag if tag.isascii() else _encodable(tag) for tag in tags)


def _unix(moment: datetime | None, now: float) -> float | None:
    """Unknown rather than a time at which nothing can have been pushed: ages and the newest depend on it."""
    at = moment.timestamp() if moment else 0.0
    return at if FIRST_PUSH <= at <= now + SKEW else None


def _rule(row: Row) -> Rule:
    """A filter that cannot be read covers nothing: that it covers everything would be a false MISSING."""
    filters = _optional(row, "repositoryFilters")
    prefixes = (_text(each, "filter") for each in filters if each.get("filterType") == "PREFIX_MATCH")
    return Rule(
        destinations=tuple(_destination(each) for each in _optional(row, "destinations")),
        filters=tuple(_text(each, "filter") for each in filters),
        prefixes=tuple(prefix for prefix in prefixes if prefix),
    )


def _destination(row: Row) -> Destination:
    return Destination(region=_label(row, "region"), registry_id=_label(row, "registryId"))


def _replication(row: Row) -> Replication:
    status = _label(row, "status") or Status.UNKNOWN
    failed = status == Status.FAILED
    code = _label(row, "failureCode") or "UNKNOWN"
    return _shared(_label(row, "region"), _label(row, "registryId"), status, code if failed else "")


@lru_cache(maxsize=_SHARED)
def _shared(region: str, registry_id: str, status: str, failure_code: str) -> Replication:
    """One object for all images that are in this state there: there are few of them, and many images."""
    return Replication(Destination(region, registry_id), status, failure_code)
