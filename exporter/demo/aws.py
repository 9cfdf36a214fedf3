"""The make-believe AWS as a server: its ECR next to moto's STS, and everything that can go wrong with a call.

Only STS is moto's: its roles need not exist, and lend credentials of their own account.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

import boto3
import botocore.session
from botocore.config import Config
from botocore.configprovider import ConfigValueStore, ConstantProvider

from exporter.demo.ecr import ECR, Call, CallKind, Delay, Refuse

try:
    from moto.core.request import Request
    from moto.iam.models import get_account_id_from
    from moto.sts.responses import TokenResponse
except ImportError as error:
    raise ImportError(f"the demo needs moto: pip install '.[demo]' ({error})", name=error.name) from error

ACCOUNT = "111122223333"
REGION = "us-east-1"
#: Seconds that a copy takes unless told otherwise.
COPIED_AFTER = 3.0

#: An access key of ours ends in its account, so that any account can be had without ceremony.
_KEY = "AKIADEMO"
_CREDENTIAL = re.compile(r"Credential=(?P<key>\w+)/\d+/(?P<region>[\w-]+)/(?P<service>[\w-]+)/aws4_request")
_JSON = "application/x-amz-json-1.1"


@dataclass(frozen=True, slots=True)
class Garbage:
    """Any answer at all, in place of the right one."""

    body: bytes
    status: int = 200
    content_type: str = "text/html"


@dataclass(frozen=True, slots=True)
class Hang:
    """No answer for so many seconds or until released, whichever comes first; then the right one."""

    seconds: float = 60.0
    released: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Drip:
    """The right answer a byte at a time, so many seconds apart, until released: then the rest at once."""

    seconds: float = 0.1
    released: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Truncate:
    """So many bytes of the right answer, and then the end; its head tells of all, or of just these."""

    kept: int
    told: bool = False


@dataclass(frozen=True, slots=True)
class DropConnection:
    """The connection is closed without an answer."""


Fault = Refuse | Garbage | Hang | Drip | Truncate | DropConnection


class EmbeddedAWS(ECR):
    """ECR and moto's STS behind one port of 127.0.0.1. A context manager; threads are daemons.

    Any account exists. `clock` is wall time in Unix seconds, `delay` how long copies take.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.time, delay: Delay = lambda _: COPIED_AFTER
    ) -> None:
        super().__init__(clock=clock, delay=delay)
        #: Asked before each call what is to go wrong with it.
        self.fault: Callable[[Call], Fault | None] = lambda _: None
        #: All calls seen; `count` reads it safely while calls come in.
        self.calls: Counter[CallKind] = Counter()
        #: Where clients find it; "" until it was started.
        self.endpoint_url = ""
        self._server: _Server | None = None
        self._hanging: set[threading.Event] = set()

    def start(self) -> Self:
        self._server = _Server(self._answer)
        self.endpoint_url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="embedded-aws", daemon=True
        ).start()
        return self

    def stop(self) -> None:
        """Refuse new connections, cut open ones, release what hangs."""
        if self._server is not None:
            self._server.stop()
            self._server = None
        for released in list(self._hanging):
            released.set()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def session(self, account: str = ACCOUNT) -> boto3.Session:
        """Make-believe credentials of the account; blind to the environment, to ~/.aws and to proxies."""
        variables = botocore.session.Session.SESSION_VARIABLES
        constants = {name: default for name, (_, _, default, _) in variables.items()}
        constants |= {"region": REGION, "config_file": "", "credentials_file": ""}
        core = botocore.session.Session()
        core.register_component(
            "config_store",
            ConfigValueStore(mapping={name: ConstantProvider(value) for name, value in constants.items()}),
        )
        core.set_default_client_config(Config(proxies={}))
        return boto3.Session(
            aws_access_key_id=_KEY + account, aws_secret_access_key=_KEY, botocore_session=core
        )

    def client(self, service: str, *, account: str = ACCOUNT, region: str = REGION) -> Any:
        """A boto3 client of this AWS that does not retry."""
        return self.session(account).client(
            service,
            region_name=region,
            endpoint_url=self.endpoint_url,
            config=Config(retries={"total_max_attempts": 1}),
        )

    def count(self, operation: str, *, account: str | None = None, region: str | None = None) -> int:
        """How many calls of the operation were seen, refused ones too."""
        with self._lock:
            return sum(
                number
                for kind, number in self.calls.items()
                if kind.operation == operation
                and account in (None, kind.account)
                and region in (None, kind.region)
            )

    def _answer(self, asked: _Asked) -> _Answer | None:
        """The answer, or None to close the connection."""
        service = ""
        try:
            call = asked.call()
            service = call.kind.service
            return self._answer_call(call, asked)
        except Refuse as refusal:
            return _refusal(service, refusal)
        except Exception as error:  # noqa: BLE001 - what breaks in here looks like AWS breaking
            return _refusal(service, Refuse(500, "ServerException", repr(error)))

    def _answer_call(self, call: Call, asked: _Asked) -> _Answer | None:
        with self._lock:
            self.calls[call.kind] += 1
        fault = self.fault(call)
        match fault:
            case Refuse() as refusal:
                return _refusal(call.kind.service, refusal)
            case Garbage() as garbage:
                return _Answer(garbage.status, garbage.content_type, garbage.body)
            case DropConnection():
                return None
            case Hang() as hang:
                self._hang(hang)
        answer = self._true_answer(call, asked)
        match fault:
            case Truncate(kept, told):
                return answer._replace(body=answer.body[:kept], length=None if told else len(answer.body))
            case Drip():
                self._hanging.add(fault.released)
                return answer._replace(drip=fault)
        return answer

    def _true_answer(self, call: Call, asked: _Asked) -> _Answer:
        if call.kind.service == "sts":
            return _sts(asked, call.kind.account)
        if call.kind.service != "ecr":
            raise Refuse(400, "UnknownOperationException", f"no {call.kind.service or 'such service'} here")
        return _Answer(200, _JSON, json.dumps(self.serve(call)).encode())

    def _hang(self, hang: Hang) -> None:
        self._hanging.add(hang.released)
        hang.released.wait(hang.seconds)
        self._hanging.discard(hang.released)


class _Answer(NamedTuple):
    status: int
    content_type: str
    body: bytes
    #: What the head tells, if it is not the truth.
    length: int | None = None
    drip: Drip | None = None


class _Asked(NamedTuple):
    """An HTTP request; the names of its headers are in lower case."""

    headers: Mapping[str, str]
    body: bytes

    def call(self) -> Call:
        """What it asks for, and on whose behalf. Raises Refuse if that cannot be made out."""
        credential = _CREDENTIAL.search(self.headers.get("authorization", ""))
        target = self.headers.get("x-amz-target")
        params = _parameters(self.body) if target else dict(parse_qsl(self.body.decode(errors="replace")))
        operation = target.rpartition(".")[2] if target else params.get("Action", "")
        if credential:
            kind = CallKind(
                credential["service"], operation, _account_of(credential["key"]), credential["region"]
            )
        elif operation.startswith("AssumeRoleWith"):  # whose proof is a token, not a signature
            kind = CallKind("sts", operation, ACCOUNT, REGION)
        else:
            raise Refuse(403, "MissingAuthenticationTokenException", "the request is not signed")
        return Call(kind, params)


def _parameters(body: bytes) -> dict[str, Any]:
    try:
        params = json.loads(body or b"{}")
    except ValueError as error:
        raise Refuse(400, "SerializationException", str(error)) from error
    if not isinstance(params, dict):
        raise Refuse(400, "SerializationException", "not an object")
    return params


def _account_of(key: str) -> str:
    return key.removeprefix(_KEY) if key.startswith(_KEY) else get_account_id_from(key)


def _refusal(service: str, refusal: Refuse) -> _Answer:
    """In the shape that the service's protocol has for errors."""
    if service == "sts":
        code, message = escape(refusal.code), escape(refusal.message)
        body = (
            f"<ErrorResponse><Error><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
        )
        return _Answer(refusal.status, "text/xml", body.encode())
    error = {"__type": refusal.code, "message": refusal.message}
    return _Answer(refusal.status, _JSON, json.dumps(error).encode())


def _sts(asked: _Asked, account: str) -> _Answer:
    """What moto answers to a caller of the account."""
    headers = {**asked.headers, "x-moto-account-id": account}
    request = Request.from_primitives("POST", "http://127.0.0.1/", headers, asked.body)
    status, _, body = TokenResponse.dispatch(request, request.url, request.headers)
    return _Answer(status, "text/xml", str(body).encode())


class _Server(ThreadingHTTPServer):
    """HTTP/1.1 with connections kept alive, which halves what a call costs boto3."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Callable[[_Asked], _Answer | None]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent where a client has left; that is nobody's fault."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave in one packet
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        answer = self.server.answer(_Asked(headers, body))
        if answer is None:
            self.close_connection = True
            return
        wire, self.wfile = self.wfile, io.BytesIO()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
        self.end_headers()
        whole, self.wfile = self.wfile.getvalue() + answer.body, wire
        if answer.drip:
            for position in range(len(whole)):
                wire.write(whole[position : position + 1])
                if not answer.drip.released.is_set():
                    wire.flush()
                    answer.drip.released.wait(answer.drip.seconds)
        else:
            wire.write(whole)
        self.close_connection = self.close_connection or answer.length is not None

    def log_message(self, *args: Any) -> None:
        """Nobody reads an access log of what is not real."""
