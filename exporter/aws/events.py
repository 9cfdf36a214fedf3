"""Events of ECR, as EventBridge puts them into a queue -> our nouns, or an error instead of a guess.

An event only says where to look, so a field that only makes the look cheaper may be absent. The kinds and
their fields are those of the ECR documentation ("Amazon ECR events and EventBridge").
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

from exporter.config.validators import DIGEST, REGION, REPOSITORY
from exporter.replication.model import Source

_ACCOUNT, _REGION, _REPOSITORY, _DIGEST = map(re.compile, ("[0-9]{12}", REGION, REPOSITORY, DIGEST))
#: Characters of a text: more than any of AWS has.
_LONGEST = 512


class EventKind(StrEnum):
    """What happened. The values are the words of AWS."""

    PUSH = "PUSH"
    DELETE = "DELETE"
    UPDATE_STORAGE_CLASS = "UPDATE_STORAGE_CLASS"
    REPLICATE = "REPLICATE"
    #: A call of replication that failed, as CloudTrail of the destination has it.
    REPLICATE_IMAGE = "ReplicateImage"


class Event(NamedTuple):
    """Something happened in a repository. What AWS leaves out is "" or None."""

    kind: EventKind
    id: str
    #: Unix time, in whole seconds.
    at: float | None
    #: The registry in which it happened. An account that is left out is "".
    place: Source
    #: The registry from which the image comes; "" where it is not known.
    source: Source
    repository: str
    digest: str = ""
    tag: str = ""
    #: Whether it did what its kind says.
    succeeded: bool = True


class UnusableEventError(Exception):
    """A message that is no event, or an event that lacks what makes it useful."""


_Row = dict[str, Any]


def parse(body: str) -> Event | None:
    """The event in the body of a message; None for an event of another kind.

    The body may be in the envelope of an SNS topic. Raises UnusableEventError and nothing else.
    """
    row = _object(body)
    if row.get("Type") == "Notification" and "Message" in row:
        row = _object(row["Message"])
    parser = _PARSERS.get((_text(row, "source"), _text(row, "detail-type")))
    if parser is None:
        if not row.get("detail-type"):
            raise UnusableEventError("no event of EventBridge")
        return None
    detail = row.get("detail")
    if not isinstance(detail, dict):
        raise UnusableEventError("no detail")
    return parser(row, detail)


def _object(text: Any) -> _Row:
    try:
        row = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise UnusableEventError(f"no JSON: {type(error).__name__}") from error
    if not isinstance(row, dict):
        raise UnusableEventError("no JSON object")
    return row


def _image_action(row: _Row, detail: _Row) -> Event | None:
    try:
        kind = EventKind(_text(detail, "action-type"))
    except ValueError:
        return None  # an action that AWS added later
    place = _place(row, "account", "region")
    return _event(kind, row, detail, place=place, source=place)


def _replication_action(row: _Row, detail: _Row) -> Event | None:
    if _text(detail, "action-type") != EventKind.REPLICATE:
        return None
    source = _place(detail, "source-account", "source-region")
    return _event(EventKind.REPLICATE, row, detail, place=_place(row, "account", "region"), source=source)


def _api_call(row: _Row, detail: _Row) -> Event | None:
    """A call in CloudTrail. Where the image comes from is not in any documented field of it."""
    if _text(detail, "eventName") != EventKind.REPLICATE_IMAGE or not _text(detail, "errorCode"):
        return None
    parameters = detail.get("requestParameters")
    if not isinstance(parameters, dict):
        raise UnusableEventError("no requestParameters")
    named = {"repository-name": parameters.get("repositoryName")}
    place = _place(row, "account", "region")
    return _event(EventKind.REPLICATE_IMAGE, row, named, place=place, source=Source("", ""))


#: By source and detail-type.
_PARSERS: dict[tuple[str, str], Callable[[_Row, _Row], Event | None]] = {
    ("aws.ecr", "ECR Image Action"): _image_action,
    ("aws.ecr", "ECR Replication Action"): _replication_action,
    ("aws.ecr", "AWS API Call via CloudTrail"): _api_call,
}


def _event(kind: EventKind, row: _Row, detail: _Row, *, place: Source, source: Source) -> Event:
    return Event(
        kind,
        id=_text(row, "id"),
        at=_time(row),
        place=place,
        source=source,
        repository=_text(detail, "repository-name", _REPOSITORY, needed=True),
        digest=_text(detail, "image-digest", _DIGEST),
        tag=_text(detail, "image-tag"),
        succeeded=_text(detail, "result") in ("", "SUCCESS"),
    )


def _place(row: _Row, account: str, region: str) -> Source:
    return Source(_text(row, account, _ACCOUNT), _text(row, region, _REGION, needed=True))


def _text(row: _Row, key: str, form: re.Pattern[str] | None = None, *, needed: bool = False) -> str:
    """A text of a form; "" if it is absent. The text is not in messages of errors."""
    value = row.get(key)
    if not value and isinstance(value, str | None):
        if needed:
            raise UnusableEventError(f"no {key}")
        return ""
    if not isinstance(value, str) or len(value) > _LONGEST or (form and not form.fullmatch(value)):
        raise UnusableEventError(f"a {key} that cannot be understood")
    return value


def _time(row: _Row) -> float | None:
    text = _text(row, "time")
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise UnusableEventError("a time that cannot be understood") from error
