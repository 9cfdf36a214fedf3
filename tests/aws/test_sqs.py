"""The queue client against moto's SQS, by the real boto3."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.embedded_aws import EmbeddedAWS, Garbage, Hang, json_answer

from exporter.aws.connector import AwsConnector
from exporter.aws.errors import ECRError
from exporter.aws.sqs import BATCH, BotoQueueClient, Message, arn_of, endpoint_of
from exporter.config.settings import RegistrySettings
from exporter.config.validators import queue_region
from exporter.demo.aws import ACCOUNT
from exporter.demo.ecr import Call
from exporter.demo.registries import Refuse
from exporter.replication.model import Reason

REGION = "eu-west-1"


@pytest.fixture
def aws() -> Iterator[EmbeddedAWS]:
    with EmbeddedAWS() as aws:
        yield aws


def client_of(aws: EmbeddedAWS, url: str, *, read_timeout: float = 10.0) -> BotoQueueClient:
    connector = AwsConnector(session=aws.session, endpoint_url=aws.endpoint_url, read_timeout=read_timeout)
    return connector.queue(RegistrySettings(region="us-east-1"), url)


def failure(client: BotoQueueClient) -> ECRError:
    with pytest.raises(ECRError) as caught:
        client.receive()
    return caught.value


def test_messages_are_received_until_they_are_deleted(aws: EmbeddedAWS) -> None:
    client = client_of(aws, aws.add_queue("events", region=REGION))
    aws.create_repository(ACCOUNT, REGION, "team/app")
    for number in range(BATCH + 2):
        aws.push(ACCOUNT, REGION, "team/app", f"v{number}")
    assert client.waiting() == BATCH + 2
    first = client.receive()
    assert len(first) == BATCH
    second = client.receive()
    assert len(second) == 2
    assert not {message.handle for message in first} & {message.handle for message in second}
    assert all('"detail-type": "ECR Image Action"' in message.body for message in (*first, *second))
    client.delete(first)
    client.delete(second)
    assert client.waiting() == 0
    client.delete([*first[:1], Message("", "unknown handle")])


def test_the_calls_go_to_the_region_of_the_queue_and_to_its_account(aws: EmbeddedAWS) -> None:
    client = client_of(aws, aws.add_queue("events", region=REGION))
    client.waiting()
    assert aws.count("GetQueueAttributes", region=REGION) == 1


def test_an_empty_queue_is_no_error(aws: EmbeddedAWS) -> None:
    client = client_of(aws, aws.add_queue("events"))
    aws.fault = lambda call: json_answer({}) if call.operation == "ReceiveMessage" else None
    assert client.receive() == ()


def test_a_queue_that_does_not_exist_is_invalid(aws: EmbeddedAWS) -> None:
    error = failure(client_of(aws, f"https://sqs.us-east-1.amazonaws.com/{ACCOUNT}/gone"))
    assert error.reason is Reason.INVALID
    assert "does not exist" in str(error)


@pytest.mark.parametrize(
    ("fault", "reason", "everything"),
    [
        (Refuse(403, "AccessDenied", "no"), Reason.ACCESS_DENIED, False),
        (Refuse(403, "ExpiredToken", "late"), Reason.ACCESS_DENIED, True),
        (Refuse(400, "RequestThrottled", "slow down"), Reason.THROTTLED, False),
        (
            Refuse(400, "KmsAccessDenied", "not authorized to perform: kms:Decrypt"),
            Reason.ACCESS_DENIED,
            False,
        ),
        (Refuse(400, "KMS.AccessDeniedException", "no"), Reason.ACCESS_DENIED, False),
        (Refuse(400, "KmsThrottled", "slow down"), Reason.THROTTLED, False),
        (Refuse(400, "OverLimit", "too many in flight"), Reason.INVALID, False),
        (Refuse(500, "InternalError", "oops"), Reason.UNAVAILABLE, False),
        (Garbage(b"<html>", status=502), Reason.UNAVAILABLE, False),
        (json_answer({"Messages": [{"Body": "x"}]}), Reason.UNAVAILABLE, False),
        (json_answer({"Messages": [{"Body": ["x"], "ReceiptHandle": "h"}]}), Reason.UNAVAILABLE, False),
        (json_answer({"Messages": "x"}), Reason.UNAVAILABLE, False),
    ],
    ids=str,
)
def test_what_sqs_refuses_or_garbles(
    aws: EmbeddedAWS, fault: Refuse | Garbage, reason: Reason, everything: bool
) -> None:
    client = client_of(aws, aws.add_queue("events"))
    aws.fault = lambda call: fault if call.operation == "ReceiveMessage" else None
    error = failure(client)
    assert (error.reason, error.everything) == (reason, everything)
    assert error.action == "sqs:ReceiveMessage"


def test_a_poll_that_hangs_ends(aws: EmbeddedAWS) -> None:
    client = client_of(aws, aws.add_queue("events"), read_timeout=0.2)

    def fault(call: Call) -> Hang | None:
        return Hang(30.0) if call.operation == "ReceiveMessage" else None

    aws.fault = fault
    assert failure(client).reason is Reason.UNAVAILABLE
    assert aws.count("ReceiveMessage") == 1, "an abandoned poll takes messages, so it is not made again"


@pytest.mark.parametrize(
    ("url", "region", "endpoint"),
    [
        ("https://sqs.us-east-1.amazonaws.com/1/q", "us-east-1", None),
        ("https://sqs.cn-north-1.amazonaws.com.cn/1/q", "cn-north-1", None),
        (
            "https://sqs-fips.us-east-1.amazonaws.com/1/q",
            "us-east-1",
            "https://sqs-fips.us-east-1.amazonaws.com",
        ),
        ("https://eu-west-1.queue.amazonaws.com/1/q", "eu-west-1", "https://eu-west-1.queue.amazonaws.com"),
        (
            "https://sqs.us-east-1.amazonaws.com:8443/1/q",
            "us-east-1",
            "https://sqs.us-east-1.amazonaws.com:8443",
        ),
        ("http://localhost:4566/1/q", None, "http://localhost:4566"),
    ],
)
def test_region_and_endpoint_are_those_of_the_url(url: str, region: str | None, endpoint: str | None) -> None:
    assert queue_region(url) == region
    assert endpoint_of(url) == endpoint


def test_the_arn_is_that_of_the_url() -> None:
    arn = arn_of("http://localhost:4566/111122223333/q", partition="aws", region="us-east-1")
    assert arn == "arn:aws:sqs:us-east-1:111122223333:q"
