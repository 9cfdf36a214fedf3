import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    ReadTimeoutError,
)
from support.embedded_aws import DropConnection, EmbeddedAWS, Fault, Garbage, Hang, replication_rule

from exporter import demo
from exporter.demo import ACCOUNT, REGION, Call, Refuse, World
from exporter.replication.model import Destination

OTHER = "444455556666"
HOME = (ACCOUNT, REGION)
NOON = 1.8e9
IRELAND = Destination("eu-west-1", ACCOUNT)
OREGON = Destination("us-west-2", ACCOUNT)


class Clock:
    now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def aws(clock: Clock) -> Iterator[EmbeddedAWS]:
    with EmbeddedAWS(clock=clock) as aws:
        aws.create_repository(*HOME, "team/app")
        aws.set_rules(*HOME, [replication_rule(IRELAND)])
        yield aws


@pytest.fixture(scope="module")
def session() -> boto3.Session:
    """One for all tests: a new one reads megabytes of botocore's data."""
    return EmbeddedAWS().session()


@pytest.fixture
def ecr(aws: EmbeddedAWS, session: boto3.Session) -> Any:
    once = Config(retries={"total_max_attempts": 1})
    return session.client("ecr", endpoint_url=aws.endpoint_url, config=once)


def code_of(call: Callable[[], Any]) -> str:
    with pytest.raises(ClientError) as caught:
        call()
    return str(caught.value.response["Error"]["Code"])


def statuses(ecr: Any, digest: str, repository: str = "team/app") -> Any:
    answer = ecr.describe_image_replication_status(repositoryName=repository, imageId={"imageDigest": digest})
    return answer["replicationStatuses"]


def states(ecr: Any, digest: str, repository: str = "team/app") -> dict[str, str]:
    return {row["region"]: row["status"] for row in statuses(ecr, digest, repository)}


def tags_of(ecr: Any, repository: str = "team/app") -> dict[str, set[str]]:
    rows = ecr.describe_images(repositoryName=repository)["imageDetails"]
    return {row["imageDigest"]: set(row.get("imageTags", ())) for row in rows}


class TestListings:
    @pytest.fixture
    def digests(self, aws: EmbeddedAWS) -> list[str]:
        return [aws.push(*HOME, "team/app", f"v{n}") for n in range(250)]

    def test_a_page_is_a_hundred_unless_asked_otherwise(self, ecr: Any, digests: list[str]) -> None:
        first = ecr.describe_images(repositoryName="team/app")
        assert len(first["imageDetails"]) == 100
        second = ecr.describe_images(repositoryName="team/app", nextToken=first["nextToken"], maxResults=1000)
        assert "nextToken" not in second
        rows = first["imageDetails"] + second["imageDetails"]
        assert [row["imageDigest"] for row in rows] == digests

    @pytest.mark.parametrize(
        ("operation", "rows"), [("describe_images", "imageDetails"), ("list_images", "imageIds")]
    )
    def test_pages_add_up(self, ecr: Any, digests: list[str], operation: str, rows: str) -> None:
        pages = list(
            ecr.get_paginator(operation).paginate(repositoryName="team/app", PaginationConfig={"PageSize": 7})
        )
        assert len(pages) == math.ceil(250 / 7)
        assert [row["imageDigest"] for page in pages for row in page[rows]] == digests

    def test_repositories_have_pages(self, aws: EmbeddedAWS, ecr: Any) -> None:
        for n in range(5):
            aws.create_repository(*HOME, f"repository-{n}")
        pages = ecr.get_paginator("describe_repositories").paginate(PaginationConfig={"PageSize": 4})
        names = [[row["repositoryName"] for row in page["repositories"]] for page in pages]
        assert names == [[f"repository-{n}" for n in range(4)], ["repository-4", "team/app"]]

    def test_a_deletion_between_two_pages_hides_nothing_else(
        self, aws: EmbeddedAWS, ecr: Any, digests: list[str]
    ) -> None:
        first = ecr.describe_images(repositoryName="team/app")
        for digest in [*digests[:50], digests[100]]:
            aws.delete_image(*HOME, "team/app", digest)
        second = ecr.describe_images(repositoryName="team/app", nextToken=first["nextToken"], maxResults=1000)
        assert [row["imageDigest"] for row in second["imageDetails"]] == digests[101:]

    @pytest.mark.parametrize("size", [1001, 100000])
    def test_pages_are_bounded(self, ecr: Any, size: int) -> None:
        def page() -> None:
            ecr.describe_images(repositoryName="team/app", maxResults=size)

        assert code_of(page) == "InvalidParameterException"

    def test_a_token_is_good_for_its_own_listing_only(self, aws: EmbeddedAWS, ecr: Any) -> None:
        for n in range(101):
            aws.push(*HOME, "team/app", f"v{n}")
        aws.create_repository(*HOME, "team/other")
        token = ecr.describe_images(repositoryName="team/app")["nextToken"]
        for bad in (token, "bogus", "e30=", "MQ=="):
            request = {"repositoryName": "team/other", "nextToken": bad}
            assert code_of(lambda request=request: ecr.describe_images(**request)) == (  # type: ignore[misc]
                "InvalidParameterException"
            )

    def test_tag_status_filters(self, aws: EmbeddedAWS, ecr: Any) -> None:
        tagged, untagged = aws.push(*HOME, "team/app", "v1"), aws.push(*HOME, "team/app", None)

        def listed(status: str) -> list[str]:
            answer = ecr.describe_images(repositoryName="team/app", filter={"tagStatus": status})
            return [row["imageDigest"] for row in answer["imageDetails"]]

        assert listed("TAGGED") == [tagged]
        assert listed("UNTAGGED") == [untagged]
        assert listed("ANY") == [tagged, untagged]

    def test_a_push_has_the_time_of_the_clock_or_the_one_given(self, aws: EmbeddedAWS, ecr: Any) -> None:
        aws.push(*HOME, "team/app", "now")
        aws.push(*HOME, "team/app", "then", pushed_at=NOON - 3600.5)
        rows = ecr.describe_images(repositoryName="team/app")["imageDetails"]
        assert [row["imagePushedAt"].timestamp() for row in rows] == [NOON, NOON - 3600.5]

    def test_a_page_of_a_hundred_thousand_images_takes_no_time(self, aws: EmbeddedAWS, ecr: Any) -> None:
        with aws._lock:
            for n in range(100_000):
                aws.push(*HOME, "team/app", f"v{n}")
        answer = ecr.describe_images(repositoryName="team/app", maxResults=1000)
        assert len(answer["imageDetails"]) == 1000
        tags = [{"imageTag": f"v{n}"} for n in range(99_900, 100_000)]
        assert len(ecr.describe_images(repositoryName="team/app", imageIds=tags)["imageDetails"]) == 100


class TestLookUps:
    def test_by_tag_by_digest_and_by_both(self, aws: EmbeddedAWS, ecr: Any) -> None:
        first, second = aws.push(*HOME, "team/app", "v1"), aws.push(*HOME, "team/app", "v2")
        aws.push(*HOME, "team/app", "latest", digest=second)
        names = [
            {"imageDigest": first},
            {"imageTag": "v2"},
            {"imageTag": "latest"},
            {"imageTag": "v1", "imageDigest": first},
        ]
        rows = ecr.describe_images(repositoryName="team/app", imageIds=names)["imageDetails"]
        assert [row["imageDigest"] for row in rows] == [first, second]

    @pytest.mark.parametrize("unknown", [{"imageTag": "v2"}, {"imageDigest": "sha256:" + "0" * 64}])
    def test_one_unknown_name_fails_the_whole_call(
        self, aws: EmbeddedAWS, ecr: Any, unknown: dict[str, str]
    ) -> None:
        aws.push(*HOME, "team/app", "v1")
        names = [{"imageTag": "v1"}, unknown]
        assert code_of(lambda: ecr.describe_images(repositoryName="team/app", imageIds=names)) == (
            "ImageNotFoundException"
        )

    def test_a_tag_and_a_digest_that_do_not_belong_together(self, aws: EmbeddedAWS, ecr: Any) -> None:
        digest = aws.push(*HOME, "team/app", "v1")
        aws.push(*HOME, "team/app", "v2")
        names = [{"imageTag": "v2", "imageDigest": digest}]
        assert code_of(lambda: ecr.describe_images(repositoryName="team/app", imageIds=names)) == (
            "ImageNotFoundException"
        )

    def test_a_hundred_names_at_most(self, aws: EmbeddedAWS, ecr: Any) -> None:
        names = [{"imageTag": "v1"}] * 101
        aws.push(*HOME, "team/app", "v1")
        assert ecr.describe_images(repositoryName="team/app", imageIds=names[:100])["imageDetails"]
        assert code_of(lambda: ecr.describe_images(repositoryName="team/app", imageIds=names)) == (
            "InvalidParameterException"
        )

    def test_names_and_pages_do_not_mix(self, ecr: Any) -> None:
        request = {"repositoryName": "team/app", "imageIds": [{"imageTag": "v1"}], "maxResults": 10}
        assert code_of(lambda: ecr.describe_images(**request)) == "InvalidParameterException"

    def test_what_does_not_exist(self, ecr: Any) -> None:
        name = "team/none"
        digest = "sha256:" + "0" * 64
        assert code_of(lambda: ecr.describe_images(repositoryName=name)) == "RepositoryNotFoundException"
        assert code_of(lambda: statuses(ecr, digest, name)) == "RepositoryNotFoundException"
        assert code_of(lambda: statuses(ecr, digest)) == "ImageNotFoundException"
        assert code_of(lambda: ecr.describe_repositories(repositoryNames=[name])) == (
            "RepositoryNotFoundException"
        )
        assert code_of(ecr.list_pull_time_update_exclusions) == "UnknownOperationException"


class TestReplication:
    def test_it_takes_its_time(self, aws: EmbeddedAWS, ecr: Any, clock: Clock) -> None:
        aws.delay = lambda to: 10.0 if to == OREGON else 3.0
        aws.set_rules(
            *HOME,
            [replication_rule(IRELAND), replication_rule(OREGON), replication_rule(IRELAND, prefix="team/")],
        )
        digest = aws.push(*HOME, "team/app", "v1")
        assert states(ecr, digest) == {"eu-west-1": "IN_PROGRESS", "us-west-2": "IN_PROGRESS"}
        clock.now += 3
        assert states(ecr, digest) == {"eu-west-1": "COMPLETE", "us-west-2": "IN_PROGRESS"}
        clock.now += 7
        assert states(ecr, digest) == {"eu-west-1": "COMPLETE", "us-west-2": "COMPLETE"}
        assert statuses(ecr, digest)[0] == {
            "region": "eu-west-1",
            "registryId": ACCOUNT,
            "status": "COMPLETE",
        }

    def test_the_rules_of_the_push_decide(self, aws: EmbeddedAWS, ecr: Any) -> None:
        aws.set_rules(*HOME, [])
        early = aws.push(*HOME, "team/app", "v1")
        aws.set_rules(
            *HOME, [replication_rule(IRELAND, prefix="team/"), replication_rule(OREGON, prefix="prod")]
        )
        late = aws.push(*HOME, "team/app", "v2")
        aws.set_rules(*HOME, [])
        assert states(ecr, early) == {}
        assert states(ecr, late) == {"eu-west-1": "IN_PROGRESS"}

    def test_another_tag_is_no_other_push(self, aws: EmbeddedAWS, ecr: Any, clock: Clock) -> None:
        digest = aws.push(*HOME, "team/app", "v1")
        clock.now += 60
        assert aws.push(*HOME, "team/app", "latest", digest=digest) == digest
        assert states(ecr, digest) == {"eu-west-1": "COMPLETE"}

    def test_a_destination_that_denies(self, aws: EmbeddedAWS, ecr: Any, clock: Clock) -> None:
        aws.denied.add(IRELAND)
        digest = aws.push(*HOME, "team/app", "v1")
        aws.denied.clear()
        assert states(ecr, digest) == {"eu-west-1": "IN_PROGRESS"}
        clock.now += 2
        assert statuses(ecr, digest) == [
            {
                "region": "eu-west-1",
                "registryId": ACCOUNT,
                "status": "FAILED",
                "failureCode": "DESTINATION_REGISTRY_ACCESS_DENIED",
            }
        ]

    def test_a_copy_that_hangs(self, aws: EmbeddedAWS, ecr: Any, clock: Clock) -> None:
        digest = aws.push(*HOME, "team/app", "v1", delay=lambda _: math.inf)
        clock.now += 1e9
        assert states(ecr, digest) == {"eu-west-1": "IN_PROGRESS"}

    @pytest.mark.parametrize("pinned", [[], [{}], [{"region": "mars-1", "status": "PONDERING"}]])
    def test_pinned(self, aws: EmbeddedAWS, ecr: Any, pinned: Any) -> None:
        digest = aws.push(*HOME, "team/app", "v1")
        aws.set_status(*HOME, "team/app", digest, pinned)
        assert statuses(ecr, digest) == pinned
        aws.set_status(*HOME, "team/app", digest, None)
        assert states(ecr, digest) == {"eu-west-1": "IN_PROGRESS"}

    def test_the_registry_tells_its_rules(self, ecr: Any) -> None:
        answer = ecr.describe_registry()
        assert answer["registryId"] == ACCOUNT
        assert answer["replicationConfiguration"] == {"rules": [replication_rule(IRELAND)]}


class TestTags:
    def test_a_tag_that_moves_leaves_its_image(self, aws: EmbeddedAWS, ecr: Any) -> None:
        old = aws.push(*HOME, "team/app", "latest")
        new = aws.push(*HOME, "team/app", "latest")
        assert tags_of(ecr) == {old: set(), new: {"latest"}}

    def test_an_image_goes_with_its_last_tag(self, aws: EmbeddedAWS, ecr: Any) -> None:
        digest = aws.push(*HOME, "team/app", "v1")
        aws.push(*HOME, "team/app", "latest", digest=digest)
        aws.untag(*HOME, "team/app", "latest")
        assert tags_of(ecr) == {digest: {"v1"}}
        aws.untag(*HOME, "team/app", "v1")
        assert tags_of(ecr) == {}

    def test_deleting(self, aws: EmbeddedAWS, ecr: Any) -> None:
        digest = aws.push(*HOME, "team/app", "v1")
        aws.delete_image(*HOME, "team/app", digest)
        assert tags_of(ecr) == {}
        aws.delete_repository(*HOME, "team/app")
        assert ecr.describe_repositories()["repositories"] == []
        with pytest.raises(Refuse, match="RepositoryNotFound"):
            aws.push(*HOME, "team/app", "v1")


class TestOverTheWire:
    """What a person can do with the AWS CLI."""

    def test_repositories(self, ecr: Any) -> None:
        made = ecr.create_repository(repositoryName="mine/own")["repository"]
        assert made["repositoryArn"] == f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/mine/own"
        assert made["createdAt"].timestamp() == NOON
        assert code_of(lambda: ecr.create_repository(repositoryName="mine/own")) == (
            "RepositoryAlreadyExistsException"
        )
        ecr.put_image(repositoryName="mine/own", imageManifest="{}", imageTag="v1")
        assert code_of(lambda: ecr.delete_repository(repositoryName="mine/own")) == (
            "RepositoryNotEmptyException"
        )
        ecr.delete_repository(repositoryName="mine/own", force=True)
        names = [row["repositoryName"] for row in ecr.describe_repositories()["repositories"]]
        assert names == ["team/app"]

    def test_pushing(self, ecr: Any) -> None:
        def put(tag: str, manifest: str = "{}") -> str:
            answer = ecr.put_image(repositoryName="team/app", imageManifest=manifest, imageTag=tag)
            return str(answer["image"]["imageId"]["imageDigest"])

        first = put("v1")
        assert put("latest") == first
        assert code_of(lambda: put("v1")) == "ImageAlreadyExistsException"
        second = put("latest", '{"schemaVersion": 2}')
        assert tags_of(ecr) == {first: {"v1"}, second: {"latest"}}
        assert states(ecr, first) == {"eu-west-1": "IN_PROGRESS"}

    def test_deleting(self, aws: EmbeddedAWS, ecr: Any) -> None:
        first, second = aws.push(*HOME, "team/app", "v1"), aws.push(*HOME, "team/app", "v2")
        aws.push(*HOME, "team/app", "latest", digest=second)
        image_ids = [{"imageDigest": first}, {"imageTag": "v2"}, {"imageTag": "v9"}]
        answer = ecr.batch_delete_image(repositoryName="team/app", imageIds=image_ids)
        assert answer["imageIds"] == [
            {"imageDigest": first},
            {"imageDigest": second, "imageTag": "v2"},
        ]
        assert [failure["failureCode"] for failure in answer["failures"]] == ["ImageNotFound"]
        assert tags_of(ecr) == {second: {"latest"}}

    def test_rules(self, aws: EmbeddedAWS, ecr: Any) -> None:
        rules = [replication_rule(OREGON, prefix="prod"), replication_rule(IRELAND, OREGON)]
        ecr.put_replication_configuration(replicationConfiguration={"rules": rules})
        assert ecr.describe_registry()["replicationConfiguration"] == {"rules": rules}
        assert states(ecr, aws.push(*HOME, "team/app", "v1")).keys() == {"eu-west-1", "us-west-2"}


class TestAccounts:
    def test_who_asks_decides_whose_registry(self, aws: EmbeddedAWS) -> None:
        aws.create_repository(OTHER, "eu-west-1", "theirs")
        assert aws.client("sts").get_caller_identity()["Account"] == ACCOUNT
        ecr = aws.client("ecr", account=OTHER, region="eu-west-1")
        assert ecr.describe_registry()["registryId"] == OTHER
        assert [row["repositoryName"] for row in ecr.describe_repositories()["repositories"]] == ["theirs"]

    def test_an_assumed_role_sees_its_own_account(self, aws: EmbeddedAWS) -> None:
        aws.create_repository(OTHER, REGION, "theirs")
        role = aws.client("sts").assume_role(
            RoleArn=f"arn:aws:iam::{OTHER}:role/reader", RoleSessionName="exporter", ExternalId="secret"
        )["Credentials"]

        def client(service: str) -> Any:
            return aws.session().client(
                service,
                endpoint_url=aws.endpoint_url,
                aws_access_key_id=role["AccessKeyId"],
                aws_secret_access_key=role["SecretAccessKey"],
                aws_session_token=role["SessionToken"],
            )

        assert client("sts").get_caller_identity()["Account"] == OTHER
        rows = client("ecr").describe_repositories()["repositories"]
        assert [row["repositoryArn"] for row in rows] == [f"arn:aws:ecr:{REGION}:{OTHER}:repository/theirs"]

    def test_a_web_identity_needs_no_signature(self, aws: EmbeddedAWS) -> None:
        answer = aws.client("sts").assume_role_with_web_identity(
            RoleArn=f"arn:aws:iam::{OTHER}:role/reader", RoleSessionName="pod", WebIdentityToken="token"
        )
        assert answer["Credentials"]["AccessKeyId"]

    def test_another_accounts_registry_by_its_policy(self, aws: EmbeddedAWS, ecr: Any) -> None:
        aws.create_repository(OTHER, REGION, "theirs")
        digest = aws.push(OTHER, REGION, "theirs", "v1")
        answer = ecr.describe_images(registryId=OTHER, repositoryName="theirs")
        assert [row["imageDigest"] for row in answer["imageDetails"]] == [digest]
        assert answer["imageDetails"][0]["registryId"] == OTHER

    def test_the_environment_has_no_say(self, aws: EmbeddedAWS, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {
            "AWS_PROFILE": "none-such",
            "AWS_REGION": "mars-north-1",
            "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
            "AWS_USE_FIPS_ENDPOINT": "true",
            "AWS_CONFIG_FILE": "/none/such",
            "AWS_RETRY_MODE": "bogus",
            "HTTP_PROXY": "http://127.0.0.1:1",
            "NO_PROXY": "",
        }.items():
            monkeypatch.setenv(name, value)
        assert aws.session().region_name == REGION
        assert aws.client("ecr").describe_registry()["registryId"] == ACCOUNT


class TestFaults:
    @pytest.fixture
    def broken(self, aws: EmbeddedAWS) -> Callable[[Fault], list[Call]]:
        """Have every call fail; the calls that did."""
        calls: list[Call] = []

        def fail(fault: Fault) -> list[Call]:
            def hook(call: Call) -> Fault:
                calls.append(call)
                return fault

            aws.fault = hook
            return calls

        return fail

    @pytest.mark.parametrize("service", ["ecr", "sts"])
    def test_refused(self, aws: EmbeddedAWS, broken: Callable[[Fault], list[Call]], service: str) -> None:
        broken(Refuse(429, "ThrottlingException", "Rate <exceeded>"))
        client = aws.client(service)
        call = client.describe_registry if service == "ecr" else client.get_caller_identity
        with pytest.raises(ClientError, match="Rate <exceeded>") as caught:
            call()
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 429
        assert caught.value.response["Error"]["Code"] == "ThrottlingException"

    def test_the_hook_sees_the_whole_call(self, ecr: Any, broken: Callable[[Fault], list[Call]]) -> None:
        calls = broken(Refuse(400, "AccessDeniedException"))
        assert code_of(lambda: ecr.describe_images(repositoryName="team/app")) == "AccessDeniedException"
        (call,) = calls
        assert call.kind == ("ecr", "DescribeImages", ACCOUNT, REGION)
        assert call.params == {"repositoryName": "team/app"}
        assert call.registry_id == ACCOUNT

    def test_garbage(self, ecr: Any, broken: Callable[[Fault], list[Call]]) -> None:
        broken(Garbage(b"<html>Bad Gateway</html>", status=502))
        assert code_of(ecr.describe_registry) == "502"

    def test_garbage_that_parses(self, ecr: Any, broken: Callable[[Fault], list[Call]]) -> None:
        broken(Garbage(b'{"registryId": null, "surprise": 1}', content_type="application/x-amz-json-1.1"))
        assert "registryId" not in ecr.describe_registry()

    def test_a_cut_connection(
        self, aws: EmbeddedAWS, ecr: Any, broken: Callable[[Fault], list[Call]]
    ) -> None:
        broken(DropConnection())
        with pytest.raises(ConnectionClosedError):
            ecr.describe_registry()
        aws.fault = lambda _: None
        assert ecr.describe_registry()["registryId"] == ACCOUNT

    def test_a_hang_ends_when_released(self, aws: EmbeddedAWS, ecr: Any) -> None:
        hang, seen = Hang(), threading.Event()

        def hook(_: Call) -> Fault:
            seen.set()
            return hang

        aws.fault = hook
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ecr.describe_registry)
            assert seen.wait(5)
            assert not answer.done()
            hang.released.set()
            assert answer.result(5)["registryId"] == ACCOUNT

    def test_a_hang_outlasts_an_impatient_client(
        self, aws: EmbeddedAWS, broken: Callable[[Fault], list[Call]]
    ) -> None:
        broken(Hang())
        impatient = aws.session().client(
            "ecr",
            endpoint_url=aws.endpoint_url,
            config=Config(read_timeout=0.05, retries={"total_max_attempts": 1}),
        )
        with pytest.raises(ReadTimeoutError):
            impatient.describe_registry()

    def test_a_hang_of_some_seconds(self, ecr: Any, broken: Callable[[Fault], list[Call]]) -> None:
        broken(Hang(seconds=0.01))
        assert ecr.describe_registry()["registryId"] == ACCOUNT

    def test_nothing_hangs_once_it_stopped(self, aws: EmbeddedAWS, ecr: Any) -> None:
        hang, seen = Hang(seconds=600), threading.Event()

        def hook(_: Call) -> Fault:
            seen.set()
            return hang

        aws.fault = hook
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ecr.describe_registry)
            assert seen.wait(5)
            aws.stop()
            with pytest.raises(ConnectionClosedError):
                answer.result(5)
        with pytest.raises(EndpointConnectionError):
            ecr.describe_registry()

    @pytest.mark.parametrize(
        ("headers", "body", "code"),
        [
            ({}, b"", "MissingAuthenticationTokenException"),
            ({"X-Amz-Target": "X.DescribeRegistry"}, b"{", "SerializationException"),
            ({"X-Amz-Target": "X.DescribeRegistry"}, b"[]", "SerializationException"),
            ({"X-Amz-Target": "X.DescribeImages", "Authorization": "ecr"}, b"{}", "ServerException"),
            ({"X-Amz-Target": "X.ListBuckets", "Authorization": "s3"}, b"{}", "UnknownOperationException"),
        ],
    )
    def test_requests_that_no_sdk_would_send(
        self, aws: EmbeddedAWS, headers: dict[str, str], body: bytes, code: str
    ) -> None:
        if service := headers.get("Authorization"):
            scope = f"AKIADEMO{ACCOUNT}/20260101/{REGION}/{service}/aws4_request"
            headers = headers | {"Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, Signature=0"}
        request = Request(aws.endpoint_url, data=body, headers=headers)
        with pytest.raises(HTTPError) as caught:
            urlopen(request, timeout=5)
        with caught.value as answer:
            assert json.load(answer)["__type"] == code


def test_calls_are_counted_by_what_who_and_where(aws: EmbeddedAWS, ecr: Any) -> None:
    ecr.describe_registry()
    ecr.describe_registry()
    aws.client("ecr", account=OTHER, region="eu-west-1").describe_registry()
    aws.client("sts").get_caller_identity()
    assert aws.calls == {
        ("ecr", "DescribeRegistry", ACCOUNT, REGION): 2,
        ("ecr", "DescribeRegistry", OTHER, "eu-west-1"): 1,
        ("sts", "GetCallerIdentity", ACCOUNT, REGION): 1,
    }
    assert aws.count("DescribeRegistry") == 3
    assert aws.count("DescribeRegistry", account=OTHER) == 1


def test_pushes_and_calls_from_many_threads(aws: EmbeddedAWS) -> None:
    client = aws.session().client("ecr", endpoint_url=aws.endpoint_url, config=Config(max_pool_connections=8))

    def work(worker: int) -> None:
        for n in range(20):
            digest = aws.push(*HOME, "team/app", f"v{worker}-{n}")
            assert states(client, digest) == {"eu-west-1": "IN_PROGRESS"}
            client.describe_images(repositoryName="team/app", maxResults=1000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert aws.count("DescribeImageReplicationStatus") == 160
    assert len(client.describe_images(repositoryName="team/app", maxResults=1000)["imageDetails"]) == 160


class TestWorld:
    @pytest.fixture
    def aws(self, clock: Clock) -> Iterator[EmbeddedAWS]:
        with EmbeddedAWS(clock=clock) as aws:
            yield aws

    @pytest.fixture
    def world(self, aws: EmbeddedAWS) -> World:
        return World(aws, now=NOON, random=Random(1))

    def reported(self, ecr: Any) -> dict[str, dict[str, set[str]]]:
        """What is reported, by repository and tag."""
        names = [row["repositoryName"] for row in ecr.describe_repositories()["repositories"]]
        return {
            name: {
                ",".join(sorted(tags)): set(states(ecr, digest, name).values())
                for digest, tags in tags_of(ecr, name).items()
            }
            for name in names
        }

    def builds(self, reported: dict[str, dict[str, set[str]]]) -> dict[str, set[str]]:
        return {
            tags.removesuffix(",latest"): found
            for images in reported.values()
            for tags, found in images.items()
            if tags.startswith("build-")
        }

    @pytest.mark.usefixtures("world")
    def test_every_state_is_there_from_the_start(self, ecr: Any) -> None:
        found = self.reported(ecr)
        assert found["platform/base"]["12.4"] == set()
        assert found["platform/base"]["12.5"] == {"COMPLETE"}
        assert found["team/api"]["v2.4.0"] == {"IN_PROGRESS"}
        assert found["team/web"]["build-116,latest"] == {"COMPLETE"}
        assert all("FAILED" in states for states in found["team/worker"].values())

    def test_pushes_go_on_and_replicate(self, ecr: Any, world: World, clock: Clock) -> None:
        before = self.builds(self.reported(ecr))
        world.step(clock.now)
        found = self.builds(self.reported(ecr))
        (new,) = found.keys() - before.keys()
        assert found[new] == {"IN_PROGRESS"}
        clock.now += 60
        world.step(clock.now)
        found = self.builds(self.reported(ecr))
        assert found[new] >= {"COMPLETE"}
        assert "IN_PROGRESS" not in found[new]
        assert 6 <= len(found.keys() - before.keys() - {new}) <= 12

    def copies(self, aws: EmbeddedAWS) -> dict[str, set[str]]:
        """The copies of platform/base in Ireland."""
        return tags_of(aws.client("ecr", region=IRELAND.region), "platform/base")

    def test_copies_are_damaged_ten_seconds_after_the_start(
        self, aws: EmbeddedAWS, ecr: Any, world: World, clock: Clock
    ) -> None:
        before = self.copies(aws)
        named = {tag: digest for digest, tags in before.items() for tag in tags}
        assert named.keys() == {"12.5", "11.1", "11.2", "11.3", "11.4"}
        clock.now += 10
        world.step(clock.now)
        clock.now += 10
        world.step(clock.now)
        after = self.copies(aws)
        assert before.keys() - after.keys() == {named["11.1"], named["11.4"]}  # deleted, archived
        assert after[named["11.2"]] == {"11.2-old"}
        assert after[named["11.3"]] == {"11.3"}
        (pushed_again,) = [digest for digest, tags in tags_of(ecr, "platform/base").items() if "11.3" in tags]
        assert after[pushed_again] == set()
        assert states(ecr, pushed_again, "platform/base") == {"eu-west-1": "COMPLETE"}

    def test_it_does_not_grow(self, aws: EmbeddedAWS, ecr: Any, world: World, clock: Clock) -> None:
        for _ in range(3600):
            clock.now += 1
            world.step(clock.now)
        found = self.reported(ecr)
        assert sum(len(images) for images in found.values()) == 3 * 10 + 8
        for account, region in ((ACCOUNT, "eu-west-1"), (ACCOUNT, "us-west-2"), (OTHER, "eu-west-1")):
            client = aws.client("ecr", account=account, region=region)
            for row in client.describe_repositories()["repositories"]:
                assert len(tags_of(client, row["repositoryName"])) <= 10
        assert found["platform/base"]["12.4"] == set()
        assert found["team/api"]["v2.4.0"] == {"IN_PROGRESS"}

    def test_it_goes_on_whatever_a_visitor_deletes(
        self, aws: EmbeddedAWS, ecr: Any, world: World, clock: Clock
    ) -> None:
        aws.delete_repository(*HOME, "team/web")
        for digest in tags_of(ecr, "team/api"):
            aws.delete_image(*HOME, "team/api", digest)
        clock.now += 1200
        world.step(clock.now)
        assert 10 <= len(tags_of(ecr, "team/api")) <= 16

    def test_a_backfill_makes_progress(self, ecr: Any, world: World, clock: Clock) -> None:
        def listed() -> list[tuple[str, str, int, int]]:
            rows = ecr.list_replication_backfills()["backfills"]
            return [
                (
                    row["destination"]["registryId"],
                    row["status"],
                    row["progress"]["completedReplicationCount"],
                    row["progress"]["failedReplicationCount"],
                )
                for row in rows
            ]

        assert listed() == [(ACCOUNT, "IN_PROGRESS", 240, 0), (OTHER, "FAILED", 0, 1200)]
        for minutes, status, completed in (
            (5, "IN_PROGRESS", 360),
            (40, "COMPLETE", 1200),
            (15, "IN_PROGRESS", 240),
        ):
            clock.now += minutes * 60
            world.step(clock.now)
            assert listed()[0] == (ACCOUNT, status, completed, 0)

    @pytest.mark.usefixtures("world")
    def test_what_the_configuration_names_exists(self, ecr: Any) -> None:
        assert demo.world.STUCK in tags_of(ecr, "team/api")
        assert {"12.4"} in tags_of(ecr, "platform/base").values()


def test_the_demo_lives_until_it_is_stopped() -> None:
    before = set(threading.enumerate())
    with demo.start() as running:
        client = running.session().client("ecr", endpoint_url=running.endpoint_url)
        assert len(client.describe_repositories()["repositories"]) == 4
    left = [thread for thread in set(threading.enumerate()) - before if thread.name == "demo-world"]
    assert left == []


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_it_leaves_the_process_and_the_network_alone() -> None:
    program = """
import logging, os, sys
environment, handlers, level = dict(os.environ), list(logging.root.handlers), logging.root.level
def audit(event, args):
    away = event == "socket.connect" and args[1][0] != "127.0.0.1"
    away |= event == "socket.getaddrinfo" and args[0] != "127.0.0.1"
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if away or writes or event in ("os.mkdir", "os.putenv", "subprocess.Popen"):
        raise RuntimeError(f"{event} {args}")
sys.dont_write_bytecode = True
sys.addaudithook(audit)
from exporter import demo
with demo.start() as running:
    running.session().client("sts", endpoint_url=running.endpoint_url).get_caller_identity()
assert environment == dict(os.environ)
assert (handlers, level) == (logging.root.handlers, logging.root.level)
"""
    done = run(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_moto_it_says_what_to_install() -> None:
    done = run("import sys; sys.modules['moto'] = None; import exporter.demo")
    assert done.stderr.splitlines()[-1].startswith("ImportError: the demo needs moto: pip install '.[demo]'")
