"""The HTTP server: the standard library's `ThreadingHTTPServer`, with bounds on what a client may take.

The library accepts connections, runs a thread for each, and parses requests. Sockets block without a
timeout. Instead each connection has a deadline: one that misses it is hung up, which wakes its thread.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from http.server import ThreadingHTTPServer
from selectors import EVENT_READ, DefaultSelector
from typing import Any

from exporter import logs
from exporter.http.connections import Connections, Limits
from exporter.http.handler import Handler
from exporter.http.routes import Routes
from exporter.http.web_config import WebConfig

__all__ = ["Limits", "Server", "parse_address"]

#: Connections that the kernel queues until they are accepted.
_BACKLOG = 4096

_log = logs.get("server")


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


class Server(ThreadingHTTPServer):
    """Serves routes at several addresses. Binds when it is made; raises OSError that names the address."""

    block_on_close = False

    def __init__(
        self, listen_addresses: Sequence[str], routes: Routes, web: WebConfig, *, limits: Limits | None = None
    ) -> None:
        self._web = web
        self._connections = Connections(limits or Limits())
        self.stopping = self._connections.stopping
        handler = partial(Handler, routes, web, self._connections)
        super().__init__(("", 0), handler, bind_and_activate=False)
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
        end = time.monotonic() + deadline
        self.stopping.set()
        for listener in self._sockets:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the loop
        self.shutdown()
        self.server_close()
        self._connections.stop(end)

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
        client = self._web.secure(request)
        if not self._connections.add(client):
            self.shutdown_request(client)
            return
        try:
            super().process_request(client, client_address)
        except RuntimeError:  # the system has no thread left
            self.shutdown_request(client)
            raise

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self._connections.remove(request)

    def service_actions(self) -> None:
        # The library calls it twice a second, and after each new connection.
        self._connections.hang_up_late()

    def handle_error(self, *_: object) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):  # gone, hung up, or not TLS
            _log.debug("connection_ended", error=str(error))
        elif error:
            _log.broken("connection_broke", error)
