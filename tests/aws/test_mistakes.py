"""Mistakes in what the operator sets, and answers that are not of AWS: the cause is named, no secret is."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest
from support.certificates import Authority
from support.embedded_aws import EmbeddedAWS, Fault, Garbage

from exporter.aws.connector import AwsConnector
from exporter.aws.errors import ECRError
from exporter.config.settings import RegistrySettings
from exporter.demo import ACCOUNT, REGION
from exporter.replication.model import Reason

ROLE = RegistrySettings(role_arn=f"arn:aws:iam::{ACCOUNT}:role/reader")


@pytest.fixture
def aws() -> Iterator[EmbeddedAWS]:
    with EmbeddedAWS() as aws:
        yield aws


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, aws: EmbeddedAWS) -> pytest.MonkeyPatch:
    """Keys, a Region and the endpoint; no proxy and no file."""
    for name in os.environ:
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": f"AKIADEMO{ACCOUNT}",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": REGION,
        "AWS_ENDPOINT_URL": aws.endpoint_url,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def failure(settings: RegistrySettings | None = None) -> ECRError:
    """What a call ends with."""
    with pytest.raises(ECRError) as caught:
        AwsConnector().ecr(settings or RegistrySettings(), connections=1).registry()
    assert "PLANTED" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "value",
    [
        "http://u:a/PLANTED@127.0.0.1:9",
        "http://u:PLANTED/a@127.0.0.1:9",
        "http://u:PLANTED#a@127.0.0.1:9",
        "http://u:PLANTED?a@127.0.0.1:9",
        "http://u:PLANTED\\a@127.0.0.1:9",
        "http://u:a[PLANTED]@127.0.0.1:9",
        "http://u:1/PLANTED@127.0.0.1:9",
        "http://127.0.0.1:9@u:PLANTED",
        "http://u:PLANTED\u20ac@127.0.0.1:9",
        "http://u:PLANTED@127.0.0.1:port",
        '"http://u:PLANTED@127.0.0.1:9"',
        "socks5h://u:PLANTED@127.0.0.1:9",
        f"http://u:PLANTED@{'a' * 64}.example:9",
    ],
)
def test_a_proxy_that_cannot_be_used(environment: pytest.MonkeyPatch, value: str) -> None:
    """urllib3 and http.client quote a part of the password in their errors."""
    environment.delenv("AWS_ENDPOINT_URL")
    environment.setenv("HTTPS_PROXY", value)
    error = failure()
    assert (error.reason, error.code, error.everything) == (Reason.INVALID, "InvalidSetting", True)
    assert "HTTPS_PROXY: not a URL" in str(error)


def test_a_proxy_that_is_down_is_no_mistake(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("AWS_ENDPOINT_URL")
    environment.setenv("HTTPS_PROXY", "http://u:PLANTED%2Fa@127.0.0.1:9")
    assert failure().reason is Reason.UNAVAILABLE


@pytest.mark.parametrize(
    "value",
    ["localhost:4566", "http://127.0.0.1:port", "http://127.0.0.1:99999", "ftp://127.0.0.1:21",
     '"http://127.0.0.1:9"', "http://u:PLANTED/a@127.0.0.1:9", f"http://{'a' * 64}.example"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_ECR"])
def test_an_endpoint_that_cannot_be_used(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    environment.setenv(name, value)
    error = failure()
    assert (error.reason, error.code, error.everything) == (Reason.INVALID, "InvalidSetting", True)
    assert f"{name}: not a URL" in str(error)


@pytest.mark.parametrize(
    "value",
    [
        "http://u:a/PLANTED@127.0.0.1:9",
        "http://u:PLANTED/a@127.0.0.1:9",
        "http://u:PLANTED#a@127.0.0.1:9",
        "http://u:PLANTED?a@127.0.0.1:9",
        "http://u:PLANTED\\a@127.0.0.1:9",
        "http://u:a[PLANTED]@127.0.0.1:9",
        "u:PLANTED@127.0.0.1:9",
        '"http://u:PLANTED@127.0.0.1:9"',
        "http://u:PLANTED@127.0.0.1:99999",
        "http://u:PLANTED a@ecr.us-east-1_!.example",
        "http://u:us-east-1-PLANTED/a@127.0.0.1:9",
    ],
)
@pytest.mark.parametrize(
    "config",
    ["[default]\nendpoint_url = {}\n", "[default]\nservices = s\n[services s]\necr =\n  endpoint_url = {}\n"],
)
def test_an_endpoint_of_the_config_file_that_cannot_be_used(
    environment: pytest.MonkeyPatch, tmp_path: Path, config: str, value: str
) -> None:
    """The error quotes a part of the password, which no environment variable tells, beside the Region."""
    (tmp_path / "config").write_text(config.format(value))
    environment.setenv("AWS_REGION", "us-east-1")
    environment.setenv("AWS_REGION_OF_ANOTHER_TOOL", "us-east-1 ")
    environment.delenv("AWS_ENDPOINT_URL")
    environment.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    error = failure()
    assert (error.reason, error.code, error.everything) == (Reason.INVALID, "InvalidSetting", True)
    assert "endpoint_url: not a URL" in str(error)


@pytest.mark.parametrize("secret", ["PLANTED a", "a PLANTED", "PLANTED%zz", "PLANTED@a"])
@pytest.mark.parametrize("in_file", [True, False])
def test_an_endpoint_with_a_password_that_is_down(
    environment: pytest.MonkeyPatch, tmp_path: Path, secret: str, in_file: bool
) -> None:
    """The error of a connection quotes the whole URL."""
    url = f"http://u:{secret}@127.0.0.1:9"
    (tmp_path / "config").write_text(f"[default]\nendpoint_url = {url if in_file else ''}\n")
    environment.delenv("AWS_ENDPOINT_URL")
    environment.setenv(
        *(("AWS_CONFIG_FILE", str(tmp_path / "config")) if in_file else ("AWS_ENDPOINT_URL_ECR", url))
    )
    assert failure().reason is Reason.UNAVAILABLE


@pytest.mark.parametrize("content", [None, "", "PLANTED", "-----BEGIN CERTIFICATE-----\nPLANTED\n"])
@pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "ca_bundle"])
def test_certificates_that_cannot_be_read(
    environment: pytest.MonkeyPatch, tmp_path: Path, name: str, content: str | None
) -> None:
    """botocore reads them only once it is connected, and reports an error of the connection."""
    bundle, config = tmp_path / "ca.pem", tmp_path / "config"
    if content is not None:
        bundle.write_text(content)
    config.write_text(f"[default]\nca_bundle = {bundle}\n")
    environment.setenv(*(("AWS_CONFIG_FILE", str(config)) if name == "ca_bundle" else (name, str(bundle))))
    with socket.create_server(("127.0.0.1", 0)) as server:
        environment.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{server.getsockname()[1]}")
        error = failure()
    assert (error.reason, error.code, error.everything) == (Reason.INVALID, "InvalidSetting", True)
    assert name in str(error)


def test_a_certificate_that_is_not_trusted_is_no_mistake(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    certificate, key = Authority().issue(tmp_path, "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as server:
        environment.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{server.getsockname()[1]}")

        def refused() -> None:
            with suppress(OSError), context.wrap_socket(server.accept()[0], server_side=True):
                pass

        thread = threading.Thread(target=refused)
        thread.start()
        assert failure().reason is Reason.UNAVAILABLE
        thread.join()


def test_a_region_that_ends_in_a_line_break(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_REGION", f"{REGION}\n")
    error = failure()
    assert error.reason is Reason.INVALID
    assert "AWS_REGION" in str(error)


@pytest.mark.parametrize(
    ("value", "flaw"),
    [
        ("PLANTED\t", "has white space around it"),
        ("PLANTED\u00a0", "has white space around it"),
        ("PLANTED\r\n", "ends in a line break"),
        ('"PLANTED"', "has quotation marks around it"),
        ("\ufeffPLANTED", "is not ASCII"),
        ("PLANTED\u200b", "is not ASCII"),
        (os.fsdecode(b"PLANTED\xff"), "is not ASCII"),
        ("PLANTED\nX-Evil: 1", "holds a line break"),
        ("PLANTED\x01", "a control character"),
    ],
)
@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
def test_keys_that_no_request_can_carry(
    environment: pytest.MonkeyPatch, name: str, value: str, flaw: str
) -> None:
    environment.setenv(name, value)
    error = failure()
    assert (error.reason, error.code) == (Reason.ACCESS_DENIED, "MalformedCredentials")
    assert flaw in str(error)


@pytest.mark.parametrize(
    ("key", "token", "flaw"),
    [
        ("", "PLANTED", "the access key id is empty"),
        ("AKIADEMO", "PLANTED\nX: y", "the session token holds a line break"),
    ],
)
def test_keys_of_a_role_that_no_request_can_carry(aws: EmbeddedAWS, key: str, token: str, flaw: str) -> None:
    body = f"""<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>{key}</AccessKeyId>
        <SecretAccessKey>PLANTED</SecretAccessKey><SessionToken>{token}</SessionToken>
        <Expiration>2040-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"""
    aws.fault = lambda _: Garbage(body.encode(), content_type="text/xml")
    assert flaw in str(failure(ROLE))


def test_a_body_that_is_not_of_aws_is_not_quoted(aws: EmbeddedAWS) -> None:
    """botocore takes a body that it cannot read for the message."""
    client = AwsConnector().ecr(RegistrySettings(), connections=1)
    bodies = (b"PLANTED", b"<html>PLANTED</html>", b"<p>PLANTED", b'{"PLANTED')
    headers = ((), (("x-amzn-requestid", "1"),), (("x-amzn-waf-action", "captcha"),))
    for status, body, header in product((400, 403, 404, 405, 429, 500, 503, 999), bodies, headers):
        fault: Fault = Garbage(body, status, headers=header)
        aws.fault = lambda _, fault=fault: fault  # type: ignore[misc]
        with pytest.raises(ECRError) as caught:
            client.registry()
        assert str(status) in str(caught.value)
        assert "PLANTED" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (b"\xef\xbb\xbf[default]\nregion = x\n", "MissingSectionHeaderError, line 1"),
        (b"[default]\na = PLANTED\na = PLANTED\n", "DuplicateOptionError, line 3"),
        (b"export AWS_SECRET_ACCESS_KEY=PLANTED\n", "MissingSectionHeaderError, line 1"),
    ],
)
def test_a_file_that_cannot_be_read(
    environment: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, text: bytes, cause: str
) -> None:
    """The text of the error of configparser holds the line, so only its kind is shown."""
    file = tmp_path_factory.mktemp("aws") / "credentials"
    file.write_bytes(text)
    environment.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    assert cause in str(failure())


def test_a_role_of_a_profile_that_is_no_arn(
    environment: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """botocore names the parameter below the first line of its error."""
    file = tmp_path_factory.mktemp("aws") / "config"
    base = "[profile b]\naws_access_key_id = x\naws_secret_access_key = x\n"
    file.write_text(f"[profile a]\nrole_arn = x\nsource_profile = b\n{base}")
    environment.setenv("AWS_CONFIG_FILE", str(file))
    environment.setenv("AWS_PROFILE", "a")
    environment.delenv("AWS_ACCESS_KEY_ID")
    environment.delenv("AWS_SECRET_ACCESS_KEY")
    assert "RoleArn" in str(failure())
