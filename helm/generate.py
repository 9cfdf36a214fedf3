"""What of the chart is made from something else: values.schema.json, and the tables of values in README.md.

`make helm` writes both; with --check, nothing is written and the exit code is 1 if they are not what they
should be. One source each: values.yaml has the keys, their defaults and a sentence about each; the exporter's
own tables say what `config` and `web.config` may be; Kubernetes' published types say what goes into a pod.

Comments of values.yaml that mean something stand right above their key:
  # -- The sentence for the README, which may run on.
  # @schema {minimum: 1}       What the default alone does not tell. {$ref: NAME} is one of `_NAMED` below,
                               {$ref: k8s/KIND} is Kubernetes' own type.
  ## Heading                   Begins a new table.
A map with keys in it is a section: its own keys are read the same way, unless it has an @schema itself. A key
without a sentence, and an empty map or list without @schema, are errors: the reader would have to guess.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from exporter import cli
from exporter.config import schema
from exporter.config import validators as words
from exporter.config.settings import Settings
from exporter.config.web import WebSettings
from exporter.metrics.catalogue import REPLICATION_DURATION

CHART = Path(__file__).parent / "ecr-replication-exporter"
BEGIN, END = "<!-- values: made by make helm -->", "<!-- end of values -->"

Schema = dict[str, Any]

#: An image's name, and its parts as the distribution specification has them. A registry may have a path.
_REGISTRY = r"[A-Za-z0-9.:\[\]-]+(?:/[a-z0-9][a-z0-9._-]*)*"
_REPOSITORY = r"(?:[A-Za-z0-9.:\[\]-]+/)?[a-z0-9][a-z0-9._-]*(?:/[a-z0-9][a-z0-9._-]*)*"
_IMAGE_TAG = "[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
#: An amount of processor, memory or storage (Kubernetes documentation, Quantity).
_QUANTITY = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"
#: What Helm makes of the keys `on`, `yes`, `off` and `no` without quotes (YAML 1.1).
_NO_BOOLEANS = {"not": {"enum": ["true", "false"]}}
_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
#: The key of an annotation, and a label's key and value, as Kubernetes has them.
_LABEL = r"^(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$"
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_CIDR4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}/(?:3[0-2]|[12]?[0-9])"
_CIDR6 = r"[0-9a-fA-F]*:[0-9a-fA-F:.]*/(?:12[0-8]|1[01][0-9]|[1-9]?[0-9])"
_ANNOTATION_KEY = (
    r"^(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
)
_LABEL_KEY = r"^(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
#: The name of a label in Prometheus. Those that begin with two underscores are reserved.
_RULE_LABEL = "^(?:[a-zA-Z]|_[a-zA-Z0-9])[a-zA-Z0-9_]*$"
#: A label matcher of PromQL, and the space after it.
_MATCHER = r"""[a-zA-Z_][a-zA-Z0-9_]*\s*(?:=|!=|=~|!~)\s*(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]*`)\s*"""


def _object(**properties: Any) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties}


_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": _TEXT}
_SELECTED = {"$ref": "k8s/SecretKeySelector"}
_EITHER = _object(configMap={"$ref": "k8s/ConfigMapKeySelector"}, secret=_SELECTED)
_RULE = _object(
    alert=_TEXT,
    record=_TEXT,
    expr={"type": ["string", "integer"]},
    keep_firing_for={"$ref": "optionalDuration"},
    labels={"$ref": "ruleLabels"},
    annotations={"$ref": "ruleLabels"},
    **{"for": {"$ref": "duration"}},
) | {"required": ["expr"], "oneOf": [{"required": ["alert"]}, {"required": ["record"]}]}
_ACTIONS = (
    "replace keep drop hashmod labelmap labeldrop labelkeep lowercase uppercase keepequal dropequal"
    " Replace Keep Drop HashMod LabelMap LabelDrop LabelKeep Lowercase Uppercase KeepEqual DropEqual"
).split()
#: Shapes that values.yaml refers to. Those of the Prometheus operator follow monitoring.coreos.com/v1.
_NAMED: dict[str, Schema] = {
    "config": schema.of(Settings),
    "web": schema.of(WebSettings),
    "duration": {"type": "string", "pattern": f"^(?:0|{words.DURATION})$", "minLength": 1},
    # PromQL has no range of 0.
    "window": {"allOf": [{"$ref": "duration"}, {"pattern": "[1-9]"}]},
    "burnWindows": {
        "type": "array",
        "minItems": 1,
        "items": _object(
            long={"$ref": "window"}, short={"$ref": "window"}, rate={"type": "number", "exclusiveMinimum": 0}
        )
        | {"required": ["long", "short", "rate"]},
    },
    "durationBucket": {"enum": list(REPLICATION_DURATION.buckets)},
    "optionalDuration": {"type": "string", "pattern": f"^(?:{words.DURATION})$"},
    # Nought of any unit is "never", and what is not is a second at least: --config.auto-reload-interval.
    "reloadInterval": {
        "anyOf": [
            {"type": "string", "pattern": "^(?:0|(?:0+(?:[ywdhms]|ms))+)$"},
            schema.of(words.Interval),
        ]
    },
    "cidr": {"type": "string", "pattern": f"^(?:{_CIDR4}|{_CIDR6})$"},
    "region": {"anyOf": [{"const": ""}, schema.of(words.Region)]},
    "registry": {"type": "string", "pattern": f"^(?:{_REGISTRY})?$"},
    "repository": {"type": "string", "pattern": f"^(?:{_REPOSITORY})?$"},
    "imageTag": {"type": "string", "pattern": f"^(?:{_IMAGE_TAG})?$"},
    # Kubernetes refuses "." and what begins with "..".
    "key": {"type": "string", "pattern": r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$", "maxLength": 253},
    "telemetryPath": {
        "type": "string",
        "pattern": cli.TELEMETRY_PATH,
        "not": {"anyOf": [{"const": "/config"}, {"pattern": "^/-/"}]},
    },
    "folder": {"type": "string", "pattern": "^(?:/[^/:]+)+/?$"},
    "accountName": {"type": "string", "pattern": "^(?:[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?)?$", "maxLength": 253},
    "name": {"type": "string", "pattern": "^(?:[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)?$", "maxLength": 63},
    "port": {"type": "integer", "minimum": 1, "maximum": 65535},
    "matchers": {"type": "string", "pattern": rf"^\s*(?:{_MATCHER}(?:,\s*{_MATCHER})*,?\s*)?$"},
    "strings": {**_STRINGS, "propertyNames": {"pattern": _ANNOTATION_KEY}},
    "ruleLabels": {**_STRINGS, "propertyNames": {"pattern": _RULE_LABEL}},
    # The chart sets both of these: a second value would have no effect.
    "alertLabels": {
        **_STRINGS,
        "propertyNames": {"pattern": _RULE_LABEL, "not": {"enum": ["alertname", "severity"]}},
    },
    "quantities": {"type": "object", "additionalProperties": {"$ref": "k8s/Quantity"}},
    "labels": {
        "type": "object",
        "propertyNames": {"pattern": _LABEL_KEY},
        "additionalProperties": {"type": "string", "pattern": _LABEL},
    },
    "intOrPercent": {
        "anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": "^(?:(?:100|[0-9]{1,2})%)?$"},
        ]
    },
    "relabelings": {
        "type": "array",
        "items": _object(
            sourceLabels=_TEXTS,
            separator=_TEXT,
            targetLabel=_TEXT,
            regex=_TEXT,
            modulus={"type": "integer"},
            replacement=_TEXT,
            action={"enum": _ACTIONS},
        ),
    },
    "tlsConfig": _object(
        ca=_EITHER,
        cert=_EITHER,
        keySecret=_SELECTED,
        serverName=_TEXT,
        insecureSkipVerify={"type": "boolean"},
        minVersion={"enum": ["TLS10", "TLS11", "TLS12", "TLS13"]},
        maxVersion={"enum": ["TLS10", "TLS11", "TLS12", "TLS13"]},
        caFile=_TEXT,
        certFile=_TEXT,
        keyFile=_TEXT,
    ),
    "ruleGroups": {
        "type": "array",
        "items": _object(
            name=_TEXT,
            interval={"$ref": "optionalDuration"},
            query_offset={"$ref": "optionalDuration"},
            limit={"type": "integer", "minimum": 0},
            partial_response_strategy={"enum": ["abort", "warn"]},
            labels={"$ref": "ruleLabels"},
            rules={"type": "array", "items": _RULE},
        )
        | {"required": ["name", "rules"]},
    },
    "basicAuth": _object(username=_SELECTED, password=_SELECTED),
    "authorization": _object(type=_TEXT, credentials=_SELECTED),
}


@dataclass(slots=True)
class Value:
    """A key of values.yaml."""

    path: tuple[str, ...]
    default: Any
    heading: str
    sentence: str
    schema: Schema | None
    keys: list[Value] = field(default_factory=list)

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def is_alert(self) -> bool:
        return self.path[:-1] == ("prometheusRule", "alerts")

    @property
    def is_section(self) -> bool:
        section = isinstance(self.default, dict) and bool(self.default) and self.schema is None
        return section and not self.is_alert


class Kubernetes:
    """Kubernetes' types of the newest release that is known, and those that were asked for."""

    _GROUPS = ("api.core.v1", "api.apps.v1", "api.networking.v1", "apimachinery.pkg.api.resource")

    def __init__(self) -> None:
        version = kubernetes_validate.latest_version()
        schemas = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
        file = schemas / f"v{version}-local-strict" / "_definitions.json"
        self._types: dict[str, Schema] = json.loads(file.read_text())["$defs"]
        self.asked: dict[str, Schema] = {}

    def ref(self, kind: str) -> str:
        """A reference to the type of that name. Raises KeyError."""
        candidates = (f"io.k8s.{group}.{kind}" for group in self._GROUPS)
        name = kind if kind in self._types else next((c for c in candidates if c in self._types), kind)
        if name not in self.asked:
            self.asked[name] = {}  # types refer to themselves
            self.asked[name] = self._plain(self._types[name])
            if kind.endswith("Quantity"):
                self.asked[name] = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": _QUANTITY}]}
        return f"#/definitions/{name}"

    def _plain(self, node: Any) -> Any:
        """Without prose, and without null, which Kubernetes takes for anything and Helm for a deletion."""
        if isinstance(node, list):
            return [self._plain(each) for each in node]
        if not isinstance(node, dict):
            return node
        plain: Schema = {}
        for key, value in node.items():
            if key == "$ref":
                plain[key] = self.ref(value.rpartition("/")[2])
            elif key == "type" and isinstance(value, list):
                plain[key] = next(kind for kind in value if kind != "null")
            elif key == "properties":
                plain[key] = {name: self._plain(each) for name, each in value.items()}
            elif key != "description" and not key.startswith("x-"):
                plain[key] = self._plain(value)
        return plain


def values(text: str) -> list[Value]:
    """The keys of values.yaml, sections with theirs. Raises ValueError if one is not explained."""
    whole = Value((), yaml.safe_load(text), "", "", None)
    open_sections = [whole]
    heading, sentence, shape = "", "", None
    for line in text.splitlines():
        indent = (len(line) - len(line.lstrip())) // 2
        bare = line.strip()
        if bare.startswith("## "):
            heading = bare[3:]
        elif bare.startswith("# -- "):
            sentence, shape = bare[5:], None
        elif bare.startswith("# @schema "):
            shape = yaml.safe_load(bare[10:])
        elif bare.startswith("# ") and sentence:
            sentence += " " + bare[2:]
        elif found := re.match(r"([\w-]+):", bare):
            del open_sections[indent + 1 :]
            section, key = open_sections[-1], found[1]
            if indent == len(section.path) and (section is whole or section.is_section):
                value = Value((*section.path, key), section.default[key], heading, sentence, shape)
                _explained(value)
                section.keys.append(value)
                open_sections.append(value)
            sentence, shape = "", None
        elif not bare:
            sentence, shape = "", None
    return whole.keys


def _explained(value: Value) -> None:
    if not value.is_section and not value.sentence:
        raise ValueError(f"values.yaml: {value.name} has no sentence: write # -- ... above it")
    if value.default in ({}, []) and value.schema is None:
        raise ValueError(f"values.yaml: {value.name} is empty: write # @schema ... above it")


def values_schema(keys: list[Value]) -> Schema:
    """The whole of values.schema.json."""
    types = Kubernetes()
    properties = {value.path[-1]: _resolved(_schema(value), types) for value in keys}
    named = {name: _resolved(shape, types) for name, shape in _NAMED.items()}
    # pydantic's references are to the root.
    for models in [shape.pop("definitions") for shape in list(named.values()) if "definitions" in shape]:
        named |= models
    named["probe"] = _probe(types)
    secrets = {"type": ["array", "null"], "items": {"type": ["string", "object"]}}
    properties["enabled"] = {"type": ["boolean", "null"], "description": "Condition of a parent chart"}
    properties["global"] = {
        "type": ["object", "null"],
        "description": "What Helm passes to every chart of a release",
        "properties": {
            "imageRegistry": {"type": ["string", "null"], "pattern": f"^(?:{_REGISTRY})?$"},
            "imagePullSecrets": secrets,
        },
    }
    return {
        "$schema": schema.DRAFT,
        "type": "object",
        "additionalProperties": False,
        "properties": {key: _without_booleans(each) for key, each in properties.items()},
        "definitions": _without_booleans(dict(sorted((named | types.asked).items()))),
    }


def _without_booleans(node: Any) -> Any:
    """The schema, which refuses the keys `true` and `false` in every map whose keys are free."""
    if isinstance(node, list):
        return [_without_booleans(each) for each in node]
    if not isinstance(node, dict):
        return node
    strict = {key: _without_booleans(each) for key, each in node.items()}
    if isinstance(strict.get("additionalProperties"), dict) or "patternProperties" in strict:
        both = [each for each in (strict.get("propertyNames"), _NO_BOOLEANS) if each]
        strict["propertyNames"] = {"allOf": both} if len(both) > 1 else both[0]
    return strict


def _probe(types: Kubernetes) -> Schema:
    """A probe that can be switched off, and whose httpGet has its port from the chart."""
    probe, get = (types.asked[types.ref(kind).rpartition("/")[2]] for kind in ("Probe", "HTTPGetAction"))
    asking = {key: each for key, each in get.items() if key != "required"}
    own = {"enabled": {"type": "boolean"}, "httpGet": asking}
    return {**probe, "properties": probe["properties"] | own}


def _alert(default: dict[str, Any]) -> Schema:
    """An alert: what all have, and the thresholds that its default has."""
    duration, optional = {"$ref": "duration"}, {"$ref": "optionalDuration"}
    common = {
        "enabled": {"type": "boolean"},
        "severity": {"type": "string", "minLength": 1},
        "for": duration,
        "keepFiringFor": optional,
        "labels": {"$ref": "alertLabels"},
    }
    shapes: dict[type, Schema] = {
        str: {"$ref": "window"},
        float: {"type": "number", "minimum": 0, "maximum": 1},
        int: {"type": "number", "minimum": 0},
        list: {"$ref": "burnWindows"},
    }
    thresholds = {key: shapes[type(value)] for key, value in default.items() if key not in common}
    return _object(**common, **thresholds)


def _schema(value: Value) -> Schema:
    if value.is_section:
        keys = {each.path[-1]: _schema(each) for each in value.keys}
        return {"type": "object", "additionalProperties": False, "properties": keys}
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    shape = value.schema or {}
    if value.is_alert:
        shape = _alert(value.default)
    if not shape.keys() & {"$ref", "enum", "type", "anyOf"}:
        shape = {"type": kinds[type(value.default)], **shape}
    return {"description": value.sentence, **shape}


def _resolved(shape: Any, types: Kubernetes) -> Any:
    """With {$ref: config} and {$ref: k8s/Affinity} pointing to definitions."""
    if isinstance(shape, list):
        return [_resolved(each, types) for each in shape]
    if not isinstance(shape, dict):
        return shape
    resolved = {key: _resolved(each, types) for key, each in shape.items() if key != "$ref"}
    match shape.get("$ref"):
        case None:
            return resolved
        case str(ref) if ref.startswith("k8s/"):
            return resolved | {"$ref": types.ref(ref.removeprefix("k8s/"))}
        case str(ref) if ref.startswith("#/"):
            return resolved | {"$ref": ref}
        case str(ref) if ref in _NAMED or ref == "probe":
            return resolved | {"$ref": f"#/definitions/{ref}"}
        case ref:
            raise ValueError(
                f"values.yaml: {{$ref: {ref}}} is not known; helm/generate.py knows: {', '.join(_NAMED)}"
            )


def tables(keys: list[Value]) -> str:
    """The values as Markdown, one table a heading."""
    lines: list[str] = []
    heading = ""
    for value in _leaves(keys):
        if value.heading != heading:
            heading = value.heading
            lines += ["", f"### {heading}", "", "| value | default | |", "|---|---|---|"]
        default = json.dumps(value.default, ensure_ascii=False)
        cells = (f"`{value.name}`", f"`{default}`", value.sentence)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _leaves(keys: list[Value]) -> Iterator[Value]:
    for value in keys:
        if value.is_section:
            yield from _leaves(value.keys)
        else:
            yield value


def main(arguments: list[str]) -> int:
    keys = values((CHART / "values.yaml").read_text())
    readme = (CHART / "README.md").read_text()
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    made = {
        "values.schema.json": json.dumps(values_schema(keys), indent=1, ensure_ascii=False) + "\n",
        "README.md": f"{before}{BEGIN}\n{tables(keys)}\n{END}{after}",
    }
    paths = {CHART / name: text for name, text in made.items()}
    stale = [path for path, text in paths.items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in stale:
            sys.stderr.write(f"{path.name} is not what it should be: run make helm\n")
        return 1 if stale else 0
    for path in stale:
        path.write_text(paths[path])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
