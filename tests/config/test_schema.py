"""The configuration's JSON Schema against the exporter itself: neither may take what the other refuses.

Where JSON Schema cannot know, or must be stricter, the exception is on a list here, with its reason.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from support.configs import BAD, CONFIGS, configurations, loader
from support.schemas import NO_VALUES, SETTINGS, WEB, documents, texts

from exporter.config import schema
from exporter.config import settings as config
from exporter.config.settings import Settings, to_yaml
from exporter.config.web import WebSettings
from exporter.config.yaml_source import ConfigError

#: What several places have to agree on.
ONLY_THE_EXPORTER = {
    "default_name": "a name is unique, also against the default names",
    "labels": "a name is the label of no other target, also not of one without a name",
    "no_registries": "a target names a registry that there is",
    "references": "a target names a registry that there is",
}
#: What the exporter says of them, for whatever else is generated.
ONLY_THE_EXPORTER_SAYS = re.compile(
    r"is already the (?:name|label) of"
    r"|is not the name of a registry"
    r"|is shorter than two discovery intervals"
    r"|is longer than Prometheus's longest"
    r"|is above max_version"
    r"|in the host is not a Region"
)
#: Text that YAML takes for a number or a date. The exporter sees what was written; Helm sees 1.1 for 1.10.
ONLY_THE_SCHEMA = {"raw_text"}


def judge(path: Path) -> Draft7Validator:
    return WEB if path.name.startswith("web_") else SETTINGS


def refused(text: str) -> list[str]:
    try:
        config.parse(text)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize("model", [Settings, WebSettings])
def test_the_schema_is_one(model: type) -> None:
    Draft7Validator.check_schema(schema.of(model))


def test_it_is_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "exporter.config.schema"], capture_output=True, text=True, check=True
    )
    printed = json.loads(done.stdout)
    assert printed["$schema"] == schema.DRAFT
    assert schema.of(Settings).items() <= printed.items()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.ok.yaml")), ids=lambda path: path.stem)
def test_what_the_exporter_takes(path: Path) -> None:
    loader(path)(str(path))
    plain = yaml.safe_load(path.read_text()) or {}
    accepted = judge(path).is_valid(plain)
    assert accepted == (path.name.partition(".")[0] not in ONLY_THE_SCHEMA)


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_what_the_exporter_refuses(path: Path) -> None:
    name = path.name.partition(".")[0]
    if name in NO_VALUES:
        return
    plain = yaml.safe_load(path.read_text()) or {}
    assert judge(path).is_valid(plain) == (name in ONLY_THE_EXPORTER)


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_every_line_that_the_exporter_complains_about(path: Path) -> None:
    """Not one mistake a file only: the schema finds each of them, in whatever part of the file it is."""
    name = path.name.partition(".")[0]
    if name in NO_VALUES or name.startswith(("empty", "list")):
        return
    plain = yaml.safe_load(path.read_text()) or {}
    found = {".".join(str(step) for step in error.absolute_path) for error in judge(path).iter_errors(plain)}
    expected = re.findall(r"^# expect:[0-9]+: ([\w.\[\]]+): (.*)", path.read_text(), re.MULTILINE)
    for place, message in expected:
        if not ONLY_THE_EXPORTER_SAYS.search(message):
            dotted = re.sub(r"\[([0-9]+)\]", r".\1", place)
            assert any(dotted == at or dotted.startswith(f"{at}.") or at == "" for at in found), (
                place,
                found,
            )


# -- anything that looks like a configuration ------------------------------------------------------


@settings(max_examples=100)
@given(configurations)
def test_every_valid_configuration_is_valid(configuration: Settings) -> None:
    plain = yaml.safe_load(to_yaml(configuration))
    assert [error.message for error in SETTINGS.iter_errors(plain)] == []


@settings(max_examples=400)
@given(documents)
def test_the_schema_and_the_exporter_agree(letter: dict[str, Any]) -> None:
    said = refused(json.dumps(letter))
    errors = list(SETTINGS.iter_errors(letter))
    if said and all(ONLY_THE_EXPORTER_SAYS.search(problem) for problem in said):
        return
    if errors and not said:
        # The exporter reads what is written, so quotes do not tell a text from a number.
        kinds = re.compile("is not of type '(string|integer|number)'")
        assert all(kinds.search(deepest(error)) for error in errors), errors
        return
    assert bool(errors) == bool(said), (said, errors)


def deepest(error: Any) -> str:
    return " ".join([error.message, *(deepest(each) for each in error.context or ())])


@settings(max_examples=300)
@given(
    st.from_regex(r"\A([0-9]{1,5}(ms|[ywdhms])){1,4}\Z") | texts,
    st.sampled_from(["settled_interval", "replica_interval", "pushed_within"]),
)
def test_durations(text: str, key: str) -> None:
    target: dict[str, Any] = {"repository": "team/app"}
    letter: dict[str, Any] = {"targets": [target]}
    (target if key == "pushed_within" else letter)[key] = text
    said = refused(json.dumps(letter))
    if not said or not ONLY_THE_EXPORTER_SAYS.search(said[0]):
        assert SETTINGS.is_valid(letter) == (not said), said
