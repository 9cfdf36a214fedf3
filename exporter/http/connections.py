"""The open connections: bounded in number and in time, and the requests among them bounded too."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from math import inf


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


class Phase(Enum):
    WAITING = auto()  # for a handshake or a request
    ANSWERING = auto()
    SENDING = auto()
    LEAVING = auto()  # hung up; the thread has not ended yet


class Connection:
    """One client: its own thread tells the phase, other threads hang up."""

    def __init__(self, client: socket.socket, seconds: float) -> None:
        self._client = client
        self.phase, self.since, self.end = Phase.WAITING, time.monotonic(), time.monotonic() + seconds
        self.counts = False  # among the requests that are limited

    def enter(self, phase: Phase, seconds: float = inf) -> None:
        """Begin a phase that may take so long. Raises OSError after `hang_up`."""
        if self.phase is Phase.LEAVING:
            raise TimeoutError("was hung up")
        self.phase, self.since = phase, time.monotonic()
        self.end = self.since + seconds

    def hang_up(self) -> None:
        """Wake the thread that waits for the client. Of TLS only the socket beneath is touched."""
        self.phase, self.end, self.counts = Phase.LEAVING, inf, False
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._client, socket.SHUT_RDWR)


class Connections:
    """Has room for a new connection as long as another one waits or is slow. Any thread may call it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.stopping = threading.Event()
        self._open: dict[socket.socket, Connection] = {}
        #: Guards the connections and their phases; notified when one ends.
        self._changed = threading.Condition()

    def add(self, client: socket.socket) -> bool:
        """False if there is no room within a second."""
        with self._changed:
            if added := self._changed.wait_for(self._has_room, timeout=1.0):
                self._open[client] = Connection(client, self.limits.request_time)
            return added

    def get(self, client: socket.socket) -> Connection:
        """The connection of a client that was added."""
        return self._open[client]

    def remove(self, client: socket.socket) -> None:
        """Forget a connection that was closed, if it was added."""
        with self._changed:
            self._open.pop(client, None)
            self._changed.notify_all()

    def hang_up_late(self) -> None:
        """Hang up on connections that missed their deadline."""
        now = time.monotonic()
        self._hang_up(lambda connection: connection.end < now)

    def stop(self, end: float) -> None:
        """Let the answers under way end until that monotonic time, and no other connection."""
        self.stopping.set()
        self._hang_up(lambda connection: connection.phase is Phase.WAITING)
        with self._changed:
            self._changed.wait_for(lambda: not self._open, max(0.0, end - time.monotonic()))
        self._hang_up(lambda _: True)

    def count(self, connection: Connection) -> bool:
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
        count = sum(connection.counts for connection in self._open.values())
        return count < self.limits.requests or self._make_room(Phase.SENDING, self.limits.slow_answer_time)

    def _has_room(self) -> bool:
        if len(self._open) >= self.limits.connections + self.limits.leaving:
            return False  # rather than wait for threads that end, which takes its time on a busy machine
        there = sum(connection.phase is not Phase.LEAVING for connection in self._open.values())
        return (
            there < self.limits.connections
            or self._make_room(Phase.WAITING, 0.0)
            or self._make_room(Phase.SENDING, self.limits.slow_answer_time)
        )

    def _make_room(self, phase: Phase, age: float) -> bool:
        """Hang up on the one that has been longest in the phase, and at least for `age` seconds."""
        latest = time.monotonic() - age
        found = [c for c in self._open.values() if c.phase is phase and c.since <= latest]
        if found:
            min(found, key=lambda connection: connection.since).hang_up()
        return bool(found)

    def _hang_up(self, which: Callable[[Connection], bool]) -> None:
        with self._changed:
            for connection in filter(which, self._open.values()):
                connection.hang_up()
