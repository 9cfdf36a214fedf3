"""Which images the watched registries list: a watched registry can be a destination of another one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from exporter.replication.facts import ImageFacts
from exporter.replication.model import Destination, Image, Source, Status


class Watcher(Protocol):
    """What polls a repository in one registry."""

    def seen(self, destination: Destination, digests: frozenset[str]) -> None:
        """Take that another registry lists these images in its repository of the same name."""


@dataclass(slots=True)
class _Repository:
    """A repository name: who polls it, and the last complete listings. Both by registry."""

    watchers: dict[Destination, Watcher] = field(default_factory=dict)
    digests: dict[Destination, frozenset[str]] = field(default_factory=dict)


_NOWHERE: frozenset[Destination] = frozenset()


class Sightings:
    """The digests that each watched registry lists, by repository. Loop thread only.

    An image that a destination lists is there, also if ECR does not report its replication: it was copied by
    a backfill or by other means, or it is the origin of a replicated image.
    """

    def __init__(self) -> None:
        self._repositories: defaultdict[str, _Repository] = defaultdict(_Repository)

    def watch(self, repository: str, source: Source, watcher: Watcher) -> None:
        """Tell the watcher what other registries list."""
        self._repositories[repository].watchers[_destination(source)] = watcher

    def unwatch(self, repository: str, source: Source) -> None:
        """Take that the registry's repository is gone, or polled no longer."""
        found, here = self._repositories[repository], _destination(source)
        found.watchers.pop(here, None)
        if here in found.digests:
            found.digests[here] = frozenset()
        if not found.watchers:
            del self._repositories[repository]

    def listed(self, repository: str, source: Source, images: Iterable[Image]) -> None:
        """Take a complete listing. It is dropped if no other registry has a repository of this name."""
        found, here = self._repositories[repository], _destination(source)
        others = [watcher for other, watcher in found.watchers.items() if other != here]
        if others:
            before = found.digests.get(here, frozenset())
            digests = found.digests[here] = frozenset(image.digest for image in images)
            for watcher in others if digests - before else ():
                watcher.seen(here, digests - before)

    def held(self, repository: str, image: ImageFacts) -> frozenset[Destination]:
        """The registries that list the image, or that listed the repository and where it was COMPLETE.

        A copy that was seen stays COMPLETE after it is deleted, as one that ECR reports does.
        """
        digests = self._repositories[repository].digests
        if not digests:
            return _NOWHERE
        complete = {r.destination for r in image.replications or () if r.status == Status.COMPLETE}
        return frozenset(d for d in digests if image.digest in digests[d] or d in complete)


def _destination(source: Source) -> Destination:
    return Destination(source.region, source.registry_id)
