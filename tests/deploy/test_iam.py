"""The policy we hand out grants what the client calls, and nothing that changes or pulls anything."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from support.infrastructure import cloudformation, terraform

from exporter.aws.ecr import OPERATIONS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TERRAFORM = ROOT / "examples" / "terraform"
CLOUDFORMATION = sorted((ROOT / "examples" / "cloudformation").iterdir())
STATEMENTS = json.loads((DOCS / "iam-policy.json").read_text())["Statement"]
#: The policy of the role that reads destinations in another account.
AT_DESTINATIONS = json.loads((DOCS / "iam-policy-destination.json").read_text())["Statement"]
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
    first, second = GUIDE.split("\n## Destinations\n")
    for section, statements in ((first, STATEMENTS), (second, AT_DESTINATIONS)):
        table = "".join(line for line in section.splitlines() if line.startswith("| `ecr:"))
        assert set(re.findall("ecr:([A-Za-z]+)", table)) == granted(statements)


@pytest.mark.parametrize("policy", EXAMPLES)
def test_the_guides_policies_are_policies(policy: dict[str, Any]) -> None:
    assert policy["Version"] == "2012-10-17"
    assert all({"Effect", "Action"} <= statement.keys() for statement in policy["Statement"])


def test_a_repository_policy_grants_what_is_about_repositories() -> None:
    (statement,) = [s for policy in EXAMPLES for s in policy["Statement"] if "Sid" in s]
    assert granted([statement]) == granted(STATEMENTS) - ON_THE_REGISTRY


def test_the_terraform_example_grants_the_same_policy() -> None:
    text = (TERRAFORM / "main.tf").read_text()
    assert len(terraform(".")["resource"]) == 3
    granted = re.findall(r'file\("\$\{path\.module\}/([^"]+)"\)', text)
    assert [(TERRAFORM / name).resolve() for name in granted] == [DOCS / "iam-policy.json"]


# -- the reader role of a destination's account -----------------------------------------------------


def test_a_reader_of_destinations_may_look_at_images_and_repositories_only() -> None:
    assert granted(AT_DESTINATIONS) == {"DescribeImages", "DescribeRepositories"}
    assert [statement["Resource"] for statement in AT_DESTINATIONS] == ["arn:aws:ecr:*:*:repository/*"]


@pytest.mark.parametrize("template", CLOUDFORMATION, ids=lambda path: path.name)
def test_cfn_lint_accepts_the_template(template: Path) -> None:
    cfn_lint = Path(sys.executable).parent / "cfn-lint"
    strict = ("--non-zero-exit-code", "informational", "--template")
    done = subprocess.run([cfn_lint, *strict, template], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_cloudformation_role_is_for_the_exporter_with_the_external_id_only() -> None:
    (role,) = cloudformation("destination-reader.yaml")["Resources"].values()
    (trust,) = role["Properties"]["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"AWS": "ExporterRoleArn"}
    assert trust["Action"] == "sts:AssumeRole"
    assert trust["Condition"] == {"StringEquals": {"sts:ExternalId": "ExternalId"}}
    (policy,) = role["Properties"]["Policies"]
    (statement,) = policy["PolicyDocument"]["Statement"]
    assert granted([statement]) == granted(AT_DESTINATIONS)
    assert statement["Resource"] == (
        "arn:${AWS::Partition}:ecr:*:${AWS::AccountId}:repository/${RepositoryPattern}"
    )
    assert "ManagedPolicyArns" not in role["Properties"]


def test_the_terraform_role_is_for_the_exporter_with_the_external_id_only() -> None:
    made = terraform("destination-reader")
    (trust,) = made["data"]["aws_iam_policy_document.trust"]["statement"]
    assert trust["actions"] == ["sts:AssumeRole"]
    assert [who["identifiers"] for who in trust["principals"]] == [["${var.exporter_role_arn}"]]
    assert [(each["variable"], each["values"]) for each in trust["condition"]] == [
        ("sts:ExternalId", ["${var.external_id}"])
    ]
    (statement,) = made["data"]["aws_iam_policy_document.replicas"]["statement"]
    assert granted([{"Action": statement["actions"]}]) == granted(AT_DESTINATIONS)
    (resource,) = statement["resources"]
    assert resource.startswith("arn:${data.aws_partition.this.partition}:ecr:*:")
    assert resource.endswith(":repository/${var.repository_pattern}")
    attached = made["resource"]
    assert attached.keys() == {"aws_iam_role.reader", "aws_iam_role_policy.replicas"}
    assert attached["aws_iam_role.reader"]["assume_role_policy"] == (
        "${data.aws_iam_policy_document.trust.json}"
    )
    assert attached["aws_iam_role_policy.replicas"]["policy"] == (
        "${data.aws_iam_policy_document.replicas.json}"
    )
