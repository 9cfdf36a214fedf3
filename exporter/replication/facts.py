"""What is known of images, repositories and registries. The poller writes it; all others read.

Facts of an image are frozen and replaced whole. Facts of a repository and of a registry are changed in
place, by the poller's loop thread alone and under the store's lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

from exporter.replication.model import (
    Backfill,
    Destination,
    FailureScope,
    ImageState,
    Name,
    Reason,
    Registry,
    Replica,
    ReplicaState,
    Replication,
    Since,
    Source,
    Status,
)

NOWHERE: frozenset[Destination] = frozenset()


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of a watched image. `replications` is None until ECR answers for the first time.

    The times of the answer do not count when two facts are compared.
    """

    digest: str
    names: tuple[Name, ...]
    pushed_at: float | None
    replicated_from: float | None
    replications: tuple[Replication, ...] | None = None
    state: ImageState = ImageState.NEW
    #: Whether the rules that it was evaluated with may differ from those that apply to it.
    unverified: bool = False
    #: Since when it is in each of its states other than COMPLETE. Empty for settled images, which are most.
    since: tuple[Since, ...] = ()
    #: Monotonic times: of the answer, and until when it is believed.
    answered_at: float = field(default=0.0, compare=False)
    good_until: float = field(default=0.0, compare=False)
    #: Where the targets say that it must arrive, whatever the rules say.
    required: frozenset[Destination] = NOWHERE
    #: For each of its names, in their order, what the destinations hold that were looked at. Empty before.
    replicas: tuple[tuple[Replica, ...], ...] = ()

    def answered(
        self,
        replications: tuple[Replication, ...],
        state: ImageState,
        *,
        unverified: bool,
        since: tuple[Since, ...],
        at: float,
        good_until: float,
    ) -> ImageFacts:
        """The facts with a new answer. All times are monotonic. Not by replace(), which is slow."""
        return ImageFacts(
            self.digest,
            self.names,
            self.pushed_at,
            self.replicated_from,
            replications,
            state,
            unverified,
            since,
            at,
            good_until,
            self.required,
            self.replicas,
        )

    def seen(self, replicas: tuple[tuple[Replica, ...], ...]) -> ImageFacts:
        """The facts after a look. Not by replace(), which is slow."""
        return ImageFacts(
            self.digest,
            self.names,
            self.pushed_at,
            self.replicated_from,
            self.replications,
            self.state,
            self.unverified,
            self.since,
            self.answered_at,
            self.good_until,
            self.required,
            replicas,
        )

    @property
    def confirmed(self) -> bool:
        """Whether it was seen present under all its names wherever it should be, so ECR need not be asked."""
        return (
            self.state is ImageState.SETTLED
            and not self.unverified
            and len(self.replicas) == len(self.names)
            and all(_present_at_all(replicas, self.replications or ()) for replicas in self.replicas)
        )

    def complete_at(self) -> list[Destination]:
        """The destinations at which it is COMPLETE."""
        return [r.destination for r in self.replications or () if r.status == Status.COMPLETE]

    def held(self) -> frozenset[Destination]:
        """The destinations that were seen to hold it."""
        return _held(self.replicas)

    def unanswered(self) -> ImageFacts:
        """What is left when the answer is no longer believed."""
        return replace(self, replications=None, state=ImageState.UNKNOWN, since=())


# Almost all images have the same few states.
@lru_cache(maxsize=4096)
def _present_at_all(replicas: tuple[Replica, ...], replications: tuple[Replication, ...]) -> bool:
    present = {replica.destination for replica in replicas if replica.state is ReplicaState.PRESENT}
    wanted = {replication.destination for replication in replications}
    return bool(wanted) and wanted <= present


@lru_cache(maxsize=4096)
def _held(replicas: tuple[tuple[Replica, ...], ...]) -> frozenset[Destination]:
    return frozenset(replica.destination for of_name in replicas for replica in of_name if replica.held)


def unfinished(images: Iterable[ImageFacts]) -> tuple[ImageFacts, ...]:
    """Those that are known not to be COMPLETE at some destination, or not to be present there."""
    # Most images hold the same objects, and comparing those would take most of the time.
    seen: dict[tuple[int, int], bool] = {}
    found = []
    for image in images:
        key = (id(image.replications), id(image.replicas))
        if key not in seen:
            seen[key] = any(r.status != Status.COMPLETE for r in image.replications or ()) or any(
                replica.state is not ReplicaState.PRESENT for of_name in image.replicas for replica in of_name
            )
        if seen[key]:
            found.append(image)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class TargetImages:
    """What a target selects in a repository."""

    label: str
    images: int
    complete: bool  # whether all that it names exists


@dataclass(slots=True)
class _Summary:
    """What scrapes need of a repository's images without a look at each of them."""

    states: Counter[ImageState]
    #: The first monotonic time after which an answer is no longer believed. It may be later if not `exact`.
    good_until: float
    exact: bool = True

    @classmethod
    def of(cls, images: Collection[ImageFacts]) -> _Summary:
        return cls(Counter(image.state for image in images), _soonest(images))

    def change(self, gone: Iterable[ImageFacts], new: Iterable[ImageFacts]) -> None:
        """Take other images into account, without a look at those that stay."""
        for image in gone:
            self.states[image.state] -= 1
        for image in new:
            self.states[image.state] += 1
            if image.replications is not None and image.good_until < self.good_until:
                self.good_until = image.good_until
        self.exact = False


def _soonest(images: Iterable[ImageFacts]) -> float:
    """The monotonic time until which all their answers are believed."""
    return min((i.good_until for i in images if i.replications is not None), default=float("inf"))


@dataclass(slots=True)
class RepositoryFacts:
    """What is known of a watched repository. Its images change through `put` and `replace` alone."""

    labels: tuple[str, ...] = ()
    #: Where the targets say that images must arrive.
    required: frozenset[Destination] = NOWHERE
    images: dict[str, ImageFacts] = field(default_factory=dict)
    #: None until the images were listed.
    targets: tuple[TargetImages, ...] | None = None
    #: When the images were last listed completely: monotonic, and Unix time.
    listed_at: float | None = None
    listed_time: float | None = None
    #: Whether it existed at that time. A target can spell out one that does not.
    exists: bool = True
    #: Whether ECR answered for each image of some listing.
    asked: bool = False
    failures: dict[FailureScope, Reason] = field(default_factory=dict)
    #: The settings that differ from those of its replicas, as far as both are known.
    settings_differ: tuple[tuple[Destination, str], ...] = ()
    _summary: _Summary | None = None
    #: The last result of `unfinished`, after the images that it is of.
    _unfinished: tuple[tuple[ImageFacts, ...], tuple[ImageFacts, ...]] | None = None
    #: The last result of `visible`, and the monotonic times between which it is right.
    _visible: tuple[ImageFacts, ...] | None = None
    _visible_from: float = 0.0
    _visible_until: float = 0.0

    def put(self, image: ImageFacts) -> None:
        """Add or replace an image."""
        if self._summary:
            before = self.images.get(image.digest)
            self._summary.change((before,) if before else (), (image,))
        self.images[image.digest] = image
        self._visible = self._unfinished = None

    def replace(self, *, gone: Iterable[str], new: Iterable[ImageFacts]) -> None:
        """Remove the images of these digests, and add or replace others."""
        added = {image.digest: image for image in new}
        removed = [self.images.pop(digest) for digest in gone]
        if self._summary:
            replaced = (self.images[digest] for digest in added if digest in self.images)
            self._summary.change([*removed, *replaced], added.values())
        self.images.update(added)
        self._visible = self._unfinished = None

    def summary(self, now: float) -> _Summary:
        """The summary. It is exact where that matters at the monotonic time `now`."""
        summary = self._summary
        if summary is None or (summary.good_until < now and not summary.exact):
            summary = self._summary = _Summary.of(self.images.values())
        return summary

    def fresh(self, now: float, stale_after: float) -> bool:
        """Whether the listing is believed at the monotonic time `now`."""
        return self.listed_at is not None and now <= self.listed_at + stale_after

    def late(self, now: float, stale_after: float) -> bool:
        """Whether the listing or an answer is no longer believed at the monotonic time `now`."""
        return self.summary(now).good_until < now or (
            self.listed_at is not None and not self.fresh(now, stale_after)
        )

    def visible(self, now: float, stale_after: float) -> tuple[ImageFacts, ...]:
        """The images that may be exported; without replications where the answer is too old.

        The same object while no image changes, so that readers can keep what they make of it.
        """
        if self.listed_at is None or now > self.listed_at + stale_after:
            return ()
        if self._visible is None or not self._visible_from <= now <= self._visible_until:
            images = self.images.values()
            if (good_until := self.summary(now).good_until) >= now:
                self._visible, self._visible_until = tuple(images), good_until
            else:
                believed = [i.replications is None or now <= i.good_until for i in images]
                self._visible = tuple(
                    image if is_believed else image.unanswered()
                    for image, is_believed in zip(images, believed, strict=True)
                )
                times = (i.good_until for i in images if i.replications is not None and now <= i.good_until)
                self._visible_until = min(times, default=float("inf"))
            self._visible_from = now
        return self._visible

    def unfinished(self, now: float, stale_after: float) -> tuple[ImageFacts, ...]:
        """Those of the visible images that are not COMPLETE and present everywhere."""
        visible = self.visible(now, stale_after)
        if self._unfinished is None or self._unfinished[0] is not visible:
            self._unfinished = visible, unfinished(visible)
        return self._unfinished[1]

    def good_until(self, now: float, stale_after: float) -> float:
        """The monotonic time until which the result of `visible` is the same, if no fact changes."""
        if self.listed_at is None or not self.fresh(now, stale_after):
            return float("inf")
        self.visible(now, stale_after)
        return min(self.listed_at + stale_after, self._visible_until)


@dataclass(frozen=True, slots=True)
class FirstRound:
    """The first round of a target, while it goes on."""

    #: Monotonic time at which it began.
    since: float
    #: Why it did not go on, the last time that it did not.
    reasons: frozenset[Reason] = frozenset()


@dataclass(slots=True)
class RegistryFacts:
    """What is known of a source registry: one account in one Region."""

    source: Source
    #: All targets that apply, and those of them that range over repositories by a glob.
    labels: tuple[str, ...] = ()
    globs: frozenset[str] = frozenset()
    #: None while the replication rules are not known.
    rules: Registry | None = None
    #: When they were last read, monotonic; and the Unix time at which that call was sent.
    rules_at: float = 0.0
    rules_time: float = 0.0
    #: The newest backfill to each destination, unless it ended long ago; and when they were read, monotonic.
    backfills: tuple[Backfill, ...] = ()
    backfills_at: float = 0.0
    #: Monotonic times: when it was first asked, and when it first answered or failed a call.
    since: float = float("inf")
    heard_at: float = float("inf")
    #: Whether AWS throttles its calls.
    throttled: bool = False
    #: Whether the repositories that targets spell out are polled. No target has a first round before.
    begun: bool = False
    #: Whether the repositories were ever listed, or need not be.
    repositories_known: bool = False
    repositories_time: float | None = None  # Unix time of the last complete listing of them
    repositories: dict[str, RepositoryFacts] = field(default_factory=dict)
    failures: dict[FailureScope, Reason] = field(default_factory=dict)
    #: The targets of which something was not asked yet since they were added. The poller keeps it.
    first_rounds: dict[str, FirstRound] = field(default_factory=dict)

    def believed_rules(self, now: float, stale_after: float) -> Registry | None:
        """The replication rules, unless they are unknown, or too old at the monotonic time `now`."""
        return self.rules if now <= self.rules_at + stale_after else None

    def believed_backfills(self, now: float, stale_after: float) -> tuple[Backfill, ...]:
        """The backfills, unless they are too old at the monotonic time `now`."""
        return self.backfills if now <= self.backfills_at + stale_after else ()

    def destination_counts(self, now: float, stale_after: float) -> dict[str, int]:
        """At how many destinations the images of each repository are expected that is known to exist.

        Only where targets name destinations while the rules are not known, or too old at the monotonic time
        `now`.
        """
        rules = self.believed_rules(now, stale_after)
        here = Destination(self.source.region, self.source.registry_id)
        return {
            name: len(((rules.destinations(name) if rules else NOWHERE) | repository.required) - {here})
            for name, repository in self.repositories.items()
            if repository.exists and repository.fresh(now, stale_after) and (rules or repository.required)
        }

    def rules_cover(self, image: ImageFacts) -> bool:
        """Whether the rules were read after the replication of the image began, so that they apply to it."""
        return image.replicated_from is None or image.replicated_from <= self.rules_time

    def expected(self, repository: str) -> frozenset[Destination] | None:
        """Where the rules send what is pushed to the repository; None while they are not known."""
        return self.rules.destinations(repository) if self.rules else None


class Look(NamedTuple):
    """The last look at a repository of a destination that is believed."""

    #: Monotonic time: of the look, or since when there is none that is believed.
    at: float
    #: Unix time of the look; None without one.
    time: float | None = None


@dataclass(slots=True)
class DestinationFacts:
    """What is known of how looking at a destination goes."""

    destination: Destination
    #: The facts of its registry. It may be watched itself.
    registry: RegistryFacts
    #: Monotonic time since which it is looked at.
    since: float
    #: Seconds between two looks at one of its repositories.
    interval: float = 0.0
    #: The last look at each repository that is to be looked at.
    looks: dict[str, Look] = field(default_factory=dict)
    #: Whether all repositories of some moment were looked at.
    asked: bool = False
    failures: dict[FailureScope, Reason] = field(default_factory=dict)

    def looked(self, repository: str, look: Look) -> None:
        """Take a look at a repository. The caller holds the lock."""
        self.looks[repository] = look
        self.asked = self.asked or all(each.time is not None for each in self.looks.values())
