"""How AWS is reached: the boto3 session that all clients share, and the roles that are assumed with it.

A client of this package sees one registry with one set of credentials. `Access` gives it the boto3 client for
its next call and makes that call. It never retries, because the scheduler counts every call that AWS counts.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import boto3
import botocore.session
from botocore import xform_name
from botocore.config import Config
from botocore.parsers import ResponseParserError
from urllib3.util import parse_url

from exporter import __version__
from exporter.aws.credentials import PROCESS_TIMEOUT, CredentialSource, Lease, Loan
from exporter.aws.errors import NOT_ENABLED, Classified, ECRError
from exporter.aws.long_answers import LongAnswers
from exporter.aws.timeouts import ANSWER_TIMEOUT, CONNECT_TIMEOUT, READ_TIMEOUT, Deadline, with_deadline
from exporter.config.settings import RegistrySettings
from exporter.replication.model import Reason, Source

#: Called after every call with service, operation, source, outcome ("success" or a Reason) and seconds.
Observer = Callable[[str, str, Source, str, float], None]


class SharedSession:
    """The boto3 session of all clients, replaced by a new one when its credentials stop working.

    botocore reads shared credential files once. A new session finds keys that were rotated there or that
    appeared after the start. One session is shared because each would hold megabytes of service models.
    `clock` is wall time in Unix seconds, because AWS gives credentials an end in it; time-outs are seconds.
    All methods are for any thread and raise what boto3 raises. The constructor raises ECRError if there can
    be no session, as for an AWS_PROFILE that does not exist.
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
        # botocore logs each failure to fetch credentials with a traceback, which holds what a
        # credential_process printed. The error of the call says the same without it.
        logging.getLogger("botocore.credentials").setLevel(logging.ERROR)
        self.observe = observe
        self.clock = clock
        self.deadline = Deadline(answer_timeout)
        self.long_answers = LongAnswers()
        self._make = session or session_factory(clock=clock)
        self._endpoint_url = endpoint_url
        self._read_timeout = read_timeout
        self._lock = threading.Lock()
        self._session: boto3.Session | None = None
        with Classified("credentials", local=True):
            found: str | None = self.current().region_name
        #: The Region that boto3 finds, else that of AWS_REGION, which the other SDKs read. May be None.
        self.region = found or os.environ.get("AWS_REGION")

    def current(self) -> boto3.Session:
        """The session to make clients of."""
        with self._lock:
            if self._session is None:
                self._session = self._make()
            return self._session

    def discard(self, stale: object) -> None:
        """Read the credentials again before the next client is made. No effect if `stale` is replaced."""
        with self._lock:
            if self._session is stale:
                self._session = None

    def client(
        self,
        service: str,
        used: boto3.Session | Loan,
        *,
        region: str | None,
        connections: int,
        endpoint_url: str | None = None,
    ) -> Any:
        """A client of the session, or of the current session with the keys of the loan."""
        keys: dict[str, Any] = {}
        session = self.current() if isinstance(used, Loan) else used
        if isinstance(used, Loan):
            keys = {
                "aws_access_key_id": used.access_key,
                "aws_secret_access_key": used.secret_key,
                "aws_session_token": used.token,
            }
        config = Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=self._read_timeout,
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=connections,
            # AWS checks the parameters, and the configuration was checked. It costs 7 % of a call.
            parameter_validation=False,
            # A whole user agent, not an extra: composing botocore's own costs a seventh of a call.
            user_agent=f"ecr-replication-exporter/{__version__} boto3/{boto3.__version__}",
        )
        with self._lock:  # a boto3 session must not make two clients at a time (boto3 documentation)
            client = session.client(
                service,
                region_name=region,
                endpoint_url=self._endpoint_url or endpoint_url,
                config=config,
                **keys,
            )
        with_deadline(client)
        if service == "ecr":
            self.long_answers.watch(client)
        return client


class Access:
    """The calls to one registry, with the session's credentials or with those of an assumed role.

    `connections` is how many threads call at once. `endpoints` has the URLs, by service, that botocore does
    not find by itself. All methods are for any thread.
    """

    def __init__(
        self,
        shared: SharedSession,
        settings: RegistrySettings,
        *,
        source: Source,
        connections: int,
        endpoints: Mapping[str, str | None] = MappingProxyType({}),
    ) -> None:
        #: What the calls are counted under; its Region is the one that is called.
        self.source = source
        self.clock = shared.clock
        self.long_answers = shared.long_answers
        self._shared = shared
        self._settings = settings
        self._connections = connections
        self._endpoints = endpoints
        self._role = Lease(self._assume_role, clock=shared.clock) if settings.role_arn else None
        #: The Regions whose STS is asked for the role. Only the thread that renews it reads and writes them.
        regions = dict.fromkeys(region for region in (source.region, shared.region) if region)
        self._sts_regions: list[str | None] = [*regions] or [None]
        self._lock = threading.Lock()
        #: The client of each service and Region, with the credentials that it was made with.
        self._clients: dict[tuple[str, str | None], tuple[boto3.Session | Loan, Any]] = {}

    def call(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one call. Raises ECRError."""
        lender, region = self._role or self._shared, self.source.region or None
        return self._call(lender, service, region, operation, parameters)

    def _call(
        self,
        lender: Lease | SharedSession,
        service: str,
        region: str | None,
        operation: str,
        parameters: Mapping[str, Any],
    ) -> dict[str, Any]:
        """The answer to one call. If AWS refuses the credentials, the next call uses other ones."""
        action = f"{service}:{operation}"
        used = None
        try:
            with Classified(action, local=True):
                used = lender.current()
                client = self._client(used, service, region)
            return self._ask(client, action, parameters)
        except ECRError as error:
            if error.everything and used:
                lender.discard(used)
            raise

    def _client(self, used: boto3.Session | Loan, service: str, region: str | None) -> Any:
        with self._lock:
            made_with, client = self._clients.get((service, region), (None, None))
            if made_with is not used:
                client = self._shared.client(
                    service,
                    used,
                    region=region,
                    connections=self._connections,
                    endpoint_url=self._endpoints.get(service),
                )
                self._clients[service, region] = used, client
            return client

    def _ask(self, client: Any, action: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one call, which is timed and counted."""
        service, operation = action.split(":")
        began, outcome = time.monotonic(), "success"
        try:
            ask = _method(client, action)
            with Classified(action, secret=self._settings.external_id), self._shared.deadline():
                answer = _answer(ask(**parameters), may_be_empty=action in _MAY_BE_EMPTY)
        except ECRError as error:
            outcome = error.reason
            raise
        finally:
            self._shared.observe(service, operation, self.source, outcome, time.monotonic() - began)
        return answer

    def _assume_role(self) -> Loan:
        """The role's credentials, from the STS of the registry's Region: it works when us-east-1 does not.

        STS checks that the account of the caller has enabled its Region (IAM User Guide, "Managing AWS STS in
        an AWS Region"). If only the role's account has, the STS of the exporter's own Region is asked: its
        tokens are valid in every Region. The one that answered is asked first the next time.
        botocore can assume roles too, but it asks STS again before every call when STS refuses.
        """
        secret = self._settings.external_id
        parameters = {"RoleArn": self._settings.role_arn, "RoleSessionName": "ecr-replication-exporter"}
        parameters |= {"ExternalId": secret.get_secret_value()} if secret else {}
        first, *others = self._sts_regions
        try:
            answer = self._call(self._shared, "sts", first, "AssumeRole", parameters)
        except ECRError as error:
            if error.code not in NOT_ENABLED or not others:
                raise
            answer = self._call(self._shared, "sts", others[0], "AssumeRole", parameters)
            self._sts_regions.reverse()
        with Classified("sts:AssumeRole"):
            lent = answer["Credentials"]
            ends_at = lent["Expiration"].timestamp()
            return Loan(lent["AccessKeyId"], lent["SecretAccessKey"], lent["SessionToken"], ends_at)


def _method(client: Any, action: str) -> Callable[..., Any]:
    """The method of the client for an operation. Raises ECRError if this boto3 is too old to have it."""
    method: Callable[..., Any] | None = getattr(client, xform_name(action.split(":")[1]), None)
    if method is None:
        message = f"boto3 {boto3.__version__} does not know it"
        raise ECRError(Reason.INVALID, action=action, code="UnknownOperation", message=message)
    return method


#: A queue in which no message waits is an empty answer.
_MAY_BE_EMPTY = frozenset({"sqs:ReceiveMessage"})


def _answer(answer: Any, *, may_be_empty: bool) -> dict[str, Any]:
    """The answer. Raises ResponseParserError if it holds no data where it must.

    botocore turns an empty body, HTML and half a page of JSON into an empty answer. It must not pass for a
    registry without images: AWS sends its lists even when they are empty.
    """
    if not isinstance(answer, dict) or not (may_be_empty or answer.keys() - {"ResponseMetadata"}):
        raise ResponseParserError("the answer holds no data")
    return answer


class _Session(botocore.session.Session):
    """A session whose clients all have the deadline, also those with which botocore fetches credentials."""

    def create_client(self, *args: Any, **options: Any) -> Any:
        client = super().create_client(*args, **options)
        with_deadline(client)
        parse_url(client.meta.endpoint_url)  # raises a ValueError that botocore raises with the first call
        return client


def session_factory(
    *, clock: Callable[[], float], process_timeout: float = PROCESS_TIMEOUT
) -> Callable[[], boto3.Session]:
    """Makes boto3 sessions from the environment and the shared files. They share their service models.

    A credential_process is killed after `process_timeout` seconds.
    """
    loader: Any = None

    def make() -> boto3.Session:
        nonlocal loader
        core = _Session()
        if loader:
            core.register_component("data_loader", loader)
        loader = core.get_component("data_loader")
        region = os.environ.get("AWS_REGION")  # botocore does not read it
        if region and not core.get_config_variable("region"):
            core.set_config_variable("region", region)
        chain = core.get_component("credential_provider")
        source = CredentialSource(chain, clock=clock, process_timeout=process_timeout)
        core.register_component("credential_provider", source)
        return boto3.Session(botocore_session=core)

    return make
