"""The store: the last facts of every registry, and the lock that guards them.

The poller's loop thread is the only writer. Readers take a `Snapshot` under the same lock, which is held
for copying references and nothing slower. Reading changes no fact.

What could not be confirmed for `stale_after` is hidden, not dropped: when AWS answers again, what is still
true needs no new call.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from exporter.replication import destination_health, target_health
from exporter.replication.destination_health import DestinationHealth
from exporter.replication.facts import DestinationFacts, ImageFacts, RegistryFacts
from exporter.replication.model import (
    Backfill,
    Destination,
    FailureScope,
    ImageState,
    Reason,
    Registry,
    Source,
)
from exporter.replication.target_health import TargetHealth


@dataclass(frozen=True, slots=True)
class RegistrySnapshot:
    """All that may be exported of one registry."""

    source: Source
    rules: Registry | None
    #: Unix time since which each thing that is watched was listed; None if something was not.
    complete_time: float | None
    repositories: tuple[tuple[str, tuple[ImageFacts, ...]], ...]
    #: The images that have series of their own.
    shown: tuple[tuple[str, tuple[ImageFacts, ...]], ...]
    targets: tuple[TargetHealth, ...]
    #: How many destinations the rules have for each of the repositories, as far as that is known.
    destinations: Mapping[str, int] = field(default_factory=dict)
    #: The newest backfill to each destination.
    backfills: tuple[Backfill, ...] = ()
    #: The settings of repositories that differ at destinations.
    settings_differ: Mapping[str, tuple[tuple[Destination, str], ...]] = field(default_factory=dict)
    #: What fails in it, and in its repositories.
    failures: tuple[tuple[FailureScope, Reason], ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that may be exported at one moment: known, and not stale."""

    registries: tuple[RegistrySnapshot, ...]
    #: How looking at each destination goes.
    destinations: tuple[DestinationHealth, ...] = ()
    #: The destinations that nothing can read.
    unread: tuple[Destination, ...] = ()
    #: How many images `max_images` leaves out.
    skipped: int = 0
    #: Images and repositories stay as they are here while the store has this version, until this
    #: monotonic time.
    version: int = 0
    good_until: float = float("inf")


class Store:
    """All facts, and the lock that guards them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.registries: list[RegistryFacts] = []
        #: The destinations that are looked at.
        self.destinations: list[DestinationFacts] = []
        #: The destinations that cannot be looked at, because nothing reads their account.
        self.unread: tuple[Destination, ...] = ()
        self.stale_after = 0.0
        #: Whether only images have series of their own that are not COMPLETE and present everywhere.
        self.unfinished_only = False
        self.skipped = 0
        #: Grows with each change of what is exported of images or repositories.
        self.version = 0

    def changed(self) -> None:
        """Note a change of what is exported of images or repositories. The caller holds the lock."""
        self.version += 1

    def snapshot(self, now: float, *, images: bool = True) -> Snapshot:
        """What may be exported at the monotonic time `now`; without repositories if not `images`.

        For any thread. Changes nothing: two snapshots of the same facts and time are equal.
        """
        with self.lock:
            registries = tuple(self._registry(facts, now, images=images) for facts in self.registries)
            ends = (self._good_until(facts, now) for facts in self.registries)
            destinations = tuple(
                destination_health.evaluate(facts, now, self.stale_after) for facts in self.destinations
            )
            return Snapshot(
                registries,
                destinations,
                self.unread,
                self.skipped,
                self.version,
                min(ends, default=float("inf")),
            )

    def looks(self) -> dict[tuple[Destination, str], tuple[float | None, float]]:
        """The Unix time of the last look at each repository of a destination, and the seconds between looks.

        For any thread. The time is None if there was no look that is believed.
        """
        with self.lock:
            return {
                (facts.destination, name): (look.time, facts.interval)
                for facts in self.destinations
                for name, look in facts.looks.items()
            }

    def listed_images(self) -> dict[tuple[Source, str], tuple[ImageFacts, ...]]:
        """All images of each repository that was ever listed. For any thread."""
        with self.lock:
            return {
                (facts.source, name): tuple(repository.images.values())
                for facts in self.registries
                for name, repository in facts.repositories.items()
                if repository.listed_at is not None
            }

    def states(self, now: float) -> Mapping[ImageState, int]:
        """How many watched images are in each state at the monotonic time `now`."""
        states: Counter[ImageState] = Counter(dict.fromkeys(ImageState, 0))
        with self.lock:
            for repository in (r for facts in self.registries for r in facts.repositories.values()):
                if not repository.late(now, self.stale_after):
                    states.update(repository.summary(now).states)
                    continue
                visible = repository.visible(now, self.stale_after)
                states.update(image.state for image in visible)
                states[ImageState.UNKNOWN] += len(repository.images) - len(visible)
        return states

    def unheard(self, now: float) -> list[Source]:
        """The registries that neither answered nor failed yet at the monotonic time `now`."""
        with self.lock:
            return [
                facts.source
                for facts in self.registries
                if target_health.awaits_answer(facts, now, self.stale_after)
            ]

    def _registry(self, facts: RegistryFacts, now: float, *, images: bool) -> RegistrySnapshot:
        repositories = facts.repositories.items() if images else ()
        every = tuple((name, r.visible(now, self.stale_after)) for name, r in repositories)
        shown = every
        if self.unfinished_only:
            unfinished = ((name, r.unfinished(now, self.stale_after)) for name, r in repositories)
            shown = tuple((name, found) for name, found in unfinished if found)
        return RegistrySnapshot(
            source=facts.source,
            rules=facts.believed_rules(now, self.stale_after),
            complete_time=_complete_time(facts),
            repositories=every,
            shown=shown,
            targets=target_health.evaluate(facts, now, self.stale_after),
            destinations=facts.destination_counts(now, self.stale_after) if images else {},
            backfills=facts.believed_backfills(now, self.stale_after),
            settings_differ={
                name: r.settings_differ for name, r in repositories if r.exists and r.settings_differ
            },
            failures=(
                *facts.failures.items(),
                *(failure for _, r in repositories for failure in r.failures.items()),
            ),
        )

    def _good_until(self, facts: RegistryFacts, now: float) -> float:
        """The monotonic time until which images and repositories stay as they are if no fact changes."""
        ends = [r.good_until(now, self.stale_after) for r in facts.repositories.values()]
        if facts.believed_rules(now, self.stale_after):
            ends.append(facts.rules_at + self.stale_after)
        return min(ends, default=float("inf"))


def _complete_time(facts: RegistryFacts) -> float | None:
    """The Unix time since which each thing that is watched was listed; None if something was not."""
    times = [repository.listed_time for repository in facts.repositories.values()]
    if facts.globs:
        times.append(facts.repositories_time)
    known = [time for time in times if time is not None]
    return min(known) if known and len(known) == len(times) else None
