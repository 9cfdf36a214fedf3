"""Facts -> the report of `/` and `/api/v1/status`. See `report` for its fields.

A report is made from the facts of the metrics. It calls nothing and changes nothing. It holds no lock but
that of the store, while references are copied. What is known of a repository is kept. When images change,
the next report looks at those that changed and at those with problems, not at the other images.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from heapq import nlargest, nsmallest
from itertools import chain, compress, groupby, islice
from operator import attrgetter, is_not
from typing import NamedTuple, Protocol, TypeAlias

from exporter import __version__
from exporter.http.advice import NOT_WELL, UNFINISHED, Verdict, advise, verdict_of
from exporter.http.filters import Filters
from exporter.http.report import (
    Copy,
    DestinationReport,
    Failure,
    ImageReport,
    RegistryReport,
    Report,
    Summary,
    TargetReport,
    UnreplicatedRepository,
)
from exporter.replication.facts import ImageFacts
from exporter.replication.model import Destination, Replica, ReplicaState, Replication, Source, Status
from exporter.replication.store import RegistrySnapshot, Snapshot, Store
from exporter.replication.targets import WHOLE, Shard

#: Seconds after which an unfinished replication is not well. AWS says that most images take less (ECR
#: documentation).
LATE_AFTER = 1800.0
#: Failures of a registry, and repositories that are replicated nowhere.
MOST_NAMES = 100


class Clock(Protocol):
    def monotonic(self) -> float: ...

    def time(self) -> float: ...


#: The monotonic time at which ECR is asked for an image again; None if no call is due. For any thread.
Due: TypeAlias = Callable[[Source, str, str], float | None]


class _Row(NamedTuple):
    """What images with the same facts say of one destination.

    `copies` has a state for each name; None if that destination was not looked at. It is empty if none was.
    """

    replication: Replication | None
    copies: tuple[ReplicaState | None, ...]
    verdict: Verdict


@lru_cache(maxsize=4096)
def _rows(
    replications: tuple[Replication, ...] | None, replicas: tuple[tuple[Replica, ...], ...]
) -> tuple[_Row, ...]:
    """A row for each destination. Almost all images have the same few facts."""
    if not replications:
        return (_Row(None, (), Verdict.NOWHERE if replications == () else Verdict.NOT_KNOWN),)
    seen = [{replica.destination: replica.state for replica in of_name} for of_name in replicas]
    rows = []
    for replication in replications:
        copies = tuple(states.get(replication.destination) for states in seen)
        rows.append(_Row(replication, copies, verdict_of(replication.status, copies)))
    return tuple(rows)


class _Group:
    """The images of a repository that say the same of all destinations."""

    def __init__(self, image: ImageFacts) -> None:
        self.rows = _rows(image.replications, image.replicas)
        self.verdicts = frozenset(row.verdict for row in self.rows)
        self.count = 0
        #: The images, sorted by `_order`. Empty if they are well, as most images are: those are only counted.
        self.images: list[ImageFacts] = []

    @property
    def troubled(self) -> bool:
        """Whether its images may not be well."""
        return not self.verdicts.isdisjoint(NOT_WELL)

    def change(self, gone: Sequence[ImageFacts], new: Sequence[ImageFacts]) -> None:
        """Remove images, and add others."""
        self.count += len(new) - len(gone)
        if not self.troubled:
            return
        if len(gone) + len(new) > len(self.images) // 16:
            lost = set(map(id, gone))
            self.images = _sorted([*(image for image in self.images if id(image) not in lost), *new])
            return
        for image in gone:
            del self.images[bisect_left(self.images, _order(image), key=_order)]
        for image in new:
            insort(self.images, image, key=_order)

    def not_well(self, late: float) -> int:
        """How many images are not well. An unfinished one is if it began before the Unix time `late`."""
        if self.verdicts & (NOT_WELL - UNFINISHED):
            return self.count
        return bisect_left(self.images, late, key=_began) if self.verdicts & UNFINISHED else 0

    def matches(self, filters: Filters) -> bool:
        """Whether a row may match the status and the verdict that are searched for."""
        return any(
            filters.has_status(row.replication and row.replication.status)
            and (filters.has_verdict(row.verdict) or row.verdict in UNFINISHED)
            for row in self.rows
        )


def _began(image: ImageFacts) -> float:
    """When the replication began. An image of which that is not known is the oldest."""
    return image.replicated_from or 0.0


def _order(image: ImageFacts) -> tuple[float, str]:
    """The oldest first."""
    return _began(image), image.digest


def _sorted(images: Iterable[ImageFacts]) -> list[ImageFacts]:
    """The images by `_order`. Sorting twice is faster than with a tuple for each image."""
    return sorted(sorted(images, key=attrgetter("digest")), key=_began)


#: Equal facts of images are mostly the same objects, whose identity is a fast key.
_Key: TypeAlias = tuple[int, int]


def _alike(images: Iterable[ImageFacts]) -> dict[_Key, list[ImageFacts]]:
    """The images by what they say of all destinations."""
    alike: defaultdict[_Key, list[ImageFacts]] = defaultdict(list)
    for image in images:
        alike[id(image.replications), id(image.replicas)].append(image)
    return alike


def _difference(
    old: Sequence[ImageFacts], new: Sequence[ImageFacts]
) -> tuple[list[ImageFacts], list[ImageFacts]]:
    """The images that went, and those that came. Facts that changed are in both.

    Most images stand at the same position. Those that moved are compared by identity.
    """
    left = [*compress(old, map(is_not, old, new)), *old[len(new) :]]
    right = [*compress(new, map(is_not, old, new)), *new[len(old) :]]
    moved = set(map(id, left)).intersection(map(id, right))
    return [i for i in left if id(i) not in moved], [i for i in right if id(i) not in moved]


class _Repository:
    """What a report needs of a repository."""

    def __init__(self) -> None:
        self.images: tuple[ImageFacts, ...] = ()
        #: None is empty, so an image holds the objects of each key.
        self._groups: dict[_Key, _Group] = {}
        self.troubled: list[_Group] = []
        self.not_known = 0
        self.statuses: Counter[tuple[Destination, str]] = Counter()
        self.copies: Counter[tuple[Destination, str]] = Counter()

    def update(self, images: tuple[ImageFacts, ...]) -> None:
        """Take the present images, with work in proportion to how many changed."""
        if images is self.images:
            return
        went, came = map(_alike, _difference(self.images, images))
        self.images = images
        for key, changed in (came | went).items():
            group = self._groups.get(key) or _Group(changed[0])
            group.change(went.get(key, ()), came.get(key, ()))
            self._groups[key] = group
        self._groups = {key: group for key, group in self._groups.items() if group.count}
        self._count()

    def _count(self) -> None:
        groups = self._groups.values()
        self.troubled = [group for group in groups if group.troubled]
        self.not_known = sum(group.count for group in groups if Verdict.NOT_KNOWN in group.verdicts)
        self.statuses, self.copies = Counter(), Counter()
        for group in groups:
            for replication, copies, _ in group.rows:
                if replication:
                    self.statuses[replication.destination, replication.status] += group.count
                    if seen := [state for state in copies if state]:
                        problems = [state for state in seen if state is not ReplicaState.PRESENT]
                        self.copies[replication.destination, (problems or seen)[0]] += group.count

    def search(self, filters: Filters) -> Iterator[tuple[_Group, Sequence[ImageFacts]]]:
        """The images that may match, sorted by `_order`. Without filters, those that may not be well."""
        if not filters:
            yield from ((group, group.images) for group in self.troubled)
        elif wanted := {key: group for key, group in self._groups.items() if group.matches(filters)}:
            for key, images in _alike(filters.matching(self.images)).items():
                if key in wanted:
                    yield wanted[key], _sorted(images)


class _Found(NamedTuple):
    """Images with the same verdict at one destination, in the order of the report."""

    source: Source
    repository: str
    row: _Row
    images: Sequence[ImageFacts]


class Reporter:
    """Makes reports. For any thread."""

    def __init__(self, *, store: Store, clock: Clock, due: Due, shard: Shard = WHOLE) -> None:
        self._shard = shard
        self._store = store
        self._clock = clock
        self._due = due
        #: Guards what follows. One report is made at a time.
        self._lock = threading.Lock()
        self._known: dict[tuple[Source, str], _Repository] = {}

    def report(self, filters: Filters, *, limit: int) -> Report:
        """The report about the images that match, with at most `limit` of them.

        Raises QueryError for a status that no image has and that ECR is not known to report.
        """
        with self._lock:
            return self._report(filters, limit)

    def _report(self, filters: Filters, limit: int) -> Report:
        now = self._clock.time()
        snapshot = self._store.snapshot(self._clock.monotonic())
        repositories = self._repositories(snapshot)
        if filters.status:
            reported = {status for each in repositories.values() for _, status in each.statuses}
            filters.check("status", list(dict.fromkeys((*Status, *sorted(reported)))))
        problems = _search(repositories, Filters(), now - LATE_AFTER)
        found = _search(repositories, filters, now - LATE_AFTER) if filters else problems
        matched = sum(len(each.images) for each in found)
        return Report(
            version=__version__,
            timestamp_seconds=round(now, 3),
            shard=self._shard.ordinal,
            total_shards=self._shard.total,
            summary=_summary(snapshot, repositories.values(), problems, now - LATE_AFTER),
            destinations=_destinations(snapshot, repositories.values()),
            registries=[_registry(each) for each in snapshot.registries],
            targets=[target for each in snapshot.registries for target in _targets(each)],
            unreplicated=list(islice(_unreplicated(snapshot), MOST_NAMES)),
            images=self._images(found, limit),
            matched=matched,
            truncated=matched > limit,
        )

    def _repositories(self, snapshot: Snapshot) -> dict[tuple[Source, str], _Repository]:
        # If an exception ends this half-way, the next report looks at everything.
        known, self._known = self._known, {}
        repositories = {}
        for registry in snapshot.registries:
            for name, images in registry.repositories:
                repository = known.get((registry.source, name)) or _Repository()
                repository.update(images)
                repositories[registry.source, name] = repository
        self._known = repositories
        return repositories

    def _images(self, found: Sequence[_Found], limit: int) -> list[ImageReport]:
        """The first rows of what was found, which is in the order of severity."""
        looks = self._store.looks()
        return [self._image(each, image, looks) for each, image in _first(found, limit)]

    def _image(
        self,
        found: _Found,
        image: ImageFacts,
        looks: Mapping[tuple[Destination, str], tuple[float | None, float]],
    ) -> ImageReport:
        source, repository, (replication, copies, verdict), *_ = found
        destination, status, code = replication or Replication(Destination("", ""), "")
        facts = {
            "source_registry_id": source.registry_id,
            "source_region": source.region,
            "repository": repository,
            "digest": image.digest,
            "region": destination.region,
            "registry_id": destination.registry_id,
            "status": status,
            "failure_code": code,
        }
        tags = [name.tag for name in image.names]
        states = dict(zip(tags, copies or [None] * len(tags), strict=True))
        cause, remedy, runbook, commands = advise(verdict, facts, states)
        since = (each.at for each in image.since if each[:2] == (destination, status) and each.shown)
        looked, interval = looks.get((destination, repository), (None, 0.0))
        ahead = self._clock.time() - self._clock.monotonic()
        due = self._due(source, repository, image.digest)
        return ImageReport(
            *source,
            repository,
            tags=[tag for tag in tags if tag],
            digest=image.digest,
            region=destination.region or None,
            registry_id=destination.registry_id or None,
            status=status or None,
            failure_code=code or None,
            copies=[Copy(tag, state) for tag, state in states.items()] if any(copies) else [],
            verdict=verdict,
            cause=cause,
            remedy=remedy,
            runbook=runbook or None,
            commands=list(commands),
            since_timestamp_seconds=next(since, None),
            pushed_timestamp_seconds=image.pushed_at,
            asked_timestamp_seconds=round(image.answered_at + ahead, 3) if image.answered_at else None,
            next_ask_timestamp_seconds=None if due is None else round(due + ahead, 3),
            looked_timestamp_seconds=looked,
            next_look_timestamp_seconds=looked + interval if looked else None,
        )


_SEVERITY = {verdict: number for number, verdict in enumerate(Verdict)}
#: Of these the oldest is the worst. Of others the newest is shown first, because it is news.
_OLDEST_FIRST = frozenset({Verdict.STUCK, Verdict.ON_THE_WAY, Verdict.NOT_KNOWN})


def _search(
    repositories: Mapping[tuple[Source, str], _Repository], filters: Filters, late: float
) -> list[_Found]:
    """The images that match, with the worst verdict first.

    Without filters those match that are not well or on the way. `late` is as for `_Group.not_well`.
    """
    everything = bool(filters)
    found = [
        _Found(source, name, row, images)
        for (source, name), repository in repositories.items()
        if filters.has_repository(name)
        for group, candidates in repository.search(filters)
        for row, images in _matching(group, candidates, filters, late)
        if everything or row.verdict in _SHOWN
    ]
    return sorted(found, key=lambda each: _SEVERITY[each.row.verdict])


#: What is shown where no image is searched for.
_SHOWN = NOT_WELL | {Verdict.ON_THE_WAY}


def _matching(
    group: _Group, images: Sequence[ImageFacts], filters: Filters, late: float
) -> Iterator[tuple[_Row, Sequence[ImageFacts]]]:
    """The rows of a group that match, with their images. Late images are parted from those on the way."""
    for row in group.rows:
        if filters.has_status(row.replication and row.replication.status):
            unfinished = row.verdict in UNFINISHED
            end = bisect_left(images, late, key=_began) if unfinished else len(images)
            if end and filters.has_verdict(row.verdict):
                yield row, images[:end]
            if end < len(images) and filters.has_verdict(Verdict.ON_THE_WAY):
                yield row._replace(verdict=Verdict.ON_THE_WAY), images[end:]


def _first(found: Iterable[_Found], number: int) -> Iterator[tuple[_Found, ImageFacts]]:
    """The first images, by verdict and age."""
    for verdict, alike in groupby(found, key=lambda each: each.row.verdict):
        oldest = verdict in _OLDEST_FIRST
        candidates = (
            (each, image)
            for each in alike
            for image in (each.images[:number] if oldest else each.images[-number:])
        )
        select = nsmallest if oldest else nlargest
        first = select(number, candidates, key=lambda pair: _order(pair[1]))
        yield from first
        number -= len(first)
        if not number:
            return


def _summary(
    snapshot: Snapshot, repositories: Iterable[_Repository], problems: Iterable[_Found], late: float
) -> Summary:
    repositories = list(repositories)
    troubled = [(group, group.not_well(late)) for each in repositories for group in each.troubled]
    verdicts: Counter[Verdict] = Counter()
    for found in problems:
        verdicts[found.row.verdict] += len(found.images)
    return Summary(
        images=sum(len(each.images) for each in repositories),
        not_well=sum(not_well for _, not_well in troubled),
        on_the_way=sum(group.count - not_well for group, not_well in troubled),
        not_known=sum(each.not_known for each in repositories),
        verdicts=dict(verdicts),
        skipped=snapshot.skipped,
    )


def _destinations(snapshot: Snapshot, repositories: Iterable[_Repository]) -> list[DestinationReport]:
    statuses: Counter[tuple[Destination, str]] = Counter()
    copies: Counter[tuple[Destination, str]] = Counter()
    for repository in repositories:
        statuses.update(repository.statuses)
        copies.update(repository.copies)
    health = {each.destination: each for each in snapshot.destinations}
    named = chain((destination for destination, _ in statuses), health, snapshot.unread)
    reports = []
    for destination in sorted(set(named)):
        its = health.get(destination)
        remedy = None
        if destination in snapshot.unread:
            remedy = f"Give an entry of destinations with registry_id {destination.registry_id}."
        elif its and its.reasons:
            remedy = "Follow the runbook ECRDestinationNotRead."
        reports.append(
            DestinationReport(
                *destination,
                statuses={status: n for (to, status), n in sorted(statuses.items()) if to == destination},
                copies={state: n for (to, state), n in sorted(copies.items()) if to == destination},
                success=its.success if its else None,
                reasons=sorted(its.reasons) if its else [],
                last_success_timestamp_seconds=its.complete_time if its else None,
                remedy=remedy,
            )
        )
    return reports


def _registry(registry: RegistrySnapshot) -> RegistryReport:
    failures = [Failure(*scope, reason) for scope, reason in registry.failures[:MOST_NAMES]]
    return RegistryReport(*registry.source, registry.complete_time, failures)


def _targets(registry: RegistrySnapshot) -> Iterator[TargetReport]:
    for each in registry.targets:
        yield TargetReport(each.label, *registry.source, each.success, sorted(each.reasons), each.images)


def _unreplicated(snapshot: Snapshot) -> Iterator[UnreplicatedRepository]:
    for registry in snapshot.registries:
        for name, number in registry.destinations.items():
            if number == 0:
                yield UnreplicatedRepository(*registry.source, name)
