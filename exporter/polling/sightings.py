"""What destinations were seen to hold: who wants to know of which, and who is told.

A destination is looked at by its own poller. A watched registry can be a destination of another one: its
listings are looks at it too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from exporter.replication.facts import ImageFacts
from exporter.replication.model import Destination, Image, Name, RepositorySettings, Source
from exporter.replication.replicas import Contents


class Watcher(Protocol):
    """What watches a repository in one source registry."""

    @property
    def destinations(self) -> frozenset[Destination]:
        """Where its images are expected or reported; empty if it has none."""

    @property
    def pages(self) -> int | None:
        """How many pages its last listing had; None if it is looked up by name."""

    @property
    def untagged(self) -> bool:
        """Whether images without a tag are watched, besides those that are watched by digest."""

    def names_of(self, digest: str) -> Collection[Name]:
        """The names of an image; none if it is not watched."""

    def copies(self, destination: Destination) -> Sequence[ImageFacts]:
        """The images that are expected or reported at the destination."""

    def looked(self, destination: Destination, contents: Contents | None) -> None:
        """Take what the destination holds in the repository of the same name; None if that is not known."""


class Looker(Protocol):
    """What looks at a repository of one destination."""

    def look_soon(self, names: Iterable[Name]) -> None:
        """Look these names up soon."""

    def listed(self, *, everything: bool) -> None:
        """Take that another listing showed all copies to be present, or (not `everything`) some of them."""


class KnownSettings(Protocol):
    """What knows the settings of the repositories of a registry, by name."""

    known: Mapping[str, RepositorySettings]


class Sightings:
    """Brings together the watchers of a repository and the lookers at its destinations. Loop thread only."""

    def __init__(self) -> None:
        #: Whether other destinations or repositories may have to be looked at.
        self.changed = False
        self._watchers: defaultdict[str, dict[Source, Watcher]] = defaultdict(dict)
        self._lookers: dict[tuple[Destination, str], Looker] = {}
        #: The last listings of watched registries that are destinations of others, and their monotonic times.
        self._listed: dict[tuple[Destination, str], tuple[Contents, float]] = {}
        #: The settings of the repositories at each destination that is looked at. The version grows with each
        #: change of settings, there or at a source, and of what is looked at.
        self.settings: dict[Destination, KnownSettings] = {}
        self.settings_version = 0

    def watch(self, repository: str, source: Source, watcher: Watcher) -> None:
        """Tell the watcher what destinations hold."""
        self._watchers[repository][source] = watcher
        self.changed = True

    def unwatch(self, repository: str, source: Source, watcher: Watcher) -> None:
        """Take that a repository is polled no longer."""
        self._listed.pop((_destination(source), repository), None)
        rest = {source: other for source, other in self._watchers[repository].items() if other is not watcher}
        self._watchers[repository] = rest
        if not rest:
            del self._watchers[repository]
        self.changed = True

    def look(self, repository: str, destination: Destination, looker: Looker) -> None:
        """Let the looker look at the repository of the destination."""
        self._lookers[destination, repository] = looker

    def unlook(self, repository: str, destination: Destination, looker: Looker) -> None:
        """Take that the looker looks no longer. What was seen is not known then, if no other one looks."""
        if self._lookers.get((destination, repository)) is looker:
            del self._lookers[destination, repository]
            self.looked(repository, destination, None)

    def wanted(self) -> dict[Destination, set[str]]:
        """The destinations to look at, and their repositories."""
        wanted: defaultdict[Destination, set[str]] = defaultdict(set)
        for repository, watchers in self._watchers.items():
            for watcher in watchers.values():
                for destination in watcher.destinations:
                    wanted[destination].add(repository)
        return wanted

    def copies(self, repository: str, destination: Destination) -> list[ImageFacts]:
        """The images whose copies are expected or reported there."""
        return [
            image for watcher in self._of(repository, destination) for image in watcher.copies(destination)
        ]

    def pages(self, repository: str, destination: Destination) -> int | None:
        """How many pages a listing may have: as many as the longest one at a source; None if not known."""
        pages = [watcher.pages for watcher in self._of(repository, destination)]
        return max((number for number in pages if number is not None), default=None)

    def untagged(self, repository: str, destination: Destination) -> bool:
        """Whether copies without a tag are to be looked at, besides those that are watched by digest."""
        return any(watcher.untagged for watcher in self._of(repository, destination))

    def looked(self, repository: str, destination: Destination, contents: Contents | None) -> None:
        """Take what a repository of a destination holds; None if that is not known any more."""
        for watcher in self._of(repository, destination):
            watcher.looked(destination, contents)

    def look_soon(self, repository: str, destination: Destination, names: Collection[Name]) -> None:
        """Have these names looked up soon, if the destination is looked at."""
        if looker := self._lookers.get((destination, repository)):
            looker.look_soon(names)

    def happened(self, repository: str, destination: Destination, digest: str) -> bool:
        """Have an image looked up soon whose copy there changed; False if no watcher has it."""
        found = [watcher.names_of(digest) for watcher in self._of(repository, destination)]
        names = [name for names in found for name in names]
        if names:
            self.look_soon(repository, destination, {Name("", digest), *(name for name in names if name.tag)})
        return bool(names)

    def listed(self, repository: str, source: Source, images: Iterable[Image], *, at: float) -> None:
        """Take the active images that a watched registry listed, which may be a destination of others.

        `at` is the monotonic time of the listing.
        """
        here = _destination(source)
        if self._watchers.get(repository, {}).keys() <= {source}:
            self._listed.pop((here, repository), None)
            return
        contents = Contents(images)
        self._listed[here, repository] = contents, at
        self.looked(repository, here, contents)
        if looker := self._lookers.get((here, repository)):
            looker.listed(everything=not contents.lacks(self.copies(repository, here)))

    def last_listing(self, repository: str, destination: Destination, *, since: float) -> Contents | None:
        """What a destination listed last that is watched itself; None for another one, and for a listing
        before that monotonic time.
        """
        contents, at = self._listed.get((destination, repository), (None, since))
        return contents if at >= since else None

    def held(
        self, repository: str, digest: str, destinations: Iterable[Destination], *, since: float
    ) -> set[Destination]:
        """Those of the destinations that are watched themselves and list the image, as `last_listing`."""
        listed = ((to, self.last_listing(repository, to, since=since)) for to in destinations)
        return {to for to, contents in listed if contents and contents.holds(digest)}

    def _of(self, repository: str, destination: Destination) -> list[Watcher]:
        # Not by indexing, which would add an entry.
        watchers = self._watchers.get(repository, {}).values()
        return [watcher for watcher in watchers if destination in watcher.destinations]


def _destination(source: Source) -> Destination:
    return Destination(source.region, source.registry_id)
