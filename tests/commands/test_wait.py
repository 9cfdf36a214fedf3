"""`wait` with the real client on the simulated AWS, in the time of a clock that only its pauses move."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from support.embedded_aws import EmbeddedAWS, Fault, Garbage, json_answer, replication_rule
from support.fakes import FakeClock

from exporter.aws.connector import AwsConnector
from exporter.commands.console import Console
from exporter.commands.image import parse_image
from exporter.commands.verdict import NOT_FOUND_FOR, Outcome, Result
from exporter.commands.wait import LONGEST_PAUSE, Question, UsageError, Wait
from exporter.demo import ACCOUNT, REGION, Call, Refuse
from exporter.replication.model import Destination

PARTNER = "444455556666"
IRELAND = Destination("eu-west-1", ACCOUNT)
OREGON = Destination("us-west-2", PARTNER)
STATUS = "DescribeImageReplicationStatus"
COPY_TAKES = 20.0
REPLICATED, FAILED, TIMED_OUT, NOWHERE = Outcome


class World:
    """The AWS, a clock, and what happens at which second of the wait."""

    def __init__(self, aws: EmbeddedAWS, clock: FakeClock) -> None:
        self.aws = aws
        self.clock = clock
        self.progress = io.StringIO()
        self.looks: list[float] = []
        self._events: list[tuple[float, Callable[[], object]]] = []
        aws.fault = self._count

    def _count(self, call: Call) -> Fault | None:
        if call.operation == STATUS:
            self.looks.append(self.clock.now)
        return None

    def push(self, tag: str = "v1", *, to: tuple[Destination, ...] = (IRELAND,), **options: Any) -> str:
        self.aws.set_rules(ACCOUNT, REGION, [replication_rule(*to)] if to else [])
        return self.aws.push(ACCOUNT, REGION, "team/app", tag, **options)

    def pin(self, digest: str, statuses: Any) -> None:
        self.aws.set_status(ACCOUNT, REGION, "team/app", digest, statuses)

    def at(self, seconds: float, event: Callable[[], object]) -> None:
        """Let something happen so many seconds from now."""
        self._events.append((self.clock.now + seconds, event))

    def refuse(self, refusal: Fault, *operations: str, until: float = float("inf"), **kind: str) -> None:
        """Refuse these operations for so many seconds: all, or those with this account or Region."""
        end, count = self.clock.now + until, self.aws.fault

        def fault(call: Call) -> Fault | None:
            count(call)
            meant = call.operation in operations and all(
                getattr(call.kind, name) == value for name, value in kind.items()
            )
            return refusal if meant and self.clock.now < end else None

        self.aws.fault = fault

    def _sleep(self, seconds: float) -> None:
        self.clock.now += seconds
        for event in [event for event in self._events if event[0] <= self.clock.now]:
            self._events.remove(event)
            event[1]()

    def wait(self, image: str = "team/app:v1", *, live: bool = False, **options: Any) -> Result:
        connector = AwsConnector(
            session=self.aws.session, endpoint_url=self.aws.endpoint_url, clock=self.clock.time
        )
        asked: dict[str, Any] = {"region": REGION, "timeout": 600.0} | options
        return Wait(
            Question(parse_image(image), **asked),
            connect=partial(connector.ecr, connections=1),
            clock=self.clock.monotonic,
            sleep=self._sleep,
            console=Console(self.progress, live=live),
        ).run()


@pytest.fixture
def world() -> Iterator[World]:
    clock = FakeClock()
    with EmbeddedAWS(clock=clock.time, delay=lambda _: COPY_TAKES) as aws:
        aws.create_repository(ACCOUNT, REGION, "team/app")
        yield World(aws, clock)


def described(result: Result) -> list[tuple[str, str, str | None]]:
    return [(c["region"], c["status"], c["replica"]) for c in result.json()["destinations"]]


# -- the table of exit codes -----------------------------------------------------------------


def test_0_when_every_copy_is_complete_and_present(world: World) -> None:
    digest = world.push(to=(IRELAND, Destination("us-west-2", ACCOUNT)))
    result = world.wait()
    assert result.outcome is REPLICATED
    assert COPY_TAKES <= result.seconds < COPY_TAKES + LONGEST_PAUSE
    assert described(result) == [("eu-west-1", "COMPLETE", "present"), ("us-west-2", "COMPLETE", "present")]
    assert result.digest == digest


def test_an_empty_list_right_after_the_push_is_no_success(world: World) -> None:
    digest = world.push()
    world.pin(digest, [])
    world.at(60.0, lambda: world.pin(digest, None))
    world.refuse(Refuse(400, "RepositoryNotFoundException"), "DescribeImages", until=60.0, region="eu-west-1")
    result = world.wait()
    assert (result.outcome, result.seconds >= 60.0) == (REPLICATED, True)


def test_an_empty_list_of_rules_that_cannot_be_read_is_no_success_either(world: World) -> None:
    world.pin(world.push(), [])
    world.refuse(Refuse(400, "AccessDeniedException"), "DescribeRegistry")
    result = world.wait()
    assert result.outcome is TIMED_OUT
    assert "name a --destination" in result.reason


def test_1_when_a_copy_failed(world: World) -> None:
    world.aws.denied.add(OREGON)
    world.push(to=(IRELAND, OREGON), delay=lambda _: float("inf"))
    result = world.wait()
    assert result.outcome is FAILED
    assert result.reason == f"{PARTNER}/us-west-2 FAILED, DESTINATION_REGISTRY_ACCESS_DENIED"
    assert result.seconds < 10.0


@pytest.mark.parametrize("operation", ["DescribeImages", STATUS])
def test_1_when_a_call_is_denied(world: World, operation: str) -> None:
    world.push()
    world.refuse(Refuse(400, "AccessDeniedException", "not authorized"), operation)
    result = world.wait()
    assert result.outcome is FAILED
    assert result.reason == f"ecr:{operation}: AccessDeniedException: not authorized"
    assert result.seconds < 10.0


@pytest.mark.parametrize("image", ["team/app:v2", "team/none:v1", f"team/app@sha256:{'0' * 64}"])
def test_1_when_it_is_not_found(world: World, image: str) -> None:
    world.push()
    result = world.wait(image)
    assert result.outcome is FAILED
    assert "NotFoundException" in result.reason
    assert NOT_FOUND_FOR <= result.seconds < NOT_FOUND_FOR + 2 * LONGEST_PAUSE


@pytest.mark.parametrize("image", ["team/app:v1", f"team/app@sha256:{'0' * 64}"])
def test_an_answer_about_another_image_is_no_success(world: World, image: str) -> None:
    digest = world.push(tag="v2")
    world.clock.now += COPY_TAKES
    row = {"imageDigest": digest, "imageTags": ["v2"]}
    world.refuse(json_answer({"imageDetails": [row]}), "DescribeImages", region=REGION)
    assert world.wait(image).outcome is FAILED


def test_1_when_it_is_not_found_until_the_time_is_up(world: World) -> None:
    assert world.wait("team/app:v2", timeout=3.0).outcome is FAILED


def test_1_when_it_is_deleted_on_the_way(world: World) -> None:
    digest = world.push()
    world.at(5.0, lambda: world.aws.delete_image(ACCOUNT, REGION, "team/app", digest))
    result = world.wait()
    assert (result.outcome, "ImageNotFoundException" in result.reason) == (FAILED, True)


def test_3_when_the_time_is_up(world: World) -> None:
    world.push(delay=lambda _: float("inf"))
    result = world.wait(timeout=100.0)
    assert result.outcome is TIMED_OUT
    assert result.seconds == pytest.approx(100.0, abs=0.01)
    assert result.reason == f"{ACCOUNT}/eu-west-1 IN_PROGRESS"


@pytest.mark.parametrize(
    "fault",
    [json_answer({"replicationStatuses": [None]}), Refuse(400, "ThrottlingException"), Garbage(b"<p>")],
)
def test_nothing_is_missing_before_ecr_has_answered(world: World, fault: Fault) -> None:
    world.push()
    world.refuse(fault, STATUS)
    result = world.wait(timeout=30.0)
    assert (result.outcome, described(result)) == (TIMED_OUT, [])
    assert "MISSING" not in world.progress.getvalue()


def test_3_when_the_image_is_older_than_the_rule(world: World) -> None:
    world.push(to=())
    world.aws.set_rules(ACCOUNT, REGION, [replication_rule(IRELAND)])
    result = world.wait()
    assert (result.outcome, result.reason) == (TIMED_OUT, f"{ACCOUNT}/eu-west-1 MISSING")


def test_4_when_nothing_sends_it_anywhere(world: World) -> None:
    world.push(to=())
    world.aws.set_rules(ACCOUNT, REGION, [replication_rule(IRELAND, prefix="other/")])
    assert world.wait().outcome is NOWHERE


def test_a_time_out_of_0_looks_once(world: World) -> None:
    world.push()
    assert world.wait(timeout=0.0).outcome is TIMED_OUT
    world.clock.now += COPY_TAKES
    assert world.wait(timeout=0.0).outcome is REPLICATED
    assert len(world.looks) == 2


# -- what counts as arrived ------------------------------------------------------------------


def test_a_failure_of_an_earlier_push_is_not_believed_at_once(world: World) -> None:
    digest = world.push(delay=lambda _: 0.0)
    world.pin(digest, [{"region": "eu-west-1", "registryId": ACCOUNT, "status": "FAILED"}])
    world.at(1.0, lambda: world.pin(digest, None))
    assert world.wait().outcome is REPLICATED


def test_a_failure_is_not_confirmed_by_a_look_that_gets_no_answer(world: World) -> None:
    digest = world.push(delay=lambda _: 0.0)
    world.pin(digest, [{"region": "eu-west-1", "registryId": ACCOUNT, "status": "FAILED"}])
    world.at(1.0, lambda: world.refuse(Refuse(500, "ServerException"), STATUS, until=30.0))
    world.at(20.0, lambda: world.pin(digest, None))
    assert world.wait().outcome is REPLICATED


def test_a_failure_is_told_though_another_destination_gives_no_answer(world: World) -> None:
    world.aws.denied.add(OREGON)
    world.push(to=(IRELAND, OREGON), delay=lambda _: 0.0)
    world.refuse(Refuse(500, "ServerException"), "DescribeImages", region="eu-west-1")
    result = world.wait()
    assert (result.outcome, "DESTINATION_REGISTRY_ACCESS_DENIED" in result.text()) == (FAILED, True)


def test_a_copy_that_is_complete_and_not_there_is_waited_for(world: World) -> None:
    digest = world.push(delay=lambda _: 0.0)
    world.aws.delete_image(ACCOUNT, "eu-west-1", "team/app", digest)
    result = world.wait()
    assert (result.outcome, result.reason) == (TIMED_OUT, f"{ACCOUNT}/eu-west-1 COMPLETE, absent")
    assert world.wait(verify=False).outcome is REPLICATED


def test_a_tag_that_is_immutable_at_the_destination_is_told(world: World) -> None:
    world.aws.create_repository(ACCOUNT, "eu-west-1", "team/app", {"imageTagMutability": "IMMUTABLE"})
    world.aws.push(ACCOUNT, "eu-west-1", "team/app", "v1")
    digest = world.push()
    assert described(world.wait()) == [("eu-west-1", "COMPLETE", "other_image")]
    assert world.wait(f"team/app@{digest}").outcome is REPLICATED


def test_a_copy_that_came_by_other_means_counts(world: World) -> None:
    """ECR reports nothing of a backfill or of a copy that somebody pushed there."""
    digest = world.push(to=())
    world.aws.set_rules(ACCOUNT, REGION, [replication_rule(IRELAND)])
    world.aws.create_repository(ACCOUNT, "eu-west-1", "team/app")
    there = partial(world.aws.push, ACCOUNT, "eu-west-1", "team/app", "v1", digest=digest)
    world.at(30.0, there)
    result = world.wait()
    assert (result.outcome, result.seconds >= 30.0) == (REPLICATED, True)


def test_the_digest_of_the_first_look_counts_when_the_tag_moves(world: World) -> None:
    first = world.push()
    world.at(5.0, lambda: world.push(delay=lambda _: 1.0))
    result = world.wait()
    assert (result.outcome, result.digest) == (REPLICATED, first)
    (note,) = result.json()["notes"]
    assert note.startswith("the tag v1 names sha256:")
    assert note in world.progress.getvalue()


def test_a_tag_that_moved_before_the_first_look_is_told_if_the_digest_is_given(world: World) -> None:
    first = world.push(delay=lambda _: 0.0)
    world.push(delay=lambda _: float("inf"))
    result = world.wait(f"team/app:v1@{first}")
    assert (result.outcome, len(result.notes)) == (REPLICATED, 1)


def test_only_the_named_destinations_are_waited_for(world: World) -> None:
    world.aws.denied.add(OREGON)
    world.push(to=(IRELAND, OREGON))
    result = world.wait(destinations=("eu-west-1",))
    assert (result.outcome, described(result)) == (REPLICATED, [("eu-west-1", "COMPLETE", "present")])


def test_a_named_destination_that_no_rule_has_is_told_and_waited_for(world: World) -> None:
    world.push()
    result = world.wait(destinations=(f"{PARTNER}/us-west-2",))
    assert (result.outcome, result.reason) == (TIMED_OUT, f"{PARTNER}/us-west-2 MISSING")
    assert result.notes == (f"no rule sends team/app to {PARTNER}/us-west-2",)


def test_the_source_is_no_destination(world: World) -> None:
    world.push()
    with pytest.raises(UsageError, match="is the source itself"):
        world.wait(destinations=(REGION,))


def test_a_list_that_grows_is_no_success_as_long_as_it_grows(world: World) -> None:
    """Without rules to compare with, each list must be confirmed by the next look."""
    digest = world.push(to=(IRELAND, Destination("us-west-2", ACCOUNT)))
    world.pin(digest, [{"region": "eu-west-1", "registryId": ACCOUNT, "status": "COMPLETE"}])
    world.at(1.0, lambda: world.pin(digest, None))
    world.refuse(Refuse(400, "AccessDeniedException"), "DescribeRegistry")
    result = world.wait(verify=False)
    assert (result.outcome, len(result.copies)) == (REPLICATED, 2)
    assert "the replication rules cannot be read" in result.notes[0]


# -- other accounts --------------------------------------------------------------------------


def test_another_account_is_looked_at_only_on_request(world: World) -> None:
    world.push(to=(OREGON,))
    result = world.wait()
    assert (result.outcome, described(result)) == (REPLICATED, [("us-west-2", "COMPLETE", None)])
    assert "not verified: in another account" in result.text()
    assert world.aws.count("DescribeImages", region="us-west-2") == 0
    assert described(world.wait(verify=True)) == [("us-west-2", "COMPLETE", "present")]


def test_a_destination_that_may_not_be_read(world: World) -> None:
    world.push()
    world.refuse(Refuse(400, "AccessDeniedException"), "DescribeImages", region="eu-west-1")
    result = world.wait()
    assert (result.outcome, described(result)) == (REPLICATED, [("eu-west-1", "COMPLETE", None)])
    assert result.notes == (f"{ACCOUNT}/eu-west-1 cannot be read: ecr:DescribeImages: AccessDeniedException",)
    assert world.wait(verify=True).outcome is FAILED


def test_the_account_and_the_region_of_a_uri_count(world: World) -> None:
    aws = world.aws
    aws.create_repository(PARTNER, "us-west-2", "team/lib")
    aws.set_rules(PARTNER, "us-west-2", [replication_rule(IRELAND)])
    aws.push(PARTNER, "us-west-2", "team/lib", "v1")
    uri = f"{PARTNER}.dkr.ecr.us-west-2.amazonaws.com/team/lib:v1"
    role = f"arn:aws:iam::{PARTNER}:role/reader"
    result = world.wait(uri, region="us-west-2", role_arn=role)
    assert (result.outcome, result.account) == (REPLICATED, PARTNER)
    assert result.copies[0].unread == "in another account"
    result = world.wait(uri, region="us-west-2")
    assert (result.outcome, result.account) == (REPLICATED, PARTNER)
    assert result.notes == (
        f"the replication rules cannot be read: those of {PARTNER} are not in reach of the credentials",
    )


def test_the_account_of_the_role_is_looked_at_too(world: World) -> None:
    digest = world.push(to=(OREGON,), delay=lambda _: 0.0)
    uri = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/team/app:v1"
    result = world.wait(
        uri, role_arn=f"arn:aws:iam::{PARTNER}:role/reader", destinations=(f"{PARTNER}/us-west-2",)
    )
    assert (result.outcome, result.digest) == (REPLICATED, digest)
    assert described(result) == [("us-west-2", "COMPLETE", "present")]


def test_a_role_that_may_not_be_assumed(world: World) -> None:
    world.refuse(Refuse(403, "AccessDenied"), "AssumeRole")
    result = world.wait(role_arn=f"arn:aws:iam::{PARTNER}:role/reader")
    assert (result.outcome, result.reason) == (FAILED, "sts:AssumeRole: AccessDenied")


# -- bad weather -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Refuse(500, "ServerException"),
        Refuse(400, "ThrottlingException"),
        Garbage(b"<html>", status=502),
        Garbage(b"<html>", status=403),
    ],
    ids=repr,
)
def test_failures_that_pass_are_survived(world: World, fault: Fault) -> None:
    world.push()
    world.refuse(fault, "DescribeImages", "DescribeRegistry", STATUS, until=100.0)
    result = world.wait()
    assert (result.outcome, result.seconds >= 100.0) == (REPLICATED, True)
    assert "AWS: ecr:DescribeImages: " in world.progress.getvalue()


def test_a_single_refusal_of_the_credentials_is_survived(world: World) -> None:
    world.push()
    world.refuse(Refuse(400, "ExpiredTokenException"), "DescribeImages", until=1.0)
    assert world.wait().outcome is REPLICATED


def test_a_failure_at_one_destination_hides_no_other(world: World) -> None:
    world.push(to=(IRELAND, Destination("us-west-2", ACCOUNT)))
    world.refuse(Refuse(500, "ServerException"), "DescribeImages", region="eu-west-1")
    result = world.wait()
    assert result.outcome is TIMED_OUT
    assert described(result) == [("eu-west-1", "COMPLETE", None), ("us-west-2", "COMPLETE", "present")]


def test_destinations_that_give_no_answer_do_not_add_up_beyond_the_time(world: World) -> None:
    regions = [f"eu-west-{number}" for number in (1, 2, 3)]
    world.push(to=tuple(Destination(region, ACCOUNT) for region in regions), delay=lambda _: 0.0)
    count = world.aws.fault

    def hang(call: Call) -> Fault | None:
        if call.kind.region not in regions:
            return count(call)
        world.clock.now += 10.0
        return Refuse(503, "ServiceUnavailable")

    world.aws.fault = hang
    result = world.wait(timeout=5.0)
    assert (result.outcome, result.seconds) == (TIMED_OUT, 10.0)


def test_pauses_grow_and_begin_again_after_a_change(world: World) -> None:
    world.push(delay=lambda _: 100.0)
    world.wait(verify=False)
    pauses = [later - earlier for earlier, later in zip(world.looks, world.looks[1:], strict=False)]
    assert pauses == pytest.approx([2.0, 3.0, 4.5, 6.75, 10.125, *[15.0] * 5], abs=0.01)


def test_aws_may_ask_for_a_longer_pause(world: World) -> None:
    world.push(delay=lambda _: 0.0)
    headers = (("Content-Type", "application/json"), ("x-amz-retry-after", "40000"))
    world.refuse(Garbage(b'{"__type":"ThrottlingException"}', 400, headers=headers), STATUS, until=1.0)
    result = world.wait()
    assert result.outcome is REPLICATED
    assert result.seconds == pytest.approx(40.0, abs=0.01)


# -- what is written -------------------------------------------------------------------------


def test_progress_has_a_line_for_each_change_and_no_escape_code(world: World) -> None:
    digest = world.push()
    world.wait()
    assert world.progress.getvalue().splitlines() == [
        f"team/app:v1 is {digest}",
        f"{ACCOUNT}/eu-west-1: IN_PROGRESS",
        f"{ACCOUNT}/eu-west-1: COMPLETE, present",
    ]


def test_a_terminal_has_one_live_line(world: World) -> None:
    digest = world.push()
    world.wait(live=True)
    first, live = world.progress.getvalue().split("\n")
    assert first == f"team/app:v1 is {digest}"
    drawings = live.split("\r\x1b[K")[1:]
    assert drawings[:2] == [f"[{s}s] {ACCOUNT}/eu-west-1 IN_PROGRESS" for s in (0, 1)]
    assert all("\x1b" not in drawing for drawing in drawings)


def test_the_result_as_text(world: World) -> None:
    digest = world.push(delay=lambda _: 0.0)
    assert world.wait().text() == (
        f"team/app:v1 ({digest}): replicated after 0 s: it has arrived at every destination\n"
        f"  {ACCOUNT}/eu-west-1: COMPLETE, present\n"
    )


def test_the_result_as_json(world: World) -> None:
    digest = world.push(delay=lambda _: 0.0)
    assert world.wait().json() == {
        "result": "replicated",
        "exit_code": 0,
        "reason": "it has arrived at every destination",
        "seconds": 0.0,
        "image": {
            "registry_id": ACCOUNT,
            "region": REGION,
            "repository": "team/app",
            "tag": "v1",
            "digest": digest,
        },
        "destinations": [
            {
                "registry_id": ACCOUNT,
                "region": "eu-west-1",
                "status": "COMPLETE",
                "failure_code": None,
                "replica": "present",
                "not_verified": None,
            }
        ],
        "notes": [],
    }


def test_control_characters_and_secrets_of_an_answer_are_not_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "PLANTED-key")
    digest = world.push()
    code = "BAD\x1b[2J\nPLANTED-key"
    status = {"region": "eu-west-1", "registryId": ACCOUNT, "status": "FAILED", "failureCode": code}
    world.pin(digest, [status])
    result = world.wait()
    assert result.outcome is FAILED
    for text in (result.text(), result.json()["reason"], world.progress.getvalue()):
        assert "BAD" in text
        assert "PLANTED" not in text
        assert "\x1b" not in text
