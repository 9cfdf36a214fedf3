"""The engine of one repository: which images it holds, how their replication goes, what to ask next.

Loop thread only. `RegistryWatch` hands it the answers; what they mean is written into the facts, and
what to ask next into the agenda.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.polling.agenda import OUTAGE_AFTER, Agenda, Job, Kind
from exporter.replication.model import (
    Destination,
    FailureScope,
    Image,
    ImageState,
    Name,
    Reason,
    Replication,
    Source,
    Status,
)
from exporter.replication.state_file import Settled, StateCache
from exporter.replication.store import (
    RECENT,
    ImageFacts,
    RegistryFacts,
    RepositoryFacts,
    Store,
    TargetImages,
    completed,
    evaluate_replications,
    image_state,
    missing_only_where_owed,
)
from exporter.replication.targets import (
    ByName,
    Listing,
    Lookup,
    Newest,
    RepositoryTargets,
    Watched,
    cheapest,
    too_long,
)

#: So many unheard-of statuses are warned of in a registry; the metrics tell of all.
MOST_UNHEARD_OF = 20
_HEARD_OF = frozenset(Status)
_NOWHERE: frozenset[Destination] = frozenset()


class RepositoryWatch:
    """Watches the images that targets select in one repository."""

    def __init__(
        self,
        name: str,
        targets: RepositoryTargets,
        *,
        registry: RegistryFacts,
        client: EcrClient,
        agenda: Agenda,
        store: Store,
        newest: Newest,
        memory: StateCache,
        on_complete: Callable[[Source, Destination, float], None],
        unheard_of: set[str],
    ) -> None:
        self.name = name
        self.facts = RepositoryFacts(labels=targets.labels)
        self._targets = targets
        self._registry = registry
        self._client_of = client
        self._agenda = agenda
        self._clock = agenda.clock
        self._store = store
        self._newest = newest
        self._memory = memory
        self._on_complete = on_complete
        #: Statuses that were warned of; shared by the registry's repositories.
        self._unheard_of = unheard_of
        self._listing_job = Job(Kind.IMAGES, name)
        self._group = (id(registry), name)
        self._listing: Listing[Image] | Lookup | None = None
        #: What the last passes taught: how long a listing is, and which names did not exist.
        self._pages: int | None = None
        self._suspects: frozenset[Name] = frozenset()
        #: The last listing, if one that is equal to it would show the same; and the floor it was under.
        self._shown: tuple[Sequence[Image], object] | None = None
        #: Digests whose first answer is awaited before the targets can be judged; None before the listing.
        self._unasked: set[str] | None = None
        #: Digests that were pushed anew while their status was being asked.
        self._outdated: set[str] = set()
        #: Digests whose last answer nobody could be sure of, for want of rules that are new enough.
        self._unverified: set[str] = set()
        #: Digests whose status call got no answer since one did.
        self._unanswered: set[str] = set()
        agenda.book(self._listing_job)

    # -- what the registry calls -------------------------------------------------------------

    def call(self, job: Job) -> Callable[[], Any]:
        """How to make a call that was booked."""
        if job.kind is Kind.STATUS:
            return partial(self._client_of.status, self.name, job.digest)
        if self._listing is None:
            self._listing = cheapest(self._targets, pages=self._pages, suspects=self._suspects)
        question = self._listing.question()
        if isinstance(question, ByName):
            return partial(self._client_of.find, self.name, question.names)
        token = question.token if question else None
        return partial(self._client_of.images, self.name, token, untagged=self._targets.untagged)

    def answered(self, job: Job, answer: Any) -> None:
        """Take what a call gave: a page or some images, or the status of one."""
        if job.kind is Kind.STATUS:
            self._status(job, answer)
        elif self._listing is None:
            self._agenda.book(job)  # asked before the targets changed
        elif isinstance(self._listing, Lookup):
            self._listing.answered(answer)
            self._go_on()
        elif self._listing.answered(answer):
            self._go_on()
        else:
            self.failed(job, circle("ecr:DescribeImages"))

    def failed(self, job: Job, error: ECRError) -> None:
        """Take that a call failed. REPOSITORY_NOT_FOUND here means one that a target spells out."""
        if job.kind is Kind.STATUS:
            self._status_failed(job, error)
        elif self._listing is None:
            self._agenda.book(job)  # asked before the targets changed
        elif error.reason is Reason.IMAGE_NOT_FOUND and isinstance(self._listing, Lookup):
            self._listing.not_found()
            self._go_on()
        elif error.reason is Reason.REPOSITORY_NOT_FOUND:
            self._gone(error)
        else:
            if error.reason is not Reason.UNAVAILABLE:
                self._listing = None  # its token may be what is wrong
            delay = self._agenda.fail(FailureScope("images", self.name), error, self.facts.failures)
            self._agenda.book(job, due=self._agenda.later(delay))

    def book_again(self, job: Job) -> None:
        """Put back a call that was not made; nothing, if its image is no longer watched."""
        if job.kind is not Kind.STATUS:
            self._agenda.book(job)
        elif facts := self.facts.images.get(job.digest):
            self._ask(facts)

    def retarget(self, targets: RepositoryTargets) -> None:
        """Other targets apply: what they no longer select goes at once, what they add is listed soon."""
        self._targets = targets
        with self._store.lock:
            self.facts.labels = targets.labels
            self.facts.targets = None
            self.facts.asked = False
        self._unasked = None
        known = [
            Image(f.digest, tuple(n.tag for n in f.names if n.tag), f.pushed_at, f.replicated_from)
            for f in self.facts.images.values()
        ]
        self._show(targets.select(known, now=self._clock.time()).images)
        self._shown = None
        self._listing = None
        self._agenda.book(self._listing_job)

    def rebook(self, *, listing: bool) -> None:
        """Other intervals apply: they count from the last answers, so nothing is asked needlessly."""
        if listing and self.facts.listed_at is not None and self._listing is None:
            due = self._agenda.some_time(self._agenda.intervals.discovery)
            self._agenda.book(self._listing_job, due=due)
        with self._store.lock:
            self._store.changed()
            for facts in list(self.facts.images.values()):
                if facts.replications is not None:
                    interval = self._agenda.intervals.after(facts.state)
                    good_until = facts.answered_at + interval + self._agenda.stale_after
                    self.facts.put(replace(facts, good_until=good_until))
                    self._ask(facts, due=facts.answered_at + interval)

    def admit(self) -> None:
        """Watch those of the listed images that fit under `max_images` now."""
        if self.facts.listed_at is not None:
            self._show(self._newest.admitted(self._group))

    def rules_changed(self, *, expected: frozenset[Destination]) -> None:
        """Nothing is expected to other destinations any more; the rest is for ECR to say."""
        with self._store.lock:
            self._store.changed()
            for facts in list(self.facts.images.values()):
                self.facts.put(missing_only_where_owed(facts, expected))
        for facts in self.facts.images.values():
            self._ask(facts)

    def rules_confirmed(self) -> None:
        """The rules are what they were: ask anew of images that nobody could be sure went by them."""
        for digest in self._unverified:
            facts = self.facts.images[digest]
            if facts.unverified and self._registry.rules_cover(facts):
                self._ask(facts)

    def retire(self) -> None:
        """It is watched no longer: leave nothing behind."""
        self._agenda.forget(self.name)
        self._agenda.queue.cancel(self._listing_job)
        for digest in self.facts.images:
            self._agenda.queue.cancel(self._job(digest))
        self._newest.put(self._group, None)
        with self._store.lock:
            self._store.skipped = self._newest.skipped

    # -- images ------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Book the next call of a pass, or make use of it when it is complete."""
        listing = self._listing
        if listing is None or listing.question():
            if isinstance(listing, Listing) and too_long(listing, self._targets, suspects=self._suspects):
                self._pages = listing.pages
                self._listing = None
            self._agenda.book(self._listing_job)
            return
        if isinstance(listing, Lookup):
            self._suspects = frozenset(listing.missing)
        else:
            self._pages = listing.pages
            self._suspects = self._targets.missing(listing.items)
        self._listing = None
        self._agenda.works(FailureScope("images", self.name))
        self._listed(listing.items)
        self._agenda.book(self._listing_job, due=self._agenda.later(self._agenda.intervals.discovery))

    def _listed(self, images: Sequence[Image]) -> None:
        if self._shown != (images, self._newest.floor):
            self._select(images)
        with self._store.lock:
            now = self._clock.monotonic()
            if not self.facts.fresh(now, self._store.stale_after):
                self._store.changed()
            self.facts.listed_at = now
            self.facts.listed_time = self._clock.time()
        self._memory.forget(self._registry.source, self.name)
        if self._unasked is None:
            self._unasked = {d for d, image in self.facts.images.items() if image.replications is None}
        self._asked()

    def _select(self, images: Sequence[Image]) -> None:
        selection = self._targets.select(images, now=self._clock.time())
        self._newest.put(self._group, selection)
        if self._newest.to_be_told():
            self._agenda.warned("images_skipped", max_images=self._newest.limit)
        with self._store.lock:
            self.facts.targets = tuple(
                TargetImages(t.label, t.images, complete=not t.missing) for t in selection.targets
            )
            self._store.skipped = self._newest.skipped
        expected = self._registry.expected(self.name)
        remembered = self._memory.recall(self._registry.source, self.name, expected=expected)
        self._show(self._newest.admitted(self._group), remembered=remembered)
        # Most of what was listed is remembered by its selection; a listing that is mostly not is dropped.
        worth = len(images) <= 2 * len(selection.images) and not self._targets.age_matters
        self._shown = (images, self._newest.floor) if worth else None

    def _show(
        self, selected: Mapping[str, Watched], *, remembered: Mapping[str, Settled] | None = None
    ) -> None:
        """Make the facts those of the selected images, and book what is new among them."""
        images = self.facts.images
        gone = images.keys() - selected.keys()
        for digest in gone:
            self._agenda.works(FailureScope("status", self.name, digest))
            self._agenda.queue.cancel(self._job(digest))
            self._unverified.discard(digest)
            self._asked(digest)
        if not selected:
            self._agenda.works(FailureScope("status", self.name))
        new, renamed = self._differences(selected, remembered or {})
        with self._store.lock:
            for digest in gone:
                self.facts.remove(digest)
            for facts in (*new, *renamed):
                self.facts.put(facts)
            if gone or new or renamed:
                self._store.changed()
        for facts in new:
            if facts.replications is None:
                self._ask(facts, first=self._just_pushed(facts))
            else:
                self._ask(facts, due=facts.answered_at + self._agenda.intervals.settled)

    def _differences(
        self, selected: Mapping[str, Watched], remembered: Mapping[str, Settled]
    ) -> tuple[list[ImageFacts], list[ImageFacts]]:
        """The images of which nothing is known, but for what is remembered; and those with other names."""
        new, renamed = [], []
        for digest, watched in selected.items():
            image, names = watched.image, tuple(sorted(watched.names))
            facts = self.facts.images.get(digest)
            if facts is None or facts.replicated_from != image.replicated_from:
                if self._agenda.under_way(self._job(digest)):
                    self._outdated.add(digest)
                facts = ImageFacts(digest, names, image.pushed_at, image.replicated_from)
                new.append(self._recalled(facts, remembered.get(digest)))
            elif facts.names != names:
                renamed.append(replace(facts, names=names))
        return new, renamed

    def _recalled(self, facts: ImageFacts, settled: Settled | None) -> ImageFacts:
        if settled is None:
            return facts
        interval, stale_after = self._agenda.intervals.settled, self._agenda.stale_after
        return settled.recall(facts, clock=self._clock, settled_interval=interval, stale_after=stale_after)

    def _gone(self, error: ECRError) -> None:
        self._listing = self._shown = None
        self._listed([])
        with self._store.lock:
            # That its images are missing goes without saying.
            self.facts.targets = tuple(replace(t, complete=True) for t in self.facts.targets or ())
        self._agenda.fail(FailureScope("images", self.name), error, self.facts.failures)
        self._agenda.book(self._listing_job, due=self._agenda.later(self._agenda.intervals.discovery))

    # -- replication status ------------------------------------------------------------------

    def _status(self, job: Job, reported: tuple[Replication, ...]) -> None:
        before = self.facts.images.get(job.digest)
        if before is None:
            return  # deleted, or no longer selected, while the call was under way
        if job.digest in self._outdated:
            self._outdated.discard(job.digest)
            self._ask(before)  # that was the status of an earlier push of the same image
            return
        self._unanswered.clear()
        now = self._clock.monotonic()
        rules = self._registry.believed_rules(now, self._agenda.stale_after)
        judged = evaluate_replications(reported, rules.destinations(self.name) if rules else _NOWHERE)
        covered = self._registry.rules_cover(before)
        recent = self._younger(before, RECENT)
        state = image_state(judged, recent=recent, rules_known=rules is not None and covered)
        replications, unverified = judged, rules is None and self._registry.rules is not None
        if rules and not covered:
            # They may have changed between their last reading and the push: nothing is MISSING by such.
            replications = evaluate_replications(reported, _NOWHERE)
            unverified = not judged or replications != judged
            state = ImageState.UNKNOWN if state is ImageState.SETTLED and unverified else state
        (self._unverified.add if unverified else self._unverified.discard)(job.digest)
        self._observe(before, replications)
        interval = self._agenda.intervals.after(state)
        good_until = now + interval + self._agenda.stale_after
        facts = before.answered(replications, state, unverified=unverified, at=now, good_until=good_until)
        with self._store.lock:
            if facts != before or now > before.good_until:
                self._store.changed()
            self.facts.put(facts)
        self._agenda.works(FailureScope("status", self.name))
        self._agenda.works(FailureScope("status", self.name, job.digest))
        self._ask(facts, due=self._agenda.later(interval))
        self._asked(job.digest)

    def _status_failed(self, job: Job, error: ECRError) -> None:
        facts = self.facts.images.get(job.digest)
        if facts is None:
            return
        if error.reason is Reason.UNAVAILABLE:
            self._unanswered.add(job.digest)
        image = FailureScope("status", self.name, job.digest)
        if error.reason in (Reason.IMAGE_NOT_FOUND, Reason.REPOSITORY_NOT_FOUND):
            # The listing is what tells whether it is gone: have it made now.
            self._agenda.fail(image, error, self.facts.failures, told_from=2)
            self._ask(facts, due=self._agenda.later(self._agenda.intervals.failed))
            self._agenda.book(self._listing_job)
        elif error.reason is Reason.INVALID:
            self._agenda.fail(image, error, self.facts.failures)
            self._ask(facts, due=self._agenda.later(self._agenda.intervals.failed))
        elif error.reason is Reason.UNAVAILABLE and len(self._unanswered) < OUTAGE_AFTER:
            delay = self._agenda.fail(image, error, self.facts.failures)
            self._ask(facts, due=self._agenda.later(delay))
        else:
            image = FailureScope("status", self.name)
            self._agenda.hold(image, seconds=self._agenda.fail(image, error, self.facts.failures))
            self._ask(facts)
        if self._agenda.told(image):
            self._asked(job.digest)

    def _just_pushed(self, facts: ImageFacts) -> bool:
        """Whether it came about when the repository was listed last, or later: no start or reload, and no
        return after an outage, is to take all that it finds for pushes of the moment.
        """
        return self._younger(facts, 2.0 * self._agenda.intervals.discovery + 60.0)

    def _younger(self, facts: ImageFacts, seconds: float) -> bool:
        """Whether its replication began no longer ago than that."""
        began = facts.replicated_from
        return began is not None and self._clock.time() - began < seconds

    def _observe(self, before: ImageFacts, after: tuple[Replication, ...]) -> None:
        """Tell of replications that ended, and of statuses that nobody has heard of."""
        if before.replicated_from is not None:
            seconds = max(0.0, self._clock.time() - before.replicated_from)
            for destination in completed(before, after):
                self._on_complete(self._registry.source, destination, seconds)
        for status in {r.status for r in after} - _HEARD_OF - self._unheard_of:
            if len(self._unheard_of) == MOST_UNHEARD_OF:
                return
            self._unheard_of.add(status)
            self._agenda.warned(
                "unheard_of_status", status=status, repository=self.name, digest=before.digest
            )

    # -- booking -----------------------------------------------------------------------------

    def _job(self, digest: str) -> Job:
        return Job(Kind.STATUS, self.name, digest)

    def _ask(self, facts: ImageFacts, *, due: float | None = None, first: bool = False) -> None:
        urgent = facts.state in (ImageState.NEW, ImageState.PENDING)
        rank = facts.replicated_from or 0.0 if urgent else None
        self._agenda.book(self._job(facts.digest), due=due, rank=rank, first=first)

    def _asked(self, digest: str = "") -> None:
        """Note that the image's first answer is there; with the last, the targets can be judged."""
        if self._unasked is not None:
            self._unasked.discard(digest)
            if not self._unasked:
                self.facts.asked = True


def circle(action: str) -> ECRError:
    """The error that a listing never ends."""
    return ECRError(Reason.INVALID, action=action, code="RepeatedToken", message="the pages lead in a circle")
