"""Clients that stop after the first gzip member read the whole page of the installed command."""

from __future__ import annotations

import html
import re
import socketserver
import subprocess
import threading
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from support.chromium import visit
from support.command import PATIENCE, Command, ask, eventually, running


class Proxy(socketserver.ThreadingTCPServer):
    """A proxy between a client and the exporter, which records the encoding of answers."""

    daemon_threads = True

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.exporter = urlsplit(url).netloc
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        #: The Content-Encoding of each answer to a request for /metrics.
        self.encodings: list[str | None] = []


class _Connection(socketserver.StreamRequestHandler):
    """Forwards one request and its answer, and changes only the header Connection."""

    server: Proxy

    def handle(self) -> None:
        target = self.rfile.readline().decode().split(" ")[1]
        headers = {}
        while (line := self.rfile.readline().decode().strip()) and ":" in line:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        with closing(HTTPConnection(self.server.exporter, timeout=PATIENCE)) as connection:
            connection.request("GET", target, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        if target == "/metrics":
            self.server.encodings.append(answer.headers["Content-Encoding"])
        del answer.headers["Connection"]
        with suppress(ConnectionError):
            self.wfile.write(f"HTTP/1.1 {answer.status} OK\r\nConnection: close\r\n".encode())
            self.wfile.write(answer.headers.as_bytes() + body)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """The demo once its images are known."""
    with running(tmp_path_factory.mktemp("demo"), "--demo") as command:
        eventually(lambda: ask(f"{command.url}/-/ready").status == 200)
        eventually(lambda: len(series(command.page())) > 300)
        yield command


@pytest.fixture
def proxy(demo: Command) -> Iterator[Proxy]:
    with Proxy(demo.url) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def series(page: str) -> set[str]:
    """The lines of a page without their values. Names and labels change less often than values."""
    return {
        line if line.startswith("#") else line.rpartition(" ")[0]
        for line in page.splitlines()
        if line.strip()
    }


def first_member(url: str, *_: Any) -> str:
    request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
        text = decoder.decompress(response.read())
    assert decoder.eof
    assert not decoder.unused_data
    return text.decode()


def with_httpx(url: str, *_: Any) -> str:
    return httpx.get(url, trust_env=False, timeout=PATIENCE).text


def with_curl(url: str, command: Callable[[str, str], str], _: Path) -> str:
    return output(command("curl", "curl"), "--compressed", "--silent", "--fail", "--noproxy", "*", url)


def with_chromium(url: str, command: Callable[[str, str], str], profile: Path) -> str:
    document = visit(command("chromium", "chromium"), url, profile).document
    found = re.search(r"<pre[^>]*>(.*)</pre>", document, re.DOTALL)
    assert found, document[:500]
    return html.unescape(found[1])


def output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("read", [first_member, with_httpx, with_curl, with_chromium])
def test_the_compressed_page_is_read_whole(
    read: Callable[[str, Callable[[str, str], str], Path], str],
    demo: Command,
    proxy: Proxy,
    command: Callable[[str, str], str],
    tmp_path: Path,
) -> None:
    def whole() -> bool:
        """Whether the client saw all that was there before and after. The demo may change in between."""
        before = series(demo.page())
        seen = series(read(f"{proxy.url}/metrics", command, tmp_path))
        lasting = before & series(demo.page())
        assert len(lasting) > 300
        return lasting <= seen

    eventually(whole)
    assert set(proxy.encodings) == {"gzip"}
