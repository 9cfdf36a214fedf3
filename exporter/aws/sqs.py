"""Calls to one SQS queue: what waits in it, and that it was dealt with.

The queue need not be in the account and Region of the registry whose events it holds. botocore does not take
the Region and the host of a call from the queue's URL (botocore 1.44.8), so they are read from it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from exporter.aws.errors import Classified, UnusableAnswer
from exporter.aws.session import Access
from exporter.config.validators import queue_region

#: Seconds for which SQS holds an empty answer back. A call of SQS fits in the time-outs of all calls.
WAIT = 4
#: The most messages that one call receives or deletes (botocore service model).
BATCH = 10


class Message(NamedTuple):
    """A message, and the handle that deletes it."""

    body: str
    handle: str


class QueueClient(Protocol):
    """What the exporter asks of a queue. Every method raises ECRError and nothing else."""

    def receive(self) -> Sequence[Message]:
        """At most BATCH messages; none if none came within WAIT seconds."""

    def delete(self, messages: Sequence[Message]) -> None:
        """Delete at most BATCH messages. One that SQS does not delete comes again."""


class InspectedQueueClient(QueueClient, Protocol):
    """What the command `check` asks too."""

    def waiting(self) -> int:
        """About how many messages wait in the queue."""

    def peek(self) -> None:
        """Receive a message, if there is one, that others can receive at once."""


class BotoQueueClient:
    """InspectedQueueClient on boto3."""

    def __init__(self, access: Access, url: str) -> None:
        self._access = access
        self._url = url

    def receive(self) -> tuple[Message, ...]:
        answer = self._call("ReceiveMessage", MaxNumberOfMessages=BATCH, WaitTimeSeconds=WAIT)
        with Classified("sqs:ReceiveMessage"):
            return tuple(_message(row) for row in answer.get("Messages") or ())

    def delete(self, messages: Sequence[Message]) -> None:
        entries = [{"Id": str(i), "ReceiptHandle": message.handle} for i, message in enumerate(messages)]
        self._call("DeleteMessageBatch", Entries=entries)

    def waiting(self) -> int:
        name = "ApproximateNumberOfMessages"
        answer = self._call("GetQueueAttributes", AttributeNames=[name])
        with Classified("sqs:GetQueueAttributes"):
            return int(answer["Attributes"][name])

    def peek(self) -> None:
        self._call("ReceiveMessage", MaxNumberOfMessages=1, VisibilityTimeout=0, WaitTimeSeconds=0)

    def _call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        return self._access.call("sqs", operation, QueueUrl=self._url, **parameters)


def _message(row: dict[str, Any]) -> Message:
    body, handle = row.get("Body", ""), row.get("ReceiptHandle")
    if not (isinstance(body, str) and isinstance(handle, str)):
        raise UnusableAnswer("the answer has a message that cannot be understood")
    return Message(body, handle)


def endpoint_of(url: str) -> str | None:
    """Where the calls go: the host of the URL; None for a host that botocore finds by itself.

    botocore has settings of its own for that host, such as AWS_ENDPOINT_URL_SQS.
    """
    parts = urlsplit(url)
    host = parts.netloc.removesuffix(".cn")  # with its port
    usual = parts.scheme == "https" and host == f"sqs.{queue_region(url)}.amazonaws.com"
    return None if usual else f"{parts.scheme}://{parts.netloc}"


def account_of(url: str) -> str:
    """The account in the URL of a queue."""
    return urlsplit(url).path.split("/")[1]


def arn_of(url: str, *, partition: str, region: str) -> str:
    """The ARN of a queue, for a policy. `region` is that of a queue whose URL has none."""
    name = url.rpartition("/")[2]
    return f"arn:{partition}:sqs:{queue_region(url) or region}:{account_of(url)}:{name}"
