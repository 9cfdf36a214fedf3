"""The real poller and simulated registries in virtual time. Calls take time, and AWS can fail.

Use `FakeECR` to test what one answer means. Use `Registry` of this module to test many answers over days.
Its pages are built once, its statuses depend on the clock, and it counts the calls. `make simulate` runs a
week with 100,000 images; the tests run smaller simulations.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import ceil, log
from random import Random

from exporter.aws.ecr import EcrClient
from exporter.aws.sqs import QueueClient
from exporter.config.settings import RegistrySettings, Settings
from exporter.polling.pacing import PENDING_BACKOFF
from exporter.polling.poller import Poller
from exporter.replication.model import (
    PAGE_SIZE,
    Backfill,
    Destination,
    Image,
    Name,
    Page,
    Reason,
    Replication,
    Repository,
    RepositorySettings,
    Rule,
    Status,
)
from exporter.replication.model import Registry as Described
from exporter.replication.store import Store
from support.fakes import ACCOUNT, IRELAND, REGION, FakeClock, FakeJournal, FakeObserver, FakeQueue, refusal

#: Seconds after which the client gives up on an answer that never arrives.
TIME_OUT = 10.0
YEAR = 365 * 86400.0

STATUS = "DescribeImageReplicationStatus"
_FAILURE_CODES = {Status.FAILED: "DESTINATION_REGISTRY_ACCESS_DENIED"}


@dataclass(slots=True, eq=False)
class Push:
    """A push, and when the poller listed it. All times are virtual monotonic seconds."""

    repository: str
    digest: str
    at: float
    ends: float
    fails: bool
    #: The end of the first complete listing that contains it, and the time of its first status call.
    listed: float | None = None
    asked: float | None = None


class _Shelf:
    """The images of a repository, in pages. Their order is random, because ECR guarantees no order."""

    def __init__(self, images: Sequence[Image], random: Random, page_size: int) -> None:
        self._page_size = page_size
        places = list(range(len(images)))
        random.shuffle(places)
        mixed = [image for _, image in sorted(zip(places, images, strict=True), key=lambda pair: pair[0])]
        chunks = [mixed[i : i + page_size] for i in range(0, len(mixed), page_size)] or [[]]
        self.pages: list[Page[Image]] = []
        for number, chunk in enumerate(chunks, start=1):
            self.pages.append(Page(tuple(chunk), str(number) if number < len(chunks) else None))
        #: The place of each image, the oldest image first.
        self._places = deque(places)
        self.by_name = {name: image for image in images for name in (image.digest, *image.tags)}
        #: Pushes that no complete listing contains yet, by page; those that the current listing has read.
        self.unlisted: dict[int, list[Push]] = {}
        self.seen: list[Push] = []
        #: Pushes whose copies have not arrived, by page.
        self.moving: dict[int, list[Push]] = {}

    def replace_oldest(self, image: Image, push: Push) -> str:
        """Replace the oldest image, as a lifecycle policy does. Returns the digest of the replaced image."""
        place = self._places.popleft()
        self._places.append(place)
        number, slot = divmod(place, self._page_size)
        page = self.pages[number]
        self.pages[number] = Page((*page.items[:slot], image, *page.items[slot + 1 :]), page.token)
        self.unlisted.setdefault(number, []).append(push)
        self.moving.setdefault(number, []).append(push)
        replaced = page.items[slot]
        for name in (replaced.digest, *replaced.tags):
            del self.by_name[name]
        self.by_name.update((name, image) for name in (image.digest, *image.tags))
        return replaced.digest

    def arrived(self, number: int, now: float) -> Page[Image]:
        """The page of a listing at a destination: without the pushes whose copies are under way or failed."""
        self.moving[number] = [p for p in self.moving.get(number, ()) if p.fails or p.ends > now]
        away = {push.digest for push in self.moving[number]}
        page = self.pages[number]
        return Page(tuple(i for i in page.items if i.digest not in away), page.token) if away else page


class Registry:
    """A simulated registry. It has the methods of EcrClient and answers for the current virtual time."""

    def __init__(
        self,
        sizes: Iterable[int],
        *,
        region: str = REGION,
        destinations: Sequence[Destination] = (IRELAND,),
        page_size: int = PAGE_SIZE,
        oldest: float = YEAR,
        seed: int = 0,
    ) -> None:
        self.region = region
        self.random = Random(seed)
        self.clock = FakeClock()
        #: The behaviour of AWS: seconds until an answer, the share of answers that never arrive, the allowed
        #: calls a second (None: no limit), the operation that this limit applies to (None: all operations
        #: together), and whether the role may no longer be assumed.
        self.latency = 0.05
        self.lost_share = 0.0
        self.allowed: float | None = None
        self.throttled: str | None = None
        self.revoked = False
        #: Digests whose status calls fail, and the replication rules.
        self.unanswered: set[str] = set()
        self.rules: tuple[Rule, ...] = (Rule(tuple(destinations)),) if destinations else ()
        self._statuses = {
            status: tuple(Replication(to, status, _FAILURE_CODES.get(status, "")) for to in destinations)
            for status in (Status.IN_PROGRESS, Status.COMPLETE, Status.FAILED)
        }
        #: What the registry counted.
        self.calls: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()  # status calls by repository
        self.refused = 0
        self.per_second: Counter[int] = Counter()
        self.pushes: list[Push] = []
        self.answered: dict[str, float] = {}  # digest -> time of the last call that reported COMPLETE
        self.gaps = array("d")  # seconds between two such calls
        self._moving: dict[str, Push] = {}
        self._gone: set[str] = set()
        self._tokens = 0.0
        self._token_at = 0.0
        self._sent = 0.0
        self._lost = False
        self._serial = count()
        self._shelves: dict[str, _Shelf] = {}
        for number, size in enumerate(sizes):
            ages = sorted((self.random.uniform(0.01, 1) * oldest for _ in range(size)), reverse=True)
            images = [self._image(self.clock.time() - age) for age in ages]
            self._shelves[f"team/app-{number:03}"] = _Shelf(images, self.random, page_size)

    @property
    def names(self) -> list[str]:
        return list(self._shelves)

    @property
    def pages(self) -> list[int]:
        """The number of calls that a listing needs, for each repository."""
        return [len(shelf.pages) for shelf in self._shelves.values()]

    def push(self, repository: str, *, takes: float = 0.0, fails: bool = False) -> Push:
        """Push an image, which replaces the oldest one. Its replication takes `takes` seconds."""
        image = self._image(self.clock.time())
        push = Push(repository, image.digest, self.clock.now, self.clock.now + takes, fails)
        self.pushes.append(push)
        self._moving[push.digest] = push
        gone = self._shelves[repository].replace_oldest(image, push)
        self._gone.add(gone)
        self.answered.pop(gone, None)
        return push

    def _image(self, pushed_at: float) -> Image:
        number = next(self._serial)
        return Image(f"sha256:{number:064x}", (f"v{number}",), pushed_at)

    def forget_calls(self) -> None:
        """Count the calls, refusals and status calls from now on."""
        for counter in (self.calls, self.asked, self.per_second):
            counter.clear()
        self.refused = 0

    # -- calls -------------------------------------------------------------------------------

    def sends(self) -> tuple[float, bool]:
        """Count a sent call. Returns the seconds until its answer, and whether the answer is lost."""
        self.per_second[int(self.clock.now)] += 1
        if self.random.random() < self.lost_share:
            return TIME_OUT, True
        return self.latency * self.random.uniform(0.6, 1.4), False

    def delivers(self, call: Callable[[], None], *, sent: float, lost: bool) -> None:
        """Let a call read its answer, or fail if the answer is lost."""
        self._sent = sent
        self._lost = lost
        call()

    def _called(self, operation: str, repository: str = "") -> None:
        self.calls[operation] += 1
        if self._lost:
            raise refusal(Reason.UNAVAILABLE)
        if self.revoked:
            raise refusal(Reason.ACCESS_DENIED, "sts:AssumeRole", everything=True)
        limited = self.throttled is None or self.throttled == operation
        if limited and self.allowed is not None and not self._token(self.allowed):
            self.refused += 1
            raise refusal(Reason.THROTTLED)
        if operation == STATUS:
            self.asked[repository] += 1

    def _token(self, rate: float) -> bool:
        """Take a token, if there is one. The bucket gains `rate` tokens a second and holds as many."""
        now = self.clock.now
        self._tokens = min(max(1.0, rate), self._tokens + (now - self._token_at) * rate)
        self._token_at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    # -- the client ----------------------------------------------------------------------------

    def account(self) -> str:
        self._called("GetCallerIdentity")
        return ACCOUNT

    def registry(self) -> Described:
        self._called("DescribeRegistry")
        return Described(ACCOUNT, self.rules)

    def repositories(self, token: str | None) -> Page[Repository]:
        del token
        self._called("DescribeRepositories")
        return Page(tuple(Repository(name, RepositorySettings()) for name in self._shelves))

    def images(self, repository: str, token: str | None, **filters: object) -> Page[Image]:
        del filters  # every image is tagged and active
        self._called("DescribeImages", repository)
        shelf = self._shelves[repository]
        number = int(token or 0)
        if number == 0:
            shelf.seen.clear()
        shelf.seen += shelf.unlisted.get(number, ())
        page = shelf.pages[number]
        if page.token is None:
            for push in shelf.seen:
                push.listed = push.listed or self.clock.now
            for number, pushes in shelf.unlisted.items():
                shelf.unlisted[number] = [push for push in pushes if push.listed is None]
        return page

    def find(self, repository: str, names: Sequence[Name], **filters: object) -> tuple[Image, ...]:
        del filters
        self._called("DescribeImages", repository)
        found = [self._shelves[repository].by_name.get(name.digest or name.tag) for name in names]
        images = {image.digest: image for image in found if image and self._holds(image)}
        if not all(image and image.digest in images for image in found):
            raise refusal(Reason.IMAGE_NOT_FOUND)
        return tuple(images.values())

    def _holds(self, image: Image) -> bool:
        del image
        return True

    def status(self, repository: str, digest: str) -> tuple[Replication, ...]:
        if (push := self._moving.get(digest)) and push.asked is None:
            push.asked = self._sent
        self._called(STATUS, repository)
        if digest in self.unanswered:
            raise refusal(Reason.UNAVAILABLE)
        if digest in self._gone:
            raise refusal(Reason.IMAGE_NOT_FOUND)
        if push and self.clock.now < push.ends:
            return self._statuses[Status.IN_PROGRESS]
        if push and push.fails:
            return self._statuses[Status.FAILED]
        if (before := self.answered.get(digest)) is not None:
            self.gaps.append(self._sent - before)
        self.answered[digest] = self._sent
        return self._statuses[Status.COMPLETE]

    def backfills(self, token: str | None) -> Page[Backfill]:
        del token
        self._called("ListReplicationBackfills")
        return Page(())


class Copies(Registry):
    """A destination of a simulated registry: it holds the images whose copies have arrived."""

    def __init__(self, source: Registry, destination: Destination) -> None:
        super().__init__((), region=destination.region, destinations=(), seed=len(destination.region))
        self._moving = source._moving
        self._shelves = source._shelves

    def images(self, repository: str, token: str | None, **filters: object) -> Page[Image]:
        self._called("DescribeImages", repository)
        if filters.get("tags") == "UNTAGGED":
            return Page(())
        return self._shelves[repository].arrived(int(token or 0), self.clock.now)

    def _holds(self, image: Image) -> bool:
        push = self._moving.get(image.digest)
        return push is None or not (push.fails or push.ends > self.clock.now)


class _Workers:
    """Workers in virtual time. Each answer is an event of the simulation."""

    def __init__(self, simulation: Simulation, registry: Registry) -> None:
        self._simulation = simulation
        self._registry = registry

    def submit(self, call: Callable[[], None]) -> None:
        seconds, lost = self._registry.sends()
        now = self._simulation.clock.now
        self._simulation.at(now + seconds, partial(self._registry.delivers, call, sent=now, lost=lost))

    def close(self) -> None:
        pass


class _Connector:
    region: str | None = REGION

    def __init__(self, registries: dict[str, Registry]) -> None:
        self._registries = registries

    def ecr(self, settings: RegistrySettings, *, connections: int) -> EcrClient:
        del connections
        return self._registries[settings.region or REGION]

    def queue(self, settings: RegistrySettings, url: str) -> QueueClient:
        del settings, url
        return FakeQueue()


class Simulation:
    """The poller and its registries and destinations, one in each Region, with one virtual clock."""

    def __init__(self, settings: Settings, *registries: Registry, seed: int = 0) -> None:
        self.clock = registries[0].clock
        self.settings = settings
        self.store = Store()
        self.journal = FakeJournal()
        #: Age in seconds of the oldest due call, sampled once a minute.
        self.overdue = array("d")
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._serial = count()
        by_region = {registry.region: registry for registry in registries}
        for registry in registries:
            registry.clock = self.clock
        self.poller = Poller(
            settings=settings,
            connector=_Connector(by_region),
            store=self.store,
            clock=self.clock,
            random=Random(seed),
            journal=self.journal,
            on_complete=lambda *_: None,
            events=FakeObserver(),
            workers=lambda name: _Workers(self, by_region[name.rpartition("/")[2]]),
        )
        self._sample()

    def at(self, when: float, do: Callable[[], object]) -> None:
        """Call `do` at a monotonic time."""
        heappush(self._events, (when, next(self._serial), do))

    def run(self, seconds: float) -> None:
        """Let `seconds` of virtual time pass."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            wake = self.clock.now + max(self.poller.step(), 1e-6)
            self.clock.now = min(end, wake, self._events[0][0])
            while self._events[0][0] <= self.clock.now:
                heappop(self._events)[2]()

    def _sample(self) -> None:
        self.overdue.append(self.poller.overdue())
        self.at(self.clock.now + 60.0, self._sample)


def calls_per_second(
    settings: Settings,
    *,
    pages: Sequence[int],
    settled: int,
    failed: int = 0,
    pushes: float = 0.0,
    replication: float = 0.0,
    copies: Sequence[int] = (),
    replica_interval: float = 0.0,
) -> float:
    """The sizing formula of docs/scaling.md. `pushes` is a rate a second, `replication` is in seconds.

    `copies` are the pages of all repositories at each destination that is looked at every `replica_interval`
    seconds. Images that are seen there are not `settled`: they need no status call.
    The poller shortens the other intervals by 5 % on average, so that calls spread out over time.
    """
    listings = sum(pages) + ceil(len(pages) / PAGE_SIZE) + 1
    rate = listings / settings.discovery_interval
    rate += settled / settings.settled_interval
    rate += failed / settings.failed_interval
    constant = settings.pending_interval / PENDING_BACKOFF
    calls = min(replication, constant) / settings.pending_interval
    calls += log(max(1.0, replication / constant)) / PENDING_BACKOFF
    looks = sum(copies) / replica_interval if replica_interval else 0.0
    return (rate + pushes * calls) / 0.95 + looks + pushes * (1 + len(copies))


def percentiles(values: Iterable[float]) -> tuple[float, float, float]:
    """The median, the 99th percentile and the maximum; zeros if there are no values."""
    ordered = sorted(values) or [0.0]
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], ordered[-1]


def outage(
    registry: Registry, simulation: Simulation, *, begins: float, lasts: float, **state: object
) -> None:
    """Set attributes of the registry, such as `latency` or `allowed`, for `lasts` seconds."""
    before = {name: getattr(registry, name) for name in state}
    for when, values in ((begins, state), (begins + lasts, before)):
        for name, value in values.items():
            simulation.at(simulation.clock.now + when, partial(setattr, registry, name, value))
