"""Lent credentials that end soon are renewed without a restart: in a pod, on an instance."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import Command, ask, environment, eventually, running
from support.embedded_aws import EmbeddedAWS
from support.lender import Lender

from exporter.aws.connector import AwsConnector
from exporter.aws.credentials import RENEW_BEFORE
from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.config.settings import RegistrySettings
from exporter.demo import ACCOUNT, REGION, Refuse
from exporter.replication.model import Reason


@pytest.fixture
def lender() -> Iterator[Lender]:
    lender = Lender()
    yield lender
    lender.stop()


OTHER = "444455556666"


@pytest.fixture
def aws() -> Iterator[EmbeddedAWS]:
    with EmbeddedAWS() as aws:
        yield aws


@pytest.fixture(params=["pod identity", "instance role"])
def variables(request: pytest.FixtureRequest, lender: Lender, tmp_path: Path) -> dict[str, str]:
    """What a pod with Pod Identity, or any process on an instance, has in its environment."""
    (tmp_path / "token").write_text("projected token")
    common = {"AWS_REGION": REGION, "AWS_CONFIG_FILE": str(tmp_path / "none"), "NO_PROXY": "127.0.0.1"}
    if request.param == "pod identity":
        return common | {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{lender.url}/pod",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(tmp_path / "token"),
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    return common | {
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": lender.url,
        "AWS_EC2_METADATA_DISABLED": "false",
    }


@pytest.fixture
def ahead() -> list[float]:
    """Seconds that the clock of the client is ahead."""
    return [0.0]


@pytest.fixture
def client(
    variables: dict[str, str],
    aws: EmbeddedAWS,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ahead: list[float],
) -> EcrClient:
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_ROLE_ARN", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return AwsConnector(endpoint_url=aws.endpoint_url, clock=lambda: time.time() + ahead[0]).ecr(
        RegistrySettings(), connections=1
    )


def test_credentials_are_fetched_once_and_renewed_before_their_end(
    client: EcrClient, lender: Lender, ahead: list[float]
) -> None:
    lender.seconds = 600.0
    for _ in range(5):
        assert client.registry().registry_id == ACCOUNT
    fetched = lender.lent
    assert fetched <= 2  # botocore's chain may look once for what there is
    lender.account = OTHER
    ahead[0] = 600 - RENEW_BEFORE + 1
    assert client.registry().registry_id == OTHER
    assert lender.lent > fetched


def test_credentials_are_used_until_their_end(
    client: EcrClient, lender: Lender, ahead: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    lender.seconds = 600.0
    assert client.registry().registry_id == ACCOUNT
    good, asked = lender.answer, list[str]()

    def refuse(path: str, _: object) -> str:
        asked.append(path)
        return ""

    monkeypatch.setattr(lender, "answer", refuse)
    ahead[0] = 600 - RENEW_BEFORE + 1
    for _ in range(5):
        assert client.registry().registry_id == ACCOUNT
    tries = len(asked)
    assert 1 <= tries <= 6  # one renewal, which botocore may repeat by itself
    ahead[0] = 601
    with pytest.raises(ECRError) as caught:
        client.registry()
    assert caught.value.reason is Reason.ACCESS_DENIED
    monkeypatch.setattr(lender, "answer", good)
    assert client.registry().registry_id == ACCOUNT


def test_a_role_is_used_until_its_end_while_nothing_is_lent_for_it(
    aws: EmbeddedAWS, client: EcrClient, lender: Lender, ahead: list[float]
) -> None:
    """AssumeRole lends for an hour; the keys that assume it last 10 minutes, and then no more come."""
    del client  # whose environment is used
    lender.seconds = 600.0
    role = RegistrySettings(role_arn=f"arn:aws:iam::{OTHER}:role/reader")
    connector = AwsConnector(endpoint_url=aws.endpoint_url, clock=lambda: time.time() + ahead[0])
    lent = connector.ecr(role, connections=1)
    assert lent.registry().registry_id == OTHER
    lender.refuses = 500
    ahead[0] = 3600 - RENEW_BEFORE + 20
    assert lent.registry().registry_id == OTHER
    ahead[0] = 3700
    with pytest.raises(ECRError) as caught:
        lent.registry()
    assert caught.value.everything
    lender.refuses = None
    assert lent.registry().registry_id == OTHER


@pytest.mark.parametrize(("status", "reason"), [(500, "unavailable"), (403, "access_denied")])
@pytest.mark.parametrize("variables", ["pod identity"], indirect=True)
def test_what_the_agent_answers(client: EcrClient, lender: Lender, status: int, reason: str) -> None:
    lender.refuses = status
    with pytest.raises(ECRError) as caught:
        client.registry()
    assert (caught.value.reason, caught.value.everything) == (reason, True)
    lender.refuses = None
    assert client.registry().registry_id == ACCOUNT


def test_a_role_is_assumed_with_lent_credentials(
    aws: EmbeddedAWS, client: EcrClient, lender: Lender, variables: dict[str, str]
) -> None:
    del client, variables  # whose environment is used
    role = RegistrySettings(role_arn=f"arn:aws:iam::{OTHER}:role/reader")
    lent = AwsConnector(endpoint_url=aws.endpoint_url).ecr(role, connections=1)
    assert lent.registry().registry_id == OTHER
    assert lender.lent >= 1
    assert aws.count("AssumeRole") == 1


def test_the_command_outlives_its_credentials(
    tmp_path: Path, aws: EmbeddedAWS, lender: Lender, variables: dict[str, str]
) -> None:
    aws.set_rules(ACCOUNT, REGION, [{"destinations": [{"region": "eu-west-1", "registryId": ACCOUNT}]}])
    aws.create_repository(ACCOUNT, REGION, "team/app")
    aws.push(ACCOUNT, REGION, "team/app", "v1")
    (tmp_path / "config.yaml").write_text(
        "targets: [{repository: team/*}]\ndiscovery_interval: 1s\npending_interval: 1s\n"
    )
    extra = variables | {"AWS_ENDPOINT_URL": aws.endpoint_url}

    def told(command: Command, tag: str) -> bool:
        return command.statuses(tag=tag) == {"COMPLETE"}

    assert "AWS_ACCESS_KEY_ID" not in environment()
    with running(tmp_path, f"--config.file={tmp_path / 'config.yaml'}", **extra) as command:
        eventually(lambda: told(command, "v1"))
        lent = lender.lent
        expired = [Refuse(400, "ExpiredTokenException", "the token has expired")]
        aws.fault = lambda _: expired.pop() if expired else None
        aws.push(ACCOUNT, REGION, "team/app", "v2")
        eventually(lambda: told(command, "v2"))
        assert lender.lent > lent
        assert ask(f"{command.url}/-/ready").status == 200
        assert "level=error" not in command.log()
