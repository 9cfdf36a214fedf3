"""The status page and API over a store, without a poller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from exporter.http.filters import Filters
from exporter.http.report import Report
from exporter.http.reporter import Reporter
from exporter.http.routes import Request, Response, Routes
from exporter.metrics.exposition import Page
from exporter.replication.facts import RegistryFacts
from exporter.replication.model import Replication
from exporter.replication.store import Store
from exporter.replication.targets import WHOLE, Shard
from support.facts import OTHER, PUSHED, image, repository
from support.fakes import HOME, FakeClock


class Reports:
    """Reports about a store, an hour after its images were pushed. Each call of ECR is due in 12 s."""

    store: Store
    shard: Shard = WHOLE

    def report(self, filters: Filters, *, limit: int) -> Report:
        clock = FakeClock(now=100.0, wall_ahead=PUSHED + 3600)
        maker = Reporter(store=self.store, clock=clock, due=lambda *_: 112.0, shard=self.shard)
        return maker.report(filters, limit=limit)


@dataclass
class App(Reports):
    """A store and the health of a process."""

    store: Store
    unhealthy: str | None = None
    awaited: str | None = None
    shard: Shard = WHOLE

    def page(self, *, accept: str, accept_encoding: str, names: Sequence[str]) -> Page:
        del accept, accept_encoding, names
        return Page((), ())

    def healthy(self) -> str | None:
        return self.unhealthy

    def ready(self) -> str | None:
        return self.awaited

    def config(self) -> str:
        return ""

    def reload(self) -> Sequence[str]:
        return ()

    def quit(self) -> None:
        return


def get(
    store: Store, target: str = "/", method: str = "GET", accept_encoding: str = "", **app: Any
) -> Response:
    """The answer to a request for a path with a query."""
    url = urlsplit(target)
    query = parse_qs(url.query, keep_blank_values=True)
    return Routes(App(store, **app)).answer(
        Request(method, url.path, query, {"accept-encoding": accept_encoding})
    )


def store_of(*statuses: str, name: str = "team/app", tag: str = "v1", code: str = "") -> Store:
    """A store with an image for each status."""
    store = Store()
    store.stale_after = 1e9
    facts = RegistryFacts(HOME, labels=("team/*",), begun=True, repositories_known=True)
    images = (image(f"{tag}{n}", Replication(OTHER, status, code)) for n, status in enumerate(statuses))
    facts.repositories[name] = repository("team/*", *images)
    store.registries = [facts]
    return store
