"""The real command under five hundred slow clients and several of every worse kind, all at once."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from support.command import Command, eventually, running
from support.hostile import crowd

from exporter.http.server import Limits, parse_address

SCRAPES = 20
#: Seconds between two, in which clients that were hung up come back.
PAUSE = 0.2
#: Seconds that a scrape takes beside the crowd, and until the server has dealt with the arrival of the crowd.
WITHIN, ARRIVAL = 1.0, 30.0
#: Memory of all connections together: stacks, TLS, and what they sent so far.
MEBIBYTES = 40
#: Threads of connections, and of those that made room and have not ended.
CONNECTIONS = Limits().connections + Limits().leaving
#: Threads of polling, which begin when there is work.
BESIDES = 16


def certificate(folder: Path) -> Path:
    """A web configuration with a certificate that no client verifies."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    pkcs8, no_password = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "tls.crt").write_bytes(signed.public_bytes(encoding))
    (folder / "tls.key").write_bytes(key.private_bytes(encoding, pkcs8, no_password))
    file = folder / "web.yml"
    file.write_text("tls_server_config: {cert_file: tls.crt, key_file: tls.key}\n")
    return file


def connect(address: tuple[str, int], *, tls: bool) -> socket.socket:
    connection = socket.create_connection(address, timeout=ARRIVAL)
    if not tls:
        return connection
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(connection)


def scrape(address: tuple[str, int], *, tls: bool) -> tuple[bytes, float]:
    """The answer, and the seconds from connecting to its last byte."""
    began = time.monotonic()
    answer = b""
    with connect(address, tls=tls) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        while received := connection.recv(65536):
            answer += received
    return answer, time.monotonic() - began


def figure(command: Command, name: str) -> int:
    """Threads, or kibibytes of VmRSS or VmHWM, as Linux counts them."""
    text = Path(f"/proc/{command.process.pid}/status").read_text()
    match = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
    assert match
    return int(match[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc is needed, which Linux has")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_hostile_crowd_neither_stops_scrapes_nor_grows_the_process(tmp_path: Path, tls: bool) -> None:
    flags = ["--demo", *([f"--web.config.file={certificate(tmp_path)}"] if tls else [])]
    with running(tmp_path, *flags) as command:
        address = parse_address(command.url.removeprefix("http://"))
        eventually(lambda: b"ecr_image_replication_status{" in scrape(address, tls=tls)[0])
        threads, memory = figure(command, "Threads"), figure(command, "VmRSS")
        with crowd(*address, tls=tls):
            eventually(lambda: scrape(address, tls=tls)[1] < WITHIN, within=ARRIVAL)
            took, pause = [], threading.Event()
            for _ in range(SCRAPES):
                answer, seconds = scrape(address, tls=tls)
                assert answer.startswith(b"HTTP/1.1 200 ")
                assert answer.endswith(b"\n")
                took.append(seconds)
                assert figure(command, "Threads") <= threads + CONNECTIONS + BESIDES
                pause.wait(PAUSE)
        assert max(took) < WITHIN, took
        assert figure(command, "VmHWM") - memory < MEBIBYTES * 1024
        # Every connection has ended, and its thread too.
        eventually(lambda: figure(command, "Threads") <= threads + BESIDES)
        assert not re.search("Traceback|level=(error|warn)|_broke", command.log())
        code, seconds = command.stop()
        assert (code, seconds < 5) == (0, True)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_late_heads_are_closed(tmp_path: Path, tls: bool) -> None:
    """Heads that come byte by byte, as many as there may be connections."""
    flags = ["--demo", *([f"--web.config.file={certificate(tmp_path)}"] if tls else [])]
    with running(tmp_path, *flags) as command, contextlib.ExitStack() as stack:
        address = parse_address(command.url.removeprefix("http://"))
        connections = [stack.enter_context(connect(address, tls=tls)) for _ in range(Limits().connections)]
        began = time.monotonic()
        for connection in connections:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: ")
        pause = threading.Event()
        while connections := [connection for connection in connections if is_open(connection)]:
            assert time.monotonic() < began + 3 * Limits().request_time, f"{len(connections)} are open"
            pause.wait(1.0)
        assert scrape(address, tls=tls)[0].startswith(b"HTTP/1.1 200 ")


def is_open(connection: socket.socket) -> bool:
    """Sends a byte more of a head."""
    try:
        connection.sendall(b"a")
    except OSError:
        return False
    return True
