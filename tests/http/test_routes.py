"""Which request gets which answer; no sockets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from support.facts import hand_made
from support.status import Reports

from exporter.http.routes import Request, Response, Routes
from exporter.metrics.exposition import Page
from exporter.replication.store import Store


@dataclass
class FakeOffice(Reports):
    store: Store = field(default_factory=hand_made)
    unhealthy: str | None = None
    awaited: str | None = None
    problems: tuple[str, ...] = ()
    asked: list[tuple[str, str, list[str]]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)

    def page(self, *, accept: str, accept_encoding: str, names: Sequence[str]) -> Page:
        self.asked.append((accept, accept_encoding, list(names)))
        return Page((b"a 1\n",), (("Content-Type", "text/plain; version=0.0.4"), ("Vary", "Accept")))

    def healthy(self) -> str | None:
        return self.unhealthy

    def ready(self) -> str | None:
        return self.awaited

    def config(self) -> str:
        return "targets:\n- repository: team/app\n"

    def reload(self) -> Sequence[str]:
        self.done.append("reload")
        return self.problems

    def quit(self) -> None:
        self.done.append("quit")


def ask(routes: Routes, path: str, method: str = "GET") -> Response:
    return routes.answer(Request(method, path))


@pytest.fixture
def app() -> FakeOffice:
    return FakeOffice()


@pytest.fixture
def routes(app: FakeOffice) -> Routes:
    return Routes(app)


def test_metrics_are_passed_through_both_ways(app: FakeOffice, routes: Routes) -> None:
    headers = {"accept": "text/plain", "accept-encoding": "gzip"}
    response = routes.answer(Request("GET", "/metrics", {"name[]": ["a", "b"]}, headers))
    assert app.asked == [("text/plain", "gzip", ["a", "b"])]
    headers_sent = (
        ("Content-Type", "text/plain; version=0.0.4"),
        ("Vary", "Accept"),
        ("Cache-Control", "no-store"),
    )
    assert response == Response(200, (b"a 1\n",), headers_sent)


@pytest.mark.parametrize(
    "path", ["/", "/?x", "/api/v1/status", "/metrics", "/config", "/-/ready", "/-/reload", "/no"]
)
def test_no_cache_stores_an_answer(routes: Routes, path: str) -> None:
    assert ("Cache-Control", "no-store") in ask(routes, path).headers


def test_healthy_and_ready_say_why_not(app: FakeOffice, routes: Routes) -> None:
    assert (ask(routes, "/-/healthy").status, ask(routes, "/-/ready").status) == (200, 200)
    app.unhealthy, app.awaited = "no heartbeat", "2 targets"
    response = ask(routes, "/-/healthy")
    assert (response.status, response.body) == (503, b"Not healthy: no heartbeat.\n")
    response = ask(routes, "/-/ready")
    assert (response.status, response.body) == (503, b"Not ready: 2 targets.\n")


def test_config_is_plain_text(routes: Routes) -> None:
    response = ask(routes, "/config")
    assert (response.status, response.body) == (200, b"targets:\n- repository: team/app\n")
    assert dict(response.headers)["Content-Type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("path", ["/metrics/", "/nothing", "", "*", "/-/", "/config/x", "/METRICS"])
@pytest.mark.parametrize("method", ["GET", "POST", "BREW"])
def test_everything_else_is_not_found(routes: Routes, path: str, method: str) -> None:
    assert ask(routes, path, method).status == 404


@pytest.mark.parametrize(
    "path",
    ["/", "/api/v1/status", "/runbooks/ECRReplicaGone.md", "/metrics", "/config", "/-/healthy", "/-/ready"],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_what_is_to_be_looked_at_takes_get_and_head(routes: Routes, path: str, method: str) -> None:
    response = ask(routes, path, method)
    assert response.status == 405
    assert dict(response.headers)["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/-/reload", "/-/quit"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
@pytest.mark.parametrize("lifecycle", [True, False])
def test_what_acts_takes_post_and_put(app: FakeOffice, path: str, method: str, lifecycle: bool) -> None:
    response = ask(Routes(app, lifecycle=lifecycle), path, method)
    assert response.status == 405
    assert dict(response.headers)["Allow"] == "POST, PUT"
    assert b"POST and PUT" in response.body
    assert app.done == []


@pytest.mark.parametrize("path", ["/-/reload", "/-/quit"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_what_acts_needs_the_flag(app: FakeOffice, routes: Routes, path: str, method: str) -> None:
    response = ask(routes, path, method)
    assert response.status == 403
    assert b"--web.enable-lifecycle" in response.body
    assert app.done == []


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_with_the_flag_it_acts(app: FakeOffice, method: str) -> None:
    routes = Routes(app, lifecycle=True)
    assert ask(routes, "/-/reload", method).status == 200
    assert ask(routes, "/-/quit", method).status == 200
    assert app.done == ["reload", "quit"]


def test_a_failed_reload_names_all_problems(app: FakeOffice) -> None:
    app.problems = ("config.yaml:3: targets: bad", "config.yaml:9: registries: \udcff")
    response = ask(Routes(app, lifecycle=True), "/-/reload", "POST")
    assert response.status == 500
    assert response.body.decode().splitlines()[1:] == [
        "config.yaml:3: targets: bad",
        "config.yaml:9: registries: \\udcff",
    ]


def test_metrics_at_the_root_take_the_place_of_the_landing_page(app: FakeOffice) -> None:
    routes = Routes(app, telemetry_path="/")
    assert ask(routes, "/").body == b"a 1\n"
    assert ask(routes, "/metrics").status == 404


def test_probes_are_told_from_what_costs_something(app: FakeOffice) -> None:
    routes = Routes(app, telemetry_path="/-/ready")
    assert routes.is_probe(Request("GET", "/-/healthy"))
    for path in ("/", "/-/ready", "/-/reload", "/metrics"):
        assert not routes.is_probe(Request("GET", path))
