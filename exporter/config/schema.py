"""The configuration as JSON Schema, for editors and for the Helm chart: `python -m exporter.config.schema`.

pydantic makes it from the models. Only the exporter checks names that refer to each other, and intervals
that depend on each other.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from exporter.config import settings as config
from exporter.config import web as web_config
from exporter.config.validators import format_duration

Schema = dict[str, Any]

#: The draft that every Helm and editor knows.
DRAFT = "http://json-schema.org/draft-07/schema#"


class _Generator(GenerateJsonSchema):
    """Draft 7. A key may be left out, but null is not a value of it."""

    def nullable_schema(self, schema: Any) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> JsonSchemaValue:
        inner, default = self.generate_inner(schema["schema"]), schema.get("default")
        if isinstance(default, float) and inner["type"] == "string":
            return inner | {"default": format_duration(default)}
        return inner | ({"default": default} if isinstance(default, int | float) else {})

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


def settings() -> Schema:
    """The schema of `--config.file`."""
    return _of(config.adapter())


def web() -> Schema:
    """The schema of `--web.config.file`."""
    return _of(web_config.adapter())


def of(kind: Any) -> Schema:
    """The schema of one of the types of validators.py."""
    return _of(TypeAdapter(kind))


def _of(adapter: TypeAdapter[Any]) -> Schema:
    """With "definitions" for "$defs", to be moved to the root of a greater schema."""
    made = adapter.json_schema(ref_template="#/definitions/{model}", schema_generator=_Generator)
    definitions = made.pop("$defs", {})
    made.pop("title", None)
    return made | ({"definitions": definitions} if definitions else {})


if __name__ == "__main__":
    json.dump({"$schema": DRAFT, **settings(), "title": "ecr-replication-exporter"}, sys.stdout, indent=2)
    sys.stdout.write("\n")
