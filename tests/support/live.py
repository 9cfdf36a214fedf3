"""The whole exporter inside the test: the real engine and client, in real time, with short intervals."""

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

#: Every interval of the exporter, in seconds.
INTERVAL = 0.3
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
#: The targets of the registry `home`.
HOME = {"team/app:v1", "team/api:v1", "base/*"}


def populated(aws: EmbeddedAWS) -> EmbeddedAWS:
    """The AWS with all images that CONFIG selects, each of them COMPLETE."""
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
    """A running exporter."""

    def __init__(self, exporter: Exporter, written: io.StringIO) -> None:
        self.exporter = exporter
        self._written = written

    def page(self, *names: str) -> str:
        return self.exporter.page(accept="", accept_encoding="", names=names).whole().decode()

    def written(self) -> list[str]:
        """The lines of the log."""
        return self._written.getvalue().split("\n")[:-1]

    def lines(self, event: str = "") -> list[dict[str, str]]:
        """The fields of each log line, or of the lines of one event."""
        lines = [parse(line) for line in self.written()]
        return [line for line in lines if event in ("", line["msg"])]

    def reasons(self, target: str) -> set[str]:
        """The reasons of the target's failure; empty if it does not fail."""
        return {found["reason"] for found, _ in self.series("ecr_target_failure_info", target=target)}

    def success(self) -> dict[str, float]:
        """The success of each target of home, 1 or 0. A target without a known result is absent."""
        found = self.series("ecr_target_success", source_registry_id=ACCOUNT)
        return {labels["target"]: value for labels, value in found}

    def last_listed(self, account: str) -> float:
        """The Unix time of the last complete listing of the account's registry; 0 if there was none."""
        name = "ecr_registry_last_success_timestamp_seconds"
        return max((at for _, at in self.series(name, source_registry_id=account)), default=0.0)

    def heals(self, *, within: float) -> None:
        """Wait until all targets of home succeed."""
        eventually(lambda: set(self.success().values()) == {1.0} and len(self.success()) == 3, within=within)


@contextmanager
def living(
    session: Callable[[], boto3.Session] | None,
    endpoint_url: str,
    *,
    text: str = CONFIG,
    format_: str = "logfmt",
    replica_interval: float = 0.0,
    **options: Any,
) -> Iterator[Live]:
    """Run an exporter with the configuration `text`. `options` are passed to AwsConnector.

    Without a session it uses the credentials of the environment.
    """
    written = io.StringIO()
    logs.setup("debug", format_, written)
    instruments = Instruments()
    aws = AwsConnector(session=session, endpoint_url=endpoint_url, observe=instruments.aws_request, **options)
    settings = replace(
        config.parse(text, file="config.yaml"),
        discovery_interval=INTERVAL,
        pending_interval=INTERVAL,
        failed_interval=INTERVAL,
        settled_interval=INTERVAL,
        replica_interval=replica_interval,
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
