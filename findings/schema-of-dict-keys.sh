#!/bin/sh
# Does the JSON schema that pydantic makes of a mapping with restricted keys refuse what the model refuses?
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install pydantic==2.14.4 jsonschema==4.23.0
"$folder/venv/bin/python" - <<'PYTHON'
from typing import Annotated
import jsonschema
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Account = Annotated[str, Field(pattern="^[0-9]{12}$")]

class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    roles: dict[Account, str]

def accepted(value):
    try:
        Config.model_validate(value)
        return True
    except ValidationError:
        return False

schema = Config.model_json_schema()
print("pydantic 2.14.4:", schema["properties"]["roles"])
seen = {}
for name, roles in {"right": {"111122223333": "reader"}, "short key": {"11112222333": "reader"}, "any key": {"role": [1, 2]}}.items():
    valid = jsonschema.Draft202012Validator(schema).is_valid({"roles": roles})
    seen[name] = (accepted({"roles": roles}), valid)
    print(f"{name}: accepted by the model {seen[name][0]}, by its schema {valid}")
raise SystemExit(seen != {"right": (True, True), "short key": (False, True), "any key": (False, True)})
PYTHON
