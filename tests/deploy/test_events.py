"""The examples for the events queue: the events that matter reach the queue, the others do not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from moto.events.models import EventPattern
from support.infrastructure import cloudformation, jsonencoded, terraform

DOCS = Path(__file__).parents[2] / "docs"
ACCOUNT = "111122223333"
SOURCE, DESTINATION = "us-east-1", "eu-west-1"
BUS = f"arn:aws:events:{SOURCE}:{ACCOUNT}:event-bus/ecr-events"
QUEUE = f"arn:aws:sqs:{SOURCE}:{ACCOUNT}:ecr-events"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/ecr-replications-{DESTINATION}"
AT_SOURCE = cloudformation(
    "events.yaml",
    {"Name": "ecr-events", "AWS::AccountId": ACCOUNT, "Queue.Arn": QUEUE, "Bus": "ecr-events"},
)["Resources"]
AT_DESTINATION = cloudformation(
    "events-destination.yaml", {"AWS::AccountId": ACCOUNT, "EventBusArn": BUS, "Sender.Arn": ROLE}
)["Resources"]


class Event(NamedTuple):
    """What AWS sends, in which Region. Shapes: Amazon ECR User Guide, "Sample events from Amazon ECR"."""

    region: str
    kind: str
    detail: Mapping[str, Any]


def image(action: str) -> Event:
    detail = {"result": "SUCCESS", "action-type": action, "repository-name": "team/app", "image-tag": "v1"}
    return Event(SOURCE, "ECR Image Action", {**detail, "image-digest": "sha256:" + "0" * 64})


def replication(**detail: str) -> Event:
    source = {"source-account": ACCOUNT, "source-region": SOURCE}
    whole = {**image("REPLICATE").detail, **source, **detail}
    return Event(DESTINATION, "ECR Replication Action", whole)


def api_call(name: str, **more: str) -> Event:
    detail = {"eventSource": "ecr.amazonaws.com", "eventName": name, **more}
    return Event(DESTINATION, "AWS API Call via CloudTrail", detail)


USED = (
    image("PUSH"),
    image("DELETE"),
    image("UPDATE_STORAGE_CLASS"),
    replication(),
    replication(result="FAILED"),
    image("DELETE")._replace(region=DESTINATION),
    image("UPDATE_STORAGE_CLASS")._replace(region=DESTINATION),
    api_call("ReplicateImage", errorCode="AccessDenied"),
)
NOT_USED = (
    Event(SOURCE, "ECR Image Scan", {"scan-status": "COMPLETE", "repository-name": "team/app"}),
    Event(SOURCE, "ECR Pull Through Cache Action", {"sync-status": "SUCCESS"}),
    image("PUSH")._replace(region=DESTINATION),
    replication(**{"source-account": "999900001111"}),
    replication(**{"source-region": "us-west-2"}),
    api_call("ReplicateImage"),
    api_call("PutImage", errorCode="AccessDenied"),
)


def of_type(resources: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    return [each["Properties"] for each in resources.values() if each["Type"] == kind]


def delivered(event: Event, resources: Mapping[str, Any], bus: str = "default") -> list[str]:
    """The ARNs to which the rules of a bus send the event. moto decides which patterns match."""
    sent: Any = {
        "source": "aws.ecr",
        "account": ACCOUNT,
        "region": event.region,
        "detail-type": event.kind,
        "detail": event.detail,
    }
    return [
        target["Arn"]
        for rule in of_type(resources, "AWS::Events::Rule")
        if rule.get("EventBusName", "default") == bus
        and EventPattern(None, rule["EventPattern"]).matches_event(sent)
        for target in rule["Targets"]
    ]


@pytest.mark.parametrize("event", [each for each in USED if each.region == SOURCE], ids=str)
def test_an_event_of_the_source_reaches_the_queue(event: Event) -> None:
    assert delivered(event, AT_SOURCE) == [QUEUE]


@pytest.mark.parametrize("event", [each for each in USED if each.region == DESTINATION], ids=str)
def test_an_event_of_a_destination_reaches_the_queue_over_the_bus(event: Event) -> None:
    assert delivered(event, AT_DESTINATION) == [BUS]
    assert delivered(event, AT_SOURCE, "ecr-events") == [QUEUE]


@pytest.mark.parametrize("event", NOT_USED, ids=str)
def test_no_other_event_goes_anywhere(event: Event) -> None:
    assert delivered(event, AT_SOURCE if event.region == SOURCE else AT_DESTINATION) == []


def test_a_target_on_a_bus_elsewhere_has_a_role_and_a_queue_has_none() -> None:
    """EventBridge requires the role for a bus. For an encrypted queue it says to leave the role out."""
    for rule in of_type(AT_DESTINATION, "AWS::Events::Rule"):
        assert [target["RoleArn"] for target in rule["Targets"]] == [ROLE]
    for rule in of_type(AT_SOURCE, "AWS::Events::Rule"):
        assert not any("RoleArn" in target for target in rule["Targets"])


def test_only_the_rules_may_send_to_the_queue() -> None:
    (policy,) = of_type(AT_SOURCE, "AWS::SQS::QueuePolicy")
    (statement,) = policy["PolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "events.amazonaws.com"}
    assert statement["Action"] == "sqs:SendMessage"
    assert statement["Condition"] == {"ArnEquals": {"aws:SourceArn": ["Pushes.Arn", "Replications.Arn"]}}


def test_the_reader_may_do_what_the_policy_of_the_docs_says() -> None:
    (statement,) = json.loads((DOCS / "iam-policy-events.json").read_text())["Statement"]
    (reader,) = of_type(AT_SOURCE, "AWS::IAM::RolePolicy")
    (granted,) = reader["PolicyDocument"]["Statement"]
    assert granted == {**statement, "Resource": QUEUE}
    (in_terraform,) = terraform("events")["data"]["aws_iam_policy_document.reader"]["statement"]
    assert in_terraform["actions"] == statement["Action"]


def test_the_sender_may_only_put_events_on_the_bus_of_the_source() -> None:
    (role,) = of_type(AT_DESTINATION, "AWS::IAM::Role")
    (policy,) = role["Policies"]
    (statement,) = policy["PolicyDocument"]["Statement"]
    assert (statement["Action"], statement["Resource"]) == ("events:PutEvents", BUS)
    (in_terraform,) = terraform("events-destination")["data"]["aws_iam_policy_document.sender"]["statement"]
    assert in_terraform["actions"] == ["events:PutEvents"]
    assert in_terraform["resources"] == ["${var.event_bus_arn}"]


# -- Terraform: the same as CloudFormation -------------------------------------------------------------

VALUES = {
    "${data.aws_caller_identity.this.account_id}": ACCOUNT,
    "${local.source_account}": ACCOUNT,
    "${local.source_region}": SOURCE,
}


def evaluated(pattern: Any) -> Any:
    """The pattern with values for expressions, whether they stand alone or in `jsonencode`."""
    if isinstance(pattern, dict):
        return {key: evaluated(value) for key, value in pattern.items()}
    if isinstance(pattern, list):
        return [evaluated(each) for each in pattern]
    return VALUES.get(pattern, pattern)


@pytest.mark.parametrize(
    ("module", "resources"), [("events", AT_SOURCE), ("events-destination", AT_DESTINATION)]
)
def test_terraform_has_the_same_event_patterns(module: str, resources: Mapping[str, Any]) -> None:
    rules = [
        body
        for address, body in terraform(module)["resource"].items()
        if address.startswith("aws_cloudwatch_event_rule.")
    ]
    patterns = [
        (
            evaluated(jsonencoded(rule["event_pattern"])),
            "event_bus_name" in rule,
        )
        for rule in rules
    ]
    assert patterns == [
        (rule["EventPattern"], "EventBusName" in rule) for rule in of_type(resources, "AWS::Events::Rule")
    ]


def test_terraform_makes_a_queue_like_that_of_cloudformation_for_each_shard() -> None:
    made = terraform("events")
    queue, template = made["resource"]["aws_sqs_queue.events"], AT_SOURCE["Queue"]["Properties"]
    assert queue["message_retention_seconds"] == template["MessageRetentionPeriod"]
    assert queue["receive_wait_time_seconds"] == template["ReceiveMessageWaitTimeSeconds"]
    assert (queue["sqs_managed_sse_enabled"], template["SqsManagedSseEnabled"]) == (True, True)
    of_shards = {name for name, body in made["resource"].items() if body.get("count") == "${var.shards}"}
    assert of_shards == {
        "aws_sqs_queue.events",
        "aws_sqs_queue_policy.events",
        "aws_cloudwatch_event_rule.pushes",
        "aws_cloudwatch_event_target.pushes",
        "aws_cloudwatch_event_rule.replications",
        "aws_cloudwatch_event_target.replications",
    }
    (statement,) = made["data"]["aws_iam_policy_document.queue"]["statement"]
    assert statement["actions"] == ["sqs:SendMessage"]
    (condition,) = statement["condition"]
    assert (condition["test"], condition["variable"]) == ("ArnEquals", "aws:SourceArn")
    assert condition["values"] == [
        "${aws_cloudwatch_event_rule.pushes[count.index].arn}",
        "${aws_cloudwatch_event_rule.replications[count.index].arn}",
    ]
