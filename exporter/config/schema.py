"""The configuration as JSON Schema, for editors and for the Helm chart: `python -m exporter.config.schema`.

pydantic makes it from the models. Only the exporter compares values: names that refer to each other, labels,
intervals, versions of TLS.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from exporter.config.settings import Settings
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


def of(kind: Any) -> Schema:
    """The schema of a model or type, with "definitions" for "$defs", to be moved to the root of another."""
    made = TypeAdapter(kind).json_schema(ref_template="#/definitions/{model}", schema_generator=_Generator)
    definitions = made.pop("$defs", {})
    made.pop("title", None)
    return made | ({"definitions": definitions} if definitions else {})


if __name__ == "__main__":
    json.dump({"$schema": DRAFT, **of(Settings), "title": "ecr-replication-exporter"}, sys.stdout, indent=2)
    sys.stdout.write("\n")
