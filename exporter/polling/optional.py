"""A listing without which nothing else changes: its operation may be absent from a partition or denied."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.polling.calls import Call, Job
from exporter.polling.context import Asker, Context
from exporter.polling.listing import Listing
from exporter.replication.model import FailureScope, Page, Reason

T = TypeVar("T")

#: Seconds after which a listing is tried again that AWS refused, and the most after another failure.
REFUSED_INTERVAL = 3600.0
LONGEST_PAUSE = 300.0


class OptionalListing(Asker, Generic[T]):
    """Lists something of a registry now and then. A refusal is logged once, and no target fails."""

    def __init__(self, context: Context, job: Job, action: str) -> None:
        super().__init__(context)
        self._job = job
        #: The IAM action.
        self._action = action
        self._scope = FailureScope(job.operation)
        self._listing: Listing[T] | None = None
        self._refused = False
        #: Monotonic time before which a listing that failed is not tried again.
        self._retry_at = float("-inf")

    @abstractmethod
    def page(self, client: EcrClient, token: str | None) -> Page[T]:
        """One page, asked for in a worker."""

    @abstractmethod
    def listed(self, items: Sequence[T]) -> float:
        """Take a complete listing; the seconds until the next one."""

    @abstractmethod
    def warn_of_refusal(self, error: ECRError) -> None:
        """Log that AWS refuses the listing."""

    def ask(self) -> None:
        """List now."""
        self._pacing.book(self._job)

    def ask_if_refused(self) -> None:
        """List now if AWS refused it the last time: the permission may be there."""
        if self._refused:
            self.ask()

    def question(self, job: Job, client: EcrClient) -> Callable[[], Any]:
        del job
        self._listing = self._listing or Listing(self._action)
        return partial(self.page, client, self._listing.token)

    def answered(self, call: Call, answer: Page[T]) -> None:
        """Take a page. What is known changes with the last one."""
        listing = self._listing
        if listing:
            listing.answered(answer)
        if listing is None or not listing.complete:
            self.ask_again(call.job)
            return
        self._listing, self._refused = None, False
        self._context.works(self._scope)
        self.ask_again(call.job, due=self._pacing.later(self.listed(listing.items)))

    def failed(self, call: Call, error: ECRError) -> None:
        """Take that a call failed. The targets do not fail because of it."""
        context, first_page = self._context, not (self._listing and self._listing.pages)
        self._listing = None
        # A token that AWS takes no longer is INVALID too.
        if error.reason in (Reason.ACCESS_DENIED, Reason.INVALID) and first_page and not error.everything:
            context.works(self._scope)
            if not self._refused:
                self._refused = True
                self.warn_of_refusal(error)
            self._retry_at = self._pacing.later(REFUSED_INTERVAL)
        else:
            self._retry_at = context.fail(self._scope, error, call, cap=LONGEST_PAUSE, fails_targets=False)
        self.ask_again(call.job, due=self._retry_at)
