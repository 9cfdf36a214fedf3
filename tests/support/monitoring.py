"""A real Prometheus and Alertmanager and the exporter as subprocesses, and a receiver of notifications."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from exporter.demo import REGION
from support.command import PATIENCE, Command, ask, eventually, running
from support.embedded_aws import EmbeddedAWS

EXAMPLES = Path(__file__).parents[2] / "examples" / "prometheus"


def example(name: str) -> Any:
    """What a file of examples/prometheus holds, for a test to change its times and addresses."""
    return yaml.safe_load((EXAMPLES / name).read_text())


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextmanager
def exporter(folder: Path, aws: EmbeddedAWS, address: str, *, config: str) -> Iterator[Command]:
    """Run the exporter at an address that Prometheus scrapes. Its configuration is a file in the folder."""
    keys = aws.session().get_credentials()
    assert keys is not None
    file = folder / "config.yaml"
    file.write_text(config)
    with running(
        folder,
        f"--config.file={file}",
        port=address.rpartition(":")[2],
        AWS_ACCESS_KEY_ID=keys.access_key,
        AWS_SECRET_ACCESS_KEY=keys.secret_key,
        AWS_REGION=REGION,
        AWS_ENDPOINT_URL=aws.endpoint_url,
    ) as command:
        yield command


@contextmanager
def _process(log: Path, *arguments: str) -> Iterator[None]:
    with log.open("w") as stderr:
        process = subprocess.Popen(arguments, stdout=stderr, stderr=stderr)
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


class Prometheus:
    def __init__(self, url: str) -> None:
        self._url = url

    def answer(self, expression: str) -> Any:
        """What the API answers to an instant query: its errors too."""
        url = f"{self._url}/api/v1/query?query={urllib.parse.quote(expression)}"
        return json.loads(ask(url).body)

    def query(self, expression: str) -> list[Mapping[str, Any]]:
        """The result of an instant query that is none of an error."""
        answer = self.answer(expression)
        assert answer["status"] == "success", answer
        found: list[Mapping[str, Any]] = answer["data"]["result"]
        return found

    def firing(self) -> list[Mapping[str, Any]]:
        """The alerts that fire, as the API tells of them."""
        alerts = json.loads(ask(f"{self._url}/api/v1/alerts").body)["data"]["alerts"]
        return [alert for alert in alerts if alert["state"] == "firing"]


@contextmanager
def prometheus(
    program: str, folder: Path, config: Mapping[str, Any], *more_flags: str
) -> Iterator[Prometheus]:
    """Prometheus on a free port, once it is ready. A later one finds its data in `folder`."""
    folder.mkdir(exist_ok=True)
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    address = free_address()
    flags = (
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        *more_flags,
    )
    with _process(folder / "prometheus.log", program, *flags):
        eventually(lambda: _is_ready(f"http://{address}"))
        yield Prometheus(f"http://{address}")


@contextmanager
def alertmanager(program: str, folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """The address of an Alertmanager without peers, once it is ready."""
    folder.mkdir(exist_ok=True)
    file = folder / "alertmanager.yml"
    file.write_text(yaml.safe_dump(config))
    address = free_address()
    flags = (
        f"--config.file={file}",
        f"--storage.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    )
    with _process(folder / "alertmanager.log", program, *flags):
        eventually(lambda: _is_ready(f"http://{address}"))
        yield address


def _is_ready(url: str) -> bool:
    try:
        return ask(f"{url}/-/ready").status == 200
    except OSError:
        return False  # not up yet


class Receiver:
    """A webhook that keeps what it is told."""

    def __init__(self, notifications: list[Any] | None = None) -> None:
        kept: list[Any] = [] if notifications is None else notifications
        self.notifications = kept

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                kept.append(json.loads(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it has there
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
