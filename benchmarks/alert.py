"""From a push that cannot be replicated to the notification, with the shipped rules and examples.

Run it with `make bench-alert`. It needs the Debian packages prometheus and prometheus-alertmanager. The
exporter is the real command with an events queue and `discovery_interval: 10m`. Prometheus and Alertmanager
have the files of examples/prometheus, with other addresses only. Each push fails at a destination of its own,
because Alertmanager puts the images of one destination into one notification.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from support.command import eventually
from support.embedded_aws import EmbeddedAWS, replication_rule
from support.monitoring import EXAMPLES, Receiver, alertmanager, example, exporter, free_address, prometheus

from exporter.demo import ACCOUNT, REGION
from exporter.replication.model import Destination

REGIONS = ("eu-west-1", "eu-central-1", "us-west-2", "ap-south-1", "sa-east-1", "ca-central-1")
#: Seconds between two pushes, as minimum and maximum. No multiple of an interval of Prometheus.
APART = (7.0, 23.0)
CONFIG = """
registries: [{{region: {region}, events_queue_url: "{url}"}}]
targets: [{{repository: team/*}}]
discovery_interval: 10m
"""


def config(name: str, receiver: Receiver, scraped: str, alerts: str = "") -> dict[str, Any]:
    """An example with the addresses of the benchmark."""
    made: dict[str, Any] = example(name)
    for each in made.get("receivers", ()):
        each["webhook_configs"] = [{"url": receiver.url + each["name"]}]
    for each in made.get("scrape_configs", ()):
        each["static_configs"] = [{"targets": [scraped]}]
    if alerts:
        made["rule_files"] = [str(EXAMPLES / "rules.yaml")]
        made["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [alerts]}]}]
    return made


def measure(aws: EmbeddedAWS, receiver: Receiver, dice: random.Random) -> list[float]:
    """Seconds from each push to its notification."""
    pause, pushed = threading.Event(), dict[str, float]()
    for number, region in enumerate(REGIONS):
        pause.wait(dice.uniform(*APART))
        aws.push(ACCOUNT, REGION, f"team/app-{number}", "v1")
        pushed[region] = time.monotonic()
    told: dict[str, float] = {}

    def all_told() -> bool:
        for notification in list(receiver.notifications):
            told.setdefault(notification["groupLabels"]["region"], notification["at"])
        return told.keys() == pushed.keys()

    eventually(all_told, within=120.0)
    return [told[region] - at for region, at in pushed.items()]


class _Timed(list[Any]):
    """Notes when each notification comes."""

    def append(self, notification: Any) -> None:
        super().append(notification | {"at": time.monotonic()})


def main() -> None:
    arguments = argparse.ArgumentParser(description="Push to notification.")
    arguments.add_argument("--seed", type=int, default=1)
    dice = random.Random(arguments.parse_args().seed)
    scraped = free_address()
    with tempfile.TemporaryDirectory() as folder, EmbeddedAWS() as aws, Receiver(_Timed()) as receiver:
        here = Path(folder)
        rules = []
        for number, region in enumerate(REGIONS):
            aws.create_repository(ACCOUNT, REGION, f"team/app-{number}")
            to = Destination(region, ACCOUNT)
            rules.append(replication_rule(to, prefix=f"team/app-{number}"))
            aws.denied.add(to)
        aws.set_rules(ACCOUNT, REGION, rules)
        watched = CONFIG.format(region=REGION, url=aws.add_queue("ecr-events"))
        alertmanager_config = config("alertmanager.yml", receiver, scraped)
        with (
            alertmanager("prometheus-alertmanager", here / "alertmanager", alertmanager_config) as alerts,
            exporter(here, aws, scraped, config=watched),
            prometheus(
                "prometheus", here / "prometheus", config("prometheus.yml", receiver, scraped, alerts)
            ) as scraping,
        ):
            eventually(lambda: scraping.query("ecr_replication_exporter_build_info"))
            took = sorted(measure(aws, receiver, dice))
    print(f"push to notification: median {took[len(took) // 2]:.0f} s, worst {took[-1]:.0f} s of {len(took)}")


if __name__ == "__main__":
    main()
