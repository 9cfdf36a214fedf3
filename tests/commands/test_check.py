"""`check` with the real client on the simulated AWS."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from support.embedded_aws import EmbeddedAWS, json_answer, replication_rule

from exporter.aws.connector import AwsConnector
from exporter.commands.check import Check
from exporter.commands.findings import Finding, Level, as_json, as_text, is_problem, policy_findings, role_of
from exporter.config import settings as config
from exporter.demo import ACCOUNT, REGION, Call, Refuse
from exporter.replication.model import Destination

PARTNER = "444455556666"
IRELAND = Destination("eu-west-1", ACCOUNT)
OREGON = Destination("us-west-2", PARTNER)
ROLE = f"arn:aws:iam::{PARTNER}:role/reader"
READER = f'destinations: [{{registry_id: "{PARTNER}", role_arn: {ROLE}}}]'
ARN = f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository"
THERE = f"arn:aws:ecr:us-west-2:{PARTNER}:repository"
DENIED = Refuse(400, "AccessDeniedException", "not authorized")


def policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def grant(
    principal: Any = None, condition: Any = None, action: Any = "ecr:*", resource: Any = "*"
) -> dict[str, Any]:
    principal = principal or {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}
    granted = {"Effect": "Allow", "Principal": principal, "Action": action, "Resource": resource}
    return granted | ({"Condition": condition} if condition else {})


@pytest.fixture
def aws() -> Iterator[EmbeddedAWS]:
    with EmbeddedAWS(delay=lambda _: 0.0) as aws:
        aws.set_rules(ACCOUNT, REGION, [replication_rule(IRELAND, OREGON, prefix="team/")])
        aws.set_policy(PARTNER, "us-west-2", policy(grant()))
        for repository in ("team/api", "team/app"):
            aws.create_repository(ACCOUNT, REGION, repository)
            aws.push(ACCOUNT, REGION, repository, "v1")
        yield aws


def refusing(aws: EmbeddedAWS, *operations: str, refusal: Refuse = DENIED, **kind: str) -> None:
    def fault(call: Call) -> Refuse | None:
        meant = call.operation in operations
        return refusal if meant and all(getattr(call.kind, k) == v for k, v in kind.items()) else None

    aws.fault = fault


def check(
    aws: EmbeddedAWS,
    text: str = READER,
    *,
    targets: str = "[{repository: team/*}]",
    pauses: Any = None,
    environment: bool = False,
) -> list[Finding]:
    """All findings. `environment`: with the credentials and the Region of the environment."""
    connector = AwsConnector(session=None if environment else aws.session, endpoint_url=aws.endpoint_url)
    return list(
        Check(
            config.parse(f"targets: {targets}\n{text}"),
            connect=partial(connector.ecr, connections=1),
            connect_queue=connector.queue,
            region=connector.region,
            clock=aws.clock,
            pause=(pauses if pauses is not None else []).append,
        ).findings()
    )


def told(findings: list[Finding], level: Level) -> list[tuple[str, str]]:
    return [(finding.subject, finding.message) for finding in findings if finding.level is level]


def test_all_is_well(aws: EmbeddedAWS) -> None:
    found = check(aws)
    assert not is_problem(found)
    assert not told(found, Level.NOTE)
    registry = f"registry {ACCOUNT}/{REGION}"
    target = f"target team/* in {ACCOUNT}/{REGION}"
    assert told(found, Level.OK)[1:] == [
        (registry, f"rule: team/* to {ACCOUNT}/eu-west-1"),
        (registry, f"rule: team/* to {PARTNER}/us-west-2"),
        (registry, "repositories: 2"),
        (registry, "repositories whose images are listed: 2"),
        (registry, "repositories where the status of an image is read: 2"),
        (target, "selected images: 2, in repositories: 2"),
        (f"destination {ACCOUNT}/eu-west-1", "its copies can be looked at"),
        (f"destination {PARTNER}/us-west-2", "its copies can be looked at"),
        (f"destination {PARTNER}/us-west-2", f"its registry policy lets {ACCOUNT} replicate to it"),
    ]


def test_it_changes_nothing(aws: EmbeddedAWS) -> None:
    check(aws)
    assert {call.operation for call in aws.calls} == {
        "AssumeRole",
        "GetCallerIdentity",
        "DescribeRegistry",
        "ListReplicationBackfills",
        "DescribeRepositories",
        "DescribeImages",
        "DescribeImageReplicationStatus",
        "GetRegistryPolicy",
    }


def queue_text(url: str) -> str:
    return f"registries: [{{region: {REGION}, events_queue_url: '{url}'}}]\n{READER}"


def test_a_queue_that_can_be_read(aws: EmbeddedAWS) -> None:
    url = aws.add_queue("ecr-events-0", region="eu-west-1")
    aws.push(ACCOUNT, REGION, "team/app", "v2")
    found = check(aws, queue_text(url.replace("-0", "-{shard}")))
    assert not is_problem(found)
    assert ("queue ecr-events-0", "its messages can be received and deleted") in told(found, Level.OK)
    answer = aws.client("sqs", region="eu-west-1").receive_message(QueueUrl=url, MaxNumberOfMessages=10)
    assert any('"image-tag": "v2"' in message["Body"] for message in answer["Messages"])


@pytest.mark.parametrize(
    ("operation", "action"),
    [
        ("GetQueueAttributes", "sqs:GetQueueAttributes"),
        ("ReceiveMessage", "sqs:ReceiveMessage"),
        ("DeleteMessageBatch", "sqs:DeleteMessage"),
    ],
)
def test_a_queue_lacks_a_permission(aws: EmbeddedAWS, operation: str, action: str) -> None:
    url = aws.add_queue("ecr-events", region="eu-west-1")
    refusing(aws, operation)
    (finding,) = [finding for finding in check(aws, queue_text(url)) if finding.lacks]
    resource = f"arn:aws:sqs:eu-west-1:{ACCOUNT}:ecr-events"
    assert finding.json()["statement"] == {"Effect": "Allow", "Action": action, "Resource": resource}
    assert finding.level is Level.PROBLEM


def test_a_key_of_a_queue_that_may_not_be_used(aws: EmbeddedAWS) -> None:
    url = aws.add_queue("ecr-events", region="eu-west-1")
    refusing(aws, "ReceiveMessage", refusal=Refuse(400, "KmsAccessDenied", "kms:Decrypt"))
    (problem,) = [finding for finding in check(aws, queue_text(url)) if finding.level is Level.PROBLEM]
    assert "kms:Decrypt on the key of the queue" in problem.remedy
    assert problem.lacks is None


def test_a_queue_that_does_not_exist(aws: EmbeddedAWS) -> None:
    found = check(aws, queue_text(f"https://sqs.eu-west-1.amazonaws.com/{ACCOUNT}/gone"))
    ((subject, message),) = told(found, Level.PROBLEM)
    assert subject == "queue gone"
    assert "does not exist" in message


@pytest.mark.parametrize(
    ("operation", "level", "resources"),
    [
        ("DescribeRegistry", Level.PROBLEM, "*"),
        ("ListReplicationBackfills", Level.NOTE, "*"),
        ("DescribeRepositories", Level.PROBLEM, f"{ARN}/*"),
        ("DescribeImageReplicationStatus", Level.PROBLEM, [f"{ARN}/team/api", f"{ARN}/team/app"]),
    ],
)
def test_a_missing_permission_has_its_statement(
    aws: EmbeddedAWS, operation: str, level: Level, resources: Any
) -> None:
    refusing(aws, operation)
    (finding,) = [finding for finding in check(aws) if finding.lacks]
    shown = finding.json()
    assert (shown["level"], shown["action"]) == (level, f"ecr:{operation}")
    assert shown["statement"] == {"Effect": "Allow", "Action": f"ecr:{operation}", "Resource": resources}
    assert f":{ACCOUNT}:" in shown["principal"]
    assert shown["principal"] in shown["message"]


def test_every_missing_permission_is_reported_at_once(aws: EmbeddedAWS) -> None:
    refusing(aws, "DescribeRegistry", "DescribeImages", "DescribeRepositories", "ListReplicationBackfills")
    targets = "[{repository: team/*}, {repository: team/app, tag: v1}]"
    lacking = [finding.json()["action"] for finding in check(aws, targets=targets) if finding.lacks]
    assert lacking == [
        "ecr:DescribeRegistry",
        "ecr:ListReplicationBackfills",
        "ecr:DescribeRepositories",
        "ecr:DescribeImages",
    ]


def test_a_role_that_may_not_be_assumed(aws: EmbeddedAWS) -> None:
    refusing(aws, "AssumeRole", refusal=Refuse(403, "AccessDenied", "not authorized"))
    (finding,) = [finding for finding in check(aws) if finding.lacks]
    shown = finding.json()
    assert (shown["subject"], shown["level"]) == (f"destination {PARTNER}/us-west-2", "problem")
    assert shown["statement"] == {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": ROLE}
    assert f":{ACCOUNT}:" in shown["principal"]
    assert "must trust it" in shown["remedy"]


def test_an_external_id_is_never_told(aws: EmbeddedAWS) -> None:
    message = f"not authorized with external id PLANTED-id for {ROLE}"
    refusing(aws, "AssumeRole", refusal=Refuse(403, "AccessDenied", message))
    reader = READER.replace("}]", ", external_id: PLANTED-id}]")
    found = check(aws, reader)
    assert ROLE in as_text(found)
    assert "PLANTED" not in as_text(found) + json.dumps(as_json(found))


def test_credentials_that_aws_refuses(aws: EmbeddedAWS) -> None:
    refusal = Refuse(403, "InvalidClientTokenId")
    refusing(aws, "GetCallerIdentity", "DescribeRegistry", refusal=refusal, account=ACCOUNT)
    found = check(aws)
    assert told(found, Level.PROBLEM) == [
        (f"credentials for their own account/{REGION}", "sts:GetCallerIdentity: InvalidClientTokenId (*)")
    ]
    assert told(found, Level.NOTE) == [
        (f"registry default/{REGION}", "it is not looked at: no credentials for it work")
    ]


@pytest.mark.parametrize(
    "refusal",
    [Refuse(503, "ServiceUnavailable"), Refuse(403, "AccessDenied", "by the policy of an endpoint")],
)
def test_sts_is_not_needed_to_know_the_account(aws: EmbeddedAWS, refusal: Refuse) -> None:
    aws.set_rules(ACCOUNT, REGION, [replication_rule(IRELAND, prefix="team/")])
    refusing(aws, "GetCallerIdentity", refusal=refusal)
    found = check(aws, "")
    assert not is_problem(found)
    subject, message = told(found, Level.NOTE)[0]
    assert subject == f"credentials for their own account/{REGION}"
    assert "sts:GetCallerIdentity: " in message
    assert message.endswith(f"ECR says that they are of account {ACCOUNT}")
    assert (f"destination {ACCOUNT}/eu-west-1", "its copies can be looked at") in told(found, Level.OK)


def test_a_permission_is_lacked_by_an_unknown_caller_without_sts(aws: EmbeddedAWS) -> None:
    refusing(aws, "GetCallerIdentity", "DescribeImages")
    (lacked,) = [finding for finding in check(aws, "") if finding.lacks and "team/api" in finding.message]
    assert lacked.message.startswith("the caller lacks ecr:DescribeImages ")
    assert lacked.json()["principal"] is None


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without credentials and without a Region."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.usefixtures("bare")
def test_missing_credentials_are_one_problem(aws: EmbeddedAWS) -> None:
    queue = "https://sqs.us-east-1.amazonaws.com/111122223333/ecr-events"
    regions = f"registries: [{{region: {REGION}, events_queue_url: '{queue}'}}, {{region: eu-west-1}}]"
    found = check(aws, f"{regions}\n{READER}", environment=True)
    (problem,) = [finding for finding in found if finding.level is Level.PROBLEM]
    assert problem.subject == f"credentials for their own account/{REGION}"
    assert "Unable to locate credentials" in problem.message
    assert "AWS_PROFILE" in problem.remedy
    assert told(found, Level.NOTE) == [
        (f"registry default/{REGION}", "it is not looked at: no credentials for it work"),
        ("registry default/eu-west-1", "it is not looked at: no credentials for it work"),
        ("queue ecr-events", "it is not looked at: the credentials do not work"),
        (f"destination {PARTNER}/*", "it is not looked at: no credentials for it work"),
    ]
    assert not any(finding.lacks for finding in found)
    assert sum(aws.calls.values()) == 0


def own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", f"AKIADEMO{ACCOUNT}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")


@pytest.mark.usefixtures("bare")
def test_the_region_of_the_registry_is_enough(aws: EmbeddedAWS, monkeypatch: pytest.MonkeyPatch) -> None:
    own_keys(monkeypatch)
    aws.set_rules(ACCOUNT, REGION, [replication_rule(IRELAND, prefix="team/")])
    found = check(aws, f"registries: [{{region: {REGION}}}]\n{READER}", environment=True)
    assert not is_problem(found)
    assert told(found, Level.NOTE) == [
        (f"destination {PARTNER}/*", "no rule and no target sends anything there")
    ]
    assert {call.region for call in aws.calls if call.operation == "AssumeRole"} == {REGION}


@pytest.mark.usefixtures("bare")
def test_a_refusal_of_sts_is_reported_without_a_region_of_the_environment(
    aws: EmbeddedAWS, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_keys(monkeypatch)
    refusing(aws, "AssumeRole", refusal=Refuse(403, "InvalidClientTokenId"))
    found = check(aws, f"registries: [{{region: {REGION}}}]\n{READER}", environment=True)
    assert "InvalidClientTokenId" in as_text(found)
    assert "NoRegionError" not in as_text(found)
    assert not any(finding.lacks for finding in found)


def test_rules_that_are_not_read_say_nothing_about_a_destination(aws: EmbeddedAWS) -> None:
    refusing(aws, "DescribeRegistry")
    found = check(aws)
    assert f"destination {PARTNER}/*" in {finding.subject for finding in found}
    assert "sends anything there" not in as_text(found)


def test_one_of_two_roles_is_enough(aws: EmbeddedAWS) -> None:
    aws.create_repository(PARTNER, REGION, "team/app")
    aws.push(PARTNER, REGION, "team/app", "v1")
    roles = [f"{{role_arn: arn:aws:iam::{PARTNER}:role/{name}, region: {REGION}}}" for name in "ab"]
    aws.set_rules(PARTNER, REGION, [replication_rule(IRELAND)])
    aws.set_policy(ACCOUNT, "eu-west-1", policy(grant({"AWS": PARTNER})))
    found = check(aws, f"registries: [{{region: {REGION}}}, {', '.join(roles)}]\n{READER}")
    assert not is_problem(found)
    assert [s for s, m in told(found, Level.OK) if m == "repositories: 1"] == [f"registry {PARTNER}/{REGION}"]


def test_what_targets_select_and_whether_it_is_sent_anywhere(aws: EmbeddedAWS) -> None:
    aws.create_repository(ACCOUNT, REGION, "old/app")
    aws.push(ACCOUNT, REGION, "old/app", "v1")
    targets = (
        "[{name: old, repository: old/*}, {name: gone, repository: team/app, tags: [v1, v2]},"
        " {name: none, repository: x*}, {name: typo, repository: team/ap}]"
    )
    found = check(aws, targets=targets)
    where = f"in {ACCOUNT}/{REGION}"
    assert [(s, m) for s, m in told(found, Level.PROBLEM) if s.startswith("target")] == [
        (f"target old {where}", "no rule sends these repositories anywhere: old/app"),
        (f"target gone {where}", "not found: team/app:v2"),
        (f"target none {where}", "it selects no image"),
        (f"target typo {where}", "it selects no image"),
    ]
    (message,) = [m for s, m in told(found, Level.PROBLEM) if s.startswith("registry")]
    assert "RepositoryNotFoundException" in message
    assert f"{ARN}/team/ap" in message


def test_a_target_with_its_own_destinations_needs_no_rule(aws: EmbeddedAWS) -> None:
    aws.set_rules(ACCOUNT, REGION, [replication_rule(IRELAND, prefix="other/")])
    found = check(aws, "", targets="[{repository: team/app, tag: v1, destinations: [eu-west-1]}]")
    assert not is_problem(found)
    assert (f"destination {ACCOUNT}/eu-west-1", "its copies can be looked at") in told(found, Level.OK)


def test_a_registry_without_rules(aws: EmbeddedAWS) -> None:
    aws.set_rules(ACCOUNT, REGION, [])
    found = check(aws)
    assert [message for _, message in told(found, Level.PROBLEM)] == [
        "it has no replication rules: nothing is sent anywhere",
        "no rule sends these repositories anywhere: team/api, team/app",
    ]
    assert told(found, Level.NOTE) == [
        (f"destination {PARTNER}/*", "no rule and no target sends anything there")
    ]


def test_no_rule_sends_the_images_where_a_target_wants_them(aws: EmbeddedAWS) -> None:
    found = check(aws, targets="[{name: team, repository: team/*, destinations: [eu-west-1, eu-central-1]}]")
    assert not is_problem(found)
    message = f"no rule sends these repositories to {ACCOUNT}/eu-central-1: team/api, team/app"
    (subject,) = [subject for subject, told_of in told(found, Level.NOTE) if told_of == message]
    assert subject.startswith("target team in ")


def test_a_destination_that_nothing_says_how_to_read(aws: EmbeddedAWS) -> None:
    found = check(aws, "")
    assert not is_problem(found)
    assert told(found, Level.NOTE) == [
        (
            f"destination {PARTNER}/us-west-2",
            f"its copies are not looked at: nothing says how account {PARTNER} is read",
        ),
        (
            f"destination {PARTNER}/us-west-2",
            "its registry policy cannot be read: that takes credentials of its account",
        ),
    ]


def test_a_destination_whose_images_may_not_be_read(aws: EmbeddedAWS) -> None:
    refusing(aws, "DescribeImages", account=PARTNER)
    (finding,) = [finding for finding in check(aws) if finding.lacks]
    assert finding.json()["principal"] == ROLE
    assert finding.json()["resources"] == [f"arn:aws:ecr:us-west-2:{PARTNER}:repository/*"]


def test_the_policy_trap_is_found_in_the_real_answer(aws: EmbeddedAWS) -> None:
    trap = {"StringEquals": {"aws:SourceAccount": ACCOUNT}}
    aws.set_policy(PARTNER, "us-west-2", policy(grant(condition=trap)))
    assert told(check(aws), Level.PROBLEM) == [
        (
            f"destination {PARTNER}/us-west-2",
            "its registry policy has a condition on aws:SourceAccount: every replication fails",
        )
    ]


def test_a_policy_that_may_not_be_read_is_a_note(aws: EmbeddedAWS) -> None:
    refusing(aws, "GetRegistryPolicy")
    found = check(aws)
    assert not is_problem(found)
    (finding,) = [finding for finding in found if finding.lacks]
    assert (finding.level, finding.json()["action"]) == (Level.NOTE, "ecr:GetRegistryPolicy")


ALLOWED, NO_REPLICATION, NO_CREATION, TRAPPED = "lets", "does not let", "CreateRepository", "a condition on"


@pytest.mark.parametrize(
    ("text", "level", "message"),
    [
        ("", Level.PROBLEM, "lets no other account"),
        (policy(grant()), Level.OK, ALLOWED),
        (policy(grant("*", action="*")), Level.OK, ALLOWED),
        (
            policy(grant({"AWS": [ACCOUNT]}, action=["ecr:Replicate*", "ecr:createrepository"])),
            Level.OK,
            ALLOWED,
        ),
        (policy(grant(condition={"StringEquals": {"aws:PrincipalOrgID": "o-1"}})), Level.OK, ALLOWED),
        (policy(grant({"AWS": PARTNER})), Level.PROBLEM, NO_REPLICATION),
        (policy(grant({"Service": "ecr.amazonaws.com"})), Level.PROBLEM, NO_REPLICATION),
        (policy(grant(action="ecr:BatchImportUpstreamImage")), Level.PROBLEM, NO_REPLICATION),
        (policy(grant() | {"Effect": "Deny"}), Level.PROBLEM, NO_REPLICATION),
        (policy(grant(action="ecr:ReplicateImage")), Level.NOTE, NO_CREATION),
        (policy(grant(condition={"ArnLike": {"AWS:SourceArn": "arn:*"}})), Level.PROBLEM, TRAPPED),
        (policy(grant(condition={"ArnLike": {"aws:SourceArn": "arn:*"}}), grant()), Level.OK, ALLOWED),
        (policy(grant(resource=f"{THERE}/*")), Level.OK, ALLOWED),
        (policy(grant(resource=[f"{THERE}/other/*", f"{THERE}/t?am/app"])), Level.OK, ALLOWED),
        (policy(grant(resource=f"{THERE}/other/*")), Level.PROBLEM, NO_REPLICATION),
        (
            policy(grant(resource=f"arn:aws:ecr:eu-west-1:{PARTNER}:repository/*")),
            Level.PROBLEM,
            NO_REPLICATION,
        ),
        (
            policy(grant(), grant("*", action="ecr:Replicate*") | {"Effect": "Deny"}),
            Level.PROBLEM,
            NO_REPLICATION,
        ),
        (policy(grant(), grant(action="ecr:Create*") | {"Effect": "Deny"}), Level.NOTE, NO_CREATION),
        (policy(grant(), grant({"AWS": PARTNER}) | {"Effect": "Deny"}), Level.OK, ALLOWED),
        (
            policy(grant(), grant("*", {"Bool": {"aws:SecureTransport": "false"}}) | {"Effect": "Deny"}),
            Level.OK,
            ALLOWED,
        ),
        (json.dumps({"Statement": grant()}), Level.OK, ALLOWED),
        ("not JSON", Level.NOTE, "cannot be understood"),
        ("[]", Level.NOTE, "cannot be understood"),
        ('{"Statement": ["x"]}', Level.NOTE, "cannot be understood"),
    ],
)
def test_what_a_registry_policy_means(text: str, level: Level, message: str) -> None:
    (finding,) = policy_findings("there", text, ACCOUNT, [f"{THERE}/team/app"])
    assert (finding.level, message in finding.message) == (level, True), finding


def test_the_remedy_names_the_principal_in_its_partition() -> None:
    there = f"arn:aws-cn:ecr:cn-north-1:{PARTNER}:repository/team/app"
    for text in ("", policy(grant({"AWS": PARTNER}))):
        (finding,) = policy_findings("there", text, ACCOUNT, [there])
        assert f"let arn:aws-cn:iam::{ACCOUNT}:root do" in finding.remedy


def test_a_policy_that_leaves_a_repository_out(aws: EmbeddedAWS) -> None:
    aws.set_policy(PARTNER, "us-west-2", policy(grant(resource=f"{THERE}/team/app")))
    assert told(check(aws), Level.PROBLEM) == [
        (
            f"destination {PARTNER}/us-west-2",
            f"its registry policy does not let {ACCOUNT} do ecr:ReplicateImage on {THERE}/team/api",
        )
    ]


def test_a_policy_whose_condition_is_for_one_of_the_repositories(aws: EmbeddedAWS) -> None:
    trap = {"StringEquals": {"aws:SourceAccount": ACCOUNT}}
    grants = grant(resource=f"{THERE}/team/app"), grant(condition=trap, resource=f"{THERE}/*")
    aws.set_policy(PARTNER, "us-west-2", policy(*grants))
    (problem,) = told(check(aws), Level.PROBLEM)
    assert problem[1].endswith(f"aws:SourceAccount: every replication fails to {THERE}/team/api")


def test_a_policy_is_added_to_the_role_behind_a_session() -> None:
    assert role_of(f"arn:aws-cn:sts::{ACCOUNT}:assumed-role/ci/run-1") == f"arn:aws-cn:iam::{ACCOUNT}:role/ci"
    assert role_of(f"arn:aws:iam::{ACCOUNT}:user/x") == f"arn:aws:iam::{ACCOUNT}:user/x"


def test_calls_keep_to_the_rate_and_survive_a_throttle(aws: EmbeddedAWS) -> None:
    throttles = iter([Refuse(400, "ThrottlingException")] * 2)
    aws.fault = lambda call: next(throttles, None) if call.operation == "DescribeRegistry" else None
    pauses: list[float] = []
    found = check(aws, f"{READER}\nrequests_per_second: 4", pauses=pauses)
    assert not is_problem(found)
    assert (set(pauses), pauses.count(3.0)) == ({0.25, 3.0}, 2)


def test_every_page_of_a_listing_keeps_to_the_rate(aws: EmbeddedAWS) -> None:
    for number in range(1001):
        aws.push(ACCOUNT, REGION, "team/app", f"n{number}")
    pauses: list[float] = []
    found = check(aws, f"{READER}\nrequests_per_second: 4", pauses=pauses)
    assert told(found, Level.OK)[6][1] == "selected images: 1003, in repositories: 2"
    assert len(pauses) == sum(aws.calls.values()) - aws.count("AssumeRole")


def test_a_listing_that_never_ends_is_a_problem(aws: EmbeddedAWS) -> None:
    def looping(call: Call) -> Any:
        if call.operation != "DescribeRepositories":
            return None
        plain = {name: value for name, value in call.params.items() if name != "nextToken"}
        return json_answer(aws.serve(Call(call.kind, plain)) | {"nextToken": "t"})

    aws.fault = looping
    messages = [message for _, message in told(check(aws), Level.PROBLEM)]
    assert any("a page was repeated" in message for message in messages)


def test_a_status_that_cannot_be_tried_is_noted(aws: EmbeddedAWS) -> None:
    aws.create_repository(ACCOUNT, REGION, "team/new")
    notes = told(check(aws, targets="[{repository: team/n*}]"), Level.NOTE)
    assert notes[0][1] == "no image is selected, so ecr:DescribeImageReplicationStatus is not tried"


def test_the_report_as_text_and_json(aws: EmbeddedAWS) -> None:
    refusing(aws, "DescribeRegistry")
    found = check(aws, "")
    text = as_text(found)
    assert text.splitlines()[-1] == "1 problem, 0 notes"
    assert '           add {"Effect": "Allow", "Action": "ecr:DescribeRegistry", "Resource": "*"}\n' in text
    shown = as_json(found)
    assert (shown["result"], len(shown["findings"])) == ("problems", len(found))
    assert json.loads(json.dumps(shown)) == shown
