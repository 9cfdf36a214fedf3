"""Reloads: one at a time, shared by those who ask meanwhile, and none that fails without a word."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.command import eventually
from support.live import CONFIG
from support.logfmt import parse

from exporter import logs
from exporter.app import Exporter
from exporter.aws.connector import AwsConnector
from exporter.config import settings as config
from exporter.config.settings import Settings
from exporter.config.yaml_source import ConfigError, Problem
from exporter.lifecycle import MAX_WAITING, RETRY_AFTER, Loader, Reloads, Requests
from exporter.metrics.self_metrics import Instruments
from exporter.replication.targets import WHOLE


class Gated(Loader):
    """A load that fails when it may end."""

    def __init__(self) -> None:
        super().__init__("gated.yaml", region=None)
        self.begun = 0
        self.may_end = threading.Semaphore(0)

    def load(self) -> Settings:
        self.begun += 1
        self.may_end.acquire()
        raise ConfigError([Problem("gated.yaml", None, "", f"problem {self.begun}")])


def reloads_of(loader: Loader) -> Reloads:
    return Reloads(loader, apply=lambda _: True, report=lambda _: None)


def background(target: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def test_a_storm_is_one_reload_and_one_more() -> None:
    load = Gated()
    reloads = reloads_of(load)
    background(reloads.run)
    first = reloads.request()
    eventually(lambda: load.begun == 1)
    turns = {reloads.request() for _ in range(300)}
    assert len(turns) == 1
    load.may_end.release(2)
    (second,) = turns
    assert first.result(5) == ["gated.yaml: problem 1"]
    assert second.result(5) == ["gated.yaml: problem 2"]
    assert load.begun == 2


def test_few_wait_and_none_for_ever() -> None:
    load = Gated()
    reloads = reloads_of(load)
    background(reloads.run)
    said: list[Sequence[str]] = []
    waiting = [background(lambda: said.append(reloads.wait(timeout=2.0))) for _ in range(45)]
    began = time.monotonic()
    eventually(lambda: len(said) >= 45 - MAX_WAITING, within=1.9)
    assert time.monotonic() - began < 1.9
    assert {problem for (problem,) in said} == {
        "a reload is under way, and enough others wait for the next; it will come all the same"
    }
    for thread in waiting:
        thread.join(5)
    assert [problem for (problem,) in said[-MAX_WAITING:]] == [
        "the reload did not end within 2 s; it may yet"
    ] * MAX_WAITING
    load.may_end.release(3)


class Broken(Loader):
    """Raises `error` while it is set."""

    error: Exception | None = None

    def load(self) -> Settings:
        if self.error:
            raise self.error
        return super().load()

    def changed(self) -> bool:
        if self.error:
            raise self.error
        return super().changed()


@dataclass
class Rig:
    loader: Broken
    exporter: Exporter
    instruments: Instruments
    reads: int

    def look(self) -> list[float]:
        """Look for a due reload, and say how many seconds are left until the next look."""
        waits: list[float] = []

        def wait(seconds: float) -> bool:
            waits.append(seconds)
            return len(waits) > 1

        self.exporter.reloads.watch(every=5.0, wait=wait)
        return waits

    def successful(self) -> float | None:
        return self.instruments.registry.get_sample_value(
            "ecr_replication_exporter_config_last_reload_successful"
        )

    def told(self) -> list[dict[str, str]]:
        return [parse(line) for line in os.read(self.reads, 65536).decode().splitlines()]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    instruments = Instruments()
    aws = AwsConnector(observe=instruments.aws_request)
    loader = Broken(str(file), region=aws.region)
    exporter = Exporter(
        settings=config.parse(CONFIG, file=str(file)),
        loader=loader,
        aws=aws,
        instruments=instruments,
        shard=WHOLE,
        requests=Requests(),
    )
    loader.load()
    reads, writes = os.pipe()
    with os.fdopen(writes, "w", buffering=1) as stream:
        logs.setup("info", "logfmt", stream)
        background(exporter.reloads.run)
        yield Rig(loader, exporter, instruments, reads)
        logs.setup("info", "logfmt")
    os.close(reads)


def test_a_region_of_the_environment_that_botocore_does_not_know_is_a_warning(rig: Rig) -> None:
    """Logged once, not at every reload. AWS opens new Regions, so it is no problem."""
    loader = Loader(
        "config.yaml", region="us-est-1", text="targets: [{repository: team/app}]", regions={"us-east-1"}
    )
    for _ in range(2):
        loader.load()
    (line,) = rig.told()
    assert (line["msg"], line["path"]) == ("config_warning", "registries[0].region")
    assert "'us-est-1', from AWS_REGION or the AWS profile, is not a Region" in line["problem"]


def test_a_bug_in_a_reload_is_told_and_ends_no_thread(rig: Rig) -> None:
    loop = background(rig.exporter.poller.run)
    rig.loader.error = ValueError("surprise")
    assert rig.exporter.reload() == ["an unexpected ValueError; the log has more"]
    (line,) = rig.told()
    assert (line["msg"], line["error"]) == ("reload_broke", "ValueError('surprise')")
    assert rig.successful() == 0
    rig.loader.error = None
    assert rig.exporter.reload() == []
    assert rig.successful() == 1
    rig.exporter.poller.stop()
    loop.join(5)


def test_a_bug_in_looking_is_told_and_loaded_later(rig: Rig) -> None:
    loop = background(rig.exporter.poller.run)
    rig.loader.error = ValueError("surprise")
    assert rig.look() == [5.0, RETRY_AFTER]
    (line,) = rig.told()
    assert line["msg"] == "config_look_broke"
    assert rig.successful() == 0
    rig.loader.error = None
    assert rig.look() == [RETRY_AFTER, 5.0]
    assert rig.successful() == 1
    rig.exporter.poller.stop()
    loop.join(5)


def test_what_polling_did_not_take_is_told_and_tried_again(rig: Rig) -> None:
    rig.exporter.poller.reload_timeout = 0.1
    assert rig.exporter.reload() == ["the polling loop did not take the configuration in time"]
    (line,) = rig.told()
    assert (line["msg"], line["level"]) == ("config_not_taken", "error")
    assert rig.successful() == 0
    assert not rig.loader.changed()
    loop = background(rig.exporter.poller.run)
    rig.exporter.poller.reload_timeout = 5.0
    assert rig.look() == [RETRY_AFTER, 5.0]
    assert rig.successful() == 1
    rig.exporter.poller.stop()
    loop.join(5)
