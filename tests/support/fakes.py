"""A fake ECR in memory, a clock that tests set, and workers without threads.

tests/aws/test_contract.py runs against `FakeECR` and against the real client on the embedded AWS.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from random import Random
from typing import Any

from exporter.aws.ecr import EcrClient, TagStatus
from exporter.aws.errors import ECRError
from exporter.aws.sqs import BATCH, Message, QueueClient
from exporter.config.settings import RegistrySettings, Settings, TargetSettings
from exporter.polling.poller import Poller
from exporter.polling.workers import WorkerPool
from exporter.replication.model import (
    LOOKUP_SIZE,
    Backfill,
    Destination,
    FailureScope,
    Image,
    Name,
    Page,
    Reason,
    Registry,
    Replication,
    Repository,
    RepositorySettings,
    Rule,
    Source,
    Status,
)
from exporter.replication.state_file import StateCache
from exporter.replication.store import Snapshot, Store
from exporter.replication.targets import WHOLE, Shard

ACCOUNT = "111122223333"
REGION = "us-east-1"
HOME = Source(ACCOUNT, REGION)
IRELAND = Destination("eu-west-1", ACCOUNT)
OREGON = Destination("us-west-2", ACCOUNT)
EVERYTHING = (Rule((IRELAND,)),)
STATUS = "DescribeImageReplicationStatus"
#: A target that selects everything.
ALL = TargetSettings(repository="*")


def digest_of(text: str) -> str:
    return "sha256:" + sha256(text.encode()).hexdigest()


@dataclass
class FakeClock:
    """A monotonic and a wall clock. They differ, so a test fails if the code mixes them up."""

    now: float = 1000.0
    wall_ahead: float = 1.8e9

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + self.wall_ahead


Fault = Callable[[str, str], ECRError | None]


def refusal(
    reason: Reason, action: str = "ecr:Any", *, everything: bool = False, retry_after: float | None = None
) -> ECRError:
    return ECRError(
        reason,
        action=action,
        code=reason.value,
        message="made up",
        everything=everything,
        retry_after=retry_after,
    )


@dataclass
class FakeECR:
    """The registry of one account and Region. `FakeClient` gives clients access to it."""

    source: Source = HOME
    rules: tuple[Rule, ...] = EVERYTHING
    repositories: dict[str, dict[str, Image]] = field(default_factory=dict)
    statuses: dict[tuple[str, str], tuple[Replication, ...]] = field(default_factory=dict)
    backfills: tuple[Backfill, ...] = ()
    #: The settings of repositories. Those of others are unknown.
    settings: dict[str, RepositorySettings] = field(default_factory=dict)
    #: Called with operation and repository before each call; returns the error to raise, or None.
    fault: Fault = lambda *_: None
    calls: Counter[str] = field(default_factory=Counter)
    log: list[tuple[str, str, str]] = field(default_factory=list)
    page_size: int = 3
    #: Called with the operation, all items and the right page; returns the page to answer with.
    change_page: Callable[[str, Sequence[Any], Page[Any]], Page[Any]] = lambda _, __, page: page

    # -- the world --

    def create(self, repository: str) -> None:
        self.repositories.setdefault(repository, {})

    def push(self, repository: str, *tags: str, at: float | None = None, digest: str | None = None) -> str:
        """Push an image. Tags move to it from other images."""
        images = self.repositories.setdefault(repository, {})
        digest = digest or digest_of(f"{repository}{tags}{at}{len(images)}")
        for other in images.values():
            images[other.digest] = replace(other, tags=tuple(t for t in other.tags if t not in tags))
        kept = images[digest].tags if digest in images else ()
        images[digest] = Image(digest, tuple(sorted({*kept, *tags})), at)
        return digest

    def report(self, repository: str, digest: str, *replications: Replication) -> None:
        self.statuses[repository, digest] = replications

    # -- the client --

    def account(self) -> str:
        self._called("GetCallerIdentity")
        return self.source.registry_id

    def registry(self) -> Registry:
        self._called("DescribeRegistry")
        return Registry(self.source.registry_id, self.rules)

    def repositories_page(self, token: str | None) -> Page[Repository]:
        self._called("DescribeRepositories")
        known = self.settings
        found = [
            Repository(name, known.get(name, RepositorySettings())) for name in sorted(self.repositories)
        ]
        return self._page("DescribeRepositories", found, token)

    def images(
        self, repository: str, token: str | None, *, tags: TagStatus = "TAGGED", archived: bool = False
    ) -> Page[Image]:
        self._called("DescribeImages", repository)
        images = sorted(self._images(repository).values(), key=lambda image: image.digest)
        wanted = [
            image
            for image in images
            if tags == "ANY" or bool(image.tags) == (tags == "TAGGED")
            if archived or not image.archived
        ]
        return self._page("DescribeImages", wanted, token)

    def find(self, repository: str, names: Sequence[Name], *, archived: bool = False) -> tuple[Image, ...]:
        self._called("DescribeImages", repository)
        if not 1 <= len(names) <= LOOKUP_SIZE:
            raise refusal(Reason.INVALID)
        images = [image for image in self._images(repository).values() if archived or not image.archived]
        found = {n: [i for i in images if n.digest == i.digest or n.tag in i.tags] for n in names}
        if not all(found.values()):
            raise refusal(Reason.IMAGE_NOT_FOUND)
        return tuple({image.digest: image for some in found.values() for image in some}.values())

    def status(self, repository: str, digest: str) -> tuple[Replication, ...]:
        self._called("DescribeImageReplicationStatus", repository, digest)
        if digest not in self._images(repository):
            raise refusal(Reason.IMAGE_NOT_FOUND)
        return self.statuses.get((repository, digest), ())

    def backfills_page(self, token: str | None) -> Page[Backfill]:
        self._called("ListReplicationBackfills")
        return self._page("ListReplicationBackfills", self.backfills, token)

    def _images(self, repository: str) -> dict[str, Image]:
        if repository not in self.repositories:
            raise refusal(Reason.REPOSITORY_NOT_FOUND)
        return self.repositories[repository]

    def _page(self, operation: str, items: Sequence[Any], token: str | None) -> Page[Any]:
        start = int(token) if token else 0
        end = start + self.page_size
        page = Page(tuple(items[start:end]), str(end) if end < len(items) else None)
        return self.change_page(operation, items, page)

    def _called(self, operation: str, repository: str = "", digest: str = "") -> None:
        self.calls[operation] += 1
        self.log.append((operation, repository, digest))
        if error := self.fault(operation, repository):
            raise error


Permission = Callable[[RegistrySettings, str, str], ECRError | None]


class FakeClient:
    """A client of a FakeECR with the credentials of one entry, whose account has the registry `own`."""

    def __init__(self, ecr: FakeECR, own: FakeECR, permit: Callable[[str, str], ECRError | None]) -> None:
        self._ecr = ecr
        self._own = own
        self._permit = permit

    def account(self) -> str:
        return self._own.account()

    def registry(self) -> Registry:
        self._check("DescribeRegistry")
        return self._own.registry()

    def repositories(self, token: str | None) -> Page[Repository]:
        self._check("DescribeRepositories")
        return self._ecr.repositories_page(token)

    def images(
        self, repository: str, token: str | None, *, tags: TagStatus = "TAGGED", archived: bool = False
    ) -> Page[Image]:
        self._check("DescribeImages", repository)
        return self._ecr.images(repository, token, tags=tags, archived=archived)

    def find(self, repository: str, names: Sequence[Name], *, archived: bool = False) -> tuple[Image, ...]:
        self._check("DescribeImages", repository)
        return self._ecr.find(repository, names, archived=archived)

    def status(self, repository: str, digest: str) -> tuple[Replication, ...]:
        self._check("DescribeImageReplicationStatus", repository)
        return self._ecr.status(repository, digest)

    def backfills(self, token: str | None) -> Page[Backfill]:
        self._check("ListReplicationBackfills")
        return self._ecr.backfills_page(token)

    def _check(self, operation: str, repository: str = "") -> None:
        if error := self._permit(operation, repository):
            raise error


@dataclass
class FakeAWS:
    """Connects to registries by account and Region. Without a role the account is that of HOME.

    A registry that is not given has no repository.
    """

    registries: dict[Source, FakeECR]
    region: str | None = REGION
    #: Called with entry, operation and repository before each call; returns the error to raise, or None.
    permission: Permission = lambda *_: None
    #: By URL.
    queues: dict[str, FakeQueue] = field(default_factory=dict)

    def queue(self, settings: RegistrySettings, url: str) -> QueueClient:
        del settings
        return self.queues.setdefault(url, FakeQueue())

    def ecr(self, settings: RegistrySettings, *, connections: int) -> EcrClient:
        del connections
        region = settings.region or REGION
        wanted = Source(settings.account or ACCOUNT, region)
        caller = settings.role_arn.split(":")[4] if settings.role_arn else ACCOUNT
        own, ecr = (
            self.registries.get(source) or FakeECR(source, rules=())
            for source in (Source(caller, region), wanted)
        )
        return FakeClient(ecr, own, partial(self.permission, settings))


@dataclass
class FakeQueue:
    """An SQS queue in memory, whose empty answers are not held back."""

    messages: dict[str, str] = field(default_factory=dict)
    #: The handles of messages that were received and are not visible until `show_again`.
    hidden: set[str] = field(default_factory=set)
    #: Called with the operation before each call; returns the error to raise, or None.
    fault: Callable[[str], ECRError | None] = lambda _: None
    calls: Counter[str] = field(default_factory=Counter)

    def send(self, *bodies: str | dict[str, Any]) -> None:
        """Put messages into the queue: text, or what becomes JSON."""
        for body in bodies:
            text = body if isinstance(body, str) else json.dumps(body)
            self.messages[f"handle-{len(self.messages)}-{self.calls.total()}"] = text

    def show_again(self) -> None:
        """Let the visibility timeout of all messages run out."""
        self.hidden.clear()

    def receive(self) -> Sequence[Message]:
        self._called("ReceiveMessage")
        visible = [handle for handle in self.messages if handle not in self.hidden][:BATCH]
        self.hidden.update(visible)
        return [Message(self.messages[handle], handle) for handle in visible]

    def delete(self, messages: Sequence[Message]) -> None:
        self._called("DeleteMessageBatch")
        for message in messages:
            self.messages.pop(message.handle, None)

    def _called(self, operation: str) -> None:
        self.calls[operation] += 1
        if error := self.fault(operation):
            raise error


@dataclass
class FakeObserver:
    """Counts events."""

    queues: set[Source] = field(default_factory=set)
    #: Source, kind and outcome.
    events: Counter[tuple[Source, str, str]] = field(default_factory=Counter)
    delays: list[float] = field(default_factory=list)

    def queue_added(self, source: Source) -> None:
        self.queues.add(source)

    def event_handled(self, source: Source, kind: str, outcome: str, *, delay: float | None) -> None:
        self.events[source, str(kind), str(outcome)] += 1
        if delay is not None:
            self.delays.append(delay)

    def outcomes(self) -> dict[tuple[str, str], int]:
        """How many events there were of each kind and outcome."""
        found: Counter[tuple[str, str]] = Counter()
        for (_, kind, outcome), number in self.events.items():
            found[kind, outcome] += number
        return dict(found)


class Figures:
    """A poller with nothing to tell of itself."""

    def overdue(self) -> float:
        return 0.0

    def rates(self) -> Mapping[Source, float]:
        return {}

    def queues(self) -> Mapping[Source, bool]:
        return {}


class Inline:
    """Workers that make each call at once."""

    def __init__(self, name: str = "") -> None:
        del name

    def submit(self, call: Callable[[], None]) -> None:
        call()

    def close(self) -> None:
        pass


class Together(Inline):
    """Workers whose calls all run when `end` is called."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def submit(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def end(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


class Exchangeable(Inline):
    """Workers that a test can replace. At first they make each call at once."""

    def __init__(self) -> None:
        self.pool: WorkerPool = Inline()

    def submit(self, call: Callable[[], None]) -> None:
        self.pool.submit(call)


class Stuck(Inline):
    """Workers that hang in each call while `hangs` is set."""

    hangs = False

    def __init__(self) -> None:
        self.stuck: list[Callable[[], None]] = []

    def submit(self, call: Callable[[], None]) -> None:
        if self.hangs:
            self.stuck.append(call)
        else:
            call()

    def free(self) -> None:
        """Let all calls end that hang."""
        self.hangs = False
        while self.stuck:
            self.stuck.pop(0)()


@dataclass
class FakeJournal:
    """Records failures and events."""

    failing: dict[tuple[str, FailureScope], Reason] = field(default_factory=dict)
    events: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def failed(self, registry: str, scope: FailureScope, error: ECRError) -> None:
        self.failing[registry, scope] = error.reason

    def recovered(self, registry: str, scope: FailureScope) -> None:
        self.failing.pop((registry, scope), None)

    def noted(self, registry: str, event: str, **fields: object) -> None:
        self.events.append((event, {"registry": registry, **fields}))

    warned = noted

    def forget(self, registry: str) -> None:
        self.failing = {key: reason for key, reason in self.failing.items() if key[0] != registry}

    def tick(self) -> None:
        pass


class Rig:
    """A poller on a fake AWS in virtual time."""

    def __init__(
        self,
        settings: Settings,
        *ecrs: FakeECR,
        seed: int = 0,
        memory: StateCache | None = None,
        shard: Shard = WHOLE,
        clock: FakeClock | None = None,
        workers: Callable[[str], WorkerPool] | None = None,
        connector: FakeAWS | None = None,
    ) -> None:
        self.clock = clock or FakeClock()
        self.memory = memory or StateCache()
        self.ecr = ecrs[0] if ecrs else FakeECR()
        self.store = Store()
        self.journal = FakeJournal()
        self.observer = FakeObserver()
        self.connector = connector or FakeAWS({ecr.source: ecr for ecr in ecrs or (self.ecr,)})
        self.workers = Exchangeable()
        self.completions: list[tuple[Source, Destination, float]] = []
        self.destinations: set[tuple[Source, Destination]] = set()
        self.poller = Poller(
            settings=settings,
            connector=self.connector,
            store=self.store,
            clock=self.clock,
            random=Random(seed),
            journal=self.journal,
            on_complete=lambda *seen: self.completions.append(seen),
            on_destination=lambda *seen: self.destinations.add(seen),
            events=self.observer,
            workers=workers or (lambda _: self.workers),
            memory=self.memory,
            shard=shard,
        )

    def run(self, seconds: float) -> None:
        """Run the poller for these seconds of virtual time."""
        end = self.clock.now + seconds
        while True:
            wait = self.poller.step()
            if self.clock.now + wait > end:
                self.clock.now = end
                return
            self.clock.now += max(wait, 1e-6)

    def snapshot(self) -> Snapshot:
        return self.store.snapshot(self.clock.now)

    def states(self) -> dict[tuple[str, str, str], dict[Destination, str]]:
        """The exported states: (repository, tag, digest) -> destination -> status."""
        return {
            (repository, *name): {r.destination: str(r.status) for r in image.replications or ()}
            for registry in self.snapshot().registries
            for repository, images in registry.repositories
            for image in images
            for name in image.names
        }

    def target(self, label: str) -> Any:
        return next(t for r in self.snapshot().registries for t in r.targets if t.label == label)


def settings(*targets: TargetSettings, **knobs: object) -> Settings:
    base: dict[str, object] = {
        "registries": (RegistrySettings(),),
        "requests_per_second": 100.0,
        "replica_interval": 0.0,
    }
    return Settings(targets=targets, **{**base, **knobs})  # type: ignore[arg-type]


def world(*ecrs: FakeECR, target: TargetSettings = ALL, **knobs: object) -> Rig:
    return Rig(settings(target, **knobs), *ecrs)


def complete(destination: Destination = IRELAND) -> Replication:
    return Replication(destination, Status.COMPLETE)


def pushed(ecr: FakeECR, repository: str = "team/app", tag: str = "v1", age: float = 10.0) -> str:
    """Push an image `age` seconds before a rig starts."""
    return ecr.push(repository, tag, at=1.8e9 + 1000.0 - age)


def denied(operation: str) -> Fault:
    """A fault that denies one operation."""
    return lambda called, _: refusal(Reason.ACCESS_DENIED) if called == operation else None


def throttled(operation: str) -> Fault:
    """A fault that throttles one operation."""
    return lambda called, _: refusal(Reason.THROTTLED) if called == operation else None
