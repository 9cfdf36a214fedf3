"""Credentials that are lent and end soon are taken anew without a restart: in a pod, on an instance."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from command import Command, ask, environment, eventually, running

from exporter.config import RegistrySettings
from exporter.demo import ACCOUNT, REGION, EmbeddedAWS
from exporter.ecr import AWS, Gate

OTHER = "444455556666"


class Lender:
    """The endpoints of Pod Identity (or ECS) and of IMDSv2; lends keys of an account for a few seconds."""

    def __init__(self) -> None:
        self.account = ACCOUNT
        self.lent = 0
        lender = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = lender.answer(self.path, dict(self.headers))
                self.send_response(200 if answer else 401)
                self.end_headers()
                self.wfile.write(answer.encode())

            def do_PUT(self) -> None:
                self.do_GET()

            def log_message(self, *args: Any) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, headers: Mapping[str, str]) -> str:
        if path == "/latest/api/token":
            return "session"
        if path == "/pod" and headers.get("Authorization") == "projected token":
            return self.keys()
        if headers.get("x-aws-ec2-metadata-token") != "session":
            return ""
        return self.keys() if path.endswith("/reader") else "reader"

    def keys(self) -> str:
        self.lent += 1
        return json.dumps(
            {
                "Code": "Success",
                "AccessKeyId": f"AKIADEMO{self.account}",
                "SecretAccessKey": "x",
                "Token": f"token {self.lent}",
                "Expiration": (datetime.now(UTC) + timedelta(seconds=30)).isoformat(),
            }
        )


@pytest.fixture
def lender() -> Iterator[Lender]:
    lender = Lender()
    yield lender
    lender.stop()


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
def gate(
    variables: dict[str, str], aws: EmbeddedAWS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Gate:
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_ROLE_ARN", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return AWS(endpoint_url=aws.endpoint_url).gate(RegistrySettings(), connections=1)


def test_lent_credentials_are_taken_anew_before_they_end(gate: Gate, lender: Lender) -> None:
    assert gate.registry().registry_id == ACCOUNT
    lender.account = OTHER
    assert gate.registry().registry_id == OTHER


def test_a_role_is_assumed_with_lent_credentials(
    aws: EmbeddedAWS, gate: Gate, lender: Lender, variables: dict[str, str]
) -> None:
    del gate, variables  # whose environment is used
    role = RegistrySettings(role_arn=f"arn:aws:iam::{OTHER}:role/reader")
    lent = AWS(endpoint_url=aws.endpoint_url).gate(role, connections=1)
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
        aws.push(ACCOUNT, REGION, "team/app", "v2")
        eventually(lambda: told(command, "v2"))
        assert lender.lent > lent
        assert ask(f"{command.url}/-/ready").status == 200
        assert "level=error" not in command.log()
