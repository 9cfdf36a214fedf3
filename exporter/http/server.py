"""The HTTP server: the standard library's `ThreadingHTTPServer`, with bounds on what a client may take.

The library accepts connections, runs a thread for each, and parses requests. Sockets block without a
timeout. Instead each connection has a deadline: one that misses it is hung up, which wakes its thread.
"""

from __future__ import annotations

import contextlib
import errno
import io
import re
import socket
import ssl
import sys
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from math import inf
from selectors import EVENT_READ, DefaultSelector
from time import monotonic
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from exporter import logs
from exporter.http.routes import Request, Response, Routes, text
from exporter.http.tls import HANDSHAKE, WebConfig, shake_hands

#: Bytes of the longest request line with its headers.
_HEAD = 16 * 1024
#: Bytes that TLS encrypts by one call. Each download holds a copy of so many, also one that stalls.
_PORTION = 256 * 1024
#: Buffers that one system call takes (IOV_MAX of Linux), and connections that wait to be accepted.
_BUFFERS, _BACKLOG = 1024, 4096

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
    #: For a TLS handshake, and for the head of a request.
    request_time: float = 10.0
    #: Between two requests. Prometheus scrapes every 60 s by default, and so keeps its connection.
    idle_time: float = 120.0
    #: For a whole answer; and after how long a slow download makes room for another client.
    answer_time: float = 30.0
    slow_answer_time: float = 0.5
    #: For a client that still sends to read why it was refused.
    linger_time: float = 1.0


@dataclass(slots=True, eq=False)
class _Connection:
    client: socket.socket
    #: Monotonic times: it is hung up at the one, and from the other on if another client needs room.
    deadline: float = inf
    gives_way: float = inf
    is_counted: bool = False  # among the requests that are limited
    is_gone: bool = False  # hung up; its thread has not ended yet

    def allow(self, seconds: float, *, gives_way: float = 0.0) -> None:
        """Set both times, in seconds from now."""
        now = monotonic()
        self.deadline, self.gives_way = now + seconds, now + gives_way

    def hang_up(self) -> None:
        """Wake the thread that waits for the client. Of TLS only the socket beneath is touched."""
        self.is_gone, self.is_counted = True, False
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.client, socket.SHUT_RDWR)


class _HeadReader(io.BufferedReader):
    """Reads the lines of a head, and refuses those that a proxy could read in another way."""

    left = _HEAD

    def readline(self, _size: int | None = -1, /) -> bytes:
        line = super().readline(self.left + 1)
        self.left -= len(line)
        if self.left < 0:
            raise HTTPException(f"A request has at most {_HEAD} bytes before its body.")
        if not line.endswith(b"\n"):
            raise ConnectionAbortedError("the client left in the middle of a request")
        if b"\0" in line or b"\r" in line[:-1].removesuffix(b"\r") or line.startswith((b" ", b"\t")):
            raise ValueError("This request can be read in two ways.")
        return line


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection, in its thread."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rbufsize = 0
    rfile: _HeadReader
    server: Server

    def setup(self) -> None:
        super().setup()
        self.rfile = _HeadReader(self.rfile)
        self._bounds = self.server.bounds(self.request)
        self._tls = self._unread = False
        self.command = self.path = ""

    def handle(self) -> None:
        secure = isinstance(self.connection, ssl.SSLSocket)
        first = socket.socket.recv(self.connection, 1, socket.MSG_PEEK)
        if first and (first == HANDSHAKE) != secure:
            port, sent = ("HTTPS", "HTTP") if secure else ("HTTP", "HTTPS")
            self.send_error(400, f"This port speaks {port}, and the client {sent}.")
            return
        if isinstance(self.connection, ssl.SSLSocket):
            shake_hands(self.connection)
            self._tls = True
            self._bounds.allow(self.server.limits.request_time)
        super().handle()

    def finish(self) -> None:
        if self._unread:  # closing while the client sends would reset the connection before it reads
            self._bounds.allow(self.server.limits.linger_time)
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.connection, socket.SHUT_WR)
                while socket.socket.recv(self.connection, 65536):
                    pass
        super().finish()

    def handle_one_request(self) -> None:
        self.close_connection = True
        if self.server.stopping.is_set() or not self.rfile.peek(1):
            return
        self._bounds.allow(self.server.limits.request_time)
        self.rfile.left = _HEAD
        try:
            self.raw_requestline = self.rfile.readline()
            request = self._read_request() if self.parse_request() else None
        except HTTPException as error:  # the library answers for the headers
            self.send_error(414, str(error))
        except ValueError as error:
            self.send_error(400, str(error))
        else:
            if request:
                self._answer(request)

    def _read_request(self) -> Request:
        """Raises ValueError for what a proxy could read in another way. A request with a body is the last."""
        headers = {name.lower(): ", ".join(self.headers.get_all(name, ())) for name in self.headers}
        hosts = len(self.headers.get_all("Host", ()))
        length = headers.get("content-length", "0")
        if self.headers.defects or self.request_version == "HTTP/0.9":
            raise ValueError("This is not a request of HTTP/1.")
        if hosts > 1 or (hosts == 0 and self.request_version != "HTTP/1.0"):
            raise ValueError("A request of HTTP/1.1 has one Host header.")
        if not re.fullmatch("[0-9]+", length):
            raise ValueError("A request has one length at most, in digits.")
        self._unread = length != "0" or not headers.keys().isdisjoint({"transfer-encoding", "expect"})
        is_last = self.request_version != "HTTP/1.1" or "close" in headers.get("connection", "").lower()
        self.close_connection = self._unread or is_last
        url = urlsplit(self.path)
        return Request(self.command, unquote(url.path), parse_qs(url.query, keep_blank_values=True), headers)

    def handle_expect_100(self) -> bool:
        return True  # never sends 100 Continue; request bodies are ignored

    def _answer(self, request: Request) -> None:
        self._bounds.allow(inf, gives_way=inf)
        try:
            refusal = self.server.web.current().passwords.refusal(request.headers.get("authorization", ""))
            is_free = refusal or self.server.routes.is_probe(request)
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
        web = self.server.web.current()
        if self.server.stopping.is_set() or getattr(self.connection, "context", None) is not web.context:
            self.close_connection = True  # the client comes back, and proves by the new TLS who it is
        self.wfile = head = io.BytesIO()
        self.request_version = self.protocol_version  # the library answers HTTP/0.9 without a head
        self.send_response(response.status)
        for name, value in {**dict(response.headers), **web.settings.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(sum(map(len, response.pieces))))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        limits = self.server.limits
        self._bounds.allow(limits.answer_time, gives_way=limits.slow_answer_time)
        self._send_pieces((head.getvalue(), *(response.pieces if self.command != "HEAD" else ())))
        self._bounds.is_counted = False
        self._bounds.allow(limits.idle_time)

    def _send_pieces(self, pieces: Iterable[bytes]) -> None:
        if self._tls:
            with self.connection.makefile("wb", _PORTION) as joined:
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
            everywhere = ("::", port)
            try:
                return socket.create_server(
                    everywhere, family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG
                )
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:  # which says that the machine has only IPv4
                    raise
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, place = min(found, key=lambda info: info[0] != socket.AF_INET)
        return socket.create_server(place, family=family, backlog=_BACKLOG)
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        raise OSError(f"cannot listen on {address}: {reason.partition(' (')[0]}") from error


def _name(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Server(ThreadingHTTPServer):
    """Serves routes at several addresses. Binds when it is made; raises OSError that names the address."""

    def __init__(
        self, listen_addresses: Sequence[str], routes: Routes, web: WebConfig, *, limits: Limits | None = None
    ) -> None:
        self.routes, self.web, self.limits = routes, web, limits or Limits()
        self.stopping = threading.Event()
        self._open: dict[socket.socket, _Connection] = {}
        #: Guards the connections; notified when one ends.
        self._changed = threading.Condition()
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()  # the library has one socket; ours are in the selector
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
        end = monotonic() + deadline
        self.stopping.set()
        self.shutdown()
        self.server_close()
        with self._changed:
            for connection in self._open.values():
                if connection.gives_way <= monotonic() and not connection.is_counted:
                    connection.hang_up()
            self._changed.wait_for(lambda: not self._open, max(0.0, end - monotonic()))
            for connection in self._open.values():
                connection.hang_up()

    def server_close(self) -> None:
        for listener in self._sockets:
            listener.close()
        self._selector.close()

    def fileno(self) -> int:
        return self._selector.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            listener: Any = self._selector.select(0)[0][0].fileobj
            client, address = listener.accept()
        except (OSError, IndexError) as error:
            self.stopping.wait(0.1)  # out of file descriptors, which passes
            raise OSError(f"cannot accept: {error}") from error
        context = self.web.current().context
        if context:
            client = context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        return client, address

    def process_request(self, request: Any, client_address: Any) -> None:
        connection = _Connection(request)
        connection.allow(self.limits.request_time)
        with self._changed:
            if has_room := self._changed.wait_for(self._has_room, timeout=1.0):
                self._open[request] = connection
        if has_room:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._changed:
            self._open.pop(request, None)
            self._changed.notify_all()

    def bounds(self, client: socket.socket) -> _Connection:
        """The bounds of an open connection."""
        return self._open[client]

    def count(self, connection: _Connection) -> bool:
        """Count its request until the answer is sent; False if there are too many.

        Waits a little: a download that was just asked for may turn out to be slow.
        """
        end = monotonic() + 2 * self.limits.slow_answer_time
        with self._changed:
            while not self._has_capacity():
                if monotonic() > end:
                    return False
                self._changed.wait(0.05)
            connection.is_counted = True
            return True

    def _has_capacity(self) -> bool:
        counted = [connection for connection in self._open.values() if connection.is_counted]
        return len(counted) < self.limits.requests or _make_room(counted)

    def _has_room(self) -> bool:
        there = [connection for connection in self._open.values() if not connection.is_gone]
        return len(self._open) < self.limits.connections + self.limits.leaving and (
            len(there) < self.limits.connections or _make_room(there)
        )

    def service_actions(self) -> None:
        # The library calls it twice a second, and after each new connection.
        with self._changed:
            now = monotonic()
            for connection in self._open.values():
                if connection.deadline < now:
                    connection.hang_up()

    def handle_error(self, *_: object) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):  # gone, hung up, or not TLS
            _log.debug("connection_ended", error=str(error))
        elif error:
            _log.broken("connection_broke", error)


def _make_room(connections: Iterable[_Connection]) -> bool:
    """Hang up on one that gives way: on the longest silent, or else on the slowest download."""
    giving_way = [connection for connection in connections if connection.gives_way <= monotonic()]
    if giving_way:
        min(giving_way, key=lambda connection: (connection.is_counted, connection.gives_way)).hang_up()
    return bool(giving_way)
