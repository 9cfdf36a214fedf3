"""The HTTP server: the standard library's `ThreadingHTTPServer`, with bounds on what a client may take.

The library accepts connections, runs a thread for each, and parses requests. Sockets block without a
timeout. Instead each connection has a deadline: the server hangs up on one that misses it.
"""

from __future__ import annotations

import contextlib
import io
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from selectors import EVENT_READ, DefaultSelector
from time import monotonic
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from exporter import logs
from exporter.http.routes import Request, Response, Routes
from exporter.http.tls import HANDSHAKE, shake_hands
from exporter.http.web_config import WebConfig

#: Bytes of the longest request line with its headers.
_HEAD = 16 * 1024
#: Bytes that one call sends: few calls, because a thread waits for the interpreter after each of them. Each
#: download holds a copy of so many, also one that stalls.
_PORTION = 64 * 1024
#: Bytes that wait in the system for a client that does not read. Linux doubles it; its own limit is 4 MiB.
_SEND_BUFFER = 128 * 1024
#: Connections that wait to be accepted.
_BACKLOG = 4096
#: Seconds between two looks for late connections, and for the request to stop.
_LOOK_EVERY = 0.1

_log = logs.get("server")


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take. Times are in seconds."""

    connections: int = 256
    #: For a TLS handshake, and for the head of a request.
    request_time: float = 10.0
    #: Between two requests. Prometheus scrapes every 60 s by default, and so keeps its connection.
    idle_time: float = 120.0
    #: For a whole answer; and after how long a slow download makes room for another client.
    answer_time: float = 30.0
    slow_answer_time: float = 0.5
    #: Until there is room for one more connection.
    room_time: float = 1.0
    #: For a client that still sends to read why it was refused.
    linger_time: float = 1.0


@dataclass(slots=True, eq=False)
class _Connection:
    client: socket.socket
    #: Monotonic times: it is hung up at the one, and from the other on if another client needs room.
    deadline: float = inf
    gives_way: float = inf
    is_answered: bool = False  # an answer is made or sent

    def allow(self, seconds: float, *, gives_way: float = 0.0, is_answered: bool = False) -> None:
        """Set both times, in seconds from now."""
        now = monotonic()
        self.deadline, self.gives_way, self.is_answered = now + seconds, now + gives_way, is_answered

    def hang_up(self) -> None:
        """Wake the thread that waits for the client. Of TLS only the socket beneath is touched."""
        self.gives_way = inf
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.client, socket.SHUT_RDWR)


class _Head(io.BufferedReader):
    """Reads requests without their bodies. Counts down the bytes that are left of the longest one."""

    left = _HEAD

    def readline(self, _: int | None = -1, /) -> bytes:
        """A line. Raises HTTPException if the request is too long, and OSError if it ends in the middle."""
        line = super().readline(self.left)
        self.left -= len(line)
        if not line.endswith(b"\n"):
            if self.left:
                raise ConnectionAbortedError("the client left in the middle of a request")
            raise HTTPException(f"A request has at most {_HEAD} bytes before its body.")
        return line


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection, in its thread."""

    protocol_version = request_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # the library answers HTTP/0.9, its own default, without a status
    error_content_type, error_message_format = "text/plain; charset=utf-8", "%(explain)s\n"
    command = path = ""
    disable_nagle_algorithm = True
    rbufsize, wbufsize = 0, _PORTION
    server: Server
    rfile: _Head

    def setup(self) -> None:
        self._unread, self._web = False, self.server.web.current()
        self._bounds: _Connection = self.request
        first, context = self._bounds.client.recv(1, socket.MSG_PEEK), self._web.context
        self._is_foreign = bool(first) and (first == HANDSHAKE) != bool(context)
        if context and not self._is_foreign:
            with self.server.changed:  # nothing hangs up while the socket moves
                tls = context.wrap_socket(
                    self._bounds.client, server_side=True, do_handshake_on_connect=False
                )
                self._bounds.client = tls
            shake_hands(tls)
            self._bounds.allow(self.server.limits.request_time)
        self.request = self._bounds.client
        super().setup()
        self.rfile = _Head(self.rfile, _HEAD)

    def handle(self) -> None:
        if self._is_foreign:
            ours, theirs = ("HTTPS", "HTTP") if self._web.context else ("HTTP", "HTTPS")
            self.send_error(400, explain=f"This port speaks {ours}, and the client {theirs}.")
        else:
            super().handle()

    def handle_one_request(self) -> None:
        self.close_connection = True
        if self.server.stopping.is_set() or not self.rfile.peek(1):
            return
        self._bounds.allow(self.server.limits.request_time)
        self.rfile.left = _HEAD
        try:
            super().handle_one_request()
        except HTTPException as error:  # the library itself refuses long headers
            self.send_error(414, explain=str(error))

    def __getattr__(self, name: str) -> Callable[[], None]:
        """The library looks for do_GET and its kin; the routes know which methods there are."""
        if name.startswith("do_"):
            return self._respond
        raise AttributeError(name)

    def _respond(self) -> None:
        headers = {name.lower(): ", ".join(self.headers.get_all(name, ())) for name in self.headers}
        # No body is read, so a request with one is the last of its connection.
        has_body = not headers.keys().isdisjoint({"transfer-encoding", "expect"})
        self._unread = has_body or headers.get("content-length", "0") != "0"
        is_last = self.request_version != "HTTP/1.1" or "close" in headers.get("connection", "").lower()
        self._web, context = self.server.web.current(), self._web.context
        # If TLS changed, the client comes back, and proves by the new TLS who it is.
        self.close_connection = self._unread or is_last or self._web.context is not context
        if self.headers.defects:
            self.send_error(400, explain="A line of the request is not a header.")
            return
        try:
            url = urlsplit(self.path)
        except ValueError as error:
            self.send_error(400, explain=str(error))
            return
        query = parse_qs(url.query, keep_blank_values=True)
        self._bounds.allow(inf, gives_way=inf, is_answered=True)
        request = Request(self.command, unquote(url.path), query, headers)
        self._send(self.server.routes.respond(request, self._web.passwords))

    def handle_expect_100(self) -> bool:
        return True  # never sends 100 Continue; request bodies are ignored

    def _send(self, response: Response) -> None:
        limits = self.server.limits
        self.close_connection |= self.server.stopping.is_set()
        self._bounds.allow(limits.answer_time, gives_way=limits.slow_answer_time, is_answered=True)
        self.send_response(response.status)
        for name, value in response.headers:
            if name not in self._web.settings.headers:
                self.send_header(name, value)
        self.send_header("Content-Length", str(sum(map(len, response.pieces))))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.writelines(response.pieces)
        self.wfile.flush()
        self._bounds.allow(limits.idle_time)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self._unread = True
        super().send_error(code, message, explain)

    def end_headers(self) -> None:
        for name, value in self._web.settings.headers.items():
            self.send_header(name, value)
        super().end_headers()

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            self.wfile.flush()
            if self._unread:  # closing while the client sends would reset the connection before it reads
                self._bounds.allow(self.server.limits.linger_time)
                socket.socket.shutdown(self.connection, socket.SHUT_WR)
                while socket.socket.recv(self.connection, 65536):
                    pass
        with contextlib.suppress(OSError):
            self.wfile.close()  # what the client did not take fails again; the library would leave rfile open
        super().finish()

    def version_string(self) -> str:
        return "ecr-replication-exporter"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002 - the library's
        _log.debug("answered", method=self.command, path=self.path.partition("?")[0], status=code)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's
        """`log_request` is enough."""


def _listen(host: str, port: int) -> socket.socket:
    """Bind; to IPv6 and IPv4 if there is no host. Raises OSError that names the address."""
    both = host in {"", "::"} and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise OSError(f"cannot listen on {_name(host, port)}: {reason}") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    return listener


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
        #: Guards the connections; notified when one ends.
        self.changed = threading.Condition()
        self._open: set[_Connection] = set()
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()  # the library has one socket; ours are in the selector
        self._sockets: list[socket.socket] = []
        self._selector = DefaultSelector()
        try:
            for address in addresses:
                self._sockets.append(_listen(*address))
                self._selector.register(self._sockets[-1], EVENT_READ)
        except OSError:
            self.server_close()
            raise
        #: host:port of each, with the port that the system chose for port 0.
        self.addresses = tuple(_name(*listener.getsockname()) for listener in self._sockets)

    def start(self) -> None:
        """Begin to answer."""
        threading.Thread(target=self._hang_up_late, name="late connections", daemon=True).start()
        threading.Thread(target=self.serve_forever, args=(_LOOK_EVERY,), name="accept", daemon=True).start()

    def stop(self, deadline: float) -> None:
        """Accept nothing more; answers under way have `deadline` seconds to end."""
        self.stopping.set()
        self.shutdown()
        self.server_close()
        with self.changed:
            for connection in self._open:
                if not connection.is_answered:
                    connection.hang_up()
            self.changed.wait_for(lambda: not self._open, deadline)
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
        with self.changed:
            if has_room := self.changed.wait_for(self._has_room, self.limits.room_time):
                self._open.add(request)
        if has_room:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def _has_room(self) -> bool:
        """Hang up on one that gives way while there are some places left, so that a client need not wait."""
        now, limit = monotonic(), self.limits.connections
        if len(self._open) >= limit - limit // 16:
            giving_way = [each for each in self._open if each.gives_way <= now]
            if giving_way:  # the longest silent, or else the slowest download
                min(giving_way, key=lambda each: (each.is_answered, each.gives_way)).hang_up()
        return len(self._open) < limit

    def _hang_up_late(self) -> None:
        while not self.stopping.wait(_LOOK_EVERY):
            with self.changed:
                now = monotonic()
                for connection in self._open:
                    if connection.deadline < now:
                        connection.hang_up()
                self.changed.notify_all()  # a new connection that waits for room looks again

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request.client)
        with self.changed:
            self._open.discard(request)
            self.changed.notify_all()

    def handle_error(self, *_: object) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):  # gone, hung up, or not TLS
            _log.debug("connection_ended", error=str(error))
        elif error:
            _log.broken("connection_broke", error)
