"""Asking for the replication status of the images of one repository.

An answer changes the facts of its image and sets the time of the next question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from exporter.aws.errors import ECRError
from exporter.polling.calls import Call, Job, Kind
from exporter.polling.failures import OUTAGE_AFTER, Parts
from exporter.replication.facts import ImageFacts, RepositoryFacts
from exporter.replication.model import (
    Destination,
    FailureScope,
    ImageState,
    Reason,
    Replication,
    Source,
    Status,
)
from exporter.replication.state_file import Settled
from exporter.replication.status import RECENT, completed, evaluate, missing_only_where_expected
from exporter.replication.store import Store

#: So many unknown statuses are logged for a registry; the metrics show all.
MOST_UNKNOWN_STATUSES = 20
_KNOWN_STATUSES = frozenset(Status)

#: Takes a replication that ended: where from, where to, and how many seconds it took.
OnComplete = Callable[[Source, Destination, float], None]


class ImageStatuses:
    """The status calls of one repository."""

    def __init__(
        self,
        repository: str,
        facts: RepositoryFacts,
        *,
        parts: Parts,
        store: Store,
        on_complete: OnComplete,
        unknown_statuses: set[str],
    ) -> None:
        self._name = repository
        self._facts = facts
        self._parts = parts
        self._registry = parts.facts
        self._pacing = parts.pacing
        self._clock = parts.clock
        self._store = store
        self._on_complete = on_complete
        #: Statuses that were logged; shared by the repositories of the registry.
        self._unknown_statuses = unknown_statuses
        self._scope = FailureScope("status", repository)
        #: Digests that miss the answer that the first round waits for; None before the first listing.
        self._first_round: set[str] | None = None
        #: Digests that were pushed again while their status call was under way.
        self._outdated: set[str] = set()
        #: Digests whose last evaluation is unverified.
        self._unverified: set[str] = set()
        #: Digests whose status call got no answer since any call of the repository did.
        self._unanswered: set[str] = set()

    def job(self, digest: str) -> Job:
        """The job that asks for the status of an image."""
        return Job(Kind.STATUS, self._name, digest)

    def ask(self, image: ImageFacts, *, due: float | None = None) -> None:
        """Ask for the status of an image at a monotonic time, now by default."""
        urgent = image.state in (ImageState.NEW, ImageState.PENDING)
        rank = image.replicated_from or 0.0 if urgent else None
        self._pacing.book(self.job(image.digest), due=due, rank=rank)

    def ask_again(self, digest: str, *, due: float | None) -> None:
        """Ask again, after a call that gave nothing; not if the image is watched no longer."""
        if image := self._facts.images.get(digest):
            self.ask(image, due=due)

    # -- what is watched ---------------------------------------------------------------------

    def added(self, image: ImageFacts) -> None:
        """Ask for an image that is new, or was replicated again."""
        job = self.job(image.digest)
        if job in self._parts.in_flight:
            self._outdated.add(image.digest)
        if image.replications is None:
            self.ask(image)
        else:
            self.ask(image, due=image.answered_at + self._pacing.intervals.settled)

    def removed(self, digest: str) -> None:
        """Do not ask for an image any more."""
        self._parts.works(FailureScope("status", self._name, digest))
        self._pacing.cancel(self.job(digest))
        self._unverified.discard(digest)
        self._answered(digest)

    def all_removed(self) -> None:
        """No image is left to ask for."""
        self._works()

    def recall(self, image: ImageFacts, settled: Settled | None) -> ImageFacts:
        """The facts of an image with what the state file remembers of it."""
        if settled is None:
            return image
        interval, stale_after = self._pacing.intervals.settled, self._pacing.stale_after
        return settled.recall(image, clock=self._clock, settled_interval=interval, stale_after=stale_after)

    def begin_first_round(self) -> None:
        """Wait for an answer about each image that has none; a round that began goes on."""
        if self._first_round is None:
            images = self._facts.images.items()
            self._first_round = {digest for digest, image in images if image.replications is None}
        self._answered()

    def restart_first_round(self) -> None:
        """Wait for another listing, for other targets."""
        self._first_round = None
        with self._store.lock:
            self._facts.asked = False

    def _answered(self, digest: str = "") -> None:
        """Note the first answer about an image. The last of them ends the first round."""
        if self._first_round is None:
            return
        self._first_round.discard(digest)
        if not self._first_round and not self._facts.asked:
            with self._store.lock:
                self._facts.asked = True
            self._parts.rounds.changed()

    # -- answers -----------------------------------------------------------------------------

    def answered(self, job: Job, reported: tuple[Replication, ...]) -> None:
        """Take what ECR reports of an image."""
        before = self._facts.images.get(job.digest)
        if before is None:
            return  # deleted, or no longer selected, while the call was under way
        if job.digest in self._outdated:
            self._outdated.discard(job.digest)
            self.ask(before)
            return
        self._unanswered.clear()
        after = self._evaluated(before, reported)
        self._observe(before, after.replications or ())
        with self._store.lock:
            if after != before or after.answered_at > before.good_until:
                self._store.changed()
            self._facts.put(after)
        self._works()
        self._parts.works(FailureScope("status", self._name, job.digest))
        self.ask(after, due=self._pacing.later(self._pacing.intervals.after(after.state)))
        self._answered(job.digest)

    def _works(self) -> None:
        """Status calls of the repository work, or none is needed."""
        self._parts.works(self._scope)
        self._pacing.release(self._name)

    def _evaluated(self, before: ImageFacts, reported: tuple[Replication, ...]) -> ImageFacts:
        now = self._clock.monotonic()
        stale_after = self._pacing.stale_after
        rules = self._registry.believed_rules(now, stale_after)
        replications, state, unverified = evaluate(
            reported,
            rules.destinations(self._name) if rules else None,
            rules_apply=self._registry.rules_cover(before),
            rules_expired=rules is None and self._registry.rules is not None,
            recent=self._younger(before, RECENT),
        )
        (self._unverified.add if unverified else self._unverified.discard)(before.digest)
        good_until = now + self._pacing.intervals.after(state) + stale_after
        return before.answered(replications, state, unverified=unverified, at=now, good_until=good_until)

    def failed(self, call: Call, error: ECRError) -> None:
        """Take that a status call failed."""
        digest = call.job.digest
        image = self._facts.images.get(digest)
        if image is None:
            return
        if error.reason is Reason.UNAVAILABLE:
            self._unanswered.add(digest)
        failures, facts = self._parts.failures, self._facts.failures
        scope = FailureScope("status", self._name, digest)
        if error.reason in (Reason.IMAGE_NOT_FOUND, Reason.REPOSITORY_NOT_FOUND):
            # The listing tells whether it is gone.
            failures.fail(scope, error, facts, call=call, reported_from=2)
            self.ask(image, due=self._pacing.later(self._pacing.intervals.failed))
            self._pacing.book(Job(Kind.IMAGES, self._name))
        elif error.reason is Reason.INVALID:
            failures.fail(scope, error, facts, call=call)
            self.ask(image, due=self._pacing.later(self._pacing.intervals.failed))
        elif error.reason is Reason.UNAVAILABLE and len(self._unanswered) < OUTAGE_AFTER:
            self.ask(image, due=failures.fail(scope, error, facts, call=call))
        else:
            self._pacing.hold(self._name, until=failures.fail(self._scope, error, facts, call=call))
            self.ask(image)

    def _observe(self, before: ImageFacts, after: Iterable[Replication]) -> None:
        """Report replications that ended, and log unknown statuses."""
        after = tuple(after)
        if before.replicated_from is not None:
            seconds = max(0.0, self._clock.time() - before.replicated_from)
            for destination in completed(before, after):
                self._on_complete(self._registry.source, destination, seconds)
        for status in {r.status for r in after} - _KNOWN_STATUSES - self._unknown_statuses:
            if len(self._unknown_statuses) == MOST_UNKNOWN_STATUSES:
                return
            self._unknown_statuses.add(status)
            self._parts.warned(
                "unheard_of_status", status=status, repository=self._name, digest=before.digest
            )

    def _younger(self, image: ImageFacts, seconds: float) -> bool:
        """Whether the replication of the image began less than so many seconds ago."""
        began = image.replicated_from
        return began is not None and self._clock.time() - began < seconds

    # -- rules and intervals -----------------------------------------------------------------

    def rules_changed(self, *, expected: frozenset[Destination]) -> None:
        """Nothing is expected at other destinations any more. Ask for all images again."""
        with self._store.lock:
            self._store.changed()
            for image in list(self._facts.images.values()):
                self._facts.put(missing_only_where_expected(image, expected))
        for image in self._facts.images.values():
            self.ask(image)

    def rules_confirmed(self) -> None:
        """The rules are the same: ask again for images that they apply to now."""
        for digest in self._unverified:
            image = self._facts.images[digest]
            if image.unverified and self._registry.rules_cover(image):
                self.ask(image)

    def intervals_changed(self) -> None:
        """Count other intervals from the last answers, so that nothing is asked needlessly."""
        with self._store.lock:
            self._store.changed()
            for image in list(self._facts.images.values()):
                if image.replications is not None:
                    interval = self._pacing.intervals.after(image.state)
                    good_until = image.answered_at + interval + self._pacing.stale_after
                    self._facts.put(replace(image, good_until=good_until))
                    self.ask(image, due=image.answered_at + interval)

    def retire(self, images: Mapping[str, ImageFacts]) -> None:
        """Ask for nothing any more."""
        for digest in images:
            self._pacing.cancel(self.job(digest))
