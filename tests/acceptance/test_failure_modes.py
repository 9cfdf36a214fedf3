"""One test for each row of docs/failure-modes.md: a simulated AWS fails as the row says.

Unless a test says otherwise, known results stay, the other registry is still polled, no traceback is logged,
and the exporter recovers by itself after AWS does.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from support.command import eventually
from support.embedded_aws import (
    Drip,
    DropConnection,
    EmbeddedAWS,
    Fault,
    Garbage,
    Hang,
    Truncate,
    json_answer,
)
from support.fakes import ACCOUNT as FAKE_ACCOUNT
from support.fakes import REGION as FAKE_REGION
from support.fakes import FakeAWS, FakeECR, Inline, Rig, Stuck, refusal
from support.lender import Lender
from support.live import CONFIG, HOME, IRELAND, PARTNER, Live, living, populated

from exporter.aws.credentials import RENEW_BEFORE
from exporter.aws.errors import ECRError
from exporter.config import settings as config
from exporter.config.settings import RegistrySettings, Settings, TargetSettings
from exporter.demo import ACCOUNT, REGION, Call, Refuse
from exporter.polling.calls import LOST_AFTER
from exporter.polling.poller import HEARTBEAT
from exporter.polling.workers import MAX_HANDED_OUT, WorkerPool
from exporter.replication.model import Destination, Reason, Replication, Status

DOCUMENT = Path(__file__).parents[2] / "docs" / "failure-modes.md"
#: The sections whose tests are in tests/polling.
ELSEWHERE = {"Destinations": "test_replicas.py", "The events queue": "test_events.py"}
STATUS = "DescribeImageReplicationStatus"


@pytest.fixture(scope="module")
def session() -> boto3.Session:
    return EmbeddedAWS().session()


@pytest.fixture
def aws() -> Iterator[EmbeddedAWS]:
    with EmbeddedAWS(delay=lambda _: 0.0) as aws:
        yield populated(aws)


#: Time-outs of calls, in seconds, for answers that hang or are slow.
IMPATIENT = {"read_timeout": 0.4, "answer_timeout": 0.8}


@contextmanager
def settled(session: boto3.Session | None, url: str, **options: Any) -> Iterator[Live]:
    """An exporter after its first round. At the end it is healthy and ready, and it logged no error."""
    made = (lambda: session) if session else None
    with living(made, url, **options) as live:
        eventually(lambda: set(live.success()) == HOME and live.statuses() == {"COMPLETE"})
        live.heals(within=5)
        eventually(lambda: live.exporter.ready() is None)
        yield live
        assert live.exporter.healthy() is None
        assert live.exporter.ready() is None
        assert not [line for line in live.lines() if "traceback" in line or line["level"] == "error"]


@pytest.fixture
def live(session: boto3.Session, aws: EmbeddedAWS) -> Iterator[Live]:
    with settled(session, aws.endpoint_url) as live:
        yield live


@pytest.fixture
def impatient(session: boto3.Session, aws: EmbeddedAWS) -> Iterator[Live]:
    with settled(session, aws.endpoint_url, **IMPATIENT) as live:
        yield live


def at_home(fault: Fault, operation: str = "", repository: str = "") -> Callable[[Call], Fault | None]:
    """The fault in calls to the home registry: in all, or in those of one operation or repository."""

    def found(call: Call) -> Fault | None:
        wanted = (
            call.kind.service == "ecr"
            and call.kind.account == ACCOUNT
            and operation in ("", call.operation)
            and repository in ("", call.params.get("repositoryName"))
        )
        return fault if wanted else None

    return found


def partner_is_still_polled(live: Live) -> None:
    """The other registry is listed again, and its target succeeds."""
    before = live.last_listed(PARTNER)
    eventually(lambda: live.last_listed(PARTNER) > before, within=5)
    success = "ecr_target_success"
    eventually(lambda: [value for _, value in live.series(success, source_registry_id=PARTNER)] == [1])


def fails(live: Live, reason: str, *targets: str, message: str = "", known: set[str] | None = None) -> None:
    """Exactly these targets of home fail for the reason, with one warning; no target means all of them.

    `known` is the states of home that are still shown; {"COMPLETE"} by default.
    """
    failing = set(targets) or HOME
    eventually(lambda: all(reason in live.reasons(target) for target in failing), within=10)
    partner_is_still_polled(live)
    assert {target for target, success in live.success().items() if success == 0} == failing
    assert live.statuses(source_registry_id=ACCOUNT) == ({"COMPLETE"} if known is None else known)
    warnings = live.lines("aws_request_failed")
    assert [w["registry"] for w in warnings if w["registry"] != "home"] == []
    assert [w["reason"] for w in warnings] == [reason]
    assert message in warnings[0]["error"]


def heals(live: Live, aws: EmbeddedAWS, *, within: float = 20) -> None:
    aws.fault = lambda _: None
    live.heals(within=within)
    eventually(lambda: live.lines("recovered"), within=5)
    assert live.statuses() == {"COMPLETE"}


# -- no answer, or an unreadable one ---------------------------------------------------------------


def test_connections_are_reset(live: Live, aws: EmbeddedAWS) -> None:
    aws.fault = at_home(DropConnection())
    fails(live, "unavailable", message="ConnectionClosedError")
    heals(live, aws)


def test_a_name_does_not_resolve(
    session: boto3.Session, aws: EmbeddedAWS, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, known = socket.getaddrinfo, [True]

    def found(host: Any, *where: Any, **how: Any) -> Any:
        if host == "ecr.test" and not known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve("127.0.0.1" if host == "ecr.test" else host, *where, **how)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    monkeypatch.setenv("NO_PROXY", "ecr.test")
    with settled(session, aws.endpoint_url.replace("127.0.0.1", "ecr.test")) as live:
        known.clear()
        aws.fault = lambda _: DropConnection()  # ends the open connections
        eventually(lambda: all("unavailable" in live.reasons(t) for t in HOME), within=15)
        assert live.statuses() == {"COMPLETE"}
        known.append(True)
        heals(live, aws, within=15)


@pytest.mark.parametrize("exact", [False, True], ids=["Content-Length of all", "Content-Length of the part"])
def test_answers_are_truncated(live: Live, aws: EmbeddedAWS, exact: bool) -> None:
    aws.fault = at_home(Truncate(25, exact_length=exact))
    fails(live, "unavailable")
    heals(live, aws)


def test_html_comes_instead_of_json(live: Live, aws: EmbeddedAWS) -> None:
    aws.fault = at_home(Garbage(b"<html><body>Please log in to the hotel's network</body></html>"))
    fails(live, "unavailable", message="ResponseParserError")
    heals(live, aws)
    assert not [line for line in live.lines() if "hotel" in str(line)]


@pytest.mark.parametrize("status", [500, 503])
def test_the_server_fails(live: Live, aws: EmbeddedAWS, status: int) -> None:
    aws.fault = at_home(Refuse(status, "ServerException", "try later"))
    fails(live, "unavailable", message="ServerException: try later")
    heals(live, aws)


def test_the_server_hangs(impatient: Live, aws: EmbeddedAWS) -> None:
    aws.fault = at_home(hang := Hang())
    fails(impatient, "unavailable", message="ReadTimeoutError")
    hang.released.set()
    heals(impatient, aws)


def test_an_answer_comes_byte_by_byte(impatient: Live, aws: EmbeddedAWS) -> None:
    aws.fault = at_home(Drip(0.1))
    fails(impatient, "unavailable", message="AnswerTooSlow: the answer was not complete after 0.8 s")
    heals(impatient, aws)


# -- unexpected answers ----------------------------------------------------------------------------


def report(aws: EmbeddedAWS, statuses: object) -> None:
    """Set the status that ECR reports for the image of team/app."""
    (image,) = aws.client("ecr").describe_images(repositoryName="team/app")["imageDetails"]
    aws.set_status(ACCOUNT, REGION, "team/app", image["imageDigest"], statuses)


def test_fields_are_empty_or_null(live: Live, aws: EmbeddedAWS) -> None:
    odd: list[object] = [{}, IRELAND | {"status": None}, IRELAND | {"failureCode": None, "status": ""}]
    report(aws, odd)
    eventually(lambda: live.statuses(repository="team/app") == {"UNKNOWN"}, within=5)
    partner_is_still_polled(live)
    assert live.statuses(repository="team/api") == {"COMPLETE"}
    report(aws, None)
    eventually(lambda: live.statuses() == {"COMPLETE"}, within=5)


@pytest.mark.parametrize(
    "answer",
    [
        {"replicationStatuses": [None]},
        {"repositoryName": "team/app", "imageId": {}},
        {"repositoryName": "team/app", "imageId": {"imageDigest": "another"}, "replicationStatuses": []},
    ],
    ids=str,
)
def test_a_status_cannot_be_read(live: Live, aws: EmbeddedAWS, answer: object) -> None:
    aws.fault = at_home(json_answer(answer), STATUS, "team/app")
    fails(live, "unavailable", "team/app:v1", message="UnusableAnswer")
    heals(live, aws)


def test_a_status_is_not_known(live: Live, aws: EmbeddedAWS) -> None:
    report(aws, [IRELAND | {"status": "TELEPORTED"}])
    eventually(lambda: live.statuses(repository="team/app") == {"TELEPORTED"}, within=5)
    partner_is_still_polled(live)
    assert live.statuses(repository="team/api") == {"COMPLETE"}
    assert [line["status"] for line in live.lines("unknown_status")] == ["TELEPORTED"]
    report(aws, None)
    eventually(lambda: live.statuses() == {"COMPLETE"}, within=5)


def test_a_destination_is_listed_twice(live: Live, aws: EmbeddedAWS) -> None:
    failed = IRELAND | {"status": "FAILED", "failureCode": "BROKEN"}
    report(aws, [IRELAND | {"status": "COMPLETE"}, failed, IRELAND | {"status": "IN_PROGRESS"}])
    eventually(lambda: live.statuses(repository="team/app") == {"FAILED"}, within=5)
    ones = [s for s in live.series("ecr_image_replication_status", repository="team/app") if s[1] == 1]
    assert len(ones) == 1
    assert live.series("ecr_image_replication_failure_info")[0][0]["failure_code"] == "BROKEN"
    report(aws, None)
    eventually(lambda: live.statuses() == {"COMPLETE"}, within=5)


ONE_MORE = {"imageDigest": "sha256:1", "imageTags": ["v1"]}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"imageDetails": None, "nextToken": "x"},
        {"imageDetails": [{}]},
        {"imageDetails": [ONE_MORE, {}]},
        {"imageDetails": [ONE_MORE, {"imageDigest": "sha256:2", "imageTags": [None]}]},
    ],
)
def test_a_listing_cannot_be_read(live: Live, aws: EmbeddedAWS, answer: object) -> None:
    aws.fault = at_home(json_answer(answer), "DescribeImages", "base/img")
    fails(live, "unavailable", "base/*")
    assert live.statuses(repository="base/img") == {"COMPLETE"}
    heals(live, aws)


def test_a_look_up_omits_an_image(live: Live, aws: EmbeddedAWS) -> None:
    aws.fault = at_home(json_answer({"imageDetails": []}), "DescribeImages", "team/app")
    eventually(lambda: live.reasons("team/app:v1") == {"image_not_found"}, within=10)
    assert not live.series("ecr_image_replication_status", repository="team/app")
    assert live.statuses(repository="team/api") == {"COMPLETE"}
    partner_is_still_polled(live)
    aws.fault = lambda _: None
    live.heals(within=10)


@pytest.mark.parametrize("answer", [{"imageDetails": None, "nextToken": "x"}, {"imageDetails": [{}]}])
def test_a_look_up_cannot_be_read(live: Live, aws: EmbeddedAWS, answer: object) -> None:
    aws.fault = at_home(json_answer(answer), "DescribeImages", "team/app")
    fails(live, "unavailable", "team/app:v1", message="UnusableAnswer")
    heals(live, aws)


def test_the_list_of_repositories_cannot_be_read(live: Live, aws: EmbeddedAWS) -> None:
    answer = {"repositories": [{"repositoryName": "base/other"}, {}]}
    aws.fault = at_home(json_answer(answer), "DescribeRepositories")
    fails(live, "unavailable", "base/*", message="UnusableAnswer")
    heals(live, aws)


@pytest.mark.parametrize("at", [True, 1e9, 4e9])
def test_a_push_time_is_impossible(live: Live, aws: EmbeddedAWS, at: float) -> None:
    def mistimed(call: Call) -> Fault | None:
        if not at_home(DropConnection(), "DescribeImages", "team/app")(call):
            return None
        (image,) = aws.serve(call)["imageDetails"]
        return json_answer({"imageDetails": [image | {"imagePushedAt": at}]})

    assert live.series("ecr_image_pushed_timestamp_seconds", repository="team/app")
    aws.fault = mistimed
    eventually(lambda: not live.series("ecr_image_pushed_timestamp_seconds", repository="team/app"), within=5)
    partner_is_still_polled(live)
    eventually(lambda: live.statuses(repository="team/app") == {"COMPLETE"}, within=5)
    aws.fault = lambda _: None
    eventually(lambda: live.series("ecr_image_pushed_timestamp_seconds", repository="team/app"), within=5)


def test_the_registry_id_is_invalid(live: Live, aws: EmbeddedAWS) -> None:
    answer = {"registryId": "0", "replicationConfiguration": {"rules": []}}
    aws.fault = at_home(json_answer(answer), "DescribeRegistry")
    fails(live, "unavailable", message="no account id of 12 digits")
    assert live.series("ecr_registry_replication_rule_info", source_registry_id=ACCOUNT)
    heals(live, aws)


@pytest.mark.parametrize("rules", [None, [None]])
def test_the_rules_cannot_be_read(live: Live, aws: EmbeddedAWS, rules: object) -> None:
    answer = {"registryId": ACCOUNT, "replicationConfiguration": {"rules": rules}}
    aws.fault = at_home(json_answer(answer), "DescribeRegistry")
    fails(live, "unavailable", message="no rules that can be understood")
    assert live.series("ecr_registry_replication_rule_info", source_registry_id=ACCOUNT)
    heals(live, aws)


@pytest.mark.parametrize("code", ["SomethingNewException", "UnknownOperationException"])
def test_an_error_code_or_operation_is_unknown(live: Live, aws: EmbeddedAWS, code: str) -> None:
    aws.fault = at_home(Refuse(400, code, "no such thing"), STATUS, "team/app")
    fails(live, "invalid", "team/app:v1", message=f"ecr:{STATUS}: {code}: no such thing")
    heals(live, aws)


def test_page_tokens_expire(live: Live, aws: EmbeddedAWS) -> None:
    def expired(call: Call) -> Fault | None:
        if not at_home(DropConnection(), "DescribeImages", "base/img")(call):
            return None
        if "nextToken" in call.params:
            return Refuse(400, "InvalidParameterException", "the token has expired")
        return json_answer(aws.serve(call) | {"nextToken": "t"})

    aws.fault = expired
    fails(live, "invalid", "base/*", message="the token has expired")
    heals(live, aws)


@pytest.mark.parametrize("fresh", [False, True], ids=["same token", "new tokens"])
def test_a_listing_never_ends(live: Live, aws: EmbeddedAWS, fresh: bool) -> None:
    tokens: list[str] = []

    def looping(call: Call) -> Fault | None:
        if not at_home(DropConnection(), "DescribeImages", "base/img")(call):
            return None
        tokens.append(f"token-{len(tokens) if fresh else 0}")
        plain = {name: value for name, value in call.params.items() if name != "nextToken"}
        return json_answer(aws.serve(Call(call.kind, plain)) | {"nextToken": tokens[-1]})

    aws.fault = looping
    fails(live, "invalid", "base/*", message="a page was repeated")
    assert len(tokens) < 20
    heals(live, aws)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "targets"),
    [
        ("DescribeRegistry", HOME),
        ("DescribeRepositories", {"base/*"}),
        ("DescribeImages", HOME),
        (STATUS, HOME),
    ],
)
def test_an_action_is_revoked(live: Live, aws: EmbeddedAWS, operation: str, targets: set[str]) -> None:
    message = f"User is not authorized to perform: ecr:{operation}"
    aws.fault = at_home(Refuse(400, "AccessDeniedException", message), operation)
    fails(live, "access_denied", *targets, message=f"ecr:{operation}: AccessDeniedException: {message}")
    denied = live.series(
        "ecr_replication_exporter_aws_requests_total", operation=operation, outcome="access_denied"
    )
    assert denied
    heals(live, aws)


BACKFILL = {
    "replicationBackfillId": "1",
    "destination": IRELAND,
    "status": "IN_PROGRESS",
    "progress": {"totalReplicationCount": 9, "completedReplicationCount": 3},
}


def shown_backfills(live: Live) -> dict[str, float]:
    """The images of the backfill by state."""
    return {labels["state"]: value for labels, value in live.series("ecr_registry_backfill_images")}


@pytest.mark.parametrize(
    "refusal",
    [Refuse(400, "AccessDeniedException", "no"), Refuse(400, "UnknownOperationException", "what?")],
    ids=lambda refusal: refusal.code,
)
def test_backfills_are_refused(session: boto3.Session, aws: EmbeddedAWS, refusal: Refuse) -> None:
    aws.set_backfills(ACCOUNT, "us-east-1", [BACKFILL])
    aws.fault = at_home(refusal, "ListReplicationBackfills")
    with settled(session, aws.endpoint_url) as live:
        (line,) = live.lines("backfills_not_listed")
        assert refusal.code in line["error"]
        assert shown_backfills(live) == {}
        assert aws.count("ListReplicationBackfills", account=ACCOUNT) == 1
        aws.fault = lambda _: None
        assert live.exporter.poller.reload(config.parse(CONFIG, file="config.yaml"))
        eventually(lambda: shown_backfills(live) == {"total": 9, "completed": 3})


def test_settings_are_refused(session: boto3.Session, aws: EmbeddedAWS) -> None:
    aws.set_settings(ACCOUNT, "us-east-1", "team/app", {"imageTagMutability": "IMMUTABLE"})
    refusal = Refuse(400, "AccessDeniedException", "no")

    def fault(call: Call) -> Fault | None:
        kind = call.kind
        there = (kind.operation, kind.account, kind.region) == ("DescribeRepositories", ACCOUNT, "eu-west-1")
        return refusal if there else None

    aws.fault = fault
    with settled(session, aws.endpoint_url, replica_interval=1.0) as live:
        eventually(lambda: len(live.lines("settings_not_compared")) == 1)
        assert live.lines("settings_not_compared")[0]["registry"] == f"{ACCOUNT}/eu-west-1"
        assert live.series("ecr_repository_replica_settings_differ") == []
        there = {"region": "eu-west-1", "registry_id": ACCOUNT}
        eventually(lambda: [value for _, value in live.series("ecr_destination_success", **there)] == [1])
        aws.fault = lambda _: None
        assert live.exporter.poller.reload(config.parse(CONFIG, file="config.yaml"))
        eventually(lambda: live.series("ecr_repository_replica_settings_differ"), within=15)
        ((labels, value),) = live.series("ecr_repository_replica_settings_differ")
        assert (labels["repository"], labels["region"]) == ("team/app", "eu-west-1")
        assert (labels["setting"], value) == ("image_tag_mutability", 1)


@pytest.mark.parametrize(
    "answer",
    [{"backfills": [BACKFILL, None]}, {"registryId": PARTNER, "backfills": []}],
    ids=["unreadable row", "another registry"],
)
def test_the_backfills_cannot_be_read(session: boto3.Session, aws: EmbeddedAWS, answer: object) -> None:
    aws.set_backfills(ACCOUNT, "us-east-1", [BACKFILL])
    faults: list[Fault | None] = [json_answer(answer), json_answer(answer)]

    def some(call: Call) -> Fault | None:
        found = at_home(faults[-1], "ListReplicationBackfills")(call) if faults and faults[-1] else None
        if found:
            faults.pop()
        return found

    aws.fault = some
    with settled(session, aws.endpoint_url) as live:
        eventually(lambda: shown_backfills(live) == {"total": 9, "completed": 3}, within=10)
        assert not faults
        (line,) = live.lines("aws_request_failed")
        assert "ListReplicationBackfills: UnusableAnswer" in line["error"]


def test_an_image_is_pushed_while_the_rules_cannot_be_read(live: Live, aws: EmbeddedAWS) -> None:
    aws.fault = at_home(Refuse(400, "AccessDeniedException", "no"), "DescribeRegistry")
    fails(live, "access_denied", message="ecr:DescribeRegistry")
    aws.set_rules(ACCOUNT, "us-east-1", [])  # the exporter cannot read this
    digest = aws.push(ACCOUNT, "us-east-1", "base/img", "v2")
    eventually(lambda: live.series("ecr_image_info", digest=digest), within=5)
    calls_before = aws.count(STATUS)
    eventually(lambda: aws.count(STATUS) > calls_before + len(HOME) + 2, within=5)
    assert live.statuses(source_registry_id=ACCOUNT) == {"COMPLETE"}
    heals(live, aws)
    aws.set_rules(ACCOUNT, "us-east-1", [{"destinations": [IRELAND]}])
    eventually(lambda: live.statuses(tag="v2") == {"MISSING"}, within=5)


def test_one_operation_is_throttled(live: Live, aws: EmbeddedAWS) -> None:
    aws.fault = at_home(Refuse(400, "ThrottlingException", "Rate exceeded"), STATUS)
    refused = {"operation": STATUS, "outcome": "throttled"}
    eventually(lambda: live.series("ecr_replication_exporter_aws_requests_total", **refused), within=5)
    before = live.last_listed(ACCOUNT)
    eventually(lambda: live.last_listed(ACCOUNT) > before, within=5)  # listings continue
    partner_is_still_polled(live)
    assert set(live.success().values()) == {1}
    assert live.statuses() == {"COMPLETE"}
    assert [line["reason"] for line in live.lines("aws_request_failed")] == ["throttled"]
    aws.fault = lambda _: None
    succeeded = {"operation": STATUS, "outcome": "success", "source_registry_id": ACCOUNT}

    def answered() -> float:
        ((_, number),) = live.series("ecr_replication_exporter_aws_requests_total", **succeeded)
        return number

    number = answered()
    eventually(lambda: answered() > number, within=10)


def test_every_call_is_throttled_from_the_start() -> None:
    """In virtual time, because the failure is reported after a minute."""
    ecr = FakeECR()
    ecr.push("team/app", "v1", at=1.8e9)
    ecr.fault = lambda *_: refusal(Reason.THROTTLED)
    rig = Rig(Settings((TargetSettings("team/*"),)), ecr)
    rig.run(50)
    assert rig.store.unheard(rig.clock.now)
    assert rig.target("team/*").success is None
    for _ in range(30):
        rig.run(20)
        assert rig.target("team/*").success is False
        assert rig.target("team/*").reasons == {Reason.THROTTLED}
    ecr.fault = lambda *_: None
    rig.run(60)
    assert rig.target("team/*").success is True


def test_one_of_two_entries_is_denied() -> None:
    """In virtual time. The role of the first entry cannot be assumed."""
    role = RegistrySettings("role", FAKE_REGION, f"arn:aws:iam::{FAKE_ACCOUNT}:role/reader")
    ecr = FakeECR()
    ecr.push("team/app", "v1", at=1.8e9)

    def permission(entry: RegistrySettings, *_: str) -> ECRError | None:
        return refusal(Reason.ACCESS_DENIED, "sts:AssumeRole", everything=True) if entry.role_arn else None

    connector = FakeAWS({ecr.source: ecr}, permission=permission)
    entries = (role, RegistrySettings())
    rig = Rig(Settings((TargetSettings("team/*"),), entries), ecr, connector=connector)
    rig.run(60)
    assert set(rig.states()) == {("team/app", "v1", "")}
    assert rig.target("team/*").success is True
    assert len(rig.snapshot().registries) == 1


def test_a_repository_is_deleted(live: Live, aws: EmbeddedAWS) -> None:
    aws.delete_repository(ACCOUNT, REGION, "team/app")
    fails(live, "repository_not_found", "team/app:v1")
    assert not live.series("ecr_image_replication_status", repository="team/app")
    assert live.statuses(repository="team/api") == {"COMPLETE"}
    aws.create_repository(ACCOUNT, REGION, "team/app")
    aws.push(ACCOUNT, REGION, "team/app", "v1")
    heals(live, aws)


# -- credentials -----------------------------------------------------------------------------------


class Keys:
    """Credentials in generations: a new session has the next one. AWS refuses all before `good`."""

    def __init__(self, aws: EmbeddedAWS, code: str) -> None:
        self._aws = aws
        self._code = code
        self.made = self.good = 0
        aws.fault = self.fault

    def session(self) -> boto3.Session:
        self.made += self.made < self.good or not self.made
        return self._aws.session()

    def fault(self, call: Call) -> Fault | None:
        stale = call.kind.account == ACCOUNT and self.made < self.good
        return Refuse(400, self._code, "the security token is expired") if stale else None


@pytest.mark.parametrize("code", ["ExpiredTokenException", "UnrecognizedClientException"])
def test_credentials_expire_and_are_rotated(aws: EmbeddedAWS, code: str) -> None:
    keys = Keys(aws, code)
    with living(keys.session, aws.endpoint_url) as live:
        eventually(lambda: set(live.success()) == HOME and live.statuses() == {"COMPLETE"})
        keys.good = 2  # AWS refuses the credentials in use and accepts the next ones
        eventually(lambda: keys.made == 2, within=10)
        live.heals(within=10)
        assert live.statuses() == {"COMPLETE"}
        assert {line["reason"] for line in live.lines("aws_request_failed")} <= {"access_denied"}
        assert not [line for line in live.lines() if "traceback" in line]


def test_credentials_expire_and_stay_expired(live: Live, aws: EmbeddedAWS) -> None:
    aws.fault = at_home(Refuse(400, "ExpiredTokenException", "The security token is expired"))
    fails(live, "access_denied", message="ExpiredTokenException: The security token is expired")
    heals(live, aws)


@pytest.mark.parametrize(
    "code", ["RequestTimeTooSkewed", "SignatureDoesNotMatch", "InvalidSignatureException"]
)
def test_the_clock_is_wrong(live: Live, aws: EmbeddedAWS, code: str) -> None:
    aws.fault = at_home(Refuse(403, code, "Signature expired: 10 is now earlier than 20"))
    fails(live, "access_denied", message=f"{code}: Signature expired")
    heals(live, aws)


@contextmanager
def role_refused(
    session: boto3.Session, aws: EmbeddedAWS, refusal: Refuse
) -> Iterator[tuple[Live, list[float]]]:
    """An exporter after STS began to refuse AssumeRole, and the seconds by which its clock is ahead."""
    ahead = [0.0]
    with settled(session, aws.endpoint_url, clock=lambda: time.time() + ahead[0]) as live:
        aws.fault = lambda call: refusal if call.operation == "AssumeRole" else None
        yield live, ahead
        aws.fault = lambda _: None
        eventually(lambda: not partner_failures(live), within=8)
        eventually(lambda: live.lines("recovered"), within=5)


def partner_failures(live: Live) -> set[str]:
    return live.reasons("team/*")


def test_a_role_can_no_longer_be_assumed(session: boto3.Session, aws: EmbeddedAWS) -> None:
    refusal = Refuse(403, "AccessDenied", "not authorized to perform: sts:AssumeRole")
    with role_refused(session, aws, refusal) as (live, ahead):
        ahead[0] = 3600.0
        eventually(lambda: partner_failures(live) == {"access_denied"}, within=8)
        assert "sts:AssumeRole: AccessDenied: not auth" in live.lines("aws_request_failed")[0]["error"]
        assert live.statuses(source_registry_id=PARTNER) == {"COMPLETE"}
        home_is_still_polled(live)


def test_sts_is_down(session: boto3.Session, aws: EmbeddedAWS) -> None:
    with role_refused(session, aws, Refuse(503, "ServiceUnavailable", "down")) as (live, ahead):
        ahead[0] = 3600.0 - RENEW_BEFORE
        calls_before = aws.count("AssumeRole")
        eventually(lambda: aws.count("AssumeRole") > calls_before, within=5)
        partner_is_still_polled(live)  # with credentials that are still valid
        ahead[0] = 3700.0
        eventually(lambda: partner_failures(live) == {"unavailable"}, within=8)
        assert "sts:AssumeRole: ServiceUnavailable" in live.lines("aws_request_failed")[0]["error"]
        assert live.statuses(source_registry_id=PARTNER) == {"COMPLETE"}
        home_is_still_polled(live)


def home_is_still_polled(live: Live) -> None:
    before = live.last_listed(ACCOUNT)
    eventually(lambda: live.last_listed(ACCOUNT) > before, within=5)
    assert set(live.success().values()) == {1}


@pytest.fixture
def bare(aws: EmbeddedAWS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without credentials of its own."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_ROLE_ARN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": aws.endpoint_url,
        "AWS_DEFAULT_REGION": REGION,
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


#: After these seconds the credentials that expire `soon` are invalid, and those of a role still valid.
ENDED = 120.0


def soon() -> str:
    """An expiry time of credentials, before now + ENDED."""
    return (datetime.now(UTC) + timedelta(seconds=60)).isoformat()


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        (
            Refuse(400, "InvalidIdentityToken", "no such key"),
            "access_denied InvalidIdentityToken: no such key",
        ),
        (Refuse(403, "AccessDenied", "not yours"), "access_denied AccessDenied: not yours"),
        (Drip(0.1), "unavailable AnswerTooSlow"),
        (Hang(), "unavailable AnswerTooSlow"),
    ],
    ids=["token", "role", "drip", "hang"],
)
def test_a_web_identity_gets_no_credentials(
    aws: EmbeddedAWS, bare: pytest.MonkeyPatch, tmp_path: Path, fault: Fault, failure: str
) -> None:
    (tmp_path / "token").write_text("token")
    bare.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    bare.setenv("AWS_ROLE_ARN", f"arn:aws:iam::{ACCOUNT}:role/reader")
    body = f"""<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>
        <AccessKeyId>AKIADEMO{ACCOUNT}</AccessKeyId><SecretAccessKey>x</SecretAccessKey>
        <SessionToken>x</SessionToken><Expiration>{soon()}</Expiration></Credentials>
        </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""
    answer: list[Fault] = [Garbage(body.encode(), content_type="text/xml")]
    aws.fault = lambda call: answer[0] if call.operation == "AssumeRoleWithWebIdentity" else None
    ahead = [0.0]
    clock = {"clock": lambda: time.time() + ahead[0]}
    with settled(None, aws.endpoint_url, **clock, **IMPATIENT) as live:
        answer[0], ahead[0] = fault, ENDED
        reason, _, message = failure.partition(" ")
        fails(live, reason, message=message)
        if isinstance(fault, Drip | Hang):
            fault.released.set()
        heals(live, aws, within=15)


def test_a_credential_process_fails(aws: EmbeddedAWS, bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    del bare  # it only sets the environment
    keys = {"Version": 1, "AccessKeyId": f"AKIADEMO{ACCOUNT}", "SecretAccessKey": "x", "Expiration": soon()}
    good = f"echo {shlex.quote(json.dumps(keys))}"
    (tmp_path / "script").write_text(good)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = sh {tmp_path / 'script'}\n")
    ahead = [0.0]
    with settled(None, aws.endpoint_url, clock=lambda: time.time() + ahead[0]) as live:
        ahead[0] = ENDED
        (tmp_path / "script").write_text("echo the vault is sealed >&2; exit 1")
        fails(live, "access_denied", message="credential_process gave no credentials")
        assert not [line for line in live.lines() if "vault" in str(line)]
        (tmp_path / "script").write_text(good)
        heals(live, aws, within=15)


def test_instance_metadata_fails(aws: EmbeddedAWS, bare: pytest.MonkeyPatch) -> None:
    lender = Lender()
    bare.setenv("AWS_EC2_METADATA_DISABLED", "false")
    bare.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", lender.url)
    good = lender.answer
    ahead = [0.0]
    with settled(None, aws.endpoint_url, clock=lambda: time.time() + ahead[0]) as live:
        ahead[0] = ENDED
        bare.setattr(lender, "answer", lambda *_: "")
        fails(live, "access_denied", message="Credential")
        bare.setattr(lender, "answer", good)
        heals(live, aws, within=15)
    lender.stop()


# -- hours in virtual time -------------------------------------------------------------------------


def polled_rig(ecr: FakeECR, workers: Callable[[str], WorkerPool] = Inline) -> Rig:
    digest = ecr.push("team/app", "v1", at=1.8e9)
    ecr.report("team/app", digest, Replication(Destination("eu-west-1", FAKE_ACCOUNT), Status.COMPLETE))
    settings = Settings((TargetSettings("*"),), registries=(RegistrySettings(),), replica_interval=0.0)
    rig = Rig(settings, ecr, workers=workers)
    rig.run(120)
    assert rig.target("*").success is True
    return rig


def rig_in_an_outage() -> tuple[FakeECR, Rig]:
    ecr = FakeECR()
    rig = polled_rig(ecr)
    ecr.fault = lambda *_: refusal(Reason.UNAVAILABLE)
    return ecr, rig


def test_an_outage_lasts_longer_than_stale_after() -> None:
    ecr, rig = rig_in_an_outage()
    rig.run(3000)
    assert set(rig.states()["team/app", "v1", ""].values()) == {"COMPLETE"}
    assert rig.target("*").reasons == {Reason.UNAVAILABLE}
    rig.run(1200)
    assert rig.states() == {}
    assert rig.target("*").success is False
    ecr.fault = lambda *_: None
    rig.run(60)
    assert set(rig.states()["team/app", "v1", ""].values()) == {"COMPLETE"}
    assert rig.target("*").success is True


@pytest.mark.parametrize("hours", [0.02, 0.5, 24])
def test_recovery_after_an_outage_takes_at_most_a_minute(hours: float) -> None:
    ecr, rig = rig_in_an_outage()
    rig.run(hours * 3600)
    rig.run(300)
    before = ecr.calls.total()
    rig.run(600)
    # A probe at least every 30 s, and at most every 15 s.
    assert 20 <= ecr.calls.total() - before <= 45
    ecr.fault = lambda *_: None
    rig.run(60)
    assert rig.target("*").success is True
    assert rig.journal.failing == {}


def test_the_rules_are_throttled_for_longer_than_stale_after() -> None:
    ecr = FakeECR()
    rig = polled_rig(ecr)
    ecr.push("team/app", "v2", at=rig.clock.time() - 9999)
    rig.run(600)
    ecr.fault = lambda operation, _: refusal(Reason.THROTTLED) if operation == "DescribeRegistry" else None
    rig.run(3000)
    assert set(rig.states()["team/app", "v2", ""].values()) == {"MISSING"}
    assert rig.target("*").success is True
    rig.run(1200)
    assert rig.states()["team/app", "v2", ""] == {}
    assert set(rig.states()["team/app", "v1", ""].values()) == {"COMPLETE"}
    assert rig.target("*").reasons == {Reason.THROTTLED}
    ecr.fault = lambda *_: None
    rig.run(120)
    assert set(rig.states()["team/app", "v2", ""].values()) == {"MISSING"}
    assert rig.target("*").success is True


def test_a_credential_provider_hangs() -> None:
    """In the end every worker waits for the provider."""
    workers = Stuck()
    rig = polled_rig(FakeECR(), lambda _: workers)
    workers.hangs = True
    while not workers.stuck:
        rig.run(1)
    rig.run(LOST_AFTER + HEARTBEAT)
    assert rig.target("*").reasons == {Reason.UNAVAILABLE}
    assert set(rig.states()["team/app", "v1", ""].values()) == {"COMPLETE"}
    rig.run(7200)
    assert len(workers.stuck) == MAX_HANDED_OUT
    assert rig.target("*").reasons == {Reason.UNAVAILABLE}
    assert rig.states() == {}
    workers.free()
    rig.run(60)
    assert rig.target("*").success is True
    assert rig.journal.failing == {}
    assert set(rig.states()["team/app", "v1", ""].values()) == {"COMPLETE"}


# -- the document ----------------------------------------------------------------------------------


def test_the_document_lists_exactly_these_tests() -> None:
    """And, for destinations, tests of a file of their own."""
    first, *others = DOCUMENT.read_text().split("\n## ")
    sections = dict(section.split("\n", maxsplit=1) for section in others)
    row = re.compile(r"^\|.*\| `(test_\w+)` \|$", re.MULTILINE)
    for title, file in ELSEWHERE.items():
        named = row.findall(sections.pop(title))
        there = (Path(__file__).parents[1] / "polling" / file).read_text()
        assert len(named) == len(set(named)) > 5
        assert set(named) <= set(re.findall(r"^def (test_\w+)", there, re.MULTILINE))
    tests = {name for name in globals() if name.startswith("test_")}
    found = row.findall("\n".join([first, *sections.values()]))
    assert sorted(found) == sorted(tests - {"test_the_document_lists_exactly_these_tests"})
