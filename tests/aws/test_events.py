"""What a message of a queue is: an event, nothing that is of interest, or junk; never a crash."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.events import failed_call, image_action, replication_action

from exporter.aws.events import Event, EventKind, UnusableEventError, parse
from exporter.replication.model import Destination, Source

HOME, IRELAND = Source("111122223333", "us-east-1"), Source("444455556666", "eu-west-1")
TO = Destination(IRELAND.region, IRELAND.registry_id)
DIGEST = "sha256:" + "0" * 64
AT = 1.8e9
PUSH = image_action("PUSH", "team/app", DIGEST, at=AT)
REPLICATE = replication_action("team/app", DIGEST, TO, at=AT, result="FAILED")
CALL = failed_call("team/app", TO, at=AT)

Row = dict[str, Any]


def changed(event: Row, key: str, value: object) -> Row:
    """The event with another value at a dotted place."""
    first, _, rest = key.partition(".")
    return event | {first: changed(event[first], rest, value) if rest else value}


@pytest.mark.parametrize("kind", ["PUSH", "DELETE", "UPDATE_STORAGE_CLASS"])
def test_an_image_action(kind: str) -> None:
    row = changed(PUSH, "detail.action-type", kind)
    expected = Event(EventKind(kind), row["id"], AT, HOME, HOME, "team/app", DIGEST, "v1")
    assert parse(json.dumps(row)) == expected


def test_a_replication_action_names_source_and_destination() -> None:
    expected = Event(
        EventKind.REPLICATE,
        REPLICATE["id"],
        AT,
        place=IRELAND,
        source=HOME,
        repository="team/app",
        digest=DIGEST,
        tag="v1",
        succeeded=False,
    )
    assert parse(json.dumps(REPLICATE)) == expected


def test_a_failed_call_names_its_repository() -> None:
    event = parse(json.dumps(CALL))
    assert event is not None
    assert (event.kind, event.repository, event.place) == (EventKind.REPLICATE_IMAGE, "team/app", IRELAND)


@pytest.mark.parametrize(
    "row",
    [
        changed(PUSH, "source", "aws.ec2"),
        changed(PUSH, "detail-type", "ECR Image Scan"),
        changed(PUSH, "detail.action-type", "SOMETHING_NEW"),
        changed(PUSH, "detail.action-type", None),
        changed(REPLICATE, "detail.action-type", "PUSH"),
        changed(CALL, "detail.errorCode", None),
        changed(CALL, "detail.eventName", "PutImage"),
    ],
)
def test_what_is_of_no_interest(row: Row) -> None:
    assert parse(json.dumps(row)) is None


@pytest.mark.parametrize("key", ["id", "time", "account", "detail.image-digest", "detail.image-tag"])
def test_what_may_be_absent(key: str) -> None:
    assert parse(json.dumps(changed(PUSH, key, None))) is not None


@pytest.mark.parametrize(
    ("row", "key", "value"),
    [
        (PUSH, "detail", None),
        (PUSH, "detail", []),
        (PUSH, "detail.repository-name", None),
        (PUSH, "detail.repository-name", ""),
        (PUSH, "detail.repository-name", "Not/A/Name"),
        (PUSH, "detail.repository-name", ["team/app"]),
        (PUSH, "detail.image-digest", "latest"),
        (PUSH, "detail.image-tag", 7),
        (PUSH, "account", "12"),
        (PUSH, "region", None),
        (PUSH, "region", "Ohio"),
        (PUSH, "time", "noon"),
        (PUSH, "time", 1.8e9),
        (PUSH, "id", {}),
        (PUSH, "source", 1),
        (REPLICATE, "detail.source-region", None),
        (REPLICATE, "detail.source-account", 111122223333),
        (CALL, "detail.requestParameters", None),
        (CALL, "detail.requestParameters", {}),
    ],
)
def test_what_cannot_be_understood(row: Row, key: str, value: object) -> None:
    with pytest.raises(UnusableEventError):
        parse(json.dumps(changed(row, key, value)))


@pytest.mark.parametrize("body", ["", "junk", "[]", "{}", "null", "[" * 100_000, '"x"', "1" * 5000, "{"])
def test_what_is_no_event(body: str) -> None:
    with pytest.raises(UnusableEventError):
        parse(body)


@pytest.mark.parametrize("message", [None, 7, "junk", "[]", {}])
def test_an_envelope_with_junk(message: object) -> None:
    with pytest.raises(UnusableEventError):
        parse(json.dumps({"Type": "Notification", "Message": message}))


def test_an_envelope_of_sns() -> None:
    assert parse(json.dumps({"Type": "Notification", "Message": json.dumps(PUSH)})) == parse(json.dumps(PUSH))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(DIGEST),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
_KEYS = st.sampled_from([*PUSH, "Type", "Message"])
_DETAILS = st.sampled_from([f"detail.{key}" for key in {**PUSH["detail"], **REPLICATE["detail"]}])
_CALLS = st.sampled_from([f"detail.{key}" for key in CALL["detail"]])


@given(st.sampled_from([PUSH, REPLICATE, CALL]), st.lists(st.tuples(_KEYS | _DETAILS | _CALLS, _JSON)))
def test_whatever_the_fields_hold_there_is_an_event_or_an_error_and_what_it_holds_is_well_formed(
    row: Row, changes: list[tuple[str, object]]
) -> None:
    for key, value in changes:
        if isinstance(row["detail"], dict) or "." not in key:
            row = changed(row, key, value)
    try:
        event = parse(json.dumps(row))
    except UnusableEventError:
        return
    if event:
        assert event.repository
        assert event.digest in ("", DIGEST)
        assert all(isinstance(part, str) for part in (*event.place, *event.source, event.id, event.tag))


@given(_JSON.map(json.dumps) | st.text())
def test_arbitrary_text_is_no_event(body: str) -> None:
    with pytest.raises(UnusableEventError):
        parse(body)
