"""Reads the queues of events, and tells the registries what happened. An event never becomes a fact.

It makes the next question come sooner, and polling finds what no event tells. All on the loop thread, except
that a thread for each queue makes its calls. The next call of a queue goes after the messages of the last one
were taken, so a slow loop is not flooded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

from exporter.aws.errors import ECRError
from exporter.aws.events import Event, EventKind, UnusableEventError, parse
from exporter.aws.sqs import BATCH, Message, QueueClient
from exporter.config.settings import RegistrySettings, Settings
from exporter.polling.access import Access, Group, access_of
from exporter.polling.calls import LOST_AFTER, call_lost, no_thread, unusable
from exporter.polling.context import Context, Outcome, Shared
from exporter.polling.workers import WorkerPool
from exporter.replication.model import Destination, FailureScope, Source

#: Seconds from one empty answer to the next, at least: SQS holds an empty answer back, others may not.
SHORTEST_POLL = 1.0
#: Most seconds without a call after an answer that was not full. More messages gather meanwhile. A call for
#: one message costs as much processor time, and as much money, as a call for ten.
GATHERING = 0.5
#: The ids of so many events are remembered, to find duplicates.
MOST_IDS = 10_000
#: The kind of an event that cannot be understood, and of one that is not known.
UNKNOWN = "unknown"


class Registry(Protocol):
    """What watches a registry."""

    def happened(self, event: Event) -> Outcome: ...


class EventsObserver(Protocol):
    """Counts events. `source` is the registry whose entry has the queue."""

    def queue_added(self, source: Source) -> None: ...

    def event_handled(self, source: Source, kind: str, outcome: str, *, delay: float | None) -> None:
        """Count an event. `delay` is in seconds since it happened; None if that does not count."""


class _Queue:
    """One queue: a call at a time, and a pause after a failure."""

    def __init__(
        self,
        shared: Shared,
        *,
        url: str,
        access: Access,
        group: Group,
        settings: Settings,
        client: QueueClient,
        workers: WorkerPool,
        put: Callable[[Callable[[], None]], None],
        take: Callable[[Source, str], None],
    ) -> None:
        self.access = access
        #: Whether the last calls worked; None before the first.
        self.success: bool | None = None
        self._context = Context(shared, source=group.source, settings=settings)
        self._clock = shared.clock
        self._scope = FailureScope("events", url.rpartition("/")[2])
        self._client = client
        self._workers = workers
        self._put = put
        self._take = take
        #: The messages that were taken and are to be deleted.
        self._taken: Sequence[Message] = ()
        #: The call in flight.
        self._call: object = None
        #: Monotonic times: of the last call, of the last answer, and of the next call.
        self._called_at = self._answered_at = self._due = self._clock.monotonic()
        self.configure(group)

    @property
    def source(self) -> Source:
        """The registry whose entry has the queue."""
        return self._context.facts.source

    def configure(self, group: Group) -> None:
        """Take the name and the account of the registry."""
        self._context.facts.source = group.source
        self._context.rename(group.name)

    def retire(self) -> None:
        """Read it no longer. Messages of a call in flight stay in the queue."""
        self._call = None
        self._context.works(self._scope)
        self._workers.close()

    def start(self) -> float:
        """Have the next call made if it may go now; the monotonic time at which it may."""
        now = self._clock.monotonic()
        if self._call and now >= self._called_at + LOST_AFTER:
            self._failed(self._call, call_lost())
        if not self._call and now >= self._due:
            self._call, self._called_at = object(), now
            try:
                self._workers.submit(partial(self._make, self._call, self._taken))
            except RuntimeError as error:
                self._failed(self._call, no_thread(error))
        return self._called_at + LOST_AFTER if self._call else self._due

    def _make(self, call: object, taken: Sequence[Message]) -> None:
        """In a worker: delete what was taken, and receive more. Nothing is received while that fails."""
        try:
            if taken:
                self._client.delete(taken)
            result = partial(self._received, call, self._client.receive())
        except ECRError as error:
            result = partial(self._failed, call, error)
        except Exception as error:  # noqa: BLE001 - no answer of AWS may stop the exporter
            result = partial(self._failed, call, unusable(error))
        self._put(result)

    def _received(self, call: object, messages: Sequence[Message]) -> None:
        if call is not self._call:
            return  # it was given up
        self._call = None
        self._context.works(self._scope)
        self.success = True
        for message in messages:
            self._take(self.source, message.body)
        self._taken = messages
        now = self._clock.monotonic()
        passed, self._answered_at = now - self._answered_at, now
        if messages:
            # By then a whole batch has come. Of a backlog, SQS may send less than a batch at once.
            self._due = now + min(GATHERING, (BATCH - len(messages)) * passed / len(messages))
        else:
            self._due = self._called_at + SHORTEST_POLL

    def _failed(self, call: object, error: ECRError) -> None:
        if call is not self._call:
            return
        self._call = None
        self._due = self._context.fail(self._scope, error, fails_targets=False)
        if self._context.reported(self._scope):
            self.success = False


class Events:
    """The queues of all registries, and where their events go."""

    def __init__(
        self,
        shared: Shared,
        *,
        connect: Callable[[RegistrySettings, str], QueueClient],
        workers: Callable[[str], WorkerPool],
        put: Callable[[Callable[[], None]], None],
        observer: EventsObserver,
    ) -> None:
        self._shared = shared
        self._connect = connect
        self._workers = workers
        self._put = put
        self._observer = observer
        self._queues: dict[str, _Queue] = {}
        #: The registries that are watched.
        self.registries: Mapping[Source, Registry] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()

    def configure(self, settings: Settings, groups: Iterable[Group]) -> None:
        """Read the queues of these registries, each queue once, and no others."""
        shard = self._shared.shard
        wanted: dict[str, tuple[Access, Group]] = {}
        for group in groups:
            # Events are of no registry before its account is known.
            for entry in group.entries if group.source.registry_id else ():
                if template := entry.events_queue_url:
                    url = template.replace("{shard}", str(shard.ordinal))
                    wanted.setdefault(url, (access_of(entry), group))
                    if shard.total > 1 and url == template and url not in self._queues:
                        self._shared.journal.warned(group.name, "events_queue_shared", queue=url)
        for url in list(self._queues):
            if url not in wanted or wanted[url][0] != self._queues[url].access:
                self._queues.pop(url).retire()
        for url, (access, group) in wanted.items():
            if queue := self._queues.get(url):
                queue.configure(group)
            else:
                self._queues[url] = _Queue(
                    self._shared,
                    url=url,
                    access=access,
                    group=group,
                    settings=settings,
                    client=self._connect(access, url),
                    workers=self._workers(f"events-{group.name}"),
                    put=self._put,
                    take=self._take,
                )
            self._observer.queue_added(group.source)

    def start(self) -> float:
        """Have all calls made that may go now; the monotonic time at which there may be more."""
        return min((queue.start() for queue in self._queues.values()), default=float("inf"))

    def success(self) -> Mapping[Source, bool]:
        """Whether the queues of each registry can be read, as far as that is known. For any thread."""
        found: dict[Source, bool] = {}
        for queue in list(self._queues.values()):
            if queue.success is not None:
                found[queue.source] = queue.success and found.get(queue.source, True)
        return found

    def _take(self, home: Source, body: str) -> None:
        """Take the body of a message from a queue of the registry."""
        delay: float | None = None
        try:
            event = parse(body)
        except UnusableEventError:
            kind, outcome = UNKNOWN, Outcome.INVALID
        else:
            kind = event.kind if event else UNKNOWN
            outcome = self._tell(_complete(event, home)) if event else Outcome.FOREIGN
            if event and event.at is not None and outcome is Outcome.USED:
                delay = max(0.0, self._shared.clock.time() - event.at)
        self._observer.event_handled(home, kind, outcome, delay=delay)

    def _tell(self, event: Event) -> Outcome:
        if event.id in self._seen:
            return Outcome.DUPLICATE
        if event.kind is EventKind.REPLICATE_IMAGE:
            concerned: Iterable[Registry | None] = self.registries.values()
        else:
            concerned = map(self.registries.get, {event.place, event.source})
        outcomes = {registry.happened(event) for registry in concerned if registry}
        if event.kind is not EventKind.REPLICATE and self._is_of_copy(event):
            outcomes.add(Outcome.USED)
        outcome = next((o for o in (Outcome.USED, Outcome.OLD) if o in outcomes), Outcome.FOREIGN)
        if outcome is not Outcome.FOREIGN and event.id:
            self._seen[event.id] = None
            if len(self._seen) > MOST_IDS:
                self._seen.popitem(last=False)
        return outcome

    def _is_of_copy(self, event: Event) -> bool:
        """Whether it happened to the copy of a watched image. The copy is looked at soon then."""
        place = Destination(event.place.region, event.place.registry_id)
        return self._shared.sightings.happened(event.repository, place, event.digest)


def _complete(event: Event, home: Source) -> Event:
    """The event with the account that was left out: that of the queue's registry."""
    if event.place.registry_id:
        return event
    place = event.place._replace(registry_id=home.registry_id)
    return event._replace(place=place, source=place if event.source == event.place else event.source)
