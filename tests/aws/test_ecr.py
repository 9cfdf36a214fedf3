"""What is the real client's alone: boto3 against an AWS that misbehaves on the wire."""

from __future__ import annotations

import gc
import json
import os
import shlex
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.exceptions import ProfileNotFound
from hypothesis import given, settings
from hypothesis import strategies as st
from support.command import eventually
from support.embedded_aws import Drip, DropConnection, EmbeddedAWS, Fault, Garbage, Hang, Truncate

from exporter import __version__
from exporter.aws.connector import AwsConnector
from exporter.aws.credentials import RENEW_AGAIN, RENEW_BEFORE, RENEW_EVERY
from exporter.aws.ecr import OPERATIONS, EcrClient
from exporter.aws.errors import MAX_LABEL, MAX_MESSAGE, ECRError
from exporter.aws.parsing import FIRST_PUSH, MAX_CODES, SKEW
from exporter.aws.session import Access, SharedSession, session_factory
from exporter.aws.timeouts import CONNECT_TIMEOUT, MOST_READ, READ_TIMEOUT
from exporter.config.settings import RegistrySettings
from exporter.config.validators import Secret
from exporter.demo import ACCOUNT, REGION, Call, Refuse
from exporter.replication.model import (
    LOOKUP_SIZE,
    PAGE_SIZE,
    Backfill,
    Destination,
    Image,
    Name,
    Page,
    Reason,
    Registry,
    Replication,
    Repository,
    RepositorySettings,
    Source,
    Status,
)

OTHER = "444455556666"
ROLE = f"arn:aws:iam::{OTHER}:role/reader"
DIGEST = "sha256:" + "0" * 64
JSON = "application/x-amz-json-1.1"
NOON = 1.8e9
EARLIER = 1.6e9
KEYS = f"arn:aws:kms:us-east-1:{OTHER}:"
ASKED = {"repositoryName": "team/app", "imageId": {"imageDigest": DIGEST}}

CALLS: dict[str, Callable[[EcrClient], Any]] = {
    "GetCallerIdentity": lambda client: client.account(),
    "DescribeRegistry": lambda client: client.registry(),
    "DescribeRepositories": lambda client: client.repositories(None),
    "DescribeImages": lambda client: client.images("team/app", None),
    "DescribeImages (look-up)": lambda client: client.find("team/app", [Name("v1", "")]),
    "DescribeImageReplicationStatus": lambda client: client.status("team/app", DIGEST),
    "ListReplicationBackfills": lambda client: client.backfills(None),
}
ECR_CALLS = {name: call for name, call in CALLS.items() if name != "GetCallerIdentity"}
ALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
ALL_OF_ECR = pytest.mark.parametrize("call", ECR_CALLS.values(), ids=ECR_CALLS.keys())


@pytest.fixture
def aws() -> Iterator[EmbeddedAWS]:
    with EmbeddedAWS() as aws:
        yield aws


@pytest.fixture(scope="module")
def session() -> boto3.Session:
    """One for most tests: a new one reads megabytes of botocore's data."""
    return EmbeddedAWS().session()


@pytest.fixture
def client(aws: EmbeddedAWS, session: boto3.Session) -> EcrClient:
    return connect(aws, session)


@pytest.fixture
def new_york() -> Iterator[None]:
    """The local time of the process is that of New York."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


def connect(aws: EmbeddedAWS, session: boto3.Session, **options: Any) -> EcrClient:
    client = AwsConnector(session=lambda: session, endpoint_url=aws.endpoint_url)
    return client.ecr(RegistrySettings(**options), connections=1)


class Recorder:
    """Answers every call with one fault, and keeps the calls."""

    def __init__(self, aws: EmbeddedAWS, fault: Fault | None = None, operation: str = "") -> None:
        self.calls: list[Call] = []
        self.fault = fault
        self._operation = operation
        aws.fault = self

    def __call__(self, call: Call) -> Fault | None:
        self.calls.append(call)
        return self.fault if self._operation in ("", call.operation) else None

    @property
    def operations(self) -> list[str]:
        return [call.operation for call in self.calls]


def said(value: object) -> Garbage:
    return Garbage(json.dumps(value).encode(), content_type=JSON)


def failure(call: Callable[[], object]) -> ECRError:
    """What the call raises, which can always be shown to an operator."""
    with pytest.raises(ECRError) as caught:
        call()
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) <= len(caught.value.action) + MAX_LABEL + MAX_MESSAGE + 4
    assert "AKIADEMO" not in text
    return caught.value


@contextmanager
def typing(text: str) -> Iterator[None]:
    """The stdin of this process, and of those that inherit it, holds the text."""
    kept, (reads, writes) = os.dup(0), os.pipe()
    os.write(writes, text.encode())
    os.close(writes)
    os.dup2(reads, 0)
    os.close(reads)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


def unusable(call: Callable[[], object]) -> bool:
    """Whether the call's answer is none that anything is concluded from."""
    error = failure(call)
    told = error.code.startswith("UnusableAnswer")  # or UnusableAnswer(AttributeError): botocore's parser
    return told and (error.reason, error.everything) == (Reason.UNAVAILABLE, False)


def named(parameter: object) -> str:
    if isinstance(parameter, Refuse):
        return f"{parameter.status} {parameter.code}"
    return str(parameter)


class TestOneCallEach:
    """What botocore would repeat by itself is the scheduler's to repeat."""

    @ALL
    @pytest.mark.parametrize(
        ("fault", "reason"),
        [
            (Refuse(400, "ThrottlingException", "Rate exceeded"), Reason.THROTTLED),
            (Refuse(400, "ThrottleException"), Reason.THROTTLED),
            (Refuse(429, "ThrottleException"), Reason.THROTTLED),
            (Refuse(400, "TooManyRequestsException"), Reason.THROTTLED),
            (Refuse(500, "ServerException"), Reason.UNAVAILABLE),
            (Refuse(503, "ServiceUnavailable"), Reason.UNAVAILABLE),
            (DropConnection(), Reason.UNAVAILABLE),
        ],
        ids=named,
    )
    def test_refused(
        self,
        aws: EmbeddedAWS,
        client: EcrClient,
        call: Callable[[EcrClient], Any],
        fault: Fault,
        reason: Reason,
    ) -> None:
        seen = Recorder(aws, fault)
        assert failure(lambda: call(client)).reason is reason
        assert len(seen.calls) == 1

    @ALL_OF_ECR
    @pytest.mark.parametrize(
        ("garbage", "reason"),
        [
            (Garbage(b"slow down", status=429), Reason.THROTTLED),
            (Garbage(b"<html>Bad Gateway</html>", status=502), Reason.UNAVAILABLE),
            (Garbage(b"no html", status=503), Reason.UNAVAILABLE),
            (Garbage(b"[1]", status=500), Reason.UNAVAILABLE),
            (Garbage(b"<html>Who are you?</html>", status=403), Reason.UNAVAILABLE),
            (Garbage(b"<html>Who are you?</html>", status=400), Reason.UNAVAILABLE),
            (Garbage(b"<html>Log in to the guest network</html>"), Reason.UNAVAILABLE),
            (Garbage(b""), Reason.UNAVAILABLE),
            (Garbage(b'{"imageDetails": [{"imageDi', content_type=JSON), Reason.UNAVAILABLE),
            (Garbage(b"\xff\xfe", content_type=JSON), Reason.UNAVAILABLE),
            (said({}), Reason.UNAVAILABLE),
            (said([]), Reason.UNAVAILABLE),
            (said(None), Reason.UNAVAILABLE),
            (said(7), Reason.UNAVAILABLE),
            (said({"imageDetails": None, "repositories": None}), Reason.UNAVAILABLE),
        ],
        ids=named,
    )
    def test_not_an_answer(
        self,
        aws: EmbeddedAWS,
        client: EcrClient,
        call: Callable[[EcrClient], Any],
        garbage: Garbage,
        reason: Reason,
    ) -> None:
        seen = Recorder(aws, garbage)
        error = failure(lambda: call(client))
        assert (error.reason, error.everything) == (reason, False)
        assert len(seen.calls) == 1

    @pytest.mark.parametrize("body", [b"", b"<html>hello</html>", b"<GetCallerIdentityResponse><Get", b"{}"])
    def test_not_an_answer_of_sts(self, aws: EmbeddedAWS, client: EcrClient, body: bytes) -> None:
        Recorder(aws, Garbage(body, content_type="text/xml"))
        assert failure(client.account).reason is Reason.UNAVAILABLE


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "AccessDeniedException", (Reason.ACCESS_DENIED, False)),
        (403, "SomethingNew", (Reason.ACCESS_DENIED, False)),
        (400, "ExpiredTokenException", (Reason.ACCESS_DENIED, True)),
        (400, "UnrecognizedClientException", (Reason.ACCESS_DENIED, True)),
        (400, "InvalidSignatureException", (Reason.ACCESS_DENIED, True)),
        (400, "MissingAuthenticationTokenException", (Reason.ACCESS_DENIED, True)),
        (400, "RepositoryNotFoundException", (Reason.REPOSITORY_NOT_FOUND, False)),
        (400, "ImageNotFoundException", (Reason.IMAGE_NOT_FOUND, False)),
        (400, "ServerException", (Reason.UNAVAILABLE, False)),
        (500, "SomethingNew", (Reason.UNAVAILABLE, False)),
        (400, "InvalidParameterException", (Reason.INVALID, False)),
        (400, "ValidationException", (Reason.INVALID, False)),
        (400, "SomethingNew", (Reason.INVALID, False)),
        (400, "RequestTimeout", (Reason.UNAVAILABLE, False)),
        (400, "RequestTimeoutException", (Reason.UNAVAILABLE, False)),
        (400, "RequestAbortedException", (Reason.UNAVAILABLE, False)),
        (408, "SomethingNew", (Reason.UNAVAILABLE, False)),
    ],
)
def test_what_a_refusal_means(
    aws: EmbeddedAWS, client: EcrClient, status: int, code: str, expected: tuple[Reason, bool]
) -> None:
    Recorder(aws, Refuse(status, code, "because"))
    error = failure(lambda: client.status("team/app", DIGEST))
    assert (error.reason, error.everything) == expected
    assert str(error) == f"ecr:DescribeImageReplicationStatus: {code}: because"


def test_what_a_header_says(aws: EmbeddedAWS, client: EcrClient) -> None:
    headers = (("x-amzn-errortype", "ThrottlingException:http://x"), ("x-amz-retry-after", "1500"))
    Recorder(aws, Garbage(b"{}", 400, JSON, headers))
    error = failure(client.registry)
    assert (error.reason, error.code) == (Reason.THROTTLED, "ThrottlingException")
    assert error.retry_after == 1.5


class TestNoAnswer:
    def test_a_hang(self, aws: EmbeddedAWS, session: boto3.Session) -> None:
        connector = AwsConnector(session=lambda: session, endpoint_url=aws.endpoint_url, read_timeout=1.0)
        client = connector.ecr(RegistrySettings(), connections=1)
        seen = Recorder(aws, Hang())
        error = failure(client.registry)
        assert (error.reason, error.code) == (Reason.UNAVAILABLE, "ReadTimeoutError")
        eventually(lambda: seen.calls)  # a busy machine may read the request only now
        assert len(seen.calls) == 1

    @pytest.mark.parametrize("operation", CALLS)
    def test_a_drip(self, aws: EmbeddedAWS, session: boto3.Session, operation: str) -> None:
        connector = AwsConnector(
            session=lambda: session, endpoint_url=aws.endpoint_url, read_timeout=5.0, answer_timeout=0.3
        )
        client = connector.ecr(RegistrySettings(), connections=1)
        aws.create_repository(ACCOUNT, REGION, "team/app")
        aws.push(ACCOUNT, REGION, "team/app", "v1", digest=DIGEST)
        seen = Recorder(aws, drip := Drip(0.05))
        error = failure(lambda: CALLS[operation](client))
        assert (error.reason, error.code) == (Reason.UNAVAILABLE, "AnswerTooSlow")
        assert len(seen.calls) == 1
        drip.released.set()
        seen.fault = None
        assert client.registry().registry_id == ACCOUNT

    @pytest.mark.parametrize("told", [False, True], ids=["head tells of no length", "head tells the length"])
    def test_an_answer_is_too_long_to_be_one(self, session: boto3.Session, told: bool) -> None:
        """What is read, whatever else is sent, is not many times what the longest answer may be."""

        class Endless(BaseHTTPRequestHandler):
            sent = 0

            def do_POST(self) -> None:
                self.send_response(200)
                if told:
                    self.send_header("Content-Length", str(20 * MOST_READ))
                self.end_headers()
                with suppress(OSError):
                    while Endless.sent < 20 * MOST_READ:
                        Endless.sent += self.wfile.write(b" " * (1 << 20))

            def log_message(self, *_: object) -> None:
                pass

        with HTTPServer(("127.0.0.1", 0), Endless) as server:
            threading.Thread(target=server.handle_request, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}"
            client = AwsConnector(session=lambda: session, endpoint_url=url).ecr(
                RegistrySettings(), connections=1
            )
            error = failure(client.registry)
        assert (error.reason, error.everything) == (Reason.UNAVAILABLE, False)
        assert "the answer is longer than 32 MiB" in str(error)
        assert Endless.sent < 2 * MOST_READ

    def test_a_deadline_leaves_no_thread_behind(self, aws: EmbeddedAWS, session: boto3.Session) -> None:
        client = AwsConnector(session=lambda: session, endpoint_url=aws.endpoint_url, answer_timeout=0.3)
        client.ecr(RegistrySettings(), connections=1).registry()
        for thread in threading.enumerate():
            if thread.name == "deadline":
                thread.join(5.0)
                assert not thread.is_alive()

    @pytest.mark.parametrize("kept", [0, 1, 20])
    @pytest.mark.parametrize("told", [False, True])
    @ALL
    def test_half_an_answer(
        self, aws: EmbeddedAWS, client: EcrClient, call: Callable[[EcrClient], Any], kept: int, told: bool
    ) -> None:
        aws.create_repository(ACCOUNT, REGION, "team/app")
        aws.push(ACCOUNT, REGION, "team/app", "v1", digest=DIGEST)
        Recorder(aws, Truncate(kept, exact_length=told))
        assert failure(lambda: call(client)).reason is Reason.UNAVAILABLE

    @pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://nowhere.invalid:1"])
    def test_nobody_there(self, session: boto3.Session, url: str) -> None:
        client = AwsConnector(session=lambda: session, endpoint_url=url).ecr(
            RegistrySettings(), connections=1
        )
        error = failure(client.registry)
        assert (error.reason, error.code) == (Reason.UNAVAILABLE, "EndpointConnectionError")
        assert not error.everything

    def test_it_heals(self, aws: EmbeddedAWS, client: EcrClient) -> None:
        seen = Recorder(aws, DropConnection())
        failure(client.registry)
        seen.fault = None
        assert client.registry().registry_id == ACCOUNT


class TestWhatMayBeShown:
    def test_one_bounded_line(self, aws: EmbeddedAWS, client: EcrClient) -> None:
        Recorder(aws, Refuse(400, "A\tB" * 100, "one\x00\x1b[31m " * 100))
        assert len(str(failure(client.registry))) <= MAX_LABEL + MAX_MESSAGE + 30

    def test_not_the_canonical_request(self, aws: EmbeddedAWS, client: EcrClient) -> None:
        message = "The signature does not match.\n\nThe Canonical String\nx-amz-security-token:t0ken"
        Recorder(aws, Refuse(403, "InvalidSignatureException", message))
        assert str(failure(client.registry)).endswith(": The signature does not match.")

    @pytest.mark.parametrize(
        "secret", ["AKIADEMO111122223333", "IQoJb3JpZ2luX2VjE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"]
    )
    def test_not_a_key_or_token(self, aws: EmbeddedAWS, client: EcrClient, secret: str) -> None:
        Recorder(aws, Refuse(400, "ExpiredTokenException", f"The token '{secret}' is expired"))
        assert str(failure(client.registry)).endswith(": The token '<secret>' is expired")

    @pytest.mark.parametrize(
        "word", [DIGEST, ROLE, "6a5f9f0e-31c4-4a6e-8c6c-0d6f5ae1e0cc", f"{'team/' * 9}app"]
    )
    def test_but_the_names_of_things(self, aws: EmbeddedAWS, client: EcrClient, word: str) -> None:
        Recorder(aws, Refuse(400, "SomethingNew", f"{word} is not known"))
        assert str(failure(client.registry)).endswith(f": {word} is not known")

    def test_not_the_external_id(self, aws: EmbeddedAWS, session: boto3.Session) -> None:
        client = connect(aws, session, role_arn=ROLE, external_id=Secret("hush-hush"))
        Recorder(aws, Refuse(400, "ValidationError", "Value 'hush-hush' at 'externalId' is not good"))
        assert "Value '<secret>' at" in str(failure(client.registry))

    def test_not_half_an_answer_with_credentials(self, aws: EmbeddedAWS, session: boto3.Session) -> None:
        client = connect(aws, session, role_arn=ROLE)
        Recorder(aws, Garbage(b"<R><SecretAccessKey>hush</SecretAccessKey>", content_type="text/xml"))
        error = failure(client.registry)
        assert (error.reason, "hush" in str(error)) == (Reason.UNAVAILABLE, False)


def anything() -> st.SearchStrategy[Any]:
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    names = st.sampled_from(
        """replicationStatuses region registryId status failureCode imageDetails imageDigest imageTags
        imagePushedAt lastActivatedAt nextToken repositories repositoryName replicationConfiguration rules
        destinations repositoryFilters filter filterType deleteReplication enabled imageId backfills
        replicationBackfillId destination progress totalReplicationCount failedReplicationCount failureCodes
        startedAt endedAt registryId surprise""".split()
    )
    words = st.sampled_from(["FAILED", "COMPLETE", "PREFIX_MATCH", DIGEST, "2026-01-01T00:00:00Z"])
    return st.recursive(
        scalars | words,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
        max_leaves=15,
    )


def answers() -> st.SearchStrategy[Any]:
    """Anything at all, and anything under the names where the client looks first."""
    tops = {"replicationStatuses", "imageDetails", "repositories", "replicationConfiguration", "backfills"}
    rows = {name: anything() | st.lists(anything(), max_size=3) for name in sorted(tops)}
    return anything() | st.fixed_dictionaries({}, optional={**rows, "nextToken": anything()})


def is_image(image: Any) -> bool:
    texts: tuple[object, ...] = (image.digest, *image.tags)
    return (
        isinstance(image, Image)
        and image.digest != ""
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(at, float | None) for at in (image.pushed_at, image.activated_at))
    )


def is_destination(place: Any) -> bool:
    return isinstance(place, Destination) and all(isinstance(part, str) for part in place)


def is_replication(found: Any) -> bool:
    return (
        isinstance(found, Replication)
        and is_destination(found.destination)
        and 0 < len(found.status) <= MAX_LABEL
        and bool(found.failure_code) == (found.status == Status.FAILED)
    )


def is_backfill(found: Any) -> bool:
    return (
        isinstance(found, Backfill)
        and is_destination(found.destination)
        and 0 < len(found.status) <= MAX_LABEL
        and all(isinstance(at, float | None) for at in (found.started_at, found.ended_at))
        and all(type(number) is int and number >= 0 for _, number in found.images)
        and all(0 < len(code) <= MAX_LABEL for code in found.failure_codes)
    )


def is_well_typed(result: object) -> bool:
    match result:
        case Registry(registry_id=str(), rules=rules):
            return all(
                all(map(is_destination, rule.destinations))
                and all(isinstance(text, str) for text in (*rule.filters, *rule.prefixes))
                and isinstance(rule.delete_replication, bool)
                for rule in rules
            )
        case Page(items=items, token=None | str() as token):
            return token != "" and all(
                is_backfill(i) if isinstance(i, Backfill) else (isinstance(i, str) and i != "") or is_image(i)
                for i in items
            )
        case tuple():
            return all(is_replication(item) or is_image(item) for item in result)
    return False


@pytest.fixture(scope="module")
def world(session: boto3.Session) -> Iterator[tuple[EmbeddedAWS, EcrClient]]:
    with EmbeddedAWS() as aws:
        yield aws, connect(aws, session)


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except ECRError as error:
        return error


@ALL_OF_ECR
@settings(max_examples=80, deadline=None)
@given(answer=answers())
def test_any_answer_is_understood_or_refused(
    world: tuple[EmbeddedAWS, EcrClient], call: Callable[[EcrClient], Any], answer: object
) -> None:
    aws, client = world
    aws.fault = lambda _: said(answer)
    result = outcome(lambda: call(client))
    if isinstance(result, ECRError):
        assert result.reason is Reason.UNAVAILABLE
        assert str(result).isprintable()
    else:
        assert is_well_typed(result)


class TestPartialAnswers:
    def test_statuses(self, aws: EmbeddedAWS, client: EcrClient) -> None:
        rows = [
            {},
            {"status": "FAILED", "surprise": 1},
            {"region": "eu-west-1", "status": "COMPLETE", "failureCode": "LEFT_OVER"},
            {"registryId": OTHER, "status": "T" * 1000, "region": None},
        ]
        Recorder(aws, said({"replicationStatuses": rows}))
        nowhere = Destination("", "")
        assert client.status("team/app", DIGEST) == (
            Replication(nowhere, Status.UNKNOWN),
            Replication(nowhere, Status.FAILED, "UNKNOWN"),
            Replication(Destination("eu-west-1", ""), Status.COMPLETE),
            Replication(Destination("", OTHER), "T" * MAX_LABEL),
        )

    @pytest.mark.parametrize(
        "answer",
        [
            {"replicationStatuses": []},
            ASKED | {"replicationStatuses": []},
            ASKED,
            ASKED | {"replicationStatuses": None},
        ],
    )
    def test_nothing_reported(self, aws: EmbeddedAWS, client: EcrClient, answer: object) -> None:
        Recorder(aws, said(answer))
        assert client.status("team/app", DIGEST) == ()

    @pytest.mark.parametrize(
        "answer",
        [
            {"replicationStatuses": [None]},
            {"replicationStatuses": [{"region": "eu-west-1", "status": "COMPLETE"}, None]},
            {"replicationStatuses": ["COMPLETE"]},
            {"replicationStatuses": {"region": "eu-west-1"}},
            {"replicationStatuses": [{"region": 7}]},
            {"replicationStatuses": [{"status": ["FAILED"]}]},
            ASKED | {"replicationStatuses": 7},
            {"imageId": {"imageDigest": DIGEST}},
            {"repositoryName": "team/app"},
            {"repositoryName": "team/app", "imageId": {"imageTag": "v1"}},
            {"repositoryName": "team/app", "imageId": {"imageDigest": None}},
            ASKED | {"repositoryName": "team/api", "replicationStatuses": []},
            ASKED | {"imageId": {"imageDigest": "sha256:" + "1" * 64}, "replicationStatuses": []},
        ],
        ids=str,
    )
    def test_what_cannot_be_read_is_not_taken_for_nothing_reported(
        self, aws: EmbeddedAWS, client: EcrClient, answer: object
    ) -> None:
        Recorder(aws, said(answer))
        assert unusable(lambda: client.status("team/app", DIGEST))

    def test_images(self, aws: EmbeddedAWS, client: EcrClient) -> None:
        rows = [{"imageDigest": DIGEST, "imageTags": ["v1"]}, {"imageDigest": "sha256:1", "imageTags": None}]
        Recorder(aws, said({"imageDetails": rows, "nextToken": ""}))
        assert client.images("team/app", None) == Page((Image(DIGEST, ("v1",)), Image("sha256:1")))

    @pytest.mark.parametrize(
        "row",
        [
            {},
            None,
            "row",
            {"imageDigest": 5},
            {"imageTags": ["v1"]},
            {"imageDigest": "sha256:1", "imageTags": ["v1", None]},
        ],
        ids=str,
    )
    def test_an_image_that_cannot_be_read_is_not_taken_for_deleted(
        self, aws: EmbeddedAWS, client: EcrClient, row: object
    ) -> None:
        Recorder(aws, said({"imageDetails": [{"imageDigest": DIGEST, "imageTags": ["v1"]}, row]}))
        assert unusable(lambda: client.images("team/app", None))
        assert unusable(lambda: client.find("team/app", [Name("v1", "")]))

    @pytest.mark.parametrize(
        "answer", [{"nextToken": "x"}, {"imageDetails": None, "nextToken": "x"}], ids=str
    )
    def test_a_look_up_without_its_list_finds_nothing_out(
        self, aws: EmbeddedAWS, client: EcrClient, answer: object
    ) -> None:
        Recorder(aws, said(answer))
        assert unusable(lambda: client.find("team/app", [Name("v1", "")]))

    def test_a_look_up_may_leave_names_out(self, aws: EmbeddedAWS, client: EcrClient) -> None:
        Recorder(aws, said({"imageDetails": [{"imageDigest": DIGEST, "imageTags": ["v1"]}]}))
        (image,) = client.find("team/app", [Name("v1", ""), Name("v2", "")])
        assert (image.digest, image.tags) == (DIGEST, ("v1",))

    @pytest.mark.parametrize("at", [True, -62135596799, 0, 1.5, FIRST_PUSH - 1, NOON + SKEW + 1, 1e11])
    @pytest.mark.parametrize("field", ["imagePushedAt", "lastActivatedAt"])
    def test_a_time_that_cannot_be_is_unknown(
        self, aws: EmbeddedAWS, session: boto3.Session, at: float, field: str
    ) -> None:
        connector = AwsConnector(session=lambda: session, endpoint_url=aws.endpoint_url, clock=lambda: NOON)
        client = connector.ecr(RegistrySettings(), connections=1)
        for said_at, expected in ((at, None), (FIRST_PUSH, FIRST_PUSH), (NOON + SKEW, NOON + SKEW)):
            Recorder(aws, said({"imageDetails": [{"imageDigest": DIGEST, field: said_at}]}))
            (found,) = client.images("team/app", None, tags="ANY").items
            assert found.replicated_from == expected

    @pytest.mark.parametrize("registry_id", ['evil\n"x', "12345678901", "1234567890123", "\u0661" * 12, 7])
    def test_a_registry_is_named_by_twelve_digits(
        self, aws: EmbeddedAWS, client: EcrClient, registry_id: object
    ) -> None:
        seen = Recorder(aws, said({"registryId": registry_id, "replicationConfiguration": {"rules": []}}))
        assert unusable(client.registry)
        seen.fault = said({"replicationConfiguration": {"rules": []}})
        assert client.registry() == Registry("")

    @pytest.mark.parametrize(
        "rule",
        [
            None,
            {"destinations": [None]},
            {"repositoryFilters": [None]},
            {"destinations": 7},
            {"destinations": [], "deleteReplication": {"enabled": "yes"}},
        ],
        ids=str,
    )
    def test_a_rule_that_cannot_be_read_is_not_taken_for_deleted(
        self, aws: EmbeddedAWS, client: EcrClient, rule: object
    ) -> None:
        Recorder(aws, said({"replicationConfiguration": {"rules": [{"destinations": []}, rule]}}))
        assert unusable(client.registry)

    @pytest.mark.parametrize("at", ["yesterday", "", [], {}, [1.8e9], float("nan"), float("inf")], ids=str)
    def test_one_garbled_time_spoils_the_page(self, aws: EmbeddedAWS, client: EcrClient, at: object) -> None:
        Recorder(aws, said({"imageDetails": [{"imageDigest": DIGEST, "imagePushedAt": at}]}))
        assert failure(lambda: client.find("team/app", [Name("v1", "")])).reason is Reason.UNAVAILABLE

    def test_repositories(self, aws: EmbeddedAWS, client: EcrClient) -> None:
        Recorder(aws, said({"repositories": [{"repositoryName": "team/app"}], "nextToken": None}))
        assert client.repositories(None) == Page((Repository("team/app", RepositorySettings()),))

    @pytest.mark.parametrize(
        ("row", "expected"),
        [
            (
                {
                    "imageTagMutability": None,
                    "imageScanningConfiguration": None,
                    "encryptionConfiguration": None,
                },
                RepositorySettings(),
            ),
            ({"imageScanningConfiguration": {}, "encryptionConfiguration": {}}, RepositorySettings()),
            (
                {
                    "imageTagMutability": "IMMUTABLE_WITH_EXCLUSION",
                    "imageTagMutabilityExclusionFilters": [{"filterType": "WILDCARD", "filter": "dev-*"}],
                    "imageScanningConfiguration": {"scanOnPush": True},
                    "encryptionConfiguration": {"encryptionType": "AES256"},
                },
                RepositorySettings("IMMUTABLE_WITH_EXCLUSION", "AES256", "", "True"),
            ),
            ({"imageScanningConfiguration": {"scanOnPush": False}}, RepositorySettings(scan_on_push="False")),
            (
                {"encryptionConfiguration": {"encryptionType": "KMS", "kmsKey": f"{KEYS}key/1234-ab"}},
                RepositorySettings("", "KMS", "single-region"),
            ),
            (
                {"encryptionConfiguration": {"encryptionType": "KMS_DSSE", "kmsKey": f"{KEYS}key/mrk-1234"}},
                RepositorySettings("", "KMS_DSSE", "multi-region"),
            ),
            (
                {"encryptionConfiguration": {"encryptionType": "KMS", "kmsKey": f"{KEYS}alias/mine"}},
                RepositorySettings("", "KMS"),
            ),
        ],
        ids=str,
    )
    def test_settings_of_a_repository(
        self, aws: EmbeddedAWS, client: EcrClient, row: dict[str, object], expected: RepositorySettings
    ) -> None:
        Recorder(aws, said({"repositories": [{"repositoryName": "team/app"} | row]}))
        assert client.repositories(None).items == (Repository("team/app", expected),)

    @pytest.mark.parametrize(
        "row",
        [
            {},
            None,
            {"repositoryName": ""},
            {"repositoryName": 7},
            {"repositoryName": "a", "imageScanningConfiguration": {"scanOnPush": "yes"}},
            {"repositoryName": "a", "imageTagMutability": 7},
        ],
        ids=str,
    )
    def test_a_repository_that_cannot_be_read_is_not_taken_for_deleted(
        self, aws: EmbeddedAWS, client: EcrClient, row: object
    ) -> None:
        Recorder(aws, said({"repositories": [{"repositoryName": "team/app"}, row]}))
        assert unusable(lambda: client.repositories(None))

    def test_backfills(self, aws: EmbeddedAWS, client: EcrClient) -> None:
        place = {"region": "eu-west-1", "registryId": OTHER}
        progress = {
            "totalReplicationCount": 9,
            "failedReplicationCount": 0,
            "failureCodes": ["B", "A" * 1000, "B"],
        }
        rows = [
            {},
            {"status": "FAILED", "destination": None, "progress": None, "surprise": 1},
            {"status": "T" * 1000, "progress": {"failureCodes": None}},
            {"destination": place, "failureCode": "A", "progress": progress, "endedAt": EARLIER},
            {"replicationBackfillId": "1", "startedAt": EARLIER, "endedAt": 0, "status": "STOPPED"},
            {"progress": {"failureCodes": [str(n) for n in range(1000)]}},
        ]
        Recorder(aws, said({"backfills": rows, "nextToken": "t"}))
        nowhere, partner = Destination("", ""), Destination("eu-west-1", OTHER)
        codes = ("A", "B", "A" * MAX_LABEL)
        assert client.backfills(None) == Page(
            (
                Backfill("", nowhere, "UNKNOWN"),
                Backfill("", nowhere, "FAILED", failure_codes=("UNKNOWN",)),
                Backfill("", nowhere, "T" * MAX_LABEL),
                Backfill("", partner, "UNKNOWN", None, EARLIER, (("total", 9), ("failed", 0)), codes),
                Backfill("1", nowhere, "STOPPED", EARLIER),
                Backfill("", nowhere, "UNKNOWN", failure_codes=tuple(str(n) for n in range(MAX_CODES))),
            ),
            "t",
        )

    @pytest.mark.parametrize("answer", [{"backfills": []}, {"registryId": ACCOUNT}])
    def test_no_backfills(self, aws: EmbeddedAWS, client: EcrClient, answer: object) -> None:
        Recorder(aws, said(answer))
        assert client.backfills(None) == Page(())

    @pytest.mark.parametrize(
        "answer",
        [
            {"nextToken": "t"},
            {"backfills": [{}, None]},
            {"backfills": 7},
            {"backfills": [{"destination": "eu-west-1"}]},
            {"backfills": [{"progress": 7}]},
            {"backfills": [{"progress": {"totalReplicationCount": "7"}}]},
            {"backfills": [{"progress": {"failedReplicationCount": -1}}]},
            {"backfills": [{"progress": {"completedReplicationCount": True}}]},
            {"backfills": [{"progress": {"completedReplicationCount": 10**400}}]},
            {"backfills": [{"progress": {"failureCodes": [7]}}]},
            {"backfills": [{"replicationBackfillId": 7}]},
        ],
        ids=lambda answer: str(answer)[:80],
    )
    def test_backfills_that_cannot_be_read_are_not_taken_for_none(
        self, aws: EmbeddedAWS, client: EcrClient, answer: object
    ) -> None:
        Recorder(aws, said(answer))
        assert unusable(lambda: client.backfills(None))

    def test_backfills_of_another_registry_are_refused(self, aws: EmbeddedAWS, client: EcrClient) -> None:
        client.registry()  # names the account
        Recorder(aws, said({"registryId": OTHER, "backfills": [{}]}))
        assert unusable(lambda: client.backfills(None))

    @pytest.mark.parametrize(
        "half",
        [
            {"nextToken": "t"},
            {"imageDetails": None, "repositories": None, "nextToken": "t"},
            {"imageDetails": [{}], "repositories": [None]},
            {
                "imageDetails": [{"imageDigest": DIGEST}],
                "repositories": [{"repositoryName": "a"}],
                "nextToken": {"a": 1},
            },
        ],
    )
    @pytest.mark.parametrize("operation", ["DescribeRepositories", "DescribeImages"])
    def test_half_a_page_is_no_page(
        self, aws: EmbeddedAWS, client: EcrClient, operation: str, half: object
    ) -> None:
        Recorder(aws, said(half))
        error = failure(lambda: CALLS[operation](client))
        assert (error.reason, error.code) == (Reason.UNAVAILABLE, "UnusableAnswer")


def covered(aws: EmbeddedAWS, client: EcrClient, *filters: object) -> set[str]:
    """Which of two repositories a rule with these filters covers."""
    aws.set_rules(
        ACCOUNT, REGION, [{"destinations": [{"region": "eu-west-1"}], "repositoryFilters": filters}]
    )
    registry = client.registry()
    return {name for name in ("prod", "test") if registry.destinations(name)}


def test_filters(aws: EmbeddedAWS, client: EcrClient) -> None:
    def prefix(text: str | None) -> dict[str, Any]:
        return {"filter": text, "filterType": "PREFIX_MATCH", "surprise": True}

    assert covered(aws, client) == {"prod", "test"}
    assert covered(aws, client, prefix("pro"), prefix("x")) == {"prod"}
    assert covered(aws, client, prefix("pro"), {"filter": "test", "filterType": "REGEX"}) == {"prod"}
    for unreadable in ({"filter": "prod", "filterType": "REGEX"}, {"filter": "prod"}, {}, prefix(None)):
        assert covered(aws, client, unreadable) == set()


def test_several_rules(aws: EmbeddedAWS, client: EcrClient) -> None:
    rules: list[Any] = [
        {"destinations": None},
        {"destinations": [{"region": "eu-west-1", "registryId": OTHER}]},
        {"destinations": [{"region": "us-west-2", "registryId": ACCOUNT}], "repositoryFilters": None},
    ]
    aws.set_rules(ACCOUNT, REGION, rules)
    expected = {Destination("eu-west-1", OTHER), Destination("us-west-2", ACCOUNT)}
    assert client.registry().destinations("team/app") == expected


@pytest.mark.parametrize(
    ("setting", "mirrored"),
    [
        ({}, False),
        ({"deleteReplication": None}, False),
        ({"deleteReplication": {}}, False),
        ({"deleteReplication": {"enabled": None}}, False),
        ({"deleteReplication": {"enabled": False}}, False),
        ({"deleteReplication": {"enabled": True}}, True),
    ],
    ids=str,
)
def test_a_rule_says_whether_deletions_are_mirrored(
    aws: EmbeddedAWS, client: EcrClient, setting: dict[str, object], mirrored: bool
) -> None:
    aws.set_rules(
        ACCOUNT, REGION, [{"destinations": [{"region": "eu-west-1", "registryId": OTHER}], **setting}]
    )
    assert client.registry().routes() == {(Destination("eu-west-1", OTHER), ""): mirrored}


def test_another_registry_is_named_wherever_it_can_be(aws: EmbeddedAWS, session: boto3.Session) -> None:
    client, seen = connect(aws, session, registry_id=OTHER), Recorder(aws, Refuse(400, "AccessDenied"))
    for call in ECR_CALLS.values():
        failure(lambda call=call: call(client))  # type: ignore[misc]
    named = {call.operation: call.params.get("registryId") for call in seen.calls}
    assert named == {name: None if name == "DescribeRegistry" else OTHER for name in OPERATIONS}


def test_credentials_of_another_account_do_not_read_its_images(aws: EmbeddedAWS) -> None:
    """A profile can be rotated to another account while the registry is polled."""
    for account in (ACCOUNT, OTHER):
        aws.create_repository(account, REGION, "team/app")
        digest = aws.push(account, REGION, "team/app", "v1", digest=DIGEST)
    sessions = [aws.session(), aws.session(OTHER)]
    connector = AwsConnector(session=lambda: sessions.pop(0), endpoint_url=aws.endpoint_url)
    client = connector.ecr(RegistrySettings(), connections=1)
    assert client.registry().registry_id == ACCOUNT

    def refuse(call: Call) -> Fault | None:
        """The old keys have expired, and no repository policy lets another account in."""
        if call.kind.account == ACCOUNT:
            return Refuse(403, "ExpiredTokenException")
        named = call.params.get("registryId", call.kind.account)
        return None if named == call.kind.account else Refuse(400, "AccessDeniedException")

    of_a_registry = {name: call for name, call in ECR_CALLS.items() if name != "DescribeRegistry"}
    assert all(call(client) is not None for call in of_a_registry.values())
    aws.fault = refuse
    assert failure(client.registry).everything
    for call in of_a_registry.values():
        error = failure(lambda call=call: call(client))  # type: ignore[misc]
        assert (error.reason, error.everything) == (Reason.ACCESS_DENIED, False)
    assert client.registry().registry_id == OTHER
    assert client.images("team/app", None).items[0].digest == digest


def test_an_operation_that_boto3_does_not_know(aws: EmbeddedAWS, session: boto3.Session) -> None:
    shared = SharedSession(session=lambda: session, endpoint_url=aws.endpoint_url)
    access = Access(shared, RegistrySettings(), source=Source(ACCOUNT, REGION), connections=1)
    error = failure(lambda: access.call("ecr", "TeleportImages"))
    assert (error.reason, error.code, error.everything) == (Reason.INVALID, "UnknownOperation", False)


class TestRole:
    """An assumed role, in time that only moves when told."""

    @pytest.fixture
    def seen(self, aws: EmbeddedAWS) -> Recorder:
        return Recorder(aws)

    @pytest.fixture
    def clock(self) -> list[float]:
        return [NOON]

    @pytest.fixture
    def client(self, aws: EmbeddedAWS, session: boto3.Session, clock: list[float]) -> EcrClient:
        connector = AwsConnector(
            session=lambda: session, endpoint_url=aws.endpoint_url, clock=lambda: clock[0]
        )
        entry = RegistrySettings(region="eu-west-1", role_arn=ROLE, external_id=Secret("hush"))
        return connector.ecr(entry, connections=1)

    def lent(self, until: float) -> Garbage:
        """AssumeRole's answer, with an end of our choice; the key is one of the other account."""
        ends = datetime.fromtimestamp(until, UTC).isoformat()
        body = f"""<AssumeRoleResponse><AssumeRoleResult><Credentials>
            <AccessKeyId>AKIADEMO{OTHER}</AccessKeyId><SecretAccessKey>x</SecretAccessKey>
            <SessionToken>x</SessionToken><Expiration>{ends}</Expiration>
            </Credentials></AssumeRoleResult></AssumeRoleResponse>"""
        return Garbage(body.encode(), content_type="text/xml")

    def test_once_for_many_calls(self, seen: Recorder, client: EcrClient) -> None:
        assert client.registry().registry_id == OTHER
        assert client.repositories(None) == Page(())
        assert client.account() == OTHER
        assume, *rest = seen.calls
        assert assume.params.items() >= {"RoleArn": ROLE, "ExternalId": "hush"}.items()
        assert assume.kind == ("sts", "AssumeRole", ACCOUNT, "eu-west-1")
        assert {call.kind.account for call in rest} == {OTHER}
        assert Counter(seen.operations)["AssumeRole"] == 1

    def test_renewed_before_it_ends(self, aws: EmbeddedAWS, client: EcrClient, clock: list[float]) -> None:
        seen = Recorder(aws, self.lent(NOON + 3600), "AssumeRole")
        client.registry()
        clock[0] += 3600 - RENEW_BEFORE - 1
        client.registry()
        assert seen.operations.count("AssumeRole") == 1
        clock[0] += 1
        seen.fault = self.lent(clock[0] + 3600)
        client.registry()
        client.registry()
        assert seen.operations.count("AssumeRole") == 2

    @pytest.mark.parametrize("left", [-86400, 0, 5])
    def test_no_call_costs_two_when_the_end_is_near_or_past(
        self, aws: EmbeddedAWS, client: EcrClient, clock: list[float], left: float
    ) -> None:
        seen = Recorder(aws, self.lent(NOON + left), "AssumeRole")
        for _ in range(3):
            assert client.registry().registry_id == OTHER
        assert seen.operations.count("AssumeRole") == 1
        clock[0] += RENEW_EVERY
        client.registry()
        assert seen.operations.count("AssumeRole") == 2

    def test_while_credentials_last_sts_may_be_down(
        self, aws: EmbeddedAWS, client: EcrClient, clock: list[float]
    ) -> None:
        seen = Recorder(aws, self.lent(NOON + 3600), "AssumeRole")
        client.registry()
        clock[0] += 3600 - RENEW_BEFORE
        seen.fault = Refuse(503, "ServiceUnavailable")
        for _ in range(3):
            assert client.registry().registry_id == OTHER
        assert seen.operations.count("AssumeRole") == 2
        clock[0] += RENEW_AGAIN
        client.registry()
        assert seen.operations.count("AssumeRole") == 3
        clock[0] = NOON + 3600
        assert failure(client.registry).action == "sts:AssumeRole"
        seen.fault = self.lent(clock[0] + 3600)
        assert client.registry().registry_id == OTHER

    def test_denied_and_allowed_again(self, aws: EmbeddedAWS, client: EcrClient) -> None:
        seen = Recorder(aws, Refuse(403, "AccessDenied", "not you"), "AssumeRole")
        error = failure(client.registry)
        assert (error.reason, error.everything) == (Reason.ACCESS_DENIED, True)
        assert str(error) == "sts:AssumeRole: AccessDenied: not you"
        assert seen.operations == ["AssumeRole"]
        seen.fault = None
        assert client.registry().registry_id == OTHER

    @pytest.mark.parametrize("code", ["ExpiredTokenException", "UnrecognizedClientException"])
    def test_credentials_that_are_refused_are_replaced(
        self, aws: EmbeddedAWS, client: EcrClient, code: str
    ) -> None:
        client.registry()
        seen = Recorder(aws, Refuse(400, code))
        assert failure(client.registry).everything
        seen.fault = None
        client.registry()
        assert seen.operations == ["DescribeRegistry", "AssumeRole", "DescribeRegistry"]

    def test_throttled_sts_is_named(self, aws: EmbeddedAWS, client: EcrClient) -> None:
        """Its action tells the caller that the limits of ECR are not concerned."""
        Recorder(aws, Refuse(400, "Throttling", "Rate exceeded"), "AssumeRole")
        error = failure(client.registry)
        assert (error.reason, error.action, error.everything) == (Reason.THROTTLED, "sts:AssumeRole", True)

    @pytest.mark.parametrize("code", ["InvalidClientTokenId", "RegionDisabledException"])
    def test_a_region_that_only_the_account_of_the_role_enabled(
        self, aws: EmbeddedAWS, client: EcrClient, clock: list[float], code: str
    ) -> None:
        asked = list[str]()

        def fault(call: Call) -> Fault | None:
            if call.kind.service != "sts":
                return None
            asked.append(call.kind.region)
            return Refuse(403, code, "no") if call.kind.region == "eu-west-1" else self.lent(clock[0] + 3600)

        aws.fault = fault
        assert client.registry().registry_id == OTHER
        assert asked == ["eu-west-1", REGION]
        clock[0] += 3600
        assert client.registry().registry_id == OTHER
        assert asked == ["eu-west-1", REGION, REGION]

    def test_both_regions_refuse(self, aws: EmbeddedAWS, client: EcrClient) -> None:
        seen = Recorder(aws, Refuse(403, "InvalidClientTokenId", "no"), "AssumeRole")
        error = failure(client.registry)
        assert (error.reason, error.code) == (Reason.ACCESS_DENIED, "InvalidClientTokenId")
        assert seen.operations == ["AssumeRole", "AssumeRole"]
        seen.fault = None
        assert client.registry().registry_id == OTHER

    @pytest.mark.parametrize("body", [b"", b"<html></html>", b"<AssumeRoleResponse/>", b"{"])
    def test_garbage_for_credentials(self, aws: EmbeddedAWS, client: EcrClient, body: bytes) -> None:
        seen = Recorder(aws, Garbage(body, content_type="text/xml"), "AssumeRole")
        error = failure(client.registry)
        assert (error.reason, error.action) == (Reason.UNAVAILABLE, "sts:AssumeRole")
        seen.fault = None
        assert client.registry().registry_id == OTHER


class TestCredentialsOfTheEnvironment:
    """The chain as a user has it: files and variables, read by boto3 itself."""

    @pytest.fixture
    def file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_ROLE_ARN"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
            "AWS_CONFIG_FILE": str(tmp_path / "config"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "NO_PROXY": "127.0.0.1",
        }.items():
            monkeypatch.setenv(name, value)
        return tmp_path / "credentials"

    def write(self, file: Path, account: str) -> None:
        file.write_text(f"[default]\naws_access_key_id=AKIADEMO{account}\naws_secret_access_key=x\n")

    def client(self, aws: EmbeddedAWS, **options: Any) -> EcrClient:
        return AwsConnector(endpoint_url=aws.endpoint_url).ecr(RegistrySettings(**options), connections=1)

    def test_none_until_they_appear(self, aws: EmbeddedAWS, file: Path) -> None:
        client = self.client(aws)
        error = failure(client.registry)
        assert (error.reason, error.everything) == (Reason.ACCESS_DENIED, True)
        assert error.code == "NoCredentialsError"
        self.write(file, ACCOUNT)
        assert client.registry().registry_id == ACCOUNT

    @pytest.mark.parametrize(
        "pushed_at", [EARLIER, EARLIER + 0.123, datetime.fromtimestamp(EARLIER, UTC).isoformat()]
    )
    def test_times_are_what_boto3_would_make_of_them(
        self, aws: EmbeddedAWS, file: Path, pushed_at: float | str
    ) -> None:
        self.write(file, ACCOUNT)
        image = {"imageDigest": DIGEST, "imagePushedAt": pushed_at}
        page = json.dumps({"imageDetails": [image]}).encode()
        aws.fault = lambda _: Garbage(page, content_type=JSON)
        (found,) = self.client(aws).images("team/app", None).items
        (told,) = aws.client("ecr").describe_images(repositoryName="team/app")["imageDetails"]
        assert found.pushed_at == told["imagePushedAt"].timestamp()

    @pytest.mark.usefixtures("new_york")
    def test_a_time_without_a_zone_is_utc(self, aws: EmbeddedAWS, file: Path) -> None:
        self.write(file, ACCOUNT)
        moment = datetime.fromtimestamp(EARLIER, UTC).replace(tzinfo=None).isoformat()
        page = json.dumps({"imageDetails": [{"imageDigest": DIGEST, "imagePushedAt": moment}]}).encode()
        aws.fault = lambda _: Garbage(page, content_type=JSON)
        (found,) = self.client(aws).images("team/app", None).items
        assert found.pushed_at == EARLIER

    @pytest.mark.parametrize("role", [None, ROLE])
    def test_rotated(self, aws: EmbeddedAWS, file: Path, role: str | None) -> None:
        self.write(file, ACCOUNT)
        client = self.client(aws, role_arn=role)
        revoked = Refuse(403, "UnrecognizedClientException" if role is None else "InvalidClientTokenId")
        aws.fault = lambda call: revoked if call.kind.account == ACCOUNT else None
        assert failure(client.registry).everything
        self.write(file, OTHER)
        assert client.registry().registry_id == OTHER

    @pytest.mark.usefixtures("file")
    def test_sessions_share_their_service_models(self) -> None:
        """They are some ten megabytes, which collecting the old session's garbage would leave in pieces."""
        make = session_factory(clock=lambda: NOON)
        loaders = {id(make()._session.get_component("data_loader")) for _ in range(2)}
        assert len(loaders) == 1

    @pytest.mark.parametrize("rotation", ["half written", "\x00", "[default]\naws_access_key_id=x\n"])
    def test_a_file_that_is_being_written(self, aws: EmbeddedAWS, file: Path, rotation: str) -> None:
        self.write(file, ACCOUNT)
        client = self.client(aws)
        client.registry()
        aws.fault = lambda call: Refuse(403, "ExpiredToken") if call.kind.account == ACCOUNT else None
        failure(client.registry)
        file.write_text(rotation)
        for _ in range(2):
            assert failure(client.registry).everything
        self.write(file, OTHER)
        assert client.registry().registry_id == OTHER

    def test_a_profile_that_goes(self, aws: EmbeddedAWS, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file.write_text(f"[mine]\naws_access_key_id=AKIADEMO{ACCOUNT}\naws_secret_access_key=x\n")
        monkeypatch.setenv("AWS_PROFILE", "mine")
        client, seen = self.client(aws), Recorder(aws, Refuse(403, "ExpiredToken"))
        file.write_text("")
        failure(client.registry)
        error = failure(client.registry)
        assert (error.code, error.reason) == ("ProfileNotFound", Reason.ACCESS_DENIED)
        file.write_text(f"[mine]\naws_access_key_id=AKIADEMO{OTHER}\naws_secret_access_key=x\n")
        seen.fault = None
        assert client.registry().registry_id == OTHER

    def test_a_session_that_is_not_to_be_had(self, aws: EmbeddedAWS, session: boto3.Session) -> None:
        sessions = [session]

        def make() -> boto3.Session:
            if not sessions:
                raise ProfileNotFound(profile="mine")
            return sessions.pop()

        client = AwsConnector(session=make, endpoint_url=aws.endpoint_url).ecr(
            RegistrySettings(), connections=1
        )
        aws.fault = lambda _: Refuse(403, "ExpiredToken")
        assert failure(client.registry).code == "ExpiredToken"
        assert failure(client.registry).code == "ProfileNotFound"
        sessions.append(session)
        aws.fault = lambda _: None
        assert client.registry().registry_id == ACCOUNT

    @pytest.mark.usefixtures("file")
    def test_a_profile_that_does_not_exist(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "none-such")
        error = failure(AwsConnector)
        assert (error.reason, error.everything) == (Reason.ACCESS_DENIED, True)
        assert "none-such" in str(error)

    @pytest.mark.parametrize("ending", ["\n", "\r\n"])
    @pytest.mark.usefixtures("file")
    def test_a_key_that_ends_in_a_line_break(
        self, aws: EmbeddedAWS, monkeypatch: pytest.MonkeyPatch, ending: str
    ) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", f"AKIAIOSFODNN7EXAMPLE{ending}")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        error = failure(self.client(aws).registry)
        assert (error.reason, error.everything) == (Reason.ACCESS_DENIED, True)
        assert "the access key id ends in a line break" in str(error)
        assert "AKIA" not in str(error)

    def test_nothing_asks_for_an_mfa_code(self, aws: EmbeddedAWS, file: Path) -> None:
        serial = f"arn:aws:iam::{ACCOUNT}:mfa/me"
        config = f"[default]\nrole_arn = {ROLE}\nsource_profile = base\nmfa_serial = {serial}\n"
        file.write_text(f"[base]\naws_access_key_id=AKIADEMO{ACCOUNT}\naws_secret_access_key=x\n")
        file.with_name("config").write_text(config)
        error = failure(self.client(aws).registry)
        assert (error.reason, error.code) == (Reason.ACCESS_DENIED, "MFARequired")

    @pytest.mark.parametrize("profile", ["mine", "role"])
    def test_a_credential_process_cannot_ask(
        self, aws: EmbeddedAWS, file: Path, monkeypatch: pytest.MonkeyPatch, profile: str
    ) -> None:
        """Also one of a source_profile. Its input is at its end, and it has no terminal."""
        script = file.with_name("script")
        keys = {"Version": 1, "AccessKeyId": f"AKIADEMO{ACCOUNT}", "SecretAccessKey": "x"}
        script.write_text(
            f"""
            if read answer || (: </dev/tty) 2>/dev/null; then exit 1; fi
            echo {shlex.quote(json.dumps(keys))}
            """
        )
        file.with_name("config").write_text(
            f"""[profile mine]\ncredential_process = sh {script}
            [profile role]\nrole_arn = {ROLE}\nsource_profile = mine
            """.replace("            ", "")
        )
        monkeypatch.setenv("AWS_PROFILE", profile)
        monkeypatch.setenv("AWS_ENDPOINT_URL", aws.endpoint_url)
        with typing("an answer\n"):
            assert self.client(aws).registry().registry_id == (ACCOUNT if profile == "mine" else OTHER)

    def test_a_credential_process_that_hangs(self, aws: EmbeddedAWS, file: Path) -> None:
        file.with_name("script").write_text("sleep 600 | sleep 600")
        file.with_name("config").write_text(
            f"[default]\ncredential_process = sh {file.with_name('script')}\n"
        )
        make = session_factory(clock=lambda: NOON, process_timeout=0.3)
        client = AwsConnector(session=make, endpoint_url=aws.endpoint_url)
        error = failure(client.ecr(RegistrySettings(), connections=1).registry)
        assert (error.reason, error.code) == (Reason.ACCESS_DENIED, "CredentialProcess")

    def test_an_endpoint_without_a_scheme(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write(file, ACCOUNT)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:4566")
        error = failure(AwsConnector().ecr(RegistrySettings(), connections=1).registry)
        assert (error.reason, error.everything) == (Reason.INVALID, True)
        assert "AWS_ENDPOINT_URL" in str(error)

    @pytest.mark.usefixtures("file")
    def test_a_web_identity(self, aws: EmbeddedAWS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.setenv("AWS_ENDPOINT_URL", aws.endpoint_url)
        client = self.client(aws)
        error = failure(client.registry)
        assert (error.code, error.reason) == ("FileNotFoundError", Reason.ACCESS_DENIED)
        (tmp_path / "token").write_text("token")
        seen = Recorder(aws, Refuse(403, "AccessDenied", "no"), "AssumeRoleWithWebIdentity")
        error = failure(client.registry)
        assert (error.action, error.everything) == ("sts:AssumeRoleWithWebIdentity", True)
        seen.fault = None
        assert client.registry().registry_id

    @pytest.mark.parametrize("said", ['{"Version": "s.PLANTED"}', "s.PLANTED >&2; exit 1"])
    def test_what_a_credential_process_prints_is_not_shown(
        self, aws: EmbeddedAWS, file: Path, said: str
    ) -> None:
        script = file.with_name("script")
        script.write_text(f"echo {said if 'exit' in said else shlex.quote(said)}")
        file.with_name("config").write_text(f"[default]\ncredential_process = sh {script}\n")
        client = self.client(aws)
        error = failure(client.registry)
        assert (error.reason, error.everything) == (Reason.ACCESS_DENIED, True)
        assert "credential_process gave no credentials" in str(error)
        assert "PLANTED" not in str(error)
        keys = {"Version": 1, "AccessKeyId": f"AKIADEMO{ACCOUNT}", "SecretAccessKey": "x"}
        script.write_text(f"echo {shlex.quote(json.dumps(keys))}")
        assert client.registry().registry_id == ACCOUNT

    @pytest.mark.usefixtures("file")
    def test_sts_drips_when_botocore_asks_it(
        self, aws: EmbeddedAWS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.setenv("AWS_ENDPOINT_URL", aws.endpoint_url)
        (tmp_path / "token").write_text("token")
        client = AwsConnector(endpoint_url=aws.endpoint_url, answer_timeout=0.3).ecr(
            RegistrySettings(), connections=1
        )
        seen = Recorder(aws, drip := Drip(0.05), "AssumeRoleWithWebIdentity")
        error = failure(client.registry)
        assert (error.reason, error.code) == (Reason.UNAVAILABLE, "AnswerTooSlow")
        drip.released.set()
        seen.fault = None
        assert client.registry().registry_id

    @pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_ECR"])
    def test_the_endpoint(
        self, aws: EmbeddedAWS, file: Path, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        self.write(file, ACCOUNT)
        monkeypatch.setenv(variable, aws.endpoint_url)
        client = AwsConnector().ecr(RegistrySettings(), connections=1)
        assert client.registry().registry_id == ACCOUNT


def test_calls_leave_little_to_the_garbage_collector(aws: EmbeddedAWS, session: boto3.Session) -> None:
    """A response that held itself would leave some thirty objects; boto3 alone leaves three or so."""
    client = AwsConnector(session=lambda: session, endpoint_url=aws.endpoint_url).ecr(
        RegistrySettings(), connections=1
    )
    client.registry()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            client.registry()
        left = gc.collect()
    finally:
        gc.enable()
    assert left < 20 * 10


def test_the_observer_is_told_of_every_call(aws: EmbeddedAWS, session: boto3.Session) -> None:
    told: list[Any] = []
    connector = AwsConnector(
        session=lambda: session, endpoint_url=aws.endpoint_url, observe=lambda *call: told.append(call)
    )
    client = connector.ecr(RegistrySettings(role_arn=ROLE), connections=1)
    seen = Recorder(aws, Refuse(403, "AccessDenied"))
    failure(client.registry)
    seen.fault = None
    client.registry()
    seen.fault = Refuse(429, "ThrottleException")
    failure(client.registry)
    source = (OTHER, REGION)
    assert [call[:4] for call in told] == [
        ("sts", "AssumeRole", source, "access_denied"),
        ("sts", "AssumeRole", source, "success"),
        ("ecr", "DescribeRegistry", source, "success"),
        ("ecr", "DescribeRegistry", source, "throttled"),
    ]
    assert all(0 < seconds < 5 for *_, seconds in told)


class NotingSession(boto3.Session):
    """Keeps the clients that are made of it."""

    made: dict[str, Any]

    def client(self, service_name: str, *args: Any, **options: Any) -> Any:
        self.made[service_name] = super().client(service_name, *args, **options)
        return self.made[service_name]


def test_how_a_client_is_set_up(aws: EmbeddedAWS) -> None:
    session = NotingSession("testing", "testing", region_name=REGION)
    session.made = {}
    connector = AwsConnector(session=lambda: session, endpoint_url=aws.endpoint_url)
    connector.ecr(RegistrySettings(), connections=7).repositories(None)
    config = session.made["ecr"].meta.config
    assert (config.connect_timeout, config.read_timeout) == (CONNECT_TIMEOUT, READ_TIMEOUT) == (3, 10)
    assert config.retries == {"mode": "standard", "total_max_attempts": 1}
    assert config.max_pool_connections == 7
    assert config.user_agent.startswith(f"ecr-replication-exporter/{__version__} ")


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    core = botocore.session.get_session()
    return {service: core.get_service_model(service) for service in ("ecr", "sts")}


def member(shape: Any, path: str) -> Any:
    for name in path.split("."):
        shape = shape.member if name == "[]" else shape.members[name]
    return shape


class TestServiceModel:
    """What botocore knows of AWS, offline."""

    @pytest.mark.parametrize(
        ("service", "operation", "sent"),
        [
            ("sts", "GetCallerIdentity", ()),
            ("sts", "AssumeRole", ("RoleArn", "RoleSessionName", "ExternalId")),
            ("ecr", "DescribeRegistry", ()),
            ("ecr", "DescribeRepositories", ("registryId", "maxResults", "nextToken")),
            (
                "ecr",
                "DescribeImages",
                """registryId maxResults nextToken repositoryName filter.tagStatus imageIds.[].imageTag
                imageIds.[].imageDigest""".split(),
            ),
            (
                "ecr",
                "DescribeImageReplicationStatus",
                ("registryId", "repositoryName", "imageId.imageDigest"),
            ),
        ],
    )
    def test_what_is_sent(self, models: Any, service: str, operation: str, sent: tuple[str, ...]) -> None:
        model = models[service].operation_model(operation)
        for path in sent:
            member(model.input_shape, path)
        required = model.input_shape.required_members if model.input_shape else []
        assert set(required) <= {path.partition(".")[0] for path in sent}

    @pytest.mark.parametrize(
        ("service", "operation", "path", "kind"),
        [
            ("sts", "GetCallerIdentity", "Account", "string"),
            ("sts", "AssumeRole", "Credentials.AccessKeyId", "string"),
            ("sts", "AssumeRole", "Credentials.SecretAccessKey", "string"),
            ("sts", "AssumeRole", "Credentials.SessionToken", "string"),
            ("sts", "AssumeRole", "Credentials.Expiration", "timestamp"),
            ("ecr", "DescribeRegistry", "registryId", "string"),
            ("ecr", "DescribeRegistry", "replicationConfiguration.rules.[].destinations.[].region", "string"),
            (
                "ecr",
                "DescribeRegistry",
                "replicationConfiguration.rules.[].destinations.[].registryId",
                "string",
            ),
            (
                "ecr",
                "DescribeRegistry",
                "replicationConfiguration.rules.[].repositoryFilters.[].filter",
                "string",
            ),
            (
                "ecr",
                "DescribeRegistry",
                "replicationConfiguration.rules.[].deleteReplication.enabled",
                "boolean",
            ),
            ("ecr", "DescribeRepositories", "repositories.[].repositoryName", "string"),
            ("ecr", "DescribeRepositories", "nextToken", "string"),
            ("ecr", "DescribeImages", "imageDetails.[].imageDigest", "string"),
            ("ecr", "DescribeImages", "imageDetails.[].imageTags.[]", "string"),
            ("ecr", "DescribeImages", "imageDetails.[].imagePushedAt", "timestamp"),
            ("ecr", "DescribeImages", "imageDetails.[].lastActivatedAt", "timestamp"),
            ("ecr", "DescribeImages", "nextToken", "string"),
            ("ecr", "DescribeImageReplicationStatus", "repositoryName", "string"),
            ("ecr", "DescribeImageReplicationStatus", "imageId.imageDigest", "string"),
            ("ecr", "DescribeImageReplicationStatus", "replicationStatuses.[].region", "string"),
            ("ecr", "DescribeImageReplicationStatus", "replicationStatuses.[].registryId", "string"),
            ("ecr", "DescribeImageReplicationStatus", "replicationStatuses.[].failureCode", "string"),
        ],
    )
    def test_what_is_read(self, models: Any, service: str, operation: str, path: str, kind: str) -> None:
        assert member(models[service].operation_model(operation).output_shape, path).type_name == kind

    def test_words(self, models: Any) -> None:
        def words(operation: str, side: str, path: str) -> set[str]:
            shape = getattr(models["ecr"].operation_model(operation), side)
            return set(member(shape, path).enum)

        ours = {Status.MISSING, Status.UNKNOWN}
        statuses = words("DescribeImageReplicationStatus", "output_shape", "replicationStatuses.[].status")
        assert statuses == set(Status) - ours
        rules = "replicationConfiguration.rules.[]"
        assert words("DescribeRegistry", "output_shape", f"{rules}.repositoryFilters.[].filterType") == {
            "PREFIX_MATCH"
        }
        assert words("DescribeImages", "input_shape", "filter.tagStatus") >= {"TAGGED", "ANY"}

    def test_limits(self, models: Any) -> None:
        images = models["ecr"].operation_model("DescribeImages").input_shape
        repositories = models["ecr"].operation_model("DescribeRepositories").input_shape
        assert images.members["maxResults"].metadata["max"] == PAGE_SIZE
        assert repositories.members["maxResults"].metadata["max"] == PAGE_SIZE
        assert images.members["imageIds"].metadata["max"] == LOOKUP_SIZE

    def test_errors(self, models: Any) -> None:
        model = models["ecr"].operation_model("DescribeImageReplicationStatus")
        assert {shape.name for shape in model.error_shapes} >= {
            "RepositoryNotFoundException",
            "ImageNotFoundException",
            "ServerException",
        }
