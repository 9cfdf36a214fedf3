"""An end to answers that never end.

botocore's time-outs count from one byte to the next, so that whoever sends a byte now and then keeps a
worker busy for as long as it likes. Here a call's connection is cut when its answer is not whole in time;
and its answer is read no further than any of AWS is long.

Only this room touches what botocore keeps to itself; where a release of botocore has it no more, calls
go on without a deadline.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Self


class Call:
    """A call that is made within, by one thread. `late` is written by the watch alone."""

    __slots__ = ("_deadline", "connection", "due", "late")

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self.due = time.monotonic() + deadline.seconds
        self.late = False
        #: Of urllib3's, once a request went out on it.
        self.connection: Any = None

    def __enter__(self) -> Self:
        self._deadline.begin(self)
        _here.call = self
        return self

    def __exit__(self, *_: object) -> None:
        _here.call = None
        self._deadline.end(self)

    def cut(self) -> None:
        """Have whoever reads from the connection see its end. Any thread."""
        self.late = True
        # A second descriptor, so that closing it leaves the connection's owner the first.
        with (
            suppress(AttributeError, OSError),
            socket.socket(fileno=os.dup(self.connection.sock.fileno())) as twin,
        ):
            twin.shutdown(socket.SHUT_RDWR)


class Deadline:
    """Cuts calls that take longer than `seconds`, or up to a tenth more. All methods for any thread."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._calls: set[Call] = set()
        self._watched = False

    def __call__(self) -> Call:
        """A call that is to be made now."""
        return Call(self)

    def begin(self, call: Call) -> None:
        """Have an eye on the call."""
        with self._lock:
            self._calls.add(call)
            if self._watched:
                return
            # Without a thread the call goes on, and the next one tries again for both.
            with suppress(RuntimeError):
                threading.Thread(target=self._watch, name="deadline", daemon=True).start()
                self._watched = True

    def end(self, call: Call) -> None:
        """The call came back."""
        with self._lock:
            self._calls.discard(call)

    def _watch(self) -> None:
        """Look around now and then, as long as there are calls."""
        pause = threading.Event()
        while True:
            pause.wait(self.seconds / 10)
            now = time.monotonic()
            with self._lock:
                if not self._calls:
                    self._watched = False
                    return
                for call in self._calls:
                    if call.due <= now:
                        call.cut()


#: The call that each thread makes.
_here = threading.local()


#: Bytes of an answer. A page of 1000 images is well under two million.
MOST_READ = 32 << 20


class TooLongError(Exception):
    """An answer is not one of AWS, and would fill the memory."""


def _bounded(response: Any, *args: Any, **options: Any) -> Iterator[bytes]:
    """What is read from a response, up to the bound; then it is closed, as nobody else will."""
    del response.stream  # with it the response would hold itself, and only the collector could free it
    size = 0
    for chunk in response.stream(*args, **options):
        size += len(chunk)
        if size > MOST_READ:
            response.close()
            raise TooLongError(f"the answer is longer than {MOST_READ >> 20} MiB")
        yield chunk


class _Known:
    """Of a connection: it tells the call that is made on it, and bounds what is read from it."""

    def request(self, *args: Any, **options: Any) -> Any:
        if call := getattr(_here, "call", None):
            call.connection = self
        return super().request(*args, **options)  # type: ignore[misc]

    def getresponse(self, *args: Any, **options: Any) -> Any:
        response = super().getresponse(*args, **options)  # type: ignore[misc]
        response.stream = partial(_bounded, response)
        return response


def make_known(client: Any) -> None:
    """Have the calls of a boto3 client know their connections, through whatever proxy. Once is enough."""
    with suppress(AttributeError):
        pools = client._endpoint.http_session._pool_classes_by_scheme  # noqa: SLF001
        for scheme, pool in list(pools.items()):
            if issubclass(pool.ConnectionCls, _Known):
                return
            connection = type("Connection", (_Known, pool.ConnectionCls), {})
            pools[scheme] = type(pool.__name__, (pool,), {"ConnectionCls": connection})
