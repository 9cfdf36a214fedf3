"""Facts -> the report of `/` and `/api/v1/status`. See `report` for its fields.

A report is made from the facts of the metrics. It calls nothing and changes nothing. It holds no lock but
that of the store, while references are copied. What is known of a repository is kept until one of its images
changes, so a report about 100,000 images looks at few of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from heapq import nsmallest
from itertools import chain, groupby, islice
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

    def __init__(self, images: list[ImageFacts]) -> None:
        first = images[0]
        self.rows = _rows(first.replications, first.replicas)
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    @cached_property
    def images(self) -> list[ImageFacts]:
        """In the order in which their replication began. An image of which that is not known is the first."""
        return sorted(self._images, key=_began)

    @cached_property
    def verdicts(self) -> frozenset[Verdict]:
        return frozenset(row.verdict for row in self.rows)

    def not_well(self, late: float) -> int:
        """How many images are not well. An unfinished one is if it began before the Unix time `late`."""
        if self.verdicts & (NOT_WELL - UNFINISHED):
            return len(self)
        return bisect_left(self.images, late, key=_began) if self.verdicts & UNFINISHED else 0


def _began(image: ImageFacts) -> float:
    return image.replicated_from or 0.0


class _Repository:
    """What a report needs of a repository. It stays right while the images are the same objects."""

    def __init__(self, images: tuple[ImageFacts, ...]) -> None:
        self.images = images
        alike: defaultdict[tuple[int, int], list[ImageFacts]] = defaultdict(list)
        replications: object = alike
        replicas: object = alike
        for image in images:
            # Equal facts are mostly the same object, and those of neighbours are mostly equal.
            if image.replications is not replications or image.replicas is not replicas:
                replications, replicas = image.replications, image.replicas
                same = alike[id(replications), id(replicas)]
            same.append(image)
        self.groups = tuple(map(_Group, alike.values()))
        #: Those that may not be well.
        self.troubled = tuple(group for group in self.groups if group.verdicts & NOT_WELL)
        self.not_known = sum(len(group) for group in self.groups if Verdict.NOT_KNOWN in group.verdicts)
        self.statuses: Counter[tuple[Destination, str]] = Counter()
        self.copies: Counter[tuple[Destination, str]] = Counter()
        for group in self.groups:
            for replication, copies, _ in group.rows:
                if replication:
                    self.statuses[replication.destination, replication.status] += len(group)
                    if seen := [state for state in copies if state]:
                        problems = [state for state in seen if state is not ReplicaState.PRESENT]
                        self.copies[replication.destination, (problems or seen)[0]] += len(group)


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
        #: Replaced as a whole. Two threads that make the same parts do no harm.
        self._known: dict[tuple[Source, str], _Repository] = {}

    def report(self, filters: Filters, *, limit: int) -> Report:
        """The report about the images that match, with at most `limit` of them.

        Raises QueryError for a status that no image has and that ECR is not known to report.
        """
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
        known, made = self._known, dict[tuple[Source, str], _Repository]()
        for registry in snapshot.registries:
            for name, images in registry.repositories:
                key = (registry.source, name)
                kept = known.get(key)
                made[key] = kept if kept and kept.images is images else _Repository(images)
        self._known = made
        return made

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
        for group in (repository.groups if everything else repository.troubled)
        for row, images in _matching(group, filters, late)
        if everything or row.verdict in _SHOWN
    ]
    return sorted(found, key=lambda each: _SEVERITY[each.row.verdict])


#: What is shown where no image is searched for.
_SHOWN = NOT_WELL | {Verdict.ON_THE_WAY}


def _matching(group: _Group, filters: Filters, late: float) -> Iterator[tuple[_Row, Sequence[ImageFacts]]]:
    """The images of a group that match, for each destination. Late ones are parted from those on the way."""
    rows = [row for row in group.rows if filters.has_status(row.replication and row.replication.status)]
    images = filters.matching(group.images) if rows else ()
    for row in rows:
        end = bisect_left(images, late, key=_began) if row.verdict in UNFINISHED else len(images)
        if end and filters.has_verdict(row.verdict):
            yield row, images[:end]
        if end < len(images) and filters.has_verdict(Verdict.ON_THE_WAY):
            yield row._replace(verdict=Verdict.ON_THE_WAY), images[end:]


def _first(found: Iterable[_Found], number: int) -> Iterator[tuple[_Found, ImageFacts]]:
    """The first images, by verdict and age."""
    for verdict, alike in groupby(found, key=lambda each: each.row.verdict):
        sign = 1 if verdict in _OLDEST_FIRST else -1
        some = (
            (each, image)
            for each in alike
            for image in (each.images[:number] if sign > 0 else each.images[-number:])
        )
        first = nsmallest(number, some, key=lambda pair: sign * _began(pair[1]))
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
        on_the_way=sum(len(group) - not_well for group, not_well in troubled),
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
