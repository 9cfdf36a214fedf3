"""No secret is in any log line, in whatever form it is quoted."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from exporter.redaction import redact

PASSWORD = "Hunter2pass"


@pytest.mark.parametrize("form", ["{}", '"{}"', "'{}'", "\\'{}\\'", "proxy={}", "({})", "<{}>"])
@pytest.mark.parametrize(
    "url",
    [
        f"http://u:{PASSWORD}@127.0.0.1:9",
        f"HTTPS://u:{PASSWORD}@proxy/",
        f"socks5h://u:{PASSWORD}@proxy:1080",
        f"u:{PASSWORD}@proxy:3128",
        f"http://u:a@b/{PASSWORD}@proxy:3128",
        f"http:\\\\u:{PASSWORD}@proxy",
        f"http://{PASSWORD}@proxy",
    ],
)
def test_user_information_of_a_url(form: str, url: str) -> None:
    assert PASSWORD not in redact(f"Failed to connect to {form.format(url)} at once")


@pytest.mark.parametrize("quoting", [str, repr, json.dumps, quote, lambda text: quote(text, safe="")])
def test_secrets_of_the_environment(monkeypatch: pytest.MonkeyPatch, quoting: object) -> None:
    assert callable(quoting)
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "a b/c+d",
        "AWS_SESSION_TOKEN": "t0/ken=",
        "AWS_ACCESS_KEY_ID": "short key\n",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HTTPS_PROXY", '"http://u:pa ss/w@rd@proxy:9"')
    for secret in (*secrets.values(), "pa ss/w@rd"):
        text = str(quoting(secret)).strip()
        assert text.strip("\"'\n") not in redact(f"it says {text} here")


@pytest.mark.parametrize(
    "text",
    [
        "Credential=AKIAIOSFODNN7EXAMPLE\n/20260101/us-east-1/ecr/aws4_request",
        "b'AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE\\n/2026'",
        "the key ASIAIOSFODNN7EXAMPLE is not known",
        '{"AccessKeyId": "AKIAIOSFODNN7EXAMPLE"}',
    ],
)
def test_access_key_ids(text: str) -> None:
    assert "IOSFODNN7EXAMPLE" not in redact(text)


@pytest.mark.parametrize(
    "text",
    ['{"SecretAccessKey": "PLANTED"}', "<SecretAccessKey>PLANTED</SecretAccessKey>",
     "aws_session_token = PLANTED",
     "X-Amz-Security-Token: PLANTED", "Authorization: Bearer PLANTED-token", "IQoJPLANTED0123456789",
     '{\\"SessionToken\\": \\"PLANTED\\"}', "password='PLANTED'"],
)  # fmt: skip
def test_what_is_named_as_a_secret(text: str) -> None:
    assert "PLANTED" not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "111122223333.dkr.ecr.us-east-1.amazonaws.com/team/app@sha256:" + "0" * 64,
        "team/app:v1@sha256:" + "a" * 64,
        "arn:aws:iam::444455556666:role/reader",
        "http://127.0.0.1:4566/",
        "ecr:DescribeImages: ThrottlingException: Rate exceeded",
        "sts:AssumeRole: ExpiredToken: The security token included in the request is expired",
        "sts:AssumeRoleWithWebIdentity: InvalidIdentityToken: no such key",
        "credentials: TokenRetrievalError: Error when retrieving token from sso: Token has expired",
    ],
)
def test_names_of_things_stay(text: str) -> None:
    assert redact(text) == text
