"""The whole exporter inside the test: its real engine and client, in real time, but in a hurry."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import boto3

from exporter import logs
from exporter.app import Exporter
from exporter.aws.connector import AwsConnector
from exporter.config import settings as config
from exporter.demo import ACCOUNT
from exporter.lifecycle import Loader, Requests
from exporter.metrics.self_metrics import Instruments
from exporter.replication.targets import WHOLE
from support.command import Scraped, eventually
from support.embedded_aws import EmbeddedAWS
from support.logfmt import parse

#: Seconds between two questions about anything.
HURRY = 0.3
PARTNER = "444455556666"
IRELAND = {"region": "eu-west-1", "registryId": ACCOUNT}
OREGON = {"region": "us-west-2", "registryId": PARTNER}

CONFIG = f"""
registries:
  - {{name: home, region: us-east-1}}
  - name: partner
    region: eu-west-1
    role_arn: arn:aws:iam::{PARTNER}:role/reader
targets:
  - {{repository: team/app, tag: v1, registries: [home]}}
  - {{repository: team/api, tag: v1, registries: [home]}}
  - {{repository: base/*, registries: [home]}}
  - {{repository: team/*, registries: [partner]}}
requests_per_second: 200
"""
#: The targets by registry.
HOME = {"team/app:v1", "team/api:v1", "base/*"}


def peopled(aws: EmbeddedAWS) -> EmbeddedAWS:
    """With what CONFIG watches, all of it COMPLETE."""
    for account, region, destination, repositories in (
        (ACCOUNT, "us-east-1", IRELAND, ("team/app", "team/api", "base/img")),
        (PARTNER, "eu-west-1", OREGON, ("team/lib",)),
    ):
        aws.set_rules(account, region, [{"destinations": [destination]}])
        for repository in repositories:
            aws.create_repository(account, region, repository)
            aws.push(account, region, repository, "v1", delay=lambda _: 0.0)
    return aws


class Live(Scraped):
    """An exporter that polls."""

    def __init__(self, exporter: Exporter, written: io.StringIO) -> None:
        self.exporter = exporter
        self._written = written

    def page(self) -> str:
        return self.exporter.page(accept="", accept_encoding="", names=()).whole().decode()

    def written(self) -> list[str]:
        """The log as it is."""
        return self._written.getvalue().split("\n")[:-1]

    def lines(self, event: str = "") -> list[dict[str, str]]:
        """What was logged, by fields; one kind of event only, if it is named."""
        lines = [parse(line) for line in self.written()]
        return [line for line in lines if event in ("", line["msg"])]

    def reasons(self, target: str) -> set[str]:
        """Why the target failed in its last round; empty if it did not."""
        return {found["reason"] for found, _ in self.series("ecr_target_failure_info", target=target)}

    def success(self) -> dict[str, float]:
        """Of each target of home: 1 or 0; of what is not known, nothing."""
        found = self.series("ecr_target_success", source_registry_id=ACCOUNT)
        return {labels["target"]: value for labels, value in found}

    def heard_from(self, account: str) -> float:
        """When all of the registry was last listed."""
        name = "ecr_registry_last_success_timestamp_seconds"
        return max((at for _, at in self.series(name, source_registry_id=account)), default=0.0)

    def heals(self, *, within: float) -> None:
        """All targets succeed again, and all that failed is said to have recovered."""
        eventually(lambda: set(self.success().values()) == {1.0} and len(self.success()) == 3, within=within)


@contextmanager
def living(
    session: Callable[[], boto3.Session] | None,
    endpoint_url: str,
    *,
    text: str = CONFIG,
    format_: str = "logfmt",
    **options: Any,
) -> Iterator[Live]:
    """An exporter of the configuration; no session means the environment's. `options` are AwsConnector's."""
    written = io.StringIO()
    logs.setup("debug", format_, written)
    instruments = Instruments()
    aws = AwsConnector(session=session, endpoint_url=endpoint_url, observe=instruments.aws_request, **options)
    settings = replace(
        config.parse(text, file="config.yaml"),
        discovery_interval=HURRY,
        pending_interval=HURRY,
        failed_interval=HURRY,
        settled_interval=HURRY,
    )
    exporter = Exporter(
        settings=settings,
        loader=Loader("config.yaml", region=aws.region, text=text),
        aws=aws,
        instruments=instruments,
        shard=WHOLE,
        requests=Requests(),
    )
    loop = threading.Thread(target=exporter.poller.run, name="poller", daemon=True)
    loop.start()
    try:
        yield Live(exporter, written)
    finally:
        exporter.poller.stop()
        loop.join(5.0)
        logs.setup("info", "logfmt")
        assert not loop.is_alive()
