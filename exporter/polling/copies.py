"""The copies of the images of one repository: where they should be, and what looks at the destinations say.

The pollers of the destinations look (`replicas`). What a look changes goes to `take`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from exporter.polling.context import Context
from exporter.polling.listing import ImageListing
from exporter.replication.facts import NOWHERE, ImageFacts, RepositoryFacts
from exporter.replication.model import Destination, Name, Status
from exporter.replication.replicas import Contents, looked, settle
from exporter.replication.status import RECENT
from exporter.replication.steps import Steps, finished, sliced


class Copies:
    """What is known of the copies. Loop thread only."""

    def __init__(
        self,
        context: Context,
        repository: str,
        facts: RepositoryFacts,
        listing: ImageListing,
        *,
        take: Callable[[ImageFacts, ImageFacts], None],
        after: Callable[[], Steps[None]],
    ) -> None:
        self._context = context
        self._name = repository
        self._facts = facts
        self._listing = listing
        #: Takes the facts of an image before and after a look.
        self._take = take
        #: What is to be done when all destinations were looked at.
        self._after = after
        self._registry = context.facts
        self._pacing = context.pacing
        self._clock = context.shared.clock
        self._sightings = context.shared.sightings
        #: Where the images are expected or reported, and where ECR reported one since the rules changed.
        self.destinations = NOWHERE
        self._reported = NOWHERE
        #: The looks that are taken in steps, by destination.
        self._looking: dict[Destination, Steps[None]] = {}
        #: The destinations that were looked at. An image that was COMPLETE there is so for ever.
        self._looked_at: set[Destination] = set()

    @property
    def pages(self) -> int | None:
        """How many pages the last listing of the source had; None if names are looked up."""
        return self._listing.pages

    @property
    def untagged(self) -> bool:
        """Whether images without a tag are listed at the source."""
        return self._listing.untagged

    @property
    def awaits_looks(self) -> bool:
        """Whether the first looks at the destinations are to come, at all of them."""
        places = (self._registry.expected(self._name) or NOWHERE) | self._facts.required
        settings, registries = self._pacing.settings, self._context.shared.store.registries
        # Some of these may not be readable. The looks do not come then, and ECR is asked a little later.
        accounts = {facts.source.registry_id for facts in registries}
        accounts.update(entry.registry_id for entry in settings.destinations)
        can_be_read = settings.replica_interval and all(place.registry_id in accounts for place in places)
        return bool(can_be_read) and not places <= self._looked_at

    @property
    def _believed_since(self) -> float:
        """The monotonic time since which a listing must have been made to be believed."""
        return self._clock.monotonic() - self._pacing.settings.stale_after

    def find_destinations(self, reported: Iterable[Destination] = ()) -> None:
        """Find where the images are expected or reported; `reported` are destinations of the last answer."""
        self._reported = self._reported.union(reported)
        source, expected = self._registry.source, self._registry.expected(self._name) or NOWHERE
        found = NOWHERE
        if self._facts.images:
            found = expected | self._facts.required | self._reported
            found -= {Destination(source.region, source.registry_id)}
            found = frozenset(destination for destination in found if all(destination))
        before, self.destinations = self.destinations, found
        if found != before:
            self._sightings.changed = True
        for destination in before - found:
            self.looked(destination, None)
        for destination in found - before:
            if contents := self._sightings.last_listing(self._name, destination, since=self._believed_since):
                self.looked(destination, contents)

    def rules_changed(self) -> None:
        """Nothing is reported but what the images say now: other rules may have other destinations."""
        answers = {id(image.replications): image.replications for image in self._facts.images.values()}
        self._reported = NOWHERE
        self.find_destinations(r.destination for replications in answers.values() for r in replications or ())

    def names_of(self, digest: str) -> tuple[Name, ...]:
        """The names of an image; none if it is not watched."""
        image = self._facts.images.get(digest)
        return image.names if image else ()

    def copies(self, destination: Destination) -> list[ImageFacts]:
        """The images that are expected or reported at the destination."""
        return list(self._wanted_at(destination))

    def _wanted_at(self, destination: Destination) -> Iterator[ImageFacts]:
        everywhere = destination in (self._registry.expected(self._name) or NOWHERE)
        return (i for i in self._facts.images.values() if everywhere or _is_wanted(i, destination))

    def looked(self, destination: Destination, contents: Contents | None) -> None:
        """Take what the destination holds; None if that is not known any more."""
        if contents is not None:
            self._looked_at.add(destination)
            if not any(self._wanted_at(destination)):
                # ECR reports no image there any more, so it is looked at no longer.
                self._reported -= {destination}
                self.find_destinations()
        if before := self._looking.get(destination):
            finished(before)
        self._looking[destination] = steps = self._take_looks(destination, contents)
        self._context.shared.turns.begin(steps)

    def _take_looks(self, destination: Destination, contents: Contents | None) -> Steps[None]:
        for some in sliced(list(self._facts.images)):
            now = self._clock.monotonic()
            everywhere = destination in (self._registry.expected(self._name) or NOWHERE)
            for before in filter(None, map(self._facts.images.get, some)):
                wanted = everywhere or _is_wanted(before, destination)
                after = self._after_look(before, destination, contents if wanted else None, now=now)
                if after is not before and after != before:
                    self._take(before, after)
            yield
        self._looking.pop(destination, None)
        if not self._looking and self.destinations <= self._looked_at:
            yield from self._after()

    def _after_look(
        self, before: ImageFacts, destination: Destination, contents: Contents | None, *, now: float
    ) -> ImageFacts:
        after = looked(before, destination, contents)
        if not self._pacing.settings.replica_interval:
            after = replace(after, replicas=())  # only watched registries show what they hold
        return self._settled(after, now=now)

    def _settled(self, image: ImageFacts, *, now: float) -> ImageFacts:
        """The facts of an image that need not be asked for, because it is present wherever it is expected.

        `now` is monotonic. Images that are seen together share the object.
        """
        if image.replications is not None:
            return image
        rules = self._registry.believed_rules(now, self._pacing.settings.stale_after)
        if rules is None or not self._registry.rules_cover(image):
            return image
        expected = rules.destinations(self._name) | image.required
        return settle(image, expected, at=now)

    def held(self, image: ImageFacts) -> frozenset[Destination]:
        """Where the image is, or was, though ECR may not report it. A copy that was COMPLETE stays so."""
        listed = self._sightings.held(self._name, image.digest, self.destinations, since=self._believed_since)
        return image.held().union(listed, self._looked_at.intersection(image.complete_at()))

    def look_soon(
        self, image: ImageFacts, destinations: Iterable[Destination], names: Iterable[Name]
    ) -> None:
        """Have the copies of an image at these destinations looked at, under these names."""
        wanted = {Name("", image.digest), *(name for name in names if name.tag)}
        for destination in destinations:
            self._sightings.look_soon(self._name, destination, wanted)

    def unseen(self, image: ImageFacts) -> list[Destination]:
        """Where an image is MISSING that no look was about yet, though there was one about others.

        A recent push may still be on its way.
        """
        if self._recent(image):
            return []
        seen = {replica.destination for of_name in image.replicas for replica in of_name}
        missing = (r.destination for r in image.replications or () if r.status == Status.MISSING)
        return [to for to in missing if to in self._looked_at and to not in seen]

    def arrived(self, before: ImageFacts, after: ImageFacts) -> list[Destination]:
        """Where an image has just become COMPLETE and was not seen to be present.

        Of an old image that is answered for the first time, nothing arrives now.
        """
        if after.confirmed or (before.replications is None and not self._recent(after)):
            return []
        present = [{r.destination for r in of_name if r.state == "present"} for of_name in after.replicas]
        seen, known = NOWHERE.union(*present[:1]).intersection(*present), set(before.complete_at())
        return [d for d in after.complete_at() if d not in known and d not in seen]

    def _recent(self, image: ImageFacts) -> bool:
        """Whether the replication of the image began lately."""
        began = image.replicated_from
        return began is not None and self._clock.time() - began < RECENT


def _is_wanted(image: ImageFacts, destination: Destination) -> bool:
    return destination in image.required or any(
        replication.destination == destination for replication in image.replications or ()
    )
