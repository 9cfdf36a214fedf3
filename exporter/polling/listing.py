"""Passes over what a registry holds: page by page, or by name. A pass makes no call itself.

It says what to ask next, takes the answers, and knows when it is complete. `ImageListing` makes one pass
over the images of a repository after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any, Generic, TypeVar

from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.replication.model import LOOKUP_SIZE, Image, Name, Page, Reason
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


class ImageListing:
    """The present pass over the images of a repository, and what earlier passes teach about the next."""

    def __init__(self, repository: str, targets: RepositoryTargets) -> None:
        self._repository = repository
        self._targets = targets
        self._pass: Listing[Image] | Lookup | None = None
        #: How many pages the last listing had, and which names did not exist.
        self._pages: int | None = None
        self._suspects: frozenset[Name] = frozenset()

    @property
    def under_way(self) -> bool:
        """Whether a pass has begun. An answer that comes while none has is to a question of before."""
        return self._pass is not None

    def retarget(self, targets: RepositoryTargets) -> None:
        """Begin again, for other targets."""
        self._targets = targets
        self._pass = None

    def give_up(self) -> None:
        """Begin again with the next call."""
        self._pass = None

    def call(self, client: EcrClient) -> Callable[[], Any]:
        """The next call of the pass; of a new pass if none is under way."""
        if self._pass is None:
            self._pass = cheapest(self._targets, pages=self._pages, suspects=self._suspects)
        question = self._pass.question()
        if isinstance(question, ByName):
            return partial(client.find, self._repository, question.names)
        token = question.token if question else None
        return partial(client.images, self._repository, token, untagged=self._targets.untagged)

    def answered(self, answer: Any) -> Sequence[Image] | None:
        """Take an answer; all images if it is the last of the pass, None if not.

        Raises ECRError if the pages lead in a circle.
        """
        if isinstance(self._pass, Lookup):
            self._pass.answered(answer)
        elif self._pass and not self._pass.answered(answer):
            raise circle("ecr:DescribeImages")
        return self._result()

    def not_found(self) -> tuple[bool, Sequence[Image] | None]:
        """Take that a name does not exist: whether names were asked for, and the result as `answered`."""
        if not isinstance(self._pass, Lookup):
            return False, None
        self._pass.not_found()
        return True, self._result()

    def _result(self) -> Sequence[Image] | None:
        present = self._pass
        if present is None:
            return None
        if present.question():
            if isinstance(present, Listing) and too_long(present, self._targets, suspects=self._suspects):
                self._pages = present.pages
                self._pass = None
            return None
        if isinstance(present, Lookup):
            self._suspects = frozenset(present.missing)
        else:
            self._pages = present.pages
            self._suspects = self._targets.missing(present.items)
        self._pass = None
        return present.items


def circle(action: str) -> ECRError:
    """The error of a listing that never ends."""
    return ECRError(Reason.INVALID, action=action, code="RepeatedToken", message="the pages lead in a circle")
