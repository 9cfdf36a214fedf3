"""One pass over what a registry holds: page by page, or by name. No calls are made here.

A pass says what to ask next, takes the answers, and knows when it is complete.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Generic, TypeVar

from exporter.replication.model import LOOKUP_SIZE, Image, Name, Page
from exporter.replication.targets import RepositoryTargets

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ByPage:
    """Ask for a page of the listing."""

    token: str | None


@dataclass(frozen=True, slots=True)
class ByName:
    """Ask for at most 100 names at once."""

    names: tuple[Name, ...]


#: Pages of the longest listing: a hundred times what ECR's quota of images fills.
MOST_PAGES = 10_000


class Listing(Generic[T]):
    """One pass over a whole listing, page by page."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self.pages = 0
        self._token: str | None = None
        self._tokens: set[str] = set()
        #: The first item of each page: a page may come again under another token.
        self._firsts: set[T] = set()

    def question(self) -> ByPage | None:
        """What to ask next; None when the pass is complete."""
        return None if self.pages and self._token is None else ByPage(self._token)

    def answered(self, page: Page[T]) -> bool:
        """Take a page; False if the pages lead in a circle, so that the pass would never end."""
        self.items.extend(page.items)
        self.pages += 1
        self._token = page.token
        if page.token in self._tokens or not self._firsts.isdisjoint(page.items[:1]):
            return False
        if self.pages > MOST_PAGES:
            return False
        self._firsts.update(page.items[:1])
        if page.token is not None:
            self._tokens.add(page.token)
        return True


class Lookup:
    """One pass over the images of given names, at most 100 a call.

    One unknown name fails its whole call, so such a batch is halved until the unknown name is alone. ECR
    may also leave a name out of an answer. Names that were missing the last time are asked for alone from
    the start.
    """

    def __init__(self, names: Iterable[Name], *, suspects: frozenset[Name] = frozenset()) -> None:
        names = sorted(names)
        likely = [name for name in names if name not in suspects]
        self.items: list[Image] = []
        self.missing: set[Name] = set()
        self._batches = deque(tuple(likely[i : i + LOOKUP_SIZE]) for i in range(0, len(likely), LOOKUP_SIZE))
        self._batches.extend((name,) for name in names if name in suspects)

    def question(self) -> ByName | None:
        """What to ask next; None when the pass is complete."""
        return ByName(self._batches[0]) if self._batches else None

    def answered(self, images: Iterable[Image]) -> None:
        """Take the images of the last question. A name that they leave out is asked for once alone."""
        batch = self._batches.popleft()
        images = tuple(images)
        self.items.extend(images)
        found = {Name(tag, "") for image in images for tag in image.tags}
        found |= {Name("", image.digest) for image in images}
        absent = [name for name in batch if name not in found]
        if len(batch) == 1:
            self.missing.update(absent)
        else:
            self._batches.extend((name,) for name in absent)

    def not_found(self) -> None:
        """At least one name of the last question does not exist."""
        batch = self._batches.popleft()
        if len(batch) == 1:
            self.missing.add(batch[0])
        else:
            middle = len(batch) // 2
            self._batches.extendleft((batch[middle:], batch[:middle]))

    @staticmethod
    def calls(names: frozenset[Name], suspects: frozenset[Name]) -> int:
        """How many calls a pass costs, if the suspects are still unknown and the others still exist."""
        unknown = len(names & suspects)
        return ceil((len(names) - unknown) / LOOKUP_SIZE) + unknown


def cheapest(
    targets: RepositoryTargets, *, pages: int | None, suspects: frozenset[Name]
) -> Listing[Image] | Lookup:
    """The pass that costs the fewest calls: a look-up of names, or the listing.

    `pages` is the length of the last listing. Before the first one, a listing is tried unless a single
    look-up is enough.
    """
    names = targets.names
    if not names or Lookup.calls(names, suspects) > (pages or 1):
        return Listing()
    return Lookup(names, suspects=suspects)


def too_long(listing: Listing[Image], targets: RepositoryTargets, *, suspects: frozenset[Name]) -> bool:
    """Whether a listing costs more calls than a look-up, so that it is given up."""
    names = targets.names
    return names is not None and listing.pages > Lookup.calls(names, suspects)
