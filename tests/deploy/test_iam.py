"""The policy we hand out grants what the client calls, and nothing that changes or pulls anything."""

import json
import re
from pathlib import Path
from typing import Any

import botocore.session
import hcl2
import pytest

from exporter.aws.ecr import OPERATIONS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
STATEMENTS = json.loads((DOCS / "iam-policy.json").read_text())["Statement"]
GUIDE = (DOCS / "iam.md").read_text()
EXAMPLES = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)]
#: Calls that are about the registry as a whole: IAM knows no narrower resource for them.
ON_THE_REGISTRY = {"DescribeRegistry", "ListReplicationBackfills", "DescribeReplicationBackfillResults"}


def granted(statements: list[dict[str, Any]]) -> set[str]:
    actions = [action for statement in statements for action in statement["Action"]]
    assert all(action.startswith("ecr:") for action in actions)
    return {action.removeprefix("ecr:") for action in actions}


def test_all_that_the_gate_calls_is_granted() -> None:
    assert set(OPERATIONS) <= granted(STATEMENTS)


def test_every_action_exists() -> None:
    service = botocore.session.get_session().get_service_model("ecr")
    assert granted(STATEMENTS) <= set(service.operation_names)


def test_the_exporter_may_only_look() -> None:
    assert all(re.match("Describe|List", action) for action in granted(STATEMENTS))
    assert "BatchGetImage" not in OPERATIONS


def test_only_what_has_no_repository_is_granted_on_everything() -> None:
    anywhere = [statement for statement in STATEMENTS if statement["Resource"] == "*"]
    assert granted(anywhere) == ON_THE_REGISTRY


def test_the_guide_explains_every_action() -> None:
    table = "".join(line for line in GUIDE.splitlines() if line.startswith("| `ecr:"))
    assert set(re.findall("ecr:([A-Za-z]+)", table)) == granted(STATEMENTS)


@pytest.mark.parametrize("policy", EXAMPLES)
def test_the_guides_policies_are_policies(policy: dict[str, Any]) -> None:
    assert policy["Version"] == "2012-10-17"
    assert all({"Effect", "Action"} <= statement.keys() for statement in policy["Statement"])


def test_a_repository_policy_grants_what_is_about_repositories() -> None:
    (statement,) = [s for policy in EXAMPLES for s in policy["Statement"] if "Sid" in s]
    assert granted([statement]) == granted(STATEMENTS) - ON_THE_REGISTRY


def test_the_terraform_example_grants_the_same_policy() -> None:
    folder = ROOT / "examples" / "terraform"
    text = (folder / "main.tf").read_text()
    assert len(hcl2.loads(text)["resource"]) == 3
    granted = re.findall(r'file\("\$\{path\.module\}/([^"]+)"\)', text)
    assert [(folder / name).resolve() for name in granted] == [DOCS / "iam-policy.json"]
