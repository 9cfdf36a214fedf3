"""What a scrape costs: this exporter against prometheus_client's own rendering of the same facts.

Run it with `make bench`. Medians of one run on one machine: compare the ratios, not the seconds.
"""

from __future__ import annotations

import gzip
import statistics
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from exporter.exposition import Exposition
from exporter.instruments import Instruments
from exporter.metrics import DOMAIN, ImageRow, RegistryRow
from exporter.model import Destination, Name, Replication, Source
from exporter.state import ImageFacts, Ledger, RegistryFacts, RepositoryFacts

IMAGES, REPOSITORIES = 10_000, 20
HOME = Source("111122223333", "us-east-1")
DESTINATIONS = (
    Destination("eu-west-1", "111122223333"),
    Destination("us-west-2", "111122223333"),
    Destination("eu-west-1", "444455556666"),
)


def full_ledger() -> Ledger:
    ledger = Ledger()
    ledger.stale_after = 3600.0
    facts = RegistryFacts(HOME)
    for number in range(REPOSITORIES):
        repository = RepositoryFacts(listed_at=time.monotonic())
        facts.repositories[f"team/app-{number}"] = repository
        for build in range(IMAGES // REPOSITORIES):
            states = ["COMPLETE"] * 3
            if build % 50 == 0:
                states[build % 3] = "IN_PROGRESS"
            replications = tuple(map(Replication, DESTINATIONS, states))
            digest = f"sha256:{number:032x}{build:032x}"
            names = (Name(f"build-{build}", ""),)
            pushed_at = 1.79e9 + build
            repository.put(
                ImageFacts(digest, names, pushed_at, pushed_at, replications, good_until=float("inf"))
            )
    ledger.registries = [facts]
    return ledger


class Plain(Collector):
    """The catalogue's rows through prometheus_client alone."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        snapshot = self._ledger.snapshot(time.monotonic())
        for row in DOMAIN:
            family = GaugeMetricFamily(row.name, row.help, labels=row.labels)
            for registry in snapshot.registries:
                if isinstance(row, RegistryRow):
                    continue
                for repository, images in registry.repositories:
                    if not isinstance(row, ImageRow):
                        for labels, value in row.samples(registry.source, repository, images):
                            family.add_metric(labels, value)
                        continue
                    for image in images:
                        for name in image.names:
                            own = row.own_labels(registry.source, repository, name, image)
                            for labels, value in row.samples(row.fact(image)):
                                family.add_metric((*own, *labels), value)
            yield family


class Idle:
    """A poller with nothing to tell."""

    def overdue(self) -> float:
        return 0.0

    def rates(self) -> dict[Source, float]:
        return {}


def median(call: Callable[[], object], runs: int) -> float:
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> None:
    ledger = full_ledger()
    exposition = Exposition(instruments=Instruments(), ledger=ledger, figures=Idle(), clock=time)
    registry = CollectorRegistry()
    registry.register(Plain(ledger))
    print(f"{IMAGES} images, {len(DESTINATIONS)} destinations; seconds, and times as fast")
    print(f"{'':8}{'prometheus_client':>20}{'all changed':>22}{'nothing changed':>24}{'bytes':>12}")
    for encoding in ("", "gzip"):

        def page(encoding: str = encoding) -> bytes:
            return exposition.page(accept="", accept_encoding=encoding, names=()).rest

        def changed() -> None:
            ledger.changed()
            page()

        def reference(encoding: str = encoding) -> bytes:
            text = generate_latest(registry)
            return gzip.compress(text) if encoding else text

        theirs, new, kept = median(reference, 3), median(changed, 5), median(page, 20)
        size = len(exposition.page(accept="", accept_encoding=encoding, names=()).whole())
        print(
            f"{encoding or 'plain':8}{theirs:>20.3f}{new:>12.4f} ({theirs / new:5.0f} x)"
            f"{kept:>13.5f} ({theirs / kept:6.0f} x){size:>12}"
        )


if __name__ == "__main__":
    main()
