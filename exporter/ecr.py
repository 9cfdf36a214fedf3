"""The gate to AWS: the only room that knows boto3.

One `Gate` is one configured registry seen with one set of credentials. Each method is exactly one
call, so that the budget upstairs counts what AWS counts; pages are handed back one by one. botocore
never retries an ECR call here: a refusal is the scheduler's to learn from, and a retry hidden in a
worker would spend a call that nobody booked.

All methods are called from worker threads, and may be called from several at once.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import boto3
import botocore.session
from botocore import xform_name
from botocore.config import Config
from botocore.credentials import (
    CredentialProvider,
    CredentialResolver,
    DeferredRefreshableCredentials,
)
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

from exporter import __version__
from exporter.config import RegistrySettings
from exporter.model import (
    PAGE_SIZE,
    Destination,
    Image,
    Name,
    Page,
    Reason,
    Registry,
    Replication,
    Rule,
    Source,
    Status,
)

#: Every operation of ECR that is ever called; docs/iam-policy.json grants exactly these.
OPERATIONS = (
    "DescribeRegistry",
    "DescribeRepositories",
    "DescribeImages",
    "DescribeImageReplicationStatus",
)
#: A failure code is free text from outside that becomes a label: bound it.
MAX_LABEL = 128

CONNECT_TIMEOUT = 3.0  # seconds
READ_TIMEOUT = 10.0

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
)
_GONE = {
    "RepositoryNotFoundException": Reason.REPOSITORY_NOT_FOUND,
    "ImageNotFoundException": Reason.IMAGE_NOT_FOUND,
}

#: Told of every call: service, operation, source, outcome ("success" or a Reason) and seconds.
Observer = Callable[[str, str, Source, str, float], None]


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


class Gate(Protocol):
    """What the exporter asks of ECR. Every method raises ECRError and nothing else."""

    def account(self) -> str:
        """The account id of the credentials."""

    def registry(self) -> Registry:
        """The registry of the credentials themselves, whatever `registry_id` says, and its rules."""

    def repositories(self, token: str | None) -> Page[str]:
        """One page of the names of the repositories."""

    def images(self, repository: str, token: str | None, *, untagged: bool) -> Page[Image]:
        """One page of the images; only tagged ones unless `untagged`."""

    def find(self, repository: str, names: Sequence[Name]) -> tuple[Image, ...]:
        """The images of at most 100 names; IMAGE_NOT_FOUND if any one of them does not exist."""

    def status(self, repository: str, digest: str) -> tuple[Replication, ...]:
        """What ECR reports of the image's replication, one entry for each destination."""


class AWS:
    """One boto3 session for all gates; a new one when its credentials turn out to be of no use.

    botocore reads shared credential files once. Keys that were rotated there, or that appeared
    after the start, are found by reading everything anew. Data models are shared between sessions:
    a session of its own for each role would cost megabytes and tenths of a second.

    Raises ECRError if there is no session to be had, as for an AWS_PROFILE that does not exist.
    """

    def __init__(
        self,
        *,
        session: Callable[[], boto3.Session] = boto3.Session,
        endpoint_url: str | None = None,
        observe: Observer = lambda *_: None,
    ) -> None:
        self._make_session = session
        self._lock = threading.Lock()
        try:
            self._session = session()
        except BotoCoreError as error:
            raise _classify(error, "credentials") from error
        self.endpoint_url = endpoint_url
        self.observe = observe

    @property
    def region(self) -> str | None:
        """The Region that boto3 finds by itself; or AWS_REGION, which all other SDKs know; or None."""
        region: str | None = self._session.region_name
        return region or os.environ.get("AWS_REGION")

    def session(self) -> boto3.Session:
        with self._lock:
            return self._session

    def renew(self, stale: boto3.Session) -> None:
        """Read the credentials anew, unless another gate just did."""
        with self._lock:
            if self._session is stale:
                self._session = self._make_session()

    def gate(self, settings: RegistrySettings, *, connections: int) -> Gate:
        """The gate to one registry; `connections` is how many threads will ask at once."""
        return RegistryGate(self, settings, connections=connections)


class RegistryGate:
    """Gate on real boto3."""

    def __init__(self, aws: AWS, settings: RegistrySettings, *, connections: int) -> None:
        self._aws = aws
        self._settings = settings
        self._region = settings.region or aws.region
        self._config = Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=connections,
            # A whole user agent, not an extra: composing botocore's own costs a seventh of a call.
            user_agent=f"ecr-replication-exporter/{__version__} boto3/{boto3.__version__}",
        )
        self._lock = threading.Lock()
        self._clients: dict[str, Any] = {}
        self._base: boto3.Session | None = None
        self.source = Source(static_registry_id(settings), self._region or "")

    def account(self) -> str:
        answer = self._call("sts", "GetCallerIdentity")
        return _text(answer, "Account")

    def registry(self) -> Registry:
        answer = self._call("ecr", "DescribeRegistry")
        configuration = answer.get("replicationConfiguration") or {}
        return Registry(
            registry_id=_text(answer, "registryId"),
            rules=tuple(_rule(rule) for rule in _dicts(configuration.get("rules"))),
        )

    def repositories(self, token: str | None) -> Page[str]:
        answer = self._call("ecr", "DescribeRepositories", **self._page(token))
        found = (_text(row, "repositoryName") for row in _dicts(answer.get("repositories")))
        return Page(tuple(name for name in found if name), answer.get("nextToken") or None)

    def images(self, repository: str, token: str | None, *, untagged: bool) -> Page[Image]:
        wanted = "ANY" if untagged else "TAGGED"
        answer = self._call(
            "ecr",
            "DescribeImages",
            repositoryName=repository,
            filter={"tagStatus": wanted},
            **self._page(token),
        )
        return Page(_images(answer), answer.get("nextToken") or None)

    def find(self, repository: str, names: Sequence[Name]) -> tuple[Image, ...]:
        return _images(
            self._call(
                "ecr",
                "DescribeImages",
                repositoryName=repository,
                imageIds=[{"imageTag": n.tag} if n.tag else {"imageDigest": n.digest} for n in names],
                **self._registry_id(),
            )
        )

    def status(self, repository: str, digest: str) -> tuple[Replication, ...]:
        answer = self._call(
            "ecr",
            "DescribeImageReplicationStatus",
            repositoryName=repository,
            imageId={"imageDigest": digest},
            **self._registry_id(),
        )
        return tuple(_replication(row) for row in _dicts(answer.get("replicationStatuses")))

    def _registry_id(self) -> dict[str, Any]:
        return {"registryId": self._settings.registry_id} if self._settings.registry_id else {}

    def _page(self, token: str | None) -> dict[str, Any]:
        where = {"nextToken": token} if token else {}
        return {"maxResults": PAGE_SIZE} | where | self._registry_id()

    def _call(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        return _observed(
            lambda: _request(self._client(service), operation, parameters),
            service=service,
            operation=operation,
            source=self.source,
            observe=self._aws.observe,
            forget=self._forget,
        )

    def _client(self, service: str) -> Any:
        with self._lock:
            if service not in self._clients:
                self._base = self._aws.session()
                session = self._assumed(self._base) if self._settings.role_arn else self._base
                self._clients[service] = self._connect(session, service, self._config)
            return self._clients[service]

    def _connect(self, session: Any, service: str, config: Config) -> Any:
        return session.client(
            service, region_name=self._region, config=config, endpoint_url=self._aws.endpoint_url
        )

    def _forget(self) -> None:
        """Credentials were of no use: look for others before the next call."""
        with self._lock:
            if self._base is not None:
                self._aws.renew(self._base)
            self._clients.clear()

    def _assumed(self, base: boto3.Session) -> boto3.Session:
        """A session whose credentials are the role's, and renew themselves before they expire."""
        session = botocore.session.get_session()
        loader = base._session.get_component("data_loader")  # noqa: SLF001 - boto3 has no other way to it
        session.register_component("data_loader", loader)
        session.register_component(
            "credential_provider", CredentialResolver([_AssumedRole(lambda: self._assume(base))])
        )
        return boto3.Session(botocore_session=session)

    def _assume(self, base: boto3.Session) -> dict[str, str]:
        parameters = {
            "RoleArn": self._settings.role_arn,
            "RoleSessionName": "ecr-replication-exporter",
        }
        if self._settings.external_id:
            parameters["ExternalId"] = self._settings.external_id.reveal()
        config = self._config.merge(Config(retries={"mode": "standard", "total_max_attempts": 2}))
        answer = _observed(
            lambda: _request(self._connect(base, "sts", config), "AssumeRole", parameters),
            service="sts",
            operation="AssumeRole",
            source=self.source,
            observe=self._aws.observe,
        )
        found = answer["Credentials"]
        return {
            "access_key": found["AccessKeyId"],
            "secret_key": found["SecretAccessKey"],
            "token": found["SessionToken"],
            "expiry_time": found["Expiration"].isoformat(),
        }


class _AssumedRole(CredentialProvider):
    METHOD = "assume-role"

    def __init__(self, assume: Callable[[], dict[str, str]]) -> None:
        super().__init__()
        self._assume = assume

    def load(self) -> DeferredRefreshableCredentials:
        return DeferredRefreshableCredentials(self._assume, self.METHOD)


def static_registry_id(settings: RegistrySettings) -> str:
    """The account whose registry this is, as far as the configuration alone tells; "" if it does not."""
    if settings.registry_id:
        return settings.registry_id
    return settings.role_arn.split(":")[4] if settings.role_arn else ""


def _request(client: Any, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = getattr(client, xform_name(operation))(**parameters)
    return answer


def _observed(
    call: Callable[[], dict[str, Any]],
    *,
    service: str,
    operation: str,
    source: Source,
    observe: Observer,
    forget: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The answer of one call; it is counted and timed, and whatever it raises becomes an ECRError."""
    began = time.monotonic()
    outcome = "success"
    try:
        return call()
    except ECRError as error:  # the role could not be assumed, and that was counted by itself
        outcome = error.reason
        raise
    except Exception as error:  # a half-broken answer can raise anything in botocore's parser
        failure = _classify(error, f"{service}:{operation}")
        outcome = failure.reason
        if failure.everything:
            forget()
        raise failure from error
    finally:
        observe(service, operation, source, outcome, time.monotonic() - began)


def _classify(error: Exception, action: str) -> ECRError:
    if isinstance(error, ClientError):
        return _classify_answer(error, action)
    code = type(error).__name__
    message = _one_line(str(error))
    if isinstance(error, _NO_CREDENTIALS):
        return ECRError(Reason.ACCESS_DENIED, action=action, code=code, message=message, everything=True)
    if isinstance(error, ParamValidationError):
        return ECRError(Reason.INVALID, action=action, code=code, message=message)
    if isinstance(error, HTTPClientError | ConnectionFailure | ResponseParserError):
        return ECRError(Reason.UNAVAILABLE, action=action, code=code, message=message)
    if isinstance(error, BotoCoreError):
        return ECRError(Reason.INVALID, action=action, code=code, message=message, everything=True)
    return ECRError(Reason.UNAVAILABLE, action=action, code=f"UnusableAnswer({code})", message=message)


def _classify_answer(error: ClientError, action: str) -> ECRError:
    details = error.response.get("Error", {})
    code = str(details.get("Code") or "Unknown")
    message = _one_line(str(details.get("Message") or ""))
    http = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
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
    return ECRError(reason, action=action, code=code, message=message, everything=everything)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()[:300]


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    return value if isinstance(value, str) else ""


def _dicts(rows: Any) -> Iterable[dict[str, Any]]:
    """The rows of a list that ECR may leave out, null, or fill with holes."""
    return (row for row in rows if isinstance(row, dict)) if isinstance(rows, list) else ()


def _images(answer: dict[str, Any]) -> tuple[Image, ...]:
    return tuple(
        Image(
            digest=_text(row, "imageDigest"),
            tags=tuple(tag for tag in row.get("imageTags") or () if isinstance(tag, str)),
            pushed_at=_unix(row.get("imagePushedAt")),
            activated_at=_unix(row.get("lastActivatedAt")),
        )
        for row in _dicts(answer.get("imageDetails"))
        if row.get("imageDigest")
    )


def _unix(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment else None


def _rule(row: dict[str, Any]) -> Rule:
    filters = list(_dicts(row.get("repositoryFilters")))
    return Rule(
        destinations=tuple(_destination(d) for d in _dicts(row.get("destinations"))),
        filters=tuple(_text(f, "filter") for f in filters),
        prefixes=tuple(_text(f, "filter") for f in filters if f.get("filterType") == "PREFIX_MATCH"),
    )


def _destination(row: dict[str, Any]) -> Destination:
    return Destination(region=_text(row, "region"), registry_id=_text(row, "registryId"))


def _replication(row: dict[str, Any]) -> Replication:
    status = _text(row, "status")[:MAX_LABEL] or Status.UNKNOWN
    failed = status == Status.FAILED
    code = _text(row, "failureCode")[:MAX_LABEL] or "UNKNOWN"
    return Replication(_destination(row), status, code if failed else "")
