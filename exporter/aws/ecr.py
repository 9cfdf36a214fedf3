"""The gate to AWS: the only room that knows boto3.

One `EcrClient` is one configured registry seen with one set of credentials. Each method is exactly one
call, so that the budget upstairs counts what AWS counts; pages are handed back one by one. botocore
never retries an ECR call here: a refusal is the scheduler's to learn from, and a retry hidden in a
worker would spend a call that nobody booked.

All methods are called from worker threads, and may be called from several at once.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

import boto3
import botocore.session
from botocore import xform_name
from botocore.config import Config
from botocore.parsers import ResponseParserError
from botocore.utils import parse_timestamp

from exporter import __version__
from exporter.aws import parsing as answers
from exporter.aws.errors import Classified, ECRError
from exporter.aws.timeouts import Deadline, make_known
from exporter.config.settings import RegistrySettings
from exporter.replication.model import (
    PAGE_SIZE,
    Image,
    Name,
    Page,
    Reason,
    Registry,
    Replication,
    Source,
)

#: Every operation of ECR that is ever called; docs/iam-policy.json grants these, and what docs/iam.md names.
OPERATIONS = (
    "DescribeRegistry",
    "DescribeRepositories",
    "DescribeImages",
    "DescribeImageReplicationStatus",
)

CONNECT_TIMEOUT = 3.0  # seconds
READ_TIMEOUT = 10.0  # from one byte to the next
ANSWER_TIMEOUT = 30.0  # until the last

#: Seconds before its end at which an assumed role's credentials are replaced; STS lends 900 at least.
RENEW_BEFORE = 300.0
#: Seconds that they are used at least, whatever their end and our clock say: no call costs two.
RENEW_EVERY = 60.0
#: Seconds until STS is asked again that did not answer, while credentials last.
RENEW_AGAIN = 20.0

#: Told of every call: service, operation, source, outcome ("success" or a Reason) and seconds.
Observer = Callable[[str, str, Source, str, float], None]


class EcrClient(Protocol):
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
        """The images of at most 100 names. IMAGE_NOT_FOUND if a name does not exist; or it is left out."""

    def status(self, repository: str, digest: str) -> tuple[Replication, ...]:
        """What ECR reports of the image's replication, one entry for each destination."""


class AWS:
    """One boto3 session for all gates; a new one when its credentials turn out to be of no use.

    botocore reads shared credential files once. Keys that were rotated there, or that appeared
    after the start, are found by reading everything anew. Data models are shared between clients:
    a session of its own for each role would cost megabytes and tenths of a second.

    `clock` is wall time, which is what AWS gives credentials an end in. Raises ECRError if there is
    no session to be had, as for an AWS_PROFILE that does not exist.
    """

    def __init__(
        self,
        *,
        session: Callable[[], boto3.Session] | None = None,
        endpoint_url: str | None = None,
        observe: Observer = lambda *_: None,
        clock: Callable[[], float] = time.time,
        read_timeout: float = READ_TIMEOUT,
        answer_timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        # It logs each failure to borrow credentials, at every call and with a traceback that holds what a
        # credential_process printed. The call's own error tells of it, in bounds.
        logging.getLogger("botocore.credentials").setLevel(logging.ERROR)
        self._make_session = session or _sessions()
        self._lock = threading.Lock()
        self._session: boto3.Session | None = None
        self.endpoint_url = endpoint_url
        self.observe = observe
        self.clock = clock
        self.read_timeout = read_timeout
        self.deadline = Deadline(answer_timeout)
        with Classified("credentials"):
            found: str | None = self.session().region_name
        #: The Region that boto3 finds by itself; or AWS_REGION, which all other SDKs know; or None.
        self.region = found or os.environ.get("AWS_REGION")

    def session(self) -> boto3.Session:
        """The session to make clients of. Raises what boto3 raises."""
        with self._lock:
            if self._session is None:
                self._session = self._make_session()
            return self._session

    def renew(self, stale: boto3.Session) -> None:
        """Read the credentials anew before the next client is made, unless another gate saw to it."""
        with self._lock:
            if self._session is stale:
                self._session = None

    def client(self, session: boto3.Session, service: str, **options: Any) -> Any:
        """A client of the session, which must not make two at a time (boto3 documentation)."""
        with self._lock:
            client = session.client(service, endpoint_url=self.endpoint_url, **options)
        make_known(client)
        return client

    def ecr(self, settings: RegistrySettings, *, connections: int) -> EcrClient:
        """The gate to one registry; `connections` is how many threads will ask at once."""
        return BotoEcrClient(self, settings, connections=connections)


@dataclass(slots=True, eq=False)
class _Access:
    """What a gate has by virtue of one session; kept until its credentials turn out to be of no use."""

    session: boto3.Session
    clients: dict[str, Any] = field(default_factory=dict)
    #: The assumed role's credentials, none if there is no role, and when (Unix time) to ask for others.
    role: Mapping[str, str] = field(default_factory=dict)
    renew_at: float = 0.0
    ends_at: float = 0.0


class BotoEcrClient:
    """Gate on real boto3."""

    def __init__(self, aws: AWS, settings: RegistrySettings, *, connections: int) -> None:
        self._aws = aws
        self._settings = settings
        self._region = settings.region or aws.region
        self._config = Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=aws.read_timeout,
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=connections,
            # A whole user agent, not an extra: composing botocore's own costs a seventh of a call.
            user_agent=f"ecr-replication-exporter/{__version__} boto3/{boto3.__version__}",
        )
        self._lock = threading.Lock()
        self._access: _Access | None = None
        self.source = Source(static_registry_id(settings), self._region or "")

    def account(self) -> str:
        account = answers.account(self._call("sts", "GetCallerIdentity"))
        self._learn(account)
        return account

    def registry(self) -> Registry:
        registry = answers.registry(self._call("ecr", "DescribeRegistry"))
        self._learn(registry.registry_id)
        return registry

    def repositories(self, token: str | None) -> Page[str]:
        return answers.repositories(self._call("ecr", "DescribeRepositories", **self._page(token)))

    def images(self, repository: str, token: str | None, *, untagged: bool) -> Page[Image]:
        answer = self._call(
            "ecr",
            "DescribeImages",
            repositoryName=repository,
            filter={"tagStatus": "ANY" if untagged else "TAGGED"},
            **self._page(token),
        )
        return answers.images(answer, now=self._aws.clock())

    def find(self, repository: str, names: Sequence[Name]) -> tuple[Image, ...]:
        answer = self._call(
            "ecr",
            "DescribeImages",
            repositoryName=repository,
            imageIds=[{"imageTag": n.tag} if n.tag else {"imageDigest": n.digest} for n in names],
            **self._registry_id(),
        )
        return answers.found(answer, now=self._aws.clock())

    def status(self, repository: str, digest: str) -> tuple[Replication, ...]:
        answer = self._call(
            "ecr",
            "DescribeImageReplicationStatus",
            repositoryName=repository,
            imageId={"imageDigest": digest},
            **self._registry_id(),
        )
        return answers.replications(answer, repository=repository, digest=digest)

    def _learn(self, account: str) -> None:
        """Calls are counted under the account once it is known, as everything else is."""
        if not static_registry_id(self._settings):
            self.source = Source(account, self.source.region)

    def _registry_id(self) -> dict[str, Any]:
        return {"registryId": self._settings.registry_id} if self._settings.registry_id else {}

    def _page(self, token: str | None) -> dict[str, Any]:
        where = {"nextToken": token} if token else {}
        return {"maxResults": PAGE_SIZE} | where | self._registry_id()

    def _call(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        access = None
        try:
            with Classified(f"{service}:{operation}"):
                access = self._current()
                client = self._client(access, service)
            return self._ask(client, operation, parameters)
        except ECRError as error:
            if error.everything and access:
                self._forget(access)
            raise

    def _current(self) -> _Access:
        with self._lock:
            if self._access is None:
                self._access = _Access(self._aws.session())
            return self._access

    def _forget(self, access: _Access) -> None:
        """Its credentials are of no use: look for others before the next call."""
        self._aws.renew(access.session)
        with self._lock:
            if self._access is access:
                self._access = None

    def _client(self, access: _Access, service: str) -> Any:
        with self._lock:
            if self._settings.role_arn and access.renew_at <= self._aws.clock():
                self._renew_role(access)
            if service not in access.clients:
                access.clients[service] = self._connect(access.session, service, **access.role)
            return access.clients[service]

    def _connect(self, session: boto3.Session, service: str, **credentials: str) -> Any:
        return self._aws.client(
            session, service, region_name=self._region, config=self._config, **credentials
        )

    def _renew_role(self, access: _Access) -> None:
        """Others in place of the role's credentials; as long as they last, they do while STS is down."""
        try:
            self._assume_role(access)
        except ECRError as error:
            now = self._aws.clock()
            passing = error.reason in (Reason.UNAVAILABLE, Reason.THROTTLED)
            if not passing or now >= access.ends_at:
                raise
            access.renew_at = now + RENEW_AGAIN

    def _assume_role(self, access: _Access) -> None:
        """Through the STS of the registry's own Region, which works when us-east-1 does not.

        botocore would do it by itself, but ask again before each and every call when it is refused.
        """
        secret = self._settings.external_id
        parameters = {"RoleArn": self._settings.role_arn, "RoleSessionName": "ecr-replication-exporter"}
        proof = {"ExternalId": secret.reveal()} if secret else {}
        answer = self._ask(self._connect(access.session, "sts"), "AssumeRole", parameters | proof)
        with Classified("sts:AssumeRole"):
            lent = answer["Credentials"]
            access.role = {
                "aws_access_key_id": lent["AccessKeyId"],
                "aws_secret_access_key": lent["SecretAccessKey"],
                "aws_session_token": lent["SessionToken"],
            }
            access.ends_at = lent["Expiration"].timestamp()
        access.renew_at = max(access.ends_at - RENEW_BEFORE, self._aws.clock() + RENEW_EVERY)
        access.clients.clear()

    def _ask(self, client: Any, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one call, which is timed and counted."""
        service = client.meta.service_model.service_name
        action = f"{service}:{operation}"
        began = time.monotonic()
        outcome = "success"
        try:
            with Classified(action, secret=self._settings.external_id):
                call = partial(getattr(client, xform_name(operation)), **parameters)
                return _stated(self._in_time(action, call))
        except ECRError as error:
            outcome = error.reason
            raise
        finally:
            self._aws.observe(service, operation, self.source, outcome, time.monotonic() - began)

    def _in_time(self, action: str, call: Callable[[], Any]) -> Any:
        with self._aws.deadline() as timed:
            try:
                return call()
            except Exception as error:
                if not timed.late:
                    raise
                message = f"the answer was not whole after {self._aws.deadline.seconds:g} s"
                raise ECRError(
                    Reason.UNAVAILABLE, action=action, code="AnswerTooSlow", message=message
                ) from error


class _Session(botocore.session.Session):
    """Its clients are all under the deadline, also those with which botocore itself borrows credentials."""

    def create_client(self, *args: Any, **options: Any) -> Any:
        client = super().create_client(*args, **options)
        make_known(client)
        return client


def _sessions() -> Callable[[], boto3.Session]:
    """Makes boto3's own sessions, but for the time zone of the times in answers; they share what is large."""
    loader: Any = None

    def make() -> boto3.Session:
        nonlocal loader
        core = _Session()
        if loader:
            core.register_component("data_loader", loader)
        loader = core.get_component("data_loader")
        core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_moment)
        return boto3.Session(botocore_session=core)

    return make


def _moment(value: Any) -> datetime:
    """In UTC. The local times that botocore makes cost more than a third of a page of images."""
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    return parse_timestamp(value)


def static_registry_id(settings: RegistrySettings) -> str:
    """The account whose registry this is, as far as the configuration alone tells; "" if it does not."""
    if settings.registry_id:
        return settings.registry_id
    return settings.role_arn.split(":")[4] if settings.role_arn else ""


def _stated(answer: Any) -> dict[str, Any]:
    """The answer, if it says anything at all.

    botocore makes an empty answer of an empty body, of HTML and of half a page of JSON. It must not
    pass for a registry without images: AWS sends its lists even when they are empty.
    """
    if not isinstance(answer, dict) or not answer.keys() - {"ResponseMetadata"}:
        raise ResponseParserError("the answer says nothing that can be understood")
    return answer
