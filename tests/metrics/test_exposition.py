"""The fast text says exactly what prometheus_client's own rendering of the same facts says."""

from __future__ import annotations

import gzip
import re
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector
from support.fakes import FakeClock, Figures

from exporter.metrics.catalogue import DOMAIN, Group, ImageRow, RegistryRow, RepositoryRow, alike
from exporter.metrics.exposition import Exposition, accepts_gzip, accepts_openmetrics
from exporter.metrics.self_metrics import Instruments
from exporter.replication.facts import ImageFacts, RegistryFacts, RepositoryFacts
from exporter.replication.model import (
    Destination,
    Name,
    Registry,
    Replica,
    ReplicaState,
    Replication,
    Rule,
    Source,
)
from exporter.replication.store import Store

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

    def __init__(self, store: Store, now: float) -> None:
        self._snapshot = store.snapshot(now)

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
            if isinstance(row, RepositoryRow):
                for repository, images in registry.repositories:
                    yield from row.samples(Group.whole(registry, repository, images), alike(images))
            elif isinstance(row, ImageRow):
                for repository, images in registry.shown:
                    for image in images:
                        for name in image.names:
                            own = row.own_labels(registry.source, repository, name, image)
                            for labels, value in row.samples_of(image, name):
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


def exposition(store: Store, clock: FakeClock) -> Exposition:
    return Exposition(instruments=Instruments(), store=store, figures=Figures(), clock=clock)


def ledger_of(clock: FakeClock, source: Source, repositories: dict[str, Any]) -> Store:
    store = Store()
    store.stale_after = 3600.0
    rules = Registry(source.registry_id, (Rule((Destination("r", "1"),), ('a"b',), ('a"b',)),))
    facts = RegistryFacts(source, rules=rules, rules_at=clock.now)
    for name, images in repositories.items():
        repository = facts.repositories[name] = RepositoryFacts(listed_at=clock.now)
        for tag, pushed_at, replications in images:
            digest = f"sha256:{tag!r}"
            names = (Name(tag, ""), Name("", digest))
            repository.put(ImageFacts(digest, names, pushed_at, None, replications, good_until=9e9))
    store.registries = [facts]
    return store


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
@given(
    source=st.builds(Source, TEXTS, TEXTS),
    repositories=st.dictionaries(TEXTS, IMAGES, max_size=3),
    unfinished_only=st.booleans(),
)
def test_the_text_is_what_prometheus_client_makes_of_the_same_facts(
    accept: str, source: Source, repositories: dict[str, Any], unfinished_only: bool
) -> None:
    clock = FakeClock()
    store = ledger_of(clock, source, repositories)
    store.unfinished_only = unfinished_only
    registry = CollectorRegistry()
    registry.register(Reference(store, clock.now))
    encode, _ = choose_encoder(accept)
    reference = read(encode(registry).decode(), accept)
    fast = exposition(store, clock)
    page = fast.page(accept=accept, accept_encoding="", names=())
    assert read(page.whole().decode(), accept) == reference
    packed = fast.page(accept=accept, accept_encoding="gzip", names=())
    assert read(gzip.decompress(packed.whole()).decode(), accept) == reference


def test_only_unfinished_images_have_series_and_all_are_counted() -> None:
    clock, there = FakeClock(), Destination("eu-west-1", "2")
    complete, failed = ((Replication(there, status),) for status in ("COMPLETE", "FAILED"))
    store = ledger_of(clock, Source("1", "us-east-1"), {"app": [("new", 1.0, None)], "lib": []})
    known, present, absent = (
        Replica(there, state, state is not ReplicaState.ABSENT)
        for state in (ReplicaState.ARCHIVED, ReplicaState.PRESENT, ReplicaState.ABSENT)
    )
    [facts] = store.registries
    cases = {
        "reported": (complete, ()),
        "seen": (complete, ((present,),)),
        "gone": (complete, ((absent,),)),
        "archived": (complete, ((known,),)),
        "failed": (failed, ()),
        "nowhere": ((), ()),
    }
    for tag, (replications, replicas) in cases.items():
        names = (Name(tag, ""),)
        facts.repositories["lib"].put(
            ImageFacts(tag, names, 1.0, None, replications, good_until=9e9, replicas=replicas)
        )
    page = exposition(store, clock)
    every = page.page(accept="", accept_encoding="", names=()).whole().decode()
    assert set(re.findall(r'ecr_image_info{repository="[^"]*",tag="([^"]+)"', every)) == {*cases, "new"}
    with store.lock:
        store.unfinished_only = True
        store.changed()
    few = page.page(accept="", accept_encoding="", names=()).whole().decode()
    assert set(re.findall(r'^ecr_image_[^{]*{repository="[^"]*",tag="([^"]+)"', few, re.MULTILINE)) == {
        "gone",
        "archived",
        "failed",
    }
    counts = r"^ecr_repository_.*"
    assert re.findall(counts, few, re.MULTILINE) == re.findall(counts, every, re.MULTILINE) != []


def test_no_help_text_is_written_differently_in_the_two_formats() -> None:
    assert not [row.name for row in DOMAIN if set(row.help) & set('\\"\n')]


def test_what_did_not_change_is_not_rendered_again() -> None:
    clock = FakeClock()
    images: list[Any] = [(f"v{number}", 1.0, ()) for number in range(1000)]
    store = ledger_of(clock, Source("1", "r"), {"app": images, "api": images})
    fast = exposition(store, clock)

    def texts() -> list[bytes]:
        return list(fast.page(accept="", accept_encoding="", names=()).body[:-1])

    first = texts()
    kept = {id(text) for text in first}
    assert {id(text) for text in texts()} == kept
    repository = store.registries[0].repositories["app"]
    with store.lock:
        store.changed()
        repository.put(replace(next(iter(repository.images.values())), pushed_at=2.0))
    rendered = [text for text in texts() if text.startswith(b"ecr_") and id(text) not in kept]
    # The block of push times with the image. Of the repository, only the destinations have a sample.
    assert [text.partition(b"{")[0] for text in rendered] == [
        b"ecr_image_pushed_timestamp_seconds",
        b"ecr_repository_replication_destinations",
    ]
    assert rendered[0].count(b"\n") < 1000


def test_answers_that_say_the_same_render_nothing() -> None:
    clock = FakeClock()
    store = ledger_of(clock, Source("1", "r"), {"app": [(f"v{number}", 1.0, ()) for number in range(40)]})
    fast = exposition(store, clock)
    repository = store.registries[0].repositories["app"]

    def texts() -> set[int]:
        pieces = fast.page(accept="", accept_encoding="", names=()).body[:-1]
        return {id(text) for text in pieces if text.startswith(b"ecr_")}

    first = fast.page(accept="", accept_encoding="", names=()).body  # Held, so that no id is reused.
    before = texts()
    assert before <= {id(text) for text in first}
    with store.lock:
        store.changed()
        for facts in list(repository.images.values()):
            repository.put(replace(facts, answered_at=5.0))
    assert before
    assert texts() == before


def test_a_page_is_not_kept_for_longer_than_its_facts_are_believed() -> None:
    clock = FakeClock()
    store = ledger_of(clock, Source("1", "r"), {"app": [("v1", 1.0, ())]})
    fast = exposition(store, clock)
    assert b"v1" in fast.page(accept="", accept_encoding="", names=()).whole()
    clock.now += 3601
    assert b"v1" not in fast.page(accept="", accept_encoding="", names=()).whole()


def test_equal_requests_that_waited_for_a_page_share_it() -> None:
    clock = FakeClock()
    fast = exposition(ledger_of(clock, Source("1", "r"), {"app": [("v1", 1.0, ())]}), clock)

    def page(*names: str, encoding: str = "gzip", asked_at: float) -> object:
        return fast.page(accept="", accept_encoding=encoding, names=names, asked_at=asked_at)

    first = page(asked_at=clock.now - 1)
    assert page(asked_at=clock.now - 2) is first
    assert page(asked_at=clock.now + 1) is not first, "facts may have changed before it was asked for"
    shared = page(asked_at=clock.now)
    assert page("ecr_image_info", asked_at=clock.now) is not shared
    assert page(encoding="identity", asked_at=clock.now) is not shared


def test_a_page_that_is_refreshed_is_ready_and_plain_text_is_dropped_in_the_end() -> None:
    clock = FakeClock()
    store = ledger_of(clock, Source("1", "r"), {"app": [("v1", 1.0, ())]})
    fast = exposition(store, clock)
    fast.refresh()
    one, other = (fast.page(accept="", accept_encoding="gzip", names=()).body for _ in range(2))
    assert one[1] is other[1]

    def plain() -> bytes:
        (text,) = (
            text
            for text in fast.page(accept="", accept_encoding="", names=()).body
            if text.startswith(b"ecr_image_info{")
        )
        return text

    first = plain()
    clock.now += 599
    fast.refresh()
    assert plain() is first
    clock.now += 601
    fast.refresh()
    second = plain()
    assert second is not first
    assert second == first


class Slow(str):
    """A tag over which who renders the first time stops until told to go on."""

    __slots__ = ("go_on", "reached")

    def __init__(self, _: str) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def replace(self, *how: Any) -> str:
        if not self.reached.is_set():
            self.reached.set()
            self.go_on.wait(10.0)
        return super().replace(*how)


def test_no_scrape_waits_for_what_renders_ahead() -> None:
    clock, tag = FakeClock(), Slow("slow")
    images: list[Any] = [(tag, 1.0, ()), *((f"v{number}", 1.0, ()) for number in range(100))]
    store = ledger_of(clock, Source("1", "r"), {"app": images, "api": images[1:], "old": images[1:]})
    fast = exposition(store, clock)
    ahead = threading.Thread(target=fast.refresh)
    ahead.start()
    assert tag.reached.wait(10.0)
    for encoding in ("", "gzip"):
        assert fast.page(accept="", accept_encoding=encoding, names=()).whole()
    with store.lock:  # and the facts may become others meanwhile
        store.changed()
        repositories = store.registries[0].repositories
        repositories["new"] = repositories.pop("old")
        for digest in list(repositories["app"].images)[1:50]:
            repositories["app"].replace(gone=[digest], new=())
    told = fast.page(accept="", accept_encoding="gzip", names=()).whole()
    assert ahead.is_alive()
    tag.go_on.set()
    ahead.join(10.0)
    assert not ahead.is_alive()
    fresh = exposition(store, clock).page(accept="", accept_encoding="", names=()).whole()
    for page in (told, fast.page(accept="", accept_encoding="gzip", names=()).whole()):
        lines = [line for line in gzip.decompress(page).decode().splitlines() if line.startswith("ecr_image")]
        assert sorted(lines) == sorted(
            line for line in fresh.decode().splitlines() if line.startswith("ecr_image")
        )


def unpacked(stream: bytes) -> bytes:
    """The text of the first gzip member, whose CRC and size are right; nothing follows it."""
    decoder = zlib.decompressobj(wbits=31)
    text = decoder.decompress(stream)
    assert decoder.eof
    assert not decoder.unused_data
    assert int.from_bytes(stream[-8:-4], "little") == zlib.crc32(text)
    assert int.from_bytes(stream[-4:], "little") == len(text) % 2**32
    return text


def domain(page: bytes) -> list[str]:
    return [line for line in page.decode().split("\n") if re.match(r"(# \w+ )?ecr_(image|rep\w+y_)", line)]


def test_a_decoder_that_stops_at_the_first_member_reads_the_whole_page() -> None:
    clock = FakeClock()
    images: list[Any] = [(f"v{number}", 1.0, ()) for number in range(1000)]
    store = ledger_of(clock, Source("1", "r"), {"app": images, "api": images})
    fast = exposition(store, clock)
    packed, plain = (fast.page(accept="", accept_encoding=e, names=()).whole() for e in ("gzip", ""))
    assert domain(unpacked(packed)) == domain(plain)
    assert unpacked(packed).count(b"\necr_image_info{") == 4000


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_a_selection_of_nothing_is_a_whole_gzip_stream(accept: str) -> None:
    clock = FakeClock()
    fast = exposition(ledger_of(clock, Source("1", "r"), {"app": [("v1", 1.0, ())]}), clock)
    page = fast.page(accept=accept, accept_encoding="gzip", names=["nope"])
    assert unpacked(page.whole()) == (b"# EOF\n" if accept else b"")


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("ecr_image_info", {"ecr_image_info"}),
        (
            "ecr_image_replication_duration_seconds",
            {f"ecr_image_replication_duration_seconds_{end}" for end in ("bucket", "count", "sum")},
        ),
        ("ecr_image_replication_duration_seconds_bucket", {"ecr_image_replication_duration_seconds_bucket"}),
        ("ecr_replication_exporter_aws_requests", {"ecr_replication_exporter_aws_requests_total"}),
        ("ecr_replication_exporter_aws_requests_total", {"ecr_replication_exporter_aws_requests_total"}),
    ],
)
def test_names_of_families_and_of_samples_select(accept: str, name: str, samples: set[str]) -> None:
    clock, instruments = FakeClock(), Instruments()
    source = Source("1", "r")
    instruments.replicated(source, Destination("r", "1"), 5.0)
    instruments.aws_request("ecr", "DescribeImages", source, "success", 0.1)
    store = ledger_of(clock, source, {"app": [("v1", 1.0, ())]})
    fast = Exposition(instruments=instruments, store=store, figures=Figures(), clock=clock)
    text = fast.page(accept=accept, accept_encoding="", names=[name]).whole().decode()
    parse = parse_openmetrics if accept else parse_text
    assert {sample.name for family in parse(text) for sample in family.samples} == samples


class Churn(RuleBasedStateMachine):
    """After any changes, the page is the one that a new process renders."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.store = ledger_of(self.clock, Source("1", "r"), {"app": []})
        self.fast = exposition(self.store, self.clock)

    @rule(repository=st.sampled_from(["app", "api"]), images=IMAGES)
    def push(self, repository: str, images: list[Any]) -> None:
        with self.store.lock:
            self.store.changed()
            facts = self.store.registries[0].repositories.setdefault(
                repository, RepositoryFacts(listed_at=self.clock.now)
            )
            for tag, pushed_at, replications in images:
                names = (Name(tag, ""),)
                facts.put(ImageFacts(f"{tag!r}", names, pushed_at, None, replications, good_until=9e9))

    @rule(which=st.integers(0, 5))
    def delete(self, which: int) -> None:
        with self.store.lock:
            self.store.changed()
            for facts in self.store.registries[0].repositories.values():
                for digest in list(facts.images)[which : which + 2]:
                    facts.replace(gone=[digest], new=())

    @rule(which=st.integers(0, 5), tag=TEXTS)
    def rename(self, which: int, tag: str) -> None:
        with self.store.lock:
            self.store.changed()
            for facts in self.store.registries[0].repositories.values():
                for image in list(facts.images.values())[which : which + 2]:
                    facts.put(replace(image, names=(Name(tag, ""), Name("", image.digest))))

    @rule(which=st.integers(0, 5), good_for=st.sampled_from([100.0, 9e9]), told=st.booleans())
    def answer_the_same(self, which: int, good_for: float, told: bool) -> None:
        now = self.clock.now
        with self.store.lock:
            for facts in self.store.registries[0].repositories.values():
                for image in list(facts.images.values())[which : which + 2]:
                    if told or now > image.good_until:
                        self.store.changed()
                    facts.put(replace(image, answered_at=now, good_until=now + good_for))

    @rule(repository=st.sampled_from(["app", "api"]))
    def drop(self, repository: str) -> None:
        with self.store.lock:
            self.store.changed()
            self.store.registries[0].repositories.pop(repository, None)

    @rule(seconds=st.sampled_from([0, 70, 700]))
    def refresh(self, seconds: float) -> None:
        self.clock.now += seconds
        for facts in self.store.registries[0].repositories.values():
            facts.listed_at = self.clock.now
        self.fast.refresh()

    @rule(names=st.sampled_from([(), ("ecr_image_info", "other")]))
    def scrape(self, names: tuple[str, ...]) -> None:
        fresh = exposition(self.store, self.clock)
        wanted = domain(fresh.page(accept="", accept_encoding="", names=names).whole())
        assert wanted
        assert domain(self.fast.page(accept="", accept_encoding="", names=names).whole()) == wanted
        packed = self.fast.page(accept="", accept_encoding="gzip", names=names).whole()
        assert domain(unpacked(packed)) == wanted


TestChurn = Churn.TestCase


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("", False),
        ("gzip", True),
        ("GZIP;q=0.5, br", True),
        ("deflate, *", True),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *;q=1", False),
        ("*;q=0", False),
        ("zstd, nonsense;;=,;q=x", False),
        ("gzip;q=nonsense", True),
        ("identity, gzip;q=0.1", False),
        ("identity;q=0.5, gzip;q=0.5", True),
        ("gzip;q=0.5, *", False),
    ],
)
def test_gzip_is_for_those_who_accept_it(accepted: str, packed: bool) -> None:
    assert accepts_gzip(accepted) is packed


@pytest.mark.parametrize(
    ("accepted", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        ("application/openmetrics-text", True),
        ('application/openmetrics-text; version="1.0.0"; charset=utf-8', True),
        ("application/openmetrics-text;version=1.0.0;q=0", False),
        ("application/openmetrics-text;version=1.0.0;q=0.1,text/plain;version=0.0.4", False),
        ("application/openmetrics-text;version=1.0.0,*/*", True),
        ("application/openmetrics-text;version=0.0.1", False),
        ("application/openmetrics-text;version=2.0.0", False),
        ("application/openmetrics-text;version=abc", False),
        ("text/plain;version=1.x;;=;q=,", False),
    ],
)
def test_openmetrics_is_for_those_who_prefer_it(accepted: str, openmetrics: bool) -> None:
    assert accepts_openmetrics(accepted) is openmetrics


class Unlike(tuple[Any, ...]):
    """Names that cannot be compared the second time."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        Unlike.compared += 1
        if Unlike.compared == 2:
            raise MemoryError
        return super().__eq__(other)

    __hash__ = tuple.__hash__


def test_a_page_that_broke_once_is_whole_the_next_time() -> None:
    clock = FakeClock()
    store = ledger_of(clock, Source("1", "r"), {"app": [(f"v{number}", 1.0, ()) for number in range(40)]})
    fast = exposition(store, clock)
    fast.page(accept="", accept_encoding="", names=())
    repository = store.registries[0].repositories["app"]
    with store.lock:
        store.changed()
        facts = next(iter(repository.images.values()))
        repository.put(replace(facts, names=Unlike(facts.names), pushed_at=3.0))
    with pytest.raises(MemoryError):
        fast.page(accept="", accept_encoding="", names=())
    told, fresh = (
        [line for line in page.whole().splitlines() if line.startswith(b"ecr_image")]
        for page in (
            each.page(accept="", accept_encoding="", names=()) for each in (fast, exposition(store, clock))
        )
    )
    assert told == fresh


def test_some_names_may_be_those_of_the_process() -> None:
    clock = FakeClock()
    fast = exposition(ledger_of(clock, Source("1", "r"), {}), clock)
    page = fast.page(accept="", accept_encoding="", names=["process_open_fds"]).whole()
    assert page.count(b"\nprocess_open_fds ") == (1 if Path("/proc/self/stat").exists() else 0)
