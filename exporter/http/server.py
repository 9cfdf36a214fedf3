"""The HTTP server: the standard library's `ThreadingHTTPServer`, with bounds on what a client may take.

The library accepts connections, runs a thread for each, and parses requests. Sockets block without a
timeout. Instead each connection has a deadline: the server hangs up on one that misses it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import socket
import ssl
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
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
#: Bytes that wait in the system for a client that does not read. Linux doubles it; its own limit is 4 MiB.
_SEND_BUFFER = 128 * 1024
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
    #: For a TLS handshake, and for the head of a request.
    request_time: float = 10.0
    #: Between two requests. Prometheus scrapes every 60 s by default, and so keeps its connection.
    idle_time: float = 120.0
    #: For a whole answer; and after how long a slow download makes room for another client.
    answer_time: float = 30.0
    slow_answer_time: float = 0.5
    #: Until there is room for one more connection or request.
    room_time: float = 1.0
    #: For a client that still sends to read why it was refused.
    linger_time: float = 1.0


@dataclass(slots=True, eq=False)
class _Connection:
    client: socket.socket
    #: Monotonic times: it is hung up at the one, and from the other on if another client needs room.
    deadline: float = inf
    gives_way: float = inf
    is_counted: bool = False  # among the requests that are limited

    def allow(self, seconds: float, *, gives_way: float = 0.0) -> None:
        """Set both times, in seconds from now."""
        now = monotonic()
        self.deadline, self.gives_way = now + seconds, now + gives_way

    def hang_up(self) -> None:
        """Wake the thread that waits for the client. Of TLS only the socket beneath is touched."""
        self.gives_way = inf
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.client, socket.SHUT_RDWR)


class _HeadReader(io.BufferedReader):
    """Reads the lines of a head. One that is too long or not complete is an error."""

    left = _HEAD

    def readline(self, _size: int | None = -1, /) -> bytes:
        line = super().readline(self.left + 1)
        self.left -= len(line)
        if self.left < 0:
            raise HTTPException(f"A request has at most {_HEAD} bytes before its body.")
        if not line.endswith(b"\n"):
            raise ConnectionAbortedError("the client left in the middle of a request")
        return line


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection, in its thread."""

    protocol_version = "HTTP/1.1"
    #: For what has no version. The library answers HTTP/0.9, its own default, without a status.
    default_request_version = request_version = "HTTP/1.0"
    command = path = ""
    disable_nagle_algorithm = True
    rbufsize = 0
    rfile: _HeadReader
    server: Server

    def setup(self) -> None:
        self._bounds: _Connection = self.request
        first, context = self._bounds.client.recv(1, socket.MSG_PEEK), self.server.web.current().context
        self._unread = bool(first) and (first == HANDSHAKE) != bool(context)
        if context and not self._unread:
            shake_hands(self.server.secure(self._bounds, context))
            self._bounds.allow(self.server.limits.request_time)
        self.request = self._bounds.client
        super().setup()
        self.rfile = _HeadReader(self.rfile)

    def handle(self) -> None:
        if not self._unread:
            super().handle()
        elif self.server.web.current().context:
            self.send_error(400, "This port speaks HTTPS, and the client HTTP.")
        else:
            self.send_error(400, "This port speaks HTTP, and the client HTTPS.")

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
            if self.parse_request():
                self._answer(self._read_request())
        except HTTPException as error:  # the library answers for the headers
            self.send_error(414, str(error))
        except ValueError as error:
            self.send_error(400, str(error))

    def _read_request(self) -> Request:
        """Raises ValueError. No body is read, so a request with one is the last of its connection."""
        if self.headers.defects:
            raise ValueError("A line of the request is not a header.")
        headers = {name.lower(): ", ".join(self.headers.get_all(name, ())) for name in self.headers}
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        is_last = self.request_version != "HTTP/1.1" or "close" in headers.get("connection", "").lower()
        self._unread = has_body or "expect" in headers
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
        web, limits = self.server.web.current(), self.server.limits
        if self.server.stopping.is_set() or getattr(self.connection, "context", None) is not web.context:
            self.close_connection = True  # the client comes back, and proves by the new TLS who it is
        self.wfile = head = io.BytesIO()
        self.send_response(response.status)
        for name, value in {**dict(response.headers), **web.settings.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(sum(map(len, response.pieces))))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self._bounds.allow(limits.answer_time, gives_way=limits.slow_answer_time)
        self._send_pieces((head.getvalue(), *(response.pieces if self.command != "HEAD" else ())))
        self._bounds.is_counted = False
        self._bounds.allow(limits.idle_time)

    def _send_pieces(self, pieces: Iterable[bytes]) -> None:
        if isinstance(self.connection, ssl.SSLSocket):
            with self.connection.makefile("wb", _PORTION) as joined:
                joined.writelines(pieces)
            return
        # The kernel takes the pieces without a copy, and the thread waits once for the interpreter.
        left = deque(memoryview(piece) for piece in pieces if piece)
        while left:
            sent = self.connection.sendmsg(list(islice(left, _BUFFERS)))
            while left and sent >= len(left[0]):
                sent -= len(left.popleft())
            if sent:
                left[0] = left[0][sent:]

    def version_string(self) -> str:
        return "ecr-replication-exporter"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002 - the library's
        _log.debug("answered", method=self.command, path=self.path.partition("?")[0], status=code)


def _listen(host: str, port: int) -> socket.socket:
    """Bind to IPv6 and IPv4 if there is no host. Raises OSError that names the address."""
    try:
        if host in ("", "::") and socket.has_dualstack_ipv6():
            both = partial(socket.create_server, family=socket.AF_INET6, dualstack_ipv6=True)
            try:
                return both(("::", port), backlog=_BACKLOG)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:  # which says that the machine has only IPv4
                    raise
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, place = min(found, key=lambda info: info[0] != socket.AF_INET)
        return socket.create_server(place, family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise OSError(f"cannot listen on {_name(host, port)}: {reason}") from error


def _name(host: str, port: int, *_: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Server(ThreadingHTTPServer):
    """Serves routes at several addresses. Binds when it is made; raises OSError that names the address."""

    def __init__(
        self,
        addresses: Sequence[tuple[str, int]],
        routes: Routes,
        web: WebConfig,
        *,
        limits: Limits | None = None,
    ) -> None:
        self.routes, self.web, self.limits = routes, web, limits or Limits()
        self.stopping = threading.Event()
        self._open: set[_Connection] = set()
        #: Guards the connections; notified when one ends.
        self._changed = threading.Condition()
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()  # the library has one socket; ours are in the selector
        self._sockets: list[socket.socket] = []
        self._selector = DefaultSelector()
        try:
            for address in addresses:
                self._sockets.append(listener := _listen(*address))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
                self._selector.register(listener, EVENT_READ)
        except OSError:
            self.server_close()
            raise
        #: host:port of each, with the port that the system chose for port 0.
        self.addresses = tuple(_name(*listener.getsockname()) for listener in self._sockets)

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
            for connection in self._open:
                if connection.gives_way <= monotonic() and not connection.is_counted:
                    connection.hang_up()
            self._changed.wait_for(lambda: not self._open, max(0.0, end - monotonic()))
            for connection in self._open:
                connection.hang_up()

    def server_close(self) -> None:
        for listener in self._sockets:
            listener.close()
        self._selector.close()

    def fileno(self) -> int:
        return self._selector.fileno()

    def get_request(self) -> tuple[Any, Any]:
        try:
            listener: Any = self._selector.select(0)[0][0].fileobj
            client, address = listener.accept()
        except (OSError, IndexError) as error:
            self.stopping.wait(0.1)  # out of file descriptors, which passes
            raise OSError(f"cannot accept: {error}") from error
        return _Connection(client), address

    def process_request(self, request: Any, client_address: Any) -> None:
        request.allow(self.limits.request_time)
        with self._changed:
            limit = self.limits.connections
            if has_room := self._find_room(limit, lambda _: True, spare=limit // 16):
                self._open.add(request)
        if has_room:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request.client)
        with self._changed:
            self._open.discard(request)
            self._changed.notify_all()

    def secure(self, connection: _Connection, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Put TLS on a connection, before its handshake."""
        with self._changed:  # nothing hangs up while the socket moves
            tls = context.wrap_socket(connection.client, server_side=True, do_handshake_on_connect=False)
            connection.client = tls
        return tls

    def count(self, connection: _Connection) -> bool:
        """Count its request until the answer is sent; False if there are too many."""
        with self._changed:
            connection.is_counted = self._find_room(self.limits.requests, lambda each: each.is_counted)
        return connection.is_counted

    def _find_room(self, limit: int, is_one: Callable[[_Connection], bool], *, spare: int = 0) -> bool:
        """Wait until there are fewer such connections. Hang up on one that gives way, early for the spare."""
        end = monotonic() + self.limits.room_time
        while len(held := [each for each in self._open if is_one(each)]) >= limit - spare:
            now = monotonic()
            if giving_way := [each for each in held if each.gives_way <= now]:
                # The longest silent, or else the slowest download.
                min(giving_way, key=lambda each: (each.is_counted, each.gives_way)).hang_up()
            if len(held) < limit or now > end:
                return len(held) < limit
            self._changed.wait(0.05)
        return True

    def service_actions(self) -> None:
        # The library calls it twice a second, and after each new connection.
        with self._changed:
            now = monotonic()
            for connection in self._open:
                if connection.deadline < now:
                    connection.hang_up()

    def handle_error(self, *_: object) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):  # gone, hung up, or not TLS
            _log.debug("connection_ended", error=str(error))
        elif error:
            _log.broken("connection_broke", error)
