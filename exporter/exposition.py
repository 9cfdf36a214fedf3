"""What a scrape gets: the catalogue's rows as text, rendered fast, kept while nothing changes.

Ten thousand images with three destinations each are a hundred thousand lines, and prometheus_client
takes seconds for them. But the lines of an image are alike: its own labels, then one of the few
continuations that images in the same states share. So a row's continuations are rendered once for
each combination of states (the template), and an image's lines are its labels joined by them. What
the catalogue says is all there is to know here; a test holds the text equal to prometheus_client's.

Text 0.0.4 and OpenMetrics 1.0 write gauges the same way, so one rendering serves both.
"""

from __future__ import annotations

import gzip
import platform
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Protocol

import prometheus_client
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from exporter import __version__
from exporter.metrics import (
    AWS_DURATION,
    AWS_REQUESTS,
    BUILD_INFO,
    DOMAIN,
    IMAGES,
    OVERDUE,
    RATE_LIMIT,
    RELOAD_SUCCESSFUL,
    RELOAD_TIME,
    REPLICATION_DURATION,
    SHARD_ORDINAL,
    SKIPPED,
    STATE_FAILURES,
    STATE_WRITTEN,
    TOTAL_SHARDS,
    I,
    ImageRow,
    RegistryRow,
    RepositoryRow,
    Row,
    S,
    Sample,
)
from exporter.model import Destination, Source
from exporter.state import ImageFacts, Ledger, RegistrySnapshot, Snapshot
from exporter.targets import WHOLE, Shard

#: Combinations of states that are kept rendered; a world has a few dozen.
_TEMPLATES = 4096
#: Fast, and still a fifteenth of the size: these lines repeat themselves.
_GZIP_LEVEL = 1


class Figures(Protocol):
    """What the poller tells of itself at a scrape."""

    def overdue(self) -> float: ...

    def rates(self) -> Mapping[Source, float]: ...


class Clock(Protocol):
    def monotonic(self) -> float: ...


# -- own counters --------------------------------------------------------------------------------


class Instruments:
    """The exporter's own counters and histograms; safe to use from any thread."""

    def __init__(self, *, shard: Shard = WHOLE) -> None:
        prometheus_client.disable_created_metrics()
        self.registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        self._durations = self._make(prometheus_client.Histogram, REPLICATION_DURATION)
        self._requests = self._make(prometheus_client.Counter, AWS_REQUESTS)
        self._request_durations = self._make(prometheus_client.Histogram, AWS_DURATION)
        self._reload_successful = self._make(prometheus_client.Gauge, RELOAD_SUCCESSFUL)
        self._reload_time = self._make(prometheus_client.Gauge, RELOAD_TIME)
        build = self._make(prometheus_client.Gauge, BUILD_INFO)
        build.labels(__version__, platform.python_version(), version("boto3")).set(1)
        self._make(prometheus_client.Gauge, SHARD_ORDINAL).set(shard.ordinal)
        self._make(prometheus_client.Gauge, TOTAL_SHARDS).set(shard.total)
        #: Made with its first value: before, there is nothing to tell.
        self._state_written: Any = None
        self._state_failures = self._make(prometheus_client.Counter, STATE_FAILURES)
        for operation in ("read", "write"):
            self._state_failures.labels(operation)

    def _make(self, kind: Any, row: Row) -> Any:
        buckets = {"buckets": row.buckets} if row.buckets else {}
        return kind(row.name, row.help, row.labels, registry=self.registry, **buckets)

    def aws_request(self, service: str, operation: str, source: Source, outcome: str, seconds: float) -> None:
        """Count a call to AWS that took so many seconds."""
        self._requests.labels(service, operation, *source, outcome).inc()
        self._request_durations.labels(service, operation).observe(seconds)

    def replicated(self, source: Source, destination: Destination, seconds: float) -> None:
        """Count a replication that was seen to end, so many seconds after the push."""
        self._durations.labels(*source, *destination).observe(seconds)

    def state_written(self, *, at: float) -> None:
        """Tell when the state file was written last, as Unix time."""
        self._state_written = self._state_written or self._make(prometheus_client.Gauge, STATE_WRITTEN)
        self._state_written.set(at)

    def state_failed(self, operation: str) -> None:
        """Count that the state file could not be read or written."""
        self._state_failures.labels(operation).inc()

    def reloaded(self, *, success: bool, at: float) -> None:
        """Tell how the last attempt to load the configuration ended, at this Unix time."""
        self._reload_successful.set(success)
        if success:
            self._reload_time.set(at)


class _Gauges(Collector):
    """The exporter's gauges of itself, read at each scrape."""

    def __init__(self, ledger: Ledger, figures: Figures, clock: Clock) -> None:
        self._ledger = ledger
        self._figures = figures
        self._clock = clock

    def describe(self) -> Iterator[Metric]:
        """Without this, whoever asks for some names only would not be given these."""
        for row in (IMAGES, SKIPPED, OVERDUE, RATE_LIMIT):
            yield _family(row, ())

    def collect(self) -> Iterator[Metric]:
        states = self._ledger.states(self._clock.monotonic())
        yield _family(IMAGES, (((state,), n) for state, n in states.items()))
        yield _family(SKIPPED, [((), self._ledger.skipped)])
        yield _family(OVERDUE, [((), self._figures.overdue())])
        yield _family(RATE_LIMIT, self._figures.rates().items())


def _family(row: Row, samples: Iterable[tuple[Sequence[str], float]]) -> Metric:
    family = GaugeMetricFamily(row.name, row.help, labels=row.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


# -- rows as text --------------------------------------------------------------------------------


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _pairs(labels: Sequence[str], values: Sequence[str]) -> str:
    return ",".join(f'{label}="{_escaped(value)}"' for label, value in zip(labels, values, strict=True))


def _head(row: Row) -> str:
    return f"# HELP {row.name} {row.help}\n# TYPE {row.name} {row.type}\n"


def _lines(row: Row, samples: Iterable[Sample]) -> str:
    return "".join(
        f"{row.name}{{{_pairs(row.labels, labels)}}} {floatToGoString(value)}\n" for labels, value in samples
    )


@lru_cache(maxsize=_TEMPLATES)
def _template(row: ImageRow, fact: Any) -> tuple[str, ...]:
    """What follows an image's own labels on each of its lines, for all images with the fact."""
    rest = row.labels[len(I) :]
    lines = [
        f"{',' if rest else ''}{_pairs(rest, labels)}}} {floatToGoString(value)}\n"
        for labels, value in row.samples(fact)
    ]
    return ("", *lines) if lines else ()


def _image_lines(row: ImageRow, source: Source, repository: str, images: Iterable[ImageFacts]) -> str:
    before = f'{row.name}{{{_pairs(I[:1], (repository,))},tag="'
    after = f'",{_pairs(S, source)}'
    text = []
    for image in images:
        if template := _template(row, row.fact(image)):
            for name in image.names:
                digest = image.digest if row.digest else name.digest
                own = f'{before}{_escaped(name.tag)}",digest="{_escaped(digest)}{after}'
                text.append(own.join(template))
    return "".join(text)


def _domain(snapshot: Snapshot, rows: Iterable[Row]) -> Iterator[str]:
    """The text of the rows, piece by piece."""
    for row in rows:
        yield _head(row)
        for registry in snapshot.registries:
            if isinstance(row, RegistryRow):
                yield _lines(row, row.samples(registry))
            else:
                yield from _repositories(row, registry)


def _repositories(row: Row, registry: RegistrySnapshot) -> Iterator[str]:
    for repository, images in registry.repositories:
        if isinstance(row, ImageRow):
            yield _image_lines(row, registry.source, repository, images)
        elif isinstance(row, RepositoryRow):
            yield _lines(row, row.samples(registry.source, repository, images))


# -- pages ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """What a scrape gets: a body that may be shared with other scrapes, headers, and the rest of the body."""

    body: bytes | bytearray
    headers: tuple[tuple[str, str], ...]
    rest: bytes = b""

    def whole(self) -> bytes:
        """Body and rest in one piece: a copy."""
        return bytes(self.body) + self.rest


@dataclass(slots=True)
class _Kept:
    """The text of the image and repository rows as of one version of the facts."""

    version: int
    good_until: float
    plain: bytearray | None = None
    gzipped: bytes | None = None


_SMALL = tuple(row for row in DOMAIN if isinstance(row, RegistryRow))
_LARGE = tuple(row for row in DOMAIN if not isinstance(row, RegistryRow))


class Exposition:
    """Everything that /metrics tells. Called from any thread; never calls AWS.

    The text about images changes seldom, and is kept as it was last asked for, plain or compressed;
    the rest is small and rendered every time. Compressed, the two are two members of one gzip file.
    """

    def __init__(self, *, instruments: Instruments, ledger: Ledger, figures: Figures, clock: Clock) -> None:
        self._own = instruments.registry
        self._own.register(_Gauges(ledger, figures, clock))
        self._ledger = ledger
        self._clock = clock
        #: One renders, the others wait and find it done.
        self._lock = threading.Lock()
        self._kept = _Kept(-1, 0.0)

    def page(self, *, accept: str, accept_encoding: str, names: Sequence[str]) -> Page:
        """The exposition in the best format that is accepted; of `names` only, if there are any."""
        encode, content_type = choose_encoder(accept)
        own: Any = self._own.restricted_registry(names) if names else self._own
        gzipped = gzip_accepted(accept_encoding)
        large = self._some(names) if names else self._gzipped() if gzipped else self._plain()
        snapshot = self._ledger.snapshot(self._clock.monotonic(), images=False)
        small = "".join(_domain(snapshot, _named(_SMALL, names))).encode() + encode(own)
        headers = [("Content-Type", content_type), ("Vary", "Accept, Accept-Encoding")]
        if not gzipped:
            return Page(large, tuple(headers), small)
        headers.append(("Content-Encoding", "gzip"))
        if names:
            large = gzip.compress(large, _GZIP_LEVEL)
        return Page(large, tuple(headers), gzip.compress(small, _GZIP_LEVEL))

    def _some(self, names: Sequence[str]) -> bytes:
        snapshot = self._ledger.snapshot(self._clock.monotonic())
        return "".join(_domain(snapshot, _named(_LARGE, names))).encode()

    def _plain(self) -> bytearray:
        with self._lock:
            kept = self._current()
            if kept.plain is None:
                # Piece by piece, so that there is never a second copy of the whole.
                plain = bytearray()
                for piece in self._render(kept):
                    plain += piece
                kept.plain = plain
            return kept.plain

    def _gzipped(self) -> bytes:
        with self._lock:
            kept = self._current()
            if kept.gzipped is None:
                packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
                pieces = [packer.compress(piece) for piece in self._render(kept)]
                kept.gzipped = b"".join([*pieces, packer.flush()])
            return kept.gzipped

    def _current(self) -> _Kept:
        """What is kept, if it is still true; else what is to be rendered."""
        if self._kept.version != self._ledger.version or self._clock.monotonic() > self._kept.good_until:
            self._kept = _Kept(-1, 0.0)
        return self._kept

    def _render(self, kept: _Kept) -> Iterator[bytes]:
        snapshot = self._ledger.snapshot(self._clock.monotonic())
        if snapshot.version != kept.version:
            kept.plain = kept.gzipped = None  # of an earlier version, between the look and the snapshot
        kept.version, kept.good_until = snapshot.version, snapshot.good_until
        return (piece.encode() for piece in _domain(snapshot, _LARGE))


def _named(rows: Iterable[Row], names: Sequence[str]) -> Iterator[Row]:
    return (row for row in rows if not names or row.name in names)
