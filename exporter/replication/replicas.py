"""What a repository of a destination holds -> what that means for each image that is replicated to it.

All pure: listings and look-ups go in, facts of images come out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import lru_cache
from math import inf

from exporter.replication.facts import ImageFacts
from exporter.replication.model import (
    Destination,
    Image,
    ImageState,
    Name,
    Replica,
    ReplicaState,
    Replication,
    Status,
)
from exporter.replication.status import image_state, shared

_PRESENT = (ReplicaState.PRESENT, True)
#: What was known of an image that is not present now, so that it is news.
_NEWS = (None, ReplicaState.PRESENT)


class Contents:
    """What a repository of a destination was seen to hold: all of it, or of the names that were asked for.

    `everything`: untagged and archived images are among `images`, so that what is not there is absent.
    Otherwise only those are known that are present. `asked`: the names of a look-up; None for a listing.
    """

    def __init__(
        self, images: Iterable[Image] = (), *, everything: bool = False, asked: Collection[Name] | None = None
    ) -> None:
        self._images: dict[str, Image] = {}
        self._tags: dict[str, str] = {}
        self.everything = everything
        self._asked = asked
        #: Digests of images that arrived during the look, so that it may have missed them.
        self.arriving: Collection[str] = ()
        self.add(images)

    def add(self, images: Iterable[Image]) -> None:
        """Take images of a further page."""
        for image in images:
            self._images[image.digest] = image
            self._tags.update(dict.fromkeys(image.tags, image.digest))

    def holds(self, digest: str) -> bool:
        """Whether the image was seen there, under whatever tag."""
        return digest in self._images

    def has(self, name: Name) -> bool:
        """Whether an image of that digest or tag was seen there."""
        return name.tag in self._tags if name.tag else name.digest in self._images

    def replica(self, digest: str, name: Name) -> tuple[ReplicaState, bool] | None:
        """The state of the image under the name, and whether the digest is held; None if that is unknown."""
        image, holder = self._images.get(digest), self._tags.get(name.tag)
        if image is not None and not image.archived and (not name.tag or holder == digest):
            return ReplicaState.PRESENT, True
        if not self._knows(digest, name):
            return None
        if holder not in (None, digest):
            return ReplicaState.OTHER_IMAGE, image is not None
        if image is None:
            return ReplicaState.ABSENT, False
        return ReplicaState.ARCHIVED if image.archived else ReplicaState.UNTAGGED, True

    def _knows(self, digest: str, name: Name) -> bool:
        """Whether the answer tells that the digest or the tag is not there."""
        if digest in self.arriving:
            return False
        if self._asked is None or not self.everything:
            return self.everything
        return Name("", digest) in self._asked and (not name.tag or Name(name.tag, "") in self._asked)

    def has_news(self, images: Iterable[ImageFacts], destination: Destination) -> bool:
        """Whether some image is not present, or that is unknown, and was not known to be so before."""
        return any(
            self.replica(image.digest, name) != _PRESENT and _last_word(of_name, destination) in _NEWS
            for image in images
            for name, of_name in zip(image.names, image.replicas or ((),) * len(image.names), strict=True)
        )

    def lacks(self, images: Iterable[ImageFacts]) -> bool:
        """Whether some image is not present under one of its names, or that is unknown."""
        return any(self.replica(image.digest, name) != _PRESENT for image in images for name in image.names)


def _last_word(of_name: Iterable[Replica], destination: Destination) -> ReplicaState | None:
    return next((replica.state for replica in of_name if replica.destination == destination), None)


#: The states of a copy that is gone.
GONE = frozenset((ReplicaState.ABSENT, ReplicaState.ARCHIVED))


def looked(image: ImageFacts, destination: Destination, contents: Contents | None) -> ImageFacts:
    """The facts of an image after a look at a destination; None if the last look is too old to be believed.

    An image that is held there is not MISSING there. One that was never asked for is settled if it is present
    wherever it is expected (`settle`).
    """
    found = tuple([contents.replica(image.digest, name) if contents else None for name in image.names])
    replicas = _after_look(image.replicas, destination, found, forgets=contents is None)
    if replicas == image.replicas:
        return image
    return seen_at(image.seen(replicas), destination)


@lru_cache(maxsize=4096)
def _after_look(
    known: tuple[tuple[Replica, ...], ...],
    destination: Destination,
    found: tuple[tuple[ReplicaState, bool] | None, ...],
    *,
    forgets: bool,
) -> tuple[tuple[Replica, ...], ...]:
    """What is known under each name after a look. Almost all images have the same few looks behind them.

    A name of which the look does not tell keeps the last word, unless that is forgotten.
    """
    replicas = []
    for of_name, state in zip(known or ((),) * len(found), found, strict=True):
        if state is None and not forgets:
            replicas.append(of_name)
        else:
            others = [replica for replica in of_name if replica.destination != destination]
            replicas.append(tuple(sorted([*others, *([Replica(destination, *state)] if state else [])])))
    return _shared(tuple(replicas)) if any(replicas) else ()


@lru_cache(maxsize=4096)
def _shared(replicas: tuple[tuple[Replica, ...], ...]) -> tuple[tuple[Replica, ...], ...]:
    """One object for all images with equal replicas, which saves memory."""
    return replicas


def seen_at(image: ImageFacts, destination: Destination) -> ImageFacts:
    """The facts of an image that may be held at the destination now: it is not MISSING where it is held."""
    missing = Replication(destination, Status.MISSING)
    if destination not in image.held() or missing not in (image.replications or ()):
        return image
    others = (replication for replication in image.replications or () if replication != missing)
    replications = shared(tuple(sorted([*others, Replication(destination, Status.COMPLETE)])))
    state = image_state(replications, recent=image.state is ImageState.PENDING, rules_known=True)
    since = tuple(known for known in image.since if known.destination != destination)
    return replace(image, replications=replications, state=state, since=since)


def copy_went(before: ImageFacts, after: ImageFacts) -> bool:
    """Whether a look shows that a copy that was present is deleted or archived."""
    present = {
        r.destination for of_name in before.replicas for r in of_name if r.state == ReplicaState.PRESENT
    }
    return any(r.destination in present and r.state in GONE for of_name in after.replicas for r in of_name)


def settle(image: ImageFacts, expected: frozenset[Destination], *, at: float) -> ImageFacts:
    """The facts of an image that ECR was not asked about yet: COMPLETE if it is present where it should be.

    `at` is the monotonic time of the look.
    """
    if image.replications is not None or not expected:
        return image
    replications = complete_at(expected)
    settled = image.answered(
        replications, ImageState.SETTLED, unverified=image.unverified, since=(), at=at, good_until=inf
    )
    return settled if settled.confirmed else image


@lru_cache(maxsize=4096)
def complete_at(destinations: frozenset[Destination]) -> tuple[Replication, ...]:
    """COMPLETE at these destinations; one object for all such images, which saves memory and time."""
    return tuple(Replication(destination, Status.COMPLETE) for destination in sorted(destinations))


def renamed(image: ImageFacts, names: tuple[Name, ...], required: frozenset[Destination]) -> ImageFacts:
    """The facts of an image with other names. What was seen under the names that stay is kept."""
    known = dict(zip(image.names, image.replicas, strict=False))
    replicas = tuple(known.get(name, ()) for name in names)
    return replace(image, names=names, required=required, replicas=_shared(replicas) if any(replicas) else ())


def only_at(image: ImageFacts, destinations: Collection[Destination]) -> ImageFacts:
    """The facts of an image without what was seen at other destinations."""
    if all(replica.destination in destinations for of_name in image.replicas for replica in of_name):
        return image
    replicas = tuple(
        tuple(replica for replica in of_name if replica.destination in destinations)
        for of_name in image.replicas
    )
    return replace(image, replicas=_shared(replicas) if any(replicas) else ())


def before_arrival_forgotten(image: ImageFacts, arrived: Collection[Destination]) -> ImageFacts:
    """The facts of an image whose replication has just ended at these destinations.

    A look before that time may have seen that it was not there yet, which is not known any more.
    """
    replicas = tuple(
        tuple(r for r in of_name if r.destination not in arrived or r.state is ReplicaState.PRESENT)
        for of_name in image.replicas
    )
    if replicas == image.replicas:
        return image
    return replace(image, replicas=_shared(replicas) if any(replicas) else ())
