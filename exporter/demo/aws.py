"""The simulated AWS as a server on one port of 127.0.0.1: the ECR of this package, STS and SQS of moto.

Every role can be assumed. Its credentials belong to the account in its ARN.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

import boto3
import botocore.session
from botocore.config import Config
from botocore.configprovider import ConfigValueStore, ConstantProvider

from exporter.demo.ecr import ECR, Call, CallKind, Delay
from exporter.demo.registries import Refuse

try:
    from moto.core.request import Request
    from moto.iam.models import get_account_id_from
    from moto.sqs.models import SQSBackend
    from moto.sqs.responses import SQSResponse
    from moto.sts.responses import TokenResponse
except ImportError as error:
    raise ImportError(f"the demo needs moto: pip install '.[demo]' ({error})", name=error.name) from error

ACCOUNT = "111122223333"
REGION = "us-east-1"
#: Seconds that a copy takes by default.
COPIED_AFTER = 3.0

#: An access key id of the demo ends in its account id, so every account has credentials.
_KEY = "AKIADEMO"
_CREDENTIAL = re.compile(r"Credential=(?P<key>\w+)/\d+/(?P<region>[\w-]+)/(?P<service>[\w-]+)/aws4_request")
_JSON = "application/x-amz-json-1.1"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response."""

    status: int
    content_type: str
    body: bytes


class HttpRequest(NamedTuple):
    """An HTTP request. Header names are in lower case."""

    headers: Mapping[str, str]
    body: bytes

    def call(self) -> Call:
        """The operation and its caller. Raises Refuse if it is not signed or not JSON."""
        credential = _CREDENTIAL.search(self.headers.get("authorization", ""))
        target = self.headers.get("x-amz-target")
        params = _parameters(self.body) if target else dict(parse_qsl(self.body.decode(errors="replace")))
        operation = target.rpartition(".")[2] if target else params.get("Action", "")
        if credential:
            kind = CallKind(
                credential["service"], operation, _account_of(credential["key"]), credential["region"]
            )
        elif operation.startswith("AssumeRoleWith"):  # the body has a token instead of a signature
            kind = CallKind("sts", operation, ACCOUNT, REGION)
        else:
            raise Refuse(403, "MissingAuthenticationTokenException", "the request is not signed")
        return Call(kind, params)


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection. It stays open, which halves the cost of a call in boto3."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # sends head and body in one packet
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        self.reply(self.server.answer(HttpRequest(headers, body)))

    def reply(self, answer: Answer) -> None:
        """Send the answer to the client."""
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, *args: Any) -> None:
        """Write no access log."""


class _Queues(dict[tuple[str, str], SQSBackend]):
    """The queues of one simulated AWS, by account and Region.

    moto's own are those of the process, and they need what AWS_PROFILE of the environment names.
    """

    def __init__(self) -> None:
        queues = self

        class Responses(SQSResponse):
            @property
            def sqs_backend(self) -> SQSBackend:
                return queues[self.current_account, self.region]

        self.responses = Responses

    def __missing__(self, place: tuple[str, str]) -> SQSBackend:
        account, region = place
        return self.setdefault(place, SQSBackend(region, account))


class DemoAWS(ECR):
    """ECR and moto's STS and SQS on one port of 127.0.0.1. A context manager; its threads are daemons.

    Every account exists. `clock` is wall time in Unix seconds; `delay` gives the seconds that a copy takes.
    """

    handler: ClassVar[type[Handler]] = Handler

    def __init__(
        self, *, clock: Callable[[], float] = time.time, delay: Delay = lambda _: COPIED_AFTER
    ) -> None:
        super().__init__(clock=clock, delay=delay)
        #: The URL for clients; "" before the start.
        self.endpoint_url = ""
        self._server: _Server | None = None
        self._sqs = _Queues()
        #: The events queues: where they are, and their names.
        self._queues: list[tuple[SQSBackend, str]] = []

    def start(self) -> Self:
        self._server = _Server(self.handler, self._answer)
        self.endpoint_url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="demo-aws", daemon=True
        ).start()
        return self

    def stop(self) -> None:
        """Refuse new connections and close open ones."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def add_queue(self, name: str, *, account: str = ACCOUNT, region: str = REGION) -> str:
        """Create a queue that receives all events from now on; its URL."""
        backend = self._sqs[account, region]
        backend.create_queue(name, {})
        self._queues.append((backend, name))
        self.emit = self._send_event
        return f"https://sqs.{region}.amazonaws.com/{account}/{name}"

    def _send_event(self, event: dict[str, Any]) -> None:
        for backend, name in self._queues:
            backend.send_message(name, json.dumps(event))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def session(self, account: str = ACCOUNT) -> boto3.Session:
        """A session with credentials of the account. It ignores the environment, ~/.aws and proxies."""
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

    def answer(self, call: Call, request: HttpRequest) -> Answer:
        """The answer to a call. Raises Refuse."""
        if call.kind.service == "sts":
            return _moto(TokenResponse, request, call.kind.account)
        if call.kind.service == "sqs":
            return _moto(self._sqs.responses, request, call.kind.account)
        if call.kind.service != "ecr":
            raise Refuse(400, "UnknownOperationException", f"no {call.kind.service or 'such service'} here")
        return Answer(200, _JSON, json.dumps(self.serve(call)).encode())

    def _answer(self, request: HttpRequest) -> Answer:
        service = ""
        try:
            call = request.call()
            service = call.kind.service
            return self.answer(call, request)
        except Refuse as refusal:
            return _refusal(service, refusal)
        except Exception as error:  # noqa: BLE001 - the client gets an error of AWS
            return _refusal(service, Refuse(500, "ServerException", repr(error)))


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


def _refusal(service: str, refusal: Refuse) -> Answer:
    """An error in the format of the service's protocol."""
    if service == "sts":
        code, message = escape(refusal.code), escape(refusal.message)
        body = (
            f"<ErrorResponse><Error><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
        )
        return Answer(refusal.status, "text/xml", body.encode())
    error = {"__type": refusal.code, "message": refusal.message}
    return Answer(refusal.status, _JSON, json.dumps(error).encode())


def _moto(service: Any, request: HttpRequest, account: str) -> Answer:
    """The answer of a service of moto to a caller of the account."""
    headers = {**request.headers, "x-moto-account-id": account}
    post = Request.from_primitives("POST", "http://127.0.0.1/", headers, request.body)
    status, answered, body = service.dispatch(post, post.url, post.headers)
    return Answer(status, answered.get("Content-Type", "text/xml"), str(body).encode())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler: type[Handler], answer: Callable[[HttpRequest], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.answer = answer
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report errors, except that a client disconnected."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
