"""One repository: which of its images are watched, and with which access it is asked.

Loop thread only. The registry poller hands it the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from exporter.aws.errors import ECRError
from exporter.polling.access import Access, Choice
from exporter.polling.calls import Call, Job, Kind
from exporter.polling.failures import Parts
from exporter.polling.listing import ImageListing
from exporter.polling.statuses import ImageStatuses, OnComplete
from exporter.replication.facts import ImageFacts, RepositoryFacts, TargetImages
from exporter.replication.model import Destination, FailureScope, Image, Reason
from exporter.replication.state_file import Settled, StateCache
from exporter.replication.store import Store
from exporter.replication.targets import Newest, RepositoryTargets, Watched


class RepositoryPoller:
    """Keeps the facts of one repository."""

    def __init__(
        self,
        name: str,
        targets: RepositoryTargets,
        accesses: Iterable[Access],
        *,
        parts: Parts,
        store: Store,
        newest: Newest,
        memory: StateCache,
        on_complete: OnComplete,
        unknown_statuses: set[str],
    ) -> None:
        self.name = name
        self.facts = RepositoryFacts(labels=targets.labels)
        self._targets = targets
        self._parts = parts
        self._registry = parts.facts
        self._pacing = parts.pacing
        self._clock = parts.clock
        self._store = store
        self._newest = newest
        self._memory = memory
        # Listing and status calls need different permissions, so each has its own choice.
        self._choices = {kind: Choice(accesses) for kind in (Kind.IMAGES, Kind.STATUS)}
        self._listing = ImageListing(name, targets)
        self._listing_job = Job(Kind.IMAGES, name)
        self._scope = FailureScope("images", name)
        self._statuses = ImageStatuses(
            name,
            self.facts,
            parts=parts,
            store=store,
            on_complete=on_complete,
            unknown_statuses=unknown_statuses,
        )
        self._group = (id(parts.facts), name)
        #: The last listing, if an equal one selects the same.
        self._shown: Sequence[Image] | None = None
        #: The floor of `newest` when its images were shown.
        self._floor: object = None
        parts.pacing.book(self._listing_job)

    # -- calls -------------------------------------------------------------------------------

    def call(self, job: Job) -> tuple[Access, Callable[[], Any]]:
        """How to make the call of a job, and with which access."""
        access = self._choices[job.kind].access
        client = self._parts.clients.of(access)
        if job.kind is Kind.STATUS:
            return access, lambda: client.status(self.name, job.digest)
        return access, self._listing.call(client)

    def answered(self, call: Call, answer: Any) -> None:
        """Take an answer: a page, some images, or the status of one."""
        self._choices[call.job.kind].worked()
        if call.job.kind is Kind.STATUS:
            self._statuses.answered(call.job, answer)
        elif not self._listing.under_way:
            self._pacing.book(call.job)  # asked before the targets changed
        else:
            try:
                images = self._listing.answered(answer)
            except ECRError as error:
                self.failed(call, error)
            else:
                self._take_result(images)

    def failed(self, call: Call, error: ECRError) -> None:
        """Take that a call failed. REPOSITORY_NOT_FOUND is of a repository that a target spells out."""
        refused = error.reason is Reason.ACCESS_DENIED or error.everything
        if refused and self._choices[call.job.kind].refused(call.access):
            self.ask_again(call.job)
            self._pacing.probe_again(call.job)
        elif call.job.kind is Kind.STATUS:
            self._statuses.failed(call, error)
        elif not self._listing.under_way:
            self._pacing.book(call.job)  # asked before the targets changed
        else:
            self._listing_failed(call, error)

    def ask_again(self, job: Job, *, due: float | None = None) -> None:
        """Ask again at a monotonic time, now by default, after a call that gave nothing."""
        if job.kind is Kind.STATUS:
            self._statuses.ask_again(job.digest, due=due)
        else:
            self._pacing.book(job, due=due)

    # -- the listing -------------------------------------------------------------------------

    def _listing_failed(self, call: Call, error: ECRError) -> None:
        if error.reason is Reason.IMAGE_NOT_FOUND:
            by_name, images = self._listing.not_found()
            if by_name:
                self._take_result(images)
                return
        if error.reason is Reason.REPOSITORY_NOT_FOUND:
            self._gone(call, error)
            return
        if error.reason is not Reason.UNAVAILABLE:
            self._listing.give_up()  # its token may be what is wrong
        until = self._parts.failures.fail(self._scope, error, self.facts.failures, call=call)
        self._pacing.book(self._listing_job, due=until)

    def _take_result(self, images: Sequence[Image] | None) -> None:
        """Take the images of a whole pass, and begin the next later; None: the pass goes on."""
        if images is None:
            self._pacing.book(self._listing_job)
            return
        self._parts.works(self._scope)
        self._listed(images)
        self._list_later()

    def _list_later(self) -> None:
        self._pacing.book(self._listing_job, due=self._pacing.later(self._pacing.intervals.discovery))

    def _listed(self, images: Sequence[Image]) -> None:
        if self._shown != images:
            self._select(images)
        elif self._floor != self._newest.floor:
            self.admit()
        with self._store.lock:
            now = self._clock.monotonic()
            if not self.facts.fresh(now, self._store.stale_after):
                self._store.changed()
            self.facts.listed_at = now
            self.facts.listed_time = self._clock.time()
        self._memory.forget(self._registry.source, self.name)
        self._statuses.begin_first_round()

    def _gone(self, call: Call, error: ECRError) -> None:
        """The repository does not exist: its images are gone, and that is no failure of its own."""
        self._listing.give_up()
        self._shown = None
        self._listed([])
        with self._store.lock:
            self.facts.targets = tuple(replace(t, complete=True) for t in self.facts.targets or ())
        self._parts.failures.fail(self._scope, error, self.facts.failures, call=call)
        self._list_later()

    # -- the images --------------------------------------------------------------------------

    def _select(self, images: Sequence[Image]) -> None:
        selection = self._targets.select(images, now=self._clock.time())
        self._newest.put(self._group, selection)
        if self._newest.newly_skipped():
            self._parts.warned("images_skipped", max_images=self._newest.limit)
        with self._store.lock:
            self.facts.targets = tuple(
                TargetImages(t.label, t.images, complete=not t.missing) for t in selection.targets
            )
            self._store.skipped = self._newest.skipped
        expected = self._registry.expected(self.name)
        remembered = self._memory.recall(self._registry.source, self.name, expected=expected)
        self._show_admitted(remembered)
        # Most of a listing is kept by its selection. One that is mostly not selected is dropped.
        worth = len(images) <= 2 * len(selection.images) and not self._targets.age_matters
        self._shown = images if worth else None

    def _show_admitted(self, remembered: Mapping[str, Settled] | None = None) -> None:
        self._floor = self._newest.floor
        self._show(self._newest.admitted(self._group), remembered=remembered)

    def _show(
        self, selected: Mapping[str, Watched], *, remembered: Mapping[str, Settled] | None = None
    ) -> None:
        """Make the facts those of the selected images, and ask for what is new among them."""
        gone = self.facts.images.keys() - selected.keys()
        for digest in gone:
            self._statuses.removed(digest)
        if not selected:
            self._statuses.all_removed()
        new, renamed = self._differences(selected, remembered or {})
        with self._store.lock:
            for digest in gone:
                self.facts.remove(digest)
            for image in (*new, *renamed):
                self.facts.put(image)
            if gone or new or renamed:
                self._store.changed()
        for image in new:
            self._statuses.added(image)

    def _differences(
        self, selected: Mapping[str, Watched], remembered: Mapping[str, Settled]
    ) -> tuple[list[ImageFacts], list[ImageFacts]]:
        """The images of which only what is remembered is known, and those that have other names."""
        new, renamed = [], []
        for digest, watched in selected.items():
            image, names = watched.image, tuple(sorted(watched.names))
            known = self.facts.images.get(digest)
            if known is None or known.replicated_from != image.replicated_from:
                found = ImageFacts(digest, names, image.pushed_at, image.replicated_from)
                new.append(self._statuses.recall(found, remembered.get(digest)))
            elif known.names != names:
                renamed.append(replace(known, names=names))
        return new, renamed

    # -- what else changes -------------------------------------------------------------------

    def allow(self, accesses: Iterable[Access]) -> None:
        """Ask with one of these accesses from now on."""
        for choice in self._choices.values():
            choice.configure(accesses)

    def retarget(self, targets: RepositoryTargets) -> None:
        """Take other targets: images that they do not select go now, those that they add come soon."""
        self._targets = targets
        with self._store.lock:
            self.facts.labels = targets.labels
            self.facts.targets = None
        self._statuses.restart_first_round()
        known = [
            Image(f.digest, tuple(n.tag for n in f.names if n.tag), f.pushed_at, f.replicated_from)
            for f in self.facts.images.values()
        ]
        self._show(targets.select(known, now=self._clock.time()).images)
        self._shown = None
        self._listing.retarget(targets)
        self._pacing.book(self._listing_job)

    def intervals_changed(self, *, listing: bool) -> None:
        """Take other intervals; `listing`: that between listings is another one too."""
        if listing and self.facts.listed_at is not None and not self._listing.under_way:
            due = self._pacing.some_time(self._pacing.intervals.discovery)
            self._pacing.book(self._listing_job, due=due)
        self._statuses.intervals_changed()

    def admit(self) -> None:
        """Watch those of the listed images that fit under `max_images` now."""
        if self.facts.listed_at is not None:
            self._show_admitted()

    def rules_changed(self, *, expected: frozenset[Destination]) -> None:
        """Take other rules: images of the repository go to the expected destinations from now on."""
        self._statuses.rules_changed(expected=expected)

    def rules_confirmed(self) -> None:
        """Take that the rules are the same as before."""
        self._statuses.rules_confirmed()

    def retire(self) -> None:
        """It is polled no longer: leave nothing behind."""
        for scope in self._parts.failures.of(self.name):
            self._parts.works(scope)
        self._pacing.cancel(self._listing_job)
        self._statuses.retire(self.facts.images)
        self._newest.put(self._group, None)
        with self._store.lock:
            self._store.skipped = self._newest.skipped
