"""No secret appears in the log at any level and format, on a page or in an error.

All planted secrets contain PLANTED, so the tests find every leak.
"""

from __future__ import annotations

import base64
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import bcrypt
import pytest
from support.certificates import Authority
from support.command import Answer, Command, eventually, run, running
from support.embedded_aws import EmbeddedAWS, Fault, Garbage

from exporter.demo import ACCOUNT, REGION, Call, Refuse

PARTNER = "444455556666"
PASSWORD = "PLANTED-password"
#: The hash of the password has no PLANTED in it, so the tests search for the hash itself.
HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
PATHS = ("/", "/metrics", "/config", "/-/ready", "/-/healthy", "/status", "/nowhere", "/metrics?PLANTED=1")

CONFIG = f"""
registries:
  - name: theirs
    region: eu-west-1
    role_arn: arn:aws:iam::{PARTNER}:role/reader
    external_id: PLANTED-external-id
  - name: home
targets: [{{repository: team/*}}]
discovery_interval: 1s
pending_interval: 1s
"""
#: Secrets in wrong places.
MISTYPED = """
registries:
  - name: theirs
    externalid: PLANTED-1
    password: [PLANTED-2]
    external_id: {PLANTED-3: PLANTED-4}
  - name: home
    external_id: "PLANTED-5 with spaces"
    aws_secret_access_key: PLANTED-6
aws_session_token: {a: PLANTED-7}
targets: [PLANTED-8, {repository: team/app, token: PLANTED-9}]
"""
MISTYPED_WEB = """
basic_auth_users:
  prom: PLANTED-1
  other: {PLANTED-2: PLANTED-3}
tls_server_config:
  key: |
    -----BEGIN PRIVATE KEY-----
    PLANTED-4
password: PLANTED-5
http_server_config: {headers: {Authorization: PLANTED-6}}
"""


def assert_hidden(text: str, *more: str) -> None:
    """Check that the text has no planted secret, in any case or encoding."""
    encoded = base64.b64encode(f"prom:{PASSWORD}".encode()).decode()
    for secret in ("planted", HASH, HASH[7:], encoded, *more):
        assert secret.lower() not in text.lower()


def role_credentials() -> Garbage:
    """An answer of AssumeRole."""
    ends = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    body = f"""<AssumeRoleResponse><AssumeRoleResult><Credentials>
        <AccessKeyId>AKIADEMO{PARTNER}</AccessKeyId><SecretAccessKey>PLANTED-lent-key</SecretAccessKey>
        <SessionToken>PLANTED-lent-token</SessionToken><Expiration>{ends}</Expiration>
        </Credentials></AssumeRoleResult></AssumeRoleResponse>"""
    return Garbage(body.encode(), content_type="text/xml")


#: Answers of AWS that quote a secret: errors, a truncated answer and answers that are not JSON.
FAULTS = (
    Refuse(400, "AccessDeniedException", "who shows PLANTED-external-id may not"),
    Refuse(403, "InvalidSignatureException", "It should be\nx-amz-security-token:PLANTED-lent-token"),
    Garbage(b"<html>PLANTED-body</html>"),
    Garbage(b'{"replicationStatuses": [{"PLANTED-body', content_type="application/x-amz-json-1.1"),
    Garbage(b"PLANTED-body", status=500),
)


@pytest.fixture
def pending_faults(aws: EmbeddedAWS) -> list[Fault]:
    """Faults that did not happen yet. Calls with the role get each once, then always the first one."""
    left: list[Fault] = list(FAULTS)

    def fault(call: Call) -> Fault | None:
        if call.operation == "AssumeRole":
            return role_credentials()
        if call.kind.account != PARTNER:
            return None
        return left.pop() if left else FAULTS[0]

    aws.fault = fault
    return left


@pytest.fixture
def aws() -> Iterator[EmbeddedAWS]:
    with EmbeddedAWS(delay=lambda _: 0.0) as aws:
        for account, region in ((ACCOUNT, REGION), (PARTNER, "eu-west-1")):
            aws.create_repository(account, region, "team/app")
            aws.push(account, region, "team/app", "v1")
        yield aws


def requester(command: Command) -> Callable[..., Answer]:
    """A function that sends a request to the command over TLS, with any password."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def ask(path: str, *, method: str = "GET", password: str = PASSWORD) -> Answer:
        coded = base64.b64encode(f"prom:{password}".encode()).decode()
        request = urllib.request.Request(
            command.url.replace("http:", "https:") + path,
            method=method,
            headers={"Authorization": f"Basic {coded}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10, context=context) as response:
                return Answer(response.status, f"{response.headers}{response.read().decode()}")
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, f"{error.headers}{error.read().decode()}")

    return ask


@pytest.mark.parametrize(
    ("level", "format_"),
    [("debug", "logfmt"), ("debug", "json"), ("info", "json"), ("error", "logfmt")],
)
def test_a_running_exporter_shows_no_secret(
    tmp_path: Path, aws: EmbeddedAWS, pending_faults: list[Fault], level: str, format_: str
) -> None:
    certificate, key = Authority().issue(tmp_path, "server")
    key_lines = key.read_text().splitlines()[1:-1]
    config, web = tmp_path / "config.yaml", tmp_path / "web.yaml"
    config.write_text(CONFIG)
    tls = f"tls_server_config: {{cert_file: {certificate}, key_file: {key}}}\n"
    web.write_text(f"{tls}basic_auth_users: {{prom: {HASH}}}\n")
    flags = [f"--config.file={config}", f"--web.config.file={web}", "--web.enable-lifecycle"]
    keys = {
        "AWS_ACCESS_KEY_ID": f"AKIADEMO{ACCOUNT}",
        "AWS_SECRET_ACCESS_KEY": "PLANTED-own-key",
        "AWS_SESSION_TOKEN": "PLANTED-own-token",
        "AWS_REGION": REGION,
        "AWS_ENDPOINT_URL": aws.endpoint_url,
    }
    logs = (f"--log.level={level}", f"--log.format={format_}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with running(tmp_path, *flags, *logs, port=port, **keys) as command:
        ask = requester(command)
        eventually(lambda: pending_faults == [])
        eventually(lambda: 'status="COMPLETE"' in ask("/metrics").body or ask("/-/ready").status == 200)
        answers = [ask(path) for path in PATHS] + [ask("/config", password="PLANTED-wrong")]
        config.write_text(MISTYPED)
        refused = ask("/-/reload", method="POST")
        assert refused.status == 500
        web.write_text(MISTYPED_WEB)
        answers += [refused, ask("/metrics"), ask("/metrics", password="PLANTED-wrong")]
        assert {answer.status for answer in answers} == {200, 401, 404, 500}
        command.stop()
        for text in (*(answer.body for answer in answers), command.log()):
            assert_hidden(text.replace(str(tmp_path), ""), *key_lines)


@pytest.mark.parametrize("check", [["--config.check"], []])
@pytest.mark.parametrize("level", ["debug", "error"])
def test_a_mistyped_secret_is_not_quoted(tmp_path: Path, check: list[str], level: str) -> None:
    config, web, good = (tmp_path / name for name in ("config.yaml", "web.yaml", "good.yaml"))
    config.write_text(MISTYPED)
    web.write_text(MISTYPED_WEB)
    good.write_text("targets: [{repository: team/app}]")
    logs = f"--log.level={level}"
    done = run(f"--config.file={config}", logs, *check, AWS_REGION=REGION)
    assert done.returncode == 2
    assert "registries[0].externalid" in done.stderr
    assert_hidden(done.stdout + done.stderr)
    done = run(f"--config.file={good}", f"--web.config.file={web}", logs, *check, AWS_REGION=REGION)
    assert done.returncode == 2
    assert "basic_auth_users" in done.stderr
    assert_hidden(done.stdout + done.stderr)


@pytest.mark.parametrize(
    ("proxy", "shown"),
    [
        ('"http://u:PLANTED@127.0.0.1:9"', "HTTPS_PROXY"),  # an env file keeps the quotes
        ("'http://u:PLANTED@127.0.0.1:9'", "HTTPS_PROXY"),
        ("http://u:a%40PLANTED@127.0.0.1:9", "127.0.0.1:9"),
        ("socks5h://u:PLANTED@127.0.0.1:9", "HTTPS_PROXY"),  # botocore has no SOCKS
        ("http://u:PLANTED/a@127.0.0.1:9", "HTTPS_PROXY"),
        ("u:PLANTED@127.0.0.1:9", "127.0.0.1:9"),
        ("http://PLANTED@127.0.0.1:9", "127.0.0.1:9"),
    ],
)
def test_nothing_of_a_proxy_but_its_address_is_shown(tmp_path: Path, proxy: str, shown: str) -> None:
    """Or the name of the variable, if the URL cannot be used."""
    (tmp_path / "config.yaml").write_text("targets: [{repository: team/*}]")
    environment = {
        "AWS_ACCESS_KEY_ID": "AKIAPLANTED0",
        "AWS_SECRET_ACCESS_KEY": "PLANTED-own-key",
        "AWS_REGION": REGION,
        "HTTPS_PROXY": proxy,
        "NO_PROXY": "",
    }
    flags = (f"--config.file={tmp_path / 'config.yaml'}", "--log.level=debug")
    with running(tmp_path, *flags, **environment) as command:
        eventually(lambda: "aws_request_failed" in command.log())
        assert shown in command.log()
        assert_hidden(command.log().replace(str(tmp_path), ""))
