"""Threads: one loop that decides, workers that ask, and nothing shared between them but an inbox.

The loop thread alone touches watches, schedules and the store. ThreadPool call the client and put what
came of it into the inbox; so do reloads. Each registry has workers of its own, so one that hangs
takes none from another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from random import Random
from typing import Any, Protocol

from exporter.aws.ecr import EcrClient, static_registry_id
from exporter.aws.errors import ECRError
from exporter.config.settings import RegistrySettings, Settings, TargetSettings
from exporter.polling.agenda import MAX_HANDED_OUT, MAX_IN_FLIGHT, Clock, Job, Journal
from exporter.polling.registry import RegistryWatch
from exporter.replication.model import Destination, Reason, Source
from exporter.replication.state_file import StateCache
from exporter.replication.store import Store
from exporter.replication.targets import WHOLE, Newest, Shard

#: Longest sleep of the loop in seconds, so that its heartbeat tells whether it lives.
HEARTBEAT = 10.0


class Connector(Protocol):
    """Makes gates: the real AWS, or a fake one."""

    @property
    def region(self) -> str | None: ...

    def ecr(self, settings: RegistrySettings, *, connections: int) -> EcrClient: ...


class WorkerPool(Protocol):
    """Something that makes calls, sooner or later, in whatever thread."""

    def submit(self, call: Callable[[], None]) -> None:
        """Raises RuntimeError if there is nobody to make the call, now or later."""

    def close(self) -> None: ...


class ThreadPool:
    """At most `limit` daemon threads, made when there is work and none is idle.

    Daemons, so that a call that hangs does not hold up the end of the process.
    """

    def __init__(self, name: str, limit: int = MAX_IN_FLIGHT) -> None:
        self._name = name
        self._limit = limit
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        #: Calls that were handed in and are not made yet. Under the lock.
        self._unmade = 0
        self._threads = 0

    def submit(self, call: Callable[[], None]) -> None:
        """Have the call made. Only ever called from one thread.

        A thread that cannot be started is done without, if there are others. Raises RuntimeError if not.
        """
        with self._lock:
            busy = self._unmade >= self._threads
        if busy and self._threads < self._limit:
            self._hire()
        with self._lock:
            self._unmade += 1
        self._calls.put(call)

    def _hire(self) -> None:
        name = f"{self._name}-{self._threads + 1}"
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError:
            if not self._threads:
                raise
        else:
            self._threads += 1

    def close(self) -> None:
        """Let the threads end, each after the call that it is making."""
        for _ in range(self._threads):
            self._calls.put(None)

    def _work(self) -> None:
        while call := self._calls.get():
            call()
            with self._lock:
                self._unmade -= 1


class _Watched:
    """A registry, its workers, and how many calls were handed to them."""

    def __init__(self, watch: RegistryWatch, workers: WorkerPool, entry: RegistrySettings) -> None:
        self.watch = watch
        self.workers = workers
        self.entry = entry
        self.handed_out = 0


class Poller:
    """Keeps the store true, at the pace that the budgets allow."""

    def __init__(
        self,
        *,
        settings: Settings,
        connector: Connector,
        store: Store,
        clock: Clock,
        random: Random,
        journal: Journal,
        on_complete: Callable[[Source, Destination, float], None],
        shard: Shard = WHOLE,
        memory: StateCache | None = None,
        workers: Callable[[str], WorkerPool] = ThreadPool,
    ) -> None:
        self._connector = connector
        self._store = store
        self._clock = clock
        self._random = random
        self._journal = journal
        self._on_complete = on_complete
        self._shard = shard
        self._memory = memory or StateCache()
        self._workers = workers
        self._newest = Newest(settings.max_images)
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._stopping = False
        #: Seconds that a reload waits for the loop; fewer than anybody waits for the reload.
        self.reload_timeout = 8.0
        self._watched: list[_Watched] = []
        #: Registries that AWS itself had to name, by entry.
        self._identified: dict[RegistrySettings, Source] = {}
        self._oldest_due: float | None = None
        self._heartbeat = clock.monotonic()
        self._configure(self._share(settings))

    # -- any thread --------------------------------------------------------------------------

    def run(self) -> None:
        """Work until `stop`. Whatever escapes from here is a bug, and the process should not survive it."""
        while not self._stopping:
            self._wait(self.step())

    def stop(self) -> None:
        """End `run` at once; calls under way are abandoned."""
        self._inbox.put(self._stop)

    def reload(self, settings: Settings) -> bool:
        """Take a new configuration; False if the loop did not get round to it in `reload_timeout` seconds."""
        done, begin = threading.Event(), threading.Lock()

        def apply() -> None:
            if begin.acquire(blocking=False):
                self._configure(self._share(settings))
                done.set()

        self._inbox.put(apply)
        # Whoever takes the lock first decides: given up here is not done later there.
        return done.wait(self.reload_timeout) or not begin.acquire(blocking=False)

    def overdue(self) -> float:
        """How many seconds the latest due call is late for want of budget."""
        due = self._oldest_due
        return max(0.0, self._clock.monotonic() - due) if due is not None else 0.0

    def rates(self) -> Mapping[Source, float]:
        """The calls a second that each registry is allowed now."""
        return {w.watch.facts.source: w.watch.agenda.rate_limiter.rate for w in list(self._watched)}

    def silent_for(self) -> float:
        """Seconds since the loop last came round."""
        return self._clock.monotonic() - self._heartbeat

    # -- the loop thread ---------------------------------------------------------------------

    def step(self) -> float:
        """Do all that can be done now; how many seconds until there may be more."""
        self._drain()
        self._journal.tick()
        now = self._heartbeat = self._clock.monotonic()
        wake_at = now + HEARTBEAT
        for watched in self._watched:
            watched.watch.give_up()
            wake_at = min(wake_at, self._start_calls(watched))
        dues = [due for w in self._watched if (due := w.watch.agenda.queue.oldest_due(now)) is not None]
        self._oldest_due = min(dues, default=None)
        return max(0.0, wake_at - self._clock.monotonic()) if self._inbox.empty() else 0.0

    def _stop(self) -> None:
        self._stopping = True

    def _wait(self, seconds: float) -> None:
        with suppress(Empty):
            self._inbox.get(timeout=seconds)()

    def _drain(self) -> None:
        while not self._inbox.empty():
            self._inbox.get()()

    def _start_calls(self, watched: _Watched) -> float:
        """Hand out what may be asked now; the monotonic time at which there may be more."""
        while watched.handed_out < MAX_HANDED_OUT:
            found = watched.watch.next_call()
            if not isinstance(found, tuple):
                return found
            job, call = found
            watched.handed_out += 1
            try:
                watched.workers.submit(partial(self._make, watched, job, call))
            except RuntimeError as error:
                self._failed(watched, job, _unmade(error))
        return float("inf")  # until a call comes back

    def _make(self, watched: _Watched, job: Job, call: Callable[[], Any]) -> None:
        """In a worker: make the call, and let the loop thread know."""
        try:
            answer = call()
        except ECRError as error:
            self._inbox.put(partial(self._failed, watched, job, error))
        except Exception as error:  # noqa: BLE001 - no answer of AWS may stop the exporter
            self._inbox.put(partial(self._failed, watched, job, _unusable(error)))
        else:
            self._inbox.put(partial(self._answered, watched, job, answer))

    def _answered(self, watched: _Watched, job: Job, answer: Any) -> None:
        watched.handed_out -= 1
        if watched not in self._watched:
            return
        before = watched.watch.facts.source
        try:
            watched.watch.answered(job, answer)
        except Exception as error:  # noqa: BLE001 - nor may what it answers
            watched.watch.failed(job, _unusable(error))
        if watched.watch.facts.source != before:
            self._identified[watched.entry] = watched.watch.facts.source
            if any(
                w is not watched and self._source(w.entry) == watched.watch.facts.source
                for w in self._watched
            ):
                self._configure(self._settings)

    def _failed(self, watched: _Watched, job: Job, error: ECRError) -> None:
        watched.handed_out -= 1
        if watched in self._watched:
            watched.watch.failed(job, error)

    # -- configuration -----------------------------------------------------------------------

    def _share(self, settings: Settings) -> Settings:
        """What a registry may be asked is for all shards together: this one takes its part."""
        return replace(settings, requests_per_second=settings.requests_per_second / self._shard.total)

    def _configure(self, settings: Settings) -> None:
        """Watch what the settings say; a registry that stays keeps all that is known of it."""
        self._settings = settings
        if self._newest.resize(settings.max_images):
            for watched in self._watched:
                watched.watch.admit()
        with self._store.lock:
            self._store.changed()
            self._store.stale_after = settings.stale_after
        kept = []
        for entries in self._groups(settings).values():
            watched = self._find(entries) or self._create(entries[0])
            watched.watch.configure(settings, _targets(settings, entries))
            kept.append(watched)
        for watched in self._watched:
            if watched not in kept:
                watched.watch.retire()
                watched.workers.close()
        self._watched = kept
        with self._store.lock:
            self._store.changed()
            self._store.registries = [watched.watch.facts for watched in kept]
            self._store.skipped = self._newest.skipped

    def _groups(self, settings: Settings) -> dict[object, list[RegistrySettings]]:
        """The entries by what they are in the end: one account's registry in one Region each.

        Of several entries for one registry those come first that can read its rules.
        """
        groups: dict[object, list[RegistrySettings]] = {}
        for entry in sorted(settings.registries, key=lambda entry: bool(entry.registry_id)):
            source = self._source(entry)
            key = source if source.registry_id else _anonymous(entry)
            groups.setdefault(key, []).append(entry)
        return groups

    def _source(self, entry: RegistrySettings) -> Source:
        static = Source(static_registry_id(entry), entry.region or self._connector.region or "")
        return self._identified.get(_anonymous(entry), static)

    def _find(self, entries: Iterable[RegistrySettings]) -> _Watched | None:
        wanted = {_anonymous(entry) for entry in entries}
        return next((w for w in self._watched if w.entry in wanted), None)

    def _create(self, entry: RegistrySettings) -> _Watched:
        source = self._source(entry)
        name = entry.name or f"{source.registry_id or 'default'}/{source.region}"
        watch = RegistryWatch(
            name=name,
            client=self._connector.ecr(entry, connections=MAX_IN_FLIGHT),
            source=source,
            foreign=bool(entry.registry_id),
            shard=self._shard,
            store=self._store,
            newest=self._newest,
            memory=self._memory,
            clock=self._clock,
            random=self._random,
            journal=self._journal,
            settings=self._settings,
            on_complete=self._on_complete,
        )
        return _Watched(watch, self._workers(name), _anonymous(entry))


def _anonymous(entry: RegistrySettings) -> RegistrySettings:
    """The entry without its name: what AWS sees of it."""
    return replace(entry, name="")


def _targets(settings: Settings, entries: Iterable[RegistrySettings]) -> list[TargetSettings]:
    names = {entry.name for entry in entries}
    return [t for t in settings.targets if not t.registries or names & set(t.registries)]


def _unmade(error: RuntimeError) -> ECRError:
    return ECRError(Reason.UNAVAILABLE, action="ecr", code="NoThread", message=str(error))


def _unusable(error: Exception) -> ECRError:
    return ECRError(
        Reason.INVALID, action="ecr", code=f"UnusableAnswer({type(error).__name__})", message=str(error)
    )
