"""The server under five hundred slow clients and several of every worse kind, all at once.

`make bench-hostile` measures how long scrapes take beside them.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.certificates import Authority
from support.command import Command, eventually, running
from support.hostile import crowd
from support.serving import port_of, serving

from exporter.http.server import Limits, Server

SCRAPES = 10
#: Seconds between two, in which clients that were hung up come back.
PAUSE = 0.2
#: Seconds that the client of a scrape waits for each byte.
PATIENCE = 30.0
#: Memory of all connections together: stacks, TLS, and what they sent so far.
MEBIBYTES = 40
#: Threads of polling and of the demo's AWS, which begin when there is work.
BESIDES = 32

plain_and_tls = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


def web_config(folder: Path, *, tls: bool) -> str:
    """The path of a web configuration."""
    file = folder / "web.yml"
    file.write_text("tls_server_config: {cert_file: server.crt, key_file: server.key}\n" if tls else "")
    Authority().issue(folder, "server")
    return str(file)


def connect(port: int, *, tls: bool) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    if not tls:
        return connection
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(connection)


def scrape(port: int, *, tls: bool) -> bytes:
    with connect(port, tls=tls) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return received(connection)


def received(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def figure(command: Command, name: str) -> int:
    """Threads, or kibibytes of VmRSS or VmHWM, as Linux counts them."""
    text = Path(f"/proc/{command.process.pid}/status").read_text()
    match = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
    assert match
    return int(match[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc is needed, which Linux has")
@plain_and_tls
def test_a_hostile_crowd_neither_stops_scrapes_nor_grows_the_process(tmp_path: Path, tls: bool) -> None:
    with running(tmp_path, "--demo", f"--web.config.file={web_config(tmp_path, tls=tls)}") as command:
        port = int(command.url.rpartition(":")[2])
        eventually(lambda: b"ecr_image_replication_status{" in scrape(port, tls=tls))
        threads, memory = figure(command, "Threads"), figure(command, "VmRSS")
        pause = threading.Event()
        with crowd("127.0.0.1", port, tls=tls):
            for _ in range(SCRAPES):
                answer = scrape(port, tls=tls)
                assert answer.startswith(b"HTTP/1.1 200 ")
                assert answer.endswith(b"\n")
                assert figure(command, "Threads") <= threads + Limits().connections + BESIDES
                pause.wait(PAUSE)
        assert figure(command, "VmHWM") - memory < MEBIBYTES * 1024
        # Every connection has ended, and its thread too.
        eventually(lambda: figure(command, "Threads") <= threads + BESIDES)
        # The demo's images fail, which the poller logs.
        assert not re.search("Traceback|level=error|level=warn logger=(?!poller)|_broke", command.log())
        assert command.stop()[0] == 0


@contextlib.contextmanager
def begun_heads(server: Server, number: int, *, tls: bool) -> Iterator[list[socket.socket]]:
    """Connections on which only a part of a head was sent."""
    with contextlib.ExitStack() as stack:
        begun = [stack.enter_context(connect(port_of(server), tls=tls)) for _ in range(number)]
        for connection in begun:
            with contextlib.suppress(OSError):
                connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: ")
        yield begun


@plain_and_tls
def test_late_heads_are_closed(tmp_path: Path, tls: bool) -> None:
    """Heads that come byte by byte, as many as there may be connections."""
    limits = Limits(request_time=1.0)
    with (
        serving(limits=limits, path=web_config(tmp_path, tls=tls)) as server,
        begun_heads(server, limits.connections, tls=tls) as late,
    ):
        eventually(lambda: not list(filter(is_open, late)))
        assert scrape(port_of(server), tls=tls).startswith(b"HTTP/1.1 200 ")


@plain_and_tls
def test_heads_that_end_in_time_are_answered(tmp_path: Path, tls: bool) -> None:
    """Heads that come byte by byte, as many as find room without another one being closed."""
    limits = Limits(request_time=PATIENCE)
    with (
        serving(limits=limits, path=web_config(tmp_path, tls=tls)) as server,
        begun_heads(server, limits.connections // 2, tls=tls) as slow,
    ):
        for _ in range(3):
            assert all(map(is_open, slow))
        for connection in slow:
            connection.sendall(b"\r\n\r\n")
            assert received(connection).startswith(b"HTTP/1.1 200 ")


def is_open(connection: socket.socket) -> bool:
    """Sends a byte more of a head."""
    try:
        connection.sendall(b"a")
    except OSError:
        return False
    return True
