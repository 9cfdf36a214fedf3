"""The snippets of docs/pipelines.md: each is well formed, and its command line is accepted."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.cli import parse

GUIDE = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text()
#: A variable of a shell, of Jenkins or of Argo.
VARIABLE = re.compile(r"\{\{.*?\}\}|\$\{[\w.]+\}|\$\w+")


def snippets(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)
    assert found, language
    return found


def texts(node: Any) -> Iterator[str]:
    """The command lines in a snippet: those of scripts, and lists of arguments."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from [shlex.join(map(str, value))] if key == "args" else texts(value)
    elif isinstance(node, list):
        for each in node:
            yield from texts(each)
    elif isinstance(node, str):
        yield node


def command_lines() -> list[list[str]]:
    """The arguments from `wait` or `check` on, up to a redirection or the end of a string or line."""
    lines = [*snippets("console"), *snippets("groovy")]
    lines += [text for snippet in snippets("yaml") for text in texts(yaml.safe_load(snippet))]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = re.findall(r"(?:exporter|IMAGE\"|^) ?((?:wait|check) [^\n>]*)", joined, re.MULTILINE)
    return [shlex.split(line.partition('")')[0]) for line in found]


def filled(argument: str) -> str:
    digest = f"sha256:{'0' * 64}"
    return VARIABLE.sub(digest if "@" in argument else "v1", argument)


def test_every_command_line_is_accepted() -> None:
    lines = command_lines()
    assert [line[0] for line in lines].count("wait") == 5
    for line in lines:
        flags = parse([filled(argument) for argument in line])
        assert flags.command == line[0]


def test_the_table_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["wait", "--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    section = GUIDE.partition("## Permissions")[0]
    rows = "".join(line for line in section.splitlines() if line.startswith("| `--"))
    assert set(re.findall(r"--[a-z-]+", rows)) == options


@pytest.mark.parametrize("policy", snippets("json"))
def test_the_policy_grants_what_wait_calls(policy: str) -> None:
    actions = [s["Action"] for s in json.loads(policy)["Statement"]]
    assert actions == ["ecr:DescribeRegistry", ["ecr:DescribeImages", "ecr:DescribeImageReplicationStatus"]]
