"""Asking for the replication status of the images of one repository.

An answer changes the facts of its image and sets the time of the next question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from heapq import nlargest
from math import inf
from typing import Any

from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.aws.events import Event, EventKind
from exporter.polling.access import Access
from exporter.polling.calls import Call, Job
from exporter.polling.context import Asker, Context, Outcome
from exporter.polling.copies import Copies
from exporter.polling.listing import ImageListing
from exporter.polling.rate_limit import Operation
from exporter.polling.reach import OUTAGE_AFTER
from exporter.replication.durations import SLACK, Durations
from exporter.replication.facts import NOWHERE, ImageFacts, RepositoryFacts
from exporter.replication.model import (
    Destination,
    FailureScope,
    ImageState,
    Reason,
    Replication,
    Status,
)
from exporter.replication.replicas import before_arrival_forgotten, copy_went, only_at
from exporter.replication.state_file import Remembered
from exporter.replication.status import (
    RECENT,
    evaluate,
    missing_only_where_expected,
    states_since,
    tells_of,
)
from exporter.replication.steps import Steps, sliced

#: Seconds for which old images that are new here wait for a look at their copies, before ECR is asked.
LOOK_PATIENCE = 60.0
#: How many images are asked about when one of them failed and it is not known which.
NEWEST_UNFINISHED = 10
_KNOWN_STATUSES = frozenset(Status)


class StatusPoller(Asker):
    """The status calls of one repository."""

    def __init__(
        self,
        context: Context,
        repository: str,
        facts: RepositoryFacts,
        listing: ImageListing,
        accesses: Iterable[Access],
        *,
        list_soon: Callable[[], None],
    ) -> None:
        super().__init__(context, accesses)
        self._list_soon = list_soon
        self.copies = Copies(
            context, repository, facts, listing, take=self._take_look, after=self.ask_for_the_rest
        )
        self._name = repository
        self._facts = facts
        self._scope = FailureScope("status", repository)
        self.durations = Durations()
        #: Digests that miss the answer that the first round waits for; None before the first listing.
        self._first_round: set[str] | None = None
        #: Digests that were pushed again while their status call was in flight.
        self._outdated: set[str] = set()
        #: Digests whose last evaluation is unverified.
        self._unverified: set[str] = set()
        #: Digests whose status call got no answer since any call of the repository did.
        self._unanswered: set[str] = set()
        #: Whether some images are not asked for, because a look may settle them.
        self._await_looks = False
        self._retired = False
        #: Monotonic time at which an event last had the unfinished images asked about.
        self._failure_at = -inf

    def _job(self, digest: str) -> Job:
        return Job(Operation.STATUS, self._name, digest)

    def _ask(self, image: ImageFacts, *, due: float | None = None) -> None:
        """Ask for the status of an image at a monotonic time, now by default."""
        if self._retired:
            return  # a look is still being taken
        urgent = image.state in (ImageState.NEW, ImageState.PENDING)
        rank = image.replicated_from or 0.0 if urgent else None
        self._pacing.book(self._job(image.digest), due=due, rank=rank)

    # -- what is watched ---------------------------------------------------------------------

    def added(self, image: ImageFacts, *, may_wait: bool) -> None:
        """Ask for an image that is new, or was replicated again. An old one `may_wait` for a look."""
        self.durations.added(image)
        is_old = self._is_old(image) and not self.durations.awaits(image.digest)
        if image.replications is None and may_wait and is_old:
            if not self._await_looks:
                self._await_looks = True
                self._context.shared.turns.begin_later(self.ask_for_the_rest(), seconds=LOOK_PATIENCE)
        elif image.replications is None:
            self._ask_after(image)
        else:
            if self._job(image.digest) in self._context.in_flight:
                self._outdated.add(image.digest)
            self._ask(image, due=image.answered_at + self._pacing.settings.settled_interval)

    def _is_old(self, image: ImageFacts) -> bool:
        age = self._age(image)
        return age is not None and age >= RECENT

    def ask_for_the_rest(self) -> Steps[None]:
        """Ask for the old images that no look has settled: after all looks, or when these take long."""
        if not self._await_looks:
            return
        self._await_looks = False
        for some in sliced(list(self._facts.images)):
            for image in filter(None, map(self._facts.images.get, some)):
                job = self._job(image.digest)
                is_asked = self._pacing.due(job) is not None or job in self._context.in_flight
                if image.replications is None and not is_asked:
                    self._ask(image)
            yield

    def renamed(self, before: ImageFacts) -> None:
        """Take other names of an image, or other destinations at which it must arrive."""
        image = self._facts.images[before.digest]
        if before.confirmed and not image.confirmed:
            with self._store.lock:
                self._unconfirm(image)
        if before.required != image.required:
            self._ask(image)
        if new := set(image.names) - set(before.names):
            self.copies.look_soon(image, image.complete_at(), new)

    def removed(self, digest: str) -> None:
        """Do not ask for an image any more."""
        self._context.works(FailureScope("status", self._name, digest))
        self._pacing.cancel(self._job(digest))
        self._unverified.discard(digest)
        self.durations.removed(digest)
        self.note_first_answer(digest)

    def recall(self, image: ImageFacts, remembered: Remembered | None) -> ImageFacts:
        """The facts of an image with what the state file remembers of it."""
        if remembered is None:
            return image
        settings = self._pacing.settings
        return remembered.recall(
            image,
            clock=self._clock,
            expected=(self._registry.expected(self._name) or NOWHERE) | image.required,
            settled_interval=settings.settled_interval,
            stale_after=settings.stale_after,
        )

    def begin_first_round(self) -> None:
        """Wait for an answer about each image that has none; a round that began goes on."""
        if self._first_round is None:
            images = self._facts.images.items()
            self._first_round = {digest for digest, image in images if image.replications is None}
        self.note_first_answer()

    def restart_first_round(self) -> None:
        """Wait for another listing, for other targets."""
        self._first_round = None
        with self._store.lock:
            self._facts.asked = False

    def note_first_answer(self, digest: str = "") -> None:
        """Note that nothing more is expected of an image. The last of them ends the first round."""
        if self._first_round is None:
            return
        self._first_round.discard(digest)
        if not self._first_round and not self._facts.asked:
            self._first_round = set()  # a set that was emptied keeps its memory
            with self._store.lock:
                self._facts.asked = True
            self._context.targets_changed = True

    # -- events ------------------------------------------------------------------------------

    def happened(self, event: Event) -> Outcome:
        """Take that a replication ended: ask about the image, and have its copy looked at."""
        destination = Destination(event.place.region, event.place.registry_id)
        if event.kind is EventKind.REPLICATE_IMAGE:
            return self._replication_failed(destination)
        if event.kind is not EventKind.REPLICATE:
            return Outcome.FOREIGN
        now = self._clock.time()
        if event.succeeded and event.at is not None:
            self.durations.ended(event.digest, destination, event.at, now=now)
        image = self._facts.images.get(event.digest)
        if image is None:
            return Outcome.FOREIGN
        said = Status.COMPLETE if event.succeeded else Status.FAILED
        known = any(r.destination == destination and r.status == said for r in image.replications or ())
        answered = now - (self._clock.monotonic() - image.answered_at)
        if image.confirmed or (known and event.at is not None and event.at + SLACK < answered):
            return Outcome.OLD
        if event.succeeded and destination in image.complete_at():
            self.copies.look_soon(image, [destination], image.names)  # it may have come under another tag
        else:
            self._ask_after(image)
        return Outcome.USED

    def _replication_failed(self, destination: Destination) -> Outcome:
        """Take that some image failed: ask about the newest unfinished ones, unless that was done lately."""
        if destination not in self.copies.destinations:
            return Outcome.FOREIGN
        unfinished = (i for i in self._facts.images.values() if i.state is ImageState.PENDING)
        newest = nlargest(NEWEST_UNFINISHED, unfinished, key=lambda image: image.replicated_from or 0.0)
        if not newest:
            return Outcome.FOREIGN
        now = self._clock.monotonic()
        if now < self._failure_at + self._pacing.settings.pending_interval:
            return Outcome.OLD
        self._failure_at = now
        for image in newest:
            self._ask_after(image)
        return Outcome.USED

    def _ask_after(self, image: ImageFacts) -> None:
        """Ask about an image now. A call that is in flight may not know yet what an event says."""
        if self._job(image.digest) in self._context.in_flight:
            self._outdated.add(image.digest)
        self._ask(image)

    # -- calls -------------------------------------------------------------------------------

    def question(self, job: Job, client: EcrClient) -> Callable[[], Any]:
        return lambda: client.status(self._name, job.digest)

    def ask_again(self, job: Job, *, due: float | None = None) -> None:
        """Ask again, after a call that gave nothing; not if the image is watched no longer."""
        if image := self._facts.images.get(job.digest):
            self._ask(image, due=due)

    def answered(self, call: Call, answer: tuple[Replication, ...]) -> None:
        """Take what ECR reports of an image."""
        digest = call.job.digest
        before = self._facts.images.get(digest)
        if before is None:
            return  # deleted, or no longer selected, while the call was in flight
        if digest in self._outdated:
            self._outdated.discard(digest)
            self._ask(before)
            return
        self._unanswered.clear()
        after = self._evaluated(before, answer)
        arrived = self.copies.arrived(before, after)
        after = before_arrival_forgotten(after, arrived)
        self.copies.find_destinations(r.destination for r in answer)
        self._observe(after, reported=frozenset(replication.destination for replication in answer))
        with self._store.lock:
            if after != before or after.answered_at > before.good_until:
                self._store.changed()
            self._facts.put(after)
        self._context.transitions.note(self._name, before, after)
        self.works()
        self._context.works(FailureScope("status", self._name, digest))
        if not after.confirmed:
            self._ask(after, due=self._pacing.later(self._interval(after)))
        self.copies.look_soon(after, [*arrived, *self.copies.unseen(after)], after.names)
        self.note_first_answer(digest)

    def works(self) -> None:
        """Status calls of the repository work, or none is needed."""
        self._context.works(self._scope)
        self._pacing.release(self._name)

    def _age(self, image: ImageFacts) -> float | None:
        """Seconds since the replication of an image began; None if ECR does not say."""
        began = image.replicated_from
        return None if began is None else max(0.0, self._clock.time() - began)

    def _interval(self, image: ImageFacts) -> float:
        """Seconds from the last answer about an image to the next question."""
        return self._pacing.interval(image.state, age=self._age(image) or 0.0)

    def _evaluated(self, before: ImageFacts, reported: tuple[Replication, ...]) -> ImageFacts:
        now, age = self._clock.monotonic(), self._age(before)
        stale_after = self._pacing.settings.stale_after
        rules = self._registry.believed_rules(now, stale_after)
        rules_apply = self._registry.rules_cover(before)
        replications, state, unverified = evaluate(
            reported,
            rules.destinations(self._name) if rules else None,
            required=before.required,
            held=self.copies.held(before),
            rules_apply=rules_apply,
            rules_expired=rules is None and self._registry.rules is not None,
            recent=age is not None and age < RECENT,
        )
        expected = self._registry.expected(self._name) or NOWHERE
        before = only_at(before, expected.union(before.required, (r.destination for r in replications)))
        (self._unverified.add if unverified else self._unverified.discard)(before.digest)
        since = states_since(
            before.since,
            replications,
            rules_apply=rules is not None and rules_apply,
            now=round(self._clock.time(), 3),
        )
        good_until = now + self._pacing.interval(state, age=age or 0.0) + stale_after
        after = before.answered(
            replications, state, unverified=unverified, since=since, at=now, good_until=good_until
        )
        return replace(after, good_until=inf) if after.confirmed else after

    def failed(self, call: Call, error: ECRError) -> None:
        digest = call.job.digest
        image = self._facts.images.get(digest)
        if image is None:
            return
        if error.reason is Reason.UNAVAILABLE:
            self._unanswered.add(digest)
        context, scope = self._context, FailureScope("status", self._name, digest)
        if error.reason in (Reason.IMAGE_NOT_FOUND, Reason.REPOSITORY_NOT_FOUND):
            # The listing tells whether it is gone.
            context.fail(scope, error, call, reported_from=2)
            self._ask(image, due=self._pacing.later(self._pacing.settings.failed_interval))
            self._list_soon()
        elif error.reason is Reason.INVALID:
            context.fail(scope, error, call)
            self._ask(image, due=self._pacing.later(self._pacing.settings.failed_interval))
        elif error.reason is Reason.UNAVAILABLE and len(self._unanswered) < OUTAGE_AFTER:
            self._ask(image, due=context.fail(scope, error, call))
        else:
            self._pacing.hold(self._name, until=context.fail(self._scope, error, call))
            self._ask(image)

    def _observe(self, image: ImageFacts, *, reported: frozenset[Destination]) -> None:
        """Report replications that ended, and log unknown statuses. What was only seen there did not end."""
        rules_known = self._registry.rules is not None
        replications = tuple(
            replication
            for replication in image.replications or ()
            if replication.destination in reported or replication.status != Status.COMPLETE
        )
        if image.pushed_at is not None:
            now, pushed_at = self._clock.time(), image.pushed_at
            recent = now - pushed_at < RECENT
            final = not image.unverified and (rules_known or not recent)
            completed = self.durations.completed(image.digest, replications, final=final, recent=recent)
            for destination in completed:
                seconds = self.durations.seconds(image.digest, destination, pushed_at=pushed_at, now=now)
                self._context.shared.on_complete(self._registry.source, destination, seconds)
        for status in {r.status for r in replications} - _KNOWN_STATUSES:
            self._context.warn_of_status(status, repository=self._name, digest=image.digest)

    # -- looks -----------------------------------------------------------------------------------

    def _take_look(self, before: ImageFacts, after: ImageFacts) -> None:
        """Take what a look changed, and count the next question from it."""
        if self._retired:
            return
        with self._store.lock:
            self._store.changed()
            self._put_looked(before, after)
        if after.replications is not None:
            self.note_first_answer(after.digest)
        if copy_went(before, after):
            self._list_soon()  # its image may have gone too

    def _put_looked(self, before: ImageFacts, after: ImageFacts) -> None:
        self._context.transitions.note(self._name, before, after)
        if after.confirmed:
            if self._tells_all(after) and not self.durations.awaits(after.digest):
                self._pacing.cancel(self._job(after.digest))
            self._facts.put(after if after.good_until == inf else replace(after, good_until=inf))
        elif before.confirmed:
            self._unconfirm(after)
        elif after.replications is not before.replications:
            self._put_again(after)
        else:
            self._facts.put(after)

    def _unconfirm(self, image: ImageFacts) -> None:
        """Ask again for an image that was seen everywhere until now. The caller holds the lock.

        All images of a destination may come together, so they are spread over the interval.
        """
        settings, now = self._pacing.settings, self._clock.monotonic()
        good_until = now + settings.settled_interval + settings.stale_after
        self._facts.put(replace(image, answered_at=now, good_until=good_until))
        if self._tells_all(image):
            self._ask(image, due=now + self._context.shared.random.uniform(0.0, settings.settled_interval))

    def _tells_all(self, image: ImageFacts) -> bool:
        """Whether the last answer tells of all places where the image is expected by now.

        If not, the rules or the targets changed since. The image is asked about soon, and nothing that a look
        shows of other places puts that off.
        """
        expected = (self._registry.expected(self._name) or NOWHERE) | image.required
        return tells_of(image.replications or (), expected)

    # -- rules and intervals -----------------------------------------------------------------

    def rules_changed(self, *, expected: frozenset[Destination]) -> None:
        """Nothing is expected at other destinations any more. Ask for all images again."""
        with self._store.lock:
            self._store.changed()
            for before in list(self._facts.images.values()):
                image = missing_only_where_expected(before, expected)
                reported = {replication.destination for replication in image.replications or ()}
                self._facts.put(only_at(image, expected | image.required | reported))
        self.copies.rules_changed()
        for image in self._facts.images.values():
            self._ask(image)

    def rules_confirmed(self) -> None:
        """The rules are the same: ask again for images that they apply to now."""
        for image in filter(None, map(self._facts.images.get, self._unverified)):
            if image.unverified and self._registry.rules_cover(image):
                self._ask(image)

    def intervals_changed(self) -> None:
        """Count other intervals from the last answers, so that nothing is asked needlessly."""
        with self._store.lock:
            self._store.changed()
            for image in list(self._facts.images.values()):
                if image.replications is not None and not image.confirmed:
                    self._put_again(image)

    def _put_again(self, image: ImageFacts) -> None:
        """Count the interval of an image from its last answer. The caller holds the lock."""
        due = image.answered_at + self._interval(image)
        self._facts.put(replace(image, good_until=due + self._pacing.settings.stale_after))
        if image.unverified or self._tells_all(image):
            self._ask(image, due=due)

    def retire(self) -> None:
        """Ask for nothing any more."""
        self._retired = True
        for digest in self._facts.images:
            self._pacing.cancel(self._job(digest))
