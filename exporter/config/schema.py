"""The letter's shape as JSON Schema, for editors and for the Helm chart: `python -m exporter.config.schema`.

Made from config's tables and words' patterns, so that it cannot say anything else. What JSON Schema cannot
tell is left to the exporter: names that refer to each other, intervals that depend on each other. The regular
expressions know no look-around, as Go's do not, and the draft is the one that every Helm and editor knows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from exporter.config import settings as config
from exporter.config import validators as words
from exporter.config import yaml_source as letter
from exporter.config.settings import ClientAuth
from exporter.config.validators import Duration, Globbing, Hidden, OneOf, Pattern
from exporter.config.yaml_source import ListOf, MappingOf, Reader, Refused, TextOf, WordsOf

Schema = dict[str, Any]

DRAFT = "http://json-schema.org/draft-07/schema#"

_FUNCTIONS: dict[Reader, Schema] = {
    letter.whole: {"type": "integer", "minimum": 1, "maximum": 10**15 - 1},
    letter.flag: {"type": "boolean"},
    config.rate: {"type": "number", "exclusiveMinimum": 0, "maximum": 10_000},
    config.http2: {"const": False},
}
_DURATIONS = {
    # A unit that is long enough, and not nought of it. The m of ms is no minute.
    0.001: "[1-9]",
    1.0: "[1-9][0-9]*(?:[ywdhs]|m(?:[0-9]|$))|[1-9][0-9]{3,}ms",
}


def settings() -> Schema:
    """The schema of `--config.file`."""
    schema = _of(config.SHAPE)
    schema["required"] = ["targets"]
    schema["properties"]["registries"]["items"]["dependencies"] = {"external_id": ["role_arn"]}
    target = schema["properties"]["targets"]["items"]
    target["required"] = ["repository"]
    others = {key: False for key in config.SELECTORS if key not in ("tag", "digest", "untagged")}
    alone = {"properties": others | {"untagged": {"const": False}}}
    target["dependencies"] = {
        "tag": {"properties": alone["properties"] | {"digest": False}},
        "digest": alone,
    }
    return schema


def web() -> Schema:
    """The schema of `--web.config.file`."""
    schema = _of(config.WEB_SHAPE)
    tls = schema["properties"]["tls_server_config"]
    verifying = {"enum": [kind.value for kind in ClientAuth if kind != ClientAuth.NONE]}
    tls["anyOf"] = [{"maxProperties": 0}, {"required": ["cert_file", "key_file"]}]
    tls["dependencies"] = {
        "client_ca_file": {"required": ["client_auth_type"], "properties": {"client_auth_type": verifying}},
        "client_auth_type": {
            "anyOf": [
                {"required": ["client_ca_file"]},
                {"properties": {"client_auth_type": {"const": ClientAuth.NONE.value}}},
            ]
        },
    }
    lowest, highest = config.TLS_VERSIONS
    tls["not"] = {
        "required": ["min_version", "max_version"],
        "properties": {"min_version": {"const": highest}, "max_version": {"const": lowest}},
    }
    return schema


def text(check: Callable[[str], Any]) -> Schema:
    """The schema of a text that passes a check."""
    match check:
        case Hidden(pattern):
            return text(pattern)
        case Pattern(regex, _, shortest, longest):
            bounds = {"minLength": shortest, "maxLength": longest}
            return {"type": "string", **bounds, "pattern": f"^(?:{regex.pattern})$"}
        case Globbing(plain, glob):
            # A glob has a character that makes it one, and a ] after its last [.
            globs = [{"pattern": r"[*?\[]"}, {"pattern": r"^(?:.*\])?[^\[]*$"}]
            return {"anyOf": [text(plain), {**text(glob), "allOf": globs}]}
        case Duration(shortest):
            least = {"pattern": _DURATIONS[shortest]}
            return {"type": "string", "pattern": f"^(?:{words.DURATION.pattern})$", "allOf": [least]}
        case OneOf(choice):
            return {"enum": [str(word) for word in choice]}
        case words.name:  # visible and without spaces around, as far as a pattern can tell
            return {"type": "string", "minLength": 1, "maxLength": 256, "pattern": r"^\S(?:.*\S)?$"}
    raise TypeError(f"no schema is known for {check!r}")


def _of(reader: Reader) -> Schema:
    match reader:
        case MappingOf(table):
            return _mapping(table)
        case ListOf(item):
            return {"type": "array", "minItems": 1, "items": _of(item)}
        case WordsOf(check):
            return {"type": "array", "minItems": 1, "uniqueItems": True, "items": text(check)}
        case TextOf(check):
            return text(check)
        case config.users:
            names = {"pattern": "^[^:]+$"}
            return {"type": "object", "propertyNames": names, "additionalProperties": text(words.bcrypt)}
    return dict(_FUNCTIONS[reader])


def _mapping(table: Mapping[str, Reader]) -> Schema:
    known = {key: _of(reader) for key, reader in table.items() if not isinstance(reader, Refused)}
    return {"type": "object", "additionalProperties": False, "properties": known}


if __name__ == "__main__":
    json.dump({"$schema": DRAFT, "title": "ecr-replication-exporter", **settings()}, sys.stdout, indent=2)
    sys.stdout.write("\n")
