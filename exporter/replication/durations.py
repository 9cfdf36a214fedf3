"""Which replications count for the histogram of durations.

Pure: times are arguments. One object of the class belongs to one repository.
"""

from __future__ import annotations

from typing import NamedTuple

from exporter.replication.facts import ImageFacts
from exporter.replication.model import Destination, Replication, Status

#: Seconds by which a push may lie before a listing that does not have it: AWS may report whole seconds, and
#: its clock is not that of the exporter.
SLACK = 2.0
#: So many ends of replications are kept until they are needed.
MOST_ENDED = 10_000


class _Wait(NamedTuple):
    #: The destinations that are still to come; None as long as any may come.
    awaited: frozenset[Destination] | None
    #: Those that were counted or never will be.
    done: frozenset[Destination]


class Durations:
    """The images of a repository whose replication is timed: those that were pushed while it was watched.

    An image counts if it was pushed after the listing before the first one that has it. So images that are
    older than the first listing, that were pushed during a gap, or that are selected long after their push do
    not count. Neither does a restored image. Each image counts at most once for each destination.
    """

    def __init__(self) -> None:
        self._waits: dict[str, _Wait] = {}
        #: When the last complete listing began (Unix time); None if the next one is like the first.
        self._watched_since: float | None = None
        #: The push times of the images that were pushed since then, by digest. None of them begins twice.
        self._begun: dict[str, float] = {}
        #: When replications ended (Unix time), as events say.
        self._ended: dict[tuple[str, Destination], float] = {}

    def interrupted(self) -> None:
        """Take that images may have been pushed unseen, or are selected by other targets now."""
        self._watched_since = None

    def listed(self, began: float) -> None:
        """Take that the repository was listed completely. `began` is the Unix time of the first call."""
        self._watched_since = began
        self._begun = {digest: at for digest, at in self._begun.items() if at >= began - SLACK}
        self._ended = {
            key: at for key, at in self._ended.items() if key[0] in self._waits or at >= began - SLACK
        }

    def ended(self, digest: str, destination: Destination, at: float, *, now: float) -> None:
        """Take that a replication ended `at`, also of an image that is not known yet. Unix times.

        One that is yet to end is ignored: no listing would be later, so it would be kept for ever.
        """
        if at <= now + SLACK and len(self._ended) < MOST_ENDED:
            self._ended[digest, destination] = at

    def seconds(self, digest: str, destination: Destination, *, pushed_at: float, now: float) -> float:
        """How long a replication took that is COMPLETE: until its event, else until `now`. Unix times.

        An event that is older than the push is about an earlier push of the image.
        """
        ended = self._ended.pop((digest, destination), now)
        return max(0.0, (min(ended, now) if ended >= pushed_at - SLACK else now) - pushed_at)

    def added(self, image: ImageFacts) -> None:
        """Time the image if it was pushed since the last listing."""
        pushed_at, since = image.pushed_at, self._watched_since
        self.removed(image.digest)
        if since is None or pushed_at is None or pushed_at < since - SLACK:
            return
        if image.replicated_from == pushed_at != self._begun.get(image.digest):
            self._begun[image.digest] = pushed_at
            self._waits[image.digest] = _Wait(None, frozenset())

    def removed(self, digest: str) -> None:
        """Do not time the image any longer."""
        self._waits.pop(digest, None)

    def awaits(self, digest: str) -> bool:
        """Whether the image is timed."""
        return digest in self._waits

    def completed(
        self, digest: str, replications: tuple[Replication, ...], *, final: bool, recent: bool
    ) -> list[Destination]:
        """The destinations at which the image is COMPLETE and that count now.

        `final`: `replications` names every destination that the push is sent to. What appears later is a
        backfill. `recent`: the push is recent. What is FAILED or MISSING later is completed by a backfill or
        a repair, if at all.
        """
        wait = self._waits.get(digest)
        if wait is None:
            return []
        mine = [
            (destination, status)
            for destination, status, _ in replications
            if destination not in wait.done and (wait.awaited is None or destination in wait.awaited)
        ]
        completed = [destination for destination, status in mine if status == Status.COMPLETE]
        given_up = [d for d, status in mine if status in (Status.FAILED, Status.MISSING) and not recent]
        done = wait.done.union(completed, given_up)
        awaited = frozenset(destination for destination, _ in mine) if final else wait.awaited
        awaited = awaited - done if awaited is not None else None
        if awaited is None or awaited:
            self._waits[digest] = _Wait(awaited, done)
        else:
            del self._waits[digest]
        return completed
