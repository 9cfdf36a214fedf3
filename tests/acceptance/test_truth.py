"""What the exporter says of a registry, with the real client and engine on the simulated AWS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.command import eventually
from support.embedded_aws import EmbeddedAWS, Fault, Garbage
from support.live import INTERVAL, IRELAND, Live, living

from exporter.demo import ACCOUNT, REGION, Call, Refuse

HISTOGRAM = "ecr_image_replication_duration_seconds"
SINCE = "ecr_image_replication_status_since_timestamp_seconds"
RULE = "ecr_registry_replication_rule_info"
DESTINATIONS = "ecr_repository_replication_destinations"


@pytest.fixture
def aws() -> Iterator[EmbeddedAWS]:
    with EmbeddedAWS(delay=lambda _: 0.0) as aws:
        aws.create_repository(ACCOUNT, REGION, "team/app")
        aws.set_rules(ACCOUNT, REGION, [{"destinations": [IRELAND]}])
        yield aws


def watching(aws: EmbeddedAWS, targets: str = "[{repository: 'team/*'}]") -> Any:
    session = aws.session()
    text = f"registries: [{{region: {REGION}}}]\ntargets: {targets}\nrequests_per_second: 200\n"
    return living(lambda: session, aws.endpoint_url, text=text)


def counted(live: Live) -> float:
    return sum(value for _, value in live.series(f"{HISTOGRAM}_count"))


def rounds(aws: EmbeddedAWS, number: int) -> None:
    """Wait until the repository was listed so often again."""
    before = aws.count("DescribeImages")
    eventually(lambda: aws.count("DescribeImages") >= before + number)


def test_a_registry_whose_rules_send_nothing_anywhere_says_so(aws: EmbeddedAWS) -> None:
    aws.set_rules(ACCOUNT, REGION, [])
    aws.push(ACCOUNT, REGION, "team/app", "v1")
    with watching(aws) as live:
        eventually(lambda: live.lines("nothing_replicated"))
        ((labels, value),) = live.series(DESTINATIONS)
        assert (labels["repository"], value) == ("team/app", 0.0)
        (line,) = live.lines("nothing_replicated")
        assert (line["level"], line["repository"]) == ("warn", "team/app")
        aws.set_rules(ACCOUNT, REGION, [{"destinations": [IRELAND]}])
        eventually(lambda: [value for _, value in live.series(DESTINATIONS)] == [1.0])


def test_deletion_mirroring_that_is_switched_on_is_a_label_and_a_warning(aws: EmbeddedAWS) -> None:
    with watching(aws) as live:
        eventually(lambda: live.series(RULE, delete_replication="false"))
        assert not live.lines("rules_changed")
        aws.client("ecr").put_replication_configuration(
            replicationConfiguration={
                "rules": [{"destinations": [IRELAND], "deleteReplication": {"enabled": True}}]
            }
        )
        eventually(lambda: live.series(RULE, delete_replication="true"))
        assert len(live.series(RULE)) == 1
        (line,) = live.lines("rules_changed")
        assert (line["level"], line["delete_replication_on"]) == ("warn", f"* -> {ACCOUNT}/eu-west-1")
        assert line.keys().isdisjoint({"went", "came", "delete_replication_off"})


def test_a_backfill_of_an_old_image_has_a_recent_since_and_no_duration(aws: EmbeddedAWS) -> None:
    year = 365 * 86400.0
    digest = aws.push(ACCOUNT, REGION, "team/app", "v1", pushed_at=aws.clock() - year)
    aws.set_status(ACCOUNT, REGION, "team/app", digest, [])
    began = aws.clock()
    with watching(aws) as live:
        eventually(lambda: live.statuses() == {"MISSING"})
        ((_, missing),) = live.series(SINCE)
        assert began <= missing <= aws.clock()
        rounds(aws, 3)
        assert [value for _, value in live.series(SINCE)] == [missing]
        aws.set_status(ACCOUNT, REGION, "team/app", digest, [{**IRELAND, "status": "IN_PROGRESS"}])
        eventually(lambda: live.statuses() == {"IN_PROGRESS"})
        ((_, under_way),) = live.series(SINCE)
        assert under_way > missing
        aws.set_status(ACCOUNT, REGION, "team/app", digest, [{**IRELAND, "status": "COMPLETE"}])
        eventually(lambda: live.statuses() == {"COMPLETE"})
        assert live.series(SINCE) == []
        assert counted(live) == 0


def test_each_push_that_was_watched_has_a_duration(aws: EmbeddedAWS) -> None:
    aws.push(ACCOUNT, REGION, "team/app", "v0")
    with watching(aws) as live:
        eventually(lambda: live.statuses() == {"COMPLETE"})
        rounds(aws, 2)
        for number in range(1, 4):
            aws.push(ACCOUNT, REGION, "team/app", f"v{number}")
            rounds(aws, 1)
        eventually(lambda: counted(live) == 3)
        rounds(aws, 3)
        assert counted(live) == 3


def test_a_name_that_a_look_up_leaves_out_hides_no_other(aws: EmbeddedAWS) -> None:
    digest = aws.push(ACCOUNT, REGION, "team/app", "v1")
    asked: list[list[str]] = []

    def fault(call: Call) -> Fault | None:
        if "imageIds" not in call.params:
            return None
        tags = [each["imageTag"] for each in call.params["imageIds"]]
        asked.append(tags)
        found = [{"imageDigest": digest, "imageTags": ["v1"], "imagePushedAt": aws.clock() - 60}]
        answer = {"imageDetails": found if "v1" in tags else []}
        return Garbage(json.dumps(answer).encode(), content_type="application/x-amz-json-1.1")

    aws.fault = fault
    with watching(aws, "[{repository: team/app, tags: [v1, v2]}]") as live:
        eventually(lambda: live.statuses(tag="v1") == {"COMPLETE"})
        eventually(lambda: [value for _, value in live.series("ecr_target_success")] == [0.0])
        ((failure, _),) = live.series("ecr_target_failure_info")
        assert failure["reason"] == "image_not_found"
        assert not live.series("ecr_image_info", tag="v2")
        rounds(aws, 3)
        assert live.statuses(tag="v1") == {"COMPLETE"}
    # Later rounds list the repository, which is one call.
    assert asked == [["v1", "v2"], ["v2"]]


def test_a_registry_that_is_throttled_from_the_start_is_not_ready_and_no_read_changes_that(
    aws: EmbeddedAWS,
) -> None:
    aws.push(ACCOUNT, REGION, "team/app", "v1")
    aws.fault = lambda _: Refuse(400, "ThrottlingException", "slow down")
    with watching(aws) as live:
        eventually(lambda: aws.count("DescribeRegistry") >= 2)
        reads = [(live.exporter.ready(), live.success()) for _ in range(100)]
        assert {(bool(why), bool(known)) for why, known in reads} == {(True, False)}
        aws.fault = lambda _: None
        eventually(lambda: set(live.success().values()) == {1.0}, within=60 + INTERVAL)
        assert live.exporter.ready() is None
