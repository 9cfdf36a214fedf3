"""HTTP's small print over real sockets: the real routes and the real exposition, as docs/http.md has them."""

from __future__ import annotations

import gzip
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import bcrypt
import pytest
from support.fakes import FakeClock, Figures
from support.serving import port_of, serving
from support.status import Reports

from exporter.http.routes import Routes
from exporter.http.server import Server
from exporter.metrics.exposition import Exposition, Page
from exporter.metrics.self_metrics import Instruments
from exporter.replication.store import Store

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
#: With `scrape_native_histograms`, which put another format first that is not offered here.
PROTOBUF_FIRST = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,"
    + PROMETHEUS_3
)
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
LOOKED_AT = ("/", "/api/v1/status", "/metrics", "/config", "/-/healthy", "/-/ready")


class App(Reports):
    """The exposition of an empty store, and no more behind it."""

    def __init__(self) -> None:
        clock, self.store = FakeClock(), Store()
        self._exposition = Exposition(
            instruments=Instruments(), store=self.store, figures=Figures(), clock=clock
        )

    def page(self, *, accept: str, accept_encoding: str, names: Sequence[str]) -> Page:
        return self._exposition.page(accept=accept, accept_encoding=accept_encoding, names=names)

    def healthy(self) -> str | None:
        return None

    def ready(self) -> str | None:
        return "2 targets"

    def config(self) -> str:
        return "targets: []\n"

    def reload(self) -> Sequence[str]:
        return ()

    def quit(self) -> None:
        return


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


Ask = Callable[..., Answer]


def exchange(server: Server, request: bytes) -> bytes:
    """Everything that comes back until the server closes."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=5) as connection:
        connection.sendall(request)
        while received := connection.recv(65536):
            answer += received
    return answer


def parsed(answer: bytes) -> Answer:
    head, _, body = answer.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert len(headers) == len(lines), "a header came twice"
    return Answer(int(status_line.split(" ")[1]), headers, body)


@pytest.fixture
def web_config() -> str | None:
    return None


@pytest.fixture
def server(web_config: str | None) -> Iterator[Server]:
    with serving(Routes(App()), path=web_config) as server:
        yield server


@pytest.fixture
def ask(server: Server) -> Ask:
    """Send a request line with headers, on a connection of its own."""

    def ask(line: str, *headers: str) -> Answer:
        lines = (f"{line} HTTP/1.1", "Host: x", "Connection: close", *headers, "", "")
        return parsed(exchange(server, "\r\n".join(lines).encode()))

    return ask


# -- methods -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*LOOKED_AT, "/-/reload", "/nothing"])
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_head_is_get_without_the_body(ask: Ask, path: str, encoding: str) -> None:
    ask(f"GET {path}")
    head, get = (ask(f"{method} {path}", f"Accept-Encoding: {encoding}") for method in ("HEAD", "GET"))
    assert head.body == b""
    assert head.status == get.status
    assert int(get.headers["Content-Length"]) == len(get.body) > 0
    # A scrape counts the calls and the seconds before it: its length may differ by some digits.
    varying = {"Date", "Content-Length"} if path == "/metrics" else {"Date"}
    assert {k: v for k, v in head.headers.items() if k not in varying} == {
        k: v for k, v in get.headers.items() if k not in varying
    }
    assert abs(int(head.headers["Content-Length"]) - len(get.body)) < 100


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PUT", "POST", "DELETE", "PATCH", "CONNECT", "get"])
@pytest.mark.parametrize("path", LOOKED_AT)
def test_other_methods_are_told_which_are_right(ask: Ask, method: str, path: str) -> None:
    answer = ask(f"{method} {path}", "X-Secret: do not echo")
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"
    assert b"do not echo" not in answer.body


# -- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/metrics?", 200),
        ("/metrics?name[]=process_open_fds&debug", 200),
        ("/-/healthy?from=probe", 200),
        ("/%6detrics", 200),
        ("/-%2Fhealthy", 200),
        ("//metrics", 200),
        ("http://elsewhere.example:80/metrics?x=1", 200),
        ("HTTP://elsewhere.example/-/healthy", 200),
        ("http://elsewhere.example", 404),
        ("/metrics/", 404),
        ("/metrics//", 404),
        ("/metrics%00", 404),
        ("/%ff%fe", 404),
        ("/%zz", 404),
        ("/../metrics", 404),
        ("/./metrics", 404),
        ("/metrics;x", 404),
        ("*", 404),
        ("metrics", 404),
        ("x:443", 404),
    ],
)
def test_targets(ask: Ask, target: str, status: int) -> None:
    assert ask(f"GET {target}").status == status


# -- what is negotiated --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (PROMETHEUS_2, OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
        (PROTOBUF_FIRST, OPENMETRICS),
        ("text/plain;version=0.0.4;q=0.9,application/openmetrics-text;version=1.0.0;q=0.1", PLAIN),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", PLAIN),
        ("text/html,application/xhtml+xml,*/*;q=0.8", PLAIN),
        ("*/*", PLAIN),
        ("application/json", PLAIN),
        ("application/openmetrics-text;version=x", PLAIN),
        (";;,q=;,=", PLAIN),
    ],
)
def test_every_accept_gets_a_format_that_is_what_it_says(ask: Ask, accept: str, content_type: str) -> None:
    answer = ask("GET /metrics", f"Accept: {accept}")
    assert (answer.status, answer.headers["Content-Type"]) == (200, content_type)
    assert answer.headers["Vary"] == "Accept, Accept-Encoding"
    assert answer.body.endswith(b"# EOF\n") == (content_type == OPENMETRICS)


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True),
        ("*", True),
        ("br, gzip;q=0.1", True),
        ("gzip;q=0", False),
        ("identity;q=0", False),
        ("br", False),
        ("zstd, br", False),
        ("", False),
    ],
)
def test_every_accept_encoding_gets_what_it_can_read(ask: Ask, accepted: str, packed: bool) -> None:
    answer = ask("GET /metrics", f"Accept-Encoding: {accepted}")
    assert answer.status == 200
    assert answer.headers.get("Content-Encoding") == ("gzip" if packed else None)
    body = gzip.decompress(answer.body) if packed else answer.body
    assert body.startswith(b"# HELP ")


@pytest.mark.parametrize(
    "header",
    [
        'If-None-Match: "x"',
        "If-None-Match: *",
        "If-Modified-Since: Fri, 31 Dec 2100 23:59:59 GMT",
        "If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT",
        "Range: bytes=0-9",
        "Upgrade: h2c",
    ],
)
def test_what_is_asked_for_on_condition_or_in_part_is_given_whole(ask: Ask, header: str) -> None:
    answer = ask("GET /metrics", header)
    assert answer.status == 200
    assert len(answer.body) == int(answer.headers["Content-Length"]) > 1000
    assert not {"ETag", "Last-Modified", "Content-Range", "Upgrade"} & answer.headers.keys()


# -- the connection ------------------------------------------------------------------------------


def test_requests_in_one_go_are_answered_in_order(server: Server) -> None:
    last = b"GET /-/healthy HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, close\r\n\r\n"
    answer = exchange(
        server,
        b"GET /config HTTP/1.1\r\nHost: x\r\n\r\nHEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
        b"POST /-/ready HTTP/1.1\r\nHost: x\r\n\r\n" + last + b"GET / HTTP/1.1\r\n",
    )
    assert re.findall(rb"HTTP/1\.1 (\d+) ", answer) == [b"200", b"200", b"405", b"200"]
    assert answer.endswith(b"Healthy.\n")


def test_a_body_is_never_read_as_a_request(server: Server) -> None:
    body = b"GET /config HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"POST /-/ready HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = parsed(exchange(server, head + body))
    assert (answer.status, answer.headers["Connection"]) == (405, "close")
    assert b"HTTP/1.1" not in answer.body


@pytest.mark.parametrize("version", [b"", b" HTTP/1.0"])
def test_an_older_version_ends_with_the_answer(server: Server, version: bytes) -> None:
    answer = parsed(exchange(server, b"GET /-/healthy" + version + b"\r\n\r\n"))
    assert (answer.status, answer.headers["Connection"]) == (200, "close")


def test_who_waits_to_be_asked_for_a_body_gets_the_answer_instead(server: Server) -> None:
    head = b"PUT /metrics HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99\r\n\r\n"
    answer = parsed(exchange(server, head))
    assert (answer.status, answer.headers["Connection"]) == (405, "close")


@pytest.mark.parametrize("line", [b"no colon", b"Content-Length : 5", b": no name"])
def test_a_line_that_is_not_a_header_is_refused(server: Server, line: bytes) -> None:
    answer = parsed(exchange(server, b"GET / HTTP/1.1\r\n" + line + b"\r\nHost: x\r\n\r\n"))
    assert (answer.status, answer.headers["Connection"]) == (400, "close")


@pytest.mark.parametrize(
    ("line", "status"), [("GET /" + "a" * 16_384, 414), ("GET /config?" + "&".join(["name[]=a"] * 100), 200)]
)
def test_long_targets(ask: Ask, line: str, status: int) -> None:
    assert ask(line).status == status


# -- with a password -----------------------------------------------------------------------------


class TestWithAPassword:
    @pytest.fixture
    def web_config(self, tmp_path: Path) -> str:
        file = tmp_path / "web.yml"
        hashed = bcrypt.hashpw(b"x", bcrypt.gensalt(4)).decode()
        file.write_text(f"basic_auth_users: {{prometheus: {hashed}}}\n")
        return str(file)

    @pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE"])
    @pytest.mark.parametrize(
        "path", [*LOOKED_AT, "/-/reload", "/nothing", "*", "http://x/metrics", "//metrics"]
    )
    def test_nothing_is_told_before_it(self, ask: Ask, method: str, path: str) -> None:
        answer = ask(f"{method} {path}")
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")
        assert (answer.body == b"") == (method == "HEAD")
