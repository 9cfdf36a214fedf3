"""One repository: which of its images are watched.

Loop thread only. It takes the answers to listings, and its `statuses` take those to status calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from exporter.aws.ecr import EcrClient
from exporter.aws.errors import ECRError
from exporter.polling.access import Access
from exporter.polling.calls import Call, Job
from exporter.polling.context import Asker, Context
from exporter.polling.listing import ImageListing
from exporter.polling.rate_limit import Operation
from exporter.polling.statuses import StatusPoller
from exporter.replication.facts import ImageFacts, RepositoryFacts, TargetImages
from exporter.replication.model import FailureScope, Image, Reason
from exporter.replication.replicas import Contents, renamed
from exporter.replication.state_file import Remembered
from exporter.replication.targets import RepositoryTargets, Watched


class RepositoryPoller(Asker):
    """Keeps the facts of one repository. It makes the listings itself."""

    def __init__(
        self,
        context: Context,
        name: str,
        targets: RepositoryTargets,
        accesses: Iterable[Access],
        *,
        gone: Callable[[str], bool],
    ) -> None:
        accesses = tuple(accesses)
        super().__init__(context, accesses)
        self.name = name
        self.facts = RepositoryFacts(labels=targets.labels, required=targets.required)
        self._listing = ImageListing(name, targets)
        self.statuses = StatusPoller(context, name, self.facts, self._listing, accesses)
        self._targets = targets
        #: Told that the repository does not exist; False if it is polled all the same.
        self._gone = gone
        self._newest = context.shared.newest
        self._sightings = context.shared.sightings
        self._memory = context.shared.memory
        self._job = Job(Operation.IMAGES, name)
        self._scope = FailureScope("images", name)
        self._group = (id(context), name)
        #: When the present listing began (Unix time).
        self._began = 0.0
        #: The last listing, if an equal one selects the same.
        self._shown: Sequence[Image] | None = None
        #: The floor of `newest` when its images were shown.
        self._floor: object = None
        self._sightings.watch(name, self._registry.source, self.statuses)
        self._pacing.book(self._job)

    # -- listings ----------------------------------------------------------------------------

    def question(self, job: Job, client: EcrClient) -> Callable[[], Any]:
        del job
        if not self._listing.under_way:
            self._began = self._clock.time()
        return self._listing.call(client)

    def answered(self, call: Call, answer: Any) -> None:
        """Take a page, or the images of some names."""
        if self._listing.under_way:
            self._take_result(self._listing.answered(answer))
        else:
            self.ask_again(call.job)  # asked before the targets changed

    def failed(self, call: Call, error: ECRError) -> None:
        """Take that a call failed."""
        if not self._listing.under_way:
            self.ask_again(call.job)  # asked before the targets changed
            return
        if error.reason is Reason.IMAGE_NOT_FOUND:
            by_name, images = self._listing.not_found()
            if by_name:
                self._take_result(images)
                return
        if error.reason is not Reason.UNAVAILABLE:
            self._listing.begin_again()  # its token may be what is wrong
        if error.reason is Reason.REPOSITORY_NOT_FOUND:
            if self._gone(self.name):
                return
            # A target spells it out. Its images are gone, and that is no failure of its own.
            self._shown = None
            self._listed([], exists=False)
            with self._store.lock:
                self.facts.targets = tuple(replace(t, complete=True) for t in self.facts.targets or ())
            self._context.fail(self._scope, error, call)
        else:
            self.ask_again(self._job, due=self._context.fail(self._scope, error, call))

    def _take_result(self, images: Sequence[Image] | None) -> None:
        """Take the images of a whole pass, and begin the next later; None: the pass goes on."""
        if images is None:
            self.ask_again(self._job)
        else:
            self._context.works(self._scope)
            self._listed(images)

    def _listed(self, images: Sequence[Image], *, exists: bool = True) -> None:
        now = self._clock.monotonic()
        was_fresh = self.facts.fresh(now, self._store.stale_after)
        if not was_fresh:
            self.statuses.durations.interrupted()
        if self._shown != images:
            self._select(images)
        elif self._floor != self._newest.floor:
            self.admit()
        with self._store.lock:
            if exists != self.facts.exists or not was_fresh:
                self._store.changed()
            self.facts.exists = exists
            self.facts.listed_at = now
            self.facts.listed_time = self._clock.time()
        self._sightings.listed(self.name, self._registry.source, Contents(images, everything=False))
        self.statuses.durations.listed(self._began)
        self._memory.forget(self._registry.source, self.name)
        self.statuses.begin_first_round()
        self.ask_again(self._job, due=self._pacing.later(self._pacing.settings.discovery_interval))

    # -- the images --------------------------------------------------------------------------

    def _select(self, images: Sequence[Image]) -> None:
        selection = self._targets.select(images, now=self._clock.time())
        self._newest.put(self._group, selection)
        if self._newest.newly_skipped():
            self._context.warned("images_skipped", max_images=self._newest.limit)
        with self._store.lock:
            self.facts.targets = tuple(
                TargetImages(t.label, t.images, complete=not t.missing) for t in selection.targets
            )
            self._store.skipped = self._newest.skipped
        self._context.targets_changed = True
        expected = self._registry.expected(self.name)
        remembered = self._memory.recall(self._registry.source, self.name, expected=expected)
        self._show_admitted(remembered)
        # Most of a listing is kept by its selection. One that is mostly not selected is dropped.
        worth = len(images) <= 2 * len(selection.images) and not self._targets.age_matters
        self._shown = images if worth else None

    def _show_admitted(self, remembered: Mapping[str, Remembered] | None = None) -> None:
        self._floor = self._newest.floor
        self._show(self._newest.admitted(self._group), remembered=remembered)

    def _show(
        self, selected: Mapping[str, Watched], *, remembered: Mapping[str, Remembered] | None = None
    ) -> None:
        """Make the facts those of the selected images, and ask for what is new among them."""
        gone = self.facts.images.keys() - selected.keys()
        for digest in gone:
            self.statuses.removed(digest)
        if not selected:
            self.statuses.works()
        new, changed = self._differences(selected, remembered or {})
        before = [self.facts.images[image.digest] for image in changed]
        with self._store.lock:
            for digest in gone:
                self.facts.remove(digest)
            for image in (*new, *changed):
                self.facts.put(image)
            if gone or new or changed:
                self._store.changed()
        for image in new:
            self.statuses.added(image)
        for was, image in zip(before, changed, strict=True):
            self.statuses.renamed(was, image)
        self.statuses.find_destinations()

    def _differences(
        self, selected: Mapping[str, Watched], remembered: Mapping[str, Remembered]
    ) -> tuple[list[ImageFacts], list[ImageFacts]]:
        """The images that are new, with what is remembered; and those with other names or destinations."""
        new, changed = [], []
        for digest, watched in selected.items():
            image, names = watched.image, tuple(sorted(watched.names))
            known = self.facts.images.get(digest)
            if known is None or known.replicated_from != image.replicated_from:
                found = ImageFacts(
                    digest, names, image.pushed_at, image.replicated_from, required=watched.required
                )
                new.append(self.statuses.recall(found, remembered.get(digest)))
            elif known.names != names or known.required != watched.required:
                changed.append(renamed(known, names, watched.required))
        return new, changed

    # -- what else changes -------------------------------------------------------------------

    def allow(self, accesses: Iterable[Access]) -> None:
        """Ask with one of these accesses from now on."""
        accesses = tuple(accesses)
        self.choice.configure(accesses)
        self.statuses.choice.configure(accesses)

    def retarget(self, targets: RepositoryTargets) -> None:
        """Take the targets: images that others do not select go now, those that they add come soon."""
        if (targets.selections, targets.required_by) == (
            self._targets.selections,
            self._targets.required_by,
        ):
            return
        self._targets = targets
        with self._store.lock:
            self.facts.labels = targets.labels
            self.facts.required = targets.required
            self.facts.targets = None
        self.statuses.restart_first_round()
        self.statuses.durations.interrupted()
        known = [
            Image(f.digest, tuple(n.tag for n in f.names if n.tag), f.pushed_at, f.replicated_from)
            for f in self.facts.images.values()
        ]
        self._show(targets.select(known, now=self._clock.time()).images)
        self._shown = None
        self._listing.begin_again(targets)
        self._pacing.book(self._job)

    def intervals_changed(self) -> None:
        """Count other intervals from the last listing and the last answers."""
        if self.facts.listed_at is not None and not self._listing.under_way:
            due = self.facts.listed_at + self._pacing.settings.discovery_interval
            self._pacing.book(self._job, due=due)
        self.statuses.intervals_changed()

    def admit(self) -> None:
        """Watch those of the listed images that fit under `max_images` now."""
        if self.facts.listed_at is not None:
            self._show_admitted()

    def retire(self) -> None:
        """It is polled no longer: leave nothing behind."""
        self._context.forget(self.name)
        self._pacing.cancel(self._job)
        self.statuses.retire()
        self._newest.put(self._group, None)
        self._sightings.unwatch(self.name, self._registry.source, self.statuses)
        with self._store.lock:
            self._store.skipped = self._newest.skipped
