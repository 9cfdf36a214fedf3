"""How AWS is reached: the boto3 session that all clients share, and the roles that are assumed with it.

A client of this package sees one registry with one set of credentials. `Access` gives it the boto3 client for
its next call and makes that call. It never retries, because the scheduler counts every call that AWS counts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import boto3
import botocore.session
from botocore import xform_name
from botocore.config import Config
from botocore.parsers import ResponseParserError
from botocore.utils import parse_timestamp

from exporter.aws.credentials import PROCESS_TIMEOUT, CredentialSource, Lease, Loan
from exporter.aws.errors import NOT_ENABLED, Classified, ECRError
from exporter.aws.timeouts import Deadline, with_deadline
from exporter.config.settings import RegistrySettings
from exporter.replication.model import Reason, Source

#: Called after every call with service, operation, source, outcome ("success" or a Reason) and seconds.
Observer = Callable[[str, str, Source, str, float], None]


class SharedSession:
    """The boto3 session of all clients, replaced by a new one when its credentials stop working.

    botocore reads shared credential files once. A new session finds keys that were rotated there or that
    appeared after the start. One session is shared because each would hold megabytes of service models.
    All methods are for any thread and raise what boto3 raises.
    """

    def __init__(self, make: Callable[[], boto3.Session], *, endpoint_url: str | None) -> None:
        self._make = make
        self._endpoint_url = endpoint_url
        self._lock = threading.Lock()
        self._session: boto3.Session | None = None

    def current(self) -> boto3.Session:
        """The session to make clients of."""
        with self._lock:
            if self._session is None:
                self._session = self._make()
            return self._session

    def discard(self, stale: boto3.Session) -> None:
        """Read the credentials again before the next client is made. No effect if `stale` is replaced."""
        with self._lock:
            if self._session is stale:
                self._session = None

    def client(self, session: boto3.Session, service: str, **options: Any) -> Any:
        """A client of the session. A boto3 session must not make two at a time (boto3 documentation)."""
        with self._lock:
            client = session.client(service, endpoint_url=self._endpoint_url, **options)
        with_deadline(client)
        return client


class Access:
    """The calls to one registry, with the session's credentials or with those of an assumed role.

    `own_region` is the Region of the exporter's own account: it has an STS when that of the registry's Region
    refuses. `clock` is wall time in Unix seconds, because AWS gives credentials an end in it. All methods are
    for any thread.
    """

    def __init__(
        self,
        shared: SharedSession,
        settings: RegistrySettings,
        *,
        source: Source,
        own_region: str | None,
        config: Config,
        deadline: Deadline,
        observe: Observer,
        clock: Callable[[], float],
    ) -> None:
        #: What the calls are counted under; its Region is the one that is called.
        self.source = source
        self._shared = shared
        self._settings = settings
        self._config = config
        self._deadline = deadline
        self._observe = observe
        self._role = Lease(self._assume_role, clock=clock) if settings.role_arn else None
        #: The Regions whose STS is asked for the role. Only the thread that renews it reads and writes them.
        self._sts_regions = list(dict.fromkeys((source.region or None, own_region)))
        self._lock = threading.Lock()
        #: What the clients were made with.
        self._made_with: boto3.Session | Loan | None = None
        self._clients: dict[str, Any] = {}

    def call(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one call. Raises ECRError."""
        used: boto3.Session | Loan | None = None
        try:
            with Classified(f"{service}:{operation}", local=True):
                used = self._role.current() if self._role else self._shared.current()
                client = self._client(used, service)
            return self._ask(client, operation, parameters)
        except ECRError as error:
            if error.everything and used:
                self._discard(used)
            raise

    def _discard(self, used: boto3.Session | Loan) -> None:
        """Use other credentials for the next call: these do not work."""
        if isinstance(used, Loan):
            if self._role:
                self._role.discard(used)
        else:
            self._shared.discard(used)
        with self._lock:
            if self._made_with is used:
                self._made_with = None
                self._clients.clear()

    def _client(self, used: boto3.Session | Loan, service: str) -> Any:
        with self._lock:
            if self._made_with is not used:
                self._made_with = used
                self._clients.clear()
            if service not in self._clients:
                self._clients[service] = self._connect(used, service)
            return self._clients[service]

    def _connect(self, used: boto3.Session | Loan, service: str, region: str | None = None) -> Any:
        region = region or self.source.region or None
        options: dict[str, Any] = {"region_name": region, "config": self._config}
        if isinstance(used, Loan):
            keys = {
                "aws_access_key_id": used.access_key,
                "aws_secret_access_key": used.secret_key,
                "aws_session_token": used.token,
            }
            return self._shared.client(self._shared.current(), service, **options, **keys)
        return self._shared.client(used, service, **options)

    def _assume_role(self) -> Loan:
        """The role's credentials, from the STS of the registry's Region: it works when us-east-1 does not.

        STS checks that the account of the caller has enabled its Region (IAM User Guide, "Managing AWS STS in
        an AWS Region"). If only the role's account has, the STS of the exporter's own Region is asked: its
        tokens are valid in every Region. The one that answered is asked first the next time.
        """
        for region in tuple(self._sts_regions):
            try:
                loan = self._assume_role_in(region)
            except ECRError as error:
                if error.code not in NOT_ENABLED or region == self._sts_regions[-1]:
                    raise
            else:
                self._sts_regions.sort(key=lambda other: other != region)
                return loan
        raise AssertionError("the last Region returns or raises")

    def _assume_role_in(self, region: str | None) -> Loan:
        """The role's credentials from the STS of one Region.

        botocore can assume roles too, but it asks STS again before every call when STS refuses.
        """
        session = None
        try:
            with Classified("sts:AssumeRole", local=True):
                session = self._shared.current()
                client = self._connect(session, "sts", region)
            secret = self._settings.external_id
            parameters = {"RoleArn": self._settings.role_arn, "RoleSessionName": "ecr-replication-exporter"}
            proof = {"ExternalId": secret.get_secret_value()} if secret else {}
            answer = self._ask(client, "AssumeRole", parameters | proof)
        except ECRError as error:
            if error.everything and session:
                self._shared.discard(session)
            raise
        with Classified("sts:AssumeRole"):
            lent = answer["Credentials"]
            return Loan(
                lent["AccessKeyId"],
                lent["SecretAccessKey"],
                lent["SessionToken"],
                ends_at=lent["Expiration"].timestamp(),
            )

    def _ask(self, client: Any, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one call, which is timed and counted."""
        service = client.meta.service_model.service_name
        action = f"{service}:{operation}"
        began = time.monotonic()
        outcome = "success"
        try:
            with Classified(action, secret=self._settings.external_id):
                call = partial(getattr(client, xform_name(operation)), **parameters)
                return _not_empty(self._in_time(action, call))
        except ECRError as error:
            outcome = error.reason
            raise
        finally:
            self._observe(service, operation, self.source, outcome, time.monotonic() - began)

    def _in_time(self, action: str, call: Callable[[], Any]) -> Any:
        with self._deadline() as timed:
            try:
                return call()
            except Exception as error:
                if not timed.late:
                    raise
                message = f"the answer was not complete after {self._deadline.seconds:g} s"
                raise ECRError(
                    Reason.UNAVAILABLE, action=action, code="AnswerTooSlow", message=message
                ) from error


def _not_empty(answer: Any) -> dict[str, Any]:
    """The answer. Raises ResponseParserError if it holds no data.

    botocore turns an empty body, HTML and half a page of JSON into an empty answer. It must not pass for a
    registry without images: AWS sends its lists even when they are empty.
    """
    if not isinstance(answer, dict) or not answer.keys() - {"ResponseMetadata"}:
        raise ResponseParserError("the answer holds no data")
    return answer


class _Session(botocore.session.Session):
    """A session whose clients all have the deadline, also those with which botocore fetches credentials."""

    def create_client(self, *args: Any, **options: Any) -> Any:
        client = super().create_client(*args, **options)
        with_deadline(client)
        return client


def session_factory(
    *, clock: Callable[[], float], process_timeout: float = PROCESS_TIMEOUT
) -> Callable[[], boto3.Session]:
    """Makes boto3 sessions from the environment and the shared files. They share their service models.

    A credential_process is killed after `process_timeout` seconds.

    Their times are in UTC: the local times that botocore makes cost more than a third of a page of images.
    """
    loader: Any = None

    def make() -> boto3.Session:
        nonlocal loader
        core = _Session()
        if loader:
            core.register_component("data_loader", loader)
        loader = core.get_component("data_loader")
        core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_utc)
        chain = core.get_component("credential_provider")
        source = CredentialSource(chain, clock=clock, process_timeout=process_timeout)
        core.register_component("credential_provider", source)
        return boto3.Session(botocore_session=core)

    return make


def _utc(value: Any) -> datetime:
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    return parse_timestamp(value)
