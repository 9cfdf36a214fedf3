"""The polling loop: one thread that decides, workers that make calls, and an inbox between them.

The loop thread alone touches registries and the store's facts. Workers call the clients and put the result
into the inbox; so do reloads. Each registry has workers of its own, so that calls of one that hang take no
worker from another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue
from random import Random
from typing import Protocol

from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.config.settings import RegistrySettings, Settings
from exporter.polling.access import Access, Group, grouped
from exporter.polling.calls import Call, Clock, Journal, unusable
from exporter.polling.context import OnComplete, Shared
from exporter.polling.registry import RegistryPoller
from exporter.polling.sightings import Sightings
from exporter.polling.workers import MAX_HANDED_OUT, MAX_IN_FLIGHT, ThreadPool, WorkerPool
from exporter.replication.model import Reason, Source
from exporter.replication.state_file import StateCache
from exporter.replication.store import Store
from exporter.replication.targets import WHOLE, Newest, Shard

#: Longest sleep of the loop in seconds, so that its heartbeat shows that it runs.
HEARTBEAT = 10.0


class Connector(Protocol):
    """Makes clients: of the real AWS, or of a fake one."""

    @property
    def region(self) -> str | None: ...

    def ecr(self, settings: RegistrySettings, *, connections: int) -> EcrClient: ...


@dataclass(slots=True, eq=False)
class _Polled:
    """A registry, its workers, and how many calls they have."""

    registry: RegistryPoller
    workers: WorkerPool
    handed_out: int = 0

    @property
    def source(self) -> Source:
        return self.registry.facts.source


class Poller:
    """Keeps the store up to date, at the rate that the limits allow."""

    def __init__(
        self,
        *,
        settings: Settings,
        connector: Connector,
        store: Store,
        clock: Clock,
        random: Random,
        journal: Journal,
        on_complete: OnComplete,
        shard: Shard = WHOLE,
        memory: StateCache | None = None,
        workers: Callable[[str], WorkerPool] = ThreadPool,
    ) -> None:
        self._connector = connector
        self._store = store
        self._clock = clock
        self._shared = Shared(
            store=store,
            newest=Newest(settings.max_images),
            sightings=Sightings(),
            memory=memory or StateCache(),
            shard=shard,
            clock=clock,
            random=random,
            journal=journal,
            on_complete=on_complete,
        )
        self._workers = workers
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._stopping = False
        #: Seconds that a reload waits for the loop; fewer than a client waits for the reload.
        self.reload_timeout = 8.0
        self._polled: list[_Polled] = []
        #: The accounts that AWS itself named, and the clients, by access.
        self._accounts: dict[Access, str] = {}
        self._clients: dict[Access, EcrClient] = {}
        self._overdue_since: float | None = None
        self._heartbeat = clock.monotonic()
        self.configure(settings)

    # -- any thread --------------------------------------------------------------------------

    def run(self) -> None:
        """Work until `stop`. An exception from here is a bug that should end the process."""
        while not self._stopping:
            self._wait(self.step())

    def stop(self) -> None:
        """End `run` at once; calls under way are abandoned."""
        self._inbox.put(self._stop)

    def reload(self, settings: Settings) -> bool:
        """Take a new configuration; False if the loop does not do so within `reload_timeout` seconds."""
        done, begin = threading.Event(), threading.Lock()

        def apply() -> None:
            if begin.acquire(blocking=False):
                self.configure(settings)
                done.set()

        self._inbox.put(apply)
        # The first to take the lock decides, so that what is given up here is not done later.
        return done.wait(self.reload_timeout) or not begin.acquire(blocking=False)

    def overdue(self) -> float:
        """How many seconds the oldest due call waits for the rate limiter."""
        since = self._overdue_since
        return max(0.0, self._clock.monotonic() - since) if since is not None else 0.0

    def rates(self) -> Mapping[Source, float]:
        """The calls a second that each registry is allowed now."""
        return {polled.source: polled.registry.pacing.rate for polled in list(self._polled)}

    def silent_for(self) -> float:
        """Seconds since the last round of the loop."""
        return self._clock.monotonic() - self._heartbeat

    # -- the loop thread ---------------------------------------------------------------------

    def step(self) -> float:
        """Do all that can be done now; the seconds until there may be more."""
        self._drain()
        self._shared.journal.tick()
        now = self._heartbeat = self._clock.monotonic()
        wake_at = now + HEARTBEAT
        for polled in self._polled:
            polled.registry.end_lost_calls()
            wake_at = min(wake_at, polled.registry.record_targets(), self._start_calls(polled))
        since = [at for p in self._polled if (at := p.registry.pacing.overdue_since()) is not None]
        self._overdue_since = min(since, default=None)
        return max(0.0, wake_at - self._clock.monotonic()) if self._inbox.empty() else 0.0

    def _stop(self) -> None:
        self._stopping = True

    def _wait(self, seconds: float) -> None:
        with suppress(Empty):
            self._inbox.get(timeout=seconds)()

    def _drain(self) -> None:
        while not self._inbox.empty():
            self._inbox.get()()

    def _start_calls(self, polled: _Polled) -> float:
        """Hand out the calls that may go now; the monotonic time at which there may be more."""
        while polled.handed_out < MAX_HANDED_OUT:
            call = polled.registry.next_call()
            if not isinstance(call, Call):
                return call
            polled.handed_out += 1
            try:
                polled.workers.submit(partial(self._make, polled, call))
            except RuntimeError as error:
                self._failed(polled, call, _no_thread(error))
        return float("inf")  # until a call comes back

    def _make(self, polled: _Polled, call: Call) -> None:
        """In a worker: make the call, and put the result into the inbox."""
        try:
            answer = call.make()
        except ECRError as error:
            self._inbox.put(partial(self._failed, polled, call, error))
        except Exception as error:  # noqa: BLE001 - no answer of AWS may stop the exporter
            self._inbox.put(partial(self._failed, polled, call, unusable(error)))
        else:
            self._inbox.put(partial(self._answered, polled, call, answer))

    def _answered(self, polled: _Polled, call: Call, answer: object) -> None:
        polled.handed_out -= 1
        if polled in self._polled:
            polled.registry.answered(call, answer)

    def _failed(self, polled: _Polled, call: Call, error: ECRError) -> None:
        polled.handed_out -= 1
        if polled in self._polled:
            polled.registry.failed(call, error)

    # -- configuration -----------------------------------------------------------------------

    def configure(self, settings: Settings) -> None:
        """Poll what the settings say; a registry that stays keeps all that is known of it.

        Loop thread only; for other threads there is `reload`.
        """
        # This shard's part of what all shards together may ask of a registry.
        rate = settings.requests_per_second / self._shared.shard.total
        self._settings = settings = replace(settings, requests_per_second=rate)
        if self._shared.newest.resize(settings.max_images):
            for polled in self._polled:
                polled.registry.admit()
        with self._store.lock:
            self._store.changed()
            self._store.stale_after = settings.stale_after
        self._regroup()
        for polled in self._polled:
            polled.registry.reloaded()

    def _take_account(self, access: Access, account: str) -> None:
        """Take that AWS names the account of an access: its entries may be another registry now."""
        self._accounts[access] = account
        self._regroup()

    def _regroup(self) -> None:
        """Have one poller for each registry: keep those that there are, retire and make others."""
        groups = grouped(self._settings.registries, accounts=self._accounts, region=self._connector.region)
        accesses = {access for group in groups for access in group.accesses}
        self._clients = {access: c for access, c in self._clients.items() if access in accesses}
        kept = {group.source: found for group in groups if (found := self._find(group, groups))}
        retired = [polled for polled in self._polled if polled not in kept.values()]
        self._publish(list(kept.values()))
        for polled in retired:
            polled.registry.retire()
            polled.workers.close()
        for group in groups:
            polled = kept.get(group.source) or self._create(group)
            polled.registry.configure(self._settings, group, self._client)
            kept[group.source] = polled
        self._publish([kept[group.source] for group in groups])

    def _find(self, group: Group, groups: list[Group]) -> _Polled | None:
        """The poller of a registry; or one whose account was not known, if the registry has its access."""
        same = next((p for p in self._polled if p.source == group.source), None)
        sources = {group.source for group in groups}
        unknown = (p for p in self._polled if not p.source.registry_id and p.source not in sources)
        return same or next((p for p in unknown if p.registry.has_access(group.accesses)), None)

    def _publish(self, polled: list[_Polled]) -> None:
        """Show the facts of these registries, and of no others."""
        self._polled = polled
        with self._store.lock:
            self._store.changed()
            self._store.registries = [each.registry.facts for each in polled]
            self._store.skipped = self._shared.newest.skipped

    def _client(self, access: Access) -> EcrClient:
        """The client of an access. It stays while the access is configured, whatever its registry is."""
        if access not in self._clients:
            self._clients[access] = self._connector.ecr(access, connections=MAX_IN_FLIGHT)
        return self._clients[access]

    def _create(self, group: Group) -> _Polled:
        registry = RegistryPoller(
            self._shared, group=group, settings=self._settings, on_account=self._take_account
        )
        return _Polled(registry, self._workers(group.name))


def _no_thread(error: RuntimeError) -> ECRError:
    return ECRError(Reason.UNAVAILABLE, action="ecr", code="NoThread", message=str(error))
