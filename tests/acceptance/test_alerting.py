"""The shipped rules and examples in a real Prometheus and Alertmanager, up to the notification."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.command import ask, eventually
from support.embedded_aws import EmbeddedAWS
from support.monitoring import EXAMPLES, Receiver, alertmanager, example, exporter, free_address, prometheus

from exporter.demo import ACCOUNT, REGION, Refuse
from exporter.replication.model import Destination

OREGON = Destination("us-west-2", ACCOUNT)
RULES = [
    {"destinations": [{"region": region, "registryId": ACCOUNT} for region in ("eu-west-1", "us-west-2")]}
]
CONFIG = """
targets: [{repository: team/*}]
discovery_interval: 1s
pending_interval: 1s
failed_interval: 2s
requests_per_second: 100
"""
SCRIPT = Path(__file__).parents[2] / "helm" / "rules.py"
BUILD = "ecr_replication_exporter_build_info"
#: Seconds that Alertmanager waits before the first and before later notifications of a group.
GROUP_WAIT, GROUP_INTERVAL = 3, 2


@pytest.fixture
def aws() -> Iterator[EmbeddedAWS]:
    with EmbeddedAWS() as aws:
        aws.set_rules(ACCOUNT, REGION, RULES)
        aws.denied.add(OREGON)
        yield aws


@pytest.fixture
def digests(aws: EmbeddedAWS) -> Mapping[str, str]:
    """The digest that is pushed to each repository."""
    repositories = ("team/app", "team/api")
    for repository in repositories:
        aws.create_repository(ACCOUNT, REGION, repository)
    return {repository: aws.push(ACCOUNT, REGION, repository, "v1") for repository in repositories}


def shipped_rules(folder: Path, values: Mapping[str, Any]) -> str:
    """The rules for these values of the chart."""
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump({"prometheusRule": values}))
    done = subprocess.run([sys.executable, SCRIPT, file], capture_output=True, text=True, check=True)
    return done.stdout


def alertmanager_config(receiver: Receiver) -> Mapping[str, Any]:
    """The example with short waits and the receiver of the test."""
    config: dict[str, Any] = example("alertmanager.yml")
    config["route"] |= {"group_wait": f"{GROUP_WAIT}s", "group_interval": f"{GROUP_INTERVAL}s"}
    for each in config["route"]["routes"]:
        each |= {"group_wait": f"{GROUP_WAIT}s"}
    for each in config["receivers"]:
        each["webhook_configs"] = [{"url": receiver.url + each["name"]}]
    return config


def prometheus_config(rules: Path, scraped: str, *, alertmanager: str = "") -> Mapping[str, Any]:
    """The example with short intervals and the addresses of the test."""
    config: dict[str, Any] = example("prometheus.yml")
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(rules)]
    (scrape,) = config["scrape_configs"]
    scrape["static_configs"] = [{"targets": [scraped]}]
    if alertmanager:
        config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [alertmanager]}]}]
    else:
        del config["alerting"]
    return config


def test_failed_images_make_one_notification_that_resolves_after_a_good_push(
    tmp_path: Path,
    aws: EmbeddedAWS,
    digests: Mapping[str, str],
    command: Callable[[str, str], str],
) -> None:
    programs = (
        command("prometheus", "prometheus"),
        command("prometheus-alertmanager", "prometheus-alertmanager"),
    )
    failed = {"for": "1s", "keepFiringFor": "10s"}
    rules, scraped = tmp_path / "rules.yaml", free_address()
    rules.write_text(shipped_rules(tmp_path, {"alerts": {"ECRReplicationFailed": failed}}))

    with (
        Receiver() as receiver,
        alertmanager(programs[1], tmp_path / "alertmanager", alertmanager_config(receiver)) as address,
        prometheus(
            programs[0],
            tmp_path / "prometheus",
            prometheus_config(rules, scraped, alertmanager=address),
        ) as scraping,
    ):
        notifications = receiver.notifications
        with exporter(tmp_path, aws, scraped, config=CONFIG):
            eventually(lambda: notifications)
            eventually(lambda: len(scraping.query("ALERTS{alertstate='firing'}")) == 2)
        with exporter(tmp_path, aws, scraped, config=CONFIG) as restarted:
            eventually(lambda: restarted.statuses() == {"COMPLETE", "FAILED"})
            # After these scrapes Alertmanager would have notified if the restart had changed an alert.
            since = len(scraping.query(f"{BUILD}[1d]")[0]["values"])
            eventually(lambda: scraping.query(f"count_over_time({BUILD}[1d]) > {since + 2 * GROUP_INTERVAL}"))
            (first,) = notifications
            assert first["status"] == "firing"
            assert first["receiver"] == "on-call"
            assert first["groupLabels"] == {
                "alertname": "ECRReplicationFailed",
                "source_registry_id": ACCOUNT,
                "source_region": REGION,
                "registry_id": ACCOUNT,
                "region": "us-west-2",
            }
            assert {each["annotations"]["summary"] for each in first["alerts"]} == {
                f"Replication of {repository}@{digest} from {ACCOUNT}/{REGION} to {ACCOUNT}/us-west-2 failed:"
                " DESTINATION_REGISTRY_ACCESS_DENIED."
                for repository, digest in digests.items()
            }
            aws.denied.clear()
            for repository in digests:
                aws.push(ACCOUNT, REGION, repository, "v1")
            eventually(lambda: notifications[-1]["status"] == "resolved")
            assert {each["status"] for each in notifications[-1]["alerts"]} == {"resolved"}
            assert {each["groupKey"] for each in notifications} == {first["groupKey"]}


TROUBLED = f"""
registries: [{{region: {REGION}, events_queue_url: "https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/gone"}}]
targets:
  - repository: team/*
  - {{repository: team/app, tag: never-pushed}}
  - {{repository: secret/app, tag: v1}}
  - repository: nothing/*
max_images: 5
discovery_interval: 1s
pending_interval: 1s
failed_interval: 2s
requests_per_second: 100
"""
HOUR = 3600.0
#: One that FAILED, and one that did not though images of it failed.
BACKFILLS = [
    {
        "replicationBackfillId": region,
        "destination": {"region": region, "registryId": ACCOUNT},
        "status": status,
        "progress": {"failedReplicationCount": 3},
    }
    for region, status in (("eu-west-1", "FAILED"), ("us-west-2", "COMPLETE"))
]


@pytest.fixture
def troubled_aws() -> Iterator[EmbeddedAWS]:
    """A registry with an image in every state, most of them bad."""
    now = time.time()
    with EmbeddedAWS() as aws:
        aws.create_repository(ACCOUNT, REGION, "team/app")
        push = partial(aws.push, ACCOUNT, REGION, "team/app")
        for number in range(3):
            push(f"old{number}", pushed_at=now - 50 * HOUR)
        push("missing", pushed_at=now - 2 * HOUR)
        aws.set_rules(ACCOUNT, REGION, RULES)
        aws.denied.add(OREGON)
        push("stuck", pushed_at=now - HOUR, delay=lambda _: math.inf)
        push("failed")
        odd = [{"region": "eu-west-1", "registryId": ACCOUNT, "status": "TELEPORTED"}]
        aws.set_status(ACCOUNT, REGION, "team/app", push("odd"), odd)
        aws.set_backfills(ACCOUNT, REGION, BACKFILLS)
        aws.fault = lambda call: (
            Refuse(400, "AccessDeniedException", "no")
            if call.params.get("repositoryName") == "secret/app"
            else None
        )
        yield aws


def test_failures_of_a_real_exporter_fire_the_alerts(
    tmp_path: Path, troubled_aws: EmbeddedAWS, command: Callable[[str, str], str]
) -> None:
    """The promtool tests use made-up series. This test proves that the exporter has these series."""
    program = command("prometheus", "prometheus")
    rules, scraped = tmp_path / "rules.yaml", free_address()
    names = re.findall(r"alert: (\w+)", (EXAMPLES / "rules.yaml").read_text())
    soon: dict[str, dict[str, Any]] = {name: {"for": "1s", "keepFiringFor": ""} for name in names}
    soon["ECRReplicationSlow"] |= {"slowerThanSeconds": 0}
    for name in ("ECRReplicationStuck", "ECRReplicationMissing"):
        soon[name] |= {"olderThanSeconds": 0}
    soon["ECRReplicationBudgetBurnsFast"] |= {"pushes": 0}
    rules.write_text(shipped_rules(tmp_path, {"alerts": soon, "slo": {"withinSeconds": 5}}))

    def firing() -> set[str]:
        found = scraping.query("ALERTS{alertstate='firing'}")
        return {row["metric"]["alertname"].removeprefix("ECRReplication") for row in found}

    def fires(*names: str) -> None:
        eventually(lambda: not set(names) - firing())

    with (
        prometheus(program, tmp_path / "prometheus", prometheus_config(rules, scraped)) as scraping,
        exporter(tmp_path, troubled_aws, scraped, config=TROUBLED) as running_exporter,
    ):
        fires("Failed", "Missing", "StatusUnknown", "Stuck")
        fires("BudgetBurnsFast", "ECRBackfillFailed", "ECRBackfillImagesFailed", "ECREventsQueueFailing")
        fires("TargetDenied", "TargetEmpty", "TargetNotFound", "ExporterImagesSkipped")
        # A rate needs a second sample, so the first replication that is counted fires nothing.
        troubled_aws.push(ACCOUNT, REGION, "team/app", "late")
        eventually(lambda: scraping.query("ecr_image_replication_duration_seconds_count > 0"))
        troubled_aws.push(ACCOUNT, REGION, "team/app", "later")
        fires("Slow")
        troubled_aws.set_rules(ACCOUNT, REGION, [])
        fires("RulesGone")
        troubled_aws.fault = lambda _: Refuse(400, "ThrottlingException", "slow down")
        fires("ExporterThrottled")
        (tmp_path / "config.yaml").write_text("targets: []")
        running_exporter.process.send_signal(signal.SIGHUP)
        fires("ExporterReloadFailed")
        running_exporter.stop()
        fires("ExporterAbsent", "ExporterDown")
        assert not firing() & {"Failed", "RulesGone", "RulesChanged", "TargetDenied"}


def test_promtool_accepts_the_example(command: Callable[[str, str], str]) -> None:
    done = subprocess.run(
        [command("promtool", "prometheus"), "check", "config", str(EXAMPLES / "prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 rule files found" in done.stdout


def test_amtool_accepts_the_example(command: Callable[[str, str], str]) -> None:
    done = subprocess.run(
        [command("amtool", "prometheus-alertmanager"), "check-config", str(EXAMPLES / "alertmanager.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("absent", "quiet"),
    [
        ({}, {"a/ecr", "a/other", "b/ecr", "b/other"}),
        ({"namespace": "a"}, {"a/ecr", "a/other"}),
        ({"job": "ecr"}, {"a/ecr", "b/ecr"}),
        ({"namespace": "a", "job": "ecr"}, {"a/ecr"}),
    ],
    ids=["nothing", "a namespace", "a job", "both"],
)
def test_absent_inhibits_alerts_with_its_labels(
    absent: Mapping[str, str], quiet: set[str], tmp_path: Path, command: Callable[[str, str], str]
) -> None:
    """Absent has the labels of the selector. The other alerts have all labels of a scrape."""
    program = command("prometheus-alertmanager", "prometheus-alertmanager")
    others = [{"namespace": namespace, "job": job} for namespace in "ab" for job in ("ecr", "other")]
    alerts = [
        {"alertname": "ECRReplicationExporterAbsent", **absent},
        *({"alertname": "ECRReplicationExporterShardMissing", **other} for other in others),
    ]
    posted = json.dumps([{"labels": labels} for labels in alerts]).encode()
    with alertmanager(program, tmp_path / "alertmanager", example("alertmanager.yml")) as address:
        url = f"http://{address}/api/v2/alerts"
        headers = {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(url, posted, headers)).close()

        def inhibited() -> set[str]:
            alerts = json.loads(ask(url).body)
            return {
                f"{each['labels']['namespace']}/{each['labels']['job']}"
                for each in alerts
                if each["status"]["inhibitedBy"]
            }

        eventually(lambda: inhibited() == quiet)


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [(("severity=critical",), "on-call"), (("severity=warning",), "team"), (("severity=info",), "team")],
)
def test_the_receiver_of_each_severity(
    labels: tuple[str, ...], receiver: str, command: Callable[[str, str], str]
) -> None:
    amtool = command("amtool", "prometheus-alertmanager")
    file = f"--config.file={EXAMPLES / 'alertmanager.yml'}"
    done = subprocess.run(
        [amtool, "config", "routes", "test", file, *labels], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == receiver
