"""The HTTP under the front routes: HTTP/1.1 on the standard library's sockets and threads.

Every client is bounded: in the time it may take, in what it may send, and with all others in how many
there are. Passwords come before the routes, and hold for every path.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from itertools import islice

from exporter import logs
from exporter.http.head import Head, UnreadableError, head_length
from exporter.http.routes import Request, Response, Routes, text
from exporter.http.web import Web, shake_hands

#: Connections that may wait to be accepted; one more is not heard, and tries again a second later.
_BACKLOG = 4096
#: Bytes that are handed to TLS at once.
_PORTION = 1024 * 1024
#: Buffers that the system takes at once (IOV_MAX of Linux).
_BUFFERS = 1024

_log = logs.get("server")


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take: times in seconds, sizes in bytes."""

    #: Under way at once; one more gets 503.
    requests: int = 40
    #: Open at once; for one more the oldest that still waits for its request has to go.
    connections: int = 256
    #: Threads of connections that had to go, which may not have ended yet.
    leaving: int = 16
    #: The longest head and the longest body that are read to the end.
    head: int = 16 * 1024
    body: int = 64 * 1024
    handshake_time: float = 10.0
    #: For a request to come, from its first byte, or from the start of the connection, to its last.
    request_time: float = 10.0
    #: Between two requests.
    idle_time: float = 30.0
    #: For an answer to be taken; and after how long that has to make room, if there is no other.
    answer_time: float = 30.0
    slow_answer_time: float = 1.0
    #: For somebody who is still sending to read why that is of no use.
    linger_time: float = 1.0


_OVERLOADED = text(503, "Too many requests at once, try again later.", ("Retry-After", "1"))
_UNAUTHORIZED = text(
    401, "Give a user name and a password.", ("WWW-Authenticate", 'Basic realm="ecr-replication-exporter"')
)


def parse_address(address: str) -> tuple[str, int]:
    """`:PORT`, `host:PORT` or `[::1]:PORT`, taken apart. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535 or bracketed != (":" in host):
        raise ValueError(f"{address!r} is not an address; write :PORT, host:PORT or [IPv6]:PORT")
    return host.strip("[]"), int(port)


def _listen(address: str) -> socket.socket:
    """Raises OSError that names the address."""
    try:
        host, port = parse_address(address)
        return _listen_everywhere(port) if host in ("", "::") else _listen_at(host, port)
    except OSError as error:
        # Without what create_server adds in brackets.
        reason = str(error.strerror or error).partition(" (")[0]
        raise OSError(f"cannot listen on {address}: {reason}") from error
    except ValueError as error:
        raise OSError(f"cannot listen: {error}") from error


def _listen_everywhere(port: int) -> socket.socket:
    """On IPv6 and IPv4, or on IPv4 alone where there is no IPv6."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(
                ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG
            )
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
    return socket.create_server(("", port), backlog=_BACKLOG)


def _listen_at(host: str, port: int) -> socket.socket:
    """At the first address of the host, IPv4 before IPv6."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, place = min(found, key=lambda info: info[0] != socket.AF_INET)
    return socket.create_server(place, family=family, backlog=_BACKLOG)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _hang_up(connection: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    """End it, so that a thread that waits for it wakes up. Of TLS only the socket beneath is touched."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, how)


class Server:
    """Serves a routes over HTTP/1.1: a thread for each connection, and bounds for everything.

    Slow and hostile clients cost so many threads at most, and no scrape waits for them. All threads
    are daemons. Binds when it is made, and raises OSError that names the address.
    """

    def __init__(
        self, listen_addresses: Sequence[str], routes: Routes, web: Web, *, limits: Limits | None = None
    ) -> None:
        self.routes = routes
        self.web = web
        self.limits = limits or Limits()
        self.stopping = threading.Event()
        self._requests = threading.BoundedSemaphore(self.limits.requests)
        self._places = threading.BoundedSemaphore(self.limits.connections)
        #: Of those who gave their place to another, until their threads have ended.
        self._leaving = threading.BoundedSemaphore(self.limits.leaving)
        self._lock = threading.Lock()
        self._connections: dict[_Connection, threading.Thread] = {}
        self._listeners: list[socket.socket] = []
        try:
            for address in listen_addresses:
                self._listeners.append(_listen(address))
        except OSError:
            self._close()
            raise
        self.addresses = tuple(_address(listener) for listener in self._listeners)

    def start(self) -> None:
        """Begin to answer."""
        for listener in self._listeners:
            threading.Thread(target=self._accept, args=(listener,), name="accept", daemon=True).start()

    def stop(self, deadline: float) -> None:
        """Accept nothing more; requests under way get so many seconds to be answered."""
        end = time.monotonic() + deadline
        self.stopping.set()
        self._close()
        with self._lock:
            connections = dict(self._connections)
        for connection in connections:
            connection.drop_if_waiting()
        for connection, thread in connections.items():
            thread.join(max(0.0, end - time.monotonic()))
            connection.drop()

    @contextlib.contextmanager
    def request(self) -> Iterator[bool]:
        """One more request under way; whether there is room for it.

        Its sending counts: a page that is not taken is memory. Who takes it too slowly makes room.
        """
        room = self._requests.acquire(blocking=False)
        if not room:
            with self._lock:
                dropped = any(connection.drop_if_slow() for connection in self._connections)
            room = dropped and self._requests.acquire(timeout=1.0)
        try:
            yield room
        finally:
            if room:
                self._requests.release()

    def _close(self) -> None:
        for listener in self._listeners:
            _hang_up(listener)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while not self.stopping.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                # Stopped; or out of file descriptors, which passes.
                self.stopping.wait(0.1)
            else:
                self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        if not self._make_place():
            connection.close()
            return
        try:
            self._begin(_Connection(self, self.web.secure(connection)))
        except Exception as error:  # noqa: BLE001 - the next one is to be accepted, whatever came of this
            # The client is gone already, or the system has no thread left.
            if not isinstance(error, OSError | RuntimeError):
                _log.broken("connection_broke", error)
            connection.close()
            self._places.release()

    def _begin(self, connection: _Connection) -> None:
        thread = threading.Thread(target=self._serve, args=(connection,), name="connection", daemon=True)
        # Started under the lock: whoever sees it may wait for its end.
        with self._lock:
            thread.start()
            self._connections[connection] = thread

    def _make_place(self) -> bool:
        """A place that is free, or that of whoever waits longest, without waiting for its thread to end.

        Those behind in the queue would wait too, and on a busy machine a thread takes its time.
        """
        if self._places.acquire(blocking=False):
            return True
        if not self._leaving.acquire(timeout=1.0):
            return False
        with self._lock:
            for connection in self._connections:
                if connection.drop_if_waiting():
                    del self._connections[connection]
                    return True
        self._leaving.release()
        return self._places.acquire(timeout=1.0)

    def _serve(self, connection: _Connection) -> None:
        try:
            connection.serve()
        except OSError as error:
            # Gone, too slow, or never spoke TLS.
            _log.debug("connection_ended", error=str(error))
        except Exception as error:  # noqa: BLE001 - whatever a client sends, the server stays
            _log.broken("connection_broke", error)
        finally:
            connection.close()
            with self._lock:
                has_place = self._connections.pop(connection, None)
            (self._places if has_place else self._leaving).release()


class _Connection:
    """One client: its requests one after the other, each read within bounds and answered."""

    def __init__(self, server: Server, connection: socket.socket) -> None:
        self._server = server
        self._limits = server.limits
        self._socket = connection
        self._received = b""
        self._waiting = True
        self._sending_since: float | None = None
        self._last = False
        self._unread = False

    def drop(self) -> None:
        """End it, from whatever thread."""
        self._waiting = False
        _hang_up(self._socket)

    def drop_if_waiting(self) -> bool:
        """Drop it unless it is being answered, or dropped already; whether it was."""
        if waiting := self._waiting:
            self.drop()
        return waiting

    def drop_if_slow(self) -> bool:
        """Drop it if its answer is on the way for long; whether it was."""
        since = self._sending_since
        slow = since is not None and time.monotonic() - since > self._limits.slow_answer_time
        if slow:
            self._sending_since = None
            self.drop()
        return slow

    def close(self) -> None:
        self._socket.close()

    def serve(self) -> None:
        """Answer until either side has enough. Raises OSError if the client is gone or too slow."""
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.settimeout(self._limits.handshake_time)
            shake_hands(self._socket)
        patience = self._limits.request_time
        while self._goes_on() and (self._received or self._receive(time.monotonic() + patience)):
            self._exchange()
            patience = self._limits.idle_time
        if self._unread:
            self._linger()

    def _goes_on(self) -> bool:
        return not (self._last or self._server.stopping.is_set())

    def _exchange(self) -> None:
        try:
            request = self._read_request(time.monotonic() + self._limits.request_time)
        except UnreadableError as error:
            self._last = self._unread = True
            self._send(error.response)
            return
        self._waiting = False
        self._answer(request)
        self._waiting = not self._last

    def _answer(self, request: Request) -> None:
        if refusal := self._refusal(request):
            self._send(refusal, to=request)
            return
        if self._server.routes.is_probe(request):
            self._send(self._ask(request), to=request)
            return
        with self._server.request() as room:
            self._send(self._ask(request) if room else _OVERLOADED, to=request)

    def _refusal(self, request: Request) -> Response | None:
        try:
            admitted = self._server.web.admit(request.headers.get("authorization", ""))
        except TimeoutError:
            return _OVERLOADED
        return None if admitted else _UNAUTHORIZED

    def _ask(self, request: Request) -> Response:
        try:
            return self._server.routes.answer(request)
        except Exception as error:  # noqa: BLE001 - one broken page is not to take the others along
            _log.broken("answer_broke", error, path=request.path)
            return text(500, "The exporter broke over this request; its log says how.")

    # -- reading ------------------------------------------------------------------------------

    def _receive(self, end: float) -> bool:
        """Wait for more; False if the client sends no more. Raises TimeoutError."""
        with self._patience(socket.SO_RCVTIMEO, end):
            received = self._socket.recv(self._limits.head)
        self._received += received
        return bool(received)

    def _receive_more(self, end: float) -> None:
        if not self._receive(end):
            raise ConnectionAbortedError("the client left in the middle of a request")

    def _read_request(self, end: float) -> Request:
        head = Head(self._read_head(end))
        self._last = head.is_last()
        length = head.body_length()
        if length is None or length > self._limits.body:
            self._last = self._unread = True
        else:
            self._skip(length, end)
        return head.request()

    def _read_head(self, end: float) -> bytes:
        looked_at = 0
        # Some clients end the body before with one line end too many.
        self._received = self._received.lstrip(b"\r\n")
        while not (length := head_length(self._received, looked_at)):
            looked_at = max(0, len(self._received) - 2)
            if looked_at >= self._limits.head:
                break
            self._receive_more(end)
            self._received = self._received.lstrip(b"\r\n")
        if not 0 < length <= self._limits.head:
            long = 431 if b"\n" in self._received[: self._limits.head] else 414
            raise UnreadableError(text(long, f"The request's head is longer than {self._limits.head} bytes."))
        head, self._received = self._received[:length], self._received[length:]
        return head

    def _skip(self, length: int, end: float) -> None:
        while length > len(self._received):
            length -= len(self._received)
            self._received = b""
            self._receive_more(end)
        self._received = self._received[length:]

    def _linger(self) -> None:
        """Let the client read the answer: closing while it still sends would reset the connection."""
        _hang_up(self._socket, socket.SHUT_WR)
        end = time.monotonic() + self._limits.linger_time
        while (left := end - time.monotonic()) > 0:
            self._socket.settimeout(left)
            if not socket.socket.recv(self._socket, self._limits.head):
                break

    # -- sending ------------------------------------------------------------------------------

    def _send(self, response: Response, *, to: Request | None = None) -> None:
        # Whoever came before TLS or certificates changed has to come anew, and prove who it is.
        self._last = not self._goes_on() or not self._server.web.is_current(self._socket)
        self._sending_since = time.monotonic()
        end = self._sending_since + self._limits.answer_time
        body = response.pieces if to is None or to.method != "HEAD" else ()
        self._send_all((self._head(response), *body), end)
        self._sending_since = None
        if to is not None:
            _log.debug("answered", method=to.method, path=to.path, status=response.status)

    def _send_all(self, pieces: Sequence[bytes], end: float) -> None:
        """Raises TimeoutError."""
        if isinstance(self._socket, ssl.SSLSocket):
            for portion in _portions(pieces):
                self._send_portion(memoryview(portion), end)
            return
        # Without TLS the system takes the pieces as they are, and comes back when all of them are taken.
        left = deque(memoryview(piece) for piece in pieces if piece)
        while left:
            with self._patience(socket.SO_SNDTIMEO, end):
                sent = self._socket.sendmsg(list(islice(left, _BUFFERS)))
            while left and sent >= len(left[0]):
                sent -= len(left.popleft())
            if sent:
                left[0] = left[0][sent:]

    def _send_portion(self, left: memoryview, end: float) -> None:
        """`sendall` of the standard library gives each record of TLS so much time."""
        while left:
            with self._patience(socket.SO_SNDTIMEO, end):
                left = left[self._socket.send(left) :]

    @contextlib.contextmanager
    def _patience(self, option: int, end: float) -> Iterator[None]:
        """Wait for the client no longer than this. Raises TimeoutError if that is over.

        Without TLS the system itself keeps the time: Python would ask it for each step, and a thread
        that comes back from the system waits for the interpreter.
        """
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.settimeout(_left(end))
        else:
            self._socket.setsockopt(socket.SOL_SOCKET, option, _timeval(_left(end)))
        try:
            yield
        except BlockingIOError:
            raise TimeoutError("timed out") from None

    def _head(self, response: Response) -> bytes:
        headers = {
            "Server": "ecr-replication-exporter",
            "Date": formatdate(usegmt=True),
            **dict(response.headers),
            "Content-Length": str(sum(map(len, response.pieces))),
        }
        if self._last:
            headers["Connection"] = "close"
        wanted = self._server.web.headers()
        replaced = {name.lower() for name in wanted}
        lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items() if name.lower() not in replaced]
        lines += [f"{name}: {value}" for name, value in wanted.items()]
        return "\r\n".join((*lines, "", "")).encode("latin-1", "replace")


def _left(end: float) -> float:
    """Seconds until then. Raises TimeoutError if there are none."""
    if (left := end - time.monotonic()) <= 0:
        raise TimeoutError("timed out")
    return left


def _timeval(seconds: float) -> bytes:
    """As 64-bit systems want it; never nothing, which would mean forever."""
    return struct.pack("ll", int(seconds), max(1, int(seconds % 1 * 1e6)))


def _portions(pieces: Iterable[bytes]) -> Iterator[bytearray]:
    """The pieces joined to about a megabyte each: few calls, and never a copy of the whole."""
    portion = bytearray()
    for piece in pieces:
        portion += piece
        if len(portion) >= _PORTION:
            yield portion
            portion = bytearray()
    yield portion
