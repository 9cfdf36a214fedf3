"""No secret is in any log line: random secrets, in each place and in each form of quoting."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter import logs
from exporter.aws.errors import Classified, ECRError
from exporter.config.validators import Secret

#: How a text may come to be quoted in a message of somebody else.
FORMS: Mapping[str, Callable[[str], str]] = {
    "bare": str,
    "repr": repr,
    "bytes": lambda text: repr(text.encode()),
    "JSON": json.dumps,
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)),
    "URL": lambda text: quote(text, safe=""),
    "path of a URL": quote,
    "single quotes": lambda text: f"'{text}'",
    "brackets": lambda text: f"<{text}>",
}
#: Around the quoted text.
SENTENCES = ("{}", "cannot use {}.", "error={}", "({})", "two, {}, three", "a\tb {}\nnext line")
#: Texts in which a secret stands whose value the exporter does not know.
KNOWN_BY_FORM: Mapping[str, str] = {
    "URL": "http://user:{}@proxy:3128/",
    "URL without a user": "socks5h://{}@proxy:1080",
    "URL without a scheme": "user:{}@proxy:3128",
    "backslashes": "http:\\\\user:{}@proxy",
    "Credential": "AWS4-HMAC-SHA256 Credential={}/20260101/us-east-1/ecr/aws4_request",
    "Signature": "SignedHeaders=host, Signature={}",
    "header": "X-Amz-Security-Token: {}",
    "bearer": "Authorization: Bearer {}",
    "JSON": '{{"SecretAccessKey": "{}", "x": 1}}',
    "XML": "<SessionToken>{}</SessionToken>",
    "INI": "aws_secret_access_key = {}",
    "JSON with a quote in it": '{{"SecretAccessKey": "a\\"{}"}}',
    "JSON of an agent": '{{"Token": "{}"}}',
    "JSON of a vault": '{{"SecretString": "{}"}}',
    "JSON with escaped marks": "http\\u003a\\u002f\\u002fuser\\u003a{}\\u0040proxy",
    "bytes in a dictionary": "{{b'SecretAccessKey': b'{}'}}",
    "XML with an attribute": '<SessionToken xml:space="preserve">{}</SessionToken>',
    "XML with a CDATA section": "<SessionToken><![CDATA[{}]]></SessionToken>",
    "XML in HTML": "&lt;SecretAccessKey&gt;{}&lt;/SecretAccessKey&gt;",
    "table of HTML": "<tr><td>SessionToken</td><td>{}</td></tr>",
    "URL in HTML": "http:&#47;&#47;user&#58;{}&#64;proxy:3128",
    "URL percent-encoded": "http%3A%2F%2Fuser%3A{}%40proxy",
    "presigned URL": "https://bucket/key?X-Amz-Credential=x&X-Amz-Security-Token={}&X-Amz-Date=1",
    "signature of a presigned URL": "https://bucket/key?X-Amz-Expires=60&X-Amz-Signature={}",
    "NO_PROXY": "NO_PROXY=localhost,user:{}@proxy",
    "web identity": "Action=AssumeRoleWithWebIdentity&WebIdentityToken={}&Version=2011-06-15",
    "any Authorization": "Authorization: {}",
    "token of IMDS": "x-aws-ec2-metadata-token: {}",
    "token of SSO": "x-amz-sso_bearer_token: {}",
    "token of a vault": "X-Vault-Token: {}",
    "cookie": "Set-Cookie: session={}; Path=/",
    "private key": "-----BEGIN EC PRIVATE KEY----- {} -----END EC PRIVATE KEY-----",
    "external id": "externalId={}",
    "access key id": "the key AKIA{} is not known",
    "session token": "IQoJ{} expired",
}
VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
)  # fmt: skip

# Marks that a secret may hold. PLANTED is what is looked for: a part of the secret is a leak too.
marks = st.text("+/=-_.~!$&*;|^ #%'\"\\@:", max_size=4)
secrets = st.builds("{}PLANTED{}x9Z{}".format, marks, marks, marks)
words = st.from_regex(r"\A[A-Z0-9]{4,20}\Z").map("PLANTED{}".format)
forms = st.sampled_from(sorted(FORMS)).map(FORMS.__getitem__)
sentences = st.sampled_from(SENTENCES)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("exporter")
    before = root.handlers[:], root.level, ours.level, logging.raiseExceptions
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level, ours.level, logging.raiseExceptions = before


def lines(text: str) -> str:
    """The log in both formats: from us and from a library, in a field and in a traceback."""
    streams = []
    for format_ in logs.FORMATS:
        stream = io.StringIO()
        streams.append(stream)
        logs.setup("debug", format_, stream)
        logger = logs.get("poller")
        logger.warning("aws_request_failed", error=text, problem=ValueError(text))
        logger.broken("polling_broke", ValueError(text))
        logging.getLogger("botocore").warning("it said %s", text)
        logging.getLogger("urllib3").warning(text)
        logging.getLogger("other").error("broke", exc_info=ValueError(text))
    assert all(stream.getvalue().count("\n") == 5 for stream in streams)
    return "".join(stream.getvalue() for stream in streams)


@given(secret=secrets, form=forms, sentence=sentences, variable=st.sampled_from(VARIABLES))
def test_of_the_environment(secret: str, form: Callable[[str], str], sentence: str, variable: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, secret)
        assert "PLANTED" not in lines(sentence.format(form(secret)))


@given(
    secret=secrets,
    form=forms,
    sentence=sentences,
    env_file=st.sampled_from(["{}", '"{}"', "'{}'", " {}"]),
    scheme=st.sampled_from(["http://", "HTTPS://", "socks5h://", ""]),
    variable=st.sampled_from(["HTTPS_PROXY", "http_proxy", "ALL_PROXY"]),
    encoded=st.booleans(),
    whole=st.booleans(),
)
def test_of_a_proxy(  # noqa: PLR0917 - hypothesis fills them in
    secret: str,
    form: Callable[[str], str],
    sentence: str,
    env_file: str,
    scheme: str,
    variable: str,
    encoded: bool,
    whole: bool,
) -> None:
    """An env file keeps its quotes. botocore quotes the whole URL, urllib3 a part of it."""
    password = quote(secret, safe="") if encoded else secret
    value = env_file.format(f"{scheme}user:{password}@proxy:3128")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, value)
        assert "PLANTED" not in lines(sentence.format(form(value if whole else password)))
        basic = base64.b64encode(f"user:{secret}".encode()).decode()
        assert basic not in lines(f"Proxy-Authorization: Basic {basic}")


@given(secret=words, form=forms, sentence=sentences, place=st.sampled_from(sorted(KNOWN_BY_FORM)))
def test_by_its_form(secret: str, form: Callable[[str], str], sentence: str, place: str) -> None:
    text = KNOWN_BY_FORM[place].format(secret)
    assert "PLANTED" not in lines(sentence.format(form(text)))


@given(secret=secrets, form=forms, sentence=sentences)
def test_an_external_id(secret: str, form: Callable[[str], str], sentence: str) -> None:
    with pytest.raises(ECRError) as caught, Classified("sts:AssumeRole", secret=Secret(secret)):
        raise ValueError(sentence.format(form(secret)))
    assert "PLANTED" not in lines(str(caught.value))


def test_a_line_says_everything_else() -> None:
    assert "AWS_SESSION_TOKEN" not in os.environ
    text = "team/app:v1@sha256:" + "0" * 64 + " arn:aws:iam::444455556666:role/reader http://127.0.0.1:4566/"
    assert lines(text).count(text) == 14
