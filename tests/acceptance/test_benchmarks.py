"""The client gets the same answers from the ECR of the benchmarks as from the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.embedded_aws import EmbeddedAWS

from exporter.aws.connector import AwsConnector
from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.aws.events import parse
from exporter.config.settings import RegistrySettings
from exporter.replication.model import Destination, Reason

SERVER = Path(__file__).parents[2] / "benchmarks" / "fast_ecr.py"
ACCOUNT = "111122223333"
DESTINATIONS = {
    Destination("eu-west-1", ACCOUNT),
    Destination("us-west-2", ACCOUNT),
    Destination("eu-west-1", "444455556666"),
}


@pytest.fixture
def url() -> Iterator[str]:
    command = [sys.executable, str(SERVER), "--images=2500", "--repositories=2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


@pytest.fixture
def client(url: str) -> EcrClient:
    session = EmbeddedAWS().session()
    return AwsConnector(session=lambda: session, endpoint_url=url).ecr(RegistrySettings(), connections=1)


def control(url: str, target: str) -> Any:
    with urllib.request.urlopen(url + target, timeout=10) as response:
        return json.loads(response.read())


def test_it_lists_and_answers(client: EcrClient) -> None:
    assert client.registry().registry_id == ACCOUNT
    assert client.registry().destinations("team/app-0") == DESTINATIONS
    assert [each.name for each in client.repositories(None).items] == ["team/app-0", "team/app-1"]
    first = client.images("team/app-1", None)
    second = client.images("team/app-1", first.token)
    assert (len(first.items), len(second.items), second.token) == (1000, 250, None)
    assert len({image.digest for image in first.items + second.items}) == 1250
    reported = client.status("team/app-1", first.items[0].digest)
    assert {(r.destination, r.status) for r in reported} == {(d, "COMPLETE") for d in DESTINATIONS}


def test_a_push_is_listed_with_its_time(client: EcrClient, url: str) -> None:
    pushed = control(url, "/pushed?repository=team/app-0")
    token = client.images("team/app-0", None).token
    newest = client.images("team/app-0", token).items[-1]
    assert newest.digest == pushed
    assert newest.pushed_at is not None


def test_its_queue_has_pushes_and_events_of_others(url: str) -> None:
    session = EmbeddedAWS().session()
    connector = AwsConnector(session=lambda: session, endpoint_url=url)
    queue = connector.queue(RegistrySettings(), f"https://sqs.us-east-1.amazonaws.com/{ACCOUNT}/events")
    pushed = control(url, "/pushed?repository=team/app-0")
    (message,) = queue.receive()
    event = parse(message.body)
    assert event is not None
    assert (event.kind, event.digest, event.place.registry_id) == ("PUSH", pushed, ACCOUNT)
    queue.delete([message])
    control(url, "/foreign?rate=1000")
    event = parse(queue.receive()[0].body)
    assert event is not None
    assert event.place.registry_id != ACCOUNT


def test_calls_above_the_allowance_are_refused_and_counted(client: EcrClient, url: str) -> None:
    client.repositories(None)
    control(url, "/allow?rate=0.001")
    with pytest.raises(ECRError) as refused:
        client.status("team/app-0", "sha256:" + "0" * 64)
    assert refused.value.reason is Reason.THROTTLED
    calls = control(url, "/calls")
    assert (len(calls["served"]), len(calls["refused"]), control(url, "/status-calls")) == (1, 1, 0)


def test_an_allowance_can_limit_one_operation(client: EcrClient, url: str) -> None:
    control(url, "/allow?rate=0.001&operation=DescribeImageReplicationStatus")
    client.repositories(None)
    with pytest.raises(ECRError):
        client.status("team/app-0", "sha256:" + "0" * 64)
    client.repositories(None)
    status = control(url, "/calls?operation=DescribeImageReplicationStatus")
    assert (len(status["served"]), len(status["refused"])) == (0, 1)
    assert len(control(url, "/calls?operation=DescribeRepositories")["served"]) == 2


@pytest.mark.parametrize("server", ["exporter", "prometheus_client"])
def test_what_is_scraped_has_the_facts(server: str) -> None:
    command = [sys.executable, str(SERVER.with_name("scraped.py")), server, "20"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            url = f"http://127.0.0.1:{process.stdout.readline().strip()}/metrics"
            with urllib.request.urlopen(url, timeout=10) as response:
                assert response.read().count(b"ecr_image_info{") == 20
        finally:
            process.kill()


def test_every_benchmark_can_be_imported() -> None:
    folders = os.pathsep.join(map(str, (SERVER.parent, SERVER.parents[1] / "tests")))
    scripts = sorted(path.stem for path in SERVER.parent.glob("*.py"))
    assert len(scripts) > 5
    command = [sys.executable, "-c", f"import {', '.join(scripts)}"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": folders})
