"""The HTTP under the routes, on real sockets, with friendly and with hostile clients."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from support.serving import Echo, port_of, serving, sip

from exporter import logs
from exporter.http.routes import Request, Response
from exporter.http.server import Limits, Server
from exporter.http.web_config import WebConfig

QUICK = Limits(request_time=0.3, idle_time=0.3, answer_time=0.3, linger_time=0.3)


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """Everything that is logged, down to debug."""
    stream = io.StringIO()
    logs.setup("debug", "logfmt", stream)
    yield stream
    logs.setup("info", "logfmt")


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(server)), timeout=5)


def client(server: Server) -> closing[http.client.HTTPConnection]:
    return closing(http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=5))


def exchange(server: Server, request: bytes) -> bytes:
    """Everything that comes back until the server closes."""
    with connect(server) as connection:
        connection.sendall(request)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    while received := connection.recv(65536):
        answer += received
    return answer


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def is_served(server: Server) -> bool:
    with client(server) as http_client:
        http_client.request("GET", "/")
        return http_client.getresponse().status == 200


# -- friendly ------------------------------------------------------------------------------------


def test_a_request_arrives_decoded() -> None:
    with serving() as server, client(server) as http_client:
        http_client.putrequest("GET", "/a%20b?name[]=x&name[]=y%26&empty=")
        http_client.putheader("X-Two", "1")
        http_client.putheader("x-two", "2")
        http_client.endheaders()
        told = json.loads(http_client.getresponse().read())
    assert (told["method"], told["path"]) == ("GET", "/a b")
    assert told["query"] == {"name[]": ["x", "y&"], "empty": [""]}
    assert told["headers"]["x-two"] == "1, 2"


def test_a_connection_is_used_again_whatever_the_requests() -> None:
    with serving() as server, client(server) as http_client:
        for method, body in (
            ("GET", None),
            ("HEAD", None),
            ("POST", None),
            ("PUT", b""),
            ("GET", None),
        ):
            http_client.request(method, "/", body)
            response = http_client.getresponse()
            assert response.status == 200
            assert int(response.headers["Content-Length"]) > 0
            assert bool(response.read()) == (method != "HEAD")
            assert not response.will_close


def test_headers_of_an_answer() -> None:
    with serving() as server, client(server) as http_client:
        http_client.request("GET", "/")
        headers = http_client.getresponse().headers
    assert headers["Server"] == "ecr-replication-exporter"
    assert headers["Date"].endswith("GMT")
    assert "Connection" not in headers


def test_pipelined_requests_are_answered_in_order() -> None:
    with serving() as server:
        answer = exchange(
            server,
            b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\nHost: x\n\n"
            b"GET /3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        )
    assert re.findall(rb'"path": "(/\d)"', answer) == [b"/1", b"/2", b"/3"]
    assert answer.count(b"Connection: close") == 1


@pytest.mark.parametrize(
    "version",
    [b"HTTP/1.0\r\nConnection: keep-alive", b"HTTP/1.0", b"HTTP/1.1\r\nHost: x\r\nConnection: close"],
)
def test_it_closes_when_asked_to(version: bytes) -> None:
    with serving() as server:
        answer = exchange(server, b"GET / " + version + b"\r\n\r\n")
    assert status(answer) == 200
    assert b"\r\nConnection: close\r\n" in answer


def test_a_request_that_comes_byte_by_byte_is_read() -> None:
    with serving() as server, connect(server) as connection:
        for byte in b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n":
            connection.sendall(bytes([byte]))
        assert b"/slow" in read_all(connection)


def test_a_large_answer_arrives_whole() -> None:
    page = bytes(range(256)) * 65536
    with serving(Echo(lambda _: Response(200, (page,)))) as server, client(server) as http_client:
        http_client.request("GET", "/")
        assert http_client.getresponse().read() == page


def test_a_broken_answer_is_500_and_one_line(written: io.StringIO) -> None:
    def broken(_: Request) -> Response:
        raise ZeroDivisionError

    with serving(Echo(broken)) as server, client(server) as http_client:
        for _ in range(2):
            http_client.request("GET", "/")
            response = http_client.getresponse()
            assert response.status == 500
            response.read()
    lines = [line for line in written.getvalue().splitlines() if "level=error" in line]
    assert len(lines) == 2
    assert all("msg=answer_broke" in line and "ZeroDivisionError" in line for line in lines)


def test_a_connection_outlives_a_pause_of_a_minute() -> None:
    assert Limits().idle_time >= 120


# -- addresses -----------------------------------------------------------------------------------


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_several_addresses_each_tell_their_port() -> None:
    server = Server([("127.0.0.1", 0), ("localhost", 0)], Echo(), WebConfig(None))
    server.start()
    try:
        ports = [int(address.rpartition(":")[2]) for address in server.addresses]
        assert len(set(ports)) == 2
        for port in ports:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
    finally:
        server.stop(1.0)


@pytest.mark.parametrize("host", ["", "::"])
def test_no_host_means_every_one(host: str) -> None:
    server = Server([(host, 0)], Echo(), WebConfig(None))
    server.start()
    try:
        for client in ["127.0.0.1", *(["::1"] if has_ipv6() else [])]:
            socket.create_connection((client, port_of(server)), timeout=5).close()
    finally:
        server.stop(1.0)


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
def test_a_taken_port_is_an_error_that_names_the_address_and_frees_the_others(host: str) -> None:
    with socket.create_server((host, 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        first, second = free.getsockname()[1], taken.getsockname()[1]
        free.close()
        with pytest.raises(OSError, match=f"cannot listen on {host}:{second}: Address already in use"):
            Server([("127.0.0.1", first), (host, second)], Echo(), WebConfig(None))
        socket.create_server(("127.0.0.1", first)).close()


def test_an_unknown_host_is_an_error_that_names_it() -> None:
    with pytest.raises(OSError, match=r"cannot listen on nowhere\.invalid:80: "):
        Server([("nowhere.invalid", 80)], Echo(), WebConfig(None))


# -- hostile -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/1.1 x\r\n\r\n", 400),
        (b"GET / FTP/1.1\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /" + b"a" * 20_000, 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 3_000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 101 + b"\r\n", 431),
    ],
)
def test_what_is_no_request_is_told_so_and_closed(
    request_: bytes, expected: int, written: io.StringIO
) -> None:
    with serving(limits=QUICK) as server:
        answer = exchange(server, request_)
        assert status(answer) == expected
        assert b"\r\nConnection: close\r\n" in answer
        assert is_served(server)
    assert "Traceback" not in written.getvalue()


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 300000",
        b"Content-Length: 100000000",
        b"Content-Length: " + b"9" * 5000,
        b"Content-Length: x",
        b"Content-Length: -1",
        b"Content-Length: 0\r\nContent-Length: 300000",
        b"Transfer-Encoding: chunked",
        b"Expect: 100-continue\r\nContent-Length: 10",
    ],
)
def test_a_body_of_no_interest_is_answered_and_not_read(headers: bytes) -> None:
    with serving(limits=QUICK) as server:
        answer = exchange(server, b"POST / HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n\r\n" + b"x" * 300_000)
    assert status(answer) == 200
    assert b"\r\nConnection: close\r\n" in answer


def test_an_endless_body_does_not_hold_the_connection() -> None:
    with serving(limits=QUICK) as server, connect(server) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        wait_for(lambda: not can_send(connection, b"1000\r\n" + b"x" * 4096 + b"\r\n"))


def can_send(connection: socket.socket, data: bytes) -> bool:
    try:
        connection.sendall(data)
    except ConnectionError:
        return False
    return True


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: x\r\nX",
    ],
)
def test_who_does_not_finish_is_closed_in_time(said: bytes, written: io.StringIO) -> None:
    with serving(limits=QUICK) as server:
        assert exchange(server, said) == b""
    assert "level=error" not in written.getvalue()


def test_who_drips_is_closed_in_time() -> None:
    with serving(limits=QUICK) as server, connect(server) as connection:
        began = time.monotonic()
        pause = threading.Event()
        while can_send(connection, b"GET "):
            pause.wait(0.02)
            assert time.monotonic() < began + 2


@pytest.mark.parametrize("hello", [b"\x16", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03"])
def test_a_tls_handshake_is_refused_at_once(hello: bytes) -> None:
    with serving() as server:
        began = time.monotonic()
        answer = exchange(server, hello)
        assert time.monotonic() < began + 5
    assert status(answer) == 400
    assert b"This port speaks HTTP, and the client HTTPS." in answer


def test_an_idle_connection_is_closed_in_time() -> None:
    with serving(limits=QUICK) as server, connect(server) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status(read_all(connection)) == 200


def test_a_client_that_does_not_take_the_answer_is_hung_up(written: io.StringIO) -> None:
    page = Response(200, (b"x" * 50_000_000,))
    with serving(Echo(lambda _: page), limits=QUICK) as server, connect(server) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: "connection_ended" in written.getvalue())
        assert len(read_all(connection)) < 50_000_000
    assert "level=error" not in written.getvalue()


def test_a_client_that_takes_the_answer_in_sips_is_hung_up() -> None:
    page = Response(200, (b"x" * 65536,) * 4000)
    with serving(Echo(lambda _: page), limits=QUICK) as server, connect(server) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sip(connection) < 65536 * 4000


def test_a_client_that_does_not_read_gets_few_answers_ahead(written: io.StringIO) -> None:
    """Linux alone would keep 4 MiB for each, so that sixty such clients cost thousands of pages at once."""
    answers = []

    def reply(_: Request) -> Response:
        answers.append(1)
        return Response(200, (b"x" * 65536,))

    with serving(Echo(reply), limits=QUICK) as server, connect(server) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
        wait_for(lambda: "connection_ended" in written.getvalue())
    assert 0 < len(answers) * 65536 < 2**21


def test_aborted_downloads_leave_nothing_behind(written: io.StringIO) -> None:
    with serving(Echo(lambda _: Response(200, (b"x" * 5_000_000,)))) as server:
        before = threading.active_count()
        for _ in range(20):
            with connect(server) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                connection.recv(10)
        wait_for(lambda: threading.active_count() == before)
        assert is_served(server)
    assert not re.search("level=(warn|error|info)", written.getvalue())


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        pause.wait(0.005)


def test_slow_connections_are_bounded_and_scrapes_go_on() -> None:
    with serving(limits=Limits(connections=20)) as server:
        before = threading.active_count()
        slow = [connect(server) for _ in range(100)]
        try:
            for connection in slow:
                can_send(connection, b"GET / HT")
            began = time.monotonic()
            assert is_served(server)
            assert time.monotonic() < began + 1
            assert threading.active_count() <= before + 20
        finally:
            for connection in slow:
                connection.close()


class Stuck(io.StringIO):
    """A log whose writers wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.open = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        self.open.wait(10)
        return super().write(text)


@pytest.mark.usefixtures("written")
def test_a_new_connection_does_not_wait_for_the_thread_of_the_one_that_made_room() -> None:
    stuck = Stuck()
    with serving(limits=Limits(connections=16)) as server, contextlib.ExitStack() as stack:
        before = threading.active_count()
        for _ in range(15):
            stack.enter_context(connect(server)).sendall(b"GET / HT")
        wait_for(lambda: threading.active_count() == before + 15)
        logs.setup("debug", "logfmt", stuck)
        with connect(server) as newcomer:
            newcomer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            wait_for(stuck.reached.is_set)
            wait_for(lambda: threading.active_count() == before + 16)
        stuck.open.set()
    assert "Traceback" not in stuck.getvalue()


@pytest.mark.usefixtures("written")
def test_threads_that_do_not_end_are_bounded() -> None:
    stuck = Stuck()
    with serving(limits=Limits(connections=2, room_time=0.2)) as server, contextlib.ExitStack() as stack:
        before = threading.active_count()
        logs.setup("debug", "logfmt", stuck)
        for _ in range(2):
            stack.enter_context(connect(server)).sendall(b"GET / HT")
        wait_for(lambda: threading.active_count() == before + 2)
        with connect(server) as newcomer:
            assert newcomer.recv(1) == b""
        assert stuck.reached.is_set()
        assert threading.active_count() == before + 2
        stuck.open.set()
        wait_for(lambda: threading.active_count() <= before + 1)
        assert is_served(server)
    assert "Traceback" not in stuck.getvalue()


class Held:
    """An answer that waits until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()

    def __call__(self, _: Request) -> Response:
        self.entered.release()
        self.open.wait(10)
        return Response(200, (b"done",))


def test_of_too_many_requests_the_last_is_refused() -> None:
    client = Held()
    with serving(Echo(client, max_requests=2)) as server:
        busy = [connect(server) for _ in range(2)]
        for connection in busy:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert client.entered.acquire(timeout=5)
        refused = exchange(server, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert status(refused) == 503
        assert b"\r\nRetry-After: 1\r\n" in refused
        client.open.set()
        assert [status(read_all(connection)) for connection in busy] == [200, 200]
        for connection in busy:
            connection.close()
        assert is_served(server)


def test_probes_are_answered_however_many_requests_there_are() -> None:
    client = Held()

    def reply(request: Request) -> Response:
        return client(request) if request.path == "/metrics" else Response(200, (b"well",))

    with serving(Echo(reply, max_requests=1)) as server, connect(server) as busy:
        busy.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.entered.acquire(timeout=5)
        end = b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        for path in (b"/-/healthy", b"/-/ready"):
            assert status(exchange(server, b"GET " + path + end)) == 200, path
        assert status(exchange(server, b"GET /" + end)) == 503
        client.open.set()
        assert status(read_all(busy)) == 200


def test_who_does_not_take_the_answer_makes_room_for_who_does() -> None:
    page = Response(200, (b"x" * 20_000_000,))
    limits = Limits(slow_answer_time=0.1)
    with serving(Echo(lambda _: page, max_requests=2), limits=limits) as server:
        slow = [connect(server) for _ in range(2)]
        for connection in slow:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            connection.recv(1)
        assert is_served(server)
        for connection in slow:
            connection.close()


def test_when_all_are_busy_a_newcomer_is_closed_and_nobody_dropped() -> None:
    client = Held()
    with serving(Echo(client), limits=Limits(connections=1)) as server, connect(server) as busy:
        busy.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.entered.acquire(timeout=5)
        with connect(server) as newcomer:
            assert newcomer.recv(1) == b""
        client.open.set()
        assert status(read_all(busy)) == 200


# -- the end -------------------------------------------------------------------------------------


def test_stop_ends_idle_connections_at_once_and_lets_go_of_the_port() -> None:
    server = Server([("127.0.0.1", 0)], Echo(), WebConfig(None))
    server.start()
    with client(server) as idle:
        idle.request("GET", "/")
        idle.getresponse().read()
        began = time.monotonic()
        server.stop(5.0)
        assert time.monotonic() < began + 1
        assert idle.sock.recv(1) == b""
    socket.create_server(("127.0.0.1", port_of(server))).close()
    with pytest.raises(ConnectionRefusedError):
        connect(server)


def test_stop_waits_for_what_is_under_way() -> None:
    client = Held()
    with serving(Echo(client)) as server, connect(server) as busy:
        busy.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.entered.acquire(timeout=5)
        stopping = threading.Thread(target=server.stop, args=(5.0,))
        stopping.start()
        assert server.stopping.wait(5)
        client.open.set()
        answer = read_all(busy)
        stopping.join(5)
    assert status(answer) == 200
    assert b"\r\nConnection: close\r\n" in answer


def test_stop_waits_no_longer_than_the_deadline() -> None:
    client = Held()
    with serving(Echo(client)) as server, connect(server) as busy:
        busy.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.entered.acquire(timeout=5)
        began = time.monotonic()
        server.stop(0.2)
        assert time.monotonic() < began + 1
        assert busy.recv(1) == b""
        client.open.set()
