"""The polling loop: one thread that decides, workers that make calls, and an inbox between them.

The loop thread alone touches registries and the store's facts. Workers call the clients and put the result
into the inbox; so do reloads. Each registry has workers of its own, so that calls of one that hang take no
worker from another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, Queue
from random import Random
from typing import Generic, Protocol, TypeVar

from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.aws.sqs import QueueClient
from exporter.config.settings import RegistrySettings, Settings
from exporter.polling.access import Access, Group, grouped, readers
from exporter.polling.calls import Call, Clock, Job, Journal, no_thread, unusable
from exporter.polling.context import OnComplete, OnDestination, Shared
from exporter.polling.destination import DestinationPoller
from exporter.polling.dispatcher import Dispatcher
from exporter.polling.events import Events, EventsObserver
from exporter.polling.rate_limit import Operation
from exporter.polling.registry import RegistryPoller
from exporter.polling.sightings import Sightings
from exporter.polling.turns import TURN, Turns
from exporter.polling.workers import MAX_IN_FLIGHT, Pause, ThreadPool, WorkerPool
from exporter.replication.model import Destination, Source
from exporter.replication.newest import Newest
from exporter.replication.state_file import StateCache
from exporter.replication.store import Store
from exporter.replication.targets import WHOLE, Shard

#: Longest sleep of the loop in seconds, so that its heartbeat shows that it runs.
HEARTBEAT = 10.0
#: Seconds between two searches for destinations, while repositories are listed for the first time.
FIND_EVERY = 1.0


class Connector(Protocol):
    """Makes clients: of the real AWS, or of a fake one."""

    @property
    def region(self) -> str | None: ...

    def ecr(self, settings: RegistrySettings, *, connections: int) -> EcrClient: ...

    def queue(self, settings: RegistrySettings, url: str) -> QueueClient: ...


D_co = TypeVar("D_co", bound=Dispatcher, covariant=True)


@dataclass(slots=True, eq=False)
class _Polled(Generic[D_co]):
    """A registry or destination, its workers, and how many calls they have."""

    registry: D_co
    workers: WorkerPool
    handed_out: int = 0
    retired: bool = False

    @property
    def source(self) -> Source:
        return self.registry.facts.source

    def retire(self) -> None:
        """End its polling; calls under way are abandoned."""
        self.retired = True
        self.registry.retire()
        self.workers.close()


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
        events: EventsObserver,
        on_destination: OnDestination = lambda *_: None,
        shard: Shard = WHOLE,
        memory: StateCache | None = None,
        workers: Callable[[str], WorkerPool] = ThreadPool,
        pause: Pause | None = None,
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
            on_destination=on_destination,
            turns=Turns(clock),
        )
        self._workers = workers
        self._pause = pause or Pause()
        #: Not a SimpleQueue: before Python 3.13, one may miss the end of a short time-out and wait on.
        self._inbox: Queue[Callable[[], None]] = Queue()
        self._events = Events(
            self._shared,
            connect=connector.queue,
            workers=workers,
            put=self._inbox.put,
            observer=events,
        )
        self._stopping = False
        #: Seconds that a reload waits for the loop; fewer than a client waits for the reload.
        self.reload_timeout = 8.0
        self._registries: list[_Polled[RegistryPoller]] = []
        #: The destinations that are looked at and not watched themselves.
        self._destinations: dict[Destination, _Polled[DestinationPoller]] = {}
        self._groups: list[Group] = []
        #: The destinations that nothing can read, as the log has it.
        self._unread: frozenset[Destination] = frozenset()
        #: The accounts that AWS itself named, and the clients, by access.
        self._accounts: dict[Access, str] = {}
        self._clients: dict[Access, EcrClient] = {}
        self._overdue_since: float | None = None
        self._find_at = clock.monotonic()
        #: The floor of `newest` for which all repositories were asked to show what fits.
        self._floor: object = None
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
        polled = [*list(self._registries), *list(self._destinations.values())]
        return {each.source: each.registry.pacing.rate for each in polled}

    def silent_for(self) -> float:
        """Seconds since the last round of the loop."""
        return self._clock.monotonic() - self._heartbeat

    def queues(self) -> Mapping[Source, bool]:
        """Whether the events queues of each registry can be read, as far as that is known."""
        return self._events.success()

    def due(self, source: Source, repository: str, digest: str) -> float | None:
        """When ECR is asked for the status of an image again (monotonic); None if no call is due."""
        job = Job(Operation.STATUS, repository, digest)
        pacings = (each.registry.pacing for each in list(self._registries) if each.source == source)
        return next((due for pacing in pacings if (due := pacing.due(job)) is not None), None)

    # -- the loop thread ---------------------------------------------------------------------

    def step(self) -> float:
        """Do all that can be done now; the seconds until there may be more."""
        self._drain()
        if self._shared.turns:
            self._pause.wait(TURN)
        self._shared.turns.take()
        newest = self._shared.newest
        if newest.crowded and newest.floor != self._floor and not self._shared.turns:
            self._admit()
        self._shared.journal.tick()
        now = self._heartbeat = self._clock.monotonic()
        wake_at = now + HEARTBEAT
        if self._shared.sightings.changed:
            wake_at = min(wake_at, self._find_at)
            if now >= self._find_at:
                self._find_destinations()
        wake_at = min(wake_at, self._events.start(), self._shared.turns.next_at)
        everything = (*self._registries, *self._destinations.values())
        for polled in everything:
            polled.registry.time_passes()
            wake_at = min(wake_at, polled.registry.record(), self._start_calls(polled))
        since = [at for p in everything if (at := p.registry.pacing.overdue_since()) is not None]
        self._overdue_since = min(since, default=None)
        idle = self._inbox.empty() and not self._shared.turns
        return max(0.0, wake_at - self._clock.monotonic()) if idle else 0.0

    def _stop(self) -> None:
        self._stopping = True

    def _wait(self, seconds: float) -> None:
        if seconds:
            with suppress(Empty):
                self._inbox.get(timeout=seconds)()

    def _drain(self) -> None:
        """Take what is in the inbox, for one turn."""
        end = self._clock.monotonic() + TURN
        while not self._inbox.empty() and self._clock.monotonic() <= end:
            self._inbox.get()()

    def _start_calls(self, polled: _Polled[Dispatcher]) -> float:
        """Hand out the calls that may go now; the monotonic time at which there may be more."""
        while polled.handed_out < polled.registry.most_calls:
            call = polled.registry.next_call()
            if not isinstance(call, Call):
                return call
            polled.handed_out += 1
            try:
                polled.workers.submit(partial(self._make, polled, call))
            except RuntimeError as error:
                self._failed(polled, call, no_thread(error))
        return float("inf")  # until a call comes back

    def _make(self, polled: _Polled[Dispatcher], call: Call) -> None:
        """In a worker: make the call, and put the result into the inbox."""
        try:
            answer = call.make()
        except ECRError as error:
            self._inbox.put(partial(self._failed, polled, call, error))
        except Exception as error:  # noqa: BLE001 - no answer of AWS may stop the exporter
            self._inbox.put(partial(self._failed, polled, call, unusable(error)))
        else:
            self._inbox.put(partial(self._answered, polled, call, answer))

    def _answered(self, polled: _Polled[Dispatcher], call: Call, answer: object) -> None:
        polled.handed_out -= 1
        if not polled.retired:
            polled.registry.answered(call, answer)

    def _failed(self, polled: _Polled[Dispatcher], call: Call, error: ECRError) -> None:
        polled.handed_out -= 1
        if not polled.retired:
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
            self._admit()
        with self._store.lock:
            self._store.changed()
            self._store.stale_after = settings.stale_after
            self._store.unfinished_only = settings.image_series == "unfinished"
        self._regroup()
        for each in (*self._registries, *self._destinations.values()):
            each.registry.reloaded()

    def _admit(self) -> None:
        """Watch the images that fit under `max_images` now, and no older ones."""
        self._floor = self._shared.newest.floor
        for polled in self._registries:
            self._shared.turns.begin(polled.registry.admit())

    def _take_account(self, access: Access, account: str) -> None:
        """Take that AWS names the account of an access: its entries may be another registry now."""
        self._accounts[access] = account
        self._regroup()

    def _regroup(self) -> None:
        """Have one poller for each registry: keep those that there are, retire and make others."""
        groups = grouped(self._settings.registries, accounts=self._accounts, region=self._connector.region)
        self._groups = groups
        kept = {group.source: found for group in groups if (found := self._find(group, groups))}
        retired = [polled for polled in self._registries if polled not in kept.values()]
        self._publish(list(kept.values()))
        for polled in retired:
            polled.retire()
        for group in groups:
            polled = kept.get(group.source) or self._create(group)
            polled.registry.configure(self._settings, group, self._client)
            kept[group.source] = polled
        self._publish([kept[group.source] for group in groups])
        self._events.configure(self._settings, groups)
        self._find_destinations()

    def _find(self, group: Group, groups: list[Group]) -> _Polled[RegistryPoller] | None:
        """The poller of a registry; or one whose account was not known, if the registry has its access."""
        same = next((p for p in self._registries if p.source == group.source), None)
        sources = {group.source for group in groups}
        unknown = (p for p in self._registries if not p.source.registry_id and p.source not in sources)
        return same or next((p for p in unknown if p.registry.has_access(group.accesses)), None)

    def _publish(self, polled: list[_Polled[RegistryPoller]]) -> None:
        """Show the facts of these registries, and of no others."""
        self._registries = polled
        self._events.registries = {each.source: each.registry for each in polled}
        with self._store.lock:
            self._store.changed()
            self._store.registries = [each.registry.facts for each in polled]
            self._store.skipped = self._shared.newest.skipped

    def _client(self, access: Access) -> EcrClient:
        """The client of an access. It stays while the access is configured, whatever its registry is."""
        if access not in self._clients:
            self._clients[access] = self._connector.ecr(access, connections=MAX_IN_FLIGHT)
        return self._clients[access]

    def _find_destinations(self) -> None:
        """Look at the destinations of the watched images that can be read, and at no others."""
        self._shared.sightings.changed = False
        self._find_at = self._clock.monotonic() + FIND_EVERY
        wanted = self._shared.sightings.wanted() if self._settings.replica_interval else {}
        watched = {Destination(p.source.region, p.source.registry_id): p.registry for p in self._registries}
        accesses = {
            to: readers(to, self._settings.destinations, self._groups) for to in wanted if to not in watched
        }
        for destination in [to for to in self._destinations if not accesses.get(to)]:
            self._destinations.pop(destination).retire()
        for destination, registry in watched.items():
            registry.look_at(wanted.get(destination, ()))
        for destination, its_accesses in accesses.items():
            if its_accesses:
                self._look_at(destination, wanted[destination], its_accesses)
        self._publish_destinations(frozenset(to for to in accesses if not accesses[to]))
        self._shared.sightings.settings_version += 1
        used = {access for group in self._groups for access in group.accesses}
        used.update(access for its_accesses in accesses.values() for access in its_accesses)
        self._clients = {access: client for access, client in self._clients.items() if access in used}

    def _look_at(
        self, destination: Destination, repositories: Collection[str], accesses: Iterable[Access]
    ) -> None:
        polled = self._destinations.get(destination)
        if polled is None:
            source = Source(destination.registry_id, destination.region)
            poller = DestinationPoller(self._shared, source=source, settings=self._settings)
            polled = _Polled(poller, self._workers(f"{source.registry_id}/{source.region}"))
            self._destinations[destination] = polled
        polled.registry.configure(self._settings, repositories, accesses, self._client)

    def _publish_destinations(self, unread: frozenset[Destination]) -> None:
        """Show how looking at the destinations goes. `unread`: those that nothing can read."""
        watched = (polled.registry.replicas for polled in self._registries)
        replicas = [
            *(each for each in watched if each),
            *(p.registry.replicas for p in self._destinations.values()),
        ]
        with self._store.lock:
            self._store.changed()
            self._store.destinations = [each.facts for each in replicas]
            self._store.unread = tuple(sorted(unread))
        for region, account in sorted(unread - self._unread):
            remedy = f"give an entry of destinations with registry_id {account}"
            self._shared.journal.noted(f"{account}/{region}", "destination_not_read", remedy=remedy)
        self._unread = unread

    def _create(self, group: Group) -> _Polled[RegistryPoller]:
        registry = RegistryPoller(
            self._shared, group=group, settings=self._settings, on_account=self._take_account
        )
        return _Polled(registry, self._workers(group.name))
