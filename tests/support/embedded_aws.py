"""The demo's AWS with faults on the wire and a count of all calls, for tests and the soak."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from botocore.config import Config

from exporter.demo import ACCOUNT, REGION, Call, CallKind, DemoAWS, Refuse
from exporter.demo.aws import Answer, Handler, HttpRequest
from exporter.replication.model import Destination


@dataclass(frozen=True, slots=True)
class Garbage:
    """Another answer instead of the right one."""

    body: bytes
    status: int = 200
    content_type: str = "text/html"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Hang:
    """The right answer, but only after these seconds or after the release."""

    seconds: float = 60.0
    released: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Drip:
    """The right answer, one byte in `seconds`. After the release the rest comes at once."""

    seconds: float = 0.1
    released: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Truncate:
    """The first `kept` bytes of the right answer, then the end of the connection.

    Content-Length is the size of the whole answer, or of the part if `exact_length` is set.
    """

    kept: int
    exact_length: bool = False


@dataclass(frozen=True, slots=True)
class DropConnection:
    """Closes the connection without an answer."""


Fault = Refuse | Garbage | Hang | Drip | Truncate | DropConnection


@dataclass(frozen=True, slots=True)
class _Faulty(Answer):
    """An answer and the fault with which it is sent."""

    fault: Fault


def replication_rule(
    *destinations: Destination, prefix: str = "", mirrors_deletions: bool = False
) -> dict[str, Any]:
    """A replication rule in the format of AWS. Without a prefix it covers every repository."""
    rule: dict[str, Any] = {
        "destinations": [{"region": to.region, "registryId": to.registry_id} for to in destinations]
    }
    if prefix:
        rule["repositoryFilters"] = [{"filter": prefix, "filterType": "PREFIX_MATCH"}]
    if mirrors_deletions:
        rule["deleteReplication"] = {"enabled": True}
    return rule


class _FaultyHandler(Handler):
    def finish(self) -> None:
        with contextlib.suppress(OSError):
            self.wfile.close()  # if the client has gone, the library would fail here and leave rfile open
        super().finish()

    def reply(self, answer: Answer) -> None:
        match answer:
            case _Faulty(fault=DropConnection()):
                self.close_connection = True
            case _Faulty(fault=Garbage(headers=headers)) if headers:
                self._head(answer, len(answer.body), dict(headers))
                self.wfile.write(answer.body)
            case _Faulty(fault=Truncate(kept, exact)):
                self.close_connection = True
                self._head(answer, min(kept, len(answer.body)) if exact else len(answer.body))
                self.wfile.write(answer.body[:kept])
            case _Faulty(fault=Drip(seconds, released)):
                self._drip(answer, seconds, released)
            case _:
                super().reply(answer)

    def _head(self, answer: Answer, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(answer.status)
        for name, value in {
            "Content-Type": answer.content_type,
            "Content-Length": str(length),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def _drip(self, answer: Answer, seconds: float, released: threading.Event) -> None:
        wire, self.wfile = self.wfile, io.BytesIO()
        super().reply(answer)
        whole, self.wfile = self.wfile.getvalue(), wire
        for position in range(len(whole)):
            wire.write(whole[position : position + 1])
            if not released.is_set():
                wire.flush()
                released.wait(seconds)


class EmbeddedAWS(DemoAWS):
    """The simulated AWS of the demo, inside the test."""

    handler = _FaultyHandler

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        #: Called before each call; returns the fault of the call, or None.
        self.fault: Callable[[Call], Fault | None] = lambda _: None
        #: All calls, with the refused ones. While calls come in, read it with `count`.
        self.calls: Counter[CallKind] = Counter()
        self._counting = threading.Lock()
        self._hanging: set[threading.Event] = set()

    def stop(self) -> None:
        """Refuse new connections, close open ones and release calls that hang."""
        super().stop()
        for released in list(self._hanging):
            released.set()

    def client(self, service: str, *, account: str = ACCOUNT, region: str = REGION) -> Any:
        """A boto3 client of this AWS that does not retry."""
        return self.session(account).client(
            cast("Any", service),
            region_name=region,
            endpoint_url=self.endpoint_url,
            config=Config(retries={"total_max_attempts": 1}),
        )

    def count(self, operation: str, *, account: str | None = None, region: str | None = None) -> int:
        """The number of calls of the operation, with the refused ones."""
        with self._counting:
            return sum(
                number
                for kind, number in self.calls.items()
                if kind.operation == operation
                and account in (None, kind.account)
                and region in (None, kind.region)
            )

    def answer(self, call: Call, request: HttpRequest) -> Answer:
        with self._counting:
            self.calls[call.kind] += 1
        fault = self.fault(call)
        match fault:
            case None:
                return super().answer(call, request)
            case Refuse() as refusal:
                raise refusal
            case Garbage(body, status, content_type):
                return _Faulty(status, content_type, body, fault)
            case DropConnection():
                return _Faulty(0, "", b"", fault)
            case Hang(seconds, released):
                self._hanging.add(released)
                released.wait(seconds)
                self._hanging.discard(released)
                return super().answer(call, request)
        if isinstance(fault, Drip):
            self._hanging.add(fault.released)
        right = super().answer(call, request)
        return _Faulty(right.status, right.content_type, right.body, fault)


def json_answer(value: object) -> Garbage:
    return Garbage(json.dumps(value).encode(), content_type="application/x-amz-json-1.1")
