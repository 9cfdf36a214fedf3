"""What AWS and botocore raise -> the few kinds that callers branch on, with a message fit to be logged."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from http.client import responses
from typing import Any
from urllib.parse import urlsplit

from botocore import exceptions as botocore
from botocore.parsers import ResponseParserError
from urllib3.util import parse_url

from exporter.config.validators import Secret
from exporter.redaction import redact
from exporter.replication.model import Reason

#: Characters of a label's value and of a message that come from outside.
MAX_LABEL = 128
MAX_MESSAGE = 300
#: Characters of a message that are searched for secrets. The rest is cut off.
_REDACTED = 10_000

#: The codes of a caller that AWS knows and whose policies do not allow the action.
NOT_ALLOWED = frozenset(
    "AccessDenied AccessDeniedException UnauthorizedOperation NotAuthorized AuthorizationError".split()
)
#: The codes of a caller that may not use the KMS key of a queue: of SQS's model, and as SQS has it for query
#: clients, whose code botocore prefers.
KEY_DENIED = frozenset(("KmsAccessDenied", "KMS.AccessDeniedException"))
# The caller is refused, not this action: no other call works until that is repaired.
_BAD_CREDENTIALS = frozenset(
    """ExpiredToken ExpiredTokenException RequestExpired RequestTimeTooSkewed UnrecognizedClientException
    InvalidClientTokenId InvalidAccessKeyId InvalidSignatureException SignatureDoesNotMatch
    IncompleteSignature IncompleteSignatureException MissingAuthenticationToken
    MissingAuthenticationTokenException AuthFailure OptInRequired InvalidIdentityToken
    IDPCommunicationError IDPRejectedClaim RegionDisabledException""".split()
)
_CODES = {
    # The throttling codes of botocore, and ThrottleException, which only the ECR documentation has.
    Reason.THROTTLED: """Throttling ThrottlingException ThrottledException ThrottleException RequestThrottled
        RequestThrottledException TooManyRequestsException RequestLimitExceeded SlowDown
        BandwidthLimitExceeded LimitExceededException PriorRequestNotComplete
        ProvisionedThroughputExceededException EC2ThrottledException KmsThrottled
        KMS.ThrottlingException""".split(),
    Reason.REPOSITORY_NOT_FOUND: ["RepositoryNotFoundException"],
    Reason.IMAGE_NOT_FOUND: ["ImageNotFoundException"],
    Reason.UNAVAILABLE: """ServerException InternalFailure InternalError ServiceUnavailable
        ServiceUnavailableException RequestTimeout RequestTimeoutException RequestAbortedException""".split(),
    Reason.ACCESS_DENIED: [*NOT_ALLOWED, *KEY_DENIED, *_BAD_CREDENTIALS],
}
_REASONS = {code: reason for reason, codes in _CODES.items() for code in codes}
#: How STS refuses a caller whose account has not enabled its Region.
NOT_ENABLED = frozenset(
    "InvalidClientTokenId UnrecognizedClientException RegionDisabledException OptInRequired".split()
)
#: Environment variables that hold a URL.
_URLS = re.compile(
    r"AWS_ENDPOINT_URL\w*|AWS_CONTAINER_CREDENTIALS_FULL_URI|AWS_EC2_METADATA_SERVICE_ENDPOINT|HTTPS?_PROXY",
    re.IGNORECASE,
)
#: What is said of a URL that cannot be used.
_NO_URL = (
    "not a URL with http:// or https://, host and port. "
    "Special characters of user and password must be percent-encoded"
)
#: What is said of a credential_process in place of its output, which may hold secrets.
NO_OUTPUT = "credential_process gave no credentials"
BY_HAND = "run it by hand to see what it says"
#: The services other than STS that botocore calls for credentials.
_LENDERS = {"GetRoleCredentials": "sso", "CreateToken": "sso-oidc", "CreateOAuth2Token": "signin"}
_NO_CREDENTIALS = (
    botocore.NoCredentialsError,
    botocore.NoAuthTokenError,
    botocore.PartialCredentialsError,
    botocore.CredentialRetrievalError,
    botocore.TokenRetrievalError,
    botocore.RefreshWithMFAUnsupportedError,
    botocore.UnknownCredentialError,
    botocore.SSOError,
    botocore.LoginError,
    botocore.MissingDependencyException,  # `aws login` needs botocore[crt]
    botocore.ProfileNotFound,
    OSError,  # a token file that cannot be read; botocore wraps what the network raises
)


class ECRError(Exception):
    """A call that failed, and why, in the few kinds that callers branch on.

    `action` is the IAM action, such as ecr:DescribeImages. `everything` is True if the cause lies with the
    credentials or the Region, so that every call would fail. `retry_after` is the seconds that AWS asks to
    wait, None if it does not say.
    """

    def __init__(
        self,
        reason: Reason,
        *,
        action: str,
        code: str,
        message: str,
        everything: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{action}: {code}: {message}" if message else f"{action}: {code}")
        self.reason = reason
        self.action = action
        self.code = code
        self.everything = everything
        self.retry_after = retry_after


class UnusableAnswer(ResponseParserError):  # noqa: N818 - its name is the code in the log
    """The answer is not what the service model says it is."""


class Classified:
    """A context that turns every exception into an ECRError whose message does not hold the secret.

    `local` says that no request is sent within: an error is then a mistake in the settings, and not an answer
    that cannot be read.
    """

    def __init__(self, action: str, *, secret: Secret | None = None, local: bool = False) -> None:
        self._action = action
        self._secret = secret
        self._local = local

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # A broken answer can raise anything in botocore's parser.
        if not isinstance(error, Exception) or isinstance(error, ECRError):
            return
        if mistake := _mistake(error, local=self._local):
            raise _bad_setting(mistake, self._action) from error
        raise _classify(error, self._action, self._secret) from error


def _mistake(error: Exception, *, local: bool) -> Exception | None:
    """What was raised because of a setting, before a request was sent; None for any other error."""
    if isinstance(error, botocore.ProxyConnectionError):
        return error if any(name.lower().endswith("_proxy") for name in _unusable_urls()) else None
    if isinstance(error, botocore.SSLError):
        return _unusable_bundle(error)
    if type(error) is botocore.HTTPClientError and isinstance(cause := error.kwargs.get("error"), Exception):
        error, local = cause, True  # botocore wraps what it does not expect: ValueErrors of URLs and headers
    ours = isinstance(error, ValueError) and not isinstance(error, botocore.BotoCoreError)
    return error if local and ours else None


def _unusable_bundle(error: botocore.SSLError) -> OSError | None:
    """What kept the certificates of AWS_CA_BUNDLE from being loaded; None if the connection is the cause."""
    match getattr(error.kwargs.get("error"), "__cause__", None):
        case ssl.SSLError(library="X509" | "PEM") as cause:
            return cause
        case ssl.SSLError():
            return None
        case OSError() as cause:
            return cause
    return None


def _bad_setting(error: Exception, action: str) -> ECRError:
    """The error of a setting that botocore cannot use, with the environment variable that holds it.

    The text of the error is left out if a URL is the cause: it may quote a part of a password.
    """
    text = str(error)
    if isinstance(error, OSError) and not isinstance(error, botocore.BotoCoreError):
        in_file = "ca_bundle of the AWS config file or REQUESTS_CA_BUNDLE"
        holder = "AWS_CA_BUNDLE" if os.environ.get("AWS_CA_BUNDLE") else in_file
        message = shown(f"{holder}: not a file of certificates in PEM that can be read: {text}")
    elif unusable := _unusable_urls():
        message = f"{' and '.join(unusable)}: {_NO_URL}"
    else:
        names = [
            name
            for name, value in sorted(os.environ.items())
            if name.startswith("AWS_") and value and _is_blamed(value, text)
        ]
        if names or text.startswith("invalid literal"):
            message = shown(f"{text} (set by {' or '.join(names) or 'the AWS config file'})")
        else:
            message = f"a URL of the AWS config file, such as endpoint_url: {_NO_URL}"
    return ECRError(Reason.INVALID, action=action, code="InvalidSetting", message=message, everything=True)


def _is_blamed(value: str, text: str) -> bool:
    """Whether the text of an error is about this value: it quotes it, or has it with the space around it.

    A part of what it quotes, such as the Region in a URL, is not the cause.
    """
    if value == value.strip():
        return repr(value) in text
    return bool(value.strip()) and (value in text or repr(value)[1:-1] in text)


def _unusable_urls() -> list[str]:
    """The environment variables that hold a URL which botocore cannot use."""
    return [
        name
        for name, value in sorted(os.environ.items())
        if value and _URLS.fullmatch(name) and not _usable(name, value)
    ]


def _usable(name: str, value: str) -> bool:
    if name.lower().endswith("_proxy") and "//" not in value:
        value = f"http://{value}"  # as botocore does
    try:
        url, _ = parse_url(value), urlsplit(value).port
        (url.host or "").encode("idna")
    except ValueError:
        return False
    whole = value.isascii() and value == value.strip("\"' \t\r\n")
    # An @ behind the host: a character of the password ended the user information.
    return whole and url.scheme in ("http", "https") and bool(url.host) and "@" not in url.request_uri


def _classify(error: Exception, action: str, secret: Secret | None) -> ECRError:
    if isinstance(error, botocore.ClientError):
        return _classify_answer(error, action, secret)
    code = type(error).__name__
    reason, everything = Reason.UNAVAILABLE, False
    if isinstance(error, botocore.HTTPClientError | botocore.ConnectionError | ResponseParserError):
        pass  # first, because a time-out is an OSError too
    elif isinstance(error, _NO_CREDENTIALS):
        reason, everything = Reason.ACCESS_DENIED, True
        if _agent_is_down(error):
            reason = Reason.UNAVAILABLE
    elif isinstance(error, botocore.ParamValidationError):
        reason = Reason.INVALID
    elif isinstance(error, botocore.BotoCoreError):
        reason, everything = Reason.INVALID, True
    else:
        code = f"UnusableAnswer({code})"
    return ECRError(
        reason, action=action, code=code, message=shown(_text(error), secret), everything=everything
    )


def _agent_is_down(error: Exception) -> bool:
    """True if a container agent (Pod Identity, ECS) gives no answer that can be used.

    4xx is a refusal. botocore raises a plain ValueError for a URL or a token that it cannot send.
    """
    refused = re.search(r"non 200 response 4\d\d|: (?:Value|UnicodeDecode|UnicodeEncode)Error: ", str(error))
    return _lender(error) == "container-role" and not refused


def _text(error: Exception) -> str:
    """The text of the error on one line, without what a process printed or what stands in a file."""
    if _lender(error) == "custom-process":
        return f"{NO_OUTPUT}; {BY_HAND}"
    if isinstance(error, botocore.ConfigParseError):
        cause = error.kwargs.get("error")
        return f"{error} ({type(cause).__name__}, line {getattr(cause, 'lineno', 'unknown')})"
    if isinstance(error, botocore.ParamValidationError):
        return " ".join(str(error).split())
    if isinstance(error, botocore.CredentialRetrievalError):
        return str(error).partition(": <")[0]  # HTML of a proxy in place of an agent
    return str(error)


def _lender(error: Exception) -> object:
    """The provider of botocore that failed to fetch credentials; None for other errors."""
    return error.kwargs.get("provider") if isinstance(error, botocore.CredentialRetrievalError) else None


def _classify_answer(error: botocore.ClientError, action: str, secret: Secret | None) -> ECRError:
    details = error.response.get("Error", {})
    metadata: Mapping[str, Any] = error.response.get("ResponseMetadata", {})
    http = metadata.get("HTTPStatusCode", 0)
    headers = metadata.get("HTTPHeaders", {})
    code, message = _code(str(details.get("Code") or ""), headers), str(details.get("Message") or "")
    if not code or message.startswith("<"):
        message = responses.get(http, "")  # botocore takes a body that it cannot read for the message
    if not action.endswith(f":{error.operation_name}"):
        # botocore asked for the credentials of the call.
        lender = _LENDERS.get(error.operation_name, "sts")
        action = f"{lender}:{error.operation_name}"
    sts = action.startswith("sts:")
    reason = _REASONS.get(code) or _of_http(http)
    refused = reason in (Reason.ACCESS_DENIED, Reason.INVALID)
    if refused and not code and not any(name.startswith("x-amzn-") for name in headers):
        reason, sts = Reason.UNAVAILABLE, False
        message = f"HTTP {http} does not come from AWS; a proxy or a portal may have answered"
    return ECRError(
        reason,
        action=action,
        code=shown(code)[:MAX_LABEL] or str(http or "Unknown"),
        message=shown(message, secret),
        everything=code in _BAD_CREDENTIALS or sts,
        retry_after=_retry_after(headers),
    )


def _of_http(status: int) -> Reason:
    """The reason of an answer whose code is unknown."""
    if status == 429:
        return Reason.THROTTLED
    if status >= 500 or status == 408:
        return Reason.UNAVAILABLE
    return Reason.ACCESS_DENIED if status in (401, 403) else Reason.INVALID


def _code(code: str, headers: Mapping[str, str]) -> str:
    """The error code, from the header if the body has none; "" if there is none.

    botocore 1.44.8 puts the HTTP status in its place, and ignores the header.
    """
    if code and not code.isdecimal() and code != "Unknown":
        return code
    return re.split("[:,]", str(headers.get("x-amzn-errortype", "")))[0].rpartition("#")[2].strip()


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from x-amz-retry-after, which botocore 1.44.8 takes as milliseconds."""
    value = str(headers.get("x-amz-retry-after", ""))
    return int(value) / 1000 if value.isascii() and value.isdecimal() and len(value) < 9 else None


def shown(text: str, secret: Secret | None = None) -> str:
    """The first line of a message from outside, without secrets, and at most MAX_MESSAGE characters of it.

    AWS and botocore quote the request below the first line: the canonical request of a wrong signature holds
    the session token. STS quotes an external id that it refuses, and a proxy may quote a header.
    """
    masked = redact(text[:_REDACTED], secrets=[secret.get_secret_value()] if secret else [])
    line = masked.strip().partition("\n")[0]
    printable = "".join(c if c.isprintable() else " " for c in line)
    return " ".join(printable.split())[:MAX_MESSAGE]
