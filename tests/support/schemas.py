"""The JSON Schema of the configuration, and hypothesis strategies for documents to check against it."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from jsonschema import Draft7Validator

from exporter.config import schema
from exporter.config.settings import DestinationSettings, RegistrySettings, Settings, TargetSettings
from exporter.config.web import WebSettings
from exporter.config.yaml_source import keys

#: Files that fail while YAML is read, so there are no values to check against a schema.
NO_VALUES = {
    "alias",
    "aliased",
    "bomb",
    "keys",
    "not_yaml",
    "self_merge",
    "shared",
    "slips_alias",
    "slips_at",
    "slips_bang",
    "slips_braces",
    "slips_bracket",
    "slips_star",
    "slips_tab",
    "tag",
    "two_documents",
}

VALID: dict[str, Any] = {"targets": [{"repository": "team/app"}]}

SETTINGS = Draft7Validator(schema.of(Settings))

WEB = Draft7Validator(schema.of(WebSettings))

texts = st.one_of(
    st.sampled_from(
        "team/app team/* Team [a] [a ]a[ a]b[c [!a]* v1 v* v1.2.3 -v1 us-east-1 useast1 prod 123456789012"
        " 12345 0 0s 1s 500ms 1000ms 0m1ms 1m1h 1h30m 300y 10 1m5s 1ms 00s 5m00s 1h0m2ms"
        " arn:aws:iam::222233334444:role/x s3cr3t x fips-us-gov-west-1 us-east-1a"
        " 111122223333.dkr.ecr.us-east-1.amazonaws.com/team/app team/app:v1"
        " 444455556666/us-west-2 444455556666:us-west-2 us-west-2/444455556666"
        " 444455556666/us-west-2a".split()
    ),
    st.just(""),
    st.just(" a"),
    st.just("a\nb"),
    st.from_regex(r"\A([0-9]{1,4}(ms|[ywdhms]))+\Z"),
    st.from_regex(r"\A[a\[\]!*]{1,6}\Z"),
    st.just("sha256:" + "0" * 64),
)

numbers = st.one_of(st.integers(-1, 10), st.sampled_from([0.5, 1.5, 5.0, 10**15, 10_001, 2e-5]))

anything = st.one_of(texts, numbers, st.booleans(), st.lists(texts, max_size=3))

registries = st.dictionaries(st.sampled_from([*keys(RegistrySettings)[()], "nam"]), anything, max_size=2)

destinations = st.dictionaries(st.sampled_from([*keys(DestinationSettings)[()], "nam"]), anything, max_size=2)

targets = st.dictionaries(st.sampled_from([*keys(TargetSettings)[()], "Tag"]), anything, max_size=2)

others = [
    *(key for key in keys(Settings)[()] if key not in ("registries", "destinations", "targets")),
    "colour",
]

#: Configurations with few keys each, so that one mistake does not hide another one.
documents = st.one_of(
    st.lists(targets.map({"repository": "team/app"}.__or__), max_size=2).map(lambda each: {"targets": each}),
    st.lists(targets, min_size=1, max_size=1).map(lambda each: {"targets": each}),
    st.lists(registries, max_size=1).map(lambda each: {"registries": each} | VALID),
    st.lists(destinations.map({"registry_id": "444455556666"}.__or__) | destinations, max_size=2).map(
        lambda each: {"destinations": each} | VALID
    ),
    st.dictionaries(st.sampled_from(others), anything, max_size=1).map(VALID.__or__),
)
