"""The fast text says exactly what prometheus_client's own rendering of the same facts says."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from typing import Any

import pytest
from fakes import FakeClock
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector

from exporter.exposition import Exposition, Instruments
from exporter.metrics import DOMAIN, ImageRow, RegistryRow, RepositoryRow
from exporter.model import Destination, Name, Registry, Replication, Rule, Source
from exporter.state import ImageFacts, Ledger, RegistryFacts, RepositoryFacts

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), max_size=6) | st.sampled_from(
    ["", '"', "\\", "\n", '\\"\n', "naïve", "日本"]
)
DESTINATIONS = st.builds(Destination, TEXTS, TEXTS)
REPLICATIONS = st.lists(
    st.builds(
        Replication, DESTINATIONS, st.sampled_from(["COMPLETE", "FAILED", "IN_PROGRESS"]) | TEXTS, TEXTS
    ),
    max_size=3,
    unique_by=lambda replication: replication.destination,
).map(tuple)
IMAGES = st.lists(
    st.tuples(TEXTS, st.none() | st.floats(0, 4e9), st.none() | REPLICATIONS),
    max_size=4,
    unique_by=lambda image: image[0],
)


class Reference(Collector):
    """The catalogue's rows over a snapshot, as prometheus_client has it."""

    def __init__(self, ledger: Ledger, now: float) -> None:
        self._snapshot = ledger.snapshot(now)

    def collect(self) -> Iterator[Metric]:
        for row in DOMAIN:
            family = GaugeMetricFamily(row.name, row.help, labels=row.labels)
            for labels, value in self._samples(row):
                family.add_metric(labels, value)
            yield family

    def _samples(self, row: Any) -> Iterator[tuple[tuple[str, ...], float]]:
        for registry in self._snapshot.registries:
            if isinstance(row, RegistryRow):
                yield from row.samples(registry)
            for repository, images in registry.repositories:
                if isinstance(row, RepositoryRow):
                    yield from row.samples(registry.source, repository, images)
                elif isinstance(row, ImageRow):
                    for image in images:
                        for name in image.names:
                            own = row.own_labels(registry.source, repository, name, image)
                            for labels, value in row.samples(row.fact(image)):
                                yield (*own, *labels), value


def read(text: str, accept: str) -> dict[str, Any]:
    """The domain's metrics, with their metadata."""
    parse = parse_openmetrics if accept else parse_text
    names = {row.name for row in DOMAIN}
    return {
        family.name: (
            family.documentation,
            family.type,
            sorted((sorted(s.labels.items()), s.value) for s in family.samples),
        )
        for family in parse(text)
        if family.name in names
    }


class Figures:
    def overdue(self) -> float:
        return 0.0

    def rates(self) -> dict[Source, float]:
        return {}


def exposition(ledger: Ledger, clock: FakeClock) -> Exposition:
    return Exposition(instruments=Instruments(), ledger=ledger, figures=Figures(), clock=clock)


def ledger_of(clock: FakeClock, source: Source, repositories: dict[str, Any]) -> Ledger:
    ledger = Ledger()
    ledger.stale_after = 3600.0
    rules = Registry(source.registry_id, (Rule((Destination("r", "1"),), ('a"b',), ('a"b',)),))
    facts = RegistryFacts(source, rules=rules, rules_at=clock.now)
    for name, images in repositories.items():
        repository = facts.repositories[name] = RepositoryFacts(listed_at=clock.now)
        for tag, pushed_at, replications in images:
            digest = f"sha256:{tag!r}"
            names = (Name(tag, ""), Name("", digest))
            repository.put(ImageFacts(digest, names, pushed_at, None, replications, good_until=9e9))
    ledger.registries = [facts]
    return ledger


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
@given(source=st.builds(Source, TEXTS, TEXTS), repositories=st.dictionaries(TEXTS, IMAGES, max_size=3))
def test_the_text_is_what_prometheus_client_makes_of_the_same_facts(
    accept: str, source: Source, repositories: dict[str, Any]
) -> None:
    clock = FakeClock()
    ledger = ledger_of(clock, source, repositories)
    registry = CollectorRegistry()
    registry.register(Reference(ledger, clock.now))
    encode, _ = choose_encoder(accept)
    reference = read(encode(registry).decode(), accept)
    fast = exposition(ledger, clock)
    page = fast.page(accept=accept, accept_encoding="", names=())
    assert read(page.whole().decode(), accept) == reference
    packed = fast.page(accept=accept, accept_encoding="gzip", names=())
    assert read(gzip.decompress(packed.whole()).decode(), accept) == reference


def test_no_help_text_is_written_differently_in_the_two_formats() -> None:
    assert not [row.name for row in DOMAIN if set(row.help) & set('\\"\n')]


def test_a_page_is_kept_while_nothing_changes_and_not_longer() -> None:
    clock = FakeClock()
    ledger = ledger_of(clock, Source("1", "r"), {"app": [("v1", 1.0, ())]})
    fast = exposition(ledger, clock)
    for encoding in ("", "gzip"):
        first = fast.page(accept="", accept_encoding=encoding, names=()).body
        assert fast.page(accept="", accept_encoding=encoding, names=()).body is first
        with ledger.lock:
            ledger.changed()
        assert fast.page(accept="", accept_encoding=encoding, names=()).body is not first
    assert b"v1" in fast.page(accept="", accept_encoding="", names=()).whole()
    clock.now += 3601
    assert b"v1" not in fast.page(accept="", accept_encoding="", names=()).whole()
