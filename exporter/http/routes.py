"""Which request gets which response.

This module knows no sockets, and server.py knows no paths. A request never calls AWS.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Protocol
from urllib.parse import quote

from exporter import __version__, logs
from exporter.metrics.exposition import Page


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

_NO_STORE = ("Cache-Control", "no-store")
_STYLE = "body{font-family:sans-serif;margin:3rem auto;max-width:40rem;padding:0 1rem;line-height:1.5}"
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_PAGE_HEADERS = (
    ("Content-Type", "text/html; charset=utf-8"),
    (
        "Content-Security-Policy",
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("Referrer-Policy", "no-referrer"),
    _NO_STORE,
    ("X-Content-Type-Options", "nosniff"),
)
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
            "/": self._landing,
            "/config": self._config,
            _HEALTHY: self._healthy,
            _READY: self._ready,
            telemetry_path: self._metrics,
        }
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
            return look(request) if request.method in ("GET", "HEAD") else _not_allowed("GET, HEAD")
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

    def _landing(self, _: Request) -> Response:
        reason, awaited = self._app.healthy(), self._app.ready()
        state = f"Not healthy: {reason}." if reason else f"Not ready: {awaited}." if awaited else "Ready."
        links = "\n".join(
            f'<li><a href=".{escape(quote(path))}">{escape(path)}</a> {says}</li>'
            for path, says in (
                (self._telemetry_path, "the metrics"),
                ("/config", "the configuration in force, secrets masked"),
                (_HEALTHY, "whether the process works"),
                (_READY, "whether each registry has answered or failed once"),
            )
        )
        page = _LANDING.format(state=escape(state), links=links)
        return Response(200, (page.encode(),), _PAGE_HEADERS)


_LANDING = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ECR replication exporter</title>
<style>{_STYLE.replace("{", "{{").replace("}", "}}")}</style>
</head>
<body>
<h1>ECR replication exporter</h1>
<p>Version {escape(__version__)}. {{state}}</p>
<ul>
{{links}}
</ul>
</body>
</html>
"""


def _not_allowed(allowed: str) -> Response:
    return text(405, f"Only {allowed.replace(', ', ' and ')} are answered here.", ("Allow", allowed))
