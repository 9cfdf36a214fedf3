"""The log of images whose replication fails or whose copies go, and of the end of both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from exporter.polling.calls import Clock, Events
from exporter.polling.turns import Turns
from exporter.replication.facts import ImageFacts, RegistryFacts
from exporter.replication.model import Destination, Replica, ReplicaState, Replication, Status
from exporter.replication.replicas import GONE
from exporter.replication.steps import Steps, sliced

#: Seconds after a line in which further changes are collected, and before the first one.
COLLECT_FOR, SHORT_PAUSE = 60.0, 1.0
#: Seconds until an image that recovered and fails again at the same destination is logged again.
REPEAT_AFTER = 3600.0
#: If more changes than that come together, those at one destination for one reason share a line. It is also
#: the number of images that such a line names.
MOST_LINES = 5

_FAILED, _GONE = "replication_failed", "replica_gone"


class Condition(NamedTuple):
    """How an image does at a destination."""

    #: The event that begins it; "" while the image is well.
    event: str
    #: The failure code, or what became of the copy.
    detail: str = ""
    #: When the replication began that failed (Unix time).
    began: float | None = None

    def same(self, other: Condition) -> bool:
        """Whether the log need not tell them apart. Another replication or code is another failure."""
        return self.event == other.event and (self.event != _FAILED or self == other)


#: COMPLETE; or FAILED, but its copy was seen there under all its names.
_WELL, _COPIED = Condition(""), Condition("", "copied")
#: COMPLETE at a destination that was not looked at. That ends a failure, but brings back no copy.
_UNSEEN = Condition("", "unseen")


# Almost all images have the same few answers.
@lru_cache(maxsize=4096)
def conditions(
    replications: tuple[Replication, ...], replicas: tuple[tuple[Replica, ...], ...]
) -> Mapping[Destination, Condition | None]:
    """How an image does at each destination; None while its replication is not over."""
    found: dict[Destination, Condition | None] = {}
    for destination, status, failure_code in replications:
        states = [r.state for of_name in replicas for r in of_name if r.destination == destination]
        if status == Status.FAILED:
            present = len(states) == len(replicas) and {*states} == {ReplicaState.PRESENT}
            found[destination] = _COPIED if present else Condition(_FAILED, failure_code)
        elif status != Status.COMPLETE:
            found[destination] = None
        elif gone := GONE.intersection(states):
            found[destination] = Condition(_GONE, min(gone))
        else:
            found[destination] = _WELL if states else _UNSEEN
    return found


@dataclass(slots=True)
class _Episode:
    """An image that is not well at a destination, or was not until lately. Times are monotonic."""

    now: Condition
    #: The condition that the log has it in.
    logged: Condition
    #: When the present condition was seen first, and until when the next one is not logged.
    since: float
    quiet_until: float = float("-inf")
    #: Whether an earlier process logged it, which may have logged its end too.
    recalled: bool = False
    #: When the replication began that failed last. Another one is not kept quiet.
    began: float | None = None


class _Kind(NamedTuple):
    """Changes of one kind can share a line. None: not the same for all of them."""

    before: str
    event: str
    destination: Destination | None
    detail: str | None


@dataclass(slots=True)
class _Changes:
    """Changes of one kind: how many, and the name and digest of the first images."""

    kind: _Kind
    count: int = 0
    first: list[tuple[str, str]] = field(default_factory=list)


class Transitions:
    """Logs each change of an image for the worse or the better once. Loop thread only.

    A copy may go because its image was deleted at the source, so it is logged after the source was listed
    again. What comes within a minute of a line is collected. What an earlier process saw is not logged again.
    """

    def __init__(self, facts: RegistryFacts, clock: Clock, turns: Turns, log: Events) -> None:
        self._facts = facts
        self._clock = clock
        self._turns = turns
        self._log = log
        self._began = clock.monotonic()
        #: By repository and digest.
        self._episodes: dict[tuple[str, str], dict[Destination, _Episode]] = {}
        #: Monotonic times: of the next look, and of the first one that may log something.
        self._look_at = float("inf")
        self._log_at = float("-inf")

    def note(self, repository: str, before: ImageFacts, after: ImageFacts) -> None:
        """Take that an answer or a look changed the facts of an image."""
        found = conditions(after.replications or (), after.replicas)
        episodes = self._episodes.get((repository, after.digest), {})
        if not episodes and not any(condition and condition.event for condition in found.values()):
            return
        self._episodes[repository, after.digest] = episodes
        for destination in episodes.keys() - found.keys():
            del episodes[destination]
        for destination, seen in found.items():
            if seen is None:
                continue
            condition = seen._replace(began=after.replicated_from) if seen.event == _FAILED else seen
            episode = episodes.get(destination)
            if episode is None:
                recalled = self._recalled(condition, destination, before, after)
                logged = condition if recalled else _WELL
                now = self._clock.monotonic()
                episode = episodes[destination] = _Episode(condition, logged, now, recalled=recalled)
            self._take(episode, condition, looked=_looked_at(after, destination))

    def _recalled(
        self, condition: Condition, destination: Destination, before: ImageFacts, after: ImageFacts
    ) -> bool:
        """Whether the state file has it that an earlier process saw the image in this condition."""
        if condition.event == _FAILED and before.replications is None:
            return any(since[:2] == (destination, Status.FAILED) for since in before.since)
        return condition.event == _GONE and after.answered_at < self._began

    def _take(self, episode: _Episode, condition: Condition, *, looked: bool) -> None:
        if condition is _UNSEEN and episode.now.event == _GONE:
            return
        if episode.recalled and condition is _COPIED:
            episode.logged = _WELL
        episode.recalled = episode.recalled and not looked
        if condition.event != episode.now.event:
            episode.since = self._clock.monotonic()
        if condition.event == _FAILED and condition.began != episode.began:
            episode.began, episode.quiet_until = condition.began, float("-inf")
        episode.now = condition
        if not condition.same(episode.logged):
            self._look_at = min(self._look_at, max(self._log_at, self._clock.monotonic() + SHORT_PAUSE))

    def record(self) -> float:
        """Log what changed, if it is time to; the monotonic time of the next look."""
        now = self._clock.monotonic()
        if now >= self._look_at:
            self._look_at, self._log_at = float("inf"), now + COLLECT_FOR
            self._turns.begin(self._look(now))
        return self._look_at

    def _look(self, now: float) -> Steps[None]:
        """Log what is to be logged. Drops what is over, and images that are watched no longer."""
        found: dict[_Kind, _Changes] = {}
        for keys in sliced(list(self._episodes)):
            for key in keys:
                self._look_at_image(*key, now, found)
            yield
        by_event: defaultdict[tuple[str, str], list[_Changes]] = defaultdict(list)
        for kind, changes in found.items():
            by_event[kind.before, kind.event].append(changes)
        for alike in by_event.values():
            for line in _lines(alike):
                self._write(line)
        self._log_at = now + (COLLECT_FOR if found else SHORT_PAUSE)
        if self._episodes:
            self._look_at = min(self._look_at, now + COLLECT_FOR)

    def _look_at_image(self, repository: str, digest: str, now: float, found: dict[_Kind, _Changes]) -> None:
        facts = self._facts.repositories.get(repository)
        image = facts.images.get(digest) if facts else None
        listed_at = facts.listed_at if facts else None
        episodes = self._episodes.get((repository, digest), {})
        for destination, episode in list(episodes.items()):
            if image is None or _over(episode, now):
                del episodes[destination]
            elif _to_log(episode, now, listed_at or 0.0):
                event = episode.now.event
                kind = _Kind(episode.logged.event, event, destination, episode.now.detail if event else "")
                changes = found.setdefault(kind, _Changes(kind))
                changes.count += 1
                if len(changes.first) < MOST_LINES:
                    tag = image.names[0].tag
                    changes.first.append((f"{repository}:{tag}" if tag else f"{repository}@{digest}", digest))
                episode.logged = episode.now
                if event:
                    episode.quiet_until = now + REPEAT_AFTER
        if not episodes:
            self._episodes.pop((repository, digest), None)

    def _write(self, changes: _Changes) -> None:
        before, event, to, detail = changes.kind
        image = ", ".join(name for name, _ in changes.first)
        images = changes.count if changes.count > 1 else None
        digest = changes.first[0][1] if changes.count == 1 else None
        destination = f"{to.registry_id}/{to.region}" if to else None
        if event == _FAILED:
            self._log.warned(
                "replication_failed",
                image=image,
                digest=digest,
                destination=destination,
                failure_code=detail or None,
                images=images,
            )
        elif event == _GONE:
            self._log.warned(
                "replica_gone",
                image=image,
                digest=digest,
                destination=destination,
                reason=detail,
                images=images,
            )
        elif before == _FAILED:
            self._log.noted(
                "replication_recovered", image=image, digest=digest, destination=destination, images=images
            )
        else:
            self._log.noted(
                "replica_returned", image=image, digest=digest, destination=destination, images=images
            )


def _looked_at(image: ImageFacts, destination: Destination) -> bool:
    return any(replica.destination == destination for of_name in image.replicas for replica in of_name)


def _over(episode: _Episode, now: float) -> bool:
    """Whether nothing is to be remembered of it any more."""
    return not (episode.now.event or episode.logged.event) and now >= episode.quiet_until


def _to_log(episode: _Episode, now: float, listed_at: float) -> bool:
    if episode.now.same(episode.logged):
        return False
    if not episode.now.event:
        return True
    return now >= episode.quiet_until and (episode.now.event != _GONE or listed_at > episode.since)


def _lines(alike: list[_Changes]) -> list[_Changes]:
    """The lines about one event: one for each change, or one for each of the largest kinds and the rest."""
    if sum(changes.count for changes in alike) <= MOST_LINES:
        return [_Changes(changes.kind, 1, [image]) for changes in alike for image in changes.first]
    alike.sort(key=lambda changes: changes.count, reverse=True)
    lines, rest = alike[:MOST_LINES], alike[MOST_LINES:]
    if rest:
        kind = rest[0].kind
        if any(changes.kind.destination != kind.destination for changes in rest):
            kind = kind._replace(destination=None)
        if any(changes.kind.detail != kind.detail for changes in rest):
            kind = kind._replace(detail=None)
        first = [image for changes in rest for image in changes.first]
        lines.append(_Changes(kind, sum(changes.count for changes in rest), first[:MOST_LINES]))
    return lines
