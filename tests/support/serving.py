"""A server on a free port, for tests."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from exporter.http.routes import App, Request, Response, Routes
from exporter.http.server import Limits, Server
from exporter.http.web_config import WebConfig


class Echo(Routes):
    """Answers with the request as JSON, or with the result of `reply`."""

    def __init__(self, reply: Callable[[Request], Response] | None = None, *, max_requests: int = 40) -> None:
        super().__init__(cast("App", None), max_requests=max_requests)  # `answer` never asks the app
        self._reply = reply or self._echo

    @staticmethod
    def _echo(request: Request) -> Response:
        fields = {"method": request.method, "path": request.path, "query": dict(request.query)}
        return Response(200, (json.dumps({**fields, "headers": dict(request.headers)}).encode(),))

    def answer(self, request: Request) -> Response:
        return self._reply(request)


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
