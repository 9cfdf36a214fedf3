"""The exporter's own counters, histograms and gauges, which prometheus_client keeps and renders."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any, Protocol

import prometheus_client
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from exporter import __version__
from exporter.metrics.catalogue import (
    AWS_DURATION,
    AWS_REQUESTS,
    BUILD_INFO,
    EVENT_DELAY,
    EVENTS,
    EVENTS_QUEUE,
    IMAGES,
    LOG_DROPPED,
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
    WEB_RELOAD_SUCCESSFUL,
    Row,
)
from exporter.replication.model import Destination, Source
from exporter.replication.store import Store
from exporter.replication.targets import WHOLE, Shard


class Figures(Protocol):
    """What the poller tells of itself at a scrape."""

    def overdue(self) -> float: ...

    def rates(self) -> Mapping[Source, float]: ...

    def queues(self) -> Mapping[Source, bool]: ...


class Clock(Protocol):
    def monotonic(self) -> float: ...


class Instruments:
    """The exporter's own counters and histograms; safe to use from any thread."""

    def __init__(self, *, shard: Shard = WHOLE) -> None:
        prometheus_client.disable_created_metrics()
        self.registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        self._durations = self._make(prometheus_client.Histogram, REPLICATION_DURATION)
        requests = self._make(prometheus_client.Counter, AWS_REQUESTS)
        durations = self._make(prometheus_client.Histogram, AWS_DURATION)
        # To look up a child costs more than to count in it.
        self._count = cache(requests.labels)
        self._time = cache(durations.labels)
        self._reload_successful = self._make(prometheus_client.Gauge, RELOAD_SUCCESSFUL)
        self._reload_time = self._make(prometheus_client.Gauge, RELOAD_TIME)
        build = self._make(prometheus_client.Gauge, BUILD_INFO)
        build.labels(__version__, platform.python_version(), version("boto3")).set(1)
        self._make(prometheus_client.Gauge, SHARD_ORDINAL).set(shard.ordinal)
        self._make(prometheus_client.Gauge, TOTAL_SHARDS).set(shard.total)
        #: Made with its first value: before, there is nothing to tell.
        self._state_written: Any = None
        self._web_reload_successful: Any = None
        self._state_failures = self._make(prometheus_client.Counter, STATE_FAILURES)
        for operation in ("read", "write"):
            self._state_failures.labels(operation)
        self._events = cache(self._make(prometheus_client.Counter, EVENTS).labels)
        self._event_delays = self._make(prometheus_client.Histogram, EVENT_DELAY)
        self._log_dropped = self._make(prometheus_client.Counter, LOG_DROPPED)

    def _make(self, kind: Any, row: Row) -> Any:
        buckets = {"buckets": row.buckets} if row.buckets else {}
        return kind(row.name, row.help, row.labels, registry=self.registry, **buckets)

    def aws_request(self, service: str, operation: str, source: Source, outcome: str, seconds: float) -> None:
        """Count a call to AWS that took so many seconds."""
        self._count(service, operation, *source, outcome).inc()
        self._time(service, operation).observe(seconds)

    def replicates(self, source: Source, destination: Destination) -> None:
        """Export 0 replications to the destination, so that rate() sees the first one."""
        self._durations.labels(*source, *destination)

    def replicated(self, source: Source, destination: Destination, seconds: float) -> None:
        """Count a replication that was seen to end, so many seconds after the push."""
        self._durations.labels(*source, *destination).observe(seconds)

    def queue_added(self, source: Source) -> None:
        """Export 0 events of the kinds that every queue should get, so that rate() sees the first one."""
        for kind in ("PUSH", "REPLICATE"):
            self._events(*source, kind, "used")
        self._event_delays.labels(*source)

    def event_handled(self, source: Source, kind: str, outcome: str, *, delay: float | None) -> None:
        """Count an event. `delay` is in seconds since it happened; None if that does not count."""
        self._events(*source, kind, outcome).inc()
        if delay is not None:
            self._event_delays.labels(*source).observe(delay)

    def state_written(self, *, at: float) -> None:
        """Tell when the state file was written last, as Unix time."""
        self._state_written = self._state_written or self._make(prometheus_client.Gauge, STATE_WRITTEN)
        self._state_written.set(at)

    def state_moved(self) -> None:
        """Another state file was not written yet, and none never is."""
        if self._state_written:
            self.registry.unregister(self._state_written)
            self._state_written = None

    def state_failed(self, operation: str) -> None:
        """Count that the state file could not be read or written."""
        self._state_failures.labels(operation).inc()

    def log_dropped(self) -> None:
        """Count a log line that was lost."""
        self._log_dropped.inc()

    def reloaded(self, *, success: bool, at: float) -> None:
        """Tell how the last attempt to load the configuration ended, at this Unix time."""
        self._reload_successful.set(success)
        if success:
            self._reload_time.set(at)

    def web_loaded(self, success: bool) -> None:
        """Tell how the last attempt to load the web configuration ended; never, if there is none."""
        self._web_reload_successful = self._web_reload_successful or self._make(
            prometheus_client.Gauge, WEB_RELOAD_SUCCESSFUL
        )
        self._web_reload_successful.set(success)


class Gauges(Collector):
    """The exporter's gauges of itself, read at each scrape."""

    def __init__(self, store: Store, figures: Figures, clock: Clock) -> None:
        self._store = store
        self._figures = figures
        self._clock = clock

    def describe(self) -> Iterator[Metric]:
        """Names that `name[]` may select; prometheus_client needs them in advance."""
        for row in (IMAGES, SKIPPED, OVERDUE, RATE_LIMIT, EVENTS_QUEUE):
            yield _family(row, ())

    def collect(self) -> Iterator[Metric]:
        states = self._store.states(self._clock.monotonic())
        yield _family(IMAGES, (((state,), n) for state, n in states.items()))
        yield _family(SKIPPED, [((), self._store.skipped)])
        yield _family(OVERDUE, [((), self._figures.overdue())])
        yield _family(RATE_LIMIT, self._figures.rates().items())
        yield _family(EVENTS_QUEUE, self._figures.queues().items())


def _family(row: Row, samples: Iterable[tuple[Sequence[str], float]]) -> Metric:
    family = GaugeMetricFamily(row.name, row.help, labels=row.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family
