"""The requests of one connection: read strictly, answered by the routes, sent without copies."""

from __future__ import annotations

import io
import socket
import ssl
from collections import deque
from collections.abc import Sequence
from http import HTTPStatus
from http.client import LineTooLong
from http.server import BaseHTTPRequestHandler
from itertools import islice
from time import monotonic
from typing import Any

from exporter import logs
from exporter.http.connections import Connections, Phase
from exporter.http.requests import HEAD, HeadReader, body_length, is_last, read_request
from exporter.http.routes import Request, Response, Routes, text
from exporter.http.tls import HANDSHAKE, PORTION, shake_hands
from exporter.http.web_config import WebConfig

#: Buffers that one system call takes (IOV_MAX of Linux).
_BUFFERS = 1024

_OVERLOADED = text(503, "Too many requests at once, try again later.", ("Retry-After", "1"))
_BROKEN = text(500, "The exporter broke over this request; its log says how.")

_log = logs.get("server")


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rbufsize = 0
    rfile: HeadReader

    def __init__(self, routes: Routes, web: WebConfig, connections: Connections, *request: Any) -> None:
        self._routes = routes
        self._web = web
        self._connections = connections
        self._limits = connections.limits
        super().__init__(*request)

    def setup(self) -> None:
        super().setup()
        self.rfile = HeadReader(self.rfile)
        self._bounds = self._connections.get(self.request)
        self._tls = self._unread = False

    def handle(self) -> None:
        self.command = self.path = ""
        secure = isinstance(self.connection, ssl.SSLSocket)
        first = socket.socket.recv(self.connection, 1, socket.MSG_PEEK)
        if first and (first == HANDSHAKE) != secure:
            port, sent = ("HTTPS", "HTTP") if secure else ("HTTP", "HTTPS")
            self.send_error(400, f"This port speaks {port}, and the client {sent}.")
            return
        if isinstance(self.connection, ssl.SSLSocket):
            shake_hands(self.connection)
            self._tls = True
            self._bounds.enter(Phase.WAITING, self._limits.request_time)
        super().handle()

    def finish(self) -> None:
        try:
            if self._unread:  # closing while the client sends would reset the connection before it reads
                self._bounds.enter(Phase.WAITING, self._limits.linger_time)
                socket.socket.shutdown(self.connection, socket.SHUT_WR)
                while socket.socket.recv(self.connection, 65536):
                    pass
        finally:
            super().finish()

    def handle_one_request(self) -> None:
        self.close_connection = True
        if self._connections.stopping.is_set() or not self.rfile.peek(1):
            return
        # A head has this time from its first byte; the first head of a connection from when that began.
        left = self._bounds.end - monotonic()
        self._bounds.enter(Phase.WAITING, min(left, self._limits.request_time))
        try:
            self.raw_requestline = self.rfile.request_line()
            request = self._read_request() if self.parse_request() else None
        except LineTooLong:
            self.send_error(414, f"The request line is longer than {HEAD} bytes.")
        except ValueError as error:
            self.send_error(400, str(error))
        else:
            if request:
                self._answer(request)

    def _read_request(self) -> Request:
        """Raises ValueError for a request that is refused."""
        if self.rfile.ambiguous:
            raise ValueError("This request can be read in two ways.")
        request = read_request(self.command, self.path, self.request_version, self.headers)
        length = body_length(request)
        self._unread = length is None
        self.close_connection = length is None or is_last(request, self.request_version)
        self.rfile.skip(length or 0)
        return request

    def handle_expect_100(self) -> bool:
        return True  # never sends 100 Continue; request bodies are ignored

    def _answer(self, request: Request) -> None:
        self._bounds.enter(Phase.ANSWERING)
        refusal = self._web.refusal(request.headers.get("authorization", ""))
        is_free = refusal or self._routes.is_probe(request)
        try:
            if not (is_free or self._connections.count(self._bounds)):
                refusal = _OVERLOADED
            response = refusal or self._routes.answer(request)
        except Exception as error:  # noqa: BLE001 - one broken page does not end the others
            _log.broken("answer_broke", error, path=request.path)
            response = _BROKEN
        self._send(response)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.close_connection = self._unread = True
        self._send(text(code, explain or message or HTTPStatus(code).description))

    def _send(self, response: Response) -> None:
        if self._connections.stopping.is_set() or not self._web.is_current(self.connection):
            self.close_connection = True  # the client comes back, and proves by the new TLS who it is
        headers = {**dict(response.headers), **self._web.headers()}
        self.wfile = head = io.BytesIO()
        self.request_version = self.protocol_version  # the library answers HTTP/0.9 without a head
        self.send_response(response.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(sum(map(len, response.pieces))))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self._bounds.enter(Phase.SENDING, self._limits.answer_time)
        self._send_pieces((head.getvalue(), *(response.pieces if self.command != "HEAD" else ())))
        self._bounds.counts = False
        self._bounds.enter(Phase.WAITING, self._limits.idle_time)

    def _send_pieces(self, pieces: Sequence[bytes]) -> None:
        if self._tls:
            with self.connection.makefile("wb", PORTION) as joined:
                joined.writelines(pieces)
            return
        # The kernel takes the pieces without a copy, and the thread waits once for the interpreter.
        left = deque(memoryview(piece) for piece in pieces if piece)
        while left:
            sent = socket.socket.sendmsg(self.connection, list(islice(left, _BUFFERS)))
            while left and sent >= len(left[0]):
                sent -= len(left.popleft())
            if sent:
                left[0] = left[0][sent:]

    def version_string(self) -> str:
        return "ecr-replication-exporter"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002 - the library's
        _log.debug("answered", method=self.command, path=self.path.partition("?")[0], status=code)
