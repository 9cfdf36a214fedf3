"""The store: the last facts per image, repository and registry, and what follows from them.

The poller's loop thread is the only writer. Scrapes take a `Snapshot`, under the same lock, which is
held for copying references and nothing slower. Facts are frozen and replaced whole.

What could not be confirmed for `stale_after` is hidden rather than dropped: when AWS answers again,
what is still true needs no new call.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from exporter.replication.model import (
    Destination,
    FailureScope,
    ImageState,
    Name,
    Reason,
    Registry,
    Replication,
    Source,
    Status,
)

#: Seconds after a push in which unfinished replication is expected: AWS says that most images take
#: under half an hour, and promises nothing (ECR documentation).
RECENT = 3600.0

#: Of several answers about one destination the gravest counts; ECR gives no times to tell the latest.
_GRAVITY = {Status.COMPLETE: 0, Status.MISSING: 1, Status.IN_PROGRESS: 2, Status.FAILED: 4}


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of a watched image. `replications` is None until ECR answered for the first time.

    Facts are equal if they say the same, whenever it was answered.
    """

    digest: str
    names: tuple[Name, ...]
    pushed_at: float | None
    replicated_from: float | None
    replications: tuple[Replication, ...] | None = None
    state: ImageState = ImageState.NEW
    #: Whether it was judged by rules that may be others than those that it goes by.
    unverified: bool = False
    #: Monotonic times: of the answer, and until when it is believed.
    answered_at: float = field(default=0.0, compare=False)
    good_until: float = field(default=0.0, compare=False)

    def good_at(self, now: float) -> bool:
        """Whether there is no answer that is too old at the monotonic time `now`."""
        return self.replications is None or now <= self.good_until

    def answered(
        self,
        replications: tuple[Replication, ...],
        state: ImageState,
        *,
        unverified: bool,
        at: float,
        good_until: float,
    ) -> ImageFacts:
        """What is known once ECR answered so, at a monotonic time. Not by replace(), which is slow."""
        return ImageFacts(
            self.digest,
            self.names,
            self.pushed_at,
            self.replicated_from,
            replications,
            state,
            unverified,
            at,
            good_until,
        )

    def unanswered(self) -> ImageFacts:
        """What is left when the answer is no longer believed."""
        return replace(self, replications=None, state=ImageState.UNKNOWN)


@dataclass(frozen=True, slots=True)
class TargetImages:
    """What a target selects in a repository."""

    label: str
    images: int
    complete: bool  # whether all that it names exists


@dataclass(frozen=True, slots=True)
class _Summary:
    """What scrapes want to know of a repository's images without looking at each of them."""

    #: The first monotonic time after which some answer is no longer believed.
    good_until: float
    states: Mapping[ImageState, int]


@dataclass(slots=True)
class RepositoryFacts:
    """What is known of a watched repository. Its images change through `put` and `remove` alone."""

    labels: tuple[str, ...] = ()
    images: dict[str, ImageFacts] = field(default_factory=dict)
    #: None until the images were listed.
    targets: tuple[TargetImages, ...] | None = None
    #: When the images were last listed completely: monotonic, and Unix time.
    listed_at: float | None = None
    listed_time: float | None = None
    #: Whether each image of some listing has been asked about, so that targets can be judged.
    asked: bool = False
    failures: dict[FailureScope, Reason] = field(default_factory=dict)
    _summary: _Summary | None = None

    def put(self, image: ImageFacts) -> None:
        """Know this of the image from now on."""
        self.images[image.digest] = image
        self._summary = None

    def remove(self, digest: str) -> None:
        """Know nothing of the image any more."""
        del self.images[digest]
        self._summary = None

    def summary(self) -> _Summary:
        """Made when it is first asked for after a change."""
        if self._summary is None:
            answered = (i.good_until for i in self.images.values() if i.replications is not None)
            states = Counter(image.state for image in self.images.values())
            self._summary = _Summary(min(answered, default=float("inf")), states)
        return self._summary

    def fresh(self, now: float, stale_after: float) -> bool:
        """Whether the listing is believed at the monotonic time `now`."""
        return self.listed_at is not None and now <= self.listed_at + stale_after

    def late(self, now: float, stale_after: float) -> bool:
        """Whether something that was known is no longer believed."""
        return self.summary().good_until < now or (
            self.listed_at is not None and not self.fresh(now, stale_after)
        )

    def visible(self, now: float, stale_after: float) -> tuple[ImageFacts, ...]:
        """The images of which something may be told; where the answer is too old, only that they exist."""
        if not self.fresh(now, stale_after):
            return ()
        images = self.images.values()
        if self.summary().good_until >= now:
            return tuple(images)
        return tuple(image if image.good_at(now) else image.unanswered() for image in images)

    def good_until(self, now: float, stale_after: float) -> float:
        """The monotonic time until which what `visible` gives stays the same, if nothing is learnt."""
        if self.listed_at is None or not self.fresh(now, stale_after):
            return float("inf")
        soonest = self.summary().good_until
        if soonest < now:
            times = (i.good_until for i in self.images.values() if i.replications is not None)
            soonest = min((time for time in times if time >= now), default=float("inf"))
        return min(self.listed_at + stale_after, soonest)


@dataclass(slots=True)
class RegistryFacts:
    """What is known of a source registry."""

    source: Source
    #: All targets that apply, and those of them that range over repositories by a glob.
    labels: tuple[str, ...] = ()
    globs: frozenset[str] = frozenset()
    #: None while the replication rules are not known.
    rules: Registry | None = None
    #: When they were last read, monotonic; and the Unix time at which that call was sent.
    rules_at: float = 0.0
    rules_time: float = 0.0
    #: Monotonic time since which it is watched, and whether AWS refuses calls for being too many.
    since: float = float("inf")
    throttled: bool = False
    #: Whether the repositories that targets spell out are watched, so that targets can be judged.
    begun: bool = False
    #: Whether the repositories were ever listed, or need not be.
    repositories_known: bool = False
    repositories_time: float | None = None  # Unix time of the last complete listing of them
    repositories: dict[str, RepositoryFacts] = field(default_factory=dict)
    failures: dict[FailureScope, Reason] = field(default_factory=dict)
    #: Targets that have had their first round.
    judged: set[str] = field(default_factory=set)

    def believed_rules(self, now: float, stale_after: float) -> Registry | None:
        """The replication rules, unless they are unknown, or too old at the monotonic time `now`."""
        return self.rules if now <= self.rules_at + stale_after else None

    def rules_cover(self, image: ImageFacts) -> bool:
        """Whether the rules were read after the image began to replicate, so that it goes by them."""
        return image.replicated_from is None or image.replicated_from <= self.rules_time

    def expected(self, repository: str) -> frozenset[Destination] | None:
        """Where the rules send what is pushed to the repository; None while they are not known."""
        return self.rules.destinations(repository) if self.rules else None


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """How a target fares in a registry. `success` and `images` are None while nobody can tell."""

    label: str
    success: bool | None
    reasons: frozenset[Reason]
    images: int | None


@dataclass(frozen=True, slots=True)
class RegistrySnapshot:
    source: Source
    rules: Registry | None
    complete_time: float | None
    repositories: tuple[tuple[str, tuple[ImageFacts, ...]], ...]
    targets: tuple[TargetFacts, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that may be told at one moment: known, and not stale."""

    registries: tuple[RegistrySnapshot, ...]
    #: What is told of images and repositories stays true while the store has this version, until this
    #: monotonic time.
    version: int = 0
    good_until: float = float("inf")


class Store:
    """All facts, and the lock that guards them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.registries: list[RegistryFacts] = []
        self.stale_after = 0.0
        self.skipped = 0
        #: Grows whenever what is told of images or repositories changes.
        self.version = 0

    def changed(self) -> None:
        """What is told of images or repositories is another now. For who holds the lock."""
        self.version += 1

    def snapshot(self, now: float, *, images: bool = True) -> Snapshot:
        """What may be told at the monotonic time `now`; of registries and targets alone, if not `images`.

        Called from any thread. The lock is held for what takes microseconds an image at most, and only
        where something changed since the last time.
        """
        with self.lock:
            registries = tuple(self._registry(facts, now, images=images) for facts in self.registries)
            ends = (
                repository.good_until(now, self.stale_after)
                for facts in self.registries
                for repository in facts.repositories.values()
            )
            good_until = min(ends, default=float("inf"))
            return Snapshot(registries, self.version, good_until)

    def settled(
        self,
    ) -> list[tuple[Source, str, frozenset[Destination] | None, tuple[ImageFacts, ...]]]:
        """The settled images of each repository, and where the rules send what is pushed to it.

        A repository that was not listed yet is left out: nothing is known of it. From any thread.
        """
        with self.lock:
            listed = [
                (facts, name, tuple(repository.images.values()))
                for facts in self.registries
                for name, repository in facts.repositories.items()
                if repository.listed_at is not None
            ]
        return [
            (
                facts.source,
                name,
                facts.expected(name),
                tuple(i for i in images if i.state is ImageState.SETTLED and not i.unverified),
            )
            for facts, name, images in listed
        ]

    def states(self, now: float) -> Mapping[ImageState, int]:
        """How many watched images are in each state at the monotonic time `now`."""
        states: Counter[ImageState] = Counter(dict.fromkeys(ImageState, 0))
        with self.lock:
            for repository in (r for facts in self.registries for r in facts.repositories.values()):
                if not repository.late(now, self.stale_after):
                    states.update(repository.summary().states)
                    continue
                visible = repository.visible(now, self.stale_after)
                states.update(image.state for image in visible)
                states[ImageState.UNKNOWN] += len(repository.images) - len(visible)
        return states

    def awaited(self, now: float) -> list[str]:
        """The targets that had no first round yet, and did not fail it either."""
        snapshot = self.snapshot(now, images=False)
        return [t.label for r in snapshot.registries for t in r.targets if t.success is None]

    def _registry(self, facts: RegistryFacts, now: float, *, images: bool) -> RegistrySnapshot:
        late = {name for name, r in facts.repositories.items() if r.late(now, self.stale_after)}
        rules = facts.believed_rules(now, self.stale_after)
        visible = (
            tuple((name, r.visible(now, self.stale_after)) for name, r in facts.repositories.items())
            if images
            else ()
        )
        return RegistrySnapshot(
            facts.source,
            rules,
            _complete_time(facts),
            visible,
            self._targets(
                facts,
                late,
                overdue=now > facts.since + self.stale_after,
                unruled=facts.rules is not None and rules is None,
            ),
        )

    def _targets(
        self, facts: RegistryFacts, late: set[str], *, overdue: bool, unruled: bool
    ) -> tuple[TargetFacts, ...]:
        """How the targets fare, some repositories being late.

        `overdue`: a first round should be over. `unruled`: the rules are no longer believed.
        """
        lateness = _lateness(facts)
        verdicts = {label: _Verdict() for label in facts.labels}
        for scope, reason in facts.failures.items():
            for label in facts.globs if scope.kind == "repositories" else facts.labels:
                verdicts[label].reasons.add(reason)
        unknown = facts.labels if not facts.begun else facts.globs if not facts.repositories_known else ()
        for label in unknown:
            verdicts[label].images = None
            verdicts[label].asked = False
        for name, repository in facts.repositories.items():
            _judge(verdicts, repository, globs=facts.globs, late=name in late, lateness=lateness)
        if overdue:
            for label, verdict in verdicts.items():
                if label not in facts.judged and not verdict.asked:
                    verdict.reasons |= lateness
        if unruled:
            for verdict in verdicts.values():
                verdict.reasons |= lateness
        return tuple(self._target(facts, label, verdict) for label, verdict in verdicts.items())

    @staticmethod
    def _target(facts: RegistryFacts, label: str, verdict: _Verdict) -> TargetFacts:
        if verdict.reasons or verdict.asked:
            facts.judged.add(label)
        success = not verdict.reasons if label in facts.judged else None
        return TargetFacts(label, success, frozenset(verdict.reasons), verdict.images)


def _complete_time(facts: RegistryFacts) -> float | None:
    """The Unix time since which everything that is watched has been listed, as of now."""
    times = [repository.listed_time for repository in facts.repositories.values()]
    if facts.globs:
        times.append(facts.repositories_time)
    known = [time for time in times if time is not None]
    return min(known) if known and len(known) == len(times) else None


def _lateness(facts: RegistryFacts) -> set[Reason]:
    """Why something could not be confirmed in time, if nothing failed: no call came round to it."""
    if facts.failures:
        return set()
    return {Reason.THROTTLED if facts.throttled else Reason.UNAVAILABLE}


@dataclass(slots=True)
class _Verdict:
    reasons: set[Reason] = field(default_factory=set)
    images: int | None = 0
    asked: bool = True


def _judge(
    verdicts: Mapping[str, _Verdict],
    repository: RepositoryFacts,
    *,
    globs: frozenset[str],
    late: bool,
    lateness: set[Reason],
) -> None:
    """Add what one repository means for the targets that apply to it."""
    reasons = set(repository.failures.values())
    if late and not reasons:
        reasons = lateness
    counts = {target.label: target for target in repository.targets or ()}
    for label in repository.labels:
        # Between the halves of a reload a repository may still name a target that is gone.
        verdict = verdicts.get(label, _Verdict())
        # A glob does not miss a repository that another target spells out.
        verdict.reasons |= reasons - {Reason.REPOSITORY_NOT_FOUND} if label in globs else reasons
        verdict.asked = verdict.asked and repository.asked
        count = counts.get(label)
        if count is None or late:
            verdict.images = None
        elif verdict.images is not None:
            verdict.images += count.images
        if count is not None and not count.complete:
            verdict.reasons.add(Reason.IMAGE_NOT_FOUND)


@lru_cache(maxsize=1024)  # nearly all images are alike in this, and may as well share the answer
def evaluate_replications(
    reported: tuple[Replication, ...], expected: frozenset[Destination]
) -> tuple[Replication, ...]:
    """One state for each destination: what ECR reports, and MISSING where it owes a report.

    An entry that leaves out its Region or its registry may mean any destination that it does not
    contradict; none of those is called MISSING.
    """
    gravest: dict[Destination, Replication] = {}
    for entry in reported:
        known = gravest.get(entry.destination)
        if known is None or _gravity(entry) > _gravity(known):
            gravest[entry.destination] = entry
    unreported = [d for d in expected if not any(_may_mean(found, d) for found in gravest)]
    missing = (Replication(destination, Status.MISSING) for destination in unreported)
    return tuple(sorted([*gravest.values(), *missing]))


def _gravity(replication: Replication) -> int:
    return _GRAVITY.get(replication.status, 3)  # type: ignore[call-overload, no-any-return]


def _may_mean(found: Destination, wanted: Destination) -> bool:
    return found.region in ("", wanted.region) and found.registry_id in ("", wanted.registry_id)


def image_state(replications: tuple[Replication, ...], *, recent: bool, rules_known: bool) -> ImageState:
    """What to expect next of an image that ECR answered for.

    A fresh push of which nothing is reported, in a registry whose rules nobody can read, may yet
    be on its way.
    """
    statuses = {replication.status for replication in replications}
    unfinished = statuses - {Status.COMPLETE, Status.FAILED}
    if recent and (unfinished or not (statuses or rules_known)):
        return ImageState.PENDING
    if statuses & {Status.FAILED, Status.IN_PROGRESS, Status.MISSING}:
        return ImageState.FAILED
    return ImageState.UNKNOWN if unfinished else ImageState.SETTLED


def completed(before: ImageFacts, after: tuple[Replication, ...]) -> list[Destination]:
    """The destinations that are COMPLETE now and were seen unfinished before."""
    if before.replications is None:
        return []
    was = {replication.destination: replication.status for replication in before.replications}
    waited = before.state is ImageState.PENDING or before.unverified
    return [
        destination
        for destination, status, _ in after
        if status == Status.COMPLETE
        and was.get(destination, Status.MISSING if waited else Status.COMPLETE) != Status.COMPLETE
    ]


def missing_only_where_owed(facts: ImageFacts, expected: frozenset[Destination]) -> ImageFacts:
    """The facts after the rules changed: nothing is MISSING where nothing is expected any more."""
    if facts.replications is None:
        return facts
    kept = tuple(r for r in facts.replications if r.status != Status.MISSING or r.destination in expected)
    return facts if len(kept) == len(facts.replications) else replace(facts, replications=kept)
