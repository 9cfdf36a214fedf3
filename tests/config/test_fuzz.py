"""Whatever comes in from outside: no input ends in a traceback, takes long, or takes anything else along.

What AWS may answer is played to the client in test_ecr.py; here are the configuration and HTTP.
"""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.serving import serving
from support.status import Reports

from exporter import logs
from exporter.config import settings as config
from exporter.config.settings import Settings, parse
from exporter.config.yaml_source import ConfigError, keys
from exporter.http.routes import Routes
from exporter.http.server import Limits, Server
from exporter.metrics.exposition import Page
from exporter.replication.store import Store

#: Seconds of processor time: twice what is promised, as other work on a machine slows its processors down.
LONGEST = 2.0

# -- the configuration -----------------------------------------------------------------------------

KEYS = st.sampled_from([*(key for known in keys(Settings).values() for key in known), "tragets", "<<", "*"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["1m", "0s", "9999999y", "team/*", "team/app", "v[", "us-east-1", "sha256:0", "~", "!!x"]
    )
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=30,
)
BOMB = "".join(
    f"{a}: &{a} [{','.join([f'*{b}'] * 9)}]\n" for a, b in zip("bcdefghij", "abcdefghi", strict=True)
)


def taken(text: str | bytes) -> Settings | list[str]:
    """The settings or the problems, in time."""
    began = time.process_time()
    try:
        found: Settings | list[str] = parse(text)
    except ConfigError as error:
        found = [str(problem) for problem in error.problems]
        assert found
        assert all(line.isprintable() for line in found)
    assert time.process_time() - began < LONGEST
    return found


@settings(max_examples=200)
@given(st.dictionaries(KEYS, TREES, max_size=6))
def test_any_tree_is_taken_or_every_problem_is_told(tree: dict[str, Any]) -> None:
    found = taken(yaml.safe_dump(tree))
    if isinstance(found, Settings):
        assert parse(config.to_yaml(found)).targets == found.targets


HOSTILE: dict[str, str | bytes] = {
    "bomb": f"a: &a [x]\n{BOMB}",
    "lists": "targets: " + "[" * 100_000,
    "mappings": "targets: " + "{a: " * 100_000,
    "integer": "max_images: " + "9" * 1_000_000,
    "exponent": "requests_per_second: 1e" + "9" * 100_000,
    "duration": "discovery_interval: " + "9" * 100_000 + "m",
    "stars": "targets: [{repository: '" + "a*" * 100_000 + "'}]",
    "brackets": "targets: [{repository: '" + "[a" * 50_000 + "'}]",
    "tags": "targets: [{repository: team/app, tags: [" + "v*," * 190_000 + "]}]",
    "anchors": "&a " * 100_000,
    "questions": "? " * 100_000,
    "dashes": "- " * 100_000,
    "tabs": "\t" * 1_000_000,
    "nulls": "\x00" * 1_000_000,
    "utf-16": "targets: [{repository: team/app}]".encode("utf-16"),
    "utf-32": "targets: [{repository: team/app}]".encode("utf-32"),
    "half a mark": b"\xff\xfe\xff",
    "no utf-8": b"\x80" * 100_000,
    "python": "targets: !!python/object/apply:os.system ['true']",
    "surrogate": "\U0001f4a9: \ud800".encode("utf-8", "surrogatepass"),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_costs_less_than_a_second(text: str | bytes) -> None:
    taken(text)


# -- HTTP ------------------------------------------------------------------------------------------

QUICK = Limits(request_time=2.0, idle_time=0.5, linger_time=0.1)


class App(Reports):
    """What the routes asks; all is well."""

    store = Store()

    def page(self, *, accept: str, accept_encoding: str, names: Sequence[str]) -> Page:
        return Page((json.dumps([accept, accept_encoding, list(names)]).encode(),), ())

    def healthy(self) -> str | None:
        return None

    def ready(self) -> str | None:
        return None

    def config(self) -> str:
        return "targets: []\n"

    def reload(self) -> Sequence[str]:
        return []

    def quit(self) -> None:
        pass


@pytest.fixture(scope="module")
def written() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    logs.setup("info", "logfmt", stream)
    yield stream
    logs.setup("info", "logfmt")


@pytest.fixture(scope="module")
def server(written: io.StringIO) -> Iterator[Server]:
    with serving(Routes(App(), lifecycle=True), QUICK) as server:
        yield server
    assert "level=error" not in written.getvalue()


def said(server: Server, request: bytes) -> bytes:
    """All that the server sends to who sends this and no more."""
    host, port = server.addresses[0].rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while more := client.recv(65536):
                received += more
        except ConnectionResetError:
            pass  # it was told enough
        return received


TARGETS = st.text(st.characters(codec="latin-1", exclude_characters=" \r\n"), min_size=1, max_size=60)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            "Accept Accept-Encoding Content-Length Transfer-Encoding Expect Connection Range"
            " Authorization If-None-Match Cookie X-Forwarded-For Upgrade TE".split()
        )
        | st.text(st.characters(codec="latin-1"), max_size=8),
        st.text(st.characters(codec="latin-1"), max_size=30),
    ),
    max_size=8,
)


@settings(max_examples=150)
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "PRI", "g e t", ""]),
    target=TARGETS,
    headers=HEADERS,
)
@example(method="GET", target="/metrics?" + "name[]=a&" * 100, headers=[])
@example(method="GET", target="http://[::1/metrics", headers=[])
@example(method="GET", target="/%00%ff%2e%2e/", headers=[("Host", "x" * 100)])
def test_any_request_is_answered_in_http(
    server: Server, method: str, target: str, headers: list[tuple[str, str]]
) -> None:
    lines = [f"{method} {target} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers)]
    answer = said(server, ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    assert not answer or answer.startswith(b"HTTP/1.1 ")
    assert b"HTTP/1.1 500 " not in answer


@settings(max_examples=150)
@given(st.binary(max_size=300))
def test_any_bytes_are_answered_or_hung_up_on(server: Server, request_: bytes) -> None:
    answer = said(server, request_)
    assert not answer or answer.startswith(b"HTTP/1.1 ")
    assert b"HTTP/1.1 500 " not in answer
    assert said(server, b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 200 ")
