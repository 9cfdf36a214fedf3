"""Which images fit under `max_images`: the newest of all repositories of all registries together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

from sortedcontainers import SortedList

from exporter.replication.model import Destination, Name
from exporter.replication.steps import Steps, sliced


class Selectable(Protocol):
    """An image that targets select: a `Watched`, or the facts of one."""

    @property
    def digest(self) -> str: ...
    @property
    def names(self) -> tuple[Name, ...]: ...
    @property
    def pushed_at(self) -> float | None: ...
    @property
    def replicated_from(self) -> float | None: ...
    @property
    def required(self) -> frozenset[Destination]: ...


#: A place in the order by push time, then by group and digest, so that the order is total and repeatable.
_Age: TypeAlias = tuple[float, str, str]


#: So many times the names that fit may be shown until older images give way, because that costs time.
CROWDED = 1.1


class Newest:
    """Which images fit under `max_images`: the newest of all groups together.

    A group is a repository of a registry. An image takes one place for each of its names, because each name
    has series of its own. An image whose names do not all fit is left out, and so are all older ones.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._groups: dict[str, Mapping[str, Selectable]] = {}
        #: The groups whose mapping belongs to another one, who may change it.
        self._lent: set[str] = set()
        self._total = 0
        #: The age of each image, once for each of its names; None while all fit. To add or remove one costs
        #: some microseconds.
        self._places: SortedList[_Age] | None = None
        self._was_skipping = False
        #: How many names each group shows, and all together.
        self._shows: dict[str, int] = {}
        self._shown = 0
        #: Images that are younger fit; None while all fit.
        self.floor: _Age | None = None

    def resize(self, limit: int) -> bool:
        """Set another limit. True if other images fit now."""
        before, self.limit = self.floor, limit
        self._find_floor()
        return self.floor != before

    @property
    def skipped(self) -> int:
        """How many names do not fit."""
        return self._places.bisect_right(self.floor) if self._places is not None and self.floor else 0

    @property
    def crowded(self) -> bool:
        """Whether far more names are shown than fit: images that came later are younger."""
        return self.floor is not None and self._shown > self.limit * CROWDED

    def shows(self, group: str, names: int) -> None:
        """Take how many names a group shows now."""
        self._shown += names - self._shows.get(group, 0)
        self._shows[group] = names
        if not names:
            del self._shows[group]

    def newly_skipped(self) -> bool:
        """True once when images stop to fit, until all of them fit again."""
        before, self._was_skipping = self._was_skipping, self.floor is not None
        return self._was_skipping and not before

    def selected(self, group: str) -> Mapping[str, Selectable]:
        """What the group selects, whether it fits or not, by digest."""
        return self._groups.get(group, {})

    def put(self, group: str, images: Mapping[str, Selectable]) -> Steps[None]:
        """Set what a group selects, by digest; nothing if the group is gone."""
        # It holds what is counted at each moment.
        held = self._groups[group] = dict(self._groups.get(group, {}))
        self._lent.discard(group)
        for some in sliced([*(held.keys() - images.keys()), *images]):
            for digest in some:
                old, new = held.get(digest), images.get(digest)
                if old and new and _place(old) == _place(new):
                    continue
                if old:
                    self._move(held.pop(digest), group, gone=True)
                if new:
                    held[digest] = new
                    self._move(new, group)
            self._find_floor()
            yield
        if images:
            self._groups[group] = images
        else:
            del self._groups[group]

    def lend(self, group: str, images: Mapping[str, Selectable]) -> None:
        """Take another mapping that says the same of a group, so that it need not be kept twice.

        Only while all images fit, because `images` may not have more than those.
        """
        if self.floor is None and group in self._groups:
            self._groups[group] = images
            self._lent.add(group)

    def keep(self, group: str) -> None:
        """Keep a copy of a mapping that was lent, before its owner drops images that the group selects."""
        if group in self._lent:
            self._groups[group] = dict(self._groups[group])
            self._lent.discard(group)

    def _move(self, image: Selectable, group: str, *, gone: bool = False) -> None:
        self._total += -len(image.names) if gone else len(image.names)
        if self._places is None:
            return
        age = age_of(image, group)
        for _ in image.names:
            if gone:
                self._places.remove(age)
            else:
                self._places.add(age)

    def admitted(self, group: str, floor: _Age | None) -> Steps[Mapping[str, Selectable]]:
        """The images of the group that are younger than the floor, by digest."""
        if floor is None:
            return self.selected(group)
        self.keep(group)
        oldest = floor[0]
        found: dict[str, Selectable] = {}
        for some in sliced(self.selected(group).items()):
            found.update(
                (digest, image)
                for digest, image in some
                # Most are decided by the push time alone, and there may be a hundred thousand.
                if ((at := image.pushed_at) is not None and at > oldest) or age_of(image, group) > floor
            )
            yield
        return found

    def _find_floor(self) -> None:
        left_out = self._total - self.limit
        if left_out <= 0:
            self._places = None
        elif self._places is None:
            self._places = SortedList(
                age_of(image, group)
                for group, images in self._groups.items()
                for image in images.values()
                for _ in image.names
            )
        self.floor = self._places[left_out - 1] if self._places is not None else None
        self._was_skipping = self._was_skipping and left_out > 0


def _place(image: Selectable) -> tuple[float | None, int]:
    """What decides which places an image has."""
    return image.pushed_at, len(image.names)


def age_of(image: Selectable, group: str = "") -> _Age:
    """Its place in the order. An image without a push time is the oldest."""
    pushed_at = image.pushed_at
    return (pushed_at if pushed_at is not None else float("-inf"), group, image.digest)
