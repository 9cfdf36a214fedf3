"""A deadline for answers that never end, and a bound on their size.

The time-outs of botocore count from one byte to the next, so a server that sends a byte now and then holds a
worker for as long as it likes. Here the connection of a call is shut down when the answer is not complete in
time. Reading stops at a size that no answer of AWS has.

This module reaches into private parts of botocore. With a release of botocore that has other ones, calls go
on without a deadline.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from botocore.exceptions import HTTPClientError

CONNECT_TIMEOUT = 3.0  # seconds
READ_TIMEOUT = 10.0  # seconds from one byte to the next
ANSWER_TIMEOUT = 30.0  # seconds until the last byte


class AnswerTooSlow(HTTPClientError):  # noqa: N818 - its name is the code in the log
    """The answer was not complete in time."""

    fmt = "the answer was not complete after {seconds:g} s"


@dataclass(slots=True, eq=False)
class Call:
    """One call under way. Only the watching thread writes `late`."""

    due: float  # monotonic
    late: bool = False
    #: The urllib3 connection, once a request is sent on it.
    connection: Any = None

    def cut(self) -> None:
        """End the connection, so that the thread that reads from it sees its end. Any thread."""
        self.late = True
        # On a second descriptor: the first one belongs to the connection, which closes it.
        with (
            suppress(AttributeError, OSError),
            socket.socket(fileno=os.dup(self.connection.sock.fileno())) as twin,
        ):
            twin.shutdown(socket.SHUT_RDWR)


class Deadline:
    """Cuts calls that take longer than `seconds`, at most a tenth late. For any thread."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._calls: set[Call] = set()
        self._watched = False

    @contextmanager
    def __call__(self) -> Iterator[Call]:
        """The context of one call, which starts now. Raises AnswerTooSlow if the call fails after its cut."""
        call = Call(time.monotonic() + self.seconds)
        self._watch_over(call)
        _here.call = call
        try:
            yield call
        except Exception as error:
            if call.late:
                raise AnswerTooSlow(seconds=self.seconds) from error
            raise
        finally:
            _here.call = None
            with self._lock:
                self._calls.discard(call)

    def _watch_over(self, call: Call) -> None:
        with self._lock:
            self._calls.add(call)
            if self._watched:
                return
            # If no thread can start, the call goes on, and the next call tries again.
            with suppress(RuntimeError):
                threading.Thread(target=self._watch, name="deadline", daemon=True).start()
                self._watched = True

    def _watch(self) -> None:
        """Cut late calls until there are none to watch."""
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


#: `.call` is the call that the current thread makes.
_here = threading.local()

#: Bytes of an answer that are read at most. A page of 1,000 images has less than two million.
MOST_READ = 32 << 20


class TooLongError(Exception):
    """The answer is longer than any of AWS, and would fill the memory."""


def _bounded(response: Any, *args: Any, **options: Any) -> Iterator[bytes]:
    """The chunks of a response. Raises TooLongError past the bound, and closes the response itself."""
    del response.stream  # it refers to the response, and only the garbage collector could free that cycle
    size = 0
    for chunk in response.stream(*args, **options):
        size += len(chunk)
        if size > MOST_READ:
            response.close()
            raise TooLongError(f"the answer is longer than {MOST_READ >> 20} MiB")
        yield chunk


class _Bounded:
    """Mixed into a urllib3 connection: it registers with the current call and bounds what is read."""

    def request(self, *args: Any, **options: Any) -> Any:
        if call := getattr(_here, "call", None):
            call.connection = self
        return super().request(*args, **options)  # type: ignore[misc]

    def getresponse(self, *args: Any, **options: Any) -> Any:
        response = super().getresponse(*args, **options)  # type: ignore[misc]
        response.stream = partial(_bounded, response)
        return response


def with_deadline(client: Any) -> None:
    """Put the connections of a boto3 client under the deadline, those through a proxy too. Idempotent."""
    with suppress(AttributeError):
        pools = client._endpoint.http_session._pool_classes_by_scheme  # noqa: SLF001
        for scheme, pool in list(pools.items()):
            if issubclass(pool.ConnectionCls, _Bounded):
                return
            connection = type("Connection", (_Bounded, pool.ConnectionCls), {})
            pools[scheme] = type(pool.__name__, (pool,), {"ConnectionCls": connection})
