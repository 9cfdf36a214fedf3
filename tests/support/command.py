"""Runs the real command as a subprocess, and reads its pages and log."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlencode

import pytest
from prometheus_client.parser import text_string_to_metric_families

T = TypeVar("T")

#: The longest time in seconds that a test waits for anything.
PATIENCE = 40.0
#: The longest time in seconds between two looks. Each look at a page takes processor time of other tests.
LONGEST_PAUSE = 0.2


def system_program(name: str, *, package: str) -> str:
    """The path of a system program. Without it the test is skipped; it fails with REQUIRE_SYSTEM_PACKAGES."""
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is needed: apt-get install {package}"
        if os.environ.get("REQUIRE_SYSTEM_PACKAGES"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def eventually(found: Callable[[], T], *, within: float = PATIENCE) -> T:
    """The first true value of `found`. Fails after `within` seconds."""
    end, pause = time.monotonic() + within, 0.02
    while not (value := found()):
        if time.monotonic() > end:
            pytest.fail(f"not true within {within} s; the last value is {value!r}")
        threading.Event().wait(pause)
        pause = min(1.2 * pause, LONGEST_PAUSE)
    return value


class Answer(NamedTuple):
    status: int
    body: str


def ask(url: str, *, method: str = "GET") -> Answer:
    """The HTTP answer, with any status."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as response:
            return Answer(response.status, response.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read().decode())


Series = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


class Scraped(ABC):
    """A source of a metrics page."""

    @abstractmethod
    def page(self, *names: str) -> str:
        """The page, or only what it has of the named metrics."""

    def series(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        """The samples of the metric with these labels.

        Only the metric is asked for and parsed, because a test asks again and again until it is there.
        """
        lines = [line for line in self.page(name).split("\n") if line.startswith(name)]
        return [
            (sample.labels, sample.value)
            for family in text_string_to_metric_families("\n".join(lines))
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def statuses(self, **labels: str) -> set[str]:
        """The states of the images with these labels."""
        series = self.series("ecr_image_replication_status", **labels)
        return {found["status"] for found, value in series if value == 1}


class Command(Scraped):
    """A running exporter on a free port of 127.0.0.1."""

    def __init__(self, process: subprocess.Popen[str], log: Path, *, port: int = 0) -> None:
        self.process = process
        self._log = log
        if port:  # the log level may hide the address
            self.url = f"http://127.0.0.1:{port}"
            eventually(lambda: _listens(port) or process.poll() is not None)
            return
        eventually(lambda: "addresses=" in self.log() or process.poll() is not None)
        address = re.search(r"addresses=(\S+)", self.log())
        assert address, f"the command did not start:\n{self.log()}"
        self.url = f"http://{address[1]}"

    def log(self) -> str:
        return self._log.read_text()

    def page(self, *names: str) -> str:
        return ask(f"{self.url}/metrics?{urlencode([('name[]', name) for name in names])}").body

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """Send the signal. Returns the exit code and the seconds until the exit."""
        began = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(PATIENCE), time.monotonic() - began


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def environment(**extra: str) -> dict[str, str]:
    """The environment of this process without variables of AWS."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return kept | {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull} | extra


@contextmanager
def running(
    tmp_path: Path, *flags: str, port: str = "0", stdin: str = os.devnull, **env: str
) -> Iterator[Command]:
    """Run the command on `port`, by default on a free one, and kill it at the end. `stdin` is a path."""
    log = tmp_path / "exporter.log"
    arguments = [sys.executable, "-m", "exporter", f"--web.listen-address=127.0.0.1:{port}", *flags]
    terminal = os.open(stdin, os.O_RDWR | os.O_NOCTTY)
    with log.open("w") as stderr, open(terminal) as source:  # noqa: PTH123 - a descriptor
        process = subprocess.Popen(arguments, stdin=source, stderr=stderr, env=environment(**env), text=True)
    try:
        yield Command(process, log, port=int(port))
    finally:
        process.kill()
        process.wait()


def run(*flags: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "exporter", *flags],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=environment(**env),
        cwd=cwd,
    )
