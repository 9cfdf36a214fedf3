"""Listing the images of one repository, pass after pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.polling.passes import ByName, Listing, Lookup, cheapest, too_long
from exporter.replication.model import Image, Name, Reason
from exporter.replication.targets import RepositoryTargets


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
