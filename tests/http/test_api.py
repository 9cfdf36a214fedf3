"""`/api/v1/status`: the report as JSON, as docs/api.schema.json describes it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.facts import hand_made
from support.status import get, store_of

from exporter.http.report import schema
from exporter.replication.store import Store

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = json.loads((DOCS / "api.schema.json").read_text())
PATH = "/api/v1/status"


def answer(store: Store, query: str = "") -> Any:
    response = get(store, f"{PATH}?{query}")
    assert response.status == 200, response.body
    assert dict(response.headers)["Content-Type"] == "application/json"
    return json.loads(response.body)


def test_the_schema_in_the_documentation_is_that_of_the_code() -> None:
    assert schema() == SCHEMA, "run `make docs`"


def test_every_field_of_the_schema_stays_where_it_is() -> None:
    """Nothing is optional, so that a program never has to ask whether a field is there."""
    for name, part in {**SCHEMA["$defs"], "Report": SCHEMA}.items():
        if part["type"] == "object":
            assert set(part["required"]) == set(part["properties"]), name


@pytest.mark.parametrize("query", ["", "repository=*", "status=COMPLETE", "limit=1"])
@pytest.mark.parametrize("store", [hand_made(), Store(), store_of("FAILED")], ids=["all", "empty", "one"])
def test_every_answer_is_as_the_schema_says(store: Store, query: str) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(answer(store, query))


def test_the_schema_refuses_what_is_no_answer() -> None:
    report = answer(hand_made())
    report["images"][0]["verdict"] = "fine"
    with pytest.raises(jsonschema.ValidationError, match="'fine' is not one of"):
        jsonschema.Draft202012Validator(SCHEMA).validate(report)


def test_names_are_those_of_the_metrics() -> None:
    row = answer(hand_made())["images"][0]
    assert row["source_registry_id"] == "111122223333"
    assert (row["region"], row["registry_id"]) == ("eu-west-1", "444455556666")
    assert (row["status"], row["failure_code"], row["verdict"]) == ("FAILED", "DENIED", "failed")
    assert row["since_timestamp_seconds"] == 1_800_000_005.0
    assert row["commands"][0]["command"].startswith("aws ecr describe-image-replication-status ")


def test_a_limit_cuts_the_images_and_says_so() -> None:
    store = store_of(*["FAILED"] * 501)
    report = answer(store)
    assert (len(report["images"]), report["matched"], report["truncated"]) == (500, 501, True)
    report = answer(store, "limit=501")
    assert (len(report["images"]), report["matched"], report["truncated"]) == (501, 501, False)


def test_filters_join() -> None:
    report = answer(store_of("FAILED", "FAILED", "COMPLETE"), "tag=v1[02]&status=FAILED&repository=team/*")
    assert [row["tags"] for row in report["images"]] == [["v10"]]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("limit=0", "limit is a number from 1 to 10000, not '0'."),
        ("limit=10001", "limit is a number from 1 to 10000, not '10001'."),
        ("limit=-1", "limit is a number from 1 to 10000, not '-1'."),
        ("limit=%D9%A1", "limit is a number"),
        ("limit=", "limit is a number"),
        ("limit=1&limit=2", "The parameter limit is given more than once."),
        ("refresh=on", "There is no parameter 'refresh'"),
        ("status=Failed", "'Failed' is not a status; a status is one of"),
        ("verdict=FAILED", "'FAILED' is not a verdict"),
        ("digest=ZZ", "'ZZ' is not a digest or its beginning"),
        ("status=VANISHED", "'VANISHED' is not a status; a status is one of"),
        (f"tag={'%5B' * 600}", "The parameter tag is longer than 512 characters."),
        ("%00=1", "There is no parameter '\\x00'"),
    ],
)
def test_a_bad_query_is_refused_with_a_sentence(query: str, sentence: str) -> None:
    response = get(hand_made(), f"{PATH}?{query}")
    assert response.status == 400
    assert sentence in response.body.decode()
    assert response.body.count(b"\n") == 1


def test_a_status_that_ecr_invents_can_be_searched_for() -> None:
    found = answer(store_of("TELEPORTED", "FAILED"), "status=TELEPORTED")
    assert [image["status"] for image in found["images"]] == ["TELEPORTED"]


@pytest.mark.parametrize("path", [PATH, "/"])
def test_it_is_compressed_where_that_is_asked_for(path: str) -> None:
    plain, packed = (get(hand_made(), path, accept_encoding=accepted) for accepted in ("", "gzip"))
    assert dict(plain.headers)["Vary"] == dict(packed.headers)["Vary"] == "Accept-Encoding"
    assert "Content-Encoding" not in dict(plain.headers)
    assert dict(packed.headers)["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body


def test_the_documentation_names_every_field_and_parameter() -> None:
    text = (DOCS / "api.md").read_text()
    names = {name for part in (SCHEMA, *SCHEMA["$defs"].values()) for name in part.get("properties", ())}
    for name in (*names, "repository", "tag", "digest", "status", "verdict", "limit"):
        assert f"`{name}`" in text, name


def test_runbooks_are_served_and_nothing_else_of_the_disk() -> None:
    for page in sorted((DOCS / "runbooks").iterdir()):
        response = get(Store(), f"/runbooks/{page.name}")
        assert (response.status, response.body) == (200, page.read_bytes())
        assert dict(response.headers)["Content-Type"] == "text/plain; charset=utf-8"
    for path in ("/runbooks/", "/runbooks/../routes.py", "/runbooks/x.md", "/runbooks/%2e%2e/routes.py"):
        assert get(Store(), path).status == 404
