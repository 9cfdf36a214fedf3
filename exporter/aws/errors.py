"""What AWS and botocore raise -> the few kinds that callers branch on, with a message fit to be shown."""

from __future__ import annotations

import re

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import (
    ConnectionError as ConnectionFailure,
)
from botocore.parsers import ResponseParserError

from exporter.config.settings import Secret
from exporter.replication.model import Reason

#: Text from outside that becomes the value of a label, or a message, is bounded.
MAX_LABEL = 128
MAX_MESSAGE = 300

# botocore's list of throttling codes, and the ThrottleException of the ECR documentation that it lacks.
_THROTTLED = frozenset(
    """Throttling ThrottlingException ThrottledException ThrottleException RequestThrottled
    RequestThrottledException TooManyRequestsException RequestLimitExceeded SlowDown
    BandwidthLimitExceeded LimitExceededException PriorRequestNotComplete
    ProvisionedThroughputExceededException EC2ThrottledException""".split()
)
_DENIED = frozenset(
    "AccessDenied AccessDeniedException UnauthorizedOperation NotAuthorized AuthorizationError".split()
)
# Not this action is refused but whoever asks: nothing else will work either until that is mended.
_BAD_CREDENTIALS = frozenset(
    """ExpiredToken ExpiredTokenException RequestExpired RequestTimeTooSkewed UnrecognizedClientException
    InvalidClientTokenId InvalidAccessKeyId InvalidSignatureException SignatureDoesNotMatch
    IncompleteSignature IncompleteSignatureException MissingAuthenticationToken
    MissingAuthenticationTokenException AuthFailure OptInRequired InvalidIdentityToken
    IDPCommunicationError IDPRejectedClaim""".split()
)
_NO_CREDENTIALS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    TokenRetrievalError,
    SSOError,
    ProfileNotFound,
    OSError,  # a token file that cannot be read; botocore wraps what the network raises
)
_GONE = {
    "RepositoryNotFoundException": Reason.REPOSITORY_NOT_FOUND,
    "ImageNotFoundException": Reason.IMAGE_NOT_FOUND,
}


_WORD = re.compile(r"[A-Za-z0-9/+=]{16,}")
# How access key ids and session tokens begin.
_KEYS = ("AKIA", "ASIA", "IQoJ", "FwoG", "FQoG")


class ECRError(Exception):
    """A call that AWS did not answer, and why, in the few kinds that callers branch on."""

    def __init__(
        self, reason: Reason, *, action: str, code: str, message: str, everything: bool = False
    ) -> None:
        super().__init__(f"{action}: {code}: {message}" if message else f"{action}: {code}")
        self.reason = reason
        #: The IAM action, such as ecr:DescribeImages.
        self.action = action
        self.code = code
        #: The cause lies with the credentials or the Region, so that every call would fail.
        self.everything = everything


class Classified:
    """Whatever is raised within becomes an ECRError that does not show the secret."""

    __slots__ = ("_action", "_secret")

    def __init__(self, action: str, *, secret: Secret | None = None) -> None:
        self._action = action
        self._secret = secret

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # A half-broken answer can raise anything in botocore's parser.
        if isinstance(error, Exception) and not isinstance(error, ECRError):
            raise _classify(error, self._action, self._secret) from error


def _classify(error: Exception, action: str, secret: Secret | None) -> ECRError:
    if isinstance(error, ClientError):
        return _classify_answer(error, action, secret)
    code = type(error).__name__
    reason, everything = Reason.UNAVAILABLE, False
    if isinstance(error, HTTPClientError | ConnectionFailure | ResponseParserError):
        pass  # first, because a time-out is an OSError too
    elif isinstance(error, _NO_CREDENTIALS):
        reason, everything = Reason.ACCESS_DENIED, True
    elif isinstance(error, ParamValidationError):
        reason = Reason.INVALID
    elif isinstance(error, BotoCoreError):
        reason, everything = Reason.INVALID, True
    else:
        code = f"UnusableAnswer({code})"
    message = _first_line(_told(error), secret)
    return ECRError(reason, action=action, code=code, message=message, everything=everything)


def _told(error: Exception) -> str:
    """The text of the error, but for what a credential_process printed: that may hold secrets."""
    if isinstance(error, CredentialRetrievalError) and error.kwargs.get("provider") == "custom-process":
        return "credential_process gave no credentials; run it by hand to see what it says"
    return str(error)


def _classify_answer(error: ClientError, action: str, secret: Secret | None) -> ECRError:
    details = error.response.get("Error", {})
    code = _first_line(str(details.get("Code") or "Unknown"))[:MAX_LABEL]
    http = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if not action.endswith(f":{error.operation_name}"):
        action = f"sts:{error.operation_name}"  # botocore itself had to borrow credentials for the call
    everything = code in _BAD_CREDENTIALS or action.startswith("sts:")
    if code in _THROTTLED or http == 429:
        reason, everything = Reason.THROTTLED, False
    elif code in _GONE:
        reason = _GONE[code]
    elif code in _DENIED or code in _BAD_CREDENTIALS or http in (401, 403):
        reason = Reason.ACCESS_DENIED
    elif http >= 500 or code in ("ServerException", "InternalFailure", "ServiceUnavailable"):
        reason = Reason.UNAVAILABLE
    else:
        reason = Reason.INVALID
    message = _first_line(str(details.get("Message") or ""), secret)
    return ECRError(reason, action=action, code=code, message=message, everything=everything)


def _first_line(text: str, secret: Secret | None = None) -> str:
    """What may be shown of a message from outside.

    What AWS and botocore put below the first line quotes the request or the answer: the canonical
    request of a wrong signature holds the session token. STS quotes an external id that it dislikes, and
    a proxy may quote a header: whatever looks like a key or a token is left out.
    """
    shown = text.replace(secret.reveal(), str(secret)) if secret else text
    line = _WORD.sub(_masked, shown.strip().partition("\n")[0])
    return re.sub(r"[\s\x00-\x1f\x7f]+", " ", line).strip()[:MAX_MESSAGE]


def _masked(word: re.Match[str]) -> str:
    """A word, unless it is a key or a token: it begins so, or is as long and as mixed as a secret key."""
    text = word.group()
    mixed = re.search("[A-Z]", text) and re.search("[a-z]", text) and re.search("[0-9]", text)
    return "<secret>" if text.startswith(_KEYS) or (len(text) >= 40 and mixed) else text
