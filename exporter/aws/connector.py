"""Makes the clients of all registries. They share one session, one deadline and one observer of calls."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

import boto3
from botocore.config import Config

from exporter import __version__
from exporter.aws.ecr import BotoEcrClient, EcrClient, static_registry_id
from exporter.aws.errors import Classified
from exporter.aws.session import Access, Observer, SharedSession, session_factory
from exporter.aws.timeouts import ANSWER_TIMEOUT, CONNECT_TIMEOUT, READ_TIMEOUT, Deadline
from exporter.config.settings import RegistrySettings
from exporter.replication.model import Source


class AwsConnector:
    """Connects to AWS with the credentials and the Region that boto3 finds.

    `clock` is wall time in Unix seconds; time-outs are seconds. Raises ECRError if there can be no session,
    as for an AWS_PROFILE that does not exist.
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
        self._shared = SharedSession(session or session_factory(clock=clock), endpoint_url=endpoint_url)
        self._observe = observe
        self._clock = clock
        self._read_timeout = read_timeout
        self._deadline = Deadline(answer_timeout)
        with Classified("credentials", local=True):
            found: str | None = self._shared.current().region_name
        #: The Region that boto3 finds, else that of AWS_REGION, which the other SDKs read. May be None.
        self.region = found or os.environ.get("AWS_REGION")

    def ecr(self, settings: RegistrySettings, *, connections: int) -> EcrClient:
        """A client of one registry. `connections` is how many threads call it at once."""
        region = settings.region or self.region
        access = Access(
            self._shared,
            settings,
            source=Source(static_registry_id(settings), region or ""),
            own_region=self.region,
            config=self._client_config(connections),
            deadline=self._deadline,
            observe=self._observe,
            clock=self._clock,
        )
        return BotoEcrClient(access, settings, clock=self._clock)

    def _client_config(self, connections: int) -> Config:
        return Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=self._read_timeout,
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=connections,
            # A whole user agent, not an extra: composing botocore's own costs a seventh of a call.
            user_agent=f"ecr-replication-exporter/{__version__} boto3/{boto3.__version__}",
        )
