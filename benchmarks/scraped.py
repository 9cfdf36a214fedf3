"""A server for `make bench-scrape`: the exposition and server of this exporter or of prometheus_client.

Both show the same facts, as does benchmarks/client_golang. It serves on a free port of 127.0.0.1 and prints
the port. Each line of standard input is a number of images to change.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from exporter.http.filters import Filters
from exporter.http.report import Report
from exporter.http.reporter import Reporter
from exporter.http.routes import Routes
from exporter.http.server import Server
from exporter.http.web_config import WebConfig
from exporter.memory import tune_collector
from exporter.metrics.catalogue import DOMAIN, Group, ImageRow, RepositoryRow, alike
from exporter.metrics.exposition import Exposition, Page
from exporter.metrics.self_metrics import Instruments
from exporter.replication.facts import ImageFacts, RegistryFacts, RepositoryFacts
from exporter.replication.model import Destination, ImageState, Name, Replication, Source
from exporter.replication.store import Store

REPOSITORIES = 20
#: Distance between two images that change. Every image has a turn, and changes are far apart, which is the
#: worst case for text that is kept in blocks.
STEP = 7919
HOME = Source("111122223333", "us-east-1")
DESTINATIONS = (
    Destination("eu-west-1", "111122223333"),
    Destination("us-west-2", "111122223333"),
    Destination("eu-west-1", "444455556666"),
)
PAIRS = {(d, state): Replication(d, state) for d in DESTINATIONS for state in ("COMPLETE", "IN_PROGRESS")}


class World:
    """A full store in which images change between COMPLETE and IN_PROGRESS."""

    def __init__(self, images: int) -> None:
        self.store = Store()
        self.store.stale_after = 3600.0
        self._changes = 0
        facts = RegistryFacts(HOME)
        self._repositories = []
        for number in range(REPOSITORIES):
            repository = RepositoryFacts(listed_at=time.monotonic())
            facts.repositories[f"team/app-{number}"] = repository
            self._repositories.append(repository)
            for build in range(images // REPOSITORIES):
                repository.put(_image(number, build))
        self.store.registries = [facts]
        self._digests = [(r, digest) for r in self._repositories for digest in r.images]

    def change(self, count: int) -> None:
        with self.store.lock:
            for _ in range(count):
                self._changes += 1
                repository, digest = self._digests[self._changes * STEP % len(self._digests)]
                image = repository.images[digest]
                assert image.replications
                first, *others = (replication.status for replication in image.replications)
                status = "IN_PROGRESS" if first == "COMPLETE" else "COMPLETE"
                repository.put(replace(image, replications=_replications((status, *others))))
            self.store.changed()


@cache
def _replications(states: tuple[str, ...]) -> tuple[Replication, ...]:
    """One object for all images with the same states, as in the exporter."""
    return tuple(PAIRS[pair] for pair in zip(DESTINATIONS, states, strict=True))


def _image(number: int, build: int) -> ImageFacts:
    states = ["COMPLETE"] * len(DESTINATIONS)
    if build % 50 == 0:
        states[build % len(states)] = "IN_PROGRESS"
    pushed_at = 1.79e9 + build
    return ImageFacts(
        f"sha256:{number:032x}{build:032x}",
        (Name(f"build-{build}", ""),),
        pushed_at,
        pushed_at,
        _replications(tuple(states)),
        ImageState.SETTLED,
        good_until=float("inf"),
    )


class Reference(Collector):
    """The rows of the catalogue as a collector of prometheus_client."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        snapshot = self._store.snapshot(time.monotonic())
        for row in DOMAIN:
            family = GaugeMetricFamily(row.name, row.help, labels=row.labels)
            for registry in snapshot.registries:
                for repository, images in registry.repositories:
                    if isinstance(row, RepositoryRow):
                        group = Group.whole(registry, repository, images)
                        for labels, value in row.samples(group, alike(images)):
                            family.add_metric(labels, value)
                    elif isinstance(row, ImageRow):
                        _add(family, row, registry.source, repository, images)
            yield family


def _add(
    family: GaugeMetricFamily, row: ImageRow, source: Source, repository: str, images: Sequence[ImageFacts]
) -> None:
    for image in images:
        for name in image.names:
            own = row.own_labels(source, repository, name, image)
            for labels, value in row.samples_of(image, name):
                family.add_metric((*own, *labels), value)


class App:
    """An app with metrics and an idle poller."""

    def __init__(self, store: Store) -> None:
        self._exposition = Exposition(instruments=Instruments(), store=store, figures=self, clock=time)
        self._reporter = Reporter(store=store, clock=time, due=lambda *_: None)

    def page(self, *, accept: str, accept_encoding: str, names: Sequence[str]) -> Page:
        return self._exposition.page(accept=accept, accept_encoding=accept_encoding, names=names)

    def report(self, filters: Filters, *, limit: int) -> Report:
        return self._reporter.report(filters, limit=limit)

    def overdue(self) -> float:
        return 0.0

    def rates(self) -> dict[Source, float]:
        return {}

    def queues(self) -> dict[Source, bool]:
        return {}

    def healthy(self) -> None:
        return None

    def ready(self) -> None:
        return None

    def config(self) -> str:
        return ""

    def reload(self) -> Sequence[str]:
        return ()

    def quit(self) -> None:
        return None


def serve_exporter(store: Store) -> int:
    """Serve with this exporter, and with its garbage collection. Returns the port."""
    tune_collector(time.monotonic)
    server = Server([("127.0.0.1", 0)], Routes(App(store)), WebConfig(None))
    server.start()
    return int(server.addresses[0].rpartition(":")[2])


def serve_prometheus_client(store: Store) -> int:
    """Serve with prometheus_client. Returns the port."""
    registry = CollectorRegistry()
    registry.register(Reference(store))
    server, _ = start_http_server(0, addr="127.0.0.1", registry=registry)
    return int(server.server_port)


SERVERS = {"exporter": serve_exporter, "prometheus_client": serve_prometheus_client}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server", choices=SERVERS)
    parser.add_argument("images", type=int)
    flags = parser.parse_args()
    world = World(flags.images)
    print(SERVERS[flags.server](world.store), flush=True)
    for line in sys.stdin:
        world.change(int(line))
        print("changed", flush=True)


if __name__ == "__main__":
    main()
