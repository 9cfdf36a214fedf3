"""The real command with a queue of events on moto's SQS. It lists every quarter of an hour."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.command import Command, eventually, running
from support.embedded_aws import EmbeddedAWS, Fault, Hang, replication_rule

from exporter.demo import ACCOUNT, REGION, Call, Refuse
from exporter.replication.model import Destination

HOME = (ACCOUNT, REGION)
IRELAND = Destination("eu-west-1", ACCOUNT)
RULES = [replication_rule(IRELAND)]
SUCCESS = "ecr_replication_exporter_events_queue_success"
EVENTS = "ecr_replication_exporter_events_received_total"
DURATIONS = "ecr_image_replication_duration_seconds_count"


@pytest.fixture
def aws() -> Iterator[EmbeddedAWS]:
    with EmbeddedAWS(delay=lambda _: 0.5) as aws:
        aws.set_rules(*HOME, RULES)
        aws.create_repository(*HOME, "team/app")
        aws.push(*HOME, "team/app", "v1")
        yield aws


@contextmanager
def watching(aws: EmbeddedAWS, tmp_path: Path, url: str) -> Iterator[Command]:
    """The command once it has listed everything."""
    keys = aws.session().get_credentials()
    assert keys is not None
    file = tmp_path / "config.yaml"
    file.write_text(
        "targets: [{repository: '*'}]\ndiscovery_interval: 15m\npending_interval: 5m\n"
        f"registries: [{{events_queue_url: '{url}'}}]\n"
    )
    with running(
        tmp_path,
        f"--config.file={file}",
        AWS_ACCESS_KEY_ID=keys.access_key,
        AWS_SECRET_ACCESS_KEY=keys.secret_key,
        AWS_REGION=REGION,
        AWS_ENDPOINT_URL=aws.endpoint_url,
    ) as command:
        eventually(lambda: command.series("ecr_target_success"))
        yield command


def is_read(command: Command) -> bool | None:
    """Whether the queue can be read; None if that is not told."""
    values = [value for _, value in command.series(SUCCESS)]
    return bool(values[0]) if values else None


def is_complete(aws: EmbeddedAWS, command: Command, **labels: str) -> bool:
    """Whether the image is COMPLETE. The simulated copies arrive when something is asked of their ECR."""
    aws.set_rules(*HOME, RULES)
    return command.statuses(**labels) == {"COMPLETE"}


def test_pushes_replications_and_deletions_show_long_before_the_next_listing(
    aws: EmbeddedAWS, tmp_path: Path
) -> None:
    with watching(aws, tmp_path, aws.add_queue("ecr-events", region="eu-west-1")) as command:
        digest = aws.push(*HOME, "team/app", "v2")
        eventually(lambda: is_complete(aws, command, tag="v2"))
        aws.create_repository(*HOME, "team/new")
        aws.push(*HOME, "team/new", "v1")
        eventually(lambda: is_complete(aws, command, repository="team/new"))
        aws.delete_image(*HOME, "team/app", digest)
        eventually(lambda: not command.statuses(tag="v2"))
        assert command.statuses(tag="v1", repository="team/app") == {"COMPLETE"}
        assert command.series(EVENTS, kind="DELETE", outcome="used")
        assert [value for _, value in command.series(DURATIONS)] == [1], "the first listing has no durations"
        assert is_read(command) is True


@pytest.mark.parametrize(
    "fault",
    [Refuse(403, "AccessDenied", "no"), Refuse(403, "ExpiredToken", "late"), Hang(60.0)],
    ids=["denied", "expired", "hangs"],
)
def test_a_queue_that_fails_is_told_and_recovers(
    aws: EmbeddedAWS, tmp_path: Path, fault: Fault | Refuse
) -> None:
    def failing(call: Call) -> Fault | Refuse | None:
        return fault if call.kind.service == "sqs" else None

    with watching(aws, tmp_path, aws.add_queue("ecr-events")) as command:
        eventually(lambda: is_read(command) is True)
        aws.fault = failing
        eventually(lambda: is_read(command) is False, within=40)
        aws.push(*HOME, "team/app", "v2")
        aws.fault = lambda _: None
        eventually(lambda: is_read(command) is True, within=70)
        eventually(lambda: is_complete(aws, command, tag="v2"))
        assert command.log().count('scope="events ecr-events"') == 1
        assert command.log().count("msg=recovered") == 1


def test_a_queue_that_does_not_exist_is_told(aws: EmbeddedAWS, tmp_path: Path) -> None:
    with watching(aws, tmp_path, f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/gone") as command:
        eventually(lambda: is_read(command) is False)
        assert "sqs:ReceiveMessage" in command.log()
        assert [value for _, value in command.series("ecr_target_success")] == [1]


def test_a_stop_does_not_wait_for_the_poll_that_is_under_way(aws: EmbeddedAWS, tmp_path: Path) -> None:
    polling = []

    def hanging(call: Call) -> Hang | None:
        if call.operation != "ReceiveMessage":
            return None
        polling.append(call)
        return Hang(60.0)

    aws.fault = hanging
    with watching(aws, tmp_path, aws.add_queue("ecr-events")) as command:
        eventually(lambda: polling)
        code, seconds = command.stop()
    assert code == 0
    assert seconds < 5
