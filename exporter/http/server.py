"""The HTTP server: the standard library's `ThreadingHTTPServer`, with bounds on what a client may take.

The library accepts connections, runs a thread for each, and parses requests. Sockets block without a
timeout. Instead each connection has a deadline: one that misses it is hung up, which wakes its thread.
"""

from __future__ import annotations

import contextlib
import io
import re
import socket
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from http.client import LineTooLong
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from math import inf
from selectors import EVENT_READ, DefaultSelector
from typing import Any

from exporter import logs
from exporter.http.requests import HEAD, HeadReader, body_length, is_last, read_request
from exporter.http.routes import Request, Response, Routes, text
from exporter.http.tls import HANDSHAKE, PORTION, shake_hands
from exporter.http.web_config import WebConfig

#: Connections that the kernel queues, and buffers that one system call takes (IOV_MAX of Linux).
_BACKLOG, _BUFFERS = 4096, 1024

_OVERLOADED = text(503, "Too many requests at once, try again later.", ("Retry-After", "1"))
_BROKEN = text(500, "The exporter broke over this request; its log says how.")

_log = logs.get("server")


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take. Times are in seconds."""

    requests: int = 40
    connections: int = 256
    #: Threads of connections that were hung up and have not ended yet.
    leaving: int = 16
    #: For a TLS handshake, and for a whole request.
    request_time: float = 10.0
    #: Between two requests. Prometheus scrapes every 60 s by default, and so keeps its connection.
    idle_time: float = 120.0
    #: For a whole answer; and after how long a slow download makes room for another client.
    answer_time: float = 30.0
    slow_answer_time: float = 0.5
    #: For a client that still sends to read why it was refused.
    linger_time: float = 1.0


def parse_address(address: str) -> tuple[str, int]:
    """The host and port of `:PORT`, `host:PORT` or `[::1]:PORT`. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535 or bracketed != (":" in host):
        raise ValueError(f"{address!r} is not an address; write :PORT, host:PORT or [IPv6]:PORT")
    return host.strip("[]"), int(port)


def _listen(address: str) -> socket.socket:
    """For IPv6 and IPv4 if no host is given. Raises OSError that names the address."""
    try:
        host, port = parse_address(address)
        if host in ("", "::") and socket.has_dualstack_ipv6():
            return socket.create_server(
                ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG
            )
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, place = min(found, key=lambda info: info[0] != socket.AF_INET)
        return socket.create_server(place, family=family, backlog=_BACKLOG)
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        raise OSError(f"cannot listen on {address}: {reason.partition(' (')[0]}") from error


def _name(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _hang_up(client: socket.socket) -> None:
    """Wake the thread that waits for the client. Of TLS only the socket beneath is touched."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(client, socket.SHUT_RDWR)


class _Phase(Enum):
    WAITING = auto()  # for a handshake or a request
    ANSWERING = auto()
    SENDING = auto()
    LEAVING = auto()  # hung up; the thread has not ended yet


class _Connection:
    """One client: its own thread tells the phase, other threads hang up."""

    def __init__(self, client: socket.socket, seconds: float) -> None:
        self._client = client
        self.phase, self.since, self.end = _Phase.WAITING, time.monotonic(), time.monotonic() + seconds
        self.counts = False  # among the requests that are limited

    def enter(self, phase: _Phase, seconds: float = inf) -> None:
        """Begin a phase that may take so long. Raises OSError after `hang_up`."""
        if self.phase is _Phase.LEAVING:
            raise TimeoutError("was hung up")
        self.phase, self.since = phase, time.monotonic()
        self.end = self.since + seconds

    def hang_up(self) -> None:
        self.phase, self.end, self.counts = _Phase.LEAVING, inf, False
        _hang_up(self._client)


class Server(ThreadingHTTPServer):
    """Serves routes at several addresses. Binds when it is made; raises OSError that names the address."""

    block_on_close = False

    def __init__(
        self, listen_addresses: Sequence[str], routes: Routes, web: WebConfig, *, limits: Limits | None = None
    ) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()  # the library has one socket; ours are in the selector
        self.routes = routes
        self.web = web
        self.limits = limits or Limits()
        self.stopping = threading.Event()
        self.connections: dict[socket.socket, _Connection] = {}
        #: Guards the connections and their phases; notified when one ends.
        self._changed = threading.Condition()
        self._sockets: list[socket.socket] = []
        self._selector = DefaultSelector()
        try:
            for address in listen_addresses:
                self._sockets.append(_listen(address))
                self._selector.register(self._sockets[-1], EVENT_READ)
        except OSError:
            self.server_close()
            raise
        #: host:port of each, with the port that the system chose for port 0.
        self.addresses = tuple(map(_name, self._sockets))

    def start(self) -> None:
        """Begin to answer."""
        threading.Thread(target=self.serve_forever, name="accept", daemon=True).start()

    def stop(self, deadline: float) -> None:
        """Accept nothing more; answers under way have `deadline` seconds to end."""
        end = time.monotonic() + deadline
        self.stopping.set()
        for listener in self._sockets:
            _hang_up(listener)  # wakes the loop
        self.shutdown()
        self.server_close()
        with self._changed:
            self._hang_up(lambda connection: connection.phase is _Phase.WAITING)
            self._changed.wait_for(lambda: not self.connections, end - time.monotonic())
            self._hang_up(lambda _: True)

    def server_close(self) -> None:
        for listener in self._sockets:
            listener.close()
        self._selector.close()

    def fileno(self) -> int:
        return self._selector.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            ready: Any = self._selector.select(0)[0][0].fileobj
            return ready.accept()  # type: ignore[no-any-return]
        except OSError:
            self.stopping.wait(0.1)  # out of file descriptors, which passes
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        client = self.web.secure(request)
        with self._changed:
            if room := self._changed.wait_for(self._has_room, timeout=1.0):
                self.connections[client] = _Connection(client, self.limits.request_time)
        if not room:
            self.shutdown_request(client)
            return
        try:
            super().process_request(client, client_address)
        except RuntimeError:  # the system has no thread left
            self.shutdown_request(client)
            raise

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._changed:
            self.connections.pop(request, None)
            self._changed.notify_all()

    def service_actions(self) -> None:
        """Hang up on who is late. The library calls it twice a second, and after each new connection."""
        now = time.monotonic()
        with self._changed:
            self._hang_up(lambda connection: connection.end < now)

    def handle_error(self, *_: object) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):  # gone, hung up, or not TLS
            _log.debug("connection_ended", error=str(error))
        elif error:
            _log.broken("connection_broke", error)

    def count(self, connection: _Connection) -> bool:
        """Count its request until the answer is sent; False if there are too many.

        Waits a little: a download that was just asked for may turn out to be slow.
        """
        end = time.monotonic() + self.limits.slow_answer_time
        with self._changed:
            while not self._has_capacity():
                if time.monotonic() > end:
                    return False
                self._changed.wait(0.05)
            connection.counts = True
            return True

    def _has_capacity(self) -> bool:
        count = sum(connection.counts for connection in self.connections.values())
        return count < self.limits.requests or self._make_room(_Phase.SENDING, self.limits.slow_answer_time)

    def _has_room(self) -> bool:
        if len(self.connections) >= self.limits.connections + self.limits.leaving:
            return False  # rather than wait for threads that end, which takes its time on a busy machine
        there = sum(connection.phase is not _Phase.LEAVING for connection in self.connections.values())
        return (
            there < self.limits.connections
            or self._make_room(_Phase.WAITING, 0.0)
            or self._make_room(_Phase.SENDING, self.limits.slow_answer_time)
        )

    def _make_room(self, phase: _Phase, age: float) -> bool:
        """Hang up on the one that has been longest in the phase, and at least for `age` seconds."""
        latest = time.monotonic() - age
        found = [c for c in self.connections.values() if c.phase is phase and c.since <= latest]
        if found:
            min(found, key=lambda connection: connection.since).hang_up()
        return bool(found)

    def _hang_up(self, which: Callable[[_Connection], bool]) -> None:
        for connection in filter(which, self.connections.values()):
            connection.hang_up()


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rbufsize = 0
    server: Server
    rfile: HeadReader

    def setup(self) -> None:
        super().setup()
        self.rfile = HeadReader(self.rfile)
        self._bounds = self.server.connections[self.request]
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
            self._bounds.enter(_Phase.WAITING, self.server.limits.request_time)
        super().handle()

    def finish(self) -> None:
        try:
            if self._unread:  # closing while the client sends would reset the connection before it reads
                self._bounds.enter(_Phase.WAITING, self.server.limits.linger_time)
                socket.socket.shutdown(self.connection, socket.SHUT_WR)
                while socket.socket.recv(self.connection, 65536):
                    pass
        finally:
            super().finish()

    def handle_one_request(self) -> None:
        self.close_connection = True
        if self.server.stopping.is_set() or not self.rfile.peek(1):
            return
        # A head has this time from its first byte; the first head of a connection from when that began.
        left = self._bounds.end - time.monotonic()
        self._bounds.enter(_Phase.WAITING, min(left, self.server.limits.request_time))
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
        self._bounds.enter(_Phase.ANSWERING)
        refusal = self.server.web.refusal(request.headers.get("authorization", ""))
        is_free = refusal or self.server.routes.is_probe(request)
        try:
            if not (is_free or self.server.count(self._bounds)):
                refusal = _OVERLOADED
            response = refusal or self.server.routes.answer(request)
        except Exception as error:  # noqa: BLE001 - one broken page does not end the others
            _log.broken("answer_broke", error, path=request.path)
            response = _BROKEN
        self._send(response)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.close_connection = self._unread = True
        self._send(text(code, explain or message or HTTPStatus(code).description))

    def _send(self, response: Response) -> None:
        web = self.server.web
        if self.server.stopping.is_set() or not web.is_current(self.connection):
            self.close_connection = True  # the client comes back, and proves by the new TLS who it is
        headers = {**dict(response.headers), **web.headers()}
        self.wfile = head = io.BytesIO()
        self.request_version = self.protocol_version  # the library answers HTTP/0.9 without a head
        self.send_response(response.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(sum(map(len, response.pieces))))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self._bounds.enter(_Phase.SENDING, self.server.limits.answer_time)
        self._send_pieces((head.getvalue(), *(response.pieces if self.command != "HEAD" else ())))
        self._bounds.counts = False
        self._bounds.enter(_Phase.WAITING, self.server.limits.idle_time)

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
        _log.debug("answered", method=self.command, path=self.path, status=code)
