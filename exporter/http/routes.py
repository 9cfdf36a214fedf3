"""Which request gets which response.

This module knows no sockets, and server.py knows no paths. A request never calls AWS.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Protocol

from exporter import logs
from exporter.http import pages
from exporter.http.filters import Filters, QueryError
from exporter.http.report import Report, as_json
from exporter.metrics import gzip_stream
from exporter.metrics.exposition import Page, accepts_gzip


@dataclass(frozen=True, slots=True)
class Request:
    """A request. The path is decoded, and the names of headers are in lower case."""

    method: str
    path: str
    query: Mapping[str, Sequence[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Response:
    """A response. The server adds the length, the date and the like."""

    status: int
    #: The body in pieces, so that a large page is sent from kept blocks without a copy.
    pieces: tuple[bytes, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def body(self) -> bytes:
        """A copy of the body in one piece."""
        return b"".join(self.pieces)


class App(Protocol):
    """The functions behind the routes. Any number of threads may call them at once."""

    def page(self, *, accept: str, accept_encoding: str, names: Sequence[str]) -> Page:
        """The metrics page. `names` selects metrics; without names it has all of them."""

    def report(self, filters: Filters, *, limit: int) -> Report:
        """The report of the status page, with at most `limit` images."""

    def healthy(self) -> str | None:
        """Why the process should be restarted; None if it is healthy."""

    def ready(self) -> str | None:
        """What the exporter still waits for; None if it is ready."""

    def config(self) -> str:
        """The configuration in use, as YAML with masked secrets."""

    def reload(self) -> Sequence[str]:
        """Load the configuration again. Returns its problems; none if it is now in use."""

    def quit(self) -> None:
        """Stop the process soon."""


class Passwords(Protocol):
    """The users of the web configuration."""

    def refusal(self, authorization: str) -> Response | None:
        """What a client gets instead of an answer; None if its Authorization header gives access."""


#: Seconds that a request waits for one of `max_requests` to be answered.
_ROOM_TIME = 4.0
_HEALTHY, _READY = _PROBES = ("/-/healthy", "/-/ready")

STATUS_PATH = "/api/v1/status"
#: The images that the API shows, and the most of them.
ROWS, MOST_ROWS = 500, 10_000
#: docs/runbooks, which the page links to.
_RUNBOOKS = files(__package__).joinpath("runbooks")

_NO_STORE = ("Cache-Control", "no-store")
_JSON_HEADERS = (("Content-Type", "application/json"),)
_TEXT_HEADERS = (
    ("Content-Type", "text/plain; charset=utf-8"),
    ("X-Content-Type-Options", "nosniff"),
    _NO_STORE,
)


def text(status: int, sentence: str, *headers: tuple[str, str]) -> Response:
    """A response of plain text."""
    said = f"{sentence}\n".encode(errors="backslashreplace")
    return Response(status, (said,), (*_TEXT_HEADERS, *headers))


_OVERLOADED = text(503, "Too many requests at once, try again later.", ("Retry-After", "1"))
_BROKEN = text(500, "The exporter broke over this request; its log says how.")

_log = logs.get("server")


class Routes:
    """Answers requests, at most `max_requests` at once. Probes do not count, and sending does not either."""

    def __init__(
        self,
        app: App,
        *,
        telemetry_path: str = "/metrics",
        lifecycle: bool = False,
        max_requests: int = 40,
    ) -> None:
        self._app = app
        self._room = threading.BoundedSemaphore(max_requests)
        self._telemetry_path = telemetry_path
        self._lifecycle = lifecycle
        self._to_look: dict[str, Callable[[Request], Response]] = {
            "/": self._status_page,
            STATUS_PATH: self._status_api,
            "/config": self._config,
            _HEALTHY: self._healthy,
            _READY: self._ready,
            **dict.fromkeys((f"/runbooks/{page.name}" for page in _RUNBOOKS.iterdir()), self._runbook),
            telemetry_path: self._metrics,
        }
        self._links = (
            (telemetry_path, "the metrics"),
            (STATUS_PATH, "this page as JSON"),
            ("/config", "the configuration in use, secrets masked"),
            (_HEALTHY, "whether the process works"),
            (_READY, "whether each registry has answered or failed once"),
        )
        self._to_act = {"/-/reload": self._reload, "/-/quit": self._quit}

    def is_probe(self, request: Request) -> bool:
        """True for health probes, which bypass the request limit."""
        return request.path in _PROBES and request.path != self._telemetry_path

    def respond(self, request: Request, passwords: Passwords) -> Response:
        """The answer to a client that knows a password, if there is room for it. Raises nothing."""
        try:
            if refusal := passwords.refusal(request.headers.get("authorization", "")):
                return refusal
            if self.is_probe(request):
                return self.answer(request)
            if not self._room.acquire(timeout=_ROOM_TIME):
                return _OVERLOADED
            try:
                return self.answer(request)
            finally:
                self._room.release()
        except Exception as error:  # noqa: BLE001 - one broken page does not end the others
            _log.broken("answer_broke", error, path=request.path)
            return _BROKEN

    def answer(self, request: Request) -> Response:
        """The response. For HEAD it includes the body, which the server does not send.

        Raises only what the app raises.
        """
        if look := self._to_look.get(request.path):
            if request.method not in ("GET", "HEAD"):
                return _not_allowed("GET, HEAD")
            try:
                return look(request)
            except QueryError as error:
                return text(400, str(error))
        if act := self._to_act.get(request.path):
            return self._act(act) if request.method in ("POST", "PUT") else _not_allowed("POST, PUT")
        return text(404, "Nothing is here.")

    def _act(self, act: Callable[[], Response]) -> Response:
        if not self._lifecycle:
            return text(403, "This is not enabled; start the exporter with --web.enable-lifecycle.")
        return act()

    def _metrics(self, request: Request) -> Response:
        page = self._app.page(
            accept=request.headers.get("accept", ""),
            accept_encoding=request.headers.get("accept-encoding", ""),
            names=request.query.get("name[]", ()),
        )
        return Response(200, page.body, (*page.headers, _NO_STORE))

    def _healthy(self, _: Request) -> Response:
        reason = self._app.healthy()
        return text(503, f"Not healthy: {reason}.") if reason else text(200, "Healthy.")

    def _ready(self, _: Request) -> Response:
        awaited = self._app.ready()
        return text(503, f"Not ready: {awaited}.") if awaited else text(200, "Ready.")

    def _config(self, _: Request) -> Response:
        return Response(200, (self._app.config().encode(),), _TEXT_HEADERS)

    def _reload(self) -> Response:
        if problems := self._app.reload():
            return text(500, "\n".join(("Not reloaded, the old configuration stays:", *problems)))
        return text(200, "Reloaded.")

    def _quit(self) -> Response:
        self._app.quit()
        return text(200, "Stopping.")

    def _status_page(self, request: Request) -> Response:
        filters = Filters.of(request.query, "limit", "refresh")
        limit = _limit(request.query, pages.ROWS, pages.MOST_ROWS)
        # A refresh closes what was opened, and on a page of one image everything is open to be read.
        refresh = _one_of(request.query, "refresh", ("off", "on") if filters.digest else ("on", "off"))
        reason, awaited = self._app.healthy(), self._app.ready()
        page = pages.render(
            self._app.report(filters, limit=limit),
            filters=filters,
            limit=limit,
            state=f"Not healthy: {reason}." if reason else f"Not ready: {awaited}." if awaited else "Ready.",
            links=self._links,
            refreshes=refresh == "on",
        )
        return _document(request, page.encode(errors="backslashreplace"), pages.HEADERS)

    def _status_api(self, request: Request) -> Response:
        filters = Filters.of(request.query, "limit")
        report = self._app.report(filters, limit=_limit(request.query, ROWS, MOST_ROWS))
        return _document(request, as_json(report), _JSON_HEADERS)

    def _runbook(self, request: Request) -> Response:
        page = _RUNBOOKS.joinpath(request.path.rpartition("/")[2])
        return Response(200, (page.read_bytes(),), _TEXT_HEADERS)


def _document(request: Request, body: bytes, headers: tuple[tuple[str, str], ...]) -> Response:
    """The response with a body that is compressed for clients that accept it."""
    headers = (*headers, _NO_STORE, ("Vary", "Accept-Encoding"), ("X-Content-Type-Options", "nosniff"))
    if not accepts_gzip(request.headers.get("accept-encoding", "")):
        return Response(200, (body,), headers)
    pieces = gzip_stream.member(gzip_stream.compress(body))
    return Response(200, tuple(pieces), (*headers, ("Content-Encoding", "gzip")))


def _one_of(query: Mapping[str, Sequence[str]], name: str, values: tuple[str, ...]) -> str:
    """The value of a parameter; the first if it is absent. Raises QueryError."""
    value = query.get(name, values)[0]
    if value not in values:
        raise QueryError(f"{name} is {' or '.join(values)}, not {value!r}.")
    return value


def _limit(query: Mapping[str, Sequence[str]], default: int, most: int) -> int:
    """How many images are shown. Raises QueryError."""
    text = query.get("limit", [str(default)])[0]
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= most:
        raise QueryError(f"limit is a number from 1 to {most}, not {text!r}.")
    return int(text)


def _not_allowed(allowed: str) -> Response:
    return text(405, f"Only {allowed.replace(', ', ' and ')} are answered here.", ("Allow", allowed))
