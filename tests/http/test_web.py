"""TLS and passwords on real sockets, with certificates and files that change."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import resource
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import bcrypt
import pytest
from support.certificates import Authority
from support.command import eventually
from support.fakes import FakeClock
from support.serving import Echo, port_of, sip
from support.serving import serving as serving_routes

from exporter import logs
from exporter.config.validators import Secret
from exporter.config.yaml_source import ConfigError
from exporter.http.auth import Passwords
from exporter.http.routes import Request, Response, Routes, text
from exporter.http.server import Limits, Server
from exporter.http.web_config import RETRY, WebConfig


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def folder(tmp_path: Path, authority: Authority) -> Path:
    authority.issue(tmp_path, "server")
    authority.write(tmp_path / "ca.crt")
    return tmp_path


def certificate(server: Server, tls: ssl.SSLContext) -> bytes | None:
    with (
        socket.create_connection(("127.0.0.1", port_of(server)), timeout=5) as connection,
        tls.wrap_socket(connection, server_hostname="127.0.0.1") as secure,
    ):
        return secure.getpeercert(binary_form=True)


def hashed(password: str, rounds: int = 4) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(rounds)).decode()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# -- passwords -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def passwords() -> Passwords:
    users = {"prom": "open sesame", "jörg": "ß: with: colons", "long": "x" * 72, "empty": ""}
    return Passwords({user: Secret(hashed(password)) for user, password in users.items()})


@pytest.mark.parametrize(
    "authorization",
    [
        basic("prom", "open sesame"),
        basic("prom", "open sesame").replace("Basic", "bAsIc"),
        basic("prom", "open sesame").replace("Basic ", "Basic   "),
        basic("jörg", "ß: with: colons"),
        basic("long", "x" * 72),
        basic("long", "x" * 72 + "what bcrypt never saw"),
        basic("empty", ""),
    ],
)
def test_who_knows_the_password_comes_in(passwords: Passwords, authorization: str) -> None:
    assert passwords.admit(authorization)
    assert passwords.admit(authorization)


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic",
        "Basic !!!",
        "Basic é",
        "Basic " + base64.b64encode(b"prom").decode(),
        "Bearer " + base64.b64encode(b"prom:open sesame").decode(),
        basic("prom", ""),
        basic("prom", "open sesame "),
        basic("prom", "open\0sesame"),
        basic("PROM", "open sesame"),
        basic("nobody", "open sesame"),
        basic("", ""),
        basic("long", "x" * 71),
        "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode(),
    ],
)
def test_who_does_not_stays_out(passwords: Passwords, authorization: str) -> None:
    assert not passwords.admit(authorization)
    assert not passwords.admit(authorization)


def test_without_users_everybody_comes_in() -> None:
    assert Passwords({}).admit("")
    assert Passwords({}).admit(basic("prom", "whatever"))


def test_an_unknown_user_never_has_the_password_of_the_hash_it_is_compared_with() -> None:
    passwords = Passwords({"prom": Secret(hashed("open sesame"))})
    assert passwords.admit(basic("prom", "open sesame"))
    assert not passwords.admit(basic("nobody", "open sesame"))
    assert not passwords.admit(basic("nobody", "open sesame"))


def test_an_unknown_user_costs_as_much_as_the_costliest() -> None:
    rounds = {"cheap": 4, "dear": 12}
    passwords = Passwords({user: Secret(hashed("x", cost)) for user, cost in rounds.items()})
    assert cpu_seconds(passwords, "nobody", "x") > 20 * cpu_seconds(passwords, "cheap", "wrong")


def cpu_seconds(passwords: Passwords, user: str, password: str) -> float:
    """Of this thread alone, so that it holds on a busy machine."""
    began = time.thread_time()
    passwords.admit(basic(user, password))
    return time.thread_time() - began


def test_right_passwords_are_remembered() -> None:
    passwords = Passwords({"prom": Secret(hashed("x", 12))})
    first, second = (cpu_seconds(passwords, "prom", "x") for _ in range(2))
    assert second < first / 20


def test_a_hash_that_is_no_hash_admits_nobody() -> None:
    assert not Passwords({"odd": Secret("not a hash")}).admit(basic("odd", "not a hash"))


def test_many_at_once_wait_their_turn_or_give_up() -> None:
    passwords = Passwords({"prom": Secret(hashed("x", 12))})
    outcomes: list[str] = []

    def guess(number: int) -> None:
        try:
            outcomes.append(str(passwords.admit(basic("prom", f"guess {number}"))))
        except TimeoutError:
            outcomes.append("busy")

    threads = [threading.Thread(target=guess, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(outcomes) == 30
    assert set(outcomes) == {"False", "busy"}


# -- files ---------------------------------------------------------------------------------------


TLS = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    logs.setup("debug", "logfmt", stream)
    yield stream
    logs.setup("info", "logfmt")


class _Hello(Echo):
    def is_probe(self, request: Request) -> bool:
        return request.path.startswith("/-/")

    def answer(self, request: Request) -> Response:
        return text(200, request.path, ("X-Frame-Options", "SAMEORIGIN"))


@contextmanager
def serving(
    folder: Path, config: str, limits: Limits | None = None, routes: Routes | None = None
) -> Iterator[Server]:
    path = folder / "web.yaml"
    path.write_text(config)
    with serving_routes(routes or _Hello(), limits, str(path)) as server:
        yield server


def trusting(folder: Path, own: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    if own:
        context.load_cert_chain(*own)
    return context


def get(
    server: Server, tls: ssl.SSLContext | None = None, authorization: str = "", path: str = "/"
) -> http.client.HTTPResponse:
    """The answer, read to its end."""
    port = port_of(server)
    connection = (
        http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=tls)
        if tls
        else http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    )
    with closing(connection):
        connection.request("GET", path, headers={"Authorization": authorization} if authorization else {})
        response = connection.getresponse()
        response.read()
        return response


def is_refused(server: Server, tls: ssl.SSLContext) -> bool:
    """TLS 1.3 refuses a client certificate only after the client's handshake."""
    try:
        get(server, tls)
    except (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected):
        return True
    return False


def test_without_a_file_nothing_is_told_of_it() -> None:
    shown: list[bool] = []
    assert WebConfig(None, on_load=shown.append).current().settings.headers == {}
    assert not shown


def test_without_a_file_no_other_file_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown: list[bool] = []
    web = WebConfig(None, on_load=shown.append)
    (tmp_path / "state").write_text("changes the working directory")
    assert web.current().settings.headers == {}
    assert not shown


def test_no_file_is_no_tls_and_no_password(tmp_path: Path) -> None:
    with serving(tmp_path, "") as server:
        assert get(server).status == 200


def test_passwords_hold_for_every_path_and_headers_for_every_answer(tmp_path: Path) -> None:
    config = f"""
basic_auth_users:
  prom: {hashed("open sesame")}
http_server_config:
  headers:
    X-Frame-Options: deny
"""
    with serving(tmp_path, config) as server:
        for path in ("/", "/metrics", "/-/healthy", "/nothing"):
            refused, admitted = get(server, path=path), get(server, None, basic("prom", "open sesame"), path)
            assert (refused.status, admitted.status) == (401, 200)
            assert (refused.headers["WWW-Authenticate"] or "").startswith('Basic realm="')
            assert refused.headers.get_all("X-Frame-Options") == ["deny"]
            assert admitted.headers.get_all("X-Frame-Options") == ["deny"]


def test_a_changed_password_counts_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, f"basic_auth_users:\n  prom: {hashed('old')}\n") as server:
        assert get(server, None, basic("prom", "old")).status == 200
        (tmp_path / "web.yaml").write_text(f"basic_auth_users:\n  prom: {hashed('new')}\n")
        assert get(server, None, basic("prom", "old")).status == 401
        assert get(server, None, basic("prom", "new")).status == 200


def test_tls(folder: Path) -> None:
    with serving(folder, TLS) as server:
        assert get(server, trusting(folder)).status == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            get(server, ssl.create_default_context())


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ("", "TLSv1.3"),
        ("  min_version: TLS13\n", "TLSv1.3"),
        ("  max_version: TLS12\n", "TLSv1.2"),
    ],
)
def test_tls_versions(folder: Path, versions: str, expected: str) -> None:
    with (
        serving(folder, TLS + versions) as server,
        socket.create_connection(("127.0.0.1", port_of(server)), timeout=5) as connection,
        trusting(folder).wrap_socket(connection, server_hostname="127.0.0.1") as secure,
    ):
        assert secure.version() == expected


def test_too_old_a_version_is_refused(folder: Path) -> None:
    old = trusting(folder)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with serving(folder, TLS + "  min_version: TLS13\n") as server:
        assert is_refused(server, old)


def test_required_client_certificates(folder: Path, authority: Authority, written: io.StringIO) -> None:
    known = authority.issue(folder, "prometheus")
    stranger = Authority("stranger").issue(folder, "stranger")
    clients = "  client_ca_file: ca.crt\n  client_auth_type: RequireAndVerifyClientCert\n"
    with serving(folder, TLS + clients) as server:
        assert get(server, trusting(folder, known)).status == 200
        assert is_refused(server, trusting(folder, stranger))
        assert is_refused(server, trusting(folder))
    assert "level=error" not in written.getvalue()


def test_client_certificates_if_given(folder: Path, authority: Authority) -> None:
    known = authority.issue(folder, "prometheus")
    stranger = Authority("stranger").issue(folder, "stranger")
    clients = "  client_ca_file: ca.crt\n  client_auth_type: VerifyClientCertIfGiven\n"
    with serving(folder, TLS + clients) as server:
        assert get(server, trusting(folder, known)).status == 200
        assert get(server, trusting(folder)).status == 200
        assert is_refused(server, trusting(folder, stranger))


def test_a_rotated_certificate_is_served_at_once(folder: Path, authority: Authority) -> None:
    with serving(folder, TLS) as server:
        before = certificate(server, trusting(folder))
        assert certificate(server, trusting(folder)) == before
        authority.issue(folder, "server")
        assert certificate(server, trusting(folder)) != before


def test_a_certificate_swapped_as_kubernetes_does_it(folder: Path, authority: Authority) -> None:
    for version in ("1", "2"):
        (folder / version).mkdir()
        authority.issue(folder / version, "server")
    (folder / "data").symlink_to("1")
    config = TLS.replace("server.", "data/server.")
    with serving(folder, config) as server:
        before = certificate(server, trusting(folder))
        (folder / "next").symlink_to("2")
        (folder / "next").replace(folder / "data")
        assert certificate(server, trusting(folder)) != before


def test_half_a_rotation_keeps_the_last_good_one(
    folder: Path, authority: Authority, written: io.StringIO
) -> None:
    key = folder / "server.key"
    with serving(folder, TLS) as server:
        before, old_key = certificate(server, trusting(folder)), key.read_bytes()
        authority.issue(folder, "server")
        new_key = key.read_bytes()
        key.write_bytes(old_key)
        for _ in range(3):
            assert certificate(server, trusting(folder)) == before
        assert written.getvalue().count("msg=web_config_invalid") == 1
        key.write_bytes(new_key)
        eventually(lambda: certificate(server, trusting(folder)) != before)
    assert "msg=web_config_reloaded" in written.getvalue()
    assert "Traceback" not in written.getvalue()


def test_a_broken_file_keeps_the_last_good_one(tmp_path: Path, written: io.StringIO) -> None:
    hash_ = hashed("open sesame")
    with serving(tmp_path, f"basic_auth_users:\n  prom: {hash_}\n") as server:
        for broken in ("basic_auth_users: [", "tls_server_confg: {}", TLS):
            (tmp_path / "web.yaml").write_text(broken)
            assert get(server).status == 401
            assert get(server, None, basic("prom", "open sesame")).status == 200
        (tmp_path / "web.yaml").unlink()
        assert get(server).status == 401
        (tmp_path / "web.yaml").write_text("")
        eventually(lambda: get(server).status == 200)
    assert written.getvalue().count("msg=web_config_invalid") >= 1
    assert written.getvalue().count("msg=web_config_reloaded") == 1
    assert hash_ not in written.getvalue()
    assert "open sesame" not in written.getvalue()


def test_certificates_that_come_after_the_file_that_names_them(folder: Path, authority: Authority) -> None:
    with serving(folder, TLS) as server:
        before = certificate(server, trusting(folder))
        (folder / "web.yaml").write_text(TLS.replace("server.", "late."))
        assert certificate(server, trusting(folder)) == before
        authority.issue(folder, "late")
        eventually(lambda: certificate(server, trusting(folder)) != before)


@pytest.mark.parametrize("broken", [TLS + "oops: 1\n", TLS.replace("server.", "nothing.")])
def test_a_certificate_is_rotated_also_while_the_file_is_broken(
    folder: Path, authority: Authority, broken: str
) -> None:
    with serving(folder, TLS) as server:
        before = certificate(server, trusting(folder))
        (folder / "web.yaml").write_text(broken)
        assert certificate(server, trusting(folder)) == before
        authority.issue(folder, "server")
        eventually(lambda: certificate(server, trusting(folder)) != before)


def test_each_change_that_breaks_the_file_is_told_once(tmp_path: Path, written: io.StringIO) -> None:
    clock, path = FakeClock(now=0.0), tmp_path / "web.yaml"
    good = "http_server_config: {headers: {X-Frame-Options: deny}}\n"
    path.write_text(good)
    shown: list[bool] = []
    web = WebConfig(str(path), on_load=shown.append, clock=clock.monotonic)
    assert shown.pop()
    for content, count in (("oops: 1\n", 1), (good, 1), ("others: 1\n", 2), ("third: 1\n", 3)):
        path.write_text(content)
        for _ in range(3):
            clock.now += RETRY
            assert web.current().settings.headers == {"X-Frame-Options": "deny"}
        assert shown.pop() == (content == good)
        assert written.getvalue().count("level=warn logger=web msg=web_config_invalid") == count
    assert "third" in written.getvalue()


def refusal(web: WebConfig, password: str) -> Response | None:
    return web.current().passwords.refusal(basic("prom", password))


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Nothing can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_could_not_be_read_is_tried_again_though_it_does_not_change(tmp_path: Path) -> None:
    clock = FakeClock(now=0.0)
    path = tmp_path / "web.yaml"
    path.write_text(f"basic_auth_users:\n  prom: {hashed('old')}\n")
    web = WebConfig(str(path), clock=clock.monotonic)
    path.write_text(f"basic_auth_users:\n  prom: {hashed('new')}\n")
    with no_descriptors():
        assert refusal(web, "old") is None
    clock.now += RETRY / 2
    assert refusal(web, "new")
    clock.now += RETRY / 2
    assert refusal(web, "new") is None
    assert refusal(web, "old")


@pytest.mark.parametrize(
    "config",
    [
        TLS.replace("server.crt", "nothing.crt"),
        TLS.replace("server.key", "nothing.key"),
        TLS.replace("server.key", "locked.key"),
        TLS.replace("server.key", "other.key"),
        TLS.replace("server.crt", "web.yaml"),
        TLS + "  client_ca_file: server.key\n  client_auth_type: RequireAndVerifyClientCert\n",
    ],
)
def test_what_is_broken_at_the_start_is_a_problem_with_its_file(
    folder: Path, authority: Authority, config: str
) -> None:
    authority.issue(folder, "locked", passphrase=b"secret")
    authority.issue(folder, "other")
    path = folder / "web.yaml"
    path.write_text(config)
    with pytest.raises(
        ConfigError, match=rf"web\.yaml: tls_server_config: one of {folder}/.+ cannot be used"
    ):
        WebConfig(str(path))


# -- connections and sessions from before ---------------------------------------------------------


CLIENTS = "  client_ca_file: ca.crt\n  client_auth_type: RequireAndVerifyClientCert\n"


@pytest.mark.parametrize(("before", "after"), [("", TLS), (TLS, TLS + CLIENTS), (TLS, "")])
def test_a_connection_from_before_tls_changed_gets_one_more_answer(
    folder: Path, before: str, after: str
) -> None:
    with serving(folder, before) as server, closing(open_to(server, folder, before)) as connection:
        assert not is_last(connection)
        assert not is_last(connection)
        (folder / "web.yaml").write_text(after)
        assert is_last(connection)


def test_a_connection_from_before_a_rotation_gets_one_more_answer(folder: Path, authority: Authority) -> None:
    with serving(folder, TLS) as server, closing(open_to(server, folder, TLS)) as connection:
        assert not is_last(connection)
        authority.issue(folder, "server")
        assert is_last(connection)


def test_a_connection_outlives_a_web_configuration_that_broke(folder: Path) -> None:
    with serving(folder, TLS) as server, closing(open_to(server, folder, TLS)) as connection:
        (folder / "web.yaml").write_text("oops: 1")
        assert not is_last(connection)
        assert not is_last(connection)


def test_a_password_that_is_newly_demanded_holds_for_connections_from_before(tmp_path: Path) -> None:
    with serving(tmp_path, "") as server, closing(open_to(server, tmp_path, "")) as connection:
        assert not is_last(connection)
        (tmp_path / "web.yaml").write_text(f"basic_auth_users:\n  prom: {hashed('new')}\n")
        connection.request("GET", "/")
        with connection.getresponse() as response:
            assert response.status == 401


def open_to(server: Server, folder: Path, config: str) -> http.client.HTTPConnection:
    port = port_of(server)
    if not config:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=trusting(folder))


def is_last(connection: http.client.HTTPConnection) -> bool:
    """Whether the answer to one more request is the last one."""
    connection.request("GET", "/")
    response = connection.getresponse()
    assert response.status == 200
    response.read()
    return response.will_close


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_expired_client_certificate_is_refused_also_where_a_session_is_taken_up_again(
    folder: Path, authority: Authority, version: ssl.TLSVersion
) -> None:
    lasting = timedelta(seconds=3)
    expires = time.time() + lasting.total_seconds()
    client = trusting(folder, authority.issue(folder, "client", lasting=lasting))
    client.maximum_version = version
    with serving(folder, TLS + CLIENTS) as server:
        answer, session = taken_up(server, client, None)
        assert answer.startswith(b"HTTP/1.1 200 ")
        threading.Event().wait(expires + 1 - time.time())
        assert is_refused(server, client)
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            answer, _ = taken_up(server, client, session)
            assert answer == b""


def taken_up(
    server: Server, tls: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[bytes, ssl.SSLSession | None]:
    """The answer, and the session that it was sent in."""
    with (
        socket.create_connection(("127.0.0.1", port_of(server)), timeout=5) as connection,
        tls.wrap_socket(connection, server_hostname="127.0.0.1", session=session) as secure,
    ):
        secure.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = secure.recv(100)
        return answer, secure.session


# -- hostile -------------------------------------------------------------------------------------


def test_what_is_no_tls_is_closed_and_not_logged(folder: Path, written: io.StringIO) -> None:
    with serving(folder, TLS, Limits(request_time=0.3)) as server:
        for garbage in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"\0" * 5000, b""):
            with socket.create_connection(("127.0.0.1", port_of(server)), timeout=5) as connection:
                connection.sendall(garbage)
                until_closed(connection)
        assert get(server, trusting(folder)).status == 200
    assert "level=error" not in written.getvalue()
    assert "level=warn" not in written.getvalue()


@pytest.mark.parametrize("request_", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"G", b"QUIT\r\n"])
def test_http_to_the_tls_port_is_refused_at_once(folder: Path, request_: bytes) -> None:
    with (
        serving(folder, TLS) as server,
        socket.create_connection(("127.0.0.1", port_of(server)), timeout=5) as connection,
    ):
        connection.sendall(request_)
        answer = b""
        while received := connection.recv(4096):
            answer += received
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"This port speaks HTTPS, and the client HTTP.\n")


def until_closed(connection: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        while connection.recv(4096):
            pass


def test_a_handshake_that_hangs_keeps_nobody_waiting(folder: Path) -> None:
    with serving(folder, TLS) as server:
        hanging = [socket.create_connection(("127.0.0.1", port_of(server)), timeout=5) for _ in range(10)]
        assert get(server, trusting(folder)).status == 200
        server.stop(1.0)
        for connection in hanging:
            until_closed(connection)
            connection.close()


def test_large_answers_and_refusals_over_tls(folder: Path) -> None:
    with serving(folder, TLS, Limits(linger_time=0.3)) as server:
        assert get(server, trusting(folder), path="/" + "a" * 10_000).status == 200
        assert get(server, trusting(folder), path="/" + "a" * 20_000).status == 414


class _Bulk(_Hello):
    def answer(self, request: Request) -> Response:  # noqa: ARG002 - as declared
        return Response(200, (b"x" * 65536,) * 1000)


def test_a_client_that_takes_the_answer_in_sips_is_hung_up_also_over_tls(folder: Path) -> None:
    with (
        serving(folder, TLS, Limits(answer_time=0.3), _Bulk()) as server,
        socket.create_connection(("127.0.0.1", port_of(server)), timeout=5) as connection,
        trusting(folder).wrap_socket(connection, server_hostname="127.0.0.1") as secure,
    ):
        secure.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sip(secure) < 65536 * 1000
