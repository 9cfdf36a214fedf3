"""Reads the Terraform and CloudFormation examples without Terraform and AWS."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hcl2
import yaml

EXAMPLES = Path(__file__).parents[2] / "examples"


def terraform(module: str) -> dict[str, dict[str, Any]]:
    """The blocks of a module by kind and address: `["resource"]["aws_iam_role.exporter"]`.

    An expression stays as `${...}`.
    """
    parsed = _unquoted(hcl2.loads((EXAMPLES / "terraform" / module / "main.tf").read_text()))
    return {
        block: {
            f"{kind}.{name}": body
            for each in parsed[block]
            for kind, named in each.items()
            for name, body in named.items()
            if isinstance(body, dict)
        }
        for block in ("resource", "data")
    }


def jsonencoded(expression: str) -> Any:
    """The argument of `${jsonencode(...)}`."""
    found = re.fullmatch(r"\$\{jsonencode\((.*)\)\}", expression, re.DOTALL)
    assert found, expression
    return _unquoted(hcl2.loads(f"value = {found[1]}\n"))["value"]


def _unquoted(parsed: Any) -> Any:
    """What hcl2 parsed, without the quotes that it leaves around strings."""
    if isinstance(parsed, dict):
        return {_unquoted(key): _unquoted(value) for key, value in parsed.items()}
    if isinstance(parsed, list):
        return [_unquoted(each) for each in parsed]
    return parsed.removeprefix('"').removesuffix('"') if isinstance(parsed, str) else parsed


def cloudformation(template: str, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A template with its functions evaluated. A reference without a value is the name that it refers to."""
    known = values or {}
    functions: Mapping[str, Callable[[Any], Any]] = {
        "Ref": lambda name: known.get(name, name),
        "GetAtt": lambda name: known.get(name, name),
        "Sub": lambda text: re.sub(r"\$\{([^}]+)\}", lambda name: known.get(name[1], name[0]), text),
        "Split": lambda argument: argument[1].split(argument[0]),
        "Select": lambda argument: argument[1][argument[0]],
    }

    class Loader(yaml.SafeLoader):
        pass

    def call(loader: Any, name: str, node: yaml.Node) -> Any:
        sequence = isinstance(node, yaml.SequenceNode)
        argument = loader.construct_sequence(node, deep=True) if sequence else loader.construct_scalar(node)
        return functions[name](argument) if name in functions else argument

    Loader.add_multi_constructor("!", call)
    made: dict[str, Any] = yaml.load((EXAMPLES / "cloudformation" / template).read_text(), Loader)
    return made
