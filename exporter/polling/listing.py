"""Passes over what a registry holds: page by page, or by name. A pass makes no call itself.

It says what to ask next, takes the answers, and knows when it is complete. `ImageListing` makes one pass
over the images of a repository after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import ceil
from typing import Any, Generic, TypeVar

from exporter.aws.ecr import EcrClient, TagStatus
from exporter.aws.errors import ECRError
from exporter.replication.model import LOOKUP_SIZE, Image, Name, Page, Reason
from exporter.replication.targets import RepositoryTargets

T = TypeVar("T")

#: Pages of the longest listing: a hundred times what ECR's quota of images fills.
MOST_PAGES = 10_000


class Listing(Generic[T]):
    """One pass over a whole listing, page by page. `action` is the IAM action of its calls."""

    def __init__(self, action: str) -> None:
        self.items: list[T] = []
        self.pages = 0
        #: The token of the next page.
        self.token: str | None = None
        self._action = action
        self._tokens: set[str] = set()
        #: The first item of each page: a page may come again under another token.
        self._firsts: set[T] = set()

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to ask."""
        return self.pages > 0 and self.token is None

    def answered(self, page: Page[T]) -> None:
        """Take a page. Raises ECRError if a page was repeated or there are too many, so that a pass ends."""
        self.items.extend(page.items)
        self.pages += 1
        self.token = page.token
        again = page.token in self._tokens or not self._firsts.isdisjoint(page.items[:1])
        if again or self.pages > MOST_PAGES:
            message = "a page was repeated" if again else f"more than {MOST_PAGES} pages"
            raise ECRError(Reason.INVALID, action=self._action, code="RepeatedToken", message=message)
        self._firsts.update(page.items[:1])
        if page.token is not None:
            self._tokens.add(page.token)


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

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to ask."""
        return not self._batches

    @property
    def names(self) -> tuple[Name, ...]:
        """The names to ask for next."""
        return self._batches[0]

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
        return Listing("ecr:DescribeImages")
    return Lookup(names, suspects=suspects)


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
        """Whether a pass has begun. An answer that comes while none has is to an earlier question."""
        return self._pass is not None

    def begin_again(self, targets: RepositoryTargets | None = None) -> None:
        """Begin a new pass with the next call, for other targets if they are given."""
        self._targets = targets or self._targets
        self._pass = None

    def call(self, client: EcrClient) -> Callable[[], Any]:
        """The next call of the pass; of a new pass if none is under way."""
        if self._pass is None:
            self._pass = cheapest(self._targets, pages=self._pages, suspects=self._suspects)
        if isinstance(self._pass, Lookup):
            return partial(client.find, self._repository, self._pass.names)
        tags: TagStatus = "ANY" if self._targets.untagged else "TAGGED"
        return partial(client.images, self._repository, self._pass.token, tags=tags)

    @property
    def calls(self) -> int:
        """How many calls the next pass takes, if all is as it was at the last one."""
        names, pages = self._targets.names, self._pages or 1
        return min(pages, Lookup.calls(names, self._suspects)) if names else pages

    @property
    def untagged(self) -> bool:
        """Whether images without a tag are listed."""
        return self._targets.untagged

    @property
    def pages(self) -> int | None:
        """How many pages the last listing had; None if names are looked up."""
        return self._pages

    def answered(self, answer: Any) -> Sequence[Image] | None:
        """Take an answer; all images if it is the last of the pass, None if not.

        Raises ECRError if a page was repeated.
        """
        if self._pass:
            self._pass.answered(answer)
        return self._result()

    def not_found(self) -> tuple[bool, Sequence[Image] | None]:
        """Take that a name does not exist: whether names were asked for, and the result as `answered`."""
        if not isinstance(self._pass, Lookup):
            return False, None
        self._pass.not_found()
        return True, self._result()

    def _result(self) -> Sequence[Image] | None:
        present = self._pass
        if present is None or not present.complete:
            return None
        self._pass = None
        if isinstance(present, Lookup):
            self._suspects = frozenset(present.missing)
            # A listing has no archived images. AWS does not document whether a look-up finds them.
            return [image for image in present.items if not image.archived]
        self._pages = present.pages
        self._suspects = self._targets.missing(present.items)
        return present.items
