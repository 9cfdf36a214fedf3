"""The commands of the runbooks: the shell reads them, AWS has them, and the labels of the alert fill them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.session
import jmespath  # type: ignore[import-untyped]
import pytest
import yaml
from botocore import xform_name
from support.alert_cases import CASES

RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks"
PAGES = sorted(RUNBOOKS.glob("*.md"))
#: The variables that labels of an alert fill.
LABELS = {
    "SOURCE_ACCOUNT": "source_registry_id",
    "SOURCE_REGION": "source_region",
    "ACCOUNT": "registry_id",
    "REGION": "region",
    "REPOSITORY": "repository",
    "DIGEST": "digest",
    "TAG": "tag",
}
#: Options of the command line itself.
GLOBAL = {"region", "query", "output", "max-items"}


def blocks(page: Path) -> list[str]:
    """The shell commands of a page, without the indentation of lists."""
    found = re.findall(r"^( *)```sh\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [re.sub(f"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def calls(block: str) -> Iterator[list[str]]:
    """The words of each call of AWS."""
    for line in block.replace("\\\n", " ").splitlines():
        for part in re.findall(r"(?:^|\s)aws (.*)", line):
            words = shlex.split(part)
            ends = (index for index, word in enumerate(words) if word in {"|", ">"} or word.endswith(";"))
            yield words[: next(ends, len(words))]


def titled(page: Path) -> str:
    return page.stem


@pytest.mark.parametrize("page", PAGES, ids=titled)
def test_the_shell_reads_each_command(page: Path) -> None:
    for block in blocks(page):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), block


@pytest.mark.parametrize("page", PAGES, ids=titled)
def test_aws_has_each_operation_and_option(page: Path) -> None:
    session = botocore.session.get_session()
    inline = re.findall(r"`aws ([a-z].* --[^`]*)`", page.read_text())
    found = [*(call for block in blocks(page) for call in calls(block)), *map(shlex.split, inline)]
    for service, operation, *words in found:
        if operation == "get-login-password":  # made by the command line, not by AWS
            continue
        model = session.get_service_model(service)
        names = {xform_name(name, "-"): name for name in model.operation_names}
        shape = model.operation_model(names[operation]).input_shape
        assert shape
        members = {xform_name(name, "-"): name for name in shape.members}
        options = {word.removeprefix("--") for word in words if word.startswith("--")}
        assert options <= members.keys() | GLOBAL, (service, operation)
        assert {xform_name(name, "-") for name in shape.required_members} <= options, (service, operation)
        assert service in {"iam", "sts", "account"} or "region" in options, (service, operation)


@pytest.mark.parametrize("page", PAGES, ids=titled)
def test_each_query_of_an_answer_is_one_of_jmespath(page: Path) -> None:
    for call in (call for block in blocks(page) for call in calls(block) if "--query" in call):
        query = call[call.index("--query") + 1]
        assert jmespath.compile(query).parsed, query
        # As text, each page of an answer is sorted alone.
        assert "sort" not in query or "text" not in call


def test_the_runbooks_have_calls_of_many_kinds() -> None:
    operations = {call[1] for page in PAGES for block in blocks(page) for call in calls(block)}
    assert operations >= {
        "describe-image-replication-status",
        "describe-images",
        "get-registry-policy",
        "list-replication-backfills",
        "lookup-events",
        "put-registry-policy",
        "start-replication-backfill",
    }


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "README"], ids=titled)
def test_the_labels_of_the_alert_fill_the_variables(page: Path) -> None:
    text, code = page.read_text(), "\n".join(blocks(page))
    set_here = set(re.findall(r"(?:^|\s|for )([A-Z_]{3,})(?:=| in )", code, re.MULTILINE))
    used = set(re.findall(r"\$\{?([A-Z_]+)", text))
    explained = set(re.findall(r"`([A-Z_]+)`", text))
    assert used <= set_here | explained
    labels = {label for case in CASES if case.alert == page.stem for label in case.labels}
    if "from the label" in text:
        assert {LABELS[name] for name in set_here & LABELS.keys()} <= labels


def test_the_examples_have_the_units_and_services_of_the_commands() -> None:
    examples = RUNBOOKS.parents[1] / "examples"
    services = yaml.safe_load((examples / "compose.yaml").read_text())["services"]
    units = {unit.stem for unit in (examples / "systemd").iterdir()}
    code = "\n".join(block for page in PAGES for block in blocks(page))
    composed = re.findall(r"docker compose .* (\S+)$", code, re.MULTILINE)
    managed = re.findall(r"(?:systemctl status|journalctl --unit) (\S+)", code)
    assert len(composed) > 1 < len(managed)
    assert (set(composed) - services.keys(), set(managed) - units) == (set(), set())


def test_the_labels_of_an_alert_become_variables(command: Callable[[str, str], str]) -> None:
    jq = command("jq", "jq")
    (program,) = re.findall(r"jq -r '(.*?)'", blocks(RUNBOOKS / "README.md")[0], re.DOTALL)
    labels = {label: f"it's {label}" for label in LABELS.values()} | {"alertname": "ECRReplicationFailed"}
    bare = {"alertname": "ECRReplicationExporterAbsent"}
    alerts = json.dumps([{"labels": labels}, {"labels": bare}])
    printed = subprocess.run([jq, "-r", program], input=alerts, capture_output=True, text=True, check=True)
    first, second = printed.stdout.splitlines()
    assert second.endswith("# ECRReplicationExporterAbsent")
    variables = " ".join(f'"${name}"' for name in LABELS)
    script = f"{first}\nprintf '%s\\n' {variables}"
    values = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert values.stdout.splitlines() == [f"it's {label}" for label in LABELS.values()]


@pytest.mark.parametrize("there", [[], {"Sid": "One", "Effect": "Deny"}, [{"Sid": "One"}, {"Sid": "Two"}]])
def test_a_registry_policy_keeps_its_statements_and_allows_the_source(
    there: object, tmp_path: Path, command: Callable[[str, str], str]
) -> None:
    command("jq", "jq")
    (tmp_path / "policy.json").write_text(json.dumps({"Version": "2012-10-17", "Statement": there}))
    block = next(block for block in blocks(RUNBOOKS / "README.md") if "put-registry-policy" in block)
    script = f"aws() {{ :; }}; SOURCE_ACCOUNT=111122223333 ACCOUNT=444455556666 REGION=eu-west-1\n{block}"
    subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, capture_output=True, check=True)
    *kept, added = json.loads((tmp_path / "allowed.json").read_text())["Statement"]
    assert kept == (there if isinstance(there, list) else [there])
    assert added == {
        "Sid": "ReplicationFrom111122223333",
        "Effect": "Allow",
        "Principal": {"AWS": "arn:aws:iam::111122223333:root"},
        "Action": ["ecr:CreateRepository", "ecr:ReplicateImage"],
        "Resource": "arn:aws:ecr:eu-west-1:444455556666:repository/*",
    }
