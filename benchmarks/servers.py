"""HTTP servers that serve the same kept page: alone, to a hostile crowd, to stalled downloads, at the stop.

Run it with `make bench-servers`, which installs the other servers for this alone. Each gets the bounds
that it has settings for, as near to the exporter's own as they go.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib
import re
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from wsgiref.simple_server import make_server

from support.hostile import crowd  # tests/hostile.py

from exporter.http.routes import Request, Response, Routes
from exporter.http.server import Server
from exporter.http.web_config import WebConfig

SERVERS = ("exporter", "prometheus_client", "waitress", "cheroot", "uvicorn", "uvicorn-limited")
LINES = 140_000
CONNECTIONS = 256
REQUESTS = 40
HEAD = 16 * 1024
BODY = 64 * 1024
BACKLOG = 4096
#: Seconds.
PATIENCE = 10.0
GRACE = 2.0
PAUSE = threading.Event()


# -- the servers ---------------------------------------------------------------------------------


def pages() -> dict[bool, bytes]:
    """The page, plain and compressed."""
    plain = "".join(
        f'ecr_image_replication_status{{repository="team/app-{n // 7000}",tag="build-{n // 12}",digest="",'
        f'source_registry_id="111122223333",source_region="us-east-1",region="eu-west-{n // 4 % 3}",'
        f'registry_id="111122223333",status="{n % 4}"}} {n % 4 // 3}\n'
        for n in range(LINES)
    ).encode()
    return {False: plain, True: gzip.compress(plain, 1)}


def wsgi(found: dict[bool, bytes]) -> Callable[..., Iterable[bytes]]:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        packed = "gzip" in environ.get("HTTP_ACCEPT_ENCODING", "")
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(found[packed])))]
        start_response("200 OK", headers + [("Content-Encoding", "gzip")] * packed)
        return [found[packed]]

    return app


def asgi(found: dict[bool, bytes]) -> Any:
    responses = importlib.import_module("starlette.responses")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        packed = b"gzip" in dict(scope["headers"]).get(b"accept-encoding", b"")
        headers = {"Content-Encoding": "gzip"} if packed else {}
        await responses.PlainTextResponse(found[packed], headers=headers)(scope, receive, send)

    return app


def serve_exporter(found: dict[bool, bytes], port: int, tls: str) -> None:
    kept = {
        packed: tuple(page[start : start + 65536] for start in range(0, len(page), 65536))
        for packed, page in found.items()
    }

    class Kept(Routes):
        def __init__(self) -> None:
            pass

        def answer(self, request: Request) -> Response:
            packed = "gzip" in request.headers.get("accept-encoding", "")
            return Response(200, kept[packed], (("Content-Encoding", "gzip"),) * packed)

    found.clear()
    server = Server([f"127.0.0.1:{port}"], Kept(), WebConfig(f"{tls}/web.yml" if tls else None))
    server.start()
    signal.sigwait({signal.SIGTERM})
    server.stop(GRACE)


def serve_prometheus_client(found: dict[bool, bytes], port: int, tls: str) -> None:
    """What its start_http_server starts, with the kept page instead of a registry."""
    exposition = importlib.import_module("prometheus_client.exposition")
    handler = vars(exposition)["_SilentHandler"]
    server = make_server("127.0.0.1", port, wsgi(found), exposition.ThreadingWSGIServer, handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(f"{tls}/tls.crt", f"{tls}/tls.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    signal.sigwait({signal.SIGTERM})
    server.shutdown()
    server.server_close()


def serve_waitress(found: dict[bool, bytes], port: int, _tls: str) -> None:
    server = importlib.import_module("waitress.server").create_server(
        wsgi(found),
        listen=f"127.0.0.1:{port}",
        threads=REQUESTS,
        connection_limit=CONNECTIONS,
        channel_timeout=10,
        cleanup_interval=1,
        max_request_header_size=HEAD,
        max_request_body_size=BODY,
        backlog=BACKLOG,
        asyncore_use_poll=True,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server.run()


def serve_cheroot(found: dict[bool, bytes], port: int, tls: str) -> None:
    server = importlib.import_module("cheroot.wsgi").Server(
        ("127.0.0.1", port),
        wsgi(found),
        numthreads=REQUESTS,
        timeout=10,
        shutdown_timeout=GRACE,
        request_queue_size=BACKLOG,
    )
    if tls:
        adapter = importlib.import_module("cheroot.ssl.builtin").BuiltinSSLAdapter
        server.ssl_adapter = adapter(f"{tls}/tls.crt", f"{tls}/tls.key")
    server.max_request_header_size = HEAD
    server.max_request_body_size = BODY
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.stop).start())
    server.start()


def serve_uvicorn(found: dict[bool, bytes], port: int, tls: str, **more: Any) -> None:
    if tls:
        more |= {"ssl_certfile": f"{tls}/tls.crt", "ssl_keyfile": f"{tls}/tls.key"}
    importlib.import_module("uvicorn").run(
        asgi(found),
        host="127.0.0.1",
        port=port,
        backlog=BACKLOG,
        access_log=False,
        log_level="warning",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(GRACE),
        **more,
    )


def serve(name: str, port: int, tls: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK if name in SERVERS[:2] else signal.SIG_UNBLOCK, {signal.SIGTERM})
    if name == "uvicorn-limited":
        serve_uvicorn(pages(), port, tls, limit_concurrency=REQUESTS)
    else:
        globals()[f"serve_{name}"](pages(), port, tls)


# -- the clients ---------------------------------------------------------------------------------


@dataclass
class Running:
    """A server in a process of its own, and what came of it."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def figure(self, name: str) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[0])

    def forget_peak(self) -> int:
        """Kibibytes resident now; from here on VmHWM is the peak."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.figure("VmRSS")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def ask(self, *, packed: bool) -> socket.socket:
        """A connection on which the page was asked for."""
        connection = self.connect()
        encoding = b"Accept-Encoding: gzip\r\n" * packed
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + encoding + b"\r\n")
        return connection

    def scrape(self, *, packed: bool) -> float:
        """Seconds, connecting included. Raises OSError for anything but a whole page."""
        began = time.perf_counter()
        with self.ask(packed=packed) as connection:
            connection.settimeout(PATIENCE)
            download(connection, until=began + PATIENCE)
        return time.perf_counter() - began


def download(connection: socket.socket, *, until: float, pause: float = 0.0) -> None:
    buffer = bytearray(1 << 20)
    first = b""
    while b"\r\n\r\n" not in first:
        if not (received := connection.recv(65536)):
            raise OSError("closed")
        first += received
    size = len(first)
    length = re.search(rb"(?i)content-length: *(\d+)", first)
    if not first.startswith(b"HTTP/1.1 200 ") and not first.startswith(b"HTTP/1.0 200 "):
        raise OSError(first[:12].decode("latin-1"))
    while taken := connection.recv_into(buffer):
        size += taken
        if time.perf_counter() > until:
            raise TimeoutError("not in time")
        if pause:
            PAUSE.wait(pause)
    if length is None or size < int(length[1]):
        raise OSError("cut")


@contextmanager
def running(name: str, tls: str = "") -> Iterator[Running]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as stderr:
            command = [sys.executable, __file__, "--serve", name, str(port), tls]
            process = subprocess.Popen(command, stderr=stderr, stdout=stderr)
        server = Running(process, port, log)
        try:
            for _ in range(200):
                with contextlib.suppress(ConnectionRefusedError):
                    server.connect().close()
                    break
                PAUSE.wait(0.1)
            else:
                raise SystemExit(f"{name} did not start:\n{log.read_text()}")
            yield server
        finally:
            process.kill()
            process.wait()


@dataclass
class Scrapes:
    """Seconds of those that came whole, and how the others ended."""

    seconds: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add(self, server: Running, *, packed: bool) -> None:
        try:
            self.seconds.append(server.scrape(packed=packed))
        except OSError as error:
            self.failed.append(str(error) or type(error).__name__)

    def __str__(self) -> str:
        if not self.seconds:
            return f"none of {len(self.failed)} ({max(set(self.failed), key=self.failed.count)})"
        middle, worst = statistics.median(self.seconds), max(self.seconds)
        failed = f", {len(self.failed)} failed ({self.failed[0]})" if self.failed else ""
        return f"{middle * 1000:.1f} / {worst * 1000:.0f}{failed}"


def alone(names: Iterable[str], rounds: int) -> None:
    print("\nAlone, milliseconds, median / worst, in turns")
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(running(name)) for name in names}
        took = {name: {False: Scrapes(), True: Scrapes()} for name in servers}
        for _ in range(rounds):
            for name, server in servers.items():
                for packed in (False, True):
                    took[name][packed].add(server, packed=packed)
        for name, server in servers.items():
            threads, peak = server.figure("Threads"), server.figure("VmHWM") // 1024
            print(
                f"{name:18} plain {took[name][False]!s:>16}   gzip {took[name][True]!s:>16}"
                f"   {threads} threads, {peak} MiB"
            )


def hostile(name: str, rounds: int) -> None:
    with running(name) as server:
        server.scrape(packed=False)
        began, threads = server.forget_peak(), 0
        took = {False: Scrapes(), True: Scrapes()}
        with crowd("127.0.0.1", server.port):
            end = time.monotonic() + 60
            for _ in range(rounds):
                PAUSE.wait(0.2)
                if time.monotonic() < end:
                    for packed in (False, True):
                        took[packed].add(server, packed=packed)
                threads = max(threads, server.figure("Threads"))
        peak = (server.figure("VmHWM") - began) // 1024
        tracebacks = server.log.read_bytes().count(b"Traceback")
        print(
            f"{name:18} plain {took[False]!s:>26}   gzip {took[True]!s:>26}   "
            f"{threads} threads, +{peak} MiB, {tracebacks} tracebacks"
        )


def stalled(name: str) -> None:
    """Sixty ask for the page and take none of it: what does one more get?"""
    with running(name) as server:
        server.scrape(packed=False)
        began = server.forget_peak()
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                with contextlib.suppress(OSError):
                    stack.enter_context(server.ask(packed=False))
            one_more = Scrapes()
            one_more.add(server, packed=True)
            later = Scrapes()
            PAUSE.wait(1.5)
            later.add(server, packed=True)
            peak = (server.figure("VmHWM") - began) // 1024
            print(f"{name:18} at once {one_more}; 1.5 s later {later}; +{peak} MiB")


def stop(name: str) -> None:
    """SIGTERM while a download is under way, an idle connection and half a head are there."""
    with running(name) as server, server.connect() as idle, server.connect() as half:
        half.sendall(b"GET / HT")
        idle.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n")
        with server.ask(packed=False) as under_way:
            under_way.recv(1000, socket.MSG_PEEK)
            server.process.send_signal(signal.SIGTERM)
            began, whole = time.perf_counter(), "whole"
            try:
                download(under_way, until=began + PATIENCE, pause=0.05)
            except OSError as error:
                whole = str(error)
        try:
            server.process.wait(PATIENCE)
            print(f"{name:18} download {whole}, gone after {time.perf_counter() - began:.1f} s")
        except subprocess.TimeoutExpired:
            print(f"{name:18} download {whole}, still there after {PATIENCE:.0f} s")


def handshake(name: str, folder: str) -> None:
    """With TLS: one client connects and says nothing; how long does the next one wait for its handshake?"""
    with running(name, folder) as server, server.connect():
        PAUSE.wait(0.5)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        began = time.perf_counter()
        try:
            with context.wrap_socket(server.connect()):
                print(f"{name:18} {time.perf_counter() - began:.3f} s")
        except OSError as error:
            print(f"{name:18} not within {time.perf_counter() - began:.0f} s ({error})")


def certificate(folder: str) -> None:
    """Made by openssl, which the machine has to have."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-keyout", f"{folder}/tls.key"]
    command = ["openssl", "req", "-x509", *key, "-out", f"{folder}/tls.crt", "-subj", "/CN=x", "-days", "1"]
    subprocess.run(command, check=True, capture_output=True)
    Path(f"{folder}/web.yml").write_text("tls_server_config: {cert_file: tls.crt, key_file: tls.key}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs=3, metavar=("NAME", "PORT", "TLS"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("only", nargs="*", default=SERVERS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve[0], int(arguments.serve[1]), arguments.serve[2])
        return
    found = pages()
    print(f"A page of {len(found[False]) / 1e6:.1f} MB, {len(found[True]) / 1e6:.2f} MB with gzip")
    alone(arguments.only, arguments.rounds)
    print("\nUnder a hostile crowd, milliseconds, median / worst")
    for name in arguments.only:
        hostile(name, arguments.rounds)
    print("\nBeside sixty downloads that stall, milliseconds, median / worst")
    for name in arguments.only:
        stalled(name)
    print("\nSIGTERM")
    for name in arguments.only:
        stop(name)
    print("\nA TLS handshake beside one that never comes")
    with tempfile.TemporaryDirectory() as folder:
        certificate(folder)
        for name in arguments.only:
            if name == "waitress":
                print(f"{name:18} has no TLS")
            else:
                handshake(name, folder)


if __name__ == "__main__":
    main()
