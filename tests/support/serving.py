"""A server on a free port, for tests."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from exporter.http.routes import Request, Response, Routes
from exporter.http.server import Limits, Server
from exporter.http.web_config import WebConfig
from exporter.metrics.exposition import Page


class Echo(Routes):
    """Answers with the request as JSON, or with the result of `reply`."""

    def __init__(self, reply: Callable[[Request], Response] | None = None) -> None:
        super().__init__(_NoApp())
        self._reply = reply or self._echo

    @staticmethod
    def _echo(request: Request) -> Response:
        fields = {"method": request.method, "path": request.path, "query": dict(request.query)}
        return Response(200, (json.dumps({**fields, "headers": dict(request.headers)}).encode(),))

    def answer(self, request: Request) -> Response:
        return self._reply(request)


class _NoApp:
    """`Echo` answers every request itself, so a call of these methods is an error."""

    def page(self, *, accept: str, accept_encoding: str, names: Sequence[str]) -> Page:
        raise NotImplementedError

    def healthy(self) -> str | None:
        raise NotImplementedError

    def ready(self) -> str | None:
        raise NotImplementedError

    def config(self) -> str:
        raise NotImplementedError

    def reload(self) -> Sequence[str]:
        raise NotImplementedError

    def quit(self) -> None:
        raise NotImplementedError


@contextmanager
def serving(
    routes: Routes | None = None, limits: Limits | None = None, path: str | None = None
) -> Iterator[Server]:
    server = Server([("127.0.0.1", 0)], routes or Echo(), WebConfig(path), limits=limits)
    server.start()
    try:
        yield server
    finally:
        server.stop(1.0)


def sip(connection: socket.socket) -> int:
    """Read an answer slowly, a megabyte at a time, until the server ends it. Returns the number of bytes."""
    pause, size = threading.Event(), 0
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while received := sum(len(connection.recv(16384)) for _ in range(64)):
            size += received
            pause.wait(0.05)
    return size


def port_of(server: Server) -> int:
    return int(server.addresses[0].rpartition(":")[2])
